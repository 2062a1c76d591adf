"""Processes that read pictures under attack: stopped, killed, silent in the middle, never begun."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from made_batches import PREPROCESS, begin, end, gone, make_pictures, readers, steps
from sightline.batch import decode
from sightline.batch.decode import Decoders, Failure, Picture, Task
from sightline.errors import OutputError
from sightline.models.preprocess import Preprocess, standard


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data"), 12)


@pytest.fixture
def groups(data: Path) -> list[list[Task]]:
    """Three groups of four."""
    tasks = [Task(str(one), -1, one.stat().st_size) for one in sorted(data.rglob("*.jpg"))]
    return [tasks[start : start + 4] for start in range(0, 12, 4)]


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No process, thread or file outlives its test."""
    files, threads = open_files(), threading.active_count()
    yield
    gc.collect()
    assert not reading()
    assert threading.active_count() <= threads
    assert open_files() <= files + 3  # of multiprocessing's own, once


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def decoders(preprocess: Preprocess = PREPROCESS, *, workers: int = 1, timeout_s: float = 60) -> Decoders:
    return Decoders("files", "/", preprocess, workers=workers, timeout_s=timeout_s)


def reading() -> list[psutil.Process]:
    """The processes that read."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "sightline.batch.decode" in one.cmdline():
                found.append(one)
    return found


def reader() -> psutil.Process:
    """The one process that reads."""
    (one,) = reading()
    return one


def read(opened: Decoders, group: list[Task]) -> list[Picture | Failure]:
    (found,) = opened.batches([group])
    return found


def test_a_process_that_hangs_or_dies_costs_the_picture_it_was_at(
    groups: list[list[Task]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the user stands lie modules of somebody else, which nothing may take.
    monkeypatch.chdir(tmp_path)
    for name in ("json", "struct", "sightline", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('foreign code ran')")
    with decoders(timeout_s=4) as opened:
        good = [one for group in groups for one in read(opened, group)]
        assert all(isinstance(one, Picture) for one in good)

        reader().kill()  # while it has nothing to do
        time.sleep(0.2)
        again = read(opened, groups[0])
        assert all(isinstance(one, Picture) for one in again)

        one = reader()
        one.suspend()
        threading.Timer(0.3, one.kill).start()
        found = read(opened, groups[1])
        assert found[0] == Failure("read", "Crash", "the picture ended the process that read it (SIGKILL)")
        assert all(same(*pair) for pair in zip(found[1:], good[5:8], strict=True))

        reader().suspend()
        start = time.monotonic()
        found = read(opened, groups[2])
        assert time.monotonic() - start > 3.9
        assert found[0] == Failure("read", "Timeout", "the picture is still not read after 4 s; it may be broken")
        assert all(same(*pair) for pair in zip(found[1:], good[9:], strict=True))


def same(one: Picture | Failure, other: Picture | Failure) -> bool:
    assert isinstance(one, Picture)
    assert isinstance(other, Picture)
    return torch.equal(one.x, other.x) and one.view == other.view and one.thumbnail == other.thumbnail


@pytest.mark.slow
def test_a_process_that_falls_silent_in_the_middle_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((2000, 2000, 3), np.uint8)).save(tmp_path / "0.png")
    large = standard((2000, 2000), 2000, mean=(0, 0, 0), std=(1, 1, 1))
    task = Task(str(tmp_path / "0.png"), -1, 1)
    real = decode._Worker.hear
    heard: list[int] = []

    def stopped(self: decode._Worker) -> object:
        heard.append(1)
        if len(heard) == 2:  # the picture has begun to come, and is larger than what is kept between two processes
            os.kill(self._process.pid, signal.SIGSTOP)
        return real(self)

    monkeypatch.setattr(decode._Worker, "hear", stopped)
    with decoders(large, timeout_s=5) as opened:
        first, second = read(opened, [task, task])
    assert first == Failure("read", "Timeout", "half of the picture came, and no more for 5 s")
    assert isinstance(second, Picture)


def test_processes_that_can_not_be_started_are_an_error(
    groups: list[list[Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with decoders() as opened, pytest.raises(OutputError, match="can't be started: exit code 1"):
        read(opened, groups[0])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with decoders() as opened, pytest.raises(OutputError, match="can't be started: No such file"):
        read(opened, groups[0])


def test_leaving_in_the_middle_leaves_nothing(groups: list[list[Task]]) -> None:
    with decoders(workers=2) as opened:
        next(opened.batches(groups * 100))


@pytest.mark.slow
def test_no_more_pictures_are_held_than_there_is_room_for(
    groups: list[list[Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_MOST_HELD", 1)
    held = []
    with decoders(lambda image: PREPROCESS(image), workers=1) as opened:
        for found in opened.batches(groups):
            time.sleep(0.2)
            held.append(len(opened._done))
            assert len(found) == 4
    assert max(held) <= 2  # those that were under way
    assert opened._held == 0


@pytest.mark.slow
def test_what_a_function_of_the_users_own_raises_is_a_failure(groups: list[list[Task]]) -> None:
    def own(image: Image.Image) -> object:
        if np.asarray(image)[0, 0, 0] % 2:
            raise ZeroDivisionError("of my own")
        return PREPROCESS(image)

    with decoders(own) as opened:  # type: ignore[arg-type]
        found = [one for group in groups for one in read(opened, group)]
    assert {type(one) for one in found} == {Picture, Failure}
    assert {one for one in found if isinstance(one, Failure)} == {Failure("prepare", "ZeroDivisionError", "of my own")}


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_process_not_even_one_that_hangs(tmp_path: Path) -> None:
    data, log = make_pictures(tmp_path / "data"), tmp_path / "log"
    process = begin(data, tmp_path / "run", log, workers=2, model={"slow_s": 0.3})
    start = time.monotonic()
    while not (log.exists() and "a batch is done" in steps(log)):
        assert time.monotonic() < start + 60
        time.sleep(0.02)
    processes = readers(log)
    assert processes
    os.kill(next(iter(processes)), signal.SIGSTOP)
    process.kill()
    assert end(process) == -signal.SIGKILL
    assert gone(processes)


@pytest.mark.slow
def test_many_crashes_leave_nothing(groups: list[list[Task]]) -> None:
    found: list[Picture | Failure] = []
    with decoders(workers=4) as opened:
        for number, each in enumerate(opened.batches(groups * 30)):
            found += each
            if number % 5 == 0:
                for one in reading()[:1]:
                    one.kill()
    assert len(found) == 360
    assert {one.error for one in found if isinstance(one, Failure)} == {"Crash"}
