"""Reading a run: what `sightline batch` wrote, row after row or as a table. Nothing in its folder is believed before it is checked."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sightline._optional import optional, require
from sightline.batch.shards import FOLDER, schema, shard_name
from sightline.data.images import read_image
from sightline.errors import OutputError, did_you_mean
from sightline.models.view import View

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "sightline.batch/1"
MANIFEST, ITEMS, SUMMARY, PARTIAL = "manifest.json", "items.parquet", "summary.json", "partial.parquet"
_FEW, _MANY = 64, 4096  # rows that are held at a time, with their maps and without
_BUFFER = 1 << 20
_MOST_SHARDS, _LONGEST = 1_000_000, 64 << 20
DRAWN = 384  # pixels along the longer side of a drawing
_NUMBERS = (
    ("probability", "float32"),
    ("score", "float32"),
    ("evidence", "float32"),
    ("peak_x", "int32"),
    ("peak_y", "int32"),
)
AGAIN = "Remove it, and --resume computes it again"


@dataclass(frozen=True)
class StoredPrediction:
    """One class that the model named, with its probability in 0..1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, eq=False)
class StoredMap:
    """One map of a picture, as it was kept.

    Attributes:
        method: name of the method; `layer` where its map was made.
        target: the class that was asked for, None for other scores; `label` its name, `probability` and `score` its values.
        raw: (h, w) float32 in the method's own unit, to the precision of half floats.
        scale: by what the numbers that were kept are multiplied to give `raw`.
        evidence: the map's maximum before it was kept.
        peak: (x, y) of the strongest place, in pixels of the photograph; None where there is none.
        notices: what limits this map, in sentences.
        metrics: what was measured of it, by name; None where it has no value.
    """

    method: str
    target: int | None
    label: str
    probability: float | None
    score: float | None
    layer: str
    raw: np.ndarray[Any, np.dtype[np.float32]]
    scale: float
    evidence: float | None
    peak: tuple[int, int] | None
    notices: tuple[str, ...]
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class Row:
    """One picture of a run: its result, or why there is none.

    Attributes:
        id: which picture.
        label: what it is said to show, None where nobody said.
        width: of the photograph, upright, in pixels; `height` too. None where it couldn't be read.
        view: how it became the model's input; `view.place(map.raw)` lays a map on the photograph, NaN where the model never looked.
        predictions: what the model says, most probable first.
        maps: one for each method and target.
        notices: what was done to the picture, in sentences.
        jpeg: the small picture as it was kept, or None; `thumbnail` opens it.
        stage: where it went wrong, `error` of which kind, `message` in words; None where all is well.
    """

    id: str
    label: str | None
    width: int | None
    height: int | None
    view: View | None
    predictions: tuple[StoredPrediction, ...]
    maps: tuple[StoredMap, ...]
    notices: tuple[str, ...]
    jpeg: bytes | None
    stage: str | None
    error: str | None
    message: str | None

    def overlay(self, one: StoredMap, scale: float | None = None) -> Image.Image:
        """A map on the small picture; hatched where the model never looked.

        Args:
            one: of `maps`.
            scale: the value that is drawn at full strength; the map's own largest when left out.

        Raises:
            OutputError: no small picture was kept.
        """
        from sightline.render.overlay import overlay

        photo = self.thumbnail
        if photo is None or self.view is None:
            raise OutputError(f"no thumbnail of {self.id!r} was kept, on which a map could be drawn")
        photo = photo.resize([max(1, round(side * DRAWN / max(photo.size))) for side in photo.size])
        values = dataclasses.replace(self.view, photo=photo.size).place(np.where(np.isfinite(one.raw), one.raw, 0))
        finite = one.raw[np.isfinite(one.raw)]
        largest = float(np.abs(finite).max(initial=0))
        return overlay(photo, values, largest if scale is None else scale, signed=bool((finite < 0).any()))

    @property
    def thumbnail(self) -> Image.Image | None:
        """The picture, small; None where none was kept.

        Raises:
            ImageError: what was kept is no picture.
        """
        return None if self.jpeg is None else read_image(self.jpeg)[0]


@dataclass(frozen=True, eq=False)
class Run:
    """A run's folder, as it was when it was opened.

    Attributes:
        folder: its place.
        plan: everything that decided the result.
        there: the numbers of the shards that are there.
    """

    folder: Path
    plan: Mapping[str, Any]
    there: tuple[int, ...]

    @property
    def pictures(self) -> int:
        """How many were planned."""
        return int(self.plan["pictures"]["count"])

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the shards that are not there yet."""
        there = set(self.there)
        return tuple(number for number in range(count_shards(self.plan)) if number not in there)

    @property
    def complete(self) -> bool:
        """Whether all shards are there."""
        return len(self.there) == count_shards(self.plan)

    def __len__(self) -> int:
        return sum(self.rows_of(number) for number in self.there)

    def __iter__(self) -> Iterator[Row]:
        for number in self.there:
            file = self.file(number)
            for batch in self.shard(number):
                with reading(file):
                    rows = rows_in(batch, file)
                yield from rows

    def file(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / FOLDER / shard_name(number)

    def rows_of(self, number: int) -> int:
        """How many rows a shard has."""
        return min(int(self.plan["shard"]), self.pictures - number * int(self.plan["shard"]))

    @property
    def schema(self) -> pa.Schema:
        """The columns of its shards."""
        return schema(list(self.plan["metrics"]))

    def shard(self, number: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of one shard, some hundred at a time, with their checksums compared.

        Args:
            number: which shard.
            columns: names, also of what lies within, such as maps.list.element.method; all when left out.

        Raises:
            OutputError: it is damaged, or holds something else than the plan says.
        """
        file = self.file(number)
        return read_batches(file, columns, self.schema, self.rows_of(number))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows as Arrow's record batches, one after the other, so that memory stays flat.

        Args:
            columns: their names; all when left out.

        Raises:
            OutputError: there is no such column, or a shard is damaged.
        """
        names = self._named(columns)
        return chain.from_iterable(self._selected(number, names) for number in self.there)

    def arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows as one table of Arrow, in memory.

        Args:
            columns: their names; all when left out.

        Raises:
            OutputError: as `batches`.
        """
        import pyarrow as pa

        wanted = pa.schema([self.schema.field(name) for name in self._named(columns)])
        return pa.Table.from_batches(self.batches(columns), wanted)

    def pandas(self, columns: Sequence[str] | None = None) -> Any:
        """The same as a DataFrame of pandas.

        Raises:
            OutputError: as `batches`.
            MissingExtraError: pandas isn't installed.
        """
        require(["pandas"], "tables", "run.pandas()")
        return self.arrow(columns).to_pandas()

    def polars(self, columns: Sequence[str] | None = None) -> Any:
        """The same as a DataFrame of polars.

        Raises:
            OutputError: as `batches`.
            MissingExtraError: polars isn't installed.
        """
        return optional("polars", "tables", "run.polars()").from_arrow(self.arrow(columns))

    def flat(self) -> pa.Table:
        """One row for each map, without nested columns.

        id, label, width, height, prediction, method, target, probability, score, evidence, peak_x, peak_y and the metrics.

        `label` is the picture's, `prediction` the first of the model, `target` what the map is of. A metric that has the name of
        another column is called "its name (metric)". Pictures without a map have no row.

        Raises:
            OutputError: a shard is damaged.
        """
        import pyarrow as pa

        wanted = _flat_schema(list(self.plan["metrics"]))
        return pa.Table.from_batches(chain.from_iterable(self._flat(number, wanted) for number in self.there), wanted)

    def errors(self) -> pa.Table:
        """The pictures that failed: id, stage, error, message.

        Raises:
            OutputError: a shard is damaged.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        names = ["id", "stage", "error", "message"]
        failed = (batch.filter(pc.is_valid(batch.column("error"))) for batch in self.batches(names))
        return pa.Table.from_batches(failed, pa.schema([self.schema.field(name) for name in names]))

    def verify(self) -> list[str]:
        """Reads everything again and says what is wrong, one sentence each; nothing when all is well.

        Shards that are missing, damaged or hold other pictures than planned, files that are no shards, digests that are not those
        of summary.json, and a list of pictures that is not the plan's.
        """
        from sightline.batch.verification import problems

        return problems(self)

    def _named(self, columns: Sequence[str] | None) -> list[str]:
        known = self.schema.names
        for name in columns or ():
            if name not in known:
                raise OutputError(
                    f"there is no column {name!r}; expected {', '.join(known)}.{did_you_mean(str(name), known)}"
                )
        return known if columns is None else list(columns)

    def _selected(self, number: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        wanted = pa.schema([self.schema.field(name) for name in names])
        for batch in self.shard(number, names):
            yield pa.RecordBatch.from_arrays([batch.column(name) for name in names], schema=wanted)

    def _flat(self, number: int, wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import pyarrow.compute as pc

        numbers = [name for name, _ in _NUMBERS]
        fields = ["method", "label", *numbers, *(["metrics"] if self.plan["metrics"] else [])]
        columns = [
            "id",
            "label",
            "width",
            "height",
            "predictions.list.element.label",
            *(f"maps.list.element.{name}" for name in fields),
        ]
        for batch in self.shard(number, columns):
            with reading(self.file(number)):
                of = pc.list_parent_indices(batch.column("maps"))
                found = parts(batch.column("maps").flatten())
                metrics = parts(found["metrics"]) if "metrics" in found else {}
                first = first_labels(batch.column("predictions"))
                arrays = [batch.column(name).take(of) for name in ("id", "label", "width", "height")] + [first.take(of)]
                arrays += [found[name] for name in fields if name != "metrics"]
                arrays += [metrics[name] for name in self.plan["metrics"]]
                rows = pa.RecordBatch.from_arrays(arrays, schema=wanted)
            yield rows


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Opens the folder of a run of `sightline batch`, whether it is complete or not.

    Args:
        folder: its place.

    Raises:
        OutputError: it is no such run, or one that can't be read.
        MissingExtraError: pyarrow isn't installed (the extra `batch`).
    """
    require(["pyarrow"], "batch", "reading a run")
    return run_of(Path(folder), _plan(Path(folder)))


def run_of(folder: Path, plan: Mapping[str, Any]) -> Run:
    """The run of a plan in its folder, with the shards that are there now."""
    return Run(folder, plan, tuple(sorted(number for number, _ in entries(folder, plan) if number is not None)))


# --------------------------------------------------------------------------------------------------------------- the folder


def read_json(file: Path) -> Any:
    """What a JSON file of a run says.

    Raises:
        OutputError: it isn't there, is no regular file, or holds no JSON as we write it.
    """
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(f"{file} is no regular file; links are not followed")
        if found.st_size > _LONGEST:
            raise OutputError(f"{file} has {found.st_size:,} bytes; expected at most {_LONGEST:,}")
        content = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(content, allow_nan=False).encode()
        return content
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OutputError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OutputError(f"{file} can't be read: {reason}") from error


def _plan(folder: Path) -> dict[str, Any]:
    """The plan of a run, with everything in it that is relied on."""
    try:
        linked = not stat.S_ISDIR(folder.lstat().st_mode)
        manifest = {} if linked else read_json(folder / MANIFEST)
        why = "it is no folder; links are not followed" if linked else _wrong_with(manifest)
    except (OSError, ValueError) as error:
        why = str(getattr(error, "strerror", None) or error)
    if why:
        raise OutputError(f"{folder} is no run of `sightline batch` that can be read: {why}. Give the folder of one")
    return dict(manifest["plan"])


def _wrong_with(manifest: Any) -> str:
    """Why a manifest is not that of a run; nothing when it is."""
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        said = manifest.get("schema") if isinstance(manifest, dict) else None
        return f"its {MANIFEST} has the schema {said!r:.60}, expected {SCHEMA!r}"
    plan = manifest.get("plan")
    if not isinstance(plan, dict):
        return f"its {MANIFEST} has no plan"
    for name in ("pictures", "methods", "metrics", "model"):
        if not isinstance(plan.get(name), dict):
            return f"{name} in its plan is {plan.get(name)!r:.60}, expected names with values"
    for name, value, least in (("pictures", plan["pictures"].get("count"), 0), ("shard", plan.get("shard"), 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            return f"the number of {name} in its plan is {value!r:.60}, expected a whole number from {least}"
    try:
        "".join(plan["metrics"]).encode()
    except UnicodeEncodeError:
        return "the name of a metric in its plan is no text"
    if count_shards(plan) > _MOST_SHARDS:
        return f"its plan has {count_shards(plan):,} shards, expected at most {_MOST_SHARDS:,}"
    return ""


def count_shards(plan: Mapping[str, Any]) -> int:
    """How many shards a run of this plan has when it is complete."""
    return -(-int(plan["pictures"]["count"]) // int(plan["shard"]))


def entries(folder: Path, plan: Mapping[str, Any]) -> list[tuple[int | None, str]]:
    """What lies among the shards: the number of each, None for what is no shard of this plan. Half-written files are left out."""
    place, of = folder / FOLDER, count_shards(plan)
    try:
        if not stat.S_ISDIR(place.lstat().st_mode):
            raise OutputError(f"{place} is no folder; links are not followed. Give the folder of a run as it was made")
        with os.scandir(place) as entries:
            found = []
            for one in entries:
                if not one.name.startswith("."):
                    known = re.fullmatch(r"([0-9]{6,7})\.parquet", one.name) and one.is_file(follow_symlinks=False)
                    number = int(one.name.partition(".")[0]) if known else of
                    found.append((number if number < of and shard_name(number) == one.name else None, one.name))
            return found
    except FileNotFoundError:
        return []  # no shard is done yet
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{place} can't be read: {error.strerror or error}") from error


# --------------------------------------------------------------------------------------------------------------- the shards


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """What goes wrong while a file's content is read becomes our error."""
    import pyarrow as pa

    try:
        yield
    except OutputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        raise OutputError(f"{file} is damaged: {error}. {AGAIN}") from error


def read_batches(
    file: Path, columns: Sequence[str] | None, wanted: pa.Schema | None = None, rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, some at a time, after its columns and number of rows are checked."""
    import pyarrow.parquet as pq

    with reading(file):
        opened = pq.ParquetFile(file, page_checksum_verification=True, buffer_size=_BUFFER, pre_buffer=False)
    with opened:
        with reading(file):
            if wanted is not None and not opened.schema_arrow.equals(wanted, check_metadata=False):
                raise OutputError(f"{file} is damaged: {_differ(opened.schema_arrow, wanted)}. {AGAIN}")
            counted = opened.metadata.num_rows
            if rows is not None and counted != rows:
                raise OutputError(f"{file} is damaged: it has {counted:,} rows, expected {rows:,}. {AGAIN}")
            at_once = _FEW if columns is None or "maps" in columns else _MANY
            batches = opened.iter_batches(at_once, columns=None if columns is None else list(columns))
        while True:
            with reading(file):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _differ(found: pa.Schema, wanted: pa.Schema) -> str:
    """The first thing in which the columns of a file are not those that were expected."""
    here, there = (dict(chain.from_iterable(map(_leaves, one))) for one in (found, wanted))
    for name in {**there, **here}:
        if here.get(name) != there.get(name):
            return f"its column {name!r:.80} is {here.get(name, 'not there')}, expected {there.get(name, 'none')}"
    return f"its columns are {', '.join(found.names)[:200]}, expected {', '.join(wanted.names)}"


def _leaves(field: pa.Field) -> Iterator[tuple[str, str]]:
    """The columns without parts of their own that a column consists of, and what each holds."""
    kind, lists = field.type, ""
    while hasattr(kind, "value_field"):  # what a list calls its values differs from writer to writer
        kind, lists = kind.value_type, f"{lists}list of "
    inner = [kind.field(at) for at in range(kind.num_fields)]
    if not inner:
        yield field.name, f"{lists}{kind}"
    for one in inner:
        yield from ((f"{field.name}.{name}", f"{lists}{held}") for name, held in _leaves(one))


def parts(structs: pa.StructArray) -> dict[str, pa.Array]:
    """The columns of an array of records; null where a record is."""
    return dict(zip([one.name for one in structs.type], structs.flatten(), strict=True))


def first_labels(predictions: pa.ListArray) -> pa.Array:
    """What the model said first of each picture, null where it said nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    counts = pc.fill_null(pc.list_value_length(predictions), 0).to_numpy(zero_copy_only=False)
    first = pa.array(np.cumsum(counts) - counts, pa.int64(), mask=counts == 0)
    return parts(predictions.flatten())["label"].take(first)


def _flat_schema(metrics: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    text, size = dict.fromkeys(("id", "label"), pa.string()), dict.fromkeys(("width", "height"), pa.int32())
    said = dict.fromkeys(("prediction", "method", "target"), pa.string())
    columns = {**text, **size, **said, **{name: getattr(pa, kind)() for name, kind in _NUMBERS}}
    named = [(f"{name} (metric)" if name in columns else name, pa.float64()) for name in metrics]
    return pa.schema([*columns.items(), *named])


def rows_in(batch: pa.RecordBatch, file: Path) -> list[Row]:
    """The rows of a batch, whose columns are all there.

    Raises:
        OutputError: what it says of a map can't be.
    """
    import pyarrow.compute as pc

    maps = iter(_maps(batch.column("maps").flatten(), file))
    counts = pc.fill_null(pc.list_value_length(batch.column("maps")), 0).to_pylist()
    plain = batch.select([name for name in batch.schema.names if name != "maps"]).to_pylist()
    return [
        Row(
            id=one["id"],
            label=one["label"],
            width=one["width"],
            height=one["height"],
            view=_view(one),
            predictions=tuple(StoredPrediction(**said) for said in one["predictions"] or () if said is not None),
            maps=tuple(next(maps) for _ in range(count)),
            notices=tuple(one["notices"] or ()),
            jpeg=one["thumbnail"],
            stage=one["stage"],
            error=one["error"],
            message=one["message"],
        )
        for one, count in zip(plain, counts, strict=True)
    ]


def _view(row: Mapping[str, Any]) -> View | None:
    kept = row["view"]
    if kept is None or not row["width"] or not row["height"] or None in kept.values():
        return None
    size, ends = ("width", "height"), ("x", "y")
    resized, offset, given = (
        tuple(kept[f"{name}_{part}"] for part in parts)
        for name, parts in (("resized", size), ("offset", ends), ("input", size))
    )
    if min(*resized, *given) <= 0:
        return None
    return View((row["width"], row["height"]), resized, offset, given)


def _maps(structs: pa.StructArray, file: Path) -> list[StoredMap]:
    """The maps of many pictures. Their values never become Python objects, of which a map of pixels would need 50,000."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = parts(structs)
    heats = columns.pop("heat")
    counts = pc.fill_null(pc.list_value_length(heats), 0).to_pylist()
    values = heats.flatten().to_numpy(zero_copy_only=False)
    found, at = [], 0
    for one, count in zip(pa.Table.from_pydict(columns).to_pylist(), counts, strict=True):
        height, width, scale = one["height"] or 0, one["width"] or 0, one["scale"]
        if scale is None or height < 1 or width < 1 or height * width != count:
            raise OutputError(
                f"{file} is damaged: a map of {one['method']} is {width} x {height} and has {count:,} values, scale {scale}. {AGAIN}"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # such numbers are for `notices` to tell
            raw = values[at : at + count].astype(np.float32).reshape(height, width) * np.float32(scale)
        at += count
        peak = None if one["peak_x"] is None or one["peak_y"] is None else (one["peak_x"], one["peak_y"])
        said = {name: one[name] for name in ("method", "target", "label", "probability", "score", "layer", "evidence")}
        notices = tuple(one["notices"] or ())
        found.append(
            StoredMap(**said, raw=raw, scale=scale, peak=peak, notices=notices, metrics=one.get("metrics") or {})
        )
    return found
