"""`Probe`: permission to ask the model again, for methods and metrics that need more than one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, cast

import torch
from torch import Tensor, nn

from sightline.data.images import read_image
from sightline.engine.asked import Asked, Target, TargetSpec
from sightline.engine.attention import AttentionCapture, InSteps, Wanted, attend
from sightline.engine.capture import Capture, capture, check_input, fed, joint_of, toward
from sightline.engine.decompose import Parts, decompose
from sightline.engine.rules import Ruled
from sightline.engine.targets import NO_GRADIENT, resolve, score_of, table
from sightline.errors import MethodError, ModelError, NonFiniteError, SightlineError, TargetError
from sightline.models.adapter import Adapter, like_weights
from sightline.models.grids import Layout, volume
from sightline.models.layers import stages
from sightline.models.outputs import only_grid, with_grid
from sightline.models.twin import constant, isolated, twin

# How much larger than its input a network's widest pair of layers is at most (VGG: 43), and than a grid its head's.
# With a graph, what its layers said is kept until the gradient is taken.
PER_IMAGE, _PER_GRID, PER_GRADIENT = 48, 8, 192
MEMORY_MB = 512
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Probe:
    """Questions about ONE image and one target.

    Attributes:
        asked: the target.
        resolve: what a user calls a class -> the class, as for a target.
        score: images (N, C, H, W) -> scores (N,); optionally of another target, in bfloat16, or how `alike` what is found is.
        output: images (N, C, H, W) -> what the model returns for them, logits (N, K).
        score_head: what-if outputs of the layer (N, C, h, w) -> scores (N,), with the trunk run on the one image.
        output_head: the same -> what the model returns, as `Adapter.logits` gives it.
        score_grad: images (N, C, H, W) -> (scores (N,), d score / d image (N, C, H, W)); optionally under
            another rule than the derivative for ReLUs (a `Ruled`).
        multipliers: images and baselines (N, C, H, W) -> (scores, scores of the baselines (N,), DeepLIFT's multipliers (N, C, H, W)).
        picture: a photograph, or its file -> what the model's preprocessing makes of it (1, C, H, W).
        capture: images (N, C, H, W) -> what the layer says to them, with scores and, unless left out, gradients.
        attention: images (N, C, H, W), what is wanted of the score -> what the attentions say to them.
        other: another picture (1, C, H, W) -> its capture with scores, and a probe of it.
        stages: what the last layers of all resolutions say, the finest first, with gradients.
        toward: another score of the same image -> its capture, at the price of the head.
        curvature: target, V (1, C, h, w) -> the target's Hessian at the layer times V, at the price of the head.
        parts: the score taken apart into picture and biases.
        steps: cuts N images into slices that fit into memory (or of a given size), and tells the person who waits how far it is.
        gradient_steps: the same for images whose gradients are asked for.
        head_steps: the same for N grids.
        slices: of a film or volume, how many slices lie below each other in images (N, C, T * H, W); 0 of pictures.
        notes: what the method has to say about its result is appended here.
        details: what there is to see beside the map, by name: arrays, numbers, curves.
    """

    asked: Asked
    resolve: Callable[[TargetSpec], Asked]
    score: Callable[..., Tensor]
    output: Callable[[Tensor], Tensor]
    score_head: Callable[[Tensor], Tensor]
    output_head: Callable[[Tensor], Tensor]
    score_grad: Callable[..., tuple[Tensor, Tensor]]
    multipliers: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    picture: Callable[[Any], Tensor]
    capture: Callable[..., Capture]
    attention: Callable[[Tensor, Wanted], AttentionCapture]
    other: Callable[[Tensor], tuple[Capture, Probe]]
    stages: Callable[[], list[Capture]]
    toward: Callable[[Target], Capture]
    curvature: Callable[[Target, Tensor], Tensor]
    parts: Callable[[], Parts]
    steps: Callable[..., Iterator[slice]]
    gradient_steps: Callable[..., Iterator[slice]]
    head_steps: Callable[..., Iterator[slice]]
    slices: int = 0
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def probe(
    adapter: Adapter,
    seen: Capture,
    asked: Asked,
    *,
    memory_mb: float = MEMORY_MB,
    progress: Progress | None = None,
    budget: Budget | None = None,
    together: Together | None = None,
) -> Probe:
    """Permission to ask `adapter` again about the one image of a capture.

    Args:
        adapter: the model.
        seen: of one image; its layer is the one whose output `score_head` replaces.
        asked: the target.
        memory_mb: what one forward may need above what is there; an estimate from the sizes of input and grid.
        progress: told (done, total) while a method asks many questions.
        budget: how many pictures the model may be shown.
        together: the other targets for which the same pictures will be shown.
    """
    x, layer = seen.input, seen.layer
    form = seen.layout or Layout("maps", (seen.activations.shape[2], seen.activations.shape[3]))
    whole = volume(*x.shape[2:]) if x.dim() == 5 else Layout("maps", (x.shape[2], x.shape[3]))
    check_input(x, volumes=True)
    if len(x) != 1:
        raise ModelError(f"a probe asks about one image, not {len(x)}")
    if not isinstance(memory_mb, int | float) or not memory_mb > 0:
        raise ModelError(f"memory_mb is {memory_mb!r}; expected a number of megabytes above 0")
    plain = twin(adapter.module, {})
    frozen = constant(twin(adapter.module, {}))
    spent = Budget() if budget is None else budget
    calls = 0
    many = False  # whether the model has taken several pictures at once
    apart = any(by_batch(one) for one in adapter.module.modules())
    batch = 1 if apart else fitting(memory_mb, x, PER_IMAGE, 16)
    gradient_batch = 1 if apart else fitting(memory_mb, x, PER_GRADIENT, 16)
    head_batch = 1 if apart else fitting(memory_mb, seen.activations, _PER_GRID, 512)
    live = [seen] if seen.joint is not None else []
    in_steps: list[Capture] = []

    def run(model: Any, images: Tensor) -> Any:
        nonlocal calls, many
        calls += 1
        spent.spend(len(images))
        try:
            as_fed = images.dim() == x.dim()
            given = images.clone(memory_format=adapter.memory_format) if as_fed else whole.from_grid(images, x)
            found = fed(adapter, model, given)
        except (ModelError, NonFiniteError) as error:
            if adapter.black_box:  # which call it was is all that can be known of it
                raise type(error)(f"in call {calls}, with {len(images)} pictures: {error}") from error
            raise
        many = many or len(images) > 1
        return found

    def scored(output: Any, count: int, target: Target | None = None) -> Tensor:
        if isinstance(output, Tensor) and len(output) != count:
            raise ModelError(f"{adapter.name} gave {len(output)} rows for {count} questions")
        return score_of([asked if target is None else Asked(target, None, "")] * count, output, count)

    def in_parts(images: Tensor, then: Callable[[Tensor], Any], size: int | None = None) -> list[Any]:
        """In slices that fit into memory; one by one, from then on, where a model takes no more."""
        nonlocal batch, gradient_batch
        size = min(batch, size or batch)
        try:
            return [then(part) for part in images.split(size)]
        except ModelError:
            if min(size, len(images)) == 1 or many:
                raise
        found = [then(part) for part in images.split(1)]
        batch = gradient_batch = 1
        return found

    def score(images: Tensor, target: Target | None = None, bfloat16: bool = False, alike: bool = False) -> Tensor:
        if together is not None and target is None and not bfloat16:
            return together.scores(asked, images, alike, of_all)
        if alike:
            target = asked.alike or asked.score
        with isolated(x), torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            return torch.cat(in_parts(images, lambda part: scored(run(plain, part), len(part), target).to(x.dtype)))

    def of_all(images: Tensor, targets: Sequence[Target]) -> Tensor:
        def each(part: Tensor) -> Tensor:
            output = run(plain, part)
            return torch.stack([scored(output, len(part), one).to(x.dtype) for one in targets])

        with isolated(x), torch.no_grad():
            return torch.cat(in_parts(images, each), dim=1)

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
                    own.copy_(form.from_grid(part, own))
                    return output
                return with_grid(output, form.from_grid(part, own))

            return then(run(twin(adapter.module, {layer: replace}), given), len(part))

        try:
            return asked_with(x, grids)
        except ModelError:
            # A skip connection that is concatenated doesn't broadcast: give the trunk as many images.
            return torch.cat(in_parts(grids, lambda part: asked_with(x.expand(len(part), *x.shape[1:]), part)))

    def of_pixels(images: Tensor, rule: Ruled | None) -> tuple[Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        with rule or nullcontext():
            output = run(frozen, leaf)
        values = scored(output, len(images))
        try:
            found = torch.autograd.grad(values.sum(), leaf, allow_unused=True) if values.requires_grad else (None,)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"no gradient can be taken back to the picture through {adapter.name}: {error}. Gradient checkpointing and in-place "
                "changes of the output do this; switch them off"
            ) from error
        if found[0] is None:
            raise TargetError(NO_GRADIENT)
        return values.detach(), found[0]

    def score_grad(images: Tensor, rule: Ruled | None = None) -> tuple[Tensor, Tensor]:
        with isolated(x), torch.enable_grad():
            parts = in_parts(images, lambda part: of_pixels(part, rule), gradient_batch)
            scores, gradients = zip(*parts, strict=True)
        return torch.cat(scores), torch.cat(gradients)

    def multipliers(images: Tensor, baselines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def pairs(part: Tensor) -> tuple[Tensor, ...]:
            scores, gradients = of_pixels(part.transpose(0, 1).flatten(0, 1), Ruled("rescale"))
            return (*scores.chunk(2), gradients[: len(part)])

        with isolated(x), torch.enable_grad():
            both = torch.stack([images, baselines], dim=1)
            found = in_parts(both, pairs, max(1, gradient_batch // 2))
        scores, others, shares = (torch.cat(one) for one in zip(*found, strict=True))
        return scores, others, shares

    def picture(photo: Any) -> Tensor:
        if adapter.preprocess is None:
            raise ModelError(
                f"{adapter.name} comes without preprocessing, so that no photograph can be its baseline; give numbers or a tensor"
            )
        return like_weights(adapter.preprocess(read_image(photo)[0])[0][None], adapter.module)

    def capture_of(images: Tensor, gradients: bool = True) -> Capture:
        def one(part: Tensor) -> Capture:
            spent.spend(len(part))
            (found,) = toward(capture(adapter, part, [layer]), [asked] * len(part), gradients)
            return dataclasses.replace(found, output=None, joint=None, latest={})

        found = in_parts(images, one)
        return found[0] if len(found) == 1 else _joined(found)

    def other(picture: Tensor) -> tuple[Capture, Probe]:
        spent.spend(len(picture))
        (one,) = toward(capture(adapter, picture, [layer]), [asked], gradients=False)
        return one, probe(adapter, one, asked, memory_mb=memory_mb, budget=spent)

    def attention(images: Tensor, wanted: Wanted) -> AttentionCapture:
        spent.spend(len(images))
        return attend(adapter, images, wanted, lambda _: [asked] * len(images))

    def parts() -> Parts:
        spent.spend(len(x))
        return decompose(adapter, x, asked)

    def all_stages() -> list[Capture]:
        with isolated(x):
            names = stages(adapter.module, x, adapter.folded, adapter.logits)
        spent.spend(len(x))
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

    def steps(fitting: int, pictures: bool = True) -> Callable[..., Iterator[slice]]:
        def cut(total: int, size: int = fitting) -> Iterator[slice]:
            if pictures and not (together is not None and together.known):
                spent.plan(total)
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
        multipliers=multipliers,
        picture=picture,
        capture=capture_of,
        attention=attention,
        other=other,
        stages=all_stages,
        toward=toward_score,
        curvature=curvature,
        parts=parts,
        steps=steps(batch),
        gradient_steps=steps(gradient_batch),
        head_steps=steps(head_batch, pictures=False),
        slices=whole.depth,
    )


@dataclass(eq=False)
class Together:
    """The targets of one picture for which a method shows the model the same other pictures: these are run once for all.

    Attributes:
        asked: the targets.
        known: the scores (targets, images) of each batch of pictures that was shown.
    """

    asked: Sequence[Asked]
    known: dict[tuple[bytes, bool], Tensor] = field(default_factory=dict)

    def scores(
        self, one: Asked, images: Tensor, alike: bool, run: Callable[[Tensor, Sequence[Target]], Tensor]
    ) -> Tensor:
        """The scores (N,) of one target."""
        pixels = images.detach().contiguous().cpu()
        key = blake2b(cast(Any, pixels.view(torch.uint8).numpy()), digest_size=16).digest(), alike
        if key not in self.known:
            self.known[key] = run(images, [(one.alike if alike else None) or one.score for one in self.asked])
        return self.known[key][next(at for at, each in enumerate(self.asked) if each is one)]


@dataclass
class Budget:
    """How many pictures a model may be shown, and has been.

    Attributes:
        most: the bound; None for none.
        told: called with how many are about to be shown, before the first of them.
        spent: how many were shown.
    """

    most: int | None = None
    told: Callable[[int], None] | None = None
    spent: int = 0

    def plan(self, pictures: int) -> None:
        """Says how many are to come, or refuses before the first."""
        if self.most is not None and self.spent + pictures > self.most:
            before = f" after {self.spent:,} that it has seen" if self.spent else ""
            raise MethodError(
                f"this would show the model {pictures:,} pictures{before}, and at most {self.most:,} were allowed (max_calls); "
                "ask for fewer with the method's options, or allow more"
            )
        if self.told is not None:
            self.told(pictures)

    def spend(self, pictures: int) -> None:
        if self.most is not None and self.spent + pictures > self.most:
            raise MethodError(
                f"stopped: the model has seen {self.spent:,} pictures, and at most {self.most:,} were allowed (max_calls)"
            )
        self.spent += pictures


@contextmanager
def _second_order(name: str) -> Iterator[None]:
    try:
        yield
    except (SightlineError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise ModelError(f"no second derivative can be taken through the head of {name}: {error}") from error


def fitting(memory_mb: float, one: Tensor, factor: int, most: int) -> int:
    """How many go into one forward."""
    size = one[0].numel() * one.element_size() * factor
    return int(max(1, min(most, memory_mb * 1e6 / size)))


def by_batch(module: nn.Module) -> bool:
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
