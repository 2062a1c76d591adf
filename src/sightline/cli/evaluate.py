"""`sightline evaluate`"""

from __future__ import annotations

import json as to_json
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.bundles import metric_settings, names, parsed_option
from sightline.cli.explain import Memory, Options
from sightline.cli.model import Chosen, takes_a_model
from sightline.cli.output import counted, plain, say, tell, waiting
from sightline.errors import MetricError

DEFAULT_FOLDER = Path("sightline-evaluation")
Masks = Annotated[
    Path | None,
    typer.Option("--masks", metavar="DIR", help="A mask a picture, of the same name; above 0 is the object."),
]
Boxes = Annotated[
    Path | None, typer.Option("--boxes", metavar="FILE", help="A CSV file: image,left,top,right,bottom in pixels.")
]


@takes_a_model
def run(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, also in folders below.")],
    model: Chosen,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods", "--method", metavar="NAME,...", help="See: sightline methods. [default: six of one pass]"
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            "--metric",
            metavar="NAME,...",
            help="See: sightline metrics. [default: deletion, insertion, drop, increase]",
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            "--labels", metavar="WHICH", help="predictions, folders (their names), or a CSV file: image,label."
        ),
    ] = "predictions",
    masks: Masks = None,
    boxes: Boxes = None,
    layer: Annotated[str | None, typer.Option("--layer", metavar="NAME", help="[default: chosen]")] = None,
    option: Options = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--setting", metavar="METRIC.NAME=VALUE", help="Of a metric, such as deletion.step=224, the paper's."
        ),
    ] = None,
    boards: Annotated[int, typer.Option("--boards", min=1, help="How many, for grid-pointing-game and di-full.")] = 50,
    board_confidence: Annotated[
        float,
        typer.Option("--board-confidence", min=0, max=1, help="How sure the model must be of a picture on a board."),
    ] = 0.8,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only so many pictures, spread over the folder.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is random.")] = 0,
    memory: Memory = 512,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="The run; the same command goes on where it was stopped."),
    ] = DEFAULT_FOLDER,
    force: Annotated[bool, typer.Option("--force", help="Start anew where another run stands.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try again the pictures that could not be evaluated before.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The tables as JSON on stdout.")] = False,
) -> None:
    """Compare methods on a folder of pictures, beside maps that know nothing: tables, intervals, tests, plots."""
    count = [0, 0]
    try:
        with waiting(f"loading {model}"):
            from sightline.evaluation import evaluate
            from sightline.evaluation.run import METHODS
            from sightline.methods.registry import find

            chosen = names(methods) or list(METHODS)
            given = dict(parsed_option(text, "--option") for text in option or [])
            options = {
                name: {key: value for key, value in given.items() if key in find(name).options} for name in chosen
            }
            for key in given:
                if not any(key in each for each in options.values()):
                    raise MetricError(
                        f"--option {key}: none of {', '.join(chosen)} has it; a metric's own is --setting METRIC.{key}=VALUE"
                    )
            adapter = model.load(for_layer=layer)
        with counted("evaluating", "forwards") as watch:

            def note(done: int, of: int, pictures: int) -> None:
                count[:] = [done, of]
                watch(done, of, pictures)

            found = evaluate(
                folder,
                adapter,
                output=output,
                methods=chosen,
                metrics=names(metrics),
                labels=labels,
                masks=masks,
                boxes=boxes,
                layer=layer,
                options={name: each for name, each in options.items() if each},
                settings=metric_settings(setting or []),
                boards=boards,
                board_confidence=board_confidence,
                limit=limit,
                seed=seed,
                force=force,
                retry_errors=retry_errors,
                memory_mb=memory,
                watch=note,
            )
    except KeyboardInterrupt:
        done = f"{count[0]} of {count[1]}" if count[1] else "nothing yet"
        tell(f"stopped; done: {done}. What is done is kept in {output}, and the same command goes on from there")
        raise typer.Exit(130) from None
    if json:
        say(to_json.dumps(found.record()))
    else:
        say(found.markdown().rstrip())
        say()
        say(f"tables, tests, plots and every value: {plain(output)}")
        for note_of_model in adapter.notes:
            say(f"note: {plain(note_of_model, 1000)}")
    if found.errors:
        tell(f"{len(found.errors)} pictures could not be evaluated; their reasons are in {plain(output / 'table.md')}")
        raise typer.Exit(1)
