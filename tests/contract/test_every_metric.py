"""What every registered metric must do, whatever it measures: a record that a person can read, a slow oracle, and truth beats chance.

A metric that is registered and not covered here fails: it needs an oracle in ORACLES, and, if it has a direction, to tell a planted
truth from a map that knows nothing.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracles_metrics as oracles
import sightline
from conftest import assert_untouched
from sightline.metrics import Metric, list_metrics
from sightline.metrics.faithfulness import SHARES
from sightline.metrics.maps import enlarged, random_map
from sightline.metrics.randomisation import other_classes
from sightline.metrics.registry import PARTS, Measured, run_metric

REGISTRY: dict[str, Metric] = dict(list_metrics())
DIRECTED = [name for name, one in REGISTRY.items() if one.better != "neither"]
OF_A_MAP = [name for name, one in REGISTRY.items() if {"heat", "raw"} & set(one.needs)]
CLASSES, SIDE, CELL, PATCH = 4, 32, 4, 8
CORNERS = [(4, 4), (4, 20), (20, 4), (20, 20)]  # top left, one in each quarter: class k looks only at the k-th patch
EXACT = 1e-10
# Without noise, which the oracles don't draw, and at a resolution that tells something on a small picture.
OPTIONS: dict[str, dict[str, Any]] = {
    "deletion": {"step": 30},
    "insertion": {"step": 30},
    "road-morf": {"noise": 0.0},
    "road-lerf": {"noise": 0.0},
    "pointing-game": {"tolerance": 3},
}


# ------------------------------------------------------------------------------------------------------ a planted truth


class Patches(nn.Module):
    """Class k is how red the k-th patch is; nothing else counts. Set by hand, and linear above its layer.

    Three more features, of green, blue and grey, are there and read by no class.
    """

    layer = "features"

    def __init__(self) -> None:
        super().__init__()
        self.colours, self.features = nn.Conv2d(3, 4, 1, bias=False), nn.ReLU()
        self.cells, self.flat = nn.AvgPool2d(CELL), nn.Flatten()
        cells = torch.from_numpy(np.stack([patch(index)[::CELL, ::CELL] for index in range(CLASSES)]))
        self.head = nn.Linear(4 * cells[0].numel(), CLASSES, bias=False)
        with torch.no_grad():
            self.colours.weight.copy_(torch.cat([1.5 * torch.eye(3) - 0.5, torch.full((1, 3), 0.3)])[:, :, None, None])
            self.head.weight.zero_()[:, : cells[0].numel()] = 2.0 * cells.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.cells(self.features(self.colours(x)))))


def patch(index: int) -> np.ndarray:
    found = np.zeros((SIDE, SIDE), bool)
    top, left = CORNERS[index]
    found[top : top + PATCH, left : left + PATCH] = True
    return found


def picture() -> Tensor:
    """Grey noise with four red patches, the first the reddest."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0.1, 0.4, (1, 1, SIDE, SIDE)).repeat(3, axis=1)
    for index in range(CLASSES):
        x[0, 0, patch(index)] += rng.uniform(0.55, 0.65, PATCH**2) - 0.2 * (index > 0)
    return torch.from_numpy(x)


def truth(capture: Any) -> Tensor:
    """What counts: each place's own part of the score, as all above the layer is linear."""
    return (capture.gradients * capture.activations).sum(dim=1)


def chance(capture: Any) -> Tensor:
    """A map that knows nothing: noise out of the picture's own bits, whatever the model and the class."""
    seeds = [zlib.crc32(one.numpy().tobytes()) for one in capture.input]
    cells = np.stack([random_map((SIDE // CELL, SIDE // CELL), seed) for seed in seeds])
    return F.interpolate(torch.from_numpy(cells)[:, None].to(capture.input), (SIDE, SIDE), mode="bilinear")[:, 0]


def nothing(capture: Any) -> Tensor:
    return torch.zeros_like(capture.input[:, 0])


@dataclass
class Planted:
    """A case with every part that a metric may ask for, about class 0; it keeps what the model was asked."""

    heat: np.ndarray
    method: Callable[..., Any] = truth
    dtype: torch.dtype = torch.float64
    pictures: list[Tensor] = field(default_factory=list)
    maps: list[np.ndarray] = field(default_factory=list)
    cell: tuple[int, int] = (0, 2)
    part: tuple[int, int] = (0, 2)
    others: tuple[int, int] = (0, CLASSES)

    def __post_init__(self) -> None:
        self.module = Patches().to(self.dtype).eval()
        self.x, self.mask, self.placed = picture().to(self.dtype), patch(0), self.heat
        self.raw = self._attribute(self.x, self.module, 0)[0]

    def _attribute(self, pictures: Tensor, module: nn.Module, target: int) -> np.ndarray:
        found = sightline.attribute(pictures, module, method=self.method, layer="features", target=target)
        return found.double().numpy()

    def answer(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        self.pictures.append(pictures.clone())
        with torch.no_grad():
            logits = self.module(pictures)
        return logits.softmax(dim=1)[:, 0].double(), (logits.argmax(dim=1) == 0).double()

    def score(self, pictures: Tensor) -> Tensor:
        return self.answer(pictures)[0]

    def explain(
        self, pictures: Tensor | None = None, *, target: int = 0, module: nn.Module | None = None, signed: bool = True
    ) -> np.ndarray:
        found = self._attribute(self.x if pictures is None else pictures, module or self.module, target)
        self.maps += list(found)
        return found

    def measured(self, name: str) -> Measured:
        return run_metric(REGISTRY[name], self, OPTIONS.get(name))

    # What the oracles take.

    def of_one(self, one: np.ndarray) -> float:
        return float(self.score(torch.from_numpy(one)[None])[0])

    @property
    def one(self) -> np.ndarray:
        return self.x[0].numpy()

    @property
    def drop(self) -> float:
        return oracles.average_drop(self.of_one(self.one), self.of_one(oracles.masked(self.one, self.heat)))


def random_heat(seed: int) -> np.ndarray:
    return enlarged(random_map((SIDE // CELL, SIDE // CELL), seed), (SIDE, SIDE))


def told_right() -> Planted:
    return Planted(patch(0).astype(float))


def told_at_random(seed: int) -> Planted:
    return Planted(random_heat(seed), chance)


# -------------------------------------------------------------------------------------------------------------- oracles


def road(case: Planted, most_relevant_first: bool) -> float:
    missing = [oracles.road_missing(case.heat, share, 0, most_relevant_first) for share in SHARES]
    return math.fsum(case.of_one(oracles.impute(case.one, each)) for each in missing) / len(SHARES)


def adcc(case: Planted) -> float:
    left = torch.from_numpy(oracles.masked(case.one, case.heat))[None]
    coherency = oracles.coherency(case.heat, case.explain(left)[0])
    return oracles.adcc(coherency, oracles.complexity(case.heat), case.drop)


def infidelity(case: Planted) -> float:
    """On the squares that the metric took away: the first picture asked about is the whole one."""
    pictures = torch.cat(case.pictures)
    taken = (pictures[1:] != case.x).any(dim=1).numpy()
    whole, *others = (case.of_one(each.numpy()) for each in pictures)
    return oracles.infidelity(
        [whole - each for each in others], [math.fsum(case.heat[each]) for each in taken], scaled=True
    )


def parameter_randomisation(case: Planted) -> float:
    """All layers drawn anew, the last first, in a deep copy."""
    copied, rng = copy.deepcopy(case.module), np.random.default_rng(0)
    for layer in (copied.head, copied.colours):
        values = layer.weight.detach().numpy()
        layer.weight.data = torch.from_numpy(values.mean() + values.std() * rng.standard_normal(values.shape))
    return abs(oracles.spearman(case.raw, case.explain(module=copied)[0]))


def random_logit(case: Planted) -> float:
    maps = [case.explain(target=one)[0] for one in other_classes(case.others, 5, 0)]
    return math.fsum(oracles.spearman(case.raw, one) for one in maps) / len(maps)


ORACLES: dict[str, Callable[[Planted], float]] = {
    "adcc": adcc,
    "average-drop": lambda case: case.drop,
    "average-gain": lambda case: oracles.average_gain(
        case.of_one(case.one), case.of_one(oracles.masked(case.one, case.heat))
    ),
    "complexity": lambda case: oracles.complexity(case.heat),
    "deletion": lambda case: oracles.auc(oracles.deletion(case.heat, case.one, case.of_one, 30, 0)),
    "di-full": lambda case: oracles.grid_pointing_game(case.heat, *case.part),
    "energy-pointing-game": lambda case: oracles.energy_pointing_game(case.placed, case.mask),
    "entropy": lambda case: oracles.entropy(case.heat),
    "grid-pointing-game": lambda case: oracles.grid_pointing_game(case.heat, *case.cell),
    "increase-in-confidence": lambda case: oracles.increase_in_confidence(
        case.of_one(case.one), case.of_one(oracles.masked(case.one, case.heat))
    ),
    "infidelity": infidelity,
    "insertion": lambda case: oracles.auc(oracles.insertion(case.heat, case.one, case.of_one, 30, 0)),
    "iou": lambda case: oracles.iou(case.placed, case.mask, 0.15),
    "mass-in-mask": lambda case: oracles.mass_in_mask(case.placed, case.mask),
    "max-sensitivity": lambda case: oracles.max_sensitivity(case.maps[0], case.maps[1:]),
    "parameter-randomisation": parameter_randomisation,
    "pointing-game": lambda case: oracles.pointing_game(case.placed, case.mask, 3),
    "random-logit": random_logit,
    "road-lerf": lambda case: road(case, False),
    "road-morf": lambda case: road(case, True),
    "sparseness": lambda case: oracles.sparseness(case.heat),
}


def test_every_metric_has_an_oracle() -> None:
    assert set(REGISTRY) == set(ORACLES)


@pytest.mark.proves(param="name", says="equals its slow float64 oracle on a planted truth and on chance")
@pytest.mark.parametrize("right", [True, False], ids=["truth", "chance"])
@pytest.mark.parametrize("name", REGISTRY)
def test_a_metric_is_its_oracle(name: str, right: bool) -> None:
    case = told_right() if right else told_at_random(1)
    found = case.measured(name).value
    assert found == pytest.approx(ORACLES[name](case), abs=EXACT)


# -------------------------------------------------------------------------------------------------------- truth and chance


def test_the_planted_network_looks_only_at_its_patches() -> None:
    case = told_right()
    scores = torch.cat([case.module(case.x), case.module(case.x * torch.from_numpy(patch(0)))])
    assert scores[0].argmax() == 0
    assert scores[1, 1:].tolist() == [0, 0, 0]
    np.testing.assert_allclose(scores[1, 0].detach(), scores[0, 0].detach())
    assert (case.raw > 0).tolist() == patch(0).tolist()


@pytest.mark.proves(param="name", says="is better for the planted truth than for maps that know nothing")
@pytest.mark.parametrize("name", DIRECTED)
def test_the_truth_is_better_than_chance(name: str) -> None:
    right = told_right().measured(name).value
    random = [told_at_random(seed).measured(name).value for seed in range(5)]
    assert right is not None
    assert None not in random
    mean = float(np.mean(np.array(random, float)))
    if REGISTRY[name].better == "higher":
        assert right > mean
        assert right >= max(one for one in random if one is not None)
    else:
        assert right < mean
        assert right <= min(one for one in random if one is not None)


@pytest.mark.proves(param="name", says="lies between 0 and 1 where it says so, for the truth and for chance")
@pytest.mark.parametrize("name", [name for name, one in REGISTRY.items() if re.search(r"\b0 to 1\b", one.summary)])
def test_a_metric_from_0_to_1_lies_there(name: str) -> None:
    for case in (told_right(), told_at_random(1)):
        found = case.measured(name).value
        assert found is not None
        assert 0 <= found <= 1 + 1e-12


@pytest.mark.parametrize("name", REGISTRY)
def test_a_metric_in_float32_is_that_in_float64(name: str) -> None:
    for heat, method in ((patch(0).astype(float), truth), (random_heat(1), truth)):
        one, other = (Planted(heat, method, dtype).measured(name).value for dtype in (torch.float64, torch.float32))
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("name", REGISTRY)
def test_measuring_twice_gives_the_same_and_leaves_map_mask_picture_and_model_as_they_were(name: str) -> None:
    case = Planted(random_heat(2))
    kept = [each.copy() for each in (case.heat, case.mask, case.raw)]
    with assert_untouched(case.module, case.x):
        one = case.measured(name)
    other = case.measured(name)
    assert one.record() == other.record()
    for before, after in zip(kept, (case.heat, case.mask, case.raw), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("name", REGISTRY)
def test_read_only_maps_are_measured(name: str) -> None:
    case = told_right()
    for one in (case.heat, case.mask, case.raw):
        one.setflags(write=False)
    assert case.measured(name).value is not None


# -------------------------------------------------------------------------------------------------------------- bad maps


EMPTY: dict[str, np.ndarray] = {
    "empty": np.zeros((SIDE, SIDE)),
    "constant": np.full((SIDE, SIDE), 0.3),
    "negative": -1 - random_heat(0),
    "tiny": patch(0) * 1e-300,
    "huge": patch(0) * 1e300,
}


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("name", REGISTRY)
def test_a_map_that_says_nothing_or_is_out_of_scale_gives_a_finite_value_or_a_reason(name: str, kind: str) -> None:
    found = Planted(EMPTY[kind].copy(), nothing).measured(name)
    if found.value is None:
        assert re.search(r"empty|constant|0 for every square", found.undefined), found.undefined
    else:
        assert math.isfinite(found.value)
        assert not found.undefined
    if kind in ("tiny", "huge") and not REGISTRY[name].asks:
        assert found.value == pytest.approx(told_right().measured(name).value)


@pytest.mark.parametrize("name", OF_A_MAP)
def test_a_map_that_holds_nan_or_infinity_is_refused(name: str) -> None:
    """NaN would be sorted to the end, as the least important, or give a silent 0."""
    for bad in (np.nan, np.inf, -np.inf):
        case = told_right()
        case.heat[3, 4] = case.raw[3, 4] = bad
        with pytest.raises(sightline.SightlineError, match="NaN or infinity"):
            case.measured(name)


# -------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("name", REGISTRY)
def test_a_metric_has_a_reference_a_direction_and_a_summary_of_one_line(name: str) -> None:
    one = REGISTRY[name]
    assert one.name == name == name.lower()
    assert one.better in ("higher", "lower", "neither")
    assert re.search(r"\b(19|20)\d\d\b", one.reference), "the year of the paper"
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", one.reference)
    assert one.summary.endswith(".")
    assert one.summary[0].isupper()
    assert len(one.summary) <= 160
    lines = (inspect.getdoc(one.function) or "").splitlines()
    assert len(lines) == 1 or not lines[1], "the summary ends on its line"


@pytest.mark.parametrize("name", REGISTRY)
def test_every_option_of_a_metric_has_a_default_and_is_documented(name: str) -> None:
    one = REGISTRY[name]
    said = inspect.getdoc(one.function) or ""
    if elsewhere := re.search(r"Args: as for `(\w+)`", said):
        said += inspect.getdoc(REGISTRY[elsewhere[1].replace("_", "-")].function) or ""
    for option, default in one.options.items():
        assert default is not inspect.Parameter.empty
        assert f"{option}:" in said, option


@pytest.mark.parametrize("name", REGISTRY)
def test_what_changed_pixels_are_set_to_is_said_where_the_model_is_asked_about_other_pictures(name: str) -> None:
    one = REGISTRY[name]
    assert set(one.needs) <= set(PARTS)
    changes = bool({"score", "answer"} & set(one.needs)) or name == "max-sensitivity"
    assert bool(one.base) == changes
    assert one.asks == bool({"score", "answer", "explain"} & set(one.needs))


@pytest.mark.parametrize("name", [name for name, one in REGISTRY.items() if "seed" in one.options])
def test_a_seed_is_0_unless_another_is_given(name: str) -> None:
    assert REGISTRY[name].options["seed"] == 0
    case = told_right()
    chosen = {**OPTIONS.get(name, {}), "seed": 0}
    assert run_metric(REGISTRY[name], case, chosen).value == case.measured(name).value


def test_the_metrics_are_listed_in_order_of_their_names() -> None:
    assert list(REGISTRY) == sorted(REGISTRY)
    assert all(one < other for one, other in itertools.pairwise(REGISTRY))
