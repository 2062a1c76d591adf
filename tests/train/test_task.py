"""The training itself, with Lightning's own trainer: its figures are those of a slow loop, and what is frozen stays as it was."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import seeded
from sightline._quiet import quiet
from sightline.errors import NonFiniteError, WeightsError
from sightline.train.batches import Batches
from sightline.train.outcome import Epoch
from sightline.train.task import Keeper, Task, WholeFiles, best, ended
from sightline.train.training import _interruptible, _trainer

CLASS_WEIGHTS = (0.5, 1.0, 2.5)
RATE, OF_TRUNK, DECAY = 0.02, 0.005, 0.01
PICTURES = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0] * 16 + [1] * 9 + [2] * 5)
FITTING, VALIDATING = [*range(0, 30, 2), 1, 5, 17], [3, 7, 9, 11, 13, 19, 21, 23, 27, 29]


class Net(nn.Module):
    """Two convolutions with batch norms and a head; without biases, whose gradients would be nothing but rounding errors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.head(self.drop(self.norm2(self.conv2(x)).relu().mean(dim=(2, 3))))


def of(numbers: list[int], seed: int | None = None) -> Batches:
    """Batches of four of these examples."""

    def gather(group: Any) -> tuple[Tensor, Tensor]:
        rows = [numbers[one] for one in group]
        return PICTURES[rows], LABELS[rows]

    return Batches(len(numbers), 4, gather, seed=seed)


@dataclasses.dataclass
class Run:
    """One training, and what was heard of it."""

    folder: Path
    net: Any = dataclasses.field(default_factory=lambda: seeded(Net))
    frozen: tuple[str, ...] = ()
    epochs: int = 3
    patience: int = 99
    mirror: Callable[[Tensor, Tensor], Tensor] | None = None
    callbacks: tuple[pl.Callback, ...] = ()
    step: Callable[[int, int], None] = lambda _done, _epoch: None
    told: list[Epoch] = dataclasses.field(default_factory=list)
    kept: list[Any] = dataclasses.field(default_factory=list)

    def fit(self, resume: bool = False) -> Keeper:
        frozen = [self.net.get_submodule(name) for name in self.frozen]
        for one in frozen:
            one.requires_grad_(False)
        train = of(FITTING, seed=3)
        task = Task(self.net, self.net.head, frozen, CLASS_WEIGHTS, RATE, OF_TRUNK, self.mirror, 7)
        keeper = Keeper(
            self.folder / "last.ckpt", self.patience, None, keep=self.kept.append, tell=self.told.append, step=self.step
        )
        machine = _trainer(self.epochs, {"accelerator": "cpu"})
        machine.callbacks.extend([*self.callbacks, keeper])
        with torch.random.fork_rng(), _interruptible(), quiet():
            machine.fit(task, train, of(VALIDATING), ckpt_path=self.folder / "last.ckpt" if resume else None)
        return keeper


class Looking(pl.Callback):
    """Calls a function at the beginning of each step."""

    def __init__(self, look: Callable[[Any, Any, int], None]) -> None:
        self.look = look

    def on_train_batch_start(self, trainer: Any, task: Any, _batch: Any, number: int) -> None:
        self.look(trainer, task, number)


# ------------------------------------------------------------------------------------------------ against slow loops


def weighted(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Sum of w_y (log sum exp z - z_y), and of w_y, example by example."""
    above = below = 0.0
    for row, label in zip(logits.detach().double().tolist(), labels.tolist(), strict=True):
        top = max(row)
        log_sum = top + math.log(sum(math.exp(one - top) for one in row))
        above += CLASS_WEIGHTS[label] * (log_sum - row[label])
        below += CLASS_WEIGHTS[label]
    return above, below


def test_the_loss_of_a_step_is_the_cross_entropy_with_the_classes_weights() -> None:
    net = seeded(Net)
    task = Task(net, net.head, (), CLASS_WEIGHTS, RATE, OF_TRUNK, None, 0)
    rows = [0, 17, 29, 28, 3]
    above, below = weighted(net(PICTURES[rows]), LABELS[rows])
    assert task.training_step((PICTURES[rows], LABELS[rows]), 0).item() == pytest.approx(above / below, rel=1e-5)


def by_hand(net: nn.Module, frozen: tuple[str, ...], epochs: int) -> tuple[list[list[float]], nn.Module]:
    """The same training in float64 with AdamW and the cosine written out; figures of each epoch, and the weights."""
    net = copy.deepcopy(net).double()
    stays = [name for name, _ in net.named_parameters() if name.startswith(frozen)] if frozen else []
    learns = {name: one for name, one in net.named_parameters() if name not in stays}
    first, second = ({name: torch.zeros_like(one) for name, one in learns.items()} for _ in range(2))
    train, figures, step = of(FITTING, seed=3), [], 0
    steps = epochs * len(train)
    for epoch in range(epochs):
        train.sampler.set_epoch(epoch)
        row = []
        for batches, learning in ((train, True), (of(VALIDATING), False)):
            above = below = right = seen = 0.0
            for x, labels in batches:
                net.train(learning)
                for name in frozen:
                    net.get_submodule(name).eval()
                logits = net(x.double())
                sums = weighted(logits, labels)
                above, below = above + sums[0], below + sums[1]
                right += int((logits.argmax(dim=1) == labels).sum())
                seen += len(x)
                if not learning:
                    continue
                w = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)[labels]
                losses = logits.logsumexp(dim=1) - logits[torch.arange(len(x)), labels]
                found = torch.autograd.grad((w * losses).sum() / w.sum(), list(learns.values()))
                fall, step = (1 + math.cos(math.pi * step / steps)) / 2, step + 1
                with torch.no_grad():
                    for (name, one), gradient in zip(learns.items(), found, strict=True):
                        rate = fall * (RATE if name.startswith("head") else OF_TRUNK)
                        one.mul_(1 - rate * DECAY)
                        first[name] = 0.9 * first[name] + 0.1 * gradient
                        second[name] = 0.999 * second[name] + 0.001 * gradient**2
                        size = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                        one.sub_(rate * first[name] / (1 - 0.9**step) / size)
            row += [above / below, right / seen]
        figures.append([*row, RATE * (1 + math.cos(math.pi * step / steps)) / 2])
    return figures, net


@pytest.mark.parametrize("frozen", [(), ("conv1", "norm1")])
def test_figures_and_weights_are_those_of_the_slow_loop(frozen: tuple[str, ...], tmp_path: Path) -> None:
    run = Run(tmp_path, frozen=frozen)
    wanted, weights = by_hand(run.net, frozen, run.epochs)
    history = run.fit().history
    found = [[one.train_loss, one.train_accuracy, one.val_loss, one.val_accuracy, one.learning_rate] for one in history]
    assert np.abs(np.array(found) - np.array(wanted)).max() < 1e-4
    assert [one.epoch for one in history] == [1, 2, 3]
    assert run.told == history
    ours = run.net.state_dict()
    assert max((ours[name] - one).abs().max().item() for name, one in weights.state_dict().items()) < 1e-3


def test_the_learning_rate_falls_along_a_cosine_step_by_step(tmp_path: Path) -> None:
    seen: list[list[float]] = []
    look = Looking(lambda trainer, *_: seen.append([one["lr"] for one in trainer.optimizers[0].param_groups]))
    Run(tmp_path, callbacks=(look,)).fit()
    steps = 3 * len(of(FITTING))
    assert len(seen) == steps
    for step, (head, trunk) in enumerate(seen):
        fall = (1 + math.cos(math.pi * step / steps)) / 2
        assert head == pytest.approx(RATE * fall, abs=1e-9)
        assert trunk == pytest.approx(OF_TRUNK * fall, abs=1e-9)


def test_the_validation_loss_does_not_depend_on_how_the_pictures_are_cut_into_batches() -> None:
    figures = set()
    for size in (1, 3, 10):
        net = seeded(Net)
        task = Task(net, net.head, (), CLASS_WEIGHTS, RATE, OF_TRUNK, None, 0)
        for start in range(0, 10, size):
            rows = VALIDATING[start : start + size]
            task.validation_step((PICTURES[rows], LABELS[rows]), 0)
        figures.add(tuple(round(one, 5) for one in task.validating.taken()))
    assert len(figures) == 1


# ----------------------------------------------------------------------------------------------------- what learns, and how


def test_what_learns_is_in_training_mode_and_what_is_frozen_in_evaluation_mode_in_every_step(tmp_path: Path) -> None:
    seen = set()

    def look(_trainer: Any, task: Any, _number: int) -> None:
        seen.add(tuple(name for name, one in task.learns.named_modules() if one.training))

    run = Run(tmp_path, frozen=("conv1", "norm1"), callbacks=(Looking(look),))
    before = copy.deepcopy(run.net.state_dict())
    assert not run.net.training
    run.fit()
    assert seen == {("", "conv2", "norm2", "drop", "head")}
    changed = {name for name, one in run.net.state_dict().items() if not torch.equal(one, before[name])}
    assert changed == {name for name in before if not name.startswith(("conv1", "norm1"))}


def test_half_of_the_pictures_are_mirrored_others_in_each_epoch_and_the_same_in_the_same_one(tmp_path: Path) -> None:
    def masks(folder: Path) -> list[list[bool]]:
        seen: list[list[bool]] = []

        def mirror(x: Tensor, which: Tensor) -> Tensor:
            seen.append(which.tolist())
            return x

        folder.mkdir()
        Run(folder, mirror=mirror, epochs=6).fit()
        return seen

    first = masks(tmp_path / "1")
    each = len(of(FITTING))
    assert len(first) == 6 * each
    assert first[:each] != first[each : 2 * each]
    share = np.mean([one for mask in first for one in mask])
    assert 0.3 < share < 0.7
    torch.manual_seed(99)
    assert masks(tmp_path / "2") == first


# ------------------------------------------------------------------------------------------------------- when it ends


def epoch(number: int, val_loss: float) -> Epoch:
    return Epoch(number, 1.0, 0.5, val_loss, 0.5, 0.1, 1.0, math.nan, math.nan)


@pytest.mark.parametrize(
    ("losses", "patience", "kept", "over"),
    [
        ([1.0], 1, 1, False),
        ([1.0, 0.9], 1, 2, False),
        ([1.0, 1.1], 1, 1, True),
        ([1.0, 1.0], 1, 1, True),
        ([1.0, 1.1], 2, 1, False),
        ([1.0, 1.1, 0.9], 2, 3, False),
        ([1.0, 0.5, 0.6, 0.6], 2, 2, True),
        ([1.0, 0.5, 0.6, 0.5], 2, 2, True),
        ([1.0, 0.5, 0.6, 0.4], 2, 4, False),
        ([3.0, 2.0, 2.5, 2.4, 2.3], 3, 2, True),
        ([3.0, 2.0, 2.5, 2.4], 3, 2, False),
    ],
)
def test_the_best_epoch_and_the_end_by_a_table(losses: list[float], patience: int, kept: int, over: bool) -> None:
    history = [epoch(number, one) for number, one in enumerate(losses, start=1)]
    assert best(history) == kept
    assert ended(history, patience) is over


def test_a_training_that_has_not_begun_has_not_ended() -> None:
    assert not ended([], 1)


def test_the_model_is_kept_after_each_epoch_that_is_the_best_so_far_and_patience_ends_it(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=40, patience=2)
    history = run.fit().history
    wanted = [one for at, one in enumerate(history) if all(one.val_loss < other.val_loss for other in history[:at])]
    assert run.kept == wanted
    assert len(history) < 40
    assert history[-1].epoch - wanted[-1].epoch == 2


def test_whatever_else_stops_the_trainer_is_heard(tmp_path: Path) -> None:
    def stop(trainer: Any, _task: Any, number: int) -> None:
        if trainer.current_epoch == 1 and number == 2:
            trainer.should_stop = True

    assert [one.epoch for one in Run(tmp_path, epochs=6, callbacks=(Looking(stop),)).fit().history] == [1, 2]


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_nan_in_training_stops_it_and_names_step_and_epoch_and_the_learning_rate(tmp_path: Path) -> None:
    def spoil(trainer: Any, task: Any, number: int) -> None:
        if trainer.current_epoch == 1 and number == 2:
            with torch.no_grad():
                task.learns.head.weight[0, 0] = math.nan

    run = Run(tmp_path, callbacks=(Looking(spoil),))
    with pytest.raises(
        NonFiniteError, match=r"the loss is nan at step 3 of epoch 2, with a learning rate of 0\.02"
    ) as error:
        run.fit()
    assert "--lr" in str(error.value)
    assert len(run.told) == len(run.kept) == 1
    state = WholeFiles().load_checkpoint(tmp_path / "last.ckpt")
    assert [one["epoch"] for one in state["callbacks"]["Keeper"]["history"]] == [1]
    assert all(one.isfinite().all() for one in state["state_dict"].values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_for_one_picture_of_validation_stop_it(value: float, tmp_path: Path) -> None:
    class Odd(Net):
        """Loses itself at one picture of validation."""

        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            same = (x == PICTURES[VALIDATING[5]]).all(dim=(1, 2, 3))
            return found if self.training else torch.where(same[:, None], torch.full_like(found, value), found)

    run = Run(tmp_path, net=seeded(Odd))
    with pytest.raises(NonFiniteError, match=r"the validation loss is (nan|inf) after epoch 1"):
        run.fit()
    assert run.kept == run.told == []
    assert not (tmp_path / "last.ckpt").exists()


def test_no_thread_is_left_by_a_training_that_failed(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    def step(done: int, _epoch: int) -> None:
        if done == 2:
            raise NonFiniteError("enough")

    with pytest.raises(NonFiniteError, match="enough"):
        Run(tmp_path, step=step).fit()
    gc.collect()  # Lightning's trainer holds the batches, and itself
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(("at", "kept"), [(0, [None]), (1, [1])])
def test_ctrl_c_keeps_the_best_model_or_the_one_of_the_moment_and_comes_out_as_itself(
    at: int, kept: list[int | None], tmp_path: Path
) -> None:
    def step(done: int, epoch: int) -> None:
        if (done, epoch) == (2, at):
            raise KeyboardInterrupt

    run = Run(tmp_path, step=step)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert [one if one is None else one.epoch for one in run.kept] == kept


def test_a_training_that_was_stopped_goes_on_to_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    def mirror(x: Tensor, which: Tensor) -> Tensor:
        return torch.where(which.view(-1, 1, 1, 1), x.flip(-1), x)

    def step(done: int, epoch: int) -> None:
        if (done, epoch) == (3, 2):
            raise KeyboardInterrupt

    (tmp_path / "straight").mkdir()
    straight = Run(tmp_path / "straight", epochs=4, mirror=mirror)
    wanted = straight.fit().history
    (tmp_path / "stopped").mkdir()
    stopped = Run(tmp_path / "stopped", epochs=4, mirror=mirror, step=step)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert [one.epoch for one in stopped.told] == [1, 2]
    later = Run(tmp_path / "stopped", epochs=4, mirror=mirror)
    history = later.fit(resume=True).history
    assert [one.epoch for one in later.told] == [3, 4]
    assert repr([dataclasses.replace(one, seconds=0) for one in history]) == repr(
        [dataclasses.replace(one, seconds=0) for one in wanted]
    )
    for name, one in straight.net.state_dict().items():
        assert torch.equal(one, later.net.state_dict()[name]), name


# --------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    state = {"epoch": 3, "state_dict": {"w": torch.arange(3.0)}, "callbacks": {"Keeper": {"history": [{"epoch": 1}]}}}
    WholeFiles().save_checkpoint(state, tmp_path / "last.ckpt")
    found = WholeFiles().load_checkpoint(tmp_path / "last.ckpt")
    assert repr(found) == repr(state)
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]
    WholeFiles().remove_checkpoint(tmp_path / "last.ckpt")
    WholeFiles().remove_checkpoint(tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_can_not_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WholeFiles().save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        WholeFiles().save_checkpoint({"epoch": 2}, tmp_path / "last.ckpt")
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]
    assert WholeFiles().load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 1}


def test_what_can_not_be_written_at_all_leaves_the_old_one(tmp_path: Path) -> None:
    WholeFiles().save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="pickle"):
        WholeFiles().save_checkpoint({"epoch": threading.Lock()}, tmp_path / "last.ckpt")
    assert WholeFiles().load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 1}


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("archive", [True, False])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(archive: bool, tmp_path: Path) -> None:
    state = {"epoch": 1, "callbacks": {"Keeper": Code(f"touch {tmp_path / 'ran'}")}}
    if archive:
        torch.save(state, tmp_path / "last.ckpt")
    else:
        (tmp_path / "last.ckpt").write_bytes(pickle.dumps(state))
    with pytest.raises(WeightsError):
        WholeFiles().load_checkpoint(tmp_path / "last.ckpt")
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_damaged_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(WeightsError):
        WholeFiles().load_checkpoint(tmp_path / "last.ckpt")
