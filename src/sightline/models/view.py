"""`View`: how a photograph became a model's input, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class View:
    """How the (upright) photograph became the input: resized, then a window of it taken.

    Attributes:
        photo: (width, height) of the photograph in pixels.
        resized: (width, height) to which the whole photograph was scaled.
        offset: (left, top) of the input's window inside the resized picture; above 0 crops, below 0 pads.
        input: (width, height) of what the model received.
    """

    photo: tuple[int, int]
    resized: tuple[float, float]
    offset: tuple[float, float]
    input: tuple[int, int]

    def place(self, grid: np.ndarray[Any, Any]) -> Array:
        """The (h, w) grid laid back on the photograph: (H, W) float32, NaN where the model never looked.

        Each photograph pixel's centre is found on the grid and interpolated bilinearly, which is one resize with
        `align_corners=False` and the inverse of the crop, without rounding in between.
        """
        h, w = grid.shape
        rows, row_seen = self._weights(axis=1, cells=h)
        columns, column_seen = self._weights(axis=0, cells=w)
        placed: Array = (rows @ grid.astype(np.float32)) @ columns.T
        placed[~row_seen] = np.nan
        placed[:, ~column_seen] = np.nan
        return placed

    def seen(self) -> tuple[float, float, float, float]:
        """The part of the photograph that the model received: (left, top, right, bottom) in photograph pixels."""
        edges = []
        for axis in (0, 1):
            scale = self.photo[axis] / self.resized[axis]
            ends = [(self.offset[axis] + at) * scale for at in (0, self.input[axis])]
            edges.append([min(max(end, 0.0), float(self.photo[axis])) for end in ends])
        return edges[0][0], edges[1][0], edges[0][1], edges[1][1]

    def seen_share(self) -> float:
        """Share of the photograph's area that the model received, 0 to 1."""
        left, top, right, bottom = self.seen()
        return (right - left) * (bottom - top) / (self.photo[0] * self.photo[1])

    def _weights(self, axis: int, cells: int) -> tuple[Array, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Bilinear weights (photograph pixels, cells) along one axis, and which pixels were seen."""
        pixels = self.photo[axis]
        ratio = self.resized[axis] / pixels
        at = (np.arange(pixels) + 0.5) * ratio - self.offset[axis]
        seen = (at >= 0) & (at < self.input[axis])
        if not seen.any():  # the model saw less than a pixel's width; it is the nearest one
            seen[np.abs(at - self.input[axis] / 2).argmin()] = True
        position = np.clip(at * (cells / self.input[axis]) - 0.5, 0, cells - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, cells - 1)
        weights = np.zeros((pixels, cells), np.float32)
        index = np.arange(pixels)
        weights[index, low] = 1 - (position - low)
        np.add.at(weights, (index, high), (position - low).astype(np.float32))
        return weights, seen
