"""Models in ONNX files, run by onnxruntime on the processor: black boxes, of which only the scores are known."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline._optional import optional
from sightline.errors import ModelError
from sightline.models.adapter import Adapter, black_box
from sightline.models.black_box import BlackBox
from sightline.models.given import Finding, Given
from sightline.models.made import IMAGENET, few, imagenet_labels, made, shown, usual_for
from sightline.models.preprocess import specified

MAX_BYTES = 2**31 - 1  # what the format itself allows a file without others beside it
_MOST_AT_ONCE, _LARGEST_SIDE = 256, 4096
_MAX_NAMES = 1_000_000  # bytes of metadata that are read as class names
_AS_FUNCTION = "ask it in a function of your own: sightline.adapt(function, preprocess=...)"
# What is fed in, by onnxruntime's name for it.
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
_UP_TO_ONE: Mapping[str, Any] = {"mean": 0.0, "std": 1.0}
_UP_TO_255: Mapping[str, Any] = {"mean": 0.0, "std": 1 / 255}


@dataclass(frozen=True)
class _Input:
    """What a network is fed with.

    Attributes:
        name: of the input.
        kind: of its numbers.
        batch: how many pictures it takes at once; 0 for any number.
        channels_last: whether pictures are (H, W, C).
        size: (width, height), 0 where any will do.
    """

    name: str
    kind: Any
    batch: int
    channels_last: bool
    size: tuple[int, int]


def build_file(path: Path, given: Given) -> Adapter:
    """The model in an ONNX file, with what its metadata say; what they don't is guessed, and said.

    Raises:
        ModelError: no intact ONNX file, one that reads other files, or one that takes something else than pictures.
        MissingExtraError: onnxruntime isn't installed.
    """
    runtime = optional("onnxruntime", "onnx", "an ONNX file")
    if given.weights is not None or given.random_weights or given.num_classes is not None:
        raise ModelError(
            f"{path.name} has its own weights and classes; weights, random_weights and num_classes are for names"
        )
    content = _read(path)
    session = _session(runtime, content, path.name)
    meta = session.get_modelmeta()
    about: Mapping[str, str] = meta.custom_metadata_map
    takes = _input(session, path.name)
    own, fact = _preprocessing(takes, about, given, path.name)
    ask = _asking(session, takes, _output(session, path.name), path.name)
    classes = BlackBox(ask, path.name)(torch.zeros(1, 3, *own["size"][::-1])).shape[1]
    names, named = _class_names(about, classes, given)
    found = (
        Finding("weights", f"{path.name}, sha256 {hashlib.sha256(content).hexdigest()[:16]}...", "the file"),
        Finding("classes", f"{classes:,}", "its output"),
        fact,
        *named,
    )
    origin = {
        "source": "an ONNX file",
        "architecture": _plain(meta.graph_name or "unnamed")
        + " by "
        + _plain(meta.producer_name or "an unknown program"),
        "weights": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    outside = black_box(path.name, ask)
    known = made(path.name, outside.module, replace(given, labels=names), own, None, origin, found, classes)
    return replace(known, layer=outside.layer, layer_reason=outside.layer_reason, black_box=True)


def _read(path: Path) -> bytes:
    """The file, once it is known to refer to no other file."""
    if not path.is_file():
        raise ModelError(f"there is no model file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path} has {path.stat().st_size:,} bytes; an ONNX file has at most {MAX_BYTES:,}")
    content = path.read_bytes()
    try:
        elsewhere = _refers_elsewhere(memoryview(content))
    except (ModelError, IndexError) as error:
        raise ModelError(f"{path} is no intact ONNX file") from error
    if elsewhere:
        raise ModelError(
            f"{path} keeps its weights in another file, which is not opened; save it as one file, in Python: "
            "onnx.save_model(onnx.load(FILE), NEW_FILE, save_as_external_data=False)"
        )
    return content


# Which fields of which messages of the ONNX format lead to tensors, by their numbers in onnx.proto.
_LEADS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def _refers_elsewhere(content: memoryview) -> bool:
    """Whether a tensor of a model lies in another file; raises ModelError or IndexError for what is no such message."""
    left = [("model", content)]
    while left:
        kind, message = left.pop()
        for number, value in _fields(message):
            if kind == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION) and value not in (0, b""):
                return True
            if (inside := _LEADS[kind].get(number)) is not None:
                if isinstance(value, int):
                    raise ModelError(f"field {number} of {kind} is a number")
                left.append((inside, value))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one message of protocol buffers: numbers, and what they hold."""
    at, end = 0, len(message)
    while at < end:
        key, at = _number(message, at)
        key &= 0xFFFFFFFF  # as the format's own readers do
        kind = key & 7
        if kind == 0:
            value, at = _number(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _number(message, at)
        else:
            length = {1: 8, 5: 4}.get(kind, -1)
        if not 0 <= length <= end - at:
            raise ModelError(f"a field of kind {kind} at {at}")
        yield key >> 3, message[at : at + length]
        at += length


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ModelError("a number without an end")


def _session(runtime: Any, content: bytes, name: str) -> Any:
    """The network, ready to run, on as many threads as torch has; operations from libraries are never loaded."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        # Not again on other terms where it fails, and not on terms that the file sets.
        session = runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0, read_config_from_model=0
        )
        meta = session.get_modelmeta()
        # Names that are no text raise when they are read.
        repr([meta.custom_metadata_map, meta.graph_name, meta.producer_name])
        repr([(one.name, one.shape, one.type) for one in (*session.get_inputs(), *session.get_outputs())])
        return session
    except Exception as error:  # its exceptions have no common parent
        raise ModelError(f"{name} can't be loaded by onnxruntime: {_plain(str(error), 300)}") from error


def _input(session: Any, name: str) -> _Input:
    inputs = session.get_inputs()
    said = "; ".join(f"{_plain(one.name)} {one.type} {_shape(one.shape)}" for one in inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
        raise ModelError(
            f"{name} takes {said or 'nothing'}; expected one batch of pictures (N, 3, H, W). If it takes more, {_AS_FUNCTION}"
        )
    batch, *sides = (one if isinstance(one, int) and one > 0 else 0 for one in inputs[0].shape)
    if batch > _MOST_AT_ONCE or any(side > _LARGEST_SIDE for side in sides):
        raise ModelError(
            f"{name} takes {said}; at most {_MOST_AT_ONCE} pictures at once of {_LARGEST_SIDE:,} pixels a side are fed to it"
        )
    channels_last = sides[2] == 3 and sides[0] != 3
    if not channels_last and sides[0] not in (0, 3):
        raise ModelError(f"{name} takes {said}; photographs have 3 channels. To make others of them, {_AS_FUNCTION}")
    height, width = sides[:2] if channels_last else sides[1:]
    return _Input(inputs[0].name, _TYPES[inputs[0].type], batch, channels_last, (width, height))


def _output(session: Any, name: str) -> str:
    """The name of the output that holds the scores."""
    outputs = session.get_outputs()
    tables = [one for one in outputs if one.type in _TYPES and one.type != "tensor(uint8)"]
    if len(outputs) > 1:
        tables = [one for one in tables if _is_table(one.shape)]
    if len(tables) != 1:
        said = "; ".join(f"{_plain(one.name)} {one.type} {_shape(one.shape)}" for one in outputs)
        raise ModelError(
            f"{name} gives {said}; expected one table of scores (N, classes). To choose one, {_AS_FUNCTION}"
        )
    return str(tables[0].name)


def _is_table(shape: Sequence[Any]) -> bool:
    return len(shape) > 1 and all(side == 1 for side in shape[2:])


def _preprocessing(takes: _Input, about: Mapping[str, str], given: Given, name: str) -> tuple[dict[str, Any], Finding]:
    """The arguments of `preprocess.standard` that are usual for such an input, and how they were found."""
    parts = given.preprocess or {}
    if 0 in takes.size and "size" not in parts:
        raise ModelError(f"{name} takes pictures of any size; say which, such as preprocess={{'size': 224}}")
    if takes.kind is np.uint8:
        colours, origin = _UP_TO_255, "its input is whole numbers from 0 to 255"
    elif about.get("author") == "Ultralytics":
        colours, origin = _UP_TO_ONE, "as Ultralytics' classifiers take it"
    else:
        colours, origin = IMAGENET, "what is usual for ImageNet"
    own: dict[str, Any] = {"size": (1, 1), "resize": 1, "fit": "shorter", "interpolation": "bilinear", **colours}
    size = specified(own, {"size": takes.size} | dict(parts))[1]["size"]
    if any(fixed not in (0, side) for fixed, side in zip(takes.size, size, strict=True)):
        raise ModelError(f"{name} takes pictures of {_sides(takes.size)} pixels, and not of {_sides(size)}")
    own = usual_for(size, colours)
    given_whole = {"mean", "std"} <= set(parts)
    where = "given" if given_whole else f"{origin}; the file itself says at most the size"
    return own, Finding("preprocessing", shown(specified(own, parts)[1]), where, guessed=not given_whole)


def _asking(session: Any, takes: _Input, output: str, name: str) -> Callable[[Tensor], Tensor]:
    """Pictures (N, C, H, W) as floats -> scores (N, K)."""

    def run(pictures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        count = len(pictures)
        if takes.batch and count < takes.batch:  # the network takes so many and no fewer
            pictures = np.concatenate([pictures, np.repeat(pictures[-1:], takes.batch - count, axis=0)])
        try:
            (found,) = session.run([output], {takes.name: pictures})
        except Exception as error:
            raise ModelError(
                f"{name} fails on an input of shape {pictures.shape} ({pictures.dtype}): {_plain(str(error), 300)}"
            ) from error
        return np.asarray(found)[:count]

    def ask(x: Tensor) -> Tensor:
        pictures = (x.permute(0, 2, 3, 1) if takes.channels_last else x).cpu().numpy()
        if takes.kind is np.uint8:
            pictures = pictures.round().clip(0, 255)
        pictures = np.ascontiguousarray(pictures, dtype=takes.kind)
        size = takes.batch or len(pictures)
        found = np.concatenate([run(pictures[start : start + size]) for start in range(0, len(pictures), size)])
        scores = torch.from_numpy(found)
        return scores.flatten(1) if scores.dim() > 2 and _is_table(scores.shape) else scores

    return ask


def _class_names(about: Mapping[str, str], classes: int, given: Given) -> tuple[tuple[str, ...] | None, list[Finding]]:
    """One name a class, and where they are from."""
    if given.labels is not None:
        return given.labels, []
    for key in ("names", "labels", "classes"):
        names = _names(about.get(key, ""))
        if names is not None and len(names) == classes:
            return names, [Finding("class names", few(names), f"the file's own, {key!r} in its metadata")]
    if classes == 1000:
        names = imagenet_labels()
        return names, [Finding("class names", few(names), "a thousand classes are mostly ImageNet's", guessed=True)]
    return None, []


def _names(text: str) -> tuple[str, ...] | None:
    """Class names as JSON or as Python writes them: a list, or a dictionary by number."""
    if not 0 < len(text) <= _MAX_NAMES:
        return None
    found: Any = None
    for read in (json.loads, ast.literal_eval):  # neither runs anything
        try:
            found = read(text)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    if isinstance(found, dict):
        numbered = {str(number): label for number, label in found.items()}
        found = [numbered.get(str(number)) for number in range(len(found))]
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        return None
    return tuple(_plain(one, 200) for one in found)


def _shape(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(str(one) if isinstance(one, int) else _plain(str(one), 20) for one in shape) + ")"


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _plain(text: str, most: int = 100) -> str:
    """What a file says, in one line that is not endless."""
    line = "".join(one if one.isprintable() else " " for one in text).strip()
    return line if len(line) <= most else f"{line[: most - 3]}..."
