"""The interactive viewer: one script, shared by the app, the report and the notebook."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sightline.render.colormap import DIVERGING, SEQUENTIAL, palette
from sightline.render.overlay import Values

PALETTES = (SEQUENTIAL, "viridis", "cividis", "magma", "gray", DIVERGING)
SHOWN = 560  # pixels of the shown photograph's longer side


class Pane(NamedTuple):
    """One map of the viewer.

    Attributes:
        title: the class; `note` how the map was made; `unit` of its values.
        raw: (h, w) unscaled.
        scale: the value that is drawn at full strength; panes of one `group` may share it.
        signed: whether values below 0 are shown.
        mark: what the target is about, as `marks.outlined` gives it.
    """

    title: str
    note: str
    unit: str
    raw: Values
    scale: float
    group: str
    signed: bool
    mark: Mapping[str, Any] | None = None


def shrunk(photo: Image.Image) -> Image.Image:
    """The photograph at the size at which the viewer shows it."""
    small = photo.copy()
    small.thumbnail((SHOWN, SHOWN))
    return small


def viewer_data(photo: Image.Image, view: Any, panes: Sequence[Pane], *, style: str = "heat") -> dict[str, Any]:
    """What the script gets: the small photograph, where the model looked, and the raw maps.

    Args:
        photo: as `shrunk` gives it.
        view: the `View` of a photograph of that size.
        panes: at least one.
        style: the one to begin with.
    """
    return {
        "photo": _address(photo),
        "width": photo.width,
        "height": photo.height,
        "style": style,
        **colours(),
        "panes": [
            {
                **one._asdict(),
                "raw": None,
                "view": {"resized": view.resized, "offset": view.offset, "input": view.input},
                "grid": list(one.raw.shape),
                "values": as_text(np.ascontiguousarray(one.raw, "<f4").tobytes()),
            }
            for one in panes
        ],
    }


def colours() -> dict[str, Any]:
    """The palettes as the script takes them, and which of them is for signed maps."""
    return {"palettes": {name: as_text(palette(name).tobytes()) for name in PALETTES}, "diverging": DIVERGING}


def fragment(data: Mapping[str, Any], instead: Image.Image) -> str:
    """HTML that works on its own, as a notebook shows it; `instead` is seen where scripts are not run."""
    place = f"sightline-{secrets.token_hex(8)}"
    return (
        f"<style>{style_sheet()}</style>"
        f'<div id="{place}"><img alt="the map on the photograph" src="{_address(instead)}" style="max-width:100%"></div>'
        f"<script>{script()};sightlineViewer(document.getElementById({json.dumps(place)}), {in_script(data)})</script>"
    )


def in_script(data: Any) -> str:
    """JSON that can stand in a script block: no text in it can end the block."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def script() -> str:
    """The viewer's JavaScript."""
    return (Path(__file__).parent / "viewer.js").read_text(encoding="utf-8")


@cache
def style_sheet() -> str:
    """The viewer's style sheet."""
    return (Path(__file__).parent / "viewer.css").read_text(encoding="utf-8")


def _address(picture: Image.Image) -> str:
    """The picture as an address that holds it."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{as_text(buffer.getvalue())}"


def as_text(content: bytes) -> str:
    """Bytes as the script takes them."""
    return base64.b64encode(content).decode("ascii")
