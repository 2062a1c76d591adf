"""`sightline explain`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.bundles import DEFAULT_FOLDER, write_bundles
from sightline.cli.films import write_films
from sightline.cli.model import Chosen, takes_a_model
from sightline.errors import ImageError, MethodError

Photos = Annotated[list[str], typer.Argument(metavar="PHOTO...", help="Files, folders or globs.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="CLASS",
        help="Class name, a unique part of one, or number; again for more. Also log:CLASS, for, against, up, down, like:FILE, CLASS@X,Y, "
        "CLASS@LEFT,TOP,RIGHT,BOTTOM, CLASS@MASK.png, instance:N, word:N, above:0.5; see docs/tasks.md. [default: the prediction]",
    ),
]
LayerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--layer", "--layers", metavar="NAME", help="Again for more; see: sightline layers MODEL. [default: chosen]"
    ),
]
Contrast = Annotated[
    str | None,
    typer.Option("--contrast", metavar="CLASS", help="Show what speaks for the target rather than this class."),
]
Over = Annotated[
    str | None, typer.Option("--combine", metavar="HOW", help="Average over altered pictures: noise, flips or scales.")
]
OverOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--combine-option", metavar="NAME=VALUE", help="samples, noise, seed; or scales, such as scales=[0.5,1]."
    ),
]
Memory = Annotated[
    int,
    typer.Option(
        "--memory", metavar="MB", min=1, help="About how much one forward may need when the model is asked again."
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Option of the method; see: sightline methods"),
]
Top = Annotated[int, typer.Option("--top", min=1, help="How many of the model's answers to show.")]
MaxCalls = Annotated[
    int | None,
    typer.Option(
        "--max-calls",
        metavar="N",
        min=1,
        help="Show the model at most N pictures for each photograph; what needs more is refused before it starts.",
    ),
]
StyleName = Annotated[
    str | None,
    typer.Option(
        "--style", help="heat, grey-photo, contours, spotlight, flat, faded or superpixels. [default: by the map]"
    ),
]
Colormap = Annotated[str | None, typer.Option("--colormap", help="Any name of matplotlib. [default: inferno]")]
OwnScale = Annotated[
    bool, typer.Option("--own-scale", help="Stretch each map to its own maximum; strengths then do not compare.")
]
Folder = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="Where the bundles go, one folder an image.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace earlier bundles.")]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out pictures that have their results already.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON Lines on stdout, one object an image.")]


@takes_a_model
def run(
    model: Chosen,
    photos: Annotated[list[str] | None, typer.Argument(metavar="PHOTO", help="Files, folders or globs.")] = None,
    random_from: Annotated[
        Path | None,
        typer.Option(
            "--random-from", metavar="FOLDER", help="In place of PHOTO one picture of a folder, each time another."
        ),
    ] = None,
    target: Targets = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="See: sightline methods. [default: grad-cam, of boxes and pixels hires-cam, of a black box occlusion]",
        ),
    ] = None,
    layer: LayerNames = None,
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
    trust: Annotated[
        str | None,
        typer.Option(
            "--trust", metavar="[full]", help="Check how far to believe it: about 60 forwards, with full all."
        ),
    ] = None,
    tiles: Annotated[
        bool,
        typer.Option("--tiles", help="Cut a large photograph into windows of the model's size and join their maps."),
    ] = False,
    overlap: Annotated[
        float | None,
        typer.Option("--overlap", metavar="SHARE", help="Of --tiles: of a window, 0 to below 1. [default: 0.5]"),
    ] = None,
    film: Annotated[
        bool,
        typer.Option("--film", help="PHOTO is a film, for a model of films: a GIF, WebP, or a folder of its frames."),
    ] = False,
    output: Folder = DEFAULT_FOLDER,
    force: Force = False,
    skip_existing: SkipExisting = False,
    json: Json = False,
) -> None:
    """Show what the model says about photographs (or a film), and where it looks."""
    if len(method or ()) > 1:
        raise MethodError("explain shows one method; for several side by side: sightline compare")
    if not photos and random_from is None:
        raise ImageError("nothing to explain: give PHOTO (files, folders or globs), or --random-from FOLDER")
    if photos and random_from is not None:
        raise ImageError(
            f"PHOTO ({photos[0]}) and --random-from {random_from} exclude each other; give the one or the other"
        )
    if overlap is not None and not tiles:
        raise MethodError("--overlap belongs to --tiles; give both")
    if tiles and trust is not None:
        raise MethodError(
            "--trust asks about one input of the model, and a map of --tiles has many; leave one of them out"
        )
    if film:
        others = {
            "--contrast": contrast, "--combine": combine, "--combine-option": combine_option, "--own-scale": own_scale, "--trust": trust,
            "--tiles": tiles, "--random-from": random_from, "--skip-existing": skip_existing,
        }  # fmt: skip
        if left := [name for name, value in others.items() if value not in (None, False, [])]:
            raise MethodError(f"--film takes no {' and no '.join(left)}; leave that out")
        write_films(
            photos or [], model=model, method=method[0] if method else None, targets=target or [], layers=layer or [], options=option or [],
            memory_mb=memory, max_calls=max_calls, top=top, style=style, colormap=colormap, folder=output, force=force, as_json=json,
        )  # fmt: skip
        return
    write_bundles(
        photos or [],
        model=model,
        methods=method or [None],
        targets=target or [],
        layers=layer or [],
        fuse=True,
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
        trust=trust,
        random_from=random_from,
        overlap=(0.5 if overlap is None else overlap) if tiles else None,
    )
