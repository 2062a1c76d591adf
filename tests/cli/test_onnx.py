"""An ONNX file on the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commands import Run
from conftest import Plain, seeded
from oracles_perturbation import occlusion
from sightline.cli.doctor import DEMO
from sightline.models.preprocess import standard

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            seeded(Plain), (torch.randn(1, 3, 56, 56),), str(path), dynamo=True, external_data=False, verbose=False
        )
    return path


def test_a_photograph_is_explained_and_the_map_is_that_of_the_torch_model(cli: Run, model: Path) -> None:
    result = cli("explain", DEMO, "--model", model, "--target", "2")
    assert result.code == 0, result.err
    assert "occlusion for class 2" in result.out
    assert "nothing says it: preprocessing" in result.out
    x, _ = standard((56, 56), 64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))(
        Image.open(DEMO).convert("RGB")
    )
    double = seeded(Plain).double()

    def score(pixels: Any) -> float:
        with torch.no_grad():
            return float(double(torch.from_numpy(pixels)[None])[0, 2])

    wanted = occlusion(score, x.double().numpy(), 8, 4, np.zeros(3))[::4, ::4]
    found = np.load(Path("sightline-out/cat/map.npy"))
    assert found.shape == (14, 14)
    assert float(np.abs(found - wanted).max()) < 1e-3 * float(np.abs(wanted).max()) < 1e-4
    manifest = json.loads(Path("sightline-out/cat/manifest.json").read_text())
    assert manifest["maps"][0]["method"] == "occlusion"


def test_methods_that_look_into_the_model_are_refused(cli: Run, model: Path) -> None:
    result = cli("explain", DEMO, "--model", model, "--method", "grad-cam")
    assert result.code == 2
    assert "m.onnx is a black box" in result.err
    assert "these methods work: kernel-shap, lime, occlusion, rise" in result.err


def test_options_of_the_default_method_are_checked_when_the_model_is_known(cli: Run, model: Path) -> None:
    assert cli("explain", DEMO, "--model", model, "--option", "patch=14", "--option", "baseline=[0,0.5,1]").code == 0
    assert cli("explain", DEMO, "--model", model, "--option", "baseline=mean", "--force").code == 0
    result = cli("explain", DEMO, "--model", model, "--option", "samples=3")
    assert result.code == 2
    assert "no option 'samples' in occlusion" in result.err


def test_all_that_can_be_asked_is_compared_and_trusted(cli: Run, model: Path) -> None:
    assert cli("compare", DEMO, "--model", model).code == 0
    result = cli("explain", DEMO, "--model", model, "--trust", "-o", "trusted")
    assert result.code == 0, result.err
    assert "its weights can't be made random" in result.out
    assert cli("explain", DEMO, "--model", model, "--combine", "flips", "-o", "flipped").code == 0


def test_it_has_no_layers_to_list(cli: Run, model: Path) -> None:
    result = cli("layers", model)
    assert result.code == 2
    assert "m.onnx is a black box" in result.err


def test_the_doctor_looks_at_it(cli: Run, model: Path) -> None:
    result = cli("doctor", "--model", model)
    assert result.code == 0, result.err
    assert "a black box has no layers" in result.out
    assert "it works, but preprocessing is guessed" in result.out
