"""FullGrad: every bias of the network drawn where it acted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.methods.registry import method


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
    for one in parts.biases:
        if one.dim() == 3 and one.shape[1] * one.shape[2] > 1:
            grid = _psi(one).sum(dim=0)[None, None]
            found = found + F.interpolate(grid, found.shape, mode="bilinear", align_corners=False)[0, 0]
    share = abs(parts.missing) / max(abs(parts.score), torch.finfo(torch.float32).tiny)
    if share > 0.01:
        probe.notes.append(
            f"full-grad leaves {min(share, 9.99) * 100:.0f} % of the score out: this network also computes with functions that are no modules"
        )
    return found[None]


def _psi(terms: Tensor) -> Tensor:
    terms = terms.abs() if terms.dtype in (torch.float32, torch.float64) else terms.float().abs()
    low, high = terms.min(), terms.max()
    return (terms - low) / torch.where(high > low, high - low, 1)
