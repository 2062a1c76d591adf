"""Runs over data sets: beside a forward over the same pictures made ready, memory by their number, planning a million, and Ray.

The photographs are those of the folder in SIGHTLINE_PICTURES, else drawn ones of the same size.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

Table = tuple[list[str], list[list[str]]]
_PICTURES, _LONG, _MILLION = 200, 20_000, 1_000_000


def pictures(folder: Path) -> Path:
    """A folder of 200 photographs of 500 x 375."""
    given = os.environ.get("SIGHTLINE_PICTURES")
    if given:
        return Path(given)
    import numpy as np
    from PIL import Image

    for number in range(_PICTURES):
        random = np.random.default_rng(number)
        small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg", quality=90)
    return folder


def model(name: str) -> Any:
    import sightline
    from sightline.models.preprocess import standard

    if name != "small":
        return sightline.load_model(name, random_weights=name != "bundled")
    torch.manual_seed(0)
    nn = torch.nn
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )  # fmt: skip
    take = standard((64, 64), 72, mean=(0.5,) * 3, std=(0.5,) * 3)
    return sightline.adapt(network, layers=["3"], preprocess=take, name="small")


def _rate(marks: Sequence[tuple[int, float]]) -> float:
    """Pictures a second from the first batch on."""
    return (marks[-1][0] - marks[0][0]) / (marks[-1][1] - marks[0][1])


def beside_forward(names: Sequence[str], rounds: int) -> Table:
    """Pictures a second of a run with grad-cam, and of forwards alone of the same pictures made ready."""
    from sightline.batch.run import explain_all
    from sightline.data.images import SUFFIXES, read_image

    rows = []
    with tempfile.TemporaryDirectory() as place:
        made = Path(place, "pictures")
        made.mkdir()
        folder = pictures(made)
        files = sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES)
        for name in names:
            adapter = model(name)
            ready = torch.stack([adapter.preprocess(read_image(one)[0])[0] for one in files])
            plain, whole = [], []
            for number in range(rounds):
                begun = time.perf_counter()
                with torch.inference_mode():
                    for part in ready.split(8):
                        adapter.module(part.contiguous(memory_format=adapter.memory_format))
                plain.append(len(files) / (time.perf_counter() - begun))
                marks: list[tuple[int, float]] = []
                explain_all(
                    folder,
                    adapter,
                    output=Path(place, f"{name.replace(':', '-')}{number}"),
                    watch=lambda done, _of, _errors, marks=marks: marks.append((done, time.perf_counter())),
                )
                whole.append(_rate(marks))
            shares = sorted(each / alone for each, alone in zip(whole, plain, strict=True))
            rows.append(
                [
                    name,
                    f"{statistics.median(plain):.1f}",
                    f"{statistics.median(whole):.1f}",
                    f"{statistics.median(shares):.2f} ({shares[0]:.2f}-{shares[-1]:.2f})",
                ]
            )
            print(rows[-1], flush=True)
    return ["model", "forwards alone, pictures/s", "run with grad-cam, pictures/s", "share"], rows


def alone(what: str, *words: str) -> dict[str, Any]:
    """One of `_ALONE` in a process of its own."""
    command = [sys.executable, __file__, what, *words]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def memory_and_plan() -> Table:
    """Peak memory by the number of pictures, and what a million costs to plan and to resume."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        made = Path(place, "pictures")
        made.mkdir()
        files = [str(one) for one in sorted(pictures(made).iterdir())]
        for count in (1_000, _LONG):
            found = alone("memory", _listed(place, files, count), str(Path(place, f"run{count}")))
            rows.append(
                [f"a run of {count:,}, a small network", f"{found['seconds']:.0f} s", f"{found['peak']:.0f} MB"]
            )
            print(rows[-1], flush=True)
        table = _listed(place, files, _MILLION)
        for name in ("planning", "resuming"):
            found = alone("plan", table, str(Path(place, "million")))
            rows.append(
                [f"{name} 1,000,000, to the first batch", f"{found['seconds']:.1f} s", f"{found['peak']:.0f} MB"]
            )
            print(rows[-1], flush=True)
    return ["", "time", "peak of the process that computes"], rows


def _listed(place: str, files: Sequence[str], count: int) -> str:
    table = Path(place, f"{count}.csv")
    with open(table, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["image", "id"])
        writer.writerows([files[number % len(files)], f"{number:09}"] for number in range(count))
    return str(table)


def _peak() -> float:
    """In MB, of this program alone: what `resource` says begins with whoever started it."""
    said = Path("/proc/self/status").read_text(encoding="ascii")
    return int(said.partition("VmHWM:")[2].split()[0]) / 1024


def _memory(table: str, output: str) -> dict[str, Any]:
    from sightline.batch.run import explain_all

    begun = time.perf_counter()
    explain_all(table, model("small"), output=output)
    return {"seconds": time.perf_counter() - begun, "peak": _peak()}


def _plan(table: str, output: str) -> dict[str, Any]:
    """To the first batch of a run, which then ends as if the power had gone."""
    from sightline.batch.run import explain_all

    adapter, begun = model("small"), time.perf_counter()

    def watch(_done: int, _of: int, _errors: int) -> None:
        print(json.dumps({"seconds": time.perf_counter() - begun, "peak": _peak()}), flush=True)
        os._exit(0)

    explain_all(table, adapter, output=output, resume=True, watch=watch)
    return {}


def on_ray() -> Table:
    """One worker of Ray and two, with one core each, beside a local run; from the call to its end."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        made = Path(place, "pictures")
        made.mkdir()
        folder = str(pictures(made))
        for name, engine, workers in (
            ("local", "local", 1),
            ("Ray, one worker", "ray", 1),
            ("Ray, two workers", "ray", 2),
        ):
            found = alone("ray", folder, str(Path(place, f"{engine}{workers}")), engine, str(workers))
            rate = f"{_PICTURES / found['computing']:.1f}" if found["computing"] else ""
            rows.append([name, f"{found['seconds']:.1f} s", f"{found['seconds'] - found['computing']:.1f} s", rate])
            print(rows[-1], flush=True)
    return [
        "resnet50, 200 pictures, one core each",
        "time",
        "of it before the first and after the last picture",
        "pictures/s",
    ], rows


def _ray(folder: str, output: str, engine: str, workers: str) -> dict[str, Any]:
    from sightline.batch import cluster
    from sightline.batch.run import explain_all

    torch.set_num_threads(1)
    cluster._CORES = 1
    marks: list[tuple[int, float]] = []
    adapter, begun = model("torchvision:resnet50"), time.perf_counter()
    explain_all(
        folder,
        adapter,
        output=output,
        engine=engine,
        workers=int(workers),
        shard_size=8,
        watch=lambda done, _of, _errors: marks.append((done, time.perf_counter())),
    )
    return {"seconds": time.perf_counter() - begun, "computing": _PICTURES / _rate(marks)}


def speed_of_runs(rounds: int) -> list[Table]:
    """Tables: (head, rows)."""
    return [beside_forward(("bundled", "torchvision:resnet50"), rounds), memory_and_plan(), on_ray()]


_ALONE = {"memory": _memory, "plan": _plan, "ray": _ray}

if __name__ == "__main__":
    print(json.dumps(_ALONE[sys.argv[1]](*sys.argv[2:])))
