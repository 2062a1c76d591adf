"""What moved from one run to another over the same pictures: answers and heat, picture by picture, per class."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.audit.heat import objects_of, overlaps, parts_of, read_heats
from sightline.audit.pictures import masks_of
from sightline.batch.results import Run, open_run
from sightline.bundle import csv_table, place, unicode_text, whole_folder, write_manifest
from sightline.errors import OutputError
from sightline.metrics.statistics import Paired, holm, paired
from sightline.train.film import moved as moved_share

Array = np.ndarray[Any, np.dtype[Any]]
SCHEMA = "sightline.moved/1"
LEAST = 20  # pictures of a class, below which nothing is claimed
ALPHA = 0.05
ALL = "all"
_FARTHEST = 50


@dataclass(frozen=True)
class ClassMoved:
    """One class, or all pictures together.

    Attributes:
        name: the pictures' label, or where they have none what the first run said.
        pictures: that both runs have.
        answers: share of the pictures whose answer changed.
        right: of the second run minus the first, the share of right answers; None without labels.
        moved: mean share of the heat that lies elsewhere now, 0 to 1.
        heat: of each part of the input ("border", "corners", "middle", "object") the share of the heat, second minus first.
        says: what that means, in a sentence.
    """

    name: str
    pictures: int
    answers: float
    right: Paired | None
    moved: float
    heat: dict[str, Paired]
    says: str


@dataclass(frozen=True)
class Moved:
    """What moved between two runs.

    Attributes:
        classes: all pictures first, then each class, the largest first.
        farthest: the pictures whose heat moved most: id, share moved, answer before and after.
        notices: what limits the comparison.
        about: of the two runs.
    """

    classes: tuple[ClassMoved, ...]
    farthest: tuple[tuple[str, float, str, str], ...]
    notices: tuple[str, ...]
    about: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {
            "schema": SCHEMA,
            "runs": self.about,
            "notices": list(self.notices),
            "classes": [dataclasses.asdict(one) for one in self.classes],
            "farthest": [dict(zip(("id", "moved", "before", "after"), one, strict=True)) for one in self.farthest],
        }


def audit_moved(
    before: Run | str | os.PathLike[str],
    after: Run | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    method: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> Moved:
    """Compares two runs over the same pictures, such as before and after training again; every difference is second minus first.

    Args:
        before: a run of `sightline batch`.
        after: another, of another model.
        output: a new folder for moved.json and moved.csv; nothing is written when left out.
        masks: as in `audit_run`.
        boxes: as in `audit_run`.
        method: whose maps; the first of the first run when left out.
        seed: of the intervals.
        force: replace an earlier result.

    Raises:
        OutputError: the runs share no picture, or can't be read.
    """
    runs = [one if isinstance(one, Run) else open_run(one) for one in (before, after)]
    first = read_heats(runs[0], method)
    second = read_heats(runs[1], first.method)
    places = {name: at for at, name in enumerate(second.ids)}
    here = np.array([at for at, name in enumerate(first.ids) if name in places], int)
    if not len(here):
        raise OutputError(
            f"{runs[0].folder} and {runs[1].folder} share no picture: {first.ids[0]!r} is of the first, {second.ids[0]!r} of the second"
        )
    there = np.array([places[first.ids[at]] for at in here], int)
    notices = []
    for run, heats in ((runs[0], first), (runs[1], second)):
        if len(heats) > len(here):
            notices.append(
                f"{len(heats) - len(here):,} pictures of {run.folder.name} are not in both runs and are left out."
            )
    mask_of = masks_of(*(None if one is None else Path(one) for one in (masks, boxes)))
    parts = []
    for heats, chosen in ((first, here), (second, there)):
        objects, said = (None, []) if mask_of is None else objects_of(heats, mask_of)
        notices += [one for one in said if one not in notices]
        parts.append({name: values[chosen] for name, (values, _) in parts_of(heats.shares, objects).items()})
    maps = [first.shares[here], second.shares[there]]
    if first.grid != second.grid:
        notices.append(
            f"The maps' grids differ, {first.grid} and {second.grid}; what moved is measured on the coarser one."
        )
        maps = _alike(maps)
    share = moved_share(maps[0], maps[1])
    groups = [(ALL, list(range(len(here))))]  # a class may have the same name
    by: dict[str, list[int]] = defaultdict(list)
    for at, index in enumerate(here):
        by[first.labels[index] or first.predicted[index]].append(at)
    groups += sorted(by.items(), key=lambda one: (-len(one[1]), one[0])) if len(by) > 1 else []
    answers = [[one.predicted[at] for at in chosen] for one, chosen in ((first, here), (second, there))]
    right = [first.right[here], second.right[there]]
    found = [_class(name, np.array(rows), answers, right, share, parts, seed) for name, rows in groups]
    found = _worded(found)
    order = np.argsort(-np.nan_to_num(share, nan=-1.0), kind="stable")[:_FARTHEST]
    farthest = tuple(
        (first.ids[here[at]], float(share[at]), answers[0][at], answers[1][at])
        for at in order
        if np.isfinite(share[at])
    )
    about = {
        name: {"folder": run.folder.name, "model": run.plan["model"].get("name", ""), "pictures": len(heats)}
        for name, run, heats in (("before", runs[0], first), ("after", runs[1], second))
    }
    result = Moved(tuple(found), farthest, tuple(notices), {**about, "method": first.method, "both": len(here)})
    if output is not None:
        _write(result, Path(output), force)
    return result


def _alike(maps: list[Array]) -> list[Array]:
    """Both on the coarser grid of each axis."""
    h, w = (min(one.shape[axis] for one in maps) for axis in (1, 2))
    return [np.einsum("ah,nhw,bw->nab", overlaps(one.shape[1], h), one, overlaps(one.shape[2], w)) for one in maps]


def _class(
    name: str,
    rows: Array,
    answers: list[list[str]],
    right: list[Array],
    share: Array,
    parts: list[dict[str, Array]],
    seed: int,
) -> ClassMoved:
    changed = np.mean([answers[0][at] != answers[1][at] for at in rows])
    known = right[0][rows]
    agreed = None if np.isnan(known).all() else paired(right[1][rows], known, seed=seed, draws=2000)
    heat = {
        part: paired(parts[1][part][rows], parts[0][part][rows], seed=seed, draws=2000)
        for part in parts[0]
        if part in parts[1]
    }
    own = share[rows]
    mean = float(np.nanmean(own)) if np.isfinite(own).any() else float("nan")
    return ClassMoved(name, len(rows), float(changed), agreed, mean, heat, "")


def _worded(found: list[ClassMoved]) -> list[ClassMoved]:
    """With what each means; p values corrected for all classes and parts together."""
    asked = [one.p for each in found for one in (*each.heat.values(), *((each.right,) if each.right else ()))]
    corrected = iter(holm(asked))
    words = {
        "border": "in the border",
        "corners": "in the corners",
        "middle": "in the middle",
        "object": "on the objects",
    }
    result = []
    for each in found:
        heat = {part: dataclasses.replace(one, p=next(corrected)) for part, one in each.heat.items()}
        right = None if each.right is None else dataclasses.replace(each.right, p=next(corrected))
        if each.pictures < LEAST:
            says = f"too few pictures to claim anything ({each.pictures}, and {LEAST} are needed)"
        else:
            told = [
                f"{one.difference:+.0%} of the heat {words[part]}" for part, one in heat.items() if one.p is not None and one.p <= ALPHA and one.difference is not None
            ]  # fmt: skip
            if right is not None and right.p is not None and right.p <= ALPHA and right.difference is not None:
                told.insert(0, f"{right.difference:+.0%} right answers")
            says = "; ".join(told) or "no difference beyond chance"
        result.append(dataclasses.replace(each, heat=heat, right=right, says=says))
    return result


def _write(found: Moved, output: Path, force: bool) -> None:
    with whole_folder(output, force) as folder:
        place(
            folder / "moved.json", unicode_text(json.dumps(_finite(found.record()), indent=1, allow_nan=False)).encode()
        )
        head = ["class", "pictures", "part", "difference", "low", "high", "p"]
        rows = [
            (each.name, each.pictures, part, one.difference, one.low, one.high, one.p)
            for each in found.classes
            for part, one in (*each.heat.items(), *((("right answers", each.right),) if each.right else ()))
        ]
        place(folder / "moved.csv", csv_table(head, rows))
        write_manifest(folder, {"schema": SCHEMA, "runs": found.about})


def _finite(value: Any) -> Any:
    """JSON knows no nan."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
