"""`Asked`: one target made ready, and `Mark`: what it means on the photograph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

Target = Callable[[Any], Tensor]
TargetSpec = int | str | Target | None
Corners = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Mark:
    """What a target means on the photograph, to be drawn there; in its pixels from the top left.

    Attributes:
        box: (left, top, right, bottom).
        point: (x, y).
        region: (H, W), true inside.
        picture: another photograph, to be shown beside.
        text: what the words are a part of, such as a whole answer.
        words: where in `text` they begin and end.
    """

    box: Corners | None = None
    point: tuple[float, float] | None = None
    region: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    picture: Image.Image | None = None
    text: str = ""
    words: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """One target made ready.

    Attributes:
        score: its score function.
        index: the class in a table (B, K); None for other scores.
        label: its name to show.
        chance: the probability that the model gives it now, where that isn't told by the class.
        mark: what of the photograph it is about.
        alike: how much what the model finds is like it, where a method defines that otherwise than the score.
        doubt: what is to be said of it beside every map.
    """

    score: Target
    index: int | None
    label: str
    chance: float | None = None
    mark: Mark | None = None
    alike: Target | None = None
    doubt: str = ""
