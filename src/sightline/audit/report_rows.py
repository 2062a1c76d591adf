"""What a report says of each picture of a run: a line of its list, and all that its viewer shows.

What a run holds is not believed: texts are cut and rid of what commands a reader's screen, and numbers are numbers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import IO, Any

import numpy as np

from sightline.audit.heat import folded, is_label
from sightline.batch.results import DRAWN, Row, Run, StoredMap
from sightline.bundle import unicode_text
from sightline.errors import SightlineError
from sightline.heatmap import ALL_LAYERS
from sightline.methods.registry import list_methods
from sightline.models.adapter import INPUT
from sightline.render.panel import percent
from sightline.render.viewer import as_text, in_script
from sightline.train.film import border_share

STATES = ("right", "wrong", "unlabelled", "error")
_LONGEST = 200  # characters of a name; sentences may be longer
_SENTENCE = 1000
_MOST_KINDS = 24
_FINEST = 64  # cells along each side of a map
_LARGEST_JPEG = 32 << 10
_MOST_NOTICES = 20


@dataclass
class Survey:
    """What is known of a run once every row has been seen.

    Attributes:
        pictures: rows that are there.
        states: how many of each of `STATES`.
        judged: whether any label is the name of a class that the model ever named, so that right and wrong mean something.
        stages: of the errors, how many.
        notices: how many pictures have each.
        names: of classes, each with its number.
        predicted: how many pictures of each class's number; `labelled` likewise.
        kinds: what maps there are, with the largest value of any of them; a kind is a method, and which class of the picture.
        signed: the kinds of which any map has values below 0.
        found: numbers of the pictures that were sought by their ids.
    """

    pictures: int = 0
    states: Counter[str] = field(default_factory=Counter)
    judged: bool = False
    stages: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)
    names: dict[str, int] = field(default_factory=dict)
    predicted: Counter[int] = field(default_factory=Counter)
    labelled: Counter[int] = field(default_factory=Counter)
    kinds: dict[str, float] = field(default_factory=dict)
    signed: set[str] = field(default_factory=set)
    found: dict[str, int] = field(default_factory=dict)


def survey(run: Run, sought: Collection[str], lines: IO[str]) -> Survey:
    """Reads every row once.

    Args:
        run: what to read.
        sought: ids whose numbers are wanted.
        lines: where the list of the pictures is written, a line of JSON for each.

    Raises:
        OutputError: a shard is damaged.
    """
    seen = Survey()
    labels: set[str] = set()
    known: set[str] = set()
    for row in run:
        if row.id in sought:
            seen.found[row.id] = seen.pictures
        seen.pictures += 1
        _count(seen, row)
        if row.label:
            labels.add(folded(row.label))
        known.update(one for said in row.predictions for one in (folded(said.label or ""), str(said.index)))
        lines.write(in_script(entry(seen, row)) + "\n")
    seen.judged = not labels.isdisjoint(known)
    return seen


def entry(seen: Survey, row: Row) -> list[Any]:
    """A line of the list: id, label, what was said, its probability, state, evidence and border of each kind of map, message."""
    first = row.predictions[0] if row.predictions else None
    evidence: list[float | None] = [None] * len(seen.kinds)
    border = list(evidence)
    for name, one in _kinds(row):
        if name in seen.kinds:
            at = list(seen.kinds).index(name)
            evidence[at], border[at] = rounded(one.evidence), rounded(_border(one))
    return [
        text(row.id),
        seen.names.get(text(row.label), -1) if row.label else -1,
        -1 if first is None else seen.names.get(text(first.label), -1),
        None if first is None else rounded(first.probability),
        STATES.index(_state(row)),
        evidence,
        border,
        *([_message(row)] if row.error is not None else []),
    ]


def picture(row: Row, kinds: Collection[str]) -> dict[str, Any]:
    """All that the viewer of a picture shows, but its line of the list."""
    width, height = _size(row)
    view = row.view
    seen = (view.resized, view.offset, view.input) if view else ((width, height), (0, 0), (width, height))
    if not all(math.isfinite(side) and abs(side) < 1e7 for pair in seen for side in pair):
        seen = ((width, height), (0, 0), (width, height))
    photo, problem = _photo(row)
    of = [("photograph", f"{row.width} x {row.height} pixels")] if row.width and row.height else []
    return {
        "photo": photo,
        "width": width,
        "height": height,
        "view": dict(zip(("resized", "offset", "input"), seen, strict=True)),
        "says": [[text(one.label), rounded(one.probability), _percent(one.probability)] for one in row.predictions[:5]],
        "facts": of,
        "notices": [sentence(one) for one in (*row.notices[:_MOST_NOTICES], *problem)],
        "maps": [{"kind": name, **_map(one)} for name, one in _kinds(row) if name in kinds],
    }


def text(value: object, most: int = _LONGEST) -> str:
    """A name of unknown origin, as a page can show it."""
    shown = unicode_text(str(value)[: 2 * most]).replace("\n", " ")
    return shown if len(shown) <= most else f"{shown[: most - 20]}…{shown[-19:]}"


def sentence(value: object) -> str:
    """Words of unknown origin, of which there may be more."""
    return text(value, _SENTENCE)


def rounded(value: Any) -> float | None:
    """A number to four figures; None for what is none, NaN and infinities among them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def _count(seen: Survey, row: Row) -> None:
    state = _state(row)
    seen.states[state] += 1
    if state == "error":
        seen.stages[text(row.stage)] += 1
    for counter, name in ((seen.labelled, row.label), (seen.predicted, _said(row))):
        if name:
            counter[seen.names.setdefault(text(name), len(seen.names))] += 1
    seen.notices.update({sentence(one) for one in (*row.notices, *(each for one in row.maps for each in one.notices))})
    if len(seen.notices) > 10_000:  # sentences of one picture each
        seen.notices = Counter(dict(seen.notices.most_common(1000)))
    for name, one in _kinds(row):
        if name in seen.kinds or len(seen.kinds) < _MOST_KINDS:
            seen.kinds[name] = max(seen.kinds.get(name, 0.0), _largest(one))
            if (_finite(one) < 0).any():
                seen.signed.add(name)


def _said(row: Row) -> str | None:
    return row.predictions[0].label if row.predictions else None


def _state(row: Row) -> str:
    if row.error is not None:
        return "error"
    if not row.label or not row.predictions:
        return "unlabelled"
    first = row.predictions[0]
    return "right" if is_label(row.label, first.label or "", first.index) else "wrong"


def _message(row: Row) -> list[str]:
    return [text(row.stage or ""), text(row.error or ""), sentence(row.message or "")]


def _kinds(row: Row) -> Iterator[tuple[str, StoredMap]]:
    """Its maps, each with a name that pictures have in common: the method, and which of the picture's classes."""
    counted: Counter[str] = Counter()
    for one in row.maps:
        counted[one.method] += 1
        number = counted[one.method]
        yield text(one.method if number == 1 else f"{one.method}, class {number}"), one


def _finite(one: StoredMap) -> np.ndarray[Any, Any]:
    step = [-(-side // _FINEST) for side in one.raw.shape]
    raw = one.raw[:: step[0], :: step[1]]
    return np.where(np.isfinite(raw), raw, 0)


def _largest(one: StoredMap) -> float:
    return float(np.abs(_finite(one)).max(initial=0))


def _border(one: StoredMap) -> float:
    raw = _finite(one)
    largest = _largest(one)
    if min(raw.shape) < 3 or largest == 0:  # on a coarser grid every cell lies as much in the border
        return math.nan
    return float(border_share(raw[None].astype(np.float64) / largest)[0])


def _map(one: StoredMap) -> dict[str, Any]:
    raw, scale = _finite(one), _largest(one)
    of = f"{text(one.label)}, {percent(one.probability)}" if one.probability is not None else text(one.label)
    layer = {INPUT: "the input", ALL_LAYERS: ALL_LAYERS}.get(one.layer, f"layer {text(one.layer)}")
    facts = [
        ("method", text(one.method)),
        ("layer", layer),
        ("grid", f"{one.raw.shape[0]} x {one.raw.shape[1]}"),
        ("evidence", _figure(one.evidence)),
        ("score", _figure(one.score)),
        ("heat in the border", _percent(_border(one))),
        *((text(name), _figure(value)) for name, value in list(one.metrics.items())[:_MOST_NOTICES]),
    ]
    values = (raw / scale if scale > 0 else raw).astype("<f2")
    comparable = _in_score(str(one.method))
    return {
        "title": of,
        "of": text(one.label),
        "note": f"{text(one.method)} at {layer}, {one.raw.shape[0]}x{one.raw.shape[1]} grid",
        "unit": "in units of the score" if comparable else f"in the own unit of {text(one.method)}",
        "group": f"score at {layer}" if comparable and one.layer != INPUT else f"{text(one.method)} at {layer}",
        "scale": scale,
        "half": scale or 1.0,
        "grid": list(raw.shape),
        "values": as_text(np.ascontiguousarray(values).tobytes()),
        "facts": [(name, value) for name, value in facts if value],
        "notices": [sentence(notice) for notice in one.notices[:_MOST_NOTICES]],
    }


@cache
def _in_score(method: str) -> bool:
    """Whether the method's values are in units of the score, so that they share a scale with others at one layer."""
    known = list_methods().get(method)
    return known is not None and known.unit == "score"


def _figure(value: Any) -> str:
    known = rounded(value)
    return "" if known is None else f"{known:.3g}"


def _percent(value: Any) -> str:
    known = rounded(value)
    return "" if known is None else percent(known)


def _size(row: Row) -> tuple[int, int]:
    """Pixels in which the viewer draws, of the photograph's shape."""
    width, height = max(1, row.width or 1), max(1, row.height or 1)
    return tuple(max(8, round(side * DRAWN / max(width, height))) for side in (width, height))  # type: ignore[return-value]


def _photo(row: Row) -> tuple[str, list[str]]:
    """The small picture in letters, after it was opened once; or nothing, and why."""
    if row.jpeg is None:
        return "", [] if row.error is not None else ["no thumbnail was kept"]
    try:
        small = row.thumbnail
    except SightlineError as error:
        return "", [f"its thumbnail can't be read: {error}"]
    jpeg = row.jpeg[:3] == b"\xff\xd8\xff" and len(row.jpeg) <= _LARGEST_JPEG
    if small is None or (jpeg and max(small.size) <= DRAWN):
        return as_text(row.jpeg), []
    buffer = BytesIO()
    small.thumbnail((DRAWN, DRAWN))
    small.convert("RGB").save(buffer, "JPEG", quality=85)
    return as_text(buffer.getvalue()), []


def plan_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What decided the run, as a table of two columns."""
    model = plan["model"]
    facts: list[tuple[str, object]] = [
        ("model", model.get("name")),
        ("architecture", model.get("architecture")),
        ("weights", model.get("source")),
        ("sha256 of the weights", model.get("sha256")),
        ("methods", ", ".join(_with_options(name, options) for name, options in plan["methods"].items())),
        ("layer", plan.get("layer")),
        ("classes explained", plan.get("targets")),
        ("metrics", ", ".join(_with_options(name, options) for name, options in plan["metrics"].items())),
        ("preprocessing", _listed(model.get("preprocessing"))),
        ("sightline", plan.get("sightline")),
        ("torch", plan.get("torch")),
    ]
    return [(name, sentence(_listed(value))) for name, value in facts if value not in (None, "")]


def _with_options(name: str, options: object) -> str:
    return f"{name} ({_listed(options)})" if options else str(name)


def _listed(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_listed(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " x ".join(str(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
