"""`explain_all`: a whole data set explained. Planned first, then computed shard by shard; it can be stopped at any moment and goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sightline._optional import require
from sightline.attribution import Model, adapter_of
from sightline.batch.cluster import compute_on_ray, connected
from sightline.batch.decode import TIMEOUT_S, Decoders, Picture
from sightline.batch.local import Job, Stop, compute, tasks
from sightline.batch.plan import (
    check_pictures,
    default_shard,
    how_far,
    keep_items,
    missing_shards,
    plan_of,
    rows_in,
)
from sightline.batch.results import ITEMS, PARTIAL, SUMMARY, Run, open_run
from sightline.batch.shards import FOLDER, reached
from sightline.batch.summary import write_summary
from sightline.batch.verification import items_digest
from sightline.batch.work import LABEL, PREDICTED, TOP3, Ask, Fitting, rows_of
from sightline.data.sets import Source, find_items
from sightline.engine.asked import TargetSpec
from sightline.engine.probe import MEMORY_MB
from sightline.errors import ImageError, MethodError, MetricError, ModelError, OutputError, TargetError
from sightline.identity import identity
from sightline.methods.registry import Function, Method, check_options, check_possible, default, find
from sightline.metrics.measure import Settings, check_metrics
from sightline.metrics.registry import Metric
from sightline.models.adapter import Adapter
from sightline.models.preprocess import specification
from sightline.runs import check_place, opened, renew

# Told (pictures done, of all, errors among them).
Watch = Callable[[int, int, int], None]
ENGINES = ("local", "ray")
_REHEARSED = 20
_REHEARSED_LABELS = 100


def explain_all(
    data: str | os.PathLike[str],
    model: Model = "bundled",
    *,
    output: str | os.PathLike[str],
    methods: Sequence[str | Function | Method] | None = None,
    targets: TargetSpec = PREDICTED,
    metrics: Sequence[str | Metric] = (),
    options: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    layer: str | None = None,
    limit: int = 0,
    batch_size: int | None = None,
    shard_size: int | None = None,
    engine: str = "local",
    workers: int = 0,
    timeout_s: float = TIMEOUT_S,
    resume: bool = False,
    retry_errors: bool = False,
    force: bool = False,
    memory_mb: float = MEMORY_MB,
    watch: Watch | None = None,
) -> Run:
    """Explains every picture of a data set, into a folder that `open_run` reads.

    What is done is kept: after any end, `resume` goes on from there, and the files come out as if nothing had happened.
    Ctrl-C (and SIGTERM) lets the batch at hand end and keeps it; a second one ends at once.

    Args:
        data: as in `data.sets.find_items`: a folder, a pattern, a CSV or Parquet list, a data set of Hugging Face on disk,
            or tar files.
        model: as in `explain`.
        output: a folder for the run.
        methods: names, or functions; grad-cam when left out, and for a black box occlusion.
        targets: "predicted", "label" (the one of the data set), "top3", or a target of `explain` for all pictures.
        metrics: names (`sightline metrics`), measured of every map.
        options: of the methods; given to every one that has them.
        settings: of the metrics.
        layer: as in `explain`, one.
        limit: only so many pictures, spread over all; 0 for all.
        batch_size: pictures in a forward; chosen by the device when left out, and halved where memory runs out. One where the
            preprocessing gives inputs of several sizes; with more the last digits may depend on which pictures can be read.
        shard_size: pictures in a file; about a hundredth of all when left out, between 64 and 10,000.
        engine: "local", or "ray" (extra `ray`): on the cluster that RAY_ADDRESS names, else on this machine by Ray.
        workers: processes that read pictures, 0 for one a core; with Ray those that compute, 0 for one a GPU or four cores.
        timeout_s: after which a picture that is still being read counts as broken.
        resume: go on with the run in `output`, if there is one.
        retry_errors: also compute again the pictures that failed.
        force: begin anew where another run stands.
        memory_mb: as in `explain`.
        watch: called with (done, of all, errors) after every batch.

    Raises:
        MissingExtraError: pyarrow is missing (the extra `batch`).
        SightlineError: nothing could be begun, or the disk failed. A picture that fails is a row with its reason.
        KeyboardInterrupt: it was stopped; what was done is kept.
    """
    require(["pyarrow"], "batch", "runs over a data set")
    if engine not in ENGINES:
        raise OutputError(f"engine is {engine!r}; expected one of {', '.join(ENGINES)}")
    folder = Path(output)
    adapter = adapter_of(model)
    ask = _asked(adapter, methods, targets, metrics, options or {}, settings or {}, layer, memory_mb)
    for name, value, least in (("batch_size", batch_size, 1), ("shard_size", shard_size, 1), ("limit", limit, 0)):
        if value is not None and value < least:
            raise OutputError(f"{name} is {value}; expected {least} or more")
    _check_apart(data, folder)
    check_place(folder, "batch")
    if not timeout_s > 0:
        raise OutputError(f"timeout_s is {timeout_s}; expected seconds, more than 0")
    source = find_items(data, limit=limit)
    old = plan_of(folder, force)
    if old is not None and not (resume or retry_errors or force):
        done, of = how_far(folder, old)
        raise OutputError(
            f"{folder} holds a run already, {done} of {of} files done; --resume goes on with it, --force begins anew "
            "(in Python resume=True, force=True), or choose another place with -o"
        )
    if old is not None and not force:
        check_pictures(folder, old, source, retry_errors)
        batch_size, shard_size = batch_size or old["batch"], shard_size or old["shard"]
    readers = 1 if engine == "ray" else workers  # for the rehearsal
    with (
        connected() if engine == "ray" else contextlib.nullcontext() as cluster,
        Decoders(source.kind, source.root, _preprocess(adapter), workers=readers, timeout_s=timeout_s) as decoders,
    ):
        if old is None or force:
            _rehearse(ask, source, decoders)
        listed = {"count": len(source.items), "digest": items_digest(source.items.to_batches())}
        plan = {
            **identity(adapter, ask.methods, ask.options),
            "targets": targets if isinstance(targets, str | int) else str(getattr(targets, "__name__", targets)),
            "layer": layer or adapter.layer,
            "metrics": {one.name: {**one.options, **ask.settings.get(one.name, {})} for one in ask.metrics},
            "batch": batch_size or _batch_size(adapter),
            "shard": shard_size or default_shard(len(source.items)),
            "pictures": listed,
        }
        # The list of a run may come to say that pictures which had failed are others now.
        planned = {**plan, "pictures": listed if old is None or force else old["pictures"]}
        with opened(folder, "batch", planned, lambda _: _files(folder), force):
            reached("planned")
            if planned["pictures"] != listed:
                renew(folder, "batch", plan)
                reached("planned anew")
            keep_items(folder, source, str(listed["digest"]))
            job = Job(folder, plan, ask, source.kind, source.root, retry_errors, workers, timeout_s)
            _run(job, decoders, cluster, watch)
            (folder / PARTIAL).unlink(missing_ok=True)  # left by a kill between a shard and this
            reached("before the summary")
            write_summary(folder)
            reached("summary")
    return open_run(folder)


def _asked(
    adapter: Adapter,
    methods: Sequence[str | Function | Method] | None,
    targets: TargetSpec,
    metrics: Sequence[str | Metric],
    options: Mapping[str, Any],
    settings: Settings,
    layer: str | None,
    memory_mb: float,
) -> Ask:
    if isinstance(methods, str) or (methods is not None and not methods):
        raise MethodError(f"methods are {methods!r}; expected a list of names, such as ['grad-cam']")
    chosen = tuple(find(one) for one in methods or [default(adapter)])
    for one in chosen:
        check_possible(one, adapter)
    if len({one.name for one in chosen}) < len(chosen):
        raise MethodError("a method is named twice; name each once")
    check_options(list(chosen), options)
    if settings and not metrics:
        raise MetricError(
            f"settings are given for {next(iter(settings))!r}, and no metric is measured; name it in metrics"
        )
    judged = tuple(check_metrics(metrics, settings)) if metrics else ()
    if blind := [one.name for one in judged if {"mask", "cell", "part"} & set(one.needs)]:
        raise MetricError(
            f"{blind[0]} needs to know where the objects are, which a run does not; see sightline evaluate"
        )
    own = {one.name: {name: value for name, value in options.items() if name in one.options} for one in chosen}
    return Ask(adapter, chosen, own, targets, layer, judged, settings, memory_mb)


def _preprocess(adapter: Adapter) -> Any:
    if adapter.frames is not None:
        raise ModelError(
            f"{adapter.name} takes films or volumes, and a run takes photographs: sightline.explain_frames"
        )
    if adapter.preprocess is None:
        raise ImageError(
            f"{adapter.name} comes without preprocessing, so that no photograph can be fed to it: sightline.adapt(module, preprocess=function)"
        )
    return adapter.preprocess


def _check_apart(data: str | os.PathLike[str], folder: Path) -> None:
    """Refuses to write into the data."""
    place = Path(data)
    if place.is_dir() and folder.resolve().is_relative_to(place.resolve()):
        raise OutputError(
            f"{folder} lies inside the folder of pictures {place}, into which nothing is written; choose another place with -o"
        )


def _batch_size(adapter: Adapter) -> int:
    """How many pictures go into a forward: by the device and model alone, so that the same run rounds alike everywhere.

    One where the inputs are of several sizes: how many of a size come together depends on which can be read.
    """
    preprocess = _preprocess(adapter)
    if specification(preprocess) is None:
        sizes = {tuple(preprocess(Image.new("RGB", size))[0].shape) for size in ((64, 48), (48, 80))}
        if len(sizes) > 1:
            return 1
    on = next((one.device.type for one in adapter.module.parameters()), "cpu")
    return 8 if on == "cpu" else 64


def _rehearse(ask: Ask, source: Source, decoders: Decoders) -> None:
    """Lets one picture go all the way: what can't work is said before hours of work."""
    (read,) = decoders.batches([tasks(source.items.slice(0, _REHEARSED))])
    trial = dataclasses.replace(ask, targets=PREDICTED if ask.targets == LABEL else ask.targets)
    said = []
    for one in read:
        if isinstance(one, Picture):
            (row,) = rows_of([one], [""], [None], trial, Fitting(1))
            if row.get("error") is None:
                break
            said.append(row["message"])
    else:
        if said:
            special = ask.targets not in (PREDICTED, LABEL, TOP3) and isinstance(ask.targets, str)
            others = f". Or {PREDICTED}, {LABEL} or {TOP3}" if special else ""
            raise MethodError(f"nothing can be computed: {said[0]}{others}")
        return  # no picture can be read: the rows will say why
    if ask.targets == LABEL:
        _check_labels(ask, source, one)


def _check_labels(ask: Ask, source: Source, picture: Picture) -> None:
    """Refuses labels none of which is a class of the model."""
    import pyarrow.compute as pc

    labels = pc.unique(source.items["label"]).drop_null().to_pylist()
    if not labels:
        raise TargetError(
            "targets are the labels, and the data set has none; see sightline batch --help for what gives them"
        )
    said = ""
    for label in labels[:_REHEARSED_LABELS]:
        (row,) = rows_of([picture], [""], [label], ask, Fitting(1))
        if row.get("stage") != "target":
            return
        said = said or row["message"]
    if len(labels) <= _REHEARSED_LABELS:
        raise TargetError(f"targets are the labels, and none of the {len(labels)} is a class of the model: {said}")


def _files(folder: Path) -> list[str]:
    """What a run writes beside its manifest."""
    shards = [f"{FOLDER}/{one.name}" for one in (folder / FOLDER).glob("*") if one.is_file()]
    return [SUMMARY, PARTIAL, *sorted(shards, reverse=True), ITEMS]


def _run(job: Job, decoders: Decoders, cluster: Any, watch: Watch | None) -> None:
    """Computes what is missing, here or on a cluster."""
    of = int(job.plan["pictures"]["count"])
    todo = list(missing_shards(job.folder, job.plan, job.retry_errors))
    count = [of - sum(rows_in(job.plan, number) for number in todo), 0]

    def told(pictures: int, errors: int) -> None:
        count[0] += pictures
        count[1] += errors
        if watch is not None:
            watch(count[0], of, count[1])

    if not todo:
        return
    (job.folder / SUMMARY).unlink(missing_ok=True)  # what it says is of other shards
    with _stoppable() as stop:
        if cluster is None:
            compute(job, todo, decoders, stop=stop, told=told)
        else:
            compute_on_ray(cluster, job, todo, stop=stop, told=told)


@contextlib.contextmanager
def _stoppable() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask to stop once; a second time they end the process where it is. Only where signals can be heard."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard: list[int] = []

    def hear(number: int, _frame: Any) -> None:
        if heard:
            raise SystemExit(128 + number) if number == signal.SIGTERM else KeyboardInterrupt
        heard.append(number)
        stop.asked = True

    before = {one: signal.signal(one, hear) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if heard:
        if heard[0] == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
