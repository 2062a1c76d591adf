"""`Heatmap`: the raw map, the same on the photograph, and all that a person must know to read it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from sightline.attribution import Origin
from sightline.bundle import png, unicode_text, whole_folder, write_manifest
from sightline.engine.asked import Mark
from sightline.engine.probe import Progress
from sightline.errors import MethodError, MetricError, ModelError, OutputError
from sightline.metrics.case import case
from sightline.metrics.measure import Settings, as_mask, asked_again, check_metrics, run_metrics
from sightline.metrics.registry import Measured
from sightline.models.adapter import INPUT
from sightline.models.view import View
from sightline.render.marks import marked, numbered, outlined
from sightline.render.overlay import FILLED, Superpixels, Values, hatch, heat, overlay
from sightline.render.panel import Key, Tile, fitted, percent, sheet
from sightline.render.plots import Line, curves
from sightline.render.viewer import Pane, fragment, shrunk, viewer_data
from sightline.trust import TrustCard, check

SCHEMA = "sightline.bundle/1"
# The layer of methods that look at the whole network.
ALL_LAYERS = "all layers"
# What these methods call their superpixels and standard errors in a map's details, and those that have superpixels.
SEGMENTS, ERROR, CONVERGENCE = "segments", "standard error", "convergence"
_SHOWN = 0.3  # the score from which a box is drawn on the photograph beside those that are explained
_FINE = 100  # cells along a side from which on single ones are specks
OF_SUPERPIXELS = ("kernel-shap", "lime")
# What one value of these maps says; of others it follows from the map.
_UNITS = {
    "occlusion": "in units of the score, per square covered",
    "rise": "in units of the score, above its mean when the pixel is kept",
}


@dataclass(frozen=True)
class Prediction:
    """One class that the model named, with its probability in 0..1.

    Of a segmentation (`of_pixels`) that is the class's share of the picture; of a detector `box` is (left, top, right, bottom) in
    pixels of the photograph.
    """

    index: int
    label: str
    probability: float
    box: tuple[float, ...] | None = None
    of_pixels: bool = False

    def said(self) -> str:
        """In words: cat 59 %, or cat 59 % of the pixels."""
        return f"{self.label} {percent(self.probability)}{' of the pixels' if self.of_pixels else ''}"

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        found = {"index": self.index, "label": self.label, "probability": self.probability}
        return found if self.box is None else {**found, "box": [round(one, 1) for one in self.box]}


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Which part of a photograph raised one score of one model, according to one method at one layer.

    Attributes:
        raw: (h, w) float32, as the method gave it, unscaled.
        signed_raw: (h, w) float32, the same before the method cut its negative values.
        scale: the value that is drawn at full strength; the map's own maximum, or one shared by several maps.
        photo: the photograph, upright RGB.
        view: how it became the model's input.
        image: what to call the photograph.
        method: name of the method; `signed` tells whether negative values belong to the map.
        unit: "score" when values are in units of the score, "own" when they compare only with maps of the same method.
        label: the target's name; `index` its class, None for other scores.
        score: the target's value, None where the method asked for none; `probability` that of its class, None for other scores.
        layer: where the map was made; `layer_reason` why there.
        predictions: what the model says, most probable first.
        model: its name; `provenance` where its weights and preprocessing come from.
        mark: what of the photograph the target is about: a box, a point, a region, another picture, a word.
        warnings: what limits this map, in sentences.
        details: what its method found beside the map, by name: "residual" of a map that should sum to the score, "standard error",
            "segments"; numbers and arrays.
        options: of the method, with their values.
        origin: how it came about, so that `trust` and `measure` can ask the model again; not kept by pickle.
    """

    raw: Values
    signed_raw: Values
    scale: float
    photo: Image.Image
    view: View
    image: str
    method: str
    signed: bool
    unit: str
    label: str
    index: int | None
    score: float | None
    probability: float | None
    layer: str
    layer_reason: str
    predictions: tuple[Prediction, ...]
    model: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    mark: Mark | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.raw.shape))
        return f"<Heatmap of {self.image}: {self.title()}, {self.method} at {self.layer}, {size}, highest {self.evidence:.3g}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "origin": None}  # a model and its functions are not for a file of results

    @cached_property
    def values(self) -> Values:
        """(H, W) of the photograph, float32, in units of `raw`; NaN where the model never looked."""
        return self.view.place(self.raw)

    @property
    def evidence(self) -> float:
        """The raw map's maximum."""
        return float(self.raw.max())

    @cached_property
    def peak(self) -> tuple[int, int]:
        """(x, y) of the middle of the strongest cell, in photograph pixels."""
        return self.view.peak(self.raw)

    @property
    def per_pixel(self) -> bool:
        """Whether there is a value for each pixel of the model's input."""
        width, height = self.view.input
        return tuple(self.raw.shape) == (height, width)

    @property
    def style(self) -> str:
        """How the map is drawn when nobody says how: superpixels where it is made of some, faded where its cells are specks, else heat."""
        if SEGMENTS in self.details:
            return "superpixels"
        return "faded" if self.per_pixel or max(self.raw.shape) >= _FINE else "heat"

    def overlay(self, style: str | None = None, *, colormap: str | None = None) -> Image.Image:
        """The map on the photograph, at its full size.

        Args:
            style: heat, grey-photo, contours, spotlight, flat, faded or superpixels; `self.style` when left out.
            colormap: any name of matplotlib.
        """
        return _laid(self, self.photo, self.values, style, colormap)

    def panel(self, style: str | None = None, *, colormap: str | None = None) -> Image.Image:
        """Photograph, heat map and overlay beside each other, with caption and colour key; what else the method found below."""
        photo, values = self._small()
        colours = heat(values, self.scale, signed=self.signed, colormap=colormap)
        tiles = [
            Tile(marked(self._found(), self.mark, self.photo.size), "photograph", self._size_note()),
            Tile(hatch(colours, photo, values), "heat map"),
            Tile(_tile(self, style, colormap), "overlay"),
            *_compared_with([self]),
        ]
        rows = [tiles]
        if ERROR in self.details:
            error = self.details[ERROR]
            placed = dataclasses.replace(self.view, photo=photo.size).place(error)
            colours = heat(placed, self.scale, signed=self.signed, colormap=colormap)
            note = f"on the same scale, highest {float(error.max()):.3g}"
            tiles.append(Tile(hatch(colours, photo, placed), "standard error", note))
        if (curve := self.curve()) is not None:
            half = (curve.width // 2, curve.height // 2)
            rows.append([Tile(curve.resize(half, Image.Resampling.LANCZOS), "")])
        return sheet(
            rows,
            heading=f"{Path(self.image).name}: {self.title()}",
            captions=[*_says(self), self.caption(), *about_style([self], style), *about_signs([self])],
            warnings=self.warnings,
            keys=[key_of(self, colormap)],
        )

    def title(self) -> str:
        """The target and its probability, in a few words."""
        if self.probability is not None:
            return f"{self.label}, {percent(self.probability)}"
        if self.score is None or self.label.endswith(tuple(f"(now {one:.4g})" for one in (self.score, -self.score))):
            return self.label  # of a value that goes up or down the label has it
        return f"{self.label}, score {self.score:.3g}"

    def where(self) -> str:
        """The layer or layers, in words."""
        words = {ALL_LAYERS: ALL_LAYERS, INPUT: "the input"}
        return words.get(self.layer, f"layer {self.layer}")

    def asked(self) -> str:
        """The method with its options, and the layer, in words."""
        chosen = {name: value for name, value in self.details.items() if isinstance(value, int)}  # where 0 left it open
        options = ", ".join(f"{name} {chosen.get(name, value)}" for name, value in self._options().items())
        return f"{self.method}{f' ({options})' if options else ''} at {self.where()}"

    def grid(self) -> str:
        """What has a value, and whether the photograph is larger than that; in words."""
        width, height = self.view.input
        larger = any(whole > part for whole, part in zip(self.view.photo, self.view.resized, strict=True))
        if SEGMENTS in self.details:
            return f"{len(np.unique(self.details[SEGMENTS]))} superpixels of the model's {width}x{height} input"
        if self.per_pixel:
            return f"one value a pixel of the model's {width}x{height} input{', upsampled' if larger else ''}"
        return f"{self.raw.shape[0]}x{self.raw.shape[1]} grid, upsampled"

    def clip(self) -> str:
        """Where the colours end, in words, if that is below the strongest value; else nothing."""
        strongest = float(self.raw.flat[np.abs(self.raw).argmax()])
        if self.scale >= abs(strongest) * (1 - 1e-6):
            return ""
        share = float((np.abs(self.raw) <= self.scale * (1 + 1e-6)).mean())
        return (
            f"colours end at the {min(99.9, round(100 * share, 1)):.3g}th percentile; the strongest is {strongest:.3g}"
        )

    def caption(self) -> str:
        """Method, layer, grid and model, in one line."""
        clip = self.clip()
        return (
            f"{self.asked()} ({self.grid()}), model {self.model}, highest raw value {self.evidence:.3g}"
            f"{'; ' if clip else ''}{clip}"
        )

    def curve(self) -> Image.Image | None:
        """How alike the maps of two halves of the random masks are, with more and more of them; None where there were none."""
        found = self.details.get(CONVERGENCE)
        if found is None:
            return None
        line = Line(self.method, np.array(found["masks"], float), np.array(found["agreement"], float))
        note = "Correlation of the maps of two halves of the masks; 1: the same map. While it rises, more masks give another map."
        return curves(
            f"{self.method}: how far the map has settled", "masks shown to the model", note, [line], width=640
        )

    def trust(self, *, full: bool = False, seed: int = 0, progress: Progress | None = None) -> TrustCard:
        """How far to believe this map: deletion and insertion beside maps that know nothing, other methods, other classes, random weights.

        Args:
            full: every check at the papers' resolution, thousands of forwards; about 60 without.
            seed: of all that is random.
            progress: called with (done, about how many) pictures shown to the model.

        Raises:
            ModelError: the map has no model to ask, as after unpickling.
        """
        if not isinstance(seed, int) or seed < 0:
            raise MetricError(f"seed is {seed!r}; expected a whole number, 0 or more")
        origin = self._known_origin()
        raw, signed = self.raw.astype(np.float64), self.signed_raw.astype(np.float64)
        card = check(origin, raw, signed, full=full, seed=seed, progress=progress)
        return dataclasses.replace(
            card, warnings=self.warnings, title=self.title(), caption=self.caption(), overlay=_tile(self, None, None)
        )

    def measure(
        self, metrics: Sequence[str], *, mask: np.ndarray[Any, Any] | None = None, settings: Settings | None = None
    ) -> dict[str, Measured]:
        """Any metrics of this map (`sightline metrics`).

        Args:
            metrics: names.
            mask: (H, W) of the photograph, true where the object is, for metrics of place.
            settings: options of the metrics, such as {"deletion": {"step": 448}}.

        Raises:
            MetricError: no such metric or option, or a mask of another size.
        """
        chosen = check_metrics(metrics, settings or {})
        about, explain = asked_again(self._known_origin())
        placed = None
        if mask is not None:
            mask = as_mask(mask)
            placed = self.values.astype(np.float64)
        raw, signed = self.raw.astype(np.float64), self.signed_raw.astype(np.float64)
        one = case(raw, about, raw=signed, explain=explain, placed=placed, mask=mask)
        return run_metrics(chosen, one, settings or {})

    def _known_origin(self) -> Origin:
        if self.origin is None:
            raise ModelError(
                "this map no longer knows a model and one input to ask about again: it was stored, or joined of tiles or frames; explain "
                "the picture again"
            )
        return self.origin

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        style: str | None = None,
        colormap: str | None = None,
        force: bool = False,
    ) -> Path:
        """Writes overlay.png, panel.png, map.npy (the raw map), what its method found beside it, and manifest.json; all or nothing.

        Raises:
            OutputError: the folder exists (without `force`), is not one of ours, or can't be written.
        """
        return save([self], folder, style=style, colormap=colormap, force=force)

    def record(self, files: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One line of `--json` and of the manifest: target, method, layer, grid, evidence, peak, warnings, numbers beside it, files."""
        numbers = {name: _plain(value) for name, value in self.details.items() if name not in self._grids()}
        return {
            "target": {"index": self.index, "label": self.label},
            "method": self.method,
            "layer": self.layer,
            "grid": list(self.raw.shape),
            "evidence": self.evidence,
            "peak": {"x": self.peak[0], "y": self.peak[1]},
            "warnings": list(self.warnings),
            **({"options": self._options()} if self.options else {}),
            **({"details": numbers} if numbers else {}),
            "files": dict(files or {}),
        }

    def _options(self) -> dict[str, Any]:
        """The method's options as words and numbers; of an array its shape."""
        return {
            name: f"array {tuple(value.shape)}" if hasattr(value, "shape") else value
            for name, value in self.options.items()
        }

    def _grids(self) -> dict[str, np.ndarray[Any, Any]]:
        """What of the details is an array with rows and columns, for a file of its own."""
        return {
            name: value for name, value in self.details.items() if isinstance(value, np.ndarray) and value.ndim >= 2
        }

    def _repr_html_(self) -> str:
        return fragment(viewer([self]), self._small_overlay())

    def _repr_png_(self) -> bytes:
        return png(self.panel())

    def _small(self) -> tuple[Image.Image, Values]:
        """Photograph and values at a tile's size; a view holds for any size of the same photograph."""
        photo = fitted(self.photo)
        return photo, dataclasses.replace(self.view, photo=photo.size).place(self.raw)

    def _found(self) -> Image.Image:
        """The photograph at a tile's size, with the boxes that the model found, numbered."""
        boxes = [one.box for one in self.predictions if one.box is not None and one.probability >= _SHOWN]
        return numbered(self._small()[0], boxes, self.photo.size)

    def _small_overlay(self) -> Image.Image:
        return _tile(self, None, None)

    def _size_note(self) -> str:
        share = self.view.seen_share()
        unseen = f"; hatched: the {percent(1 - share)} that the model never saw" if share < 0.995 else ""
        return f"{self.photo.width} x {self.photo.height} px{unseen}"


def share_scale(heatmaps: Sequence[Heatmap]) -> list[Heatmap]:
    """The same maps on one scale, so that a weak one looks weak.

    Methods with a unit of their own have their own scale, and so has each layer: a value is per cell, and cells of another grid
    are of another size. At the input each method has its own: a value is per pixel, per square or per superpixel.
    """
    groups: dict[tuple[str, str], float] = {}
    for one in heatmaps:
        groups[_group(one)] = max(groups.get(_group(one), 0.0), one.scale)
    return [dataclasses.replace(one, scale=groups[_group(one)]) for one in heatmaps]


_ACROSS = 7  # tiles of a row; what is wider can't be looked at


def side_by_side(
    heatmaps: Sequence[Heatmap],
    style: str | None = None,
    *,
    colormap: str | None = None,
    same_scale: bool = True,
    agreements: Sequence[Any] = (),
) -> Image.Image:
    """Several maps in one picture: a row for each method, a column for each target, on one scale; how far they agree below."""
    if not heatmaps:
        raise OutputError("there is no map to draw")
    shown = share_scale(heatmaps) if same_scale else list(heatmaps)
    rows: dict[str, list[Tile]] = {}
    photos = {one.image for one in shown}
    # What differs between the maps stands above each, the rest below.
    one_target = len({(one.image, one.label, one.index) for one in shown}) == 1 and len(shown) > 1
    one_method = len({one.method for one in shown}) == 1
    for one in shown:
        how = f"at {one.layer}" if one_method else f"{one.method} at {one.layer}" if _layers(shown) > 1 else one.method
        title, note = (how, one.title()) if one_target else (one.title(), f"{one.method} at {one.layer}")
        clip = f"; colours end at {one.scale:.3g}" if one.clip() else ""
        tile = Tile(_tile(one, style, colormap), title, f"{note}, highest {one.evidence:.3g}{clip}")
        rows.setdefault(f"{one.image} {one.method} {one.layer}", []).append(tile)
    lines = list(rows.values())
    first = shown[0]
    if len(heatmaps) > 1 and all(len(line) == 1 for line in lines):  # one target, many maps: not a tower
        flat = [line[0] for line in lines]
        if len(photos) == 1:
            flat.insert(0, Tile(first._found(), "photograph", first._size_note()))
        lines = [flat[start : start + 4] for start in range(0, len(flat), 4)]
    elif len(photos) == 1:
        photo = first._found()
        lines[0].insert(0, Tile(photo, "photograph", first._size_note()))
        for line in lines[1:]:  # empty, so that the columns stay under each other
            line.insert(0, Tile(Image.new("RGB", photo.size, "white"), ""))
    lines[0] += _compared_with(shown)
    lines = [line[at : at + _ACROSS] for line in lines for at in range(0, len(line), _ACROSS)]
    return sheet(
        lines,
        heading=Path(first.image).name if len(photos) == 1 else f"{len(photos)} photographs",
        captions=[
            *(_says(first) if len(photos) == 1 else []),
            f"Model {first.model}; {_grids_of(shown)}; "
            + (
                f"maps in the same unit at one layer share one scale{_at_input(shown)}"
                if same_scale
                else "each map is stretched to its own maximum: strengths do not compare"
            ),
            *about_style(shown, style),
            *about_signs(shown),
        ],
        warnings=[*(one.flagged() for one in agreements), *cautions(shown)],
        keys=_keys(shown, same_scale, colormap),
    )


def viewer(heatmaps: Sequence[Heatmap], *, style: str | None = None) -> dict[str, Any]:
    """Maps of ONE photograph, as the interactive viewer takes them (see `render.viewer`).

    When no style is named, maps of single pixels begin on a grey photograph, the nearest that the viewer has to faded.
    """
    if not heatmaps:
        raise OutputError("there is no map to draw")
    first = heatmaps[0]
    photo = shrunk(first.photo)
    panes = [
        Pane(
            title=unicode_text(one.title()),
            note=unicode_text(f"{one.method} at {one.where()}, {one.grid()}{'; ' if one.clip() else ''}{one.clip()}"),
            unit=_unit(one),
            raw=one.raw,
            scale=one.scale,
            group=" ".join(_group(one)),
            signed=one.signed,
            mark=outlined(one.mark, one.photo.size),
        )
        for one in heatmaps
    ]
    start = style or ("grey-photo" if all(one.style == "faded" for one in heatmaps) else "heat")
    return viewer_data(photo, dataclasses.replace(first.view, photo=photo.size), panes, style=start)


def save(
    heatmaps: Sequence[Heatmap],
    folder: str | os.PathLike[str],
    *,
    style: str | None = None,
    colormap: str | None = None,
    force: bool = False,
    same_scale: bool = True,
    cards: Sequence[TrustCard] = (),
    agreements: Sequence[Any] = (),
) -> Path:
    """Writes the maps of ONE photograph into a new folder: an overlay and a raw map each, one panel, the manifest last.

    With `cards`, one a map, also trust.png and trust.json; with `agreements`, as `sightline.agreement` gives them for each
    target, agreement.png. What a method found beside its map stands in files of its own. The folder appears complete or
    not at all.
    """
    folder = Path(folder)
    shown = share_scale(heatmaps) if same_scale else list(heatmaps)
    if not shown:
        raise OutputError("there is no map to save")
    if cards and len(cards) != len(shown):
        raise OutputError(f"{len(cards)} trust cards for {len(shown)} maps; give one each, or none")
    with whole_folder(folder, force) as place:
        records = []
        for number, (one, files) in enumerate(zip(shown, file_names(shown, bool(cards)), strict=True), 1):
            about = PngImagePlugin.PngInfo()
            about.add_itxt("Description", unicode_text(f"{one.title()}: {one.caption()}"))
            one.overlay(style, colormap=colormap).save(place / files["overlay"], pnginfo=about, compress_level=2)
            np.save(place / files["map"], one.raw, allow_pickle=False)
            for name, values in one._grids().items():
                np.save(place / files[name], values, allow_pickle=False)
            if (curve := one.curve()) is not None:
                curve.save(place / files["curve"])
            if cards:
                cards[number - 1].panel().save(place / files["trust"])
                text = json.dumps(cards[number - 1].record(), indent=1, ensure_ascii=False, allow_nan=False)
                (place / files["trust"]).with_suffix(".json").write_text(unicode_text(text), encoding="utf-8")
            records.append(one.record(files))
        for one, name in zip(agreements, agreement_names(agreements), strict=True):
            one.picture().save(place / name)
        panel = (
            shown[0].panel(style, colormap=colormap)
            if len(shown) == 1
            else side_by_side(shown, style, colormap=colormap, same_scale=same_scale, agreements=agreements)
        )
        panel.save(place / "panel.png")
        write_manifest(place, manifest(shown, records, agreements))
    return folder


def file_names(shown: Sequence[Heatmap], trust: bool) -> list[dict[str, str]]:
    """The files of each map of a bundle, numbered when there are several; the panel is shared."""
    found = []
    for number, one in enumerate(shown, 1):
        suffix = f"-{number}" if len(shown) > 1 else ""
        files = {"overlay": f"overlay{suffix}.png", "panel": "panel.png", "map": f"map{suffix}.npy"}
        files |= {"trust": f"trust{suffix}.png"} if trust else {}
        files |= {name: f"{name.replace(' ', '-')}{suffix}.npy" for name in one._grids()}
        files |= {"curve": f"curve{suffix}.png"} if CONVERGENCE in one.details else {}
        found.append(files)
    return found


def agreement_names(agreements: Sequence[Any]) -> list[str]:
    """The picture of each agreement of a bundle, numbered when there are several."""
    return [f"agreement{f'-{number}' if len(agreements) > 1 else ''}.png" for number in range(1, len(agreements) + 1)]


def manifest(
    heatmaps: Sequence[Heatmap], records: Sequence[Mapping[str, Any]], agreements: Sequence[Any] = ()
) -> dict[str, Any]:
    """What a bundle holds and how it came about."""
    first = heatmaps[0]
    return {
        "schema": SCHEMA,
        "image": Path(first.image).name,
        "size": {"width": first.photo.width, "height": first.photo.height},
        "predictions": [one.record() for one in first.predictions],
        "maps": [
            {
                **record,
                "score": one.score,
                "scale": one.scale,
                **({"clip": one.clip()} if one.clip() else {}),
                "layer_reason": one.layer_reason,
                "signed": one.signed,
            }
            for one, record in zip(heatmaps, records, strict=True)
        ],
        **({"agreement": agreement_records(agreements)} if agreements else {}),
        "model": {"name": first.model, **first.provenance},
        "view": dataclasses.asdict(first.view),
    }


def agreement_records(agreements: Sequence[Any]) -> list[dict[str, Any]]:
    """What the manifest and `--json` say of each agreement, with the name of its picture."""
    names = agreement_names(agreements)
    return [{**one.record(), "files": {"picture": name}} for one, name in zip(agreements, names, strict=True)]


def _plain(value: Any) -> Any:
    """A number or a list of numbers as JSON has them, None for what is not finite; words as they are."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _layers(heatmaps: Sequence[Heatmap]) -> int:
    return len({one.layer for one in heatmaps})


def _says(one: Heatmap) -> list[str]:
    """What the model says, and the whole answer of which a word is explained."""
    answer = one.mark.text if one.mark is not None else ""
    if answer:
        return [f'The model answers: "{answer}"']
    says = ", ".join(said.said() for said in one.predictions[:3])
    return [f"The model says: {says}"] if says else []


def _compared_with(shown: Sequence[Heatmap]) -> list[Tile]:
    """The other pictures that targets are about."""
    found = {id(one.mark.picture): one for one in shown if one.mark is not None and one.mark.picture is not None}
    return [
        Tile(fitted(one.mark.picture), "compared with", one.label)
        for one in found.values()
        if one.mark and one.mark.picture
    ]


def about_style(shown: Sequence[Heatmap], style: str | None) -> list[str]:
    """What must be known of the styles in which these maps are drawn."""
    says = {
        "faded": "where the photograph is grey it is faded to the key's colour for 0, so that single pixels show",
        "superpixels": f"in colour: up to {FILLED} superpixels for and {FILLED} against that reach a tenth of the key's end; the others are grey",
        "contours": "lines at 25, 50 and 75 % of the key's highest value",
        "spotlight": "the overlay's brightness follows the strength of the value, whatever its sign",
    }
    used = {style or one.style: None for one in shown}
    return [says[each] for each in used if each in says]


def about_signs(shown: Sequence[Heatmap]) -> list[str]:
    """What the two colours of signed maps mean; read from the registry, because it is the method's."""
    from sightline.methods.registry import list_methods

    known = list_methods()
    signed = {one.method for one in shown if one.signed}
    if not signed:
        return []
    blind = {name for name in signed if name in known and not known[name].class_specific}
    said = []
    if signed - blind:
        said.append("red raises the score, blue lowers it")
    if blind:
        said.append(
            f"{', '.join(sorted(blind))}: red and blue are two opposite patterns and speak neither for nor against a class"
        )
    return ["; ".join(said)]


def _group(one: Heatmap) -> tuple[str, str]:
    """What can share a scale."""
    return ("score" if one.unit == "score" and one.layer != INPUT else one.method), one.layer


def _grids_of(shown: Sequence[Heatmap]) -> str:
    """The grids of several maps, each once."""
    coarse = sorted({f"{one.raw.shape[0]}x{one.raw.shape[1]}" for one in shown if one.style == "heat"})
    words = [f"grid {' and '.join(coarse)}, upsampled"] if coarse else []
    return "; ".join([*words, *dict.fromkeys(one.grid() for one in shown if one.style != "heat")])


def _at_input(shown: Sequence[Heatmap]) -> str:
    """That methods have nothing in common there, where several show it."""
    several = len({one.method for one in shown if one.layer == INPUT}) > 1
    return ", at the input those of one method" if several else ""


def _keys(shown: Sequence[Heatmap], same_scale: bool, colormap: str | None) -> list[Key]:
    found = {((*_group(one), one.signed) if same_scale else id(one)): one for one in shown}
    if len(found) <= 3:
        return [key_of(one, colormap) for one in found.values()]
    end = "value at which colours end" if any(one.clip() for one in shown) else "highest value"
    label = f"share of the {end}" + (", one for each method's unit and layer" if same_scale else ", one for each map")
    return [
        Key(-1.0 if signed else 0.0, 1.0, label, signed, colormap) for signed in sorted({one.signed for one in shown})
    ]


_DOUBTS = ("ask for more", "too few", "believe", "nearly empty", "no evidence", "hidden", "left out", "poor likeness")


def cautions(shown: Sequence[Heatmap], most: int = 10) -> list[str]:
    """What is said of all maps, then what is said of some, with their names; not endless."""
    said: dict[str, list[Heatmap]] = {}
    for one in shown:
        for warning in one.warnings:
            said.setdefault(warning, []).append(one)
    general = [warning for warning, about in said.items() if len(about) == len(shown)]
    layers = _layers(shown) > 1
    targets = len({(one.label, one.index) for one in shown}) > 1

    def place(one: Heatmap) -> str:
        words = [one.method, *([f"at {one.where()}"] if layers else []), *([f"for {one.label}"] if targets else [])]
        return " ".join(words)

    special = []
    for warning, about in said.items():
        if len(about) == len(shown):
            continue
        places = list(dict.fromkeys(place(one) for one in about))
        by = about[0].method
        everywhere = [one for one in shown if one.method == by] == about
        if (everywhere and warning.startswith(by)) or " the same map here" in warning:
            special.append(warning)
        else:
            rest = f" and {len(places) - 3} more" if len(places) > 3 else ""
            special.append(f"{warning} ({', '.join(places[:3])}{rest})")
    # What asks for more, or for less belief, before what is merely stated.
    found = general + sorted(special, key=lambda one: not any(word in one for word in _DOUBTS))
    more = [f"and {len(found) - most} more, in manifest.json"] if len(found) > most else []
    return found[:most] + more


def _unit(one: Heatmap) -> str:
    if one.unit != "score":
        return f"in the own unit of {one.method}"
    of = "superpixel" if SEGMENTS in one.details else "pixel" if one.per_pixel else "cell"
    return _UNITS.get(one.method, f"in units of the score, per {of}")


def key_of(one: Heatmap, colormap: str | None, *, clip: bool = True) -> Key:
    """The colour key of one map; without `clip` it doesn't say where its colours end, because something else does."""
    ends = one.clip() if clip else ""
    label = f"{_unit(one)}{'; ' if ends else ''}{ends}"
    return Key(-one.scale if one.signed else 0.0, one.scale, label, one.signed, colormap)


def _tile(one: Heatmap, style: str | None, colormap: str | None) -> Image.Image:
    return _laid(one, *one._small(), style, colormap)


def _laid(one: Heatmap, photo: Image.Image, values: Values, style: str | None, colormap: str | None) -> Image.Image:
    """The map on a photograph of any size, its values placed on that."""
    style = style or one.style
    pieces = _superpixels(one, photo.size) if style == "superpixels" else None
    drawn = overlay(photo, values, one.scale, style=style, signed=one.signed, colormap=colormap, superpixels=pieces)
    return marked(drawn, one.mark, one.photo.size)


def _superpixels(one: Heatmap, size: tuple[int, int]) -> Superpixels:
    """The pieces of a photograph of this size, each with the mean of the map over it."""
    if SEGMENTS not in one.details:
        raise MethodError(
            f"{one.method} has no superpixels to draw; {' and '.join(OF_SUPERPIXELS)} have. Choose another style"
        )
    segments = one.details[SEGMENTS]
    counts = np.bincount(segments.ravel())
    values = np.bincount(segments.ravel(), one.raw.ravel().astype(np.float64)) / np.maximum(counts, 1)
    return Superpixels(dataclasses.replace(one.view, photo=size).place_labels(segments), values)
