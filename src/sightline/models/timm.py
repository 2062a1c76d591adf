"""Models of timm, `timm:NAME` or `timm:NAME.TAG`, with the weights of the Hugging Face hub or a local file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from sightline.errors import ModelError, did_you_mean
from sightline.models.adapter import Adapter
from sightline.models.preprocess import Fit, standard
from sightline.models.torchvision import OFFLINE, RANDOM, imagenet_labels
from sightline.models.weights import file_hash, load_weights, read_weights


def build(name: str, weights: Path | None, random_weights: bool) -> Adapter:
    """An architecture of timm; official weights come from its hub repository as safetensors, and only so."""
    module = architecture(name)
    config: Any = module.pretrained_cfg
    origin: dict[str, Any] = {"source": "timm", "architecture": name}
    if not random_weights:
        path = weights or _official(name, config)
        load_weights(module, read_weights(path), path.name)
        origin |= {"weights": weights.name if weights else config.get("hf_hub_id"), "sha256": file_hash(path)}
    return Adapter(
        f"timm:{name}",
        module,
        labels=imagenet_labels() if config.get("num_classes") == 1000 else None,
        notes=(RANDOM,) if random_weights else (),
        **preprocessing(module, origin | {"random_weights": random_weights}),
    )


def architecture(name: str) -> nn.Module:
    """The network without weights, or a `ModelError` with the nearest names."""
    import timm

    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise ModelError(
            f"timm has no model {name!r}.{did_you_mean(base, timm.list_models())} List them: sightline models timm"
        )
    try:
        module: nn.Module = timm.create_model(name, pretrained=False)
    except RuntimeError as error:  # timm's word for an unknown tag
        raise ModelError(f"timm has no model {name!r}: {error}. List them: sightline models timm") from error
    return module


def preprocessing(module: nn.Module, origin: dict[str, Any]) -> dict[str, Any]:
    """The evaluation transform that timm's own configuration asks for, as fields of an `Adapter`."""
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
    spec = {
        "size": (width, height),
        "resize": side[0] if fit == "shorter" else (side[0], side[1]),
        "fit": fit,
        "interpolation": config["interpolation"],
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
    take = standard(**spec, fill=config["mean"])
    return {"preprocess": take, "provenance": origin | {"preprocessing": spec}}


def _official(name: str, config: Any) -> Path:
    import timm

    repository = config.get("hf_hub_id")
    if not repository:
        near = did_you_mean(name, timm.list_pretrained())
        raise ModelError(f"timm:{name} has no published weights.{near} Or give --weights FILE, or --random-weights")
    from huggingface_hub import constants, get_session, hf_hub_download

    try:
        return Path(hf_hub_download(repository, "model.safetensors", local_files_only=True))
    except Exception:
        pass  # not fetched before
    try:
        get_session().head(
            constants.ENDPOINT, timeout=10
        )  # one try: the download itself would repeat it for half a minute
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # offline shows as one of a dozen types, depending on where the network ends
        raise ModelError(f"the weights of timm:{name} can't be had from the hub ({repository}). {OFFLINE}") from error
