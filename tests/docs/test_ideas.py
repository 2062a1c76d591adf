"""The pages of docs/ideas: what they say to type runs and shows what they say, and their tables and pictures are what is computed."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline
from sightline.cli import main
from sightline.testing import counts_red, ignores_distractor, looks_left

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
IDEAS = DOCS / "ideas"
DEMO = ROOT / "src" / "sightline" / "data" / "demo"
# A block that runs, and what it shows, when that follows.
BLOCK = re.compile(r"```(python|bash)\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.S)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PAGES = sorted(one.name for one in IDEAS.glob("*.md") if BLOCK.search(one.read_text(encoding="utf-8")))


def read(page: str) -> str:
    return (IDEAS / page).read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the pictures that the pages speak of."""
    for name in ("cat.jpg", "coffee.jpg", "rocket.jpg"):
        shutil.copy(DEMO / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "idea_tables.py"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_and_shows_what_it_says(folder: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = {"__name__": page}
    for kind, code, wanted in BLOCK.findall(read(page)):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            if kind == "python":
                exec(compile(code, page, "exec"), known)  # noqa: S102
            else:
                for line in code.splitlines():
                    command(line, monkeypatch)
        assert alike(shown.getvalue(), wanted) if wanted else kind == "bash" or not shown.getvalue(), shown.getvalue()


def command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(line.partition("#")[0]))
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, line


def alike(shown: str, wanted: str) -> bool:
    """The same words, and numbers that differ by no more than another processor's rounding could make them."""
    numbers = [np.array([float(one) for one in NUMBER.findall(text)]) for text in (shown, wanted)]
    words = [NUMBER.sub("", text).split() for text in (shown, wanted)]
    return words[0] == words[1] and np.allclose(*numbers, rtol=0.05, atol=0.03)


def test_other_words_or_figures_are_not_what_a_page_says() -> None:
    assert alike("a map of 0.97, 49 %\n", "a map of 0.98, 49 %")
    assert not alike("a map of 0.50\n", "a map of 0.60\n")
    assert not alike("no map of 0.50\n", "a map of 0.50\n")


def test_every_method_and_metric_has_its_definition_explained() -> None:
    page = read("definitions.md")
    for name in sightline.list_methods():
        assert f"[{name}](../methods/{name.replace('++', '-plus-plus')}.md)" in page, name
    first = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    named = {one.strip() for cell in first for one in re.split(r"[:,]", cell)}
    assert set(sightline.list_metrics()) <= named


def test_every_warning_of_the_list_is_one_that_sightline_gives() -> None:
    source = "".join(one.read_text(encoding="utf-8") for one in (ROOT / "src" / "sightline").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # sentences that are written over two lines
    rows = read("when-not-to-believe.md").partition("## All warnings")[2].splitlines()
    listed = [one for row in rows if row.startswith("| `") for one in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(listed) > 30
    assert [one for one in listed if one not in source] == []


def test_every_warning_of_any_map_is_in_the_list() -> None:
    listed = re.findall(r"`([^`]+)`", read("when-not-to-believe.md").partition("## All warnings")[2])
    for module in ("methods/notices.py", "flow.py"):
        text = (ROOT / "src" / "sightline" / module).read_text(encoding="utf-8")
        text = re.sub(r'"\s*\n\s*f?"', "", text)
        for said in re.findall(r'(?:said|left_out)\.append\(\s*f?"((?:[^"{}]|\{[^{}]*\})+)"', text):
            fixed = re.sub(r"\{[^{}]*\}", "", said)
            if len(fixed) > 12:  # the others are made of names alone
                assert any(one in said for one in listed), said


def test_the_table_of_layers_is_what_is_computed(tables: dict[str, Any]) -> None:
    assert alike(tables["layers"](), tables["written"]("layers")), "run: python docs/idea_tables.py layers"


def test_the_table_of_planted_truth_is_what_is_computed(tables: dict[str, Any]) -> None:
    rows = {row.split("|")[1].strip(): row for row in tables["written"]("planted").splitlines()[2:]}
    assert set(rows) == {"*heat spread evenly*", *(tables["link"](name) for name in tables["asked"]())}
    for name in ("grad-cam", "hires-cam", "eigen-cam", "score-cam", "occlusion", "saliency"):
        cells = [cell.strip() for cell in rows[tables["link"](name)].split("|")[2:-1]]
        for make, at in ((looks_left, 0), (counts_red, 1), (ignores_distractor, 3)):
            made = make()
            x = made.pictures(tables["PICTURES"], 0)
            found = tables["_inside"](name, made.module, x, made.truth(x))
            assert alike(found, cells[at]), f"{name}: run: python docs/idea_tables.py planted"


def test_the_table_of_photographs_has_a_row_for_each_method_with_its_cost(tables: dict[str, Any]) -> None:
    rows = {row.split("|")[1].strip(): row.split("|") for row in tables["written"]("photographs").splitlines()[2:]}
    assert set(rows) == {tables["link"](name) for name in tables["asked"]()}
    looked = sightline.look(DEMO / "cat.jpg")
    for name in ("grad-cam", "saliency", "occlusion"):
        heatmap = sightline.explain(looked, method=name)
        assert heatmap.origin is not None
        assert rows[tables["link"](name)][2].strip() == f"{heatmap.origin.cost:,}"


def test_the_pictures_of_the_pages_are_those_that_are_there() -> None:
    named = {name for page in IDEAS.glob("*.md") for name in re.findall(r"images/(ideas-[\w-]+\.jpg)", read(page.name))}
    assert named == {one.name for one in (DOCS / "images").glob("ideas-*.jpg")}
    for name in named:
        assert (DOCS / "images" / name).stat().st_size < 250_000, name


def test_the_pictures_of_the_pages_are_what_the_script_draws() -> None:
    made = runpy.run_path(str(DOCS / "idea_figures.py"))
    drawn = {**made["steps"](), "grid": made["grid"](), "scales": made["scales"](), "classes": made["classes"]()}
    for name, picture in drawn.items():
        with Image.open(DOCS / "images" / f"ideas-{name}.jpg") as kept:
            small = picture.resize(kept.size, Image.Resampling.LANCZOS)
            apart = np.abs(np.asarray(small, float) - np.asarray(kept.convert("RGB"), float)).mean()
        assert apart < 4, f"{name}: run: python docs/idea_figures.py"
