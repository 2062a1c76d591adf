"""Heat maps made by hand, for the tests of everything that comes after the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from sightline.heatmap import Heatmap, Prediction
from sightline.models.view import View

PREDICTIONS = (Prediction(3, "tiger cat", 0.5932), Prediction(1, "tabby", 0.0231), Prediction(0, "lynx", 0.0004))


def photograph(size: tuple[int, int] = (90, 60), seed: int = 0) -> Image.Image:
    """Noise, in which every changed pixel shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cropped(size: tuple[int, int]) -> View:
    """The middle square of a photograph, at its own resolution."""
    side = min(size)
    return View(size, size, ((size[0] - side) // 2, (size[1] - side) // 2), (side, side))


def heatmap(raw: Any = None, *, photo: Image.Image | None = None, whole: bool = False, **changes: Any) -> Heatmap:
    """A heat map with everything in it; `whole` when the model saw all of the photograph."""
    raw = np.linspace(0, 0.5, 20).reshape(4, 5) if raw is None else raw
    signed_raw = np.asarray(raw, np.float32)
    signed = changes.get("signed", False)
    raw = signed_raw if signed else np.maximum(signed_raw, 0)
    photo = photo or photograph()
    view = View(photo.size, photo.size, (0, 0), photo.size) if whole else cropped(photo.size)
    values: dict[str, Any] = {
        "raw": raw,
        "signed_raw": signed_raw,
        "scale": float(np.abs(raw).max()),
        "photo": photo,
        "view": view,
        "image": "/home/someone/secret-folder/cat.jpg",
        "method": "grad-cam",
        "signed": False,
        "unit": "score",
        "label": "tiger cat",
        "index": 3,
        "score": 7.25,
        "probability": 0.5932,
        "layer": "features.denseblock4",
        "layer_reason": "the last 4x5 grid before pooling",
        "predictions": PREDICTIONS,
        "model": "made by hand",
        "provenance": {"source": "tests", "random_weights": False},
        "warnings": ("the model is not sure",),
    }
    return Heatmap(**(values | changes))
