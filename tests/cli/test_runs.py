"""`sightline runs` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from commands import Run
from made_runs import FAILED, IDS, make_run
from sightline.batch.shards import shard_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "deep" / "run")


def test_list_shows_the_runs_of_every_command_below_a_folder(cli: Run, folder: Path, tmp_path: Path) -> None:
    unfinished = make_run(tmp_path / "unfinished")
    (unfinished / "shards" / shard_name(0)).unlink()
    plans = {
        "judged": ("evaluate", {"model": {"name": "timm:resnet18"}, "pictures": {"a.jpg": [1, 2, ""], "b.jpg": [1, 2, ""]}}),
        "trained": ("train", {"model": "bundled", "pictures": "0f0f"}),
        "bundle": ("bundle", {}),
    }  # fmt: skip
    for name, (command, plan) in plans.items():
        (tmp_path / name).mkdir()
        content = {"schema": f"sightline.{command}/1", "plan": plan}
        (tmp_path / name / "manifest.json").write_text(json.dumps(content))
    (tmp_path / "judged" / "values.jsonl").write_text('{"name": "a.jpg"}\n{"name": "b.jpg", "error": "x"}\n{"name": "b')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("[" * 100_000)
    result = cli("runs", "list")
    assert result.code == 0, result.err
    head, *lines = result.out.splitlines()
    assert head.split() == ["folder", "command", "model", "pictures", "done", "errors", "state"]
    assert [" ".join(line.split()) for line in lines] == [
        "deep/run batch bundled 10 9 1 complete",
        "judged evaluate timm:resnet18 2 1 1 not complete",
        "trained train bundled not complete",
        "unfinished batch bundled 10 6 1 shards are missing",
    ]


def test_list_believes_no_summary_that_counts_other_pictures(cli: Run, folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({"done": 3, "errors": 1}))
    assert cli("runs", "list").out.rstrip().endswith("its summary is damaged")
    (folder / "summary.json").unlink()
    assert cli("runs", "list").out.rstrip().endswith("no summary yet")


def test_list_says_where_nothing_is(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = cli("runs", "list", "empty")
    assert (result.code, result.out) == (0, "")
    assert "no run in empty" in result.err
    assert cli("runs", "list", "nowhere").code == 2


def test_show_says_what_a_run_found(cli: Run, folder: Path) -> None:
    result = cli("runs", "show", folder)
    assert result.code == 0, result.err
    assert "9 done, 1 with an error" in result.out
    for line in ("tabby 9", "read 1", "nearly empty 9"):
        assert line in [" ".join(one.split()) for one in result.out.splitlines()]
    found = json.loads(cli("runs", "show", folder, "--json").out)
    assert (found["complete"], found["done"], found["plan"]["batch"]) == (True, 9, 8)


def test_show_of_a_run_that_was_stopped_counts_what_is_there(cli: Run, folder: Path) -> None:
    (folder / "shards" / shard_name(0)).unlink()
    result = cli("runs", "show", folder)
    assert "5 done, 1 with an error" in result.out
    assert "1 of 3 shards are missing" in result.out


def test_verify_ends_with_1_when_something_is_wrong(cli: Run, folder: Path) -> None:
    result = cli("runs", "verify", folder)
    assert (result.code, result.out) == (0, "all is well: 10 rows in 3 shards\n")
    (folder / "shards" / shard_name(0)).write_bytes(b"")
    result = cli("runs", "verify", folder)
    assert result.code == 1
    assert "000000.parquet is damaged" in result.out


def test_merge_and_export_write_where_they_are_told(cli: Run, folder: Path, tmp_path: Path) -> None:
    assert cli("runs", "merge", folder, "-o", "all").code == 0
    assert (tmp_path / "all" / "part-00000.parquet").exists()
    again = cli("runs", "merge", folder, "-o", "all")
    assert again.code == 2
    assert "--force" in again.err
    assert cli("runs", "export", folder, "-o", "out", "--thumbnails", "--id", IDS[1]).code == 0
    assert len(list((tmp_path / "out" / "thumbnails").iterdir())) == 1
    assert not (tmp_path / "out" / "maps").exists()
    assert cli("runs", "export", folder, "-o", "both", "--limit", "2").code == 0
    assert len(list((tmp_path / "both" / "maps").glob("*.npy"))) == 4
    failed = cli("runs", "export", folder, "-o", "no", "--id", IDS[FAILED])
    assert (failed.code, failed.out) == (2, "")


@pytest.mark.parametrize("command", ["show", "verify", "export", "merge"])
def test_what_is_no_run_is_one_message(cli: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "manifest.json").write_text("[1]")
    result = cli("runs", command, ".", *(["-o", "out"] if command in ("export", "merge") else []))
    assert result.code == 2
    assert "is no run of `sightline batch`" in result.err
    assert "Traceback" not in result.err


def test_control_characters_of_a_run_do_not_reach_the_terminal(cli: Run, tmp_path: Path) -> None:
    def change(one: dict[str, object]) -> None:
        one["predictions"] = [{"index": 0, "label": "\x1b[2Jgone", "probability": 1.0}]

    make_run(tmp_path / "run", failed=(), change=change, model={"name": "\x1b]0;x\x07"})
    for command in (("list",), ("show", "run")):
        assert "\x1b" not in cli("runs", *command).out


def test_looking_at_runs_loads_no_torch(folder: Path) -> None:
    code = f"""
import sys
from sightline.cli import main
sys.argv = ["sightline", "runs", "show", {str(folder)!r}]
try:
    main()
except SystemExit:
    print("torch" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"
