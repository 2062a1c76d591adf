"""A run over a data set under attack: killed, stopped, without disk, with broken pictures, and under another plan."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

import sightline
from made_batches import (
    BATCH,
    COUNT,
    PREPROCESS,
    SHARD,
    begin,
    end,
    explain,
    gone,
    make_pictures,
    readers,
    shard_bytes,
    steps,
    tiny,
    tree,
)
from sightline.batch.local import PARTIAL
from sightline.batch.shards import shard_name
from sightline.errors import MethodError, MetricError, OutputError, TargetError
from sightline.models.view import View

WHOLE = ["items.parquet", "lock", "manifest.json", *(f"shards/{shard_name(one)}" for one in range(3)), "summary.json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def clean(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    explain(data, folder := tmp_path_factory.mktemp("clean") / "run")
    return folder


def is_as_clean(output: Path, clean: Path) -> None:
    """The run is complete, verified, and its shards are those of the run that nothing happened to, to the byte."""
    assert tree(output) == WHOLE
    assert shard_bytes(output) == shard_bytes(clean)
    assert sightline.open_run(output).verify() == []
    assert (output / "summary.json").read_bytes() == (clean / "summary.json").read_bytes()


# -------------------------------------------------------------------------------------------------------------- killed

WRITING = ("before writing", "written", "on the disk", "counted", "named")
# One run, killed at each step in turn: at the list of pictures, in the first shard, in the second, after the third, at the end.
# Beside each: which batches are computed on the way there, all of them in vain but for those of shards that have their name.
STEPS = [
    ("planned", 1, 0), *((step, 1, 0) for step in WRITING),
    ("a batch is done", 1, 1), ("a batch is done", 2, 2), *((step, 1, 2) for step in WRITING[:-1]), ("a batch is done", 3, 3),
    ("named", 1, 2), ("a shard is done", 1, 2), ("before the summary", 1, 0), ("summary", 1, 0),
]  # fmt: skip


def dies_and_goes_on(data: Path, output: Path, log: Path, kills: list[tuple[str, int, int]]) -> None:
    """Kills a run at one step after the other, and lets it end; no kill may cost more than a shard's work."""
    forwards = log.with_name("forwards")
    computed = 0
    for number, (step, times, batches) in enumerate(kills):
        process = begin(data, output, log, dies=(step, times), resume=True, model={"listen": str(forwards)})
        code = end(process)
        assert code == -signal.SIGKILL, f"{step} {times}, number {number}, was not reached: {log.read_text()}"
        assert steps(log)[-1] == step, number
        computed += batches
        assert (computed_in(forwards), step, number) == (computed, step, number)
    assert end(begin(data, output, log, resume=True, model={"listen": str(forwards)})) == 0, log.read_text()
    assert computed_in(forwards) <= COUNT // BATCH + len(kills) * SHARD // BATCH
    assert gone(readers(log))


def computed_in(forwards: Path) -> int:
    """How many whole batches the model was shown."""
    return forwards.read_text().splitlines().count(str(BATCH)) if forwards.exists() else 0


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(data: Path, clean: Path, tmp_path: Path) -> None:
    dies_and_goes_on(data, tmp_path / "run", tmp_path / "log", [("written", 2, 2)])
    is_as_clean(tmp_path / "run", clean)


@pytest.mark.slow
def test_a_run_that_is_killed_at_every_step_goes_on(data: Path, clean: Path, tmp_path: Path) -> None:
    dies_and_goes_on(data, tmp_path / "run", tmp_path / "log", STEPS)
    is_as_clean(tmp_path / "run", clean)


@pytest.mark.slow
def test_a_run_that_is_killed_at_ten_random_moments_goes_on(data: Path, clean: Path, tmp_path: Path) -> None:
    moments, log, output = random.Random(0), tmp_path / "log", tmp_path / "run"
    forwards = tmp_path / "forwards"
    how = {"listen": str(forwards), "slow_s": 0.05}
    killed = 0
    for _ in range(60):  # on a fast machine many of them end before they are killed
        if killed == 10:
            break
        process = begin(data, output, log, resume=True, model=how)
        time.sleep(moments.uniform(0.05, 6))
        process.kill()
        killed += end(process) == -signal.SIGKILL
        if (output / "manifest.json").exists() and sightline.open_run(output).complete:
            is_as_clean_but_for_its_end(output, clean)
            shutil.rmtree(output)  # and again from the beginning
    assert killed == 10
    assert end(begin(data, output, log, resume=True, model=how)) == 0
    is_as_clean(output, clean)
    assert gone(readers(log))


def is_as_clean_but_for_its_end(output: Path, clean: Path) -> None:
    assert {name: one for name, one in shard_bytes(output).items() if not name.startswith(".")} == shard_bytes(clean)


@pytest.mark.slow
def test_a_retry_that_is_killed_goes_on(data: Path, clean: Path, tmp_path: Path) -> None:
    pictures, output, log = broken(data, tmp_path), tmp_path / "run", tmp_path / "log"
    explain(pictures, output)
    repair(data, pictures)
    for kill in (("planned anew", 1), ("before writing", 1), ("named", 1), ("written", 2), ("a shard is done", 1)):
        begun = shutil.copytree(output, tmp_path / kill[0])
        assert end(begin(pictures, begun, log, dies=kill, retry_errors=True)) == -signal.SIGKILL, log.read_text()
        assert steps(log)[-1] == kill[0]
        assert end(begin(pictures, begun, log, retry_errors=True)) == 0, log.read_text()
        is_as_clean(begun, clean)


def test_a_damaged_or_missing_shard_is_computed_again(data: Path, clean: Path, tmp_path: Path) -> None:
    output = shutil.copytree(clean, tmp_path / "run")
    (output / "shards" / shard_name(0)).unlink()
    (output / "shards" / shard_name(2)).write_bytes(b"PAR1 cut off")
    (output / "items.parquet").write_bytes(b"")
    (output / PARTIAL).write_bytes(b"no file of Parquet")
    explain(data, output, resume=True)
    is_as_clean(output, clean)


# -------------------------------------------------------------------------------------------------------------- stopped


def after(batches: int, *signals: int) -> Callable[[int, int, int], None]:
    """A watcher that sends signals when so many batches are done."""
    seen: list[int] = []

    def watch(_done: int, _of: int, _errors: int) -> None:
        seen.append(1)
        if len(seen) == batches:
            for one in signals:
                signal.raise_signal(one)

    return watch


def test_ctrl_c_keeps_the_batch_at_hand_and_the_run_goes_on(data: Path, clean: Path, tmp_path: Path) -> None:
    output, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        explain(data, output, watch=after(3, signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert len(pq.read_table(output / PARTIAL)) == BATCH
    assert tree(output) == ["items.parquet", "lock", "manifest.json", PARTIAL, "shards/000000.parquet"]
    with pytest.raises(SystemExit) as stop:  # asked of by the system this time, and before anything new is done
        explain(data, output, resume=True, watch=after(1, signal.SIGTERM))
    assert stop.value.code == 128 + signal.SIGTERM
    assert len(pq.read_table(output / PARTIAL)) == BATCH
    forwards = tmp_path / "forwards"
    explain(data, output, tiny(listen=str(forwards)), resume=True)
    assert forwards.read_text().splitlines().count(str(BATCH)) == (COUNT - SHARD - BATCH) // BATCH
    is_as_clean(output, clean)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_with_nothing_partial(data: Path, clean: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        explain(data, output, watch=after(3, signal.SIGINT, signal.SIGINT))
    assert tree(output) == ["items.parquet", "lock", "manifest.json", "shards/000000.parquet"]
    explain(data, output, resume=True)
    is_as_clean(output, clean)


@pytest.mark.slow
def test_a_retry_that_is_stopped_loses_nothing(data: Path, clean: Path, tmp_path: Path) -> None:
    pictures, output = broken(data, tmp_path), tmp_path / "run"
    explain(pictures, output)
    repair(data, pictures)
    with pytest.raises(KeyboardInterrupt):
        explain(pictures, output, retry_errors=True, watch=after(1, signal.SIGINT))
    run = sightline.open_run(output)
    assert run.complete
    assert run.verify() == [f"{output / 'summary.json'} is missing: the run didn't end. --resume ends it"]
    explain(pictures, output, retry_errors=True)
    is_as_clean(output, clean)


@pytest.mark.slow
def test_a_retry_tries_again_what_failed_in_a_shard_that_was_stopped(data: Path, clean: Path, tmp_path: Path) -> None:
    pictures, output = broken(data, tmp_path), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        explain(pictures, output, watch=after(1, signal.SIGINT))
    errors = pq.read_table(output / PARTIAL)["error"].to_pylist()
    assert len(errors) == BATCH
    assert any(errors)
    repair(data, pictures)
    explain(pictures, output, retry_errors=True)
    is_as_clean(output, clean)


# ----------------------------------------------------------------------------------------------------- broken pictures


def bomb() -> bytes:
    """A PNG that says it has 10^9 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


# Among them a whole batch, the first picture of all and the last.
BROKEN = {0: "empty", 4: "cut", 5: "text", 6: "bomb", 7: "link", 10: "pipe", 23: "gone into a folder"}


def broken(data: Path, tmp_path: Path) -> Path:
    """A copy of the data in which some pictures can't be read."""
    folder = shutil.copytree(data, tmp_path / "broken")
    for place, kind in BROKEN.items():
        file = sorted(folder.rglob("*.jpg"))[place]
        content = file.read_bytes()
        file.unlink()
        if kind == "link":
            file.symlink_to(sorted(data.rglob("*.jpg"))[place])
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            file.write_bytes(
                {"empty": b"", "cut": content[: len(content) // 2], "bomb": bomb()}.get(kind, b"no picture")
            )
    return folder


def repair(data: Path, folder: Path) -> None:
    for place in BROKEN:
        file = sorted(folder.rglob("*.jpg"))[place]
        file.unlink()
        shutil.copyfile(sorted(data.rglob("*.jpg"))[place], file)


def test_broken_pictures_are_rows_and_cost_the_others_nothing(data: Path, clean: Path, tmp_path: Path) -> None:
    pictures, output = broken(data, tmp_path), tmp_path / "run"
    run = explain(pictures, output)
    rows, wanted = run.arrow().to_pylist(), sightline.open_run(clean).arrow().to_pylist()
    assert len(rows) == COUNT
    for place, (row, one) in enumerate(zip(rows, wanted, strict=True)):
        if place in BROKEN:
            assert (row["id"], row["label"], row["stage"], row["error"]) == (
                one["id"],
                one["label"],
                "read",
                "ImageError",
            )
            assert row["message"]
            assert not row["maps"]
            assert row["predictions"] is None
        else:
            assert row == one
    assert "is a link" in rows[7]["message"]
    assert "regular file" in rows[10]["message"]
    assert json.loads((output / "summary.json").read_text())["errors by stage"] == {"read": len(BROKEN)}
    repair(data, pictures)
    with pytest.raises(OutputError, match=r"7 that failed changed .*--retry-errors tries those again"):
        explain(pictures, output, resume=True)
    explain(pictures, output, retry_errors=True)
    is_as_clean(output, clean)


def test_a_retry_refuses_where_a_picture_with_a_result_changed(data: Path, clean: Path, tmp_path: Path) -> None:
    output = shutil.copytree(clean, tmp_path / "run")
    pictures = shutil.copytree(data, tmp_path / "pictures")
    os.utime(sorted(pictures.rglob("*.jpg"))[1], ns=(1, 1))
    with pytest.raises(OutputError, match=r"1 changed \(such as ash/003.jpg\)"):
        explain(pictures, output, retry_errors=True)
    is_as_clean(output, clean)


# ------------------------------------------------------------------------------------------------------------ the disk


def test_a_full_disk_ends_the_run_with_nothing_partial_and_it_goes_on(data: Path, clean: Path, tmp_path: Path) -> None:
    output, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (clean / "shards" / shard_name(0)).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, limits[1]))
    try:
        with pytest.raises(OutputError, match="run can't be written: File too large"):
            explain(data, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [one for one in tree(output) if one.startswith("shards")]
    explain(data, output, resume=True)
    is_as_clean(output, clean)


@pytest.mark.slow
def test_a_folder_that_vanishes_ends_the_run(data: Path, clean: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    seen: list[int] = []

    def watch(done: int, _of: int, _errors: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            shutil.rmtree(output)

    with pytest.raises(OutputError, match="can't be written: No such file"):
        explain(data, output, watch=watch)
    explain(data, output)
    is_as_clean(output, clean)


# ------------------------------------------------------------------------------------------------------- another plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ["eigen-cam"]}, "methods"),
        ({"methods": ["grad-cam++"], "options": {"normalise": True}}, "methods"),
        ({"targets": "top3"}, 'targets was "predicted" and is "top3"'),
        ({"targets": "elm"}, "targets"),
        ({"metrics": ["sparseness"]}, "metrics"),
        ({"layer": "conv1"}, 'layer was "conv2" and is "conv1"'),
        ({"batch_size": 2}, "batch was 4 and is 2"),
        ({"shard_size": 4}, "shard was 8 and is 4"),
        ({"limit": 5}, "they were 24 and are 5|19 gone"),
        ({"model": {"blind": False, "weights": 2.0}}, "model: weights"),
        ({"model": {"preprocess": 3}}, "model: input"),
    ],
    ids=lambda one: str(one)[:30],
)  # fmt: skip
def test_a_run_of_another_plan_is_refused_with_the_difference(
    change: dict[str, Any], said: str, data: Path, clean: Path
) -> None:
    how = dict(change)
    changed = how.pop("model", {})
    model = tiny()
    if "weights" in changed:
        model.module.head.bias.data += 1
    if "preprocess" in changed:
        model = tiny(sightline.models.preprocess.standard((32, 32), 32, mean=(0, 0, 0), std=(1, 1, 1)))
    with pytest.raises(OutputError, match=said):
        explain(data, clean, model, resume=True, **how)
    assert tree(clean) == WHOLE


def test_a_run_that_is_there_is_left_alone_unless_it_is_to_be_gone_on_with(data: Path, clean: Path) -> None:
    with pytest.raises(OutputError, match="holds a run already, 3 of 3 files done; --resume"):
        explain(data, clean)
    assert tree(clean) == WHOLE


def test_two_processes_do_not_write_one_run(data: Path, clean: Path) -> None:
    with open(clean / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="is being written by another process"):
            explain(data, clean, resume=True)


@pytest.mark.slow
def test_force_begins_anew_and_leaves_nothing_of_the_old_run(data: Path, clean: Path, tmp_path: Path) -> None:
    output = shutil.copytree(clean, tmp_path / "run")
    (output / PARTIAL).write_bytes(b"")
    (output / "shards" / shard_name(7)).write_bytes(b"")
    explain(data, output, force=True, limit=8)
    assert tree(output) == [name for name in WHOLE if name not in ("shards/000001.parquet", "shards/000002.parquet")]


def test_a_run_is_refused_where_it_does_not_belong(data: Path, clean: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="lies inside the folder of pictures"):
        explain(data, data / "run")
    link = tmp_path / "link"
    link.symlink_to(clean)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for name, said in (("link", "is no folder"), ("file", "is no folder"), ("full", "holds something else")):
        with pytest.raises(OutputError, match=said):
            explain(data, tmp_path / name, force=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("plan", [{}, {"pictures": {"count": "x"}}, {"pictures": {"count": 3}, "shard": 0}, []])
def test_a_manifest_of_somebody_else_is_refused(plan: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"schema": "sightline.batch/1", "plan": plan}))
    with pytest.raises(OutputError):
        explain(data, tmp_path / "run", resume=True)


# ---------------------------------------------------------------------------------------------- what can't work, at once


def test_what_can_not_work_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    for how, error, said in (
        ({"targets": "oak"}, MethodError, "nothing can be computed: .*oak"),
        ({"methods": "grad-cam"}, MethodError, "expected a list of names"),
        ({"methods": ["grad-cam", "grad-cam"]}, MethodError, "named twice"),
        ({"metrics": ["pointing-game"]}, MetricError, "where the objects are"),
        ({"timeout_s": 0.0}, OutputError, "timeout_s"),
        ({"timeout_s": float("nan")}, OutputError, "timeout_s"),
        ({"shard_size": 0}, OutputError, "shard_size is 0"),
    ):
        with pytest.raises(error, match=said):
            explain(data, output, **how)
        assert not output.exists()


@pytest.mark.slow
def test_labels_none_of_which_the_model_knows_are_refused(data: Path, tmp_path: Path) -> None:
    model = sightline.adapt(tiny().module, layers=["conv2"], preprocess=PREPROCESS, labels=list("abcde"))
    with pytest.raises(TargetError, match="none of the 3 is a class of the model"):
        explain(data, tmp_path / "run", model, targets="label")


# ---------------------------------------------------------------------------------------------------- what a row says


def test_rows_agree_with_explain(data: Path, clean: Path) -> None:
    rows = {row.id: row for row in sightline.open_run(clean)}
    for name in ("ash/000.jpg", "beech/010.jpg", "cedar/023.jpg"):
        row, one = rows[name], sightline.explain(data / name, tiny())
        heat = row.maps[0]
        np.testing.assert_allclose(heat.raw, one.raw, atol=1e-3 * np.abs(one.raw).max())
        assert heat.peak == one.peak
        assert (heat.label, heat.layer) == (one.label, one.layer)
        assert [each.label for each in row.predictions] == [each.label for each in one.predictions]
        np.testing.assert_allclose(
            [each.probability for each in row.predictions], [each.probability for each in one.predictions], rtol=1e-5
        )
        assert heat.notices == one.warnings


@pytest.mark.slow
def test_a_function_of_the_users_own_gives_the_same_rows(data: Path, clean: Path, tmp_path: Path) -> None:
    explain(data, tmp_path / "run", tiny(lambda image: PREPROCESS(image)), workers=2)
    is_as_clean(tmp_path / "run", clean)


@pytest.mark.slow
def test_labels_are_explained_and_one_that_is_no_class_is_a_row(data: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(data, tmp_path / "pictures")
    (pictures / "ash").rename(pictures / "oak")
    run = explain(pictures, tmp_path / "run", targets="label")
    for row in run:
        if row.label == "oak":
            assert (row.stage, row.error) == ("target", "TargetError")
            assert "oak" in (row.message or "")
            assert not row.maps
        else:
            assert [one.label for one in row.maps] == [row.label]


def several(image: Image.Image) -> tuple[Tensor, View]:
    """Inputs half as large as their picture."""
    size = image.width // 2, image.height // 2
    pixels = torch.from_numpy(np.array(image.resize(size))).permute(2, 0, 1).float() / 255
    return pixels, View(photo=image.size, resized=size, offset=(0, 0), input=size)


@pytest.mark.slow
def test_a_retry_among_pictures_of_several_sizes_gives_the_clean_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number, size in enumerate([(64, 48), (48, 64), (80, 80)]):
        make_pictures(data / str(number), 4, seed=number, size=size)
    clean = explain(data, tmp_path / "clean", tiny(several), batch_size=None)
    assert clean.plan["batch"] == 1
    file = sorted(data.rglob("*.jpg"))[5]
    content = file.read_bytes()
    file.write_bytes(content[:100])
    explain(data, tmp_path / "run", tiny(several), batch_size=None)
    file.write_bytes(content)
    explain(data, tmp_path / "run", tiny(several), batch_size=None, retry_errors=True)
    assert shard_bytes(tmp_path / "run") == shard_bytes(tmp_path / "clean")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    most = []
    for count in (100, 3000):
        pictures, log = tmp_path / f"data{count}", tmp_path / f"log{count}"
        make_pictures(pictures, count)
        process, high = begin(pictures, tmp_path / f"run{count}", log, shard_size=64), 0
        while process.exitcode is None:
            process.join(0.05)
            status = Path(f"/proc/{process.pid}/status").read_text() if process.is_alive() else ""
            high = max(high, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        assert end(process) == 0, log.read_text()
        most.append(high)
    assert most[1] - most[0] < 60_000, most  # kB
