"""A map laid on its photograph, in five styles."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sightline.errors import MethodError, did_you_mean
from sightline.render.colormap import DIVERGING, SEQUENTIAL, levels, palette

Style = Literal["heat", "grey-photo", "contours", "spotlight", "flat"]
STYLES: tuple[str, ...] = get_args(Style)
_CONTOURS = (0.25, 0.5, 0.75)
_OPACITY = 0.9  # of the hottest place; the photograph stays visible under it

Values = np.ndarray[Any, np.dtype[np.float32]]


def overlay(
    photo: Image.Image,
    values: Values,
    scale: float,
    *,
    style: str = "heat",
    signed: bool = False,
    colormap: str | None = None,
) -> Image.Image:
    """Lays values on the photograph; where they are NaN (never seen by the model) it is hatched.

    Args:
        photo: RGB.
        values: (H, W) of the photograph.
        scale: the value drawn at full strength.
        style: "heat" (opacity follows the value), "grey-photo" (the same on a grey photograph), "contours" (lines at
            25, 50 and 75 % of the scale), "spotlight" (the rest dimmed and blurred) or "flat" (even opacity).
        signed: draw both signs, on a diverging scale.
        colormap: any name of matplotlib; inferno, or RdBu_r when signed.

    Returns:
        RGB, of the photograph's size.
    """
    check_style(style)
    strength = Image.fromarray(levels(np.abs(values), scale, signed=False))
    if style == "spotlight":
        drawn = Image.composite(photo, _dimmed(photo), strength.point(lambda value: min(255, value * 1.5)))
    elif style == "contours":
        drawn = _contours(photo, values, scale, signed, colormap)
    else:
        base = photo.convert("L").convert("RGB") if style == "grey-photo" else photo
        opacity = 0.5 if style == "flat" else None
        colours = heat(values, scale, signed=signed, colormap=colormap)
        mask = (
            Image.new("L", photo.size, round(255 * opacity))
            if opacity
            else strength.point(lambda value: value * _OPACITY)
        )
        drawn = Image.composite(colours, base, mask)
    return hatch(drawn, photo, values)


def check_style(style: str) -> None:
    """Refuses a style that doesn't exist."""
    if style not in STYLES:
        raise MethodError(
            f"there is no style {style!r}; expected one of {', '.join(STYLES)}.{did_you_mean(style, STYLES)}"
        )


def heat(values: Values, scale: float, *, signed: bool = False, colormap: str | None = None) -> Image.Image:
    """The values alone, as colours; RGB."""
    colours = palette(colormap or (DIVERGING if signed else SEQUENTIAL))
    return Image.fromarray(colours[levels(values, scale, signed)])


def hatch(drawn: Image.Image, photo: Image.Image, values: Values) -> Image.Image:
    """Marks where values are NaN: the pale photograph under diagonal lines."""
    unseen = np.isnan(values)
    if not unseen.any():
        return drawn
    height, width = unseen.shape
    period = max(6, min(height, width) // 28)
    diagonal = (np.arange(width)[None, :] + np.arange(height)[:, None]) % period
    thick = max(1, period // 9)
    pale = Image.blend(photo.convert("L").convert("RGB"), Image.new("RGB", photo.size, (225, 225, 225)), 0.6)
    # A dark line beside a light one shows on any grey.
    for start, ink in ((0, (90, 90, 90)), (thick, (250, 250, 250))):
        line = (diagonal >= start) & (diagonal < start + thick)
        pale.paste(ink, mask=Image.fromarray(np.where(line, 255, 0).astype(np.uint8)))
    drawn = drawn.copy()
    drawn.paste(pale, mask=Image.fromarray(unseen))
    return drawn


def _dimmed(photo: Image.Image) -> Image.Image:
    """Dark and blurred, computed small because nobody sees detail in it."""
    small = photo.copy()
    small.thumbnail((256, 256))
    small = small.filter(ImageFilter.GaussianBlur(4)).point(lambda value: value * 0.22)
    return small.resize(photo.size, Image.Resampling.BILINEAR)


def _contours(photo: Image.Image, values: Values, scale: float, signed: bool, colormap: str | None) -> Image.Image:
    from contourpy import contour_generator

    if scale <= 0:
        return photo.copy()
    colours = palette(colormap or (DIVERGING if signed else SEQUENTIAL))
    # Lines are drawn several times larger and shrunk, because Pillow does not smooth them; large photographs don't need it.
    zoom = 4 if max(photo.size) <= 1000 else 2 if max(photo.size) <= 2500 else 1
    step = max(1, max(photo.size) // 500)
    shares = (values / scale)[::step, ::step]
    rows, columns = np.arange(shares.shape[0]) * step + 0.5, np.arange(shares.shape[1]) * step + 0.5
    drawn = photo.copy()
    if min(shares.shape) < 2:
        return drawn
    width = max(2, round(max(photo.size) / 220))
    lines = contour_generator(columns, rows, np.ma.masked_invalid(shares))
    for level in [*(-one for one in reversed(_CONTOURS) if signed), *_CONTOURS]:
        colour = tuple(int(one) for one in colours[int(levels(np.array([level]), 1.0, signed)[0])])
        # Light under dark and dark under light, so that each line shows on any picture, in the key's colour.
        dark = sum(colour) < 300
        for thickness, ink in ((width * 2, (255, 255, 255) if dark else (0, 0, 0)), (width, colour)):
            mask = Image.new("L", (photo.width * zoom, photo.height * zoom))
            pen = ImageDraw.Draw(mask)
            for line in lines.lines(level):
                pen.line(
                    [(x * zoom, y * zoom) for x, y in np.asarray(line)], fill=255, width=thickness * zoom, joint="curve"
                )
            drawn.paste(ink, mask=mask.resize(photo.size, Image.Resampling.BOX) if zoom > 1 else mask)
    return drawn
