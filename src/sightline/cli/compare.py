"""`sightline compare`"""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.bundles import DEFAULT_FOLDER, write_bundles
from sightline.cli.explain import (
    Colormap,
    Folder,
    Force,
    Json,
    LayerName,
    ModelName,
    Options,
    OwnScale,
    Photos,
    RandomWeights,
    StyleName,
    Targets,
    Top,
    Weights,
)


def run(
    photos: Photos,
    model: ModelName = "bundled",
    target: Targets = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Again for more; see: sightline methods. [default: all]")
    ] = None,
    layer: LayerName = None,
    option: Options = None,
    top: Top = 3,
    style: StyleName = "heat",
    colormap: Colormap = None,
    own_scale: OwnScale = False,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    output: Folder = DEFAULT_FOLDER,
    force: Force = False,
    json: Json = False,
) -> None:
    """Show several methods or classes side by side, from one pass, on one scale."""
    write_bundles(
        photos,
        model=model,
        weights=weights,
        random_weights=random_weights,
        methods=method,
        targets=target or [],
        layer=layer,
        options=option or [],
        top=top,
        style=style,
        colormap=colormap,
        own_scale=own_scale,
        folder=output,
        force=force,
        as_json=json,
    )
