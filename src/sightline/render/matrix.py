"""Matrices: what was taken for what, and how alike several things are pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sightline.errors import OutputError
from sightline.render.colormap import DIVERGING, levels, palette
from sightline.render.page import FAINT, INK, MARGIN, SOFT, WIDTH, Array, Frame, Look, Page, Scale

_MOST_NAMED = 40  # classes that have their names at the rows and columns
_ROOMY = 46  # pixels of a cell that has room for numbers
_RIGHT_INK, _WRONG_INK = (0, 84, 140), (213, 94, 0)
_NARROW, _WIDE = 36.0, 96.0  # pixels of a cell
_UNKNOWN = (225, 225, 225)


def confusion(title: str, names: Sequence[str], counts: np.ndarray[Any, Any]) -> Image.Image:
    """What was taken for what: a row for each class as it is, a column for each as the model says.

    The stronger a cell's colour, the larger its share of the row: blue where the model is right, orange where it is wrong.
    Counts and shares stand in the cells as long as they fit; with more classes the pairs that are confused most are listed.

    Args:
        title: above the picture.
        names: of the K classes.
        counts: (K, K) of pictures, true classes down, said ones across.

    Returns:
        RGB, up to 1800 wide.

    Raises:
        OutputError: names and counts do not fit together.
    """
    count = len(names)
    if not count or counts.shape != (count, count):
        raise OutputError(f"{count} names and counts of shape {counts.shape}; expected (K, K) for K names")
    named = count <= _MOST_NAMED
    page = Page()
    texts = page.all_fitted(names, 300) if named else []
    left = MARGIN + (max(page.width(*text) for text in texts) + 10 if named else 0)
    page = Page(round(max(560, min(WIDTH, left + MARGIN + 130 * count))))
    note = "Rows: what the picture shows. Columns: what the model said. Blue is right, orange is wrong; the stronger, the larger the share of the row."
    y = page.heading(title, note) + 12
    cell = min(130.0, (page.right - left) / count, 640 / count)
    top = _name_columns(page, y, left, cell, names) if named else y
    frame = Frame(Scale(0, count, left, left + cell * count), Scale(count, 0, top + cell * count, top))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    page.cells(_shades(shares), left, top, frame.x.end, frame.bottom)
    _grid(page, frame, count if named else 1)
    for index, text in enumerate(texts):
        page.text(left - 10, top + cell * (index + 0.5), *text, align="right")
    if cell < _ROOMY:
        return page.image(_confused(page, frame.bottom + 14, names, counts) + 12)
    _fill_cells(page, frame, counts, shares, cell)
    return page.image(frame.bottom + 20)


def correlations(title: str, note: str, names: Sequence[str], values: Array, remark: str = "") -> Image.Image:
    """Cells from blue (-1) over white (0) to red (1) with their numbers; what has no correlation is grey.

    Args:
        title: above the picture; `note` below it.
        names: of the n things.
        values: (n, n), symmetric, NaN where undefined.
        remark: a sentence below.

    Returns:
        RGB, twice as wide as its page, which grows with n so that the numbers can be read.

    Raises:
        OutputError: names and values do not fit together.
    """
    count = len(names)
    if not count or values.shape != (count, count):
        raise OutputError(f"{count} names and correlations of shape {values.shape}; expected (n, n) for n names")
    order = neighbours(values)
    shown, texts = values[np.ix_(order, order)], Page().all_fitted([names[at] for at in order], 260)
    cell = min(_WIDE, max(_NARROW, 560 / count))
    left = MARGIN + max(Page().width(*text) for text in texts) + 10
    page = Page(round(max(640, left + cell * count + MARGIN)))
    y = page.heading(title, note) + 12
    top = _name_columns(page, y, left, cell, [text for text, _ in texts])
    frame = Frame(Scale(0, count, left, left + cell * count), Scale(count, 0, top + cell * count, top))
    colours = palette(DIVERGING)[levels(shown, 1.0, signed=True)]
    colours[np.isnan(shown)] = _UNKNOWN
    page.cells(colours, left, top, frame.x.end, frame.bottom)
    _grid(page, frame, count)
    for index, text in enumerate(texts):
        page.text(left - 10, top + cell * (index + 0.5), *text, align="right")
    dark = colours @ (0.3, 0.6, 0.1) < 120
    for row, column in np.ndindex(count, count):
        value = shown[row, column]
        words = "\N{EN DASH}" if np.isnan(value) else f"{value:z.2f}".replace("-", "\N{MINUS SIGN}")
        ink = "white" if dark[row, column] else INK
        size = 14 if cell >= 50 else 10
        page.text(
            frame.x(column + 0.5), frame.y(row + 0.5), *page.fitted(words, size, cell - 3), ink=ink, align="center"
        )
    y = _key(page, frame.bottom + 26, left)
    if np.isnan(values).any():
        y = page.paragraph(y, "Grey: a map that is empty or the same everywhere has no order of its places.")
    return page.image((page.paragraph(y + 2, remark, ink=INK, bold=True) if remark else y) + 14)


def neighbours(values: Array) -> list[int]:
    """An order of the rows of a matrix (n, n) in which similar ones stand beside each other, those without a value last.

    From each row a chain that always goes on to the most similar one left; of these chains the one that holds together best.
    """
    known = [at for at in range(len(values)) if np.isfinite(np.delete(values[at], at)).any()]
    near = np.where(np.isfinite(values), values, -2.0)
    chains = []
    for start in known:
        chain, left = [start], [at for at in known if at != start]
        while left:
            chain.append(left.pop(int(np.argmax(near[chain[-1], left]))))
        chains.append(chain)
    best = max(chains, key=lambda chain: float(near[chain[:-1], chain[1:]].sum()), default=[])
    return best + [at for at in range(len(values)) if at not in known]


def _key(page: Page, y: float, left: float) -> float:
    """The colours from -1 to 1 with their meaning; returns where it ends."""
    right = min(left + 240, page.right)
    page.cells(palette(DIVERGING)[None], left, y - 6, right, y + 6)
    for at, text in ((left, "\N{MINUS SIGN}1 opposite"), (right, "1 the same order")):
        page.text(at, y + 16, text, 12, ink=SOFT, align="left" if at == left else "right")
    page.text((left + right) / 2, y + 16, "0", 12, ink=SOFT, align="center")
    return y + 32


def _shades(shares: Array) -> np.ndarray[Any, Any]:
    """Colours (K, K, 3) of shares; by their root, so that a few mistakes among many can be seen."""
    inks = np.where(np.eye(len(shares), dtype=bool)[..., None], _RIGHT_INK, _WRONG_INK)
    depth = np.sqrt(shares)[..., None]
    return np.asarray(np.rint(255 * (1 - depth) + inks * depth), np.uint8)


def _name_columns(page: Page, y: float, left: float, cell: float, names: Sequence[str]) -> float:
    """Names above the columns, upright where one is wider than a cell; returns where the cells begin."""
    texts = page.all_fitted(names, 160)
    widest = max(page.width(*text) for text in texts)
    flat = widest <= cell - 8
    top = y + (20 if flat else widest + 8)
    for index, text in enumerate(texts):
        middle = left + cell * (index + 0.5)
        if flat:
            page.text(middle, top - 12, *text, align="center")
        else:
            page.text(middle, top - 8, *text, upwards=True)
    return top


def _fill_cells(page: Page, frame: Frame, counts: np.ndarray[Any, Any], shares: Array, cell: float) -> None:
    """Count and share in each cell, in the ink that can be read on its colour; a row without pictures has no shares."""
    dark = _shades(shares) @ (0.3, 0.6, 0.1) < 110
    digits = 1 if cell >= 70 else 0
    for row, column in np.ndindex(*counts.shape):
        x, y = frame.x(column + 0.5), frame.y(row + 0.5)
        ink = "white" if dark[row, column] else INK
        page.text(x, y - 8, *page.fitted(f"{counts[row, column]:,}", 15, cell - 4), ink=ink, align="center")
        if counts[row].any():
            page.text(x, y + 11, f"{100 * shares[row, column]:.{digits}f} %", 11, ink=ink, align="center")


def _grid(page: Page, frame: Frame, count: int) -> None:
    """Lines around a square of cells, and between them."""
    for index in range(count + 1):
        share = index / count
        look = Look(SOFT if index in (0, count) else FAINT, (), 1)
        x, y = (axis.start + share * (axis.end - axis.start) for axis in frame)
        page.line([x, x], [frame.y.start, frame.y.end], look, order=1)
        page.line([frame.x.start, frame.x.end], [y, y], look, order=1)


def _confused(page: Page, y: float, names: Sequence[str], counts: np.ndarray[Any, Any]) -> float:
    """The pairs that are confused most, in words; returns where they end."""
    if len(names) > _MOST_NAMED:
        first, last = (page.fitted(names[at], 13, 240)[0] for at in (0, -1))
        y = page.paragraph(y, f"The {len(names):,} classes stand in their order, from {first} to {last}.") + 6
    wrong = np.where(np.eye(len(names), dtype=bool), 0, counts)
    pairs = [divmod(int(at), len(names)) for at in np.argsort(-wrong, axis=None, kind="stable")[:12]]
    pairs = [(row, column) for row, column in pairs if wrong[row, column]]
    if not pairs:
        return page.paragraph(y, "No picture was taken for another class.")
    y = page.paragraph(y, "Confused most often:", ink=INK, bold=True)
    for row, column in pairs:
        true, said = (page.fitted(names[at], 13, 240)[0] for at in (row, column))
        y = page.paragraph(y, f"{true} taken for {said}: {counts[row, column]:,} of {counts[row].sum():,}", ink=INK)
    return y
