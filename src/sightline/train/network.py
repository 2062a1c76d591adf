"""A pretrained network with a new head for other classes, what of it learns, and the file it is kept in."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sightline.errors import LayerError, ModelError, OutputError, TrainingError
from sightline.models import layers
from sightline.models.adapter import Adapter
from sightline.models.load import build, given, sample_input
from sightline.models.outputs import described, unwrap
from sightline.models.twin import twin

Freeze = Literal["trunk", "none"] | int
_SOURCES = ("timm", "torchvision")
MODEL = "model.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network whose head is new.

    Attributes:
        adapter: how to speak to it; its labels are the new classes.
        architecture: "timm:resnet50", under which its file is found again.
        head: the name of the new layer, whose outputs are the logits.
        whole: whether the logits are what the head returns, with nothing behind it; then it can learn alone from what it is fed.
    """

    adapter: Adapter
    architecture: str
    head: str
    whole: bool

    @property
    def module(self) -> nn.Module:
        """All of it."""
        return self.adapter.module

    @property
    def layer(self) -> nn.Module:
        """The head itself."""
        return self.module.get_submodule(self.head)

    @property
    def width(self) -> int:
        """How many numbers the head is fed for each picture."""
        weight = self.layer.weight
        return int(weight.shape[1]) if isinstance(weight, Tensor) else 0


def with_new_head(
    model: str | Path,
    classes: Sequence[str],
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    size: int | None = None,
    seed: int = 0,
) -> Network:
    """A model of timm or torchvision, or a file of one, with a head for these classes in place of its own.

    Args:
        model: as in `load_model`: "bundled", "timm:NAME", "torchvision:NAME", a weights file, or the folder of a training.
        classes: the names of the new classes.
        weights: a local file instead of the official weights.
        random_weights: begin with nothing learnt.
        size: of the pictures that the network is shown, in pixels; its own when left out.
        seed: of the new head, and of random weights.

    Raises:
        ModelError: no such model, one of another source, one that can't be fed pictures of this size, or whose head is not one
            dense layer.
    """
    said = given(model, weights, random_weights, preprocess=None if size is None else {"size": size})
    with torch.random.fork_rng(devices=[]):  # it is built on the CPU
        torch.manual_seed(seed)
        adapter = build(model, said)
        # What stands behind the dot says which official weights these were, and those are no more.
        architecture = next((one.value for one in adapter.found if one.what == "architecture"), "").partition(".")[0]
        if architecture.partition(":")[0] not in _SOURCES or adapter.black_box or adapter.frames:
            raise ModelError(
                f"{adapter.name} can't be trained here; expected bundled, torchvision:NAME, timm:NAME, or a weights file of one. "
                "In your own training, sightline.train.HeatmapCallback shows the maps"
            )
        module = adapter.module.eval().requires_grad_(True)
        head = _head(module, adapter.name)
        _replace(module, head, len(classes))
    # The official head is gone, and with it all that was said of its classes.
    adapter = Adapter(
        architecture.partition(":")[2],
        module,
        preprocess=adapter.preprocess,
        labels=tuple(classes),
        provenance=dict(adapter.provenance) | {"classes": len(classes)},
    )
    x = sample_input(adapter)
    try:
        layer, reason = layers.choose(module, x)
    except LayerError as error:
        raise ModelError(f"{architecture} has no layer that a map could be made of: {error}") from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"{architecture} can't be fed pictures of {tuple(x.shape[2:])} pixels: {error}. Leave the size out to take its own"
        ) from error
    adapter = dataclasses.replace(adapter, layer=layer, layer_reason=reason)
    return Network(adapter, architecture, head, _is_last(module, head, x, len(classes)))


def freeze_in(network: Network, what: Freeze) -> tuple[nn.Module, ...]:
    """Says what of a network does not learn, and returns these modules; they belong into evaluation mode.

    Args:
        network: its parameters are switched on and off.
        what: "trunk" (all but the head), "none", or the number of layers, in the order of `sightline layers`, that stay as they are.

    Raises:
        TrainingError: there are not so many layers.
    """
    module = network.module
    module.requires_grad_(True)
    if what == "none":
        return ()
    if what == "trunk":
        kept = [one for one in module.modules() if one is not network.layer]
    else:
        x = sample_input(network.adapter)
        names = layers.sweep(module, x, most=10_000)
        if isinstance(what, bool) or not isinstance(what, int) or not 1 <= what <= len(names):
            raise TrainingError(
                f"freeze is {what!r}; expected 'trunk' (all but the head), 'none', or a number of layers from 1 to {len(names)}: "
                f"{', '.join(names[:3])}, ..., {names[-1]}"
            )
        kept = _until(module, names[what - 1], x)
    frozen = tuple(one for one in kept if one is not network.layer)
    for one in frozen:
        for parameter in one.parameters(recurse=False):
            parameter.requires_grad_(False)
    return frozen


def save(network: Network, file: Path, about: Mapping[str, Any]) -> None:
    """Writes the network, whole or not at all, so that `load_model` needs nothing else: architecture, classes, preprocessing.

    Args:
        network: what to write.
        file: a `.safetensors` file.
        about: what else is to be said, as plain values.

    Raises:
        OutputError: the file can't be written; then an earlier one is as it was.
    """
    from safetensors.torch import save_file

    spec = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in network.adapter.provenance["preprocessing"].items()
    }
    said = {"architecture": network.architecture, "class_names": network.adapter.labels, "preprocessing": spec, **about}
    # One entry, because the order of several is not always the same, and the same training is to give the same file.
    metadata = {"sightline": json.dumps(said)}
    # Copies, because layers that share a tensor each have it in the file.
    tensors = {
        name: one.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, one in network.module.state_dict().items()
    }
    written = file.with_name(f".{file.name}")
    try:
        written.unlink(missing_ok=True)  # a link in its place would have its target overwritten
        save_file(tensors, written, metadata)
        with open(written, "rb") as opened:
            os.fsync(opened.fileno())
        written.chmod(0o644)  # it is made for its owner alone
        written.replace(file)
    except Exception as error:  # safetensors has an error of its own for what the system says
        with suppress(OSError):
            written.unlink()
        raise OutputError(f"{file} can't be written: {error}. What was there before is as it was") from error


def _head(module: nn.Module, name: str) -> str:
    """The name of the one dense layer, or convolution of 1 x 1, that gives the logits of the present classes."""
    found: list[tuple[str, int]] = [
        (path, _size(one)) for path, one in module.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)
    ]
    if not found or getattr(module, "num_classes", None) == 0:  # timm's word for what only gives features
        raise ModelError(
            f"{name} has no head: it gives features, not classes. Take a model that was trained as a classifier"
        )
    last, classes = found[-1]
    several = [path for path, size in found if size == classes]
    if classes > 1 and len(several) > 1 and isinstance(module.get_submodule(several[0]), nn.Linear):
        raise ModelError(f"{name} has several heads ({', '.join(several)}); expected a model with one")
    return last


def _size(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _replace(module: nn.Module, head: str, classes: int) -> None:
    old = module.get_submodule(head)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1) and old.groups == 1:
        new = nn.Conv2d(old.in_channels, classes, 1, bias=old.bias is not None)
    else:
        raise ModelError(f"{type(module).__name__} ends in {type(old).__name__} {head!r}, which can't be replaced")
    parent, _, own = head.rpartition(".")
    setattr(module.get_submodule(parent), own, new)


def _is_last(module: nn.Module, head: str, x: Tensor, classes: int) -> bool:
    """Whether the head's own output is the logits, tried on a random picture; a network without logits is refused."""
    seen: list[Any] = []

    def note(_module: nn.Module, _given: Any, output: Any) -> None:
        seen.append(output)

    with torch.no_grad():
        output = unwrap(twin(module, {head: note})(x))
    if not isinstance(output, Tensor) or output.shape != (1, classes):
        raise ModelError(
            f"{type(module).__name__} with {classes} outputs of {head!r} gives {described(output)}; expected a score for each class"
        )
    return len(seen) == 1 and isinstance(seen[0], Tensor) and seen[0].dim() == 2 and torch.equal(seen[0], output)


def _until(module: nn.Module, last: str, x: Tensor) -> list[nn.Module]:
    """The modules that have run when a layer returns, and those with weights of their own around it."""
    done: list[str] = []

    def noted(name: str) -> Any:
        return lambda *_: done.append(name)

    names = [name for name, _ in module.named_modules() if name]
    with torch.no_grad():
        twin(module, {name: noted(name) for name in names})(x)
    over = [module.get_submodule(name) for name in done[: done.index(last) + 1]]
    # Some layers use the weights of those inside without calling them, as attention does.
    inside = [one for layer in over for one in layer.modules()]
    # What is around this layer may hold weights beside its layers, such as a class token, which are used before.
    around = [module, *(module.get_submodule(name) for name in names if last.startswith(f"{name}."))]
    return list(dict.fromkeys([*inside, *around]))
