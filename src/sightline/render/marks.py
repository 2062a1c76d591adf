"""What a target means, drawn on the photograph: a box, a point, the outline of a region."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sightline.engine.asked import Mark

# A light line inside a dark one shows on any picture.
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
        left, top, right, bottom = (round(one * scale) for one, scale in zip(mark.box, (across, down) * 2, strict=True))
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


def _outline(drawn: Image.Image, region: np.ndarray[Any, Any], thick: int) -> None:
    mask = Image.fromarray(np.where(region, 255, 0).astype(np.uint8)).resize(drawn.size, Image.Resampling.NEAREST)
    for reach, ink in ((2 * thick, _DARK), (thick, _LIGHT)):
        wide = mask.filter(ImageFilter.MaxFilter(2 * reach + 1))
        drawn.paste(ink, mask=Image.composite(Image.new("L", mask.size), wide, mask))
