"""A stand-in for the user's model that shares its weights, so that the model itself is never touched.

Hooks and evaluation mode are set on the stand-in. Nothing has to be undone, whatever happens, and any number of
threads can work on one model, because none of them changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import nn

from sightline.errors import LayerError, ModelError, did_you_mean

# What nn.Module itself keeps; handled by name.
_OWN = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}

Hook = Callable[[nn.Module, Any, Any], Any]


def twin(model: nn.Module, hooks: Mapping[str, Hook]) -> nn.Module:
    """The model in evaluation mode with forward hooks on the named layers.

    Only what must differ is copied, shallowly: the modules on the way to a hooked layer, and those in training mode.
    Parameters, buffers and all other modules are the model's own. The user's hooks are kept and come first.
    """
    wanted = {id(_eager(submodule(model, name))): hook for name, hook in hooks.items()}
    made: dict[int, nn.Module] = {}
    copies: list[tuple[nn.Module, nn.Module]] = []

    def visit(module: nn.Module) -> nn.Module:
        module = _eager(module)
        if id(module) in made:
            return made[id(module)]
        made[id(module)] = module  # a module that holds itself must not hang us
        children = {name: child if child is None else visit(child) for name, child in module._modules.items()}
        same = all(children[name] is child for name, child in module._modules.items())
        if same and not module.training and id(module) not in wanted:
            return module
        copy = made[id(module)] = _shallow(module)
        copy._modules = children
        copy.training = False
        if id(module) in wanted:
            copy.register_forward_hook(wanted[id(module)])
        copies.append((copy, module))
        return copy

    stand_in = visit(model)
    for copy, module in copies:
        _redirect(copy, module, made)
    return stand_in


def _shallow(module: nn.Module) -> nn.Module:
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        # Own dictionaries, shared contents: a forward that assigns to itself leaves no trace either.
        if (name in ("_parameters", "_buffers") or "_hooks" in name) and isinstance(value, dict):
            copy.__dict__[name] = value.copy()
    copy.__dict__["_compiled_call_impl"] = None  # module.compile() would call the original, past our hooks
    return copy


def _redirect(copy: nn.Module, module: nn.Module, made: Mapping[int, nn.Module]) -> None:
    """Lets what the module keeps beside its registered parts (bound methods, lists of modules) lead to the copies."""

    def led(value: Any, depth: int = 0) -> Any:
        if isinstance(value, nn.Module):
            return made.get(id(value), value)
        if isinstance(value, MethodType):
            owner = led(value.__self__, depth)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if isinstance(value, partial):
            return partial(
                led(value.func), *map(led, value.args), **{key: led(one) for key, one in value.keywords.items()}
            )
        if depth < 3 and type(value) in (list, tuple):
            parts = [led(one, depth + 1) for one in value]
            return value if all(one is other for one, other in zip(parts, value, strict=True)) else type(value)(parts)
        if depth < 3 and type(value) is dict:
            items = {key: led(one, depth + 1) for key, one in value.items()}
            return value if all(items[key] is value[key] for key in items) else items
        return value

    for name, value in module.__dict__.items():
        if name not in _OWN:
            copy.__dict__[name] = led(value)
    replaced = module.__dict__.get("forward")
    if replaced is not None and not isinstance(replaced, MethodType | partial):
        raise ModelError(
            f"the forward of a {type(module).__name__} was replaced by a function that can't be followed; "
            "write it as a class of its own" + (", or call model.eval() first" if module.training else "")
        )


def _eager(module: nn.Module) -> nn.Module:
    """What `torch.compile` wrapped, or the module itself."""
    inside = module.__dict__.get("_modules")
    original = inside.get("_orig_mod") if isinstance(inside, dict) else None
    return _eager(original) if isinstance(original, nn.Module) else module


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
        else:
            break
    if any(_eager(one) is not one or getattr(one, "_compiled_call_impl", None) is not None for one in model.modules()):
        notes.append("computed on the eager module inside torch.compile")
    model = _eager(model)
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
