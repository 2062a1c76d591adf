"""Occlusion against its oracle, on models whose map can be written down, and beside methods that look into the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import CLASSES, Plain, assert_close, assert_untouched, images, seeded
from oracles_perturbation import occlusion
from sightline.errors import MethodError
from sightline.methods import list_methods
from sightline.models.preprocess import standard


class Bent(nn.Module):
    """Any size of picture, and a score that no square of it makes alone."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3, stride=2, padding=1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).tanh().square().mean(dim=(2, 3)))


def picture(height: int, width: int, channels: int = 3, batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def score_of(model: nn.Module, index: int) -> Callable[[Any], float]:
    def score(x: Any) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(x)[None])[0, index])

    return score


def by_pixel(found: Tensor, x: Tensor) -> Tensor:
    """A map of cells, laid out on the pixels that they stand for."""
    rows, columns = x.shape[2] // found.shape[1], x.shape[3] // found.shape[2]
    return found.repeat_interleave(rows, 1).repeat_interleave(columns, 2)


@pytest.mark.proves("occlusion", says="equals its slow float64 oracle for squares of any size, also cut at the border")
@pytest.mark.parametrize(("patch", "stride"), [(4, 2), (4, 4), (3, 2), (5, 1), (7, 3), (1, 1), (8, 8)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (9, 11), (13, 8)])
def test_the_map_is_the_oracles(height: int, width: int, patch: int, stride: int) -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(height, width)
    options = {"patch": patch, "stride": stride, "baseline": [0.5, -1.0, 0.25]}
    found = sightline.attribute(x, model, method="occlusion", target=1, options=options)
    wanted = occlusion(score_of(model, 1), x[0].numpy(), patch, stride, np.array([0.5, -1.0, 0.25]))
    assert np.abs(wanted).max() > 1e-4
    assert float((by_pixel(found, x)[0] - torch.from_numpy(wanted)).abs().max()) <= 1e-12


@pytest.mark.proves(
    "occlusion", says="is weight times pixel, summed over the square, for a score that is linear in the pixels"
)
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_of_a_linear_score_it_is_weight_times_pixel(baseline: float) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, CLASSES)).double()
    x = picture(8, 12)
    options = {"patch": 4, "stride": 4, "baseline": baseline}
    found = sightline.attribute(x, model, method="occlusion", target=2, options=options)
    weights = model[1].weight.detach()[2].reshape(3, 8, 12)
    wanted = (weights * (x[0] - baseline)).sum(dim=0).reshape(2, 4, 3, 4).sum(dim=(1, 3))
    assert found.shape == (1, 2, 3)
    assert_close(found[0], wanted, 1e-12)


@pytest.mark.proves("occlusion", says="is exactly 0 where the score does not depend on the picture")
def test_of_a_constant_score_it_is_zero() -> None:
    def constant(x: Tensor) -> Any:
        return np.tile([0.3, -0.1, 7.0], (len(x), 1))

    found = sightline.attribute(images(2), constant, method="occlusion", target=1)
    assert not found.any()


@pytest.mark.proves("occlusion")
def test_pixels_that_no_score_depends_on_get_exactly_nothing() -> None:
    """A score of the left half: squares of the right half change nothing."""
    found = sightline.attribute(
        picture(8, 8), lambda x: x[..., :4].square().sum(dim=(1, 2, 3)), options={"patch": 2, "stride": 2}
    )
    assert (found[0, :, :2] > 0).all()
    assert not found[0, :, 2:].any()


def test_the_mean_colour_is_the_pictures_own() -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(8, 8)
    settings = {"patch": 4, "stride": 2}
    found = sightline.attribute(x, model, method="occlusion", target=1, options=settings | {"baseline": "mean"})
    colour = x[0].mean(dim=(1, 2)).tolist()
    wanted = sightline.attribute(x, model, method="occlusion", target=1, options=settings | {"baseline": colour})
    assert_close(found, wanted, 1e-12)


def test_a_batch_gives_what_its_images_give_one_by_one() -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(10, 8, batch=3)
    together = sightline.attribute(x, model, method="occlusion", target=[1, None, 3])
    alone = [
        sightline.attribute(x[[one]], model, method="occlusion", target=target)
        for one, target in enumerate([1, None, 3])
    ]
    assert_close(together, torch.cat(alone), 1e-12)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (224, 224, (14, 14)),
        (112, 168, (14, 21)),
        (60, 60, (15, 15)),
        (61, 60, (61, 60)),
        (3, 5, (3, 5)),
        (1, 1, (1, 1)),
    ],
)
def test_squares_are_a_seventh_of_the_shorter_side_unless_said_otherwise(
    height: int, width: int, grid: tuple[int, int]
) -> None:
    asked = []

    def score(x: Tensor) -> Tensor:
        asked.append(x.detach())
        return x.mean(dim=(1, 2, 3))

    found = sightline.attribute(torch.ones(1, 3, height, width), score)
    assert found.shape == (1, *grid)
    covered = [int((one == 0).all(dim=0).sum()) for batch in asked[1:] for one in batch]
    patch = round(max(covered) ** 0.5)
    assert patch == max(covered) ** 0.5
    assert patch == min(height, width, max(2, 2 * round(min(height, width) / 14)))


def test_how_often_the_model_is_asked_is_known_before_and_bounded_by_the_memory() -> None:
    sizes: list[int] = []
    told: list[tuple[int, int]] = []

    def score(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.mean(dim=(1, 2, 3))

    x = torch.rand(1, 3, 32, 32)
    options = {"patch": 8, "stride": 4}
    sightline.attribute(x, score, options=options, progress=lambda done, of: told.append((done, of)))
    squares = 7 * 7
    assert (sizes[0], sum(sizes[1:]), max(sizes)) == (1, squares + 1, 16)
    assert {of for _, of in told} == {squares + 1}
    assert [done for done, _ in told] == sorted({*range(0, squares + 1, 16), squares + 1})
    sizes.clear()
    sightline.attribute(x, score, options=options, memory_mb=2)
    assert max(sizes) == 3
    assert sum(sizes[1:]) == squares + 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch": 17}, "patch is 17; expected at most the picture's shorter side, 16"),
        ({"patch": 4, "stride": 5}, "stride is 5; expected at most the patch, 4"),
        ({"patch": -1}, "patch is -1; expected 0 to"),
        ({"patch": 2.5}, "patch is 2.5"),
        ({"baseline": [0.0, 1.0]}, "baseline has 2 numbers; expected one, or one for each of 3 channels"),
        ({"baseline": "grey"}, "baseline is 'grey'; expected a number"),
        ({"baseline": [0.0, "x", 1.0]}, "baseline is"),
        ({"baseline": float("nan")}, "baseline is nan"),
        ({"colour": 0}, "no option 'colour' in occlusion; there is: patch=0, stride=0, baseline=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said.replace("(", r"\(")):
        sightline.attribute(images(1), seeded(Plain), method="occlusion", options=options)


def test_a_model_without_any_grid_can_be_asked_and_stays_as_it_is() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES)), images(2)
    with assert_untouched(model, x):
        found = sightline.attribute(x, model, method="occlusion", target=1)
    assert found.any()


def test_another_score_than_a_class_can_be_asked_for() -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(8, 8)
    one, other, both = (
        sightline.attribute(x, model, method="occlusion", target=target) for target in (1, 3, sightline.margin(1, 3))
    )
    assert_close(both, one - other, 1e-10)


def test_it_stands_beside_methods_that_look_into_the_model() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    model = sightline.adapt(seeded(Plain), preprocess=standard((224, 224), 224, mean=(0.5,) * 3, std=(0.5,) * 3))
    cam, found, again = sightline.compare(photo, model, methods=["grad-cam", "occlusion", "full-grad"])
    assert [one.method for one in (cam, found, again)] == ["grad-cam", "occlusion", "full-grad"]
    assert (found.layer, found.where()) == ("input", "the input")
    alone = sightline.explain(photo, model, method="occlusion")
    assert found.raw.shape == (14, 14)
    np.testing.assert_allclose(alone.raw, found.raw, rtol=0, atol=1e-5)


def test_averaged_over_flips_it_is_the_mean_of_both() -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture(8, 8)
    options = {"patch": 2, "stride": 2}
    found = sightline.attribute(x, model, method=sightline.combine("occlusion", "flips"), target=1, options=options)
    one, other = (
        sightline.attribute(each, model, method="occlusion", target=1, options=options) for each in (x, x.flip(3))
    )
    assert_close(found, (one + other.flip(2)) / 2, 1e-12)


def test_a_block_that_decides_is_found_where_it_lies_on_the_photograph() -> None:
    """The photograph is twice the input's size, wider than high, and cropped in the middle."""
    photo = np.full((64, 96, 3), 40, np.uint8)
    photo[16:24, 56:64] = 250

    def score(x: Tensor) -> Tensor:
        return x.amax(dim=(1, 2, 3))

    from sightline.models.preprocess import standard

    take = standard((32, 32), 32, mean=(0.0,) * 3, std=(1.0,) * 3)
    found = sightline.explain(
        photo, sightline.adapt(score, preprocess=take), options={"patch": 4, "stride": 4}, target=0
    )
    values = np.nan_to_num(found.values, nan=-1.0)
    rows, columns = np.nonzero(values >= 0.99 * values.max())
    assert 16 <= rows.min() <= rows.max() < 24
    assert 56 <= columns.min() <= columns.max() < 64


def test_what_it_needs_is_said_in_its_record() -> None:
    one = list_methods()["occlusion"]
    assert (one.needs, one.signed, one.class_specific, one.unit) == ("scores", True, True, "score")
