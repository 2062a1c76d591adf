"""An audit in the tools of others."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from sightline._optional import optional
from sightline.audit.pictures import source_of
from sightline.audit.run import Audit
from sightline.audit.verdict import SHORTCUT, SUSPECTED
from sightline.batch.results import Run, open_run
from sightline.errors import ImageError

_LABEL = "label may be wrong"


def to_fiftyone(
    audit: Audit,
    run: Run | str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    name: str | None = None,
) -> Any:
    """The pictures of an audit as a data set of FiftyOne: label, prediction, heat, and a tag for everything that was found odd.

    Args:
        audit: of the run.
        run: the run.
        data: where its pictures are, if no longer where they were; files on this machine.
        name: of the data set; FiftyOne chooses one when left out.

    Returns:
        A `fiftyone.Dataset` with the fields `ground_truth` and `prediction` (Classification) and `heat` (Heatmap: the positive map, its
        maximum 1, laid on the photograph). Tags: the kinds of disagreement, "label may be wrong", and "shortcut: ..." or
        "suspected: ..." with the region or trait.

    Raises:
        ImageError: the pictures are no files on this machine, or can't be found.
        MissingExtraError: fiftyone isn't installed (the extra `fiftyone`).
    """
    fiftyone = optional("fiftyone", "fiftyone", "an export to FiftyOne")
    source = source_of(run if isinstance(run, Run) else open_run(run), data)
    if source.kind != "files" or "://" in source.root:
        raise ImageError(f"the pictures in {source.address} are no files of this machine, which is what FiftyOne shows")
    files = dict(zip(source.items["id"].to_pylist(), source.items["file"].to_pylist(), strict=True))
    tags = _tags(audit)
    heats = audit.heats
    samples = []
    for at, one in enumerate(heats.ids):
        if one not in files:
            continue
        sample = fiftyone.Sample(filepath=str(Path(source.root, files[one])), tags=tags[one])
        if heats.labels[at] is not None:
            sample["ground_truth"] = fiftyone.Classification(label=heats.labels[at])
        chance = heats.chances[at]
        confidence = float(chance) if np.isfinite(chance) else None
        sample["prediction"] = fiftyone.Classification(label=heats.predicted[at], confidence=confidence)
        peak = float(heats.shares[at].max())
        if peak > 0 and np.isfinite(heats.views[at]).all():
            placed = heats.view(at).place(heats.shares[at] / peak)
            sample["heat"] = fiftyone.Heatmap(map=np.nan_to_num(placed), range=[0, 1])
        samples.append(sample)
    if not samples:
        raise ImageError(
            f"none of the run's pictures is in {source.address}; the first is {heats.ids[0]!r}. Give data="
        )
    dataset = fiftyone.Dataset(name)
    dataset.add_samples(samples)
    return dataset


def _tags(audit: Audit) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for kind, each in audit.disagreements.items():
        for one in each:
            found[one.id].append(kind)
    for label in audit.labels:
        found[label.id].append(_LABEL)
    for tried in audit.tried:
        if tried.ruling.outcome in (SHORTCUT, SUSPECTED):
            for at in tried.candidate.members:
                found[audit.heats.ids[at]].append(f"{tried.ruling.outcome}: {tried.candidate.place()}")
    return found
