"""`sightline report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import counted, plain, say, waiting


def run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of sightline batch.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The page to write. [default: NAME-OF-RUN-report.html]"),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option("--audit", metavar="DIR", help="The folder of an audit of this run: its findings come first.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier report.")] = False,
) -> None:
    """Write a run as one page that opens from the disk: every picture with its heat, filters, sorting and search."""
    with waiting("opening the run"):
        from sightline.audit.report import write_report
        from sightline.batch.results import open_run

        opened = open_run(run)
    with counted("writing", "of the run's pictures") as watch:
        written = write_report(
            opened,
            Path(f"{run.resolve().name}-report.html") if output is None else output,
            audit=audit,
            force=force,
            watch=lambda done, of: watch(done, of, of),
        )
    say(f"report of {len(opened):,} pictures: {plain(written)}")
