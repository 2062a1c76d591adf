"""`Adapter`: how to speak to one model. `adapt` makes one from any `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from sightline.errors import LayerError, ModelError
from sightline.models.bands import bands_of, plain
from sightline.models.black_box import BlackBox
from sightline.models.dense import choose_layer, detector, memory_format
from sightline.models.given import Finding
from sightline.models.held import holding
from sightline.models.keras_module import is_keras
from sightline.models.outputs import unwrap
from sightline.models.preprocess import Preprocess, measured, specification
from sightline.models.twin import submodule, unwrapped

# The name of the layer that is the picture itself, as the model receives it.
INPUT = "input"
_TRIED = 16  # frames of a film, where a model takes all that there are
# What a model does. "" is read off what it returns: (B, K) are classes, (B, K, h, w) segmentation, boxes detection.
Task = Literal["", "classes", "labels", "regression", "embedding", "segmentation", "detection", "words"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True, eq=False)
class Adapter:
    """How to speak to one model.

    Attributes:
        name: what to call it in captions and files.
        module: the eager `nn.Module`; never changed. Of a black box, what asks it.
        layer: the default target layer, or None to choose it anew for each input.
        layer_reason: why this layer.
        preprocess: from a PIL picture to (tensor (C, H, W), View), or None when only tensors can be explained.
        labels: class names by index, or None.
        logits: from what the module returns to what a target reads; logits (B, K) for a classifier.
        folded: layers whose own output is gone because their batch norm was folded into them.
        memory_format: of the input, as the weights are laid out.
        grid: (rows, columns) of a transformer's patch tokens where the user named them; found by running when None.
        provenance: where the model, its weights and its preprocessing come from.
        notes: what every result made with this model must say, such as "random weights".
        found: what was found out when it was loaded, from where, and what of it is guessed.
        black_box: only its scores are known: it has no layers, weights and gradients.
        task: what it does; "" is read off what it returns. "labels" are classes that don't exclude each other, a sigmoid each;
            "words" those of an answer, a log-probability each.
        levels: layers that together are one pyramid of a detector, finest first: where no layer is named, those which a target reads.
        covers: (width, height) of the input that the layers' grids cover, where the model itself pads the input (1, C, H, W) at the
            right and below.
        frames: how many frames of a film it takes, of which `preprocess` makes one each, or "all"; None takes one picture.
        prompted: the same model with other texts to tell pictures apart by, where it reads text.
        settled: the same model made ready for one input (1, C, H, W), where it must see that first, as one that answers in words;
            that one takes answer="..." too, to be used in place of its own.
    """

    name: str
    module: nn.Module
    layer: str | None = None
    layer_reason: str = ""
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None
    logits: Callable[[Any], Any] = field(default=unwrap)
    folded: frozenset[str] = frozenset()
    memory_format: torch.memory_format = torch.preserve_format
    grid: tuple[int, int] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    found: tuple[Finding, ...] = ()
    black_box: bool = False
    task: Task = ""
    levels: tuple[str, ...] = ()
    covers: Callable[[Tensor], tuple[int, int]] | None = None
    frames: int | Literal["all"] | None = None
    prompted: Callable[[Sequence[str]], Adapter] | None = None
    settled: Callable[..., Adapter] | None = None

    def label(self, index: int) -> str:
        """The name of a class, "class 7" where names are unknown."""
        if not self.labels or not 0 <= index < len(self.labels):
            return f"class {index}"
        label = self.labels[index]
        return label if len(label) <= 200 else f"{label[:197]}..."


def adapt(
    module: nn.Module | Callable[[Tensor], Any],
    *,
    layers: Sequence[str] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    labels: Sequence[str] | None = None,
    logits: Callable[[Any], Any] | None = None,
    grid: tuple[int, int] | None = None,
    name: str | None = None,
    task: Task = "",
    explained: str | None = None,
    others: Mapping[str, Any] | None = None,
    frames: int | Literal["all"] | None = None,
) -> Adapter:
    """Makes any `nn.Module`, Keras model on the torch backend, or other function from pictures to scores explainable.

    Nothing of it is changed.

    Args:
        module: an eager module; `torch.compile` and `DataParallel` are looked through. Or a black box: any callable that takes
            pictures as `preprocess` makes them, a float tensor (N, C, H, W), with `frames` (N, C, T, H, W), and returns scores (N, K)
            or (N,) as a tensor, an array or a list. It is called without a graph, with several pictures at once; whether several threads may call it at
            once is its own matter.
        layers: the target layer, as [name]; chosen by running the model when left out.
        preprocess: from a PIL picture to a float tensor (C, H, W), such as torchvision's evaluation transforms; or `bands`.
            Where the tensor lies on the picture is found by measuring it; it may also return (tensor, View).
            Without it, only `attribute` (tensors) works.
        labels: class names by index.
        logits: takes the logits (B, K) out of what the module returns; found by itself for a tensor, `.logits`,
            {"logits": ...}, and a tuple, list or dict with one (B, K) tensor in it.
        grid: (rows, columns) of a transformer's patch tokens; found by running the model when left out, and checked so when given.
        name: what to call the model; its class name when left out.
        task: what it does; read off what it returns when left out. "labels" for classes that don't exclude each other (a sigmoid
            each), "regression" for values, "embedding" for a vector to compare pictures by. Logits (B, K, h, w) are segmentation, a
            list with a mapping of boxes, labels and scores for each picture is detection, of a function too.
        explained: of a module with several inputs, the argument of its forward that gets the picture; the first when left out.
        others: what the other arguments get, such as {"right": tensor}; they stay as they are. A tensor of one row is
            repeated for each picture of a batch.
        frames: of a model of films or volumes, which takes (B, C, T, H, W): how many frames it takes, or "all" that there are;
            `preprocess` then makes (C, H, W) of one frame. See `explain_frames`.

    Raises:
        ModelError: neither a module nor a function, or a module in which nothing can be captured honestly.
        LayerError: no such layer.
    """
    if is_keras(module):
        if any(one is not None for one in (explained, others, frames)):
            raise ModelError(
                "explained, others and frames are for torch modules; wrap the Keras model in one, or in a function"
            )
        from sightline.models.keras import live

        return live(module, layers=layers, preprocess=preprocess, labels=labels, logits=logits, grid=grid, name=name)
    if not callable(module) or isinstance(module, type):
        raise ModelError(
            f"{type(module).__name__} {getattr(module, '__name__', '')}".strip()
            + " is no torch.nn.Module and no function; give a module (weights alone: load them into one first, or give their "
            "file to load_model), or a name: sightline models"
        )
    if task not in TASKS:
        raise ModelError(f"task is {task!r}; expected one of {', '.join(TASKS[1:])}, or nothing to have it found")
    if labels is not None and (isinstance(labels, str) or not all(isinstance(label, str) for label in labels)):
        raise ModelError("labels must be a list of names, one a class")
    if frames is not None and frames != "all" and not (type(frames) is int and 1 <= frames <= 10_000):
        raise ModelError(f"frames={frames!r}; expected how many frames the model takes, such as 16, or 'all'")
    take = preprocess
    if take is not None and not specification(take) and not bands_of(take):
        take = measured(take)
    names = tuple(labels) if labels is not None else None
    if not isinstance(module, nn.Module):
        if layers is not None or grid is not None or logits is not None:
            raise ModelError(
                "a function is a black box: layers, grid and logits are for modules; let it return the scores (N, K) themselves"
            )
        if explained is not None or others is not None:
            raise ModelError(
                "a function is a black box that is called with the pictures alone: explained and others are for modules; let the function "
                "give its other inputs itself"
            )
        name = name or getattr(module, "__name__", type(module).__name__).strip("<>")
        parts: dict[str, Any] = {"preprocess": take, "labels": names, "provenance": {"source": "user's function"}}
        return replace(black_box(name, module, **parts), task=task, frames=frames)
    module, notes = unwrapped(module)
    if explained is not None or others is not None:
        module, note = holding(module, explained, others or {})
        notes = (*notes, note)
    dense = detector(module)
    if isinstance(layers, str) or (layers is not None and len(layers) != 1):
        raise ModelError(f"layers={layers!r}; expected a list of one layer name, such as ['layer4']")
    if grid is not None and not _is_size(grid):
        raise ModelError(f"grid={grid!r}; expected (rows, columns) of the patch tokens, such as (14, 14), or nothing")
    chosen, reason = (layers[0], "given") if layers else (None, "")
    if chosen is not None:
        submodule(module, chosen)
    levels = dense.levels if dense is not None and chosen is None else ()
    if dense is not None and levels:
        chosen, reason = levels[-1], dense.reason
    if chosen is None and take is not None:
        of = bands_of(take)
        x, _ = take(Image.new("RGB", (256, 256), (124, 116, 104)) if of is None else plain(of, 256))
        if frames is not None:
            x = x[:, None].expand(-1, _TRIED if frames == "all" else frames, -1, -1)
        try:
            ready = like_weights(x[None], module)
            chosen, reason = choose_layer(module, ready, logits or unwrap, grid, dense)
        except ModelError as error:
            raise ModelError(
                f"{error}. adapt tried a plain picture{'' if frames is None else ', as every frame'}, of which the preprocessing made {tuple(x.shape)}: "
                "let it make what the model takes (size, channels); for a model of films say frames=16, for one of several inputs "
                "explained=... and others=..., or name layers=[...], so that nothing is tried"
            ) from error
        except LayerError as error:  # what looks at no layer can be asked all the same
            reason = str(error)
    return Adapter(
        name=name or type(module).__name__,
        module=module,
        layer=chosen,
        layer_reason=reason,
        preprocess=take,
        labels=names,
        logits=logits or unwrap,
        memory_format=memory_format(module),
        grid=grid,
        task=task or ("detection" if dense else ""),
        levels=levels,
        covers=dense.covers if dense else None,
        provenance={"source": "user's module", "class": f"{type(module).__module__}.{type(module).__qualname__}"},
        notes=notes,
        frames=frames,
    )


def black_box(name: str, function: Callable[[Tensor], Any], **parts: Any) -> Adapter:
    """The adapter of a model that can only be asked for scores; `parts` are fields of `Adapter`."""
    reason = "a black box has no layers"
    return Adapter(name, BlackBox(function, name), layer=INPUT, layer_reason=reason, black_box=True, **parts)


def no_layers(adapter: Adapter) -> str:
    """What is said to those who ask a black box for a layer."""
    return f"{adapter.name} is a black box, of which only the scores are known: it has no layers. Leave the layer out"


def _is_size(grid: Any) -> bool:
    return isinstance(grid, tuple) and len(grid) == 2 and all(type(one) is int and one > 0 for one in grid)


def like_weights(x: Tensor, module: nn.Module) -> Tensor:
    """The input on the device and in the type of the module's weights."""
    weight = next((one for one in module.parameters() if one.is_floating_point()), None)
    return x if weight is None else x.to(weight.device, weight.dtype)
