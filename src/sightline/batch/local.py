"""Shards computed on this machine: processes that read pictures ahead, and this one that computes and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.batch.decode import Decoders, Failure, Task
from sightline.batch.plan import Shard, columns_of, shard_of
from sightline.batch.results import PARTIAL
from sightline.batch.shards import FOLDER, reached, shard_name, write_rows
from sightline.batch.work import Ask, Fitting, rows_of

if TYPE_CHECKING:
    import pyarrow as pa

# Told (pictures, errors) after each batch.
Told = Callable[[int, int], None]
_ELSEWHERE = Failure("known", "", "")  # the place of a picture whose row is known


@dataclass(frozen=True, eq=False)
class Job:
    """What is computed, and where it is kept.

    Attributes:
        folder: the run's.
        plan: its plan.
        ask: what is asked of each picture.
        kind: of the source of the pictures.
        root: of that source.
        retry_errors: whether pictures that failed are computed again.
        workers: processes that read, or on a cluster that compute; 0 for as many as are fit.
        timeout_s: for reading one picture.
    """

    folder: Path
    plan: Mapping[str, Any]
    ask: Ask
    kind: str
    root: str
    retry_errors: bool
    workers: int
    timeout_s: float


@dataclass(eq=False)
class Stop:
    """Whether somebody asked to stop after this batch."""

    asked: bool = False


def compute(
    job: Job,
    numbers: Iterable[int],
    decoders: Decoders,
    *,
    stop: Stop,
    told: Told,
    fitting: Fitting | None = None,
) -> None:
    """Computes shards, in order.

    Args:
        job: what is computed, and where it is kept.
        numbers: of the shards.
        decoders: which read the pictures.
        stop: when it is asked, the rows of the shard at hand are kept in a file of their own, and that is all.
        told: called with (pictures, errors) after each batch.
        fitting: how many fit into memory, where that is known already.
    """
    columns = columns_of(job.plan)
    fitting = fitting or Fitting(job.plan["batch"])
    shards = (shard_of(job.folder, job.plan, number, columns, job.retry_errors) for number in numbers)
    rows: list[pa.Table] = []
    for shard, start, pictures in _read(shards, decoders, job.plan["batch"]):
        found = _rows(shard, start, pictures, job.ask, fitting)
        rows.append(_table(found, columns))
        told(len(found), sum(row.get("error") is not None for row in found))
        reached("a batch is done")
        done = start + len(pictures)
        if done < len(shard.items) and not stop.asked:
            continue
        if done < len(shard.items) and shard.known is not None:
            rows.append(shard.known.slice(done).replace_schema_metadata(columns.metadata))
        # Before the next one is begun, so that a kill costs one shard; pictures are read meanwhile.
        _keep(job.folder, shard, _joined(rows))
        rows = []
        reached("a shard is done")
        if stop.asked:
            return


def _read(shards: Iterable[Shard], decoders: Decoders, batch: int) -> Iterator[tuple[Shard, int, list[Any]]]:
    """Batch after batch with its shard and its first place in it: what was read, or None for the pictures whose rows are known."""
    ahead: list[tuple[Shard, int, int, list[int]]] = []

    def groups() -> Iterator[Sequence[Task]]:
        for shard in shards:
            for start in range(0, len(shard.items), batch):
                end = min(start + batch, len(shard.items))
                missing = shard.missing(start, end)
                ahead.append((shard, start, end, missing))
                wanted = tasks(shard.items.slice(start, end - start))
                yield [wanted[place - start] for place in missing]

    for found in decoders.batches(groups()):
        shard, start, end, missing = ahead.pop(0)
        read = dict(zip(missing, found, strict=True))
        yield shard, start, [read.get(place) for place in range(start, end)]


def tasks(items: pa.Table) -> list[Task]:
    """Where the bytes of these pictures are."""
    return [Task(**one) for one in items.select(["file", "at", "size", "problem"]).to_pylist()]


def _rows(shard: Shard, start: int, pictures: Sequence[Any], ask: Ask, fitting: Fitting) -> list[dict[str, Any]]:
    """The rows of one batch."""
    known: list[dict[str, Any]] = []
    if shard.known is not None:
        known = shard.known.slice(start, len(pictures)).to_pylist()
    if all(one is None for one in pictures):
        return known
    items = shard.items.slice(start, len(pictures))
    computed = rows_of(
        [_ELSEWHERE if one is None else one for one in pictures],
        items["id"].to_pylist(),
        items["label"].to_pylist(),
        ask,
        fitting,
    )
    return [known[place] if one is None else computed[place] for place, one in enumerate(pictures)]


def _table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=schema)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables)


def _keep(folder: Path, shard: Shard, rows: pa.Table) -> None:
    """Writes a shard, or what there is of it."""
    if len(rows) < len(shard.items):
        keep_partial(folder, shard.number, rows)
        return
    write_rows(folder / FOLDER / shard_name(shard.number), rows)
    if shard.known is not None:
        (folder / PARTIAL).unlink(missing_ok=True)
        reached("partial removed")


def keep_partial(folder: Path, number: int, rows: pa.Table) -> None:
    """Keeps the first rows of a shard that was stopped in the middle."""
    about = {**(rows.schema.metadata or {}), b"sightline.shard": str(number).encode()}
    write_rows(folder / PARTIAL, rows.replace_schema_metadata(about))
    reached("partial kept")
