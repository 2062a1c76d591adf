"""Slow, obvious maps of films and volumes, written from the definitions alone, in float64 with plain loops.

They import nothing from the library under test. A is the activations and G = d score / d A the gradients of ONE film, both
(C, t, h, w); k runs over channels, s over slices, i over rows and j over columns; Z = t * h * w. Every map is (t, h, w).
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _places(A: Array) -> list[tuple[int, int, int]]:
    return list(itertools.product(*(range(size) for size in A.shape[1:])))


def _map(A: Array, value: Callable[[int, int, int], float]) -> Array:
    found = np.zeros(A.shape[1:])
    for s, i, j in _places(A):
        found[s, i, j] = value(s, i, j)
    return found


def _weighted(weights: list[float], A: Array) -> Array:
    """ReLU(sum_k w_k A^k)."""
    return _map(A, lambda s, i, j: max(0.0, sum(w * float(A[k, s, i, j]) for k, w in enumerate(weights))))


def _sum(of: Array) -> float:
    return math.fsum(float(of[s, i, j]) for s, i, j in _places(of[None]))


def grad_cam(A: Array, G: Array) -> Array:
    return _weighted([_sum(G[k]) / len(_places(A)) for k in range(len(A))], A)


def grad_cam_plus_plus(A: Array, G: Array) -> Array:
    weights = []
    for k in range(len(A)):
        total, weight = _sum(A[k]), 0.0
        for s, i, j in _places(A):
            g = float(G[k, s, i, j])
            if g > 0 and 2 + g * total > 0:
                weight += g / (2 + g * total)
        weights.append(weight)
    return _weighted(weights, A)


def xgrad_cam(A: Array, G: Array) -> Array:
    weights = []
    for k in range(len(A)):
        total = _sum(A[k])
        weights.append(_sum(A[k] * G[k]) / total if abs(total) > 1e-14 else 0.0)
    return _weighted(weights, A)


def hires_cam(A: Array, G: Array) -> Array:
    return _map(A, lambda s, i, j: sum(float(A[k, s, i, j] * G[k, s, i, j]) for k in range(len(A))))


def layer_cam(A: Array, G: Array) -> Array:
    def value(s: int, i: int, j: int) -> float:
        return max(0.0, sum(max(0.0, float(G[k, s, i, j])) * float(A[k, s, i, j]) for k in range(len(A))))

    return _map(A, value)


def grad_cam_elementwise(A: Array, G: Array) -> Array:
    return _map(A, lambda s, i, j: sum(max(0.0, float(A[k, s, i, j] * G[k, s, i, j])) for k in range(len(A))))


def _component(of: Array) -> Array:
    """The table of cells by channels times its first right singular vector, with the sign of its rows' sums."""
    table = np.array([[of[k, s, i, j] for k in range(len(of))] for s, i, j in _places(of)])
    _, _, right = np.linalg.svd(table, full_matrices=False)
    values = table @ right[0]
    if float(values @ table.sum(axis=1)) < 0:
        values = -values
    found = np.zeros(of.shape[1:])
    for (s, i, j), value in zip(_places(of), values, strict=True):
        found[s, i, j] = value
    return found


def eigen_cam(A: Array, G: Array) -> Array:
    return np.maximum(_component(A), 0)


def eigengrad_cam(A: Array, G: Array) -> Array:
    return _component(A * G)


def fem(A: Array, G: Array) -> Array:
    found = np.zeros(A.shape[1:])
    count = len(_places(A))
    for k in range(len(A)):
        mean = _sum(A[k]) / count
        deviation = math.sqrt(_sum((A[k] - mean) ** 2) / count)
        for s, i, j in _places(A):
            if A[k, s, i, j] > mean + 2 * deviation:
                found[s, i, j] += mean
    return np.maximum(found, 0)


def saliency(x: Array, G: Array) -> Array:
    return _map(x, lambda s, i, j: max(abs(float(G[k, s, i, j])) for k in range(len(x))))


def input_x_gradient(x: Array, G: Array) -> Array:
    return hires_cam(x, G)


def ablation_cam(A: Array, head: Callable[[Array], float]) -> Array:
    weights = []
    for k in range(len(A)):
        without = A.copy()
        without[k] = 0
        weights.append(head(A) - head(without))
    return _weighted(weights, A)


def recipro_cam(A: Array, head: Callable[[Array], float]) -> Array:
    def value(s: int, i: int, j: int) -> float:
        alone = np.zeros_like(A)
        alone[:, s, i, j] = A[:, s, i, j]
        return max(0.0, head(alone) - head(np.zeros_like(A)))

    return _map(A, value)


# --- what shows the model other films: `gradient` and `score` are functions of ONE film x (C, T, H, W) ----------------------


def integrated_gradients(gradient: Callable[[Array], Array], x: Array, baseline: Array, steps: int) -> Array:
    """sum_c (x - b)_c times the mean of the gradients at the middles of equal pieces of the way from b to x."""
    slopes = [gradient(baseline + (step + 0.5) / steps * (x - baseline)) for step in range(steps)]

    def value(s: int, i: int, j: int) -> float:
        return math.fsum(
            float((x[c, s, i, j] - baseline[c, s, i, j]) * slope[c, s, i, j]) / steps
            for c in range(len(x))
            for slope in slopes
        )

    return _map(x, value)


def occlusion(
    score: Callable[[Array], float],
    x: Array,
    box: tuple[int, int, int],
    stride: tuple[int, int, int],
    baseline: Array,
) -> Array:
    """For every place the mean fall of the score over the boxes that cover it; the last box along a side reaches its border."""
    falls: dict[tuple[int, int, int], list[float]] = {place: [] for place in _places(x)}
    starts = []
    for length, side, step in zip(x.shape[1:], box, stride, strict=True):
        along = [0]
        while along[-1] + side < length:
            along.append(along[-1] + step)
        starts.append(along)
    for corner in itertools.product(*starts):
        covered = x.copy()
        inside = [
            place
            for place in _places(x)
            if all(at <= one < at + side for at, one, side in zip(corner, place, box, strict=True))
        ]
        for s, i, j in inside:
            covered[:, s, i, j] = baseline[:, s, i, j]
        for place in inside:
            falls[place].append(score(x) - score(covered))
    return _map(x, lambda s, i, j: sum(falls[s, i, j]) / len(falls[s, i, j]))


def rise_mask(cells: Array, offset: tuple[int, int, int], size: tuple[int, int, int]) -> Array:
    """(T, H, W): cells (g, g, g) enlarged linearly along each side to g + 1 cells of ceil(side / g), and cut at the offset."""
    g = len(cells)
    along: list[list[list[float]]] = []
    for side, start in zip(size, offset, strict=True):
        cell = math.ceil(side / g)
        shares = []
        for at in range(side):
            place = min(max((at + start + 0.5) * g / ((g + 1) * cell) - 0.5, 0.0), g - 1.0)
            shares.append([max(0.0, 1 - abs(place - one)) for one in range(g)])
        along.append(shares)
    found = np.zeros(size)
    for s, i, j in itertools.product(*(range(side) for side in size)):
        for a, b, c in itertools.product(range(g), repeat=3):
            found[s, i, j] += along[0][s][a] * along[1][i][b] * along[2][j][c] * float(cells[a, b, c])
    return found


def rise(score: Callable[[Array], float], x: Array, masks: Sequence[Array], kept: float, baseline: Array) -> Array:
    """mean over the masks of (score - mean score) M, over the probability that a cell is kept."""
    scores = [score(x * mask + baseline * (1 - mask)) for mask in masks]
    mean = math.fsum(scores) / len(scores)

    def value(s: int, i: int, j: int) -> float:
        terms = [(one - mean) * float(mask[s, i, j]) for one, mask in zip(scores, masks, strict=True)]
        return math.fsum(terms) / len(masks) / kept

    return _map(x, value)


ORACLES = {
    "grad-cam": grad_cam, "grad-cam++": grad_cam_plus_plus, "xgrad-cam": xgrad_cam, "hires-cam": hires_cam,
    "layer-cam": layer_cam, "grad-cam-elementwise": grad_cam_elementwise, "eigen-cam": eigen_cam,
    "eigengrad-cam": eigengrad_cam, "fem": fem,
}  # fmt: skip
OF_PIXELS = {"saliency": saliency, "input-x-gradient": input_x_gradient}
OF_HEAD = {"ablation-cam": ablation_cam, "recipro-cam": recipro_cam}
