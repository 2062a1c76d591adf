"""Every method beside the six gradient CAMs against its oracle in float64, and the exact properties of its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracles_more as oracles
import sightline
from conftest import CLASSES, Dense, Flat, Plain, Residual, Wrapped, assert_untouched, by_autograd, images, seeded
from oracles_more import MORE_ORACLES
from sightline import adapt, attribute, combine, log_probability, margin
from sightline.engine.asked import Asked
from sightline.engine.capture import capture as capture_layers
from sightline.engine.capture import toward
from sightline.engine.probe import probe
from sightline.engine.targets import class_logit, resolve
from sightline.errors import LayerError, MethodError, SightlineError
from sightline.methods import list_methods
from sightline.methods.factorise import factorise

EXACT = 1e-10
NEW = sorted(MORE_ORACLES)
ON_LAYER = [name for name in NEW if name not in ("cam", "full-grad", "refine-cam")]


class Net(nn.Module):
    """Small and bent on both sides of its layer, for inputs of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.more = nn.Conv2d(5, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.act(self.conv(x))).tanh().square().mean(dim=(2, 3)))


class Gap(nn.Module):
    """conv - relu - mean - linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x)).mean(dim=(2, 3)))


def net(build: Callable[[], nn.Module] = Net, seed: int = 0) -> Any:
    return seeded(build, seed, torch.float64)


def picture(seed: int = 1, size: int = 8) -> Tensor:
    return images(1, size=size, seed=seed, dtype=torch.float64)


def said(model: nn.Module, x: Tensor, index: int = 1) -> tuple[Any, Any]:
    """(A, G) of the one image, by plain autograd."""
    a, g, _ = by_autograd(model, "act", x, lambda logits: logits[:, index])
    return a[0].numpy(), g[0].numpy()


def head_of(model: nn.Module, index: int = 1) -> Callable[[Any], float]:
    """The score as a function of the layer's output."""

    def score(grid: Any) -> float:
        a = torch.from_numpy(np.array(grid))[None]
        grids = a if isinstance(model, Gap) else model.more(a).tanh().square()
        with torch.no_grad():
            return float(model.head(grids.mean(dim=(2, 3)))[0, index])

    return score


def score_of(model: nn.Module, index: int = 1) -> Callable[[Any], float]:
    def score(x: Any) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(np.array(x))[None])[0, index])

    return score


def hessian_times(model: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor]) -> Any:
    """H A by autograd, on the head alone."""
    a = model.act(model.conv(x)).detach().requires_grad_()
    value = score(model.head(model.more(a).tanh().square().mean(dim=(2, 3)))).sum()
    (gradient,) = torch.autograd.grad(value, a, create_graph=True)
    (bent,) = torch.autograd.grad(gradient, a, a.detach())
    return bent[0].numpy()


def found_by(method: Any, model: nn.Module, x: Tensor, **rest: Any) -> Any:
    rest = {"layer": "act", "target": 1} | rest
    return attribute(x, model, method=method, **rest)[0].numpy()


def same(found: Any, wanted: Any, tolerance: float = EXACT) -> None:
    assert found.shape == wanted.shape
    assert np.abs(wanted).max() > 0, "the wanted map is empty, which would prove nothing"
    assert float(np.abs(found - wanted).max()) <= tolerance * max(1.0, float(np.abs(wanted).max()))


# ------------------------------------------------------------------------------------------------- maps of what is there


@pytest.mark.proves("eigen-cam", "kpca-cam", "fem", "random", "eigengrad-cam", says="equals its slow float64 oracle")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("build", [Net, Gap])
def test_maps_of_activations_are_the_oracles(build: Any, seed: int) -> None:
    model, x = net(build, seed), picture(seed)
    a, g = said(model, x)
    same(found_by("eigen-cam", model, x), oracles.eigen_cam(a))
    same(found_by("kpca-cam", model, x), oracles.kpca_cam(a))
    same(found_by("kpca-cam", model, x, options={"kernel": "rbf", "gamma": 0.3}), oracles.kpca_cam(a, "rbf", 0.3))
    same(found_by("fem", model, x, options={"k": 1.0}), oracles.fem(a, 1.0))
    same(found_by("random", model, x), oracles.random(a))
    same(found_by("random", model, x, options={"seed": 3}), oracles.random(a, 3))
    same(found_by("eigengrad-cam", model, x), oracles.eigengrad_cam(a, g))


@pytest.mark.proves("kpca-cam")
def test_linear_kernel_pca_is_the_centred_eigen_cam() -> None:
    model, x = net(), picture()
    a, _ = said(model, x)
    found = found_by("kpca-cam", model, x, options={"kernel": "linear"})
    wanted = oracles.eigen_cam(a, centre=True)
    same(found if (found * wanted).sum() > 0 else -found, wanted)


@pytest.mark.proves("eigen-cam", note="to 1e-5")
@pytest.mark.parametrize("cells", [(3, 4), (9, 10)])
def test_eigen_cam_of_a_rank_one_layer_is_its_map_and_knows_no_channel_order(cells: tuple[int, int]) -> None:
    """With fewer cells than channels and with more: two ways of computing, one result."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.rand(*cells, generator=generator, dtype=torch.float64)
    channels = torch.rand(20, generator=generator, dtype=torch.float64)
    whole = channels[:, None, None] * shape
    model = _echo(20, *cells)
    found = attribute(whole[None], model, method="eigen-cam", layer="echo", target=0)[0]
    assert torch.allclose(found / found.max(), shape / shape.max(), atol=EXACT)
    mixed = whole + 0.1 * torch.rand(whole.shape, generator=generator, dtype=torch.float64)
    order = torch.randperm(20, generator=generator)
    one, other = (attribute(a[None], model, method="eigen-cam", layer="echo", target=0) for a in (mixed, mixed[order]))
    assert torch.allclose(one, other, atol=EXACT)


def _echo(channels: int, h: int, w: int) -> nn.Module:
    from conftest import Echo

    return seeded(lambda: Echo(channels, h, w), 0, torch.float64)


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", ["eigen-cam", "kpca-cam", "fem", "random"])
def test_what_is_not_class_specific_is_the_same_for_every_class_and_says_so(method: str) -> None:
    model, x = net(), picture()
    maps = [found_by(method, model, x, target=index) for index in range(CLASSES)]
    assert all(np.array_equal(maps[0], other) for other in maps)
    adapter = adapt(model.float(), layers=["act"], preprocess=_to_tensor)
    found = sightline.explain(PHOTO, adapter, method=method, target=1)
    assert f"{method} is not class-specific: it shows the same for every class" in found.warnings


# --------------------------------------------------------------------------------------------------- the head asked again


@pytest.mark.proves("ablation-cam", "recipro-cam", says="equals its slow float64 oracle")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("build", [Net, Gap])
def test_maps_that_ask_the_head_are_the_oracles(build: Any, seed: int) -> None:
    model, x = net(build, seed), picture(seed)
    a, _ = said(model, x)
    head = head_of(model)
    empty = head(np.zeros_like(a))
    ablated = oracles.ablation_cam(a, head, rectify=False)
    same(np.maximum(ablated, 0) + 1e-3, found_by("ablation-cam", model, x) + 1e-3)
    for spread in (False, True):
        wanted = np.maximum(oracles.recipro_cam(a, head, gaussian=spread) - empty, 0)
        same(found_by("recipro-cam", model, x, options={"spread": spread}) + 1e-3, wanted + 1e-3)


@pytest.mark.parametrize("memory_mb", [0.0001, 0.01, 512])
def test_how_many_fit_into_memory_changes_nothing(memory_mb: float) -> None:
    model, x = net(), picture()
    for method in ("ablation-cam", "recipro-cam", "score-cam", "ss-cam", "is-cam", "smooth-grad-cam++"):
        wanted = found_by(method, model, x)
        same(found_by(method, model, x, memory_mb=memory_mb) + 1, wanted + 1, 1e-9)


@pytest.mark.proves("ablation-cam")
def test_ablation_behind_pooling_and_a_linear_layer_is_the_weight_times_the_mean() -> None:
    model, x = net(Gap), picture()
    a, _ = said(model, x)
    w = model.head.weight[1].detach().numpy()
    wanted = np.maximum(np.einsum("k,khw->hw", w * a.mean(axis=(1, 2)), a), 0)
    same(found_by("ablation-cam", model, x) + 1, wanted + 1)


@pytest.mark.proves("cam", says="equals its slow float64 oracle")
@pytest.mark.proves("cam", says="is grad-cam times the number of cells, where grad-cam is positive")
@pytest.mark.proves("recipro-cam", says="is grad-cam before a global average and a linear layer")
def test_cam_is_the_weights_times_the_maps_and_z_times_grad_cam() -> None:
    model, x = net(Gap), picture()
    a, _ = said(model, x)
    found = found_by("cam", model, x)
    same(found, oracles.cam(a, model.head.weight[1].detach().numpy()))
    assert math.isclose(found.mean() + float(model.head.bias[1].detach()), score_of(model)(x[0].numpy()), abs_tol=EXACT)
    grad = attribute(x, model, method="grad-cam", layer="act", target=1)[0].numpy()
    same(np.maximum(found, 0) / found.size, grad)
    cells = attribute(x, model, method="recipro-cam", layer="act", target=1)[0].numpy()
    same(np.maximum(found, 0) / found.size, cells)


@pytest.mark.parametrize("build", [Net, Flat, Dense])
def test_cam_of_another_head_is_refused_with_what_works(build: Any) -> None:
    model = seeded(build)
    layer = {"Net": "act", "Flat": "relu", "Dense": "stem"}[build.__name__]
    with pytest.raises(MethodError, match="These work here: grad-cam"):
        attribute(images(1), model, method="cam", layer=layer, target=1)


def test_cam_of_an_earlier_layer_or_a_probability_is_refused() -> None:
    model = seeded(Plain)
    assert attribute(images(1), model, method="cam", layer="relu2", target=1).any()
    for changes in ({"layer": "relu1"}, {"target": log_probability(1)}):
        with pytest.raises(MethodError, match="linear layer"):
            attribute(images(1), model, method="cam", **({"layer": "relu2", "target": 1} | changes))
    margin_map = attribute(images(1), model, method="cam", layer="relu2", target=margin(1, 2))
    one, other = (attribute(images(1), model, method="cam", layer="relu2", target=k) for k in (1, 2))
    assert torch.allclose(margin_map, one - other, atol=1e-5)


@pytest.mark.proves("shapley-cam", says="equals its slow float64 oracle")
@pytest.mark.parametrize("seed", range(3))
def test_shapley_cam_is_the_oracles(seed: int) -> None:
    model, x = net(seed=seed), picture(seed)
    a, g = said(model, x)
    bent = hessian_times(model, x, lambda logits: logits[:, 1])
    wanted = oracles.shapley_cam(a, g, bent)
    same(found_by("shapley-cam", model, x, options={"rest": False}) + 1e-3, wanted + 1e-3)

    def rest(logits: Tensor) -> Tensor:
        return logits[:, 1] + logits.log_softmax(dim=1)[:, 1]

    _, g, _ = by_autograd(model, "act", x, rest)
    wanted = oracles.shapley_cam(a, g[0].numpy(), hessian_times(model, x, rest))
    same(found_by("shapley-cam", model, x) + 1e-3, wanted + 1e-3)


@pytest.mark.proves("shapley-cam")
def test_shapley_cam_of_a_score_that_is_linear_in_the_layer_is_grad_cam() -> None:
    model, x = net(Gap), picture()
    same(found_by("shapley-cam", model, x, options={"rest": False}), found_by("grad-cam", model, x))
    assert not np.allclose(found_by("shapley-cam", model, x), found_by("grad-cam", model, x))


@pytest.mark.proves("finer-cam", says="equals its slow float64 oracle: grad-cam of the oracle's weights of the classes")
@pytest.mark.parametrize("seed", range(3))
def test_finer_cam_is_grad_cam_of_the_oracles_weights(seed: int) -> None:
    model, x = net(seed=seed), picture(seed)
    with torch.no_grad():
        logits = model(x)[0].numpy()
    for options, mode in (({}, "through"), ({"weighted": False, "alpha": 0.6}, "paper"), ({"count": 2}, "through")):
        count, alpha = options.get("count", 3), options.get("alpha", 1.0)
        nearest = [int(k) for k in np.argsort(np.abs(logits - logits[1]), kind="stable") if k != 1][:count]
        v = torch.from_numpy(oracles.finer_weights(logits, 1, nearest, alpha, mode=mode))
        wanted = found_by("grad-cam", model, x, target=lambda output, v=v: output @ v)
        same(found_by("finer-cam", model, x, options=options) + 1e-3, wanted + 1e-3)
    named = found_by("finer-cam", model, x, options={"against": "3"})
    same(named + 1e-3, found_by("grad-cam", model, x, target=margin(1, 3)) + 1e-3)


def test_finer_cam_refuses_what_it_cannot_compare() -> None:
    model, x = net(), picture()
    with pytest.raises(MethodError, match="with itself"):
        found_by("finer-cam", model, x, options={"against": "1"})
    with pytest.raises(MethodError, match="margin"):
        found_by("finer-cam", model, x, target=lambda output: output[:, 0])
    with pytest.raises(SightlineError, match="no class names"):
        found_by("finer-cam", model, x, options={"against": "tabby"})


@pytest.mark.proves(
    param="method", says="equals its slow float64 oracle in a network with a concatenated skip connection"
)
@pytest.mark.parametrize("method", ["ablation-cam", "recipro-cam"])
def test_a_concatenated_skip_connection_is_asked_with_as_many_images(method: str) -> None:
    model, x = seeded(Dense, dtype=torch.float64), picture(size=16)
    a, _, _ = by_autograd(seeded(lambda: Dense(inplace=False), dtype=torch.float64), "conv1", x, lambda o: o[:, 1])

    def head(grid: Any) -> float:
        handle = model.conv1.register_forward_hook(lambda *_: torch.from_numpy(np.array(grid))[None])
        with torch.no_grad():
            score = float(model(x)[0, 1])
        handle.remove()
        return score

    wanted = {
        "ablation-cam": lambda: oracles.ablation_cam(a[0].numpy(), head),
        "recipro-cam": lambda: np.maximum(
            oracles.recipro_cam(a[0].numpy(), head, gaussian=False) - head(np.zeros(a.shape[1:])), 0
        ),
    }[method]()
    same(attribute(x, model, method=method, layer="conv1", target=1)[0].numpy() + 1e-3, wanted + 1e-3)


@pytest.mark.parametrize("kind", ["tuple", "dict", "list", "named tuple"])
def test_a_layer_that_returns_more_than_its_grid_is_asked_all_the_same(kind: str) -> None:
    x = images(1)
    wanted = attribute(x, seeded(Wrapped), method="ablation-cam", layer="wrapping", target=1)
    found = attribute(x, seeded(lambda: Wrapped(kind)), method="ablation-cam", layer="wrapping", target=1)
    assert torch.allclose(found, wanted, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ masked pictures


@pytest.mark.proves("score-cam", "is-cam", "ss-cam", says="equals its slow float64 oracle")
@pytest.mark.parametrize("seed", range(2))
def test_score_cam_and_its_variants_are_the_oracles(seed: int) -> None:
    model, x = net(seed=seed), picture(seed)
    a, _ = said(model, x)
    score, x0 = score_of(model), x[0].numpy()
    same(found_by("score-cam", model, x), oracles.score_cam(a, x0, score))

    def chance(one: Any) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(np.array(one))[None]).softmax(dim=1)[0, 1])

    same(
        found_by("score-cam", model, x, options={"authors_code": True}), oracles.score_cam(a, x0, chance, authors=True)
    )
    for authors in (False, True):
        found = found_by("is-cam", model, x, options={"samples": 3, "authors_code": authors})
        same(found, oracles.is_cam(a, x0, score, 3, path="authors" if authors else "straight"))
    for where, shape in (("mask", (1, 8, 8)), ("input", (3, 8, 8))):
        generator = torch.Generator().manual_seed(5)
        spread = 0.2 * (1 if where == "mask" else float(x.max() - x.min()))
        varied = [k for k in range(len(a)) if a[k].max() > a[k].min()]
        noises = np.zeros((2, len(a), *(shape[1:] if where == "mask" else shape)))
        for k in varied:
            for n in range(2):
                drawn = torch.randn(shape, generator=generator).double().numpy() * spread
                noises[n, k] = drawn[0] if where == "mask" else drawn
        found = found_by("ss-cam", model, x, options={"samples": 2, "seed": 5, "where": where})
        same(found, oracles.ss_cam(a, x0, score, list(noises), variant=where))


@pytest.mark.proves("is-cam", "ss-cam")
def test_one_variant_without_noise_is_score_cam() -> None:
    model, x = net(), picture()
    wanted = found_by("score-cam", model, x)
    same(found_by("is-cam", model, x, options={"samples": 1}), wanted)
    same(found_by("ss-cam", model, x, options={"samples": 1, "noise": 0.0}), wanted)


@pytest.mark.proves("score-cam")
def test_score_cam_does_not_see_a_shift_of_the_score_and_weighs_alike_where_the_model_ignores_its_input() -> None:
    model, x = net(), picture()
    wanted = found_by("score-cam", model, x, target=class_logit(1))
    same(found_by("score-cam", model, x, target=lambda output: output[:, 1] + 7), wanted)
    a, _ = said(model, x)
    deaf = found_by("score-cam", model, x, target=lambda output: output[:, 1] * 0)
    varied = a[[channel.max() > channel.min() for channel in a]]
    same(deaf, varied.mean(axis=0))


@pytest.mark.proves("score-cam")
def test_constant_channels_are_left_out_of_score_cam() -> None:
    model, x = net(), picture()
    with torch.no_grad():
        model.conv.weight[2] = 0
        model.conv.bias[2] = 0.7  # the same everywhere, padding included
    a, _ = said(model, x)
    assert a[2].min() == a[2].max() > 0
    same(found_by("score-cam", model, x), oracles.score_cam(a, x[0].numpy(), score_of(model)))
    with torch.no_grad():
        model.conv.weight.zero_()
    assert not found_by("score-cam", model, x).any()


def test_bfloat16_is_said_with_how_far_the_scores_move() -> None:
    model = seeded(Net)
    adapter = adapt(model, layers=["act"], preprocess=_to_tensor)
    photo = (np.random.default_rng(0).random((16, 16, 3)) * 255).astype(np.uint8)
    exact = sightline.explain(photo, adapter, method="score-cam", target=1)
    fast = sightline.explain(photo, adapter, method="score-cam", target=1, options={"bfloat16": True})
    assert any("bfloat16" in warning and "move by up to" in warning for warning in fast.warnings)
    assert not any("bfloat16" in warning for warning in exact.warnings)
    assert np.allclose(fast.raw, exact.raw, atol=0.05 * exact.raw.max())


PHOTO = (np.random.default_rng(0).random((16, 16, 3)) * 255).astype(np.uint8)


def _to_tensor(photo: Any) -> Tensor:
    return torch.from_numpy(np.array(photo.resize((8, 8)))).permute(2, 0, 1).float() / 255


# ------------------------------------------------------------------------------------------------- several forwards, all


@pytest.mark.proves("smooth-grad-cam++", says="equals its slow float64 oracle")
@pytest.mark.proves("smooth-grad-cam++", says="is grad-cam++ for one sample without noise")
@pytest.mark.parametrize("seed", range(3))
def test_smooth_grad_cam_plus_plus_is_the_oracles(seed: int) -> None:
    model, x = net(seed=seed), picture(seed)
    a, g = said(model, x)
    generator = torch.Generator().manual_seed(4)
    copies = []
    for _ in range(3):
        drawn = torch.randn(x.shape[1:], generator=generator).double()
        copies.append(said(model, x + 0.1 * float(x.max() - x.min()) * drawn))
    wanted = oracles.smooth_grad_cam_pp([one for one, _ in copies], [one for _, one in copies], a, g)
    found = found_by("smooth-grad-cam++", model, x, options={"samples": 3, "noise": 0.1, "seed": 4})
    same(found + 1e-3, wanted + 1e-3)
    plain = found_by("smooth-grad-cam++", model, x, options={"samples": 1, "noise": 0.0})
    same(plain + 1e-3, found_by("grad-cam++", model, x) + 1e-3)


class Bent(nn.Module):
    """Biases of every kind: convolution, batch norm, a bent activation, linear; in place and reused."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.act = act
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1, bias=False)
        self.last = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv1(x)))
        return self.head(self.last(self.conv2(x)).mean(dim=(2, 3)))


@pytest.mark.proves("full-grad")
@pytest.mark.parametrize(
    "act", [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.SiLU(inplace=True), nn.GELU(), nn.Hardswish(), nn.Sigmoid()]
)
def test_the_full_gradient_adds_up_to_the_score(act: nn.Module) -> None:
    model, x = net(lambda: Bent(act)), picture()
    adapter = adapt(model, layers=["last"])
    (seen,) = capture_layers(adapter, x, ["last"])
    asked = resolve(1, adapter, seen.output)
    with assert_untouched(model, x):
        parts = probe(adapter, toward([seen], [asked])[0], asked).parts()
    assert abs(parts.missing) <= EXACT
    assert math.isclose(parts.score, score_of(model)(x[0].numpy()), abs_tol=EXACT)


@pytest.mark.proves("full-grad", says="equals its slow float64 oracle in a network of ReLUs")
def test_full_grad_is_the_oracles_for_a_relu_network() -> None:
    model, x = net(lambda: Bent(nn.ReLU())), picture()
    leaf = x.clone().requires_grad_()
    first = model.conv1(leaf)
    second = model.norm(first)
    score = model.head(model.last(model.conv2(model.act(second))).mean(dim=(2, 3)))[0, 1]
    dx, d1, d2 = torch.autograd.grad(score, [leaf, first, second])
    b1 = model.conv1.bias[:, None, None].detach() * d1[0]
    norm = model.norm
    b2 = (norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt())[
        :, None, None
    ].detach() * d2[0]
    wanted = oracles.full_grad(x[0].numpy(), dx[0].numpy(), [b1.numpy(), b2.numpy()])
    same(attribute(x, model, method="full-grad", layer="act", target=1)[0].numpy(), wanted)


def test_full_grad_says_how_much_of_the_score_it_leaves_out() -> None:
    class Hidden(Bent):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).exp()

    adapter = adapt(seeded(lambda: Hidden(nn.ReLU())), layers=["act"], preprocess=_to_tensor)
    found = sightline.explain(PHOTO, adapter, method="full-grad", target=1)
    assert any("of the score out" in warning for warning in found.warnings)
    assert found.raw.shape == (8, 8)
    assert (found.layer, found.layer_reason) == ("all layers", "full-grad looks at the whole network")
    named = sightline.explain(PHOTO, adapter, method="full-grad", target=1, layer="last")
    assert np.array_equal(named.raw, found.raw)
    assert any("not at the layer that was named" in warning for warning in named.warnings)
    several = sightline.compare(PHOTO, adapter, methods=["full-grad", "grad-cam"], layer=["act", "last"])
    assert [(one.method, one.layer) for one in several] == [
        ("full-grad", "all layers"),
        ("grad-cam", "act"),
        ("grad-cam", "last"),
    ]


class Stages(nn.Module):
    """Three resolutions; the stem is left out of the stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.one = nn.Sequential(nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(5, 6, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x).relu())).mean(dim=(2, 3)))


@pytest.mark.proves("refine-cam", says="equals its slow float64 oracle: the product of grad-cam++ over the stages")
def test_refine_cam_is_the_product_over_the_stages() -> None:
    model, x = net(Stages), picture(size=32)
    maps = [attribute(x, model, method="grad-cam++", layer=layer, target=1)[0].numpy() for layer in ("one", "two")]
    assert all(one.any() for one in maps)
    same(attribute(x, model, method="refine-cam", target=1)[0].numpy() + 1e-3, oracles.refine_cam(maps) + 1e-3)


@pytest.mark.proves("layer-cam", says="equals its slow float64 oracle over several layers")
def test_layer_cam_over_several_layers_is_the_oracles() -> None:
    model, x = net(Stages), picture(size=32)
    pairs = [by_autograd(model, layer, x, lambda logits: logits[:, 1])[:2] for layer in ("stem", "one", "two")]
    wanted = oracles.layer_cam_fused([(a[0].numpy(), g[0].numpy()) for a, g in pairs], [True, True, False])
    found = attribute(x, model, method="layer-cam", layer=["stem", "one", "two"], target=1)[0].numpy()
    same(found, wanted)


@pytest.mark.proves(
    "grad-cam-elementwise", says="over several layers is the mean of their maps, each divided by its highest value"
)
def test_other_methods_over_several_layers_are_the_mean_of_their_shares() -> None:
    model, x = net(Stages), picture(size=32)
    maps = [
        attribute(x, model, method="grad-cam-elementwise", layer=layer, target=1)[0].numpy() for layer in ("one", "two")
    ]
    shares = [oracles.resize(one / one.max(), (8, 8)) for one in maps]
    found = attribute(x, model, method="grad-cam-elementwise", layer=["one", "two"], target=1)[0].numpy()
    same(found, (shares[0] + shares[1]) / 2)


# -------------------------------------------------------------------------------------------------------------- combine


def test_combined_over_noise_is_the_mean_of_the_maps() -> None:
    model, x = net(), picture()
    method = combine("grad-cam", "noise", samples=3, noise=0.2, seed=2)
    generator = torch.Generator().manual_seed(2)
    spread = 0.2 * float(x.max() - x.min())
    maps = [
        found_by("grad-cam", model, x + spread * torch.randn(x.shape, generator=generator).double()) for _ in range(3)
    ]
    same(found_by(method, model, x) + 1e-3, sum(maps) / 3 + 1e-3)
    assert method.name == "grad-cam over noise"
    same(found_by(combine("grad-cam", "noise", samples=4, noise=0), model, x) + 1, found_by("grad-cam", model, x) + 1)


@pytest.mark.parametrize("base", ["hires-cam", "ablation-cam", "score-cam"])
def test_combined_over_flips_is_the_mean_with_the_mirror_image_laid_back(base: str) -> None:
    model, x = net(), picture()
    mirrored = found_by(base, model, x.flip(3))[:, ::-1]
    same(found_by(combine(base, "flips"), model, x) + 1, (found_by(base, model, x) + mirrored) / 2 + 1)


def test_combined_over_scales_keeps_the_grid_and_one_scale_is_the_method() -> None:
    model, x = net(), picture()
    assert found_by(combine("grad-cam", "scales"), model, x).shape == (4, 4)
    same(found_by(combine("grad-cam", "scales", scales=[1.0]), model, x) + 1, found_by("grad-cam", model, x) + 1, 1e-6)


def test_a_combined_method_has_the_options_of_its_base() -> None:
    method = combine("grad-cam++", "flips")
    assert method.options == {"normalise": False}
    model, x = net(), picture()
    plain, changed = (found_by(method, model, x, options={"normalise": one}) for one in (False, True))
    assert not np.allclose(plain, changed)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"over": "rain"}, "noise, flips, scales"),
        ({"over": "noise", "samples": 0}, "samples is 0"),
        ({"over": "noise", "samples": 2.5}, "samples is 2.5"),
        ({"over": "noise", "noise": -1.0}, "noise is -1.0; expected 0 to 100"),
        ({"over": "noise", "scales": [1.0]}, "no option 'scales'"),
        ({"over": "flips", "samples": 3}, "no option 'samples' in combine over flips; there are none"),
        ({"over": "scales", "scales": []}, r"scales is \[\]"),
        ({"over": "scales", "scales": [1.0, 0.0]}, "above 0"),
        ({"over": "scales", "scales": ["big"]}, "something like"),
    ],
)
def test_combine_refuses_what_makes_no_sense(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        combine("grad-cam", **wrong)


@pytest.mark.parametrize("method", [one.name for one in list_methods().values() if one.needs in ("head", "input")])
def test_what_needs_no_gradient_works_for_a_score_that_has_none(method: str) -> None:
    def votes(logits: Tensor) -> Tensor:
        return (logits[:, 1:2] > logits).double().sum(dim=1)

    model, x = net(), picture()
    if method in ("ablation-cam", "recipro-cam", "score-cam", "ss-cam", "is-cam"):
        found = attribute(x, model, method=method, layer="act", target=votes)
        assert torch.equal(
            found, attribute(x, model, method=method, layer="act", target=lambda y: votes(y) + 0 * y[:, 0])
        )
        assert torch.isfinite(found).all()
    else:
        with pytest.raises(SightlineError, match=r"no gradient|compares a class|no logit"):
            attribute(x, model, method=method, layer="act", target=votes)


def test_a_capture_is_not_asked_for_another_layer() -> None:
    model, x = net(), picture()
    seen = sightline.capture(x, model, layer="act")
    assert torch.equal(attribute(seen, model, layer="act", target=1), attribute(seen, model, target=1))
    with pytest.raises(LayerError, match="of layer 'act', not of 'last'"):
        attribute(seen, model, layer="last", target=1)


def test_each_fused_layer_says_what_limits_its_map() -> None:
    adapter = adapt(seeded(lambda: Bent(nn.ReLU())), layers=["act"], preprocess=_to_tensor)
    (one, other), fused = (
        sightline.compare(PHOTO, adapter, methods=["eigen-cam"], layer=["act", "last"]),
        sightline.explain(PHOTO, adapter, method="eigen-cam", layer=["act", "last"]),
    )
    assert "eigen-cam is not class-specific: it shows the same for every class" in fused.warnings
    apart = {
        layer: sightline.explain(PHOTO, adapter, method="grad-cam", target=2, layer=layer).warnings
        for layer in ("act", "last")
    }
    together = sightline.explain(PHOTO, adapter, method="grad-cam", target=2, layer=["act", "last"]).warnings
    for layer, said in apart.items():
        for warning in said:
            assert warning in together or f"at layer {layer}: {warning}" in together
    assert any(warning.startswith("at layer") for warning in together)
    assert (one.layer, other.layer) == ("act", "last")


def test_the_contrast_of_two_classes_by_name_is_the_margin() -> None:
    model = net()
    adapter = adapt(model, layers=["act"], labels=["ant", "bee", "cat", "dog", "emu"])
    x = picture()
    wanted = attribute(x, adapter, method="hires-cam", target=margin(1, 3))
    assert torch.equal(attribute(x, adapter, method="hires-cam", target=margin("bee", "dog")), wanted)
    best = int(model(x).argmax())
    other = (best + 1) % CLASSES
    found = attribute(x, adapter, method="hires-cam", target=margin(None, other))
    assert torch.equal(found, attribute(x, adapter, method="hires-cam", target=margin(best, other)))
    for same_class in ((2, 2), ("bee", "bee")):
        with pytest.raises(SightlineError, match="two different classes"):
            attribute(x, adapter, target=margin(*same_class))


# ------------------------------------------------------------------------------------------------------------- concepts


def test_factorisation_is_the_oracles_steps_and_never_gets_worse() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 6, 4, 5, generator=generator, dtype=torch.float64)
    errors = [factorise(a, 3, iterations=n).missing for n in (1, 2, 5, 20, 100)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    found = factorise(a, 3, iterations=7)
    assert (found.maps >= 0).all()
    assert (found.directions >= 0).all()
    assert torch.allclose(found.directions.norm(dim=1), torch.ones(3, dtype=torch.float64))
    sums = found.maps.sum(dim=(1, 2))
    assert (sums[:-1] >= sums[1:]).all()
    generator = torch.Generator().manual_seed(0)
    scale, v = float(a.max()), a[0].flatten(1).T / a.max()
    size = (v.mean() / 3).sqrt()
    w0, h0 = (torch.rand(*shape, generator=generator, dtype=torch.float64) * size for shape in ((20, 3), (3, 6)))
    w, h = oracles.dff(a[0].numpy() / scale, 3, 7, w0.numpy(), h0.numpy())
    rebuilt = torch.einsum("khw,kc->chw", found.maps, found.directions).numpy()
    assert np.allclose(rebuilt, (w @ h * scale).T.reshape(6, 4, 5), atol=1e-9)
    whole = np.linalg.norm(a.numpy() / scale)
    assert math.isclose(found.missing, oracles.dff_error(a[0].numpy() / scale, w, h) / whole, abs_tol=1e-9)


def test_factorisation_finds_what_a_layer_is_made_of() -> None:
    maps = torch.zeros(2, 4, 4, dtype=torch.float64)
    maps[0, :2], maps[1, 2:] = 3.0, 2.0
    directions = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.float64)
    found = factorise(torch.einsum("khw,kc->chw", maps, directions)[None], 2, iterations=500)
    assert found.missing < 1e-3
    assert torch.allclose(
        found.maps / found.maps.amax(dim=(1, 2), keepdim=True), maps / maps.amax(dim=(1, 2), keepdim=True), atol=0.01
    )


@pytest.mark.parametrize("count", [0, -1, 21])
def test_an_impossible_number_of_concepts_is_refused(count: int) -> None:
    with pytest.raises(MethodError, match="count"):
        factorise(torch.rand(1, 6, 4, 5), count)


def test_concepts_of_a_pooled_linear_head_add_up_to_what_they_rebuild(tmp_path: Any) -> None:
    model = seeded(Gap)
    adapter = adapt(model, layers=["act"], preprocess=_to_tensor, labels=["ant", "bee", "cat", "dog", "emu"])
    photo = (np.random.default_rng(0).random((40, 30, 3)) * 255).astype(np.uint8)
    found = sightline.concepts(photo, adapter, count=2)
    assert found.maps.shape == (2, 4, 4)
    parts = np.einsum("khw,kc->kchw", found.maps, found.directions)
    weight = model.head.weight.detach().numpy()
    for part, classes in zip(parts, found.evoked, strict=True):
        rises = weight @ part.mean(axis=(1, 2))
        wanted = [int(k) for k in np.argsort(-rises)[:3] if rises[k] > 0]
        assert [one.index for one in classes] == wanted
        assert np.allclose([one.rise for one in classes], rises[wanted], atol=1e-4)
    again = sightline.concepts(photo, adapter, count=2)
    assert np.array_equal(found.maps, again.maps)
    folder = found.save(tmp_path / "out")
    assert sorted(one.name for one in folder.iterdir()) == ["directions.npy", "manifest.json", "maps.npy", "panel.png"]
    assert np.array_equal(np.load(folder / "maps.npy"), found.maps)
    with pytest.raises(SightlineError, match="exists"):
        found.save(tmp_path / "out")


# -------------------------------------------------------------------------------------- what holds for each and every one


@pytest.mark.parametrize("method", ON_LAYER)
@pytest.mark.parametrize("build", [Plain, Residual, Dense, Flat])
def test_a_map_has_the_layers_shape_and_a_batch_gives_what_its_images_give(method: str, build: Any) -> None:
    model, x = seeded(build), images(2)
    together = attribute(x, model, method=method, layer=model.layer, target=[1, 2])
    assert together.shape == (2, 8, 8)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    assert not together.requires_grad
    alone = [attribute(x[[k]], model, method=method, layer=model.layer, target=k + 1) for k in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4 * float(together.abs().max()))
    if not list_methods()[method].signed:
        assert together.min() >= 0


@pytest.mark.proves(
    param="method", says="calling twice gives the same bits, and the caller's random state is left alone"
)
@pytest.mark.parametrize("method", NEW)
def test_calling_twice_gives_the_same_bits_and_random_state_is_the_callers(method: str) -> None:
    model, x = seeded(Plain), images(1)
    with assert_untouched(model, x):
        one, other = (attribute(x, model, method=method, layer="relu2", target=1) for _ in range(2))
    assert torch.equal(one, other)
    assert one.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [name for name in NEW if name != "fem"])  # whose threshold jumps
def test_a_map_comes_in_the_type_of_its_input_and_says_about_the_same(method: str, dtype: torch.dtype) -> None:
    model, x = seeded(Plain), images(1)
    wanted = attribute(x, model, method=method, layer="relu2", target=1)
    found = attribute(x.to(dtype), seeded(Plain).to(dtype), method=method, layer="relu2", target=1)
    assert found.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 0.2
    assert float((found.float() - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("kind", ["zero", "constant", "huge", "tiny", "negative"])
@pytest.mark.parametrize("method", [name for name in NEW if name not in ("full-grad", "refine-cam")])
def test_extreme_activations_give_finite_maps_without_a_warning(method: str, kind: str) -> None:
    model = seeded(Gap)
    with torch.no_grad():
        model.act = nn.Identity()
        factor = {"zero": 0.0, "constant": 0.0, "huge": 1e18, "tiny": 1e-30, "negative": 1.0}[kind]
        model.conv.weight.mul_(factor)
        model.conv.bias.fill_({"zero": 0.0, "constant": 0.7, "negative": -30.0}.get(kind, 0.0))
    found = attribute(images(1), model, method=method, layer="act", target=1)
    assert found.isfinite().all()
    if kind == "zero":
        assert not found.any()


@pytest.mark.parametrize("method", NEW)
def test_nan_in_the_picture_is_told_and_not_drawn(method: str) -> None:
    x = images(1)
    x[0, 0, 3, 3] = torch.nan
    with pytest.raises((sightline.errors.NonFiniteError, MethodError)):
        attribute(x, seeded(Plain), method=method, layer="relu2", target=1)


@pytest.mark.parametrize("method", [name for name in NEW if name != "cam"])
def test_what_asks_many_questions_tells_how_far_it_is_and_can_be_stopped(method: str) -> None:
    model, x = seeded(Plain), images(1)
    told: list[tuple[int, int]] = []
    attribute(x, model, method=method, layer="relu2", target=1, progress=lambda done, total: told.append((done, total)))
    many = ("ablation-cam", "recipro-cam", "score-cam", "ss-cam", "is-cam", "smooth-grad-cam++")
    assert bool(told) == (method in many)
    if told:
        assert told[0][0] == 0
        assert told[-1][0] == told[-1][1] == max(total for _, total in told)

        def stop(_done: int, _total: int) -> None:
            raise KeyboardInterrupt

        with assert_untouched(model, x), pytest.raises(KeyboardInterrupt):
            attribute(x, model, method=method, layer="relu2", target=1, progress=stop)


def test_a_probe_asks_another_score_and_another_picture() -> None:
    model, x = net(), picture()
    adapter = adapt(model, layers=["act"])
    (seen,) = capture_layers(adapter, x, ["act"])
    asked = resolve(1, adapter, seen.output)
    ask = probe(adapter, seen, asked)
    other = picture(9)
    a, g = said(model, other)
    again, _ = ask.other(other)
    same(again.activations[0].numpy(), a)
    assert again.gradients is None
    assert again.scores is not None
    assert math.isclose(float(again.scores), score_of(model, 1)(other[0].numpy()), abs_tol=EXACT)
    batch = ask.capture(torch.cat([x, other]))
    assert batch.gradients is not None
    same(batch.gradients[1].numpy(), g)
    assert math.isclose(float(ask.score(other, class_logit(2))), score_of(model, 2)(other[0].numpy()), abs_tol=EXACT)
    assert ask.resolve(3).index == 3
    assert isinstance(asked, Asked)


def test_a_layer_that_is_named_twice_or_does_not_exist_is_refused() -> None:
    model, x = seeded(Plain), images(1)
    with pytest.raises(LayerError, match="no layer"):
        attribute(x, model, layer=["relu1", "nowhere"], target=1)


# ------------------------------------------------------------------------------------------- what a second reading found


class ChannelsLast(nn.Module):
    """A 1 x 1 convolution written as a linear layer on channels-last grids, or as what it is."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.mix = nn.Linear(5, 6) if last else nn.Conv2d(5, 6, 1)
        self.act = nn.ReLU()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.mix(x)
        return self.head(self.act(x).mean(dim=(2, 3)))


def test_full_grad_draws_biases_of_channels_last_layers_where_they_are() -> None:
    one, other = net(lambda: ChannelsLast(False)), net(lambda: ChannelsLast(True))
    state = one.state_dict()
    state["mix.weight"] = state["mix.weight"][:, :, 0, 0]
    other.load_state_dict(state)
    x = picture()
    assert torch.allclose(one(x), other(x))
    same(*(attribute(x, model, method="full-grad", layer="conv", target=1)[0].numpy() for model in (one, other)), 1e-9)


class Aliased(nn.Module):
    """Its layer works in place, and the tensor it was given is read again behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.more = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.head((self.more(self.act(h)) + h).mean(dim=(2, 3)))


def test_a_layer_that_works_in_place_is_exchanged_for_all_who_hold_its_output() -> None:
    model, x = net(Aliased), picture()
    adapter = adapt(model, layers=["act"])
    (seen,) = capture_layers(adapter, x, ["act"])
    asked = resolve(1, adapter, seen.output)
    seen = toward([seen], [asked])[0]
    ask = probe(adapter, seen, asked)
    assert seen.gradients is not None
    full, empty = ask.score_head(torch.cat([seen.activations, torch.zeros_like(seen.activations)]))
    linear = float((seen.gradients * seen.activations).sum())
    assert math.isclose(float(full - empty), linear, abs_tol=EXACT)


class KeepsBatch(nn.Module):
    """Reads the batch size before the layer, and reshapes by it behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        return self.head(self.act(self.conv(x)).reshape(batch, 5, -1).mean(dim=2))


@pytest.mark.proves(
    "ablation-cam", "recipro-cam", "cam", says="is the same where the model reshapes by the old batch size"
)
def test_a_head_that_keeps_the_old_batch_size_is_asked_all_the_same() -> None:
    kept, plain, x = net(KeepsBatch), net(Gap), picture()
    plain.load_state_dict(kept.state_dict())
    for method in ("ablation-cam", "recipro-cam", "cam"):
        same(found_by(method, kept, x) + 1, found_by(method, plain, x) + 1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("smooth-grad-cam++", {"samples": "abc"}),
        ("smooth-grad-cam++", {"samples": 2.5}),
        ("smooth-grad-cam++", {"samples": 0}),
        ("smooth-grad-cam++", {"noise": -1.0}),
        ("ss-cam", {"seed": 1.5}),
        ("ss-cam", {"where": "nowhere"}),
        ("kpca-cam", {"gamma": "abc"}),
        ("kpca-cam", {"gamma": math.nan}),
        ("kpca-cam", {"kernel": "cubic"}),
        ("finer-cam", {"count": -3}),
        ("random", {"seed": True}),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(MethodError):
        attribute(images(1), seeded(Plain), method=method, layer="relu2", target=1, options=options)


def test_kpca_cam_of_a_large_grid_is_refused_and_a_comparison_goes_on_without_it() -> None:
    with pytest.raises(MethodError, match="take a deeper layer"):
        attribute(torch.rand(1, 3, 160, 160), seeded(Plain), method="kpca-cam", layer="relu2", target=1)

    def large(photo: Any) -> Tensor:
        return torch.from_numpy(np.array(photo.resize((160, 160)))).permute(2, 0, 1).float() / 255

    adapter = adapt(seeded(Plain), layers=["relu2"], preprocess=large)
    photo = (np.random.default_rng(0).random((16, 16, 3)) * 255).astype(np.uint8)
    found = sightline.compare(photo, adapter, methods=["grad-cam", "kpca-cam"], targets=[1])
    assert [one.method for one in found] == ["grad-cam"]
    assert any("kpca-cam is left out" in warning for warning in found[0].warnings)


@pytest.mark.proves("layer-cam")
def test_the_order_in_which_fused_layers_are_named_changes_nothing() -> None:
    model, x = net(Stages), picture(size=32)
    one, other = (
        attribute(x, model, method="layer-cam", layer=list(names), target=1)
        for names in (("one", "two"), ("two", "one"))
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "bad", [{"layer": []}, {"memory_mb": 0, "method": "score-cam"}, {"memory_mb": math.nan, "method": "score-cam"}]
)
def test_an_empty_list_of_layers_and_no_memory_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(SightlineError):
        attribute(images(1), seeded(Plain), target=1, **({"layer": "relu2"} | bad))


def test_concepts_of_weights_with_nan_are_refused() -> None:
    model = seeded(Gap)
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = torch.nan
    photo = (np.random.default_rng(0).random((16, 16, 3)) * 255).astype(np.uint8)
    with pytest.raises(sightline.errors.NonFiniteError):
        sightline.concepts(photo, adapt(model, layers=["act"], preprocess=_to_tensor), count=2)


def test_a_probability_of_one_output_is_its_sigmoid() -> None:
    class One(Gap):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 1)

    model, x = net(One), picture()
    share = sightline.capture(x, model, layer="act")
    assert attribute(share, model, target=sightline.probability(0), method="hires-cam").any()
    wanted = attribute(x, model, layer="act", target=lambda o: o[:, 0].sigmoid(), method="hires-cam")
    assert torch.allclose(attribute(share, model, target=sightline.probability(0), method="hires-cam"), wanted)
