"""Folders of pictures as training data: read once, split honestly, and refused with what to change."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import TrainingError
from sightline.train.folders import Example, Folders, class_weights, read_folders, said, split

Tree = Callable[..., Path]


def picture(path: Path, seed: object) -> Path:
    """A small picture of which every seed has its own content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(repr(seed).encode())).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Tree:
    """Makes a folder of data: `data(train__cat=3)` gives train/cat/0.png to 2.png, every picture another."""

    def make(**counts: int) -> Path:
        for folder, count in counts.items():
            for number in range(count):
                picture(tmp_path / "data" / folder.replace("__", "/") / f"{number}.png", (folder, number))
        return tmp_path / "data"

    return make


def names(examples: tuple[Example, ...]) -> list[str]:
    return [one.name for one in examples]


def refused(root: Path, *words: str) -> str:
    with pytest.raises(TrainingError) as error:
        read_folders(root)
    for word in words:
        assert word in str(error.value)
    str(error.value).encode()  # can be written anywhere
    return str(error.value)


# --------------------------------------------------------------------------------------------------------- what is found


def test_train_and_val_are_taken_as_their_folders_say(data: Tree) -> None:
    root = data(train__dog=2, train__cat=3, val__cat=1, val__dog=2)
    found = read_folders(root)
    assert found.classes == ("cat", "dog")
    assert names(found.train) == ["train/cat/0.png", "train/cat/1.png", "train/cat/2.png", "train/dog/0.png", "train/dog/1.png"]  # fmt: skip
    assert names(found.val) == ["val/cat/0.png", "val/dog/0.png", "val/dog/1.png"]
    assert [one.label for one in found.train] == [0, 0, 0, 1, 1]
    for one in (*found.train, *found.val):
        assert one.path == root / one.name
        assert one.sha256 == hashlib.sha256(one.path.read_bytes()).hexdigest()
    assert (found.broken, found.shared, found.contradicting, found.val_share) == ((), (), (), None)


def test_class_folders_alone_are_split_and_every_class_gives_its_share(data: Tree) -> None:
    found = read_folders(data(cat=10, dog=5), val_share=0.3, seed=7)
    assert Counter(one.label for one in found.val) == {0: 3, 1: 2}
    assert Counter(one.label for one in found.train) == {0: 7, 1: 3}
    assert sorted(names(found.train) + names(found.val)) == sorted(
        [f"cat/{n}.png" for n in range(10)] + [f"dog/{n}.png" for n in range(5)]
    )
    assert found.val_share == 0.3


def test_another_seed_splits_another_way_and_the_same_seed_the_same(data: Tree) -> None:
    root = data(cat=12, dog=12)
    assert read_folders(root, seed=3) == read_folders(root, seed=3)
    assert len({tuple(names(read_folders(root, seed=seed).val)) for seed in range(5)}) > 1


def test_pictures_in_folders_below_a_class_count_hidden_files_do_not_and_other_endings_are_said(data: Tree) -> None:
    root = data(train__cat=1, train__dog=1, val__cat=1, val__dog=1, train__cat__young__kittens=2, train__cat__old=1)
    picture(root / "train/cat/.thumb.png", "hidden")
    picture(root / "train/cat/.cache/a.png", "hidden too")
    (root / "train/cat/notes.txt").write_text("no picture")
    picture(root / "train/cat/CAPITAL.PNG", "capital")
    found = read_folders(root)
    assert [one.name for one in found.train if one.label == 0] == [
        "train/cat/0.png",
        "train/cat/CAPITAL.PNG",
        "train/cat/old/0.png",
        "train/cat/young/kittens/0.png",
        "train/cat/young/kittens/1.png",
    ]
    assert found.broken == (("train/cat/notes.txt", "has the ending '.txt', which is no picture's here"),)
    assert "1 file skipped: train/cat/notes.txt" in said(found)[1]


def test_other_folders_beside_train_and_val_are_left_alone(data: Tree) -> None:
    found = read_folders(data(train__cat=1, train__dog=1, val__cat=1, val__dog=1, test__cow=3))
    assert found.classes == ("cat", "dog")


def test_a_class_may_be_called_train(data: Tree) -> None:
    assert read_folders(data(train=3, bus=3)).classes == ("bus", "train")


def test_broken_pictures_are_skipped_with_the_reason_and_their_neighbours_are_kept(data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, val__cat=2, val__dog=2)
    whole = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/half.png").write_bytes(whole[: len(whole) // 2])
    (root / "val/dog/empty.jpg").write_bytes(b"")
    (root / "train/dog/page.jpg").write_text("<html>not found</html>")
    os.mkfifo(root / "train/dog/pipe.jpg")
    picture(root / "train/loose.png", "loose")
    found = read_folders(root)
    assert len(found.train) == len(found.val) == 4
    reasons = dict(found.broken)
    assert list(reasons) == ["train/cat/half.png", "train/dog/page.jpg", "train/dog/pipe.jpg", "train/loose.png", "val/dog/empty.jpg"]  # fmt: skip
    assert "is broken" in reasons["train/cat/half.png"]
    assert "is no picture that can be read" in reasons["train/dog/page.jpg"]
    assert reasons["train/dog/pipe.jpg"] == "is not a regular file"
    assert reasons["train/loose.png"] == "lies in no folder of a class"
    assert reasons["val/dog/empty.jpg"] == "is empty"


def test_a_picture_cut_short_after_its_header_is_found_because_all_of_it_is_decoded(data: Tree) -> None:
    root = data(cat=3, dog=3)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(root / "cat/a.jpg")
    content = (root / "cat/a.jpg").read_bytes()
    (root / "cat/a.jpg").write_bytes(content[: len(content) * 2 // 3])
    assert [name for name, _ in read_folders(root).broken] == ["cat/a.jpg"]


# ----------------------------------------------------------------------------------------------------- the same content


def test_what_is_also_in_train_is_left_out_of_val_and_told(data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, val__cat=2, val__dog=2)
    (root / "val/cat/again.png").write_bytes((root / "train/cat/1.png").read_bytes())
    (root / "val/dog/as a dog.png").write_bytes((root / "train/cat/1.png").read_bytes())
    found = read_folders(root)
    assert found.shared == (("val/cat/again.png", "train/cat/1.png"), ("val/dog/as a dog.png", "train/cat/1.png"))
    assert names(found.val) == ["val/cat/0.png", "val/cat/1.png", "val/dog/0.png", "val/dog/1.png"]
    assert len(found.train) == 4


def test_the_same_picture_in_two_classes_is_kept_and_told(data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, val__cat=2, val__dog=2)
    (root / "train/dog/x.png").write_bytes((root / "train/cat/0.png").read_bytes())
    (root / "train/cat/y.png").write_bytes(
        (root / "train/cat/1.png").read_bytes()
    )  # in its own class: no contradiction
    (root / "val/dog/z.png").write_bytes((root / "val/cat/0.png").read_bytes())
    found = read_folders(root)
    assert found.contradicting == (("train/dog/x.png", "train/cat/0.png"), ("val/dog/z.png", "val/cat/0.png"))
    assert {"train/dog/x.png", "train/cat/0.png"} <= set(names(found.train))


def test_a_split_trains_on_what_lies_in_two_classes(data: Tree) -> None:
    root = data(cat=4, dog=4)
    (root / "dog/x.png").write_bytes((root / "cat/0.png").read_bytes())
    for seed in range(8):
        found = read_folders(root, val_share=0.5, seed=seed)
        assert {"dog/x.png", "cat/0.png"} <= set(names(found.train))
        assert found.contradicting == (("dog/x.png", "cat/0.png"),)


# --------------------------------------------------------------------------------------------------- the split's properties

# Each class as how often each of its contents is there: [1, 1, 3] is five pictures, three of them the same.
CLASSES = st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=12), min_size=1, max_size=5)
SHARES = st.floats(0.01, 0.99)
SEEDS = st.integers(-(2**63), 2**63)


def examples(classes: list[list[int]]) -> list[Example]:
    return [
        Example(f"{label}/{content}-{copy}.png", Path(), label, f"{label} {content}")
        for label, contents in enumerate(classes)
        for content, copies in enumerate(contents)
        for copy in range(copies)
    ]


def called(classes: list[list[int]]) -> list[str]:
    return [str(label) for label in range(len(classes))]


@settings(deadline=None)
@given(CLASSES, SHARES, SEEDS)
def test_a_split_loses_and_doubles_nothing_and_keeps_the_same_content_on_one_side(
    classes: list[list[int]], share: float, seed: int
) -> None:
    there = examples(classes)
    train, val = split(there, called(classes), share, seed)
    assert sorted(one.name for one in train + val) == sorted(one.name for one in there)
    assert {one.sha256 for one in train}.isdisjoint(one.sha256 for one in val)


@settings(deadline=None)
@given(CLASSES, SHARES, SEEDS)
def test_a_split_has_every_class_on_both_sides_and_nearly_its_share(
    classes: list[list[int]], share: float, seed: int
) -> None:
    train, val = split(examples(classes), called(classes), share, seed)
    everything = set(range(len(classes)))
    assert {one.label for one in train} == {one.label for one in val} == everything
    for label, count in Counter(one.label for one in val).items():
        of = sum(classes[label])
        wanted = min(max(1, round(share * of)), of - 1)
        if set(classes[label]) == {1}:
            assert count == wanted
        else:  # a content that is there n times is taken whole or not at all
            assert abs(count - wanted) < max(classes[label])


@settings(deadline=None)
@given(CLASSES, SHARES, SEEDS, st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_disk(
    classes: list[list[int]], share: float, seed: int, shuffling: random.Random
) -> None:
    there = examples(classes)
    shuffled = list(there)
    shuffling.shuffle(shuffled)
    sides = [split(one, called(classes), share, seed)[1] for one in (there, shuffled)]
    assert {one.name for one in sides[0]} == {one.name for one in sides[1]}


def test_files_created_in_another_order_and_under_other_names_are_split_the_same(tmp_path: Path) -> None:
    for name, order in (("one", range(20)), ("two", reversed(range(20)))):
        for number in order:
            picture(tmp_path / name / "ab"[number % 2] / f"{name} {number}.png", number)
    sides = [{one.sha256 for one in read_folders(tmp_path / name).val} for name in ("one", "two")]
    assert sides[0] == sides[1]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_share_that_leaves_a_side_empty_is_refused(share: float, data: Tree) -> None:
    with pytest.raises(TrainingError, match=f"share of {share} .*more than 0 and less than 1"):
        read_folders(data(cat=3, dog=3), val_share=share)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "gone", "does not exist", "CLASS")


def test_an_archive_is_refused_with_the_advice_to_unpack_it(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    refused(tmp_path / "data.zip", "data.zip", "unpack")


def test_pictures_without_folders_of_classes_are_refused(data: Tree) -> None:
    root = data(**{".": 3})
    refused(root, str(root), "3 pictures and no folders of classes", "CLASS")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no folders of classes")


def test_one_class_is_refused(data: Tree) -> None:
    refused(data(cat=5), "one class, 'cat'", "two at least")


def test_one_class_that_holds_the_classes_is_refused_with_the_folder_to_give(data: Tree) -> None:
    root = data(pets__cat=2, pets__dog=2)
    refused(root, "one class, 'pets'", f"give {root / 'pets'}")
    assert read_folders(root / "pets").classes == ("cat", "dog")


@pytest.mark.parametrize("near", ["valid", "validation", "Val"])
def test_train_without_val_is_refused_and_names_the_folder_that_may_be_meant(near: str, data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, **{f"{near}__cat": 1, f"{near}__dog": 1})
    refused(root, "no folder val", f"Did you mean '{near}'? Rename it to val", f"give {root / 'train'}")


@pytest.mark.parametrize("sides", [["train"], ["train", "test"]])
def test_train_without_val_is_refused_and_says_how_to_split(sides: list[str], data: Tree) -> None:
    root = data(**{f"{side}__{name}": 2 for side in sides for name in ("cat", "dog")})
    message = refused(root, "train", "no folder val", f"split off instead, give {root / 'train'}")
    assert "Did you mean" not in message


@pytest.mark.parametrize("sides", [["Train", "Val"], ["training", "validation"], ["val"]])
def test_parts_of_a_data_set_are_never_taken_for_classes(sides: list[str], data: Tree) -> None:
    refused(data(**{f"{side}__{name}": 2 for side in sides for name in ("cat", "dog")}), "no folder train")


def test_other_classes_in_val_than_in_train_are_refused_and_named(data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, train__cow=2, val__cat=1, val__dog=1, val__hen=1)
    refused(root, "only in train: 'cow'", "only in val: 'hen'")


@pytest.mark.parametrize("side", ["train", "val"])
def test_a_class_without_pictures_is_refused(side: str, data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, val__cat=1, val__dog=1)
    for one in (root / side / "dog").iterdir():
        one.rename(one.with_suffix(".heic"))
    refused(root, "'dog'", str(root / side), ".jpg")


@pytest.mark.parametrize("side", ["train", "val"])
def test_a_class_of_broken_pictures_is_refused_with_the_reason(side: str, data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, val__cat=2, val__dog=2)
    (root / "train/cat/x.png").write_bytes(b"")  # of another class, and not the reason
    for one in (root / side / "dog").iterdir():
        one.write_bytes(b"broken")
    message = refused(root, f"'dog' has no picture that can be read in {side}/dog: {side}/dog/0.png is no picture")
    assert "x.png" not in message


def test_nothing_but_broken_pictures_is_refused_with_the_first_reason(data: Tree) -> None:
    root = data(cat=2, dog=2)
    for one in root.rglob("*.png"):
        one.write_bytes(b"")
    refused(root, "none of the 4 pictures", "cat/0.png is empty")


def test_a_val_that_is_a_copy_of_train_is_refused(data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, val__cat=0)
    os.symlink(root / "train", root / "val")
    refused(root, "'cat', 'dog'", "also in", "every class", f"give {root / 'train'} alone")


def test_a_class_of_val_that_is_wholly_in_train_is_refused(data: Tree) -> None:
    root = data(train__cat=2, train__dog=2, val__cat=2)
    os.symlink(root / "train/dog", root / "val/dog")
    refused(root, "all pictures of 'dog'", "also in")


def test_a_class_that_is_one_content_again_and_again_can_not_be_split(data: Tree) -> None:
    root = data(cat=3, dog=1)
    (root / "dog/copy.png").write_bytes((root / "dog/0.png").read_bytes())
    refused(root, "'dog' has 1 different pictures", "2 at least")


def test_two_names_for_one_class_can_not_be_split(data: Tree) -> None:
    root = data(cat=3)
    os.symlink(root / "cat", root / "dog")
    refused(root, "'cat' has 0 different pictures that lie in no other class")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_is_closed_is_refused_and_not_passed_over(data: Tree) -> None:
    root = data(cat=3, dog=3)
    (root / "dog").chmod(0)
    try:
        refused(root, str(root / "dog"), "can't be looked into")
    finally:
        (root / "dog").chmod(0o700)


# ---------------------------------------------------------------------------------------------------------------- names


ODD = [
    "two words",
    "日本語",
    "a=b",
    "quo\"te's",
    "🐈",
    "--help",
    "-o",
    "x" * 200,
    "Cat",
    "cat",
    "new\nline",
    "<b>&",
    "100%",
]


def test_class_names_with_odd_characters_are_kept_as_they_are(tmp_path: Path) -> None:
    for name in ODD:
        for number in range(2):
            picture(tmp_path / name / f"{number}.png", (name, number))
    found = read_folders(tmp_path)
    assert found.classes == tuple(sorted(ODD))
    assert json.loads(json.dumps(found.classes)) == list(found.classes)
    assert {one.name for one in found.train + found.val} == {f"{name}/{n}.png" for name in ODD for n in range(2)}


def test_a_class_name_of_more_than_200_characters_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 201, "dog"):
        picture(tmp_path / name / "a.png", name)
    refused(tmp_path, "201 characters", "200 at most", "rename")


def test_a_class_name_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"dog"):
        picture(tmp_path / os.fsdecode(name) / "a.png", name)
    refused(tmp_path, r"'caf\udce9'", "no UTF-8", "rename")


def test_a_file_name_that_is_no_text_is_used_under_a_name_that_is(data: Tree) -> None:
    root = data(cat=3, dog=3)
    (root / "cat/0.png").rename(root / "cat" / os.fsdecode(b"caf\xe9.png"))
    (root / "cat" / os.fsdecode(b"bad\xff.png")).write_bytes(b"")
    found = read_folders(root)
    (one,) = [one for one in found.train + found.val if "caf" in one.name]
    assert one.name == r"cat/caf\udce9.png"
    assert one.path.is_file()
    assert found.broken == ((r"cat/bad\udcff.png", "is empty"),)
    "".join(said(found)).encode()


# ---------------------------------------------------------------------------------------------------------------- links


def test_links_to_files_and_folders_are_followed(data: Tree, tmp_path: Path) -> None:
    away = picture(tmp_path / "away/one/x.png", "away").parent
    root = data(train__cat=2, train__dog=1, val__cat=1)
    os.symlink(picture(tmp_path / "single.png", "single"), root / "train/dog/linked.png")
    os.symlink(away, root / "train/dog/folder")
    os.symlink(picture(tmp_path / "elsewhere/y.png", "elsewhere").parent, root / "val/dog")
    found = read_folders(root)
    assert [one.name for one in found.train if one.label == 1] == ["train/dog/0.png", "train/dog/folder/x.png", "train/dog/linked.png"]  # fmt: skip
    assert names(found.val) == ["val/cat/0.png", "val/dog/y.png"]


def test_links_in_a_circle_end(data: Tree) -> None:
    root = data(train__cat__deep=2, train__dog=2, val__cat=1, val__dog=1)
    os.symlink(root, root / "train/cat/to the data")
    os.symlink("..", root / "train/cat/deep/up")
    os.symlink("itself.png", root / "train/cat/itself.png")
    os.symlink(root / "train/dog", root / "train/dog/again")
    found = read_folders(root)
    assert names(found.train) == ["train/cat/deep/0.png", "train/cat/deep/1.png", "train/dog/0.png", "train/dog/1.png"]
    assert [name for name, _ in found.broken] == ["train/cat/itself.png"]


def test_folders_that_link_to_each_other_many_times_are_each_read_once(data: Tree) -> None:
    root = data(train__cat=1, train__dog=1, val__cat=1, val__dog=1)
    for number in range(30):  # 2 ** 30 ways to the last one
        (root / f"level {number}").mkdir()
        for link in ("a", "b"):
            os.symlink(root / f"level {number + 1}", root / f"level {number}" / link)
    picture(root / "level 30/x.png", "last")
    os.symlink(root / "level 0", root / "train/cat/levels")
    assert len(read_folders(root).train) == 3


def test_a_link_that_leads_nowhere_is_told(data: Tree) -> None:
    root = data(cat=3, dog=3)
    os.symlink(root / "gone", root / "cow")
    os.symlink(root / "gone.png", root / "cat/gone.png")
    assert dict(read_folders(root).broken) == {
        "cow": "is a link that leads nowhere",
        "cat/gone.png": "can't be opened: no such file",
    }


# -------------------------------------------------------------------------------------------------------------- reading


def test_progress_is_told_for_every_picture_in_order(data: Tree) -> None:
    told: list[tuple[int, int]] = []
    read_folders(data(cat=30, dog=20), watch=lambda done, of: told.append((done, of)))
    assert told == [(done, 50) for done in range(1, 51)]


def test_ctrl_c_stops_soon_and_leaves_no_thread(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
        for number in range(1, 100):
            os.link(tmp_path / name / "0.png", tmp_path / name / f"{number}.png")
        pixels = 255 - pixels
    threads, done = threading.active_count(), []

    def interrupt(count: int, of: int) -> None:
        done.append(count)
        if count == 8:
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        read_folders(tmp_path, watch=interrupt)
    interrupted, begin = time.monotonic() - begin, time.monotonic()
    with pytest.raises(TrainingError, match="1 different pictures"):
        read_folders(tmp_path)
    whole = time.monotonic() - begin
    assert done == list(range(1, 9))
    assert threading.active_count() == threads
    assert interrupted < whole / 2


# ------------------------------------------------------------------------------------------------------- what is said


def test_the_sentence_of_good_data_is_the_counts(data: Tree) -> None:
    assert said(read_folders(data(train__cat=3, train__dog=3, val__cat=1, val__dog=1))) == [
        "6 pictures for training, 2 for validation, 2 classes: cat (3), dog (3)"
    ]


def test_a_split_is_said(data: Tree) -> None:
    sentences = said(read_folders(data(a=4, b=4, c=4, d=4), val_share=0.25))
    assert sentences == [
        "12 pictures for training, 4 for validation, 4 classes: a (3), b (3), c (3), ... (4)",
        "about 25 % of each class, at least one picture, is split off for validation",
    ]


def test_what_is_skipped_left_out_contradicting_and_unbalanced_is_said(data: Tree) -> None:
    root = data(train__cat=2, train__dog=18, val__cat=2, val__dog=2)
    for number in range(4):
        (root / f"train/cat/empty{number}.png").write_bytes(b"")
    (root / "val/cat/again.png").write_bytes((root / "train/cat/1.png").read_bytes())
    (root / "train/dog/0.png").write_bytes((root / "train/cat/0.png").read_bytes())
    empty = [f"train/cat/empty{number}.png is empty" for number in range(3)]
    assert said(read_folders(root)) == [
        "20 pictures for training, 4 for validation, 2 classes: cat (2), dog (18)",
        f"4 files skipped: {', '.join(empty)}, ... (4)",
        "1 picture of val left out of val, because training sees the same: val/cat/again.png is train/cat/1.png",
        "1 picture kept although also in another class, so that no answer is right: train/dog/0.png is train/cat/0.png",
        "dog has 9 times as many pictures as cat; the loss weighs classes by cat 5, dog 0.556",
    ]


@pytest.mark.parametrize(
    ("cats", "dogs", "times"), [(4, 6, "1.5"), (2, 18, "9"), (1, 12, "12"), (1, 1234, "1,234"), (20, 29, None)]
)
def test_how_unbalanced_classes_are_is_said_from_one_and_a_half_on(cats: int, dogs: int, times: str | None) -> None:
    train = tuple(Example(f"{n}", Path(), int(n >= cats), f"{n}") for n in range(cats + dogs))
    sentences = said(Folders(Path(), ("cat", "dog"), train, (), (), (), (), None))
    assert len(sentences) == (1 if times is None else 2)
    if times is not None:
        assert sentences[1].startswith(f"dog has {times} times as many pictures as cat; ")


@pytest.mark.parametrize("counts", [(3, 3), (2, 18), (4, 5, 6)])
def test_every_class_counts_the_same_with_its_weight(counts: tuple[int, ...]) -> None:
    train = tuple(
        Example(f"{label}/{number}", Path(), label, f"{label} {number}")
        for label, count in enumerate(counts)
        for number in range(count)
    )
    weights = class_weights(Folders(Path(), tuple("abc"[: len(counts)]), train, (), (), (), (), None))
    assert weights == [pytest.approx(sum(counts) / (len(counts) * count)) for count in counts]
    total = [weight * count for weight, count in zip(weights, counts, strict=True)]
    assert total == [pytest.approx(total[0])] * len(counts)
    assert sum(total) == pytest.approx(sum(counts))
