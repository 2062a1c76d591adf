"""Draws docs/images/ideas-*, the pictures of docs/ideas, from the photographs that are shipped and networks set by hand.

python docs/idea_figures.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from sightline.render.overlay import heat
from sightline.render.panel import Key, Tile, fitted, percent, sheet
from sightline.render.plots import Line, curves
from sightline.testing import both_patches, counts_red, ignores_distractor, looks_left

HERE = Path(__file__).parent
DEMO = Path(sightline.__file__).parent / "data" / "demo"
CAT, COFFEE, ROCKET = (DEMO / f"{name}.jpg" for name in ("cat", "coffee", "rocket"))
SMALL, WIDE = 190, 300  # pixels of a tile's longer side
LAYER = "the last layer with places, bn2"
CUT = "mixing bowl"  # a class with evidence for and against it in the picture of the cup
Array = np.ndarray[Any, Any]


def enlarged(values: Array, scale: float, size: int = SMALL, *, signed: bool = False) -> Image.Image:
    """A grid in colours, its cells to be seen."""
    return heat(values.astype(np.float32), scale, signed=signed).resize((size, size), Image.Resampling.NEAREST)


def kept(photo: Path, target: str | None = None) -> tuple[Any, sightline.Heatmap]:
    """What grad-cam is made of, activations and gradients, and its map: a method may be any function of them."""
    found = []

    def grad_cam(capture: Any) -> Tensor:
        found.append(capture)
        weighted: Tensor = (capture.gradients.mean(dim=(2, 3), keepdim=True) * capture.activations).sum(dim=1)
        return weighted

    heatmap = sightline.explain(photo, method=grad_cam, target=target)
    return found[0], heatmap


def steps() -> dict[str, Image.Image]:
    """Grad-CAM taken apart: `ideas-step-*`."""
    capture, heatmap = kept(COFFEE)
    a, g = (one[0].double().numpy() for one in (capture.activations, capture.gradients))
    weights = g.mean(axis=(1, 2))
    parts = weights[:, None, None] * a
    order = np.argsort(-parts.sum(axis=(1, 2)))
    idle = min(np.nonzero(a.max(axis=(1, 2)) > 3)[0], key=lambda k: abs(weights[k]))
    chosen = [*order[:3], *order[-2:], int(idle)]
    left, top, right, bottom = seen_box(heatmap)
    cropped = heatmap.photo.crop((left, top, right, bottom)).resize((WIDE, WIDE), Image.Resampling.LANCZOS)
    whole = fitted(heatmap.photo, 450)
    picture = sheet(
        [
            [
                Tile(whole, "photograph", f"{heatmap.photo.width} x {heatmap.photo.height} pixels"),
                Tile(cropped, "what the model sees", "the middle, 224 x 224 pixels"),
            ]
        ],
        heading="1. The picture",
        captions=[f"The model says: {heatmap.predictions[0].label}, {percent(heatmap.predictions[0].probability)}."],
        warnings=[],
        keys=[],
    )
    highest = float(a[chosen].max())
    features = sheet(
        [[Tile(enlarged(a[k], highest, 140), f"channel {k}", f"highest {a[k].max():.2f}") for k in chosen]],
        heading="2. Feature maps: what six of 1,280 channels say",
        captions=[f"At {LAYER}: 7 x 7 cells each. The three that raise the score most, the two that lower it most, one that hardly counts."],
        warnings=[],
        keys=[Key(0, highest, "activation")],
    )  # fmt: skip
    early, _ = kept_at("blocks.5")
    e = early.gradients[0].double().numpy()
    busy = np.argsort(-np.abs(e).max(axis=(1, 2)))[:6]
    steep, steep_early = float(np.abs(g[chosen]).max()), float(np.abs(e[busy]).max())
    gradients = sheet(
        [
            [Tile(enlarged(g[k], steep, 140, signed=True), f"channel {k}", f"{g[k].mean():+.2g} everywhere") for k in chosen],
            [Tile(enlarged(e[k], steep_early, 140, signed=True), f"blocks.5, channel {k}", f"from {e[k].min():+.2g} to {e[k].max():+.2g}") for k in busy],
        ],
        heading="3. Gradients: how the score would change if a cell said a little more",
        captions=[
            "Above: the same six channels at the last layer. All places count alike, because the model averages over places and then weighs channels.",
            "Below: six channels of an earlier layer, on a scale of their own. There a channel can raise the score in one place and lower it in another.",
        ],
        warnings=[],
        keys=[Key(-1, 1, "share of the steepest gradient of the row: red raises the score, blue lowers it", signed=True)],
    )  # fmt: skip
    ranked = np.sort(weights)[::-1]
    at = np.arange(1, len(ranked) + 1, dtype=float)
    weighing = curves(
        f"4. Weights: one number a channel, {percent(float(np.mean(ranked > 0)))} of them above 0",
        "channels, the heaviest first",
        "mean of the channel's gradient over all places",
        [Line("weight", at, ranked), Line("0", at, np.zeros_like(ranked), baseline=True)],
        width=620,
    )
    counts = (1, 10, 100, len(weights))
    sums = [parts[order[:count]].sum(axis=0) if count < len(weights) else parts.sum(axis=0) for count in counts]
    ends = float(max(np.abs(one).max() for one in sums))
    names = ["channel that counts most", "first 10", "first 100", f"all {len(weights):,}"]
    adding = sheet(
        [
            [
                Tile(enlarged(one, ends, signed=True), name, f"from {one.min():+.2f} to {one.max():+.2f}")
                for one, name in zip(sums, names, strict=True)
            ]
        ],
        heading="5. The weighted sum: each map times its weight, added up",
        captions=["All four on one scale. The last is what grad-cam computes."],
        warnings=[],
        keys=[Key(-ends, ends, "in units of the score: red raises it, blue lowers it", signed=True)],
    )
    total = sums[-1]
    bowl, _ = kept(COFFEE, CUT)
    other = (bowl.gradients.mean(dim=(2, 3), keepdim=True) * bowl.activations).sum(dim=1)[0].double().numpy()
    far = float(np.abs(other).max())
    cut = sheet(
        [
            [
                Tile(enlarged(total, ends, signed=True), "espresso, the sum", f"from {total.min():+.2f}: nothing to cut"),
                Tile(enlarged(other, far, signed=True), f"{CUT}, the sum", f"from {other.min():+.2f} to {other.max():+.2f}"),
                Tile(enlarged(np.maximum(other, 0), float(other.max())), f"{CUT}, the map", f"from 0 to {other.max():+.2f}"),
            ]
        ],
        heading="6. ReLU: what speaks against is cut",
        captions=[
            f"Of what the model says for and against {CUT}, {percent(float(np.maximum(-other, 0).sum() / np.abs(other).sum()))} was negative and is gone."
        ],
        warnings=[],
        keys=[],
    )  # fmt: skip
    drawn = sightline.explain(COFFEE).overlay()
    over = sheet(
        [
            [
                Tile(enlarged(np.maximum(total, 0), float(total.max()), WIDE), "the map, 7 x 7"),
                Tile(fitted(drawn, 450), "laid on the photograph", "between the middles of cells colours are blended"),
            ]
        ],
        heading="7. The overlay",
        captions=["Hatched: what the model never saw."],
        warnings=[],
        keys=[Key(0, float(total.max()), "in units of the score, per cell")],
    )
    found = {"picture": picture, "features": features, "gradients": gradients, "weights": halved(weighing)}
    return {f"step-{name}": one for name, one in {**found, "sum": adding, "relu": cut, "overlay": over}.items()}


def kept_at(layer: str) -> tuple[Any, sightline.Heatmap]:
    """As `kept`, at another layer."""
    found = []

    def look(capture: Any) -> Tensor:
        found.append(capture)
        total: Tensor = (capture.gradients * capture.activations).sum(dim=1)
        return total

    heatmap = sightline.explain(COFFEE, method=look, layer=layer)
    return found[0], heatmap


def seen_box(heatmap: sightline.Heatmap) -> tuple[int, int, int, int]:
    """The part of the photograph that the model saw."""
    rows, columns = np.nonzero(np.isfinite(heatmap.values))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def halved(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)


def grid() -> Image.Image:
    """What the map knows, and what is drawn."""
    heatmap = sightline.explain(CAT)
    left, top, right, bottom = seen_box(heatmap)
    cropped = heatmap.photo.crop((left, top, right, bottom)).resize((WIDE, WIDE), Image.Resampling.LANCZOS)
    drawn = heatmap.overlay().crop((left, top, right, bottom)).resize((WIDE, WIDE), Image.Resampling.LANCZOS)
    return sheet(
        [
            [
                Tile(cropped, "what the model sees"),
                Tile(enlarged(heatmap.raw, heatmap.scale, WIDE), "what the map knows", "49 values"),
                Tile(drawn, "what is drawn", "colours between the values are guessed"),
            ]
        ],
        heading="A coarse grid",
        captions=["One cell is 32 x 32 pixels of the model's input. No edge in the right picture was found by the model."],
        warnings=[],
        keys=[],
    )  # fmt: skip


def scales() -> Image.Image:
    """A class that the model does not see, stretched and on one scale."""
    maps = sightline.compare(CAT, methods=["grad-cam"], targets=["tiger cat", "espresso"], same_scale=False)
    shared = sightline.share_scale(maps)
    rows = [
        [
            Tile(fitted(one.overlay(), WIDE), one.title(), f"{how}; highest {one.evidence:.3g}, colours end at {one.scale:.3g}")
            for one in each
        ]
        for each, how in ((maps, "its own scale"), (shared, "one scale"))
    ]  # fmt: skip
    return sheet(
        rows,
        heading="The same two maps, twice",
        captions=[
            "Above, each is stretched to its own highest value, and nothing says so. Below, both share one scale."
        ],
        warnings=[],
        keys=[],
    )


def classes() -> Image.Image:
    return sightline.side_by_side(
        sightline.compare(CAT, methods=["grad-cam"], targets=["tiger cat", "Egyptian cat", "great white shark"])
    )


def hidden() -> Image.Image:
    """Grad-CAM and what happens when places are covered, on one picture."""
    return sightline.side_by_side(sightline.compare(CAT, methods=["grad-cam", "occlusion"], targets=[None]))


def mistaken() -> Image.Image:
    return sightline.explain(ROCKET).panel()


def layers() -> Image.Image:
    return sightline.side_by_side(sightline.compare(CAT, layer="all"))


MADE: tuple[Callable[..., Any], ...] = (looks_left, counts_red, both_patches, ignores_distractor)


def by_hand() -> Image.Image:
    """Networks whose truth is known, and what five methods say of them."""
    shown = ("grad-cam", "hires-cam", "eigen-cam", "occlusion", "integrated-gradients")
    rows = []
    for make in MADE:
        made = make()
        x = made.pictures(1, 0)
        photo = Image.fromarray((x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        truth = made.importance(x)[0].numpy()
        tiles = [
            Tile(photo.resize((140, 140), Image.Resampling.NEAREST), make.__name__.replace("_", " "), made.rule),
            Tile(enlarged(truth, float(truth.max()), 140), "truth"),
        ]
        for name in shown:
            found = sightline.attribute(x, made.module, method=name, target=0)[0].clamp(min=0).numpy()
            tiles.append(
                Tile(enlarged(found, max(float(found.max()), 1e-9), 140), name.replace("-gradients", " gradients"))
            )
        rows.append(tiles)
    return sheet(
        rows,
        heading="Four networks set by hand, and what methods say of their class 0",
        captions=["Each map in the shades of its own highest value; only what speaks for the class is shown."],
        warnings=[],
        keys=[],
    )


def forgotten(module: nn.Module, share: float) -> nn.Module:
    """A copy whose upper layers have random weights, with each tensor's own mean and deviation."""
    module, generator = copy.deepcopy(module), torch.Generator().manual_seed(0)
    layers = [one for one in module.modules() if any(True for _ in one.parameters(recurse=False))][::-1]
    for layer in layers[: round(share * len(layers))]:
        for one in layer.parameters(recurse=False):
            one.data = one.mean() + one.std(correction=0) * torch.randn(one.shape, generator=generator)
    return module


def edges() -> Image.Image:
    """Guided backpropagation and grad-cam while the network forgets."""
    model = sightline.load_model()
    tiles: list[list[Tile]] = []
    for method in ("guided-backprop", "grad-cam"):
        row = []
        for share in (0.0, 0.25, 0.5, 1.0):
            forgetful = sightline.adapt(
                forgotten(model.module, share), preprocess=model.preprocess, labels=model.labels, layers=[model.layer]
            )
            found = np.abs(sightline.explain(COFFEE, forgetful, method=method, target="espresso").raw)
            drawn = enlarged(found, max(float(np.quantile(found, 0.995)), 1e-9), 230)
            what = f"{method}, as trained" if share == 0 else f"upper {percent(share)} random"
            row.append(Tile(drawn, what))
        tiles.append(row)
    return sheet(
        tiles,
        heading="What is left when the network forgets",
        captions=[
            "Both methods asked for espresso, while the network's layers get random weights from the output down. "
            "Each map in the shades of its own highest value; the signs are left out."
        ],
        warnings=[],
        keys=[],
    )


def figures() -> dict[str, Image.Image]:
    """Each picture under its name."""
    found = {"grid": grid, "scales": scales, "classes": classes, "hidden": hidden, "mistaken": mistaken}
    more = {"layers": layers, "by-hand": by_hand, "edges": edges}
    return {**steps(), **{name: make() for name, make in {**found, **more}.items()}}


def save(pictures: Sequence[tuple[str, Image.Image]]) -> None:
    for name, picture in pictures:
        width = min(picture.width, 1200)
        small = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        small.save(HERE / "images" / f"ideas-{name}.jpg", quality=82, optimize=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    save(list(figures().items()))
