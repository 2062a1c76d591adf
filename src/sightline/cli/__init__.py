"""The command line: one file a command, each of which parses, calls the library and prints."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from typing import Annotated

import typer

from sightline.cli.output import fail, say
from sightline.errors import SightlineError


def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Shows which part of an image made a vision model say what it said. Start with: sightline explain PHOTO.

    Any command takes --debug, which shows the whole error.
    """
    if version:
        from sightline import __version__

        say(f"sightline {__version__}")
        raise typer.Exit


def _spelled_out(arguments: list[str]) -> list[str]:
    """`--trust` alone means the quick checks; the parser knows no option whose value may be left out."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        bare = argument == "--trust" and following not in ("full", "quick")
        found.append("--trust=quick" if bare else argument)
    return found


def _app() -> typer.Typer:
    """Every command, put together anew: a second `main()` in one process must not find each of them twice."""
    from sightline.cli import (
        audit,
        batch,
        compare,
        concepts,
        doctor,
        evaluate,
        explain,
        layers,
        methods,
        metrics,
        models,
        report,
        runs,
        train,
        web,
    )

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        invoke_without_command=True,
    )
    app.callback()(_options)
    for command in (
        explain,
        compare,
        evaluate,
        batch,
        audit,
        report,
        train,
        concepts,
        models,
        layers,
        methods,
        metrics,
        doctor,
    ):
        app.command(command.__name__.rpartition(".")[2])(command.run)
    app.command("app")(web.run)
    app.add_typer(runs.app(), name="runs")
    return app


def main() -> None:
    """Entry point: our errors become one message on stderr and exit code 2, without a traceback."""
    debug = "--debug" in sys.argv
    try:
        _app()(_spelled_out([argument for argument in sys.argv[1:] if argument != "--debug"]), prog_name="sightline")
    except SightlineError as error:
        if debug:
            traceback.print_exc()
        fail(str(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None
        sys.exit(0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        fail(f"unexpected {type(error).__name__}: {error}. This is a fault of sightline; --debug shows where")
    finally:
        # Nothing is left to be told: a Ctrl-C that finds the interpreter taking itself down would only be its traceback.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
