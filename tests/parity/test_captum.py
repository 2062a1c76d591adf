"""Against captum: the same raw maps, and where its way from the layer to the picture is not ours."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from conftest import MODELS, Plain, assert_close, by_autograd, images, seeded
from oracles import grad_cam_unrectified, place
from sightline.models.view import View

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    attr: Any = pytest.importorskip("captum.attr")

NETS = ["plain", "residual", "flat", "regularised", "dense"]


def resnet18() -> nn.Module:
    from torchvision.models import resnet18 as build

    return seeded(lambda: build(weights=None))


def by_peer(model: nn.Module, layer: str, x: Tensor, index: int) -> dict[str, Tensor]:
    """Its unrectified Grad-CAM and the sum over channels of its gradient x activation, (B, h, w) at the layer."""
    module = model.eval().get_submodule(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grad_cam = attr.LayerGradCam(model, module).attribute(x, target=index)[:, 0]
        product = attr.LayerGradientXActivation(model, module).attribute(x, target=index).sum(dim=1)
    return {"grad-cam": grad_cam.detach(), "hires-cam": product.detach()}


def ours(method: str, model: nn.Module, layer: str, x: Tensor, index: int) -> Tensor:
    return sightline.attribute(x, sightline.adapt(model, layers=[layer]), method=method, target=index)


@pytest.mark.agrees("captum", "grad-cam", "hires-cam")
@pytest.mark.parametrize("net", NETS)
def test_raw_maps_of_small_networks_are_the_peers(net: str) -> None:
    model, x = (
        seeded(lambda: MODELS["residual"](inplace=False)) if net == "residual" else seeded(MODELS[net]),
        images(2),
    )
    # captum reads what the layer said only at the end, after a functional in-place relu overwrote it in the dense net
    layer = "stem" if net == "dense" else model.layer
    for index in range(3):
        raw = by_peer(model, layer, x, index)
        assert_close(ours("grad-cam", model, layer, x, index), raw["grad-cam"].relu(), 1e-5)
        assert_close(ours("hires-cam", model, layer, x, index), raw["hires-cam"], 1e-5)


@pytest.mark.agrees("captum", "grad-cam", "hires-cam")
@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_raw_maps_of_resnet18_are_the_peers(layer: str) -> None:
    model, x = resnet18(), torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    raw = by_peer(resnet18(), layer, x, 7)
    assert_close(ours("grad-cam", model, layer, x, 7), raw["grad-cam"].relu(), 1e-5)
    assert_close(ours("hires-cam", model, layer, x, 7), raw["hires-cam"], 1e-5)


@pytest.mark.differs("captum", "grad-cam")
def test_the_peers_default_grad_cam_is_not_rectified_and_ours_is_the_definition() -> None:
    model, x = seeded(Plain), images(1)
    a, g, _ = by_autograd(model, Plain.layer, x, lambda output: output[:, 1])
    definition = torch.from_numpy(grad_cam_unrectified(a[0].numpy(), g[0].numpy()))[None]
    found, theirs = ours("grad-cam", model, Plain.layer, x, 1), by_peer(model, Plain.layer, x, 1)["grad-cam"]
    assert_close(found, definition.relu(), 1e-5)
    assert float(theirs.min()) < 0 <= float(found.min())


@pytest.mark.differs("captum", "grad-cam")
def test_the_peer_draws_squares_where_ours_is_bilinear_on_the_photograph() -> None:
    """Its `interpolate` takes the nearest cell unless told otherwise."""
    model = seeded(Plain)
    size = (16, 16)

    def preprocess(photo: Image.Image) -> tuple[Tensor, View]:
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
        return pixels, View(photo.size, size, (0, 0), size)

    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    adapter = sightline.adapt(model, layers=[Plain.layer], preprocess=preprocess)
    heatmap = sightline.explain(photo, adapter, target=1)
    x = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    raw = by_peer(model, Plain.layer, x, 1)["grad-cam"].relu()
    assert_close(torch.from_numpy(heatmap.raw)[None], raw, 1e-5)

    definition = torch.from_numpy(place(heatmap.raw, size, size, (0, 0), size))
    theirs = attr.LayerAttribution.interpolate(raw[:, None], size)[0, 0]
    assert_close(torch.from_numpy(heatmap.values), definition, 1e-5)
    assert torch.equal(theirs, raw[0].repeat_interleave(2, 0).repeat_interleave(2, 1)), "squares"
    assert (theirs - definition).abs().max() > 0.1 * definition.max()


@pytest.mark.agrees("captum", "occlusion", note="laid out on pixels; to 1e-6")
@pytest.mark.parametrize(("patch", "stride"), [(8, 4), (8, 8), (7, 3), (5, 5), (10, 4)])
@pytest.mark.parametrize("size", [(32, 32), (31, 37), (28, 20)])
def test_maps_of_covered_squares_are_the_peers(size: tuple[int, int], patch: int, stride: int) -> None:
    model, x = seeded(Plain), torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    found = sightline.attribute(
        x, model, method="occlusion", target=[1, 2], options={"patch": patch, "stride": stride, "baseline": 0.25}
    )
    theirs = attr.Occlusion(model.double()).attribute(
        x.double(),
        target=torch.tensor([1, 2]),
        sliding_window_shapes=(3, patch, patch),
        strides=(3, stride, stride),
        baselines=0.25,
    )
    rows, columns = size[0] // found.shape[1], size[1] // found.shape[2]
    by_pixel = found.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    assert theirs.abs().max() > 1e-3
    assert float((by_pixel - theirs[:, 0]).abs().max()) <= 1e-6


@pytest.mark.agrees("captum", "occlusion", "integrated-gradients", "deep-lift", note="to 1e-6")
def test_maps_of_a_volume_are_the_peers() -> None:
    torch.manual_seed(2)
    layers = nn.Conv3d(2, 4, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 3, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(2, 2, 9, 6, 8, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "occlusion": attr.Occlusion(model).attribute(
                x, target=2, sliding_window_shapes=(2, 3, 2, 2), strides=(2, 2, 1, 1), baselines=0.25
            )[:, 0],
            "integrated-gradients": attr.IntegratedGradients(model).attribute(x, 0.25, target=2, n_steps=20).sum(dim=1),
            "deep-lift": attr.DeepLift(model).attribute(x, 0.25, target=2).sum(dim=1),
        }
    options = OPTIONS | {"occlusion": {"baseline": 0.25, "patch": 2, "stride": 1}}  # three slices deep, and 1.5 on: two
    for method, their in theirs.items():
        found = sightline.attribute(x, model, method=method, target=2, options=options[method])
        assert their.abs().max() > 1e-3
        assert_close(found, their.detach(), 1e-6)


# -------------------------------------------------------------------------------------------------- gradients of pixels


def of_pixels(method: str, model: nn.Module, x: Tensor, layer: str) -> Tensor:
    """Its map of class 2, channels put together as ours are, (B, H, W)."""
    model = model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "saliency": lambda: attr.Saliency(model).attribute(x, target=2).amax(dim=1),
            "input-x-gradient": lambda: attr.InputXGradient(model).attribute(x, target=2).sum(dim=1),
            "integrated-gradients": lambda: (
                attr.IntegratedGradients(model).attribute(x, baselines=0.25, target=2, n_steps=20).sum(dim=1)
            ),
            "guided-backprop": lambda: attr.GuidedBackprop(model).attribute(x, target=2).sum(dim=1),
            "deconvnet": lambda: attr.Deconvolution(model).attribute(x, target=2).sum(dim=1),
            "guided-grad-cam": lambda: (
                attr.GuidedGradCam(model, model.get_submodule(layer))
                .attribute(x, target=2, interpolate_mode="bilinear")
                .sum(dim=1)
            ),
            "deep-lift": lambda: attr.DeepLift(model).attribute(x, baselines=0.25, target=2).sum(dim=1),
        }[method]()
    return found.detach()


OPTIONS: dict[str, dict[str, Any]] = {
    "integrated-gradients": {"baseline": 0.25, "steps": 20},
    "deep-lift": {"baseline": 0.25},
}


@pytest.mark.agrees("captum", param="method")
@pytest.mark.parametrize("net", ["plain", "flat"])
@pytest.mark.parametrize(
    "method",
    [
        "saliency",
        "input-x-gradient",
        "integrated-gradients",
        "guided-backprop",
        "deconvnet",
        "guided-grad-cam",
        "deep-lift",
    ],
)
def test_gradients_of_pixels_are_the_peers(method: str, net: str) -> None:
    model, x = seeded(MODELS[net], dtype=torch.float64), images(2, dtype=torch.float64)
    wanted = of_pixels(method, model, x, model.layer)
    found = sightline.attribute(x, model, method=method, target=2, layer=model.layer, options=OPTIONS.get(method, {}))
    assert wanted.any()
    # Its nodes of the integral are of single precision.
    assert_close(found, wanted, 1e-5 if method == "integrated-gradients" else 1e-9)


class Reused(nn.Module):
    """One ReLU that runs twice, as in torchvision's residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.relu, self.head = nn.ReLU(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.second(self.relu(self.first(x)))).mean(dim=(2, 3)))


class Apart(Reused):
    """The same network with a ReLU for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.second(self.relu(self.first(x)))).mean(dim=(2, 3)))


@pytest.mark.differs(
    "captum", "deep-lift", says="it fails on a ReLU that runs twice; ours is its map with one for each place"
)
def test_a_relu_that_runs_twice_is_followed_each_time() -> None:
    x = images(2, dtype=torch.float64)
    reused, apart = seeded(Reused, dtype=torch.float64), seeded(Apart, dtype=torch.float64)
    with pytest.raises((AssertionError, RuntimeError)):
        of_pixels("deep-lift", reused, x, "")
    found = sightline.attribute(x, reused, method="deep-lift", target=2, options=OPTIONS["deep-lift"])
    assert_close(found, of_pixels("deep-lift", apart, x, ""), 1e-9)
    rises = (reused(x) - reused(torch.full_like(x, 0.25)))[:, 2].detach()
    assert_close(found.sum(dim=(1, 2)), rises, 1e-9)


@pytest.mark.differs(
    "captum", "guided-backprop", "deconvnet", says="it does not see a ReLU that is called as a function"
)
@pytest.mark.parametrize("method", ["guided-backprop", "deconvnet"])
def test_a_relu_that_is_a_function_is_seen(method: str) -> None:
    class Called(Apart):
        def forward(self, x: Tensor) -> Tensor:
            inner = torch.relu(self.first(x))
            return self.head(torch.relu(self.second(inner)).mean(dim=(2, 3)))

    x = images(1, dtype=torch.float64)
    called, apart = seeded(Called, dtype=torch.float64), seeded(Apart, dtype=torch.float64)
    found = sightline.attribute(x, called, method=method, target=2)
    assert_close(found, of_pixels(method, apart, x, ""), 1e-9)
    assert float((of_pixels(method, called, x, "") - found).abs().max()) > 1e-3 * float(found.abs().max())
