"""Draws the pictures of docs/inputs.md. All networks but the bundled one are set by hand, as the pictures say.

python docs/input_figures.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import sightline

HERE = Path(__file__).parent
DEMO = Path(sightline.__file__).parent / "data" / "demo"
BY_HAND = "a network set by hand"


def read(picture: Image.Image) -> Tensor:
    """What `preprocess` is in the page: a small picture as numbers from 0 to 1."""
    return torch.from_numpy(np.array(picture.resize((192, 128)))).permute(2, 0, 1).float() / 255


def scene() -> np.ndarray[Any, Any]:
    """A drawn landscape of four bands, in counts: soil, a river, and fields that are bright in nir where something grows."""
    rng = np.random.default_rng(4)
    found = np.full((160, 240, 4), (900, 1100, 1500, 1700), np.float64)
    for field, grows in (
        ((10, 20, 70, 90), 1.0),
        ((20, 130, 80, 210), 0.15),
        ((95, 30, 150, 110), 0.1),
        ((100, 150, 150, 230), 0.75),
    ):
        top, left, bottom, right = field
        found[top:bottom, left:right] += grows * np.array([-300, -100, -800, 2600])
    column = np.arange(240)
    for row in range(160):
        found[row, np.abs(column - 120 - 25 * np.sin(row / 30)) < 7] = (1000, 800, 400, 150)
    return (found * rng.normal(1, 0.06, found.shape)).clip(0).astype(np.uint16)


class Growth(nn.Module):
    """Class 0 is how much nir exceeds red, in cells of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        pick = nn.Conv2d(4, 1, 1)
        pick.weight.data = torch.tensor([0.0, 0.0, -1.0, 1.0])[None, :, None, None]
        pick.bias.data.fill_(-1.0)
        self.features = nn.Sequential(pick, nn.ReLU(), nn.AvgPool2d(8))
        self.head = nn.Linear(1, 2)
        self.head.weight.data, self.head.bias.data = torch.tensor([[3.0], [0.0]]), torch.tensor([0.0, 0.3])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(x).mean(dim=(2, 3)))
        return found


class Change(nn.Module):
    """Class 0 is by how much the picture `after` differs from `before`, in cells of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        both = nn.Conv2d(6, 6, 1, bias=False)
        one = torch.cat([torch.eye(3), -torch.eye(3)], dim=1)
        both.weight.data = torch.cat([one, -one])[..., None, None]
        self.features = nn.Sequential(both, nn.ReLU(), nn.AvgPool2d(8))
        self.head = nn.Linear(6, 2)
        self.head.weight.data = torch.tensor([[100.0] * 6, [0.0] * 6])
        self.head.bias.data = torch.tensor([0.0, 0.5])

    def forward(self, after: Tensor, before: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(torch.cat([after, before], dim=1)).mean(dim=(2, 3)))
        return found


class Ball(nn.Module):
    """Class 0 is how much red there is, in cells of 2 frames and 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        red = nn.Conv3d(3, 1, 1)
        red.weight.data = torch.tensor([1.0, -0.5, -0.5])[None, :, None, None, None]
        red.bias.data.fill_(-0.3)
        self.features = nn.Sequential(red, nn.ReLU(), nn.AvgPool3d((2, 8, 8)))
        self.head = nn.Linear(1, 2)
        self.head.weight.data, self.head.bias.data = torch.tensor([[200.0], [0.0]]), torch.tensor([0.0, 0.2])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(x).mean(dim=(2, 3, 4)))
        return found


class Body(nn.Module):
    """Its one class is how much lies above 900 counts, in cells of 4 x 4 pixels of each slice."""

    def __init__(self) -> None:
        super().__init__()
        above = nn.Conv3d(1, 1, 1)
        above.weight.data.fill_(1.0)
        above.bias.data.fill_(-0.9)
        self.features = nn.Sequential(above, nn.ReLU(), nn.AvgPool3d((1, 4, 4)))
        self.head = nn.Linear(1, 1)
        self.head.weight.data.fill_(300.0)
        self.head.bias.data.fill_(-0.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(x).mean(dim=(2, 3, 4)))
        return found


def film() -> list[Image.Image]:
    """24 drawn frames: a red ball comes in the 7th and goes after the 16th, and a blue box is always there."""
    frames = []
    for at in range(24):
        frame = Image.linear_gradient("L").resize((192, 128)).convert("RGB")
        pen = ImageDraw.Draw(frame)
        pen.rectangle((150 - 3 * at, 92, 172 - 3 * at, 112), fill=(40, 80, 220))
        if 6 <= at < 16:
            pen.ellipse((8 * at - 20, 20 + 2 * at, 8 * at + 14, 54 + 2 * at), fill=(220, 30, 30))
        frames.append(frame)
    return frames


def scan() -> np.ndarray[Any, Any]:
    """A drawn body of 24 slices, in counts, with one dense place in it."""
    z, y, x = np.mgrid[:24, :72, :96]
    inside = ((y - 36) / 32.0) ** 2 + ((x - 48) / 44.0) ** 2 + ((z - 12) / 11.0) ** 2 < 1
    dense = np.exp(-(((z - 15) / 2.5) ** 2 + ((y - 27) / 6) ** 2 + ((x - 60) / 7) ** 2))
    noise = np.random.default_rng(0).normal(0, 60, inside.shape)
    return (500 * inside + 1500 * dense + noise).astype(np.int16)


def changed() -> tuple[Image.Image, Image.Image]:
    """A photograph before and after something was laid into it."""
    before = Image.open(DEMO / "coffee.jpg").convert("RGB").resize((576, 384))
    after = before.copy()
    after.paste(Image.open(DEMO / "cat.jpg").convert("RGB").crop((90, 60, 350, 240)).resize((130, 90)), (380, 40))
    return before, after


def large() -> Image.Image:
    """A wall of 1,600 x 1,200 pixels with a small photograph of a cat on it, and one of a cup."""
    wall = Image.effect_noise((1600, 1200), 12).convert("RGB").point(lambda value: value // 4 + 150)
    for name, place, width in (("cat.jpg", (1010, 640), 360), ("coffee.jpg", (220, 180), 300)):
        photo = Image.open(DEMO / name).convert("RGB")
        wall.paste(photo.resize((width, round(width * photo.height / photo.width))), place)
    return wall


def small(picture: Image.Image, name: str) -> None:
    width = min(picture.width, 1000)
    picture = picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.LANCZOS)
    picture.save(HERE / "images" / name, quality=88, optimize=True)


if __name__ == "__main__":
    take = sightline.bands(("blue", "green", "red", "nir"), display=("nir", "red", "green"), size=(240, 160), std=1000)
    grows = sightline.adapt(Growth(), preprocess=take, layers=["features"], labels=["growth", "bare"], name=BY_HAND)
    small(sightline.explain(scene(), grows, target="growth").panel(), "inputs-bands.jpg")
    before, after = changed()
    differs = sightline.adapt(
        Change(), explained="after", others={"before": read(before)[None]}, preprocess=read, layers=["features"],
        labels=["changed", "same"], name=BY_HAND,
    )  # fmt: skip
    small(sightline.explain(after, differs, target="changed").panel(), "inputs-several.jpg")
    ball = sightline.adapt(
        Ball(), preprocess=read, frames=16, layers=["features"], labels=["ball", "none"], name=BY_HAND
    )
    small(sightline.explain_frames(film(), ball).strip(), "inputs-film.jpg")
    density = sightline.bands(("density",), std=1000)
    body = sightline.adapt(
        Body(), preprocess=density, frames="all", layers=["features"], labels=["dense"], name=BY_HAND
    )
    small(sightline.explain_frames(scan(), body).slices(), "inputs-volume.jpg")
    small(sightline.explain_tiles(large(), target="Egyptian cat").panel(), "inputs-tiles.jpg")
