"""Maps made of gradients of the score with respect to the picture's own pixels.

x = the picture as the model receives it (1, C, H, W), x' = a baseline, f = the target's score, grad f = its gradient with
respect to the pixels (C, H, W). A map has one value a pixel: channels are added where values are signed, and the strongest is
taken where they are sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.engine.rules import Ruled
from sightline.errors import MethodError
from sightline.methods.baselines import Baseline, baseline_of, blurred, described
from sightline.methods.gradient_cams import activations_and_gradients, at_least_single, grad_cam, scores_of
from sightline.methods.registry import method

NODES = ("gauss-legendre", "midpoint")
_MOST_NODES = 1000  # finding them takes the eigenvalues of a matrix of that size


@method("saliency", needs="pixels", unit="own", reference="Simonyan et al. 2013, arXiv:1312.6034, section 3.1")
def saliency(capture: Capture) -> Tensor:
    """How much the score would move if a pixel were changed a little: the size of its gradient.

    Formula: map_ij = max_c |grad f|_cij. It shows where the score is sensitive, which is not what made it high.

    Differs: captum gives the sizes channel by channel.
    """
    _, g = activations_and_gradients(capture)
    return g.abs().amax(dim=1)


@method(
    "input-x-gradient",
    needs="pixels",
    signed=True,
    reference="Shrikumar et al. 2016, arXiv:1605.01713, section 2",
)
def input_x_gradient(capture: Capture) -> Tensor:
    """Each pixel's share of the score, were the score linear in the pixels.

    Formula: map_ij = sum_c (x * grad f)_cij, signed. What is 0 in the units of the model's input (the data's mean colour, where
    it is normalised) gets 0.
    """
    x, g = activations_and_gradients(capture)
    return (x * g).sum(dim=1)


@method(
    "guided-backprop",
    needs="guided-pixels",
    signed=True,
    unit="own",
    reference="Springenberg et al. 2014, arXiv:1412.6806, section 3.4",
)
def guided_backprop(capture: Capture) -> Tensor:
    """Edges and textures that the network's filters answer to; a picture of the photograph more than of the decision.

    Formula: map_ij = sum_c of the gradient, with every ReLU handing back only what is positive, and only where it was open.
    It hardly changes when the network's upper layers are made random (Adebayo et al. 2018), which is why the trust card fails it.

    Differs: captum and torch-cam see modules alone; here a ReLU called as a function counts too, and ReLU6. A network without
    any is refused.
    """
    return activations_and_gradients(capture)[1].sum(dim=1)


@method(
    "deconvnet",
    needs="deconvnet-pixels",
    signed=True,
    unit="own",
    reference="Zeiler and Fergus 2014, arXiv:1311.2901, section 2.1",
)
def deconvnet(capture: Capture) -> Tensor:
    """What the network's filters would paint when run backwards: guided-backprop that forgets where the ReLUs were open.

    Formula: map_ij = sum_c of the gradient, with every ReLU handing back only what is positive.
    """
    return activations_and_gradients(capture)[1].sum(dim=1)


@method(
    "guided-grad-cam",
    needs="input",
    signed=True,
    unit="own",
    reference="Selvaraju et al. 2016, arXiv:1610.02391, section 3.2",
)
def guided_grad_cam(capture: Capture, probe: Probe) -> Tensor:
    """Grad-CAM filled with the edges of guided-backprop: sharp, and no more to be believed than Grad-CAM alone.

    Formula: map = ReLU(grad-cam), resized to the picture, times guided-backprop.

    Differs: captum resizes by the nearest cell unless asked otherwise, which leaves blocks.
    """
    cam = grad_cam(probe.toward(probe.asked.score)).relu()
    with_rule = Ruled("guided")
    _, guided = probe.score_grad(capture.input, with_rule)
    probe.notes.extend(met("guided-grad-cam", "the model", with_rule))
    guided = at_least_single(guided)
    resized = F.interpolate(cam[:, None].to(guided), guided.shape[2:], mode="bilinear", align_corners=False)
    return (resized * guided).sum(dim=1)


def met(method: str, model: str, rule: Ruled) -> list[str]:
    """What to say of a rule that was applied, or a refusal where it met nothing."""
    left = ", ".join(f"{count} {kind}" for kind, count in rule.left.items())
    if not rule.met:
        raise MethodError(
            f"{method} changes what ReLUs hand back, and {model} has none{f' (but {left})' if left else ''}: it would be the plain "
            "gradient. Take saliency, or integrated-gradients"
        )
    if left:
        return [f"{method} is defined for ReLUs; other activations keep their derivative ({left})"]
    return []


@method(
    "integrated-gradients",
    needs="input-gradients",
    volumes=True,
    signed=True,
    reference="Sundararajan et al. 2017, arXiv:1703.01365, eq. 1",
)
def integrated_gradients(
    capture: Capture,
    probe: Probe,
    *,
    baseline: Baseline = 0.0,
    steps: int = 50,
    nodes: str = "gauss-legendre",
    seed: int = 0,
) -> Tensor:
    """What each pixel added to the score on the way from a picture without evidence to this one; the map sums to what was added.

    Formula: map_ij = sum_c (x - x')_cij * integral over a from 0 to 1 of grad f(x' + a (x - x'))_cij. How far the map's sum is
    from f(x) - f(x') is said with every map.

    Args:
        baseline: x': a number or one for each channel, in the units of the model's input; black, white, mean, blur, random; or the
            file of a picture. 0 is the data's mean colour where the input is normalised by it.
        steps: pictures on the way.
        nodes: gauss-legendre or midpoint, where on the way they lie.
        seed: of a random baseline.

    Differs: the paper adds up steps at their right ends.
    """
    x = capture.input
    x0 = baseline_of(baseline, x, probe, seed)
    found = integrate(probe, x, x0, steps, nodes).sum(dim=1)
    complete(probe, found, rise(capture, probe, x0), f"from baseline {described(baseline)} in {steps} steps", "steps")
    return found


def integrate(probe: Probe, x: Tensor, x0: Tensor, steps: int, nodes: str = NODES[0]) -> Tensor:
    """The integrals from x0 to x, times the way; one of the two may be a single picture (N, C, H, W)."""
    at, weights = quadrature(steps, nodes)
    x, x0 = x.expand(max(len(x), len(x0)), -1, -1, -1), x0.expand(max(len(x), len(x0)), -1, -1, -1)
    total = torch.zeros_like(at_least_single(x))
    for part in probe.gradient_steps(len(x) * steps):
        numbers = torch.arange(part.start, part.stop)
        image, step = numbers // steps, numbers % steps
        pictures = x0[image] + at[step].to(x)[:, None, None, None] * (x - x0)[image]
        slopes = at_least_single(probe.score_grad(pictures)[1]) * weights[step].to(total)[:, None, None, None]
        total.index_add_(0, image.to(x.device), slopes)
    return total * (at_least_single(x) - at_least_single(x0))


def quadrature(steps: int, nodes: str) -> tuple[Tensor, Tensor]:
    """Places in 0..1 and their weights, which sum to 1."""
    if nodes not in NODES:
        raise MethodError(f"option nodes is {nodes!r}; expected {' or '.join(NODES)}")
    if nodes == "midpoint":
        return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps, torch.full(
            (steps,), 1 / steps, dtype=torch.float64
        )
    if steps > _MOST_NODES:
        raise MethodError(f"steps is {steps}; expected {_MOST_NODES} at most for {nodes}, or nodes=midpoint")
    at, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((at + 1) / 2), torch.from_numpy(weights / 2)


def rise(capture: Capture, probe: Probe, x0: Tensor) -> float:
    """f(x) - f(x0)."""
    return float(at_least_single(scores_of(capture))[0]) - float(at_least_single(probe.score(x0))[0])


def complete(probe: Probe, found: Tensor, risen: float, how: str, more: str = "") -> None:
    """Says how far a map's sum is from what the score rose by, keeps the figures, and what to ask for `more` of when it is far."""
    total = float(found.double().sum())
    probe.details.update(residual=total - risen, rise=risen)
    off = abs(total - risen) / abs(risen) if risen else float(total != 0)
    advice = (
        f"; ask for more {more}"
        if more
        else "; the rest is bent elsewhere than where the method looks, believe it less"
    )
    probe.notes.append(
        f"{how} the score rose by {risen:.4g} and the map sums to {total:.4g}"
        + (f" ({off * 100:{'.0f' if off >= 0.1 else '.2g'}} % off)" if 1e-5 <= off < 10 else "")
        + (advice if off > 0.05 else "")
    )


# What can be averaged over noise: pictures (N, C, H, W) and a baseline -> one value for each channel of each pixel.
_Bases = Callable[[Probe, Tensor, Tensor], Tensor]
BASES: dict[str, _Bases] = {
    "gradient": lambda probe, x, _: probe.score_grad(x)[1],
    "input-x-gradient": lambda probe, x, _: x * probe.score_grad(x)[1],
    "guided-backprop": lambda probe, x, _: probe.score_grad(x, Ruled("guided"))[1],
    "deconvnet": lambda probe, x, _: probe.score_grad(x, Ruled("deconvnet"))[1],
    "integrated-gradients": lambda probe, x, x0: integrate(probe, x, x0, 50),
    "deep-lift": lambda probe, x, x0: (x - x0) * probe.multipliers(x, x0.expand_as(x))[2],
}


@method(
    "smooth-grad",
    needs="input-gradients",
    volumes=True,
    unit="own",
    reference="Smilkov et al. 2017, arXiv:1706.03825, section 3",
)
def smooth_grad(
    capture: Capture,
    probe: Probe,
    *,
    samples: int = 25,
    noise: float = 0.15,
    of: str = "gradient",
    baseline: Baseline = 0.0,
    seed: int = 0,
) -> Tensor:
    """Saliency with the flicker averaged away over noisy copies of the picture.

    Formula: map_ij = max_c |mean over the copies of (grad f)_cij|.

    Args:
        samples: how many noisy copies.
        noise: standard deviation of the noise, as a share of the picture's range.
        of: what is averaged: gradient, input-x-gradient, guided-backprop, deconvnet, integrated-gradients or deep-lift.
        baseline: of the last two, as for integrated-gradients.
        seed: of the noise.

    Differs: captum's noise is given in the units of the input, and over its Saliency it averages sizes, so that the flicker
    stays. With its signs, any method is averaged by `combine`.
    """
    return _smoothed(capture, probe, samples, noise, of, baseline, seed, "mean")


@method(
    "smooth-grad-squared",
    needs="input-gradients",
    volumes=True,
    unit="own",
    reference="Hooker et al. 2018, arXiv:1806.10758, section 4.1",
)
def smooth_grad_squared(
    capture: Capture,
    probe: Probe,
    *,
    samples: int = 25,
    noise: float = 0.15,
    of: str = "gradient",
    baseline: Baseline = 0.0,
    seed: int = 0,
) -> Tensor:
    """Smooth-grad of the gradient's square: where the score is sensitive at all, whichever way.

    Formula: map_ij = max_c mean over the copies of (grad f)_cij^2.

    Args:
        samples: how many noisy copies.
        noise: standard deviation of the noise, as a share of the picture's range.
        of: as for smooth-grad.
        baseline: as for smooth-grad.
        seed: of the noise.
    """
    return _smoothed(capture, probe, samples, noise, of, baseline, seed, "squared")


@method(
    "var-grad", needs="input-gradients", volumes=True, unit="own", reference="Adebayo et al. 2018, arXiv:1810.03307"
)
def var_grad(
    capture: Capture,
    probe: Probe,
    *,
    samples: int = 25,
    noise: float = 0.15,
    of: str = "gradient",
    baseline: Baseline = 0.0,
    seed: int = 0,
) -> Tensor:
    """How much the gradient flickers over noisy copies of the picture.

    Formula: map_ij = max_c variance over the copies of (grad f)_cij, divided by their number.

    Args:
        samples: how many noisy copies.
        noise: standard deviation of the noise, as a share of the picture's range.
        of: as for smooth-grad.
        baseline: as for smooth-grad.
        seed: of the noise.
    """
    return _smoothed(capture, probe, samples, noise, of, baseline, seed, "variance")


def _smoothed(
    capture: Capture, probe: Probe, samples: int, noise: float, of: str, baseline: Baseline, seed: int, kind: str
) -> Tensor:
    """(1, H, W) of the mean, mean square or variance of noisy copies; its standard error goes into the details."""
    if of not in BASES:
        raise MethodError(f"option of is {of!r}; expected one of {', '.join(BASES)}")
    if of in ("guided-backprop", "deconvnet"):
        rule = Ruled("guided" if of == "guided-backprop" else "deconvnet")
        probe.score_grad(capture.input, rule)
        probe.notes.extend(met(of, "the model", rule))
    x = capture.input
    x0 = baseline_of(baseline, x, probe, seed) if of in ("integrated-gradients", "deep-lift") else x
    spread = noise * float(x.max() - x.min())
    generator = torch.Generator().manual_seed(seed)
    powers = [torch.zeros(x.shape[1:], dtype=torch.float64, device=x.device) for _ in range(4)]
    for part in _copies(probe, of, samples):
        # Drawn one by one, so that it does not depend on how many fit into memory.
        drawn = torch.stack([torch.randn(x.shape[1:], generator=generator) for _ in range(part.start, part.stop)]).to(x)
        found = BASES[of](probe, x + spread * drawn, x0).double()
        for power, total in enumerate(powers, 1):
            total += found.pow(power).sum(dim=0) / samples
    first, second, third, fourth = powers
    variance = (second - first.square()).clamp(min=0)
    around = fourth - 4 * first * third + 6 * first.square() * second - 3 * first.pow(4)
    of_kind = {
        "mean": (first.abs(), variance),
        "squared": (second, fourth - second.square()),
        "variance": (variance, around - variance.square()),
    }
    values, scatter = of_kind[kind]
    strongest, channel = values.max(dim=0)
    error = (scatter.clamp(min=0) / max(1, samples - 1)).sqrt().gather(0, channel[None])[0]
    uncertain(probe, strongest, error, samples)
    return strongest[None].to(at_least_single(x).dtype)


def _copies(probe: Probe, of: str, samples: int) -> Iterator[slice]:
    """Which copies are asked together, once it is known how many pictures that will be."""
    if of == "integrated-gradients":  # goes through its own steps
        yield slice(0, samples)
    elif of == "deep-lift":  # a baseline beside each
        yield from (slice(part.start // 2, part.stop // 2) for part in probe.gradient_steps(2 * samples, 8))
    else:
        yield from probe.gradient_steps(samples)


def uncertain(probe: Probe, values: Tensor, error: Tensor, samples: int) -> None:
    """Keeps the standard error (H, W) of a map (H, W), and says how large it is where the map is strongest."""
    if samples < 2:
        return
    probe.details["standard error"] = error.float().cpu().numpy()
    at = int(values.abs().argmax())
    highest, there = float(values.abs().flatten()[at]), float(error.flatten()[at])
    if highest > 0:
        share = there / highest
        probe.notes.append(
            f"the standard error where the map is strongest is {share * 100:.2g} % of it, with {samples} samples"
            + ("; ask for more samples" if share > 0.25 else "")
        )


def _even_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """A picture of even noise over the range of x."""
    return x.min() + (x.max() - x.min()) * torch.rand(x.shape, generator=generator).to(x)


@method(
    "gradient-shap",
    needs="input-gradients",
    volumes=True,
    signed=True,
    reference="Lundberg and Lee 2017, arXiv:1705.07874; Erion et al. 2019, arXiv:1906.10670, eq. 3 (expected gradients)",
)
def gradient_shap(
    capture: Capture,
    probe: Probe,
    *,
    samples: int = 50,
    noise: float = 0.0,
    baseline: Baseline = "random",
    seed: int = 0,
) -> Tensor:
    """Integrated gradients from many baselines at once: one random place on the way from each.

    Formula: map_ij = mean over the draws of sum_c (x + e - x')_cij * grad f(x' + a (x + e - x'))_cij, with a uniform in 0..1, e
    normal, and x' a baseline drawn anew each time where it is random.

    Args:
        samples: how many draws.
        noise: standard deviation of e, as a share of the picture's range.
        baseline: as for integrated-gradients.
        seed: of all draws.
    """
    x = capture.input
    spread = noise * float(x.max() - x.min())
    generator = torch.Generator().manual_seed(seed)
    sums = [torch.zeros(x.shape[2:], dtype=torch.float64, device=x.device) for _ in range(2)]
    fixed = None if isinstance(baseline, str) and baseline == "random" else baseline_of(baseline, x, probe, seed)
    totals = []
    for part in probe.gradient_steps(samples):
        ways, pictures = [], []
        for _ in range(part.start, part.stop):
            a = float(torch.rand((), generator=generator))
            noisy = x + spread * torch.randn(x.shape, generator=generator).to(x) if noise else x
            x0 = _even_noise(x, generator) if fixed is None else fixed
            ways.append(noisy - x0)
            pictures.append(x0 + a * (noisy - x0))
        found = (torch.cat(ways).double() * probe.score_grad(torch.cat(pictures))[1].double()).sum(dim=1)
        sums[0] += found.sum(dim=0) / samples
        sums[1] += found.square().sum(dim=0) / samples
        totals.append(found.sum(dim=(1, 2)))
    each = torch.cat(totals)
    if samples > 1:
        error = float(each.std() / samples**0.5)
        probe.notes.append(
            f"the map sums to {float(each.mean()):.4g}, with a standard error of {error:.2g} over {samples} draws"
        )
    uncertain(probe, sums[0], ((sums[1] - sums[0].square()).clamp(min=0) / max(1, samples - 1)).sqrt(), samples)
    return sums[0][None].to(at_least_single(x).dtype)


@method(
    "deep-lift",
    needs="input-gradients",
    volumes=True,
    signed=True,
    reference="Shrikumar et al. 2017, arXiv:1704.02685, section 3.5.2 (the rescale rule)",
)
def deep_lift(capture: Capture, probe: Probe, *, baseline: Baseline = 0.0, seed: int = 0) -> Tensor:
    """What each pixel added to the score, compared with a picture without evidence, followed through every activation.

    Formula: map_ij = sum_c (x - x')_cij * m_cij, where m goes back through the network as a gradient does, and every activation
    multiplies by how far it moved over how far its input moved between x' and x. The map sums to f(x) - f(x') where nothing else
    bends the score; what is missing is said.

    Args:
        baseline: x', as for integrated-gradients.
        seed: of a random baseline.

    Differs: captum refuses a ReLU that runs more than once or is a function; here each call has its own place. The picture and its
    baseline are two rows of one batch: a network that lays another dimension before its rows (frames before films) mixes them, which
    shows in what is missing.
    """
    x = capture.input
    x0 = baseline_of(baseline, x, probe, seed)
    for _ in probe.gradient_steps(2, 2):  # the picture and its baseline
        score, other, shares = probe.multipliers(x, x0)
    found = (at_least_single(x - x0) * at_least_single(shares)).sum(dim=1)
    complete(probe, found, float(score[0]) - float(other[0]), f"from baseline {described(baseline)}")
    return found


@method(
    "blur-ig", needs="input-gradients", volumes=True, signed=True, reference="Xu et al. 2020, arXiv:2004.03383, eq. 8"
)
def blur_ig(capture: Capture, probe: Probe, *, steps: int = 100, sigma: float = 50.0) -> Tensor:
    """What each pixel added to the score while a blurred picture came into focus; needs no colour as a baseline.

    Formula: map_ij = sum over steps of sum_c grad f(x blurred by the step's middle)_cij * (x at its end - x at its start)_cij, the
    blur of step i of n beginning at sigma (1 - i / n)^2: finer where the picture comes into focus.

    Args:
        steps: pictures on the way.
        sigma: of the blur it begins with, in pixels of the model's input; of a film or volume each slice is blurred.

    Differs: the authors take even steps, each with the gradient at its start, and black beyond the border; here it is the middle,
    and the picture is mirrored.
    """
    x = capture.input
    blur = partial(blurred, x, slices=probe.slices)
    ends = [sigma * (1 - number / steps) ** 2 for number in range(steps + 1)]
    total = torch.zeros_like(at_least_single(x))
    for part in probe.gradient_steps(steps):
        middles = torch.cat([blur((ends[at] + ends[at + 1]) / 2) for at in range(part.start, part.stop)])
        moved = torch.cat([blur(ends[at + 1]) - blur(ends[at]) for at in range(part.start, part.stop)])
        total += (at_least_single(probe.score_grad(middles)[1]) * at_least_single(moved)).sum(dim=0)
    found = total.sum(dim=1)
    complete(
        probe, found, rise(capture, probe, blur(sigma)), f"from a blur of {sigma:g} pixels in {steps} steps", "steps"
    )
    return found
