"""Lists that name pictures, a row for each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from sightline.data.sets.items import Rows
from sightline.data.sets.places import CHAINED, Place, looked, reading
from sightline.data.sets.tables import Columns, columns_of
from sightline.errors import ImageError


def add_csv(rows: Rows, place: Place, name: str) -> None:
    """The pictures that a CSV file names."""
    from pyarrow import csv, string

    parse = csv.ParseOptions(newlines_in_values=True)
    types = dict.fromkeys(("image", "path", "label", "id"), string())
    with reading(name, " as a list of pictures"):
        as_text = csv.ConvertOptions(column_types=types)
        with place.open(name) as file, csv.open_csv(file, parse_options=parse, convert_options=as_text) as reader:
            columns = columns_of(reader.schema, {}, name)
        as_text.include_columns = [columns.image, *columns.facts]
        with place.open(name) as file, csv.open_csv(file, parse_options=parse, convert_options=as_text) as reader:
            add_list(rows, place, reader, columns, name)


def add_list(rows: Rows, place: Place, batches: Iterable[Any], columns: Columns, where: str) -> None:
    """The pictures that a list names by a path, relative to the folder of the list, or by an address."""
    entries = (
        entry
        for batch in batches
        for entry in zip(batch[columns.image].to_pylist(), *columns.texts(batch), strict=True)
    )
    for number, (path, label, id) in enumerate(entries, 1):
        if not (id or path):
            raise ImageError(f"row {number} of {where} names no picture; fill its column image, or take it out")
        rows.add(id or path, label or None, path or "", -1, *named(place, path))


def named(place: Place, path: str | None) -> tuple[int, int, str | None]:
    """Size, time of change and what is wrong, of a file that a list or a table names."""
    if not path:
        return -1, 0, "has no path in the list"
    if "://" in path and "::" in path:
        return -1, 0, CHAINED
    if place.fs is not None or "://" in path:
        return -1, 0, None  # a question for each would take longer than the run
    return looked(os.path.join(place.root, path))
