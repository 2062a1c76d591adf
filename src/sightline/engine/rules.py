"""Other things than the derivative that a nonlinear layer can hand back, on this thread alone, for the forward it stands round.

Whatever asks torch for an activation is seen, as a module or as a function, in place or not, however often one module runs:
each call has a place of its own in the graph. Nothing is set on the model, so that nothing has to be put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# guided: a ReLU hands on what is positive, where it was open itself. deconvnet: what is positive, wherever.
# rescale: how far the output moved over how far the input moved, between the second half of the batch and the first (DeepLIFT).
Rule = Literal["guided", "deconvnet", "rescale"]

_RELU = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_KINDS: dict[Any, str] = {
    **dict.fromkeys(_RELU, "ReLU"), F.relu6: "ReLU6",
    F.leaky_relu: "LeakyReLU", F.elu: "ELU", F.selu: "SELU", F.celu: "CELU", F.gelu: "GELU", F.silu: "SiLU", F.mish: "Mish",
    F.hardswish: "Hardswish", F.hardsigmoid: "Hardsigmoid", F.hardtanh: "Hardtanh", F.softplus: "Softplus",
    torch.sigmoid: "Sigmoid", Tensor.sigmoid: "Sigmoid", Tensor.sigmoid_: "Sigmoid", torch.tanh: "Tanh", Tensor.tanh: "Tanh",
    Tensor.tanh_: "Tanh", F.softsign: "Softsign", F.logsigmoid: "LogSigmoid", F.prelu: "PReLU", torch.prelu: "PReLU",
    F.threshold: "Threshold", F.glu: "GLU",
    **dict.fromkeys((torch.clamp, torch.clamp_, torch.clip, torch.clip_, Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_), "clamp"),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_), "clamp_min"),
}  # fmt: skip
# What works in place by its name, and the same that doesn't.
_PLAIN: dict[Any, Any] = {
    torch.relu_: torch.relu, Tensor.relu_: torch.relu, Tensor.sigmoid_: torch.sigmoid, Tensor.tanh_: torch.tanh,
    **dict.fromkeys((torch.clamp_, torch.clip_, Tensor.clamp_, Tensor.clip_), torch.clamp),
    **dict.fromkeys((torch.clamp_min_, Tensor.clamp_min_), torch.clamp_min),
}  # fmt: skip
# Where `inplace` can also be given by its place: how many arguments come between the tensor and it.
_INPLACE_LAST: dict[Any, int] = {
    F.relu: 0, F.relu6: 0, F.leaky_relu: 1, F.elu: 1, F.selu: 0, F.celu: 1, F.silu: 0, F.mish: 0, F.hardswish: 0,
    F.hardsigmoid: 0, F.hardtanh: 2, F.threshold: 2,
}  # fmt: skip
_POOLS: dict[Any, tuple[Any, int]] = {
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), (F.max_pool2d, 4)),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), (F.max_pool3d, 5)),
}


class Ruled(TorchFunctionMode):
    """Activations hand back by another rule, for every forward inside of `with`; backward may be run outside.

    Attributes:
        met: how often the rule was applied, by kind of activation.
        left: the same for activations that keep their derivative, because the rule says nothing of them.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.met: dict[str, int] = {}
        self.left: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found: Tensor
        asked, given = kwargs or {}, dict(kwargs or {})
        pool, dimensions = _POOLS.get(func, (None, 0))
        if self.rule == "rescale" and pool and not given.get("return_indices") and _is_batch(args, given, dimensions):
            self._count(self.met, f"MaxPool{dimensions - 2}d")
            return _RescaledPool.apply(args[0] if args else given.pop("input"), pool, args[1:], given)
        kind = _KINDS.get(func)
        if kind is None or not torch.is_grad_enabled():
            return func(*args, **asked)
        x: Tensor = args[0] if args else given.pop("input" if "input" in given else "self")
        rest, in_place = list(args[1:]), given.pop("inplace", False) or func in _PLAIN
        names = _INPLACE_LAST.get(func)
        if names is not None and len(rest) > names:
            in_place = rest.pop() or in_place
        plain, top = _PLAIN.get(func, func), _top(kind, rest, given)
        if not (x.is_floating_point() and x.requires_grad):  # no part of the way from the picture to the score
            return func(*args, **asked)
        if kind == "GLU" and self.rule == "rescale":  # of two values; what it bends is told by what is missing
            return func(*args, **asked)
        if self.rule != "rescale" and top is None:
            self._count(self.left, kind)
            return func(*args, **asked)
        self._count(self.met, kind)
        if self.rule == "rescale":
            found = _Rescaled.apply(x, lambda values: plain(values, *rest, **given))
        else:
            found = _Gated.apply(x, top, self.rule == "guided")
        # Whoever else holds what was worked on in place must see the result, too.
        if in_place:
            x.copy_(found)
            return x
        return found

    @staticmethod
    def _count(counts: dict[str, int], kind: str) -> None:
        counts[kind] = counts.get(kind, 0) + 1


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float, own: bool) -> Tensor:
        ctx.own, ctx.top = own, top
        if top == math.inf:
            found = x.relu()
            if own:
                ctx.save_for_backward(found)  # as a ReLU does itself
            return found
        if own:
            ctx.save_for_backward((x > 0) & (x < top))
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if not ctx.own:
            return gradients[0].clamp(min=0), None, None
        (kept,) = ctx.saved_tensors
        whole = ctx.top == math.inf
        handed = torch.ops.aten.threshold_backward(gradients[0], kept, 0) if whole else gradients[0] * kept
        return handed.clamp_(min=0), None, None


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x.clone())  # which may be written over
        return function(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (both,) = ctx.saved_tensors
        with torch.enable_grad():
            first = _first_half(both).detach().requires_grad_()
            said = ctx.function(first.clone())
            (slope,) = torch.autograd.grad(said.sum(), first)
        second = both[len(first) :]
        moved = first.detach() - second
        with torch.no_grad():
            other = ctx.function(second.clone())
        risen = said.detach() - other
        # Over a step as small as rounding the quotient says nothing, and is the derivative.
        sizes = torch.stack([first.detach(), second, said.detach(), other]).abs().amax(dim=0)
        share = torch.where(moved.abs() > 1000 * torch.finfo(both.dtype).eps * sizes, risen / moved, slope)
        return torch.cat([_first_half(gradients[0]) * share, torch.zeros_like(second)]), None


class _RescaledPool(torch.autograd.Function):
    """What the maximum moved by goes to the place that had it: in the picture, or in the baseline where that was higher."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: Any, rest: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        settings = {**given, "return_indices": True}
        found: Tensor
        found, places = pool(x, *rest, **settings)
        ctx.save_for_backward(x.clone(), places)  # and not what is handed on, which may be worked on in place
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        both, places = (_halves(one) for one in ctx.saved_tensors)
        values = [one.flatten(2) for one in both]
        highest = [one.gather(2, at.flatten(2)) for one, at in zip(values, places, strict=True)]
        risen = highest[0] - highest[1]
        at = torch.where(risen >= 0, places[0].flatten(2), places[1].flatten(2))
        moved = values[0].gather(2, at) - values[1].gather(2, at)
        share = torch.where(moved.abs() > torch.finfo(moved.dtype).tiny, risen / moved, 1)
        handed = torch.zeros_like(both[0]).flatten(2)
        handed.scatter_add_(2, at, _first_half(gradients[0]).flatten(2) * share)
        return torch.cat([handed.reshape(both[0].shape), torch.zeros_like(both[1])]), None, None, None


def _is_batch(args: Any, given: dict[str, Any], dimensions: int) -> bool:
    """Whether a pool works on pictures beside each other, of which half are baselines."""
    x = args[0] if args else given["input"]
    return bool(x.dim() == dimensions and len(x) % 2 == 0 and x.requires_grad and torch.is_grad_enabled())


def _top(kind: str, rest: list[Any], given: dict[str, Any]) -> float | None:
    """Where an activation that is 0 below 0 and its input above stops rising; None for any other."""
    if kind == "ReLU":
        return math.inf
    if kind == "ReLU6":
        return 6.0
    if kind == "Hardtanh":
        low, high = _ends(("min_val", "max_val"), (-1.0, 1.0), rest, given)
    elif kind == "clamp":
        low, high = _ends(("min", "max"), (None, None), rest, given)
    elif kind == "clamp_min":
        low, high = (rest[0] if rest else given.get("min")), None
    elif kind == "Threshold":
        edge, below = _ends(("threshold", "value"), (None, None), rest, given)
        low, high = (0 if edge == below == 0 else None), None
    else:
        return None
    if isinstance(low, Tensor) or isinstance(high, Tensor) or low != 0:
        return None
    return math.inf if high is None else float(high)


def _ends(names: tuple[str, str], default: tuple[Any, Any], rest: list[Any], given: dict[str, Any]) -> list[Any]:
    places = enumerate(zip(names, default, strict=True))
    return [rest[place] if place < len(rest) else given.get(name, otherwise) for place, (name, otherwise) in places]


def _first_half(values: Tensor) -> Tensor:
    return values[: len(values) // 2]


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[: len(values) // 2], values[len(values) // 2 :]
