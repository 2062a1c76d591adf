"""Targets of detectors: which score a box, a class, an instance has, and that its map lies where it is computed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import assert_close, assert_untouched, seeded
from made_dense import BOXES, CELL, TwoBoxes, block_photo, plain_photo, plainly, prepared
from oracles_targets import Found, box_score, instance, mask_overlap, overlap, sigmoid
from sightline.engine import boxes
from sightline.errors import ModelError, NonFiniteError, SightlineError, TargetError
from sightline.models.dense import detector

NAMES = ("background", "cat", "dog")


def noise(size: tuple[int, int] = (32, 32), seed: int = 0) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def model(net: nn.Module | None = None, preprocess: Any = None, **more: Any) -> sightline.Adapter:
    more = {"labels": NAMES, **more}
    return sightline.adapt(net or TwoBoxes(), layers=["see"], preprocess=preprocess or prepared(), **more)


def asked(target: Any, photo: Any = None, net: nn.Module | None = None, method: str = "hires-cam", **more: Any) -> Any:
    return sightline.explain(photo or noise(), model(net, **more), method=method, target=target)


def said_of(net: nn.Module, photo: Any, preprocess: Any = None) -> Found:
    """What the model finds, by itself."""
    x, _ = (preprocess or prepared())(photo)
    with torch.no_grad():
        return plainly(net(x[None])[0])


def only(values: np.ndarray[Any, Any], box: tuple[float, float, float, float]) -> bool:
    """Whether a map of 8 x 8 pixels a cell has something in the box, and nothing elsewhere."""
    left, top, right, bottom = (int(one) // CELL for one in box)
    inside = np.zeros(values.shape, bool)
    inside[top:bottom, left:right] = True
    return bool((values[inside] != 0).all()) and not values[~inside].any()


# ------------------------------------------------------------------------------------------------------------ overlaps


@pytest.mark.proves(
    "grad-cam", "d-rise", says="of a detector, overlap is intersection over union, also of boxes without area"
)
def test_overlap_is_intersection_over_union() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 4, generator=generator, dtype=torch.float64) * 9
    corners[:, 2:] = torch.maximum(corners[:, 2:], corners[:, :2])  # some without area
    corners[::7] = corners[0]
    corners[3::7, 2] = corners[3::7, 0]
    for own in corners[:20]:
        wanted = [overlap(tuple(own.tolist()), tuple(one.tolist())) for one in corners]
        found = boxes.overlap(own, corners)
        assert found.tolist() == pytest.approx(wanted, abs=1e-12)
    empty = torch.tensor([4.0, 4.0, 4.0, 4.0])
    assert boxes.overlap(empty, empty[None]).tolist() == [0.0]
    assert boxes.overlap(empty, torch.zeros(0, 4)).tolist() == []


def test_overlap_of_masks_is_the_soft_one() -> None:
    masks = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks[2] = 0
    found = boxes.mask_overlap(masks[0], masks)
    assert found.tolist() == pytest.approx([mask_overlap(masks[0].numpy(), one.numpy()) for one in masks], abs=1e-9)
    assert boxes.mask_overlap(masks[2], masks).tolist() == [0.0] * 6


@pytest.mark.proves(
    "hires-cam", says="a model's own box overlaps itself at the most, so that its gradient is the score's alone"
)
def test_the_gradient_of_a_boxs_overlap_with_itself_is_nothing() -> None:
    own = torch.tensor([1.0, 2.0, 5.0, 9.0])
    leaf = own.clone()[None].requires_grad_()
    (gradient,) = torch.autograd.grad(boxes.overlap(own, leaf).sum(), leaf)
    assert not gradient.any()


# -------------------------------------------------------------------------------------------------------------- scores

NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": TwoBoxes,
    "one class": lambda: TwoBoxes(labels=(1, 1)),
    "overlapping": lambda: TwoBoxes(extra=[((2.0, 8.0, 16.0, 24.0), 1, 0.4), ((2.0, 8.0, 16.0, 24.0), 2, 0.45)]),
    "probabilities": lambda: TwoBoxes(("probabilities",), extra=[((2.0, 8.0, 16.0, 24.0), 1, 0.4)]),
    "equal": lambda: TwoBoxes(extra=[(BOXES[0], 1, 0.9), (BOXES[0], 2, 0.9)]),
}


@pytest.mark.proves(
    "grad-cam", says="of a box, explains max over what is found of overlap times probability of the class"
)
@pytest.mark.parametrize("net", NETS)
def test_the_score_of_each_instance_is_the_definitions(net: str) -> None:
    photo, adapter = noise(), model(NETS[net]())
    found = said_of(adapter.module, photo)
    for number in range(1, len(found) + 1):
        at = instance(found, number)
        one = (
            sightline.explain(photo, adapter, method="hires-cam", target=sightline.instance(number))
            if found.labels[at] and at < 2
            else None
        )
        if one is None:
            continue  # a box that stays as it is has no map
        assert one.score == pytest.approx(box_score(found, found.boxes[at], found.labels[at]), abs=1e-6)
        assert one.probability == pytest.approx(found.scores[at], abs=1e-6)
        assert one.label == f"{number}: {NAMES[found.labels[at]]}"
        assert one.mark is not None
        assert one.mark.box == pytest.approx(found.boxes[at], abs=1e-4)


@pytest.mark.proves("grad-cam", says="of a box of one's own on the photograph, its score is the definition's")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("label", [None, "cat", 1])
def test_the_score_of_a_box_of_ones_own_is_the_definitions(net: str, label: Any) -> None:
    """A photograph of 96 x 64 becomes 48 x 32, of which the middle 32 x 32 is taken."""
    photo, built = noise((96, 64)), NETS[net]()
    found = said_of(built, photo)
    corners = (14.0, 20.0, 46.0, 52.0)
    own = (-1.0, 10.0, 15.0, 26.0)  # x / 2 - 8, y / 2
    one = asked(sightline.box(corners, label), photo, built)
    best = max(range(len(found)), key=lambda d: overlap(own, found.boxes[d]) * (label is None or found.labels[d] == 1))
    assert one.score == pytest.approx(box_score(found, own, found.labels[best]), abs=1e-6)
    assert one.mark.box == corners


@pytest.mark.proves("hires-cam", says="of one box of a detector, lies on the block that decides it and nowhere else")
@pytest.mark.parametrize("method", ["hires-cam", "layer-cam", "grad-cam-elementwise"])
def test_the_map_of_a_box_lies_on_its_own_block(method: str) -> None:
    photo, built = noise(), TwoBoxes()
    found = said_of(built, photo)
    x, _ = prepared()(photo)
    for number in (1, 2):
        at = instance(found, number)
        one = asked(sightline.instance(number), photo, built, method)
        assert only(one.signed_raw, BOXES[at])
        area = 1 / sum(1 for _ in range(4 if at == 0 else 2))
        grey = nn.functional.avg_pool2d(x[None], CELL).mean(dim=1)[0].numpy() * area
        if method == "hires-cam":
            inside = one.signed_raw != 0
            np.testing.assert_allclose(one.signed_raw[inside], grey[inside], atol=1e-6)


@pytest.mark.proves(
    "hires-cam", says="of a class of a detector, is that of its surest box; of nothing named, of the surest of all"
)
def test_a_class_is_its_surest_box_and_nothing_named_is_the_surest() -> None:
    photo = block_photo((32, 32), {(0, 8, 16, 24): (100,) * 3, (16, 0, 32, 8): (200,) * 3})
    assert asked(None, photo).label == "1: dog"
    assert only(asked(None, photo).signed_raw, BOXES[1])
    assert asked("cat", photo).label == "2: cat"
    assert only(asked("cat", photo).signed_raw, BOXES[0])
    assert asked(1, photo).label == "2: cat"


def test_boxes_and_marks_lie_on_the_photograph_through_a_cut() -> None:
    photo = noise((96, 64))
    one = asked(sightline.instance(1), photo)
    found = said_of(TwoBoxes(), photo)
    left, top, right, bottom = found.boxes[instance(found, 1)]
    wanted = ((left + 8) * 2, top * 2, (right + 8) * 2, bottom * 2)
    assert one.mark.box == pytest.approx(wanted)
    assert one.predictions[0].box == pytest.approx(wanted)


def test_boxes_above_a_score_stand_for_several_targets_in_the_order_of_what_is_found() -> None:
    photo = block_photo((32, 32), {(0, 8, 16, 24): (100,) * 3, (16, 0, 32, 8): (200,) * 3})
    found = sightline.compare(photo, model(), methods=["hires-cam"], targets=[sightline.above(0.3)])
    assert [one.label for one in found] == ["1: dog", "2: cat"]
    assert [only(one.signed_raw, box) for one, box in zip(found, BOXES[::-1], strict=True)] == [True, True]
    assert len(sightline.compare(photo, model(), methods=["hires-cam"], targets=[sightline.above(0.5)])) == 1
    with pytest.raises(TargetError, match=r"nothing a probability of 0\.8 or more"):
        sightline.compare(photo, model(), methods=["hires-cam"], targets=[sightline.above(0.8)])


@pytest.mark.proves("grad-cam", says="of an instance with a mask, overlap is that of masks")
def test_an_instance_with_masks_is_compared_by_masks() -> None:
    photo = block_photo((32, 32), {(0, 8, 16, 24): (100,) * 3, (16, 0, 32, 8): (255,) * 3})
    found = said_of(TwoBoxes(("masks",)), photo)
    assert found.masks is not None
    one = asked(sightline.instance(1), photo, TwoBoxes(("masks",)))
    shape = (found.masks[1] > 0.5).astype(float)
    assert one.score == pytest.approx(found.scores[1] * mask_overlap(shape, found.masks[1]), abs=1e-6)
    assert one.mark.region is not None
    assert (one.mark.region == (shape > 0)).all()


def test_an_instance_whose_mask_is_empty_is_compared_by_boxes() -> None:
    """No place of its mask reaches a half, so that there is no shape to compare with."""
    photo = block_photo((32, 32), {(0, 8, 16, 24): (100,) * 3})
    one = asked(sightline.instance(1), photo, TwoBoxes(("masks",)))
    assert one.score == pytest.approx(100 / 255, abs=1e-5)
    assert only(one.signed_raw, BOXES[0])


# -------------------------------------------------------------------------------------- real detectors, full autograd

TORCHVISION = ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"]
_BUILT: dict[str, nn.Module] = {}


def torchvision_detector(name: str) -> Any:
    """With random weights, small pictures, and boxes of any score."""
    if name not in _BUILT:
        from torchvision.models import detection

        threshold = "score_thresh" if name.startswith("retina") else "box_score_thresh"
        most = "detections_per_img" if name.startswith("retina") else "box_detections_per_img"
        kept = {"topk_candidates": 30} if name.startswith("retina") else {"rpn_post_nms_top_n_test": 20}
        # The coarsest level of a RetinaNet has 128 pixels a cell.
        least, longest = (160, 256) if name.startswith("retina") else (64, 96)
        built = seeded(
            lambda: getattr(detection, name)(
                weights=None,
                weights_backbone=None,
                num_classes=3,
                min_size=least,
                max_size=longest,
                **{threshold: 0.0, most: 6},
                **kept,
            )
        )
        if not name.startswith("retina"):  # without which random weights are sure of everything
            with torch.no_grad():
                heads = built.roi_heads
                predictor = [heads.mask_predictor.mask_fcn_logits] if heads.has_mask() else []
                for part in (heads.box_predictor.cls_score, heads.box_predictor.bbox_pred, *predictor):
                    part.weight.mul_(0.01)
        _BUILT[name] = built
    return _BUILT[name]


def pyramid_by_autograd(
    module: nn.Module, x: Tensor, score: Callable[[Any], Tensor], names: tuple[str, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, G) of each level with nothing but autograd over the whole model; levels that the score reads."""
    module = copy.deepcopy(module).eval()
    kept: dict[str, Tensor] = {}
    for name in names:
        module.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: kept.__setitem__(name, out))
    with torch.enable_grad():
        output = module(x.clone().requires_grad_())
        found = torch.autograd.grad(score(output), [kept[name] for name in names], allow_unused=True)
    return {
        name: (kept[name].detach()[0], gradient[0])
        for name, gradient in zip(names, found, strict=True)
        if gradient is not None and gradient.any()
    }


def hires_by_loops(a: Tensor, g: Tensor) -> np.ndarray[Any, Any]:
    C, h, w = a.shape
    one, other = a.double().numpy(), g.double().numpy()
    return np.array([[math.fsum(one[c, i, j] * other[c, i, j] for c in range(C)) for j in range(w)] for i in range(h)])


@pytest.mark.proves(
    "grad-cam",
    "hires-cam",
    says="of torchvision's detectors, is that of full autograd at the levels its box is read from",
)
@pytest.mark.parametrize("name", TORCHVISION)
def test_maps_of_torchvisions_detectors_are_those_of_full_autograd(name: str) -> None:
    module = copy.deepcopy(torchvision_detector(name)).double()
    x = torch.rand(1, 3, 60, 72, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    adapter = sightline.adapt(module)
    assert adapter.task == "detection"
    output = module(x)
    order = output[0]["scores"].argsort(descending=True, stable=True).tolist()
    assert len(order) >= 3
    for number in (1, 3):
        at = order[number - 1]
        own, label = output[0]["boxes"][at].detach(), int(output[0]["labels"][at])

        def score(found: Any, own: Tensor = own, label: int = label, at: int = at) -> Tensor:
            """The chosen one's own score; its overlap is 1 there, whose gradient is 0."""
            values = []
            for d in range(len(found[0]["scores"])):
                if int(found[0]["labels"][d]) == label and "masks" not in found[0]:
                    values.append(overlap_of(own, found[0]["boxes"][d]) * found[0]["scores"][d])
                elif int(found[0]["labels"][d]) == label:
                    shape = (output[0]["masks"][at, 0].detach() > 0.5).double()
                    mask = found[0]["masks"][d, 0]
                    both = (shape * mask).sum()
                    values.append(both / (shape.sum() + mask.sum() - both) * found[0]["scores"][d])
            return torch.stack(values).max()

        wanted = pyramid_by_autograd(module, x, score, adapter.levels)
        assert wanted
        for level, (a, g) in wanted.items():
            found = sightline.attribute(
                x, sightline.adapt(module, layers=[level]), method="hires-cam", target=sightline.instance(number)
            )
            slow = torch.from_numpy(hires_by_loops(a, g))
            assert_close(found[0], slow, 1e-9)
            weights = g.double().mean(dim=(1, 2))
            cam = torch.einsum("c,chw->hw", weights, a.double()).relu()
            if cam.any():
                found = sightline.attribute(
                    x, sightline.adapt(module, layers=[level]), method="grad-cam", target=sightline.instance(number)
                )
                assert_close(found[0], cam, 1e-9)
        if len(wanted) == 1:  # the map without a layer is that level's
            (level,) = wanted
            free = sightline.attribute(x, adapter, method="hires-cam", target=sightline.instance(number))
            a, g = wanted[level]
            assert_close(free[0], torch.from_numpy(hires_by_loops(a, g)), 1e-9)


def overlap_of(a: Tensor, b: Tensor) -> Tensor:
    wide = (torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])).clamp(min=0)
    tall = (torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])).clamp(min=0)
    return wide * tall / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * tall)


@pytest.mark.proves("grad-cam", says="of a detector with a pyramid, is made of the levels that its score reads")
@pytest.mark.parametrize("name", TORCHVISION)
def test_the_map_is_of_the_levels_that_the_score_reads(name: str) -> None:
    module = torchvision_detector(name)
    adapter = sightline.adapt(module, preprocess=prepared((72, 60), 60))
    photo = noise((72, 60), 3)
    x, _ = prepared((72, 60), 60)(photo)
    looked = sightline.look(photo, adapter)
    assert len(looked.captures) == len(adapter.levels)
    for number in (1, 2, 3):
        one = sightline.explain(looked, method="grad-cam", target=sightline.instance(number))
        target = sightline.instance(number).resolved(adapter, looked.captures[0].output, 0, None)  # type: ignore[attr-defined]
        read = pyramid_by_autograd(module, x[None], lambda output, t=target: t.score(output)[0], adapter.levels)
        assert set(one.layer.split(" + ")) == set(read)


@pytest.mark.proves("grad-cam", says="of a detector that pads by itself, lies on the photograph where its grid lay")
@pytest.mark.parametrize(
    "size", [(72, 60), (60, 72), (64, 64), (50, 96), (131, 77), (40, 300), (97, 33), (225, 225), (75, 50)]
)
def test_what_the_grids_cover_is_what_the_detector_padded_to(size: tuple[int, int]) -> None:
    width, height = size
    module = torchvision_detector("fasterrcnn_resnet50_fpn")
    known = detector(module)
    assert known is not None
    x = torch.rand(1, 3, height, width)
    batch, _ = module.transform(list(x))
    tall, wide = batch.image_sizes[0]
    padded = batch.tensors.shape[-2:]
    found = known.covers(x)
    assert found == (pytest.approx(width * padded[1] / wide, abs=1), pytest.approx(height * padded[0] / tall, abs=1))


class Echo(nn.Module):
    """torchvision's resizing and padding round a level that is the padded picture itself, in cells of 8 x 8."""

    layer = "see"

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.detection.transform import GeneralizedRCNNTransform

        self.transform = GeneralizedRCNNTransform(64, 96, [0.0] * 3, [1.0] * 3)
        self.see = nn.AvgPool2d(CELL)
        self.eval()

    def forward(self, images: Any) -> list[dict[str, Tensor]]:
        sizes = [tuple(one.shape[-2:]) for one in images]
        batch, _ = self.transform(list(images))
        seen = self.see(batch.tensors)
        whole = [torch.tensor([[0.0, 0.0, float(w), float(h)]]) for h, w in batch.image_sizes]
        found = [
            {"boxes": box, "labels": torch.ones(1, dtype=torch.long), "scores": one.square().mean()[None]}
            for box, one in zip(whole, seen, strict=True)
        ]
        return self.transform.postprocess(found, batch.image_sizes, sizes)


@pytest.mark.proves(
    "hires-cam", says="of a detector that pads by itself, finds a planted block within a cell on the photograph"
)
@pytest.mark.parametrize("size", [(72, 60), (60, 72), (50, 96), (100, 60), (33, 33), (120, 50), (200, 20)])
def test_a_planted_block_is_found_on_the_photograph_where_the_detector_pads(size: tuple[int, int]) -> None:
    import dataclasses

    net = Echo()
    known = detector(net)
    assert known is not None
    adapter = sightline.adapt(net, layers=["see"], preprocess=prepared(size, min(size)), labels=NAMES, task="detection")
    adapter = dataclasses.replace(adapter, covers=known.covers)
    scale = min(64 / min(size), 96 / max(size))
    for left, top in ((0.1, 0.1), (0.7, 0.6), (0.4, 0.75)):
        x, y = round(left * size[0]), round(top * size[1])
        side = max(4, round(CELL / scale))
        photo = block_photo(size, {(x, y, min(x + side, size[0]), min(y + side, size[1])): (255,) * 3})
        one = sightline.explain(photo, adapter, method="hires-cam")
        found = one.view.peak(one.raw)
        assert abs(found[0] - (x + side / 2)) <= CELL / scale
        assert abs(found[1] - (y + side / 2)) <= CELL / scale
        assert one.mark is not None
        assert one.mark.box == pytest.approx((0, 0, *size), abs=0.01)


def test_layers_of_a_module_that_pads_by_itself_lie_right_when_the_user_names_them() -> None:
    assert (
        sightline.adapt(torchvision_detector(TORCHVISION[0]), layers=["backbone.fpn.layer_blocks.2"]).covers is not None
    )


def test_a_panorama_has_its_pyramid_though_it_is_padded_much() -> None:
    """12 : 1 becomes 96 x 8, which is padded to 96 x 32."""
    module, x = torchvision_detector(TORCHVISION[0]), torch.rand(1, 3, 20, 240)
    found = sightline.attribute(x, module, method="hires-cam", layer="backbone.fpn.layer_blocks.0")
    assert found.shape == (1, 8, 24)


def test_the_mark_of_a_mask_lies_on_the_photograph_through_a_cut() -> None:
    """A photograph of 96 x 64 becomes 48 x 32, of which the middle 32 x 32 is taken."""
    photo = plain_photo((96, 64))
    one = asked(sightline.instance(1), photo, TwoBoxes(("masks",)))
    found = said_of(TwoBoxes(("masks",)), photo)
    assert found.masks is not None
    wanted = np.zeros((64, 96), bool)
    wanted[:, 16:80] = np.kron(found.masks[instance(found, 1)] > 0.5, np.ones((2, 2))) > 0
    assert wanted.any()
    assert (one.mark.region == wanted).all()


def test_a_function_that_gives_each_pixel_a_class_is_a_segmentation() -> None:
    def pixels(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], 2 * x[:, 1]], dim=1)

    adapter = sightline.adapt(pixels, preprocess=prepared(), labels=["red", "green"])
    photo = block_photo((32, 32), {(0, 8, 16, 24): (0, 255, 0)}, (255, 0, 0))
    found = sightline.explain(photo, adapter, method="occlusion", target="green", options={"patch": 8, "stride": 8})
    assert found.score == pytest.approx(2 * 16 * 16)
    wanted = np.zeros((4, 4))
    wanted[1:3, :2] = 2 * 64
    np.testing.assert_allclose(found.raw, wanted, rtol=1e-5)


class Sure(TwoBoxes):
    """Keeps those boxes of which it is surer than a half, as detectors do."""

    def found(self, seen: Tensor) -> dict[str, Tensor]:
        found = super().found(seen)
        sure = found["scores"] > 0.5
        return {name: value[sure] for name, value in found.items()}


@pytest.mark.proves(
    "integrated-gradients", says="of a box, is the pixels' part of the score along the way on which it is found"
)
def test_a_picture_in_which_nothing_is_found_has_a_score_of_nothing_and_no_gradient() -> None:
    """The score is the brightness w x of the box's block where that is above a half, from a black picture on."""
    photo = block_photo((32, 32), {(0, 8, 16, 24): (204,) * 3})
    one = asked(sightline.instance(1), photo, Sure(), "integrated-gradients")
    assert one.score == pytest.approx(0.8, abs=1e-6)
    assert only(nn.functional.avg_pool2d(torch.from_numpy(one.signed_raw)[None, None], CELL)[0, 0].numpy(), BOXES[0])
    assert 0 < one.signed_raw.sum() < 0.8


@pytest.mark.parametrize(
    "method",
    ["saliency", "smooth-grad", "grad-cam", "ablation-cam", "score-cam", "occlusion", "rise", "lime", "eigen-cam"],
)
def test_methods_of_every_kind_explain_a_box(method: str) -> None:
    options = {
        name: value for name, value in {"samples": 70}.items() if name in sightline.list_methods()[method].options
    }
    photo = block_photo((32, 32), {(0, 8, 16, 24): (204,) * 3, (16, 0, 32, 8): (230,) * 3})
    found = [
        sightline.explain(photo, model(Sure()), method=method, target=sightline.instance(number), options=options)
        for number in (1, 2)
    ]
    assert all(one.raw.any() for one in found)
    if method not in ("eigen-cam", "grad-cam", "score-cam"):  # whose weights are of channels, here the same for both
        assert not np.array_equal(found[0].raw, found[1].raw)


# ------------------------------------------------------------------------------------------------------------ no trace


@pytest.mark.parametrize("name", TORCHVISION[:1])
def test_a_detector_left_in_training_mode_works_as_in_evaluation_and_keeps_its_statistics(name: str) -> None:
    module = copy.deepcopy(torchvision_detector(name))
    x = torch.rand(1, 3, 60, 72, generator=torch.Generator().manual_seed(3))
    wanted = sightline.attribute(x, torchvision_detector(name), method="grad-cam", target=None)
    module.train()
    with assert_untouched(module, x):
        found = sightline.attribute(x, module, method="grad-cam", target=None)
    assert module.training
    assert torch.equal(found, wanted)


# ------------------------------------------------------------------------------------------------------------ refusals


def black_box(answer: Callable[[int, Tensor], Any]) -> Any:
    def found(x: Tensor) -> Any:
        return answer(len(x), x)

    return sightline.adapt(found, preprocess=prepared(), labels=NAMES)


def one_box(n: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"boxes": [[0, 0, 8, 8]], "labels": [1], "scores": [0.5], **changes} for _ in range(n)]


def nothing(n: int) -> list[dict[str, Any]]:
    return [{"boxes": [], "labels": [], "scores": []} for _ in range(n)]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (None, "finds no box in this picture, so that none can be explained"),
        ("cat", "finds no box in this picture"),
        (sightline.instance(1), "there is no instance 1; the model finds nothing"),
        (sightline.box((0, 0, 9, 9)), "no box of the model's overlaps 0, 0, 9, 9; it finds nothing"),
        (sightline.above(0.1), r"nothing a probability of 0\.1 or more"),
    ],
)
def test_a_picture_without_a_box_is_refused(target: Any, said: str) -> None:
    adapter = black_box(lambda n, _x: nothing(n))
    with pytest.raises(TargetError, match=said):
        sightline.compare(noise(), adapter, methods=["d-rise"], targets=[target], options={"samples": 4})


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (sightline.box((8, 8, 8, 20)), "the box 8, 8, 8, 20 is empty"),
        (sightline.box((9, 8, 8, 20)), "the box 9, 8, 8, 20 is empty"),
        (sightline.box((float("nan"), 8, 8, 20)), "the box nan, 8, 8, 20 is empty"),
        (sightline.box((float("-inf"), 8, float("inf"), 20)), "the box -inf, 8, inf, 20 is none; expected pixels"),
        (sightline.box((-1e308, 8, 1e308, 20)), "is none; expected pixels"),
        (sightline.box((32, 8, 48, 20)), "the box 32, 8, 48, 20 lies outside the photograph of 32 x 32 pixels"),
        (sightline.box((-9, -9, 0, 0)), "the box -9, -9, 0, 0 lies outside"),
        (sightline.box((1, 2, 3)), "is no box; expected"),  # type: ignore[arg-type]
        (sightline.box((0, 26, 8, 32)), r"no box of the model's overlaps 0, 26, 8, 32; it finds 1: "),
        (sightline.box((0, 8, 16, 24), "dog"), "no box of 'dog' of the model's overlaps 0, 8, 16, 24"),
        (sightline.box((0, 8, 16, 24), "bird"), "has no class 'bird'"),
        (sightline.box((0, 8, 16, 24), 3), "class 3 is outside 0 to 2"),
        (sightline.instance(0), "there is no instance 0; the model finds 1: "),
        (sightline.instance(-1), "there is no instance -1"),
        (sightline.instance(99), "there is no instance 99; the model finds 1: "),
        (sightline.instance(True), "instance True; expected a number from 1"),
        (sightline.instance("1"), "instance '1'; expected a number from 1"),  # type: ignore[arg-type]
        (sightline.instance(1.0), r"instance 1\.0; expected a number from 1"),  # type: ignore[arg-type]
        ("background", "the model finds no 'background' here; it finds 1: "),
        ("bird", "has no class 'bird'"),
        (3, "class 3 is outside 0 to 2"),
    ],
)
def test_what_makes_no_sense_is_refused(target: Any, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        asked(target)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (lambda n, _x: one_box(n, boxes=[[0, 0, float("nan"), 8]]), NonFiniteError, "NaN or infinity in the boxes"),
        (lambda n, _x: one_box(n, scores=[float("inf")]), NonFiniteError, "NaN or infinity in the boxes"),
        (lambda n, _x: one_box(n + 1), ModelError, "gave boxes of 2 pictures for 1"),
        (lambda n, _x: one_box(n, boxes=[[0, 0, 8]]), ModelError, "expected boxes"),
        (lambda n, _x: one_box(n, scores=[0.5, 0.5]), ModelError, "expected boxes"),
        (lambda n, _x: one_box(n, scores=0.5), ModelError, "expected boxes"),
        (lambda n, _x: one_box(n, labels=[]), ModelError, "expected boxes"),
        (lambda n, _x: one_box(n, labels=["cat"]), ModelError, "gave list, which is no table of numbers"),
        (lambda n, _x: [{"boxes": [[0, 0, 1, 1]], "scores": [1]}] * n, ModelError, "a mapping without labels"),
        (
            lambda n, _x: {"loss_classifier": torch.tensor(1.0), "loss_box_reg": torch.tensor(1.0)},
            ModelError,
            "training mode",
        ),
    ],
)
def test_a_function_that_says_nonsense_of_boxes_is_refused(answer: Any, error: type[SightlineError], said: str) -> None:
    with pytest.raises(error, match=said):
        sightline.explain(noise(), black_box(answer), method="d-rise", options={"samples": 4})


class Answering(nn.Module):
    """A module that says whatever it is told to, joined to what it sees."""

    def __init__(self, answer: Callable[[list[dict[str, Tensor]]], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.inner = TwoBoxes()
        self.see = self.inner.see
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.answer([self.inner.found(one) for one in self.see(x)])


def changed(**parts: Callable[[Tensor], Tensor]) -> Callable[[list[dict[str, Tensor]]], Any]:
    return lambda found: [{**one, **{name: change(one[name]) for name, change in parts.items()}} for one in found]


@pytest.mark.parametrize(
    ("answer", "target", "error", "said"),
    [
        (lambda found: found[:-1], None, ModelError, "gave boxes of 1 pictures, and was shown more"),
        (lambda found: found[:-1], sightline.instance(1), ModelError, "gave boxes of 1 pictures, and was shown more"),
        (changed(boxes=lambda one: one * float("nan")), None, NonFiniteError, "NaN"),
        (changed(scores=lambda one: one * float("nan")), None, NonFiniteError, "NaN"),
        (
            lambda found: {"loss_box": found[0]["scores"].sum()},
            None,
            TargetError,
            "returned losses .* in training mode",
        ),
        (changed(boxes=lambda one: one[:, [0, 1, 0, 1]]), None, TargetError, "no area"),
        (changed(boxes=lambda one: one[:, :3]), None, ModelError, "expected boxes"),
        (changed(labels=lambda one: one[:1]), None, ModelError, "expected boxes"),
    ],
)
def test_a_module_that_says_nonsense_of_boxes_is_refused(
    answer: Any, target: Any, error: type[SightlineError], said: str
) -> None:
    x = torch.rand(2, 3, 32, 32)
    with pytest.raises(error, match=said):
        sightline.attribute(x, model(Answering(answer)), method="hires-cam", target=target)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"labels": ["cat", "dog"]}, "gave labels as list; expected tensors"),
        ({"boxes": [[0, 0, 1, 1], [1, 1, 2, 2]]}, "gave boxes as list; expected tensors"),
        ({"scores": None}, "gave scores as NoneType; expected tensors"),
        ({"masks": torch.rand(2, 5)}, r"masks \(2, 5\); expected .* masks \(N, H, W\)"),
        ({"masks": torch.rand(7, 1, 32, 32)}, r"masks \(7, 1, 32, 32\); expected .* masks \(N, H, W\)"),
        ({"probabilities": torch.rand(2)}, r"probabilities \(2,\); expected .* probabilities \(N, K\)"),
        ({"objectness": torch.rand(5)}, r"objectness \(5,\); expected .* objectness \(N,\)"),
    ],
)
def test_a_module_whose_boxes_have_another_form_is_told_so(parts: dict[str, Any], said: str) -> None:
    net = Answering(lambda found: [{**one, **parts} for one in found])
    for method in ("hires-cam", "d-rise"):
        with pytest.raises(ModelError, match=said):
            sightline.explain(
                noise(), model(net), method=method, options={"samples": 4} if method == "d-rise" else None
            )


def test_a_box_that_reaches_far_beyond_the_photograph_is_drawn_at_its_edge() -> None:
    one = asked(None, net=Answering(changed(boxes=lambda boxes: boxes * 1e30)))
    assert one.panel().width > one.photo.width
    assert one.overlay().size == one.photo.size


def test_the_map_of_a_score_that_does_not_depend_on_the_picture_is_empty_and_says_so() -> None:
    one = asked(sightline.instance(1), net=TwoBoxes(extra=[((20.0, 20.0, 30.0, 30.0), 1, 1.5)]))
    assert not one.raw.any()
    assert any("empty" in said for said in one.warnings), one.warnings


def test_a_detector_without_names_says_numbers() -> None:
    adapter = sightline.adapt(lambda x: one_box(len(x)), preprocess=prepared())
    unnamed = sightline.explain(noise(), adapter, method="d-rise", options={"samples": 4})
    assert unnamed.label == "1: class 1"
    with pytest.raises(TargetError, match=r"there is no class 'cat' in .*, which has no class names"):
        sightline.explain(noise(), adapter, method="d-rise", target="cat", options={"samples": 4})
    assert asked(None, plain_photo((32, 32)), labels=None).label == "1: class 1"


def test_the_oracles_sigmoid_is_torchs() -> None:
    for value in (-40.0, -1.5, 0.0, 2.0, 40.0):
        assert sigmoid(value) == pytest.approx(float(torch.tensor(value, dtype=torch.float64).sigmoid()), rel=1e-12)


def test_areas_beyond_the_end_of_float16_overlap_as_others_do() -> None:
    own, others = torch.tensor([0.0, 0, 800, 800]), torch.tensor([[0.0, 0, 800, 400], [0, 0, 800, 800]])
    assert boxes.overlap(own.half(), others.half()).tolist() == [0.5, 1.0]
    mask = torch.ones(400, 400)
    half = torch.stack([mask, torch.cat([mask[:200], 0 * mask[:200]])]).half()
    assert boxes.mask_overlap(mask.half(), half).tolist() == [1.0, 0.5]


def test_a_class_beyond_the_names_that_were_given_is_asked_for_by_its_number() -> None:
    found = asked(2, labels=["background"])
    assert found.label == asked(2, labels=None).label.replace("dog", "class 2")
    with pytest.raises(TargetError, match="class 3 is outside 0 to 2"):
        asked(3, labels=["background"])
    photo = noise()
    place = sightline.box((16, 0, 32, 8), "2")
    assert asked(place, photo, labels=["background"]).label.startswith("class 2 in the box")


def test_several_boxes_are_asked_for_above_a_number_of_any_kind() -> None:
    found = [
        sightline.compare(noise(), model(), methods=["hires-cam"], targets=[sightline.above(one)])
        for one in (0.0, np.float32(0), 0)
    ]
    assert [len(one) for one in found] == [2, 2, 2]


def test_a_box_without_area_does_not_keep_the_others_from_being_explained() -> None:
    net = TwoBoxes(extra=[((4, 4, 4, 12), 1, 0.9)])
    found = sightline.compare(noise(), model(net), methods=["hires-cam"], targets=[sightline.above(0.1)])
    assert [one.label for one in found] == ["2: cat", "3: dog"] or [one.label for one in found] == ["2: dog", "3: cat"]


@pytest.mark.parametrize("over", ["flips", "scales"])
@pytest.mark.parametrize("target", [None, "cat", sightline.instance(2), sightline.box((0, 8, 16, 24))])
def test_a_place_is_not_looked_for_in_copies_of_the_picture_where_it_lies_elsewhere(over: str, target: Any) -> None:
    with pytest.raises(SightlineError, match=f"is about a place, which lies elsewhere in the copies of {over}"):
        asked(target, method=sightline.combine("hires-cam", over))  # type: ignore[arg-type]
    assert asked(target, method=sightline.combine("hires-cam", "noise")).mark is not None  # type: ignore[arg-type]


def test_a_box_of_yours_where_the_model_has_none_says_how_far_the_nearest_is() -> None:
    far = asked(sightline.box((0, 16, 16, 32)))  # half of it lies on the model's box, and a third of both together
    number = next(at for at, one in enumerate(far.predictions, 1) if one.box == (0, 8, 16, 24))
    name = far.predictions[number - 1].label
    assert (
        f"the model has no box like this one: its nearest, {number}: {name}, overlaps it by 33 % (shared area over joint area)"
        in far.warnings
    )
    assert not any("no box like this" in one for one in asked(sightline.box((0, 10, 16, 24))).warnings)
