"""Methods that ask the model many times, and several side by side, on the command line."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import Run
from sightline import list_methods
from sightline.cli import bundles
from sightline.cli.doctor import DEMO
from sightline.methods.registry import OF_INPUT

OUT = Path("sightline-out")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    with Image.open(DEMO) as image:
        image.convert("RGB").resize((120, 80)).save(tmp_path / "cat.jpg")
    return tmp_path / "cat.jpg"


def methods(*names: str) -> list[str]:
    return [word for name in names for word in ("--method", name)]


# ------------------------------------------------------------------------------------------------- how many are shown


def test_how_many_pictures_the_model_is_shown_is_said_before_and_once(cli: Run, photo: Path) -> None:
    stride = ["--option", "stride=20"]
    result = cli("compare", photo, *methods("occlusion", "grad-cam"), *stride, "--target", "lynx", "--target", "tabby")
    assert result.code == 0, result.err
    assert result.err == "occlusion: the model is shown 122 pictures\n"


def test_a_few_pictures_are_not_worth_a_word(cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--method", "occlusion", "--option", "patch=56", "--json")
    assert (result.code, result.err) == (0, "")
    assert len(result.lines) == 1


def test_what_would_show_more_than_max_calls_is_refused_before_it_starts(cli: Run, photo: Path) -> None:
    asked = ["explain", photo, "--method", "occlusion", "--option", "patch=56"]
    result = cli(*asked, "--max-calls", 50)
    assert result.code == 2
    assert "50 pictures after 1" in result.err
    assert "at most 50 were allowed" in result.err
    assert not OUT.exists()
    assert cli(*asked, "--max-calls", 51).code == 0


def test_compare_leaves_out_what_would_show_more_and_says_so(cli: Run, photo: Path) -> None:
    result = cli("compare", photo, *methods("occlusion", "grad-cam"), "--max-calls", 50)
    assert result.code == 0
    assert "note: occlusion is left out" in result.out
    assert "the model is shown" not in result.err


def test_the_checks_of_a_map_are_refused_where_max_calls_leaves_too_few(cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--trust", "--max-calls", 20)
    assert result.code == 2
    assert "--max-calls leaves 19" in result.err
    assert not OUT.exists()


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5"])
def test_max_calls_is_a_whole_number_from_1_on(number: str, cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--max-calls", number)
    assert result.code == 2
    assert "--max-calls" in result.err


def test_ctrl_c_between_two_questions_ends_with_130_and_leaves_nothing(
    cli: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bundles.tell

    def tell(text: str) -> None:
        real(text)
        if "the model is shown" in text:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(bundles, "tell", tell)
    result = cli("explain", photo, "--method", "occlusion", "--option", "stride=1", "--option", "patch=2")  # 50,000
    assert result.code == 130
    first, last = result.err.splitlines()
    assert first.startswith("occlusion: the model is shown")
    assert last == "stopped before the first picture was done; nothing was written"
    assert [one.name for one in tmp_path.iterdir()] == ["cat.jpg"]


# ---------------------------------------------------------------------------------------------------------- agreement


def test_three_methods_are_told_how_far_they_agree(cli: Run, photo: Path) -> None:
    names = ["grad-cam", "saliency", "input-x-gradient"]
    result = cli("compare", photo, *methods(*names))
    assert result.code == 0, result.err
    manifest = json.loads((OUT / "cat" / "manifest.json").read_text(encoding="utf-8"))
    (found,) = manifest["agreement"]
    assert found["names"] == names
    assert np.array(found["matrix"]).shape == (3, 3)
    assert found["median"] == pytest.approx(
        np.median([found["matrix"][0][1], found["matrix"][0][2], found["matrix"][1][2]])
    )
    assert found["files"] == {"picture": "agreement.png"}
    assert (OUT / "cat" / "agreement.png").is_file()
    (line,) = [line for line in result.out.splitlines() if line.startswith("  agreement")]
    assert found["says"] in line
    assert ("RED FLAG" in line) == found["disagree"] == (found["median"] < 0.5)
    assert "agreement.png" in result.out.splitlines()[-1]


def test_each_target_has_its_own_agreement_also_as_json(cli: Run, photo: Path) -> None:
    names = methods("grad-cam", "layer-cam", "saliency")
    result = cli("compare", photo, *names, "--target", "lynx", "--target", "tabby", "--json")
    (line,) = result.lines
    assert [one["target"] for one in line["agreement"]] == ["lynx", "tabby"]
    files = [Path(one["files"]["picture"]) for one in line["agreement"]]
    assert [file.name for file in files] == ["agreement-1.png", "agreement-2.png"]
    assert all(file.is_file() for file in files)


def test_two_methods_or_one_at_several_layers_are_no_vote(cli: Run, photo: Path) -> None:
    for asked in (methods("grad-cam", "saliency"), ["--layer", "all"]):
        result = cli("compare", photo, *asked, "--force")
        assert result.code == 0, result.err
        assert "agreement" not in result.out
        assert "agreement" not in json.loads((OUT / "cat" / "manifest.json").read_text(encoding="utf-8"))
        assert not list((OUT / "cat").glob("agreement*"))


# ------------------------------------------------------------------------------------------------------------- styles


def test_what_a_method_says_beside_its_map_is_in_the_json(cli: Run, photo: Path) -> None:
    result = cli("explain", photo, "--method", "integrated-gradients", "--option", "steps=2", "--json")
    (line,) = result.lines
    assert set(line["maps"][0]["details"]) == {"residual", "rise"}


def test_superpixels_of_a_method_without_some_are_refused_before_the_first_picture(cli: Run, photo: Path) -> None:
    result = cli("compare", photo, *methods("grad-cam", "occlusion"), "--style", "superpixels")
    assert result.code == 2
    assert "grad-cam has no superpixels" in result.err
    assert "lime" in result.err
    assert not OUT.exists()


@pytest.mark.parametrize("method", [name for name, one in list_methods().items() if one.needs in OF_INPUT])
def test_every_map_of_pixels_becomes_a_whole_bundle(cli: Run, photo: Path, method: str) -> None:
    few = {"samples": 20, "steps": 3, "segments": 6, "patch": 100}
    given = [f"{name}={value}" for name, value in few.items() if name in list_methods()[method].options]
    result = cli("explain", photo, "--method", method, *[word for one in given for word in ("--option", one)], "--json")
    assert result.code == 0, result.err
    files = result.lines[0]["maps"][0]["files"]
    for name in files.values():
        assert Path(name).stat().st_size > 0
    assert {"overlay", "panel", "map"} <= set(files)
    raw = np.load(files["map"], allow_pickle=False)
    assert np.isfinite(raw).all()
    assert raw.any()
    for name in ("segments", "standard error"):
        if name in files:
            assert np.load(files[name], allow_pickle=False).shape == raw.shape
