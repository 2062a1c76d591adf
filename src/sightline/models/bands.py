"""`bands`: pictures of any number of named channels (satellite, microscopy, depth), and the three of them that a person is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.errors import ImageError, ModelError, did_you_mean
from sightline.models.preprocess import Fit, Preprocess, scaled_size
from sightline.models.view import View

# Of what is shown, the percentiles at which black and full brightness lie.
LOW, HIGH = 2, 98
_COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Bands:
    """What the channels of a model's input are.

    Attributes:
        names: of each channel, in order.
        display: the three that are shown as red, green and blue, or the one that is shown grey.
        size: (width, height) of the model's input; None takes arrays as large as they are.
        fit: how an array of another size becomes that.
        mean: of each channel, in the data's own units.
        std: likewise.
    """

    names: tuple[str, ...]
    display: tuple[str, ...]
    size: tuple[int, int] | None
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]


def bands(
    names: Sequence[str],
    *,
    display: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "exact",
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Preprocess:
    """The preprocessing of a model whose input has any number of named channels: `adapt(module, preprocess=bands(...))`.

    `explain` then takes an array (H, W, n), a .npy file or a multi-band TIFF. The model gets (values - mean) / std, and nothing
    is scaled or cut beside that.

    Args:
        names: of the channels, in the order in which files and arrays have them.
        display: the three bands to show as red, green and blue, or one to show grey; by default red, green and blue where there
            are bands of these names, else the first three, else the first.
        size: (width, height) of the model's input; left out, arrays are taken as large as they are.
        fit: "exact" stretches to `size`, "shorter" scales the shorter side to it and cuts, "longer" shows all and pads with the mean.
        mean: one number or one for each band, in the data's own units.
        std: likewise.

    Raises:
        ModelError: an unknown band to display, or numbers that don't fit.
    """
    known = _names(names)
    if fit not in ("exact", "shorter", "longer"):
        raise ModelError(f"fit is {fit!r}; expected exact, shorter or longer")
    if size is not None and not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(type(side) is int and 1 <= side <= 8192 for side in size)
    ):
        raise ModelError(f"size is {size!r}; expected (width, height) of the model's input in pixels, such as (64, 64)")
    middle, spread = (_numbers(what, value, known) for what, value in (("mean", mean), ("std", std)))
    if min(spread) <= 0:
        raise ModelError(f"std is {std!r}; expected numbers above 0")
    whole = None if size is None else (size[0], size[1])
    return preparing(Bands(known, _display(display, known), whole, fit, middle, spread))


def preparing(of: Bands) -> Preprocess:
    """The preprocessing of such bands; a function of this module, so that it can be told from others."""
    return partial(_banded, bands=of)


def bands_of(preprocess: Any) -> Bands | None:
    """What `bands` was told; None of any other preprocessing."""
    if not isinstance(preprocess, partial) or preprocess.func is not _banded:
        return None
    found: Bands = preprocess.keywords["bands"]
    return found


def plain(of: Bands, side: int) -> np.ndarray[Any, Any]:
    """An array of nothing but the means."""
    return np.broadcast_to(np.array(of.mean, np.float32), (side, side, len(of.names)))


def checked(values: np.ndarray[Any, Any], of: Bands, name: str) -> np.ndarray[Any, Any]:
    """The array as (H, W, n) float32, or an `ImageError` where it holds other bands or what is no number."""
    count = len(of.names)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] != count:
        got = f"{values.shape[2]} bands" if values.ndim == 3 else f"the shape {values.shape}"
        first = values.ndim == 3 and values.shape[0] == count
        hint = "; it looks bands-first: array.transpose(1, 2, 0)" if first else ""
        raise ImageError(f"{name} has {got}; expected (H, W, {count}): {', '.join(of.names)}{hint}")
    found = np.asarray(values, np.float32)
    good = np.isfinite(found)
    if not good.all():
        bad = {one: int((~good[..., at]).sum()) for at, one in enumerate(of.names) if not good[..., at].all()}
        shown = ", ".join(f"{one} ({number:,} pixels)" for one, number in bad.items())
        raise ImageError(f"{name} holds NaN or infinity in {shown}; fill in what is missing before it is explained")
    return found


def shown(values: np.ndarray[Any, Any], of: Bands) -> tuple[Image.Image, str]:
    """The bands to display as a photograph, and in words which they are and how their values became colours."""
    planes, said, beyond = [], [], np.zeros(values.shape[:2], bool)
    for name in of.display:
        plane = values[..., of.names.index(name)].astype(np.float64)
        low, high = (float(one) for one in np.percentile(plane, (LOW, HIGH)))
        if high <= low:
            low, high = float(plane.min()), float(plane.max())
        beyond |= (plane < low) | (plane > high)
        share = np.clip((plane - low) / (high - low), 0, 1) if high > low else np.full(plane.shape, 0.5)
        planes.append(np.rint(255 * share).astype(np.uint8))
        said.append(f"{name} {low:.4g} to {high:.4g}")
    grey = len(planes) == 1
    photo = Image.fromarray(planes[0] if grey else np.stack(planes, axis=2)).convert("RGB")
    how = "in grey" if grey else f"as {', '.join(_COLOURS[:-1])} and {_COLOURS[-1]}"
    share_beyond = 100 * float(beyond.mean())
    note = (
        f"shown {how}: {', '.join(said)}, from the {LOW}nd to the {HIGH}th percentile; {share_beyond:.2g} % of the pixels lie "
        f"beyond{'' if grey else ' in one of them'} and have the colour of that end. The model gets the values as they are"
    )
    return photo, note


def _banded(values: Any, *, bands: Bands) -> tuple[Tensor, View]:
    """The model's input of an array (H, W, n), and the way back."""
    if isinstance(values, Image.Image):
        raise ImageError(
            f"this model takes {len(bands.names)} bands ({', '.join(bands.names)}), which a picture has not: give sightline.explain "
            "an array, a .npy file or a multi-band TIFF. As a baseline give numbers, mean or blur"
        )
    values = checked(np.asarray(values), bands, "array")
    height, width = values.shape[:2]
    size = bands.size or (width, height)
    scaled = scaled_size((width, height), size, bands.fit)
    offset = tuple(round((scaled[axis] - size[axis]) / 2) for axis in (0, 1))
    found = np.empty((len(bands.names), size[1], size[0]), np.float32)
    for at, (mean, std) in enumerate(zip(bands.mean, bands.std, strict=True)):
        plane = np.ascontiguousarray(values[..., at])
        if scaled != (width, height):
            plane = np.asarray(Image.fromarray(plane).resize(scaled, Image.Resampling.BILINEAR))
        found[at] = (_window(plane, offset, size, mean) - mean) / std
    view = View(photo=(width, height), resized=scaled, offset=(offset[0], offset[1]), input=size)
    return torch.from_numpy(found), view


def _window(plane: np.ndarray[Any, Any], offset: Sequence[int], size: tuple[int, int], fill: float) -> Any:
    """The window of a plane at (left, top), filled where it reaches beyond."""
    window = np.full((size[1], size[0]), fill, np.float64)
    left, top = offset
    inside = plane[max(top, 0) : max(top + size[1], 0), max(left, 0) : max(left + size[0], 0)]
    window[max(-top, 0) : max(-top, 0) + inside.shape[0], max(-left, 0) : max(-left, 0) + inside.shape[1]] = inside
    return window


def _names(names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, list | tuple) or not names:
        raise ModelError(
            f"bands are {names!r}; expected a name for each channel, such as ('blue', 'green', 'red', 'nir')"
        )
    if not all(isinstance(one, str) and one.isprintable() and 0 < len(one) <= 40 for one in names):
        raise ModelError("the name of a band is a word of at most 40 characters")
    if len(set(names)) < len(names):
        twice = next(one for one in names if list(names).count(one) > 1)
        raise ModelError(f"two bands are called {twice!r}; give each a name of its own")
    return tuple(names)


def _display(display: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    if display is None:
        colours = {one.lower(): one for one in known}
        if all(colour in colours for colour in _COLOURS):
            return tuple(colours[colour] for colour in _COLOURS)
        return known[:3] if len(known) >= 3 else known[:1]
    chosen = (display,) if isinstance(display, str) else tuple(display)
    for one in chosen:
        if one not in known:
            raise ModelError(
                f"there is no band {one!r} to display.{did_you_mean(str(one), known)} There are: {', '.join(known)}"
            )
    if len(chosen) not in (1, 3):
        raise ModelError(
            f"display names {len(chosen)} bands; expected three, for red, green and blue, or one, for grey"
        )
    return chosen


def _numbers(what: str, value: Any, known: tuple[str, ...]) -> tuple[float, ...]:
    numbers = [value] if isinstance(value, int | float) else list(value) if isinstance(value, list | tuple) else []
    good = all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e30 for one in numbers)
    if not good or len(numbers) not in (1, len(known)):
        raise ModelError(f"{what} is {value!r}; expected one number, or one for each of {', '.join(known)}")
    return tuple(float(one) for one in (numbers * len(known) if len(numbers) == 1 else numbers))
