"""`read_folders`: folders of pictures become what is trained on and what is checked on, or are refused by name."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sightline.data.images import SUFFIXES, read_image
from sightline.errors import ImageError, TrainingError, did_you_mean
from sightline.models.made import few
from sightline.render.panel import percent

TRAIN, VAL = "train", "val"
LONGEST_NAME = 200  # as much of a class name as a model file keeps
UNBALANCED = 1.5
# Folders of these names that hold nothing but folders are parts of a data set, not classes.
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
_THREADS = 4  # each may hold a picture of 100 megapixels
_AHEAD = 16

# Told (done, of).
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Example:
    """One picture.

    Attributes:
        name: its path below the data, with / between; what is no UTF-8 in it is written as \\\\x or \\\\u.
        path: where it is.
        label: the place of its class in `Folders.classes`.
        sha256: of the file's bytes.
    """

    name: str
    path: Path
    label: int
    sha256: str


@dataclass(frozen=True)
class Folders:
    """What is trained on and what is checked on.

    Attributes:
        root: the folder of the data.
        classes: the names of the folders, sorted.
        train: in the order of their names.
        val: in the order of their names.
        broken: (name, why) of what is skipped.
        shared: (name in val, name of the same content in train), left out of val.
        contradicting: (name, other name) of the same content in two classes on the same side; both are kept.
        val_share: the share that was split off; None where a folder says what is checked on.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    broken: tuple[tuple[str, str], ...]
    shared: tuple[tuple[str, str], ...]
    contradicting: tuple[tuple[str, str], ...]
    val_share: float | None


def read_folders(
    root: str | os.PathLike[str], *, val_share: float = 0.2, seed: int = 0, watch: Watch | None = None
) -> Folders:
    """Reads every picture once, so that nothing broken is met in the middle of a training.

    Args:
        root: with train/CLASS and val/CLASS, or with CLASS alone, of which a share of each is split off. Pictures in
            folders below a class count, hidden files don't; links are followed.
        val_share: how much of each class to check on, where there is no folder val; at least one picture on each side.
        seed: of the split. Pictures of the same content come to the same side, whatever they are called.
        watch: told (done, of) as pictures are read.

    Raises:
        TrainingError: the data can't be trained on; the message says what to change.
    """
    root = Path(root)
    if not 0 < val_share < 1:
        raise TrainingError(
            f"a share of {val_share} can't be split off; expected more than 0 and less than 1, such as 0.2"
        )
    sides = _sides(root)
    classes = _classes(root, sides)
    loose, files = _files(root, sides, classes)
    good, broken = _read(root, files, watch)
    if not good:
        raise TrainingError(
            f"none of the {len(broken):,} pictures in {root} can be read; the first: {' '.join(broken[0])}. "
            "Replace them by pictures that open in other programs"
        )
    skipped = tuple(sorted([*loose, *broken]))
    shared: list[tuple[str, str]] = []
    if VAL in sides:
        train, val = ([one for one in good if one.name.startswith(f"{side}/")] for side in (TRAIN, VAL))
        _check_each_class(classes, train, TRAIN, broken)
        _check_each_class(classes, val, VAL, broken)
        val, shared = _apart(root, classes, train, val)
    else:
        _check_each_class(classes, good, "", broken)
        train, val = split(good, classes, val_share, seed)
    return Folders(
        root=root,
        classes=classes,
        train=tuple(train),
        val=tuple(val),
        broken=skipped,
        shared=tuple(shared),
        contradicting=tuple(_contradicting(train) + _contradicting(val)),
        val_share=None if VAL in sides else val_share,
    )


def split(
    examples: Sequence[Example], classes: Sequence[str], val_share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """What is trained on and what is checked on: of each class the same share, the same content on one side only.

    It depends on the seed and the contents alone. What lies in two classes is trained on, because no answer to it is right.

    Raises:
        TrainingError: a class has too few different pictures for two sides.
    """
    labels = defaultdict(set)
    contents: dict[int, Counter[str]] = defaultdict(Counter)
    for one in examples:
        labels[one.sha256].add(one.label)
        contents[one.label][one.sha256] += 1
    val = set()
    for label, name in enumerate(classes):
        counts = contents[label]
        own = [one for one in counts if len(labels[one]) == 1]
        own.sort(key=lambda content: hashlib.sha256(f"{seed} {content}".encode()).digest())
        if not own or len(counts) < 2:
            raise TrainingError(
                f"class {name!r} has {len(own):,} different pictures that lie in no other class; expected 2 at least, "
                "one to train on and one to check on. Add pictures, or leave the class out"
            )
        wanted, taken = min(max(1, round(val_share * counts.total())), counts.total() - 1), 0
        for content in own:
            if taken + counts[content] <= wanted:
                val.add(content)
                taken += counts[content]
        if not taken:
            val.add(min(own, key=counts.__getitem__))
    return [one for one in examples if one.sha256 not in val], [one for one in examples if one.sha256 in val]


def class_weights(folders: Folders) -> list[float]:
    """How much each class weighs in the loss, so that all count the same: N / (K n_k) over what is trained on."""
    counts = Counter(one.label for one in folders.train)
    return [len(folders.train) / (len(folders.classes) * counts[label]) for label in range(len(folders.classes))]


def said(folders: Folders) -> list[str]:
    """What a person should know of the data before it is trained on, a sentence each."""
    counts = Counter(one.label for one in folders.train)
    each = [f"{name} ({counts[label]:,})" for label, name in enumerate(folders.classes)]
    sentences = [
        f"{_pictures(len(folders.train))} for training, {len(folders.val):,} for validation, "
        f"{len(folders.classes):,} classes: {few(each)}"
    ]
    if folders.val_share is not None:
        sentences.append(
            f"about {percent(folders.val_share)} of each class, at least one picture, is split off for validation"
        )
    if folders.broken:
        sentences.append(
            f"{len(folders.broken):,} file{'' if len(folders.broken) == 1 else 's'} skipped: {few([f'{name} {why}' for name, why in folders.broken])}"
        )
    if folders.shared:
        pairs = [f"{name} is {other}" for name, other in folders.shared]
        sentences.append(
            f"{_pictures(len(pairs))} of val left out of val, because training sees the same: {few(pairs)}"
        )
    if folders.contradicting:
        pairs = [f"{name} is {other}" for name, other in folders.contradicting]
        sentences.append(
            f"{_pictures(len(pairs))} kept although also in another class, so that no answer is right: {few(pairs)}"
        )
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] >= UNBALANCED * counts[least]:
        times = counts[most] / counts[least]
        weights = [f"{name} {weight:.3g}" for name, weight in zip(folders.classes, class_weights(folders), strict=True)]
        shown = f"{times:,.0f}" if times >= 10 else f"{times:.2g}"
        sentences.append(
            f"{folders.classes[most]} has {shown} times as many pictures as {folders.classes[least]}; "
            f"the loss weighs classes by {few(weights)}"
        )
    return sentences


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"


# ---------------------------------------------------------------------------------------------------- what is on the disk


def _inside(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The folders in a folder, its pictures and other files, by their names and in their order; what is hidden is none of them."""
    try:
        with os.scandir(folder) as listed:
            entries = sorted((one for one in listed if not one.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        raise TrainingError(
            f"{folder} can't be looked into: {error.strerror or error}. Make it readable, or take it out of the data"
        ) from error
    # A link that leads nowhere may have been a folder; it is told as broken rather than not at all.
    folders: list[Path] = []
    pictures: list[Path] = []
    others: list[Path] = []
    for one in entries:
        linked = one.is_symlink()
        if os.path.isdir(one) if linked else one.is_dir():
            folders.append(Path(one))
        elif Path(one).suffix.lower() in SUFFIXES or (linked and not os.path.exists(one)):
            pictures.append(Path(one))
        else:
            others.append(Path(one))
    return folders, pictures, others


def _below(folder: Path, above: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The pictures and other files in a folder and all below it. A folder counts once, so that a link in a circle ends."""
    seen = {os.path.realpath(one) for one in above}
    waiting = [folder]
    pictures: list[Path] = []
    others: list[Path] = []
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real not in seen:
            seen.add(real)
            folders, files, rest = _inside(here)
            pictures += files
            others += rest
            waiting += reversed(folders)
    return pictures, others


def _sides(root: Path) -> dict[str, Path]:
    """train and val; or, under an empty name, the folder that holds the classes."""
    if not root.is_dir():
        what = "is a file, not a folder; unpack it first if it is an archive" if root.exists() else "does not exist"
        raise TrainingError(f"the folder of pictures {root} {what}. {_expected(root)}")
    folders, _, _ = _inside(root)
    names = [one.name for one in folders]
    if TRAIN in names and VAL in names:
        return {side: root / side for side in (TRAIN, VAL)}
    parts = [one.name for one in folders if one.name.lower() in _PARTS and _holds_only_folders(one)]
    if not parts:
        return {"": root}
    missing = VAL if TRAIN in names else TRAIN
    near = did_you_mean(missing, [one for one in names if one not in (TRAIN, VAL)])
    rename = f"{near} Rename it to {missing}." if near else ""
    alone = f" To have a share of {TRAIN} split off instead, give {root / TRAIN}." if missing == VAL else ""
    raise TrainingError(f"{root} has {few(parts)}, but no folder {missing}.{rename}{alone} {_expected(root)}")


def _holds_only_folders(folder: Path) -> bool:
    folders, pictures, _ = _inside(folder)
    return bool(folders) and not pictures


def _expected(root: Path) -> str:
    return f"Expected {root / 'train' / 'CLASS'} and {root / 'val' / 'CLASS'}, or {root / 'CLASS'}, with pictures in each CLASS"


def _classes(root: Path, sides: dict[str, Path]) -> tuple[str, ...]:
    """The names of the folders, which must be the same on both sides."""
    named: dict[str, list[str]] = {}
    for side, folder in sides.items():
        folders, pictures, _ = _inside(folder)
        for one in folders:
            _check_name(one)
        if not folders:
            holds = f"{_pictures(len(pictures))} and no folders of classes" if pictures else "no folders of classes"
            raise TrainingError(
                f"{folder} holds {holds}; put the pictures of each class into a folder. {_expected(root)}"
            )
        named[side] = [one.name for one in folders]
    first, last = (set(named[side]) for side in (min(named), max(named)))
    if first != last:
        only = [
            f"only in {side}: {few([repr(name) for name in sorted(names)])}"
            for side, names in ((TRAIN, first - last), (VAL, last - first))
            if names
        ]
        raise TrainingError(f"train and val in {root} have different classes ({'; '.join(only)}); make them the same")
    if len(first) == 1:
        (name,) = first
        inner = sides[min(sides)] / name
        deeper = f", or give {inner} if the classes are in there" if _holds_only_folders(inner) else ""
        raise TrainingError(
            f"{root} has one class, {name!r}; expected two at least. Add a folder for each other class{deeper}"
        )
    return tuple(sorted(first))


def _check_name(folder: Path) -> None:
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(f"the class folder {folder.name!r} has a name that is no UTF-8; rename it") from error
    if len(folder.name) > LONGEST_NAME:
        raise TrainingError(
            f"the class folder {folder.name[:40]!r}... has a name of {len(folder.name)} characters; rename it to {LONGEST_NAME} at most"
        )


def _files(
    root: Path, sides: dict[str, Path], classes: Sequence[str]
) -> tuple[list[tuple[str, str]], list[tuple[Path, int]]]:
    """What lies in no class, with why it is skipped; and every picture with the place of its class."""
    loose, files = [], []
    for folder in sides.values():
        loose += [(_name(root, one), _why_loose(one)) for one in _inside(folder)[1]]
        for label, name in enumerate(classes):
            pictures, others = _below(folder / name, above=(root, folder))
            loose += [
                (_name(root, one), f"has the ending {one.suffix[:20]!r}, which is no picture's here") for one in others
            ]
            if not pictures:
                raise TrainingError(
                    f"class {name!r} has no picture in {folder}; expected files that end in {', '.join(sorted(SUFFIXES))}. "
                    "Add some, or take the folder out of the data"
                )
            files += [(one, label) for one in pictures]
    return loose, files


def _why_loose(path: Path) -> str:
    return "lies in no folder of a class" if os.path.exists(path) else "is a link that leads nowhere"


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


# ------------------------------------------------------------------------------------------------------------ what is in it


def _read(
    root: Path, files: Sequence[tuple[Path, int]], watch: Watch | None
) -> tuple[list[Example], list[tuple[str, str]]]:
    """The good ones in the order of their names, and (name, why) of the broken ones."""
    good, broken = [], []
    coming = iter(files)
    ahead: deque[Future[Example | tuple[str, str]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for done in range(1, len(files) + 1):
                for path, label in islice(coming, _AHEAD - len(ahead)):
                    ahead.append(pool.submit(_example, root, path, label))
                found = ahead.popleft().result()
                if isinstance(found, Example):
                    good.append(found)
                else:
                    broken.append(found)
                if watch is not None:
                    watch(done, len(files))
        except BaseException:  # such as Ctrl-C: what has not begun is not begun
            pool.shutdown(cancel_futures=True)
            raise
    return sorted(good, key=lambda one: one.name), broken


def _example(root: Path, path: Path, label: int) -> Example | tuple[str, str]:
    name = _name(root, path)
    try:
        read_image(path)
        with open(path, "rb") as file:
            return Example(name, path, label, hashlib.file_digest(file, "sha256").hexdigest())
    except ImageError as error:
        return name, str(error).removeprefix(str(path)).strip()
    except OSError as error:
        return name, f"can't be read: {error.strerror or error}"


def _check_each_class(
    classes: Sequence[str], examples: Sequence[Example], side: str, broken: Sequence[tuple[str, str]]
) -> None:
    there = {one.label for one in examples}
    for label, name in enumerate(classes):
        if label not in there:
            folder = f"{side}/{name}" if side else name
            why = [" ".join(one) for one in broken if one[0].startswith(f"{folder}/")]
            raise TrainingError(
                f"class {name!r} has no picture that can be read in {folder}: {few(why)}. "
                "Replace them by pictures that open in other programs, or take the class out of the data"
            )


def _apart(
    root: Path, classes: Sequence[str], train: Sequence[Example], val: Sequence[Example]
) -> tuple[list[Example], list[tuple[str, str]]]:
    """Those of val that training never sees, and those that it does see with their name in train."""
    names: dict[str, str] = {}
    for one in train:
        names.setdefault(one.sha256, one.name)
    apart = [one for one in val if one.sha256 not in names]
    lost = sorted({one.label for one in val} - {one.label for one in apart})
    if lost:
        whole = "" if apart else ", in every class"
        raise TrainingError(
            f"all pictures of {few([repr(classes[label]) for label in lost])} in {root / VAL} are also in {root / TRAIN}{whole}, "
            f"so that nothing honest can be said of them. Take them out of {TRAIN}, or give {root / TRAIN} alone to have a share split off"
        )
    return apart, [(one.name, names[one.sha256]) for one in val if one.sha256 in names]


def _contradicting(examples: Iterable[Example]) -> list[tuple[str, str]]:
    first: dict[str, Example] = {}
    pairs = []
    for one in examples:
        other = first.setdefault(one.sha256, one)
        if other.label != one.label:
            pairs.append((one.name, other.name))
    return pairs
