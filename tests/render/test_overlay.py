"""Overlays: evidence shows, no evidence shows nothing, and what the model never saw looks like neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from made import photograph
from sightline.errors import MethodError
from sightline.render.colormap import DIVERGING, SEQUENTIAL, levels, palette
from sightline.render.overlay import STYLES, Superpixels, check_style, hatch, heat, overlay

SIZE = (90, 60)
LAID_ON = ("heat", "grey-photo")


def values(fill: float | None = None, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W): one value, or a slope from 0 to 1 from left to right."""
    if fill is not None:
        return np.full((size[1], size[0]), fill, np.float32)
    return np.broadcast_to(np.linspace(0, 1, size[0], dtype=np.float32), (size[1], size[0])).copy()


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def plain(colour: Any) -> Image.Image:
    return Image.new("RGB", SIZE, colour)


def blocks(strengths: np.ndarray) -> Superpixels:
    """Superpixels of 20 x 30 pixels with the mean value in each, NaN as never looked at."""
    height, width = strengths.shape
    labels = (np.arange(height) // 20)[:, None] * (-(-width // 30)) + (np.arange(width) // 30)
    counts = np.maximum(np.bincount(labels.ravel()), 1)
    means = np.bincount(labels.ravel(), np.nan_to_num(strengths).ravel()) / counts
    return Superpixels(np.where(np.isnan(strengths), -1, labels), means)


def laid(photo: Image.Image, strengths: np.ndarray, style: str, signed: bool = False) -> Image.Image:
    """In any style."""
    pieces = blocks(strengths) if style == "superpixels" else None
    return overlay(photo, strengths, 1.0, style=style, signed=signed, superpixels=pieces)


def opacity(strengths: np.ndarray, scale: float = 1.0, style: str = "heat", **options: Any) -> np.ndarray:
    """Of each pixel, 0..1: what is left of the difference between a white and a black photograph."""
    on_white, on_black = (
        pixels(overlay(plain(colour), strengths, scale, style=style, **options)) for colour in ("white", "black")
    )
    return 1 - (on_white - on_black).mean(axis=2) / 255


# --------------------------------------------------------------------------------------------- evidence and its absence


@pytest.mark.parametrize("amount", [1e-12, 0.3, 1e6])
def test_a_constant_positive_map_is_not_black(amount: float) -> None:
    strongest = palette(SEQUENTIAL)[255]
    assert (pixels(heat(values(amount), amount)) == strongest).all()
    laid = pixels(overlay(plain("black"), values(amount), amount))
    assert laid.min(axis=2).max() > 100
    assert (laid.mean() > 150).all()


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_map_without_evidence_leaves_the_photograph_as_it_is(scale: float) -> None:
    photo = photograph(SIZE)
    assert (pixels(overlay(photo, values(0.0), scale)) == pixels(photo)).all()
    assert (pixels(overlay(photo, values(0.0), scale, style="contours")) == pixels(photo)).all()
    grey = photo.convert("L").convert("RGB")
    assert (pixels(overlay(photo, values(0.0), scale, style="grey-photo")) == pixels(grey)).all()
    assert (pixels(overlay(photo, values(0.0), scale, signed=True)) == pixels(photo)).all()


def test_a_map_nearly_without_evidence_is_not_stretched_to_look_strong() -> None:
    assert opacity(values(0.001), scale=1.0).max() < 0.01


@pytest.mark.parametrize("style", LAID_ON)
def test_opacity_follows_the_heat(style: str) -> None:
    found = opacity(values(), style=style)[0]
    assert (np.diff(found) >= -1 / 255).all()
    assert found[0] == 0
    assert 0.85 <= found[-1] <= 0.95
    np.testing.assert_allclose(found, found[-1] * np.linspace(0, 1, SIZE[0]), atol=0.02)


@given(st.lists(st.floats(0, 2, width=32), min_size=SIZE[0], max_size=SIZE[0]))
@settings(max_examples=25, deadline=None)
def test_a_hotter_place_is_never_drawn_weaker(row: list[float]) -> None:
    strengths = np.broadcast_to(np.array(sorted(row), np.float32), SIZE[::-1])
    assert (np.diff(opacity(strengths)[0]) >= -1 / 255).all()


def test_a_value_beyond_the_scale_is_drawn_as_the_strongest() -> None:
    assert (pixels(heat(values(5.0), 1.0)) == palette(SEQUENTIAL)[255]).all()
    assert (pixels(heat(values(-5.0), 1.0)) == palette(SEQUENTIAL)[0]).all()


def test_the_photograph_shows_under_the_hottest_place() -> None:
    photo = photograph(SIZE)
    assert len(np.unique(pixels(overlay(photo, values(1.0), 1.0)).reshape(-1, 3), axis=0)) > 100


# ----------------------------------------------------------------------------------------------------------- both signs


def test_nothing_is_white_on_a_signed_scale() -> None:
    nothing = pixels(heat(values(0.0), 1.0, signed=True))
    assert nothing.min() >= 245
    assert nothing.max() - nothing.min() <= 2


def test_for_is_red_and_against_is_blue() -> None:
    red, _, blue = pixels(heat(values(1.0), 1.0, signed=True))[0, 0]
    assert red > 2 * blue
    red, _, blue = pixels(heat(values(-1.0), 1.0, signed=True))[0, 0]
    assert blue > 2 * red


def test_both_signs_of_one_strength_are_equally_opaque() -> None:
    for strength in (0.25, 0.5, 1.0):
        assert np.array_equal(opacity(values(strength), signed=True), opacity(values(-strength), signed=True))
    assert opacity(values(0.0), signed=True).max() == 0


# --------------------------------------------------------------------------------------------------- never looked there


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_what_the_model_never_saw_is_hatched(style: str, signed: bool) -> None:
    photo, strengths = plain((200, 40, 40)), values(0.5)
    strengths[:, :30] = np.nan
    drawn = pixels(laid(photo, strengths, style, signed))
    margin = np.unique(drawn[:, :30].reshape(-1, 3), axis=0)
    assert len(margin) == 3, "dark lines beside light ones on a pale ground"
    assert (margin.max(axis=1) - margin.min(axis=1) <= 2).all(), "without colour, so that it is no heat"
    for row in range(0, SIZE[1], 7):
        assert len(np.unique(drawn[row, :30], axis=0)) == 3, "lines cross every row"


@pytest.mark.parametrize("style", STYLES)
def test_the_hatch_does_not_reach_into_what_the_model_saw(style: str) -> None:
    photo, strengths = photograph(SIZE), values(0.5)
    whole = pixels(laid(photo, strengths, style))
    strengths[:, :30] = np.nan
    beside = pixels(laid(photo, strengths, style))
    inner = slice(34, None) if style == "contours" else slice(30, None)
    assert (beside[:, inner] == whole[:, inner]).all()


def test_not_looked_differs_from_no_evidence() -> None:
    photo, strengths = photograph(SIZE), values(0.0)
    strengths[:, :30] = np.nan
    drawn = pixels(overlay(photo, strengths, 1.0))
    assert (drawn[:, 30:] == pixels(photo)[:, 30:]).all()
    assert (drawn[:, :30] != pixels(photo)[:, :30]).any(axis=2).mean() > 0.9


def test_a_photograph_seen_whole_has_no_hatch() -> None:
    drawn = plain("black")
    assert hatch(drawn, photograph(SIZE), values(0.5)) is drawn


# ------------------------------------------------------------------------------------------------------ sizes and names


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("size", [(90, 60), (1, 1), (7, 513), (513, 7), (1, 40), (40, 1), (2, 2), (1300, 30)])
@pytest.mark.parametrize("style", STYLES)
def test_every_style_keeps_size_and_mode_and_the_photograph(style: str, size: tuple[int, int], signed: bool) -> None:
    photo = photograph(size)
    before = photo.tobytes()
    for strengths in (values(0.7, size), values(None, size), values(0.0, size), values(np.nan, size)):
        kept = strengths.copy()
        drawn = laid(photo, strengths, style, signed)
        assert (drawn.size, drawn.mode) == (size, "RGB")
        np.testing.assert_array_equal(strengths, kept)
    assert photo.tobytes() == before


@pytest.mark.parametrize("style", STYLES)
def test_every_style_shows_where_the_heat_is(style: str) -> None:
    photo, strengths = photograph(SIZE), values(0.0)
    strengths[20:40, 30:60] = 1.0
    with_heat, without = (pixels(laid(photo, each, style)) for each in (strengths, values(0.0)))
    changed = (with_heat != without).any(axis=2)
    assert changed[15:45, 25:65].mean() > (0.1 if style == "contours" else 0.4)
    assert not changed[:12].any()
    assert not changed[:, 75:].any()


@pytest.mark.parametrize("signed", [False, True])
def test_faded_shows_a_single_pixel_of_any_sign_on_a_photograph_of_any_colour(signed: bool) -> None:
    for colour in ("white", "black", "red", (40, 120, 200)):
        for value in (1.0, -1.0) if signed else (1.0,):
            strengths = values(0.0)
            strengths[30, 45] = value
            drawn = pixels(overlay(plain(colour), strengths, 1.0, style="faded", signed=signed))
            around, speck = drawn[30, 44], drawn[30, 45]
            assert np.ptp(around) <= 3, "where nothing was found there is no colour"
            assert np.abs(speck - around).max() > 90
            if signed:
                assert (speck[0] > speck[2]) == (value > 0)


def test_faded_goes_towards_the_colour_of_0() -> None:
    photo = plain("grey")
    pale, dark = (pixels(overlay(photo, values(0.0), 1.0, style="faded", signed=signed)) for signed in (True, False))
    assert pale.min() > 190
    assert dark.max() < 60
    tinted = pixels(overlay(photo, values(0.0), 1.0, style="faded", colormap="viridis"))[0, 0]
    assert tinted[2] > tinted[1] + 30


def test_superpixels_for_are_red_those_against_blue_and_the_weak_grey() -> None:
    strengths = values(0.0)
    strengths[:20, :30], strengths[20:40, 30:60], strengths[40:, 60:] = 1.0, -1.0, 0.05
    drawn = pixels(laid(plain("grey"), strengths, "superpixels", signed=True))
    assert drawn[10, 15, 0] > drawn[10, 15, 2] + 40
    assert drawn[30, 45, 2] > drawn[30, 45, 0] + 40
    for weak in (drawn[50, 75], drawn[10, 75]):
        assert np.ptp(weak) <= 1
    assert np.ptp(pixels(laid(plain("grey"), strengths, "superpixels"))[30, 45]) <= 1, (
        "against counts where it is drawn"
    )


def test_no_more_than_ten_superpixels_of_a_sign_are_filled() -> None:
    strengths = np.repeat(np.linspace(0.2, 1, 24, dtype=np.float32).reshape(4, 6), 30, axis=1).repeat(20, axis=0)
    drawn = pixels(laid(Image.new("RGB", (180, 80), "grey"), strengths, "superpixels", signed=True))
    middles = drawn[10::20, 15::30].reshape(24, 3)
    assert [at for at, one in enumerate(middles) if np.ptp(one) > 5] == list(range(14, 24))


@pytest.mark.parametrize("size", [(90, 60), (1800, 1200)])
def test_borders_of_superpixels_are_sharp_and_where_they_belong(size: tuple[int, int]) -> None:
    labels = (np.arange(size[0]) >= size[0] // 3).astype(np.int64) * np.ones((size[1], 1), np.int64)
    photo = Image.new("RGB", size, "grey")
    drawn = pixels(
        overlay(photo, values(0.0, size), 1.0, style="superpixels", superpixels=Superpixels(labels, np.zeros(2)))
    )
    white = (drawn == 255).all(axis=2)
    assert white[:, size[0] // 3].all()
    assert 0.5 * size[0] / 500 <= white[0].sum() <= 1 + 1.5 * size[0] / 500


def test_superpixels_of_a_map_without_some_are_refused() -> None:
    with pytest.raises(MethodError, match="made of superpixels"):
        overlay(photograph(SIZE), values(), 1.0, style="superpixels")


def test_the_spotlight_leaves_the_hot_place_and_dims_the_rest() -> None:
    photo, strengths = photograph(SIZE), values(0.0)
    strengths[:, 45:] = 1.0
    drawn = pixels(overlay(photo, strengths, 1.0, style="spotlight"))
    assert (drawn[:, 45:] == pixels(photo)[:, 45:]).all()
    assert drawn[:, :45].mean() < 0.4 * pixels(photo)[:, :45].mean()


def test_contours_are_lines_and_leave_most_of_the_photograph() -> None:
    photo = photograph((400, 300))
    y, x = np.mgrid[:300, :400]
    strengths = np.exp(-(((x - 200) / 80) ** 2) - ((y - 150) / 80) ** 2).astype(np.float32)
    changed = (pixels(overlay(photo, strengths, 1.0, style="contours")) != pixels(photo)).any(axis=2)
    assert 0.005 < changed.mean() < 0.2
    radii = np.hypot(x - 200, y - 150)[changed] / 80
    lines = np.sqrt(-np.log([0.25, 0.5, 0.75]))
    assert np.abs(radii[:, None] - lines).min(axis=1).max() < 0.1, "at 25, 50 and 75 % of the scale"


@pytest.mark.parametrize("name", ["viridis", "jet", "turbo", "Greys", "coolwarm", "magma_r"])
def test_a_colormap_is_taken_by_its_name(name: str) -> None:
    import matplotlib

    colours = pixels(heat(values(1.0), 1.0, colormap=name))[0, 0]
    assert colours.tolist() == list(matplotlib.colormaps[name](1.0, bytes=True)[:3])
    assert palette(name).shape == (256, 3)
    assert overlay(photograph(SIZE), values(), 1.0, colormap=name).size == SIZE


@pytest.mark.parametrize(("wrong", "near"), [("virids", "viridis"), ("Inferno", "inferno"), ("infernal", "inferno")])
def test_an_unknown_colormap_is_refused_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(MethodError, match=f"no colormap '{wrong}'.*'{near}'"):
        overlay(photograph(SIZE), values(), 1.0, colormap=wrong)


@pytest.mark.parametrize("wrong", ["het", "", "HEAT", "jet"])
def test_an_unknown_style_is_refused_with_the_known_ones(wrong: str) -> None:
    with pytest.raises(MethodError, match="expected one of heat, grey-photo, contours, spotlight, flat"):
        check_style(wrong)
    with pytest.raises(MethodError):
        overlay(photograph(SIZE), values(), 1.0, style=wrong)


def test_levels_run_over_the_whole_palette_with_nothing_at_its_middle_when_signed() -> None:
    along = np.array([-2, -1, 0, 0.5, 1, 2, np.nan, np.inf, -np.inf], np.float32)
    assert levels(along, 1.0, signed=False).tolist() == [0, 0, 0, 128, 255, 255, 0, 255, 0]
    assert levels(along, 1.0, signed=True)[[0, 1, 4, 5, 7, 8]].tolist() == [0, 0, 255, 255, 255, 0]
    assert levels(along, 1.0, signed=True)[2] in (127, 128)
    assert not levels(along, 0.0, signed=False).any()


def test_the_default_colormaps_are_the_documented_ones() -> None:
    assert (SEQUENTIAL, DIVERGING) == ("inferno", "RdBu_r")
    lightness = palette(SEQUENTIAL) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -1).all(), "monotone in lightness"
