"""Targets of models that give each pixel a class (B, K, h, w): a class where it is seen, at a point, or in a region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sightline.engine.asked import Asked, Corners, Mark, Target
from sightline.engine.tasks import checked_index, class_index, refuse, task_of
from sightline.errors import TargetError
from sightline.models.adapter import Adapter
from sightline.models.view import View

_BACKGROUND = ("background", "__background__", "unlabeled", "void")
_FINE = 4  # places within a cell, along each side, at which a region is looked up
_MOST = 10_000  # pixels of a region that are looked up one by one
_FARTHEST = 1e6  # pixels from the photograph's corner, beyond which nobody means a place
Mask = np.ndarray[Any, Any]


def segment(
    label: int | str | None = None,
    *,
    point: tuple[float, float] | None = None,
    box: Corners | None = None,
    region: Mask | None = None,
) -> Target:
    """The sum of a class's logits over a part of the picture, for models that give each pixel a class.

    Args:
        label: the class by name or number; None for the one that the model gives to that place (of the whole picture, the largest
            that is no background).
        point: (x, y) in pixels of the photograph: the one place of the output that holds it.
        box: (left, top, right, bottom) in pixels of the photograph.
        region: (H, W) of the photograph, true inside. Without a place it is where the model sees the class.

    Reference: Vinogradova et al. 2020 (Seg-Grad-CAM), eq. 2, arXiv:2002.11434. A cell of the output that lies in a region in
    part counts in part.
    """
    if sum(one is not None for one in (point, box, region)) > 1:
        raise TargetError("give one place: a point, a box or a region")

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        return _resolved(label, point, box, region, adapter, output, image, view)

    def unresolved(_output: Any) -> Tensor:
        raise TargetError("a segment needs the model beside its output; give it as a target")

    unresolved.resolved = resolved  # type: ignore[attr-defined]
    return unresolved


def _resolved(
    label: int | str | None,
    point: tuple[float, float] | None,
    box: Corners | None,
    region: Mask | None,
    adapter: Adapter,
    output: Any,
    image: int,
    view: View | None,
) -> Asked:
    if task_of(adapter, output) != "segmentation":
        refuse(adapter, output, "point or region with a class of its own")
    logits = pixel_logits(output)[image].detach()
    seen = logits.argmax(dim=0)
    classes, size = len(logits), (seen.shape[0], seen.shape[1])
    # Of ready inputs the photograph is the input, of which only the output's grid is known here.
    view = View.of_input(size[1], size[0]) if view is None else view
    weights = None
    where = ""
    if point is not None:
        weights, where = _at_point(point, view, size), f" at {point[0]:g}, {point[1]:g}"
    elif box is not None:
        weights, where = _in_box(box, view, size), f" in the box {', '.join(f'{one:g}' for one in box)}"
    elif region is not None:
        weights, where = _in_region(region, view, size), " in the region"
    if isinstance(label, str):
        chosen = class_index(label, adapter, classes)
    elif label is not None:
        chosen = checked_index(label, adapter, classes)
    else:
        chosen = _commonest(seen, weights, adapter)
    own = (seen == chosen).float()
    if weights is None:
        if not own.any():
            raise TargetError(
                f"the model gives no pixel to {adapter.label(chosen)!r}; it sees {_sees(seen, adapter)}. "
                "To ask for it all the same, name a place: a point (@X,Y) or a region"
            )
        weights = own
    weights = single(weights.to(logits))

    def score(output: Any) -> Tensor:
        return (single(pixel_logits(output)[:, chosen]) * weights).sum(dim=(1, 2))

    drawn = Mark(
        point=point,
        box=None if box is None else cast(Corners, tuple(float(one) for one in box)),
        region=None if point is not None or box is not None else placed(weights > 0.5, view),
    )
    return Asked(score, None, f"{adapter.label(chosen)}{where}", mark=drawn)


def placed(inside: Tensor, view: View | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A region of a grid that covers the input (h, w), on the photograph (H, W)."""
    found = np.asarray(inside.cpu())
    return found if view is None else np.asarray(view.place_labels(found) == 1)


def seen_classes(output: Any, image: int = 0) -> list[tuple[int, float]]:
    """Classes and the share of the picture that each has, the largest first."""
    seen = pixel_logits(output)[image].detach().argmax(dim=0)
    counts = torch.bincount(seen.flatten())
    best = [int(at) for at in counts.argsort(descending=True, stable=True) if counts[at]]
    return [(at, float(counts[at]) / seen.numel()) for at in best]


def single(values: Tensor) -> Tensor:
    """Of 16 bits as 32: a sum over pixels, or an area in pixels, is soon more than 65504, where float16 ends."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def pixel_logits(output: Any) -> Tensor:
    """The output as logits (B, K, h, w)."""
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise TargetError("the model returned no logits (B, classes, h, w) of pixels")
    if output.shape[1] == 1:  # one logit: the class against all else
        return torch.cat([torch.zeros_like(output), output], dim=1)
    return output


def _at_point(point: Sequence[float], view: View, size: tuple[int, int]) -> Tensor:
    x, y = checked_point(point)
    if not (0 <= x <= view.photo[0] and 0 <= y <= view.photo[1]):
        raise TargetError(
            f"the point {x:g}, {y:g} lies outside the photograph of {view.photo[0]} x {view.photo[1]} pixels"
        )
    cell = _cell((x, y), view, size)
    if cell is None:
        raise TargetError(f"the point {x:g}, {y:g} was cut off before the model; it saw {_window(view)}")
    found = torch.zeros(size)
    found[cell] = 1
    return found


def _cell(point: tuple[float, float], view: View, size: tuple[int, int]) -> tuple[int, int] | None:
    """Row and column of the cell of the output that holds a point of the photograph; None where that was cut off."""
    column, row = view.to_input(*point)
    column, row = column * size[1] / view.input[0], row * size[0] / view.input[1]
    if not (0 <= column <= size[1] and 0 <= row <= size[0]):
        return None
    return min(int(row), size[0] - 1), min(int(column), size[1] - 1)


def checked_point(point: Any) -> tuple[float, float]:
    """A point on the photograph, or a sentence about what is wrong with it."""
    try:
        x, y = (float(one) for one in point)
    except (TypeError, ValueError):
        raise TargetError(f"{point!r} is no point; expected (x, y) in pixels") from None
    return x, y


def _in_box(box: Sequence[float], view: View, size: tuple[int, int]) -> Tensor:
    left, top, right, bottom = checked_box(box, view)
    width, height = view.photo
    # What lies beyond the photograph is a border that the preprocessing added.
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)

    def inside(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray((x >= left) & (x <= right) & (y >= top) & (y <= bottom))

    found = _looked_up(inside, view, size)
    if not found.any():  # smaller than a cell, or not seen
        middle = (left + right) / 2, (top + bottom) / 2
        if _cell(middle, view, size) is None:
            raise TargetError(
                f"the box {left:g}, {top:g}, {right:g}, {bottom:g} was cut off before the model; it saw {_window(view)}"
            )
        return _at_point(middle, view, size)
    return found


def _in_region(region: Mask, view: View, size: tuple[int, int]) -> Tensor:
    region = np.asarray(region)
    width, height = view.photo
    if region.shape != (height, width):
        raise TargetError(
            f"the region is {region.shape}; expected the photograph's rows and columns, {(height, width)}"
        )
    if not region.any():
        raise TargetError("the region is empty: none of its pixels is above 0")

    def inside(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        on = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        rows, columns = np.clip(y, 0, height - 1).astype(int), np.clip(x, 0, width - 1).astype(int)
        return np.asarray(on & (region[rows, columns] > 0))

    found = _looked_up(inside, view, size)
    if not found.any():  # smaller than a cell, or not seen: the cell that holds most of its pixels
        y, x = (one + 0.5 for one in np.nonzero(region > 0))
        step = 1 + len(x) // _MOST
        cells = Counter(
            cell for pixel in zip(x[::step], y[::step], strict=True) if (cell := _cell(pixel, view, size)) is not None
        )
        for cell, _ in cells.most_common(1):
            found[cell] = 1
    if not found.any():
        raise TargetError(f"the region lies where the model never looked; it saw {_window(view)}")
    return found


def _looked_up(inside: Any, view: View, size: tuple[int, int]) -> Tensor:
    """(h, w): the share of each cell of the output that lies inside a part of the photograph."""
    h, w = size
    columns = (np.arange(w * _FINE) + 0.5) * view.input[0] / (w * _FINE)
    rows = (np.arange(h * _FINE) + 0.5) * view.input[1] / (h * _FINE)
    x = np.array([view.to_photo(one, 0)[0] for one in columns])
    y = np.array([view.to_photo(0, one)[1] for one in rows])
    found = inside(x[None, :], y[:, None]).reshape(h, _FINE, w, _FINE).mean(axis=(1, 3))
    return torch.from_numpy(found).float()


def checked_box(box: Any, view: View) -> Corners:
    """A box on the photograph, or a sentence about what is wrong with it."""
    try:
        left, top, right, bottom = (float(one) for one in box)
    except (TypeError, ValueError):
        raise TargetError(f"{box!r} is no box; expected (left, top, right, bottom) in pixels") from None
    width, height = view.photo
    if any(abs(one) > _FARTHEST for one in (left, top, right, bottom)):
        raise TargetError(
            f"the box {left:g}, {top:g}, {right:g}, {bottom:g} is none; expected pixels of the photograph"
        )
    if not (left < right and top < bottom):
        raise TargetError(
            f"the box {left:g}, {top:g}, {right:g}, {bottom:g} is empty; expected left, top, right, bottom in pixels, left < right and top < bottom"
        )
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise TargetError(
            f"the box {left:g}, {top:g}, {right:g}, {bottom:g} lies outside the photograph of {width} x {height} pixels"
        )
    return left, top, right, bottom


def _window(view: View) -> str:
    left, top, right, bottom = (round(one) for one in view.seen())
    return f"the part from {left}, {top} to {right}, {bottom}"


def _commonest(seen: Tensor, weights: Tensor | None, adapter: Adapter) -> int:
    """The class of most of a place; of the whole picture, of most that is no background."""
    counts = torch.bincount(seen.flatten(), None if weights is None else weights.flatten().to(seen.device)).float()
    order = [int(at) for at in counts.argsort(descending=True, stable=True)]
    if weights is None:
        objects = [at for at in order if adapter.label(at).lower() not in _BACKGROUND and counts[at] > 0]
        order = objects or order
    return order[0]


def _sees(seen: Tensor, adapter: Adapter) -> str:
    counts = torch.bincount(seen.flatten())
    best = [int(at) for at in counts.argsort(descending=True)[:3] if counts[at]]
    return ", ".join(f"{adapter.label(at)} ({100 * float(counts[at]) / seen.numel():.0f} %)" for at in best)
