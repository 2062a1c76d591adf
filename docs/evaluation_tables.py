"""Writes the table and the plots of docs/evaluation.md from a run: python docs/evaluation_tables.py sightline-evaluation

The run is that of the command on the page; the table is the run's own, one line a method.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).parent
PAGE = HERE / "evaluation.md"
BEGIN, END = "<!-- table: python docs/evaluation_tables.py RUN -->\n", "<!-- end of table -->\n"
PLOTS = ("deletion-curve", "deletion-ranks", "di-full")
REFERENCES = ("random map", "centred blob", "the mask itself")


def table(found: dict[str, Any]) -> str:
    cells: dict[str, dict[str, str]] = {}
    metrics: dict[str, None] = {}
    for one in found["table"]:
        metrics[one["metric"]] = None
        cells.setdefault(one["method"], {})[one["metric"]] = _cell(one)
    names = sorted(cells, key=lambda name: (name in REFERENCES, name))
    lines = [
        f"{found['pictures']} pictures, {found['boards']} boards, model {found['model']}, classes: {found['labels']}. "
        "Mean [95 % bootstrap interval]; R and C: better than the random map, than the centred blob, p < 0.05 corrected.",
        "",
        f"| method | {' | '.join(metrics)} |",
        "|---|" + "---|" * len(metrics),
    ]
    for name in names:
        shown = f"**{name}**" if name in REFERENCES else name
        lines.append(f"| {shown} | {' | '.join(cells[name].get(metric, '') for metric in metrics)} |")
    undefined = {(one["metric"], one["method"]): one["interval"]["undefined"] for one in found["table"]}
    missing = [f"{metric} of {method} in {count}" for (metric, method), count in undefined.items() if count]
    lines += ["", f"Undefined: {', '.join(missing) or 'none'}."]
    return "\n".join(lines) + "\n"


def _cell(one: dict[str, Any]) -> str:
    interval = one["interval"]
    if interval["mean"] is None:
        return "undefined"
    marks = "".join(mark for mark, name in (("R", "random map"), ("C", "centred blob")) if name in one["beats"])
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}] {marks}".strip()


def main() -> None:
    run = Path(sys.argv[1])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    made = table(json.loads((run / "table.json").read_text(encoding="utf-8")))
    PAGE.write_text(before + BEGIN + made + END + rest.partition(END)[2], encoding="utf-8")
    for name in PLOTS:
        if (run / f"{name}.png").exists():
            with Image.open(run / f"{name}.png") as plot:
                half = plot.convert("RGB").resize((plot.width // 2, plot.height // 2), Image.Resampling.LANCZOS)
            half.save(HERE / "images" / f"evaluation-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
