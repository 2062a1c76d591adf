"""Models of torchvision, `torchvision:NAME`, with its newest official weights or a local file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sightline.errors import ModelError, did_you_mean
from sightline.models.adapter import Adapter
from sightline.models.dense import detector
from sightline.models.given import Finding, Given, Stored
from sightline.models.layers import NOT_ALL
from sightline.models.made import OFFLINE, made
from sightline.models.preprocess import measured
from sightline.models.weights import filled, read_stored

# Frames of a film that torchvision's records say their accuracy was measured with (clip_len).
_FRAMES, _USUAL_FRAMES = {"s3d": 128, "swin3d": 32}, 16


def build(name: str, given: Given) -> Adapter:
    """A classifier of torchvision with its preprocessing and class names, all from its own weights record."""
    from torchvision import models

    if name in dense_names():
        return _dense(name, given)
    if name in film_names():
        return _of_films(name, given)
    if name not in names():
        known = (*names(), *dense_names(), *film_names())
        raise ModelError(
            f"torchvision has no model {name!r}.{did_you_mean(name, known)} List them: sightline models torchvision"
        )
    record = models.get_model_weights(name).DEFAULT
    # The official weights of these two expect their input on another scale, which the network then does itself.
    options = {"init_weights": False, "transform_input": True} if name in ("googlenet", "inception_v3") else {}

    def make(classes: int | None) -> nn.Module:
        size = {} if classes is None else {"num_classes": classes}
        module: nn.Module = models.get_model(name, weights=None, **options, **size)
        return module

    names_of_classes = tuple(record.meta["categories"])
    module, given, classes, origin, found = _filled(name, given, record, make)
    transform = record.transforms()
    side = transform.crop_size[0]
    own = {
        "size": (side, side),
        "resize": transform.resize_size[0],
        "interpolation": transform.interpolation.value,
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
    }
    return made(f"torchvision:{name}", module, given, own, names_of_classes, origin, found, classes)


def _filled(
    name: str, given: Given, record: Any, make: Callable[[int | None], nn.Module]
) -> tuple[nn.Module, Given, int, dict[str, Any], tuple[Finding, ...]]:
    """The network with its weights, how many classes it has, where it comes from, and what was found out."""
    known = len(record.meta["categories"])
    origin: dict[str, Any] = {"source": "torchvision", "architecture": name, "random_weights": given.random_weights}
    found = given.found or (Finding("architecture", f"torchvision:{name}", "its name"),)
    if given.random_weights:
        module = make(given.num_classes)
        _draw_zero_heads(module)
        return module, given, given.num_classes or known, origin, found
    if given.weights is None:
        path = _official(name, record)
        # An official file's name ends in the beginning of its hash; a damaged one in the cache must not pass.
        given = replace(given, weights=read_stored(path, sha256=path.stem.rpartition("-")[2]))
        origin["weights"] = str(record)
    if given.weights is not None and name in dense_names():
        given = replace(given, weights=_without_auxiliary(given.weights))
    module, classes, about = filled(make, known, given)
    return module, given, classes, origin, found + about


def _of_films(name: str, given: Given) -> Adapter:
    """A classifier of films, with the preprocessing of a frame and as many of them as its weights were tested with."""
    from torchvision import models

    if given.preprocess:
        raise ModelError(
            f"the preprocessing of torchvision:{name} can't be changed in parts ({', '.join(given.preprocess)}); build the module and "
            "give it whole: sightline.adapt(module, preprocess=function of one frame, frames=16)"
        )
    record = models.get_model_weights(name).DEFAULT
    transform = record.transforms()

    def make(classes: int | None) -> nn.Module:
        size = {} if classes is None else {"num_classes": classes}
        module: nn.Module = models.get_model(name, weights=None, **size)
        return module

    def of_frame(frame: Image.Image) -> Tensor:
        film = torch.from_numpy(np.array(frame.convert("RGB"))).permute(2, 0, 1)[None]
        found: Tensor = transform(film)[:, 0]
        return found

    module, given, classes, origin, found = _filled(name, given, record, make)
    count = frames_of(name)
    own = {
        "size": tuple(reversed(transform.crop_size)),
        "resize": tuple(reversed(transform.resize_size)),
        "frames": count,
    }
    labels, take = tuple(record.meta["categories"]), measured(of_frame)
    adapter = made(f"torchvision:{name}", module, given, own, labels, origin, found, classes, take=take)
    return replace(adapter, frames=count)


def _dense(name: str, given: Given) -> Adapter:
    """A detector or a segmentation of torchvision, as its weights record tells."""
    from torchvision import models

    record = models.get_model_weights(name).DEFAULT
    transform = record.transforms()
    segmentation = hasattr(transform, "resize_size")

    def make(classes: int | None) -> nn.Module:
        size = {} if classes is None else {"num_classes": classes}
        module: nn.Module = models.get_model(name, weights=None, weights_backbone=None, **size)
        return module

    labels = tuple(record.meta["categories"])
    module, given, classes, origin, found = _filled(name, given, record, make)
    known = detector(module)
    if segmentation:
        mean, std, resize = tuple(transform.mean), tuple(transform.std), transform.resize_size[0]
        own: dict[str, Any] = {"size": (resize, resize), "resize": resize, "fit": "whole", "mean": mean, "std": std}
    elif (
        known is not None and (side := known.fixed) is not None
    ):  # its own squashing, done before, where a view knows of it
        own = {"size": side, "resize": side, "fit": "exact", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    else:
        own = {"size": (800, 800), "resize": 800, "fit": "none", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    adapter = made(f"torchvision:{name}", module, given, own, labels, origin, found, classes)
    if not segmentation:
        return replace(adapter, task="detection")
    backbone: Any = module.backbone
    last = list(backbone.named_children())[-1][0]
    fine = f"; finer grids go past it, {NOT_ALL}" if name.startswith("lraspp") else ""
    reason = f"the last grid of the encoder, behind which pixels are drawn{fine}"
    return replace(adapter, task="segmentation", layer=f"backbone.{last}", layer_reason=reason)


def _without_auxiliary(stored: Stored) -> Stored:
    """Without the second head that helps in training alone."""
    kept = {name: one for name, one in stored.tensors.items() if not name.startswith("aux_classifier.")}
    return replace(stored, tensors=kept)


def _draw_zero_heads(module: nn.Module) -> None:
    """Random also where torchvision starts with 0, as in the heads of its transformers, whose answer would depend on nothing."""
    for one in module.modules():
        if isinstance(one, nn.Linear) and not one.weight.any():
            nn.init.trunc_normal_(one.weight, std=0.02)


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Every classifier of torchvision."""
    from torchvision import models

    return tuple(models.list_models(module=models))


def frames_of(name: str) -> int:
    """How many frames a classifier of films is given."""
    return next((count for kind, count in _FRAMES.items() if name.startswith(kind)), _USUAL_FRAMES)


@lru_cache(maxsize=1)
def film_names() -> tuple[str, ...]:
    """Every classifier of films of torchvision."""
    from torchvision import models

    return tuple(models.list_models(module=models.video))


@lru_cache(maxsize=1)
def dense_names() -> tuple[str, ...]:
    """Every detector and segmentation of torchvision that comes with an image's boxes or pixels."""
    from torchvision import models

    return tuple(models.list_models(module=models.segmentation) + models.list_models(module=models.detection))


def _official(name: str, record: Any) -> Path:
    path: Path = Path(torch.hub.get_dir(), "checkpoints", record.url.rpartition("/")[2])
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(record.url, str(path), path.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the weights of torchvision:{name} can't be had from {record.url.split('/')[2]}. {OFFLINE}"
            ) from error
    return path
