"""Where the heat of a whole run lies: its maps on one grid, and the shares of their heat in parts of what the model saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.batch.results import Run, parts, reading
from sightline.errors import ImageError, MetricError, OutputError, did_you_mean
from sightline.metrics.statistics import Interval, bootstrap
from sightline.models.view import View
from sightline.train.film import border_share

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray[Any, np.dtype[Any]]
FINEST = 16  # cells along each side of the grid on which maps are compared
_MAP = "maps.list.element"
_COLUMNS = (
    "id", "label", "width", "height", "view", "error", "predictions.list.element.label", "predictions.list.element.probability", "predictions.list.element.index",
    *(f"{_MAP}.{name}" for name in ("method", "label", "probability", "height", "width", "heat", "scale", "evidence")),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Heats:
    """The maps of one method, one a picture, on one grid.

    Attributes:
        method: its name.
        ids: of the N pictures that have a map.
        labels: what each is said to show, None where nobody said.
        right: (N,) 1 where that is what the model said first, 0 where it said something else, nan without a label.
        predicted: what the model said first; `index` (N,) its number, `chances` (N,) how probable.
        chances_of_label: (N,) of the label where it is among the model's first answers, 0 elsewhere; nan without a label.
        of: the class that the map is of.
        shares: (N, h, w) float32, each cell's share of the map's positive heat; 0 everywhere where a map has none.
        evidence: (N,), each map's maximum in the method's unit.
        sizes: (N, 2) width and height of each photograph.
        views: (N, 6) how each became the input, as it is kept in the run.
        errors: pictures of the run without a result; `without` those without a map of the method.
        coarser: maps that were brought to a coarser grid.
    """

    method: str
    ids: tuple[str, ...]
    labels: tuple[str | None, ...]
    right: Array
    predicted: tuple[str, ...]
    index: Array
    chances: Array
    chances_of_label: Array
    of: tuple[str, ...]
    shares: Array
    evidence: Array
    sizes: Array
    views: Array
    errors: int
    without: int
    coarser: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return int(self.shares.shape[1]), int(self.shares.shape[2])

    def view(self, at: int) -> View:
        """How a photograph became the input."""
        resized_w, resized_h, left, top, width, height = (float(one) for one in self.views[at])
        size = (int(self.sizes[at][0]), int(self.sizes[at][1]))
        return View(size, (resized_w, resized_h), (left, top), (int(width), int(height)))


def is_label(label: str | None, name: str, index: int) -> bool:
    """Whether a label means a class: by its name as folders spell it (any letters, _ for a blank), or by its number.

    Where names are numbers themselves, such as folders 1, 10, 2 in this order, only the name counts.
    """
    if label is None:
        return False
    return folded(label) == folded(name) or (label.strip() == str(index) and not name.strip().isdecimal())


def folded(name: str) -> str:
    """A name of a class as folders spell it."""
    return name.lower().replace("_", " ").strip()


def read_heats(run: Run, method: str | None = None) -> Heats:
    """The first map of every picture, of one method.

    Args:
        run: with maps.
        method: its name; the first of the run when left out.

    Raises:
        OutputError: the run has no map of it, or a shard is damaged.
    """
    known = list(run.plan["methods"])
    chosen = known[0] if method is None and known else method
    if chosen not in known:
        raise OutputError(
            f"the run has no maps of {chosen!r}; expected one of {', '.join(known)}.{did_you_mean(str(chosen), known)}"
        )
    rows: list[tuple[Any, ...]] = []
    maps: list[Array] = []
    errors = total = 0
    for number in run.there:
        for batch in run.shard(number, list(_COLUMNS)):
            with reading(run.file(number)):
                total += len(batch)
                errors += len(batch) - batch.column("error").null_count
                found, heats = _of_batch(batch, str(chosen))
            rows += found
            maps += heats
    if not rows:
        raise OutputError(
            f"{run.folder} has no map of {chosen}: {errors} of its {total} pictures failed; see sightline runs show"
        )
    shares, coarser = _on_one_grid(maps)
    ids, labels, right, predicted, index, chances, of_label, of, evidence, sizes, views = zip(*rows, strict=True)
    return Heats(
        str(chosen), ids, labels, np.array(right, float), predicted, np.array(index, int), np.array(chances, float), np.array(of_label, float), of, shares,
        np.array(evidence, float), np.array(sizes), np.array(views, float), errors, total - errors - len(ids), coarser,
    )  # fmt: skip


def _of_batch(batch: pa.RecordBatch, method: str) -> tuple[list[tuple[Any, ...]], list[Array]]:
    """Of each row with a map of the method: id, label, predicted, its probability, the label's, class of the map, evidence, size, view."""
    import pyarrow as pa
    import pyarrow.compute as pc

    of = pc.list_parent_indices(batch.column("maps")).to_numpy()
    found = parts(batch.column("maps").flatten())
    heats = found.pop("heat")
    counts = pc.fill_null(pc.list_value_length(heats), 0).to_numpy()
    ends = np.concatenate([[0], np.cumsum(counts)])
    values = heats.flatten().to_numpy(zero_copy_only=False)
    maps = pa.Table.from_pydict(found).to_pylist()
    plain = batch.select(["id", "label", "width", "height", "view", "predictions"]).to_pylist()
    rows, grids, seen = [], [], set()
    for at, (row, one) in enumerate(zip(of, maps, strict=True)):
        if one["method"] != method or row in seen or one["height"] is None or one["width"] is None:
            continue
        seen.add(row)
        if one["height"] * one["width"] != counts[at] or counts[at] == 0:
            raise OutputError(
                f"a map of {plain[row]['id']!r} has {counts[at]} values, not {one['height']} x {one['width']}"
            )
        said = plain[row]
        first = said["predictions"] or [{"label": "", "probability": None, "index": -1}]
        label = said["label"]
        named = [p["probability"] for p in first if is_label(label, p["label"] or "", p["index"])]
        of_label = np.nan if label is None else (named[0] if named and named[0] is not None else 0.0)
        view = said["view"] or {}
        rows.append((
            said["id"], label, np.nan if label is None else float(is_label(label, first[0]["label"] or "", first[0]["index"])),
            first[0]["label"] or "", first[0]["index"], np.nan if first[0]["probability"] is None else first[0]["probability"], of_label,
            one["label"] or "", np.nan if one["evidence"] is None else one["evidence"], (said["width"] or 0, said["height"] or 0),
            tuple(np.nan if part is None else part for part in view.values()) if view else (np.nan,) * 6,
        ))  # fmt: skip
        grids.append(values[ends[at] : ends[at + 1]].astype(np.float32).reshape(one["height"], one["width"]))
    return rows, grids


def _on_one_grid(maps: Sequence[Array]) -> tuple[Array, int]:
    """Each map's shares on the grid that most of them have, or a coarser one; and how many were brought there."""
    ((height, width), _), *_ = Counter(one.shape for one in maps).most_common(1)
    h, w = min(height, FINEST), min(width, FINEST)
    found = np.zeros((len(maps), h, w), np.float32)
    coarser = 0
    weights: dict[tuple[int, int], Array] = {}
    for at, one in enumerate(maps):
        heat = np.nan_to_num(np.clip(one, 0, None), posinf=0.0)
        if heat.shape != (h, w):
            coarser += 1
            rows, columns = (
                weights.setdefault((n, m), overlaps(n, m)) for n, m in zip(heat.shape, (h, w), strict=True)
            )
            heat = rows @ heat @ columns.T
        total = float(heat.sum(dtype=np.float64))
        if total > 0:
            found[at] = heat / total
    return found, coarser


def overlaps(cells: int, parts_: int) -> Array:
    """(parts, cells): which share of each cell's extent lies in each of so many equal parts of the whole."""
    edges = np.arange(cells + 1) / cells
    bounds = np.arange(parts_ + 1) / parts_
    low = np.maximum(edges[None, :-1], bounds[:-1, None])
    high = np.minimum(edges[None, 1:], bounds[1:, None])
    return np.asarray(np.clip(high - low, 0, None) * cells, np.float32)


# ---------------------------------------------------------------------------------------------------------------- the shares


def in_box(shape: tuple[int, int], box: Sequence[float]) -> Array:
    """(h, w): which share of each cell lies in a box, (left, top, right, bottom) in fractions of the input."""
    h, w = shape
    left, top, right, bottom = box
    rows, columns = (
        np.clip(np.minimum(np.arange(1, n + 1), high * n) - np.maximum(np.arange(n), low * n), 0, 1)
        for n, low, high in ((h, top, bottom), (w, left, right))
    )
    return np.outer(rows, columns)


CORNERS = {
    "top left corner": (0.0, 0.0, 0.25, 0.25),
    "top right corner": (0.75, 0.0, 1.0, 0.25),
    "bottom left corner": (0.0, 0.75, 0.25, 1.0),
    "bottom right corner": (0.75, 0.75, 1.0, 1.0),
}
MIDDLE = (0.25, 0.25, 0.75, 0.75)


@dataclass(frozen=True)
class Where:
    """Mean share of the heat in one part of what the model saw, over the pictures of a class.

    Attributes:
        part: "border" (the outermost eighth on each side), "corners" (four squares of a quarter of each side), "middle" (the square
            of half of each side), "object" (the masks), or "commonest cell" (share of the maps that are highest in it).
        share: its mean over the pictures with its interval, 0 to 1.
        even: what a map that is the same everywhere has there.
    """

    part: str
    share: Interval
    even: float

    def record(self) -> dict[str, Any]:
        return {
            "mean": self.share.mean, "low": self.share.low, "high": self.share.high, "even": self.even,
            "pictures": self.share.count,
        }  # fmt: skip


def parts_of(shares: Array, objects: Array | None = None) -> dict[str, tuple[Array, float]]:
    """Of each map the share of its heat in each part (N,), nan for a map without heat; and what an even map has there.

    Args:
        shares: (N, h, w), as in `Heats`.
        objects: (N, h, w), which share of each cell the object covers, nan for a picture without a mask.
    """
    heat = shares.astype(np.float64)
    empty = heat.sum(axis=(1, 2)) == 0
    corners = sum(in_box(heat.shape[1:], box) for box in CORNERS.values())
    middle = in_box(heat.shape[1:], MIDDLE)
    found: dict[str, tuple[Array, float]] = {
        "border": (border_share(heat), float(border_share(np.ones((1, *heat.shape[1:])))[0])),
        "corners": (np.einsum("nhw,hw->n", heat, corners), float(np.mean(corners))),
        "middle": (np.einsum("nhw,hw->n", heat, middle), float(np.mean(middle))),
    }
    if objects is not None:
        known = ~np.isnan(objects).any(axis=(1, 2))
        inside = np.full(len(heat), np.nan)
        inside[known] = np.einsum("nhw,nhw->n", heat[known], objects[known])
        found["object"] = (inside, float(np.mean(objects[known])) if known.any() else np.nan)
    for values, _ in found.values():
        values[empty] = np.nan
    return found


def where(found: Mapping[str, tuple[Array, float]], shares: Array, chosen: Array, seed: int = 0) -> tuple[Where, ...]:
    """The parts of `parts_of` over some of the pictures, with bootstrap intervals.

    Args:
        found: of all pictures.
        shares: (N, h, w) of all pictures.
        chosen: (n,) indices of the pictures of interest.
        seed: of the resamples.
    """
    means = [
        Where(part, bootstrap(values[chosen], seed=seed, draws=_DRAWS), even) for part, (values, even) in found.items()
    ]
    maps = shares[chosen].reshape(len(chosen), -1)
    warm = maps.sum(axis=1) > 0
    if warm.any():
        highest = maps.argmax(axis=1)
        common = Counter(highest[warm].tolist()).most_common(1)[0][0]
        at_it = np.where(warm, highest == common, np.nan)
        means.append(Where("commonest cell", bootstrap(at_it, seed=seed, draws=_DRAWS), 1 / maps.shape[1]))
    return tuple(means)


_DRAWS = 2000


# ------------------------------------------------------------------------------------------------------------------ the masks


def covered(mask: Array, view: View, shape: tuple[int, int]) -> Array:
    """(h, w): which share of each cell's area a mask covers, exactly, through the crop or padding of the view.

    Args:
        mask: (H, W) bool over the photograph.
        view: how the photograph became the input.
        shape: (h, w) of the grid over the input.
    """
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.astype(np.float64).cumsum(axis=0).cumsum(axis=1)
    edges = []
    for axis, cells in ((1, shape[0]), (0, shape[1])):
        size = mask.shape[0 if axis == 1 else 1]
        at = (view.offset[axis] + np.arange(cells + 1) * view.input[axis] / cells) * (size / view.resized[axis])
        edges.append(np.clip(at, 0, size))
    # The integral of a picture of pixels is linear between their edges.
    corners = _between(_between(sums, edges[0]).T, edges[1]).T
    areas = np.diff(np.diff(corners, axis=0), axis=1)
    whole = [view.input[axis] / cells * size / view.resized[axis] for axis, cells, size in ((1, shape[0], mask.shape[0]), (0, shape[1], mask.shape[1]))]  # fmt: skip
    return np.asarray(np.clip(areas / (whole[0] * whole[1]), 0, 1))


def _between(rows: Array, at: Array) -> Array:
    """Rows at places that may lie between two of them."""
    low = np.minimum(at.astype(int), len(rows) - 2)
    part = (at - low)[:, None]
    return np.asarray(rows[low] * (1 - part) + rows[low + 1] * part)


def objects_of(heats: Heats, mask_of: Callable[[str, tuple[int, int]], Array | None]) -> tuple[Array, list[str]]:
    """(N, h, w): what the mask of each picture covers of each cell, nan where there is none; and what must be said of those.

    A mask without an object, or with none in what the model sees, counts as none: beside nothing everything lies.

    Args:
        heats: the maps.
        mask_of: (id, (width, height)) -> the mask (H, W), or None.

    Raises:
        MetricError: no picture has a mask that fits.
    """
    found = np.full((len(heats), *heats.grid), np.nan, np.float32)
    wrong: list[str] = []
    for at, name in enumerate(heats.ids):
        if np.isnan(heats.views[at]).any():
            continue
        view = heats.view(at)
        try:
            mask = mask_of(name, view.photo)
        except (MetricError, ImageError) as error:
            wrong.append(f"{name}: {error}")
            continue
        cells = None if mask is None else covered(mask, view, heats.grid)
        if cells is not None and cells.any():
            found[at] = cells
    count = int((~np.isnan(found).any(axis=(1, 2))).sum())
    if not count:
        why = f"; {wrong[0]}" if wrong else f". A mask has its picture's name, such as {heats.ids[0]!r} (any ending)"
        raise MetricError(f"none of the masks belongs to a picture of the run{why}")
    notices = []
    if count < len(heats):
        notices.append(
            f"{len(heats) - count:,} of {len(heats):,} pictures have no mask, or one without an object in sight."
        )
    if wrong:
        notices.append(f"{len(wrong):,} masks don't fit, such as that of {wrong[0]}")
    return found, notices
