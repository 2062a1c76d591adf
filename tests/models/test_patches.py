"""Models that are given a picture in patches (Qwen2-VL and its kin): the input is a picture all the same, and so is the map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hugging
from PIL import Image
from torch import Tensor
from transformers.models.auto.video_processing_auto import video_processor_class_from_name

import sightline
from conftest import assert_close, assert_untouched
from made_texts import WORDS, saved, tokenizer
from sightline import Adapter, answering, attribute, load_model
from sightline.errors import ImageError, ModelError
from sightline.models.answers import _another, _generated
from sightline.models.patches import Patches, patches_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__")  # of GLM-4V's processor, which is asked itself here
QUESTION = "what is this ?"
KINDS = ["qwen2", "qwen2.5", "qwen3", "glm4v"]
PATCHES = Patches(8, 2, 2)
PLACES = "model.visual.places"
# Signs of pictures, of films, and of where they begin and end.
_SIGNS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
_SIZES = {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 16 * 16, "longest_edge": 128 * 128}}


def made(kind: str, depth: int = 2) -> tuple[Any, Any]:
    """A small network of random weights, of which each block of `depth` mixes all places, and its processor."""
    words = tokenizer("<s> $A", _SIGNS)
    language = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "initializer_range": 0.5, "vocab_size": len(words),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    tower: dict[str, Any] = {
        "depth": depth, "hidden_size": 16, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "initializer_range": 0.5,
    }  # fmt: skip
    signs = {"image_token_id": words.image_token_id, "video_token_id": words.video_token_id}
    between = {"vision_start_token_id": 5, "vision_end_token_id": 6}
    wide = {"out_hidden_size": 16, "intermediate_size": 16}
    if kind == "qwen2":
        parts = hugging.Qwen2VLConfig, hugging.Qwen2VLForConditionalGeneration, hugging.Qwen2VLProcessor, "Qwen2VL"
        tower |= {"embed_dim": 16, "mlp_ratio": 2}
    elif kind == "qwen2.5":
        parts = (
            hugging.Qwen2_5_VLConfig,
            hugging.Qwen2_5_VLForConditionalGeneration,
            hugging.Qwen2_5_VLProcessor,
            "Qwen2VL",
        )
        tower |= wide | {"window_size": 32, "fullatt_block_indexes": [depth - 1]}
    elif kind == "qwen3":
        parts = hugging.Qwen3VLConfig, hugging.Qwen3VLForConditionalGeneration, hugging.Qwen3VLProcessor, "Qwen3VL"
        tower |= wide | {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1][:depth]}
    else:
        parts = hugging.Glm4vConfig, hugging.Glm4vForConditionalGeneration, hugging.Glm4vProcessor, "Glm4v"
        tower |= wide | {"image_size": 48}
        between = {
            "image_start_token_id": 5,
            "image_end_token_id": 6,
            "video_start_token_id": 7,
            "video_end_token_id": 8,
        }
    settings, network, whole, films = parts
    pictures = (hugging.Glm4vImageProcessor if kind == "glm4v" else hugging.Qwen2VLImageProcessor)(**_SIZES)
    processor = whole(pictures, words, video_processor_class_from_name(f"{films}VideoProcessor")())
    torch.manual_seed(0)
    return network(settings(text_config=language, vision_config=tower, **signs, **between)).eval(), processor


def pictures(count: int = 2, height: int = 48, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def settled(adapter: Adapter, x: Tensor, **more: Any) -> Adapter:
    assert adapter.settled is not None
    return adapter.settled(x, **more)


def number(word: str) -> int:
    return WORDS.index(word) if word in WORDS else WORDS.index("<unk>")


def asked(processor: Any, height: int, width: int) -> dict[str, Tensor]:
    """The question with the places of a picture of this size before it, as the published processor lays it out."""
    blank = Image.new("RGB", (width, height))
    text = f"USER: {processor.image_token}\n{QUESTION} ASSISTANT:"
    found = dict(processor(images=blank, text=text, return_tensors="pt"))
    assert found.pop("image_grid_thw").tolist() == [[1, height // 8, width // 8]]
    return {name: one for name, one in found.items() if name != "pixel_values"}


def by_loops(x: Tensor) -> tuple[Tensor, Tensor]:
    """One picture (3, H, W) as the table of patches that transformers writes, one number after the other."""
    _, height, width = x.shape
    rows = []
    for row in range(0, height // 8, 2):
        for column in range(0, width // 8, 2):
            for below in range(2):
                for right in range(2):
                    top, left = 8 * (row + below), 8 * (column + right)
                    values = [
                        x[channel, top + i, left + j]
                        for channel in range(3)
                        for _ in range(2)
                        for i in range(8)
                        for j in range(8)
                    ]
                    rows.append(torch.stack(values))
    return torch.stack(rows), torch.tensor([[1, height // 8, width // 8]])


# -------------------------------------------------------------------------------------------------------- the picture


def test_a_picture_is_cut_as_the_loops_do_and_put_together_again() -> None:
    x = pictures(2, 32, 48)
    found = PATCHES.cut(x)
    tables, grids = zip(*(by_loops(one) for one in x), strict=True)
    assert bool((found["pixel_values"] == torch.cat(tables)).all())
    assert found["image_grid_thw"].tolist() == torch.cat(grids).tolist()
    for one, table, grid in zip(x, tables, grids, strict=True):
        assert bool((PATCHES.whole(table, grid)[0] == one).all())
    with pytest.raises(ModelError, match=r"the input is 40 x 32, .* pieces of 16 x 16; expected multiples"):
        PATCHES.cut(x[..., :40])


@pytest.mark.parametrize("kind", [hugging.Qwen2VLImageProcessor, hugging.Glm4vImageProcessor])
def test_the_processors_cut_as_is_known_of_them(kind: Any) -> None:
    processor = kind(**_SIZES)
    assert patches_of(processor) == PATCHES
    noise = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    wanted = processor(Image.fromarray(noise), return_tensors="pt")
    x = PATCHES.whole(wanted["pixel_values"], wanted["image_grid_thw"])
    values = torch.from_numpy(noise).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(one)[:, None, None] for one in (processor.image_mean, processor.image_std))
    assert_close(x, (values - mean) / std, 1e-5)


@pytest.mark.parametrize("turn", ["rows", "pixels", "neighbours"])
def test_what_is_cut_otherwise_is_none_of_these(turn: str) -> None:
    class Turned(hugging.Qwen2VLImageProcessor):
        def __call__(self, *args: Any, **keywords: Any) -> Any:
            found = super().__call__(*args, **keywords)
            table = found["pixel_values"]
            if turn == "rows":
                table = table.flip(0)
            elif turn == "pixels":
                table = table.reshape(-1, 3, 2, 8, 8).transpose(3, 4).flatten(1)
            else:
                table = table.reshape(-1, 2, 2, table.shape[1]).transpose(1, 2).reshape(table.shape)
            found["pixel_values"] = table
            return found

    assert patches_of(Turned(**_SIZES)) is None
    module, processor = made("qwen2")
    processor.image_processor = Turned(**_SIZES)
    with pytest.raises(ModelError, match="it cuts pictures into pieces"):
        answering(module, processor, QUESTION)


def test_other_processors_cut_nothing() -> None:
    assert patches_of(hugging.CLIPImageProcessor()) is None
    assert patches_of(None) is None


# --------------------------------------------------------------------------------------------------------- the scores


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores_are_the_log_probabilities_of_the_words(kind: str) -> None:
    module, processor = made(kind)
    x = pictures()
    found = settled(answering(module, processor, QUESTION), x[:1], answer="a red square")
    assert found.labels == ("a", "red", "square")
    rows = []
    for one in x:
        table, grid = by_loops(one)
        given = asked(processor, 48, 64)
        row = []
        for word in found.labels:
            with torch.no_grad():
                logits = module(pixel_values=table, image_grid_thw=grid, **given).logits[0, -1]
            row.append(logits.log_softmax(dim=-1)[number(word)])
            given = {
                "input_ids": torch.cat([given["input_ids"], torch.tensor([[number(word)]])], dim=1),
                "attention_mask": torch.cat([given["attention_mask"], torch.tensor([[1]])], dim=1),
                "mm_token_type_ids": torch.cat([given["mm_token_type_ids"], torch.tensor([[0]])], dim=1),
            }
        rows.append(torch.stack(row))
    assert_close(found.module(x), torch.stack(rows), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_answer_is_the_likeliest_next_token_again_and_again(kind: str) -> None:
    module, processor = made(kind)
    x = pictures(1)
    table, grid = by_loops(x[0])
    with torch.no_grad():
        said = module.generate(
            pixel_values=table, image_grid_thw=grid, **asked(processor, 48, 64), max_new_tokens=3, do_sample=False
        )[0, -3:]
    found = settled(answering(module, processor, QUESTION, tokens=3), x)
    assert list(found.labels) == processor.tokenizer.decode(said, skip_special_tokens=True).split()


# ----------------------------------------------------------------------------------------------------------- the maps


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_is_made_of_what_the_language_model_is_told(kind: str) -> None:
    """Activations and gradients of the tower's own output, by plain autograd."""
    module, processor = made(kind)
    x = pictures(1)
    adapter = answering(module, processor, QUESTION)
    assert adapter.layer == PLACES
    found = settled(adapter, x, answer="red")
    heard: list[list[Tensor]] = []

    def hook(_module: Any, _args: Any, output: Any) -> None:
        heard.append([output.pooler_output, *(getattr(output, "deepstack_features", None) or [])])
        for one in heard[-1]:
            one.retain_grad()

    table, grid = by_loops(x[0])
    handle = module.model.visual.register_forward_hook(hook)
    logits = module(pixel_values=table.requires_grad_(), image_grid_thw=grid, **asked(processor, 48, 64)).logits
    handle.remove()
    logits[0, -1].log_softmax(dim=-1)[number("red")].backward()
    assert len(heard[0]) == (3 if kind == "qwen3" else 1)
    product = [one * one.grad for one in heard[0] if one.grad is not None]
    wanted = torch.stack([one.sum(dim=1) for one in product]).sum(dim=0).reshape(1, 3, 4)
    assert_close(attribute(x, found, target="red", method="hires-cam"), wanted, 1e-4)


@pytest.mark.parametrize("kind", ["qwen2", "qwen2.5", "glm4v"])
def test_a_place_of_the_map_is_its_place_in_the_picture(kind: str) -> None:
    """Without blocks nothing mixes: only the place that is changed says something else, windows and all."""
    module, processor = made(kind, depth=0)
    x = pictures(1, 64, 96)
    found = settled(answering(module, processor, QUESTION), x, answer="red")
    before = sightline.capture(x, found).activations
    for row, column in ((0, 0), (1, 4), (3, 2)):
        other = x.clone()
        other[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] *= -1
        moved = (sightline.capture(other, found).activations - before).abs().amax(dim=1)[0]
        assert moved.nonzero().tolist() == [[row, column]]


@pytest.mark.parametrize("kind", KINDS)
def test_photographs_of_any_shape_have_maps_of_their_shape(kind: str) -> None:
    module, processor = made(kind)
    adapter = answering(module, processor, QUESTION, answer="a red square")
    for size, grid in (((90, 60), (4, 6)), ((40, 100), (6, 2))):
        photo = noise(*size)
        heatmap = sightline.explain(photo, adapter, target="red")
        assert heatmap.raw.shape == grid
        assert heatmap.view.input == (16 * grid[1], 16 * grid[0])
        assert "layer model.visual.places" in heatmap.caption()
    covered = sightline.explain(photo, adapter, target="red", method="occlusion", options={"patch": 16, "stride": 16})
    assert covered.raw.shape == (6, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_users_model_is_changed(kind: str) -> None:
    module, processor = made(kind)
    x = pictures()
    with assert_untouched(module):
        found = settled(answering(module, processor, QUESTION), x[:1], answer="a red")
        attribute(x, found, target="red")
        attribute(x[:1], found, target="red", method="occlusion", options={"patch": 16, "stride": 16})
    assert not hasattr(module.model.visual, "places")


# ---------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_model_answers_as_the_live_one(kind: str, tmp_path: Path) -> None:
    module, processor = made(kind)
    loaded = load_model(saved(tmp_path / "it", module, processor), question=QUESTION)
    live = answering(module, processor, QUESTION)
    assert (loaded.layer, loaded.layer_reason) == (live.layer, live.layer_reason)
    x = pictures()
    one, other = (settled(each, x[:1], answer="a red square") for each in (loaded, live))
    assert_close(one.module(x), other.module(x), 1e-4)
    photo = noise(90, 60)
    assert loaded.preprocess is not None
    assert live.preprocess is not None
    # Of files Pillow resizes, and rounds to a colour otherwise than torchvision does here.
    assert_close(loaded.preprocess(photo)[0], live.preprocess(photo)[0], 1e-2)


def test_the_areas_of_a_published_file_are_taken_and_those_that_would_fill_the_memory_are_refused(
    tmp_path: Path,
) -> None:
    module, processor = made("qwen2")
    there = saved(tmp_path / "it", module, processor)
    file = there / "processor_config.json"
    said = json.loads(file.read_text())
    pictures_of = said["image_processor"]
    for areas in (
        {"min_pixels": 3136, "max_pixels": 12_845_056},
        {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}},
    ):
        kept = {name: one for name, one in pictures_of.items() if name != "size"}
        file.write_text(json.dumps(said | {"image_processor": kept | areas}))
        assert load_model(there, question=QUESTION).layer == PLACES
    for areas, most in (
        ({"min_pixels": 10**9}, "1,048,576|16,777,216"),
        ({"size": {"shortest_edge": 4096**2, "longest_edge": 4096**2}}, "1,048,576"),
        ({"max_pixels": 10**9}, "16,777,216"),
    ):
        file.write_text(json.dumps(said | {"image_processor": pictures_of | areas}))
        with pytest.raises(ModelError, match=f"expected at most ({most})"):
            load_model(there, question=QUESTION)


# ------------------------------------------------------------------------------------------------------ hostile and odd


def published(kind: str, folder: Path, **pictures_of: Any) -> Path:
    """A published model whose file says other things of its pictures."""
    there = saved(folder / "it", *made(kind))
    file = there / "processor_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"image_processor": said["image_processor"] | pictures_of}))
    return there


@pytest.mark.parametrize(
    ("said", "most"), [({"patch_size": 1000}, "64"), ({"merge_size": 2048}, "8"), ({"temporal_patch_size": 2048}, "8")]
)
def test_pieces_that_would_fill_the_memory_are_refused(said: dict[str, int], most: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"expected at most {most}$"):
        load_model(published("qwen2", tmp_path, **said), question=QUESTION)
    assert patches_of(hugging.Qwen2VLImageProcessor(**_SIZES | said)) is None


def test_sides_of_a_processor_that_cuts_nothing_are_no_areas_whatever_else_its_file_says(tmp_path: Path) -> None:
    said = {"image_processor_type": "ViTImageProcessor", "size": {"height": 4096, "width": 4096}}
    with pytest.raises(ModelError, match="4096; expected at most 2,048"):
        load_model(published("qwen2", tmp_path, **said), question=QUESTION)


def test_a_processor_that_cuts_otherwise_than_the_model_reads_is_refused() -> None:
    """Rows of as many numbers: 4 x 4 x 8 for 8 x 8 x 2."""
    module, processor = made("qwen2")
    processor.image_processor = hugging.Qwen2VLImageProcessor(**_SIZES | {"patch_size": 4, "temporal_patch_size": 8})
    with pytest.raises(ModelError, match=r"patch_size 4, and Qwen2VLForConditionalGeneration reads .* with 8"):
        answering(module, processor, QUESTION)


def test_a_picture_that_would_be_resized_twice_keeps_its_input() -> None:
    module, processor = made("glm4v")
    area = {
        "shortest_edge": 64 * 64,
        "longest_edge": 64 * 64,
    }  # 90 x 60 becomes less than that, which would become more
    processor.image_processor = hugging.Glm4vImageProcessor(**_SIZES | {"size": area})
    photo = noise(90, 60)
    heatmap = sightline.explain(photo, answering(module, processor, QUESTION, answer="a red"), target="red")
    assert heatmap.view.input == (16 * heatmap.raw.shape[1], 16 * heatmap.raw.shape[0])


def test_pictures_that_are_bytes_and_such_as_cannot_be_cut_up_are_told_apart() -> None:
    module, processor = made("qwen2")
    photo = noise(90, 60)
    processor.image_processor = hugging.Qwen2VLImageProcessor(**_SIZES, do_rescale=False, do_normalize=False)
    assert patches_of(processor.image_processor) == PATCHES
    adapter = answering(module, processor, QUESTION, answer="a red")
    assert sightline.explain(photo, adapter, target="red").raw.shape == (4, 6)
    processor.image_processor = hugging.Qwen2VLImageProcessor(**_SIZES, do_resize=False)
    with pytest.raises(ImageError, match="fails on a picture of 90 x 60"):
        sightline.explain(photo, answering(module, processor, QUESTION, answer="a red"), target="red")


def test_full_grad_counts_the_numbers_of_words_as_missing() -> None:
    module, processor = made("qwen2")
    x = pictures(1)
    found = settled(answering(module, processor, QUESTION), x, answer="a red")
    assert attribute(x, found, target="red", method="full-grad").isfinite().all()


def test_a_tower_that_tells_of_a_picture_in_another_way_is_refused() -> None:
    """Its tower is called otherwise, and what it says is merged behind it."""
    _, processor = made("qwen2")
    words = processor.tokenizer
    language = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 48}
    settings = hugging.PaddleOCRVLConfig(
        text_config=language | {"intermediate_size": 16, "vocab_size": len(words), "rope_parameters": rope},
        vision_config=tower | {"intermediate_size": 16},
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
    )
    adapter = answering(hugging.PaddleOCRVLForConditionalGeneration(settings).eval(), processor, QUESTION)
    with pytest.raises(ModelError, match="PaddleOCRVisionModel does not tell the language model of a picture as"):
        settled(adapter, pictures(1), answer="a red")


def test_an_answer_that_holds_the_sign_for_a_picture_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    module, processor = made("qwen2.5")
    adapter, sign, x = answering(module, processor, QUESTION, tokens=3), module.config.image_token_id, pictures(1)

    def say_it(_asking: Any, _x: Tensor, _given: Any, _tokens: int) -> tuple[list[int], Tensor]:
        return [sign, 5], torch.zeros(2, 40)

    monkeypatch.setattr("sightline.models.answers._generated", say_it)
    with pytest.raises(ModelError, match="a sign that stands for a picture"):
        settled(adapter, x)


@pytest.mark.parametrize("heard", [0, 1])
def test_given_words_are_scored_also_where_the_model_itself_would_say_a_sign_for_a_picture(
    heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, processor = made("qwen2")
    adapter, sign, x = answering(module, processor, QUESTION), module.config.image_token_id, pictures(1)
    wanted = settled(adapter, x, answer="a red").module(x)

    def then_a_sign(*asked: Any) -> tuple[list[int], Tensor]:
        own, steps = _generated(*asked)
        return [*own[:heard], sign], torch.cat([steps[:heard], torch.zeros_like(steps[:1])])

    monkeypatch.setattr("sightline.models.answers._generated", then_a_sign)
    assert_close(settled(adapter, x, answer="a red").module(x), wanted, 1e-6)


def test_another_token_is_none_that_stands_for_a_picture() -> None:
    """That no word knows those after it is checked with another last token: a sign for a picture would be counted as one."""
    module, _ = made("qwen2")
    for token, sign in ((0, 1), (1, 0), (7, 0), (2, 0)):
        module.config.image_token_id = sign
        assert _another(module, token) not in (token, sign)
