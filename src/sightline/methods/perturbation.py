"""Maps that change the picture and ask the model for its score, and for nothing else.

x = the picture as the model receives it (1, C, H, W), x' = a baseline, f = the target's score of a picture. Of a film or volume
H is that of all slices below each other; here they are taken apart again, and a picture is a volume of one slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.errors import MethodError
from sightline.methods.baselines import Baseline, baseline_of
from sightline.methods.gradient_cams import at_least_single
from sightline.methods.registry import method


@method(
    "occlusion",
    needs="scores",
    volumes=True,
    signed=True,
    reference="Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2",
)
def occlusion(
    capture: Capture,
    probe: Probe,
    *,
    patch: int = 0,
    stride: int = 0,
    baseline: Baseline = 0.0,
) -> Tensor:
    """How far the score falls when a square of the picture is covered; asks for nothing but scores, so that any model will do.

    Formula: map_ij = mean of f(x) - f(x with the square covered) over the squares that cover pixel ij. Squares begin at multiples
    of the stride, and those that reach beyond the border are cut there. A cell of the map is a block of pixels that the same
    squares cover. Of a film or volume boxes are covered, whose share of the slices, and the stride's, is that of the shorter side.

    Args:
        patch: side of the square in pixels of the model's input; 0 for about a seventh of the picture's shorter side.
        stride: pixels from one square to the next, at most the patch; 0 for half of it. Half the stride costs four times as much.
        baseline: what the square shows instead: a number or one for each channel, in the units of the model's input; black, white,
            mean, blur, random; or the file of a picture. 0 is the data's mean colour where the input is normalised by it.

    Differs: the paper shows the score itself at the covered place, not how far it fell.
    """
    x = capture.input
    slices = probe.slices or 1
    height, width = x.shape[2] // slices, x.shape[3]
    shorter = min(height, width)
    patch = patch or min(shorter, max(2, 2 * round(shorter / 14)))
    stride = stride or max(1, patch // 2)
    if patch > shorter:
        raise MethodError(f"option patch is {patch}; expected at most the picture's shorter side, {shorter}")
    if stride > patch:
        raise MethodError(
            f"option stride is {stride}; expected at most the patch, {patch}, so that no pixel is left uncovered"
        )
    probe.details.update(patch=patch, stride=stride)
    covered = baseline_of(baseline, x, probe)[0].reshape(-1, slices, height, width)
    deep, next_slice = (max(1, round(slices * of / shorter)) for of in (patch, stride))
    if probe.slices:
        probe.notes.append(
            f"the boxes that cover it are {deep} of {slices} slices deep, and one begins every {next_slice}"
        )
    boxes = [
        (slice(at, at + deep), slice(row, row + patch), slice(column, column + patch))
        for at in _starts(slices, deep, next_slice)
        for row in _starts(height, patch, stride)
        for column in _starts(width, patch, stride)
    ]
    scores = []
    for part in probe.steps(len(boxes) + 1):  # the last picture is whole
        pictures = x.repeat(part.stop - part.start, 1, 1, 1)
        for picture, box in zip(pictures.view(-1, *covered.shape), boxes[part], strict=False):
            picture[:, *box] = covered[:, *box]
        scores.append(at_least_single(probe.score(pictures)))
    found = torch.cat(scores)
    cell = math.gcd(patch, stride, height, width)
    sums = found.new_zeros(2, slices, height // cell, width // cell)  # of falls, and how many
    for fall, (at, rows, columns) in zip(found[-1] - found[:-1], boxes, strict=True):
        block = sums[:, at, rows.start // cell : rows.stop // cell, columns.start // cell : columns.stop // cell]
        block += torch.stack([fall, torch.ones_like(fall)])[:, None, None, None]
    return (sums[0] / sums[1]).flatten(0, 1)[None]


def _starts(length: int, patch: int, stride: int) -> range:
    """Where squares begin along one side: the last one is the first that reaches the border."""
    return range(0, length - patch + stride, stride)


@method(
    "rise",
    needs="scores",
    volumes=True,
    signed=True,
    reference="Petsiuk et al. 2018, arXiv:1806.07421, eq. 6 and section 3.2",
)
def rise(
    capture: Capture,
    probe: Probe,
    *,
    samples: int = 4000,
    grid: int = 7,
    kept: float = 0.5,
    baseline: Baseline = 0.0,
    seed: int = 0,
) -> Tensor:
    """How much higher the score is when a pixel is left in the picture, over thousands of random soft masks.

    Formula: map_ij = 1 / (N p) * sum_n (f(x M_n + x' (1 - M_n)) - mean f) M_n,ij over N masks. A mask is a grid of cells, each kept
    with probability p, enlarged bilinearly (half-pixel centres, edges clamped) to one cell more than the picture needs, and cut at a
    random offset within a cell; of a film or volume the grid has a third side, along the slices. Its standard error and how well two
    halves of the masks agree are said with every map.

    Args:
        samples: N, how many masks.
        grid: cells along each side of a mask.
        kept: p, the probability that a cell is left as it is.
        baseline: x', what shows where a mask hides: a number or one for each channel, in the units of the model's input; black,
            white, mean, blur, random; or the file of a picture. 0 is the data's mean colour where the input is normalised by it.
        seed: of the masks and of a random baseline. The same masks are drawn whatever the size of a batch.

    Differs: the paper does not subtract the mean score. Its map is ours plus the mean score times the masks' mean over p, which is
    about 1 everywhere: it shows a model that answers the same to everything as a bright picture, where ours is exactly 0. The authors'
    code mirrors the grid at its border, where ours goes on with the outermost cell.
    """
    return _by_masks(capture, probe, samples, grid, kept, baseline, seed)


@method("d-rise", needs="scores", signed=True, reference="Petsiuk et al. 2021, arXiv:2006.03204, sections 3.2 and 3.3")
def d_rise(
    capture: Capture,
    probe: Probe,
    *,
    samples: int = 5000,
    grid: int = 16,
    kept: float = 0.5,
    baseline: Baseline = 0.0,
    seed: int = 0,
) -> Tensor:
    """Which places a detector needs to find one box again, over thousands of random soft masks; asks for nothing but boxes.

    Formula: as rise, where f is how much the likest of the boxes found in the masked picture is like the explained one: overlap
    (intersection over union) times the cosine of their class probabilities times objectness. All boxes of a picture share one
    set of masks. For other targets f is the score.

    Args:
        samples: N, how many masks.
        grid: cells along each side of a mask.
        kept: p, the probability that a cell is left as it is.
        baseline: what shows where a mask hides, as for rise.
        seed: of the masks and of a random baseline.

    Differs: of a detector that gives one score for each box and no other probabilities (torchvision's), boxes of the same class
    have cosine 1 and others 0, and the score is the objectness. As in rise, the mean is subtracted, where the authors show the plain
    weighted sum, which has the same order.
    """
    return _by_masks(capture, probe, samples, grid, kept, baseline, seed, alike=True)


def _by_masks(
    capture: Capture,
    probe: Probe,
    samples: int,
    grid: int,
    kept: float,
    baseline: Baseline,
    seed: int,
    alike: bool = False,
) -> Tensor:
    """The map of `rise`, and what is said with it."""
    x = capture.input
    slices, height, width = probe.slices or 1, x.shape[2] // (probe.slices or 1), x.shape[3]
    if samples < _FEWEST:
        raise MethodError(f"option samples is {samples}; expected {_FEWEST} or more, for two halves to compare")
    cells = samples * grid ** (3 if probe.slices else 2)
    if cells > _MOST_CELLS:
        raise MethodError(
            f"{samples:,} masks of {grid} cells along each side have {cells:,} cells; expected at most {_MOST_CELLS:,}, so that they fit "
            "into memory: ask for fewer with the options samples and grid"
        )
    hidden = baseline_of(baseline, x, probe, seed)
    masks = _Masks.drawn(samples, grid, kept, (slices, height, width) if probe.slices else (height, width), seed)
    sums, checked, agreement = _Sums.empty((slices, height, width), x.device), [], []
    for part in probe.steps(samples):
        shown = masks.cut(part, x).reshape(-1, slices, height, width)
        pictures = torch.lerp(hidden, x, shown.flatten(1, 2)[:, None].to(x))
        scores = probe.score(pictures, alike=True) if alike else probe.score(pictures)
        sums.add(scores, shown.sub_(kept), part.start)
        if part.stop * _CHECKS // samples > part.start * _CHECKS // samples:
            checked.append(part.stop)
            agreement.append(_correlation(*(_coarse(sums.covariance(half)) for half in (0, 1))))
    found, error = sums.covariance() / kept, sums.standard_error() / kept
    probe.details["standard error"] = error.flatten(0, 1).float().cpu().numpy()
    probe.details["mean score"] = sums.mean_score()
    probe.details["convergence"] = {"masks": checked, "agreement": agreement}
    probe.notes.extend(_said_of(found, error, [sums.covariance(half) for half in (0, 1)], masks, agreement[-1]))
    return found.flatten(0, 1)[None].to(at_least_single(x))


# Each half of the masks has a covariance of its own; how often they are compared, and on a grid of which side.
_FEWEST, _CHECKS, _SIDE = 4, 20, 28
_MOST_CELLS = 500_000_000  # which are drawn at once, 4 bytes each
# Halves whose maps correlate by less are too small.
_ALIKE = 0.8


@dataclass(frozen=True, eq=False)
class _Masks:
    """Masks that are made when they are needed.

    Attributes:
        cells: (N, g, g), which are kept; of volumes (N, g, g, g).
        offsets: (N, 2), where each mask is cut from the enlarged grid; of volumes (N, 3), first among the slices.
        cell: height and width of a cell in pixels; of volumes how many slices it has, before them.
        sides: for each of these (cell's side, picture's side, g), how much of each line of cells is in each line of pixels, for every
            offset.
    """

    cells: Tensor
    offsets: Tensor
    cell: tuple[int, ...]
    sides: tuple[Tensor, ...]

    @classmethod
    def drawn(cls, samples: int, grid: int, kept: float, size: tuple[int, ...], seed: int) -> _Masks:
        generator = torch.Generator().manual_seed(seed)
        cells = torch.rand(samples, *[grid] * len(size), generator=generator) < kept
        cell = tuple(math.ceil(side / grid) for side in size)
        offsets = [torch.randint(0, one, (samples,), generator=generator) for one in cell]
        sides = tuple(_enlarging(grid, one, side) for one, side in zip(cell, size, strict=True))
        return cls(cells, torch.stack(offsets, dim=1), cell, sides)

    def cut(self, part: slice, like: Tensor) -> Tensor:
        """Some of the masks (b, H, W), of volumes (b, T, H, W), on the device of `like` and in its type, float32 at least."""
        kind = at_least_single(like[:0]).dtype
        *slices, rows, columns = (
            matrix[offset].to(like.device, kind)
            for matrix, offset in zip(self.sides, self.offsets[part].T, strict=True)
        )
        cells = self.cells[part].to(like.device, kind)
        if slices:
            cells = (slices[0] @ cells.flatten(2)).reshape(len(cells), -1, *cells.shape[2:])
            rows, columns = rows[:, None], columns[:, None]
        found: Tensor = rows @ cells @ columns.mT
        return found


def _enlarging(grid: int, cell: int, side: int) -> Tensor:
    """(cell, side, grid): the bilinear weights of every cut of `side` pixels from (grid + 1) * cell, one for each offset."""
    long = (grid + 1) * cell
    at = ((torch.arange(long, dtype=torch.float64) + 0.5) * grid / long - 0.5).clamp(0, grid - 1)
    weights = (1 - (at[:, None] - torch.arange(grid, dtype=torch.float64)).abs()).clamp(min=0)
    return weights.unfold(0, side, 1)[:cell].mT


@dataclass(eq=False)
class _Sums:
    """What a map, its standard error and its halves need, added up on the fly in float64.

    u = score - shift, v = mask - kept. The shift is one of the first scores, so that equal scores add up to exactly 0.

    Attributes:
        of: (2, 3) for each half the number of masks, the sum of u and of u^2.
        first: (5, T, H, W) sums of v for each half, of u v for each half, and of u^2 v.
        second: (3, T, H, W) sums of v^2, u v^2 and u^2 v^2.
        shift: the score that is taken as 0, once there is one.
    """

    of: Tensor
    first: Tensor
    second: Tensor
    shift: float | None = None

    @classmethod
    def empty(cls, size: tuple[int, int, int], device: torch.device) -> _Sums:
        of, first, second = (
            torch.zeros(*shape, dtype=torch.float64, device=device) for shape in ((2, 3), (5, *size), (3, *size))
        )
        return cls(of, first, second)

    def add(self, scores: Tensor, v: Tensor, start: int) -> None:
        """Takes the scores (b,) and masks (b, T, H, W) of a batch, and overwrites the masks; `start` is the first one's number."""
        if self.shift is None:
            self.shift = float(scores.double().median())
        u = scores.double() - self.shift
        odd = (torch.arange(start, start + len(u), device=u.device) % 2).double()
        halves = torch.stack([1 - odd, odd])
        self.of += halves @ torch.stack([torch.ones_like(u), u, u * u], dim=1)
        flat = v.flatten(1)
        self.first += (torch.cat([halves, halves * u, (u * u)[None]]).to(flat) @ flat).view_as(self.first)
        flat.square_()
        self.second += (torch.stack([torch.ones_like(u), u, u * u]).to(flat) @ flat).view_as(self.second)

    def mean_score(self) -> float:
        count, total, _ = self.of.sum(dim=0)
        return (self.shift or 0.0) + float(total / count)

    def covariance(self, half: int | None = None) -> Tensor:
        """mean of (score - its mean) times mask (T, H, W), over all masks or every other one."""
        halves = [0, 1] if half is None else [half]
        count, total, _ = self.of[halves].sum(dim=0)
        v, uv = (self.first[[one + 2 * power for one in halves]].sum(dim=0) for power in (0, 1))
        found: Tensor = (uv - total * v / count.clamp(min=1)) / count.clamp(min=1)
        return found

    def standard_error(self) -> Tensor:
        """Of `covariance`: the deviation (N - 1) of (score - its mean) (mask - its mean), over the square root of N."""
        count, total, squares = self.of.sum(dim=0)
        v, uv, uuv = self.first[:2].sum(dim=0), self.first[2:4].sum(dim=0), self.first[4]
        vv, uvv, uuvv = self.second
        a, b = total / count, v / count
        square = (
            uuvv - 2 * b * uuv + b * b * squares
            - 2 * a * (uvv - 2 * b * uv + b * b * total)
            + a * a * (vv - b * v)
        )  # fmt: skip
        spread = (square - count * self.covariance().square()).clamp(min=0) / (count - 1)
        found: Tensor = (spread / count).sqrt()
        return found


def _coarse(found: Tensor) -> Tensor:
    """A map (T, H, W) averaged onto a grid whose sides are 28 at most, as a list of places."""
    slices, height, width = (min(_SIDE, side) for side in found.shape)
    return F.adaptive_avg_pool3d(found[None], (slices, height, width)).flatten()


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, so that the many places of no evidence have little say; NaN where one of the two is the same everywhere."""
    if not (bool((one != one[0]).any()) and bool((other != other[0]).any())):
        return math.nan
    return float(torch.corrcoef(torch.stack([one, other]).double())[0, 1])


def _said_of(found: Tensor, error: Tensor, halves: list[Tensor], masks: _Masks, agreement: float) -> list[str]:
    """How far a map can be believed: its standard error, and whether half of the masks would have shown the same."""
    count = len(masks.cells)
    said = [
        f"over {count:,} masks the largest standard error is {float(error.max()):.2g}, and the largest value {float(found.abs().max()):.2g}"
    ]
    sides = len(masks.cell)
    peaks = [torch.unravel_index(one.argmax(), one.shape)[-sides:] for one in halves]
    apart = [abs(int(one) - int(other)) for one, other in zip(*peaks, strict=True)]
    names = ("slices", "rows", "columns")[-sides:]
    moved = any(far > cell for far, cell in zip(apart, masks.cell, strict=True))
    if agreement < _ALIKE or moved:
        said.append(
            f"{count:,} masks are too few: the maps of two halves of them correlate by {agreement:.2f} (1 is the same), and their "
            f"peaks lie {' and '.join(f'{far} {what}' for far, what in zip(apart, names, strict=True))} apart; ask for more with the "
            "option samples"
        )
    return said
