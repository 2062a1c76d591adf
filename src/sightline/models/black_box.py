"""`BlackBox`: a model that can't be looked into, as a module: pictures go in, scores come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.errors import ModelError, NonFiniteError


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Slots lead nowhere, so that no stand-in copies what the function keeps."""

    function: Callable[[Tensor], Any]


class BlackBox(nn.Module):
    """Asks a function, without a graph, and checks what it says; whether threads may ask it at once is its own matter.

    Args:
        function: pictures (N, C, H, W) -> scores (N, K) or (N,), as a tensor, an array or a list.
        name: what to call it in messages.
    """

    def __init__(self, function: Callable[[Tensor], Any], name: str) -> None:
        super().__init__()
        self.held = _Held(function)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, C, H, W) -> scores (N, K), where the pictures are and in their type."""
        with torch.no_grad():
            scores = _as_tensor(self.held.function(x.detach()), self.name).to(x)
        if scores.dim() == 1:
            scores = scores[:, None]
        if scores.dim() != 2 or len(scores) != len(x) or scores.shape[1] == 0:
            raise ModelError(
                f"{self.name} gave scores of shape {tuple(scores.shape)} for {len(x)} pictures; expected ({len(x)}, classes)"
            )
        good = scores.isfinite().all(dim=1)
        if not bool(good.all()):
            raise NonFiniteError(
                f"NaN or infinity in the scores that {self.name} gave: for {int((~good).sum())} of {len(x)} pictures"
            )
        return scores


def _as_tensor(scores: Any, name: str) -> Tensor:
    if not isinstance(scores, Tensor):
        try:
            found = np.asarray(scores)
        except (ValueError, TypeError):  # rows of different lengths
            found = np.asarray(None)
        if found.dtype.kind not in "fiub":
            raise ModelError(
                f"{name} gave {type(scores).__name__}, which is no table of numbers; expected scores (N, classes), as a tensor, an array or a list"
            )
        return torch.from_numpy(found.astype(np.float64))
    if scores.is_complex():
        raise ModelError(f"{name} gave complex numbers; expected one real score for each class")
    return scores
