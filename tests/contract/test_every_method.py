"""What every registered method must do, whatever it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import (
    CLASSES,
    MODELS,
    Echo,
    Flat,
    Plain,
    assert_close,
    by_autograd,
    by_oracle,
    channels_of,
    images,
    seeded,
)
from oracles import ORACLES
from oracles_attention import ATTENTION_ORACLES
from oracles_more import MORE_ORACLES
from oracles_perturbation import PERTURBATION_ORACLES
from oracles_pixels import PIXEL_ORACLES
from oracles_targets import TARGET_ORACLES
from sightline.errors import MethodError, TargetError

REGISTRY = sightline.list_methods()
METHODS = sorted(ORACLES)  # the gradient CAMs; the others are in tests/methods/test_more_cams.py
MIXED = [3, 0, None, 1, 4, 0, 2]


def _echo(dtype: torch.dtype = torch.float64, seed: int = 0) -> Echo:
    return seeded(Echo, seed, dtype)


def _generator(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _activations(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(3, 6, 5, 4, generator=_generator(), dtype=torch.float64)
    kinds = {
        "rectified": values.relu(),
        "signed": values,
        "sparse": values.relu() * (torch.rand(values.shape, generator=_generator(5)) < 0.2),
        "with a dead channel": values.relu().index_fill(1, torch.tensor([2, 5]), 0),
        "all zero": torch.zeros_like(values),
        "constant": torch.full_like(values, 0.7),
        "all negative": -values.abs() - 0.1,
        "far below zero": -values.abs() * 30,
        "denormal": values.abs() * 1e-40,
        "1e30": values * 1e30,
        "-1e30": -values.abs() * 1e30,
        "1e-30": values * 1e-30,
        "cancelling": torch.tensor([1.0, -1.0, 0.1, -0.1]).expand(values.shape),
        "one spike": torch.zeros_like(values).index_fill(3, torch.tensor([1]), 3.0),
    }
    return kinds[kind].to(dtype)


def test_every_method_has_an_oracle() -> None:
    proven = (ORACLES, MORE_ORACLES, ATTENTION_ORACLES, PIXEL_ORACLES, PERTURBATION_ORACLES, TARGET_ORACLES)
    assert set(REGISTRY) == {name for each in proven for name in each}


# --------------------------------------------------------------------------------------------------------- shape, type


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_map_has_the_layers_shape_and_is_finite_and_plain(method: str, name: str) -> None:
    model = seeded(MODELS[name])
    found = sightline.attribute(images(3, channels_of(model)), model, method=method, layer=model.layer)
    assert found.shape == (3, 8, 8)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert not found.requires_grad
    assert found.grad_fn is None
    assert found.any()


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_never_negative_unless_its_method_is_signed(method: str) -> None:
    maps = [
        sightline.attribute(_activations(kind), _echo(seed=seed), method=method, layer="echo", target=index)
        for kind in ("rectified", "signed", "all negative")
        for seed in (0, 1)
        for index in range(CLASSES)
    ]
    lowest = min(float(one.min()) for one in maps)
    assert lowest < 0 if REGISTRY[method].signed else lowest == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_grid_that_is_not_square_keeps_its_rows_and_columns(method: str) -> None:
    model, x = seeded(Plain), images(2)[:, :, :10]
    found = sightline.attribute(x, model, method=method, layer="relu1", target=1)
    a, g, _ = by_autograd(model, "relu1", x, lambda logits: logits[:, 1])
    assert found.shape == (2, 5, 8)
    assert_close(found, by_oracle(method, a, g), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_a_map_comes_in_the_type_of_its_input_and_says_the_same(method: str, dtype: torch.dtype) -> None:
    model, x = seeded(Plain), images(2)
    wanted = sightline.attribute(x, model, method=method, layer="relu1", target=[1, 2])
    found = sightline.attribute(x.to(dtype), seeded(Plain).to(dtype), method=method, layer="relu1", target=[1, 2])
    assert found.dtype == dtype
    assert_close(found, wanted, {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float64: 1e-5}[dtype])


# --------------------------------------------------------------------------------------------------------- batch, list


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "regularised"])
@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_its_images_give_one_by_one(method: str, batch: int, name: str) -> None:
    model, x = seeded(MODELS[name]), images(batch)
    together, alone = [], []
    for start in range(len(MIXED)):
        targets = (MIXED * 2)[start : start + batch]
        together.append(sightline.attribute(x, model, method=method, layer=model.layer, target=targets))
        alone += [
            sightline.attribute(x[[one]], model, method=method, layer=model.layer, target=target)
            for one, target in enumerate(targets)
        ]
    assert_close(torch.cat(together), torch.cat(alone))


@pytest.mark.parametrize("method", METHODS)
def test_one_target_stands_for_all_images_and_none_for_each_ones_prediction(method: str) -> None:
    model, x = seeded(Flat), images(7)
    predicted = model(x).argmax(dim=1)
    assert len(predicted.unique()) > 1, "all images are of one class, which would prove nothing"
    for one, listed in ((2, [2] * 7), (None, predicted.tolist()), (None, predicted), (None, tuple(predicted.tolist()))):
        found = sightline.attribute(x, model, method=method, layer="relu", target=one)
        assert_close(found, sightline.attribute(x, model, method=method, layer="relu", target=listed))


@pytest.mark.parametrize("method", METHODS)
def test_functions_and_classes_can_be_mixed_in_one_list(method: str) -> None:
    model, x = seeded(Plain), images(4)
    targets = [2, sightline.margin(1, 3), None, sightline.log_probability(0)]
    together = sightline.attribute(x, model, method=method, layer="relu1", target=targets)
    alone = [
        sightline.attribute(x[[one]], model, method=method, layer="relu1", target=target)
        for one, target in enumerate(targets)
    ]
    assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    "targets", [[], [1], [1, 2], [1, 2, 3, 4], (1, 2), torch.tensor([1, 2]), torch.tensor([1, 2, 3, 4])]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_list_of_targets_of_another_length_than_the_batch_is_refused(method: str, targets: Any) -> None:
    with pytest.raises(TargetError, match=rf"{len(targets)} targets for 3 images"):
        sightline.attribute(images(3), seeded(Plain), method=method, layer="relu1", target=targets)


@pytest.mark.parametrize("target", [-1, CLASSES, 2.0, True, "no such class", [1, CLASSES, 0]])
@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_does_not_exist_is_refused(method: str, target: Any) -> None:
    with pytest.raises(TargetError):
        sightline.attribute(images(3), seeded(Plain), method=method, layer="relu1", target=target)


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.proves(param="method", says="equals its slow float64 oracle on activations of every kind")
@pytest.mark.parametrize(
    "kind", ["rectified", "signed", "sparse", "with a dead channel", "all negative", "far below zero", "one spike"]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_the_oracles(method: str, kind: str) -> None:
    model, a = _echo(), _activations(kind)
    g = torch.stack([model.gradient(index) for index in (0, 3, 4)])
    found = sightline.attribute(a, model, method=method, layer="echo", target=[0, 3, 4])
    wanted = by_oracle(method, a, g)
    assert found.dtype == torch.float64
    assert float((found - wanted).abs().max()) <= 1e-10


@pytest.mark.proves(
    param="method", says="equals its slow float64 oracle in networks whose gradients vary from cell to cell"
)
@pytest.mark.parametrize("name", ["plain", "dense", "regularised", "flat", "grey", "spectral"])
@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_the_oracles_on_gradients_that_vary(method: str, name: str) -> None:
    """A and G come from autograd over the whole model, at a layer with a non-linear way to the score."""
    layer = {"dense": "stem", "flat": "conv"}.get(name, "conv1")
    model = seeded(MODELS[name], dtype=torch.float64)
    x = images(2, channels_of(model), dtype=torch.float64)
    a, g, _ = by_autograd(model, layer, x, lambda logits: logits.log_softmax(dim=1)[:, 1])
    assert not torch.allclose(g, g.mean(dim=(2, 3), keepdim=True))
    found = sightline.attribute(x, model, method=method, layer=layer, target=sightline.log_probability(1))
    wanted = by_oracle(method, a, g)
    assert wanted.any()
    assert float((found - wanted).abs().max()) <= 1e-10


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", METHODS)
def test_a_dead_channel_says_nothing(method: str, seed: int) -> None:
    """A channel that is 0 everywhere changes nothing in the map, whatever its gradient."""
    a = torch.randn(1, 6, 5, 4, generator=_generator(seed), dtype=torch.float64).relu()
    with_dead, without = _echo(seed=seed), seeded(lambda: Echo(channels=6), seed, torch.float64)
    with torch.no_grad():
        without.head.weight.view(CLASSES, 6, 5, 4)[:, 3] = 0
    a[:, 3] = 0
    found, wanted = (
        torch.stack([sightline.attribute(a, one, method=method, layer="echo", target=k) for k in range(CLASSES)])
        for one in (with_dead, without)
    )
    assert_close(found, wanted, 1e-12)


EXTREME = [
    "with a dead channel",
    "all zero",
    "constant",
    "all negative",
    "denormal",
    "1e30",
    "-1e30",
    "1e-30",
    "cancelling",
    "one spike",
]


@pytest.mark.parametrize("kind", EXTREME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_activations_give_finite_maps_without_a_warning(method: str, dtype: torch.dtype, kind: str) -> None:
    a = _activations(kind, dtype)
    assert a.isfinite().all()
    for index in range(CLASSES):
        found = sightline.attribute(a, _echo(dtype), method=method, layer="echo", target=index)
        assert found.isfinite().all()
        if kind == "all zero":
            assert not found.any()


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-30, 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_gradients_give_finite_maps_without_a_warning(method: str, scale: float) -> None:
    model = _echo(torch.float32)
    with torch.no_grad():
        model.head.weight.mul_(scale)
    for kind in ("rectified", "signed"):
        found = sightline.attribute(_activations(kind, torch.float32), model, method=method, layer="echo", target=1)
        assert found.isfinite().all()
        if scale == 0:
            assert not found.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["all zero", "constant", "all negative", "cancelling", "large"])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_activations_in_half_precision_give_finite_maps(method: str, kind: str, dtype: torch.dtype) -> None:
    a = _activations("signed") * 3000 if kind == "large" else _activations(kind)
    model = _echo(torch.float32)
    with torch.no_grad():
        model.head.weight.mul_(0.02)
    found = sightline.attribute(a.to(dtype), model.to(dtype), method=method, layer="echo", target=1)
    assert found.dtype == dtype
    assert found.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_map_is_flagged(method: str) -> None:
    """A black photograph before a model without biases: activations are all zero, and a person is told."""

    def to_tensor(picture: Any) -> Tensor:
        return torch.from_numpy(np.array(picture.resize((16, 16)))).permute(2, 0, 1) / 255

    model = seeded(Plain)
    for module in (model.conv1, model.conv2):
        nn.init.zeros_(module.bias)
    adapter = sightline.adapt(model, layers=["relu2"], preprocess=to_tensor)
    found = sightline.explain(np.zeros((20, 20, 3), np.uint8), adapter, method=method, target=1)
    assert np.isfinite(found.raw).all()
    assert not found.raw.any()
    assert any("no evidence" in warning for warning in found.warnings)


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", METHODS)
def test_calling_twice_gives_the_same_bits(method: str) -> None:
    model, x = seeded(MODELS["residual"]), images(2)
    one, other = (sightline.attribute(x, model, method=method, layer="block1", target=1) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_is_taken_and_an_unknown_one_is_refused_with_the_known_ones(method: str) -> None:
    model, x = seeded(Plain), images(1)
    for name, default in REGISTRY[method].options.items():
        sightline.attribute(x, model, method=method, layer="relu2", target=1, options={name: default})
    with pytest.raises(MethodError, match="no option 'colour'"):
        sightline.attribute(x, model, method=method, layer="relu2", target=1, options={"colour": 1})


@pytest.mark.proves("grad-cam++")
def test_normalised_grad_cam_plus_plus_is_the_oracles() -> None:
    model, a = _echo(), _activations("signed")
    found = sightline.attribute(a, model, method="grad-cam++", layer="echo", target=2, options={"normalise": True})
    pairs = [(one.numpy(), model.gradient(2).numpy()) for one in a]
    wanted = torch.from_numpy(np.stack([ORACLES["grad-cam++"](*pair, normalise=True) for pair in pairs]))
    assert float((found - wanted).abs().max()) <= 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_record_can_be_shown_to_a_person(method: str) -> None:
    record = REGISTRY[method]
    assert record.summary.endswith(".")
    assert record.reference
    assert record.name == method == method.lower()
