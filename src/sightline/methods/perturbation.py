"""Maps that change the picture and ask the model for its score, and for nothing else.

x = the picture as the model receives it (1, C, H, W), f = the target's score of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.errors import MethodError
from sightline.methods.gradient_cams import at_least_single
from sightline.methods.registry import method


@method("occlusion", needs="scores", signed=True, reference="Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2")
def occlusion(
    capture: Capture,
    probe: Probe,
    *,
    patch: int = 0,
    stride: int = 0,
    baseline: float | Sequence[float] | str = 0.0,
) -> Tensor:
    """How far the score falls when a square of the picture is covered; asks for nothing but scores, so that any model will do.

    Formula: map_ij = mean of f(x) - f(x with the square covered) over the squares that cover pixel ij. Squares begin at multiples
    of the stride, and those that reach beyond the border are cut there. A cell of the map is a block of pixels that the same
    squares cover.

    Args:
        patch: side of the square in pixels of the model's input; 0 for about a seventh of the picture's shorter side.
        stride: pixels from one square to the next, at most the patch; 0 for half of it. Half the stride costs four times as much.
        baseline: what the square is painted with, in the units of the model's input: a number, or one for each channel; or mean,
            for the picture's own mean colour. 0 is the data's mean colour where the input is normalised by it.

    Differs: the paper shows the score itself at the covered place, not how far it fell.
    """
    x = capture.input
    height, width = x.shape[2:]
    shorter = min(height, width)
    patch = patch or min(shorter, max(2, 2 * round(shorter / 14)))
    stride = stride or max(1, patch // 2)
    if patch > shorter:
        raise MethodError(f"option patch is {patch}; expected at most the picture's shorter side, {shorter}")
    if stride > patch:
        raise MethodError(
            f"option stride is {stride}; expected at most the patch, {patch}, so that no pixel is left uncovered"
        )
    colour = _colour(x, baseline)
    places = [(row, column) for row in _starts(height, patch, stride) for column in _starts(width, patch, stride)]
    squares = [(slice(row, row + patch), slice(column, column + patch)) for row, column in places]
    scores = []
    for part in probe.steps(len(squares) + 1):  # the last picture is whole
        pictures = x.repeat(part.stop - part.start, 1, 1, 1)
        for picture, (rows, columns) in zip(pictures, squares[part], strict=False):
            picture[:, rows, columns] = colour
        scores.append(at_least_single(probe.score(pictures)))
    found = torch.cat(scores)
    cell = math.gcd(patch, stride, height, width)
    sums = found.new_zeros(2, height // cell, width // cell)  # of falls, and how many
    for fall, (rows, columns) in zip(found[-1] - found[:-1], squares, strict=True):
        block = sums[:, rows.start // cell : rows.stop // cell, columns.start // cell : columns.stop // cell]
        block += torch.stack([fall, torch.ones_like(fall)])[:, None, None]
    return (sums[0] / sums[1])[None]


def _starts(length: int, patch: int, stride: int) -> range:
    """Where squares begin along one side: the last one is the first that reaches the border."""
    return range(0, length - patch + stride, stride)


def _colour(x: Tensor, baseline: float | Sequence[float] | str) -> Tensor:
    """What is painted over a square: (C, 1, 1), or (1, 1, 1) for all channels."""
    if isinstance(baseline, str):
        return at_least_single(x)[0].mean(dim=(1, 2), keepdim=True).to(x)
    values = list(baseline) if isinstance(baseline, Sequence) else [baseline]
    if len(values) not in (1, x.shape[1]):
        raise MethodError(
            f"option baseline has {len(values)} numbers; expected one, or one for each of {x.shape[1]} channels"
        )
    return torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None]
