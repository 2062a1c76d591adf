"""A batch of pictures becomes rows: what the model says of each, its maps, and what limits them; or why there are none.

What comes of a picture doesn't depend on whether its neighbours could be read: the place of one that fails is filled with
a copy of a good one, so that the model computes on as many pictures as were planned, and rounds alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sightline.attribution import Origin, Terms, fused, layers_for, map_of, toward_all
from sightline.batch.decode import Failure, Picture
from sightline.engine.asked import Asked, TargetSpec
from sightline.engine.attention import WANTED
from sightline.engine.capture import Capture, of_image
from sightline.engine.capture import capture as run_once
from sightline.engine.probe import MEMORY_MB
from sightline.engine.targets import probabilities, resolve, table
from sightline.errors import NonFiniteError, SightlineError, TargetError
from sightline.flow import cautions, place_of, predictions_of
from sightline.heatmap import Prediction
from sightline.methods.registry import ONE_PASS, PIXELS, Method
from sightline.metrics.case import asking, case, explainer
from sightline.metrics.measure import Settings, run_metrics
from sightline.metrics.registry import Metric
from sightline.models.adapter import Adapter, like_weights
from sightline.models.view import View

PREDICTED, LABEL, TOP3 = "predicted", "label", "top3"
LARGEST = 64  # cells along each side of a stored map
_TOP = 5
_BROKEN_DEVICE = getattr(torch, "AcceleratorError", ())  # after which nothing works on it
_GROWS_AFTER = 16  # batches that fit, before a larger one is tried again


@dataclass(frozen=True, eq=False)
class Ask:
    """What is asked of every picture.

    Attributes:
        adapter: the model.
        methods: with their `options`.
        targets: "predicted", "label" (the picture's own), "top3", or one class for all.
        layer: as in `explain`, one; None is the model's own.
        metrics: measured of every map, with their `settings`.
        memory_mb: about how much one forward of a method that asks again may need.
    """

    adapter: Adapter
    methods: tuple[Method, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    targets: TargetSpec = PREDICTED
    layer: str | None = None
    metrics: tuple[Metric, ...] = ()
    settings: Settings = field(default_factory=dict)
    memory_mb: float = MEMORY_MB


@dataclass(eq=False)
class Fitting:
    """How many pictures go into one forward: as many as planned, half of that when memory runs out, and more again later.

    Attributes:
        planned: how many there should be.
        size: how many are tried now.
        since: batches that went well at this size.
        patience: after how many of them more are tried again; twice as many each time that memory ran out.
    """

    planned: int
    size: int = 0
    since: int = 0
    patience: int = _GROWS_AFTER

    def __post_init__(self) -> None:
        self.size = self.size or self.planned

    def too_large(self) -> bool:
        """Memory ran out; whether a smaller batch can be tried."""
        self.since, self.patience = 0, self.patience * 2
        if self.size == 1:
            return False
        self.size = (self.size + 1) // 2
        return True

    def went_well(self) -> None:
        """A batch of this size fitted."""
        self.since += 1
        if self.size < self.planned and self.since >= self.patience:
            self.size, self.since = min(self.planned, self.size * 2), 0


def rows_of(
    pictures: Sequence[Picture | Failure],
    ids: Sequence[str],
    labels: Sequence[str | None],
    ask: Ask,
    fitting: Fitting,
) -> list[dict[str, Any]]:
    """One row a picture, in their order; see `shards.schema`.

    Args:
        pictures: what was read.
        ids: of each.
        labels: of each, as the data set says.
        ask: what is asked of them.
        fitting: how many fit into one forward.
    """
    found: list[dict[str, Any] | Failure] = [
        one if isinstance(one, Failure) else Failure("model", "Unknown", "") for one in pictures
    ]
    for places in _alike(pictures):
        answers = _within(
            [pictures[place] for place in places],
            [labels[place] for place in places],
            ask,
            fitting,
        )
        for place, answer in zip(places, answers, strict=True):
            found[place] = answer
    rows = []
    for picture, answer, name, label in zip(pictures, found, ids, labels, strict=True):
        row: dict[str, Any] = {"id": name, "label": label}
        if isinstance(picture, Picture):
            width, height = picture.view.photo
            row |= {
                "width": width,
                "height": height,
                "view": _view(picture.view),
                "notices": list(picture.notes),
                "thumbnail": picture.thumbnail,
            }
        if isinstance(answer, Failure):
            answer = {"stage": answer.stage, "error": answer.error, "message": answer.message}
        rows.append({**row, **answer})
    return rows


def _view(view: View) -> dict[str, float]:
    """How the photograph became the input, as it is kept; see `models.view.View`."""
    pairs = {"resized": ("width", "height"), "offset": ("x", "y"), "input": ("width", "height")}
    return {
        f"{name}_{part}": value
        for name, parts in pairs.items()
        for part, value in zip(parts, getattr(view, name), strict=True)
    }


def _alike(pictures: Sequence[Picture | Failure]) -> list[list[int]]:
    """The places of the batch, those of one input's size together; with the first size go the pictures that could not be read."""
    sizes: dict[Any, list[int]] = {}
    broken = []
    for place, one in enumerate(pictures):
        if isinstance(one, Failure):
            broken.append(place)
        else:
            sizes.setdefault(one.x.shape, []).append(place)
    groups = list(sizes.values())
    if groups:
        groups[0] = sorted([*groups[0], *broken])
    return groups


def _within(
    pictures: Sequence[Picture | Failure], labels: Sequence[str | None], ask: Ask, fitting: Fitting
) -> list[dict[str, Any] | Failure]:
    """In parts that fit into memory."""
    found: list[dict[str, Any] | Failure] = []
    while len(found) < len(pictures):
        part = slice(len(found), len(found) + fitting.size)
        try:
            found += _answered(pictures[part], labels[part], ask)
        except (MemoryError, RuntimeError, SightlineError) as error:
            if not _out_of_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if not fitting.too_large():
                found.append(Failure("model", "OutOfMemory", "not enough memory for this picture alone"))
        else:
            fitting.went_well()
    return found


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether this, or what it came from, is that memory ran out; torch says so of the CPU's in words alone."""
    if error is None:
        return False
    by_words = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return by_words or isinstance(error, torch.OutOfMemoryError | MemoryError) or _out_of_memory(error.__cause__)


def _answered(
    pictures: Sequence[Picture | Failure], labels: Sequence[str | None], ask: Ask
) -> list[dict[str, Any] | Failure]:
    """The answers to pictures of one input's size; where a picture makes the model fail, without it once more."""
    found: list[Any] = [one if isinstance(one, Failure) else None for one in pictures]
    while True:
        good = [place for place, one in enumerate(found) if one is None]
        if not good:
            return found
        # What fails is replaced by one that doesn't, at its place.
        places = [place if one is None else good[0] for place, one in enumerate(found)]
        chosen: list[Picture] = [pictures[place] for place in places]  # type: ignore[misc]
        try:
            answers = _batch(chosen, [labels[place] for place in places], ask)
        except Exception as error:  # also what a function of the user's own raises
            if _out_of_memory(error) or isinstance(error, _BROKEN_DEVICE):
                raise
            if len(pictures) == 1:
                return [Failure("model", type(error).__name__, str(error))]
            named = {places[image] for image in error.images} if isinstance(error, NonFiniteError) else ()
            # Each of them alone says why, without its neighbours, or that it was not the one.
            alone = {place: _answered([pictures[place]], [labels[place]], ask)[0] for place in named or good}
            failed = {place: one for place, one in alone.items() if isinstance(one, Failure)}
            for place, one in (failed or alone).items():
                found[place] = one
        else:
            return [answers[place] if one is None else one for place, one in enumerate(found)]


def _batch(pictures: Sequence[Picture], labels: Sequence[str | None], ask: Ask) -> list[dict[str, Any] | Failure]:
    adapter = ask.adapter
    x = like_weights(torch.stack([one.x for one in pictures]), adapter.module)
    (seen,) = run_once(adapter, x, layers_for(ask.methods, adapter, ask.layer))
    alone = [of_image(seen, image) if len(pictures) > 1 else seen for image in range(len(pictures))]
    said = [predictions_of(adapter, one, _TOP) for one in alone]
    wanted: list[list[Asked] | Failure] = []
    for image, label in enumerate(labels):
        try:
            wanted.append(_wanted(ask.targets, adapter, seen, image, label))
        except TargetError as error:
            wanted.append(Failure("target", type(error).__name__, str(error)))
    found: list[dict[str, Any]] = [{"predictions": [one.record() for one in each], "maps": []} for each in said]
    for rank in range(max((len(one) for one in wanted if isinstance(one, list)), default=0)):
        asked = [one[min(rank, len(one) - 1)] if isinstance(one, list) else _any(seen, adapter) for one in wanted]
        for method in ask.methods:
            for image, entry in enumerate(_maps(method, ask, seen, asked, pictures, said)):
                target = wanted[image]
                if isinstance(target, list) and rank < len(target):
                    found[image]["maps"].append(entry)
    return [target if isinstance(target, Failure) else row for target, row in zip(wanted, found, strict=True)]


def _wanted(targets: TargetSpec, adapter: Adapter, seen: Capture, image: int, label: str | None) -> list[Asked]:
    """What is explained of one picture."""
    if targets == PREDICTED:
        return [resolve(None, adapter, seen.output, image)]
    if targets == LABEL:
        if label is None:
            raise TargetError("the data set has no label for this picture")
        return [resolve(label, adapter, seen.output, image)]
    if targets == TOP3:
        best = table(seen.output)[image].detach().argsort(descending=True, stable=True)[:3].tolist()
        return [resolve(index, adapter, seen.output, image) for index in best]
    return [resolve(targets, adapter, seen.output, image)]


def _any(seen: Capture, adapter: Adapter) -> Asked:
    """A target for the place of a picture whose own there is none."""
    return resolve(0, adapter, seen.output, 0)


def _maps(
    method: Method,
    ask: Ask,
    seen: Capture,
    asked: Sequence[Asked],
    pictures: Sequence[Picture],
    said: Sequence[tuple[Prediction, ...]],
) -> list[dict[str, Any]]:
    """An entry of `maps` for each picture."""
    (captured,) = toward_all([method], [seen], asked)
    options = {name: value for name, value in ask.options.get(method.name, {}).items() if name in method.options}
    if method.needs in (*ONE_PASS, *PIXELS, *WANTED):
        terms = Terms(options, ask.memory_mb)
        maps = map_of(method, ask.adapter, captured, asked, terms)
        each = [terms] * len(asked)
    else:  # what these have to say is of one picture
        each = [Terms(options, ask.memory_mb) for _ in asked]
        maps = torch.cat([_alone(method, ask, captured, image, asked, each) for image in range(len(asked))])
    found = []
    for image, target in enumerate(asked):
        alone = _on_cpu(of_image(captured, image))
        where, notes = each[image].where, each[image].notes
        entry = _entry(
            method,
            ask.adapter,
            alone,
            target,
            maps[image : image + 1].cpu(),
            pictures[image].view,
            said[image],
            notes,
        )
        entry["layer"] = place_of(method, where, [captured])
        if ask.metrics:
            with _of(image):
                entry["metrics"], undefined = _measured(method, ask, captured, image, target, maps, options)
            entry["notices"] += undefined
        found.append(entry)
    return found


def _alone(
    method: Method, ask: Ask, captured: Capture, image: int, asked: Sequence[Asked], terms: Sequence[Terms]
) -> Tensor:
    with _of(image):
        return map_of(method, ask.adapter, of_image(captured, image), [asked[image]], terms[image])


@contextmanager
def _of(image: int) -> Iterator[None]:
    """What goes wrong here concerns one image of the batch."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(str(error), (image,)) from error


def _on_cpu(one: Capture) -> Capture:
    moved: dict[str, Any] = {
        name: value.cpu()
        for name in ("input", "activations", "gradients", "scores")
        if isinstance(value := getattr(one, name), Tensor)
    }
    return dataclasses.replace(one, **moved, latest={})


def _entry(
    method: Method,
    adapter: Adapter,
    captured: Capture,
    target: Asked,
    found: Tensor,
    view: View,
    said: tuple[Prediction, ...],
    notes: Sequence[str],
) -> dict[str, Any]:
    raw = fused(method, [captured], [found])[0].detach().float()
    notices, _ = cautions(method, adapter, view, target, said, [captured], [found], notes)
    peak = view.peak(raw.numpy())
    evidence = float(raw.max())
    small = raw
    if max(raw.shape) > LARGEST:
        shape = [min(side, LARGEST) for side in raw.shape]
        small = torch.nn.functional.adaptive_avg_pool2d(raw[None], shape)[0]  # type: ignore[arg-type]
        notices.append(f"stored as means, {shape[0]}x{shape[1]} of {raw.shape[0]}x{raw.shape[1]}")
    scale = float(small.abs().max())
    heat = (small / scale if scale > 0 else small).half()
    chance = None if target.index is None else float(probabilities(captured.output, adapter.task)[0, target.index])
    return {
        "method": method.name,
        "target": target.index,
        "label": target.label,
        "probability": chance,
        "score": None if captured.scores is None else float(captured.scores[0]),
        "height": heat.shape[0],
        "width": heat.shape[1],
        "heat": heat.flatten().numpy(),
        "scale": scale,
        "evidence": evidence,
        "peak_x": peak[0],
        "peak_y": peak[1],
        "notices": notices,
    }


def _measured(
    method: Method,
    ask: Ask,
    captured: Capture,
    image: int,
    target: Asked,
    maps: Tensor,
    options: Mapping[str, Any],
) -> tuple[dict[str, float | None], list[str]]:
    """The metrics of one map, and why some have no value."""
    (alone,) = toward_all(
        [method], run_once(ask.adapter, captured.input[image : image + 1], [captured.layer]), [target]
    )
    about = asking(ask.adapter, alone, target, memory_mb=ask.memory_mb)
    origin = Origin(ask.adapter, method, target, alone.input, (alone.layer,), options, ask.memory_mb)
    signed = maps[image : image + 1]
    raw = signed[0].detach().double().cpu().numpy()
    shown = fused(method, [alone], [signed])[0].detach().double().cpu().numpy()
    one = case(shown, about, raw=raw, explain=explainer(about, origin))
    measured = {name: each.record() for name, each in run_metrics(ask.metrics, one, ask.settings).items()}
    undefined = [
        f"{name} has no value: {each['undefined']}" for name, each in measured.items() if each.get("undefined")
    ]
    return {name: each["value"] for name, each in measured.items()}, undefined
