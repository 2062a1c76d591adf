"""A method as an outsider adds it, in the lines that CONTRIBUTING.md promises: by an entry point, and as a bare function."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import sightline
from sightline.engine.probe import Probe
from sightline.methods.gradient_cams import hires_cam
from sightline.methods.registry import with_plugins

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PHOTO = ROOT / "src" / "sightline" / "data" / "demo" / "coffee.jpg"


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A package as pip would install it, made of the guide's own lines."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    (entry,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.S)
    name, _, place = entry.strip().splitlines()[1].partition(" = ")
    package, _, module = place.strip('"').partition(":")[0].partition(".")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / package / f"{module}.py").write_text(code)
    about = tmp_path / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[sightline.methods]\n{name} = {place.strip(chr(34))}\n")
    return tmp_path


def test_a_method_of_another_package_is_listed_and_explains(plugin: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(plugin), *(one for one in sys.path if one)])
    environment = {**os.environ, "PYTHONPATH": path}

    # Two commands in one process that has read the entry points.
    code = f"""
import sys
from sightline.cli import main
for given in (["methods"], ["explain", {str(PHOTO)!r}, "--method", "my-cam"]):
    sys.argv = ["sightline", *given]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^my-cam +gradients .*What it shows, in one line", done.stdout, re.MULTILINE)
    assert "my-cam for espresso" in done.stdout


def test_a_package_that_is_installed_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    with_plugins("sightline.made_up", {})
    time.sleep(0.05)  # for which clocks of folders are too coarse otherwise
    (tmp_path / "just_arrived.py").write_text("")
    about = tmp_path / "just_arrived-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: just_arrived\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[sightline.made_up]\nmine = just_arrived\n")
    assert "just_arrived" not in sys.modules
    with_plugins("sightline.made_up", {})
    assert sys.modules.pop("just_arrived", None) is not None


def test_a_bare_function_is_a_method() -> None:
    def mine(capture: sightline.Capture) -> object:
        assert capture.gradients is not None
        return (capture.gradients * capture.activations).sum(dim=1)

    model = sightline.load_model("bundled")
    found = sightline.explain(PHOTO, model, method=mine)  # type: ignore[arg-type]
    assert found.method == "mine"
    assert found.signed
    assert np.array_equal(found.raw, sightline.explain(PHOTO, model, method="hires-cam").raw)


def test_a_bare_function_that_takes_a_probe_may_ask_again() -> None:
    def mine(capture: sightline.Capture, probe: Probe) -> Tensor:
        assert capture.gradients is None
        return hires_cam(probe.toward(probe.asked.score))

    model = sightline.load_model("bundled")
    found = sightline.explain(PHOTO, model, method=mine)
    assert np.array_equal(found.raw, sightline.explain(PHOTO, model, method="hires-cam").raw)
