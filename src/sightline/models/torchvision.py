"""Models of torchvision, `torchvision:NAME`, with its newest official weights or a local file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from sightline.errors import ModelError, did_you_mean
from sightline.models.adapter import Adapter
from sightline.models.preprocess import standard
from sightline.models.weights import file_hash, load_weights, read_weights

RANDOM = "random weights: the model has learnt nothing, so neither its answer nor this map means anything"
OFFLINE = (
    "Without a network: --model bundled works offline; --weights FILE (weights=...) takes a local state dict; "
    "--random-weights (random_weights=True) is for trying things out"
)


def build(name: str, weights: Path | None, random_weights: bool) -> Adapter:
    """A classifier of torchvision with its preprocessing and class names, all from its own weights record."""
    from torchvision import models

    if name not in names():
        raise ModelError(
            f"torchvision has no classifier {name!r}.{did_you_mean(name, names())} List them: sightline models torchvision"
        )
    record = models.get_model_weights(name).DEFAULT
    # The official weights of these two expect their input on another scale, which the network then does itself.
    options = {"init_weights": False, "transform_input": True} if name in ("googlenet", "inception_v3") else {}
    module = models.get_model(name, weights=None, **options)
    origin: dict[str, Any] = {"source": "torchvision", "architecture": name, "random_weights": random_weights}
    if not random_weights:
        path = weights or _official(name, record)
        # An official file's name ends in the beginning of its hash; a damaged one in the cache must not pass.
        expected = None if weights else path.stem.rpartition("-")[2]
        load_weights(module, read_weights(path, sha256=expected), path.name)
        origin |= {"weights": weights.name if weights else str(record), "sha256": file_hash(path)}
    else:
        _draw_zero_heads(module)
    transform = record.transforms()
    side = transform.crop_size[0]
    spec = {
        "size": (side, side),
        "resize": transform.resize_size[0],
        "interpolation": transform.interpolation.value,
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
    }
    return Adapter(
        f"torchvision:{name}",
        module,
        preprocess=standard(**spec),
        labels=tuple(record.meta["categories"]),
        provenance=origin | {"preprocessing": spec},
        notes=(RANDOM,) if random_weights else (),
    )


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


@lru_cache(maxsize=1)
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 ImageNet classes under unique names."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


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
