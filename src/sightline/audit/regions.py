"""What a model may rely on in place of the object: regions where the heat of a class gathers, and what no region shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.audit.changes import Box
from sightline.audit.clusters import Cluster
from sightline.audit.heat import MIDDLE, in_box

Array = np.ndarray[Any, np.dtype[Any]]
Fractions = tuple[float, float, float, float]
REGION, BACKGROUND = "region", "background"
SIZES = ("smallness", "largeness")
WHOLE = ("tone", "texture", *SIZES)
LARGEST = 0.25  # of the input's area: what gathers nowhere is no region
_MARGIN = 0.5  # cells around the hot ones: a mark may reach into the next cell
_MOST = 4  # regions of a class
_SAME = 0.5  # intersection over union from which two regions count as one


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something that may make a model say a class, whatever the object is.

    Attributes:
        of: the class.
        what: "region", "background" (all but the object, by its mask), "tone" (mean and spread of the colours), "texture" (how
            strong what is finer than a tenth of the side is, at every fineness), "smallness" or "largeness" (of everything).
        box: of a region: (left, top, right, bottom) in fractions of the input.
        members: indices of the pictures that showed it.
        found: where it came from, in words.
        outside: share of the box that lies beside the objects, or of the objects that lies beside the box, whichever is less, by
            their masks; None without masks.
    """

    of: str
    what: str
    members: Array
    box: Fractions | None = None
    found: str = ""
    outside: float | None = None

    def place(self) -> str:
        """Where a region lies, in words; else what it is."""
        if self.box is None:
            return _WORDS[self.what]
        left, top, right, bottom = self.box
        across, down = (left + right) / 2, (top + bottom) / 2
        row = "top" if down < 1 / 3 else "bottom" if down > 2 / 3 else ""
        column = "left" if across < 1 / 3 else "right" if across > 2 / 3 else ""
        name = f"{row} {column}".strip() or "middle"
        return f"the {name}, {(right - left) * (bottom - top):.0%} of what the model sees"

    @property
    def aside(self) -> bool:
        """Whether a region lies where no object is: beside the masks; without masks in a corner, or small and at the border."""
        if self.box is None:
            return True
        if self.outside is not None:
            return self.outside >= _OUTSIDE
        left, top, right, bottom = self.box
        touches = sum(gap < 1e-6 for gap in (left, top, 1 - right, 1 - bottom))
        small = (right - left) * (bottom - top) <= _ASIDE
        return not self._central and (touches >= 2 or (touches == 1 and small))

    @property
    def _central(self) -> bool:
        left, top, right, bottom = self.box or (0, 0, 1, 1)
        across, down = (left + right) / 2, (top + bottom) / 2
        return MIDDLE[0] < across < MIDDLE[2] and MIDDLE[1] < down < MIDDLE[3]

    @property
    def marginal(self) -> bool:
        """Whether a region of which no mask tells lies at the border and off the middle, and is too large to be judged by that."""
        if self.box is None or self.outside is not None:
            return False
        left, top, right, bottom = self.box
        return min(left, top, 1 - right, 1 - bottom) < 1e-6 and not self.aside and not self._central


_OUTSIDE = 0.75
_ASIDE = 0.1
_WORDS = {
    BACKGROUND: "the background, which is all but the object",
    "tone": "the tone of the whole picture: the mean and spread of its colours",
    "texture": "the fine texture of the whole picture, its sharpness included",
    "smallness": "how small everything is",
    "largeness": "how large everything is",
}  # fmt: skip


def candidates_of(
    name: str, shares: Array, members: Array, clusters: Sequence[Cluster], objects: Array | None
) -> tuple[Candidate, ...]:
    """What is tried for one class, what its heat points at first.

    Args:
        name: the class.
        shares: (N, h, w) of all maps.
        members: (n,) indices of the class's pictures.
        clusters: of the class, the most unusual first.
        objects: (N, h, w) what the masks cover of each cell, nan where there is none; or None.
    """
    places = [(one.mean, one.members, f"group {one.number} of the maps") for one in clusters]
    places.append((shares[members].mean(axis=0), members, "the mean of the maps"))
    found: list[Candidate] = []
    for mean, own, origin in places:
        box = hot_box(mean)
        if box is None or any(_overlap(box, one.box) >= _SAME for one in found if one.box) or len(found) == _MOST:
            continue
        outside = None
        if objects is not None:
            outside = _beside(box, objects[own])
        found.append(Candidate(name, REGION, own, box, origin, outside))
    if objects is not None and (~np.isnan(objects[members]).any(axis=(1, 2))).any():
        found.append(Candidate(name, BACKGROUND, members, found="the masks"))
    return (*found, *(Candidate(name, what, members, found="tried for every class") for what in WHOLE))


def _beside(box: Fractions, objects: Array) -> float | None:
    """How far a box and the objects miss each other, 0 to 1; None without masks."""
    known = objects[~np.isnan(objects).any(axis=(1, 2))]
    if not len(known):
        return None
    cells = in_box(known.shape[1:], box)
    both = (known * cells).sum(axis=(1, 2))
    # A box around small objects is mostly beside them, and yet holds all of them.
    held = both / np.maximum(known.sum(axis=(1, 2)), 1e-12)
    return float(1 - max(both.mean() / cells.sum(), held.mean()))


def hot_box(mean: Array) -> Fractions | None:
    """The part of the input around the highest cell in which a map has at least half of its height; None where that is large.

    Args:
        mean: (h, w), 0 or more.
    """
    h, w = mean.shape
    if not mean.max() > 0:
        return None
    for level in (0.5, 0.7, 0.9):
        rows, columns = _around(mean >= level * mean.max(), np.unravel_index(int(mean.argmax()), mean.shape))
        left, right = max(0.0, columns[0] - _MARGIN) / w, min(w, columns[1] + 1 + _MARGIN) / w
        top, bottom = max(0.0, rows[0] - _MARGIN) / h, min(h, rows[1] + 1 + _MARGIN) / h
        if (right - left) * (bottom - top) <= LARGEST:
            return float(left), float(top), float(right), float(bottom)
    return None


def _around(hot: Array, start: Sequence[Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row, first and last column of the connected hot cells around one of them."""
    todo, seen = [(int(start[0]), int(start[1]))], {(int(start[0]), int(start[1]))}
    while todo:
        y, x = todo.pop()
        for cell in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= cell[0] < hot.shape[0] and 0 <= cell[1] < hot.shape[1]
            if inside and hot[cell] and cell not in seen:
                seen.add(cell)
                todo.append(cell)
    ys, xs = zip(*seen, strict=True)
    return (min(ys), max(ys)), (min(xs), max(xs))


def _overlap(one: Fractions, other: Fractions) -> float:
    """Intersection over union."""
    sides = [max(0.0, min(one[at + 2], other[at + 2]) - max(one[at], other[at])) for at in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def pixels_of(box: Fractions, size: tuple[int, int]) -> Box:
    """A box in pixels of an input of (height, width), at least one."""
    height, width = size
    left, top = min(round(box[0] * width), width - 1), min(round(box[1] * height), height - 1)
    return left, top, max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))


def elsewhere(box: Box, size: tuple[int, int], random: np.random.Generator) -> Box | None:
    """A box of the same size at a random place that the first doesn't touch; None where there is no room."""
    height, width = size
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    lefts, tops = np.arange(width - wide + 1), np.arange(height - high + 1)
    beside = (lefts + wide <= left) | (lefts >= right)
    above = (tops + high <= top) | (tops >= bottom)
    free = np.flatnonzero((beside[None] | above[:, None]).ravel())
    if not len(free):
        return None
    y, x = divmod(int(random.choice(free)), len(lefts))
    return x, y, x + wide, y + high
