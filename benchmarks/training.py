"""A training beside the inference of its trunk: time of an epoch, accuracy, and memory for few and for many pictures."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cats-vs-dogs"
_COPIES = (1, 3)


def speed_of_training(rounds: int) -> list[tuple[list[str], list[list[str]]]]:
    """Tables: (head, rows). Empty where the shared pictures are not there."""
    if not DATA.is_dir():
        return []
    found = [_once() for _ in range(rounds)]
    first = sorted(one["features"] / one["inference"] for one in found)
    later = sorted(one["later"] / one["inference"] for one in found)
    middle = rounds // 2
    last = found[-1]

    def shown(values: list[float]) -> str:
        return f"{values[middle]:.3f} ({values[0]:.3f}-{values[-1]:.3f})"

    epochs = (
        ["600 + 200 cats and dogs, the bundled model, frozen trunk", "time", "of the trunk's inference"],
        [
            ["the trunk's inference on all of them, read by the same threads", f"{last['inference']:.1f} s", "1"],
            ["the first epoch: features, kept in a file, and the head's first steps", f"{last['features']:.1f} s", shown(first)],
            ["a later epoch, with its maps and film strip", f"{last['later']:.2f} s", shown(later)],
            [f"all of `sightline train`, 10 epochs: {last['headline']}", f"{last['whole']:.0f} s", ""],
        ],
    )  # fmt: skip
    memory = []
    for copies in _COPIES:
        out = subprocess.run([sys.executable, __file__, str(copies)], check=True, capture_output=True, text=True).stdout
        memory.append([f"{800 * copies:,} pictures", f"{float(out):.0f} MB"])
        print(memory[-1], flush=True)
    return [epochs, (["a whole training in a process of its own", "peak of the resident memory"], memory)]


def _once() -> dict[str, float]:
    from sightline.train import fit
    from sightline.train.batches import Batches, of_pictures
    from sightline.train.folders import read_folders
    from sightline.train.network import with_new_head
    from sightline.train.training import Progress

    folders = read_folders(DATA)
    network = with_new_head("bundled", folders.classes)
    pictures = (*folders.train, *folders.val)
    batches = Batches(len(pictures), 16, of_pictures(pictures, network.adapter.preprocess))
    module = network.module.eval()
    began = time.perf_counter()
    with torch.inference_mode():
        for x, _ in batches:
            module(x)
    inference = time.perf_counter() - began
    at: dict[str, float] = {}

    def watch(progress: Progress) -> None:
        if progress.what == "loading" and progress.done:
            at["loaded"] = time.perf_counter()
        if progress.epoch is not None and progress.epoch.epoch == 1:
            at["first"] = time.perf_counter()

    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        found = fit(DATA, output=Path(place) / "run", watch=watch)
        whole = time.perf_counter() - began
    later = [one.seconds for one in found.history[1:]]
    record = {"inference": inference, "features": at["first"] - at["loaded"], "later": sum(later) / len(later)}
    print(record, whole, flush=True)
    return record | {"whole": whole, "headline": found.headline}


def peak(copies: int) -> float:
    """Megabytes of this process after a training on so many copies of the pictures."""
    import resource

    from sightline.train import fit

    with tempfile.TemporaryDirectory() as place:
        for one in sorted(DATA.glob("*/*/*.jpg")):
            for copy in range(copies):
                link = Path(place, "data", *one.parts[-3:-1], f"{copy}-{one.name}")
                link.parent.mkdir(parents=True, exist_ok=True)
                # Behind the end of a JPEG anything may stand, and so each copy has a content of its own.
                link.write_bytes(one.read_bytes() + bytes([copy]))
        fit(Path(place, "data"), output=Path(place, "run"), epochs=1, loggers=[])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(peak(int(sys.argv[1])))
