"""`planned`: a network without memory, to see how large it would be before it is built from what a file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sightline.errors import ModelError

_MAX_NUMBERS = 5_000_000_000
_MAX_CALLS = 100_000  # the largest of timm make 33,000
_SLACK = 100_000_000


class _Counting(TorchFunctionMode):
    """Stops a network that makes too many tensors, or one too large."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        made = func(*args, **(kwargs or {}))
        if self.calls > _MAX_CALLS or (isinstance(made, Tensor) and made.numel() > _MAX_NUMBERS):
            raise ModelError("it describes a network too large to build")
        return made


def planned(make: Callable[[], nn.Module], where: str, stored: Mapping[str, Tensor] | None) -> nn.Module:
    """The network that a configuration describes, with names and shapes but no memory.

    Args:
        make: builds it.
        where: the configuration, for the message.
        stored: the weights that will be put in, or None; many times larger than these it can't be.

    Raises:
        ModelError: the configuration can't be built, or is too large.
    """
    try:
        with torch.device("meta"), _Counting():
            module = make()
    except Exception as error:  # a hostile configuration makes the library raise whatever it likes
        raise ModelError(f"no network can be built from {where}: {str(error)[:300]}") from error
    total = sum(one.numel() for one in (*module.parameters(), *module.buffers()))
    most = _MAX_NUMBERS if stored is None else _SLACK + 4 * sum(one.numel() for one in stored.values())
    if total > most:
        beside = "" if stored is None else f", and its weights hold {sum(one.numel() for one in stored.values()):,}"
        raise ModelError(f"{where} describes a network of {total:,} numbers{beside}; this can't be its configuration")
    return module
