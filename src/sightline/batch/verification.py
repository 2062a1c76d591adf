"""Whether a run is still what it was when it was written: its list of pictures, its shards, and what its summary says of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.batch.results import (
    AGAIN,
    ITEMS,
    SUMMARY,
    Run,
    count_shards,
    entries,
    read_batches,
    read_json,
    reading,
    rows_in,
)
from sightline.batch.shards import FOLDER, file_digest, shard_name
from sightline.errors import OutputError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 65_536  # whose texts are Python objects at a time


def problems(run: Run) -> list[str]:
    """What is wrong with a run, as `Run.verify` says it. Memory stays flat."""
    digests, told = _summary_of(run)
    found = [*_foreign(run), *_missing(run), *_check_items(run), *told]
    ids, there = _planned_ids(run), set(run.there)
    for number in range(count_shards(run.plan)):
        wanted = next(ids, None)
        if number in there:
            found += _check_shard(run, number, wanted, digests.get(shard_name(number)))
    return found


def items_digest(batches: Iterable[pa.RecordBatch]) -> str:
    """SHA-256 of a run's list of pictures: of every column, however it is cut into batches or encoded.

    Args:
        batches: such as `table.to_batches()`, of texts and whole numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    digests: dict[str, tuple[Any, Any]] = {}
    for batch in (one.slice(start, _ROWS) for one in batches for start in range(0, len(one), _ROWS)):
        for name, given in zip(batch.schema.names, batch.columns, strict=True):
            column = given.dictionary_decode() if pa.types.is_dictionary(given.type) else given
            shape, content = digests.setdefault(name, (hashlib.sha256(), hashlib.sha256()))
            if pa.types.is_integer(column.type):
                shape.update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
                content.update(pc.fill_null(column.cast(pa.int64()), 0).to_numpy().tobytes())
            else:
                column = column.cast(pa.large_string())
                lengths = pc.fill_null(pc.binary_length(column), -1)
                shape.update(lengths.to_numpy().astype(np.int64).tobytes())
                content.update("".join(column.drop_null().to_pylist()).encode())
    whole = [[name, shape.hexdigest(), content.hexdigest()] for name, (shape, content) in sorted(digests.items())]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def table_digest(digests: Iterable[str]) -> str:
    """SHA-256 over those of the shards, in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _foreign(run: Run) -> list[str]:
    names = sorted(name for number, name in entries(run.folder, run.plan) if number is None)
    return [f"{run.folder / FOLDER / name} is no shard of this run. Remove it" for name in names]


def _missing(run: Run) -> list[str]:
    missing = run.missing
    if not missing:
        return []
    said = f"{len(missing):,} of {count_shards(run.plan):,} shards are missing, the first is {shard_name(missing[0])}"
    return [f"{said}. --resume computes them"]


def _check_items(run: Run) -> list[str]:
    """Whether items.parquet is what was planned, in order and each picture once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    file, count, unsorted = run.folder / ITEMS, 0, ""
    last: list[Any] = []

    def watched() -> Iterator[pa.RecordBatch]:
        nonlocal count, unsorted
        for batch in read_batches(file, None):
            ids = pa.concat_arrays([pa.array(last, pa.string()), batch.column("id").cast(pa.string())])
            rising = pc.fill_null(pc.less(ids[:-1], ids[1:]), False)
            if not unsorted and (at := pc.index(rising, False).as_py()) >= 0:
                unsorted = (
                    f"{file}: {ids[at + 1].as_py()!r} comes after {ids[at].as_py()!r}; expected each id once, in order"
                )
            last[:] = ids[-1:].to_pylist()
            count += len(batch)
            yield batch

    try:
        with reading(file):
            digest = items_digest(watched())
    except OutputError as error:
        return [str(error).replace(AGAIN, "Begin anew with --force")]
    found = [unsorted] if unsorted else []
    if count != run.pictures:
        found.append(f"{file} has {count:,} pictures, the plan {run.pictures:,}")
    if digest != run.plan["pictures"].get("digest"):
        found.append(f"{file} is not the list that was planned: its digest is another than the plan's")
    return found


def _planned_ids(run: Run) -> Iterator[pa.Array | None]:
    """The ids that each shard must have, as far as items.parquet can be read."""
    import pyarrow as pa

    file = run.folder / ITEMS
    held = pa.array([], pa.string())
    batches = read_batches(file, ["id"])
    try:
        for number in range(count_shards(run.plan)):
            rows = run.rows_of(number)
            while len(held) < rows and (batch := next(batches, None)) is not None:
                with reading(file):
                    held = pa.concat_arrays([held, batch.column("id").cast(pa.string())])
            yield held[:rows]
            held = held[rows:]
    except OutputError:  # said by `_check_items`
        return


def _summary_of(run: Run) -> tuple[dict[str, Any], list[str]]:
    """The digests of the shards as summary.json has them, and what is wrong with it."""
    file = run.folder / SUMMARY
    if not os.path.lexists(file):
        return {}, [f"{file} is missing: the run didn't end. --resume ends it"] if run.complete else []
    try:
        summary = read_json(file)
    except OutputError as error:
        return {}, [f"{error}. {AGAIN}"]
    files = summary.get("files") if isinstance(summary, dict) else None
    if not isinstance(files, dict):
        return {}, [f"{file} doesn't say the digests of the shards. {AGAIN}"]
    names = [shard_name(number) for number in range(count_shards(run.plan))]
    found = []
    if run.complete and sorted(files) != sorted(names):
        found.append(f"{file} has the digests of {len(files):,} shards, expected {len(names):,}. {AGAIN}")
    elif run.complete and summary.get("table") != table_digest(str(files[name]) for name in names):
        found.append(f"{file} contradicts itself: `table` is not the digest over `files`. {AGAIN}")
    return files, found


def _check_shard(run: Run, number: int, ids: pa.Array | None, digest: Any) -> list[str]:
    import pyarrow as pa

    file = run.file(number)
    try:
        ids_there = [pa.array([], pa.string())]
        for batch in run.shard(number):
            with reading(file):
                batch.validate(full=True)
                rows_in(batch, file)
            ids_there.append(batch.column("id"))
        found = []
        if digest is not None and file_digest(file) != digest:
            found.append(f"{file} is another file than when the run ended: its digest is not that of {SUMMARY}")
    except OSError as error:
        return [str(error)]
    held = pa.concat_arrays(ids_there)
    if ids is not None and not held.equals(ids):
        differ = (row for row in range(len(held)) if row >= len(ids) or held[row] != ids[row])
        row = next(differ, len(held))
        is_there, wanted = (repr(one[row].as_py()) if row < len(one) else "nothing" for one in (held, ids))
        found.append(f"{file}: row {row} is {is_there}, in {ITEMS} it is {wanted}. {AGAIN}")
    return found
