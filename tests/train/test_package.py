"""The names of sightline.train: each is there when it is used, documented, and the same for type checkers."""

from __future__ import annotations

import ast
import inspect
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest

import sightline.train


@pytest.mark.parametrize("name", sightline.train.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    found = getattr(sightline.train, name)
    if not isinstance(found, float):
        document = inspect.getdoc(found) or ""
        assert document
        assert not document.startswith(f"{name}("), f"{name} has only the docstring that @dataclass makes up"
    assert name in dir(sightline.train)


@pytest.mark.parametrize("name", ["HeatmapCallback", "KerasHeatmapCallback"])
def test_every_argument_of_a_callback_is_documented(name: str) -> None:
    found = getattr(sightline.train, name)
    block = (inspect.getdoc(found) or "").partition("Args:")[2]
    missing = [one for one in inspect.signature(found).parameters if f"{one}:" not in block]
    assert missing == []


def test_type_checkers_see_the_same_public_names() -> None:
    module = ast.parse(Path(str(sightline.train.__file__)).read_text(encoding="utf-8"))
    (block,) = [node for node in module.body if isinstance(node, ast.If)]
    lines = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in lines for alias in node.names}
    assert seen == {name: f"sightline.train.{home}" for name, home in sightline.train._HOME.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'HeatMapCallback'"):
        sightline.train.HeatMapCallback  # noqa: B018
