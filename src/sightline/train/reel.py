"""A film that grows while somebody else's loop trains: what the callbacks of Lightning and Keras have in common."""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sightline.bundle import png
from sightline.errors import ModelError, OutputError
from sightline.methods.registry import Function, Method, find
from sightline.models.adapter import Adapter
from sightline.train.film import Frame, Picture, Shot, frame, save_maps, shots, strip, write_whole
from sightline.train.loggers import Logger

BORDER, MOVED, _FILM = "heatmap/border", "heatmap/moved", "heatmap/film"
_ADVICE = "The training goes on without them; an error of this kind is said only once"


class Reel:
    """The frames so far, and where they go.

    Args:
        pictures: as of `film.shots`.
        method: as of `explain`.
        layer: as of `explain`.
        output: folder for film.png and maps.npz, or None.
        logger: where numbers and the film go, too.
        every: how many epochs lie between two frames.
        names: of the pictures, as of `film.shots`.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        method: str | Function | Method,
        layer: str | None,
        output: str | os.PathLike[str] | None,
        logger: Logger | Sequence[Logger] | None,
        every: int,
        names: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ModelError(f"every is {every!r}; expected a whole number of epochs from 1")
        self.pictures, self.names, self.layer, self.every = pictures, names, layer, every
        self.method = find(method)
        self.output = None if output is None else Path(output)
        self.loggers = tuple(logger) if isinstance(logger, Sequence) else () if logger is None else (logger,)
        self.shots: tuple[Shot, ...] = ()
        self.frames: list[Frame] = []
        self._adapter: Adapter | None = None
        self._key: list[str] = []  # what the frames are of
        self._restored = False
        self._said: set[type[Exception]] = set()

    def begin(self, adapted: Callable[[], Adapter], epoch: int, step: int) -> Frame | None:
        """Reads the pictures and makes the first frame, so that what is wrong shows before anything is trained.

        None where the film of a checkpoint, or of the same training so far, goes on.
        """
        with undisturbed():
            self._adapter = adapted()
            self.shots = shots(self.pictures, self._adapter, self.names)
        same = self._key == self._made_of()
        if self._restored and not same:
            warnings.warn(
                "the film in the checkpoint is of other pictures, another method or another layer; it begins anew",
                stacklevel=2,
            )
        goes_on = same and (self._restored or (bool(self.frames) and self.frames[-1].epoch == epoch))
        self._key, self._restored = self._made_of(), False
        if goes_on:
            return None
        self.frames = []
        made = self._make(epoch)
        for show in self._places(step):
            show()
        return made

    def add(self, epoch: int, step: int) -> Frame | None:
        """The frame of an epoch, shown everywhere; None where it is not its turn, or where it failed, which is said once a kind.

        A second one of the same epoch takes the first one's place.
        """
        if epoch % self.every:
            return None
        made: Frame | None = self._tried(epoch, lambda: self._make(epoch))
        for show in self._places(step) if made is not None else ():
            self._tried(epoch, show)
        return made

    def _make(self, epoch: int) -> Frame:
        kept = [one for one in self.frames if one.epoch < epoch]
        before = kept[-1] if kept else None
        with undisturbed():
            made = frame(self.shots, self._known(), epoch, before, self.method, self.layer)
        self.frames = [*kept, made]
        return made

    def _places(self, step: int) -> list[Callable[[], None]]:
        """What shows the film, one function for each place where it goes."""
        if self.output is None and not self.loggers:
            return []
        adapter = self._known()
        drawn = strip(self.shots, self.frames, adapter.labels, adapter.notes)
        return [
            *([] if self.output is None else [partial(self.write, self.output, drawn)]),
            *(partial(_tell, one, step, numbers(self.frames[-1]), drawn) for one in self.loggers),
        ]

    def write(self, folder: Path, drawn: Image.Image) -> None:
        """The film so far, as numbers and as a picture."""
        save_maps(folder / "maps.npz", self.shots, self.frames)
        write_whole(folder / "film.png", png(drawn))

    def _tried(self, epoch: int, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever it is, the training is worth more than its pictures
            if type(error) not in self._said:
                self._said.add(type(error))
                warnings.warn(f"heat maps of epoch {epoch}: {type(error).__name__}: {error}. {_ADVICE}", stacklevel=2)
            return None

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Other numbers of an epoch, for the loggers."""
        for one in self.loggers:
            self._tried(epoch, partial(one.numbers, epoch, values))

    def close(self) -> None:
        """Tells the loggers that the training is over."""
        for one in self.loggers:
            self._tried(self.frames[-1].epoch if self.frames else 0, one.close)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep: tensors, numbers and names."""
        if not self.frames:
            return {}
        stacked = {
            name: torch.from_numpy(np.stack([getattr(one, name) for one in self.frames]))
            for name in ("maps", "predicted", "probability")
        }
        single = {name: [getattr(one, name) for one in self.frames] for name in ("epoch", "border", "moved")}
        return {**stacked, **single, "key": self._key}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the film of a checkpoint."""
        if not state:
            return
        maps, predicted, probability = (state[name].numpy() for name in ("maps", "predicted", "probability"))
        self.frames = [
            Frame(epoch, maps[at], predicted[at], probability[at], state["border"][at], state["moved"][at])
            for at, epoch in enumerate(state["epoch"])
        ]
        self._key, self._restored = list(state["key"]), True

    def _made_of(self) -> list[str]:
        """What has to be the same for frames to belong to one film."""
        layer = self.layer or self._known().layer
        shown = [f"{one.name} {tuple(one.x.shape)} {one.label}" for one in self.shots]
        return [self.method.name, str(layer), *shown]

    def _known(self) -> Adapter:
        if self._adapter is None:
            raise ModelError("the film has not begun; the callback does so when the training starts")
        return self._adapter


def numbers(one: Frame) -> dict[str, float]:
    """What is logged of a frame; a share that has no value is left out."""
    values = {BORDER: one.border, MOVED: one.moved}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _tell(logger: Logger, step: int, values: Mapping[str, float], drawn: Image.Image) -> None:
    try:
        logger.numbers(step, values)
        logger.picture(step, _FILM, drawn)
    except Exception as error:  # it may be anybody's
        raise OutputError(f"a logger of the heat maps failed: {type(error).__name__}: {error}") from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random numbers drawn inside are given back, so that a training is the same with and without heat maps."""
    python, array = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
