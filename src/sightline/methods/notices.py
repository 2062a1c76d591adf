"""What a person must know before believing a map, each with the condition under which it is said."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.engine.capture import Capture
from sightline.methods.gradient_cams import hires_cam
from sightline.methods.registry import PIXELS, Method

# A map whose strongest cell, in every cell, would still not make up this share of the score shows no evidence.
EMPTY = 0.01
# Made of guided gradients, though what it needs doesn't tell.
_EDGES = "guided-grad-cam"


def notices(
    method: Method, capture: Capture, raw: Tensor, unrectified: Tensor, *, is_probability: bool = False
) -> list[str]:
    """The cautions that apply to the map (h, w) of ONE image.

    Args:
        method: what made it.
        capture: of this image and target.
        raw: the map as the method defines it.
        unrectified: the same before negative values were cut.
        is_probability: whether the target was a softmax probability.
    """
    score = float(capture.scores[0]) if capture.scores is not None else 0.0
    said = about_map(method, raw, unrectified, score)
    if (share := _moved_by_places(capture)) is not None and share < 0.05:
        said.append(
            f"the patch tokens of layer {capture.layer} move the score by about {share * 100:.2g} % only (to first order): what decides was in "
            "the class token before it; attention-grad follows all blocks"
        )
    if method.name == "grad-cam" and (differ := difference(raw, hires_cam(capture)[0].relu())) > 0.05:
        said.append(
            f"grad-cam averages gradients and can mark areas that the model did not use; hires-cam lies elsewhere by {differ * 100:.0f} % here"
        )
    if edge_detector(method):
        said.append(
            "behaves like an edge detector: it shows what the picture holds, also where the model knows nothing "
            "(its map hardly changes when upper layers are made random)"
        )
    if is_probability and score > 0.999:
        said.append("saturated: the probability is so near 1 that its gradient vanishes; use the log-probability")
    return said


def about_map(method: Method, raw: Tensor, unrectified: Tensor, score: float) -> list[str]:
    """The cautions that a map (h, w) tells itself, without the capture that it was made of."""
    said = []
    if not method.class_specific:
        said.append(f"{method.name} is not class-specific: it shows the same for every class")
    found = "no evidence found: the map is" if method.class_specific else "the map is"
    if not raw.any():
        said.append(f"{found} empty")
    elif float(raw.abs().max()) <= floor(method, raw, score):
        said.append(f"{found} nearly empty against the score")
    lowest, highest = float(raw.min()), float(raw.max())
    if raw.numel() > 1 and lowest > 0.8 * highest > 0:
        said.append(
            f"the map is nearly the same everywhere (its lowest value is {lowest / highest * 100:.0f} % of its highest): it does not tell where"
        )
    negative, positive = float((-unrectified).relu().sum()), float(unrectified.relu().sum())
    if not method.signed and method.class_specific and negative > positive:
        share = negative / (negative + positive)
        shown = "; hires-cam shows it" if method.needs == "gradients" else ""
        said.append(f"evidence against is hidden: {share * 100:.0f} % of this map was negative and cut{shown}")
    return said


def edge_detector(method: Method) -> bool:
    """Whether it changes what ReLUs hand back so that the picture's edges come out, whatever the model says of them."""
    return PIXELS.get(method.needs) is not None or method.name == _EDGES


def _moved_by_places(capture: Capture) -> float | None:
    """By what share of the score it would change, to first order, if all places for it, or all against it, said their mean; None where
    that is no question.

    Not both together: of a cosine, which is blind to length, they add up to nothing even where the places decide all of it.
    """
    a, g = capture.activations, capture.gradients
    if g is None or capture.scores is None or capture.layout is None or not capture.layout.extra:
        return None
    a, g = a.float(), g.float()
    moved = (g * (a - a.mean(dim=(2, 3), keepdim=True))).sum(dim=1)
    return float(max(moved.relu().sum(), (-moved).relu().sum())) / max(
        abs(float(capture.scores[0])), torch.finfo(torch.float32).tiny
    )


def floor(method: Method, raw: Tensor, score: float) -> float:
    """The map's maximum up to which it counts as empty, and below which it is never stretched for display."""
    return EMPTY * abs(score) / raw.numel() if method.unit == "score" else 0.0


def clipped(method: Method, raw: Tensor) -> float:
    """The share of the map's highest value from which on colours don't change.

    Gradients of pixels have a few that outshine all others: there 99 % of the pixels are told apart.
    """
    sizes = raw.abs().flatten()
    highest = float(sizes.max())
    if (
        (method.needs not in (*PIXELS, "input-gradients") and not edge_detector(method))
        or sizes.numel() < 1000
        or highest <= 0
    ):
        return 1.0
    # By rank, because a quantile of torch takes a bounded number of values.
    bound = float(sizes.kthvalue(round(0.99 * sizes.numel())).values)
    return bound / highest if bound > 0 else 1.0


def difference(one: Tensor, other: Tensor) -> float:
    """Share of the heat that lies elsewhere in the other map (total variation of both scaled to sum 1), 0 to 1."""
    sums = float(one.sum()), float(other.sum())
    if min(sums) <= 0:
        return float(max(sums) > 0)
    return 0.5 * float((one.double() / sums[0] - other.double() / sums[1]).abs().sum())


def same_map(one: Tensor, other: Tensor) -> bool:
    """Whether two maps are one up to rounding."""
    return bool(torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max())))
