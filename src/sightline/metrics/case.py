"""`Case`: one map of one picture, with everything a metric may ask about it; and the one way to make one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from sightline.attribution import Origin, attribute
from sightline.engine.asked import Asked
from sightline.engine.attention import WANTED
from sightline.engine.capture import Capture
from sightline.engine.probe import MEMORY_MB, probe
from sightline.engine.targets import probability_like, table
from sightline.errors import MetricError
from sightline.metrics.faithfulness import BATCH, Answer, Explain, Score
from sightline.metrics.localisation import Mask
from sightline.metrics.maps import enlarged
from sightline.metrics.registry import Array
from sightline.models.adapter import Adapter

Told = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Asking:
    """One picture, one model and one target, whatever the map: what faithfulness is asked of.

    Attributes:
        adapter: the model.
        x: (1, C, H, W).
        seen: its capture.
        target: what the maps explain.
        answer: pictures (N, C, H, W) -> scores (N,), and whether the target is their first class (N,). The score is the class's
            probability, or the target itself where it is no class.
        classes: how many there are; 0 where the target is no class.
    """

    adapter: Adapter
    x: Tensor
    seen: Capture
    target: Asked
    answer: Answer
    classes: int

    def score(self, pictures: Tensor) -> Tensor:
        """Pictures (N, C, H, W) -> scores (N,)."""
        return self.answer(pictures)[0]


def asking(
    adapter: Adapter, seen: Capture, target: Asked, *, memory_mb: float = MEMORY_MB, told: Told | None = None
) -> Asking:
    """What is asked about one picture.

    Args:
        adapter: the model.
        seen: a capture of the one picture.
        target: what the maps explain.
        memory_mb: about how much one forward may need.
        told: called with the number of pictures that were run, for those who count or wait.
    """
    ask = probe(adapter, seen, target, memory_mb=memory_mb)
    chance = None if target.index is None else probability_like(target.index, seen.output, adapter.task)

    remembered: dict[bytes, tuple[Tensor, Tensor]] = {}

    def answer(pictures: Tensor) -> tuple[Tensor, Tensor]:
        if len(pictures) > 1:
            return run(pictures)
        # Many metrics and maps ask about the same whole, emptied or masked picture.
        key = blake2b(pictures.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes(), digest_size=16).digest()
        if key not in remembered:
            remembered[key] = run(pictures)
        return remembered[key]

    def run(pictures: Tensor) -> tuple[Tensor, Tensor]:
        if chance is None:
            scores = ask.score(pictures).double().cpu()
            first = torch.full_like(scores, torch.nan)
        else:
            logits = ask.output(pictures)
            scores = chance(logits.double()).cpu()
            # Of one logit, and of a label, the class is the first where it is more likely than not.
            one = logits.shape[1] == 1 or adapter.task == "labels"
            first = (scores > 0.5 if one else logits.cpu().argmax(dim=1).eq(target.index or 0)).double()
        if told is not None:
            told(len(pictures))
        return scores, first

    classes = table(seen.output).shape[1] if target.index is not None else 0
    return Asking(adapter, seen.input, seen, target, answer, classes)


def explainer(about: Asking, origin: Origin, told: Told | None = None) -> Explain:
    """How the method would explain other pictures, targets or models: `explain(pictures, target=, module=, signed=)` -> maps (N, h, w).

    `signed` keeps what the method cuts off below 0: maps are alike or not also there. Without pictures it asks what was
    captured of the one at hand, at the price of the head.
    """
    method, several = origin.method, len(origin.layers) > 1
    unrectified = dataclasses.replace(method, signed=True)

    def explain(
        pictures: Tensor | None = None,
        *,
        target: Any = None,
        module: nn.Module | None = None,
        signed: bool = True,
    ) -> Array:
        asked = about.target.score if target is None and about.target.index is None else target
        if asked is None:
            asked = about.target.index
        adapter = about.adapter if module is None else dataclasses.replace(about.adapter, module=module)
        kept = pictures is None and module is None and not several and method.needs not in WANTED
        chosen = unrectified if signed and not several else method  # the rules of fusing expect what is not negative
        found = []
        for part in [about.seen] if kept else torch.split(about.x if pictures is None else pictures, BATCH):
            maps = attribute(
                part,
                adapter,
                method=chosen,
                target=asked,
                layer=None if kept else list(origin.layers),
                options=origin.options,
                memory_mb=origin.memory_mb,
            )
            found.append(maps.double().cpu())
            if told is not None and not kept:
                told(len(maps))
        return torch.cat(found).numpy()

    return explain


@dataclass(frozen=True, eq=False)
class Case:
    """One map of one picture: the attributes that metrics take by name (see `registry.PARTS`); None where there is none."""

    heat: Array | None = None
    placed: Array | None = None
    mask: Mask | None = None
    cell: tuple[int, int] | None = None
    part: tuple[int, int] | None = None
    x: Tensor | None = None
    score: Score | None = None
    answer: Answer | None = None
    explain: Explain | None = None
    raw: Array | None = None
    others: tuple[int, int] | None = None
    module: nn.Module | None = None


def case(
    shown: Array,
    about: Asking,
    *,
    raw: Array | None = None,
    explain: Explain | None = None,
    placed: Array | None = None,
    mask: Mask | None = None,
) -> Case:
    """A map (h, w), as its method gives it, and what may be asked about it.

    Args:
        shown: the map; negative values are evidence against.
        about: the picture, the model and the target.
        raw: the same before the method cut anything off.
        explain: the method, for metrics that ask for other maps.
        placed: the map on the mask's pixels; as on the model's input when left out.
        mask: the object.
    """
    size = (about.x.shape[2], about.x.shape[3])
    heat = enlarged(shown, size)
    if mask is not None and placed is None:
        if mask.shape != size:
            raise MetricError(f"the mask is {mask.shape} and the input {size}; give a mask (H, W) of the input's size")
        placed = heat
    others = (about.target.index, about.classes) if about.target.index is not None and about.classes > 1 else None
    return Case(
        heat=heat,
        placed=placed,
        mask=mask,
        x=about.x,
        score=about.score,
        answer=about.answer if about.target.index is not None else None,
        explain=explain,
        raw=raw,
        others=others,
        module=about.adapter.module,
    )
