"""Batch norm folded into the convolution before it: the same function, computed faster."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sightline.models.twin import twin

# The folded model must give the same logits to this share of their spread, or it isn't used.
_TOLERANCE = 1e-4


class FoldedNorm(nn.Identity):
    """Stands where a batch norm stood; its output is what the batch norm's was."""


def fold(model: nn.Module, x: Tensor, keep: Collection[str] = ()) -> frozenset[str]:
    """Folds every batch norm that alone reads one convolution, in place; only for models that we built ourselves.

    Args:
        model: in evaluation mode.
        x: an input (B, C, H, W) to find the pairs with and to check the result on.
        keep: layers that will be asked for; where folding would lose the output of one, nothing is folded.

    Returns:
        Names of the layers whose own output no longer exists; empty when nothing was folded.
    """
    if not any(isinstance(one, nn.BatchNorm2d) for one in model.modules()):
        return frozenset()  # and a language model isn't run three times
    with torch.no_grad():
        before = model(x)
        pairs, lost = _pairs(model, x)
        if lost & set(keep):
            return frozenset()
        replaced = []
        for conv, norm in pairs:
            conv_module = cast(nn.Conv2d, model.get_submodule(conv))
            norm_module = cast(nn.BatchNorm2d, model.get_submodule(norm))
            replaced += [_replace(model, conv, fuse_conv_bn_eval(conv_module, norm_module))]
            replaced += [_replace(model, norm, _without_norm(norm_module))]
        after = model(x)
    if not isinstance(before, Tensor) or (after - before).abs().max() > _TOLERANCE * _spread(before):
        for name, original in reversed(replaced):
            _replace(model, name, original)
        return frozenset()
    return lost


def _spread(logits: Tensor) -> Tensor:
    return (logits.std() if logits.numel() > 1 else logits.abs().max()).clamp(min=1e-6)


def _pairs(model: nn.Module, x: Tensor) -> tuple[list[tuple[str, str]], frozenset[str]]:
    """(convolution, batch norm) pairs, and every layer that returns such a convolution's own output."""
    made: dict[int, str] = {}
    returned_by: dict[str, list[str]] = {}
    readers: dict[str, list[str]] = {}
    calls: dict[str, int] = {}
    alive: list[Any] = []  # while it runs, no tensor's identity may be reused

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            alive.extend((args, output))
            if not list(module.children()) or isinstance(module, nn.BatchNorm2d):
                for tensor in args:
                    if id(tensor) in made:
                        readers.setdefault(made[id(tensor)], []).append(name)
            if isinstance(module, nn.Conv2d):
                made[id(output)] = name
            if id(output) in made:
                returned_by.setdefault(made[id(output)], []).append(name)

        return hook

    twin(model, {name: record(name) for name, _ in model.named_modules() if name})(x)
    modules = dict(model.named_modules())
    pairs = [
        (conv, norms[0])
        for conv, norms in readers.items()
        if len(norms) == 1
        and calls[conv] == calls[norms[0]] == 1
        and isinstance(norm := modules[norms[0]], nn.BatchNorm2d)
        and norm.track_running_stats
    ]
    return pairs, frozenset(name for conv, _ in pairs for name in returned_by[conv])


def _without_norm(norm: nn.Module) -> nn.Module:
    """What is left of a norm layer: nothing, or the activation that timm keeps in it."""
    rest = OrderedDict(norm.named_children())
    return nn.Sequential(rest).eval() if rest else FoldedNorm()


def _replace(model: nn.Module, name: str, module: nn.Module) -> tuple[str, nn.Module]:
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    original = owner.get_submodule(child)
    setattr(owner, child, module)
    return name, original
