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
        Path | None,
        typer.Option("--audit", metavar="DIR", help="The folder of an audit of this run: its findings come first."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier report.")] = False,
) -> None:
    """Write a run as one page that opens from the disk: every picture with its heat, filters, sorting and search."""
    with waiting("opening the run"):
        from sightline.audit.report import MOST, write_report
        from sightline.batch.results import open_run

        opened = open_run(run)
    output = Path(f"{run.resolve().name}-report.html") if output is None else output
    if len(opened) <= MOST:
        with waiting(f"writing {len(opened):,} pictures"):
            written = write_report(opened, output, audit=audit, force=force)
    else:
        with counted("writing", "pictures") as watch:
            written = write_report(
                opened, output, audit=audit, force=force, watch=lambda done, of: watch(done, of, done)
            )
    say(f"report of {len(opened):,} pictures: {plain(written)}")
