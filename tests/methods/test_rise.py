"""RISE: what its masks are, what its map and standard error must be, and what it says when there are too few masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import CLASSES, Plain, assert_close, assert_untouched, images, seeded
from oracles_perturbation import rise as oracle
from oracles_perturbation import rise_mask
from sightline.attribution import Terms, map_of, run_once
from sightline.engine.targets import per_image
from sightline.errors import MethodError, ModelError, NonFiniteError
from sightline.methods import list_methods
from sightline.methods.perturbation import _Masks
from sightline.models.adapter import INPUT


class Bent(nn.Module):
    """Any size of picture, and a score in which places act together."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3, stride=2, padding=1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).tanh().square().mean(dim=(2, 3)))


def picture(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def linear(height: int, width: int) -> tuple[nn.Module, Tensor]:
    """A model of three channels that is linear in the pixels, and the weights (3, H, W) of class 2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * height * width, CLASSES)).double()
    return model, model[1].weight.detach()[2].reshape(3, height, width)


def asked(x: Tensor, model: Any, memory_mb: float = 512, target: int = 1, **options: Any) -> tuple[Tensor, Terms]:
    """A map, and what came beside it."""
    adapter, terms = sightline.adapt(model), Terms(options, memory_mb)
    (seen,) = run_once(adapter, x, [INPUT])
    return map_of(list_methods()["rise"], adapter, seen, per_image(target, adapter, seen.output, 1), terms), terms


def masks(samples: int, grid: int, kept: float, size: tuple[int, int], seed: int = 0) -> Tensor:
    return _Masks.drawn(samples, grid, kept, size, seed).cut(slice(0, samples), torch.zeros(1, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.proves(
    "rise", says="a mask is its grid enlarged bilinearly and cut at its offset, as torch's own enlarging gives it"
)
@pytest.mark.parametrize(("height", "width", "grid"), [(16, 16, 4), (13, 21, 5), (3, 5, 7), (1, 1, 2), (29, 8, 3)])
def test_a_mask_is_its_grid_enlarged_and_cut(height: int, width: int, grid: int) -> None:
    drawn = _Masks.drawn(40, grid, 0.4, (height, width), 3)
    tall, wide = math.ceil(height / grid), math.ceil(width / grid)
    large = nn.functional.interpolate(
        drawn.cells[:, None].double(), ((grid + 1) * tall, (grid + 1) * wide), mode="bilinear", align_corners=False
    )[:, 0]
    wanted = [
        one[row : row + height, column : column + width]
        for one, (row, column) in zip(large, drawn.offsets.tolist(), strict=True)
    ]
    found = masks(40, grid, 0.4, (height, width), 3)
    assert_close(found, torch.stack(wanted), 1e-12)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1 + 1e-15
    assert {tuple(one) for one in drawn.offsets.tolist()} <= {
        (row, column) for row in range(tall) for column in range(wide)
    }


@pytest.mark.proves("rise", says="a mask's expectation is p at every pixel, borders too")
@pytest.mark.parametrize("kept", [0.5, 0.2])
def test_the_mean_of_the_masks_is_p_at_every_pixel(kept: float) -> None:
    """Every cell's expectation is p, so that a grid of p's is the expectation of a mask, for each offset."""
    drawn = _Masks.drawn(6000, 4, kept, (14, 9), 0)
    expected = drawn.sides[0] @ torch.full((4, 4), kept, dtype=torch.float64) @ drawn.sides[1][0].T
    assert float((expected - kept).abs().max()) <= 1e-15
    found = masks(6000, 4, kept, (14, 9))
    error = found.std(dim=0) / 6000**0.5
    assert float(((found.mean(dim=0) - kept) / error).abs().max()) < 4.5
    assert float(found[:, 0, 0].mean() - kept) != 0


# ------------------------------------------------------------------------------------------------------------------ map


@pytest.mark.proves("rise", says="is exactly 0, standard error too, where the score does not depend on the picture")
@pytest.mark.parametrize("value", [0.3, -1e7 / 3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_constant_score_it_is_zero(value: float, dtype: torch.dtype) -> None:
    found, terms = asked(
        picture(9, 11).to(dtype), lambda x: np.tile([0.5, value, 7.0], (len(x), 1)), samples=50, grid=3
    )
    assert not found.any()
    assert not terms.details["standard error"].any()
    assert terms.details["mean score"] == pytest.approx(value, rel=1e-6)
    assert not any("too few" in note for note in terms.notes)


@pytest.mark.proves("rise", says="is the definition's sum, in float64 to 1e-10")
@pytest.mark.parametrize("memory_mb", [0.02, 512])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (10, 7)])
def test_map_and_error_are_the_definitions(height: int, width: int, memory_mb: float) -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(height, width)
    found, terms = asked(x, model, memory_mb, samples=101, grid=3, kept=0.4, baseline=[0.5, -1.0, 0.25], seed=5)
    m = masks(101, 3, 0.4, (height, width), 5)[:, None]
    base = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        f = model(x * m + base * (1 - m))[:, 1]
    shares = (f - f.mean())[:, None, None] * m[:, 0] / 0.4
    assert float((found[0] - shares.mean(dim=0)).abs().max()) <= 1e-10
    assert float(found.abs().max()) > 1e-3
    paper = (f[:, None, None] * m[:, 0]).mean(dim=0) / 0.4
    more = terms.details["mean score"] * m[:, 0].mean(dim=0) / 0.4
    assert float((found[0] + more - paper).abs().max()) <= 1e-10
    error = ((f - f.mean())[:, None, None] * (m[:, 0] - m[:, 0].mean(dim=0)) / 0.4).std(dim=0) / 101**0.5
    assert terms.details["standard error"].dtype == np.float32
    np.testing.assert_allclose(terms.details["standard error"], error.numpy(), rtol=1e-6)


@pytest.mark.proves("rise", says="equals its slow float64 oracle, masks and map")
@pytest.mark.parametrize(("height", "width", "grid", "kept"), [(6, 6, 2, 0.5), (5, 8, 3, 0.3), (2, 3, 4, 0.7)])
def test_masks_and_map_are_the_oracles(height: int, width: int, grid: int, kept: float) -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(height, width)
    drawn = _Masks.drawn(30, grid, kept, (height, width), 2)
    wanted = [
        rise_mask(cells, offset, (height, width))
        for cells, offset in zip(drawn.cells.double().numpy(), map(tuple, drawn.offsets.tolist()), strict=True)
    ]
    assert np.abs(masks(30, grid, kept, (height, width), 2).numpy() - np.stack(wanted)).max() <= 1e-12

    def score(v: Any) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(v)[None])[0, 1])

    found, terms = asked(x, model, samples=30, grid=grid, kept=kept, baseline=0.25, seed=2)
    slow, error = oracle(score, x[0].numpy(), wanted, kept, np.full((3, height, width), 0.25))
    assert np.abs(slow).max() > 1e-4
    assert np.abs(found[0].numpy() - slow).max() <= 1e-10
    assert terms.details["standard error"].mean() < error.mean(), (
        "which counts the masks' own mean as if it moved the map"
    )


@pytest.mark.proves("rise", says="its expectation for a linear score is the masks' covariance times weight times pixel")
def test_of_a_linear_score_it_is_the_covariance_of_the_masks_times_weight_times_pixel() -> None:
    """Of all 2^4 grids and 4 offsets, each once, so that the mean is the expectation."""
    model, weights = linear(4, 4)
    x, kept = picture(4, 4), 0.3
    one = _Masks.drawn(4, 2, kept, (4, 4), 0)
    grids = ((torch.arange(16)[:, None] >> torch.arange(4)) % 2).reshape(16, 1, 1, 2, 2).double()
    every = one.sides[0][None, :, None] @ grids @ one.sides[1][None, None].mT  # (16, 2, 2, 4, 4)
    chance = kept ** grids.sum(dim=(-1, -2)) * (1 - kept) ** (4 - grids.sum(dim=(-1, -2))) / 4
    m, chance = every.reshape(64, 16), chance.expand(16, 2, 2).reshape(64)
    covariance = (m - kept).T * chance @ (m - kept)
    expected = covariance @ (weights * x[0]).sum(dim=0).flatten() / kept
    runs = torch.stack([asked(x, model, target=2, samples=4000, grid=2, kept=kept, seed=seed)[0] for seed in range(12)])
    error = runs.std(dim=0).flatten() / 12**0.5
    assert float(expected.abs().max()) > 0.05
    assert float(((runs.mean(dim=0).flatten() - expected) / error).abs().max()) < 5


@pytest.mark.proves("rise", says="its standard error is how far maps of other seeds lie")
@pytest.mark.parametrize("kept", [0.5, 0.25])
def test_the_standard_error_is_the_spread_over_seeds(kept: float) -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(8, 8)
    runs = [asked(x, model, samples=200, grid=3, kept=kept, seed=seed) for seed in range(100)]
    spread = torch.cat([found for found, _ in runs]).std(dim=0).numpy()
    said = np.sqrt(np.mean([terms.details["standard error"] ** 2 for _, terms in runs], axis=0))
    assert abs(np.mean(said / spread) - 1) < 0.08
    assert np.abs(said / spread - 1).max() < 0.3


@pytest.mark.proves("rise", says="the seed decides the map, and the size of a batch does not")
def test_the_seed_decides_and_the_batch_does_not() -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(12, 10)
    one, alone = (asked(x, model, memory_mb, samples=60)[0] for memory_mb in (512, 0.001))
    assert float((one - alone).abs().max()) <= 1e-14
    assert torch.equal(one, asked(x, model, samples=60)[0])
    assert float((one - asked(x, model, samples=60, seed=1)[0]).abs().max()) > 1e-4


def test_a_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    asked(picture(6, 6), lambda x: x.mean(dim=(1, 2, 3)), target=0, samples=8)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_map_comes_in_the_type_of_its_input(dtype: torch.dtype) -> None:
    model = seeded(Plain).to(dtype)
    x = images(1)
    found = sightline.attribute(x.to(dtype), model, method="rise", target=1, options={"samples": 300})
    wanted = sightline.attribute(x, seeded(Plain), method="rise", target=1, options={"samples": 300})
    assert found.dtype == dtype
    assert_close(found.float(), wanted, {torch.float16: 0.02, torch.bfloat16: 0.3, torch.float32: 1e-6}[dtype])


# ----------------------------------------------------------------------------------------------------- what is said of it


def test_agreement_of_two_halves_grows_with_the_masks_and_too_few_are_said() -> None:
    def rising(x: Tensor) -> Tensor:
        return (x * torch.linspace(-1, 1, 24, dtype=x.dtype)).mean(dim=(1, 2, 3))

    x = torch.ones(1, 3, 24, 24, dtype=torch.float64)
    few, many = (asked(x, rising, target=0, samples=samples)[1] for samples in (40, 4000))
    assert many.details["convergence"]["agreement"][-1] > 0.95
    assert many.details["convergence"]["agreement"][-1] > few.details["convergence"]["agreement"][-1]
    for terms, samples in ((few, 40), (many, 4000)):
        shown = terms.details["convergence"]["masks"]
        assert shown == sorted(set(shown))
        assert shown[-1] == samples
        assert len(shown) <= 20
        assert len(shown) == len(terms.details["convergence"]["agreement"])
        assert f"over {samples:,} masks the largest standard error is" in terms.notes[0]
    assert len(many.details["convergence"]["masks"]) == 20
    (said,) = few.notes[1:]
    assert said.startswith("40 masks are too few: the maps of two halves of them correlate by 0.")
    assert "the option samples" in said
    assert len(many.notes) == 1


def test_what_decides_is_found_where_it_lies() -> None:
    x = torch.zeros(1, 3, 56, 56)
    x[..., 30:38, 10:18] = 1
    found = sightline.attribute(x, lambda v: v.sum(dim=(1, 2, 3)), method="rise", options={"samples": 2000})[0]
    row, column = divmod(int(found.argmax()), 56)
    assert 28 <= row < 40
    assert 8 <= column < 20


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 3}, "samples is 3; expected 4 or more"),
        ({"samples": 0}, "samples is 0; expected 1 to"),
        ({"grid": 1}, "grid is 1; expected 2 to 100"),
        ({"grid": 7.5}, "grid is 7.5"),
        ({"kept": 0.0}, "kept is 0.0; expected above 0"),
        ({"kept": 1}, "kept is 1; expected above 0, at most 0.999"),
        ({"baseline": [0.0, 1.0]}, "baseline has 2 numbers"),
        ({"cells": 3}, "no option 'cells' in rise; there is: samples=4000, grid=7, kept=0.5, baseline=0.0, seed=0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        sightline.attribute(images(1), seeded(Plain), method="rise", options=options)


def after(calls: int, then: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A black box that answers well so often, and then badly."""
    made = [0]

    def score(x: Tensor) -> Any:
        made[0] += 1
        return then(x) if made[0] > calls else x.mean(dim=(1, 2, 3))

    return score


def _raising(_x: Tensor) -> Any:
    raise ValueError("no more")


def _interrupted(_x: Tensor) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("options", [{"samples": 64}])
@pytest.mark.parametrize(
    ("then", "error", "said"),
    [
        (lambda x: torch.full((len(x),), float("nan")), NonFiniteError, "in call 3, with 16 pictures: NaN"),
        (_raising, ModelError, "in call 3, with 16 pictures: .*no more"),
        (lambda x: torch.ones(len(x) + 1), ModelError, "in call 3, with 16 pictures: .*for 16 pictures"),
    ],
)
def test_a_scorer_that_breaks_is_said_with_the_number_of_the_call(
    then: Any, error: type[Exception], said: str, options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=said):
        sightline.attribute(images(1), after(3, then), method="rise", options=options)


def test_ctrl_c_goes_through_and_leaves_the_model_as_it_was() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES)), images(1)
    with assert_untouched(model, x), pytest.raises(KeyboardInterrupt):
        sightline.attribute(x, after(2, _interrupted), method="rise", options={"samples": 64})

    def stop(done: int, _of: int) -> None:
        if done:
            raise KeyboardInterrupt

    with assert_untouched(model, x), pytest.raises(KeyboardInterrupt):
        sightline.attribute(x, model, method="rise", options={"samples": 64}, progress=stop)


def test_no_more_pictures_are_shown_than_allowed_and_progress_is_told() -> None:
    shown: list[int] = []
    told: list[tuple[int, int]] = []

    def score(x: Tensor) -> Tensor:
        shown.append(len(x))
        return x.mean(dim=(1, 2, 3))

    options = {"samples": 50}
    sightline.attribute(
        images(1),
        score,
        method="rise",
        options=options,
        max_calls=51,
        progress=lambda done, of: told.append((done, of)),
    )
    assert sum(shown[1:]) == 50
    assert told == [(0, 50), (16, 50), (32, 50), (48, 50), (50, 50)]
    shown.clear()
    with pytest.raises(
        MethodError, match="would show the model 50 pictures after 1 that it has seen, and at most 50 were allowed"
    ):
        sightline.attribute(images(1), score, method="rise", options=options, max_calls=50)
    assert len(shown) == 1


def test_memory_grows_by_no_more_than_a_batch() -> None:
    """What is alive of the size of pictures while the model is asked: the batch, its masks, and the sums."""
    import gc

    x = torch.rand(1, 3, 64, 64)
    most = [0]

    def score(v: Tensor) -> Tensor:
        alive = {
            one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
            for one in gc.get_objects()
            if type(one) is Tensor and one.dim() >= 3 and one.shape[-2:] == (64, 64)
        }
        most[0] = max(most[0], sum(alive.values()))
        return v.mean(dim=(1, 2, 3))

    sightline.attribute(x, score, method="rise", options={"samples": 200})
    batch, mask = 16 * 3 * 64 * 64 * 4, 16 * 64 * 64 * 4
    assert most[0] <= 2 * batch + mask + 8 * 64 * 64 * 8 + 10 * x.nbytes


def test_what_it_needs_is_said_in_its_record() -> None:
    one = list_methods()["rise"]
    assert (one.needs, one.signed, one.class_specific, one.unit) == ("scores", True, True, "score")
