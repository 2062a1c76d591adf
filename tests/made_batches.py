"""Runs of `sightline batch` over pictures of noise: here, and in processes of their own that can be killed."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from sightline.batch import local, run, shards, verification, work  # noqa: F401  so that processes begin with them
from sightline.errors import SightlineError
from sightline.models.adapter import Adapter
from sightline.models.preprocess import standard

LABELS = ("ash", "beech", "cedar", "date", "elm")
PREPROCESS = standard((32, 32), 32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
COUNT, SHARD, BATCH = 24, 8, 4


class Tiny(nn.Module):
    """conv - relu - conv - relu - global average - linear; says what it is fed to whoever listens.

    Args:
        fits: on more pictures than this memory runs out; 0 for any number.
        failure: how that shows.
        blind: gives NaN for a picture that is nearly white.
        listen: a file to which the number of pictures of each forward is added.
        slow_s: how long a forward takes.
    """

    def __init__(
        self,
        fits: int = 0,
        failure: type[Exception] = torch.OutOfMemoryError,
        blind: bool = False,
        listen: str = "",
        slow_s: float = 0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, len(LABELS))
        self.fits, self.failure, self.blind, self.listen, self.slow_s = fits, failure, blind, listen, slow_s

    def forward(self, x: Tensor) -> Tensor:
        if self.listen:
            with open(self.listen, "ab") as heard:
                heard.write(b"%d\n" % len(x))
        time.sleep(self.slow_s)
        if self.fits and len(x) > self.fits:
            raise self.failure("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes")
        if self.blind:
            x = torch.where(x.mean(dim=(1, 2, 3), keepdim=True) > 1.9, torch.nan, x)
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.head(x.mean(dim=(2, 3)))


def tiny(preprocess: Any = PREPROCESS, **how: Any) -> Adapter:
    """The model with weights that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Tiny(**how).eval()
    return sightline.adapt(module, layers=["conv2"], preprocess=preprocess, labels=LABELS, name="tiny")


def make_pictures(folder: Path, count: int = COUNT, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """Photographs of noise, in folders that are classes."""
    random = np.random.default_rng(seed)
    for number in range(count):
        place = folder / LABELS[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(
            place / f"{number:03}.jpg", quality=90
        )
    return folder


def explain(data: Path, output: Path, model: Adapter | None = None, **how: Any) -> sightline.Run:
    """`explain_all` of the small model, in small shards, with one process that reads unless said otherwise."""
    how = {"shard_size": SHARD, "batch_size": BATCH, "workers": 1, **how}
    return run.explain_all(data, model or tiny(), output=output, **how)


def shard_bytes(output: Path) -> dict[str, bytes]:
    """The files of a run's shards by name, all of them."""
    return {one.name: one.read_bytes() for one in sorted((output / "shards").iterdir())}


def tree(folder: Path) -> list[str]:
    """Everything that lies in a folder."""
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


# -------------------------------------------------------------------------------------------------- processes of their own


def begin(
    data: Path,
    output: Path,
    log: Path,
    *,
    dies: tuple[str, int] | None = None,
    model: dict[str, Any] | None = None,
    **how: Any,
) -> ForkServerProcess:
    """A run in a process of its own, which kills itself at the n-th time that it reaches a step.

    It ends with 0, with 2 and the message in `log` for an error of ours, as the command line does, and with 130 for Ctrl-C.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["made_batches"])
    process = context.Process(target=_live, args=(data, output, log, dies, model or {}, how))
    process.start()
    return process


def end(process: ForkServerProcess, seconds: float = 120) -> int:
    """Waits for a process and gives its exit code."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"still running after {seconds} s")
    code = process.exitcode
    process.close()
    return code


def _live(
    data: Path, output: Path, log: Path, dies: tuple[str, int] | None, model: dict[str, Any], how: dict[str, Any]
) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    left = dies[1] if dies else 0

    def reached(step: str) -> None:
        nonlocal left
        readers = " ".join(str(one.pid) for one in psutil.Process().children()) if step == "a batch is done" else ""
        os.write(file, f"reached: {step}\n{readers and f'readers: {readers}'}\n".encode())
        left -= dies is not None and step == dies[0]
        if dies and step == dies[0] and not left:
            os.kill(os.getpid(), signal.SIGKILL)

    for module in (shards, local, run):
        module.reached = reached  # type: ignore[attr-defined]
    code = 0
    try:
        explain(data, output, tiny(**model), **how)
    except SightlineError as error:
        os.write(file, f"sightline: {error}\n".encode())
        code = 2
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def steps(log: Path) -> list[str]:
    """Which steps a run in a process of its own reached."""
    return [line.removeprefix("reached: ") for line in log.read_text().splitlines() if line.startswith("reached: ")]


def readers(log: Path) -> set[int]:
    """The processes that read pictures for it."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("readers: ")]
    return {int(one) for line in lines for one in line.split()[1:]}


def gone(processes: set[int], seconds: float = 2) -> bool:
    """Whether they end in time; a zombie has ended."""
    end = time.monotonic() + seconds
    while any(_runs(one) for one in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
