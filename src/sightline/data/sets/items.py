"""The table of a run's pictures, while it is filled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sightline.errors import ImageError

CHUNK = 16_384  # rows that exist as Python objects at a time
Found = tuple[str, int, int, str | None]  # relative path, size, mtime, problem
Row = tuple[str, str | None, str, int, int, int, str | None]
_TYPES = {"id": "string", "label": "string", "file": "string", "at": "int64", "size": "int64", "mtime": "int64", "problem": "string"}  # fmt: skip


class Rows:
    """Items that are put into Arrow a chunk at a time, so that never many of them are Python objects."""

    def __init__(self, watch: Callable[[int], None]) -> None:
        self._rows: list[Row] = []
        self._batches: list[Any] = []
        self._watch = watch
        self.count = 0

    def add(
        self, id: str, label: str | None, file: str, at: int, size: int, mtime: int, problem: str | None = None
    ) -> None:
        """One item, by the columns of `sources.Source`."""
        self._rows.append((id, label, file, at, size, mtime, problem))
        self.count += 1
        if len(self._rows) == CHUNK:
            self._flush()

    def add_file(self, found: Found, label: str | None = None) -> None:
        """A file that is a picture, or that can't be looked into."""
        name, size, mtime, problem = found
        self.add(name, label, name, -1, size, mtime, problem)

    def table(self) -> Any:
        """All items, sorted by id.

        Raises:
            ImageError: two of them have the same id.
        """
        import pyarrow.compute

        self._flush()
        items = pyarrow.Table.from_batches(self._batches)
        items = items.take(pyarrow.compute.sort_indices(items["id"]))
        ids = items["id"]
        first = pyarrow.compute.index(pyarrow.compute.equal(ids[1:], ids[:-1]), True).as_py() if len(ids) > 1 else -1
        if first >= 0:
            files = " and ".join(one["file"] for one in items.slice(first, 2).to_pylist())
            raise ImageError(
                f"two items have the id {ids[first].as_py()!r}: {files}; ids must differ, "
                "so give a column id, or take one of them away"
            )
        return items

    def _flush(self) -> None:
        try:
            batch = _batch(self._rows)
        except UnicodeEncodeError:
            batch = _batch(map(_printable_row, self._rows))
        self._batches.append(batch)
        if self._rows:
            self._rows.clear()
            self._watch(self.count)


def _batch(rows: Iterable[Row]) -> Any:
    import pyarrow

    columns = list(zip(*rows, strict=True)) or [()] * len(_TYPES)
    return pyarrow.RecordBatch.from_arrays(list(map(pyarrow.array, columns, _TYPES.values())), list(_TYPES))


def _printable_row(row: Row) -> Row:
    """A row whose names can be written down; what can't be opened by such a name is a problem."""
    id, label, file, at, size, mtime, problem = row
    if printable(file) != file:
        problem = problem or "has a name that is not UTF-8; rename it"
    return printable(id), label and printable(label), printable(file), at, size, mtime, problem and printable(problem)


def printable(text: str) -> str:
    """The text itself where it can be written as UTF-8, else with what can't be as a code."""
    return text.encode("utf-8", "backslashreplace").decode()
