"""`sightline report` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from commands import Run
from made_runs import make_run


def test_a_report_takes_the_runs_name_and_is_replaced_only_when_asked(cli: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    found = cli("report", "run")
    assert (found.code, found.out) == (0, "report of 10 pictures: run-report.html\n")
    assert (tmp_path / "run-report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    again = cli("report", "run")
    assert again.code == 2
    assert "run-report.html exists; --force replaces it" in again.err
    assert cli("report", "run", "--force").code == 0


def test_an_audit_comes_first(cli: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "audit").mkdir()
    audit = {"schema": "sightline.audit/1", "outcome": "suspected", "says": "It may rely on the corner."}
    (tmp_path / "audit" / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    assert cli("report", "run", "-o", "page.html", "--audit", "audit").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 0 < page.index("It may rely on the corner.") < page.index('<h2 id="pictures"')


def test_what_is_no_run_or_no_audit_is_one_sentence(cli: Run, tmp_path: Path) -> None:
    missing = cli("report", "nowhere")
    assert missing.code == 2
    assert "nowhere is no run of `sightline batch`" in missing.err
    make_run(tmp_path / "run")
    other = cli("report", "run", "--audit", "run")
    assert other.code == 2
    assert "audit.json can't be read" in other.err
    assert not (tmp_path / "run-report.html").exists()
    for one in (missing, other):
        assert "Traceback" not in one.err
