"""Models that are given a picture cut into patches (Qwen2-VL, GLM-4V and their kin): the picture whole, and back.

Their processors write a picture as a table, a row for each patch; the patches that are merged to one place of the language
model follow each other. That is only another order of the same numbers, so that the input can stay a picture (B, C, H, W).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sightline._quiet import quiet
from sightline.errors import ModelError
from sightline.models.called import called

GRID = "image_grid_thw"
TOWER, PLACES = "visual", "places"
SIZES = ("patch_size", "merge_size", "temporal_patch_size")  # what its processor calls them
LARGEST_CUT = 64, 8, 8  # published ones have 14 or 16, 2, and 2
_EVEN = 0.9999  # a patch, or a half of one, in another's place gives 0.996 or less


@dataclass(frozen=True)
class Patches:
    """How a picture is cut up.

    Attributes:
        side: of a patch, in pixels.
        merged: how many patches along each side become one place.
        frames: how often a picture is given, one behind the other.
    """

    side: int
    merged: int
    frames: int

    def check_size(self, height: int, width: int) -> None:
        """Refuses an input that can't be cut into whole pieces."""
        cell = self.side * self.merged
        if height % cell or width % cell:
            raise ModelError(
                f"the input is {width} x {height}, and the model cuts pictures into pieces of {cell} x {cell}; expected multiples of "
                "that, as its preprocessing makes them"
            )

    def cut(self, x: Tensor) -> dict[str, Tensor]:
        """Pictures (B, C, H, W) as the model is given them: one table of all patches, and how many each has."""
        count, channels, height, width = x.shape
        self.check_size(height, width)
        cell = self.side * self.merged
        parts = x.reshape(
            count, channels, height // cell, self.merged, self.side, width // cell, self.merged, self.side
        ).permute(0, 2, 5, 3, 6, 1, 4, 7)
        parts = parts[..., None, :, :].expand(*parts.shape[:6], self.frames, -1, -1)
        grid = torch.tensor([[1, height // self.side, width // self.side]], device=x.device).expand(count, -1)
        return {"pixel_values": parts.reshape(-1, channels * self.frames * self.side**2), GRID: grid}

    def whole(self, values: Tensor, grid: Tensor) -> Tensor:
        """The picture (1, C, H, W) that was cut up; of several frames the first."""
        _, rows, columns = (int(one) for one in grid.flatten())
        tall, wide = rows // self.merged, columns // self.merged
        parts = values.reshape(tall, wide, self.merged, self.merged, -1, self.frames, self.side, self.side)[
            :, :, :, :, :, 0
        ]
        return parts.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, -1, rows * self.side, columns * self.side)


def patches_of(image_processor: Any) -> Patches | None:
    """How an image processor of transformers cuts pictures up; None where it doesn't, or otherwise than is known here."""
    sizes = [getattr(image_processor, name, None) for name in SIZES]
    if not all(type(one) is int and 0 < one <= most for one, most in zip(sizes, LARGEST_CUT, strict=True)):
        return None
    found = Patches(*(int(one) for one in sizes if one is not None))
    side = 4 * found.side * found.merged
    across, down = np.meshgrid(np.linspace(0, 255, 2 * side), np.linspace(0, 255, side))
    slopes = np.stack([across, down, across], axis=2).round().astype(np.uint8)
    try:
        with quiet():
            made = image_processor(Image.fromarray(slopes), return_tensors="pt")
        whole = found.whole(made["pixel_values"], made[GRID])  # of bytes where nothing is scaled
        again = found.cut(whole)
    except Exception:  # whatever it is, it cuts otherwise
        return None
    same = all(one.shape == made[name].shape and bool((one == made[name]).all()) for name, one in again.items())
    across_is, down_is = whole[0, 0].double().mean(dim=0), whole[0, 1].double().mean(dim=1)
    return found if same and _is_sloped(across_is) and _is_sloped(down_is) else None


def check_fits(patches: Patches, module: Any) -> None:
    """Refuses a processor that cuts otherwise than the model reads: rows of as many numbers would be read all the same."""
    vision = getattr(getattr(module, "config", None), "vision_config", None)
    names = ("patch_size", "spatial_merge_size", "temporal_patch_size")
    own = [getattr(vision, name, None) for name in names]
    for name, mine, given in zip(SIZES, own, (patches.side, patches.merged, patches.frames), strict=True):
        if isinstance(mine, int) and mine != given:
            raise ModelError(
                f"the processor has {name} {given}, and {type(module).__name__} reads pictures cut with {mine}; give the processor of "
                "this model"
            )


def _is_sloped(line: Tensor) -> bool:
    """Whether a line of pixels rises evenly: none of them lies elsewhere."""
    even = torch.arange(len(line), dtype=torch.float64)
    return bool(torch.corrcoef(torch.stack([line.double(), even]))[0, 1] > _EVEN)


def with_places(module: Any) -> Any:
    """The model with one more layer, `places`: all that its language model is told of a picture, (B, C, h, w)."""
    inner = getattr(module, "model", None)
    tower = getattr(inner, TOWER, None)
    if not isinstance(inner, nn.Module) or not isinstance(tower, nn.Module):
        raise ModelError(
            f"{type(module).__name__} has no {TOWER!r} in its model, as those have that are given a picture in patches (Qwen2-VL, GLM-4V)"
        )
    seen = called(tower, _seen)
    seen.__dict__["_modules"] = {**seen._modules, PLACES: Places()}
    return _with(module, "model", _with(inner, TOWER, seen))


class Places(nn.Module):
    """Hands on what it is given, a grid (B, C, h, w); a layer by which that can be asked for."""

    stands_for = nn.Upsample  # of layers those that take and give such a grid alone: its shape need not be doubted

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x)


def _with(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """A module that shares all parts of another but one."""
    other = copy(module)
    other.__dict__ = {**vars(module), "_modules": {**module._modules, name: part}}
    return other


def _seen(self: Any, own: Any, values: Any = None, grid_thw: Any = None, **keywords: Any) -> Any:
    """What the tower says, with its places passed through a layer of their own, and all that is told of them elsewhere beside it."""
    found: Any = None if values is None or grid_thw is None else own(values, grid_thw=grid_thw, **keywords)
    if not isinstance(getattr(found, "pooler_output", None), Tensor):
        raise ModelError(
            f"{type(self).__name__} does not tell the language model of a picture as those of Qwen2-VL and GLM-4V do, which is not supported"
        )
    more = list(getattr(found, "deepstack_features", None) or [])
    told = [found.pooler_output, *more]
    rows = torch.cat(told, dim=1)
    _, tall, wide = grid_thw[0].tolist()
    merged = round((len(grid_thw) * tall * wide / len(rows)) ** 0.5)
    places = rows.reshape(len(grid_thw), tall // merged, wide // merged, rows.shape[1]).permute(0, 3, 1, 2)
    rows = self.places(places).permute(0, 2, 3, 1).reshape(rows.shape)
    first, *rest = rows.split([one.shape[1] for one in told], dim=1)
    found.pooler_output = first
    if more:
        found.deepstack_features = rest
    return found
