"""Targets as a person types them: each form is the target that it stands for, and what is none says what was expected."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from made_dense import Colours, TwoBoxes, block_photo, prepared
from sightline.engine.spoken import parse_target
from sightline.errors import TargetError

NAMES = ["background", "cat", "dog"]


class Scores(nn.Module):
    """The mean of each colour."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.see = nn.AvgPool2d(8)
        self.classes = classes
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.see(x).mean(dim=(2, 3))[:, : self.classes]


PHOTO = block_photo((32, 32), {(0, 8, 16, 24): (60, 200, 20), (16, 0, 32, 8): (90, 90, 90)}, (10, 20, 10))


def model(net: nn.Module | None = None, **more: Any) -> sightline.Adapter:
    more = {"labels": NAMES, **more}
    return sightline.adapt(net or Scores(), layers=["see"], preprocess=prepared(), **more)


MODELS: dict[str, Any] = {
    "classes": lambda: model(),
    "labels": lambda: model(task="labels"),
    "one": lambda: model(Scores(1), labels=["rust"]),
    "values": lambda: model(Scores(1), labels=["age"], task="regression"),
    "several values": lambda: model(task="regression"),
    "embedding": lambda: model(task="embedding", labels=None),
    "segmentation": lambda: model(Colours()),
    "detection": lambda: model(TwoBoxes()),
}


def explained(text_or_target: Any, adapter: sightline.Adapter) -> list[sightline.Heatmap]:
    return sightline.compare(PHOTO, adapter, methods=["hires-cam"], targets=[text_or_target])


def same(one: list[sightline.Heatmap], other: list[sightline.Heatmap]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.signed_raw, b.signed_raw)
        assert (a.label, a.score, a.probability) == (b.label, b.score, b.probability)


@pytest.mark.parametrize(
    ("task", "text", "target"),
    [
        ("classes", "cat", 1),
        ("classes", "CAT", "cat"),
        ("classes", "2", 2),
        ("classes", "log:cat", sightline.log_probability(1)),
        ("classes", "log:1", sightline.log_probability(1)),
        ("classes", "log: cat ", sightline.log_probability("cat")),
        ("classes", "log:", sightline.log_probability(None)),
        ("labels", "log:dog", sightline.log_probability(2)),
        ("labels", "above:0.5", sightline.above(0.5)),
        ("one", "for", sightline.binary()),
        ("one", "against", sightline.binary(False)),
        ("values", "up", sightline.regression()),
        ("values", "down", sightline.regression(up=False)),
        ("several values", "up:dog", sightline.regression(2)),
        ("several values", "down:1", sightline.regression(1, up=False)),
        ("segmentation", "cat", 1),
        ("segmentation", "@4,12", sightline.segment(point=(4, 12))),
        ("segmentation", " @ 4 , 12", sightline.segment(point=(4, 12))),
        ("segmentation", "cat@4.5,12", sightline.segment("cat", point=(4.5, 12))),
        ("segmentation", "1@4,12", sightline.segment(1, point=(4, 12))),
        ("segmentation", "cat@0,8,16,24", sightline.segment("cat", box=(0, 8, 16, 24))),
        ("segmentation", "@0,8,16,24", sightline.segment(box=(0, 8, 16, 24))),
        ("segmentation", "above:0.1", sightline.above(0.1)),
        ("detection", "instance:2", sightline.instance(2)),
        ("detection", "cat", "cat"),
        ("detection", "@0,8,16,24", sightline.box((0, 8, 16, 24))),
        ("detection", "dog@16,0,32,8", sightline.box((16, 0, 32, 8), "dog")),
        ("detection", "above:0.1", sightline.above(0.1)),
    ],
)
def test_a_text_is_the_target_that_it_stands_for(task: str, text: str, target: Any) -> None:
    adapter = MODELS[task]()
    same(explained(parse_target(text), adapter), explained(target, adapter))


def test_a_file_is_another_picture_or_a_mask(tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (40, 40), (200, 100, 0)).save(other)
    like = explained(parse_target(f"like:{other}"), MODELS["embedding"]())
    same(like, explained(sightline.similarity(other), MODELS["embedding"]()))
    assert like[0].label == "like other.png"
    region = np.zeros((32, 32), np.uint8)
    region[8:24, :12] = 255
    plain = tmp_path / "a mask, with a comma.png"
    Image.fromarray(region).save(plain)
    for text, label in ((f"cat@{plain}", "cat"), (f"@{plain}", None)):
        found = explained(parse_target(text), MODELS["segmentation"]())
        same(found, explained(sightline.segment(label, region=region), MODELS["segmentation"]()))


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("up", ["up", "down", "left"]),
        ("down", ["up", "down", "left"]),
        ("for", ["for", "against", "none"]),
        ("against", ["for", "Against", "none"]),
        ("log:book", ["log:book", "book", "c"]),
        ("cat@3,4", ["cat@3,4", "b", "c"]),
        ("up:2", ["a", "up:2", "c"]),
        ("cat@home", ["a", "cat@home", "c"]),
        ("@1,2,3", ["a", "@1,2,3", "c"]),
        ("cat@nowhere.png", ["a", "cat@nowhere.png", "c"]),
        ("above:all", ["a", "above:all", "c"]),
        ("instance:one", ["a", "instance:one", "c"]),
        ("like:me", ["a", "like:me", "c"]),
    ],
)
def test_a_class_that_is_called_as_a_form_is_meant_where_the_model_has_it(word: str, names: list[str]) -> None:
    adapter = model(labels=names)
    for files in (True, False):
        same(
            explained(parse_target(word, files=files), adapter),
            explained([one.lower() for one in names].index(word), adapter),
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("instance:x", "instance:x; expected a number from 1, such as instance:1"),
        ("instance:", "instance:; expected a number from 1"),
        ("instance:-1", "instance:-1; expected a number from 1"),
        ("instance:1.5", "instance:1.5; expected a number from 1"),
        ("word:0", "word:0; expected a number from 1, such as word:1"),
        ("above:", "above:; expected a probability, such as above:0.5"),
        ("above:much", "above:much; expected a probability"),
        ("above:2", "above.*2.*; expected a probability"),
        ("above:nan", "above.*nan.*; expected a probability"),
        ("@1,2,3", "@1,2,3; expected a point @X,Y, a box @LEFT,TOP,RIGHT,BOTTOM, or the file of a mask"),
        ("cat@", "@; expected a point"),
        ("cat@there", "@there; expected a point"),
        ("@1;2", "@1;2; expected a point"),
        ("@" + "9" * 5000, "expected a point"),
        ("instance:" + "9" * 5000, "expected a number from 1"),
        *((form % ("9" * 5000), "has no class '999") for form in ("log:%s", "up:%s", "down:%s", "%s@1,2")),
        ("word:" + "9" * 5000, "expected a number from 1"),
    ],
)
def test_what_is_no_target_says_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(TargetError, match=said) as error:
        explained(parse_target(text), MODELS["segmentation" if text.endswith("9@1,2") else "classes"]())
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("task", "text", "said"),
    [
        ("classes", "instance:1", "tells classes apart and has no box"),
        ("classes", "@4,12", "tells classes apart and has no point or region"),
        ("classes", "word:1", "tells classes apart and has no word"),
        ("detection", "word:1", "finds boxes and has no word"),
        ("classes", "for", "has no for and against"),
        ("detection", "up", "finds boxes and has no value that goes up and down"),
        ("detection", "cat@4,12", "finds boxes and has no point"),
        ("detection", "log:cat", "finds boxes and has no log-probability of a class"),
        ("segmentation", "instance:1", "gives each pixel a class and has no box"),
        ("segmentation", "log:cat", "gives each pixel a class and has no log-probability"),
        ("embedding", "cat", "gives an embedding and has no class"),
        ("embedding", "above:0.5", "gives an embedding and has no probabilities"),
        ("classes", "bird", "has no class 'bird'"),
        ("classes", "log:bird", "has no class 'bird'"),
        ("several values", "up", "gives 3 values"),
        ("detection", "instance:0", "there is no instance 0; the model finds 1: "),
        ("detection", "instance:99", "there is no instance 99"),
        ("detection", "@nan,1,2,3", "is empty"),
        ("segmentation", "@inf,1", "outside the photograph"),
    ],
)
def test_a_form_that_the_model_does_not_have_says_what_it_has(task: str, text: str, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        explained(parse_target(text), MODELS[task]())


def test_a_text_of_spaces_is_read_in_no_time() -> None:
    began = time.perf_counter()
    with pytest.raises(TargetError, match="expected a point"):
        explained(parse_target("@1" + " " * 300_000 + "x", files=False), MODELS["classes"]())
    assert time.perf_counter() - began < 2


def test_a_mask_of_a_name_that_no_file_can_have_is_said() -> None:
    with pytest.raises(TargetError, match=r"the mask of the region: .* can't be opened"):
        explained(parse_target("cat@mask\x00.png"), MODELS["segmentation"]())


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"the mask of the region: .*nowhere\.png can't be opened"):
        explained(parse_target(f"cat@{tmp_path}/nowhere.png"), MODELS["segmentation"]())
    with pytest.raises(TargetError, match=r"the picture to compare with: .*nowhere\.png can't be opened"):
        explained(parse_target(f"like:{tmp_path}/nowhere.png"), MODELS["embedding"]())
    with pytest.raises(TargetError, match="gives each pixel a class and has no embedding"):
        explained(parse_target(f"like:{tmp_path}/nowhere.png"), MODELS["segmentation"]())


def test_words_are_asked_for_by_name_or_number() -> None:
    adapter = model(task="words", labels=["a", "black", "cat"])
    x = torch.rand(1, 3, 32, 32)
    found = sightline.attribute(x, adapter, method="hires-cam", target=parse_target("word:2"))
    assert torch.equal(found, sightline.attribute(x, adapter, method="hires-cam", target=1))
    assert torch.equal(found, sightline.attribute(x, adapter, method="hires-cam", target=parse_target("word:black")))


def test_more_targets_than_can_be_looked_at_are_refused() -> None:
    class Many(Scores):
        def forward(self, x: Tensor) -> Tensor:
            return self.see(x).mean(dim=(1, 2, 3))[:, None].expand(-1, 1000)

    with pytest.raises(TargetError, match="above 0 are 1,000 targets; at most 100"):
        explained(parse_target("above:0"), model(Many(), labels=None))
