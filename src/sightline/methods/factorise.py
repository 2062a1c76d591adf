"""Deep feature factorisation: a layer's activations as a few concepts, each a map times a direction in channel space."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sightline.errors import MethodError
from sightline.methods.gradient_cams import at_least_single

_TINY = 1e-12


class Factors(NamedTuple):
    """V ~ W H: maps (k, h, w), directions (k, C), and the share of V that they miss."""

    maps: Tensor
    directions: Tensor
    missing: float


def factorise(activations: Tensor, count: int, *, iterations: int = 300, seed: int = 0) -> Factors:
    """Non-negative matrix factorisation of one image's activations (1, C, h, w), the strongest concept first.

    Formula: the table V of cells by channels, all >= 0, is approached by W H with k columns and rows, all >= 0, by the updates
    W <- W * V H' / (W H H'), H <- H * W' V / (W' W H), which never raise |V - W H|. Each direction is scaled to length 1. Where
    activations are negative they count as 0, because a concept can't be less than absent.

    Args:
        activations: of one image.
        count: k, how many concepts.
        iterations: at most; it stops when the error falls no more.
        seed: of the start.

    Source: Collins et al. 2018, arXiv:1806.10206; updates of Lee and Seung 2001.
    """
    a = at_least_single(activations).double().relu()
    _, channels, h, w = a.shape
    if not 1 <= count <= min(channels, h * w):
        raise MethodError(
            f"count is {count}; expected 1 to {min(channels, h * w)}, no more than the layer has cells or channels"
        )
    scale = a.max().clamp(min=_TINY)
    table = (a[0].flatten(1).T / scale).contiguous()
    generator = torch.Generator().manual_seed(seed)
    size = (table.mean() / count).sqrt()
    maps = torch.rand(h * w, count, generator=generator, dtype=torch.float64).to(table) * size
    directions = torch.rand(count, channels, generator=generator, dtype=torch.float64).to(table) * size
    whole, last = float(table.norm()), torch.inf
    for step in range(iterations):
        maps = maps * (table @ directions.T) / (maps @ (directions @ directions.T)).clamp(min=_TINY)
        directions = directions * (maps.T @ table) / (maps.T @ maps @ directions).clamp(min=_TINY)
        if step % 10 == 9:
            error = float((table - maps @ directions).norm())
            if last - error <= 1e-5 * max(whole, _TINY):
                break
            last = error
    missing = float((table - maps @ directions).norm()) / max(whole, _TINY)
    lengths = directions.norm(dim=1)
    maps, directions = maps * lengths * scale, directions / lengths.clamp(min=_TINY)[:, None]
    order = maps.sum(dim=0).argsort(descending=True, stable=True)
    return Factors(maps.T[order].reshape(count, h, w), directions[order], missing)
