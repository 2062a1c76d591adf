"""Integrated gradients along a path that the model chooses, and grown into regions of the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline._optional import optional, require
from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.errors import MethodError
from sightline.methods.baselines import Baseline, baseline_of, described
from sightline.methods.gradient_cams import at_least_single
from sightline.methods.input_gradients import complete, integrate, rise
from sightline.methods.registry import method

# Of the authors' segmentation: the picture's side, Felzenszwalb's scales, sigma and smallest segment; pixels a segment grows by.
_SIDE, _SCALES, _SIGMA, _SMALLEST, _GROWN = 224, (50, 100, 150, 250, 500, 1200), 0.8, 150, 5
_LEAST_SHARE = 50 / 224**2  # of the picture that a region must add


@method(
    "guided-ig",
    needs="input-gradients",
    volumes=True,
    signed=True,
    reference="Kapishnikov et al. 2021, arXiv:2106.09788, algorithm 1; PAIR-code/saliency, guided_ig.py",
)
def guided_ig(
    capture: Capture,
    probe: Probe,
    *,
    baseline: Baseline = 0.0,
    steps: int = 200,
    fraction: float = 0.25,
    distance: float = 0.02,
    seed: int = 0,
) -> Tensor:
    """Integrated gradients along a path on which the pixels that matter least at the moment move first: less noise.

    Formula: at each step the fraction of values with the smallest |grad f| moves towards x, until the rest of the way is as long
    as on the straight line; map_ij = sum over all moves of sum_c grad f_cij * move_cij.

    Args:
        baseline: where the path begins, as for integrated-gradients.
        steps: gradients on the way, one after the other.
        fraction: of the values that move at once.
        distance: how far from the straight line a value may be, 0 (integrated gradients at steps' starts) to 1 (free).
        seed: of a random baseline.
    """
    x = capture.input.double()
    x0 = baseline_of(baseline, capture.input, probe, seed).double()
    way = x - x0
    whole = float(way.abs().sum())
    here, total = x0.clone(), torch.zeros_like(x)
    for part in probe.gradient_steps(steps, 1):
        slope = probe.score_grad(here.to(capture.input))[1].double()
        at = (part.start + 1) / steps
        low, high = x0 + max(at - distance, 0) * way, x0 + min(at + distance, 1) * way
        target = whole * (1 - at)
        moved = _moved(here, slope, x, way, low, high, target, fraction, 1e-9 * max(1.0, whole))
        total += (moved - here) * slope
        here = moved
    found = total.sum(dim=1).to(at_least_single(capture.input).dtype)
    how = f"from baseline {described(baseline)} in {steps} guided steps"
    complete(probe, found, rise(capture, probe, x0.to(capture.input)), how, "steps")
    return found


def _moved(
    here: Tensor,
    slope: Tensor,
    x: Tensor,
    way: Tensor,
    low: Tensor,
    high: Tensor,
    target: float,
    fraction: float,
    near: float,
) -> Tensor:
    """The place after one step: `target` away from x, between `low` and `high`, reached by the values of least slope."""
    behind = ((here - low) * way.sign()) < 0
    here = torch.where(behind, low, here)
    size = slope.abs().flatten()
    while True:
        left = float((here - x).abs().sum()) - target
        free = (here != high).flatten()
        count = int(free.sum())
        if not left > near or count == 0:  # NaN is not left, either: it would never be less
            return here
        # Those that can't move count as steepest, as the authors have it: the fraction is of all values.
        rank = int(fraction * (size.numel() - 1))
        sorted_free = size[free]
        chosen = free & (size <= (sorted_free.kthvalue(rank + 1).values if rank < count else sorted_free.max()))
        room = torch.where(chosen.reshape(x.shape), high - here, 0)
        reach = float(room.abs().sum())
        if reach == 0:
            return here
        here = torch.where(chosen.reshape(x.shape), high, here) if reach < left else here + room * (left / reach)
        if reach >= left:
            return here


@method(
    "xrai",
    needs="input-gradients",
    signed=True,
    unit="own",
    reference="Kapishnikov et al. 2019, arXiv:1906.02825, algorithm 1; PAIR-code/saliency, xrai.py",
)
def xrai(capture: Capture, probe: Probe, *, steps: int = 100) -> Tensor:
    """Integrated gradients gathered into regions of the picture, the ones that hold most evidence a pixel first.

    Formula: A = mean of integrated gradients from a black and a white baseline (the picture's lowest and highest value); among
    overlapping segments of six sizes (Felzenszwalb) the one whose new pixels have the highest mean of A is added, until all are;
    map_ij = that mean for the pixels it added. What no segment covers gets its own mean, so that the map sums to A.

    Args:
        steps: pictures on the way from each baseline.

    Differs: the authors take a pixel's highest channel, we add channels; their least 50 new pixels are of 224 x 224, ours a
    thousandth of the picture.
    """
    require(["skimage"], "superpixels", "Finding regions of a picture")  # before the model is asked
    x = capture.input
    ends = torch.cat([torch.full_like(x, float(x.min())), torch.full_like(x, float(x.max()))])
    found = integrate(probe, x, ends, steps).sum(dim=1).mean(dim=0)
    masks = _segments(at_least_single(x)[0].permute(1, 2, 0).cpu().numpy())
    return torch.from_numpy(grown(found.double().cpu().numpy(), masks))[None].to(found)


def grown(values: np.ndarray[Any, Any], masks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Every pixel's mean of values over the pixels that came with it, (H, W); masks (S, H, W) are added by that mean."""
    flat, inside = values.ravel(), masks.reshape(len(masks), -1)
    # One mask after the other, because a product would make numbers of all of them at once.
    least = max(1, round(_LEAST_SHARE * flat.size))
    result, new = np.empty_like(flat), np.ones(flat.size, bool)
    sums, counts = np.array([flat[mask].sum() for mask in inside]), inside.sum(axis=1)
    while (possible := counts >= least).any():
        means = np.where(possible, sums / np.maximum(counts, 1), -np.inf)
        best = int(means.argmax())
        added = np.flatnonzero(inside[best] & new)
        result[added] = means[best]
        new[added] = False
        taken = [inside[mask, added] for mask in range(len(inside))]
        sums = sums - np.array([flat[added[one]].sum() for one in taken])
        counts = counts - np.array([one.sum() for one in taken])
    if new.any():
        result[new] = flat[new].mean()
    return result.reshape(values.shape)


def _segments(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Overlapping segments of a picture (H, W, C) as masks (S, H, W)."""
    segmentation, morphology, transform = (
        optional(f"skimage.{name}", "superpixels", "xrai") for name in ("segmentation", "morphology", "transform")
    )
    low, high = picture.min(), picture.max()
    if not high > low:
        raise MethodError("xrai finds regions by their borders, and this picture is one colour")
    even = transform.resize(
        (picture - low) / (high - low) * 2 - 1, (_SIDE, _SIDE), order=3, mode="edge", anti_aliasing=True
    )
    masks = []
    for scale in _SCALES:
        labels = segmentation.felzenszwalb(even, scale=scale, sigma=_SIGMA, min_size=_SMALLEST)
        rows, columns = ((np.arange(side) + 0.5) * _SIDE / side for side in picture.shape[:2])
        labels = labels[rows.astype(int)][:, columns.astype(int)]
        masks += [labels == one for one in np.unique(labels)]
    disk = morphology.disk(_GROWN)
    return np.stack([morphology.dilation(one, disk) for one in masks])
