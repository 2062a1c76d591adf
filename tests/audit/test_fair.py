"""Networks that go by the object, or whose answer can't flip, on sets that make them look guilty: none is accused, none is cleared."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sightline
from sightline.audit.regions import BACKGROUND, REGION, candidates_of
from sightline.audit.run import audit_run
from sightline.audit.trials import GIVEN, TAKEN
from sightline.models.adapter import Adapter
from sightline.models.preprocess import standard

SIDE = 32
GIVEN_TO = {"size": (SIDE, SIDE), "resize": (SIDE, SIDE), "fit": "squash", "interpolation": "bilinear"}


class Brightest(nn.Module):
    """Says the colour of the brightest thing anywhere: "green", "red"; or with one logit how much it is red."""

    def __init__(self, single: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[-1.0, 1, 0], [1, -1, 0]])[:, :, None, None])
        self.pool = nn.AvgPool2d(4)
        self.single = single

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = 10 * self.pool(self.conv(x).relu()).amax(dim=(2, 3))
        return found[:, 1:] if self.single else found


def adapter_of(module: nn.Module, labels: tuple[str, ...] = ("green", "red")) -> Adapter:
    take = standard(**GIVEN_TO, mean=(0, 0, 0), std=(1, 1, 1))
    return sightline.adapt(module, layers=["pool"], preprocess=take, labels=labels, name="brightest")


def save(folder: Path, count: int = 60, side: int = 4) -> None:
    """Small red and green objects near the middle of noise, in photos/ and masks/."""
    rng = np.random.default_rng(0)
    for at in range(count):
        name = ("green", "red")[at % 2]
        picture = rng.integers(60, 90, (SIDE, SIDE, 3)).astype(np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = rng.integers(SIDE // 2 - 4, SIDE // 2 + 4 - side + 1, 2)
        picture[top : top + side, left : left + side] = (230, 20, 20) if name == "red" else (20, 230, 20)
        mask[top : top + side, left : left + side] = 255
        for place, pixels in (("photos", picture), ("masks", mask)):
            (folder / place / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / place / name / f"{at:03}.png")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Its folder, with photos and masks, and its run."""
    folder = tmp_path_factory.mktemp("small")
    save(folder)
    return folder, sightline.explain_all(folder / "photos", adapter_of(Brightest()), output=folder / "run", workers=1)


def test_a_box_that_holds_small_objects_is_not_beside_them(small: tuple[Path, Any]) -> None:
    folder, run = small
    found = audit_run(run, model=adapter_of(Brightest()), masks=folder / "masks")
    assert any(one.candidate.what == REGION for one in found.tried)
    assert found.ruling.outcome == "none found", [one.ruling for one in found.tried]


def test_a_mask_without_an_object_is_none_so_that_nothing_lies_beside_it(
    small: tuple[Path, Any], tmp_path: Path
) -> None:
    shutil.copytree(small[0] / "masks", tmp_path / "masks")
    for mask in (tmp_path / "masks" / "red").iterdir():
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(mask)
    found = audit_run(small[1], model=adapter_of(Brightest()), masks=tmp_path / "masks")
    assert "30 of 60 pictures have no mask, or one without an object in sight." in found.notices
    assert not [one for one in found.tried if one.candidate.of == "red" and one.candidate.what == BACKGROUND]
    assert {one.name: one.ruling.outcome for one in found.classes} == {"red": "none found", "green": "none found"}


def test_how_far_a_region_is_beside_the_objects_is_by_its_own_area_and_by_theirs() -> None:
    maps = np.zeros((30, 8, 8))
    maps[:, 0, 0] = 1.0
    for objects, wanted in (((7, 7), 1.0), ((0, 0), 0.0)):
        masks = np.zeros((30, 8, 8))
        masks[:, objects[0], objects[1]] = 0.1  # a tenth of one cell
        region, *_ = candidates_of("dog", maps, np.arange(30), (), masks)
        assert region.outside == pytest.approx(wanted)
        assert region.aside == bool(wanted)


def test_a_budget_too_small_for_both_directions_clears_nothing(small: tuple[Path, Any]) -> None:
    for budget, says in (
        (130, "Nothing odd in the maps of 2 of 2 classes; nothing was tried."),
        (
            200,
            "No shortcut was found in 1 of 2 classes; of 1 more only the maps were looked at, and nothing was tried.",
        ),
    ):
        found = audit_run(small[1], model=adapter_of(Brightest()), budget=budget)
        assert 0 < found.forwards <= budget
        assert found.ruling.says == says
        for one in found.tried:
            assert not one.trials or {each.way for each in one.trials} == {GIVEN, TAKEN}


def test_a_model_of_one_number_is_not_cleared(small: tuple[Path, Any], tmp_path: Path) -> None:
    adapter = adapter_of(Brightest(single=True), ("red",))
    run = sightline.explain_all(small[0] / "photos" / "red", adapter, output=tmp_path / "run", workers=1)
    found = audit_run(run, model=adapter)
    assert not any(one.trials for one in found.tried)
    assert any("returns one number for a picture" in one for one in found.notices)
    assert found.ruling.says.endswith("nothing was tried.")


def test_a_place_that_decides_is_told_with_the_verdict_also_where_it_is_no_shortcut(small: tuple[Path, Any]) -> None:
    found = audit_run(small[1], model=adapter_of(Brightest()))
    assert found.ruling.outcome == "none found"
    assert any("What it does go by is the middle" in one for one in found.ruling.because)
    for one in found.classes:
        held = "What it does go by" in one.ruling.says
        assert ("; none but the middle" in one.ruling.because[0]) == held
        assert ("; none changed" in one.ruling.because[0]) != held
    assert found.ruling.next == ("Look at what lies there, or say where the objects are (--masks, --boxes).",)
