"""Against pytorch-grad-cam: the same raw maps where it follows the definition, and each of its faults by name.

Its raw map is taken before its own scaling, through `get_cam_image`; `forward` rectifies, subtracts the minimum,
divides by the maximum and resizes.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import MODELS, Echo, Plain, assert_close, images, seeded
from oracles import ORACLES, grad_cam_plus_plus_weights, xgrad_cam

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

PEERS: dict[str, Any] = {
    "grad-cam": peer.GradCAM,
    "grad-cam++": peer.GradCAMPlusPlus,
    "xgrad-cam": peer.XGradCAM,
    "hires-cam": peer.HiResCAM,
    "layer-cam": peer.LayerCAM,
    "grad-cam-elementwise": peer.GradCAMElementWise,
}
RIGHT = [method for method in PEERS if method != "grad-cam++"]
NETS = ["plain", "residual", "flat", "regularised"]


class Loud(nn.Module):
    """Scores so large that what the peer adds to a denominator is nothing against it."""

    layer = "model.relu2"

    def __init__(self) -> None:
        super().__init__()
        self.model = Plain()

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.model(x)


def by_peer(method: str, model: nn.Module, layer: str, x: Tensor, index: int) -> tuple[Tensor, np.ndarray, Any]:
    """(its raw map, its finished map, (A, G) as it captured them)."""
    model = model.eval().requires_grad_(True)
    module = model.get_submodule(layer)
    targets = [ClassifierOutputTarget(index)] * len(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PEERS[method](model=model, target_layers=[module]) as cam:
            finished = cam(input_tensor=x, targets=targets)
            a, g = cam.activations_and_grads.activations[0].numpy(), cam.activations_and_grads.gradients[0].numpy()
            raw = cam.get_cam_image(x, module, targets, a, g, False)
    return torch.from_numpy(np.asarray(raw)), finished, (a, g)


def ours(method: str, model: nn.Module, layer: str, x: Tensor, index: int) -> Tensor:
    return sightline.attribute(x, sightline.adapt(model, layers=[layer]), method=method, target=index)


def by_definition(method: str, a: np.ndarray, g: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack([ORACLES[method](one, other) for one, other in zip(a, g, strict=True)]))


def compared(method: str, raw: Tensor) -> Tensor:
    return raw if method == "hires-cam" else raw.relu()


def resnet18() -> nn.Module:
    from torchvision.models import resnet18 as build

    return seeded(lambda: build(weights=None))


# --------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.agrees("pytorch-grad-cam", param="method")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", RIGHT)
def test_raw_maps_of_small_networks_are_the_peers(method: str, net: str) -> None:
    model = seeded(MODELS[net])
    x = images(2)
    for index in range(3):
        raw, _, _ = by_peer(method, seeded(MODELS[net]), model.layer, x, index)
        assert_close(ours(method, model, model.layer, x, index), compared(method, raw), 1e-5)


@pytest.mark.agrees("pytorch-grad-cam", param="method")
@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer2.0"])
@pytest.mark.parametrize("method", RIGHT)
def test_raw_maps_of_resnet18_are_the_peers(method: str, layer: str) -> None:
    model, x = resnet18(), torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    raw, _, _ = by_peer(method, resnet18(), layer, x, 7)
    assert_close(ours(method, model, layer, x, 7), compared(method, raw), 1e-5)


@pytest.mark.agrees("pytorch-grad-cam", "grad-cam++")
def test_grad_cam_plus_plus_of_large_gradients_is_the_peers() -> None:
    model, x = seeded(Loud), images(2)
    raw, _, (_, g) = by_peer("grad-cam++", seeded(Loud), Loud.layer, x, 1)
    assert np.abs(g[g != 0]).min() > 1
    assert_close(ours("grad-cam++", model, Loud.layer, x, 1), raw.relu(), 1e-5)


# ------------------------------------------------------------------------------------------------ the peer's own faults


@pytest.mark.differs("pytorch-grad-cam", "grad-cam++")
def test_the_peers_grad_cam_plus_plus_shrinks_the_weights_and_ours_is_the_definition() -> None:
    """It adds 1e-6 to a denominator near 7e-7, where the short form 1 / (2 + G * sum A) needs nothing added."""
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    raw, _, (a, g) = by_peer("grad-cam++", resnet18(), "layer4", x, 7)
    definition = by_definition("grad-cam++", a, g)
    assert_close(ours("grad-cam++", resnet18(), "layer4", x, 7), definition, 1e-5)
    true = np.array(grad_cam_plus_plus_weights(a[0], g[0]))
    theirs = peer.GradCAMPlusPlus.get_cam_weights(None, x, None, None, a, g)[0]
    shares = theirs[true > 0] / true[true > 0]
    assert shares.max() < 0.7
    assert shares.min() < 0.01
    assert (raw.double().relu() - definition).abs().max() > 0.3 * definition.abs().max()


@pytest.mark.differs("pytorch-grad-cam", "grad-cam++")
def test_the_peers_grad_cam_plus_plus_loses_all_of_a_tiny_gradient_and_ours_does_not() -> None:
    model = seeded(Echo)
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight.abs() * 1e-6)
    x = torch.rand(1, *model.grid, generator=torch.Generator().manual_seed(0)) + 0.1
    raw, _, (a, g) = by_peer("grad-cam++", model, "echo", x.clone().requires_grad_(), 0)
    definition = by_definition("grad-cam++", a, g)
    assert_close(ours("grad-cam++", model, "echo", x, 0), definition, 1e-5)
    assert float(raw.max()) < 1e-3 * float(definition.max())


def constant(channels: int = 2) -> tuple[nn.Module, Tensor]:
    """A model whose map is one positive number everywhere."""
    model = Echo(channels=channels, h=4, w=4, classes=2)
    nn.init.constant_(model.head.weight, 0.5)
    return model.eval(), torch.ones(1, channels, 4, 4)


@pytest.mark.differs("pytorch-grad-cam", param="method")
@pytest.mark.parametrize("method", PEERS)
def test_the_peer_turns_a_constant_positive_map_black_and_ours_stays(method: str) -> None:
    """It subtracts the minimum, which for a map of one value leaves nothing."""
    model, x = constant()
    _, finished, (a, g) = by_peer(method, model, "echo", x.clone().requires_grad_(), 0)
    found = ours(method, model, "echo", x, 0)
    assert_close(found, by_definition(method, a, g), 1e-5)
    assert float(found.min()) == float(found.max()) > 0
    assert not finished.any()


@pytest.mark.differs("pytorch-grad-cam", "hires-cam")
def test_the_peer_sets_the_weakest_place_to_nothing_and_ours_keeps_its_share() -> None:
    """Min-max: a place with half of the strongest evidence is drawn as if it had none."""
    model, x = constant()
    x[..., 2:, :] = 0.5
    _, finished, (a, g) = by_peer("hires-cam", model, "echo", x.clone().requires_grad_(), 0)
    found = ours("hires-cam", model, "echo", x, 0)
    assert_close(found, by_definition("hires-cam", a, g), 1e-6)
    assert float(found.min() / found.max()) == pytest.approx(0.5)
    assert finished.min() == 0


@pytest.mark.differs("pytorch-grad-cam", "hires-cam")
def test_the_peers_hires_cam_is_cut_at_nothing_and_ours_is_signed() -> None:
    model, x = seeded(MODELS["flat"]), images(1)
    raw, finished, (a, g) = by_peer("hires-cam", seeded(MODELS["flat"]), "relu", x, 1)
    found = ours("hires-cam", model, "relu", x, 1)
    assert_close(found, by_definition("hires-cam", a, g), 1e-5)
    assert float(found.min()) < 0
    assert float(raw.min()) < 0, "its formula is right, its result is not"
    assert finished.min() == 0


@pytest.mark.differs("pytorch-grad-cam", "grad-cam")
def test_two_weak_classes_look_as_strong_as_any_in_the_peer_and_keep_their_strength_in_ours() -> None:
    model, x = seeded(Plain), images(1)
    quiet = seeded(Plain)
    with torch.no_grad():
        quiet.head.weight.mul_(0.01)
    loud_finished, quiet_finished = (by_peer("grad-cam", each, Plain.layer, x, 1)[1] for each in (model, quiet))
    loud, weak = (ours("grad-cam", each, Plain.layer, x, 1) for each in (model, quiet))
    assert_close(weak * 100, loud, 1e-5)
    assert np.abs(loud_finished - quiet_finished).max() < 1e-2, "with the peer, one cannot be told from the other"


@pytest.mark.differs("pytorch-grad-cam", "xgrad-cam")
def test_the_peers_xgrad_cam_explodes_on_a_channel_that_sums_to_nothing_and_ours_is_the_definition() -> None:
    model = seeded(lambda: Echo(channels=2, h=2, w=2, classes=2))
    x = torch.tensor([[[[1.0, -1.0], [2.0, -2.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    with torch.no_grad():
        model.head.weight[0] = torch.tensor([0.5, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.4])
    raw, _, (a, g) = by_peer("xgrad-cam", model, "echo", x.clone().requires_grad_(), 0)
    definition = torch.from_numpy(xgrad_cam(a[0], g[0]))[None]
    assert_close(ours("xgrad-cam", model, "echo", x, 0), definition, 1e-6)
    assert float(raw.abs().max()) > 1e5 * float(definition.max())
