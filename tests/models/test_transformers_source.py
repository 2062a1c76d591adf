"""Hugging Face's formats: every family gives transformers' own answer, and what a folder says is never obeyed, only read."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hugging
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from conftest import assert_close, assert_untouched
from oracles_attention import rollout_matrix
from sightline import compare, explain, load_model
from sightline.cli import main
from sightline.cli.doctor import DEMO
from sightline.errors import ImageError, MethodError, MissingExtraError, ModelError, WeightsError
from sightline.models import hub, planned
from sightline.models.adapter import Adapter
from sightline.models.given import Given
from sightline.models.transformers import build_folder

CLASSES = 7
_VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "image_size": 32, "patch_size": 8,
}  # fmt: skip
_DINO = {name: value for name, value in _VIT.items() if name != "intermediate_size"}
_SWIN: dict[str, Any] = {
    "image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_STAGES: dict[str, Any] = {"hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 1, 1]}
_HEADS = {"num_attention_heads": [1, 1, 2, 2]}


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _cropping(edge: int, side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": edge}, "crop_size": _square(side)}


# A family: the model's class, its configuration, its processor, and a method of attention that works on it.
FAMILIES: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
    "vit": lambda: (
        hugging.ViTForImageClassification, hugging.ViTConfig(**_VIT),
        hugging.ViTImageProcessor(size=_square(32)),
    ),
    "deit": lambda: (
        hugging.DeiTForImageClassification, hugging.DeiTConfig(**_VIT),
        hugging.DeiTImageProcessor(size=_square(37), crop_size=_square(32)),
    ),
    "deit with teacher": lambda: (
        hugging.DeiTForImageClassificationWithTeacher, hugging.DeiTConfig(**_VIT),
        hugging.DeiTImageProcessor(size=_square(37), crop_size=_square(32)),
    ),
    "swin": lambda: (
        hugging.SwinForImageClassification, hugging.SwinConfig(**_SWIN),
        hugging.ViTImageProcessor(size=_square(64)),
    ),
    "convnext": lambda: (
        hugging.ConvNextForImageClassification, hugging.ConvNextConfig(**_STAGES),
        hugging.ConvNextImageProcessor(size={"shortest_edge": 64}),
    ),
    "resnet": lambda: (
        hugging.ResNetForImageClassification,
        hugging.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"),
        hugging.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
    ),
    "beit": lambda: (
        hugging.BeitForImageClassification, hugging.BeitConfig(**_VIT, use_relative_position_bias=True),
        hugging.BeitImageProcessor(size=_square(32), do_center_crop=False),
    ),
    "dinov2": lambda: (
        hugging.Dinov2ForImageClassification, hugging.Dinov2Config(**_DINO, use_swiglu_ffn=True),
        hugging.BitImageProcessor(**_cropping(37, 32)),
    ),
    "dinov2 with registers": lambda: (
        hugging.Dinov2WithRegistersForImageClassification, hugging.Dinov2WithRegistersConfig(**_DINO),
        hugging.BitImageProcessor(**_cropping(37, 32)),
    ),
    "mobilevit": lambda: (
        hugging.MobileViTForImageClassification,
        hugging.MobileViTConfig(
            image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 40], num_attention_heads=4
        ),
        hugging.MobileViTImageProcessor(**_cropping(73, 64)),
    ),
    "clip": lambda: (
        hugging.CLIPForImageClassification,
        hugging.CLIPConfig(vision_config=_VIT, text_config=_TEXT, projection_dim=16),
        hugging.CLIPImageProcessor(**_cropping(32, 32)),
    ),
    "siglip": lambda: (
        hugging.SiglipForImageClassification, hugging.SiglipConfig(vision_config=_VIT, text_config=_TEXT),
        hugging.SiglipImageProcessor(size=_square(32)),
    ),
    "poolformer": lambda: (
        hugging.PoolFormerForImageClassification, hugging.PoolFormerConfig(**_STAGES),
        hugging.PoolFormerImageProcessor(**_cropping(64, 64)),
    ),
    "segformer": lambda: (
        hugging.SegformerForImageClassification, hugging.SegformerConfig(**_STAGES, **_HEADS),
        hugging.SegformerImageProcessor(size=_square(64)),
    ),
    "mobilenet_v2": lambda: (
        hugging.MobileNetV2ForImageClassification, hugging.MobileNetV2Config(depth_multiplier=0.35),
        hugging.MobileNetV2ImageProcessor(**_cropping(73, 64)),
    ),
}  # fmt: skip
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
# What each family's head reads of the last block: rows of the rollout's matrix, of which the last 16 are the places.
READS: dict[str, Callable[[Any, int], Any]] = {
    "vit": lambda rows, _: rows[0],
    "deit": lambda rows, _: rows[0],
    "beit": lambda rows, extra: rows[extra:].mean(axis=0),
    "clip": lambda rows, extra: rows[extra:].mean(axis=0),
    "siglip": lambda rows, extra: rows[extra:].mean(axis=0),
}
WITH_ATTENTION = [*READS, "deit with teacher", "dinov2", "dinov2 with registers"]


def saved(folder: Path, family: str = "vit") -> tuple[Any, Any]:
    """A random model of a family and its processor, written as transformers does it."""
    kind, config, processor = FAMILIES[family]()
    config.id2label = {index: f"thing {index}" for index in range(CLASSES)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        for one in model.parameters():
            if one.dim() > 1:
                nn.init.normal_(one, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def photo(size: tuple[int, int] | None = None) -> Image.Image:
    with Image.open(DEMO) as image:
        whole = image.convert("RGB")
    return whole.resize(size) if size else whole


def prepared(folder: Path, picture: Image.Image) -> Tensor:
    """What transformers' own processor, found in the folder, makes of a picture."""
    processor = hugging.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    x: Tensor = processor(picture, return_tensors="pt")["pixel_values"].float()
    return x


def rewritten(path: Path, **changes: Any) -> None:
    """A JSON file with other values; None takes one out."""
    said = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))


def refused(folder: Path, kind: type[Exception] = ModelError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load_model(f"hf:{folder}", **options)
    return str(caught.value)


def said(adapter: Adapter, what: str) -> str:
    (one,) = [found for found in adapter.found if found.what == what]
    return f"{one.value} <- {one.origin}{' (guessed)' if one.guessed else ''}"


# ------------------------------------------------------------------------------------------------------------- families


@EACH_FAMILY
def test_a_folder_of_each_family_gives_the_logits_of_transformers(family: str, tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "thing", family)
    adapter = load_model(f"hf:{tmp_path / 'thing'}")
    x, _ = adapter.preprocess(photo())
    with torch.no_grad():
        wanted = model(prepared(tmp_path / "thing", photo())).logits
        found = adapter.logits(adapter.module(x[None]))
    assert wanted.std() > 0
    assert (found - wanted).abs().max() < 1e-4 * wanted.std()
    assert adapter.labels == tuple(f"thing {index}" for index in range(CLASSES))
    assert adapter.notes == ()
    assert said(adapter, "architecture").startswith(type(model).__name__)
    assert said(adapter, "classes") == "7 <- the head in model.safetensors"
    assert adapter.provenance["source"] == "transformers"


def by_hand(
    model: nn.Module, layer: str, x: Tensor, size: tuple[int, int], target: int | None = None
) -> np.ndarray[Any, Any]:
    """Grad-CAM of a class, or the predicted one: A weighted with the means of dy/dA over the places, summed, above 0."""
    kept: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output.last_hidden_state)

    handle = model.get_submodule(layer).register_forward_hook(keep)
    logits = model(x).logits
    handle.remove()
    score = logits[0].max() if target is None else logits[0, target]
    (gradient,) = torch.autograd.grad(score, kept[0])
    a, g = kept[0][0].detach(), gradient[0]
    if a.dim() == 2:  # tokens; those of no place come first
        a, g = (one[len(one) - size[0] * size[1] :].T.reshape(-1, *size) for one in (a, g))
    weights = g.mean(dim=(1, 2))
    return (weights[:, None, None] * a).sum(dim=0).relu().numpy()


@EACH_FAMILY
def test_grad_cam_of_each_family_is_the_one_made_by_hand(family: str, tmp_path: Path) -> None:
    model, _ = saved(tmp_path, family)
    adapter = load_model(f"hf:{tmp_path}")
    with assert_untouched(adapter.module):
        found = compare(photo(), adapter, methods=["grad-cam"], targets=list(range(CLASSES)))
    x = prepared(tmp_path, photo())
    wanted = [by_hand(model, one.layer, x, one.raw.shape, target) for target, one in enumerate(found)]
    highest = np.stack(wanted).max()
    assert highest > 0
    assert all(np.abs(one.raw - other).max() < 1e-4 * highest for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("family", READS)
def test_rollout_is_made_of_the_attentions_that_transformers_itself_returns(family: str, tmp_path: Path) -> None:
    model, _ = saved(tmp_path, family)
    adapter = load_model(f"hf:{tmp_path}")
    found = explain(photo(), adapter, method="attention-rollout").raw
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(prepared(tmp_path, photo()), output_attentions=True).attentions
    matrix = rollout_matrix([one[0].numpy() for one in attentions])
    assert found.shape == (4, 4)
    extra = len(matrix) - 16  # tokens of no place come first
    wanted = (READS[family](matrix[:, extra:], extra)).reshape(4, 4)
    assert np.abs(found - wanted).max() < 1e-5 * wanted.max()


@pytest.mark.parametrize("family", WITH_ATTENTION)
@pytest.mark.parametrize("method", ["attention-rollout", "le-grad"])
def test_methods_of_attention_work_on_every_family_whose_attention_spans_the_picture(
    family: str, method: str, tmp_path: Path
) -> None:
    saved(tmp_path, family)
    adapter = load_model(f"hf:{tmp_path}")
    with assert_untouched(adapter.module):
        found = explain(photo(), adapter, method=method).raw
    assert found.shape == (4, 4)
    assert found.max() > 0


@pytest.mark.parametrize("family", ["swin", "mobilevit", "segformer", "resnet"])
def test_where_no_attention_spans_the_picture_rollout_says_so(family: str, tmp_path: Path) -> None:
    saved(tmp_path, family)
    with pytest.raises(MethodError, match=r"no attention spans the picture|attend to|computes no attention"):
        explain(photo(), load_model(f"hf:{tmp_path}"), method="attention-rollout")


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_the_command_line_writes_the_map_made_by_hand(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = saved(tmp_path / "model", family)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    arguments = ["sightline", "explain", str(DEMO), "--model", f"hf:{tmp_path / 'model'}", "--output", "out", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None), capsys.readouterr().err
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]  # nothing else is on stdout
    assert len(facts) == 1
    (path,) = (tmp_path / "out").rglob("*.npy")
    found = np.load(path)
    layer = load_model(f"hf:{tmp_path / 'model'}").layer
    size = (8, 8) if family == "resnet" else (4, 4)
    wanted = by_hand(model, str(layer), prepared(tmp_path / "model", photo()), size)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-4 * wanted.max()


# -------------------------------------------------------------------------------------------------------- preprocessing

PROCESSORS: dict[str, Any] = {
    "ViTImageProcessor": {"size": _square(48)},
    "ViTImageProcessor as floats of 0..255": {"size": _square(48), "do_rescale": False, "image_mean": [127.5] * 3},
    "DeiTImageProcessor": {"size": _square(57), "crop_size": _square(48)},
    "CLIPImageProcessor": _cropping(48, 47),
    "SiglipImageProcessor": {"size": {"height": 48, "width": 40}, "resample": 1},
    "BeitImageProcessor": {"size": _square(56), "crop_size": _square(49), "do_center_crop": True},
    "BitImageProcessor": _cropping(57, 48),
    "ConvNextImageProcessor": {"size": {"shortest_edge": 48}, "crop_pct": 0.9},
    "ConvNextImageProcessor at 384": {"size": {"shortest_edge": 384}},
    "PoolFormerImageProcessor": _cropping(48, 48) | {"crop_pct": 0.95},
    "LevitImageProcessor": _cropping(48, 48),
    "EfficientNetImageProcessor": {"size": _square(57), "crop_size": _square(48), "do_center_crop": True},
    "EfficientNetImageProcessor with an offset": {"size": _square(48), "rescale_factor": 1 / 127.5, "rescale_offset": True},
    "MobileNetV1ImageProcessor": _cropping(57, 48),
    "MobileNetV2ImageProcessor": _cropping(57, 48),
    "MobileViTImageProcessor": _cropping(57, 48),
    "PvtImageProcessor": {"size": _square(48), "resample": 4},
    "SegformerImageProcessor": {"size": _square(48)},
    "ViTFeatureExtractor": {"size": 48, "resample": 2},
}  # fmt: skip
# These ask for more than scaling, cropping and normalising; transformers' own function is run.
MEASURED: dict[str, Any] = {
    "TextNetImageProcessor": {"size": {"shortest_edge": 48}},
    "PerceiverImageProcessor": {"size": _square(48), "crop_size": _square(56)},
    "BitImageProcessor without crop": {"size": {"shortest_edge": 48}, "do_center_crop": False},
    "CLIPImageProcessor with a border": _cropping(40, 48),
}


def processed(folder: Path, name: str, values: dict[str, Any]) -> tuple[Adapter, Callable[[Image.Image], Tensor]]:
    """A ResNet with this preprocessing, and what transformers makes of a picture."""
    saved(folder, "resnet")
    key = "feature_extractor_type" if "Feature" in name else "image_processor_type"
    kind = name.split()[0]
    (folder / "preprocessor_config.json").write_text(json.dumps({key: kind, **values}))
    of_today = kind.replace("FeatureExtractor", "ImageProcessor")
    processor = getattr(hugging, f"{of_today}Pil")(**values)
    return load_model(f"hf:{folder}"), lambda picture: processor(picture, return_tensors="pt")["pixel_values"][
        0
    ].float()


@pytest.mark.parametrize("name", [*PROCESSORS, *MEASURED])
def test_each_processor_gives_the_pixels_of_transformers(name: str, tmp_path: Path) -> None:
    adapter, wanted = processed(tmp_path, name, (PROCESSORS | MEASURED)[name])
    for size in ((333, 251), (251, 333), (101, 640), (48, 48), (31, 47)):
        picture = photo(size)
        x, view = adapter.preprocess(picture)
        other = wanted(picture)
        reach = float(other.max() - other.min())
        assert x.shape == other.shape
        assert view.input == (x.shape[2], x.shape[1])
        assert (x - other).abs().max() <= reach / 255
    assert ("run as it is" in said(adapter, "preprocessing")) == (name in MEASURED)


def test_a_processor_of_another_kind_than_pictures_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "resnet")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Siglip2ImageProcessor"}')
    assert "preprocess={'size'" in refused(tmp_path)
    own = load_model(f"hf:{tmp_path}", preprocess={"size": 64, "mean": 0.5, "std": 0.25})
    assert said(own, "preprocessing").endswith("<- given")
    assert own.preprocess(photo())[0].shape == (3, 64, 64)


def test_a_processor_that_transformers_lacks_is_refused_with_the_nearest(tmp_path: Path) -> None:
    saved(tmp_path, "resnet")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ConvNeXtImageProcesor"}')
    assert "Did you mean 'ConvNextImageProcessor'" in refused(tmp_path)


def test_without_a_processor_the_size_is_the_models_and_the_rest_is_said_to_be_guessed(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").unlink()
    adapter = load_model(f"hf:{tmp_path}")
    assert "size (32, 32)" in said(adapter, "preprocessing")
    assert said(adapter, "preprocessing").endswith("(guessed)")
    assert "guessed, because nothing says it: preprocessing" in adapter.notes[0]


def test_a_guessed_size_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "convnext")
    (tmp_path / "preprocessor_config.json").unlink()
    rewritten(tmp_path / "config.json", image_size=5000)
    assert "at most 2,048" in refused(tmp_path)


def test_parts_that_are_given_replace_those_of_the_file(tmp_path: Path) -> None:
    saved(tmp_path, "resnet")
    adapter = load_model(f"hf:{tmp_path}", preprocess={"size": 128})
    assert adapter.provenance["preprocessing"]["size"] == (128, 128)
    assert adapter.provenance["preprocessing"]["resize"] == 146
    assert "given in its place" in said(adapter, "preprocessing")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "TextNetImageProcessor", "size": 64}')
    assert "can't be changed in parts" in refused(tmp_path, preprocess={"size": 128})


def test_a_picture_so_thin_that_it_would_fill_the_memory_is_refused_by_name(tmp_path: Path) -> None:
    adapter, _ = processed(tmp_path, "TextNetImageProcessor", {"size": {"shortest_edge": 48}})
    with pytest.raises(ImageError, match="too thin"):
        adapter.preprocess(Image.new("RGB", (16, 5000)))


# -------------------------------------------------------------------------------------------------------------- weights


def logits_of(adapter: Adapter) -> Tensor:
    with torch.no_grad():
        found: Tensor = adapter.logits(adapter.module(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)))
    return found


def test_shards_an_old_file_and_one_file_give_the_same(tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "one")
    one = load_model(f"hf:{tmp_path / 'one'}")
    for name in ("shards", "old"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "preprocessor_config.json"):
            (tmp_path / name / file).write_bytes((tmp_path / "one" / file).read_bytes())
    model.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    torch.save(load_file(tmp_path / "one" / "model.safetensors"), tmp_path / "old" / "pytorch_model.bin")
    for name in ("shards", "old"):
        other = load_model(f"hf:{tmp_path / name}")
        assert_close(logits_of(other), logits_of(one))
        assert other.provenance["sha256"] != one.provenance["sha256"]


def test_names_of_old_transformers_are_translated(tmp_path: Path) -> None:
    model, _ = saved(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in stored
    assert "vit.layers.0.attention.q_proj.weight" in model.state_dict()
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # today's own names
    x = torch.linspace(-1, 1, 3072).view(1, 3, 32, 32)
    assert_close(logits_of(load_model(f"hf:{tmp_path}")), model(x).logits)


def test_what_transformers_passes_over_is_passed_over_and_nothing_more(tmp_path: Path) -> None:
    saved(tmp_path, "swin")
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    index = {"swin.encoder.layers.0.blocks.0.attention.self.relative_position_index": torch.zeros(16, 16)}
    save_file(stored | index, path)
    assert load_model(f"hf:{tmp_path}").labels is not None
    save_file(stored | {"swin.pooler.dense.weight": torch.zeros(2, 2)}, path)
    assert "1 unknown, such as swin.pooler.dense.weight" in refused(tmp_path, WeightsError)


def test_position_ids_of_old_files_are_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, "clip")
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}, path)
    assert load_model(f"hf:{tmp_path}").layer is not None


@pytest.mark.parametrize("what", ["missing", "misshapen", "nan"])
def test_weights_that_do_not_fit_are_refused(what: str, tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    name = "vit.encoder.layer.1.output.dense.weight"
    if what == "missing":
        del stored[name]
    else:
        stored[name] = torch.zeros(5, 5) if what == "misshapen" else torch.full_like(stored[name], torch.nan)
    save_file(stored, path)
    words = {"missing": "1 missing", "misshapen": r"(5, 5) instead of (32, 64)", "nan": "NaN or infinity"}
    assert words[what] in refused(tmp_path, WeightsError)


@pytest.mark.parametrize("family", ["resnet", "deit with teacher"])
def test_the_number_of_classes_is_the_files(family: str, tmp_path: Path) -> None:
    saved(tmp_path, family)
    rewritten(tmp_path / "config.json", id2label={"0": "a", "1": "b", "2": "c"})
    adapter = load_model(f"hf:{tmp_path}")
    assert adapter.labels is None
    assert said(adapter, "classes").startswith("7 <-")
    assert "7 classes" in refused(tmp_path, WeightsError, num_classes=3)


def test_a_backbone_without_a_head_is_refused_by_its_class(tmp_path: Path) -> None:
    saved(tmp_path)
    rewritten(tmp_path / "config.json", architectures=["ViTModel"])
    assert "ViTModel" in refused(tmp_path)
    assert "ViTForImageClassification" in refused(tmp_path)


def test_weights_of_a_file_and_random_ones_stand_in_for_the_folders(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "mine.safetensors")
    assert "holds no weights" in refused(tmp_path, WeightsError)
    mine = load_model(f"hf:{tmp_path}", weights=tmp_path / "mine.safetensors")
    assert said(mine, "weights").startswith("mine.safetensors")
    random = load_model(f"hf:{tmp_path}", random_weights=True, num_classes=3)
    assert logits_of(random).shape == (1, 3)
    assert "random weights" in random.notes[0]


def test_a_folder_is_built_as_it_is_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    assert_close(logits_of(build_folder(tmp_path, Given())), logits_of(load_model(f"hf:{tmp_path}")))


# ----------------------------------------------------------------------------------------------------------------- timm


def of_timm(folder: Path, name: str = "resnet10t", **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options).eval()
    names = {"label_names": [f"thing {index}" for index in range(CLASSES)]}
    save_for_hf(model, folder, model_config=names, safe_serialization=True)
    return model


def test_a_folder_of_timm_gives_timms_logits_names_and_preprocessing(tmp_path: Path) -> None:
    model = of_timm(tmp_path)
    own = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    changed = {"mean": [0.5, 0.4, 0.3], "input_size": [3, 96, 96], "crop_pct": 0.8, "interpolation": "bilinear"}
    rewritten(tmp_path / "config.json", pretrained_cfg=own | changed)
    adapter = load_model(f"hf:{tmp_path}")
    transform = timm.data.create_transform(
        (3, 96, 96), mean=(0.5, 0.4, 0.3), std=own["std"], crop_pct=0.8, interpolation="bilinear"
    )
    x, _ = adapter.preprocess(photo())
    assert torch.allclose(x, transform(photo()), atol=1e-6)
    with torch.no_grad():
        wanted, found = model(x[None]), adapter.module(x[None])
    assert (found - wanted).abs().max() < 1e-4 * wanted.std()
    assert adapter.labels is not None
    assert adapter.labels[6] == "thing 6"
    assert "pretrained_cfg" in said(adapter, "preprocessing")


def test_arguments_of_timms_architecture_are_taken(tmp_path: Path) -> None:
    model = of_timm(tmp_path, "vit_tiny_patch16_224", img_size=64)
    adapter = load_model(f"hf:{tmp_path}")
    x, _ = adapter.preprocess(photo())
    assert x.shape == (3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(adapter.module(x[None]), model(x[None]), atol=1e-5)


def test_the_old_flat_format_of_timm_is_read_too(tmp_path: Path) -> None:
    of_timm(tmp_path)
    said_before = json.loads((tmp_path / "config.json").read_text())
    flat = said_before["pretrained_cfg"] | {"architecture": "resnet10t", "num_classes": CLASSES, "label_names": ["x"]}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    adapter = load_model(f"hf:{tmp_path}")
    assert adapter.labels is None
    assert adapter.provenance["architecture"] == "resnet10t"


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "local-dir:/etc"},
        {"architecture": "hf_hub:someone/something"},
        {"model_args": {"checkpoint_path": "/etc/passwd"}},
        {"model_args": {"pretrained_cfg_overlay": {"file": "x"}}},
        {"model_args": {"act_layer": {"a": 1}}},
        {"num_classes": 10**9},
        {"pretrained_cfg": "resnet10t"},
    ],
)
def test_what_timms_config_may_not_say_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    of_timm(tmp_path)
    rewritten(tmp_path / "config.json", **changes)
    assert refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_pct": -1}, {"crop_pct": "x"}, {"crop_mode": "x"}, {"mean": "x"}, {"mean": [1, 2]}, {"std": [0, 0, 0]},
        {"interpolation": "x"}, {"input_size": [3]}, {"input_size": "x"}, {"input_size": [3, 4096, 4096]},
    ],
)  # fmt: skip
def test_a_pretrained_cfg_that_can_not_be_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    of_timm(tmp_path)
    own = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    rewritten(tmp_path / "config.json", pretrained_cfg=own | changes)
    assert refused(tmp_path)


def test_a_picture_of_timm_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    of_timm(tmp_path, "vit_tiny_patch16_224", img_size=64)
    own = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    rewritten(tmp_path / "config.json", model_args={"img_size": 900_000}, pretrained_cfg=own)
    assert "too large" in refused(tmp_path)


# -------------------------------------------------------------------------------------------------------------- hostile


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    folder, canary = tmp_path / "model", tmp_path / "was-here"
    saved(folder)
    code = f"open({str(canary)!r}, 'w')\n"
    for file in ("modeling_own.py", "configuration_own.py", "processing_own.py"):
        (folder / file).write_text(code)
    own = {"AutoConfig": "configuration_own.C", "AutoModelForImageClassification": "modeling_own.M"}
    rewritten(folder / "config.json", auto_map=own)
    rewritten(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "processing_own.P"})
    adapter = load_model(f"hf:{folder}")
    assert "auto_map is not run" in said(adapter, "code")
    rewritten(folder / "config.json", model_type="own")
    assert "isn't run" in refused(folder)
    assert not canary.exists()


def test_a_pickle_with_code_is_refused_unopened(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "was-here"), "w")

    saved(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(), protocol=2))
    assert "holds code" in refused(tmp_path / "model", WeightsError)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "x.pkl", "\\\\x\\y.bin"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    saved(folder)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "plain name of a file beside it" in refused(folder, WeightsError)


@pytest.mark.parametrize(
    "weight_map", [None, [], {}, {"a": 5}, {str(n): f"{n}.bin" for n in range(1001)}, {"a": "no.bin"}]
)
def test_an_index_that_says_nonsense_is_refused(weight_map: Any, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert refused(tmp_path, WeightsError)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_refused(file: str, tmp_path: Path) -> None:
    saved(tmp_path / "model")
    (tmp_path / "model" / file).rename(tmp_path / file)
    (tmp_path / "model" / file).symlink_to(tmp_path / file)
    assert "inside this folder" in refused(tmp_path / "model")


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    saved(snapshot)
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    assert load_model(f"hf:{snapshot}").labels is not None


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"no json", b"[1]", b"{" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", b'{"a": 1e999}', b" " * 20_000_001]
)  # fmt: skip
def test_what_is_no_json_is_refused_with_its_name(file: str, content: bytes, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / file).write_bytes(content)
    assert file in refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 10**9}, {"image_size": 999_999}, {"image_size": "large"}, {"image_size": None, "patch_size": 0},
        {"num_hidden_layers": 10**9}, {"num_hidden_layers": 900_000}, {"hidden_size": 999_984}, {"hidden_size": -32},
        {"num_labels": 10**12, "id2label": None}, {"num_labels": "7", "id2label": None}, {"hidden_act": "os.system"},
        {"quantization_config": {"quant_method": "bitsandbytes"}}, {"model_type": "vti"}, {"model_type": ["vit"]},
        {"model_type": None}, {"architectures": "x"}, {"architectures": [["x"]]}, {"layer_norm_eps": "x" * 100},
        {"nested": {"deep": [10**300]}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("random_weights", [False, True])
def test_a_configuration_that_can_not_be_is_refused_in_bounded_memory(
    changes: dict[str, Any], random_weights: bool, tmp_path: Path
) -> None:
    saved(tmp_path)
    rewritten(tmp_path / "config.json", **changes)
    assert len(refused(tmp_path, random_weights=random_weights)) < 700


def test_a_network_far_larger_than_its_weights_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    monkeypatch.setattr(planned, "_SLACK", 1000)
    rewritten(tmp_path / "config.json", intermediate_size=4000)
    assert "this can't be its configuration" in refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": _square(10**9)}, {"size": _square(-5)}, {"size": "large"}, {"size": {"longest_edge": 64}},
        {"crop_pct": 1e-9}, {"crop_pct": "x"}, {"image_std": [0, 0, 0]}, {"image_mean": [1, 2]}, {"resample": 99},
        {"rescale_factor": 0}, {"rescale_factor": 1e308}, {"image_processor_type": "AutoImageProcessor"},
        {"image_processor_type": ["x"]}, {"image_processor_type": "Trainer"},
        {"image_processor_type": "PerceiverImageProcessor", "size": _square(2000), "crop_size": _square(1)},
    ],
)  # fmt: skip
def test_a_preprocessing_that_can_not_be_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path, "resnet")
    rewritten(tmp_path / "preprocessor_config.json", **changes)
    assert len(refused(tmp_path)) < 1000


def test_class_names_are_data_cut_and_without_control_characters(tmp_path: Path) -> None:
    saved(tmp_path)
    names = {str(index): f"thing {index}" for index in range(CLASSES)}
    rewritten(tmp_path / "config.json", id2label=names | {"0": "x" * 100_000, "1": "\x1b[31mred\r\n\u202e"})
    adapter = load_model(f"hf:{tmp_path}")
    assert adapter.labels is not None
    assert adapter.labels[0] == "x" * 200
    assert adapter.labels[1] == " [31mred   "
    for wrong in ({"2": None}, {"2": ["a"]}, {"9": "a"}):
        rewritten(tmp_path / "config.json", id2label=names | wrong)
        assert load_model(f"hf:{tmp_path}").labels is None


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(file: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / file).unlink()
    assert file in refused(tmp_path)


# ------------------------------------------------------------------------------------------------------------------ hub


def test_a_repository_is_fetched_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    asked = []

    def there(repository: str, file: str) -> str:
        """The cache, which is all of the hub that a test can have."""
        asked.append(f"{repository}: {file}")
        path = tmp_path / file
        return str(path) if path.exists() else object()  # type: ignore[return-value]

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", there)
    adapter = load_model("hf:someone/something")
    assert adapter.name == "hf:someone/something"
    assert asked == [
        f"someone/something: {file}" for file in ("config.json", "model.safetensors", "preprocessor_config.json")
    ]
    (tmp_path / "preprocessor_config.json").unlink()
    assert "guessed" in load_model("hf:someone/something").notes[0]


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def no_network() -> Any:
        raise OSError("unreachable")

    monkeypatch.setattr("huggingface_hub.get_session", no_network)
    with pytest.raises(ModelError, match=r"config.json of hf:someone/something can't be had from the hub") as caught:
        load_model("hf:someone/something")
    assert "\n" not in str(caught.value)
    assert hub.OFFLINE in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "a/b/c", "/etc", "a b", "https://x.y/z", "x:y"])
def test_a_name_that_the_hub_can_not_have_is_refused_without_asking(name: str) -> None:
    with pytest.raises(ModelError, match=r"OWNER/NAME|has no config\.json"):
        load_model(f"hf:{name}")


def test_without_transformers_the_extra_is_named_and_timms_format_still_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved(tmp_path / "one")
    of_timm(tmp_path / "two")
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> importlib.machinery.ModuleSpec | None:
        return None if name == "transformers" else real(name, *rest)

    monkeypatch.setattr("sightline._optional.find_spec", find)
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[transformers\]'"):
        load_model(f"hf:{tmp_path / 'one'}")
    assert load_model(f"hf:{tmp_path / 'two'}").labels is not None


def test_nothing_is_said_on_stdout_or_as_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, "siglip")
    said_before = json.loads((tmp_path / "config.json").read_text())
    rewritten(tmp_path / "config.json", text_config=said_before["text_config"] | {"bos_token_id": 49_406})
    capfd.readouterr()
    load_model(f"hf:{tmp_path}")
    assert capfd.readouterr() == ("", "")
    assert os.environ.get("TRANSFORMERS_VERBOSITY") is None


def test_a_wrapped_network_of_timm_that_names_a_file_is_refused_and_the_file_never_looked_at(tmp_path: Path) -> None:
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "num_labels": 3,
        "model_args": {"checkpoint_path": str(tmp_path / "elsewhere.pth")},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="without naming it"):
        load_model(tmp_path)
