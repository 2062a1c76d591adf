"""What every command prints with: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn


def plain(text: object, limit: int = 300) -> str:
    """Text of unknown origin without control characters, which could command a terminal, and not endless."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def say(text: str = "") -> None:
    """A line of the result, at once: whoever reads it through a pipe may wait for it, such as for the address of the app."""
    print(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"), flush=True)


def tell(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr)  # Python itself writes what stderr can't show as \\x...


def fail(text: str) -> NoReturn:
    """The end: a message on stderr and exit code 2."""
    tell(f"sightline: {plain(text, 2000)}")
    sys.exit(2)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under headings, as wide as their contents."""
    cells = [[plain(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A moving sign on stderr while something takes long; nothing where no terminal is."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(escape(text)):
        yield


@contextmanager
def counted(what: str, unit: str) -> Iterator[Callable[[int, int, int], None]]:
    """A bar on stderr with the time left, told (done, of all, how many of the unit); a line for each tenth where no terminal is."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        # A line now and then, for logs.
        told = [0]

        def tell_tenth(done: int, of: int, number: int) -> None:
            if of and done * 10 // of > told[0]:
                told[0] = done * 10 // of
                tell(f"{done} of {of} done, {number:,} {unit}")

        yield tell_tenth
        return
    columns = (
        SpinnerColumn(),
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, shown="")
        yield lambda done, of, number: progress.update(task, completed=done, total=of, shown=f"{number:,} {unit}")


@contextmanager
def working() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each thing that is done, told (what, how much of it is done, of how much); a line for each where no terminal is."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        told: set[tuple[str, int]] = set()

        def tell_once(what: str, done: int, of: int) -> None:
            tenth = done * 10 // of if of else 0
            if (what, tenth) not in told and (tenth or not done):
                told.add((what, tenth))
                tell(f"{what}: {done:,} of {of:,}" if of > 1 else what)

        yield tell_once
        return
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=None)
            progress.update(tasks[what], completed=done, total=of)

        yield show
