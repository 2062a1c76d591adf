"""Writes how the trust card judges the photographs of a folder into docs/evaluation.md: python docs/trust_counts.py FOLDER"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import sightline
from sightline.cli.bundles import find_images

PAGE = Path(__file__).parent / "evaluation.md"
BEGIN, END = "<!-- verdicts: python docs/trust_counts.py FOLDER -->\n", "<!-- end of verdicts -->\n"
METHODS = ("grad-cam", "layer-cam", "eigen-cam")
OUTCOMES = ("passed", "doubtful", "failed", "no answer", "not run")


def table(photos: list[Path]) -> str:
    model = sightline.load_model()
    verdicts: Counter[tuple[str, str]] = Counter()
    outcomes: Counter[tuple[str, str, str]] = Counter()
    names: dict[str, None] = {}
    for photo in photos:
        looked = sightline.look(photo, model)
        for method in METHODS:
            card = sightline.explain(looked, method=method).trust()
            verdicts[method, card.verdict] += 1
            for one in card.checks:
                names[one.name] = None
                outcomes[method, one.name, one.outcome] += 1
    lines = [
        f"Of {len(photos)} photographs, each asked for what the model says:",
        "",
        "| method | supported | weak | not supported |",
        "|---|---|---|---|",
        *(
            f"| {method} | {verdicts[method, 'supported']} | {verdicts[method, 'weak']} | {verdicts[method, 'not supported']} |"
            for method in METHODS
        ),
        "",
        f"| check | {' | '.join(f'{method}: {one}' for method in METHODS for one in OUTCOMES[:4])} |",
        "|---|" + "---|" * (4 * len(METHODS)),
    ]
    for name in names:
        cells = [str(outcomes[method, name, one]) for method in METHODS for one in OUTCOMES[:4]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    made = table(find_images([sys.argv[1]], Path("nowhere")))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + made + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
