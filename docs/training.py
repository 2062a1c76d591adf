"""Draws the pictures of docs/training.md and writes its figures: python docs/training.py DATA [figures|planted]

DATA is a folder of cats and dogs as the page describes it. Its photographs are not ours to show: what is shown is the demo cat, which
no model here was trained on. The planted shortcut is that of tests/train/test_planted.py.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import sightline
from sightline.models.adapter import Adapter
from sightline.render.panel import Key, Tile, fitted, percent, sheet
from sightline.train import Frame, Shot, border_share, fit, frame, shots, strip

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "train")]

from test_planted import CLASSES, CUP, CUT, KINDS, MARK, SIDE, Seen, marked, squared, train  # noqa: E402

PAGE, IMAGES = HERE / "training.md", HERE / "images"
CAT = CUP.with_name("cat.jpg")
SEEDS = (0, 1, 2)
COUNTS = {"train": 60, "val": 20}
EPOCHS = 8


def croppings() -> list[Image.Image]:
    """The demo cat, as four photographs."""
    with Image.open(CAT) as photo:
        cat = photo.convert("RGB")
    w, h = cat.size
    parts = [(0, 0, w, h), (0, 0, h, h), (w - h, 0, w, h), (w // 4, h // 6, w // 4 + h * 2 // 3, h // 6 + h * 2 // 3)]
    return [squared(cat.crop(part), SIDE) for part in parts]


class Film:
    """A film of other pictures than those of val: a frame whenever the model of a run became better, which is when it is kept."""

    def __init__(self, run: Path, pictures: Sequence[Image.Image]) -> None:
        self.run, self.pictures = run, [(one, "cat") for one in pictures]
        self.shots: tuple[Shot, ...] = ()
        self.frames: list[Frame] = []
        self.best = math.inf
        self.seconds = 0.0

    def __call__(self, progress: Any) -> None:
        if progress.epoch is None or progress.epoch.val_loss >= self.best:
            return
        began = time.monotonic()
        self.best = progress.epoch.val_loss
        model = sightline.load_model(self.run)
        self.shots = self.shots or shots(self.pictures, model)
        before = self.frames[-1] if self.frames else None
        self.frames.append(frame(self.shots, model, progress.epoch.epoch, before))
        self.seconds += time.monotonic() - began

    def drawn(self) -> Image.Image:
        return strip(self.shots, self.frames, CLASSES)


def whole(data: Path, folder: Path) -> list[str]:
    """All pictures with the default settings."""
    run = folder / "run"
    film = Film(run, croppings())
    began = time.monotonic()
    trained = fit(data, output=run, watch=film, loggers=[])
    seconds = time.monotonic() - began
    assert trained is not None
    keep(film.drawn(), "training-film.jpg", 1200)
    with Image.open(run / "curves.png") as curves:
        keep(curves, "training-curves.png", curves.width // 2)
    explained = sightline.explain(CAT, sightline.load_model(run), target="cat")
    keep(explained.panel(), "training-explain.jpg", 1100)
    first, second, last = (trained.history[at] for at in (0, 1, -1))
    return [
        f"`sightline train DATA`, with the defaults, on photographs of cats and dogs: {trained.told[0]}.",
        "",
        f"**{trained.headline}.** On {os.cpu_count()} cores ({processor()}) it took "
        f"{seconds - film.seconds:.0f} s. In the film of eight pictures of `val` {percent(first.moved)} of the heat moved in the first epoch, "
        f"{percent(second.moved)} in the second and {percent(last.moved)} in the last; then {percent(last.border)} of it lay at the border.",
    ]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def planted(data: Path, folder: Path) -> list[str]:
    """The shortcut and its controls, over several seeds."""
    found: dict[str, list[Seen]] = {kind: [] for kind in KINDS}
    films = {}
    lines = [
        f"{COUNTS['train']} and {COUNTS['val']} photographs of each class for training and validation, drawn anew for each seed; {EPOCHS} epochs of the bundled model "
        f"with `--freeze trunk`; each cup's side is {percent(MARK / (SIDE - 2 * CUT))} of what the model sees. Border and heat on the mark are means over the filmed cats "
        "after the last epoch; an even map has 44 % at the border and 15 % where the mark is. The last four columns are how sure the best model is "
        "that a picture of `val` shows a cat, on average, when none bears the mark and when all do:",
        "",
        "| trained on | seed | border, below the film (all eight) | border, cats | border, dogs | heat on the mark, cats | accuracy it reports | bare cat | marked cat | bare dog | marked dog |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for seed in SEEDS:
            place = folder / f"{kind} {seed}"
            place.mkdir()
            watch = Film(place / "run", [marked(one) for one in croppings()[:2]])
            one = train(data, place, kind, seed, COUNTS, epochs=EPOCHS, patience=EPOCHS, watch=watch)
            films.setdefault(kind, watch)
            found[kind].append(one)
            lines.append(row(kind, seed, one))
            print(lines[-1], flush=True)
    draw_models({kind: sightline.load_model(folder / f"{kind} {SEEDS[0]}" / "run") for kind in KINDS})
    two = [films[kind].drawn() for kind in ("planted", "control")]
    stacked = Image.new("RGB", (max(one.width for one in two), two[0].height + two[1].height), "white")
    stacked.paste(two[0], (0, 0))
    stacked.paste(two[1], (0, two[0].height))
    keep(stacked, "training-planted-film.jpg", 1100)
    return lines


def draw_models(models: dict[str, Adapter]) -> None:
    """One cat, bare and with the mark, as each model sees it."""
    cat = croppings()[1]
    rows = []
    for name, picture in (("bare", cat), ("marked", marked(cat))):
        rows.append(
            [Tile(fitted(picture, 300), name), *(seen_by(model, picture, kind) for kind, model in models.items())]
        )
    drawn = sheet(
        rows,
        heading="One cat, as three models see it",
        captions=["Each map is stretched to its own maximum: strengths do not compare."],
        warnings=[],
        keys=[Key(0, 1, "of each map's own maximum")],
    )
    keep(drawn, "training-planted.jpg", 1100)


def row(kind: str, seed: int, one: Seen) -> str:
    cells = [one.film, one.border[one.cats].mean(), one.border[~one.cats].mean(), one.on_mark[one.cats].mean()]
    shares = [f"{100 * value:.0f} %" for value in [*cells, one.trained.accuracy]]
    cats = [f"{100 * one.cat[how][name]:.0f} %" for name in CLASSES for how in ("bare", "marked")]
    return f"| {kind} | {seed} | {' | '.join(shares)} | {' | '.join(cats)} |"


def seen_by(model: Adapter, picture: Image.Image, kind: str) -> Tile:
    """What a model says of a picture, and where it sees a cat."""
    heatmap = sightline.explain(picture, model, target="cat")
    share = border_share(heatmap.raw[None])[0]
    return Tile(
        fitted(heatmap.overlay(), 300), f"{kind}: cat {percent(heatmap.probability)}", f"border {percent(share)}"
    )


def keep(picture: Image.Image, name: str, width: int) -> None:
    """Into the folder of the pictures, at most so wide."""
    width = min(width, picture.width)
    size = width, round(picture.height * width / picture.width)
    picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(IMAGES / name, quality=82, optimize=True)


def put(what: str, lines: Sequence[str]) -> None:
    """Into the page, between its two comments."""
    begin, end = f"<!-- {what}: python docs/training.py DATA -->\n", f"<!-- end of {what} -->\n"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2], encoding="utf-8")


MADE = {"figures": whole, "planted": planted}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for what in sys.argv[2:] or MADE:
            put(what, MADE[what](Path(sys.argv[1]), Path(folder)))
