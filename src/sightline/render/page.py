"""A white page on which plots place their lines and texts, and the axes of a plot.

Everything is placed in pixels of the page, y downwards, so that no text can run into another or out of the page;
matplotlib only draws the lines and letters.
"""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

Array = np.ndarray[Any, np.dtype[np.float64]]
Dashes = tuple[float, ...]
Align = Literal["left", "center", "right"]

WIDTH = 900  # pixels of the page; the picture has SCALE times as many
SCALE = 2
MARGIN = 20
_LONGEST = 500  # characters of one text

INK, SOFT, FAINT = "#141414", "#5a5a5a", "#e4e4e4"


class Look(NamedTuple):
    """How a line is drawn: colour, dashes in line widths, width in pixels."""

    colour: str
    dashes: Dashes = ()
    width: float = 2.0
    baseline: bool = False


ZERO = Look("#a8a8a8", (), 1)


class Page:
    """A white page, y downwards, on which texts can be measured before its height is known."""

    def __init__(self, width: int = WIDTH) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        # At 72 * SCALE dots per inch a point is a pixel of the page.
        self._width, self.right = width, width - MARGIN
        self._figure = Figure(figsize=(width / 72, 1), dpi=72 * SCALE, facecolor="white")
        self._figure.set_layout_engine("none")
        self._canvas: Any = FigureCanvasAgg(self._figure)
        self._pixels = Affine2D()

    def image(self, height: float) -> Image.Image:
        """The page cut off at this height, as RGB."""
        height = math.ceil(height)
        self._figure.set_size_inches(self._width / 72, (height + 0.01) / 72)
        self._pixels.scale(SCALE, -SCALE).translate(0, SCALE * height)
        self._canvas.draw()
        return Image.fromarray(np.asarray(self._canvas.buffer_rgba())[..., :3].copy())

    def line(self, x: Any, y: Any, look: Look, *, marker: str = "", fill: str | None = None, order: float = 2) -> None:
        """A line through points (n,), with gaps where one is NaN; or a marker at each."""
        from matplotlib.lines import Line2D

        drawn = Line2D(
            x,
            y,
            color=look.colour,
            linewidth=look.width,
            linestyle="none" if marker else (0, look.dashes) if look.dashes else "-",
            marker=marker or "none",
            markersize=8,
            markeredgewidth=1.6,
            markerfacecolor=fill or look.colour,
            markeredgecolor=look.colour,
            dash_capstyle="butt",
            solid_capstyle="butt",
            transform=self._pixels,
            zorder=order,
        )
        self._figure.add_artist(drawn)

    def area(self, corners: Array, colour: str, opacity: float) -> None:
        """A filled area without an edge; corners (n, 2)."""
        from matplotlib.patches import Polygon

        self._figure.add_artist(
            Polygon(
                corners, closed=True, facecolor=colour, alpha=opacity, linewidth=0, transform=self._pixels, zorder=1
            )
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 13,
        *,
        ink: str = INK,
        align: Align = "left",
        bold: bool = False,
        boxed: bool = False,
        upwards: bool = False,
    ) -> None:
        """One line of text as it stands, `y` at the middle of its capitals; boxed hides what lies below it.

        An `upwards` text begins at (x, y) and is read from below, with x at the middle of its capitals.
        """
        from matplotlib.text import Text

        drawn = Text(
            x + 0.36 * size if upwards else x,
            y if upwards else y + 0.36 * size,
            _plain(text, bold),
            rotation=90 if upwards else 0,
            rotation_mode="anchor",
            fontproperties=_font(size, bold),
            color=ink,
            horizontalalignment=align,
            verticalalignment="baseline",
            parse_math=False,
            usetex=False,
            transform=self._pixels,
            zorder=5,
        )
        if boxed:
            drawn.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        self._figure.add_artist(drawn)

    def cells(self, colours: np.ndarray[Any, Any], left: float, top: float, right: float, bottom: float) -> None:
        """Coloured cells (h, w, 3) uint8 that fill a rectangle."""
        from matplotlib.image import BboxImage
        from matplotlib.transforms import Bbox, TransformedBbox

        place = TransformedBbox(Bbox([[left, bottom], [right, top]]), self._pixels)
        drawn = BboxImage(place, interpolation="nearest", origin="lower", zorder=0.2)
        drawn.set_data(colours)
        self._figure.add_artist(drawn)

    def width(self, text: str, size: float = 13, bold: bool = False) -> float:
        """Pixels of the page that a text takes."""
        shown = _plain(text, bold)
        wide: float = self._canvas.get_renderer().get_text_width_height_descent(shown, _font(size, bold), False)[0]
        return wide / SCALE if shown else 0.0

    def fitted(self, text: str, size: float, width: float) -> tuple[str, float]:
        """The text and its size: smaller if it is too long, and if that is not enough, without its middle."""
        text = _plain(text)[:_LONGEST]
        for smaller in (size, size - 1, size - 2):
            if self.width(text, smaller) <= width:
                return text, smaller
        fits = bisect_right(
            range(1, len(text)), width, key=lambda kept: self.width(_without_middle(text, kept), size - 2)
        )
        return _without_middle(text, fits), size - 2

    def all_fitted(self, texts: Sequence[str], width: float) -> list[tuple[str, float]]:
        """Names of one size, that of the smallest."""
        fitted = [self.fitted(text, 13, width) for text in texts]
        return [(text, min(size for _, size in fitted)) for text, _ in fitted]

    def paragraph(
        self, y: float, text: str, size: float = 13, *, ink: str = SOFT, bold: bool = False, width: float | None = None
    ) -> float:
        """Lines of text from the left margin on; returns where the next would begin."""
        for line in self._wrapped(text, size, bold, (self.right if width is None else width) - MARGIN):
            self.text(MARGIN, y + 0.7 * size, line, size, ink=ink, bold=bold)
            y += 1.4 * size
        return y

    def heading(self, title: str, note: str = "") -> float:
        """Title and a note under it; returns where the next thing can begin."""
        y = self.paragraph(16, title, 17, ink=INK, bold=True) if title.strip() else 16.0
        return self.paragraph(y + 4, note, 13) if note.strip() else y

    def _wrapped(self, text: str, size: float, bold: bool, width: float) -> Iterator[str]:
        line = ""
        for word in _plain(text, bold)[:_LONGEST].split(" "):
            longer = f"{line} {word}".strip()
            if self.width(longer, size, bold) <= width:
                line = longer
                continue
            if line:
                yield line
            while self.width(word, size, bold) > width and len(word) > 1:
                cut = bisect_right(range(1, len(word)), width, key=lambda end: self.width(word[:end], size, bold)) or 1
                word = word[cut:]
            line = word
        yield line


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def _plain(text: str, bold: bool = False) -> str:
    """What the font can show, in one line: other letters become a replacement sign, control characters vanish.

    Of marks above or below a letter no more than two are kept, else they would climb over other lines.
    """
    known, shown = _letters(bold), ""
    for one in " ".join(text[: 2 * _LONGEST].split()):
        piled = unicodedata.combining(one) and all(unicodedata.combining(before) for before in shown[-2:])
        if unicodedata.category(one) not in ("Cc", "Cf") and not piled:
            shown += one if ord(one) in known else "\N{REPLACEMENT CHARACTER}"
    return shown


def _font_file(bold: bool) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


@lru_cache(maxsize=2)
def _letters(bold: bool) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(str(_font_file(bold))).get_charmap())


@lru_cache(maxsize=32)
def _font(size: float, bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=_font_file(bold), size=size)


class Scale(NamedTuple):
    """From values to pixels of the page."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, values: Any) -> Any:
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Round values inside with their texts."""
        rough = (self.high - self.low) / max(1, most)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [(place * step, number(place * step, step)) for place in range(first, last + 1)]


def number(value: float, step: float) -> str:
    """A value with as many digits as it needs to differ from one a step away."""
    largest = max(abs(value), step)
    if step >= 1e-5 and largest < 1e7:
        text = f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    else:
        text = f"{value:.{math.ceil(math.log10(largest / step)) + 1}g}"
    return text.replace("-", "\N{MINUS SIGN}")


def limits(values: Array, pad: float = 0.05) -> tuple[float, float]:
    """What an axis covers: the values and a little more."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    room = pad * (high - low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(low) or 0.5
    return low - room, high + room


class Frame(NamedTuple):
    """The rectangle of a plot: one scale to the right, one upwards."""

    x: Scale
    y: Scale

    @property
    def bottom(self) -> float:
        return self.y.start

    def draw(self, page: Page, x_label: str, *, across: bool = True, whole: bool = False) -> None:
        """Grid, ticks with their numbers, and the name of the x axis; lines `across` belong to the y axis."""
        left, right, top = self.x.start, self.x.end, self.y.end
        grid = Look(FAINT, (), 1)
        for value, text in self.x.ticks(max(2, round((right - left) / (30 if whole else 70)))):
            if whole and not math.isclose(value, round(value), abs_tol=1e-6):
                continue
            text = number(round(value), 1) if whole else text
            page.line([self.x(value)] * 2, [self.bottom + 4, top], ZERO if value == 0 else grid, order=0)
            page.text(self.x(value), self.bottom + 14, text, 12, ink=SOFT, align="center")
        for value, text in self.y.ticks(6) if across else ():
            page.line([left - 4, right], [self.y(value)] * 2, ZERO if value == 0 else grid, order=0)
            page.text(left - 8, self.y(value), text, 12, ink=SOFT, align="right")
        page.line([left, right], [self.bottom] * 2, Look(SOFT, (), 1), order=0.5)
        name, size = page.fitted(x_label, 13, page.right - MARGIN)
        half = page.width(name, size) / 2
        middle = min(max((left + right) / 2, MARGIN + half), page.right - half)
        page.text(middle, self.bottom + 36, name, size, ink=SOFT, align="center")
