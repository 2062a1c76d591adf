"""`BlackBox`: a model that can't be looked into, as a module: pictures go in, scores come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.errors import ModelError, NonFiniteError

# What may stand in what a detector found.
_OF_BOXES = ("boxes", "labels", "scores", "masks", "probabilities", "objectness")


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Slots lead nowhere, so that no stand-in copies what the function keeps."""

    function: Callable[[Tensor], Any]


class BlackBox(nn.Module):
    """Asks a function, without a graph, and checks what it says; whether threads may ask it at once is its own matter.

    Args:
        function: pictures (N, C, H, W) -> scores (N, K) or (N,), as a tensor, an array or a list; logits (N, K, h, w) of pixels;
            or for each picture a mapping of boxes (N, 4), labels (N,) and scores (N,).
        name: what to call it in messages.
    """

    def __init__(self, function: Callable[[Tensor], Any], name: str) -> None:
        super().__init__()
        self.held = _Held(function)
        self.name = name

    def forward(self, x: Tensor) -> Tensor | list[dict[str, Tensor]]:
        """Pictures (N, C, H, W) -> scores (N, K) or (N, K, h, w) where the pictures are and in their type, or what was found in each."""
        with torch.no_grad():
            given = self.held.function(x.detach())
            if isinstance(given, Mapping) and given and all("loss" in str(part) for part in given):
                raise ModelError(
                    f"{self.name} returned losses ({', '.join(map(str, list(given)[:4]))}) and no boxes: its model is in training mode. "
                    "Call model.eval() first"
                )
            if isinstance(given, list | tuple) and given and isinstance(given[0], Mapping):
                return self._boxes(given, x)
            scores = _as_tensor(given, self.name).to(x)
        if scores.dim() == 4 and len(scores) == len(x) and scores.numel():
            return self._finite(scores)
        if scores.dim() == 1:
            scores = scores[:, None]
        if scores.dim() != 2 or len(scores) != len(x) or scores.shape[1] == 0:
            raise ModelError(
                f"{self.name} gave scores of shape {tuple(scores.shape)} for {len(x)} pictures; expected ({len(x)}, classes)"
            )
        return self._finite(scores)

    def _finite(self, scores: Tensor) -> Tensor:
        good = scores.isfinite().flatten(1).all(dim=1)
        if not bool(good.all()):
            raise NonFiniteError(
                f"NaN or infinity in the scores that {self.name} gave: for {int((~good).sum())} of {len(scores)} pictures"
            )
        return scores

    def _boxes(self, given: Sequence[Mapping[str, Any]], x: Tensor) -> list[dict[str, Tensor]]:
        """What a detector found in each picture, as tensors where the pictures are."""
        if len(given) != len(x):
            raise ModelError(f"{self.name} gave boxes of {len(given)} pictures for {len(x)}")
        found = []
        for one in given:
            missing = [part for part in ("boxes", "labels", "scores") if part not in one]
            if missing:
                raise ModelError(
                    f"{self.name} gave a mapping without {' and '.join(missing)}; expected boxes (N, 4) in pixels of the input, labels (N,) and scores (N,)"
                )
            parts = {part: _as_tensor(value, self.name).to(x) for part, value in one.items() if part in _OF_BOXES}
            count = len(parts["scores"]) if parts["scores"].dim() == 1 else -1
            if count == 0:  # an empty list tells no shape
                parts["boxes"] = parts["boxes"].reshape(-1, 4) if parts["boxes"].numel() == 0 else parts["boxes"]
            wrong = [part for part, value in parts.items() if value.dim() == 0 or len(value) != count]
            if wrong or parts["boxes"].shape != (count, 4) or parts["labels"].dim() != 1:
                shapes = ", ".join(f"{part} {tuple(value.shape)}" for part, value in parts.items())
                raise ModelError(f"{self.name} gave {shapes}; expected boxes (N, 4), labels (N,) and scores (N,)")
            if not all(bool(value.isfinite().all()) for value in parts.values()):
                raise NonFiniteError(f"NaN or infinity in the boxes that {self.name} gave")
            found.append({**parts, "labels": parts["labels"].long()})
        return found


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
