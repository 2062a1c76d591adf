"""What the page asks, answered by plain functions that know nothing of the page."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from sightline.bundle import png, unicode_text
from sightline.engine.asked import Corners, TargetSpec
from sightline.engine.boxes import instance
from sightline.engine.probe import Progress
from sightline.engine.regions import pixel_logits
from sightline.engine.spoken import parse_target
from sightline.engine.targets import resolve, table
from sightline.engine.tasks import task_of
from sightline.errors import ImageError, ModelError, SightlineError, TargetError
from sightline.flow import Look, compare, look
from sightline.heatmap import Heatmap, cautions, save, share_scale, viewer
from sightline.methods.registry import ONE_PASS, default, find
from sightline.models.adapter import Adapter, Task
from sightline.models.layers import candidates
from sightline.render.panel import percent
from sightline.trust import TrustCard

_TOLD = 32  # lists of prompts that are kept
MOST_PROMPTS, LONGEST_PROMPTS = 100, 4000  # and characters of all together, that a visitor may have read
LARGEST = 2400  # pixels of the longer side of what is shown and saved
MODES = ("one", "methods", "layers", "models")


@dataclass(frozen=True)
class Question:
    """One thing that a person asks.

    Attributes:
        picture: the uploaded file.
        mode: "one" picture, one class next to another; several "methods"; a sweep of "layers"; a second of the "models".
        model: by its offered name; `second` the other one.
        target: the class, as `class_names` shows it; None is the prediction.
        beside: another class to show next to it.
        method: how, empty for the model's default; `methods` several.
        layer: where; None is the model's own.
        prompts: texts to tell pictures apart by, for models that read some; empty for those that the server was started with.
    """

    picture: str
    mode: str = "one"
    model: str = ""
    second: str = ""
    target: str | None = None
    beside: str | None = None
    method: str = ""
    methods: tuple[str, ...] = ()
    layer: str | None = None
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """What the page shows: the maps, in which words, and what can be clicked in them (boxes, places, words)."""

    maps: tuple[Heatmap, ...]
    target: str
    sentence: str
    notices: tuple[str, ...]
    choices: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Offer:
    """The models of a server, and what they saw and answered lately.

    Attributes:
        models: by name; the first is the default.
        arguments: what `load_model` was given for them beside their names, by name.
        kept_mb: how much may be kept of what was seen; the oldest goes first.
        lock: held while a model runs: visitors take turns.
        layers: names of layers, by model and input size.
        closing: once set, questions that take long end.
    """

    models: Mapping[str, Adapter]
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kept_mb: float = 512
    lock: threading.RLock = field(default_factory=threading.RLock)
    closing: threading.Event = field(default_factory=threading.Event)
    layers: dict[Any, list[str]] = field(default_factory=dict)
    seen: LRUCache[Any, Look] = field(init=False)
    answers: LRUCache[Any, Answer] = field(init=False)
    told: LRUCache[Any, Adapter] = field(init=False)

    def __post_init__(self) -> None:
        limit = self.kept_mb * 1e6
        object.__setattr__(self, "seen", LRUCache(limit * 0.75, getsizeof=_size_of_look))
        object.__setattr__(self, "answers", LRUCache(limit * 0.25, getsizeof=_size_of_answer))
        object.__setattr__(self, "told", LRUCache(_TOLD))

    def adapter(self, name: str, prompts: tuple[str, ...] = ()) -> Adapter:
        """The model of this name, with other prompts where it reads some; the default one for no name."""
        if name and name not in self.models:
            raise ModelError(f"there is no model {name!r} here; this server offers {', '.join(self.models)}")
        found = self.models[name] if name else next(iter(self.models.values()))
        if not prompts or found.prompted is None or prompts == found.labels:
            return found
        if len(prompts) > MOST_PROMPTS or sum(map(len, prompts)) > LONGEST_PROMPTS:
            raise ModelError(
                f"these are {len(prompts):,} prompts of {sum(map(len, prompts)):,} characters together; expected at most "
                f"{MOST_PROMPTS} of {LONGEST_PROMPTS:,}"
            )
        key = (found.name, prompts)
        with self.lock:
            if key not in self.told:
                self.told[key] = found.prompted(prompts)
            return self.told[key]


def ask(offer: Offer, question: Question, progress: Progress | None = None) -> Answer:
    """Answers, from what is kept where it can; methods that ask the model again tell how far they are.

    Raises:
        SightlineError: every foreseen failure, with a sentence for the person who asks.
    """
    if question.mode not in MODES:
        raise SightlineError(f"mode {question.mode!r}; expected one of {', '.join(MODES)}")

    def told(done: int, of: int) -> None:
        if offer.closing.is_set():
            raise SightlineError("the server is being stopped")
        if progress is not None:
            progress(done, of)

    key = (_digest(question.picture), *(value for name, value in vars(question).items() if name != "picture"))
    with offer.lock:
        known = offer.answers.get(key)
        if known is None:
            try:
                known = _ANSWERS[question.mode](offer, question, told)
            except MemoryError as error:
                raise ImageError("there is not enough memory for this picture; choose a smaller one") from error
            _keep(offer.answers, key, known)
        return known


def checked(offer: Offer, question: Question, progress: Progress | None = None) -> TrustCard:
    """How far to believe the first map of an answer.

    Raises:
        SightlineError: as for `ask`.
    """
    first = ask(offer, question, progress).maps[0]

    def told(done: int, of: int) -> None:
        if offer.closing.is_set():
            raise SightlineError("the server is being stopped")
        if progress is not None:
            progress(done, of)

    with offer.lock:
        return first.trust(progress=told)


def look_at(offer: Offer, model: str, picture: str, layer: str | None = None, prompts: tuple[str, ...] = ()) -> Look:
    """What a model says to a picture, from what is kept where it can."""
    adapter = offer.adapter(model, prompts)
    key = (model, _digest(picture), layer, prompts if adapter.prompted is not None else ())
    with offer.lock:
        known = offer.seen.get(key)
        if known is None:
            try:
                known = _shown(look(picture, adapter, layer=layer))
            except ImageError as error:
                # Where it lies on the server is nobody's business.
                raise ImageError(str(error).replace(picture, Path(picture).name)) from error
            _keep(offer.seen, key, known)
        return known


def _shown(looked: Look) -> Look:
    """With the photograph no larger than a page can use; the model has seen all of it."""
    if max(looked.photo.size) <= LARGEST:
        return looked
    photo = looked.photo.copy()
    photo.thumbnail((LARGEST, LARGEST))
    note = f"the photograph of {looked.photo.width} x {looked.photo.height} is shown and saved at {photo.width} x {photo.height}"
    meta: Any = {**looked.meta, "notes": (*looked.meta["notes"], note)}
    ratios = [small / whole for small, whole in zip(photo.size, looked.photo.size, strict=True)] * 2
    said = tuple(
        one if one.box is None else dataclasses.replace(one, box=_times(one.box, ratios)) for one in looked.predictions
    )
    view = dataclasses.replace(looked.view, photo=photo.size)
    return dataclasses.replace(looked, photo=photo, meta=meta, view=view, predictions=said)


def _times(box: Sequence[float], ratios: Sequence[float]) -> Corners:
    left, top, right, bottom = (one * ratio for one, ratio in zip(box, ratios, strict=True))
    return left, top, right, bottom


def class_names(looked: Look) -> list[str]:
    """A name for each thing that can be asked for: classes, boxes in their order, words; no two alike."""
    task = _task(looked)
    if task == "detection":
        return [f"{number}: {one.label}" for number, one in enumerate(looked.predictions, 1)]
    if task == "segmentation":
        return _unlike([looked.adapter.label(at) for at in range(pixel_logits(looked.captures[0].output).shape[1])])
    if task in ("regression", "embedding"):
        return []
    try:
        count = table(looked.captures[0].output).shape[1]
    except SightlineError:
        return []
    if task == "words":
        return [f"{number}: {looked.adapter.label(number - 1)}" for number in range(1, count + 1)]
    return _unlike([looked.adapter.label(index) for index in range(count)])


def _unlike(names: Sequence[str]) -> list[str]:
    twice = {name for name, times in Counter(names).items() if times > 1}
    return [f"{name} ({index})" if name in twice else name for index, name in enumerate(names)]


def layer_names(offer: Offer, model: str, looked: Look) -> list[str]:
    """Layers that a map can be made at, the input's first; the same for all pictures of one input size."""
    adapter, x = looked.adapter, looked.captures[0].input
    if adapter.black_box:
        return []
    key = (model, tuple(x.shape))
    with offer.lock:
        if key not in offer.layers:
            found = candidates(adapter.module, x, adapter.logits, mark=False)
            offer.layers[key] = [one.name for one in found if one.name not in adapter.folded]
        return offer.layers[key]


def predictions(looked: Look, most: int = 10) -> dict[str, float]:
    """What the model says, most probable first."""
    names = class_names(looked)
    if _task(looked) in ("detection", "words"):
        return {name: one.probability for name, one in zip(names, looked.predictions[:most], strict=False)}
    return {names[one.index]: one.probability for one in looked.predictions[:most]}


def as_data(answer: Answer) -> dict[str, Any]:
    """What the page's script gets."""
    groups = _by_model(answer)
    several = len(groups) > 1
    parts = [viewer(maps) for maps in groups.values()]
    for part, model in zip(parts, groups, strict=True):
        for pane in part["panes"] if several else []:
            pane["note"] = f"{model}: {pane['note']}"
            pane["group"] = f"{model} {pane['group']}"
    data = {**parts[0], "panes": [pane for part in parts for pane in part["panes"]], **answer.choices}
    return {"viewer": data, "sentence": answer.sentence, "notices": list(answer.notices), "problem": ""}


def _by_model(answer: Answer) -> dict[str, list[Heatmap]]:
    """The maps of each model, in their order."""
    groups: dict[str, list[Heatmap]] = {}
    for one in answer.maps:
        groups.setdefault(one.model, []).append(one)
    return groups


def problem(text: str) -> dict[str, Any]:
    """What the page's script gets when there is no answer."""
    return {"viewer": None, "sentence": "", "notices": [], "problem": text}


def as_zip(answer: Answer) -> bytes:
    """Overlays, panel, raw maps and manifest; a folder for each model where there are two."""
    groups = _by_model(answer)
    packed = io.BytesIO()
    with (
        tempfile.TemporaryDirectory(prefix="sightline-") as place,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive,
    ):
        for number, maps in enumerate(groups.values(), 1):
            name = "sightline" if len(groups) == 1 else f"sightline-model-{number}"
            folder = save(maps, Path(place) / name)
            for file in sorted(folder.iterdir()):
                archive.write(file, f"{name}/{file.name}")
    return packed.getvalue()


def as_python(offer: Offer, question: Question, answer: Answer) -> str:
    """The lines that make the same maps."""
    asked = dict(zip(dict.fromkeys(one.label for one in answer.maps), (question.target, question.beside), strict=False))
    photo = Path(answer.maps[0].image).name
    size = answer.maps[0].view.photo
    if any(
        one.mark is not None and one.mark.point is not None for one in answer.maps
    ):  # which may be shown smaller than it is
        size = look_at(offer, question.model, question.picture, question.layer, question.prompts).meta["size"]
    lines = ["import sightline", ""]
    layer = "all" if question.mode == "layers" else question.layer
    groups = _by_model(answer)
    for number, (model, maps) in enumerate(groups.items(), 1):
        targets = ", ".join(
            {one.label: _in_python(one, offer.models.get(model), asked.get(one.label), size) for one in maps}.values()
        )
        arguments = dict(offer.arguments.get(model, {})) | (
            {"prompts": list(question.prompts)} if question.prompts else {}
        )
        given = [f"{name}={value!r}" for name, value in arguments.items()]
        # On one line: what would begin a new one would be run by whoever copies it.
        said = " ".join(unicode_text(", ".join(dict.fromkeys(one.label for one in maps))).split())
        lines += [
            f"model = sightline.load_model({', '.join([repr(model), *given])})",
            "maps = sightline.compare(",
            f"    {photo!r}, model,",
            f"    methods={list(dict.fromkeys(one.method for one in maps))!r},",
            f"    targets=[{targets}],  # {said}",
            *([f"    layer={layer!r},"] if layer else []),
            ")",
            f'sightline.save(maps, "sightline-out/{Path(photo).stem}{"" if len(groups) == 1 else f"-{number}"}")',
            "",
        ]
    return "\n".join(lines)


def _in_python(one: Heatmap, adapter: Adapter | None, asked: str | None, size: tuple[int, int]) -> str:
    """The target of a map, as Python has it, of a photograph of this size."""
    if one.index is not None and (adapter is None or adapter.label(one.index) == one.label):
        return repr(one.index)
    mark = one.mark
    if mark is not None and mark.point is not None:
        name = one.label.rpartition(" at ")[0]
        x, y = (round(at * own / shown, 2) for at, own, shown in zip(mark.point, size, one.view.photo, strict=True))
        return f"sightline.segment({name!r}, point=({x:g}, {y:g}))"
    number, colon, _ = one.label.partition(": ")
    if mark is not None and mark.box is not None and colon and number.isdecimal():
        return f"sightline.instance({number})"
    return repr(asked) if asked is None or asked == one.label else f"sightline.parse_target({asked!r})"


def overlay_address(heatmap: Heatmap) -> str:
    """The map on the photograph, as a PNG in an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png(heatmap.overlay())).decode("ascii")


def _one(offer: Offer, question: Question, progress: Progress) -> Answer:
    looked = look_at(offer, question.model, question.picture, question.layer, question.prompts)
    targets: list[TargetSpec] = [_target(looked, question.target)]
    if question.beside:
        targets.append(_target(looked, question.beside))
    maps = compare(looked, methods=[question.method or None], targets=targets, progress=progress)
    first = maps[0]
    if not find(first.method).class_specific:
        sentence = f"Bright places are those that {first.where()} responds to most, whichever class is asked for."
    else:
        bright = "Red places raised it, blue ones lowered it" if first.signed else "Bright places raised it"
        second = f" next to that for {maps[1].label!r}, on one scale" if len(maps) > 1 else ""
        sentence = f"The model's score for {first.label!r}{second}. {bright}."
    return _answer(maps, f"{sentence} This shows what the score responded to, not what caused it.", looked)


def _methods(offer: Offer, question: Question, progress: Progress) -> Answer:
    looked = look_at(offer, question.model, question.picture, question.layer, question.prompts)
    if not question.methods:
        raise SightlineError("tick at least one method")
    maps = compare(
        looked, methods=list(question.methods), targets=[_target(looked, question.target)], progress=progress
    )
    return _answer(
        maps,
        f"{maps[0].label!r} by {len(maps)} methods. Each asks another question; where they disagree, none is to be believed by itself.",
    )


def _layers(offer: Offer, question: Question, progress: Progress) -> Answer:
    method = find(question.method or default(offer.adapter(question.model)))
    if method.needs not in ONE_PASS:
        raise SightlineError(
            f"{method.name} runs the network many times, too long for all layers; choose another method here"
        )
    looked = look_at(offer, question.model, question.picture, "all", question.prompts)
    maps = compare(looked, methods=[method], targets=[_target(looked, question.target)])
    return _answer(
        maps,
        f"{maps[0].label!r} by {method.name} at {len(maps)} layers, from the input to the output. "
        "How much the map moves is itself a finding.",
    )


def _models(offer: Offer, question: Question, progress: Progress) -> Answer:
    if not question.second:
        raise SightlineError("choose a second model; this server offers " + ", ".join(offer.models))
    looked = look_at(offer, question.model, question.picture, None, question.prompts)
    methods = [question.method or None]
    (first,) = compare(looked, methods=methods, targets=[_target(looked, question.target)], progress=progress)
    other = look_at(offer, question.second, question.picture, None, question.prompts)
    try:
        (second,) = compare(other, methods=methods, targets=[first.label], progress=progress)
        sentence = f"{first.label!r} by two models. Each has its own scale: scores of different models do not compare."
    except TargetError:
        (second,) = compare(other, methods=methods, progress=progress)
        sentence = (
            f"The second model knows no {first.label!r}; its own answer is shown instead. Each has its own scale."
        )
    return _answer([first, second], sentence)


_ANSWERS: dict[str, Callable[[Offer, Question, Progress], Answer]] = {
    "one": _one,
    "methods": _methods,
    "layers": _layers,
    "models": _models,
}


def _answer(maps: Sequence[Heatmap], sentence: str, looked: Look | None = None) -> Answer:
    if len({one.model for one in maps}) == 1:
        maps = share_scale(maps)
    choices = {} if looked is None else _choices(looked, maps)
    return Answer(tuple(maps), maps[0].label, sentence, tuple(cautions(maps)), choices)


def _choices(looked: Look, maps: Sequence[Heatmap]) -> dict[str, Any]:
    """What of the picture or of the answer can be clicked, and what that asks for."""
    task = _task(looked)
    width, height = looked.photo.size
    names = class_names(looked)
    if task == "detection":
        shares = [
            [edge / side for edge, side in zip(one.box or (), (width, height) * 2, strict=True)]
            for one in looked.predictions
        ]
        about = [f"{name}, {percent(one.probability)}" for name, one in zip(names, looked.predictions, strict=True)]
        rows = zip(names, about, shares, strict=True)
        return {
            "boxes": [
                {"number": str(number), "value": name, "text": unicode_text(text), "box": box}
                for number, (name, text, box) in enumerate(rows, 1)
            ]
        }
    if task == "segmentation":
        return {"points": [width, height]}
    if task == "words":
        asked = {one.index for one in maps}
        return {
            "words": [
                {
                    "text": unicode_text(one.label),
                    "value": name,
                    "note": percent(one.probability),
                    "chosen": one.index in asked,
                }
                for name, one in zip(names, looked.predictions, strict=True)
            ]
        }
    return {}


def _target(looked: Look, shown: str | None) -> TargetSpec:
    """What a shown name or a typed target stands for; what the model says first for none."""
    task = _task(looked)
    if not shown:
        plain = looked.predictions and task in ("classes", "labels")
        return looked.predictions[0].index if plain else None
    names = class_names(looked)
    if shown in names:
        at = names.index(shown)
        return instance(at + 1) if task == "detection" else at
    target = parse_target(shown, files=False)
    if isinstance(target, str) and task in ("classes", "labels"):
        return resolve(target, looked.adapter, looked.captures[0].output).index
    return target


def _task(looked: Look) -> Task:
    return task_of(looked.adapter, looked.captures[0].output)


def _digest(picture: str) -> str:
    try:
        with open(picture, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError("the picture is no longer here; choose it again") from error


def _keep(kept: LRUCache[Any, Any], key: Any, value: Any) -> None:
    """Keeps it, unless it is larger than all that may be kept."""
    if kept.getsizeof(value) <= kept.maxsize:
        kept[key] = value


def _size_of_look(one: Look) -> float:
    """Bytes: the photograph, and the layers' outputs several times over for the graph behind them."""
    tensors = sum(4 * seen.activations.nbytes + seen.input.nbytes for seen in one.captures)
    return float(tensors + 3 * one.photo.width * one.photo.height)


def _size_of_answer(one: Answer) -> float:
    """Bytes: each map at the photograph's size, once it was drawn or asked for its peak."""
    return float(sum(4 * each.photo.width * each.photo.height + 2 * each.raw.nbytes for each in one.maps))
