"""Interventions: what the model says when a suspected region or trait is taken from pictures, or given to others, beside a control."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.audit import changes
from sightline.audit.changes import Box
from sightline.audit.regions import BACKGROUND, REGION, Candidate, elsewhere, pixels_of
from sightline.engine.capture import fed
from sightline.engine.targets import probability_like, table
from sightline.metrics.statistics import Paired, paired
from sightline.models.adapter import Adapter, like_weights
from sightline.models.twin import isolated, twin

Array = np.ndarray[Any, np.dtype[Any]]
Told = Callable[[int, int], None]
TAKEN, GIVEN = "taken", "given"
# What is done for each kind of candidate, and which way: whether the class is lost, or won by pictures of other classes.
KINDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    REGION: (("covered", TAKEN), ("inpainted", TAKEN), ("exchanged", TAKEN), ("pasted", GIVEN)),
    **dict.fromkeys((BACKGROUND, "tone", "texture", "smallness", "largeness"), ((TAKEN, TAKEN), (GIVEN, GIVEN))),
}
EACH = 32  # pictures in each arm of a trial
LEAST = 8  # below which a trial says nothing
_SHOWN = 4  # pictures before and after


@dataclass(frozen=True, eq=False)
class Pool:
    """Pictures as the model gets them.

    Attributes:
        at: index in the `Heats` -> row.
        x: (P, C, H, W).
        of: (P,) what the model says of each, unchanged.
        objects: (P, H, W) 0 to 1, where the object of each is, nan without a mask; None where no picture has one.
    """

    at: Mapping[int, int]
    x: Tensor
    of: Array
    objects: Tensor | None


@dataclass(frozen=True, eq=False)
class Trial:
    """One change, beside its control: the same done with a region, or a picture, that should not matter.

    Attributes:
        change: what was done: "covered", "inpainted", "exchanged" (with that of another class), "pasted" (onto other classes), or for
            what has no region "taken" (its own replaced by another class's) and "given" (to pictures of other classes).
        way: "taken": a flip is a picture that loses the class; "given": one that wins it.
        flips: share of the pictures that flipped; `control` that under the control.
        difference: of the two, picture by picture, with its interval.
        p: of an exact McNemar test; after `holm` corrected for everything that was tried.
        chance: the same difference in the probability of the class, positive in the direction of the way.
    """

    change: str
    way: str
    pictures: int
    flips: float
    control: float
    difference: Paired
    p: float
    chance: Paired

    def record(self) -> dict[str, Any]:
        return {
            "change": self.change, "way": self.way, "pictures": self.pictures, "flips": self.flips, "control": self.control,
            "difference": self.difference.difference, "low": self.difference.low, "high": self.difference.high, "p": self.p,
            "probability": {"difference": self.chance.difference, "low": self.chance.low, "high": self.chance.high},
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Shown:
    """One picture before and after a change: (C, H, W) as the model gets them, and what it said."""

    index: int
    change: str
    before: Tensor
    after: Tensor
    said_before: str
    said_after: str


@dataclass(frozen=True, eq=False)
class Arms:
    """The pictures of one trial, before the model is asked: rows of the pool, those that give, and boxes where there is a region."""

    candidate: int
    change: str
    way: str
    rows: tuple[Array, Array]
    donors: tuple[Array, Array]
    boxes: tuple[Sequence[Box], Sequence[Box]]

    @property
    def forwards(self) -> int:
        return len(self.rows[0]) + len(self.rows[1])


def planned(candidates: Sequence[Candidate], pool: Pool, *, seed: int = 0) -> list[Arms]:
    """Everything that will be tried with a pool; the sum of `forwards` is what it costs.

    Pictures of which the model doesn't say now what it said in the run are left out.
    """
    return [
        arms
        for at, one in enumerate(candidates)
        for change, way in KINDS[one.what]
        if (arms := _arms(at, one, change, way, pool, np.random.default_rng([seed, at, len(change)]))) is not None
    ]


def _arms(at: int, one: Candidate, change: str, way: str, pool: Pool, random: np.random.Generator) -> Arms | None:
    there = np.array([pool.at[index] for index in one.members.tolist() if index in pool.at], int)
    own = there[pool.of[there] == one.of][:EACH] if len(there) else there
    others = np.flatnonzero(pool.of != one.of)
    if one.what == BACKGROUND:
        if pool.objects is None:
            return None
        masked = ~torch.isnan(pool.objects).flatten(1).any(dim=1).numpy()
        own, others = own[masked[own]], others[masked[others]]
    if (way == GIVEN or one.what != REGION or change == "exchanged") and len(others) < LEAST:
        return None
    if len(own) < LEAST:
        return None
    spread = (
        others[np.linspace(0, len(others) - 1, min(EACH, len(others))).round().astype(int)] if len(others) else others
    )
    rows = own if way == TAKEN else spread
    n = len(rows)
    boxes: tuple[Sequence[Box], Sequence[Box]] = ((), ())
    if one.box is not None:
        size = (int(pool.x.shape[2]), int(pool.x.shape[3]))
        box = pixels_of(one.box, size)
        control = [elsewhere(box, size, random) for _ in range(n)]
        if control[0] is None:
            return None
        boxes = ([box] * n, [each for each in control if each is not None])
    if way == GIVEN:
        givers = (random.choice(own, n), _of_others(pool, rows, others, random))
    else:
        givers = (random.choice(others, n) if len(others) else own, _same_but(own, random))
    if one.what == REGION:  # the control is another region of the same pictures
        givers = (givers[0], givers[0])
    if change == "exchanged" or one.what != REGION or way == GIVEN:
        return Arms(at, change, way, (rows, rows), givers, boxes)
    return Arms(at, change, way, (rows, rows), (rows, rows), boxes)


def _of_others(pool: Pool, rows: Array, others: Array, random: np.random.Generator) -> Array:
    """For each picture another one that is not of the class either."""
    return np.array([random.choice(others[others != row]) if (others != row).any() else row for row in rows])


def _same_but(own: Array, random: np.random.Generator) -> Array:
    """For each picture another one of the same class: the next of a random circle."""
    circle = random.permutation(len(own))
    found = np.empty_like(own)
    found[circle] = own[np.roll(circle, 1)]
    return found


def changed(one: Candidate, arms: Arms, which: int, part: slice, pool: Pool) -> Tensor:
    """Pictures of one arm (0 the change, 1 its control), as the model is shown them."""
    rows, donors = (torch.as_tensor(each[which][part]) for each in (arms.rows, arms.donors))
    x, given, boxes = pool.x[rows], pool.x[donors], arms.boxes[which][part]
    if arms.change == "covered":
        return changes.cover(x, boxes)
    if arms.change == "inpainted":
        return changes.inpaint(x, boxes)
    if one.what == REGION:
        return changes.paste(x, given, boxes)
    if one.what == BACKGROUND and pool.objects is not None:
        return changes.paste_around(x, given, pool.objects[rows], pool.objects[donors])
    if one.what in ("smallness", "largeness"):  # the control is a change the other way
        shrink = (one.what == "smallness") == (arms.way == GIVEN)
        return changes.smaller(x) if shrink == (which == 0) else changes.larger(x)
    return {"tone": changes.tone, "texture": changes.texture}[one.what](x, given)


def asked(adapter: Adapter, x: Tensor, batch: int, told: Callable[[int], None] | None = None) -> Iterator[Tensor]:
    """What the model returns for pictures, (n, K) at a time."""
    stand_in = twin(adapter.module, {})
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        with isolated(x), torch.no_grad():
            found = table(fed(adapter, stand_in, like_weights(part, adapter.module))).float().cpu()
        if told is not None:
            told(len(part))
        yield found


def run_trials(
    candidates: Sequence[Candidate],
    plan: Sequence[Arms],
    pool: Pool,
    adapter: Adapter,
    *,
    batch: int,
    told: Callable[[int], None] | None = None,
) -> tuple[dict[int, list[Trial]], dict[int, list[Shown]]]:
    """Asks the model, and compares each change with its control; by the candidate's place in the list.

    Args:
        candidates: what may be relied on.
        plan: of these and the pool.
        pool: pictures.
        adapter: the model.
        batch: pictures in a forward.
        told: called with the number of pictures that were shown to the model.
    """
    index = {name: at for at, name in _indices(adapter, {one.of for one in candidates})}
    first = next(asked(adapter, pool.x[:1], 1))
    trials: dict[int, list[Trial]] = defaultdict(list)
    shown: dict[int, list[Shown]] = defaultdict(list)
    for arms in plan:
        one = candidates[arms.candidate]
        chance = probability_like(index[one.of], first, adapter.task)
        sides = []
        for which in (0, 1):
            answers: list[Tensor] = []
            for start in range(0, len(arms.rows[which]), batch):
                x = changed(one, arms, which, slice(start, start + batch), pool)
                answers += asked(adapter, x, batch, told)
            logits = torch.cat(answers)
            says = np.array([adapter.label(at) for at in logits.argmax(dim=1).tolist()])
            sides.append((says, chance(logits).double().numpy()))
        trials[arms.candidate].append(_compared(one, arms, sides))
        shown[arms.candidate] += _examples(one, arms, pool, sides[0][0])
    return trials, shown


def _indices(adapter: Adapter, wanted: Collection[str]) -> Iterator[tuple[int, str]]:
    """Classes by number, of those that are asked for; not by arrays, which drop the NULs at a name's end."""
    count = len(adapter.labels) if adapter.labels else 100_000
    for at in range(count):
        if adapter.label(at) in wanted:
            yield at, adapter.label(at)


def _compared(one: Candidate, arms: Arms, sides: Sequence[tuple[Array, Array]]) -> Trial:
    flips = [((says == one.of) == (arms.way == GIVEN)).astype(float) for says, _ in sides]
    sign = 1.0 if arms.way == GIVEN else -1.0
    difference = paired(flips[0], flips[1])
    chance = paired(sign * sides[0][1], sign * sides[1][1])
    gained, lost = (int(((flips[at] - flips[1 - at]) > 0).sum()) for at in (0, 1))
    return Trial(
        arms.change, arms.way, len(flips[0]), float(flips[0].mean()), float(flips[1].mean()), difference, mcnemar(gained, lost), chance
    )  # fmt: skip


def mcnemar(gained: int, lost: int) -> float:
    """How often chance alone gives pairs that disagree at least so unevenly, either way.

    Args:
        gained: pairs of which only the first flipped.
        lost: pairs of which only the second did.

    Reference:
        McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12, 1947; the exact form,
        twice the smaller tail of a binomial with one half.
    """
    n = gained + lost
    tail = sum(math.comb(n, at) for at in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**n))


def _examples(one: Candidate, arms: Arms, pool: Pool, says: Array) -> list[Shown]:
    """The first pictures that flipped."""
    names = {row: index for index, row in pool.at.items()}
    flipped = np.flatnonzero((says == one.of) == (arms.way == GIVEN))[:_SHOWN]
    found = []
    for at in flipped.tolist():
        row = int(arms.rows[0][at])
        after = changed(one, arms, 0, slice(at, at + 1), pool)[0]
        found.append(Shown(names[row], arms.change, pool.x[row], after, str(pool.of[row]), str(says[at])))
    return found
