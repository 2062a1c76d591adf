"""Targets of detectors, whose output is a list with one mapping a picture: boxes (N, 4) in pixels of the input, labels (N,), scores (N,).

Where the detector gives them, also masks (N, H, W) or (N, 1, H, W) in 0..1, each class's probability (N, K), and objectness (N,), the
probability of all classes together.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from sightline.engine.asked import Asked, Corners, Mark, Target
from sightline.engine.regions import checked_box, placed, single
from sightline.engine.tasks import checked_index, class_index, refuse, task_of
from sightline.errors import ModelError, NonFiniteError, TargetError
from sightline.models.adapter import Adapter
from sightline.models.view import View

Found = Mapping[str, Tensor]
_SAME = 0.5  # the overlap from which benchmarks of detectors count two boxes as one


def box(corners: Corners, label: int | str | None = None) -> Target:
    """How well the detector finds a class in a box of yours: the highest overlap times score of its boxes of that class.

    Args:
        corners: (left, top, right, bottom) in pixels of the photograph.
        label: the class by name or number; None for that of the box which overlaps most.
    """

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        found = _found(adapter, output, image, "box")
        if view is None:
            raise TargetError("a box on the photograph needs to know how that became the input; give the photograph")
        left, top, right, bottom = checked_box(corners, view)
        own = torch.tensor([*view.to_input(left, top), *view.to_input(right, bottom)]).to(found["boxes"])
        wanted = None if label is None else _class(label, adapter, found)
        over = overlap(own, found["boxes"].detach())
        if wanted is not None:
            over = over * (found["labels"] == wanted)
        if not bool((over > 0).any()):
            what = "box" if wanted is None else f"box of {adapter.label(wanted)!r}"
            raise TargetError(
                f"no {what} of the model's overlaps {left:g}, {top:g}, {right:g}, {bottom:g}; it finds {_finds(adapter, found)}"
            )
        best = int(over.argmax())
        chosen = int(found["labels"][best])
        name = f"{adapter.label(chosen)} in the box {left:g}, {top:g}, {right:g}, {bottom:g}"
        mark = Mark(box=(left, top, right, bottom))
        asked = _asked(name, own, chosen, found, best, mark, mask=None)
        return replace(asked, doubt=_far(float(over[best]), adapter, found, best))

    return _needs_a_model(resolved)


def _far(over: float, adapter: Adapter, found: Found, best: int) -> str:
    """That the model has no box of its own where one was asked about, in words; else nothing."""
    if over >= _SAME:
        return ""
    nearest = f"{in_order(found).index(best) + 1}: {adapter.label(int(found['labels'][best]))}"
    return f"the model has no box like this one: its nearest, {nearest}, overlaps it by {100 * over:.0f} % (shared area over joint area)"


def instance(number: int) -> Target:
    """One thing that the model found, by the number that it has in the list of what the model says: 1 is the surest.

    Its score is the highest overlap times score of the boxes of its class; the overlap is that of masks where the model gives some.
    """

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        found = _found(adapter, output, image, "box or instance by number")
        order = in_order(found)
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise TargetError(f"instance {number!r}; expected a number from 1")
        if not 1 <= operator.index(number) <= len(order):
            raise TargetError(f"there is no instance {number}; the model finds {_finds(adapter, found)}")
        return _own(adapter, found, order[number - 1], number, view)

    return _needs_a_model(resolved)


def surest(spec: int | str | None, adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
    """The surest box, of any class or of one."""
    found = _found(adapter, output, image, "box")
    order = in_order(found)
    if not order:
        raise TargetError(f"{adapter.name} finds no box in this picture, so that none can be explained")
    if spec is None:
        return _own(adapter, found, order[0], 1, view)
    wanted = _class(spec, adapter, found)
    for number, at in enumerate(order, 1):
        if int(found["labels"][at]) == wanted:
            return _own(adapter, found, at, number, view)
    raise TargetError(f"the model finds no {adapter.label(wanted)!r} here; it finds {_finds(adapter, found)}")


def in_order(found: Found) -> list[int]:
    """Places of what was found, the surest first."""
    return [int(at) for at in found["scores"].detach().argsort(descending=True, stable=True)]


def numbers_above(adapter: Adapter, output: Any, share: float) -> list[int]:
    """The numbers of the boxes with this score, but for those without area, with which no box can overlap."""
    found = checked_found(adapter, output, 0)
    scores, corners = found["scores"].detach(), found["boxes"].detach()
    solid = ((corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])).tolist()
    if "masks" in found:
        solid = [one or bool((mask > 0.5).any()) for one, mask in zip(solid, masks_of(found).detach(), strict=True)]
    return [number for number, at in enumerate(in_order(found), 1) if float(scores[at]) >= share and solid[at]]


def overlap(own: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box (4,) with boxes (N, 4), as left, top, right, bottom: (N,), 0 where both are empty."""
    own, boxes = single(own), single(boxes)
    sides = (torch.minimum(own[2:], boxes[:, 2:]) - torch.maximum(own[:2], boxes[:, :2])).clamp(min=0)
    shared = sides.prod(dim=1)
    union = (own[2:] - own[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) - shared
    return torch.where(union > 0, shared / union.clamp(min=1e-12), torch.zeros_like(shared))


def mask_overlap(own: Tensor, masks: Tensor) -> Tensor:
    """The same of masks in 0..1, own (H, W) and (N, H, W): shared over together, sum m m' / (sum m + sum m' - sum m m')."""
    own, masks = single(own), single(masks)
    shared = (own * masks).sum(dim=(1, 2))
    return shared / (own.sum() + masks.sum(dim=(1, 2)) - shared).clamp(min=1e-12)


def _found(adapter: Adapter, output: Any, image: int, what: str) -> Found:
    if task_of(adapter, output) != "detection":
        refuse(adapter, output, what)
    return checked_found(adapter, output, image)


def checked_found(adapter: Adapter, output: Any, image: int) -> Found:
    """What a detector found in one picture, or a refusal of what is of another form: it may be any function of anybody's."""
    if image >= len(output):
        raise ModelError(
            f"{adapter.name} gave boxes of {len(output)} pictures, and was shown more; expected a mapping for each"
        )
    found = cast(Found, output[image])
    parts = {part: found[part] for part in _PARTS if part in found}
    strange = [f"{part} as {type(value).__name__}" for part, value in parts.items() if not isinstance(value, Tensor)]
    if strange:
        raise ModelError(f"{adapter.name} gave {', '.join(strange)}; expected tensors")
    count = len(parts["scores"]) if parts["scores"].dim() == 1 else -1
    if not all(_fits(part, tuple(value.shape), count) for part, value in parts.items()):
        shapes = ", ".join(f"{part} {tuple(value.shape)}" for part, value in parts.items())
        more = "".join(f", {part} {form}" for part, form in _FORMS.items() if part in parts)
        raise ModelError(f"{adapter.name} gave {shapes}; expected boxes (N, 4), labels (N,) and scores (N,){more}")
    if not all(bool(parts[part].isfinite().all()) for part in ("boxes", "labels", "scores")):
        raise NonFiniteError(f"NaN or infinity in the boxes that {adapter.name} gave", (image,))
    return found


_FORMS = {"masks": "(N, H, W) or (N, 1, H, W)", "probabilities": "(N, K)", "objectness": "(N,)"}
_PARTS = ("boxes", "labels", "scores", *_FORMS)


def _fits(part: str, shape: tuple[int, ...], count: int) -> bool:
    if part == "boxes":
        return shape == (count, 4)
    if part == "masks":
        return shape[:1] == (count,) and (len(shape) == 3 or (len(shape) == 4 and shape[1] == 1))
    if part == "probabilities":
        return shape[:1] == (count,) and len(shape) == 2
    return shape == (count,)


def _class(spec: int | str, adapter: Adapter, found: Found) -> int:
    highest = int(found["labels"].max()) + 1 if len(found["labels"]) else 1
    classes = max(highest, len(adapter.labels or ()))  # there may be fewer names than classes
    if isinstance(spec, str):
        return class_index(spec, adapter, classes)
    return checked_index(operator.index(spec), adapter, classes)


def _own(adapter: Adapter, found: Found, at: int, number: int, view: View | None) -> Asked:
    """One of the model's own boxes as a target."""
    own, chosen = found["boxes"][at].detach(), int(found["labels"][at])
    corners = own.tolist()
    if view is not None:
        corners = [*view.to_photo(*corners[:2]), *view.to_photo(*corners[2:])]
    mask = masks_of(found)[at].detach() if "masks" in found else None
    if mask is not None and not bool((mask > 0.5).any()):
        mask = None  # no shape to compare with
    region = None if mask is None else placed(mask > 0.5, view)
    mark = Mark(box=cast(Corners, tuple(corners)), region=region)
    return _asked(f"{number}: {adapter.label(chosen)}", own, chosen, found, at, mark, mask)


def masks_of(found: Found) -> Tensor:
    """(N, H, W) in 0..1."""
    masks = found["masks"]
    return masks[:, 0] if masks.dim() == 4 else masks


def _asked(name: str, own: Tensor, chosen: int, found: Found, at: int, mark: Mark, mask: Tensor | None) -> Asked:
    shape = None if mask is None else (mask > 0.5).to(mask)
    if shape is None and not bool(own[2] > own[0] and own[3] > own[1]):
        raise TargetError(f"the box {name!r} has no area, so that no box can overlap it; ask for another: instance:2")

    def over(one: Found) -> Tensor:
        if shape is not None:
            return mask_overlap(shape.to(one["masks"]), masks_of(one))
        return overlap(own.to(one["boxes"]), one["boxes"])

    def sure(one: Found) -> Tensor:
        if "probabilities" in one:
            return one["probabilities"][:, chosen]
        return one["scores"] * (one["labels"] == chosen)

    def score(output: Any) -> Tensor:
        return torch.stack([_highest(over(one) * sure(one), one) for one in output])

    alike = None
    if "probabilities" in found:
        said = found["probabilities"][at].detach()

        def alike(output: Any) -> Tensor:
            return torch.stack([_highest(over(one) * _cosine(said, one) * _objectness(one), one) for one in output])

    chance = float(found["scores"][at].detach())
    return Asked(score, None, name, chance=chance, mark=mark, alike=alike)


def _cosine(said: Tensor, one: Found) -> Tensor:
    return torch.cosine_similarity(said.to(one["probabilities"])[None], one["probabilities"], dim=1)


def _objectness(one: Found) -> Tensor:
    return one.get("objectness", torch.ones_like(one["scores"]))


def _highest(values: Tensor, one: Found) -> Tensor:
    # Of nothing found it is 0, and its gradient, too: the sum of nothing is joined to the picture as scores are.
    return values.max() if len(values) else single(one["scores"]).sum()


def _finds(adapter: Adapter, found: Found, most: int = 5) -> str:
    order = in_order(found)
    if not order:
        return "nothing"
    shown = [
        f"{number}: {adapter.label(int(found['labels'][at]))} ({100 * float(found['scores'][at].detach()):.0f} %)"
        for number, at in enumerate(order[:most], 1)
    ]
    return ", ".join(shown) + (f" and {len(order) - most} more" if len(order) > most else "")


def _needs_a_model(resolved: Any) -> Target:
    def unresolved(_output: Any) -> Tensor:
        raise TargetError("a box needs the model beside its output; give it as a target")

    unresolved.resolved = resolved  # type: ignore[attr-defined]
    return unresolved
