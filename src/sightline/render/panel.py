"""Sheets of pictures with titles, captions and a colour key: what a person looks at and passes on."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sightline.render.colormap import DIVERGING, SEQUENTIAL, palette

TILE = 460  # pixels of a tile's longer side
_MARGIN = 24
_LONGEST = 500  # characters of one text
_SPACES = re.compile(r"[^\S\N{NO-BREAK SPACE}]+")  # where a line may be broken
_INK, _SOFT, _ALARM = (20, 20, 20), (90, 90, 90), (160, 60, 0)


class Tile(NamedTuple):
    """One picture of a sheet at its final size, with a title above and a note below."""

    image: Image.Image
    title: str
    note: str = ""


class Key(NamedTuple):
    """A colour key from `low` to `high`."""

    low: float
    high: float
    label: str
    signed: bool = False
    colormap: str | None = None


def sheet(
    rows: Sequence[Sequence[Tile]],
    *,
    heading: str,
    captions: Sequence[str],
    warnings: Sequence[str],
    keys: Sequence[Key],
) -> Image.Image:
    """Tiles in rows under a heading; captions, cautions and colour keys below."""
    width = max(sum(_column(tile) + _MARGIN for tile in row) for row in rows) + _MARGIN
    width = max(width, 720)
    inner = width - 2 * _MARGIN

    def draw(canvas: Image.Image) -> int:
        pen = ImageDraw.Draw(canvas)
        y = _text(pen, _MARGIN - 6, heading, face(24, bold=True), _INK, inner) + 8
        for row in rows:
            y = _row(canvas, pen, y, row)
        for key in keys:
            y = _key(canvas, pen, y, key, inner)
        for caption in captions:
            y = _text(pen, y, caption, face(14), _SOFT, inner) + 2
        for warning in warnings:
            y = _text(pen, y, f"\N{BULLET} {warning}", face(14), _ALARM, inner) + 2
        return y + _MARGIN

    height = draw(Image.new("RGB", (width, 1)))  # drawn outside of the canvas first, to learn how high it is
    canvas = Image.new("RGB", (width, height), "white")
    draw(canvas)
    return canvas


def percent(share: float) -> str:
    """A share or probability as people read it: 59 %, 2.3 %, under 0.1 %."""
    if share < 0.001:
        return "under 0.1 %"
    if 0.995 <= share < 1:
        return "over 99 %"
    return f"{share * 100:.0f} %" if share >= 0.095 else f"{share * 100:.1f} %"


def fitted(image: Image.Image, longer: int = TILE) -> Image.Image:
    """The picture at a tile's size."""
    return image.resize(_fitted(image.size, longer), Image.Resampling.LANCZOS)


def _fitted(size: tuple[int, int], longer: int) -> tuple[int, int]:
    ratio = longer / max(size)
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def _row(canvas: Image.Image, pen: ImageDraw.ImageDraw, y: int, row: Sequence[Tile]) -> int:
    font, bottom, x = face(16, bold=True), y, _MARGIN
    titles = [_wrapped(tile.title, font, _column(tile)) for tile in row]
    top = y + 22 * max(len(lines) for lines in titles)
    for tile, lines in zip(row, titles, strict=True):
        small = tile.image
        for index, line in enumerate(lines):
            pen.text((x, top - 22 * (len(lines) - index)), line, font=font, fill=_INK)
        canvas.paste(small, (x, top + 2))
        end = top + small.height + 8
        for line in _wrapped(tile.note, face(13), _column(tile)) if tile.note else ():
            pen.text((x, end), line, font=face(13), fill=_SOFT)
            end += 18
        bottom, x = max(bottom, end), x + _column(tile) + _MARGIN
    return bottom + 8


def _column(tile: Tile) -> int:
    """The width of a tile with its texts; a very narrow picture still needs room for words."""
    return max(tile.image.width, 150)


def _key(canvas: Image.Image, pen: ImageDraw.ImageDraw, y: int, key: Key, width: int) -> int:
    colours = palette(key.colormap or (DIVERGING if key.signed else SEQUENTIAL))
    bar_width, bar_height = min(300, width // 2), 14
    bar = Image.fromarray(
        np.broadcast_to(colours[np.linspace(0, 255, bar_width).astype(int)], (bar_height, bar_width, 3)).copy()
    )
    low, high = f"{key.low:.3g}", f"{key.high:.3g}"
    x = _MARGIN
    pen.text((x, y - 2), low, font=face(14), fill=_INK)
    x += round(face(14).getlength(low)) + 8
    canvas.paste(bar, (x, y))
    pen.rectangle((x - 1, y - 1, x + bar_width, y + bar_height), outline=_SOFT)
    pen.text((x + bar_width + 8, y - 2), f"{high}   {key.label}", font=face(14), fill=_INK)
    return y + bar_height + 12


def _text(
    pen: ImageDraw.ImageDraw, y: int, text: str, font: ImageFont.FreeTypeFont, ink: tuple[int, int, int], width: int
) -> int:
    step = round(font.size * 1.35)
    for line in _wrapped(text, font, width):
        pen.text((_MARGIN, y), line, font=font, fill=ink)
        y += step
    return y


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    text = _SPACES.sub(" ", text).strip()
    for word in (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...").split(" "):
        while font.getlength(word) > width and len(word) > 1:  # a word longer than the line is cut
            cut = max(
                1, bisect_right(range(1, len(word)), width, key=lambda size: math.ceil(font.getlength(word[:size])))
            )
            lines += [word[:cut], ""]
            word = word[cut:]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line] or [""]


@lru_cache(maxsize=16)
def face(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The typeface of all sheets."""
    import matplotlib

    # DejaVu comes with matplotlib and knows Latin, Greek, Cyrillic, Arabic and more.
    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size
    )
