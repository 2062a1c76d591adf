"""The picture without evidence that a map compares with: one meaning of the option `baseline` for all methods that have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.engine.probe import Probe
from sightline.errors import MethodError
from sightline.methods.gradient_cams import at_least_single
from sightline.methods.registry import EXPECTED_BASELINE

Baseline = float | Sequence[float] | str | Tensor


def baseline_of(spec: Baseline, x: Tensor, probe: Probe, seed: int = 0) -> Tensor:
    """The baseline of the picture x (1, C, H, W), of its shape and type.

    Args:
        spec: a number, or one for each channel, in the units of the model's input; "black" or "white", as the model's
            preprocessing makes them; "mean", the picture's own mean colour; "blur", the picture blurred by a tenth of its shorter
            side; "random", uniform noise over the picture's own range; the file of a picture; or a tensor (C, H, W). Of a film or
            volume each slice is blurred, and is the picture of a file; a tensor is (C, T, H, W).
        x: the picture; of a film or volume (1, C, T * H, W), as the probe takes it.
        probe: makes the model's input of a photograph.
        seed: of "random".

    Raises:
        MethodError: none of these, or of another shape than the picture.
    """
    if isinstance(spec, np.ndarray):
        if spec.dtype.kind not in "fiu":
            raise MethodError(f"option baseline is an array of {spec.dtype}; expected floats")
        own = np.ascontiguousarray(spec, spec.dtype.newbyteorder("="))
        return _fitting(torch.from_numpy(own), x, probe.slices, "is an array")
    if isinstance(spec, Tensor):
        return _fitting(spec, x, probe.slices, "is a tensor")
    if not isinstance(spec, str):
        return colour(spec, x).expand_as(x)
    if spec in ("black", "white"):
        sides = [max(64, side) for side in (x.shape[2] // (probe.slices or 1), x.shape[3])]
        made = probe.picture(np.full((*sides, 3), 255 * (spec == "white"), np.uint8))
        middle = made.shape[2] // 2, made.shape[3] // 2  # of a picture that may be letterboxed
        return made[..., middle[0], middle[1]][..., None, None].to(x).expand_as(x)
    if spec == "mean":
        return at_least_single(x).mean(dim=(2, 3), keepdim=True).to(x).expand_as(x)
    if spec == "blur":
        return blurred(x, min(x.shape[2] // (probe.slices or 1), x.shape[3]) / 10, probe.slices)
    if spec == "random":
        drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(x)
        return x.min() + (x.max() - x.min()) * drawn
    if not _is_file(spec):
        raise MethodError(f"option baseline is {spec!r}; expected {EXPECTED_BASELINE}")
    made = probe.picture(spec)
    made = made[:, :, None].expand(-1, -1, probe.slices, -1, -1) if probe.slices else made
    return _fitting(made, x, probe.slices, f"({spec}) becomes an input")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # no name that a file could have
        return False


def colour(values: float | Sequence[float], x: Tensor) -> Tensor:
    """One number or one for each channel, as a picture of one pixel (1, C or 1, 1, 1)."""
    numbers = list(values) if isinstance(values, Sequence) else [values]
    if len(numbers) not in (1, x.shape[1]):
        raise MethodError(
            f"option baseline has {len(numbers)} numbers; expected one, or one for each of {x.shape[1]} channels"
        )
    return torch.tensor(numbers, dtype=x.dtype, device=x.device)[None, :, None, None]


def volume_of(x: Tensor, slices: int) -> Tensor:
    """(N, C, T * H, W) as (N, C, T, H, W)."""
    return x.reshape(*x.shape[:2], slices, -1, x.shape[3])


def _fitting(found: Tensor, x: Tensor, slices: int, what: str) -> Tensor:
    wanted = volume_of(x, slices).shape if slices else x.shape
    found = found if found.dim() == len(wanted) else found[None]
    if found.shape != wanted or not found.is_floating_point():
        raise MethodError(
            f"option baseline {what} of shape {tuple(found.shape)} ({found.dtype}); expected floats of the picture's, {tuple(wanted)}"
        )
    if found.layout != torch.strided or found.is_meta:
        raise MethodError("option baseline is a tensor that is sparse or holds no numbers (meta); expected a dense one")
    if not bool(found.isfinite().all()):
        raise MethodError("option baseline holds NaN or infinity; expected finite numbers")
    return found.reshape(x.shape).to(x)


def described(spec: Any) -> str:
    """The baseline in a few words, for a sentence."""
    if isinstance(spec, Tensor | np.ndarray):
        return "a tensor"
    return (
        spec
        if isinstance(spec, str)
        else f"{spec if isinstance(spec, Sequence) else format(spec, 'g')} in the units of the input"
    )


def blurred(x: Tensor, sigma: float, slices: int = 0) -> Tensor:
    """Pictures (N, C, H, W) under a Gaussian of `sigma` pixels, cut at 4 sigma; beyond the border the picture is mirrored.

    With `slices`, so many that lie below each other are blurred each alone.
    """
    if sigma <= 0:
        return x
    if slices:
        return blurred(volume_of(x, slices), sigma).flatten(2, 3)
    rows, columns = (_bell(side, sigma).to(x.device, at_least_single(x).dtype) for side in x.shape[-2:])
    return (rows @ at_least_single(x) @ columns.T).to(x)


def _bell(side: int, sigma: float) -> Tensor:
    """(side, side): how much of each pixel goes into each; a line as far as the Gaussian reaches, folded back at the borders."""
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    at = (torch.arange(side)[:, None] + torch.arange(-reach, reach + 1)) % (2 * side)
    folded = torch.minimum(at, 2 * side - 1 - at)
    found = torch.zeros(side, side, dtype=torch.float64)
    return found.scatter_add_(1, folded, (weights / weights.sum()).expand(side, -1))
