"""A stand-in for the user's model that shares its weights, so that the model itself is never touched.

Hooks and evaluation mode are set on the stand-in. Nothing has to be undone, whatever happens, and any number of
threads can work on one model, because none of them changes it.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from copy import copy as copy_of
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from sightline.errors import LayerError, ModelError, did_you_mean

# What nn.Module itself keeps; handled by name.
_OWN = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}

_HOOKS = tuple(name for name, value in nn.Module().__dict__.items() if "_hooks" in name and isinstance(value, dict))
_READERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_PLAIN = (str, int, float, complex, type, ModuleType, torch.dtype, torch.device, torch.Size)
# Objects of these packages lead to no module of the user's, or are not ours to copy.
_FOREIGN = (sys.stdlib_module_names | {"torch", "numpy"}) - {"types", "argparse", "dataclasses", "__main__"}

Hook = Callable[[nn.Module, Any, Any], Any]


def twin(model: nn.Module, hooks: Mapping[str, Hook]) -> nn.Module:
    """The model in evaluation mode with forward hooks on the named layers.

    Every module is copied shallowly, so that whatever a forward keeps in `self` stays in the copy. Parameters are the
    model's own; buffers and other plain tensors are copied, because a forward may write into them. The user's hooks are
    kept and come first.
    """
    wanted = {id(_eager(submodule(model, name))): hook for name, hook in hooks.items()}
    made: dict[int, Any] = {}
    copies: list[tuple[nn.Module, nn.Module]] = []

    def visit(module: nn.Module) -> nn.Module:
        module = _eager(module)
        if id(module) in made:
            return cast(nn.Module, made[id(module)])
        copy = made[id(module)] = _shallow(module, made)  # noted first: a module that holds itself must not hang us
        children = {name: child if child is None else visit(child) for name, child in module._modules.items()}
        copy.__dict__["_modules"] = children
        copy.__dict__["training"] = False
        if id(module) in wanted:
            copy.register_forward_hook(wanted[id(module)])
        copies.append((copy, module))
        return copy

    stand_in = visit(model)
    for copy, module in copies:
        _redirect(copy, module, made)
    return stand_in


def constant(stand_in: nn.Module) -> nn.Module:
    """The stand-in, with weights that no gradient is kept for: a gradient of the picture then costs less memory."""
    for module in stand_in.modules():
        own = module._parameters
        own.update({name: None if one is None else one.detach() for name, one in own.items()})  # type: ignore[misc]
    return stand_in


def _shallow(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    copy = object.__new__(type(module))
    inside = copy.__dict__
    inside.update(module.__dict__)
    # Own dictionaries, shared contents: a forward that assigns to itself leaves no trace either.
    inside["_parameters"] = inside["_parameters"].copy()
    for name in _HOOKS:
        if (hooks := inside.get(name)) is not None:
            inside[name] = hooks.copy() if hooks else OrderedDict()
    if type(module) in _READERS:  # which in evaluation mode read their buffers only
        inside["_buffers"] = inside["_buffers"].copy()
    else:
        inside["_buffers"] = {name: _own_tensor(value, made) for name, value in inside["_buffers"].items()}
    inside["_compiled_call_impl"] = None  # module.compile() would call the original, past our hooks
    return copy


def _own_tensor(value: Tensor | None, made: dict[int, Any]) -> Tensor | None:
    if value is None:
        return None
    if id(value) not in made:
        made[id(value)] = value.detach().clone()
    return cast(Tensor, made[id(value)])


def _redirect(copy: nn.Module, module: nn.Module, made: dict[int, Any]) -> None:
    """Lets what the module keeps beside its registered parts lead to the copies.

    That is: modules, plain tensors, bound methods, functions that enclose something, partials, lists, tuples, mappings,
    and objects with attributes, at any depth. Lists, sets and dictionaries are copied in any case, because a forward may
    fill them; what else leads to none of these stays as it is.
    """
    kept: list[Any] = []  # while it runs, no object's identity may be reused

    def led(value: Any) -> Any:
        if value is None or isinstance(value, _PLAIN):
            return value
        if id(value) in made:
            return made[id(value)]
        if isinstance(value, nn.Module):
            return value
        if isinstance(value, Tensor):
            return _own_tensor(value, made) if type(value) is Tensor else value
        if isinstance(value, MethodType):
            owner = led(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        made[id(value)] = value  # something that holds itself
        kept.append(value)
        found = rebuilt(value)
        made[id(value)] = found
        return found

    def rebuilt(value: Any) -> Any:
        if isinstance(value, partial):
            parts = [led(one) for one in (value.func, *value.args)]
            keywords = {key: led(one) for key, one in value.keywords.items()}
            return partial(parts[0], *parts[1:], **keywords)
        if isinstance(value, FunctionType):
            cells = value.__closure__ or ()
            contents = [(cell, led(cell.cell_contents)) for cell in cells if _filled(cell)]
            if all(new is cell.cell_contents for cell, new in contents):
                return value
            exchanged = {id(cell): CellType(new) for cell, new in contents}
            closure = tuple(exchanged.get(id(cell), cell) for cell in cells)
            follower = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
            follower.__kwdefaults__ = value.__kwdefaults__
            return follower
        if type(value) in (tuple, frozenset):
            if all(isinstance(one, _PLAIN) for one in value):
                return value
            parts = [led(one) for one in value]
            return value if all(one is other for one, other in zip(parts, value, strict=True)) else type(value)(parts)
        if type(value) in (list, set):  # a forward may fill it, so that it is copied also when it leads nowhere
            return type(value)(led(one) for one in value)
        if type(value) is deque:
            return deque((led(one) for one in value), value.maxlen)
        if isinstance(value, MutableMapping):
            items = {key: led(one) for key, one in value.items()}
            own = type(value) in (dict, OrderedDict, defaultdict, Counter)
            if not own and all(items[key] is one for key, one in value.items()):
                return value
            other = copy_of(value)
            other.update(items)
            return other
        inside = getattr(value, "__dict__", None)
        if not isinstance(inside, dict) or type(value).__module__.partition(".")[0] in _FOREIGN:
            return value
        attributes = {key: led(one) for key, one in inside.items()}
        if all(attributes[key] is one for key, one in inside.items()):
            return value
        other = copy_of(value)
        other.__dict__.update(attributes)
        return other

    for name in module.__dict__.keys() - _OWN:
        value = module.__dict__[name]
        sizes = type(value) is tuple and all(type(one) is int for one in value)
        if not sizes and not isinstance(value, _PLAIN):
            copy.__dict__[name] = led(value)
    replaced = module.__dict__.get("forward")
    if replaced is not None and copy.__dict__["forward"] is replaced:
        raise ModelError(
            f"the forward of a {type(module).__name__} was replaced by a function that can't be followed; "
            "write it as a class of its own" + (", or call model.eval() first" if module.training else "")
        )


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _eager(module: nn.Module) -> nn.Module:
    """What `torch.compile` wrapped, or the module itself."""
    inside = module.__dict__.get("_modules")
    original = inside.get("_orig_mod") if isinstance(inside, dict) else None
    return _eager(original) if isinstance(original, nn.Module) else module


@contextmanager
def isolated(x: Tensor) -> Iterator[None]:
    """The caller's inference mode and autocast are off inside; random numbers drawn by the model are given back."""
    # With other threads at work, giving back the state could hand out their random numbers twice.
    alone = threading.active_count() == 1
    devices = [x.device] if x.device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.autocast(x.device.type, enabled=False),
        torch.random.fork_rng(devices=devices, enabled=alone),
    ):
        yield


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
                "a TorchScript model can't be looked into; load the original nn.Module with its state dict, "
                "or explain it as a black box: sightline.adapt(lambda x: model(x))"
            )
        if ".quantized" in where and where.startswith("torch."):
            raise ModelError(
                f"the model is quantised ({type(module).__name__}) and has no gradients; use the float model it was made from, "
                "or explain it as a black box: sightline.adapt(lambda x: model(x))"
            )
    return model, tuple(notes)
