"""What a target means, drawn on the photograph: a box, a point, the outline of a region; and what the model found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from sightline.engine.asked import Mark

# A light line inside a dark one shows on any picture.
_LINES = 128  # places along each side at which the outline of a region is looked up for the viewer
_Sides = tuple[int, int, int, int]  # left, top, right, bottom
_DARK, _LIGHT = (20, 20, 20), (120, 255, 220)


def marked(drawn: Image.Image, mark: Mark | None, photo: tuple[int, int]) -> Image.Image:
    """A picture of the whole photograph, at any size, with the mark on it; the picture itself where there is none to draw.

    Args:
        drawn: RGB.
        mark: in pixels of the photograph.
        photo: its (width, height).
    """
    if mark is None or (mark.box is None and mark.point is None and mark.region is None):
        return drawn
    drawn = drawn.copy()
    across, down = drawn.width / photo[0], drawn.height / photo[1]
    thick = max(2, round(max(drawn.size) / 220))
    if mark.region is not None and not mark.region.all():
        _outline(drawn, mark.region, thick)
    pen = ImageDraw.Draw(drawn)
    if mark.box is not None:
        left, top, right, bottom = _corners(mark.box, photo, drawn.size)
        left, top = max(left, thick), max(top, thick)
        right, bottom = min(right, drawn.width - 1 - thick), min(bottom, drawn.height - 1 - thick)
        if left < right and top < bottom:
            pen.rectangle((left - thick, top - thick, right + thick, bottom + thick), outline=_DARK, width=3 * thick)
            pen.rectangle((left, top, right, bottom), outline=_LIGHT, width=thick)
    if mark.point is not None:
        x, y = mark.point[0] * across, mark.point[1] * down
        for arm, width, ink in ((6 * thick, 3 * thick, _DARK), (5 * thick, thick, _LIGHT)):
            pen.line((x - arm, y, x + arm, y), fill=ink, width=width)
            pen.line((x, y - arm, x, y + arm), fill=ink, width=width)
    return drawn


def numbered(photo: Image.Image, boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Image.Image:
    """A picture of the whole photograph with the boxes that the model found, numbered from 1; `size` is the photograph's own."""
    if not boxes:
        return photo
    drawn = photo.copy()
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(11, round(max(drawn.size) / 28)))
    sides = []
    for box in boxes:
        left, top, right, bottom = _corners(box, size, drawn.size)
        left, top = max(0, left), max(0, top)
        right, bottom = max(left + 1, min(right, drawn.width - 1)), max(top + 1, min(bottom, drawn.height - 1))
        sides.append((left, top, right, bottom))
    for left, top, right, bottom in reversed(sides):  # the surest lies on top
        pen.rectangle((left, top, right, bottom), outline=_DARK, width=3)
        pen.rectangle((left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1)), outline=_LIGHT)
    taken: list[_Sides] = []
    texts = [pen.textbbox((0, 0), str(number), font=font) for number in range(1, len(sides) + 1)]
    for box, text in zip(sides, texts, strict=True):
        taken.append(_free(box, (round(text[2] - text[0]) + 7, round(text[3] - text[1]) + 5), drawn.size, taken))
    for number, tag, text in reversed([*zip(range(1, len(sides) + 1), taken, texts, strict=True)]):
        pen.rectangle(tag, fill=_DARK)
        pen.text((tag[0] + 3 - text[0], tag[1] + 2 - text[1]), str(number), font=font, fill=_LIGHT)
    return drawn


def _free(box: _Sides, tag: tuple[int, int], picture: tuple[int, int], taken: Sequence[_Sides]) -> _Sides:
    """Where a tag of this size goes that no other has: a corner of its box, else along its upper side or beside it; else the first."""
    left, top, right, bottom = box
    wide, tall = tag
    spots = [(x, y) for y in (top, bottom - tall) for x in (left, right - wide)]
    spots += [(x, top) for x in range(left + wide, right - wide, wide)]
    spots += [(x, y) for y in (top - tall, bottom) for x in (left, right - wide)]
    spots += [(x, y) for x in (left - wide, right) for y in (top, bottom - tall)]
    inside = [(max(0, min(x, picture[0] - wide)), max(0, min(y, picture[1] - tall))) for x, y in spots]
    found = [(x, y, x + wide - 1, y + tall - 1) for x, y in inside]
    return next((one for one in found if not any(_meet(one, other) for other in taken)), found[0])


def _meet(one: _Sides, other: _Sides) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _corners(box: Sequence[float], photo: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in pixels of a photograph in those of a picture of it; what lies further off than its own side is drawn from there."""
    found = []
    for one, whole, side in zip(box, photo * 2, size * 2, strict=True):
        found.append(round(min(max(one / whole, -1.0), 2.0) * side))
    return found[0], found[1], found[2], found[3]


def outlined(mark: Mark | None, photo: tuple[int, int]) -> dict[str, Any] | None:
    """The mark for the viewer, in shares of the photograph's (width, height): "box", "point", "lines" around a region."""
    if mark is None:
        return None
    width, height = photo
    found: dict[str, Any] = {}
    if mark.box is not None:
        found["box"] = [one / side for one, side in zip(mark.box, (width, height) * 2, strict=True)]
    if mark.point is not None:
        found["point"] = [mark.point[0] / width, mark.point[1] / height]
    if mark.region is not None and not mark.region.all():
        from contourpy import contour_generator

        small = Image.fromarray(np.where(mark.region, 255, 0).astype(np.uint8)).resize((_LINES, _LINES))
        values = np.pad(np.asarray(small, np.float64) / 255, 1)  # so that lines close at the border
        lines: Any = contour_generator(z=values).lines(0.5)
        found["lines"] = [
            [[round(float(at - 0.5) / _LINES, 4) for at in place] for place in line] for line in lines[:40]
        ]
    return found or None


def _outline(drawn: Image.Image, region: np.ndarray[Any, Any], thick: int) -> None:
    mask = Image.fromarray(np.where(region, 255, 0).astype(np.uint8)).resize(drawn.size, Image.Resampling.NEAREST)
    for reach, ink in ((thick, _DARK), (max(1, thick // 2), _LIGHT)):
        wide = mask.filter(ImageFilter.MaxFilter(2 * reach + 1))
        drawn.paste(ink, mask=Image.composite(Image.new("L", mask.size), wide, mask))
