"""The plan of a run: which pictures, in which files; what of it is done, and whether it is still the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.batch.results import ITEMS, MANIFEST, PARTIAL, count_shards, open_run
from sightline.batch.shards import FOLDER, count_rows, read_rows, read_slice, schema, shard_name, write_rows
from sightline.batch.verification import items_digest
from sightline.data.sets import Source
from sightline.errors import OutputError

if TYPE_CHECKING:
    import pyarrow as pa

_LEAST, _MOST = 64, 10_000  # pictures in a shard
_GROUP = 65_536  # items that are read together


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard to be computed.

    Attributes:
        number: which one.
        items: its pictures.
        known: rows that need not be computed: of the first pictures, or of all.
        redo: the places of those among them that are computed again.
    """

    number: int
    items: pa.Table
    known: pa.Table | None = None
    redo: frozenset[int] = frozenset()

    def missing(self, start: int, stop: int) -> list[int]:
        """The places from `start` to `stop` that have to be computed."""
        done = 0 if self.known is None else len(self.known)
        return [place for place in range(start, stop) if place >= done or place in self.redo]


def plan_of(folder: Path, force: bool) -> Any:
    """The plan of the run in a folder; None where there is none, or none that can be read and it is to be replaced."""
    if not os.path.lexists(folder / MANIFEST):
        return None
    try:
        return open_run(folder).plan
    except OutputError:
        if force:
            return None
        raise


def how_far(folder: Path, plan: Any) -> tuple[int, int]:
    """How many files are done, of how many."""
    return len(list((folder / FOLDER).glob("[0-9]*.parquet"))), count_shards(plan)


def check_pictures(folder: Path, plan: Any, source: Source, retry_errors: bool) -> None:
    """Refuses to go on where the pictures are no longer those that were planned, and says which.

    With `retry_errors` those may have changed that have no result: they were repaired.
    """
    if items_digest(source.items.to_batches()) == plan["pictures"]["digest"]:
        return
    what = f"they were {plan['pictures']['count']} and are {len(source.items)}"
    if (folder / ITEMS).is_file():
        kinds = _differences(read_rows(folder / ITEMS), source.items)
        told = [f"{len(each)} {kind} (such as {each['id'][0]})" for kind, each in kinds.items() if len(each)]
        what = ", ".join(told) or what
        changed = kinds["changed"]
        if not len(kinds["new"]) and not len(kinds["gone"]) and not _with_result(folder, plan, source.items, changed):
            if retry_errors:
                return
            what = f"{len(changed)} that failed changed (such as {changed['id'][0]}); --retry-errors tries those again"
    raise OutputError(
        f"{folder} is a run of other pictures: {what}. Give the same pictures to go on, --force to begin anew, or -o for another place"
    )


def _differences(before: pa.Table, now: pa.Table) -> dict[str, pa.Table]:
    """The pictures that are new, gone and changed; both tables are in the order of their ids."""
    import pyarrow.compute as pc

    kept = before.filter(pc.is_in(before["id"], now["id"])), now.filter(pc.is_in(now["id"], before["id"]))
    same = [
        pc.fill_null(pc.equal(kept[0][name], kept[1][name]), False)
        for name in ("label", "at", "size", "mtime", "problem")
    ]
    nulls = [pc.and_(kept[0][name].is_null(), kept[1][name].is_null()) for name in ("label", "problem")]
    equal = pc.and_(pc.or_(same[0], nulls[0]), pc.or_(same[4], nulls[1]))
    for one in same[1:4]:
        equal = pc.and_(equal, one)
    return {
        "new": now.filter(pc.invert(pc.is_in(now["id"], before["id"]))),
        "gone": before.filter(pc.invert(pc.is_in(before["id"], now["id"]))),
        "changed": kept[1].filter(pc.invert(equal)),
    }


def _with_result(folder: Path, plan: Any, items: pa.Table, chosen: pa.Table) -> bool:
    """Whether one of these pictures has a result already."""
    import pyarrow as pa
    import pyarrow.compute as pc

    places = pc.indices_nonzero(pc.is_in(items["id"], chosen["id"].combine_chunks())).to_pylist()
    numbers = sorted({place // plan["shard"] for place in places})
    for file in [*(folder / FOLDER / shard_name(number) for number in numbers), folder / PARTIAL]:
        if file.is_file():
            rows = read_rows(file, ["id", "error"])
            done = rows.filter(pc.is_null(rows["error"]))
            if pc.any(pc.is_in(done["id"], pa.chunked_array(chosen["id"]))).as_py():
                return True
    return False


def default_shard(count: int) -> int:
    """About a hundred files, whose rows a kill may cost; of very large sets more files, of a size that is read well."""
    return min(_MOST, max(_LEAST, -(-count // 100)))


DATA = "sightline.data"
"""What says, in the list of the pictures, where they were."""


def keep_items(folder: Path, source: Source, digest: str) -> None:
    """Writes the list of the pictures, unless it is there."""
    (folder / FOLDER).mkdir(exist_ok=True)
    try:
        there = items_digest(read_rows(folder / ITEMS).to_batches())
    except (OutputError, ValueError, TypeError):
        there = ""
    if there != digest:
        # Where they are is no part of what they are: a run may go on with pictures that were moved.
        write_rows(folder / ITEMS, source.items.replace_schema_metadata({DATA: source.address}), _GROUP)


def columns_of(plan: Mapping[str, Any]) -> pa.Schema:
    """The columns of the run with this plan."""
    # Not of the list of pictures: it changes where one that had failed is repaired, and then no other shard does.
    told = {**plan, "pictures": plan["pictures"]["count"]}
    about = {"plan": json.dumps(told, sort_keys=True)}  # where the rows come from, wherever the file goes
    return schema(list(plan["metrics"]), about)


def rows_in(plan: Mapping[str, Any], number: int) -> int:
    """How many pictures a shard has."""
    return int(min(plan["shard"], plan["pictures"]["count"] - number * plan["shard"]))


def missing_shards(folder: Path, plan: Mapping[str, Any], retry_errors: bool) -> Iterator[int]:
    """The numbers of the shards that are not there, or are damaged; with `retry_errors` also those in which a picture failed."""
    for number in range(count_shards(plan)):
        file = folder / FOLDER / shard_name(number)
        if (
            not file.is_file()
            or not _is_whole(file, rows_in(plan, number))
            or (retry_errors and _failed(read_rows(file, ["error"])))
        ):
            yield number


def _is_whole(file: Path, rows: int) -> bool:
    try:
        return count_rows(file) == rows
    except OutputError:
        return False


def _failed(rows: pa.Table) -> list[int]:
    """The places of the rows without a result."""
    return [place for place, one in enumerate(rows["error"].to_pylist()) if one is not None]


def shard_of(
    folder: Path, plan: Mapping[str, Any], number: int, columns: pa.Schema, retry_errors: bool = False
) -> Shard:
    """A shard to compute, with what is known of it already."""
    own = read_slice(folder / ITEMS, number * plan["shard"], rows_in(plan, number))
    file = folder / FOLDER / shard_name(number)
    if file.is_file() and _is_whole(file, len(own)):
        known = read_rows(file)
        return Shard(number, own, known, frozenset(_failed(known)))
    found = partial_rows(folder, columns)
    if found is not None and found[0] == number:
        return Shard(number, own, found[1], frozenset(_failed(found[1]) if retry_errors else ()))
    return Shard(number, own)


def partial_rows(folder: Path, schema: pa.Schema) -> tuple[int, pa.Table] | None:
    """The shard that was stopped in the middle, and its first rows; None where there are none that can be used."""
    if not (folder / PARTIAL).is_file():
        return None
    try:
        rows = read_rows(folder / PARTIAL)
        number = int((rows.schema.metadata or {})[b"sightline.shard"])
    except (OutputError, KeyError, ValueError):
        return None  # computed again
    same = rows.schema.remove_metadata().equals(schema.remove_metadata())
    return (number, rows.replace_schema_metadata(schema.metadata)) if same else None
