"""`Probe`: permission to ask the model again, for methods and metrics that need more than one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.engine.capture import check_input, isolated
from sightline.engine.targets import Asked, score_of
from sightline.errors import ModelError, SightlineError, TargetError
from sightline.models.adapter import Adapter
from sightline.models.layers import only_grid
from sightline.models.twin import twin


@dataclass(frozen=True, eq=False)
class Probe:
    """Questions about ONE image and one target.

    Attributes:
        score: images (N, C, H, W) -> scores (N,).
        score_head: what-if outputs of the layer (N, C, h, w) -> scores (N,), with the trunk run once on the image.
        score_grad: images (N, C, H, W) -> (scores (N,), d score / d image (N, C, H, W)).
    """

    score: Callable[[Tensor], Tensor]
    score_head: Callable[[Tensor], Tensor]
    score_grad: Callable[[Tensor], tuple[Tensor, Tensor]]


def probe(adapter: Adapter, x: Tensor, layer: str, asked: Asked, batch: int = 32) -> Probe:
    """Permission to ask `adapter` again about image x (1, C, H, W).

    Args:
        adapter: the model.
        x: the image.
        layer: the layer whose output `score_head` replaces.
        asked: the target.
        batch: how many questions go into one forward.
    """
    check_input(x)
    if len(x) != 1:
        raise ModelError(f"a probe asks about one image, not {len(x)}")
    plain = twin(adapter.module, {})

    def run(model: Any, images: Tensor, count: int) -> Tensor:
        try:
            output = adapter.logits(model(images.clone(memory_format=adapter.memory_format)))
        except (SightlineError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelError(f"{adapter.name} fails on an input of shape {tuple(images.shape)}: {error}") from error
        return score_of([asked] * count, output, count)

    def score(images: Tensor) -> Tensor:
        with isolated(x), torch.no_grad():
            return torch.cat([run(plain, part, len(part)) for part in images.split(batch)])

    def score_head(grids: Tensor) -> Tensor:
        with isolated(x), torch.no_grad():
            return torch.cat([_head(part) for part in grids.split(batch)])

    def _head(grids: Tensor) -> Tensor:
        def replace(_module: Any, _args: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor) or only_grid(output) is None or output.shape[1:] != grids.shape[1:]:
                raise ModelError(
                    f"layer {layer!r} does not give one grid of shape {tuple(grids.shape[1:])}; its output can't be replaced"
                )
            return grids.clone()

        model = twin(adapter.module, {layer: replace})
        try:
            return run(model, x, len(grids))
        except SightlineError:
            # A skip connection that is concatenated doesn't broadcast: give the trunk as many images.
            return run(model, x.expand(len(grids), -1, -1, -1), len(grids))

    def score_grad(images: Tensor) -> tuple[Tensor, Tensor]:
        scores, gradients = [], []
        with isolated(x), torch.enable_grad():
            for part in images.split(batch):
                leaf = part.detach().requires_grad_()
                values = run(plain, leaf, len(part))
                found = torch.autograd.grad(values.sum(), leaf, allow_unused=True) if values.requires_grad else (None,)
                if found[0] is None:
                    raise TargetError(
                        "the score has no gradient: the target or the model cuts the graph (detach, argmax, no_grad)"
                    )
                gradients.append(found[0])
                scores.append(values.detach())
        return torch.cat(scores), torch.cat(gradients)

    return Probe(score, score_head, score_grad)
