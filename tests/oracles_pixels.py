"""Slow, obvious reference implementations of maps at pixel resolution, for any function from a picture to a score.

They import nothing from the library under test. Only numpy, only float64, only loops. x is ONE picture (C, H, W);
``gradient(x)`` is d score / d x, of the same shape, and is given by the caller. Maps are (H, W) and signed, not scaled
to [0, 1], unless a function says otherwise. Everything random (noise, baselines, places on a path) is an argument.

``Net`` is a small network whose backward pass is written out here, for the methods that change what a layer hands back
(guided backpropagation, deconvolution, DeepLIFT). ``PIXEL_ORACLES`` names what proves each method.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Gradient = Callable[[Array], Array]
Layer = tuple[Any, ...]


# --- maps from gradients at the picture ------------------------------------------------------------------------------


def saliency(gradient: Gradient, x: Array) -> Array:
    """max_c |G_c| with G = d score / d x (Simonyan et al. 2013, arXiv 1312.6034, section 3.1)."""
    return _largest_over_channels(gradient(x))


def input_x_gradient(gradient: Gradient, x: Array) -> Array:
    """sum_c x_c G_c, signed (Shrikumar et al. 2016, arXiv 1605.01713)."""
    return _sum_over_channels(x * gradient(x))


def smooth_grad(attribution: Gradient, x: Array, noises: Sequence[Array], kind: str = "mean") -> Array:
    """max_c |m_c|, where m is taken over a_n = attribution(x + noise_n), element by element.

    ``kind`` "mean": (1 / N) sum a_n, SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825). "squared": (1 / N) sum a_n^2
    (Hooker et al. 2018, arXiv 1806.10758). "variance": VarGrad (Adebayo et al. 2018, arXiv 1810.03307), the mean of the
    squares minus the square of the mean, so divided by N and not by N - 1, as in captum/attr/_core/noise_tunnel.py
    lines 453 to 458; here it is summed as (a_n - mean)^2, which is the same number without its cancellation. The
    maximum over the channels comes last, of the absolute value (only for "mean" does that change a sign). The noises
    are as they are added: their scale is the caller's.
    """
    each = [attribution(x + noise) for noise in noises]
    mean = sum(each, np.zeros_like(x)) / len(each)
    if kind == "mean":
        smoothed = mean
    elif kind == "squared":
        smoothed = sum((one * one for one in each), np.zeros_like(x)) / len(each)
    elif kind == "variance":
        smoothed = sum(((one - mean) * (one - mean) for one in each), np.zeros_like(x)) / len(each)
    else:
        raise ValueError(f"kind must be mean, squared or variance, not {kind!r}")
    return _largest_over_channels(smoothed)


# --- maps from gradients along a path --------------------------------------------------------------------------------


def integrated_gradients(gradient: Gradient, x: Array, baseline: Array, steps: int, nodes: str = "midpoint") -> Array:
    """sum_c (x - b)_c sum_i w_i G_c(b + alpha_i (x - b)) (Sundararajan et al. 2017, arXiv 1703.01365, Eq. 1).

    The integral of Eq. 1 over alpha in [0, 1] by ``steps`` nodes alpha_i with weights w_i that sum to 1: "midpoint",
    the middles of equal pieces; or "gauss-legendre". (The paper's own sum takes the right ends of equal pieces.)
    """
    total = np.zeros_like(x)
    for alpha, weight in quadrature(steps, nodes):
        total += weight * gradient(baseline + alpha * (x - baseline))
    return _sum_over_channels((x - baseline) * total)


def quadrature(steps: int, nodes: str) -> list[tuple[float, float]]:
    """(place, weight) on [0, 1] for ``steps`` nodes, in rising order: "midpoint" or "gauss-legendre"."""
    if nodes == "midpoint":
        return [((i + 0.5) / steps, 1 / steps) for i in range(steps)]
    if nodes != "gauss-legendre":
        raise ValueError(f"nodes must be midpoint or gauss-legendre, not {nodes!r}")
    found = []
    for i in range(steps):
        t = -math.cos(math.pi * (i + 0.75) / (steps + 0.5))  # near the i-th root of the Legendre polynomial
        for _ in range(100):  # Newton's method
            value, slope = _legendre(steps, t)
            t -= value / slope
        _, slope = _legendre(steps, t)
        weight = 2 / ((1 - t * t) * slope * slope)  # on [-1, 1]
        found.append(((t + 1) / 2, weight / 2))
    return found


def gradient_shap(gradient: Gradient, x: Array, draws: Sequence[tuple[Array, Array, float]]) -> Array:
    """Mean over the draws (b, noise, alpha) of (x + noise - b) G(b + alpha (x + noise - b)), summed over channels.

    The expected gradients of Lundberg and Lee (shap's GradientExplainer; Erion et al., arXiv 1906.10670), with noise.
    The noise is part of the picture both in the place of the gradient and in the difference that it is multiplied by,
    and each draw has its own b, noise and alpha: captum/attr/_core/gradient_shap.py (InputBaselineXGradient under a
    NoiseTunnel) and shap/explainers/_gradient.py lines 645 to 686 (local_smoothing) agree on that.
    """
    total = np.zeros_like(x)
    for baseline, noise, alpha in draws:
        difference = x + noise - baseline
        total += difference * gradient(baseline + alpha * difference)
    return _sum_over_channels(total / len(draws))


def blur_ig(gradient: Gradient, x: Array, sigmas: Sequence[float], blur: Callable[[Array, float], Array]) -> Array:
    """sum over intervals of G(blur(x, middle)) (blur(x, lower) - blur(x, upper)), summed over channels.

    Blur Integrated Gradients (Xu et al. 2020, arXiv 2004.03383): the integral of the gradient along the path of blurred
    pictures, from the most blurred one to x. ``sigmas`` are the borders of the intervals, falling from the largest to
    0; the gradient of an interval is that at the middle of its two sigmas.

    PAIR-code/saliency, saliency/core/blur_ig.py, sums the same integral differently (lines 98 to 125): gradients at the
    lower end of each interval; the change of the picture by a difference quotient over a step of 0.01 in sigma, times
    the width of the interval; zeros beyond the border (scipy's mode "constant", lines 33 and 34). In the limit of many
    intervals the sums agree, but for the border.
    """
    total = np.zeros_like(x)
    for upper, lower in itertools.pairwise(sigmas):
        total += gradient(blur(x, (upper + lower) / 2)) * (blur(x, lower) - blur(x, upper))
    return _sum_over_channels(total)


def gaussian_blur(x: Array, sigma: float) -> Array:
    """x (C, H, W) with every channel blurred down its columns and along its rows; sigma 0 is x itself.

    The kernel is exp(-k^2 / (2 sigma^2)) for |k| <= int(4 sigma + 0.5), divided by its sum. Beyond the border the
    picture is mirrored with the pixel at the border repeated (d c b a | a b c d | d c b a), as often as it takes.
    """
    if sigma == 0:
        return np.array(x, dtype=np.float64)
    radius = int(4 * sigma + 0.5)
    kernel = {k: math.exp(-k * k / (2 * sigma * sigma)) for k in range(-radius, radius + 1)}
    total = math.fsum(kernel.values())
    channels, height, width = x.shape
    down, both = np.zeros_like(x), np.zeros_like(x)
    for c in range(channels):
        for i in range(height):
            for k, weight in kernel.items():
                down[c, i] += weight / total * x[c, _mirrored(i + k, height)]
        for j in range(width):
            for k, weight in kernel.items():
                both[c, :, j] += weight / total * down[c, :, _mirrored(j + k, width)]
    return both


def guided_ig(gradient: Gradient, x: Array, baseline: Array, steps: int, fraction: float, max_distance: float) -> Array:
    """(C, H, W): Guided Integrated Gradients (Kapishnikov et al. 2021, arXiv 2106.09788), as the authors compute it.

    Their code is PAIR-code/saliency, saliency/core/guided_ig.py, guided_ig_impl. A path leads from the baseline b to x;
    p is where it stands, D = sum |x - b|. "Feature" is one channel of one pixel; a feature's progress is
    (p - b) / (x - b). Step t = 1 ... ``steps``:

    1. G is the gradient at p. It stays as it is for the whole step; m is a copy of |G| for choosing by.
    2. With alpha = t / steps, lowest = b + max(alpha - max_distance, 0) (x - b) and
       highest = b + min(alpha + max_distance, 1) (x - b). The step must end at the distance D (1 - alpha) from x.
    3. Every feature whose progress is below max(alpha - max_distance, 0) is set to its lowest value.
    4. If sum |p - x| is the wanted distance (relative or absolute tolerance 1e-9), the step is over.
    5. m is set to infinity where p equals its highest value exactly, for the rest of the step. Features with x = b
       are always there, so they are never chosen. The threshold is the lower ``fraction`` quantile of m: of ALL n
       features, those at infinity too, in rising order, the one at floor((n - 1) fraction). Chosen are all features
       with m <= threshold and m finite, so ties are chosen together, and where the threshold is infinite, all that
       are left.
    6. gamma = (sum |p - x| - wanted) / sum of |p - highest| over the chosen. If gamma > 1 (or there is nothing to
       divide by), the chosen are set to their highest values, and it goes on at 3 with the same G. Else the chosen go
       the part gamma of their way to the highest values, and the step is over.

    Each change of p, in 3 as in 6, adds G times the change to the result. G is that of the step's beginning, so even
    with max_distance = 0 (the straight path) this is a left Riemann sum. Where x = b everywhere the result is 0.
    Where D is below 1e-9, every step is over at 4.

    Their loop never ends if nothing can be chosen while the distance is not the wanted one: with gradients that are
    not finite, and where rounding is larger than the tolerance. Here both are a ValueError.
    """
    shape = x.shape
    ends = [float(value) for value in x.reshape(-1)]
    starts = [float(value) for value in baseline.reshape(-1)]
    n = len(ends)
    whole = sum(abs(end - start) for end, start in zip(ends, starts, strict=True))
    result = [0.0] * n
    if whole == 0:
        return np.zeros(shape)
    p = list(starts)
    for step in range(1, steps + 1):
        G = [float(value) for value in gradient(np.array(p).reshape(shape)).reshape(-1)]
        if not all(math.isfinite(value) for value in G):
            raise ValueError("a gradient that is not finite")
        m = [abs(value) for value in G]
        alpha = step / steps
        least, most = max(alpha - max_distance, 0.0), min(alpha + max_distance, 1.0)
        lowest = [start + (end - start) * least for start, end in zip(starts, ends, strict=True)]
        highest = [start + (end - start) * most for start, end in zip(starts, ends, strict=True)]
        wanted = whole * (1 - step / steps)
        gamma = math.inf
        while gamma > 1:
            for k in range(n):
                if ends[k] != starts[k] and (p[k] - starts[k]) / (ends[k] - starts[k]) < least:
                    result[k] += (lowest[k] - p[k]) * G[k]
                    p[k] = lowest[k]
            distance = sum(abs(end - place) for end, place in zip(ends, p, strict=True))
            if math.isclose(wanted, distance, rel_tol=1e-9, abs_tol=1e-9):
                break
            for k in range(n):
                if p[k] == highest[k]:
                    m[k] = math.inf
            threshold = sorted(m)[math.floor((n - 1) * fraction)]
            chosen = [k for k in range(n) if m[k] <= threshold and m[k] < math.inf]
            if not chosen or distance < wanted:
                raise ValueError("the wanted distance cannot be reached")
            reachable = sum(abs(p[k] - highest[k]) for k in chosen)
            gamma = (distance - wanted) / reachable if reachable > 0 else math.inf
            for k in chosen:
                place = highest[k] if gamma > 1 else p[k] + (highest[k] - p[k]) * gamma
                result[k] += (place - p[k]) * G[k]
                p[k] = place
    return np.array(result).reshape(shape)


# --- regions ---------------------------------------------------------------------------------------------------------

XRAI_MIN_PIXELS = 50
"""A segment that would add fewer pixels than this is thrown away (the authors' experimental_params min_pixel_diff)."""

XRAI_AREA = 1.0
"""Segments are added while the share of the picture that is covered is at most this (the authors' area_threshold)."""


def xrai(
    attribution: Array, segments: Sequence[Mask], min_pixels: int = XRAI_MIN_PIXELS, area: float = XRAI_AREA
) -> Array:
    """The mean attribution with which each pixel came in, as regions grow from nothing (arXiv 1906.02825, Alg. 1).

    Kapishnikov et al. 2019; as the authors' "full" algorithm, PAIR-code/saliency, saliency/core/xrai.py, _xrai (lines
    510 to 605). Again and again, of all segments left: those that would add fewer than ``min_pixels`` pixels to what
    is covered are thrown away for good; of the others, the one whose NEW pixels have the highest mean attribution is
    added (of equals, the first of the list), and its new pixels get that mean. It ends when no segment is left, or
    when more than the share ``area`` of the picture is covered (with 1, never). The pixels that no added segment
    covers all get their own mean attribution, one value. So the map has the sum of the attribution, whatever the
    segments. ``min_pixels`` is at least 1.

    Not in the paper: min_pixels, and the value of the pixels left over. The authors' code feeds it the maximum over the
    channels of Integrated Gradients (_attr_aggregation_max), the mean over a black and a white baseline.
    """
    height, width = attribution.shape
    entered = np.zeros((height, width))
    covered = np.zeros((height, width), dtype=bool)
    left = list(segments)
    while np.count_nonzero(covered) / (height * width) <= area:
        adding = []
        for segment in left:
            new = [
                (i, j) for i in range(height) for j in range(width) if bool(segment[i, j]) and not bool(covered[i, j])
            ]
            if len(new) >= min_pixels:
                gain = math.fsum(float(attribution[i, j]) for i, j in new) / len(new) if new else -math.inf
                adding.append((gain, segment, new))
        if not adding:
            break
        best = adding[0]
        for candidate in adding[1:]:
            if candidate[0] > best[0]:
                best = candidate
        gain, chosen, new = best
        for i, j in new:
            entered[i, j] = gain
            covered[i, j] = True
        left = [segment for _, segment, _ in adding if segment is not chosen]
    rest = [(i, j) for i in range(height) for j in range(width) if not covered[i, j]]
    if rest:
        mean = math.fsum(float(attribution[i, j]) for i, j in rest) / len(rest)
        for i, j in rest:
            entered[i, j] = mean
    return entered


# --- a small network -------------------------------------------------------------------------------------------------


class Net:
    """A network as a list of layers, each a tuple that begins with its name.

    ("conv", W (O, C, k, k), b (O,), stride, padding with zeros), ("relu",), ("relu6",), ("leaky", slope),
    ("sigmoid",), ("tanh",), ("maxpool", k, stride), without padding, ("mean",), over rows and columns, to a vector,
    ("flatten",), ("linear", W (O, I), b (O,)), and ("residual", [layers]), which is its input plus layers(input).
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)

    def forward(self, x: Array) -> Array:
        """The vector of logits."""
        return _forward(self.layers, x)

    def backward(self, x: Array, index: int, rule: str = "plain") -> Array:
        """(C, H, W): logit ``index`` handed back to x. ``rule`` says what a ReLU hands back; the rest is the gradient.

        "plain": the gradient. At the kinks as torch has it: ReLU 0 at 0, ReLU6 0 at 0 and at 6, leaky its slope at 0; a
        maximum pool hands to the first of equals, row by row. "guided" (Springenberg et al. 2014, arXiv 1412.6806):
        what is handed down, only where it is positive and the gradient of the ReLU is not 0. "deconvnet" (Zeiler and
        Fergus 2014, arXiv 1311.2901): only where it is positive, whatever the ReLU's input.
        ReLU6 goes by the same rules (captum's guided_backprop_deconvnet.py line 94 takes nn.ReLU alone); leaky ReLU,
        sigmoid and tanh keep their gradients.
        """
        if rule not in ("plain", "guided", "deconvnet"):
            raise ValueError(f"rule must be plain, guided or deconvnet, not {rule!r}")
        return _backward(self.layers, x, _one_hot(self.forward(x), index), rule)


def guided_backprop(net: Net, x: Array, index: int) -> Array:
    """(C, H, W): guided backpropagation (Springenberg et al. 2014, arXiv 1412.6806)."""
    return net.backward(x, index, "guided")


def deconvnet(net: Net, x: Array, index: int) -> Array:
    """(C, H, W): deconvolution (Zeiler and Fergus 2014, arXiv 1311.2901, section 2.1).

    Its unpooling with switches is the gradient of the maximum pool, and its filters are the transposed ones.
    """
    return net.backward(x, index, "deconvnet")


def guided_grad_cam(grad_cam_map: Array, guided: Array) -> Array:
    """sum_c of the resized map times the guided gradients (Selvaraju et al. 2017, arXiv 1610.02391).

    ``grad_cam_map`` (h, w) has its ReLU behind it; it is resized bilinearly, as in the paper. (captum's
    guided_grad_cam.py line 76 has "nearest" unless told otherwise.) The sum over the channels is ours.
    """
    _, height, width = guided.shape
    return _sum_over_channels(guided * bilinear(grad_cam_map, height, width))


def bilinear(values: Array, height: int, width: int) -> Array:
    """(height, width): ``values`` resized bilinearly, pixels being squares (half-pixel centres), edges clamped."""
    rows, columns = values.shape
    resized = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
            x = min(max((j + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
            for row in range(rows):
                for column in range(columns):
                    share = max(1 - abs(y - row), 0.0) * max(1 - abs(x - column), 0.0)
                    resized[i, j] += share * values[row, column]
    return resized


SAME_INPUT = 1e-10
"""DeepLIFT: inputs that differ by less than this count as the same, as in captum."""


def deep_lift(net: Net, x: Array, baseline: Array, index: int) -> Array:
    """(C, H, W): DeepLIFT's contributions m (x - b) with the Rescale rule (Shrikumar et al. 2017, arXiv 1704.02685).

    The multipliers m go backward from logit ``index`` as a gradient does (the paper's chain rule for multipliers), but
    through ReLU, sigmoid and the like by delta_out / delta_in, the change of that one value from b to x, in place of
    the derivative. Where |delta_in| < SAME_INPUT it is the derivative at x.

    Maximum pooling, for which the paper has no rule beyond that: where a window's maximum is at least the baseline's,
    m delta_out goes to the place of x's maximum, else to the place of the baseline's (the first of equals, row by
    row); there it is divided by that place's own delta_in. Where a place's |delta_in| < SAME_INPUT, its multiplier is
    the gradient of the pooling at x. This is captum/attr/_core/deep_lift.py, maxpool, lines 1004 to 1068, but: that
    code unpools with max_unpool, which keeps only one of the windows that choose the same place where windows overlap,
    and its gradient for equal inputs is that of the first example of the batch. shap's deep_pytorch.py, lines 314 to
    349, is the same but for 0 where |delta_in| < 1e-7 (and the derivative below 1e-6 for the other layers, line 370).

    The contributions sum to the difference of the two logits. captum's do not where a module whose multipliers it
    changes stands directly behind another such module, or where a skip connection begins at its input: its hooks are
    on the tensor between, which belongs to both. With a copy (``v * 1``) before each such module captum agrees with
    this. Its guided backpropagation needs the copy where a skip connection begins at a ReLU's input.
    """
    return _multipliers(net.layers, x, baseline, _one_hot(net.forward(x), index)) * (x - baseline)


def _forward(layers: Sequence[Layer], x: Array) -> Array:
    for layer in layers:
        x = _layer(layer, x)
    return x


def _backward(layers: Sequence[Layer], x: Array, handed: Array, rule: str) -> Array:
    """What ``layers`` hand back to their input x, when ``handed`` comes in at their output."""
    inputs = []
    for layer in layers:
        inputs.append(x)
        x = _layer(layer, x)
    for layer, entered in zip(reversed(layers), reversed(inputs), strict=True):
        name = layer[0]
        if name == "residual":
            handed = handed + _backward(layer[1], entered, handed, rule)
        elif name in ELEMENTWISE:
            back = np.zeros(entered.shape)
            for place in np.ndindex(entered.shape):
                value, g = float(entered[place]), float(handed[place])
                changed = name in ("relu", "relu6")
                if changed and rule == "guided":
                    back[place] = g if _derivative(layer, value) > 0 and g > 0 else 0.0
                elif changed and rule == "deconvnet":
                    back[place] = max(g, 0.0)
                else:
                    back[place] = g * _derivative(layer, value)
            handed = back
        elif name == "maxpool":
            back = np.zeros(entered.shape)
            for out, window in _windows(layer, entered):
                back[_place_of_maximum(entered, window)] += handed[out]
            handed = back
        else:
            handed = _transposed(layer, entered, handed)
    return handed


def _multipliers(layers: Sequence[Layer], x: Array, baseline: Array, m: Array) -> Array:
    """DeepLIFT's multipliers of the input of ``layers``, when ``m`` are those of their output."""
    inputs = []
    for layer in layers:
        inputs.append((x, baseline))
        x, baseline = _layer(layer, x), _layer(layer, baseline)
    for layer, (here, there) in zip(reversed(layers), reversed(inputs), strict=True):
        name = layer[0]
        if name == "residual":
            m = m + _multipliers(layer[1], here, there, m)
        elif name in ELEMENTWISE:
            back = np.zeros(here.shape)
            for place in np.ndindex(here.shape):
                a, b = float(here[place]), float(there[place])
                if abs(a - b) < SAME_INPUT:
                    back[place] = m[place] * _derivative(layer, a)
                else:
                    back[place] = m[place] * (_value(layer, a) - _value(layer, b)) / (a - b)
            m = back
        elif name == "maxpool":
            contributions, slopes = np.zeros(here.shape), np.zeros(here.shape)
            for out, window in _windows(layer, here):
                at_x, at_baseline = _place_of_maximum(here, window), _place_of_maximum(there, window)
                change = float(here[at_x]) - float(there[at_baseline])
                contributions[at_x if change >= 0 else at_baseline] += m[out] * change
                slopes[at_x] += m[out]
            back = np.zeros(here.shape)
            for place in np.ndindex(here.shape):
                delta = float(here[place]) - float(there[place])
                back[place] = slopes[place] if abs(delta) < SAME_INPUT else contributions[place] / delta
            m = back
        else:
            m = _transposed(layer, here, m)
    return m


ELEMENTWISE = ("relu", "relu6", "leaky", "sigmoid", "tanh")


def _value(layer: Layer, v: float) -> float:
    """An elementwise layer at the value v."""
    name = layer[0]
    if name == "relu":
        return v if v > 0 else 0.0
    if name == "relu6":
        return min(v, 6.0) if v > 0 else 0.0
    if name == "leaky":
        return v if v > 0 else float(layer[1]) * v
    if name == "sigmoid":
        return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))
    return math.tanh(v)


def _derivative(layer: Layer, v: float) -> float:
    """The derivative of an elementwise layer at the value v."""
    name = layer[0]
    if name == "relu":
        return 1.0 if v > 0 else 0.0
    if name == "relu6":
        return 1.0 if 0 < v < 6 else 0.0
    if name == "leaky":
        return 1.0 if v > 0 else float(layer[1])
    value = _value(layer, v)
    return value * (1 - value) if name == "sigmoid" else 1 - value * value


def _layer(layer: Layer, x: Array) -> Array:
    """The output of one layer."""
    name = layer[0]
    if name == "residual":
        return x + _forward(layer[1], x)
    if name in ELEMENTWISE:
        out = np.zeros(x.shape)
        for place in np.ndindex(x.shape):
            out[place] = _value(layer, float(x[place]))
        return out
    if name == "maxpool":
        windows = list(_windows(layer, x))
        out = np.zeros([1 + windows[-1][0][axis] for axis in range(3)])
        for place, window in windows:
            out[place] = x[_place_of_maximum(x, window)]
        return out
    if name == "conv":
        bias, side = layer[2], layer[1].shape[2]
        out = np.zeros((len(bias), *_size_after(x, side, layer[3], layer[4])))
        for o, i, j, c, row, column, weight in _connections(layer, x):
            out[o, i, j] += weight * x[c, row, column]
        for o in range(len(bias)):
            out[o] += bias[o]
        return out
    if name == "mean":
        channels, height, width = x.shape
        return np.array([sum(float(v) for v in x[c].reshape(-1)) / (height * width) for c in range(channels)])
    if name == "flatten":
        return x.reshape(-1)
    if name == "linear":
        W, b = layer[1], layer[2]
        return np.array([b[o] + sum(W[o, i] * x[i] for i in range(len(x))) for o in range(len(b))], dtype=np.float64)
    raise ValueError(f"no layer {name!r}")


def _transposed(layer: Layer, x: Array, handed: Array) -> Array:
    """A linear layer backward: sum over its outputs of the weight times what came in there."""
    name = layer[0]
    if name == "flatten":
        return handed.reshape(x.shape)
    back = np.zeros(x.shape)
    if name == "conv":
        for o, i, j, c, row, column, weight in _connections(layer, x):
            back[c, row, column] += weight * handed[o, i, j]
    elif name == "mean":
        channels, height, width = x.shape
        for c in range(channels):
            back[c] += handed[c] / (height * width)
    else:
        W = layer[1]
        for i in range(len(x)):
            back[i] = sum(W[o, i] * handed[o] for o in range(len(handed)))
    return back


def _connections(layer: Layer, x: Array) -> list[tuple[int, int, int, int, int, int, float]]:
    """Every (out channel, out row, out column, in channel, in row, in column, weight) of a convolution over x."""
    _, W, _, stride, padding = layer
    outputs, channels, side, _ = W.shape
    _, height, width = x.shape
    rows, columns = _size_after(x, side, stride, padding)
    found = []
    for o in range(outputs):
        for i in range(rows):
            for j in range(columns):
                for c in range(channels):
                    for di in range(side):
                        for dj in range(side):
                            row, column = i * stride + di - padding, j * stride + dj - padding
                            if 0 <= row < height and 0 <= column < width:
                                found.append((o, i, j, c, row, column, float(W[o, c, di, dj])))
    return found


def _windows(layer: Layer, x: Array) -> list[tuple[tuple[int, int, int], list[tuple[int, int, int]]]]:
    """(place of the output, places of the input, row by row) of every window of a maximum pool."""
    _, side, stride = layer
    rows, columns = _size_after(x, side, stride, 0)
    found = []
    for c in range(x.shape[0]):
        for i in range(rows):
            for j in range(columns):
                window = [(c, i * stride + di, j * stride + dj) for di in range(side) for dj in range(side)]
                found.append(((c, i, j), window))
    return found


def _size_after(x: Array, side: int, stride: int, padding: int) -> tuple[int, int]:
    """(rows, columns) after windows of this side went over x."""
    _, height, width = x.shape
    return (height + 2 * padding - side) // stride + 1, (width + 2 * padding - side) // stride + 1


def _place_of_maximum(x: Array, window: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Where x is largest in the window; of equals, the first."""
    best = window[0]
    for place in window[1:]:
        if x[place] > x[best]:
            best = place
    return best


def _one_hot(logits: Array, index: int) -> Array:
    """1 at ``index``, else 0."""
    return np.array([1.0 if k == index else 0.0 for k in range(len(logits))])


def _sum_over_channels(x: Array) -> Array:
    channels, height, width = x.shape
    return np.array([[sum(float(x[c, i, j]) for c in range(channels)) for j in range(width)] for i in range(height)])


def _largest_over_channels(x: Array) -> Array:
    """max_c |x_c|."""
    channels, height, width = x.shape
    return np.array(
        [[max(abs(float(x[c, i, j])) for c in range(channels)) for j in range(width)] for i in range(height)]
    )


def _mirrored(place: int, length: int) -> int:
    """The place inside that stands for one outside, for ... 1 0 | 0 1 ... length-1 | length-1 ... ."""
    place %= 2 * length
    return place if place < length else 2 * length - 1 - place


def _legendre(degree: int, t: float) -> tuple[float, float]:
    """The Legendre polynomial of this degree (at least 1) and its derivative at t, -1 < t < 1 (Bonnet's recurrence)."""
    before, value = 1.0, t
    for k in range(2, degree + 1):
        before, value = value, ((2 * k - 1) * t * value - (k - 1) * before) / k
    return value, degree * (t * value - before) / (t * t - 1)


PIXEL_ORACLES: dict[str, Callable[..., Array]] = {
    "saliency": saliency,
    "input-x-gradient": input_x_gradient,
    "integrated-gradients": integrated_gradients,
    "smooth-grad": partial(smooth_grad, kind="mean"),
    "smooth-grad-squared": partial(smooth_grad, kind="squared"),
    "var-grad": partial(smooth_grad, kind="variance"),
    "gradient-shap": gradient_shap,
    "blur-ig": blur_ig,
    "guided-ig": guided_ig,
    "xrai": xrai,
    "guided-backprop": guided_backprop,
    "deconvnet": deconvnet,
    "deep-lift": deep_lift,
    "guided-grad-cam": guided_grad_cam,
}
"""What proves each of these methods."""
