"""What can be read off a map alone, and how alike two maps are; and the maps that know nothing, to compare with."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from sightline.errors import MetricError, UndefinedError
from sightline.metrics.registry import Array, metric


@metric("sparseness", better="neither", reference="Chalasani et al. 2020, arXiv:1810.06583: the Gini index")
def sparseness(heat: Array) -> float:
    """How few pixels hold the heat: 0 when all hold the same, near 1 when one holds all."""
    values = np.sort(np.abs(heat), axis=None)
    if not values[-1] > 0:
        raise UndefinedError("the map is empty: nothing is spread over it")
    values = values / values[-1]
    n = values.size
    return float(((2 * np.arange(1, n + 1) - n - 1) * values).sum() / (n * values.sum()))


@metric("entropy", better="neither", reference="Bhatt et al. 2020, arXiv:2005.00631, where it is called complexity")
def entropy(heat: Array) -> float:
    """How spread out the heat is, in nats: 0 for one pixel, log(number of pixels) when all hold the same."""
    values = np.abs(heat).ravel()
    if not values.any():
        raise UndefinedError("the map is empty: nothing is spread over it")
    shares = values / values.max()
    shares = shares[shares > 0] / shares.sum()
    return float(-(shares * np.log(shares)).sum())


@metric("complexity", better="neither", reference="Poppi et al. 2021, arXiv:2104.10252: the L1 norm of the map")
def complexity(heat: Array) -> float:
    """How much of the picture the map marks: the mean of the map divided by its maximum, 0 to 1.

    The map is divided by its maximum, where the authors' maps are also moved so that their minimum is 0.
    """
    return float(scaled(heat).mean())


def scaled(heat: Array) -> Array:
    """The map's positive part divided by its maximum, 0 to 1."""
    if not heat.max() > 0:
        raise UndefinedError("the map is empty: it has no positive value")
    found: Array = np.maximum(heat, 0) / heat.max()
    return found


def correlation(one: Array, other: Array) -> float:
    """Pearson's correlation of two maps, -1 to 1; undefined where one is constant."""
    if one.shape != other.shape:
        raise MetricError(f"maps of {one.shape} and {other.shape} can't be compared; give both one size")
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        raise UndefinedError("a constant map has no correlation with another")
    a, b = (values.ravel() / np.abs(values).max() for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1, 1))


def spearman(one: Array, other: Array) -> float:
    """Spearman's rank correlation of two maps, -1 to 1; equal values share their mean rank."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        raise UndefinedError("a constant map has no order of its pixels")
    return correlation(_ranked(one), _ranked(other))


def likeness(one: Array, other: Array) -> float:
    """Spearman's correlation of two maps on whatever grids, both enlarged to the finer rows and columns."""
    size = (max(one.shape[0], other.shape[0]), max(one.shape[1], other.shape[1]))
    return spearman(enlarged(one, size), enlarged(other, size))


def _ranked(values: Array) -> Array:
    _, place, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place].reshape(values.shape)


def ssim(one: Array, other: Array) -> float:
    """Structural similarity of two maps on a scale of -1 to 1 (Wang et al. 2004: Gaussian window, sigma 1.5, 11 pixels).

    Both should be divided by their largest absolute value first. At least 11 x 11.
    """
    if one.shape != other.shape or min(one.shape) < 11:
        raise MetricError(f"structural similarity needs two maps of one size, at least 11 x 11, not {one.shape}")
    bell = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    bell = bell / bell.sum()
    window = torch.from_numpy(np.outer(bell, bell))[None, None]
    a, b = torch.from_numpy(one), torch.from_numpy(other)
    means = F.conv2d(torch.stack([a, b, a * a, b * b, a * b])[:, None], window)[:, 0]
    ma, mb = means[0], means[1]
    va, vb, cov = means[2] - ma * ma, means[3] - mb * mb, means[4] - ma * mb
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return float(((2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean())


def enlarged(grid: Array, size: tuple[int, int]) -> Array:
    """A map (h, w) on (H, W) pixels: bilinear between cell centres, as `align_corners=False`, in float64.

    Interpolated as a + t (b - a), so that cells of one value stay exactly equal and tie.
    """
    found = np.asarray(grid, np.float64)
    for axis in (0, 1):
        cells = found.shape[axis]
        at = np.clip((np.arange(size[axis]) + 0.5) * (cells / size[axis]) - 0.5, 0, cells - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, cells - 1)
        share = (at - low).reshape(-1, 1) if axis == 0 else (at - low)
        a, b = found.take(low, axis), found.take(high, axis)
        found = a + share * (b - a)
    return found


def random_map(size: tuple[int, int], seed: int = 0) -> Array:
    """A map that knows nothing: a random value in 0..1 for each cell. Made at a method's grid it is as coarse as its maps."""
    return np.random.default_rng(seed).random(size)


def centred_map(size: tuple[int, int]) -> Array:
    """A map that knows only where photographers put things: a Gaussian in the middle, a quarter of the sides as sigma."""
    y, x = (np.exp(-(((np.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * 0.25**2)) for n in size)
    return np.outer(y, x)
