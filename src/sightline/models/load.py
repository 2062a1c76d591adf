"""`load_model`: a name, a file or a module becomes an `Adapter`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from sightline.errors import LayerError, ModelError, did_you_mean
from sightline.models import (
    bundled,
    checkpoint,
    keras,
    onnx,
    openclip,
    program,
    timm,
    torchvision,
    transformers,
)
from sightline.models.adapter import TASKS, Adapter, Task, adapt
from sightline.models.answers import checked_question
from sightline.models.dense import choose_layer, detector
from sightline.models.fold import fold
from sightline.models.given import Given
from sightline.models.headless import without_head
from sightline.models.keras_module import is_keras
from sightline.models.preprocess import specified
from sightline.models.prompts import checked_prompts
from sightline.models.weights import read_stored

# One entry a source: what stands before the colon of a model's name, and who builds it.
SOURCES: dict[str, Callable[[str, Given], Adapter]] = {
    "bundled": bundled.build,
    "torchvision": torchvision.build,
    "timm": timm.build,
    "hf": transformers.build,
    "openclip": openclip.build,
    "keras": keras.build,
}


def _weights(path: Path, given: Given) -> Adapter:
    return checkpoint.build_file(path, given, build)


# One entry a kind of file: how its name ends, and who builds it.
FILES: dict[str, Callable[[Path, Given], Adapter]] = {
    **dict.fromkeys(checkpoint.SUFFIXES, _weights),
    ".pt2": program.build_file,
    ".onnx": onnx.build_file,
    ".keras": keras.build_archive,
}
# Sources whose weights come in a format of their own, which they read themselves.
_OWN_FORMATS = ("keras",)
_ARCHIVE = ".keras"
# Sources with models that are given texts.
_READ_TEXTS = ("hf", "openclip")


def load_model(
    model: str | Path | nn.Module | Adapter | Callable[[torch.Tensor], Any] = "bundled",
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    num_classes: int | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | Callable[[Image.Image], Any] | None = None,
    trust_code: bool = False,
    task: Task = "",
    prompts: Sequence[str] | None = None,
    question: str | None = None,
    for_layer: str | Sequence[str] | None = None,
) -> Adapter:
    """Loads a model with its weights, class names and own preprocessing; what nothing tells is guessed, and said.

    Args:
        model: "bundled" (EfficientNet-Lite0, works offline), "torchvision:resnet50", "timm:convnext_tiny",
            "hf:microsoft/resnet-18" (a repository of the Hugging Face hub, or a folder in its format), "openclip:ViT-B-32",
            "keras:ResNet50", a file or folder, or a module, Keras model or function (see `adapt`). `sightline models` lists the sources.
        weights: a local state dict (.safetensors, .pt, .pth, .ckpt; for Keras .weights.h5, .h5, .keras) instead of the
            official weights; a head of another size
            is found from it.
        random_weights: leave the weights random, to try things out; every result says so.
        num_classes: size of the head, where nothing else tells it.
        labels: class names by index.
        preprocess: parts of the preprocessing that replace the model's own, such as {"size": 320, "mean": 0.5, "std": 0.5}
            (size, resize, fit, interpolation, mean, std; pixels and 0..1); or a function, as for `adapt`.
        trust_code: run the code in a file that holds a program (.pt2). Only of files that you made yourself.
        task: what it is asked for, where that is not classes: "labels" that don't exclude each other (a sigmoid each), "regression", or
            "embedding", for which a classifier's last linear layer is left out.
        prompts: texts to tell pictures apart by, for models that compare both (CLIP, SigLIP): they are its classes.
        question: what to ask of each picture, for models that answer in words (LLaVA and its like): the words are the targets.
        for_layer: the layer, or layers, that will be asked for. Batch norm is folded into the convolutions for speed (same
            logits to 1e-5 of their spread), unless the output of such a layer would be lost by that.

    Raises:
        ModelError: no such model, or its weights can't be had.
        WeightsError: the file is broken, hostile, or made for another model.
        MissingExtraError: an optional package is missing; the message has the command that installs it.
    """
    if isinstance(model, Adapter):
        return _asked(model, prompts, question)
    if not isinstance(model, str | Path):
        if weights is not None or random_weights or num_classes is not None:
            raise ModelError(
                "a module or function has its own weights and classes; weights, random_weights and num_classes are for names"
            )
        if prompts is not None or question is not None:
            raise ModelError(
                f"{type(model).__name__} is given live, and texts need its tokenizer beside it: sightline.zero_shot(module, tokenizer, prompts), "
                "or for a question sightline.answering(module, processor, question)"
            )
        if is_keras(model):
            return keras.live(model, preprocess=preprocess, labels=labels)
        return adapt(model, preprocess=_function(preprocess), labels=labels, task=task)
    known = given(model, weights, random_weights, num_classes, labels, preprocess, trust_code, prompts, question)
    return _for_task(_ready(build(model, known), for_layer), task)


def given(
    model: str | Path,
    weights: str | Path | None = None,
    random_weights: bool = False,
    num_classes: int | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Any = None,
    trust_code: bool = False,
    prompts: Sequence[str] | None = None,
    question: str | None = None,
) -> Given:
    """What `load_model` was told, checked, with the weights file read."""
    if model == "bundled" and (weights is not None or random_weights or num_classes is not None):
        raise ModelError(
            "the bundled model has its own weights and classes; for others: --model timm:tf_efficientnet_lite0 --weights FILE"
        )
    if prompts is not None and question is not None:
        raise ModelError("prompts and a question exclude each other: texts to compare with, or one to answer; give one")
    if weights is not None and random_weights:
        raise ModelError("weights and random_weights exclude each other; give one")
    if preprocess is not None and not isinstance(preprocess, Mapping):
        raise ModelError(
            "preprocess as a function is for modules and functions; for a name give the parts that differ, such as {'size': 320}"
        )
    own_format = str(model).partition(":")[0] in _OWN_FORMATS or str(model).endswith(_ARCHIVE)
    return Given(
        weights=None if weights is None or own_format else read_stored(Path(weights)),
        path=Path(weights) if weights is not None and own_format else None,
        random_weights=random_weights,
        num_classes=_count(num_classes),
        labels=_names(labels),
        preprocess=preprocess,
        trust_code=trust_code,
        prompts=None if prompts is None else checked_prompts(prompts),
        question=None if question is None else checked_question(question),
    )


def build(model: str | Path, known: Given) -> Adapter:
    """The model of this name or file as its source gives it: no default layer yet, nothing folded."""
    if not isinstance(model, str | Path):
        raise ModelError(f"{type(model).__name__} is no model; give a name (sightline models), a file, or an nn.Module")
    source, _, name = str(model).partition(":")
    if (known.prompts or known.question) and not _reads_texts(model, source):
        wanted = "prompts" if known.prompts else "question"
        raise ModelError(transformers.no_texts(wanted, f"{str(model)[:100]} has classes of its own and reads no text"))
    if source in SOURCES and bool(name) == (source != "bundled"):
        return SOURCES[source](name, known)
    path = Path(os.path.expanduser(model))
    looks_so = path.suffix in FILES or isinstance(model, Path) or ("/" in model and not name)
    if os.path.exists(path) or (looks_so and str(model).isprintable()):
        return _of_file(path, known)
    near = did_you_mean(str(model), ["bundled", *_known(name or source)], count=3)
    sources = ", ".join(f"'{kind}:NAME'" for kind in SOURCES if kind != "bundled")
    raise ModelError(
        f"unknown model {str(model)!r}; expected 'bundled', {sources}, a file or a folder.{near} List them: sightline models"
    )


def _reads_texts(model: str | Path, source: str) -> bool:
    """Whether a model may be given texts, as far as its name or what lies there tells."""
    return source in _READ_TEXTS or (os.path.isdir(model) and transformers.is_published(Path(model)))


def _known(name: str) -> list[str]:
    """The models of the two large libraries that are called so, or nearly so."""
    import timm as library

    exact = [("torchvision", torchvision.names()), ("timm", library.list_models())]
    found = [f"{kind}:{name}" for kind, names in exact if name in names]
    return found or [f"{kind}:{one}" for kind, names in exact for one in names]


def _of_file(path: Path, given: Given) -> Adapter:
    """The model of a file or folder, by what it is."""
    if not os.path.exists(path):  # which no odd name makes fail
        try:
            near = did_you_mean(path.name[:300], os.listdir(path.parent))
        except (OSError, ValueError):  # a folder that is not there, or may not be looked into
            near = ""
        raise ModelError(f"there is no model file {str(path)[:300]}.{near}".removesuffix("."))
    if path.is_dir() and transformers.is_published(path):
        return transformers.build_folder(path, given)
    if path.is_dir():
        return _of_file(checkpoint.weights_in(path), given)
    if path.name.endswith(".pth.tar"):  # as timm's and PyTorch's examples name a checkpoint
        return FILES[".pth"](path, given)
    if path.suffix in (".h5", ".hdf5"):
        raise ModelError(
            f"{path} holds Keras weights without a network: --model keras:NAME --weights {path}; or save the model as .keras, "
            "or give the live model in Python: sightline.load_model(model)"
        )
    if path.suffix not in FILES:
        raise ModelError(f"{path} is no model file; expected one that ends in {', '.join(FILES)}, or a folder with one")
    return FILES[path.suffix](path, given)


def _count(classes: Any) -> int | None:
    if classes is not None and (
        isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= 1_000_000
    ):
        raise ModelError(f"num_classes is {classes!r}; expected a whole number from 1")
    return classes


def _names(labels: Any) -> tuple[str, ...] | None:
    if labels is not None and (isinstance(labels, str) or not all(isinstance(one, str) for one in labels)):
        raise ModelError("labels must be a list of names, one a class")
    return None if labels is None else tuple(labels)


def _function(preprocess: Any) -> Any:
    if preprocess is None or callable(preprocess):
        return preprocess
    whole = {"resize": preprocess.get("size"), "fit": "exact", "interpolation": "bilinear"} | dict(preprocess)
    missing = [part for part in ("size", "mean", "std") if part not in whole]
    if missing:
        raise ModelError(f"preprocess of a module lacks {' and '.join(missing)}; give those, or a function")
    return specified(whole, whole)[0]


def sample_input(adapter: Adapter) -> torch.Tensor:
    """A seeded random input (1, 3, H, W), or (1, 3, T, H, W), of the size that a loaded model expects."""
    spec = adapter.provenance["preprocessing"]
    width, height = spec["size"]
    frames = [spec["frames"]] if "frames" in spec else []
    return torch.rand(1, 3, *frames, height, width, generator=torch.Generator().manual_seed(0))


def _for_task(adapter: Adapter, task: Task) -> Adapter:
    """The adapter of a classifier that is asked for something else."""
    if task not in TASKS:
        raise ModelError(f"task is {task!r}; expected one of {', '.join(TASKS[1:])}, or nothing to have it found")
    if not task or task == adapter.task:
        return adapter
    if adapter.task or task not in ("classes", "labels", "regression", "embedding"):
        raise ModelError(f"{adapter.name} is no model for the task {task}; leave it out, and what it does is found")
    if task != "embedding" or adapter.black_box:
        return dataclasses.replace(adapter, task=task)
    module = without_head(adapter.module, sample_input(adapter), adapter.logits)
    return dataclasses.replace(adapter, module=module, labels=None, task=task)


def _ready(adapter: Adapter, for_layer: str | Sequence[str] | None) -> Adapter:
    """Evaluation mode, default layer found, batch norm folded, weights laid out channels-last."""
    if adapter.black_box:
        return adapter
    module = adapter.module.eval().requires_grad_(False)
    x = sample_input(adapter)
    if adapter.task == "segmentation":  # which takes pictures of any size
        x = x[..., :224, :224]
    known = detector(module)
    try:
        layer, reason = (
            (adapter.layer, adapter.layer_reason)
            if adapter.layer is not None
            else choose_layer(module, x, adapter.logits, known=known)
        )
    except LayerError as error:
        layer, reason = None, str(error)
    if adapter.task == "detection":
        known_levels = known.levels if known else ()
        covers = known.covers if known else None
        return dataclasses.replace(adapter, layer=layer, layer_reason=reason, levels=known_levels, covers=covers)
    keep = [for_layer] if isinstance(for_layer, str) else for_layer or ()
    folded = fold(module, x, keep=keep)
    layout = torch.channels_last
    try:
        module.to(memory_format=layout)
    except RuntimeError:  # weights that are neither matrices nor 4-D, as of 3-D convolutions
        layout = torch.preserve_format
    return _with(adapter, {"layer": layer, "layer_reason": reason, "folded": folded, "memory_format": layout})


def _with(adapter: Adapter, fields: Mapping[str, Any]) -> Adapter:
    """The adapter with these fields, also when it is given other texts, or has seen a picture."""
    again, settled = adapter.prompted, adapter.settled
    return dataclasses.replace(
        adapter,
        **fields,
        prompted=None if again is None else lambda prompts: _with(again(prompts), fields),
        settled=None if settled is None else lambda *seen, **said: _with(settled(*seen, **said), fields),
    )


def _asked(adapter: Adapter, prompts: Sequence[str] | None, question: str | None) -> Adapter:
    """A model that is there already, with other prompts."""
    if question is not None or (prompts is not None and adapter.prompted is None):
        wanted = "question" if question is not None else "prompts"
        raise ModelError(transformers.no_texts(wanted, f"{adapter.name} is loaded already and takes none"))
    return adapter if prompts is None or adapter.prompted is None else adapter.prompted(prompts)
