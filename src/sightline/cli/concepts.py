"""`sightline concepts`"""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.bundles import DEFAULT_FOLDER
from sightline.cli.explain import Folder, Force, Json
from sightline.cli.model import Chosen, takes_a_model
from sightline.cli.output import plain, say, waiting


@takes_a_model
def run(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="A picture.")],
    model: Chosen,
    count: Annotated[int, typer.Option("--count", min=1, help="How many concepts.")] = 5,
    layer: Annotated[str | None, typer.Option("--layer", metavar="NAME", help="[default: chosen]")] = None,
    output: Folder = DEFAULT_FOLDER,
    force: Force = False,
    json: Json = False,
) -> None:
    """Take what a layer sees apart into coloured concepts, each with its classes."""
    from sightline.bundle import check_free

    place = output / f"{photo.stem}-concepts"
    check_free(place, force)
    with waiting(f"loading {model}"):
        from sightline.flow import concepts

        adapter = model.load(for_layer=layer)
    with waiting("taking the layer apart"):
        found = concepts(photo, adapter, count=count, layer=layer)
        found.save(place, force=force)
    if json:
        say(json_text.dumps({**found.record(), "image": str(photo), "files": {"panel": str(place / "panel.png")}}))
        return
    say(f"{plain(photo)} ({found.photo.width} x {found.photo.height})")
    for number, classes in enumerate(found.evoked, 1):
        says = ", ".join(f"{one.label} {one.rise:+.2g}" for one in classes) or "no class"
        say(f"  concept {number} alone raises: {plain(says, 1000)}")
    for warning in found.warnings:
        say(f"  note: {plain(warning)}")
    say(f"  picture: {plain(place / 'panel.png')}")
