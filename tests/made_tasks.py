"""Small networks that are trained on drawn shapes: one gives each pixel a class, one finds boxes. The truth of every scene is known."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

SIDE, CELL = 96, 8
NAMES = ("background", "disc", "square", "triangle")
_INKS = np.array([[0.85, 0.2, 0.2], [0.2, 0.35, 0.9], [0.95, 0.8, 0.15]])
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE] + 0.5


def scene(
    seed: int, count: int = 3
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[tuple[int, tuple[int, int, int, int]]]]:
    """Shapes on a noisy ground: the picture (SIDE, SIDE, 3) in 0..1, the class of each pixel, and (class, box) of each shape."""
    random = np.random.default_rng(seed)
    picture = random.uniform(0.35, 0.65, (SIDE, SIDE, 3))
    truth = np.zeros((SIDE, SIDE), np.int64)
    shapes: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(count):
        for _try in range(50):
            half, x, y = int(random.integers(9, 14)), *(int(one) for one in random.integers(15, SIDE - 15, 2))
            box = (x - half, y - half, x + half, y + half)
            if all(max(box[0], o[0]) >= min(box[2], o[2]) or max(box[1], o[1]) >= min(box[3], o[3]) for _, o in shapes):
                break
        else:
            continue
        kind = int(random.integers(1, 4))
        across, down = abs(_COLUMNS - x), _ROWS - y
        inside = {
            1: across**2 + down**2 < half**2,
            2: (across < half) & (abs(down) < half),
            3: (abs(down) < half) & (across < (down + half) / 2),
        }[kind]
        picture[inside] = _INKS[kind - 1] + random.normal(0, 0.05, (int(inside.sum()), 3))
        truth[inside] = kind
        shapes.append((kind, box))
    return picture.clip(0, 1).astype(np.float32), truth, shapes


def photo(seed: int, count: int = 3, times: int = 4) -> Image.Image:
    """A scene as a photograph, larger than the networks' input."""
    values = (255 * scene(seed, count)[0]).round().astype(np.uint8)
    return Image.fromarray(values).resize((SIDE * times, SIDE * times), Image.Resampling.NEAREST)


def preprocess(picture: Image.Image) -> Tensor:
    values = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1) * 2 - 1


class Segmenter(nn.Module):
    """(B, 3, H, W) -> logits of pixels (B, 4, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1),
            nn.ReLU(),
        )
        self.decoder = nn.Conv2d(32, len(NAMES), 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.decoder(self.encoder(x)), x.shape[2:], mode="bilinear", align_corners=False)


class Detector(nn.Module):
    """(B, 3, H, W) -> for each picture boxes, labels and scores; each cell of 8 pixels says what has its middle there, and how large it is."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(24, 48, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(48, 64, 5, 2, 2),
            nn.ReLU(),
        )
        self.classes = nn.Conv2d(64, len(NAMES), 3, padding=1)
        self.sides = nn.Conv2d(64, 4, 3, padding=1)

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 4, h, w), and the distances to left, top, right and bottom (B, 4, h, w) in cells."""
        seen = self.encoder(x)
        return self.classes(seen), self.sides(seen)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        logits, sides = self.dense(x)
        h, w = logits.shape[2:]
        y, x_ = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        middles = torch.stack([x_, y, x_, y]).to(sides) * CELL
        boxes = (
            (middles + sides * CELL * torch.tensor([-1.0, -1, 1, 1]).to(sides)[:, None, None])
            .flatten(2)
            .transpose(1, 2)
        )
        chances = logits.softmax(dim=1).flatten(2).transpose(1, 2)
        found = []
        for own, chance in zip(boxes, chances, strict=True):
            scores, labels = chance[:, 1:].max(dim=1)
            kept = (scores > 0.3).nonzero()[:, 0]
            kept = kept[nms(own[kept].detach(), scores[kept].detach(), 0.3)]
            found.append({"boxes": own[kept], "labels": labels[kept] + 1, "scores": scores[kept]})
        return found


@cache
def segmenter(steps: int = 150) -> Segmenter:
    """Trained in a few seconds."""
    torch.manual_seed(0)
    network = Segmenter()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(steps):
        scenes = [scene(1000 + 8 * step + one) for one in range(8)]
        x = torch.from_numpy(np.stack([one[0] for one in scenes])).permute(0, 3, 1, 2) * 2 - 1
        loss = F.cross_entropy(network(x), torch.from_numpy(np.stack([one[1] for one in scenes])))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


@cache
def detector(steps: int = 300) -> Detector:
    """Trained in about ten seconds."""
    torch.manual_seed(0)
    network = Detector()
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for step in range(steps):
        scenes = [scene(1000 + 8 * step + one) for one in range(8)]
        x = torch.from_numpy(np.stack([one[0] for one in scenes])).permute(0, 3, 1, 2) * 2 - 1
        logits, sides = network.dense(x)
        labels = torch.zeros(len(scenes), *logits.shape[2:], dtype=torch.long)
        wanted, where = [], []
        for at, (_, _, shapes) in enumerate(scenes):
            for kind, (left, top, right, bottom) in shapes:
                column, row = (left + right) // 2 // CELL, (top + bottom) // 2 // CELL
                labels[at, row, column] = kind
                middle = ((column + 0.5) * CELL, (row + 0.5) * CELL)
                wanted.append([middle[0] - left, middle[1] - top, right - middle[0], bottom - middle[1]])
                where.append((at, row, column))
        rows = torch.tensor(where).T
        own = sides[rows[0], :, rows[1], rows[2]]
        weight = torch.tensor([0.2, 1, 1, 1])
        loss = F.cross_entropy(logits, labels, weight) + F.l1_loss(own, torch.tensor(wanted) / CELL)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


class Pooled(nn.Module):
    """(B, 3, H, W) -> (B, K): the means of K maps over all places."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.encoder = Segmenter().encoder
        self.decoder = nn.Conv2d(32, values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)).mean(dim=(2, 3))


@cache
def pooled(kind: str, steps: int = 60) -> Pooled:
    """Of kind "labels" (disc, square, triangle), "binary" (a triangle), or "regression" (how much is disc, in percent)."""
    torch.manual_seed(0)
    wanted = {"labels": [1, 2, 3], "binary": [3], "regression": [1]}[kind]
    network = Pooled(len(wanted))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(steps):
        scenes = [scene(1000 + 16 * step + one) for one in range(16)]
        x = torch.from_numpy(np.stack([one[0] for one in scenes])).permute(0, 3, 1, 2) * 2 - 1
        shares = torch.tensor([[float((one[1] == number).mean()) for number in wanted] for one in scenes])
        loss = (
            F.mse_loss(network(x), 100 * shares)
            if kind == "regression"
            else F.binary_cross_entropy_with_logits(network(x), (shares > 0).float())
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()
