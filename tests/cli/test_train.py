"""`sightline train`: what a person reads, what a program reads, and what is refused in one sentence."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import Run

SMALL = ("--model", "timm:resnet10t", "--random-weights", "--size", "64", "--epochs", "2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for at, name in enumerate(("=green", "red one")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(0, 120, (70, 70, 3), dtype=np.uint8)
            pixels[..., 1 - at] += 130
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    (tmp_path / "data" / "red one" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "data"


def test_it_says_what_came_of_it_and_what_to_type_next(cli: Run, data: Path) -> None:
    found = cli("train", data, *SMALL, "-o", "my run")
    assert found.code == 0, found.err
    assert "1 file skipped: red one/broken.png" in found.err
    assert "unseen pictures right" in found.out
    assert found.err.count("epoch ") == 2
    command = next(line for line in found.out.splitlines() if line.startswith("try it: sightline "))
    again = cli(*shlex.split(command.removeprefix("try it: sightline ")))
    assert again.code == 0, again.err
    assert "folder says:" in again.out
    assert cli("layers", "my run").code == 0


def test_json_holds_the_same_for_programs(cli: Run, data: Path) -> None:
    found = cli("train", data, *SMALL, "-o", "run", "--json")
    record = json.loads(found.out)
    assert record["classes"] == ["=green", "red one"]
    assert [one["epoch"] for one in record["history"]] == [1, 2]
    assert record["headline"].startswith("=green / red one: ")
    assert 0 <= record["accuracy"] <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--freeze", "3.5"], "--freeze '3.5'; expected trunk, none, or a number of layers"),
        (["--epochs", "0"], "--epochs"),
        (["--lr", "nan"], "learning_rate is nan"),
        (["--resume"], "no training to resume"),
        (["--model", "torchvision:resnet17"], "resnet18"),
        (["--trainer", "devices"], "--trainer 'devices'"),
        (["--model", "timm:resnet10t", "--weights", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_what_can_not_be_is_one_sentence(cli: Run, data: Path, arguments: list[str], words: str) -> None:
    found = cli("train", data, "-o", "run", *arguments)
    assert found.code == 2
    assert words in found.err
    assert "Traceback" not in found.err
    assert found.out == ""


def test_a_folder_that_is_not_there_is_named(cli: Run) -> None:
    found = cli("train", "nowhere")
    assert found.code == 2
    assert "nowhere" in found.err
