"""Pictures on which model, label and map don't agree, and labels that may be wrong."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.audit.heat import Heats, folded

Array = np.ndarray[Any, np.dtype[Any]]
CONFIDENT = 0.9
FAINT = 0.05  # of the median evidence of the class
ASIDE = 0.25  # share of the heat on the object
ON_IT = 0.5
RIGHT_ASIDE = "right answer from the wrong place"
WRONG_ON_IT = "wrong answer from the right place"
BLIND = "confident without evidence"


@dataclass(frozen=True)
class Doubtful:
    """A picture with what is odd about it."""

    id: str
    label: str | None
    predicted: str
    probability: float | None
    says: str


@dataclass(frozen=True)
class Label:
    """A label that may be wrong.

    Attributes:
        id: the picture.
        label: that it has; `predicted` what the model says.
        probability: of the prediction; `quality` that of the label, 0 where it isn't among the first answers.
    """

    id: str
    label: str
    predicted: str
    probability: float
    quality: float


def disagreements(
    heats: Heats, inside: Array | None, suspects: dict[str, Array] | None = None
) -> dict[str, tuple[Doubtful, ...]]:
    """Pictures by kind, the plainest first.

    Args:
        heats: the maps.
        inside: (N,) share of the heat on the object, nan without a mask; None where there are no masks at all.
        suspects: pictures that showed a shortcut, by its name: right answers among them come from the wrong place.
    """
    right = heats.right
    found: dict[str, list[tuple[float, Doubtful]]] = defaultdict(list)
    medians = _medians(heats)
    shown = {int(at): name for name, members in (suspects or {}).items() for at in members}
    for at in range(len(heats)):
        share = np.nan if inside is None else inside[at]
        if right[at] == 1 and share < ASIDE:
            found[RIGHT_ASIDE].append((share, _of(heats, at, f"{share:.0%} of the heat lies on the object")))
        elif right[at] == 1 and at in shown and inside is None:
            found[RIGHT_ASIDE].append((-heats.chances[at], _of(heats, at, f"goes by {shown[at]}")))
        if right[at] == 0 and share >= ON_IT:
            found[WRONG_ON_IT].append((-share, _of(heats, at, f"{share:.0%} of the heat lies on the object")))
        typical = medians[heats.of[at]]
        if heats.chances[at] >= CONFIDENT and (heats.evidence[at] <= FAINT * typical or not heats.shares[at].any()):
            says = f"evidence {heats.evidence[at]:.2g}, and {typical:.2g} is usual for its class"
            found[BLIND].append((-heats.chances[at], _of(heats, at, says)))
    return {name: tuple(one for _, one in sorted(each, key=lambda pair: pair[0])) for name, each in found.items()}


def _medians(heats: Heats) -> dict[str, float]:
    by = defaultdict(list)
    for of, evidence in zip(heats.of, heats.evidence, strict=True):
        if np.isfinite(evidence):
            by[of].append(evidence)
    return defaultdict(float, {name: float(np.median(each)) for name, each in by.items()})


def _of(heats: Heats, at: int, says: str) -> Doubtful:
    chance = heats.chances[at]
    return Doubtful(
        heats.ids[at], heats.labels[at], heats.predicted[at], float(chance) if np.isfinite(chance) else None, says
    )


def doubtful_labels(heats: Heats) -> tuple[Label, ...]:
    """Labels that the model contradicts as surely as it is of pictures with its own answer's label; the least probable label first.

    A picture labelled i is doubtful where the model says k instead, with a probability of at least the mean probability of k over the
    pictures labelled k. Classes without a labelled picture have no such mean; there nothing is doubted.

    Reference:
        Northcutt et al., Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70, 2021, eq. 1-2 (the off-diagonal of the
        confident joint). Of each picture only the most probable class is compared, because a run keeps no others in full.
    """
    right = heats.right
    own = defaultdict(list)
    for label, chance in zip(heats.labels, heats.chances_of_label, strict=True):
        if label is not None and np.isfinite(chance):
            own[folded(label)].append(chance)
    sure = {name: float(np.mean(each)) for name, each in own.items()}
    found = []
    for at in np.flatnonzero(right == 0).tolist():
        label, said, chance = heats.labels[at], heats.predicted[at], heats.chances[at]
        least = sure.get(folded(said), sure.get(str(heats.index[at])))  # by its name, or by its number
        if label is not None and least is not None and np.isfinite(chance) and chance >= least:
            found.append(Label(heats.ids[at], label, said, float(chance), float(heats.chances_of_label[at])))
    return tuple(sorted(found, key=lambda one: (one.quality, -one.probability)))
