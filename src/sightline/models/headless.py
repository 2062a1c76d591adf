"""A classifier without its last layer of classes: what it gives then is an embedding."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import ModelError
from sightline.models.twin import isolated, twin


def without_head(module: nn.Module, x: Tensor, logits: Any) -> nn.Module:
    """A module that shares all parts with another and gives what its last linear layer is given.

    Args:
        module: a classifier; never changed.
        x: an input.
        logits: takes the logits out of what it returns.

    Raises:
        ModelError: its output is not that of a linear layer.
    """
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            found[name] = output

        return hook

    heads = {name: note(name) for name, one in module.named_modules() if name and isinstance(one, nn.Linear)}
    with isolated(x), torch.no_grad():
        output = logits(twin(module, heads)(x.clone()))
    last = [name for name, one in found.items() if isinstance(output, Tensor) and one.data_ptr() == output.data_ptr()]
    if not last:
        raise ModelError(
            f"{type(module).__name__} doesn't end in a linear layer of classes, so that its embedding isn't known; "
            "say how to get one: sightline.adapt(module, logits=function, task='embedding')"
        )
    return _without(module, last[-1].split("."))


def _without(module: nn.Module, path: list[str]) -> nn.Module:
    other = copy(module)
    parts = dict(module._modules)
    inner = parts[path[0]]
    parts[path[0]] = nn.Identity() if len(path) == 1 or inner is None else _without(inner, path[1:])
    other.__dict__["_modules"] = parts
    return other
