"""Training a classifier on folders of pictures, and watching where it looks while it learns."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Names are found where they are used first, so that `import sightline.train` loads neither torch nor Lightning nor Keras.
_HOME = {
    "EVEN_BORDER": "film",
    "Frame": "film",
    "HeatmapCallback": "callback",
    "KerasHeatmapCallback": "keras_callback",
    "Logger": "loggers",
    "Shot": "film",
    "Trained": "training",
    "border_share": "film",
    "fit": "training",
    "frame": "film",
    "moved": "film",
    "save_maps": "film",
    "shots": "film",
    "strip": "film",
    "to_mlflow": "loggers",
    "to_tensorboard": "loggers",
    "to_wandb": "loggers",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sightline.train' has no attribute {name!r}")
    value = getattr(import_module(f"sightline.train.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from sightline.train.callback import HeatmapCallback as HeatmapCallback
    from sightline.train.film import EVEN_BORDER as EVEN_BORDER
    from sightline.train.film import Frame as Frame
    from sightline.train.film import Shot as Shot
    from sightline.train.film import border_share as border_share
    from sightline.train.film import frame as frame
    from sightline.train.film import moved as moved
    from sightline.train.film import save_maps as save_maps
    from sightline.train.film import shots as shots
    from sightline.train.film import strip as strip
    from sightline.train.keras_callback import KerasHeatmapCallback as KerasHeatmapCallback
    from sightline.train.loggers import Logger as Logger
    from sightline.train.loggers import to_mlflow as to_mlflow
    from sightline.train.loggers import to_tensorboard as to_tensorboard
    from sightline.train.loggers import to_wandb as to_wandb
    from sightline.train.training import Trained as Trained
    from sightline.train.training import fit as fit
