"""The page about training with Keras runs, on a few pictures, and shows what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "training-keras.md"


# A ResNet50 in a process of its own. The callback and the maps have their tests in tests/train and tests/models.
@pytest.mark.slow
def test_the_page_about_training_with_keras_runs(shared_data: Path, tmp_path: Path) -> None:
    if find_spec("keras") is None:
        pytest.skip("keras isn't installed")
    source = shared_data / "cats-vs-dogs"
    if not source.is_dir():
        pytest.skip(f"the pictures of cats and dogs are not there: {source}")
    for part, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "cats-vs-dogs" / part / name
            folder.mkdir(parents=True)
            for one in sorted((source / part / name).glob("*.jpg"))[:count]:
                shutil.copy(one, folder)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "film" / "maps.npz", allow_pickle=False) as film:
        assert film["maps"].shape == (2, 4, 4, 4)
        assert film["epochs"].tolist() == [0, 1]
        assert film["labels"].tolist() == [0, 0, 1, 1]
        assert f"[{film['border'][1]}] [{film['moved'][1]}]" in done.stdout
    assert "grad-cam at layer conv5_block3_out (2x2 grid, upsampled)" in done.stdout
    for name in ("film/film.png", "why.png"):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.width > 700
