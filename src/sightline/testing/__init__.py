"""Ground truth that we make ourselves: networks, drawn scenes and planted shortcuts of which it is known what counts.

Nothing is fetched, everything is seeded, and nothing here knows of heat maps: so that it can judge those of any library.
"""

from __future__ import annotations

from sightline.testing.networks import HandMade, both_patches, counts_red, ignores_distractor, looks_left
from sightline.testing.scenes import COLOURS, PARTS, RULES, SIDE, PartScenes, Scenes, compose, draw
from sightline.testing.shortcut import Figures, Marked, Planted, peak_in, plant, spread, train_planted

__all__ = [
    "COLOURS",
    "PARTS",
    "RULES",
    "SIDE",
    "Figures",
    "HandMade",
    "Marked",
    "PartScenes",
    "Planted",
    "Scenes",
    "both_patches",
    "compose",
    "counts_red",
    "draw",
    "ignores_distractor",
    "looks_left",
    "peak_in",
    "plant",
    "spread",
    "train_planted",
]
