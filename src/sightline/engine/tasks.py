"""What a model does, read off its output, what it can be asked for, and which class a name means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor

from sightline.errors import TargetError, did_you_mean
from sightline.models.adapter import Adapter, Task
from sightline.models.outputs import described

_CLASS = "a class by name or number"
# What a model of each task can be asked for, as a person says it.
OFFERS: dict[str, str] = {
    "classes": f"{_CLASS}, a margin (--contrast), log:CLASS",
    "labels": f"{_CLASS}, every label above a probability (above:0.5), a margin (--contrast)",
    "regression": "up or down, with several values up:NUMBER",
    "embedding": "another picture (like:FILE)",
    "segmentation": f"{_CLASS}, a point (@X,Y), a region (@LEFT,TOP,RIGHT,BOTTOM or @MASK.png), CLASS@PLACE",
    "detection": f"{_CLASS}, a box by its number (instance:1), a place (@LEFT,TOP,RIGHT,BOTTOM), every box above a score (above:0.5)",
    "words": "a word or its number (word:1), or nothing for the whole answer",
}
_IS = {
    "classes": "tells classes apart",
    "labels": "gives each label a probability of its own",
    "regression": "gives values",
    "embedding": "gives an embedding",
    "segmentation": "gives each pixel a class",
    "detection": "finds boxes",
    "words": "answers in words",
}


def task_of(adapter: Adapter, output: Any) -> Task:
    """What a model does: as its adapter says, else by the form of its output; "" where that fits nothing.

    Raises:
        TargetError: what the model returned are losses: a detector in training mode.
    """
    if adapter.task:
        return adapter.task
    if isinstance(output, Tensor):
        forms: dict[int, Task] = {1: "classes", 2: "classes", 4: "segmentation"}
        return forms.get(output.dim(), "")
    if isinstance(output, list | tuple) and all(is_found(one) for one in output):
        return "detection"
    if isinstance(output, Mapping) and output and all("loss" in str(name) for name in output):
        raise TargetError(
            f"the model returned losses ({', '.join(map(str, list(output)[:4]))}) and no boxes: it is in training mode. Call model.eval() first"
        )
    return ""


def is_found(one: Any) -> bool:
    """Whether this is what a detector found in one picture, as torchvision's give it."""
    return isinstance(one, Mapping) and {"boxes", "labels", "scores"} <= one.keys()


def refuse(adapter: Adapter, output: Any, what: str) -> NoReturn:
    """Tells those who ask for something that a model's task doesn't have what they can ask for."""
    task = task_of(adapter, output)
    if not task:
        raise TargetError(
            f"{adapter.name} returned {described(output)} and so has no {what}; say with adapt(module, logits=function) where the "
            "logits are, or give target=function from what it returns to one score per image"
        )
    raise TargetError(f"{adapter.name} {_IS[task]} and has no {what}; it can be asked for {OFFERS[task]}")


def class_index(name: str, adapter: Adapter, classes: int) -> int:
    """The class of this name: exact without case, else a unique part of a name, else its number; never a guess."""
    labels = (adapter.labels or ())[:classes]

    def spelled(text: str) -> str:
        return text.strip().lower().replace("_", " ")  # as folders and files are named

    wanted = spelled(name)
    exact = [index for index, label in enumerate(labels) if spelled(label) == wanted]
    if not exact and wanted.isdecimal() and len(wanted) < 10 and int(wanted) < classes:
        return int(wanted)
    found = exact or [index for index, label in enumerate(labels) if wanted and wanted in spelled(label)]
    if len(found) == 1:
        return found[0]
    if found and adapter.task == "words":
        shown = ", ".join(f"word:{index + 1}" for index in found[:8]) + (", ..." if found[8:] else "")
        raise TargetError(f"{name[:100]!r} fits {len(found)} words of the answer: {shown}. Say which by its number")
    if found:
        shown = ", ".join(f"{labels[index]!r} ({index})" for index in found[:8]) + (", ..." if found[8:] else "")
        raise TargetError(f"{name!r} fits {len(found)} classes: {shown}. Give a whole name or the number")
    if not labels:
        raise TargetError(
            f"there is no class {name[:100]!r} in {adapter.name}, which has no class names; give a number from 0 to {classes - 1}, "
            "or its names: --class-names FILE (labels=[...])"
        )
    name = name if len(name) <= 100 else f"{name[:97]}..."
    if adapter.task == "words":
        answer = " ".join(labels)
        raise TargetError(
            f"the answer has no word {name!r}; it is {answer[:200]!r}, and its words are 1 to {classes} (word:1)"
        )
    raise TargetError(
        f"{adapter.name} has no class {name!r}.{did_you_mean(name, labels, count=5)} Expected a name, a unique part of one, or a number from 0 to {classes - 1}"
    )


def checked_index(index: int, adapter: Adapter, classes: int) -> int:
    """A class by its number."""
    if not 0 <= index < classes:
        raise TargetError(f"class {index} is outside 0 to {classes - 1} of {adapter.name}")
    return index
