"""Slow, obvious reference implementations of three explanations of vision transformers, written from the papers.

They import nothing from the library under test. Only numpy, only float64, only loops. For ONE image: ``attentions`` is a
list over layers, first layer first, of arrays (heads, T, T), where [h, i, j] is how much token i takes from token j;
``gradients`` has the same shapes. ``rows`` are the tokens that the score reads (the class token, or all patches of a
model that averages them), ``columns`` the tokens of the patches in reading order. The results are vectors over
``columns``, unscaled; reshape them to the grid.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Layers = Sequence[npt.ArrayLike]


def rollout(attentions: Layers, rows: Sequence[int], columns: Sequence[int]) -> Array:
    """Attention rollout: Abnar & Zuidema 2020 (arXiv:2005.00928), A = 0.5 W_att + 0.5 I and equation 1.

    No attention is discarded, heads are averaged, every layer takes part. Several rows are averaged.
    """
    return _read(rollout_matrix(attentions), rows, columns)


def rollout_matrix(attentions: Layers) -> Array:
    """All of A_L ... A_2 A_1, (T, T); every row sums to 1."""
    layers = _layers(attentions)
    joint = _identity(layers[0].shape[1])
    for layer in layers:
        heads, tokens, _ = layer.shape
        mixed = np.zeros((tokens, tokens))
        for i in range(tokens):
            for j in range(tokens):
                mean = sum(float(layer[h, i, j]) for h in range(heads)) / heads
                mixed[i, j] = 0.5 * mean + (0.5 if i == j else 0.0)
            total = sum(float(value) for value in mixed[i])
            for j in range(tokens):
                mixed[i, j] /= total
        joint = _product(mixed, joint)
    return joint


def chefer(attentions: Layers, gradients: Layers, rows: Sequence[int], columns: Sequence[int]) -> Array:
    """Generic attention explainability for self-attention: Chefer et al. 2021 (arXiv:2103.15679), equations 5 and 6.

    ``gradients`` are d score / d A in the whole network. R starts as the identity, which is taken off the result: with
    several rows each patch would carry 1 / len(rows) of itself, whatever the model does.
    """
    matrix = chefer_matrix(attentions, gradients)
    for i in range(len(matrix)):
        matrix[i, i] -= 1.0
    return _read(matrix, rows, columns)


def chefer_matrix(attentions: Layers, gradients: Layers) -> Array:
    """All of R after the last layer, (T, T)."""
    pairs = list(zip(_layers(attentions), _layers(gradients), strict=True))
    relevance = _identity(pairs[0][0].shape[1])
    for layer, gradient in pairs:
        if layer.shape != gradient.shape:
            raise ValueError(f"shapes differ: {layer.shape} and {gradient.shape}")
        heads, tokens, _ = layer.shape
        positive = np.zeros((tokens, tokens))
        for i in range(tokens):
            for j in range(tokens):
                positive[i, j] = sum(max(float(gradient[h, i, j] * layer[h, i, j]), 0.0) for h in range(heads)) / heads
        added = _product(positive, relevance)
        for i in range(tokens):
            for j in range(tokens):
                relevance[i, j] += added[i, j]
    return relevance


def legrad(attentions: Layers, own_gradients: Layers, columns: Sequence[int]) -> Array:
    """LeGrad: Bousselham et al. 2024 (arXiv:2404.03214): 1/L sum_l 1/(H T) sum_h,i (d s^l / d A^l)^+ [h, i, :].

    ``own_gradients`` are d s^l / d A^l, where s^l is the score that the model's own end (norm, pooling, classifier) gives
    to the mean of the tokens behind block l, put in the place of each. ReLU comes before the means over heads, queries (all of them) and layers. Of the
    attentions only the shapes count. Neither the authors' resize to the picture nor their min-max scaling is in it.
    """
    pairs = list(zip(_layers(attentions), _layers(own_gradients), strict=True))
    result = np.zeros(len(columns))
    for layer, gradient in pairs:
        if layer.shape != gradient.shape:
            raise ValueError(f"shapes differ: {layer.shape} and {gradient.shape}")
        heads, tokens, _ = layer.shape
        for at, j in enumerate(columns):
            total = 0.0
            for h in range(heads):
                for i in range(tokens):
                    total += max(float(gradient[h, i, j]), 0.0)
            result[at] += total / (heads * tokens) / len(pairs)
    return result


def raw(attentions: Layers, rows: Sequence[int], columns: Sequence[int]) -> Array:
    """What the last layer attends to, mean over heads: the softmax itself."""
    last = _layers(attentions)[-1]
    heads, tokens, _ = last.shape
    mean = np.zeros((tokens, tokens))
    for i in range(tokens):
        for j in range(tokens):
            mean[i, j] = sum(float(last[h, i, j]) for h in range(heads)) / heads
    return _read(mean, rows, columns)


ATTENTION_ORACLES: dict[str, Callable[..., Array]] = {
    "attention-rollout": rollout,
    "attention-grad": chefer,
    "le-grad": legrad,
    "raw-attention": raw,
}


def _layers(arrays: Layers) -> list[Array]:
    layers = [np.asarray(array, dtype=np.float64) for array in arrays]
    if not layers:
        raise ValueError("need at least one layer")
    for layer in layers:
        if layer.ndim != 3 or layer.shape[1] != layer.shape[2] or layer.shape[1:] != layers[0].shape[1:]:
            raise ValueError(f"need (heads, T, T) with one T for all layers, not {layer.shape}")
    return layers


def _identity(tokens: int) -> Array:
    matrix = np.zeros((tokens, tokens))
    for i in range(tokens):
        matrix[i, i] = 1.0
    return matrix


def _product(left: Array, right: Array) -> Array:
    tokens = len(left)
    result = np.zeros((tokens, tokens))
    for i in range(tokens):
        for j in range(tokens):
            result[i, j] = sum(float(left[i, k]) * float(right[k, j]) for k in range(tokens))
    return result


def _read(matrix: Array, rows: Sequence[int], columns: Sequence[int]) -> Array:
    result = np.zeros(len(columns))
    for at, j in enumerate(columns):
        result[at] = sum(float(matrix[i, j]) for i in rows) / len(rows)
    return result
