"""What the page asks, as plain functions: no Gradio, no server, a real model."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline
from sightline.app.answers import (
    Offer,
    Question,
    as_data,
    as_python,
    as_zip,
    ask,
    class_names,
    layer_names,
    look_at,
    predictions,
)
from sightline.app.page import NAMES, _question
from sightline.errors import ImageError, LayerError, MethodError, ModelError, SightlineError, TargetError
from sightline.models.given import Given
from sightline.models.load import build, load_model

ROOT = Path(__file__).parents[2]
CAT = str(ROOT / "src" / "sightline" / "data" / "demo" / "cat.jpg")


@pytest.fixture(scope="module")
def offer() -> Offer:
    other = build("torchvision:resnet18", Given(random_weights=True))
    return Offer({"bundled": load_model("bundled"), "other": other})


def test_a_class_is_explained_as_the_library_does(offer: Offer) -> None:
    answer = ask(offer, Question(CAT))
    expected = sightline.explain(CAT, offer.adapter("bundled"))
    assert np.array_equal(answer.maps[0].raw, expected.raw)
    assert answer.target == expected.label
    assert expected.label in answer.sentence
    assert "not what caused it" in answer.sentence


def test_two_classes_stand_side_by_side_on_one_scale(offer: Offer) -> None:
    answer = ask(offer, Question(CAT, target="tabby", beside="goldfish"))
    first, second = answer.maps
    assert (first.label, second.label) == ("tabby", "goldfish")
    assert first.scale == second.scale
    data = as_data(answer)
    assert [pane["title"].partition(",")[0] for pane in data["viewer"]["panes"]] == ["tabby", "goldfish"]
    json.dumps(data, allow_nan=False)


def test_the_same_question_is_answered_from_what_was_kept(offer: Offer) -> None:
    question = Question(CAT, target="goldfish", method="hires-cam")
    assert ask(offer, question) is ask(offer, question)
    copy = Question(CAT, target="goldfish", method="hires-cam")
    assert ask(offer, copy) is ask(offer, question)
    assert look_at(offer, "bundled", CAT) is look_at(offer, "bundled", CAT)


def test_what_is_kept_is_bounded_in_bytes(tmp_path: Path) -> None:
    small = Offer({"bundled": load_model("bundled")}, kept_mb=4)
    for number in range(12):
        place = tmp_path / f"{number}.png"
        Image.new("RGB", (200, 150), (number * 20, 90, 200 - number * 10)).save(place)
        ask(small, Question(str(place)))
        assert small.seen.currsize <= 3e6
        assert small.answers.currsize <= 1e6
    assert 1 <= len(small.seen) < 12
    wide = tmp_path / "wide.png"
    Image.new("RGB", (2000, 1500), (10, 200, 30)).save(wide)
    assert ask(small, Question(str(wide))).maps
    assert small.seen.currsize <= 3e6, "what is larger than all that may be kept is not kept"


def test_several_methods_layers_and_models(offer: Offer) -> None:
    methods = ask(offer, Question(CAT, mode="methods", methods=("grad-cam", "eigen-cam")))
    assert [one.method for one in methods.maps] == ["grad-cam", "eigen-cam"]
    layers = ask(offer, Question(CAT, mode="layers"))
    assert len({one.layer for one in layers.maps}) == len(layers.maps) > 4
    models = ask(offer, Question(CAT, mode="models", second="other", target="tabby"))
    assert [one.model for one in models.maps] == ["bundled", offer.adapter("other").name]
    groups = [pane["group"] for pane in as_data(models)["viewer"]["panes"]]
    assert len(set(groups)) == 2, "scores of two models do not share a scale"
    assert any("random" in notice for notice in models.notices)


def test_the_zip_holds_what_a_bundle_holds(offer: Offer) -> None:
    answer = ask(offer, Question(CAT, target="tabby", beside="goldfish"))
    with zipfile.ZipFile(io.BytesIO(as_zip(answer))) as archive:
        assert archive.testzip() is None
        names = {Path(name).name for name in archive.namelist()}
        assert names == {"panel.png", "manifest.json", "overlay-1.png", "overlay-2.png", "map-1.npy", "map-2.npy"}
        kept = np.load(io.BytesIO(archive.read("sightline/map-2.npy")), allow_pickle=False)
    assert np.array_equal(kept, answer.maps[1].raw)
    models = ask(offer, Question(CAT, mode="models", second="other"))
    with zipfile.ZipFile(io.BytesIO(as_zip(models))) as archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
    assert folders == {"sightline-model-1", "sightline-model-2"}


@pytest.mark.parametrize(
    "question",
    [
        Question(CAT),
        Question(CAT, target="tabby", beside="goldfish", method="hires-cam", layer="blocks.4"),
        Question(CAT, mode="layers", target="tabby"),
        Question(CAT, mode="methods", methods=("grad-cam", "fem")),
    ],
)
def test_the_python_lines_make_the_same_maps(
    offer: Offer, question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = ask(offer, question)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(Path(CAT).read_bytes())
    found: dict[str, Any] = {}
    exec(as_python(offer, question, answer), found)  # noqa: S102 - the lines are what is tested
    assert [one.method for one in found["maps"]] == [one.method for one in answer.maps]
    for one, other in zip(found["maps"], answer.maps, strict=True):
        assert np.array_equal(one.raw, other.raw)
    assert (tmp_path / "sightline-out" / "cat" / "panel.png").exists()


def test_names_of_classes_are_unique_and_lead_back() -> None:
    adapter = load_model("bundled")
    offer = Offer({"bundled": adapter})
    looked = look_at(offer, "bundled", CAT)
    names = class_names(looked)
    assert len(set(names)) == len(names) == 1000
    assert next(iter(predictions(looked))) == names[looked.predictions[0].index]
    found = layer_names(offer, "bundled", looked)
    assert layer_names(offer, "bundled", looked) is found
    assert looked.captures[0].layer in found
    assert not set(found) & adapter.folded


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"model": "gone"}, ModelError, "no model 'gone' here"),
        ({"target": "no such thing"}, TargetError, "no such thing"),
        ({"method": "grad-camm"}, MethodError, "grad-cam"),
        ({"layer": "nowhere"}, LayerError, "nowhere"),
        ({"mode": "sideways"}, SightlineError, "sideways"),
        ({"mode": "models"}, SightlineError, "second model"),
        ({"mode": "methods"}, SightlineError, "at least one method"),
        ({"mode": "layers", "method": "score-cam"}, SightlineError, "many times"),
        ({"picture": "/nowhere/cat.jpg"}, ImageError, "choose it again"),
    ],
)
def test_what_cannot_be_answered_is_said(
    offer: Offer, wrong: dict[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        ask(offer, Question(**{"picture": CAT, **wrong}))


def test_a_picture_that_is_none_is_said_and_the_next_is_answered(offer: Offer, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(CAT).read_bytes()[:2000])
    with pytest.raises(ImageError):
        ask(offer, Question(str(broken)))
    assert ask(offer, Question(CAT)).maps


def test_a_visitor_can_not_have_thousands_of_prompts_read() -> None:
    read: list[Any] = []

    def prompted(prompts: Any) -> sightline.Adapter:
        read.append(prompts)
        return offered

    offered = dataclasses.replace(load_model("bundled"), prompted=prompted)
    offer = Offer({"reads": offered})
    offer.adapter("reads", ("a cat", "a dog"))
    for prompts in (tuple(map(str, range(101))), ("x" * 4001, "a dog")):
        with pytest.raises(ModelError, match="expected at most 100 of 4,000"):
            offer.adapter("reads", prompts)
    assert read == [("a cat", "a dog")]


@pytest.mark.parametrize("sent", [None, 5, True, [], ["a", 5, ["b"]], {"a": {"b": []}}, "x" * 10**6])
def test_a_control_that_holds_anything_makes_a_question_that_can_be_answered(offer: Offer, sent: Any) -> None:
    question = _question(*[sent] * len(NAMES))
    hash(question)
    assert sum(len(str(one)) for one in vars(question).values()) < 2 * len(NAMES) * 16_000
    with pytest.raises(SightlineError):
        ask(offer, dataclasses.replace(question, picture=str(CAT)))
