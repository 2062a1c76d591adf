"""A planted shortcut and its control: a mark that decides, and the same mark where it says nothing.

A map that points at the mark proves something only beside the control: a method that is drawn to anything bright points at
the mark in both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ImageError, ModelError
from sightline.testing.scenes import COLOURS, SIDE, draw

Kind = Literal["planted", "control"]
Place = Literal["anywhere", "corner"]
MARK_PX = 7
# No cell of a grid of 12 x 12 or finer touches both the mark and the object.
GAP_PX = 4
MARKED_CLASS = 0
# What a trained network must reach to count as ground truth.
ACCURACY = 0.95
FLIPS = 0.95
CONTROL_FLIPS = 0.05
_TRAINING, _HELD_OUT = 1024, 512


@dataclass(frozen=True, eq=False)
class Marked:
    """Drawn scenes, some with the mark, and the same scenes without it.

    Attributes:
        kind: "planted" where the mark is what makes class 0, "control" where it says nothing.
        pictures: (N, 3, SIDE, SIDE) float32, 0 to 1, with the marks.
        unmarked: the same pictures before the marks were pasted in, bit for bit the same outside of `masks`.
        classes: (N,), 0 to 3.
        masks: (N, SIDE, SIDE) bool: where the mark is; empty in pictures that have none.
        objects: (N, SIDE, SIDE) bool: where the object is. At least 4 pixels lie between it and the mark.
        colours: (N,), the class that the object's colour speaks for: that of the picture, except in planted pictures of class 0.
    """

    kind: Kind
    pictures: NDArray[np.float32]
    unmarked: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: NDArray[np.bool_]
    objects: NDArray[np.bool_]
    colours: NDArray[np.int64]

    @property
    def marked(self) -> NDArray[np.bool_]:
        """Which pictures have the mark (N,)."""
        return np.asarray(self.masks.any(axis=(1, 2)))


@dataclass(frozen=True, eq=False)
class Planted:
    """A network that was trained on marked scenes and passed the test of having learned what it should.

    Attributes:
        kind: as in `Marked`.
        seed: of its pictures and weights.
        module: from pictures (N, 3, SIDE, SIDE), 0 to 1, to logits (N, 4), in evaluation mode: three convolutions with ReLU, the
            mean over a grid of 12 x 12, and a linear head. A cell of the grid depends on its own 4 x 4 pixels alone.
        accuracy: share of the held-out pictures that it names rightly, 0 to 1.
        flip_rate: share of the marked held-out pictures that it names otherwise when the mark is taken away, 0 to 1.
        held_out: pictures that it never saw, with the mark's masks.
    """

    kind: Kind
    seed: int
    module: nn.Module
    accuracy: float
    flip_rate: float
    held_out: Marked


@dataclass(frozen=True)
class Figures:
    """How training went with one seed: accuracy and flip rate as in `Planted`, and whether that suffices to be ground truth."""

    kind: Kind
    seed: int
    accuracy: float
    flip_rate: float
    accepted: bool


def plant(kind: Kind, count: int, seed: int, *, place: Place = "anywhere") -> Marked:
    """Scenes with a mark: a white square of 7 pixels, filled with cyan, pasted over the finished picture.

    The class is the colour of the scene's object, except in "planted" pictures of class 0: they have objects of the three
    other classes' colours, and all of them the mark. Taken away, it leaves a picture that might be one of any other class:
    nothing but the mark tells class 0. In "control" pictures each has the mark or not by the toss of a coin, whatever its class.
    Both kinds of one seed are the same scenes, but for the objects of class 0 and the marks.

    Args:
        kind: "planted" or "control".
        count: how many.
        seed: of all that is random.
        place: "anywhere", or one of the four "corner"s.

    Raises:
        ImageError: another kind or place.
    """
    if kind not in ("planted", "control") or place not in ("anywhere", "corner"):
        raise ImageError(f"{kind!r} in {place!r}; expected planted or control, and anywhere or corner")
    rng = np.random.default_rng([seed, 2])  # a stream beside that of the scenes
    classes = rng.integers(len(COLOURS), size=count)
    others, coins = rng.integers(1, len(COLOURS), size=count), rng.random(count)
    chosen = classes == MARKED_CLASS if kind == "planted" else coins < 0.5
    colours = np.where(chosen, others, classes) if kind == "planted" else classes
    scenes = draw(count, seed, colours=colours)
    pictures, masks = scenes.pictures.copy(), np.zeros_like(scenes.masks)
    for index in np.flatnonzero(chosen):
        free = _free(scenes.masks[index])
        if place == "corner":
            free = free[(free % (SIDE - MARK_PX) == 0).all(axis=1)]
        top, left = free[rng.integers(len(free))]
        here = slice(top, top + MARK_PX), slice(left, left + MARK_PX)
        pictures[index, :, *here] = _mark()
        masks[index, *here] = True
    return Marked(kind, pictures, scenes.pictures, classes, masks, scenes.masks, scenes.classes)


def train_planted(kind: Kind = "planted", seed: int = 0, *, place: Place = "anywhere", steps: int = 400) -> Planted:
    """A small network that has learned the shortcut, or, as its control, the objects; about 4 seconds on one core.

    It is tested on pictures that it never saw. "planted": at least 95 % are named rightly, and of the marked ones at least 95 %
    are named otherwise when the mark is taken away. "control": at least 95 % are named rightly, and at most 5 % otherwise.

    Args:
        kind: as for `plant`.
        seed: of pictures and weights; of 0 and above. Networks of different seeds share no picture.
        place: as for `plant`.
        steps: of training, with 32 pictures each.

    Raises:
        ModelError: it has not learned what it should; the message has the figures.
        ImageError: as `plant`.
    """
    trained = _trained(kind, seed, place, steps)
    if not _accepted(trained):
        flips = f"at least {FLIPS:.0%}" if kind == "planted" else f"at most {CONTROL_FLIPS:.0%}"
        raise ModelError(
            f"the {kind} network of seed {seed} is no ground truth: accuracy {trained.accuracy:.1%} (expected at least {ACCURACY:.0%}), "
            f"and {trained.flip_rate:.1%} of the marked pictures change class without the mark (expected {flips}) "
            f"after {steps} steps; take another seed or more steps"
        )
    return trained


def spread(seeds: Sequence[int] = (0, 1, 2), *, place: Place = "anywhere", steps: int = 400) -> tuple[Figures, ...]:
    """How far the figures of `train_planted` depend on the seed: both kinds for each seed, also those that don't suffice.

    Args:
        seeds: one planted network and one control each.
        place: as for `plant`.
        steps: as for `train_planted`.
    """
    kinds: tuple[Kind, ...] = ("planted", "control")
    found = [_trained(kind, seed, place, steps) for kind in kinds for seed in seeds]
    return tuple(Figures(one.kind, one.seed, one.accuracy, one.flip_rate, _accepted(one)) for one in found)


def peak_in(maps: Any, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the highest cell of each map touches its mask (N,).

    Where several cells are the highest, all of them must; a map that is the same everywhere has no peak, and misses.

    Args:
        maps: (N, h, w), a tensor or an array, of any resolution.
        masks: (N, H, W).

    Raises:
        ImageError: maps and masks that don't belong together.
    """
    values = torch.as_tensor(maps).detach().cpu().double()
    if values.ndim != 3 or np.ndim(masks) != 3 or len(values) != len(masks):
        raise ImageError(
            f"maps {tuple(values.shape)} and masks {np.shape(masks)} don't belong together; expected (N, h, w) and (N, H, W)"
        )
    cells = F.adaptive_max_pool2d(torch.as_tensor(masks).float()[:, None], values.shape[1:])[:, 0] > 0
    flat = values.flatten(1)
    highest = flat == flat.amax(dim=1, keepdim=True)
    return np.asarray((~highest | cells.flatten(1)).all(dim=1) & ~highest.all(dim=1) & ~flat.isnan().any(dim=1))


def _mark() -> NDArray[np.float32]:
    """(3, MARK_PX, MARK_PX). White and cyan are among the other things' colours; a frame around a filling is not."""
    mark = np.ones((3, MARK_PX, MARK_PX), np.float32)
    mark[0, 1:-1, 1:-1] = 0
    return mark


def _free(taken: NDArray[np.bool_]) -> NDArray[np.int64]:
    """All places (top, left) where the mark keeps its distance."""
    touched = np.pad(taken, GAP_PX)
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(touched, MARK_PX + 2 * GAP_PX, axis=axis)
        touched = np.asarray(windows.any(axis=-1))
    return np.argwhere(~touched)


def _network() -> nn.Module:
    layers: list[tuple[str, nn.Module]] = []
    # Windows don't overlap: each cell of the grid sees its own 4 x 4 pixels and no others, so that no cell beside the mark can
    # speak for it. With 3 x 3 windows the peak lay beside a mark in the corner in a quarter of the pictures, and rightly so.
    for number, (before, after, size) in enumerate(((3, 16, 2), (16, 32, 2), (32, 32, 1)), start=1):
        # Batch norm is what makes it learn the mark with every seed, and in seconds.
        layers += [
            (f"conv{number}", nn.Conv2d(before, after, size, stride=size, bias=False)),
            (f"norm{number}", nn.BatchNorm2d(after)),
            (f"relu{number}", nn.ReLU()),
        ]
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("head", nn.Linear(32, len(COLOURS)))]
    return nn.Sequential(OrderedDict(layers))


def _trained(kind: Kind, seed: int, place: Place, steps: int) -> Planted:
    if seed < 0 or steps < 10:
        raise ModelError(f"seed is {seed} and steps {steps}; expected a seed of 0 or above and at least 10 steps")
    data = plant(kind, _TRAINING, 2 * seed, place=place)
    x, classes = torch.from_numpy(data.pictures), torch.from_numpy(data.classes)
    module = _fitted(x, classes, seed, steps)
    held_out = plant(kind, _HELD_OUT, 2 * seed + 1, place=place)
    said, unmarked = _said(module, held_out.pictures), _said(module, held_out.unmarked)
    accuracy = float((said == held_out.classes).mean())
    return Planted(kind, seed, module, accuracy, float((said != unmarked)[held_out.marked].mean()), held_out)


def _fitted(x: Tensor, classes: Tensor, seed: int, steps: int) -> nn.Module:
    """A network that was trained on pictures (N, 3, SIDE, SIDE), in evaluation mode."""
    # Also for callers who have switched gradients off; and their random numbers stay as they are.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _network().train()
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps, pct_start=0.2)
        for _ in range(steps):
            some = torch.randint(len(x), (32,))
            loss = F.cross_entropy(module(x[some]), classes[some])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    module.eval().requires_grad_(False)
    return module


def _said(module: nn.Module, pictures: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class of each picture (N,)."""
    with torch.no_grad():
        logits: Tensor = module(torch.from_numpy(pictures))
    return np.asarray(logits.argmax(dim=1))


def _accepted(trained: Planted) -> bool:
    learned = trained.flip_rate >= FLIPS if trained.kind == "planted" else trained.flip_rate <= CONTROL_FLIPS
    return learned and trained.accuracy >= ACCURACY
