"""An audit as a data set of FiftyOne, of which a stand-in notes what it is told: its data base can't be had in tests."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.audit.export import to_fiftyone
from sightline.audit.run import audit_run
from sightline.errors import ImageError, MissingExtraError

Made = tuple[Path, Any, Any]


class Noted(dict[str, Any]):
    def __init__(self, **given: Any) -> None:
        super().__init__(given)


class Dataset:
    def __init__(self, name: str | None) -> None:
        self.name = name
        self.samples: list[Noted] = []

    def add_samples(self, samples: list[Noted]) -> None:
        self.samples += samples


@pytest.fixture
def fiftyone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fiftyone")
    module.__spec__ = ModuleSpec("fiftyone", None)
    for name in ("Sample", "Classification", "Heatmap"):
        setattr(module, name, Noted)
    module.Dataset = Dataset
    monkeypatch.setitem(sys.modules, "fiftyone", module)


@pytest.mark.usefixtures("fiftyone")
def test_every_picture_comes_with_its_label_prediction_heat_and_what_is_odd_about_it(mark: Made) -> None:
    folder, run, adapter = mark
    audit = audit_run(run, model=adapter, budget=1500)
    assert audit.ruling.outcome == "shortcut"
    found = to_fiftyone(audit, run, name="marked")
    assert found.name == "marked"
    assert len(found.samples) == len(audit.heats)
    for at, one in enumerate(found.samples):
        path = Path(one["filepath"])
        assert path == folder / "photos" / audit.heats.ids[at]
        assert one["ground_truth"] == {"label": path.parent.name}
        assert one["prediction"] == {"label": audit.heats.predicted[at], "confidence": audit.heats.chances[at]}
        marked = any(tag.startswith("shortcut: the top left") for tag in one["tags"])
        assert marked == (path.parent.name == "red")
        with Image.open(path) as opened:
            assert one["heat"]["map"].shape == opened.size[::-1]
        assert one["heat"]["range"] == [0, 1]
        assert np.isfinite(one["heat"]["map"]).all()
        assert 0.5 < one["heat"]["map"].max() <= 1


@pytest.mark.usefixtures("fiftyone")
def test_pictures_that_are_elsewhere_are_not_silently_left_out(mark: Made, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    with pytest.raises(ImageError, match="none of the run's pictures is in"):
        to_fiftyone(audit_run(mark[1]), mark[1], data=tmp_path)


def test_without_fiftyone_the_extra_is_named(mark: Made) -> None:
    with pytest.raises(MissingExtraError, match=r"needs the extra `fiftyone`"):
        to_fiftyone(audit_run(mark[1]), mark[1])
