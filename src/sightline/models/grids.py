"""Where the places of the picture lie in what a layer returns: inferred from shapes, then found out by running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sightline.models.outputs import only_grid, tensors_of
from sightline.models.twin import isolated, twin

# Tokens that are no places: class, distillation, registers, prompts.
_MOST_EXTRA = 64
# Where the picture is changed, as shares of height and width: spread, and not symmetric.
_PLACES = (
    (0.08, 0.31), (0.27, 0.81), (0.45, 0.07), (0.61, 0.56), (0.79, 0.93), (0.93, 0.18),
    (0.16, 0.62), (0.35, 0.44), (0.53, 0.87), (0.70, 0.24), (0.86, 0.49), (0.03, 0.97),
)  # fmt: skip
# How likely, at most, a layout may fit by chance.
_CHANCE = 1e-5


@dataclass(frozen=True)
class Layout:
    """How a layer's output holds a grid of places.

    Attributes:
        kind: "maps" is (B, C, h, w); "channels last" (B, h, w, C); "tokens" (B, T, C); "tokens first" (T, B, C).
        size: (h, w).
        before: of tokens, how many stand before the places, which follow row by row (class token, registers).
        after: how many stand behind them.
    """

    kind: Literal["maps", "channels last", "tokens", "tokens first"]
    size: tuple[int, int]
    before: int = 0
    after: int = 0

    @property
    def extra(self) -> int:
        """How many tokens are no places."""
        return self.before + self.after

    def to_grid(self, output: Tensor) -> Tensor:
        """The places of a layer's output, (B, C, h, w); a view."""
        if self.kind == "maps":
            return output
        if self.kind == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output.transpose(0, 1) if self.kind == "tokens first" else output
        places = tokens[:, self.before : tokens.shape[1] - self.after]
        return places.reshape(len(places), *self.size, places.shape[2]).permute(0, 3, 1, 2)

    def from_grid(self, grid: Tensor, output: Tensor) -> Tensor:
        """A layer's output with its places exchanged for those of (N, C, h, w); one output serves any N. A new tensor."""
        if self.kind == "maps":
            return grid.clone()
        if self.kind == "channels last":
            return grid.permute(0, 2, 3, 1).contiguous()
        tokens = output.transpose(0, 1) if self.kind == "tokens first" else output
        tokens = tokens.expand(len(grid), -1, -1)
        places = grid.flatten(2).transpose(1, 2)
        parts = [tokens[:, : self.before], places, tokens[:, tokens.shape[1] - self.after :]]
        whole = torch.cat(parts, dim=1)
        return whole.transpose(0, 1).contiguous() if self.kind == "tokens first" else whole

    def places(self, output: Tensor) -> Tensor:
        """(B, T, C): every place, and every token that is none."""
        if self.kind in ("maps", "channels last"):
            return self.to_grid(output).flatten(2).transpose(1, 2)
        return output.transpose(0, 1) if self.kind == "tokens first" else output

    def fits(self, shape: Sequence[int], batch: int) -> bool:
        """Whether an output of this shape can be laid out so."""
        if len(shape) != (4 if self.kind in ("maps", "channels last") else 3):
            return False
        if shape[1 if self.kind == "tokens first" else 0] != batch:
            return False
        if self.kind == "maps":
            return tuple(shape[2:]) == self.size
        if self.kind == "channels last":
            return tuple(shape[1:3]) == self.size
        return shape[0 if self.kind == "tokens first" else 1] == self.size[0] * self.size[1] + self.extra


def grid_of(shape: Sequence[int], input_shape: Sequence[int]) -> tuple[int, int] | None:
    """(h, w) when a (B, C, h, w) output is a picture-like grid of this input, else None.

    Both axes must shrink alike, which tells channels-first grids from most channels-last ones.
    """
    if len(shape) != 4 or shape[0] != input_shape[0] or not _like(shape[2:], input_shape[2:]):
        return None
    return shape[2], shape[3]


def _like(size: Sequence[int], picture: Sequence[int]) -> bool:
    (h, w), (height, width) = size, picture
    if h * w <= 1 or h > height * 2 or w > width * 2:
        return False
    # ceil and floor of repeated halving: each axis may be off by one cell and a little
    return abs(h * width / height - w) <= 1.5 + 0.15 * w


def possible(
    shape: Sequence[int],
    input_shape: Sequence[int],
    seen: Iterable[tuple[int, int]] = (),
    size: tuple[int, int] | None = None,
) -> list[Layout]:
    """Every way to read an output of this shape as a grid, the likeliest first; which one holds, only running can tell.

    Args:
        shape: of the layer's output.
        input_shape: (B, C, H, W).
        seen: grids that convolutions gave in the same forward, such as that of the patch embedding.
        size: (h, w) where the user named it.
    """
    batch, picture = input_shape[0], (input_shape[2], input_shape[3])
    found: list[Layout] = []
    if len(shape) == 4 and shape[0] == batch:
        if _like(shape[2:], picture) or shape[2:] == size:
            found.append(Layout("maps", (shape[2], shape[3])))
        if _like(shape[1:3], picture) or shape[1:3] == size:
            found.append(Layout("channels last", (shape[1], shape[2])))
        return [one for one in found if size in (None, one.size)]
    if len(shape) == 3:
        kinds: list[tuple[Literal["tokens", "tokens first"], int]] = []
        if shape[0] == batch:
            kinds.append(("tokens", shape[1]))
        if shape[1] == batch and shape[0] != batch:
            kinds.append(("tokens first", shape[0]))
        for kind, count in kinds:
            sizes = _sizes(count, picture, seen) if size is None else [size] if 1 < size[0] * size[1] <= count else []
            found += [Layout(kind, one, count - one[0] * one[1]) for one in sizes]
    return found


def _sizes(count: int, picture: tuple[int, int], seen: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The grids that so many tokens can hold: those that convolutions gave, their halves, and those shaped as the picture."""
    known: dict[tuple[int, int], None] = {}
    for h, w in seen:
        while h * w > 1:
            known[h, w] = None
            h, w = (h + 1) // 2, (w + 1) // 2
    shaped = [(h, round(h * picture[1] / picture[0])) for h in range(1, count + 1)]
    sure = sorted(known, key=lambda size: -size[0] * size[1])
    guessed = sorted(shaped, key=lambda size: -size[0] * size[1])
    fitting = [(h, w) for h, w in (*sure, *guessed) if 1 < h * w <= count <= h * w + min(_MOST_EXTRA, h * w)]
    exact = [size for size in fitting if size[0] * size[1] == count]
    return list(dict.fromkeys([*exact, *fitting]))


def measure(
    model: nn.Module, x: Tensor, found: Mapping[str, Sequence[Layout]], logits: Callable[[Any], Any]
) -> dict[str, Layout]:
    """Which of the possible layouts each layer has: small places of a picture are changed, one by one, and each must change
    the layer most where the layout says that this place lies.

    Args:
        model: the module.
        x: an input; only its first image's shape and type count.
        found: for the name of each layer, what is possible.
        logits: as for `choose`.

    Returns:
        The layout of each layer for which one fits; the others have none. Each must run once in a forward.
    """
    sizes = [one.size for each in found.values() for one in each if one.kind != "maps"]
    finest = max(sizes or [(14, 14)], key=lambda size: size[0] * size[1])
    height, width = x.shape[2:]
    boxes = [_box(at, finest, (height, width)) for at in _PLACES]
    generator = torch.Generator().manual_seed(0)
    strength = float(x.abs().mean()) or 1.0
    picture = torch.randn(1, *x.shape[1:], generator=generator) * strength
    pictures = picture.repeat(len(boxes) + 1, 1, 1, 1)
    for index, (top, bottom, left, right) in enumerate(boxes, 1):
        # Other noise, so that means over the whole picture stay as they are.
        part = torch.randn(x.shape[1], bottom - top, right - left, generator=generator) * 3 * strength
        pictures[index, :, top:bottom, left:right] = part
    images = pictures.to(x)
    plain: dict[str, Tensor] = {}
    moved: dict[tuple[str, str], list[Tensor]] = {}

    def compare(name: str) -> Any:
        kinds = {one.kind: one for one in found[name]}

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            values = only_grid(output)
            if values is None:
                return
            for kind, one in kinds.items():
                places = one.places(values.detach())
                if len(places) == len(images) and (name, kind) in moved:
                    moved[name, kind] = []  # runs several times in one forward
                    continue
                if len(places) == len(images):
                    first, rest = places[:1], places[1:]
                elif len(places) == 1 and (name, kind) in moved:
                    first, rest = plain[name + kind], places
                elif len(places) == 1:
                    plain[name + kind], moved[name, kind] = places.clone(), []
                    continue
                else:
                    continue
                moved.setdefault((name, kind), []).append((rest.float() - first.float()).square().sum(dim=2))

        return hook

    stand_in = twin(model, {name: compare(name) for name in found})
    with isolated(x), torch.no_grad():
        try:
            logits(stand_in(images.clone()))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model that takes no more than one image
            moved.clear()
            for index in range(len(images)):
                logits(stand_in(images[index : index + 1].clone()))
    result = {}
    for name, layouts in found.items():
        kinds = [kind for kind in {one.kind for one in layouts} if moved.get((name, kind))]
        best = _fitting({kind: torch.cat(moved[name, kind]) for kind in kinds}, layouts, boxes, (height, width))
        if best is not None:
            result[name] = best
        elif {one.kind for one in layouts} == {"maps", "channels last"}:
            result[name] = layouts[0]  # nothing speaks for the rarer of the two
    return result


def _box(at: tuple[float, float], grid: tuple[int, int], picture: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels (top, bottom, left, right) of the cell at a share of height and width."""
    edges: list[int] = []
    for share, cells, length in zip(at, grid, picture, strict=True):
        cell = min(int(share * cells), cells - 1)
        start = cell * length // cells
        edges += [start, max(start + 1, (cell + 1) * length // cells)]
    return edges[0], edges[1], edges[2], edges[3]


def _fitting(
    changes: Mapping[str, Tensor],
    layouts: Sequence[Layout],
    boxes: Sequence[tuple[int, int, int, int]],
    picture: tuple[int, int],
) -> Layout | None:
    """The layout that fits best, the first of equals, or None; `changes` (boxes, places) for each kind."""
    best, most = None, 0
    strongest: dict[str, list[int] | None] = {}
    for one in layouts:
        change = changes.get(one.kind)
        if change is None or change.shape != (len(boxes), one.size[0] * one.size[1] + one.extra):
            continue
        if not change.isfinite().all():
            return one  # NaN and infinity hide every place; they are refused later, with their stage
        if one.kind not in strongest:
            strongest[one.kind] = _strongest(change)
        where = strongest[one.kind]
        if where is None:
            continue
        # A convolution with padding looks half a cell aside, so that a neighbour counts where no layout fits exactly.
        for reach in (0, 1):
            needed = _needed(one, boxes, picture, reach)
            for before in range(one.extra, -1, -1):
                hits = sum(
                    _hit(at - before, one.size, box, picture, reach) for at, box in zip(where, boxes, strict=True)
                )
                rank = hits * (2 - reach) if hits >= needed else 0
                if rank > most:
                    best, most = Layout(one.kind, one.size, before, one.extra - before), rank
            if most == 2 * len(boxes):
                return best
    return best


def _strongest(change: Tensor) -> list[int] | None:
    """Where each box changes the layer most, None when one of them changes nothing."""
    if not bool((change.amax(dim=1) > 0).all()):
        return None
    # What changes whatever is changed (a class token) says nothing about the place.
    usual = change.mean(dim=0, keepdim=True)
    return torch.where(usual > 0, change * (change / usual), 0).argmax(dim=1).tolist()


def _needed(one: Layout, boxes: Sequence[tuple[int, int, int, int]], picture: tuple[int, int], reach: int) -> int:
    """How many boxes must be hit so that this is no chance, whatever number of tokens stands before the places."""
    count = len(boxes)
    cells = range(one.size[0] * one.size[1])
    share = sum(_hit(cell, one.size, box, picture, reach) for cell in cells for box in boxes) / len(cells) / count
    tail, hits = 0.0, count + 1
    while hits > 0:
        tail += comb(count, hits - 1) * share ** (hits - 1) * (1 - share) ** (count - hits + 1)
        if tail * (one.extra + 1) > _CHANCE:
            break
        hits -= 1
    return hits


@cache
def _hit(
    cell: int, grid: tuple[int, int], box: tuple[int, int, int, int], picture: tuple[int, int], reach: int
) -> bool:
    """Whether a cell, counted row by row, or one within reach of it, shares pixels with the box."""
    if not 0 <= cell < grid[0] * grid[1]:
        return False
    for at, cells, length, first, end in zip(divmod(cell, grid[1]), grid, picture, box[::2], box[1::2], strict=True):
        if not (at - reach) * length / cells < end or not (at + 1 + reach) * length / cells > first:
            return False
    return True


def sensitivity(
    model: nn.Module, x: Tensor, layouts: Mapping[str, Layout], logits: Callable[[Any], Any]
) -> dict[str, Tensor]:
    """For each layer: how much the output depends on each place and other token, (T,); from one forward and one backward.

    A layer is missing where the output doesn't depend on it at all, or no gradient can be had.
    """
    edges: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            values = only_grid(output)
            if values is not None and values.requires_grad:
                edges[name] = torch.autograd.graph.get_gradient_edge(values)

        return hook

    stand_in = twin(model, {name: keep(name) for name in layouts})
    generator = torch.Generator().manual_seed(1)
    with isolated(x), torch.enable_grad():
        given = x[:1].detach().clone().requires_grad_()
        parts = [one for one in tensors_of(logits(stand_in(given.clone()))) if one.requires_grad]
        if not parts or not edges:
            return {}
        mixed = [(one * torch.randn(one.shape, generator=generator).to(one)).sum() for one in parts]
        found = torch.autograd.grad(torch.stack(mixed).sum(), list(edges.values()), allow_unused=True)
    return {
        name: layouts[name].places(gradient).abs().sum(dim=2)[0]
        for (name, _), gradient in zip(edges.items(), found, strict=True)
        if gradient is not None
    }
