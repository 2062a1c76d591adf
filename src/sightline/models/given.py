"""What a user says of a model beside its name, and what was found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Finding:
    """One fact about a loaded model, for `sightline doctor` and for the notes under a picture.

    Attributes:
        what: "architecture", "weights", "classes", "class names", "preprocessing", ...
        value: what it is, in a few words.
        origin: where that was found.
        guessed: nothing says so; it is what is usual.
    """

    what: str
    value: str
    origin: str
    guessed: bool = False


@dataclass(frozen=True, eq=False)
class Stored:
    """What one weights file holds.

    Attributes:
        path: where it lies.
        tensors: the state dict.
        about: what else it says, as plain values: metadata of safetensors, or what stands beside the state dict.
        sha256: of the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]
    sha256: str


@dataclass
class Told:
    """What a weights file and the files beside it say of a model, each with where: (value, origin).

    Attributes:
        architectures: names that may be one, the likeliest first.
        labels: lists of class names by index; which fits shows the size of the head.
        preprocessing: parts of the preprocessing.
    """

    architectures: list[tuple[str, str]] = field(default_factory=list)
    labels: list[tuple[tuple[str, ...], str]] = field(default_factory=list)
    preprocessing: list[tuple[dict[str, Any], str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Given:
    """What is known of a model before it is built; None (or nothing) is left to be found.

    Attributes:
        weights: what was read from a local file.
        path: a local file that the source reads itself, because it is in a format of its own.
        random_weights: leave the weights random.
        num_classes: size of the head.
        labels: class names by index.
        preprocess: parts of the preprocessing that replace the model's own: size, resize, fit, interpolation, mean, std, ...
        trust_code: run code that a file holds.
        prompts: texts that pictures are told apart by.
        question: what is asked of a picture, to be answered in words.
        told: what the weights file says of the model.
        found: what was found out on the way to here.
    """

    weights: Stored | None = None
    path: Path | None = None
    random_weights: bool = False
    num_classes: int | None = None
    labels: tuple[str, ...] | None = None
    preprocess: Mapping[str, Any] | None = None
    trust_code: bool = False
    prompts: tuple[str, ...] | None = None
    question: str | None = None
    told: Told | None = None
    found: tuple[Finding, ...] = ()
