"""Draws docs/images/transformer.jpg: the maps of two small transformers, trained on drawn scenes as in the tests.

python docs/transformer_figure.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sightline

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "methods")]

from test_planted_transformer import train  # noqa: E402

from sightline.testing.scenes import SIDE, draw  # noqa: E402

METHODS = ["grad-cam", "hires-cam", "layer-cam", "attention-rollout", "attention-grad", "le-grad", "eigen-cam"]
COLOURS = ("red", "green", "blue", "yellow")


def preprocess(photo: Image.Image) -> Tensor:
    values = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1) * 2 - 1


if __name__ == "__main__":
    scenes = draw(12, seed=9)
    which = int((scenes.classes == 2).nonzero()[0][0])
    photo = Image.fromarray((scenes.pictures[which].transpose(1, 2, 0) * 255).round().astype(np.uint8))
    photo = photo.resize((SIDE * 8, SIDE * 8), Image.Resampling.NEAREST)
    sheets = []
    for kind in ("class token", "pooled"):
        adapter = sightline.adapt(train(kind), preprocess=preprocess, labels=COLOURS, name=f"a small ViT, {kind}")
        maps = sightline.compare(photo, adapter, methods=METHODS, targets=[int(scenes.classes[which])])
        sheets.append(sightline.side_by_side(maps))
    whole = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)), "white")
    top = 0
    for one in sheets:
        whole.paste(one, (0, top))
        top += one.height
    whole = whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS)
    whole.save(HERE / "images" / "transformer.jpg", quality=88)
