"""Targets as a person types them: `cat`, `log:cat`, `down`, `like:b.jpg`, `instance:2`, `@120,80`, `cat@10,20,200,180`, `above:0.5`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.data.images import read_mask
from sightline.engine import boxes, regions
from sightline.engine.asked import Asked, Target, TargetSpec
from sightline.engine.likeness import similarity
from sightline.engine.targets import above, binary, log_probability, regression, resolve
from sightline.engine.tasks import refuse, task_of
from sightline.errors import ImageError, SightlineError, TargetError
from sightline.models.adapter import Adapter
from sightline.models.view import View

_DIGITS = 9  # of a number of a class, a box or a word


def parse_target(text: str, *, files: bool = True) -> TargetSpec:
    """The target that a text stands for, as `--target` takes it; one that is none of the forms is a class's name.

    Args:
        text: such as `cat`, `log:cat`, `against`, `down`, `like:other.jpg`, `cat@120,80`, `cat@10,20,200,180`, `instance:2`, `word:1`.
        files: whether it may name files of this machine; not where a stranger types it.

    What a form can't have is said once it is known that no class of the model is called so.
    """
    try:
        return _form(text, files)
    except SightlineError as error:
        return _unless_a_class(text, _refused(error))


def _form(text: str, files: bool) -> TargetSpec:
    how, colon, rest = text.partition(":")
    if colon and how == "like" and not files:
        raise TargetError(_NO_FILES)
    if colon and how == "above":
        return _share(rest.strip())
    if colon and how in _HOW:
        return _unless_a_class(text, _HOW[how](rest.strip()))
    if text in ("for", "against"):
        return _unless_a_class(text, binary(text == "for"))
    if text in ("up", "down"):
        return _unless_a_class(text, regression(up=text == "up"))
    name, at, place = text.rpartition("@")
    if at:
        return _unless_a_class(text, _at(name.strip() or None, place.strip(), files))
    return text


def _refused(error: SightlineError) -> Target:
    def resolved(_adapter: Adapter, _output: Any, _image: int, _view: View | None) -> Asked:
        raise error

    return _of_model(resolved)


def _number(text: str, form: str) -> int:
    if not (text.isdecimal() and len(text) <= _DIGITS):
        raise TargetError(f"{form}:{text[:60]}; expected a number from 1, such as {form}:1")
    return int(text)


def _class_of(text: str) -> int | str | None:
    """A class by its number or its name; None for neither. Of more digits than any number has it is a name, which no class has."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else text or None


def _share(text: str) -> Target:
    try:
        return above(float(text))
    except ValueError:
        raise TargetError(f"above:{text[:60]}; expected a probability, such as above:0.5") from None


def _word(text: str) -> Target:
    number = _number(text, "word") if text.isdecimal() else None
    if number == 0:
        raise TargetError("word:0; expected a number from 1, such as word:1")

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        if task_of(adapter, output) != "words":
            refuse(adapter, output, "word")
        return resolve(text if number is None else number - 1, adapter, output, image, view)

    return _of_model(resolved)


_NO_FILES = "files are named on the command line or in Python; here a target is a class, a point @X,Y or a box @LEFT,TOP,RIGHT,BOTTOM"
_HOW: dict[str, Callable[[str], Target]] = {
    "log": lambda name: log_probability(_class_of(name)),
    "up": lambda name: regression(_class_of(name)),
    "down": lambda name: regression(_class_of(name), up=False),
    "like": lambda file: similarity(file),
    "instance": lambda number: boxes.instance(_number(number, "instance")),
    "word": _word,
}


def _at(name: str | None, place: str, files: bool) -> Target:
    """A class, or what is there, at a point, in a box or in a region."""
    label = _class_of(name or "")
    try:
        values = [float(one) for one in place.split(",")]
    except ValueError:
        values = []
    if len(values) == 2:
        return regions.segment(label, point=(values[0], values[1]))
    if len(values) == 4:
        corners = (values[0], values[1], values[2], values[3])
        return _by_task({"detection": boxes.box(corners, label)}, regions.segment(label, box=corners))
    if values or not Path(place).suffix:
        raise TargetError(
            f"@{place[:80]}; expected a point @X,Y, a box @LEFT,TOP,RIGHT,BOTTOM, or the file of a mask @MASK.png, in pixels of the photograph"
        )
    if not files:
        raise TargetError(_NO_FILES)
    try:
        mask = read_mask(place)
    except ImageError as error:  # not of the picture that is explained
        raise TargetError(f"the mask of the region: {error}") from error
    return regions.segment(label, region=mask)


def _by_task(targets: dict[str, Target], otherwise: Target) -> Target:
    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        return resolve(targets.get(task_of(adapter, output), otherwise), adapter, output, image, view)

    return _of_model(resolved)


def _unless_a_class(text: str, target: Target) -> Target:
    """A class of exactly this name is meant where the model has one."""

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        known = text.casefold() in (one.casefold() for one in adapter.labels or ())
        return resolve(text if known else target, adapter, output, image, view)

    found = _of_model(resolved)
    if hasattr(target, "of_values"):
        found.of_values = True  # type: ignore[attr-defined]
    return found


def _of_model(resolved: Any) -> Target:
    def unresolved(_output: Any) -> Tensor:
        raise TargetError("this target needs the model beside its output")

    unresolved.resolved = resolved  # type: ignore[attr-defined]
    return unresolved
