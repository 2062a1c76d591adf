"""`sightline audit` as a person and a pipeline meet it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import planted_runs
import sightline
from commands import Run
from made_runs import make_run

DEMO = Path(sightline.__file__).parent / "data" / "demo"


def test_a_run_of_few_pictures_has_no_verdict_and_fails_no_pipeline_silently(cli: Run, tmp_path: Path) -> None:
    for photo in DEMO.glob("*.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / "photos")
    sightline.explain_all(tmp_path / "photos", output=tmp_path / "run", workers=1)
    found = cli("audit", "run")
    assert found.code == 0
    assert found.out.startswith("Too few pictures to claim anything: no class has 20.\n")
    assert "note: Nothing was tried: no class has enough pictures, or the budget is too small for one." in found.out
    assert "to look at: run-audit/report.html" in found.out
    assert (tmp_path / "run-audit" / "report.html").exists()
    refused = cli("audit", "run")
    assert (refused.code, "run-audit exists; --force replaces it" in refused.err) == (2, True)
    pipeline = cli("audit", "run", "--force", "--fail-on", "shortcut")
    assert pipeline.code == 2
    assert "--fail-on shortcut: nothing could be tried, so that there is no verdict" in pipeline.err
    record = json.loads(cli("audit", "run", "--force", "--json").out)
    assert (record["schema"], record["outcome"]) == ("sightline.audit/1", "too few")


def test_what_cant_be_audited_is_one_sentence(cli: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    for arguments, words in (
        (["nowhere"], "nowhere is no run of `sightline batch`"),
        (["run", "--fail-on", "anything"], "--fail-on anything; expected shortcut or suspected"),
        (["run", "run", "run"], "3 runs are given; expected one to audit, or two to compare"),
        (["run", "run", "--fail-on", "shortcut"], "--fail-on is for the audit of one run"),
        (["run", "--method", "rise"], "the run has no maps of 'rise'; expected one of grad-cam, eigen-cam"),
        (["run", "--masks", "nowhere"], "nowhere is no folder of masks"),
        (["run", "--boxes", "nowhere.csv"], "nowhere.csv can't be read as a CSV file"),
    ):
        found = cli("audit", *arguments)
        assert found.code == 2, arguments
        assert words in found.err
        assert "Traceback" not in found.err
        assert not (tmp_path / "run-audit").exists()


def test_two_runs_are_compared(cli: Run, tmp_path: Path) -> None:
    names = [f"{at:02}.png" for at in range(30)]
    make_run(tmp_path / "before", names, failed=())

    def other(row: dict[str, Any]) -> None:
        row["predictions"] = [{"index": 1, "label": "cat", "probability": 0.9}]

    make_run(tmp_path / "after", names, failed=(), change=other)
    found = cli("audit", "before", "after")
    assert found.code == 0, found.err
    assert "30 pictures in both runs, maps of grad-cam; second minus first" in found.out
    assert "+100% right answers" in found.out
    record = json.loads(cli("audit", "before", "after", "--json", "-o", "moved").out)
    assert record["classes"][0]["answers"] == 1.0
    assert record == json.loads((tmp_path / "moved" / "moved.json").read_text())


@pytest.mark.slow
def test_a_shortcut_stops_a_release_and_a_clean_model_does_not(cli: Run, tmp_path: Path) -> None:
    for kind in ("mark", "clean"):
        module, _ = planted_runs.trained(kind, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter itself
            torch.onnx.export(
                module, (torch.zeros(2, 3, 48, 48),), tmp_path / f"{kind}.onnx", dynamo=True, external_data=False, verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
        planted_runs.save(planted_runs.pictures(kind, 160, 77), tmp_path / kind)
        (tmp_path / "names.txt").write_text("\n".join(planted_runs.NAMES))
        model = (
            "--model",
            f"{kind}.onnx",
            "--class-names",
            "names.txt",
            "--preprocess",
            "size=48",
            "--preprocess",
            "resize=48",
        )
        model += ("--preprocess", "mean=0,0,0", "--preprocess", "std=1,1,1")
        made = cli("batch", kind, "-o", f"{kind}-run", *model, "--workers", 1)
        assert made.code == 0, made.err
        found = cli("audit", f"{kind}-run", *model, "--fail-on", "shortcut")
        assert found.code == (1 if kind == "mark" else 0), found.out + found.err
        if kind == "mark":
            assert found.out.startswith("The model goes by a shortcut for 'red'.\n")
            assert "the top left" in found.out
            assert "What to do:" in found.out


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path, mark_for_cli: tuple[Path, str]) -> None:
    import signal
    import time

    folder, code = mark_for_cli
    process = subprocess.Popen([sys.executable, "-c", code, "audit", str(folder / "run"), "-o", str(tmp_path / "audit")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trying"):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped; nothing was written" in err
    assert "Traceback" not in err
    assert not out
    assert list(tmp_path.glob("*audit*")) == []


@pytest.fixture
def mark_for_cli(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of a small untrained network, and a command line whose --model is that network."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    planted_runs.save(planted_runs.pictures("clean", 160, 3), folder / "photos")
    adapter = planted_runs.adapter_of(planted_runs.trained("clean", 0, steps=60)[0])
    sightline.explain_all(folder / "photos", adapter, output=folder / "run", workers=1)
    torch.save(adapter.module.state_dict(), folder / "weights.pt")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch, planted_runs
from sightline.testing.shortcut import _network
from sightline.cli import audit, main
module = _network().eval()
module.load_state_dict(torch.load({str(folder / "weights.pt")!r}, weights_only=True))
audit._model_of = lambda run, model: planted_runs.adapter_of(module)
main()
"""
    return folder, code
