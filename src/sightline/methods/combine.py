"""What can be done with any method: averaging it over altered pictures, and multiplying it over layers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.attention import WANTED
from sightline.engine.capture import Capture, of_input
from sightline.engine.probe import Probe
from sightline.engine.rules import Ruled
from sightline.errors import MethodError
from sightline.methods.gradient_cams import at_least_single, grad_cam_plus_plus
from sightline.methods.input_gradients import met
from sightline.methods.registry import (
    ONE_PASS,
    PIXELS,
    WHOLE,
    Function,
    Method,
    Needs,
    check_settings,
    find,
    keywords,
    method,
    on_finest,
    run,
    share_of_maximum,
)


def _as_is(maps: Tensor) -> Tensor:
    return maps


def _mirrored(maps: Tensor) -> Tensor:
    return maps.flip(2)


# An altered picture, and how a map of it lies on the original's grid.
Copy = tuple[Tensor, Callable[[Tensor], Tensor]]
# How many copies there are, and the next one.
Copies = tuple[int, Iterator[Copy]]


def _over_noise(x: Tensor, *, samples: int = 25, noise: float = 0.15, seed: int = 0) -> Copies:
    generator = torch.Generator().manual_seed(seed)
    spread = noise * float(x.max() - x.min())
    drawn = (torch.randn(x.shape, generator=generator).to(x) for _ in range(samples))
    return samples, ((x + spread * one, _as_is) for one in drawn)


def _over_flips(x: Tensor) -> Copies:
    return 2, iter([(x, _as_is), (x.flip(3), _mirrored)])


def _over_scales(x: Tensor, *, scales: Sequence[float] = (0.75, 1.0, 1.25)) -> Copies:
    if not all(0 < one <= 8 for one in scales):
        raise MethodError(f"scales is {list(scales)}; expected numbers above 0, up to 8")
    sizes = [tuple(max(1, round(side * factor)) for side in x.shape[2:]) for factor in scales]

    def resized(size: tuple[int, ...]) -> Tensor:
        return F.interpolate(at_least_single(x), size, mode="bilinear", align_corners=False, antialias=True).to(x)

    return len(sizes), ((resized(size), _as_is) for size in sizes)


WAYS: dict[str, Callable[..., Copies]] = {"noise": _over_noise, "flips": _over_flips, "scales": _over_scales}


def combine(method: str | Function | Method, over: str, **settings: Any) -> Method:
    """The mean of a method's maps over altered copies of the picture, as a method.

    Args:
        method: name, function or method.
        over: "noise" (SmoothGrad's way), "flips" (the picture and its mirror image), or "scales".
        settings: for noise `samples` (25 noisy copies), `noise` (0.15, its standard deviation as a share of the picture's range)
            and `seed` (0); for scales `scales` ((0.75, 1.0, 1.25), factors of the picture's size, for models that take any).

    Raises:
        MethodError: no such way, or a setting that it doesn't have or that makes no sense. When it runs: a target that is a place,
            a box or a region, over flips or scales.

    Source: Smilkov et al. 2017, arXiv:1706.03825, for noise.
    """
    base = find(method)
    if not isinstance(over, str) or over not in WAYS:
        raise MethodError(f"over={over!r}; expected one of {', '.join(WAYS)}")
    copies = WAYS[over]
    check_settings(f"combine over {over}", keywords(copies), settings)
    copies(torch.zeros(1, 1, 8, 8), **settings)  # says at once what makes no sense

    def combined(capture: Capture, probe: Probe, **options: Any) -> Tensor:
        mark = probe.asked.mark
        if over != "noise" and mark is not None and any(one is not None for one in (mark.box, mark.point, mark.region)):
            raise MethodError(
                f"{probe.asked.label!r} is about a place, which lies elsewhere in the copies of {over}; combine over noise, or give "
                "a function of the output"
            )
        count, altered = copies(capture.input, **settings)
        maps = []
        one_pass = base.needs in ONE_PASS
        together = (
            one_pass or base.needs in PIXELS
        ) and over != "scales"  # of one size, for a method that takes several
        for part in probe.steps(count) if together else probe.steps(count, 1):
            some = list(islice(altered, part.stop - part.start))
            pictures = torch.cat([picture for picture, _ in some])
            if one_pass:
                found = run(base, probe.capture(pictures, base.needs == "gradients"), options)
            elif base.needs in PIXELS:
                rule = PIXELS[base.needs]
                with_rule = None if rule is None else Ruled(rule)
                scores, gradients = probe.score_grad(pictures, with_rule)
                if with_rule is not None:
                    probe.notes.extend(
                        note for note in met(base.name, "the model", with_rule) if note not in probe.notes
                    )
                seen = dataclasses.replace(
                    of_input(capture),
                    input=pictures,
                    activations=pictures,
                    gradients=gradients,
                    scores=scores,
                    output=None,
                    latest={},
                )
                found = run(base, seen, options)
            elif base.needs in WANTED:
                found = run(base, probe.attention(pictures, base.needs), options)
            else:
                seen, ask = probe.other(pictures)
                found = run(base, seen, options, ask)
                probe.notes.extend(note for note in ask.notes if note not in probe.notes)
            found = found if base.signed else found.relu()
            maps += [back(one[None]) for one, (_, back) in zip(found, some, strict=True)]
        # On the layer's own grid, which other scales leave; a map of the whole picture keeps the first copy's.
        grid = maps[0].shape[1:] if base.needs in WHOLE else capture.activations.shape[2:]
        resized = [
            F.interpolate(one[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
            if one.shape[1:] != grid
            else one
            for one in maps
        ]
        return torch.stack(resized).mean(dim=0)

    kept = [one for one in inspect.signature(base.function).parameters.values() if one.kind is one.KEYWORD_ONLY]
    two = [one for one in inspect.signature(combined).parameters.values() if one.kind is not one.VAR_KEYWORD]
    combined.__signature__ = inspect.Signature([*two, *kept])  # type: ignore[attr-defined]
    combined.__doc__ = base.function.__doc__
    needs: Needs = base.needs
    if base.needs in ONE_PASS:
        needs = "input"
    elif base.needs in PIXELS:
        needs = "input-gradients"
    elif base.needs in WANTED:
        needs = "model"
    # What it shows the model are pictures: of a film it would not know where a slice ends.
    return dataclasses.replace(base, name=f"{base.name} over {over}", function=combined, needs=needs, volumes=False)


@method(
    "refine-cam",
    needs="model",
    unit="own",
    reference="How to Evaluate and Refine your CAM, 2026, arXiv:2605.14641; liuktc/RefineCAM, MultiplierMix",
)
def refine_cam(capture: Capture, probe: Probe) -> Tensor:
    """Where grad-cam++ agrees at every resolution of the network: the fine layers' detail, kept only where the deep ones look.

    Formula: map = product over the last layers of all resolutions of M_l / max M_l, each M_l by grad-cam++, on the finest grid.

    Differs: the authors stretch each map from its lowest value to its highest, we divide by the highest alone.
    """
    resized = on_finest([grad_cam_plus_plus(one).relu() for one in probe.stages()])
    return torch.stack([share_of_maximum(one) for one in resized]).prod(dim=0)
