"""Writes the table of docs/audit.md: what the audit finds in networks of which the shortcut is known. About 20 minutes on one core."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planted_runs import CONTROLS, KINDS, make_run
from sightline.audit.run import audit_run

PAGE = Path(__file__).with_name("audit.md")
SEEDS = range(5)


def judged(kind: str, seed: int) -> list[dict[str, Any]]:
    """The audits of one network, without and with masks."""
    with tempfile.TemporaryDirectory() as folder:
        run, adapter, _ = make_run(kind, seed, Path(folder))
        return [audit_run(run, model=adapter, masks=masks).record() for masks in (None, Path(folder) / "masks")]


def row(kind: str, masks: bool, found: list[dict[str, Any]]) -> str:
    """One line of the table."""
    planted = kind in KINDS
    accused = [
        {one["class"] for one in each["classes"] if one["outcome"] in ("shortcut", "suspected")} for each in found
    ]
    outcomes = [each["outcome"] for each in found]
    counted = ", ".join(f"{outcomes.count(one)} {one}" for one in dict.fromkeys(outcomes))
    first = [each["candidates"][0] for each in found]
    hits = sum("red" in one for one in accused) if planted else 0
    others = sum(len(one - {"red"} if planted else one) for one in accused)
    named = flips = control = ""
    if planted:
        kinds = [one["what"] for one in first if one["class"] == "red"]
        named = ", ".join(f"{kinds.count(one)} {one}" for one in dict.fromkeys(kinds))
        best = [max(one["trials"], key=lambda trial: trial["flips"] - trial["control"]) for one in first]
        flips = f"{min(one['flips'] for one in best):.0%}"
        control = f"{max(one['control'] for one in best):.0%}"
    hit = f"{hits} of {len(found)}" if planted else ""
    return f"| {kind} | {'yes' if masks else 'no'} | {counted} | {hit} | {others} of {len(found) * (3 if planted else 4)} | {named} | {flips} | {control} |"


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "| planted | masks | verdicts | class found | other classes accused | named first | flips, the least | under the control, the most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in (*KINDS, *CONTROLS):
        pairs = [judged(kind, seed) for seed in SEEDS]
        for masks in (False, True):
            lines.append(row(kind, masks, [pair[masks] for pair in pairs]))
            print(lines[-1], flush=True)
    text = PAGE.read_text(encoding="utf-8")
    start, rest = text.split("<!-- table -->\n", 1)
    rest = re.sub(r"\A\n(\|.*\n)*", "\n", rest)
    PAGE.write_text(f"{start}<!-- table -->\n\n" + "\n".join(lines) + "\n" + rest, encoding="utf-8")


if __name__ == "__main__":
    main()
