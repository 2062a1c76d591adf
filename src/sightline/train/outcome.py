"""What a person looks at when a training is over: curves, what was taken for what, the worst mistakes, one page of all."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sightline.bundle import csv_table, place, png, unicode_text
from sightline.errors import NonFiniteError, OutputError, SightlineError
from sightline.flow import compare, look
from sightline.metrics.statistics import wilson
from sightline.models.adapter import Adapter
from sightline.render.matrix import confusion
from sightline.render.panel import Tile, percent, sheet
from sightline.render.plots import Line, curves
from sightline.train.film import EVEN_BORDER
from sightline.train.folders import Example, Folders

Array = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]

WORST = 12  # mistakes that are drawn
_PANEL = 520  # pixels of one panel of curves
_TILE = 260  # pixels of a picture among the mistakes


@dataclass(frozen=True)
class Epoch:
    """One row of curves.csv; NaN where there is no value.

    Attributes:
        epoch: 1 for the first.
        train_loss: mean over the epoch, while the weights changed.
        train_accuracy: share of the training pictures named rightly, also while the weights changed.
        val_loss: mean over the pictures that are left out of the training.
        val_accuracy: share of them named rightly.
        learning_rate: at the epoch's end.
        seconds: that it took.
        border: mean share of the maps' heat that lies in the outer eighth of the input at each side.
        moved: mean share of the heat that moved since the epoch before.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    border: float
    moved: float


class _Verdict(NamedTuple):
    """What the model said of one picture, with the probabilities of that class and of the true one."""

    example: Example
    said: int
    sure: float
    true: float

    @property
    def right(self) -> bool:
        return self.said == self.example.label


class _Panel(NamedTuple):
    """A plot, and what it shows in words for those who can't see it."""

    picture: Image.Image
    says: str


def write_outcome(
    folder: Path,
    *,
    adapter: Adapter,
    folders: Folders,
    history: Sequence[Epoch],
    best: int,
    probabilities: np.ndarray[Any, Any],
    film: Image.Image | None,
    told: Sequence[str],
    settings: Mapping[str, Any],
    finished: bool,
) -> None:
    """Writes curves, confusion, predictions and worst mistakes, and a page that shows all of them.

    Every file appears whole or not at all, index.html last; files of an earlier epoch are replaced.

    Args:
        folder: of the run; it exists, or is made.
        adapter: the trained model, with its preprocessing.
        folders: the pictures; those of `val` were not trained on.
        history: one record an epoch so far.
        best: the epoch whose weights `adapter` has.
        probabilities: (V, K), what it says of the pictures of `folders.val`, in their order.
        film: the maps of some pictures after each epoch, as one picture.
        told: sentences about the data.
        settings: of the training, plain values.
        finished: whether all epochs that were planned are done.

    Raises:
        OutputError: the folder can't be written, or what was given doesn't fit together.
        NonFiniteError: a probability is NaN or infinite.
    """
    if not history:
        raise OutputError("there is no epoch to write about; train one first")
    verdicts = _verdicts(folders, np.asarray(probabilities, np.float64))
    counts = _counts(len(folders.classes), verdicts)
    panels = _panels(history, best)
    worst, sheet_of_worst, untold = _mistakes(adapter, folders.classes, verdicts)
    matrix = confusion(f"{int(np.trace(counts)):,} of {len(verdicts):,} pictures right", folders.classes, counts)
    files = {
        "curves.csv": _curves_table(history),
        "curves.png": png(_side_by_side([one.picture for one in panels.values()])),
        "confusion.csv": csv_table(
            ["true \\ said", *folders.classes],
            [[name, *row.tolist()] for name, row in zip(folders.classes, counts, strict=True)],
        ),
        "confusion.png": png(matrix),
        "predictions.csv": _predictions_table(folders.classes, verdicts),
    }
    if sheet_of_worst is not None:
        files["mistakes.png"] = png(sheet_of_worst)
    page = _page(
        run=str(folder),
        headline=headline(folders.classes, int(np.trace(counts)), len(verdicts), best),
        finished=finished,
        film=None if film is None else _jpeg(film),
        at_best=next((one for one in history if one.epoch == best), None),
        even=EVEN_BORDER,
        panels={kind: (_png(one.picture), one.says) for kind, one in panels.items()},
        matrix=_png(matrix),
        counts=counts,
        classes=_per_class(folders.classes, counts),
        commonest=_commonest(folders.classes, counts),
        mistakes=None if sheet_of_worst is None else _jpeg(sheet_of_worst),
        wrong=sum(not one.right for one in verdicts),
        worst=[_said(folders.classes, one) for one in worst],
        untold=untold,
        told=told,
        settings=[(name, _plain(value)) for name, value in settings.items()],
        pictures={"train": len(folders.train), "val": len(folders.val)},
        epochs=len(history),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            place(folder / name, content)
        if "mistakes.png" not in files:
            (folder / "mistakes.png").unlink(missing_ok=True)  # of an earlier epoch
        place(folder / "index.html", page)
    except OSError as error:
        raise OutputError(
            f"{folder} can't be written: {error.strerror or error}. Choose another place with -o"
        ) from error


def headline(classes: Sequence[str], right: int, count: int, epoch: int) -> str:
    """The outcome in one sentence: how many unseen pictures were named rightly, and how sure that number is."""
    names = [unicode_text(_short(name)) for name in classes]
    what = " / ".join(names) if len(names) <= 4 else f"{' / '.join(names[:3])} / ... ({len(names):,} classes)"
    low, high = wilson(right, count)
    return (
        f"{what}: {_share(right, count)} of {count:,} unseen pictures right "
        f"({right:,}; 95 % interval {100 * low:.1f} to {100 * high:.1f}) after epoch {epoch}"
    )


def _share(part: int, count: int) -> str:
    """A share in percent; 100 only where it is all, 0 only where it is none."""
    if part in (0, count):
        return "0 %" if part == 0 else "100 %"
    return f"{min(max(100 * part / count, 0.1), 99.9):.1f} %"


def _short(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[: most - 20]}...{name[-17:]}"


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "none" if value is None else str(value)


# ------------------------------------------------------------------------------------------------------------- verdicts


def _verdicts(folders: Folders, probabilities: Array) -> list[_Verdict]:
    """What the model said of each picture that was left out of the training."""
    wanted = (len(folders.val), len(folders.classes))
    if probabilities.shape != wanted or not folders.val:
        raise OutputError(f"probabilities of shape {probabilities.shape}; expected {wanted}, a row for each picture")
    lost = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(lost):
        raise NonFiniteError(
            f"the model's probabilities are NaN or infinite for {len(lost)} of {wanted[0]} pictures: the training went "
            "astray; lower the learning rate",
            tuple(lost.tolist()),
        )
    return [
        _Verdict(example, said, float(row[said]), float(row[example.label]))
        for example, row, said in zip(folders.val, probabilities, probabilities.argmax(axis=1).tolist(), strict=True)
    ]


def _counts(classes: int, verdicts: Sequence[_Verdict]) -> Counts:
    """(K, K): true classes down, said ones across."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, ([one.example.label for one in verdicts], [one.said for one in verdicts]), 1)
    return counts


def _per_class(classes: Sequence[str], counts: Counts) -> list[dict[str, Any]]:
    """A line for each class that has pictures, the worst first."""
    lines = []
    for index, row in enumerate(counts):
        total, right = int(row.sum()), int(row[index])
        if not total:
            lines.append({"name": _short(classes[index]), "count": 0, "right": 0, "sort": 2.0})
            continue
        others = row.copy()
        others[index] = 0
        taken = int(others.argmax())
        low, high = wilson(right, total)
        lines.append(
            {
                "name": _short(classes[index]),
                "count": total,
                "right": right,
                "share": _share(right, total),
                "interval": f"{100 * low:.1f} to {100 * high:.1f}",
                "taken": f"{_short(classes[taken])} ({others[taken]:,})" if others[taken] else "",
                "sort": right / total,
            }
        )
    return sorted(lines, key=lambda line: line["sort"])


def _commonest(classes: Sequence[str], counts: Counts) -> str:
    """What knowing nothing would reach, which is what an accuracy has to be compared with."""
    sizes = counts.sum(axis=1)
    most = int(sizes.argmax())
    right, total = int(sizes[most]), int(sizes.sum())
    return f"Who always says {_short(classes[most])} is right for {_share(right, total)} of them."


# --------------------------------------------------------------------------------------------------------------- tables


def _curves_table(history: Sequence[Epoch]) -> bytes:
    head = [one.name for one in dataclasses.fields(Epoch)]
    rows = [["" if math.isnan(value) else value for value in dataclasses.astuple(one)] for one in history]
    return csv_table(head, rows)


def _predictions_table(classes: Sequence[str], verdicts: Sequence[_Verdict]) -> bytes:
    head = ["picture", "true", "predicted", "right", "probability of predicted", "probability of true"]
    return csv_table(
        head,
        [
            [
                one.example.name,
                classes[one.example.label],
                classes[one.said],
                "yes" if one.right else "no",
                one.sure,
                one.true,
            ]
            for one in verdicts
        ],
    )


# ------------------------------------------------------------------------------------------------------------- pictures


_CURVES: Mapping[str, Mapping[str, str]] = {
    "loss": {"validation": "val_loss", "training": "train_loss"},
    "accuracy": {"validation": "val_accuracy", "training": "train_accuracy"},
    "heat": {"at the border": "border", "moved": "moved"},
}


def _panels(history: Sequence[Epoch], best: int) -> dict[str, _Panel]:
    """Loss, accuracy, and where the heat lies."""
    ends = [history[0].epoch, history[-1].epoch]
    even = Line(f"even map {_percent(EVEN_BORDER)}", _apart(ends), [EVEN_BORDER] * 2, baseline=True)
    return {
        "loss": _panel(history, best, "loss", "Loss (lower is better)"),
        "accuracy": _panel(history, best, "accuracy", "Accuracy (share of pictures named rightly)"),
        "heat": _panel(history, best, "heat", "Where it looks (share of the maps' heat)", even),
    }


def _panel(history: Sequence[Epoch], best: int, kind: str, title: str, *more: Line) -> _Panel:
    """One plot over the epochs, with the figures of the one that was kept."""
    at = [one.epoch for one in history]
    lines, kept, ends = list(more), [], []
    for name, field in _CURVES[kind].items():
        values = np.array([getattr(one, field) for one in history], np.float64)
        values[~np.isfinite(values)] = np.nan  # a loss may be infinite, which can't be drawn
        known = [_figure(value, kind) for value in values[np.isfinite(values)]]
        lines.append(Line(name, at, values))
        ends.append(f"{name} {known[0]} to {known[-1]}" if known else f"{name} without a value")
        if best in at and np.isfinite(values[at.index(best)]):
            kept.append(f"{name} {_figure(values[at.index(best)], kind)}")
    marked = (float(best), f"epoch {best}, which was kept") if best in at else None
    note = f"Epoch {best}: {', '.join(kept)}" if kept else "no figures of the epoch that was kept"
    picture = curves(title, "epoch", note, lines, width=_PANEL, whole=True, marked=marked)
    return _Panel(picture, f"{title}, epochs {at[0]} to {at[-1]}: {'; '.join(ends)}")


def _apart(ends: Sequence[int]) -> list[float]:
    """The ends of a line that must be seen also over a single epoch."""
    return [ends[0] - 0.5, ends[0] + 0.5] if ends[0] == ends[-1] else [ends[0], ends[-1]]


def _figure(value: float, kind: str) -> str:
    return f"{value:.3g}" if kind == "loss" else _percent(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (sum(one.width for one in pictures), max(one.height for one in pictures)), "white")
    x = 0
    for one in pictures:
        canvas.paste(one, (x, 0))
        x += one.width
    return canvas


def _mistakes(
    adapter: Adapter, classes: Sequence[str], verdicts: Sequence[_Verdict]
) -> tuple[list[_Verdict], Image.Image | None, list[str]]:
    """The mistakes of which the model was surest, drawn; and what could not be drawn, with the reason."""
    wrong = sorted((one for one in verdicts if not one.right), key=lambda one: -one.sure)[:WORST]
    drawn, rows, untold = [], [], []
    for one in wrong:
        try:
            rows.append(_row(adapter, classes, one))
            drawn.append(one)
        except SightlineError as error:
            untold.append(f"{one.example.name} can't be shown: {error}")
    if not rows:
        return [], None, untold
    count = sum(not one.right for one in verdicts)
    picture = sheet(
        rows,
        heading="The worst mistakes" if count > len(rows) else "All mistakes",
        captions=[
            f"{len(rows):,} of {count:,} mistakes; those of which the model was surest come first.",
            "Both maps of a photograph share one scale: a weak one means little evidence for that class. What is hatched the "
            "model never saw.",
        ],
        warnings=[unicode_text(one) for one in untold],
        keys=[],
    )
    return drawn, picture, untold


def _row(adapter: Adapter, classes: Sequence[str], one: _Verdict) -> list[Tile]:
    """The photograph, and the maps of the class that was said and of the true one, from one pass."""
    looked = look(one.example.path, adapter)
    said, true = compare(looked, methods=[None], targets=[one.said, one.example.label])
    tiles = [
        Tile(_small(looked.photo), _said(classes, one), _short(one.example.name)),
        Tile(_small(said.overlay()), f"for {_short(classes[one.said])}", f"{percent(one.sure)}, {said.method}"),
        Tile(
            _small(true.overlay()), f"for {_short(classes[one.example.label])}", f"{percent(one.true)}, {true.method}"
        ),
    ]
    return [tile._replace(title=unicode_text(tile.title), note=unicode_text(tile.note)) for tile in tiles]


def _said(classes: Sequence[str], one: _Verdict) -> str:
    return f"said {_short(classes[one.said])} {percent(one.sure)}, is {_short(classes[one.example.label])}"


def _small(picture: Image.Image) -> Image.Image:
    ratio = _TILE / max(picture.size)
    size = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    return picture.resize(size, Image.Resampling.LANCZOS)


# ----------------------------------------------------------------------------------------------------------------- page


class _Address(NamedTuple):
    """A picture as an address that holds it, with its size in pixels of the page."""

    address: str
    width: int
    height: int


def _png(picture: Image.Image) -> _Address:
    """A drawing, which has twice as many pixels as the page shows."""
    return _Address(_data("png", png(picture)), picture.width // 2, picture.height // 2)


def _jpeg(picture: Image.Image) -> _Address:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return _Address(_data("jpeg", buffer.getvalue()), picture.width, picture.height)


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _page(*, run: str, **parts: Any) -> bytes:
    """The page; every text in it is escaped, whatever the names are."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("summary.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = _percent
    shown = environment.from_string(template).render(
        terminal=f"sightline explain PHOTO --model {shlex.quote(run)}", model=repr(run), **parts
    )
    return unicode_text(shown).encode()
