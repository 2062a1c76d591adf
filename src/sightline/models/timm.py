"""Models of timm, `timm:NAME` or `timm:NAME.TAG`, with the weights of the Hugging Face hub or a local file."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from sightline.errors import ModelError, did_you_mean
from sightline.models.adapter import Adapter
from sightline.models.given import Finding, Given
from sightline.models.hub import fetched
from sightline.models.made import imagenet_labels, made
from sightline.models.preprocess import Fit
from sightline.models.weights import filled, read_stored


def build(name: str, given: Given) -> Adapter:
    """An architecture of timm; official weights come from its hub repository as safetensors, and only so."""
    config = _config(name)
    if given.weights is None and not given.random_weights:
        repository = config.hf_hub_id
        if not repository:
            import timm

            near = did_you_mean(name, timm.list_pretrained())
            raise ModelError(f"timm:{name} has no published weights.{near} Or give --weights FILE, or --random-weights")
        given = replace(given, weights=read_stored(fetched(repository, "model.safetensors", f"timm:{name}")))
        origin: dict[str, Any] = {"weights": repository}
    else:
        origin = {}
    found = given.found or (Finding("architecture", f"timm:{name}", "its name"),)

    def make(classes: int | None) -> nn.Module:
        return architecture(name, classes)

    if given.random_weights:
        module = make(given.num_classes)
        classes = given.num_classes or config.num_classes
    else:
        module, classes, about = filled(make, config.num_classes, given)
        found += about
    labels = imagenet_labels() if classes == 1000 else None
    origin = {"source": "timm", "architecture": name} | origin
    return made(f"timm:{name}", module, given, preprocessing(module), labels, origin, found, classes)


def architecture(name: str, classes: int | None = None, **arguments: Any) -> nn.Module:
    """The network without weights, with a head of its own size or of so many classes, and its own arguments."""
    import timm

    _config(name)
    size: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    module: nn.Module = timm.create_model(name, pretrained=False, **size, **arguments)
    return module


def _config(name: str) -> Any:
    """What timm publishes of an architecture, or a `ModelError` with the nearest names."""
    import timm

    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise ModelError(
            f"timm has no model {name!r}.{did_you_mean(base, timm.list_models())} List them: sightline models timm"
        )
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:  # timm's word for an unknown tag
        raise ModelError(f"timm has no model {name!r}: {error}. List them: sightline models timm") from error


def preprocessing(module: nn.Module) -> dict[str, Any]:
    """The evaluation transform that timm's own configuration asks for, as arguments of `preprocess.standard`."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise ModelError(f"this model takes {channels} channels; photographs have 3. Bring it through sightline.adapt")
    side = [math.floor(length / config["crop_pct"]) for length in (width, height)]
    fits: dict[str, Fit] = {"center": "shorter", "squash": "exact", "border": "longer"}
    fit = fits[config["crop_mode"]]
    if fit == "shorter" and width != height:
        raise ModelError(
            f"this model takes {width} x {height} pictures, whose cropping is not supported; bring it through sightline.adapt"
        )
    return {
        "size": (width, height),
        "resize": side[0] if fit == "shorter" else (side[0], side[1]),
        "fit": fit,
        "interpolation": config["interpolation"],
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
