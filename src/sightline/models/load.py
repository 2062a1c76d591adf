"""`load_model`: a name or a module becomes an `Adapter`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from sightline.errors import LayerError, ModelError, did_you_mean
from sightline.models import bundled, layers, timm, torchvision
from sightline.models.adapter import Adapter, adapt
from sightline.models.fold import fold

# One entry a source: what stands before the colon of a model's name, and who builds it.
SOURCES: dict[str, Callable[[str, Path | None, bool], Adapter]] = {
    "bundled": bundled.build,
    "torchvision": torchvision.build,
    "timm": timm.build,
}


def load_model(
    model: str | nn.Module | Adapter = "bundled",
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    for_layer: str | Sequence[str] | None = None,
) -> Adapter:
    """Loads a model with its weights, class names and own preprocessing.

    Args:
        model: "bundled" (EfficientNet-Lite0, works offline), "torchvision:resnet50", "timm:convnext_tiny", or a
            module (see `adapt`).
        weights: a local state dict (.safetensors, .pt, .pth) instead of the official weights.
        random_weights: leave the weights random, to try things out; every result says so.
        for_layer: the layer, or layers, that will be asked for. Batch norm is folded into the convolutions for speed (same
            logits to 1e-5 of their spread), unless the output of such a layer would be lost by that.

    Raises:
        ModelError: no such model, or its weights can't be had.
        WeightsError: the file is broken, hostile, or made for another model.
    """
    if isinstance(model, Adapter):
        return model
    if isinstance(model, nn.Module):
        return adapt(model)
    return _ready(build(model, weights=weights, random_weights=random_weights), for_layer)


def build(model: str, *, weights: str | Path | None = None, random_weights: bool = False) -> Adapter:
    """The model of this name as its source gives it: no default layer yet, nothing folded."""
    if not isinstance(model, str):
        raise ModelError(f"{type(model).__name__} is no model; give a name (sightline models) or an nn.Module")
    source, _, name = model.partition(":")
    if source not in SOURCES or (bool(name) == (source == "bundled")):
        near = did_you_mean(model, ["bundled", *(f"{kind}:{name or source}" for kind in SOURCES if kind != "bundled")])
        raise ModelError(
            f"unknown model {model!r}; expected 'bundled', 'torchvision:NAME' or 'timm:NAME'.{near} List them: sightline models"
        )
    if weights is not None and random_weights:
        raise ModelError("weights and random_weights exclude each other; give one")
    return SOURCES[source](name, Path(weights) if weights is not None else None, random_weights)


def sample_input(adapter: Adapter) -> torch.Tensor:
    """A seeded random input (1, 3, H, W) of the size that a loaded model expects."""
    width, height = adapter.provenance["preprocessing"]["size"]
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def _ready(adapter: Adapter, for_layer: str | Sequence[str] | None) -> Adapter:
    """Evaluation mode, default layer found, batch norm folded, weights laid out channels-last."""
    module = adapter.module.eval().requires_grad_(False)
    x = sample_input(adapter)
    try:
        layer, reason = layers.choose(module, x)
    except LayerError as error:
        layer, reason = None, str(error)
    keep = [for_layer] if isinstance(for_layer, str) else for_layer or ()
    folded = fold(module, x, keep=keep)
    layout = torch.channels_last
    try:
        module.to(memory_format=layout)
    except RuntimeError:  # weights that are neither matrices nor 4-D, as of 3-D convolutions
        layout = torch.preserve_format
    return dataclasses.replace(adapter, layer=layer, layer_reason=reason, folded=folded, memory_format=layout)
