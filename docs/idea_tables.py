"""Writes the tables of docs/ideas: python docs/idea_tables.py

The one of real photographs takes about ten minutes on one core, because some methods ask the model thousands of times; `python docs/idea_tables.py planted` writes one alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import sightline
from sightline.errors import SightlineError
from sightline.metrics.maps import likeness
from sightline.testing import both_patches, counts_red, ignores_distractor, looks_left

HERE = Path(__file__).parent
IDEAS = HERE / "ideas"
DEMO = Path(sightline.__file__).parent / "data" / "demo"
PHOTOS = ("cat", "coffee", "rocket")
MADE: tuple[Callable[..., Any], ...] = (looks_left, counts_red, both_patches, ignores_distractor)
PICTURES = 8  # of each network; of both_patches' two have both
# Those of transformers and of detectors can't be asked here; of the costly ones what is drawn is cut down.
LEFT_OUT = ("attention-rollout", "attention-grad", "le-grad", "raw-attention", "d-rise")
LESS: dict[str, dict[str, int]] = {
    "rise": {"samples": 500},
    "kernel-shap": {"samples": 200},
    "lime": {"samples": 200},
    "guided-ig": {"steps": 100},
    "xrai": {"steps": 50},
}
# Score-cam again for every sample: what they cost is known, and what they show is its map with steadier weights.
NOT_RUN = ("is-cam", "ss-cam")
BEGIN, END = "<!-- table: python docs/idea_tables.py {name} -->\n", "<!-- end of table -->\n"


def asked() -> list[str]:
    """The methods that the tables are about."""
    return [name for name in sightline.list_methods() if name not in LEFT_OUT]


def link(name: str) -> str:
    return f"[{name}](../methods/{name.replace('++', '-plus-plus')}.md)"


def planted() -> str:
    """How much of each method's heat lies where something counts, on networks set by hand, in per cent."""
    lines = [
        f"| method | {' | '.join(make.__name__.replace('_', ' ') for make in MADE)} |",
        "|---|" + "---|" * len(MADE),
    ]
    cases = []
    for make in MADE:
        made = make()
        x = made.pictures(PICTURES, 0)
        truth = made.truth(x)
        there = truth.flatten(1).any(dim=1)  # in the others nothing counts
        cases.append((made.module, x[there], truth[there]))
    area = [f"{100 * float(truth.float().mean()):.0f}" for _, _, truth in cases]
    lines.append(f"| *heat spread evenly* | {' | '.join(area)} |")
    lines += [f"| {link(name)} | {' | '.join(_inside(name, *one) for one in cases)} |" for name in asked()]
    return "\n".join(lines) + "\n"


def _inside(name: str, module: Any, x: torch.Tensor, truth: torch.Tensor) -> str:
    """The share of what speaks for the class that lies on the truth; a cell that holds some of it belongs to it."""
    options = {"segments": 32} if "segments" in sightline.list_methods()[name].options else {}
    try:
        maps = sightline.attribute(x, module, method=name, target=0, options=options).clamp(min=0)
    except SightlineError:
        return "refused"
    cells = F.adaptive_max_pool2d(truth.float(), maps.shape[1:])
    shares = [float((one * there).sum() / one.sum()) for one, there in zip(maps, cells, strict=True) if one.any()]
    return f"{100 * np.mean(shares):.0f}" if shares else "empty"


def photographs() -> str:
    """What a map costs on the bundled model, and how far it agrees with grad-cam and with covering places."""
    model = sightline.load_model()
    names = [name for name in asked() if name not in NOT_RUN]
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    cost: dict[str, int] = {}
    for photo in PHOTOS:
        looked = sightline.look(DEMO / f"{photo}.jpg", model)
        maps, seconds = [], []
        for name in names:
            begun = time.process_time()
            maps.append(sightline.explain(looked, method=name, options=LESS.get(name)))
            seconds.append(time.process_time() - begun)
            cost[name] = maps[-1].origin.cost  # type: ignore[union-attr]
            print(photo, name, cost[name], f"{seconds[-1]:.2f} s", file=sys.stderr, flush=True)
        matrix = sightline.agreement(maps).matrix
        camera, covered = names.index("grad-cam"), names.index("occlusion")
        for at, name in enumerate(names):
            rows[name].append((matrix[at, camera], matrix[at, covered], seconds[at]))
    lines = [
        "| method | questions besides the first pass | seconds | like grad-cam | like occlusion |",
        "|---|---|---|---|---|",
    ]
    for name in asked():
        if name in NOT_RUN:
            lines.append(f"| {link(name)} | score-cam's, 10 times | not run | | |")
            continue
        camera, covered, took = np.nanmean(np.array(rows[name]), axis=0)
        less = ", ".join(f"{key} {value:,}" for key, value in LESS.get(name, {}).items())
        shown = f"{cost[name]:,}{f' ({less})' if less else ''}"
        lines.append(f"| {link(name)} | {shown} | {took:.2g} | {camera:.2f} | {covered:.2f} |")
    return "\n".join(lines) + "\n"


def layers() -> str:
    """Grad-cam and hires-cam of one photograph at each layer of a sweep."""
    model, photo = sightline.load_model(), DEMO / "cat.jpg"
    sweeps = [sightline.compare(photo, model, layer="all", methods=[name]) for name in ("grad-cam", "hires-cam")]
    lines = [
        "| layer | grid | a cell, in pixels of the input | like the default layer's map | hires-cam's heat that lies elsewhere than grad-cam's |",
        "|---|---|---|---|---|",
    ]
    default = sweeps[0][-1]
    for one, other in zip(*sweeps, strict=True):
        rows, columns = one.raw.shape
        a, b = (np.maximum(each.raw, 0).astype(np.float64) for each in (one, other))
        apart = 0.5 * np.abs(a / a.sum() - b / b.sum()).sum()
        alike = likeness(one.raw.astype(np.float64), default.raw.astype(np.float64))
        side = one.view.input[0] // columns
        lines.append(f"| {one.layer} | {rows} x {columns} | {side} | {alike:.2f} | {100 * apart:.0f} % |")
    return "\n".join(lines) + "\n"


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "planted": ("methods-compared.md", planted),
    "layers": ("choosing-a-layer.md", layers),
    "photographs": ("methods-compared.md", photographs),
}


def written(name: str) -> str:
    """The table that stands in the page."""
    text = (IDEAS / TABLES[name][0]).read_text(encoding="utf-8")
    return text.partition(BEGIN.format(name=name))[2].partition(END)[0]


def main(names: Sequence[str]) -> None:
    for name in names:
        page, make = IDEAS / TABLES[name][0], TABLES[name][1]
        begin, made = BEGIN.format(name=name), make()
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
        page.write_text(before + begin + made + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or list(TABLES))
