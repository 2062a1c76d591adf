"""Every block of the pages of docs/how-to and docs/errors runs, and every message shown is the one that comes."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sightline import errors
from sightline.cli import main
from sightline.methods import registry as methods
from sightline.metrics import registry as metrics
from sightline.models import load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DEMO = ROOT / "src" / "sightline" / "data" / "demo"
HOW_TO = sorted(one for one in (DOCS / "how-to").glob("*.md") if one.name != "index.md")
ERRORS = sorted(one for one in (DOCS / "errors").glob("*.md") if one.name != "index.md")
CLASSES = [one for one in vars(errors).values() if inspect.isclass(one) and one.__module__ == errors.__name__]
# Blocks that begin with the name of a file are that file; what follows Python as text is what it prints.
BLOCK = re.compile(
    r"^```(?P<kind>python|bash|sh)\n(?P<code>(?:#![^\n]*\n)?(?:# (?P<file>\S+\.\w+)\n)?.*?)^```\n(?:\n```text\n(?P<prints>.*?)^```\n)?",
    re.M | re.S,
)
# A snippet, the packages that it must do without, and the message that it ends with.
SNIPPET = re.compile(
    r"^(?:<!-- without: (?P<without>[^\n]*) -->\n)?```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<message>.*?)^```\n)?",
    re.M | re.S,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the photographs that the pages speak of; what a page registers is forgotten behind it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(methods, "_REGISTRY", dict(methods._REGISTRY))
    monkeypatch.setattr(metrics, "_REGISTRY", dict(metrics._REGISTRY))
    known = dict(load.SOURCES)
    shutil.copy(DEMO / "cat.jpg", tmp_path)
    shutil.copy(DEMO / "coffee.jpg", tmp_path)
    for number, photo in enumerate(sorted(DEMO.glob("*.jpg")) * 2):
        (tmp_path / "photos" / photo.stem).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / "photos" / photo.stem / f"{number}.jpg")
    yield tmp_path
    load.SOURCES.clear()
    load.SOURCES.update(known)
    for name in [
        name for name, one in sys.modules.items() if str(getattr(one, "__file__", "")).startswith(str(tmp_path))
    ]:
        del sys.modules[name]


# --------------------------------------------------------------------------------------------------------------- how to


@pytest.mark.parametrize(
    "page",
    [pytest.param(one, marks=[pytest.mark.slow] if one.stem == "cluster" else []) for one in HOW_TO],
    ids=[one.stem for one in HOW_TO],
)
def test_every_block_of_a_how_to_runs_in_the_order_of_the_page(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known: dict[str, Any] = {"__name__": page.stem}
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["file"]:
            (folder / block["file"]).write_text(block["code"], encoding="utf-8")
            if block["kind"] == "sh":
                submitted(folder / block["file"])
        elif block["kind"] == "python":
            capsys.readouterr()
            exec(compile(block["code"], page.name, "exec"), known)  # noqa: S102
            if block["prints"]:
                check_shown(block["prints"], capsys.readouterr().out)
        else:
            for line in commands(block["code"]):
                if "--engine ray" not in line:  # which takes 20 s to begin and end, and has a slow test
                    run(line, monkeypatch, capsys)
    if page.stem == "cluster":
        each_picture_once(folder / "all")


def check_shown(shown: str, said: str) -> None:
    """The same but for white space; "..." on a page stands for what differs between machines and versions of others."""
    shown, said = (" ".join(text.split()) for text in (shown, said))
    pattern = ".*".join(re.escape(part) for part in shown.split("..."))
    assert re.fullmatch(pattern, said), f"shown: {shown}\nsaid:  {said}"


def commands(block: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def run(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One command of a page: ours in this process, others in one of their own."""
    words = shlex.split(line)
    if words[0] == "python":
        in_a_process(words[1:])
        return
    assert words[0] == "sightline", f"no reader can run this offline: {line}"
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert not end.value.code, f"{line}: {shown.err}"
    assert shown.out, line


def in_a_process(words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one), **more}


def submitted(script: Path) -> None:
    """What SLURM does with a script of an array: runs it once for each task, with the task's number."""
    (first, last) = re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", script.read_text(encoding="utf-8"), re.M)[0]
    programs = script.parent / "programs"
    programs.mkdir()
    (programs / "sightline").write_text(f'#!/bin/sh\nexec {sys.executable} -m sightline "$@"\n')
    (programs / "sightline").chmod(0o755)
    for task in range(int(first), int(last) + 1):
        told = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "1"}
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(script)], capture_output=True, text=True, env=environment(PATH=path, **told), check=False
        )
        assert done.returncode == 0, done.stderr


def each_picture_once(merged: Path) -> None:
    """What the tasks of the array computed together is what one run would have."""
    import pyarrow.parquet as pq

    ids = pq.read_table(merged / "part-00000.parquet", columns=["id"]).column("id").to_pylist()
    assert sorted(ids) == sorted(one.relative_to("photos").as_posix() for one in Path("photos").rglob("*.jpg"))


@pytest.mark.slow
def test_ray_explains_the_pictures_of_the_cluster_page(folder: Path) -> None:
    pytest.importorskip("ray")
    blocks = BLOCK.finditer((DOCS / "how-to" / "cluster.md").read_text(encoding="utf-8"))
    lines = [line for block in blocks if block["kind"] == "bash" for line in commands(block["code"])]
    (line,) = (line for line in lines if "--engine ray" in line)
    in_a_process(["-m", *shlex.split(line)])  # of its own, because Ray's parts talk over sockets
    assert (folder / "by-ray" / "summary.json").exists()


# --------------------------------------------------------------------------------------------------------------- errors


def name_of(page: Path) -> str:
    return "".join(part.capitalize() for part in page.stem.split("-"))


def test_each_error_has_a_page_and_each_page_an_error() -> None:
    assert {name_of(page) for page in ERRORS} == {one.__name__ for one in CLASSES}
    for page in ERRORS:
        assert page.read_text(encoding="utf-8").startswith(f"# {name_of(page)}\n")


def test_the_table_of_errors_says_of_each_what_its_docstring_says() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\((.*)\) \| (.*) \| (.*) \|$", (DOCS / "errors" / "index.md").read_text(), re.M)
    assert [name for name, *_ in rows] == [one.__name__ for one in CLASSES]
    for (_, page, also, means), one in zip(rows, CLASSES, strict=True):
        assert name_of(Path(page)) == one.__name__
        bases = {base.__name__ for base in one.__bases__} - {"SightlineError"}
        assert set(re.findall(r"\w+", also)) == bases
        assert means == (inspect.getdoc(one) or "").partition("\n")[0]


@pytest.mark.parametrize("page", ERRORS, ids=lambda page: page.stem)
def test_the_messages_on_the_page_of_an_error_are_those_that_come(page: Path, folder: Path) -> None:
    known: dict[str, Any] = {"__name__": page.stem}
    snippets = list(SNIPPET.finditer(page.read_text(encoding="utf-8")))
    provoked = [one for one in snippets if one["message"]]
    assert 3 <= len(provoked) <= 6
    for snippet in snippets:
        with lacking(*(snippet["without"] or "").split()):
            if snippet["message"] is None:
                exec(compile(snippet["code"], page.name, "exec"), known)  # noqa: S102
                continue
            with pytest.raises(errors.SightlineError) as caught:
                exec(compile(snippet["code"], page.name, "exec"), known)  # noqa: S102
        assert type(caught.value) is getattr(errors, name_of(page))
        said = f"{name_of(page)}: {caught.value}".replace(f"{folder}/", "")
        check_shown(snippet["message"], said)


@contextmanager
def lacking(*packages: str) -> Iterator[None]:
    """As where these packages aren't installed."""
    hidden = [name for name in sys.modules if name.partition(".")[0] in packages]
    kept = {name: sys.modules.pop(name) for name in hidden}
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(kept)
