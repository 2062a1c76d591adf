"""The command line as a person meets it: results on stdout, one message on stderr, exit codes, whole bundles or none."""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commands import Result, Run, finish, start, wait_for
from sightline import list_methods
from sightline.cli import _app
from sightline.cli.bundles import draw, find_images, name_folders
from sightline.cli.doctor import DEMO
from sightline.cli.output import plain
from sightline.engine.attention import WANTED
from sightline.models import load as loading
from sightline.models.given import Given

FILES = {"overlay.png", "panel.png", "map.npy", "manifest.json"}
SMALL = "timm:mobilenetv3_small_050"


@pytest.fixture(scope="session")
def cat() -> Image.Image:
    with Image.open(DEMO) as image:
        return image.convert("RGB").resize((120, 80))


@pytest.fixture
def photo(cat: Image.Image, tmp_path: Path) -> Path:
    cat.save(tmp_path / "cat.jpg")
    return tmp_path / "cat.jpg"


@pytest.fixture
def album(cat: Image.Image, tmp_path: Path) -> Path:
    """Three good pictures, one of them deeper; two broken ones; a text file."""
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    cat.save(folder / "a.jpg")
    cat.rotate(90, expand=True).save(folder / "b.png")
    cat.save(folder / "deep" / "c.webp")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:600])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def bundles(folder: Path) -> set[str]:
    """Names of the results in a folder; each must be whole."""
    found = {one for one in folder.iterdir() if not one.name.startswith(".")} if folder.exists() else set()
    for one in found:
        assert_whole(one)
    return {one.name for one in found}


def assert_whole(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == "sightline.bundle/1"
    expected = {"manifest.json", "panel.png", *(one["files"]["picture"] for one in manifest.get("agreement", ()))}
    for record in manifest["maps"]:
        expected |= set(record["files"].values())
        assert np.load(bundle / record["files"]["map"]).shape == tuple(record["grid"])
    for name in expected:
        if name.endswith(".png"):
            with Image.open(bundle / name) as picture:
                picture.load()
    assert {one.name for one in bundle.iterdir()} == expected


def leftovers(folder: Path) -> list[Path]:
    """Unfinished folders and other hidden things."""
    return [one for one in folder.rglob("*") if one.name.startswith(".")] if folder.exists() else []


def assert_refused(result: Result, *words: str, output: Path = Path("sightline-out")) -> str:
    """Exit code 2, one message on stderr and nothing else anywhere."""
    assert result.code == 2, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    (message,) = result.err.splitlines()
    assert message.startswith("sightline: ")
    assert "fault of sightline" not in message
    for word in words:
        assert word in message
    assert not output.exists()
    return message


# -------------------------------------------------------------------------------------------------------------- explain


def test_explain_says_what_the_model_sees_and_where_and_writes_one_bundle(cli: Run, photo: Path) -> None:
    result = cli("explain", photo)
    assert (result.code, result.err) == (0, "")
    assert f"{photo} (120 x 80)" in result.out
    assert re.search(r"says: \S.* \d+ %", result.out)
    assert re.search(r"grad-cam for .*: strongest at x \d+, y \d+ \(layer bn2, 7x7\)", result.out)
    assert "picture: sightline-out/cat/panel.png" in result.out
    assert bundles(Path("sightline-out")) == {"cat"}
    assert {one.name for one in Path("sightline-out/cat").iterdir()} == FILES
    assert leftovers(Path("sightline-out")) == []


def test_explain_writes_where_it_is_told(cli: Run, photo: Path, tmp_path: Path) -> None:
    assert cli("explain", photo, "-o", tmp_path / "far" / "away").code == 0
    assert bundles(tmp_path / "far" / "away") == {"cat"}
    assert not Path("sightline-out").exists()


def test_several_targets_give_a_map_each_in_one_bundle(cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--target", "tabby", "--target", "281", "--target", "golden retriever", "--json")
    assert (result.code, result.err) == (0, "")
    (line,) = result.lines
    assert [one["target"]["label"] for one in line["maps"]] == ["tabby", "tabby", "golden retriever"]
    assert line["maps"][0]["target"]["index"] == 281
    assert any("is not what the model says" in warning for warning in line["maps"][2]["warnings"])
    assert bundles(Path("sightline-out")) == {"cat"}
    assert {"overlay-3.png", "map-3.npy"} <= {one.name for one in Path("sightline-out/cat").iterdir()}


def test_the_warnings_of_a_map_are_shown(cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--target", "golden retriever")
    assert "note: 'golden retriever' is not what the model says" in result.out


def test_random_weights_are_announced(cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--model", SMALL, "--random-weights")
    assert result.code == 0
    assert "note: random weights" in result.out


def test_local_weights_are_used(cli: Run, photo: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = loading.build(SMALL, Given(random_weights=True)).module.state_dict()
    torch.save(state, tmp_path / "mine.pth")
    result = cli("explain", photo, "--model", SMALL, "--weights", tmp_path / "mine.pth", "--json")
    assert (result.code, result.err) == (0, "")
    assert not any("random" in one for one in result.lines[0]["maps"][0]["warnings"])
    manifest = json.loads(Path("sightline-out/cat/manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["weights"] == "mine.pth"


@pytest.mark.parametrize("style", ["heat", "grey-photo", "contours", "spotlight", "flat"])
def test_every_style_is_drawn(style: str, cli: Run, photo: Path) -> None:
    assert cli("explain", photo, "--style", style).code == 0
    assert bundles(Path("sightline-out")) == {"cat"}


def test_colormap_layer_option_top_and_scale_are_taken(cli: Run, photo: Path) -> None:
    result = cli(
        "explain", photo, "--colormap", "viridis", "--layer", "blocks.4", "--top", 5, "--own-scale", "--json"
    )  # fmt: skip
    (line,) = result.lines
    assert line["maps"][0]["layer"] == "blocks.4"
    assert line["maps"][0]["grid"] == [14, 14]
    assert len(line["predictions"]) == 5


def test_a_layer_that_is_folded_away_by_default_can_be_asked_for(cli: Run, photo: Path) -> None:
    (line,) = cli("explain", photo, "--layer", "conv_head", "--json").lines
    assert line["maps"][0]["layer"] == "conv_head"


def test_every_layer_that_is_listed_can_be_explained(cli: Run, photo: Path) -> None:
    listed = [line.split()[0] for line in cli("layers", "--all").out.splitlines()[1:-1]]
    assert len(listed) > 100
    for layer in listed[:: len(listed) // 6]:
        result = cli("explain", photo, "--layer", layer, "--force")
        assert result.code == 0 or "ran 2 times" in result.err, result.err


# ----------------------------------------------------------------------------------------------------------------- json


def test_json_has_exactly_these_fields_and_stands_alone_on_stdout(cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--json")
    assert (result.code, result.err) == (0, "")
    (line,) = result.lines
    assert list(line) == ["image", "size", "predictions", "maps"]
    assert line["image"] == str(photo)
    assert line["size"] == {"width": 120, "height": 80}
    assert len(line["predictions"]) == 3
    for one in line["predictions"]:
        assert list(one) == ["index", "label", "probability"]
        assert 0 <= one["probability"] <= 1
    (one,) = line["maps"]
    assert list(one) == ["target", "method", "layer", "grid", "evidence", "peak", "warnings", "files"]
    assert list(one["target"]) == ["index", "label"]
    assert one["target"]["index"] == line["predictions"][0]["index"]
    assert list(one["peak"]) == ["x", "y"]
    assert 0 <= one["peak"]["x"] < 120
    assert 0 <= one["peak"]["y"] < 80
    assert one["grid"] == [7, 7]
    assert one["evidence"] > 0
    assert one["evidence"] == pytest.approx(float(np.load(one["files"]["map"]).max()))
    assert set(one["files"]) == {"overlay", "panel", "map"}
    assert all(Path(file).is_file() for file in one["files"].values())
    assert isinstance(one["warnings"], list)


def test_json_has_a_line_with_the_error_for_a_picture_that_fails(cli: Run, album: Path) -> None:
    result = cli("explain", album, "--json")
    assert result.code == 1
    failed = [line for line in result.lines if "error" in line]
    assert [Path(line["image"]).name for line in failed] == ["broken.jpg", "empty.png"]
    for line in failed:
        assert list(line) == ["image", "size", "error"]
        assert line["size"] is None
        assert len(line["error"]) > 10
    assert len(result.lines) == 5


def test_json_is_strict(cli: Run, cat: Image.Image, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    result = cli("compare", tmp_path / "black.png", "--target", "tabby", "--json")
    json.loads(result.out, parse_constant=refuse)
    json.loads(Path("sightline-out/black/manifest.json").read_text(encoding="utf-8"), parse_constant=refuse)


# --------------------------------------------------------------------------------------------------- folders and globs


def test_broken_files_do_not_stop_the_others_and_are_told_at_the_end(cli: Run, album: Path) -> None:
    result = cli("explain", album)
    assert result.code == 1
    assert bundles(Path("sightline-out")) == {"a", "b", "c"}
    assert leftovers(Path("sightline-out")) == []
    said = result.err.splitlines()
    assert "left out as no pictures by their names: 1" in said[0]
    assert [line.split(":")[0] for line in said[1:3]] == ["failed", "failed"]
    assert "broken.jpg" in said[1]
    assert "is empty" in said[2]
    assert said[3] == "2 of 5 pictures failed; the others are done"
    assert "Traceback" not in result.err
    assert "failed" not in result.out
    assert result.out.count("picture: ") == 3


def test_a_folder_of_good_pictures_ends_with_0(cli: Run, album: Path) -> None:
    for name in ("broken.jpg", "empty.png", "notes.txt"):
        (album / name).unlink()
    result = cli("explain", album)
    assert (result.code, result.err) == (0, "")


def test_a_glob_stands_for_its_files(cli: Run, album: Path) -> None:
    result = cli("explain", f"{album}/[ab]*.*g", f"{album}/**/c.*")
    assert bundles(Path("sightline-out")) == {"a", "b", "c"}
    assert result.code == 1  # broken.jpg fits, too


def test_a_file_whose_name_looks_like_a_glob_is_that_file(cli: Run, cat: Image.Image, tmp_path: Path) -> None:
    cat.save(tmp_path / "[1].jpg")
    assert cli("explain", tmp_path / "[1].jpg").code == 0
    assert bundles(Path("sightline-out")) == {"[1]"}


def test_a_picture_given_twice_is_explained_once(cli: Run, photo: Path, tmp_path: Path) -> None:
    result = cli("explain", photo, photo, tmp_path / "c*.jpg", "--json")
    assert result.code == 0
    assert len(result.lines) == 1


def test_two_pictures_with_one_stem_get_two_bundles(cli: Run, cat: Image.Image, tmp_path: Path) -> None:
    names = ["one/cat.jpg", "two/cat.jpg", "two/cat.png", "two/CAT.PNG"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cat.save(tmp_path / name)
    result = cli("explain", *[tmp_path / name for name in names], "--json")
    assert result.code == 0
    places = [Path(line["maps"][0]["files"]["panel"]).parent.name for line in result.lines]
    assert len({place.lower() for place in places}) == 4  # one folder each, also where case is ignored
    assert bundles(Path("sightline-out")) == set(places)


@pytest.mark.parametrize("name", ["...jpg", "..jpg", "....png", " .jpg", ".jpg", "cat.", "-.jpg", "~.jpg"])
def test_no_file_name_leads_out_of_the_output_folder(name: str, tmp_path: Path) -> None:
    (place,) = name_folders([Path("album") / name], tmp_path / "out")
    assert place.parent == tmp_path / "out"
    assert place.resolve().parent == (tmp_path / "out").resolve()


def test_a_picture_named_only_with_dots_is_explained(cli: Run, cat: Image.Image, tmp_path: Path) -> None:
    cat.save(tmp_path / "...jpg", "JPEG")
    result = cli("explain", tmp_path / "...jpg")
    assert result.code == 0, result.err
    assert len(bundles(Path("sightline-out"))) == 1


def test_the_numbered_name_of_one_picture_never_takes_that_of_another(tmp_path: Path) -> None:
    images = [Path(one) for one in ("a/x.jpg", "b/x.jpg", "x.jpg-2", "c/x.jpg-2.jpg", "x.JPG-2.png")]
    places = name_folders(images, tmp_path)
    assert len({str(place).lower() for place in places}) == len(images)


def test_links_in_a_folder_do_not_lead_out_of_it_in_a_circle(cat: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    cat.save(tmp_path / "album" / "a.jpg")
    (tmp_path / "album" / "loop").symlink_to(tmp_path / "album")
    assert find_images([str(tmp_path / "album")], tmp_path / "out") == [tmp_path / "album" / "a.jpg"]


def test_a_pipe_with_a_pictures_name_is_an_error_and_no_hang(cli: Run, album: Path) -> None:
    os.mkfifo(album / "pipe.jpg")
    result = cli("explain", album / "pipe.jpg", album / "a.jpg")
    assert result.code == 1
    assert "pipe.jpg is not a regular file" in result.err
    assert bundles(Path("sightline-out")) == {"a"}


# ----------------------------------------------------------------------------------------------- refusals before the work


def test_a_missing_file_is_named(cli: Run, photo: Path) -> None:
    result = cli("explain", "nowhere.jpg", photo)
    assert result.code == 1
    assert "nowhere.jpg" in result.err
    assert "no such file" in result.err
    assert bundles(Path("sightline-out")) == {"cat"}


def test_a_missing_file_alone_writes_nothing(cli: Run) -> None:
    result = cli("explain", "nowhere.jpg")
    assert result.code in (1, 2)
    assert "no such file" in result.err
    assert "the others are done" not in result.err
    assert not Path("sightline-out").exists()


def test_a_folder_without_pictures_and_a_glob_that_fits_nothing_are_refused(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    assert_refused(cli("explain", tmp_path / "bare"), "no picture in", ".jpg")
    assert_refused(cli("explain", "*.jpeg"), "no file fits", "*.jpeg")


UNKNOWN = {
    "model": (["--model", "torchvision:resnet51", "--random-weights"], ["resnet51", "'resnet50'", "sightline models"]),
    "source": (["--model", "resnet18"], ["resnet18", "torchvision:resnet18"]),
    "layer": (["--layer", "block.4"], ["'block.4'", "'blocks.4'", "sightline layers"]),
    "method": (["--method", "gradcam"], ["'gradcam'", "'grad-cam'", "sightline methods"]),
    "class": (["--target", "tabi"], ["'tabi'", "'tabby'"]),
    "ambiguous class": (["--target", "retriever"], ["retriever", "golden retriever"]),
    "class number": (["--target", "1000"], ["1000", "999"]),
    "negative class": (["--target=-1"], ["-1"]),
    "empty class": (["--target", ""], ["class"]),
    "style": (["--style", "heet"], ["'heet'", "heat"]),
    "colormap": (["--colormap", "infernal"], ["infernal", "inferno"]),
    "option": (["--option", "nonsense=1"], ["nonsense"]),
    "option without value": (["--option", "normalise"], ["NAME=VALUE"]),
    "weights": (["--model", SMALL, "--weights", "gone.pth"], ["gone.pth"]),
    "weights of the bundled": (["--weights", "gone.pth"], ["timm:tf_efficientnet_lite0"]),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_unknown_is_refused_with_one_message_and_nothing_is_written(kind: str, cli: Run, photo: Path) -> None:
    arguments, words = UNKNOWN[kind]
    assert_refused(cli("explain", photo, *arguments), *words)


@pytest.mark.parametrize("kind", ["layer", "class", "style", "colormap", "option", "method"])
def test_compare_refuses_what_is_unknown_too(kind: str, cli: Run, photo: Path) -> None:
    arguments, words = UNKNOWN[kind]
    assert_refused(cli("compare", photo, *arguments), *words)


@pytest.mark.parametrize("kind", ["class", "layer"])
def test_what_is_unknown_is_told_as_such_also_after_a_picture_that_fails(kind: str, cli: Run, album: Path) -> None:
    (album / "notes.txt").unlink()
    result = cli("explain", album / "broken.jpg", album / "a.jpg", *UNKNOWN[kind][0])
    assert result.code == 2
    assert UNKNOWN[kind][1][1] in result.err
    assert not Path("sightline-out").exists()


@pytest.mark.parametrize("value", ["[1,2", "yes", "1e9", "null", '{"a": 1}', "\x1b[31m"])
def test_an_option_of_the_wrong_kind_is_no_fault_of_sightline(value: str, cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--method", "layer-cam", "--option", f"nonsense={value}")
    assert_refused(result, "nonsense")
    assert "\x1b" not in result.err


@pytest.mark.parametrize("value", ["abc", "null", "7", "[1]"])
def test_a_value_that_the_option_cannot_have_is_refused(value: str, cli: Run, photo: Path) -> None:
    name, option = "grad-cam++", "normalise"
    assert_refused(cli("explain", photo, "--method", name, "--option", f"{option}={value}"), option)


@pytest.mark.parametrize(
    "arguments", [["compare"], ["explain", "x.jpg", "--nonsense"], ["explode"], ["explain", "x.jpg", "--top", "0"]]
)
def test_wrong_usage_ends_with_2_and_a_hint(arguments: list[str], cli: Run) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage: " in result.err
    assert "Traceback" not in result.err
    assert not Path("sightline-out").exists()


def test_debug_shows_the_whole_error(cli: Run, photo: Path) -> None:
    for place in (["--debug", "explain", photo], ["explain", photo, "--debug"]):
        result = cli(*place, "--style", "heet")
        assert result.code != 0
        assert "Traceback" in result.err
        assert "heet" in result.err


def test_a_fault_of_ours_is_said_to_be_one(cli: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sightline.flow

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the hooks\nhave gone")

    monkeypatch.setattr(sightline.flow, "compare", broken)
    result = cli("explain", photo)
    assert result.code == 2
    assert result.err == (
        "sightline: unexpected RuntimeError: the hooks\N{REPLACEMENT CHARACTER}have gone. "
        "This is a fault of sightline; --debug shows where\n"
    )


# ---------------------------------------------------------------------------------------------------- a picture at random


@pytest.fixture
def pets(cat: Image.Image, tmp_path: Path) -> Path:
    """Six pictures in two folders, of which one is called like a class of the bundled model; the same names in both."""
    for folder in ("Lynx", "mine"):
        (tmp_path / "pets" / folder).mkdir(parents=True)
        for number in range(3):
            cat.rotate(number).save(tmp_path / "pets" / folder / f"{number}.png")
    return tmp_path / "pets"


def test_a_random_picture_is_named_and_each_time_another_until_all_had_their_turn(cli: Run, pets: Path) -> None:
    drawn = []
    for _ in range(6):
        result = cli("explain", "--random-from", pets)
        assert (result.code, result.err) == (0, "")
        first, second = result.out.splitlines()[:2]
        found = re.fullmatch(rf"one of 6 pictures in {pets}, at random: (\S+)( \(folder says: lynx\))?", first)
        assert found, first
        assert second == f"{found[1]} (120 x 80)"
        assert bool(found[2]) == (Path(found[1]).parent.name == "Lynx")
        drawn.append(found[1])
    assert sorted(drawn) == sorted(map(str, pets.rglob("*.png")))
    assert len(bundles(Path("sightline-out"))) == 6
    result = cli("explain", "--random-from", pets)
    assert (result.code, result.out) == (2, "")
    assert "all 6 pictures have their results in sightline-out already; --force" in result.err
    assert cli("explain", "--random-from", pets, "--force").code == 0
    assert len(bundles(Path("sightline-out"))) == 6


def test_a_random_picture_is_not_the_same_each_time_even_where_python_is_seeded(pets: Path, tmp_path: Path) -> None:
    images = sorted(pets.rglob("*.png"))
    drawn = set()
    for _ in range(30):  # all the same once in 6 ** 29 times
        random.seed(0)
        state = random.getstate()
        drawn.add(draw(images, name_folders(images, tmp_path / "out"), force=False))
        assert random.getstate() == state
    assert len(drawn) > 1
    assert drawn <= set(zip(images, name_folders(images, tmp_path / "out"), strict=True))


def test_the_random_picture_is_told_beside_json_and_not_in_it(cli: Run, pets: Path) -> None:
    result = cli("explain", "--random-from", pets / "Lynx", "--json")
    assert result.code == 0
    (line,) = result.lines
    (said,) = result.err.splitlines()
    assert said == f"one of 3 pictures in {pets / 'Lynx'}, at random: {line['image']} (folder says: lynx)"


def test_a_broken_picture_is_passed_over_and_another_drawn(
    album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [album / "broken.jpg", album / "deep" / "c.webp", album / "empty.png"]
    for _ in range(40):
        assert draw(images, name_folders(images, tmp_path / "out"), force=False)[0] == album / "deep" / "c.webp"
    passed = capsys.readouterr().err
    assert re.search(r"(?m)^passed over: .*broken\.jpg is broken", passed)
    assert re.search(r"(?m)^passed over: .*empty\.png is empty$", passed)


def test_a_folder_in_which_nothing_can_be_read_is_refused(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    result = cli("explain", "--random-from", tmp_path / "in")
    assert (result.code, result.out) == (2, "")
    passed, refused = result.err.splitlines()
    assert passed.endswith("a.jpg is empty")
    assert "none of 1 pictures can be read" in refused
    assert not Path("sightline-out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["nothing to explain", "PHOTO", "--random-from FOLDER"]),
        (["cat.jpg", "--random-from", "pets"], ["cat.jpg", "--random-from pets", "exclude each other"]),
        (["--random-from", "gone"], ["--random-from gone is no folder"]),
        (["--random-from", "cat.jpg"], ["--random-from cat.jpg is no folder", "PHOTO"]),
        (["--random-from", "hollow"], ["there is no picture in hollow"]),
        (["--random-from", "."], ["sightline-out lies inside the folder of pictures", "-o"]),
    ],
    ids=["nothing", "both", "no such folder", "a file", "no pictures", "around the output"],
)
def test_what_to_explain_must_be_said_once(
    arguments: list[str], words: list[str], cli: Run, photo: Path, pets: Path
) -> None:
    Path("hollow").mkdir()
    assert_refused(cli("explain", *arguments), *words)


def test_compare_draws_no_picture(cli: Run, pets: Path) -> None:
    result = cli("compare", "--random-from", pets)
    assert result.code == 2
    assert "--random-from" in result.err


# --------------------------------------------------------------------------------------------------------------- output


def test_an_earlier_bundle_is_not_replaced_without_force(cli: Run, photo: Path) -> None:
    assert cli("explain", photo).code == 0
    before = {one.name: one.read_bytes() for one in Path("sightline-out/cat").iterdir()}
    result = cli("explain", photo, "--target", "tabby")
    assert (result.code, result.out) == (2, "")
    assert "--force" in result.err
    assert {one.name: one.read_bytes() for one in Path("sightline-out/cat").iterdir()} == before
    assert cli("explain", photo, "--target", "golden retriever", "--force").code == 0
    assert bundles(Path("sightline-out")) == {"cat"}
    assert leftovers(Path("sightline-out")) == []
    assert (Path("sightline-out/cat/map.npy")).read_bytes() != before["map.npy"]


def test_a_run_of_which_one_bundle_exists_is_refused_before_anything_is_written(cli: Run, album: Path) -> None:
    assert cli("explain", album / "b.png").code == 0
    assert cli("explain", album).code == 2
    assert bundles(Path("sightline-out")) == {"b"}


@pytest.mark.parametrize("kind", ["folder", "file", "link", "other manifest"])
def test_what_is_no_bundle_of_ours_is_never_replaced(kind: str, cli: Run, photo: Path, tmp_path: Path) -> None:
    place = tmp_path / "out" / "cat"
    place.parent.mkdir()
    (tmp_path / "precious").mkdir()
    if kind == "file":
        place.write_text("precious")
    elif kind == "link":
        place.symlink_to(tmp_path / "precious")
    else:
        place.mkdir()
        (place / ("manifest.json" if kind == "other manifest" else "thesis.tex")).write_text('{"schema": "other/1"}')
    before = sorted(str(one) for one in tmp_path.rglob("*"))
    result = cli("explain", photo, "-o", tmp_path / "out", "--force")
    assert (result.code, result.out) == (2, "")
    assert "not even with --force" in result.err
    assert sorted(str(one) for one in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["album", "album/out", "album/deep/out", "album/../album/out", "link/out"])
def test_nothing_is_written_into_the_folder_of_pictures(place: str, cli: Run, album: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(album)
    before = sorted(album.rglob("*"))
    result = cli("explain", album, "-o", tmp_path / place)
    assert (result.code, result.out) == (2, "")
    assert "inside the folder of pictures" in result.err
    assert sorted(album.rglob("*")) == before


def test_a_file_in_the_way_of_the_output_folder_is_named(cli: Run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    result = cli("explain", photo, "-o", tmp_path / "taken" / "out")
    assert_refused(result, "taken", "can't be written", "-o", output=tmp_path / "nothing")
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_full_disk_is_told_and_leaves_nothing_half_written(cli: Run, photo: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))  # as if the disk were full after 3 kB of a file
    try:
        result = cli("explain", photo, "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert result.err.startswith("sightline: ")
    assert "can't be written" in result.err
    assert bundles(tmp_path / "out") == set()
    assert leftovers(tmp_path / "out") == []


def test_a_disk_that_fills_up_in_a_run_does_not_hide_what_failed_before(
    cli: Run, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = np.save, []

    def full(place: Any, *rest: Any, **options: Any) -> None:
        written.append(place)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        real(place, *rest, **options)

    monkeypatch.setattr(np, "save", full)
    result = cli("explain", album)
    assert result.code == 2
    assert "No space left on device" in result.err
    assert bundles(Path("sightline-out")) == {"a", "b"}
    assert leftovers(Path("sightline-out")) == []
    assert "broken.jpg" in result.err


# -------------------------------------------------------------------------------------------------- hostile file names


HOSTILE = ["two\nlines.jpg", "\x1b[31mred\x1b[0m.jpg", "bell\a.jpg", "\u202egnp.jpg", "a" * 240 + ".jpg", "<b>&.jpg"]


@pytest.mark.parametrize("name", HOSTILE, ids=["newline", "escape", "bell", "right-to-left", "long", "markup"])
def test_hostile_file_names_are_shown_harmless(name: str, cli: Run, cat: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cat.save(tmp_path / "in" / name)
    for arguments in (["-o", "shown"], ["-o", "json", "--json"]):
        result = cli("explain", tmp_path / "in", *arguments)
        assert (result.code, result.err) == (0, "")
        assert all(line.isprintable() for line in result.out.splitlines())
        assert "\x1b" not in result.out
    assert json.loads(result.out)["image"] == str(tmp_path / "in" / name)
    assert len(bundles(Path("shown"))) == 1


@pytest.mark.parametrize("name", HOSTILE, ids=["newline", "escape", "bell", "right-to-left", "long", "markup"])
def test_hostile_file_names_are_shown_harmless_when_they_fail(name: str, cli: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"broken")
    result = cli("explain", tmp_path / name)
    assert result.code == 1
    assert all(line.isprintable() for line in result.err.splitlines())
    assert len(result.err.splitlines()) == 2


def test_a_file_name_that_is_no_text_is_explained_and_shown_harmless(
    cli: Run, cat: Image.Image, tmp_path: Path
) -> None:
    cat.save(tmp_path / "plain.jpg")
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.jpg")
    (tmp_path / "plain.jpg").rename(odd)
    for arguments in (["-o", "shown"], ["-o", "json", "--json"]):
        result = cli("explain", odd, *arguments)
        assert result.code == 0, result.err
        assert result.err == ""
    assert json.loads(result.out)["size"]["width"] == 120


def test_a_terminal_that_knows_only_ascii_gets_its_answer(
    cli: Run, cat: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cat.save(tmp_path / "日本.jpg")
    for arguments in (["-o", "shown"], ["-o", "json", "--json"]):
        shown = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", "strict"))
        assert cli("explain", tmp_path / "日本.jpg", *arguments).code == 0
        sys.stdout.flush()
        assert b".jpg" in shown.getvalue()
    assert json.loads(shown.getvalue())["image"].endswith("日本.jpg")


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x9b31m", "\u202e", "\ud800", "\x00"])
def test_plain_text_commands_no_terminal(text: str) -> None:
    assert plain(text).isprintable()
    assert len(plain("x" * 10_000)) <= 300


# ------------------------------------------------------------------------------------------------------- interruptions


@pytest.fixture
def busy(cat: Image.Image, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run over many pictures, in the middle of it."""
    folder, out = tmp_path / "many", tmp_path / "out"
    folder.mkdir()
    cat.resize((480, 320)).save(folder / "000.png")
    for number in range(1, 100):
        shutil.copy(folder / "000.png", folder / f"{number:03}.png")
    process = start("explain", folder, "-o", out)
    try:
        wait_for(lambda: out.exists() and len([one for one in out.iterdir() if one.name[0] != "."]) >= 2, process)
        yield process, out
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_leaves_only_whole_bundles_and_ends_with_130(busy: tuple[subprocess.Popen[str], Path]) -> None:
    process, out = busy
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert result.code == 130
    assert "Traceback" not in result.err
    assert re.search(r"stopped after \d+ of 100 pictures", result.err)
    done = bundles(out)
    assert 2 <= len(done) < 100
    assert leftovers(out) == []


def test_kill_9_leaves_no_half_written_bundle_under_a_final_name(busy: tuple[subprocess.Popen[str], Path]) -> None:
    process, out = busy
    # In the middle of writing: the unfinished folder has a hidden name.
    wait_for(lambda: any(one.name.startswith(".") for one in out.iterdir()), process)
    process.kill()
    process.communicate()
    assert 2 <= len(bundles(out)) < 100


def test_what_kill_9_left_does_not_stop_the_next_run(cli: Run, photo: Path) -> None:
    (Path("sightline-out") / ".cat-0123abcd").mkdir(parents=True)
    (Path("sightline-out") / ".cat-0123abcd" / "overlay.png").write_bytes(b"half")
    assert cli("explain", photo).code == 0
    assert bundles(Path("sightline-out")) == {"cat"}


@pytest.mark.parametrize("moment", ["loading", "explaining", "saving"])
def test_ctrl_c_at_any_moment_ends_with_130_and_leaves_nothing_half_written(
    moment: str, cli: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sightline.flow

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    where = {"loading": (loading, "load_model"), "explaining": (sightline.flow, "compare"), "saving": (np, "save")}
    monkeypatch.setattr(*where[moment], interrupt)
    result = cli("explain", photo)
    assert result.code == 130
    assert "Traceback" not in result.err
    assert bundles(Path("sightline-out")) == set()
    assert leftovers(Path("sightline-out")) == []


def test_ctrl_c_while_an_earlier_bundle_is_replaced_keeps_a_whole_one(
    cli: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("explain", photo).code == 0
    real = Path.rename
    renamed = []

    def interrupt(self: Path, target: Any) -> Any:
        renamed.append(self)
        if len(renamed) == 2:  # the old one is out of the way, the new one not yet in its place
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    result = cli("explain", photo, "--force")
    assert result.code == 130
    monkeypatch.setattr(Path, "rename", real)
    assert bundles(Path("sightline-out")) == {"cat"}


def test_ctrl_c_while_the_process_takes_itself_down_is_no_traceback() -> None:
    code = (
        "import atexit, sys, time\n"
        "from sightline.cli import main\n"
        "atexit.register(lambda: (print('leaving', flush=True), time.sleep(60)))\n"
        "sys.argv = ['sightline', '--version']\n"
        "main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("sightline ")
    assert process.stdout.readline() == "leaving\n"
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.code, result.err) == (130, "")


# ----------------------------------------------------------------------------------------------------- the other commands


def test_compare_shows_every_method_by_default_in_one_bundle(cli: Run, photo: Path) -> None:
    result = cli("compare", photo, "--json")
    assert (result.code, result.err) == (0, "")
    (line,) = result.lines
    one_pass = [name for name, one in list_methods().items() if one.needs in ("activations", "gradients")]
    assert [one["method"] for one in line["maps"]] == one_pass
    assert len({one["target"]["index"] for one in line["maps"]}) == 1
    assert len({one["files"]["panel"] for one in line["maps"]}) == 1
    assert bundles(Path("sightline-out")) == {"cat"}


def test_compare_takes_methods_and_targets(cli: Run, photo: Path) -> None:
    command = [
        "compare",
        photo,
        "--method",
        "grad-cam",
        "--method",
        "layer-cam",
        "--target",
        "tabby",
        "--target",
        "lynx",
    ]
    (line,) = cli(*command, "--json").lines
    assert [(one["method"], one["target"]["label"]) for one in line["maps"]] == [
        ("grad-cam", "tabby"), ("grad-cam", "lynx"), ("layer-cam", "tabby"), ("layer-cam", "lynx"),
    ]  # fmt: skip


def test_compare_and_explain_give_the_same_map(cli: Run, photo: Path) -> None:
    (alone,) = cli("explain", photo, "-o", "one", "--json").lines
    (many,) = cli("compare", photo, "-o", "many", "--json").lines
    (same,) = [one for one in many["maps"] if one["method"] == "grad-cam"]
    assert (np.load(same["files"]["map"]) == np.load(alone["maps"][0]["files"]["map"])).all()


def test_layers_lists_grids_and_the_default_with_its_reason(cli: Run) -> None:
    result = cli("layers")
    assert (result.code, result.err) == (0, "")
    head, *rows = result.out.splitlines()
    assert head.split() == ["layer", "kind", "channels", "grid"]
    (default,) = [row for row in rows if row.rstrip().endswith("  default")]
    assert default.split()[0] == "bn2"
    assert "7x7" in default
    assert rows[-1] == "default: bn2, the last 7x7 grid before pooling, 1280 channels (BatchNormAct2d)"
    assert "more inside blocks: --all" in rows[-2]
    assert len(cli("layers", "--all").out.splitlines()) > len(rows)


def test_layers_works_for_models_whose_weights_are_out_of_reach(cli: Run) -> None:
    result = cli("layers", "torchvision:resnet18")
    assert (result.code, result.err) == (0, "")
    assert "default: layer4, the last 7x7 grid" in result.out


def test_layers_of_a_transformer_says_what_is_read_and_what_is_dead(cli: Run) -> None:
    result = cli("layers", "timm:vit_tiny_patch16_224", "--all")
    assert (result.code, result.err) == (0, "")
    assert "default: blocks.11.norm1, the input norm of the last attention" in result.out.replace("\n", " ")
    rows = {line.split()[0]: line for line in result.out.splitlines() if line.strip()}
    assert rows["blocks.11.norm1"].rstrip().endswith("default")
    assert rows["norm"].rstrip().endswith("nothing is read")
    assert not rows["blocks.10"].rstrip().endswith("nothing is read")


def test_layers_of_an_unknown_model_are_refused(cli: Run) -> None:
    assert_refused(cli("layers", "timm:resnet19"), "resnet19", "'resnet18'")


def test_methods_lists_each_with_what_it_shows_and_where_it_is_defined(cli: Run) -> None:
    result = cli("methods")
    assert (result.code, result.err) == (0, "")
    for name, one in list_methods().items():
        assert re.search(rf"^{re.escape(name)} .*{re.escape(one.summary[:40])}", result.out, re.MULTILINE)
        assert f"{name}: {one.reference}" in result.out
        assert all(f"--option {option}=" in result.out for option in one.options)


def test_the_options_that_methods_lists_can_be_typed(cli: Run, photo: Path) -> None:
    listed = cli("methods").out
    for name, one in list_methods().items():
        # The others are slow, or not for this model; their options are read in the same way.
        if not one.options or one.needs in ("input", "input-gradients", "model", "scores", *WANTED):
            continue
        shown = re.search(rf"^{re.escape(name)}: .*$", listed, re.MULTILINE)
        assert shown
        typed = re.findall(r"--option (\S+?),?(?:$|\s)", shown[0])
        assert len(typed) == len(one.options)
        result = cli("explain", photo, "--method", name, *(f"--option={option}" for option in typed), "--force")
        assert result.code == 0, (name, result.err)


def test_models_names_the_sources_and_searches(cli: Run) -> None:
    result = cli("models")
    assert (result.code, result.err) == (0, "")
    shown = [line.split()[0] for line in result.out.splitlines()[1:6]]
    assert [one.partition(":")[0] for one in shown] == ["bundled", "torchvision", "timm", "hf", "keras"]
    found = cli("models", "resnet18").out.splitlines()
    assert {"torchvision:resnet18", "timm:resnet18"} <= set(found)
    assert all("resnet18" in line for line in found)
    assert len(cli("models", "torchvision:").out.splitlines()) > 50
    assert_refused(cli("models", "resnot18"), "resnot18", "resnet18")


def test_doctor_checks_everything_from_end_to_end(cli: Run) -> None:
    result = cli("doctor")
    assert (result.code, result.err) == (0, "")
    said = result.out
    for word in (
        "sightline 0.",
        f"torch {torch.__version__.partition('+')[0]}",
        "threads",
        "sha256 57934424",
        "EfficientNet-Lite0",
    ):
        assert word in said
    assert re.search(r"(?m)^classes +1,000$", said)
    assert re.search(r"(?m)^layer +bn2$", said)
    assert re.search(r"a photograph of a cat: .*(cat|tabby)", said)
    assert said.splitlines()[-1] == "all is well"


def test_doctor_does_not_say_that_all_is_well_when_it_is_not(cli: Run) -> None:
    result = cli("doctor", "--model", SMALL, "--weights", "gone.pth")
    assert result.code == 2
    assert "all is well" not in result.out
    assert "gone.pth" in result.err


def test_doctor_checks_a_model_of_tokens(cli: Run) -> None:
    result = cli("doctor", "--model", "timm:vit_tiny_patch16_224", "--random-weights")
    assert result.code == 0
    assert "all is well" in result.out


def test_a_second_command_in_one_process_finds_every_command_once(cli: Run) -> None:
    cli("--help")
    names = [one.name for one in _app().registered_commands]
    assert len(names) == len(set(names)) > 10


@pytest.mark.parametrize("command", [[], ["--help"], *([one, "--help"] for one in ("explain", "compare", "models", "layers", "methods", "doctor"))])  # fmt: skip
def test_help_is_shown(command: list[str], cli: Run) -> None:
    result = cli(*command)
    shown = result.out + result.err
    assert "Usage: " in shown
    assert "Traceback" not in shown
    assert result.code == (0 if command else 2)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, atexit; from sightline.cli import main; sys.argv = ['sightline', 'explain', '--help']\n"
        "atexit.register(lambda: print([n for n in ('torch', 'timm', 'torchvision', 'matplotlib', 'PIL') if n in sys.modules]))\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


# One answer overflows what Python holds back before it writes, the other is written as the process ends.
@pytest.mark.parametrize("command", [["methods"], ["--help"]])
def test_a_reader_that_has_seen_enough_gives_no_traceback(command: list[str]) -> None:
    reader, writer = os.pipe()
    process = start(*command, stdout=writer)
    os.close(writer)
    os.close(reader)  # as `| head -0` does
    result = finish(process)
    assert result.err == ""


def test_methods_into_head_shows_one_line_without_a_traceback() -> None:
    sightline = shutil.which("sightline", path=Path(sys.executable).parent)
    if sightline is None:
        pytest.skip("the command is not installed beside this python")
    script = f"set -o pipefail; '{sightline}' methods | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_real_process_prints_nothing_but_its_answer(photo: Path, tmp_path: Path) -> None:
    result = finish(start("explain", photo, "--json", "-o", tmp_path / "out"))
    assert (result.code, result.err) == (0, "")
    assert len(result.lines) == 1


def test_a_device_is_where_the_model_runs(cli: Run, photo: Path) -> None:
    assert cli("explain", photo, "--device", "cpu", "-o", "out").code == 0
    assert bundles(Path("out")) == {"cat"}


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("gpu", "--device 'gpu'; expected cpu, cuda, cuda:1, mps or xpu"),
        ("meta", "expected cpu"),
        ("cuda:1234", "expected cpu"),
        ("cuda:999", "can't be moved to cuda:999: "),
    ],
)
def test_a_device_that_is_not_there_is_refused(cli: Run, photo: Path, device: str, says: str) -> None:
    done = cli("explain", photo, "--model", SMALL, "--random-weights", "--device", device)
    assert done.code == 2
    assert says in done.err
    assert not Path("sightline-out").exists()
