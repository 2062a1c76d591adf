"""`sightline compare`"""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.bundles import DEFAULT_FOLDER, write_bundles
from sightline.cli.explain import (
    Colormap,
    Contrast,
    Folder,
    Force,
    Json,
    MaxCalls,
    Memory,
    Options,
    Over,
    OverOptions,
    OwnScale,
    Photos,
    SkipExisting,
    StyleName,
    Targets,
    Top,
)
from sightline.cli.model import Chosen, takes_a_model


@takes_a_model
def run(
    photos: Photos,
    model: Chosen,
    target: Targets = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Again for more, or all; see: sightline methods. [default: all of one pass; for several layers grad-cam]",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer", "--layers", metavar="NAME", help="Again for more, or all for a sweep. [default: chosen]"
        ),
    ] = None,
    contrast: Contrast = None,
    combine: Over = None,
    combine_option: OverOptions = None,
    option: Options = None,
    memory: Memory = 512,
    max_calls: MaxCalls = None,
    top: Top = 3,
    style: StyleName = None,
    colormap: Colormap = None,
    own_scale: OwnScale = False,
    output: Folder = DEFAULT_FOLDER,
    force: Force = False,
    skip_existing: SkipExisting = False,
    json: Json = False,
) -> None:
    """Show several methods or classes side by side, from one pass, on one scale."""
    write_bundles(
        photos,
        model=model,
        methods=method,
        targets=target or [],
        layers=layer or [],
        fuse=False,
        contrast=contrast,
        over=combine,
        over_options=combine_option or [],
        memory_mb=memory,
        max_calls=max_calls,
        options=option or [],
        top=top,
        style=style,
        colormap=colormap,
        own_scale=own_scale,
        folder=output,
        force=force,
        skip_existing=skip_existing,
        as_json=json,
        agree=True,
    )
