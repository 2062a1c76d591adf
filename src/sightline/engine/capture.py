"""`capture`: one forward; what the target layers said, and the way from there to any score.

The trunk runs without a graph. At the first target layer the graph begins: its output becomes a leaf, and a clone goes
on, so that nothing in place can overwrite what was captured. A target then costs one backward through the head alone,
as do further targets of the same images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from sightline.engine.asked import Asked
from sightline.engine.lean import lean
from sightline.engine.targets import score_of
from sightline.errors import LayerError, ModelError, SightlineError, TargetError
from sightline.models.adapter import INPUT, Adapter, no_layers
from sightline.models.dense import choose_layer
from sightline.models.grids import Layout, volume
from sightline.models.layers import layout
from sightline.models.outputs import only_grid, tensors_of, with_grid
from sightline.models.twin import constant, isolated, submodule, twin

Joint = Tensor | GradientEdge
_OF_INPUT, _OF_SCORE = "the input", "the score"


@dataclass(frozen=True, eq=False)
class Capture:
    """What one layer said in one forward pass, and what the score has to do with it.

    Attributes:
        layer: its name.
        input: what was fed in, (B, C, H, W); of films and volumes (B, C, T, H, W).
        activations: (B, C, h, w), detached; of a volume (B, C, t * h, w), its slices below each other.
        output: what the model returned, as `Adapter.logits` gives it; still joined to the layer by the graph.
        gradients: d score / d activations, (B, C, h, w); None until they were asked for.
        scores: the target's score of each image, (B,); None until a target was asked for.
        layout: how the layer's own output holds the grid; maps (B, C, h, w) are as they are, tokens are laid out.
        joint: the layer's own output in the graph of `output`: the leaf where the graph begins, or a later place in it.
        finite: (stage, which images are free of NaN and infinity there (B,)), stage after stage.
        module: the model.
        place: which of the layers that were captured together it is, in the order in which they ran.
        rule: what its ReLUs hand back instead of their derivative; None for that.
        latest: the classes that were asked for last, and the answer: several methods then share one backward.
    """

    layer: str
    input: Tensor
    activations: Tensor
    output: Any
    gradients: Tensor | None = None
    scores: Tensor | None = None
    layout: Layout | None = None
    joint: Joint | None = None
    finite: tuple[tuple[str, Tensor], ...] = ()
    module: nn.Module | None = field(default=None, repr=False)
    place: int = 0
    rule: str | None = None
    latest: dict[tuple[int | None, ...], Capture] = field(default_factory=dict, repr=False)


class _View(Exception):
    """A layer hands on a part of a larger tensor, which can't be exchanged in place: the graph must begin before it."""


def capture(adapter: Adapter, x: Tensor, layers: Sequence[str | None] = (None,), some: bool = False) -> list[Capture]:
    """Runs the model once on x (B, C, H, W) and keeps what the layers said; None is the adapter's own layer.

    The layer "input" is x itself, unless the model has one of that name. Of a black box there is no other, and no gradient.

    With `some`, layers without a grid are left out, if others have one.

    Works inside the caller's `no_grad`, `inference_mode` and autocast (which is off meanwhile), with frozen parameters,
    and leaves the model as it is.

    Raises:
        LayerError: a layer doesn't exist, wasn't reached, ran twice, or gives no grid.
        ModelError: the model failed on this input.
    """
    check_input(x, volumes=True)
    with isolated(x):
        names = [name or _default_layer(adapter, x) for name in layers]
        try:
            seen, output, x = _forward(adapter, x.detach(), names, trunk_graph=False)
        except _View:
            seen, output, x = _forward(adapter, x.detach(), names, trunk_graph=True)
        if not any(_is_input(adapter, name) for name in names) and not any(
            joint.requires_grad for joint in tensors_of(output)
        ):
            # The model switches gradients off in a part of itself (a frozen backbone): begin outside of that.
            seen, output, x = _forward(adapter, x, names, trunk_graph=True)
    found = []
    for name in names:
        try:
            found.append(_captured(adapter, name, seen, output, x))
        except LayerError:  # as the coarsest level of a pyramid, which of a small picture has one cell
            if not some or (name == names[-1] and not found):
                raise
    return found


def toward(
    captures: Sequence[Capture], asked: Sequence[Asked], gradients: bool = True, some: bool = False
) -> list[Capture]:
    """The captures with scores and, unless left out, gradients for one target per image; costs one backward through the head.

    With `some`, layers of which the score reads nothing are left out, if there are others.

    Raises:
        TargetError: the target fails, or gives something else than a score per image.
        LayerError: the score doesn't depend on the layer.
    """
    classes = tuple(one.index for one in asked)
    if len(captures) == 1 and None not in classes and (known := captures[0].latest.get(classes)) is not None:
        return [known]
    batch = len(captures[0].activations)
    joints: list[Any] = [joint_of(one) for one in captures]
    with isolated(captures[0].activations), torch.enable_grad():
        scores = score_of(asked, captures[0].output, batch)
        if not gradients:
            said = (_OF_SCORE, finite_images(scores))
            _check_read(captures, joints, scores)
            return [
                dataclasses.replace(one, scores=scores.detach(), finite=(*one.finite, said), latest={})
                for one in captures
            ]
        if not scores.requires_grad:
            raise TargetError(
                f"the score has no gradient: it doesn't depend on layer {captures[0].layer!r}, or the target or the model cuts "
                "the graph (detach, argmax, no_grad, gradient checkpointing, quantised parts)"
            )
        try:
            found = torch.autograd.grad(scores.sum(), joints, retain_graph=True, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"no gradient can be taken back to layer {captures[0].layer!r}: {error}. Gradient checkpointing and in-place "
                "changes of the output do this; switch them off"
            ) from error
    pairs = list(zip(captures, found, strict=True))
    if some:
        pairs = [(one, gradient) for one, gradient in pairs if gradient is not None and gradient.any()] or pairs[-1:]
    result = []
    for one, gradient in pairs:
        if gradient is None:
            raise LayerError(
                f"the score doesn't depend on layer {one.layer!r}: it doesn't lie on the way, or gradient checkpointing hides it (switch that off)"
            )
        gradient = _of_places(one, gradient.detach())
        finite = (
            *one.finite,
            (_OF_SCORE, finite_images(scores)),
            (f"the gradients at layer {one.layer!r}", finite_images(gradient)),
        )
        answer = dataclasses.replace(one, gradients=gradient, scores=scores.detach(), finite=finite, latest={})
        if None not in classes:
            one.latest.clear()
            one.latest[classes] = answer
        result.append(answer)
    return result


def _of_places(one: Capture, gradient: Tensor) -> Tensor:
    """The gradient of the grid (B, C, h, w), or a refusal where only other tokens have one."""
    form = one.layout
    if form is None:
        return gradient
    places = form.to_grid(gradient)
    if form.extra and not places.any() and gradient.any():
        raise LayerError(
            f"the patch tokens of layer {one.layer!r} get no gradient: what the model reads after it is no longer a patch token "
            f"(only {'a class token' if form.extra == 1 else 'class tokens or the like'}). Take the input norm of the last "
            "block, which is chosen when no layer is named: sightline layers MODEL"
        )
    return places


def _check_read(captures: Sequence[Capture], joints: Sequence[Any], scores: Tensor) -> None:
    """Refuses a layer of tokens whose places no score depends on, also for methods without gradients."""
    asked = [(one, joint) for one, joint in zip(captures, joints, strict=True) if one.layout and one.layout.extra]
    if not asked or not scores.requires_grad:
        return
    found = torch.autograd.grad(scores.sum(), [joint for _, joint in asked], retain_graph=True, allow_unused=True)
    for (one, _), gradient in zip(asked, found, strict=True):
        if gradient is not None:
            _of_places(one, gradient)


def of_input(one: Capture) -> Capture:
    """The same pass, looked at from the input: for methods that look at no layer."""
    if _of_all(one):
        return one
    form = volume(*one.input.shape[2:]) if one.input.dim() == 5 else None
    finite = tuple((stage, free) for stage, free in one.finite if stage in (_OF_INPUT, _OF_SCORE))
    return dataclasses.replace(
        one,
        layer=INPUT,
        activations=one.input if form is None else form.to_grid(one.input),
        gradients=None,
        layout=form,
        joint=None,
        finite=finite,
        place=0,
        latest={},
    )


def _of_all(one: Capture) -> bool:
    """Whether it is the capture of the input already."""
    if one.input.dim() == 4:
        return one.activations is one.input
    return one.layer == INPUT and (one.module is None or one.module._modules.get(INPUT) is None)


def of_image(one: Capture, image: int) -> Capture:
    """The capture of one image of the batch; its graph goes with it only when the batch is that image."""
    if len(one.activations) == 1:
        return one

    def part(values: Any) -> Any:
        return values[image : image + 1] if isinstance(values, Tensor) else values

    cut = {name: part(getattr(one, name)) for name in ("input", "activations", "gradients", "scores")}
    finite = tuple((stage, part(free)) for stage, free in one.finite)
    output = part(one.output.detach()) if isinstance(one.output, Tensor) else None
    return dataclasses.replace(one, **cut, output=output, joint=None, finite=finite, latest={})


def finite_images(values: Tensor) -> Tensor:
    """Which images (B,) hold neither NaN nor infinity."""
    values = values.detach().flatten(1) if values.dim() > 1 else values.detach()[:, None]
    sums = values.sum(dim=1).isfinite()  # one pass without a copy; a sum can overflow, then each value is asked
    return sums if bool(sums.all()) else values.isfinite().all(dim=1)


def check_input(x: Any, volumes: bool = False) -> None:
    """Refuses what no model can be fed with; `volumes` says whether films and volumes are taken, too."""
    shapes = (4, 5) if volumes else (4,)
    if not isinstance(x, Tensor) or x.dim() not in shapes or not x.is_floating_point() or x.numel() == 0:
        got = f"a tensor {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        also = ", or (B, C, T, H, W)" if volumes else ""
        raise ModelError(f"the input is {got}; expected floats of shape (B, C, H, W){also}, at least one image")


def _default_layer(adapter: Adapter, x: Tensor) -> str:
    if adapter.layer is not None:
        return adapter.layer
    return choose_layer(adapter.module, x[:1], adapter.logits, adapter.grid)[0]


def _is_input(adapter: Adapter, name: str) -> bool:
    """Whether the name stands for the input itself, and for no layer of the model's own."""
    return name == INPUT and adapter.module._modules.get(INPUT) is None


def _forward(
    adapter: Adapter, x: Tensor, names: Sequence[str], trunk_graph: bool
) -> tuple[dict[str, tuple[Tensor, Joint]], Any, Tensor]:
    for name in names:
        if adapter.black_box and name != INPUT:
            raise LayerError(no_layers(adapter))
        if name in adapter.folded:
            raise LayerError(
                f"the output of layer {name!r} is gone: its batch norm was folded into it. Ask for the norm's layer, "
                f"or load with sightline.load_model({adapter.name!r}, for_layer={name!r})"
            )
    seen: dict[str, tuple[Tensor, Joint]] = {}
    whole = any(_is_input(adapter, name) for name in names)
    trunk_graph = trunk_graph or whole
    names = [name for name in names if not _is_input(adapter, name)]
    calls: dict[str, int] = dict.fromkeys(names, 0)

    def tap(name: str) -> Callable[[Any, Any, Any], Any]:
        def hook(_module: Any, args: Any, output: Any) -> Any:
            calls[name] += 1
            grid = only_grid(output)
            if grid is None:
                return output  # said below, once the forward is over
            if grid.requires_grad and torch.is_grad_enabled():
                # A later layer, already inside the graph: its place there, as it is now, and its values.
                seen[name] = (grid.detach().clone(), get_gradient_edge(grid))
                return output
            torch.set_grad_enabled(True)  # undone at the end of the block below
            if any(one is grid for one in args):
                # The layer hands its input on (works in place, does nothing), and whoever else holds that tensor must
                # come to depend on what was kept, too.
                if grid._is_view():
                    raise _View
                kept = grid.detach().clone().requires_grad_()
                seen[name] = (kept.detach(), kept)
                grid.copy_(kept)
                return output
            kept = grid.detach().requires_grad_()
            seen[name] = (kept.detach(), kept)
            return with_grid(output, kept.clone())

        return hook

    if len({id(submodule(adapter.module, name)) for name in names}) < len(set(names)):
        raise LayerError(f"the layers {', '.join(names)} are one and the same module; name it once")
    stand_in = lean(twin(adapter.module, {name: tap(name) for name in names}))
    if whole:  # the graph is that of the pixels, and of no weights
        stand_in = constant(stand_in)
    # A copy, so that a model which works on its input in place does not reach the caller's.
    given = x.clone(memory_format=adapter.memory_format)
    version = given._version
    written = _versions(adapter.module)
    with torch.set_grad_enabled(trunk_graph):
        # With all parameters frozen, the graph has nothing but the input to begin at.
        if trunk_graph:
            given.requires_grad_()
        if whole:
            seen[INPUT] = (given.detach(), given)
        output = fed(adapter, stand_in, given.clone() if trunk_graph else given)
    if _versions(adapter.module) != written:
        raise ModelError(
            f"the forward of {adapter.name} reaches its modules past the stand-in, through something global, and in training "
            "mode it wrote into its statistics; call model.eval() first"
        )
    for name, count in calls.items():
        if count == 0:
            raise LayerError(
                f"layer {name!r} was not reached in the forward of {adapter.name}; choose one that runs: sightline layers MODEL"
            )
        if count > 1:
            raise LayerError(
                f"layer {name!r} ran {count} times in one forward, so that its map would be ambiguous; choose one that runs once"
            )
    given = given.detach()
    return seen, output, given if given._version == version else x.clone(memory_format=adapter.memory_format)


def fed(adapter: Adapter, stand_in: nn.Module, given: Tensor) -> Any:
    """What the model returns, as `Adapter.logits` gives it; its own errors become a `ModelError` that names the input."""
    try:
        return adapter.logits(stand_in(given))
    except (SightlineError, _View, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{adapter.name} fails on an input of shape {tuple(given.shape)} ({given.dtype}, {given.device}): {error}"
        ) from error


def _versions(module: Any) -> list[int]:
    """How often each buffer of a model in training mode was written to; evaluation mode writes to none."""
    if not any(one.training for one in module.modules()):
        return []
    return [buffer._version for buffer in module.buffers() if not buffer.is_inference()]


def _captured(adapter: Adapter, name: str, seen: dict[str, tuple[Tensor, Joint]], output: Any, x: Tensor) -> Capture:
    values, joint = seen.get(name, (None, None))
    if _is_input(adapter, name):
        whole = volume(*x.shape[2:]) if x.dim() == 5 else None
        pixels = x if whole is None else whole.to_grid(x)
        free = ((_OF_INPUT, finite_images(x)),)
        return Capture(name, x, pixels, output, layout=whole, joint=joint, finite=free, module=adapter.module)
    form = None
    if values is not None:
        covers = None if adapter.covers is None else adapter.covers(x)
        form = layout(adapter.module, x, name, values, adapter.logits, adapter.grid, covers)
    if values is None or form is None:
        raise LayerError(_no_grid(adapter, name, values, x))
    values = form.to_grid(values)
    finite = ((_OF_INPUT, finite_images(x)), (f"the activations of layer {name!r}", finite_images(values)))
    place = list(seen).index(name)
    return Capture(name, x, values, output, layout=form, joint=joint, finite=finite, module=adapter.module, place=place)


def _no_grid(adapter: Adapter, name: str, values: Tensor | None, x: Tensor) -> str:
    got = f"shape {tuple(values.shape)}" if values is not None else "no single tensor of places"
    if x.dim() == 5:
        return (
            f"layer {name!r} of {adapter.name} gives no slices larger than 1 x 1 ({got} from an input of {tuple(x.shape)}); of films "
            "and volumes only layers that return (B, C, t, h, w) have a map (no tokens, windows, channels last or frames folded "
            "into the batch). What looks at the pixels works: layer='input', or saliency"
        )
    if values is not None and adapter.grid is not None:
        found = layout(adapter.module, x, name, values, adapter.logits)
        if found is not None:
            h, w = found.size
            extra = f" beside {found.extra} tokens that are no places" if found.extra else ""
            return (
                f"grid={adapter.grid} is not the grid of layer {name!r} ({got}): running the model shows {h} x {w}{extra}; "
                "leave grid out, or give that"
            )
    if values is not None and values.dim() == 3:
        return (
            f"the tokens of layer {name!r} of {adapter.name} ({got} from an input of {tuple(x.shape)}) have no grid: when places of "
            "the picture are changed one by one, no tokens follow them row by row (windows, other order, mixed or pooled tokens). "
            "Choose another layer: sightline layers MODEL"
        )
    return (
        f"layer {name!r} of {adapter.name} gives no grid larger than 1 x 1 ({got} from an input of {tuple(x.shape)}); "
        "choose another layer or a larger input: sightline layers MODEL"
    )


def joint_of(one: Capture) -> Joint:
    """The layer's output in the graph of the capture, or a `LayerError` where it was cut off."""
    if one.joint is None:
        raise LayerError(f"the capture of {one.layer!r} was cut from its graph; capture again")
    return one.joint
