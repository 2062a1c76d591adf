"""Models with several inputs: one is explained, the others stay as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.errors import ModelError


class Pair(nn.Module):
    """Class 0 is the red of the left picture plus twice the red of the right one, class 1 is 0.5; all set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.left_cells, self.right_cells = self.branch(), self.branch()

    @staticmethod
    def branch() -> nn.Sequential:
        conv = nn.Conv2d(3, 1, 1, bias=False)
        conv.weight.data = torch.tensor([1.0, -0.5, -0.5])[None, :, None, None]
        return nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(4))

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        red = self.left_cells(left).sum(dim=(1, 2, 3)) + 2 * self.right_cells(right).sum(dim=(1, 2, 3))
        return torch.stack([scale * red, torch.full_like(red, 0.5)], dim=1)


def with_red(row: int, column: int) -> Tensor:
    """Grey, 32 x 32, with one cell of 4 x 4 pixels of pure red."""
    found = torch.full((1, 3, 32, 32), 0.5)
    found[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    return found


def at(row: int, column: int) -> Tensor:
    expected = torch.zeros(8, 8)
    expected[row, column] = 1
    return expected


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "ablation-cam"])
@pytest.mark.parametrize("other", [(1, 1), (6, 2)])
def test_the_map_of_left_lies_on_its_own_block_wherever_rights_lies(method: str, other: tuple[int, int]) -> None:
    model = sightline.adapt(Pair(), explained="left", others={"right": with_red(*other)})
    maps = sightline.attribute(with_red(3, 5), model, method=method, layer="left_cells", target=0)
    torch.testing.assert_close(maps[0] / maps.max(), at(3, 5))


def test_the_other_side_is_explained_by_naming_it_and_layers_keep_their_names() -> None:
    module = Pair()
    model = sightline.adapt(module, explained="right", others={"left": with_red(0, 0)})
    assert [name for name, _ in model.module.named_modules()] == [name for name, _ in module.named_modules()]
    maps = sightline.attribute(with_red(6, 2), model, method="hires-cam", layer="right_cells", target=0)
    torch.testing.assert_close(maps[0], 2 * at(6, 2))


def test_the_default_layer_is_in_the_branch_that_is_explained() -> None:
    for explained, other in (("left", "right"), ("right", "left")):
        model = sightline.adapt(Pair(), explained=explained, others={other: with_red(0, 0)})
        assert sightline.capture(with_red(3, 5), model).layer.startswith(f"{explained}_cells")


def test_a_held_tensor_of_one_row_serves_a_batch_and_one_of_as_many_rows_is_used_row_by_row() -> None:
    batch = torch.cat([with_red(3, 5), with_red(1, 1), with_red(7, 0)])
    one = sightline.adapt(Pair(), explained="left", others={"right": with_red(2, 2), "scale": 3.0})
    rows = sightline.adapt(Pair(), explained="left", others={"right": with_red(2, 2).repeat(3, 1, 1, 1), "scale": 3.0})
    maps = [sightline.attribute(batch, each, method="hires-cam", layer="left_cells", target=0) for each in (one, rows)]
    torch.testing.assert_close(maps[0], maps[1])
    torch.testing.assert_close(maps[0][1], 3 * at(1, 1))


def test_a_photograph_is_explained_and_its_result_says_what_is_held() -> None:
    def read(picture: Any) -> Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    model = sightline.adapt(
        Pair(), explained="left", others={"right": with_red(0, 0)}, preprocess=read, layers=["left_cells"]
    )
    photo = (with_red(3, 5)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    found = sightline.explain(photo, model, method="occlusion", target=0, options={"patch": 4, "stride": 4})
    assert "explained: left; right is held as given" in found.warnings
    assert tuple(int(each) // 4 for each in found.peak) == (5, 3)
    assert sightline.explain(photo, model, target=0).peak == (22, 14)


def test_the_users_module_is_as_it_was() -> None:
    module = Pair()
    before = dict(vars(module))
    sightline.attribute(with_red(3, 5), sightline.adapt(module, others={"right": with_red(0, 0)}))
    assert vars(module) == before
    assert type(module) is Pair


@pytest.mark.parametrize(
    ("explained", "others", "says"),
    [
        ("lift", {"right": torch.zeros(1)}, r"no argument 'lift'\. .*left.* It has: left, right, scale"),
        ("left", {"wrong": torch.zeros(1)}, r"no argument 'wrong'.* It has: left, right, scale"),
        ("left", {}, "also needs right; give others={'right': ...}"),
        ("left", {"left": torch.zeros(1), "right": torch.zeros(1)}, "can't be held as well"),
        ("left", [1], "names of the forward's arguments"),
    ],
)
def test_what_fits_no_argument_is_refused(explained: str, others: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        sightline.adapt(Pair(), explained=explained, others=others)


def test_a_held_tensor_of_another_batch_is_refused() -> None:
    model = sightline.adapt(Pair(), explained="left", others={"right": with_red(0, 0).repeat(3, 1, 1, 1)})
    with pytest.raises(ModelError, match=r"others\['right'\] is a tensor \(3, 3, 32, 32\) for a batch of 2"):
        sightline.attribute(with_red(3, 5).repeat(2, 1, 1, 1), model, layer="left_cells")


def test_a_function_has_no_inputs_to_choose_from() -> None:
    with pytest.raises(ModelError, match="black box"):
        sightline.adapt(lambda x: x, explained="left")
