"""Networks whose weights are set by hand, so that the importance of every pixel is known exactly.

All four are chains of the same kind: a 1 x 1 convolution turns colours into features, pixel by pixel, a ReLU follows, and
each feature is averaged over cells of 4 x 4 pixels. What comes after the cells is what tells the networks apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sightline.errors import ModelError

CELL = 4  # pixels along one side of a cell of the grid
GREY = [1 / 3, 1 / 3, 1 / 3]
# A colour against the mean of the other two: exactly 0 for every grey, however bright.
RED, GREEN, BLUE = [1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]


@dataclass(frozen=True, eq=False)
class HandMade:
    """A network made by hand, pictures for it, and the truth about them.

    Attributes:
        rule: what decides the logit of class 0, in one sentence.
        module: from pictures (N, 3, side, side), 0 to 1, to logits (N, 2); in evaluation mode. Its layer "features" has the
            pictures' resolution, "cells" a grid of side / 4 in each direction.
        pictures: (count, seed) -> pictures (count, 3, side, side), 0 to 1, the same for the same arguments.
        importance: pictures (N, 3, side, side) -> (N, side, side): by how much the logit of class 0 falls when this pixel alone
            is made black. Never negative, in units of the logit. Exact for all pictures from 0 to 1, up to rounding.
    """

    rule: str
    module: nn.Module
    pictures: Callable[[int, int], Tensor]
    importance: Callable[[Tensor], Tensor]

    def truth(self, x: Tensor) -> Tensor:
        """Which pixels move the logit of class 0 when they are made black: (N, side, side) bool, for pictures like `importance`."""
        return self.importance(x) > 0


def looks_left(side: int = 32) -> HandMade:
    """Class 0 is how bright the left half is on average, class 1 the right half; neither sees the other half.

    Each pixel counts by its own brightness. The head has a weight for every place, so that a method that averages gradients
    over places (grad-cam) shows both halves, and is wrong.

    Args:
        side: of the pictures, in pixels; a multiple of 8.

    Raises:
        ModelError: another side.
    """
    grid = _grid(side)
    left = torch.zeros(grid, grid)
    left[:, : grid // 2] = 2 / grid**2
    module = _network([GREY], _linear(torch.stack([left, left.flip(1)])[:, None]))

    def pictures(count: int, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        coarse = rng.uniform(0.1, 0.8, (count, 3, grid, grid)).repeat(CELL, axis=2).repeat(CELL, axis=3)
        return _tensor(coarse + rng.uniform(0, 0.2, (count, 3, side, side)))

    def importance(x: Tensor) -> Tensor:
        counts = torch.arange(side, device=x.device) < side // 2
        return x.mean(dim=1) * counts * 2 / side**2

    return HandMade("the mean brightness of the left half", module, pictures, importance)


def counts_red(side: int = 32) -> HandMade:
    """Class 0 is how much red there is, anywhere; class 1 is the constant 0.5.

    The red of a pixel is red less the mean of green and blue, or 0 if that is negative; the logit is the sum over all pixels,
    counted in cells of 16 pixels. The pictures hold patches of red and of other colours on grey.

    Args:
        side: as for `looks_left`.

    Raises:
        ModelError: as for `looks_left`.
    """
    grid = _grid(side)
    module = _network([RED], _linear(torch.stack([torch.ones(1, grid, grid), torch.zeros(1, grid, grid)]), [0.0, 0.5]))

    def pictures(count: int, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        found = _greys(rng, count, side, 0.2, 0.8)
        for picture in found:
            for channel in (1, 2, *[0] * rng.integers(1, 4)):  # red last, so that nothing covers all of it
                height, width = rng.integers(side // 8, side // 4, size=2)
                top, left = rng.integers(side - height), rng.integers(side - width)
                colour = rng.uniform(0, 0.3, 3)
                colour[channel] = rng.uniform(0.6, 1)
                picture[:, top : top + height, left : left + width] = colour[:, None, None]
        return _tensor(found)

    return HandMade("the amount of red", module, pictures, lambda x: _feature(x, RED) / CELL**2)


def both_patches(side: int = 32) -> HandMade:
    """Class 0 is above 0 only if a red and a blue patch are both there; class 1 is the constant 0.05.

    The logit is ReLU(a + b - 1.5), where a is the mean red of the reddest cell and b the mean blue of the bluest, each from 0
    to 1: one alone can't reach it. A patch fills one cell of 4 x 4 pixels. Of four pictures in a row the first has both
    patches, the second only the red one, the third only the blue one, and the last none: there nothing counts.

    Args:
        side: as for `looks_left`.

    Raises:
        ModelError: as for `looks_left`.
    """
    grid = _grid(side)
    ends: list[tuple[str, nn.Module]] = [("strongest", nn.AdaptiveMaxPool2d(1))]
    ends += _linear(torch.tensor([[1.0, 1.0], [0.0, 0.0]])[:, :, None, None], [-1.5, 0.05])
    module = _network([RED, BLUE], [*ends, ("above", nn.ReLU())])

    def pictures(count: int, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        found = _greys(rng, count, side, 0.2, 0.8)
        for index, picture in enumerate(found):
            cells = rng.choice(grid * grid, size=2, replace=False)
            for channel, cell, there in zip((0, 2), cells, (index % 4 < 2, index % 2 == 0), strict=True):
                if there:
                    top, left = CELL * (cell // grid), CELL * (cell % grid)
                    picture[:, top : top + CELL, left : left + CELL] = 0
                    picture[channel, top : top + CELL, left : left + CELL] = rng.uniform(0.85, 1, (CELL, CELL))
        return _tensor(found)

    def importance(x: Tensor) -> Tensor:
        scores, falls = torch.full((len(x), 1, 1), -1.5, dtype=x.dtype, device=x.device), []
        for colour in (RED, BLUE):
            feature = _feature(x, colour)
            cells = nn.functional.avg_pool2d(feature[:, None], CELL)[:, 0]
            best, second = cells.flatten(1).topk(2).values[:, :, None, None].unbind(1)
            # A pixel takes away its own part of the reddest cell, but only until the next cell is the reddest.
            wins = (cells == best).repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
            falls.append(torch.where(wins, (feature / CELL**2).minimum(best - second), 0))
            scores = scores + best
        # A magenta pixel may count for both patches; and the logit can't fall below 0.
        return sum(falls, torch.zeros_like(x[:, 0])).minimum(scores.relu())

    return HandMade("a red patch and a blue one are both there", module, pictures, importance)


def ignores_distractor(side: int = 32) -> HandMade:
    """Class 0 is how much green there is; a white patch, the brightest thing by far, has no influence at all; class 1 is 0.5.

    The second feature is brightness, ten times as strong as the first, and no logit reads it. Methods that look at
    activations without asking what the score makes of them (eigen-cam) show the white patch, and are wrong. No other grey
    counts either: whatever grey takes its place, the logits stay as they are.

    Args:
        side: as for `looks_left`.

    Raises:
        ModelError: as for `looks_left`.
    """
    grid = _grid(side)
    read = torch.zeros(2, 2, grid, grid)
    read[0, 0] = 1
    module = _network([GREEN, [10 * share for share in GREY]], _linear(read, [0.0, 0.5]))

    def pictures(count: int, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        found = _greys(rng, count, side, 0.05, 0.3)
        size = side // 4
        for picture in found:
            # One in the upper half and one in the lower, so that they never touch.
            tops = (rng.integers(side // 2 - size), side // 2 + rng.integers(side // 2 - size))
            green = (0.1, rng.uniform(0.7, 0.95), 0.1)
            for top, colour in zip(rng.permutation(tops), (green, (1.0, 1.0, 1.0)), strict=True):
                left = rng.integers(side - size)
                picture[:, top : top + size, left : left + size] = np.array(colour)[:, None, None]
        return _tensor(found)

    return HandMade("the amount of green", module, pictures, lambda x: _feature(x, GREEN) / CELL**2)


def _grid(side: int) -> int:
    """How many cells lie along one side."""
    if side < 16 or side % (2 * CELL):
        raise ModelError(
            f"side is {side}; expected a multiple of {2 * CELL}, at least 16, so that cells fit into each half"
        )
    return side // CELL


def _feature(x: Tensor, colour: Sequence[float]) -> Tensor:
    """What the layer "features" makes of each pixel (N, side, side), written once more without the network."""
    red, green, blue = x.unbind(1)
    return (colour[0] * red + colour[1] * green + colour[2] * blue).relu()


def _network(colours: Sequence[Sequence[float]], head: Sequence[tuple[str, nn.Module]]) -> nn.Module:
    count = len(colours)
    colour = nn.Conv2d(3, count, 1, bias=False)
    cells = nn.Conv2d(count, count, CELL, stride=CELL, groups=count, bias=False)
    with torch.no_grad():
        colour.weight.copy_(torch.tensor(colours)[:, :, None, None])
        cells.weight.fill_(1 / CELL**2)
    layers: list[tuple[str, nn.Module]] = [("colour", colour), ("features", nn.ReLU()), ("cells", cells), *head]
    return nn.Sequential(OrderedDict(layers)).eval().requires_grad_(False)


def _linear(weights: Tensor, biases: Sequence[float] = (0.0, 0.0)) -> list[tuple[str, nn.Module]]:
    """A head with one weight for each class, feature and place (2, C, h, w)."""
    head = nn.Linear(weights[0].numel(), len(weights))
    with torch.no_grad():
        head.weight.copy_(weights.flatten(1))
        head.bias.copy_(torch.tensor(biases))
    return [("flat", nn.Flatten()), ("head", head)]


def _greys(rng: np.random.Generator, count: int, side: int, low: float, high: float) -> NDArray[np.float64]:
    return rng.uniform(low, high, (count, 1, side, side)).repeat(3, axis=1)


def _tensor(pictures: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(pictures.astype(np.float32))
