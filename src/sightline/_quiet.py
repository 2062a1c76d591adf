"""Warnings of other libraries switched off for a while, safely between threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_saved = warnings.catch_warnings()


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's, torch's and Keras' warnings are off while anybody reads a file: what they tell is an error here, or harmless.

    `warnings.catch_warnings` alone is not safe between threads: the first one in saves the filters here, the last one
    out puts them back.
    """
    global _inside, _saved
    with _lock:
        if _inside == 0:
            _saved = warnings.catch_warnings()
            _saved.__enter__()
            warnings.filterwarnings("ignore", module=r"(PIL|torch|keras)\.|pickletools")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _saved.__exit__(None, None, None)
