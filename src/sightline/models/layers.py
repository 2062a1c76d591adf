"""Which layer to look at: found by running the model once, and said why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import LayerError, ModelError
from sightline.models.grids import Layout, measure, possible, sensitivity
from sightline.models.outputs import only_grid, tensors_of, unwrap, with_grid
from sightline.models.twin import isolated, submodule, twin

# Modules that hand on what they were given; naming one of them as "the layer" explains nothing.
_PASSIVE = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
# Modules that work on (B, C, h, w) alone.
_MAPS = (
    nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle,
)  # fmt: skip
_TRIES = 8
_OTHER = 1e30  # how far outputs lie apart of which one has more values than the other
Logits = Callable[[Any], Any]
NOT_ALL = "not all that reaches the output goes through it"
# What running has shown about the layers of a model, by (layer, size of the input, size that the user named). That a layer
# has no grid is not kept: other weights may show one.
_Known = dict[tuple[str, tuple[int, ...], tuple[int, int] | None], Layout]
_LAYOUTS: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Layer:
    """One layer that gives a grid: its name, type, channels, and grid (h, w) at the input that was run.

    Attributes:
        depth: how many slices the grid has where the layer gives a volume; they lie below each other.
        alive: whether the output depends on its places; False for patch tokens of which nothing is read any more.
    """

    name: str
    kind: str
    channels: int
    grid: tuple[int, int]
    chosen: bool = False
    reason: str = ""
    alive: bool = True
    depth: int = 0

    @property
    def shown(self) -> str:
        """The grid in words: 7x7, or 2x7x7."""
        return Layout("volume" if self.depth else "maps", self.grid, depth=self.depth).shown


@dataclass(frozen=True)
class _Event:
    """One module's return: its place in time is its place in the list. `layout` is what is known so far."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    readings: tuple[Layout, ...]
    layout: Layout | None
    certain: bool
    is_final: bool


def choose(
    model: nn.Module, x: Tensor, logits: Logits = unwrap, size: tuple[int, int] | None = None
) -> tuple[str, str]:
    """The last grid that carries all that reaches the output, and the reason; see below for models of tokens.

    In a convolutional network it has the resolution of the last convolution. A pooling after that is not crossed (in VGG
    the map stays 14 x 14), what follows without changing the grid (norm, activation, residual sum) is included, and the
    outermost module that ends there is named. A transformer that pools its patch tokens is treated alike. Where only a
    class token is read, patch tokens after the last attention get no gradient: then the input norm of the last block is taken.

    Args:
        model: the module.
        x: an input.
        logits: takes out of what the module returns what a target reads.
        size: (h, w) of the grid of tokens where the user named it.

    Raises:
        LayerError: no layer gives a grid.
    """
    layer = _chosen(model, _run(model, x, logits, size), x, logits, size)
    return layer.name, layer.reason


def whole(model: nn.Module, x: Tensor, logits: Logits = unwrap) -> tuple[str, str] | None:
    """The last layer with a grid that all that reaches the output goes through, and the reason; None where there is none.

    Other than `choose` it asks this also of a model in which blocks run whose output nobody reads.
    """
    events = _placed(model, x, _run(model, x, logits), logits)
    carries_all = _silencer(model, x, logits, events)
    for event in [one for one in _usable(events) if not _is(one.module, _PASSIVE)][: -_TRIES - 1 : -1]:
        if carries_all(event.name):
            return event.name, f"the last layer that all that reaches the output goes through: {_described(event)}"
    return None


def candidates(model: nn.Module, x: Tensor, logits: Logits = unwrap, mark: bool = True) -> list[Layer]:
    """Every layer that gives a grid larger than 1 x 1, in the order of the computation; with `mark` the default one is said."""
    events = _placed(model, x, _run(model, x, logits), logits)
    best: Layer | None = None
    if mark:
        with suppress(LayerError):
            best = _chosen(model, events, x, logits)
    found = _usable(events)
    alive = _alive(model, x, found, logits)
    layers = [replace(_layer(event), alive=event.name in alive) for event in found]
    return [best if best and layer.name == best.name else layer for layer in layers]


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
        if (one.name.count(".") < 2 or one.chosen) and one.name not in without and one.kind not in passive and one.alive
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
    events = _placed(model, x, _run(model, x, logits), logits)
    best = _chosen(model, events, x, logits)
    found = [_layer(event) for event in _usable(events)]
    last = next(index for index, one in enumerate(found) if one.name == best.name)
    # A branch inside a block that strides late still has the resolution of the block before, but not all of what it says.
    carries_all = _silencer(model, x, logits, events)
    ends: dict[tuple[int, int], str] = {}
    for one in reversed(found[:last]):
        fine = one.grid != found[last].grid and one.grid[0] * 4 <= x.shape[2]
        if fine and one.grid not in ends and one.name not in without and carries_all(one.name):
            ends[one.grid] = one.name
    return [*reversed(ends.values()), found[last].name]


def layout(
    model: nn.Module,
    x: Tensor,
    name: str,
    output: Tensor,
    logits: Logits = unwrap,
    size: tuple[int, int] | None = None,
    covers: tuple[int, int] | None = None,
) -> Layout | None:
    """How a layer's output holds the grid of an input; None where it holds none.

    A shape that can be read as (B, C, h, w) is trusted in a plain convolutional network. Else it is found out by running the
    model, once for a layer and a size of the input.

    Args:
        model: the module.
        x: the input (B, C, H, W).
        name: of the layer.
        output: of the layer.
        logits: as for `choose`.
        size: (h, w) of the grid where the user named it.
        covers: (width, height) of the input that its grids cover, where the model pads it.
    """
    shape, key = tuple(output.shape), (name, tuple(x.shape[2:]), size)
    known = _known(model)
    one = known.get(key)
    if one is not None and one.fits(shape, len(x)):
        return one
    picture = x.shape if covers is None else (*x.shape[:2], covers[1], covers[0])
    readings = possible(shape, picture, size=size)
    module = submodule(model, name)
    square = len(shape) == 4 and shape[2] == shape[3]
    doubt = _mixes(model) and (len(readings) > 1 or square) and not _is(module, _MAPS)
    if readings and readings[0].is_map and not doubt:
        return readings[0]
    if len(shape) != 3 and not readings:
        return None
    events = [event for event in _run(model, x[:1], logits, size) if event.module is module]
    found = [event.layout for event in _placed(model, x[:1], events, logits, size) if event.layout]
    if not found and readings and not bool(output.isfinite().all()):
        return readings[0]  # NaN and infinity hide every place; they are refused with their stage
    return found[0] if found and found[0].fits(shape, len(x)) else None


def _known(model: nn.Module) -> _Known:
    with _LOCK:
        return _LAYOUTS.setdefault(model, {})


def adopt_layouts(stand_in: nn.Module, model: nn.Module) -> None:
    """What running has shown about a model's layers holds for a stand-in with other weights, in which it may no longer show."""
    _known(stand_in).update(_known(model))


def _is(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is of one of these kinds, or stands for a layer of another library that is."""
    return issubclass(getattr(module, "stands_for", type(module)), kinds)


def _mixes(model: nn.Module) -> bool:
    """Whether a model may work on tokens or with its channels last."""
    kinds = [type(one).__name__.lower() for one in model.modules()]
    convolutions, linear = (sum(part in kind for kind in kinds) for part in ("conv", "linear"))
    return linear > convolutions or any(
        part in kind for kind in kinds for part in ("attention", "attn", "layernorm", "rmsnorm")
    )


@contextmanager
def _without_graph(x: Tensor) -> Iterator[None]:
    """As `isolated`, and without gradients."""
    with isolated(x), torch.no_grad():
        yield


def _run(model: nn.Module, x: Tensor, logits: Logits, size: tuple[int, int] | None = None) -> list[_Event]:
    """What every module returned, in order, with its layout where the shape says it: certain where it can be read in one way."""
    returned: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    names = {id(module): name for name, module in model.named_modules()}

    def record(original: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = only_grid(output)
            if tensor is None and isinstance(output, Tensor):
                tensor = output  # a flat vector
            returned.append((names[id(original)], original, tuple(tensor.shape) if tensor is not None else ()))

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
    returned_grid = only_grid(output)
    final = tuple(returned_grid.shape) if returned_grid is not None else None
    seen = [
        (shape[2], shape[3])
        for _, module, shape in returned
        if _is(module, nn.Conv2d) and len(shape) == 4 and shape[2] * shape[3] > 1
    ]
    # A square matrix with a row and a column for each token is attention, not a picture.
    counts = {shape[1] for _, _, shape in returned if len(shape) == 3} | {h * w for h, w in seen}
    events = []
    for name, module, shape in returned:
        readings = tuple(possible(shape, x.shape, dict.fromkeys(seen), size))
        maps = bool(readings) and readings[0].is_map
        attention = len(shape) == 4 and shape[2] == shape[3] and shape[2] in counts and not _is(module, _MAPS)
        certain = maps and not attention and (len(readings) == 1 or _is(module, _MAPS))
        form = readings[0] if maps and not attention else None
        events.append(_Event(name, module, shape, readings, form, certain or not readings, shape == final))
    return events


def _placed(
    model: nn.Module, x: Tensor, events: Sequence[_Event], logits: Logits, size: tuple[int, int] | None = None
) -> list[_Event]:
    """The same with the layouts that only running can tell; what it shows is kept for the next time."""
    runs = Counter(event.name for event in events)
    open_ones = {
        event.name: event.readings for event in events if not event.certain and event.name and runs[event.name] == 1
    }
    if not open_ones:
        return list(events)
    known = _known(model)
    at = tuple(x.shape[2:])
    asked = {name: readings for name, readings in open_ones.items() if (name, at, size) not in known}
    if asked:
        found = measure(model, x, asked, logits)
        known.update({(name, at, size): one for name, one in found.items()})
    placed = []
    for event in events:
        one = known.get((event.name, at, size), event.layout) if event.name in open_ones else event.layout
        placed.append(replace(event, layout=one if one is not None and one.fits(event.shape, len(x)) else None))
    return placed


def _usable(events: Sequence[_Event]) -> list[_Event]:
    """Those that give a grid, once in a forward: of a layer that runs several times no map is made, it would be ambiguous.

    A sequence of blocks on tokens goes by the name of its last block.
    """
    runs = Counter(event.name for event in events)
    return [
        event
        for event in events
        if event.layout and not event.is_final and event.name and runs[event.name] == 1
        if event.layout.is_map or not isinstance(event.module, nn.Sequential)
    ]


def _chosen(
    model: nn.Module, events: list[_Event], x: Tensor, logits: Logits, size: tuple[int, int] | None = None
) -> Layer:
    """By its convolutions where they reach near the output and carry all; else with the layouts that running shows."""
    last = None
    runs = Counter(event.name for event in events)
    for index, event in enumerate(events):
        conv = _is(event.module, _CONVOLUTIONS) and event.layout is not None and event.layout.is_map
        if conv and not event.is_final and runs[event.name] == 1:
            last = index
    weighted = [
        index
        for index, event in enumerate(events)
        if len(event.shape) > 2 and any(True for _ in event.module.parameters(recurse=False))
    ]
    maps = {index for index, event in enumerate(events) if event.layout is not None and event.layout.is_map}
    tokens = [index for index in weighted if last is None or (index > last and index not in maps)]
    layer = None
    if last is not None and len(tokens) <= len(weighted) / 2:
        layer = _by_convolution(model, events, last, x, logits)
        end = max(index for index, event in enumerate(events) if event.name == layer.name)
        behind = [event for event in events[end + 1 :] if any(not one.is_map for one in event.readings)]
        # An attention that pools has no norms; one norm and more, and blocks follow the convolutions.
        if sum(map(_is_norm, behind)) < 2 and not layer.reason.endswith(NOT_ALL):
            return layer
    if any(not reading.is_map for event in events for reading in event.readings):
        # Here no shape is trusted. Blocks and norms first: what stands inside a block is seldom what is looked for.
        doubted = [replace(event, layout=None, certain=not event.readings) for event in events]
        outer = [event for event in doubted if _is_norm(event) or any(True for _ in event.module.children())]
        for some in (outer, doubted):
            found = _by_tokens(model, _placed(model, x, some, logits, size), x, logits)
            if found is not None:
                return found
    if layer is None and size is not None:
        raise LayerError(
            f"grid={size} is the grid of no layer of {type(model).__name__}: when places of the picture are changed one by one, no tokens follow "
            "them in so many rows and columns; leave grid out to have it found"
        )
    if layer is None and x.dim() == 5:
        raise LayerError(
            f"{type(model).__name__} has no 3-D convolution that gives slices larger than 1 x 1 for an input of {tuple(x.shape)}; "
            "of films and volumes only layers that return (B, C, t, h, w) have a map (no tokens, windows, channels last or frames "
            "folded into the batch). What looks at the pixels works: layer='input', or saliency"
        )
    if layer is None:
        raise LayerError(
            f"{type(model).__name__} has no convolution that gives a grid larger than 1 x 1 at this input size, and no layer whose "
            "tokens follow the places of the picture row by row (they are in windows, in another order, mixed or pooled); name a layer yourself, give a larger input, or adapt(..., grid=(rows, columns))"
        )
    return layer


def _by_convolution(model: nn.Module, events: list[_Event], last: int, x: Tensor, logits: Logits) -> Layer:
    grid = events[last].shape[2:]
    usable = {id(event) for event in _usable(events) if event.layout and event.layout.is_map}
    fit = [
        (index, event) for index, event in enumerate(events) if id(event) in usable and not _is(event.module, _PASSIVE)
    ]
    ends = [event for index, event in fit if index >= last and event.shape[2:] == grid]
    before = [event for index, event in fit if not (index >= last and event.shape[2:] == grid)]
    # The nearest layer that carries all that reaches the output; a gate, or one branch of several, does not.
    tried = [*reversed(ends), *reversed(before)][:_TRIES]
    carries_all = _silencer(model, x, logits, events)
    whole = next((event for event in tried if carries_all(event.name)), None)
    layer = _layer(whole or ends[-1])
    reason = f"the last {layer.shown} grid before pooling, {layer.channels} channels ({layer.kind})"
    if whole is None:
        reason += f"; {NOT_ALL}"
    elif whole is not ends[-1]:
        reason = f"the last layer that all that reaches the output goes through: {layer.shown}, {layer.channels} channels ({layer.kind})"
    return replace(layer, chosen=True, reason=reason)


def _by_tokens(model: nn.Module, events: list[_Event], x: Tensor, logits: Logits) -> Layer | None:
    """Among layers of tokens and channels-last maps; None where none of them reaches the output."""
    inner = [f"{name}." for name, one in model.named_modules() if _is_attention(one)]
    found = [
        event
        for event in _usable(events)
        if any(True for _ in event.module.parameters()) and not event.name.startswith(tuple(inner))
    ]
    alive = _alive(model, x, found, logits)
    live = [event for event in found if event.name in alive]
    if not live:
        if found:
            raise LayerError(
                f"what {type(model).__name__} returns does not depend on any of its layers here: weights of 0 near its output do this "
                "(torchvision's transformers before training), a dead or saturated output, or gradient checkpointing; name a layer"
            )
        return None
    if len(live) == len(found):  # nothing but places is read, or all of them are
        grid = live[-1].layout.size if live[-1].layout else None
        ends = [event for event in live if event.layout and event.layout.size == grid]
        carries_all = _silencer(model, x, logits, events)
        whole = next((event for event in ends[: -_TRIES - 1 : -1] if carries_all(event.name)), None)
        if whole is not None:
            layer = _layer(whole)
            reason = f"the last layer that all that reaches the output goes through: {_described(whole)}"
            index = next(at for at, event in enumerate(events) if event.name == whole.name)
            if sum(bool(event.readings) and event.layout is None for event in events[index + 1 :]) > 3:
                reason += "; the tokens of later layers follow no grid"
            return replace(layer, chosen=True, reason=reason)
    norms = [event for event in live if _is_norm(event)]
    blocks = [event for event in live if any(True for _ in event.module.children())]
    behind_it = len(live) < len(found)
    last = (norms or blocks or live)[-1] if behind_it else live[-1]
    what = (
        "the input norm of the last attention"
        if last in norms and behind_it
        else "the last layer whose places are read"
    )
    behind = "; after it no patch token is read any more, only what stands for no place" if behind_it else ""
    return replace(_layer(last), chosen=True, reason=f"{what}: {_described(last)}{behind}; {NOT_ALL}")


def _is_attention(module: nn.Module) -> bool:
    """Not a whole block, which may have attention in its name."""
    name = type(module).__name__.lower()
    return ("attention" in name or "attn" in name) and "block" not in name and "layer" not in name


def _is_norm(event: _Event) -> bool:
    return "norm" in type(event.module).__name__.lower()


def _described(event: _Event) -> str:
    layer, form = _layer(event), event.layout
    h, w = layer.grid
    extra = f" beside {form.extra} that are no places" if form is not None and form.extra else ""
    what = " tokens" if form is not None and form.kind.startswith("tokens") else ""
    return f"{h}x{w}{what}{extra}, {layer.channels} channels ({layer.kind})"


def _alive(model: nn.Module, x: Tensor, events: Sequence[_Event], logits: Logits) -> set[str]:
    """Names of the layers on whose places the output depends; asked only of models that have tokens beside the places."""
    layouts = {event.name: event.layout for event in events if event.layout}
    names = set(layouts)
    if not any(one.extra for one in layouts.values()):
        return names
    felt = sensitivity(model, x, layouts, logits)
    if not felt:
        return names  # no gradient can be had at all; the capture says so
    dead = set()
    for name, one in layouts.items():
        if name not in felt or not bool(felt[name][one.before : len(felt[name]) - one.after].any()):
            dead.add(name)
    return names - dead


def _silencer(model: nn.Module, x: Tensor, logits: Logits, events: Sequence[_Event]) -> Callable[[str], bool]:
    """For a layer's name: whether the output no longer depends on the picture once its grid is silenced; True where that can't be tried."""
    layouts = {event.name: event.layout for event in events if event.layout}

    def silence(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, output: Any) -> Any:
            grid = only_grid(output)
            if grid is None:
                return output
            places = layouts[name].to_grid(grid)
            if any(
                one is grid for one in args
            ):  # works in place: whoever else holds that tensor must see it silenced, too
                (grid if layouts[name].depth else places).zero_()
                return output
            return with_grid(output, layouts[name].from_grid(torch.zeros_like(places), grid))

        return hook

    def apart(name: str | None) -> float | None:
        """How far the outputs of two pictures lie apart; each is run alone, because some models take no more."""
        stand_in = twin(model, {name: silence(name)} if name else {})
        try:
            with _without_graph(x):
                one, other = (
                    [part.double() for part in tensors_of(logits(stand_in(picture.clone())))] for picture in pictures
                )
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None  # the capture itself will say what is wrong, if anything is
        if [part.shape for part in one] != [part.shape for part in other]:
            return _OTHER  # as of a detector, which finds more in one picture than in another
        return max((float((a - b).abs().max()) for a, b in zip(one, other, strict=True) if a.numel()), default=0.0)

    generator = torch.Generator().manual_seed(0)
    size = float(x.abs().mean()) or 1.0
    pictures = []
    for _ in range(2):  # coarse and fine structure, so that a way for either is found
        rough = torch.randn(1, *x.shape[1:2], *[8] * (x.dim() - 2), generator=generator)
        coarse = F.interpolate(rough, x.shape[2:], mode="bilinear" if x.dim() == 4 else "trilinear")
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
    if event.layout is None:
        raise LayerError(f"layer {event.name!r} gives no grid")
    channels = event.shape[1] if event.layout.is_map else event.shape[-1]
    layer = Layer(event.name, type(event.module).__name__, channels, event.layout.size)
    return replace(layer, depth=event.layout.depth)
