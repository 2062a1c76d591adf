"""A stand-in for the user's model that shares its weights, so that the model itself is never touched.

Hooks and evaluation mode are set on the stand-in. Nothing has to be undone, whatever happens, and any number of
threads can work on one model, because none of them changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from sightline.errors import LayerError, ModelError, did_you_mean

Hook = Callable[[nn.Module, Any, Any], Any]


def twin(model: nn.Module, hooks: Mapping[str, Hook]) -> nn.Module:
    """The model in evaluation mode with forward hooks on the named layers.

    Only what must differ is copied, shallowly: the modules on the way to a hooked layer, and those in training mode.
    Parameters, buffers and all other modules are the model's own. The user's hooks are kept and come first.
    """
    wanted = {id(submodule(model, name)): hook for name, hook in hooks.items()}
    made: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        made[id(module)] = module  # a module that holds itself must not hang us
        children = {name: child if child is None else visit(child) for name, child in module._modules.items()}
        same = all(children[name] is child for name, child in module._modules.items())
        if same and not module.training and id(module) not in wanted:
            return module
        copy = _shallow(module)
        copy._modules = children
        copy.training = False
        if id(module) in wanted:
            copy.register_forward_hook(wanted[id(module)])
        made[id(module)] = copy
        return copy

    return visit(model)


def _shallow(module: nn.Module) -> nn.Module:
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        # Own dictionaries, shared contents: a forward that assigns to itself leaves no trace either.
        if (name in ("_parameters", "_buffers") or "_hooks" in name) and isinstance(value, dict):
            copy.__dict__[name] = value.copy()
    copy.__dict__["_compiled_call_impl"] = None  # module.compile() would call the original, past our hooks
    return copy


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The layer of this name, or a `LayerError` with the nearest names."""
    try:
        if isinstance(name, str) and name:
            return model.get_submodule(name)
    except AttributeError:
        pass
    near = did_you_mean(str(name), [known for known, _ in model.named_modules() if known])
    raise LayerError(f"{type(model).__name__} has no layer {name!r}.{near} List them: sightline layers MODEL")


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The eager module behind `torch.compile` and `DataParallel`, and a note for each wrapper taken off.

    Raises:
        ModelError: a kind of module in which nothing can be captured honestly; the message names it.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"{type(model).__name__} is no torch.nn.Module; give a module, or a name: sightline models")
    notes: list[str] = []
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            notes.append(f"computed on the module inside {type(model).__name__}")
            model = cast(nn.Module, model.module)
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            notes.append("computed on the eager module inside torch.compile")
            model = cast(nn.Module, model._orig_mod)
        else:
            break
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        notes.append("computed on the eager module inside torch.compile")
    for module in model.modules():
        where = type(module).__module__
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                "a TorchScript model can't be looked into; load the original nn.Module with its state dict"
            )
        if ".quantized" in where and where.startswith("torch."):
            raise ModelError(
                f"the model is quantised ({type(module).__name__}) and has no gradients; use the float model it was made from"
            )
    return model, tuple(notes)
