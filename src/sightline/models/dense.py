"""Detectors and segmentation: which layers to look at, and how much of the input their grids cover."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sightline.models import layers
from sightline.models.called import called
from sightline.models.outputs import tensors_of

# What the part of a network is called that sees; behind it one is drawn or boxes are.
_ENCODERS = ("backbone", "encoder", "segformer", "body")


@dataclass(frozen=True, eq=False)
class Detector:
    """What is known of one of torchvision's detectors.

    Attributes:
        levels: layers of its pyramid, the finest first; none where one layer carries all.
        reason: why these.
        covers: input (1, C, H, W) -> (width, height) of it that the layers' grids cover: it is padded at the right and below.
        features: the detector, called for its features alone.
    """

    levels: tuple[str, ...]
    reason: str
    covers: Callable[[Tensor], tuple[int, int]]
    features: nn.Module


def detector(module: nn.Module) -> Detector | None:
    """What is known of one of torchvision's detectors; None of any other module."""
    kind = type(getattr(module, "transform", None))
    if (kind.__module__, kind.__name__) != ("torchvision.models.detection.transform", "GeneralizedRCNNTransform"):
        return None
    pyramids = [
        f"{name}.layer_blocks"
        for name, one in module.named_modules()
        if type(one).__name__ == "FeaturePyramidNetwork" and name
    ]
    levels: list[str] = []
    if len(pyramids) == 1:
        blocks: Any = module.get_submodule(pyramids[0])
        levels = [f"{pyramids[0]}.{index}" for index in range(len(blocks))]
        beyond: Any = getattr(module.get_submodule(pyramids[0].rpartition(".")[0]), "extra_blocks", None)
        levels += [
            f"{pyramids[0].rpartition('.')[0]}.extra_blocks.{name}"
            for name, _ in (beyond.named_children() if beyond else ())
        ]

    def covers(x: Tensor) -> tuple[int, int]:
        transform: Any = module.transform
        shortest, longest = float(transform.min_size[-1]), float(transform.max_size)
        height, width = int(x.shape[-2]), int(x.shape[-1])
        if transform.fixed_size is not None:
            return width, height  # squashed, not padded
        scale = min(shortest / min(height, width), longest / max(height, width))
        step = transform.size_divisible
        inside = [math.floor(side * scale) for side in (width, height)]
        padded = [math.ceil(side / step) * step for side in inside]
        across, down = (whole / part for whole, part in zip(padded, inside, strict=True))
        return round(width * across), round(height * down)

    def features(self: Any, _forward: Any, x: Tensor) -> list[Tensor]:
        return tensors_of(self.backbone(self.transform(list(x))[0].tensors))

    return Detector(
        tuple(levels),
        "the levels of its feature pyramid; a box is read from one of them, by its size",
        covers,
        called(module, features),
    )


def choose_layer(
    module: nn.Module,
    x: Tensor,
    logits: Callable[[Any], Any],
    grid: tuple[int, int] | None = None,
    known: Detector | None = None,
) -> tuple[str, str]:
    """The default layer and the reason: as `layers.choose`; of a detector among its features, of a segmentation the encoder's last."""
    if known is not None:
        if known.levels:
            return known.levels[-1], known.reason
        return layers.choose(known.features, x, lambda found: found, grid)
    return layers.choose(module, x, logits, grid)
