"""What is logged can be read back from the real files of each service."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.errors import MissingExtraError, OutputError
from sightline.train.loggers import to_mlflow, to_tensorboard, to_wandb

pytest.importorskip("tensorboard")
NAME, FILM = "heatmap/border", "heatmap/film"


def needs(package: str) -> Any:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} isn't installed; nothing of ours needs it")


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


def test_tensorboard_reads_numbers_and_pictures_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = to_tensorboard(tmp_path / "events")
    logger.numbers(3, {NAME: 0.25, "heatmap/moved": 1.0})
    logger.picture(3, FILM, picture())
    logger.numbers(6, {NAME: 0.5})
    logger.close()
    found = EventAccumulator(str(tmp_path / "events"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars(NAME)] == [(3, 0.25), (6, 0.5)]
    assert [(one.step, one.value) for one in found.Scalars("heatmap/moved")] == [(3, 1.0)]
    (one,) = found.Images(FILM)
    (tmp_path / "one.png").write_bytes(one.encoded_image_string)
    with Image.open(tmp_path / "one.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(picture()))
    assert one.step == 3


def test_tensorboard_shows_a_picture_before_the_training_is_over(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = to_tensorboard(tmp_path)
    logger.picture(1, FILM, picture())
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert len(found.Images(FILM)) == 1
    logger.close()


def test_a_folder_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file.events can't be written"):
        to_tensorboard(tmp_path / "file" / "events")


def records(file: Path) -> Iterator[Any]:
    """The records of an offline run: blocks of 32 KiB after a head of 7 bytes, each piece with checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


@needs("wandb")
def test_an_offline_run_of_wandb_holds_numbers_and_pictures_by_our_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    for kind in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", os.fspath(tmp_path / kind))
    run = wandb.init(mode="offline", dir=tmp_path, project="film", settings=wandb.Settings(silent=True))
    run.log({"loss": 2.0})  # the user's own steps go on beside ours
    logger = to_wandb(run)
    logger.numbers(30, {NAME: 0.25})
    logger.picture(30, FILM, picture())
    run.log({"loss": 1.0})
    logger.numbers(60, {NAME: 0.5})
    logger.close()
    run.log({"loss": 0.5})  # still open
    run.finish()
    wandb.teardown()  # the end of the process that writes the file; `finish` returns before it is on the disk
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    lines = [
        {".".join(item.nested_key) or item.key: item.value_json for item in one.history.item}
        for one in records(file)
        if one.HasField("history")
    ]
    assert [(line["sightline/step"], line[NAME]) for line in lines if NAME in line] == [("30", "0.25"), ("60", "0.5")]
    assert [line["loss"] for line in lines if "loss" in line] == ["2", "1", "0.5"]
    (image,) = tmp_path.glob("wandb/offline-run-*/files/media/images/heatmap/film*.png")
    with Image.open(image) as drawn:
        np.testing.assert_array_equal(np.asarray(drawn.convert("RGB")), np.asarray(picture()))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    yield mlflow
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


@needs("mlflow")
@pytest.mark.parametrize("given", ["the active run", "an id", "a client"])
def test_mlflow_gives_numbers_and_pictures_back(store: Any, given: str) -> None:
    client = store.MlflowClient()
    if given == "the active run":
        run = store.start_run()
        logger = to_mlflow()
    else:
        run = client.create_run("0")
        logger = to_mlflow(run.info.run_id, client=client if given == "a client" else None)
    logger.numbers(3, {NAME: 0.25})
    logger.numbers(6, {NAME: 0.5})
    logger.picture(6, FILM, picture())
    logger.close()
    assert client.get_run(run.info.run_id).info.status == "RUNNING", "the run is the user's to end"
    found = client.get_metric_history(run.info.run_id, NAME)
    assert [(one.step, one.value) for one in found] == [(3, 0.25), (6, 0.5)]
    paths = [one.path for one in client.list_artifacts(run.info.run_id, "images") if one.path.endswith(".png")]
    assert len(paths) == 1
    assert "step+6" in paths[0]
    with Image.open(client.download_artifacts(run.info.run_id, paths[0])) as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(picture()))


@needs("mlflow")
def test_without_an_active_run_mlflow_is_not_begun_in_silence(store: Any) -> None:
    with pytest.raises(OutputError, match=r"mlflow\.start_run\(\) first"):
        to_mlflow()
    assert store.active_run() is None


@pytest.mark.parametrize(
    ("package", "make", "command"),
    [
        ("tensorboard", lambda: to_tensorboard("events"), r"pip install 'sightline\[train\]'"),
        ("wandb", lambda: to_wandb(object()), "pip install wandb"),
        ("mlflow", to_mlflow, "pip install mlflow"),
    ],
)
def test_a_missing_package_is_named_with_the_command(
    package: str, make: Callable[[], Any], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    for module in ("sightline._optional", "sightline.train.loggers"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(MissingExtraError, match=command):
        make()
