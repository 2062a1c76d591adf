"""Whole flows beyond one label, on networks that were trained on drawn shapes: each map lies on the shape that was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sightline
from made_tasks import NAMES, SIDE, detector, photo, pooled, preprocess, scene, segmenter
from sightline.errors import ModelError, TargetError

TIMES = 4  # how much larger the photographs are than the input


@pytest.fixture(scope="module")
def pixels() -> sightline.Adapter:
    return sightline.adapt(segmenter(), preprocess=preprocess, labels=NAMES)


@pytest.fixture(scope="module")
def boxes() -> sightline.Adapter:
    return sightline.adapt(detector(), preprocess=preprocess, labels=NAMES)


def inside(heat: sightline.Heatmap, box: Any) -> float:
    """The share of a map's evidence for its target that lies in a box of the photograph."""
    left, top, right, bottom = (max(0, round(one)) for one in box)
    values = np.clip(np.nan_to_num(heat.values), 0, None)
    return float(values[top:bottom, left:right].sum() / values.sum())


def test_each_box_has_a_map_of_its_own(boxes: sightline.Adapter) -> None:
    checked = 0
    for seed in range(6):
        looked = sightline.look(photo(seed), boxes)
        sure = [one for one in looked.predictions if one.probability > 0.5]
        maps = sightline.compare(looked, methods=["hires-cam"], targets=[sightline.above(0.5)])
        assert [one.label for one in maps] == [f"{at}: {one.label}" for at, one in enumerate(sure, 1)]
        for heat, said in zip(maps, sure, strict=True):
            assert said.box is not None
            assert heat.probability == pytest.approx(said.probability)
            seen = [
                edge + add for edge, add in zip(said.box, (-32, -32, 32, 32), strict=True)
            ]  # a cell around it is read
            assert inside(heat, seen) > 0.8, (seed, heat.label)
            checked += 1
    assert checked >= 10


def test_a_black_box_that_finds_boxes_is_explained_by_masks(boxes: sightline.Adapter) -> None:
    network = detector()
    model = sightline.adapt(lambda x: network(x), preprocess=preprocess, labels=NAMES, task="detection")
    picture = photo(3)
    found = sightline.compare(picture, model, targets=[sightline.above(0.5)], methods=[None], options={"samples": 800})
    assert {one.method for one in found} == {"d-rise"}
    for heat, said in zip(found, sightline.look(picture, boxes).predictions, strict=False):
        left, top, right, bottom = said.box or ()
        x, y = heat.peak
        assert left <= x <= right
        assert top <= y <= bottom


def test_a_class_at_a_point_is_explained_by_the_shape_there(pixels: sightline.Adapter) -> None:
    right = 0
    for seed in range(5):
        _, truth, shapes = scene(seed)
        looked = sightline.look(photo(seed), pixels)
        for kind, box in shapes:
            x, y = (TIMES * (box[0] + box[2]) / 2, TIMES * (box[1] + box[3]) / 2)
            if truth[int(y / TIMES), int(x / TIMES)] != kind:
                continue
            heat = sightline.explain(looked, method="hires-cam", target=sightline.segment(point=(x, y)))
            assert heat.label.startswith(NAMES[kind])
            wide = [TIMES * (edge + add) for edge, add in zip(box, (-6, -6, 6, 6), strict=True)]
            assert inside(heat, wide) > 0.9
            right += 1
    assert right >= 8


def test_what_is_drawn_shows_the_target(boxes: sightline.Adapter, pixels: sightline.Adapter) -> None:
    picture = photo(5)
    box = sightline.explain(picture, boxes)
    plain = sightline.explain(
        picture, boxes, target=lambda output: torch.stack([one["scores"].sum() for one in output])
    )
    assert box.mark is not None
    assert plain.mark is None
    left, top = (round(one) for one in (box.mark.box or ())[:2])
    drawn = np.asarray(box.overlay())
    assert tuple(drawn[top + 20, left]) == (120, 255, 220)
    point = sightline.explain(picture, pixels, target=sightline.segment(point=(30, 50)))
    assert tuple(np.asarray(point.overlay())[50, 34]) == (120, 255, 220)


def test_the_numbers_of_boxes_are_those_of_what_the_model_says(boxes: sightline.Adapter) -> None:
    picture = photo(5)
    said = sightline.look(picture, boxes).predictions
    for number, one in enumerate(said, 1):
        heat = sightline.explain(picture, boxes, target=sightline.instance(number))
        assert heat.label == f"{number}: {one.label}"
        assert heat.mark is not None
        assert heat.mark.box == pytest.approx(one.box)


def test_a_picture_without_a_box_is_said_so(boxes: sightline.Adapter) -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    with pytest.raises(TargetError, match="finds no box in this picture"):
        sightline.explain(grey, boxes)


def test_one_photograph_of_another_size_keeps_its_places(boxes: sightline.Adapter) -> None:
    """Scaled unevenly: what is found lies where it was drawn."""
    picture = photo(5).resize((900, 300))
    for one in sightline.look(picture, boxes).predictions[:2]:
        left, top, right, bottom = one.box or ()
        kinds = dict(scene(5)[2])
        assert NAMES.index(one.label) in kinds
        middle = ((left + right) / 2 * SIDE / 900, (top + bottom) / 2 * SIDE / 300)
        assert any(box[0] <= middle[0] <= box[2] and box[1] <= middle[1] <= box[3] for _, box in scene(5)[2])


def test_each_label_of_several_has_a_map_on_its_own_shape() -> None:
    model = sightline.adapt(pooled("labels"), preprocess=preprocess, labels=NAMES[1:], task="labels")
    shares = []
    for seed in range(8):
        _, _, shapes = scene(seed)
        kinds = [kind for kind, _ in shapes]
        looked = sightline.look(photo(seed), model)
        assert {one.label for one in looked.predictions if one.probability > 0.5} == {NAMES[kind] for kind in kinds}
        for heat in sightline.compare(looked, methods=["hires-cam"], targets=[sightline.above(0.5)]):
            own = [box for kind, box in shapes if NAMES[kind] == heat.label]
            wide = [[TIMES * (edge + add) for edge, add in zip(box, (-6, -6, 6, 6), strict=True)] for box in own]
            shares.append(sum(inside(heat, box) for box in wide))
    assert len(shares) > 12
    assert min(shares) > 0.6  # the network sees a little in the noise
    assert np.mean(shares) > 0.85


def test_against_is_the_other_side_of_for_and_down_that_of_up() -> None:
    one = sightline.adapt(pooled("binary"), preprocess=preprocess, labels=["a triangle"])
    area = sightline.adapt(pooled("regression"), preprocess=preprocess, labels=["percent disc"], task="regression")
    for model, targets in (
        (one, [sightline.binary(), sightline.binary(False)]),
        (area, [sightline.regression(), sightline.regression(up=False)]),
    ):
        first, other = sightline.compare(photo(2), model, methods=["hires-cam"], targets=targets)
        np.testing.assert_allclose(first.raw, -other.raw, atol=1e-6)
        assert first.score == pytest.approx(-(other.score or 0), abs=1e-6)
    assert other.label.startswith("percent disc down (now ")
    assert (first.title(), other.title()) == (first.label, other.label)  # which have the value already


def test_the_map_of_a_live_segmentation_is_the_gradient_through_its_own_head() -> None:
    from torchvision.models import segmentation

    torch.manual_seed(0)
    network = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).double()
    network.train()(torch.rand(4, 3, 96, 96).double())  # statistics that keep random features from vanishing
    network.eval()
    x = torch.rand(1, 3, 96, 96).double()
    heat = sightline.attribute(x, network, target=2)  # hires-cam, where pixels have classes
    with torch.no_grad():
        features = network.backbone(x)
    seen = features["out"].requires_grad_()
    pixels = network.classifier(seen)
    logits = torch.nn.functional.interpolate(pixels, (96, 96), mode="bilinear", align_corners=False)
    where = logits.argmax(dim=1) == 2
    (gradient,) = torch.autograd.grad(logits[:, 2][where].sum(), seen)
    wanted = (gradient * seen).sum(dim=1).detach()
    assert float(where.double().mean()) > 0.05
    assert_close = torch.testing.assert_close
    assert_close(heat, wanted, rtol=1e-7, atol=1e-9 * float(wanted.abs().max()))
    assert all(one.grad is None and one.is_contiguous() for one in network.parameters())


def test_labels_are_shown_with_a_probability_each() -> None:
    adapter = sightline.load_model("bundled", task="labels")
    looked = sightline.look(photo(5), adapter)
    logits = looked.captures[0].output.detach()[0]
    for one in looked.predictions:
        assert one.probability == pytest.approx(float(logits[one.index].sigmoid()), abs=1e-5)
    maps = sightline.compare(
        looked, methods=["grad-cam"], targets=[looked.predictions[0].index, looked.predictions[1].index]
    )
    assert [one.probability for one in maps] == pytest.approx([one.probability for one in looked.predictions[:2]])
    assert sightline.side_by_side(maps).width > 2 * 384


def test_an_embedding_is_what_the_classifiers_last_layer_gets() -> None:
    whole = sightline.load_model("bundled")
    features = sightline.load_model("bundled", task="embedding")
    picture = photo(1)
    x = features.preprocess(picture)[0][None]  # type: ignore[misc]
    seen: list[Tensor] = []
    last = [one for one in whole.module.modules() if isinstance(one, torch.nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    whole.module(x)
    hook.remove()
    assert torch.equal(features.module(x), seen[0])
    heat = sightline.explain(picture, features, target=sightline.similarity(picture))
    assert heat.score == pytest.approx(1, abs=1e-5)
    assert heat.mark is not None
    assert heat.mark.picture is not None
    assert heat.panel().width > sightline.explain(picture, whole).panel().width


@pytest.mark.parametrize("task", ["segmentation", "detection", "nonsense"])
def test_a_task_that_a_classifier_does_not_have_is_refused(task: Any) -> None:
    with pytest.raises(ModelError, match=r"no model for the task|expected one of"):
        sightline.load_model("bundled", task=task)


def test_tasks_of_networks_without_training_are_found() -> None:
    for name, task in (("lraspp_mobilenet_v3_large", "segmentation"), ("ssdlite320_mobilenet_v3_large", "detection")):
        adapter = sightline.load_model(f"torchvision:{name}", random_weights=True, num_classes=3)
        assert adapter.task == task
        looked = sightline.look(photo(1), adapter)
        if looked.predictions:
            assert sightline.explain(looked).raw.ndim == 2


def test_the_words_of_an_answer_are_explained_one_by_one() -> None:
    from made_texts import BOTH, RED_PLACES, drawn, exact, llava, llava_processor

    model = sightline.answering(llava(), llava_processor(), "what is this ?", preprocess=exact)
    picture = drawn(BOTH)
    looked = sightline.look(picture, model)
    assert [one.label for one in looked.predictions] == ["red"]
    assert 0 < looked.predictions[0].probability <= 1
    (whole,) = sightline.compare(looked, methods=["grad-cam"])
    assert whole.label == "red"
    (word,) = sightline.compare(looked, methods=["grad-cam"], targets=["red"])
    assert word.probability == pytest.approx(looked.predictions[0].probability)
    assert word.mark is not None
    assert (word.mark.text, word.mark.words) == ("red", (0, 3))
    row, column = np.unravel_index(int(word.raw.argmax()), word.raw.shape)
    assert (row, column) in RED_PLACES
    assert word.panel().width > 0


def test_prompts_are_classes_of_one_flow() -> None:
    from made_texts import BLUE_PLACES, BOTH, PROMPTS, RED_PLACES, clip, drawn, exact, tokenizer

    model = sightline.zero_shot(clip(), tokenizer(), list(PROMPTS), preprocess=exact)
    maps = sightline.compare(drawn(BOTH), model, methods=["hires-cam"], targets=list(PROMPTS))
    for heat, places in zip(maps, (RED_PLACES, BLUE_PLACES), strict=True):
        row, column = np.unravel_index(int(heat.raw.argmax()), heat.raw.shape)
        assert (row, column) in places
    assert sum(one.probability for one in maps) == pytest.approx(1)
