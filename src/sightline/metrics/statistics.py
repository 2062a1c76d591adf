"""How sure a number over many images is, and whether two methods differ by more than chance.

Undefined values are NaN on the way in and are never taken as 0: they are left out, and counted where there is a record
that can say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from sightline._optional import optional
from sightline.errors import MetricError, NonFiniteError

Array = np.ndarray[Any, np.dtype[np.float64]]
Better = Literal["higher", "lower"]

DRAWS = 10_000
_ALL_SIGNS = 12  # pairs up to which every one of the 2^n sign patterns is tried
_CELLS = 1 << 20  # numbers held at once by the draws: 12 MB


@dataclass(frozen=True)
class Interval:
    """A mean over images and how far it could be off.

    Attributes:
        mean: of the defined values, in their unit; None where there is none.
        low: lower end of the interval; None with fewer than two values, since a single picture has no interval.
        high: upper end, as `low`.
        count: images with a value.
        undefined: images without one, left out of the mean.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int
    undefined: int


@dataclass(frozen=True)
class Paired:
    """How much one method differs from another on the same images.

    Attributes:
        difference: mean of first minus second, in the unit of the values; None without a pair.
        low: lower end of the interval of the difference; None with fewer than two pairs.
        high: upper end, as `low`.
        p: how often chance alone gives a difference at least as large, either way; None with fewer than two pairs.
        count: images where both methods have a value.
        undefined: images left out because one of the two has none.
    """

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    count: int
    undefined: int


@dataclass(frozen=True)
class Friedman:
    """Whether several methods differ at all, and by how much two mean ranks must differ to be told apart.

    Attributes:
        mean_ranks: one per method, 1 is best; NaN without a complete image.
        p: of the Friedman test; None with fewer than three methods or two complete images.
        critical_difference: Nemenyi's, in ranks; None as `p`.
        count: images where every method has a value.
        undefined: images left out because some method has none.
    """

    mean_ranks: tuple[float, ...]
    p: float | None
    critical_difference: float | None
    count: int
    undefined: int


def wilson(right: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share, such as that of pictures named rightly: (low, high), 0 to 1.

    Args:
        right: how many.
        count: of how many, 1 or more.
        level: how often such an interval holds the true share, above 0 and below 1.

    Raises:
        MetricError: a number is out of its range.

    Reference:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927, without correction
        for continuity. It has a width also where none or all are right.
    """
    if not 0 <= right <= count or count < 1 or not 0 < level < 1:
        raise MetricError(
            f"{right} of {count} at level {level}; expected 0 to count, a count of 1 or more, a level inside 0..1"
        )
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Any, *, seed: int = 0, draws: int = DRAWS, level: float = 0.95) -> Interval:
    """The mean over images with its interval.

    Draws N of the N images with replacement again and again; the interval holds the middle `level` of the drawn means.

    Args:
        values: (N,), one number per image, NaN where undefined.
        seed: of the draws; the same seed gives the same interval.
        draws: how often, 1,000 or more for two digits of the ends.
        level: share of the drawn means inside, above 0 and below 1.

    Raises:
        MetricError: the values are no list of numbers, or an option is out of its range.
        NonFiniteError: a value is infinite.

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3, the percentile interval. It covers
        less than it says with few images (about 0.90 for 0.95 with ten); no correction is made.
    """
    given = _numbers(values, 1)
    _check(seed, draws, level)
    known = given[~np.isnan(given)]
    missing = len(given) - len(known)
    if len(known) == 0:
        return Interval(None, None, None, 0, missing)
    # Taken from the first value on, so that equal values give an interval of exactly no width.
    origin = known[0]
    offsets = known - origin
    mean = float(origin + offsets.mean())
    if len(known) == 1:
        return Interval(mean, None, None, 1, missing)
    tail = (1 - level) / 2
    low, high = origin + np.quantile(_drawn_means(offsets, seed, draws), [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(known), missing)


def paired(a: Any, b: Any, *, seed: int = 0, draws: int = DRAWS, level: float = 0.95) -> Paired:
    """The mean difference of two methods on the same images, with its interval and a two-sided randomisation test.

    If the methods were alike, each image's difference d_i could as well have the other sign. p is the share of sign
    patterns s for which |sum s_i d_i| >= |sum d_i|: up to 12 pairs of all 2^n; with more, of `draws` random ones and
    the one seen, (hits + 1) / (draws + 1), which is never 0.

    Args:
        a: (N,), one number per image of the first method, NaN where undefined.
        b: (N,), of the second method on the same images.
        seed: of the draws.
        draws: how many resamples for the interval, and how many sign patterns where not all are tried.
        level: as in `bootstrap`.

    Raises:
        MetricError: the two have different lengths, or as in `bootstrap`.
        NonFiniteError: a value is infinite.

    Reference:
        Fisher, The Design of Experiments, 1935, section 21, the test; Phipson and Smyth, Permutation p-values should
        never be zero, 2010, the estimate (b + 1) / (m + 1). Sums that differ by no more than rounding count as equal.
    """
    first, second = _numbers(a, 1), _numbers(b, 1)
    if len(first) != len(second):
        raise MetricError(f"{len(first)} and {len(second)} values can't be paired; expected one per image from both")
    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    differences = first - second
    mean = bootstrap(differences, seed=seed, draws=draws, level=level)
    p = None
    if len(differences) > 1:
        size = len(differences) * float(np.abs(first).sum() + np.abs(second).sum())
        p = _sign_flips(differences, 4 * np.finfo(np.float64).eps * size, seed, draws)
    return Paired(mean.mean, mean.low, mean.high, p, mean.count, int((~both).sum()))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values raised for having asked several questions at once.

    The i-th smallest of m becomes the largest of (m - k + 1) p_(k) over k <= i, at most 1. Call different what then
    lies at alpha or below, and with probability 1 - alpha or more none of it is alike.

    Args:
        p_values: each 0 to 1; None where no test could be made, which stays None and counts as no question.

    Raises:
        MetricError: a value is no probability.

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6, 1979; as adjusted p values.
    """
    for p in p_values:
        if p is not None and not 0 <= p <= 1:
            raise MetricError(f"p value {p}; expected 0 to 1, or None where there is none")
    asked = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for before, (p, place) in enumerate(asked):
        largest = max(largest, min(1.0, (len(asked) - before) * p))
        adjusted[place] = largest
    return adjusted


def ranks(table: Any, better: Better = "higher") -> Array:
    """Which place each method takes on average over the images.

    Args:
        table: (N, M), one row per image and one column per method, NaN where undefined. Rows with a NaN are left out.
        better: whether higher or lower values are.

    Returns:
        (M,) mean ranks, 1 (best) to M; equal values share the mean of their places. NaN without a complete row.

    Raises:
        MetricError: the table has no two axes or no column, or `better` is neither.
        NonFiniteError: a value is infinite.
    """
    return _mean_ranks(_ranks_of_rows(_complete(_numbers(table, 2)), better))


def friedman(table: Any, better: Better = "higher", *, alpha: float = 0.05) -> Friedman:
    """Whether several methods differ on the same images, and how far apart two mean ranks must lie.

    With ranks r_ij, rank sums R_j and mean ranks over N images and M methods:
    chi2 = (M - 1) sum_j (R_j - N (M + 1) / 2)^2 / (sum_ij r_ij^2 - N M (M + 1)^2 / 4), M - 1 degrees of freedom;
    CD = q_alpha sqrt(M (M + 1) / (6 N)), q_alpha the studentised range for M and infinite freedom, divided by sqrt 2.

    Args:
        table: as in `ranks`.
        better: as in `ranks`.
        alpha: probability of telling any two methods apart that are alike, above 0 and below 1.

    Raises:
        MetricError: as in `ranks`, or `alpha` is out of its range.
        NonFiniteError: a value is infinite.
        MissingExtraError: scipy is not installed.

    Reference:
        Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006, section 3.2.2. He leaves
        ties uncorrected; the chi-square here has the correction of Conover, Practical Nonparametric Statistics, 1999,
        section 5.8, and is the same without ties. Where all methods are equal on every image, p is 1.
    """
    if not 0 < alpha < 1:
        raise MetricError(f"alpha is {alpha}; expected above 0 and below 1, such as 0.05")
    given = _numbers(table, 2)
    complete = _complete(given)
    placed = _ranks_of_rows(complete, better)
    count, methods = placed.shape
    p = critical = None
    if methods >= 3 and count >= 2:
        p = _friedman_p(placed)
        critical = _nemenyi_q(alpha, methods) * math.sqrt(methods * (methods + 1) / (6 * count))
    return Friedman(tuple(_mean_ranks(placed).tolist()), p, critical, count, len(given) - count)


def cliques(mean_ranks: Sequence[float] | Array, cd: float | None) -> list[tuple[int, ...]]:
    """Groups of methods that can't be told apart: bars of the critical difference diagram.

    Args:
        mean_ranks: (M,), 1 is best.
        cd: critical difference in ranks; two methods differ if their mean ranks lie at least so far apart.

    Returns:
        Indices of the methods of each group, best first; only groups of two or more that lie in no larger one. Nothing
        where `cd` is None: then nothing is known, neither that two methods differ nor that they don't.

    Raises:
        MetricError: a rank is NaN or `cd` is below 0.

    Reference:
        Demsar 2006, figure 1.
    """
    if cd is None:
        return []
    if not cd >= 0 or any(math.isnan(rank) for rank in mean_ranks):
        raise MetricError(f"critical difference {cd} and mean ranks {list(mean_ranks)}; expected 0 or more, and no NaN")
    order = sorted(range(len(mean_ranks)), key=lambda method: mean_ranks[method])
    groups: list[tuple[int, ...]] = []
    reached = 0
    for start, best in enumerate(order):
        end = start + sum(mean_ranks[other] - mean_ranks[best] < cd for other in order[start:])
        if end - start > 1 and end > reached:
            groups.append(tuple(order[start:end]))
            reached = end
    return groups


def _numbers(values: Any, axes: int) -> Array:
    """Float64 with this many axes, NaN allowed."""
    try:
        given = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MetricError(f"values of type {type(values).__name__}; expected numbers, NaN where undefined") from error
    if given.ndim != axes:
        expected = "one number per image" if axes == 1 else "a table of images by methods"
        raise MetricError(f"values of shape {given.shape}; expected {expected}")
    infinite = np.isinf(given)
    if infinite.any():
        images = tuple(np.unique(np.nonzero(infinite)[0]).tolist())
        raise NonFiniteError(f"{len(images)} images have an infinite value; expected NaN where undefined", images)
    return given


def _check(seed: int, draws: int, level: float) -> None:
    if seed < 0 or draws < 1 or not 0 < level < 1:
        raise MetricError(
            f"seed is {seed}, draws {draws} and level {level}; expected 0 or more, 1 or more, and above 0 and below 1"
        )


def _chunks(draws: int, n: int) -> Iterator[int]:
    """How many draws of n numbers to make at once, until all are made."""
    size = max(1, _CELLS // n)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _drawn_means(values: Array, seed: int, draws: int) -> Array:
    """Means of resamples with replacement, (draws,)."""
    n, random = len(values), np.random.default_rng(seed)
    return np.concatenate(
        [values[random.integers(0, n, (rows, n), dtype=np.uint32)].mean(axis=1) for rows in _chunks(draws, n)]
    )


def _sign_flips(differences: Array, rounding: float, seed: int, draws: int) -> float:
    """The p value; sums that differ by no more than `rounding` count as equal."""
    n, total = len(differences), differences.sum()

    def hits(flips: np.ndarray[Any, Any]) -> int:
        sums = total - 2 * (flips.astype(np.float64) @ differences)
        return int((np.abs(sums) >= abs(total) - rounding).sum())

    if n <= _ALL_SIGNS:
        return hits(np.arange(1 << n)[:, None] >> np.arange(n) & 1) / (1 << n)
    random = np.random.default_rng((seed, 1))  # apart from the resamples of the interval
    found = 0
    for rows in _chunks(draws, n):
        bits = np.frombuffer(random.bytes(rows * math.ceil(n / 8)), np.uint8).reshape(rows, -1)
        found += hits(np.unpackbits(bits, axis=1, count=n))
    return (found + 1) / (draws + 1)


def _complete(table: Array) -> Array:
    """Rows without NaN."""
    if table.shape[1] == 0:
        raise MetricError("the table has no column; expected one per method")
    kept: Array = table[~np.isnan(table).any(axis=1)]
    return kept


def _ranks_of_rows(table: Array, better: Better) -> Array:
    """Each row's ranks (N, M): half of those equal (itself among them) and all those better stand before."""
    if better not in ("higher", "lower"):
        raise MetricError(f"better={better!r}; expected higher or lower")
    ordered = -table if better == "higher" else table
    placed = np.empty_like(table)
    for method in range(table.shape[1]):
        own = ordered[:, method : method + 1]
        placed[:, method] = 0.5 + (ordered < own).sum(axis=1) + (ordered == own).sum(axis=1) / 2
    return placed


def _mean_ranks(placed: Array) -> Array:
    means: Array = placed.mean(axis=0) if len(placed) else np.full(placed.shape[1], np.nan)
    return means


def _friedman_p(placed: Array) -> float:
    stats = optional("scipy.stats", "evaluate", "comparing several methods")
    count, methods = placed.shape
    spread = (placed**2).sum() - count * methods * (methods + 1) ** 2 / 4
    if spread <= 0:  # sums of quarters, exact: all are tied on every image
        return 1.0
    between = ((placed.sum(axis=0) - count * (methods + 1) / 2) ** 2).sum()
    return float(stats.chi2.sf((methods - 1) * between / spread, methods - 1))


@lru_cache(maxsize=64)
def _nemenyi_q(alpha: float, methods: int) -> float:
    return float(
        optional("scipy.stats", "evaluate", "comparing several methods").studentized_range.ppf(
            1 - alpha, methods, np.inf
        )
    ) / math.sqrt(2)
