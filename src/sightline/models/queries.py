"""Detectors and segmentations of transformers that answer with queries, in the form of torchvision's detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sightline.models.called import called

# Whose last class is "nothing here", against which the others are weighed; of the rest each class has a probability of its own.
_WITH_NOTHING = ("detr", "yolos", "table-transformer", "maskformer", "mask2former", "eomt", "eomt_dinov3")
BOXES = (
    *("detr", "yolos", "table-transformer", "conditional_detr", "deformable_detr", "dab-detr"),
    *("rt_detr", "rt_detr_v2", "d_fine", "lw_detr", "rf_detr"),
)
MASKS = ("maskformer", "mask2former", "eomt", "eomt_dinov3")


def finding(module: nn.Module, model_type: str) -> nn.Module:
    """The module, called with pixel values alone, giving a list with boxes, labels, scores and probabilities of each picture.

    As their own post-processing reads them: a softmax whose last class is left out, or a sigmoid each; boxes are middle and
    size in shares of the input. Of masks the box is drawn round what is above 0.5, and the score is that of the class times the
    mask's mean there.
    """
    nothing = model_type in _WITH_NOTHING

    def boxes(_self: nn.Module, forward: Any, x: Tensor) -> list[dict[str, Tensor]]:
        output = forward(x)
        size = torch.tensor([x.shape[-1], x.shape[-2]] * 2).to(output.pred_boxes)
        found = []
        for logits, places in zip(output.logits, output.pred_boxes, strict=True):
            middle, half = places[:, :2], places[:, 2:] / 2
            found.append(
                {"boxes": torch.cat([middle - half, middle + half], dim=1) * size, **_classes(logits, nothing)}
            )
        return found

    def masks(_self: nn.Module, forward: Any, x: Tensor) -> list[dict[str, Tensor]]:
        output = forward(x)
        found = []
        for logits, drawn in zip(output.class_queries_logits, output.masks_queries_logits, strict=True):
            own, said = drawn.sigmoid(), _classes(logits, nothing)
            inside = (own > 0.5).to(own)
            sure = (own * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
            said["scores"] = said["scores"] * sure
            found.append({"boxes": _round(inside, x), "masks": own, **said})
        return found

    return called(module, masks if model_type in MASKS else boxes)


def _classes(logits: Tensor, nothing: bool) -> dict[str, Tensor]:
    """Labels, scores, each class's probability, and that of all together where "nothing" is one."""
    if not nothing:
        shares = logits.sigmoid()
        scores, labels = shares.max(dim=1)
        return {"scores": scores, "labels": labels, "probabilities": shares}
    shares = logits.softmax(dim=1)
    scores, labels = shares[:, :-1].max(dim=1)
    return {"scores": scores, "labels": labels, "probabilities": shares[:, :-1], "objectness": 1 - shares[:, -1]}


def _round(inside: Tensor, x: Tensor) -> Tensor:
    """The box (Q, 4) round each mask (Q, h, w), in pixels of the input; empty where a mask is."""
    count, h, w = inside.shape
    found = inside.new_zeros(count, 4)
    for axis, cells, side in ((0, w, x.shape[-1]), (1, h, x.shape[-2])):
        lies = inside.any(dim=1 if axis == 0 else 2)
        at = torch.arange(cells, device=inside.device)
        first = torch.where(lies, at, cells).amin(dim=1)
        last = torch.where(lies, at, -1).amax(dim=1) + 1
        found[:, axis] = torch.minimum(first, last) * side / cells
        found[:, axis + 2] = last * side / cells
    return found
