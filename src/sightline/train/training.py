"""`fit`: the whole training, from folders of pictures to a model that explains itself. Read this first."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sightline
from sightline._optional import require
from sightline._quiet import quiet
from sightline.engine.targets import probabilities
from sightline.errors import NonFiniteError, OutputError, SightlineError, TrainingError
from sightline.models.outputs import unwrap
from sightline.models.twin import twin
from sightline.models.weights import load_weights, read_stored, read_training
from sightline.runs import opened
from sightline.train.batches import Batches, Gather, mirrored_features, mirrored_pictures, of_features, of_pictures
from sightline.train.features import features
from sightline.train.film import strip
from sightline.train.folders import Example, Folders, class_weights, read_folders, said
from sightline.train.loggers import Logger, to_tensorboard
from sightline.train.network import MODEL, Freeze, Network, freeze_in, save, with_new_head
from sightline.train.outcome import Epoch, headline, write_outcome
from sightline.train.reel import Reel, undisturbed

LAST = "last.ckpt"
_FEATURES = ("train.features", "train-mirrored.features", "val.features")
_OUTCOME = (
    *("curves.csv", "curves.png", "confusion.csv", "confusion.png", "predictions.csv", "mistakes.png"),
    *("index.html", "film.png", "maps.npz"),
)
# What was trained before learns so much slower than what is new.
_PRETRAINED, _NONE = 0.1, "random"
_FASTEST = 1e30  # what torch can still multiply
# So many validation pictures are filmed.
_FILMED = 8
# What of Lightning's trainer decides how much is trained and judged; that is for the epochs alone to say.
_LENGTH = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "fast_dev_run", "overfit_batches"),
    *("limit_train_batches", "limit_val_batches", "check_val_every_n_epoch", "val_check_interval"),
)
Watch = Callable[["Progress"], None]
# Torch's random numbers are those of the whole process, and two trainings would draw each other's.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        what: "reading" the pictures, "loading" the model, the trunk's "features", "training", or "judging" what came out.
        done: of `of`, in pictures or steps.
        of: how many there are in all.
        epoch: the epoch that has just ended, or None.
        told: what is to be known of the pictures, once they are read.
    """

    what: str
    done: int
    of: int
    epoch: Epoch | None = None
    told: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training led to.

    Attributes:
        folder: where everything lies; it is a model for `load_model` and `--model`.
        classes: their names.
        history: a record an epoch.
        best: the number of the epoch whose weights were kept.
        accuracy: share of the validation pictures that this model names rightly.
        headline: the same in a sentence, with its interval.
        told: what is to be known of the data: what was skipped, and why.
    """

    folder: Path
    classes: tuple[str, ...]
    history: tuple[Epoch, ...]
    best: int
    accuracy: float
    headline: str
    told: tuple[str, ...]


def fit(
    data: str | Path,
    model: str | Path = "bundled",
    *,
    output: str | Path,
    epochs: int = 10,
    batch_size: int = 16,
    size: int | None = None,
    freeze: Freeze = "trunk",
    learning_rate: float = 1e-3,
    flip: bool | None = None,
    patience: int = 5,
    val_share: float = 0.2,
    seed: int = 0,
    weights: str | Path | None = None,
    random_weights: bool = False,
    trainer: Mapping[str, Any] | None = None,
    loggers: Sequence[Logger] | None = None,
    resume: bool = False,
    force: bool = False,
    watch: Watch | None = None,
) -> Trained | None:
    """Trains a classifier on folders of pictures, and shows after each epoch where it looks.

    Args:
        data: with pictures in DATA/train/CLASS and DATA/val/CLASS; or in DATA/CLASS, of which a share is put aside.
        model: a pretrained model of timm or torchvision, as in `load_model`; its head is replaced.
        output: a folder for the model, curves, maps, mistakes and the summary page; itself a model for `load_model`.
        epochs: at most.
        batch_size: pictures in one step.
        size: of the pictures in pixels; the model's own when left out.
        freeze: what does not learn: "trunk" (only the new head learns, from features that are computed once), "none", or so
            many of the first layers.
        learning_rate: of the head; what was trained before gets a tenth. It falls along a cosine.
        flip: half of the pictures are mirrored; when left out, where the trunk learns.
        patience: so many epochs without a smaller validation loss end the training.
        val_share: of the pictures that are put aside where DATA/val is not there.
        seed: of all that is drawn.
        weights: a local file instead of the official weights.
        random_weights: begin with nothing learnt.
        trainer: arguments of Lightning's Trainer, such as {"devices": 2, "strategy": "ddp"}; one device when left out.
        loggers: beside the folder; event files for TensorBoard in it when left out.
        resume: go on with a training of the same settings that was stopped.
        force: begin anew where another training stands.
        watch: hears of each step.

    Returns:
        What it led to; None in all processes but the first.

    Raises:
        TrainingError: pictures or settings that can't be trained with.
        NonFiniteError: the loss is NaN or infinite; the last good model is kept.
        ModelError: as `with_new_head`.
        OutputError: the folder holds something else, or can't be written; the last good model is kept.
        MissingExtraError: an optional package is missing; the message has the command that installs it.
    """
    require(["lightning", "torchmetrics", "tensorboard"], "train", "training")
    _check(epochs, batch_size, learning_rate, patience, seed)
    root, folder, tell = Path(data), Path(output), watch or (lambda _: None)
    _check_place(root, folder, resume)
    if os.path.exists(model) and folder.exists() and Path(model).resolve().is_relative_to(folder.resolve()):
        raise OutputError(
            f"{model} is the model that is begun with, and lies in {folder}; choose another place with -o"
        )
    found = read_folders(
        root, val_share=val_share, seed=seed, watch=lambda done, of: tell(Progress("reading", done, of))
    )
    tell(Progress("loading", 0, 1, told=tuple(said(found))))
    with _ONE_AT_A_TIME, undisturbed():
        network = with_new_head(
            model, found.classes, weights=weights, random_weights=random_weights, size=size, seed=seed
        )
        frozen = freeze_in(network, freeze)
        settings = {
            "model": str(model),
            "architecture": network.architecture,
            "weights": network.adapter.provenance.get("sha256", _NONE),
            "size": list(network.adapter.provenance["preprocessing"]["size"]),
            "frozen": freeze,
            "epochs": epochs,
            "batch size": batch_size,
            "learning rate": learning_rate,
            "mirrored": flip if flip is not None else freeze != "trunk",
            "patience": patience,
            "seed": seed,
            "trainer": ", ".join(f"{name}={value}" for name, value in (trainer or {}).items()) or "as usual",
        }
        machine = _trainer(epochs, trainer or {})
        tell(Progress("loading", 1, 1))
        run = _Run(folder, found, network, frozen, settings, loggers, tell)
        if not machine.is_global_zero:
            _train(run, machine, resume, None)
            return None
        with (
            _opened(folder, settings | {"pictures": _fingerprint(found)}, resume, force),
            closing(_reel(run)) as reel,  # whatever happens: loggers hold files and threads
        ):
            return _finished(run, _train(run, machine, resume, reel), reel)


@dataclass(frozen=True, eq=False)
class _Run:
    """What one training consists of; for the fields see `fit`."""

    folder: Path
    found: Folders
    network: Network
    frozen: Sequence[nn.Module]
    settings: Mapping[str, Any]
    loggers: Sequence[Logger] | None
    tell: Watch


def _train(run: _Run, machine: Any, resume: bool, reel: Reel | None) -> Sequence[Epoch]:
    """The training itself, filmed by the first process; its epochs."""
    from sightline.train.task import Keeper, Task, best, ended

    network, settings, last = run.network, run.settings, run.folder / LAST
    network.module.to(machine.strategy.root_device)
    # One process alone can learn from what the trunk says of each picture, once for all epochs.
    once = settings["frozen"] == "trunk" and network.whole and machine.world_size == 1
    fitting, validating = _gathered(run) if once else _pictured(run)
    train = Batches(
        len(run.found.train),
        settings["batch size"],
        fitting,
        seed=settings["seed"],
        rank=machine.global_rank,
        processes=machine.world_size,
    )
    val = Batches(
        len(run.found.val),
        settings["batch size"],
        validating,
        rank=machine.global_rank,
        processes=machine.world_size,
    )
    task = Task(
        network.layer if once else network.module,
        network.layer,
        () if once else run.frozen,
        class_weights(run.found),
        settings["learning rate"],
        settings["learning rate"] * (1.0 if settings["weights"] == _NONE else _PRETRAINED),
        None if not settings["mirrored"] else mirrored_features if once else mirrored_pictures,
        settings["seed"],
    )
    steps = settings["epochs"] * len(train)

    def told(epoch: Epoch) -> None:
        if reel is not None:  # which logs its own shares itself
            shares = ("epoch", "border", "moved")
            reel.log(epoch.epoch, {name: value for name, value in asdict(epoch).items() if name not in shares})
        run.tell(Progress("training", epoch.epoch * len(train), steps, epoch))

    keeper = Keeper(
        last,
        settings["patience"],
        reel,
        keep=lambda epoch: save(network, run.folder / MODEL, _about(epoch)),
        tell=told,
        step=lambda number, epoch: run.tell(Progress("training", epoch * len(train) + number, steps)),
    )
    goes_on = resume and last.is_file()
    if goes_on:
        state = read_training(last)
        with _unfit(last):
            keeper.load_state_dict(state["callbacks"]["Keeper"])
    if reel is not None:
        reel.begin(lambda: network.adapter, len(keeper.history), len(keeper.history))
    if not ended(keeper.history, settings["patience"]):
        machine.callbacks.append(keeper)
        try:
            # An error before the first step is one of what the checkpoint holds.
            with _unfit(last, lambda: goes_on and not keeper.began), _interruptible(), quiet():
                machine.fit(task, train, val, ckpt_path=last if goes_on else None)
        except NonFiniteError as error:
            kept = (
                f"{run.folder / MODEL} is of epoch {best(keeper.history)}" if keeper.history else "no epoch had ended"
            )
            raise NonFiniteError(f"{error}; {kept}") from error
    network.module.cpu()
    return keeper.history


@contextmanager
def _unfit(checkpoint: Path, so_far: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """What a checkpoint of something else makes torch and Lightning raise is said of the checkpoint."""
    try:
        yield
    except (SightlineError, OSError):
        raise
    except Exception as error:  # whatever somebody put there
        if not so_far():
            raise
        why = " ".join(str(error).split()).rstrip(". ")
        raise TrainingError(
            f"the training can't go on from {checkpoint}: {type(error).__name__}: {why}. --force begins anew"
        ) from error


def _gathered(run: _Run) -> tuple[Gather, Gather]:
    """Batches of what the frozen trunk says, which is computed before and kept until the end."""
    train, val, flips = run.found.train, run.found.val, run.settings["mirrored"]
    parts = [(train, False), *([(train, True)] if flips else []), (val, False)]
    names = ["train", *(["train-mirrored"] if flips else []), "val"]
    of, before, found = sum(len(part) for part, _ in parts), 0, []
    for name, (part, mirrored) in zip(names, parts, strict=True):

        def tell(done: int, before: int = before) -> None:
            run.tell(Progress("features", before + done, of))

        file = run.folder / f"{name}.features"
        found.append(features(run.network, part, file, run.settings["batch size"], mirrored, tell))
        before += len(part)
    return of_features(found[:-1], train), of_features(found[-1:], val)


def _pictured(run: _Run) -> tuple[Gather, Gather]:
    """Batches of pictures."""
    take = run.network.adapter.preprocess
    if take is None:  # of what is loaded by name this can't be
        raise TrainingError(f"{run.network.architecture} has no preprocessing")
    return of_pictures(run.found.train, take), of_pictures(run.found.val, take)


def _reel(run: _Run) -> Reel:
    """The film of a few validation pictures of all classes."""
    loggers = run.loggers if run.loggers is not None else [to_tensorboard(run.folder / "tensorboard")]
    each: dict[int, list[Example]] = {}
    for one in sorted(run.found.val, key=lambda one: one.sha256):
        each.setdefault(one.label, []).append(one)
    turns = [one for turn in zip_longest(*(each[label] for label in sorted(each))) for one in turn if one is not None]
    chosen = sorted(turns[:_FILMED], key=lambda one: (one.label, one.name))
    pictures, names = [(one.path, one.label) for one in chosen], [one.name for one in chosen]
    return Reel(pictures, "grad-cam", None, run.folder, loggers, 1, names)


def _finished(run: _Run, history: Sequence[Epoch], reel: Reel) -> Trained:
    """What a person looks at, made with the best model."""
    from sightline.train.task import best

    kept, folders = best(history), run.found
    module = run.network.module
    load_weights(module, read_stored(run.folder / MODEL).tensors, MODEL)
    found = _probabilities(run)
    told = said(folders)
    film = strip(reel.shots, reel.frames, folders.classes)
    reel.write(run.folder, film)  # once more, because what goes wrong with it after an epoch is only warned of
    write_outcome(
        run.folder,
        adapter=run.network.adapter,
        folders=folders,
        history=history,
        best=kept,
        probabilities=found,
        film=film,
        told=told,
        settings=run.settings,
        finished=True,
    )
    for name in _FEATURES:
        (run.folder / name).unlink(missing_ok=True)
    right = int((found.argmax(axis=1) == np.array([one.label for one in folders.val])).sum())
    return Trained(
        run.folder,
        folders.classes,
        tuple(history),
        kept,
        right / len(folders.val),
        headline(folders.classes, right, len(folders.val), kept),
        tuple(told),
    )


def _probabilities(run: _Run) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the model says of the validation pictures (V, K)."""
    stand_in = twin(run.network.module, {})
    of, parts, done = len(run.found.val), [], 0
    with torch.inference_mode():
        for x, _ in Batches(of, run.settings["batch size"], _pictured(run)[1]):
            parts.append(probabilities(unwrap(stand_in(x))).float().numpy())
            done += len(x)
            run.tell(Progress("judging", done, of))
    return np.concatenate(parts)


def _about(epoch: Epoch | None) -> dict[str, Any]:
    """What is said in the model's file of how it came about."""
    version = {"sightline": sightline.__version__}
    if epoch is None:
        return version | {"epoch": "stopped before the end of the first"}
    return version | {
        "epoch": epoch.epoch,
        "validation accuracy": epoch.val_accuracy,
        "validation loss": epoch.val_loss,
    }


def _trainer(epochs: int, given: Mapping[str, Any]) -> Any:
    """Lightning's trainer: silent, with nothing of its own in the folder."""
    from lightning.pytorch import Trainer

    from sightline.train.task import WholeFiles

    precision = "32-true"
    if torch.cuda.is_available() and given.get("accelerator", "auto") in ("auto", "gpu", "cuda"):
        precision = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    usual: dict[str, Any] = {"accelerator": "auto", "devices": 1, "precision": precision, "max_epochs": epochs}
    ours: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "plugins": [WholeFiles()],
    }
    taken = [name for name in given if name in ours or name in ("callbacks", *_LENGTH)]
    if taken:
        raise TrainingError(f"{taken[0]} is settled by sightline and can't be given to Lightning's trainer")
    try:
        with quiet():
            return Trainer(**(usual | dict(given) | ours))
    except Exception as error:  # of many kinds, for what it can't do on this machine
        raise TrainingError(f"Lightning's trainer can't be made with {dict(given)}: {error}") from error


@contextmanager
def _opened(folder: Path, plan: Mapping[str, Any], resume: bool, force: bool) -> Iterator[None]:
    """The run's folder, locked."""
    files = [MODEL, LAST, *_FEATURES, *_OUTCOME]
    with opened(folder, "train", plan, lambda _: files, force) as goes_on:
        if goes_on and not resume and any((folder / name).exists() for name in files):
            raise OutputError(
                f"{folder} holds a training of the same settings; --resume goes on with it, --force begins anew, or take another -o"
            )
        if force and (folder / "tensorboard").is_dir():
            shutil.rmtree(folder / "tensorboard")
        yield


def _fingerprint(found: Folders) -> str:
    """A digest of all pictures, their classes and sides."""
    digest = hashlib.sha256("\0".join(found.classes).encode())
    for side in (found.train, found.val):
        digest.update(b"side")
        for one in side:
            digest.update(f"{one.name}\0{one.label}\0{one.sha256}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _check(epochs: int, batch_size: int, learning_rate: float, patience: int, seed: int) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TrainingError(f"{name} is {value!r}; expected a whole number from 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise TrainingError(f"seed is {seed!r}; expected a whole number from 0 and below 2 ** 32")
    if not (isinstance(learning_rate, int | float) and 0 < learning_rate < _FASTEST):
        raise TrainingError(f"learning_rate is {learning_rate!r}; expected a number above 0, such as 0.001")


def _check_place(root: Path, folder: Path, resume: bool) -> None:
    if folder.resolve().is_relative_to(root.resolve()):
        raise OutputError(
            f"{folder} lies inside the pictures of {root}, into which nothing is written; choose another place with -o"
        )
    if root.resolve().is_relative_to(folder.resolve()):
        raise OutputError(
            f"the pictures of {root} lie inside {folder}, in which files are replaced; choose another place with -o"
        )
    if resume and not (folder / "manifest.json").is_file():
        raise OutputError(f"there is no training to resume in {folder}; leave out --resume to begin one")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning ends the process on Ctrl-C, and leaves Ctrl-C switched off; here it stays what it is."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if type(end).__name__ == "SIGTERMException":  # Lightning takes it for a success
            end.code = 128 + signal.SIGTERM
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
