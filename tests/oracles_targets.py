"""Slow, obvious reference implementations of scores that are no class: regions, boxes, likeness; and of D-RISE.

They import nothing from the library under test. Only numpy, only float64, only loops. Coordinates are pixels of the
photograph: x to the right, y down, 0 at the outer edge of the first pixel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


# --- where the cells of an output lie --------------------------------------------------------------------------------


def place(
    row: float, column: float, photo: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> tuple[float, float]:
    """(x, y) in the photograph of a place of the input, where the photograph was resized, then cut at ``corner``.

    Sizes and the corner are (x, y). A resize keeps shares of the whole; a cut moves. A corner below 0 is a border.
    """
    x = (column + corner[0]) / resized[0] * photo[0]
    y = (row + corner[1]) / resized[1] * photo[1]
    return x, y


def shares(
    inside: Callable[[float, float], bool],
    grid: tuple[int, int],
    seen: tuple[int, int],
    photo: tuple[int, int],
    resized: tuple[int, int],
    corner: tuple[int, int],
) -> Array:
    """(h, w): of each output cell the share of 4 x 4 places that lie inside; ``seen`` is the input's (width, height).

    The places are the middles of the cell's 16 equal parts. What lies off the photograph is outside.
    """
    h, w = grid
    M = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            for a in range(4):
                for b in range(4):
                    row = (i + (a + 0.5) / 4) * seen[1] / h
                    column = (j + (b + 0.5) / 4) * seen[0] / w
                    x, y = place(row, column, photo, resized, corner)
                    if 0 <= x < photo[0] and 0 <= y < photo[1] and inside(x, y):
                        M[i, j] += 1 / 16
    return M


def in_box(box: Box) -> Callable[[float, float], bool]:
    """Whether a place lies in the box."""
    left, top, right, bottom = box
    return lambda x, y: left <= x < right and top <= y < bottom


def in_mask(mask: Sequence[Sequence[Any]]) -> Callable[[float, float], bool]:
    """Whether the pixel of the photograph that holds a place is in the mask."""
    return lambda x, y: bool(mask[math.floor(y)][math.floor(x)])


def cell_of_point(
    point: tuple[float, float],
    grid: tuple[int, int],
    seen: tuple[int, int],
    photo: tuple[int, int],
    resized: tuple[int, int],
    corner: tuple[int, int],
) -> Array:
    """(h, w): 1 in the one output cell that holds the point, 0 elsewhere; all 0 where a cut left the point out."""
    h, w = grid
    M = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            left, top = place(i * seen[1] / h, j * seen[0] / w, photo, resized, corner)
            right, bottom = place((i + 1) * seen[1] / h, (j + 1) * seen[0] / w, photo, resized, corner)
            if left <= point[0] < right and top <= point[1] < bottom:
                M[i, j] = 1
    return M


def argmax_region(logits: Array, index: int) -> Array:
    """(h, w) of logits (K, h, w): 1 where class ``index`` has the largest logit, 0 elsewhere."""
    K, h, w = logits.shape
    M = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            M[i, j] = float(all(logits[index, i, j] >= logits[k, i, j] for k in range(K)))
    return M


def region_score(logits: Array, index: int, M: Array) -> float:
    """sum over (i, j) of M_ij y^c_ij (Vinogradova et al. 2020, arXiv:2002.11434, Eq. 2)."""
    _, h, w = logits.shape
    return math.fsum(float(M[i, j]) * float(logits[index, i, j]) for i in range(h) for j in range(w))


# --- boxes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a detector says of one picture: N boxes, and of each a label and a score; the others where it gives them."""

    boxes: Sequence[Box]
    labels: Sequence[int]
    scores: Sequence[float]
    masks: Sequence[Array] | None = None
    probabilities: Sequence[Sequence[float]] | None = None
    objectness: Sequence[float] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 where there is no union."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    tall = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = wide * tall
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either > 0 else 0.0


def mask_overlap(a: Array, b: Array) -> float:
    """sum a b / (sum a + sum b - sum a b) of two masks (H, W) between 0 and 1; 0 where both are empty."""
    both = one = other = 0.0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            both += float(a[i, j]) * float(b[i, j])
            one += float(a[i, j])
            other += float(b[i, j])
    either = one + other - both
    return both / either if either > 0 else 0.0


def chance(found: Found, d: int, index: int) -> float:
    """p_d(c): the detector's probability of the class; or its score, where that is the detection's label."""
    if found.probabilities is not None:
        return float(found.probabilities[d][index])
    return float(found.scores[d]) if found.labels[d] == index else 0.0


def box_score(found: Found, box: Box, index: int) -> float:
    """max over the detections d of IoU(box, d) p_d(c); 0 without any."""
    return max([overlap(box, found.boxes[d]) * chance(found, d, index) for d in range(len(found))], default=0.0)


def mask_score(found: Found, mask: Array, index: int) -> float:
    """The same with the overlap of masks."""
    assert found.masks is not None
    return max([mask_overlap(mask, found.masks[d]) * chance(found, d, index) for d in range(len(found))], default=0.0)


def instance(found: Found, number: int) -> int:
    """Which detection is the ``number``-th by score, from 1; the earlier of two equal ones."""
    order = sorted(range(len(found)), key=lambda d: (-float(found.scores[d]), d))
    return order[number - 1]


# --- likeness and labels ---------------------------------------------------------------------------------------------


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """a b / (|a| |b|); 0 where one is 0."""
    length = math.sqrt(math.fsum(float(v) ** 2 for v in a)) * math.sqrt(math.fsum(float(v) ** 2 for v in b))
    return math.fsum(float(v) * float(w) for v, w in zip(a, b, strict=True)) / length if length > 0 else 0.0


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit))."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


# --- D-RISE ----------------------------------------------------------------------------------------------------------


def likeness(box: Box, label: int, P: Sequence[float] | None, found: Found) -> float:
    """max over d of IoU(d_t, d) cos(P_t, P_d) O_d (Petsiuk et al. 2021, arXiv:2006.03204, Eq. 3 to 5).

    O_d is 1 where the detector gives no objectness. Where it gives no probabilities, (score if the labels are equal,
    else 0) stands in the place of the last two. 0 where nothing is found.
    """
    best = 0.0
    for d in range(len(found)):
        if P is not None and found.probabilities is not None:
            same = cosine(P, found.probabilities[d])
            if found.objectness is not None:
                same *= float(found.objectness[d])
        else:
            same = float(found.scores[d]) if found.labels[d] == label else 0.0
        best = max(best, overlap(box, found.boxes[d]) * same)
    return best


def d_rise(score: Callable[[Array], float], x: Array, masks: Sequence[Array], p: float, baseline: Array) -> Array:
    """(H, W): (1 / (N p)) sum_n (f_n - mean f) M_n, f_n = score of x M_n + baseline (1 - M_n).

    The paper's map is the sum of f_n M_n (section 3.2); see ``rise`` in oracles_perturbation.py for what is taken off
    and for the masks, which are RISE's.
    """
    N = len(masks)
    scores = [score(x * mask + baseline * (1 - mask)) for mask in masks]
    mean = math.fsum(scores) / N
    _, height, width = x.shape
    found = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            terms = [(f - mean) * float(mask[i, j]) for f, mask in zip(scores, masks, strict=True)]
            found[i, j] = math.fsum(terms) / (N * p)
    return found


TARGET_ORACLES: dict[str, Callable[..., Any]] = {"d-rise": d_rise}
"""What proves the methods that stand on targets of this file; methods/test_d_rise.py uses it."""
