"""`sightline runs`"""

from __future__ import annotations

import json as to_json
from pathlib import Path
from typing import Annotated, Any

import typer

from sightline.cli.output import plain, say, table, tell, waiting

_SHOWN = 20
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of sightline batch.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result of sightline.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="A new folder; whole or not there.")]


def app() -> typer.Typer:
    """The commands on runs that are there already."""
    found = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at runs, check, merge and export them.")
    for name, command in (("list", listed), ("show", show), ("verify", verify), ("merge", merge), ("export", export)):
        found.command(name)(command)
    return found


def listed(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look, also in folders below.")] = Path("."),
) -> None:
    """List the runs of batch, evaluate and train below a folder."""
    from sightline.batch.found import find_runs

    with waiting("looking"):
        found = list(find_runs(folder))
    if not found:
        tell(f"there is no run in {plain(folder)} or below it")
        return
    table(
        ["folder", "command", "model", "pictures", "done", "errors", "state"],
        [
            (one.folder, one.command, one.model, *map(_count, (one.pictures, one.done, one.errors)), one.state)
            for one in found
        ],
    )


def show(run: Folder, json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False) -> None:
    """Say what a run found: how many pictures, what failed, what the model said, the maps of each method."""
    with waiting("counting"):
        from sightline.batch.results import open_run
        from sightline.batch.summary import first_errors, kept_rows, summarise

        opened = open_run(run)
        summary = summarise(run, opened.plan)
    if json:
        say(to_json.dumps({"folder": str(run), "complete": opened.complete, "plan": opened.plan, **summary}))
        return
    say(f"{plain(run)}: {_count(summary['pictures'])} pictures, model {plain(opened.plan['model'].get('name', ''))}")
    say(f"{_count(summary['done'])} done, {_count(summary['errors'])} with an error")
    if opened.missing:
        say(
            f"{_count(len(opened.missing))} of {_count(len(opened.missing) + len(opened.there))} shards are missing; --resume computes them"
        )
    if kept := kept_rows(run):
        say(f"{_count(kept)} more are kept of a shard that was stopped in the middle")
    for note in opened.plan["model"].get("notes", ()):
        say(f"note: {plain(note, 1000)}")
    if summary["labelled"]:
        say(f"{_count(summary['predicted as labelled'])} of {_count(summary['labelled'])} are predicted as labelled")
    metrics = list(opened.plan["metrics"])
    _part(
        ["method", "maps", "mean evidence", *metrics],
        [_method(name, one, metrics) for name, one in summary["methods"].items()],
    )
    said = list(summary["predicted"].items())
    _part(["predicted", "pictures"], said[:_SHOWN])
    if len(said) > _SHOWN:
        say(
            f"and {_count(len(said) - _SHOWN)} more classes of {_count(sum(many for _, many in said[_SHOWN:]))} pictures"
        )
    _part(["stage of errors", "pictures"], summary["errors by stage"].items())
    if summary["errors"]:
        failed = first_errors(opened, _SHOWN)
        _part(["failed", "why"], [(one["id"], one["message"]) for one in failed])
        if summary["errors"] > len(failed):
            say(f"and {_count(summary['errors'] - len(failed))} more: open_run(...).errors()")
    _part(["noticed of pictures", "pictures"], summary["notices"].items())
    for name, one in summary["methods"].items():
        _part([f"noticed of {plain(name)}", "maps"], one["notices"].items())


def verify(run: Folder) -> None:
    """Read a run again and compare it with its plan and checksums; exit code 1 when something is wrong."""
    with waiting("reading"):
        from sightline.batch.results import open_run

        opened = open_run(run)
        problems = opened.verify()
    for one in problems:
        say(plain(one, 1000))
    if problems:
        tell(f"{_count(len(problems))} problem{'s' if len(problems) > 1 else ''}")
        raise typer.Exit(1)
    say(f"all is well: {_count(len(opened))} rows in {_count(len(opened.there))} shards")


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Complete runs of the same settings.")],
    output: Output,
    rows: Annotated[int, typer.Option("--rows", min=1, help="A file ends there, or at 128 MB.")] = 100_000,
    force: Force = False,
) -> None:
    """Write the rows of runs over different pictures as few larger Parquet files."""
    with waiting("merging"):
        from sightline.batch.copies import merge as merged

        merged(runs, output, rows_per_file=rows, force=force)
    say(f"merged: {plain(output)}")


def export(
    run: Folder,
    output: Output,
    thumbnails: Annotated[bool, typer.Option("--thumbnails", help="Only these. [default: both]")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Only these. [default: both]")] = False,
    ids: Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="Only this picture.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only so many pictures.")] = 0,
    force: Force = False,
) -> None:
    """Write the thumbnails and maps of a run as files: JPEG, NumPy arrays and drawings."""
    what = [name for name, wanted in (("thumbnails", thumbnails), ("maps", maps)) if wanted or thumbnails == maps]
    with waiting("exporting"):
        from sightline.batch.copies import export as exported

        exported(run, output, what=what, ids=ids, limit=limit, force=force)
    say(f"exported: {plain(output)}")


def _part(head: list[str], rows: Any) -> None:
    shown = [(name, *(_count(one) if isinstance(one, int) else one for one in rest)) for name, *rest in rows]
    if shown:
        say()
        table(head, shown)


def _method(name: str, found: dict[str, Any], metrics: list[str]) -> tuple[Any, ...]:
    means = [found["mean evidence"], *(found.get("mean of metrics", {}).get(metric) for metric in metrics)]
    return name, found["maps"], *("" if mean is None else f"{mean:.3g}" for mean in means)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
