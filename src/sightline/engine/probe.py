"""`Probe`: permission to ask the model again, for methods and metrics that need more than one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sightline.engine.attention import AttentionCapture, InSteps, Wanted, attend
from sightline.engine.capture import Capture, capture, check_input, fed, joint_of, toward
from sightline.engine.decompose import Parts, decompose
from sightline.engine.targets import NO_GRADIENT, Asked, Target, TargetSpec, resolve, score_of, table
from sightline.errors import ModelError, SightlineError, TargetError
from sightline.models.adapter import Adapter
from sightline.models.grids import Layout
from sightline.models.layers import stages
from sightline.models.outputs import only_grid, with_grid
from sightline.models.twin import isolated, twin

# How much larger than its input a network's widest pair of layers is at most (VGG: 43), and than a grid its head's.
_PER_IMAGE, _PER_GRID = 48, 8
MEMORY_MB = 512
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Probe:
    """Questions about ONE image and one target.

    Attributes:
        asked: the target.
        resolve: what a user calls a class -> the class, as for a target.
        score: images (N, C, H, W) -> scores (N,); optionally of another target, and in bfloat16.
        output: images (N, C, H, W) -> what the model returns for them, logits (N, K).
        score_head: what-if outputs of the layer (N, C, h, w) -> scores (N,), with the trunk run on the one image.
        output_head: the same -> what the model returns, as `Adapter.logits` gives it.
        score_grad: images (N, C, H, W) -> (scores (N,), d score / d image (N, C, H, W)).
        capture: images (N, C, H, W) -> what the layer says to them, with scores and, unless left out, gradients.
        attention: images (N, C, H, W), what is wanted of the score -> what the attentions say to them.
        other: another picture (1, C, H, W) -> its capture with scores, and a probe of it.
        stages: what the last layers of all resolutions say, the finest first, with gradients.
        toward: another score of the same image -> its capture, at the price of the head.
        curvature: target, V (1, C, h, w) -> the target's Hessian at the layer times V, at the price of the head.
        parts: the score taken apart into picture and biases.
        steps: cuts N images into slices that fit into memory (or of a given size), and tells the person who waits how far it is.
        head_steps: the same for N grids.
        notes: what the method has to say about its result is appended here.
    """

    asked: Asked
    resolve: Callable[[TargetSpec], Asked]
    score: Callable[..., Tensor]
    output: Callable[[Tensor], Tensor]
    score_head: Callable[[Tensor], Tensor]
    output_head: Callable[[Tensor], Tensor]
    score_grad: Callable[[Tensor], tuple[Tensor, Tensor]]
    capture: Callable[..., Capture]
    attention: Callable[[Tensor, Wanted], AttentionCapture]
    other: Callable[[Tensor], tuple[Capture, Probe]]
    stages: Callable[[], list[Capture]]
    toward: Callable[[Target], Capture]
    curvature: Callable[[Target, Tensor], Tensor]
    parts: Callable[[], Parts]
    steps: Callable[..., Iterator[slice]]
    head_steps: Callable[..., Iterator[slice]]
    notes: list[str] = field(default_factory=list)


def probe(
    adapter: Adapter,
    seen: Capture,
    asked: Asked,
    *,
    memory_mb: float = MEMORY_MB,
    progress: Progress | None = None,
) -> Probe:
    """Permission to ask `adapter` again about the one image of a capture.

    Args:
        adapter: the model.
        seen: of one image; its layer is the one whose output `score_head` replaces.
        asked: the target.
        memory_mb: what one forward may need above what is there; an estimate from the sizes of input and grid.
        progress: told (done, total) while a method asks many questions.
    """
    x, layer = seen.input, seen.layer
    form = seen.layout or Layout("maps", (seen.activations.shape[2], seen.activations.shape[3]))
    check_input(x)
    if len(x) != 1:
        raise ModelError(f"a probe asks about one image, not {len(x)}")
    if not isinstance(memory_mb, int | float) or not memory_mb > 0:
        raise ModelError(f"memory_mb is {memory_mb!r}; expected a number of megabytes above 0")
    plain = twin(adapter.module, {})
    apart = any(_by_batch(one) for one in adapter.module.modules())
    batch = 1 if apart else _fitting(memory_mb, x, _PER_IMAGE, 16)
    head_batch = 1 if apart else _fitting(memory_mb, seen.activations, _PER_GRID, 512)
    live = [seen] if seen.joint is not None else []
    in_steps: list[Capture] = []

    def run(model: Any, images: Tensor) -> Any:
        return fed(adapter, model, images.clone(memory_format=adapter.memory_format))

    def scored(output: Any, count: int, target: Target | None = None) -> Tensor:
        if isinstance(output, Tensor) and len(output) != count:
            raise ModelError(f"{adapter.name} gave {len(output)} rows for {count} questions")
        return score_of([asked if target is None else Asked(target, None, "")] * count, output, count)

    def in_parts(images: Tensor, then: Callable[[Tensor], Any]) -> list[Any]:
        """In slices that fit into memory; one by one, from then on, where a model takes no more."""
        nonlocal batch
        try:
            return [then(part) for part in images.split(batch)]
        except ModelError:
            if min(batch, len(images)) == 1:
                raise
        found = [then(part) for part in images.split(1)]
        batch = 1
        return found

    def score(images: Tensor, target: Target | None = None, bfloat16: bool = False) -> Tensor:
        with isolated(x), torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            return torch.cat(in_parts(images, lambda part: scored(run(plain, part), len(part), target).to(x.dtype)))

    def score_head(grids: Tensor) -> Tensor:
        with isolated(x), torch.no_grad():
            return torch.cat([_head(part, scored) for part in grids.split(head_batch)])

    def rows(output: Any, count: int) -> Tensor:
        found = table(output)
        if len(found) != count:
            raise ModelError(f"{adapter.name} gave {len(found)} rows for {count} questions")
        return found

    def output(images: Tensor) -> Tensor:
        with isolated(x), torch.no_grad():
            return torch.cat(in_parts(images, lambda part: rows(run(plain, part), len(part))))

    def output_head(grids: Tensor) -> Tensor:
        with isolated(x), torch.no_grad():
            return torch.cat([_head(part, rows) for part in grids.split(head_batch)])

    def _head(grids: Tensor, then: Callable[[Any, int], Tensor]) -> Tensor:
        def asked_with(given: Tensor, part: Tensor) -> Tensor:
            def replace(_module: Any, args: Any, output: Any) -> Any:
                own = only_grid(output)
                places = form.to_grid(own) if own is not None and form.fits(own.shape, len(given)) else None
                if own is None or places is None or places.shape[1:] != part.shape[1:]:
                    raise ModelError(
                        f"layer {layer!r} does not give one grid of shape {tuple(part.shape[1:])}; its output can't be replaced"
                    )
                if any(one is own for one in args):
                    # The layer works in place: whoever else holds that tensor must see what is put there, too.
                    if len(places) != len(part):
                        raise ModelError(f"layer {layer!r} works in place on one image")
                    places.copy_(part)
                    return output
                return with_grid(output, form.from_grid(part, own))

            return then(run(twin(adapter.module, {layer: replace}), given), len(part))

        try:
            return asked_with(x, grids)
        except ModelError:
            # A skip connection that is concatenated doesn't broadcast: give the trunk as many images.
            return torch.cat(in_parts(grids, lambda part: asked_with(x.expand(len(part), -1, -1, -1), part)))

    def score_grad(images: Tensor) -> tuple[Tensor, Tensor]:
        def one(part: Tensor) -> tuple[Tensor, Tensor]:
            leaf = part.detach().requires_grad_()
            values = scored(run(plain, leaf), len(part))
            found = torch.autograd.grad(values.sum(), leaf, allow_unused=True) if values.requires_grad else (None,)
            if found[0] is None:
                raise TargetError(NO_GRADIENT)
            return values.detach(), found[0]

        with isolated(x), torch.enable_grad():
            scores, gradients = zip(*in_parts(images, one), strict=True)
        return torch.cat(scores), torch.cat(gradients)

    def capture_of(images: Tensor, gradients: bool = True) -> Capture:
        def one(part: Tensor) -> Capture:
            (found,) = toward(capture(adapter, part, [layer]), [asked] * len(part), gradients)
            return dataclasses.replace(found, output=None, joint=None, latest={})

        found = in_parts(images, one)
        return found[0] if len(found) == 1 else _joined(found)

    def other(picture: Tensor) -> tuple[Capture, Probe]:
        (one,) = toward(capture(adapter, picture, [layer]), [asked], gradients=False)
        return one, probe(adapter, one, asked, memory_mb=memory_mb)

    def all_stages() -> list[Capture]:
        with isolated(x):
            names = stages(adapter.module, x, adapter.folded, adapter.logits)
        return toward(capture(adapter, x, names), [asked])

    def alive() -> Capture:
        if not live:
            live.extend(capture(adapter, x, [layer]))
        return live[0]

    def toward_score(target: Target) -> Capture:
        return toward([alive()], [Asked(target, None, asked.label)])[0]

    def curvature(target: Target, direction: Tensor) -> Tensor:
        try:
            return bent_by(alive(), target, direction)
        except ModelError:
            if not in_steps:  # fused attention has no second derivative; in steps it has
                with InSteps(lambda found: found):
                    in_steps.extend(capture(adapter, x, [layer]))
        return bent_by(in_steps[0], target, direction)

    def bent_by(one: Capture, target: Target, direction: Tensor) -> Tensor:
        joint = joint_of(one)
        with isolated(x), torch.enable_grad(), _second_order(adapter.name):
            scores = score_of([Asked(target, None, "")], one.output, 1)
            (gradient,) = torch.autograd.grad(scores.sum(), joint, create_graph=True)
            if not gradient.requires_grad:  # the score is linear in the layer
                return torch.zeros_like(direction)
            # Tokens that are no places stay where they are.
            moved = form.from_grid(direction.to(gradient), torch.zeros_like(gradient))
            (bent,) = torch.autograd.grad(gradient, joint, moved, retain_graph=True, allow_unused=True)
        return torch.zeros_like(direction) if bent is None else form.to_grid(bent.detach())

    def steps(fitting: int) -> Callable[..., Iterator[slice]]:
        def cut(total: int, size: int = fitting) -> Iterator[slice]:
            for start in range(0, total, size):
                if progress is not None:
                    progress(start, total)
                yield slice(start, min(start + size, total))
            if progress is not None:
                progress(total, total)

        return cut

    return Probe(
        asked=asked,
        resolve=lambda spec: resolve(spec, adapter, seen.output),
        score=score,
        output=output,
        score_head=score_head,
        output_head=output_head,
        score_grad=score_grad,
        capture=capture_of,
        attention=lambda images, wanted: attend(adapter, images, wanted, lambda _: [asked] * len(images)),
        other=other,
        stages=all_stages,
        toward=toward_score,
        curvature=curvature,
        parts=lambda: decompose(adapter, x, asked),
        steps=steps(batch),
        head_steps=steps(head_batch),
    )


@contextmanager
def _second_order(name: str) -> Iterator[None]:
    try:
        yield
    except (SightlineError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise ModelError(f"no second derivative can be taken through the head of {name}: {error}") from error


def _fitting(memory_mb: float, one: Tensor, factor: int, most: int) -> int:
    """How many go into one forward."""
    size = one[0].numel() * one.element_size() * factor
    return int(max(1, min(most, memory_mb * 1e6 / size)))


def _by_batch(module: nn.Module) -> bool:
    """Whether what it says of one image depends on the others, also in evaluation mode."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def _joined(parts: list[Capture]) -> Capture:
    tensors: dict[str, Any] = {
        name: torch.cat([getattr(one, name) for one in parts])
        for name in ("input", "activations", "gradients", "scores")
        if getattr(parts[0], name) is not None
    }
    finite = tuple(
        (stage, torch.cat([one.finite[at][1] for one in parts])) for at, (stage, _) in enumerate(parts[0].finite)
    )
    return dataclasses.replace(parts[0], **tensors, finite=finite)
