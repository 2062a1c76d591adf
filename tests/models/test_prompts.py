"""Texts as classes: the logits are the library's own, the map lies on what the text says, and no text is cut without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers as hugging
from PIL import Image

from conftest import assert_close, assert_untouched
from made_texts import (
    BLUE_PLACES,
    BOTH,
    PROMPTS,
    RED_PLACES,
    WORDS,
    clip,
    drawn,
    exact,
    image_processor,
    saved,
    scene,
    share,
    siglip,
    tokenizer,
)
from sightline import attribute, explain, load_model, zero_shot
from sightline.cli import main
from sightline.errors import ModelError
from sightline.models import hub

MADE: dict[str, Callable[[], Any]] = {"clip": clip, "siglip": siglip}
BOTH_KINDS = pytest.mark.parametrize("kind", MADE)
SCENES = torch.stack([BOTH, scene(RED_PLACES, []), scene([], BLUE_PLACES)])
TEXTS = (*PROMPTS, "a square", "what is this", "red")
LENGTHS: dict[str, Any] = {"clip": {"padding": True}, "siglip": {"padding": "max_length", "max_length": 8}}


def own_logits(kind: str, module: Any, x: torch.Tensor, texts: Any) -> torch.Tensor:
    with torch.no_grad():
        tokens = tokenizer()(list(texts), return_tensors="pt", **LENGTHS[kind])
        return module(pixel_values=x, **tokens).logits_per_image


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("published")
    return {
        kind: saved(where / kind, make(), hugging.CLIPProcessor(image_processor(), tokenizer()))
        for kind, make in MADE.items()
    }


# --------------------------------------------------------------------------------------------------- transformers, live


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@BOTH_KINDS
def test_the_logits_are_transformers_own_for_every_number_of_prompts_and_pictures(kind: str, count: int) -> None:
    module = MADE[kind]()
    adapter = zero_shot(module, tokenizer(), TEXTS[:count])
    for x in (SCENES, SCENES[:1]):
        assert_close(adapter.module(x), own_logits(kind, module, x, TEXTS[:count]))
    assert adapter.labels == TEXTS[:count]


@BOTH_KINDS
@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "occlusion"])
def test_the_map_of_a_text_lies_on_what_it_says(kind: str, method: str) -> None:
    adapter = zero_shot(MADE[kind](), tokenizer(), PROMPTS)
    options = {"patch": 8, "stride": 8} if method == "occlusion" else None
    for target, places in enumerate((RED_PLACES, BLUE_PLACES)):
        heat = attribute(BOTH[None], adapter, target=target, method=method, options=options)[0]
        assert share(heat, places) > 0.999


def test_the_map_of_one_free_text_lies_on_what_it_says() -> None:
    adapter = zero_shot(clip(), tokenizer(), "a blue square")
    assert share(attribute(BOTH[None], adapter)[0], BLUE_PLACES) > 0.999


def test_places_that_make_up_all_of_a_cosine_are_not_said_to_move_it_little() -> None:
    """A cosine is blind to length: what speaks for a text and what speaks against it add up to nothing."""
    adapter = zero_shot(clip(), tokenizer(), PROMPTS, preprocess=exact)
    assert not any("in the class token before it" in one for one in explain(drawn(BOTH), adapter).warnings)


@BOTH_KINDS
def test_a_batch_gives_each_picture_its_own_map(kind: str) -> None:
    adapter = zero_shot(MADE[kind](), tokenizer(), PROMPTS)
    together = attribute(SCENES, adapter, target=1)
    alone = torch.cat([attribute(one[None], adapter, target=1) for one in SCENES])
    assert_close(together, alone)


def test_clip_is_a_softmax_siglip_a_sigmoid_each_and_one_prompt_of_clip_a_mere_score() -> None:
    assert zero_shot(clip(), tokenizer(), PROMPTS).task == "classes"
    assert zero_shot(siglip(), tokenizer(), PROMPTS).task == "labels"
    assert zero_shot(siglip(), tokenizer(), PROMPTS[:1]).task == "labels"
    alone = zero_shot(clip(), tokenizer(), PROMPTS[:1])
    assert alone.task == "regression"
    assert any("no probability" in note for note in alone.notes)
    assert not any("no probability" in note for note in alone.prompted(PROMPTS).notes)  # type: ignore[misc]


@BOTH_KINDS
def test_nothing_of_the_users_model_is_changed(kind: str) -> None:
    module = MADE[kind]().train()
    with assert_untouched(module, BOTH[None]):
        adapter = zero_shot(module, tokenizer(), PROMPTS)
        attribute(BOTH[None], adapter, target="red")
        attribute(BOTH[None], adapter.prompted(["red"]))  # type: ignore[misc]


def test_the_texts_are_read_once() -> None:
    module = clip()
    calls = []
    module.text_model.register_forward_hook(lambda *_: calls.append(1))
    adapter = zero_shot(module, tokenizer(), PROMPTS)
    calls.clear()
    attribute(BOTH[None], adapter, target=0, method="occlusion")
    assert not calls


def test_other_prompts_are_asked_without_loading_again() -> None:
    module = clip()
    adapter = zero_shot(module, tokenizer(), PROMPTS)
    other = adapter.prompted(TEXTS[1:4])  # type: ignore[misc]
    assert other.layer == adapter.layer
    assert other.labels == TEXTS[1:4]
    assert other.provenance["prompts"] == list(TEXTS[1:4])  # by which a run tells that it is another one
    assert_close(other.module(SCENES), own_logits("clip", module, SCENES, TEXTS[1:4]))
    assert_close(adapter.module(SCENES), own_logits("clip", module, SCENES, PROMPTS))


def test_a_processor_brings_its_tokenizer_and_its_preprocessing() -> None:
    adapter = zero_shot(clip(), hugging.CLIPProcessor(image_processor(), tokenizer()), PROMPTS)
    photo = Image.fromarray(((BOTH.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).resize((96, 96), 0)
    found = explain(photo, adapter, target="red")
    assert found.label == "a red square"
    heat = torch.as_tensor(found.values).float()
    assert heat.shape == (96, 96)
    assert int(heat.argmax()) // 96 < 32  # red is above


def test_names_may_stand_for_the_prompts() -> None:
    adapter = zero_shot(clip(), tokenizer(), PROMPTS, labels=["red", "blue"])
    assert adapter.labels == ("red", "blue")
    with pytest.raises(ModelError, match="give one name for each prompt"):
        zero_shot(clip(), tokenizer(), PROMPTS, labels=["red"])


REFUSED: dict[str, tuple[Any, str]] = {
    "none": ([], "say at least one text to look for: --prompt"),
    "empty": (["red", "  "], "prompt 2 of 2 is empty"),
    "twice": (["a red square", "a  red square"], "is given twice"),
    "same to the tokenizer": (["Red", "red"], "one and the same to this model's tokenizer"),
    "too long": (["red " * 9], "has 11 tokens .* and the model reads 8; say it shorter"),
    "endless": (["r" * 20_000], "20,000 characters"),
    "a number": ([7], "expected texts"),
    "a mapping": ({"red": 1}, "expected texts"),
}


@pytest.mark.parametrize("case", REFUSED)
@BOTH_KINDS
def test_prompts_that_are_none_are_refused_with_a_sentence(kind: str, case: str) -> None:
    prompts, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        zero_shot(MADE[kind](), tokenizer(), prompts)


def test_a_model_that_reads_no_text_says_so() -> None:
    with pytest.raises(ModelError, match="reads no text"):
        zero_shot(torch.nn.Conv2d(3, 3, 3), tokenizer(), PROMPTS)


def test_a_model_that_compares_in_its_own_way_is_refused() -> None:
    class Own(hugging.CLIPModel):
        def forward(self, *given: Any, **named: Any) -> Any:
            found = super().forward(*given, **named)
            found.logits_per_image = 2 * found.logits_per_image
            return found

    module = clip()
    module.__class__ = Own
    with pytest.raises(ModelError, match="in a way of its own"):
        zero_shot(module, tokenizer(), PROMPTS)


def test_patches_of_any_number_are_refused() -> None:
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_patches": 36,
    }
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 20,
    }
    module = hugging.Siglip2Model(hugging.Siglip2Config(vision_config=vision, text_config=text))
    with pytest.raises(ModelError, match="another form than"):
        zero_shot(module, tokenizer(), PROMPTS)


# ------------------------------------------------------------------------------------------------ transformers, published


@BOTH_KINDS
def test_a_published_model_gives_transformers_own_logits(kind: str, folders: dict[str, Path]) -> None:
    adapter = load_model(f"hf:{folders[kind]}", prompts=PROMPTS)
    assert_close(adapter.module(SCENES), own_logits(kind, MADE[kind](), SCENES, PROMPTS))
    assert adapter.task == {"clip": "classes", "siglip": "labels"}[kind]
    assert [one.value for one in adapter.found if one.what == "prompts"] == ["a red square, a blue square"]
    other = adapter.prompted(["blue", "red"])  # type: ignore[misc]
    assert (other.layer, other.memory_format) == (adapter.layer, adapter.memory_format)
    assert share(attribute(BOTH[None], adapter, target=0)[0], RED_PLACES) > 0.999


@BOTH_KINDS
def test_a_published_models_preprocessing_is_its_processors(kind: str, folders: dict[str, Path]) -> None:
    photo = Image.effect_noise((70, 60), 90).convert("RGB")
    adapter = load_model(folders[kind], prompts=PROMPTS)
    own = hugging.CLIPImageProcessorPil.from_pretrained(folders[kind])(photo, return_tensors="pt")["pixel_values"]
    assert_close(adapter.preprocess(photo)[0][None], own, 1e-4)  # type: ignore[misc]


def test_a_published_models_tokenizer_is_the_one_that_transformers_chooses(tmp_path: Path) -> None:
    letters = [sign for one in "abcdefghijklmnopqrstuvwxyz" for sign in (one, f"{one}</w>")]
    vocabulary = {word: at for at, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, "re", "red</w>"])}
    made = hugging.CLIPTokenizer(vocab=vocabulary, merges=[("r", "e"), ("re", "d</w>")])
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": len(vocabulary), "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 20}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 48, "patch_size": 8}
    torch.manual_seed(0)
    module = hugging.CLIPModel(hugging.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)).eval()
    folder = saved(tmp_path / "it", module, hugging.CLIPProcessor(image_processor(), made))
    texts = ["Red", "a bed  bug", "red,red"]
    tokens = hugging.AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = module(pixel_values=SCENES, **tokens).logits_per_image
    assert_close(load_model(folder, prompts=texts).module(SCENES), wanted)


def test_what_a_tokenizers_settings_say_of_files_and_code_is_not_obeyed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for one in folders["clip"].iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_file": "/etc/hostname"}
    said |= {"vocab_file": "/etc/hostname", "gguf_file": "x.gguf", "name_or_path": "someone/else"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    adapter = load_model(folder, prompts=PROMPTS)
    assert_close(adapter.module(SCENES), own_logits("clip", clip(), SCENES, PROMPTS))
    assert not (tmp_path / "ran").exists()


def test_a_broken_or_missing_tokenizer_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for one in folders["clip"].iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "WordLevel"')
    with pytest.raises(ModelError, match="no tokenizer can be made of the files"):
        load_model(folder, prompts=PROMPTS)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_model(folder, prompts=PROMPTS)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (folder / "tokenizer.json").symlink_to(secret)
    with pytest.raises(ModelError, match="a link that leads out of it"):
        load_model(folder, prompts=PROMPTS)


def test_models_and_texts_that_dont_go_together_say_what_is_offered(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="--prompt 'a photo of a cat'"):
        load_model(folders["clip"])
    with pytest.raises(ModelError, match=r"tells pictures apart by texts \(--prompt\) and answers no questions"):
        load_model(folders["clip"], question="what is this ?")
    with pytest.raises(ModelError, match="reads no text"):
        load_model("bundled", prompts=PROMPTS)
    with pytest.raises(ModelError, match="reads no text"):
        load_model("timm:resnet18", random_weights=True, question="what is this ?")
    with pytest.raises(ModelError, match=r"sightline\.zero_shot\(module, tokenizer, prompts\)"):
        load_model(clip(), prompts=PROMPTS)
    with pytest.raises(ModelError, match="has no head of classes"):
        load_model(folders["clip"], prompts=PROMPTS, num_classes=3)
    with pytest.raises(ModelError, match="exclude each other"):
        load_model(folders["clip"], prompts=PROMPTS, question="what ?")


def test_a_loaded_model_takes_other_prompts(folders: dict[str, Path]) -> None:
    adapter = load_model(folders["clip"], prompts=PROMPTS)
    assert load_model(adapter, prompts=["red", "blue"]).labels == ("red", "blue")
    assert load_model(adapter) is adapter
    with pytest.raises(ModelError, match="takes none"):
        load_model(load_model("bundled"), prompts=PROMPTS)


def test_the_command_line_asks_by_prompts(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(((BOTH.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).resize((96, 96), 0).save(photo)
    model = ["--model", f"hf:{folders['clip']}", "--prompt", "a red square", "--prompt", "a blue square"]
    monkeypatch.setattr("sys.argv", ["sightline", "explain", str(photo), *model, "--output", str(tmp_path / "why.png")])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert (tmp_path / "why.png").exists()
    assert "a red square" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- open_clip

_OPEN: dict[str, dict[str, Any]] = {
    "sightline-tiny": {"vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}},
    "sightline-rn": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}},
    "sightline-sigmoid": {
        "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    },
}  # fmt: skip
EACH_OPEN = pytest.mark.parametrize("name", _OPEN)
_OPEN_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Small architectures that open_clip knows from now on, each with a network and its weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    made = {}
    for name, parts in _OPEN.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 16, "text_cfg": _OPEN_TEXT, **parts}))
        open_clip.add_model_config(folder / f"{name}.json")
        torch.manual_seed(0)
        kind = open_clip.model.CustomTextCLIP if parts.get("custom_text") else open_clip.model.CLIP
        module = kind(
            **{key: one for key, one in open_clip.get_model_config(name).items() if key != "custom_text"}
        ).eval()
        torch.save(module.state_dict(), folder / f"{name}.pt")
        made[name] = module, folder / f"{name}.pt"
    return made


def documented(module: Any, x: torch.Tensor, texts: Any) -> torch.Tensor:
    """As open_clip's README asks a model."""
    with torch.no_grad():
        pictures, words = (
            module.encode_image(x),
            module.encode_text(open_clip.SimpleTokenizer(context_length=16)(texts)),
        )
        pictures = pictures / pictures.norm(dim=-1, keepdim=True)
        words = words / words.norm(dim=-1, keepdim=True)
        logits = module.logit_scale.exp() * pictures @ words.T
        return logits if module.logit_bias is None else logits + module.logit_bias


@EACH_OPEN
def test_open_clips_models_give_what_its_documentation_computes(name: str, opened: Any) -> None:
    module, weights = opened[name]
    texts = ["a red square", "a blue circle", "dots"]
    side = _OPEN[name]["vision_cfg"]["image_size"]
    x = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    wanted = documented(module, x, texts)
    loaded = load_model(f"openclip:{name}", weights=weights, prompts=texts)
    live = zero_shot(module, open_clip.SimpleTokenizer(context_length=16), texts)
    assert_close(loaded.module(x), wanted, 1e-4)  # batch norm is folded
    assert_close(live.module(x), wanted)
    for adapter in (loaded, live):
        assert adapter.task == ("labels" if name == "sightline-sigmoid" else "classes")
        heat = attribute(x, adapter, target=1)
        assert heat.shape[0] == 3
        assert bool(heat.any())
    assert loaded.layer is not None
    assert loaded.layer.startswith("visual.")


@EACH_OPEN
def test_open_clips_preprocessing_is_its_own(name: str, opened: Any) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    module, weights = opened[name]
    photo = Image.effect_noise((90, 70), 90).convert("RGB")
    own = image_transform_v2(PreprocessCfg(size=module.visual.image_size), is_train=False)(photo)
    adapter = load_model(f"openclip:{name}", weights=weights, prompts=["a"])
    assert_close(adapter.preprocess(photo)[0], own)  # type: ignore[misc]


def test_a_text_that_open_clip_would_cut_is_refused(opened: Any) -> None:
    module, weights = opened["sightline-tiny"]
    long = "a dog " * 10
    with pytest.raises(ModelError, match=r"has 22 tokens .* and the model reads 16; say it shorter"):
        load_model("openclip:sightline-tiny", weights=weights, prompts=[long])
    plain = open_clip.SimpleTokenizer(context_length=16)
    with pytest.raises(
        ModelError, match="longer than the 16 tokens"
    ):  # a mere function can't be asked how many there are
        zero_shot(module, lambda texts: plain(texts), [long])
    assert zero_shot(module, lambda texts: plain(texts), ["a dog " * 7]).labels == (
        "a dog a dog a dog a dog a dog a dog a dog",
    )


def test_open_clip_sets_up_no_logging_and_no_trace(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    module, _ = opened["sightline-tiny"]
    with assert_untouched(module):
        attribute(BOTH[None], zero_shot(module, open_clip.SimpleTokenizer(context_length=16), PROMPTS))
    load_model("openclip:sightline-tiny", random_weights=True, prompts=PROMPTS)
    assert not caplog.records


def test_what_open_clip_cant_give_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="--prompt 'a photo of a cat'"):
        load_model("openclip:ViT-B-32")
    with pytest.raises(ModelError, match="Did you mean 'ViT-B-32'"):
        load_model("openclip:ViT-B32", prompts=PROMPTS)
    with pytest.raises(ModelError, match="has no weights 'nothing'; it has openai"):
        load_model("openclip:ViT-B-32:nothing", prompts=PROMPTS)
    with pytest.raises(ModelError, match="a network of another library"):
        load_model("openclip:roberta-ViT-B-32", prompts=PROMPTS, random_weights=True)

    def away(repository: str, file: str, wanted: str) -> Path:
        raise ModelError(f"{repository} of {wanted} can't be had")

    monkeypatch.setattr("sightline.models.openclip.fetched_if_there", away)
    with pytest.raises(ModelError, match=r"timm/vit_base_patch32_clip_224.openai of openclip:ViT-B-32 can't be had"):
        load_model("openclip:ViT-B-32", prompts=PROMPTS)
    assert hub.fetched_if_there is not away


# ------------------------------------------------------------------------------------------------- tokenizers of others


def test_a_cut_that_a_tokenizers_file_asks_for_is_not_made_in_silence(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    for one in folders["clip"].iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    said = json.loads((folder / "tokenizer.json").read_text())
    said["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"has 14 tokens .* reads 8"):
        load_model(folder, prompts=["a red square " * 4])


def test_siglips_words_in_a_file_of_sentencepiece_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    import sentencepiece

    folder = tmp_path / "pieces"
    folder.mkdir()
    for one in folders["siglip"].iterdir():
        if not one.name.startswith("tokenizer"):
            (folder / one.name).write_bytes(one.read_bytes())
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a red square\na blue square\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=16, hard_vocab_limit=False, character_coverage=1.0,
        bos_id=-1, eos_id=1, pad_id=0, unk_id=2, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "SiglipTokenizer", "model_max_length": 8, "model_input_names": ["input_ids"]})
    )
    own = hugging.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=8, model_input_names=["input_ids"])
    texts = ["red", "a blue"]
    tokens = own(texts, return_tensors="pt", padding="max_length", max_length=8)
    assert set(tokens) == {"input_ids"}
    assert int(tokens["input_ids"].max()) < 16
    with torch.no_grad():
        wanted = siglip()(pixel_values=SCENES, **tokens).logits_per_image
    assert_close(load_model(folder, prompts=texts).module(SCENES), wanted)


# ------------------------------------------------------------------------------------------------------- other families

_VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 48, "patch_size": 8,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20,
    "max_position_embeddings": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], Any]] = {
    "altclip": lambda: hugging.AltCLIPModel(
        hugging.AltCLIPConfig(vision_config=_VISION, text_config=_TEXT | {"project_dim": 16}, projection_dim=16)
    ),
    "chinese_clip": lambda: hugging.ChineseCLIPModel(
        hugging.ChineseCLIPConfig(vision_config=_VISION, text_config=_TEXT, projection_dim=16)
    ),
    "metaclip_2": lambda: hugging.MetaClip2Model(
        hugging.MetaClip2Config(vision_config=_VISION, text_config=_TEXT, projection_dim=16)
    ),
    "blip": lambda: hugging.BlipModel(
        hugging.BlipConfig(vision_config=_VISION, text_config=_TEXT | {"encoder_hidden_size": 16}, projection_dim=16)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_give_transformers_own_logits(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = FAMILIES[family]().eval()
    folder = saved(tmp_path / family, module, hugging.CLIPProcessor(image_processor(), tokenizer()))
    tokens = tokenizer()(list(TEXTS), return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = module(pixel_values=SCENES, **tokens).logits_per_image
    for adapter in (load_model(folder, prompts=TEXTS), zero_shot(module, tokenizer(), TEXTS)):
        assert_close(adapter.module(SCENES), wanted, 1e-4)
        assert attribute(SCENES, adapter, target=1).shape == (3, 6, 6)


def test_align_compares_as_its_own_forward_does() -> None:
    torch.manual_seed(0)
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    vision = {"image_size": 64, "width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 64}
    module = hugging.AlignModel(hugging.AlignConfig(text_config=text, vision_config=vision, projection_dim=64)).eval()
    for one in module.vision_model.modules():
        if isinstance(one, torch.nn.Conv2d):  # as they begin, nothing would reach the end
            torch.nn.init.kaiming_normal_(one.weight)
    words, prompts = tokenizer(), ["a red square", "blue"]
    adapter = zero_shot(module, words, prompts)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = module(pixel_values=x, **words(prompts, padding=True, return_tensors="pt")).logits_per_image
        assert_close(adapter.module(x), wanted, 1e-4)
    assert attribute(x, adapter, target="blue", method="hires-cam").abs().max() > 0
