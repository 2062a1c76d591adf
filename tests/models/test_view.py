"""`View`: a map lies on the photograph where the model looked, whatever was done to the photograph before."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T
from torchvision.transforms._presets import ImageClassification

import sightline
from oracles import place
from sightline.models.preprocess import specified, standard
from sightline.models.timm import preprocessing
from sightline.models.view import View

STRIDE = 16
SIDE = 96  # of the hand-made model's input: a grid of 6 x 6
NEUTRAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


# ----------------------------------------------------------------------------------------------------------- arithmetic


def length(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


@given(
    photo=st.tuples(length(1, 24), length(1, 24)),
    resized=st.tuples(length(1, 40), length(1, 40)),
    window=st.tuples(length(1, 40), length(1, 40)),
    offset=st.tuples(length(-12, 12), length(-12, 12)),
    grid=st.tuples(length(1, 7), length(1, 7)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_a_grid_lies_where_the_slow_reference_lays_it(
    photo: tuple[int, int],
    resized: tuple[int, int],
    window: tuple[int, int],
    offset: tuple[int, int],
    grid: tuple[int, int],
    seed: int,
) -> None:
    raw = np.random.default_rng(seed).normal(size=grid).astype(np.float32)
    view = View(photo, resized, offset, window)
    found, wanted = view.place(raw), place(raw, photo, resized, offset, window)
    assert found.shape == (photo[1], photo[0])
    assert found.dtype == np.float32
    if np.isnan(wanted).all():  # no pixel's centre was seen, only a part of one: the nearest counts as seen
        assert np.isfinite(found).any()
        return
    # A pixel's centre may lie on the very edge of the window, where one rounding decides.
    for axis, pixels in ((1, photo[0]), (0, photo[1])):
        at = (np.arange(pixels) + 0.5) * resized[1 - axis] / pixels - offset[1 - axis]
        clear = (np.abs(at) > 1e-9) & (np.abs(at - window[1 - axis]) > 1e-9)
        found, wanted = np.compress(clear, found, axis), np.compress(clear, wanted, axis)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("photo", "resized", "offset", "window"),
    [
        ((50, 40), (30, 24), (3, 0), (24, 24)),  # crop
        ((40, 50), (24, 30), (0, 3), (24, 24)),
        ((50, 40), (24, 24), (0, 0), (24, 24)),  # squash
        ((50, 40), (24, 19), (0, -2), (24, 24)),  # letterbox
        ((9, 7), (9, 7), (-8, -9), (24, 24)),  # small photograph in a large input
        ((200, 3), (1600, 24), (788, 0), (24, 24)),  # nearly all of it cut off
        ((50, 40), (28.6, 22.9), (2.3, -0.55), (24, 24)),  # as measured: no whole pixels
        ((1, 1), (24, 24), (0, 0), (24, 24)),
    ],
)
@pytest.mark.parametrize("grid", [(3, 3), (1, 1), (2, 5), (24, 24)])
def test_every_kind_of_geometry_is_the_slow_references(
    photo: Any, resized: Any, offset: Any, window: Any, grid: tuple[int, int]
) -> None:
    raw = np.random.default_rng(0).normal(size=grid).astype(np.float32)
    found, wanted = View(photo, resized, offset, window).place(raw), place(raw, photo, resized, offset, window)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_placing_is_torchs_bilinear_resize_where_the_whole_photograph_is_the_input() -> None:
    raw = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    wanted = nn.functional.interpolate(raw[None, None], (60, 45), mode="bilinear", align_corners=False)[0, 0]
    found = View((45, 60), (224, 224), (0, 0), (224, 224)).place(raw.numpy())
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_a_map_of_one_value_stays_one_value_wherever_the_model_looked() -> None:
    found = View((50, 40), (30, 24), (3, 0), (24, 24)).place(np.full((5, 4), 0.25, np.float32))
    np.testing.assert_allclose(found[~np.isnan(found)], 0.25, rtol=1e-6)


def test_placing_does_not_change_the_map() -> None:
    raw = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    before = raw.copy()
    View((50, 40), (30, 24), (3, 0), (24, 24)).place(raw)
    np.testing.assert_array_equal(raw, before)


@given(
    photo=st.tuples(length(1, 60), length(1, 60)),
    resized=st.tuples(length(8, 60), length(8, 60)),
    window=st.tuples(length(8, 60), length(8, 60)),
    centred=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_what_is_called_seen_is_where_the_map_has_values(
    photo: tuple[int, int], resized: tuple[int, int], window: tuple[int, int], centred: bool
) -> None:
    offset = tuple((resized[axis] - window[axis]) // 2 if centred else 0 for axis in (0, 1))
    view = View(photo, resized, offset, window)
    left, top, right, bottom = view.seen()
    assert 0 <= left <= right <= photo[0]
    assert 0 <= top <= bottom <= photo[1]
    has_value = ~np.isnan(view.place(np.ones((2, 2), np.float32)))
    for start, end, along in ((left, right, has_value.any(0)), (top, bottom, has_value.any(1))):
        assert abs(along.sum() - (end - start)) <= 1 + 1e-6
    share = (right - left) * (bottom - top) / (photo[0] * photo[1])
    assert view.seen_share() == pytest.approx(share)
    assert 0 <= view.seen_share() <= 1 + 1e-12


def test_seen_of_a_centre_crop_is_its_square_of_the_photograph() -> None:
    view = View((400, 200), (256, 128), (80, 16), (96, 96))
    assert view.seen() == (125, 25, 275, 175)
    assert view.seen_share() == pytest.approx(150 * 150 / (400 * 200))


@pytest.mark.parametrize(
    "view", [View((50, 40), (24, 24), (0, 0), (24, 24)), View((50, 40), (24, 19), (0, -2), (24, 24))]
)
def test_a_squashed_or_padded_photograph_is_seen_whole(view: View) -> None:
    assert view.seen() == (0, 0, 50, 40)
    assert view.seen_share() == 1
    assert not np.isnan(view.place(np.ones((2, 2), np.float32))).any()


# ----------------------------------------------------------------------------------------- found again, on a photograph


class RedDetector(nn.Module):
    """Weights set by hand: each cell says how much redder than green and blue its 16 x 16 pixels are."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv2d(3, 1, STRIDE, stride=STRIDE, bias=False)
        self.relu = nn.ReLU()
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.cells.weight[:] = torch.tensor([1.0, -0.5, -0.5]).view(1, 3, 1, 1) / STRIDE**2
            self.head.weight[:] = torch.tensor([[1.0], [-1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.cells(x)).mean(dim=(2, 3)))


def planted(size: tuple[int, int], centre: tuple[float, float], half: float) -> Image.Image:
    """A grey photograph with a red square."""
    photo = Image.new("RGB", size, (120, 120, 120))
    x, y = centre
    photo.paste((255, 0, 0), (round(x - half), round(y - half), round(x + half), round(y + half)))
    return photo


def letterbox(photo: Image.Image) -> Tensor:
    """A user's own: padded to a square with grey, then resized."""
    side = max(photo.size)
    square = Image.new("RGB", (side, side), (120, 120, 120))
    square.paste(photo, ((side - photo.width) // 2, (side - photo.height) // 2))
    return T.ToTensor()(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def of_timm(mode: str) -> Callable[[Image.Image], Any]:
    module = nn.Identity()
    module.pretrained_cfg = {
        "input_size": (3, SIDE, SIDE),
        "crop_pct": 0.875,
        "crop_mode": mode,
        "interpolation": "bicubic",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    return specified(preprocessing(module))[0]


PREPROCESSING: dict[str, Callable[[Image.Image], Any]] = {
    "torchvision's preset": ImageClassification(crop_size=SIDE, resize_size=110, **NEUTRAL),
    "resize and crop": T.Compose([T.Resize(110), T.CenterCrop(SIDE), T.ToTensor()]),
    "squash": T.Compose([T.Resize((SIDE, SIDE)), T.ToTensor()]),
    "letterbox": letterbox,
    "crop without resize": T.Compose([T.CenterCrop(SIDE * 2), T.ToTensor()]),
    "normalised": T.Compose([T.Resize((SIDE, SIDE)), T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)]),
    "standard, shorter": standard((SIDE, SIDE), 110, **NEUTRAL),
    "standard, exact": standard((SIDE, SIDE), SIDE, fit="exact", **NEUTRAL),
    "standard, longer": standard((SIDE, SIDE), SIDE, fit="longer", **NEUTRAL),
    "timm, center": of_timm("center"),
    "timm, squash": of_timm("squash"),
    "timm, border": of_timm("border"),
}


@cache
def adapter(kind: str) -> sightline.Adapter:
    return sightline.adapt(RedDetector().eval(), layers=["relu"], preprocess=PREPROCESSING[kind])


def centre_of_heat(heatmap: sightline.Heatmap) -> tuple[float, float]:
    values = np.nan_to_num(heatmap.values, nan=0.0).astype(np.float64)
    return (
        float((values.sum(0) * (np.arange(values.shape[1]) + 0.5)).sum() / values.sum()),
        float((values.sum(1) * (np.arange(values.shape[0]) + 0.5)).sum() / values.sum()),
    )


def strides(view: View) -> tuple[float, float]:
    """One stride of the model, in pixels of the photograph."""
    return tuple(STRIDE * view.photo[axis] / view.resized[axis] for axis in (0, 1))


def assert_found(heatmap: sightline.Heatmap, centre: tuple[float, float]) -> None:
    for axis, stride in enumerate(strides(heatmap.view)):
        assert abs(heatmap.peak[axis] + 0.5 - centre[axis]) <= stride
        assert abs(centre_of_heat(heatmap)[axis] - centre[axis]) <= stride


@pytest.mark.parametrize("place_of_block", [(0.5, 0.5), (0.4, 0.6), (0.62, 0.36), (0.35, 0.35)])
@pytest.mark.parametrize("size", [(320, 320), (431, 300), (251, 377), (1203, 900)])
@pytest.mark.parametrize("kind", PREPROCESSING)
def test_a_red_block_is_found_within_one_stride(
    kind: str, size: tuple[int, int], place_of_block: tuple[float, float]
) -> None:
    """Of half a stride around the photograph's middle, so that each kind of crop sees it."""
    smaller = min(size) if kind != "crop without resize" else SIDE * 2
    centre = tuple(size[axis] / 2 + (place_of_block[axis] - 0.5) * smaller for axis in (0, 1))
    heatmap = sightline.explain(planted(size, centre, smaller * 0.09), adapter(kind), target=0)
    assert_found(heatmap, centre)


@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["squash", "letterbox", "standard, exact", "standard, longer", "timm, border"])
def test_a_red_block_in_a_corner_is_found_within_one_stride_where_nothing_is_cut_off(
    kind: str, corner: tuple[int, int]
) -> None:
    size, half = (431, 300), 30
    centre = tuple(half + corner[axis] * (size[axis] - 2 * half) for axis in (0, 1))
    assert_found(sightline.explain(planted(size, centre, half), adapter(kind), target=0), centre)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["torchvision's preset", "squash", "letterbox", "standard, shorter"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_red_block_is_found_in_a_photograph_that_its_exif_data_turns(orientation: int, kind: str) -> None:
    upright, centre = (431, 300), (190, 110)
    photo = planted(upright, centre, 28)
    stored = photo.transpose(TURNS[orientation]) if orientation in TURNS else photo
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", quality=95, exif=exif.tobytes())
    heatmap = sightline.explain(buffer.getvalue(), adapter(kind), target=0)
    assert heatmap.photo.size == upright
    assert_found(heatmap, centre)


@pytest.mark.parametrize("kind", ["torchvision's preset", "standard, shorter", "crop without resize", "timm, center"])
@pytest.mark.parametrize("size", [(431, 300), (300, 431)])
def test_the_margin_that_the_model_never_saw_is_nan_and_not_nothing(kind: str, size: tuple[int, int]) -> None:
    heatmap = sightline.explain(planted(size, (size[0] / 2, size[1] / 2), 28), adapter(kind), target=0)
    values, (left, top, right, bottom) = heatmap.values, heatmap.view.seen()
    unseen = np.isnan(values)
    assert unseen[0, 0]
    assert unseen[-1, -1]
    assert not unseen[size[1] // 2, size[0] // 2]
    assert heatmap.view.seen_share() < 0.995
    assert (~unseen).mean() == pytest.approx(heatmap.view.seen_share(), abs=0.02)
    inside = ~unseen[round(top) + 1 : round(bottom) - 1, round(left) + 1 : round(right) - 1]
    assert inside.all()
    assert np.isfinite(heatmap.raw).all()
    assert (values[~unseen] == 0).any(), "no evidence is 0, and differs from not having looked"


def test_a_block_in_the_unseen_margin_leaves_the_map_empty() -> None:
    heatmap = sightline.explain(planted((600, 200), (40, 100), 30), adapter("standard, shorter"), target=0)
    assert not heatmap.raw.any()
    assert np.isnan(heatmap.values[100, 40])


def test_the_measured_view_of_a_photograph_is_not_used_for_one_of_another_size() -> None:
    for size in ((431, 300), (300, 431), (431, 300)):
        centre = (size[0] * 0.45, size[1] * 0.55)
        assert_found(sightline.explain(planted(size, centre, 28), adapter("resize and crop"), target=0), centre)


def test_labels_are_laid_back_by_the_nearest_cell_and_minus_one_where_never_seen() -> None:
    view = View((90, 60), (45, 30), (10, 0), (30, 30))
    grid = np.arange(9).reshape(3, 3) * 7
    placed = view.place_labels(grid)
    assert placed.shape == (60, 90)
    for y, x in ((0, 20), (59, 79), (30, 50), (19, 39), (20, 40)):
        at_x, at_y = (x + 0.5) / 2 - 10, (y + 0.5) / 2
        assert placed[y, x] == grid[int(at_y // 10), int(at_x // 10)]
    assert (placed[:, :20] == -1).all()
    assert (placed[:, 80:] == -1).all()
    assert set(np.unique(placed[:, 20:80])) == set(grid.ravel()), "no value in between"
    np.testing.assert_array_equal(placed == -1, np.isnan(view.place(grid)))
