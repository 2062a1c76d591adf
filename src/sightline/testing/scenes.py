"""Drawn scenes in which the place of everything is known: what a map must find can be counted instead of looked at.

`draw` makes scenes with one object, `compose` animals of four parts that can be drawn again without one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ImageError, did_you_mean

SIDE = 48
# The class is the object's colour; its shape, size and place say nothing.
COLOURS = np.array([[0.85, 0.15, 0.15], [0.1, 0.65, 0.15], [0.15, 0.25, 0.9], [0.9, 0.8, 0.1]])
# What else lies about, in the same colours for every class, so that it says nothing either.
OTHERS = np.array([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9], [0.55, 0.35, 0.2], [0.6, 0.2, 0.65], [0.2, 0.7, 0.75]])
_Y, _X = np.mgrid[:SIDE, :SIDE]

# From the lowest to the topmost: a part covers those before it.
PARTS = ("tail", "body", "wing", "head")
# The variant of each part in each class; None is any of the three. Here head and tail decide together: either alone
# leaves two classes open, and body and wing say nothing.
RULES: tuple[tuple[int | None, ...], ...] = (
    (0, None, None, 0),
    (1, None, None, 0),
    (0, None, None, 1),
    (1, None, None, 1),
)
VARIANTS = 3
# Where each part lies beside the middle of the body, as (x, y), and its reach (x, y); in pixels of an animal of size 1 that
# looks to the right.
_PLACES = {
    "tail": ((-11, 0), (4, 3.5)),
    "body": ((0, 0), (8, 5.5)),
    "wing": ((-1, -1), (4, 2.5)),
    "head": ((9, -5), (4, 4)),
}
# The three variants of each part, each in a colour of its own (and as a disc, a square, or a diamond).
_TINTS = {
    "tail": [[0.9, 0.8, 0.1], [0.15, 0.25, 0.9], [0.85, 0.45, 0.7]],
    "body": [[0.6, 0.45, 0.3], [0.45, 0.45, 0.5], [0.8, 0.75, 0.65]],
    "wing": [[0.95, 0.95, 0.95], [0.1, 0.1, 0.15], [0.3, 0.6, 0.65]],
    "head": [[0.85, 0.15, 0.15], [0.1, 0.65, 0.15], [0.55, 0.2, 0.65]],
}


@dataclass(frozen=True, eq=False)
class Scenes:
    """`pictures` (N, 3, SIDE, SIDE) from 0 to 1, `classes` (N,), and `masks` (N, SIDE, SIDE): where the object is."""

    pictures: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PartScenes:
    """Scenes of one animal each, and where its parts are.

    Attributes:
        pictures: (N, 3, SIDE, SIDE) float32, 0 to 1.
        classes: (N,), the index of a rule.
        masks: (N, P, SIDE, SIDE) bool: where each part is seen, in the order of `parts`. They don't overlap: what another part
            covers doesn't count.
        parts: the parts' names.
        variants: (N, P), which variant each part is, 0 to 2.
        seed: what they were drawn from.
    """

    pictures: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: NDArray[np.bool_]
    parts: tuple[str, ...]
    variants: NDArray[np.int64]
    seed: int

    def without(self, *parts: str) -> NDArray[np.float32]:
        """The same scenes drawn again without these parts: (N, 3, SIDE, SIDE), bit for bit the same outside of their masks.

        Inside, what they covered comes to light: another part, other things, or the background.

        Raises:
            ImageError: no such part.
        """
        for name in parts:
            if name not in self.parts:
                raise ImageError(
                    f"no part {name!r};{did_you_mean(name, self.parts)} There are: {', '.join(self.parts)}"
                )
        return _assemble(self.variants, self.seed, parts)[0]


def draw(count: int, seed: int, *, colours: NDArray[np.int64] | None = None) -> Scenes:
    """Reproducible scenes: one object of 5 to 12 % of the picture anywhere, between other shapes on a noisy background.

    Args:
        count: how many.
        seed: of all that is random.
        colours: (count,) the objects' colours, as indices of COLOURS, which then are the classes; random when left out. The
            rest of a scene doesn't depend on it.
    """
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, 3, SIDE, SIDE), np.float32)
    classes = rng.integers(len(COLOURS), size=count)
    if colours is not None:
        if np.shape(colours) != (count,) or not np.isin(colours, range(len(COLOURS))).all():
            raise ImageError(f"colours must be {count} numbers from 0 to {len(COLOURS) - 1}, one a scene")
        classes = np.asarray(colours, np.int64)
    masks = np.empty((count, SIDE, SIDE), bool)
    for index, of in enumerate(classes):
        picture = _surroundings(rng)
        masks[index] = _shape(rng, rng.uniform(0.06, 0.11))
        _paint(picture, masks[index], COLOURS[of], rng)
        pictures[index] = _finished(picture, rng)
    return Scenes(pictures, classes, masks)


def compose(count: int, seed: int, *, rules: Sequence[Sequence[int | None]] = RULES) -> PartScenes:
    """Reproducible scenes of one animal each, made of a tail, a body, a wing and a head, anywhere and looking left or right.

    Args:
        count: how many.
        seed: of all that is random.
        rules: for each class the variant of each part, in the order of PARTS: 0, 1, 2, or None where any will do. A part that has
            the same entry in all classes says nothing about the class.

    Raises:
        ImageError: rules that can't be drawn.
    """
    allowed = (None, *range(VARIANTS))
    for rule in rules:
        if len(rule) != len(PARTS) or any(one not in allowed for one in rule):
            raise ImageError(
                f"the rule {tuple(rule)} can't be drawn; expected one of 0, 1, 2 and None for each of {PARTS}"
            )
    if not rules:
        raise ImageError("there is no rule; give one for each class")
    rng = np.random.default_rng([seed, 0])
    classes = rng.integers(len(rules), size=count)
    anything = rng.integers(VARIANTS, size=(count, len(PARTS)))
    fixed = np.array([[-1 if one is None else one for one in rule] for rule in rules])[classes]
    variants = np.where(fixed < 0, anything, fixed)
    pictures, masks = _assemble(variants, seed)
    return PartScenes(pictures, classes, masks, PARTS, variants, seed)


def _assemble(
    variants: NDArray[np.int64], seed: int, without: Sequence[str] = ()
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pictures and masks; parts that are left out are drawn from the random stream all the same, so that the rest stays."""
    pictures = np.empty((len(variants), 3, SIDE, SIDE), np.float32)
    masks = np.zeros((len(variants), len(PARTS), SIDE, SIDE), bool)
    for index, chosen in enumerate(variants):
        # A stream of each scene's own: the first scenes are the same however many are drawn. (The 1 keeps it apart from
        # that of the classes, which a 0 would not: seeds that differ by zeros at the end are the same.)
        rng = np.random.default_rng([seed, 1, index])
        picture = _surroundings(rng)
        size, looks = rng.uniform(0.85, 1.1), rng.choice((-1, 1))
        x, y = rng.uniform(17, SIDE - 18, size=2)
        for part, (name, variant) in enumerate(zip(PARTS, chosen, strict=True)):
            (right, down), reach = _PLACES[name]
            mask = (
                _norm(
                    variant,
                    (_X - x - looks * size * right) / (size * reach[0]),
                    (_Y - y - size * down) / (size * reach[1]),
                )
                <= 1
            )
            colour = np.array(_TINTS[name][variant]) * rng.uniform(0.8, 1.1) + rng.normal(0, 0.03, 3)
            if name not in without:
                picture[mask] = colour
                masks[index, :part] &= ~mask
                masks[index, part] = mask
        pictures[index] = _finished(picture, rng)
    return pictures, masks


def _surroundings(rng: np.random.Generator) -> NDArray[np.float64]:
    """Patches of colour, coarse and fine, and four shapes of other colours (SIDE, SIDE, 3)."""
    coarse = rng.uniform(0.3, 0.7, (4, 4, 3)).repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1)
    fine = rng.uniform(-0.1, 0.1, (SIDE // 3, SIDE // 3, 3)).repeat(3, axis=0).repeat(3, axis=1)
    picture: NDArray[np.float64] = coarse + fine
    for _ in range(4):
        _paint(picture, _shape(rng, rng.uniform(0.02, 0.06)), OTHERS[rng.integers(len(OTHERS))], rng)
    return picture


def _shape(rng: np.random.Generator, share: float) -> NDArray[np.bool_]:
    """A disc, square, or diamond of that share of the picture, wholly inside it."""
    kind = rng.integers(3)
    reach = SIDE * np.sqrt(share / (np.pi, 4, 2)[kind])
    y, x = (axis - rng.uniform(reach, SIDE - 1 - reach) for axis in (_Y, _X))
    return np.asarray(_norm(kind, x, y) <= reach)


def _norm(kind: np.int64, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each place is from the middle, such that what is nearer than 1 is a disc, a square, or a diamond."""
    x, y = np.abs(x), np.abs(y)
    return np.asarray((np.hypot(y, x), np.maximum(y, x), y + x)[kind])


def _paint(
    picture: NDArray[np.float64], mask: NDArray[np.bool_], colour: NDArray[np.float64], rng: np.random.Generator
) -> None:
    picture[mask] = colour * rng.uniform(0.8, 1.1) + rng.normal(0, 0.03, 3)


def _finished(picture: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """With noise over everything, as (3, SIDE, SIDE) from 0 to 1."""
    noisy = picture + rng.normal(0, 0.04, picture.shape)
    return noisy.clip(0, 1).transpose(2, 0, 1).astype(np.float32)
