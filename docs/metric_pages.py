"""Writes the table in docs/metrics.md from the registry: python docs/metric_pages.py. A test keeps them equal."""

from __future__ import annotations

from pathlib import Path

from sightline import list_metrics

PAGE = Path(__file__).parent / "metrics.md"
BEGIN, END = "<!-- table: python docs/metric_pages.py -->\n", "<!-- end of table -->\n"
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


def table() -> str:
    lines = ["| metric | better | tells | changed pixels become | settings | defined in |", "|---|---|---|---|---|---|"]
    for one in list_metrics().values():
        settings = ", ".join(f"{name} {value}" for name, value in one.options.items())
        lines.append(
            f"| {one.name} | {ARROWS[one.better]} | {one.summary} | {one.base} | {settings} | {one.reference} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
