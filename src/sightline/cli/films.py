"""Explains films one after the other, writes a folder for each, and prints what `explain --film` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.cli.bundles import FAILURES, Shown, bars, check_style, name_folders, one_by_one, parsed_option
from sightline.cli.model import Chosen
from sightline.cli.output import plain, say, waiting
from sightline.errors import MethodError


def write_films(
    films: Sequence[str],
    *,
    model: Chosen,
    method: str | None,
    targets: Sequence[str],
    layers: Sequence[str],
    options: Sequence[str],
    memory_mb: float,
    max_calls: int | None,
    top: int,
    style: str | None,
    colormap: str | None,
    folder: Path,
    force: bool,
    as_json: bool,
) -> None:
    """The body of `explain --film`: files and folders of frames. A film that fails is told at the end; exit code 1."""
    from sightline.bundle import check_free

    if len(targets) > 1 or len(layers) > 1:
        raise MethodError("--film shows one target at one layer; run it again for another, with another -o")
    paths = [Path(one) for one in films]
    places = name_folders(paths, folder)
    given = dict(parsed_option(text, "--option") for text in options)
    check_style(style, colormap)
    with one_by_one("film", len(paths), folder) as course:
        with waiting(f"loading {model}"):
            from sightline.engine.spoken import parse_target
            from sightline.frames import explain_frames

            target = parse_target(targets[0]) if targets else None
            adapter = model.load(for_layer=layers)
        for place in places:
            check_free(place, force)
        with bars(len(paths)) as (step, within, asking):
            for path, place in zip(paths, places, strict=True):
                shown = Shown(asking)
                try:
                    found = explain_frames(
                        path, adapter, method=method, target=target, layer=layers[0] if layers else None, options=given,
                        memory_mb=memory_mb, progress=within, max_calls=max_calls, told=shown.tell,
                    )  # fmt: skip
                    found.save(place, style=style, colormap=colormap, force=force)
                except FAILURES as error:
                    course.fail(path, error, as_json)
                else:
                    _say_json(path, place) if as_json else _say(path, place, found, top)
                course.done += 1
                step()


def _say(path: Path, place: Path, found: Any, top: int) -> None:
    first = found.maps[0]
    says = ", ".join(one.said() for one in first.predictions[:top]) or first.title()
    say(f"{plain(path)} ({found.seen()}, {first.photo.width} x {first.photo.height})")
    say(f"  says: {plain(says, 1000)}")
    at, x, y = found.peak
    strongest = f"strongest in {found.label(at)} at x {x}, y {y}" if found.raw.max() > 0 else "nowhere above 0"
    say(
        f"  {first.method} for {plain(first.label)}: {strongest} ({first.where()}, {'x'.join(map(str, found.raw.shape))})"
    )
    for warning in first.warnings:
        say(f"  note: {plain(warning, 600)}")
    say(f"  picture: {plain(place / 'strip.png')}, slices.png and film.gif")


def _say_json(path: Path, place: Path) -> None:
    said = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    say(json.dumps({"image": str(path), "folder": str(place), **said}))
