"""Maps from what a layer says alone: what its channels have in common. They cost one pass and know of no class.

A = activations (B, C, h, w), seen as a table of cells (h * w rows) by channels. G = gradients, for eigengrad-cam alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.engine.capture import Capture
from sightline.errors import MethodError
from sightline.methods.gradient_cams import activations_and_gradients, at_least_single
from sightline.methods.registry import method


def _cells(grids: Tensor) -> Tensor:
    """(B, C, h, w) -> a table (B, h * w, C) in float64: a Gram matrix squares what rounding there is."""
    return grids.double().flatten(2).transpose(1, 2)


def _first_component(gram: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """sqrt(l_1) u_1 of symmetric tables (B, n, n): each row's coordinate on the first principal axis, (B, n)."""
    values, vectors = torch.linalg.eigh(gram)
    highest = values[..., -1:]
    # What is left of a table of equal rows after centring is rounding, and no component.
    rounding = gram.shape[-1] * torch.finfo(gram.dtype).eps * scale
    found: Tensor = vectors[..., -1] * torch.where(highest > rounding, highest, 0).sqrt()
    return found


_MOST_CELLS = 4096


def _agreeing(found: Tensor, reference: Tensor) -> Tensor:
    """A component, whose sign is free, with the sign that agrees with the reference; both (B, n)."""
    along = (found * reference).sum(dim=1, keepdim=True)
    return torch.where(along < 0, -found, found)


def _projected(grids: Tensor) -> Tensor:
    """A v_1, with v_1 the first right singular vector of the uncentred table, (B, h, w); 0 where the table is 0."""
    batch, channels, h, w = grids.shape
    grids, broken = _without_broken(grids)
    scale = grids.abs().amax(dim=(1, 2, 3), keepdim=True)  # so that no square over- or underflows
    table = _cells(grids / torch.where(scale > 0, scale, 1))
    if h * w <= channels:
        found = _first_component(table @ table.mT, 0.0)
    else:
        _, vectors = torch.linalg.eigh(table.mT @ table)
        found = (table @ vectors[..., -1:])[..., 0]
    found = _agreeing(found, table.sum(dim=2)).reshape(batch, h, w)
    return (found * scale[:, 0]).to(grids.dtype).masked_fill(broken, torch.nan)


def _without_broken(grids: Tensor) -> tuple[Tensor, Tensor]:
    """Images that hold NaN or infinity set to 0, because no factorisation takes them, and which they are (B, 1, 1)."""
    broken = ~grids.isfinite().flatten(1).all(dim=1)[:, None, None]
    return grids.masked_fill(broken[:, None], 0), broken


@method(
    "eigen-cam",
    needs="activations",
    class_specific=False,
    unit="own",
    reference="Muhammad and Yeasin 2020, arXiv:2008.00299",
)
def eigen_cam(capture: Capture) -> Tensor:
    """What most of the layer's channels have in common, whatever the class.

    Formula: map = A v_1, with v_1 the first right singular vector of the table of cells by channels, not centred. The
    sign of a singular vector is free: it is taken so that the map agrees with the sum of the channels (dot product > 0).

    Differs: pytorch-grad-cam centres the channels first, which is another map, and leaves its sign to chance.
    """
    return _projected(at_least_single(capture.activations))


@method(
    "eigengrad-cam",
    needs="gradients",
    signed=True,
    unit="own",
    reference="pytorch-grad-cam, EigenGradCAM (no paper); eigen-cam of G * A",
)
def eigengrad_cam(capture: Capture) -> Tensor:
    """What most of the channels that move the score have in common: eigen-cam made class-specific.

    Formula: map = first singular component of the table of G * A, not centred, with the sign of sum_k G^k A^k.

    Differs: pytorch-grad-cam centres the channels first, and leaves the sign to chance.
    """
    a, g = activations_and_gradients(capture)
    return _projected(a * g)


@method(
    "kpca-cam",
    needs="activations",
    signed=True,
    class_specific=False,
    unit="own",
    reference="Karmani et al. 2024, arXiv:2410.00267; the code its author gave pytorch-grad-cam",
)
def kpca_cam(capture: Capture, *, kernel: str = "sigmoid", gamma: float = 0.0) -> Tensor:
    """Eigen-CAM with a kernel, which lets cells be alike in a curved way.

    Formula: K_ij = k(a_i, a_j) over cells a_i whose channels were centred; K centred in feature space; map = sqrt(l_1) u_1.
    Sigmoid: tanh(gamma a_i.a_j + 1); rbf: exp(-gamma |a_i - a_j|^2); linear: a_i.a_j. Its sign is taken as for eigen-cam.

    Args:
        kernel: "sigmoid", "rbf" or "linear".
        gamma: width of the kernel; 0 stands for 1 / channels.
    """
    a, broken = _without_broken(at_least_single(capture.activations))
    if a.shape[2] * a.shape[3] > _MOST_CELLS:
        raise MethodError(
            f"kpca-cam compares every cell with every other, too much for the {a.shape[2]}x{a.shape[3]} cells of layer "
            f"{capture.layer!r}; take a deeper layer, or eigen-cam"
        )
    if kernel == "rbf" and gamma < 0:
        raise MethodError(f"gamma is {gamma}; expected 0 or more")
    table = _cells(a)
    centred = table - table.mean(dim=1, keepdim=True)
    width = gamma or 1 / a.shape[1]
    inner = centred @ centred.mT
    if kernel == "sigmoid":
        gram = torch.tanh(width * inner + 1)
    elif kernel == "rbf":
        gram = torch.exp(-width * torch.cdist(centred, centred).square())
    elif kernel == "linear":
        gram = inner
    else:
        raise MethodError(f"kernel {kernel!r} of kpca-cam; expected sigmoid, rbf or linear")
    scale = gram.abs().amax(dim=(1, 2))[:, None]
    gram = gram - gram.mean(dim=1, keepdim=True) - gram.mean(dim=2, keepdim=True) + gram.mean(dim=(1, 2), keepdim=True)
    found = _first_component(gram, scale)
    total = table.sum(dim=2)
    found = _agreeing(found, total - total.mean(dim=1, keepdim=True)).reshape(len(a), *a.shape[2:])
    return found.to(a.dtype).masked_fill(broken, torch.nan)


@method(
    "fem",
    needs="activations",
    class_specific=False,
    unit="own",
    reference="Fuad et al. 2020, Features understanding in 3D CNNs, IPTA (hal-02963298)",
)
def fem(capture: Capture, *, k: float = 2.0) -> Tensor:
    """Where channels are unusually active, whatever the class.

    Formula: b^k = 1 where A^k > mean + k * standard deviation over space, else 0; w_k = mean of A^k; map = sum_k w_k b^k.

    Args:
        k: how many standard deviations above its mean a cell must lie.
    """
    a = at_least_single(capture.activations)
    mean = a.mean(dim=(2, 3), keepdim=True)
    rare = a > mean + k * a.std(dim=(2, 3), keepdim=True, correction=0)
    # Of a channel that is the same everywhere no cell is rare; its mean only rounds.
    low, high = a.amin(dim=(2, 3), keepdim=True), a.amax(dim=(2, 3), keepdim=True)
    rare &= high - low > 8 * torch.finfo(a.dtype).eps * torch.maximum(high.abs(), low.abs())
    return (mean * rare).sum(dim=1)


@method(
    "random",
    needs="activations",
    signed=True,
    class_specific=False,
    unit="own",
    reference="a control: Adebayo et al. 2018, arXiv:1810.03292, say why one is needed",
)
def random(capture: Capture, *, seed: int = 0) -> Tensor:
    """A control that knows nothing: channels weighted by chance. A method that looks no better shows the layer, not the class.

    Formula: map = sum_k w_k A^k, w_k drawn uniformly from -1 to 1.

    Args:
        seed: of the draw; the same for every image.
    """
    a = at_least_single(capture.activations)
    weights = torch.rand(a.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return torch.einsum("c,bchw->bhw", weights.to(a), a)
