"""Slow, obvious reference implementations of maps that change the picture, for any function from a picture to a score.

They import nothing from the library under test. Only numpy, only float64, only loops. x is ONE picture (C, H, W).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def occlusion(score: Callable[[Array], float], x: Array, patch: int, stride: int, baseline: Array) -> Array:
    """(H, W): for every pixel, the mean fall of the score over the squares that cover it (Zeiler and Fergus 2014, 4.2).

    Squares begin at 0, stride, 2 stride, ... until one reaches the border, and are cut there. `baseline` is (C,).
    """
    channels, height, width = x.shape
    whole = score(x)
    starts = []
    for length in (height, width):
        along = [0]
        while along[-1] + patch < length:
            along.append(along[-1] + stride)
        starts.append(along)
    falls: list[list[list[float]]] = [[[] for _ in range(width)] for _ in range(height)]
    for top in starts[0]:
        for left in starts[1]:
            covered = np.array(x, dtype=np.float64)
            inside = [
                (i, j) for i in range(top, min(top + patch, height)) for j in range(left, min(left + patch, width))
            ]
            for i, j in inside:
                for channel in range(channels):
                    covered[channel, i, j] = baseline[channel]
            fall = whole - score(covered)
            for i, j in inside:
                falls[i][j].append(fall)
    return np.array([[sum(one) / len(one) for one in row] for row in falls])


# --- RISE ------------------------------------------------------------------------------------------------------------


def rise_mask(grid: Array, offset: tuple[int, int], size: tuple[int, int]) -> Array:
    """(H, W): the small grid (s, s) of 0 and 1, enlarged and cut out (Petsiuk et al. 2018, arXiv 1806.07421, 3.2).

    With cells of a = ceil(H / s) by b = ceil(W / s) pixels the grid is enlarged bilinearly to ((s + 1) a, (s + 1) b):
    pixels are squares (half-pixel centres) and edges are clamped. ``offset`` (0 to a - 1, 0 to b - 1) is the corner of
    the cut. Every pixel's expectation is that of a grid cell.

    The authors' code (eclique/RISE, explanations.py lines 16 to 30) has the same sizes and offsets. It enlarges with
    skimage's resize and mode "reflect", which mirrors about the CENTRE of the first and last cell instead of clamping:
    the outermost half cell then leans to the second cell (the outermost pixel to nearly half), so it differs there.
    """
    cells = len(grid)
    height, width = size
    tall, wide = math.ceil(height / cells), math.ceil(width / cells)
    mask = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = (i + offset[0] + 0.5) * cells / ((cells + 1) * tall) - 0.5
            x = (j + offset[1] + 0.5) * cells / ((cells + 1) * wide) - 0.5
            y, x = min(max(y, 0.0), cells - 1.0), min(max(x, 0.0), cells - 1.0)
            for row in range(cells):
                for column in range(cells):
                    share = max(1 - abs(y - row), 0.0) * max(1 - abs(x - column), 0.0)
                    mask[i, j] += share * grid[row, column]
    return mask


def rise(
    score: Callable[[Array], float], x: Array, masks: Sequence[Array], p: float, baseline: Array
) -> tuple[Array, Array]:
    """The map (H, W), (1 / (N p)) sum_n (f_n - mean f) M_n, and its standard error (arXiv 1806.07421, Eq. 6).

    f_n is the score of x M_n + baseline (1 - M_n). Eq. 6 has f_n alone (and black as the baseline); what is taken off,
    (mean f) (1 / (N p)) sum_n M_n, is what a model with the constant score mean f would get: the pattern of how often
    each pixel happened to be kept. The expectation is (N - 1) / N times the covariance of f and M, over p.

    The standard error is, per pixel, that of the mean of the N terms (f_n - mean f) M_n / p: their standard deviation
    with N - 1, over the square root of N. (That mean f is itself an estimate is not in it.) N is at least 2.
    """
    N = len(masks)
    if N < 2:
        raise ValueError("a standard error needs at least two masks")
    scores = [score(x * mask + baseline * (1 - mask)) for mask in masks]
    mean_score = math.fsum(scores) / N
    _, height, width = x.shape
    mean, error = np.zeros((height, width)), np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            terms = [(f - mean_score) * float(mask[i, j]) / p for f, mask in zip(scores, masks, strict=True)]
            mean[i, j] = math.fsum(terms) / N
            variance = math.fsum((term - mean[i, j]) ** 2 for term in terms) / (N - 1)
            error[i, j] = math.sqrt(variance) / math.sqrt(N)
    return mean, error


# --- regression over segments ----------------------------------------------------------------------------------------


def lime(
    score: Callable[[Array], float],
    x: Array,
    segments: Integers,
    kept: Integers,
    baseline: Array,
    width: float,
    ridge: float,
) -> tuple[Array, Array]:
    """(coefficients (d,), map (H, W)) of LIME for pictures (Ribeiro et al. 2016, arXiv 1602.04938).

    ``segments`` (H, W) are 0 ... d - 1; a row z of ``kept`` (N, d) says which are shown, the others show the baseline.
    Minimised over intercept a and coefficients c is sum_n w_n (f_n - a - z_n c)^2 + ridge sum_k c_k^2: the intercept
    is not penalised and the weights are not scaled. w = sqrt(exp(-D^2 / width^2)), D the cosine distance of z to the
    row of ones, 1 - sqrt(kept segments / d). A row of zeros has D = 1 (scikit-learn leaves its length at 0 and so its
    cosine). Every row of ``kept`` counts alike; the caller adds the row of ones.

    As marcotcr/lime has it: lime_image.py lines 120 and 121 for w, 203 to 207 for D (width 0.25), lime_base.py lines
    181 to 194 for the regression (ridge 1). The paper has no square root in w (its section 3.4), and chooses segments
    with a lasso first; that code keeps all of them unless asked for fewer. It puts the segment's mean colour where
    a segment is hidden, and its row 0 is the row of ones (line 254).
    """
    N, d = kept.shape
    scores = _scores(score, x, segments, kept, baseline)
    left = [[0.0] * (d + 1) for _ in range(d + 1)]
    right = [0.0] * (d + 1)
    for n in range(N):
        number = int(kept[n].sum())
        distance = 1.0 if number == 0 else 1 - math.sqrt(number / d)
        weight = math.sqrt(math.exp(-(distance**2) / width**2))
        row = [1.0] + [float(value) for value in kept[n]]  # the intercept comes first
        for r in range(d + 1):
            right[r] += weight * row[r] * scores[n]
            for k in range(d + 1):
                left[r][k] += weight * row[r] * row[k]
    for k in range(1, d + 1):
        left[k][k] += ridge
    coefficients = np.array(_solve(left, right)[1:])
    return coefficients, _painted(coefficients, segments)


def shapley(value: Callable[[frozenset[int]], float], d: int) -> Array:
    """(d,): sum over S without k of |S|! (d - |S| - 1)! / d! (value(S with k) - value(S)) (Shapley 1953)."""
    values = []
    for k in range(d):
        others = [other for other in range(d) if other != k]
        terms = []
        for size in range(d):
            share = math.factorial(size) * math.factorial(d - size - 1) / math.factorial(d)
            for members in itertools.combinations(others, size):
                S = frozenset(members)
                terms.append(share * (value(S | {k}) - value(S)))
        values.append(math.fsum(terms))
    return np.array(values)


def shapley_kernel(d: int, size: int) -> float:
    """(d - 1) / (binomial(d, size) size (d - size)), infinite for 0 and d (arXiv 1705.07874, Theorem 2)."""
    if size in (0, d):
        return math.inf
    return (d - 1) / (math.comb(d, size) * size * (d - size))


def kernel_shap(
    score: Callable[[Array], float],
    x: Array,
    segments: Integers,
    kept: Integers,
    weights: Sequence[float],
    baseline: Array,
) -> tuple[Array, Array]:
    """(values (d,), map (H, W)) of Kernel SHAP over segments (Lundberg and Lee 2017, arXiv 1705.07874, Theorem 2).

    Minimised over phi is sum_n w_n (f_n - f(baseline) - z_n phi)^2 with sum phi = f(x) - f(baseline): with
    phi_d = f(x) - f(baseline) - (the others) put in, a least squares problem in d - 1 unknowns. The rows with no or all
    segments kept say nothing beyond the two constraints and are left out, whatever their weight. With every other
    coalition once and the weights of ``shapley_kernel`` these are the Shapley values. With too few different rows for
    one solution: ValueError.

    shap/explainers/_kernel.py, solve, lines 738 to 786, does the same; beyond it, it chooses features with a lasso
    unless told not to (lines 703 to 732), takes the shortest solution where there are many (line 775), and sets values
    below 1e-10 to 0 (line 791). captum's kernel_shap.py has no constraints, but a weight of 1e6 for the two rows.
    """
    N, d = kept.shape
    whole, nothing = score(x), score(np.array(baseline, dtype=np.float64))
    difference = whole - nothing
    scores = _scores(score, x, segments, kept, baseline)
    left = [[0.0] * (d - 1) for _ in range(d - 1)]
    right = [0.0] * (d - 1)
    for n in range(N):
        if int(kept[n].sum()) in (0, d):
            continue
        z = [float(value) for value in kept[n]]
        row = [z[k] - z[d - 1] for k in range(d - 1)]
        target = scores[n] - nothing - z[d - 1] * difference
        for r in range(d - 1):
            right[r] += weights[n] * row[r] * target
            for k in range(d - 1):
                left[r][k] += weights[n] * row[r] * row[k]
    solved = _solve(left, right)
    values = np.array([*solved, difference - math.fsum(solved)])
    return values, _painted(values, segments)


def _scores(
    score: Callable[[Array], float], x: Array, segments: Integers, kept: Integers, baseline: Array
) -> list[float]:
    """The score of the picture of every row: x where its segment is kept, the baseline elsewhere."""
    _, height, width = x.shape
    scores = []
    for row in kept:
        shown = np.array(baseline, dtype=np.float64)
        for i in range(height):
            for j in range(width):
                if row[segments[i, j]] == 1:
                    shown[:, i, j] = x[:, i, j]
        scores.append(score(shown))
    return scores


def _painted(values: Array, segments: Integers) -> Array:
    """(H, W): every pixel has the value of its segment."""
    return np.array([[values[segment] for segment in row] for row in segments])


def _solve(left: list[list[float]], right: list[float]) -> list[float]:
    """The solution of left @ solution = right, by Gaussian elimination with the largest pivot of each column."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(left, right, strict=True)]
    largest = max((abs(value) for row in left for value in row), default=0.0)
    for column in range(n):
        pivot = max(range(column, n), key=lambda row: abs(rows[row][column]))
        if abs(rows[pivot][column]) <= 1e-13 * largest:
            raise ValueError("the equations have no single solution")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(column + 1, n):
            factor = rows[row][column] / rows[column][column]
            for k in range(column, n + 1):
                rows[row][k] -= factor * rows[column][k]
    solution = [0.0] * n
    for row in reversed(range(n)):
        known = sum(rows[row][k] * solution[k] for k in range(row + 1, n))
        solution[row] = (rows[row][n] - known) / rows[row][row]
    return solution


PERTURBATION_ORACLES: dict[str, Callable[..., Any]] = {
    "occlusion": occlusion,
    "rise": rise,
    "lime": lime,
    "kernel-shap": kernel_shap,
}
"""What proves each of these methods; methods/test_occlusion.py holds the first beside its method."""
