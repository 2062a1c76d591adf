"""What is asked of the model: any function from its output to one score per image, and the names for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sightline.engine import boxes, regions
from sightline.engine.asked import Asked, Mark, Target, TargetSpec
from sightline.engine.tasks import checked_index, class_index, refuse, task_of
from sightline.errors import TargetError
from sightline.models.adapter import Adapter
from sightline.models.outputs import described, taking
from sightline.models.view import View

_MOST = 100  # targets that `above` may stand for
SEVERAL = "`above` stands for several targets; give it to sightline.compare, which shows them side by side"
NO_GRADIENT = "the score has no gradient: the target or the model cuts the graph (detach, argmax, no_grad)"


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

        def known(adapter: Adapter, output: Any, _image: int, _view: View | None) -> Asked:
            _check_has_classes(adapter, output)
            return Asked(plain, None, plain.__name__)

        plain.resolved = known  # type: ignore[attr-defined]
        return plain

    def unnamed(_output: Any) -> Tensor:
        raise TargetError("a margin by names needs a model that knows them; give numbers")

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        _check_has_classes(adapter, output, but="regression")
        one, other = (resolve(spec, adapter, output, image, view) for spec in (of, over))
        if one.index is None or other.index is None or one.index == other.index:
            raise TargetError(f"a margin needs two different classes, not {one.label!r} and {other.label!r}")
        return Asked(difference(one.index, other.index), None, f"{one.label} rather than {other.label}")

    unnamed.resolved = resolved  # type: ignore[attr-defined]
    return unnamed


def _check_has_classes(adapter: Adapter, output: Any, but: str = "") -> None:
    if task_of(adapter, output) in ("embedding", "segmentation", "detection", but):
        refuse(adapter, output, "margin between two classes")


def log_probability(of: int | str | None) -> Target:
    """Natural logarithm of a class's probability: softmax over classes, a sigmoid for one output or for labels of their own."""

    def score(index: int, task: str) -> Target:
        def log(output: Any) -> Tensor:
            logits = table(output)
            if task == "words":
                return logits[:, index]
            # A model with its softmax inside has returned probabilities already.
            if _are_probabilities(logits, task):
                return logits.clamp_min(1e-30)[:, index].log()
            if task == "labels" or logits.shape[1] == 1:
                return torch.nn.functional.logsigmoid(logits)[:, index]
            return logits.log_softmax(dim=1)[:, index]

        log.__name__ = f"log-probability of class {index}"
        return log

    return _of_class(of, "log-probability of", score)


def probability(of: int | str | None) -> Target:
    """Probability of a class; its gradient vanishes near 1, where `log_probability` is better."""

    def score(index: int, task: str) -> Target:
        def chance(output: Any) -> Tensor:
            return _as_probabilities(table(output), None, task)[:, index]

        chance.__name__ = f"probability of class {index}"
        chance.is_probability = True  # type: ignore[attr-defined]
        return chance

    return _of_class(of, "probability of", score)


def _of_class(of: int | str | None, what: str, score: Callable[[int, str], Target]) -> Target:
    """A function of one class: ready where its number is known, else once there is a model."""
    if isinstance(of, int):
        _check_index(of)

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        one = resolve(of, adapter, output, image, view)
        if one.index is None:
            refuse(adapter, output, f"{what} a class")
        return Asked(score(one.index, task_of(adapter, output)), None, f"{what} {one.label}")

    def plain(output: Any) -> Tensor:
        if not isinstance(of, int):
            raise TargetError(f"the {what} a name needs a model that knows it; give its number")
        return score(of, "")(output)

    if isinstance(of, int):
        known = score(of, "")
        plain.__name__ = known.__name__
        plain.is_probability = getattr(known, "is_probability", False)  # type: ignore[attr-defined]
    plain.resolved = resolved  # type: ignore[attr-defined]
    return plain


def binary(positive: bool = True) -> Target:
    """The one logit of a model that says yes or no: for it, or with `positive=False` against it."""

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        task = task_of(adapter, output)
        if task not in ("classes", "labels") or table(output).shape[1] != 1:
            refuse(adapter, output, "for and against, which are of models with one logit")
        label = adapter.label(0)
        return Asked(yes_or_no, 0 if positive else None, label if positive else f"against {label}")

    def yes_or_no(output: Any) -> Tensor:
        logits = table(output)
        if logits.shape[1] != 1:
            raise TargetError(f"for and against are of models with one logit; this one has {logits.shape[1]}")
        return logits[:, 0] if positive else -logits[:, 0]

    yes_or_no.resolved = resolved  # type: ignore[attr-defined]
    yes_or_no.__name__ = "for" if positive else "against"
    return yes_or_no


def regression(of: int | str | None = None, *, up: bool = True) -> Target:
    """A value that the model gives: what raises it, or with `up=False` what lowers it."""
    if isinstance(of, int):
        _check_index(of)

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        if task_of(adapter, output) not in ("classes", "labels", "regression"):
            refuse(adapter, output, "value that goes up and down")
        values = table(output)
        count = values.shape[1]
        if of is None and count > 1:
            names = ", ".join(adapter.label(index) for index in range(min(count, 5)))
            raise TargetError(f"{adapter.name} gives {count} values ({names}); say which: up:NAME or down:NUMBER")
        index = _numbered(of or 0, adapter, count)
        name = adapter.label(index) if adapter.labels else "value" if count == 1 else f"value {index}"
        value = float(values[image, index].detach())
        return Asked(_signed(index, up), None, f"{name} {'up' if up else 'down'} (now {value:.4g})")

    def plain(output: Any) -> Tensor:
        if isinstance(of, str):
            raise TargetError("a value by its name needs a model that knows it; give its number")
        return _signed(of or 0, up)(output)

    plain.resolved = resolved  # type: ignore[attr-defined]
    plain.of_values = True  # type: ignore[attr-defined]  # its label tells what the model returned, not a probability
    plain.__name__ = f"value {of or 0} {'up' if up else 'down'}"
    return plain


def _signed(index: int, up: bool) -> Target:
    return lambda output: table(output)[:, index] if up else -table(output)[:, index]


def above(share: float = 0.5) -> Target:
    """Stands for several targets at once, for `compare`: every label, or every box, that the model gives at least this probability."""
    if not isinstance(share, int | float | np.floating | np.integer) or not 0 <= share <= 1:
        raise TargetError(f"above {share!r:.60}; expected a probability, 0 to 1")

    def every(adapter: Adapter, output: Any) -> list[TargetSpec]:
        task = task_of(adapter, output)
        found: list[TargetSpec] = []
        if task == "detection":
            found = [boxes.instance(number) for number in boxes.numbers_above(adapter, output, float(share))]
        elif task == "segmentation":
            found = [regions.segment(index) for index, part in regions.seen_classes(output) if part >= share]
        elif task in ("classes", "labels"):
            shares = probabilities(output, task)[0]
            order = shares.argsort(descending=True, stable=True)
            found = [int(index) for index in order if shares[index] >= share]
        else:
            refuse(adapter, output, "probabilities to be above of")
        if not found:
            raise TargetError(f"the model gives nothing a probability of {share:g} or more; ask for less, or by name")
        if len(found) > _MOST:
            raise TargetError(
                f"above {share:g} are {len(found):,} targets; at most {_MOST} are shown side by side: ask for a higher one"
            )
        return found

    def unresolved(_output: Any) -> Tensor:
        raise TargetError(SEVERAL)

    unresolved.every = every  # type: ignore[attr-defined]
    return unresolved


def expanded(targets: Sequence[TargetSpec], adapter: Adapter, output: Any) -> list[TargetSpec]:
    """The targets, with each in place of those that stands for several."""
    found: list[TargetSpec] = []
    for one in targets:
        every = getattr(one, "every", None)
        found += [one] if every is None else every(adapter, output)
    return found


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


def probabilities(output: Any, task: str = "") -> Tensor:
    """(B, K) in 0..1: softmax over classes; sigmoid for one logit and for labels; the output itself if it is probabilities already."""
    return _as_probabilities(table(output).detach().float(), None, task)


def probability_like(index: int, first: Any, task: str = "") -> Target:
    """The probability of a class, read off every output as off the first: `probabilities` decides anew for each."""
    inside = _are_probabilities(table(first).detach(), task)
    return lambda output: _as_probabilities(table(output), inside, task)[:, index]


def _as_probabilities(logits: Tensor, inside: bool | None, task: str) -> Tensor:
    if task == "words":
        return logits.exp()
    if _are_probabilities(logits, task) if inside is None else inside:
        return logits
    return logits.sigmoid() if task == "labels" or logits.shape[1] == 1 else logits.softmax(dim=1)


def _are_probabilities(logits: Tensor, task: str) -> bool:
    # Labels that add up to 1 do so by chance.
    return logits.shape[1] > 1 and (are_independent(logits) or (task != "labels" and is_normalised(logits)))


def is_normalised(logits: Tensor) -> bool:
    """Whether a model has its softmax inside, so that its output is probabilities already."""
    return bool((logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < 1e-3).all())


def are_independent(logits: Tensor) -> bool:
    """Whether the outputs look like a probability each, as of a model with a sigmoid inside; few could do so by chance."""
    return logits.shape[1] >= 10 and bool(((logits >= 0) & (logits <= 1)).all()) and not is_normalised(logits)


def resolve(spec: TargetSpec, adapter: Adapter, output: Any, image: int = 0, view: View | None = None) -> Asked:
    """Makes ready what the user asked for: None is what the model says of this image first; an index, a name or a function.

    Places on the photograph need its view.

    Raises:
        TargetError: no such class, or a name that several share; the nearest are listed.
    """
    if callable(spec):
        if (named := getattr(spec, "resolved", None)) is not None:
            return cast(Asked, named(adapter, output, image, view))
        return Asked(spec, None, getattr(spec, "__name__", "own target").strip("<>"))
    if hasattr(spec, "__index__") and not isinstance(spec, bool) and not isinstance(spec, Tensor):
        spec = operator.index(cast(Any, spec))
    elif spec is not None and not isinstance(spec, str):
        raise TargetError(
            f"{spec!r} is no target; expected a class index, a class name, a function, or None for the prediction"
        )
    task = task_of(adapter, output)
    if task == "detection":
        return boxes.surest(spec, adapter, output, image, view)
    if task == "segmentation":
        named = regions.segment(spec)
        return cast(Asked, named.resolved(adapter, output, image, view))  # type: ignore[attr-defined]
    if task == "regression":
        named = regression(spec)
        return cast(Asked, named.resolved(adapter, output, image, view))  # type: ignore[attr-defined]
    if task == "embedding":
        refuse(adapter, output, "class")
    if task == "words" and spec is None:
        words = " ".join(adapter.labels or ())
        chance = float(table(output)[image].detach().double().sum().exp())
        return Asked(lambda output: table(output).sum(dim=1), None, words, chance=chance, mark=Mark(text=words))
    classes = table(output).shape[1]
    index = int(table(output)[image].argmax()) if spec is None else _numbered(spec, adapter, classes)
    mark = _word(adapter, index) if task == "words" else None
    label = adapter.label(index)
    if task == "words" and (adapter.labels or ()).count(label) > 1:
        label = f"{label} (word {index + 1})"
    return Asked(class_logit(index), index, label, mark=mark)


def _numbered(spec: int | str, adapter: Adapter, classes: int) -> int:
    if isinstance(spec, str):
        return class_index(spec, adapter, classes)
    return checked_index(spec, adapter, classes)


def _word(adapter: Adapter, index: int) -> Mark:
    words = adapter.labels or ()
    before = " ".join(words[:index])
    start = len(before) + (1 if before else 0)
    return Mark(text=" ".join(words), words=(start, start + len(adapter.label(index))))


def per_image(
    target: TargetSpec | Sequence[TargetSpec] | Tensor,
    adapter: Adapter,
    output: Any,
    batch: int,
    view: View | None = None,
) -> list[Asked]:
    """One target for each image of a batch; a list must hold exactly as many as there are images."""
    if isinstance(target, Tensor | np.ndarray):
        target = cast(TargetSpec | Sequence[TargetSpec], target.tolist())
    if isinstance(target, range):
        target = list(target)
    if not isinstance(target, list | tuple):
        if target is None or hasattr(target, "resolved"):  # may be another for each image
            return [resolve(cast(TargetSpec, target), adapter, output, image, view) for image in range(batch)]
        if task_of(adapter, output) not in ("segmentation", "detection"):  # where it is about places of one image
            return [resolve(cast(TargetSpec, target), adapter, output, view=view)] * batch
        return [resolve(cast(TargetSpec, target), adapter, output, image, view) for image in range(batch)]
    if len(target) != batch:
        raise TargetError(f"{len(target)} targets for {batch} images; give one target for all, or exactly one an image")
    return [resolve(cast(TargetSpec, spec), adapter, output, image, view) for image, spec in enumerate(target)]


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
