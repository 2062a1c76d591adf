"""The training itself, in Lightning's terms: what a step is, what is kept after each epoch, and how it is written."""

# This file is imported only where a training begins; whoever needs no training needs no Lightning.
from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from sightline.bundle import place
from sightline.errors import NonFiniteError, TrainingError
from sightline.models.outputs import unwrap
from sightline.models.weights import read_training
from sightline.train.outcome import Epoch
from sightline.train.reel import Reel

_WEIGHT_DECAY = 0.01


class _Figures(nn.Module):
    """Loss and accuracy over an epoch, of all processes together."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # By default NaN would be left out; torchmetrics' own weighted mean forgets the weights where it is not.
        self.loss, self.weight = SumMetric(nan_strategy="disable"), SumMetric(nan_strategy="disable")
        self.right = MulticlassAccuracy(classes, average="micro")

    def taken(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last time that they were asked for."""
        found = (self.loss.compute() / self.weight.compute()).item(), self.right.compute().item()
        self.loss.reset()
        self.weight.reset()
        self.right.reset()
        return found


class Task(LightningModule):
    """A classifier that learns: cross-entropy with a weight a class, AdamW, a learning rate that falls along a cosine."""

    weights: Tensor

    def __init__(
        self,
        learns: nn.Module,
        head: nn.Module,
        frozen: Sequence[nn.Module],
        weights: Sequence[float],
        learning_rate: float,
        of_trunk: float,
        mirror: Callable[[Tensor, Tensor], Tensor] | None,
        seed: int,
    ) -> None:
        """
        Args:
            learns: what is trained: the network, or its head alone where the batches are features.
            head: the new layer.
            frozen: modules that stay in evaluation mode.
            weights: of the classes.
            learning_rate: of the head.
            of_trunk: of the rest.
            mirror: mirrors those of a batch that are true in a mask (B,), half of them, drawn anew each time; or None.
            seed: of all that is drawn.
        """
        super().__init__()
        self.learns = learns
        self.head_parameters = {id(one) for one in head.parameters()}
        self.frozen = tuple(frozen)
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.learning_rate, self.of_trunk = learning_rate, of_trunk
        self.mirror, self.seed = mirror, seed
        classes = len(weights)
        self.fitting = _Figures(classes)
        self.validating = _Figures(classes)

    def on_train_epoch_start(self) -> None:
        # Each epoch begins from its own number, so that one that is begun again is the same.
        torch.manual_seed(self.seed + 1_000_003 * (self.current_epoch + 1) + self.global_rank)
        self.learns.train()  # Lightning leaves it in whatever mode it is in
        for one in self.frozen:
            one.training = False

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        x, labels = batch
        if self.mirror is not None:
            x = self.mirror(x, torch.rand(len(x), device=x.device) < 0.5)
        loss = self._seen(self.fitting, x, labels)
        if not math.isfinite(loss.item()):
            raise NonFiniteError(
                f"the loss is {loss.item()} at step {number + 1} of epoch {self.current_epoch + 1}, with a learning rate of "
                f"{self.learning_rate:g}; a smaller one (--lr) may help"
            )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _number: int) -> None:
        self._seen(self.validating, *batch)

    def _seen(self, figures: _Figures, x: Tensor, labels: Tensor) -> Tensor:
        try:
            logits = unwrap(self.learns(x)).to(self.weights.dtype)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"batch norm can't learn from a batch of {len(x)} with pictures of this size; take a larger --batch-size or --size, "
                "or --freeze trunk"
            ) from error
        loss = F.cross_entropy(logits, labels, weight=self.weights)
        # The loss of a batch is divided by the weights of its classes; so is that of an epoch, however batches are made.
        weight = self.weights[labels].sum()
        figures.loss.update(loss.detach() * weight)
        figures.weight.update(weight)
        figures.right.update(logits.detach(), labels)
        return loss

    def configure_optimizers(self) -> Any:
        parameters = [one for one in self.learns.parameters() if one.requires_grad]
        head = [one for one in parameters if id(one) in self.head_parameters]
        trunk = [one for one in parameters if id(one) not in self.head_parameters]
        groups = [{"params": head, "lr": self.learning_rate}]
        if trunk:
            groups.append({"params": trunk, "lr": self.of_trunk})
        optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


class Keeper(Callback):
    """After each epoch: its figures, the model where it is the best so far, and all that is needed to go on."""

    def __init__(
        self,
        checkpoint: Path,
        patience: int,
        reel: Reel | None,
        keep: Callable[[Epoch | None], None],
        tell: Callable[[Epoch], None],
        step: Callable[[int, int], None],
    ) -> None:
        """
        Args:
            checkpoint: the file from which the training can be gone on with.
            patience: so many epochs without a smaller validation loss end it.
            reel: the film; None in all processes but the first.
            keep: writes the model, which is the best so far; None is told where no epoch is over.
            tell: hears of each epoch that is done.
            step: hears of each step: (done in this epoch, epoch).
        """
        self.checkpoint, self.patience = checkpoint, patience
        self.reel, self.keep, self.tell, self.step = reel, keep, tell, step
        self.history: list[Epoch] = []
        self.began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, _task: LightningModule) -> None:
        self.began = time.monotonic()
        self.step(0, trainer.current_epoch)

    def on_train_batch_end(self, trainer: Trainer, _task: Any, _out: Any, _batch: Any, number: int) -> None:
        self.step(number + 1, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        number = trainer.current_epoch + 1
        fitting, validating = task.fitting.taken(), task.validating.taken()
        if not math.isfinite(validating[0]):
            raise NonFiniteError(
                f"the validation loss is {validating[0]} after epoch {number}, with a learning rate of {task.learning_rate:g}; "
                "a smaller one (--lr) may help"
            )
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        seen = self.reel.add(number, number) if self.reel is not None else None
        border, moved = (math.nan, math.nan) if seen is None else (seen.border, seen.moved)
        seconds = time.monotonic() - self.began
        figures = {"train_loss": fitting[0], "train_accuracy": fitting[1]}
        figures |= {"val_loss": validating[0], "val_accuracy": validating[1]}
        self.history.append(
            Epoch(epoch=number, **figures, learning_rate=rate, seconds=seconds, border=border, moved=moved)
        )
        if trainer.is_global_zero and best(self.history) == number:
            self.keep(self.history[-1])
        trainer.save_checkpoint(self.checkpoint)
        if trainer.is_global_zero:  # only what is on the disk is told
            self.tell(self.history[-1])
        trainer.should_stop = trainer.should_stop or ended(self.history, self.patience)

    def on_exception(self, trainer: Trainer, _task: Any, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt) and not self.history and trainer.is_global_zero:
            self.keep(None)

    def state_dict(self) -> dict[str, Any]:
        film = {} if self.reel is None else self.reel.state()
        return {"history": [asdict(one) for one in self.history], "film": film}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        history = [Epoch(**one) for one in state["history"]]
        wrong = f"the training can't go on from {self.checkpoint}:"
        numbers = [value for one in history for value in astuple(one)]
        if [one.epoch for one in history] != list(range(1, len(history) + 1)) or not history:
            raise TrainingError(f"{wrong} its epochs are not 1, 2, ... --force begins anew")
        if not all(isinstance(value, int | float) for value in numbers):
            raise TrainingError(f"{wrong} its figures are not numbers. --force begins anew")
        self.history = history
        if self.reel is not None:
            self.reel.restore(state["film"])


def best(history: Sequence[Epoch]) -> int:
    """The number of the epoch with the smallest validation loss, the first of several."""
    return min(history, key=lambda one: one.val_loss).epoch


def ended(history: Sequence[Epoch], patience: int) -> bool:
    """Whether nothing became better for so many epochs."""
    return bool(history) and history[-1].epoch - best(history) >= patience


class WholeFiles(CheckpointIO):
    """Checkpoints that are there whole or not at all, and that are read without running anything in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        place(Path(path), content.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_training(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
