"""FullGrad: every bias of the network drawn where it acted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.methods.registry import method
from sightline.models.grids import grid_of


@method(
    "full-grad",
    needs="model",
    unit="own",
    reference="Srinivas and Fleuret 2019, arXiv:1905.00780; idiap/fullgrad-saliency",
)
def full_grad(capture: Capture, probe: Probe) -> Tensor:
    """How much of the score comes from each place of the picture, through all layers at once.

    Formula: map = psi(x * dy/dx) + sum over all biases b of psi(b * dy/db), psi = absolute value, stretched to 0..1 over all
    channels of a layer jointly, resized to the picture; channels are added. Without psi the terms add up to the score; how
    much is missing, because functions outside of modules bend it too, is said.

    Differs: implicit biases of bent activations are included, as the paper has it and the authors' code has not, and grids are
    resized by cell areas. pytorch-grad-cam stretches every channel for itself, which lifts dead ones.
    """
    parts = probe.parts()
    found = _psi(parts.image).sum(dim=0)
    undrawn = 0.0
    for one in parts.biases:
        grid = _as_grid(one, capture.input)
        if grid is None:
            undrawn += float(one.double().sum()) if one.dim() > 1 else 0.0  # a vector belongs to no place
            continue
        drawn = _psi(grid).sum(dim=0)[None, None]
        found = found + F.interpolate(drawn, found.shape, mode="bilinear", align_corners=False)[0, 0]
    if abs(undrawn) > 0.01 * abs(parts.score):
        probe.notes.append(
            f"full-grad could not draw {min(abs(undrawn / parts.score), 9.99) * 100:.0f} % of the score: those biases lie on tokens, not on a grid"
        )
    share = abs(parts.missing) / max(abs(parts.score), torch.finfo(torch.float32).tiny)
    if share > 0.01:
        probe.notes.append(
            f"full-grad leaves {min(share, 9.99) * 100:.0f} % of the score out: parts of this network can't be taken apart"
        )
    return found[None]


def _as_grid(bias: Tensor, x: Tensor) -> Tensor | None:
    """The bias as (C, h, w), also where a layer works with its channels last; None where it has no places."""
    if bias.dim() != 3:
        return None
    readings = [one for one in (bias, bias.permute(2, 0, 1)) if grid_of((1, *one.shape), tuple(x.shape)) is not None]
    # Both can pass where there are about as many channels as cells in a row: the one of the picture's own shape it is.
    return min(readings, key=lambda one: abs(one.shape[1] * x.shape[3] / x.shape[2] - one.shape[2]), default=None)


def _psi(terms: Tensor) -> Tensor:
    terms = terms.abs() if terms.dtype in (torch.float32, torch.float64) else terms.float().abs()
    low, high = terms.min(), terms.max()
    return (terms - low) / torch.where(high > low, high - low, 1)
