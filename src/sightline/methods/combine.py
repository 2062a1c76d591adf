"""What can be done with any method: averaging it over altered pictures, and multiplying it over layers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.errors import MethodError
from sightline.methods.gradient_cams import at_least_single, grad_cam_plus_plus
from sightline.methods.registry import ONE_PASS, Function, Method, find, method, on_finest, run, share_of_maximum

WAYS = ("noise", "flips", "scales")


def combine(
    method: str | Function | Method,
    over: Literal["noise", "flips", "scales"],
    *,
    samples: int = 25,
    noise: float = 0.15,
    scales: Sequence[float] = (0.75, 1.0, 1.25),
    seed: int = 0,
) -> Method:
    """The mean of a method's maps over altered copies of the picture, as a method.

    Args:
        method: name, function or method.
        over: "noise" (SmoothGrad's way), "flips" (the picture and its mirror image), or "scales".
        samples: how many noisy copies.
        noise: standard deviation of the noise, as a share of the picture's range.
        scales: factors of the picture's size; for models that take any size.
        seed: of the noise.

    Raises:
        MethodError: no such way, or a number that makes no sense.

    Source: Smilkov et al. 2017, arXiv:1706.03825, for noise.
    """
    base = find(method)
    if over not in WAYS:
        raise MethodError(f"over={over!r}; expected one of {', '.join(WAYS)}")
    if samples < 1 or not noise >= 0 or not scales or min(scales) <= 0:
        raise MethodError("samples must be 1 or more, noise 0 or more, and scales above 0")

    def copies(x: Tensor) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Altered pictures, and how a map of each lies on the original's grid."""
        if over == "flips":
            return [(x, _as_is), (x.flip(3), _mirrored)]
        if over == "scales":
            sizes = [tuple(max(1, round(side * factor)) for side in x.shape[2:]) for factor in scales]
            return [
                (
                    F.interpolate(at_least_single(x), size, mode="bilinear", align_corners=False, antialias=True).to(x),
                    _as_is,
                )
                for size in sizes
            ]
        generator = torch.Generator().manual_seed(seed)
        spread = noise * float(x.max() - x.min())
        return [(x + spread * torch.randn(x.shape, generator=generator).to(x), _as_is) for _ in range(samples)]

    def combined(capture: Capture, probe: Probe, **options: Any) -> Tensor:
        altered = copies(capture.input)
        maps = []
        for part in probe.steps(len(altered)):
            for picture, back in altered[part]:
                if base.needs in ONE_PASS:
                    found = run(base, probe.capture(picture), options)
                else:
                    seen, ask = probe.other(picture)
                    found = run(base, seen, options, ask)
                    probe.notes.extend(note for note in ask.notes if note not in probe.notes)
                maps.append(back(found if base.signed else found.relu()))
        # On the layer's own grid, which other scales leave; a map of the whole picture keeps the first copy's.
        grid = maps[0].shape[1:] if base.needs == "model" else capture.activations.shape[2:]
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
    return dataclasses.replace(base, name=f"{base.name} over {over}", function=combined, needs="model")


def _as_is(maps: Tensor) -> Tensor:
    return maps


def _mirrored(maps: Tensor) -> Tensor:
    return maps.flip(2)


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
