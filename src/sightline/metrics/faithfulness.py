"""Does the score follow the map? Each of these asks the model about pictures that were changed where the map says.

The model has never seen such pictures, and blurrier maps tend to win: read the figures beside those of a random and a centred map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import MetricError, UndefinedError
from sightline.metrics.imputation import impute
from sightline.metrics.maps import complexity, correlation, enlarged, scaled
from sightline.metrics.registry import Array, Curve, metric

Score = Callable[[Tensor], Tensor]
Answer = Callable[[Tensor], tuple[Tensor, Tensor]]
Explain = Callable[..., Array]
BATCH = 16


def order(heat: Array, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The pixels (H*W,) of a map from the most to the least important; those of one value in a random order."""
    ties = np.random.default_rng(seed).permutation(heat.size)
    return np.lexsort((ties, -heat.ravel()))


@metric(
    "deletion",
    better="lower",
    base="zeros of the normalised input",
    reference="Petsiuk et al. 2018, arXiv:1806.07421",
)
def deletion(heat: Array, x: Tensor, score: Score, *, step: int = 224, seed: int = 0) -> Curve:
    """How fast the score falls when pixels are taken away, the most important first: the area under the curve, in units of the score.

    Args:
        heat: (H, W).
        x: (1, C, H, W).
        score: pictures (N, C, H, W) -> (N,).
        step: pixels a step; the last step takes what is left.
        seed: of the order of pixels with equal heat.
    """
    return _replaced(heat, x, torch.zeros_like(x), score, step, seed)


@metric(
    "insertion",
    better="higher",
    base="the picture blurred (11 pixels, sigma 5)",
    reference="Petsiuk et al. 2018, arXiv:1806.07421, and the authors' blur",
)
def insertion(heat: Array, x: Tensor, score: Score, *, step: int = 224, seed: int = 0) -> Curve:
    """How fast the score rises when pixels come back into a blurred picture, the most important first: the area under the curve.

    Args: as for `deletion`.
    """
    return _replaced(heat, blurred(x), x, score, step, seed)


def _replaced(heat: Array, start: Tensor, end: Tensor, score: Score, step: int, seed: int) -> Curve:
    """Scores while the pixels of `start` are exchanged for those of `end` in the order of the map."""
    _check_size(heat, start)
    if not step >= 1:
        raise MetricError(f"option step is {step}; expected at least 1 pixel")
    rank = ranks(heat, seed).to(start.device)
    counts = np.minimum(np.arange(-(-heat.size // step) + 1) * step, heat.size)
    between = [score(torch.where(rank < k, end, start)) for k in _slices(counts[1:-1], start)]
    scores = _numbers([score(start), *between, score(end)])
    area = (scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)
    return Curve(counts / heat.size, scores, float(area))


def ranks(heat: Array, seed: int = 0) -> Tensor:
    """The place (H, W) of each pixel in `order`."""
    rank = np.empty(heat.size, np.int32)
    rank[order(heat, seed)] = np.arange(heat.size, dtype=np.int32)
    return torch.from_numpy(rank.reshape(heat.shape))


def relative(curve: Curve) -> Array:
    """The curve with 0 for the score of the picture where nothing is left, and 1 for the whole picture's.

    For a deletion curve; an insertion curve begins where nothing is there, so give `Curve` with its scores turned round.
    """
    whole, nothing = curve.scores[0], curve.scores[-1]
    if whole == nothing:
        raise UndefinedError("the whole picture and the emptied one have the same score: nothing to compare with")
    found: Array = (curve.scores - nothing) / (whole - nothing)
    return found


def blurred(x: Tensor) -> Tensor:
    """(N, C, H, W) through the blur of RISE's authors: a Gaussian of sigma 5 folded back into 11 pixels, zeros outside."""
    at = np.arange(-20, 21)
    bell = np.exp(-(at**2) / 50.0)
    bell = bell / bell.sum()
    line = np.zeros(11)
    for place, weight in zip(at + 5, bell, strict=True):  # reflected at both ends: d c b a | a b c d | d c b a
        inside = place % 22
        line[inside if inside < 11 else 21 - inside] += weight
    weights = torch.from_numpy(line).to(x)
    channels = x.shape[1]
    down = F.conv2d(x, weights.view(1, 1, 11, 1).expand(channels, -1, -1, -1), padding=(5, 0), groups=channels)
    return F.conv2d(down, weights.view(1, 1, 1, 11).expand(channels, -1, -1, -1), padding=(0, 5), groups=channels)


SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@metric(
    "road-morf",
    better="lower",
    base="noisy linear imputation from what is left",
    reference="Rong et al. 2022, arXiv:2202.00449: most relevant first",
)
def road_morf(
    heat: Array, x: Tensor, answer: Answer, *, shares: tuple[float, ...] = SHARES, noise: float = 0.01, seed: int = 0
) -> Curve:
    """The score after the most important shares of the picture were removed and filled in from what is left: the mean over the shares.

    Args:
        heat: (H, W).
        x: (1, C, H, W).
        answer: pictures (N, C, H, W) -> their scores (N,), and whether the target is their first class (N,).
        shares: of the pixels, exactly so many to the nearest pixel.
        noise: standard deviation of what is added to filled-in pixels, in units of the normalised input.
        seed: of the noise, and of the order of pixels with equal heat.
    """
    return _road(heat, x, answer, shares, noise, seed, most_relevant_first=True)


@metric(
    "road-lerf",
    better="higher",
    base="noisy linear imputation from what is left",
    reference="Rong et al. 2022, arXiv:2202.00449: least relevant first",
)
def road_lerf(
    heat: Array, x: Tensor, answer: Answer, *, shares: tuple[float, ...] = SHARES, noise: float = 0.01, seed: int = 0
) -> Curve:
    """The score after the least important shares of the picture were removed and filled in from what is left: it should stay. The mean over the shares.

    Args: as for `road_morf`.
    """
    return _road(heat, x, answer, shares, noise, seed, most_relevant_first=False)


def _road(
    heat: Array,
    x: Tensor,
    answer: Answer,
    shares: tuple[float, ...],
    noise: float,
    seed: int,
    most_relevant_first: bool,
) -> Curve:
    _check_size(heat, x)
    counts = [round(share * heat.size) for share in shares]
    if not counts or min(counts) < 1 or max(counts) >= heat.size:
        raise MetricError(f"option shares is {shares}; expected shares of the picture between 0 and 1")
    rank = ranks(heat, seed)
    limits = torch.tensor(counts, dtype=torch.int32)[:, None, None]
    missing = (rank < limits if most_relevant_first else rank >= heat.size - limits).to(x.device)
    rng = np.random.default_rng(seed)
    scores, hits = [], []
    for part in torch.split(missing, BATCH):
        speckled = torch.from_numpy(noise * rng.standard_normal((len(part), *x.shape[1:]))).to(x)
        values, first = answer(impute(x[0], part) + speckled * part[:, None])
        scores.append(values)
        hits.append(first)
    found = _numbers(scores)
    return Curve(np.array(counts) / heat.size, found, float(found.mean()), _numbers(hits))


@metric(
    "average-drop",
    better="lower",
    base="the picture times the map",
    reference="Chattopadhay et al. 2018, arXiv:1710.11063, sec. 4",
)
def average_drop(heat: Array, x: Tensor, score: Score) -> float:
    """By what share the score falls when only what the map marks is left of the picture, 0 to 1; 0 where it rises.

    Args:
        heat: (H, W); its positive part divided by its maximum is multiplied with the normalised input.
        x: (1, C, H, W).
        score: pictures -> probabilities.
    """
    whole, left = _chances(heat, x, score)
    if whole == 0:
        raise UndefinedError("the whole picture has a score of 0, from which nothing can drop")
    return max(0.0, whole - left) / whole


@metric(
    "increase-in-confidence",
    better="higher",
    base="the picture times the map",
    reference="Chattopadhay et al. 2018, arXiv:1710.11063, sec. 4",
)
def increase_in_confidence(heat: Array, x: Tensor, score: Score) -> float:
    """Whether the score rises when only what the map marks is left of the picture: 1 or 0.

    Args: as for `average_drop`.
    """
    whole, left = _with_and_without(heat, x, score)
    return float(left > whole)


@metric(
    "average-gain",
    better="higher",
    base="the picture times the map",
    reference="Zhang et al. 2024, arXiv:2301.07002",
)
def average_gain(heat: Array, x: Tensor, score: Score) -> float:
    """By what share of what is missing to 1 the score rises when only what the map marks is left of the picture, 0 to 1.

    Args: as for `average_drop`.
    """
    whole, left = _chances(heat, x, score)
    if whole == 1:
        raise UndefinedError("the whole picture has a probability of 1, and nothing can be gained")
    return max(0.0, left - whole) / (1 - whole)


@metric("adcc", better="higher", base="the picture times the map", reference="Poppi et al. 2021, arXiv:2104.10252")
def adcc(heat: Array, x: Tensor, score: Score, explain: Explain) -> float:
    """Three wishes in one figure, 0 to 1: what is left gives the same map, the map is small, and the score does not drop.

    The harmonic mean of coherency ((Pearson's correlation of both maps + 1) / 2; 0 where one is constant, as the authors' code
    has it), 1 - complexity, and 1 - average drop.

    Args:
        heat: (H, W).
        x: (1, C, H, W).
        score: pictures -> probabilities.
        explain: pictures -> maps (N, h, w).
    """
    drop = average_drop(heat, x, score)
    again = enlarged(explain(_masked(heat, x), signed=False)[0], heat.shape)
    try:
        coherency = (correlation(heat, again) + 1) / 2
    except UndefinedError:
        coherency = 0.0
    parts = (coherency, 1 - complexity(heat), 1 - drop)
    return 0.0 if min(parts) <= 0 else 3 / sum(1 / one for one in parts)


def _with_and_without(heat: Array, x: Tensor, score: Score) -> tuple[float, float]:
    """The scores of the whole picture and of what the map leaves of it."""
    return float(score(x)[0]), float(score(_masked(heat, x))[0])


def _chances(heat: Array, x: Tensor, score: Score) -> tuple[float, float]:
    """The same, where they can be probabilities; of a margin or a logit no share can be told."""
    whole, left = _with_and_without(heat, x, score)
    if not (0 <= whole <= 1 and 0 <= left <= 1):
        raise UndefinedError(f"the score is no probability ({whole:.3g} and {left:.3g}), so that it has no share")
    return whole, left


def _masked(heat: Array, x: Tensor) -> Tensor:
    _check_size(heat, x)
    return x * torch.from_numpy(scaled(heat)).to(x)


@metric(
    "infidelity",
    better="lower",
    base="a square of zeros of the normalised input",
    reference="Yeh et al. 2019, arXiv:1901.09392, definition 2.1, with square removal",
)
def infidelity(
    heat: Array, x: Tensor, score: Score, *, samples: int = 50, size: float = 0.25, rescaled: bool = True, seed: int = 0
) -> float:
    """How badly the heat in a square foretells by how much the score falls without that square: the mean squared error.

    The heat counts as contributions, so that a square's is the sum of its pixels (the paper's I times Phi for a perturbation that
    removes, with the input already multiplied in).

    Args:
        heat: (H, W).
        x: (1, C, H, W).
        score: pictures -> (N,).
        samples: squares, anywhere in the picture.
        size: side of a square as a share of the picture's shorter side.
        rescaled: multiply the heat by the factor that fits best (the authors' code; captum's `normalize`): maps have no unit.
        seed: of the squares.
    """
    _check_size(heat, x)
    h, w = heat.shape
    if not 0 < size <= 1 or samples < 2:
        raise MetricError(f"samples {samples} and size {size}; expected at least 2, and above 0 and at most 1")
    side = max(1, round(size * min(h, w)))
    rng = np.random.default_rng(seed)
    tops, lefts = rng.integers(h - side + 1, size=samples), rng.integers(w - side + 1, size=samples)
    told = np.array([heat[top : top + side, left : left + side].sum() for top, left in zip(tops, lefts, strict=True)])
    whole = float(score(x)[0])
    found = []
    for start in range(0, samples, BATCH):
        pictures = x.repeat(len(tops[start : start + BATCH]), 1, 1, 1)
        for picture, top, left in zip(pictures, tops[start:], lefts[start:], strict=False):
            picture[:, top : top + side, left : left + side] = 0
        found.append(score(pictures))
    return square_error(told, whole - _numbers(found), rescaled)


def square_error(told: Array, seen: Array, rescaled: bool) -> float:
    """The mean of (factor x told - seen)^2; the factor is 1, or the one that fits best."""
    if not rescaled:
        return float(((told - seen) ** 2).mean())
    if not told.any():
        raise UndefinedError("the map says 0 for every square: no factor fits it to the score")
    told = told / np.abs(told).max()
    return float((((told @ seen) / (told @ told) * told - seen) ** 2).mean())


@metric(
    "max-sensitivity",
    better="lower",
    base="the picture plus uniform noise",
    reference="Yeh et al. 2019, arXiv:1901.09392, definition 3.1",
)
def max_sensitivity(x: Tensor, explain: Explain, *, radius: float = 0.02, samples: int = 10, seed: int = 0) -> float:
    """By how much the map changes, at most, when the picture hardly does: the distance as a share of the map's own length.

    Args:
        x: (1, C, H, W).
        explain: pictures -> maps (N, h, w).
        radius: of the noise, uniform between -radius and radius in units of the normalised input (captum's default).
        samples: noisy pictures.
        seed: of the noise.
    """
    if not radius > 0:
        raise MetricError(f"option radius is {radius}; expected above 0: without noise nothing is asked")
    noise = np.random.default_rng(seed).uniform(-radius, radius, (samples, *x.shape[1:]))
    own = explain(x, signed=False)[0]
    length = float(np.linalg.norm(own))
    if length == 0:
        raise UndefinedError("the map is empty: a change of it has no share")
    others = np.concatenate([explain(x + torch.from_numpy(one).to(x), signed=False) for one in _chunks(noise)])
    return float(np.sqrt(((others - own) ** 2).sum(axis=(1, 2))).max() / length)


def _chunks(values: Array) -> Iterator[Array]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]


def _slices(counts: Array, x: Tensor) -> Iterator[Tensor]:
    """Counts of pixels, as many at a time as pictures go into one forward, to compare with ranks (H, W)."""
    for part in _chunks(counts):
        yield torch.from_numpy(part.astype(np.int32)).to(x.device)[:, None, None, None]


def _numbers(found: list[Tensor]) -> Array:
    return torch.cat(found).double().cpu().numpy()


def _check_size(heat: Array, x: Tensor) -> None:
    if tuple(x.shape[2:]) != heat.shape or len(x) != 1:
        raise MetricError(f"the map is {heat.shape} and the input {tuple(x.shape)}; expected (H, W) and (1, C, H, W)")
