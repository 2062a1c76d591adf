"""The other methods against pytorch-grad-cam and torch-cam: equal where they follow the definition, by name where not."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracles_more as oracles
import sightline
from conftest import MODELS, Plain, assert_close, images, seeded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("pytorch_grad_cam")
    torchcam = pytest.importorskip("torchcam.methods")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers'


def by_peer(kind: Any, model: nn.Module, layer: str, x: Tensor, index: int) -> tuple[Any, Any, Any]:
    """pytorch-grad-cam's raw map before it scales it, and (A, G) as it saw them."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    module = model.get_submodule(layer)
    targets = [ClassifierOutputTarget(index)] * len(x)
    with kind(model=model, target_layers=[module]) as cam:
        cam(input_tensor=x, targets=targets)
        seen = cam.activations_and_grads
        a, g = seen.activations[0], seen.gradients[0] if seen.gradients else None
        if cam.detach:
            a, g = a.numpy(), g.numpy() if g is not None else None
        raw = cam.get_cam_image(x, module, targets, a, g, False)
    return np.asarray(raw), a, g


def ours(method: str, model: nn.Module, layer: str, x: Tensor, index: int, **options: Any) -> Tensor:
    return sightline.attribute(x, model, layer=layer, method=method, target=index, options=options)


def up_to_sign(found: Tensor, other: Any) -> Tensor:
    other = torch.from_numpy(np.asarray(other))
    return other if float((found * other).sum()) >= 0 else -other


@pytest.mark.agrees("pytorch-grad-cam", "ablation-cam")
@pytest.mark.parametrize("index", range(3))
def test_ablation_cam_is_pytorch_grad_cams_times_the_score(index: int) -> None:
    model, x = seeded(MODELS["residual"]), images(1)
    raw, _, _ = by_peer(peer.AblationCAM, model, model.layer, x, index)
    score = float(model(x)[0, index].detach())
    assert_close(ours("ablation-cam", model, model.layer, x, index) + 1, torch.from_numpy(raw * score).relu() + 1, 1e-5)


@pytest.mark.differs("pytorch-grad-cam", "ablation-cam")
def test_pytorch_grad_cam_turns_ablation_round_where_the_score_is_negative() -> None:
    model, x = seeded(MODELS["residual"]), images(1)
    with torch.no_grad():
        model.head.bias -= 50
    raw, _, _ = by_peer(peer.AblationCAM, model, model.layer, x, 1)
    found = ours("ablation-cam", model, model.layer, x, 1)
    score = float(model(x)[0, 1].detach())
    assert score < 0
    assert_close(found + 1, torch.from_numpy(raw * score).relu() + 1, 1e-4)
    assert found.any()
    assert not (torch.from_numpy(raw).relu() * found).any(), "it marks what we don't"


@pytest.mark.differs("pytorch-grad-cam", "ablation-cam")
def test_pytorch_grad_cam_ablates_signed_layers_with_minus_ten_million() -> None:
    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean(dim=(2, 3)))

    model, x = seeded(Signed), images(1)
    raw, a, _ = by_peer(peer.AblationCAM, model, "conv", x, 1)
    assert a.min() < 0
    found = ours("ablation-cam", model, "conv", x, 1)
    assert np.abs(raw).max() > 1e3 * float(found.abs().max())


@pytest.mark.agrees("pytorch-grad-cam", "kpca-cam", note="to 1e-4")
@pytest.mark.parametrize("net", ["plain", "residual"])
def test_kpca_cam_is_pytorch_grad_cams_up_to_its_sign(net: str) -> None:
    pytest.importorskip("sklearn")
    model, x = seeded(MODELS[net]), images(1)
    raw, _, _ = by_peer(peer.KPCA_CAM, model, model.layer, x, 1)
    found = ours("kpca-cam", model, model.layer, x, 1)
    assert_close(found, up_to_sign(found, raw), 1e-4)


@pytest.mark.differs("pytorch-grad-cam", "eigen-cam")
@pytest.mark.parametrize("net", ["plain", "residual"])
def test_pytorch_grad_cam_centres_eigen_cam(net: str) -> None:
    model, x = seeded(MODELS[net]), images(1)
    raw, a, _ = by_peer(peer.EigenCAM, model, model.layer, x, 1)
    found = ours("eigen-cam", model, model.layer, x, 1)
    centred = torch.from_numpy(oracles.eigen_cam(a[0].astype(np.float64), centre=True))[None]
    assert_close(up_to_sign(centred, raw), centred, 1e-5)
    assert not torch.allclose(found, up_to_sign(found, raw), atol=0.05 * float(found.max()))


@pytest.mark.agrees("pytorch-grad-cam", "finer-cam")
@pytest.mark.parametrize("net", ["plain", "residual", "flat"])
def test_finer_cam_of_the_prediction_is_pytorch_grad_cams(net: str) -> None:
    model, x = seeded(MODELS[net]), images(1)
    best = int(model(x).argmax())
    watched = copy.deepcopy(model).requires_grad_(True)
    module = watched.get_submodule(model.layer)
    cam = peer.FinerCAM(watched, [module])
    cam(input_tensor=x)
    seen = cam.base_cam.activations_and_grads
    a, g = seen.activations[0].numpy(), seen.gradients[0].numpy()
    raw = cam.base_cam.get_cam_image(x, module, None, a, g, False)
    seen.release()
    assert_close(ours("finer-cam", model, model.layer, x, best) + 1, torch.from_numpy(raw).relu() + 1, 1e-5)


@pytest.mark.differs("pytorch-grad-cam", "fem")
def test_pytorch_grad_cam_weighs_fem_by_how_many_cells_are_rare() -> None:
    model, x = seeded(MODELS["plain"]), images(1)
    raw, a, _ = by_peer(peer.FEM, model, "relu2", x, 1)
    found = ours("fem", model, "relu2", x, 1)[0].numpy()
    assert np.allclose(found, oracles.fem(a[0].astype(np.float64)), atol=1e-5)
    assert not np.allclose(found / found.max(), raw[0] / raw.max(), atol=0.05)


class _AlignCornersOff(nn.Module):
    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False)


@pytest.mark.agrees("pytorch-grad-cam", "score-cam")
@pytest.mark.differs("pytorch-grad-cam", "score-cam", says="as installed, it resizes the masks from corner to corner")
@pytest.mark.parametrize("net", ["plain", "residual", "flat"])
def test_score_cam_is_pytorch_grad_cams_once_it_resizes_by_cell_areas(
    net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = seeded(MODELS[net]), images(1)
    raw, _, _ = by_peer(peer.ScoreCAM, model, model.layer, x, 1)
    found = ours("score-cam", model, model.layer, x, 1)
    assert not torch.allclose(found, torch.from_numpy(raw).relu(), atol=1e-6 * float(found.max()))
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", _AlignCornersOff)
    raw, _, _ = by_peer(peer.ScoreCAM, model, model.layer, x, 1)
    assert_close(found, torch.from_numpy(raw).relu(), 1e-5)


@pytest.mark.agrees("torch-cam", "cam")
def test_cam_is_torch_cams_before_it_cuts_and_stretches() -> None:
    model, x = seeded(Plain), images(2)
    with torchcam.CAM(copy.deepcopy(model), "relu2", "head", input_shape=(3, 16, 16)) as cam:
        scores = cam.model(x)
        (other,) = cam([1, 2], scores, normalized=False)
    found = torch.cat([ours("cam", model, "relu2", x[[k]], k + 1) for k in range(2)])
    assert_close(found.relu() + 1, other.detach().relu() + 1, 1e-5)


@pytest.mark.differs("torch-cam", "score-cam")
def test_torch_cam_stretches_score_cams_masks_before_it_resizes_them() -> None:
    model, x = seeded(Plain), images(1)
    with torchcam.ScoreCAM(copy.deepcopy(model), "relu2", input_shape=(3, 16, 16)) as cam:
        scores = cam.model(x)
        (other,) = cam(1, scores, normalized=False)
    found = ours("score-cam", model, "relu2", x, 1)
    assert not torch.allclose(found, other.detach(), atol=1e-6 * float(found.max()))
    assert torch.allclose(found / found.max(), other.detach() / other.detach().max(), atol=0.1)


@pytest.mark.differs("pytorch-grad-cam", "full-grad")
def test_the_peers_full_grad_stretches_every_channel_and_ours_all_channels_of_a_layer() -> None:
    class Quiet(Plain):
        """Its second convolution has one loud channel and several that hardly say anything."""

        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.conv2.bias[1:] *= 1e-6

    model, x = seeded(Quiet), images(1)
    with peer.FullGrad(model=copy.deepcopy(model), target_layers=[]) as cam:
        other = cam(input_tensor=x, targets=[ClassifierOutputTarget(1)])[0]
    found = ours("full-grad", model, "relu2", x, 1)[0].numpy()
    assert not np.allclose(found / found.max(), other / other.max(), atol=0.05)
