"""`evaluate`: methods compared on a set of pictures. It can be stopped at any time and goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline._optional import require
from sightline.attribution import Model, adapter_of
from sightline.engine.probe import MEMORY_MB
from sightline.errors import (
    ImageError,
    LayerError,
    MethodError,
    MetricError,
    OutputError,
    SightlineError,
)
from sightline.evaluation.items import PREDICTIONS, Item, find_items
from sightline.evaluation.picture import BOARDS, Ask, measured_board, measured_picture
from sightline.evaluation.tables import Evaluation, files, write_tables
from sightline.identity import identity
from sightline.methods.registry import Function, Method, check_options, check_possible, find
from sightline.metrics.boards import draw_boards
from sightline.metrics.measure import Settings, check_metrics
from sightline.metrics.registry import Metric
from sightline.models.adapter import Adapter
from sightline.runs import LINES, Journal, opened

METHODS = ("grad-cam", "grad-cam++", "hires-cam", "xgrad-cam", "layer-cam", "eigen-cam")
METRICS = ("deletion", "insertion", "average-drop", "increase-in-confidence")
WITH_MASKS = ("pointing-game", "energy-pointing-game", "mass-in-mask", "iou")
CURVE_STEPS = 14
# Told (done, of all, pictures shown to the model so far).
Watch = Callable[[int, int, int], None]


def evaluate(
    folder: str | os.PathLike[str],
    model: Model = "bundled",
    *,
    output: str | os.PathLike[str],
    methods: Sequence[str | Function | Method] = METHODS,
    metrics: Sequence[str | Metric] | None = None,
    labels: str = PREDICTIONS,
    masks: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Settings | None = None,
    boards: int = 50,
    board_size: int = 2,
    board_confidence: float = 0.8,
    limit: int = 0,
    seed: int = 0,
    force: bool = False,
    retry_errors: bool = False,
    memory_mb: float = MEMORY_MB,
    watch: Watch | None = None,
) -> Evaluation:
    """Compares methods on a folder of pictures, each beside a random map and a centred blob.

    What is done is kept in `output`: the same call goes on where it was stopped.

    Args:
        folder: pictures, also in folders below.
        model: as in `explain`.
        output: a folder for the run, new or of the same run.
        methods: names, or functions.
        metrics: names; deletion, insertion, average-drop and increase-in-confidence when left out, and the ones of place with
            masks or boxes.
        labels: "predictions", "folders" or a CSV file (see `items.find_items`).
        masks: a folder of masks, one a picture.
        boxes: a CSV file of boxes.
        layer: as in `explain`, one.
        options: of the methods, such as {"score-cam": {"samples": 20}}.
        settings: of the metrics, such as {"deletion": {"step": 224}}. Curves of deletion and insertion have 14 steps when left out.
        boards: how many at most, for grid-pointing-game and di-full; each picture stands on one.
        board_size: pictures along each side of a board.
        board_confidence: how sure the model must be of a picture on a board.
        limit: only so many pictures, spread over the folder; 0 for all.
        seed: of all that is random.
        force: start anew where `output` holds another run.
        retry_errors: try again the pictures that could not be evaluated before.
        memory_mb: as in `explain`.
        watch: told (done, of all, pictures shown to the model so far).

    Raises:
        MissingExtraError: pyarrow or scipy is missing (the extra `evaluate`).
        SightlineError: nothing could be evaluated; the message says why. A picture that fails is a row with its reason.
    """
    require(["pyarrow", "scipy"], "evaluate", "comparing methods")  # said before hours of work, not after
    labels = str(labels)
    if layer == "all":
        raise LayerError("'all' is for compare; name one layer to evaluate, or leave it out")
    adapter = adapter_of(model)
    chosen = tuple(find(name) for name in methods)
    if not chosen:
        raise MethodError("nothing to compare: give at least one method")
    for one in chosen:
        check_possible(one, adapter)
    if len({one.name for one in chosen}) < len(chosen):
        raise MethodError("a method is named twice; name each once")
    for name, given in (options or {}).items():
        known = [one for one in chosen if one.name == name]
        if not known:
            raise MethodError(f"options are given for {name!r}, which is not among the methods")
        check_options(known, given)
    wanted = metrics if metrics is not None else (*METRICS, *(WITH_MASKS if masks or boxes else ()))
    judged = tuple(check_metrics(wanted, settings or {}))
    place = Path(masks) if masks else None, Path(boxes) if boxes else None
    if not masks and not boxes and (blind := [one.name for one in judged if "mask" in one.needs]):
        raise MetricError(f"{blind[0]} needs masks or boxes: where the objects are is not known otherwise")
    if Path(output).resolve().is_relative_to(Path(folder).resolve()):
        raise OutputError(
            f"{output} lies inside the folder of pictures {folder}, into which nothing is written; choose another place with -o"
        )
    items = find_items(Path(folder), labels=labels, masks=place[0], boxes=place[1], limit=limit)
    ask = Ask(
        adapter,
        chosen,
        dict(options or {}),
        judged,
        _with_steps(judged, settings or {}, adapter),
        layer,
        seed,
        memory_mb,
    )
    settled = {one.name: {**one.options, **ask.settings.get(one.name, {})} for one in judged}
    plan = {
        **identity(adapter, chosen, ask.options),
        "metrics": settled,
        "labels": labels,
        "masks": str(masks or boxes or ""),
        "mask files": {
            one.name: _state(one.mask) if one.mask else list(one.boxes) for one in items if one.mask or one.boxes
        },
        "layer": layer or adapter.layer,
        "seed": seed,
        "boards": [boards, board_size, board_confidence] if _has_boards(judged) else [],
        "pictures": {one.name: [*_state(one.path), one.label or ""] for one in items},
    }
    folder_of_it = Path(output)
    with opened(folder_of_it, "evaluate", plan, lambda old: [LINES, *files(old.get("metrics", {}))], force):
        journal = Journal(folder_of_it)
        shown = [0]

        def told(pictures: int) -> None:
            shown[0] += pictures

        def done(count: int, of: int) -> None:
            if watch is not None:
                watch(count, of, shown[0])

        extra = boards if _has_boards(judged) else 0
        if ask.plain_metrics() or extra:
            _pictures(journal, items, ask, retry_errors, told, lambda count: done(count, len(items) + extra))
        if extra:
            sizes = (boards, board_size, board_confidence)
            _boards(journal, items, ask, sizes, told, lambda count: done(len(items) + count, len(items) + extra))
        names = [*(one.name for one in items), *(f"board {number}" for number in range(extra + 1))]
        found = Evaluation(
            methods=tuple(one.name for one in chosen),
            metrics=judged,
            settings=settled,
            model=adapter.name,
            labels=labels,
            rows=tuple(journal.lines[name] for name in names if name in journal.lines),
        )
        write_tables(found, folder_of_it)
    return found


def _pictures(
    journal: Journal,
    items: Sequence[Item],
    ask: Ask,
    retry_errors: bool,
    told: Callable[[int], None],
    done: Callable[[int], None],
) -> None:
    for count, item in enumerate(items, 1):
        if item.name not in journal.lines or (retry_errors and "error" in journal.lines[item.name]):
            try:
                row = measured_picture(item, ask, told)
            except (SightlineError, MemoryError) as error:
                row = {"error": str(error) or "not enough memory"}
            journal.write(item.name, row)
        done(count)
    if all("error" in journal.lines[one.name] for one in items):
        first = items[0].name
        raise ImageError(
            f"none of {len(items)} pictures could be evaluated; the first, {first}: {journal.lines[first]['error']}"
        )


def _boards(
    journal: Journal,
    items: Sequence[Item],
    ask: Ask,
    sizes: tuple[int, int, float],
    told: Callable[[int], None],
    done: Callable[[int], None],
) -> None:
    boards, n, least = sizes
    good = [one for one in items if journal.lines[one.name].get("said") is not None]
    said = [journal.lines[one.name] for one in good]
    try:
        drawn = draw_boards(
            [one["said"] for one in said],
            [one["confidence"] for one in said],
            n=n,
            boards=boards,
            least=least,
            seed=ask.seed,
        )
    except MetricError as error:  # the pictures' own tables are there nevertheless
        journal.write("board 0", {"error": str(error)})
        return
    for count, board in enumerate(drawn, 1):
        name = f"board {count}"
        if name not in journal.lines:
            try:
                row = measured_board(name, board, dict(enumerate(good)), ask, told)
            except SightlineError as error:
                row = {"error": str(error)}
            journal.write(name, row)
        done(count)


def _has_boards(metrics: Sequence[Metric]) -> bool:
    return any(one.name in BOARDS for one in metrics)


def _with_steps(metrics: Sequence[Metric], settings: Settings, adapter: Adapter) -> Settings:
    """Fewer steps than the papers' in the curves of many pictures, unless somebody says how many pixels a step."""
    width, height = (adapter.provenance.get("preprocessing") or {}).get("size", (224, 224))
    step = -(-int(width) * int(height) // CURVE_STEPS)
    coarse = {one.name: {"step": step} for one in metrics if one.name in ("deletion", "insertion")}
    return {name: {**coarse.get(name, {}), **settings.get(name, {})} for name in {**coarse, **settings}}


def _state(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_size, found.st_mtime_ns]
