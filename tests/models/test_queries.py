"""Detectors and segmentations in transformers' format: what they find is what transformers' own post-processing finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hugging
from PIL import Image

import sightline
from sightline.errors import ModelError

NAMES = {0: "cat", 1: "dog", 2: "car"}
DEMO = Path(sightline.__file__).parent / "data" / "demo" / "cat.jpg"
_SMALL = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "num_queries": 7, "id2label": NAMES, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
}  # fmt: skip


def _backbone(*stages: str) -> Any:
    return hugging.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


def made(family: str) -> tuple[Any, Any]:
    """A tiny network with random weights, and its image processor."""
    torch.manual_seed(0)
    sides = {"shortest_edge": 96, "longest_edge": 160}
    if family == "detr":
        settings = hugging.DetrConfig(backbone_config=_backbone("stage4"), **_SMALL)
        return hugging.DetrForObjectDetection(settings), hugging.DetrImageProcessor(size=sides)
    if family == "conditional_detr":
        settings = hugging.ConditionalDetrConfig(backbone_config=_backbone("stage4"), **_SMALL)
        return hugging.ConditionalDetrForObjectDetection(settings), hugging.ConditionalDetrImageProcessor(size=sides)
    if family == "deformable_detr":
        settings = hugging.DeformableDetrConfig(
            backbone_config=_backbone("stage2", "stage3", "stage4"), num_feature_levels=3, **_SMALL
        )
        return hugging.DeformableDetrForObjectDetection(settings), hugging.DeformableDetrImageProcessor(size=sides)
    if family == "yolos":
        settings = hugging.YolosConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[96, 144], patch_size=16,
            num_detection_tokens=10, id2label=NAMES,
        )  # fmt: skip
        return hugging.YolosForObjectDetection(settings), hugging.YolosImageProcessor(size=sides)
    if family == "segformer":
        settings = hugging.SegformerConfig(
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=16,
            num_attention_heads=[1, 1, 2, 2],
            id2label=NAMES,
        )
        network = hugging.SegformerForSemanticSegmentation(settings)
        return network, hugging.SegformerImageProcessor(size={"height": 64, "width": 64})
    settings = hugging.Mask2FormerConfig(
        backbone_config=hugging.SwinConfig(
            image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, num_queries=8, id2label=NAMES,
    )  # fmt: skip
    network = hugging.Mask2FormerForUniversalSegmentation(settings)
    return network, hugging.Mask2FormerImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, tuple[sightline.Adapter, Any, Any]] = {}

    def load(family: str) -> tuple[sightline.Adapter, Any, Any]:
        if family not in known:
            network, processor = made(family)
            folder = tmp_path_factory.mktemp(family)
            network.eval().save_pretrained(folder)
            processor.save_pretrained(folder)
            known[family] = sightline.load_model(f"hf:{folder}"), network, processor
        return known[family]

    return load


@pytest.mark.parametrize("family", ["detr", "conditional_detr", "deformable_detr", "yolos"])
def test_boxes_are_those_of_the_librarys_own_post_processing(loaded: Any, family: str) -> None:
    adapter, network, processor = loaded(family)
    assert adapter.task == "detection"
    looked = sightline.look(DEMO, adapter)
    x = looked.captures[0].input
    with torch.no_grad():
        output = network(pixel_values=x)
    width, height = looked.photo.size
    (own,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(height, width)])
    found = looked.captures[0].output[0]
    # A sigmoid's post-processing lists a box once for each class; the surest of all is the same.
    best = int(own["scores"].argmax())
    first = looked.predictions[0]
    assert first.probability == pytest.approx(float(own["scores"][best]), abs=1e-5)
    assert first.label == NAMES[int(own["labels"][best])]
    assert first.box == pytest.approx(own["boxes"][best].tolist(), abs=0.05)
    if family in ("detr", "yolos"):
        torch.testing.assert_close(found["scores"].detach(), own["scores"], atol=1e-5, rtol=0)
        assert torch.equal(found["labels"], own["labels"])
        total = found["probabilities"].detach().sum(dim=1)
        torch.testing.assert_close(found["objectness"].detach(), total, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["detr", "conditional_detr", "deformable_detr", "yolos", "segformer", "mask2former"])
def test_a_map_of_what_was_found_is_made_and_the_network_left_alone(loaded: Any, family: str) -> None:
    adapter, _, _ = loaded(family)
    before = {name: one.clone() for name, one in adapter.module.state_dict().items()}
    maps = sightline.compare(DEMO, adapter, methods=["hires-cam", "grad-cam"], targets=[None])
    for one in maps:
        assert np.isfinite(one.raw).all()
        assert one.raw.ndim == 2
    assert all(torch.equal(one, before[name]) for name, one in adapter.module.state_dict().items())


def test_pixels_have_the_librarys_own_classes(loaded: Any) -> None:
    adapter, network, _ = loaded("segformer")
    looked = sightline.look(DEMO, adapter)
    with torch.no_grad():
        output = network(pixel_values=looked.captures[0].input)
    torch.testing.assert_close(looked.captures[0].output.detach(), output.logits, atol=1e-4, rtol=1e-4)
    seen = output.logits[0].argmax(dim=0)
    shares = {one.label: one.probability for one in looked.predictions}
    assert shares == {NAMES[int(at)]: pytest.approx(float((seen == at).float().mean())) for at in seen.unique()}


def test_instances_are_those_of_the_librarys_own_post_processing(loaded: Any) -> None:
    adapter, network, _ = loaded("mask2former")
    looked = sightline.look(DEMO, adapter)
    with torch.no_grad():
        output = network(pixel_values=looked.captures[0].input)
    classes = output.class_queries_logits[0].softmax(dim=1)[:, :-1]
    masks = output.masks_queries_logits[0].sigmoid()
    scores = []
    for query in range(len(classes)):
        inside = masks[query][masks[query] > 0.5]
        scores.append(float(classes[query].max()) * (float(inside.mean()) if len(inside) else 0.0))
    found = looked.captures[0].output[0]
    assert found["scores"].tolist() == pytest.approx(scores, abs=1e-5)
    for query in range(len(classes)):
        rows, columns = torch.nonzero(masks[query] > 0.5, as_tuple=True)
        if len(rows):
            cell = 64 / masks.shape[-1]
            box = [
                float(columns.min()) * cell,
                float(rows.min()) * cell,
                (float(columns.max()) + 1) * cell,
                (float(rows.max()) + 1) * cell,
            ]
            assert found["boxes"][query].tolist() == pytest.approx(box)
        else:
            assert not found["boxes"][query].any()


def test_prompts_for_a_detector_are_refused(loaded: Any, tmp_path: Path) -> None:
    network, processor = made("yolos")
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has classes of its own and reads no text"):
        sightline.load_model(f"hf:{tmp_path}", prompts=["a cat"])


def test_a_detector_whose_answers_have_another_form_is_refused(tmp_path: Path) -> None:
    import json

    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "pp_ocrv5_server_det", "architectures": ["PPOCRV5ServerDetForObjectDetection"]})
    )
    with pytest.raises(ModelError, match="answers are of a form of their own"):
        sightline.load_model(f"hf:{tmp_path}")


def test_one_photograph_twice_in_a_batch_has_the_same_boxes(loaded: Any) -> None:
    adapter, _, _ = loaded("detr")
    with Image.open(DEMO) as photo:
        x = adapter.preprocess(photo.convert("RGB"))[0]
    one = sightline.attribute(x[None], adapter, target=sightline.instance(2))
    two = sightline.attribute(torch.stack([x, x]), adapter, target=sightline.instance(2))
    torch.testing.assert_close(two[1], one[0], atol=1e-5, rtol=1e-4)
