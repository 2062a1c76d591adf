"""Every picture of a data set is listed once, in the order of its id, and fetched from where it lies."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from sightline.data.images import read_image
from sightline.data.sets import Source, fetch, find_items, folders, items, places, tars
from sightline.data.sets import parquet as pictures_in_parquet
from sightline.errors import ImageError, MissingExtraError

COLUMNS = {"id": "string", "label": "string", "file": "string", "at": "int64", "size": "int64", "mtime": "int64", "problem": "string"}  # fmt: skip
LABELS = ["cat", "dog"]


def png(number: int) -> bytes:
    """A picture that is known by its red."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    return path


def ids(source: Source) -> list[str]:
    return source.items["id"].to_pylist()


def column(source: Source, name: str) -> dict[str, Any]:
    return dict(zip(ids(source), source.items[name].to_pylist(), strict=True))


def red(source: Source) -> dict[str, int]:
    """What is seen of each item without a problem, fetched in the order of the table."""
    seen = {}
    for row in source.items.to_pylist():
        if row["problem"] is None:
            got = fetch(source.kind, source.root, row["file"], row["at"], row["size"])
            seen[row["id"]] = read_image(got)[0].getpixel((0, 0))[0]
    return seen


def found(data: Any, **more: Any) -> Source:
    """`find_items`, with what must hold of every table."""
    source = find_items(data, **more)
    assert {one.name: str(one.type) for one in source.items.schema} == COLUMNS
    names = ids(source)
    assert names == sorted(set(names), key=str.encode)
    return source


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_gives_all_pictures_below_it_and_each_ones_folder_as_its_label(tmp_path: Path) -> None:
    put(tmp_path / "b.png", 1)
    put(tmp_path / "cat" / "z.PNG", 2)
    put(tmp_path / "cat" / "deep" / "a.png", 3)
    (tmp_path / "notes.txt").write_text("no picture")
    source = found(tmp_path)
    assert (source.kind, source.root) == ("files", str(tmp_path))
    assert red(source) == {"b.png": 1, "cat/z.PNG": 2, "cat/deep/a.png": 3}
    assert column(source, "label") == {"b.png": None, "cat/z.PNG": "cat", "cat/deep/a.png": "deep"}
    known = (tmp_path / "b.png").stat()
    assert column(source, "size")["b.png"] == known.st_size
    assert column(source, "mtime")["b.png"] == known.st_mtime_ns


def test_the_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "B.png", "a-b.png", "é.png", "a/b.png", "\U0001f431.png", "\uffee.png"):
        put(tmp_path / name)
    assert ids(found(tmp_path)) == ["B.png", "a-b.png", "a.png", "a/b.png", "é.png", "\uffee.png", "\U0001f431.png"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".git/c.png", "d/.e/f.png"):
        put(tmp_path / name)
    assert ids(found(tmp_path)) == ["a.png"]


def test_a_linked_picture_is_an_item_with_a_problem_and_a_linked_folder_is_left_out(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "a.png").parent
    data = put(tmp_path / "data" / "a.png").parent
    (data / "link.png").symlink_to(outside / "a.png")
    (data / "lost.png").symlink_to(outside / "no.png")
    (data / "folder").symlink_to(outside)
    (data / "folder.png").symlink_to(outside)
    (data / "loop").symlink_to(data)
    problems = column(found(data), "problem")
    assert list(problems) == ["a.png", "link.png", "lost.png"]
    assert problems["a.png"] is None
    assert "link" in problems["link.png"]
    assert "link" in problems["lost.png"]


def test_a_folder_that_is_a_link_itself_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "real" / "a.png", 7)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert red(found(tmp_path / "link")) == {"a.png": 7}


def test_a_pipe_with_a_pictures_suffix_is_an_item_with_a_problem(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert column(found(tmp_path), "problem") == {"a.png": None, "pipe.png": "is not a regular file"}


@pytest.mark.parametrize("name", ["a.png", "a.csv", "a.tar", "a.parquet"])
def test_a_pipe_that_is_named_itself_is_refused_without_being_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ImageError, match=f"{name} is not a regular file"):
        find_items(tmp_path / name)


def test_a_folder_with_a_pictures_suffix_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "odd.png" / "a.png")
    assert ids(found(tmp_path)) == ["odd.png/a.png"]


def test_a_name_that_is_no_utf_8_is_an_item_with_a_problem_and_always_the_same_id(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/sub/\xff\xe9.png"))).write_bytes(png(1))
    put(tmp_path / "good.png")
    source = found(tmp_path)
    assert ids(source) == ["good.png", r"sub/\udcff\udce9.png"]
    assert "not UTF-8" in source.items["problem"][1].as_py()
    assert source.items["problem"][0].as_py() is None
    with pytest.raises(ImageError, match="not UTF-8"):
        find_items(os.fsdecode(os.fsencode(tmp_path) + b"/sub/\xff"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root lists every folder")
def test_a_folder_that_cant_be_listed_is_an_item_with_a_problem(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    closed = put(tmp_path / "closed" / "b.png").parent
    closed.chmod(0)
    try:
        problems = column(found(tmp_path), "problem")
    finally:
        closed.chmod(0o700)
    assert list(problems) == ["a.png", "closed"]
    assert "can't be listed" in problems["closed"]


def test_a_folder_whose_path_is_too_long_is_an_item_with_a_problem(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):  # each step is short, the whole is longer than a path may be
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    problems = column(found(tmp_path), "problem")
    assert len(problems) == 2
    assert problems.pop("a.png") is None
    assert "can't be listed" in next(iter(problems.values()))


def test_one_picture_is_a_data_set_of_one(tmp_path: Path) -> None:
    source = found(put(tmp_path / "cat" / "a.png", 9))
    assert red(source) == {"a.png": 9}
    assert column(source, "label") == {"a.png": None}


def test_a_limit_takes_items_evenly_over_the_sorted_ids(tmp_path: Path) -> None:
    for number in range(10):
        put(tmp_path / f"{number}.png")
    assert ids(found(tmp_path, limit=4)) == ["0.png", "3.png", "6.png", "9.png"]
    assert ids(found(tmp_path, limit=1)) == ["0.png"]
    assert len(ids(found(tmp_path, limit=99))) == 10


def test_who_watches_is_told_how_many_were_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        put(tmp_path / f"{number}.png")
    monkeypatch.setattr(items, "CHUNK", 2)
    counts: list[int] = []
    found(tmp_path, watch=counts.append)
    assert counts == [2, 4, 5]


@pytest.mark.parametrize("name", ["", "missing", "notes.txt", "empty", "nothing*/*.jpg", "photos.zip"])
def test_what_holds_no_picture_is_refused_with_what_was_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("notes.txt", "photos.zip"):
        (tmp_path / file).write_text("no picture")
    with pytest.raises(ImageError, match="expected"):
        find_items(tmp_path / name)


def test_compressed_tars_are_refused_with_what_to_do(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst"):
        (tmp_path / name).write_bytes(b"")
        for data in (tmp_path / name, tmp_path, tmp_path / f"*{name}"):
            with pytest.raises(ImageError, match=r"compressed.*unpack"):
                find_items(data)


def test_pictures_win_over_tars_and_tars_over_tables(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": [png(1)]}), tmp_path / "a.parquet")
    assert red(found(tmp_path)) == {"a/000000000": 1}
    write_tar(tmp_path / "b.tar", {"x.png": png(2)})
    assert red(found(tmp_path)) == {"b.tar/x.png": 2}
    put(tmp_path / "c.png", 3)
    assert red(found(tmp_path)) == {"c.png": 3}


# ------------------------------------------------------------------------------------------------------------ patterns


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("**/*.png", ["a.png", "x/b.png", "x/deep/b2.png", "y/c.png"]),
        ("*.png", ["a.png"]),
        ("*/*.png", ["x/b.png", "y/c.png"]),
        ("**/b*.png", ["x/b.png", "x/deep/b2.png"]),
        ("[xy]/?.png", ["x/b.png", "y/c.png"]),
        ("x/*.png", ["b.png"]),
        ("x/**", ["b.png", "deep/b2.png"]),
        ("*/deep/*", ["x/deep/b2.png"]),
        ("**/deep/**/*.png", ["x/deep/b2.png"]),
        ("**/*.jpg", None),
    ],
)
def test_a_pattern_gives_what_fits_it_named_from_where_it_is_fixed(
    pattern: str, wanted: list[str] | None, tmp_path: Path
) -> None:
    for name in ("a.png", "x/b.png", "x/deep/b2.png", "y/c.png", ".h/d.png"):
        put(tmp_path / name)
    if wanted is None:
        with pytest.raises(ImageError, match=r"no picture in .*jpg; expected"):
            find_items(f"{tmp_path}/{pattern}")
    else:
        assert ids(found(f"{tmp_path}/{pattern}")) == wanted


def test_a_pattern_of_a_relative_path_is_looked_for_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "photos" / "cat" / "a.png", 5)
    monkeypatch.chdir(tmp_path)
    source = found("photos/*/*.png")
    monkeypatch.chdir("/")
    assert red(source) == {"cat/a.png": 5}
    assert column(source, "label") == {"cat/a.png": "cat"}


def test_a_file_whose_name_has_a_star_is_that_file(tmp_path: Path) -> None:
    put(tmp_path / "a*.png", 1)
    put(tmp_path / "ab.png", 2)
    assert red(found(tmp_path / "a*.png")) == {"a*.png": 1}


# --------------------------------------------------------------------------------------------------------------- lists


def test_a_list_names_pictures_from_its_own_folder_or_by_a_whole_path(tmp_path: Path) -> None:
    put(tmp_path / "lists" / "in" / "a, b.png", 1)
    whole = put(tmp_path / "out.png", 2)
    (tmp_path / "lists" / "link.png").symlink_to(whole)
    table = f'label,image\ncat,"in/a, b.png"\n,{whole}\ndog,../out.png\n"say ""x""",link.png\nNA,no.png\n'
    (tmp_path / "lists" / "list.csv").write_text("\ufeff" + table, encoding="utf-8")
    source = found(tmp_path / "lists" / "list.csv")
    assert red(source) == {"in/a, b.png": 1, str(whole): 2, "../out.png": 2, "link.png": 2}
    assert column(source, "label") == {
        "in/a, b.png": "cat", str(whole): None, "../out.png": "dog", "link.png": 'say "x"', "no.png": "NA",
    }  # fmt: skip
    assert column(source, "problem")["no.png"] == "doesn't exist"
    assert column(source, "size")["../out.png"] == whole.stat().st_size


def test_a_list_may_give_ids_and_name_a_picture_twice(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 4)
    (tmp_path / "list.csv").write_text("id,image\n007,a.png\n1,a.png\n3,\n")
    source = found(tmp_path / "list.csv")
    assert red(source) == {"007": 4, "1": 4}
    assert column(source, "problem")["3"] == "has no path in the list"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image\na.png\nb.png\na.png\n", "two items have the id 'a.png'"),
        ("image,id\na.png,1\nb.png,1\n", "the id '1': [ab].png and [ab].png"),
        ("file,label\na.png,cat\n", "columns file, label; expected a column image"),
        ("image,image\na.png,b.png\n", "2 columns 'image'"),
        ("image,label\na.png\n", "can't be read as a list"),
        ("image\n", "there is no picture in"),
        ("image,label\n,cat\n", "row 1 .*names no picture"),
        ("", "can't be read as a list"),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_what_is_wrong(text: str, said: str, tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ImageError, match=said):
        find_items(tmp_path / "list.csv")


def test_a_list_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"image\n\xff\xfe.png\n")
    with pytest.raises(ImageError, match="can't be read as a list"):
        find_items(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["image", "path"])
@pytest.mark.parametrize("categories", [False, True])
def test_parquet_with_paths_is_a_list(name: str, categories: bool, tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1)
    put(tmp_path / "b.png", 2)
    labels = pa.array(["cat", None])
    table = {name: ["a.png", "b.png"], "label": labels.dictionary_encode() if categories else labels, "id": [10, 9]}
    parquet.write_table(pa.table(table), tmp_path / "list.parquet")
    source = found(tmp_path / "list.parquet")
    assert source.kind == "files"
    assert red(source) == {"10": 1, "9": 2}
    assert column(source, "label") == {"10": "cat", "9": None}


def test_a_folder_of_parquet_lists_is_one_list(tmp_path: Path) -> None:
    put(tmp_path / "pictures" / "a.png", 1)
    put(tmp_path / "pictures" / "b.png", 2)
    lists = tmp_path / "lists"
    lists.mkdir()
    parquet.write_table(pa.table({"image": ["../pictures/a.png"], "label": [3]}), lists / "0.parquet")
    parquet.write_table(pa.table({"image": ["../pictures/b.png"]}), lists / "1.parquet")
    (lists / "2.parquet").write_bytes(b"PAR1 broken")
    source = found(lists)
    assert red(source) == {"../pictures/a.png": 1, "../pictures/b.png": 2}
    assert column(source, "label") == {"../pictures/a.png": "3", "../pictures/b.png": None, "2.parquet": None}
    assert "can't be read as Parquet" in column(source, "problem")["2.parquet"]


# -------------------------------------------------------------------------------------------------- pictures in tables

FEATURES = {"image": {"_type": "Image"}, "label": {"names": LABELS, "_type": "ClassLabel"}}


def pictures(numbers: list[int], nested: bool = True) -> pa.Array:
    content = [png(one) for one in numbers]
    if not nested:
        return pa.array(content)
    return pa.array([{"bytes": one, "path": "x.png"} for one in content], IMAGES)


IMAGES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def as_hugging_face(columns: Mapping[str, Any], features: Mapping[str, Any]) -> pa.Table:
    said = json.dumps({"info": {"features": features}})
    return pa.table(dict(columns)).replace_schema_metadata({"huggingface": said})


@pytest.mark.parametrize("nested", [True, False])
def test_pictures_are_read_from_parquet(nested: bool, tmp_path: Path) -> None:
    table = {"image": pictures(list(range(7)), nested), "label": list("aabbccd")}
    parquet.write_table(pa.table(table), tmp_path / "train-0.parquet", row_group_size=3)
    source = found(tmp_path / "train-0.parquet")
    assert source.kind == "parquet"
    assert red(source) == {f"train-0/{row:09d}": row for row in range(7)}
    assert source.items["label"].to_pylist() == list("aabbccd")
    assert source.items["at"].to_pylist() == list(range(7))


def test_numbers_of_classes_become_their_names_where_hugging_face_says_them(tmp_path: Path) -> None:
    columns = {"image": pictures([1, 2, 3, 4]), "label": [0, 1, -1, None]}
    parquet.write_table(as_hugging_face(columns, FEATURES), tmp_path / "a.parquet")
    assert found(tmp_path).items["label"].to_pylist() == ["cat", "dog", None, None]
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert found(tmp_path).items["label"].to_pylist() == ["0", "1", "-1", None]


@pytest.mark.parametrize("kept", [pictures_in_parquet._DECODED, 2000, 0])
def test_rows_of_parquet_are_fetched_in_any_order_and_by_many_threads(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_in_parquet, "_DECODED", kept)
    for name in ("a", "b", "c"):
        table = {"image": pictures(list(range(40))), "id": [f"{(row * 7) % 40:02d}{name}" for row in range(40)]}
        parquet.write_table(pa.table(table), tmp_path / f"{name}.parquet", row_group_size=17)
    source = found(tmp_path)
    assert ids(source)[:4] == ["00a", "00b", "00c", "01a"]
    assert red(source) == {f"{(row * 7) % 40:02d}{name}": row for row in range(40) for name in "abc"}
    rows = source.items.to_pylist()
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda row: fetch("parquet", source.root, row["file"], row["at"], -1), rows))
    assert got == [png(row["at"]) for row in rows]


def test_a_cell_of_parquet_without_bytes_is_the_file_that_its_path_names(tmp_path: Path) -> None:
    put(tmp_path / "p" / "a.png", 5)
    cells = [{"bytes": None, "path": "p/a.png"}, {"bytes": png(6), "path": None}, {"bytes": None, "path": None}, None]
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.table({"image": pa.array(cells, IMAGES)}), tmp_path / "a.parquet")
    source = found(tmp_path / "a.parquet")
    assert fetch("parquet", source.root, "a.parquet", 0, -1) == str(tmp_path / "p" / "a.png")
    assert fetch("parquet", source.root, "a.parquet", 1, -1) == png(6)
    for row in (2, 3):
        with pytest.raises(ImageError, match="neither bytes nor a path"):
            fetch("parquet", source.root, "a.parquet", row, -1)


def test_little_of_a_parquet_file_is_decoded_at_a_time_however_often_it_repeats_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_in_parquet, "_DECODED", 20_000_000)
    once = bytes(500_000)
    table = pa.table({"image": pa.array([once] * 200)})  # 100 MB, of which the file keeps one picture
    parquet.write_table(table, tmp_path / "a.parquet")
    del table
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    before = pa.total_allocated_bytes()
    assert len(fetch("parquet", str(tmp_path), "a.parquet", 199, -1)) == len(once)
    assert pa.total_allocated_bytes() - before < 2 * pictures_in_parquet._DECODED


def test_a_table_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    for number in (1, 2):
        parquet.write_table(pa.table({"image": pictures([number, 3])}), tmp_path / "new")
        (tmp_path / "new").replace(file)
        assert fetch("parquet", str(tmp_path), "a.parquet", 0, -1) == png(number)
    parquet.write_table(pa.table({"image": pictures([1])}), tmp_path / "new")
    (tmp_path / "new").replace(file)
    with pytest.raises(ImageError, match=r"a.parquet at 1 can't be read|no row 1"):
        fetch("parquet", str(tmp_path), "a.parquet", 1, -1)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"picture": [b"x"], "other": [1]}, "columns picture, other; expected a column image"),
        ({"image": [1.5]}, "column image holds double"),
        ({"image": [[b"x"]]}, "column image holds list"),
        ({"image": [b"x"], "label": [0.5]}, "column label holds double"),
        ({"image": [b"x"], "id": [[1]]}, "column id holds list"),
    ],
)
def test_a_table_of_another_kind_is_refused_with_its_kind(columns: Any, said: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ImageError, match=said):
        find_items(tmp_path / "a.parquet")


def test_paths_and_pictures_in_one_folder_of_tables_are_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": ["a.png"]}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"image": [png(1)]}), tmp_path / "b.parquet")
    with pytest.raises(ImageError, match=r"a.parquet lists paths and b.parquet holds pictures"):
        find_items(tmp_path)


def save(folder: Path, tables: list[pa.Table], features: Mapping[str, Any]) -> Path:
    """The form of `Dataset.save_to_disk`: Arrow streams with two JSON files."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": dict(features)}))
    return folder


def arrow(numbers: list[int], labels: list[int]) -> pa.Table:
    return pa.table({"text": ["unused"] * len(numbers), "image": pictures(numbers), "label": labels})


def test_a_data_set_that_hugging_face_saved_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", [arrow([1, 2, 3], [0, 1, 0]), arrow([4, 5], [1, -1])], FEATURES)
    source = found(folder)
    assert source.kind == "arrow"
    assert red(source) == {f"{row:09d}": row + 1 for row in range(5)}
    assert source.items["label"].to_pylist() == ["cat", "dog", "cat", "dog", None]
    assert source.items["at"].to_pylist() == [0, 1, 2, 0, 1]
    assert source.items["size"].to_pylist() == [len(png(number)) for number in range(1, 6)]


def test_the_splits_of_a_saved_data_set_begin_its_ids(tmp_path: Path) -> None:
    with_ids = arrow([3], [1]).append_column("id", pa.array(["000000000"]))
    save(tmp_path / "train", [arrow([1, 2], [0, 1])], FEATURES)
    save(tmp_path / "test", [with_ids], FEATURES)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = found(tmp_path)
    assert red(source) == {"test/000000000": 3, "train/000000000": 1, "train/000000001": 2}


def test_the_column_of_pictures_is_found_by_its_feature_and_several_are_refused(tmp_path: Path) -> None:
    image, label = FEATURES["image"], FEATURES["label"]
    table = arrow([1, 2], [0, 1]).rename_columns(["text", "photo", "fine"])
    source = found(save(tmp_path / "one", [table], {"photo": image, "fine": label}))
    assert list(red(source).values()) == [1, 2]
    assert source.items["label"].to_pylist() == LABELS
    table = table.append_column("mask", pictures([8, 9]))
    with pytest.raises(ImageError, match="columns photo, mask; rename"):
        find_items(save(tmp_path / "two", [table], {"photo": image, "mask": image}))
    table = table.rename_columns(["text", "photo", "fine", "image"])
    source = found(save(tmp_path / "three", [table], {"photo": image, "image": image}))
    assert list(red(source).values()) == [8, 9]


def test_a_saved_picture_without_bytes_is_the_file_that_its_path_names(tmp_path: Path) -> None:
    whole = str(put(tmp_path / "a.png", 5))
    cells = [{"bytes": png(1), "path": "a.png"}, {"bytes": None, "path": whole}, {"bytes": None, "path": "/no/b.png"}, None]  # fmt: skip
    source = found(save(tmp_path / "set", [pa.table({"image": pa.array(cells, IMAGES)})], {}))
    assert red(source) == {"000000000": 1, "000000001": 5}
    assert source.items["file"][1].as_py() == whole
    assert source.items["problem"].to_pylist()[2:] == ["doesn't exist", "has neither bytes nor a path in the table"]


def test_what_is_broken_of_a_saved_data_set_is_an_item_with_a_problem(tmp_path: Path) -> None:
    tables = [arrow([number], [0]) for number in range(4)]
    folder = save(tmp_path / "set", tables, FEATURES)
    (folder / "data-00001-of-00004.arrow").unlink()
    (folder / "data-00002-of-00004.arrow").write_bytes(b"\xff" * 100)
    problems = {one: said for one, said in column(found(folder), "problem").items() if said}
    assert list(problems) == ["data-00001-of-00004.arrow", "data-00002-of-00004.arrow"]
    assert problems["data-00001-of-00004.arrow"] == "doesn't exist"
    assert "can't be read as Arrow" in problems["data-00002-of-00004.arrow"]


def test_a_saved_table_whose_offsets_point_outside_is_not_followed(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", [pa.table({"image": [b"0123456789", b"abcdefghij"]})], {})
    assert len(found(folder).items) == 2
    (file,) = folder.glob("*.arrow")
    good, evil = (np.array([0, 10, last], np.int32).tobytes() for last in (20, 2_000_000_000))
    assert file.read_bytes().count(good) == 1
    file.write_bytes(file.read_bytes().replace(good, evil))
    with pytest.raises(ImageError, match="can't be read"):
        fetch("arrow", str(folder), file.name, 1, -1)
    assert "can't be read as Arrow" in found(folder).items["problem"][0].as_py()


@pytest.mark.parametrize(
    "state",
    [
        "{",
        "[]",
        '{"_data_files": [{"filename": "../other/data.arrow"}]}',
        '{"_data_files": [{"filename": 3}]}',
        '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]}',
    ],
)
def test_a_saved_data_set_of_another_form_is_refused(state: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "set", [arrow([1], [0])], FEATURES)
    (folder / "state.json").write_text(state)
    with pytest.raises(ImageError, match=r"state\.json .*save"):
        find_items(folder)


# ---------------------------------------------------------------------------------------------------------------- tars


def write_tar(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


LONG = f"{'deep/' * 40}{'n' * 90}.png"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pictures_in_tars_are_listed_with_their_place_and_label(form: int, tmp_path: Path) -> None:
    first = {
        "a.cls": b"7\n", "a.png": png(1), "b.png": png(2), "b.json": b'{"label": "dog", "x": [1]}', "c.PNG": png(3),
        "d/a.png": png(4), "./e.png": png(5), "f.left.png": png(6), "f.cls": b"0", "notes.txt": b"x", "._a.png": b"mac",
        "g.json": b"[" * 100_000, "g.png": png(8), "h.json": b'{"label": [1]}', "h.png": png(9),
    }  # fmt: skip
    if form != tarfile.USTAR_FORMAT:
        first |= {LONG: png(7)}
    write_tar(tmp_path / "s-000.tar", first, form)
    write_tar(tmp_path / "sub" / "s-001.tar", {"a.png": png(11)}, form)
    source = found(tmp_path)
    assert source.kind == "tar"
    wanted = {"a.png": 1, "b.png": 2, "c.PNG": 3, "d/a.png": 4, "e.png": 5, "f.left.png": 6, "g.png": 8, "h.png": 9}
    wanted |= {LONG: 7} if LONG in first else {}
    whole = {f"s-000.tar/{name}": number for name, number in wanted.items()} | {"sub/s-001.tar/a.png": 11}
    assert red(source) == whole
    labels = {name: said for name, said in column(source, "label").items() if said}
    assert labels == {"s-000.tar/a.png": "7", "s-000.tar/b.png": "dog", "s-000.tar/f.left.png": "0"}


def test_tars_are_named_one_by_one_by_a_pattern_or_by_a_range(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / f"s-{number:03d}.tar", {"a.png": png(number)})
    assert red(found(tmp_path / "s-002.tar")) == {"s-002.tar/a.png": 2}
    assert red(found(f"{tmp_path}/s-*2.tar")) == {"s-002.tar/a.png": 2}
    source = found(f"{tmp_path}/s-{{001..004}}.tar")
    assert red(source) == {f"s-{number:03d}.tar/a.png": number for number in (1, 2, 3)}
    assert column(source, "problem")["s-004.tar"] == "doesn't exist"
    for data in ("s-{3..1}.tar", "s-{0..9999999}.tar"):
        with pytest.raises(ImageError, match=r"is no range|stands for 10,000,000 files"):
            find_items(f"{tmp_path}/{data}")


@pytest.mark.parametrize(("text", "names"), [("{8..10}", ["8", "9", "10"]), ("{08..10}", ["08", "09", "10"]), ("{0..10}", [*list("0123456789"), "10"]), ("{0..1}{2..3}", ["02", "03", "12", "13"])])  # fmt: skip
def test_a_range_is_written_out_as_a_shell_does(text: str, names: list[str]) -> None:
    assert folders.expanded(f"a{text}.tar") == [f"a{one}.tar" for one in names]


def test_a_name_that_a_tar_holds_twice_is_two_items(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"x.png": png(1)})
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("x.png")
        member.size = len(png(2))
        tar.addfile(member, io.BytesIO(png(2)))
    assert red(found(path)) == {"a.tar/x.png": 1, "a.tar/x.png#2": 2}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_sparse_picture_in_a_tar_is_an_item_with_a_problem(form: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        member = tarfile.TarInfo("s.png" if form == tarfile.GNU_FORMAT else "GNUSparseFile.1/s.png")
        if form == tarfile.GNU_FORMAT:
            member.type = tarfile.GNUTYPE_SPARSE
        else:
            member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "s.png"}
        member.size = 512
        tar.addfile(member, io.BytesIO(bytes(512)))
        member = tarfile.TarInfo("z.png")
        member.size = len(png(1))
        tar.addfile(member, io.BytesIO(png(1)))
    source = found(tmp_path)
    assert "sparse" in column(source, "problem")["a.tar/s.png"]
    assert red(source) == {"a.tar/z.png": 1}


def test_links_and_devices_in_a_tar_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("f.png", tarfile.FIFOTYPE), ("d.png", tarfile.DIRTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("a.png")
        member.size = len(png(1))
        tar.addfile(member, io.BytesIO(png(1)))
    assert red(found(tmp_path)) == {"a.tar/a.png": 1}


def cut_in_header(data: bytes) -> bytes:
    return data[:2148]


def cut_in_picture(data: bytes) -> bytes:
    return data[:1560]


def other_bytes(data: bytes) -> bytes:
    return data[:2048] + b"\xff" * (len(data) - 2048)


def negative_size(data: bytes) -> bytes:
    header = bytearray(data[2048:2560])
    header[124:136] = b"\xff" * 8 + (-512).to_bytes(4, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:2048] + bytes(header) + data[2560:]


def huge_header(data: bytes) -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 8_000_000_000
    return data[:2048] + member.tobuf(tarfile.USTAR_FORMAT) + data[2048:]


def headers_without_end(data: bytes) -> bytes:
    member = tarfile.TarInfo("x")
    member.type = tarfile.XHDTYPE
    return data[:2048] + member.tobuf(tarfile.USTAR_FORMAT) * 5000


@pytest.mark.parametrize(
    "damage", [cut_in_header, cut_in_picture, other_bytes, negative_size, huge_header, headers_without_end]
)
def test_a_broken_tar_gives_what_comes_before_and_an_item_that_says_where(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": png(1), "2.png": png(2), "3.png": png(3)}, tarfile.USTAR_FORMAT)
    path.write_bytes(damage(path.read_bytes()))
    write_tar(tmp_path / "b.tar", {"1.png": png(4)})
    source = found(tmp_path)
    problems = column(source, "problem")
    assert problems["a.tar"].startswith("is broken after ")
    assert red(source)["a.tar/1.png"] == 1
    assert red(source)["b.tar/1.png"] == 4
    if damage is cut_in_picture:
        assert "cut off" in problems["a.tar/2.png"]


def test_what_is_no_tar_is_an_item_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "link.tar").symlink_to(write_tar(tmp_path / "good.tar", {"1.png": png(1)}))
    problems = {name: said for name, said in column(found(tmp_path), "problem").items() if said}
    assert list(problems) == ["a.tar", "link.tar", "pipe.tar"]
    assert problems["a.tar"].startswith("is broken")


def test_a_tar_that_shrank_since_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": png(1), "2.png": png(2)})
    source = found(path)
    assert len(red(source)) == 2
    row = source.items.to_pylist()[1]
    os.truncate(path, row["at"] + 10)
    with pytest.raises(ImageError, match=r"a\.tar ends \d+ bytes before its picture"):
        fetch("tar", source.root, row["file"], row["at"], row["size"])


def test_many_threads_and_a_forked_process_read_one_tar_without_disturbing_each_other(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number:03d}.png": png(number) for number in range(200)})
    source = found(tmp_path)
    rows = source.items.to_pylist() * 3
    assert len(red(source)) == 200  # the file is open now

    def get(row: Mapping[str, Any]) -> Any:
        return fetch("tar", source.root, row["file"], row["at"], row["size"])

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(get, rows))
    assert got == [png(number) for number in range(200)] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's word of caution about threads and forks
        child = os.fork()
    if child == 0:
        good = False
        try:
            good = [get(row) for row in rows] == got
        finally:
            os._exit(0 if good else 1)
    assert [get(row) for row in rows] == got
    assert os.waitpid(child, 0)[1] == 0


def test_files_of_tars_stay_open_and_only_a_few_of_them(tmp_path: Path) -> None:
    for number in range(40):
        write_tar(tmp_path / f"{number:02d}.tar", {f"{name}.png": png(number) for name in "abc"})
    source = found(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert len(red(source)) == 120
    assert len(os.listdir("/proc/self/fd")) - before <= 16
    assert tars._opened.cache_info().misses < tars._opened.cache_info().hits


# ----------------------------------------------------------------------------------------------------------- addresses


@pytest.fixture
def store() -> Iterator[Any]:
    """A store behind an address, as S3 is one."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_pictures_at_an_address_are_listed_and_fetched(store: Any) -> None:
    for number, name in enumerate(("a.png", "cat/b.png", ".hid/c.png", "cat/.d.png", "cat/e.txt")):
        store.pipe(f"/bucket/set/{name}", png(number))
    source = found("memory://bucket/set")
    assert (source.kind, source.root) == ("files", "memory:///bucket/set")
    assert red(source) == {"a.png": 0, "cat/b.png": 1}
    assert column(source, "label") == {"a.png": None, "cat/b.png": "cat"}
    assert column(source, "size")["a.png"] == len(png(0))
    assert column(source, "mtime")["a.png"] > 10**18
    assert ids(found("memory://bucket/set/")) == ["a.png", "cat/b.png"]
    assert red(found("memory://bucket/set/cat/b.png")) == {"b.png": 1}
    assert red(found("memory://bucket/**/b*.png")) == {"set/cat/b.png": 1}
    assert red(found("memory://bucket/set/*.png")) == {"a.png": 0}


def test_tars_lists_and_tables_at_an_address_are_read_as_they_are_here(store: Any, tmp_path: Path) -> None:
    for number in (0, 1):
        path = write_tar(tmp_path / f"s-{number}.tar", {"a.cls": b"cat", "a.png": png(number)})
        store.pipe(f"/b/tars/{path.name}", path.read_bytes())
    wanted = {"s-0.tar/a.png": 0, "s-1.tar/a.png": 1}
    for data in ("memory://b/tars", "memory://b/tars/*.tar", "memory://b/tars/s-{0..1}.tar"):
        source = found(data)
        assert red(source) == wanted
        assert set(source.items["label"].to_pylist()) == {"cat"}
    assert column(found("memory://b/tars/s-{1..2}.tar"), "problem")["s-2.tar"].startswith("can't be found")
    whole = put(tmp_path / "here.png", 7)
    store.pipe("/b/in/a.png", png(5))
    store.pipe("/b/list.csv", f"image,label\nin/a.png,dog\nmemory://b/in/a.png,\nfile://{whole},\n".encode())
    assert red(found("memory://b/list.csv")) == {"in/a.png": 5, "memory://b/in/a.png": 5, f"file://{whole}": 7}
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"image": pictures([3, 4]), "label": ["x", "y"]}), buffer)
    store.pipe("/b/t/a.parquet", buffer.getvalue())
    for data in ("memory://b/t/a.parquet", "memory://b/t"):
        assert red(found(data)) == {"a/000000000": 3, "a/000000001": 4}


def test_an_address_of_files_that_are_here_is_their_folder(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png", 3)
    (tmp_path / "link.png").symlink_to(tmp_path / "cat" / "a.png")
    source = found(f"file://{tmp_path}")
    assert source.root == str(tmp_path)
    assert red(source) == {"cat/a.png": 3}
    assert list(column(source, "problem")) == ["cat/a.png", "link.png"]
    assert red(found(f"file://{tmp_path}/*/a.png")) == {"cat/a.png": 3}


def test_a_picture_that_left_its_address_is_refused_by_name(store: Any) -> None:
    store.pipe("/b/a.png", png(1))
    source = found("memory://b")
    store.rm("/b/a.png")
    with pytest.raises(ImageError, match=r"a\.png can't be read: no such file"):
        red(source)


def test_a_list_cant_name_a_chain_of_addresses(tmp_path: Path) -> None:
    name = "reference://a.png::memory://b/evil.json"
    (tmp_path / "list.csv").write_text(f"image\n{name}\n")
    assert "chain of addresses" in found(tmp_path / "list.csv").items["problem"][0].as_py()
    with pytest.raises(ImageError, match="chain of addresses"):
        fetch("files", str(tmp_path), name, -1, -1)


def test_a_folder_of_an_address_that_was_given_as_a_pattern_without_a_picture_is_refused(store: Any) -> None:
    store.pipe("/b/a.txt", b"x")
    for data in ("memory://b", "memory://b/*.png", "memory://no/*.png"):
        with pytest.raises(ImageError, match=r"there is no picture in memory://"):
            find_items(data)


def test_an_address_that_nothing_opens_is_refused(store: Any) -> None:
    with pytest.raises(ImageError, match="nowhere://x can't be read"):
        find_items("nowhere://x")
    with pytest.raises(ImageError, match="memory://b/no doesn't exist"):
        find_items("memory://b/no")


def test_an_address_whose_driver_is_missing_says_what_to_install() -> None:
    with pytest.raises(MissingExtraError, match=r"s3://bucket/x can't be opened: .*s3fs"):
        find_items("s3://bucket/x")


# --------------------------------------------------------------------------------------------------------------- fetch


def test_a_file_comes_as_its_path_so_that_it_is_not_held_twice(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    assert fetch("files", str(tmp_path), "a.png", -1, 10) == str(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["files", "tar", "arrow", "parquet"])
def test_more_than_500_mb_are_refused_before_they_are_read(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=re.escape("has 500,000,001 bytes; the limit is 500,000,000")):
        fetch(kind, str(tmp_path), "not there", 0, 500_000_001)


def test_a_large_file_at_an_address_is_refused_also_where_its_size_was_not_known(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe("/b/a.png", png(1))
    monkeypatch.setattr(places, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="the limit is 10"):
        fetch("files", "memory://b", "a.png", -1, -1)


@pytest.mark.parametrize("kind", ["tar", "arrow", "parquet"])
def test_a_file_that_is_gone_or_something_else_now_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="gone at 0 can't be read: no such file"):
        fetch(kind, str(tmp_path), "gone", 0, 10)
    (tmp_path / "other").write_bytes(b"oth")
    with pytest.raises(ImageError, match="other"):
        fetch(kind, str(tmp_path), "other", 0, 10)


def test_a_spawned_process_fetches_what_this_one_listed(tmp_path: Path) -> None:
    save(tmp_path / "set", [arrow([1, 2], [0, 1])], FEATURES)
    source = found(tmp_path / "set")
    row = source.items.to_pylist()[1]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(fetch, (source.kind, source.root, row["file"], row["at"], row["size"]))
    assert got == png(2)
