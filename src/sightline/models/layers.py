"""Which layer to look at: found by running the model once, and said why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import LayerError, ModelError
from sightline.models.outputs import only_grid, tensors_of, unwrap, with_grid
from sightline.models.twin import isolated, twin

# Modules that hand on what they were given; naming one of them as "the layer" explains nothing.
_PASSIVE = (nn.Identity, nn.Dropout, nn.Dropout2d)
_TRIES = 8
Logits = Callable[[Any], Any]
NOT_ALL = "not all that reaches the output goes through it"


@dataclass(frozen=True)
class Layer:
    """One layer that gives a grid: its name, type, channels, and grid (h, w) at the input that was run."""

    name: str
    kind: str
    channels: int
    grid: tuple[int, int]
    chosen: bool = False
    reason: str = ""


@dataclass(frozen=True)
class _Event:
    """One module's return: its place in time is its place in the list."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    is_grid: bool
    is_final: bool


def choose(model: nn.Module, x: Tensor, logits: Logits = unwrap) -> tuple[str, str]:
    """The last grid that still has the resolution of the last convolution and carries all that follows, and the reason.

    A pooling after the last convolution is not crossed (in VGG the map stays 14 x 14), what follows it without
    changing the grid (norm, activation, residual sum) is included, and the outermost module that ends there is named.

    Args:
        model: the module.
        x: an input.
        logits: takes out of what the module returns what a target reads.

    Raises:
        LayerError: no convolution gives a grid near the output, as in transformers.
    """
    layer = _chosen(model, _run(model, x, logits), x, logits)
    return layer.name, layer.reason


def candidates(model: nn.Module, x: Tensor, logits: Logits = unwrap) -> list[Layer]:
    """Every layer that gives a grid larger than 1 x 1, in the order of the computation; the default one marked."""
    events = _run(model, x, logits)
    try:
        best: Layer | None = _chosen(model, events, x, logits)
    except LayerError:
        best = None
    # Of a layer that runs several times in one forward no map is made: it would be ambiguous.
    runs = Counter(event.name for event in events)
    found = [
        _layer(event)
        for event in events
        if event.is_grid and not event.is_final and event.name and runs[event.name] == 1
    ]
    return [best if best and layer.name == best.name else layer for layer in found]


def sweep(
    model: nn.Module, x: Tensor, without: Collection[str] = (), most: int = 15, logits: Logits = unwrap
) -> list[str]:
    """The outer layers from the input to the output, thinned out evenly: how a map changes with the layer.

    Args:
        model: the module.
        x: an input.
        without: layers whose output is gone.
        most: how many at most.
        logits: as for `choose`.

    Raises:
        LayerError: no layer gives a grid.
    """
    passive = tuple(kind.__name__ for kind in _PASSIVE)
    found = [
        one
        for one in candidates(model, x, logits)
        if one.name.count(".") < 2 and one.name not in without and one.kind not in passive
    ]
    # A block's last part says the same as the block, which returns right behind it.
    inside = {
        one.name for one, other in pairwise(found) if one.name.startswith(f"{other.name}.") and one.grid == other.grid
    }
    names = [one.name for one in found if one.name not in inside]
    if not names:
        raise LayerError(f"no layer of {type(model).__name__} gives a grid larger than 1 x 1; give a larger input")
    if len(names) <= most:
        return names
    return [names[round(index * (len(names) - 1) / (most - 1))] for index in range(most)]


def stages(model: nn.Module, x: Tensor, without: Collection[str] = (), logits: Logits = unwrap) -> list[str]:
    """Of each resolution the last layer that carries all that reaches the output, the finest first; the stem is left out.

    Raises:
        LayerError: as `choose`.
    """
    found = candidates(model, x, logits)
    last = next((index for index, one in enumerate(found) if one.chosen), None)
    if last is None:
        choose(model, x, logits)  # raises, with the reason
        last = len(found) - 1
    # A branch inside a block that strides late still has the resolution of the block before, but not all of what it says.
    carries_all = _silencer(model, x, logits)
    ends: dict[tuple[int, int], str] = {}
    for one in reversed(found[:last]):
        fine = one.grid != found[last].grid and one.grid[0] * 4 <= x.shape[2]
        if fine and one.grid not in ends and one.name not in without and carries_all(one.name):
            ends[one.grid] = one.name
    return [*reversed(ends.values()), found[last].name]


def grid_of(shape: tuple[int, ...], input_shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(h, w) when a (B, C, h, w) output is a picture-like grid of this input, else None.

    Both axes must shrink alike, which tells channels-first grids from channels-last ones.
    """
    if len(shape) != 4 or shape[0] != input_shape[0]:
        return None
    (h, w), (height, width) = shape[2:], input_shape[2:]
    if h * w <= 1 or h > height * 2 or w > width * 2:
        return None
    # ceil and floor of repeated halving: each axis may be off by one cell and a little
    if abs(h * width / height - w) > 1.5 + 0.15 * w:
        return None
    return h, w


@contextmanager
def _without_graph(x: Tensor) -> Iterator[None]:
    """As `isolated`, and without gradients."""
    with isolated(x), torch.no_grad():
        yield


def _run(model: nn.Module, x: Tensor, logits: Logits) -> list[_Event]:
    events: list[_Event] = []
    names = {id(module): name for name, module in model.named_modules()}

    def record(original: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = only_grid(output)
            if tensor is None and isinstance(output, Tensor):
                tensor = output  # tokens, or a flat vector
            shape = tuple(tensor.shape) if tensor is not None else ()
            is_grid = grid_of(shape, tuple(x.shape)) is not None
            events.append(_Event(names[id(original)], original, shape, is_grid, is_final=False))

        return hook

    stand_in = twin(model, {name: record(module) for name, module in model.named_modules() if name})
    try:
        with _without_graph(x):
            output = logits(stand_in(x.clone()))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} fails on an input of shape {tuple(x.shape)} ({x.dtype}): {error}"
        ) from error
    final = only_grid(output)
    if final is None:
        return events
    return [
        _Event(event.name, event.module, event.shape, event.is_grid, is_final=event.shape == tuple(final.shape))
        for event in events
    ]


def _chosen(model: nn.Module, events: list[_Event], x: Tensor, logits: Logits) -> Layer:
    last = None
    runs = Counter(event.name for event in events)
    for index, event in enumerate(events):
        if isinstance(event.module, nn.Conv2d) and event.is_grid and not event.is_final and runs[event.name] == 1:
            last = index
    if last is None:
        raise LayerError(
            f"{type(model).__name__} has no convolution that gives a grid larger than 1 x 1 at this input size; "
            "name a layer yourself, or give a larger input"
        )
    grid = events[last].shape[2:]
    weighted = [
        index
        for index, event in enumerate(events)
        if len(event.shape) > 2 and any(True for _ in event.module.parameters(recurse=False))
    ]
    tokens = [index for index in weighted if index > last and not events[index].is_grid]
    if len(tokens) > len(weighted) / 2:
        raise LayerError(
            f"the last convolution of {type(model).__name__} ({events[last].name!r}) stands near its input, so most of the model "
            "works on tokens: no layer near the output is a (B, C, h, w) grid, and token grids are not supported yet"
        )
    fit = [
        event
        for event in events
        if event.is_grid and not event.is_final and event.name and runs[event.name] == 1
        if not isinstance(event.module, _PASSIVE)
    ]
    ends = [event for event in fit if event in events[last:] and event.shape[2:] == grid]
    before = [event for event in fit if event not in ends]
    # The nearest layer that carries all that reaches the output; a gate, or one branch of several, does not.
    tried = [*reversed(ends), *reversed(before)][:_TRIES]
    carries_all = _silencer(model, x, logits)
    whole = next((event for event in tried if carries_all(event.name)), None)
    layer = _layer(whole or ends[-1])
    h, w = layer.grid
    reason = f"the last {h}x{w} grid before pooling, {layer.channels} channels ({layer.kind})"
    if whole is None:
        reason += f"; {NOT_ALL}"
    elif whole is not ends[-1]:
        reason = f"the last layer that all that reaches the output goes through: {h}x{w}, {layer.channels} channels ({layer.kind})"
    return Layer(layer.name, layer.kind, layer.channels, layer.grid, chosen=True, reason=reason)


def _silencer(model: nn.Module, x: Tensor, logits: Logits) -> Callable[[str], bool]:
    """For a layer's name: whether the output no longer depends on the picture once its grid is silenced; True where that can't be tried."""

    def silence(_module: nn.Module, args: Any, output: Any) -> Any:
        grid = only_grid(output)
        if grid is None:
            return output
        if any(one is grid for one in args):  # works in place: whoever else holds that tensor must see it silenced, too
            grid.zero_()
            return output
        return with_grid(output, torch.zeros_like(grid))

    def apart(name: str | None) -> float | None:
        """How far the outputs of two pictures lie apart; each is run alone, because some models take no more."""
        stand_in = twin(model, {name: silence} if name else {})
        try:
            with _without_graph(x):
                one, other = (
                    [part.double() for part in tensors_of(logits(stand_in(picture.clone())))] for picture in pictures
                )
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None  # the capture itself will say what is wrong, if anything is
        return max((float((a - b).abs().max()) for a, b in zip(one, other, strict=True) if a.numel()), default=0.0)

    generator = torch.Generator().manual_seed(0)
    size = float(x.abs().mean()) or 1.0
    pictures = []
    for _ in range(2):  # coarse and fine structure, so that a way for either is found
        coarse = F.interpolate(torch.randn(1, *x.shape[1:2], 8, 8, generator=generator), x.shape[2:], mode="bilinear")
        pictures.append(((coarse + torch.randn(1, *x.shape[1:], generator=generator)) * size).to(x))
    whole: list[float | None] = []

    def carries_all(name: str) -> bool:
        left = apart(name)
        if not left:
            return True
        if not whole:
            whole.append(apart(None))
        return whole[0] is None or left <= 1e-3 * whole[0]

    return carries_all


def _layer(event: _Event) -> Layer:
    return Layer(event.name, type(event.module).__name__, event.shape[1], (event.shape[2], event.shape[3]))
