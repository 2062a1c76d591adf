"""One picture's figures: every method and the maps that know nothing, judged by every metric, from one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from sightline.attribution import Origin, Terms, attribute, fused, map_of, toward_all
from sightline.engine.capture import Capture
from sightline.engine.capture import capture as run_once
from sightline.engine.targets import per_image, probabilities
from sightline.errors import ImageError, LayerError, MethodError, MetricError, ModelError, NonFiniteError, TargetError
from sightline.evaluation.items import NO_LABEL, Item, mask_of
from sightline.flow import Look, look
from sightline.methods.notices import same_map
from sightline.methods.registry import Method
from sightline.metrics.boards import Board, apart, assembled
from sightline.metrics.case import Asking, Case, Told, asking, case, explainer
from sightline.metrics.localisation import Mask
from sightline.metrics.maps import centred_map, enlarged, random_map
from sightline.metrics.measure import Settings
from sightline.metrics.registry import Array, Measured, Metric, find_metric, run_metric
from sightline.models.adapter import INPUT, Adapter

RANDOM, CENTRE, TRUTH = "random map", "centred blob", "the mask itself"
# Along each side of a random map, where no layer says how many.
_CELLS = 14
REFERENCES = (RANDOM, CENTRE, TRUTH)
BOARDS = ("grid-pointing-game", "di-full")
_FAILURES = (ModelError, LayerError, MethodError, NonFiniteError, TargetError, MetricError)


@dataclass(frozen=True)
class Ask:
    """What is asked of every picture: the model, the methods with their options, the metrics with theirs, and the seed."""

    adapter: Adapter
    methods: tuple[Method, ...]
    options: Mapping[str, Mapping[str, Any]]
    metrics: tuple[Metric, ...]
    settings: Settings
    layer: str | None = None
    seed: int = 0
    memory_mb: float = 512

    def plain_metrics(self) -> tuple[Metric, ...]:
        """Those that are asked of a picture alone."""
        return tuple(one for one in self.metrics if one.name not in BOARDS)


def measured_picture(item: Item, ask: Ask, told: Told | None = None) -> dict[str, Any]:
    """A row of the run: what the model says, and for each method and metric the value, or why there is none.

    Raises:
        SightlineError: the picture can't be read, the model can't be run on it, or its label is no class.
    """
    if item.label == NO_LABEL:
        raise MetricError("the table of labels has no label for this picture")
    if item.path.is_symlink():
        raise ImageError(f"{item.path} is a link, and links out of a folder are not followed")
    looked = look(item.path, ask.adapter, layer=ask.layer)
    if told is not None:
        told(1)
    (seen,) = looked.captures
    (target,) = per_image(item.label, ask.adapter, seen.output, 1)
    (seen,) = toward_all([_gradients(ask.methods)], [seen], [target])
    about = asking(ask.adapter, seen, target, memory_mb=ask.memory_mb, told=told)
    mask, no_mask = _mask(item, looked)
    values: dict[str, dict[str, Any]] = {}
    maps: dict[str, Array] = {}
    for method in ask.methods:
        options = ask.options.get(method.name, {})
        origin = Origin(ask.adapter, method, target, seen.input, (seen.layer,), options, ask.memory_mb)
        try:
            signed = map_of(method, ask.adapter, seen, [target], Terms(options, ask.memory_mb))
            raw = signed[0].double().cpu().numpy()
            shown = fused(method, [seen], [signed])[0].double().cpu().numpy()
        except _FAILURES as error:
            values[method.name] = {one.name: _none(f"no map: {error}") for one in ask.plain_metrics()}
            continue
        placed = looked.view.place(shown).astype(np.float64) if mask is not None else None
        one = case(shown, about, raw=raw, explain=explainer(about, origin, told), placed=placed, mask=mask)
        # On many networks several methods are one and the same map, which needs to be judged once.
        twin = next((name for name, other in maps.items() if _is_same(other, shown)), None)
        values[method.name] = _measured(one, ask, no_mask, values[twin] if twin else {}, boxed=bool(item.boxes))
        maps[method.name] = shown
    for name, heat in _references(about, mask, looked, seed_of(item.name, ask.seed)).items():
        values[name] = _measured(heat, ask, no_mask, boxed=bool(item.boxes))
    shares = probabilities(seen.output, ask.adapter.task)[0]
    first = looked.predictions[0] if looked.predictions else None
    return {
        "target": target.index,
        "label": target.label,
        "probability": None if target.index is None else float(shares[target.index]),
        "said": None if first is None else first.index,
        "confidence": None if first is None else first.probability,
        "values": values,
    }


def seed_of(name: str, seed: int) -> int:
    """Another seed for each picture, the same in every run."""
    return int.from_bytes(blake2b(f"{seed} {name}".encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big")


def _gradients(methods: Sequence[Method]) -> Method:
    """The method that needs most of one pass, so that the one capture serves all."""
    return next((one for one in methods if one.needs == "gradients"), methods[0])


def _mask(item: Item, looked: Look) -> tuple[Mask | None, str]:
    try:
        mask = mask_of(item, looked.photo.size)
    except Exception as error:  # a mask is a picture of unknown origin
        return None, str(error)
    return mask, "no mask was given for this picture" if mask is None else ""


def _references(about: Asking, mask: Mask | None, looked: Look, seed: int) -> dict[str, Case]:
    """Maps that know nothing of the model, and where there is a mask that which knows all of the object."""
    _, _, h, w = about.seen.activations.shape
    if about.seen.layer == INPUT:
        h, w = min(h, _CELLS), min(w, _CELLS)
    size = (about.x.shape[2], about.x.shape[3])
    grids = {RANDOM: random_map((h, w), seed), CENTRE: centred_map(size)}
    found = {}
    for name, grid in grids.items():
        placed = looked.view.place(grid).astype(np.float64) if mask is not None else None
        found[name] = case(grid, about, raw=grid, placed=placed, mask=mask)
    if mask is not None:
        found[TRUTH] = Case(placed=mask.astype(np.float64), mask=mask)
    return found


def _is_same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and same_map(torch.from_numpy(one), torch.from_numpy(other))


def _measured(
    one: Case, ask: Ask, no_mask: str, known: Mapping[str, Any] | None = None, *, boxed: bool = False
) -> dict[str, Any]:
    """The figures of one map.

    `known` are those of the same map by another method, which hold but for metrics that ask the method. Where the mask is made of
    `boxed` objects, their heat is that of the mask: there is no hull to draw around all of them.
    """
    found = {}
    for metric in ask.plain_metrics():
        if one.x is None and not set(metric.needs) <= {"placed", "mask"}:
            continue  # the mask itself is judged by place alone
        if known and "explain" not in metric.needs:
            found[metric.name] = known[metric.name]
            continue
        if "mask" in metric.needs and one.mask is None:
            found[metric.name] = _none(no_mask)
            continue
        try:
            judge = find_metric("mass-in-mask") if boxed and metric.name == "energy-pointing-game" else metric
            found[metric.name] = _short(run_metric(judge, one, ask.settings.get(metric.name)))
        except _FAILURES as error:
            found[metric.name] = _none(str(error))
    return found


def _none(why: str) -> dict[str, Any]:
    return {"value": None, "undefined": why}


def _short(one: Measured) -> dict[str, Any]:
    return {key: value for key, value in one.record().items() if key != "metric"}


def measured_board(
    name: str, board: Board, items: Mapping[int, Item], ask: Ask, told: Told | None = None
) -> dict[str, Any]:
    """A row of the run for one board: for each method, metric and cell the value."""

    looks = [look(items[at].path, ask.adapter, layer=ask.layer) for at in board.pictures]
    x = assembled(torch.cat([one.captures[0].input for one in looks]), board.n)
    layer = looks[0].captures[0].layer
    values: dict[str, dict[str, Any]] = {}
    for metric in ask.metrics:
        if metric.name not in BOARDS:
            continue
        whole = metric.name == "grid-pointing-game"
        adapter = ask.adapter if whole else apart(ask.adapter, layer, board.n)
        classes = looks[0].captures[0].output.shape[1]
        (seen,) = run_once(adapter, x, [layer if whole else None])
        if told is not None:
            told(len(board.pictures))
        for number, k in enumerate(board.classes):  # methods of one class share one backward
            for method in ask.methods:
                target = k if whole else number * classes + k
                found = _on_board(metric, method, adapter, seen, target, (number, board.n), ask)
                values.setdefault(method.name, {})[f"{metric.name}/{number}"] = found
        for reference in (RANDOM, CENTRE):
            size = (x.shape[2], x.shape[3])
            heat = (
                enlarged(random_map((7 * board.n, 7 * board.n), seed_of(name, ask.seed)), size)
                if reference == RANDOM
                else centred_map(size)
            )
            for number in range(len(board.pictures)):
                one = _on_cell(metric, heat, (number, board.n))
                values.setdefault(reference, {})[f"{metric.name}/{number}"] = _short(run_metric(metric, one))
    return {"pictures": [items[at].name for at in board.pictures], "classes": list(board.classes), "values": values}


def _on_cell(metric: Metric, heat: Array, cell: tuple[int, int]) -> Case:
    return Case(heat=heat, cell=cell) if "cell" in metric.needs else Case(heat=heat, part=cell)


def _on_board(
    metric: Metric,
    method: Method,
    adapter: Adapter,
    seen: Capture,
    target: int,
    cell: tuple[int, int],
    ask: Ask,
) -> dict[str, Any]:
    try:
        options = ask.options.get(method.name, {})
        maps = attribute(seen, adapter, method=method, target=target, options=options, memory_mb=ask.memory_mb)
        grid: Array = maps[0].double().cpu().numpy()
        n = cell[1]
        # On a grid that the cells divide, the share is read off the cells themselves; else off the enlarged map.
        heat = (
            grid
            if grid.shape[0] % n == 0 and grid.shape[1] % n == 0
            else enlarged(grid, (seen.input.shape[2], seen.input.shape[3]))
        )
        return _short(run_metric(metric, _on_cell(metric, heat, cell)))
    except _FAILURES as error:
        return _none(str(error))
