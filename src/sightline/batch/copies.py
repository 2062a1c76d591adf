"""What is made of runs that are done: several runs as few larger files, and the pictures and maps of one as files of their own."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from sightline.batch.results import DRAWN, ITEMS, Row, Run, StoredMap, open_run, reading
from sightline.batch.shards import count_rows, file_digest, schema, shard_name
from sightline.bundle import whole_folder, write_manifest
from sightline.errors import ImageError, OutputError
from sightline.render.overlay import heat
from sightline.runs import difference

if TYPE_CHECKING:
    import pyarrow as pa

WHAT = ("thumbnails", "maps")
_BYTES_A_FILE = 128 << 20
_LONGEST_NAME = 48  # characters of an id, method or label in a file's name


def merge(
    runs: Sequence[Run | str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    rows_per_file: int = 100_000,
    force: bool = False,
) -> Path:
    """Complete runs of the same settings over different pictures, as few larger Parquet files.

    Args:
        runs: folders, or runs that are open. Their rows come one run after the other.
        output: a new folder: part-00000.parquet and so on, and a manifest. It appears complete or not at all.
        rows_per_file: a file ends with the shard that brings it to so many rows, or to 128 MB.
        force: replace an earlier result of sightline.

    Raises:
        OutputError: a run isn't complete, has other settings or a picture of another, or the folder can't be written.
        MissingExtraError: pyarrow isn't installed (the extra `batch`).
    """
    opened = [one if isinstance(one, Run) else open_run(one) for one in runs]
    output = Path(output)
    if not opened:
        raise OutputError("there is nothing to merge; give at least one folder of a run")
    if isinstance(rows_per_file, bool) or not isinstance(rows_per_file, int) or rows_per_file < 1:
        raise OutputError(f"rows_per_file is {rows_per_file!r}; expected a whole number from 1")
    _check_apart(output, opened)
    for one in opened:
        if one.missing:
            raise OutputError(
                f"{one.folder} is not complete: {len(one.missing):,} shards are missing, the first is "
                f"{shard_name(one.missing[0])}. Go on with it with --resume, then merge"
            )
        if what := difference(_settings(opened[0]), _settings(one)):
            raise OutputError(
                f"{one.folder} is a run of other settings than {opened[0].folder} ({what}); merge runs of the same settings only"
            )
    _check_ids(opened)
    with whole_folder(output, force) as place:
        files = _write_parts(place, opened, rows_per_file)
        total = sum(one.pictures for one in opened)
        about = {
            "schema": "sightline.merged/1",
            "plan": {**_settings(opened[0]), "pictures": {"count": total}},
            "runs": [{"folder": one.folder.name, "pictures": one.plan["pictures"]} for one in opened],
            "files": files,
        }
        write_manifest(place, about)
    return output


def _settings(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.plan.items() if name not in ("pictures", "shard")}


def _check_apart(output: Path, runs: Iterable[Run]) -> None:
    """Nothing is written into a run, and `force` replaces none of those that are read."""
    for one in runs:
        here, there = output.resolve(), one.folder.resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise OutputError(f"{output} and the run {one.folder} lie in each other; choose another place with -o")


def _check_ids(runs: Sequence[Run]) -> None:
    """Refuses a picture that is there twice. The rows of a run lie in the order of their ids, so that none need be remembered."""
    for (one, first), (other, second) in pairwise(heapq.merge(*(_ids(run) for run in runs), key=lambda pair: pair[0])):
        if one == other:
            raise OutputError(
                f"the picture {one!r} is in {first} and again in {second}; merge runs over different pictures"
            )


def _ids(run: Run) -> Iterator[tuple[str, Path]]:
    last = None
    for batch in run.batches(["id"]):
        with reading(run.folder):
            ids = batch.column("id").to_pylist()
        for one in ids:
            if one is None or (last is not None and one < last):
                raise OutputError(
                    f"{run.folder} is damaged: the picture {one!r} comes after {last!r}. `sightline runs verify` says more"
                )
            last = one
            yield one, run.folder


def _write_parts(place: Path, runs: Sequence[Run], rows_per_file: int) -> dict[str, Any]:
    """The shards of all runs in files; a row group is a shard, so that no more than one is ever held."""
    shards = ((run, number) for run in runs for number in run.there)
    files: dict[str, Any] = {}
    following = next(shards, None)
    while following is not None:
        file = place / f"part-{len(files):05}.parquet"
        rows = 0
        with open(file, "wb") as opened:
            with _writer(opened, runs[0]) as writer:
                while following is not None and rows < rows_per_file and opened.tell() < _BYTES_A_FILE:
                    table = _table(*following)
                    writer.write_table(table, row_group_size=max(1, len(table)))
                    rows += len(table)
                    following = next(shards, None)
            opened.flush()
            os.fsync(opened.fileno())
        counted = count_rows(file)
        if counted != rows:
            raise OutputError(f"{file} holds {counted:,} rows of {rows:,}; the disk can't be trusted")
        files[file.name] = {"rows": rows, "sha256": file_digest(file)}
    return files


def _writer(opened: IO[bytes], run: Run) -> Any:
    import pyarrow.parquet as pq

    about = {"plan": json.dumps(_settings(run))}
    columns = schema(list(run.plan["metrics"]), about)
    return pq.ParquetWriter(opened, columns, compression="zstd", write_page_checksum=True)


def _table(run: Run, number: int) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches(
        [pa.RecordBatch.from_arrays(one.columns, schema=run.schema) for one in run.shard(number)], run.schema
    )


# ------------------------------------------------------------------------------------------------------------------- export


def export(
    run: Run | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    what: Sequence[str] = WHAT,
    ids: Sequence[str] | None = None,
    limit: int = 0,
    force: bool = False,
) -> Path:
    """Thumbnails and maps of a run as files: thumbnails/ID.jpg, and maps/ID--METHOD--LABEL.npy (float32) beside a drawing of it
    on the thumbnail; all maps of a method on one scale, and hatched where the model never looked.

    Names hold letters, digits, dots and dashes; where an id has something else, a digest follows. `index.jsonl` says which file is of
    which picture. Pictures that failed are left out.

    Args:
        run: a folder, or a run that is open.
        output: a new folder, which appears complete or not at all.
        what: "thumbnails", "maps" or both.
        ids: of these pictures only.
        limit: only so many, from the beginning; 0 for all.
        force: replace an earlier result of sightline.

    Raises:
        OutputError: no such picture, a shard is damaged, or the folder can't be written.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    output = Path(output)
    for one in what:
        if one not in WHAT:
            raise OutputError(f"{one!r} can't be exported; expected {' or '.join(WHAT)}")
    _check_apart(output, [opened])
    with whole_folder(output, force) as place:
        for one in what:
            (place / one).mkdir()
        count = 0
        scales: dict[str, float] = {}  # one for all maps of a method, so that weak ones look weak
        for row in _wanted(opened, ids, limit) if "maps" in what else ():
            for found in row.maps:
                finite = np.abs(found.raw[np.isfinite(found.raw)])
                scales[found.method] = max(scales.get(found.method, 0.0), float(finite.max(initial=0)))
        with open(place / "index.jsonl", "x", encoding="utf-8") as index:
            for row in _wanted(opened, ids, limit):
                index.write(json.dumps({"id": row.id, **_write_row(place, row, what, scales)}) + "\n")
                count += 1
        write_manifest(place, {"schema": "sightline.export/1", "run": opened.folder.name, "pictures": count})
    return output


def _wanted(run: Run, ids: Sequence[str] | None, limit: int) -> Iterator[Row]:
    """The pictures that went well, of these ids. Shards without one are not read further than their ids."""
    left = None if ids is None else set(ids)
    count = 0
    for number in run.there:
        if left is not None and not any(left & found for found in _ids_of(run, number)):
            continue
        for row in Run(run.folder, run.plan, (number,)):
            if left is not None and row.id not in left:
                continue
            if left is not None:
                left.discard(row.id)
                if row.error is not None:
                    raise OutputError(
                        f"the picture {row.id!r} failed ({row.message}), so that there is nothing to export"
                    )
            if row.error is None:
                yield row
                count += 1
                if count == limit:
                    return
    if left:
        raise OutputError(f"{run.folder} has no picture {min(left)!r}; the ids are in its {ITEMS}")


def _ids_of(run: Run, number: int) -> Iterator[set[str]]:
    for batch in run.shard(number, ["id"]):
        with reading(run.file(number)):
            found = set(batch.column("id").to_pylist())
        yield found


def _write_row(place: Path, row: Row, what: Sequence[str], scales: Mapping[str, float]) -> dict[str, Any]:
    """The files of one picture, and their names."""
    found: dict[str, Any] = {}
    if "thumbnails" in what and row.jpeg is not None:
        try:
            picture = row.thumbnail
        except ImageError as error:
            raise OutputError(f"the thumbnail of {row.id!r} can't be read: {error}") from error
        if picture is not None:
            name = _claimed(place / "thumbnails", [row.id], ".jpg", row.id)
            picture.save(place / "thumbnails" / name, "JPEG", quality=95)
            found["thumbnail"] = f"thumbnails/{name}"
    if "maps" in what:
        found["maps"] = [_write_map(place, row, number, one, scales[one.method]) for number, one in enumerate(row.maps)]
    return found


def _write_map(place: Path, row: Row, number: int, one: StoredMap, scale: float) -> Mapping[str, Any]:
    label = one.label or ""
    name = _claimed(place / "maps", [row.id, one.method or "", label], ".npy", f"{row.id}\0{number}")
    np.save(place / "maps" / name, one.raw, allow_pickle=False)
    picture = Path(name).with_suffix(".png").name
    if row.jpeg is not None and row.view is not None:
        drawn = row.overlay(one, scale)
    else:
        height, width = one.raw.shape
        times = max(1, DRAWN // max(height, width))
        drawn = heat(one.raw, scale, signed=bool((one.raw < 0).any())).resize((width * times, height * times), 0)
    drawn.save(place / "maps" / picture)
    return {"method": one.method, "label": label, "map": f"maps/{name}", "picture": f"maps/{picture}", "scale": scale}


def _claimed(folder: Path, names: Sequence[str], suffix: str, key: str) -> str:
    """A name in the folder that is free, and is made now so that no other can take it, in whatever letters a disk tells apart."""
    safe = "--".join(_safe(one) for one in names)
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    for name in (f"{safe}{suffix}", f"{safe}-{digest[:32]}{suffix}"):
        try:
            with open(folder / name, "xb"):
                return name
        except FileExistsError:
            continue
    raise OutputError(f"the run has two results of {key!r}; `sightline runs verify` says more")


def _safe(name: str) -> str:
    """What can be a part of a file's name anywhere. One that had to be changed has a digest of the whole, so that it stays different."""
    clean = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:_LONGEST_NAME]
    if clean == name and name:
        return name
    return f"{clean or 'unnamed'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
