"""The whole flow: photograph -> view -> capture -> method -> heat map. Read this first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sightline.attribution import (
    Model,
    Origin,
    Terms,
    adapter_of,
    checked_calls,
    fused,
    input_of,
    layer_groups,
    layer_names,
    layers_for,
    map_of,
    opened,
    rectified,
    shown_to,
    toward_all,
)
from sightline.concept import Concepts, Evoked
from sightline.data.images import ImageMeta, Source
from sightline.engine.asked import Asked, TargetSpec
from sightline.engine.boxes import checked_found, in_order
from sightline.engine.capture import Capture
from sightline.engine.capture import capture as run_once
from sightline.engine.probe import MEMORY_MB, Budget, Progress, Together, probe
from sightline.engine.regions import pixel_logits, seen_classes
from sightline.engine.targets import SEVERAL, are_independent, expanded, is_normalised, per_image, probabilities, table
from sightline.engine.tasks import task_of
from sightline.errors import (
    LayerError,
    MethodError,
    MissingExtraError,
    ModelError,
    NonFiniteError,
    SightlineError,
    TargetError,
)
from sightline.heatmap import ALL_LAYERS, Heatmap, Prediction, share_scale
from sightline.methods.factorise import factorise
from sightline.methods.notices import clipped, floor, notices, same_map
from sightline.methods.registry import (
    OF_INPUT,
    OUTSIDE,
    WHOLE,
    Function,
    Method,
    check_options,
    check_possible,
    default,
    find,
    one_pass,
    possible,
)
from sightline.models.adapter import INPUT, Adapter, no_layers
from sightline.models.layers import NOT_ALL, sweep
from sightline.models.view import View
from sightline.render.panel import percent

Told = Callable[[str, int], None]


@dataclass(frozen=True, eq=False)
class Look:
    """A photograph that a model has looked at; `explain` and `compare` then ask for any class at the price of the head.

    Attributes:
        adapter: the model.
        photo: the photograph, upright RGB; `meta` what else is known of it.
        view: how it became the model's input.
        captures: what the layers said, one each.
        predictions: what the model says, most probable first.
        named: whether somebody named the layers.
    """

    adapter: Adapter
    photo: Image.Image
    meta: ImageMeta
    view: View
    captures: tuple[Capture, ...]
    predictions: tuple[Prediction, ...]
    named: bool = False


def explain(
    image: Source | Look,
    model: Model = "bundled",
    *,
    method: str | Function | Method | None = None,
    target: TargetSpec = None,
    layer: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    memory_mb: float = MEMORY_MB,
    progress: Progress | None = None,
    max_calls: int | None = None,
    told: Told | None = None,
) -> Heatmap:
    """Shows which part of a photograph raised the model's score for a class.

    Args:
        image: path, bytes, PIL image, or array (H, W, 3); of a model with `bands` array (H, W, n), .npy or TIFF; or what `look`
            returned, and then no model and layer.
        model: from `load_model` or `adapt`, or what these take (and then anew at each call).
        method: a name (`sightline methods`), a function from `Capture` to a map (1, h, w), or what `combine` returns. When left
            out grad-cam, and for a black box occlusion.
        target: class index, class name or a unique part of it, a function from logits (B, K) to scores (B,), or None for
            the predicted class.
        layer: a layer's name; several are fused into one map, by the method's own rule; the adapter's own when left out.
        options: of the method, such as {"normalise": True}.
        memory_mb: about how much one forward of a method that asks the model again may need.
        progress: called with (done, total) by methods that ask the model again.
        max_calls: how many pictures the model may be shown for this at most; a method that needs more is refused before it starts.
        told: called with a method's name and the number of pictures it is about to show to the model, before the first.

    Raises:
        SightlineError: every foreseen failure, by its kind: see `sightline.errors`.
    """
    if hasattr(target, "every"):
        raise TargetError(SEVERAL)
    return compare(
        image,
        model,
        methods=[method],
        targets=[target],
        layer=layer,
        options=options,
        fuse=True,
        memory_mb=memory_mb,
        progress=progress,
        max_calls=max_calls,
        told=told,
    )[0]


def compare(
    image: Source | Look,
    model: Model = "bundled",
    *,
    methods: Sequence[str | Function | Method | None] | None = None,
    targets: Sequence[TargetSpec] = (None,),
    layer: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    same_scale: bool = True,
    fuse: bool = False,
    memory_mb: float = MEMORY_MB,
    progress: Progress | None = None,
    max_calls: int | None = None,
    told: Told | None = None,
) -> list[Heatmap]:
    """Several methods, layers and classes on one photograph, from one pass through the model.

    Args:
        image: as in `explain`.
        model: as in `explain`.
        methods: names or functions, None for the default of `explain`; every registered method of one pass when left out, for
            several layers grad-cam alone, for a black box all that can be asked of it.
        targets: several targets for this one photograph, each as in `explain`.
        layer: one or several names; "all" for a sweep through the network.
        options: given to every method that has them.
        same_scale: draw all maps on one scale (those in another unit on their own), so that a weak one looks weak.
        fuse: make one map of several layers, by each method's own rule, instead of showing them side by side.
        memory_mb: as in `explain`.
        progress: as in `explain`.
        max_calls: as in `explain`, for all maps together; a method that would need more is left out, and that is said.
        told: as in `explain`.

    Returns:
        One `Heatmap` for each method, layer and target: all targets of the first method at the first layer, ...
    """
    if not isinstance(targets, list | tuple) or isinstance(methods, str):
        raise ModelError("methods and targets of compare are lists, such as ['grad-cam'] and ['tabby', None]")
    for name in methods or ():
        if name is not None:
            find(name)  # what doesn't exist is said before a model is loaded
    adapter = image.adapter if isinstance(image, Look) else adapter_of(model)
    if methods is None:
        several_layers = layer == "all" or (isinstance(layer, list | tuple) and len(layer) > 1)
        single = several_layers and not fuse and not adapter.black_box
        methods = possible(adapter) if adapter.black_box else [None] if single else one_pass()
    chosen = [find(default(adapter) if name is None else name) for name in methods]
    if not chosen or not targets:
        raise ModelError("nothing to compare: give at least one method and one target")
    check_options(chosen, options or {})
    budget = Budget(checked_calls(max_calls))
    chosen, left_out = _possible(chosen, adapter)
    if layer == "all" and fuse:
        raise LayerError("a sweep over all layers is for compare, side by side; name the layers to fuse")
    if isinstance(image, Look):
        if model not in ("bundled", image.adapter) or layer is not None:
            raise ModelError("what `look` returned has its model and layers; leave model and layer out")
        looked = image
    else:
        names = layers_for(chosen, adapter, layer)
        looked = look(image, adapter, layer=INPUT if names == [INPUT] else layer)
        looked = dataclasses.replace(looked, named=layer is not None)
        adapter = looked.adapter
    seen = looked.captures
    known = dataclasses.replace(adapter, task=task_of(adapter, seen[0].output))
    if None in methods and default(known) != default(adapter):  # what it does was only seen now
        chosen = [find(default(known)) if one.name == default(adapter) else one for one in chosen]
    targets = expanded(targets, adapter, seen[0].output)
    asked = [per_image(target, adapter, seen[0].output, 1, looked.view) for target in targets]
    levels = not looked.named and seen[0].layer in adapter.levels
    captures = [toward_all(chosen, seen, one, levels) for one in asked]
    budget.spend(0 if isinstance(image, Look) else 1)
    found: list[Heatmap] = []
    failed: SightlineError | None = None
    for one in chosen:
        budget.told = None if told is None else partial(told, one.name)
        taken = {name: value for name, value in (options or {}).items() if name in one.options}
        together = Together([target[0] for target in asked]) if one.needs in OUTSIDE and len(asked) > 1 else None
        for group in [None] if levels else layer_groups(one, len(seen), fuse):
            for of_target, target in zip(captures, asked, strict=True):
                (own,) = [group] if group is not None else layer_groups(one, len(of_target), fuse=True)
                here = [shown_to(one, of_target[index]) for index in own]
                terms, before = Terms(taken, memory_mb, progress, budget, together), budget.spent
                try:
                    maps = [map_of(one, adapter, capture, target, terms) for capture in here]
                except (MethodError, MissingExtraError, ModelError) as error:
                    if len(chosen) == 1:
                        raise
                    failed = failed or error
                    where = f" for {target[0].label}" if len(asked) > 1 else ""
                    left_out.append(f"{one.name} is left out{where}: {error}")
                    continue
                if one.needs in WHOLE and looked.named:
                    terms.notes.append(f"{one.name} looks at the whole network, and not at the layer that was named")
                layers = tuple(of_target[index].layer for index in own)
                cost = budget.spent - before
                origin = Origin(adapter, one, target[0], seen[0].input.cpu(), layers, taken, memory_mb, cost)
                found.append(_heatmap(origin, looked, here, maps, terms))
    if failed is not None and not found:
        raise failed
    if left_out:
        found = [dataclasses.replace(one, warnings=(*one.warnings, *dict.fromkeys(left_out))) for one in found]
    return share_scale(_mark_equal(found)) if same_scale else _mark_equal(found)


def look(image: Source, model: Model = "bundled", *, layer: str | Sequence[str] | None = None) -> Look:
    """Runs the model once on a photograph, and keeps what it takes to explain any class of it.

    Args:
        image: path, bytes, PIL image, or array (H, W, 3).
        model: as in `explain`.
        layer: as in `compare`.
    """
    adapter = adapter_of(model)
    if layer == "all" and adapter.black_box:
        raise LayerError(no_layers(adapter))
    photo, meta, given = opened(adapter, image)
    x, view = input_of(adapter, given)
    if adapter.settled is not None:
        adapter = adapter.settled(x)
    names = sweep(adapter.module, x, adapter.folded, logits=adapter.logits) if layer == "all" else layer_names(layer)
    levels = bool(adapter.levels) and layer is None
    seen = run_once(adapter, x, list(adapter.levels) if levels else names, some=levels)
    said = predictions_of(adapter, seen[0], view=view)
    return Look(adapter, photo, meta, view, tuple(seen), said, named=layer is not None)


def concepts(
    image: Source,
    model: Model = "bundled",
    *,
    count: int = 5,
    layer: str | None = None,
    seed: int = 0,
) -> Concepts:
    """Takes what a layer sees in a photograph apart into a few concepts, and says which classes each speaks for.

    Deep feature factorisation of the layer's activations (see `methods.factorise`). A concept's classes are those whose
    logits rise most, against an empty layer, when the layer says that concept alone.

    Args:
        image: as in `explain`.
        model: as in `explain`.
        count: how many concepts.
        layer: as in `explain`, one.
        seed: of the factorisation's start.
    """
    looked = look(image, model, layer=None if layer is None else [layer])
    if looked.adapter.black_box:
        raise LayerError(no_layers(looked.adapter))
    adapter, view, (seen,) = looked.adapter, looked.view, looked.captures
    table(seen.output)
    for stage, free in seen.finite:
        if not free.all():
            raise NonFiniteError(f"NaN or infinity in {stage}", (0,))
    found = factorise(seen.activations, count, seed=seed)
    parts = torch.einsum("khw,kc->kchw", found.maps, found.directions).to(seen.activations)
    ask = probe(adapter, seen, Asked(lambda output: table(output)[:, 0], None, ""))
    logits = table(ask.output_head(torch.cat([torch.zeros_like(seen.activations), parts])))
    rises = (logits[1:] - logits[0]).float()
    evoked = []
    for one in rises:
        best = one.topk(min(3, len(one)))
        evoked.append(tuple(Evoked(int(k), adapter.label(int(k)), float(one[k])) for k in best.indices if one[k] > 0))
    said = [*adapter.notes, *_about_sight(adapter, view, seen.layer)]
    if bool((seen.activations < 0).any()):
        said.append(f"layer {seen.layer} also has negative activations, which count as 0 here")
    return Concepts(
        maps=found.maps.float().cpu().numpy(),
        directions=found.directions.float().cpu().numpy(),
        evoked=tuple(evoked),
        missing=found.missing,
        photo=looked.photo,
        view=view,
        image=looked.meta["name"],
        layer=seen.layer,
        predictions=looked.predictions,
        model=adapter.name,
        provenance=adapter.provenance,
        warnings=(*said, *looked.meta["notes"]),
    )


def _possible(chosen: Sequence[Method], adapter: Adapter) -> tuple[list[Method], list[str]]:
    """Those that can be asked of this model, and a sentence about the others; an error where there is none."""
    found = [one for one in chosen if not adapter.black_box or one.needs in OUTSIDE]
    if not found:
        check_possible(chosen[0], adapter)
    others = ", ".join(one.name for one in chosen if one not in found)
    return found, [f"left out, because {adapter.name} is a black box without layers: {others}"] if others else []


def predictions_of(
    adapter: Adapter, seen: Capture, count: int = 10, view: View | None = None
) -> tuple[Prediction, ...]:
    """What the model says of one image, most probable first; nothing where it is no classifier.

    Of a detector its boxes, of a segmentation its classes with their share of the picture, of an answer its words in order.
    """
    task = task_of(adapter, seen.output)
    if task == "detection":
        return _boxes(adapter, seen, count, view)
    if task == "segmentation":
        _check_names(adapter, pixel_logits(seen.output).shape[1])
        shares = seen_classes(seen.output)[:count]
        return tuple(Prediction(at, adapter.label(at), share, of_pixels=True) for at, share in shares)
    if task in ("regression", "embedding"):
        return ()
    try:
        chances = probabilities(seen.output, task)[0]
    except SightlineError:
        return ()  # no classifier; its targets are functions
    if task == "words":
        return tuple(Prediction(at, adapter.label(at), float(chance)) for at, chance in enumerate(chances))
    _check_names(adapter, len(chances))
    # By the output itself, as the default target is chosen: probabilities round, and then many are equal.
    best = table(seen.output)[0].detach().argsort(descending=True, stable=True)[:count].tolist()
    return tuple(Prediction(index, adapter.label(index), float(chances[index])) for index in best)


def _check_names(adapter: Adapter, classes: int) -> None:
    if adapter.labels is not None and len(adapter.labels) != classes:
        one = "; a model with one output has one name: what a high score means" if classes == 1 else ""
        raise ModelError(f"{adapter.name} has {classes} classes, and {len(adapter.labels)} labels were given{one}")


def _boxes(adapter: Adapter, seen: Capture, count: int, view: View | None) -> tuple[Prediction, ...]:
    found = checked_found(adapter, seen.output, 0)
    said = []
    for at in in_order(found)[:count]:
        corners = found["boxes"][at].tolist()
        if view is not None:
            corners = [*view.to_photo(*corners[:2]), *view.to_photo(*corners[2:])]
        index = int(found["labels"][at])
        said.append(Prediction(index, adapter.label(index), float(found["scores"][at].detach()), tuple(corners)))
    return tuple(said)


def place_of(method: Method, where: Sequence[str], captures: Sequence[Capture]) -> str:
    """The layer or layers of which a map is said to be; `where` are those that the method chose itself."""
    if not where and method.needs in WHOLE:
        return INPUT if method.needs in OF_INPUT else ALL_LAYERS
    return " + ".join(where or [one.layer for one in captures])


def _heatmap(
    origin: Origin,
    looked: Look,
    captures: Sequence[Capture],
    maps: Sequence[Tensor],
    terms: Terms,
) -> Heatmap:
    """One image's map, of one layer or fused, with everything that a person must know about it."""
    adapter, view, captured = looked.adapter, looked.view, captures[-1]
    notes, where = terms.notes, terms.where
    method, asked = origin.method, origin.target
    if adapter.covers is not None and method.needs not in OF_INPUT:
        view = dataclasses.replace(view, input=adapter.covers(captured.input))
    raw = fused(method, captures, maps)[0].detach().float().cpu()
    signed = maps[0][0].detach().float().cpu() if len(maps) == 1 else raw
    score = float(captured.scores[0]) if captured.scores is not None else None
    chance = asked.chance
    if asked.index is not None:
        chance = float(probabilities(captured.output, task_of(adapter, captured.output))[0, asked.index])
    said, emptiness = cautions(method, adapter, view, asked, looked.predictions, captures, maps, notes)
    whole = method.needs in WHOLE
    chosen = len(captures) == 1 and captured.layer == adapter.layer
    of_input = method.needs in OF_INPUT
    share = clipped(method, raw)
    return Heatmap(
        raw=raw.numpy(),
        signed_raw=signed.numpy(),
        # A map that counts as empty isn't stretched until it looks full.
        scale=share * float(raw.abs().max()) * max(1.0, emptiness),
        photo=looked.photo,
        view=view,
        image=looked.meta["name"],
        method=method.name,
        signed=method.signed,
        unit=method.unit if len(maps) == 1 else "own",
        label=asked.label,
        index=asked.index,
        score=score,
        probability=chance,
        layer=place_of(method, where, captures),
        layer_reason="asked for"
        if where
        else f"{method.name} looks at the picture's pixels"
        if of_input
        else f"{method.name} looks at the whole network"
        if whole
        else adapter.layer_reason
        if chosen
        else "given",
        predictions=looked.predictions,
        model=adapter.name,
        provenance=adapter.provenance,
        warnings=(*adapter.notes, *said, *looked.meta["notes"]),
        mark=asked.mark,
        details=terms.details,
        options={**method.options, **terms.options},
        origin=origin,
    )


def cautions(
    method: Method,
    adapter: Adapter,
    view: View,
    asked: Asked,
    predictions: tuple[Prediction, ...],
    captures: Sequence[Capture],
    maps: Sequence[Tensor],
    notes: Sequence[str] = (),
) -> tuple[list[str], float]:
    """What a person must know before believing one image's map.

    Args:
        method: what made it.
        adapter: the model.
        view: how the photograph became the input.
        asked: what the map explains.
        predictions: what the model says.
        captures: of the image, of each layer, with scores where the method has some.
        maps: (1, h, w) at each layer, before rectification.
        notes: what the method had to say itself.

    Returns:
        Sentences; and the value up to which the map counts as empty, as a share of its maximum.
    """
    emptiness, about = [], []
    for one, found in zip(captures, maps, strict=True):
        score = float(one.scores[0]) if one.scores is not None else 0.0
        own = rectified(method, found)[0].detach().float()
        highest = float(own.abs().max())
        emptiness.append(floor(method, own, score) / highest if highest > 0 else 1.0)
        is_probability = getattr(asked.score, "is_probability", False)
        about.append(notices(method, one, own, found[0].detach().float(), is_probability=is_probability))
    common = [notice for notice in about[0] if all(notice in others for others in about)]
    said = [*dict.fromkeys(notes), *common]
    for one, special in zip(captures, about, strict=True):
        said += [f"at layer {one.layer}: {notice}" for notice in special if notice not in common]
    task = task_of(adapter, captures[-1].output)
    if task == "detection" and asked.chance is not None and asked.chance < 0.5:
        said.append(f"the model is not sure of this box: its score is {percent(asked.chance)}")
    if asked.doubt:
        said.append(asked.doubt)
    if task in ("", "classes"):
        said += _about_prediction(asked, predictions, captures[-1], gradients=method.needs != "scores")
    said += _about_sight(adapter, view, "" if method.needs in WHOLE else captures[-1].layer)
    return said, min(emptiness)


def _about_sight(adapter: Adapter, view: View, layer: str) -> list[str]:
    """What of the picture or of the network a map can't show."""
    said = []
    if layer == adapter.layer and adapter.layer_reason.endswith(NOT_ALL):
        said.append(f"layer {layer} was chosen, but {NOT_ALL}: evidence that goes past it is missing here")
    if view.seen_share() < 0.25:
        said.append(
            f"the model saw only {percent(view.seen_share())} of the photograph; the rest was cut off before it"
        )
    return said


def _about_prediction(
    asked: Asked, predictions: tuple[Prediction, ...], captured: Capture, gradients: bool
) -> list[str]:
    said = []
    if predictions and asked.index is not None and len(predictions) > 1:
        first = predictions[0]
        if asked.index != first.index:
            said.append(f"{asked.label!r} is not what the model says; it says {first.label!r}")
        elif first.probability < 1.001 * predictions[-1].probability:
            said.append("the model hardly tells its classes apart: the first ones are as good as equal")
        elif first.probability < 0.5:
            said.append(f"the model is not sure: its best guess has only {percent(first.probability)}")
    if len(predictions) == 1 and predictions[0].probability < 0.5:
        said.append(f"the model says no: {predictions[0].label!r} has {percent(predictions[0].probability)}")
    if len(predictions) > 1 and is_normalised(table(captured.output)):
        which = "whose gradients vanish" if gradients else "which hardly fall"
        said.append(f"the model returns probabilities, {which} when it is sure; take its softmax off")
    elif len(predictions) > 1 and are_independent(table(captured.output)):
        said.append(
            "the model's outputs all lie between 0 and 1 and are read as a probability each, which need not sum to 1"
        )
    return said


def _mark_equal(found: list[Heatmap]) -> list[Heatmap]:
    """Says so where methods give one and the same map, instead of showing it twice without a word."""
    marked = []
    for one in found:
        twins = [
            other.method
            for other in found
            if other is not one
            and (other.label, other.index, other.layer) == (one.label, one.index, one.layer)
            and other.raw.shape == one.raw.shape
            and other.method != one.method
            and same_map(torch.from_numpy(one.signed_raw), torch.from_numpy(other.signed_raw))
        ]
        if twins:
            names = sorted({one.method, *twins})
            note = f"{', '.join(names[:-1])} and {names[-1]} are the same map here, up to what is cut below 0"
            one = dataclasses.replace(one, warnings=(*one.warnings, note))
        marked.append(one)
    return marked
