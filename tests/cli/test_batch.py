"""`sightline batch` as a person meets it: its words, its exit codes, and what Ctrl-C does."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from commands import Result, Run, finish, start, wait_for
from made_batches import gone, make_pictures, shard_bytes


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "album", 16)


HOW = ("--batch", 2, "--shard", 4, "--workers", 1)


def test_a_run_tells_what_it_did_and_what_failed(cli: Run, tmp_path: Path) -> None:
    album = make_pictures(tmp_path / "album", 4)
    photo = sorted(album.rglob("*.jpg"))[1]
    content = photo.read_bytes()
    photo.write_bytes(content[:300])
    result = cli("batch", album, "-o", "run", *HOW)
    assert result.code == 1
    assert "3 pictures explained, in run" in result.out
    assert "sightline runs show run" in result.out
    assert "1 pictures failed (1 at stage read); their rows say why, and --retry-errors tries them again" in result.err
    refused = cli("batch", album, "-o", "run", *HOW)
    assert refused.code == 2
    assert "--resume goes on with it" in refused.err
    photo.write_bytes(content)
    result = cli("batch", album, "-o", "run", *HOW, "--retry-errors", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["done"] == 4
    assert cli("runs", "verify", "run").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere doesn't exist"),
        (("album", "--engine", "slow"), "expected one of local, ray"),
        (("album", "--methods", "grad-kam"), "grad-cam"),
        (("album", "--option", "samples=3"), "samples"),
        (("album", "-o", "album/run"), "lies inside the folder of pictures"),
        (("album", "-o", "/proc/run"), "/proc/run can't be written"),
        (("album", "-o", "file"), "file is no folder"),
        (("album", "--timeout", "nan"), "timeout"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_can_not_work_is_said_in_a_sentence(
    cli: Run, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    make_pictures(tmp_path / "album", 1)
    (tmp_path / "file").write_text("mine")
    result = cli("batch", *arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def begin(album: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """A run that takes long enough to be stopped."""
    methods = ("--methods", "occlusion", "--option", "patch=112", "--option", "stride=56")
    return start("batch", album, "-o", output, *methods, *HOW, *more, start_new_session=True)


def under_way(output: Path) -> bool:
    return (output / "shards" / "000000.parquet").exists()


def ended_well(process: subprocess.Popen[str], code: int) -> Result:
    """It ends with this code, no traceback, and no process of its own left."""
    readers = {one.pid for one in psutil.Process(process.pid).children(recursive=True)}
    result = finish(process)
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert gone(readers)
    return result


@pytest.fixture(scope="module")
def whole(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert finish(begin(album, output)).code == 0
    return output


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_run_that_is_asked_to_stop_says_how_to_go_on(
    number: int, code: int, album: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a run"
    process = begin(album, output)
    wait_for(lambda: under_way(output), process)
    process.send_signal(number)
    result = ended_well(process, code)
    assert "pictures are done and kept" in result.err
    again = shlex.split(result.err.partition("To go on: ")[2].splitlines()[0])
    assert again[:2] == ["sightline", "batch"]
    assert again[-1] == "--resume"
    assert finish(start(*again[1:])).code == 0
    assert shard_bytes(output) == shard_bytes(whole)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(album: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = begin(album, output)
    wait_for(lambda: under_way(output), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    ended_well(process, 130)
    assert not [one for one in (output / "shards").iterdir() if one.name.startswith(".")]
    assert finish(begin(album, output, "--resume")).code == 0
    assert shard_bytes(output) == shard_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.8, 1.5, 2.5, 3.5, 4.5, 6.0])
def test_ctrl_c_before_anything_is_computed_is_no_traceback(moment: float, album: Path, tmp_path: Path) -> None:
    process = begin(album, tmp_path / "run")
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    ended_well(process, 130)
