"""`sightline app`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline._optional import require
from sightline.cli.output import say, waiting


def run(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Again for more; see: sightline models. [default: bundled]"),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Other models than the bundled one untrained, to try things out; every map says so.",
        ),
    ] = False,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than this machine's own only with --auth.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any free one.")] = 7860,
    auth: Annotated[
        str | None, typer.Option("--auth", envvar="SIGHTLINE_AUTH", metavar="USER:PASS", help="Ask visitors for this.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="HOST", help="Another name it is called by, as behind a reverse proxy; again for more."
        ),
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option("--root-path", metavar="PATH", help="Where it stands behind a reverse proxy, such as /sightline."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="For models that compare pictures with texts; again for more."),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="TEXT", help="For models that answer in words.")
    ] = None,
    examples: Annotated[Path | None, typer.Option("--examples", metavar="DIR", help="Pictures to choose from.")] = None,
) -> None:
    """Ask a model why, in a browser. Stop it with Ctrl-C."""
    require(["gradio"], "app", "the web app")
    with waiting("starting"):
        from sightline.app.serve import run as serve
    serve(
        model or [],
        host=host,
        port=port,
        auth=auth,
        examples=examples,
        random_weights=random_weights,
        names=name or [],
        root_path=root_path,
        prompts=prompt or [],
        question=question,
        said=lambda address: say(f"Sightline runs on {address} (stop with Ctrl-C)"),
    )
