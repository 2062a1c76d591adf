"""What can be done to a picture to find out what a model relies on: pure arithmetic on inputs (N, C, H, W).

Each gives new tensors and leaves those it is given as they are. Boxes are (left, top, right, bottom) in pixels of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int, int]
_FINE = 1 / 56  # of the shorter side: the blur that parts fine texture from the rest; 4 pixels of 224
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
    low = torch.minimum(x.amin(dim=(2, 3), keepdim=True), donors.amin(dim=(2, 3), keepdim=True))
    high = torch.maximum(x.amax(dim=(2, 3), keepdim=True), donors.amax(dim=(2, 3), keepdim=True))
    moved = (x - middle) / spread.clamp_min(1e-6) * width + wanted
    return torch.minimum(torch.maximum(moved, low), high)


def texture(x: Tensor, donors: Tensor) -> Tensor:
    """Each picture's coarse structure with its donor's fine one."""
    return blur(x) + donors - blur(donors)


def sharpness(x: Tensor, donors: Tensor) -> Tensor:
    """Each picture with its own fine structure, as strong as its donor's."""
    fine, other = x - blur(x), donors - blur(donors)
    own, wanted = (one.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() for one in (fine, other))
    return x + fine * (wanted / own.clamp_min(1e-6) - 1)


def blur(x: Tensor) -> Tensor:
    """Without its fine structure: a Gaussian of a 56th of the shorter side."""
    sigma = max(0.7, min(x.shape[2:]) * _FINE)
    reach = max(1, round(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None], groups=x.shape[1])
    return F.conv2d(rows, kernel[..., None], groups=x.shape[1])


def grey(x: Tensor) -> Tensor:
    """Without colour: every channel its mean over the channels."""
    return x.mean(dim=1, keepdim=True).expand_as(x).clone()


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
