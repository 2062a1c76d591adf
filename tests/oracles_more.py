"""Slow, obvious reference implementations of more class activation maps, written from the papers and the authors' code.

They import nothing from the library under test. Only numpy, only float64. For ONE image: A is the activations and
G = d score / d A the gradients, both (C, h, w); k runs over channels, i over rows, j over columns; Z = h * w. A model
is a plain callable on numpy arrays that returns a float. Maps are (h, w), at layer resolution, unless said otherwise;
nothing is scaled to [0, 1] unless the definition needs it. ``rectify=False`` leaves out a final ReLU.

The documentation of each method says where paper, authors' code and the two peer libraries differ.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Head = Callable[[Array], float]


# --- helpers ---------------------------------------------------------------------------------------------------------


def resize(image: Array, size: tuple[int, int], *, align_corners: bool = False) -> Array:
    """Bilinear resize of (h, w) to ``size`` = (H, W), as torch.nn.functional.interpolate(mode="bilinear") defines it."""
    image = _float64(image, 2)
    rows, columns = image.shape
    height, width = size
    resized = np.zeros((height, width))
    for y in range(height):
        v = _source_position(y, height, rows, align_corners)
        i = math.floor(v)
        i_next = min(i + 1, rows - 1)
        down = v - i
        for x in range(width):
            u = _source_position(x, width, columns, align_corners)
            j = math.floor(u)
            j_next = min(j + 1, columns - 1)
            right = u - j
            upper = (1 - right) * image[i, j] + right * image[i, j_next]
            lower = (1 - right) * image[i_next, j] + right * image[i_next, j_next]
            resized[y, x] = (1 - down) * upper + down * lower
    return resized


def numerical_hvp(gradient: Callable[[Array], Array], A: Array, step: float = 1e-5) -> Array:
    """H A by central differences of a gradient function: (g(A + s A) - g(A - s A)) / (2 s). For ``shapley_cam``."""
    A = _float64(A, 3)
    return (gradient(A + step * A) - gradient(A - step * A)) / (2 * step)


def _source_position(index: int, length: int, source_length: int, align_corners: bool) -> float:
    """Where pixel ``index`` of a row of ``length`` pixels lies on the source row, clamped to its outermost centres."""
    if align_corners:
        return index * (source_length - 1) / (length - 1) if length > 1 else 0.0
    return min(max((index + 0.5) * source_length / length - 0.5, 0.0), source_length - 1.0)


def _float64(array: Array, dimensions: int) -> Array:
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != dimensions:
        raise ValueError(f"need {dimensions} dimensions, not shape {array.shape}")
    return array


def _pair(A: Array, G: Array) -> tuple[Array, Array]:
    A, G = _float64(A, 3), _float64(G, 3)
    if A.shape != G.shape:
        raise ValueError(f"shapes differ: {A.shape} and {G.shape}")
    return A, G


def _sum(channel: Array) -> float:
    """Correctly rounded sum over a (h, w) channel."""
    return math.fsum(float(value) for row in channel for value in row)


def _mean(channel: Array) -> float:
    return _sum(channel) / channel.size


def _weighted_sum(weights: Sequence[float], A: Array) -> Array:
    """sum_k w_k A^k."""
    channels, height, width = A.shape
    cam = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                cam[i, j] += weights[k] * A[k, i, j]
    return cam


def _relu(cam: Array) -> Array:
    height, width = cam.shape
    rectified = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            rectified[i, j] = max(float(cam[i, j]), 0.0)
    return rectified


def _softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    exponentials = [math.exp(value - highest) for value in values]
    total = math.fsum(exponentials)
    return [exponential / total for exponential in exponentials]


def _cells_by_channels(A: Array) -> Array:
    """(C, h, w) to the matrix with one row per cell (row-major) and one column per channel."""
    channels, height, width = A.shape
    matrix = np.zeros((height * width, channels))
    for i in range(height):
        for j in range(width):
            for k in range(channels):
                matrix[i * width + j, k] = A[k, i, j]
    return matrix


def _with_sign_of(cam: Array, reference: Array) -> Array:
    """cam or -cam, whichever has a positive dot product with the reference; on a tie, the largest |value| positive."""
    dot = math.fsum(float(value) for value in (cam * reference).ravel())
    if dot == 0.0:
        flat = cam.ravel()
        dot = float(flat[int(np.argmax(np.abs(flat)))])
    return -cam if dot < 0 else cam


# --- class activation maps -------------------------------------------------------------------------------------------


def cam(A: Array, w: Array) -> Array:
    """CAM: sum_k w_k A^k, w the class's row of the linear layer after global pooling; signed, no bias (1512.04150 Eq. 2)."""
    A = _float64(A, 3)
    return _weighted_sum([float(weight) for weight in w], A)


def random_cam(A: Array, weights: Array, *, rectify: bool = True) -> Array:
    """Control: ReLU(sum_k r_k A^k), r_k drawn from uniform(-1, 1) by the caller (pytorch-grad-cam; no paper)."""
    raw = cam(A, weights)
    return _relu(raw) if rectify else raw


def eigen_cam(A: Array, *, centre: bool = False) -> Array:
    """Eigen-CAM: O v_1 with O (cells x channels) = U S V^T, not centred (2008.00299, L = O V_1). Signed, no ReLU.

    The sign is the project's rule: positive dot product with the channel-mean map. ``centre=True`` subtracts each
    channel's mean first, as pytorch-grad-cam does (with an arbitrary sign); the sign rule stays.
    """
    A = _float64(A, 3)
    reference = np.mean(A, axis=0)
    return _first_projection(A, reference, centre)


def eigengrad_cam(A: Array, G: Array, *, centre: bool = False) -> Array:
    """EigenGrad-CAM: Eigen-CAM of G * A; sign by the dot product with sum_k G^k A^k. Signed. No paper; uncentred here."""
    A, G = _pair(A, G)
    return _first_projection(G * A, np.sum(G * A, axis=0), centre)


def _first_projection(P: Array, reference: Array, centre: bool) -> Array:
    _, height, width = P.shape
    cells = _cells_by_channels(P)
    if centre:
        cells = cells - np.mean(cells, axis=0)
    _, _, right_vectors = np.linalg.svd(cells, full_matrices=False)
    projection = (cells @ right_vectors[0]).reshape(height, width)
    return _with_sign_of(projection, reference)


def kpca_cam(
    A: Array,
    kernel: str = "sigmoid",
    gamma: float | None = None,
    coef0: float = 1,
    *,
    degree: int = 3,
    centre_features: bool = True,
) -> Array:
    """KPCA-CAM: scores of the cells on the first kernel principal component (2410.00267). Signed, no ReLU.

    As the authors' code (pytorch_grad_cam/utils/svd_on_activations.py, get_2d_projection_kernel) and scikit-learn's
    KernelPCA do it: each channel's mean over the cells is subtracted first (``centre_features``; whether the paper says
    so is not verified), gamma defaults to 1 / C, the kernel matrix is centred, and the map is sqrt(l) u with (l, u) the
    eigenpair of the largest (algebraic) eigenvalue. Sign as in ``eigen_cam`` (theirs is arbitrary).
    """
    A = _float64(A, 3)
    channels, height, width = A.shape
    X = _cells_by_channels(A)
    if centre_features:
        X = X - np.mean(X, axis=0)
    if gamma is None:
        gamma = 1.0 / channels
    cells = height * width
    K = np.zeros((cells, cells))
    for a in range(cells):
        for b in range(cells):
            product = float(X[a] @ X[b])
            difference = X[a] - X[b]
            if kernel == "sigmoid":
                K[a, b] = math.tanh(gamma * product + coef0)
            elif kernel == "linear":
                K[a, b] = product
            elif kernel == "poly":
                K[a, b] = (gamma * product + coef0) ** degree
            elif kernel == "rbf":
                K[a, b] = math.exp(-gamma * float(difference @ difference))
            else:
                raise ValueError(f"unknown kernel {kernel!r}")
    centred = np.zeros((cells, cells))
    row_means = np.mean(K, axis=1)
    overall_mean = float(np.mean(K))
    for a in range(cells):
        for b in range(cells):
            centred[a, b] = K[a, b] - row_means[a] - row_means[b] + overall_mean
    eigenvalues, eigenvectors = np.linalg.eigh(centred)
    scores = math.sqrt(max(float(eigenvalues[-1]), 0.0)) * eigenvectors[:, -1]
    return _with_sign_of(scores.reshape(height, width), np.mean(A, axis=0))


def fem(A: Array, k: float = 2) -> Array:
    """FEM: sum_c mu_c B_c, B_c = 1 where A^c > mu_c + k sigma_c (Fuad et al. 2020, hal-02963298).

    mu_c and sigma_c (population) are over the cells of channel c. As in the authors' notebook (github.com/labribkb/fem,
    functions compute_binary_maps and aggregate_binary_maps): strict >, k = 2, BINARY maps weighted by channel means.
    At most a share 1 / (1 + k^2) of a channel's cells can be marked, and none at k = 2 when h * w <= 5.
    """
    A = _float64(A, 3)
    channels, height, width = A.shape
    total = np.zeros((height, width))
    for c in range(channels):
        mean = _mean(A[c])
        variance = _mean((A[c] - mean) ** 2)
        threshold = mean + k * math.sqrt(variance)
        for i in range(height):
            for j in range(width):
                if A[c, i, j] > threshold:
                    total[i, j] += mean
    return total


def shapley_cam(A: Array, G: Array, HA: Array, *, elementwise: bool = False, rectify: bool = True) -> Array:
    """ShapleyCAM: ReLU(sum_k w_k A^k), w_k = mean_ij (G - H A / 2)^k_ij, H the score's Hessian in A (2501.06261).

    ``elementwise=True`` is sum_k (G - H A / 2)^k * A^k: what the class called ShapleyCAM in the authors' repository
    computes; the averaged form is their ShapleyCAM_mean and what they merged into pytorch-grad-cam. Their score is
    ReST = logit + log probability. With the plain logit and a piecewise linear head H = 0 and this is Grad-CAM.
    """
    A, G = _pair(A, G)
    _, HA = _pair(A, HA)
    E = G - 0.5 * HA
    if elementwise:
        raw = np.zeros(A.shape[1:])
        for k in range(A.shape[0]):
            raw += E[k] * A[k]
    else:
        raw = _weighted_sum([_mean(E[k]) for k in range(A.shape[0])], A)
    return _relu(raw) if rectify else raw


def finer_weights(
    logits: Array, target: int, others: Sequence[int], alpha: float = 1.0, *, mode: str = "detached"
) -> Array:
    """The v for which Finer-CAM is the base method on sum_i v_i logit_i (2501.11309); one ReLU, after the sum.

    The contrast score is S = sum_i q_i (y_t - alpha y_i), i in ``others``, q_i = p_i / sum_others p (the authors' 1e-9
    in that division is left out), p the softmax over all classes.
    "detached": q held constant: v_t = 1, v_i = -alpha q_i. methods.md's formula read as weights. v . logits = S.
    "through": v = dS / dlogits with q differentiated too: v_i = -alpha q_i (1 + y_i - sum_j q_j y_j). This is what the
    authors' FinerWeightedTarget and pytorch-grad-cam do in effect (they do not detach the softmax).
    "paper": q_i = 1 / number of others (the paper's plain mean, there with alpha = gamma = 0.6; torch-cam does this).
    """
    logits = _float64(logits, 1)
    if target in others or len(set(others)) != len(others):
        raise ValueError("the others must be distinct and not the target")
    v = np.zeros(len(logits))
    v[target] = 1.0
    if not others:
        return v
    # The softmax over all classes, renormalised over the others, is the softmax over the others.
    q = [1.0 / len(others)] * len(others) if mode == "paper" else _softmax([float(logits[i]) for i in others])
    average = math.fsum(q_i * float(logits[i]) for q_i, i in zip(q, others, strict=True))
    for q_i, i in zip(q, others, strict=True):
        if mode in ("detached", "paper"):
            v[i] = -alpha * q_i
        elif mode == "through":
            v[i] = -alpha * q_i * (1.0 + float(logits[i]) - average)
        else:
            raise ValueError(f"unknown mode {mode!r}")
    return v


def full_grad(
    x: Array, grad_x: Array, bias_terms: Sequence[Array], *, eps: float = 0.0, align_corners: bool = False
) -> Array:
    """FullGrad: sum_c psi(x * grad_x)_c + sum_l sum_c psi(b_l * g_l)_c, (H, W) of the input (1905.00780, Sec. 4).

    psi: absolute value; subtract the smallest and divide by the largest (+ eps) value over the WHOLE (C, h, w) layer;
    resize to the input; as in idiap/fullgrad-saliency, saliency/fullgrad.py. Theirs has eps = 1e-6 and
    align_corners=True; the project has neither. A constant layer gives 0. ``bias_terms`` holds layers with a spatial
    extent only (conv, batch norm); linear biases count for completeness but are in no map. The batch norm's b is
    beta - mean * gamma / sqrt(var + eps).
    """
    x, grad_x = _pair(x, grad_x)
    size = (x.shape[1], x.shape[2])
    total = np.zeros(size)
    for term in [x * grad_x, *bias_terms]:
        magnitude = np.abs(_float64(term, 3))
        magnitude = magnitude - magnitude.min()
        largest = float(magnitude.max())
        if largest == 0.0:
            continue
        for channel in magnitude:
            total += resize(channel / (largest + eps), size, align_corners=align_corners)
    return total


def full_grad_total(x: Array, grad_x: Array, bias_terms: Sequence[Array]) -> float:
    """sum x * grad_x + sum of all b * g, of ANY shape: equals the logit of a ReLU network (1905.00780, Proposition 1).

    Give every bias, also the linear layers' and, for activations other than ReLU, their implicit ones
    f(z) - f'(z) z times the gradient at f's output.
    """
    parts = [float(value) for value in np.asarray(x * grad_x, dtype=np.float64).ravel()]
    for term in bias_terms:
        parts.extend(float(value) for value in np.asarray(term, dtype=np.float64).ravel())
    return math.fsum(parts)


def smooth_grad_cam_pp(
    As: Sequence[Array],
    Gs: Sequence[Array],
    A: Array,
    G: Array,
    *,
    numerator: str = "second",
    weight_gradient: str = "mean",
    activations: str = "clean",
    rectify: bool = True,
) -> Array:
    """Smooth Grad-CAM++: ReLU(sum_k w_k A^k) (1908.01224). As, Gs are of the noisy copies, A and G of the image itself.

    D1, D2, D3 = mean over the copies of G, G^2, G^3 (score exp(S), S piecewise linear, the factor exp(S) of each copy
    dropped). alpha = D2 / (2 D2 + (sum_ab A) D3), w_k = sum_ij alpha ReLU(D1), A and its sum from the clean image.
    alpha is 0 where its denominator is not positive (as in ``grad_cam_plus_plus``). One noiseless copy = Grad-CAM++.

    ``numerator="first"``: D1 over the same denominator, as the paper is quoted to print it (taken for a misprint: it
    does not reduce to Grad-CAM++). ``weight_gradient="clean"`` puts the image's own G in the ReLU, "last" the last
    copy's (torch-cam). ``activations="mean"`` takes sum_ab of the mean noisy activations. Each power is exact.
    """
    A, G = _pair(A, G)
    copies = [_pair(A_n, G_n) for A_n, G_n in zip(As, Gs, strict=True)]
    if not copies:
        raise ValueError("need at least one noisy copy")
    n = len(copies)
    channels, height, width = A.shape
    weights = []
    for k in range(channels):
        if activations == "clean":
            sum_of_activations = Fraction(_sum(A[k]))
        elif activations == "mean":
            sum_of_activations = sum((Fraction(_sum(A_n[k])) for A_n, _ in copies), Fraction(0)) / n
        else:
            raise ValueError(f"unknown activations {activations!r}")
        weight = 0.0
        for i in range(height):
            for j in range(width):
                gradients = [Fraction(float(G_n[k, i, j])) for _, G_n in copies]
                D1 = sum(gradients, Fraction(0)) / n
                D2 = sum((g**2 for g in gradients), Fraction(0)) / n
                D3 = sum((g**3 for g in gradients), Fraction(0)) / n
                denominator = 2 * D2 + sum_of_activations * D3
                if denominator <= 0:
                    continue
                if numerator not in ("first", "second"):
                    raise ValueError(f"unknown numerator {numerator!r}")
                alpha = (D2 if numerator == "second" else D1) / denominator
                if weight_gradient == "mean":
                    gradient = float(D1)
                elif weight_gradient == "clean":
                    gradient = float(G[k, i, j])
                elif weight_gradient == "last":
                    gradient = float(copies[-1][1][k, i, j])
                else:
                    raise ValueError(f"unknown weight gradient {weight_gradient!r}")
                weight += float(alpha) * max(gradient, 0.0)
        weights.append(weight)
    raw = _weighted_sum(weights, A)
    return _relu(raw) if rectify else raw


def layer_cam_fused(
    layers: Sequence[tuple[Array, Array]],
    shallow: Sequence[bool],
    *,
    gamma: float = 2.0,
    size: tuple[int, int] | None = None,
) -> Array:
    """LayerCAM over several layers: element-wise maximum of scaled maps (Jiang et al., IEEE TIP 2021).

    Per layer M = ReLU(sum_k ReLU(G^k) A^k). A shallow map becomes tanh(gamma M / max M) (Eq. 9), a deep one M / max M
    (so that the maximum compares like with like; not verified in the paper's text); a map that is 0 stays 0. Then every
    map is resized to ``size`` (the largest h and w if None). The fusion by maximum is the authors' (their released code
    has none; PengtaoJiang in pytorch-grad-cam issue 106).
    """
    if size is None:
        size = (max(A.shape[1] for A, _ in layers), max(A.shape[2] for A, _ in layers))
    fused = np.zeros(size)
    for (A, G), is_shallow in zip(layers, shallow, strict=True):
        A, G = _pair(A, G)
        channels, height, width = A.shape
        M = np.zeros((height, width))
        for k in range(channels):
            for i in range(height):
                for j in range(width):
                    M[i, j] += max(float(G[k, i, j]), 0.0) * A[k, i, j]
        M = _relu(M)
        largest = float(M.max())
        if largest > 0:
            for i in range(height):
                for j in range(width):
                    share = M[i, j] / largest
                    M[i, j] = math.tanh(gamma * share) if is_shallow else share
        resized = resize(M, size)
        for y in range(size[0]):
            for x in range(size[1]):
                fused[y, x] = max(fused[y, x], resized[y, x])
    return fused


def refine_cam(maps: Sequence[Array], *, size: tuple[int, int] | None = None, scale: str = "max") -> Array:
    """RefineCAM: element-wise product of the layers' maps, each resized and scaled to [0, 1] (2605.14641).

    As liuktc/RefineCAM (MultiplierMix over all layers in run_experiments.py): resize first (bilinear), then scale.
    ``scale="min-max"`` is theirs; "max" (project) divides a rectified map by its maximum, and is the same where the
    resized map has a 0. A constant map gives 0 with min-max, a map of zeros gives 0 with either. The product is not
    scaled again here. Maps are rectified first; ``size`` defaults to the largest h and w.
    """
    if size is None:
        size = (max(m.shape[0] for m in maps), max(m.shape[1] for m in maps))
    product = np.ones(size)
    for m in maps:
        resized = resize(_relu(_float64(m, 2)), size)
        if scale == "min-max":
            resized = resized - resized.min()
        elif scale != "max":
            raise ValueError(f"unknown scale {scale!r}")
        largest = float(resized.max())
        product = product * (resized / largest if largest > 0 else np.zeros(size))
    return product


def ablation_cam(A: Array, score_head: Head, *, relative: bool = False, rectify: bool = True) -> Array:
    """Ablation-CAM: ReLU(sum_k w_k A^k), w_k = y - y_k, y_k the score with A^k = 0 (Desai & Ramaswamy, WACV 2020).

    ``relative=True`` divides by y as the paper does; the project does not (the sign would flip where y < 0).
    """
    A = _float64(A, 3)
    y = score_head(A)
    weights = []
    for k in range(A.shape[0]):
        ablated = A.copy()
        ablated[k] = 0.0
        drop = y - score_head(ablated)
        weights.append(drop / y if relative else drop)
    raw = _weighted_sum(weights, A)
    return _relu(raw) if rectify else raw


# --- Score-CAM and its variants --------------------------------------------------------------------------------------


def score_cam(
    A: Array, x: Array, score: Head, *, authors: bool = False, baseline: Array | None = None, rectify: bool = True
) -> Array:
    """Score-CAM: ReLU(sum_k w_k A^k), w = softmax over channels of f(x * M_k) - f(x_b) (1910.01279 v2, Algorithm 1).

    M_k is A^k resized to the input, THEN scaled to [0, 1] by its minimum and maximum. x_b is black (zeros) unless
    given; it cancels in the softmax. A channel whose resized map is constant has no mask and is left out. The paper's
    f is the class's softmax PROBABILITY. ``authors=True``: w_k = f(x * M_k) itself, no softmax over channels, no
    baseline (github.com/haofanwang/Score-CAM, cam/scorecam.py, and the paper's v1); they rectify after upsampling.
    """
    return _score_weighted(A, x, score, lambda masked, k: [masked], authors, baseline, rectify)


def ss_cam(
    A: Array,
    x: Array,
    score: Head,
    noises: Sequence[Array],
    *,
    variant: str = "mask",
    authors: bool = False,
    baseline: Array | None = None,
    rectify: bool = True,
) -> Array:
    """SS-CAM: Score-CAM with f(x * M_k) replaced by its mean over noisy versions (2006.14255).

    ``variant="mask"``, SS-CAM (1): f(x * (M_k + noises[n][k])), each noise (C, H, W) (or (H, W) for all channels).
    ``variant="input"``, SS-CAM (2): f(x * M_k + noises[n][k]), each noise (C, 3, H, W) (or (3, H, W) for all channels).
    One noise of zeros = ``score_cam``. ``authors=True`` as there (mean probability as weight). Their notebook
    (ankitaghosh9/Variations-on-Score-CAM) draws 35 with standard deviation (2 / (max - min))^2 of what it perturbs.
    """
    x = _float64(x, 3)

    def noisy(masked: Array, k: int) -> list[Array]:
        versions = []
        for noise in noises:
            noise = np.asarray(noise, dtype=np.float64)
            full = noise.ndim == (3 if variant == "mask" else 4)
            own = noise[k] if full else noise
            versions.append(masked + (x * own if variant == "mask" else own))
        return versions

    if variant not in ("mask", "input"):
        raise ValueError(f"unknown variant {variant!r}")
    return _score_weighted(A, x, score, noisy, authors, baseline, rectify)


def is_cam_coefficients(n: int, path: str = "authors") -> list[float]:
    """The factors of the masked input at which IS-CAM evaluates the score (2010.03023).

    "authors": i (i + 1) / (2 n), i = 1..n: their notebook's running sum of i / n (also torch-cam). It ends at
    (n + 1) / 2, far brighter than the image. "straight": i / n, i = 1..n: a path from black to the masked input.
    "paper": i (i - 1) / (2 n), i = 0..n, as torch-cam issue 154 quotes the paper; n = 1 is then no Score-CAM.
    """
    if path == "authors":
        return [i * (i + 1) / (2 * n) for i in range(1, n + 1)]
    if path == "straight":
        return [i / n for i in range(1, n + 1)]
    if path == "paper":
        return [i * (i - 1) / (2 * n) for i in range(n + 1)]
    raise ValueError(f"unknown path {path!r}")


def is_cam(
    A: Array,
    x: Array,
    score: Head,
    n: int = 10,
    *,
    path: str = "authors",
    authors: bool = False,
    baseline: Array | None = None,
    rectify: bool = True,
) -> Array:
    """IS-CAM: Score-CAM with f(x * M_k) replaced by (1 / n) sum_i f(c_i x * M_k), c_i from ``is_cam_coefficients``.

    (2010.03023.) n = 1 = ``score_cam`` (not for path="paper"). ``authors=True`` as in ``score_cam``. The paper's sum has
    n + 1 terms and is still divided by n.
    """
    coefficients = is_cam_coefficients(n, path)

    def along_path(masked: Array, k: int) -> list[Array]:
        return [coefficient * masked for coefficient in coefficients]

    return _score_weighted(A, x, score, along_path, authors, baseline, rectify, divisor=n)


def _score_weighted(
    A: Array,
    x: Array,
    score: Head,
    versions: Callable[[Array, int], list[Array]],
    authors: bool,
    baseline: Array | None,
    rectify: bool,
    divisor: int | None = None,
) -> Array:
    """Score-CAM's frame: ``versions`` turns the masked input of channel k into the inputs whose scores are averaged."""
    A, x = _float64(A, 3), _float64(x, 3)
    baseline_score = score(np.zeros(x.shape) if baseline is None else baseline)
    kept, scores = [], []
    for k in range(A.shape[0]):
        mask = resize(A[k], (x.shape[1], x.shape[2]))
        lowest, highest = float(mask.min()), float(mask.max())
        if highest == lowest:
            continue
        mask = (mask - lowest) / (highest - lowest)
        inputs = versions(x * mask, k)
        total = math.fsum(score(version) - (0.0 if authors else baseline_score) for version in inputs)
        kept.append(k)
        scores.append(total / (len(inputs) if divisor is None else divisor))
    weights = [0.0] * A.shape[0]
    if kept:
        for k, weight in zip(kept, scores if authors else _softmax(scores), strict=True):
            weights[k] = weight
    raw = _weighted_sum(weights, A)
    return _relu(raw) if rectify else raw


# --- Recipro-CAM and Deep Feature Factorisation ----------------------------------------------------------------------


GAUSSIAN = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16.0


def recipro_cam(A: Array, score_head: Head, gaussian: bool = True, *, spread: str = "value") -> Array:
    """Recipro-CAM: at each cell, the score of the head when only that cell of A is kept (2209.14074). Raw scores.

    ``gaussian=False``: everything but the cell (i, j) is 0 (what both released CNN classes run: sybyun/ReciproCAM,
    openvinotoolkit/datumaro). ``gaussian=True``: a 3x3 patch, weights 1-2-1 by 1-2-1 over 16, cut off at the border and
    not renormalised; ``spread="value"`` fills it with the vector A[:, i, j] times the weights (their code),
    ``spread="mask"`` with A's own neighbours times the weights (OTX's vision transformer hook).
    The authors' score is the softmax probability, and they scale the map by its minimum and maximum; not done here.
    """
    A = _float64(A, 3)
    if spread not in ("value", "mask"):
        raise ValueError(f"unknown spread {spread!r}")
    _, height, width = A.shape
    scores = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            kept = np.zeros(A.shape)
            if not gaussian:
                kept[:, i, j] = A[:, i, j]
            else:
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        a, b = i + di, j + dj
                        if 0 <= a < height and 0 <= b < width:
                            source = A[:, i, j] if spread == "value" else A[:, a, b]
                            kept[:, a, b] = GAUSSIAN[di + 1, dj + 1] * source
            scores[i, j] = score_head(kept)
    return scores


def dff(A: Array, k: int, iterations: int, W0: Array, H0: Array, *, tiny: float = 1e-7) -> tuple[Array, Array]:
    """Deep Feature Factorisation: V ~ W H by Lee & Seung's multiplicative updates, W first, then H (1806.10206).

    V is A as (cells x channels), which must not be negative; W (cells x k) holds the maps, H (k x C) the concepts. As
    in github.com/edocollins/DFF, nmf.py, which starts from |normal| * sqrt(mean(V) / k), puts 1e-7 for a denominator
    that is exactly 0, and stops early by tolerance (not here).
    """
    A = _float64(A, 3)
    if A.min() < 0:
        raise ValueError("activations must not be negative")
    V = _cells_by_channels(A)
    W, H = np.array(W0, dtype=np.float64), np.array(H0, dtype=np.float64)
    if W.shape != (V.shape[0], k) or H.shape != (k, V.shape[1]):
        raise ValueError(f"W0 and H0 must be {(V.shape[0], k)} and {(k, V.shape[1])}")
    for _ in range(iterations):
        denominator = W @ (H @ H.T)
        W = W * (V @ H.T) / np.where(denominator == 0, tiny, denominator)
        denominator = (W.T @ W) @ H
        H = H * (W.T @ V) / np.where(denominator == 0, tiny, denominator)
    return W, H


def dff_maps(W: Array, size: tuple[int, int]) -> Array:
    """The columns of W as (k, h, w) maps."""
    height, width = size
    maps = np.zeros((W.shape[1], height, width))
    for concept in range(W.shape[1]):
        for i in range(height):
            for j in range(width):
                maps[concept, i, j] = W[i * width + j, concept]
    return maps


def dff_error(A: Array, W: Array, H: Array) -> float:
    """|| V - W H || (Frobenius), the objective of ``dff``."""
    difference = _cells_by_channels(_float64(A, 3)) - W @ H
    return math.sqrt(math.fsum(float(value) ** 2 for value in difference.ravel()))


def random(A: Array, seed: int = 0) -> Array:
    """The control with its own draw: uniform weights from -1 to 1 from torch's seeded generator, not rectified."""
    import torch

    draw = torch.rand(A.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return random_cam(A, draw.numpy() * 2 - 1, rectify=False)


MORE_ORACLES = {
    "ablation-cam": ablation_cam,
    "cam": cam,
    "eigen-cam": eigen_cam,
    "eigengrad-cam": eigengrad_cam,
    "fem": fem,
    "finer-cam": finer_weights,
    "full-grad": full_grad,
    "is-cam": is_cam,
    "kpca-cam": kpca_cam,
    "random": random,
    "recipro-cam": recipro_cam,
    "refine-cam": refine_cam,
    "score-cam": score_cam,
    "shapley-cam": shapley_cam,
    "smooth-grad-cam++": smooth_grad_cam_pp,
    "ss-cam": ss_cam,
}
"""What proves each of these methods; test_more_cams.py holds them beside each other."""
