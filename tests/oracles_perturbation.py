"""Slow, obvious reference implementations of maps that change the picture, for any function from a picture to a score.

They import nothing from the library under test. Only numpy, only float64, only loops. x is ONE picture (C, H, W).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def occlusion(score: Callable[[Array], float], x: Array, patch: int, stride: int, baseline: Array) -> Array:
    """(H, W): for every pixel, the mean fall of the score over the squares that cover it (Zeiler and Fergus 2014, 4.2).

    Squares begin at 0, stride, 2 stride, ... until one reaches the border, and are cut there. `baseline` is (C,).
    """
    channels, height, width = x.shape
    whole = score(x)
    starts = []
    for length in (height, width):
        along = [0]
        while along[-1] + patch < length:
            along.append(along[-1] + stride)
        starts.append(along)
    falls: list[list[list[float]]] = [[[] for _ in range(width)] for _ in range(height)]
    for top in starts[0]:
        for left in starts[1]:
            covered = np.array(x, dtype=np.float64)
            inside = [
                (i, j) for i in range(top, min(top + patch, height)) for j in range(left, min(left + patch, width))
            ]
            for i, j in inside:
                for channel in range(channels):
                    covered[channel, i, j] = baseline[channel]
            fall = whole - score(covered)
            for i, j in inside:
                falls[i][j].append(fall)
    return np.array([[sum(one) / len(one) for one in row] for row in falls])


PERTURBATION_ORACLES = {"occlusion": occlusion}
"""What proves each of these methods; methods/test_occlusion.py holds them beside each other."""
