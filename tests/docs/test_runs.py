"""What docs/runs.md says of reading a run is so."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import sightline
from made_runs import make_run
from sightline.batch.shards import schema
from sightline.cli import main

DEMO = Path(sightline.__file__).parent / "data" / "demo"
PAGE = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
MAKING = PAGE.partition("\n## Making a run\n")[2].partition("\n### On a cluster\n")[0]
READING = re.split(r"^## ", PAGE.partition("\n## Reading a run\n")[2], flags=re.M)[0]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place with the runs that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    make_run(tmp_path / "other", ["dogs/1.jpg", "dogs/2.jpg"], failed=())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, photo in enumerate(sorted(DEMO.glob("*.jpg")) * 2):
        place = folder / ("espresso", "tabby")[number % 2]  # names of classes, for --targets label
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, place / f"{number}.jpg")
    return folder


def test_python_of_making_a_run_runs(photos: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", MAKING, re.S)
    exec(compile(block, "docs/runs.md", "exec"), {})  # noqa: S102
    assert (tmp_path / "photos-run" / "summary.json").exists()


@pytest.mark.slow
def test_commands_of_making_a_run_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.csv").write_text("image\n" + "\n".join(map(str, photos.rglob("*.jpg"))), encoding="utf-8")
    lines = re.findall(r"```bash\n(.*?)```", PAGE.partition("\n### On a cluster\n")[0], re.S)
    commands = [line for line in "\n".join(lines).splitlines() if line.startswith("sightline batch")]
    assert len(commands) == 8
    for line in commands:
        line = line.replace("my.safetensors", "bundled")
        if "--resume" not in line:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        monkeypatch.setattr(sys, "argv", shlex.split(line.partition("#")[0]))
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert not end.value.code, shown.err
        assert "explained" in shown.out


def test_python_of_reading_a_run_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", READING, re.S)
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), "docs/runs.md", "exec"), {})  # noqa: S102
    assert (tmp_path / "both" / "part-00000.parquet").exists()
    assert (tmp_path / "some" / "index.jsonl").exists()


def test_commands_of_reading_a_run_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", READING, re.S)).splitlines()
    assert len(lines) == 5
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line.partition("#")[0]))
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert not end.value.code, shown.err
        assert shown.out


def test_the_table_of_columns_is_the_schemas() -> None:
    named = re.findall(r"^\| (`.*?) \| (.*) \|$", READING, re.M)
    assert [name for first, _ in named for name in re.findall(r"`(\w+)`", first)] == schema().names
    inner = {re.findall(r"`(\w+)`", first)[0]: re.findall(r"`(\w+)`", rest) for first, rest in named}
    for name in ("predictions", "maps"):
        held = schema(["deletion"]).field(name).type.value_type
        assert inner[name] == [one.name for one in held]
