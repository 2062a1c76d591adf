"""kernel-shap and lime: what they must say of scores whose answer can be written down, and what they refuse."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import CLASSES, Plain, assert_close, assert_untouched, images, seeded
from oracles_perturbation import kernel_shap, lime, shapley
from sightline.attribution import Terms, map_of, run_once
from sightline.engine.targets import per_image
from sightline.errors import MethodError, MissingExtraError, ModelError, NonFiniteError
from sightline.methods import list_methods
from sightline.methods.surrogates import superpixels
from sightline.models.adapter import INPUT

BOTH = ["kernel-shap", "lime"]
SIZE = (6, 8)


class Bent(nn.Module):
    """Any size of picture, and a score in which places act together."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3, stride=2, padding=1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).tanh().square().mean(dim=(2, 3)))


def picture(height: int = 6, width: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def tiles(rows: int, columns: int, size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    """Own superpixels: rectangles in rows and columns."""
    down, along = np.arange(size[0]) * rows // size[0], np.arange(size[1]) * columns // size[1]
    return down[:, None] * columns + along


def additive(x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A score that is linear in the pixels, and what each pixel adds to it over a picture of zeros (H, W)."""
    weights = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return lambda v: (v * weights).sum(dim=(1, 2, 3)) + 1.5, (weights * x[0]).sum(dim=0)


def summed(shares: Tensor, labels: np.ndarray[Any, Any]) -> Tensor:
    """Each superpixel's sum, on its pixels."""
    places = torch.from_numpy(labels).long().flatten()
    return (
        torch.zeros(int(labels.max()) + 1, dtype=shares.dtype)
        .scatter_add_(0, places, shares.flatten())[places]
        .view(shares.shape)
    )


def asked(
    method: str, x: Tensor, model: Any, memory_mb: float = 512, target: int = 0, **options: Any
) -> tuple[Tensor, Terms]:
    """A map, and what came beside it."""
    adapter, terms = sightline.adapt(model), Terms(options, memory_mb)
    (seen,) = run_once(adapter, x, [INPUT])
    return map_of(list_methods()[method], adapter, seen, per_image(target, adapter, seen.output, 1), terms), terms


def by_permutations(
    score: Callable[[Tensor], float], x: Tensor, base: float, labels: np.ndarray[Any, Any]
) -> list[float]:
    """Shapley values, from every order in which superpixels can appear."""
    places, count = torch.from_numpy(labels), int(labels.max()) + 1

    @functools.cache
    def of(coalition: frozenset[int]) -> float:
        shown = torch.isin(places, torch.tensor(sorted(coalition), dtype=places.dtype))
        return score(torch.where(shown, x, torch.full_like(x, base)))

    values = [0.0] * count
    for order in itertools.permutations(range(count)):
        for at, one in enumerate(order):
            before = frozenset(order[:at])
            values[one] += of(before | {one}) - of(before)
    return [one / math.factorial(count) for one in values]


# ----------------------------------------------------------------------------------------------------------- kernel-shap


@pytest.mark.proves("kernel-shap", says="is the Shapley value by all orders, where all coalitions are asked")
@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (1, 3), (2, 2), (2, 3)])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_all_coalitions_give_the_exact_shapley_values(rows: int, columns: int, baseline: float) -> None:
    model, x, labels = seeded(Bent, dtype=torch.float64), picture(), tiles(rows, columns)

    def score(v: Tensor) -> float:
        with torch.no_grad():
            return float(model(v)[0, 1])

    found, terms = asked(
        "kernel-shap", x, model, target=1, segments=labels, baseline=baseline, samples=2 ** (rows * columns) - 2
    )
    wanted = np.array(by_permutations(score, x, baseline, labels))
    assert np.abs(wanted).max() > 1e-3
    assert np.abs(terms.details["coefficients"] - wanted).max() <= 1e-10
    assert np.abs(found[0].numpy() - wanted[labels]).max() <= 1e-10
    assert "standard error" not in terms.details


@pytest.mark.proves(
    "kernel-shap", says="adds up to what the picture adds to the score, however few coalitions were asked"
)
@pytest.mark.parametrize("samples", [60, 200, 5000])
@pytest.mark.parametrize("baseline", [0.0, "mean", [0.5, -1.0, 0.25]])
def test_the_values_add_up_to_the_rise(samples: int, baseline: Any) -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture()
    _, terms = asked("kernel-shap", x, model, target=1, segments=tiles(3, 4), samples=samples, baseline=baseline)
    base = (
        x.mean(dim=(2, 3), keepdim=True)
        if baseline == "mean"
        else torch.tensor(baseline, dtype=torch.float64).reshape(1, -1, 1, 1)
    )
    with torch.no_grad():
        rise = float(model(x)[0, 1] - model(base.expand_as(x))[0, 1])
    assert abs(rise) > 1e-3
    assert abs(float(terms.details["coefficients"].sum()) - rise) <= 1e-10
    assert abs(terms.details["rise"] - rise) <= 1e-12


@pytest.mark.proves(
    *BOTH,
    param="method",
    says="is weight times pixel, summed over the superpixel, for a score that is linear in the pixels",
)
@pytest.mark.parametrize("samples", [80, 300, 5000])
@pytest.mark.parametrize(
    ("method", "options"),
    [("kernel-shap", {}), ("lime", {"ridge": 0.0}), ("lime", {"ridge": 0.0, "width": 1, "kept": 0.7})],
)
def test_of_a_linear_score_it_is_weight_times_pixel(method: str, options: dict[str, Any], samples: int) -> None:
    x, labels = picture(), tiles(3, 4)
    score, shares = additive(x)
    found, terms = asked(method, x, score, segments=labels, samples=samples, **options)
    assert float((found[0] - summed(shares, labels)).abs().max()) <= 1e-10
    if method == "lime":
        assert terms.details["fit"] == pytest.approx(1, abs=1e-12)
    elif samples < 2**12:
        assert float(terms.details["standard error"].max()) <= 1e-10


@pytest.mark.proves(*BOTH, param="method", says="is exactly 0 where the score does not depend on the picture")
@pytest.mark.parametrize("samples", [100, 100_000])
@pytest.mark.parametrize("method", BOTH)
def test_of_a_constant_score_it_is_zero(method: str, samples: int) -> None:
    found, terms = asked(
        method, picture(), lambda x: np.full(len(x), -1 / 3), segments=tiles(2, 4), samples=min(samples, 3000)
    )
    assert not found.any()
    assert not terms.details["coefficients"].any()


@pytest.mark.proves(
    "kernel-shap", says="a superpixel that changes no score gets 0, and two that act alike get the same"
)
def test_a_superpixel_without_effect_gets_nothing_and_equals_get_the_same() -> None:
    x, labels = torch.ones(1, 1, 1, 6, dtype=torch.float64), np.arange(6)[None]

    def score(v: Tensor) -> Tensor:
        a, b, c, d, e, _ = v.flatten(1).T
        return a * b + (c + d).square() * e + 0.5 * a * b * e

    found = asked("kernel-shap", x, score, segments=labels, samples=62)[0][0, 0]
    assert abs(float(found[5])) <= 1e-10
    assert abs(float(found[0] - found[1])) <= 1e-10
    assert abs(float(found[2] - found[3])) <= 1e-10
    assert float(found.abs().max()) > 0.5
    assert float(found.sum()) == pytest.approx(5.5, abs=1e-10)


@pytest.mark.proves(
    "kernel-shap", says="comes nearer to the Shapley values with every coalition, and its standard error says how near"
)
@pytest.mark.parametrize("samples", [150, 1000])
def test_the_standard_error_is_the_spread_over_seeds(samples: int) -> None:
    x, labels = torch.ones(1, 1, 3, 4, dtype=torch.float64), np.arange(12).reshape(3, 4)
    generator = torch.Generator().manual_seed(0)
    both, alone = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((12, 12), (12,)))

    def score(v: Tensor) -> Tensor:
        z = v.flatten(1)
        return z @ alone + 3 * (z @ alone.flip(0)).tanh() + ((z @ both) * z).sum(dim=1) / 4

    exact, _ = asked("kernel-shap", x, score, segments=labels, samples=2**12)
    runs = [asked("kernel-shap", x, score, segments=labels, samples=samples, seed=seed) for seed in range(150)]
    spread = (torch.cat([found for found, _ in runs]) - exact).square().mean(dim=0).sqrt().flatten().numpy()
    first = [np.argmax(runs[0][1].details["segments"].ravel() == one) for one in range(len(spread))]  # a pixel of each
    said = np.sqrt(np.mean([terms.details["standard error"].ravel()[first] ** 2 for _, terms in runs], axis=0))
    assert abs(np.mean(said / spread) - 1) < 0.15
    assert spread.max() < 0.5 * float(exact.abs().max())
    assert "the largest standard error is" in runs[0][1].notes[0]


# ------------------------------------------------------------------------------------------------------------------ lime


@pytest.mark.proves("lime", says="is the weighted ridge regression of its definition, on the pictures that it showed")
@pytest.mark.parametrize(("kept", "width", "ridge"), [(0.5, 0.25, 1.0), (0.3, 0.5, 0.1), (0.8, 0.25, 0.0)])
def test_lime_is_the_regression_of_its_definition(kept: float, width: float, ridge: float) -> None:
    """The rows are read off the pictures that the model was shown, and repeated rows off their share."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    model, x, labels = seeded(Bent, dtype=torch.float64), picture(), tiles(2, 5)
    options = {"segments": labels, "samples": 200, "kept": kept, "width": width, "ridge": ridge, "seed": 3}
    found, terms = asked("lime", x, model, target=1, **options)
    z = torch.rand(200, 10, generator=torch.Generator().manual_seed(3)) < kept
    z[0] = True
    with torch.no_grad():
        y = model(torch.where(z[:, torch.from_numpy(labels)][:, None], x, 0.0))[:, 1].numpy()
    z = z.double().numpy()
    distance = 1 - z @ np.ones(10) / (np.maximum(np.linalg.norm(z, axis=1), 1e-300) * 10**0.5)
    weights = np.sqrt(np.exp(-(distance**2) / width**2))
    peer = linear_model.Ridge(alpha=ridge, solver="svd").fit(z, y, sample_weight=weights)
    assert np.abs(terms.details["coefficients"] - peer.coef_).max() <= 1e-10
    assert np.abs(peer.coef_).max() > 1e-3
    assert np.abs(found[0].numpy() - peer.coef_[labels]).max() <= 1e-10
    assert terms.details["fit"] == pytest.approx(peer.score(z, y, sample_weight=weights), abs=1e-10)


def test_a_poor_likeness_is_said() -> None:
    x, labels = torch.ones(1, 1, 2, 4, dtype=torch.float64), np.arange(8).reshape(2, 4)

    def odd(v: Tensor) -> Tensor:
        return v.flatten(1).sum(dim=1) % 2

    _, terms = asked("lime", x, odd, segments=labels)
    assert terms.details["fit"] < 0.5
    assert any("the linear stand-in follows only" in note for note in terms.notes)
    _, terms = asked("lime", x, lambda v: v.sum(dim=(1, 2, 3)), segments=labels)
    assert terms.details["fit"] > 0.99
    assert not terms.notes


# --------------------------------------------------------------------------------------------------------------- oracles


def recorded(model: nn.Module, shown: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The model, which keeps what it was shown."""

    def score(v: Tensor) -> Tensor:
        shown.extend(v.clone())
        with torch.no_grad():
            return model(v)

    return score


def of_picture(model: nn.Module) -> Callable[[Any], float]:
    def score(v: Any) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(v)[None])[0, 1])

    return score


def rows_of(shown: list[Tensor], x: Tensor, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which superpixels each picture shows."""
    first = np.unique(labels, return_index=True)[1]
    return np.stack([(one == x[0]).all(dim=0).flatten().numpy()[first] for one in shown]).astype(np.int64)


@pytest.mark.proves("kernel-shap", says="equals its slow float64 oracle on the coalitions that were asked")
@pytest.mark.parametrize(("rows", "columns", "samples"), [(2, 2, 14), (2, 3, 62), (3, 4, 120), (3, 4, 700)])
def test_values_are_the_oracles(rows: int, columns: int, samples: int) -> None:
    """How often a coalition was drawn is drawn again here."""
    from sightline.methods.surrogates import _pairs

    model, x, labels, shown = seeded(Bent, dtype=torch.float64), picture(), tiles(rows, columns), []
    found, terms = asked(
        "kernel-shap", x, recorded(model, shown), target=1, segments=labels, samples=samples, baseline=0.25
    )
    kept, weights = rows_of(shown[3:], x, labels), _pairs(rows * columns, samples, 0)[1].tolist() * 2
    base = np.full(x.shape[1:], 0.25)
    values, slow = kernel_shap(of_picture(model), x[0].numpy(), labels, kept, weights, base)
    assert np.abs(values).max() > 1e-3
    assert np.abs(terms.details["coefficients"] - values).max() <= 1e-10
    assert np.abs(found[0].numpy() - slow).max() <= 1e-10
    if samples == 2 ** (rows * columns) - 2:

        def value(shown: frozenset[int]) -> float:
            return of_picture(model)(np.where(np.isin(labels, list(shown)), x[0].numpy(), base))

        assert np.abs(terms.details["coefficients"] - shapley(value, rows * columns)).max() <= 1e-10


@pytest.mark.proves("lime", says="equals its slow float64 oracle on the rows that were drawn")
@pytest.mark.parametrize(("kept", "width", "ridge"), [(0.5, 0.25, 1.0), (0.3, 0.5, 0.1), (0.8, 0.25, 0.0)])
def test_coefficients_are_the_oracles(kept: float, width: float, ridge: float) -> None:
    model, x, labels = seeded(Bent, dtype=torch.float64), picture(), tiles(2, 3)
    found, terms = asked(
        "lime", x, model, target=1, segments=labels, samples=100, baseline=0.25, kept=kept, width=width, ridge=ridge
    )
    z = torch.rand(100, 6, generator=torch.Generator().manual_seed(0)) < kept
    z[0] = True
    values, slow = lime(
        of_picture(model), x[0].numpy(), labels, z.long().numpy(), np.full(x.shape[1:], 0.25), width, ridge
    )
    assert np.abs(values).max() > 1e-3
    assert np.abs(terms.details["coefficients"] - values).max() <= 1e-10
    assert np.abs(found[0].numpy() - slow).max() <= 1e-10


# ------------------------------------------------------------------------------------------------------------------ both


@pytest.mark.parametrize("method", BOTH)
def test_the_seed_decides_and_the_batch_does_not(method: str) -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture()
    options = {"segments": tiles(3, 4), "samples": 150}
    one, alone = (asked(method, x, model, memory_mb, 1, **options)[0] for memory_mb in (512, 0.001))
    assert float((one - alone).abs().max()) <= 1e-12
    assert torch.equal(one, asked(method, x, model, target=1, **options)[0])
    assert float((one - asked(method, x, model, target=1, seed=1, **options)[0]).abs().max()) > 1e-6


@pytest.mark.parametrize("kind", [np.int32, np.uint8, torch.int64, torch.int16])
@pytest.mark.parametrize("method", BOTH)
def test_own_superpixels_may_have_any_numbers(method: str, kind: Any) -> None:
    x, labels = picture(), tiles(2, 3)
    names = np.array([7, 3, 200, 40, 5, 90])[labels]
    given = torch.from_numpy(names).to(kind) if isinstance(kind, torch.dtype) else names.astype(kind)
    score, shares = additive(x)
    found, terms = asked(method, x, score, segments=given, **({"ridge": 0.0} if method == "lime" else {}))
    assert float((found[0] - summed(shares, labels)).abs().max()) <= 1e-10
    segments = terms.details["segments"]
    assert (segments.dtype, segments.shape) == (np.int32, SIZE)
    assert sorted(np.unique(segments)) == list(range(6))
    assert len(terms.details["coefficients"]) == 6
    np.testing.assert_array_equal(terms.details["coefficients"][segments], found[0].numpy())


@pytest.mark.parametrize("method", BOTH)
def test_one_superpixel_has_the_whole_rise(method: str) -> None:
    x = picture()
    score, shares = additive(x)
    options = {"ridge": 0.0} if method == "lime" else {}
    found, _ = asked(method, x, score, segments=np.zeros(SIZE, int), **options)
    assert_close(found[0], shares.sum().expand(SIZE), 1e-12)


@pytest.mark.parametrize("method", BOTH)
def test_no_picture_is_shown_twice_and_no_more_than_asked_for(method: str) -> None:
    shown: list[Tensor] = []

    def score(v: Tensor) -> Tensor:
        shown.extend(v.clone())
        return v.mean(dim=(1, 2, 3))

    for samples in (40, 41, 200, 1000):
        shown.clear()
        asked(method, picture(), score, segments=tiles(2, 4), samples=samples)
        beside = torch.stack(shown[1:])  # the first is the picture itself, to know its class
        assert len(beside.unique(dim=0)) == len(beside) <= samples + 2
    if method == "kernel-shap":
        assert len(beside) == 2**8


@pytest.mark.proves(
    *BOTH,
    param="method",
    says="works for a model of which only the scores are known, and says of it what it says of the model",
)
@pytest.mark.parametrize("method", BOTH)
def test_a_black_box_gives_what_the_model_gives(method: str) -> None:
    model, x = seeded(Bent, dtype=torch.float64), picture()

    def box(v: Tensor) -> Any:
        with torch.no_grad():
            return model(v).numpy().tolist()

    options = {"segments": tiles(2, 4)}
    found = asked(method, x, box, target=1, **options)[0]
    assert_close(found, asked(method, x, model, target=1, **options)[0], 1e-10)


@pytest.mark.parametrize("method", BOTH)
def test_a_batch_gives_what_its_images_give_one_by_one(method: str) -> None:
    model, x = seeded(Bent, dtype=torch.float64), torch.cat([picture(), picture().flip(3), picture() * 2])
    options = {"segments": tiles(2, 4), "samples": 100}
    together = sightline.attribute(x, model, method=method, target=[1, None, 3], options=options)
    alone = [
        sightline.attribute(x[[one]], model, method=method, target=target, options=options)
        for one, target in enumerate([1, None, 3])
    ]
    assert_close(together, torch.cat(alone), 1e-12)


# ---------------------------------------------------------------------------------------------------------- superpixels


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
@pytest.mark.parametrize("kind", ["noise", "one colour", "halves"])
def test_about_as_many_superpixels_as_asked_for_of_any_picture(channels: int, kind: str) -> None:
    pytest.importorskip("skimage")
    x = picture(40, 56, channels)
    if kind != "noise":
        x = torch.zeros_like(x)
    if kind == "halves":
        x[..., 28:] = 5
    for count in (10, 50):
        labels = superpixels(x, count)
        assert labels.shape == (40, 56)
        assert 0.6 * count <= len(labels.unique()) <= 1.5 * count
    if kind == "halves":
        assert not set(labels[:, :27].unique().tolist()) & set(labels[:, 29:].unique().tolist())


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 1), (3, 40)])
@pytest.mark.parametrize("method", BOTH)
def test_tiny_pictures_work(method: str, size: tuple[int, int]) -> None:
    pytest.importorskip("skimage")
    found, terms = asked(method, picture(*size), lambda x: x.sum(dim=(1, 2, 3)))
    assert found.shape == (1, *size)
    assert found.isfinite().all()
    assert sorted(np.unique(terms.details["segments"])) == list(range(len(terms.details["coefficients"])))


def test_a_stretched_picture_has_the_same_superpixels() -> None:
    """Each channel is stretched to 0..1, so that what normalising did to it is no matter."""
    pytest.importorskip("skimage")
    x = torch.nn.functional.interpolate(picture(8, 8), (48, 48), mode="bilinear")
    moved = x * torch.tensor([4.0, 0.5, 1.0]).reshape(1, 3, 1, 1) + torch.tensor([-100.0, 3.0, 0.25]).reshape(
        1, 3, 1, 1
    )
    assert float((superpixels(x, 30) == superpixels(moved, 30)).double().mean()) > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", BOTH)
def test_a_map_comes_in_the_type_of_its_input(method: str, dtype: torch.dtype) -> None:
    x, options = images(1), {"segments": tiles(4, 4, (16, 16)), "samples": 500}
    found = sightline.attribute(x.to(dtype), seeded(Plain).to(dtype), method=method, target=1, options=options)
    wanted = sightline.attribute(x, seeded(Plain), method=method, target=1, options=options)
    assert found.dtype == dtype
    assert_close(found.float(), wanted, {torch.float16: 0.02, torch.bfloat16: 0.3}[dtype])


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"segments": 0}, "segments is 0; expected 1 to 5000"),
        ({"segments": 5001}, "segments is 5001; expected 1 to 5000"),
        ({"segments": 2.5}, "segments is 2.5; expected about how many superpixels, or a tensor or array"),
        ({"segments": True}, "segments is True; expected about how many"),
        ({"segments": "slic"}, "segments is 'slic'; expected about how many"),
        ({"segments": np.zeros((5, 5), int)}, r"segments is a tensor of shape \(5, 5\) \(int64\); expected .* \(16, 16\)"),
        ({"segments": np.zeros((16, 16))}, r"shape \(16, 16\) \(float64\); expected .* whole numbers"),
        ({"segments": np.zeros((16, 16), bool)}, r"\(bool\)"),
        ({"segments": np.array([["a"] * 16] * 16)}, r"segments is a tensor of shape \(16, 16\) \(<U1\); expected"),
        ({"segments": np.arange(256).reshape(16, 16), "samples": 100}, "100 samples are too few to tell 256 superpixels apart; ask for more"),
        ({"samples": 0}, "samples is 0"),
        ({"baseline": "grey"}, "baseline is 'grey'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", BOTH)
def test_what_makes_no_sense_is_refused(method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        sightline.attribute(images(1), seeded(Plain), method=method, options=options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kept": 1.0}, "kept is 1.0; expected above 0, at most 0.999"),
        ({"width": 0}, "width is 0; expected above 0"),
        ({"ridge": -1}, "ridge is -1; expected 0 to"),
        ({"segments": tiles(4, 4, (16, 16)), "width": 1e-9}, "too few to tell 16 superpixels apart"),
    ],
)
def test_what_makes_no_sense_for_lime_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        sightline.attribute(images(1), seeded(Plain), method="lime", options=options)


@pytest.mark.parametrize("method", BOTH)
def test_too_few_samples_are_refused_before_the_model_is_asked(method: str) -> None:
    sizes: list[int] = []

    def score(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.mean(dim=(1, 2, 3))

    for samples in (1, 2, 13, 15):
        with pytest.raises(MethodError, match=f"^{samples} samples are too few to tell 16 superpixels apart"):
            asked(method, images(1), score, segments=tiles(4, 4, (16, 16)), samples=samples)
    assert sizes == [1] * 4, "only to know the class"


def test_where_a_superpixel_hangs_on_one_coalition_no_standard_error_is_made_up() -> None:
    x = torch.rand(1, 1, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(v: Tensor) -> Tensor:
        return v.prod(dim=3).sum(dim=(1, 2)) + v.sum(dim=(1, 2, 3))

    without = 0
    for seed in range(40):
        try:
            _, terms = asked("kernel-shap", x, score, segments=np.arange(5)[None], samples=14, seed=seed)
        except MethodError:
            continue
        error = terms.details.get("standard error")
        if error is None:
            without += 1
            assert terms.notes == ["14 samples are too few for a standard error; ask for more (option samples)"]
        else:
            assert np.isfinite(error).all()
    assert without


@pytest.mark.parametrize("method", BOTH)
def test_more_superpixels_than_can_be_solved_are_refused(method: str) -> None:
    labels = np.arange(72 * 72).reshape(72, 72)
    with pytest.raises(MethodError, match="segments has 5,184 superpixels; expected 5,000 at most"):
        asked(method, torch.zeros(1, 3, 72, 72), lambda x: x.mean(dim=(1, 2, 3)), segments=labels)


@pytest.mark.parametrize("method", BOTH)
def test_without_scikit_image_the_extra_is_named_and_own_superpixels_work(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline import _optional

    known = _optional.find_spec
    monkeypatch.setattr(_optional, "find_spec", lambda name: None if name == "skimage" else known(name))
    with pytest.raises(
        MissingExtraError,
        match=r"superpixels needs the extra `superpixels` \(skimage\): pip install 'sightline\[superpixels\]'",
    ):
        asked(method, images(1), lambda x: x.mean(dim=(1, 2, 3)))
    assert asked(method, picture(), lambda x: x.mean(dim=(1, 2, 3)), segments=tiles(2, 2))[0].any()


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


@pytest.mark.parametrize(
    ("then", "error", "said"),
    [
        (lambda x: torch.full((len(x),), float("nan")), NonFiniteError, "in call 3, with 16 pictures: NaN"),
        (_raising, ModelError, "in call 3, with 16 pictures: .*no more"),
        (lambda x: torch.ones(len(x) + 1), ModelError, "in call 3, with 16 pictures: .*for 16 pictures"),
    ],
)
@pytest.mark.parametrize("method", BOTH)
def test_a_scorer_that_breaks_is_said_with_the_number_of_the_call(
    method: str, then: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        asked(method, images(1), after(3, then), segments=tiles(2, 4, (16, 16)))


@pytest.mark.parametrize("method", BOTH)
def test_ctrl_c_goes_through_and_leaves_the_model_as_it_was(method: str) -> None:
    model, x, options = (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES)),
        images(1),
        {"segments": tiles(2, 4, (16, 16))},
    )
    with pytest.raises(KeyboardInterrupt):
        sightline.attribute(x, after(2, _interrupted), method=method, options=options)

    def stop(done: int, _of: int) -> None:
        if done:
            raise KeyboardInterrupt

    with assert_untouched(model, x), pytest.raises(KeyboardInterrupt):
        sightline.attribute(x, model, method=method, options=options, progress=stop)


@pytest.mark.parametrize("method", BOTH)
def test_no_more_pictures_are_shown_than_allowed_and_progress_is_told(method: str) -> None:
    shown: list[int] = []
    told: list[tuple[int, int]] = []

    def score(x: Tensor) -> Tensor:
        shown.append(len(x))
        return x.mean(dim=(1, 2, 3))

    def ask(**more: Any) -> None:
        options = {"segments": tiles(4, 4, (16, 16)), "samples": 200}
        sightline.attribute(images(1), score, method=method, options=options, **more)

    ask(progress=lambda done, of: told.append((done, of)))
    pictures = sum(shown[1:])
    assert {of for _, of in told} == {pictures}
    assert [done for done, _ in told] == [*range(0, pictures, 16), pictures]
    ask(max_calls=pictures + 1)
    shown.clear()
    with pytest.raises(
        MethodError,
        match=f"would show the model {pictures} pictures after 1 that it has seen, and at most {pictures} were allowed",
    ):
        ask(max_calls=pictures)
    assert len(shown) == 1


@pytest.mark.parametrize("method", BOTH)
def test_what_it_needs_is_said_in_its_record(method: str) -> None:
    one = list_methods()[method]
    assert (one.needs, one.signed, one.class_specific, one.unit) == ("scores", True, True, "score")


# ------------------------------------------------------------------------------------------------------------------ peer


@pytest.fixture(scope="module")
def captum() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("captum.attr")


@pytest.mark.agrees(
    "captum",
    "kernel-shap",
    note="its exact ShapleyValues, where all coalitions are asked; it works in float32, to 1e-6",
)
@pytest.mark.parametrize("baseline", [0.0, 0.25])
def test_all_coalitions_give_the_peers_exact_values(captum: Any, baseline: float) -> None:
    model, x, labels = seeded(Bent, dtype=torch.float64), picture(), tiles(2, 3)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = captum.ShapleyValues(model).attribute(
            x, baselines=baseline, target=1, feature_mask=torch.from_numpy(labels)[None, None]
        )
    found, _ = asked("kernel-shap", x, model, target=1, segments=labels, baseline=baseline)
    assert float(theirs.abs().max()) > 1e-3
    assert float((found[0] - theirs[0, 0]).abs().max()) <= 1e-6


@pytest.mark.differs("captum", "kernel-shap")
def test_the_peers_sampled_values_do_not_quite_add_up_and_ours_do(captum: Any) -> None:
    model, x, labels = seeded(Bent, dtype=torch.float64), picture(), tiles(3, 4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        mask = torch.from_numpy(labels)[None, None]
        theirs = captum.KernelShap(model).attribute(
            x, target=1, feature_mask=mask, n_samples=200, return_input_shape=False
        )
        rise = float(model(x)[0, 1] - model(torch.zeros_like(x))[0, 1])
    _, terms = asked("kernel-shap", x, model, target=1, segments=labels, samples=200)
    assert abs(float(terms.details["coefficients"].sum()) - rise) <= 1e-10
    assert abs(float(theirs.sum()) - rise) > 1e-8
