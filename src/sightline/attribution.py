"""Raw maps of ready tensors: a batch goes in, (B, h, w) comes out. What a photograph needs beside that is in `flow`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.engine.attention import WANTED, AttentionCapture, attend
from sightline.engine.capture import Capture, check_input, finite_images, of_image, of_input, toward
from sightline.engine.capture import capture as run_once
from sightline.engine.probe import MEMORY_MB, Progress, probe
from sightline.engine.targets import Asked, TargetSpec, per_image
from sightline.errors import LayerError, ModelError, NonFiniteError
from sightline.methods.registry import (
    ONE_PASS,
    OUTSIDE,
    WHOLE,
    Function,
    Method,
    check_options,
    check_possible,
    default,
    find,
    run,
)
from sightline.models.adapter import INPUT, Adapter, adapt, like_weights
from sightline.models.load import load_model
from sightline.models.twin import submodule
from sightline.models.view import View

Model = str | Path | nn.Module | Adapter | Callable[[Tensor], Any]


@dataclass(frozen=True, eq=False)
class Origin:
    """How one picture's map came about, so that the model can be asked about it again.

    Attributes:
        adapter: the model.
        method: what made the map, with its `options`.
        target: what it explains.
        x: the picture as the model's input (1, C, H, W), on the CPU.
        layers: names of the layers it was made of.
        memory_mb: about how much one forward may need.
    """

    adapter: Adapter
    method: Method
    target: Asked
    x: Tensor
    layers: tuple[str, ...]
    options: Mapping[str, Any]
    memory_mb: float = MEMORY_MB


def attribute(
    x: Tensor | Capture,
    model: nn.Module | Adapter | Callable[[Tensor], Any],
    *,
    method: str | Function | Method | None = None,
    target: TargetSpec | Sequence[TargetSpec] | Tensor = None,
    layer: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    memory_mb: float = MEMORY_MB,
    progress: Progress | None = None,
) -> Tensor:
    """Raw maps for a batch of ready inputs.

    Args:
        x: (B, C, H, W), on the model's device and of its type; or what `capture` returned, and then only the part of the
            model behind the layer is run.
        model: a module, adapter or function (see `adapt`); never changed.
        method: as in `explain`.
        target: one for all images, or a list with exactly one an image; None is each image's predicted class.
        layer: as in `explain`; methods that look at the whole network (full-grad, refine-cam) make one map, whichever it is.
        options: of the method.
        memory_mb: as in `explain`.
        progress: as in `explain`.

    Returns:
        (B, h, w) at the layer's resolution, unscaled, on the device and in the type of x. Not negative, except for
        signed methods.

    Raises:
        NonFiniteError: NaN or infinity somewhere; its `maps` hold the other images' maps.
    """
    adapter = adapter_of(model)
    chosen = find(default(adapter) if method is None else method)
    check_possible(chosen, adapter)
    if chosen.needs in WANTED and not isinstance(x, Capture):
        for name in layer_names(layer):
            if name is not None:
                submodule(adapter.module, name)
        check_options([chosen], options or {})
        attended = attend(adapter, x, chosen.needs, lambda output: per_image(target, adapter, output, len(x)))
        found = run(chosen, attended, options or {})
        _check_finite(chosen, adapter, attended, found)
        return rectified(chosen, found).to(x.dtype)
    if isinstance(x, Capture):
        if x.module is not adapter.module:
            raise ModelError("this capture is of another model; give the one that it was made with")
        if layer_names(layer) not in ([None], [x.layer]):
            raise LayerError(
                f"this capture is of layer {x.layer!r}, not of {layer!r}; capture that one, or leave layer out"
            )
        seen = [x]
    else:
        check_input(x)
        seen = run_once(adapter, x, layers_for([chosen], adapter, layer))
    asked = per_image(target, adapter, seen[0].output, len(seen[0].activations))
    captured = toward_all([chosen], seen, asked)
    (group,) = layer_groups(chosen, len(seen), fuse=True)
    maps = [map_of(chosen, adapter, captured[at], asked, options or {}, memory_mb, progress, [], []) for at in group]
    return fused(chosen, [captured[at] for at in group], maps).to(seen[0].input.dtype)


def capture(x: Tensor, model: nn.Module | Adapter | Callable[[Tensor], Any], *, layer: str | None = None) -> Capture:
    """One pass, kept open: `attribute` then asks it for any class, margin or method at the price of the head alone.

    Args:
        x: (B, C, H, W).
        model: as in `attribute`.
        layer: as in `explain`; "input" is x itself.
    """
    check_input(x)
    return run_once(adapter_of(model), x, [layer])[0]


def adapter_of(model: Model) -> Adapter:
    if isinstance(model, Adapter):
        return model
    return load_model(model) if isinstance(model, str | Path) else adapt(model)


def input_of(adapter: Adapter, photo: Any) -> tuple[Tensor, View]:
    if adapter.preprocess is None:
        raise ModelError(
            f"{adapter.name} comes without preprocessing, so that no photograph can be fed to it: "
            "sightline.adapt(module, preprocess=function), or sightline.attribute for ready tensors"
        )
    x, view = adapter.preprocess(photo)
    return like_weights(x[None], adapter.module), view


def map_of(
    method: Method,
    adapter: Adapter,
    captured: Capture,
    asked: Sequence[Asked],
    options: Mapping[str, Any],
    memory_mb: float,
    progress: Progress | None,
    notes: list[str],
    where: list[str],
) -> Tensor:
    """The map before rectification (B, h, w), checked to be finite.

    What the method has to say comes into `notes`, and the layers it looked at, where it chose some, into `where`.
    """
    captured = shown_to(method, captured)
    if method.needs in WANTED:
        seen = attend(adapter, captured.input, method.needs, lambda _: asked)
        maps = run(method, seen, options)
        notes += seen.notes
        where += seen.where
        _check_finite(method, adapter, seen, maps)
    elif method.needs in ONE_PASS:
        maps = run(method, captured, options)
    else:
        parts = []
        for image, target in enumerate(asked):
            alone = of_image(captured, image)
            ask = probe(adapter, alone, target, memory_mb=memory_mb, progress=progress)
            parts.append(run(method, alone, options, ask))
            notes += ask.notes
        maps = torch.cat(parts)
    _check_finite(method, adapter, captured, maps)
    return maps


def toward_all(methods: Sequence[Method], seen: Sequence[Capture], asked: Sequence[Asked]) -> Sequence[Capture]:
    """The captures with what the methods need of a target: gradients, the scores alone, or nothing."""
    needs = {one.needs for one in methods}
    # Tokens of which nothing is read are refused for every method.
    tokens = any(one.layout is not None and one.layout.extra for one in seen)
    if needs == {"activations"} and not tokens:
        return seen
    return toward(seen, asked, gradients="gradients" in needs)


def layer_groups(method: Method, layers: int, fuse: bool) -> list[list[int]]:
    """The layers that one map is made of, for each map."""
    if method.needs in WHOLE:
        return [[0]]  # looks at the whole network, whichever layer it starts from
    return [list(range(layers))] if fuse else [[index] for index in range(layers)]


def layers_for(methods: Sequence[Method], adapter: Adapter, layer: str | Sequence[str] | None) -> list[str | None]:
    """Names of the layers to capture; for methods that look at none, none has to be found."""
    if layer is None and adapter.layer is None and all(one.needs in OUTSIDE for one in methods):
        return [INPUT]
    return layer_names(layer)


def shown_to(method: Method, captured: Capture) -> Capture:
    """What a method gets to see of a capture: the input, where it looks at no layer."""
    return of_input(captured) if method.needs in OUTSIDE else captured


def fused(method: Method, captures: Sequence[Capture], maps: Sequence[Tensor]) -> Tensor:
    """The rectified map, or one made of those of several layers."""
    if len(maps) == 1:
        return rectified(method, maps[0])
    # The finest first; those of one grid in the order in which they ran.
    order = sorted(range(len(maps)), key=lambda at: (-maps[at].shape[1] * maps[at].shape[2], captures[at].place))
    return method.fuse([rectified(method, maps[at]) for at in order])


def rectified(method: Method, maps: Tensor) -> Tensor:
    return maps if method.signed else maps.relu()


def layer_names(layer: str | Sequence[str] | None) -> list[str | None]:
    if isinstance(layer, str | None):
        return [layer]
    if not isinstance(layer, list | tuple) or not all(isinstance(one, str) for one in layer):
        raise LayerError(f"layer is {layer!r}; expected a name or a list of names: sightline layers MODEL")
    if not layer:
        raise LayerError("layer is an empty list; name one, or leave it out")
    if "all" in layer and len(layer) > 1:
        raise LayerError("'all' stands for every layer and takes no other beside it")
    return list(layer)


def _check_finite(method: Method, adapter: Adapter, captured: Capture | AttentionCapture, maps: Tensor) -> None:
    stages = [*captured.finite, (f"the map of {method.name}", finite_images(maps))]
    good = torch.stack([free for _, free in stages]).all(dim=0)
    if bool(good.all()):
        return
    name = next(name for name, free in stages if not free.all())
    bad = tuple(int(image) for image in (~good).nonzero()[:, 0])
    weights = [
        key for key, one in adapter.module.state_dict().items() if one.is_floating_point() and not one.isfinite().all()
    ]
    reason = f"; the weights themselves hold them, first in {weights[0]!r}" if weights else ""
    where = (
        f" for image{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad))} of {len(good)}" if len(good) > 1 else ""
    )
    rest = "" if len(bad) == len(good) else "; the other maps are in this error's .maps"
    kept = rectified(method, maps).masked_fill(~good[:, None, None], float("nan"))
    raise NonFiniteError(f"NaN or infinity in {name}{where}{reason}{rest}", bad, kept.to(captured.input.dtype))
