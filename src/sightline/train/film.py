"""A map per epoch of the same few pictures: where a network looks while it learns."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sightline.attribution import attribute, capture
from sightline.bundle import place, unicode_text
from sightline.data.images import Source, read_image
from sightline.engine.targets import probabilities
from sightline.engine.tasks import class_index
from sightline.errors import ImageError, MetricError, ModelError, OutputError
from sightline.methods.registry import Function, Method
from sightline.models.adapter import Adapter, like_weights
from sightline.models.view import View
from sightline.render.overlay import overlay
from sightline.render.panel import Key, Tile, fitted, percent, sheet

Array = np.ndarray[Any, np.dtype[Any]]
Picture = Source | tuple[Source, int | str | None]

_BORDER = 1 / 8  # of the input's width on the left and on the right, of its height above and below
EVEN_BORDER = 1 - (1 - 2 * _BORDER) ** 2
"""The border's share of the heat of a map that is the same everywhere: 0.4375."""
_AT_ONCE = 16  # pictures in one forward
_MOST_FRAMES, _MOST_SHOTS, _MOST_CLASSES = 10, 8, 4
_COARSEST = 3  # cells of a side of the grid, for a share of the border
_TILE = 150  # pixels; eleven of them stand beside each other on a screen


@dataclass(frozen=True, eq=False)
class Shot:
    """One fixed picture.

    Attributes:
        name: what to call it.
        photo: upright RGB.
        x: the same as the model receives it, (C, H, W), on the CPU.
        view: how it became that.
        label: the class whose map is drawn, its true one; None for whatever the model predicts in each frame.
    """

    name: str
    photo: Image.Image
    x: Tensor
    view: View
    label: int | None


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the network looked after one epoch.

    Attributes:
        epoch: its number, 1, 2, ...; 0 before training.
        maps: (N, h, w) float32, raw, not negative.
        predicted: (N,) the classes that the model named.
        probability: (N,) of each shot's own class, in 0..1; of the predicted one where the shot has none.
        border: mean share of the heat in the border of the input (see `border_share`), nan where no map has heat.
        moved: mean share of the heat that moved since the frame before (see `moved`), nan for the first.
    """

    epoch: int
    maps: Array
    predicted: Array
    probability: Array
    border: float
    moved: float


def shots(pictures: Sequence[Picture], adapter: Adapter, names: Sequence[str] | None = None) -> tuple[Shot, ...]:
    """Reads the pictures, once, and prepares them as the model wants them.

    Args:
        pictures: each as `read_image` takes it, or (picture, its true class) by index or name.
        adapter: the model, with its preprocessing.
        names: what to call them; their paths when left out.

    Raises:
        ImageError: one of them can't be read.
        ModelError: the model has no preprocessing, or one that makes inputs of several sizes.
        TargetError: it has no class of that name.
    """
    if isinstance(pictures, str | bytes | os.PathLike | Image.Image | np.ndarray) or not pictures:
        raise ImageError(
            "the pictures of a film are a list with at least one: [picture, ...] or [(picture, class), ...]"
        )
    if adapter.preprocess is None:
        raise ModelError(
            f"{adapter.name} comes without preprocessing, so that no photograph can be fed to it; give the one that it is "
            "validated with: preprocess=function from a PIL picture to a tensor (C, H, W)"
        )
    made = tuple(_shot(one, at, adapter) for at, one in enumerate(pictures, start=1))
    if names is not None:
        made = tuple(dataclasses.replace(one, name=name) for one, name in zip(made, names, strict=True))
    for one in made:
        if one.x.shape != made[0].x.shape:
            raise ModelError(
                f"the preprocessing makes {tuple(made[0].x.shape)} of {made[0].name} and {tuple(one.x.shape)} of {one.name}; "
                "the pictures of a film need one size: resize and crop, or pad, to a fixed one"
            )
    return made


def _shot(picture: Picture, at: int, adapter: Adapter) -> Shot:
    source, label = cast("tuple[Source, Any]", picture) if isinstance(picture, tuple) else (picture, None)
    photo, meta = read_image(source)
    name = meta["name"] if isinstance(source, str | os.PathLike) else f"picture {at}"
    if isinstance(label, str):
        label = class_index(label, adapter, len(adapter.labels or ()))
    x, view = cast(Any, adapter.preprocess)(photo)
    return Shot(name, photo, x.detach().cpu(), view, None if label is None else int(label))


def frame(
    shots: Sequence[Shot],
    adapter: Adapter,
    epoch: int,
    before: Frame | None = None,
    method: str | Function | Method = "grad-cam",
    layer: str | None = None,
) -> Frame:
    """The maps of all shots by the model as it is now; nothing of it is changed, and training mode makes no difference.

    Args:
        shots: as `shots` made them.
        adapter: the model.
        epoch: how many are over.
        before: the frame before, to say how far the heat moved.
        method: as of `explain`; of signed methods the positive part.
        layer: as of `explain`.

    Raises:
        NonFiniteError: NaN or infinity somewhere, as where training diverged.
        MetricError: the frame before has other pictures or another grid.
    """
    maps, scores = [], []
    for start in range(0, len(shots), _AT_ONCE):
        part = shots[start : start + _AT_ONCE]
        seen = capture(like_weights(torch.stack([one.x for one in part]), adapter.module), adapter, layer=layer)
        found = attribute(seen, adapter, method=method, target=[one.label for one in part])
        maps.append(found.detach().float().clamp_min(0).cpu())
        scores.append(probabilities(seen.output).cpu())
    said = torch.cat(scores).double().numpy()
    grids = torch.cat(maps).numpy()
    several = said.shape[1] > 1
    predicted = said.argmax(axis=1) if several else np.zeros(len(said), int)
    own = np.array([top if one.label is None else one.label for one, top in zip(shots, predicted, strict=True)])
    return Frame(
        epoch,
        grids,
        predicted,
        said[np.arange(len(said)), own],
        _border(grids),
        math.nan if before is None else _mean(moved(before.maps, grids)),
    )


def border_share(maps: Array) -> Array:
    """Share of each map's positive heat in the border of the input: the outermost eighth on each of the four sides.

    Each cell of the grid counts by the part of its area that lies in the border, so that nothing is interpolated and a map that is
    the same everywhere has `EVEN_BORDER` on any grid.

    Args:
        maps: (N, h, w) over the whole input, of any scale; what is negative counts nothing.

    Returns:
        (N,) in 0..1, nan for a map without heat.
    """
    heat = _shares(maps)
    h, w = heat.shape[1:]
    inside = np.einsum("nhw,h,w->n", heat, _inside(h), _inside(w))
    return np.asarray(np.clip(1 - inside, 0, 1))


def _border(maps: Array) -> float:
    """The mean share; nan also where the grid is too coarse for one, because then every cell lies as much in the border."""
    return _mean(border_share(maps)) if min(maps.shape[1:]) >= _COARSEST else math.nan


def _inside(cells: int) -> Array:
    """Which part of each cell's extent lies between the borders."""
    edges = np.clip(np.arange(cells + 1) / cells, _BORDER, 1 - _BORDER)
    return np.asarray(np.diff(edges) * cells)


def moved(before: Array, after: Array) -> Array:
    """Which share of the heat has moved from one map to the other: 0 the same, 1 nothing in common.

    It is the total variation distance of the maps, each as shares of its own sum, so that how strong they are counts nothing.

    Args:
        before: (N, h, w), not negative.
        after: the same pictures' maps later, of the same shape.

    Returns:
        (N,) in 0..1, nan where either map is empty.

    Raises:
        MetricError: maps of other pictures, or on another grid.
    """
    if np.shape(before) != np.shape(after):
        raise MetricError(
            f"maps of shape {np.shape(before)} and {np.shape(after)} can't be compared: the pictures, the method and the layer "
            "of a film stay the same"
        )
    return np.asarray(np.clip(np.abs(_shares(before) - _shares(after)).sum(axis=(1, 2)) / 2, 0, 1))


def _shares(maps: Array) -> Array:
    """Each map as shares of its positive sum, float64; nan where it has none."""
    heat = np.clip(np.asarray(maps, np.float64), 0, None)
    for whole in (np.max, np.sum):  # by the maximum first, so that no sum overflows or vanishes
        total = whole(heat, axis=(1, 2), keepdims=True)
        heat = np.divide(heat, total, out=np.full_like(heat, math.nan), where=total > 0)
    return heat


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def strip(
    shots: Sequence[Shot], frames: Sequence[Frame], labels: Sequence[str] | None = None, notes: Sequence[str] = ()
) -> Image.Image:
    """The film as one picture: a row for each shot, the photograph and then the epochs; the means below.

    At most ten epochs and eight shots are drawn; what is left out is said.

    Args:
        shots: the pictures.
        frames: in the order of the epochs.
        labels: class names by index.
        notes: what else has to be said below, such as `Adapter.notes`.
    """
    if not frames:
        raise OutputError("there is no frame to draw; make one with sightline.train.frame")
    rows, captions = laid_out(shots, frames, labels)
    return sheet(
        rows,
        heading="Where the network looks, epoch after epoch",
        captions=captions,
        warnings=notes,
        keys=[Key(0, 1, "of each frame's own maximum")],
    )


def laid_out(
    shots: Sequence[Shot], frames: Sequence[Frame], labels: Sequence[str] | None
) -> tuple[list[list[Tile]], list[str]]:
    """The rows of a film strip, and what is said below."""
    drawn = _spread(len(frames), _MOST_FRAMES)
    rows = [_row(shots, frames, drawn, at, labels) for at in range(min(len(shots), _MOST_SHOTS))]
    rows += [_means(name, at, frames, drawn) for name, at in _groups(shots, labels)]
    left = [str(one.epoch) for at, one in enumerate(frames) if at not in drawn]
    captions = [
        "Each frame is stretched to its own maximum: strengths do not compare between frames.",
        f"Border: share of the heat in the outermost eighth on each side of the model's input; {percent(EVEN_BORDER)} in a map "
        "that is the same everywhere. Moved: share of the heat that lies elsewhere than in the frame before.",
    ]
    if any(one.label is None for one in shots):
        captions.append("Where no class was given, the map is of the class that the model predicts in that frame.")
    if any(not one.maps[at].any() for one in frames for at in range(len(shots))):
        captions.append("Empty: nothing that the layer saw raised the class's score; the means leave such maps out.")
    if min(frames[0].maps.shape[1:]) < _COARSEST:
        size = " x ".join(map(str, frames[0].maps.shape[1:]))
        captions.append(f"The maps' grid of {size} is too coarse for a share of the border: take larger pictures.")
    if left:
        captions.append(f"Not drawn: epoch{'s' if len(left) > 1 else ''} {', '.join(left)}.")
    if len(shots) > _MOST_SHOTS:
        captions.append(
            f"Not drawn: {len(shots) - _MOST_SHOTS} more of the {len(shots)} pictures; the means are of all."
        )
    return rows, captions


def _spread(count: int, most: int) -> list[int]:
    """Which of so many are drawn: the first, the last, and evenly what lies between."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, most))})


def _row(
    shots: Sequence[Shot], frames: Sequence[Frame], drawn: Sequence[int], at: int, labels: Sequence[str] | None
) -> list[Tile]:
    shot = shots[at]
    photo = fitted(shot.photo, _TILE)
    view = dataclasses.replace(shot.view, photo=photo.size)
    true = "" if shot.label is None else _label(shot.label, labels)
    tiles = [Tile(photo, true, unicode_text(Path(shot.name).name))]
    for number in drawn:
        one = frames[number]
        raw = one.maps[at]
        border = _border(one.maps[at : at + 1])
        since = moved(frames[number - 1].maps[at : at + 1], raw[None])[0] if number else math.nan
        seen = overlay(photo, view.place(raw), float(raw.max()))
        tiles.append(Tile(seen, f"epoch {one.epoch}: {_says(shot, one, at, labels)}", _figures(raw, border, since)))
    return tiles


def _says(shot: Shot, one: Frame, at: int, labels: Sequence[str] | None) -> str:
    """What the model predicts and how sure it is; where that is wrong, how sure it is of the shot's own class."""
    named, sure = _label(int(one.predicted[at]), labels), _percent(float(one.probability[at]))
    if shot.label is None or shot.label == one.predicted[at]:
        return f"{named} {sure}"
    return f"wrong, {named} ({_label(shot.label, labels)} {sure})"


def _label(index: int, labels: Sequence[str] | None) -> str:
    return unicode_text(labels[index][:40]) if labels and 0 <= index < len(labels) else f"class {index}"


def _figures(maps: Array, border: float, since: float) -> str:
    if not (maps > 0).any():
        return "empty: no heat"
    known = [(name, share) for name, share in (("border", border), ("moved", since)) if not math.isnan(share)]
    return ", ".join(f"{name} {_percent(share)}" for name, share in known)


def _percent(share: float) -> str:
    return percent(share).replace(" ", "\N{NO-BREAK SPACE}")  # a tile is narrow


def _groups(shots: Sequence[Shot], labels: Sequence[str] | None) -> list[tuple[str, list[int]]]:
    """Of whom means are drawn: of each of a few classes, since a shortcut is mostly that of one, and of all."""
    if len(shots) < 2:
        return []
    classes = sorted({one.label for one in shots if one.label is not None})
    each = [[at for at, one in enumerate(shots) if one.label == label] for label in classes]
    found = [(f"{_label(label, labels)}, mean of {len(at)}", at) for label, at in zip(classes, each, strict=True)]
    return [*(found if 2 <= len(classes) <= _MOST_CLASSES else []), (f"mean of all {len(shots)}", [*range(len(shots))])]


def _means(name: str, at: Sequence[int], frames: Sequence[Frame], drawn: Sequence[int]) -> list[Tile]:
    """A row with the mean border as a bar, and a line where an even map's would end."""
    blank = Image.new("RGB", (_TILE, 1), "white")
    tiles = [Tile(blank, name, f"line: even map, {_percent(EVEN_BORDER)}")]
    for number in drawn:
        one = frames[number]
        border = _border(one.maps[at])
        since = _mean(moved(frames[number - 1].maps[at], one.maps[at])) if number else math.nan
        bar = Image.new("RGB", (_TILE, 14), (232, 232, 232))
        pen = ImageDraw.Draw(bar)
        if not math.isnan(border) and round(border * _TILE) > 0:
            pen.rectangle((0, 0, round(border * _TILE) - 1, 13), fill=(120, 120, 120))
        even = round(EVEN_BORDER * _TILE)
        pen.line((even, 0, even, 13), fill=(0, 0, 0), width=2)
        tiles.append(Tile(bar, f"epoch {one.epoch}", _figures(one.maps[at], border, since)))
    return tiles


def save_maps(path: str | os.PathLike[str], shots: Sequence[Shot], frames: Sequence[Frame]) -> None:
    """Writes the raw maps of a film as .npz, whole or not at all; `numpy.load(path)` reads it, without pickle.

    In it: maps (E, N, h, w), epochs (E,), names (N,), labels (N,; -1 where none was given), predicted and probability (E, N),
    border and moved (E,).

    Raises:
        OutputError: it can't be written.
    """
    content = BytesIO()
    np.savez_compressed(
        content,
        maps=np.stack([one.maps for one in frames]),
        epochs=np.array([one.epoch for one in frames]),
        names=np.array([unicode_text(one.name) for one in shots]),
        labels=np.array([-1 if one.label is None else one.label for one in shots]),
        predicted=np.stack([one.predicted for one in frames]),
        probability=np.stack([one.probability for one in frames]),
        border=np.array([one.border for one in frames]),
        moved=np.array([one.moved for one in frames]),
    )
    write_whole(Path(path), content.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Writes or replaces a file, whole or not at all.

    Raises:
        OutputError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place(path, content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} can't be written: {reason}. Choose another place") from error
