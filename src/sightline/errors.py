"""Everything that can go wrong, in one tree.

SightlineError
|-- ImageError       (ValueError)    a picture that can't be read, or can't be trusted
|-- ModelError       (ValueError)    a model that can't be found, loaded or run
|   `-- WeightsError                 a weights file that is broken, hostile or made for another model
|-- LayerError       (LookupError)   a layer that doesn't exist, wasn't reached, or gives no grid
|-- MethodError      (LookupError)   a method that doesn't exist, or an option it doesn't have
|-- MetricError      (ValueError)    a metric that doesn't exist, or that can't be asked here
|   `-- UndefinedError               a figure that has no value by its definition, such as a share of an empty map
|-- TargetError      (ValueError)    a class or score that can't be asked for
|-- NonFiniteError   (ArithmeticError) NaN or infinity, with the stage and layer where it first appears
|-- TrainingError    (ValueError)    data that can't be trained on, or a training that went wrong
|-- OutputError      (OSError)       a result that can't be written where it was asked for
`-- MissingExtraError (ImportError)  an optional package that isn't installed

Every message says what was wrong with its value, what was expected, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class SightlineError(Exception):
    """The parent of every error that Sightline raises on purpose."""


class ImageError(SightlineError, ValueError):
    """A picture can't be read, or is refused; the message names the reason."""


class ModelError(SightlineError, ValueError):
    """A model can't be found, loaded, or run; the message says what would work."""


class WeightsError(ModelError):
    """A weights file is broken, hostile, or made for another model."""


class LayerError(SightlineError, LookupError):
    """A layer doesn't exist, wasn't reached, ran twice, or gives no grid."""


class MethodError(SightlineError, LookupError):
    """A method doesn't exist, or doesn't have this option."""


class MetricError(SightlineError, ValueError):
    """A metric doesn't exist, lacks what it needs, or was given what doesn't fit together."""


class UndefinedError(MetricError):
    """By its definition a metric has no value here; where many are measured, such cases are counted."""


class TargetError(SightlineError, ValueError):
    """A class or score can't be asked for; the message lists the nearest."""


class NonFiniteError(SightlineError, ArithmeticError):
    """NaN or infinity appeared; says at which stage, in which layer and for which images.

    Attributes:
        images: indices of the images of the batch that are affected.
        maps: the raw maps (B, h, w) with NaN for the affected images, or None where no map could be made.
    """

    def __init__(self, message: str, images: tuple[int, ...] = (), maps: Any = None) -> None:
        super().__init__(message)
        self.images = images
        self.maps = maps


class TrainingError(SightlineError, ValueError):
    """Data can't be trained on, or a training went wrong; the message says what to change."""


class OutputError(SightlineError, OSError):
    """A result can't be written where it was asked for."""


class MissingExtraError(SightlineError, ImportError):
    """An optional package isn't installed; the message holds the command that installs it."""


def did_you_mean(word: str, choices: Iterable[str], count: int = 3) -> str:
    """The nearest names as a sentence with a leading space, or nothing when none is near."""
    known = list(choices)
    lowered = {name.lower(): name for name in known}
    near = [lowered[hit] for hit in difflib.get_close_matches(word.lower(), lowered, n=count, cutoff=0.6)]
    near += [name for name in known if word and word.lower() in name.lower() and name not in near]
    near = near[:count]
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
