"""Which runs lie below a folder, of every command that keeps its work in one, and how far each is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.batch.results import MANIFEST, SUMMARY, open_run, read_json
from sightline.errors import OutputError
from sightline.runs import LINES

_COMMANDS = {f"sightline.{command}/1": command for command in ("batch", "evaluate", "train")}


@dataclass(frozen=True)
class Found:
    """A run's folder.

    Attributes:
        folder: its place.
        command: which made it.
        model: the model's name.
        pictures: how many were planned; None where the run doesn't say, as `done` and `errors` are.
        state: "complete", what is missing, or what is wrong with it.
    """

    folder: Path
    command: str
    model: str
    pictures: int | None
    done: int | None
    errors: int | None
    state: str


def find_runs(folder: Path) -> Iterator[Found]:
    """The runs in a folder and below it, in order of their names. Links and hidden folders are not followed.

    Raises:
        OutputError: it is no folder.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder; give one with runs in it")
    for place, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        found = _found(Path(place)) if MANIFEST in files else None
        if found is not None:
            names.clear()  # what lies in a run is its own
            yield found


def _found(folder: Path) -> Found | None:
    """The run in this folder; None where its manifest is of something else."""
    try:
        manifest = read_json(folder / MANIFEST)
    except OutputError:
        return None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    command = _COMMANDS.get(schema) if isinstance(schema, str) else None
    if command is None:
        return None
    plan = manifest["plan"] if isinstance(manifest.get("plan"), dict) else {}
    model = plan.get("model", "")
    name = str(model.get("name", "") if isinstance(model, dict) else model)
    try:
        counts = {"batch": _of_batch, "evaluate": _of_evaluate, "train": _of_train}[command](folder, plan)
    except (OSError, ValueError) as error:
        counts = None, None, None, f"can't be read: {error}"
    return Found(folder, command, name, *counts)


_Counts = tuple[int | None, int | None, int | None, str]


def _of_batch(folder: Path, _plan: Mapping[str, Any]) -> _Counts:
    run = open_run(folder)
    if not run.complete:
        return run.pictures, len(run), None, f"{len(run.missing):,} shards are missing"
    if not os.path.lexists(folder / SUMMARY):
        return run.pictures, len(run), None, "no summary yet"
    summary = read_json(folder / SUMMARY)
    done, errors = (summary.get(name) if isinstance(summary, dict) else None for name in ("done", "errors"))
    if not isinstance(done, int) or not isinstance(errors, int) or done + errors != run.pictures:
        return run.pictures, len(run), None, "its summary is damaged"
    return run.pictures, done, errors, "complete"


def _of_evaluate(folder: Path, plan: Mapping[str, Any]) -> _Counts:
    pictures = plan.get("pictures")
    if not isinstance(pictures, dict):
        return None, None, None, "its plan is damaged"
    ended: dict[str, bool] = {}
    if (folder / LINES).is_file():
        with open(folder / LINES, "rb") as lines:
            for line in lines:
                try:
                    found = json.loads(line)
                    if found["name"] in pictures:
                        ended[found["name"]] = "error" not in found
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # cut off while it was written
    done = sum(ended.values())
    whole = len(ended) == len(pictures) and (folder / "table.json").is_file()
    return len(pictures), done, len(ended) - done, "complete" if whole else "not complete"


def _of_train(folder: Path, _plan: Mapping[str, Any]) -> _Counts:
    return None, None, None, "complete" if (folder / "index.html").is_file() else "not complete"
