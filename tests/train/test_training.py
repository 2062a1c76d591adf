"""A whole training: what it leaves, how it is stopped and gone on with to the last bit, and what it refuses."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from sightline.errors import ModelError, NonFiniteError, OutputError, TrainingError
from sightline.train import Trained, fit
from sightline.train.training import Progress

# A small network that learns from nothing within a few steps.
SMALL: dict[str, Any] = {
    "model": "timm:resnet10t", "random_weights": True, "size": 64, "batch_size": 8, "epochs": 3, "loggers": [],
}  # fmt: skip
WHOLE = {**SMALL, "freeze": "none", "learning_rate": 3e-4}
OF_THE_RESULT = ("model.safetensors", "maps.npz", "predictions.csv", "confusion.csv", "film.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red pictures and green ones, each of its own noise."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for side, number in (("train", 12), ("val", 2)):
        for at, name in enumerate(("green", "red")):
            (root / side / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 120, (80, 80, 3), dtype=np.uint8)
                pixels[20:60, 20:60, 1 - at] += 130
                Image.fromarray(pixels).save(root / side / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training from beginning to end; nobody may write into it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(data, **SMALL, output=folder)
    return folder


def result(folder: Path) -> dict[str, bytes]:
    """What a training led to, without how long it took."""
    found = {name: (folder / name).read_bytes() for name in OF_THE_RESULT}
    rows = list(csv.DictReader((folder / "curves.csv").read_text().splitlines()))
    return found | {"curves": json.dumps([{**row, "seconds": 0} for row in rows]).encode()}


class Stop(Exception):
    """Somebody ends the process at this step."""


def stopping(at: int, how: type[BaseException] = Stop) -> Callable[[Progress], None]:
    steps = count()

    def watch(progress: Progress) -> None:
        if progress.what in ("features", "training") and next(steps) == at:
            raise how

    return watch


def test_the_run_is_a_model_that_explains_itself_with_nothing_else(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen: list[Progress] = []
    found = fit(data, **WHOLE, output=run, watch=seen.append)
    assert isinstance(found, Trained)
    assert found.accuracy == 1.0, "two colours are not told apart"
    assert found.classes == ("green", "red")
    assert [one.epoch.epoch for one in seen if one.epoch] == [one.epoch for one in found.history] == [1, 2, 3]
    model = sightline.load_model(run)
    assert (model.labels, model.notes, model.provenance["preprocessing"]["size"]) == (("green", "red"), (), (64, 64))
    heatmap = sightline.explain(data / "val" / "red" / "0.png", run)
    assert heatmap.predictions[0].label == "red"
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    assert {row["picture"] for row in rows} == {f"val/{name}/{at}.png" for name in found.classes for at in range(2)}
    assert all(row["predicted"] == row["true"] for row in rows)
    with np.load(run / "maps.npz", allow_pickle=False) as film:
        assert film["epochs"].tolist() == [0, 1, 2, 3]
        assert sorted(film["labels"].tolist()) == [0, 0, 1, 1], "not every class is filmed alike"


@pytest.mark.parametrize(
    "frozen",
    [
        pytest.param({"freeze": "none"}, id="none"),
        pytest.param({"freeze": 2}, id="two layers", marks=pytest.mark.slow),
        pytest.param({"freeze": "trunk"}, id="trunk", marks=pytest.mark.slow),
        pytest.param({"freeze": "trunk", "flip": True}, id="trunk, mirrored"),
    ],
)
def test_a_training_that_was_stopped_anywhere_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, frozen: dict[str, Any]
) -> None:
    settings = {**SMALL, **frozen}
    total = [0]

    def counted(progress: Progress) -> None:
        total[0] += progress.what in ("features", "training")

    fit(data, **settings, output=tmp_path / "whole", watch=counted)
    expected = result(tmp_path / "whole")
    # Stopped again and again, each time a few steps later than the last time.
    again, stops = tmp_path / "again", 0
    for at in (2, total[0] // 2):
        with pytest.raises(Stop):
            fit(data, **settings, output=again, watch=stopping(at), resume=(again / "manifest.json").exists())
        stops += 1
    steps: list[int] = []
    fit(
        data,
        **settings,
        output=again,
        resume=True,
        watch=lambda one: steps.append(one.done) if one.what == "training" else None,
    )
    assert stops == 2
    if frozen["freeze"] != "trunk":  # of which half of the steps are the features
        assert min(steps) > 0, "what was done before is done again"
    assert result(again) == expected
    fit(data, **settings, output=again, resume=True)
    assert result(again) == expected, "what is over is not left as it was"


def test_the_seed_decides_and_nothing_else_does(data: Path, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    fit(data, **SMALL, output=tmp_path / "again")
    assert result(tmp_path / "again") == result(whole)
    torch.manual_seed(1)
    fit(data, **SMALL, output=tmp_path / "again", seed=1, force=True)
    assert result(tmp_path / "again")["model.safetensors"] != result(whole)["model.safetensors"]


def test_ctrl_c_in_the_first_epoch_leaves_a_model_that_loads(data: Path, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(data, **WHOLE, output=tmp_path / "run", watch=stopping(2, KeyboardInterrupt))
    assert signal.getsignal(signal.SIGINT) is handler, "Ctrl-C is left switched off"
    assert sightline.load_model(tmp_path / "run").labels == ("green", "red")


def test_nothing_of_the_process_is_left_changed(data: Path, tmp_path: Path) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), list(warnings.filters)  # type: ignore[union-attr]
    levels = [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")]
    fit(data, **{**SMALL, "epochs": 1}, output=tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[union-attr]
    assert list(warnings.filters) == states[2]
    assert [
        logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")
    ] == levels or levels == [0, 0]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_no_number_stops_and_the_last_good_model_stays(data: Path, tmp_path: Path) -> None:
    # The weights grow by ten powers of ten a step, and a step is an epoch here.
    settings = {**SMALL, "batch_size": 24, "learning_rate": 1e10, "epochs": 20, "patience": 20}
    done: list[int] = []
    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf).*epoch \d+.*smaller.*is of epoch \d+") as error:
        fit(
            data,
            **settings,
            output=tmp_path / "run",
            watch=lambda one: done.append(one.epoch.epoch) if one.epoch else None,
        )
    assert done, "there was no good epoch before, so nothing is shown"
    assert f"epoch {done[-1] + 1}" in str(error.value)
    model = sightline.load_model(tmp_path / "run")
    assert all(bool(one.isfinite().all()) for one in model.module.state_dict().values() if one.is_floating_point())


def test_the_validation_loss_is_that_of_all_pictures_however_they_come_in_batches(data: Path, tmp_path: Path) -> None:
    unbalanced = tmp_path / "data"
    shutil.copytree(data, unbalanced)
    for at in range(4, 12):
        (unbalanced / "train" / "red" / f"{at}.png").unlink()
    found = fit(unbalanced, **{**SMALL, "epochs": 1, "batch_size": 3}, output=tmp_path / "run")
    assert isinstance(found, Trained)
    model, losses = sightline.load_model(tmp_path / "run"), []
    for name, weight in (("green", 16 / (2 * 12)), ("red", 16 / (2 * 4))):
        for at in range(2):
            x = model.preprocess(Image.open(unbalanced / "val" / name / f"{at}.png"))[0]  # type: ignore[misc]
            with torch.no_grad():
                said = model.module(x[None])[0].softmax(0)[found.classes.index(name)].item()
            losses.append((-math.log(said) * weight, weight))
    expected = sum(loss for loss, _ in losses) / sum(weight for _, weight in losses)
    assert found.history[0].val_loss == pytest.approx(expected, rel=1e-5)


def test_early_stopping_ends_it_and_keeps_the_best_epoch(data: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "learning_rate": 30.0, "epochs": 12, "patience": 2}
    found = fit(data, **settings, output=tmp_path / "run")
    assert isinstance(found, Trained)
    losses = [one.val_loss for one in found.history]
    assert found.best == losses.index(min(losses)) + 1
    assert len(losses) == found.best + 2 < 12
    again = fit(data, **settings, output=tmp_path / "run", resume=True)
    assert isinstance(again, Trained)
    assert [one.val_loss for one in again.history] == losses, "a training that was over went on"


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"epochs": 0}, TrainingError, "epochs is 0"),
        ({"batch_size": 2.5}, TrainingError, "batch_size is 2.5"),
        ({"learning_rate": -1}, TrainingError, "learning_rate is -1"),
        ({"learning_rate": float("nan")}, TrainingError, "learning_rate is nan"),
        ({"learning_rate": 1e38}, TrainingError, r"learning_rate is 1e\+38"),
        ({"freeze": 1000}, TrainingError, "from 1 to"),
        ({"freeze": "all"}, TrainingError, "freeze is 'all'"),
        ({"model": "resnet18", "random_weights": True}, ModelError, "unknown model 'resnet18'"),
        ({"model": "hf:microsoft/resnet-18", "random_weights": True}, ModelError, "hf:microsoft/resnet-18|can't be had"),
        ({"trainer": {"logger": True}}, TrainingError, "logger is settled"),
        ({"trainer": {"accelerator": "gpux"}}, TrainingError, "gpux"),
        ({"trainer": {"nonsense": 1}}, TrainingError, "nonsense"),
        ({"trainer": {"max_time": "00:00:00:00"}}, TrainingError, "max_time is settled"),
        ({"trainer": {"check_val_every_n_epoch": 2}}, TrainingError, "check_val_every_n_epoch is settled"),
        ({"seed": -1}, TrainingError, "seed is -1"),
        ({"seed": 10**30}, TrainingError, "seed is 10+;"),
        ({"seed": 1.5}, TrainingError, "seed is 1.5"),
        ({"size": 32, "freeze": "none", "batch_size": 1}, TrainingError, "batch of 1.*larger"),
        ({"resume": True}, OutputError, "no training to resume"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_before_anything_is_trained(
    data: Path, tmp_path: Path, changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fit(data, **{**SMALL, **changed}, output=tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_is_never_mixed_with_another_one_or_with_the_pictures(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with pytest.raises(OutputError, match="--resume goes on"):
        fit(data, **SMALL, output=run)
    with pytest.raises(OutputError, match="seed was 0 and is 1"):
        fit(data, **SMALL, output=run, seed=1, resume=True)
    assert result(run) == result(whole)
    with pytest.raises(OutputError, match="lies inside the pictures"):
        fit(data, **SMALL, output=data / "run")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(OutputError, match=r"something else.*thesis\.txt"):
            fit(data, **SMALL, output=foreign, force=force)
    assert [one.name for one in foreign.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_good_model_and_the_training_goes_on_later(
    data: Path, tmp_path: Path
) -> None:
    fit(data, **WHOLE, output=tmp_path / "whole")
    program = f"""
import json, resource, signal, sys
from pathlib import Path
from sightline.errors import OutputError
from sightline.train import fit
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def watch(progress):
    if progress.epoch:  # from now on no file may grow beyond a kilobyte
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    fit({str(data)!r}, **{WHOLE!r}, output={str(tmp_path / "run")!r}, watch=watch)
except OutputError as error:
    print(error)
    sys.exit(7)
"""
    # The same to the bit it is with the same number of threads.
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120, env=threads
    )
    assert done.returncode == 7, done.stderr
    assert "can't be written" in done.stdout
    left = [one.name for one in (tmp_path / "run").iterdir() if one.name.startswith(".")]
    assert not left, "something half is left"
    assert sightline.load_model(tmp_path / "run").labels == ("green", "red")
    fit(data, **WHOLE, output=tmp_path / "run", resume=True)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped in its last epoch."""
    folder = tmp_path_factory.mktemp("runs") / "run"

    def watch(progress: Progress) -> None:
        if progress.what == "training" and progress.done == 8:
            raise Stop

    with pytest.raises(Stop):
        fit(data, **SMALL, output=folder, watch=watch)
    return folder


def keeper_of(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = state["callbacks"]["Keeper"]
    return found


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.clear(),
        lambda state: state.update(callbacks=None),
        lambda state: state.update(loops={}),
        lambda state: state.update(state_dict={}),
        lambda state: state.update(state_dict={name: torch.zeros(3) for name in state["state_dict"]}),
        lambda state: keeper_of(state).update(history=[]),
        lambda state: keeper_of(state).update(history=[{"epoch": 1}]),
        lambda state: keeper_of(state)["history"][0].update(val_loss="small"),
        lambda state: keeper_of(state)["history"][0].update(epoch=7),
        lambda state: keeper_of(state)["film"].update(maps=1),
        lambda state: keeper_of(state)["film"].update(maps=keeper_of(state)["film"]["maps"][:1]),
    ],
    ids=["empty", "no callbacks", "no loops", "no weights", "other weights", "no epochs", "half an epoch", "a text for a number",
         "another epoch", "no film", "half a film"],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_refused_with_what_to_do(
    data: Path, run: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    spoiled = tmp_path / "run"
    shutil.copytree(run, spoiled)
    state = torch.load(spoiled / "last.ckpt", weights_only=True)
    spoil(state)
    torch.save(state, spoiled / "last.ckpt")
    with pytest.raises(TrainingError, match=r"can't go on from .*last\.ckpt.*--force"):
        fit(data, **SMALL, output=spoiled, resume=True)


@pytest.mark.parametrize("plan", ["[1]", '"x"', "5", "NaN", "[" * 100_000 + "]" * 100_000])
def test_a_manifest_of_something_else_is_refused(data: Path, run: Path, tmp_path: Path, plan: str) -> None:
    spoiled = tmp_path / "run"
    shutil.copytree(run, spoiled)
    (spoiled / "manifest.json").write_text(f'{{"schema": "sightline.train/1", "plan": {plan}}}')
    with pytest.raises(OutputError, match="something else than a run of train"):
        fit(data, **SMALL, output=spoiled, resume=True)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"watch": stopping(4, KeyboardInterrupt)}, KeyboardInterrupt), ({"learning_rate": 1e29}, NonFiniteError)],
    ids=["stopped", "diverged"],
)
def test_loggers_are_closed_also_where_the_training_fails(
    data: Path, tmp_path: Path, settings: dict[str, Any], error: type[BaseException]
) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(error):
        fit(data, **{**SMALL, "freeze": "none", **settings, "loggers": None}, output=tmp_path / "run")
    assert set(threading.enumerate()) == threads, "the writer of TensorBoard goes on"


def test_links_in_a_run_lead_to_nothing_that_is_overwritten(data: Path, run: Path, tmp_path: Path) -> None:
    linked, letter = tmp_path / "run", tmp_path / "letter.txt"
    shutil.copytree(run, linked)
    letter.write_text("dear all")
    for name in ("lock", "train.features", ".last.ckpt", ".model.safetensors", ".maps.npz", ".index.html"):
        (linked / name).unlink(missing_ok=True)
        (linked / name).symlink_to(letter)
    fit(data, **SMALL, output=linked, resume=True)
    assert letter.read_text() == "dear all"


def test_pictures_inside_the_run_are_refused(data: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    inside = tmp_path / "run" / "tensorboard"
    shutil.copytree(data, inside)
    with pytest.raises(OutputError, match="lie inside"):
        fit(inside, **SMALL, output=tmp_path / "run", force=True)
    assert (inside / "train" / "red" / "0.png").exists()


def test_a_film_that_could_not_be_written_is_written_at_the_end(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def watch(progress: Progress) -> None:
        if progress.what == "training" and progress.done == 8:
            (run / ".maps.npz").mkdir()
        elif progress.what == "judging":
            (run / ".maps.npz").rmdir() if (run / ".maps.npz").exists() else None

    with pytest.warns(UserWarning, match="heat maps of epoch 3"):
        fit(data, **SMALL, output=run, watch=watch)
    assert result(run) == result(whole)


# At the first line that says this, so much later, and how: while features are computed, while epochs are trained and written.
KILLS = {
    "none": [("training", 0.1, signal.SIGKILL), ("epoch 1:", 0.0, signal.SIGTERM), ("epoch 4:", 0.1, signal.SIGKILL)],
    "trunk": [
        (line, later, signal.SIGKILL) for line, later in (("the trunk says", 0.1), ("training", 0.0), ("epoch", 0.0))
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("freeze", KILLS)
def test_a_kill_at_any_time_and_resume_give_the_same_weights_and_whoever_is_told_to_end_says_so(
    data: Path, tmp_path: Path, freeze: str
) -> None:
    command = [sys.executable, "-m", "sightline", "train", str(data), "--model", "timm:resnet10t", "--random-weights"]
    command += ["--size", "64", "--epochs", "6", "--freeze", freeze, "--batch-size", "4", "-o"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=200)
    run = tmp_path / "run"
    for line, later, kill in KILLS[freeze]:
        more = ["--resume"] if (run / "manifest.json").exists() else []
        process = subprocess.Popen(
            [*command, str(run), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        while line not in (said := process.stderr.readline()):
            assert said, f"it ended before {line!r}"
        time.sleep(later)
        process.send_signal(kill)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (143 if kill == signal.SIGTERM else -signal.SIGKILL), line
        assert out == ""
        assert "Traceback" not in err
        assert ("--resume goes on" in err) == (kill == signal.SIGTERM)
    subprocess.run([*command, str(run), "--resume"], check=True, capture_output=True, timeout=200)
    assert result(run) == result(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["none", "trunk"])
def test_two_processes_train_together(data: Path, tmp_path: Path, freeze: str) -> None:
    command = [sys.executable, "-m", "sightline", "train", str(data), "--model", "timm:resnet10t", "--random-weights"]
    command += ["--size", "64", "--epochs", "3", "--freeze", freeze, "--lr", "0.0003", "-o", str(tmp_path / "run")]
    command += ["--trainer", "accelerator=cpu", "--trainer", "devices=2", "--trainer", "strategy=ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unseen pictures right") == 1, "not one process alone tells the outcome"
    assert sightline.load_model(tmp_path / "run").labels == ("green", "red")


@pytest.mark.slow
def test_cats_and_dogs_are_told_apart_within_a_minute(shared_data: Path, tmp_path: Path) -> None:
    for side, number in (("train", 30), ("val", 20)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / side / name).mkdir(parents=True)
            for one in sorted((shared_data / "cats-vs-dogs" / side / name).iterdir())[:number]:
                (tmp_path / "data" / side / name / one.name).symlink_to(one)
    found = fit(tmp_path / "data", output=tmp_path / "run", epochs=3, loggers=[])
    assert isinstance(found, Trained)
    assert found.accuracy >= 0.95


@pytest.mark.slow
def test_all_cats_and_dogs_reach_ninety_seven_percent(shared_data: Path, tmp_path: Path) -> None:
    found = fit(shared_data / "cats-vs-dogs", output=tmp_path / "run", loggers=[])
    assert isinstance(found, Trained)
    assert found.accuracy >= 0.97


def test_two_at_once_in_one_process_come_out_as_each_alone(data: Path, whole: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(fit, data, **SMALL, output=tmp_path / name) for name in ("a", "b")]:
            one.result()
    assert result(tmp_path / "a") == result(tmp_path / "b") == result(whole)


def test_a_run_is_not_written_over_the_model_that_it_begins_with(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with pytest.raises(OutputError, match="begun with"):
        fit(data, **{**SMALL, "model": str(run), "random_weights": False}, output=run, force=True)
    assert result(run) == result(whole)


def test_a_grid_too_coarse_for_a_border_has_no_share_of_it(data: Path, tmp_path: Path) -> None:
    found = fit(data, **{**SMALL, "epochs": 1}, output=tmp_path / "run")
    assert isinstance(found, Trained)
    with np.load(tmp_path / "run" / "maps.npz", allow_pickle=False) as film:
        assert film["maps"].shape[2:] == (2, 2)
    assert np.isnan(found.history[0].border)
    assert not np.isnan(found.history[0].moved)
