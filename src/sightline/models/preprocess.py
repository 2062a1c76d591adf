"""From a photograph to a model's input, with the `View` that leads back."""

from __future__ import annotations

import math
import random
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.errors import ImageError, ModelError, did_you_mean
from sightline.models.view import View

# Of a PIL picture, or of an array (H, W, n) where `bands` made it.
Preprocess = Callable[[Any], tuple[Tensor, View]]
_LARGEST = 64  # times the input's area
Fit = Literal["shorter", "longer", "exact", "whole", "none"]


def standard(
    size: tuple[int, int],
    resize: int | tuple[int, int],
    *,
    fit: Fit = "shorter",
    interpolation: str = "bilinear",
    mean: Sequence[float],
    std: Sequence[float],
    rounding: str = "nearest",
    channels: str = "rgb",
    fill: Sequence[float] = (0.0, 0.0, 0.0),
) -> Preprocess:
    """Resize, centre crop (or pad), scale to 0..1, normalise: what nearly every published model asks for.

    Args:
        size: (width, height) of the model's input.
        resize: the side to scale to, or (width, height).
        fit: "shorter" scales the shorter side to `resize`, "longer" fits the whole picture into it, "exact"
            squashes the picture to `resize`, "whole" is as "shorter" without a crop, and "none" takes the picture as it is; with
            these two the input's size is that of the scaled picture.
        interpolation: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos", as Pillow means them (antialiased).
        mean: per channel, in 0..1.
        std: per channel, in 0..1.
        rounding: of the crop's corner where as many pixels can't be cut off on both sides: "nearest" as torchvision, "down"
            as transformers does it.
        channels: their order, "rgb" or "bgr"; mean and std follow it.
        fill: colour of padding, in 0..1.

    Returns:
        A function from a PIL picture to (tensor (3, height, width), View); equal to torchvision's and timm's
        evaluation transforms to the bit.
    """
    # Functions of this module with words and numbers alone, so that another process can be told which one to use.
    return partial(
        _prepared,
        size=size,
        resize=resize,
        fit=fit,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
        rounding=rounding,
        channels=channels,
        fill=tuple(fill),
    )


def specification(preprocess: Preprocess) -> dict[str, Any] | None:
    """The arguments of `standard` that made it; None for any other function."""
    if not isinstance(preprocess, partial) or preprocess.func is not _prepared:
        return None
    return dict(preprocess.keywords)


def enough(preprocess: Preprocess, photo: tuple[int, int]) -> tuple[int, int] | None:
    """The (width, height) from which on a smaller copy of a photograph (width, height) gives the same input; None where all of it is needed.

    Twice what it is scaled to: what a decoder leaves out is then far finer than what the model sees.
    """
    spec = specification(preprocess)
    if spec is None:
        return None
    width, height = scaled_size(photo, spec["resize"], spec["fit"])
    return 2 * width, 2 * height


def prepared(preprocess: Preprocess, image: Image.Image, photo: tuple[int, int]) -> tuple[Tensor, View]:
    """The input and the view of a photograph (width, height), of which the image may be a copy of `enough` pixels."""
    if image.size == photo:
        return preprocess(image)
    return preprocess(image, photo=photo)  # type: ignore[call-arg]


def _prepared(
    image: Image.Image,
    *,
    size: tuple[int, int],
    resize: int | tuple[int, int],
    fit: Fit,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    rounding: str,
    channels: str,
    fill: Sequence[float],
    photo: tuple[int, int] | None = None,
) -> tuple[Tensor, View]:
    """What `standard` says; `photo` is the photograph's own size where the image is a smaller copy of it."""
    whole = math.floor if rounding == "down" else round
    resample = getattr(Image.Resampling, interpolation.upper())
    channel_mean, channel_std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))
    photo = photo or image.size
    scaled = scaled_size(photo, resize, fit)
    if fit in ("whole", "none"):
        size = scaled
    # Rounded as torchvision rounds, so that not one pixel differs.
    offset = tuple(
        whole((scaled[axis] - size[axis]) / 2.0) if scaled[axis] >= size[axis] else -((size[axis] - scaled[axis]) // 2)
        for axis in (0, 1)
    )
    window = (offset[0], offset[1], offset[0] + size[0], offset[1] + size[1])
    small = image if image.mode == "RGB" else image.convert("RGB")
    if scaled[0] * scaled[1] > _LARGEST * size[0] * size[1] and min(scaled[0] - size[0], scaled[1] - size[1]) >= 0:
        # A picture so thin that the whole of it, scaled, would fill the memory: only the window is.
        ratio = (image.width / scaled[0], image.height / scaled[1])
        left, top, right, bottom = (edge * ratio[index % 2] for index, edge in enumerate(window))
        small, window = small.resize(size, resample, box=(left, top, right, bottom)), (0, 0, *size)
    elif small.size != scaled:
        small = small.resize(scaled, resample)
    if scaled[0] < size[0] or scaled[1] < size[1]:
        canvas = Image.new("RGB", size, tuple(round(255 * value) for value in fill))
        canvas.paste(small, (-offset[0], -offset[1]))
        small = canvas
    else:
        small = small.crop(window)
    values = np.array(small)
    pixels = torch.from_numpy(values[..., ::-1].copy() if channels == "bgr" else values).permute(2, 0, 1).contiguous()
    x = (pixels.float().div(255) - channel_mean) / channel_std
    return x, View(photo=photo, resized=scaled, offset=(offset[0], offset[1]), input=size)


_WORDS = {
    "fit": ("shorter", "longer", "exact", "whole", "none"),
    "interpolation": ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
    "rounding": ("nearest", "down"),
    "channels": ("rgb", "bgr"),
}
_PARTS = ("size", "resize", "mean", "std", *_WORDS)


def specified(own: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> tuple[Preprocess, dict[str, Any]]:
    """A model's own preprocessing with what the user gave in its place.

    Args:
        own: the arguments of `standard`.
        given: some of them; of `size` and `resize` one number stands for a square. With a `size` alone, `resize` keeps its ratio.

    Returns:
        The function, and the whole specification.

    Raises:
        ModelError: an unknown part, or a value it can't have.
    """
    spec = {part: _part(part, value) for part, value in own.items()}
    for part, value in (given or {}).items():
        if part not in _PARTS:
            raise ModelError(
                f"preprocessing has no part {part!r}.{did_you_mean(str(part), _PARTS)} It has: {', '.join(_PARTS)}"
            )
        spec[part] = _part(part, value)
    if given and "size" in given and "resize" not in given:
        ratio = spec["size"][0] / own["size"][0], spec["size"][1] / own["size"][1]
        sides = own["resize"] if isinstance(own["resize"], tuple) else (own["resize"], own["resize"])
        scaled = tuple(round(side * one) for side, one in zip(sides, ratio, strict=True))
        spec["resize"] = scaled[0] if scaled[0] == scaled[1] and not isinstance(own["resize"], tuple) else scaled
    # A border has the mean colour, which is what the model sees as nothing.
    return standard(**spec, fill=spec["mean"]), spec


def _part(part: str, value: Any) -> Any:
    if part in _WORDS:
        if value not in _WORDS[part]:
            raise ModelError(f"preprocessing {part}={reprlib.repr(value)}; expected one of {', '.join(_WORDS[part])}")
        return value
    numbers = [value] if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(numbers, str):
        try:
            numbers = [float(one) for one in numbers.split(",")]
        except ValueError:
            numbers = []
    if not isinstance(numbers, list | tuple) or not all(
        isinstance(one, int | float) and abs(one) <= 1e9 for one in numbers
    ):
        numbers = []
    if part in ("size", "resize"):
        sides = [int(one) for one in numbers if one == int(one) and 1 <= one <= 8192]
        if len(sides) not in (1, 2) or len(sides) != len(numbers):
            raise ModelError(
                f"preprocessing {part}={reprlib.repr(value)}; expected pixels, such as 224, or width and height: [320,240]"
            )
        return sides[0] if part == "resize" and len(sides) == 1 else (sides[0], sides[-1])
    if len(numbers) not in (1, 3) or (part == "std" and min(numbers) <= 0):
        raise ModelError(
            f"preprocessing {part}={reprlib.repr(value)}; expected one number or three, of channels in 0..1, such as [0.5,0.5,0.5]"
        )
    return tuple(float(one) for one in (numbers * 3 if len(numbers) == 1 else numbers))


def scaled_size(photo: tuple[int, int], resize: int | tuple[int, int], fit: Fit) -> tuple[int, int]:
    """(width, height) to which a photograph is scaled."""
    width, height = photo
    if fit == "none":
        return photo
    if fit == "exact":
        return resize if isinstance(resize, tuple) else (resize, resize)
    box = resize if isinstance(resize, tuple) else (resize, resize)
    if fit == "longer":
        ratio = max(width / box[0], height / box[1])
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if width <= height:
        return box[0], int(box[0] * height / width)
    return int(box[1] * width / height), box[1]


def measured(function: Callable[[Image.Image], Any]) -> Preprocess:
    """Any user's preprocessing, with its geometry found by sending pictures of known coordinates through it.

    The function may also return (tensor, View) itself; then nothing is measured.

    Raises:
        ModelError: it does more than resize, crop and pad (rotates, mirrors, draws at random), so that a map could not
            be laid back on the photograph.
    """

    return partial(_measured, function)


def _measured(function: Callable[[Image.Image], Any], image: Image.Image) -> tuple[Tensor, View]:
    result = function(image.copy())  # it may draw on what it is given
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], View):
        return _one_input(result[0]), result[1]
    return _one_input(result), _view_of(_Same(function), image.size)


class _Same:
    """A function by its identity: those that can't be hashed can be remembered all the same."""

    def __init__(self, function: Callable[[Image.Image], Any]) -> None:
        self.function = function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.function is self.function

    def __hash__(self) -> int:
        return id(self.function)


@lru_cache(maxsize=256)
def _view_of(function: _Same, size: tuple[int, int]) -> View:
    return _measure(function.function, size)


def _one_input(result: Any) -> Tensor:
    if isinstance(result, Tensor) and result.dim() == 4 and len(result) == 1:
        result = result[0]
    if not isinstance(result, Tensor) or result.dim() != 3 or not result.is_floating_point():
        got = f"{tuple(result.shape)} of {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
        raise ModelError(f"preprocess gave {got}; expected a float tensor (C, H, W), or (tensor, View)")
    return result


def _measure(function: Callable[[Image.Image], Any], size: tuple[int, int]) -> View:
    width, height = size
    if min(size) < 16:
        raise ImageError(
            f"a picture of {width} x {height} is too small to measure the given preprocess on it (16 x 16 at least)"
        )
    across = np.broadcast_to(np.rint(255 * (np.arange(width) + 0.5) / width), (height, width))
    down = np.broadcast_to(np.rint(255 * (np.arange(height) + 0.5) / height)[:, None], (height, width))

    def send(values: Any) -> np.ndarray[Any, Any]:
        picture = Image.fromarray(np.ascontiguousarray(values, np.uint8)).convert("RGB")
        return _one_input(function(picture)).detach().cpu().double().numpy()

    black, white = send(np.zeros((height, width))), send(np.full((height, width), 255))
    runs = [send(across), send(down)]
    contrast = white - black
    channels = np.abs(contrast).max(axis=(1, 2)) > 1e-6
    if not channels.any():
        raise ModelError("preprocess gives the same for a black and a white picture; it does not look at the picture")
    contrast, black = contrast[channels], black[channels]
    inside = (np.abs(contrast) > 0.5 * np.abs(contrast).max(axis=(1, 2), keepdims=True)).all(axis=0)
    out_height, out_width = inside.shape
    lines = []
    for run, length, axis in ((runs[0][channels], width, 0), (runs[1][channels], height, 1)):
        with np.errstate(divide="ignore", invalid="ignore"):
            source = np.where(inside, ((run - black) / contrast).mean(axis=0), np.nan) * length
        if axis == 1:
            source = source.T
        lines.append(_line(source, length))
    (slope_x, shift_x), (slope_y, shift_y) = (
        _snapped(slope, shift, length, pixels)
        for (slope, shift), length, pixels in zip(lines, size, (out_width, out_height), strict=True)
    )
    before = _random_states()
    if not np.array_equal(runs[0], send(across)) or before != _random_states():
        raise ModelError("preprocess draws at random, so that no map can be laid back; use the evaluation transforms")
    return View(
        photo=size,
        resized=(width / slope_x, height / slope_y),
        offset=(shift_x / slope_x, shift_y / slope_y),
        input=(out_width, out_height),
    )


def _snapped(slope: float, shift: float, length: int, pixels: int) -> tuple[float, float]:
    """What covers the whole side up to the error of measuring covers the whole side."""
    whole = length / pixels
    if abs(shift) < whole and abs(shift + slope * pixels - length) < whole:
        return whole, 0.0
    return slope, shift


def _random_states() -> tuple[bytes, Any, str]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())


def _line(source: np.ndarray[Any, Any], length: int) -> tuple[float, float]:
    """Photograph coordinate = slope * (input coordinate) + shift, fitted over (other axis, this axis)."""
    known = ~np.isnan(source).all(axis=0)
    at = np.nonzero(known)[0]
    values = np.nanmedian(source[:, known], axis=0)
    # Values at the very edge are blurred by resampling.
    middle = slice(2, -2) if len(at) > 12 else slice(None)
    step = length / 255
    problem = "preprocess does more than resize, crop and pad"
    advice = "so that a map can't be laid back on the photograph; let it return (tensor, sightline.View) instead"
    if len(values[middle]) < 4:
        raise ModelError(f"{problem}, {advice}")
    slope, shift = np.polyfit(at[middle] + 0.5, values[middle], 1)
    spread = np.nanmax(np.abs(source[:, at[middle]] - values[middle]))
    residual = np.abs(slope * (at[middle] + 0.5) + shift - values[middle]).max()
    if slope <= 0 or residual > 2 * step + 1 or spread > 2 * step + 1:
        raise ModelError(f"{problem} (it turns, mirrors or bends the picture), {advice}")
    return float(slope), float(shift)
