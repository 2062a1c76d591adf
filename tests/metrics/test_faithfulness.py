"""Faithfulness: closed forms on additive and linear models, slow float64 oracles, the peers, and ROAD's imputation."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracles_metrics as oracles
from conftest import Echo, Plain, images, seeded
from sightline.errors import MetricError, UndefinedError
from sightline.metrics import faithfulness
from sightline.metrics.faithfulness import (
    SHARES,
    adcc,
    average_drop,
    average_gain,
    blurred,
    deletion,
    increase_in_confidence,
    infidelity,
    insertion,
    max_sensitivity,
    order,
    ranks,
    relative,
    road_lerf,
    road_morf,
    square_error,
)
from sightline.metrics.imputation import impute
from sightline.metrics.maps import complexity, correlation, enlarged, scaled
from sightline.metrics.measure import measure
from sightline.metrics.registry import Curve

EXACT = 1e-10
SIZES = [(5, 7), (9, 9), (12, 10)]
KINDS = ["random", "mostly zero", "ties", "zero", "constant", "signed", "negative"]
CURVES = {"deletion": deletion, "insertion": insertion}
ROAD = {"road-morf": road_morf, "road-lerf": road_lerf}
Score = Callable[[Tensor], Tensor]


class Additive:
    """f(x) = 0.3 + the sum of w x: each pixel's part of the score is known, and nothing else counts."""

    def __init__(self, size: tuple[int, int], channels: int = 3, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self.weights = torch.from_numpy(rng.standard_normal((1, channels, *size)))

    def __call__(self, pictures: Tensor) -> Tensor:
        return (pictures * self.weights).flatten(1).sum(dim=1) + 0.3

    def parts(self, x: Tensor) -> np.ndarray:
        """(H, W), what each pixel adds."""
        return (x * self.weights).sum(dim=1)[0].numpy()


class Recorded:
    """A score that keeps the pictures it was asked about."""

    def __init__(self, score: Score) -> None:
        self.score, self.asked = score, []

    def __call__(self, pictures: Tensor) -> Tensor:
        self.asked.append(pictures.clone())
        return self.score(pictures)

    @property
    def pictures(self) -> Tensor:
        return torch.cat(self.asked)


def picture(size: tuple[int, int], seed: int = 1, channels: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, channels, *size)))


def heat_map(kind: str, size: tuple[int, int], seed: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.random(size)
    kinds = {
        "random": values,
        "mostly zero": np.where(values < 0.59, 0, values),
        "ties": rng.integers(0, 4, size).astype(float),
        "zero": np.zeros(size),
        "constant": np.full(size, 0.7),
        "signed": values - 0.5,
        "negative": -values - 0.1,
    }
    return kinds[kind]


def probability_of(model: nn.Module, index: int = 1) -> Score:
    def score(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return model(pictures).softmax(dim=1)[:, index]

    return score


def classifier() -> nn.Module:
    return seeded(Plain, dtype=torch.float64)


def answer_of(model: nn.Module, index: int = 1) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def answer(pictures: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(pictures)
        return logits.softmax(dim=1)[:, index], (logits.argmax(dim=1) == index).double()

    return answer


def one_by_one(score: Score) -> oracles.Score:
    return lambda one: float(score(torch.from_numpy(one)[None])[0])


def quietly(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def close(found: Any, wanted: Any, tolerance: float = EXACT) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=0, atol=tolerance)


# -------------------------------------------------------------------------------------------- deletion and insertion


@pytest.mark.proves(param="name", says="equals its slow float64 oracle for maps with ties, for zero maps and any step")
@pytest.mark.parametrize("step", [1, 4, 1000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CURVES)
def test_the_curve_and_its_area_are_the_oracles(name: str, size: tuple[int, int], kind: str, step: int) -> None:
    x, heat, score = picture(size), heat_map(kind, size), probability_of(classifier())
    found = CURVES[name](heat, x, score, step=step, seed=3)
    wanted = getattr(oracles, name)(heat, x[0].numpy(), one_by_one(score), step, 3)
    close(found.scores, wanted)
    assert found.value == pytest.approx(oracles.auc(wanted), abs=EXACT)


@pytest.mark.proves("deletion")
@pytest.mark.parametrize("step", [1, 6, 7, 63, 100])
def test_deletion_of_an_additive_model_is_the_sum_of_the_parts_that_are_left(step: int) -> None:
    size = (9, 7)
    model, x, heat = Additive(size), picture(size), heat_map("random", size)
    found = deletion(heat, x, model, step=step)
    parts = model.parts(x).ravel()[np.argsort(-heat.ravel())]
    taken = [min(number * step, parts.size) for number in range(math.ceil(parts.size / step) + 1)]
    wanted = [0.3 + math.fsum(parts[count:]) for count in taken]
    close(found.scores, wanted)
    close(found.at, np.array(taken) / parts.size)
    between = [(one + other) / 2 for one, other in itertools.pairwise(wanted)]
    assert found.value == pytest.approx(math.fsum(between) / len(between), abs=EXACT)


@pytest.mark.proves("insertion")
@pytest.mark.parametrize("step", [1, 6, 7, 63, 100])
def test_insertion_of_an_additive_model_is_the_sum_of_what_each_pixel_gains_over_the_blur(step: int) -> None:
    size = (9, 7)
    model, x, heat = Additive(size), picture(size), heat_map("random", size)
    found = insertion(heat, x, model, step=step)
    base = blurred(x)
    gains = (model.parts(x) - model.parts(base)).ravel()[np.argsort(-heat.ravel())]
    start = float(model(base)[0])
    wanted = [start + math.fsum(gains[:count]) for count in [*range(0, gains.size, step), gains.size]]
    close(found.scores, wanted)


@pytest.mark.proves("deletion", "insertion")
@pytest.mark.parametrize("step", [1, 5, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_deletion_and_insertion_of_an_additive_model_with_one_base_sum_to_whole_and_base(kind: str, step: int) -> None:
    size = (8, 6)
    model, x, base = Additive(size), picture(size), picture(size, seed=9)
    heat = heat_map(kind, size)
    taken = faithfulness._replaced(heat, x, base, model, step, 4)
    given = faithfulness._replaced(heat, base, x, model, step, 4)
    whole = float(model(x)[0] + model(base)[0])
    close(taken.scores + given.scores, np.full(len(taken.scores), whole))
    assert taken.value + given.value == pytest.approx(whole, abs=EXACT)


@pytest.mark.proves("deletion", "insertion")
def test_the_order_of_the_true_parts_is_the_lowest_deletion_and_the_highest_insertion_of_all_orders() -> None:
    """All 362,880 orders of the pixels of a 3 x 3 picture of an additive model."""
    size = (3, 3)
    model, x = Additive(size), picture(size)
    orders = np.array(list(itertools.permutations(range(9))))
    areas = {}
    for name, start, end in (("deletion", x, torch.zeros_like(x)), ("insertion", blurred(x), x)):
        gains = (model.parts(end) - model.parts(start)).ravel()
        curves = float(model(start)[0]) + np.cumsum(gains[orders], axis=1)
        areas[name] = (float(model(start)[0]) / 2 + curves[:, :-1].sum(axis=1) + curves[:, -1] / 2) / 9
    true = model.parts(x)
    found = deletion(true, x, model, step=1).value
    assert found == pytest.approx(areas["deletion"].min(), abs=EXACT)
    assert found < np.median(areas["deletion"])
    gain = model.parts(x) - model.parts(blurred(x))
    assert insertion(gain, x, model, step=1).value == pytest.approx(areas["insertion"].max(), abs=EXACT)
    assert deletion(-true, x, model, step=1).value == pytest.approx(areas["deletion"].max(), abs=EXACT)


MONOTONE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "times 1000 and less 7": lambda heat: 1000 * heat - 7,
    "exp": np.exp,
    "cubed": lambda heat: heat**3,
    "its own ranks": lambda heat: np.unique(heat, return_inverse=True)[1].reshape(heat.shape).astype(float),
}


@pytest.mark.proves(*CURVES, *ROAD)
@pytest.mark.parametrize("kind", ["random", "ties", "signed", "mostly zero"])
@pytest.mark.parametrize("transform", MONOTONE)
def test_a_strictly_monotone_transform_of_the_map_changes_nothing(transform: str, kind: str) -> None:
    size = (9, 8)
    x, heat, model = picture(size), heat_map(kind, size), classifier()
    other = MONOTONE[transform](heat)
    assert len(np.unique(other)) == len(np.unique(heat))
    for curve in CURVES.values():
        one, two = (curve(each, x, probability_of(model), step=10) for each in (heat, other))
        assert np.array_equal(one.scores, two.scores)
    for curve in ROAD.values():
        one, two = (curve(each, x, answer_of(model), shares=(0.2, 0.6)) for each in (heat, other))
        assert np.array_equal(one.scores, two.scores)


@pytest.mark.proves("deletion", "insertion")
@pytest.mark.parametrize(("pixels", "step", "points"), [(63, 10, 8), (63, 9, 8), (63, 62, 3), (63, 63, 2), (63, 64, 2)])
def test_the_last_step_takes_what_is_left(pixels: int, step: int, points: int) -> None:
    size = (9, pixels // 9)
    asked = Recorded(Additive(size))
    found = deletion(heat_map("random", size), picture(size), asked, step=step)
    assert len(found.at) == len(found.scores) == points
    assert (found.at[0], found.at[-1]) == (0, 1)
    gone = (asked.pictures == 0).all(dim=1).flatten(1).sum(dim=1)
    assert sorted(gone.tolist()) == [min(number * step, pixels) for number in range(points)]


@pytest.mark.proves(*CURVES, *ROAD)
def test_equal_heat_is_broken_by_a_seeded_random_order_and_not_by_position() -> None:
    heat = np.zeros((6, 5))
    heat[1, 1] = 1
    assert np.array_equal(order(heat, 0), order(heat, 0))
    assert not np.array_equal(order(heat, 0), order(heat, 1))
    found = np.array([order(heat, seed) for seed in range(400)])
    assert (found[:, 0] == 6).all(), "the only heat comes first"
    places = np.array([ranks(heat, seed).numpy().ravel() for seed in range(400)])
    means = np.delete(places.mean(axis=0), 6)
    assert np.abs(means - 15).max() < 5 * np.sqrt((29**2 - 1) / 12 / 400), "each pixel comes at any time"
    assert abs(np.corrcoef(np.arange(29), means)[0, 1]) < 0.6
    x = picture((6, 5))
    one, same, other = (deletion(heat, x, Additive((6, 5)), step=4, seed=seed).value for seed in (0, 0, 1))
    assert one == same != other
    one, same, other = (road_morf(heat, x, answer_of(classifier()), noise=0.0, seed=seed).value for seed in (0, 0, 1))
    assert one == same != other


def test_the_order_is_the_oracles() -> None:
    for kind in KINDS:
        for seed in range(3):
            heat = heat_map(kind, (7, 6), seed)
            assert np.array_equal(order(heat, seed), oracles.ranking(heat, seed))
            assert np.array_equal(np.argsort(ranks(heat, seed).numpy().ravel()), order(heat, seed))


@pytest.mark.proves("insertion", says="the blur is scipy's Gaussian of sigma 5 on an impulse of 11 x 11 pixels")
def test_the_blur_is_scipys_kernel() -> None:
    scipy = quietly("scipy.ndimage")
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = scipy.gaussian_filter(impulse, 5)
    wide = torch.zeros(1, 1, 31, 27, dtype=torch.float64)
    wide[0, 0, 15, 13] = 1
    close(blurred(wide)[0, 0, 10:21, 8:19], kernel, 1e-14)
    x = picture((14, 19))
    weights = torch.from_numpy(kernel).expand(3, 1, 11, 11)
    close(blurred(x), F.conv2d(x, weights, padding=5, groups=3), 1e-12)


@pytest.mark.proves("insertion", says="the blur equals its slow float64 oracle, with zeros outside of the picture")
@pytest.mark.parametrize("size", [(3, 4), (12, 7), (13, 13)])
def test_the_blur_is_the_oracles(size: tuple[int, int]) -> None:
    x = picture(size)
    close(blurred(x)[0], oracles.blurred(x[0].numpy()))


@pytest.mark.proves("deletion", "insertion")
def test_the_whole_picture_is_at_one_end_and_the_base_at_the_other() -> None:
    size, score = (8, 8), probability_of(classifier())
    x, heat = picture(size), heat_map("random", size)
    taken, given = deletion(heat, x, score, step=9), insertion(heat, x, score, step=9)
    close(taken.scores[[0, -1]], [float(score(x)[0]), float(score(torch.zeros_like(x))[0])])
    close(given.scores[[0, -1]], [float(score(blurred(x))[0]), float(score(x)[0])])


@pytest.mark.proves("deletion")
def test_relative_scores_are_the_oracles_from_1_to_0() -> None:
    size, score = (8, 6), probability_of(classifier())
    curve = deletion(heat_map("random", size), picture(size), score, step=7)
    found = relative(curve)
    close(found, oracles.relative(curve.scores, curve.scores[0], curve.scores[-1]))
    close(found[[0, -1]], [1, 0])
    with pytest.raises(UndefinedError, match="same score"):
        relative(Curve(np.array([0.0, 1.0]), np.array([0.4, 0.4]), 0.4))


def test_the_picture_is_left_as_it_was_by_all_that_changes_pictures() -> None:
    size, model = (8, 8), classifier()
    x, heat = picture(size), heat_map("random", size)
    before, kept = x.clone(), heat.copy()
    score, answer = probability_of(model), answer_of(model)
    deletion(heat, x, score, step=9)
    insertion(heat, x, score, step=9)
    road_morf(heat, x, answer)
    road_lerf(heat, x, answer)
    average_drop(heat, x, score)
    infidelity(heat, x, score)
    max_sensitivity(x, lambda pictures, signed: pictures[:, 0].numpy())
    assert torch.equal(x, before)
    assert np.array_equal(heat, kept)


# ---------------------------------------------------------------------------------------------------- ROAD's imputation


def holes(kind: str, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(H, W), where pixels are missing."""
    rng = np.random.default_rng(seed)
    h, w = size
    y, x = np.mgrid[:h, :w]
    kinds = {
        "10 %": rng.random(size) < 0.1,
        "half": rng.random(size) < 0.5,
        "90 %": rng.random(size) < 0.9,
        "all but one": (y != h // 3) | (x != w // 2),
        "all but a corner": (y > 0) | (x > 0),
        "a block": (y > h // 4) & (y < 3 * h // 4) & (x > w // 4),
        "the border": (y == 0) | (x == 0) | (y == h - 1) | (x == w - 1),
        "a chessboard": (y + x) % 2 == 0,
        "one pixel": (y == 0) & (x == w - 1),
        "nothing": np.zeros(size, bool),
    }
    found = kinds[kind].copy()
    if found.all():
        found[0, 0] = False
    return found


HOLES = ["10 %", "half", "90 %", "all but one", "all but a corner", "a block", "the border", "a chessboard", "one pixel", "nothing"]  # fmt: skip


@pytest.mark.proves(*ROAD, says="imputation equals its slow float64 oracle, a dense system, whatever is missing")
@pytest.mark.parametrize("size", [(6, 6), (7, 11), (12, 9), (1, 8), (9, 2), (16, 17)])
@pytest.mark.parametrize("kind", HOLES)
def test_imputed_pixels_are_the_oracles(kind: str, size: tuple[int, int]) -> None:
    x, missing = picture(size), holes(kind, size)
    found = impute(x[0], torch.from_numpy(missing)[None])[0]
    close(found, oracles.impute(x[0].numpy(), missing))


@pytest.mark.proves(*ROAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", HOLES)
def test_a_constant_picture_is_a_fixed_point_of_imputation(kind: str, dtype: torch.dtype) -> None:
    x = torch.tensor([0.3, -2.0, 7.0], dtype=dtype)[:, None, None].expand(3, 21, 18)
    found = impute(x, torch.from_numpy(holes(kind, (21, 18)))[None])
    assert found.dtype == dtype
    close(found[0] / 7, x / 7, 1e-11 if dtype == torch.float64 else 2e-5)


@pytest.mark.proves(*ROAD)
@pytest.mark.parametrize("kind", ["10 %", "half", "90 %", "a block", "a chessboard"])
def test_imputation_gives_back_a_linear_ramp_inside_the_picture(kind: str) -> None:
    size = (24, 19)
    y, x = np.mgrid[: size[0], : size[1]]
    ramp = torch.from_numpy(np.stack([0.2 * y - 0.1 * x, 1 + 0.05 * x, -0.3 * y])).double()
    missing = holes(kind, size)
    missing[[0, -1]] = missing[:, [0, -1]] = False
    assert missing.sum() > 20
    close(impute(ramp, torch.from_numpy(missing)[None])[0], ramp)


@pytest.mark.proves(*ROAD)
@pytest.mark.parametrize("kind", HOLES)
def test_imputation_leaves_what_is_there_and_stays_between_its_lowest_and_highest(kind: str) -> None:
    x, missing = picture((20, 23))[0], torch.from_numpy(holes(kind, (20, 23)))
    found = impute(x, missing[None])[0]
    assert torch.equal(found[:, ~missing], x[:, ~missing])
    for filled, channel in zip(found, x, strict=True):
        assert filled.min() >= channel[~missing].min() - EXACT
        assert filled.max() <= channel[~missing].max() + EXACT


@pytest.mark.proves(*ROAD)
@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
def test_imputation_in_float32_is_that_in_float64(size: tuple[int, int]) -> None:
    x = picture(size)[0]
    for kind in HOLES:
        missing = torch.from_numpy(holes(kind, size))[None]
        # What one pixel says of thousands is rounded as often as it is handed on.
        close(impute(x.float(), missing), impute(x, missing), 2e-4 if "all but" in kind else 2e-5)


@pytest.mark.proves(*ROAD)
def test_sets_of_missing_pixels_that_are_solved_side_by_side_are_those_solved_alone() -> None:
    size = (18, 14)
    x, missing = picture(size)[0], torch.from_numpy(np.stack([holes(kind, size) for kind in HOLES]))
    close(impute(x, missing), torch.cat([impute(x, one[None]) for one in missing]), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_imputation_in_half_precision_is_that_in_float64_up_to_its_rounding(dtype: torch.dtype) -> None:
    x = picture((40, 33))[0].to(dtype)
    for kind in HOLES:
        missing = torch.from_numpy(holes(kind, (40, 33)))[None]
        found = impute(x, missing)
        assert found.dtype == dtype
        close(found.double(), impute(x.double(), missing), 2e-3 if dtype == torch.float16 else 1e-2)


def test_a_picture_of_which_nothing_is_left_is_refused() -> None:
    missing = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]).bool()
    with pytest.raises(UndefinedError, match="no pixel is left"):
        impute(torch.ones(3, 4, 4), missing)


@pytest.mark.agrees("pytorch-grad-cam", *ROAD)
@pytest.mark.parametrize("kind", ["10 %", "half", "90 %", "a block", "all but one", "the border"])
def test_imputed_pixels_are_the_peers_without_noise(kind: str) -> None:
    road = quietly("pytorch_grad_cam.metrics.road")
    size = (32, 27)
    x, missing = picture(size)[0].float(), torch.from_numpy(holes(kind, size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = road.NoisyLinearImputer(noise=0)(x, (~missing).float())
    close(impute(x, missing[None])[0], theirs, 2e-5)


def sparse_map(size: tuple[int, int] = (40, 40), zeros: float = 0.59) -> np.ndarray:
    """A rectified map as they often are: most of it exactly 0."""
    values = np.random.default_rng(8).random(size)
    lowest = np.argsort(values, axis=None)[: round(zeros * values.size)]
    values.ravel()[lowest] = 0
    return values


@pytest.mark.differs("pytorch-grad-cam", *ROAD)
def test_the_peer_removes_other_shares_of_a_map_with_many_zeros_than_it_says_and_ours_removes_those() -> None:
    peer = quietly("pytorch_grad_cam.metrics.perturbation_confidence")
    heat, x = sparse_map(), torch.zeros(3, 40, 40)
    removed: dict[int, float] = {}
    for percentile in (20, 50, 80):  # what is to be kept
        kept = peer.RemoveMostRelevantFirst(percentile, lambda _, mask: mask)(x, torch.from_numpy(heat))
        removed[percentile] = 1 - float(kept.mean())
    assert removed == {20: 1.0, 50: 1.0, 80: pytest.approx(0.2, abs=0.001)}
    gone = [float(one) for one in removed_by(road_morf, heat, (0.2, 0.5, 0.8))]
    close(gone, [0.2, 0.5, 0.8], 1 / heat.size)


def removed_by(curve: Callable[..., Curve], heat: np.ndarray, shares: tuple[float, ...], **options: Any) -> Tensor:
    """The share of the pixels that were changed at each point."""
    x = picture(heat.shape)
    asked = Recorded(Additive(heat.shape))
    curve(heat, x, lambda pictures: (asked(pictures), torch.ones(len(pictures))), shares=shares, **options)
    return (asked.pictures != x).any(dim=1).flatten(1).double().mean(dim=1)


@pytest.mark.proves(param="name")
@pytest.mark.parametrize("zeros", [0.0, 0.59, 0.95, 1.0])
@pytest.mark.parametrize("name", ROAD)
def test_the_share_that_is_removed_is_the_one_that_is_said_however_many_zeros_the_map_has(
    name: str, zeros: float
) -> None:
    heat = sparse_map((23, 17), zeros)
    assert (heat == 0).mean() == pytest.approx(zeros, abs=0.002)
    close(removed_by(ROAD[name], heat, SHARES), SHARES, 1 / heat.size)


# ---------------------------------------------------------------------------------------------------------------- ROAD


@pytest.mark.proves(param="name", says="equals its slow float64 oracle for maps with ties, zero maps and any share")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ROAD)
def test_the_scores_of_what_is_left_are_the_oracles(name: str, size: tuple[int, int], kind: str) -> None:
    x, heat, model = picture(size), heat_map(kind, size), classifier()
    shares = (0.05, 0.3, 0.55, 0.9)
    found = ROAD[name](heat, x, answer_of(model), shares=shares, noise=0.0, seed=6)
    pictures = [
        oracles.impute(x[0].numpy(), oracles.road_missing(heat, share, 6, name == "road-morf")) for share in shares
    ]
    wanted, hits = answer_of(model)(torch.from_numpy(np.stack(pictures)))
    close(found.scores, wanted)
    assert found.value == pytest.approx(float(wanted.mean()), abs=EXACT)
    assert np.array_equal(found.hits, hits.numpy())
    close(found.at, [round(share * heat.size) / heat.size for share in shares], 0)


@pytest.mark.proves(*ROAD)
def test_noise_is_seeded_of_the_size_that_is_said_and_only_where_pixels_are_missing() -> None:
    size = (40, 36)
    x, heat = picture(size), heat_map("random", size)

    def asked(noise: float, seed: int = 0) -> Tensor:
        kept = Recorded(Additive(size))
        road_morf(heat, x, lambda pictures: (kept(pictures), torch.ones(len(pictures))), noise=noise, seed=seed)
        return kept.pictures

    plain, noisy, again, other = asked(0.0), asked(0.01), asked(0.01), asked(0.01, seed=1)
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    missing = (plain != x).any(dim=1, keepdim=True).expand_as(plain)
    noise = noisy - plain
    assert not noise[~missing].any()
    assert float(noise[missing].std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(noise[missing].mean())) < 3e-4
    assert not torch.equal(noise[3][missing[3]][:9], noise[4][missing[4]][:9]), "each share has noise of its own"


@pytest.mark.proves(*ROAD)
def test_what_is_removed_first_by_road_morf_is_what_road_lerf_removes_last() -> None:
    heat, x = heat_map("ties", (10, 9)), picture((10, 9))
    kept: dict[str, Tensor] = {}
    for name, curve in ROAD.items():
        asked = Recorded(Additive((10, 9)))
        curve(heat, x, lambda pictures, asked=asked: (asked(pictures), torch.ones(len(pictures))), shares=(0.3, 0.7))
        kept[name] = (asked.pictures == x).all(dim=1)
    assert torch.equal(kept["road-morf"], ~kept["road-lerf"].flip(0))


@pytest.mark.parametrize("shares", [(), (0.0, 0.5), (0.5, 1.0), (-0.1,), (1.5,), (0.001,)])
def test_road_refuses_shares_that_leave_all_or_nothing(shares: tuple[float, ...]) -> None:
    with pytest.raises(MetricError, match="option shares is"):
        road_morf(heat_map("random", (8, 8)), picture((8, 8)), answer_of(classifier()), shares=shares)


# ----------------------------------------------------------------------------------- average drop, increase, gain, adcc


@pytest.mark.proves(
    "average-drop", "average-gain", "increase-in-confidence", says="equals its slow float64 oracle on maps of any sign"
)
@pytest.mark.parametrize("kind", ["random", "mostly zero", "ties", "constant", "signed"])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_left_of_the_score_is_the_oracles(size: tuple[int, int], kind: str) -> None:
    heat, model = heat_map(kind, size), classifier()
    for index, seed in itertools.product(range(3), range(3)):
        x, score = picture(size, seed=seed), probability_of(model, index)
        y, o = float(score(x)[0]), one_by_one(score)(oracles.masked(x[0].numpy(), heat))
        assert average_drop(heat, x, score) == pytest.approx(oracles.average_drop(y, o), abs=EXACT)
        assert average_gain(heat, x, score) == pytest.approx(oracles.average_gain(y, o), abs=EXACT)
        assert increase_in_confidence(heat, x, score) == oracles.increase_in_confidence(y, o)


def score_by_heat(whole: float, left: float) -> Score:
    """A score of one value for the picture of ones, and of another for anything else."""
    scores = torch.tensor([left, whole], dtype=torch.float64)
    return lambda pictures: scores[(pictures == 1).flatten(1).all(dim=1).long()]


ONES = torch.ones(1, 3, 4, 5, dtype=torch.float64)


@pytest.mark.proves("average-drop", "average-gain", "increase-in-confidence")
@pytest.mark.parametrize("height", [1.0, 1e-30, 5e20])
def test_the_map_of_ones_leaves_the_picture_and_nothing_drops_or_is_gained(height: float) -> None:
    x, score = picture((6, 7)), probability_of(classifier())
    heat = np.full((6, 7), height)
    assert average_drop(heat, x, score) == 0
    assert average_gain(heat, x, score) == 0
    assert increase_in_confidence(heat, x, score) == 0


@pytest.mark.proves("average-drop", "average-gain", "increase-in-confidence")
@pytest.mark.parametrize(
    ("whole", "left", "drop", "gain", "rises"),
    [(0.8, 0.2, 0.75, 0, 0), (0.8, 0.9, 0, 0.5, 1), (0.5, 0.5, 0, 0, 0), (0.5, 0.0, 1, 0, 0), (0.2, 1.0, 0, 1, 1)],
)
def test_drop_and_gain_are_shares_of_what_could_fall_and_what_could_rise(
    whole: float, left: float, drop: float, gain: float, rises: float
) -> None:
    heat, score = heat_map("random", (4, 5)), score_by_heat(whole, left)
    assert average_drop(heat, ONES, score) == pytest.approx(drop)
    assert average_gain(heat, ONES, score) == pytest.approx(gain)
    assert increase_in_confidence(heat, ONES, score) == rises


@pytest.mark.proves("average-drop", "average-gain", "increase-in-confidence", "adcc")
@pytest.mark.parametrize("factor", [1e-12, 0.5, 1e9])
def test_a_positive_factor_of_the_map_changes_nothing(factor: float) -> None:
    x, heat, score = picture((6, 7)), heat_map("signed", (6, 7)), probability_of(classifier())

    def explain(pictures: Tensor, signed: bool) -> np.ndarray:
        return pictures.abs().sum(dim=1).numpy()

    for one in (average_drop, average_gain, increase_in_confidence):
        assert one(heat * factor, x, score) == pytest.approx(one(heat, x, score), abs=1e-12)
    assert adcc(heat * factor, x, score, explain) == pytest.approx(adcc(heat, x, score, explain), abs=1e-12)


def test_a_score_from_which_nothing_can_fall_or_rise_is_undefined() -> None:
    heat = heat_map("random", (4, 5))
    with pytest.raises(UndefinedError, match="score of 0"):
        average_drop(heat, ONES, score_by_heat(0, 0.5))
    with pytest.raises(UndefinedError, match="probability of 1"):
        average_gain(heat, ONES, score_by_heat(1, 0.5))
    with pytest.raises(UndefinedError, match="score of 0"):
        adcc(heat, ONES, score_by_heat(0, 0.5), lambda pictures, signed: pictures[:, 0].numpy())


@pytest.mark.parametrize(("metric", "whole", "left"), [(average_drop, -2, -3), (average_gain, 1.5, 2.5)])
def test_no_share_is_told_of_a_score_that_lies_where_no_probability_can_be(
    metric: Callable[..., float], whole: float, left: float
) -> None:
    """A margin or a logit can lie anywhere; the shares of these two would be -0.5 and -2, better than the best or worse than the worst."""
    with pytest.raises(UndefinedError):
        metric(heat_map("random", (4, 5)), ONES, score_by_heat(whole, left))


@pytest.mark.proves("adcc", says="equals its slow float64 oracle, the harmonic mean of its three parts")
@pytest.mark.parametrize("kind", ["random", "mostly zero", "ties", "signed"])
@pytest.mark.parametrize("size", SIZES)
def test_adcc_is_the_oracles(size: tuple[int, int], kind: str) -> None:
    x, heat, score = picture(size), heat_map(kind, size), probability_of(classifier())

    def explain(pictures: Tensor, signed: bool) -> np.ndarray:
        assert not signed
        return F.adaptive_avg_pool2d(pictures.abs(), (4, 3)).sum(dim=1).numpy()

    left = torch.from_numpy(oracles.masked(x[0].numpy(), heat))[None]
    drop = oracles.average_drop(float(score(x)[0]), float(score(left)[0]))
    again = F.interpolate(torch.from_numpy(explain(left, False))[None], size, mode="bilinear")[0, 0].numpy()
    wanted = oracles.adcc(oracles.coherency(heat, again), oracles.complexity(heat), drop)
    assert wanted > 0
    assert adcc(heat, x, score, explain) == pytest.approx(wanted, abs=EXACT)


def parts_of(coherency: float, size: float, drop: float) -> tuple[np.ndarray, Score, Any]:
    """Map, score and method on the picture of ones with these three parts of adcc."""
    heat = np.zeros(20)
    heat[: round(20 * size)] = 1
    centred = heat - heat.mean()
    across = np.random.default_rng(0).standard_normal(20)
    across -= across.mean()
    across -= centred * (across @ centred) / (centred @ centred)
    cosine = 2 * coherency - 1
    again = cosine * centred / np.linalg.norm(centred) + math.sqrt(1 - cosine**2) * across / np.linalg.norm(across)
    score = score_by_heat(0.8, 0.8 * (1 - drop))
    return heat.reshape(4, 5), score, lambda pictures, signed: again.reshape(1, 4, 5)


@pytest.mark.proves("adcc")
@pytest.mark.parametrize("value", [0.5, 0.75, 0.9])
def test_adcc_of_three_equal_parts_is_that_value(value: float) -> None:
    heat, score, explain = parts_of(value, 1 - value, 1 - value)
    assert adcc(heat, ONES, score, explain) == pytest.approx(value, abs=EXACT)


@pytest.mark.proves("adcc")
def test_adcc_of_a_map_that_another_picture_gives_again_on_a_small_place_is_near_1() -> None:
    heat, score, explain = parts_of(1.0, 0.05, 0.0)
    assert adcc(heat, ONES, score, explain) == pytest.approx(3 / (1 + 1 / 0.95 + 1), abs=EXACT)


@pytest.mark.proves("adcc")
@pytest.mark.parametrize("which", ["the map", "the map of what is left"])
def test_a_constant_map_has_a_coherency_of_0_and_so_adcc_is_0(which: str) -> None:
    heat, score, explain = parts_of(1.0, 0.25, 0.0)
    if which == "the map":
        assert adcc(np.ones((4, 5)), ONES, score, explain) == 0
    else:
        assert adcc(heat, ONES, score, lambda pictures, signed: np.ones((1, 2, 2))) == 0
        assert adcc(heat, ONES, score, lambda pictures, signed: np.zeros((1, 2, 2))) == 0


@pytest.mark.proves("adcc")
def test_adcc_is_0_where_the_whole_score_drops() -> None:
    heat, score, explain = parts_of(0.9, 0.25, 1.0)
    assert adcc(heat, ONES, score, explain) == 0


@pytest.mark.parametrize("metric", [average_drop, average_gain, increase_in_confidence])
@pytest.mark.parametrize("kind", ["zero", "negative"])
def test_a_map_without_positive_heat_leaves_nothing_and_is_undefined(kind: str, metric: Callable[..., float]) -> None:
    with pytest.raises(UndefinedError, match="no positive value"):
        metric(heat_map(kind, (4, 5)), ONES, score_by_heat(0.8, 0.2))


# ---------------------------------------------------------------------------------------------------------- infidelity


def squares(asked: Recorded, x: Tensor) -> np.ndarray:
    """(samples, H, W), what was taken away from each picture that was asked about, the whole one left out."""
    return (asked.pictures[1:] != x).any(dim=1).numpy()


@pytest.mark.proves("infidelity", says="equals its slow float64 oracle on the squares that it took away")
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("kind", ["random", "mostly zero", "ties", "constant", "signed", "negative"])
@pytest.mark.parametrize("size", SIZES)
def test_infidelity_is_the_oracles(size: tuple[int, int], kind: str, rescaled: bool) -> None:
    x, heat = picture(size), heat_map(kind, size)
    asked = Recorded(probability_of(classifier()))
    found = infidelity(heat, x, asked, samples=37, size=0.3, rescaled=rescaled, seed=4)
    taken = squares(asked, x)
    scores = asked.score(asked.pictures).numpy()
    told = [math.fsum(heat[one]) for one in taken]
    assert len(taken) == 37
    assert found == pytest.approx(oracles.infidelity(scores[0] - scores[1:], told, rescaled), abs=EXACT)


@pytest.mark.proves("infidelity")
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_infidelity_of_a_linear_model_with_its_own_contributions_is_0(size: tuple[int, int], rescaled: bool) -> None:
    model, x = Additive(size), picture(size)
    assert infidelity(model.parts(x), x, model, rescaled=rescaled) < 1e-20
    assert infidelity(heat_map("random", size), x, model, rescaled=rescaled) > 0.01


@pytest.mark.proves("infidelity")
@pytest.mark.parametrize("factor", [1e-12, 3.0, -1.0, 1e12])
def test_scaling_the_heat_changes_nothing_when_infidelity_rescales(factor: float) -> None:
    size = (9, 8)
    x, heat, score = picture(size), heat_map("signed", size), probability_of(classifier())
    wanted = infidelity(heat, x, score)
    assert infidelity(heat * factor, x, score) == pytest.approx(wanted, rel=1e-9)
    assert infidelity(heat * factor, x, score, rescaled=False) != pytest.approx(wanted, rel=1e-3)


@pytest.mark.proves("infidelity")
def test_the_squares_are_of_the_side_that_is_said_lie_everywhere_and_are_seeded() -> None:
    size = (12, 10)
    x = picture(size)

    def taken(seed: int) -> np.ndarray:
        asked = Recorded(Additive(size))
        infidelity(heat_map("random", size), x, asked, samples=400, size=0.4, seed=seed)
        return squares(asked, x)

    found = taken(0)
    tops, lefts = found.any(axis=2).argmax(axis=1), found.any(axis=1).argmax(axis=1)
    wanted = np.zeros_like(found)
    for one, top, left in zip(wanted, tops, lefts, strict=True):
        one[top : top + 4, left : left + 4] = True
    assert np.array_equal(found, wanted)
    assert set(tops) == set(range(9))
    assert set(lefts) == set(range(7))
    assert np.array_equal(found, taken(0))
    assert not np.array_equal(found, taken(1))


@pytest.mark.agrees("captum", "infidelity")
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("kind", ["random", "signed"])
def test_infidelity_of_the_same_squares_is_the_peers(kind: str, rescaled: bool) -> None:
    captum = quietly("captum.metrics")
    size, model = (12, 10), classifier()
    x, heat = picture(size), heat_map(kind, size)
    asked = Recorded(probability_of(model))
    found = infidelity(heat, x, asked, samples=30, rescaled=rescaled)
    taken = torch.from_numpy(squares(asked, x))[:, None].expand(-1, 3, -1, -1).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = captum.infidelity(
            probability_of(model),
            lambda pictures: (taken, pictures * (1 - taken)),
            x,
            torch.from_numpy(heat).expand(1, 3, *size) / 3,  # captum's attributions have channels
            n_perturb_samples=30,
            normalize=rescaled,
        )
    assert found == pytest.approx(float(theirs), rel=1e-8, abs=1e-14)


@pytest.mark.proves("infidelity")
def test_a_map_that_says_nothing_about_any_square_is_undefined_when_it_is_rescaled() -> None:
    x, score = picture((8, 8)), probability_of(classifier())
    with pytest.raises(UndefinedError, match="0 for every square"):
        infidelity(np.zeros((8, 8)), x, score)
    assert infidelity(np.zeros((8, 8)), x, score, rescaled=False) > 0
    with pytest.raises(UndefinedError):
        square_error(np.zeros(3), np.ones(3), True)


@pytest.mark.parametrize("options", [{"samples": 1}, {"size": 1.2}, {"size": 0.0}, {"size": -0.3}])
def test_squares_that_can_not_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(MetricError):
        infidelity(heat_map("random", (8, 8)), picture((8, 8)), Additive((8, 8)), **options)


# ------------------------------------------------------------------------------------------------------ max-sensitivity


def gradient(capture: Any) -> Tensor:
    """The gradient, as a method: it knows nothing of the picture where the model is linear."""
    return capture.gradients.sum(dim=1)


@pytest.mark.proves("max-sensitivity")
def test_max_sensitivity_of_the_gradient_of_a_linear_model_is_0() -> None:
    model = seeded(lambda: Echo(channels=3, h=6, w=7), dtype=torch.float64)
    x = picture((6, 7))
    (found,) = measure(x, model, ["max-sensitivity"], method=gradient, layer="echo", target=2)
    assert found["max-sensitivity"].value == 0
    (other,) = measure(x, model, ["max-sensitivity"], method="hires-cam", layer="echo", target=2)
    assert other["max-sensitivity"].value > 0.001


@pytest.mark.proves("max-sensitivity", says="equals its slow float64 oracle on the maps of the noisy pictures")
@pytest.mark.parametrize("samples", [1, 10, 35])
@pytest.mark.parametrize("size", SIZES)
def test_max_sensitivity_is_the_oracles(size: tuple[int, int], samples: int) -> None:
    x, asked = picture(size), []

    def explain(pictures: Tensor, signed: bool) -> np.ndarray:
        assert not signed
        asked.append(pictures)
        return (pictures[:, 0] * pictures[:, 1].square()).relu().numpy()

    found = max_sensitivity(x, explain, radius=0.1, samples=samples, seed=3)
    own, *others = explain(torch.cat(asked), False)
    assert len(others) == samples
    assert found == pytest.approx(oracles.max_sensitivity(own, others), abs=EXACT)


@pytest.mark.proves("max-sensitivity")
def test_the_noise_is_uniform_within_the_radius_and_seeded() -> None:
    x = picture((9, 8))

    def noise(seed: int, radius: float = 0.3) -> Tensor:
        asked: list[Tensor] = []

        def explain(pictures: Tensor, signed: bool) -> np.ndarray:
            asked.append(pictures)
            return pictures[:, 0].numpy()

        max_sensitivity(x, explain, radius=radius, samples=40, seed=seed)
        return torch.cat(asked)[1:] - x

    found = noise(0)
    assert found.abs().max() <= 0.3
    assert found.abs().max() > 0.29
    assert abs(float(found.mean())) < 0.01
    assert float(found.std()) == pytest.approx(0.3 / math.sqrt(3), rel=0.02)
    assert torch.equal(found, noise(0))
    assert not torch.equal(found, noise(1))
    assert noise(0, 0.02).abs().max() <= 0.02


@pytest.mark.proves("max-sensitivity")
def test_max_sensitivity_is_the_same_for_maps_of_another_unit() -> None:
    x = picture((9, 8))
    one, other = (
        max_sensitivity(x, lambda pictures, signed, factor=factor: factor * pictures[:, 0].abs().numpy())
        for factor in (1, 1e6)
    )
    assert one == pytest.approx(other, rel=1e-12)


def test_an_empty_map_has_no_sensitivity() -> None:
    with pytest.raises(UndefinedError, match="map is empty"):
        max_sensitivity(picture((5, 5)), lambda pictures, signed: np.zeros((len(pictures), 3, 3)))


@pytest.mark.parametrize("radius", [0.0, -0.1])
def test_noise_that_changes_nothing_or_has_no_size_is_refused(radius: float) -> None:
    """A radius of 0 would be a silent 0: no map is sensitive to nothing."""
    with pytest.raises(MetricError, match="radius"):
        max_sensitivity(picture((5, 5)), lambda pictures, signed: pictures[:, 0].numpy(), radius=radius)


# ---------------------------------------------------------------------------------------------------------- wrong sizes


@pytest.mark.parametrize("name", ["deletion", "insertion", "road-morf", "average-drop", "infidelity"])
def test_a_map_of_another_size_than_the_picture_is_refused(name: str) -> None:
    model = classifier()
    functions: dict[str, Callable[..., Any]] = {
        "average-drop": average_drop,
        "infidelity": infidelity,
        "road-morf": road_morf,
        **CURVES,
    }
    ask = answer_of(model) if name == "road-morf" else probability_of(model)
    with pytest.raises(MetricError, match=r"the map is \(8, 7\)"):
        functions[name](np.ones((8, 7)), picture((8, 8)), ask)
    with pytest.raises(MetricError, match="expected"):
        functions[name](np.ones((8, 8)), picture((8, 8)).repeat(2, 1, 1, 1), ask)


@pytest.mark.parametrize("step", [0, -1])
def test_a_step_of_no_pixels_is_refused(step: int) -> None:
    with pytest.raises(MetricError, match=f"option step is {step}; expected at least 1 pixel"):
        deletion(np.ones((4, 4)), picture((4, 4)), Additive((4, 4)), step=step)


def test_pictures_in_float32_are_asked_about_in_float32() -> None:
    x, model = images(1), seeded(Plain)
    asked = Recorded(probability_of(model))
    heat = heat_map("random", (16, 16))
    deletion(heat, x, asked)
    insertion(heat, x, asked)
    road_morf(heat, x, lambda pictures: (asked(pictures), torch.ones(len(pictures))))
    average_drop(heat, x, asked)
    infidelity(heat, x, asked)
    assert {one.dtype for one in asked.asked} == {torch.float32}
    assert complexity(heat) == pytest.approx(float(scaled(heat).mean()))
    assert correlation(heat, enlarged(heat, (16, 16))) == pytest.approx(1)
