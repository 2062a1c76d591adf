"""`sightline evaluate`, `sightline metrics` and `explain --trust` as a person meets them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from PIL import Image

from commands import Run, finish, start, wait_for
from sightline.cli.doctor import DEMO


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    with Image.open(DEMO) as image:
        for number in range(4):
            image.convert("RGB").resize((120 + number, 80)).save(folder / f"{number}.jpg")
    return folder


def test_evaluate_prints_the_table_and_says_where_all_is(cli: Run, album: Path) -> None:
    result = cli("evaluate", album, "--methods", "grad-cam,eigen-cam", "--metrics", "average-drop", "-o", "out")
    assert result.code == 0, result.err
    assert "| grad-cam |" in result.out
    assert "**random map**" in result.out
    assert "out" in result.out.splitlines()[-1]
    assert (Path("out") / "values.parquet").exists()


def test_evaluate_gives_json_for_machines(cli: Run, album: Path) -> None:
    result = cli("evaluate", album, "--methods", "grad-cam", "--metrics", "sparseness", "-o", "out", "--json")
    found = json.loads(result.out)
    assert found["pictures"] == 4
    assert {one["method"] for one in found["table"]} == {"grad-cam", "random map", "centred blob"}


def test_settings_of_metrics_and_options_of_methods_arrive(cli: Run, album: Path) -> None:
    arguments = ("evaluate", album, "--methods", "grad-cam++", "--option", "normalise=true", "--metrics", "deletion")
    assert cli(*arguments, "--setting", "deletion.step=20000", "-o", "out").code == 0
    plan = json.loads((Path("out") / "manifest.json").read_text())["plan"]
    assert plan["metrics"] == {"deletion": {"step": 20000, "seed": 0}}
    assert plan["methods"] == {"grad-cam++": {"normalise": True}}
    wrong = cli(*arguments, "--setting", "deletion=5", "-o", "out2")
    assert wrong.code == 2
    assert "METRIC.NAME=VALUE" in wrong.err
    unknown = cli(*arguments, "--option", "samples=5", "-o", "out2")
    assert unknown.code == 2
    assert "--option samples" in unknown.err


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(album: Path, tmp_path: Path) -> None:
    with Image.open(DEMO) as image:
        for number in range(4, 16):
            image.convert("RGB").resize((120 + number, 80)).save(album / f"{number:02}.jpg")
    arguments = (
        "evaluate",
        album,
        "--methods",
        "grad-cam",
        "--metrics",
        "average-drop,deletion",
        "-o",
        tmp_path / "out",
    )
    process = start(*arguments)
    lines = tmp_path / "out" / "values.jsonl"
    try:
        wait_for(lambda: lines.exists() and lines.read_bytes().count(b"\n") >= 2, process)
        process.send_signal(signal.SIGINT)
        result = finish(process)
    finally:
        process.kill()
    assert result.code == 130
    assert "Traceback" not in result.err
    assert "the same command goes on" in result.err
    done = lines.read_bytes()
    assert 2 <= done.count(b"\n") < 16
    again = finish(start(*arguments, "--limit", "0"))
    assert again.code == 0, again.err
    assert lines.read_bytes().startswith(done)
    assert lines.read_bytes().count(b"\n") == 16


@pytest.mark.slow
def test_kill_9_at_any_time_loses_and_doubles_nothing(album: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", album, "--methods", "grad-cam", "--metrics", "average-drop,sparseness", "-o")
    assert finish(start(*arguments, tmp_path / "whole")).code == 0
    lines = tmp_path / "out" / "values.jsonl"
    for count in (1, 3):
        process = start(*arguments, tmp_path / "out")
        try:
            wait_for(lambda count=count: lines.exists() and lines.read_bytes().count(b"\n") >= count, process)
        finally:
            process.kill()
            process.communicate()
    assert finish(start(*arguments, tmp_path / "out")).code == 0
    for name in ("values.jsonl", "table.md", "values.parquet", "pairs.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_broken_picture_ends_with_1_and_is_named(cli: Run, album: Path) -> None:
    (album / "broken.jpg").write_bytes(b"no picture")
    result = cli("evaluate", album, "--methods", "grad-cam", "--metrics", "sparseness", "-o", "out")
    assert result.code == 1
    assert "1 pictures could not be evaluated" in result.err
    assert "broken.jpg" in (Path("out") / "table.md").read_text()


def test_metrics_are_listed_with_their_direction_and_source(cli: Run) -> None:
    result = cli("metrics")
    assert result.code == 0
    for word in (
        "deletion",
        "lower",
        "arXiv:1806.07421",
        "--setting deletion.step=224",
        "zeros of the normalised input",
    ):
        assert word in result.out


def test_trust_says_beforehand_how_much_it_asks_and_gives_verdict_checks_and_picture(cli: Run, album: Path) -> None:
    result = cli("explain", album / "0.jpg", "--trust", "-o", "out")
    assert result.code == 0, result.err
    assert "about 60 pictures are shown to the model" in result.err
    assert "by the checks" in result.out
    for check in ("evidence", "faithfulness", "class sensitivity", "randomisation", "agreement"):
        assert f"    {check}: " in result.out
    with Image.open(Path("out") / "0" / "trust.png") as card:
        assert card.width > 700
    written = json.loads((Path("out") / "0" / "trust.json").read_text())
    assert written["verdict"] in {"supported", "weak", "not supported"}
    assert written["forwards"] <= 60
    assert set(written["curves"]["deletion"]) == {"this map", "random map 1", "random map 2", "centred blob"}


def test_trust_comes_with_json_too(cli: Run, album: Path) -> None:
    (line,) = cli("explain", album / "0.jpg", "--trust", "--json", "-o", "out").lines
    card = line["maps"][0]["trust"]
    assert card["verdict"]
    assert line["maps"][0]["files"]["trust"].endswith("trust.png")
    (plain,) = cli("explain", album / "1.jpg", "--json", "-o", "out").lines
    assert "trust" not in plain["maps"][0]
    assert "trust" not in plain["maps"][0]["files"]


def test_an_unknown_amount_of_trust_is_refused(cli: Run, album: Path) -> None:
    result = cli("explain", album / "0.jpg", "--trust=much", "-o", "out")
    assert result.code == 2
    assert "quick or full" in result.err
