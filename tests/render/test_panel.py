"""Panels: readable whatever the photograph's shape and the class's name."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made import heatmap, photograph
from sightline.heatmap import Prediction, side_by_side
from sightline.render.panel import TILE, Key, Tile, fitted, percent, sheet

HOSTILE = {
    "empty": "",
    "blank": "   ",
    "long word": "a" * 1_500,
    "long sentence": "word " * 2_000,
    "control characters": "\x00\x01\x07\x1b[31mred",
    "lone surrogate": "\ud800 lone",
    "Arabic": "قط نمري",
    "Chinese": "虎斑猫",
    "emoji": "🐅🐈",
    "lines": "a\nb\tc\u2028d\r\n" * 20,
    "combining": "e" + "\u0301" * 200,
    "turned": "\u202egnp.exe",
    "format": "%s {0} {x} %n",
    "path": "../../../etc/passwd",
    "markup": "<script>alert(1)</script> & <b>",
}


def key(**changes: Any) -> Key:
    return Key(**({"low": 0.0, "high": 0.25, "label": "share of the score in a cell"} | changes))


def simple(text: str = "tiger cat", rows: int = 1, columns: int = 3, size: tuple[int, int] = (300, 200)) -> Image.Image:
    tiles = [Tile(Image.new("RGB", size, (10, 100, 20)), text, text)] * columns
    return sheet([tiles] * rows, heading=text, captions=[text], warnings=[text], keys=[key()])


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "combining"])
def test_a_hostile_class_name_does_not_break_the_panel(kind: str) -> None:
    begun = time.monotonic()
    drawn = simple(HOSTILE[kind])
    assert time.monotonic() - begun < 5, "a name must not be able to hold up the program"
    assert drawn.mode == "RGB"
    shown = pixels(drawn)
    assert (shown[:, -10:] == 255).all(), "text runs out of the picture"
    assert (shown[-10:] == 255).all(), "text runs out of the picture"
    green = (shown == (10, 100, 20)).all(axis=2).sum()
    assert green == 3 * 300 * 200, "text lies on a tile"


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_class_name_does_not_break_a_heat_maps_panel(kind: str) -> None:
    name = HOSTILE[kind][:300]
    one = heatmap(label=name, predictions=(Prediction(3, name, 0.5),), warnings=(name,), model=name, layer=name)
    assert one.panel().mode == "RGB"
    assert side_by_side([one, one]).mode == "RGB"


def test_a_long_class_name_is_cut_into_lines_and_not_out_of_the_picture() -> None:
    short, long = simple("tiger cat"), simple("tiger cat of the very long name " * 8)
    assert long.width == short.width
    assert long.height > short.height


@pytest.mark.parametrize("style", ["heat", "grey-photo", "contours", "spotlight", "flat"])
@pytest.mark.parametrize("size", [(1, 1), (7, 513), (513, 7), (1, 900), (900, 1), (3000, 10), (64, 64)])
def test_a_photograph_of_any_shape_goes_through_the_panel(size: tuple[int, int], style: str) -> None:
    one = heatmap(photo=photograph(size))
    drawn = one.panel(style)
    assert drawn.mode == "RGB"
    assert min(drawn.size) > 100
    assert max(drawn.size) < 4000
    assert side_by_side([one, one], style).mode == "RGB"


@pytest.mark.parametrize("size", [(7, 513), (1, 900)])
def test_under_a_narrow_photograph_text_is_not_set_one_letter_a_line(size: tuple[int, int]) -> None:
    assert heatmap(photo=photograph(size)).panel().height < 2 * TILE


def test_a_tile_has_one_longer_side_whatever_the_photograph() -> None:
    for size in ((1, 1), (4000, 3000), (30, 40), (7, 513)):
        small = fitted(Image.new("RGB", size))
        assert max(small.size) == TILE
        assert min(small.size) >= 1


def test_many_rows_and_warnings_are_all_on_the_panel() -> None:
    rows = simple("", rows=60, columns=1, size=(460, 460))
    shown = pixels(rows)
    assert ((shown == (10, 100, 20)).all(axis=2)).sum() == 60 * 460 * 460
    assert (shown[-10:] == 255).all()


def test_a_panel_holds_its_tiles_unchanged() -> None:
    tile = photograph((300, 200))
    shown = pixels(sheet([[Tile(tile, "a", "b")]], heading="c", captions=["d"], warnings=["e"], keys=[key()]))
    wanted = pixels(tile)
    places = [y for y in range(shown.shape[0] - 200) if (shown[y, 24:324] == wanted[0]).all()]
    assert any((shown[y : y + 200, 24:324] == wanted).all() for y in places)


def test_a_panel_shows_its_colour_key() -> None:
    from sightline.render.colormap import palette

    one = {tuple(colour) for colour in palette("inferno").tolist()}
    shown = {tuple(colour) for colour in np.unique(pixels(simple()).reshape(-1, 3), axis=0).tolist()}
    assert len(one & shown) > 200


def test_signed_and_own_colormaps_have_their_own_key() -> None:
    from sightline.render.colormap import palette

    for changes, name in (({"signed": True, "low": -0.25}, "RdBu_r"), ({"colormap": "viridis"}, "viridis")):
        drawn = sheet(
            [[Tile(Image.new("RGB", (9, 9)), "")]], heading="", captions=[], warnings=[], keys=[key(**changes)]
        )
        shown = {tuple(colour) for colour in np.unique(pixels(drawn).reshape(-1, 3), axis=0).tolist()}
        assert len({tuple(colour) for colour in palette(name).tolist()} & shown) > 200


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1.0, "100 %"),
        (0.5932, "59 %"),
        (0.1, "10 %"),
        (0.0231, "2.3 %"),
        (0.095, "10 %"),
        (0.0949, "9.5 %"),
        (0.001, "0.1 %"),
        (0.0009, "under 0.1 %"),
        (0.0, "under 0.1 %"),
    ],
)
def test_a_share_is_written_as_people_read_it(share: float, said: str) -> None:
    assert percent(share) == said
