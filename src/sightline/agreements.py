"""How far several methods agree about one class of one photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from sightline.errors import MetricError, UndefinedError
from sightline.heatmap import Heatmap
from sightline.methods.notices import edge_detector, same_map
from sightline.methods.registry import list_methods
from sightline.metrics.maps import spearman
from sightline.metrics.registry import Array
from sightline.render.matrix import correlations
from sightline.trust import ALIKE

_FINEST = 14  # cells along a side


@dataclass(frozen=True, eq=False)
class Agreement:
    """How alike maps of one photograph and one target are, pair by pair.

    Attributes:
        target: the class's name.
        names: of the n maps: their methods, with layer or model where one method occurs more than once.
        matrix: (n, n), Spearman's rank correlation of what speaks for the class; NaN where a map is empty or the same everywhere.
        median: of the pairs of different maps; None where there is no such pair.
        pairs: how many these are; methods that give one and the same map count once, and those that say nothing of the class not at all.
        least: the lowest of their correlations, and `apart` whose it is.
        mute: methods that say nothing of the class: methods that show the same for every class, and edge detectors.
    """

    target: str
    names: tuple[str, ...]
    matrix: Array
    median: float | None
    pairs: int
    least: float = np.nan
    apart: tuple[str, str] = ("", "")
    mute: tuple[str, ...] = ()

    @property
    def disagree(self) -> bool:
        """Whether the median is below the trust card's rule for agreement."""
        return self.median is not None and self.median < ALIKE

    @property
    def says(self) -> str:
        """The finding as a sentence."""
        if self.median is None:
            return "whether the methods agree can't be told: fewer than two of their maps differ and show a place"
        of = f"{self.median:.2f}"
        if self.pairs > 1:
            of += f" (median of {self.pairs} pairs; least alike: {self.apart[0]} and {self.apart[1]}, {self.least:.2f})"
        left = f" (left out, because they say nothing of the class: {', '.join(self.mute)})" if self.mute else ""
        if self.disagree:
            return (
                f"the methods disagree: their maps correlate by {of}, below {ALIKE}; believe none of them alone{left}"
            )
        return f"the methods agree: their maps correlate by {of}, not below {ALIKE}{left}"

    def flagged(self) -> str:
        """The finding, with the flag where methods disagree and the target's name."""
        return f"{'RED FLAG, ' if self.disagree else ''}{self.target}: {self.says}"

    def record(self) -> dict[str, Any]:
        """What `--json` and the manifest say; None where there is no correlation."""
        return {
            "target": self.target,
            "names": list(self.names),
            "matrix": [[float(one) if np.isfinite(one) else None for one in row] for row in self.matrix],
            "median": self.median,
            "pairs": self.pairs,
            "disagree": self.disagree,
            "least_alike": list(self.apart),
            "mute": list(self.mute),
            "says": self.says,
        }

    def picture(self) -> Image.Image:
        """The matrix with its numbers, similar maps beside each other."""
        note = (
            "Rank correlation of where the maps see something that speaks for the class, "
            "each pair on the coarser of its two grids, and none finer than 14 x 14."
        )
        return correlations(f"How far the methods agree: {self.target}", note, self.names, self.matrix, self.flagged())

    def _repr_png_(self) -> bytes:
        from sightline.bundle import png

        return png(self.picture())


def agreement(heatmaps: Sequence[Heatmap]) -> Agreement:
    """How far several methods agree about one class of one photograph.

    Of each map counts what speaks for the class; the rest is 0. Two maps are compared on the coarser of their grids, and on none
    finer than 14 x 14, because single pixels of two maps hardly ever coincide; a cell has the mean of what lies in it.

    Args:
        heatmaps: two or more of one photograph and one target, as `compare` gives them.

    Raises:
        MetricError: there are fewer than two, or they are of different photographs or targets.
    """
    maps = list(heatmaps)
    _check(maps)
    found = [np.maximum(one.raw.astype(np.float64), 0) for one in maps]
    matrix = np.full((len(maps), len(maps)), np.nan)
    for row, column in np.ndindex(*matrix.shape):
        matrix[row, column] = matrix[column, row] if column < row else _alike(found[row], found[column])
    names = _names(maps)
    mute = [at for at, one in enumerate(maps) if _is_mute(one.method)]
    different = [
        at
        for at, one in enumerate(found)
        if at not in mute and np.isfinite(matrix[at, at]) and not any(_same(one, before) for before in found[:at])
    ]
    pairs = [
        (float(matrix[one, other]), names[one], names[other])
        for at, one in enumerate(different)
        for other in different[at + 1 :]
        if np.isfinite(matrix[one, other])
    ]
    median = float(np.median([one for one, *_ in pairs])) if pairs else None
    least, *apart = min(pairs) if pairs else (np.nan, "", "")
    return Agreement(
        maps[0].label,
        names,
        matrix,
        median,
        len(pairs),
        float(least),
        (apart[0], apart[1]),
        tuple(names[at] for at in mute),
    )


def _is_mute(name: str) -> bool:
    known = list_methods().get(name)
    return known is not None and (not known.class_specific or edge_detector(known))


def _check(maps: Sequence[Heatmap]) -> None:
    if len(maps) < 2:
        raise MetricError(f"agreement needs two maps or more, not {len(maps)}")
    first = maps[0]
    for one in maps[1:]:
        if one.view != first.view or (one.photo is not first.photo and one.photo.tobytes() != first.photo.tobytes()):
            raise MetricError(
                f"agreement is asked of maps of one photograph, seen in one way; {first.method} and {one.method} differ in that"
            )
        if (one.label, one.index) != (first.label, first.index):
            raise MetricError(
                f"agreement is asked of maps of one target; {first.label!r} ({first.method}) and {one.label!r} ({one.method}) are two"
            )


def _names(maps: Sequence[Heatmap]) -> tuple[str, ...]:
    """The methods, and what tells them apart where one occurs twice."""
    methods, models = [one.method for one in maps], {one.model for one in maps}
    return tuple(
        one.method
        + (f" at {one.where()}" if methods.count(one.method) > 1 and len({other.layer for other in maps}) > 1 else "")
        + (f", {one.model}" if len(models) > 1 else "")
        for one in maps
    )


def _alike(one: Array, other: Array) -> float:
    """Spearman's correlation on the coarser grid, or one of 14 x 14; NaN where one has no order."""
    size = (min(one.shape[0], other.shape[0], _FINEST), min(one.shape[1], other.shape[1], _FINEST))
    try:
        return spearman(*(_even(averaged(each, size)) for each in (one, other)))
    except UndefinedError:
        return float("nan")


def _even(values: Array) -> Array:
    """Without the rounding of means, so that places of one value tie."""
    highest = np.abs(values).max()
    return np.round(values / highest, 9) if highest > 0 else values


def averaged(grid: Array, size: tuple[int, int]) -> Array:
    """A map (h, w) on fewer cells: each has the mean of the part of the map that it covers."""
    rows, columns = (_shares(cells, fewer) for cells, fewer in zip(grid.shape, size, strict=True))
    found: Array = rows @ grid @ columns.T
    return found


def _shares(cells: int, fewer: int) -> Array:
    """(fewer, cells): how much of each new cell each old one makes up."""
    old, new = np.arange(cells), np.arange(fewer)[:, None] * (cells / fewer)
    covered = np.minimum(old + 1, new + cells / fewer) - np.maximum(old, new)
    found: Array = np.maximum(covered, 0) * (fewer / cells)
    return found


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and same_map(torch.from_numpy(one), torch.from_numpy(other))
