"""Maps that ask the model again: with the layer's output changed (the head alone), or with the picture masked.

A = activations (1, C, h, w), G = gradients, y = the target's score, f = the whole model's score, head = the score as a
function of the layer's output. All are of ONE image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.asked import Target
from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.engine.targets import probability, table
from sightline.errors import MethodError
from sightline.methods.gradient_cams import (
    activations_and_gradients,
    at_least_single,
    grad_cam,
    scores_of,
    weighted_sum,
)
from sightline.methods.registry import method


@method("cam", needs="head", signed=True, unit="own", reference="Zhou et al. 2016, arXiv:1512.04150, eq. 2")
def cam(capture: Capture, probe: Probe) -> Tensor:
    """The original: the class's own weights on the last feature maps. Only for networks that end in pooling and one linear layer.

    Formula: map = sum_k w_k^c A^k, signed. The score is the mean of the map plus the bias. That the head is mean pooling and
    one linear layer is tried out on grids of noise; a network with another head is refused.

    Differs: torch-cam takes the weights of whichever linear layer it finds, and does not look what lies between.
    """
    a, g = activations_and_gradients(probe.toward(probe.asked.score))
    weights = g.sum(dim=(0, 2, 3))  # Z * dy/dA of any cell
    size = a.abs().mean().clamp(min=1e-3)
    noise = torch.randn((2, *a.shape[1:]), generator=torch.Generator().manual_seed(0)).to(a) * size
    grids = torch.cat([torch.zeros_like(a), noise]).to(capture.activations.dtype)
    scores = at_least_single(probe.score_head(grids))
    expected = scores[0] + noise.mean(dim=(2, 3)) @ weights
    spread = float((scores[1:] - scores[0]).abs().max())
    tolerance = 0.02 if capture.activations.dtype.itemsize < 4 else 1e-3
    rounding = 4 * torch.finfo(capture.activations.dtype).eps * float(scores.abs().max())
    if float((scores[1:] - expected).abs().max()) > tolerance * spread + rounding:
        raise MethodError(
            f"cam needs a score that is a linear layer of layer {capture.layer!r} averaged over space, and here it isn't: the "
            "network has another head, the layer isn't its last, or the target is no logit. These work here: grad-cam, hires-cam"
        )
    return weighted_sum(weights, a)


@method(
    "ablation-cam",
    needs="head",
    unit="own",
    reference="Desai and Ramaswamy 2020, doi:10.1109/WACV45572.2020.9093360",
)
def ablation_cam(capture: Capture, probe: Probe) -> Tensor:
    """Channels weighted by how far the score falls when each is silenced.

    Formula: w_k = y - y with A^k set to 0; map = ReLU(sum_k w_k A^k). The paper divides w by y, which only scales the map, and
    turns it round where y < 0; we do not divide.

    Differs: pytorch-grad-cam divides by y, and where a layer has negative values sets a channel to minus ten million
    instead of 0.
    """
    a = capture.activations
    score = at_least_single(scores_of(capture))[0]
    falls = torch.zeros(a.shape[1], device=a.device, dtype=score.dtype)
    active = a[0].flatten(1).any(dim=1).nonzero()[:, 0]  # silencing a silent channel changes nothing
    for part in probe.head_steps(len(active)):
        channels = active[part]
        grids = a.repeat(len(channels), 1, 1, 1)
        grids[torch.arange(len(channels)), channels] = 0
        falls[channels] = score - at_least_single(probe.score_head(grids))
    return weighted_sum(falls, at_least_single(a))


@method("recipro-cam", needs="head", reference="Byun and Lee 2022, arXiv:2209.14074; the authors' ReciproCam")
def recipro_cam(capture: Capture, probe: Probe, *, spread: bool = False) -> Tensor:
    """How far the score rises when one cell of the layer is all there is.

    Formula: map_ij = head(the layer with every cell but ij at 0) - head(0).

    Args:
        spread: lay the cell's values out as a 3 x 3 bell (1 2 1; 2 4 2; 1 2 1) / 16 round it, as the paper offers.

    Differs: the authors take the class's probability and stretch the map from its lowest to its highest value. We take the
    target as given (a logit, unless asked otherwise) and subtract what the empty layer scores, so that 0 means nothing.
    """
    a = capture.activations
    h, w = a.shape[2:]
    bell = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=a.dtype, device=a.device) / 16
    # One more than there are cells: the last keeps none, so that the empty layer costs no question of its own.
    cells = F.pad(a[0].flatten(1), (0, 1)).T[:, :, None, None]
    found = []
    for part in probe.head_steps(h * w + 1):
        numbers = torch.arange(part.start, part.stop, device=a.device)
        masks = F.one_hot(numbers, h * w + 1)[:, :-1].to(a.dtype).reshape(-1, 1, h, w)
        if spread:
            masks = F.conv2d(masks, bell[None, None], padding=1)
        found.append(at_least_single(probe.score_head(cells[part] * masks)))
    scores = torch.cat(found)
    return (scores[:-1] - scores[-1]).reshape(1, h, w)


@method("score-cam", needs="input", unit="own", reference="Wang et al. 2020, arXiv:1910.01279, algorithm 1")
def score_cam(capture: Capture, probe: Probe, *, authors_code: bool = False, bfloat16: bool = False) -> Tensor:
    """Channels weighted by what the model says when it sees only where they are active.

    Formula: H_k = A^k resized to the picture, stretched to 0..1; w = softmax over k of f(x * H_k); map = ReLU(sum_k w_k A^k).
    A channel that is the same everywhere masks nothing and is left out. The paper's baseline score is the same for every
    channel and drops out of the softmax.

    Args:
        authors_code: weight with the class's probability, without the softmax over channels, as the released code does.
        bfloat16: run the masked pictures in bfloat16, faster where the processor has it; how far the scores move is said.

    Differs: the paper's f is the probability; ours is the target as given, a logit unless asked otherwise. torch-cam stretches
    before it resizes; pytorch-grad-cam resizes by corners.
    """
    target = None
    if authors_code:
        if probe.asked.index is None:
            raise MethodError("authors_code weights with a class's probability; give a class as the target")
        target = probability(probe.asked.index)
    scores, a = _masked_scores(capture, probe, lambda masked, _: masked, 1, target, bfloat16)
    return weighted_sum(scores if authors_code else scores.softmax(dim=0), a)


@method("ss-cam", needs="input", unit="own", reference="Wang et al. 2020, arXiv:2006.14255")
def ss_cam(
    capture: Capture,
    probe: Probe,
    *,
    samples: int = 10,
    noise: float = 0.2,
    where: str = "mask",
    seed: int = 0,
    bfloat16: bool = False,
) -> Tensor:
    """Score-CAM with each channel's score averaged over noise, for steadier weights. Costs `samples` times as much.

    Formula: as score-cam, with the mean over the samples of f(x * (H_k + e)) (mask) or of f(x * H_k + e) (input), e drawn from
    a normal distribution.

    Args:
        samples: how many draws a channel.
        noise: standard deviation: of the mask, whose range is 0..1; or of the input, as a share of its range.
        where: "mask" or "input", the paper's two variants.
        seed: of the draws.
        bfloat16: as for score-cam.

    Differs: the paper's deviation of 2 would drown a mask of 0..1, and the authors' notebook shrinks it; ours is given in units
    of the range.
    """
    if where not in ("mask", "input"):
        raise MethodError(f"where={where!r} of ss-cam; expected mask or input")
    x = capture.input
    spread = noise * (float(x.max() - x.min()) if where == "input" else 1.0)
    generator = torch.Generator().manual_seed(seed)

    def noisy(masked: Tensor, _numbers: Tensor) -> Tensor:
        shape = masked.shape[1:] if where == "input" else (1, *masked.shape[2:])
        # Drawn one by one, so that it does not depend on how many fit into memory.
        drawn = torch.stack([torch.randn(shape, generator=generator) for _ in range(len(masked))]).to(masked)
        return masked + spread * drawn * (1 if where == "input" else x)

    scores, a = _masked_scores(capture, probe, noisy, samples, None, bfloat16)
    return weighted_sum(scores.softmax(dim=0), a)


@method("is-cam", needs="input", unit="own", reference="Naidu et al. 2020, arXiv:2010.03023")
def is_cam(
    capture: Capture, probe: Probe, *, samples: int = 10, authors_code: bool = False, bfloat16: bool = False
) -> Tensor:
    """Score-CAM with each channel's score averaged while its masked picture is faded in. Costs `samples` times as much.

    Formula: as score-cam, with the mean over i = 1..N of f(x * H_k * i / N).

    Args:
        samples: N.
        authors_code: the authors' steps i (i + 1) / (2 N), which go on to pictures (N + 1) / 2 times too bright.
        bfloat16: as for score-cam.
    """

    def faded(masked: Tensor, numbers: Tensor) -> Tensor:
        step = (numbers + 1).to(masked)
        return masked * (step * (step + 1) / 2 if authors_code else step)[:, None, None, None] / samples

    scores, a = _masked_scores(capture, probe, faded, samples, None, bfloat16)
    return weighted_sum(scores.softmax(dim=0), a)


def _masked_scores(
    capture: Capture,
    probe: Probe,
    vary: Callable[[Tensor, Tensor], Tensor],
    times: int,
    target: Target | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor]:
    """For each channel that is not the same everywhere: the mean score of its masked picture's variants, and the channel.

    Args:
        capture: of the image.
        probe: to ask.
        vary: masked pictures (N, C, H, W) and the numbers of the variants (N,), 0 up to `times` -> the pictures to score.
        times: variants of each channel.
        target: another score than the one asked for.
        bfloat16: score in bfloat16, and note how much that changes in the first pictures.
    """
    if times < 1:
        raise MethodError(f"samples is {times}; expected 1 or more")
    a, x = at_least_single(capture.activations), capture.input
    flat = a[0].flatten(1)
    varied = a[:, flat.amax(dim=1) > flat.amin(dim=1)]
    if varied.shape[1] == 0:
        return a.new_zeros(1), torch.zeros_like(a[:, :1])
    found = []
    questions = torch.arange(varied.shape[1] * times, device=a.device)
    for part in probe.steps(len(questions)):
        channels = varied[0, questions[part] // times, None]
        masks = _stretched(F.interpolate(channels, x.shape[2:], mode="bilinear", align_corners=False))
        pictures = vary(x * masks, questions[part] % times).to(x.dtype)
        found.append(at_least_single(probe.score(pictures, target, bfloat16)))
        if bfloat16 and part.start == 0:
            exact = at_least_single(probe.score(pictures, target))
            probe.notes.append(
                f"scored in bfloat16: in the first {len(exact)} masked pictures the scores move by up to {float((found[0] - exact).abs().max()):.2g}"
            )
    return torch.cat(found).reshape(-1, times).mean(dim=1), varied


def _stretched(masks: Tensor) -> Tensor:
    """Each mask's lowest value at 0 and its highest at 1."""
    low, high = masks.amin(dim=(1, 2, 3), keepdim=True), masks.amax(dim=(1, 2, 3), keepdim=True)
    return (masks - low) / torch.where(high > low, high - low, 1)


@method("shapley-cam", needs="head", unit="own", reference="Cai 2025, arXiv:2501.06261; the authors' ShapleyCAM_mean")
def shapley_cam(capture: Capture, probe: Probe, *, rest: bool = True) -> Tensor:
    """Grad-CAM with the score's curvature taken into account: each channel's share by its Shapley value, to second order.

    Formula: w_k = mean over space of (G - H A / 2)^k, H the Hessian of the score at the layer; map = ReLU(sum_k w_k A^k).

    Args:
        rest: for a class, take the paper's score: logit + log-probability. The logit alone is linear behind most networks' last
            layer, so that H = 0 and the map is grad-cam's.
    """
    index = probe.asked.index
    a = at_least_single(capture.activations)
    target = residual_score(index) if rest and index is not None else probe.asked.score
    _, g = activations_and_gradients(probe.toward(target))
    bent = at_least_single(probe.curvature(target, capture.activations))
    return weighted_sum((g - bent / 2).mean(dim=(2, 3))[0], a)


def residual_score(index: int) -> Target:
    """Logit plus log-probability of a class, which saturates neither for a sure nor for an unsure model."""
    return lambda output: table(output)[:, index] + table(output).log_softmax(dim=1)[:, index]


@method("finer-cam", needs="head", reference="Zhang et al. 2025, arXiv:2501.11309; the authors' FinerWeightedTarget")
def finer_cam(
    capture: Capture,
    probe: Probe,
    *,
    against: str | int = "",
    count: int = 3,
    alpha: float = 1.0,
    weighted: bool = True,
) -> Tensor:
    """What sets the class apart from the most similar ones: grad-cam of the difference.

    Formula: grad-cam of sum_i p_i (y - alpha y_i) / sum_i p_i over the `count` classes i whose logits are nearest to the target's
    y, p their probabilities.

    Args:
        against: a class (name or number) to compare with, instead of the most similar ones.
        count: how many similar classes.
        alpha: how much of what is shared is taken away, 0 to 1.
        weighted: False for the plain mean over the similar classes, as the paper writes it (there with alpha = 0.6).
    """
    index = probe.asked.index
    if count < 1 or not 0 <= alpha <= 1:
        raise MethodError(f"count is {count} and alpha {alpha}; expected 1 or more, and 0 to 1")
    logits = table(capture.output).detach()[0]
    if index is None or len(logits) < 2:
        raise MethodError(
            "finer-cam compares a class with others, and here there is none to compare; for another score give the difference "
            "itself: sightline.margin"
        )
    if against != "":
        others = [_other(probe.resolve(against).index, index)]
    else:
        distance = (logits - logits[index]).abs()
        distance[index] = torch.inf
        others = distance.argsort(stable=True)[: max(1, min(count, len(logits) - 1))].tolist()
    return grad_cam(probe.toward(contrast(index, others, alpha, weighted)))


def _other(found: int | None, index: int) -> int:
    if found is None or found == index:
        raise MethodError("finer-cam compares the class with itself; name another one in `against`")
    return found


def contrast(index: int, others: list[int], alpha: float, weighted: bool) -> Target:
    """The mean over other classes of y - alpha y_i, weighted by their probabilities or not."""

    def score(output: Tensor) -> Tensor:
        found = table(output)
        differences = found[:, [index]] - alpha * found[:, others]
        if not weighted:
            return differences.mean(dim=1)
        # softmax over the others alone is p_i / sum p_i, without dividing numbers that may both be 0
        return (differences * found[:, others].softmax(dim=1)).sum(dim=1)

    return score


@method("smooth-grad-cam++", needs="input", unit="own", reference="Omeiza et al. 2019, arXiv:1908.01224")
def smooth_grad_cam_plus_plus(
    capture: Capture, probe: Probe, *, samples: int = 25, noise: float = 0.15, seed: int = 0
) -> Tensor:
    """Grad-CAM++ with derivatives averaged over noisy copies of the picture.

    Formula: D1, D2, D3 = mean over the copies of G, G^2, G^3; alpha = D2 / (2 D2 + D3 * sum over space of A) where D1 > 0;
    w_k = sum over space of alpha ReLU(D1); map = ReLU(sum_k w_k A^k).

    Args:
        samples: how many noisy copies.
        noise: standard deviation of the noise, as a share of the picture's range.
        seed: of the noise.

    Differs: the paper prints D1 as the numerator of alpha, with which it is not Grad-CAM++ for a single clean copy; every
    re-implementation reads D2. torch-cam sums A * D3 cell by cell, and takes G of the last copy alone.
    """
    if samples < 1 or noise < 0:
        raise MethodError(f"samples is {samples} and noise {noise}; expected 1 or more, and 0 or more")
    x = capture.input
    spread = noise * float(x.max() - x.min())
    generator = torch.Generator().manual_seed(seed)
    sums = [torch.zeros_like(at_least_single(capture.activations)) for _ in range(3)]
    for part in probe.steps(samples):
        drawn = torch.stack([torch.randn(x.shape[1:], generator=generator) for _ in range(part.start, part.stop)]).to(x)
        _, g = activations_and_gradients(probe.capture(x + spread * drawn))
        for power, total in enumerate(sums, 1):
            total += g.pow(power).sum(dim=0, keepdim=True)
    first, second, third = (total / samples for total in sums)
    a = at_least_single(capture.activations)
    below = 2 * second + third * a.sum(dim=(2, 3), keepdim=True)
    alpha = torch.where((first > 0) & (below > 0), second / below, 0)
    return weighted_sum((alpha * first.relu()).sum(dim=(2, 3))[0], a)
