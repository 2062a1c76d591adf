"""Six class activation maps that are six formulas over the same two tensors.

A = activations (B, C, h, w), G = gradients of the score with respect to A. All return the map (B, h, w) before
rectification; those that are not signed are then cut at 0, as their papers do. On a network that ends in global average
pooling and one linear layer, grad-cam, hires-cam and xgrad-cam at the last grid are the same map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sightline.engine.capture import Capture
from sightline.errors import MethodError
from sightline.methods.registry import method, on_finest, share_of_maximum


def activations_and_gradients(capture: Capture) -> tuple[Tensor, Tensor]:
    """(A, G), `at_least_single`."""
    if capture.gradients is None:
        raise MethodError("this capture holds no gradients; ask for a target first")
    return at_least_single(capture.activations), at_least_single(capture.gradients)


def scores_of(capture: Capture) -> Tensor:
    """(B,), or a refusal where they were not asked for."""
    if capture.scores is None:
        raise MethodError("this capture holds no scores; ask for a target first")
    return capture.scores


def at_least_single(values: Tensor) -> Tensor:
    """Half precision raised to float32, because sums over hundreds of channels need it."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def weighted_sum(weights: Tensor, a: Tensor) -> Tensor:
    """sum_k w_k A^k for weights (B, C), or (C,) for all images."""
    return torch.einsum("bc,bchw->bhw", weights.to(a).expand(len(a), -1), a)


@method("grad-cam", needs="gradients", reference="Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2")
def grad_cam(capture: Capture) -> Tensor:
    """Where the channels that raise the score are active.

    Formula: w_k = mean over space of G^k; map = ReLU(sum_k w_k A^k). In units of the score per cell.

    Differs: pytorch-grad-cam and torch-cam stretch every map from its lowest to its highest value, so that a weak map looks as
    strong as any; captum resizes to the nearest cell and does not rectify.
    """
    a, g = activations_and_gradients(capture)
    return weighted_sum(g.mean(dim=(2, 3)), a)


@method(
    "grad-cam++",
    needs="gradients",
    unit="own",
    reference="Chattopadhay et al. 2018, arXiv:1710.11063, eq. 10, 11 and 19",
)
def grad_cam_plus_plus(capture: Capture, *, normalise: bool = False) -> Tensor:
    """Grad-CAM that gives every place where a feature occurs the same say, so that several objects show.

    Formula: alpha = 1 / (2 + G * sum over space of A) where G > 0, else 0; w_k = sum over space of alpha * G;
    map = ReLU(sum_k w_k A^k). The paper's exponential score only multiplies the map by exp(score), which is left out.
    Where 2 + G * sum A <= 0 (possible only for negative activations) the formula has no meaning and alpha is 0.

    Args:
        normalise: divide alpha by its sum over space, channel by channel, as the authors' released code does. On a network
            that ends in pooling and one linear layer this is layer-cam.

    Differs: pytorch-grad-cam adds 1e-6 to denominators near 7e-7, which shrinks weights unevenly; torch-cam divides a copy, so
    that its weight is the sum of ReLU(G)^3.
    """
    a, g = activations_and_gradients(capture)
    below = 2 + g * a.sum(dim=(2, 3), keepdim=True)
    alpha = torch.where((g > 0) & (below > 0), 1 / below, 0)
    if normalise:
        total = alpha.sum(dim=(2, 3), keepdim=True)
        alpha = alpha / torch.where(total > 0, total, 1)
    return weighted_sum((alpha * g.relu()).sum(dim=(2, 3)), a)


@method("xgrad-cam", needs="gradients", reference="Fu et al. 2020, arXiv:2008.02312, eq. 8")
def xgrad_cam(capture: Capture) -> Tensor:
    """Grad-CAM with gradients weighted by activation, so that the whole map sums to the score's linear part.

    Formula: w_k = (sum over space of G * A) / (sum over space of A), 0 where a channel sums to 0 up to rounding;
    map = ReLU(sum_k w_k A^k). In units of the score per cell.

    Differs: pytorch-grad-cam divides by the sum without looking whether it is near 0.
    """
    a, g = activations_and_gradients(capture)
    total = a.sum(dim=(2, 3))
    # A sum of signed activations that is 0 comes out as rounding, which must not become a huge weight.
    rounding = torch.finfo(a.dtype).eps * a.abs().sum(dim=(2, 3))
    return weighted_sum(torch.where(total.abs() > rounding, (g * a).sum(dim=(2, 3)) / total, 0), a)


@method("hires-cam", needs="gradients", signed=True, reference="Draelos and Carin 2020, arXiv:2011.08891, eq. 3")
def hires_cam(capture: Capture) -> Tensor:
    """Where the layer really raised (+) or lowered (-) the score, cell by cell.

    Formula: map = sum_k G^k * A^k, signed. In units of the score per cell; for one linear layer on top the sum of the map
    is the score without its bias.

    Differs: pytorch-grad-cam cuts negative values and stretches the rest, after which the map adds up to nothing.
    """
    a, g = activations_and_gradients(capture)
    return (g * a).sum(dim=1)


def _max_of_tanh(maps: Sequence[Tensor]) -> Tensor:
    """LayerCAM's way to fuse layers: tanh(2 M / max M) for the shallow ones, M / max M for the deepest, then the maximum."""
    *shallow, deepest = [share_of_maximum(one) for one in maps]
    return on_finest([*((2 * one).tanh() for one in shallow), deepest]).amax(dim=0)


@method(
    "layer-cam",
    needs="gradients",
    reference="Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, eq. 5, 6 and 9",
    fuse=_max_of_tanh,
)
def layer_cam(capture: Capture) -> Tensor:
    """Only what speaks for the class, cell by cell; finer than Grad-CAM at earlier layers.

    Formula: map = ReLU(sum_k ReLU(G^k) * A^k). In units of the score per cell. Several layers: the maximum of tanh(2 M / max M)
    for the shallow ones and M / max M for the deepest.

    Differs: over several layers pytorch-grad-cam takes the mean, and torch-cam tanh(2 M) of the deepest too.
    """
    a, g = activations_and_gradients(capture)
    return (g.relu() * a).sum(dim=1)


@method("grad-cam-elementwise", needs="gradients", reference="pytorch-grad-cam, GradCAMElementWise (no paper)")
def grad_cam_elementwise(capture: Capture) -> Tensor:
    """HiResCAM with everything that lowers the score dropped channel by channel, before channels are added.

    Formula: map = sum_k ReLU(G^k * A^k), never negative. In units of the score per cell.
    """
    a, g = activations_and_gradients(capture)
    return (g * a).relu().sum(dim=1)
