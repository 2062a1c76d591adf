"""Does the heat lie where a person (or a made-up truth) says the object is? That is agreement, not faithfulness."""

from __future__ import annotations

from typing import Any

import numpy as np

from sightline.errors import MetricError, UndefinedError
from sightline.metrics.registry import Array, metric

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@metric(
    "pointing-game",
    better="higher",
    reference="Zhang et al. 2016, arXiv:1608.00507: a hit within 15 pixels",
)
def pointing_game(placed: Array, mask: Mask, *, tolerance: int = 15) -> float:
    """Whether the strongest place lies on the object: 1 or 0, or the share of the places where several are equally strong.

    Args:
        placed: (H, W), NaN where the model never looked.
        mask: (H, W), the object.
        tolerance: in pixels of the mask. A map without any positive value is a miss.
    """
    if tolerance < 0:
        raise MetricError(f"option tolerance is {tolerance}; expected 0 pixels or more")
    heat = _checked(placed, mask)
    highest = heat.max()
    if highest <= 0:
        return 0.0
    ys, xs = np.nonzero(heat == highest)
    top, left = max(int(ys.min()) - tolerance, 0), max(int(xs.min()) - tolerance, 0)
    window = mask[top : int(ys.max()) + tolerance + 1, left : int(xs.max()) + tolerance + 1]
    return float(_widened(window, tolerance)[ys - top, xs - left].mean())


def _widened(mask: Mask, reach: int) -> Mask:
    """The mask with all pixels whose centre is at most `reach` from one of its own."""
    h, w = mask.shape
    found = np.zeros_like(mask)
    for dy in range(-reach, reach + 1):
        if abs(dy) >= h:
            continue
        side = int(np.sqrt(reach * reach - dy * dy))
        rows = mask[max(dy, 0) : h + min(dy, 0)]
        count = np.cumsum(np.pad(rows, ((0, 0), (side + 1, side))), axis=1, dtype=np.int32)
        found[max(-dy, 0) : h - max(dy, 0)] |= count[:, 2 * side + 1 :] > count[:, :w]
    return found


@metric("energy-pointing-game", better="higher", reference="Wang et al. 2020, arXiv:1910.01279")
def energy_pointing_game(placed: Array, mask: Mask) -> float:
    """The share of the map's positive heat inside the object's box (the smallest around the mask), 0 to 1."""
    _checked(placed, mask)
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return mass_in_mask(placed, box)


@metric("mass-in-mask", better="higher", reference="Arras et al. 2022, arXiv:2003.07258: relevance mass accuracy")
def mass_in_mask(placed: Array, mask: Mask) -> float:
    """The share of the map's positive heat on the object, 0 to 1."""
    heat = _checked(placed, mask)
    total = heat.sum()
    if not total > 0:
        raise UndefinedError("the map is empty: it has no heat that could lie anywhere")
    return min(1.0, float(heat[mask].sum() / total))


@metric("iou", better="higher", reference="Selvaraju et al. 2017, arXiv:1610.02391: 15 % of the maximum")
def iou(placed: Array, mask: Mask, *, threshold: float = 0.15) -> float:
    """How well the map's strong part (above a share of its maximum) covers the object: intersection over union, 0 to 1.

    Args:
        placed: (H, W), NaN where the model never looked.
        mask: (H, W), the object.
        threshold: the share of the map's maximum from which on a pixel is strong.
    """
    heat = _checked(placed, mask)
    if not 0 < threshold <= 1:
        raise MetricError(f"option threshold is {threshold}; expected a share of the maximum, above 0 and at most 1")
    if not heat.max() > 0:
        raise UndefinedError("the map is empty: it has no strong part")
    strong = (heat >= threshold * heat.max()) & np.isfinite(placed)
    return float((strong & mask).sum() / (strong | mask).sum())


@metric("grid-pointing-game", better="higher", reference="Boehle et al. 2021, arXiv:2104.00032")
def grid_pointing_game(heat: Array, cell: tuple[int, int]) -> float:
    """On a board of n x n pictures: the share of the positive heat for one picture's class that lies on that picture.

    Args:
        heat: (H, W) on the board.
        cell: (number of the picture, row by row; n).
    """
    number, n = cell
    if not 0 <= number < n * n or heat.shape[0] % n or heat.shape[1] % n:
        raise MetricError(
            f"picture {number} of a board of {n} x {n} on a map of {heat.shape}; expected one of {n * n} equal cells"
        )
    positive = np.maximum(heat, 0)
    if not positive.sum() > 0:
        raise UndefinedError("the map is empty: it has no heat that could lie anywhere")
    h, w = heat.shape[0] // n, heat.shape[1] // n
    top, left = number // n * h, number % n * w
    return min(1.0, float(positive[top : top + h, left : left + w].sum() / positive.sum()))


@metric("di-full", better="higher", reference="Rao et al. 2022, arXiv:2205.10435")
def di_full(heat: Array, part: tuple[int, int]) -> float:
    """On a board whose n x n pictures the model can't mix: the share of the positive heat on the class's own picture; all else is provably wrong."""
    return grid_pointing_game(heat, part)


def _checked(placed: Array, mask: Mask) -> Array:
    """The positive heat, 0 where the model never looked."""
    if mask.shape != placed.shape:
        raise MetricError(
            f"the mask is {_size(mask)} and the map lies on {_size(placed)} pixels; give a mask of the picture's size"
        )
    if mask.dtype != bool:
        raise MetricError(f"the mask is of {mask.dtype}; expected true and false, such as mask > 0")
    if not mask.any():
        raise UndefinedError("the mask is empty: there is no object to find")
    if not np.isfinite(placed[mask]).any():
        raise UndefinedError("the model never saw the object: it lies in the margin that was cut off")
    return np.maximum(np.nan_to_num(placed), 0)


def _size(values: np.ndarray[Any, Any]) -> str:
    return " x ".join(map(str, values.shape[::-1]))
