"""Raw maps of ready tensors: a batch goes in, (B, h, w) comes out. What a photograph needs beside that is in `flow`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sightline.data.images import ImageMeta, Source, read_bands, read_image
from sightline.engine.asked import Asked, TargetSpec
from sightline.engine.attention import WANTED, AttentionCapture, attend
from sightline.engine.capture import Capture, check_input, finite_images, of_image, of_input, toward
from sightline.engine.capture import capture as run_once
from sightline.engine.probe import MEMORY_MB, Budget, Progress, Together, probe
from sightline.engine.rules import Ruled
from sightline.engine.targets import per_image
from sightline.engine.tasks import task_of
from sightline.errors import LayerError, MethodError, ModelError, NonFiniteError
from sightline.methods.input_gradients import met
from sightline.methods.registry import (
    OF_INPUT,
    ONE_PASS,
    PIXELS,
    WHOLE,
    Function,
    Method,
    check_of_volumes,
    check_options,
    check_possible,
    default,
    find,
    run,
)
from sightline.models.adapter import INPUT, Adapter, adapt, like_weights
from sightline.models.bands import bands_of, checked, shown
from sightline.models.load import load_model
from sightline.models.preprocess import Preprocess
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
        cost: how many pictures the model was shown for it, beside the first look.
    """

    adapter: Adapter
    method: Method
    target: Asked
    x: Tensor
    layers: tuple[str, ...]
    options: Mapping[str, Any]
    memory_mb: float = MEMORY_MB
    cost: int = 0


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
    max_calls: int | None = None,
) -> Tensor:
    """Raw maps for a batch of ready inputs.

    Args:
        x: (B, C, H, W), on the model's device and of its type; or what `capture` returned, and then only the part of the
            model behind the layer is run. A film or volume (B, C, T, H, W) is explained by methods that treat all places alike.
        model: a module, adapter or function (see `adapt`); never changed.
        method: as in `explain`.
        target: one for all images, or a list with exactly one an image; None is each image's predicted class.
        layer: as in `explain`; methods that look at the whole network (full-grad, refine-cam) make one map, whichever it is.
        options: of the method.
        memory_mb: as in `explain`.
        progress: as in `explain`.
        max_calls: as in `explain`, for the whole batch.

    Returns:
        (B, h, w) at the layer's resolution, unscaled, on the device and in the type of x; (B, t, h, w) of films and volumes.
        Not negative, except for signed methods.

    Raises:
        NonFiniteError: NaN or infinity somewhere; its `maps` hold the other images' maps.
    """
    adapter = adapter_of(model)
    chosen = find(default(adapter) if method is None else method)
    check_possible(chosen, adapter)
    budget = Budget(checked_calls(max_calls))
    if not isinstance(x, Capture):
        check_input(x, volumes=True)
        budget.spend(len(x))
    if (x.input if isinstance(x, Capture) else x).dim() == 5:
        check_of_volumes(chosen, adapter, options or {}, layer_names(layer))
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
        seen, levels = [x], False
    else:
        names = layers_for([chosen], adapter, layer)
        levels = bool(adapter.levels) and names == [None]
        names = list(adapter.levels) if levels else names
        seen = _under(chosen, adapter, x, []) if names == [INPUT] else run_once(adapter, x, names, some=levels)
    if method is None:  # what the model does may be seen only now
        chosen = find(default(replace(adapter, task=task_of(adapter, seen[0].output))))
    whole = View.of_input(seen[0].input.shape[-1], seen[0].input.shape[-2])
    asked = per_image(target, adapter, seen[0].output, len(seen[0].activations), whole)
    captured = toward_all([chosen], seen, asked, levels)
    (group,) = layer_groups(chosen, len(captured), fuse=True)
    terms = Terms(options or {}, memory_mb, progress, budget)
    maps = [map_of(chosen, adapter, captured[at], asked, terms) for at in group]
    found = fused(chosen, [captured[at] for at in group], maps).to(seen[0].input.dtype)
    form = shown_to(chosen, captured[group[0]]).layout
    return found if form is None else form.unfolded(found)


def capture(x: Tensor, model: nn.Module | Adapter | Callable[[Tensor], Any], *, layer: str | None = None) -> Capture:
    """One pass, kept open: `attribute` then asks it for any class, margin or method at the price of the head alone.

    Args:
        x: (B, C, H, W), or (B, C, T, H, W).
        model: as in `attribute`.
        layer: as in `explain`; "input" is x itself.
    """
    return run_once(adapter_of(model), x, [layer])[0]


def adapter_of(model: Model) -> Adapter:
    if isinstance(model, Adapter):
        return model
    return load_model(model) if isinstance(model, str | Path) else adapt(model)


def opened(adapter: Adapter, image: Source) -> tuple[Image.Image, ImageMeta, Any]:
    """A picture as a person is shown it, what is known of it, and the same as the model's preprocessing takes it."""
    if adapter.frames is not None:
        raise ModelError(
            f"{adapter.name} takes films or volumes of {adapter.frames} frames, and this is for photographs: sightline explain --film, or "
            "sightline.explain_frames"
        )
    of = bands_of(adapter.preprocess)
    if of is None:
        photo, meta = read_image(image)
        return photo, meta, photo
    found, meta = read_bands(image)
    values = checked(found, of, meta["name"])
    photo, note = shown(values, of)
    return photo, {**meta, "notes": (*meta["notes"], note)}, values


def input_of(adapter: Adapter, photo: Any) -> tuple[Tensor, View]:
    """The model's input (1, C, H, W), and how the picture became that."""
    x, view = preprocess_of(adapter)(photo)
    return like_weights(x[None], adapter.module), view


def preprocess_of(adapter: Adapter) -> Preprocess:
    if adapter.preprocess is None:
        raise ModelError(
            f"{adapter.name} comes without preprocessing, so that no photograph can be fed to it: "
            "sightline.adapt(module, preprocess=function), or sightline.attribute for ready tensors"
        )
    return adapter.preprocess


@dataclass(frozen=True, eq=False)
class Terms:
    """How a method may ask, and what it says beside its map.

    Attributes:
        options: of the method.
        memory_mb: about how much one forward may need.
        progress: told (done, total) by methods that ask the model again.
        budget: how many pictures the model may be shown.
        together: targets that are shown the same pictures.
        notes: what the method has to say about its result is appended here.
        where: the layers it looked at, where it chose some.
        details: what there is to see beside the map of one image, by name.
    """

    options: Mapping[str, Any]
    memory_mb: float = MEMORY_MB
    progress: Progress | None = None
    budget: Budget = field(default_factory=Budget)
    together: Together | None = None
    notes: list[str] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def checked_calls(most: Any) -> int | None:
    """How many pictures may be shown, or a refusal of what is no number of them."""
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise MethodError(
            f"max_calls is {most!r}; expected how many pictures the model may be shown, 1 or more, or None"
        )
    return most


def map_of(method: Method, adapter: Adapter, captured: Capture, asked: Sequence[Asked], terms: Terms) -> Tensor:
    """The map before rectification (B, h, w), checked to be finite."""
    captured = shown_to(method, captured)
    if method.needs in WANTED:
        terms.budget.spend(len(captured.input))
        seen = attend(adapter, captured.input, method.needs, lambda _: asked)
        maps = run(method, seen, terms.options)
        terms.notes.extend(seen.notes)
        terms.where.extend(seen.where)
        _check_finite(method, adapter, seen, maps)
    elif method.needs in PIXELS:
        captured = of_pixels(method, adapter, captured, asked, terms)
        maps = run(method, captured, terms.options)
    elif method.needs in ONE_PASS:
        maps = run(method, captured, terms.options)
    else:
        parts = []
        for image, target in enumerate(asked):
            alone = of_image(captured, image)
            ask = probe(
                adapter,
                alone,
                target,
                memory_mb=terms.memory_mb,
                progress=terms.progress,
                budget=terms.budget,
                together=terms.together,
            )
            parts.append(run(method, _laid_out(method, alone), terms.options, ask))
            terms.notes.extend(ask.notes)
            terms.details.update(ask.details)
        maps = torch.cat(parts)
    _check_finite(method, adapter, captured, maps)
    return maps


def of_pixels(method: Method, adapter: Adapter, captured: Capture, asked: Sequence[Asked], terms: Terms) -> Capture:
    """The capture of the input with gradients of the pixels, by the method's rule for ReLUs."""
    if captured.gradients is not None and captured.rule == PIXELS[method.needs]:
        return captured
    terms.budget.spend(len(captured.input))
    return toward(_under(method, adapter, captured.input, terms.notes), asked)[0]


def _under(method: Method, adapter: Adapter, x: Tensor, notes: list[str]) -> list[Capture]:
    """The capture of the input by the method's rule for ReLUs, if it has one; what there is to say of that comes into `notes`."""
    rule = PIXELS.get(method.needs)
    if rule is None:
        return run_once(adapter, x, [INPUT])
    with Ruled(rule) as found:
        seen = run_once(adapter, x, [INPUT])
    notes.extend(met(method.name, adapter.name, found))
    return [replace(one, rule=rule) for one in seen]


def toward_all(
    methods: Sequence[Method], seen: Sequence[Capture], asked: Sequence[Asked], levels: bool = False
) -> Sequence[Capture]:
    """The captures with what the methods need of a target: gradients, the scores alone, or nothing; of `levels` those that it reads."""
    if levels:
        return toward(seen, asked, some=True)
    needs = {one.needs for one in methods}
    # Tokens of which nothing is read are refused for every method.
    tokens = any(one.layout is not None and one.layout.extra for one in seen)
    if needs == {"activations"} and not tokens:
        return seen
    wanted = "gradients" in needs or (
        seen[0].layer == INPUT and any(PIXELS.get(one, "") == seen[0].rule for one in needs)
    )
    return toward(seen, asked, gradients=wanted)


def layer_groups(method: Method, layers: int, fuse: bool) -> list[list[int]]:
    """The layers that one map is made of, for each map."""
    if method.needs in WHOLE:
        return [[0]]  # looks at the whole network, whichever layer it starts from
    return [list(range(layers))] if fuse else [[index] for index in range(layers)]


def layers_for(methods: Sequence[Method], adapter: Adapter, layer: str | Sequence[str] | None) -> list[str | None]:
    """Names of the layers to capture; for methods that look at none, none has to be found."""
    here = adapter.layer is None or any(one.needs in PIXELS for one in methods)
    if layer is None and here and all(one.needs in OF_INPUT for one in methods):
        return [INPUT]
    return layer_names(layer)


def shown_to(method: Method, captured: Capture) -> Capture:
    """What a method gets to see of a capture: the input, where it looks at no layer."""
    return of_input(captured) if method.needs in OF_INPUT else captured


def _laid_out(method: Method, captured: Capture) -> Capture:
    """A capture whose input is laid out as its activations are, for methods that show the model changed pictures."""
    return replace(captured, input=captured.activations) if method.needs in OF_INPUT else captured


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
    kept = kept if captured.layout is None else captured.layout.unfolded(kept)
    raise NonFiniteError(f"NaN or infinity in {name}{where}{reason}{rest}", bad, kept.to(captured.input.dtype))
