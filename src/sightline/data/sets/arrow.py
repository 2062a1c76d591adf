"""Data sets as `save_to_disk` of Hugging Face's datasets leaves them: Arrow files, with what is in them as JSON."""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from typing import Any

from sightline.data.sets.items import CHUNK, Rows
from sightline.data.sets.lists import named
from sightline.data.sets.places import Place, located, looked, reason, stamp
from sightline.data.sets.tables import Columns, columns_of, features_in, path_in
from sightline.errors import ImageError

_MOST_JSON = 16 << 20


def is_saved(place: Place) -> bool:
    """Whether a folder is such a data set."""

    def has(name: str) -> bool:
        return place.fs is None and os.path.isfile(place.path(name))

    return has("dataset_dict.json") or (has("state.json") and has("dataset_info.json"))


def add_saved(rows: Rows, place: Place) -> None:
    """The pictures of a data set, its splits one after the other."""
    splits = [""]
    if os.path.isfile(place.path("dataset_dict.json")):
        splits = [f"{split}/" for split in _named_in(place, "dataset_dict.json")]
    for split in splits:
        first = 0
        for name in _named_in(place, f"{split}state.json"):
            file = f"{split}{name}"
            size, mtime, problem = looked(place.path(file))
            if problem is None:
                try:
                    first += _add_table(rows, place, split, file, first, mtime)
                    continue
                except ImageError:
                    raise
                except Exception as error:  # whatever Arrow raises about a broken file
                    problem = f"can't be read as Arrow: {reason(error)}"
            rows.add_file((file, size, mtime, problem))


def cell(root: str, file: str, at: int) -> Any:
    """The picture of one row."""
    path = located(root).path(file)
    table, columns = _table(path, stamp(path))
    return table[columns.image][at]


def _named_in(place: Place, file: str) -> list[str]:
    """The splits, or the files, that a file of the data set lists, each of them something beside it."""
    try:
        with place.open(file) as opened:
            said = json.loads(opened.read(_MOST_JSON))
        names = said["splits"] if "splits" in said else [one["filename"] for one in said["_data_files"]]
        good = not said.get("_indices_data_files") and all(re.fullmatch(r"\w[^/\\]*", one) for one in names)
    except Exception:  # whatever is missing, or of another type
        good = False
    if not good:
        raise ImageError(
            f"{place.path(file)} is not what save_to_disk writes now; save the data set again, with a newer datasets"
        )
    return list(names)


def _add_table(rows: Rows, place: Place, split: str, file: str, first: int, mtime: int) -> int:
    import pyarrow.compute

    path = place.path(file)
    table, columns = _table(path, stamp(path))
    if columns.listed:
        raise ImageError(
            f"{file} holds paths as text in {columns.image}; cast that column to datasets.Image() and save it again"
        )
    at = 0
    for batch in table.to_batches(max_chunksize=CHUNK):
        pictures = batch[columns.image]
        nested = pyarrow.types.is_struct(pictures.type)
        held = pyarrow.compute.struct_field(pictures, "bytes") if nested else pictures
        lengths = pyarrow.compute.binary_length(held).to_pylist()
        for length, label, id in zip(lengths, *columns.texts(batch), strict=True):
            id, label = f"{split}{id or format(first + at, '09d')}", label or None
            if length is not None:
                rows.add(id, label, file, at, length, mtime)
            elif elsewhere := path_in(table[columns.image][at]):
                rows.add(id, label, elsewhere, -1, *named(place, elsewhere))
            else:
                rows.add(id, label, file, at, -1, mtime, "has neither bytes nor a path in the table")
            at += 1
    return at


@lru_cache(maxsize=16)
def _table(path: str, _stamp: tuple[int, ...]) -> tuple[Any, Columns]:
    """The columns that are wanted, mapped into memory: what is not looked at is not read."""
    import pyarrow

    schema = pyarrow.ipc.open_stream(pyarrow.memory_map(path)).schema
    folder, name = os.path.split(path)
    with open(os.path.join(folder, "dataset_info.json"), "rb") as file:
        columns = columns_of(schema, features_in(file.read(_MOST_JSON)), name)
    wanted = [schema.get_field_index(one) for one in (columns.image, *columns.facts)]
    options = pyarrow.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
    table = pyarrow.ipc.open_stream(pyarrow.memory_map(path), options=options).read_all()
    table.validate(full=True)  # offsets that point outside would be followed
    return table, columns
