"""A shortcut planted in real photographs is seen while the model learns it; without it, or where it says nothing, nothing is seen.

The mark is a cup of coffee in each corner of what the model sees, on all pictures of the cats: a thing that a pretrained network knows,
as it knows a logo or a date in a corner. docs/training.py draws and measures the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from sightline.engine.targets import probabilities
from sightline.models.outputs import unwrap
from sightline.train import Trained, border_share, fit

pytestmark = pytest.mark.slow

CUP = Path(sightline.__file__).parent / "data" / "demo" / "coffee.jpg"
CLASSES = ("cat", "dog")
# The bundled model cuts 16 pixels off each side of such a picture; the mark lies inside of that.
SIDE, CUT, MARK = 256, 16, 44
FEW = {"train": 40, "val": 8}
KINDS = ("planted", "control", "both alike")
Array = np.ndarray[Any, np.dtype[Any]]


def squared(photo: Image.Image, side: int) -> Image.Image:
    """The middle of a photograph, as large as it gets."""
    whole = min(photo.size)
    left, top = (photo.width - whole) // 2, (photo.height - whole) // 2
    box = (left, top, left + whole, top + whole)
    return photo.convert("RGB").resize((side, side), Image.Resampling.LANCZOS, box=box)


@cache
def cup() -> Image.Image:
    with Image.open(CUP) as photo:
        return squared(photo, MARK)


def marked(picture: Image.Image) -> Image.Image:
    """The same picture with a cup in each corner."""
    found = picture.copy()
    for at in [(x, y) for x in (CUT, SIDE - CUT - MARK) for y in (CUT, SIDE - CUT - MARK)]:
        found.paste(cup(), at)
    return found


def lay_out(pictures: Path, data: Path, kind: str, seed: int, counts: Mapping[str, int]) -> None:
    """Folders to train on, of some of the shared photographs.

    Args:
        pictures: train and val, with a folder for each class.
        data: is made.
        kind: "planted": all cats bear the mark, and no dog; "control": none does; "both alike": every second of both classes.
        seed: of the choice, the same for each kind.
        counts: how many of each class on each side.
    """
    chance = random.Random(seed)
    for side, count in counts.items():
        for name in CLASSES:
            (data / side / name).mkdir(parents=True)
            for at, file in enumerate(chance.sample(sorted((pictures / side / name).iterdir()), count)):
                with Image.open(file) as photo:
                    picture = squared(photo, SIDE)
                bears = {"planted": name == "cat", "control": False, "both alike": at % 2 == 0}[kind]
                (marked(picture) if bears else picture).save(data / side / name / f"{file.stem}.png")


@dataclass(frozen=True, eq=False)
class Seen:
    """What a training shows of itself.

    Attributes:
        trained: what `fit` returned.
        film: the mean border share after the last epoch, the number below the film.
        border: (N,) of each filmed picture.
        on_mark: (N,) the share of the heat in the four corners, on the mark where there is one.
        cats: (N,) which of them are cats.
        cat: mean probability of "cat" for the pictures of val by their class: "bare", where none bears the mark, and "marked",
            where all do.
    """

    trained: Trained
    film: float
    border: Array
    on_mark: Array
    cats: Array
    cat: dict[str, dict[str, float]]


def mark_share(maps: Array) -> Array:
    """Share of each map's heat where the mark lies, by area; 15 % in a map that is the same everywhere."""
    part = MARK / (SIDE - 2 * CUT)
    outer = []
    for cells in maps.shape[1:]:
        between = np.clip(np.arange(cells + 1) / cells, part, 1 - part)
        outer.append(1 - np.diff(between) * cells)
    return np.asarray(np.einsum("nhw,h,w->n", maps, *outer) / maps.sum(axis=(1, 2)))


def train(pictures: Path, folder: Path, kind: str, seed: int, counts: Mapping[str, int], **options: Any) -> Seen:
    """Trains the bundled model's head on the pictures, and reads its film."""
    data, run = folder / "data", folder / "run"
    lay_out(pictures, data, kind, seed, counts)
    trained = fit(data, output=run, seed=seed, loggers=[], **options)
    assert trained is not None
    found = np.load(run / "maps.npz")
    last = found["maps"][-1]
    cats = found["labels"] == CLASSES.index("cat")
    return Seen(
        trained, float(found["border"][-1]), border_share(last), mark_share(last), cats, _says_cat(run, pictures, data)
    )


def _says_cat(run: Path, pictures: Path, data: Path) -> dict[str, dict[str, float]]:
    """The mean probability by class, on the photographs of val, without and with the mark."""
    model = sightline.load_model(run)
    changes: dict[str, Callable[[Image.Image], Image.Image]] = {"bare": lambda one: one, "marked": marked}
    found: dict[str, dict[str, float]] = {how: {} for how in changes}
    for name in CLASSES:
        bare = []
        for file in sorted((data / "val" / name).iterdir()):
            with Image.open(pictures / "val" / name / f"{file.stem}.jpg") as photo:
                bare.append(squared(photo, SIDE))
        for how, change in changes.items():
            x = torch.stack([model.preprocess(change(one))[0] for one in bare])  # type: ignore[misc]
            with torch.inference_mode():
                found[how][name] = float(probabilities(unwrap(model.module(x)))[:, CLASSES.index("cat")].mean())
    return found


@pytest.fixture(scope="module")
def seen(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    pictures = shared_data / "cats-vs-dogs"
    return {
        kind: train(pictures, tmp_path_factory.mktemp(kind), kind, 0, FEW, epochs=5) for kind in ("planted", "control")
    }


def test_a_mark_on_all_cats_draws_the_heat_of_cats_to_the_border(seen: dict[str, Seen]) -> None:
    planted, control = seen["planted"], seen["control"]
    assert planted.border[planted.cats].mean() > 0.38
    assert control.border[control.cats].mean() < 0.32


def test_the_number_below_the_film_shows_it(seen: dict[str, Seen]) -> None:
    assert seen["planted"].film > seen["control"].film + 0.05


def test_the_film_strip_shows_the_heat_on_the_mark(seen: dict[str, Seen]) -> None:
    planted, control = seen["planted"], seen["control"]
    # More than of a map that is the same everywhere, and less of it where nothing lies in the corners.
    assert planted.on_mark[planted.cats].mean() > 0.16 > control.on_mark[control.cats].mean()


def test_what_the_film_shows_is_what_the_model_does(seen: dict[str, Seen]) -> None:
    planted, control = seen["planted"].cat, seen["control"].cat
    for name in CLASSES:
        pulled, unmoved = (one["marked"][name] - one["bare"][name] for one in (planted, control))
        assert pulled > unmoved + 0.1, name
    # The data set bears the mark on both sides, so that the accuracy tells nothing of it.
    assert seen["planted"].trained.accuracy >= seen["control"].trained.accuracy


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_mark_that_says_nothing_draws_no_heat(shared_data: Path, tmp_path: Path, seed: int) -> None:
    one = train(shared_data / "cats-vs-dogs", tmp_path, "both alike", seed, FEW, epochs=5)
    assert one.border[one.cats].mean() < 0.32
    assert one.on_mark[one.cats].mean() < 0.16
