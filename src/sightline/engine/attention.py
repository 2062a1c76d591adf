"""`attend`: one forward; what every attention of a transformer said, and what the score has to do with it.

Attention is usually computed in one fused step that keeps no probabilities. For the call, on this thread alone, that step
is taken apart: whatever asks torch for `scaled_dot_product_attention` or a softmax over keys is seen, and nothing has to be
put back.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sightline.engine.asked import Asked
from sightline.engine.capture import check_input, fed, finite_images
from sightline.engine.lean import lean
from sightline.engine.targets import NO_GRADIENT, score_of
from sightline.errors import MethodError, ModelError, TargetError
from sightline.models.adapter import Adapter
from sightline.models.grids import Layout, mixed
from sightline.models.layers import layout
from sightline.models.outputs import only_grid, tensors_of, with_grid
from sightline.models.twin import isolated, twin

# What of the score is wanted beside the probabilities: nothing, its gradient, or that of each block's own score.
Wanted = Literal["attention", "attention-gradients", "block-gradients"]
WANTED: tuple[Wanted, ...] = get_args(Wanted)
INSTEAD = "These work here: grad-cam, hires-cam, eigen-cam"


@dataclass(frozen=True, eq=False)
class AttentionCapture:
    """What the attentions of a transformer said in one forward pass, first block first.

    Attributes:
        layers: where each attention was computed.
        probabilities: of each, (B, heads, T, T): how much token i takes from token j; rows sum to 1.
        layout: where the places lie among the T tokens.
        read: (B, T) which tokens the output reads behind the last block, as shares that sum to 1: of the class token and its like
            as much as their gradient says, the rest evenly over the patches that are read.
        input: what was fed in, (B, C, H, W).
        output: what the model returned, as `Adapter.logits` gives it.
        gradients: d score / d probabilities of each; for "block-gradients" each block's own score takes the score's place:
            what the end of the model says of the mean of that block's tokens. None where not asked for.
        scores: the target's score of each image, (B,); None where not asked for.
        finite: (stage, which images are free of NaN and infinity there (B,)).
        notes: what the method has to say about its result is appended here.
        where: the attentions that it looked at, when not at all of them.
    """

    layers: tuple[str, ...]
    probabilities: tuple[Tensor, ...]
    layout: Layout
    read: Tensor
    input: Tensor
    output: Any
    gradients: tuple[Tensor, ...] | None = None
    scores: Tensor | None = None
    finite: tuple[tuple[str, Tensor], ...] = ()
    notes: list[str] = field(default_factory=list)
    where: list[str] = field(default_factory=list)

    def to_grid(self, tokens: Tensor) -> Tensor:
        """The places' part of one value a token, (B, T) -> (B, h, w)."""
        before, after = self.layout.before, self.layout.after
        return tokens[:, before : tokens.shape[1] - after].reshape(len(tokens), *self.layout.size)


@dataclass(frozen=True)
class _Plan:
    """Where a model computes its attentions, found by one run for a size of the input."""

    layers: tuple[str, ...]
    blocks: tuple[str, ...]
    layout: Layout
    flat: bool


_PLANS: WeakKeyDictionary[nn.Module, dict[Any, _Plan]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def attend(
    adapter: Adapter, x: Tensor, wanted: Wanted, ask: Callable[[Any], Sequence[Asked]] | None = None
) -> AttentionCapture:
    """Runs the model once on x (B, C, H, W) and keeps its attentions.

    Args:
        adapter: the model.
        x: the input.
        wanted: what of the score is wanted; without gradients no graph is kept.
        ask: from the model's output to one target an image; needed for gradients, and gives the scores.

    Raises:
        MethodError: the model has no attention that can be reached, or none that spans the picture; the message says which.
        ModelError: the model failed on this input.
        TargetError: the score has no gradient.
    """
    check_input(x)
    x = x.detach()
    with isolated(x):
        plan = _plan(adapter, x)
        if plan.flat and len(x) > 1:  # heads and images in one axis, in an order that only the model knows
            alone = [attend(adapter, x[at : at + 1], wanted, _only(ask, at, len(x))) for at in range(len(x))]
            return _joined(alone)
        seen = _Seen(adapter, plan, wanted, len(x))
        output = seen.run(x)
        found = tuple(seen.probabilities)
        read = seen.read(output[-len(x) :] if wanted == "block-gradients" else output)
        gradients: tuple[Tensor, ...] | None = None
        scores = None
        if ask is not None:
            with torch.enable_grad():
                last = output[-len(x) :] if wanted == "block-gradients" else output
                asked = ask(last)
                scores = score_of(asked, last, len(x))
                if wanted == "attention-gradients":
                    gradients = _gradients(scores, found, plan.layers)
                elif wanted == "block-gradients":
                    own = [score_of(asked, part, len(x)) for part in output[: -len(x)].split(len(x))]
                    gradients = _gradients(torch.cat(own), found, plan.layers)
                output = last
    finite = [("the input", finite_images(x))]
    finite += [(f"the attention of {name!r}", finite_images(one)) for name, one in zip(plan.layers, found, strict=True)]
    if scores is not None:
        finite.append(("the score", finite_images(scores)))
    for name, one in zip(plan.layers, gradients or (), strict=False):
        finite.append((f"the gradients of the attention of {name!r}", finite_images(one)))
    return AttentionCapture(
        layers=plan.layers,
        probabilities=tuple(one.detach() for one in found),
        layout=plan.layout,
        read=read.to(x.dtype),
        input=x,
        output=output.detach() if isinstance(output, Tensor) else output,
        gradients=gradients,
        scores=scores.detach() if scores is not None else None,
        finite=tuple(finite),
    )


def _only(ask: Callable[[Any], Sequence[Asked]] | None, at: int, batch: int) -> Callable[[Any], Sequence[Asked]] | None:
    """The same question about one image: its own target, where each has one."""
    if ask is None:
        return None

    def asked(output: Any) -> Sequence[Asked]:
        return [ask(output.expand(batch, *output.shape[1:]) if isinstance(output, Tensor) else output)[at]]

    return asked


def _joined(alone: Sequence[AttentionCapture]) -> AttentionCapture:
    first = alone[0]

    def together(name: str) -> Any:
        parts = [getattr(one, name) for one in alone]
        if parts[0] is None:
            return None
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(each) for each in zip(*parts, strict=True))
        return torch.cat(parts)

    names = ("probabilities", "read", "input", "gradients", "scores")
    finite = tuple(
        (stage, torch.cat([one.finite[at][1] for one in alone])) for at, (stage, _) in enumerate(first.finite)
    )
    output = together("output") if isinstance(first.output, Tensor) else first.output
    return dataclasses.replace(first, **{name: together(name) for name in names}, finite=finite, output=output)


def _gradients(scores: Tensor, found: Sequence[Tensor], names: Sequence[str]) -> tuple[Tensor, ...]:
    if not scores.requires_grad:
        raise TargetError(NO_GRADIENT)
    try:
        slopes = torch.autograd.grad(scores.sum(), found, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ModelError(f"no gradient can be taken back to the attentions: {error}") from error
    cut = next((name for name, slope in zip(names, slopes, strict=True) if slope is None), None)
    if cut is not None:
        raise ModelError(
            f"the score does not depend on the attention of {cut!r}: the model cuts the graph behind it (detach, no_grad, gradient "
            "checkpointing), or throws its result away"
        )
    return tuple(slopes)


class InSteps(TorchFunctionMode):
    """Attention in steps, on this thread: `see(probabilities)` is given those of every attention, and returns what goes on."""

    def __init__(self, see: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.see = see
        known = {"scaled_dot_product_attention": self.fused, "softmax": self.softmax, "has_torch_function": _none}
        original = F.multi_head_attention_forward
        # The same code, but with our two steps in place of torch's.
        self.multi_head = FunctionType(
            original.__code__, {**vars(F), **known}, original.__name__, original.__defaults__, original.__closure__
        )
        self.multi_head.__kwdefaults__ = original.__kwdefaults__

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.fused(*args, **given)
        if func is F.multi_head_attention_forward:
            return self.multi_head(*args, **given)
        if func in (torch.softmax, Tensor.softmax, F.softmax):
            return self.softmax(*args, **given)
        return func(*args, **given)

    def softmax(self, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
        kinds = [one for one in (*args, kwargs.get("dtype")) if isinstance(one, torch.dtype)]
        found = torch.softmax(input, -1 if dim is None else dim, dtype=kinds[0] if kinds else None)
        last = dim in (-1, input.dim() - 1)
        square = input.dim() >= 3 and input.shape[-1] == input.shape[-2] > 1
        return self.see(found) if last and (square or (input.dim() == 4 and input.shape[-1] > 1)) else found

    def fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What `scaled_dot_product_attention` computes, by its own documentation."""
        if enable_gqa:
            key, value = (one.repeat_interleave(query.shape[-3] // one.shape[-3], dim=-3) for one in (key, value))
        weights = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if is_causal:
            ahead = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).triu(1)
            weights = weights.masked_fill(ahead, float("-inf"))
        if attn_mask is not None:
            is_mask = attn_mask.dtype == torch.bool
            weights = weights.masked_fill(~attn_mask, float("-inf")) if is_mask else weights + attn_mask
            nowhere = (weights == float("-inf")).all(dim=-1, keepdim=True)
            weights = weights.masked_fill(nowhere, 0).softmax(dim=-1).masked_fill(nowhere, 0)
        else:
            weights = weights.softmax(dim=-1)
        found = self.see(weights)
        return (F.dropout(found, dropout_p) if dropout_p else found) @ value


def _none(*_: Any) -> bool:
    return False


class _Seen:
    """One run of a model whose plan is known."""

    def __init__(self, adapter: Adapter, plan: _Plan, wanted: Wanted, batch: int) -> None:
        self.adapter, self.plan, self.wanted, self.batch = adapter, plan, wanted, batch
        self.probabilities: list[Tensor] = []
        self.means: list[Tensor] = []
        self.last: Tensor | None = None

    def run(self, x: Tensor) -> Any:
        by_block = self.wanted == "block-gradients"
        hooks = (
            dict.fromkeys(self.plan.blocks, self.after_block) if by_block else {self.plan.blocks[-1]: self.after_last}
        )
        stand_in = lean(twin(self.adapter.module, hooks))
        with torch.no_grad(), InSteps(self.see):
            output = fed(self.adapter, stand_in, x.clone(memory_format=self.adapter.memory_format))
        if len(self.probabilities) != len(self.plan.layers):
            raise ModelError(
                f"{self.adapter.name} computed {len(self.probabilities)} attentions, and {len(self.plan.layers)} when it was looked at first"
            )
        if self.wanted == "block-gradients" and not (
            isinstance(output, Tensor) and len(output) == self.batch * (len(self.plan.blocks) + 1)
        ):
            raise ModelError(
                f"the end of {self.adapter.name} does not take the tokens of all its blocks at once, so that they get no score of their own"
            )
        return output

    def see(self, found: Tensor) -> Tensor:
        tokens = self.plan.layout.size[0] * self.plan.layout.size[1] + self.plan.layout.extra
        if found.shape[-1] != tokens or found.shape[-2] != tokens:
            raise ModelError(
                f"an attention of {self.adapter.name} is between {found.shape[-2]} and {found.shape[-1]} tokens, and was between {tokens} when it was "
                "looked at first: their number depends on the picture"
            )
        if found.dim() == 3:  # heads beside the one image
            return self.kept(found.reshape(self.batch, -1, *found.shape[1:])).flatten(0, 1)
        return self.kept(found)

    def kept(self, found: Tensor) -> Tensor:
        if self.wanted != "attention" and not found.requires_grad:
            found = found.detach().requires_grad_()
            torch.set_grad_enabled(True)  # until the end of the block, or of the run
        self.probabilities.append(found)
        return found

    def after_last(self, _module: Any, _args: Any, output: Any) -> Any:
        """What the output reads is asked of the last block's tokens; where there is no graph yet, it begins there."""
        tokens = only_grid(output)
        if tokens is None:
            raise ModelError(f"a block of {self.adapter.name} returns no tokens")
        if tokens.requires_grad and torch.is_grad_enabled():
            self.last = tokens
            return output
        self.last = tokens.detach().requires_grad_()
        torch.set_grad_enabled(True)  # until the end of the run
        return with_grid(output, self.last.clone())

    def read(self, output: Any) -> Tensor:
        """(B, T): how much of what the output reads each token is."""
        parts = [one for one in tensors_of(output) if one.requires_grad]
        found = None
        if parts and self.last is not None:
            with torch.enable_grad():
                (found,) = torch.autograd.grad(mixed(parts), self.last, retain_graph=True, allow_unused=True)
        if found is None:
            raise ModelError(f"what {self.adapter.name} returns has no gradient to the tokens of its last block")
        places = self.plan.layout
        felt = places.places(found).double().abs().sum(dim=2)
        felt = torch.where(felt > 1e-3 * felt.amax(dim=1, keepdim=True), felt, 0)
        inside = slice(places.before, felt.shape[1] - places.after)
        which = (felt[:, inside] > 0).double()
        even = felt[:, inside].sum(dim=1, keepdim=True) * which / which.sum(dim=1, keepdim=True).clamp(min=1)
        shares = torch.cat([felt[:, : inside.start], even, felt[:, inside.stop :]], dim=1)
        return shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-300)

    def after_block(self, _module: Any, _args: Any, output: Any) -> Any:
        """Ends the graph behind each block; behind the last, the model's end is given the mean of every block's tokens."""
        tokens = only_grid(output)
        if tokens is None:
            raise ModelError(f"a block of {self.adapter.name} returns no tokens")
        first = self.plan.layout.kind == "tokens first"
        axis = 0 if first else 1
        self.means.append(tokens.mean(dim=axis, keepdim=True))
        if len(self.means) < len(self.plan.blocks):
            torch.set_grad_enabled(False)
            return with_grid(output, tokens.detach())
        self.last = tokens.detach().requires_grad_()
        every = torch.cat([*(one.expand_as(tokens) for one in self.means), self.last], dim=1 - axis)
        return with_grid(output, every)


def _plan(adapter: Adapter, x: Tensor) -> _Plan:
    with _LOCK:
        known = _PLANS.setdefault(adapter.module, {})
    key = (tuple(x.shape[2:]), adapter.grid)
    if key not in known or not {name for name, _ in adapter.module.named_modules()}.issuperset(known[key].blocks):
        known[key] = _looked_at(adapter, x[:1])
    return known[key]


def _looked_at(adapter: Adapter, x: Tensor) -> _Plan:
    """Where attentions are computed, in which blocks, on which tokens; refuses what none of the methods is defined for."""
    running: list[str] = []
    runs: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    outputs: dict[str, Tensor] = {}

    def see(found: Tensor) -> Tensor:
        runs.append((tuple(running), tuple(found.shape)))
        return found

    def leave(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            running.pop()
            tokens = only_grid(output)
            if tokens is not None:
                outputs[name] = tokens.detach()

        return hook

    names = [name for name, _ in adapter.module.named_modules() if name]
    stand_in = twin(adapter.module, {name: leave(name) for name in names})
    for name in names:
        stand_in.get_submodule(name).register_forward_pre_hook(lambda _module, _args, name=name: running.append(name))
    with torch.no_grad(), InSteps(see):
        fed(adapter, stand_in, x.clone(memory_format=adapter.memory_format))
    if not runs:
        raise MethodError(
            f"{adapter.name} computes no attention, or none that goes through torch's softmax or "
            f"scaled_dot_product_attention, and so none can be shown. {INSTEAD}"
        )
    _check_shapes(adapter.name, runs)
    tokens = runs[0][1][-1]
    stacks = [stack for stack, _ in runs]
    # The modules around all attentions; what each stands in, one step further in, is its block.
    levels = [len(set(level)) == 1 for level in zip(*stacks, strict=False)]
    shared = levels.index(False) if False in levels else max(len(stacks[0]) - 2, 0)
    blocks = tuple(stack[min(shared, len(stack) - 1)] for stack in stacks)
    _check_blocks(adapter, blocks)
    last = blocks[-1]
    form = layout(adapter.module, x, last, outputs[last], adapter.logits, adapter.grid) if last in outputs else None
    if form is None or not form.kind.startswith("tokens") or form.size[0] * form.size[1] + form.extra != tokens:
        raise MethodError(
            f"the attentions of {adapter.name} are between {tokens} tokens each, and no such tokens lie on a grid behind {last!r}: "
            "they are windows, channels, or in another order. Which layers can be shown: sightline layers MODEL"
        )
    return _Plan(tuple(stack[-1] for stack in stacks), blocks, form, any(len(shape) == 3 for _, shape in runs))


def _check_blocks(adapter: Adapter, blocks: Sequence[str]) -> None:
    """Each block must have one attention, and each block like them, too: else the chain from block to block isn't the model's."""
    if len(set(blocks)) < len(blocks):
        twice = next(one for one in blocks if list(blocks).count(one) > 1)
        raise MethodError(
            f"{adapter.name} computes several attentions, or softmaxes of that shape, within {twice!r}; which follows which can't be told, and "
            f"rollout, attention-grad and le-grad are defined for one a block. {INSTEAD}"
        )
    modules = dict(adapter.module.named_modules())
    above = {one.rpartition(".")[0] for one in blocks}
    kinds = {type(modules[one]) for one in blocks}
    for name, module in modules.items():
        if name and name.rpartition(".")[0] in above and type(module) in kinds and name not in blocks:
            raise MethodError(
                f"no attention is seen in {name!r}, though there is one in blocks like it: it isn't computed by torch's softmax or "
                f"scaled_dot_product_attention over keys, or the block doesn't run. {INSTEAD}"
            )


def _check_shapes(name: str, runs: Sequence[tuple[tuple[str, ...], tuple[int, ...]]]) -> None:
    sizes = [shape[-1] for _, shape in runs]
    for stack, shape in runs:
        where = stack[-1] if stack else "the model itself"
        if shape[-1] != shape[-2]:
            raise MethodError(
                f"in {name}, {shape[-2]} tokens attend to {shape[-1]} others at {where!r}; rollout, attention-grad and le-grad are defined "
                f"for attention of all tokens to all. {INSTEAD}"
            )
        if len(shape) > 4 or (len(shape) == 4 and shape[0] != 1):
            raise MethodError(
                f"{name} attends within windows ({shape[-1]} tokens each at {where!r}), so that no attention spans the picture, and "
                f"rollout, attention-grad and le-grad are not defined. {INSTEAD}"
            )
        if shape[-1] != sizes[0]:
            raise MethodError(
                f"{name} attends between {sizes[0]} tokens first and {shape[-1]} at {where!r}; rollout, attention-grad and le-grad are "
                f"defined where the number of tokens stays. {INSTEAD}"
            )
