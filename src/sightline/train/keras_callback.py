"""`KerasHeatmapCallback`: a film of heat maps while your own Keras model trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from sightline.methods.registry import Function, Method
from sightline.models.keras import imported
from sightline.models.load import load_model
from sightline.train.film import Frame, Picture
from sightline.train.loggers import Logger
from sightline.train.reel import Reel

_Callback: Any = imported().callbacks.Callback


class KerasHeatmapCallback(_Callback):  # type: ignore[misc]
    """Shows after each epoch where your Keras model looks, on a few fixed pictures. Keras 3 on its torch backend.

    A first frame is made before training begins, so that a wrong argument stops it before it has cost anything. After that no error
    of the heat maps stops a training: it is warned of, once for each kind. The training itself comes out the same to the last bit.
    The means come into Keras' own logs, and so into its history, as "heatmap_border" and "heatmap_moved".

    Args:
        pictures: a few, each as `read_image` takes it, or (picture, its true class) by index or name.
        preprocess: parts of the preprocessing, as of `load_model`, or a function from a PIL picture to a tensor (C, H, W), channels
            first. Left out, it is what the model's own layers tell; what is guessed is said below the film.
        labels: class names by index.
        method: as of `explain`.
        layer: Keras' own name of a layer, such as "conv5_block3_out"; chosen when left out.
        output: a folder for film.png and maps.npz, which are written anew after each frame.
        logger: one or several of `to_tensorboard`, `to_wandb`, `to_mlflow`, or anything like them; a step is an epoch.
        every: how many epochs lie between two frames.

    Raises:
        SightlineError: when the training starts: a picture can't be read, there is no such layer or class, the model can't be explained,
            or the output can't be written.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        *,
        preprocess: Mapping[str, Any] | Callable[[Image.Image], Any] | None = None,
        labels: Sequence[str] | None = None,
        method: str | Function | Method = "grad-cam",
        layer: str | None = None,
        output: str | os.PathLike[str] | None = None,
        logger: Logger | Sequence[Logger] | None = None,
        every: int = 1,
    ) -> None:
        super().__init__()
        self._preprocess, self._labels = preprocess, labels
        self._reel = Reel(pictures, method, layer, output, logger, every)
        self._begun = False

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The film so far."""
        return tuple(self._reel.frames)

    def on_train_begin(self, logs: Any = None) -> None:
        """A new training."""
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """The first frame."""
        if not self._begun:
            self._begun = True
            self._reel.begin(
                lambda: load_model(self.model, preprocess=self._preprocess, labels=self._labels), epoch, epoch
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The frame of an epoch."""
        made = self._reel.add(epoch + 1, epoch + 1)
        if made is not None and logs is not None:
            logs |= {"heatmap_border": made.border, "heatmap_moved": made.moved}

    def on_train_end(self, logs: Any = None) -> None:
        """The loggers are told that it is over."""
        self._reel.close()
