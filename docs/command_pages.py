"""Writes docs/command-line.md from what the commands say of themselves: python docs/command_pages.py

A test keeps it equal to them.
"""

from __future__ import annotations

from pathlib import Path

import typer

from sightline.cli import _app

HERE = Path(__file__).parent
WIDTH = 88
TOP = """# Command line

What each command says with `--help`. All take `--debug`, which shows the whole error, and end with 0 when all is done, 1 when a part failed (or `--fail-on` says so), 2 when they refused, and 130 when they were stopped.

<!-- python docs/command_pages.py -->
"""


def page() -> str:
    whole = typer.main.get_command(_app())
    lines = [TOP]
    for name, command in whole.commands.items():  # type: ignore[attr-defined]
        parts = getattr(command, "commands", None)
        for words, one in [((name, part), own) for part, own in parts.items()] if parts else [((name,), command)]:
            shown = " ".join(words)
            context = typer.Context(one, info_name=f"sightline {shown}", max_content_width=WIDTH, terminal_width=WIDTH)
            lines += [f"## {shown}\n", f"```text\n{one.get_help(context).strip()}\n```\n"]
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "command-line.md").write_text(page(), encoding="utf-8")
