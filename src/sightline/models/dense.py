"""Detectors and segmentation: which layers to look at, and how much of the input their grids cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import LayerError, ModelError
from sightline.models import layers
from sightline.models.called import called
from sightline.models.outputs import tensors_of
from sightline.models.twin import isolated, twin

# In torchvision's detectors without a pyramid, the layer of which all features are computed.
_STEMS = {"SSDFeatureExtractorVGG": "backbone.features", "SSDLiteFeatureExtractorMobileNet": "backbone.features.0"}
# What the part of a network is called that sees; behind it pixels or boxes are drawn.
_ENCODERS = ("backbone", "encoder", "segformer", "body")


@dataclass(frozen=True, eq=False)
class Detector:
    """What is known of one of torchvision's detectors.

    Attributes:
        levels: layers of its pyramid, the finest first; none where one layer carries all.
        reason: why these.
        covers: input (1, C, H, W) -> (width, height) of it that the layers' grids cover: it is padded at the right and below.
        features: the detector, called for its features alone.
        fixed: (width, height) to which it squashes every picture, if it does.
    """

    levels: tuple[str, ...]
    reason: str
    covers: Callable[[Tensor], tuple[int, int]]
    features: nn.Module
    fixed: tuple[int, int] | None


def detector(module: nn.Module) -> Detector | None:
    """What is known of one of torchvision's detectors; None of any other module."""
    kind = type(getattr(module, "transform", None))
    if (kind.__module__, kind.__name__) != ("torchvision.models.detection.transform", "GeneralizedRCNNTransform"):
        return None
    transform: Any = module.transform
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
        return _pooled(self.backbone(self.transform(list(x))[0].tensors))

    return Detector(
        tuple(levels),
        "the levels of its feature pyramid; a box is read from one of them, by its size",
        covers,
        called(module, features),
        None if transform.fixed_size is None else (int(transform.fixed_size[0]), int(transform.fixed_size[1])),
    )


def choose_layer(
    module: nn.Module,
    x: Tensor,
    logits: Callable[[Any], Any],
    grid: tuple[int, int] | None = None,
    known: Detector | None = None,
) -> tuple[str, str]:
    """The default layer and the reason: as `layers.choose`; of a detector among its features, of a segmentation in its encoder."""
    if known is not None:
        if known.levels:
            return known.levels[-1], known.reason
        kept = _STEMS.get(type(module.get_submodule("backbone")).__name__)
        if kept is not None:
            return kept, "all features in which boxes are looked for are computed from it"
        return layers.choose(known.features, x, lambda found: found, grid)
    encoder = _encoder(module)
    output = _output(module, x, logits) if encoder else None
    if encoder and _is_dense(output):

        def features(self: nn.Module, _forward: Any, given: Tensor) -> list[Tensor]:
            part = self.get_submodule(encoder)
            try:
                return _pooled(part(given))
            except TypeError:  # DETR's takes beside the picture which of its pixels count
                return _pooled(part(given, torch.ones(given.shape[0], *given.shape[2:], dtype=torch.bool)))

        try:
            name, reason = layers.choose(called(module, features), x, lambda found: found, grid)
        except (ModelError, LayerError):
            pass  # an encoder that takes something else than the picture
        else:
            return name, f"in the encoder {encoder!r}, {reason}"
        if isinstance(output, list) and "probabilities" in output[0]:  # as many queries for every picture
            return layers.choose(module, x, _probabilities, grid)
    return layers.choose(module, x, logits, grid)


def _probabilities(found: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([one["probabilities"] for one in found]).flatten(1)


def _pooled(features: Any) -> list[Tensor]:
    """Tables (B, C), so that a layer which is itself what is returned counts as on the way there."""
    kept = [one for one in tensors_of(features) if one.dim() in (3, 4) and one.is_floating_point()]
    return [one.mean(dim=(2, 3) if one.dim() == 4 else 1) for one in kept]


def memory_format(module: nn.Module) -> torch.memory_format:
    """How the input is laid out: torchvision's segmentations spend most of a map in wide convolutions, which a processor does faster channels-last."""
    known = type(module).__module__.startswith("torchvision.models.segmentation.")
    here = known and all(one.device.type == "cpu" for one in module.parameters())
    return torch.channels_last if here else torch.preserve_format


def _encoder(module: nn.Module) -> str | None:
    """The outermost part that is called as encoders are."""
    found = [name for name, _ in module.named_modules() if name.rpartition(".")[2] in _ENCODERS]
    return min(found, key=lambda name: name.count("."), default=None)


def _output(module: nn.Module, x: Tensor, logits: Callable[[Any], Any]) -> Any:
    """What the model returns; None where it fails, which whoever runs it next says."""
    try:
        with isolated(x), torch.no_grad():
            return logits(twin(module, {})(x.clone()))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _is_dense(output: Any) -> bool:
    """Whether an output gives each place classes, or boxes, rather than the picture a class."""
    if isinstance(output, list | tuple):
        return bool(output) and all(isinstance(one, Mapping) and "boxes" in one for one in output)
    return isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] * output.shape[-2] > 1
