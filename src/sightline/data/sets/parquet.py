"""Parquet files, with pictures in them or as lists of paths."""

from __future__ import annotations

import os
import posixpath
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any

from sightline.data.sets.items import CHUNK, Found, Rows
from sightline.data.sets.lists import add_list
from sightline.data.sets.places import Place, located, reading, reason, stamp
from sightline.data.sets.tables import Columns, columns_of, features_in
from sightline.errors import ImageError

_DECODED = 128_000_000  # bytes of a file's pictures that are kept, for rows asked for in another order


def add_parquet(rows: Rows, place: Place, files: list[Found]) -> str:
    """The pictures of Parquet files, and as an item of its own each file that is broken.

    Returns:
        The kind of the source: "files" where they are lists.
    """
    kinds: dict[bool, str] = {}  # whether it lists paths, and the first file that does so
    for found in sorted(files):
        name, size, mtime, problem = found
        try:
            if problem is not None:
                raise ImageError(problem)
            reader = _reader(place, name)
        except Exception as error:  # whatever Arrow raises about a broken file
            rows.add_file((name, size, mtime, problem or f"can't be read as Parquet: {reason(error)}"))
            continue
        with reader, reading(name, " as a list of pictures"):
            columns = _columns(reader, name)
            kinds.setdefault(columns.listed, name)
            if len(kinds) > 1:
                raise ImageError(
                    f"{kinds[True]} lists paths and {kinds[False]} holds pictures; give them as two data sets"
                )
            if columns.listed:
                add_list(rows, place, _batches(reader, [columns.image, *columns.facts], CHUNK), columns, name)
            else:
                _add_pictures(rows, reader, columns, found)
    return "files" if True in kinds else "parquet"


def cell(root: str, file: str, at: int) -> Any:
    """The picture of one row."""
    place = located(root)
    return _pictures(root, file, stamp(place.path(file)) if place.fs is None else (os.getpid(),)).cell(at)


def _reader(place: Place, name: str) -> Any:
    from pyarrow import parquet

    source = place.path(name) if place.fs is None else place.open(name)
    # With a buffer a column is read page by page, where otherwise a whole row group of pictures would be held twice.
    return parquet.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)


def _columns(reader: Any, name: str) -> Columns:
    schema = reader.schema_arrow
    return columns_of(schema, features_in((schema.metadata or {}).get(b"huggingface", b"{}")), name)


def _batches(reader: Any, columns: list[str], size: int, **which: Any) -> Iterator[Any]:
    return iter(reader.iter_batches(size, columns=columns, use_threads=False, **which))


def _add_pictures(rows: Rows, reader: Any, columns: Columns, found: Found) -> None:
    file, _, mtime, _ = found
    stem = posixpath.splitext(file)[0]
    facts = (
        each for batch in _batches(reader, columns.facts, CHUNK) for each in zip(*columns.texts(batch), strict=True)
    )
    for row, (label, id) in enumerate(facts):
        rows.add(id or f"{stem}/{row:09d}", label or None, file, row, -1, mtime)


class _Pictures:
    """The column of pictures of a file, of which what was read before the last row asked for is kept decoded."""

    def __init__(self, place: Place, file: str) -> None:
        self._reader = _reader(place, file)
        self._column = _columns(self._reader, file).image
        known = self._reader.metadata
        groups = (known.row_group(group).num_rows for group in range(known.num_row_groups))
        self._starts = [0, *accumulate(groups)]  # the first row of each row group, and behind the last
        self._group, self._next = -1, 0
        self._batches: Iterator[Any] = iter(())
        self._kept = deque[Any]()  # a row each: however large its pictures are, no more than is asked for is decoded
        self._size = 0
        self._turn = threading.Lock()

    def cell(self, row: int) -> Any:
        with self._turn:
            group = bisect_right(self._starts, row) - 1
            if group >= len(self._starts) - 1:
                raise ImageError(f"there is no row {row} any more")
            if group != self._group or row < self._next - len(self._kept):
                self._begin(group)
            while row >= self._next:
                self._read_on()
            return self._kept[row - self._next][0]

    def _begin(self, group: int) -> None:
        self._batches = _batches(self._reader, [self._column], 1, row_groups=[group])
        self._group, self._next = group, self._starts[group]
        self._kept.clear()
        self._size = 0

    def _read_on(self) -> None:
        picture = next(self._batches).column(0)
        self._kept.append(picture)
        self._size += picture.nbytes
        self._next += 1
        while len(self._kept) > 1 and self._size > _DECODED:
            self._size -= self._kept.popleft().nbytes


@lru_cache(maxsize=2)
def _pictures(root: str, file: str, _stamp: tuple[int, ...]) -> _Pictures:
    return _Pictures(located(root), file)
