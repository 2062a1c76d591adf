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

    @classmethod
    def of_input(cls, width: int, height: int) -> View:
        """Of a ready input, which is its own photograph."""
        return cls((width, height), (width, height), (0, 0), (width, height))

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

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the photograph lies in the input; both in pixels from the top left."""
        return (
            x * self.resized[0] / self.photo[0] - self.offset[0],
            y * self.resized[1] / self.photo[1] - self.offset[1],
        )

    def to_photo(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the input lies on the photograph; both in pixels from the top left."""
        return (
            (x + self.offset[0]) * self.photo[0] / self.resized[0],
            (y + self.offset[1]) * self.photo[1] / self.resized[1],
        )

    def peak(self, grid: np.ndarray[Any, Any]) -> tuple[int, int]:
        """(x, y) of the photograph pixel in the middle of the strongest cell (h, w), of those whose middle lies on the photograph."""
        middles = [self._middles(axis, cells) for axis, cells in ((0, grid.shape[1]), (1, grid.shape[0]))]
        inside = [(at >= 0) & (at < size) for at, size in zip(middles, self.photo, strict=True)]
        on = inside[1][:, None] & inside[0][None, :]
        values = np.where(on, grid, -np.inf) if on.any() else grid
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        found = [
            min(max(int(at[index]), 0), size - 1)
            for at, index, size in zip(middles, (column, row), self.photo, strict=True)
        ]
        return found[0], found[1]

    def _middles(self, axis: int, cells: int) -> np.ndarray[Any, Any]:
        """Where the middle of each cell lies on the photograph along one axis, in its pixels."""
        at = (np.arange(cells) + 0.5) * (self.input[axis] / cells) + self.offset[axis]
        return np.asarray(np.floor(at * (self.photo[axis] / self.resized[axis])))

    def place_labels(self, grid: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The (h, w) grid of names by number laid back on the photograph: (H, W), each pixel its nearest cell's, -1 where never seen."""
        rows, row_seen = self._cells(axis=1, cells=grid.shape[0])
        columns, column_seen = self._cells(axis=0, cells=grid.shape[1])
        placed: np.ndarray[Any, np.dtype[np.int64]] = grid.astype(np.int64)[rows[:, None], columns[None, :]]
        placed[~row_seen] = -1
        placed[:, ~column_seen] = -1
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
        at, seen = self._along(axis)
        position = np.clip(at * (cells / self.input[axis]) - 0.5, 0, cells - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, cells - 1)
        weights = np.zeros((pixels, cells), np.float32)
        index = np.arange(pixels)
        weights[index, low] = 1 - (position - low)
        np.add.at(weights, (index, high), (position - low).astype(np.float32))
        return weights, seen

    def _cells(self, axis: int, cells: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.bool_]]]:
        """The cell in which each photograph pixel's centre lies along one axis, and which pixels were seen."""
        at, seen = self._along(axis)
        return np.clip(np.floor(at * (cells / self.input[axis])), 0, cells - 1).astype(np.int64), seen

    def _along(self, axis: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Where each photograph pixel's centre lies on the input along one axis, and which pixels were seen."""
        pixels = self.photo[axis]
        at = (np.arange(pixels) + 0.5) * (self.resized[axis] / pixels) - self.offset[axis]
        seen = (at >= 0) & (at < self.input[axis])
        if not seen.any():  # the model saw less than a pixel's width; it is the nearest one
            seen[np.abs(at - self.input[axis] / 2).argmin()] = True
        return at, seen
