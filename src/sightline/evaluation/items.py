"""Which pictures are evaluated, with the class that each is asked for and the mask of its object, where there is one."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sightline.data.images import SUFFIXES, read_mask
from sightline.errors import ImageError, MetricError
from sightline.metrics.localisation import Mask

PREDICTIONS, FOLDERS, NO_LABEL = "predictions", "folders", ""
T = TypeVar("T")
Box = tuple[float, float, float, float]
_MOST_LINES = 1_000_000


@dataclass(frozen=True)
class Item:
    """One picture to evaluate.

    Attributes:
        name: its path below the folder, which is its name in every table.
        path: where it is.
        label: the class it is asked for, as its folder or the table of labels says; None for the model's prediction.
        mask: the file with its object.
        boxes: (left, top, right, bottom) of its objects, in pixels of the upright picture.
    """

    name: str
    path: Path
    label: str | None = None
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()


def find_items(
    folder: Path, *, labels: str = PREDICTIONS, masks: Path | None = None, boxes: Path | None = None, limit: int = 0
) -> list[Item]:
    """The pictures of a folder and all below it, in the order of their names.

    Args:
        folder: with JPEG, PNG, WebP, BMP, GIF or TIFF files.
        labels: "predictions" (what the model says), "folders" (each picture's folder is named after its class), or a CSV file
            with the columns image and label.
        masks: a folder with a picture of the same name (any ending) for each, above 0 where the object is.
        boxes: a CSV file with the columns image, left, top, right, bottom, in pixels; several rows for several objects.
        limit: only so many, spread evenly over the folder; 0 for all.

    Raises:
        ImageError: no folder, or no picture in it.
        MetricError: a table that can't be read, or has other columns.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} is no folder of pictures")
    found = sorted(
        one
        for one in folder.rglob("*")
        if one.suffix.lower() in SUFFIXES and not one.is_dir() and not one.name.startswith(".")
    )
    if masks is not None:
        found = [one for one in found if not one.resolve().is_relative_to(masks.resolve())]
    if not found:
        raise ImageError(f"there is no picture in {folder}; expected files that end in {', '.join(sorted(SUFFIXES))}")
    if limit and limit < len(found):
        found = [found[round(at)] for at in np.linspace(0, len(found) - 1, limit)]
    if masks is not None and boxes is not None:
        raise MetricError("masks and boxes exclude each other; give the ones that you believe more")
    named = {} if labels in (PREDICTIONS, FOLDERS) else _labels(Path(labels))
    objects = {} if boxes is None else boxes_in(boxes)
    outlines = {} if masks is None else masks_in(masks)
    items = []
    for path in found:
        name = path.relative_to(folder).as_posix()
        # A picture that a table of labels leaves out has none; it is not asked for what the model happens to say.
        label = path.parent.name if labels == FOLDERS else of_picture(named, name) or (NO_LABEL if named else None)
        items.append(
            Item(
                name,
                path,
                label,
                of_picture(outlines, str(Path(name).with_suffix(""))),
                of_picture(objects, name) or (),
            )
        )
    if labels == FOLDERS and any(one.path.parent == folder for one in items):
        loose = next(one.name for one in items if one.path.parent == folder)
        raise MetricError(
            f"{loose} lies in no folder that could name its class; put it into one, or give labels as a CSV file"
        )
    _check_used(folder, found, "labels", named)
    _check_used(folder, found, "boxes", objects)
    _check_used(folder, [one.with_suffix("") for one in found], "masks", outlines)
    return items


def _check_used(folder: Path, pictures: Sequence[Path], what: str, known: Mapping[str, object]) -> None:
    """Refuses a table that speaks of other pictures."""
    if known and not any(of_picture(known, one.relative_to(folder).as_posix()) for one in pictures):
        raise MetricError(f"none of the {what} belongs to a picture in {folder}; the first is of {next(iter(known))!r}")
    names = Counter(one.name for one in pictures)
    for key in known:
        if "/" not in key and names[key] > 1 and (folder / key) not in pictures:
            raise MetricError(
                f"{what} for {key!r} fit {names[key]} pictures; give its path below {folder}, such as a/{key}"
            )


def of_picture(table: Mapping[str, T], name: str) -> T | None:
    """By the whole path below the folder, or by the file's name alone."""
    return table.get(name, table.get(Path(name).name))


def _rows(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if file.exists() and not file.is_file():
        raise MetricError(f"{file} is no file; expected a CSV file with {','.join(columns)} in its first line")
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            missing = [one for one in columns if one not in (reader.fieldnames or ())]
            if missing:
                raise MetricError(
                    f"{file} has no column {' and '.join(missing)}; expected a CSV file with {','.join(columns)} in its first line"
                )
            rows = []
            for row in reader:
                rows.append(row)
                if len(rows) > _MOST_LINES:
                    raise MetricError(f"{file} has more than {_MOST_LINES:,} lines")
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MetricError(f"{file} can't be read as a CSV file: {getattr(error, 'strerror', None) or error}") from error


def _labels(file: Path) -> dict[str, str]:
    return {row["image"]: row["label"] for row in _rows(file, ("image", "label")) if row["label"]}


def boxes_in(file: Path) -> dict[str, tuple[Box, ...]]:
    """The boxes of every picture in a CSV file with the columns image, left, top, right, bottom."""
    found: dict[str, list[Box]] = defaultdict(list)
    for line, row in enumerate(_rows(file, ("image", "left", "top", "right", "bottom")), 2):
        try:
            left, top, right, bottom = (float(row[one]) for one in ("left", "top", "right", "bottom"))
        except (TypeError, ValueError) as error:
            raise MetricError(f"line {line} of {file}: a box is four numbers, not {list(row.values())}") from error
        if not (0 <= left < right < 1e6 and 0 <= top < bottom < 1e6):
            raise MetricError(
                f"line {line} of {file}: left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g} is no box"
            )
        found[row["image"]].append((left, top, right, bottom))
    return {name: tuple(each) for name, each in found.items()}


def masks_in(folder: Path) -> dict[str, Path]:
    """The masks in a folder, by their path below it without its ending."""
    if not folder.is_dir():
        raise MetricError(f"{folder} is no folder of masks")
    files = sorted(one for one in folder.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
    return {one.relative_to(folder).with_suffix("").as_posix(): one for one in files}


def mask_of(item: Item, size: tuple[int, int]) -> Mask | None:
    """The mask (H, W) of a picture's object; None where none was given for it.

    Args:
        item: the picture.
        size: its (width, height), upright.

    Raises:
        MetricError: the mask is of another size, or a box lies outside.
    """
    if item.mask is not None:
        drawn = read_mask(item.mask)
        if drawn.shape != size[::-1]:
            raise MetricError(
                f"the mask is {drawn.shape[1]} x {drawn.shape[0]} and the picture {size[0]} x {size[1]}; make the mask as large as the picture"
            )
        return drawn
    if not item.boxes:
        return None
    mask = np.zeros((size[1], size[0]), bool)
    for left, top, right, bottom in item.boxes:
        if right > size[0] + 1 or bottom > size[1] + 1:
            raise MetricError(
                f"a box ends at {right:g}, {bottom:g}, outside of the picture's {size[0]} x {size[1]} pixels"
            )
        mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    return mask
