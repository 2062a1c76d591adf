"""What can be done to a picture to find out what a model relies on: pure arithmetic on inputs (N, C, H, W).

Each gives new tensors and leaves those it is given as they are. Boxes are (left, top, right, bottom) in pixels of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int, int]
_FINE = 10  # waves along the shorter side from which on structure counts as texture
_ZOOM = 0.7


def cover(x: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Each picture with its box in the mean colour of the rest of it."""
    found = x.clone()
    for one, (left, top, right, bottom) in zip(found, boxes, strict=True):
        inside = one[:, top:bottom, left:right]
        rest = one.sum(dim=(1, 2)) - inside.sum(dim=(1, 2))
        pixels = one[0].numel() - inside[0].numel()
        inside[:] = (rest / max(1, pixels))[:, None, None]
    return found


def inpaint(x: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Each picture with its box filled from the pixels around it: each edge runs straight across, weighed by its nearness.

    An edge that is the picture's own has nothing beyond it and is left out.
    """
    found = x.clone()
    for source, one, (left, top, right, bottom) in zip(x, found, boxes, strict=True):
        height, width = bottom - top, right - left
        down = torch.arange(1, height + 1, device=x.device, dtype=x.dtype)[:, None]
        over = torch.arange(1, width + 1, device=x.device, dtype=x.dtype)[None]
        edges = []
        if top > 0:
            edges.append((source[:, top - 1, None, left:right], down))
        if bottom < x.shape[2]:
            edges.append((source[:, bottom, None, left:right], height + 1 - down))
        if left > 0:
            edges.append((source[:, top:bottom, left - 1, None], over))
        if right < x.shape[3]:
            edges.append((source[:, top:bottom, right, None], width + 1 - over))
        filled, weights = torch.zeros_like(one[:, top:bottom, left:right]), one.new_zeros(height, width)
        for pixels, distance in edges:
            filled += pixels / distance
            weights += 1 / distance
        one[:, top:bottom, left:right] = filled / weights.clamp_min(torch.finfo(x.dtype).tiny)
    return found


def paste(x: Tensor, donors: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Each picture with its box as it is in its donor."""
    found = x.clone()
    for one, donor, (left, top, right, bottom) in zip(found, donors, boxes, strict=True):
        one[:, top:bottom, left:right] = donor[:, top:bottom, left:right]
    return found


def paste_around(x: Tensor, donors: Tensor, objects: Tensor, others: Tensor) -> Tensor:
    """Each picture's object before its donor's background, whose own object is filled with the background's mean colour.

    Args:
        x: pictures.
        donors: as many others.
        objects: (N, H, W) 0 to 1, where each picture's object is.
        others: the same of the donors.
    """
    background = 1 - others[:, None]
    mean = (donors * background).sum(dim=(2, 3), keepdim=True) / background.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    plain = donors * background + mean * (1 - background)
    return x * objects[:, None] + plain * (1 - objects[:, None])


def tone(x: Tensor, donors: Tensor) -> Tensor:
    """Each picture with its donor's mean and spread of every colour.

    Reference:
        Reinhard et al., Color Transfer between Images, 2001, eq. 10-11, here on the colours as the model gets them.
    """
    (middle, spread), (wanted, width) = (_tone_of(one) for one in (x, donors))
    return _as_either((x - middle) / spread.clamp_min(1e-6) * width + wanted, x, donors)


def texture(x: Tensor, donors: Tensor) -> Tensor:
    """Each picture with its donor's fine texture: what is finer than a tenth of the side gets the donor's strength, at every fineness
    and direction, and stays where it is. That is the amplitude of the spectrum; the phases, which carry the shapes, are the picture's own.
    """
    height, width = x.shape[2:]
    spectra = torch.fft.rfft2(x.float()), torch.fft.rfft2(donors.float())
    down = torch.fft.fftfreq(height, device=x.device)[:, None] * height
    over = torch.fft.rfftfreq(width, device=x.device)[None] * width
    fine = (down / height).hypot(over / width) * min(height, width) >= _FINE
    phases = spectra[0] / spectra[0].abs().clamp_min(1e-12)
    found = torch.fft.irfft2(torch.where(fine, phases * spectra[1].abs(), spectra[0]), s=(height, width))
    return _as_either(found.to(x.dtype), x, donors)


def smaller(x: Tensor) -> Tensor:
    """Everything at 70 % of its size, the edges repeated around it."""
    height, width = x.shape[2:]
    inner = F.interpolate(x, scale_factor=_ZOOM, mode="bilinear", antialias=True)
    top, left = (height - inner.shape[2]) // 2, (width - inner.shape[3]) // 2
    return F.pad(inner, (left, width - inner.shape[3] - left, top, height - inner.shape[2] - top), mode="replicate")


def larger(x: Tensor) -> Tensor:
    """The middle 70 %, at the size of the whole."""
    height, width = x.shape[2:]
    top, left = round(height * (1 - _ZOOM) / 2), round(width * (1 - _ZOOM) / 2)
    inner = x[:, :, top : height - top, left : width - left]
    return F.interpolate(inner, (height, width), mode="bilinear")


def _tone_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(dim=(2, 3), keepdim=True), x.std(dim=(2, 3), keepdim=True)


def _as_either(found: Tensor, x: Tensor, donors: Tensor) -> Tensor:
    """With no value that neither picture has: what lies beyond is cut off, channel by channel."""
    low = torch.minimum(x.amin(dim=(2, 3), keepdim=True), donors.amin(dim=(2, 3), keepdim=True))
    high = torch.maximum(x.amax(dim=(2, 3), keepdim=True), donors.amax(dim=(2, 3), keepdim=True))
    return torch.minimum(torch.maximum(found, low), high)
