"""`HeatmapCallback`: a film of heat maps while your own LightningModule trains."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import nn

from sightline._optional import optional
from sightline.errors import ModelError
from sightline.methods.registry import Function, Method
from sightline.models.adapter import Adapter
from sightline.models.load import load_model
from sightline.models.twin import submodule
from sightline.train.film import Frame, Picture
from sightline.train.loggers import Logger
from sightline.train.reel import Reel, numbers

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = optional("lightning.pytorch", "train", "HeatmapCallback")

# Each process of these has only a part of the weights, and none can run the model alone.
_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class HeatmapCallback(pl.Callback):
    """Shows after each epoch where your model looks, on a few fixed pictures.

    A first frame is made before training begins, so that a wrong argument stops it before it has cost anything. After that no error
    of the heat maps stops a training: it is warned of, once for each kind. The training itself comes out the same to the last bit.

    Frames are made at the end of each epoch's validation, or of the epoch where there is none. Where several validations lie in one
    epoch, the last counts. Their means go to the trainer's loggers as "heatmap/border" and "heatmap/moved", and the film goes into
    checkpoints, so that a resumed training continues it. With several processes only the first does any of this.

    Args:
        pictures: a few, each as `read_image` takes it, or (picture, its true class) by index or name.
        model: which part is the classifier: the LightningModule itself, called on a batch of pictures (None); the name of a part
            of it, such as "model"; or a function from the LightningModule to the classifier.
        preprocess: from a PIL picture to a tensor (C, H, W), as for validation; or its size, mean and std, as of `load_model`.
        labels: class names by index.
        method: as of `explain`.
        layer: as of `explain`; a name inside of the classifier.
        output: a folder for film.png and maps.npz, which are written anew after each frame.
        logger: one or several of `to_tensorboard`, `to_wandb`, `to_mlflow`, or anything like them.
        every: how many epochs lie between two frames.

    Raises:
        SightlineError: when the training starts: a picture can't be read, there is no such layer or class, the model can't be explained,
            or the output can't be written.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        *,
        model: str | Callable[[Any], Any] | None = None,
        preprocess: Mapping[str, Any] | Callable[[Image.Image], Any] | None = None,
        labels: Sequence[str] | None = None,
        method: str | Function | Method = "grad-cam",
        layer: str | None = None,
        output: str | os.PathLike[str] | None = None,
        logger: Logger | Sequence[Logger] | None = None,
        every: int = 1,
    ) -> None:
        super().__init__()
        if isinstance(model, nn.Module) or not (model is None or isinstance(model, str) or callable(model)):
            raise ModelError(
                f"model is a {type(model).__name__}; expected the name of a part of the LightningModule, such as 'model', a function "
                "from it to the classifier, or None for itself"
            )
        self._model, self._preprocess, self._labels = model, preprocess, labels
        self._reel = Reel(pictures, method, layer, output, logger, every)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The film so far."""
        return tuple(self._reel.frames)

    @property
    def state_key(self) -> str:
        """By which a checkpoint knows this film from another one of the same training."""
        part = self._model if isinstance(self._model, str) else None
        return self._generate_state_key(model=part, method=self._reel.method.name, layer=self._reel.layer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first frame."""
        strategy = next((one.__name__ for one in type(trainer.strategy).__mro__ if one.__name__ in _SHARDED), None)
        if strategy is not None:
            raise ModelError(
                f"HeatmapCallback can't look into a model that {strategy} splits over several processes; train with "
                "strategy='ddp', or leave the callback out"
            )
        if trainer.is_global_zero:
            with _alone(pl_module):
                first = self._reel.begin(lambda: self._adapter(pl_module), trainer.current_epoch, trainer.global_step)
            self._log(trainer, first)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The frame of an epoch that is validated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._add(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The frame of an epoch where none is validated."""
        if not trainer.enable_validation:
            self._add(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The loggers are told that it is over."""
        if stage == "fit" and trainer.is_global_zero:
            self._reel.close()

    def state_dict(self) -> dict[str, Any]:
        """The film, for a checkpoint."""
        return self._reel.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The film of a checkpoint."""
        self._reel.restore(state_dict)

    def _add(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            with _alone(pl_module):
                made = self._reel.add(trainer.current_epoch + 1, trainer.global_step)
            self._log(trainer, made)

    def _log(self, trainer: pl.Trainer, made: Frame | None) -> None:
        if made is not None and numbers(made):
            for one in trainer.loggers:
                one.log_metrics(numbers(made), step=trainer.global_step)

    def _adapter(self, pl_module: pl.LightningModule) -> Adapter:
        found = pl_module if self._model is None else self._model
        if isinstance(found, str):
            found = submodule(pl_module, found)
        elif found is not pl_module:
            found = found(pl_module)
        if isinstance(found, pl.LightningModule) and type(found).forward is pl.LightningModule.forward:
            parts = ", ".join(repr(name) for name, _ in found.named_children())
            raise ModelError(
                f"{type(found).__name__} has no forward, so that it can't be called on pictures; say which part of it is the "
                f"classifier: HeatmapCallback(..., model=NAME). It has: {parts}"
            )
        return load_model(found, preprocess=self._preprocess, labels=self._labels)


@contextmanager
def _alone(pl_module: pl.LightningModule) -> Iterator[None]:
    """The LightningModules without their trainer for a while: all that hangs on it, data sets too, would be taken for parts of the model."""
    parts = [one for one in pl_module.modules() if isinstance(one, pl.LightningModule)]
    held = [(one, name, getattr(one, name)) for one in parts for name in ("_trainer", "_fabric")]
    try:
        for one, name, _ in held:
            setattr(one, name, None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"You are trying to `self\.log\(\)`")  # which a forward may do
            yield
    finally:
        for one, name, value in held:
            setattr(one, name, value)
