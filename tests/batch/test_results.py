"""What a run's folder says when it is read, and that nothing in it is believed unseen."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from made_runs import FAILED, IDS, METHODS, heat, make_run, one_map, row
from sightline import open_run
from sightline.batch.copies import export, merge
from sightline.batch.results import Run
from sightline.batch.shards import schema, shard_name, write_rows
from sightline.batch.summary import summarise, write_summary
from sightline.batch.verification import items_digest
from sightline.errors import ImageError, OutputError
from sightline.models.view import View


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures in shards of four; one of them failed."""
    return make_run(tmp_path / "run")


@pytest.fixture
def run(folder: Path) -> Run:
    return open_run(folder)


def tree(folder: Path) -> dict[str, bytes]:
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


# -------------------------------------------------------------------------------------------------------------------- rows


def test_rows_come_in_order_with_all_that_was_kept(run: Run) -> None:
    rows = list(run)
    assert [one.id for one in rows] == list(IDS)
    assert len(run) == 10
    third = rows[3]
    assert (third.label, third.width, third.height, third.error) == ("cat", 80, 60, None)
    assert [(one.index, one.label, one.probability) for one in third.predictions] == [
        (281, "tabby", 0.5),
        (7, "cock", 0.25),
    ]
    first, second = third.maps
    assert (first.method, second.method) == tuple(METHODS)
    assert (first.target, first.label, first.layer, first.score) == (281, "tabby", "layer4", 3.0)
    assert first.peak == (13, 20)
    assert first.metrics == {"deletion": 0.75}
    assert second.notices == ("nearly empty",)


def test_a_maps_values_are_the_kept_ones_times_its_scale(run: Run) -> None:
    for number, one in enumerate(run):
        for kept in one.maps:
            assert kept.raw.dtype == np.float32
            np.testing.assert_array_equal(kept.raw, heat(number).astype(np.float32) * np.float32(0.5))
            assert kept.evidence == kept.raw.max()


def test_a_picture_that_failed_is_a_row_with_its_reason(run: Run) -> None:
    failed = list(run)[FAILED]
    assert (failed.stage, failed.error, failed.message) == ("read", "ImageError", "cut off")
    assert (failed.maps, failed.predictions, failed.notices, failed.thumbnail) == ((), (), (), None)
    assert run.errors().to_pylist() == [
        {"id": IDS[FAILED], "stage": "read", "error": "ImageError", "message": "cut off"}
    ]


def test_a_thumbnail_is_a_picture_and_no_other_bytes_are(tmp_path: Path, run: Run) -> None:
    picture = next(iter(run)).thumbnail
    assert picture is not None
    assert picture.size == (8, 6)

    def spoil(one: dict[str, Any]) -> None:
        one["thumbnail"] = b"<script>"

    hostile = next(iter(open_run(make_run(tmp_path / "hostile", change=spoil))))
    with pytest.raises(ImageError):
        _ = hostile.thumbnail


def test_only_the_shards_that_are_there_are_read(folder: Path) -> None:
    (folder / "shards" / shard_name(1)).unlink()
    (folder / "shards" / f".{shard_name(1)}.part").write_bytes(b"half")
    run = open_run(folder)
    assert (len(run), run.complete, run.missing) == (6, False, (1,))
    assert [one.id for one in run] == [*IDS[:4], *IDS[8:]]


def test_rows_are_read_when_they_are_asked_for(folder: Path) -> None:
    rows = iter(open_run(folder))
    (folder / "shards" / shard_name(2)).write_bytes(b"")
    assert [next(rows).id for _ in range(8)] == list(IDS[:8])
    with pytest.raises(OutputError, match=r"000002\.parquet is damaged"):
        next(rows)


# ------------------------------------------------------------------------------------------------------------------ tables


def test_arrow_pandas_and_polars_hold_the_same(run: Run) -> None:
    table = run.arrow(["maps", "id"])
    assert table.column_names == ["maps", "id"]
    assert table.column("id").to_pylist() == list(IDS)
    assert pa.Table.from_batches(run.batches(["id"])).column("id").to_pylist() == list(IDS)
    assert list(run.pandas(["id", "error"])["id"]) == list(IDS)
    frame = run.polars()
    assert frame["id"].to_list() == list(IDS)
    assert frame["maps"][2][1]["peak_x"] == 12
    assert frame["maps"][2][1]["heat"] == heat(2).ravel().tolist()


def test_an_unknown_column_is_refused_with_the_nearest(run: Run) -> None:
    with pytest.raises(OutputError, match="Did you mean 'predictions'"):
        run.arrow(["prediction"])


def test_the_flat_table_has_a_row_for_each_map(run: Run) -> None:
    table = run.flat().to_pylist()
    assert len(table) == 18
    assert table[5] == {
        "id": IDS[2], "label": "cat", "prediction": "tabby", "method": "eigen-cam", "target": "tabby",
        "evidence": 0.5 * float(heat(2).max()), "peak_x": 12, "peak_y": 20, "deletion": 0.5,
        "width": 80, "height": 60, "probability": 0.5, "score": 3.0,
    }  # fmt: skip


def test_a_map_lies_on_the_part_of_the_photograph_that_the_model_saw(run: Run) -> None:
    row = next(iter(run))
    assert row.view == View(photo=(80, 60), resized=(80, 60), offset=(10, 0), input=(60, 60))
    placed = row.view.place(row.maps[0].raw)
    assert np.isnan(placed[:, :10]).all()
    assert np.isnan(placed[:, 70:]).all()
    assert np.isfinite(placed[:, 10:70]).all()
    drawn = np.asarray(row.overlay(row.maps[0]))
    assert drawn.shape == (288, 384, 3)
    weak = np.asarray(row.overlay(row.maps[0], scale=1000.0))
    photo = np.asarray(row.thumbnail.resize((384, 288))).astype(int)
    middle = slice(60, 320)
    assert np.abs(weak[:, middle] - photo[:, middle]).mean() < 3 < np.abs(drawn[:, middle] - photo[:, middle]).mean()


def test_duckdb_reads_the_shards_as_they_are(folder: Path) -> None:
    shards = f"'{folder}/shards/*.parquet'"
    rows = duckdb.sql(f"SELECT id, predictions[1].label, maps[1].peak_x FROM {shards} ORDER BY id").fetchall()
    assert rows[3] == (IDS[3], "tabby", 13)
    assert rows[FAILED] == (IDS[FAILED], None, None)
    query = f"""SELECT m.method, count(*), avg(m.metrics.deletion), max(m.heat[6] * m.scale)
                FROM (SELECT unnest(maps) AS m FROM {shards}) GROUP BY 1 ORDER BY 1"""
    deletion = sum(number / 4 for number in range(10) if number != FAILED) / 9
    highest = float(heat(9).max()) * 0.5
    assert duckdb.sql(query).fetchall() == [("eigen-cam", 9, deletion, highest), ("grad-cam", 9, deletion, highest)]


def test_polars_reads_the_shards_as_they_are(folder: Path) -> None:
    frame = pl.read_parquet(folder / "shards" / "*.parquet").sort("id")
    first = pl.col("maps").list.get(0, null_on_oob=True).struct.field("peak_x")
    said = pl.col("predictions").list.get(0, null_on_oob=True).struct.field("label")
    assert frame.select("id", said, first).row(3) == (IDS[3], "tabby", 13)
    flat = frame.select("id", "maps").explode("maps").unnest("maps").drop_nulls("method")
    assert flat.height == 18
    assert flat.filter(pl.col("method") == "grad-cam")["peak_x"].to_list() == [10 + n for n in range(10) if n != FAILED]


# ------------------------------------------------------------------------------------------------------------------ verify


def test_a_whole_run_is_well(run: Run) -> None:
    assert run.verify() == []


def rewrite(folder: Path, number: int, change: Callable[[list[dict[str, Any]]], None]) -> None:
    file = folder / "shards" / shard_name(number)
    rows = pq.read_table(file).to_pylist()
    change(rows)
    write_rows(file, pa.Table.from_pylist(rows, schema(["deletion"])))


def swap(rows: list[dict[str, Any]]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def flip(file: Path) -> None:
    """One bit in the middle of a page of data."""
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    content = bytearray(file.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "shards" / shard_name(1)).unlink(), "1 of 3 shards are missing, the first is 000001.parquet"),
        (lambda f: (f / "shards" / "notes.txt").write_text("x"), "notes.txt is no shard of this run"),
        (lambda f: shutil.copy(f / "shards" / shard_name(0), f / "shards" / shard_name(9)), "000009.parquet is no shard"),
        (lambda f: flip(f / "shards" / shard_name(1)), "000001.parquet is damaged"),
        (lambda f: rewrite(f, 0, swap), "row 0 is 'cats/001.jpg', in items.parquet it is 'cats/000.jpg'"),
        (lambda f: rewrite(f, 1, lambda rows: rows[0].update(label="dog")), "is another file than when the run ended"),
        (lambda f: rewrite(f, 1, lambda rows: rows.pop()), "it has 3 rows, expected 4"),
        (lambda f: (f / "summary.json").unlink(), "summary.json is missing"),
        (lambda f: (f / "summary.json").write_text("[]"), "doesn't say the digests"),
        (lambda f: (f / "items.parquet").unlink(), "items.parquet"),
        (lambda f: pq.write_table(pa.table({"id": IDS[:-1]}), f / "items.parquet"), "has 9 pictures, the plan 10"),
        (lambda f: pq.write_table(pa.table({"id": IDS}), f / "items.parquet"), "is not the list that was planned"),
        (lambda f: pq.write_table(pa.table({"id": IDS[::-1]}), f / "items.parquet"), "comes after"),
    ],
)  # fmt: skip
def test_verify_says_what_is_wrong(folder: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(folder)
    problems = open_run(folder).verify()
    assert [one for one in problems if says in one], problems


def test_a_table_digest_that_contradicts_the_files_is_told(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "table": "0" * 64}))
    (problem,) = open_run(folder).verify()
    assert "contradicts itself" in problem


def test_the_digest_of_the_list_is_the_same_however_it_is_cut_and_encoded() -> None:
    table = pa.table({"id": ["a", "b", "c"], "at": pa.array([1, None, 3], pa.int64()), "file": ["x", None, "x"]})
    digest = items_digest(table.to_batches())
    assert items_digest(table.to_batches(max_chunksize=1)) == digest
    assert items_digest(table.set_column(2, "file", table["file"].dictionary_encode()).to_batches()) == digest
    for name, values in (("id", ["a", "bc", ""]), ("at", pa.array([1, 0, 3])), ("file", ["x", "", "x"])):
        other = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        assert items_digest(other.to_batches()) != digest, name


# ----------------------------------------------------------------------------------------------------------------- hostile


def manifest(content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "manifest.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


def plan(**changed: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        found = json.loads((folder / "manifest.json").read_text())
        found["plan"] |= changed
        (folder / "manifest.json").write_text(json.dumps(found))

    return change


def link(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).rename(folder / "elsewhere")
        (folder / name).symlink_to(folder / "elsewhere")

    return change


def pipe(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


@pytest.mark.parametrize(
    "spoil",
    [
        manifest([1]), manifest("[" * 100_000), manifest("{"), manifest('{"a": NaN}'), manifest("1" * 5000), manifest({}),
        manifest({"schema": "sightline.evaluate/1", "plan": {}}), manifest({"schema": "sightline.batch/1", "plan": 3}),
        manifest({"schema": "sightline.batch/1", "plan": {}}), manifest({"schema": {"a": 1}}), manifest('"\\ud800"'),
        plan(shard=0), plan(shard=True), plan(shard="4"), plan(shard=None), plan(pictures=10), plan(pictures={"count": -1}),
        plan(pictures={"count": 1e9}), plan(pictures={"count": 10**15}), plan(pictures={}), plan(metrics=["deletion"]),
        plan(metrics=None), plan(metrics={"\ud800": {}}), plan(methods=None), plan(model="bundled"), link("manifest.json"), link("shards"), pipe,
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_run_of_ours_is_refused(folder: Path, spoil: Callable[[Path], object]) -> None:
    spoil(folder)
    with pytest.raises(OutputError, match="Give the folder of"):
        open_run(folder)


def test_a_link_to_a_run_a_file_and_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for place in (tmp_path / "link", folder / "manifest.json", tmp_path / "none", tmp_path / "a\0b", "x" * 5000):
        with pytest.raises(OutputError, match="is no run"):
            open_run(place)


def test_a_shard_that_is_a_link_or_a_pipe_is_not_there(folder: Path) -> None:
    link(f"shards/{shard_name(0)}")(folder)
    (folder / "shards" / shard_name(1)).unlink()
    os.mkfifo(folder / "shards" / shard_name(1))
    assert open_run(folder).missing == (0, 1)


def shard_of(columns: dict[str, Any]) -> Callable[[Path], object]:
    return lambda file: pq.write_table(pa.table(columns), file)


def spoiled(**changed: object) -> Callable[[Path], object]:
    """A shard whose maps have this instead."""
    rows = [row(name, at) for at, name in enumerate(IDS[:4])]
    rows[1]["maps"] = [{**one_map(1, "grad-cam"), **changed}]
    columns = schema(["deletion"])
    whole = [{**dict.fromkeys(columns.names), **one} for one in rows]
    return lambda file: write_rows(file, pa.Table.from_pylist(whole, columns))


def text_that_is_none(file: Path) -> None:
    rows = pq.read_table(file)
    ids = pa.Array.from_buffers(pa.string(), 4, [None, pa.py_buffer(np.arange(5, dtype=np.int32)), pa.py_buffer(b"\xff" * 4)])  # fmt: skip
    pq.write_table(rows.set_column(0, rows.schema.field(0), ids), file)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"PAR1" * 10), lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-9]), lambda file: file.write_bytes(file.read_bytes()[: 900]),
        shard_of({"id": IDS[:4]}), shard_of({"id": [1, 2, 3, 4]}), shard_of({"maps": [None] * 4}),
        spoiled(height=-2, width=-3), spoiled(height=None), spoiled(width=10**9), spoiled(heat=None), spoiled(scale=None),
        text_that_is_none, flip,
    ],
)  # fmt: skip
def test_a_damaged_shard_gives_our_error_whatever_is_asked(folder: Path, spoil: Callable[[Path], object]) -> None:
    spoil(folder / "shards" / shard_name(0))
    run = open_run(folder)
    with pytest.raises(OutputError, match="damaged"):
        list(run)
    assert any("damaged" in one for one in run.verify())
    for ask in (run.arrow, run.flat, run.errors, lambda: summarise(folder, run.plan)):
        try:
            ask()
        except OutputError as error:
            assert "damaged" in str(error)  # noqa: PT017


def test_columns_that_differ_are_named(folder: Path) -> None:
    plan(metrics={"deletion": {}, "insertion": {}})(folder)
    with pytest.raises(
        OutputError, match=r"its column 'maps\.metrics\.insertion' is not there, expected list of double"
    ):
        open_run(folder).flat()
    assert "maps.metrics.insertion" in open_run(folder).verify()[0]


def test_no_single_broken_byte_gives_another_error(folder: Path) -> None:
    file = folder / "shards" / shard_name(0)
    content, random = file.read_bytes(), np.random.default_rng(0)
    caught = 0
    for at in random.integers(0, len(content), 150):
        broken = bytearray(content)
        broken[at] ^= 1 << random.integers(8)
        file.write_bytes(broken)
        caught += bool(open_run(folder).verify())
    assert caught == 150


# ----------------------------------------------------------------------------------------------------------------- summary


def test_the_summary_counts_what_the_shards_hold(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["pictures"], summary["done"], summary["errors"]) == (10, 9, 1)
    assert summary["errors by stage"] == {"read": 1}
    assert summary["predicted"] == {"tabby": 9}
    mean = sum(0.5 * float(heat(number).max()) for number in range(10) if number != FAILED) / 9
    assert summary["methods"]["grad-cam"] == {
        "maps": 9,
        "mean evidence": pytest.approx(mean),
        "notices": {},
        "mean of metrics": {"deletion": pytest.approx(19 / 18)},
    }
    assert summary["methods"]["eigen-cam"]["notices"] == {"nearly empty": 9}
    digests = [hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted((folder / "shards").iterdir())]
    assert list(summary["files"].values()) == digests
    assert summary["table"] == hashlib.sha256("\n".join(digests).encode()).hexdigest()


def test_a_summary_holds_only_the_commonest_of_what_is_never_the_same(tmp_path: Path) -> None:
    def change(one: dict[str, Any]) -> None:
        one["predictions"] = [{"index": 0, "label": f"class {one['id']}", "probability": 1.0}]
        one["maps"][0] |= {
            "evidence": float("nan"),
            "notices": [f"only of x{one['id']}", f"of '{one['id']}', {one['id']} %"],
        }

    found = write_summary(make_run(tmp_path / "run", [f"{n:04}" for n in range(50)], failed=(), change=change))
    assert len(found["predicted"]) == 50
    assert next(iter(found["methods"]["grad-cam"]["notices"].items())) == ("of '...', N %", 50)
    assert len(found["methods"]["grad-cam"]["notices"]) == 20
    assert found["methods"]["grad-cam"]["mean evidence"] is None


# ------------------------------------------------------------------------------------------------------------------- merge


def test_merged_runs_hold_the_rows_of_all_in_fewer_files(folder: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", [f"dogs/{n}" for n in range(5)], failed=())
    merge([folder, other], tmp_path / "all")
    rows = pq.read_table(tmp_path / "all" / "part-00000.parquet")
    assert rows.to_pylist() == [*open_run(folder).arrow().to_pylist(), *open_run(other).arrow().to_pylist()]
    about = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert about["schema"] == "sightline.merged/1"
    assert about["plan"]["pictures"] == {"count": 15}
    assert about["files"]["part-00000.parquet"]["rows"] == 15
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/all/*.parquet'").fetchall() == [(15,)]


def test_a_merged_file_ends_with_the_shard_that_fills_it(folder: Path, tmp_path: Path) -> None:
    merge([folder], tmp_path / "all", rows_per_file=5)
    counts = [pq.read_metadata(one).num_rows for one in sorted((tmp_path / "all").glob("*.parquet"))]
    assert counts == [8, 2]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "shards" / shard_name(1)).unlink(), "1 shards are missing, the first is 000001.parquet"),
        (plan(batch=9), "batch was 8 and is 9"),
        (plan(methods={"grad-cam": {"relu": False}, "eigen-cam": {}}), "methods: grad-cam was {} and is"),
        (lambda f: rewrite(f, 0, swap), "comes after"),
    ],
)
def test_runs_that_do_not_fit_together_are_not_merged(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    other = make_run(tmp_path / "other", [f"dogs/{n}" for n in range(8)], failed=())
    spoil(other)
    with pytest.raises(OutputError, match=says):
        merge([folder, other], tmp_path / "all")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["other", "run"]


def test_a_picture_of_two_runs_is_named(folder: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", ["birds/1", IDS[5], "dogs/2"], failed=())
    with pytest.raises(OutputError, match=r"'cats/005\.jpg' is in .*run and again in .*other"):
        merge([folder, other], tmp_path / "all")
    with pytest.raises(OutputError, match="again in"):
        merge([folder, folder], tmp_path / "all")


def test_no_run_is_written_into_or_replaced(folder: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    for place in (folder, folder / "merged", tmp_path, folder / ".." / "run"):
        with pytest.raises(OutputError):
            merge([folder], place, force=True)
        with pytest.raises(OutputError):
            export(folder, place, force=True)
    assert tree(tmp_path) == before


def test_an_earlier_merge_is_replaced_with_force_only(folder: Path, tmp_path: Path) -> None:
    merge([folder], tmp_path / "all")
    with pytest.raises(OutputError, match="--force"):
        merge([folder], tmp_path / "all")
    merge([folder], tmp_path / "all", rows_per_file=1, force=True)
    assert len(list((tmp_path / "all").glob("*.parquet"))) == 3


# ------------------------------------------------------------------------------------------------------------------ export


def test_thumbnails_and_maps_become_files_with_an_index(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert [one["id"] for one in lines] == [name for at, name in enumerate(IDS) if at != FAILED]
    from PIL import Image

    for number, one in zip([n for n in range(10) if n != FAILED], lines, strict=True):
        with Image.open(tmp_path / "out" / one["thumbnail"]) as picture:
            assert (picture.format, picture.size) == ("JPEG", (8, 6))
        assert [each["method"] for each in one["maps"]] == list(METHODS)
        for each in one["maps"]:
            raw = np.load(tmp_path / "out" / each["map"])
            np.testing.assert_array_equal(raw, heat(number).astype(np.float32) * 0.5)
            with Image.open(tmp_path / "out" / each["picture"]) as picture:
                assert picture.size == (384, 288)


def test_only_what_was_asked_for_is_exported(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path / "a", what=["maps"], ids=[IDS[8], IDS[1]])
    assert not (tmp_path / "a" / "thumbnails").exists()
    assert len(list((tmp_path / "a" / "maps").glob("*.npy"))) == 4
    export(run, tmp_path / "b", what=["thumbnails"], limit=3)
    assert len(list((tmp_path / "b" / "thumbnails").iterdir())) == 3
    for ids, says in (([IDS[0], "gone"], "no picture 'gone'"), ([IDS[FAILED]], "cut off")):
        with pytest.raises(OutputError, match=says):
            export(run, tmp_path / "c", ids=ids)
    with pytest.raises(OutputError, match="thumbnails or maps"):
        export(run, tmp_path / "c", what=["heat"])
    assert not (tmp_path / "c").exists()


HOSTILE = (
    "", ".", "..", "../../escaped", "/etc/escaped", "a/b", "a\\b", "a_b", "A_B", "a\0b", "\x1b[2J", "\n", "-rf", "CON", "~",
    "x" * 5000, "x" * 4999, "é", "e\u0301", "犬", "\u202egpj.exe", "a--b", "a", "$(id)", "%2e%2e", "index.jsonl", "😀" * 100,
)  # fmt: skip


def test_hostile_ids_methods_and_labels_stay_in_the_folder_each_under_its_own_name(tmp_path: Path) -> None:
    ids = sorted(HOSTILE)
    names = iter(ids)

    def change(one: dict[str, Any]) -> None:
        name = next(names)
        one["maps"] = [{**one["maps"][0], "method": name, "label": name}] * 2

    run = make_run(tmp_path / "deep" / "run", ids, failed=(), change=change, methods={})
    export(run, tmp_path / "deep" / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["deep"]
    assert sorted(one.name for one in (tmp_path / "deep").iterdir()) == ["out", "run"]
    lines = [json.loads(line) for line in (tmp_path / "deep" / "out" / "index.jsonl").read_text().splitlines()]
    assert [one["id"] for one in lines] == ids
    written = [one["thumbnail"] for one in lines] + [each["map"] for one in lines for each in one["maps"]]
    assert len(set(written)) == 3 * len(ids)
    found = {one.relative_to(tmp_path / "deep" / "out").as_posix() for one in (tmp_path / "deep" / "out").rglob("*.*")}
    assert set(written) < found
    for name in written:
        assert len(Path(name).name) <= 255
        assert not Path(name).name.startswith((".", "-"))


def test_a_name_that_looks_like_anothers_changed_one_does_not_take_its_place(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"a/b").hexdigest()[:12]
    run = make_run(tmp_path / "run", sorted(["a/b", f"a_b-{digest}"]), failed=())
    export(run, tmp_path / "out")
    assert len(list((tmp_path / "out" / "thumbnails").iterdir())) == 2


def test_maps_that_are_not_numbers_are_written_as_they_are(tmp_path: Path) -> None:
    def spoil(one: dict[str, Any]) -> None:
        for each, value in zip(one["maps"], (np.nan, np.inf), strict=True):
            each["heat"] = np.array([1, 2, value, -3, 4, 5], np.float16)
            each["evidence"] = value

    run = open_run(make_run(tmp_path / "run", failed=(), change=spoil))
    export(run, tmp_path / "out", limit=1)
    found = [np.load(one) for one in sorted((tmp_path / "out" / "maps").glob("*.npy"))]
    np.testing.assert_array_equal(found[0], [[0.5, 1, np.inf], [-1.5, 2, 2.5]])
    np.testing.assert_array_equal(found[1], [[0.5, 1, np.nan], [-1.5, 2, 2.5]])


def test_a_hostile_thumbnail_is_not_written(tmp_path: Path) -> None:
    def spoil(one: dict[str, Any]) -> None:
        one["thumbnail"] = b"<script>"

    run = make_run(tmp_path / "run", change=spoil)
    with pytest.raises(OutputError, match=r"thumbnail of 'cats/000\.jpg'"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
