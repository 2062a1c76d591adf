"""Slow, obvious reference implementations of measures of explanations, written from their definitions.

They import nothing from the library under test. Only numpy, only float64. A heat map is (H, W), a picture x (C, H, W),
a mask (H, W) bool; i runs over rows, j over columns. ``score`` is a plain callable from one picture to a float. A
measure that has no value by its definition raises ``ValueError("undefined: ...")``; any other ``ValueError`` is a call
that makes no sense. NaN in a heat map means unseen where a docstring says so and is refused everywhere else.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Score = Callable[[Array], float]


# --- shared parts ----------------------------------------------------------------------------------------------------


def _undefined(reason: str) -> ValueError:
    return ValueError(f"undefined: {reason}")


def _float64(array: Array, dimensions: int) -> Array:
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != dimensions:
        raise ValueError(f"need {dimensions} dimensions, not shape {array.shape}")
    return array


def _finite(array: Array, dimensions: int) -> Array:
    array = _float64(array, dimensions)
    if not all(math.isfinite(value) for value in _values(array)):
        raise ValueError("need finite values")
    return array


def _values(array: Array) -> list[float]:
    """The values of an array of any shape, row-major."""
    return [float(value) for value in np.asarray(array, dtype=np.float64).ravel()]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _positive(heat: Array) -> Array:
    """The positive part of a heat map; negative heat and NaN become 0."""
    heat = _float64(heat, 2)
    height, width = heat.shape
    positive = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            if heat[i, j] > 0:
                positive[i, j] = heat[i, j]
    return positive


def _pixels(mask: Mask, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The (row, column) of every pixel of a mask, which must fit the heat map."""
    if mask.shape != shape:
        raise ValueError(f"the mask is {mask.shape}, the heat map {shape}")
    height, width = mask.shape
    return [(i, j) for i in range(height) for j in range(width) if mask[i, j]]


def _pearson(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson correlation of two lists, neither of them constant."""
    deviations = []
    for values in (first, second):
        mean = _mean(values)
        differences = [value - mean for value in values]
        largest = max(abs(difference) for difference in differences)
        deviations.append([difference / largest for difference in differences])  # no square underflows to 0
    a, b = deviations
    covariance = math.fsum(p * q for p, q in zip(a, b, strict=True))
    return covariance / math.sqrt(math.fsum(p * p for p in a) * math.fsum(q * q for q in b))


def _constant(values: Sequence[float]) -> bool:
    return min(values) == max(values)


# --- removing and revealing pixels -----------------------------------------------------------------------------------


def ranking(heat: Array, seed: int) -> npt.NDArray[np.int64]:
    """Flat pixel indices, hottest first; ties in the order of a seeded random permutation."""
    heats = _values(_finite(heat, 2))
    noise = [int(value) for value in np.random.default_rng(seed).permutation(len(heats))]
    return np.array(sorted(range(len(heats)), key=lambda pixel: (-heats[pixel], noise[pixel])), dtype=np.int64)


def blurred(x: Array) -> Array:
    """RISE's blur: each channel correlated with ``rise_kernel()``, zeros outside the picture."""
    x = _float64(x, 3)
    kernel = rise_kernel()
    channels, height, width = x.shape
    result = np.zeros(x.shape)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                total = 0.0
                for dy in range(-5, 6):
                    for dx in range(-5, 6):
                        if 0 <= i + dy < height and 0 <= j + dx < width:
                            total += kernel[dy + 5, dx + 5] * x[c, i + dy, j + dx]
                result[c, i, j] = total
    return result


def rise_kernel() -> Array:
    """11x11: a unit impulse in the middle, Gaussian-smoothed (sigma 5, radius 20) with mirrored borders."""
    kernel = np.zeros((11, 11))
    kernel[5, 5] = 1.0
    for row in range(11):
        kernel[row, :] = _smoothed_line(_values(kernel[row, :]))
    for column in range(11):
        kernel[:, column] = _smoothed_line(_values(kernel[:, column]))
    return kernel


def _smoothed_line(line: Sequence[float]) -> list[float]:
    """Gaussian smoothing of one line, sigma 5, cut at distance 20, border d c b a | a b c d | d c b a."""
    weights = {d: math.exp(-d * d / 50) for d in range(-20, 21)}
    total = math.fsum(weights.values())
    mirrored = [*line, *reversed(line)]  # repeats for ever in both directions
    return [
        math.fsum(weight / total * mirrored[(position + d) % len(mirrored)] for d, weight in weights.items())
        for position in range(len(line))
    ]


def deletion(heat: Array, x: Array, score: Score, step: int, seed: int) -> list[float]:
    """Scores while the hottest pixels are set to 0, ``step`` more each time, from the untouched picture to all 0."""
    return _replacing(heat, x, np.zeros(x.shape), score, step, seed)


def insertion(heat: Array, x: Array, score: Score, step: int, seed: int) -> list[float]:
    """Scores while the hottest pixels are put back, ``step`` more each time, from the blurred to the untouched picture."""
    return _replacing(heat, blurred(x), x, score, step, seed)


def _replacing(heat: Array, start: Array, end: Array, score: Score, step: int, seed: int) -> list[float]:
    """Scores of pictures 0..ceil(HW / step); picture i has the first min(i * step, HW) ranked pixels taken from ``end``."""
    height, width = heat.shape
    if start.shape[1:] != heat.shape:
        raise ValueError(f"the picture is {start.shape}, the heat map {heat.shape}")
    if step < 1:
        raise ValueError(f"step must be at least 1, not {step}")
    order = ranking(heat, seed)
    scores = []
    for i in range(math.ceil(height * width / step) + 1):
        picture = np.array(start, dtype=np.float64)
        for pixel in order[: min(i * step, height * width)]:
            row, column = divmod(int(pixel), width)
            picture[:, row, column] = end[:, row, column]
        scores.append(float(score(picture)))
    return scores


def auc(scores: Sequence[float]) -> float:
    """Area under the curve by trapezoids, the whole curve being 1 wide."""
    if len(scores) < 2:
        raise _undefined("a curve needs two points")
    return (math.fsum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


def relative(scores: Sequence[float], original: float, base: float) -> list[float]:
    """Scores with the untouched picture's (``original``) at 1 and the fully replaced one's (``base``) at 0."""
    if original == base:
        raise _undefined("replacing the whole picture does not change the score")
    return [(score - base) / (original - base) for score in scores]


def road_missing(heat: Array, share: float, seed: int, most_relevant_first: bool) -> Mask:
    """The round(share * HW) pixels ROAD removes: the first of the ranking (MoRF) or the last of it (LeRF)."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, not {share}")
    order = [int(pixel) for pixel in ranking(heat, seed)]
    if not most_relevant_first:
        order.reverse()
    missing = np.zeros(heat.shape, dtype=np.bool_)
    for pixel in order[: round(share * len(order))]:
        missing[divmod(pixel, heat.shape[1])] = True
    return missing


def impute(x: Array, missing: Mask) -> Array:
    """ROAD's linear imputation without noise: each missing pixel is the weighted mean of its neighbours in the picture."""
    x = _float64(x, 3)
    channels, height, width = x.shape
    pixels = _pixels(missing, (height, width))
    if len(pixels) == height * width:
        raise _undefined("every pixel is missing")
    matrix = np.zeros((height * width, height * width))
    for i in range(height):
        for j in range(width):
            matrix[i * width + j, i * width + j] = 1.0
    for i, j in pixels:
        weights = _neighbours(i, j, height, width)
        total = math.fsum(weights.values())
        for (row, column), weight in weights.items():
            matrix[i * width + j, row * width + column] = -weight / total
    result = np.array(x)
    for c in range(channels):
        known = np.array([0.0 if missing[i, j] else x[c, i, j] for i in range(height) for j in range(width)])
        solution = np.linalg.solve(matrix, known)
        for i, j in pixels:
            result[c, i, j] = solution[i * width + j]
    return result


def _neighbours(i: int, j: int, height: int, width: int) -> dict[tuple[int, int], float]:
    """The up to 8 neighbours of a pixel inside the picture: 1/6 for a direct, 1/12 for a diagonal one."""
    weights = {}
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if (dy, dx) != (0, 0) and 0 <= i + dy < height and 0 <= j + dx < width:
                weights[i + dy, j + dx] = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
    return weights


# --- the score of the masked picture ---------------------------------------------------------------------------------


def masked(x: Array, heat: Array) -> Array:
    """The explained part of the picture: x times heat / max heat, negative heat cut to 0."""
    x = _float64(x, 3)
    weights = _scaled(heat)
    channels, height, width = x.shape
    if (height, width) != weights.shape:
        raise ValueError(f"the picture is {x.shape}, the heat map {weights.shape}")
    result = np.zeros(x.shape)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                result[c, i, j] = x[c, i, j] * weights[i, j]
    return result


def _scaled(heat: Array) -> Array:
    """heat / max heat, negative heat cut to 0."""
    positive = _positive(_finite(heat, 2))
    highest = max(_values(positive))
    if highest == 0:
        raise _undefined("no positive heat")
    return positive / highest


def average_drop(y: float, o: float) -> float:
    """max(0, y - o) / y for one picture; y = score(x), o = score(masked(x, heat))."""
    if y == 0:
        raise _undefined("the picture's score is 0")
    return max(0.0, y - o) / y


def increase_in_confidence(y: float, o: float) -> float:
    """1 if the masked picture scores higher than the picture, else 0."""
    return 1.0 if o > y else 0.0


def average_gain(y: float, o: float) -> float:
    """max(0, o - y) / (1 - y) for one picture."""
    if y == 1:
        raise _undefined("the picture's score is 1")
    return max(0.0, o - y) / (1 - y)


def coherency(a: Array, b: Array) -> float:
    """(Pearson correlation + 1) / 2 of two maps; 0 if either is constant."""
    first, second = _values(_finite(a, 2)), _values(_finite(b, 2))
    if _constant(first) or _constant(second):
        return 0.0
    return (_pearson(first, second) + 1) / 2


def complexity(heat: Array) -> float:
    """Mean of heat / max heat, negative heat cut to 0."""
    return _mean(_values(_scaled(heat)))


def adcc(coherency: float, complexity: float, drop: float) -> float:
    """Harmonic mean of coherency, 1 - complexity and 1 - drop; 0 if any of the three is 0."""
    parts = [coherency, 1 - complexity, 1 - drop]
    if any(part == 0 for part in parts):
        return 0.0
    return 3 / math.fsum(1 / part for part in parts)


# --- changing the input a little -------------------------------------------------------------------------------------


def infidelity(differences: Sequence[float] | Array, predicted: Sequence[float] | Array, scaled: bool) -> float:
    """Mean of (beta * predicted - difference)^2; ``scaled`` takes the best beta, else beta is 1."""
    pairs = [(float(p), float(d)) for p, d in zip(predicted, differences, strict=True)]
    if not pairs:
        raise _undefined("no samples")
    beta = 1.0
    if scaled:
        if all(p == 0 for p, _ in pairs):
            raise _undefined("every predicted difference is 0")
        beta = _mean([p * d for p, d in pairs]) / _mean([p * p for p, _ in pairs])
    return _mean([(beta * p - d) ** 2 for p, d in pairs])


def max_sensitivity(map: Array, others: Sequence[Array]) -> float:
    """Largest Frobenius norm of (other - map), as a share of the norm of map."""
    map = _finite(map, 2)
    size = _norm(map)
    if size == 0:
        raise _undefined("the map is 0 everywhere")
    if len(others) == 0:
        raise _undefined("no other maps")
    largest = 0.0
    for other in others:
        other = _finite(other, 2)
        if other.shape != map.shape:
            raise ValueError(f"shapes differ: {map.shape} and {other.shape}")
        largest = max(largest, _norm(other - map) / size)
    return largest


def _norm(array: Array) -> float:
    return math.sqrt(math.fsum(value * value for value in _values(array)))


# --- where the heat lies ---------------------------------------------------------------------------------------------


def pointing_game(heat: Array, mask: Mask, tolerance: float) -> float:
    """Share of the hottest pixels at most ``tolerance`` from the mask; 0 without positive heat; NaN is unseen."""
    positive = _positive(heat)
    inside = _pixels(mask, positive.shape)
    if not inside:
        raise _undefined("the mask is empty")
    highest = max(_values(positive))
    if highest == 0:
        return 0.0
    hottest = _pixels(positive == highest, positive.shape)
    hits = 0
    for i, j in hottest:
        distance = min(math.sqrt((i - row) ** 2 + (j - column) ** 2) for row, column in inside)
        if distance <= tolerance:
            hits += 1
    return hits / len(hottest)


def energy_pointing_game(heat: Array, mask: Mask) -> float:
    """Share of the positive heat inside the tight bounding box of the mask; NaN is no heat."""
    inside = _pixels(mask, np.shape(heat))
    if not inside:
        raise _undefined("the mask is empty")
    rows, columns = [i for i, _ in inside], [j for _, j in inside]
    box = [(i, j) for i in range(min(rows), max(rows) + 1) for j in range(min(columns), max(columns) + 1)]
    return _share(heat, box)


def mass_in_mask(heat: Array, mask: Mask) -> float:
    """Share of the positive heat inside the mask; NaN is no heat."""
    inside = _pixels(mask, np.shape(heat))
    if not inside:
        raise _undefined("the mask is empty")
    return _share(heat, inside)


def grid_pointing_game(heat: Array, cell: int, n: int) -> float:
    """Share of the positive heat in one cell (row-major) of an n x n grid of equal cells; NaN is no heat."""
    height, width = heat.shape
    if height % n or width % n or not 0 <= cell < n * n:
        raise ValueError(f"no cell {cell} in a {n} x {n} grid over {height} x {width}")
    row, column = divmod(cell, n)
    tall, wide = height // n, width // n
    inside = [(row * tall + i, column * wide + j) for i in range(tall) for j in range(wide)]
    return _share(heat, inside)


def _share(heat: Array, inside: Sequence[tuple[int, int]]) -> float:
    """Positive heat at some pixels over all positive heat."""
    positive = _positive(heat)
    total = math.fsum(_values(positive))
    if total == 0:
        raise _undefined("no positive heat")
    return math.fsum(float(positive[i, j]) for i, j in inside) / total


def iou(heat: Array, mask: Mask, threshold: float) -> float:
    """Intersection over union of the mask and the pixels with heat >= threshold * max; NaN never belongs."""
    heat = _float64(heat, 2)
    inside = set(_pixels(mask, heat.shape))
    if not inside:
        raise _undefined("the mask is empty")
    highest = max(_values(_positive(heat)))
    if highest == 0:
        raise _undefined("no positive heat")
    height, width = heat.shape
    hot = {(i, j) for i in range(height) for j in range(width) if heat[i, j] >= threshold * highest}
    return len(hot & inside) / len(hot | inside)


# --- how alike two maps are ------------------------------------------------------------------------------------------


def spearman(a: Array, b: Array) -> float:
    """Pearson correlation of the ranks of two maps; tied values share their mean rank."""
    first, second = _values(_finite(a, 2)), _values(_finite(b, 2))
    if _constant(first) or _constant(second):
        raise _undefined("a map is constant")
    return _pearson(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value from 1; a value that stands on places p..q of the sorted list gets (p + q) / 2."""
    in_order = sorted(values)
    return [(bisect_left(in_order, value) + 1 + bisect_right(in_order, value)) / 2 for value in values]


def ssim(a: Array, b: Array) -> float:
    """Mean structural similarity, 11x11 Gaussian window of sigma 1.5, range 2, over pixels 5 or more from every border."""
    a, b = _finite(a, 2), _finite(b, 2)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    height, width = a.shape
    if height < 11 or width < 11:
        raise _undefined("the maps are smaller than the 11x11 window")
    weights = [[math.exp(-(dy * dy + dx * dx) / 4.5) for dx in range(-5, 6)] for dy in range(-5, 6)]
    total = math.fsum(weight for row in weights for weight in row)
    window = np.array(weights) / total
    similarities = []
    for i in range(5, height - 5):
        for j in range(5, width - 5):
            p, q = a[i - 5 : i + 6, j - 5 : j + 6], b[i - 5 : i + 6, j - 5 : j + 6]
            similarities.append(_window_similarity(p, q, window))
    return _mean(similarities)


def _window_similarity(p: Array, q: Array, window: Array) -> float:
    """Structural similarity of two windows with weights that sum to 1; population variances and covariance."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_p, mean_q = float((window * p).sum()), float((window * q).sum())
    variance_p = float((window * (p - mean_p) ** 2).sum())
    variance_q = float((window * (q - mean_q) ** 2).sum())
    covariance = float((window * (p - mean_p) * (q - mean_q)).sum())
    luminance = (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_p + variance_q + c2)


# --- how concentrated the heat is ------------------------------------------------------------------------------------


def sparseness(heat: Array) -> float:
    """Gini index of |heat|: 0 when all pixels are alike, near 1 when one pixel has everything."""
    values = sorted(abs(value) for value in _values(_finite(heat, 2)))
    n, total = len(values), math.fsum(values)
    if total == 0:
        raise _undefined("the map is 0 everywhere")
    return math.fsum((2 * k - n - 1) * value for k, value in enumerate(values, start=1)) / (n * total)


def entropy(heat: Array) -> float:
    """Shannon entropy of |heat| / sum |heat|, in nats; 0 log 0 is 0."""
    values = [abs(value) for value in _values(_finite(heat, 2))]
    total = math.fsum(values)
    if total == 0:
        raise _undefined("the map is 0 everywhere")
    shares = [value / total for value in values]
    return math.fsum(-share * math.log(share) for share in shares if share > 0)
