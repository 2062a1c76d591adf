"""`holding`: a module of several inputs becomes one of one input; the others stay as they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from sightline.errors import ModelError, did_you_mean
from sightline.models.called import called


def holding(module: nn.Module, explained: str | None, others: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """The module whose forward takes the explained input alone, and a note that says so.

    Args:
        module: the user's; never changed.
        explained: the argument of its forward that gets the picture; the first one when left out.
        others: what its other arguments get, by name. A tensor of one row is repeated for each picture of a batch.

    Raises:
        ModelError: no such argument, or one that the forward needs and nobody gave.
    """
    taken = _arguments(module)
    names = [one.name for one in taken if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if explained is None:
        if not names:
            raise ModelError(
                f"the forward of {type(module).__name__} names none of its arguments; say which is explained"
            )
        explained = names[0]
    if not isinstance(others, Mapping) or not all(isinstance(name, str) for name in others):
        raise ModelError("others are names of the forward's arguments with what each gets, such as {'right': tensor}")
    if explained in others:
        raise ModelError(f"{explained!r} is what is explained, and can't be held as well; leave it out of others")
    if not any(one.kind is one.VAR_KEYWORD for one in taken):
        for name in (explained, *others):
            if name not in names:
                raise ModelError(
                    f"the forward of {type(module).__name__} has no argument {name!r}.{did_you_mean(str(name), names)} "
                    f"It has: {', '.join(names) or 'none by name'}"
                )
    needed = [one.name for one in taken if one.name in names and one.default is one.empty]
    missing = [name for name in needed if name not in (explained, *others)]
    if missing:
        shown = ", ".join(f"{name!r}: ..." for name in missing)
        raise ModelError(
            f"the forward of {type(module).__name__} also needs {' and '.join(missing)}; give others={{{shown}}}"
        )
    by_place = [one.name for one in taken if one.kind is one.POSITIONAL_ONLY and one.name in (explained, *others)]

    def forward(self: Any, own: Callable[..., Any], x: Tensor) -> Any:
        given = {explained: x, **{name: _for_batch(name, one, x) for name, one in self.held_as_given.items()}}
        return own(*[given.pop(name) for name in by_place], **given)

    held = {name: one.detach() if isinstance(one, Tensor) else one for name, one in others.items()}
    note = f"explained: {explained}"
    if others:
        note += f"; {' and '.join(others)} {'is' if len(others) == 1 else 'are'} held as given"
    return called(module, forward, held_as_given=held), note


def _arguments(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError) as error:
        raise ModelError(f"the arguments of the forward of {type(module).__name__} can't be read: {error}") from error


def _for_batch(name: str, one: Any, x: Tensor) -> Any:
    """What is held, with a row for each picture."""
    if not isinstance(one, Tensor) or one.dim() == 0:
        return one
    if len(one) not in (1, len(x)):
        raise ModelError(
            f"others[{name!r}] is a tensor {tuple(one.shape)} for a batch of {len(x)}; expected one row, which is repeated, or {len(x)}"
        )
    return one.to(x.device).expand(len(x), *one.shape[1:])
