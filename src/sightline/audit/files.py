"""What an audit leaves: its findings as JSON, lists for other tools, and the pictures to do something with."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sightline.audit.pictures import picture_of
from sightline.audit.report import MOST, write_report
from sightline.audit.run import Audit
from sightline.audit.verdict import PLACE, SHORTCUT, SUSPECTED
from sightline.batch.results import Run
from sightline.bundle import csv_table, place, unicode_text, whole_folder, write_manifest

FINDINGS, LABELS, DOUBTFUL, PICTURES = "audit.json", "labels.csv", "disagreements.csv", "pictures"
PAGE = "report.html"


def write_audit(audit: Audit, run: Run, output: Path, *, force: bool = False) -> Path:
    """An audit as a folder, which appears whole or not at all.

    - report.html: to be looked at, where the run has up to 2,000 pictures; of more `write_report` makes a folder.
    - audit.json: everything, as `Audit.record` gives it.
    - labels.csv: labels that may be wrong, with the columns that cleanlab's tables of label issues have (given_label,
      predicted_label, label_quality, is_label_issue) behind the picture's id.
    - disagreements.csv: pictures on which model, label and map don't agree.
    - pictures/N-CLASS/: for everything that was found to decide, pictures before and after, and in pictures.csv all that show it.

    Args:
        audit: to be written.
        run: that it is of.
        output: a new folder.
        force: replace an earlier result of sightline.

    Raises:
        OutputError: it can't be written.
    """
    with whole_folder(output, force) as folder:
        record = audit.record()
        text = json.dumps(record, indent=1, allow_nan=False)
        place(folder / FINDINGS, unicode_text(text).encode())
        rows = [
            (one.id, one.label, one.predicted, f"{one.quality:.6g}", True, f"{one.probability:.6g}")
            for one in audit.labels
        ]
        head = ["id", "given_label", "predicted_label", "label_quality", "is_label_issue", "probability"]
        place(folder / LABELS, csv_table(head, rows))
        odd = [
            (
                kind,
                one.id,
                one.label or "",
                one.predicted,
                "" if one.probability is None else f"{one.probability:.6g}",
                one.says,
            )
            for kind, each in audit.disagreements.items()
            for one in each
        ]
        place(folder / DOUBTFUL, csv_table(["kind", "id", "label", "predicted", "probability", "says"], odd))
        _write_pictures(audit, folder / PICTURES)
        if len(run) <= MOST:
            write_report(run, folder / PAGE, audit=record)
        write_manifest(
            folder, {"schema": "sightline.audit/1", "run": dict(audit.about), "outcome": audit.ruling.outcome}
        )
    return output


def _write_pictures(audit: Audit, folder: Path) -> None:
    for number, one in enumerate(audit.tried, start=1):
        if one.ruling.outcome not in (SHORTCUT, SUSPECTED, PLACE):
            continue
        own = folder / f"{number}-{_safe(one.candidate.of)}"
        own.mkdir(parents=True)
        ids = audit.heats.ids
        place(
            own / "pictures.csv",
            csv_table(["id", "what"], [(ids[at], one.candidate.place()) for at in one.candidate.members]),
        )
        if audit.adapter is None:
            continue
        for at, shown in enumerate(one.shown):
            for when, x in (("before", shown.before), ("after", shown.after)):
                picture_of(x, audit.adapter).save(own / f"{at:02}-{shown.change}-{when}.jpg", "JPEG", quality=92)


def _safe(name: str) -> str:
    """What can be a part of a folder's name anywhere."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[:40] or "class"
