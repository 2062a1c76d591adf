"""The whole flow on one screen: photograph -> view -> capture -> method -> heat map. Read this first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.data.images import ImageMeta, Source, read_image
from sightline.engine.capture import Capture, check_input, finite_images, toward
from sightline.engine.capture import capture as run_once
from sightline.engine.probe import probe
from sightline.engine.targets import Asked, TargetSpec, is_normalised, per_image, probabilities, table
from sightline.errors import ModelError, NonFiniteError, SightlineError
from sightline.heatmap import Heatmap, Prediction, share_scale
from sightline.methods import list_methods
from sightline.methods.notices import floor, notices, same_map
from sightline.methods.registry import Function, Method, check_options, find, run
from sightline.models.adapter import Adapter, adapt, like_weights
from sightline.models.load import load_model
from sightline.models.view import View
from sightline.render.panel import percent

Model = str | nn.Module | Adapter
_ONE_PASS = ("activations", "gradients")


def explain(
    image: Source,
    model: Model = "bundled",
    *,
    method: str | Function = "grad-cam",
    target: TargetSpec = None,
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Heatmap:
    """Shows which part of a photograph raised the model's score for a class.

    Args:
        image: path, bytes, PIL image, or array (H, W, 3).
        model: from `load_model` or `adapt`, or a name (loaded anew at each call).
        method: a name (`sightline methods`) or a function from `Capture` to a map (1, h, w).
        target: class index, class name or a unique part of it, a function from logits (B, K) to scores (B,), or None for
            the predicted class.
        layer: a layer's name; the adapter's own when left out.
        options: of the method, such as {"normalise": True}.

    Raises:
        SightlineError: every foreseen failure, by its kind: see `sightline.errors`.
    """
    return compare(image, model, methods=[method], targets=[target], layer=layer, options=options)[0]


def compare(
    image: Source,
    model: Model = "bundled",
    *,
    methods: Sequence[str | Function] | None = None,
    targets: Sequence[TargetSpec] = (None,),
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    same_scale: bool = True,
) -> list[Heatmap]:
    """Several methods and classes on one photograph, from one pass through the model.

    Args:
        image: as in `explain`.
        model: as in `explain`.
        methods: names or functions; every registered method when left out.
        targets: several targets for this one photograph, each as in `explain`.
        layer: as in `explain`.
        options: given to every method that has them.
        same_scale: draw all maps on one scale (those in another unit on their own), so that a weak one looks weak.

    Returns:
        One `Heatmap` for each method and target: all targets of the first method, then of the second, ...
    """
    chosen = [find(name) for name in (list_methods() if methods is None else methods)]
    if not chosen or not targets:
        raise ModelError("nothing to compare: give at least one method and one target")
    check_options(chosen, options or {})
    adapter = _adapter(model)
    photo, meta = read_image(image)
    x, view = _input(adapter, photo)
    (seen,) = run_once(adapter, x, [layer])
    predictions = _predictions(adapter, seen)
    asked = [per_image(target, adapter, seen.output, 1) for target in targets]
    gradients = any(one.needs != "activations" for one in chosen)
    captures = [toward([seen], one)[0] if gradients else seen for one in asked]
    found = []
    for one in chosen:
        taken = {name: value for name, value in (options or {}).items() if name in one.options}
        for capture, target in zip(captures, asked, strict=True):
            signed = _map(one, adapter, capture, target, taken)
            found.append(_heatmap(one, adapter, photo, meta, view, capture, target[0], signed[0], predictions))
    return share_scale(_mark_equal(found)) if same_scale else _mark_equal(found)


def attribute(
    x: Tensor | Capture,
    model: nn.Module | Adapter,
    *,
    method: str | Function = "grad-cam",
    target: TargetSpec | Sequence[TargetSpec] | Tensor = None,
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Raw maps for a batch of ready inputs.

    Args:
        x: (B, C, H, W), on the model's device and of its type; or what `capture` returned, and then only the part of the
            model behind the layer is run.
        model: a module or adapter; never changed.
        method: as in `explain`.
        target: one for all images, or a list with exactly one an image; None is each image's predicted class.
        layer: as in `explain`.
        options: of the method.

    Returns:
        (B, h, w) at the layer's resolution, unscaled, on the device and in the type of x. Not negative, except for
        signed methods.

    Raises:
        NonFiniteError: NaN or infinity somewhere; its `maps` hold the other images' maps.
    """
    adapter = _adapter(model)
    chosen = find(method)
    seen = x if isinstance(x, Capture) else capture(x, adapter, layer=layer)
    asked = per_image(target, adapter, seen.output, len(seen.activations))
    captured = toward([seen], asked)[0] if chosen.needs != "activations" else seen
    maps = _rectified(chosen, _map(chosen, adapter, captured, asked, options or {}))
    return maps.to(seen.input.dtype)


def capture(x: Tensor, model: nn.Module | Adapter, *, layer: str | None = None) -> Capture:
    """One pass, kept open: `attribute` then asks it for any class, margin or method at the price of the head alone.

    Args:
        x: (B, C, H, W).
        model: a module or adapter; never changed.
        layer: as in `explain`.
    """
    check_input(x)
    return run_once(_adapter(model), x, [layer])[0]


def _adapter(model: Model) -> Adapter:
    if isinstance(model, Adapter):
        return model
    return load_model(model) if isinstance(model, str) else adapt(model)


def _input(adapter: Adapter, photo: Any) -> tuple[Tensor, View]:
    if adapter.preprocess is None:
        raise ModelError(
            f"{adapter.name} comes without preprocessing, so that no photograph can be fed to it: "
            "sightline.adapt(module, preprocess=function), or sightline.attribute for ready tensors"
        )
    x, view = adapter.preprocess(photo)
    return like_weights(x[None], adapter.module), view


def _predictions(adapter: Adapter, seen: Capture, count: int = 10) -> tuple[Prediction, ...]:
    try:
        shares = probabilities(seen.output)[0]
    except SightlineError:
        return ()  # no classifier; its targets are functions
    best = shares.nan_to_num(-1).topk(min(count, len(shares)))
    return tuple(Prediction(int(index), adapter.label(int(index)), float(shares[index])) for index in best.indices)


def _map(
    method: Method, adapter: Adapter, captured: Capture, asked: Sequence[Asked], options: Mapping[str, Any]
) -> Tensor:
    """The map before rectification (B, h, w), checked to be finite."""
    if method.needs in _ONE_PASS:
        maps = run(method, captured, options)
    else:
        parts = []
        for image, one in enumerate(asked):
            x = captured.input[image : image + 1]
            alone = toward([run_once(adapter, x, [captured.layer])[0]], [one])[0]
            parts.append(run(method, alone, options, probe(adapter, x, captured.layer, one)))
        maps = torch.cat(parts)
    _check_finite(method, adapter, captured, maps)
    return maps


def _rectified(method: Method, maps: Tensor) -> Tensor:
    return maps if method.signed else maps.relu()


def _check_finite(method: Method, adapter: Adapter, captured: Capture, maps: Tensor) -> None:
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
    kept = _rectified(method, maps).masked_fill(~good[:, None, None], float("nan"))
    raise NonFiniteError(f"NaN or infinity in {name}{where}{reason}{rest}", bad, kept.to(captured.input.dtype))


def _heatmap(
    method: Method,
    adapter: Adapter,
    photo: Any,
    meta: ImageMeta,
    view: View,
    captured: Capture,
    asked: Asked,
    signed: Tensor,
    predictions: tuple[Prediction, ...],
) -> Heatmap:
    """One image's map with everything that a person must know about it."""
    signed = signed.detach().float().cpu()
    raw = _rectified(method, signed)
    score = float(captured.scores[0]) if captured.scores is not None else None
    chance = None
    if asked.index is not None:
        chance = float(probabilities(captured.output)[0, asked.index])
    said = notices(
        method,
        captured,
        raw.to(captured.activations.device),
        signed,
        is_probability=getattr(asked.score, "is_probability", False),
    )
    said += _about_prediction(asked, predictions, captured)
    return Heatmap(
        raw=raw.numpy(),
        signed_raw=signed.numpy(),
        scale=max(float(raw.abs().max()), floor(method, raw, score or 0.0)),
        photo=photo,
        view=view,
        image=meta["name"],
        method=method.name,
        signed=method.signed,
        unit=method.unit,
        label=asked.label,
        index=asked.index,
        score=score,
        probability=chance,
        layer=captured.layer,
        layer_reason=adapter.layer_reason if captured.layer == adapter.layer else "given",
        predictions=predictions,
        model=adapter.name,
        provenance=adapter.provenance,
        warnings=(*adapter.notes, *said, *meta["notes"]),
    )


def _about_prediction(asked: Asked, predictions: tuple[Prediction, ...], captured: Capture) -> list[str]:
    said = []
    if predictions and asked.index is not None and len(predictions) > 1:
        first = predictions[0]
        if asked.index != first.index:
            said.append(f"{asked.label!r} is not what the model says; it says {first.label!r}")
        elif first.probability < 0.5:
            said.append(f"the model is not sure: its best guess has only {percent(first.probability)}")
        if is_normalised(table(captured.output)):
            said.append("the model returns probabilities, whose gradients vanish when it is sure; take its softmax off")
    return said


def _mark_equal(found: list[Heatmap]) -> list[Heatmap]:
    """Says so where methods give one and the same map, instead of showing it twice without a word."""
    marked = []
    for one in found:
        twins = [
            other.method
            for other in found
            if other is not one
            and (other.label, other.index) == (one.label, one.index)
            and other.method != one.method
            and same_map(torch.from_numpy(one.signed_raw), torch.from_numpy(other.signed_raw))
        ]
        if twins:
            names = sorted({one.method, *twins})
            note = f"{', '.join(names[:-1])} and {names[-1]} are the same map here, up to what is cut below 0"
            one = dataclasses.replace(one, warnings=(*one.warnings, note))
        marked.append(one)
    return marked
