"""What the package says of itself, and the page about it."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

from sightline import testing

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")


def test_it_needs_nothing_of_sightline_but_the_errors() -> None:
    for file in Path(testing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                own = name == "sightline.errors" or name.startswith("sightline.testing.")
                assert own or name.partition(".")[0] in {*sys.stdlib_module_names, "numpy", "torch"}, (
                    f"{file.name}: {name}"
                )


def test_all_is_complete() -> None:
    public = {
        name
        for name, value in vars(testing).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert set(testing.__all__) == public


@pytest.mark.parametrize("name", [name for name in testing.__all__ if not name.isupper()])
def test_everything_public_is_documented_with_its_arguments_and_on_the_page(name: str) -> None:
    found = getattr(testing, name)
    document = inspect.getdoc(found) or ""
    assert document
    assert not document.startswith(f"{name}("), "only the docstring that @dataclass makes up"
    if inspect.isfunction(found):
        arguments = document.partition("Args:")[2]
        assert [one for one in inspect.signature(found).parameters if f"{one}:" not in arguments] == []
    assert f"`{name}" in PAGE or f"{name}(" in PAGE


# It trains two networks once more, which test_shortcut.py asks the same questions; the others are test_networks.py's.
@pytest.mark.slow
def test_the_pages_python_runs() -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "docs/testing.md", "exec"), names)  # noqa: S102
