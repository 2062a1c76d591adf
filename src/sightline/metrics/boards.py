"""Boards: n x n pictures of different classes in one, where it is known which part speaks for which class.

On a plain board the model sees all of it at once (grid pointing game): a class's map should lie on its own picture, if the model finds it
there. On a board of `Apart` each class is read off its own picture alone (DiFull): whatever a map marks elsewhere is provably wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from sightline.errors import MetricError
from sightline.models.adapter import Adapter
from sightline.models.outputs import only_grid, unwrap, with_grid
from sightline.models.twin import twin

BOARD_LAYER = "board"


@dataclass(frozen=True)
class Board:
    """Which pictures stand on a board, row by row, and the class of each."""

    pictures: tuple[int, ...]
    classes: tuple[int, ...]

    @property
    def n(self) -> int:
        """Pictures along each side."""
        return int(np.sqrt(len(self.pictures)))


def draw_boards(
    classes: Sequence[int],
    confidences: Sequence[float],
    *,
    n: int = 2,
    boards: int = 50,
    least: float = 0.8,
    seed: int = 0,
) -> list[Board]:
    """Which pictures go on which board: n x n different classes on each, and each picture on one board at most.

    Args:
        classes: of each picture, as the model says them.
        confidences: their probabilities.
        n: pictures along each side.
        boards: how many at most; boards that shared pictures would not be independent of each other.
        least: pictures of which the model is less sure are left out, as in the papers (0.99 there).
        seed: of the choice.

    Raises:
        MetricError: there are not enough classes of which the model is sure.
    """
    sure = [at for at, confidence in enumerate(confidences) if confidence >= least]
    known = {classes[at] for at in sure}
    if len(known) < n * n:
        raise MetricError(
            f"a board of {n} x {n} needs {n * n} different classes of which the model is sure to {least:g}; "
            f"there are {len(known)} among {len(classes)} pictures. Give more pictures, or a lower bar"
        )
    rng = np.random.default_rng(seed)
    left = [sure[at] for at in rng.permutation(len(sure))]
    found: list[Board] = []
    while len(found) < boards:
        # Of the classes that are left the commonest first, so that most pictures find a place.
        common = Counter(classes[at] for at in left)
        if len(common) < n * n:
            break
        chosen = [next(at for at in left if classes[at] == k) for k, _ in common.most_common(n * n)]
        left = [at for at in left if at not in chosen]
        order = [chosen[place] for place in rng.permutation(n * n)]
        found.append(Board(tuple(order), tuple(classes[at] for at in order)))
    return found


def assembled(cells: Tensor, n: int) -> Tensor:
    """Cells (B * n * n, C, h, w), row by row, as boards (B, C, n * h, n * w)."""
    many, channels, h, w = cells.shape
    rows = cells.reshape(many // (n * n), n, n, channels, h, w).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(many // (n * n), channels, n * h, n * w)


def cut(boards: Tensor, n: int) -> Tensor:
    """Boards (B, C, n * h, n * w) as cells (B * n * n, C, h, w)."""
    batch, channels, h, w = boards.shape
    if h % n or w % n:
        raise MetricError(f"a board of {h} x {w} can't be cut into {n} x {n} equal cells")
    cells = boards.reshape(batch, channels, n, h // n, n, w // n).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch * n * n, channels, h // n, w // n)


class Apart(nn.Module):
    """A classifier of boards whose pictures never meet: logit (cell * K + class) is the model's logit of that class for that cell.

    Its layer "board" holds what the model's layer says of all cells, put together, as one grid.
    """

    def __init__(self, adapter: Adapter, layer: str, n: int) -> None:
        super().__init__()
        self.model = adapter.module
        self.board = nn.Identity()
        self.layer, self.n, self.logits = layer, n, adapter.logits
        self.training = self.board.training = False  # not by eval(), which would reach the model

    def forward(self, x: Tensor) -> Tensor:
        """Boards (B, C, n * H, n * W) -> logits (B, n * n * K)."""

        def together(_module: Any, _args: Any, output: Any) -> Any:
            grid = only_grid(output)
            if grid is None or grid.dim() != 4:
                raise MetricError(f"layer {self.layer!r} gives no maps (B, C, h, w) that a board could be made of")
            return with_grid(output, cut(self.board(assembled(grid, self.n)), self.n))

        # Looked through anew in each call, so that a copy of this module joins its own cells.
        logits = self.logits(twin(self.model, {self.layer: together})(cut(x, self.n)))
        found: Tensor = logits.reshape(len(x), -1)
        return found


def apart(adapter: Adapter, layer: str, n: int) -> Adapter:
    """An adapter for boards of n x n pictures that the model can't mix."""
    module = Apart(adapter, layer, n)
    return Adapter(
        name=f"{adapter.name} on boards of {n} x {n}",
        module=module,
        layer=BOARD_LAYER,
        layer_reason="the cells of the model's layer put together",
        logits=unwrap,
        provenance=adapter.provenance,
        notes=adapter.notes,
    )
