"""Agreement: it is the correlation that a person would compute, and it says so where methods contradict each other."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import sightline
from made import heatmap, photograph
from sightline.agreements import averaged
from sightline.errors import MetricError
from sightline.heatmap import Heatmap
from sightline.render.page import Page
from sightline.trust import _RULES, ALIKE


def maps(*raws: Any, **changes: Any) -> list[Heatmap]:
    """Signed maps of one photograph by methods a, b, c ..."""
    photo = photograph()
    return [
        heatmap(raw, photo=photo, method=name, signed=True, **changes)
        for raw, name in zip(raws, "abcdefghijkl", strict=False)
    ]


def noise(seed: int, size: tuple[int, int] = (7, 7)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


def test_the_matrix_holds_the_rank_correlations_of_what_speaks_for_the_class() -> None:
    raws = [noise(0), noise(1), noise(0) + 0.5 * noise(2)]
    found = sightline.agreement(maps(*raws))
    assert found.names == ("a", "b", "c")
    for row, column in np.ndindex(3, 3):
        one, other = (np.maximum(raws[at].astype(np.float32), 0).ravel() for at in (row, column))
        assert found.matrix[row, column] == pytest.approx(spearmanr(one, other).statistic, abs=1e-9)
    pairs = [found.matrix[0, 1], found.matrix[0, 2], found.matrix[1, 2]]
    assert found.median == pytest.approx(np.median(pairs))
    assert found.pairs == 3


def test_two_grids_are_compared_on_the_coarser_by_the_mean_over_each_cell() -> None:
    coarse, fine = noise(0, (2, 3)), noise(1, (8, 12))
    found = sightline.agreement(maps(coarse, fine))
    means = np.maximum(fine.astype(np.float32), 0).reshape(2, 4, 3, 4).mean(axis=(1, 3))
    expected = spearmanr(np.maximum(coarse, 0).ravel(), means.ravel()).statistic
    assert found.matrix[0, 1] == found.matrix[1, 0] == pytest.approx(expected, abs=1e-9)


def test_cells_that_lie_across_two_others_are_shared_between_them() -> None:
    assert averaged(np.array([[1.0, 2.0, 6.0]]), (1, 2)).tolist() == [[pytest.approx(4 / 3), pytest.approx(14 / 3)]]
    grid = noise(3, (16, 14))
    for size in ((7, 7), (16, 14), (5, 3), (1, 1)):
        assert averaged(grid, size).mean() == pytest.approx(grid.mean())


def test_an_empty_or_constant_map_has_no_correlation_and_does_not_count() -> None:
    found = sightline.agreement(
        maps(noise(0), np.zeros((7, 7)), -np.ones((7, 7)), np.ones((7, 7)), 2 * noise(0) + 0.01)
    )
    assert np.isnan(found.matrix[1:4]).all()
    assert np.isnan(found.matrix[:, 1:4]).all()
    assert found.matrix[0, 0] == pytest.approx(1)
    assert found.pairs == 1
    nothing = sightline.agreement(maps(noise(0), np.zeros((7, 7))))
    assert (nothing.median, nothing.disagree) == (None, False)
    assert "can't be told" in nothing.says
    json.dumps(nothing.record(), allow_nan=False)


def test_methods_that_give_one_map_are_one_voice() -> None:
    alone = sightline.agreement(maps(noise(0), noise(1)))
    found = sightline.agreement(maps(noise(0), noise(1), noise(0) * (1 + 1e-7), noise(0), noise(0)))
    assert found.matrix.shape == (5, 5)
    assert found.matrix[0, 3] == pytest.approx(1)
    assert (found.median, found.pairs) == (pytest.approx(alone.median), 1)


def test_maps_that_contradict_each_other_raise_the_flag_with_its_number() -> None:
    found = sightline.agreement(maps(noise(0), noise(1), noise(2)))
    assert found.median is not None
    assert found.median < ALIKE
    assert found.disagree
    assert (
        f"the methods disagree: their maps correlate by {found.median:.2f} (median of 3 pairs; least alike: "
        in found.says
    )
    assert "believe none of them alone" in found.says


def test_maps_that_say_the_same_raise_no_flag() -> None:
    found = sightline.agreement(maps(noise(0), noise(0) + 0.05 * noise(1), noise(0) + 0.05 * noise(2)))
    assert not found.disagree
    assert found.says.startswith("the methods agree")


def test_the_flag_has_the_trust_cards_rule() -> None:
    assert str(ALIKE) in _RULES["agreement"]
    record = sightline.agreement(maps(noise(0), noise(1))).record()
    assert f"below {ALIKE}" in record["says"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"photo": photograph(seed=1)}, "one photograph"),
        ({"photo": photograph((60, 60)), "view": heatmap(photo=photograph((60, 60))).view}, "one photograph"),
        ({"view": heatmap(whole=True).view}, "one photograph"),
        ({"label": "tabby"}, "one target"),
        ({"index": 1}, "one target"),
    ],
)
def test_maps_of_two_photographs_or_targets_are_refused(changes: dict[str, Any], words: str) -> None:
    one, other = maps(noise(0), noise(1))
    with pytest.raises(MetricError, match=words):
        sightline.agreement([one, dataclasses.replace(other, **changes)])


def test_a_map_alone_is_refused() -> None:
    with pytest.raises(MetricError, match="two maps or more, not 1"):
        sightline.agreement(maps(noise(0)))


def test_one_method_at_two_layers_and_two_models_are_told_apart() -> None:
    one, other = maps(noise(0), noise(1))
    layers = [dataclasses.replace(one, layer="early"), dataclasses.replace(one, layer="late"), other]
    assert sightline.agreement(layers).names == ("a at layer early", "a at layer late", "b")
    models = [one, dataclasses.replace(one, model="another")]
    assert sightline.agreement(models).names == ("a, made by hand", "a, another")


def test_the_picture_says_what_the_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    original = Page.text

    def text(self: Any, x: float, y: float, words: str, *args: Any, **options: Any) -> None:
        said.append(words)
        original(self, x, y, words, *args, **options)

    monkeypatch.setattr(Page, "text", text)
    found = sightline.agreement(maps(noise(0), noise(1), noise(2)))
    assert found.picture().mode == "RGB"
    words = " ".join(said)
    assert found.says in words
    assert "tiger cat" in words
    for row, column in ((0, 1), (0, 2), (1, 2)):
        assert f"{found.matrix[row, column]:z.2f}".replace("-", "\N{MINUS SIGN}") in said


def test_methods_that_say_nothing_of_the_class_stand_in_the_matrix_but_are_no_witnesses() -> None:
    alike, other = noise(0), noise(1)
    photo = photograph()
    methods = {
        "grad-cam": alike,
        "hires-cam": alike + 0.01 * noise(2),
        "random": other,
        "eigen-cam": -other,
        "guided-backprop": other,
    }
    found = sightline.agreement([heatmap(raw, photo=photo, method=name, signed=True) for name, raw in methods.items()])
    assert found.names == tuple(methods)
    assert found.mute == ("random", "eigen-cam", "guided-backprop")
    assert found.pairs == 1
    assert found.median == pytest.approx(found.matrix[0, 1])
    assert found.says.endswith("(left out, because they say nothing of the class: random, eigen-cam, guided-backprop)")
    assert not found.disagree


def test_pixel_maps_are_compared_on_no_finer_grid_than_14_x_14() -> None:
    """Two maps whose single pixels never coincide, and whose places do."""
    where = np.kron(np.arange(196.0).reshape(14, 14) + 1, np.ones((4, 4)))
    chess = np.indices(where.shape).sum(axis=0) % 2
    found = sightline.agreement(maps(where * chess, where * (1 - chess)))
    assert found.median == pytest.approx(1.0)


@pytest.mark.parametrize("side", [16, 20, 32, 64, 224, 384])
def test_maps_that_are_the_same_everywhere_have_no_correlation_on_any_grid(side: int) -> None:
    found = sightline.agreement(maps(np.full((side, side), 0.3), np.full((side, side), 0.7), noise(0, (side, side))))
    assert np.isnan(found.matrix[0]).all()
    assert np.isnan(found.matrix[:2]).all()
    assert not found.disagree
