"""A run of `sightline batch` as it lies in its folder, made without a model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sightline.batch.shards import schema, shard_name, write_rows
from sightline.batch.summary import write_summary
from sightline.batch.verification import items_digest

METRICS = {"deletion": {"step": 224}}
METHODS = {"grad-cam": {}, "eigen-cam": {}}
IDS = tuple(f"cats/{number:03}.jpg" for number in range(10))
FAILED = 7  # of IDS
# The middle 60 x 60 of 80 x 60.
VIEW = {
    "resized_width": 80.0,
    "resized_height": 60.0,
    "offset_x": 10.0,
    "offset_y": 0.0,
    "input_width": 60,
    "input_height": 60,
}


def thumbnail() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def heat(number: int) -> np.ndarray[Any, np.dtype[np.float16]]:
    """2 x 3 values that half floats hold exactly, other ones for each picture."""
    return (np.arange(6, dtype=np.float16) / 8 + number).reshape(2, 3)


def one_map(number: int, method: str) -> dict[str, Any]:
    return {
        "method": method, "target": 281, "label": "tabby", "probability": 0.5, "score": 3.0, "layer": "layer4",
        "height": 2, "width": 3, "heat": heat(number).ravel(), "scale": 0.5, "evidence": 0.5 * float(heat(number).max()),
        "peak_x": 10 + number, "peak_y": 20, "notices": ["nearly empty"] if method == "eigen-cam" else [],
        "metrics": {"deletion": number / 4},
    }  # fmt: skip


def row(name: str, number: int, failed: bool = False) -> dict[str, Any]:
    if failed:
        return {"id": name, "label": "cat", "stage": "read", "error": "ImageError", "message": "cut off"}
    said = [{"index": 281, "label": "tabby", "probability": 0.5}, {"index": 7, "label": "cock", "probability": 0.25}]
    return {
        "id": name, "label": "cat", "width": 80, "height": 60, "predictions": said, "view": VIEW,
        "maps": [one_map(number, method) for method in METHODS], "notices": [], "thumbnail": thumbnail(),
    }  # fmt: skip


def make_run(
    folder: Path,
    ids: Sequence[str] = IDS,
    *,
    shard: int = 4,
    failed: Sequence[int] = (FAILED,),
    change: Callable[[dict[str, Any]], None] = lambda row: None,
    **plan: Any,
) -> Path:
    """A complete run over these ids; `change` is told each row, and `plan` says what its plan has otherwise."""
    (folder / "shards").mkdir(parents=True)
    items = pa.table({"id": pa.array(ids, pa.string()), "label": pa.array(["cat"] * len(ids), pa.string())})
    pq.write_table(items, folder / "items.parquet")
    whole = {
        "model": {"name": "bundled"}, "methods": METHODS, "metrics": METRICS, "batch": 8, "shard": shard,
        "pictures": {"count": len(ids), "digest": items_digest(items.to_batches())}, **plan,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"schema": "sightline.batch/1", "plan": whole}))
    columns = schema(list(METRICS))
    for number, start in enumerate(range(0, len(ids), shard)):
        rows = [row(name, at, at in failed) for at, name in enumerate(ids[start : start + shard], start)]
        for one in rows:
            change(one)
        whole_rows = [{**dict.fromkeys(columns.names), **one} for one in rows]
        write_rows(folder / "shards" / shard_name(number), pa.Table.from_pylist(whole_rows, columns))
    write_summary(folder)
    return folder
