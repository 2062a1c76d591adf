"""Statistics over images: against slow loops, scipy, published tables and simulation."""

from __future__ import annotations

import itertools
import math
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import MetricError, MissingExtraError, NonFiniteError
from sightline.metrics import statistics
from sightline.metrics.statistics import Interval, Paired, bootstrap, cliques, friedman, holm, paired, ranks, wilson

NAN = float("nan")


def numbers(n: int, seed: int = 0, *, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, n)


def table(images: int, methods: int, seed: int = 0, values: int = 1_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, (images, methods)).astype(float)


# ---------------------------------------------------------------------------------------------------------- bootstrap


def test_the_bootstrap_is_the_percentile_interval_of_a_slow_loop() -> None:
    values = numbers(40)
    random = np.random.default_rng(5)
    means = sorted(math.fsum(random.choice(values, 40)) / 40 for _ in range(20_000))
    found = bootstrap(values, seed=3, draws=20_000)
    assert found.mean == pytest.approx(math.fsum(values) / 40, abs=1e-15)
    assert found.low == pytest.approx(means[500], abs=0.015)
    assert found.high == pytest.approx(means[-500], abs=0.015)


def test_the_bootstrap_agrees_with_scipy() -> None:
    values = numbers(60) ** 2
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    found = bootstrap(values, draws=20_000, level=0.95)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_all_resamples_of_three_images_are_drawn_equally_often() -> None:
    values = np.array([0.0, 1.0, 10.0])
    drawn = statistics._drawn_means(values, 0, 100_000)
    sums, found = np.unique(np.rint(drawn * 3).astype(int), return_counts=True)
    wanted = {}
    for one in itertools.product([0, 1, 10], repeat=3):
        wanted[sum(one)] = wanted.get(sum(one), 0) + 1 / 27
    assert sorted(wanted) == sums.tolist()
    np.testing.assert_allclose(found / 100_000, [wanted[one] for one in sums.tolist()], atol=0.005)


@pytest.mark.parametrize(("level", "lowest", "highest"), [(0.95, 0.92, 0.97), (0.8, 0.75, 0.84)])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(level: float, lowest: float, highest: float) -> None:
    random, hits = np.random.default_rng(7), 0
    for seed in range(800):
        found = bootstrap(random.uniform(0, 1, 60), seed=seed, draws=500, level=level)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert lowest <= hits / 800 <= highest


def test_a_higher_level_gives_a_wider_interval() -> None:
    widths = [bootstrap(numbers(30), level=level) for level in (0.5, 0.8, 0.95, 0.999)]
    spans = [one.high - one.low for one in widths if one.high is not None and one.low is not None]
    assert spans == sorted(spans)
    assert len(set(spans)) == 4


def test_undefined_values_are_left_out_and_counted_and_never_taken_as_0() -> None:
    values = [0.5, NAN, 0.7, NAN, 0.9]
    found = bootstrap(values)
    assert (found.mean, found.count, found.undefined) == (pytest.approx(0.7), 3, 2)
    without = bootstrap([0.5, 0.7, 0.9])
    assert (found.low, found.high) == (without.low, without.high)
    assert found.low is not None
    assert found.low >= 0.5


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], Interval(None, None, None, 0, 0)),
        ([NAN, NAN], Interval(None, None, None, 0, 2)),
        ([0.3], Interval(0.3, None, None, 1, 0)),
        ([NAN, 0.3], Interval(0.3, None, None, 1, 1)),
        ([0.1] * 3, Interval(0.1, 0.1, 0.1, 3, 0)),
        ([0.7] * 1_001, Interval(0.7, 0.7, 0.7, 1_001, 0)),
    ],
)
def test_no_value_one_value_and_equal_values(values: list[float], wanted: Interval) -> None:
    assert bootstrap(values) == wanted


def test_a_seed_gives_the_same_interval_again_and_another_seed_another() -> None:
    values = numbers(25)
    assert bootstrap(values, seed=1) == bootstrap(values.copy(), seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    before = np.random.get_state()[1].copy()
    bootstrap(numbers(5))
    paired(numbers(20), numbers(20, 1))
    assert (np.random.get_state()[1] == before).all()


def test_the_interval_does_not_depend_on_how_many_draws_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = numbers(40)
    at_once = bootstrap(values, draws=200)
    monkeypatch.setattr(statistics, "_CELLS", 400)
    apart = bootstrap(values, draws=200)
    assert (apart.low, apart.high) == pytest.approx((at_once.low, at_once.high), abs=1e-12)


def test_a_hundred_thousand_images_need_little_memory() -> None:
    values, other = numbers(100_000), numbers(100_000, 1)
    tracemalloc.start()
    try:
        found = paired(values, other, draws=100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
    assert found.count == 100_000


def test_the_input_is_not_changed() -> None:
    a, b = numbers(20), numbers(20, 1)
    a[3] = NAN
    kept = a.copy(), b.copy()
    bootstrap(a)
    paired(a, b)
    friedman(np.stack([a, b, b], axis=1))
    np.testing.assert_array_equal(a, kept[0])
    np.testing.assert_array_equal(b, kept[1])


# ------------------------------------------------------------------------------------------------------------- paired


def by_enumeration(differences: Sequence[float]) -> float:
    """The share of all sign patterns whose sum lies at least as far from 0."""
    seen = abs(math.fsum(differences))
    patterns = list(itertools.product([1, -1], repeat=len(differences)))
    sums = [abs(math.fsum(s * d for s, d in zip(one, differences, strict=True))) for one in patterns]
    return sum(one >= seen - 1e-12 for one in sums) / len(patterns)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_sign_flip_test_is_exact_for_few_pairs(n: int, seed: int) -> None:
    a, b = numbers(n, seed, mean=0.7), numbers(n, seed + 100)
    assert paired(a, b).p == by_enumeration(a - b)
    assert paired(a, b, seed=9).p == paired(a, b).p, "nothing is drawn"


def test_the_sign_flip_test_of_five_pairs_worked_out_by_hand() -> None:
    # 1 + 2 + 3 + 4 + 5 = 15 is reached by all plus and all minus alone.
    assert paired([1, 2, 3, 4, 5], [0] * 5).p == 2 / 32
    # -1 + 2 + 3 + 4 + 5 = 13: reached too by all plus, and each of the two mirrored.
    assert paired([-1, 2, 3, 4, 5], [0] * 5).p == 4 / 32


@pytest.mark.parametrize("n", [6, 12])
def test_the_exact_test_agrees_with_scipy(n: int) -> None:
    a, b = numbers(n, 1, mean=0.5), numbers(n, 2)
    theirs = scipy.stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert paired(a, b).p == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize(("n", "mean"), [(13, 0.4), (40, 0.2)])
def test_the_drawn_test_comes_near_the_exact_one(n: int, mean: float) -> None:
    a, b = numbers(n, 3, mean=mean), numbers(n, 4)
    theirs = scipy.stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=50_000,
        rng=0,
    )
    found = paired(a, b)
    assert found.p == pytest.approx(theirs.pvalue, abs=0.02)
    assert paired(a, b, seed=1).p != found.p


def test_the_drawn_test_never_says_0() -> None:
    assert paired(np.ones(50), np.zeros(50)).p == 1 / 10_001
    assert paired(np.ones(50), np.zeros(50), draws=99).p == 1 / 100


def test_the_drawn_signs_are_fair_and_independent_between_images() -> None:
    # 13 equal differences: the sum lies as far out as all plus, plus one wrong, with probability 2 * 14 / 2^13.
    wanted = 2 * 14 / 2**13
    a = np.ones(13)
    a[0] = -1
    assert paired(a, np.zeros(13), draws=200_000).p == pytest.approx(wanted, rel=0.12)


def test_alike_methods_are_told_apart_as_rarely_as_the_level_says() -> None:
    random = np.random.default_rng(11)
    found = [paired(*random.normal(size=(2, 20)), seed=seed, draws=199).p for seed in range(600)]
    assert 0.03 <= np.mean([p is not None and p <= 0.05 for p in found]) <= 0.075


def test_differences_that_are_equal_but_for_rounding_count_as_equal() -> None:
    # In floating point 0.3 - 0.2 is less than 0.2 - 0.1.
    assert paired([0.3, 0.2, 0.1], [0.2, 0.1, 0.2]).p == by_enumeration([1, 1, -1]) == 1.0
    assert paired(np.full(30, 0.1) * 3, np.full(30, 0.3)).p == 1.0


def test_two_methods_without_any_difference() -> None:
    for n in (2, 50):
        assert paired(numbers(n), numbers(n)) == Paired(0.0, 0.0, 0.0, 1.0, n, 0)


def test_swapping_the_methods_turns_the_difference_and_keeps_p() -> None:
    a, b = numbers(10), numbers(10, 1)
    there, back = paired(a, b), paired(b, a)
    assert there.p == back.p
    assert there.difference == pytest.approx(-(back.difference or NAN))
    assert (there.low or NAN) < (there.high or NAN)


def test_the_interval_of_a_pair_is_that_of_its_differences() -> None:
    a, b = numbers(30), numbers(30, 1)
    found, wanted = paired(a, b, seed=4, level=0.9), bootstrap(a - b, seed=4, level=0.9)
    assert (found.difference, found.low, found.high) == (wanted.mean, wanted.low, wanted.high)


def test_a_pair_with_an_undefined_half_is_left_out_and_counted() -> None:
    a, b = [1.0, NAN, 3.0, 5.0, NAN], [0.5, 9.0, 1.0, NAN, NAN]
    assert paired(a, b) == Paired(**(vars(paired([1, 3], [0.5, 1])) | {"undefined": 3}))


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ([], [], Paired(None, None, None, None, 0, 0)),
        ([NAN], [1.0], Paired(None, None, None, None, 0, 1)),
        ([3.0], [1.0], Paired(2.0, None, None, None, 1, 0)),
    ],
)
def test_too_few_pairs_have_no_p(a: list[float], b: list[float], wanted: Paired) -> None:
    assert paired(a, b) == wanted


# --------------------------------------------------------------------------------------------------------------- holm


def refused(p_values: Sequence[float], alpha: float) -> set[int]:
    """Holm's procedure itself: from the smallest on, refuse until one is too large."""
    left = sorted(range(len(p_values)), key=lambda place: p_values[place])
    found: set[int] = set()
    while left and p_values[left[0]] * len(left) <= alpha:
        found.add(left.pop(0))
    return found


def test_holms_textbook_example() -> None:
    # Four hypotheses at 0.05: the two smallest are refused, the others are not.
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_adjusted_values_refuse_at_every_level_what_the_procedure_refuses(p_values: list[float]) -> None:
    found = holm(p_values)
    assert all(after is not None and before <= after <= 1 for before, after in zip(p_values, found, strict=True))
    for alpha in (0.0, 0.001, 0.05, 0.3, 0.999):
        below = {place for place, p in enumerate(found) if p is not None and p <= alpha}
        assert below == refused(p_values, alpha)


def test_a_question_without_p_stays_without_and_does_not_count() -> None:
    assert holm([0.01, None, 0.04, None]) == [0.02, None, 0.04, None]
    assert holm([None]) == [None]
    assert holm([]) == []


@pytest.mark.parametrize("wrong", [-0.1, 1.1, NAN])
def test_a_p_value_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(MetricError, match="expected 0 to 1"):
        holm([0.1, wrong])


# ---------------------------------------------------------------------------------------------------- ranks, friedman


@pytest.mark.parametrize("values", [3, 1_000])
def test_ranks_agree_with_scipy_with_and_without_ties(values: int) -> None:
    given_ = table(50, 7, values=values)
    np.testing.assert_array_equal(ranks(given_, "lower"), scipy.stats.rankdata(given_, axis=1).mean(axis=0))
    np.testing.assert_array_equal(ranks(given_, "higher"), scipy.stats.rankdata(-given_, axis=1).mean(axis=0))


def test_the_best_method_has_rank_1_and_ties_share_their_places() -> None:
    assert ranks([[0.9, 0.5, 0.1]]).tolist() == [1, 2, 3]
    assert ranks([[0.9, 0.5, 0.1]], "lower").tolist() == [3, 2, 1]
    assert ranks([[0.5, 0.5, 0.1, 0.1, 0.1]]).tolist() == [1.5, 1.5, 4, 4, 4]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_ranks_of_a_row_sum_up_and_no_order_of_columns_matters(images: int, methods: int, seed: int) -> None:
    given_ = table(images, methods, seed, values=4)
    found = ranks(given_)
    assert found.sum() == pytest.approx(methods * (methods + 1) / 2)
    turned = np.random.default_rng(seed).permutation(methods)
    np.testing.assert_array_equal(ranks(given_[:, turned]), found[turned])


def test_images_where_a_method_has_no_value_are_left_out() -> None:
    given_ = table(20, 4)
    holed = np.concatenate([given_, [[NAN, 1, 2, 3], [9, NAN, NAN, 9]]])
    np.testing.assert_array_equal(ranks(holed), ranks(given_))
    found, wanted = friedman(holed), friedman(given_)
    assert (found.count, found.undefined) == (20, 2)
    assert (found.p, found.critical_difference) == (wanted.p, wanted.critical_difference)


def test_no_complete_image_gives_no_ranks() -> None:
    for given_ in ([[NAN, 1.0, 2.0]], np.empty((0, 3))):
        assert np.isnan(ranks(given_)).all()
        found = friedman(given_)
        assert np.isnan(found.mean_ranks).all()
        assert (found.p, found.critical_difference, found.count) == (None, None, 0)


@pytest.mark.parametrize("values", [4, 1_000])
@pytest.mark.parametrize("shape", [(2, 3), (10, 4), (200, 30)])
def test_the_friedman_test_agrees_with_scipy_also_with_ties(shape: tuple[int, int], values: int) -> None:
    given_ = table(*shape, seed=3, values=values) + np.arange(shape[1]) // 2
    theirs = scipy.stats.friedmanchisquare(*given_.T)
    found = friedman(given_, "lower")
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.mean_ranks == tuple(ranks(given_, "lower"))
    assert friedman(given_, "higher").p == pytest.approx(theirs.pvalue, rel=1e-9)


def test_methods_that_are_equal_on_every_image_have_p_1() -> None:
    found = friedman(np.full((9, 3), 0.2))
    assert found.p == 1.0
    assert found.mean_ranks == (2, 2, 2)


@pytest.mark.parametrize(("methods", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_uses_the_published_values_of_nemenyi(methods: int, q: float) -> None:
    found = friedman(table(14, methods)).critical_difference
    assert found == pytest.approx(q * math.sqrt(methods * (methods + 1) / (6 * 14)), rel=5e-4)


def test_the_critical_value_of_two_methods_is_that_of_the_normal_distribution() -> None:
    assert statistics._nemenyi_q(0.05, 2) == pytest.approx(1.960, abs=5e-4)


def test_demsars_own_example() -> None:
    # JMLR 7, 2006, section 3.2: four classifiers on 14 data sets, CD = 2.569 sqrt(4 * 5 / (6 * 14)) = 1.25, and 1.12 at
    # alpha 0.10, where plain C4.5 differs from the two with m, and C4.5 with cf belongs to either.
    found = [friedman(table(14, 4), alpha=alpha).critical_difference for alpha in (0.05, 0.10)]
    assert found == pytest.approx([1.25, 1.12], abs=0.005)
    mean_ranks = [3.143, 2.000, 2.893, 1.964]
    assert cliques(mean_ranks, found[0]) == [(3, 1, 2, 0)]
    assert cliques(mean_ranks, found[1]) == [(3, 1, 2), (2, 0)]


def test_a_stricter_level_needs_a_larger_difference() -> None:
    strict, loose = (friedman(table(14, 4), alpha=alpha).critical_difference for alpha in (0.01, 0.10))
    assert strict is not None
    assert loose is not None
    assert strict > loose
    assert loose == pytest.approx(2.291 * math.sqrt(20 / 84), rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 3), (10, 2), (10, 1)])
def test_too_few_methods_or_images_have_ranks_but_no_test(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    found = friedman(table(*shape))
    assert (found.p, found.critical_difference, found.count) == (None, None, shape[0])
    assert sum(found.mean_ranks) == shape[1] * (shape[1] + 1) / 2


def test_without_scipy_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[evaluate\]'"):
        friedman(table(10, 3))


def test_everything_else_works_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    bootstrap(numbers(5))
    paired(numbers(5), numbers(5, 1))
    holm([0.1])
    ranks(table(5, 3))


# ------------------------------------------------------------------------------------------------------------ cliques


def by_pairs(mean_ranks: Sequence[float], cd: float) -> set[frozenset[int]]:
    """All largest sets of two or more methods without a pair that differs; by trying every set."""
    methods = range(len(mean_ranks))
    alike = [
        frozenset(group)
        for size in range(2, len(mean_ranks) + 1)
        for group in itertools.combinations(methods, size)
        if all(abs(mean_ranks[i] - mean_ranks[j]) < cd for i, j in itertools.combinations(group, 2))
    ]
    return {group for group in alike if not any(group < other for other in alike)}


@given(st.lists(st.integers(2, 12).map(lambda half: half / 2), min_size=1, max_size=7), st.integers(0, 12))
def test_cliques_are_the_largest_sets_without_a_difference(mean_ranks: list[float], quarters: int) -> None:
    found = cliques(mean_ranks, quarters / 4)
    assert {frozenset(group) for group in found} == by_pairs(mean_ranks, quarters / 4)
    assert len({frozenset(group) for group in found}) == len(found)


def test_cliques_name_the_methods_best_first() -> None:
    assert cliques([4.0, 1.0, 1.5, 2.2], 1.0) == [(1, 2), (2, 3)]
    assert cliques(np.array([4.0, 1.0, 1.5, 2.2]), 9.0) == [(1, 2, 3, 0)]
    assert cliques([1.0, 2.0], 1.0) == [], "a difference as large as the critical one is one"


def test_without_a_critical_difference_nothing_is_joined() -> None:
    assert cliques([1.0, 1.1], None) == []
    assert cliques([], 1.0) == []
    assert cliques([1.0], 1.0) == []


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap([[1.0]]), "one number per image"),
        (lambda: bootstrap(1.0), "one number per image"),
        (lambda: bootstrap(["a"]), "expected numbers"),
        (lambda: bootstrap([1.0], draws=0), "1 or more"),
        (lambda: bootstrap([1.0], seed=-1), "0 or more"),
        (lambda: bootstrap([1.0], level=1.0), "below 1"),
        (lambda: bootstrap([1.0], level=NAN), "below 1"),
        (lambda: paired([1.0], [1.0, 2.0]), "1 and 2 values"),
        (lambda: ranks([1.0]), "a table of images by methods"),
        (lambda: ranks(np.empty((3, 0))), "no column"),
        (lambda: ranks([[1.0]], "neither"), "expected higher or lower"),  # type: ignore[arg-type]
        (lambda: friedman([[1.0]], alpha=0.0), "above 0 and below 1"),
        (lambda: cliques([1.0, NAN], 1.0), "no NaN"),
        (lambda: cliques([1.0, 2.0], NAN), "0 or more"),
        (lambda: wilson(3, 2), "3 of 2"),
        (lambda: wilson(-1, 2), "-1 of 2"),
        (lambda: wilson(0, 0), "a count of 1 or more"),
        (lambda: wilson(1, 2, level=1.0), "inside 0..1"),
    ],
)
def test_what_can_not_be_asked_is_refused_with_what_was_expected(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(MetricError, match=words):
        call()


def test_infinite_values_are_refused_with_their_images() -> None:
    for call in (lambda: bootstrap([1.0, np.inf, -np.inf]), lambda: ranks([[1.0], [np.inf], [-np.inf]])):
        with pytest.raises(NonFiniteError, match="2 images") as caught:
            call()
        assert caught.value.images == (1, 2)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 10), (10, 10), (197, 200), (5, 9), (1, 100_000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_wilson_equals_scipy(right: int, count: int, level: float) -> None:
    peer = scipy.stats.binomtest(right, count).proportion_ci(level, method="wilson")
    low, high = wilson(right, count, level=level)
    assert (low, high) == pytest.approx((peer.low, peer.high), abs=1e-12)
    assert 0 <= low < high <= 1
