"""Pictures, labels and outputs that don't fit: told, never guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from conftest import CLASSES, Plain, images, seeded
from sightline import adapt, explain, log_probability, probability
from sightline.errors import ModelError, TargetError


def to_tensor(photo: Any) -> Tensor:
    return torch.from_numpy(np.array(photo.resize((16, 16)))).permute(2, 0, 1).float() / 255


PHOTO = (np.random.default_rng(0).random((40, 30, 3)) * 255).astype(np.uint8)


class Ending(nn.Module):
    """Plain with something behind its logits."""

    layer = "net.relu2"

    def __init__(self, end: Any, classes: int = CLASSES) -> None:
        super().__init__()
        self.net = Plain()
        self.net.head = nn.Linear(8, classes)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.net(x))


@pytest.mark.parametrize("size", [(1, 2), (1, 10), (1, 58), (2, 1), (10, 1), (1, 300), (300, 1), (3, 2000), (1, 20000)])
def test_a_thin_picture_has_a_map_and_a_peak_inside_and_is_told_of(size: tuple[int, int]) -> None:
    found = explain(Image.new("RGB", size, (90, 120, 40)), sightline.load_model("bundled"))
    assert found.values.shape == (size[1], size[0])
    assert np.isfinite(found.values).any()
    x, y = found.peak
    assert 0 <= x < size[0]
    assert 0 <= y < size[1]
    if max(size) > 4 * min(size):
        assert any("the model saw only" in warning for warning in found.warnings)
    assert found.panel().width >= 720


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "c"], list("abcdefgh")])
def test_labels_that_are_not_as_many_as_the_classes_are_refused(labels: list[str]) -> None:
    adapter = adapt(seeded(Plain), layers=["relu2"], preprocess=to_tensor, labels=labels)
    with pytest.raises(ModelError, match=f"{CLASSES} classes, and {len(labels)} labels"):
        explain(PHOTO, adapter)


def test_one_output_has_one_name_and_says_no_when_it_does() -> None:
    for bias, says_no in ((6.0, False), (-6.0, True)):
        model = seeded(lambda: Ending(nn.Identity(), 1))
        with torch.no_grad():
            model.net.head.bias.fill_(bias)
        two = adapt(model, layers=["net.relu2"], preprocess=to_tensor, labels=["cat", "dog"])
        with pytest.raises(ModelError, match="one output has one name"):
            explain(PHOTO, two)
        found = explain(PHOTO, adapt(model, layers=["net.relu2"], preprocess=to_tensor, labels=["dog"]))
        assert any("the model says no: 'dog'" in warning for warning in found.warnings) == says_no


def test_outputs_that_are_a_probability_each_are_not_turned_into_others() -> None:
    model = seeded(lambda: Ending(nn.Sigmoid(), 12))
    adapter = adapt(model, layers=["net.relu2"], preprocess=to_tensor)
    found = explain(PHOTO, adapter)
    assert found.score is not None
    assert found.predictions[0].probability == pytest.approx(found.score)
    assert any("a probability each" in warning for warning in found.warnings)
    assert not any("not sure" in warning for warning in found.warnings) or found.score < 0.5


def test_a_softmax_inside_the_model_is_not_applied_twice() -> None:
    model = seeded(lambda: Ending(nn.Softmax(dim=1)))
    adapter = adapt(model, layers=["net.relu2"], preprocess=to_tensor)
    with torch.no_grad():
        share = float(model(to_tensor(Image.fromarray(PHOTO))[None])[0, 1])
    for target, wanted in ((probability(1), share), (log_probability(1), np.log(share))):
        found = explain(PHOTO, adapter, target=target)
        assert found.score == pytest.approx(wanted, rel=1e-4)
        assert any("take its softmax off" in warning for warning in found.warnings)


def test_a_number_is_a_class_even_where_a_name_has_it_in_it() -> None:
    adapter = adapt(seeded(Plain), layers=["relu2"], labels=["ant", "Boeing 3", "cat", "dog", "3"][:CLASSES])
    x = images(1)
    for target, index in (("1", 1), ("3", 4), ("boeing", 1)):
        wanted = sightline.attribute(x, adapter, target=index)
        assert torch.equal(sightline.attribute(x, adapter, target=target), wanted)


@pytest.mark.parametrize("target", [np.int64(2), np.array([2, 2]), range(2, 4), [np.int32(2), 3]])
def test_every_kind_of_whole_number_is_an_index(target: Any) -> None:
    model, x = seeded(Plain), images(2)
    plain = [2, 3] if isinstance(target, range | list) else [2, 2]
    found = sightline.attribute(x, model, layer="relu2", target=target)
    assert torch.equal(found, sightline.attribute(x, model, layer="relu2", target=plain))


def test_a_target_that_mixes_the_images_is_refused() -> None:
    model, x = seeded(Plain), images(CLASSES)
    with pytest.raises(TargetError, match="mixes images"):
        sightline.attribute(x, model, layer="relu2", target=lambda output: output[0])
    assert sightline.attribute(x, model, layer="relu2", target=lambda output: output[:, 0]).shape[0] == CLASSES


@pytest.mark.parametrize("wrong", [{"targets": "12"}, {"methods": "grad-cam"}, {"targets": 3}])
def test_compare_wants_lists(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="are lists"):
        sightline.compare(PHOTO, adapt(seeded(Plain), layers=["relu2"], preprocess=to_tensor), **wrong)


@pytest.mark.parametrize(
    "make", [lambda: sightline.class_logit(-1), lambda: sightline.margin(0, -1), lambda: probability(-2)]
)
def test_a_negative_class_is_refused_when_it_is_named(make: Any) -> None:
    with pytest.raises(TargetError, match="0 or more"):
        make()


def test_a_preprocess_that_draws_on_its_picture_does_not_change_the_photograph() -> None:
    def drawing(photo: Image.Image) -> Tensor:
        x = to_tensor(photo)
        photo.paste((255, 0, 0), (0, 0, 20, 20))
        return x

    found = explain(PHOTO, adapt(seeded(Plain), layers=["relu2"], preprocess=drawing), target=1)
    assert np.array_equal(np.array(found.photo), PHOTO)


def test_a_preprocess_that_covers_the_whole_picture_leaves_nothing_hatched() -> None:
    photo = np.zeros((284, 427, 3), np.uint8)
    found = explain(photo, adapt(seeded(Plain), layers=["relu2"], preprocess=to_tensor), target=1)
    assert np.isfinite(found.values).all()
