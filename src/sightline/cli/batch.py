"""`sightline batch`"""

from __future__ import annotations

import json as to_json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.bundles import metric_settings, names, parsed_option
from sightline.cli.explain import Memory, Options
from sightline.cli.model import Chosen, takes_a_model
from sightline.cli.output import counted, plain, say, tell, waiting
from sightline.errors import ImageError, MethodError

DEFAULT_FOLDER = Path("sightline-run")


@takes_a_model
def run(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="A folder, a pattern in quotes, a CSV or Parquet list, a data set of Hugging Face on disk, or tar files.",
        ),
    ],
    model: Chosen,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", "--method", metavar="NAME,...", help="See: sightline methods. [default: grad-cam]"),
    ] = None,
    targets: Annotated[
        str,
        typer.Option(
            "--targets", "--target", metavar="WHICH", help="predicted, label (of the data), top3, or one class for all."
        ),
    ] = "predicted",
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", "--metric", metavar="NAME,...", help="Of every map; see: sightline metrics."),
    ] = None,
    layer: Annotated[str | None, typer.Option("--layer", metavar="NAME", help="[default: chosen]")] = None,
    option: Options = None,
    setting: Annotated[
        list[str] | None, typer.Option("--setting", metavar="METRIC.NAME=VALUE", help="Of a metric.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only so many pictures, spread over all.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option("--batch", min=1, help="Pictures in a forward. [default: 8, on a GPU 64]")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option("--shard", min=1, help="Pictures in a file. [default: a hundredth, 64 to 10,000]")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that read pictures, with ray that compute; 0: chosen.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="S", help="Seconds after which a picture counts as broken.")
    ] = 60,
    engine: Annotated[
        str, typer.Option("--engine", metavar="WHICH", help="local, or ray: on the cluster that RAY_ADDRESS names.")
    ] = "local",
    memory: Memory = 512,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="RUN", help="The folder of the run.")
    ] = DEFAULT_FOLDER,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in RUN.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Go on, and try again the pictures that failed.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin anew where another run stands.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout.")] = False,
) -> None:
    """Explain a whole data set into Parquet files: it survives anything, and goes on with --resume."""
    if len(data) > 1:
        raise ImageError(
            f"DATA is one thing, and these are {len(data)} ({data[0]}, {data[1]}, ...); put a pattern into quotes, or give a folder or a list"
        )
    if methods is not None and names(methods) is None:
        raise MethodError("--methods is empty; name one, or leave it out for the default")
    done = [0, 0]
    try:
        with waiting(f"loading {model} and listing the pictures"):
            from sightline.batch.results import SUMMARY, read_json
            from sightline.batch.run import explain_all

            adapter = model.load(for_layer=layer)
        with counted("explaining", "errors") as watch:

            def note(count: int, of: int, errors: int) -> None:
                done[:] = [count, of]
                watch(count, of, errors)

            explain_all(
                data[0],
                adapter,
                output=output,
                methods=names(methods),
                targets=targets,
                metrics=names(metrics) or (),
                options=dict(parsed_option(text, "--option") for text in option or []),
                settings=metric_settings(setting or []),
                layer=layer,
                limit=limit,
                batch_size=batch_size,
                shard_size=shard_size,
                engine=engine,
                workers=workers,
                timeout_s=timeout,
                resume=resume,
                retry_errors=retry_errors,
                force=force,
                memory_mb=memory,
                watch=note,
            )
    except (KeyboardInterrupt, SystemExit) as end:
        code = 130 if isinstance(end, KeyboardInterrupt) else end.code
        again = [one for one in sys.argv[1:] if one not in ("--force", "--resume")]
        tell(
            f"stopped; {done[0]} of {done[1]} pictures are done and kept. To go on: {shlex.join(['sightline', *again, '--resume'])}"
        )
        raise typer.Exit(int(code or 0)) from None
    summary = read_json(output / SUMMARY)
    if json:
        say(to_json.dumps(summary))
    else:
        say(
            f"{summary['done']} pictures explained, in {plain(output)}; what was found: sightline runs show {plain(shlex.quote(str(output)))}"
        )
        for note_of_model in adapter.notes:
            say(f"note: {plain(note_of_model, 1000)}")
    if summary["errors"]:
        stages = ", ".join(f"{count} at stage {stage}" for stage, count in summary["errors by stage"].items())
        tell(f"{summary['errors']} pictures failed ({stages}); their rows say why, and --retry-errors tries them again")
        raise typer.Exit(1)
