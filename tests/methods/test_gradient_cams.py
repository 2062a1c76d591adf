"""The exact properties of the six gradient class activation maps, in float64, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import CLASSES, Echo, Flat, Plain, assert_close, images, seeded
from oracles import ORACLES, UNRECTIFIED, grad_cam_plus_plus_unrectified
from sightline import adapt, attribute, capture, class_logit, log_probability, margin, probability
from sightline.engine.capture import Capture, toward
from sightline.engine.targets import per_image
from sightline.errors import MethodError
from sightline.methods import gradient_cams as cams
from sightline.methods import list_methods, run

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "grad-cam": cams.grad_cam,
    "grad-cam++": cams.grad_cam_plus_plus,
    "xgrad-cam": cams.xgrad_cam,
    "hires-cam": cams.hires_cam,
    "layer-cam": cams.layer_cam,
    "grad-cam-elementwise": cams.grad_cam_elementwise,
}
LINEAR = ("grad-cam", "hires-cam", "xgrad-cam")  # in the gradients
CELL_BY_CELL = ("grad-cam", "xgrad-cam", "hires-cam", "layer-cam", "grad-cam-elementwise")
EXACT = 1e-10


class GapLinear(nn.Module):
    """conv - relu (or signed) - global average - linear, with biases."""

    def __init__(self, signed: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, stride=2, padding=1)
        self.layer = nn.Identity() if signed else nn.ReLU()
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.conv(x)).mean(dim=(2, 3)))


class Deep(nn.Module):
    """A head that is not linear in the layer, so that gradients vary from cell to cell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, stride=2, padding=1)
        self.layer = nn.ReLU()
        self.more = nn.Conv2d(7, 5, 3, padding=1)
        self.head = nn.Linear(5 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.layer(self.conv(x))).tanh().flatten(1))


def double(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    return seeded(build, seed, torch.float64)


def x64(batch: int = 2, seed: int = 1) -> Tensor:
    return images(batch, seed=seed, dtype=torch.float64)


def seen(model: nn.Module, x: Tensor, target: Any = 0, layer: str = "layer") -> Capture:
    """Activations, gradients and scores of one target an image."""
    adapter = adapt(model, layers=[layer])
    kept = capture(x, adapter)
    return toward([kept], per_image(target, adapter, kept.output, len(x)))[0]


def made(activations: Tensor, gradients: Tensor) -> Capture:
    return Capture("made", activations, activations, None, gradients, gradients.flatten(1).sum(1))


def same(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == torch.float64
    assert_close(found, wanted, EXACT)


# ------------------------------------------------------------------------------------------ on any A and G: definitions


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("signed", [False, True], ids=["relu", "signed"])
@pytest.mark.parametrize("method", FUNCTIONS)
def test_a_map_equals_its_definition_before_and_after_rectification(method: str, signed: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64)
    g = torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64)
    a = a if signed else a.relu()
    found = FUNCTIONS[method](made(a, g))
    rectified = found if list_methods()[method].signed else found.relu()
    for image in range(2):
        pair = a[image].numpy(), g[image].numpy()
        same(found[image], torch.from_numpy(UNRECTIFIED[method](*pair)))
        same(rectified[image], torch.from_numpy(ORACLES[method](*pair)))


@pytest.mark.proves(*FUNCTIONS)
@given(
    method=st.sampled_from(sorted(FUNCTIONS)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    dead=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_map_equals_its_definition_at_any_shape_and_scale(
    method: str, shape: tuple[int, int, int], seed: int, scale: float, dead: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(1, *shape, generator=generator, dtype=torch.float64).relu()
    g = torch.randn(1, *shape, generator=generator, dtype=torch.float64) * scale
    if dead:
        a[:, 0] = 0
    wanted = torch.from_numpy(UNRECTIFIED[method](a[0].numpy(), g[0].numpy()))
    found = FUNCTIONS[method](made(a, g))[0]
    assert (found - wanted).abs().max() <= EXACT * wanted.abs().max()


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", FUNCTIONS)
def test_the_order_of_channels_does_not_matter(method: str) -> None:
    one = seen(double(Deep), x64())
    order = torch.randperm(7, generator=torch.Generator().manual_seed(5))
    other = made(one.activations[:, order], one.gradients[:, order])
    same(FUNCTIONS[method](other), FUNCTIONS[method](one))


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", FUNCTIONS)
def test_a_turned_grid_gives_the_turned_map(method: str) -> None:
    one = seen(double(Deep), x64())
    turned = made(one.activations.rot90(1, (2, 3)), one.gradients.rot90(1, (2, 3)))
    same(FUNCTIONS[method](turned), FUNCTIONS[method](one).rot90(1, (1, 2)))


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", CELL_BY_CELL)
def test_a_score_of_twice_the_size_gives_twice_the_map(method: str) -> None:
    one = seen(double(Deep), x64())
    same(FUNCTIONS[method](made(one.activations, 2 * one.gradients)), 2 * FUNCTIONS[method](one))


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", FUNCTIONS)
def test_attribute_gives_the_formula_rectified_unless_the_method_is_signed(method: str) -> None:
    model, x = double(Deep), x64()
    found = attribute(x, adapt(model, layers=["layer"]), method=method, target=2)
    formula = FUNCTIONS[method](seen(model, x, 2))
    same(found, formula if method == "hires-cam" else formula.relu())


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", FUNCTIONS)
def test_a_mixed_batch_gives_what_its_images_give_one_by_one(method: str) -> None:
    adapter, x = adapt(double(Deep), layers=["layer"]), x64(4)
    targets = [3, None, margin(1, 4), log_probability(2)]
    together = attribute(x, adapter, method=method, target=targets)
    for image, target in enumerate(targets):
        alone = attribute(x[image : image + 1], adapter, method=method, target=target)
        same(together[image : image + 1], alone)


@pytest.mark.parametrize("method", FUNCTIONS)
def test_a_capture_without_gradients_is_refused(method: str) -> None:
    with pytest.raises(MethodError, match="no gradients"):
        FUNCTIONS[method](capture(x64(), adapt(double(GapLinear), layers=["layer"])))


# ----------------------------------------------------------------------------------------- global average and one layer


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("signed", [False, True], ids=["relu", "signed"])
@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("index", range(CLASSES))
def test_on_gap_and_linear_the_map_is_the_class_activation_map_over_the_cells(
    method: str, index: int, signed: bool
) -> None:
    model, x = double(lambda: GapLinear(signed)), x64()
    one = seen(model, x, index)
    cells = one.activations[0, 0].numel()
    cam = torch.einsum("c,bchw->bhw", model.head.weight.detach()[index], one.activations)
    same(FUNCTIONS[method](one), cam / cells)


@pytest.mark.proves(*LINEAR)
@pytest.mark.parametrize("index", range(CLASSES))
def test_on_gap_and_linear_the_map_sums_to_the_score_without_its_bias(index: int) -> None:
    model, x = double(GapLinear), x64()
    one = seen(model, x, index)
    for method in LINEAR:
        same(FUNCTIONS[method](one).sum(dim=(1, 2)), one.scores - model.head.bias.detach()[index])


@pytest.mark.proves("grad-cam++")
@pytest.mark.parametrize("index", range(CLASSES))
def test_on_gap_and_linear_grad_cam_plus_plus_has_its_closed_form(index: int) -> None:
    model, x = double(GapLinear), x64()
    one = seen(model, x, index)
    w = model.head.weight.detach()[index]
    weights = w.relu() / (2 + w * one.activations.mean(dim=(2, 3)))
    same(cams.grad_cam_plus_plus(one), torch.einsum("bc,bchw->bhw", weights, one.activations))


@pytest.mark.proves("layer-cam")
@pytest.mark.parametrize("index", range(CLASSES))
def test_on_gap_and_linear_layer_cam_is_the_cam_of_the_positive_weights(index: int) -> None:
    model, x = double(GapLinear), x64()
    one = seen(model, x, index)
    cells = one.activations[0, 0].numel()
    w = model.head.weight.detach()[index].relu()
    same(cams.layer_cam(one), torch.einsum("c,bchw->bhw", w, one.activations) / cells)


@pytest.mark.proves("grad-cam++", "layer-cam")
@pytest.mark.parametrize("index", range(CLASSES))
def test_on_gap_and_linear_normalised_grad_cam_plus_plus_is_layer_cam(index: int) -> None:
    one = seen(double(GapLinear), x64(), index)
    same(cams.grad_cam_plus_plus(one, normalise=True), cams.layer_cam(one))


@pytest.mark.proves("grad-cam++")
def test_normalised_grad_cam_plus_plus_weighs_a_channel_by_a_mean_of_its_positive_gradients() -> None:
    one = seen(double(Deep), x64())
    found = cams.grad_cam_plus_plus(one, normalise=True)
    for image in range(2):
        pair = one.activations[image].numpy(), one.gradients[image].numpy()
        same(found[image], torch.from_numpy(grad_cam_plus_plus_unrectified(*pair, normalise=True)))
    # alpha sums to 1, so that on a map of ones no channel weighs more than its largest positive gradient
    ones = made(torch.ones_like(one.activations), one.gradients)
    bound = one.gradients.relu().amax(dim=(2, 3)).sum(dim=1)
    assert (cams.grad_cam_plus_plus(ones, normalise=True).amax(dim=(1, 2)) <= bound * (1 + EXACT)).all()


def test_the_option_normalise_is_taken_by_name() -> None:
    model, x = adapt(double(Deep), layers=["layer"]), x64()
    plain = attribute(x, model, method="grad-cam++", target=0)
    normalised = attribute(x, model, method="grad-cam++", target=0, options={"normalise": True})
    assert (plain - normalised).abs().max() > 1e-3 * plain.abs().max()


# ------------------------------------------------------------------------------------------------ probability and logit


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", CELL_BY_CELL)
@pytest.mark.parametrize("build", [GapLinear, Deep])
def test_a_probabilitys_map_is_the_probability_times_the_log_probabilitys(
    method: str, build: Callable[[], nn.Module]
) -> None:
    model, x = double(build), x64()
    share = seen(model, x, probability(1))
    log = seen(model, x, log_probability(1))
    same(FUNCTIONS[method](share), share.scores[:, None, None] * FUNCTIONS[method](log))
    same(log.scores.exp(), share.scores)


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("build", [GapLinear, Deep])
def test_the_maps_of_all_classes_probabilities_sum_to_nothing(method: str, build: Callable[[], nn.Module]) -> None:
    model, x = double(build), x64()
    maps = torch.stack([FUNCTIONS[method](seen(model, x, probability(index))) for index in range(CLASSES)])
    assert maps.abs().max() > 0
    assert maps.sum(dim=0).abs().max() <= EXACT * maps.abs().max()


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", LINEAR)
def test_a_margins_map_is_the_difference_of_two_maps(method: str) -> None:
    model, x = double(Deep), x64()
    of, over = (FUNCTIONS[method](seen(model, x, class_logit(index))) for index in (3, 1))
    same(FUNCTIONS[method](seen(model, x, margin(3, 1))), of - over)


# ----------------------------------------------------------------------------------------------------- method by method


@pytest.mark.proves("hires-cam")
@pytest.mark.parametrize("index", range(CLASSES))
def test_hires_cam_sums_to_the_score_without_its_bias_under_one_linear_layer(index: int) -> None:
    model, x = double(Flat), x64()
    one = seen(model, x, index, layer="relu")
    same(cams.hires_cam(one).sum(dim=(1, 2)), one.scores - model.head.bias.detach()[index])


@pytest.mark.proves("grad-cam", "hires-cam")
def test_where_the_model_looked_away_hires_cam_is_empty_and_grad_cam_is_not() -> None:
    """The weights lie only on the left, what is seen only on the right: nothing there can have raised the score."""
    model = double(lambda: Echo(channels=1, h=4, w=4, classes=2))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.weight.view(2, 1, 4, 4)[0, :, :, :2] = 0.8
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[..., 2:] = 1
    one = seen(model, x, 0, layer="echo")
    assert float(one.scores[0]) == 0
    assert not cams.hires_cam(one).any()
    wanted = torch.zeros(1, 4, 4, dtype=torch.float64)
    wanted[..., 2:] = 0.4
    same(cams.grad_cam(one), wanted)
    same(attribute(x, adapt(model, layers=["echo"]), target=0), wanted)


def test_hires_cam_keeps_what_speaks_against_the_class() -> None:
    found = attribute(x64(), adapt(double(Deep), layers=["layer"]), method="hires-cam", target=0)
    assert float(found.min()) < 0 < float(found.max())


@pytest.mark.proves("xgrad-cam")
@pytest.mark.proves("hires-cam", says="keeps the sum of gradient times activation")
def test_xgrad_cam_keeps_the_sum_of_gradient_times_activation() -> None:
    one = seen(double(Deep), x64())
    wanted = (one.gradients * one.activations).sum(dim=(1, 2, 3))
    same(cams.xgrad_cam(one).sum(dim=(1, 2)), wanted)
    same(cams.hires_cam(one).sum(dim=(1, 2)), wanted)


@pytest.mark.proves("xgrad-cam")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_xgrad_cam_gives_no_weight_to_a_channel_that_sums_to_nothing(dtype: torch.dtype) -> None:
    values = torch.tensor([0.1, 0.2, -0.3, 0.7, -0.6, -0.1], dtype=dtype)  # sums to rounding, not to 0
    a = torch.stack([values.view(2, 3), torch.ones(2, 3, dtype=dtype)])[None]
    g = torch.arange(12, dtype=dtype).view(1, 2, 2, 3)
    found = cams.xgrad_cam(made(a, g))
    assert torch.equal(found, cams.xgrad_cam(made(a[:, 1:], g[:, 1:])))


@pytest.mark.proves("grad-cam++")
def test_grad_cam_plus_plus_is_finite_and_has_no_negative_weight_where_its_formula_has_no_meaning() -> None:
    a = torch.full((1, 1, 2, 2), -1.0, dtype=torch.float64)  # sums to -4
    for gradient in (0.5, 0.6, 1e3):  # 2 + sum A * G is 0, then below
        found = cams.grad_cam_plus_plus(made(a, torch.full_like(a, gradient)))
        assert torch.equal(found, torch.zeros(1, 2, 2, dtype=torch.float64))
    below = cams.grad_cam_plus_plus(made(a, torch.full_like(a, 0.4)))
    same(below, torch.full((1, 2, 2), -4 * 0.4 / (2 - 4 * 0.4), dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-6])
def test_grad_cam_plus_plus_of_a_tiny_gradient_does_not_vanish(scale: float) -> None:
    """In its limit alpha is 1/2 everywhere, so that the weight is half the sum of the positive gradients."""
    a = torch.full((1, 2, 3, 3), 1e-3, dtype=torch.float32)
    g = torch.full_like(a, scale)
    assert_close(cams.grad_cam_plus_plus(made(a, g)), torch.full((1, 3, 3), 2 * 9 * scale / 2 * 1e-3), 1e-6)


@pytest.mark.proves("layer-cam")
def test_layer_cam_never_falls_below_hires_cam_where_activations_are_not_negative() -> None:
    one = seen(double(Deep), x64())
    assert (cams.layer_cam(one) >= cams.hires_cam(one)).all()


@pytest.mark.proves("grad-cam-elementwise")
def test_grad_cam_elementwise_is_never_negative() -> None:
    one = seen(double(lambda: Deep()), x64())
    shifted = made(one.activations - 0.3, one.gradients)
    for each in (one, shifted):
        assert (cams.grad_cam_elementwise(each) >= 0).all()
        assert (cams.grad_cam_elementwise(each) >= cams.hires_cam(each)).all()


@pytest.mark.proves("grad-cam-elementwise", "layer-cam")
def test_grad_cam_elementwise_is_layer_cam_where_activations_are_not_negative() -> None:
    one = seen(double(Deep), x64())
    same(cams.grad_cam_elementwise(one), cams.layer_cam(one))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", FUNCTIONS)
def test_half_precision_is_summed_in_float32(method: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 600, 3, 3, generator=generator).to(dtype)
    g = torch.randn(1, 600, 3, 3, generator=generator).to(dtype)
    found = FUNCTIONS[method](made(a, g))
    assert found.dtype == torch.float32
    assert_close(found, FUNCTIONS[method](made(a.double(), g.double())), 1e-5)


def test_the_registry_runs_these_very_functions() -> None:
    one = seen(double(Plain), x64(), layer="relu2")
    for name, function in FUNCTIONS.items():
        assert list_methods()[name].function is function
        assert torch.equal(run(list_methods()[name], one, {}), function(one))
