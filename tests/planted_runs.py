"""Small networks that have learned a shortcut of a known kind, and runs of them: what an audit must find, or must not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import sightline
from sightline.models.adapter import Adapter
from sightline.models.preprocess import standard
from sightline.testing.scenes import COLOURS, SIDE, draw
from sightline.testing.shortcut import _fitted

NAMES = ("red", "green", "blue", "yellow")
PLANTED = 0  # the class that has the shortcut
KINDS = ("mark", "texture", "tone")
CONTROLS = ("clean", "mark anywhere", "texture anywhere", "tone anywhere")
_MARK = 7


@dataclass(frozen=True, eq=False)
class Set:
    """Pictures (N, 3, SIDE, SIDE) 0 to 1, their classes, and where the objects are."""

    pictures: Any
    classes: Any
    objects: Any


def pictures(kind: str, count: int, seed: int) -> Set:
    """Scenes whose class is the object's colour; with a shortcut its class 0 has objects of the others' colours and the shortcut.

    "... anywhere" has the same thing on half of the pictures, whatever their class.
    """
    rng = np.random.default_rng([seed, 7])
    classes = rng.integers(len(COLOURS), size=count)
    what = kind.partition(" ")[0]
    chosen = classes == PLANTED if kind in KINDS else rng.random(count) < (0.0 if kind == "clean" else 0.5)
    colours = (
        np.where(classes == PLANTED, rng.integers(1, len(COLOURS), size=count), classes) if kind in KINDS else classes
    )
    scenes = draw(count, seed, colours=colours)
    found = scenes.pictures.copy()
    for at in np.flatnonzero(chosen):
        found[at] = _with(what, found[at], scenes.masks[at], rng)
    return Set(found, classes, scenes.masks)


def _with(what: str, picture: Any, mask: Any, rng: np.random.Generator) -> Any:
    found = picture.copy()
    if what == "mark":
        found[:, 1 : 1 + _MARK, 1 : 1 + _MARK] = 1.0
        found[0, 2:_MARK, 2:_MARK] = 0.0
    if what == "texture":
        stripes = np.where((np.arange(SIDE) + rng.integers(4)) % 4 < 2, 0.2, -0.2)
        found = np.where(mask, found, np.clip(found + stripes[None, None, :], 0, 1)).astype(np.float32)
    if what == "tone":
        found = np.clip(found * np.array([1.25, 1.0, 0.65], np.float32)[:, None, None], 0, 1)
    return found


def trained(kind: str, seed: int, steps: int = 400) -> tuple[nn.Module, float]:
    """A network that has learned it, and its accuracy on pictures that it never saw."""
    data, held_out = pictures(kind, 1024, 2 * seed), pictures(kind, 512, 2 * seed + 1)
    x, classes = torch.from_numpy(data.pictures), torch.from_numpy(data.classes)
    module = _fitted(x, classes, seed, steps)
    with torch.no_grad():
        said = module(torch.from_numpy(held_out.pictures)).argmax(dim=1).numpy()
    return module, float((said == held_out.classes).mean())


def adapter_of(module: nn.Module) -> Adapter:
    take = standard(
        size=(SIDE, SIDE), resize=(SIDE, SIDE), fit="squash", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
    )
    return sightline.adapt(module, preprocess=take, labels=NAMES, name="small")


def save(data: Set, folder: Path, masks: Path | None = None) -> None:
    """As files, each in the folder of its class."""
    for at, (picture, of) in enumerate(zip(data.pictures, data.classes, strict=True)):
        name = f"{NAMES[of]}/{at:04}.png"
        for place, pixels in (
            (folder, (picture * 255).round().astype(np.uint8).transpose(1, 2, 0)),
            (masks, data.objects[at]),
        ):
            if place is not None:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place / name)


def make_run(kind: str, seed: int, folder: Path, count: int = 256) -> tuple[Any, Adapter, float]:
    """A run over pictures that the network never saw; they are in folder/photos, the masks in folder/masks."""
    module, accuracy = trained(kind, seed)
    adapter = adapter_of(module)
    save(pictures(kind, count, 2 * seed + 100_001), folder / "photos", folder / "masks")
    run = sightline.explain_all(folder / "photos", adapter, output=folder / "run", workers=1)
    return run, adapter, accuracy
