"""`called`: a user's module, called in another way, under the same names."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

from torch import nn


def called(module: nn.Module, forward: Callable[..., Any], **kept: Any) -> nn.Module:
    """A module that shares all parts of another under their names, and does something else when it is called.

    Args:
        module: the user's; never changed.
        forward: of (the new module, what its own forward was, x).
        kept: attributes that `forward` finds in the new module, such as tensors that stay as they are.
    """
    kind: Any = type(module)
    other = copy(module)
    inside = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
    other.__dict__ = inside | kept
    own = other.__dict__.pop("forward", None)

    def run(self: nn.Module, *args: Any, **keywords: Any) -> Any:
        return forward(self, partial(kind.forward, self) if own is None else own, *args, **keywords)

    parts = {"forward": run, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    other.__class__ = type(kind.__name__, (kind,), parts)
    return other
