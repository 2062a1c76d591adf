"""One small network of each transformer family gets a grid or a refusal, as the table in the docs says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TABLE = runpy.run_path(str(DOCS / "transformer_table.py"))
PAGE = (DOCS / "transformers.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("family", TABLE["FAMILIES"])
def test_the_table_says_what_running_shows(family: str) -> None:
    line = TABLE["line"](family)
    assert line in PAGE
    assert "| refused" not in line.rpartition("|")[0].rpartition("|")[0], "every family has a layer with a grid"


def test_the_table_names_no_other_family() -> None:
    rows = [line.split("|")[1].strip() for line in PAGE[PAGE.index(TABLE["BEGIN"].strip()) :] if line.startswith("| ")]
    assert rows == ["family", *TABLE["FAMILIES"]]
