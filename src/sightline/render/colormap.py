"""Colours for values, by any name that matplotlib knows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from sightline.errors import MethodError, did_you_mean

SEQUENTIAL = "inferno"
DIVERGING = "RdBu_r"  # white at 0, red for, blue against


@lru_cache(maxsize=32)
def palette(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """256 colours (256, 3), from low to high."""
    import matplotlib

    if name not in matplotlib.colormaps:
        raise MethodError(
            f"there is no colormap {name!r}.{did_you_mean(name, list(matplotlib.colormaps))} Any of matplotlib will do, such as inferno, viridis or gray"
        )
    colours: np.ndarray[Any, np.dtype[np.uint8]] = matplotlib.colormaps[name](np.linspace(0, 1, 256), bytes=True)[:, :3]
    return colours


def levels(values: np.ndarray[Any, Any], scale: float, signed: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Values as indices into a palette: 0..scale over all of it, or -scale..scale with 0 in the middle; NaN as 0."""
    share = np.nan_to_num(values / scale if scale > 0 else np.zeros_like(values), nan=0.0, posinf=1.0, neginf=-1.0)
    if signed:
        return np.asarray(np.rint(127.5 + 127.5 * np.clip(share, -1, 1)), np.uint8)
    return np.asarray(np.rint(255 * np.clip(share, 0, 1)), np.uint8)
