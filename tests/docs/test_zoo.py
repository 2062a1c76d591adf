"""Every module of timm has a member in docs/zoo.py, and each member's layer holds the grid that docs/zoo.md says.

What is right is found out here anew: one cell of the picture is filled with noise, and the layer must change there most.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import sightline

DOCS = Path(__file__).parents[2] / "docs"
ZOO = runpy.run_path(str(DOCS / "zoo.py"))
FAMILIES = ZOO["FAMILIES"]
PAGE = (DOCS / "zoo.md").read_text(encoding="utf-8").splitlines()
Cell = tuple[int, int]


def cells_of(h: int, w: int) -> list[Cell]:
    """Three corners and a cell inside: no two of them are mirror images of each other in all."""
    return list(dict.fromkeys([(0, 0), (0, w - 1), (h - 1, 0), (h // 2, w // 3)]))


def noisy(x: Tensor, cell: Cell, h: int, w: int) -> Tensor:
    """The picture with one cell of an h x w grid filled with noise, but for a margin that the next cell reaches into."""
    changed = x.clone()
    height, width = x.shape[2] // h, x.shape[3] // w
    part = changed[:, :, cell[0] * x.shape[2] // h :, cell[1] * x.shape[3] // w :][
        :, :, : height * 7 // 8, : width * 7 // 8
    ]
    part.copy_(torch.rand(part.shape) < 0.5)
    return changed


def found(model: nn.Module, x: Tensor, layer: str, cells: list[Cell], size: Cell) -> list[Cell]:
    """For each cell of the picture the cell of the layer's grid that changes most with it."""
    torch.manual_seed(0)
    pictures = torch.cat([x, *(noisy(x, cell, *size) for cell in cells)])
    plain, *changed = sightline.capture(pictures, model, layer=layer).activations
    every = [(r, c) for r in range(size[0]) for c in range(size[1])]
    return [max(every, key=lambda at: float((one - plain)[:, at[0], at[1]].square().sum())) for one in changed]


def aside(one: Cell, other: Cell) -> int:
    return max(abs(one[0] - other[0]), abs(one[1] - other[1]))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_running_shows_and_the_grid_is_that_of_the_picture(family: str) -> None:
    member = FAMILIES[family]
    if not timm.is_model(member.model):
        pytest.skip(f"timm {timm.__version__} has no {member.model}")
    model, x = ZOO["built"](member)
    line, seen = ZOO["line"](family, model, x)
    assert line in PAGE, "run: python docs/zoo.py"
    assert seen is not None, "every family has a layer with a grid"
    h, w = seen.activations.shape[2:]
    cells = cells_of(h, w)
    places = found(model, x, seen.layer, cells, (h, w))
    pairs = list(zip(cells, places, strict=True))
    if member.aside:
        assert all(aside(*pair) <= 1 for pair in pairs), pairs
    else:
        assert (places == cells) is (not member.unchecked), pairs


def test_every_module_of_timm_has_a_member() -> None:
    models = {member.model for member in FAMILIES.values()}
    without = [module for module in timm.list_modules() if not models & set(timm.list_models(module=module))]
    assert not without, "give docs/zoo.py a small member of each, and run it"


def test_few_members_need_a_reason_for_not_being_checked_to_the_cell() -> None:
    assert sum(bool(member.aside or member.unchecked) for member in FAMILIES.values()) <= 5


def test_the_table_names_no_other_family() -> None:
    rows = [line.split("|")[1].strip() for line in PAGE if line.startswith("| ")]
    assert rows == ["family", *FAMILIES]


class Turned(nn.Module):
    """Hands on a grid of patches in another order."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, patches: Tensor) -> Tensor:
        return self.turn(patches)


@pytest.mark.parametrize(
    ("turn", "right"),
    [
        (lambda grid: grid, True),
        (lambda grid: grid.flip(2), False),
        (lambda grid: grid.flip(3), False),
        (lambda grid: grid.transpose(2, 3), False),
        (lambda grid: grid.flatten(2).roll(1, dims=2).view_as(grid), False),
    ],
    ids=["as it is", "upside down", "mirrored", "rows for columns", "one token too many before"],
)
def test_a_grid_in_another_order_is_told_from_the_right_one(turn: Callable[[Tensor], Tensor], right: bool) -> None:
    torch.manual_seed(0)
    order = Turned(turn)
    model = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), order, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    cells = cells_of(5, 5)
    places = found(model.eval(), torch.rand(1, 3, 80, 80), "1", cells, (5, 5))
    assert (places == cells) is right
