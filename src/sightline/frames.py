"""`explain_frames`: films and volumes, with a map that has time or depth as a dimension of its own."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sightline.attribution import (
    Model,
    Terms,
    adapter_of,
    checked_calls,
    layer_names,
    layers_for,
    map_of,
    preprocess_of,
    rectified,
    shown_to,
    toward_all,
)
from sightline.bundle import place as place_whole
from sightline.bundle import unicode_text, whole_folder, write_manifest
from sightline.data.images import Picked, read_frames
from sightline.engine.asked import Asked, TargetSpec
from sightline.engine.capture import Capture, capture
from sightline.engine.probe import MEMORY_MB, Budget, Progress
from sightline.engine.targets import per_image, probabilities
from sightline.engine.tasks import task_of
from sightline.errors import ImageError, ModelError, OutputError
from sightline.flow import Told, cautions, place_of, predictions_of
from sightline.heatmap import Heatmap, about_signs, about_style, key_of
from sightline.methods.notices import clipped
from sightline.methods.registry import (
    OF_INPUT,
    WHOLE,
    Function,
    Method,
    check_of_volumes,
    check_options,
    check_possible,
    default,
    find,
)
from sightline.models.adapter import Adapter, like_weights
from sightline.models.bands import bands_of, checked, shown
from sightline.models.view import View
from sightline.render.overlay import Values, overlay
from sightline.render.panel import Tile, face, fitted, sheet

SCHEMA = "sightline.frames/1"
_COLUMNS, _SMALL = 8, 150  # of a strip: frames beside each other, and pixels of one
_PLANE = 320  # pixels of a slice's longer side
_FILM = 320  # pixels of a film's longer side
_FORMATS = {".gif": "GIF", ".webp": "WEBP"}
_INK, _SOFT, _DONE = (20, 20, 20), (215, 215, 215), (90, 90, 90)


@dataclass(frozen=True, eq=False)
class Frames:
    """Which part of a film or volume, when and where, raised one score of one model.

    Attributes:
        raw: (t, h, w) float32, as the method gave it, unscaled.
        signed_raw: the same before the method cut its negative values.
        maps: one for each frame that the model saw, `raw` interpolated linearly in time, all on one scale.
        numbers: which frames these are, counted from 1.
        total: how many the film has.
        word: "frame" or "slice".
        name: what to call the film.
    """

    raw: Values
    signed_raw: Values
    maps: tuple[Heatmap, ...]
    numbers: tuple[int, ...]
    total: int
    word: str
    name: str

    @property
    def peak(self) -> tuple[int, int, int]:
        """(position in `maps`, x, y) of the strongest place, x and y in pixels of the frame."""
        at = int(np.argmax([one.raw.max() for one in self.maps]))
        return at, *self.maps[at].peak

    def label(self, at: int) -> str:
        """What stands over a frame: frame 3 of 16."""
        return f"{self.word} {self.numbers[at]} of {self.total}"

    def strip(self, most: int = _COLUMNS, *, style: str | None = None, colormap: str | None = None) -> Image.Image:
        """Frames with their maps below them, evenly chosen, at most so many; which ones is said.

        Args:
            most: how many frames.
            style: as for `Heatmap.overlay`.
            colormap: any name of matplotlib.
        """
        if type(most) is not int or most < 1:
            raise OutputError(f"most is {most!r}; expected how many frames to draw, 1 or more")
        chosen = _evenly(len(self.maps), min(most, len(self.maps)))
        rows = []
        for start in range(0, len(chosen), _COLUMNS):
            part = chosen[start : start + _COLUMNS]
            notes = [f"highest {self.maps[at].evidence:.3g}" for at in part]
            rows.append(
                [
                    Tile(self._pair(at, style, colormap), self.label(at), note)
                    for at, note in zip(part, notes, strict=True)
                ]
            )
        left = len(self.maps) - len(chosen)
        drawn = f"; drawn are {len(chosen)} of them, evenly chosen" if left else ""
        return self._sheet(rows, [f"The model saw {self.seen()}{drawn}"], style, colormap)

    def slices(self, *, style: str | None = None, colormap: str | None = None) -> Image.Image:
        """Three planes through the strongest place: the frame itself, and the two that run along time or depth."""
        at, x, y = self.peak
        photos = np.stack([np.asarray(one.photo) for one in self.maps])
        rows = np.stack([one.view.place(one.raw)[y] for one in self.maps])
        columns = np.stack([one.view.place(one.raw)[:, x] for one in self.maps])
        along = "depth" if self.word == "slice" else "time"
        ratio = _PLANE / max(self.maps[0].photo.size)
        wide, high = (round(side * ratio) for side in self.maps[0].photo.size)
        deep = max(140, min(_PLANE, 8 * len(self.maps)))
        tiles = []
        for title, photo, values, cross, size in (
            (self.label(at), photos[at], self.maps[at].view.place(self.maps[at].raw), (x, y), (wide, high)),
            (f"row {y}, {along} downwards", photos[:, y], rows, (x, at), (wide, deep)),
            (f"column {x}, {along} to the right", photos[:, :, x].swapaxes(0, 1), columns.T, (at, y), (deep, high)),
        ):
            tiles.append(Tile(self._plane(photo, values, cross, size, style, colormap), title))
        note = (
            f"Planes through the strongest place: {self.label(at)}, x {x}, y {y}, where the ticks meet. Distances along {along} are not "
            f"to scale; the model saw {self.seen()}"
        )
        return self._sheet([tiles], [note], style, colormap)

    def film(
        self,
        path: str | os.PathLike[str],
        *,
        seconds: float = 0.25,
        style: str | None = None,
        colormap: str | None = None,
    ) -> Path:
        """Writes the frames beside their maps as an animated GIF or WebP, by the ending of the name; whole or not at all.

        Args:
            path: of the file; one that stands there is replaced.
            seconds: how long each frame is shown.
            style: as for `Heatmap.overlay`.
            colormap: any name of matplotlib.

        Raises:
            OutputError: another ending, or it can't be written.
        """
        path = Path(path)
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise OutputError(f"{path} ends in {path.suffix or 'nothing'}; a film is written as .gif or .webp")
        if not isinstance(seconds, int | float) or not 0.02 <= seconds <= 60:
            raise OutputError(f"seconds is {seconds!r}; expected how long each frame is shown, 0.02 to 60")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            place_whole(path, self._animated(kind, seconds, style, colormap))
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from error
        return path

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        style: str | None = None,
        colormap: str | None = None,
        force: bool = False,
    ) -> Path:
        """Writes strip.png, slices.png, film.gif, an overlay a frame, map.npy (the raw map) and manifest.json; all or nothing.

        Raises:
            OutputError: the folder exists (without `force`), is not one of ours, or can't be written.
        """
        folder = Path(folder)
        digits = len(str(len(self.maps)))
        with whole_folder(folder, force) as place:
            np.save(place / "map.npy", self.raw, allow_pickle=False)
            self.strip(style=style, colormap=colormap).save(place / "strip.png")
            self.slices(style=style, colormap=colormap).save(place / "slices.png")
            (place / "film.gif").write_bytes(self._animated("GIF", 0.25, style, colormap))
            records = []
            for at, one in enumerate(self.maps):
                file = f"overlay-{at + 1:0{digits}d}.png"
                one.overlay(style, colormap=colormap).save(place / file, compress_level=2)
                records.append({self.word: self.numbers[at], "evidence": one.evidence, "file": file})
            write_manifest(place, self._manifest(records))
        return folder

    def _repr_png_(self) -> bytes:
        found = io.BytesIO()
        self.strip().save(found, "PNG")
        return found.getvalue()

    def _manifest(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        first = self.maps[0]
        about = first.record()
        return {
            "schema": SCHEMA,
            "film": Path(self.name).name,
            "total": self.total,
            "grid": list(self.raw.shape),
            "peak": dict(zip((self.word, "x", "y"), (self.numbers[self.peak[0]], *self.peak[1:]), strict=True)),
            "predictions": [one.record() for one in first.predictions],
            **{
                name: about[name]
                for name in ("target", "method", "layer", "warnings", "options", "details")
                if name in about
            },
            "score": first.score,
            "scale": first.scale,
            f"{self.word}s": list(records),
            "model": {"name": first.model, **first.provenance},
        }

    def seen(self) -> str:
        """Which frames the model saw, in words."""
        count = len(self.numbers)
        if self.numbers == tuple(range(1, self.total + 1)):
            return f"all {count} {self.word}s"
        few = [*self.numbers] if count <= 16 else [*self.numbers[:3], "...", self.numbers[-1]]
        return f"{count} of {self.total} {self.word}s: {', '.join(map(str, few))}"

    def _pair(self, at: int, style: str | None, colormap: str | None) -> Image.Image:
        """A frame with its map below it, small."""
        photo, drawn = fitted(self.maps[at].photo, _SMALL), self._drawn(at, _SMALL, style, colormap)
        both = Image.new("RGB", (photo.width, 2 * photo.height + 4), "white")
        both.paste(photo, (0, 0))
        both.paste(drawn, (0, photo.height + 4))
        return both

    def _drawn(self, at: int, longer: int, style: str | None, colormap: str | None) -> Image.Image:
        one = self.maps[at]
        photo = fitted(one.photo, longer)
        return self._laid(photo, dataclasses.replace(one.view, photo=photo.size).place(one.raw), style, colormap)

    def _laid(self, photo: Image.Image, values: Values, style: str | None, colormap: str | None) -> Image.Image:
        first = self.maps[0]
        return overlay(photo, values, first.scale, style=style or first.style, signed=first.signed, colormap=colormap)

    def _plane(
        self,
        photo: np.ndarray[Any, Any],
        values: Values,
        cross: tuple[int, int],
        sides: tuple[int, int],
        style: str | None,
        colormap: str | None,
    ) -> Image.Image:
        """One plane at a size to look at, with ticks at its borders that point to the strongest place."""
        height, width = values.shape
        small = Image.fromarray(np.ascontiguousarray(photo)).resize(sides, Image.Resampling.BICUBIC)
        # Rows of pixels as they are, without inventing a course between frames.
        rows, columns = (
            np.minimum(np.arange(side) * size // side, size - 1)
            for side, size in ((sides[1], height), (sides[0], width))
        )
        drawn = self._laid(small, values[rows][:, columns], style, colormap)
        pen = ImageDraw.Draw(drawn)
        x, y = ((at + 0.5) * side / size for at, side, size in zip(cross, sides, (width, height), strict=True))
        for ends in (
            ((x, 0), (x, 9)),
            ((x, sides[1] - 10), (x, sides[1])),
            ((0, y), (9, y)),
            ((sides[0] - 10, y), (sides[0], y)),
        ):
            pen.line(ends, fill="black", width=4)
            pen.line(ends, fill="white", width=2)
        return drawn

    def _animated(self, kind: str, seconds: float, style: str | None, colormap: str | None) -> bytes:
        pictures = [self._still(at, style, colormap) for at in range(len(self.maps))]
        found = io.BytesIO()
        more: dict[str, Any] = {"quality": 85} if kind == "WEBP" else {"optimize": False}
        pictures[0].save(
            found, kind, save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), loop=0, **more
        )
        return found.getvalue()

    def _still(self, at: int, style: str | None, colormap: str | None) -> Image.Image:
        """One frame beside its map, with its number and how far the film is."""
        photo, drawn = fitted(self.maps[at].photo, _FILM), self._drawn(at, _FILM, style, colormap)
        canvas = Image.new("RGB", (2 * photo.width + 24, photo.height + 52), "white")
        canvas.paste(photo, (8, 8))
        canvas.paste(drawn, (photo.width + 16, 8))
        pen = ImageDraw.Draw(canvas)
        wide, y = canvas.width - 16, photo.height + 40
        pen.rectangle((8, y, 8 + wide, y + 4), fill=_SOFT)
        pen.rectangle((8, y, 8 + round(wide * (at + 1) / len(self.maps)), y + 4), fill=_DONE)
        pen.text((8, photo.height + 14), self.label(at), font=face(15, bold=True), fill=_INK)
        strength = f"highest {self.maps[at].evidence:.3g} of {self.maps[at].scale:.3g}"
        pen.text((photo.width + 16, photo.height + 14), strength, font=face(15), fill=_INK)
        return canvas

    def _sheet(
        self, rows: Sequence[Sequence[Tile]], notes: Sequence[str], style: str | None, colormap: str | None
    ) -> Image.Image:
        first = self.maps[0]
        says = ", ".join(one.said() for one in first.predictions[:3])
        if first.per_pixel and len(self.raw) == len(self.maps):
            grid = f"{first.grid()} for each {self.word}"
        else:
            grid = f"{'x'.join(map(str, self.raw.shape))} grid, upsampled; linear in {'depth' if self.word == 'slice' else 'time'}"
        ends = dataclasses.replace(first, raw=self.raw).clip()  # among all frames, not the first alone
        return sheet(
            rows,
            heading=unicode_text(f"{Path(self.name).name}: {first.title()}"),
            captions=[
                *([f"The model says: {says}"] if says else []),
                f"{first.asked()} ({grid}), model {first.model}, highest raw value {float(self.raw.max()):.3g}; all {self.word}s on one scale{'; ' if ends else ''}{ends}",
                *about_style([first], style),
                *about_signs([first]),
                *notes,
            ],
            warnings=first.warnings,
            keys=[key_of(first, colormap, clip=False)],
        )


def explain_frames(
    frames: Any,
    model: Model,
    *,
    method: str | Function | Method | None = None,
    target: TargetSpec = None,
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    memory_mb: float = MEMORY_MB,
    progress: Progress | None = None,
    max_calls: int | None = None,
    told: Told | None = None,
) -> Frames:
    """Shows which part of a film or volume, when and where, raised the model's score for a class.

    Args:
        frames: a list of pictures, a folder of them (in the order of their names), an animated GIF or WebP, or an array
            (T, H, W, 3); of a volume (D, H, W), grey. With `bands` array (T, H, W, n) or its .npy file.
        model: what `adapt(module, preprocess=of one frame, frames=16)` returned.
        method: as in `explain`, of those that treat all places alike; they are named where another is asked for.
        target: as in `explain`.
        layer: as in `explain`, one.
        options: of the method.
        memory_mb: as in `explain`.
        progress: as in `explain`.
        max_calls: as in `explain`; one film counts as one picture.
        told: as in `explain`.

    Raises:
        SightlineError: as `explain`.
    """
    adapter = adapter_of(model)
    if adapter.frames is None:
        raise ModelError(
            f"{adapter.name} takes one picture. For a model of films say how many frames it takes, "
            "sightline.adapt(module, preprocess=function of one frame, frames=16); else sightline.explain, without --film"
        )
    chosen = find(default(adapter) if method is None else method)
    check_possible(chosen, adapter)
    check_options([chosen], options or {})
    check_of_volumes(chosen, adapter, options or {}, layer_names(layer))
    budget = Budget(checked_calls(max_calls), None if told is None else partial(told, chosen.name))
    film = read_frames(frames, partial(_sampled, adapter.frames), with_bands=bands_of(adapter.preprocess) is not None)
    photos, x, views, notes = _prepared(adapter, film)
    budget.spend(1)
    (seen,) = capture(adapter, x, layers_for([chosen], adapter, layer))
    asked = per_image(target, adapter, seen.output, 1)
    (captured,) = toward_all([chosen], [seen], asked)
    terms = Terms(options or {}, memory_mb, progress, budget)
    maps = map_of(chosen, adapter, captured, asked, terms)
    return _joined(adapter, chosen, film, photos, views, notes, shown_to(chosen, captured), asked[0], maps, terms)


def _joined(
    adapter: Adapter,
    method: Method,
    film: Picked,
    photos: Sequence[Image.Image],
    views: Sequence[View],
    notes: Sequence[str],
    captured: Capture,
    asked: Asked,
    maps: Tensor,
    terms: Terms,
) -> Frames:
    """The record of one film, of its map (1, t * h, w) before rectification."""
    predictions = predictions_of(adapter, captured)
    said, emptiness = cautions(method, adapter, views[0], asked, predictions, [captured], [maps], terms.notes)
    raw, signed = (_unfolded(captured, each) for each in (rectified(method, maps), maps))
    word = "slice" if film.volume else "frame"
    if len(raw) == 1 < len(photos):
        said.append(
            f"layer {captured.layer} has one slice for all {word}s: its map tells where, and not in which {word}"
        )
    whole, of_input = method.needs in WHOLE, method.needs in OF_INPUT
    first = Heatmap(
        raw=raw[0],
        signed_raw=signed[0],
        scale=clipped(method, torch.from_numpy(raw)) * float(np.abs(raw).max()) * max(1.0, emptiness),
        photo=photos[0],
        view=views[0],
        image=film.name,
        method=method.name,
        signed=method.signed,
        unit=method.unit,
        label=asked.label,
        index=asked.index,
        score=None if captured.scores is None else float(captured.scores[0]),
        probability=_chance(adapter, captured.output, asked),
        layer=place_of(method, terms.where, [captured]),
        layer_reason=f"{method.name} looks at the picture's pixels"
        if of_input
        else adapter.layer_reason
        if not whole
        else "",
        predictions=predictions,
        model=adapter.name,
        provenance=adapter.provenance,
        warnings=(*adapter.notes, *said, *notes),
        options={**method.options, **terms.options},
        details={name: value for name, value in terms.details.items() if isinstance(value, int | float)},
    )
    found = []
    for at, (photo, view) in enumerate(zip(photos, views, strict=True)):
        name = f"{film.name} {word} {film.numbers[at]} of {film.total}"
        one, unrectified = (_at_time(each, at, len(photos)) for each in (raw, signed))
        found.append(dataclasses.replace(first, raw=one, signed_raw=unrectified, photo=photo, view=view, image=name))
    return Frames(raw, signed, tuple(found), film.numbers, film.total, word, film.name)


def _chance(adapter: Adapter, output: Any, asked: Asked) -> float | None:
    if asked.index is None:
        return asked.chance
    return float(probabilities(output, task_of(adapter, output))[0, asked.index])


def _unfolded(captured: Capture, maps: Tensor) -> Any:
    if captured.layout is None:
        raise ModelError("this capture has no slices")
    return captured.layout.unfolded(maps)[0].detach().float().cpu().numpy()


def _at_time(raw: Values, at: int, count: int) -> Any:
    """The map of one of so many frames: between the two nearest slices of the grid, linearly; beyond the ends the last one."""
    depth = len(raw)
    place = min(max((at + 0.5) * depth / count - 0.5, 0.0), depth - 1.0)
    low = int(place)
    share = place - low
    return raw[low] if share == 0 else ((1 - share) * raw[low] + share * raw[low + 1]).astype(np.float32)


def _evenly(total: int, count: int) -> list[int]:
    """The middles of so many equal parts."""
    return [int((at + 0.5) * total / count) for at in range(count)]


def _sampled(wanted: int | str, total: int) -> list[int]:
    return list(range(total)) if isinstance(wanted, str) else _evenly(total, wanted)


def _prepared(adapter: Adapter, film: Picked) -> tuple[list[Image.Image], Tensor, list[View], list[str]]:
    """The frames as a person sees them, the model's input (1, C, T, H, W), each frame's view, and what is to be said."""
    take, of = preprocess_of(adapter), bands_of(adapter.preprocess)
    word = "slice" if film.volume else "frame"
    notes = [*film.notes]
    given: list[Any] = list(film.frames)
    photos: list[Image.Image] = list(film.frames)
    if of is not None:
        given = [
            checked(one, of, f"{word} {number} of {film.name}") for number, one in zip(film.numbers, given, strict=True)
        ]
        height = len(given[0])
        tall, note = shown(np.concatenate(given), of)  # all on one scale
        photos = [tall.crop((0, at * height, tall.width, (at + 1) * height)) for at in range(len(given))]
        notes.append(note)
    made = [take(one) for one in given]
    shapes = {tuple(x.shape) for x, _ in made}
    if len(shapes) > 1:
        raise ImageError(
            f"the {word}s of {film.name} become inputs of several shapes; give them one size, or let preprocess make it"
        )
    if len(set(film.numbers)) < len(film.numbers):
        notes.append(
            f"the model takes {len(film.numbers)} {word}s and there are {film.total}: some are shown to it several times"
        )
    elif len(film.numbers) < film.total:
        notes.append(f"what lies between the {len(film.numbers)} {word}s that the model saw is not explained")
    x = torch.stack([x for x, _ in made], dim=1)[None]
    return photos, like_weights(x, adapter.module), [view for _, view in made], notes
