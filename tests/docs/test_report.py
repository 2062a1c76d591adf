"""What docs/report.md says to type runs."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from made_runs import make_run
from sightline.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")


def test_commands_and_python_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text(json.dumps({"schema": "sightline.audit/1"}), encoding="utf-8")
    for line in "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line.partition("#")[0]))
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, capsys.readouterr().err
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(block, "docs/report.md", "exec"), {})  # noqa: S102
    assert sorted(one.name for one in tmp_path.glob("*.html")) == ["report.html", "run-report.html"]
