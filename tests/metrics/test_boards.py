"""Boards: put together and cut apart, which pictures stand on them, and a model that can't mix what stands on one."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import CLASSES, MODELS, assert_untouched, images, seeded
from sightline.errors import LayerError, MetricError, SightlineError
from sightline.metrics.boards import BOARD_LAYER, apart, assembled, cut, draw_boards
from sightline.metrics.localisation import di_full, grid_pointing_game
from sightline.models.adapter import Adapter

EXACT = 1e-10
NETS = ["plain", "residual", "regularised", "dense", "tuple", "dict", "view", "flat"]


def board_of(n: int, size: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64, boards: int = 1) -> Tensor:
    return assembled(images(boards * n * n, size=size, seed=seed, dtype=dtype), n)


def without_mixing(name: str, n: int, dtype: torch.dtype = torch.float64) -> tuple[Any, Adapter]:
    """A model, and the adapter for boards that it can't mix."""
    model = seeded(MODELS[name], dtype=dtype)
    return model, apart(sightline.adapt(model, layers=[model.layer]), model.layer, n)


def maps_of(adapter: Adapter, boards: Tensor, targets: Any, method: str = "hires-cam") -> Tensor:
    return sightline.attribute(boards, adapter, method=method, target=targets)


# ---------------------------------------------------------------------------------------------------- together and apart


@pytest.mark.proves("grid-pointing-game", "di-full")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_putting_cells_together_and_cutting_them_apart_are_inverses(n: int) -> None:
    cells = torch.arange(2 * n * n * 3 * 4 * 5, dtype=torch.float64).reshape(2 * n * n, 3, 4, 5)
    board = assembled(cells, n)
    assert board.shape == (2, 3, 4 * n, 5 * n)
    assert torch.equal(cut(board, n), cells)
    assert torch.equal(assembled(cut(board, n), n), board)


@pytest.mark.proves("grid-pointing-game", "di-full")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_cells_stand_on_a_board_row_by_row_where_the_metric_looks_for_them(n: int) -> None:
    cells = torch.zeros(2 * n * n, 1, 4, 5)
    for number in range(n * n):
        cells.zero_()
        cells[n * n + number] = 1
        first, second = assembled(cells, n)[:, 0].double().numpy()
        assert not first.any()
        assert [grid_pointing_game(second, (one, n)) for one in range(n * n)] == [one == number for one in range(n * n)]
        row, column = divmod(number, n)
        assert second[4 * row : 4 * row + 4, 5 * column : 5 * column + 5].all()


def test_a_board_that_has_no_equal_cells_is_not_cut() -> None:
    with pytest.raises(MetricError, match="9 x 8 can't be cut into 2 x 2"):
        cut(torch.zeros(1, 3, 9, 8), 2)


# --------------------------------------------------------------------------------------------------------- which pictures


def drawn(count: int = 60, n: int = 2, boards: int = 20, seed: int = 0, **options: Any) -> Any:
    rng = np.random.default_rng(9)
    classes = rng.integers(0, 8, count).tolist()
    confidences = rng.uniform(0.5, 1, count).tolist()
    return classes, confidences, draw_boards(classes, confidences, n=n, boards=boards, seed=seed, **options)


@pytest.mark.parametrize("n", [1, 2])
def test_the_pictures_of_a_board_are_of_different_classes_of_which_the_model_is_sure(n: int) -> None:
    classes, confidences, found = drawn(n=n)
    assert len(found) > 3
    for board in found:
        assert board.n == n
        assert len(board.pictures) == n * n
        assert board.classes == tuple(classes[one] for one in board.pictures)
        assert len(set(board.classes)) == n * n
        assert min(confidences[one] for one in board.pictures) >= 0.8


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_picture_stands_on_two_boards_and_as_many_boards_are_made_as_can_be(n: int) -> None:
    """b boards can be made just when no class is needed on more than b of them: the sum of min(count, b) is b n^2 or more."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        classes = rng.choice(12, 70, p=rng.dirichlet(np.ones(12))).tolist()
        counts = np.bincount(classes)
        if np.count_nonzero(counts) < n * n:
            continue
        most = max(b for b in range(71) if np.minimum(counts, b).sum() >= b * n * n)
        found = draw_boards(classes, [1.0] * 70, n=n, boards=1000, seed=seed)
        pictures = [one for board in found for one in board.pictures]
        assert len(found) == most
        assert len(set(pictures)) == len(pictures)
        assert len(draw_boards(classes, [1.0] * 70, n=n, boards=2, seed=seed)) == min(2, most)


def test_boards_are_seeded_and_their_pictures_stand_anywhere() -> None:
    assert drawn()[2] == drawn()[2]
    assert drawn()[2] != drawn(seed=1)[2]
    boards = [draw_boards([0, 1, 2, 3], [1.0] * 4, seed=seed)[0] for seed in range(200)]
    places = Counter(one.pictures.index(0) for one in boards)
    assert sorted(places) == [0, 1, 2, 3]
    assert min(places.values()) > 25


def test_too_few_classes_of_which_the_model_is_sure_are_refused_with_the_numbers() -> None:
    with pytest.raises(MetricError, match=r"needs 4 different classes .* sure to 0.8; there are 3 among 5 pictures"):
        draw_boards([0, 1, 2, 3, 3], [0.9, 0.9, 0.9, 0.2, 0.79])
    with pytest.raises(MetricError, match="there are 0 among 0"):
        draw_boards([], [])


# ----------------------------------------------------------------------------------------------------------------- DiFull


@pytest.mark.proves("di-full")
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", NETS)
def test_the_logits_of_a_board_are_the_models_own_of_each_picture(name: str, n: int) -> None:
    model, adapter = without_mixing(name, n)
    cells = images(2 * n * n, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = adapter.module(assembled(cells, n)), torch.cat([model(one[None]) for one in cells])
    assert found.shape == (2, n * n * CLASSES)
    np.testing.assert_allclose(found, wanted.reshape(2, -1), rtol=0, atol=EXACT)


@pytest.mark.proves("di-full")
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", ["plain", "residual", "regularised", "tuple", "dict", "view"])
def test_hires_cam_is_exactly_zero_outside_of_the_classs_own_picture(name: str, n: int) -> None:
    _, adapter = without_mixing(name, n)
    board = board_of(n)
    for cell in range(n * n):
        found = maps_of(adapter, board, cell * CLASSES + 2)
        assert found.shape == (1, 8 * n, 8 * n)
        inside = torch.zeros(n * n, 1, 8, 8, dtype=torch.bool)
        inside[cell] = True
        assert not found[~assembled(inside, n)[:, 0]].any()
        assert found[assembled(inside, n)[:, 0]].any()
        if found.max() > 0:
            assert di_full(found[0].numpy(), (cell, n)) == pytest.approx(1, abs=1e-15)


@pytest.mark.proves("di-full")
def test_hires_cam_on_a_board_is_that_of_the_picture_alone() -> None:
    model, adapter = without_mixing("residual", 2)
    cells = images(4, dtype=torch.float64)
    for cell, one in enumerate(cells):
        found = cut(maps_of(adapter, assembled(cells, 2), cell * CLASSES + 1)[:, None], 2)[cell, 0]
        wanted = sightline.attribute(one[None], model, method="hires-cam", layer=model.layer, target=1)[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT)


@pytest.mark.proves("di-full")
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_eigen_cam_knows_no_class_and_marks_other_pictures_too(name: str) -> None:
    _, adapter = without_mixing(name, 2)
    board = board_of(2)
    found = [maps_of(adapter, board, cell * CLASSES, "eigen-cam")[0].numpy() for cell in range(4)]
    shares = [di_full(one, (cell, 2)) for cell, one in enumerate(found)]
    assert max(shares) < 0.9
    assert sum(shares) == pytest.approx(1), "the same map for each of them"


@pytest.mark.proves("di-full")
def test_a_batch_of_boards_gives_what_they_give_alone() -> None:
    _, adapter = without_mixing("residual", 2)
    boards, targets = board_of(2, boards=5), [3, 5 + 1, 15, 10 + 4, 19]
    alone = [maps_of(adapter, one[None], target) for one, target in zip(boards, targets, strict=True)]
    together = maps_of(adapter, boards, targets)
    np.testing.assert_allclose(together, torch.cat(alone), rtol=0, atol=EXACT)
    shares = [di_full(one.numpy(), (target // CLASSES, 2)) for one, target in zip(together, targets, strict=True) if one.max() > 0]  # fmt: skip
    assert len(shares) > 2
    assert shares == pytest.approx([1] * len(shares), abs=1e-15)


@pytest.mark.proves("di-full")
@pytest.mark.parametrize("name", ["residual", "dict"])
def test_four_threads_at_once_get_what_one_gets(name: str) -> None:
    _, adapter = without_mixing(name, 2)
    asked = [(board_of(2, seed=seed), seed % (4 * CLASSES)) for seed in range(24)]
    wanted = [maps_of(adapter, *one) for one in asked]
    assert len({one.numpy().tobytes() for one in wanted}) == 24
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: maps_of(adapter, *one), asked))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.proves("di-full")
@pytest.mark.parametrize("name", NETS)
def test_the_model_is_untouched_by_a_board(name: str) -> None:
    model, board = seeded(MODELS[name]), board_of(2, dtype=torch.float32)
    model.head.weight.requires_grad_(False)
    with assert_untouched(model, board):
        adapter = apart(sightline.adapt(model, layers=[model.layer]), model.layer, 2)
        maps_of(adapter, board, [7])


@pytest.mark.proves("di-full")
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_layer_in_another_mode_than_the_model_stays_in_it(training: bool) -> None:
    """Frozen statistics in training, or a dropout kept on for Monte Carlo: the user's choice."""
    model, board = seeded(MODELS["regularised"]).train(training), board_of(2, dtype=torch.float32)
    model.norm1.train(not training)
    with assert_untouched(model, board):
        adapter = apart(sightline.adapt(model, layers=[model.layer]), model.layer, 2)
        maps_of(adapter, board, [7])


def test_a_model_in_training_mode_is_explained_in_evaluation_mode_and_stays_in_training() -> None:
    model, adapter = without_mixing("regularised", 2)
    board = board_of(2)
    wanted = maps_of(adapter, board, 7)
    model.train()
    adapter = apart(sightline.adapt(model, layers=[model.layer]), model.layer, 2)
    np.testing.assert_allclose(maps_of(adapter, board, 7), wanted, rtol=0, atol=EXACT)
    assert all(one.training for one in model.modules())


class Single(nn.Module):
    """One logit, (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu().mean(dim=(1, 2, 3))


def test_a_model_of_one_logit_has_one_a_picture() -> None:
    model = seeded(Single, dtype=torch.float64)
    adapter = apart(sightline.adapt(model, layers=["layer"]), "layer", 2)
    cells = images(4, dtype=torch.float64)
    np.testing.assert_allclose(adapter.module(assembled(cells, 2)).detach()[0], model(cells).detach(), atol=EXACT)
    found = maps_of(adapter, assembled(cells, 2), 3)
    assert cut(found[:, None], 2).flatten(1).any(dim=1).tolist() == [False, False, False, True]


def test_the_adapter_of_boards_says_what_it_is() -> None:
    model, adapter = without_mixing("plain", 2)
    assert adapter.layer == BOARD_LAYER
    assert "boards of 2 x 2" in adapter.name
    assert adapter.module.model is model


def test_a_layer_without_maps_makes_no_board() -> None:
    model = seeded(MODELS["tokens"], dtype=torch.float64)
    adapter = apart(sightline.adapt(model, layers=[model.layer]), model.layer, 2)
    with pytest.raises(SightlineError, match="gives no maps"):
        maps_of(adapter, board_of(2), 1)


def test_a_layer_that_does_not_exist_and_a_board_of_no_equal_cells_are_refused() -> None:
    model, adapter = without_mixing("plain", 2)
    with pytest.raises(SightlineError, match="can't be cut"):
        maps_of(adapter, torch.zeros(1, 3, 33, 32, dtype=torch.float64), 1)
    with pytest.raises(LayerError, match="no layer 'relu3'"):
        maps_of(apart(sightline.adapt(model), "relu3", 2), board_of(2), 1)
