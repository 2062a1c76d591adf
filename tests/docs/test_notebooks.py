"""The notebooks of docs/learn run from top to bottom, and the committed copies are their sources, executed."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

LEARN = Path(__file__).parents[2] / "docs" / "learn"
MADE = runpy.run_path(str(LEARN.parent / "notebooks.py"))
ADVICE = "run: python docs/notebooks.py"
# What a path on somebody's computer begins with, and where libraries lie.
A_PATH = re.compile(r"(?<![\w.:/])/(home|root|tmp|usr|opt|var|mnt|work|Users|private)/|\b[A-Z]:\\|site-packages")
LARGEST = 1_200_000  # bytes
LONG = {"when-it-guesses", "cats-and-dogs", "beyond-grad-cam"}  # half a minute and more each: the slow tests run them

# jupyter_client and zmq have advice of their own for whoever starts a kernel.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(params=MADE["sources"](), ids=lambda source: source.stem)
def source(request: pytest.FixtureRequest) -> Path:
    """One notebook's source."""
    found: Path = request.param
    return found


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """The same in a folder of its own, where what it writes does no harm."""
    for one in LEARN.glob("*.py"):
        shutil.copy(one, tmp_path)
    return tmp_path / source.name


def committed(source: Path) -> Any:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def words(output: Any) -> str:
    """All of an output but its pictures."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return json.dumps([output.get("text", ""), data], ensure_ascii=False)


def test_a_committed_notebook_has_exactly_the_cells_of_its_source(source: Path) -> None:
    written = [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]
    assert [(cell.cell_type, cell.source) for cell in committed(source).cells] == written, ADVICE
    assert all(cell.execution_count for cell in committed(source).cells if cell.cell_type == "code"), ADVICE


def test_a_committed_notebook_holds_no_error_and_nothing_of_the_machine_that_ran_it(source: Path) -> None:
    found = outputs(committed(source))
    assert found
    for output in found:
        assert output.output_type != "error", output
        assert output.get("name") != "stderr", f"a warning reached the reader: {output.text[:500]}"
        assert not (path := A_PATH.search(words(output))), words(output)[max(0, path.start() - 80) : path.end() + 80]
    assert committed(source).metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(not cell.metadata for cell in committed(source).cells)


def test_a_committed_notebook_is_small_enough_to_open_on_a_phone(source: Path) -> None:
    assert source.with_suffix(".ipynb").stat().st_size < LARGEST


def test_each_notebook_ends_with_questions_answers_and_where_to_read_on(source: Path) -> None:
    last = jupytext.read(source).cells[-1].source
    assert last.count("<details><summary>") == last.count("</details>") == 3
    for target in re.findall(r"\]\(([^)#]+)", "\n".join(cell.source for cell in jupytext.read(source).cells)):
        assert (LEARN / target).exists(), f"{source.name} links to {target}, which is not there"


@pytest.mark.parametrize("source", [one for one in MADE["sources"]() if one.stem not in LONG], ids=lambda one: one.stem)
def test_a_notebook_runs_with_the_shipped_pictures(copied: Path) -> None:
    assert pictures_of(MADE["executed"](copied))


@pytest.mark.slow
def test_a_notebook_runs_with_photographs_of_the_readers_own(copied: Path, request: pytest.FixtureRequest) -> None:
    """Where there are none with the shipped ones, so that each notebook is run in any case."""
    try:
        photos = str(request.getfixturevalue("shared_data"))
    except pytest.skip.Exception:
        photos = ""
    assert pictures_of(MADE["executed"](copied, photos=photos))


def pictures_of(notebook: Any) -> list[Any]:
    """Those that it draws; none of its outputs is an error."""
    found = outputs(notebook)
    assert all(one.output_type != "error" for one in found)
    return [one for one in found if any(kind.startswith("image/") for kind in one.get("data", {}))]


def test_two_runs_give_cells_the_same_names_and_another_source_other_names() -> None:
    def named(*texts: str) -> list[str]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in texts])
        return [cell.id for cell in MADE["tidied"](notebook).cells]

    assert named("a", "b") == named("a", "b")
    assert len(set(named("a", "b", "a"))) == 3
    assert named("a", "b")[0] != named("c", "b")[0]


def test_what_is_printed_in_pieces_of_chance_becomes_one_output() -> None:
    pieces = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a", "b\n")]
    cell = nbformat.v4.new_code_cell("print()", outputs=pieces)
    (found,) = MADE["tidied"](nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert found.text == "ab\n"
