"""Linear layers whose backward asks for the input's gradient alone, and only where there is one.

Behind the last attention of a transformer one token of hundreds has a gradient, and torch multiplies the zeros of all others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lean(stand_in: nn.Module) -> nn.Module:
    """Exchanges the forward of every plain linear layer of a stand-in; values and gradients stay the same up to rounding."""
    for module in stand_in.modules():
        if type(module) is nn.Linear and "forward" not in module.__dict__:
            module.__dict__["forward"] = partial(_linear, module)
    return stand_in


def _linear(module: nn.Linear, given: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    if not torch.is_grad_enabled() or not given.requires_grad or given.dim() < 3:
        return F.linear(given, weight, bias)
    # Weights that were computed have a gradient to pass on; autocast and functorch have ways of their own.
    made = any(one is not None and one.grad_fn is not None for one in (weight, bias))
    if made or given.dtype != weight.dtype or torch.is_autocast_enabled(given.device.type) or _is_functorch(given):
        return F.linear(given, weight, bias)
    found: Tensor = _Rows.apply(given, weight, bias)
    return found


def _is_functorch(given: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(given))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(given, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        if gradient.device.type != "cpu" or torch.is_grad_enabled():
            # Elsewhere counting would make the device wait; and a row of 0 may have a derivative itself.
            return gradient @ weight, None, None
        flat = gradient.reshape(-1, gradient.shape[-1])
        rows = flat.detach().any(dim=1).nonzero()[:, 0]
        if 2 * len(rows) > len(flat):
            return gradient @ weight, None, None
        found = flat.new_zeros(len(flat), weight.shape[1]).index_copy(0, rows, flat[rows] @ weight)
        return found.reshape(*gradient.shape[:-1], -1), None, None
