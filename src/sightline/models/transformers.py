"""Models of Hugging Face, `hf:OWNER/NAME` or a folder, in transformers' format or timm's. No code of theirs is run.

Classifiers; models that tell pictures apart by texts (`prompts`); models that answer a question in words (`question`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sightline._optional import optional
from sightline._quiet import quiet
from sightline.errors import ModelError, did_you_mean
from sightline.models import timm
from sightline.models.adapter import Adapter
from sightline.models.answers import asking_of, first_word, laid_out, layer_for, settling
from sightline.models.folders import Files, check_numbers, in_folder, in_repository, read_json, stored_weights
from sightline.models.given import Finding, Given
from sightline.models.made import few, imagenet_labels, made, shown
from sightline.models.planned import planned
from sightline.models.preprocess import Preprocess, specified
from sightline.models.processors import FILE, LARGEST, made_processor, processor_of
from sightline.models.prompts import prompted, towers_of
from sightline.models.queries import BOXES, MASKS, finding
from sightline.models.texts import PROCESSOR, processor_with, tokenizer_of
from sightline.models.weights import filled

CONFIG = "config.json"
_LARGEST = 1_000_000  # of any number in a configuration: a width, a count of classes, of words
# What would run or fetch something, or change how the network answers; the rest of a configuration is its shape.
_NOT_SHAPE = {
    *("architectures", "attn_implementation", "auto_map", "custom_pipelines", "distributed_config", "dtype"),
    *("experts_implementation", "fusion_config", "gradient_checkpointing", "id2label", "label2id", "name_or_path"),
    *("num_labels", "output_attentions", "output_hidden_states", "per_layer_config", "problem_type", "return_dict"),
    *("torch_dtype", "transformers_version", "transformers_weights", "use_kernels", "use_return_dict"),
}


def build(name: str, given: Given) -> Adapter:
    """A classifier in a folder of this name, or else in a repository of the hub."""
    if Path(name).is_dir():
        return build_folder(Path(name), given)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII):
        raise ModelError(f"there is no folder {name!r}, and the hub has no such names; expected OWNER/NAME or a folder")
    return _built(in_repository(name), given)


def is_published(folder: Path) -> bool:
    """Whether a folder holds a model as transformers or timm publish it, rather than a mere weights file."""
    path = in_folder(folder).find(CONFIG)
    return path is not None and not {"model_type", "architectures", "pretrained_cfg"}.isdisjoint(read_json(path))


def build_folder(folder: Path, given: Given) -> Adapter:
    """A classifier in a folder as `save_pretrained` of transformers or `save_for_hf` of timm writes it."""
    return _built(in_folder(folder), given)


def _built(files: Files, given: Given) -> Adapter:
    path = files.find(CONFIG)
    if path is None:
        raise ModelError(f"{files.name} has no {CONFIG}; expected what save_pretrained of transformers or timm writes")
    config = read_json(path)
    labels = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "label_names")}
    check_numbers(labels, _LARGEST, CONFIG)
    if isinstance(config.get("architecture"), str):
        return timm_folder(files, config, given)
    return _of_transformers(files, config, given)


def _of_transformers(files: Files, config: Mapping[str, Any], given: Given) -> Adapter:
    optional("transformers", "transformers", f"hf:{files.name}")
    with quiet():
        builders = {
            "classes": _classifier,
            "prompts": _zero_shot,
            "question": _answering,
            "boxes": _dense,
            "instances": _dense,
            "pixels": _dense,
        }
        return builders[_purpose(config, given)](files, config, given)


def _purpose(config: Mapping[str, Any], given: Given) -> str:
    """What the network is for, "classes", "prompts" or "question", or a refusal where that isn't what was asked."""
    from transformers.models.auto import modeling_auto as known

    tables: dict[str, Mapping[str, Any]] = {
        "classes": known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "prompts": known.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "question": known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "boxes": known.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
        "instances": known.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
        "pixels": known.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    }
    model_type, asked = config.get("model_type"), config.get("architectures")
    fitting = [one for one, table in tables.items() if isinstance(model_type, str) and model_type in table]
    if isinstance(asked, list) and asked and isinstance(asked[0], str):
        exact = [one for one in fitting if asked[0] in _kinds(tables[one], str(model_type))]
        fitting = exact or fitting
    purpose = fitting[0] if fitting else "classes"
    wanted = "prompts" if given.prompts else "question" if given.question else None
    if wanted is None and purpose == "prompts":
        raise ModelError(
            f"{CONFIG} says model_type {model_type!r:.80}, which tells pictures apart by texts, and none was given: --prompt 'a photo of a cat' "
            "--prompt 'a photo of a dog' (prompts=[...])"
        )
    if wanted is None and purpose == "question":
        raise ModelError(
            f"{CONFIG} says model_type {model_type!r:.80}, which answers in words, and no question was given: --question 'What is this?' "
            "(question=...)"
        )
    if wanted not in (None, purpose):
        raise ModelError(
            no_texts(str(wanted), f"{CONFIG} says model_type {model_type!r:.80}, which {_OFFERS[purpose]}")
        )
    return purpose


_OFFERS = {
    "classes": "has classes of its own and reads no text",
    "prompts": "tells pictures apart by texts (--prompt) and answers no questions",
    "question": "answers a question in words (--question) and compares no texts",
    **dict.fromkeys(("boxes", "instances", "pixels"), "has classes of its own and reads no text"),
}


def no_texts(wanted: str, why: str) -> str:
    """What is said to those who give texts to a model that doesn't take them."""
    option = {"prompts": "--prompt (prompts=[...])", "question": "--question (question=...)"}[wanted]
    return f"{why}; leave {option} out"


def _kinds(table: Mapping[str, Any], model_type: str) -> tuple[str, ...]:
    found = table[model_type]
    return found if isinstance(found, tuple) else (found,)


def _classifier(files: Files, config: Mapping[str, Any], given: Given) -> Adapter:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )

    names, table = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    kind, settings = _described(
        config, names, table, "no image classifier of transformers", "has no classes to explain"
    )
    return _with_classes(files, config, given, kind, settings)


def _dense(files: Files, config: Mapping[str, Any], given: Given) -> Adapter:
    """A detector, a segmentation of instances, or one of pixels."""
    from transformers.models.auto import modeling_auto as known

    tables = {
        "detection": (known.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, known.MODEL_FOR_OBJECT_DETECTION_MAPPING),
        "instances": (
            known.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
            known.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
        ),
        "segmentation": (
            known.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
            known.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
        ),
    }
    model_type, asked = str(config["model_type"]), (config.get("architectures") or [None])[0]
    task = next(
        (one for one, (names, _) in tables.items() if model_type in names and asked in _kinds(names, model_type)),
        next(one for one, (names, _) in tables.items() if model_type in names),
    )
    if (task == "detection" and model_type not in BOXES) or (task == "instances" and model_type not in MASKS):
        raise ModelError(
            f"{CONFIG} says {str(asked)[:80]}, whose answers are of a form of their own; expected one of {', '.join((*BOXES, *MASKS))}. "
            "In Python: sightline.adapt(module, logits=function that gives boxes, labels and scores of each picture)"
        )
    if config.get("use_pretrained_backbone"):
        config = {**config, "use_pretrained_backbone": False}  # which would be fetched, and is in the weights anyway
    kind, settings = _described(config, *tables[task], "which finds nothing in pictures", "finds nothing in pictures")
    adapter = _with_classes(files, config, given, kind, settings, tables[task][0])
    if task == "segmentation":
        return replace(adapter, task="segmentation")
    return replace(adapter, task="detection", module=finding(adapter.module, model_type))


def _with_classes(
    files: Files, config: Mapping[str, Any], given: Given, kind: Any, settings: Any, families: Iterable[str] = ()
) -> Adapter:
    """The adapter of a network whose configuration names its classes."""
    ids = config.get("id2label")
    classes = len(ids) if isinstance(ids, Mapping) and ids else config.get("num_labels", 2)
    if not isinstance(classes, int) or not 1 <= classes <= _LARGEST:
        raise ModelError(f"{CONFIG} says num_labels {classes!r:.80}; expected a whole number from 1")

    def make(size: int | None) -> nn.Module:
        own = deepcopy(settings)
        own.num_labels = size or classes
        module: nn.Module = kind(own)
        return module

    module, classes, given, found, origin = _network(files, config, given, kind, make, classes)
    if given.labels is None:
        given, found = _named(
            given, _labels(config.get("id2label"), classes), f"id2label in {CONFIG} of {files.name}", found
        )
    take, spec, how = _preprocessing(files, config, settings, given, families)
    return made(f"hf:{files.name}", module, given, spec, None, origin, [*given.found, *found, *how], classes, take=take)


def _zero_shot(files: Files, config: Mapping[str, Any], given: Given) -> Adapter:
    """A model that compares pictures with texts; its classes are the prompts."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )

    names, table = (
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING,
    )
    kind, settings = _described(config, names, table, "which compares no texts", "compares no texts with pictures")
    tokenizer = tokenizer_of(files, str(config["model_type"]))
    prompts = given.prompts or ()
    module, given, found, origin = _without_head(files, config, given, kind, settings, "prompts=[...] are its classes")
    towers = towers_of(module, tokenizer)
    names_ = given.labels
    take, spec, how = _preprocessing(files, config, settings, given, names)
    given = replace(given, labels=names_ or prompts)
    adapter = made(
        f"hf:{files.name}", module, given, spec, None, origin, [*given.found, *found, *how], len(prompts), take=take
    )
    return prompted(adapter, module, towers, prompts, names_)


def _answering(files: Files, config: Mapping[str, Any], given: Given) -> Adapter:
    """A model that answers a question about a picture in words."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    names, table = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind, settings = _described(config, names, table, "which answers no questions", "answers no questions in words")
    if given.labels is not None:
        raise ModelError("the targets of an answer are its words; leave --class-names (labels=[...]) out")
    model_type = str(config["model_type"])
    said, _ = _said_of_pictures(files)
    processor = processor_with(files, model_type, made_processor(said, model_type, names))
    laid_out(processor, str(given.question), 64, 64)
    take, spec, how = _preprocessing(files, config, settings, given, names)
    module, given, found, origin = _without_head(
        files, config, given, kind, settings, "the words of an answer are its classes"
    )
    found.append(Finding("question", str(given.question)[:200], "given"))
    path = files.find("generation_config.json")
    more = None if path is None else read_json(path).get("eos_token_id")
    asking = asking_of(module, processor, str(given.question), ends=more)
    adapter = made(
        f"hf:{files.name}", first_word(asking), given, spec, None, origin, [*given.found, *found, *how], take=take
    )
    facts = tuple(one for one in adapter.found if one.what != "class names")
    width, height = spec["size"]
    layer, reason = layer_for(asking, height, width) or (None, "")
    return settling(replace(adapter, found=facts, layer=layer, layer_reason=reason), asking)


def _without_head(
    files: Files, config: Mapping[str, Any], given: Given, kind: Any, settings: Any, instead: str
) -> tuple[nn.Module, Given, list[Finding], dict[str, Any]]:
    """The network of a model that has no head of classes, in evaluation mode."""
    if given.num_classes is not None:
        raise ModelError(
            f"{kind.__name__} has no head of classes ({instead}); leave --num-classes (num_classes=...) out"
        )
    module, _, given, found, origin = _network(files, config, given, kind, lambda _: kind(deepcopy(settings)), 0)
    return module.eval(), given, [one for one in found if one.what != "classes"], origin


def _network(
    files: Files,
    config: Mapping[str, Any],
    given: Given,
    kind: Any,
    make: Callable[[int | None], nn.Module],
    classes: int,
) -> tuple[nn.Module, int, Given, list[Finding], dict[str, Any]]:
    """The network with its weights, its number of classes, and what was found out."""
    where = f"{CONFIG} of {files.name}"
    found = [Finding("architecture", kind.__name__, where)]
    if "auto_map" in config:
        found.append(Finding("code", "auto_map is not run; transformers' own network stands in its place", where))
    origin: dict[str, Any] = {"source": "transformers", "architecture": kind.__name__}
    if given.random_weights:
        planned(lambda: make(given.num_classes), where, None)
        return make(given.num_classes), given.num_classes or classes, given, found, origin
    if given.weights is None:
        given = replace(given, weights=stored_weights(files))
        origin["weights"] = files.name
    if given.weights is not None:
        plan = planned(lambda: make(given.num_classes), where, given.weights.tensors)
        given = replace(given, weights=replace(given.weights, tensors=_own_names(plan, given.weights.tensors)))
    module, classes, about = filled(make, classes, given)
    return module, classes, given, [*found, *about], origin


def _described(
    config: Mapping[str, Any], known: Mapping[str, Any], table: Mapping[Any, Any], no_such: str, no_head: str
) -> tuple[Any, Any]:
    """transformers' own class for a model type, and its settings.

    Args:
        config: what its config.json says.
        known: the names of classes for each model type.
        table: those classes by the class of their settings.
        no_such: what is said of a model type that isn't among them.
        no_head: what is said of an architecture that isn't.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in known or model_type == "timm_wrapper":
        if model_type == "timm_wrapper":  # whose arguments name files
            raise ModelError(
                f"{CONFIG} wraps a network of timm without naming it; expected 'architecture' as timm writes it"
            )
        code = " Its own code (auto_map) isn't run." if "auto_map" in config else ""
        near = did_you_mean(str(model_type)[:80], known)
        raise ModelError(f"{CONFIG} says model_type {model_type!r:.80}, {no_such}.{near}{code}")
    if config.get("quantization_config"):
        raise ModelError(f"{CONFIG} says quantization_config: such weights have no gradients; take the float model")
    kinds = _kinds(known, model_type)
    asked = config.get("architectures") or [kinds[0]]
    if not isinstance(asked, list) or asked[0] not in kinds:
        raise ModelError(f"{CONFIG} says architectures {asked!r:.80}, which {no_head}; expected {' or '.join(kinds)}")
    try:
        settings = CONFIG_MAPPING[model_type](**_shape(config))
        found: Any = table[type(settings)]
    except Exception as error:  # it may hold anything
        raise ModelError(f"{CONFIG} is none of a {model_type}: {str(error)[:300]}") from error
    return next(one for one in (found if isinstance(found, tuple) else (found,)) if one.__name__ == asked[0]), settings


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what doesn't say the network's shape, also in its parts."""
    return {
        name: _shape(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _NOT_SHAPE and not name.startswith("_")
    }


def _own_names(module: Any, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of today's transformers; what older ones left over and it passes over is left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(module)
    renamings = [one for one in rules if isinstance(one, WeightRenaming)]
    converters = [one for one in rules if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    own, prefix = module.state_dict(), module.base_model_prefix
    named: dict[str, Tensor] = {}
    converted: dict[str, Any] = {}
    for name, tensor in stored.items():
        new, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if new not in own and name in own:
            new, pattern = name, None
        if pattern is None or new not in own:
            named[new] = tensor
        else:  # one tensor of old is several now
            converter = converted.setdefault(new, deepcopy(by_pattern[pattern]))
            converter.add_tensor(new, name, pattern, tensor)
    for name, converter in converted.items():
        try:
            parts = converter.convert(name, model=module, config=module.config)
        except Exception as error:
            raise ModelError(f"the weights hold a {name} that can't be converted: {str(error)[:200]}") from error
        named |= {part: one[0] if isinstance(one, list) else one for part, one in parts.items()}
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    named |= {name: named[source] for name, source in tied.items() if name not in named and source in named}
    passed = list(module._keys_to_ignore_on_load_unexpected)
    if any(name.endswith("position_ids") for name, _ in module.named_buffers()):
        passed.append(r"(^|\.)position_ids$")
    return {
        name: tensor for name, tensor in named.items() if name in own or not any(re.search(one, name) for one in passed)
    }


def _labels(ids: Any, classes: int) -> tuple[str, ...] | None:
    """The names in {"0": "tench", ...} or in a list, if there is one for each class."""
    if isinstance(ids, list):
        ids = {str(index): name for index, name in enumerate(ids)}
    if not isinstance(ids, Mapping) or len(ids) != classes:
        return None
    names = [ids.get(str(index)) for index in range(classes)]
    if not all(isinstance(name, str) for name in names):
        return None
    return tuple("".join(one if one.isprintable() else " " for one in str(name)[:200]) for name in names)


def _named(
    given: Given, names: tuple[str, ...] | None, origin: str, found: list[Finding]
) -> tuple[Given, list[Finding]]:
    """What is given with the class names of the file, where it has them."""
    if names is None:
        return given, found
    return replace(given, labels=names), [*found, Finding("class names", few(names), origin)]


def _preprocessing(
    files: Files, config: Mapping[str, Any], settings: Any, given: Given, families: Iterable[str] = ()
) -> tuple[Preprocess | None, dict[str, Any], list[Finding]]:
    parts = given.preprocess or {}
    if {"size", "mean", "std"} <= parts.keys():
        whole = {"resize": parts["size"], "fit": "exact", "interpolation": "bilinear"} | dict(parts)
        spec = specified(whole)[1]
        return None, spec, [Finding("preprocessing", shown(spec), "given")]
    said, where = _said_of_pictures(files)
    if not said:
        spec = _bounded(_guess(settings))
        origin = "no file says it: the size of config.json, mean and std of ImageNet"
        return None, spec, [Finding("preprocessing", shown(specified(spec, parts)[1]), origin, guessed=True)]
    take, spec, name = processor_of(said, str(config["model_type"]), families)
    if take is None:
        origin = f"{name} in {where}" + (", with what is given in its place" if parts else "")
        return None, spec, [Finding("preprocessing", shown(specified(spec, parts)[1]), origin)]
    if parts:
        raise ModelError(
            f"the {name} of {files.name} can't be changed in parts ({', '.join(parts)}); give size, mean and std, and all is yours"
        )
    return take, spec, [Finding("preprocessing", f"{name}, run as it is, its geometry measured", f"{name} in {where}")]


def _said_of_pictures(files: Files) -> tuple[dict[str, Any], str]:
    """What the repository says of the preparation of pictures, and where; of late that stands in the file of the whole processor."""
    path = files.find(FILE)
    if path is not None:
        return read_json(path), FILE
    path = files.find(PROCESSOR)
    said = None if path is None else read_json(path).get("image_processor")
    return (said, PROCESSOR) if isinstance(said, dict) else ({}, "")


def _bounded(spec: dict[str, Any]) -> dict[str, Any]:
    """A specification, unless a file asks for pictures that would fill the memory."""
    spec = specified(spec)[1]
    if max(spec["size"]) > LARGEST:
        raise ModelError(f"{CONFIG} asks for pictures of {spec['size']}; expected sides of at most {LARGEST:,}")
    return spec


def _guess(settings: Any) -> dict[str, Any]:
    size = getattr(settings, "image_size", None) or getattr(
        getattr(settings, "vision_config", None), "image_size", None
    )
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size or 224, size or 224)
    return {
        "size": (width, height),
        "resize": (width, height) if width != height else width,
        "fit": "exact" if width != height else "shorter",
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


def timm_folder(files: Files, config: Mapping[str, Any], given: Given) -> Adapter:
    """A classifier in timm's format: its config.json names an architecture, and tells preprocessing and class names.

    Args:
        files: where its weights are.
        config: what its config.json says.
        given: what the user says.
    """
    own = config.get("pretrained_cfg", config)  # of old, all stood side by side
    if not isinstance(own, Mapping):
        raise ModelError(f"{CONFIG} says pretrained_cfg {own!r:.80}; expected names and values")
    name, where = str(config["architecture"])[:100], f"{CONFIG} of {files.name}"
    classes = config.get("num_classes", own.get("num_classes", 1000))
    if not isinstance(classes, int) or not 1 <= classes <= _LARGEST:
        raise ModelError(f"{CONFIG} says num_classes {classes!r:.80}; expected a whole number from 1")
    arguments = _arguments(config.get("model_args") or {})

    def make(size: int | None) -> nn.Module:
        return timm.architecture(name, size or classes, pretrained_cfg=_of_timm(own), **arguments)

    found = [Finding("architecture", f"timm:{name}", where)]
    origin: dict[str, Any] = {"source": "timm", "architecture": name}
    if given.random_weights:
        planned(lambda: make(given.num_classes), where, None)
        module, classes = make(given.num_classes), given.num_classes or classes
    else:
        if given.weights is None:
            stored = stored_weights(files)
            # As transformers' wrapper of timm saves it.
            inner = {key.removeprefix("timm_model."): one for key, one in stored.tensors.items()}
            given = replace(given, weights=replace(stored, tensors=inner))
            origin["weights"] = files.name
        if given.weights is not None:
            planned(lambda: make(given.num_classes), where, given.weights.tensors)
        module, classes, about = filled(make, classes, given)
        found += about
    if given.labels is None:
        given, found = _named(given, _names_of_timm(config, own, classes), f"label_names in {where}", found)
    usual = imagenet_labels() if files.name.startswith("timm/") and classes == 1000 else None
    try:
        spec = _bounded(timm.preprocessing(module))
    except ModelError:
        raise
    except Exception as error:  # it may hold anything
        raise ModelError(f"the pretrained_cfg in {where} makes no preprocessing: {str(error)[:200]}") from error
    if not given.preprocess:
        found.append(Finding("preprocessing", shown(spec), f"pretrained_cfg in {where}"))
    return made(f"hf:{files.name}", module, given, spec, usual, origin, [*given.found, *found], classes)


def _names_of_timm(config: Mapping[str, Any], own: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    """Its label_names, or what label_descriptions says of each."""
    names = _labels(config.get("label_names", own.get("label_names", own.get("labels"))), classes)
    told = config.get("label_descriptions", own.get("label_descriptions"))
    if names is None or not isinstance(told, Mapping):
        return names
    return _labels([told.get(name, name) for name in names], classes)


def _of_timm(own: Mapping[str, Any]) -> dict[str, Any]:
    """What a pretrained_cfg says of the network and its pictures, and nothing of where to fetch something."""
    picture = ["input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"]
    known = ["num_classes", "classifier", "first_conv", "pool_size", *picture]
    return {name: own[name] for name in known if own.get(name) is not None}


def _arguments(said: Any) -> dict[str, Any]:
    """Arguments of an architecture that a file may set: plain values, and none of those that load something."""
    import timm as library

    taken = {*inspect.signature(library.create_model).parameters, "num_classes", "in_chans", "features_only"}
    plain = isinstance(said, Mapping) and all(
        isinstance(one, str | int | float | bool | None)
        or (isinstance(one, list) and all(isinstance(part, int | float) for part in one))
        for one in said.values()
    )
    if not plain or taken.intersection(said) - {"num_classes", "in_chans"}:
        raise ModelError(
            f"{CONFIG} says model_args {said!r:.200}; expected numbers and words for the architecture itself"
        )
    return {name: value for name, value in said.items() if name not in taken}
