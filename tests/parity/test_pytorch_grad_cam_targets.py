"""Against pytorch-grad-cam's targets of segmentation, boxes and likeness: the same raw maps, and where its boxes are others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import Plain, assert_close, images, seeded
from made_dense import BOXES, TwoBoxes, plainly, prepared
from oracles_targets import box_score, overlap

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget, SemanticSegmentationTarget

PEERS: dict[str, Any] = {
    "grad-cam": peer.GradCAM,
    "xgrad-cam": peer.XGradCAM,
    "hires-cam": peer.HiResCAM,
    "layer-cam": peer.LayerCAM,
    "grad-cam-elementwise": peer.GradCAMElementWise,
}


class Seg(nn.Module):
    """A small segmentation, half as fine as its input."""

    layer = "relu"

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.mix = nn.Conv2d(6, 6, 3, padding=1)
        self.draw = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(self.mix(self.relu(self.conv(x))).tanh())


def by_peer(method: str, model: nn.Module, layer: str, x: Tensor, targets: list[Callable[[Any], Tensor]]) -> Tensor:
    """Its raw map, before it rectifies and scales."""
    module = model.eval().requires_grad_(True).get_submodule(layer)
    x = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PEERS[method](model=model, target_layers=[module]) as cam:
            cam(input_tensor=x, targets=targets)
            a, g = cam.activations_and_grads.activations[0].numpy(), cam.activations_and_grads.gradients[0].numpy()
            raw = torch.from_numpy(np.asarray(cam.get_cam_image(x, module, targets, a, g, False)))
    return raw if method == "hires-cam" else raw.relu()


def ours(method: str, model: nn.Module, layer: str, x: Tensor, target: Any, **more: Any) -> Tensor:
    return sightline.attribute(x, sightline.adapt(model, layers=[layer], **more), method=method, target=target)


# -------------------------------------------------------------------------------------------------------- segmentation


@pytest.mark.agrees("pytorch-grad-cam", param="method", says="the map of a class in a region of a segmentation")
@pytest.mark.parametrize("method", PEERS)
def test_maps_of_a_region_are_the_peers(method: str) -> None:
    x = images(2, size=24)
    region = np.random.default_rng(0).random((24, 24)) < 0.4
    mask = torch.from_numpy(region).float().reshape(12, 2, 12, 2).mean(dim=(1, 3)).numpy()
    for index in range(3):
        raw = by_peer(method, seeded(Seg), "relu", x, [SemanticSegmentationTarget(index, mask)] * 2)
        found = ours(method, seeded(Seg), "relu", x, sightline.segment(index, region=region))
        assert_close(found, raw, 1e-5)


@pytest.mark.agrees("pytorch-grad-cam", param="method", says="the map of a class of a segmentation where it is seen")
@pytest.mark.parametrize("method", PEERS)
def test_maps_of_a_class_where_it_is_seen_are_the_peers(method: str) -> None:
    x, model = images(1, size=24), seeded(Seg)
    seen = model(x)[0].argmax(dim=0)
    for index in seen.unique().tolist():
        mask = (seen == index).float().numpy()
        raw = by_peer(method, seeded(Seg), "relu", x, [SemanticSegmentationTarget(index, mask)])
        assert_close(ours(method, model, "relu", x, index), raw, 1e-5)


# ------------------------------------------------------------------------------------------------------------ likeness


def like(there: Tensor) -> Callable[[Tensor], Tensor]:
    """The cosine with a concept's features; the peer has such a target in its tutorials only."""
    return lambda output: torch.cosine_similarity(output, there, dim=0)


@pytest.mark.agrees("pytorch-grad-cam", param="method", says="the map of likeness to another picture")
@pytest.mark.parametrize("method", PEERS)
def test_maps_of_likeness_are_the_peers(method: str) -> None:
    from PIL import Image

    other = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    preprocess, x, model = prepared((16, 16)), images(2), seeded(Plain)
    there = model(preprocess(other)[0][None])[0].detach()
    raw = by_peer(method, seeded(Plain), Plain.layer, x, [like(there)] * 2)
    target = sightline.similarity(other)
    assert_close(ours(method, model, Plain.layer, x, target, task="embedding", preprocess=preprocess), raw, 1e-5)


# --------------------------------------------------------------------------------------------------------------- boxes


def tiny_detector() -> Any:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    built = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=64,
        max_size=96,
        box_score_thresh=0.0,
        rpn_post_nms_top_n_test=20,
        box_detections_per_img=6,
    )
    with torch.no_grad():  # without which random weights are sure of everything
        for part in (built.roi_heads.box_predictor.cls_score, built.roi_heads.box_predictor.bbox_pred):
            part.weight.mul_(0.01)
    return built


@pytest.mark.agrees("pytorch-grad-cam", "grad-cam", "hires-cam", says="the map of a box that a detector found itself")
@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_maps_of_a_models_own_box_are_the_peers(method: str) -> None:
    """Its score is overlap + score, ours overlap times score: at the box itself both have the score's gradient."""
    model = seeded(tiny_detector)
    x = torch.rand(1, 3, 60, 72, generator=torch.Generator().manual_seed(3))
    found = model(x)[0]
    order = found["scores"].argsort(descending=True, stable=True).tolist()
    alone = []
    for number in (1, 2):
        at = order[number - 1]
        box, label = found["boxes"][at].detach(), int(found["labels"][at])
        target = FasterRCNNBoxScoreTarget([label], box[None])
        (level,) = levels_read(model, x, lambda output, t=target: t(output[0]).sum())
        raw = by_peer(method, seeded(tiny_detector), level, x, [target])
        assert_close(ours(method, model, level, x, sightline.instance(number)), raw, 1e-4)
        alone.append(raw)
    assert not torch.equal(*alone)


class Joined(TwoBoxes):
    """With a weight, which the peer looks for, and scores that hang together by a gradient of 0, for its backward to go."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.gain = nn.Parameter(torch.ones(()))

    def found(self, seen: Tensor) -> dict[str, Tensor]:
        found = super().found(seen)
        return found | {"boxes": found["boxes"] + 0 * seen.sum()}


def levels_read(model: nn.Module, x: Tensor, score: Callable[[Any], Tensor]) -> list[str]:
    names = [f"backbone.fpn.layer_blocks.{index}" for index in range(4)]
    kept: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: kept.__setitem__(name, out))
        for name in names
    ]
    gradients = torch.autograd.grad(score(model(x)), [kept[name] for name in names], allow_unused=True)
    for handle in handles:
        handle.remove()
    return [name for name, one in zip(names, gradients, strict=True) if one is not None and one.any()]


def seen_by(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)[0]


@pytest.mark.agrees("pytorch-grad-cam", "grad-cam", "hires-cam", says="the map of a box of one's own, up to a scale")
@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_maps_of_a_box_of_ones_own_are_the_peers_up_to_the_overlap(method: str) -> None:
    x, corners = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), (1.0, 8.0, 16.0, 22.0)
    raw = by_peer(method, Joined(), "see", x, [FasterRCNNBoxScoreTarget([1], torch.tensor([corners]))])
    found = ours(method, TwoBoxes(), "see", x, sightline.box(corners, 1))
    assert_close(found, overlap(corners, BOXES[0]) * raw, 1e-5)


@pytest.mark.differs("pytorch-grad-cam", "grad-cam", "hires-cam")
@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_the_peer_fails_on_a_box_when_one_of_another_class_overlaps_more_and_ours_finds_it(method: str) -> None:
    """It looks at the box of the largest overlap alone, whatever its class; ours is the definition's maximum."""
    corners = (1.0, 8.0, 16.0, 22.0)
    extra = [((1.0, 8.0, 16.0, 22.0), 2, 0.01)]
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="does not require grad"):
        by_peer(method, Joined(extra=extra), "see", x, [FasterRCNNBoxScoreTarget([1], torch.tensor([corners]))])
    model = TwoBoxes(extra=extra)
    found = ours(method, model, "see", x, sightline.box(corners, 1))
    wanted = ours(method, TwoBoxes(), "see", x, sightline.box(corners, 1))
    assert_close(found, wanted, 1e-6)
    said = plainly(seen_by(model, x))
    assert box_score(said, corners, 1) == pytest.approx(overlap(corners, BOXES[0]) * said.scores[0])


@pytest.mark.differs("pytorch-grad-cam", "hires-cam")
def test_the_peer_explains_an_unsure_box_that_overlaps_more_and_ours_the_one_that_counts() -> None:
    corners = (1.0, 8.0, 16.0, 22.0)
    extra = [((1.0, 8.0, 16.0, 22.0), 1, 0.01)]
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    raw = by_peer("hires-cam", Joined(extra=extra), "see", x, [FasterRCNNBoxScoreTarget([1], torch.tensor([corners]))])
    assert not raw.any(), "the unsure box's score stays as it is"
    found = ours("hires-cam", TwoBoxes(extra=extra), "see", x, sightline.box(corners, 1))
    assert found[0, 1:3, 0:2].all()


@pytest.mark.differs("pytorch-grad-cam", "hires-cam")
def test_the_peer_fails_on_a_box_that_overlaps_by_less_than_half_and_ours_has_its_map() -> None:
    corners = (8.0, 8.0, 24.0, 24.0)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert overlap(corners, BOXES[0]) == pytest.approx(1 / 3)
    with pytest.raises(RuntimeError, match="does not require grad"):
        by_peer("hires-cam", Joined(), "see", x, [FasterRCNNBoxScoreTarget([1], torch.tensor([corners]))])
    found = ours("hires-cam", TwoBoxes(), "see", x, sightline.box(corners, 1))
    whole = ours(
        "hires-cam", TwoBoxes(), "see", x, sightline.instance(1 + int(seen_by(TwoBoxes(), x)["scores"].argmax() != 0))
    )
    assert_close(found, whole / 3, 1e-5)


@pytest.mark.agrees("pytorch-grad-cam", "hires-cam", says="the sum of the maps of several boxes")
def test_the_peers_map_of_several_boxes_is_the_sum_of_ours() -> None:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    raw = by_peer("hires-cam", Joined(), "see", x, [FasterRCNNBoxScoreTarget([1, 2], torch.tensor(BOXES))])
    each = [ours("hires-cam", TwoBoxes(), "see", x, sightline.box(box)) for box in BOXES]
    assert_close(each[0] + each[1], raw, 1e-5)
