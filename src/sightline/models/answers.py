"""`answering`: a language model that sees a picture and answers in words; each word's log-probability is a score."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sightline._quiet import quiet
from sightline.errors import LayerError, ModelError
from sightline.models import layers as layer_choice
from sightline.models.adapter import Adapter, adapt, like_weights
from sightline.models.called import called
from sightline.models.patches import GRID, PLACES, TOWER, Patches, check_fits, patches_of, with_places
from sightline.models.preprocess import Preprocess, measured, specification
from sightline.models.processors import taken
from sightline.models.prompts import shown
from sightline.models.twin import isolated, twin, unwrapped

TOKENS = 20
_LONGEST = 10_000  # characters of a question or an answer
_MOST_TOKENS = 1000
# What a text is for a language model; all else that a processor makes of a picture is another form of it.
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_LEFT_OUT = ("pixel_values", "labels", "num_crops")


@dataclass(frozen=True, eq=False)
class Asking:
    """A question to a model that answers in words.

    Attributes:
        module: the model.
        processor: what lays out the text round the places of a picture.
        question: as asked.
        answer: what it is to say, or None for its own answer.
        tokens: how long its own answer may be.
        ends: tokens at which an answer ends.
        patches: how the model is given pictures in pieces; None of one that is given them whole.
    """

    module: Any
    processor: Any
    question: str
    answer: str | None
    tokens: int
    ends: frozenset[int]
    patches: Patches | None = None


def asking_of(
    module: Any, processor: Any, question: str, answer: str | None = None, tokens: int = TOKENS, ends: Any = None
) -> Asking:
    """A question to a model; `ends` are tokens that end an answer beside those of the model and its tokenizer."""
    check_form(module)
    patches = patches_of(getattr(processor, "image_processor", None))
    seen = module
    if patches is not None:
        check_fits(patches, module)
        seen = with_places(module)
    return Asking(seen, processor, question, answer, tokens, _ends_of(module, processor, ends), patches)


def answering(
    module: nn.Module,
    processor: Callable[..., Any],
    question: str,
    *,
    answer: str | None = None,
    tokens: int = TOKENS,
    preprocess: Callable[[Image.Image], Any] | None = None,
    layers: Sequence[str] | None = None,
    name: str | None = None,
) -> Adapter:
    """Makes a live image-text-to-text model of transformers explainable: the targets are the words of its answer.

    There is no answer before a picture was seen: `adapter.settled(x)` has the model answer for the input x (1, 3, H, W), and
    gives the adapter whose scores (B, words) are the log-probabilities of these words, each given the question, the picture and
    the words before it. Nothing of the module is changed.

    Args:
        module: such as LlavaForConditionalGeneration.
        processor: its processor, which takes `images` and `text`.
        question: what to ask, such as "What is this?".
        answer: words to score in place of the model's own answer.
        tokens: how many tokens its own answer may have; it says the likeliest next token, again and again.
        preprocess: as for `adapt`; the processor's own when left out.
        layers: as for `adapt`; the last one that all of the picture goes through to the language model when left out.
        name: what to call the model.

    Raises:
        ModelError: a question or answer that is none, or a model that takes pictures in another form than (B, 3, H, W).
    """
    module, notes = unwrapped(module)
    asking = asking_of(module, processor, _text("question", question), _answer(answer), _count(tokens))
    laid_out(processor, asking.question, 64, 64)
    take: Preprocess | None = None
    if preprocess is not None:
        take = preprocess if specification(preprocess) else measured(preprocess)
    elif hasattr(processor, "image_processor"):
        take = taken(processor.image_processor)
    found = None
    if layers is None and take is not None:
        x, _ = take(Image.new("RGB", (256, 256), (124, 116, 104)))
        found = layer_for(asking, x.shape[-2], x.shape[-1])
        layers = None if found is None else [found[0]]
    base = adapt(first_word(asking), layers=layers, preprocess=take, name=name or type(module).__name__)
    reason = base.layer_reason if found is None else found[1]
    return settling(replace(base, layer_reason=reason, notes=(*notes, *base.notes)), asking)


def settling(adapter: Adapter, asking: Asking) -> Adapter:
    """The adapter of a model that has seen no picture yet: what it returns are the logits of its answer's first token (B, tokens)."""
    adapter = replace(adapter, provenance=dict(adapter.provenance) | {"question": asking.question})
    return replace(adapter, settled=partial(_settled, adapter, asking))


def check_form(module: Any) -> None:
    """Refuses a model whose answer isn't read on from the question."""
    kind = type(module).__name__
    if not hasattr(module, "generate") or not hasattr(module, "config"):
        raise ModelError(
            f"{kind} gives no answers in words; expected an image-text-to-text model of transformers, such as LlavaForConditionalGeneration"
        )
    if getattr(module.config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} reads the question in one network and answers in another, which is not supported")


def _ends_of(module: Any, processor: Any, more: Any = None) -> frozenset[int]:
    """The tokens that end an answer, by the model, its tokenizer and what else says so."""
    settings = getattr(module, "generation_config", None)
    found = [getattr(settings, "eos_token_id", None), getattr(_tokenizer(processor), "eos_token_id", None), more]
    known = [part for one in found for part in (one if isinstance(one, list | tuple) else [one])]
    return frozenset(one for one in known if type(one) is int)


def first_word(asking: Asking) -> nn.Module:
    """The module as a function of pictures alone: the logits of the answer's first token."""
    inputs = lru_cache(maxsize=8)(partial(text_inputs, asking))  # by the size of the input

    def begin(self: Any, own: Any, x: Tensor) -> Tensor:
        given = inputs(x.shape[-2], x.shape[-1])
        settings = _settings(own, 1)
        logits: Tensor = own(**_shown(asking.patches, x), **_for_batch(given, x), **settings).logits
        return logits[:, -1]

    return called(asking.module, begin)


def layer_for(asking: Asking, height: int, width: int) -> tuple[str, str] | None:
    """The last layer that all of the picture goes through on its way to the words, and why; None where that can't be said."""
    if asking.patches is not None:
        return f"model.{TOWER}.{PLACES}", "all that the language model is told of the picture"
    if not hasattr(asking.module, "get_image_features"):
        return None
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    x = like_weights(x, asking.module)

    def features(self: Any, _own: Any, x: Tensor) -> Tensor:
        found = self.get_image_features(pixel_values=x)
        found = getattr(found, "pooler_output", found)
        found = torch.stack(list(found)) if isinstance(found, list | tuple) else found
        return found.flatten(1, -2).mean(dim=1)  # the mean: each place counts alike

    try:
        seen = called(asking.module, features)
        layer, reason = layer_choice.whole(seen, x) or layer_choice.choose(seen, x)
    except (LayerError, ModelError, RuntimeError):
        return None
    return layer, f"on the way to the language model: {reason}"


# ----------------------------------------------------------------------------------------------------- the question


def _text(what: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ModelError(f"the {what} is {text!r:.80}; expected a text, such as 'What is this?'")
    if len(text) > _LONGEST:
        raise ModelError(f"the {what} has {len(text):,} characters; expected at most {_LONGEST:,}")
    return text


def checked_question(question: Any) -> str:
    """The question as it is, or a refusal of what is none."""
    return _text("question", question)


def _answer(answer: Any) -> str | None:
    return None if answer is None else _text("answer", answer)


def _count(tokens: Any) -> int:
    if type(tokens) is not int or not 1 <= tokens <= _MOST_TOKENS:
        raise ModelError(f"tokens is {tokens!r:.40}; expected how long an answer may be, 1 to {_MOST_TOKENS:,}")
    return tokens


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def conversation(processor: Any, question: str) -> str:
    """The question as the model was trained to be asked: by its template of conversations, else round its sign for a picture.

    A question that has this sign in it is the whole text already.
    """
    sign = getattr(processor, "image_token", None)
    if not isinstance(sign, str) or sign in question:
        return question
    if getattr(processor, "chat_template", None):
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        return str(processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False))
    return f"{sign}{question}" if "PaliGemma" in type(processor).__name__ else f"USER: {sign}\n{question} ASSISTANT:"


def laid_out(
    processor: Any, question: str, height: int, width: int, more: str = "", **settings: Any
) -> dict[str, Tensor]:
    """What a processor, told these settings, makes of a blank picture of this size and the question.

    Raises:
        ModelError: it takes pictures in another form than (B, 3, H, W), or gives what can't be kept while the picture changes.
    """
    kind = type(processor).__name__
    try:
        with quiet():
            text = conversation(processor, question) + more
            start = getattr(_tokenizer(processor), "bos_token", None)
            twice = {"add_special_tokens": False} if start and text.startswith(start) else {}
            blank = Image.new("RGB", (width, height), (124, 116, 104))
            made = processor(images=blank, text=text, return_tensors="pt", **twice, **settings)
    except Exception as error:
        raise ModelError(f"the {kind} fails on the question {shown(question)}: {str(error)[:300]}") from error
    picture = made.get("pixel_values")
    if GRID in made and (patches := patches_of(getattr(processor, "image_processor", None))) is not None:
        picture = made["pixel_values"] = patches.whole(picture, made.pop(GRID))
    if not isinstance(picture, Tensor) or picture.dim() != 4 or picture.shape[:2] != (1, 3):
        got = tuple(picture.shape) if isinstance(picture, Tensor) else type(picture).__name__
        raise ModelError(
            f"the {kind} makes {got} of one picture, not (1, 3, H, W): it cuts pictures into pieces, from which no map can be laid "
            "back. Take a model that sees the picture whole, such as LLaVA 1.5, Qwen2.5-VL, PaliGemma or Gemma 3 without pan and scan"
        )
    other = [name for name in made if name not in (*_OF_TEXT, *_LEFT_OUT)]
    if other or "input_ids" not in made:
        raise ModelError(
            f"the {kind} gives {', '.join(sorted(made))[:200]}: beside pixel_values and input_ids no {' and no '.join(other)[:100]} "
            "can be kept while the picture changes"
        )
    return dict(made)


def text_inputs(asking: Asking, height: int, width: int, more: str = "") -> dict[str, Tensor]:
    """What the model is given beside an input of this size: the question's tokens, with places for the picture among them."""
    # What is cut into patches was resized before: to some areas it would be again.
    as_it_is: dict[str, Any] = {}
    if asking.patches is not None:
        asking.patches.check_size(height, width)
        as_it_is = {"do_resize": False}
    made = laid_out(asking.processor, asking.question, height, width, more, **as_it_is)
    picture, count = made["pixel_values"], made["input_ids"].shape[1]
    if tuple(picture.shape[-2:]) != (height, width):
        raise ModelError(
            f"the {type(asking.processor).__name__} makes {picture.shape[-1]} x {picture.shape[-2]} of a picture, and the input is "
            f"{width} x {height}; give the input that its preprocessing makes"
        )
    settings = getattr(asking.module.config, "text_config", None)
    most = getattr(settings, "max_position_embeddings", None)
    if isinstance(most, int) and count >= most:
        raise ModelError(
            f"the question {shown(asking.question)} has {count:,} tokens with those of the picture, and the model reads {most:,}; "
            "ask shorter"
        )
    return {name: made[name] for name in _OF_TEXT if name in made}


def _shown(patches: Patches | None, x: Tensor) -> dict[str, Tensor]:
    """Pictures as the model takes them."""
    return {"pixel_values": x} if patches is None else patches.cut(x)


def _for_batch(given: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    return {name: one.to(x.device).expand(len(x), -1) for name, one in given.items()}


def _settings(own: Any, places: int) -> dict[str, Any]:
    """What spares the model work, where it takes that."""
    known = inspect.signature(own).parameters
    settings: dict[str, Any] = {"logits_to_keep": places} if "logits_to_keep" in known else {}
    open_ = any(one.kind is one.VAR_KEYWORD for one in known.values())
    return settings | ({"use_cache": False} if "use_cache" in known or open_ else {})


# ------------------------------------------------------------------------------------------------------- the answer


def _settled(adapter: Adapter, asking: Asking, x: Tensor, answer: str | None = None) -> Adapter:
    """The adapter whose scores are the log-probabilities of the words that the model says of this input (1, 3, H, W)."""
    if not isinstance(x, Tensor) or x.dim() != 4 or len(x) != 1:
        raise ModelError(
            f"the input is {tuple(getattr(x, 'shape', ()))}; one picture is answered at a time, (1, 3, H, W)"
        )
    said = _answer(answer) or asking.answer
    x = like_weights(x, asking.module)
    given = text_inputs(asking, x.shape[-2], x.shape[-1])
    # Of a model that is given its words a first one or two of its own are heard all the same, for the check.
    own, steps = _generated(asking, x, given, asking.tokens if said is None else 2)
    if said is None:
        ids = own[: next((at for at, one in enumerate(own) if one in asking.ends), len(own))]
    else:
        ids = _ids_of(asking, said, given, x)
    if _signs(asking.module).intersection(ids):
        raise ModelError(
            f"{adapter.name} says a sign that stands for a picture, which no answer can hold; are its weights trained? Give the words: "
            "answer='...'"
        )
    if not ids:
        raise ModelError(
            f"{adapter.name} answers nothing to {shown(asking.question)}; ask otherwise, or give the words: answer='...'"
        )
    words, owner = words_of(_tokenizer(asking.processor), ids)
    module = forced(asking, given, ids, owner, len(words))
    heard = next((at for at, one in enumerate(own) if one in _signs(asking.module)), len(own))
    if heard:  # up to a sign for a picture, which would be counted as one
        _check_forced(adapter, asking, x, given, own[:heard], steps[:heard])
    _check_forced(adapter, asking, x, given, ids, None)
    found = (
        layer_for(asking, x.shape[-2], x.shape[-1]) if adapter.layer is None else (adapter.layer, adapter.layer_reason)
    )
    layer, reason = found or (None, "")
    origin = {"answer": " ".join(words), "answer_given": said is not None}
    return replace(
        adapter,
        module=module,
        labels=words,
        task="words",
        layer=layer,
        layer_reason=reason,
        provenance=dict(adapter.provenance) | origin,
        settled=None,
    )


def forced(
    asking: Asking, given: Mapping[str, Tensor], ids: Sequence[int], owner: Sequence[int], words: int
) -> nn.Module:
    """The module as a function of pictures: the log-probability (B, words) of each word of a given answer."""
    text = _continued(asking.module, given, ids)
    to_word = torch.zeros(len(ids), words)
    to_word[torch.arange(len(ids)), torch.tensor(owner)] = 1

    def say(self: Any, own: Any, x: Tensor) -> Tensor:
        tokens = _log_probabilities(own, self.answer_text, self.answer_ids, x, asking.patches)
        found: Tensor = tokens @ self.answer_words.to(x.device)
        return found

    kept = {"answer_text": text, "answer_ids": torch.tensor(ids), "answer_words": to_word}
    return called(asking.module, say, **kept)


def _log_probabilities(own: Any, text: Mapping[str, Tensor], ids: Tensor, x: Tensor, patches: Patches | None) -> Tensor:
    """Of each token of the answer (B, tokens)."""
    count = len(ids)
    logits = own(**_shown(patches, x), **_for_batch(text, x), **_settings(own, count + 1)).logits
    said = logits[:, -count - 1 : -1].float().log_softmax(dim=-1)
    found: Tensor = said.gather(2, ids.to(x.device)[None, :, None].expand(len(x), -1, 1))[..., 0]
    return found


def _continued(module: Any, given: Mapping[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """The question's tokens with the answer behind them; what the answer's tokens count as, the model itself says."""
    count = len(ids)
    more = {
        "input_ids": torch.tensor([list(ids)]),
        "attention_mask": torch.ones(1, count, dtype=torch.long),
        **dict.fromkeys(("token_type_ids", "mm_token_type_ids"), torch.zeros(1, count, dtype=torch.long)),
    }
    if "token_type_ids" in given and "PaliGemma" in type(module).__name__:
        more["token_type_ids"] = torch.ones(
            1, count, dtype=torch.long
        )  # there 1 is what is said, one word after the other
    return {name: torch.cat([one, more[name].to(one)], dim=1) for name, one in given.items()}


def _generated(asking: Asking, x: Tensor, given: Mapping[str, Tensor], tokens: int) -> tuple[list[int], Tensor]:
    """The likeliest next token, again and again, with what ends the answer; and the logits of each."""
    from transformers import GenerationConfig

    configuration: Any = GenerationConfig
    tokenizer = _tokenizer(asking.processor)
    ends = sorted(asking.ends)
    settings = configuration(
        max_new_tokens=tokens, do_sample=False, num_beams=1, eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else getattr(tokenizer, "pad_token_id", None), output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    try:
        with quiet(), isolated(x), torch.no_grad():
            stand_in: Any = twin(asking.module, {})
            stand_in.__dict__["generation_config"] = configuration()  # no penalties and tempers of its own
            made = stand_in.generate(**_shown(asking.patches, x), **_for_batch(given, x), generation_config=settings)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{type(asking.module).__name__} can't answer: {str(error)[:300]}") from error
    logits = torch.stack(list(made.logits), dim=1)[0]
    return made.sequences[0, -len(logits) :].tolist(), logits


def _ids_of(asking: Asking, answer: str, given: Mapping[str, Tensor], x: Tensor) -> list[int]:
    """The tokens of an answer as they come after the question."""
    before = given["input_ids"][0].tolist()
    with quiet():
        alone = _tokenizer(asking.processor)(answer, add_special_tokens=False)["input_ids"]
    for space in (" ", ""):
        both = text_inputs(asking, x.shape[-2], x.shape[-1], space + answer)["input_ids"][0].tolist()
        if both[: len(before)] == before and len(both) > len(before):
            alone = both[len(before) :]
            break
    end = next((at for at, one in enumerate(alone) if one in asking.ends), len(alone))
    if end > _MOST_TOKENS:
        raise ModelError(f"the answer has {end:,} tokens; expected at most {_MOST_TOKENS:,}")
    return [int(one) for one in alone[:end]]


def words_of(tokenizer: Any, ids: Sequence[int]) -> tuple[tuple[str, ...], list[int]]:
    """The words of an answer, and for each token the word that it belongs to; what is written without spaces goes by its signs."""
    owner: list[int] = []
    words: list[str] = []
    known = ""
    for at in range(len(ids)):
        text = tokenizer.decode(list(ids[: at + 1]), skip_special_tokens=True)
        whole = not text.endswith("\ufffd")  # half a sign so far
        piece = text[len(known) :] if text.startswith(known) else text
        apart = not known or known[-1].isspace() or piece[:1].isspace() or _stands_alone(piece[:1])
        if not words or (apart and piece.strip() and words[-1]):
            words.append("")
        if whole:
            words[-1] += piece.strip()
            known = text
        owner.append(len(words) - 1)
    clean = ["".join(sign if sign.isprintable() else " " for sign in one)[:200] for one in words]
    return tuple(one or "(no sign)" for one in clean), owner


def _stands_alone(sign: str) -> bool:
    return bool(sign) and unicodedata.east_asian_width(sign) in "WF"


def _signs(module: Any) -> frozenset[int]:
    """The tokens that stand for a picture in a text."""
    names = ("image_token_id", "image_token_index")
    known = [getattr(module.config, name, None) for name in names]
    return frozenset(one for one in known if type(one) is int)


def _another(module: Any, token: int) -> int:
    """A token that is neither this one nor stands for a picture."""
    left_out = {token, *_signs(module)}
    return min(set(range(len(left_out) + 1)) - left_out)


def _check_forced(
    adapter: Adapter,
    asking: Asking,
    x: Tensor,
    given: Mapping[str, Tensor],
    ids: Sequence[int],
    steps: Tensor | None,
) -> None:
    """Refuses a model that, given a whole answer at once, finds it otherwise likely than word by word.

    Args:
        adapter: for the message.
        asking: the question.
        x: the input.
        given: the question's tokens.
        ids: the answer's.
        steps: the logits with which it said them itself; None: that no word knows the last one is checked alone.
    """
    weight = next(asking.module.parameters())
    near = 2e-3 if weight.dtype == torch.float32 else 0.5  # 16-bit numbers add up to other sums in another order
    with quiet(), isolated(x), torch.no_grad():
        stand_in: Any = twin(asking.module, {})
        try:
            likely = partial(_log_probabilities, stand_in, x=x, patches=asking.patches)
            together = likely(_continued(asking.module, given, ids), torch.tensor(ids))[0]
            if steps is not None:
                apart = (
                    steps.float().log_softmax(dim=-1).gather(1, torch.tensor(ids, device=steps.device)[:, None])[:, 0]
                )
            else:  # another last token: what was said before it can't know
                other = [*ids[:-1], _another(asking.module, ids[-1])]
                apart = likely(_continued(asking.module, given, other), torch.tensor(other))[0]
                together, apart = together[:-1], apart[:-1]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ModelError(f"{adapter.name} can't be asked how likely an answer is: {str(error)[:300]}") from error
    if not bool(together.isfinite().all()):
        raise ModelError(f"{adapter.name} gives NaN or infinity for its answer; are the weights whole?")
    if together.shape != apart.shape or (len(apart) and float((together - apart.to(together)).abs().max()) > near):
        raise ModelError(
            f"{adapter.name} finds its answer otherwise likely when it reads it whole than when it says it word by word, so that no word "
            "could be told from those after it; that is not supported"
        )
