"""What is asked of the model: any function from its output to one score per image, and the names for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sightline.errors import TargetError, did_you_mean
from sightline.models.adapter import Adapter
from sightline.models.outputs import described, taking

Target = Callable[[Any], Tensor]
TargetSpec = int | str | Target | None
NO_GRADIENT = "the score has no gradient: the target or the model cuts the graph (detach, argmax, no_grad)"


@dataclass(frozen=True)
class Asked:
    """One target made ready: its score function, and the class index (None for other scores) and name to show."""

    score: Target
    index: int | None
    label: str


def class_logit(index: int) -> Target:
    """The logit of one class."""
    _check_index(index)
    return lambda output: table(output)[:, index]


def _check_index(index: int) -> None:
    if index < 0:
        raise TargetError(f"class {index}; expected 0 or more")


def margin(of: int | str | None, over: int | str) -> Target:
    """Logit of one class minus that of another: what separates the two. Names as for a target; None is the prediction."""

    def difference(one: int, other: int) -> Target:
        return lambda output: table(output)[:, one] - table(output)[:, other]

    if isinstance(of, int) and isinstance(over, int):
        _check_index(min(of, over))
        if of == over:
            raise TargetError(f"a margin needs two different classes, not twice {of}")
        plain = difference(of, over)
        plain.__name__ = f"class {of} rather than class {over}"
        return plain

    def unnamed(_output: Any) -> Tensor:
        raise TargetError("a margin by names needs a model that knows them; give numbers")

    def resolved(adapter: Adapter, output: Any, image: int) -> Asked:
        one, other = (resolve(spec, adapter, output, image) for spec in (of, over))
        if one.index is None or other.index is None or one.index == other.index:
            raise TargetError(f"a margin needs two different classes, not {one.label!r} and {other.label!r}")
        return Asked(difference(one.index, other.index), None, f"{one.label} rather than {other.label}")

    unnamed.resolved = resolved  # type: ignore[attr-defined]
    return unnamed


def log_probability(index: int) -> Target:
    """Natural logarithm of a class's softmax probability."""
    _check_index(index)

    def score(output: Any) -> Tensor:
        logits = table(output)
        # A model with its softmax inside has returned probabilities already.
        if is_normalised(logits):
            return logits.clamp_min(1e-30)[:, index].log()
        return (torch.nn.functional.logsigmoid(logits) if logits.shape[1] == 1 else logits.log_softmax(dim=1))[:, index]

    score.__name__ = f"log-probability of class {index}"
    return score


def probability(index: int) -> Target:
    """Softmax probability of a class; its gradient vanishes near 1, where `log_probability` is better."""

    def score(output: Any) -> Tensor:
        logits = table(output)
        if is_normalised(logits):
            return logits[:, index]
        return (logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1))[:, index]

    _check_index(index)
    score.__name__ = f"probability of class {index}"
    score.is_probability = True  # type: ignore[attr-defined]
    return score


def table(output: Any) -> Tensor:
    """The model's output as logits (B, K), or a `TargetError` that says what it is instead."""
    if isinstance(output, Tensor) and output.dim() == 1:
        output = output[:, None]
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise TargetError(
            f"the model returned {described(output)}, in which no class can be asked for; expected logits (B, K). "
            f"Say where they are, sightline.adapt(module, logits={taking(output)}), or give target=function"
        )
    return output


def probabilities(output: Any) -> Tensor:
    """(B, K) in 0..1: softmax over classes; sigmoid for one logit; the output itself if it is probabilities already."""
    logits = table(output).detach().float()
    if logits.shape[1] == 1:
        return logits.sigmoid()
    if is_normalised(logits) or are_independent(logits):
        return logits
    return logits.softmax(dim=1)


def probability_like(index: int, first: Any) -> Target:
    """The probability of a class, read off every output as off the first: `probabilities` decides anew for each."""
    logits = table(first).detach()
    inside = logits.shape[1] > 1 and (is_normalised(logits) or are_independent(logits))

    def score(output: Any) -> Tensor:
        found = table(output)
        if inside:
            return found[:, index]
        return (found.sigmoid() if found.shape[1] == 1 else found.softmax(dim=1))[:, index]

    return score


def is_normalised(logits: Tensor) -> bool:
    """Whether a model has its softmax inside, so that its output is probabilities already."""
    return bool((logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < 1e-3).all())


def are_independent(logits: Tensor) -> bool:
    """Whether the outputs look like a probability each, as of a model with a sigmoid inside; few could do so by chance."""
    return logits.shape[1] >= 10 and bool(((logits >= 0) & (logits <= 1)).all()) and not is_normalised(logits)


def resolve(spec: TargetSpec, adapter: Adapter, output: Any, image: int = 0) -> Asked:
    """Makes ready what the user asked for: None is the predicted class of this image; an index, a name or a function.

    Raises:
        TargetError: no such class, or a name that several share; the nearest are listed.
    """
    if callable(spec):
        if (named := getattr(spec, "resolved", None)) is not None:
            return cast(Asked, named(adapter, output, image))
        return Asked(spec, None, getattr(spec, "__name__", "own target").strip("<>"))
    classes = table(output).shape[1]
    if spec is None:
        index = int(table(output)[image].argmax())
    elif isinstance(spec, str):
        index = class_index(spec, adapter, classes)
    elif hasattr(spec, "__index__") and not isinstance(spec, bool) and not isinstance(spec, Tensor):
        index = operator.index(spec)
        if not 0 <= index < classes:
            raise TargetError(f"class {index} is outside 0 to {classes - 1} of {adapter.name}")
    else:
        raise TargetError(
            f"{spec!r} is no target; expected a class index, a class name, a function, or None for the prediction"
        )
    return Asked(class_logit(index), index, adapter.label(index))


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
    if found:
        shown = ", ".join(f"{labels[index]!r} ({index})" for index in found[:8]) + (", ..." if found[8:] else "")
        raise TargetError(f"{name!r} fits {len(found)} classes: {shown}. Give a whole name or the number")
    if not labels:
        raise TargetError(
            f"there is no class {name[:100]!r} in {adapter.name}, which has no class names; give a number from 0 to {classes - 1}, "
            "or its names: --class-names FILE (labels=[...])"
        )
    name = name if len(name) <= 100 else f"{name[:97]}..."
    raise TargetError(
        f"{adapter.name} has no class {name!r}.{did_you_mean(name, labels, count=5)} Expected a name, a unique part of one, or a number from 0 to {classes - 1}"
    )


def per_image(
    target: TargetSpec | Sequence[TargetSpec] | Tensor, adapter: Adapter, output: Any, batch: int
) -> list[Asked]:
    """One target for each image of a batch; a list must hold exactly as many as there are images."""
    if isinstance(target, Tensor | np.ndarray):
        target = cast(TargetSpec | Sequence[TargetSpec], target.tolist())
    if isinstance(target, range):
        target = list(target)
    if not isinstance(target, list | tuple):
        if target is None or hasattr(target, "resolved"):  # may be another for each image
            return [resolve(cast(TargetSpec, target), adapter, output, image) for image in range(batch)]
        return [resolve(cast(TargetSpec, target), adapter, output)] * batch
    if len(target) != batch:
        raise TargetError(f"{len(target)} targets for {batch} images; give one target for all, or exactly one an image")
    return [resolve(cast(TargetSpec, spec), adapter, output, image) for image, spec in enumerate(target)]


def score_of(asked: Sequence[Asked], output: Any, batch: int) -> Tensor:
    """The score of each image (B,), each by its own target."""
    functions = {id(one.score): one.score for one in asked}
    indices = [one.index for one in asked]
    if len(functions) > 1 and all(index is not None for index in indices):
        logits = table(output)
        return logits.gather(1, torch.tensor(indices, device=logits.device)[:, None])[:, 0]
    values = {key: _checked(function, output, batch) for key, function in functions.items()}
    return torch.stack([values[id(one.score)][image] for image, one in enumerate(asked)])


def _checked(function: Target, output: Any, batch: int) -> Tensor:
    foreign = not getattr(function, "__module__", "").startswith("sightline.")
    score = _called(function, output, foreign)
    if isinstance(score, Tensor) and score.dim() == 0 and batch == 1:
        score = score[None]
    if not isinstance(score, Tensor) or tuple(score.shape) != (batch,):
        got = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
        raise TargetError(f"the target gave {got}; expected one score per image, a tensor of shape ({batch},)")
    if score.is_complex():
        raise TargetError("the target gave complex numbers; expected one real score per image")
    if (
        foreign
        and batch > 1
        and isinstance(output, Tensor)
        and output.dim() == 2
        and _mixes(function, output.detach(), score)
    ):
        raise TargetError(
            "the target mixes images: one's score depends on the others. Take a column, output[:, k], not a row"
        )
    return score


def _called(function: Target, output: Any, foreign: bool) -> Any:
    try:
        # A copy, because what isn't ours may work on it in place.
        return function(output.clone() if foreign and isinstance(output, Tensor) else output)
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(
            f"the target {getattr(function, '__name__', function)} failed on the model's output: {error}"
        ) from error


def _mixes(function: Target, output: Tensor, score: Tensor) -> bool:
    """Whether the first or last image has another score when it is alone; one that can't be asked alone is let pass."""
    with torch.no_grad():
        for row, together in ((output[:1], score[0]), (output[-1:], score[-1])):
            try:
                alone = function(row.clone())
            except Exception:
                return False
            if alone.numel() != 1:
                return True  # a row, where a column was meant
            alone = alone.reshape(()).to(together)
            rounding = 1e-4 * (abs(float(together)) + float(row.abs().max()))
            if bool((alone - together.detach()).abs() > rounding):
                return True
    return False
