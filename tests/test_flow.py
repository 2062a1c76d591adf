"""`explain`, `compare` and `attribute` from photograph to heat map, on the bundled model and real photographs."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from sightline.errors import ImageError, LayerError, MethodError, ModelError, TargetError

DEMO = Path(str(files("sightline"))) / "data" / "demo"
CAT = DEMO / "cat.jpg"
SIX = ["grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam", "grad-cam-elementwise"]
CATS = {"tabby", "tiger cat", "Egyptian cat"}


@cache
def bundled() -> sightline.Adapter:
    return sightline.load_model()


@cache
def cat(target: Any = None) -> sightline.Heatmap:
    return sightline.explain(CAT, bundled(), target=target)


def label(index: int) -> str:
    return bundled().label(index)


def assert_same(one: sightline.Heatmap, other: sightline.Heatmap) -> None:
    """Everything but the scale, which may be shared, and warnings, which may tell of the others."""
    np.testing.assert_allclose(one.raw, other.raw, rtol=1e-5, atol=1e-6 * np.abs(other.raw).max())
    np.testing.assert_allclose(one.signed_raw, other.signed_raw, rtol=1e-5, atol=1e-6 * np.abs(other.raw).max())
    for name in ("method", "signed", "unit", "label", "index", "probability", "layer", "model", "view", "image"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.score == pytest.approx(other.score, rel=1e-6)


# ---------------------------------------------------------------------------------------------------- the demo pictures


def test_the_demo_cat_is_a_cat() -> None:
    heatmap = cat()
    assert CATS & {one.label for one in heatmap.predictions[:3]}
    assert heatmap.label in CATS
    assert heatmap.label == heatmap.predictions[0].label
    assert heatmap.probability == pytest.approx(heatmap.predictions[0].probability)


@pytest.mark.parametrize("name", ["cat.jpg", "coffee.jpg", "rocket.jpg"])
def test_every_demo_photograph_has_evidence_inside_what_the_model_saw(name: str) -> None:
    heatmap = sightline.explain(DEMO / name, bundled())
    with Image.open(DEMO / name) as photo:
        assert heatmap.photo.size == photo.size
        assert heatmap.values.shape == (photo.height, photo.width)
    assert heatmap.raw.shape == (7, 7)
    assert heatmap.evidence > 0
    x, y = heatmap.peak
    left, top, right, bottom = heatmap.view.seen()
    assert left <= x <= right
    assert top <= y <= bottom
    chances = [one.probability for one in heatmap.predictions]
    assert chances == sorted(chances, reverse=True)
    assert 0 < sum(chances) <= 1 + 1e-6


def test_every_demo_photograph_in_the_package_is_known_here() -> None:
    assert {one.name for one in DEMO.glob("*.jpg")} == {"cat.jpg", "coffee.jpg", "rocket.jpg"}


def test_a_photograph_gives_one_map_however_it_comes() -> None:
    with Image.open(CAT) as photo:
        upright = photo.convert("RGB")
    for source in (str(CAT), CAT.read_bytes(), upright, np.asarray(upright)):
        np.testing.assert_array_equal(sightline.explain(source, bundled()).raw, cat().raw)


def test_the_model_is_loaded_by_its_name() -> None:
    np.testing.assert_allclose(sightline.explain(CAT).raw, cat().raw, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "index"),
    [
        ("tabby", 281),
        ("TIGER CAT", 282),
        (" tabby ", 281),
        ("Egyptian", 285),
        ("golden retr", 207),
        ("285", 285),
        (285, 285),
        ("tiger", 292),  # a whole name comes before a part of one
    ],
)
def test_a_class_is_found_by_name_part_or_number(target: Any, index: int) -> None:
    heatmap = cat(target)
    assert (heatmap.index, heatmap.label) == (index, label(index))
    assert_same(heatmap, cat(index))


def test_no_target_is_the_predicted_class() -> None:
    assert_same(cat(), cat(cat().predictions[0].index))


def test_a_function_is_a_target_and_its_score_is_kept() -> None:
    def tabby_and_tiger_cat(logits: Tensor) -> Tensor:
        return logits[:, 281] + logits[:, 282]

    heatmap = sightline.explain(CAT, bundled(), target=tabby_and_tiger_cat, method="hires-cam")
    assert (heatmap.label, heatmap.index, heatmap.probability) == ("tabby_and_tiger_cat", None, None)
    parts = [sightline.explain(CAT, bundled(), target=index, method="hires-cam") for index in (281, 282)]
    np.testing.assert_allclose(heatmap.raw, parts[0].raw + parts[1].raw, atol=1e-5)
    assert heatmap.score == pytest.approx(parts[0].score + parts[1].score, rel=1e-5)


def test_a_margin_shows_what_separates_two_classes() -> None:
    found = sightline.explain(CAT, bundled(), target=sightline.margin(282, 281), method="hires-cam")
    parts = [sightline.explain(CAT, bundled(), target=index, method="hires-cam") for index in (282, 281)]
    np.testing.assert_allclose(found.raw, parts[0].raw - parts[1].raw, atol=1e-5)
    assert found.score == pytest.approx(parts[0].score - parts[1].score, abs=1e-4)


def test_a_probabilitys_score_is_the_probability() -> None:
    found = sightline.explain(CAT, bundled(), target=sightline.probability(281))
    assert found.score == pytest.approx(cat(281).probability, rel=1e-4)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("cat", r"fits \d+ classes: .*'tiger cat' \(282\)"),
        ("retriever", r"fits \d+ classes: .*'golden retriever' \(207\)"),
        ("tabbi", r"no class 'tabbi'\. Did you mean 'tabby'"),
        ("egiptian cat", r"no class .* Did you mean .*'Egyptian cat'"),
        ("qqqqqqqq", r"no class 'qqqqqqqq'\. Expected a name, .* 0 to 999"),
        ("", r"no class ''"),
        ("1000", r"no class '1000'.* 0 to 999"),
        (1000, "class 1000 is outside 0 to 999"),
        (-1, "class -1 is outside 0 to 999"),
        (True, "is no target"),
        (1.5, "is no target"),
        (lambda logits: logits, "expected one score per image"),
        (lambda logits: logits.detach()[:, 0], "no gradient"),
    ],
)
def test_a_target_that_cannot_be_asked_for_is_refused_with_the_nearest(target: Any, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        sightline.explain(CAT, bundled(), target=target)


def test_a_class_that_is_not_the_prediction_says_so() -> None:
    assert any("is not what the model says" in warning for warning in cat("golden retriever").warnings)
    assert not any("is not what the model says" in warning for warning in cat().warnings)


# -------------------------------------------------------------------------------------------------------------- compare


def test_compare_gives_what_single_explains_give() -> None:
    targets = ["tabby", 285]
    maps = sightline.compare(CAT, bundled(), methods=SIX, targets=targets)
    assert [(one.method, one.index) for one in maps] == [(method, index) for method in SIX for index in (281, 285)]
    for one in maps:
        assert_same(one, sightline.explain(CAT, bundled(), method=one.method, target=one.index))


def test_compare_takes_every_method_when_none_is_named() -> None:
    assert {one.method for one in sightline.compare(CAT, bundled())} == {
        name for name, one in sightline.list_methods().items() if one.needs in ("activations", "gradients")
    }


def test_compare_shares_one_scale_unless_told_otherwise() -> None:
    maps = sightline.compare(CAT, bundled(), methods=["grad-cam", "layer-cam", "grad-cam++"], targets=[282, "rocking"])
    in_score, own = maps[:4], maps[4:]
    assert {one.scale for one in in_score} == {max(one.scale for one in in_score)}
    assert max(one.evidence for one in in_score) == pytest.approx(in_score[0].scale)
    assert len({one.scale for one in own}) == 1
    alone = sightline.compare(CAT, bundled(), methods=["grad-cam"], targets=[282, "rocking"], same_scale=False)
    assert alone[0].scale == pytest.approx(alone[0].evidence)
    assert alone[1].scale < alone[0].scale


def test_methods_that_give_one_map_say_so() -> None:
    maps = sightline.compare(CAT, bundled(), methods=["grad-cam", "hires-cam", "layer-cam"])
    same = [any("are the same map here" in warning for warning in one.warnings) for one in maps]
    assert same == [True, True, False], "global average pooling and one linear layer make two of them one"


def test_an_option_goes_to_the_methods_that_have_it_and_a_wrong_one_to_none() -> None:
    maps = sightline.compare(CAT, bundled(), methods=["grad-cam", "grad-cam++"], options={"normalise": True})
    assert_same(maps[0], cat())
    alone = sightline.explain(CAT, bundled(), method="grad-cam++", options={"normalise": True})
    np.testing.assert_allclose(maps[1].raw, alone.raw, rtol=1e-5)
    with pytest.raises(MethodError, match="no option 'normalise'"):
        sightline.explain(CAT, bundled(), options={"normalise": True})


def test_a_misspelt_option_is_refused_also_among_several_methods() -> None:
    with pytest.raises(MethodError, match="normalize"):
        sightline.compare(CAT, bundled(), methods=["grad-cam", "grad-cam++"], options={"normalize": True})


@pytest.mark.parametrize("nothing", [{"methods": []}, {"targets": []}])
def test_nothing_to_compare_is_refused(nothing: Any) -> None:
    with pytest.raises(ModelError, match="at least one"):
        sightline.compare(CAT, bundled(), **nothing)


class Counted(nn.Module):
    """Three classes; counts its forwards through a hook, as a user would."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.more = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.trunk(x).relu()).relu().mean(dim=(2, 3)))


def small(photo: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(photo.resize((32, 32)))).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("layers", [None, ["more"], ["trunk"]])
def test_six_methods_and_three_classes_cost_one_forward(layers: list[str] | None) -> None:
    model = Counted().eval()
    adapter = sightline.adapt(model, layers=layers, preprocess=small)
    calls: list[str] = []
    for name in ("", "trunk", "more", "head"):
        model.get_submodule(name).register_forward_hook(lambda _module, _args, _output, name=name: calls.append(name))
    maps = sightline.compare(CAT, adapter, methods=SIX, targets=[0, 1, 2])
    assert len(maps) == 18
    assert calls == ["trunk", "more", "head", ""]


def test_six_methods_and_three_classes_of_the_bundled_model_cost_one_forward() -> None:
    calls: list[int] = []
    handles = [
        bundled().module.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
        for name in ("", "conv_stem", "classifier")
    ]
    try:
        sightline.compare(CAT, bundled(), methods=SIX, targets=["tabby", "tiger cat", "lynx"])
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == 3


def test_a_capture_answers_further_questions_without_another_forward() -> None:
    model = Counted().eval()
    calls: list[int] = []
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    kept = sightline.capture(torch.rand(2, 3, 32, 32), model, layer="more")
    for method in SIX:
        for target in (0, [1, 2], sightline.margin(0, 1)):
            sightline.attribute(kept, model, method=method, target=target)
    assert len(calls) == 1


# ------------------------------------------------------------------------------------------------------------ attribute


@pytest.mark.parametrize("method", SIX)
def test_attribute_gives_the_raw_map_of_explain(method: str) -> None:
    heatmap = sightline.explain(CAT, bundled(), method=method, target=281)
    with Image.open(CAT) as photo:
        x, _ = bundled().preprocess(photo.convert("RGB"))
    found = sightline.attribute(x[None], bundled(), method=method, target=281)
    assert found.shape == (1, 7, 7)
    np.testing.assert_allclose(found[0].numpy(), heatmap.raw, rtol=1e-5, atol=1e-6 * heatmap.raw.max())


def test_a_batch_of_demo_photographs_gives_each_ones_own_map() -> None:
    pictures = [DEMO / name for name in ("cat.jpg", "coffee.jpg", "rocket.jpg")]
    x = torch.stack([bundled().preprocess(sightline.read_image(one)[0])[0] for one in pictures])
    together = sightline.attribute(x, bundled(), target=["tabby", None, 657])
    for found, picture, target in zip(together, pictures, ["tabby", None, 657], strict=True):
        alone = sightline.explain(picture, bundled(), target=target)
        np.testing.assert_allclose(found.numpy(), alone.raw, rtol=1e-4, atol=1e-5 * alone.raw.max())


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_explained_is_refused_by_its_kind(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        sightline.explain(tmp_path / "none.jpg", bundled())
    with pytest.raises(ModelError, match="unknown model"):
        sightline.explain(CAT, "bundeld")
    with pytest.raises(MethodError, match=r"Did you mean .*grad-cam"):
        sightline.explain(CAT, bundled(), method="gradcam")
    with pytest.raises(LayerError, match=r"has no layer 'blocks\.99'"):
        sightline.explain(CAT, bundled(), layer="blocks.99")
    with pytest.raises(ModelError, match="without preprocessing"):
        sightline.explain(CAT, sightline.adapt(Counted()))


def test_another_layer_gives_its_own_grid_and_is_named() -> None:
    heatmap = sightline.explain(CAT, bundled(), layer="blocks.4")
    assert heatmap.layer == "blocks.4"
    assert heatmap.layer_reason == "given"
    assert heatmap.raw.shape == (14, 14)
    assert cat().layer == bundled().layer
    assert cat().layer_reason == bundled().layer_reason


# ----------------------------------------------------------------------------------------------- the shared photographs


@pytest.mark.parametrize(
    ("name", "classes"),
    [("car.jpg", {"sports car"}), ("cat.jpg", {"tabby", "tiger cat"}), ("dog.jpg", {"golden retriever"})],
)
def test_a_large_photograph_is_recognised(shared_data: Path, name: str, classes: set[str]) -> None:
    heatmap = sightline.explain(shared_data / "photos" / name, bundled())
    assert heatmap.label in classes
    assert heatmap.probability > 0.4
    assert heatmap.evidence > 0


def test_in_the_picture_with_a_dog_and_a_cat_each_map_lies_on_its_own_animal(shared_data: Path) -> None:
    picture = shared_data / "photos" / "dog-and-cat.png"
    for method in SIX:
        tiger_cat, bull_mastiff = sightline.compare(
            picture, bundled(), methods=[method], targets=["tiger cat", "bull mastiff"]
        )
        width, height = tiger_cat.photo.size
        assert tiger_cat.peak[1] > height / 2, method
        assert bull_mastiff.peak[1] < 0.4 * height, method
        assert 0.3 * width < bull_mastiff.peak[0] < 0.7 * width, method
    assert bull_mastiff.predictions[0].label == "bull mastiff"
    assert tiger_cat.probability < 0.1
    assert tiger_cat.evidence < bull_mastiff.evidence


@cache
def answers(folder: Path) -> tuple[list[str], Tensor]:
    """(names of the sample's files, the three best classes of each)."""
    pictures = sorted(folder.glob("*.JPEG"))
    assert len(pictures) == 200
    best = []
    for start in range(0, len(pictures), 20):
        batch = [bundled().preprocess(sightline.read_image(one)[0])[0] for one in pictures[start : start + 20]]
        x = torch.stack(batch).contiguous(memory_format=bundled().memory_format)
        with torch.inference_mode():
            best.append(bundled().module(x).topk(3).indices)
    return [one.stem for one in pictures], torch.cat(best)


def bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def test_the_class_names_stand_in_the_order_of_imagenets_word_numbers(shared_data: Path) -> None:
    """timm knows the word number of each class, so that names can be checked against another source."""
    from timm.data import ImageNetInfo

    numbers = ImageNetInfo("imagenet-1k").label_names()
    names = [one.stem for one in sorted((shared_data / "imagenet-sample").glob("*.JPEG"))]
    for name in names:
        number, _, words = name.partition("_")
        assert bare(label(numbers.index(number))) == bare(words)


def test_the_bundled_model_names_the_pictures_of_the_imagenet_sample(
    shared_data: Path, record_property: Callable[[str, Any], None]
) -> None:
    from timm.data import ImageNetInfo

    numbers = ImageNetInfo("imagenet-1k").label_names()
    names, best = answers(shared_data / "imagenet-sample")
    truth = torch.tensor([numbers.index(name.partition("_")[0]) for name in names])[:, None]
    first, three = (float((best[:, :count] == truth).any(dim=1).float().mean()) for count in (1, 3))
    record_property("top-1", first)
    record_property("top-3", three)
    print(f"top-1 {first:.1%}, top-3 {three:.1%}")
    assert first >= 0.82
    assert three >= 0.91


def test_one_named_layer_is_compared_by_all_methods_and_several_by_grad_cam() -> None:
    adapter = sightline.load_model("bundled")
    photo = (np.random.default_rng(0).random((40, 40, 3)) * 255).astype(np.uint8)
    one = sightline.compare(photo, adapter, layer=["bn2"])
    assert [found.method for found in one] == [found.method for found in sightline.compare(photo, adapter)]
    several = sightline.compare(photo, adapter, layer=["blocks.4", "bn2"])
    assert [(found.method, found.layer) for found in several] == [("grad-cam", "blocks.4"), ("grad-cam", "bn2")]
