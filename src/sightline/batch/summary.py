"""What a run found, in one page of numbers: computed from its shards, one after the other, never kept up while it runs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.batch.results import PARTIAL, SUMMARY, Run, first_labels, open_run, parts, reading, run_of
from sightline.batch.shards import count_rows, file_digest, shard_name
from sightline.batch.verification import table_digest
from sightline.bundle import place, unicode_text

if TYPE_CHECKING:
    import pyarrow as pa

_COMMON = 20
_MOST, _OTHERS = 10_000, "others"  # different texts that are counted
_MAP = "maps.list.element"
_COLUMNS = (
    "stage",
    "error",
    "label",
    "predictions.list.element.label",
    f"{_MAP}.method",
    f"{_MAP}.evidence",
    f"{_MAP}.notices",
    "notices",
)


def _columns(metrics: Sequence[str]) -> list[str]:
    return [*_COLUMNS, *(f"{_MAP}.metrics.{name}" for name in metrics)]


def summarise(folder: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What the shards that are there hold: how many pictures, what failed, what was said, and each method's maps.

    Raises:
        OutputError: a shard is damaged.
    """
    run = run_of(folder, plan)
    done, errors = 0, 0
    stages: Counter[str] = Counter()
    said: Counter[str] = Counter()
    notices: Counter[str] = Counter()
    methods = {name: _Of() for name in run.plan["methods"]}
    files = {}
    columns, labelled, right = _columns(list(run.plan["metrics"])), 0, 0
    for number in run.there:
        for batch in run.shard(number, columns):
            with reading(run.file(number)):
                failed = len(batch) - batch.column("error").null_count
                done, errors = done + len(batch) - failed, errors + failed
                _count(stages, batch.column("stage"), str)
                first = first_labels(batch.column("predictions"))
                _count(said, first, str)
                with_label, as_labelled = _agreement(batch.column("label"), first)
                labelled, right = labelled + with_label, right + as_labelled
                _count(notices, batch.column("notices").flatten())
                _add(methods, batch.column("maps"))
        files[shard_name(number)] = file_digest(run.file(number))
    return {
        "pictures": run.pictures,
        "done": done,
        "errors": errors,
        "errors by stage": _ranked(stages),
        "labelled": labelled,
        "predicted as labelled": right,
        "predicted": _ranked(said),
        "notices": _ranked(notices, _COMMON),
        "methods": {name: one.record() for name, one in methods.items()},
        "files": files,
        "table": table_digest(files.values()),
    }


def kept_rows(folder: Path) -> int:
    """How many rows are kept of a shard that was stopped in the middle."""
    file = folder / PARTIAL
    return count_rows(file) if file.is_file() and not file.is_symlink() else 0


def first_errors(run: Run, most: int) -> list[dict[str, Any]]:
    """Some of the pictures that failed: id and message."""
    import pyarrow.compute as pc

    found: list[dict[str, Any]] = []
    for batch in run.batches(["id", "error", "message"]):
        found += batch.filter(pc.is_valid(batch.column("error"))).select(["id", "message"]).to_pylist()
        if len(found) >= most:
            break
    return found[:most]


def write_summary(folder: Path) -> dict[str, Any]:
    """Writes a run's summary.json, whole or not at all, and gives what it says.

    Raises:
        OutputError: the folder is no run, or a shard is damaged.
        OSError: it can't be written.
    """
    found = summarise(folder, open_run(folder).plan)
    place(folder / SUMMARY, unicode_text(json.dumps(found, indent=1)).encode())
    return found


@dataclass
class _Of:
    """What is counted of one method's maps."""

    maps: int = 0
    with_evidence: int = 0
    evidence: float = 0.0
    notices: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        mean = self.evidence / self.with_evidence if self.with_evidence else None
        means = {name: total / count for name, (total, count) in self.metrics.items() if count}
        found = {"maps": self.maps, "mean evidence": mean, "notices": _ranked(self.notices, _COMMON)}
        return {**found, "mean of metrics": means} if self.metrics else found


def _add(methods: dict[str, _Of], maps: pa.ListArray) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = parts(maps.flatten())
    evidence, named = found["evidence"].cast(pa.float64()), found["method"]
    of = named.take(pc.list_parent_indices(found["notices"]))
    texts = found["notices"].flatten()
    for name in pc.unique(named.drop_null()).to_pylist():
        one = methods.setdefault(name, _Of())
        mine = pc.equal(named, name)
        values = evidence.filter(mine)
        finite = values.filter(pc.is_finite(values))
        one.maps += len(values)
        one.with_evidence += len(finite)
        one.evidence += pc.sum(finite).as_py() or 0.0
        _count(one.notices, texts.filter(pc.equal(of, name)))
        for metric, measured in (parts(found["metrics"]) if "metrics" in found else {}).items():
            known = measured.filter(mine)
            known = known.filter(pc.is_finite(known))
            total, count = one.metrics.get(metric, (0.0, 0))
            one.metrics[metric] = [total + (pc.sum(known).as_py() or 0.0), count + len(known)]


def _agreement(labels: pa.Array, first: pa.Array) -> tuple[int, int]:
    """How many pictures have a label and a prediction, and how many are predicted as labelled, by name as folders spell it."""
    import pyarrow.compute as pc

    both = pc.and_(pc.is_valid(labels), pc.is_valid(first))
    one, other = (pc.replace_substring(pc.utf8_lower(each.filter(both)), "_", " ") for each in (labels, first))
    return len(one), int(pc.sum(pc.equal(one, other)).as_py() or 0)


def _count(counter: Counter[str], texts: pa.Array, kind_of: Callable[[str], str] | None = None) -> None:
    for one in texts.drop_null().value_counts().to_pylist():
        kind = (kind_of or _kind)(one["values"])
        name = kind if kind in counter or len(counter) < _MOST else _OTHERS
        counter[name] += one["counts"]


def _kind(notice: str) -> str:
    """A notice without what is of one picture in it: numbers, and names in quotes."""
    return re.sub(r"(?<![\w.])\d+(\.\d+)?(e[-+]?\d+)?(?!\w)", "N", re.sub(r"'[^']{1,200}'", "'...'", notice))


def _ranked(counter: Counter[str], most: int | None = None) -> dict[str, int]:
    """The most frequent first, those of equal number by name."""
    return dict(sorted(counter.items(), key=lambda one: (-one[1], one[0]))[:most])
