"""Plots of figures: curves, intervals and mean ranks, 900 pixels wide at twice the resolution.

Colours are those of Okabe and Ito (Color Universal Design, 2008) without the yellow, which white swallows; what has a
colour has a line style or a name beside it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from sightline.errors import OutputError
from sightline.render.page import (
    FAINT,
    INK,
    MARGIN,
    SOFT,
    WIDTH,
    Align,
    Array,
    Dashes,
    Frame,
    Look,
    Page,
    Scale,
    limits,
    number,
)

_RIGHT = WIDTH - MARGIN

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
    page = Page(width)
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
    page = Page()
    order = [place for place in np.argsort(ranks, kind="stable").tolist() if math.isfinite(ranks[place])]
    half = math.ceil(len(order) / 2)
    texts = page.all_fitted(names, 270)
    left = MARGIN + max((page.width(*texts[place]) for place in order[:half]), default=0)
    right = _RIGHT - max((page.width(*texts[place]) for place in order[half:]), default=0)
    axis = Scale(1, max(2, len(ranks)), left + 58, right - 58)
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
    page = Page()
    known = [_whisker(Row(*row)) for row in rows]
    methods = sorted((one for one in known if not one.is_baseline), key=lambda one: one.place(better))
    baselines = [one for one in known if one.is_baseline and math.isfinite(one.mean)]
    names = page.all_fitted([one.name for one in methods], 300)
    left = MARGIN + max((page.width(*name) for name in names), default=0) + 16
    low, high = limits(np.array([(one.mean, one.low, one.high) for one in known]))
    scale = Scale(low, high, left, _RIGHT - 66)
    labels = _staircase(page, scale, baselines)
    top = page.heading(title) + 14 + 18 * (1 + max((label.level for label in labels), default=-1))
    frame = Frame(scale, Scale(0, 1, top + 24 * max(1, len(methods)) + 8, top))
    frame.draw(page, x_label, across=False)
    for label in labels:
        _draw_baseline(page, frame, label)
    for index, (one, name) in enumerate(zip(methods, names, strict=True)):
        _draw_whisker(page, scale, top + 16 + 24 * index, one, name)
    return page.image(_footnotes(page, frame.bottom + _UNDER, known))


# -------------------------------------------------------------------------------------------------------------- curves


def _looks(baselines: Sequence[bool]) -> list[Look]:
    """A look for each; the pairs of colour and style repeat after 35 methods and after 12 baselines."""
    counts = {True: 0, False: 0}
    found = []
    for is_baseline in baselines:
        index = counts[is_baseline]
        counts[is_baseline] += 1
        colours, styles = (_GREYS, _GREY_STYLES) if is_baseline else (_COLOURS, _STYLES)
        found.append(Look(colours[index % len(colours)], styles[index % len(styles)], 2.0, is_baseline))
    return found


class _Trace(NamedTuple):
    """A checked curve: arrays (n,), the edges all NaN where it has no band."""

    name: str
    look: Look
    x: Array
    mean: Array
    low: Array
    high: Array


def _trace(line: Line, look: Look) -> _Trace:
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


def _frame(page: Page, traces: Sequence[_Trace], right: float, top: float, bottom: float, whole: bool = False) -> Frame:
    """The plot's rectangle, with room at its left for the numbers of the y axis."""
    heights = np.concatenate([part for trace in traces for part in (trace.mean, trace.low, trace.high)])
    known = heights[np.isfinite(heights)]
    y = Scale(*((0.0, 1.0) if ((known >= 0) & (known <= 1)).all() else limits(known)), bottom, top)
    left = MARGIN + max(page.width(text, 12) for _, text in y.ticks(6)) + 10
    places = np.concatenate([trace.x for trace in traces])
    known = places[np.isfinite(places)]
    if whole and len(known) and known.min() == known.max():
        low, high = known[0] - 0.5, known[0] + 0.5
    else:
        low, high = limits(places, pad=0)
    return Frame(Scale(low, high, left, right), y)


def _mark(page: Page, frame: Frame, x: float, words: str) -> None:
    """A vertical line with words above the plot."""
    at, top = frame.x(x), frame.y.end
    page.line([at] * 2, [top - 4, frame.bottom], Look(INK, (1.5, 2.5), 1.2), order=1)
    text, size = page.fitted(words, 12, page.right - MARGIN)
    half = page.width(text, size) / 2
    page.text(min(max(at, MARGIN + half), page.right - half), top - 13, text, size, align="center")


def _draw_trace(page: Page, frame: Frame, trace: _Trace, opacity: float) -> None:
    x, mean, low, high = frame.x(trace.x), frame.y(trace.mean), frame.y(trace.low), frame.y(trace.high)
    for start, end in _runs(np.isfinite(low + high)):
        here = slice(start, end)
        if end - start == 1:  # a band of no width would not be seen
            page.line([x[start]] * 2, [low[start], high[start]], Look(trace.look.colour, (), 1.2))
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
    page: Page, frame: Frame, label: float, traces: Sequence[_Trace], names: Sequence[tuple[str, float]]
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
            page.line([*end[0], frame.x.end], [*end[1]] * 2, Look(SOFT, (1, 5), 0.8), order=0.5)
            page.line([frame.x.end, label - 4], [*end[1], y], Look(look.colour, (), 0.7), order=1.5)
        _sample(page, label, y, look)
        page.text(label + _SAMPLE, y, *names[index])


def _sample(page: Page, x: float, y: float, look: Look) -> None:
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


def _legend(page: Page, y: float, traces: Sequence[_Trace], names: Sequence[tuple[str, float]]) -> float:
    """All curves in the order in which they were given, in columns; returns where it ends."""
    wide = _SAMPLE + 20 + max(page.width(*name) for name in names)
    columns = max(1, int((page.right - MARGIN + 20) / wide))
    deep = math.ceil(len(traces) / columns)
    for index, (trace, name) in enumerate(zip(traces, names, strict=True)):
        x, row = MARGIN + wide * (index // deep), y + 20 * (index % deep)
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


def _ruler(page: Page, axis: Scale, y: float, cd: float | None) -> float:
    """The critical difference as a length on the axis; returns where it ends."""
    if cd is None:
        return page.paragraph(y, "There is no critical difference, so how far two ranks differ by chance isn't known.")
    look, end, text = Look(INK, (), 1.6), axis(1 + cd), f"critical difference = {cd:.2f}"
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


def _rank_axis(page: Page, axis: Scale, y: float) -> None:
    look = Look(INK, (), 1.2)
    page.line([axis.start, axis.end], [y] * 2, look)
    room = (axis.end - axis.start) / (axis.high - axis.low)
    step = next((step for step in (1, 2, 5, 10, 20, 50) if step * room >= 24), 100)
    for rank in range(1, round(axis.high) + 1):
        named = rank == 1 or (rank % step == 0 and rank - 1 >= 0.75 * step)
        page.line([axis(rank)] * 2, [y, y - (6 if named else 3)], look)
        if named:
            page.text(axis(rank), y - 15, str(rank), 12, ink=SOFT, align="center")


def _bars(page: Page, axis: Scale, y: float, ranks: Array, groups: Sequence[Sequence[int]]) -> float:
    """A thick line over the ranks of each group, those that would touch below each other; returns the last one's y."""
    spans = sorted((float(min(ranks[list(group)])), float(max(ranks[list(group)]))) for group in groups if len(group))
    free: list[float] = []  # where the next bar of each level may begin
    for low, high in spans:
        start, end = axis(low) - 2, axis(high) + 2  # no longer, or it would seem to join a close neighbour
        level = next((level for level, begin in enumerate(free) if begin < start), len(free))
        free[level : level + 1] = [end + 6]
        page.line([start, end], [y + 9 * level] * 2, Look(INK, (), 4.5), order=4)
    return y + 9 * max(0, len(free) - 1)


def _elbow(
    page: Page,
    top: tuple[float, float],
    corner: tuple[float, float],
    side: int,
    name: tuple[str, float],
    rank: float,
) -> None:
    """From the axis down and out to the name at the left (side -1) or right (1), with the rank above the line."""
    (x, y), (edge, row) = top, corner
    outer, inner = _ALIGNS[side], _ALIGNS[-side]
    page.line([x, x, edge - 6 * side], [y, row, row], Look(SOFT, (), 1.1))
    page.text(edge, row, *name, align=outer)
    page.text(edge - 8 * side, row - 8, f"{rank:.2f}", 11, ink=SOFT, align=inner)


def _remarks(
    page: Page, y: float, names: Sequence[str], ranks: Array, cd: float | None, groups: Sequence[Sequence[int]]
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

    def figure(self, scale: Scale) -> str:
        """The mean to about a hundredth of the axis."""
        step = 10.0 ** (math.floor(math.log10(scale.high - scale.low)) - 2)
        return "no value" if math.isnan(self.mean) else number(self.mean, step)


class _Label(NamedTuple):
    """A baseline's name above the plot, from `start` to `end`; level 0 is the lowest."""

    one: _Whisker
    look: Look
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


def _staircase(page: Page, scale: Scale, baselines: Sequence[_Whisker]) -> list[_Label]:
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


def _draw_baseline(page: Page, frame: Frame, label: _Label) -> None:
    """A vertical line from the name to the axis, with a faint band where it has an interval."""
    one, top, y = label.one, frame.y.end, frame.y.end - 10 - 18 * label.level
    if math.isfinite(one.low):
        low, high = frame.x(one.low), frame.x(one.high)
        corners = np.array([(low, top), (high, top), (high, frame.bottom), (low, frame.bottom)])
        page.area(corners, label.look.colour, 0.13)
    page.line([label.x] * 2, [y - 7, frame.bottom], label.look, order=1.5)
    page.text(label.start, y, *label.text, ink=SOFT, boxed=True)


def _draw_whisker(page: Page, scale: Scale, y: float, one: _Whisker, name: tuple[str, float]) -> None:
    look = Look(_COLOURS[0])
    page.line([scale.start, scale.end], [y] * 2, Look(FAINT, (1, 3), 1), order=0)
    page.text(scale.start - 12, y, *name, align="right")
    page.text(_RIGHT, y, one.figure(scale), 12, ink=SOFT, align="right")
    if math.isfinite(one.low):
        low, high = scale(one.low), scale(one.high)
        page.line([low, high], [y] * 2, look)
        for end in (low, high):
            page.line([end] * 2, [y - 4, y + 4], look)
    if math.isfinite(one.mean):
        page.line([scale(one.mean)], [y], look, marker="o", fill=None if math.isfinite(one.low) else "white", order=3)


def _footnotes(page: Page, y: float, known: Sequence[_Whisker]) -> float:
    """What the picture can't show, in words; returns where they end."""
    if any(math.isfinite(one.mean) and math.isnan(one.low) and not one.is_baseline for one in known):
        y = page.paragraph(y, "A hollow dot has no interval.") + 4
    lost = [one.name for one in known if one.is_baseline and math.isnan(one.mean)]
    return page.paragraph(y, f"Without a value: {', '.join(lost)}") + 4 if lost else y
