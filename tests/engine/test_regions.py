"""A class at a point, in a box, in a region: which cells of the output count, through every resize and crop, and how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from made_dense import BIASES, CELL, WEIGHTS, Colours, block_photo, plain_photo, prepared
from oracles_targets import argmax_region, cell_of_point, in_box, in_mask, region_score, shares
from sightline.errors import TargetError
from sightline.models.preprocess import standard

NAMES = ("sky", "green", "blue")
PHOTO = (120, 80)
# How the photograph (120, 80) becomes the input: its preprocessing, and (seen, photo, resized, corner) as the oracles take it.
VIEWS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "whole": (prepared((48, 32), 32), ((48, 32), PHOTO, (48, 32), (0, 0))),
    "cut": (prepared((32, 32), 40), ((32, 32), PHOTO, (60, 40), (14, 4))),
    "squashed": (prepared((32, 40), 32, "exact"), ((32, 40), PHOTO, (32, 32), (0, -4))),
    "bordered": (
        standard(size=(48, 48), resize=48, fit="longer", mean=(0.0,) * 3, std=(1.0,) * 3),
        ((48, 48), PHOTO, (48, 32), (0, -8)),
    ),
    "enlarged": (prepared((160, 160), 160), ((160, 160), PHOTO, (240, 160), (40, 0))),
}


def model(view: str = "whole", net: nn.Module | None = None, **more: Any) -> sightline.Adapter:
    more = {"labels": NAMES, **more}
    return sightline.adapt(net or Colours(), layers=["see"], preprocess=VIEWS[view][0], **more)


def asked(target: Any, view: str = "whole", photo: Any = None, **more: Any) -> sightline.Heatmap:
    """hires-cam: of a white photograph, the weight of the class times which share of each cell counts."""
    return sightline.explain(photo or plain_photo(PHOTO), model(view, **more), method="hires-cam", target=target)


def logits_of(view: str, photo: Any) -> Any:
    x, _ = VIEWS[view][0](photo)
    with torch.no_grad():
        return Colours()(x[None])[0].double().numpy()


def cells(view: str) -> tuple[int, int]:
    width, height = VIEWS[view][1][0]
    return height // CELL, width // CELL


def agree(found: sightline.Heatmap, M: Any, index: int, view: str, photo: Any = None) -> None:
    """Score and map are those of the region M."""
    logits = logits_of(view, photo or plain_photo(PHOTO))
    assert M.any()
    assert found.score == pytest.approx(region_score(logits, index, M), abs=1e-5)
    np.testing.assert_allclose(found.signed_raw, M * (logits[index] - BIASES[index]), atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- the cells


@pytest.mark.proves("hires-cam", says="of a class at a point in a segmentation, is that one cell of the output alone")
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("point", [(59.0, 41.0), (40.2, 9.7), (84.9, 71.3), (60.0, 40.0), (63.9, 31.9)])
def test_a_point_of_the_photograph_is_the_cell_that_holds_it(view: str, point: tuple[float, float]) -> None:
    seen, photo, resized, corner = VIEWS[view][1]
    M = cell_of_point(point, cells(view), seen, photo, resized, corner)
    assert M.sum() == 1
    for index in range(3):
        agree(asked(sightline.segment(index, point=point), view), M, index, view)


@pytest.mark.proves(
    "hires-cam",
    says="of a class in a box in a segmentation, counts each cell by its share inside, looked up at 4 x 4 places",
)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "box", [(30.3, 11.1, 90.7, 70.9), (35.1, 20.3, 60.7, 40.9), (-50.0, -40.0, 500.0, 300.0), (50.1, -9.0, 70.3, 200.0)]
)
def test_a_box_counts_each_cell_by_its_share_inside(view: str, box: tuple[float, float, float, float]) -> None:
    seen, photo, resized, corner = VIEWS[view][1]
    M = shares(in_box(box), cells(view), seen, photo, resized, corner)
    agree(asked(sightline.segment("green", box=box), view), M, 1, view)


@pytest.mark.proves(
    "hires-cam", says="of a class in a region in a segmentation, is the definition's (Seg-Grad-CAM, eq. 2)"
)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", ["half", "ring", "noise", "all"])
def test_a_region_counts_each_cell_by_its_share_inside(view: str, kind: str) -> None:
    rows, columns = np.mgrid[:80, :120]
    away = np.hypot(rows - 40, columns - 60)
    region = {
        "half": columns < 57,
        "ring": (away > 12) & (away < 30),
        "noise": np.random.default_rng(0).random((80, 120)) < 0.3,
        "all": rows >= 0,
    }[kind]
    seen, photo, resized, corner = VIEWS[view][1]
    M = shares(in_mask(region), cells(view), seen, photo, resized, corner)
    agree(asked(sightline.segment("green", region=region), view), M, 1, view)
    agree(asked(sightline.segment("green", region=region * 7.5), view), M, 1, view)


@pytest.mark.proves(
    "hires-cam", "grad-cam", says="of a class of a segmentation, reads the places where the model sees the class"
)
def test_without_a_place_it_is_where_the_model_sees_the_class() -> None:
    photo = block_photo(PHOTO, {(20, 20, 60, 60): (0, 255, 0)}, (255, 0, 0))
    logits = logits_of("whole", photo)
    for index in (0, 1):
        found = asked(index, photo=photo)
        agree(found, argmax_region(logits, index), index, "whole", photo)
        assert found.label == NAMES[index]
    assert asked(None, photo=photo).label == "sky", "the class of the largest part"
    named = asked(None, photo=photo, labels=("background", "green", "blue"))
    assert named.label == "green", "the largest that is no background"


@pytest.mark.proves(
    "hires-cam", says="of a segmentation, is exactly the planted block inside the region and 0 elsewhere"
)
def test_the_map_is_the_planted_block_inside_the_region_and_nothing_elsewhere() -> None:
    photo = block_photo((48, 32), {(8, 8, 24, 16): (0, 255, 0), (32, 16, 48, 32): (0, 255, 0)})
    box = (0.0, 0.0, 24.0, 32.0)
    found = asked(sightline.segment("green", box=box), photo=photo)
    wanted = np.zeros((4, 6))
    wanted[1, 1:3] = WEIGHTS[1]
    np.testing.assert_allclose(found.signed_raw, wanted, atol=1e-6)
    assert not found.signed_raw[wanted == 0].any()


@pytest.mark.proves("grad-cam", says="of a region in a segmentation, averages the region's gradient over all places")
def test_grad_cam_of_a_region_is_the_share_of_the_region_times_the_colour() -> None:
    photo = plain_photo(PHOTO, (51, 255, 102))
    region = np.zeros((80, 120), bool)
    region[:40, :60] = True
    found = sightline.explain(photo, model(), method="grad-cam", target=sightline.segment("green", region=region))
    np.testing.assert_allclose(found.raw, WEIGHTS[1] * 0.25, atol=1e-6)


def test_the_class_of_a_place_is_that_of_most_of_it_when_none_is_named() -> None:
    photo = block_photo(PHOTO, {(0, 0, 60, 80): (0, 255, 0)}, (255, 0, 0))
    assert asked(sightline.segment(point=(10, 10)), photo=photo).label.startswith("green")
    assert asked(sightline.segment(point=(110, 10)), photo=photo).label.startswith("sky")
    assert asked(sightline.segment(box=(0, 0, 70, 80)), photo=photo).label.startswith("green")
    assert asked(sightline.segment(box=(50, 0, 120, 80)), photo=photo).label.startswith("sky")
    region = np.zeros((80, 120))
    region[:, 40:] = 1
    assert asked(sightline.segment(region=region), photo=photo).label.startswith("sky")


def test_a_place_has_a_score_and_no_probability() -> None:
    photo = block_photo(PHOTO, {(0, 0, 60, 80): (0, 255, 0)}, (255, 0, 0))
    assert asked(sightline.segment("green", box=(0, 0, 80, 80)), photo=photo).probability is None
    assert asked("green", photo=photo).probability is None


def test_a_ready_input_is_its_own_photograph() -> None:
    x = torch.ones(2, 3, 32, 48)
    found = sightline.attribute(x, model(), method="hires-cam", target=sightline.segment(1, point=(17, 9)))
    wanted = torch.zeros(2, 4, 6)
    wanted[:, 1, 2] = WEIGHTS[1]
    assert torch.allclose(found, wanted)


def test_each_picture_of_a_batch_has_its_own_places() -> None:
    x = torch.zeros(2, 3, 32, 48)
    x[0, 1, :16], x[1, 1, 16:] = 1, 1
    found = sightline.attribute(x, model(), method="hires-cam", target=1)
    assert torch.allclose(found, 2 * x[:, 1, ::8, ::8])


class OneLogit(nn.Module):
    """A class against all else, without a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.AvgPool2d(CELL)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.see(x)[:, 1:2] - 1


def test_one_logit_is_a_class_against_all_else() -> None:
    photo = block_photo((48, 32), {(8, 8, 24, 24): (0, 255, 0)})
    found = asked(sightline.segment(1), photo=photo, net=OneLogit(), labels=("rest", "road"))
    assert found.label == "road"
    wanted = np.zeros((4, 6))
    wanted[1:3, 1:3] = 2  # and the class is seen nowhere else
    np.testing.assert_allclose(found.signed_raw, wanted, atol=1e-6)


def test_a_region_smaller_than_the_places_that_are_looked_up_is_the_cell_that_holds_it() -> None:
    """A cell of the output is 20 x 20 pixels of the photograph, and places in it are 5 apart."""
    region = np.zeros((80, 120), bool)
    region[45, 66] = True
    found = asked(sightline.segment("green", region=region))
    small = asked(sightline.segment("green", box=(65.6, 44.6, 66.4, 45.4)))
    wanted = np.zeros((4, 6))
    wanted[2, 3] = WEIGHTS[1]
    np.testing.assert_allclose(small.signed_raw, wanted, atol=1e-6)
    np.testing.assert_allclose(found.signed_raw, wanted, atol=1e-6)


def test_the_map_of_a_point_lies_round_the_point_on_the_photograph() -> None:
    for view in VIEWS:
        found = asked(sightline.segment(1, point=(47.0, 33.0)), view)
        x, y = found.view.peak(found.raw)
        width, height = VIEWS[view][1][2]
        assert abs(x - 47) <= CELL * PHOTO[0] / width
        assert abs(y - 33) <= CELL * PHOTO[1] / height


def test_the_mark_is_what_was_asked_for() -> None:
    point = asked(sightline.segment(1, point=(47.0, 33.0))).mark
    assert point is not None
    assert point.point == (47.0, 33.0)
    box = asked(sightline.segment(1, box=(20, 20, 60, 40))).mark
    assert box is not None
    assert box.box == (20, 20, 60, 40)
    region = np.zeros((80, 120), bool)
    region[20:40, 40:80] = True
    mark = asked(sightline.segment(1, region=region)).mark
    assert mark is not None
    assert mark.region is not None
    assert (mark.region == region).all()


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"point": (121, 40)}, "the point 121, 40 lies outside the photograph of 120 x 80 pixels"),
        ({"point": (-1, 40)}, "the point -1, 40 lies outside the photograph"),
        ({"point": (float("nan"), 40)}, "the point nan, 40 lies outside the photograph"),
        ({"point": (5, 40)}, "the point 5, 40 was cut off before the model; it saw the part from 28, 8 to 92, 72"),
        ({"point": (3,)}, "is no point; expected"),
        ({"point": ("a", "b")}, "is no point; expected"),
        ({"point": 3}, "is no point; expected"),
        ({"box": (50, 50, 50, 60)}, "the box 50, 50, 50, 60 is empty"),
        ({"box": (60, 50, 50, 60)}, "the box 60, 50, 50, 60 is empty"),
        ({"box": (0, float("nan"), 50, 60)}, "the box 0, nan, 50, 60 is empty"),
        ({"box": (120, 0, 140, 60)}, "the box 120, 0, 140, 60 lies outside the photograph of 120 x 80 pixels"),
        ({"box": (1, 2, 3)}, "is no box; expected"),
        ({"box": "here"}, "is no box; expected"),
        ({"box": (0, 0, 20, 80)}, "the box 0, 0, 20, 80 was cut off before the model; it saw the part from 28, 8"),
        ({"region": np.zeros((80, 120))}, "the region is empty"),
        (
            {"region": np.ones((120, 80))},
            r"the region is \(120, 80\); expected the photograph's rows and columns, \(80, 120\)",
        ),
        ({"region": np.ones((80, 120, 3))}, r"the region is \(80, 120, 3\)"),
        ({"region": np.arange(120)[None] < np.full((80, 1), 20)}, "the region lies where the model never looked"),
        ({"point": (60, 40), "box": (0, 0, 9, 9)}, "give one place"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(place: dict[str, Any], said: str) -> None:
    with pytest.raises(TargetError, match=said):
        asked(sightline.segment("green", **place), "cut")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("blue", r"the model gives no pixel to 'blue'; it sees green \(100 %\)"),
        ("red", "has no class 'red'"),
        (3, "class 3 is outside 0 to 2"),
        (-1, "class -1 is outside 0 to 2"),
        ("e", "'e' fits 2 classes"),
        (sightline.segment("red", point=(60, 40)), "has no class 'red'"),
        (sightline.segment(7, point=(60, 40)), "class 7 is outside 0 to 2"),
        (True, "True is no target"),
    ],
)
def test_a_class_that_is_not_there_is_refused(target: Any, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        asked(target)


def test_the_places_of_a_class_that_is_not_seen_can_be_asked_for() -> None:
    assert asked(sightline.segment("blue", point=(60, 40))).score == pytest.approx(WEIGHTS[2] + BIASES[2])


def test_classes_above_a_share_of_the_picture_stand_for_several_targets() -> None:
    photo = block_photo(PHOTO, {(0, 0, 40, 80): (0, 255, 0)}, (255, 0, 0))
    found = sightline.compare(photo, model(), methods=["hires-cam"], targets=[sightline.above(0.3)])
    assert [one.label for one in found] == ["sky", "green"]
    with pytest.raises(TargetError, match=r"nothing a probability of 0\.9 or more"):
        sightline.compare(photo, model(), methods=["hires-cam"], targets=[sightline.above(0.9)])


def test_a_sum_beyond_the_end_of_float16_is_a_number() -> None:
    found = sightline.engine.regions.segment(0, box=(0, 0, 320, 320)).resolved  # type: ignore[attr-defined]
    output = torch.full((1, 2, 320, 320), 5.0, dtype=torch.float16, requires_grad=True)
    score = found(sightline.adapt(nn.Identity()), output, 0, None).score(output)
    assert score.item() == 5 * 320 * 320
    score.sum().backward()
    assert output.grad is not None
    assert output.grad[0, 0].eq(1).all()


def test_what_a_segmentation_says_is_told_as_shares_of_the_pixels() -> None:
    found = sightline.explain(plain_photo((32, 32)), model(), method="hires-cam")
    assert found.predictions
    assert all(one.of_pixels and one.said().endswith(" % of the pixels") for one in found.predictions)
