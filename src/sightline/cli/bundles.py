"""Explains pictures one after the other, writes a bundle for each, and prints what `explain` and `compare` print."""

from __future__ import annotations

import glob
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import typer

from sightline.cli.model import Chosen
from sightline.cli.output import plain, say, tell, waiting
from sightline.errors import ImageError, LayerError, MethodError, MetricError, NonFiniteError, OutputError, TargetError

DEFAULT_FOLDER = Path("sightline-out")
_MANY = 100  # pictures from which on it is said how many


def write_bundles(
    photos: Sequence[str],
    *,
    model: Chosen,
    methods: Sequence[str | None] | None,
    targets: Sequence[str],
    layers: Sequence[str],
    fuse: bool,
    contrast: str | None,
    over: str | None,
    over_options: Sequence[str],
    options: Sequence[str],
    memory_mb: float,
    max_calls: int | None,
    top: int,
    style: str | None,
    colormap: str | None,
    own_scale: bool,
    folder: Path,
    force: bool,
    skip_existing: bool,
    as_json: bool,
    trust: str | None = None,
    random_from: Path | None = None,
    agree: bool = False,
    overlap: float | None = None,
) -> None:
    """The body of `explain` and `compare`, which says how far methods `agree`; with an `overlap` of tiles. A picture that fails is told at the end, and the others go on; exit code 1."""
    from sightline.bundle import check_free

    images = find_images(photos if random_from is None else [_folder(random_from)], folder)
    places = name_folders(images, folder)
    of = len(images)
    if random_from is not None:
        image, place = draw(images, places, force)
        images, places = [image], [place]
    if not any(image.exists() for image in images):
        raise ImageError(f"{plain(images[0])} can't be opened: no such file")
    if skip_existing:
        left = [
            (image, place)
            for image, place in zip(images, places, strict=True)
            if not (place / "manifest.json").exists()
        ]
        if len(left) < len(images):
            tell(f"{len(images) - len(left)} of {len(images)} pictures have their results already and are left out")
        if not left:
            return
        images, places = [image for image, _ in left], [place for _, place in left]
    given = dict(parsed_option(text, "--option") for text in options)
    settings = dict(parsed_option(text, "--combine-option") for text in over_options)
    if settings and over is None:
        raise MethodError("--combine-option belongs to --combine; say what to average over: noise, flips or scales")
    check_style(style, colormap)
    if trust not in (None, "quick", "full"):
        raise MetricError(f"--trust {trust}; expected nothing behind it, quick or full")
    with one_by_one("picture", len(images), folder, ", and --skip-existing goes on from there") as course:
        with waiting(f"loading {model}"):
            from sightline.engine.spoken import parse_target
            from sightline.engine.targets import margin
            from sightline.flow import compare
            from sightline.heatmap import save
            from sightline.methods import list_methods
            from sightline.methods.combine import combine
            from sightline.methods.registry import check_options, default, find, one_pass, possible

            names = list(list_methods()) if list(methods or ()) == ["all"] else methods
            named = [find(name) for name in names or () if name is not None]
            if named:  # else said once it is known what the model can be asked
                check_options(named, given)
            asked: list[Any] = [parse_target(one) for one in targets] or [None]
            plain_targets: list[str | None] = [*targets] or [None]
            if contrast is not None:
                asked = [margin(one, contrast) for one in plain_targets]
            adapter = model.load(for_layer=layers)
            chosen = None if names is None else [find(name or default(adapter)) for name in names]
            everything = [find(name) for name in (possible(adapter) if adapter.black_box else one_pass())]
            check_options(chosen or everything, given)
            if over is not None:
                chosen = [combine(one, over, **settings) for one in chosen or everything]
        for place in places:  # before the first picture, but after what was asked for is known to make sense
            check_free(place, force)
        if random_from is not None:
            chosen_one = f"one of {of:,} pictures in {plain(random_from)}, at random: {plain(images[0])}"
            (tell if as_json else say)(f"{chosen_one}{_folder_says(images[0], adapter.labels or ())}")
        if style == "superpixels":
            _check_superpixels(chosen or everything)
        with bars(len(images)) as (step, within, asking):
            for image, place in zip(images, places, strict=True):
                shown = Shown(asking)
                try:
                    found = (compare if overlap is None else partial(_tiled, overlap))(
                        image,
                        adapter,
                        methods=chosen,
                        targets=asked,
                        layer="all" if list(layers) == ["all"] else list(layers) or None,
                        options=given,
                        same_scale=not own_scale,
                        fuse=fuse,
                        memory_mb=memory_mb,
                        progress=within,
                        max_calls=max_calls,
                        told=shown.tell,
                    )
                    cards = []
                    if trust:
                        rest = None if max_calls is None else max_calls - shown.pictures
                        asking("trust")
                        cards = _cards(found, trust, within, rest)
                    agreements = _agreements(found) if agree else []
                    save(
                        found,
                        place,
                        style=style,
                        colormap=colormap,
                        force=force,
                        same_scale=not own_scale,
                        cards=cards,
                        agreements=agreements,
                    )
                except FAILURES as error:
                    course.fail(image, error, as_json)
                else:
                    (_say_json if as_json else _say)(image, place, found, top, cards, agreements)
                course.done += 1
                step()


# What one picture may fail with while the others go on.
FAILURES = (ImageError, NonFiniteError, MemoryError, TargetError, LayerError, MethodError)


@dataclass
class Course:
    """How far a command has come with many pictures or films: how many are behind it, and which failed, with the reason."""

    done: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)

    def fail(self, path: Path, error: Exception, as_json: bool) -> None:
        """Notes a picture that failed; raises the error where what was asked for is wrong, and not this picture."""
        if self.done == len(self.failed) and isinstance(error, TargetError | LayerError | MethodError):
            raise error
        self.failed.append((path, str(error) or "not enough memory"))
        if as_json:
            say(json.dumps({"image": str(path), "size": None, "error": str(error)}))


@contextmanager
def one_by_one(what: str, of: int, folder: Path, more: str = "") -> Iterator[Course]:
    """Tells at the end which failed (exit code 1), and at Ctrl-C what is kept (130) and `more` of how to go on."""
    course = Course()
    try:
        yield course
    except KeyboardInterrupt:
        tell(
            f"stopped after {course.done} of {of} {what}s; what is in {folder} is complete{more}"
            if course.done
            else f"stopped before the first {what} was done; nothing was written"
        )
        raise typer.Exit(130) from None
    finally:
        for path, reason in course.failed:
            about = "" if reason.startswith(str(path)) else f"{plain(path)}: "
            tell(f"failed: {about}{plain(reason, 1000)}")
    if course.failed:
        others = "" if len(course.failed) == of else "; the others are done"
        tell(f"{len(course.failed)} of {of} {what}s failed{others}")
        raise typer.Exit(1)


def find_images(photos: Sequence[str], folder: Path) -> list[Path]:
    """The files that files, folders (with all below them) and globs stand for, each once, folders in order of names."""
    from sightline.data.images import SUFFIXES

    found: dict[Path, None] = {}
    for photo in photos:
        path = Path(photo)
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
            pictures = [one for one in inside if one.suffix.lower() in SUFFIXES]
            if folder.resolve().is_relative_to(path.resolve()):
                raise OutputError(
                    f"{folder} lies inside the folder of pictures {path}, into which nothing is written; choose another place with -o"
                )
            if not pictures:
                raise ImageError(
                    f"there is no picture in {path}; expected files that end in {', '.join(sorted(SUFFIXES))}"
                )
            if len(pictures) < len(inside):
                tell(f"{plain(path)}: left out as no pictures by their names: {len(inside) - len(pictures)}")
        elif not path.exists() and glob.has_magic(photo):
            pictures = [Path(one) for one in sorted(glob.glob(photo, recursive=True)) if not Path(one).is_dir()]
            if not pictures:
                raise ImageError(f"no file fits {photo!r}")
        else:
            pictures = [path]
        found.update(dict.fromkeys(pictures))
    return list(found)


def draw(images: Sequence[Path], places: Sequence[Path], force: bool) -> tuple[Path, Path]:
    """A picture that can be read, at random, and its place: with `force` any, else one that has no result yet.

    Raises:
        ImageError: none can be read.
        OutputError: all have their results.
    """
    from sightline.data.images import read_image

    left = [pair for pair in zip(images, places, strict=True) if force or not os.path.lexists(pair[1])]
    if not left:
        raise OutputError(
            f"all {len(images):,} pictures have their results in {places[0].parent} already; "
            "--force replaces one at random, -o chooses another place"
        )
    chance = random.Random()  # its own: whoever has seeded Python's gets another picture too
    for image, place in chance.sample(left, len(left)):
        try:
            read_image(image)
        except ImageError as error:
            tell(f"passed over: {plain(error, 1000)}")
        else:
            return image, place
    raise ImageError(
        f"none of {len(left):,} pictures can be read; expected a folder with one that opens in other programs"
    )


def _folder(path: Path) -> str:
    if not path.is_dir():
        raise ImageError(
            f"--random-from {path} is no folder; give a folder of pictures, or name the picture itself as PHOTO"
        )
    return str(path)


def _folder_says(image: Path, labels: Sequence[str]) -> str:
    """The class that a picture's folder is named after, where the model has it."""
    name = image.absolute().parent.name
    near = [label for label in labels if label.casefold() == name.casefold()]
    return f" (folder says: {plain(name if name in near else near[0])})" if near else ""


def name_folders(images: Sequence[Path], folder: Path) -> list[Path]:
    """One folder an image below `folder`: its name without ending, with it where two would clash, else numbered."""
    stems = Counter(image.stem for image in images)
    taken: set[str] = set()
    places = []
    for image in images:
        # A name of dots only would lead out of the folder.
        name = (image.stem if stems[image.stem] == 1 else image.name).strip(". ") or "image"
        unique, number = name, 1
        while unique.lower() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.lower())
        places.append(folder / unique)
    return places


def _tiled(
    overlap: float,
    image: Path,
    adapter: Any,
    *,
    methods: Sequence[Any] | None,
    targets: Sequence[Any],
    layer: Any,
    same_scale: bool,
    fuse: bool,
    max_calls: int | None,
    **terms: Any,
) -> list[Any]:
    """What `compare` gives, of joined tiles: the one method of `explain`, for each target; they share what may be asked."""
    from sightline.heatmap import share_scale
    from sightline.tiles import explain_tiles

    one = layer[0] if isinstance(layer, list) and len(layer) == 1 else layer
    most = None if max_calls is None else max(1, max_calls // len(targets))
    found = [
        explain_tiles(image, adapter, overlap=overlap, method=method, target=target, layer=one, max_calls=most, **terms)
        for method in methods or [None]
        for target in targets
    ]
    return share_scale(found) if same_scale else found


class Shown:
    """Says once a method and photograph how many pictures the model is about to be shown, and counts them."""

    def __init__(self, asking: Callable[[str], None]) -> None:
        self.pictures = 1  # the photograph itself
        self._asking, self._said = asking, set[str]()

    def tell(self, method: str, pictures: int) -> None:
        self.pictures += pictures
        self._asking(method)
        if pictures >= _MANY and method not in self._said:
            self._said.add(method)
            tell(f"{plain(method)}: the model is shown {pictures:,} pictures")


def _agreements(found: Sequence[Any]) -> list[Any]:
    """How far the methods agree about each target that three or more of them were asked for."""
    from sightline.agreements import agreement

    targets: dict[tuple[str, int | None], list[Any]] = {}
    for one in found:
        targets.setdefault((one.label, one.index), []).append(one)
    return [agreement(maps) for maps in targets.values() if len({one.method for one in maps}) >= 3]


def _check_superpixels(chosen: Sequence[Any]) -> None:
    """Told before the first picture, not after the last question."""
    from sightline.heatmap import OF_SUPERPIXELS

    without = [one.name for one in chosen if one.name not in OF_SUPERPIXELS]
    if without:
        raise MethodError(
            f"--style superpixels: {without[0]} has no superpixels to draw; {' and '.join(OF_SUPERPIXELS)} have. "
            "Leave --style out, and each map has its own"
        )


def _cards(found: Sequence[Any], trust: str, within: Callable[[int, int], None], left: int | None) -> list[Any]:
    """A trust card for each map; how much it asks is said beforehand, and refused where fewer pictures are left."""
    from sightline.trust import planned_for

    full = trust == "full"
    count = sum(planned_for(one.origin, full) for one in found)
    if left is not None and count > left:
        raise MetricError(
            f"--trust shows the model about {count:,} pictures, and --max-calls leaves {max(0, left):,}; allow more, or leave --trust out"
        )
    tell(
        f"checking {'everything' if full else 'how far to believe it'}: about {count:,} pictures are shown to the model"
    )
    return [one.trust(full=full, progress=within) for one in found]


def _say(
    image: Path,
    place: Path,
    found: Sequence[Any],
    top: int,
    cards: Sequence[Any] = (),
    agreements: Sequence[Any] = (),
) -> None:
    from sightline.heatmap import agreement_names, cautions

    first = found[0]
    says = ", ".join(one.said() for one in first.predictions[:top]) or "no classes"
    if not first.predictions and first.score is not None:
        says = first.title()
    if first.mark is not None and first.mark.text:
        says = f'"{first.mark.text}"'
    say(f"{plain(image)} ({first.photo.width} x {first.photo.height})")
    say(f"  says: {plain(says, 1000)}")
    for one in found:
        at = f"strongest at x {one.peak[0]}, y {one.peak[1]}" if one.evidence > 0 else "nowhere above 0"
        grid = one.grid() if one.style == "superpixels" else f"{one.raw.shape[0]}x{one.raw.shape[1]}"
        say(f"  {one.method} for {plain(one.label)}: {at} ({one.where()}, {grid})")
    for warning in cautions(found):
        say(f"  note: {plain(warning, 600)}")
    for one, card in zip(found, cards, strict=False):
        say(f"  trust: the map for {plain(one.label)} is {card.verdict_in_words()}")
        for check in card.checks:
            say(f"    {check.name}: {check.outcome}; {plain(check.says, 600)}")
    for one in agreements:
        about = f" about {plain(one.target)}" if len(agreements) > 1 else ""
        say(f"  agreement{about}: {'RED FLAG, ' if one.disagree else ''}{one.says}")
    names = ["panel.png", *(["trust.png"] if cards else []), *agreement_names(agreements)]
    say(f"  picture: {plain(place / names[0])}{''.join(f' and {name}' for name in names[1:])}")


def _say_json(
    image: Path,
    place: Path,
    found: Sequence[Any],
    top: int,
    cards: Sequence[Any] = (),
    agreements: Sequence[Any] = (),
) -> None:
    from sightline.heatmap import agreement_records, file_names

    first = found[0]
    maps = []
    for number, (one, names) in enumerate(zip(found, file_names(found, bool(cards)), strict=True), 1):
        files = {kind: str(place / name) for kind, name in names.items()}
        maps.append(one.record(files) | ({"trust": cards[number - 1].record()} if cards else {}))
    line: dict[str, Any] = {
        "image": str(image),
        "size": {"width": first.photo.width, "height": first.photo.height},
        "predictions": [one.record() for one in first.predictions[:top]],
        "maps": maps,
    }
    if agreements:
        line["agreement"] = [
            {**one, "files": {kind: str(place / name) for kind, name in one["files"].items()}}
            for one in agreement_records(agreements)
        ]
    say(json.dumps(line))


def parsed_option(text: str, flag: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is some."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise MethodError(f"{flag} {text!r}; expected NAME=VALUE, such as samples=10")
    if name == "against":  # a class, also where its name is a number
        return name, value
    try:
        return name.replace("-", "_"), json.loads(value.lower() if value.lower() in ("true", "false") else value)
    except ValueError:
        return name.replace("-", "_"), value


def check_style(style: str | None, colormap: str | None) -> None:
    """Told before the model is loaded, not after."""
    from sightline.render.colormap import palette
    from sightline.render.overlay import check_style

    if style is not None:
        check_style(style)
    if colormap is not None:
        palette(colormap)


@contextmanager
def bars(
    total: int,
) -> Iterator[tuple[Callable[[], None], Callable[[int, int], None], Callable[[str], None]]]:
    """Bars on stderr with the time left: over the pictures, and within one, with a name; nothing where no terminal is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield (lambda: None), (lambda done, of: None), (lambda name: None)
        return
    columns = (SpinnerColumn(), *Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        pictures = progress.add_task("explaining", total=total)
        questions = progress.add_task("asking the model again", visible=False)

        def within(done: int, of: int) -> None:
            if done == 0:
                progress.reset(questions)
            progress.update(questions, completed=done, total=of, visible=done < of)

        def asking(name: str) -> None:
            progress.update(questions, description=escape(f"{plain(name, 40)}: asking the model again"))

        yield (lambda: progress.advance(pictures)), within, asking


def names(given: Sequence[str] | None) -> list[str] | None:
    """Names given again and again, or with commas between."""
    names = [name.strip() for text in given or [] for name in text.split(",") if name.strip()]
    return list(dict.fromkeys(names)) or None


def metric_settings(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options of metrics, METRIC.NAME=VALUE each."""
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        metric, dot, rest = text.partition(".")
        if not dot or "=" not in rest:
            raise MetricError(f"--setting {text!r}; expected METRIC.NAME=VALUE, such as deletion.step=224")
        name, value = parsed_option(rest, "--setting")
        found.setdefault(metric, {})[name] = value
    return found
