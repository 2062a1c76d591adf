"""What a run says: means with intervals, tests, plots and every value as Parquet; always computed anew from the run's lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from sightline.bundle import csv_table, place, png, unicode_text
from sightline.evaluation.picture import BOARDS, CENTRE, RANDOM, REFERENCES, TRUTH
from sightline.metrics.registry import Array, Metric
from sightline.metrics.statistics import Interval, bootstrap, cliques, friedman, holm, paired
from sightline.render.plots import Line, Row, critical_differences, curves, intervals

CORRECTION = "Holm's correction over all pairs of one metric; two-sided paired randomisation tests (signs flipped)"


@dataclass(frozen=True)
class Entry:
    """One line of a table: a method judged by a metric over all pictures.

    Attributes:
        metric: its name.
        method: its name, or one of the references (random map, centred blob, the mask itself).
        interval: the mean over pictures with its 95 % bootstrap interval, and how many had no value.
        over_random: corrected p of the paired test against the random map; None for a reference or where there is none.
        over_centre: the same against the centred blob.
        beats: the references that the method is better than with a corrected p below 0.05.
    """

    metric: str
    method: str
    interval: Interval
    over_random: float | None
    over_centre: float | None
    beats: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished run.

    Attributes:
        methods: their names.
        metrics: as registered.
        settings: the metrics' options.
        model: its name.
        labels: where the classes came from.
        rows: a line for each picture and board, as in values.jsonl.
    """

    methods: tuple[str, ...]
    metrics: tuple[Metric, ...]
    settings: Mapping[str, Mapping[str, Any]]
    model: str
    labels: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def errors(self) -> dict[str, str]:
        """Pictures that could not be evaluated, with the reason."""
        return {row["name"]: row["error"] for row in self.rows if "error" in row}

    def values(self, metric: str, method: str) -> Array:
        """A method's values, one for each picture, NaN where undefined; of a board the mean over its cells."""
        boards = metric in BOARDS
        found = []
        for row in self.rows:
            if "error" in row or ("classes" in row) != boards:
                continue
            each = row["values"].get(method, {})
            cells = [_number(one) for name, one in each.items() if name.partition("/")[0] == metric]
            known = [one for one in cells if np.isfinite(one)]
            found.append(float(np.mean(known)) if known else np.nan)
        return np.array(found, np.float64)

    def names(self, metric: str) -> list[str]:
        """The methods and the references that have any value of a metric."""
        return [one for one in (*self.methods, *REFERENCES) if np.isfinite(self.values(metric, one)).any()]

    def table(self) -> list[Entry]:
        """A line for each metric and method, references included."""
        return [entry for metric in self.metrics for entry in self._entries(metric)]

    def _entries(self, metric: Metric) -> list[Entry]:
        names = list(dict.fromkeys([*self.methods, *self.names(metric.name)]))
        p = {(a, b): value for a, b, _, value in self.pairs(metric)}
        sign = {"higher": 1, "lower": -1}.get(metric.better, 0)
        means = {name: bootstrap(self.values(metric.name, name)) for name in names}
        entries = []
        for name in names:
            against: dict[str, float | None] = {}
            for reference in (RANDOM, CENTRE):
                against[reference] = p.get((name, reference)) if name not in REFERENCES else None
            beats = tuple(
                reference
                for reference, value in against.items()
                if value is not None
                and value < 0.05
                and sign * paired(self.values(metric.name, name), self.values(metric.name, reference)).difference > 0  # type: ignore[operator]
            )
            entries.append(Entry(metric.name, name, means[name], against[RANDOM], against[CENTRE], beats))
        return sorted(entries, key=lambda one: (one.interval.mean is None, -sign * (one.interval.mean or 0)))

    def _remarks(self, metric: Metric) -> list[str]:
        """What a reader must know of the tests: whether any difference could be found with so few pictures."""
        names = [one for one in self.names(metric.name) if one != TRUTH]
        count = max((np.isfinite(self.values(metric.name, one)).sum() for one in names), default=0)
        pairs = len(names) * (len(names) - 1) // 2
        if metric.better == "neither" or not pairs or 2.0 ** (1 - count) * pairs < 0.05:
            return []
        enough = int(np.ceil(1 + np.log2(pairs / 0.05)))
        what = "boards" if metric.name in BOARDS else "pictures"
        return [
            f"With {count} {what} and {pairs} pairs no difference can reach p < 0.05; about {enough} are needed.",
            "",
        ]

    def pairs(self, metric: Metric) -> list[tuple[str, str, Any, float | None]]:
        """Every two methods: (one, other, the paired test, its p corrected for their number)."""
        names = [one for one in self.names(metric.name) if one != TRUTH]
        tests = [
            (a, b, paired(self.values(metric.name, a), self.values(metric.name, b))) for a, b in combinations(names, 2)
        ]
        return [(a, b, one, p) for (a, b, one), p in zip(tests, holm([one.p for *_, one in tests]), strict=True)]

    def curve(self, metric: str, method: str) -> tuple[Array, Array] | None:
        """(at (n,), scores (pictures, n)) of a metric that is a curve; None where it is none."""
        found = [row["values"].get(method, {}).get(metric, {}).get("curve") for row in self.rows if "values" in row]
        lines = [one for one in found if one]
        if not lines or len({len(one["at"]) for one in lines}) > 1:
            return None
        return np.array(lines[0]["at"]), np.array([one["scores"] for one in lines], np.float64)

    def record(self) -> dict[str, Any]:
        """The tables for JSON."""
        return {
            "model": self.model,
            "labels": self.labels,
            "pictures": sum(not row["name"].startswith("board ") for row in self.rows),
            "boards": sum("classes" in row for row in self.rows),
            "errors": self.errors,
            "correction": CORRECTION,
            "settings": {name: dict(values) for name, values in self.settings.items()},
            "table": [{**asdict(one), "beats": list(one.beats)} for one in self.table()],
        }

    def markdown(self) -> str:
        """The tables to read."""
        asked = sum(not row["name"].startswith("board ") for row in self.rows)
        good = sum("error" not in row and "classes" not in row for row in self.rows)
        lines = [
            f"# Methods compared on {good} pictures"
            + (f"; {asked - good} more could not be evaluated" if asked > good else ""),
            "",
            f"Model {_cell(self.model)}; classes: {_cell(self.labels)}. Means over pictures, for boards over boards, with 95 % bootstrap intervals; undefined ones are left out and counted.",
            f"Better than the random map or the centred blob: p < 0.05, with {CORRECTION}.",
            "",
        ]
        for metric in self.metrics:
            how = {"higher": "higher is better", "lower": "lower is better"}.get(
                metric.better, "describes, no direction"
            )
            settings = ", ".join(f"{key} {value}" for key, value in self.settings.get(metric.name, {}).items())
            lines += [
                f"## {metric.name} ({how})",
                "",
                f"{metric.summary}"
                + (f" Changed pixels: {metric.base}." if metric.base else "")
                + (f" Settings: {settings}." if settings else ""),
                "",
                "| method | mean [95 %] | undefined | better than random (p) | better than centre (p) |",
                "|---|---|---|---|---|",
            ]
            lines += [_line(entry, metric) for entry in self._entries(metric)]
            lines += ["", *self._remarks(metric)]
        if self.errors:
            lines += ["## Pictures that could not be evaluated", ""]
            lines += [f"- {_cell(name)}: {_cell(reason)}" for name, reason in list(self.errors.items())[:50]]
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text of unknown origin for a table: one line, without marks that a reader of Markdown or a terminal would obey."""
    flat = " ".join(unicode_text(str(text)).split())
    for mark, shown_as in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("[", "("), ("]", ")")):
        flat = flat.replace(mark, shown_as)
    return flat if len(flat) <= 500 else f"{flat[:497]}..."


def _number(one: Mapping[str, Any]) -> float:
    return np.nan if one["value"] is None else float(one["value"])


def _line(entry: Entry, metric: Metric) -> str:
    cells = [
        f"**{entry.method}**" if entry.method in REFERENCES else entry.method,
        shown(entry.interval),
        str(entry.interval.undefined),
    ]
    for reference, p in ((RANDOM, entry.over_random), (CENTRE, entry.over_centre)):
        cells.append(
            ""
            if p is None or metric.better == "neither"
            else f"{'yes' if reference in entry.beats else 'no'} ({_p(p)})"
        )
    return f"| {' | '.join(cells)} |"


def shown(one: Interval) -> str:
    """A mean with its interval, as text."""
    if one.mean is None:
        return "undefined"
    return f"{one.mean:.3f}" + ("" if one.low is None else f" [{one.low:.3f}, {one.high:.3f}]")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def files(metrics: Iterable[str]) -> list[str]:
    """The names of the files that `write_tables` writes."""
    plots = [f"{metric}{kind}.png" for metric in metrics for kind in ("", "-curve", "-ranks")]
    return ["table.md", "table.csv", "table.json", "pairs.csv", "values.parquet", *plots]


def write_tables(found: Evaluation, folder: Path) -> None:
    """table.md, table.csv, table.json, pairs.csv, values.parquet, and the plots, beside the run's lines."""
    place(folder / "table.md", unicode_text(found.markdown()).encode())
    written = json.dumps(found.record(), indent=1, ensure_ascii=False, allow_nan=False)
    place(folder / "table.json", unicode_text(written).encode())
    entries = found.table()
    head = ["metric", "method", "mean", "low", "high", "count", "undefined", "p against random", "p against centre"]
    rows = [
        [
            one.metric,
            one.method,
            one.interval.mean,
            one.interval.low,
            one.interval.high,
            one.interval.count,
            one.interval.undefined,
            one.over_random,
            one.over_centre,
        ]
        for one in entries
    ]
    place(folder / "table.csv", csv_table(head, rows))
    tests = [
        [metric.name, a, b, one.difference, one.low, one.high, one.p, p, one.count]
        for metric in found.metrics
        for a, b, one, p in found.pairs(metric)
    ]
    place(
        folder / "pairs.csv",
        csv_table(["metric", "one", "other", "difference", "low", "high", "p", "p corrected", "pictures"], tests),
    )
    place(folder / "values.parquet", _parquet(found))
    for metric in found.metrics:
        for name, picture in _plots(found, metric).items():
            place(folder / f"{name}.png", png(picture))


def _parquet(found: Evaluation) -> bytes:
    """Every value: a line for each picture (or cell of a board), method and metric."""
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "image",
            "method",
            "metric",
            "value",
            "undefined",
            "target",
            "label",
            "probability",
            "at",
            "scores",
            "hits",
            "error",
        )
    }

    def add(**cells: Any) -> None:
        for name, column in columns.items():
            value = cells.get(name)
            column.append(unicode_text(value) if isinstance(value, str) else value)

    for row in found.rows:
        if "error" in row:
            add(image=row["name"], error=row["error"])
            continue
        about = {key: row.get(key) for key in ("target", "label", "probability")}
        for method, each in row["values"].items():
            for name, one in each.items():
                metric, _, cell = name.partition("/")
                image = f"{row['name']} cell {int(cell) + 1}: {row['pictures'][int(cell)]}" if cell else row["name"]
                curve = one.get("curve", {})
                add(
                    image=image,
                    method=method,
                    metric=metric,
                    value=one["value"],
                    undefined=one.get("undefined"),
                    **about,
                    **curve,
                )
    kinds = {"value": pyarrow.float64(), "probability": pyarrow.float64(), "target": pyarrow.int64()}
    listed = pyarrow.list_(pyarrow.float64())
    arrays = {
        name: pyarrow.array(values, kinds.get(name, listed if name in ("at", "scores", "hits") else pyarrow.string()))
        for name, values in columns.items()
    }
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(arrays), sink)
    return bytes(sink.getvalue().to_pybytes())


_MOST_BANDS = 4


def _alike(curves_of: Mapping[str, Array]) -> list[list[str]]:
    """Names of methods with one and the same curves, together."""
    groups: list[list[str]] = []
    for name, scores in curves_of.items():
        home = next((one for one in groups if np.array_equal(curves_of[one[0]], scores, equal_nan=True)), None)
        home.append(name) if home else groups.append([name])
    return groups


def _plots(found: Evaluation, metric: Metric) -> dict[str, Any]:
    names = found.names(metric.name)
    if not names:
        return {}
    plots: dict[str, Any] = {}
    means = {name: bootstrap(found.values(metric.name, name)) for name in names}
    direction = {"higher": "higher is better", "lower": "lower is better"}.get(metric.better, "")
    label = f"{metric.name}, mean over pictures" + (f" ({direction})" if direction else "")
    rows = [Row(name, one.mean, one.low, one.high, name in REFERENCES) for name, one in means.items()]
    plots[metric.name] = intervals(metric.name, label, rows, better="lower" if metric.better == "lower" else "higher")
    drawn = {name: curve for name in names if (curve := found.curve(metric.name, name)) is not None}
    lines = []
    for together in _alike({name: scores for name, (_, scores) in drawn.items()}):
        at, scores = drawn[together[0]]
        low = high = None
        if len(drawn) <= _MOST_BANDS:  # more would lie on each other
            band = [bootstrap(scores[:, point], draws=1000) for point in range(len(at))]
            low, high = (np.array([getattr(one, edge) for one in band], np.float64) for edge in ("low", "high"))
        known = np.isfinite(scores).any(axis=0)
        mean = np.where(known, np.nansum(scores, axis=0) / np.maximum(np.isfinite(scores).sum(axis=0), 1), np.nan)
        lines.append(Line(" = ".join(together), at, mean, low, high, together[0] in REFERENCES))
    if lines:
        changed = "share of the picture given back" if metric.name == "insertion" else "share changed"
        plots[f"{metric.name}-curve"] = curves(f"{metric.name}: {direction}", changed, "score", lines)
    ranked = [name for name in names if name != TRUTH]
    if metric.better != "neither" and len(ranked) > 1:
        table = np.stack([found.values(metric.name, name) for name in ranked], axis=1)
        placed = friedman(table, metric.better)
        if np.isfinite(placed.mean_ranks).all():
            groups = cliques(placed.mean_ranks, placed.critical_difference)
            plots[f"{metric.name}-ranks"] = critical_differences(
                f"{metric.name}: mean ranks over {placed.count} pictures",
                ranked,
                placed.mean_ranks,
                placed.critical_difference,
                groups,
            )
    return plots
