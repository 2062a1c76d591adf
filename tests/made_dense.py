"""Segmentations and detectors whose truth is known, because every weight is set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from oracles_targets import Found
from sightline.models.preprocess import Preprocess, standard

CELL = 8
WEIGHTS = (0.5, 2.0, -1.0)
BIASES = (0.25, -0.5, 0.125)
BOXES = ((0.0, 8.0, 16.0, 24.0), (16.0, 0.0, 32.0, 8.0))
"""Left, top, right, bottom in pixels of an input of 32 x 32: 2 x 2 cells at the left, 1 x 2 at the top right."""


class Colours(nn.Module):
    """A segmentation: of each cell of 8 x 8 pixels, a class' logit is its weight times the mean of its own colour, plus a bias."""

    layer = "see"

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.see = nn.AvgPool2d(CELL)
        self.draw = nn.Conv2d(3, classes, 1)
        with torch.no_grad():
            self.draw.weight.copy_(torch.diag(torch.tensor(WEIGHTS))[:classes, :, None, None])
            self.draw.bias.copy_(torch.tensor(BIASES)[:classes])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(self.see(x))


class TwoBoxes(nn.Module):
    """A detector of two fixed boxes; a box's score is the mean brightness inside it, and 0.9 of the other's if `mixed`.

    Args:
        gives: of "probabilities", "objectness" and "masks" those that it gives beside boxes, labels and scores.
        boxes: where they lie.
        labels: theirs.
        extra: more boxes, each with a label and a score that stays as it is.
    """

    layer = "see"

    def __init__(
        self,
        gives: Sequence[str] = (),
        boxes: Sequence[Sequence[float]] = BOXES,
        labels: Sequence[int] = (1, 2),
        extra: Sequence[tuple[Sequence[float], int, float]] = (),
    ) -> None:
        super().__init__()
        self.gives, self.boxes, self.labels, self.extra = gives, boxes, labels, extra
        self.see = nn.AvgPool2d(CELL)
        self.eval()

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [self.found(one) for one in self.see(x)]

    def found(self, seen: Tensor) -> dict[str, Tensor]:
        bright = seen.mean(dim=0)
        parts = [
            bright[int(top) // CELL : int(bottom) // CELL, int(left) // CELL : int(right) // CELL].mean()
            for left, top, right, bottom in self.boxes
        ]
        scores = torch.stack([*parts, *(bright.new_tensor(score) for _, _, score in self.extra)])
        boxes = [*self.boxes, *(box for box, _, _ in self.extra)]
        labels = [*self.labels, *(label for _, label, _ in self.extra)]
        found = {
            "boxes": bright.new_tensor(boxes),
            "labels": torch.tensor(labels, device=seen.device),
            "scores": scores,
        }
        if "probabilities" in self.gives:  # what its score leaves is shared by the others
            every = torch.stack([1 - scores, scores / 2, scores / 2], dim=1)
            own = F.one_hot(found["labels"], 3).bool()
            found["probabilities"] = torch.where(own, scores[:, None], every * 0.5)
        if "objectness" in self.gives:
            found["objectness"] = scores.square()
        if "masks" in self.gives:  # the left half of each box, soft
            masks = bright.new_full((len(boxes), 1, *(CELL * side for side in bright.shape)), 0.0)
            for at, (left, top, right, bottom) in enumerate(boxes):
                masks[at, 0, int(top) : int(bottom), int(left) : int((left + right) / 2)] = 0.8
            found["masks"] = masks * scores.clamp(max=1)[:, None, None, None]
        return found


def plainly(found: dict[str, Tensor]) -> Found:
    """What a detector found as the oracles take it."""
    parts: dict[str, Any] = {name: value.detach().double().numpy() for name, value in found.items()}
    if "masks" in parts:
        parts["masks"] = list(parts["masks"].reshape(len(parts["boxes"]), *parts["masks"].shape[-2:]))
    parts["boxes"] = [tuple(box) for box in parts["boxes"].tolist()]
    return Found(**parts | {"labels": found["labels"].tolist()})


def prepared(size: tuple[int, int] = (32, 32), resize: int | None = None, fit: Any = "shorter") -> Preprocess:
    """Resized and cut in the middle, 0 to 1."""
    side = min(size) if resize is None else resize
    return standard(size=size, resize=side, fit=fit, mean=(0.0,) * 3, std=(1.0,) * 3)


def plain_photo(size: tuple[int, int], colour: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """One colour everywhere."""
    return Image.new("RGB", size, colour)


def block_photo(
    size: tuple[int, int],
    blocks: dict[tuple[int, int, int, int], tuple[int, int, int]],
    ground: tuple[int, int, int] = (0, 0, 0),
) -> Image.Image:
    """Blocks (left, top, right, bottom) of one colour each on a ground."""
    pixels = np.full((size[1], size[0], 3), ground, np.uint8)
    for (left, top, right, bottom), colour in blocks.items():
        pixels[top:bottom, left:right] = colour
    return Image.fromarray(pixels)
