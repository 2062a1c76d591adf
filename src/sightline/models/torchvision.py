"""Models of torchvision, `torchvision:NAME`, with its newest official weights or a local file."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from sightline.errors import ModelError, did_you_mean
from sightline.models.adapter import Adapter
from sightline.models.given import Finding, Given
from sightline.models.made import OFFLINE, made
from sightline.models.weights import filled, read_stored


def build(name: str, given: Given) -> Adapter:
    """A classifier of torchvision with its preprocessing and class names, all from its own weights record."""
    from torchvision import models

    if name not in names():
        raise ModelError(
            f"torchvision has no classifier {name!r}.{did_you_mean(name, names())} List them: sightline models torchvision"
        )
    record = models.get_model_weights(name).DEFAULT
    # The official weights of these two expect their input on another scale, which the network then does itself.
    options = {"init_weights": False, "transform_input": True} if name in ("googlenet", "inception_v3") else {}

    def make(classes: int | None) -> nn.Module:
        size = {} if classes is None else {"num_classes": classes}
        module: nn.Module = models.get_model(name, weights=None, **options, **size)
        return module

    names_of_classes = tuple(record.meta["categories"])
    origin: dict[str, Any] = {"source": "torchvision", "architecture": name, "random_weights": given.random_weights}
    found = given.found or (Finding("architecture", f"torchvision:{name}", "its name"),)
    classes = given.num_classes or len(names_of_classes)
    if given.random_weights:
        module = make(given.num_classes)
        _draw_zero_heads(module)
    else:
        if given.weights is None:
            path = _official(name, record)
            # An official file's name ends in the beginning of its hash; a damaged one in the cache must not pass.
            given = replace(given, weights=read_stored(path, sha256=path.stem.rpartition("-")[2]))
            origin["weights"] = str(record)
        module, classes, about = filled(make, len(names_of_classes), given)
        found += about
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


def _official(name: str, record: Any) -> Path:
    import torch

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
