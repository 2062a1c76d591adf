"""`measure`: any metrics of any maps, of tensors. What a photograph needs beside that is in `Heatmap.measure`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from torch import bool as bool_

from sightline.attribution import Origin, adapter_of, layers_for
from sightline.engine.asked import TargetSpec
from sightline.engine.capture import capture as run_once
from sightline.engine.capture import check_input
from sightline.engine.probe import MEMORY_MB
from sightline.engine.targets import per_image
from sightline.errors import MetricError, TargetError
from sightline.methods.registry import Function, Method, check_possible, default, find
from sightline.metrics.case import Asking, Case, Told, asking, case, explainer
from sightline.metrics.faithfulness import Explain
from sightline.metrics.localisation import Mask
from sightline.metrics.registry import Array, Measured, Metric, check_metric_options, find_metric, run_metric
from sightline.models.adapter import Adapter, like_weights

Settings = Mapping[str, Mapping[str, Any]]


def measure(
    x: Tensor,
    model: nn.Module | Adapter | Callable[[Tensor], Any],
    metrics: Sequence[str | Metric],
    *,
    maps: Tensor | np.ndarray[Any, Any] | None = None,
    method: str | Function | Method | None = None,
    target: TargetSpec | Sequence[TargetSpec] | Tensor = None,
    layer: str | Sequence[str] | None = None,
    masks: Tensor | np.ndarray[Any, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    memory_mb: float = MEMORY_MB,
) -> list[dict[str, Measured]]:
    """Says how good maps are, in figures that mean what their papers say.

    Args:
        x: ready inputs (B, C, H, W).
        model: as in `attribute`.
        metrics: names (`sightline metrics`).
        maps: (B, h, w) from anywhere, also from another library; made by `method` when left out.
        method: as in `explain`. Metrics that ask for other maps (max-sensitivity, adcc, random-logit, parameter-randomisation) ask
            this method, also where `maps` are given.
        target: as in `attribute`.
        layer: as in `attribute`.
        masks: (B, H, W) of true and false, where the object is.
        options: of the method.
        settings: options of the metrics, such as {"deletion": {"step": 448}}.
        memory_mb: as in `explain`.

    Returns:
        For each image the metrics by name, each with its value, or the reason why it has none.
    """
    check_input(x)
    chosen = check_metrics(metrics, settings or {})
    adapter = adapter_of(model)
    way = find(default(adapter) if method is None else method)
    check_possible(way, adapter)
    layers = layers_for([way], adapter, layer)
    specs = targets_of(target, len(x))
    given, objects = _given(maps, len(x), "maps"), _given(masks, len(x), "masks")
    found = []
    for image, spec in enumerate(specs):
        (seen,) = run_once(adapter, x[image : image + 1], layers[:1])
        (asked,) = per_image([spec], adapter, seen.output, 1)
        names = (seen.layer, *(name or seen.layer for name in layers[1:]))
        origin = Origin(adapter, way, asked, seen.input, names, options or {}, memory_mb)
        about = asking(adapter, seen, asked, memory_mb=memory_mb)
        explain = explainer(about, origin)
        if given is None:
            raw = explain()[0]
            shown = raw if way.signed or len(names) > 1 else np.maximum(raw, 0)
        else:
            shown = raw = given[image]
        mask = None if objects is None else objects[image] > 0
        found.append(run_metrics(chosen, case(shown, about, raw=raw, explain=explain, mask=mask), settings or {}))
    return found


def targets_of(target: TargetSpec | Sequence[TargetSpec] | Tensor, batch: int) -> list[TargetSpec]:
    """One for each image of a batch."""
    if isinstance(target, Tensor | np.ndarray):
        target = cast(Sequence[TargetSpec], target.tolist())
    if not isinstance(target, list | tuple):
        return [cast(TargetSpec, target)] * batch
    if len(target) != batch:
        raise TargetError(f"{len(target)} targets for {batch} images; give one target for all, or exactly one an image")
    return list(target)


def _given(values: Tensor | np.ndarray[Any, Any] | None, batch: int, of: str) -> Array | None:
    if values is None:
        return None
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.numpy() if values.dtype == bool_ else values.double().numpy()
    found = np.asarray(values)
    if found.ndim != 3 or len(found) != batch:
        raise MetricError(f"{of} are of shape {found.shape}; expected one (h, w) for each of {batch} images")
    if found.dtype != bool and not np.isfinite(found).all():
        raise MetricError(f"{of} hold NaN or infinity")
    return found.astype(np.float64)


def as_mask(values: Any) -> Mask:
    """What a user gives as a mask, as true and false (H, W)."""
    found = np.asarray(values)
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise MetricError(
            f"the mask is {'of shape ' + str(found.shape) if found.ndim else repr(values)}; expected an array (H, W), true where the object is"
        )
    return np.asarray(found > 0)


def check_metrics(metrics: Sequence[str | Metric], settings: Settings) -> list[Metric]:
    """The metrics of these names, with their settings known to fit."""
    if isinstance(metrics, str) or not metrics:
        raise MetricError(f"metrics are {metrics!r}; expected a list of names, such as ['deletion', 'insertion']")
    chosen = [find_metric(name) for name in metrics]
    for name in settings:
        known = [one for one in chosen if one.name == name]
        if not known:
            raise MetricError(
                f"settings are given for {name!r}, which is not measured; measured are {', '.join(one.name for one in chosen)}"
            )
        check_metric_options(known[0], settings[name])
    return chosen


def run_metrics(chosen: Sequence[Metric], one: Case, settings: Settings) -> dict[str, Measured]:
    """Several metrics of one case."""
    return {each.name: run_metric(each, one, settings.get(each.name)) for each in chosen}


def asked_again(origin: Origin, told: Told | None = None) -> tuple[Asking, Explain]:
    """The picture run once more: what may be asked about it, and the method that made the map."""
    (seen,) = run_once(origin.adapter, like_weights(origin.x, origin.adapter.module), [origin.layers[0]])
    if told is not None:
        told(1)
    about = asking(origin.adapter, seen, origin.target, memory_mb=origin.memory_mb, told=told)
    return about, explainer(about, origin, told)
