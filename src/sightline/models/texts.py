"""Tokenizers and processors of published models: their files are copied, what they say is sifted, and no code of theirs is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sightline.errors import ModelError
from sightline.models.folders import Files, check_numbers, read_json
from sightline.models.processors import MOST_PLACES

SETTINGS = "tokenizer_config.json"
PROCESSOR = "processor_config.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
# What holds the words: one of these sets makes a tokenizer.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_MAX_VOCABULARY, _MAX_TEMPLATE = 100_000_000, 200_000
# What a tokenizer's settings may say. Names of files, of repositories and of code are not among them.
_SAID = {
    *("tokenizer_class", "model_max_length", "model_input_names", "padding_side", "truncation_side"),
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "split_special_tokens"),
    *("image_token", "boi_token", "eoi_token", "image_token_id", "video_token", "video_token_id"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
    *("clean_up_tokenization_spaces", "spaces_between_special_tokens", "legacy", "errors", "canonicalize"),
}
# Settings of a processor that are no more than numbers and words of how a picture stands in a text.
_OF_PROCESSOR = {
    *("patch_size", "vision_feature_select_strategy", "image_token", "num_additional_image_tokens", "image_seq_length"),
    *("num_query_tokens", "image_seq_len"),
}


def tokenizer_of(files: Files, model_type: str) -> Any:
    """The tokenizer of a published model, as transformers itself would choose it.

    Raises:
        ModelError: its files are missing, too large or broken.
    """
    from transformers import AutoTokenizer

    with _sifted(files, model_type) as folder:
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # they may hold anything
            raise ModelError(f"no tokenizer can be made of the files of {files.name}: {str(error)[:300]}") from error


def processor_with(files: Files, model_type: str, image_processor: Any) -> Any:
    """The processor of a published model, which lays out a text round the places of a picture."""
    from transformers.models.auto.auto_mappings import PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.processing_auto import processor_class_from_name

    tokenizer = tokenizer_of(files, model_type)
    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    kind = processor_class_from_name(name) if name else None
    if kind is None:
        raise ModelError(f"transformers has no processor that lays out texts and pictures for {model_type!r:.80}")
    path = files.find(PROCESSOR)
    said = {} if path is None else {part: one for part, one in read_json(path).items() if part in _OF_PROCESSOR}
    check_numbers(said, MOST_PLACES, PROCESSOR)
    try:
        films = {"video_processor": _of_films(model_type)} if "video_processor" in kind.get_attributes() else {}
        return kind(
            image_processor=image_processor, tokenizer=tokenizer, chat_template=_template(files), **films, **said
        )
    except Exception as error:
        raise ModelError(f"no {name} can be made of the files of {files.name}: {str(error)[:300]}") from error


def _of_films(model_type: str) -> Any:
    """The part of a processor that takes films, as it is by default: it is never asked."""
    from transformers.models.auto import video_processing_auto

    names: Any = vars(video_processing_auto)["VIDEO_PROCESSOR_MAPPING_NAMES"]
    name = next(one for one in names[model_type].values() if one)
    return video_processing_auto.video_processor_class_from_name(name)()


@contextmanager
def _sifted(files: Files, model_type: str) -> Iterator[Path]:
    """A folder for as long as the files are read, with the vocabulary as it is and of the settings what may be said."""
    found = [(name, path) for name in _VOCABULARIES if (path := files.find(name)) is not None]
    if not found:
        raise ModelError(
            f"{files.name} has no tokenizer, so that it can't read a text; expected tokenizer.json beside its config.json"
        )
    with TemporaryDirectory(prefix="sightline") as where:
        folder = Path(where)
        for name, path in found:
            if path.stat().st_size > _MAX_VOCABULARY:
                raise ModelError(
                    f"{path} has {path.stat().st_size:,} bytes; the limit of such a file is {_MAX_VOCABULARY:,}"
                )
            shutil.copyfile(path, folder / name)
        path = files.find(SETTINGS)
        said: Mapping[str, Any] = {} if path is None else read_json(path)
        (folder / SETTINGS).write_text(json.dumps({name: one for name, one in said.items() if name in _SAID}))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        yield folder


def _template(files: Files) -> str | None:
    """How a conversation is laid out for this model, as a text; transformers fills it in a sandbox."""
    for name in _TEMPLATES:
        path = files.find(name)
        if path is None:
            continue
        if path.stat().st_size > _MAX_TEMPLATE:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes; the limit of such a file is {_MAX_TEMPLATE:,}")
        if path.suffix == ".json":
            found = read_json(path).get("chat_template")
        else:
            found = path.read_text(encoding="utf-8", errors="replace")
        if isinstance(found, str):
            return found
    path = files.find(SETTINGS)
    said = None if path is None else read_json(path).get("chat_template")
    return said if isinstance(said, str) and len(said) <= _MAX_TEMPLATE else None
