"""`audit_run`: what a model goes by, over a whole run: looked for in the maps, tried on the pictures, said in plain words."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sightline._optional import require
from sightline.attribution import Model, adapter_of
from sightline.audit.clusters import Cluster, clusters_of, rank
from sightline.audit.disagreements import Doubtful, Label, disagreements, doubtful_labels
from sightline.audit.heat import Heats, Where, objects_of, parts_of, read_heats, where
from sightline.audit.pictures import check_model, masks_of, picture_of, read_pool, source_of
from sightline.audit.regions import REGION, Candidate, candidates_of
from sightline.audit.trials import EACH, KINDS, Shown, Trial, planned, run_trials
from sightline.audit.verdict import (
    CLEARED,
    LEAST,
    PLACE,
    SHORTCUT,
    SUSPECTED,
    UNTRIED,
    Ruling,
    corrected,
    ruling_on,
    ruling_on_class,
    ruling_on_model,
)
from sightline.batch.results import Run, open_run
from sightline.errors import ImageError, MetricError, OutputError, TargetError
from sightline.models.adapter import Adapter

Array = np.ndarray[Any, np.dtype[Any]]
SCHEMA = "sightline.audit/1"
BUDGET = 10_000
# Told (what is being done, how much of it is done, of how much).
Watch = Callable[[str, int, int], None]
_POOL = 2000  # pictures held at a time: 1.2 GB of 224 x 224
_EXAMPLES = 12  # of a group


@dataclass(frozen=True, eq=False)
class ClassAudit:
    """What was found of one class.

    Attributes:
        name: the class, as the model calls it.
        members: indices of its pictures.
        ruling: what it was found to be.
        heat: where its heat lies.
        mean: (h, w) mean share of the heat.
    """

    name: str
    members: Array
    ruling: Ruling
    heat: tuple[Where, ...]
    mean: Array


@dataclass(frozen=True, eq=False)
class Tried:
    """A candidate with its trials, what it was found to be, and pictures before and after."""

    candidate: Candidate
    trials: tuple[Trial, ...]
    ruling: Ruling
    shown: tuple[Shown, ...]


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes:
        ruling: on the model: outcome "shortcut", "suspected", "none found" or "too few", the sentence, its grounds, what to do next.
        classes: the worst first.
        clusters: groups of alike maps within classes.
        tried: what was suspected, and what came of it.
        disagreements: pictures by kind.
        labels: that may be wrong.
        notices: what limits the audit.
        forwards: pictures that were shown to the model.
        heats: the maps it is of.
        about: of the run.
    """

    ruling: Ruling
    classes: tuple[ClassAudit, ...]
    clusters: tuple[Cluster, ...]
    tried: tuple[Tried, ...]
    disagreements: Mapping[str, tuple[Doubtful, ...]]
    labels: tuple[Label, ...]
    notices: tuple[str, ...]
    forwards: int
    heats: Heats
    about: Mapping[str, Any]
    adapter: Adapter | None = None

    def record(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        ids = self.heats.ids
        return {
            "schema": SCHEMA,
            "run": dict(self.about),
            **_words(self.ruling),
            "notices": list(self.notices),
            "forwards": self.forwards,
            "classes": [
                {
                    "class": one.name,
                    "pictures": len(one.members),
                    **_words(one.ruling),
                    "where": {each.part: each.record() for each in one.heat},
                    "mean": _grid(one.mean),
                }
                for one in self.classes
            ],
            "clusters": [
                {
                    "class": one.of,
                    "number": one.number,
                    "pictures": len(one.members),
                    "share": one.share,
                    "separation": one.separation,
                    "p": one.p,
                    "mean": _grid(one.mean),
                    "examples": [ids[at] for at in one.members[:_EXAMPLES]],
                }
                for one in self.clusters
            ],
            "candidates": [
                {
                    "class": one.candidate.of,
                    "number": number,
                    "what": one.candidate.what,
                    "place": one.candidate.place(),
                    "found": one.candidate.found,
                    "box": one.candidate.box,
                    "pictures": len(one.candidate.members),
                    **_words(one.ruling),
                    "trials": [each.record() for each in one.trials],
                    "examples": [
                        _example(each, ids, self.adapter) for each in _to_show(one) if self.adapter is not None
                    ],
                }
                for number, one in enumerate(self.tried, start=1)
            ],
            "disagreements": {
                name: [dataclasses.asdict(one) for one in each] for name, each in self.disagreements.items()
            },
            "labels": [dataclasses.asdict(one) for one in self.labels],
        }


def audit_run(
    run: Run | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    model: Model | None = None,
    data: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    method: str | None = None,
    budget: int = BUDGET,
    batch_size: int | None = None,
    seed: int = 0,
    force: bool = False,
    watch: Watch | None = None,
) -> Audit:
    """Finds out what a model goes by: where its heat lies, which kinds of maps there are, and what taking them away changes.

    Without a model, or where the pictures can't be found, nothing is tried, and the maps alone can no more than suspect.

    Args:
        run: of `sightline batch`; its first method's first map of every picture is taken.
        output: a new folder for the findings; nothing is written when left out.
        model: the one of the run, for interventions.
        data: where the pictures are, if no longer where they were.
        masks: a folder with a picture of the same name for each, above 0 where the object is.
        boxes: a CSV file with the columns image, left, top, right, bottom, in pixels.
        method: whose maps.
        budget: how many changed pictures the model may be shown; 0 for none.
        batch_size: pictures in a forward; that of the run when left out.
        seed: of all that is random.
        force: replace an earlier audit.
        watch: told what is done, how much of it, and of how much; before the first trial of how many pictures there will be.

    Raises:
        SightlineError: the run can't be read, or the model is not its own.
        MissingExtraError: scikit-learn or pyarrow isn't installed (the extra `audit`).
    """
    require(["pyarrow", "sklearn"], "audit", "an audit")
    opened = run if isinstance(run, Run) else open_run(run)
    told = watch or (lambda what, done, of: None)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise OutputError(f"budget is {budget!r}; expected how many pictures the model may be shown, 0 or more")
    mask_of = masks_of(*(None if one is None else Path(one) for one in (masks, boxes)))
    adapter = None if model is None or budget == 0 else adapter_of(model)
    if adapter is not None:
        check_model(opened, adapter)
    told("reading the maps", 0, len(opened))
    heats = read_heats(opened, method)
    objects, notices = (None, []) if mask_of is None else objects_of(heats, mask_of)
    found = _looked_at(heats, objects, seed, told)
    tried, more, forwards = _tried(
        opened, heats, found, objects, mask_of, adapter, data, budget, batch_size, seed, told
    )
    audit = _audit(opened, heats, found, objects, tried, notices + _of_run(opened, heats) + more, forwards, adapter)
    if output is not None:
        from sightline.audit.files import write_audit

        told("writing", 0, 1)
        write_audit(audit, opened, Path(output), force=force)
    return audit


@dataclass(frozen=True, eq=False)
class _Looked:
    """One class before anything was tried."""

    name: str
    members: Array
    heat: tuple[Where, ...]
    mean: Array
    clusters: tuple[Cluster, ...]
    candidates: tuple[Candidate, ...]


def _looked_at(heats: Heats, objects: Array | None, seed: int, told: Watch) -> list[_Looked]:
    """Each class's heat, groups and candidates."""
    by: dict[str, list[int]] = defaultdict(list)
    for at, name in enumerate(heats.of):
        by[name].append(at)
    shares = parts_of(heats.shares, objects)
    classes = np.array(heats.of)
    copies = 39 if len(by) <= 50 else 19
    found = []
    for number, (name, indices) in enumerate(sorted(by.items(), key=lambda one: (-len(one[1]), one[0]))):
        told("looking at classes", number, len(by))
        members = np.array(indices)
        heat = where(shares, heats.shares, members, seed)
        clusters = clusters_of(name, heats.shares, members, np.flatnonzero(classes != name), seed=seed, copies=copies)
        enough = len(members) >= LEAST
        candidates = candidates_of(name, heats.shares, members, clusters, objects) if enough else ()
        found.append(_Looked(name, members, heat, heats.shares[members].mean(axis=0), clusters, candidates))
    told("looking at classes", len(by), len(by))
    return found


def _of_run(run: Run, heats: Heats) -> list[str]:
    """What limits what can be said of a run."""
    notices = []
    if not run.complete:
        notices.append(
            f"The run is not complete: {len(run.missing)} of its files are missing (sightline batch --resume)."
        )
    if heats.errors:
        notices.append(f"{heats.errors:,} pictures failed in the run and are left out.")
    if heats.without:
        notices.append(f"{heats.without:,} pictures have no map of {heats.method}.")
    empty = int((heats.shares.sum(axis=(1, 2)) == 0).sum())
    if empty:
        notices.append(f"{empty:,} maps have no heat at all; they lie nowhere.")
    if heats.coarser:
        notices.append(
            f"{heats.coarser:,} maps were brought to the grid of {heats.grid[0]} x {heats.grid[1]} that most have."
        )
    if min(heats.grid) < 3:
        notices.append(f"The maps' grid of {heats.grid[0]} x {heats.grid[1]} is too coarse to find regions in.")
    if len(set(heats.of)) == 1:
        notices.append("There is one class only, so that nothing can be exchanged between classes.")
    right = heats.right
    if np.isnan(right).all():
        notices.append("The pictures have no labels: nothing can be said of right and wrong answers.")
    elif not np.nansum(right):
        notices.append("No label is what the model calls a class, so that labels and answers can't be compared.")
    return notices


def _tried(
    run: Run,
    heats: Heats,
    found: Sequence[_Looked],
    objects: Array | None,
    mask_of: Any,
    adapter: Adapter | None,
    data: str | os.PathLike[str] | None,
    budget: int,
    batch_size: int | None,
    seed: int,
    told: Watch,
) -> tuple[dict[str, list[Tried]], list[str], int]:
    """The candidates of each class with what came of them; what must be said; and how many pictures the model was shown."""
    untried = {
        one.name: [Tried(each, (), ruling_on(each, ()), ()) for each in one.candidates if each.what == REGION]
        for one in found
    }
    if adapter is None:
        return (
            untried,
            ["Nothing was tried: that needs the model (--model) and its pictures."]
            if budget
            else ["Nothing was tried: the budget is 0."],
            0,
        )
    batch = batch_size or int(run.plan.get("batch") or 8)
    chosen, classes = _sample(heats, found, budget)
    if not chosen:
        return untried, ["Nothing was tried: no class has enough pictures, or the budget is too small for one."], 0
    shown = [0]

    def count(pictures: int) -> None:
        shown[0] += pictures
        told(doing, shown[0], of)

    doing, of = "reading pictures", len(chosen)
    try:
        source = source_of(run, data)
        told(doing, 0, of)
        pool, notices = read_pool(heats, chosen, source, adapter, _object_of(heats, mask_of), batch=batch, told=count)
    except (ImageError, TargetError) as error:
        return untried, [f"Nothing was tried: {error}"], shown[0]
    candidates = [each for one in classes for each in one.candidates]
    plan = planned(candidates, pool, seed=seed)
    kept, spent = [], shown[0]
    for _, all_of_one in groupby(plan, key=lambda arms: arms.candidate):  # one direction alone clears nothing
        group = list(all_of_one)
        cost = sum(arms.forwards for arms in group)
        if spent + cost > budget:
            notices.append(f"Not everything was tried: the budget of {budget:,} pictures is spent (--budget).")
            break
        spent += cost
        kept += group
    doing, of = "trying", spent
    told(doing, shown[0], of)
    trials, examples = run_trials(candidates, kept, pool, adapter, batch=batch, told=count)
    judged = corrected([trials.get(at, []) for at in range(len(candidates))])
    result = dict(untried)
    for name in {one.name for one in classes}:
        result[name] = [
            Tried(one, tuple(each), ruling_on(one, each), tuple(examples.get(at, ())))
            for at, (one, each) in enumerate(zip(candidates, judged, strict=True))
            if one.of == name
        ]
    left = [one.name for one in found if one.candidates and one not in classes]
    if left:
        notices.append(
            f"Nothing was tried for {len(left)} of {len(found)} classes: the budget of {budget:,} pictures goes to the most suspicious."
        )
    return result, notices, shown[0]


def _object_of(heats: Heats, mask_of: Any) -> Callable[[int], Array | None] | None:
    if mask_of is None:
        return None

    def found(index: int) -> Array | None:
        try:
            return mask_of(heats.ids[index], heats.view(index).photo)  # type: ignore[no-any-return]
        except (MetricError, ImageError):
            return None  # which `objects_of` has told

    return found


def _sample(heats: Heats, found: Sequence[_Looked], budget: int) -> tuple[list[int], list[_Looked]]:
    """Which pictures are read, and of which classes: those whose maps look odd first, as far as the budget goes."""
    able = [one for one in found if one.candidates]
    able.sort(key=_suspicion)
    chosen: dict[int, None] = {}
    classes: list[_Looked] = []
    cost = 0
    for one in able:
        own = sum(2 * EACH * len(KINDS[each.what]) for each in one.candidates)
        some = [_spread(each.members if each.what == REGION else one.members) for each in one.candidates]
        more = [at for at in dict.fromkeys(np.concatenate(some).tolist()) if at not in chosen]
        if cost + (own if classes else 0) + len(more) > budget or len(chosen) + len(more) > _POOL:
            break
        chosen.update(dict.fromkeys(more))
        classes.append(one)
        cost += own + len(more)
    # Pictures of other classes are needed, too, where one class alone is tried.
    for one in found if classes else ():
        more = _spread(one.members).tolist()
        if one not in classes and len(chosen) < 2 * EACH + len(classes) * EACH and len(chosen) + len(more) <= budget:
            chosen.update(dict.fromkeys(more))
    return list(chosen), classes


def _suspicion(one: _Looked) -> tuple[bool, float, float, int]:
    """Smaller is more suspicious: heat that gathers where no object is, much of it outside, unusual groups of maps, then many pictures."""
    aside = any(each.what == REGION and each.aside for each in one.candidates)
    outside = [
        each.share.mean / each.even for each in one.heat if each.part in ("border", "corners") and each.share.mean
    ]
    unusual = min((each.p for each in one.clusters if each.p is not None), default=1.0)
    return not aside, -max(outside, default=0.0), unusual, -len(one.members)


def _spread(members: Array) -> Array:
    """So many of them, evenly spread."""
    return np.asarray(members[np.linspace(0, len(members) - 1, min(EACH, len(members))).round().astype(int)])


def _audit(
    run: Run,
    heats: Heats,
    found: Sequence[_Looked],
    objects: Array | None,
    tried: Mapping[str, list[Tried]],
    notices: Sequence[str],
    forwards: int,
    adapter: Adapter | None,
) -> Audit:
    from sightline.audit.verdict import ORDER

    interventions = {name for name, of_class in tried.items() if any(each.trials for each in of_class)}
    classes = []
    for one in found:
        of_class = tried.get(one.name, [])
        made = one.name in interventions
        pairs = [(each.candidate, each.ruling) for each in of_class]
        ruling = ruling_on_class(
            one.name, len(one.members), one.heat, pairs, [each.p for each in one.clusters if each.p is not None], made
        )
        classes.append(ClassAudit(one.name, one.members, ruling, one.heat, one.mean))
    classes.sort(key=lambda one: ORDER.index(one.ruling.outcome))
    everything = sorted((each for of_class in tried.values() for each in of_class), key=_strength)
    suspects = {
        each.candidate.place(): each.candidate.members
        for each in everything
        if each.ruling.outcome == SHORTCUT and each.candidate.what == REGION
    }
    inside = None if objects is None else parts_of(heats.shares, objects)["object"][0]
    right = heats.right
    labelled = int((~np.isnan(right)).sum())
    comparable = bool(np.nansum(right))
    about = {
        "folder": run.folder.name,
        "model": run.plan["model"].get("name", ""),
        "pictures": run.pictures,
        "done": len(heats),
        "errors": heats.errors,
        "labelled": labelled,
        "right": int(np.nansum(right)) if comparable else None,
        "method": heats.method,
        "grid": list(heats.grid),
        "masks": 0 if objects is None else int((~np.isnan(objects).any(axis=(1, 2))).sum()),
    }
    return Audit(
        ruling_on_model([(one.name, one.ruling) for one in classes], interventions),
        tuple(classes),
        tuple(
            sorted(
                (each for one in found for each in one.clusters),
                key=lambda one: rank(one.p, one.separation, one.share),
            )
        ),
        tuple(everything),
        disagreements(heats, inside, suspects) if comparable else {},
        doubtful_labels(heats) if comparable else (),
        tuple(notices),
        forwards,
        heats,
        about,
        adapter,
    )


def _strength(one: Tried) -> tuple[int, float]:
    """What was found to decide first, and of those what flips most."""
    outcomes = (SHORTCUT, SUSPECTED, PLACE, CLEARED, UNTRIED)
    return outcomes.index(one.ruling.outcome), -sum(each.difference.low or 0.0 for each in one.trials)


def _words(ruling: Ruling) -> dict[str, Any]:
    return {
        "outcome": ruling.outcome, "says": ruling.says, "because": list(ruling.because), "next": list(ruling.next),
    }  # fmt: skip


def _grid(mean: Array) -> dict[str, Any]:
    return {"shape": list(mean.shape), "values": [round(float(one), 6) for one in mean.ravel()]}


def _to_show(one: Tried) -> list[Shown]:
    """Pictures for people: two of each change where something was found, else one."""
    most = 1 if one.ruling.outcome == CLEARED else 2
    by: dict[str, list[Shown]] = defaultdict(list)
    for each in one.shown:
        by[each.change].append(each)
    return [each for some in by.values() for each in some[:most]]


def _example(one: Shown, ids: Sequence[str], adapter: Adapter) -> dict[str, Any]:
    def address(x: Any) -> str:
        buffer = io.BytesIO()
        picture_of(x, adapter).save(buffer, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

    return {
        "id": ids[one.index], "change": one.change, "before": address(one.before), "after": address(one.after),
        "said_before": one.said_before, "said_after": one.said_after,
    }  # fmt: skip
