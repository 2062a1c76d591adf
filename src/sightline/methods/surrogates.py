"""Maps by a simple stand-in for the model: one number for each superpixel, fitted to the scores of pictures with some of them hidden.

x = the picture as the model receives it (1, C, H, W), x' = a baseline, f = the target's score of a picture. A coalition z says of
each of d superpixels whether it shows x (1) or x' (0), and f(z) is the score of that picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline._optional import optional
from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.errors import MethodError
from sightline.methods.baselines import Baseline, baseline_of
from sightline.methods.gradient_cams import at_least_single
from sightline.methods.registry import EXPECTED_SEGMENTS, MOST_SEGMENTS, method

Segments = int | Tensor
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Below this share of the scores' spread a linear stand-in says little about the model.
_POOR_FIT = 0.5


@method(
    "kernel-shap",
    needs="scores",
    signed=True,
    reference="Lundberg and Lee 2017, arXiv:1705.07874, theorem 2",
)
def kernel_shap(
    capture: Capture,
    probe: Probe,
    *,
    segments: Segments = 50,
    samples: int = 1000,
    baseline: Baseline = 0.0,
    seed: int = 0,
) -> Tensor:
    """Each superpixel's Shapley value: its fair share of what the picture adds to the score, so that the shares add up to all of it.

    Formula: the phi that minimises sum over coalitions z of w(|z|) (f(z) - f(x') - sum_j z_j phi_j)^2, with
    w(s) = (d - 1) / (C(d, s) s (d - s)), among those that add up to f(x) - f(x'). A pixel of the map has the phi of its superpixel.
    All coalitions are asked, and the values exact, where there are no more than `samples`; otherwise sizes are drawn by w, and each
    coalition is asked together with its complement.

    Args:
        segments: about how many superpixels (SLIC, of the model's input); or a tensor (H, W) of whole numbers, each pixel's superpixel.
        samples: pictures beside the whole one and the baseline, at most.
        baseline: x', what a hidden superpixel shows: a number or one for each channel, in the units of the model's input; black,
            white, mean, blur, random; or the file of a picture. 0 is the data's mean colour where the input is normalised by it.
        seed: of the coalitions and of a random baseline.

    Differs: captum asks a coalition that is drawn twice twice, draws no complements, and holds the sum by a large weight, so that it
    comes out nearly.
    """
    seen = _divided(capture.input, segments, baseline, seed, probe)
    rows, weights, drawn = _pairs(seen.count, samples, seed)
    # A pair says of z minus its mean what (f(z) - f(1 - z)) / 2 says: half as many equations, and the same solution.
    root = weights.sqrt()
    centred = rows.double() - rows.double().mean(dim=1, keepdim=True)
    solver = _solver(root[:, None] * centred, seen.count - 1, samples)
    ends = torch.tensor([[True], [False]]).expand(2, seen.count)
    scores = seen.scores(torch.cat([ends, rows, ~rows]), probe)
    rise = float(scores[0] - scores[1])
    shown, hidden = scores[2:].chunk(2)
    wanted = (shown - hidden) / 2 - rise * (rows.double().mean(dim=1) - 0.5)
    beyond = solver @ (root * wanted)
    values = beyond + rise / seen.count
    probe.details["rise"] = rise
    if drawn:
        # Pairs are drawn one independently of the other, so that their residuals say how far another draw would lead. A residual is
        # smaller than the error as far as its own pair drew the solution to itself (HC2).
        own = (solver * (root / weights)[None] * centred.T).sum(dim=0)
        if bool((own > 1 - 1e-9).any()):
            probe.notes.append(f"{samples:,} samples are too few for a standard error; ask for more (option samples)")
            return seen.map(values, probe)
        left = (wanted - centred @ beyond).square() / (1 - own)
        error = (solver.square() @ left).sqrt()
        probe.details["standard error"] = error[seen.labels].float().numpy()
        probe.notes.append(
            f"from {2 * len(rows):,} coalitions of {seen.count} superpixels the largest standard error is {float(error.max()):.2g}, and the "
            f"largest value {float(values.abs().max()):.2g}"
        )
    return seen.map(values, probe)


@method(
    "lime",
    needs="scores",
    signed=True,
    reference="Ribeiro et al. 2016, arXiv:1602.04938, eq. 1 and algorithm 1; marcotcr/lime",
)
def lime(
    capture: Capture,
    probe: Probe,
    *,
    segments: Segments = 50,
    samples: int = 1000,
    baseline: Baseline = 0.0,
    kept: float = 0.5,
    width: float = 0.25,
    ridge: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """How much each superpixel adds to the score in a linear stand-in for the model, fitted to pictures like this one.

    Formula: the beta that minimises sum_n w_n (f(z_n) - b - sum_j z_nj beta_j)^2 + ridge * sum_j beta_j^2, with
    w = exp(-D^2 / (2 width^2)) and D = 1 - sqrt(|z| / d), the cosine distance of z from the whole picture. The first z is the whole
    picture, and in the others each superpixel is left with probability `kept`. A pixel of the map has the beta of its superpixel.

    Args:
        segments: about how many superpixels (SLIC, of the model's input); or a tensor (H, W) of whole numbers, each pixel's superpixel.
        samples: N, how many z.
        baseline: x', what a hidden superpixel shows: a number or one for each channel, in the units of the model's input; black,
            white, mean, blur, random; or the file of a picture. 0 is the data's mean colour where the input is normalised by it.
        kept: the probability that a superpixel is left as it is.
        width: of the kernel: how fast pictures lose their say as more of them is hidden.
        ridge: what large values cost, which draws all towards 0; 0 for nothing.
        seed: of the z and of a random baseline.

    Differs: the weights are those of the authors' code; the paper has exp(-D^2 / width^2). That code finds superpixels by quickshift
    and paints a hidden one with its own mean colour. captum measures
    distances between pictures unless told otherwise, and fits with a penalty that makes most values 0.
    """
    seen = _divided(capture.input, segments, baseline, seed, probe)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(samples, seen.count, generator=generator) < kept
    drawn[0] = True
    rows, counts = torch.unique(drawn, dim=0, return_counts=True)
    distance = 1 - (rows.sum(dim=1).double() / seen.count).sqrt()
    weights = counts * (-(distance**2) / (2 * width**2)).exp()
    root = weights.sqrt()
    centred = rows.double() - weights @ rows.double() / weights.sum()
    solver = _solver(root[:, None] * centred, seen.count, samples, ridge)
    scores = seen.scores(rows, probe)
    scores = scores - scores[-1]  # equal scores are exactly 0
    wanted = scores - weights @ scores / weights.sum()
    values = solver @ (root * wanted)
    spread = weights @ wanted.square()
    fit = float(1 - weights @ (wanted - centred @ values).square() / spread) if spread > 0 else 1.0
    probe.details["fit"] = fit
    if fit < _POOR_FIT:
        probe.notes.append(
            f"the linear stand-in follows only {max(0.0, fit) * 100:.0f} % of what the score does when superpixels are hidden (weighted R^2): "
            "it is a poor likeness of the model here; kernel-shap needs no such likeness"
        )
    return seen.map(values, probe)


@dataclass(frozen=True, eq=False)
class _Divided:
    """A picture in superpixels.

    Attributes:
        x: (1, C, H, W).
        hidden: of the same shape, what a hidden superpixel shows.
        labels: (H, W), each pixel's superpixel, 0 to count - 1.
        count: d.
    """

    x: Tensor
    hidden: Tensor
    labels: Tensor
    count: int

    def scores(self, rows: Tensor, probe: Probe) -> Tensor:
        """f of coalitions (n, d), in float64 on the CPU."""
        places = self.labels.flatten().to(self.x.device)
        found = []
        for part in probe.steps(len(rows)):
            shown = rows[part].to(self.x.device).index_select(1, places).view(-1, 1, *self.labels.shape)
            found.append(probe.score(torch.where(shown, self.x, self.hidden)).double().cpu())
        return torch.cat(found)

    def map(self, values: Tensor, probe: Probe) -> Tensor:
        """The values (d,) laid out on their pixels (1, H, W), and kept."""
        probe.details["segments"] = self.labels.int().numpy()
        probe.details["coefficients"] = values.numpy()
        return values[self.labels][None].to(at_least_single(self.x))


def _divided(x: Tensor, segments: Segments, baseline: Baseline, seed: int, probe: Probe) -> _Divided:
    labels = _own(segments, x) if isinstance(segments, Tensor | np.ndarray) else superpixels(x, segments)
    found, labels = torch.unique(labels, return_inverse=True)
    if len(found) > MOST_SEGMENTS:
        raise MethodError(f"option segments has {len(found):,} superpixels; expected {MOST_SEGMENTS:,} at most")
    return _Divided(x, baseline_of(baseline, x, probe, seed), labels, len(found))


def _own(given: Tensor | np.ndarray[Any, Any], x: Tensor) -> Tensor:
    whole = given.dtype in _WHOLE if isinstance(given, Tensor) else given.dtype.kind in "iu"
    if tuple(given.shape) != tuple(x.shape[2:]) or not whole:
        raise MethodError(
            f"option segments is a tensor of shape {tuple(given.shape)} ({given.dtype}); expected {EXPECTED_SEGMENTS}, here of shape "
            f"{tuple(x.shape[2:])}"
        )
    return given.detach().cpu().long() if isinstance(given, Tensor) else torch.from_numpy(given.astype(np.int64))


def superpixels(x: Tensor, count: int) -> Tensor:
    """About `count` regions of even colour of a picture (1, C, H, W), as labels (H, W)."""
    segmentation = optional("skimage.segmentation", "superpixels", "Dividing a picture into superpixels")
    picture = x[0].double().cpu()
    low, high = picture.amin(dim=(1, 2), keepdim=True), picture.amax(dim=(1, 2), keepdim=True)
    stretched = (picture - low) / torch.where(high > low, high - low, 1)
    found = segmentation.slic(
        stretched.permute(1, 2, 0).numpy(),
        n_segments=min(count, picture[0].numel()),
        compactness=0.1,  # where each begins; then it follows the contrast of each region, so that noise stays in regions, too
        slic_zero=True,
        convert2lab=False,
        start_label=0,
        channel_axis=-1,
    )
    labels: Tensor = torch.from_numpy(found)
    return labels


def _pairs(count: int, samples: int, seed: int) -> tuple[Tensor, Tensor, int]:
    """Coalitions that stand for themselves and their complements (m, d), their weights, and how many were drawn (0: all are there).

    The first superpixel is shown in all of them, so that no pair comes twice.
    """
    sizes = torch.arange(1, count, dtype=torch.float64)
    of_size = 1 / (sizes * (count - sizes))  # the kernel times how many coalitions there are of a size
    if 2**count - 2 <= samples:
        numbers = torch.arange(2 ** (count - 1), 2**count - 1)
        rows = (numbers[:, None] >> torch.arange(count - 1, -1, -1)) % 2 == 1
        many = torch.tensor([math.comb(count, size) for size in range(1, count)], dtype=torch.float64)
        return rows, (of_size / many)[rows.sum(dim=1) - 1], 0
    drawn = samples // 2
    if drawn < count - 1:
        raise MethodError(_too_few(samples, count))
    generator = torch.Generator().manual_seed(seed)
    size = 1 + torch.multinomial(of_size, drawn, replacement=True, generator=generator)
    ranks = torch.rand(drawn, count, generator=generator).argsort(dim=1).argsort(dim=1)
    rows = ranks < size[:, None]
    rows, times = torch.unique(rows ^ ~rows[:, :1], dim=0, return_counts=True)
    return rows, times.double(), drawn


def _solver(system: Tensor, rank: int, samples: int, ridge: float = 0.0) -> Tensor:
    """The matrix that makes of a right-hand side (n,) the least-squares solution (d,) of the system (n, d), the shortest of them.

    Raises:
        MethodError: the system leaves more open than it may.
    """
    left, sizes, right = torch.linalg.svd(system, full_matrices=False)
    good = sizes > sizes[:1] * torch.finfo(sizes.dtype).eps * max(system.shape)
    if int(good.sum()) < rank:
        raise MethodError(_too_few(samples, system.shape[1]))
    left, sizes, right = left[:, good], sizes[good], right[good]
    found: Tensor = right.mT * (sizes / (sizes.square() + ridge)) @ left.mT
    return found


def _too_few(samples: int, count: int) -> str:
    return (
        f"{samples:,} samples are too few to tell {count:,} superpixels apart; ask for more (option samples) or for fewer "
        "superpixels (option segments)"
    )
