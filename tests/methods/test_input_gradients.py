"""Maps made of gradients of the pixels: against their oracles, by what they must be exactly, and where they must refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from conftest import CLASSES, Plain, assert_close, assert_untouched, images, seeded
from oracles import grad_cam
from oracles_pixels import PIXEL_ORACLES, Net, gaussian_blur
from sightline.errors import ImageError, MethodError, MissingExtraError, ModelError, TargetError
from sightline.methods.adaptive_paths import grown
from sightline.methods.baselines import blurred
from sightline.methods.input_gradients import BASES

DOUBLE = torch.float64
SIZE = (3, 9, 8)


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def conv(inside: int, outside: int, kernel: int, stride: int = 1, padding: int = 0, seed: int = 0) -> tuple[Any, ...]:
    return (
        "conv",
        0.3 * drawn(outside, inside, kernel, kernel, seed=seed),
        0.3 * drawn(outside, seed=seed + 50),
        stride,
        padding,
    )


def linear(inside: int, outside: int = CLASSES, seed: int = 9) -> tuple[Any, ...]:
    return ("linear", drawn(outside, inside, seed=seed), drawn(outside, seed=seed + 50))


NETS: dict[str, list[tuple[Any, ...]]] = {
    "plain": [conv(3, 4, 3, padding=1), ("relu",), conv(4, 5, 3, seed=1), ("relu",), ("mean",), linear(5)],
    "pooled": [conv(3, 4, 3, padding=1), ("relu",), ("maxpool", 2, 2), conv(4, 4, 2, seed=1), ("relu6",), ("flatten",), linear(36)],
    "overlapping": [conv(3, 4, 3), ("maxpool", 3, 1), ("relu",), ("mean",), linear(4)],
    "residual": [conv(3, 4, 3, 2), ("residual", [("relu",), conv(4, 4, 3, padding=1, seed=2)]), ("relu",), ("mean",), linear(4)],
    "bent": [conv(3, 4, 3), ("sigmoid",), conv(4, 4, 3, 2, seed=3), ("tanh",), ("leaky", 0.1), ("relu",), ("flatten",), linear(24)],
}  # fmt: skip


class Chain(nn.Module):
    """The same network in torch; its activations as modules, functions, in place, or one module that runs again and again."""

    def __init__(self, layers: list[tuple[Any, ...]], how: str = "modules") -> None:
        super().__init__()
        self.layers, self.how = layers, how
        self.parts = nn.ModuleList()
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()  # the ones that run again and again
        for kind, *given in layers:
            part: nn.Module = nn.Identity()
            if kind == "conv":
                weight, bias, stride, padding = given
                part = nn.Conv2d(weight.shape[1], len(weight), weight.shape[2], stride, padding, dtype=DOUBLE)
            elif kind == "linear":
                weight, bias = given
                part = nn.Linear(weight.shape[1], len(weight), dtype=DOUBLE)
            elif kind == "residual":
                part = Chain(given[0], how)
            elif how == "modules":
                part = {"relu": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}.get(
                    kind, nn.Identity
                )()
            if kind in ("conv", "linear"):
                part.weight.data, part.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
            self.parts.append(part)

    def forward(self, x: Tensor) -> Tensor:
        for (kind, *given), part in zip(self.layers, self.parts, strict=True):
            if kind == "residual":
                x = x + part(x.clone())
            elif kind == "maxpool":
                x = F.max_pool2d(x, *given)
            elif kind == "mean":
                x = x.mean(dim=(2, 3))
            elif kind == "flatten":
                x = x.flatten(1)
            elif kind == "leaky":
                x = F.leaky_relu(x, given[0])
            elif kind in ("conv", "linear") or self.how == "modules":
                x = part(x)
            elif self.how == "functions":
                x = {"relu": torch.relu, "relu6": F.relu6, "sigmoid": torch.sigmoid, "tanh": Tensor.tanh}[kind](x)
            elif self.how == "in place":
                changed = {
                    "relu": F.relu_,
                    "relu6": lambda v: F.relu6(v, True),
                    "sigmoid": Tensor.sigmoid_,
                    "tanh": Tensor.tanh_,
                }[kind](x)
                assert changed is x
            else:
                x = {"relu": self.relu, "relu6": self.relu6, "sigmoid": torch.sigmoid, "tanh": torch.tanh}[kind](x)
        return x


def picture(seed: int = 4) -> Tensor:
    return torch.from_numpy(drawn(*SIZE, seed=seed))[None]


def gradient_of(net: Net, index: int) -> Callable[[Any], Any]:
    return lambda x: net.backward(x, index)


def asked(model: nn.Module, method: str, x: Tensor | None = None, target: Any = 2, **options: Any) -> Tensor:
    return sightline.attribute(picture() if x is None else x, model, method=method, target=target, options=options)


def close(found: Tensor, wanted: Any, tolerance: float = 1e-10) -> None:
    wanted = torch.as_tensor(wanted)
    assert wanted.any(), "an empty map proves nothing"
    assert found.shape[-2:] == wanted.shape[-2:]
    assert float((found.squeeze(0) - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


# ------------------------------------------------------------------------------------------------------ against oracles


@pytest.mark.proves("saliency", "input-x-gradient", says="equals its slow float64 oracle in five small networks")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", ["saliency", "input-x-gradient"])
def test_gradients_are_the_oracles(method: str, net: str) -> None:
    slow = gradient_of(Net(NETS[net]), 2)
    close(asked(Chain(NETS[net]), method), PIXEL_ORACLES[method](slow, picture()[0].numpy()))


@pytest.mark.proves("integrated-gradients", says="equals its slow float64 oracle for both kinds of nodes")
@pytest.mark.parametrize("nodes", ["gauss-legendre", "midpoint"])
@pytest.mark.parametrize("net", ["pooled", "bent"])
def test_integrated_gradients_are_the_oracles(net: str, nodes: str) -> None:
    x, x0 = picture()[0].numpy(), drawn(*SIZE, seed=8)
    wanted = PIXEL_ORACLES["integrated-gradients"](gradient_of(Net(NETS[net]), 2), x, x0, 7, nodes)
    found = asked(Chain(NETS[net]), "integrated-gradients", baseline=torch.from_numpy(x0), steps=7, nodes=nodes)
    close(found, wanted)


def noises(count: int, x: Tensor, share: float, seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    spread = share * float(x.max() - x.min())
    return [spread * torch.randn(SIZE, generator=generator).double().numpy() for _ in range(count)]


@pytest.mark.proves(param="method", says="equals its slow float64 oracle over every method that it can average")
@pytest.mark.parametrize("of", BASES)
@pytest.mark.parametrize("method", ["smooth-grad", "smooth-grad-squared", "var-grad"])
def test_what_is_averaged_over_noise_is_the_oracles(method: str, of: str) -> None:
    net, x0 = Net(NETS["pooled"]), np.full(SIZE, 0.25)
    slow = {
        "gradient": lambda v: net.backward(v, 2),
        "input-x-gradient": lambda v: v * net.backward(v, 2),
        "guided-backprop": lambda v: net.backward(v, 2, "guided"),
        "deconvnet": lambda v: net.backward(v, 2, "deconvnet"),
        "integrated-gradients": None,
        "deep-lift": lambda v: PIXEL_ORACLES["deep-lift"](net, v, x0, 2),
    }[of]
    if slow is None:
        from oracles_pixels import quadrature

        def slow(v: Any) -> Any:
            nodes = quadrature(50, "gauss-legendre")
            return (v - x0) * sum(weight * net.backward(x0 + at * (v - x0), 2) for at, weight in nodes)

    drawn_noises = noises(2, picture(), 0.3, 5)
    wanted = PIXEL_ORACLES[method](slow, picture()[0].numpy(), drawn_noises)
    found = asked(Chain(NETS["pooled"]), method, samples=2, noise=0.3, seed=5, of=of, baseline=0.25)
    close(found, wanted)


@pytest.mark.proves("gradient-shap", says="equals its slow float64 oracle for the same draws")
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_gradient_shap_is_the_oracles(noise: float) -> None:
    x, generator = picture(), torch.Generator().manual_seed(3)
    draws = []
    for _ in range(4):
        a = float(torch.rand((), generator=generator))
        spread = noise * float(x.max() - x.min())
        shift = (
            spread * torch.randn(x.shape, generator=generator).double()[0] if noise else torch.zeros(SIZE, dtype=DOUBLE)
        )
        x0 = torch.rand(x.shape, generator=generator).double()[0]
        draws.append(((x.min() + (x.max() - x.min()) * x0).numpy(), shift.numpy(), a))
    wanted = PIXEL_ORACLES["gradient-shap"](gradient_of(Net(NETS["bent"]), 2), x[0].numpy(), draws)
    close(asked(Chain(NETS["bent"]), "gradient-shap", samples=4, seed=3, noise=noise), wanted)


@pytest.mark.proves("blur-ig", says="equals its slow float64 oracle")
@pytest.mark.parametrize("sigma", [1.5, 6.0])
def test_blur_ig_is_the_oracles(sigma: float) -> None:
    sigmas = [sigma * (1 - one / 5) ** 2 for one in range(6)]
    wanted = PIXEL_ORACLES["blur-ig"](gradient_of(Net(NETS["plain"]), 2), picture()[0].numpy(), sigmas, gaussian_blur)
    close(asked(Chain(NETS["plain"]), "blur-ig", steps=5, sigma=sigma), wanted)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 8)])
def test_a_blur_of_any_width_is_the_oracles(size: tuple[int, int], sigma: float) -> None:
    x = torch.from_numpy(drawn(2, *size, seed=1))
    assert float((blurred(x[None], sigma)[0] - torch.from_numpy(gaussian_blur(x.numpy(), sigma))).abs().max()) <= 1e-12


@pytest.mark.proves("guided-ig", says="equals its slow float64 oracle")
@pytest.mark.parametrize(("fraction", "distance"), [(0.25, 0.02), (0.1, 0.3), (0.5, 1.0), (1.0, 0.0)])
def test_guided_ig_is_the_oracles(fraction: float, distance: float) -> None:
    x, x0 = picture()[0].numpy(), np.zeros(SIZE)
    slow = PIXEL_ORACLES["guided-ig"](gradient_of(Net(NETS["bent"]), 2), x, x0, 9, fraction, distance)
    found = asked(Chain(NETS["bent"]), "guided-ig", steps=9, fraction=fraction, distance=distance)
    close(found, slow.sum(axis=0), 1e-9)


@pytest.mark.proves("guided-ig")
def test_guided_ig_along_the_straight_line_is_integrated_gradients_at_the_steps_starts() -> None:
    net, x = Net(NETS["bent"]), picture()[0].numpy()
    wanted = sum(x / 10 * net.backward(x * step / 10, 2) for step in range(10)).sum(axis=0)
    close(asked(Chain(NETS["bent"]), "guided-ig", steps=10, distance=0.0), wanted)


@pytest.mark.proves("xrai", says="grows regions as its slow float64 oracle does")
@pytest.mark.parametrize("seed", range(4))
def test_regions_grow_as_the_oracles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((40, 50))
    masks = np.zeros((12, 40, 50), bool)
    for mask in masks:
        top, left = rng.integers(0, 35), rng.integers(0, 45)
        mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 30)] = True
    wanted = PIXEL_ORACLES["xrai"](values, list(masks), min_pixels=max(1, round(2000 * 50 / 224**2)))
    np.testing.assert_allclose(grown(values, masks), wanted, rtol=0, atol=1e-12)


@pytest.mark.proves(
    "guided-backprop", "deconvnet", says="equals its slow float64 oracle, for modules, functions, in place and reused"
)
@pytest.mark.parametrize("how", ["modules", "functions", "in place", "reused"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", ["guided-backprop", "deconvnet"])
def test_rules_for_relus_are_the_oracles(method: str, net: str, how: str) -> None:
    wanted = PIXEL_ORACLES[method](Net(NETS[net]), picture()[0].numpy(), 2).sum(axis=0)
    close(asked(Chain(NETS[net], how), method), wanted)


@pytest.mark.proves(
    "guided-grad-cam", says="equals its slow float64 oracle: ReLU of grad-cam, bilinear, times guided gradients"
)
def test_guided_grad_cam_is_the_oracles() -> None:
    model, net, x = Chain(NETS["plain"]), Net(NETS["plain"]), picture()
    head = Net(NETS["plain"][3:])  # from the second convolution's output
    inside = Net(NETS["plain"][:3])
    layer = inside.forward(x[0].numpy())
    cam = grad_cam(layer, head.backward(layer, 0))
    wanted = PIXEL_ORACLES["guided-grad-cam"](cam, PIXEL_ORACLES["guided-backprop"](net, x[0].numpy(), 0))
    found = sightline.attribute(x, model, method="guided-grad-cam", target=0, layer="parts.2")
    close(found, wanted)


@pytest.mark.proves("deep-lift", says="equals its slow float64 oracle, for modules, functions, in place and reused")
@pytest.mark.parametrize("how", ["modules", "functions", "in place", "reused"])
@pytest.mark.parametrize("net", NETS)
def test_deep_lift_is_the_oracles(net: str, how: str) -> None:
    x0 = drawn(*SIZE, seed=8) / 3
    x0[:, :4] = picture()[0, :, :4]  # where nothing differs
    wanted = PIXEL_ORACLES["deep-lift"](Net(NETS[net]), picture()[0].numpy(), x0, 2).sum(axis=0)
    close(asked(Chain(NETS[net], how), "deep-lift", baseline=torch.from_numpy(x0)), wanted)


# ---------------------------------------------------------------------------------------------------- exact properties


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(math.prod(SIZE), CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.proves(param="method", says="is exact for a score that is linear in the pixels")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("saliency", {}),
        ("smooth-grad", {"samples": 3}),
        ("input-x-gradient", {}),
        ("integrated-gradients", {"steps": 1, "baseline": 0.5}),
        ("integrated-gradients", {"steps": 1, "baseline": 0.5, "nodes": "midpoint"}),
        ("deep-lift", {"baseline": 0.5}),
        ("gradient-shap", {"samples": 2, "baseline": 0.5}),
        ("guided-ig", {"steps": 2, "baseline": 0.5}),
        ("blur-ig", {"steps": 2, "sigma": 3.0}),
    ],
)
def test_of_a_linear_score_it_is_the_weights_or_weight_times_difference(method: str, options: dict[str, Any]) -> None:
    model, x = seeded(Linear, dtype=DOUBLE), picture()
    weights = model.head.weight.detach()[2].reshape(SIZE)
    x0 = {"blur-ig": torch.from_numpy(gaussian_blur(x[0].numpy(), 3.0))}.get(method, options.get("baseline", 0.0))
    sizes = method in ("saliency", "smooth-grad")
    wanted = weights.abs().amax(dim=0) if sizes else (weights * (x[0] - x0)).sum(dim=0)
    close(asked(model, method, **options), wanted, 1e-12)


@pytest.mark.proves("var-grad")
def test_of_a_linear_score_the_gradient_does_not_vary() -> None:
    assert float(asked(seeded(Linear, dtype=DOUBLE), "var-grad", samples=4).abs().max()) <= 1e-15


@pytest.mark.proves("smooth-grad", "smooth-grad-squared")
def test_without_noise_smooth_grad_is_saliency() -> None:
    model = Chain(NETS["bent"])
    plain = asked(model, "saliency")
    close(asked(model, "smooth-grad", samples=2, noise=0.0), plain[0])
    close(asked(model, "smooth-grad-squared", samples=2, noise=0.0), plain[0].square())


@pytest.mark.proves("integrated-gradients", says="is exact in one step for a score that is quadratic in the pixels")
@pytest.mark.parametrize("nodes", ["gauss-legendre", "midpoint"])
def test_of_a_quadratic_score_one_step_is_enough(nodes: str) -> None:
    class Quadratic(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1).square())

    model, x = seeded(Quadratic, dtype=DOUBLE), picture()
    wanted = (model.head.weight.detach()[2].reshape(SIZE) * (x[0].square() - 0.25)).sum(dim=0)
    close(asked(model, "integrated-gradients", steps=1, baseline=0.5, nodes=nodes), wanted, 1e-12)


@pytest.mark.proves("integrated-gradients", says="sums to f(x) - f(x'), with 200 steps of a smooth network to 1e-9")
def test_the_map_sums_to_what_the_score_rose_by() -> None:
    smooth = [conv(3, 4, 3), ("tanh",), conv(4, 4, 3, 2, seed=3), ("sigmoid",), ("flatten",), linear(24)]
    net, x = Net(smooth), picture()
    rise = net.forward(x[0].numpy())[2] - net.forward(np.full(SIZE, 0.5))[2]
    assert abs(float(asked(Chain(smooth), "integrated-gradients", steps=200, baseline=0.5).sum()) - rise) <= 1e-9


@pytest.mark.proves("deep-lift", says="sums to f(x) - f(x') through activations, pooling and skip connections")
@pytest.mark.parametrize("net", NETS)
def test_deep_lift_sums_to_what_the_score_rose_by(net: str) -> None:
    slow, x = Net(NETS[net]), picture()
    for index in range(CLASSES):
        rise = slow.forward(x[0].numpy())[index] - slow.forward(np.full(SIZE, 0.5))[index]
        assert abs(float(asked(Chain(NETS[net]), "deep-lift", target=index, baseline=0.5).sum()) - rise) <= 1e-10 * max(
            1, abs(rise)
        )


@pytest.mark.proves(param="method", says="gives exactly 0 where the score does not depend on the picture")
@pytest.mark.parametrize("method", [name for name in PIXEL_ORACLES if name not in ("guided-grad-cam", "xrai")])
def test_pixels_that_no_score_depends_on_get_exactly_nothing(method: str) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Chain(NETS["plain"])

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.cat([x[..., :4], torch.zeros_like(x[..., 4:])], dim=3))

    options = {"steps": 3} if method in ("integrated-gradients", "guided-ig", "blur-ig") else {}
    found = asked(Half(), method, **options)
    assert found[..., :4].any()
    assert not found[..., 4:].any()


@pytest.mark.proves(param="method", says="adds up over scores that are added up")
@pytest.mark.parametrize("method", ["input-x-gradient", "integrated-gradients", "gradient-shap", "blur-ig"])
def test_the_map_of_a_margin_is_the_difference_of_the_maps(method: str) -> None:
    model = Chain(NETS["pooled"])
    one, other, both = (asked(model, method, target=target) for target in (1, 3, sightline.margin(1, 3)))
    close(both, (one - other)[0])


# ------------------------------------------------------------------------------------------------------ as one function


ALL = list(PIXEL_ORACLES)
FEW = {"steps": 3, "samples": 3}


def few(method: str) -> dict[str, Any]:
    return {name: value for name, value in FEW.items() if name in sightline.list_methods()[method].options}


@pytest.mark.parametrize("method", [name for name in ALL if name != "xrai"])
def test_a_batch_gives_what_its_images_give_one_by_one(method: str) -> None:
    model, x = seeded(Plain, dtype=DOUBLE), images(3, dtype=DOUBLE)
    layer = {"layer": "relu1"} if method == "guided-grad-cam" else {}
    together = sightline.attribute(x, model, method=method, target=[1, None, 3], options=few(method), **layer)
    alone = [
        sightline.attribute(x[[one]], model, method=method, target=target, options=few(method), **layer)
        for one, target in enumerate([1, None, 3])
    ]
    close(together.flatten(0, 1), torch.cat(alone).flatten(0, 1), 1e-12)


@pytest.mark.proves(param="method", says="is decided by the seed, and not by how many pictures fit into memory")
@pytest.mark.parametrize("method", ["smooth-grad", "smooth-grad-squared", "var-grad", "gradient-shap"])
def test_the_seed_decides_and_the_memory_does_not(method: str) -> None:
    model, x = Chain(NETS["bent"]), picture()

    def ask(memory_mb: float, seed: int) -> Tensor:
        return sightline.attribute(
            x, model, method=method, target=1, options={"samples": 20, "seed": seed}, memory_mb=memory_mb
        )

    one, same, small, other = ask(512, 3), ask(512, 3), ask(0.001, 3), ask(512, 4)
    assert torch.equal(one, same)
    close(small, one[0], 1e-12)
    assert float((other - one).abs().max()) > 1e-3 * float(one.abs().max())


@pytest.mark.parametrize("method", ALL)
def test_the_model_is_left_as_it_was(method: str) -> None:
    class Picture(Plain):
        pass

    model, x = seeded(Picture), images(2)
    layer = {"layer": "relu1"} if method == "guided-grad-cam" else {}
    with assert_untouched(model, x):
        found = sightline.attribute(x, model, method=method, target=1, options=few(method), **layer)
    assert found.isfinite().all()
    assert not found.requires_grad
    assert found.shape[0] == 2


@pytest.mark.parametrize("method", ["saliency", "guided-backprop", "integrated-gradients", "deep-lift"])
def test_a_model_that_fails_in_the_middle_is_left_as_it_was(method: str) -> None:
    class Failing(Plain):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("no more")

    model, x = seeded(Failing), images(1)
    with assert_untouched(model, x), pytest.raises(ModelError, match="no more"):
        sightline.attribute(x, model, method=method, target=1, layer="input")


def test_other_activations_are_named_and_a_network_without_relus_is_refused() -> None:
    bent = [conv(3, 4, 3), ("sigmoid",), ("mean",), linear(4)]
    for method in ("guided-backprop", "deconvnet"):
        with pytest.raises(
            MethodError, match=r"has none \(but 1 Sigmoid\): it would be the plain gradient. Take saliency"
        ):
            asked(Chain(bent), method)
    take = lambda one: torch.from_numpy(np.array(one.resize((8, 9)))).permute(2, 0, 1) / 255.0  # noqa: E731
    adapter = sightline.adapt(Chain(NETS["bent"]), layers=["parts.0"], preprocess=lambda one: take(one).double())
    found = sightline.explain(Image.new("RGB", (16, 18), (90, 30, 200)), adapter, method="guided-backprop", target=1)
    assert any(
        "other activations keep their derivative (1 Sigmoid, 1 Tanh, 1 LeakyReLU)" in one for one in found.warnings
    )
    assert any("edge detector" in one for one in found.warnings)


def test_what_bends_the_score_elsewhere_is_told_by_how_much_is_missing() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Chain(NETS["plain"])

        def forward(self, x: Tensor) -> Tensor:
            found = self.inner(20 * x)
            return found * found

    take = lambda one: torch.from_numpy(np.array(one.resize((8, 9)))).permute(2, 0, 1) / 255.0  # noqa: E731
    adapter = sightline.adapt(Gated(), layers=["inner.parts.0"], preprocess=lambda one: take(one).double())
    found = sightline.explain(Image.new("RGB", (16, 18), (90, 30, 200)), adapter, method="deep-lift", target=1)
    assert abs(found.details["residual"]) > 0.05 * abs(found.details["rise"])
    assert any("believe it less" in one for one in found.warnings)
    again = sightline.explain(
        Image.new("RGB", (16, 18), (90, 30, 200)), adapter, method="integrated-gradients", target=1
    )
    assert abs(again.details["residual"]) < 0.05 * abs(again.details["rise"])
    assert any(f"the score rose by {again.details['rise']:.4g} and the map sums to" in one for one in again.warnings)


def test_every_named_baseline_is_what_it_says() -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.25, 0.5])[:, None, None]

    def take(one: Image.Image) -> Tensor:
        return (torch.from_numpy(np.array(one.resize((8, 9)))).permute(2, 0, 1) / 255.0 - mean) / std

    model = seeded(Plain)
    adapter = sightline.adapt(model, layers=["relu1"], preprocess=take)
    photo = np.random.default_rng(0).integers(0, 256, (18, 16, 3), np.uint8)
    x = take(Image.fromarray(photo))

    def ask(baseline: Any) -> Any:
        return sightline.explain(
            photo, adapter, method="integrated-gradients", target=1, options={"baseline": baseline, "steps": 4}
        ).raw

    for name, same in (
        ("black", (-mean / std).expand_as(x)),
        ("white", ((1 - mean) / std).expand_as(x)),
        ("mean", x.mean(dim=(1, 2), keepdim=True).expand_as(x)),
        ("blur", torch.from_numpy(gaussian_blur(x.double().numpy(), 0.8)).float()),
    ):
        np.testing.assert_allclose(ask(name), ask(same), rtol=0, atol=1e-5)
    assert np.abs(ask("random") - ask(0.0)).max() > 1e-3
    assert not np.array_equal(ask("random"), ask("mean"))


def test_a_picture_of_ones_own_can_be_the_baseline(tmp_path: Any) -> None:
    def take(one: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(one.resize((8, 9)))).permute(2, 0, 1) / 255.0

    adapter = sightline.adapt(seeded(Plain), layers=["relu1"], preprocess=take)
    photo, other = np.random.default_rng(0).integers(0, 256, (2, 18, 16, 3), np.uint8)
    Image.fromarray(other).save(tmp_path / "other.png")
    for method in ("integrated-gradients", "deep-lift", "occlusion"):
        by_file, by_tensor = (
            sightline.explain(photo, adapter, method=method, target=1, options={"baseline": one}).raw
            for one in (str(tmp_path / "other.png"), take(Image.fromarray(other)))
        )
        np.testing.assert_array_equal(by_file, by_tensor)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        sightline.explain(photo, adapter, method="deep-lift", options={"baseline": str(tmp_path / "broken.png")})


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("integrated-gradients", {"baseline": [0.0, 1.0]}, "baseline has 2 numbers; expected one, or one for each of 3 channels"),
        ("integrated-gradients", {"baseline": torch.zeros(3, 4, 4)}, r"baseline is a tensor of shape \(1, 3, 4, 4\)"),
        ("integrated-gradients", {"baseline": torch.full((3, 16, 16), float("nan"))}, "baseline holds NaN"),
        ("integrated-gradients", {"baseline": "blakc"}, "baseline is 'blakc'; expected a number"),
        ("integrated-gradients", {"nodes": "left"}, "nodes is 'left'; expected gauss-legendre or midpoint"),
        ("integrated-gradients", {"steps": 0}, "steps is 0; expected 1 to"),
        ("smooth-grad", {"samples": 0}, "samples is 0; expected 1 to"),
        ("smooth-grad", {"noise": -1.0}, "noise is -1.0"),
        ("smooth-grad", {"of": "lime"}, "of is 'lime'; expected one of gradient"),
        ("guided-ig", {"fraction": 0.0}, "fraction is 0.0; expected above 0, at most 1"),
        ("guided-ig", {"distance": 1.5}, "distance is 1.5; expected 0 to 1"),
        ("blur-ig", {"sigma": 0.0}, "sigma is 0.0; expected above 0"),
        ("saliency", {"steps": 3}, "no option 'steps' in saliency; there are none"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        sightline.attribute(images(1), seeded(Plain), method=method, options=options)


def test_without_preprocessing_a_photograph_can_not_be_the_baseline() -> None:
    with pytest.raises(ModelError, match="comes without preprocessing, so that no photograph can be its baseline"):
        sightline.attribute(images(1), seeded(Plain), method="integrated-gradients", options={"baseline": "black"})


@pytest.mark.parametrize("method", ALL)
def test_a_black_box_and_a_score_without_a_gradient_are_refused(method: str) -> None:
    with pytest.raises(MethodError, match="black box"):
        sightline.attribute(images(1), lambda x: x.mean(dim=(1, 2, 3)), method=method)
    with pytest.raises(TargetError, match="no gradient"):
        sightline.attribute(
            images(1),
            seeded(Plain),
            method=method,
            target=lambda output: output.detach()[:, 0],
            layer="input" if method != "guided-grad-cam" else "relu1",
        )


def test_no_more_pictures_are_shown_than_allowed() -> None:
    model, x = seeded(Plain), images(1)
    shown = []
    model.register_forward_hook(lambda _module, args, _output: shown.append(len(args[0])))
    options = {"steps": 20}
    with pytest.raises(MethodError, match=r"would show the model 20 pictures.*at most 15 were allowed \(max_calls\)"):
        sightline.attribute(x, model, method="integrated-gradients", options=options, max_calls=15)
    assert sum(shown) <= 1
    shown.clear()
    sightline.attribute(x, model, method="integrated-gradients", options=options, max_calls=22)
    assert sum(shown) == 22  # with the first look and the baseline
    with pytest.raises(MethodError, match="max_calls is 0; expected how many"):
        sightline.attribute(x, model, method="saliency", max_calls=0)


def test_saliency_costs_one_forward() -> None:
    model, x = seeded(Plain), images(4)
    shown = []
    model.register_forward_hook(lambda _module, args, _output: shown.append(len(args[0])))
    for method in ("saliency", "input-x-gradient"):
        sightline.attribute(x, model, method=method)
    assert shown == [4, 4]


@pytest.mark.proves(
    "guided-backprop", says="fails the randomisation check: with upper layers random it stays nearly as it was"
)
def test_guided_backprop_is_the_negative_control_of_the_trust_card() -> None:
    """An edge detector must not pass: where the network's decision is made random, its map hardly changes."""
    photo = Path(sightline.__file__).parent / "data" / "demo" / "cat.jpg"
    adapter = sightline.load_model("bundled")
    outcomes = {}
    for method in ("guided-backprop", "input-x-gradient"):
        card = sightline.explain(photo, adapter, method=method).trust()
        (check,) = [one for one in card.checks if one.name == "randomisation"]
        outcomes[method] = check.outcome
        assert card.randomisation is not None
        halfway = float(np.median(np.abs(card.randomisation.scores[1:])))
        assert halfway > 0.8 if method == "guided-backprop" else halfway < 0.2
    assert outcomes == {"guided-backprop": "failed", "input-x-gradient": "passed"}


# ------------------------------------------------------------------------------------------------- what an attack found


class Called(nn.Module):
    """The second activation as a function of one's own writing; the first is a plain ReLU."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.head, self.activation = nn.Linear(5, CLASSES), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.second(F.relu(self.first(x)))).mean(dim=(2, 3)))


@pytest.mark.parametrize("method", ["guided-backprop", "deconvnet", "deep-lift"])
@pytest.mark.parametrize(
    "written",
    [
        lambda v: v.clip(0),
        lambda v: torch.clamp(v, min=0),
        lambda v: v.clamp_min(0),
        lambda v: v.clone().clamp_min_(0),
        lambda v: torch.clamp_min_(v.clone(), 0),
        lambda v: F.threshold(v, 0, 0),
        lambda v: F.hardtanh(v, 0, 1e9),
    ],
)
def test_every_way_to_write_a_relu_is_one(method: str, written: Callable[[Tensor], Tensor]) -> None:
    x = images(1, dtype=DOUBLE)
    found, wanted = (
        sightline.attribute(x, seeded(lambda: Called(activation), dtype=DOUBLE), method=method, target=1)  # noqa: B023
        for activation in (written, F.relu)
    )
    assert_close(found, wanted, 1e-12)


def test_activations_without_a_rule_are_named_and_those_off_the_way_are_not_counted() -> None:
    photo = Image.new("RGB", (20, 20), (90, 30, 200))
    take = lambda one: torch.from_numpy(np.array(one.resize((16, 16)))).permute(2, 0, 1) / 255.0  # noqa: E731
    for activation, said in (
        (nn.PReLU(), "1 PReLU"),
        (F.softsign, "1 Softsign"),
        (lambda v: F.glu(v.repeat(1, 2, 1, 1), 1), "1 GLU"),
    ):
        adapter = sightline.adapt(seeded(lambda: Called(activation)), layers=["second"], preprocess=take)  # noqa: B023
        notes = sightline.explain(photo, adapter, method="guided-backprop", target=1).warnings
        assert any(f"other activations keep their derivative ({said})" in one for one in notes)

    class Aside(Called):
        def forward(self, x: Tensor) -> Tensor:
            order = (torch.arange(16) - 1).clamp(min=0)
            scale = self.head.bias.clamp(min=0)
            return self.head(F.gelu(self.second(F.gelu(self.first(x[:, :, order])))).mean(dim=(2, 3))) + scale.sum()

    with pytest.raises(MethodError, match=r"has none \(but 2 GELU\)"):
        sightline.attribute(images(1), seeded(lambda: Aside(F.relu)), method="guided-backprop", target=1)


@pytest.mark.proves("deep-lift", says="is the same however small the activations are, in single precision")
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_small_activations_are_told_apart_as_large_ones_are(scale: float) -> None:
    x = images(1)
    plain = seeded(lambda: Called(F.relu))
    small = seeded(lambda: Called(lambda v: F.relu(v * scale) / scale))
    found, wanted = (sightline.attribute(x, one, method="deep-lift", target=1) for one in (small, plain))
    assert_close(found, wanted, 1e-5)


@pytest.mark.parametrize("method", ["saliency", "input-x-gradient", "guided-backprop", "deconvnet"])
def test_any_map_of_pixels_can_be_averaged_over_noise(method: str) -> None:
    model, x = seeded(Plain, dtype=DOUBLE), images(1, dtype=DOUBLE)
    over = sightline.combine(method, "noise", samples=3, noise=0.2, seed=1)
    generator = torch.Generator().manual_seed(1)
    spread = 0.2 * float(x.max() - x.min())
    copies = torch.cat([x + spread * torch.randn(x.shape, generator=generator).to(x) for _ in range(3)])
    wanted = sightline.attribute(copies, model, method=method, target=1).mean(dim=0, keepdim=True)
    assert_close(sightline.attribute(x, model, method=over, target=1), wanted, 1e-12)
    flipped = sightline.attribute(x, model, method=sightline.combine(method, "flips"), target=1)
    one, other = (sightline.attribute(each, model, method=method, target=1) for each in (x, x.flip(3)))
    assert_close(flipped, (one + other.flip(2)) / 2, 1e-12)


@pytest.mark.parametrize("method", ["integrated-gradients", "score-cam", "smooth-grad", "deep-lift", "occlusion"])
def test_averages_keep_to_the_number_of_pictures_allowed(method: str) -> None:
    model, x = seeded(Plain), images(1)
    shown: list[int] = []
    model.register_forward_hook(lambda _module, args, _output: shown.append(len(args[0])))
    adapter = sightline.adapt(model, layers=["relu1"])
    with pytest.raises(MethodError, match="at most 30 were allowed"):
        sightline.attribute(x, adapter, method=sightline.combine(method, "noise", samples=20), target=1, max_calls=30)
    assert sum(shown) <= 30


@pytest.mark.proves("gradient-shap", says="draws what is independent of it with another seed, also with the next one")
def test_the_standard_error_of_gradient_shap_is_the_spread_over_neighbouring_seeds() -> None:
    model = Chain(NETS["bent"])
    sums = [float(asked(model, "gradient-shap", seed=seed, samples=20).sum()) for seed in range(60)]
    far = [float(asked(model, "gradient-shap", seed=seed * 1000, samples=20).sum()) for seed in range(1, 61)]
    assert 0.7 < np.std(sums) / np.std(far) < 1.4


def test_steps_that_could_not_be_prepared_are_refused_at_once() -> None:
    with pytest.raises(
        MethodError, match="steps is 100000; expected 1000 at most for gauss-legendre, or nodes=midpoint"
    ):
        sightline.attribute(images(1), seeded(Plain), method="integrated-gradients", options={"steps": 100_000})


def test_a_method_whose_extra_is_missing_is_left_out_and_the_others_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import sightline._optional as optional

    found = optional.find_spec
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == "skimage" else found(name))
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    take = lambda one: torch.from_numpy(np.array(one.resize((16, 16)))).permute(2, 0, 1) / 255.0  # noqa: E731
    adapter = sightline.adapt(seeded(Plain), layers=["relu1"], preprocess=take)
    maps = sightline.compare(photo, adapter, methods=["lime", "saliency", "xrai", "kernel-shap"], targets=[1])
    assert [one.method for one in maps] == ["saliency"]
    for name in ("lime", "xrai", "kernel-shap"):
        assert any(one.startswith(f"{name} is left out: ") and "superpixels" in one for one in maps[0].warnings)
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[superpixels\]'"):
        sightline.explain(photo, adapter, method="lime", target=1)


def test_the_options_of_a_map_are_in_its_record_and_caption() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    take = lambda one: torch.from_numpy(np.array(one.resize((16, 16)))).permute(2, 0, 1) / 255.0  # noqa: E731
    adapter = sightline.adapt(seeded(Plain), layers=["relu1"], preprocess=take)
    found = sightline.explain(
        photo, adapter, method="occlusion", target=1, options={"patch": 8, "baseline": torch.zeros(3, 16, 16)}
    )
    assert found.record()["options"] == {"patch": 8, "stride": 0, "baseline": "array (3, 16, 16)"}
    assert "occlusion (patch 8, stride 4, baseline array (3, 16, 16)) at the input" in found.caption()
