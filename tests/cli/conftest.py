"""`cli`: the command line in this process, with the bundled model loaded once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import sightline
from commands import Result, Run
from sightline.cli import main
from sightline.models import load as loading
from sightline.models.adapter import Adapter


@pytest.fixture(scope="module")
def bundled() -> Adapter:
    return loading.load_model()


@pytest.fixture
def cli(bundled: Adapter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `sightline ...` in this process, in an empty folder, with the bundled model loaded already."""
    real = sightline.load_model  # by its public name, which keeps what it first was

    def quick(model: Any = "bundled", **options: Any) -> Adapter:
        return bundled if model == "bundled" and not any(options.values()) else real(model, **options)

    monkeypatch.setattr(loading, "load_model", quick)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["sightline", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return Result(end.value.code if isinstance(end.value.code, int) else int(bool(end.value.code)), *shown)

    return run
