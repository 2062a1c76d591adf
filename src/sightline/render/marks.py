"""What a target means, drawn on the photograph: a box, a point, the outline of a region; and what the model found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from sightline.engine.asked import Mark

# A light line inside a dark one shows on any picture.
_LINES = 128  # places along each side at which the outline of a region is looked up for the viewer
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
    for number, box in reversed([*enumerate(boxes, 1)]):  # the surest lies on top
        left, top, right, bottom = _corners(box, size, drawn.size)
        left, top = max(0, left), max(0, top)
        right, bottom = max(left + 1, min(right, drawn.width - 1)), max(top + 1, min(bottom, drawn.height - 1))
        pen.rectangle((left, top, right, bottom), outline=_DARK, width=3)
        pen.rectangle((left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1)), outline=_LIGHT)
        text = pen.textbbox((left + 4, top + 2), str(number), font=font)
        pen.rectangle((text[0] - 3, text[1] - 2, text[2] + 3, text[3] + 2), fill=_DARK)
        pen.text((left + 4, top + 2), str(number), font=font, fill=_LIGHT)
    return drawn


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
