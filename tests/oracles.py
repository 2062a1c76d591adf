"""Slow, obvious reference implementations of class activation maps, written from the definitions alone.

They import nothing from the library under test, so that a mistake there cannot be repeated here. In the formulas A is
the activations and G = d score / d A the gradients of ONE image, both (C, h, w); k runs over channels, i over rows and
j over columns; Z = h * w. Every map is a float64 (h, w) array at layer resolution: no resizing, no scaling to [0, 1].

``ORACLES`` holds the maps as defined, with the final ReLU where the definition has one. ``UNRECTIFIED`` holds the same
maps before that final ReLU. The inputs must be finite.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Oracle = Callable[[Array, Array], Array]


def grad_cam(activations: Array, gradients: Array) -> Array:
    """Grad-CAM: ReLU(sum_k w_k A^k) with w_k the mean gradient of channel k (arXiv 1610.02391)."""
    return _rectify(grad_cam_unrectified(activations, gradients))


def grad_cam_unrectified(activations: Array, gradients: Array) -> Array:
    """sum_k w_k A^k with w_k = (1 / Z) sum_ij G^k_ij (arXiv 1610.02391)."""
    A, G = _checked(activations, gradients)
    channels, height, width = A.shape
    weights = []
    for k in range(channels):
        weight = _sum_over_space(G[k]) / (height * width)
        weights.append(weight)
    return _weighted_sum(weights, A)


def grad_cam_plus_plus(activations: Array, gradients: Array, *, normalise: bool = False) -> Array:
    """Grad-CAM++: ReLU(sum_k w_k A^k); see ``grad_cam_plus_plus_weights`` for w_k (arXiv 1710.11063)."""
    return _rectify(grad_cam_plus_plus_unrectified(activations, gradients, normalise=normalise))


def grad_cam_plus_plus_unrectified(activations: Array, gradients: Array, *, normalise: bool = False) -> Array:
    """sum_k w_k A^k with the weights of Grad-CAM++ (arXiv 1710.11063)."""
    A, G = _checked(activations, gradients)
    return _weighted_sum(grad_cam_plus_plus_weights(A, G, normalise=normalise), A)


def grad_cam_plus_plus_weights(activations: Array, gradients: Array, *, normalise: bool = False) -> list[float]:
    """w_k = sum_ij alpha^k_ij ReLU(G^k_ij), alpha = G^2 / (2 G^2 + (sum_ab A^k_ab) G^3) (arXiv 1710.11063, Eq. 19).

    Eq. 19 is the paper's general alpha for the score Y = exp(S), S piecewise linear, G = dS / dA. The factor exp(S) of
    dY / dA is dropped: it multiplies the whole map. Only G > 0 counts. Where 2 + (sum_ab A) G <= 0, which needs
    negative activations, alpha is 0 (our guard; the paper assumes activations after a ReLU). The powers are taken in
    exact rational arithmetic, so that G^3 of a tiny gradient does not vanish.

    ``normalise=True`` is the authors' released code (github.com/adityac94/Grad_CAM_plus_plus at 4a9faf6, misc/utils.py,
    function grad_CAM_plus; not in Eq. 19): per channel, alpha is divided by its own sum over the places where G > 0,
    unless that sum is 0. So the alphas of a channel sum to 1 and w_k is a weighted mean of the positive gradients.
    Their exp(S) cancels in alpha and is dropped from ReLU(exp(S) G), as above. They have no guard but for an alpha
    whose denominator is exactly 0; with activations >= 0, as theirs are, the guard here changes nothing.
    """
    A, G = _checked(activations, gradients)
    channels, height, width = A.shape
    weights = []
    for k in range(channels):
        sum_of_activations = Fraction(_sum_over_space(A[k]))
        alpha = np.zeros((height, width))
        for i in range(height):
            for j in range(width):
                g = Fraction(float(G[k, i, j]))
                if g > 0 and 2 + sum_of_activations * g > 0:
                    alpha[i, j] = float(g**2 / (2 * g**2 + sum_of_activations * g**3))
        if normalise:
            sum_of_alphas = _sum_over_space(alpha)
            if sum_of_alphas != 0.0:
                alpha = alpha / sum_of_alphas
        weight = 0.0
        for i in range(height):
            for j in range(width):
                weight += float(alpha[i, j]) * max(float(G[k, i, j]), 0.0)
        weights.append(weight)
    return weights


def xgrad_cam(activations: Array, gradients: Array) -> Array:
    """XGrad-CAM: ReLU(sum_k w_k A^k) (arXiv 2008.02312; the ReLU as in github.com/Fu0511/XGrad-CAM, XGrad-CAM.py)."""
    return _rectify(xgrad_cam_unrectified(activations, gradients))


def xgrad_cam_unrectified(activations: Array, gradients: Array) -> Array:
    """sum_k w_k A^k with w_k = sum_ij G^k_ij A^k_ij / sum_ij A^k_ij, and 0 where that sum is 0 (arXiv 2008.02312).

    The authors' code adds 1e-6 to the denominator instead; the definition does not.
    """
    A, G = _checked(activations, gradients)
    channels = A.shape[0]
    weights = []
    for k in range(channels):
        sum_of_activations = _sum_over_space(A[k])
        weight = 0.0
        if sum_of_activations != 0.0:
            weight = _sum_over_space(G[k] * A[k]) / sum_of_activations
        weights.append(weight)
    return _weighted_sum(weights, A)


def hires_cam(activations: Array, gradients: Array) -> Array:
    """HiResCAM: sum_k G^k * A^k, signed, no ReLU (arXiv 2011.08891; github.com/rachellea/hirescam, cams.py)."""
    A, G = _checked(activations, gradients)
    channels, height, width = A.shape
    cam = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                cam[i, j] += G[k, i, j] * A[k, i, j]
    return cam


def layer_cam(activations: Array, gradients: Array) -> Array:
    """LayerCAM, one layer: ReLU(sum_k ReLU(G^k) * A^k) (Jiang et al., IEEE TIP 2021, ieeexplore 9462463)."""
    return _rectify(layer_cam_unrectified(activations, gradients))


def layer_cam_unrectified(activations: Array, gradients: Array) -> Array:
    """sum_k ReLU(G^k) * A^k, which is also what github.com/PengtaoJiang/LayerCAM-jittor computes (no outer ReLU)."""
    A, G = _checked(activations, gradients)
    channels, height, width = A.shape
    cam = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                cam[i, j] += max(float(G[k, i, j]), 0.0) * A[k, i, j]
    return cam


def grad_cam_elementwise(activations: Array, gradients: Array) -> Array:
    """Grad-CAM element-wise: sum_k ReLU(G^k * A^k), so never negative, and there is no final ReLU to leave out.

    As in pytorch-grad-cam's GradCAMElementWise, whose pull request (#259) names AAAI 2021 paper 8236 (Pillai V.).
    """
    A, G = _checked(activations, gradients)
    channels, height, width = A.shape
    cam = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                cam[i, j] += max(float(G[k, i, j] * A[k, i, j]), 0.0)
    return cam


ORACLES: dict[str, Oracle] = {
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_plus_plus,
    "xgrad-cam": xgrad_cam,
    "hires-cam": hires_cam,
    "layer-cam": layer_cam,
    "grad-cam-elementwise": grad_cam_elementwise,
}
"""The map of each method as its definition has it, the final ReLU included where there is one."""

UNRECTIFIED: dict[str, Oracle] = {
    "grad-cam": grad_cam_unrectified,
    "grad-cam++": grad_cam_plus_plus_unrectified,
    "xgrad-cam": xgrad_cam_unrectified,
    "hires-cam": hires_cam,
    "layer-cam": layer_cam_unrectified,
    "grad-cam-elementwise": grad_cam_elementwise,
}
"""The map of each method before its final ReLU (the same function as in ``ORACLES`` where there is no such ReLU)."""


def place(
    raw: Array,
    photo_size: tuple[int, int],
    resized_size: tuple[int, int],
    offset: tuple[int, int],
    input_size: tuple[int, int],
) -> Array:
    """Lay a raw (h, w) map over the photograph it explains: (H, W), NaN where the model did not look.

    The photograph was resized, then a window of ``input_size`` was cut out of it. Sizes are (width, height).
    ``offset`` is (left, top): where the window starts inside the resized picture; negative means padding. The value at
    a photograph pixel is the raw map, bilinear, at that pixel's centre. Cell (i, j) of the raw map sits at grid
    coordinates (j, i), the window runs from -0.5 to w - 0.5, and the map is held constant beyond its outermost cell
    centres: ``align_corners=False`` in torch.nn.functional.interpolate.
    """
    raw = np.asarray(raw, dtype=np.float64)
    photo_width, photo_height = photo_size
    resized_width, resized_height = resized_size
    left, top = offset
    input_width, input_height = input_size
    rows, columns = raw.shape

    placed = np.full((photo_height, photo_width), np.nan)
    for y in range(photo_height):
        for x in range(photo_width):
            x_in_input = (x + 0.5) * resized_width / photo_width - left
            y_in_input = (y + 0.5) * resized_height / photo_height - top
            if not (0 <= x_in_input < input_width and 0 <= y_in_input < input_height):
                continue
            u = min(max(x_in_input * columns / input_width - 0.5, 0.0), columns - 1.0)
            v = min(max(y_in_input * rows / input_height - 0.5, 0.0), rows - 1.0)
            j, i = math.floor(u), math.floor(v)
            j_next, i_next = min(j + 1, columns - 1), min(i + 1, rows - 1)
            right, down = u - j, v - i
            upper = (1 - right) * raw[i, j] + right * raw[i, j_next]
            lower = (1 - right) * raw[i_next, j] + right * raw[i_next, j_next]
            placed[y, x] = (1 - down) * upper + down * lower
    return placed


def _checked(activations: Array, gradients: Array) -> tuple[Array, Array]:
    """Both arrays as float64, refused unless they are (C, h, w) and of one shape."""
    A = np.asarray(activations, dtype=np.float64)
    G = np.asarray(gradients, dtype=np.float64)
    if A.ndim != 3 or A.shape != G.shape:
        raise ValueError(f"need activations and gradients of one shape (C, h, w), not {A.shape} and {G.shape}")
    return A, G


def _sum_over_space(channel: Array) -> float:
    """The sum over i and j of one (h, w) channel, correctly rounded."""
    height, width = channel.shape
    return math.fsum(float(channel[i, j]) for i in range(height) for j in range(width))


def _weighted_sum(weights: list[float], A: Array) -> Array:
    """sum_k w_k A^k."""
    channels, height, width = A.shape
    cam = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                cam[i, j] += weights[k] * A[k, i, j]
    return cam


def _rectify(cam: Array) -> Array:
    """ReLU, element by element."""
    height, width = cam.shape
    rectified = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            rectified[i, j] = max(float(cam[i, j]), 0.0)
    return rectified
