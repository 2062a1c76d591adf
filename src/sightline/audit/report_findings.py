"""What a report shows of an audit. Its file is data like any other: what isn't of the expected shape is refused, addresses are looked into."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sightline.audit.report_rows import rounded, sentence, text
from sightline.batch.results import read_json
from sightline.errors import OutputError
from sightline.render.panel import percent
from sightline.render.viewer import as_text

FILE, SCHEMA = "audit.json", "sightline.audit/1"
OUTCOMES = ("shortcut", "suspected", "none found", "too few", "place", "cleared", "untried")
_MOST = 200  # pictures in one list
_JPEG = re.compile(r"data:image/jpeg;base64,(/9j/[A-Za-z0-9+/]{1,2000000}={0,2})")
_FINEST = 64


def read_audit(given: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """An audit: its mapping, or what the file in its folder says.

    Raises:
        OutputError: it is no audit.
    """
    found = given if isinstance(given, Mapping) else read_json(Path(given) / FILE)
    schema = found.get("schema") if isinstance(found, Mapping) else None
    if schema != SCHEMA:
        raise OutputError(
            f"the audit has the schema {schema!r:.60}, expected {SCHEMA!r}. Make it with: sightline audit RUN"
        )
    return dict(found)


def sought(audit: Mapping[str, Any]) -> set[str]:
    """The ids of all pictures that an audit speaks of."""
    return set(_ids(audit))


def _ids(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("id"), str):
            yield part["id"]
        for name, one in part.items():
            if name == "examples" and isinstance(one, list):
                yield from (each for each in one if isinstance(each, str))
            yield from _ids(one)
    elif isinstance(part, list):
        for one in part:
            yield from _ids(one)


def findings(audit: Mapping[str, Any], address: Callable[[str], str]) -> dict[str, Any]:
    """What the page shows of an audit, with every text cut, every number finite or None and every address looked into.

    Args:
        audit: as `read_audit` gives it.
        address: where a picture is shown, by its id; nothing where it isn't.

    Raises:
        OutputError: something in it has another shape than an audit's.
    """
    try:
        return _findings(audit, address)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(_damaged(str(error))) from error


def _damaged(why: str) -> str:
    return f"the audit is damaged: {why}. Make it again with: sightline audit RUN"


def _findings(audit: Mapping[str, Any], address: Callable[[str], str]) -> dict[str, Any]:
    def link(name: Any) -> dict[str, str]:
        return {"id": text(name), "href": address(str(name))}

    of = dict(audit.get("run") or {})
    candidates = [_candidate(one, link) for one in _records(audit, "candidates")]
    disagreements = audit.get("disagreements") or {}
    return {
        **_verdict(audit),
        "notices": _sentences(audit, "notices"),
        "facts": [(label, _figure(value)) for label, value in _facts(of, audit) if value is not None],
        "classes": [
            {
                **_verdict(one),
                "class": text(one.get("class", "")),
                "pictures": _figure(one.get("pictures")),
                "where": [_part(name, part) for name, part in dict(one.get("where") or {}).items()],
                "mean": _mean(one.get("mean")),
            }
            for one in _records(audit, "classes")
        ],
        "candidates": candidates,
        "clusters": [
            {
                "class": text(one.get("class", "")),
                "number": _figure(one.get("number")),
                "pictures": _figure(one.get("pictures")),
                "share": _percent(one.get("share")),
                "separation": _figure(one.get("separation")),
                "p": _p(one.get("p")),
                "mean": _mean(one.get("mean")),
                "examples": [link(each) for each in list(one.get("examples") or ())[:_MOST]],
            }
            for one in _records(audit, "clusters")
        ],
        "disagreements": [
            {"name": text(name), "count": len(rows), "rows": [_said(one, link) for one in rows[:_MOST]]}
            for name, rows in dict(disagreements).items()
            if rows
        ],
        "labels": [
            {**_said(one, link), "quality": _figure(one.get("quality"))} for one in _records(audit, "labels")[:_MOST]
        ],
        "labels_count": len(_records(audit, "labels")),
        "most": _MOST,
    }


def _records(part: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = part.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise OutputError(_damaged(f"{name} is no list of records"))
    return found


def _verdict(part: Mapping[str, Any]) -> dict[str, Any]:
    outcome = str(part.get("outcome") or "")
    return {
        "outcome": text(outcome),
        "kind": outcome.replace(" ", "-") if outcome in OUTCOMES else "other",
        "says": sentence(part.get("says") or ""),
        "because": _sentences(part, "because"),
        "next": _sentences(part, "next"),
    }


def _sentences(part: Mapping[str, Any], name: str) -> list[str]:
    found = part.get(name) or []
    return [sentence(one) for one in ([found] if isinstance(found, str) else found)][:_MOST]


def _facts(of: Mapping[str, Any], audit: Mapping[str, Any]) -> list[tuple[str, Any]]:
    grid = of.get("grid")
    named = [("model", of.get("model")), ("method", of.get("method")), ("pictures", of.get("pictures"))]
    masks = of.get("masks")
    return [
        *named,
        ("with a result", of.get("done")),
        ("errors", of.get("errors")),
        ("labelled", of.get("labelled")),
        ("grid", " x ".join(_figure(side) for side in grid) if grid else None),
        ("masks", ("yes" if masks else "no") if isinstance(masks, bool) else masks),
        ("forwards", audit.get("forwards")),
    ]


def _part(name: Any, part: Mapping[str, Any]) -> dict[str, Any]:
    """A share of the heat with its interval, and what an even map would have there."""
    return {"name": text(name), **{each: _share(part.get(each)) for each in ("mean", "low", "high", "even")}}


def _candidate(one: Mapping[str, Any], link: Callable[[Any], dict[str, str]]) -> dict[str, Any]:
    return {
        **_verdict(one),
        "class": text(one.get("class", "")),
        "number": _figure(one.get("number")),
        "what": text(one.get("what", "")),
        "place": text(one.get("place", "")),
        "box": _box(one.get("box")),
        "trials": [_trial(each) for each in _records(one, "trials")],
        "examples": [
            {
                **link(each.get("id", "")),
                "before": _address(each.get("before")),
                "after": _address(each.get("after")),
                "said_before": text(each.get("said_before") or ""),
                "said_after": text(each.get("said_after") or ""),
                "change": text(each.get("change") or ""),
            }
            for each in _records(one, "examples")[:_MOST]
        ],
    }


def _trial(one: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {each: rounded(one.get(each)) for each in ("flips", "control", "difference", "low", "high")}
    control, low, high = (numbers[each] for each in ("control", "low", "high"))
    spread = None
    if control is not None and low is not None and high is not None:
        spread = (_clipped(control + low), _clipped(control + high))
    return {
        "change": text(one.get("change", "")),
        "pictures": _figure(one.get("pictures")),
        "p": _p(one.get("p")),
        "flips": _share(one.get("flips")),
        "control": _share(one.get("control")),
        "spread": spread,
        "difference": _interval(numbers["difference"], low, high),
    }


def _said(one: Mapping[str, Any], link: Callable[[Any], dict[str, str]]) -> dict[str, Any]:
    return {
        **link(one.get("id", "")),
        "label": text(one.get("label") if one.get("label") is not None else ""),
        "predicted": text(one.get("predicted") if one.get("predicted") is not None else ""),
        "probability": _percent(one.get("probability")),
        "says": sentence(one.get("says") or ""),
    }


def _mean(given: Any) -> dict[str, Any] | None:
    """A mean map as the drawing script takes it; None where there is none."""
    if not given:
        return None
    height, width = (int(side) for side in given["shape"])
    values = np.asarray(given["values"], "<f4").ravel()
    if not (1 <= height <= _FINEST and 1 <= width <= _FINEST and len(values) == height * width):
        raise OutputError(_damaged(f"a mean map of shape {given['shape']!r:.40} has {len(values):,} values"))
    values = np.where(np.isfinite(values), values, 0).astype("<f4")
    return {
        "grid": [height, width],
        "values": as_text(values.tobytes()),
        "scale": float(np.abs(values).max(initial=0)),
        "signed": bool((values < 0).any()),
    }


def _address(given: Any) -> str:
    """An address that holds a JPEG, as it is; anything else is no address."""
    found = _JPEG.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        return ""
    try:
        base64.b64decode(found[1], validate=True)
    except binascii.Error:
        return ""
    return found[0]


def _box(given: Any) -> tuple[float, float, float, float] | None:
    """Left, top, width and height in percent of the picture."""
    if given is None:
        return None
    left, top, right, bottom = (_clipped(float(one)) for one in given)
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def _share(value: Any) -> dict[str, Any] | None:
    known = rounded(value)
    return None if known is None else {"at": _clipped(known), "says": _percent(known)}


def _clipped(value: float) -> float:
    return round(100 * min(max(value, 0.0), 1.0), 2)


def _percent(value: Any) -> str:
    known = rounded(value)
    return "" if known is None else "0 %" if known == 0 else percent(known)


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    shown = f"{100 * value:+.0f} points"
    return shown if low is None or high is None else f"{shown} ({100 * low:+.0f} to {100 * high:+.0f})"


def _p(value: Any) -> str:
    known = rounded(value)
    return "" if known is None else "< 0.001" if known < 0.001 else f"{known:.3f}"


def _figure(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    known = rounded(value)
    return text(value) if known is None and isinstance(value, str) else "" if known is None else f"{known:.3g}"
