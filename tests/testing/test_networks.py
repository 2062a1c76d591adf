"""The truth about networks made by hand, found again by brute force: every pixel is changed, and the score looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import attribute
from sightline.errors import ModelError
from sightline.testing import HandMade, both_patches, counts_red, ignores_distractor, looks_left, peak_in

Make = Callable[[int], HandMade]
ALL = (looks_left, counts_red, both_patches, ignores_distractor)
EACH = pytest.mark.parametrize("make", ALL)
CELL = 4


def falls(made: HandMade, x: Tensor) -> Tensor:
    """By how much the logit of class 0 falls when one pixel is made black, for every pixel (N, H, W)."""
    before, found = made.module(x)[:, 0], torch.zeros_like(x[:, 0])
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            changed = x.clone()
            changed[:, :, row, column] = 0
            found[:, row, column] = before - made.module(changed)[:, 0]
    return found


def enlarged(grids: Tensor) -> Tensor:
    return grids.repeat_interleave(CELL, dim=-2).repeat_interleave(CELL, dim=-1)


@EACH
@pytest.mark.parametrize("side", [16, 32])
def test_the_importance_of_a_pixel_is_what_the_score_loses_without_it(make: Make, side: int) -> None:
    made = make(side)
    x = made.pictures(4, 1)
    found = falls(made, x)
    assert (found - made.importance(x)).abs().max() < 2e-6
    assert torch.equal(found.abs() > 2e-6, made.truth(x))
    assert made.truth(x).any()
    assert not made.truth(x).all()


@EACH
def test_no_patch_without_truth_moves_the_score_and_every_patch_with_truth_does(make: Make) -> None:
    made = make(32)
    x = made.pictures(8, 2)
    matters = F.max_pool2d(made.truth(x).float(), CELL) > 0
    for row in range(8):
        for column in range(8):
            changed = x.clone()
            changed[:, :, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 0
            moved = (made.module(x) - made.module(changed))[:, 0].abs() > 2e-6
            assert torch.equal(moved, matters[:, row, column])


@EACH
def test_hires_cam_finds_the_importance_of_every_pixel_and_lies_in_the_truth(make: Make) -> None:
    made = make(32)
    x = made.pictures(8, 3)
    exact = attribute(x, made.module, method="hires-cam", target=0, layer="features")
    assert (exact - made.importance(x)).abs().max() < 2e-6
    # On the grid a cell counts for all of its pixels.
    coarse = attribute(x, made.module, method="hires-cam", target=0)
    assert coarse.shape == (8, 8, 8)
    cells = F.max_pool2d(made.truth(x).float(), CELL) > 0
    assert (coarse * ~cells).abs().max() == 0
    assert torch.equal(coarse.abs().sum(dim=(1, 2)) > 0, made.truth(x).flatten(1).any(dim=1))


@EACH
def test_pictures_are_the_same_for_the_same_seed_and_keep_to_their_range(make: Make) -> None:
    made = make(32)
    x = made.pictures(5, 4)
    assert x.shape == (5, 3, 32, 32)
    assert x.dtype == torch.float32
    assert 0 <= x.min() <= x.max() <= 1
    assert torch.equal(x, make(32).pictures(5, 4))
    assert not torch.equal(x, made.pictures(5, 5))
    assert made.module(x).shape == (5, 2)


@EACH
@pytest.mark.parametrize("side", [0, 8, 20, -16])
def test_a_side_in_which_cells_do_not_fit_is_refused(make: Make, side: int) -> None:
    with pytest.raises(ModelError, match=rf"side is {side}; expected a multiple of 8"):
        make(side)


def test_looks_left_sees_nothing_on_the_right_whatever_is_there() -> None:
    made = looks_left()
    x = made.pictures(8, 0)
    changed = x.clone()
    changed[:, :, :, 16:] = torch.rand(8, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    before, after = made.module(x), made.module(changed)
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().min() > 1e-3
    # What its docstring says of grad-cam: one weight for all places can't know left from right.
    wrong = attribute(x, made.module, method="grad-cam", target=0)
    right_half = wrong[:, :, 4:].sum(dim=(1, 2)) / wrong.sum(dim=(1, 2))
    assert right_half.min() > 0.4


def test_both_patches_needs_both() -> None:
    made = both_patches()
    x = made.pictures(16, 0)
    score = made.module(x)[:, 0]
    assert (score[::4] >= 0.2).all()
    for missing in (1, 2, 3):
        assert (score[missing::4] == 0).all()
    assert (made.module(x).argmax(dim=1) == 0).tolist() == [True, False, False, False] * 4


def test_both_patches_is_right_also_where_patches_compete() -> None:
    made = both_patches()
    x = made.pictures(8, 6)[::4].clone()
    reds = made.truth(x) & (x[:, 0] > x[:, 2])
    # A second red patch: in the first picture as strong, in the second a little weaker. Then no pixel, or only a part of one,
    # is missed, since the other patch takes over.
    for index, strength in enumerate((1.0, 0.99)):
        row, column = reds[index].nonzero()[0].tolist()
        patch = x[index, :, row : row + CELL, column : column + CELL].clone()
        free = next(at for at in range(0, 32, CELL) if not made.truth(x)[index, at : at + CELL].any())
        x[index, :, free : free + CELL, :CELL] = strength * patch
    found = falls(made, x)
    assert (found - made.importance(x)).abs().max() < 2e-6
    assert not (made.truth(x)[0] & (x[0, 0] > x[0, 2])).any()
    assert made.importance(x)[1][x[1, 0] > x[1, 2]].max() < 0.02 < 0.85 / CELL**2


def test_both_patches_is_right_when_the_score_is_nearly_0_or_a_pixel_is_magenta() -> None:
    made = both_patches()
    x = made.pictures(2, 7)[:1].repeat(2, 1, 1, 1)
    reds = made.truth(x) & (x[:, 0] > x[:, 2])
    x[0, 0][reds[0]] *= (1.52 - made.module(x)[0, 0]) / 1.5  # just above the threshold
    row, column = reds[1].nonzero()[0].tolist()
    x[1, :, row, column] = torch.tensor([1.0, 0.0, 1.0])
    assert (falls(made, x) - made.importance(x)).abs().max() < 2e-6


def test_the_distractor_has_exactly_no_influence_and_still_the_strongest_activations() -> None:
    made = ignores_distractor()
    x = made.pictures(32, 0)
    white = x.amin(dim=1) == 1
    assert (white.sum(dim=(1, 2)) == 64).all()
    assert not (made.truth(x) & white).any()
    for grey in (0.0, 0.3, 0.77):
        changed = torch.where(white[:, None], grey, x)
        assert torch.equal(made.module(x), made.module(changed))
    fooled = attribute(x, made.module, method="eigen-cam", target=0)
    right = attribute(x, made.module, method="hires-cam", target=0)
    assert peak_in(fooled, white.numpy()).all()
    assert peak_in(right, made.truth(x).numpy()).all()
    assert not peak_in(right, white.numpy()).any()
