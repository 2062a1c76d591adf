"""Groups of alike maps: two kinds are told apart, one kind is not, and chance is not called unusual."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.audit.clusters import LEAST, _separations, clusters_of


def blobs(places: list[tuple[float, float]], seed: int, size: int = 10, spread: float = 0.4) -> np.ndarray:
    """Maps with one hot place each, somewhat moved."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    maps = [
        np.exp(-((y - a - random.normal(0, spread)) ** 2 + (x - b - random.normal(0, spread)) ** 2) / 3)
        for a, b in places
    ]
    maps = [one + 0.02 * random.random((size, size)) for one in maps]
    return np.stack([one / one.sum() for one in maps])


def test_a_small_far_group_is_found_whole_and_comes_first() -> None:
    random = np.random.default_rng(1)
    middle = [tuple(random.uniform(3, 7, 2)) for _ in range(120)]
    maps = blobs([*middle[:60], *[(0.5, 0.5)] * 12, *middle[60:]], 0)
    first, *_ = clusters_of("dog", maps, np.arange(72), np.arange(72, 132))
    assert sorted(first.members.tolist()) == list(range(60, 72))
    assert first.p == 1 / 40
    assert first.share == pytest.approx(12 / 72)
    assert first.mean.argmax() in (0, 1, 10, 11)
    assert first.mean == pytest.approx(maps[60:72].mean(axis=0), abs=1e-6)


def test_a_class_like_the_others_has_no_unusual_group() -> None:
    """Of 20 such sets at 5 %, more than 4 have one once in 400 times."""
    alarms = 0
    for seed in range(20):
        random = np.random.default_rng(seed + 100)
        maps = blobs([tuple(random.uniform(0, 10, 2)) for _ in range(160)], seed)
        alarms += any(
            one.p <= 0.05 for one in clusters_of("dog", maps, np.arange(40), np.arange(40, 160), seed=seed, copies=19)
        )
    assert alarms <= 4


def test_what_all_classes_share_is_not_unusual() -> None:
    maps = blobs([(5, 5), (5, 5), (5, 5), (0.5, 0.5)] * 40, 2)
    assert all(one.p > 0.05 for one in clusters_of("dog", maps, np.arange(60), np.arange(60, 160)))


def test_without_other_classes_nothing_is_said_of_chance() -> None:
    maps = blobs([(1, 1), (8, 8)] * 15, 2)
    found = clusters_of("dog", maps, np.arange(30), np.arange(0))
    assert [one.p for one in found] == [None, None]


def test_few_maps_and_maps_without_heat_are_not_grouped() -> None:
    maps = blobs([(0, 0), (9, 9)] * LEAST, 3)
    assert clusters_of("dog", maps, np.arange(LEAST - 1), np.arange(0)) == ()
    maps[: 2 * LEAST - 5] = 0
    assert clusters_of("dog", maps, np.arange(2 * LEAST), np.arange(0)) == ()


def test_every_map_is_in_one_group_also_where_not_all_make_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.audit.clusters._AT_ONCE", 30)
    maps = blobs([(1, 1)] * 40 + [(8, 8)] * 40, 4)
    found = clusters_of("dog", maps, np.arange(80), np.arange(0), copies=9)
    assert sorted(np.concatenate([one.members for one in found]).tolist()) == list(range(80))
    groups = [set(one.members.tolist()) for one in found]
    assert all(group <= set(range(40)) or group <= set(range(40, 80)) for group in groups)


def test_separation_is_the_mean_difference_of_cosines() -> None:
    flat = np.random.default_rng(5).random((7, 6))
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    groups = np.array([0, 0, 1, 1, 1, 0, 1])
    for number, found in enumerate(_separations(flat, groups)):
        own = [flat[at] for at in range(7) if groups[at] == number]
        others = [flat[at] for at in range(7) if groups[at] != number]
        means = [sum(each) / len(each) for each in (own, others)]
        cosines = [[float(one @ mean) / np.sqrt(float(mean @ mean)) for one in own] for mean in means]
        assert found == pytest.approx(sum(cosines[0]) / len(own) - sum(cosines[1]) / len(own))


def test_the_same_seed_gives_the_same_groups() -> None:
    maps = blobs([(1, 1)] * 30 + [(8, 8)] * 30, 6)
    once, again = (clusters_of("dog", maps, np.arange(40), np.arange(40, 60), seed=3, copies=9) for _ in range(2))
    assert [(one.p, one.separation, one.members.tolist()) for one in once] == [
        (one.p, one.separation, one.members.tolist()) for one in again
    ]
