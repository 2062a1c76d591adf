"""A shard of a run: the rows of some hundred pictures in one Parquet file, whole or not there. The file is its own record of being done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import OutputError

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "shards"
_HALF = ".part"


def reached(step: str) -> None:
    """A step of writing is done. Nothing happens here: it is where the tests let a process die."""


def schema(metrics: Sequence[str] = (), about: Mapping[str, str] | None = None) -> pa.Schema:
    """The columns of a run: one row a picture, with a list of its maps.

    Args:
        metrics: what is measured of every map.
        about: what the file says of the run, as text.
    """
    import pyarrow as pa

    prediction = {"index": pa.int32(), "label": pa.string(), "probability": pa.float32()}
    heat: dict[str, Any] = {
        "method": pa.string(),
        "target": pa.int32(),
        "label": pa.string(),
        "probability": pa.float32(),
        "score": pa.float32(),
        "layer": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "heat": pa.list_(pa.float16()),  # row by row; times `scale` it is the map in the method's own unit
        "scale": pa.float32(),
        "evidence": pa.float32(),
        "peak_x": pa.int32(),
        "peak_y": pa.int32(),
        "notices": pa.list_(pa.string()),
    }
    if metrics:
        heat["metrics"] = pa.struct([(name, pa.float64()) for name in metrics])
    view = {
        **dict.fromkeys(("resized_width", "resized_height", "offset_x", "offset_y"), pa.float64()),
        **dict.fromkeys(("input_width", "input_height"), pa.int32()),
    }
    columns = {
        "id": pa.string(),
        "label": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "view": pa.struct(list(view.items())),
        "predictions": pa.list_(pa.struct(list(prediction.items()))),
        "maps": pa.list_(pa.struct(list(heat.items()))),
        "notices": pa.list_(pa.string()),
        "thumbnail": pa.binary(),
        "stage": pa.string(),
        "error": pa.string(),
        "message": pa.string(),
    }
    return pa.schema(list(columns.items()), metadata={f"sightline.{key}": text for key, text in (about or {}).items()})


def columns_of(plan: Mapping[str, Any]) -> pa.Schema:
    """The columns of the run with this plan."""
    about = {"plan": hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()}
    return schema(list(plan["metrics"]), about)


def shard_name(number: int) -> str:
    return f"{number:06}.parquet"


def write_rows(file: Path, rows: pa.Table, group: int | None = None) -> None:
    """The rows as a file, whole or not at all: written beside it, brought to the disk, opened again and counted, then named.

    Args:
        file: its place.
        rows: what it holds.
        group: rows that are read together; all of them when left out.

    Raises:
        OutputError: what was written doesn't hold the rows.
        OSError: it can't be written.
    """
    import pyarrow.parquet as pq

    half = file.with_name(f".{file.name}{_HALF}")
    try:
        half.unlink(missing_ok=True)  # a link in its place would have its target overwritten
        reached("before writing")
        with open(half, "wb") as opened:
            pq.write_table(
                rows.combine_chunks(),
                opened,
                compression="zstd",
                row_group_size=group or max(1, len(rows)),
                write_page_checksum=True,
            )
            reached("written")
            opened.flush()
            os.fsync(opened.fileno())
        reached("on the disk")
        half.stat()  # where the folder was taken away meanwhile, nothing is damaged
        counted = count_rows(half)
        if counted != len(rows):
            raise OutputError(f"{half} holds {counted} rows of {len(rows)}; the disk can't be trusted")
        reached("counted")
        half.replace(file)
        reached("named")
    except BaseException:
        with suppress(OSError):
            half.unlink()
        raise


def count_rows(file: Path) -> int:
    """How many rows a file says that it has.

    Raises:
        OutputError: it is no Parquet file, or a damaged one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(file).metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise OutputError(f"{file} is damaged: {error}. Remove it, and --resume computes it again") from error


def read_rows(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a file, with the checksums of what is read compared.

    Raises:
        OutputError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        return opened.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise OutputError(f"{file} is damaged: {error}. Remove it, and --resume computes it again") from error


def read_slice(file: Path, start: int, count: int) -> pa.Table:
    """Some rows of a long file, of which no more is read than their groups.

    Raises:
        OutputError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        sizes = [opened.metadata.row_group(at).num_rows for at in range(opened.metadata.num_row_groups)]
        begins = [sum(sizes[:at]) for at in range(len(sizes))]
        groups = [at for at, begin in enumerate(begins) if begin < start + count and begin + sizes[at] > start]
        return opened.read_row_groups(groups).slice(start - begins[groups[0]], count)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise OutputError(f"{file} is damaged: {error}") from error


def file_digest(file: Path) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
