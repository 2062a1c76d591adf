"""Plots of figures: curves, intervals and mean ranks, 900 pixels wide at twice the resolution.

Colours are those of Okabe and Ito (Color Universal Design, 2008) without the yellow, which white swallows; what has a
colour has a line style or a name beside it too. Everything is placed here in pixels of the page, y downwards, so that
no text can run into another or out of the page; matplotlib only draws the lines and letters.
"""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from sightline.errors import OutputError

Array = np.ndarray[Any, np.dtype[np.float64]]
Dashes = tuple[float, ...]
Align = Literal["left", "center", "right"]

WIDTH = 900  # pixels of the page; the picture has SCALE times as many
SCALE = 2
_MARGIN = 20
_RIGHT = WIDTH - _MARGIN
_LONGEST = 500  # characters of one text

_INK, _SOFT, _FAINT = "#141414", "#5a5a5a", "#e4e4e4"
# Blue, vermilion, green, purple, orange, sky blue, black. Seven colours and five styles make 35 different pairs.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: tuple[Dashes, ...] = ((), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (2.5, 1, 2.5, 1, 1, 1))
_GREYS = ("#6e6e6e", "#9a9a9a", "#4a4a4a")
_GREY_STYLES: tuple[Dashes, ...] = ((3, 2), (1, 1.6), (7, 2, 1, 2), (8, 3))

_ALIGNS: dict[int, Align] = {-1: "right", 1: "left"}  # texts outside of a line that ends at the left, or right

_ROW = 17  # from one label to the next
_SAMPLE = 46  # the piece of line before a name, with the room behind it
_UNDER = 54  # from the bottom of a plot to below its numbers and label


@dataclass(frozen=True, eq=False)
class Line:
    """One curve.

    Attributes:
        name: of the method.
        x: (n,), in the order in which the points are joined.
        mean: (n,), NaN where undefined, which leaves a gap.
        low: (n,), lower edge of the band, or None for no band.
        high: (n,), upper edge.
        baseline: what needs no model, such as random or centre: grey and dashed.
    """

    name: str
    x: Any
    mean: Any
    low: Any = None
    high: Any = None
    baseline: bool = False


class Row(NamedTuple):
    """One method's mean with its interval, in the unit of the axis.

    Attributes:
        name: of the method.
        mean: None or NaN where undefined.
        low: None or NaN where there is no interval.
        high: as `low`.
        is_baseline: what needs no model, such as random or centre.
    """

    name: str
    mean: float | None
    low: float | None
    high: float | None
    is_baseline: bool = False


def curves(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Line],
    *,
    width: int = WIDTH,
    whole: bool = False,
    marked: tuple[float, str] | None = None,
) -> Image.Image:
    """Mean curves with their bands, each named where it ends; above eight with a legend too.

    The y axis goes from 0 to 1 if all that is drawn lies there, else over what is drawn. A point without neighbours is
    a dot; a curve without any value is named and said to have none.

    Args:
        title: above the picture.
        x_label: below the x axis, with its unit.
        y_label: below the title, with its unit and what the bands are.
        series: up to about thirty; colour and style repeat after 35 methods.
        width: of the page, in pixels.
        whole: x counts something, such as epochs, and has no values in between.
        marked: a place on the x axis that gets a vertical line, and the words above it.

    Returns:
        RGB, twice `width`.

    Raises:
        OutputError: there is no curve, one's arrays have different lengths or only one edge, or a value is infinite.
    """
    if not series:
        raise OutputError("there is no curve to draw")
    page = _Page(width)
    looks = _looks([line.baseline for line in series])
    traces = [_trace(line, look) for line, look in zip(series, looks, strict=True)]
    names = page.all_fitted([trace.name for trace in traces], 300)
    fan = min(80, 30 + 2 * len(traces))  # room for lines from the ends of the curves to their names
    right = page.right - max(page.width(*name) for name in names) - _SAMPLE - fan
    top = page.heading(title, y_label) + (30 if marked else 12)
    frame = _frame(page, traces, right, top, top + max(0.48 * width, _ROW * len(traces)), whole)
    frame.draw(page, x_label, whole=whole)
    if marked:
        _mark(page, frame, *marked)
    for trace in sorted(traces, key=lambda trace: not trace.look.baseline):
        _draw_trace(page, frame, trace, opacity=0.22 / math.sqrt(len(traces)))
    _name_ends(page, frame, right + fan, traces, names)
    below = frame.bottom + _UNDER
    return page.image(_legend(page, below + 10, traces, names) if len(traces) > 8 else below)


def critical_differences(
    title: str,
    names: Sequence[str],
    mean_ranks: Sequence[float] | Array,
    cd: float | None,
    groups: Sequence[Sequence[int]],
) -> Image.Image:
    """Mean ranks on one axis, the best at the left; bars join methods that can't be told apart.

    Args:
        title: above the picture.
        names: of the M methods.
        mean_ranks: (M,), from 1 (best) to M; NaN where there is none, which is said below.
        cd: critical difference in ranks, drawn as a ruler; None where there is none, which is said too.
        groups: indices of methods to join, as `metrics.statistics.cliques` gives them.

    Returns:
        RGB, 1800 wide.

    Raises:
        OutputError: names and ranks differ in number or are none, or a rank, index or difference is out of its range.

    Reference:
        Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006, figure 1. The mean ranks
        are written beside the names here.
    """
    ranks = _checked_ranks(names, mean_ranks, cd, groups)
    page = _Page()
    order = [place for place in np.argsort(ranks, kind="stable").tolist() if math.isfinite(ranks[place])]
    half = math.ceil(len(order) / 2)
    texts = page.all_fitted(names, 270)
    left = _MARGIN + max((page.width(*texts[place]) for place in order[:half]), default=0)
    right = _RIGHT - max((page.width(*texts[place]) for place in order[half:]), default=0)
    axis = _Scale(1, max(2, len(ranks)), left + 58, right - 58)
    y = _ruler(page, axis, page.heading(title, "Mean rank over the pictures, 1 is best") + 10, cd) + 34
    _rank_axis(page, axis, y)
    row = _bars(page, axis, y + 14, ranks, groups) + 18
    # The right side stands half a row lower, so that no two lines meet in the middle.
    for places, edge, first, side in ((order[:half], left, row, -1), (order[half:][::-1], right, row + 12, 1)):
        for index, place in enumerate(places):
            _elbow(page, (axis(ranks[place]), y), (edge, first + 24 * index), side, texts[place], ranks[place])
    return page.image(_remarks(page, row + 24 * half + 4, names, ranks, cd, groups) + 12)


def intervals(
    title: str,
    x_label: str,
    rows: Sequence[tuple[str, float | None, float | None, float | None, bool]],
    *,
    better: Literal["higher", "lower"] = "higher",
) -> Image.Image:
    """A dot with a whisker for each method, the best at the top; baselines are vertical lines with their names.

    The axis covers what is drawn and need not start at 0. A method without an interval has a hollow dot, one without a
    value stands last and is said to have none.

    Args:
        title: above the picture.
        x_label: what the axis shows, with its unit.
        rows: `Row`s or their fields in order.
        better: which end of the axis is; decides the order alone.

    Returns:
        RGB, 1800 wide.

    Raises:
        OutputError: there is no row, one has only one end of an interval, or a value is infinite.
    """
    if not rows:
        raise OutputError("there is no interval to draw")
    page = _Page()
    known = [_whisker(Row(*row)) for row in rows]
    methods = sorted((one for one in known if not one.is_baseline), key=lambda one: one.place(better))
    baselines = [one for one in known if one.is_baseline and math.isfinite(one.mean)]
    names = page.all_fitted([one.name for one in methods], 300)
    left = _MARGIN + max((page.width(*name) for name in names), default=0) + 16
    low, high = _limits(np.array([(one.mean, one.low, one.high) for one in known]))
    scale = _Scale(low, high, left, _RIGHT - 66)
    labels = _staircase(page, scale, baselines)
    top = page.heading(title) + 14 + 18 * (1 + max((label.level for label in labels), default=-1))
    frame = _Frame(scale, _Scale(0, 1, top + 24 * max(1, len(methods)) + 8, top))
    frame.draw(page, x_label, across=False)
    for label in labels:
        _draw_baseline(page, frame, label)
    for index, (one, name) in enumerate(zip(methods, names, strict=True)):
        _draw_whisker(page, scale, top + 16 + 24 * index, one, name)
    return page.image(_footnotes(page, frame.bottom + _UNDER, known))


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
    page = _Page()
    texts = page.all_fitted(names, 300) if named else []
    left = _MARGIN + (max(page.width(*text) for text in texts) + 10 if named else 0)
    page = _Page(round(max(560, min(WIDTH, left + _MARGIN + 130 * count))))
    note = "Rows: what the picture shows. Columns: what the model said. Blue is right, orange is wrong; the stronger, the larger the share of the row."
    y = page.heading(title, note) + 12
    cell = min(130.0, (page.right - left) / count, 640 / count)
    top = _name_columns(page, y, left, cell, names) if named else y
    frame = _Frame(_Scale(0, count, left, left + cell * count), _Scale(count, 0, top + cell * count, top))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    page.cells(_shades(shares), left, top, frame.x.end, frame.bottom)
    _grid(page, frame, count if named else 1)
    for index, text in enumerate(texts):
        page.text(left - 10, top + cell * (index + 0.5), *text, align="right")
    if cell < _ROOMY:
        return page.image(_confused(page, frame.bottom + 14, names, counts) + 12)
    _fill_cells(page, frame, counts, shares, cell)
    return page.image(frame.bottom + 20)


# --------------------------------------------------------------------------------------------------------------- page


class _Look(NamedTuple):
    """How a line is drawn: colour, dashes in line widths, width in pixels."""

    colour: str
    dashes: Dashes = ()
    width: float = 2.0
    baseline: bool = False


_ZERO = _Look("#a8a8a8", (), 1)


def _looks(baselines: Sequence[bool]) -> list[_Look]:
    """A look for each; the pairs of colour and style repeat after 35 methods and after 12 baselines."""
    counts = {True: 0, False: 0}
    found = []
    for is_baseline in baselines:
        index = counts[is_baseline]
        counts[is_baseline] += 1
        colours, styles = (_GREYS, _GREY_STYLES) if is_baseline else (_COLOURS, _STYLES)
        found.append(_Look(colours[index % len(colours)], styles[index % len(styles)], 2.0, is_baseline))
    return found


class _Page:
    """A white page, y downwards, on which texts can be measured before its height is known."""

    def __init__(self, width: int = WIDTH) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        # At 72 * SCALE dots per inch a point is a pixel of the page.
        self._width, self.right = width, width - _MARGIN
        self._figure = Figure(figsize=(width / 72, 1), dpi=72 * SCALE, facecolor="white")
        self._figure.set_layout_engine("none")
        self._canvas: Any = FigureCanvasAgg(self._figure)
        self._pixels = Affine2D()

    def image(self, height: float) -> Image.Image:
        """The page cut off at this height, as RGB."""
        height = math.ceil(height)
        self._figure.set_size_inches(self._width / 72, (height + 0.01) / 72)
        self._pixels.scale(SCALE, -SCALE).translate(0, SCALE * height)
        self._canvas.draw()
        return Image.fromarray(np.asarray(self._canvas.buffer_rgba())[..., :3].copy())

    def line(self, x: Any, y: Any, look: _Look, *, marker: str = "", fill: str | None = None, order: float = 2) -> None:
        """A line through points (n,), with gaps where one is NaN; or a marker at each."""
        from matplotlib.lines import Line2D

        drawn = Line2D(
            x,
            y,
            color=look.colour,
            linewidth=look.width,
            linestyle="none" if marker else (0, look.dashes) if look.dashes else "-",
            marker=marker or "none",
            markersize=8,
            markeredgewidth=1.6,
            markerfacecolor=fill or look.colour,
            markeredgecolor=look.colour,
            dash_capstyle="butt",
            solid_capstyle="butt",
            transform=self._pixels,
            zorder=order,
        )
        self._figure.add_artist(drawn)

    def area(self, corners: Array, colour: str, opacity: float) -> None:
        """A filled area without an edge; corners (n, 2)."""
        from matplotlib.patches import Polygon

        self._figure.add_artist(
            Polygon(
                corners, closed=True, facecolor=colour, alpha=opacity, linewidth=0, transform=self._pixels, zorder=1
            )
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 13,
        *,
        ink: str = _INK,
        align: Align = "left",
        bold: bool = False,
        boxed: bool = False,
        upwards: bool = False,
    ) -> None:
        """One line of text as it stands, `y` at the middle of its capitals; boxed hides what lies below it.

        An `upwards` text begins at (x, y) and is read from below, with x at the middle of its capitals.
        """
        from matplotlib.text import Text

        drawn = Text(
            x + 0.36 * size if upwards else x,
            y if upwards else y + 0.36 * size,
            _plain(text, bold),
            rotation=90 if upwards else 0,
            rotation_mode="anchor",
            fontproperties=_font(size, bold),
            color=ink,
            horizontalalignment=align,
            verticalalignment="baseline",
            parse_math=False,
            usetex=False,
            transform=self._pixels,
            zorder=5,
        )
        if boxed:
            drawn.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        self._figure.add_artist(drawn)

    def cells(self, colours: np.ndarray[Any, Any], left: float, top: float, right: float, bottom: float) -> None:
        """Coloured cells (h, w, 3) uint8 that fill a rectangle."""
        from matplotlib.image import BboxImage
        from matplotlib.transforms import Bbox, TransformedBbox

        place = TransformedBbox(Bbox([[left, bottom], [right, top]]), self._pixels)
        drawn = BboxImage(place, interpolation="nearest", origin="lower", zorder=0.2)
        drawn.set_data(colours)
        self._figure.add_artist(drawn)

    def width(self, text: str, size: float = 13, bold: bool = False) -> float:
        """Pixels of the page that a text takes."""
        shown = _plain(text, bold)
        wide: float = self._canvas.get_renderer().get_text_width_height_descent(shown, _font(size, bold), False)[0]
        return wide / SCALE if shown else 0.0

    def fitted(self, text: str, size: float, width: float) -> tuple[str, float]:
        """The text and its size: smaller if it is too long, and if that is not enough, without its middle."""
        text = _plain(text)[:_LONGEST]
        for smaller in (size, size - 1, size - 2):
            if self.width(text, smaller) <= width:
                return text, smaller
        fits = bisect_right(
            range(1, len(text)), width, key=lambda kept: self.width(_without_middle(text, kept), size - 2)
        )
        return _without_middle(text, fits), size - 2

    def all_fitted(self, texts: Sequence[str], width: float) -> list[tuple[str, float]]:
        """Names of one size, that of the smallest."""
        fitted = [self.fitted(text, 13, width) for text in texts]
        return [(text, min(size for _, size in fitted)) for text, _ in fitted]

    def paragraph(
        self, y: float, text: str, size: float = 13, *, ink: str = _SOFT, bold: bool = False, width: float | None = None
    ) -> float:
        """Lines of text from the left margin on; returns where the next would begin."""
        for line in self._wrapped(text, size, bold, (self.right if width is None else width) - _MARGIN):
            self.text(_MARGIN, y + 0.7 * size, line, size, ink=ink, bold=bold)
            y += 1.4 * size
        return y

    def heading(self, title: str, note: str = "") -> float:
        """Title and a note under it; returns where the next thing can begin."""
        y = self.paragraph(16, title, 17, ink=_INK, bold=True) if title.strip() else 16.0
        return self.paragraph(y + 4, note, 13) if note.strip() else y

    def _wrapped(self, text: str, size: float, bold: bool, width: float) -> Iterator[str]:
        line = ""
        for word in _plain(text, bold)[:_LONGEST].split(" "):
            longer = f"{line} {word}".strip()
            if self.width(longer, size, bold) <= width:
                line = longer
                continue
            if line:
                yield line
            while self.width(word, size, bold) > width and len(word) > 1:
                cut = bisect_right(range(1, len(word)), width, key=lambda end: self.width(word[:end], size, bold)) or 1
                word = word[cut:]
            line = word
        yield line


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def _plain(text: str, bold: bool = False) -> str:
    """What the font can show, in one line: other letters become a replacement sign, control characters vanish.

    Of marks above or below a letter no more than two are kept, else they would climb over other lines.
    """
    known, shown = _letters(bold), ""
    for one in " ".join(text[: 2 * _LONGEST].split()):
        piled = unicodedata.combining(one) and all(unicodedata.combining(before) for before in shown[-2:])
        if unicodedata.category(one) not in ("Cc", "Cf") and not piled:
            shown += one if ord(one) in known else "\N{REPLACEMENT CHARACTER}"
    return shown


def _font_file(bold: bool) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


@lru_cache(maxsize=2)
def _letters(bold: bool) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(str(_font_file(bold))).get_charmap())


@lru_cache(maxsize=32)
def _font(size: float, bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=_font_file(bold), size=size)


# ---------------------------------------------------------------------------------------------------------------- axes


class _Scale(NamedTuple):
    """From values to pixels of the page."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, values: Any) -> Any:
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Round values inside with their texts."""
        rough = (self.high - self.low) / max(1, most)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [(place * step, _number(place * step, step)) for place in range(first, last + 1)]


def _number(value: float, step: float) -> str:
    """A value with as many digits as it needs to differ from one a step away."""
    largest = max(abs(value), step)
    if step >= 1e-5 and largest < 1e7:
        text = f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    else:
        text = f"{value:.{math.ceil(math.log10(largest / step)) + 1}g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _limits(values: Array, pad: float = 0.05) -> tuple[float, float]:
    """What an axis covers: the values and a little more."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    room = pad * (high - low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(low) or 0.5
    return low - room, high + room


class _Frame(NamedTuple):
    """The rectangle of a plot: one scale to the right, one upwards."""

    x: _Scale
    y: _Scale

    @property
    def bottom(self) -> float:
        return self.y.start

    def draw(self, page: _Page, x_label: str, *, across: bool = True, whole: bool = False) -> None:
        """Grid, ticks with their numbers, and the name of the x axis; lines `across` belong to the y axis."""
        left, right, top = self.x.start, self.x.end, self.y.end
        grid = _Look(_FAINT, (), 1)
        for value, text in self.x.ticks(max(2, round((right - left) / (30 if whole else 70)))):
            if whole and not math.isclose(value, round(value), abs_tol=1e-6):
                continue
            text = _number(round(value), 1) if whole else text
            page.line([self.x(value)] * 2, [self.bottom + 4, top], _ZERO if value == 0 else grid, order=0)
            page.text(self.x(value), self.bottom + 14, text, 12, ink=_SOFT, align="center")
        for value, text in self.y.ticks(6) if across else ():
            page.line([left - 4, right], [self.y(value)] * 2, _ZERO if value == 0 else grid, order=0)
            page.text(left - 8, self.y(value), text, 12, ink=_SOFT, align="right")
        page.line([left, right], [self.bottom] * 2, _Look(_SOFT, (), 1), order=0.5)
        name, size = page.fitted(x_label, 13, page.right - _MARGIN)
        half = page.width(name, size) / 2
        middle = min(max((left + right) / 2, _MARGIN + half), page.right - half)
        page.text(middle, self.bottom + 36, name, size, ink=_SOFT, align="center")


# -------------------------------------------------------------------------------------------------------------- curves


class _Trace(NamedTuple):
    """A checked curve: arrays (n,), the edges all NaN where it has no band."""

    name: str
    look: _Look
    x: Array
    mean: Array
    low: Array
    high: Array


def _trace(line: Line, look: _Look) -> _Trace:
    if (line.low is None) != (line.high is None):
        raise OutputError(f"curve {line.name!r} has one edge of a band; expected both, or neither")
    x, mean = _array(line.x), _array(line.mean)
    low, high = (np.full_like(mean, np.nan) if edge is None else _array(edge) for edge in (line.low, line.high))
    shapes = [part.shape for part in (x, mean, low, high)]
    if len(set(shapes)) > 1 or x.ndim != 1:
        raise OutputError(f"curve {line.name!r} has parts of shapes {shapes}; expected the same (n,)")
    if any(np.isinf(part).any() for part in (x, mean, low, high)):
        raise OutputError(f"curve {line.name!r} has an infinite value; expected NaN where undefined")
    there = np.isfinite(x + mean)
    low, high = np.where(there, low, np.nan), np.where(there, high, np.nan)
    name = line.name if there.any() else f"{line.name} (no value)"
    return _Trace(name, look, np.where(there, x, np.nan), np.where(there, mean, np.nan), low, high)


def _array(values: Any) -> Array:
    return np.asarray(values, dtype=np.float64)


def _frame(
    page: _Page, traces: Sequence[_Trace], right: float, top: float, bottom: float, whole: bool = False
) -> _Frame:
    """The plot's rectangle, with room at its left for the numbers of the y axis."""
    heights = np.concatenate([part for trace in traces for part in (trace.mean, trace.low, trace.high)])
    known = heights[np.isfinite(heights)]
    y = _Scale(*((0.0, 1.0) if ((known >= 0) & (known <= 1)).all() else _limits(known)), bottom, top)
    left = _MARGIN + max(page.width(text, 12) for _, text in y.ticks(6)) + 10
    places = np.concatenate([trace.x for trace in traces])
    known = places[np.isfinite(places)]
    if whole and len(known) and known.min() == known.max():
        low, high = known[0] - 0.5, known[0] + 0.5
    else:
        low, high = _limits(places, pad=0)
    return _Frame(_Scale(low, high, left, right), y)


def _mark(page: _Page, frame: _Frame, x: float, words: str) -> None:
    """A vertical line with words above the plot."""
    at, top = frame.x(x), frame.y.end
    page.line([at] * 2, [top - 4, frame.bottom], _Look(_INK, (1.5, 2.5), 1.2), order=1)
    text, size = page.fitted(words, 12, page.right - _MARGIN)
    half = page.width(text, size) / 2
    page.text(min(max(at, _MARGIN + half), page.right - half), top - 13, text, size, align="center")


def _draw_trace(page: _Page, frame: _Frame, trace: _Trace, opacity: float) -> None:
    x, mean, low, high = frame.x(trace.x), frame.y(trace.mean), frame.y(trace.low), frame.y(trace.high)
    for start, end in _runs(np.isfinite(low + high)):
        here = slice(start, end)
        if end - start == 1:  # a band of no width would not be seen
            page.line([x[start]] * 2, [low[start], high[start]], _Look(trace.look.colour, (), 1.2))
        sides = [np.stack([x[here], low[here]], axis=1), np.stack([x[here], high[here]], axis=1)[::-1]]
        page.area(np.concatenate(sides), trace.look.colour, opacity)
    page.line(x, mean, trace.look, order=2 if trace.look.baseline else 3)
    alone = [start for start, end in _runs(np.isfinite(mean)) if end - start == 1]
    if alone:
        page.line(x[alone], mean[alone], trace.look, marker="o", order=3)


def _runs(there: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Start and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _name_ends(
    page: _Page, frame: _Frame, label: float, traces: Sequence[_Trace], names: Sequence[tuple[str, float]]
) -> None:
    """Each curve's name from `label` on, as near to the height of its end as the others allow, and a line between."""
    lasts = [np.flatnonzero(np.isfinite(trace.mean))[-1:] for trace in traces]
    ends = [
        (frame.x(trace.x[last]), frame.y(trace.mean[last])) if len(last) else None
        for trace, last in zip(traces, lasts, strict=True)
    ]
    wanted = [frame.bottom if end is None else float(end[1][0]) for end in ends]
    order = sorted(range(len(traces)), key=lambda index: (ends[index] is None, wanted[index]))
    places = _spread([wanted[index] for index in order], _ROW, frame.y.end, frame.bottom + 18)
    for index, y in zip(order, places, strict=True):
        look, end = traces[index].look, ends[index]
        if end is not None:
            # Dots where it crosses the plot: nobody must take it for the curve going on.
            page.line([*end[0], frame.x.end], [*end[1]] * 2, _Look(_SOFT, (1, 5), 0.8), order=0.5)
            page.line([frame.x.end, label - 4], [*end[1], y], _Look(look.colour, (), 0.7), order=1.5)
        _sample(page, label, y, look)
        page.text(label + _SAMPLE, y, *names[index])


def _sample(page: _Page, x: float, y: float, look: _Look) -> None:
    page.line([x, x + _SAMPLE - 6], [y, y], look)


def _spread(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Rising places at least a step apart within low to high, as near to the wanted (rising) ones as can be.

    Least squares: with the steps taken off it asks for rising numbers, which pooling neighbours that fall gives.
    """
    pools: list[tuple[float, int]] = []
    for index, place in enumerate(wanted):
        total, count = place - index * step, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            before, many = pools.pop()
            total, count = total + before, count + many
        pools.append((total, count))
    level = [total / count for total, count in pools for _ in range(count)]
    highest = max(low, high - step * (len(wanted) - 1))
    return [min(max(place, low), highest) + index * step for index, place in enumerate(level)]


def _legend(page: _Page, y: float, traces: Sequence[_Trace], names: Sequence[tuple[str, float]]) -> float:
    """All curves in the order in which they were given, in columns; returns where it ends."""
    wide = _SAMPLE + 20 + max(page.width(*name) for name in names)
    columns = max(1, int((page.right - _MARGIN + 20) / wide))
    deep = math.ceil(len(traces) / columns)
    for index, (trace, name) in enumerate(zip(traces, names, strict=True)):
        x, row = _MARGIN + wide * (index // deep), y + 20 * (index % deep)
        _sample(page, x, row, trace.look)
        page.text(x + _SAMPLE, row, *name)
    return y + 20 * deep


# ---------------------------------------------------------------------------------------------------------- mean ranks


def _checked_ranks(
    names: Sequence[str], mean_ranks: Sequence[float] | Array, cd: float | None, groups: Sequence[Sequence[int]]
) -> Array:
    ranks = _array(mean_ranks)
    if not len(names) or ranks.shape != (len(names),):
        raise OutputError(f"{len(names)} names and mean ranks of shape {ranks.shape}; expected one rank per name")
    if not (np.isnan(ranks) | ((ranks >= 1) & (ranks <= len(names)))).all():
        raise OutputError(f"mean ranks {ranks.tolist()}; expected 1 to {len(names)}, or NaN where there is none")
    if cd is not None and not 0 <= cd < math.inf:
        raise OutputError(f"critical difference {cd}; expected 0 or more, or None where there is none")
    if not all(0 <= place < len(names) and math.isfinite(ranks[place]) for group in groups for place in group):
        raise OutputError(f"groups {list(groups)}; expected indices of methods with a rank, 0 to {len(names) - 1}")
    return ranks


def _ruler(page: _Page, axis: _Scale, y: float, cd: float | None) -> float:
    """The critical difference as a length on the axis; returns where it ends."""
    if cd is None:
        return page.paragraph(y, "There is no critical difference, so how far two ranks differ by chance isn't known.")
    look, end, text = _Look(_INK, (), 1.6), axis(1 + cd), f"critical difference = {cd:.2f}"
    if end > _RIGHT:
        text += ", longer than the picture is wide"
        end = _RIGHT
        page.line([end - 9, end, end - 9], [y + 17, y + 22, y + 27], look)
    else:
        page.line([end] * 2, [y + 17, y + 27], look)
    page.line([axis.start] * 2, [y + 17, y + 27], look)
    page.line([axis.start, end], [y + 22] * 2, look)
    page.text(min(axis.start, _RIGHT - page.width(text)), y + 6, text)
    return y + 28


def _rank_axis(page: _Page, axis: _Scale, y: float) -> None:
    look = _Look(_INK, (), 1.2)
    page.line([axis.start, axis.end], [y] * 2, look)
    room = (axis.end - axis.start) / (axis.high - axis.low)
    step = next((step for step in (1, 2, 5, 10, 20, 50) if step * room >= 24), 100)
    for rank in range(1, round(axis.high) + 1):
        named = rank == 1 or (rank % step == 0 and rank - 1 >= 0.75 * step)
        page.line([axis(rank)] * 2, [y, y - (6 if named else 3)], look)
        if named:
            page.text(axis(rank), y - 15, str(rank), 12, ink=_SOFT, align="center")


def _bars(page: _Page, axis: _Scale, y: float, ranks: Array, groups: Sequence[Sequence[int]]) -> float:
    """A thick line over the ranks of each group, those that would touch below each other; returns the last one's y."""
    spans = sorted((float(min(ranks[list(group)])), float(max(ranks[list(group)]))) for group in groups if len(group))
    free: list[float] = []  # where the next bar of each level may begin
    for low, high in spans:
        start, end = axis(low) - 2, axis(high) + 2  # no longer, or it would seem to join a close neighbour
        level = next((level for level, begin in enumerate(free) if begin < start), len(free))
        free[level : level + 1] = [end + 6]
        page.line([start, end], [y + 9 * level] * 2, _Look(_INK, (), 4.5), order=4)
    return y + 9 * max(0, len(free) - 1)


def _elbow(
    page: _Page,
    top: tuple[float, float],
    corner: tuple[float, float],
    side: int,
    name: tuple[str, float],
    rank: float,
) -> None:
    """From the axis down and out to the name at the left (side -1) or right (1), with the rank above the line."""
    (x, y), (edge, row) = top, corner
    outer, inner = _ALIGNS[side], _ALIGNS[-side]
    page.line([x, x, edge - 6 * side], [y, row, row], _Look(_SOFT, (), 1.1))
    page.text(edge, row, *name, align=outer)
    page.text(edge - 8 * side, row - 8, f"{rank:.2f}", 11, ink=_SOFT, align=inner)


def _remarks(
    page: _Page, y: float, names: Sequence[str], ranks: Array, cd: float | None, groups: Sequence[Sequence[int]]
) -> float:
    """What the picture leaves open, in words; returns where they end."""
    known = np.sort(ranks[np.isfinite(ranks)])
    if groups:
        y = page.paragraph(y, "A bar joins methods that can't be told apart.")
    elif cd is not None and len(known) > 1 and (np.diff(known) >= cd).all():
        y = page.paragraph(y, "All methods differ from each other by the critical difference or more.")
    without = [name for name, rank in zip(names, ranks, strict=True) if math.isnan(rank)]
    return page.paragraph(y, f"Without a rank: {', '.join(without)}") if without else y


# ----------------------------------------------------------------------------------------------------------- intervals


class _Whisker(NamedTuple):
    """A checked row, NaN for what there is not."""

    name: str
    mean: float
    low: float
    high: float
    is_baseline: bool

    def place(self, better: str) -> tuple[bool, float]:
        """Sorts the best first and what has no value last."""
        if math.isnan(self.mean):
            return True, 0.0
        return False, self.mean if better == "lower" else -self.mean

    def figure(self, scale: _Scale) -> str:
        """The mean to about a hundredth of the axis."""
        step = 10.0 ** (math.floor(math.log10(scale.high - scale.low)) - 2)
        return "no value" if math.isnan(self.mean) else _number(self.mean, step)


class _Label(NamedTuple):
    """A baseline's name above the plot, from `start` to `end`; level 0 is the lowest."""

    one: _Whisker
    look: _Look
    text: tuple[str, float]
    x: float
    start: float
    end: float
    level: int = 0

    def covers(self, other: _Label) -> bool:
        """Whether the other's line would run through this name."""
        return self.start - 6 < other.x < self.end + 6


def _whisker(row: Row) -> _Whisker:
    mean, low, high = (math.nan if value is None else float(value) for value in row[1:4])
    if any(math.isinf(value) for value in (mean, low, high)):
        raise OutputError(f"row {row.name!r} has an infinite value; expected None or NaN where undefined")
    if math.isnan(low) != math.isnan(high):
        raise OutputError(f"row {row.name!r} has one end of an interval; expected both, or neither")
    if math.isnan(mean):
        low = high = math.nan
    return _Whisker(row.name, mean, low, high, row.is_baseline)


def _staircase(page: _Page, scale: _Scale, baselines: Sequence[_Whisker]) -> list[_Label]:
    """Names above the plot, each beside its own line and above the lines that would run through it."""
    waiting = []
    for one, look in zip(baselines, _looks([True] * len(baselines)), strict=True):
        text = page.fitted(f"{one.name} {one.figure(scale)}", 12, 280)
        x, wide = scale(one.mean), page.width(*text)
        start = x + 5 if x + 5 + wide <= _RIGHT else x - 5 - wide
        waiting.append(_Label(one, look, text, x, start, start + wide))
    placed: list[_Label] = []
    while waiting:
        # Next the name that the fewest lines of those still waiting would cross; of two, the one further right.
        crossed = [sum(label.covers(other) for other in waiting if other is not label) for label in waiting]
        label = waiting.pop(min(range(len(waiting)), key=lambda index: (crossed[index], -waiting[index].x)))
        under = [
            other.level
            for other in placed
            if label.covers(other) or (label.start - 8 < other.end and other.start - 8 < label.end)
        ]
        placed.append(label._replace(level=max(under, default=-1) + 1))
    return placed


def _draw_baseline(page: _Page, frame: _Frame, label: _Label) -> None:
    """A vertical line from the name to the axis, with a faint band where it has an interval."""
    one, top, y = label.one, frame.y.end, frame.y.end - 10 - 18 * label.level
    if math.isfinite(one.low):
        low, high = frame.x(one.low), frame.x(one.high)
        corners = np.array([(low, top), (high, top), (high, frame.bottom), (low, frame.bottom)])
        page.area(corners, label.look.colour, 0.13)
    page.line([label.x] * 2, [y - 7, frame.bottom], label.look, order=1.5)
    page.text(label.start, y, *label.text, ink=_SOFT, boxed=True)


def _draw_whisker(page: _Page, scale: _Scale, y: float, one: _Whisker, name: tuple[str, float]) -> None:
    look = _Look(_COLOURS[0])
    page.line([scale.start, scale.end], [y] * 2, _Look(_FAINT, (1, 3), 1), order=0)
    page.text(scale.start - 12, y, *name, align="right")
    page.text(_RIGHT, y, one.figure(scale), 12, ink=_SOFT, align="right")
    if math.isfinite(one.low):
        low, high = scale(one.low), scale(one.high)
        page.line([low, high], [y] * 2, look)
        for end in (low, high):
            page.line([end] * 2, [y - 4, y + 4], look)
    if math.isfinite(one.mean):
        page.line([scale(one.mean)], [y], look, marker="o", fill=None if math.isfinite(one.low) else "white", order=3)


def _footnotes(page: _Page, y: float, known: Sequence[_Whisker]) -> float:
    """What the picture can't show, in words; returns where they end."""
    if any(math.isfinite(one.mean) and math.isnan(one.low) and not one.is_baseline for one in known):
        y = page.paragraph(y, "A hollow dot has no interval.") + 4
    lost = [one.name for one in known if one.is_baseline and math.isnan(one.mean)]
    return page.paragraph(y, f"Without a value: {', '.join(lost)}") + 4 if lost else y


# ----------------------------------------------------------------------------------------------------------- confusion

_MOST_NAMED = 40  # classes that have their names at the rows and columns
_ROOMY = 46  # pixels of a cell that has room for numbers
_RIGHT_INK, _WRONG_INK = (0, 84, 140), (213, 94, 0)


def _shades(shares: Array) -> np.ndarray[Any, Any]:
    """Colours (K, K, 3) of shares; by their root, so that a few mistakes among many can be seen."""
    inks = np.where(np.eye(len(shares), dtype=bool)[..., None], _RIGHT_INK, _WRONG_INK)
    depth = np.sqrt(shares)[..., None]
    return np.asarray(np.rint(255 * (1 - depth) + inks * depth), np.uint8)


def _name_columns(page: _Page, y: float, left: float, cell: float, names: Sequence[str]) -> float:
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


def _fill_cells(page: _Page, frame: _Frame, counts: np.ndarray[Any, Any], shares: Array, cell: float) -> None:
    """Count and share in each cell, in the ink that can be read on its colour; a row without pictures has no shares."""
    dark = _shades(shares) @ (0.3, 0.6, 0.1) < 110
    digits = 1 if cell >= 70 else 0
    for row, column in np.ndindex(*counts.shape):
        x, y = frame.x(column + 0.5), frame.y(row + 0.5)
        ink = "white" if dark[row, column] else _INK
        page.text(x, y - 8, *page.fitted(f"{counts[row, column]:,}", 15, cell - 4), ink=ink, align="center")
        if counts[row].any():
            page.text(x, y + 11, f"{100 * shares[row, column]:.{digits}f} %", 11, ink=ink, align="center")


def _grid(page: _Page, frame: _Frame, count: int) -> None:
    """Lines around a square of cells, and between them."""
    for index in range(count + 1):
        share = index / count
        look = _Look(_SOFT if index in (0, count) else _FAINT, (), 1)
        x, y = (axis.start + share * (axis.end - axis.start) for axis in frame)
        page.line([x, x], [frame.y.start, frame.y.end], look, order=1)
        page.line([frame.x.start, frame.x.end], [y, y], look, order=1)


def _confused(page: _Page, y: float, names: Sequence[str], counts: np.ndarray[Any, Any]) -> float:
    """The pairs that are confused most, in words; returns where they end."""
    if len(names) > _MOST_NAMED:
        first, last = (page.fitted(names[at], 13, 240)[0] for at in (0, -1))
        y = page.paragraph(y, f"The {len(names):,} classes stand in their order, from {first} to {last}.") + 6
    wrong = np.where(np.eye(len(names), dtype=bool), 0, counts)
    pairs = [divmod(int(at), len(names)) for at in np.argsort(-wrong, axis=None, kind="stable")[:12]]
    pairs = [(row, column) for row, column in pairs if wrong[row, column]]
    if not pairs:
        return page.paragraph(y, "No picture was taken for another class.")
    y = page.paragraph(y, "Confused most often:", ink=_INK, bold=True)
    for row, column in pairs:
        true, said = (page.fitted(names[at], 13, 240)[0] for at in (row, column))
        y = page.paragraph(y, f"{true} taken for {said}: {counts[row, column]:,} of {counts[row].sum():,}", ink=_INK)
    return y
