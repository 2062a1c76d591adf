"""`measure`, the registry and what is asked of a model: what comes out, what is refused, and that nothing is left behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import CLASSES, MODELS, Plain, assert_untouched, images, seeded
from sightline.attribution import Origin, adapter_of
from sightline.engine.capture import capture
from sightline.engine.targets import per_image
from sightline.errors import LayerError, MethodError, MetricError, TargetError, UndefinedError
from sightline.methods.registry import find
from sightline.metrics import faithfulness, list_metrics, localisation, maps, metric
from sightline.metrics.case import Asking, Case, asking, case, explainer
from sightline.metrics.measure import asked_again, check_metrics, measure, targets_of
from sightline.metrics.registry import Curve, Measured, find_metric, run_metric

ALL = sorted(list_metrics())
ON_BOARDS = ["di-full", "grid-pointing-game"]
OF_PICTURES = [name for name in ALL if name not in ON_BOARDS]
OF_PLACE = ["energy-pointing-game", "iou", "mass-in-mask", "pointing-game"]
ASKING = ["deletion", "insertion", "road-morf", "road-lerf", "average-drop", "average-gain", "increase-in-confidence", "infidelity"]  # fmt: skip
SHARES_OF_A_PROBABILITY = ["average-drop", "average-gain", "adcc"]


def heats(batch: int = 1, size: tuple[int, int] = (8, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, *size))


def masks(batch: int = 1) -> np.ndarray:
    found = np.zeros((batch, 16, 16), bool)
    found[:, 3:9, 4:12] = True
    return found


def only(x: Tensor, model: Any, names: list[str] | str, **keywords: Any) -> dict[str, Measured]:
    (found,) = measure(x, model, [names] if isinstance(names, str) else names, **keywords)
    return found


def values(found: dict[str, Measured]) -> dict[str, float | None]:
    return {name: one.value for name, one in found.items()}


def about(model: nn.Module, x: Tensor, target: Any = None, told: Callable[[int], None] | None = None) -> Asking:
    adapter = adapter_of(model)
    (seen,) = capture(adapter, x, [model.layer])
    return asking(adapter, seen, per_image(target, adapter, seen.output, 1)[0], told=told)


def origin(model: nn.Module, x: Tensor, method: str, target: Any, *layers: str) -> Origin:
    adapter = adapter_of(model)
    (seen,) = capture(adapter, x, [model.layer])
    return Origin(
        adapter=adapter,
        method=find(method),
        target=per_image(target, adapter, seen.output, 1)[0],
        x=seen.input,
        layers=layers or (model.layer,),
        options={},
    )


# ----------------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("name", ["plain", "residual", "tokens", "channels last", "dict", "spectral"])
def test_every_metric_of_a_picture_has_a_value_or_says_why_not(name: str) -> None:
    model = seeded(MODELS[name])
    channels = next(one.in_channels for one in model.modules() if isinstance(one, nn.Conv2d))
    found = only(images(1, channels), model, OF_PICTURES, layer=model.layer, target=1, masks=masks())
    assert list(found) == OF_PICTURES
    for each, one in found.items():
        assert one.metric == each
        assert (one.value is None) == bool(one.undefined)
        assert one.value is None or math.isfinite(one.value)
    assert sum(one.value is not None for one in found.values()) > 10


def test_a_batch_gives_what_its_pictures_give_alone_each_with_its_own_target_map_and_mask() -> None:
    model, x, given, objects = seeded(Plain), images(3), heats(3), masks(3)
    objects[1, :8], objects[2, :, :8] = False, False
    targets = [3, None, "1"]
    names = ["deletion", "road-morf", "adcc", "random-logit", "iou", "max-sensitivity"]
    together = measure(x, model, names, maps=given, masks=objects, target=targets, layer="relu2")
    alone = [
        only(x[[one]], model, names, maps=given[[one]], masks=objects[[one]], target=targets[one], layer="relu2")
        for one in range(3)
    ]
    assert [values(one) for one in together] == [values(one) for one in alone]
    assert len({one["deletion"].value for one in together}) == 3


class InPlace(Plain):
    """Works on its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


@pytest.mark.parametrize("build", [Plain, InPlace])
def test_what_is_measured_together_is_what_is_measured_alone_in_any_order(build: type[nn.Module]) -> None:
    model, x = seeded(build), images(1)
    keywords: dict[str, Any] = {"layer": "relu2", "target": 1, "masks": masks()}
    alone = {name: only(x, model, name, **keywords)[name].value for name in OF_PICTURES}
    for names in (OF_PICTURES, OF_PICTURES[::-1]):
        assert values(only(x, model, names, **keywords)) == alone
    assert torch.equal(x, images(1))


@pytest.mark.parametrize("target", [2, [2, 2, 2], (2, 2, 2), torch.tensor([2, 2, 2]), np.array([2, 2, 2])])
def test_one_target_stands_for_all_pictures(target: Any) -> None:
    model, x = seeded(Plain), images(3)
    found = measure(x, model, ["deletion"], layer="relu2", target=target)
    wanted = [only(x[[one]], model, ["deletion"], layer="relu2", target=2) for one in range(3)]
    assert [values(one) for one in found] == [values(one) for one in wanted]


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "eigen-cam", "score-cam", "full-grad"])
def test_the_maps_that_are_made_are_those_of_attribute(method: str) -> None:
    model, x = seeded(Plain), images(1)
    shown = sightline.attribute(x, model, method=method, layer="relu2", target=1)
    names = ["deletion", "complexity", "iou", "adcc", "infidelity"]
    made = only(x, model, names, method=method, layer="relu2", target=1, masks=masks())
    given = only(x, model, names, maps=shown, method=method, layer="relu2", target=1, masks=masks())
    assert values(made) == pytest.approx(values(given), abs=1e-6)


def test_maps_of_several_layers_are_fused_as_in_attribute() -> None:
    model, x, layers = seeded(Plain), images(1), ["relu1", "relu2"]
    shown = sightline.attribute(x, model, layer=layers, target=1)
    made = only(x, model, ["deletion", "random-logit", "max-sensitivity"], layer=layers, target=1)
    assert made["deletion"].value == pytest.approx(
        only(x, model, ["deletion"], maps=shown, target=1, layer=layers)["deletion"].value
    )
    assert made["random-logit"].value is not None
    assert made["max-sensitivity"].value is not None


@pytest.mark.parametrize("as_tensor", [False, True])
def test_maps_from_elsewhere_may_be_tensors_or_arrays_of_any_resolution(as_tensor: bool) -> None:
    model, x = seeded(Plain), images(1)
    for size in ((1, 1), (3, 7), (16, 16), (40, 33)):
        given = heats(1, size)
        found = only(x, model, "deletion", maps=torch.from_numpy(given) if as_tensor else given, target=1)
        heat = maps.enlarged(given[0], (16, 16))
        score = about(model, x, 1).score
        assert found["deletion"].value == faithfulness.deletion(heat, x, score).value
    given = heats(1) > 0.5
    assert only(x, model, "complexity", maps=given)["complexity"].value is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_maps_and_masks_of_any_type_of_number_are_taken(dtype: torch.dtype) -> None:
    model, x = seeded(Plain), images(1)
    given, objects = torch.from_numpy(masks()).to(dtype), torch.from_numpy(masks()).to(dtype)
    found = only(x, model, ["iou", "mass-in-mask", "deletion"], maps=given, masks=objects, target=1)
    wanted = only(x, model, "deletion", maps=masks().astype(float), target=1)
    assert found["iou"].value == found["mass-in-mask"].value == 1
    assert found["deletion"].value == wanted["deletion"].value


def test_settings_reach_their_metric_and_no_other() -> None:
    model, x = seeded(Plain), images(1)
    found = only(x, model, ["deletion", "insertion"], maps=heats(), settings={"deletion": {"step": 16}}, target=1)
    assert found["deletion"].curve is not None
    assert found["insertion"].curve is not None
    assert len(found["deletion"].curve.at) == 17
    assert len(found["insertion"].curve.at) == 3


def test_options_of_the_method_reach_the_method() -> None:
    model, x = seeded(Plain), images(1)
    names = ["deletion", "max-sensitivity"]
    keywords: dict[str, Any] = {"method": "grad-cam++", "layer": "relu2", "target": 1}
    plain, other = (only(x, model, names, options=each, **keywords) for each in ({}, {"normalise": True}))
    assert plain["max-sensitivity"].value != other["max-sensitivity"].value
    with pytest.raises(MethodError, match="no option 'colour'"):
        only(x, model, names, options={"colour": 1}, **keywords)


def test_a_metric_may_be_given_itself() -> None:
    x, model = images(1), seeded(Plain)
    found = only(x, model, [find_metric("complexity")], maps=heats())  # type: ignore[list-item]
    assert found["complexity"].value == pytest.approx(maps.complexity(maps.enlarged(heats()[0], (16, 16))))


def test_a_record_is_plain_json_with_the_curve_its_gaps_and_the_reason() -> None:
    curve = Curve(np.array([0, 1.0]), np.array([1.0, np.nan]), 0.5, np.array([1.0, 0.0]), ("a note",))
    assert json.loads(json.dumps(Measured("road-morf", 0.5, curve=curve).record())) == {
        "metric": "road-morf",
        "value": 0.5,
        "curve": {"at": [0.0, 1.0], "scores": [1.0, None], "hits": [1.0, 0.0]},
        "notes": ["a note"],
    }
    assert Measured("iou", None, "the mask is empty").record() == {
        "metric": "iou",
        "value": None,
        "undefined": "the mask is empty",
    }
    found = only(images(1), seeded(Plain), OF_PICTURES, masks=masks(), layer="relu2")
    for one in found.values():
        assert json.loads(json.dumps(one.record(), allow_nan=False))["metric"] == one.metric


# ---------------------------------------------------------------------------------------------------- what is asked


def test_the_score_of_a_class_is_its_probability_and_of_another_target_that_target() -> None:
    model, x = seeded(Plain), images(4)
    with torch.no_grad():
        logits = model(x)
    one = about(model, x[:1], 2)
    np.testing.assert_allclose(one.score(x), logits.softmax(dim=1)[:, 2], atol=1e-7)
    scores, first = one.answer(x)
    assert scores.dtype == first.dtype == torch.float64
    assert first.tolist() == [float(int(row.argmax()) == 2) for row in logits]
    assert one.classes == CLASSES
    other = about(model, x[:1], sightline.margin(2, 0))
    np.testing.assert_allclose(other.score(x), logits[:, 2] - logits[:, 0], atol=1e-6)
    assert other.classes == 0
    assert other.answer(x)[1].isnan().all()


class Softmaxed(Plain):
    """Returns probabilities already."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class OneLogit(nn.Module):
    """One logit a picture."""

    layer = "conv"

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("build", [Softmaxed, OneLogit])
def test_probabilities_are_read_off_every_output_as_off_the_first(build: type[nn.Module]) -> None:
    model, x = seeded(build), images(3)
    with torch.no_grad():
        output = model(x)
    wanted = output[:, 0] if build is Softmaxed else output[:, 0].sigmoid()
    np.testing.assert_allclose(about(model, x[:1], 0).score(x), wanted, atol=1e-7)


def test_the_same_picture_is_asked_about_once() -> None:
    counted: list[int] = []
    model, x = seeded(Plain), images(1)
    one = about(model, x, 1, counted.append)
    first = one.score(x)
    assert torch.equal(one.score(x.clone()), first)
    assert sum(counted) == 1
    assert not torch.equal(one.score(x + 1), first)
    assert sum(counted) == 2
    one.score(torch.cat([x, x]))
    assert sum(counted) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_every_floating_type_can_be_measured(dtype: torch.dtype) -> None:
    model, x = seeded(Plain).to(dtype), images(1).to(dtype)
    found = only(x, model, OF_PICTURES, masks=masks(), layer="relu2", target=1)
    wanted = only(images(1), seeded(Plain), OF_PICTURES, masks=masks(), layer="relu2", target=1)
    for name in ("deletion", "insertion", "road-morf", "average-drop", "iou", "complexity"):
        assert found[name].value == pytest.approx(wanted[name].value, abs=0.02)


def test_a_model_in_float64_is_read_in_float64() -> None:
    model, x = seeded(Plain, dtype=torch.float64), images(1, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(x).softmax(dim=1)[0, 1]
    assert float(about(model, x, 1).score(x)[0]) == pytest.approx(float(wanted), abs=1e-14)


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "eigen-cam", "score-cam"])
def test_the_method_explains_the_picture_other_targets_other_pictures_and_other_models(method: str) -> None:
    model, other, x, more = seeded(Plain), seeded(Plain, 1), images(1), images(20, seed=5)
    explain = explainer(about(model, x, 1), origin(model, x, method, 1))

    def wanted(pictures: Tensor, of: nn.Module, target: int) -> np.ndarray:
        return sightline.attribute(pictures, of, method=method, layer="relu2", target=target).numpy()

    np.testing.assert_allclose(explain(signed=False), wanted(x, model, 1), atol=1e-6)
    np.testing.assert_allclose(explain(signed=False, target=3), wanted(x, model, 3), atol=1e-6)
    np.testing.assert_allclose(explain(more, signed=False), wanted(more, model, 1), atol=1e-6)
    np.testing.assert_allclose(explain(signed=False, module=other), wanted(x, other, 1), atol=1e-6)
    signed = explain(more)
    assert signed.dtype == np.float64
    np.testing.assert_allclose(np.maximum(signed, 0), np.maximum(wanted(more, model, 1), 0), atol=1e-6)
    assert (signed.min() < 0) == (method in ("grad-cam", "hires-cam")), "what the method cuts off is kept"


def test_a_map_of_the_model_alone_asks_for_no_picture() -> None:
    model, x, told = seeded(Plain), images(1), []
    explain = explainer(about(model, x, 1), origin(model, x, "grad-cam", 1), told.append)
    explain()
    explain(target=3)
    assert told == []
    explain(images(20))
    explain(module=seeded(Plain, 1))
    assert sum(told) == 21


def test_asking_again_gives_what_was_asked_before() -> None:
    model, x, told = seeded(Plain), images(1), []
    one, explain = asked_again(origin(model, x, "hires-cam", 3), told.append)
    assert told == [1]
    assert one.target.index == 3
    np.testing.assert_allclose(
        explain(), sightline.attribute(x, model, method="hires-cam", layer="relu2", target=3), atol=1e-7
    )


def test_a_case_holds_only_what_can_be_asked() -> None:
    model, x = seeded(Plain), images(1)
    plain = case(heats()[0], about(model, x, 1))
    assert (plain.others, plain.mask, plain.placed, plain.cell) == ((1, CLASSES), None, None, None)
    assert plain.heat is not None
    assert plain.heat.shape == (16, 16)
    masked = case(heats()[0], about(model, x, 1), mask=masks()[0])
    assert masked.placed is masked.heat
    other = case(heats()[0], about(model, x, sightline.margin(0, 1)))
    assert (other.others, other.answer) == (None, None)


def test_a_photographs_metrics_are_those_of_its_map_on_its_own_pixels() -> None:
    def to_tensor(picture: Any) -> Tensor:
        return torch.from_numpy(np.array(picture.resize((16, 16)))).permute(2, 0, 1) / 255

    photo = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    model = seeded(Plain)
    adapter = sightline.adapt(model, layers=["relu2"], preprocess=to_tensor)
    heatmap = sightline.explain(photo, adapter, target=1)
    mask = np.zeros((24, 24), bool)
    mask[5:15, 3:12] = True
    found = heatmap.measure(["deletion", "mass-in-mask"], mask=mask)
    assert found["mass-in-mask"].value == pytest.approx(
        localisation.mass_in_mask(heatmap.values.astype(np.float64), mask)
    )
    assert found["deletion"].value is not None
    with pytest.raises(MetricError, match="the mask is 16 x 16"):
        heatmap.measure(["iou"], mask=np.ones((16, 16), bool))
    with pytest.raises(MetricError, match=r"the mask is of shape .*expected an array \(H, W\)"):
        heatmap.measure(["iou"], mask=np.ones((24, 24, 3), bool))
    with pytest.raises(MetricError, match=r"the mask is 'mask\.png'"):
        heatmap.measure(["iou"], mask="mask.png")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ no trace


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", MODELS)
def test_measuring_leaves_model_process_and_input_bit_identical(name: str, training: bool) -> None:
    model = seeded(MODELS[name]).train(training)
    x = images(1, next(one.in_channels for one in model.modules() if isinstance(one, nn.Conv2d)))
    given = torch.from_numpy(heats())
    before = given.clone()
    with assert_untouched(model, x):
        only(x, model, OF_PICTURES, layer=model.layer, masks=masks(), maps=given, target=1)
    assert torch.equal(given, before)


def bfloat16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode, bfloat16])
@pytest.mark.parametrize("name", [*ASKING, "parameter-randomisation", "random-logit", "max-sensitivity", "adcc"])
def test_the_callers_modes_change_nothing(name: str, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    model, x, given = seeded(Plain), images(1), heats(1, (8, 8))
    wanted = only(x, model, name, maps=given, layer="relu2", target=1)[name].value
    with mode():
        found = only(x, model, name, maps=given, layer="relu2", target=1)[name].value
    assert found == wanted


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode, bfloat16])
@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "score-cam"])
def test_the_callers_modes_change_nothing_of_the_map_that_is_made(
    method: str, mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    model, x, names = seeded(Plain), images(1), ["complexity", "entropy", "deletion"]
    wanted = only(x, model, names, method=method, layer="relu2", target=1)
    with mode():
        found = only(x, model, names, method=method, layer="relu2", target=1)
    assert values(found) == values(wanted)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("size", "shown"), [((8, 8), r"8.*8"), ((16, 15), r"16.*15"), ((32, 32), r"32.*32")])
def test_a_mask_of_another_size_than_the_picture_is_refused(size: tuple[int, int], shown: str) -> None:
    with pytest.raises(MetricError, match=rf"the mask is .*{shown}"):
        only(images(1), seeded(Plain), "iou", maps=heats(), masks=np.ones((1, *size), bool))


@pytest.mark.parametrize("name", OF_PLACE)
def test_an_empty_mask_gives_no_value_and_says_so(name: str) -> None:
    found = only(images(1), seeded(Plain), name, maps=heats(), masks=np.zeros((1, 16, 16), bool))[name]
    assert found.value is None
    assert "the mask is empty" in found.undefined


@pytest.mark.parametrize("name", OF_PLACE)
def test_a_metric_of_place_without_a_mask_is_refused(name: str) -> None:
    with pytest.raises(MetricError, match=f"{name} needs .*a mask of the object"):
        only(images(1), seeded(Plain), name, maps=heats())


@pytest.mark.parametrize("name", ON_BOARDS)
def test_a_metric_of_boards_on_a_picture_is_refused(name: str) -> None:
    with pytest.raises(MetricError, match=f"{name} needs a board"):
        only(images(1), seeded(Plain), name, maps=heats())


CONSTANT = {
    "adcc": 0.0,
    "average-drop": 0.0,
    "average-gain": 0.0,
    "complexity": 1.0,
    "entropy": math.log(256),
    "increase-in-confidence": 0.0,
    "iou": 48 / 256,
    "mass-in-mask": 48 / 256,
    "pointing-game": 1.0,
    "energy-pointing-game": 48 / 256,
    "sparseness": 0.0,
    "parameter-randomisation": None,
    "random-logit": None,
}


def test_a_constant_map_has_the_figures_of_one_that_says_nothing_and_no_correlation() -> None:
    found = only(images(1), seeded(Plain), OF_PICTURES, maps=np.ones((1, 4, 4)), masks=masks(), layer="relu2")
    for name, wanted in CONSTANT.items():
        if wanted is None:
            assert found[name].value is None
            assert "constant map" in found[name].undefined
        else:
            assert found[name].value == pytest.approx(wanted)
    for name in ("deletion", "insertion", "road-morf", "road-lerf"):
        assert found[name].value is not None, "its pixels are taken in a random order"


def test_an_empty_map_has_no_shares_and_says_so() -> None:
    found = only(images(1), seeded(Plain), OF_PICTURES, maps=np.zeros((1, 4, 4)), masks=masks(), layer="relu2")
    empty = {name for name, one in found.items() if one.value is None}
    # A curve takes an empty map's pixels in a random order, and it is a miss; the last asks for maps of its own.
    assert set(found) - empty == {
        "deletion",
        "insertion",
        "road-morf",
        "road-lerf",
        "pointing-game",
        "max-sensitivity",
    }
    assert found["pointing-game"].value == 0
    for name in empty - {"infidelity", "random-logit", "parameter-randomisation"}:
        assert "the map is empty" in found[name].undefined


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of", ["maps", "masks"])
def test_maps_and_masks_with_nan_or_infinity_are_refused(of: str, bad: float) -> None:
    given = heats(1, (16, 16))
    given[0, 2, 1] = bad
    with pytest.raises(MetricError, match=f"{of} hold NaN or infinity"):
        only(images(1), seeded(Plain), "iou", **({"maps": heats(), "masks": masks()} | {of: given}))


@pytest.mark.parametrize("given", [np.ones((4, 4)), np.ones((2, 4, 4)), np.ones((1, 1, 4, 4)), torch.ones(0, 4, 4)])
@pytest.mark.parametrize("of", ["maps", "masks"])
def test_maps_and_masks_that_are_not_one_a_picture_are_refused(of: str, given: Any) -> None:
    with pytest.raises(MetricError, match=rf"{of} are of shape .*; expected one \(h, w\) for each of 1 images"):
        only(images(1), seeded(Plain), "iou", **({"maps": heats(), "masks": masks()} | {of: given}))


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(MetricError, match=r"there is no metric 'deletoin'. Did you mean 'deletion'\? List them"):
        only(images(1), seeded(Plain), "deletoin")
    with pytest.raises(MetricError, match="Did you mean 'pointing-game'"):
        only(images(1), seeded(Plain), "pointing_game")
    with pytest.raises(MetricError, match="there is no metric 7"):
        only(images(1), seeded(Plain), [7])  # type: ignore[list-item]


@pytest.mark.parametrize("names", [[], (), "deletion"])
def test_metrics_that_are_no_list_of_names_are_refused(names: Any) -> None:
    with pytest.raises(MetricError, match="expected a list of names, such as"):
        measure(images(1), seeded(Plain), names)


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_option_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(MetricError, match=f"no option 'colour' in {name}") as error:
        check_metrics([name], {name: {"colour": 1}})
    assert all(one in str(error.value) for one in find_metric(name).options)


@pytest.mark.parametrize("name", [name for name in ALL if list_metrics()[name].options])
def test_an_option_of_another_kind_is_refused(name: str) -> None:
    for option, default in find_metric(name).options.items():
        for wrong in ("many", None, [1, 2], "1", True) if not isinstance(default, tuple) else (0.3, "many", [], ["a"]):
            if isinstance(default, bool) and wrong is True:
                continue
            with pytest.raises(MetricError, match=f"option {option} is .*; expected"):
                check_metrics([name], {name: {option: wrong}})
        check_metrics([name], {name: {option: default}})


OUT_OF_RANGE: dict[str, dict[str, list[Any]]] = {
    "deletion": {"step": [0, -1], "seed": [-1]},
    "insertion": {"step": [0, -1], "seed": [-1]},
    "road-morf": {"shares": [[0.0], [1.0], [-0.1], [1.1]], "noise": [-0.1, 101.0], "seed": [-1]},
    "road-lerf": {"shares": [[0.0], [1.0], [-0.1], [1.1]], "noise": [-0.1, 101.0], "seed": [-1]},
    "infidelity": {"samples": [0, -1, 1], "size": [0.0, -0.5, 1.1], "seed": [-1]},
    "max-sensitivity": {"samples": [0, -1], "radius": [0.0, -0.1], "seed": [-1]},
    "pointing-game": {"tolerance": [-1]},
    "iou": {"threshold": [0.0, -0.1, 1.1]},
    "random-logit": {"classes": [0, -1], "seed": [-1]},
    "parameter-randomisation": {"depths": [-1], "draws": [0, -1], "seed": [-1]},
}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [(name, option, one) for name, of in OUT_OF_RANGE.items() for option, each in of.items() for one in each],
)
def test_an_option_out_of_range_is_refused_by_name(name: str, option: str, value: Any) -> None:
    with pytest.raises(MetricError) as error:
        only(
            images(1), seeded(Plain), name, maps=heats(), masks=masks(), layer="relu2", settings={name: {option: value}}
        )
    assert option in str(error.value) or option in ("samples", "size")  # which share one sentence


def test_every_option_with_a_range_is_tried_out_of_range() -> None:
    known = {(name, option) for name in ALL for option in find_metric(name).options}
    tried = {(name, option) for name, of in OUT_OF_RANGE.items() for option in of}
    assert known - tried == {("infidelity", "rescaled")}
    assert tried <= known


def test_settings_of_a_metric_that_is_not_measured_are_refused() -> None:
    with pytest.raises(
        MetricError, match="settings are given for 'insertion', which is not measured; measured are del"
    ):
        only(images(1), seeded(Plain), "deletion", settings={"insertion": {"step": 3}})


@pytest.mark.parametrize("name", ["random-logit", "road-morf", "road-lerf"])
def test_a_target_that_is_no_class_is_refused_where_a_class_is_asked_for(name: str) -> None:
    with pytest.raises(MetricError, match=f"{name} needs a class"):
        only(images(1), seeded(Plain), name, maps=heats(), target=sightline.margin(1, 0))


def test_random_logit_of_a_single_class_model_is_refused() -> None:
    with pytest.raises(MetricError, match="random-logit needs a class among several"):
        only(images(1), seeded(OneLogit), "random-logit", layer="conv")


def test_a_single_class_model_has_every_other_metric() -> None:
    names = [name for name in OF_PICTURES if name != "random-logit"]
    found = only(images(1), seeded(OneLogit), names, layer="conv", masks=masks(), maps=heats())
    assert all(one.value is not None for one in found.values())


def test_whether_a_single_class_is_the_first_is_whether_it_is_more_likely_than_not() -> None:
    """The largest of one logit is always that one, which would say that road never loses the class."""
    model = seeded(OneLogit)
    with torch.no_grad():
        model.head.bias.fill_(-9)
    found = only(images(1), model, "road-morf", layer="conv", maps=heats())["road-morf"]
    assert found.curve is not None
    assert found.value is not None
    assert found.value < 0.1
    assert not found.curve.hits.any()


@pytest.mark.parametrize("name", SHARES_OF_A_PROBABILITY)
@pytest.mark.parametrize("target", [sightline.margin(0, 1), sightline.margin(1, 0), lambda output: output[:, 0] + 7])
def test_a_share_of_a_score_that_is_no_probability_lies_in_0_to_1_or_is_not_told(name: str, target: Any) -> None:
    for seed in range(6):
        found = only(images(1, seed=seed), seeded(Plain), name, maps=heats(), target=target, layer="relu2")[name]
        if found.value is None:
            assert found.undefined
        else:
            assert 0 <= found.value <= 1


@pytest.mark.parametrize("targets", [[], [1], [1, 2], [1, 2, 3, 4], torch.tensor([1, 2])])
def test_a_list_of_targets_of_another_length_than_the_batch_is_refused(targets: Any) -> None:
    with pytest.raises(TargetError, match=f"{len(targets)} targets for 3 images"):
        measure(images(3), seeded(Plain), ["deletion"], target=targets)
    with pytest.raises(TargetError):
        targets_of(targets, 3)


@pytest.mark.parametrize("target", [-1, CLASSES, "no such class", 1.5, True])
def test_a_class_that_does_not_exist_is_refused(target: Any) -> None:
    with pytest.raises(TargetError):
        only(images(1), seeded(Plain), "deletion", target=target)


def test_a_layer_or_method_that_does_not_exist_is_refused() -> None:
    with pytest.raises(LayerError, match="relu3"):
        only(images(1), seeded(Plain), "deletion", layer="relu3")
    with pytest.raises(MethodError, match="grad-cma"):
        only(images(1), seeded(Plain), "deletion", method="grad-cma")


# ------------------------------------------------------------------------------------------------------------- registry


def test_what_a_metric_lacks_is_named() -> None:
    with pytest.raises(
        MetricError, match="deletion needs a map and the model's input and a model to ask, which is not"
    ):
        run_metric(find_metric("deletion"), Case())
    with pytest.raises(MetricError, match="random-logit needs the method that made the map and a class"):
        run_metric(find_metric("random-logit"), Case())


def made_by_hand(function: Callable[..., Any]) -> Any:
    return sightline.metrics.Metric("by-hand", function, "higher", "", "here")


def test_a_value_that_is_not_finite_is_undefined_and_not_told_as_a_number() -> None:
    def mean(heat: np.ndarray) -> float:
        return float(heat.mean())

    def curve(heat: np.ndarray) -> Curve:
        return Curve(heat[0], heat[0], mean(heat))

    def undefined(heat: np.ndarray) -> float:
        raise UndefinedError("there is nothing to see")

    huge = np.full((2, 2), 1e308)
    for function in (mean, curve):
        with np.errstate(over="ignore"):
            found = run_metric(made_by_hand(function), Case(heat=huge))
        assert found.value is None
        assert "by-hand gave inf" in found.undefined
        assert (found.curve is None) == (function is mean)
    assert run_metric(made_by_hand(undefined), Case(heat=huge)).undefined == "there is nothing to see"


def test_a_metric_from_outside_that_fails_is_named_with_what_it_said() -> None:
    def broken(heat: np.ndarray) -> float:
        return float(heat[99, 99])

    def wordy(heat: np.ndarray) -> Any:
        return "much"

    with pytest.raises(MetricError, match="by-hand failed with IndexError: index 99"):
        run_metric(made_by_hand(broken), Case(heat=heats()[0]))
    with pytest.raises(MetricError, match="by-hand failed with ValueError"):
        run_metric(made_by_hand(wordy), Case(heat=heats()[0]))


def documented(heat: np.ndarray) -> float:
    """Something."""
    return 0.0


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"name": "My Metric"}, "can't be called 'My Metric'"),
        ({"name": "new", "better": "bigger"}, "better='bigger' of new; expected one of higher, lower, neither"),
        ({"name": "deletion"}, "a metric called 'deletion' is registered already"),
    ],
)
def test_a_metric_that_can_not_be_registered_is_refused(keywords: dict[str, Any], message: str) -> None:
    before = list_metrics()
    with pytest.raises(MetricError, match=message):
        metric(**({"better": "higher", "reference": "here"} | keywords))(documented)
    assert list_metrics() == before


def test_a_metric_without_a_docstring_or_of_unknown_parts_is_refused() -> None:
    with pytest.raises(MetricError, match="new has no docstring"):
        metric("new", better="higher", reference="here")(lambda heat: 0.0)

    def unknown(heat: np.ndarray, picture: Tensor) -> float:
        """Something."""
        return 0.0

    with pytest.raises(MetricError, match="new takes picture; what a metric can take is heat, placed, mask"):
        metric("new", better="higher", reference="here")(unknown)
