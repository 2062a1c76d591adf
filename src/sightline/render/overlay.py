"""A map laid on its photograph, in seven styles."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sightline.errors import MethodError, did_you_mean
from sightline.render.colormap import DIVERGING, SEQUENTIAL, levels, palette

Style = Literal["heat", "grey-photo", "contours", "spotlight", "flat", "faded", "superpixels"]
STYLES: tuple[str, ...] = get_args(Style)
_CONTOURS = (0.25, 0.5, 0.75)
_OPACITY = 0.9  # of the hottest place; the photograph stays visible under it
_FADED = 0.6  # of the colour for 0, the rest is photograph
FILLED, _WEAK = 10, 0.1  # superpixels for and against that are filled at most, and how strong each must be

Values = np.ndarray[Any, np.dtype[np.float32]]


class Superpixels(NamedTuple):
    """A photograph cut into pieces.

    Attributes:
        labels: (H, W) of the photograph, 0..d-1, -1 where the model never looked.
        values: (d,), one for each piece.
    """

    labels: np.ndarray[Any, np.dtype[np.int64]]
    values: np.ndarray[Any, np.dtype[np.float64]]


def overlay(
    photo: Image.Image,
    values: Values,
    scale: float,
    *,
    style: str = "heat",
    signed: bool = False,
    colormap: str | None = None,
    superpixels: Superpixels | None = None,
) -> Image.Image:
    """Lays values on the photograph; where they are NaN (never seen by the model) it is hatched.

    Args:
        photo: RGB.
        values: (H, W) of the photograph.
        scale: the value drawn at full strength.
        style: "heat" (opacity follows the value), "grey-photo" (the same on a grey photograph), "contours" (lines at
            25, 50 and 75 % of the scale), "spotlight" (the rest dimmed and blurred), "flat" (even opacity), "faded" (as heat, on
            the photograph in grey that is faded to the colour for 0, where specks of single pixels show) or "superpixels" (the
            strongest for and against filled, all borders drawn).
        signed: draw both signs, on a diverging scale.
        colormap: any name of matplotlib; inferno, or RdBu_r when signed.
        superpixels: what the style of that name draws.

    Returns:
        RGB, of the photograph's size.

    Raises:
        MethodError: no such style, or "superpixels" without some.
    """
    check_style(style)
    strength = Image.fromarray(levels(np.abs(values), scale, signed=False))
    if style == "spotlight":
        drawn = Image.composite(photo, _dimmed(photo), strength.point(lambda value: min(255, value * 1.5)))
    elif style == "contours":
        drawn = _contours(photo, values, scale, signed, colormap)
    elif style == "superpixels":
        if superpixels is None:
            raise MethodError("style superpixels needs a map that is made of superpixels; another style will do")
        drawn = _filled(photo, superpixels, scale, signed, colormap)
    else:
        base = _grey(photo) if style == "grey-photo" else photo
        if style == "faded":
            base = _faded(photo, signed, colormap)
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
    pale = Image.blend(_grey(photo), Image.new("RGB", photo.size, (225, 225, 225)), 0.6)
    # A dark line beside a light one shows on any grey.
    for start, ink in ((0, (90, 90, 90)), (thick, (250, 250, 250))):
        line = (diagonal >= start) & (diagonal < start + thick)
        pale.paste(ink, mask=Image.fromarray(np.where(line, 255, 0).astype(np.uint8)))
    drawn = drawn.copy()
    drawn.paste(pale, mask=Image.fromarray(unseen))
    return drawn


def _grey(photo: Image.Image) -> Image.Image:
    return photo.convert("L").convert("RGB")


def _faded(photo: Image.Image, signed: bool, colormap: str | None) -> Image.Image:
    """In grey, and most of the way to the colour that stands for 0."""
    nothing = heat(np.zeros((1, 1), np.float32), 1.0, signed=signed, colormap=colormap)
    return Image.blend(_grey(photo), nothing.resize(photo.size), _FADED)


def _filled(photo: Image.Image, pieces: Superpixels, scale: float, signed: bool, colormap: str | None) -> Image.Image:
    """The strongest superpixels in their colours on the grey photograph, the others faded, borders around all of them."""
    labels, values = pieces.labels, pieces.values
    best = [
        at
        for sign in ((1, -1) if signed else (1,))
        for at in np.argsort(-sign * values, kind="stable")[:FILLED]
        if sign * values[at] > _WEAK * scale
    ]
    chosen = np.isin(labels, best)
    colours = heat(np.where(chosen, values[labels], 0).astype(np.float32), scale, signed=signed, colormap=colormap)
    tinted = Image.blend(_grey(photo), colours, 0.7)
    white = Image.blend(_grey(photo), Image.new("RGB", photo.size, "white"), 0.5)
    drawn = Image.composite(tinted, white, Image.fromarray(chosen))
    thick = max(1, round(max(photo.size) / 500))
    drawn.paste((255, 255, 255), mask=_borders(labels, thick))
    # Those that are filled stand inside a darker line, so that a pale one is told from the others.
    drawn.paste((40, 40, 40), mask=_borders(np.where(chosen, labels, -2), thick))
    return drawn


def _borders(labels: np.ndarray[Any, Any], thick: int) -> Image.Image:
    """A mask of the pixels before which another label begins, in lines so thick."""
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    mask = Image.fromarray(np.where(edges, 255, 0).astype(np.uint8))
    return mask.filter(ImageFilter.MaxFilter(thick + 1 - thick % 2)) if thick > 1 else mask


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
