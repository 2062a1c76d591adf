"""Where the heat lies: closed forms, exact boundaries, slow float64 oracles also where the model never looked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import oracles_metrics as oracles
from sightline.errors import MetricError, UndefinedError
from sightline.metrics.localisation import (
    di_full,
    energy_pointing_game,
    grid_pointing_game,
    iou,
    mass_in_mask,
    pointing_game,
)

EXACT = 1e-10
PLACED: dict[str, Callable[..., float]] = {
    "pointing-game": pointing_game,
    "energy-pointing-game": energy_pointing_game,
    "mass-in-mask": mass_in_mask,
    "iou": iou,
}
SHARES = ("energy-pointing-game", "mass-in-mask")
BOARDS: dict[str, Callable[..., float]] = {"grid-pointing-game": grid_pointing_game, "di-full": di_full}
SIZES = [(5, 7), (9, 9), (24, 17), (1, 12)]
KINDS = ["random", "mostly zero", "ties", "signed", "negative but one", "constant"]


def made(kind: str, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.random(size)
    kinds = {
        "random": values,
        "mostly zero": np.where(values < 0.59, 0, values),
        "ties": rng.integers(0, 4, size).astype(float),
        "signed": values - 0.5,
        "negative but one": np.where(values == values.max(), 1, -values),
        "constant": np.full(size, 0.7),
    }
    return kinds[kind]


def unseen(heat: np.ndarray, border: int = 1) -> np.ndarray:
    """The map with NaN at the left and right, where the model never looked."""
    found = heat.copy()
    found[:, :border] = found[:, -2 * border :] = np.nan
    return found


def blob(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """An object with a hole and a place apart."""
    rng = np.random.default_rng(seed)
    found = np.zeros(size, bool)
    top, left = (int(rng.integers(max(one // 2, 1))) for one in size)
    found[top : top + max(size[0] // 2, 1), left : left + max(size[1] // 2, 1)] = True
    found[top + size[0] // 4, left + size[1] // 4] = False
    found[rng.integers(size[0]), rng.integers(size[1])] = True
    return found


def box(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    found = np.zeros(size, bool)
    found[rows, columns] = True
    return found


def point(size: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    found = np.zeros(size)
    for row, column in places:
        found[row, column] = 2.0
    return found


def oracle(name: str, heat: np.ndarray, mask: np.ndarray, **options: Any) -> float:
    if name == "pointing-game":
        return oracles.pointing_game(heat, mask, options.get("tolerance", 15))
    if name == "iou":
        return oracles.iou(heat, mask, options.get("threshold", 0.15))
    return {"energy-pointing-game": oracles.energy_pointing_game, "mass-in-mask": oracles.mass_in_mask}[name](
        heat, mask
    )


# -------------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.proves(
    param="name", says="equals its slow float64 oracle for any sign, with ties, and where the model never looked"
)
@pytest.mark.parametrize("holes", [False, True], ids=["seen", "unseen"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLACED)
def test_the_figure_is_the_oracles(name: str, kind: str, size: tuple[int, int], holes: bool) -> None:
    options: dict[str, list[dict[str, Any]]] = {
        "pointing-game": [{"tolerance": 0}, {"tolerance": 2}, {}],
        "iou": [{"threshold": 0.15}, {"threshold": 0.5}, {"threshold": 1.0}],
    }
    for seed in range(3):
        heat = unseen(made(kind, size, seed)) if holes else made(kind, size, seed)
        if not np.nanmax(heat) > 0:
            continue
        for mask in (blob(size, seed), np.ones(size, bool)):
            for each in options.get(name, [{}]):
                kept = heat.copy()
                assert PLACED[name](heat, mask, **each) == pytest.approx(oracle(name, heat, mask, **each), abs=EXACT)
                np.testing.assert_array_equal(heat, kept)


@pytest.mark.proves(param="name", says="equals its slow float64 oracle for every cell of boards of several sizes")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", BOARDS)
def test_the_share_of_each_cell_is_the_oracles_and_all_sum_to_1(name: str, n: int, kind: str) -> None:
    heat = made(kind, (4 * n, 5 * n))
    found = [BOARDS[name](heat, (cell, n)) for cell in range(n * n)]
    assert found == pytest.approx([oracles.grid_pointing_game(heat, cell, n) for cell in range(n * n)], abs=EXACT)
    assert sum(found) == pytest.approx(1, abs=EXACT)


# -------------------------------------------------------------------------------------------------------- pointing game


@pytest.mark.proves("pointing-game")
@pytest.mark.parametrize("side", ["left", "right", "above", "below"])
def test_a_peak_15_pixels_from_the_object_is_a_hit_and_one_16_pixels_away_is_a_miss(side: str) -> None:
    size, mask = (60, 60), box((60, 60), slice(25, 35), slice(25, 35))
    places = {
        "left": lambda away: (30, 25 - away),
        "right": lambda away: (30, 34 + away),
        "above": lambda away: (25 - away, 30),
        "below": lambda away: (34 + away, 30),
    }
    assert pointing_game(point(size, places[side](15)), mask) == 1
    assert pointing_game(point(size, places[side](16)), mask) == 0


@pytest.mark.proves("pointing-game")
@pytest.mark.parametrize(
    ("down", "right", "hit"), [(9, 12, 1), (12, 9, 1), (10, 12, 0), (11, 11, 0), (10, 11, 1), (15, 1, 0)]
)
def test_the_tolerance_is_a_circle_around_the_objects_pixels(down: int, right: int, hit: float) -> None:
    mask = box((50, 50), slice(20, 21), slice(20, 21))
    for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        heat = point((50, 50), (20 + rows * down, 20 + columns * right))
        assert pointing_game(heat, mask) == hit


@pytest.mark.proves("pointing-game")
def test_without_tolerance_only_the_object_itself_is_a_hit() -> None:
    mask = box((9, 9), slice(3, 6), slice(3, 6))
    hits = np.array([[pointing_game(point((9, 9), (i, j)), mask, tolerance=0) for j in range(9)] for i in range(9)])
    assert np.array_equal(hits, mask)


@pytest.mark.proves("pointing-game")
def test_equal_maxima_count_by_their_share() -> None:
    mask = box((60, 60), slice(0, 5), slice(0, 5))
    inside, near, far, farther = (2, 2), (19, 2), (50, 50), (20, 40)
    assert pointing_game(point((60, 60), inside, far), mask) == 0.5
    assert pointing_game(point((60, 60), inside, near, far, farther), mask) == 0.5
    assert pointing_game(point((60, 60), inside, far, farther), mask) == pytest.approx(1 / 3)
    assert pointing_game(np.ones((60, 60)), mask, tolerance=0) == pytest.approx(25 / 3600)


@pytest.mark.proves("pointing-game")
@pytest.mark.parametrize("height", [0.0, -1.0])
def test_a_map_without_positive_heat_is_a_miss(height: float) -> None:
    heat = np.full((20, 20), height)
    assert pointing_game(heat, np.ones((20, 20), bool)) == 0
    heat[:, :4] = np.nan
    assert pointing_game(heat, np.ones((20, 20), bool)) == 0


@pytest.mark.proves("pointing-game")
def test_only_the_highest_place_counts_however_much_lies_elsewhere() -> None:
    heat = np.full((60, 60), 0.999)
    heat[2, 2] = 1
    assert pointing_game(heat, box((60, 60), slice(0, 5), slice(0, 5))) == 1
    assert pointing_game(heat, box((60, 60), slice(30, 60), slice(30, 60))) == 0


# ------------------------------------------------------------------------------------------------- shares of the heat


@pytest.mark.proves(*SHARES)
@pytest.mark.parametrize("height", [1e-200, 0.3, 1e200])
@pytest.mark.parametrize("size", [(8, 10), (23, 17)])
def test_a_uniform_map_has_the_share_of_the_area(size: tuple[int, int], height: float) -> None:
    mask, heat = blob(size), np.full(size, height)
    rows, columns = np.nonzero(mask)
    area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert mass_in_mask(heat, mask) == pytest.approx(mask.mean(), abs=EXACT)
    assert energy_pointing_game(heat, mask) == pytest.approx(area / mask.size, abs=EXACT)


@pytest.mark.proves(*SHARES)
def test_what_the_model_never_saw_has_no_heat_and_counts_nowhere() -> None:
    heat, mask = np.ones((10, 10)), box((10, 10), slice(0, 10), slice(0, 5))
    heat[:, 8:] = np.nan
    assert mass_in_mask(heat, mask) == pytest.approx(5 / 8)
    heat[:, :2] = np.nan
    assert energy_pointing_game(heat, mask) == pytest.approx(3 / 6)


@pytest.mark.proves(*SHARES, "iou", "grid-pointing-game", "di-full")
def test_the_map_is_never_min_maxed_so_that_a_floor_under_it_counts() -> None:
    mask = box((12, 12), slice(0, 6), slice(0, 6))
    heat = np.where(mask, made("random", (12, 12)), 0)
    for name in SHARES:
        assert PLACED[name](heat, mask) == pytest.approx(1, abs=EXACT)
        assert PLACED[name](heat + 1, mask) < 0.5
    assert iou(heat + 1, mask) == pytest.approx(mask.mean()), "all of it is above 15 % of the maximum"
    assert iou(heat, mask) > 0.7
    for name in BOARDS:
        assert BOARDS[name](heat, (0, 2)) == pytest.approx(1, abs=EXACT)
        assert BOARDS[name](heat + 1, (0, 2)) < 0.5


@pytest.mark.proves(*SHARES, "iou", "pointing-game", "grid-pointing-game", "di-full")
@pytest.mark.parametrize("factor", [1e-100, 1e100])
def test_a_positive_factor_and_what_lies_below_0_change_nothing(factor: float) -> None:
    heat, mask = made("signed", (12, 12)), blob((12, 12))
    lower = np.where(heat < 0, 50 * heat, heat)
    for function in PLACED.values():
        assert function(heat * factor, mask) == pytest.approx(function(heat, mask), abs=1e-12)
        assert function(lower, mask) == function(heat, mask)
    for function in BOARDS.values():
        assert function(heat * factor, (1, 2)) == pytest.approx(function(heat, (1, 2)), abs=1e-12)
        assert function(lower, (1, 2)) == function(heat, (1, 2))


@pytest.mark.proves("energy-pointing-game")
def test_the_energy_is_that_of_the_box_and_the_mass_that_of_the_mask() -> None:
    ring = box((9, 9), slice(2, 7), slice(2, 7)) & ~box((9, 9), slice(3, 6), slice(3, 6))
    heat = point((9, 9), (4, 4))
    assert energy_pointing_game(heat, ring) == 1
    assert mass_in_mask(heat, ring) == 0


@pytest.mark.proves("mass-in-mask", "energy-pointing-game", "iou", "pointing-game")
def test_the_mask_itself_as_a_map_is_perfect() -> None:
    mask = blob((15, 18))
    for function in PLACED.values():
        assert function(mask.astype(float), mask) == 1


# ------------------------------------------------------------------------------------------------------------------ iou


@pytest.mark.proves("iou")
def test_a_pixel_exactly_at_the_threshold_belongs_to_the_strong_part() -> None:
    heat = np.array([[1.0, 0.25, 0.2499999, 0.0]])
    mask = np.array([[True, True, False, False]])
    assert iou(heat, mask, threshold=0.25) == 1
    assert iou(heat, mask, threshold=0.2499999) == pytest.approx(2 / 3)
    assert iou(heat, mask, threshold=1.0) == 0.5


@pytest.mark.proves("iou")
def test_iou_of_parts_that_overlap_by_a_third_is_a_third() -> None:
    heat = box((10, 10), slice(0, 10), slice(0, 4)).astype(float)
    assert iou(heat, box((10, 10), slice(0, 10), slice(2, 6))) == pytest.approx(1 / 3)
    assert iou(heat, box((10, 10), slice(0, 10), slice(6, 9))) == 0


@pytest.mark.proves("iou")
def test_what_of_the_object_the_model_never_saw_counts_as_missed() -> None:
    heat, mask = np.ones((10, 10)), np.ones((10, 10), bool)
    heat[:, 6:] = np.nan
    assert iou(heat, mask) == pytest.approx(0.6)


# --------------------------------------------------------------------------------------------------------------- boards


@pytest.mark.proves(param="name")
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("name", BOARDS)
def test_a_uniform_map_has_its_nth_square_on_each_picture(name: str, n: int) -> None:
    for cell in range(n * n):
        assert BOARDS[name](np.full((6 * n, 5 * n), 0.2), (cell, n)) == pytest.approx(1 / n**2, abs=EXACT)


@pytest.mark.proves(param="name")
@pytest.mark.parametrize("name", BOARDS)
def test_pictures_are_counted_row_by_row(name: str) -> None:
    for cell, place in enumerate([(0, 0), (0, 2), (0, 4), (3, 0), (3, 2), (3, 4), (6, 0), (6, 2), (6, 4)]):
        assert [BOARDS[name](point((9, 6), place), (one, 3)) for one in range(9)] == [one == cell for one in range(9)]


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_that_has_no_such_picture_or_no_equal_cells_is_refused(name: str) -> None:
    """A share of 0 of a picture that isn't there would be a silent 0, and cells of a cut pixel another share."""
    for cell in ((4, 2), (-1, 2)):
        with pytest.raises(MetricError):
            BOARDS[name](np.ones((8, 8)), cell)
    with pytest.raises(MetricError):
        BOARDS[name](np.ones((9, 8)), (0, 2))


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", PLACED)
def test_a_mask_of_another_size_is_refused_with_both_sizes(name: str) -> None:
    with pytest.raises(MetricError, match=r"the mask is 8 x 6 and the map lies on 9 x 6 pixels"):
        PLACED[name](np.ones((6, 9)), np.ones((6, 8), bool))
    with pytest.raises(MetricError, match="the mask is"):
        PLACED[name](np.ones((6, 9)), np.ones((9, 6), bool))


@pytest.mark.parametrize("name", PLACED)
def test_a_mask_that_is_not_of_true_and_false_is_refused(name: str) -> None:
    with pytest.raises(MetricError, match="expected true and false"):
        PLACED[name](np.ones((6, 9)), np.ones((6, 9), np.uint8))


@pytest.mark.parametrize("name", PLACED)
def test_an_empty_mask_has_no_object_to_find(name: str) -> None:
    with pytest.raises(UndefinedError, match="the mask is empty"):
        PLACED[name](np.ones((6, 9)), np.zeros((6, 9), bool))


@pytest.mark.parametrize("name", PLACED)
def test_an_object_that_the_model_never_saw_has_no_figure(name: str) -> None:
    """It lies where the preprocessing cut; a miss would be the cut's, not the map's."""
    heat, mask = np.ones((12, 40)), box((12, 40), slice(0, 12), slice(0, 5))
    heat[:, :5] = np.nan
    with pytest.raises(UndefinedError, match="never saw the object"):
        PLACED[name](heat, mask)
    mask[:, 5] = True
    assert PLACED[name](heat, mask) > 0


@pytest.mark.parametrize("height", [0.0, -1.0])
@pytest.mark.parametrize("name", ["energy-pointing-game", "mass-in-mask", "iou", *BOARDS])
def test_a_map_without_positive_heat_has_none_anywhere(name: str, height: float) -> None:
    heat = np.full((6, 8), height)
    with pytest.raises(UndefinedError, match="the map is empty"):
        BOARDS[name](heat, (0, 2)) if name in BOARDS else PLACED[name](heat, np.ones((6, 8), bool))


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01])
def test_a_threshold_that_is_no_share_of_the_maximum_is_refused(threshold: float) -> None:
    with pytest.raises(MetricError, match="option threshold is"):
        iou(np.ones((6, 8)), np.ones((6, 8), bool), threshold=threshold)


def test_a_tolerance_below_0_is_refused() -> None:
    with pytest.raises(MetricError, match="tolerance"):
        pointing_game(np.ones((6, 8)), np.ones((6, 8), bool), tolerance=-1)
    with pytest.raises(MetricError, match="tolerance"):
        pointing_game(point((60, 60), (2, 2)), np.ones((60, 60), bool), tolerance=-1)
