"""What docs/audit.md says to type runs, and its rules are those of the code."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import sightline
from made_runs import make_run
from sightline.audit import trials, verdict
from sightline.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
DEMO = Path(sightline.__file__).parent / "data" / "demo"


@pytest.mark.slow
def test_commands_and_python_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for at in range(44):
        photo = DEMO / ("cat.jpg", "coffee.jpg")[at % 2]
        for place in ("photos", "masks"):
            (tmp_path / place).mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / "photos" / f"{at}.jpg")
        with Image.open(photo) as opened:
            Image.new("L", opened.size, 255).save(tmp_path / "masks" / f"{at}.png")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).splitlines()
    assert len(lines) == 6
    for line in lines[1:]:
        words = shlex.split(line.partition("#")[0].replace("my.safetensors", "bundled"))
        if words[-2:] == ["run-before", "run-after"]:
            for name in words[-2:]:
                make_run(tmp_path / name)
        if words[1] == "audit":
            words += ["--force", *(["--budget", "300"] if "--model" in words else [])]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            main()
        allowed = (0, None, 1) if "--fail-on" in words else (0, None)
        assert end.value.code in allowed, capsys.readouterr().err
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(block, "docs/audit.md", "exec"), {})  # noqa: S102
    assert (tmp_path / "findings" / "report.html").exists()


def test_the_rules_of_the_page_are_those_of_the_code() -> None:
    assert f"p is at most {verdict.ALPHA:.0%}".replace("5%", "5 %") in PAGE
    assert f"at least {100 * verdict.EFFECT:.0f} points" in PAGE
    assert f"by {100 * verdict.STRONG:.0f} points or more" in PAGE
    assert f"fewer than {verdict.LEAST} pictures of the class" in PAGE
    assert f"{trials.EACH} pictures in each arm" in PAGE
