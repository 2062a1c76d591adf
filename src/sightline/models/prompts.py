"""`zero_shot`: a model that compares pictures with texts is a classifier, whose classes are the texts that it is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sightline._quiet import quiet
from sightline.errors import ModelError
from sightline.models.adapter import Adapter, Task, adapt
from sightline.models.called import called
from sightline.models.given import Finding
from sightline.models.made import few
from sightline.models.processors import taken
from sightline.models.twin import isolated, twin, unwrapped

_LONGEST = 10_000  # characters of a prompt that a tokenizer is given to read
_AT_ONCE = 64  # texts through the text tower
# What tokenizers of texts without a limit of their own say of it.
_NO_LIMIT = 100_000
ONE_PROMPT = (
    "one prompt: the score is how like each other picture and text are (a cosine, scaled), and no probability; "
    "a second prompt gives it something to be told apart from"
)


@dataclass(frozen=True, eq=False)
class Towers:
    """How a library's model makes comparable features of pictures and of texts.

    Attributes:
        picture: (B, D) of (module, pictures (B, C, H, W)).
        texts: (N, D) of (module, tokens).
        read: the tokens (N, length) of texts by the names of what the text tower is given, refusing what it would cut short.
    """

    picture: Callable[[Any, Tensor], Tensor]
    texts: Callable[[Any, Mapping[str, Tensor]], Tensor]
    read: Callable[[Sequence[str]], Mapping[str, Tensor]]


def zero_shot(
    module: nn.Module,
    tokenize: Callable[..., Any],
    prompts: Sequence[str] | str,
    *,
    preprocess: Callable[[Image.Image], Any] | None = None,
    labels: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    name: str | None = None,
) -> Adapter:
    """Makes a live CLIP, SigLIP or a model of open_clip explainable: its classes are the prompts.

    The texts are read once; nothing of the module is changed. `adapter.prompted([...])` asks it by other prompts.

    Args:
        module: a model of transformers (CLIPModel, SiglipModel and their like), or one with `encode_image` and `encode_text`.
        tokenize: its tokenizer or processor: of transformers, or what `open_clip.get_tokenizer` gives.
        prompts: what to tell pictures apart by, such as ["a photo of a cat", "a photo of a dog"].
        preprocess: as for `adapt`: from a PIL picture to a float tensor (C, H, W); that of a processor when left out.
        labels: names for the prompts; the prompts themselves when left out.
        layers: as for `adapt`.
        name: what to call the model.

    Returns:
        The adapter, with logits (B, prompts): of CLIP for a softmax ("classes"; with one prompt "regression", a mere score), of
        SigLIP for a sigmoid each ("labels").

    Raises:
        ModelError: no such model; a prompt that is empty, given twice, or longer than the model reads.
    """
    texts = checked_prompts(prompts)
    module, notes = unwrapped(module)
    towers = towers_of(module, tokenize)
    if preprocess is None and hasattr(tokenize, "image_processor"):
        preprocess = taken(tokenize.image_processor)
    base = adapt(
        called(module, lambda self, _own, x: towers.picture(self, x)),
        layers=layers,
        preprocess=preprocess,
        name=name or type(module).__name__,
    )
    return prompted(replace(base, notes=(*notes, *base.notes)), module, towers, texts, labels)


def prompted(
    adapter: Adapter,
    module: nn.Module,
    towers: Towers,
    prompts: Sequence[str] | str,
    labels: Sequence[str] | None = None,
) -> Adapter:
    """The adapter of a module of two towers, asked by these prompts."""
    texts = checked_prompts(prompts)
    if labels is not None and (isinstance(labels, str) or len(labels) != len(texts)):
        raise ModelError(
            f"labels={labels!r:.200} for {len(texts)} prompts; give one name for each prompt, or leave it out"
        )
    features = _text_features(module, towers, texts)
    sigmoid = getattr(module, "logit_bias", None) is not None
    task: Task = "labels" if sigmoid else "classes" if len(texts) > 1 else "regression"

    def compare(self: Any, _own: Any, x: Tensor) -> Tensor:
        picture = F.normalize(towers.picture(self, x), dim=-1)
        logits = _scale(self).to(picture) * picture @ self.text_features.to(picture).T
        found: Tensor = logits + self.logit_bias.to(logits) if sigmoid else logits
        return found

    return replace(
        adapter,
        module=called(module, compare, text_features=features),
        labels=tuple(" ".join(one.split()) for one in labels or texts),
        task=task,
        provenance=dict(adapter.provenance) | {"prompts": list(texts)},
        notes=(*adapter.notes, ONE_PROMPT) if task == "regression" else adapter.notes,
        found=(
            *(one for one in adapter.found if one.what not in ("prompts", "class names")),
            Finding("prompts", few(texts), "given"),
        ),
        prompted=partial(prompted, adapter, module, towers),
    )


def checked_prompts(prompts: Any) -> tuple[str, ...]:
    """The prompts as they are, or a refusal of what is none."""
    texts = (prompts,) if isinstance(prompts, str) else prompts
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
        raise ModelError(f"prompts={prompts!r:.80}; expected texts, such as ['a photo of a cat', 'a photo of a dog']")
    if not texts:
        raise ModelError("no prompts; say at least one text to look for: --prompt TEXT (prompts=[...])")
    known = set()
    for at, one in enumerate(texts):
        if not one.strip():
            raise ModelError(f"prompt {at + 1} of {len(texts)} is empty; say what to look for, or leave it out")
        if len(one) > _LONGEST:
            raise ModelError(f"prompt {at + 1} has {len(one):,} characters; expected at most {_LONGEST:,}")
        plain = " ".join(one.split())
        if plain in known:
            raise ModelError(f"the prompt {shown(one)} is given twice; each must be another text")
        known.add(plain)
    return tuple(texts)


def shown(text: str) -> str:
    """A text of the user's or a visitor's, for a message."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def towers_of(module: nn.Module, tokenize: Any) -> Towers:
    """The two towers of a live module.

    Raises:
        ModelError: it has none, or compares in a way of its own.
    """
    kind = type(module).__name__
    if not callable(tokenize):
        raise ModelError(f"{type(tokenize).__name__} is no tokenizer; give the one that {kind} was trained with")
    scaled = any(isinstance(getattr(module, one, None), Tensor) for one in ("logit_scale", "temperature"))
    if scaled and hasattr(module, "get_image_features") and hasattr(module, "get_text_features"):
        found = Towers(_pooled_picture, _pooled_texts, partial(_tokens, tokenize, module))
        _check_same(module, found)
        return found
    if scaled and hasattr(module, "encode_image") and hasattr(module, "encode_text"):
        length = int(getattr(module, "context_length", 0) or getattr(tokenize, "context_length", 0) or 0)
        return Towers(_encoded_picture, _encoded_texts, partial(_tokens_of_function, tokenize, length))
    raise ModelError(
        f"{kind} reads no text that pictures are compared with; expected CLIP, SigLIP or their like, with get_image_features and "
        "get_text_features (transformers) or encode_image and encode_text (open_clip). For a classifier: sightline.adapt(module)"
    )


def _scale(module: Any) -> Tensor:
    scale = getattr(module, "logit_scale", None)
    return scale.exp() if isinstance(scale, Tensor) else 1 / module.temperature


def _text_features(module: nn.Module, towers: Towers, texts: Sequence[str]) -> Tensor:
    """The features of the texts (N, D), of length 1, by a stand-in in evaluation mode."""
    tokens = towers.read(texts)
    rows = torch.cat([one.flatten(1).cpu() for one in tokens.values()], dim=1)
    known: dict[tuple[int, ...], int] = {}
    for at, row in enumerate(rows.tolist()):
        same = known.setdefault(tuple(row), at)
        if same != at:
            raise ModelError(
                f"the prompts {shown(texts[same])} and {shown(texts[at])} are one and the same to this model's tokenizer; "
                "each must be another text"
            )
    weight = next(module.parameters())
    with isolated(weight), torch.no_grad():
        stand_in = twin(module, {})
        parts = [
            towers.texts(stand_in, {name: one[at : at + _AT_ONCE].to(weight.device) for name, one in tokens.items()})
            for at in range(0, len(texts), _AT_ONCE)
        ]
        features = F.normalize(torch.cat(parts), dim=-1).detach()
    if not bool(features.isfinite().all()):
        raise ModelError("the text tower gives NaN or infinity for these prompts; are the weights whole?")
    return features


# ------------------------------------------------------------------------------------------------------ transformers


def _pooled_picture(module: Any, x: Tensor) -> Tensor:
    return _features(module.get_image_features(pixel_values=x))


def _pooled_texts(module: Any, tokens: Mapping[str, Tensor]) -> Tensor:
    return _features(module.get_text_features(**tokens))


def _features(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


def _tokens(tokenize: Any, module: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """What a tokenizer of transformers makes of texts: padded to the longest, for SigLIP to the length it was trained with."""
    tokenizer = getattr(tokenize, "tokenizer", tokenize)
    length = _length(tokenizer, module)
    padding: dict[str, Any] = {"padding": True}
    if getattr(module, "logit_bias", None) is not None:
        padding = {"padding": "max_length", "max_length": length}
    try:
        with quiet():
            for one in texts:
                _check_length(one, len(tokenizer(one)["input_ids"]), length)
            made = tokenizer(list(texts), return_tensors="pt", **padding)
            return {name: made[name] for name in made if isinstance(made[name], Tensor)}
    except ModelError:
        raise
    except Exception as error:  # a tokenizer of the user's or of a file's
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} fails on the prompts: {str(error)[:300]}"
        ) from error


def _length(tokenizer: Any, module: Any) -> int:
    """How many tokens the text tower reads."""
    settings = getattr(getattr(module, "config", None), "text_config", None)
    known = [getattr(settings, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    return min([int(one) for one in known if isinstance(one, int) and 0 < one < _NO_LIMIT], default=_NO_LIMIT)


def _check_length(text: str, count: int, length: int) -> None:
    if count > length:
        raise ModelError(
            f"the prompt {shown(text)} has {count:,} tokens (with those for its beginning and end), and the model reads "
            f"{length:,}; say it shorter"
        )


def _check_same(module: Any, towers: Towers) -> None:
    """Whether the model's own forward compares as is done here: its logits for one picture and two texts are ours."""
    kind, settings = type(module).__name__, getattr(module.config, "vision_config", None)
    side = getattr(settings, "image_size", None)
    if not isinstance(side, int):
        raise ModelError(
            f"{kind} takes pictures in another form than (B, 3, H, W), cut into patches of any number: no map can be laid back "
            "from these. Take a model of a fixed size, such as SiglipModel, which also reads SigLIP 2 of a fixed size"
        )
    weight = next(module.parameters())
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(weight)
    tokens = {name: one.to(weight.device) for name, one in towers.read(["a", "b c"]).items()}
    try:
        with quiet(), isolated(x), torch.no_grad():
            stand_in: Any = twin(module, {})
            own = stand_in(pixel_values=x, **tokens).logits_per_image
            picture, texts = (
                F.normalize(one, dim=-1) for one in (towers.picture(stand_in, x), towers.texts(stand_in, tokens))
            )
            ours = _scale(stand_in) * picture @ texts.T
            if getattr(stand_in, "logit_bias", None) is not None:
                ours = ours + stand_in.logit_bias
    except Exception as error:
        raise ModelError(f"{kind} can't be asked by prompts: {str(error)[:300]}") from error
    # 16-bit numbers round the two orders of the same product differently.
    near = 1e-3 if weight.dtype == torch.float32 else 3e-2
    if ours.shape != own.shape or not torch.allclose(
        ours, own, rtol=near, atol=near * float(_scale(module).detach().abs())
    ):
        raise ModelError(
            f"{kind} compares pictures and texts in a way of its own, which prompts can't stand for; give a function of its output: "
            "sightline.adapt(module, logits=...)"
        )


# --------------------------------------------------------------------------------------------------------- open_clip


def _encoded_picture(module: Any, x: Tensor) -> Tensor:
    found = module.encode_image(x)
    features: Tensor = found[0] if isinstance(found, tuple) else found
    return features


def _encoded_texts(module: Any, tokens: Mapping[str, Tensor]) -> Tensor:
    found = module.encode_text(tokens["text"])
    features: Tensor = found[0] if isinstance(found, tuple) else found
    return features


def _tokens_of_function(tokenize: Any, length: int, texts: Sequence[str]) -> dict[str, Tensor]:
    """What a function from texts to numbers (N, length) makes of them; those of open_clip cut without a word."""
    try:
        with quiet():
            made = tokenize(list(texts))
            short = [_without_end(one) for one in texts]
            cut = tokenize(short)
    except Exception as error:
        raise ModelError(f"the tokenizer fails on the prompts: {str(error)[:300]}") from error
    if not isinstance(made, Tensor) or made.dim() != 2 or len(made) != len(texts) or made.is_floating_point():
        raise ModelError(
            f"the tokenizer gave {type(made).__name__} {tuple(getattr(made, 'shape', ()))}; expected whole numbers "
            f"({len(texts)}, length), as open_clip.get_tokenizer(...)(texts) gives them"
        )
    for at, one in enumerate(texts):
        _check_length(one, _count(tokenize, one), length or made.shape[1])
        if torch.equal(made[at], cut[at]):
            raise ModelError(
                f"the prompt {shown(one)} is longer than the {made.shape[1]} tokens that the model reads, so that its end would not "
                "be read; say it shorter"
            )
    return {"text": made}


def _count(tokenize: Any, text: str) -> int:
    """How many tokens a text has, 0 where the tokenizer can't be asked."""
    inner, encode = getattr(tokenize, "tokenizer", None), getattr(tokenize, "encode", None)
    if callable(inner):
        clean = getattr(tokenize, "clean_fn", str)
        return len(inner(clean(text))["input_ids"])
    return len(encode(text)) + 2 if callable(encode) else 0


def _without_end(text: str) -> str:
    """A text without its last word."""
    words = list(re.finditer(r"\w+", text))
    return text[: words[-1].start()] if words else ""
