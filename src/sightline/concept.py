"""`concepts`: what a layer sees in a photograph, as a few coloured parts, each with the classes it speaks for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.bundle import png, whole_folder, write_manifest
from sightline.heatmap import Prediction
from sightline.models.view import View
from sightline.render.overlay import Values, hatch
from sightline.render.panel import Tile, fitted, percent, sheet

SCHEMA = "sightline.concepts/1"
# Okabe and Ito's colours, told apart by colour-blind people too; more concepts start again.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))


@dataclass(frozen=True)
class Evoked:
    """A class, and by how much its logit rises when the layer says one concept and nothing else."""

    index: int
    label: str
    rise: float


@dataclass(frozen=True, eq=False)
class Concepts:
    """A layer's activations on one photograph as k concepts (deep feature factorisation), the strongest first.

    Attributes:
        maps: (k, h, w) float32, how present each concept is; not negative.
        directions: (k, C) float32, its channels, of length 1; not negative.
        evoked: for each concept the classes whose logits it raises most when it is alone.
        missing: the share of the activations (by length) that the concepts leave out, 0 to 1.
        photo: the photograph, upright RGB.
        view: how it became the model's input.
        image: what to call the photograph.
        layer: where the activations were taken.
        predictions: what the model says, most probable first.
        model: its name; `provenance` where its weights come from.
        warnings: what limits the result, in sentences.
    """

    maps: Values
    directions: Values
    evoked: tuple[tuple[Evoked, ...], ...]
    missing: float
    photo: Image.Image
    view: View
    image: str
    layer: str
    predictions: tuple[Prediction, ...]
    model: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def panel(self) -> Image.Image:
        """All concepts in their colours on the photograph, and each on its own with its classes."""
        photo = fitted(self.photo)
        view = dataclasses.replace(self.view, photo=photo.size)
        placed = [view.place(one / one.max() if one.max() > 0 else one) for one in self.maps]
        tiles = [
            Tile(photo, "photograph"),
            Tile(_painted(photo, placed), "each place in the colour of its strongest concept"),
        ]
        for number, (one, classes) in enumerate(zip(placed, self.evoked, strict=True)):
            says = ", ".join(f"{evoked.label} {evoked.rise:+.2g}" for evoked in classes) or "no class"
            tiles.append(Tile(_painted(photo, [one], number), f"concept {number + 1}", f"alone it raises: {says}"))
        says = ", ".join(one.said() for one in self.predictions[:3])
        grid = f"{self.maps.shape[1]}x{self.maps.shape[2]}"
        return sheet(
            [tiles[start : start + 3] for start in range(0, len(tiles), 3)],
            heading=f"{len(self.maps)} concepts in {Path(self.image).name}",
            captions=[
                f"The model says: {says}",
                f"deep feature factorisation of layer {self.layer} ({grid} grid, upsampled), model {self.model}; "
                f"the concepts leave out {percent(self.missing)} of the activations; rises are in logits",
            ],
            warnings=self.warnings,
            keys=[],
        )

    def record(self) -> dict[str, Any]:
        """What the manifest and `--json` say."""
        return {
            "image": Path(self.image).name,
            "size": {"width": self.photo.width, "height": self.photo.height},
            "predictions": [one.record() for one in self.predictions],
            "layer": self.layer,
            "grid": list(self.maps.shape[1:]),
            "missing": self.missing,
            "concepts": [[dataclasses.asdict(one) for one in classes] for classes in self.evoked],
            "warnings": list(self.warnings),
            "model": {"name": self.model, **self.provenance},
        }

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Writes panel.png, maps.npy, directions.npy and manifest.json; all of it or nothing.

        Raises:
            OutputError: the folder exists (without `force`), is not one of ours, or can't be written.
        """
        folder = Path(folder)
        with whole_folder(folder, force) as place:
            self.panel().save(place / "panel.png")
            np.save(place / "maps.npy", self.maps, allow_pickle=False)
            np.save(place / "directions.npy", self.directions, allow_pickle=False)
            write_manifest(place, {"schema": SCHEMA, **self.record()})
        return folder

    def _repr_png_(self) -> bytes:
        return png(self.panel())


def _painted(photo: Image.Image, placed: Sequence[Values], first: int = 0) -> Image.Image:
    """Each place of a grey photograph in the colour of its strongest concept, as strong as that is."""
    stack = np.nan_to_num(np.stack(placed))
    winner, strength = stack.argmax(axis=0), stack.max(axis=0)
    colours = np.array([_COLOURS[(first + index) % len(_COLOURS)] for index in range(len(placed))], np.uint8)
    grey = photo.convert("L").convert("RGB")
    mask = Image.fromarray(np.rint(np.clip(strength, 0, 1) * 217).astype(np.uint8))
    return hatch(Image.composite(Image.fromarray(colours[winner]), grey, mask), photo, placed[0])
