"""The trust card: its figures are the metrics', its verdict follows its rules, and it finds what is planted."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from conftest import Tokens, assert_untouched, seeded
from sightline.cli.doctor import DEMO as CAT
from sightline.errors import MetricError, ModelError
from sightline.heatmap import Heatmap
from sightline.models.adapter import Adapter
from sightline.trust import ALIKE, OCCLUSION, THIS, TrustCard, planned_for

SIDE = 32


def to_tensor(picture: Image.Image) -> Tensor:
    pixels = np.asarray(picture.resize((SIDE, SIDE)), np.float32) / 127.5 - 1
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


class RedPatch(nn.Module):
    """Class 0 is as likely as the 8 x 8 patch at the top left is red, class 1 as the one at the bottom right is blue."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 2, 4, stride=4)
        self.relu = nn.ReLU()
        self.head = nn.Linear(2 * 64, 3)
        with torch.no_grad():
            for one in self.parameters():
                one.zero_()
            self.colours.weight[0, 0], self.colours.weight[1, 2] = 1 / 16, 1 / 16
            weights = self.head.weight.view(3, 2, 8, 8)
            weights[0, 0, :2, :2], weights[1, 1, -2:, -2:] = 1.5, 1.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.colours(x)).flatten(1))


@pytest.fixture
def red_patch() -> Adapter:
    return sightline.adapt(RedPatch().eval(), layers=["relu"], preprocess=to_tensor, labels=["red", "blue", "none"])


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(60, 130, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:8, :8] = (250, 20, 20)
    pixels[-8:, -8:] = (20, 20, 250)
    return Image.fromarray(pixels)


@pytest.fixture
def good(red_patch: Adapter, picture: Image.Image) -> Heatmap:
    return sightline.explain(picture, red_patch, method="hires-cam", target="red")


def outcomes(card: TrustCard) -> dict[str, str]:
    return {one.name: one.outcome for one in card.checks}


def edges(capture: Any) -> Tensor:
    """Edges of the picture: it never asks the model."""
    grey = capture.input.mean(dim=1, keepdim=True)
    steep = (grey[:, :, 1:, :-1] - grey[:, :, :-1, :-1]).abs() + (grey[:, :, :-1, 1:] - grey[:, :, :-1, :-1]).abs()
    return nn.functional.adaptive_avg_pool2d(steep, capture.activations.shape[2:])[:, 0]


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_a_true_map_is_supported_but_where_a_random_one_happens_to_be_as_good(good: Heatmap) -> None:
    cards = [good.trust(seed=seed) for seed in range(8)]
    assert sum(one.verdict == "supported" for one in cards) >= 5
    assert all(one.verdict != "not supported" for one in cards)
    assert all(outcomes(one)["faithfulness"] == "passed" for one in cards if one.verdict == "supported")


def test_an_edge_detector_fails_because_random_weights_leave_it_as_it_is(
    red_patch: Adapter, picture: Image.Image
) -> None:
    card = sightline.explain(picture, red_patch, method=edges, target="red").trust()
    assert outcomes(card)["randomisation"] == "failed"
    assert card.verdict == "not supported"
    assert card.randomisation is not None
    assert card.randomisation.scores == pytest.approx(1)
    assert list(card.classes.values()) == pytest.approx([1, 1])


def test_on_the_bundled_model_grad_cam_passes_randomisation_and_an_edge_detector_fails() -> None:
    model = sightline.load_model()
    for method, outcome in (("grad-cam", "passed"), (edges, "failed")):
        assert outcomes(sightline.explain(CAT, model, method=method).trust())["randomisation"] == outcome


def test_a_map_of_the_wrong_place_is_not_supported(good: Heatmap) -> None:
    wrong = dataclasses.replace(good, raw=good.raw[::-1, ::-1].copy(), signed_raw=good.signed_raw[::-1, ::-1].copy())
    card = wrong.trust()
    assert outcomes(card)["faithfulness"] == "failed"
    assert card.verdict == "not supported"


def test_an_empty_and_a_flat_map_are_not_supported(good: Heatmap) -> None:
    for values, said in ((np.zeros((8, 8)), "empty"), (np.ones((8, 8)), "same everywhere")):
        flat = dataclasses.replace(good, raw=values.astype(np.float32), signed_raw=values.astype(np.float32))
        card = flat.trust()
        assert card.verdict == "not supported"
        assert said in card.checks[0].says
        assert all(np.isfinite(one.scores).all() for each in card.curves.values() for one in each.values())


def test_a_map_that_is_the_same_for_every_class_is_only_weak(red_patch: Adapter, picture: Image.Image) -> None:
    card = sightline.explain(picture, red_patch, method="eigen-cam", target="red").trust()
    assert outcomes(card)["class sensitivity"] == "doubtful"
    assert card.verdict != "supported"


def test_a_target_that_hardly_moves_has_no_answer(red_patch: Adapter) -> None:
    card = sightline.explain(Image.new("RGB", (SIDE, SIDE), (127, 127, 127)), red_patch, target="none").trust()
    faithfulness = next(one for one in card.checks if one.name == "faithfulness")
    assert faithfulness.outcome == "no answer"
    assert "hardly differs" in faithfulness.says
    assert card.verdict != "supported"


def test_every_check_says_its_figures_and_its_rule(good: Heatmap) -> None:
    card = good.trust()
    assert [one.name for one in card.checks] == [
        "evidence", "faithfulness", "class sensitivity", "randomisation", "agreement",
    ]  # fmt: skip
    assert all(one.says and one.rule for one in card.checks)
    assert str(ALIKE) in card.checks[-1].rule
    assert "Rule: " in card.because


# --------------------------------------------------------------------------------------------------------------- figures


def test_its_curves_are_those_of_the_metrics(good: Heatmap) -> None:
    card = good.trust()
    step = -(-SIDE * SIDE // 6)
    found = good.measure(["deletion", "insertion"], settings={one: {"step": step} for one in ("deletion", "insertion")})
    for name in ("deletion", "insertion"):
        curve = found[name].curve
        assert curve is not None
        assert card.curves[name][THIS].scores == pytest.approx(curve.scores)
        assert card.curves[name][THIS].value == pytest.approx(found[name].value)


def test_all_curves_begin_and_end_alike(good: Heatmap) -> None:
    card = good.trust()
    for each in card.curves.values():
        assert len({one.scores[0] for one in each.values()}) == 1
        assert len({one.scores[-1] for one in each.values()}) == 1


def test_it_asks_no_more_than_it_says_and_at_most_60(good: Heatmap, red_patch: Adapter, picture: Image.Image) -> None:
    for heatmap in (good, sightline.explain(picture, red_patch, method="grad-cam++")):
        asked: list[Tensor] = []
        assert heatmap.origin is not None
        handle = heatmap.origin.adapter.module.register_forward_hook(
            lambda _m, args, _o, asked=asked: asked.append(args[0])
        )
        told = planned_for(heatmap.origin, full=False)
        card = heatmap.trust()
        handle.remove()
        whole = sum(len(one) for one in asked)
        assert card.forwards <= told <= 60
        assert whole <= 60


def test_the_methods_of_attention_keep_to_the_budget_too() -> None:
    adapter = sightline.adapt(seeded(Tokens), preprocess=lambda one: to_tensor(one)[:, ::2, ::2])
    heatmap = sightline.explain(Image.new("RGB", (40, 40), (90, 120, 30)), adapter, method="attention-grad")
    assert heatmap.origin is not None
    card = heatmap.trust()
    assert card.forwards <= planned_for(heatmap.origin, full=False) <= 60
    assert outcomes(card)["class sensitivity"] in {"passed", "doubtful"}


def test_a_method_that_asks_many_times_leaves_checks_out_and_says_so(red_patch: Adapter, picture: Image.Image) -> None:
    card = sightline.explain(picture, red_patch, method="score-cam", target="red").trust()
    assert outcomes(card)["randomisation"] == "not run"
    assert "--trust full" in next(one.says for one in card.checks if one.name == "randomisation")
    assert card.forwards <= 60


def test_full_runs_every_metric_and_tells_how_far_it_is(good: Heatmap) -> None:
    told: list[tuple[int, int]] = []
    card = good.trust(full=True, progress=lambda done, total: told.append((done, total)))
    wanted = set(sightline.list_metrics()) - {
        "pointing-game", "energy-pointing-game", "mass-in-mask", "iou", "grid-pointing-game", "di-full",
    }  # fmt: skip
    assert set(card.measured) == wanted
    assert all((one.value is None) == bool(one.undefined) for one in card.measured.values())
    assert told[-1][0] == told[-1][1]
    assert all(done <= total for done, total in told)
    assert len(card.curves["deletion"][THIS].scores) == -(-SIDE * SIDE // 224) + 1
    assert card.randomisation is not None
    assert len(card.randomisation.scores) == 3  # as it is, the head, the convolution


def test_the_same_seed_gives_the_same_card(good: Heatmap) -> None:
    assert good.trust().record() == good.trust().record()
    assert good.trust(seed=1).record()["curves"] != good.trust().record()["curves"]


def test_the_model_is_as_it_was(good: Heatmap, red_patch: Adapter) -> None:
    with assert_untouched(red_patch.module):
        good.trust()
        good.measure(["adcc", "max-sensitivity", "parameter-randomisation", "road-morf", "infidelity"])


def test_hiding_parts_agrees_with_a_true_map(good: Heatmap) -> None:
    agreement = good.trust().agreement
    assert OCCLUSION in agreement


# -------------------------------------------------------------------------------------------------------------- pictures


def test_the_card_is_one_picture_with_everything_on_it(good: Heatmap) -> None:
    card = good.trust()
    picture = card.panel()
    assert picture.mode == "RGB"
    assert picture.width < 1600
    assert picture.height > 500


def test_a_stored_map_says_that_it_has_no_model_to_ask(good: Heatmap) -> None:
    stored = pickle.loads(pickle.dumps(good))  # noqa: S301
    assert (stored.raw == good.raw).all()
    with pytest.raises(ModelError, match="explain the picture again"):
        stored.trust()


# --------------------------------------------------------------------------------------------------------------- measure


def test_measure_takes_a_mask_of_the_photograph(good: Heatmap) -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:8, :8] = True
    found = good.measure(["mass-in-mask", "pointing-game"], mask=mask)
    assert found["mass-in-mask"].value == pytest.approx(1, abs=0.25)  # the rest lies in the margin of the upsampling
    assert found["pointing-game"].value == 1
    with pytest.raises(MetricError, match="32 x 32"):
        good.measure(["iou"], mask=mask[:16])
    with pytest.raises(MetricError, match="needs a map on the mask's pixels and a mask"):
        good.measure(["iou"])
    empty = good.measure(["iou"], mask=mask & False)["iou"]
    assert empty.value is None
    assert "mask is empty" in empty.undefined


def test_measure_of_tensors_takes_maps_from_anywhere() -> None:
    model = RedPatch().eval()
    x = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = torch.zeros(2, 8, 8)
    maps[:, :2, :2] = 1
    found = sightline.measure(x, model, ["deletion", "mass-in-mask"], maps=maps, target=[0, 0], masks=maps.repeat_interleave(4, 1).repeat_interleave(4, 2))  # fmt: skip
    assert len(found) == 2
    assert all(one["deletion"].value is not None for one in found)
    own = sightline.measure(x, model, ["deletion"], method="hires-cam", layer="relu", target=0)
    assert own[0]["deletion"].value == pytest.approx(found[0]["deletion"].value, abs=0.05)
    with pytest.raises(MetricError, match="one \\(h, w\\) for each of 2 images"):
        sightline.measure(x, model, ["deletion"], maps=maps[:1])
    with pytest.raises(sightline.SightlineError, match="1 targets for 2 images"):
        sightline.measure(x, model, ["deletion"], target=[0])
