"""The score taken apart into what the picture and what each bias of the network adds to it (the full gradient)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline._quiet import quiet
from sightline.engine.asked import Asked
from sightline.engine.targets import NO_GRADIENT, score_of
from sightline.errors import ModelError, TargetError
from sightline.models.adapter import Adapter
from sightline.models.twin import isolated, twin

# F(t x) = t F(x) for t > 0: no bias of their own.
_HOMOGENEOUS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Parts:
    """score = sum(image) + sum of all biases + what could not be taken apart (functions outside of modules, modules of several inputs).

    Attributes:
        score: of the one image.
        image: gradient times input, (C, H, W).
        biases: gradient times bias at the output of each module that has one: (C, h, w) where it is a grid.
    """

    score: float
    image: Tensor
    biases: tuple[Tensor, ...]

    @property
    def missing(self) -> float:
        """The part of the score that was not taken apart."""
        return self.score - float(self.image.double().sum()) - sum(float(one.double().sum()) for one in self.biases)


def decompose(adapter: Adapter, x: Tensor, asked: Asked) -> Parts:
    """Takes the score of x (1, C, H, W) apart; costs two forwards and one backward through the whole model.

    The bias of a module F at input u is F(u) - J u, with J its derivative there: an added constant for a convolution or
    normalisation, the implicit bias for an activation that bends. Euler: what has none of either is its own derivative.

    Source: Srinivas and Fleuret 2019, arXiv:1905.00780.
    """
    units = _units(adapter.module)
    kept: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(unit: nn.Module) -> Any:
        def hook(_module: Any, args: Any, output: Any) -> Any:
            if (
                not isinstance(output, Tensor)
                or not output.requires_grad
                or len(args) != 1
                or not isinstance(args[0], Tensor)
                or not args[0].is_floating_point()  # numbers of words
            ):
                return output  # counted as missing
            kept.append((unit, args[0].detach(), output))
            return output.clone()  # what follows may work in place

        return hook

    stand_in = twin(adapter.module, {name: keep(unit) for name, unit in units.items()})
    own = {id(module) for module in adapter.module.modules()}
    for module in stand_in.modules():
        if id(module) not in own and getattr(module, "inplace", False):
            module.__dict__["inplace"] = False  # of the copy: what a module was given must still be there for its bias
    with isolated(x), torch.enable_grad():
        leaf = x.detach().clone(memory_format=adapter.memory_format).requires_grad_()
        try:
            score = score_of([asked], adapter.logits(stand_in(leaf)), 1)
            if not score.requires_grad:
                raise TargetError(NO_GRADIENT)
            gradients = torch.autograd.grad(score.sum(), [leaf, *(output for _, _, output in kept)], allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(f"no gradient can be taken through all of {adapter.name}: {error}") from error
    biases = []
    for (unit, given, output), gradient in zip(kept, gradients[1:], strict=True):
        if gradient is None or isinstance(unit, _HOMOGENEOUS):
            continue
        bias = _bias(unit, given, output.detach())
        if bias is not None:
            biases.append((bias * gradient)[0].detach())
    first = torch.zeros_like(x[0]) if gradients[0] is None else (gradients[0] * x)[0].detach()
    return Parts(float(score.detach()), first, tuple(biases))


def _units(model: nn.Module) -> dict[str, nn.Module]:
    """The modules taken as a whole: those without children, and those that compute with parameters of their own."""
    found: dict[str, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> None:
        own = next(module.parameters(recurse=False), None) is not None
        if name and (own or not any(True for _ in module.children())):
            found[name] = module
            return
        for child, inside in module.named_children():
            visit(f"{name}.{child}" if name else child, inside)

    visit("", model)
    return found


def _bias(unit: nn.Module, given: Tensor, output: Tensor) -> Tensor | None:
    """F(u) - J u, by forward-mode differentiation; None where torch can't."""
    still = twin(unit, {})
    with isolated(given), torch.no_grad(), quiet():  # torch.func warns of its own insides
        try:
            moved = torch.func.jvp(lambda one: still(one.clone()), (given,), (given,))[1]
        except (RuntimeError, NotImplementedError):
            return None
    return output - moved if isinstance(moved, Tensor) else None
