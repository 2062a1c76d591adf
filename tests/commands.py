"""The command line as its tests run it: in this process, or as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SIGHTLINE = [sys.executable, "-c", "from sightline.cli import main; main()"]


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Result]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A real process of its own."""
    environment = {**os.environ, "PYTHONWARNINGS": "error", **options.pop("env", {})}
    return subprocess.Popen(
        [*SIGHTLINE, *map(str, arguments)], env=environment, text=True,
        stdout=options.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out or "", err)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
