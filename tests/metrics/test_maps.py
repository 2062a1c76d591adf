"""What is read off a map alone and how alike two maps are: closed forms, slow float64 oracles, scipy and scikit-image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import oracles_metrics as oracles
from sightline.errors import MetricError, UndefinedError
from sightline.metrics import maps
from sightline.metrics.maps import (
    centred_map,
    complexity,
    correlation,
    enlarged,
    entropy,
    random_map,
    scaled,
    sparseness,
    spearman,
    ssim,
)

EXACT = 1e-10
SIZES = [(1, 1), (1, 9), (7, 5), (13, 13)]
KINDS = ["random", "mostly zero", "ties", "constant", "signed", "one pixel"]
ALONE: dict[str, Callable[[np.ndarray], float]] = {
    "sparseness": sparseness,
    "entropy": entropy,
    "complexity": complexity,
}
RANKED = ("parameter-randomisation", "random-logit")  # the metrics that are rank correlations


def made(kind: str, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.random(size) + 0.01
    kinds = {
        "random": values,
        "mostly zero": np.where(rng.random(size) < 0.59, 0, values),
        "ties": rng.integers(1, 4, size).astype(float),
        "constant": np.full(size, 0.7),
        "signed": values - 0.4,
        "one pixel": np.zeros(size),
    }
    found = kinds[kind]
    if kind in ("mostly zero", "one pixel"):
        found.flat[found.size // 2] = 3.0
    return found


def one_hot(size: tuple[int, int], height: float = 2.5) -> np.ndarray:
    found = np.zeros(size)
    found[size[0] // 2, size[1] // 3] = height
    return found


def quietly(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


# -------------------------------------------------------------------------------------------------------- one map alone


@pytest.mark.proves(param="name", says="equals its slow float64 oracle for maps with ties, zeros and signs")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALONE)
def test_what_is_read_off_a_map_is_the_oracles(name: str, kind: str, size: tuple[int, int]) -> None:
    for seed in range(3):
        heat = made(kind, size, seed)
        if name == "complexity" and not heat.max() > 0:
            continue
        assert ALONE[name](heat) == pytest.approx(getattr(oracles, name)(heat), abs=EXACT)


@pytest.mark.proves("sparseness")
@pytest.mark.parametrize("size", [(1, 9), (7, 5), (30, 40)])
def test_sparseness_of_a_uniform_map_is_0_and_of_one_pixel_all_but_its_share(size: tuple[int, int]) -> None:
    pixels = size[0] * size[1]
    assert sparseness(np.full(size, 0.3)) == pytest.approx(0, abs=EXACT)
    assert sparseness(one_hot(size)) == pytest.approx(1 - 1 / pixels, abs=EXACT)
    assert sparseness(-one_hot(size)) == pytest.approx(1 - 1 / pixels, abs=EXACT)


@pytest.mark.proves("sparseness")
@pytest.mark.parametrize("hot", [1, 5, 34, 35])
def test_sparseness_of_a_flat_patch_is_the_share_of_the_pixels_outside(hot: int) -> None:
    heat = np.zeros(35)
    heat[:hot] = 4.0
    assert sparseness(heat.reshape(7, 5)) == pytest.approx(1 - hot / 35, abs=EXACT)


@pytest.mark.proves("entropy")
@pytest.mark.parametrize("size", [(1, 9), (7, 5), (30, 40)])
def test_entropy_of_one_pixel_is_0_and_of_a_uniform_map_the_logarithm_of_its_pixels(size: tuple[int, int]) -> None:
    assert entropy(one_hot(size)) == pytest.approx(0, abs=EXACT)
    assert entropy(np.full(size, 1e-3)) == pytest.approx(math.log(size[0] * size[1]), abs=EXACT)
    half = np.zeros(size[0] * size[1])
    half[:4] = 9.0
    assert entropy(half.reshape(size)) == pytest.approx(math.log(4), abs=EXACT)


@pytest.mark.proves("complexity")
@pytest.mark.parametrize("size", [(1, 9), (7, 5), (30, 40)])
def test_complexity_of_one_pixel_is_its_share_and_of_a_uniform_map_1(size: tuple[int, int]) -> None:
    assert complexity(one_hot(size)) == pytest.approx(1 / (size[0] * size[1]), abs=EXACT)
    assert complexity(np.full(size, 8.0)) == 1
    assert complexity(np.full(size, 8.0) * np.linspace(0, 1, size[1])) == pytest.approx(0.5)


@pytest.mark.proves("complexity")
def test_complexity_is_never_min_maxed() -> None:
    """A floor under the map is heat: it counts."""
    heat = made("random", (6, 6))
    assert complexity(heat + 5) > complexity(heat) + 0.3
    assert complexity(made("signed", (6, 6))) == complexity(np.maximum(made("signed", (6, 6)), 0))


@pytest.mark.proves(param="name")
@pytest.mark.parametrize("factor", [1e-300, 1e-20, 7.0, 1e300])
@pytest.mark.parametrize("name", ALONE)
def test_a_positive_factor_changes_nothing_that_is_read_off_the_map(name: str, factor: float) -> None:
    heat = made("random", (6, 7))
    assert ALONE[name](heat * factor) == pytest.approx(ALONE[name](heat), abs=1e-9)


@pytest.mark.proves(param="name")
@pytest.mark.parametrize("name", ALONE)
def test_the_order_of_the_pixels_counts_for_nothing_that_is_read_off_the_map(name: str) -> None:
    heat = made("signed", (6, 7))
    turned = np.random.default_rng(1).permutation(heat.ravel()).reshape(14, 3)
    assert ALONE[name](turned) == pytest.approx(ALONE[name](heat), abs=1e-12)


@pytest.mark.parametrize("name", ALONE)
def test_an_empty_map_has_no_figure(name: str) -> None:
    with pytest.raises(UndefinedError, match="the map is empty"):
        ALONE[name](np.zeros((4, 4)))


def test_a_map_without_positive_heat_has_no_complexity_but_sparseness_and_entropy() -> None:
    heat = -made("random", (5, 5))
    with pytest.raises(UndefinedError, match="no positive value"):
        complexity(heat)
    assert sparseness(heat) == sparseness(-heat)
    assert entropy(heat) == entropy(-heat)


def test_scaled_is_the_positive_part_over_the_maximum() -> None:
    heat = np.array([[-3.0, 1.0], [2.0, 0.0]])
    np.testing.assert_array_equal(scaled(heat), [[0, 0.5], [1, 0]])
    np.testing.assert_array_equal(heat, [[-3, 1], [2, 0]])


# ------------------------------------------------------------------------------------------------- how alike two maps are


@pytest.mark.proves(*RANKED, says="the rank correlation equals its slow float64 oracle, also with ties")
@pytest.mark.parametrize("size", [(1, 9), (7, 5), (13, 13)])
@pytest.mark.parametrize("other", ["random", "ties", "signed", "mostly zero"])
@pytest.mark.parametrize("kind", ["random", "ties", "signed", "one pixel"])
def test_spearman_is_the_oracles(kind: str, other: str, size: tuple[int, int]) -> None:
    one, two = made(kind, size, 1), made(other, size, 2)
    assert spearman(one, two) == pytest.approx(oracles.spearman(one, two), abs=EXACT)


@pytest.mark.proves(*RANKED, says="the rank correlation is scipy's, also with ties")
@pytest.mark.parametrize("values", [2, 3, 10, 1_000_000])
@pytest.mark.parametrize("size", [(2, 2), (6, 9), (40, 40)])
def test_spearman_is_scipys(size: tuple[int, int], values: int) -> None:
    scipy = quietly("scipy.stats")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        one, two = rng.integers(0, values, size).astype(float), rng.integers(0, values, size).astype(float)
        if np.ptp(one) and np.ptp(two):
            assert spearman(one, two) == pytest.approx(scipy.spearmanr(one.ravel(), two.ravel())[0], abs=EXACT)


@pytest.mark.proves(*RANKED, says="the rank correlation of a map with itself is 1, and with its negative -1")
@given(values=st.lists(st.sampled_from([-1e300, -2.0, -1e-300, 0.0, 5e-324, 1.0, 3.0, 1e300]), min_size=2, max_size=12))
@settings(max_examples=80, deadline=None)
def test_spearman_of_a_map_with_itself_is_1(values: list[float]) -> None:
    heat = np.array([values])
    if min(values) == max(values):
        with pytest.raises(UndefinedError, match="constant"):
            spearman(heat, heat)
    else:
        assert spearman(heat, heat) == pytest.approx(1, abs=1e-12)
        assert spearman(heat, -heat) == pytest.approx(-1, abs=1e-12)


@pytest.mark.proves(*RANKED, says="a strictly monotone transform of either map leaves the rank correlation as it is")
def test_spearman_asks_for_the_order_alone() -> None:
    one, two = made("signed", (6, 6), 1), made("ties", (6, 6), 2)
    wanted = spearman(one, two)
    assert spearman(np.exp(9 * one), two**3 - 7) == wanted
    assert spearman(-one, two) == pytest.approx(-wanted, abs=1e-12)
    assert spearman(two, one) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.proves("adcc", says="coherency's correlation equals its slow float64 oracle")
@pytest.mark.parametrize("size", [(1, 9), (7, 5), (13, 13)])
@pytest.mark.parametrize("kind", ["random", "ties", "signed", "one pixel", "mostly zero"])
def test_correlation_is_the_oracles(kind: str, size: tuple[int, int]) -> None:
    one, two = made(kind, size, 1), made("random", size, 2)
    assert (correlation(one, two) + 1) / 2 == pytest.approx(oracles.coherency(one, two), abs=EXACT)
    assert correlation(one * 1e-200, two * 1e200) == pytest.approx(correlation(one, two), abs=EXACT)
    assert correlation(one, 3 * one + 8) == pytest.approx(1, abs=EXACT)


def test_a_constant_map_is_like_no_other() -> None:
    constant, other = np.full((4, 4), 2.0), made("random", (4, 4))
    for function in (correlation, spearman):
        for pair in ((constant, other), (other, constant), (constant, constant)):
            with pytest.raises(UndefinedError, match="constant"):
                function(*pair)


@pytest.mark.parametrize("function", [correlation, spearman, ssim])
def test_maps_of_two_sizes_are_not_compared(function: Callable[..., float]) -> None:
    with pytest.raises(MetricError, match="one size"):
        function(made("random", (12, 13)), made("random", (13, 12)))


@pytest.mark.parametrize("size", [(11, 11), (14, 12), (20, 31)])
@pytest.mark.parametrize("kind", ["random", "ties", "constant", "signed", "one pixel"])
def test_structural_similarity_is_the_oracles(kind: str, size: tuple[int, int]) -> None:
    one, two = made(kind, size, 1) / 3, made("random", size, 2)
    assert ssim(one, two) == pytest.approx(oracles.ssim(one, two), abs=EXACT)
    assert ssim(one, one) == pytest.approx(1, abs=EXACT)


def test_structural_similarity_is_scikit_images() -> None:
    """Its window ends at 3.5 sigma, and it leaves out the same border: its map is compared inside."""
    skimage = quietly("skimage.metrics")
    one, two = made("random", (30, 25), 1), made("random", (30, 25), 2)
    _, whole = skimage.structural_similarity(
        one, two, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2, full=True
    )
    assert ssim(one, two) == pytest.approx(float(whole[5:-5, 5:-5].mean()), abs=1e-9)


def test_maps_smaller_than_the_window_have_no_structural_similarity() -> None:
    with pytest.raises(MetricError, match="at least 11 x 11"):
        ssim(made("random", (10, 30)), made("random", (10, 30)))


# ------------------------------------------------------------------------------------- a map on pixels, and what knows nothing


@pytest.mark.parametrize("size", [(16, 16), (15, 22), (7, 5), (3, 4), (100, 7), (1, 1)])
@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (7, 5), (4, 9)])
def test_a_map_on_pixels_is_bilinear_between_cell_centres(grid: tuple[int, int], size: tuple[int, int]) -> None:
    heat = made("signed", grid)
    wanted = F.interpolate(torch.from_numpy(heat)[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    found = enlarged(heat, size)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.proves("deletion", "insertion", "road-morf", "road-lerf")
def test_pixels_between_cells_of_one_value_are_exactly_equal_and_tie() -> None:
    for value in np.random.default_rng(0).random(40):
        grid = np.full((7, 7), value)
        assert (enlarged(grid, (50, 45)) == value).all()
        grid[6, 3] = 1
        found = enlarged(grid, (37, 41))
        assert (found[:26] == value).all()
        assert found.max() <= 1


def test_a_map_of_the_pixels_own_size_stays_as_it_is() -> None:
    heat = made("signed", (9, 7))
    assert np.array_equal(enlarged(heat, (9, 7)), heat)
    assert np.array_equal(enlarged(heat.astype(np.float32), (9, 7)), heat.astype(np.float32))


def test_the_random_map_is_seeded_and_uniform() -> None:
    found = random_map((200, 150), 3)
    assert np.array_equal(found, random_map((200, 150), 3))
    assert not np.array_equal(found, random_map((200, 150), 4))
    assert found.min() >= 0
    assert found.max() < 1
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 0.02


def test_the_centred_map_is_highest_in_the_middle_and_the_same_from_all_sides() -> None:
    for size in ((21, 15), (8, 6)):
        found = centred_map(size)
        assert found.shape == size
        assert found.max() == pytest.approx(found[size[0] // 2, size[1] // 2], abs=1e-15)
        np.testing.assert_allclose(found, found[::-1], atol=1e-15)
        np.testing.assert_allclose(found, found[:, ::-1], atol=1e-15)
    across = centred_map((1, 400))[0]
    assert across[100] / across.max() == pytest.approx(math.exp(-0.5), rel=0.02), "sigma is a quarter of the side"


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    before = np.random.get_state()[1].copy()
    maps.random_map((5, 5))
    assert (np.random.get_state()[1] == before).all()
