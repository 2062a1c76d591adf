"""Prints the table of methods from the registry: python docs/methods_table.py; a test keeps docs/methods.md equal to it."""

from __future__ import annotations

from sightline import list_methods


def table() -> str:
    lines = ["| method | shows | needs | signed | unit | options | defined in |", "|---|---|---|---|---|---|---|"]
    for one in list_methods().values():
        options = ", ".join(f"`{name}={default}`" for name, default in one.options.items())
        cells = [
            f"`{one.name}`",
            one.summary,
            one.needs,
            "yes" if one.signed else "no",
            one.unit,
            options,
            one.reference,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
