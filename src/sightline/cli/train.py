"""`sightline train`"""

from __future__ import annotations

import json as to_json
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.bundles import parsed_option
from sightline.cli.output import plain, say, tell
from sightline.errors import TrainingError

if TYPE_CHECKING:
    from sightline.train.training import Progress, Watch

DEFAULT_FOLDER = Path("sightline-run")


def run(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="DATA/train/CLASS/* and DATA/val/CLASS/*, or DATA/CLASS/*.")
    ],
    model: Annotated[
        str, typer.Option("--model", help="bundled, torchvision:NAME, timm:NAME, or a weights file of one.")
    ] = "bundled",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A local state dict instead of the official weights.")
    ] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Begin with nothing learnt.")] = False,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="At most.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures in one step.")] = 16,
    size: Annotated[
        int | None, typer.Option("--size", min=16, metavar="PX", help="Of the pictures. [default: the model's own]")
    ] = None,
    freeze: Annotated[
        str,
        typer.Option(
            "--freeze",
            metavar="trunk|none|N",
            help="What does not learn: all but the new head, nothing, or the first N layers; 1000 lists them.",
        ),
    ] = "trunk",
    lr: Annotated[
        float, typer.Option("--lr", help="Learning rate of the head; what was trained before gets a tenth.")
    ] = 1e-3,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror half of the pictures. [default: where the trunk learns]"),
    ] = None,
    patience: Annotated[
        int,
        typer.Option("--patience", min=1, metavar="EPOCHS", help="So many without a smaller validation loss end it."),
    ] = 5,
    val_share: Annotated[
        float, typer.Option("--val-share", help="Put aside of each class where there is no DATA/val.")
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is random.")] = 0,
    trainer: Annotated[
        list[str] | None,
        typer.Option(
            "--trainer", metavar="NAME=VALUE", help="For Lightning's Trainer, such as devices=4 and strategy=ddp."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="RUN", help="The model, its curves, maps and page.")
    ] = DEFAULT_FOLDER,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin anew where another training stands.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The outcome as JSON on stdout.")] = False,
) -> None:
    """Train a classifier on folders of pictures, and watch where it looks. Then: sightline explain PHOTO --model RUN"""
    given = dict(parsed_option(text, "--trainer") for text in trainer or [])
    try:
        with _progress() as watch, _told():
            from sightline.train.training import fit

            found = fit(
                data,
                model,
                output=output,
                epochs=epochs,
                batch_size=batch_size,
                size=size,
                freeze=_freeze(freeze),
                learning_rate=lr,
                flip=flip,
                patience=patience,
                val_share=val_share,
                seed=seed,
                weights=weights,
                random_weights=random_weights,
                trainer=given,
                resume=resume,
                force=force,
                watch=watch,
            )
    except (KeyboardInterrupt, SystemExit) as end:
        begun = (output / "manifest.json").is_file()
        kept = f"what is done is kept in {plain(output)}: the same command with --resume goes on from there"
        tell(f"stopped; {kept if begun else 'nothing was trained yet'}")
        raise typer.Exit(end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 130) from None
    if found is None:  # another process tells the outcome
        return
    if json:
        record = {"folder": str(found.folder), "classes": found.classes, "best": found.best, "accuracy": found.accuracy}
        say(to_json.dumps(record | {"headline": found.headline, "told": found.told, "history": _rows(found.history)}))
        return
    if len(found.history) < epochs:
        say(f"ended after epoch {len(found.history)}: no smaller validation loss since epoch {found.best}")
    say(plain(found.headline, 1000))
    say()
    say(f"everything on one page: {plain(output / 'index.html')}")
    say(
        f"try it: {plain(shlex.join(['sightline', 'explain', '--random-from', str(_to_try(data)), '--model', str(output)]), 2000)}"
    )


def _freeze(text: str) -> Any:
    if text in ("trunk", "none"):
        return text
    try:
        return int(text)
    except ValueError:
        raise TrainingError(f"--freeze {text!r}; expected trunk, none, or a number of layers") from None


def _to_try(data: Path) -> Path:
    return data / "val" if (data / "val").is_dir() else data


def _rows(history: Sequence[Any]) -> list[dict[str, Any]]:
    """Epochs as plain values; JSON knows no NaN."""
    return [{name: value if value == value else None for name, value in asdict(one).items()} for one in history]


@contextmanager
def _told() -> Iterator[None]:
    """Warnings, such as of a map that could not be made, as lines for the person."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: tell(f"warning: {plain(message, 1000)}")
        yield


@contextmanager
def _progress() -> Iterator[Watch]:
    """A bar on stderr with the time left, and a line for each epoch."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    said: set[str] = set()

    def lines(progress: Progress) -> list[str]:
        found = [plain(sentence, 1000) for sentence in progress.told]
        one = progress.epoch
        if one is not None:
            border = "" if one.border != one.border else f", {one.border:.0%} of the heat on the border"
            found.append(
                f"epoch {one.epoch}: training {one.train_accuracy:.1%} (loss {one.train_loss:.3g}), "
                f"validation {one.val_accuracy:.1%} (loss {one.val_loss:.3g}){border}"
            )
        if progress.what not in said and not console.is_terminal:
            said.add(progress.what)
            found.append(_STAGES[progress.what])
        return found

    if not console.is_terminal:

        def log(progress: Progress) -> None:
            for text in lines(progress):
                tell(text)

        yield log
        return
    columns = (*Bar.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[shown]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {"": bar.add_task("getting ready", total=None, shown="")}

        def show(progress: Progress) -> None:
            if "" in tasks:
                bar.remove_task(tasks.pop(""))
            if progress.what not in tasks:
                tasks[progress.what] = bar.add_task(_STAGES[progress.what], total=progress.of, shown="")
            bar.update(tasks[progress.what], completed=progress.done, total=progress.of)
            for text in lines(progress):
                bar.console.print(text, markup=False, highlight=False)

        yield show


_STAGES = {
    "reading": "reading the pictures",
    "loading": "loading the model",
    "features": "what the trunk says of them",
    "training": "training",
    "judging": "what it says of the unseen",
}
