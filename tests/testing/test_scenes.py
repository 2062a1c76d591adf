"""Scenes that are drawn again are the same, and without a part they are the same everywhere else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from sightline.errors import ImageError
from sightline.testing import COLOURS, PARTS, RULES, SIDE, PartScenes, compose, draw


@pytest.fixture(scope="module")
def scenes() -> PartScenes:
    return compose(96, seed=3)


def test_scenes_of_one_object_are_those_that_networks_were_trained_and_measured_on() -> None:
    # The figures in the documents, and the tests that train on these scenes, belong to these numbers.
    assert hashlib.sha256(draw(16, 2).masks.tobytes()).hexdigest()[:16] == "575e0d6f9cbc0c30"
    assert draw(16, 2).classes.tolist() == [3, 1, 0, 1, 1, 3, 1, 0, 1, 2, 3, 2, 3, 0, 3, 0]
    assert draw(16, 2).pictures.astype(np.float64).mean() == pytest.approx(0.49146650, abs=1e-7)


def test_an_objects_colour_changes_nothing_but_the_object() -> None:
    plain = draw(24, 5)
    other = draw(24, 5, colours=(plain.classes + 1) % len(COLOURS))
    assert (other.classes != plain.classes).all()
    assert np.array_equal(plain.masks, other.masks)
    changed = (plain.pictures != other.pictures).any(axis=1)
    assert not (changed & ~plain.masks).any()
    assert changed[plain.masks].mean() > 0.99


@pytest.mark.parametrize("colours", [[0, 1], [0, 1, 4], [0, -1, 2]])
def test_colours_that_do_not_exist_or_do_not_fit_are_refused(colours: list[int]) -> None:
    with pytest.raises(ImageError, match="colours must be 3 numbers from 0 to 3"):
        draw(3, 0, colours=np.array(colours))


def test_the_shapes_types_and_ranges_are_as_documented(scenes: PartScenes) -> None:
    assert scenes.pictures.shape == (96, 3, SIDE, SIDE)
    assert scenes.pictures.dtype == np.float32
    assert 0 <= scenes.pictures.min() <= scenes.pictures.max() <= 1
    assert scenes.masks.shape == (96, len(PARTS), SIDE, SIDE)
    assert scenes.masks.dtype == bool
    assert scenes.parts == PARTS
    assert set(scenes.classes) == set(range(len(RULES)))
    for part in range(len(PARTS)):
        assert set(scenes.variants[:, part]) <= {0, 1, 2}


def test_every_part_is_seen_and_no_place_belongs_to_two() -> None:
    masks = compose(512, seed=4).masks
    assert masks.sum(axis=(2, 3)).min() >= 9
    assert masks.sum(axis=1).max() == 1


@pytest.mark.parametrize("parts", [(name,) for name in PARTS] + [("head", "tail"), PARTS, ()], ids="-".join)
def test_without_a_part_everything_else_is_the_same_bit_for_bit(scenes: PartScenes, parts: tuple[str, ...]) -> None:
    drawn = scenes.without(*parts)
    changed = (drawn != scenes.pictures).any(axis=1)
    gone = scenes.masks[:, [PARTS.index(name) for name in parts]].any(axis=1)
    assert drawn.dtype == np.float32
    assert not (changed & ~gone).any()
    if parts:
        assert changed[gone].mean() > 0.99
        assert changed.any(axis=(1, 2)).all()


def test_a_part_that_is_taken_away_uncovers_what_it_covered(scenes: PartScenes) -> None:
    # Under the wing is the body: without either, another picture than without the wing.
    wing = scenes.masks[:, PARTS.index("wing")]
    naked, empty = scenes.without("wing"), scenes.without("wing", "body")
    differs = (naked != empty).any(axis=1)
    assert differs[wing].mean() > 0.9


def test_the_rules_decide_the_variants_and_leave_the_others_to_chance(scenes: PartScenes) -> None:
    for index, rule in enumerate(RULES):
        of_class = scenes.variants[scenes.classes == index]
        for part, wanted in enumerate(rule):
            assert set(of_class[:, part]) == ({0, 1, 2} if wanted is None else {wanted})
    own = compose(40, seed=0, rules=[(None, 0, 2, 2), (None, 1, 2, 2)])
    assert (own.variants[:, 1] == own.classes).all()
    assert (own.variants[:, 2:] == 2).all()


def test_the_same_seed_gives_the_same_scenes_however_many(scenes: PartScenes) -> None:
    again = compose(96, seed=3)
    assert np.array_equal(scenes.pictures, again.pictures)
    assert not np.array_equal(scenes.pictures, compose(96, seed=30).pictures)
    # The rules have a say in the picture, so that equal scenes need equal variants.
    fixed = [(0, 1, 2, 0)]
    assert np.array_equal(compose(4, 7, rules=fixed).pictures, compose(9, 7, rules=fixed).pictures[:4])


def test_what_can_not_be_drawn_is_refused(scenes: PartScenes) -> None:
    with pytest.raises(ImageError, match="no part 'heat'; Did you mean 'head'"):
        scenes.without("heat")
    with pytest.raises(ImageError, match="expected one of 0, 1, 2 and None for each of"):
        compose(2, 0, rules=[(0, 0, 0)])
    with pytest.raises(ImageError, match=r"the rule \(0, 3, 0, 0\)"):
        compose(2, 0, rules=[(0, 3, 0, 0)])
    with pytest.raises(ImageError, match="no rule"):
        compose(2, 0, rules=[])
