"""Answers in words: each word's score is its log-probability, its map lies on what it names, and no word knows those after it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hugging
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import sightline
from conftest import assert_close, assert_untouched
from made_texts import (
    BLUE_PLACES,
    BOTH,
    GRID,
    RED_PLACES,
    WORDS,
    drawn,
    exact,
    image_processor,
    llava,
    llava_processor,
    saved,
    scene,
    share,
    tokenizer,
)
from sightline import Adapter, answering, attribute, load_model
from sightline.cli import main
from sightline.errors import ModelError, TargetError
from sightline.models.answers import words_of

QUESTION = "what is this ?"
SCENES = torch.stack([BOTH, scene(RED_PLACES, []), scene([], BLUE_PLACES)])
# 36 places for the picture stand between USER and the question.
ASKED = ["<s>", "USER", ":", *["<image>"] * GRID * GRID, "what", "is", "this", "?", "ASSISTANT", ":"]


def number(word: str) -> int:
    return (
        WORDS.index(word) if word in WORDS else WORDS.index("<unk>")
    )  # capitals are made small, and USER isn't known so


@pytest.fixture(scope="module")
def module() -> Any:
    return llava()


@pytest.fixture(scope="module")
def untrained() -> Any:
    """The same kind of network with random weights everywhere, two blocks deep, which reads the last but one."""
    torch.manual_seed(1)
    vision = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    language = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    settings = hugging.LlavaConfig(
        vision_config=hugging.CLIPVisionConfig(**vision, image_size=48, patch_size=8),
        text_config=hugging.LlamaConfig(
            **language, intermediate_size=16, vocab_size=len(WORDS), max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.5,
        ),
        image_token_id=4, image_token_index=4, initializer_range=0.5,
    )  # fmt: skip
    return hugging.LlavaForConditionalGeneration(settings).eval()


def settled(adapter: Adapter, x: Tensor, **more: Any) -> Adapter:
    assert adapter.settled is not None
    return adapter.settled(x, **more)


def slowly(module: Any, x: Tensor, answer: Sequence[str]) -> Tensor:
    """The log-probability (B, words) of each word: the whole model again for each, one picture after the other."""
    rows = []
    for picture in x:
        before = [number(word.lower()) for word in ASKED]
        row = []
        for word in answer:
            with torch.no_grad():
                ids = torch.tensor([before])
                logits = module(input_ids=ids, pixel_values=picture[None], attention_mask=torch.ones_like(ids)).logits
            row.append(logits[0, -1].log_softmax(dim=-1)[number(word)])
            before.append(number(word))
        rows.append(torch.stack(row))
    return torch.stack(rows)


# ------------------------------------------------------------------------------------------------------------ the scores


@pytest.mark.parametrize("answer", ["red", "a red square", "red red blue a what"])
def test_the_scores_are_the_log_probabilities_of_the_words(module: Any, untrained: Any, answer: str) -> None:
    x = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for one in (module, untrained):
        found = settled(answering(one, llava_processor(), QUESTION), x[:1], answer=answer)
        assert found.labels == tuple(answer.split())
        assert found.task == "words"
        assert_close(found.module(x), slowly(one, x, answer.split()), 1e-4)


def test_a_word_of_several_tokens_has_the_sum_of_their_log_probabilities(untrained: Any) -> None:
    found = settled(answering(untrained, llava_processor(), QUESTION), SCENES[:1], answer="red square?")
    assert found.labels is not None
    alone = slowly(untrained, SCENES, ["red", "square", "?"])
    # These signs of punctuation are words of their own to this tokenizer, and so are put apart when it writes them.
    wanted = alone if len(found.labels) == 3 else torch.stack([alone[:, 0], alone[:, 1:].sum(dim=1)], dim=1)
    assert_close(found.module(SCENES), wanted, 1e-4)


def test_the_answer_is_the_likeliest_next_token_again_and_again(untrained: Any) -> None:
    x = SCENES[:1]
    before = [number(word.lower()) for word in ASKED]
    said: list[str] = []
    while len(said) < 5:
        with torch.no_grad():
            logits = untrained(input_ids=torch.tensor([before]), pixel_values=x).logits[0, -1]
        before.append(int(logits.argmax()))
        if before[-1] == 2:
            break
        said.append(WORDS[before[-1]])
    adapter = answering(untrained, llava_processor(), QUESTION, tokens=5)
    if said:
        words = [word for word in said if not word.startswith("<")]
        found = settled(adapter, x)
        assert [one for one in (found.labels or ()) if one != "(no sign)"] == words
        assert settled(adapter, x).labels == found.labels
    else:
        with pytest.raises(ModelError, match="answers nothing"):
            settled(adapter, x)


def test_an_answer_ends_where_the_model_ends_it(module: Any) -> None:
    adapter = answering(module, llava_processor(), QUESTION)
    assert settled(adapter, SCENES[:1]).labels == ("red",)
    assert settled(adapter, SCENES[2:]).labels == ("blue",)
    with pytest.raises(ModelError, match="answers nothing to 'what is this"):
        settled(answering(_silent(), llava_processor(), QUESTION), SCENES[:1])


def _silent() -> Any:
    """The network, but its first word is its end."""
    module = llava()
    with torch.no_grad():
        module.lm_head.weight[2] = module.lm_head.weight[WORDS.index("red")] * 3
    return module


# -------------------------------------------------------------------------------------------------------------- the maps


def test_the_map_of_an_answers_word_lies_on_what_it_names(module: Any) -> None:
    adapter = answering(module, llava_processor(), QUESTION)
    assert adapter.layer == "model.multi_modal_projector"
    for x, places in ((BOTH, RED_PLACES), (SCENES[2], BLUE_PLACES)):
        heat = attribute(x[None], settled(adapter, x[None]), target=0, method="grad-cam")
        assert heat.shape == (1, GRID, GRID)
        assert share(heat[0], places) > 0.999


def test_the_map_of_a_given_word_lies_on_what_it_names(module: Any) -> None:
    adapter = answering(module, llava_processor(), QUESTION, answer="blue")
    assert share(attribute(BOTH[None], settled(adapter, BOTH[None]), target="blue")[0], BLUE_PLACES) > 0.999


def test_covering_what_a_word_names_is_what_makes_it_unlikely(module: Any) -> None:
    options = {"patch": 8, "stride": 8}
    for word, places in (("red", RED_PLACES), ("blue", BLUE_PLACES)):
        found = settled(answering(module, llava_processor(), QUESTION, answer=word), BOTH[None])
        assert share(attribute(BOTH[None], found, target=0, method="occlusion", options=options)[0], places) > 0.999


def test_a_batch_gives_each_picture_its_own_map(untrained: Any) -> None:
    x = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found = settled(answering(untrained, llava_processor(), QUESTION), x[:1], answer="a red square")
    together = attribute(x, found, target=2)
    assert together.shape == (3, GRID, GRID)
    assert_close(together, torch.cat([attribute(one[None], found, target=2) for one in x]), 1e-4)


def test_the_layer_is_the_last_that_all_of_the_picture_goes_through(untrained: Any) -> None:
    adapter = answering(untrained, llava_processor(), QUESTION)
    assert adapter.layer == "model.multi_modal_projector"
    assert "all that reaches the output goes through" in adapter.layer_reason
    # LLaVA reads the last block but one: what is behind it is dead, and refused.
    found = settled(adapter, SCENES[:1], answer="red")
    assert attribute(SCENES[:1], found, layer="model.vision_tower.encoder.layers.1.layer_norm2").shape == (
        1,
        GRID,
        GRID,
    )


def test_nothing_of_the_users_model_is_changed(untrained: Any) -> None:
    untrained.train()
    try:
        with assert_untouched(untrained, BOTH[None]):
            adapter = answering(untrained, llava_processor(), QUESTION)
            for more in ({}, {"answer": "a red square"}):
                attribute(BOTH[None], settled(adapter, BOTH[None], **more), target=0)
    finally:
        untrained.eval()


# --------------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture(scope="module")
def folder(module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("published") / "llava", module, llava_processor())


def test_a_published_model_answers_as_the_live_one(folder: Path, module: Any) -> None:
    adapter = load_model(f"hf:{folder}", question=QUESTION)
    assert adapter.layer == "model.multi_modal_projector"
    assert [one.value for one in adapter.found if one.what == "question"] == [QUESTION]
    photo = Image.effect_noise((70, 60), 90).convert("RGB")
    own = llava_processor().image_processor(photo, return_tensors="pt")["pixel_values"]
    assert_close(adapter.preprocess(photo)[0][None], own, 1e-2)  # type: ignore[misc]
    x = BOTH[None]
    found = settled(adapter, x)
    assert (found.labels, found.memory_format) == (("red",), adapter.memory_format)
    assert_close(found.module(SCENES), slowly(module, SCENES, ["red"]), 1e-4)
    assert share(attribute(x, found, target=0)[0], RED_PLACES) > 0.999
    assert settled(adapter, x, answer="a blue square").labels == ("a", "blue", "square")


def test_a_word_that_an_answer_has_twice_is_told_with_its_place(module: Any) -> None:
    adapter = answering(module, llava_processor(), QUESTION, answer="red blue red", preprocess=exact)
    maps = sightline.compare(drawn(BOTH), adapter, methods=["grad-cam"], targets=["blue", 0, 2])
    assert [one.label for one in maps] == ["blue", "red (word 1)", "red (word 3)"]
    with pytest.raises(TargetError, match=r"'red' fits 2 words of the answer: word:1, word:3\."):
        sightline.explain(drawn(BOTH), adapter, target="red")


def test_the_command_line_tells_the_whole_answer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(BOTH).save(tmp_path / "photo.png")
    command = ["explain", str(tmp_path / "photo.png"), "--model", f"hf:{folder}", "--question", QUESTION]
    monkeypatch.setattr("sys.argv", ["sightline", *command, "--output", str(tmp_path / "why")])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert re.search(r'says: "[^"]+"\n', capsys.readouterr().out)


def test_the_command_line_lists_the_layer_that_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sightline", "layers", f"hf:{folder}", "--question", QUESTION])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    shown = capsys.readouterr().out
    assert "default: model.multi_modal_projector" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.rstrip().endswith(" default")] == [
        "model.multi_modal_projector"
    ]


def test_weights_are_read_under_the_names_of_old_and_those_of_today(folder: Path, tmp_path: Path, module: Any) -> None:
    there = tmp_path / "old"
    there.mkdir()
    for one in folder.iterdir():
        (there / one.name).write_bytes(one.read_bytes())
    names = load_file(folder / "model.safetensors")
    assert "language_model.lm_head.weight" in names  # which is how save_pretrained still writes them
    save_file({name: one.clone() for name, one in module.state_dict().items()}, there / "model.safetensors")
    config = json.loads((there / "config.json").read_text())
    config["text_config"]["rope_theta"] = 1e9  # a scale, and no size
    (there / "config.json").write_text(json.dumps(config))
    found = settled(load_model(there, question=QUESTION), BOTH[None])
    assert_close(found.module(SCENES), slowly(module, SCENES, ["red"]), 1e-4)


def test_a_processors_file_that_would_fill_the_memory_is_refused(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "endless"
    there.mkdir()
    for one in folder.iterdir():
        (there / one.name).write_bytes(one.read_bytes())
    said = json.loads((there / "processor_config.json").read_text())
    for part, value, message in (
        ("num_additional_image_tokens", 10**9, "expected at most 20,000"),
        ("patch_size", 0, "fails on the question"),
        ("image_token", "what", "pixel_values|fails"),
        ("image_token", 7, "no LlavaProcessor can be made|fails"),
    ):
        (there / "processor_config.json").write_text(json.dumps(said | {part: value}))
        with pytest.raises(ModelError, match=message):
            settled(load_model(there, question=QUESTION), BOTH[None])
    (there / "processor_config.json").write_text(json.dumps(said))
    (there / "chat_template.jinja").write_text(
        "{% for one in messages %}{{ one.__class__.__mro__[1].__subclasses__() }}{% endfor %}"
    )
    with pytest.raises(ModelError, match="fails on the question"):
        load_model(there, question=QUESTION)


def test_tied_words_are_read_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    language = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    made = hugging.LlavaForConditionalGeneration(
        hugging.LlavaConfig(
            vision_config=hugging.CLIPVisionConfig(**vision, image_size=48, patch_size=8),
            text_config=hugging.LlamaConfig(**language, intermediate_size=16, vocab_size=len(WORDS), eos_token_id=2),
            image_token_id=4, image_token_index=4, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    found = settled(
        load_model(saved(tmp_path / "tied", made, llava_processor()), question=QUESTION), SCENES[:1], answer="red"
    )
    assert_close(found.module(SCENES), slowly(made, SCENES, ["red"]), 1e-4)


def test_a_template_of_conversations_is_filled(folder: Path, tmp_path: Path, untrained: Any) -> None:
    processor = llava_processor()
    processor.chat_template = (
        "{% for one in messages %}what {% for part in one['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %} is"
    )
    there = saved(tmp_path / "template", untrained, processor)
    assert (there / "chat_template.jinja").exists()
    asked = ["<s>", "what", *["<image>"] * GRID * GRID, "red", "?", "is"]
    with torch.no_grad():
        ids = torch.tensor([[number(word) for word in asked]])
        wanted = untrained(input_ids=ids, pixel_values=SCENES[:1]).logits[0, -1].log_softmax(dim=-1)[number("blue")]
    for adapter in (load_model(there, question="red ?"), answering(untrained, processor, "red ?")):
        assert_close(settled(adapter, SCENES[:1], answer="blue").module(SCENES[:1])[0, 0], wanted, 1e-4)


def test_a_question_with_the_sign_for_a_picture_is_the_whole_text(untrained: Any) -> None:
    with torch.no_grad():
        ids = torch.tensor([[number(word) for word in ["<s>", "a", *["<image>"] * GRID * GRID, "is"]]])
        wanted = untrained(input_ids=ids, pixel_values=SCENES[:1]).logits[0, -1].log_softmax(dim=-1)[number("blue")]
    found = settled(answering(untrained, llava_processor(), "a <image> is"), SCENES[:1], answer="blue")
    assert_close(found.module(SCENES[:1])[0, 0], wanted, 1e-4)


def test_models_and_questions_that_dont_go_together_say_what_is_offered(folder: Path) -> None:
    with pytest.raises(ModelError, match="--question 'What is this"):
        load_model(folder)
    with pytest.raises(ModelError, match=r"answers a question in words \(--question\) and compares no texts"):
        load_model(folder, prompts=["red"])
    with pytest.raises(ModelError, match="the targets of an answer are its words"):
        load_model(folder, question=QUESTION, labels=["red"])
    with pytest.raises(ModelError, match=r"sightline\.answering\(module, processor, question\)"):
        load_model(llava(), question=QUESTION)


@pytest.mark.parametrize("question", ["", "  ", 7, None, "what " * 3000])
def test_a_question_that_is_none_is_refused(question: Any) -> None:
    with pytest.raises(ModelError, match="the question"):
        answering(llava(), llava_processor(), question)


def test_a_question_longer_than_the_model_reads_is_refused(module: Any) -> None:
    adapter = answering(module, llava_processor(), "what is this " * 10)
    with pytest.raises(
        ModelError, match="has 71 tokens with those of the picture, and the model reads 64; ask shorter"
    ):
        settled(adapter, SCENES[:1])


def test_models_that_cut_pictures_up_are_refused(untrained: Any) -> None:
    parts = {
        "size": {"shortest_edge": 48},
        "crop_size": {"height": 48, "width": 48},
        "image_grid_pinpoints": [[48, 96]],
    }
    processor = hugging.LlavaNextProcessor(
        hugging.LlavaNextImageProcessor(**parts), tokenizer("<s> $A"), patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"it cuts pictures into pieces"):
        answering(untrained, processor, QUESTION)


def test_a_model_without_answers_and_an_input_of_another_size_are_refused(module: Any) -> None:
    with pytest.raises(ModelError, match="gives no answers in words"):
        answering(torch.nn.Conv2d(3, 3, 3), llava_processor(), QUESTION)
    adapter = answering(module, llava_processor(), QUESTION)
    with pytest.raises(ModelError, match="one picture is answered at a time"):
        settled(adapter, SCENES)
    with pytest.raises(ModelError, match="48 x 48 of a picture, and the input is 56 x 56"):
        settled(adapter, torch.zeros(1, 3, 56, 56))
    with pytest.raises(ModelError, match="expected how long an answer may be"):
        answering(module, llava_processor(), QUESTION, tokens=0)


def test_a_model_whose_words_know_those_after_them_is_refused(untrained: Any) -> None:
    class Leaking(hugging.LlavaForConditionalGeneration):
        def forward(
            self, input_ids: Any = None, pixel_values: Any = None, attention_mask: Any = None, **named: Any
        ) -> Any:
            found = super().forward(input_ids, pixel_values, attention_mask, **named)
            found.logits = found.logits + input_ids.float().mean() * torch.arange(len(WORDS))
            return found

    before = untrained.__class__
    untrained.__class__ = Leaking
    try:
        adapter = answering(untrained, llava_processor(), QUESTION)
        with pytest.raises(ModelError, match="no word could be told from those after it"):
            settled(adapter, SCENES[:1], answer="a red square")
    finally:
        untrained.__class__ = before


# ------------------------------------------------------------------------------------------------------------- the words


class Pieces:
    """A tokenizer whose tokens are pieces of text."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return b"".join(self.pieces[one] for one in ids).decode("utf-8", errors="replace").lstrip(" ")


@pytest.mark.parametrize(
    ("pieces", "words", "owner"),
    [
        ((b" a", b" red", b" squ", b"are", b"."), ("a", "red", "square."), [0, 1, 2, 2, 2]),
        ((b"red", b"\n", b"blue"), ("red", "blue"), [0, 0, 1]),
        (("红色".encode()[:2], "红色".encode()[2:3], "色".encode()), ("红", "色"), [0, 0, 1]),
        ((b"", b"red"), ("red",), [0, 0]),
        ((b"a\x07b", b" c"), ("a b", "c"), [0, 1]),
    ],
)
def test_tokens_are_put_together_to_words(pieces: tuple[bytes, ...], words: tuple[str, ...], owner: list[int]) -> None:
    assert words_of(Pieces(*pieces), range(len(pieces))) == (words, owner)


# --------------------------------------------------------------------------------------------------------- other families

_LANGUAGE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "intermediate_size": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.5,
}  # fmt: skip
_TOWER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 48, "patch_size": 8,
    "model_type": "siglip_vision_model",
}  # fmt: skip


def _paligemma() -> tuple[Any, Any]:
    pictures = hugging.SiglipImageProcessor(size={"height": 48, "width": 48})
    pictures.image_seq_length = GRID * GRID
    processor = hugging.PaliGemmaProcessor(pictures, tokenizer("<s> $A"))
    sign = processor.image_token_id
    language = _LANGUAGE | {"model_type": "gemma", "vocab_size": len(processor.tokenizer)}
    settings = hugging.PaliGemmaConfig(
        vision_config=_TOWER,
        text_config=language,
        image_token_id=sign,
        image_token_index=sign,
        projection_dim=16,
        hidden_size=16,
    )
    torch.manual_seed(0)
    return hugging.PaliGemmaForConditionalGeneration(settings).eval(), processor


def _gemma3() -> tuple[Any, Any]:
    words = tokenizer("<s> $A", {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<im>"})
    pictures = hugging.Gemma3ImageProcessor(size={"height": 48, "width": 48})
    processor = hugging.Gemma3Processor(pictures, words, image_seq_length=9)
    processor.chat_template = (
        "{{ bos_token }}{% for one in messages %}{% for part in one['content'] %}{% if part['type'] == 'image' %}<boi>"
        "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %} is"
    )
    settings = hugging.Gemma3Config(
        vision_config=_TOWER,
        text_config=_LANGUAGE | {"model_type": "gemma3_text", "vocab_size": len(words), "sliding_window": 16},
        mm_tokens_per_image=9, boi_token_index=words.boi_token_id, eoi_token_index=words.eoi_token_id,
        image_token_id=words.image_token_id, image_token_index=words.image_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return hugging.Gemma3ForConditionalGeneration(settings).eval(), processor


@pytest.mark.filterwarnings("ignore:__array__")  # of the processor, which is asked itself here
@pytest.mark.parametrize(
    ("make", "grid", "said"), [(_paligemma, GRID, 1), (_gemma3, 3, 0)], ids=["paligemma", "gemma3"]
)
def test_families_that_read_the_question_both_ways_score_their_answer_one_way(make: Any, grid: int, said: int) -> None:
    module, processor = make()
    adapter = answering(module, processor, QUESTION, tokens=3)
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert settled(adapter, x[:1]).task == "words"  # and so its own answer was as likely as when it was said
    found = settled(adapter, x[:1], answer="a red square")
    assert attribute(x, found, target="red").shape == (2, grid, grid)
    text = f"<image>{QUESTION}" if make is _paligemma else processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}], add_generation_prompt=True
    )  # fmt: skip
    plain = {} if make is _paligemma else {"add_special_tokens": False}
    given = processor(images=Image.new("RGB", (48, 48)), text=text, return_tensors="pt", **plain)
    rows = []
    for word in ("a", "red", "square"):
        named = {"input_ids": given["input_ids"], "token_type_ids": given["token_type_ids"]}
        with torch.no_grad():
            logits = [module(pixel_values=one[None], **named).logits[0, -1].log_softmax(dim=-1) for one in x]
        rows.append(torch.stack([one[number(word)] for one in logits]))
        given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([[number(word)]])], dim=1)
        given["token_type_ids"] = torch.cat([given["token_type_ids"], torch.tensor([[said]])], dim=1)
    assert_close(found.module(x), torch.stack(rows, dim=1), 1e-4)


@pytest.mark.parametrize("answer", [None, "a red"])
def test_a_model_that_is_asked_otherwise_than_it_reads_is_refused(answer: str | None) -> None:
    """BLIP leaves the end of the text out where it goes on with it, and so reads another text here."""
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "is_decoder": True,
    }
    text |= {"vocab_size": len(WORDS), "bos_token_id": 1, "sep_token_id": 2, "encoder_hidden_size": 16}
    vision = {name: one for name, one in _TOWER.items() if name != "model_type"}
    torch.manual_seed(0)
    module = hugging.BlipForConditionalGeneration(
        hugging.BlipConfig(vision_config=vision, text_config=text | {"initializer_range": 0.5}, projection_dim=16)
    ).eval()
    pictures = hugging.BlipImageProcessor(size={"height": 48, "width": 48})
    adapter = answering(module, hugging.BlipProcessor(pictures, tokenizer()), "a")
    with pytest.raises(ModelError, match="that is not supported"):
        settled(adapter, SCENES[:1], answer=answer)


def test_paligemma_and_gemma_are_loaded_from_their_files(tmp_path: Path) -> None:
    for name, make in (("paligemma", _paligemma), ("gemma3", _gemma3)):
        module, processor = make()
        loaded = load_model(saved(tmp_path / name, module, processor), question=QUESTION)
        live = answering(module, processor, QUESTION)
        x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        assert loaded.layer == live.layer
        for answer in (None, "a red square"):
            one, other = settled(loaded, x, answer=answer), settled(live, x, answer=answer)
            assert one.labels == other.labels
            assert_close(one.module(x), other.module(x), 1e-4)


def test_git_reads_the_picture_before_the_question_and_scores_its_answer_one_way() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = vision | {"vocab_size": len(WORDS), "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    settings = hugging.GitConfig(
        vision_config=vision | {"image_size": 48, "patch_size": 8}, **text, initializer_range=0.5
    )
    module = hugging.GitForCausalLM(settings).eval()
    processor = hugging.GitProcessor(image_processor(), tokenizer("<s> $A"))
    found = settled(answering(module, processor, QUESTION), SCENES[:1], answer="a red square")
    ids = processor(images=Image.new("RGB", (48, 48)), text=QUESTION, return_tensors="pt")["input_ids"]
    rows = []
    for word in ("a", "red", "square"):
        with torch.no_grad():
            logits = [module(pixel_values=one[None], input_ids=ids).logits[0, -1].log_softmax(dim=-1) for one in SCENES]
        rows.append(torch.stack([one[number(word)] for one in logits]))
        ids = torch.cat([ids, torch.tensor([[number(word)]])], dim=1)
    assert_close(found.module(SCENES), torch.stack(rows, dim=1), 1e-4)
    assert attribute(SCENES, found, target="red").shape == (3, GRID, GRID)
