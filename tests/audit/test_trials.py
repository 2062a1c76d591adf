"""Trials on a network whose rule is known: it says "marked" where the top left corner is bright, else "plain"."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from torch import nn

import sightline
from sightline.audit.regions import BACKGROUND, REGION, WHOLE, Candidate, candidates_of, elsewhere, hot_box, pixels_of
from sightline.audit.trials import GIVEN, KINDS, LEAST, TAKEN, Pool, changed, mcnemar, planned, run_trials
from sightline.audit.verdict import CLEARED, PLACE, SHORTCUT, SUSPECTED, UNTRIED, corrected, ruling_on, ruling_on_class
from sightline.metrics.statistics import holm
from sightline.models.adapter import Adapter

SIDE = 24


class Corner(nn.Module):
    """Logits of "plain" and "marked"; the weight is there so that the model has one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corner = self.conv(x)[:, 0, :4, :4].mean(dim=(1, 2))
        return torch.stack([torch.full_like(corner, 0.5), corner], dim=1) * 20


@pytest.fixture
def adapter() -> Adapter:
    return sightline.adapt(Corner(), layers=["conv"], labels=["plain", "marked"])


@pytest.fixture
def pool() -> Pool:
    """40 pictures, every other one with a bright corner."""
    random = torch.Generator().manual_seed(0)
    x = 0.3 * torch.rand(40, 3, SIDE, SIDE, generator=random)
    x[::2, :, :4, :4] = 0.9 + 0.1 * torch.rand(20, 3, 4, 4, generator=random)
    of = np.array(["marked", "plain"] * 20)
    return Pool({at: at for at in range(40)}, x, of, None)


def candidate(what: str = REGION, box: tuple[float, float, float, float] | None = (0, 0, 0.25, 0.25)) -> Candidate:
    return Candidate("marked", what, np.arange(0, 40, 2), box if what == REGION else None, "a test")


def tried(one: Candidate, pool: Pool, adapter: Adapter) -> list:
    trials, _ = run_trials([one], planned([one], pool), pool, adapter, batch=8)
    return corrected([trials.get(0, [])])[0]


def test_what_decides_flips_every_picture_and_its_control_none(pool: Pool, adapter: Adapter) -> None:
    one = candidate()
    trials = tried(one, pool, adapter)
    assert [(each.change, each.way) for each in trials] == list(KINDS[REGION])
    for each in trials:
        assert (each.flips, each.control, each.pictures) == (1.0, 0.0, 20)
        assert each.p <= 4 * 2 / 2**20
        assert each.difference.low == 1.0
        assert each.chance.difference > 0.9
    assert ruling_on(one, trials).outcome == SHORTCUT


def test_a_region_that_says_nothing_is_cleared(pool: Pool, adapter: Adapter) -> None:
    one = candidate(box=(0.7, 0.7, 1, 1))
    trials = tried(one, pool, adapter)
    assert {(each.flips, each.control) for each in trials if each.way == GIVEN} == {(0.0, 0.0)}
    assert ruling_on(one, trials).outcome == CLEARED


def test_the_same_in_the_middle_is_a_place_and_no_shortcut(adapter: Adapter, pool: Pool) -> None:
    trials = tried(candidate(), pool, adapter)
    middle = candidate(box=(0.4, 0.4, 0.6, 0.6))
    assert ruling_on(middle, trials).outcome == PLACE
    edge, corner = candidate(box=(0.0, 0.0, 0.2, 0.7)), candidate(box=(0.5, 0.5, 1.0, 1.0))
    large = candidate(box=(0.0, 0.3, 0.24, 0.8))
    assert [ruling_on(one, trials).outcome for one in (edge, corner, large)] == [SHORTCUT, SHORTCUT, SUSPECTED]
    outside = Candidate("marked", REGION, middle.members, middle.box, "", outside=0.9)
    assert ruling_on(outside, trials).outcome == SHORTCUT
    on_it = Candidate("marked", REGION, middle.members, (0, 0, 0.25, 0.25), "", outside=0.3)
    assert ruling_on(on_it, trials).outcome == PLACE


def test_names_that_end_in_nul_or_are_hostile_are_tried_as_any(pool: Pool) -> None:
    names = ["<b>\n", "=marked\x00"]
    hostile = sightline.adapt(Corner(), layers=["conv"], labels=names)
    of = np.array([names[1], names[0]] * 20)
    one = Candidate(names[1], REGION, np.arange(0, 40, 2), (0, 0, 0.25, 0.25))
    trials = tried(one, Pool(pool.at, pool.x, of, None), hostile)
    assert [each.flips for each in trials] == [1.0] * len(KINDS[REGION])


def test_one_direction_alone_is_suspected(adapter: Adapter, pool: Pool) -> None:
    trials = tried(candidate(), pool, adapter)
    for way in (TAKEN, GIVEN):
        assert ruling_on(candidate(), [each for each in trials if each.way == way]).outcome == SUSPECTED
    assert ruling_on(candidate(), []).outcome == UNTRIED


def test_whole_traits_of_a_corner_are_not_accused(pool: Pool, adapter: Adapter) -> None:
    for what in ("smallness", "largeness"):
        assert ruling_on(candidate(what), tried(candidate(what), pool, adapter)).outcome == CLEARED


def test_a_tone_that_decides_is_a_shortcut(adapter: Adapter) -> None:
    random = torch.Generator().manual_seed(1)
    x = 0.3 * torch.rand(40, 3, SIDE, SIDE, generator=random)
    x[::2] += 0.5
    pool = Pool({at: at for at in range(40)}, x, np.array(["marked", "plain"] * 20), None)
    trials = tried(candidate("tone"), pool, adapter)
    assert [(each.flips, each.control) for each in trials] == [(1.0, 0.0), (1.0, 0.0)]
    assert ruling_on(candidate("tone"), trials).outcome == SHORTCUT


def test_a_background_that_decides_is_a_shortcut_where_masks_say_what_it_is(pool: Pool, adapter: Adapter) -> None:
    objects = torch.zeros(40, SIDE, SIDE)
    objects[:, 10:16, 10:16] = 1
    masked = Pool(pool.at, pool.x, pool.of, objects)
    trials = tried(candidate(BACKGROUND), masked, adapter)
    assert [(each.flips, each.control) for each in trials] == [(1.0, 0.0), (1.0, 0.0)]
    assert planned([candidate(BACKGROUND)], pool) == []
    objects[5:] = torch.nan
    assert planned([candidate(BACKGROUND)], masked) == []  # too few with a mask


def test_pictures_that_the_model_calls_otherwise_now_are_left_out(pool: Pool, adapter: Adapter) -> None:
    fewer = Pool(pool.at, pool.x, np.where(np.arange(40) < 10, "plain", pool.of), None)
    assert {len(each.rows[0]) for each in planned([candidate()], fewer) if each.way == TAKEN} == {15}
    few = Pool(pool.at, pool.x, np.where(np.arange(40) < 40 - 2 * LEAST + 2, "plain", pool.of), None)
    assert planned([candidate()], few) == []


def test_controls_are_of_the_same_size_elsewhere_and_of_the_same_pictures(pool: Pool) -> None:
    for arms in planned([candidate()], pool):
        assert np.array_equal(*arms.rows)
        for box, control in zip(*arms.boxes, strict=True):
            assert (box[2] - box[0], box[3] - box[1]) == (control[2] - control[0], control[3] - control[1])
            apart = control[0] >= box[2] or control[2] <= box[0] or control[1] >= box[3] or control[3] <= box[1]
            assert apart
            assert min(control) >= 0
            assert max(control) <= SIDE


def test_what_is_given_comes_from_the_class_and_its_control_does_not(pool: Pool) -> None:
    (taken, given) = planned([candidate("tone")], pool)
    assert set(pool.of[given.rows[0]]) == {"plain"}
    assert set(pool.of[given.donors[0]]) == {"marked"}
    assert set(pool.of[given.donors[1]]) == {"plain"}
    assert (given.donors[1] != given.rows[1]).all()
    assert set(pool.of[taken.rows[0]]) == {"marked"}
    assert set(pool.of[taken.donors[0]]) == {"plain"}
    assert set(pool.of[taken.donors[1]]) == {"marked"}
    assert (taken.donors[1] != taken.rows[1]).all()


def test_the_control_of_a_size_is_the_other_way(pool: Pool) -> None:
    x = torch.zeros(40, 3, SIDE, SIDE)
    x[:, :, 8:16, 8:16] = 1
    bright = Pool(pool.at, x, pool.of, None)
    for what, way, shrinks in (("smallness", TAKEN, False), ("smallness", GIVEN, True), ("largeness", TAKEN, True), ("largeness", GIVEN, False)):  # fmt: skip
        one = candidate(what)
        (arms,) = [each for each in planned([one], pool) if each.way == way]
        areas = [float((changed(one, arms, which, slice(0, 1), bright) > 0.5).float().mean()) for which in (0, 1)]
        assert (areas[0] < areas[1]) == shrinks


def test_the_plan_says_what_it_costs_and_the_model_is_asked_so_often(pool: Pool, adapter: Adapter) -> None:
    one, told = candidate(), []
    plan = planned([one], pool)
    run_trials([one], plan, pool, adapter, batch=7, told=told.append)
    assert sum(told) == sum(arms.forwards for arms in plan) == 4 * 40
    assert max(told) == 7


def test_the_same_seed_gives_the_same_trials(pool: Pool, adapter: Adapter) -> None:
    one = candidate("tone")
    first, second, other = (planned([one], pool, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a.donors[0], b.donors[0]) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a.donors[0], b.donors[0]) for a, b in zip(first, other, strict=True))


def test_examples_are_pictures_that_flipped(pool: Pool, adapter: Adapter) -> None:
    one = candidate()
    _, shown = run_trials([one], planned([one], pool), pool, adapter, batch=8)
    assert len(shown[0]) == 16
    for each in shown[0]:
        assert (each.said_before == "marked") != (each.said_after == "marked")
        assert torch.equal(each.before, pool.x[each.index])
        assert not torch.equal(each.after, each.before)


def test_p_values_are_corrected_for_all_trials_of_all_candidates_together(pool: Pool, adapter: Adapter) -> None:
    candidates = [candidate(), candidate("tone"), candidate(box=(0.7, 0.7, 1, 1))]
    trials, _ = run_trials(candidates, planned(candidates, pool), pool, adapter, batch=8)
    before = [trials[at] for at in range(3)]
    after = corrected(before)
    wanted = iter(holm([one.p for each in before for one in each]))
    assert [[one.p for one in each] for each in after] == [[next(wanted) for _ in each] for each in before]
    assert after[0][0].p == pytest.approx(10 * before[0][0].p)  # the smallest of ten


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 3), (12, 4), (1, 9)])
def test_mcnemar_is_twice_the_tail_of_a_fair_coin(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(Fraction(comb(n, heads), 2**n) for heads in range(n + 1) if heads <= min(gained, lost))
    assert mcnemar(gained, lost) == pytest.approx(float(min(Fraction(1), 2 * tail)))


def test_a_hot_box_is_the_connected_part_of_half_height_with_half_a_cell_around() -> None:
    mean = np.zeros((8, 8))
    mean[0, 0], mean[0, 1], mean[6, 6] = 1.0, 0.6, 0.9  # the last is as hot, and not connected
    assert hot_box(mean) == (0.0, 0.0, 2.5 / 8, 1.5 / 8)
    assert hot_box(np.ones((8, 8))) is None
    assert hot_box(np.zeros((8, 8))) is None
    assert hot_box(np.eye(8)[:, ::-1] * np.linspace(0.1, 1, 8)) == (6.5 / 8, 0.0, 1.0, 1.5 / 8)


def test_groups_come_first_and_regions_that_lie_on_each_other_once() -> None:
    maps = np.zeros((30, 8, 8))
    maps[:, 0, 0] = 1.0
    found = candidates_of("marked", maps, np.arange(30), (), None)
    assert [one.what for one in found] == [REGION, *WHOLE]
    assert found[0].aside
    assert found[0].place() == "the top left, 4% of what the model sees"
    objects = np.zeros((30, 8, 8))
    objects[:, :2, :2] = 1.0
    region, background, *_ = candidates_of("marked", maps, np.arange(30), (), objects)
    assert region.outside == pytest.approx(0)
    assert not region.aside
    assert background.what == BACKGROUND


def test_a_box_elsewhere_is_found_where_there_is_room_and_only_there() -> None:
    random = np.random.default_rng(0)
    places = {elsewhere((0, 0, 2, 2), (3, 4), random) for _ in range(200)}
    assert places == {(2, 0, 4, 2), (2, 1, 4, 3)}
    assert elsewhere((1, 1, 3, 3), (4, 4), random) is None
    assert pixels_of((0.999, 0.0, 1.0, 0.001), (10, 10)) == (9, 0, 10, 1)


def test_too_few_pictures_give_no_verdict_whatever_the_trials_say(pool: Pool, adapter: Adapter) -> None:
    one = candidate()
    ruling = ruling_on(one, tried(one, pool, adapter))
    few = ruling_on_class("marked", 19, (), [(one, ruling)], (), True)
    assert (few.outcome, "19, and 20 are needed" in few.says) == ("too few", True)
    assert ruling_on_class("marked", 20, (), [(one, ruling)], (), True).outcome == SHORTCUT
