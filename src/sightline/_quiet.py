"""Warnings of other libraries switched off for a while, safely between threads."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_saved = warnings.catch_warnings()
_NAMES = ("transformers", "lightning.pytorch", "lightning.fabric", "tifffile")
_TALKERS = tuple(logging.getLogger(name) for name in _NAMES)
_levels = [logging.NOTSET for _ in _TALKERS]


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of Pillow, torch and the like are off while anybody reads a file: what they tell is an error here, or harmless.

    `warnings.catch_warnings` alone is not safe between threads: the first one in saves the filters here, the last one
    out puts them back.
    """
    global _inside, _saved, _levels
    with _lock:
        if _inside == 0:
            _saved = warnings.catch_warnings()
            _saved.__enter__()
            warnings.filterwarnings(
                "ignore", module=r"(PIL|torch|timm|transformers|keras|lightning|torchmetrics|tifffile)\.|pickletools"
            )
            _levels = [one.level for one in _TALKERS]
            for one in _TALKERS:  # what tifffile logs as an error is raised as well, or was got over
                one.setLevel(logging.CRITICAL if one.name == "tifffile" else logging.ERROR)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _saved.__exit__(None, None, None)
                for one, level in zip(_TALKERS, _levels, strict=True):
                    one.setLevel(level)
