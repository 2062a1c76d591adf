"""`explain_tiles`: a large photograph explained window by window at the model's own resolution, in one joined map.

The windows begin at whole cells of the layer's grid, so that cells of neighbours coincide exactly: the joined map is the mean
over the windows that cover a cell, and nothing is resampled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.attribution import (
    Model,
    Terms,
    adapter_of,
    checked_calls,
    layers_for,
    map_of,
    opened,
    preprocess_of,
    rectified,
    shown_to,
    toward_all,
)
from sightline.data.images import Source
from sightline.engine.asked import Asked, TargetSpec
from sightline.engine.capture import Capture, capture, fed
from sightline.engine.probe import MEMORY_MB, PER_GRADIENT, PER_IMAGE, Budget, Progress, by_batch, fitting
from sightline.engine.targets import probabilities, resolve, table
from sightline.engine.tasks import task_of
from sightline.errors import LayerError, MethodError, ModelError, SightlineError, TargetError
from sightline.flow import Told, explain, place_of
from sightline.heatmap import Heatmap, Prediction
from sightline.methods.notices import about_map, clipped, floor
from sightline.methods.registry import (
    OF_INPUT,
    ONE_PASS,
    PIXELS,
    Function,
    Method,
    check_options,
    check_possible,
    default,
    find,
)
from sightline.models.adapter import INPUT, Adapter, like_weights
from sightline.models.bands import bands_of, preparing
from sightline.models.preprocess import Preprocess, specification, standard
from sightline.models.twin import isolated, twin
from sightline.models.view import View
from sightline.render.panel import percent

_MOST = 10_000  # tiles
_KEPT = 10  # predictions


@dataclass(frozen=True)
class Axis:
    """How one side of a photograph is cut.

    Attributes:
        length: of the photograph, in its pixels.
        tile: of a window.
        cells: of the layer's grid in a window.
        step: from window to window, in cells.
        count: of windows.
    """

    length: int
    tile: int
    cells: int
    step: int
    count: int

    @property
    def pixels(self) -> int:
        """From window to window."""
        return self.step * self.tile // self.cells

    @property
    def beyond(self) -> int:
        """By how many pixels the windows together reach beyond the photograph."""
        return max(0, (self.count - 1) * self.pixels + self.tile - self.length)

    @property
    def before(self) -> int:
        """By how many the first one does; the last by the rest."""
        return self.beyond // 2

    @property
    def starts(self) -> list[int]:
        """Where each window begins, in pixels of the photograph; below 0 it is padded."""
        return [at * self.pixels - self.before for at in range(self.count)]

    @property
    def touching(self) -> slice:
        """The cells of the joined grid that lie on the photograph, be it with a part of them."""
        first = self.before * self.cells // self.tile
        return slice(first, -(-(self.before + self.length) * self.cells // self.tile))


def axis_of(length: int, tile: int, cells: int, overlap: float) -> Axis:
    """The widest step that leaves at least the overlap, of those that are whole cells and whole pixels; else the least."""
    unit = cells // math.gcd(cells, tile)
    step = max(unit, int(cells * (1 - overlap) + 1e-9) // unit * unit)
    pixels = step * tile // cells
    return Axis(length, tile, cells, step, 1 if length <= tile else math.ceil((length - tile) / pixels) + 1)


def explain_tiles(
    image: Source,
    model: Model = "bundled",
    *,
    tile_px: int | None = None,
    overlap: float = 0.5,
    target: TargetSpec = None,
    method: str | Function | Method | None = None,
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    memory_mb: float = MEMORY_MB,
    progress: Progress | None = None,
    max_calls: int | None = None,
    told: Told | None = None,
) -> Heatmap:
    """Shows which part of a large photograph raised the model's score, without making it small first.

    The photograph is cut into overlapping windows of the model's own input size. Each is explained for one and the same
    class, and the maps are joined: a cell's value is the mean over the windows that cover it. A photograph no larger than one
    window is explained as a whole.

    Args:
        image: as in `explain`.
        model: as in `explain`; its preprocessing must take a window as it is.
        tile_px: width of a window in pixels of the photograph, its height in proportion; the model's own input size when left out.
        overlap: of neighbours, as a share of a window, 0 to below 1; rounded to whole cells of the layer's grid.
        target: as in `explain`; when left out the class with the highest mean probability over all windows.
        method: as in `explain`.
        layer: as in `explain`, one.
        options: of the method.
        memory_mb: about how much one forward may need; so many windows go into one batch.
        progress: called with (done, total) windows.
        max_calls: as in `explain`, for all windows together.
        told: called with the method's name and the number of pictures before the first is shown to the model.

    Raises:
        SightlineError: as `explain`.
    """
    adapter = adapter_of(model)
    chosen = find(default(adapter) if method is None else method)
    check_possible(chosen, adapter)
    check_options([chosen], options or {})
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise MethodError(f"overlap is {overlap!r}; expected a share of a window, from 0 to below 1, such as 0.5")
    if isinstance(layer, list | tuple) or layer == "all":
        raise LayerError("the tiles of one layer are joined; name one")
    budget = Budget(checked_calls(max_calls))
    photo, meta, given = opened(adapter, image)
    tile, take, filling = _windows(adapter, tile_px, photo)
    if photo.width <= tile[0] and photo.height <= tile[1]:
        terms = {"memory_mb": memory_mb, "progress": progress, "max_calls": max_calls, "told": told}
        whole = explain(image, adapter, method=chosen, target=target, layer=layer, options=options, **terms)  # type: ignore[arg-type]
        note = f"no tiles: the photograph is no larger than one window of {tile[0]} x {tile[1]} px, and explained as a whole"
        return dataclasses.replace(whole, warnings=(*whole.warnings, note))
    tiled = dataclasses.replace(adapter, preprocess=take)
    budget.spend(1)
    corner = _cut(tiled, given, [(0, 0)], tile, filling)
    seen, grid = _grid(chosen, tiled, corner, layer, options or {})
    _check_joins(tiled, seen.output, target)
    across, down = (axis_of(*each, overlap) for each in zip(photo.size, tile, (grid[1], grid[0]), strict=True))
    work = _Work(tiled, chosen, given, across, down, filling, seen, memory_mb, budget, progress)
    found = _explained(work, target, options or {}, told)
    mean = torch.cat(found.shares).mean(dim=0) if found.shares else None
    score = float(torch.cat(found.scores).mean()) if found.scores else None
    raw, signed = found.joined.mean()
    about = about_map(chosen, torch.from_numpy(raw), torch.from_numpy(signed), score or 0.0)
    highest = float(np.abs(raw).max())
    emptiness = floor(chosen, torch.from_numpy(raw), score or 0.0) / highest if highest > 0 else 1.0
    said = [_said(across, down, overlap), *_about_class(found.asked, target, adapter, found.shares)]
    reason = "given" if layer else adapter.layer_reason
    return Heatmap(
        raw=raw,
        signed_raw=signed,
        scale=clipped(chosen, torch.from_numpy(raw)) * highest * max(1.0, emptiness),
        photo=photo,
        view=_view(across, down),
        image=meta["name"],
        method=chosen.name,
        signed=chosen.signed,
        unit=chosen.unit,
        label=found.asked.label,
        index=found.asked.index,
        score=score,
        probability=None if found.asked.index is None or mean is None else float(mean[found.asked.index]),
        layer=place_of(chosen, found.terms.where, [shown_to(chosen, seen)]),
        layer_reason=f"{chosen.name} looks at the picture's pixels" if chosen.needs in OF_INPUT else reason,
        predictions=_predictions(mean, adapter),
        model=adapter.name,
        provenance=adapter.provenance,
        warnings=(*adapter.notes, *said, *dict.fromkeys(found.terms.notes), *about, *meta["notes"]),
        options={**chosen.options, **(options or {})},
    )


@dataclass(frozen=True, eq=False)
class _Work:
    """What is to be done with one photograph.

    Attributes:
        given: the photograph as the preprocessing takes it.
        filling: the colour beyond its borders.
        seen: the layer in a window of its upper left corner.
    """

    adapter: Adapter
    method: Method
    given: Any
    across: Axis
    down: Axis
    filling: Sequence[float]
    seen: Capture
    memory_mb: float
    budget: Budget
    progress: Progress | None

    @property
    def tile(self) -> tuple[int, int]:
        return self.across.tile, self.down.tile

    @property
    def places(self) -> list[tuple[int, int]]:
        """(left, top) of every window."""
        return [(left, top) for top in self.down.starts for left in self.across.starts]


@dataclass(frozen=True, eq=False)
class _Found:
    """What the windows said: `shares` the probabilities and `scores` the target's, batch after batch."""

    asked: Asked
    joined: _Joined
    shares: list[Tensor]
    scores: list[Tensor]
    terms: Terms


def _explained(work: _Work, target: TargetSpec, options: Mapping[str, Any], told: Told | None) -> _Found:
    """Every window explained for one class: where it must be found first, in a pass of its own."""
    adapter, method, budget, count = work.adapter, work.method, work.budget, len(work.places)
    task = task_of(adapter, work.seen.output)
    # Of an embedding nothing is asked that windows must say first.
    unknown = task != "embedding" and (target is None or hasattr(target, "resolved"))
    if count > _MOST:
        raise MethodError(f"these are {count:,} tiles; the limit is {_MOST:,}. Give a larger tile_px, or less overlap")
    passes = 1 + int(unknown)
    budget.told = None if told is None else partial(told, method.name)
    budget.plan((passes + int(method.needs in PIXELS and work.seen.layer != INPUT)) * count)
    budget.told = None
    shares: list[Tensor] = []
    output = work.seen.output
    if unknown:
        answers = [_answers(adapter, x) for _, x in _batches(work, 0, passes, gradients=False)]
        shares = [share for one in answers for share in _probabilities(one, task)]
        of_values = task == "regression" or hasattr(target, "of_values")
        output = torch.cat(answers if of_values else shares).mean(dim=0, keepdim=True)
    asked = resolve(target, adapter, output)
    terms, joined = Terms(options, work.memory_mb, None, budget), _Joined(work.across, work.down)
    scores: list[Tensor] = []
    for part, x in _batches(work, passes - 1, passes, gradients=True):
        (seen,) = capture(adapter, x, [work.seen.layer])
        if not unknown:
            shares += _probabilities(seen.output, task)
        (captured,) = toward_all([method], [seen], [asked] * len(part))
        maps = map_of(method, adapter, captured, [asked] * len(part), terms).detach()
        joined.add(part, maps, rectified(method, maps))
        scores += [] if captured.scores is None else [captured.scores.detach().cpu()]
    return _Found(asked, joined, shares, scores, terms)


def _batches(work: _Work, before: int, passes: int, gradients: bool) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Windows and their inputs, as many at once as fit into memory; `before` passes of so many are done."""
    places, at_pixels = work.places, gradients and work.seen.layer == INPUT
    size = fitting(work.memory_mb, work.seen.input, PER_GRADIENT if at_pixels else PER_IMAGE, 16)
    alone = gradients and work.method.needs not in (*ONE_PASS, *PIXELS)
    if alone or any(by_batch(module) for module in work.adapter.module.modules()):
        size = 1
    for start in range(0, len(places), size):
        part = places[start : start + size]
        if work.progress is not None:
            work.progress(before * len(places) + start, passes * len(places))
        work.budget.spend(len(part))
        yield part, _cut(work.adapter, work.given, part, work.tile, work.filling)
    if work.progress is not None:
        work.progress((before + 1) * len(places), passes * len(places))


class _Joined:
    """The sums of all windows' maps, and of how many windows each cell has been a part."""

    def __init__(self, across: Axis, down: Axis) -> None:
        shape = [(axis.count - 1) * axis.step + axis.cells for axis in (down, across)]
        self.across, self.down = across, down
        self.sums, self.counts = np.zeros((2, *shape)), np.zeros(shape)

    def add(self, places: Sequence[tuple[int, int]], unrectified: Tensor, maps: Tensor) -> None:
        cells = (self.down.cells, self.across.cells)
        if tuple(maps.shape[1:]) != cells:
            raise MethodError(
                f"the map of a window has {tuple(maps.shape[1:])} cells, that of the first one had {cells}; these can't be joined"
            )
        for (left, top), before, after in zip(places, unrectified, maps, strict=True):
            row, column = (
                (start + axis.before) // axis.pixels * axis.step
                for start, axis in ((top, self.down), (left, self.across))
            )
            at = np.s_[row : row + cells[0], column : column + cells[1]]
            self.sums[0][at] += after.double().cpu().numpy()
            self.sums[1][at] += before.double().cpu().numpy()
            self.counts[at] += 1

    def mean(self) -> tuple[Any, Any]:
        """The joined map, and the same before negative values were cut, of the cells that lie on the photograph."""
        at = (self.down.touching, self.across.touching)
        raw, signed = ((one / self.counts)[at].astype(np.float32) for one in self.sums)
        return raw, signed


def _view(across: Axis, down: Axis) -> View:
    """Where the joined cells lie on the photograph, in units of which a cell has a whole number."""
    finer = [axis.cells // math.gcd(axis.cells, axis.tile) for axis in (across, down)]
    cell = [axis.tile // math.gcd(axis.cells, axis.tile) for axis in (across, down)]
    axes = list(zip((across, down), finer, cell, strict=True))
    resized = [axis.length * fine for axis, fine, _ in axes]
    offset = [axis.touching.start * one - axis.before * fine for axis, fine, one in axes]
    covered = [(axis.touching.stop - axis.touching.start) * one for axis, _, one in axes]
    return View(
        photo=(across.length, down.length),
        resized=(resized[0], resized[1]),
        offset=(offset[0], offset[1]),
        input=(covered[0], covered[1]),
    )


def _windows(
    adapter: Adapter, tile_px: int | None, photo: Image.Image
) -> tuple[tuple[int, int], Preprocess, Sequence[float]]:
    """(width, height) of a window in pixels of the photograph, what makes an input of one, and the colour of padding."""
    take, of = preprocess_of(adapter), bands_of(adapter.preprocess)
    filling: Sequence[float]
    if of is not None:
        size, filling = of.size, of.mean
        if size is None:
            side = _side(tile_px) if tile_px is not None else min(256, *photo.size)
            size = (side, side)
        take = preparing(dataclasses.replace(of, size=size, fit="exact"))
    elif (spec := specification(take)) is not None:
        size = (spec["size"][0], spec["size"][1])
        filling = [255 * each for each in spec["fill"]]
        take = standard(**{**spec, "resize": size, "fit": "exact"})
    else:
        x, _ = take(Image.new("RGB", (256, 256), (124, 116, 104)))
        size = (int(x.shape[-1]), int(x.shape[-2]))
        filling = np.asarray(photo.resize((1, 1), Image.Resampling.BOX), np.float64).ravel().tolist()
    if tile_px is None:
        return size, take, filling
    width = _side(tile_px)
    return (width, max(1, round(width * size[1] / size[0]))), take, filling


def _side(tile_px: Any) -> int:
    if type(tile_px) is not int or not 8 <= tile_px <= 65_536:
        raise MethodError(
            f"tile_px is {tile_px!r}; expected the width of a window in pixels of the photograph, such as 224"
        )
    return tile_px


def _cut(
    adapter: Adapter, given: Any, places: Sequence[tuple[int, int]], tile: tuple[int, int], filling: Sequence[float]
) -> Tensor:
    """The inputs of some windows; what of a window lies beyond the photograph has the colour of padding."""
    found = []
    for left, top in places:
        if isinstance(given, Image.Image):
            window: Any = Image.new("RGB", tile, tuple(round(each) for each in filling))
            right, bottom = (
                min(start + side, end) for start, side, end in zip((left, top), tile, given.size, strict=True)
            )
            inside = given.crop((max(left, 0), max(top, 0), right, bottom))
            window.paste(inside, (max(-left, 0), max(-top, 0)))
        else:
            window = np.broadcast_to(np.asarray(filling, np.float32), (tile[1], tile[0], len(filling))).copy()
            inside_of = given[max(top, 0) : top + tile[1], max(left, 0) : left + tile[0]]
            row, column = max(-top, 0), max(-left, 0)
            window[row : row + inside_of.shape[0], column : column + inside_of.shape[1]] = inside_of
        x, view = preprocess_of(adapter)(window)
        if max(abs(each) for each in view.offset) > 0.5 or any(
            abs(got - side) > 0.5 for got, side in zip(view.resized, view.input, strict=True)
        ):
            raise ModelError(
                f"the preprocessing of {adapter.name} cuts or pads a window of {tile[0]} x {tile[1]} px, so that windows can't be joined: "
                "give one that resizes it exactly to the model's input"
            )
        found.append(x)
    return like_weights(torch.stack(found), adapter.module)


def _grid(
    method: Method, adapter: Adapter, x: Tensor, layer: str | None, options: Mapping[str, Any]
) -> tuple[Capture, tuple[int, int]]:
    """What the layer says of one window, and (h, w) of the map that the method gives of one window."""
    (name,) = layers_for([method], adapter, layer)
    (seen,) = capture(adapter, x, [name])
    if method.needs in (*ONE_PASS, *PIXELS, "head"):
        found = shown_to(method, seen).activations.shape
        return seen, (int(found[2]), int(found[3]))
    # Others may give their map at another resolution, which shows when one is made.
    try:
        asked = resolve(None, adapter, seen.output)
    except SightlineError:
        asked = Asked(lambda output: table(output)[:, 0], None, "")
    (captured,) = toward_all([method], [seen], [asked])
    made = map_of(method, adapter, captured, [asked], Terms(options))
    return seen, (int(made.shape[1]), int(made.shape[2]))


def _check_joins(adapter: Adapter, output: Any, target: TargetSpec) -> None:
    """Refuses targets that are about a place, a box or an answer of one window, and mean nothing in the others."""
    if adapter.settled is not None:
        raise TargetError(f"{adapter.name} answers in words about a whole picture; tiles have no answer in common")
    task = task_of(adapter, output)
    if task in ("segmentation", "detection") and (not callable(target) or hasattr(target, "resolved")):
        what = "finds boxes" if task == "detection" else "gives each pixel a class"
        raise TargetError(
            f"{adapter.name} {what}, which each tile has of its own: no class, place or box is one target for all of them. Explain the "
            "photograph without tiles, cut out the part in question, or give a function of the output"
        )


def _answers(adapter: Adapter, x: Tensor) -> Tensor:
    """What the model returns for windows, (B, K)."""
    with isolated(x), torch.no_grad():
        given = x.clone(memory_format=adapter.memory_format)
        return table(fed(adapter, twin(adapter.module, {}), given)).float().cpu()


def _probabilities(output: Any, task: str) -> list[Tensor]:
    if task in ("regression", "embedding"):
        return []
    try:
        return [probabilities(output, task).cpu()]
    except SightlineError:
        return []  # no classifier; its targets are functions


def _predictions(mean: Tensor | None, adapter: Adapter) -> tuple[Prediction, ...]:
    if mean is None:
        return ()
    best = mean.argsort(descending=True, stable=True)[:_KEPT].tolist()
    return tuple(Prediction(index, adapter.label(index), float(mean[index])) for index in best)


def _said(across: Axis, down: Axis, overlap: float) -> str:
    """How the photograph was cut, and what of the asked overlap couldn't be."""
    every = " and ".join(str(one) for one in dict.fromkeys((across.pixels, down.pixels)))
    beyond = (
        "; what of them lies beyond the photograph is filled with one colour" if across.beyond or down.beyond else ""
    )
    less = ""
    if any(axis.count > 1 and axis.step > max(1, axis.cells * (1 - overlap)) + 1e-9 for axis in (across, down)):
        whole = max(across.cells, across.tile // across.cells * across.cells)
        less = (
            f"; they can't overlap by {overlap:g}, because a cell is no whole number of pixels ({across.tile / across.cells:g}): "
            f"tile_px={whole} can"
        )
    return (
        f"made of {across.count * down.count} tiles ({across.count} x {down.count}) of {across.tile} x {down.tile} px, one every "
        f"{every} px: each cell is the mean of the tiles that cover it{beyond}{less}"
    )


def _about_class(asked: Asked, target: TargetSpec, adapter: Adapter, shares: Sequence[Tensor]) -> list[str]:
    if asked.index is None or not shares:
        return []
    every = torch.cat(list(shares))
    first = int((every.argmax(dim=1) == asked.index).sum()) if every.shape[1] > 1 else int((every[:, 0] > 0.5).sum())
    mean = every.mean(dim=0)
    said = f"{asked.label!r} is what the model says of {first} of {len(every)} tiles; its probability is the mean over tiles"
    best = int(mean.argmax())
    if target is None:
        said += ", the highest of all classes"
        surest = int(every.argmax()) % every.shape[1]
        if surest != asked.index:
            said += f"; the surest tile says {adapter.label(surest)!r} ({percent(float(every.max()))})"
    elif best != asked.index:
        said += f"; the highest mean is that of {adapter.label(best)!r} ({percent(float(mean[best]))})"
    return [said]
