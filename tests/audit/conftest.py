"""Runs of small networks that have learned a shortcut, each made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import planted_runs

Made = tuple[Path, Any, Any]


@pytest.fixture(scope="session")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Its folder, with run, photos and masks; the run; the model."""
    folder = tmp_path_factory.mktemp("mark")
    run, adapter, accuracy = planted_runs.make_run("mark", 0, folder)
    assert accuracy > 0.95
    return folder, run, adapter
