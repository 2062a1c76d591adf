"""Where the places of the picture lie in what a layer returns: inferred from shapes, then found out by running."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sightline.models.outputs import only_grid, tensors_of
from sightline.models.twin import isolated, twin

# Tokens that are no places: class, distillation, registers, prompts.
_MOST_EXTRA = 64
# Above so many values all pictures are not run in one batch.
_LARGE = 4_000_000
# Where the picture is changed, as shares of height and width: spread over it, in no order, and in every quarter of a cell.
_PLACES = (
    (0.08, 0.31), (0.27, 0.81), (0.45, 0.07), (0.61, 0.56), (0.79, 0.93), (0.93, 0.18),
    (0.16, 0.62), (0.35, 0.44), (0.53, 0.87), (0.70, 0.24), (0.86, 0.49), (0.03, 0.97),
)  # fmt: skip
_QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
# So many must lie where a layout says; of a grid of few cells, all.
_ENOUGH, _FEW = 9, 9
# A convolution with padding looks half a cell aside.
_ASIDE = (
    (0.0, 0.0),
    (0.5, 0.5),
    (-0.5, -0.5),
    (0.5, 0.0),
    (0.0, 0.5),
    (-0.5, 0.0),
    (0.0, -0.5),
    (0.5, -0.5),
    (-0.5, 0.5),
)


@dataclass(frozen=True)
class Layout:
    """How a layer's output holds a grid of places.

    Attributes:
        kind: "maps" is (B, C, h, w); "channels last" (B, h, w, C); "tokens" (B, T, C); "tokens first" (T, B, C); "volume"
            (B, C, t, h, w), whose slices lie below each other in the grid.
        size: (h, w); of a volume (t * h, w).
        before: of tokens, how many stand before the places, which follow row by row (class token, registers).
        after: how many stand behind them.
        depth: of a volume, how many slices it has; else 0.
    """

    kind: Literal["maps", "channels last", "tokens", "tokens first", "volume"]
    size: tuple[int, int]
    before: int = 0
    after: int = 0
    depth: int = 0

    @property
    def is_map(self) -> bool:
        """Whether channels come second and places behind them, as convolutions have it."""
        return self.kind in ("maps", "volume")

    @property
    def shown(self) -> str:
        """The size in words: 7x7, or 2x7x7."""
        h, w = self.size
        return f"{self.depth}x{h // self.depth}x{w}" if self.depth else f"{h}x{w}"

    def unfolded(self, maps: Tensor) -> Tensor:
        """Maps (B, h, w) with the slices of a volume as a dimension of their own, (B, t, h, w); others as they are."""
        return maps.reshape(len(maps), self.depth, -1, maps.shape[2]) if self.depth else maps

    @property
    def extra(self) -> int:
        """How many tokens are no places."""
        return self.before + self.after

    def to_grid(self, output: Tensor) -> Tensor:
        """The places of a layer's output, (B, C, h, w); a view, unless a volume's memory lies in another order."""
        if self.kind == "maps":
            return output
        if self.kind == "volume":
            return output.flatten(2, 3)
        if self.kind == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output.transpose(0, 1) if self.kind == "tokens first" else output
        places = tokens[:, self.before : tokens.shape[1] - self.after]
        return places.reshape(len(places), *self.size, places.shape[2]).permute(0, 3, 1, 2)

    def from_grid(self, grid: Tensor, output: Tensor) -> Tensor:
        """A layer's output with its places exchanged for those of (N, C, h, w); one output serves any N. A new tensor."""
        if self.kind == "maps":
            return grid.clone()
        if self.kind == "volume":
            return grid.clone().reshape(*grid.shape[:2], self.depth, -1, grid.shape[3])
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
        if self.is_map or self.kind == "channels last":
            return self.to_grid(output).flatten(2).transpose(1, 2)
        return output.transpose(0, 1) if self.kind == "tokens first" else output

    def fits(self, shape: Sequence[int], batch: int) -> bool:
        """Whether an output of this shape can be laid out so."""
        if self.kind == "volume":
            h, w = self.size
            return len(shape) == 5 and shape[0] == batch and tuple(shape[2:]) == (self.depth, h // self.depth, w)
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
        input_shape: (B, C, H, W) or (B, C, T, H, W).
        seen: grids that convolutions gave in the same forward, such as that of the patch embedding.
        size: (h, w) where the user named it.
    """
    if len(input_shape) == 5:
        return _volumes(shape, input_shape)
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


def volume(depth: int, height: int, width: int) -> Layout:
    """Of (B, C, depth, height, width)."""
    return Layout("volume", (depth * height, width), depth=depth)


def _volumes(shape: Sequence[int], input_shape: Sequence[int]) -> list[Layout]:
    """An output (B, C, t, h, w) of an input (B, C, T, H, W): the slices are like its own, and no more than twice as many."""
    if len(shape) != 5 or shape[0] != input_shape[0] or not 1 <= shape[2] <= 2 * input_shape[2]:
        return []
    return [volume(*shape[2:])] if _like(shape[3:], input_shape[3:]) else []


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
        x: an input; of its first image the shape, type and range of values count.
        found: for the name of each layer, what is possible.
        logits: as for `choose`.

    Returns:
        The layout of each layer for which one fits; the others have none. Each must run once in a forward.
    """
    sizes = [one.size for each in found.values() for one in each if not one.is_map]
    finest = max(sizes or [(14, 14)], key=lambda size: size[0] * size[1])
    height, width = x.shape[2], x.shape[3]
    boxes = [_box(at, _QUARTERS[index % 4], finest, (height, width)) for index, at in enumerate(_PLACES)]
    images = _altered(x[:1], boxes)
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
        for size in (len(images), 1) if images.numel() <= _LARGE else (1,):
            moved.clear()
            try:
                for start in range(0, len(images), size):
                    logits(stand_in(images[start : start + size].clone()))
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            except Exception:
                if size == 1:
                    return {}  # a model that takes no made-up pictures shows nothing
    result = {}
    for name, layouts in found.items():
        kinds = [kind for kind in {one.kind for one in layouts} if moved.get((name, kind))]
        best = _fitting({kind: torch.cat(moved[name, kind]) for kind in kinds}, layouts, boxes, (height, width))
        if best is not None:
            result[name] = best
    return result


def _altered(picture: Tensor, boxes: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Noise within the picture's own range of values, and for each box the same with strong contrast there."""
    finite = picture[picture.isfinite()].float()
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-3):  # one colour says nothing about the range
        low, high = low - 1, high + 1
    generator = torch.Generator().manual_seed(0)
    plain = low + (high - low) * (0.4 + 0.2 * torch.rand(picture.shape, generator=generator))
    pictures = plain.repeat(len(boxes) + 1, 1, 1, 1)
    for index, (top, bottom, left, right) in enumerate(boxes, 1):
        part = torch.rand(picture.shape[1], bottom - top, right - left, generator=generator)
        pictures[index, :, top:bottom, left:right] = torch.where(part < 0.5, low, high)
    return pictures.to(picture)


def _box(
    at: tuple[float, float], quarter: tuple[int, int], grid: tuple[int, int], picture: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The pixels (top, bottom, left, right) of one quarter of the cell at a share of height and width."""
    edges: list[int] = []
    for share, half, cells, length in zip(at, quarter, grid, picture, strict=True):
        cell = min(int(share * cells), cells - 1)
        start = (2 * cell + half) * length // (2 * cells)
        edges += [start, max(start + 1, (2 * cell + half + 1) * length // (2 * cells))]
    return edges[0], edges[1], edges[2], edges[3]


def _fitting(
    changes: Mapping[str, Tensor],
    layouts: Sequence[Layout],
    boxes: Sequence[tuple[int, int, int, int]],
    picture: tuple[int, int],
) -> Layout | None:
    """The layout that fits best, the first of equals, or None; `changes` (boxes, places) for each kind."""
    best, most = None, 0
    strongest = {kind: _strongest(change) for kind, change in changes.items()}
    for one in layouts:
        where = strongest.get(one.kind)
        cells = one.size[0] * one.size[1]
        if where is None or changes[one.kind].shape[1] != cells + one.extra:
            continue
        enough = _ENOUGH if cells > _FEW else len(boxes)
        for aside in _ASIDE:
            expected = [_cell(box, one.size, picture, aside) for box in boxes]
            # How many tokens stand before the places is what most agree on.
            before, hits = Counter(at - cell for at, cell in zip(where, expected, strict=True)).most_common(1)[0]
            if hits >= enough and hits > most and 0 <= before <= one.extra:
                best, most = Layout(one.kind, one.size, before, one.extra - before), hits
        if most == len(boxes):
            return best
    return best


def _strongest(change: Tensor) -> list[int] | None:
    """Where each box changes the layer most, None when one of them changes nothing, or what changes is no number."""
    if not bool(change.isfinite().all()) or not bool((change.amax(dim=1) > 0).all()):
        return None
    # What changes whatever is changed (a class token) says nothing about the place.
    usual = change.mean(dim=0, keepdim=True)
    found: list[int] = torch.where(usual > 0, change * (change / usual), 0).argmax(dim=1).tolist()
    return found


def _cell(
    box: tuple[int, int, int, int], grid: tuple[int, int], picture: tuple[int, int], aside: tuple[float, float]
) -> int:
    """The cell, counted row by row, in which the box's centre lies, looked at from so many cells aside."""
    row, column = (
        min(max(int((first + end) / 2 * cells / length + shift), 0), cells - 1)
        for cells, length, first, end, shift in zip(grid, picture, box[::2], box[1::2], aside, strict=True)
    )
    return row * grid[1] + column


def mixed(parts: Sequence[Tensor]) -> Tensor:
    """One number that depends on everything in a model's output."""
    generator = torch.Generator().manual_seed(1)
    sums = [(one * torch.randn(one.shape, generator=generator).to(one)).float().sum() for one in parts]
    return torch.stack(sums).sum()


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
    with isolated(x), torch.enable_grad():
        given = x[:1].detach().clone().requires_grad_()
        parts = [one for one in tensors_of(logits(stand_in(given.clone()))) if one.requires_grad]
        if not parts or not edges:
            return {}
        try:
            found = torch.autograd.grad(mixed(parts), list(edges.values()), allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return {}  # no gradient can be had; the capture says why
    return {
        name: layouts[name].places(gradient).abs().sum(dim=2)[0]
        for (name, _), gradient in zip(edges.items(), found, strict=True)
        if gradient is not None
    }
