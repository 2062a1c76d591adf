"""ROAD's linear imputation: missing pixels filled in from what is left, by a sparse solver of our own.

The system is that of a membrane stretched over the holes. Conjugate gradients with one multigrid cycle as preconditioner take about ten
steps whatever the holes' size; many sets of missing pixels are solved side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import UndefinedError

_DAMPING, _SWEEPS, _MOST_STEPS = 0.8, 2, 200
# Sets of missing pixels that are solved side by side: more would not stay in a processor's cache.
_TOGETHER = 3


def impute(x: Tensor, missing: Tensor) -> Tensor:
    """A picture (C, H, W) with missing pixels (S, H, W) filled in, (S, C, H, W): each the weighted mean of its eight neighbours.

    Neighbours count 1/6, diagonal ones 1/12, scaled to sum 1 at the border (Rong et al. 2022, arXiv:2202.00449, and the
    authors' code). Solved to a residual of 1e-6 (1e-13 in float64) of the right side's length.
    """
    if bool(missing.flatten(1).all(dim=1).any()):
        raise UndefinedError("no pixel is left from which the missing ones could be filled in")
    exact = x if x.dtype == torch.float64 else x.float()  # half the bits are not enough for a solver
    return torch.cat([_filled(exact, part) for part in torch.split(missing, _TOGETHER)]).to(x.dtype)


def _filled(x: Tensor, missing: Tensor) -> Tensor:
    levels = _levels(missing[:, None].to(x.dtype))
    mask, weight, _ = levels[0]
    known = x * (1 - mask)
    side = mask * _around(known)
    tolerance = (1e-13 if x.dtype == torch.float64 else 1e-6) * _length(side)
    found, left = torch.zeros_like(side), side
    direction, before = torch.zeros_like(side), torch.ones_like(tolerance)
    for _ in range(_MOST_STEPS):
        if bool((_length(left) <= tolerance).all()):
            break
        step = _cycle(levels, 0, left)
        now = (left * step).sum(dim=(2, 3), keepdim=True)
        direction = step + now / before * direction
        before = torch.where(now > 0, now, 1)
        bent = mask * (weight * direction - _around(direction))
        steepness = (direction * bent).sum(dim=(2, 3), keepdim=True)
        far = now / torch.where(steepness > 0, steepness, 1)
        found, left = found + far * direction, left - far * bent
    return known + found


def _length(values: Tensor) -> Tensor:
    return values.square().sum(dim=(2, 3), keepdim=True).sqrt()


def _around(values: Tensor) -> Tensor:
    """The weighted sum of each pixel's eight neighbours, nothing beyond the border."""
    wide = F.pad(values, (1, 1, 1, 1))
    lines = torch.add(wide[:, :, :-2], wide[:, :, 1:-1], alpha=2).add_(wide[:, :, 2:])
    sums = torch.add(lines[..., :-2], lines[..., 1:-1], alpha=2).add_(lines[..., 2:])
    return sums.add_(values, alpha=-4).div_(12)


def _levels(mask: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each resolution: where pixels are missing, their neighbours' weights summed, and the damped inverse of that there.

    A coarser pixel is missing where its four finer ones are.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while not found or (bool(mask.any()) and min(found[-1][0].shape[2:]) > 3):
        weight = _around(torch.ones_like(mask[:1]))
        found.append((mask, weight, _DAMPING * mask / weight))
        mask = (_quartered(mask) == 4).to(mask)
    return found


def _quartered(values: Tensor) -> Tensor:
    """Sums of 2 x 2 pixels."""
    h, w = values.shape[2:]
    even = F.pad(values, (0, w % 2, 0, h % 2))
    lines = even[:, :, ::2] + even[:, :, 1::2]
    return lines[..., ::2] + lines[..., 1::2]


def _cycle(levels: list[tuple[Tensor, Tensor, Tensor]], at: int, side: Tensor) -> Tensor:
    """A multigrid V-cycle from 0: smoothed, corrected from the next coarser resolution, smoothed again. Symmetric."""
    mask, weight, inverse = levels[at]

    def smoothed(found: Tensor) -> Tensor:
        return _left(found).mul_(inverse).add_(found)

    def _left(found: Tensor) -> Tensor:
        return _around(found).add_(side).sub_(weight * found)

    found = inverse * side
    for _ in range(_SWEEPS - 1):
        found = smoothed(found)
    if at + 1 < len(levels):
        coarser = _cycle(levels, at + 1, _quartered(_left(found).mul_(mask)) * levels[at + 1][0])
        h, w = found.shape[2:]
        found = found + mask * coarser.repeat_interleave(2, dim=2)[:, :, :h].repeat_interleave(2, dim=3)[..., :w]
    for _ in range(_SWEEPS):
        found = smoothed(found)
    return found
