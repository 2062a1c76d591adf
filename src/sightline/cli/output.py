"""What every command prints with: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
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
