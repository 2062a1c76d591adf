"""`@metric` registers a metric once; the command line, the trust card, the documentation and the contract tests read it from here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from sightline.errors import MethodError, MetricError, SightlineError, UndefinedError, did_you_mean
from sightline.methods.registry import check_settings, keywords, with_plugins

Better = Literal["higher", "lower", "neither"]
F = TypeVar("F", bound=Callable[..., Any])
Array = np.ndarray[Any, np.dtype[np.float64]]
# What a metric may take by place, and what it is called when it is missing. The order is that of cost.
PARTS = {
    "heat": "a map",
    "placed": "a map on the mask's pixels",
    "mask": "a mask of the object",
    "cell": "a board of pictures",
    "part": "a board whose pictures the model can't mix",
    "x": "the model's input",
    "score": "a model to ask",
    "answer": "a classifier to ask",
    "explain": "the method that made the map",
    "raw": "the method that made the map",
    "others": "a class among several",
    "module": "the module",
}
_ASKING = ("score", "answer", "explain")


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric that is a curve: scores against the share of the picture that was changed, or of the layers.

    Attributes:
        at: (n,) the shares, rising from 0 or above to 1 or below.
        scores: (n,) what was measured there; NaN where it has no value.
        value: the curve in one number, as the metric's definition says.
        hits: (n,) whether the target was still the model's first class; empty where that was not asked.
        notes: what a reader must know beside.
    """

    at: Array
    scores: Array
    value: float
    hits: Array = field(default_factory=lambda: np.empty(0))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Measured:
    """One metric of one map.

    Attributes:
        metric: its name.
        value: None where it has none by its definition; `undefined` then says why.
        curve: where the value is one number for a whole curve.
    """

    metric: str
    value: float | None
    undefined: str = ""
    curve: Curve | None = None

    def record(self) -> dict[str, Any]:
        """For JSON: the value, why there is none, and the curve."""
        found: dict[str, Any] = {"metric": self.metric, "value": self.value}
        if self.undefined:
            found["undefined"] = self.undefined
        if self.curve is not None:
            found["curve"] = {"at": _listed(self.curve.at), "scores": _listed(self.curve.scores)}
            if len(self.curve.hits):
                found["curve"]["hits"] = _listed(self.curve.hits)
            if self.curve.notes:
                found["notes"] = list(self.curve.notes)
        return found


def _listed(values: Array) -> list[float | None]:
    return [float(one) if np.isfinite(one) else None for one in values]


@dataclass(frozen=True)
class Metric:
    """One way to judge a map.

    Attributes:
        name: in kebab-case.
        function: takes by place what it needs (see `PARTS`), by keyword its options; returns a number or a `Curve`.
        better: which direction is better; "neither" for what only describes.
        base: what changed pixels are set to, "" where none are changed.
        reference: where it is defined, with the equation.
    """

    name: str
    function: Callable[..., float | Curve]
    better: Better
    base: str
    reference: str

    @property
    def summary(self) -> str:
        """What it tells, in one line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of its options, from its signature."""
        return keywords(self.function)

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes by place: names of `PARTS`."""
        return positional(self.function)

    @property
    def asks(self) -> bool:
        """Whether it asks the model again."""
        return any(name in _ASKING for name in self.needs)


def positional(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a function takes by place."""
    given = inspect.signature(function).parameters.values()
    return tuple(one.name for one in given if one.kind is one.POSITIONAL_OR_KEYWORD)


_REGISTRY: dict[str, Metric] = {}


def metric(name: str, *, better: Better, base: str = "", reference: str) -> Callable[[F], F]:
    """Registers a function as a metric; a name can be taken only once."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise MetricError(f"a metric can't be called {name!r}; expected small letters, digits and hyphens")
    if better not in get_args(Better):
        raise MetricError(f"better={better!r} of {name}; expected one of {', '.join(get_args(Better))}")

    def register(function: F) -> F:
        if not inspect.getdoc(function):
            raise MetricError(f"{name} has no docstring; its first line says what the metric tells")
        if unknown := [one for one in positional(function) if one not in PARTS]:
            raise MetricError(f"{name} takes {', '.join(unknown)}; what a metric can take is {', '.join(PARTS)}")
        if name in _REGISTRY:
            raise MetricError(f"a metric called {name!r} is registered already")
        _REGISTRY[name] = Metric(name, function, better, base, reference)
        return function

    return register


def list_metrics() -> Mapping[str, Metric]:
    """Every metric by name, those of installed plug-ins (entry points `sightline.metrics`) included."""
    return with_plugins("sightline.metrics", _REGISTRY)


def find_metric(name: str | Metric) -> Metric:
    """The metric of this name."""
    if isinstance(name, Metric):
        return name
    known = list_metrics()
    if not isinstance(name, str) or name not in known:
        raise MetricError(f"there is no metric {name!r}.{did_you_mean(str(name), known)} List them: sightline metrics")
    return known[name]


def check_metric_options(of: Metric, options: Mapping[str, Any]) -> None:
    """Refuses an option that the metric doesn't have, or a value of another kind or out of its range."""
    try:
        check_settings(of.name, of.options, options)
    except MethodError as error:
        raise MetricError(str(error)) from None


def _cuda_precise() -> Any:
    return torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext()


def run_metric(chosen: Metric, case: Any, options: Mapping[str, Any] | None = None) -> Measured:
    """The metric of one case (an object with the attributes that the metric takes, such as `metrics.case.Case`).

    Raises:
        MetricError: the case lacks something, or an option doesn't exist. What has no value by its definition doesn't raise.
    """
    check_metric_options(chosen, options or {})
    given = {name: getattr(case, name, None) for name in chosen.needs}
    if missing := [PARTS[name] for name, value in given.items() if value is None]:
        raise MetricError(f"{chosen.name} needs {' and '.join(dict.fromkeys(missing))}, which is not there")
    for name in ("heat", "raw"):
        values = given.get(name)
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            raise MetricError("the map holds NaN or infinity, which has no order")
    placed = given.get("placed")
    if isinstance(placed, np.ndarray) and np.isinf(placed).any():
        raise MetricError("the map holds infinity")
    try:
        # The caller's modes are not the metric's: its arithmetic is the same inside autocast and inference mode.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), _cuda_precise():
            found = chosen.function(**given, **(options or {}))
            curve = found if isinstance(found, Curve) else None
            value = float(curve.value if curve is not None else found)  # type: ignore[arg-type]
    except UndefinedError as error:
        return Measured(chosen.name, None, str(error))
    except (SightlineError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if chosen.function.__module__.startswith("sightline."):
            raise
        raise MetricError(f"{chosen.name} failed with {type(error).__name__}: {error}") from error
    if not np.isfinite(value):
        return Measured(chosen.name, None, f"{chosen.name} gave {value}", curve)
    return Measured(chosen.name, value, curve=curve)
