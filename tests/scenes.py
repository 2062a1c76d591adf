"""Drawn scenes with one object each, whose place is known: what a map must find can be counted instead of looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 48
# The class is the object's colour; its shape, size and place say nothing.
COLOURS = np.array([[0.85, 0.15, 0.15], [0.1, 0.65, 0.15], [0.15, 0.25, 0.9], [0.9, 0.8, 0.1]])
# What else lies about, in the same colours for every class, so that it says nothing either.
OTHERS = np.array([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9], [0.55, 0.35, 0.2], [0.6, 0.2, 0.65], [0.2, 0.7, 0.75]])
_Y, _X = np.mgrid[:SIDE, :SIDE]


@dataclass(frozen=True)
class Scenes:
    """`pictures` (N, 3, SIDE, SIDE) from 0 to 1, `classes` (N,), and `masks` (N, SIDE, SIDE): where the object is."""

    pictures: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: NDArray[np.bool_]


def draw(count: int, seed: int) -> Scenes:
    """Reproducible scenes: one object of 5 to 12 % of the picture anywhere, between other shapes on a noisy background."""
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, 3, SIDE, SIDE), np.float32)
    classes = rng.integers(len(COLOURS), size=count)
    masks = np.empty((count, SIDE, SIDE), bool)
    for index, of in enumerate(classes):
        picture = _background(rng)
        for _ in range(4):
            _paint(picture, _shape(rng, rng.uniform(0.02, 0.06)), OTHERS[rng.integers(len(OTHERS))], rng)
        masks[index] = _shape(rng, rng.uniform(0.06, 0.11))
        _paint(picture, masks[index], COLOURS[of], rng)
        picture += rng.normal(0, 0.04, picture.shape)
        pictures[index] = picture.clip(0, 1).transpose(2, 0, 1)
    return Scenes(pictures, classes, masks)


def _background(rng: np.random.Generator) -> NDArray[np.float64]:
    """Patches of colour, coarse and fine."""
    coarse = rng.uniform(0.3, 0.7, (4, 4, 3)).repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1)
    fine = rng.uniform(-0.1, 0.1, (SIDE // 3, SIDE // 3, 3)).repeat(3, axis=0).repeat(3, axis=1)
    return coarse + fine


def _shape(rng: np.random.Generator, share: float) -> NDArray[np.bool_]:
    """A disc, square, or diamond of that share of the picture, wholly inside it."""
    kind = rng.integers(3)
    reach = SIDE * np.sqrt(share / (np.pi, 4, 2)[kind])
    y, x = (np.abs(axis - rng.uniform(reach, SIDE - 1 - reach)) for axis in (_Y, _X))
    return np.asarray((np.hypot(y, x), np.maximum(y, x), y + x)[kind] <= reach)


def _paint(
    picture: NDArray[np.float64], mask: NDArray[np.bool_], colour: NDArray[np.float64], rng: np.random.Generator
) -> None:
    picture[mask] = colour * rng.uniform(0.8, 1.1) + rng.normal(0, 0.03, 3)
