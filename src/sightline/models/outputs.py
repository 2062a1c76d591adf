"""What a layer or a model returns: the grid in it, the tensors in it, the logits in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def unwrap(output: Any) -> Any:
    """The logits (B, K) in a model's output; the output itself where that isn't plain."""
    if isinstance(output, Tensor):
        return output
    named = [output.get(name) for name in ("logits", "out")] if isinstance(output, Mapping) else []
    for found in (getattr(output, "logits", None), *named):  # "out" of torchvision's segmentation
        if isinstance(found, Tensor):
            return found
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(parts, tuple | list):
        tables = [part for part in parts if isinstance(part, Tensor) and part.dim() == 2 and part.is_floating_point()]
        if len(tables) == 1:
            return tables[0]
    return output


def described(output: Any) -> str:
    """What a model returned, with the shapes of the tensors in it, for a message."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    parts = _parts(output)
    if not parts:
        return type(output).__name__
    shown = ", ".join(
        f"{key!r}: {tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__}" for key, one in parts[:8]
    )
    return f"a {type(output).__name__} of {len(parts)} ({shown}{', ...' if parts[8:] else ''})"


def taking(output: Any) -> str:
    """How a function that takes the logits out of such an output may look."""
    parts = _parts(output)
    tables = [key for key, one in parts if isinstance(one, Tensor) and one.dim() == 2]
    key = (tables or [key for key, _ in parts] or [None])[0]
    return "function" if key is None else f"lambda output: output[{key!r}]"


def _parts(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    return list(enumerate(output)) if isinstance(output, tuple | list) else []


def only_grid(output: Any) -> Tensor | None:
    """The one float tensor in a layer's output that can hold a grid: of four dimensions, else of three (tokens), else of five
    (volumes); or None."""
    if isinstance(output, Tensor):
        return output if output.dim() in (3, 4, 5) and output.is_floating_point() else None
    parts = list(output.values()) if isinstance(output, dict) else output
    if not isinstance(parts, tuple | list):
        return None
    floats = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    maps, tokens, volumes = ([part for part in floats if part.dim() == count] for count in (4, 3, 5))
    if not maps and not tokens:
        return volumes[0] if len(volumes) == 1 else None
    if len(tokens) == 1 and any(one.shape[-1] == one.shape[-2] == tokens[0].shape[1] for one in maps):
        return tokens[0]  # beside it stand its attention probabilities
    return maps[0] if len(maps) == 1 else tokens[0] if len(tokens) == 1 and not maps else None


def with_grid(output: Any, grid: Tensor) -> Any:
    """A layer's output with its one grid exchanged."""
    if isinstance(output, Tensor):
        return grid
    original = only_grid(output)
    if isinstance(output, dict):
        changed = copy.copy(output)
        for key in [key for key, part in output.items() if part is original]:
            changed[key] = grid  # one by one: outputs of transformers are dictionaries without update
        return changed
    parts = [grid if part is original else part for part in output]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor in a model's output."""
    if isinstance(output, Tensor):
        return [output]
    if hasattr(output, "__dict__") and not isinstance(output, dict | tuple | list):
        output = vars(output)
    parts = list(output.values()) if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in tensors_of(part)] if isinstance(parts, tuple | list) else []
