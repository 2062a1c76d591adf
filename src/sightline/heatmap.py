"""`Heatmap`: the raw map, the same on the photograph, and all that a person must know to read it."""

from __future__ import annotations

import dataclasses
import json
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
from sightline.engine.probe import Progress
from sightline.errors import MetricError, ModelError, OutputError
from sightline.metrics.case import case
from sightline.metrics.measure import Settings, as_mask, asked_again, check_metrics, run_metrics
from sightline.metrics.registry import Measured
from sightline.models.adapter import INPUT
from sightline.models.view import View
from sightline.render.overlay import Values, hatch, heat, overlay
from sightline.render.panel import Key, Tile, fitted, percent, sheet
from sightline.render.viewer import Pane, fragment, shrunk, viewer_data
from sightline.trust import TrustCard, check

SCHEMA = "sightline.bundle/1"
# The layer of methods that look at the whole network.
ALL_LAYERS = "all layers"


@dataclass(frozen=True)
class Prediction:
    """One class that the model named, with its probability in 0..1."""

    index: int
    label: str
    probability: float


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
        warnings: what limits this map, in sentences.
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
    warnings: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, repr=False)

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
        """(x, y) of the strongest place, in photograph pixels."""
        y, x = np.unravel_index(np.nanargmax(self.values), self.values.shape)
        return int(x), int(y)

    def overlay(self, style: str = "heat", *, colormap: str | None = None) -> Image.Image:
        """The map on the photograph, at its full size; styles: heat, grey-photo, contours, spotlight, flat."""
        return overlay(self.photo, self.values, self.scale, style=style, signed=self.signed, colormap=colormap)

    def panel(self, style: str = "heat", *, colormap: str | None = None) -> Image.Image:
        """Photograph, heat map and overlay beside each other, with caption and colour key."""
        photo, values = self._small()
        colours = heat(values, self.scale, signed=self.signed, colormap=colormap)
        tiles = [
            Tile(photo, "photograph", self._size_note()),
            Tile(hatch(colours, photo, values), "heat map"),
            Tile(_tile(self, style, colormap), "overlay"),
        ]
        says = ", ".join(f"{one.label} {percent(one.probability)}" for one in self.predictions[:3])
        return sheet(
            [tiles],
            heading=f"{Path(self.image).name}: {self.title()}",
            captions=[f"The model says: {says}", self.caption(), *_about_style(style), *_about_signs([self])],
            warnings=self.warnings,
            keys=[_key(self, colormap)],
        )

    def title(self) -> str:
        """The target and its probability, in a few words."""
        if self.probability is not None:
            return f"{self.label}, {percent(self.probability)}"
        return self.label if self.score is None else f"{self.label}, score {self.score:.3g}"

    def where(self) -> str:
        """The layer or layers, in words."""
        words = {ALL_LAYERS: ALL_LAYERS, INPUT: "the input"}
        return words.get(self.layer, f"layer {self.layer}")

    def caption(self) -> str:
        """Method, layer, grid and model, in one line."""
        grid = f"{self.raw.shape[0]}x{self.raw.shape[1]} grid, upsampled"
        return f"{self.method} at {self.where()} ({grid}), model {self.model}, highest raw value {self.evidence:.3g}"

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
            card, warnings=self.warnings, title=self.title(), caption=self.caption(), overlay=_tile(self, "heat", None)
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
            raise ModelError("this map no longer knows its model (it was stored); explain the picture again")
        return self.origin

    def save(
        self, folder: str | os.PathLike[str], *, style: str = "heat", colormap: str | None = None, force: bool = False
    ) -> Path:
        """Writes overlay.png, panel.png, map.npy (the raw map) and manifest.json; all of it or nothing.

        Raises:
            OutputError: the folder exists (without `force`), is not one of ours, or can't be written.
        """
        return save([self], folder, style=style, colormap=colormap, force=force)

    def record(self, files: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One line of `--json` and of the manifest: target, method, layer, grid, evidence, peak, warnings, files."""
        return {
            "target": {"index": self.index, "label": self.label},
            "method": self.method,
            "layer": self.layer,
            "grid": list(self.raw.shape),
            "evidence": self.evidence,
            "peak": {"x": self.peak[0], "y": self.peak[1]},
            "warnings": list(self.warnings),
            "files": dict(files or {}),
        }

    def _repr_html_(self) -> str:
        return fragment(viewer([self]), self._small_overlay())

    def _repr_png_(self) -> bytes:
        return png(self.panel())

    def _small(self) -> tuple[Image.Image, Values]:
        """Photograph and values at a tile's size; a view holds for any size of the same photograph."""
        photo = fitted(self.photo)
        return photo, dataclasses.replace(self.view, photo=photo.size).place(self.raw)

    def _small_overlay(self) -> Image.Image:
        photo, values = self._small()
        return overlay(photo, values, self.scale, signed=self.signed)

    def _size_note(self) -> str:
        share = self.view.seen_share()
        unseen = f"; hatched: the {percent(1 - share)} that the model never saw" if share < 0.995 else ""
        return f"{self.photo.width} x {self.photo.height} px{unseen}"


def share_scale(heatmaps: Sequence[Heatmap]) -> list[Heatmap]:
    """The same maps on one scale, so that a weak one looks weak.

    Methods with a unit of their own have their own scale, and so has each layer: a value is per cell, and cells of another grid
    are of another size.
    """
    groups: dict[tuple[str, str], float] = {}
    for one in heatmaps:
        groups[_group(one)] = max(groups.get(_group(one), 0.0), one.scale)
    return [dataclasses.replace(one, scale=groups[_group(one)]) for one in heatmaps]


def side_by_side(
    heatmaps: Sequence[Heatmap], style: str = "heat", *, colormap: str | None = None, same_scale: bool = True
) -> Image.Image:
    """Several maps in one picture: a row for each method, a column for each target, on one scale."""
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
        tile = Tile(_tile(one, style, colormap), title, f"{note}, highest {one.evidence:.3g}")
        rows.setdefault(f"{one.image} {one.method} {one.layer}", []).append(tile)
    lines = list(rows.values())
    first = shown[0]
    if len(heatmaps) > 3 and all(len(line) == 1 for line in lines):  # one target, many maps: not a tower
        flat = [line[0] for line in lines]
        if len(photos) == 1:
            flat.insert(0, Tile(first._small()[0], "photograph", first._size_note()))
        lines = [flat[start : start + 4] for start in range(0, len(flat), 4)]
    elif len(photos) == 1:
        photo = first._small()[0]
        lines[0].insert(0, Tile(photo, "photograph", first._size_note()))
        for line in lines[1:]:  # empty, so that the columns stay under each other
            line.insert(0, Tile(Image.new("RGB", photo.size, "white"), ""))
    says = ", ".join(f"{one.label} {percent(one.probability)}" for one in first.predictions[:3])
    grids = sorted({f"{one.raw.shape[0]}x{one.raw.shape[1]}" for one in shown})
    return sheet(
        lines,
        heading=Path(first.image).name if len(photos) == 1 else f"{len(photos)} photographs",
        captions=[
            *([f"The model says: {says}"] if len(photos) == 1 else []),
            f"Model {first.model}; grid {' and '.join(grids)}, upsampled; "
            + (
                "maps in the same unit at one layer share one scale"
                if same_scale
                else "each map is stretched to its own maximum: strengths do not compare"
            ),
            *_about_style(style),
            *_about_signs(shown),
        ],
        warnings=cautions(shown),
        keys=_keys(shown, same_scale, colormap),
    )


def viewer(heatmaps: Sequence[Heatmap], *, style: str = "heat") -> dict[str, Any]:
    """Maps of ONE photograph, as the interactive viewer takes them (see `render.viewer`)."""
    if not heatmaps:
        raise OutputError("there is no map to draw")
    first = heatmaps[0]
    photo = shrunk(first.photo)
    panes = [
        Pane(
            title=unicode_text(one.title()),
            note=unicode_text(f"{one.method} at {one.where()}, {one.raw.shape[0]}x{one.raw.shape[1]} grid, upsampled"),
            unit=_unit(one),
            raw=one.raw,
            scale=one.scale,
            group=" ".join(_group(one)),
            signed=one.signed,
        )
        for one in heatmaps
    ]
    return viewer_data(photo, dataclasses.replace(first.view, photo=photo.size), panes, style=style)


def save(
    heatmaps: Sequence[Heatmap],
    folder: str | os.PathLike[str],
    *,
    style: str = "heat",
    colormap: str | None = None,
    force: bool = False,
    same_scale: bool = True,
    cards: Sequence[TrustCard] = (),
) -> Path:
    """Writes the maps of ONE photograph into a new folder: an overlay and a raw map each, one panel, the manifest last.

    With `cards`, one a map, also trust.png and trust.json. The folder appears complete or not at all.
    """
    folder = Path(folder)
    shown = share_scale(heatmaps) if same_scale else list(heatmaps)
    if not shown:
        raise OutputError("there is no map to save")
    if cards and len(cards) != len(shown):
        raise OutputError(f"{len(cards)} trust cards for {len(shown)} maps; give one each, or none")
    with whole_folder(folder, force) as place:
        records = []
        for number, one in enumerate(shown, 1):
            files = file_names(number, len(shown))
            about = PngImagePlugin.PngInfo()
            about.add_itxt("Description", unicode_text(f"{one.title()}: {one.caption()}"))
            one.overlay(style, colormap=colormap).save(place / files["overlay"], pnginfo=about, compress_level=2)
            np.save(place / files["map"], one.raw, allow_pickle=False)
            if cards:
                cards[number - 1].panel().save(place / files["trust"])
                text = json.dumps(cards[number - 1].record(), indent=1, ensure_ascii=False, allow_nan=False)
                (place / files["trust"]).with_suffix(".json").write_text(unicode_text(text), encoding="utf-8")
            records.append(one.record({kind: name for kind, name in files.items() if kind != "trust" or cards}))
        panel = (
            shown[0].panel(style, colormap=colormap)
            if len(shown) == 1
            else side_by_side(shown, style, colormap=colormap, same_scale=same_scale)
        )
        panel.save(place / "panel.png")
        write_manifest(place, manifest(shown, records))
    return folder


def file_names(number: int, count: int) -> dict[str, str]:
    """The files of one map of a bundle, numbered when there are several; the panel is shared, trust.png there only if asked for."""
    suffix = f"-{number}" if count > 1 else ""
    return {
        "overlay": f"overlay{suffix}.png",
        "panel": "panel.png",
        "map": f"map{suffix}.npy",
        "trust": f"trust{suffix}.png",
    }


def manifest(heatmaps: Sequence[Heatmap], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a bundle holds and how it came about."""
    first = heatmaps[0]
    return {
        "schema": SCHEMA,
        "image": Path(first.image).name,
        "size": {"width": first.photo.width, "height": first.photo.height},
        "predictions": [dataclasses.asdict(one) for one in first.predictions],
        "maps": [
            {**record, "score": one.score, "scale": one.scale, "layer_reason": one.layer_reason, "signed": one.signed}
            for one, record in zip(heatmaps, records, strict=True)
        ],
        "model": {"name": first.model, **first.provenance},
        "view": dataclasses.asdict(first.view),
    }


def _layers(heatmaps: Sequence[Heatmap]) -> int:
    return len({one.layer for one in heatmaps})


def _about_style(style: str) -> list[str]:
    says = {
        "contours": "lines at 25, 50 and 75 % of the key's highest value",
        "spotlight": "the overlay's brightness follows the strength of the value, whatever its sign",
    }
    return [says[style]] if style in says else []


def _about_signs(shown: Sequence[Heatmap]) -> list[str]:
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
    return ("score" if one.unit == "score" else one.method), one.layer


def _keys(shown: Sequence[Heatmap], same_scale: bool, colormap: str | None) -> list[Key]:
    found = {((*_group(one), one.signed) if same_scale else id(one)): one for one in shown}
    if len(found) <= 3:
        return [_key(one, colormap) for one in found.values()]
    label = "share of the highest value" + (
        ", one for each method's unit and layer" if same_scale else ", one for each map"
    )
    return [
        Key(-1.0 if signed else 0.0, 1.0, label, signed, colormap) for signed in sorted({one.signed for one in shown})
    ]


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
    found = general + special
    more = [f"and {len(found) - most} more, in manifest.json"] if len(found) > most else []
    return found[:most] + more


def _unit(one: Heatmap) -> str:
    return "in units of the score, per cell" if one.unit == "score" else f"in the own unit of {one.method}"


def _key(one: Heatmap, colormap: str | None) -> Key:
    return Key(-one.scale if one.signed else 0.0, one.scale, _unit(one), one.signed, colormap)


def _tile(one: Heatmap, style: str, colormap: str | None) -> Image.Image:
    photo, values = one._small()
    return overlay(photo, values, one.scale, style=style, signed=one.signed, colormap=colormap)
