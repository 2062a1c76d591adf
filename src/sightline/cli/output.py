"""What every command prints with: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn


def plain(text: object, limit: int = 300) -> str:
    """Text of unknown origin without control characters, which could command a terminal, and not endless."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def say(text: str = "") -> None:
    """A line of the result."""
    print(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))


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
