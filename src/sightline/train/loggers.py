"""Where numbers and pictures of a training go beside its own folder: TensorBoard, Weights & Biases, MLflow, or anything like them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sightline._optional import optional
from sightline._quiet import quiet
from sightline.errors import MissingExtraError, OutputError

# What a picture's or number's step is called where the run counts steps of its own.
_STEP = "sightline/step"


class Logger(Protocol):
    """Anything that takes numbers and pictures by step."""

    def numbers(self, step: int, values: Mapping[str, float], /) -> None:
        """Takes the values of one step by their names; all of them are finite."""

    def picture(self, step: int, name: str, image: Image.Image, /) -> None:
        """Takes one picture (RGB) of one step."""

    def close(self) -> None:
        """Is called when the training is over."""


@dataclass(frozen=True)
class _Sink:
    numbers: Callable[[int, Mapping[str, float]], None]
    picture: Callable[[int, str, Image.Image], None]
    close: Callable[[], None]


def to_tensorboard(folder: str | os.PathLike[str]) -> Logger:
    """Writes event files that `tensorboard --logdir FOLDER` shows.

    Raises:
        MissingExtraError: tensorboard isn't installed.
        OutputError: the folder can't be written.
    """
    optional("tensorboard", "train", "to_tensorboard")
    with quiet():
        from torch.utils.tensorboard import SummaryWriter
    try:
        writer: Any = SummaryWriter(os.fspath(folder))
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {error.strerror or error}. Choose another place") from error

    def numbers(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def picture(step: int, name: str, image: Image.Image) -> None:
        writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        writer.flush()  # whoever watches the training sees it now, and a crash doesn't take it along

    return _Sink(numbers, picture, writer.close)


def to_wandb(run: Any) -> Logger:
    """Logs to a run of Weights & Biases that you opened: to_wandb(wandb.init(...)). It stays open.

    The steps are shown on an axis of their own, so that they don't disturb those that others log to the same run.

    Raises:
        MissingExtraError: wandb isn't installed.
    """
    image_of = _their("wandb", "to_wandb").Image
    known: set[str] = set()

    def log(step: int, values: Mapping[str, Any]) -> None:
        for name in values.keys() - known:
            run.define_metric(name, step_metric=_STEP)
            known.add(name)
        run.log({_STEP: step, **values})

    return _Sink(log, lambda step, name, image: log(step, {name: image_of(image)}), lambda: None)


def to_mlflow(run_id: str | None = None, *, client: Any = None) -> Logger:
    """Logs to a run of MLflow: the active one, or that of the id. It stays open.

    Args:
        run_id: of a run; the active one when left out.
        client: an `mlflow.MlflowClient`, where the tracking server is not the one that MLflow is set to.

    Raises:
        MissingExtraError: mlflow isn't installed.
        OutputError: no run is active.
    """
    mlflow = _their("mlflow", "to_mlflow")
    if run_id is None:
        active = mlflow.active_run()
        if active is None:
            raise OutputError("no run of MLflow is active: call mlflow.start_run() first, or give run_id")
        run_id = active.info.run_id
    client = client or mlflow.MlflowClient()

    def numbers(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            client.log_metric(run_id, name, value, step=step)

    def picture(step: int, name: str, image: Image.Image) -> None:
        client.log_image(run_id, image, key=name, step=step, synchronous=True)

    return _Sink(numbers, picture, lambda: None)


def _their(package: str, purpose: str) -> Any:
    """A package that people bring along who log to it; no extra of sightline installs it."""
    if find_spec(package) is None:
        raise MissingExtraError(f"{purpose} needs {package}: pip install {package}")
    return importlib.import_module(package)
