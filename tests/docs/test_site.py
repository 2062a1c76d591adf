"""The site builds without a warning and asks nothing of another computer; what stands beside it leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import sightline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a process of its own, as `make docs` does."""
    place = tmp_path_factory.mktemp("site")
    command = re.search(r"sphinx-build (.+?) docs build/docs", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert command is not None
    flags = [one.replace("build/doctrees", str(place / "doctrees")) for one in command.group(1).split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *flags, "docs", str(place / "html")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return place / "html"


def test_the_site_is_built_without_a_warning_and_has_every_page(site: Path) -> None:
    sources = [one.relative_to(ROOT / "docs") for one in (ROOT / "docs").rglob("*") if one.suffix in {".md", ".ipynb"}]
    assert len(sources) > 80
    assert [one for one in sources if not (site / one.with_suffix(".html")).exists()] == []


def test_no_page_of_the_site_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"'](?:https?:)?//"
        r"|<link\b[^>]*\bhref=[\"'](?:https?:)?//"
        r"|@import\s+[\"']?(?:url\()?[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//"
    )
    for page in (*site.rglob("*.html"), *site.rglob("*.css")):
        found = loads.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.relative_to(site)}: {found.group() if found else ''}"


def test_links_of_the_list_for_language_models_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) > 15
    assert [one for one in links if not (ROOT / one).exists()] == []


def test_the_skill_names_itself_and_its_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "skills" / "sightline" / "SKILL.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["name"] == "sightline"
    assert len(head["description"]) < 1024
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes((ROOT / "src" / "sightline" / "data" / "demo" / "cat.jpg").read_bytes())
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(textwrap.dedent(" " * 3 + block.lstrip()), "SKILL.md", "exec"), {})  # noqa: S102
    assert (tmp_path / "why.png").exists()
    for name in re.findall(r"sightline\.(\w+)", text):
        assert name in sightline.__all__ or name == "SightlineError", name


def test_the_citation_and_the_forms_for_issues_can_be_read() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == sightline.__version__
    assert cited["cff-version"] == "1.2.0"
    assert cited["license"] == "Apache-2.0"
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name != "config.yml":
            assert form["name"]
            assert form["description"]
            assert all("label" in one["attributes"] for one in form["body"])
