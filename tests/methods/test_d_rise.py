"""D-RISE: its map against the definition, for boxes with and without probabilities, and what it costs for several boxes."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import Plain, assert_untouched, images, seeded
from made_dense import BOXES, TwoBoxes, plainly, prepared
from oracles_perturbation import rise_mask
from oracles_targets import Found, box_score, d_rise, instance, likeness, mask_overlap, region_score
from sightline.attribution import Terms, map_of, run_once
from sightline.engine.targets import per_image
from sightline.errors import MethodError, TargetError
from sightline.methods import list_methods
from sightline.methods.perturbation import _Masks
from sightline.models.adapter import INPUT
from sightline.models.view import View

SIZE = (32, 32)
MIXED = [((4.0, 8.0, 16.0, 26.0), 1, 0.45), ((4.0, 8.0, 16.0, 26.0), 2, 0.55), ((0.0, 0.0, 9.0, 32.0), 2, 0.5)]


def picture(seed: int = 4) -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counting(net: Any) -> tuple[Any, list[int]]:
    """The detector as a function that counts the pictures it is shown."""
    shown: list[int] = []

    def found(x: Tensor) -> Any:
        shown.append(len(x))
        return net(x)

    return found, shown


def map_and_terms(x: Tensor, model: Any, target: Any, memory_mb: float = 512, **options: Any) -> tuple[Tensor, Terms]:
    adapter, terms = sightline.adapt(model), Terms(options, memory_mb)
    (seen,) = run_once(adapter, x, [INPUT])
    asked = per_image(target, adapter, seen.output, 1, View.of_input(x.shape[3], x.shape[2]))
    return map_of(list_methods()["d-rise"], adapter, seen, asked, terms), terms


@lru_cache
def drawn(samples: int, grid: int, kept: float, seed: int) -> list[Any]:
    """The masks by the oracle, of the cells and offsets that this seed draws."""
    one = _Masks.drawn(samples, grid, kept, SIZE, seed)
    return [
        rise_mask(cells, (int(offset[0]), int(offset[1])), SIZE)
        for cells, offset in zip(one.cells.double().numpy(), one.offsets, strict=True)
    ]


def found_by(net: nn.Module, v: Any) -> Found:
    with torch.no_grad():
        return plainly(net(torch.from_numpy(v)[None])[0])


# ----------------------------------------------------------------------------------------------------- the definition

GIVES: dict[str, tuple[str, ...]] = {
    "scores alone": (),
    "probabilities": ("probabilities",),
    "probabilities and objectness": ("probabilities", "objectness"),
    "objectness alone": ("objectness",),
}


@pytest.mark.proves("d-rise", says="equals its slow float64 oracle, with and without probabilities and objectness")
@pytest.mark.parametrize("gives", GIVES)
@pytest.mark.parametrize(("grid", "kept"), [(16, 0.5), (3, 0.3)])
def test_the_map_is_the_oracles(gives: str, grid: int, kept: float) -> None:
    net, x = TwoBoxes(GIVES[gives], extra=MIXED).double(), picture()
    whole = found_by(net, x[0].numpy())
    masks = drawn(24, grid, kept, 2)
    for number in range(1, len(whole) + 1):
        at = instance(whole, number)
        P = None if whole.probabilities is None else whole.probabilities[at]

        def score(v: Any, at: int = at, P: Any = P) -> float:
            return likeness(whole.boxes[at], whole.labels[at], P, found_by(net, v))

        wanted = d_rise(score, x[0].numpy(), masks, kept, np.full((3, *SIZE), 0.25))
        found, _ = map_and_terms(
            x, net, sightline.instance(number), samples=24, grid=grid, kept=kept, baseline=0.25, seed=2
        )
        assert np.abs(found[0].numpy() - wanted).max() <= 1e-10
        assert np.abs(wanted).max() > 1e-4 or whole.scores[at] in (0.45, 0.55, 0.5)


@pytest.mark.proves("d-rise", says="of a box of one's own, likeness is measured against that box")
@pytest.mark.parametrize("gives", GIVES)
def test_of_a_box_of_ones_own_likeness_is_to_that_box(gives: str) -> None:
    net, x, own = TwoBoxes(GIVES[gives], extra=MIXED[2:]).double(), picture(), (1.0, 7.0, 13.0, 22.0)
    whole = found_by(net, x[0].numpy())
    masks = drawn(24, 16, 0.5, 0)
    P = None if whole.probabilities is None else whole.probabilities[0]
    wanted = d_rise(lambda v: likeness(own, 1, P, found_by(net, v)), x[0].numpy(), masks, 0.5, np.zeros((3, *SIZE)))
    found, terms = map_and_terms(x, net, sightline.box(own, 1), samples=24)
    assert np.abs(found[0].numpy() - wanted).max() <= 1e-10
    assert np.abs(wanted).max() > 1e-4
    whole_picture = likeness(own, 1, P, whole) if P is not None else box_score(whole, own, 1)
    assert 0 < terms.details["mean score"] < whole_picture


@pytest.mark.proves("d-rise", says="of an instance with a mask, overlap is that of masks")
def test_of_an_instance_with_masks_the_overlap_is_of_masks() -> None:
    net, x = TwoBoxes(("masks",)).double(), picture() * 0.3 + 0.7
    whole = found_by(net, x[0].numpy())
    assert whole.masks is not None
    at = instance(whole, 1)
    shape = (whole.masks[at] > 0.5).astype(float)

    def score(v: Any) -> float:
        found = found_by(net, v)
        assert found.masks is not None
        same = [
            mask_overlap(shape, found.masks[d]) * found.scores[d] * (found.labels[d] == whole.labels[at])
            for d in range(len(found))
        ]
        return max(same)

    wanted = d_rise(score, x[0].numpy(), drawn(24, 16, 0.5, 0), 0.5, np.zeros((3, *SIZE)))
    found, _ = map_and_terms(x, net, sightline.instance(1), samples=24)
    assert np.abs(wanted).max() > 1e-4
    assert np.abs(found[0].numpy() - wanted).max() <= 1e-10


@pytest.mark.proves("d-rise", says="a picture in which nothing is found counts as 0")
def test_a_masked_picture_in_which_nothing_is_found_counts_as_nothing() -> None:
    """The detector finds its box where the middle of it is bright."""

    def found(x: Tensor) -> list[dict[str, Any]]:
        bright = x[:, :, 12:20, 12:20].mean(dim=(1, 2, 3)).tolist()
        empty: dict[str, Any] = {"boxes": [], "labels": [], "scores": []}
        return [{"boxes": [[8, 8, 24, 24]], "labels": [1], "scores": [one]} if one > 0.5 else empty for one in bright]

    x = torch.ones(1, 3, *SIZE, dtype=torch.float64)

    def score(v: Any) -> float:
        bright = float(v[:, 12:20, 12:20].mean())
        return bright if bright > 0.5 else 0.0

    wanted = d_rise(score, x[0].numpy(), drawn(24, 16, 0.5, 0), 0.5, np.zeros((3, *SIZE)))
    got, _ = map_and_terms(x, found, sightline.instance(1), samples=24)
    assert np.abs(got[0].numpy() - wanted).max() <= 1e-10
    assert np.abs(wanted).max() > 1e-3


@pytest.mark.proves("d-rise", says="lies where the box's own block is, and not on another box's")
def test_the_map_of_a_box_lies_on_its_own_block() -> None:
    x = torch.ones(1, 3, *SIZE, dtype=torch.float64)
    for at, (left, top, right, bottom) in enumerate(BOXES):
        found, _ = map_and_terms(x, TwoBoxes().double(), sightline.instance(at + 1), samples=1500, grid=8)
        inside = torch.zeros(SIZE, dtype=torch.bool)
        inside[int(top) : int(bottom), int(left) : int(right)] = True
        other = torch.zeros(SIZE, dtype=torch.bool)
        left, top, right, bottom = BOXES[1 - at]
        other[int(top) : int(bottom), int(left) : int(right)] = True
        assert float(found[0][inside].mean()) > 8 * float(found[0][other].mean().abs())
        assert bool(inside.flatten()[found[0].argmax()])


@pytest.mark.proves("d-rise", says="of a target that is no box, is rise on finer masks")
def test_of_a_class_it_is_rise_with_a_finer_grid() -> None:
    model, x = seeded(Plain), images(1)
    found = sightline.attribute(x, model, method="d-rise", target=1, options={"samples": 60})
    wanted = sightline.attribute(x, model, method="rise", target=1, options={"samples": 60, "grid": 16})
    assert torch.equal(found, wanted)
    assert found.any()


class Coloured(nn.Module):
    """A segmentation of the pixels themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], 2 * x[:, 1]], dim=1)


@pytest.mark.proves("d-rise", "rise", says="of a region of a segmentation, f is the region's score")
@pytest.mark.parametrize("method", ["rise", "d-rise"])
def test_of_a_region_the_score_is_the_regions(method: str) -> None:
    x = picture()
    M = np.zeros(SIZE)
    M[4:12, 8:20] = 1

    def score(v: Any) -> float:
        return region_score(np.stack([v[0], 2 * v[1]]), 1, M)

    grid = 16 if method == "d-rise" else 7
    wanted = d_rise(score, x[0].numpy(), drawn(24, grid, 0.5, 0), 0.5, np.zeros((3, *SIZE)))
    target = sightline.segment(1, box=(8, 4, 20, 12))
    found = sightline.attribute(
        x, sightline.adapt(Coloured(), layers=None), method=method, target=target, options={"samples": 24}
    )
    assert np.abs(found[0].numpy() - wanted).max() <= 1e-9


# -------------------------------------------------------------------------------------------------------- several boxes


def photo(seed: int = 0) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(60, 256, (*SIZE, 3), dtype=np.uint8))


@pytest.mark.proves(
    "d-rise", says="of all boxes of a picture costs one set of masks, and gives each the map it gets alone, bit for bit"
)
@pytest.mark.parametrize("gives", GIVES)
@pytest.mark.parametrize("memory_mb", [0.5, 512])
def test_all_boxes_cost_one_set_of_masks_and_each_gets_the_map_it_gets_alone(gives: str, memory_mb: float) -> None:
    net = TwoBoxes(GIVES[gives], extra=MIXED)
    function, shown = counting(net)
    adapter = sightline.adapt(function, preprocess=prepared())
    targets = [*(sightline.instance(number) for number in (1, 2, 3, 4)), sightline.box((1, 7, 13, 22), 1), 2]
    options = {"samples": 40}
    shown.clear()  # what adapt tried
    several = sightline.compare(
        photo(), adapter, methods=["d-rise"], targets=targets, options=options, memory_mb=memory_mb, same_scale=False
    )
    assert sum(shown) == 41
    assert len(several) == len(targets)
    for one, target in zip(several, targets, strict=True):
        alone = sightline.explain(
            photo(), adapter, method="d-rise", target=target, options=options, memory_mb=memory_mb
        )
        assert np.array_equal(one.signed_raw, alone.signed_raw)
        assert one.score == alone.score
        assert one.label == alone.label
        assert np.array_equal(one.details["standard error"], alone.details["standard error"])
        assert one.details["mean score"] == alone.details["mean score"]
    assert len({one.signed_raw.tobytes() for one in several[:2]}) == 2


@pytest.mark.proves(
    "rise",
    "occlusion",
    "lime",
    "kernel-shap",
    says="of several targets shows the model the same pictures once, and gives each the map it gets alone",
)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rise", {"samples": 20}),
        ("occlusion", {}),
        ("lime", {"samples": 30, "segments": 4}),
        ("kernel-shap", {"samples": 30, "segments": 4}),
    ],
)
def test_several_classes_cost_one_set_of_pictures(method: str, options: dict[str, int]) -> None:
    model = seeded(Plain)
    shown: list[int] = []

    def function(x: Tensor) -> Tensor:
        shown.append(len(x))
        with torch.no_grad():
            return model(x)

    adapter = sightline.adapt(function, preprocess=prepared((16, 16)))
    shown.clear()
    alone, counts = [], []
    for index in range(3):
        alone.append(sightline.explain(photo(), adapter, method=method, target=index, options=options))
        counts.append(sum(shown))
        shown.clear()
    several = sightline.compare(photo(), adapter, methods=[method], targets=[0, 1, 2], options=options)
    assert sum(shown) == counts[0]
    for one, other in zip(several, alone, strict=True):
        assert np.array_equal(one.signed_raw, other.signed_raw)


def test_several_methods_each_have_their_own_pictures() -> None:
    function, shown = counting(TwoBoxes())
    adapter = sightline.adapt(function, preprocess=prepared())
    targets = [sightline.instance(1), sightline.instance(2)]
    shown.clear()
    found = sightline.compare(
        photo(), adapter, methods=["rise", "d-rise"], targets=targets, options={"samples": 20}, same_scale=False
    )
    assert sum(shown) == 1 + 20 + 20
    assert [one.method for one in found] == ["rise", "rise", "d-rise", "d-rise"]


def test_a_bound_on_calls_counts_the_shared_masks_once() -> None:
    function, _ = counting(TwoBoxes())
    adapter = sightline.adapt(function, preprocess=prepared())
    targets = [sightline.instance(1), sightline.instance(2)]
    kwargs: dict[str, Any] = {"methods": ["d-rise"], "targets": targets, "options": {"samples": 20}}
    assert len(sightline.compare(photo(), adapter, max_calls=21, **kwargs)) == 2
    with pytest.raises(MethodError, match="20 pictures after 1 that it has seen, and at most 20 were allowed"):
        sightline.compare(photo(), adapter, max_calls=20, **kwargs)


def test_a_detector_with_a_graph_and_a_black_box_get_the_same_map() -> None:
    net = TwoBoxes(("probabilities",), extra=MIXED)
    function, _ = counting(net)
    maps = [
        sightline.explain(
            photo(),
            sightline.adapt(each, preprocess=prepared(), **layers),
            method="d-rise",
            target=sightline.instance(1),
            options={"samples": 30},
        ).signed_raw
        for each, layers in ((net, {"layers": ["see"]}), (function, {}))
    ]
    assert np.array_equal(*maps)


def test_a_real_detector_is_left_as_it_is_and_its_pyramid_costs_no_more() -> None:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    net = seeded(
        lambda: fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64, box_score_thresh=0.0,
            rpn_post_nms_top_n_test=8, box_detections_per_img=4,
        )
    )  # fmt: skip
    calls = [0]
    net.register_forward_pre_hook(lambda _m, args: calls.__setitem__(0, calls[0] + len(args[0])))
    adapter = sightline.adapt(net, preprocess=prepared((64, 48), 48))
    calls[0] = 0
    before = copy.deepcopy(net.state_dict())
    with assert_untouched(net):
        found = sightline.compare(
            photo(), adapter, methods=["d-rise"], targets=[sightline.instance(1), sightline.instance(2)],
            options={"samples": 8},
        )  # fmt: skip
    assert calls[0] == 1 + 8
    assert len(found) == 2
    assert {one.raw.shape for one in found} == {(48, 64)}
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# ------------------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 3}, "samples is 3; expected 4 or more"),
        ({"grid": 1}, "grid is 1; expected 2 to 100"),
        ({"kept": 0.0}, "kept is 0.0; expected above 0"),
        ({"patch": 3}, "no option 'patch' in d-rise"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        map_and_terms(picture(), TwoBoxes().double(), sightline.instance(1), **options)


def test_a_detector_that_finds_nothing_more_is_no_error() -> None:
    """Only the whole picture has a box."""

    def found(x: Tensor) -> list[dict[str, Any]]:
        empty: dict[str, Any] = {"boxes": [], "labels": [], "scores": []}
        whole = {"boxes": [[8, 8, 24, 24]], "labels": [1], "scores": [0.9]}
        return [whole if bool((one == 1).all()) else empty for one in x]

    x = torch.ones(1, 3, *SIZE)
    got, terms = map_and_terms(x, found, sightline.instance(1), samples=12)
    assert not got.any()
    assert terms.details["mean score"] == 0


def test_of_nothing_found_no_box_can_be_explained() -> None:
    with pytest.raises(TargetError, match="finds no box in this picture"):
        map_and_terms(picture(), lambda x: [{"boxes": [], "labels": [], "scores": []} for _ in x], None, samples=8)


def test_what_it_needs_is_said_in_its_record() -> None:
    one = list_methods()["d-rise"]
    assert (one.needs, one.signed, one.class_specific, one.unit) == ("scores", True, True, "score")
