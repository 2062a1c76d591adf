"""Each change does what it says, and nothing to what it was given."""

from __future__ import annotations

import pytest
import torch

from sightline.audit import changes

BOXES = [(2, 1, 7, 5), (0, 0, 4, 4), (8, 6, 12, 10)]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(3, 3, 10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def donors() -> torch.Tensor:
    return torch.rand(3, 3, 10, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.5 + 0.2


def inside(x: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
    for at, (left, top, right, bottom) in enumerate(BOXES):
        mask[at, top:bottom, left:right] = True
    return mask[:, None].expand_as(x)


@pytest.mark.parametrize("name", ["cover", "inpaint", "paste"])
def test_nothing_outside_of_the_box_changes_and_everything_inside_does(
    name: str, x: torch.Tensor, donors: torch.Tensor
) -> None:
    before = x.clone()
    found = changes.paste(x, donors, BOXES) if name == "paste" else getattr(changes, name)(x, BOXES)
    mask = inside(x)
    assert torch.equal(x, before)
    assert torch.equal(found[~mask], x[~mask])
    assert (found[mask] != x[mask]).all()


def test_a_box_is_covered_with_the_mean_of_the_rest(x: torch.Tensor) -> None:
    found = changes.cover(x, BOXES)
    mask = inside(x)
    for at, (left, top, _, _) in enumerate(BOXES):
        for channel in range(3):
            rest = x[at, channel][~mask[at, channel]]
            assert found[at, channel, top, left] == pytest.approx(float(rest.mean()))


def test_what_is_inpainted_into_a_ramp_is_the_ramp() -> None:
    ramp = torch.arange(12, dtype=torch.float64).expand(1, 3, 10, 12).clone()
    assert changes.inpaint(ramp, [(3, 2, 8, 7)])[0, :, :, 2:9] == pytest.approx(ramp[0, :, :, 2:9], abs=1.3)
    even = torch.full((1, 3, 10, 12), 0.4, dtype=torch.float64)
    for box in [(0, 0, 4, 4), (3, 3, 8, 8), (0, 0, 12, 4)]:
        assert changes.inpaint(even, [box]) == pytest.approx(even)


def test_inpainting_weighs_the_four_edges_by_their_nearness(x: torch.Tensor) -> None:
    left, top, right, bottom = box = (2, 1, 7, 5)
    found = changes.inpaint(x[:1], [box])[0]
    for row in range(top, bottom):
        for column in range(left, right):
            edges = [
                (x[0, :, top - 1, column], row - top + 1), (x[0, :, bottom, column], bottom - row),
                (x[0, :, row, left - 1], column - left + 1), (x[0, :, row, right], right - column),
            ]  # fmt: skip
            wanted = sum(one / distance for one, distance in edges) / sum(1 / distance for _, distance in edges)
            assert found[:, row, column] == pytest.approx(wanted)


def test_a_tone_is_the_donors_mean_and_spread() -> None:
    random = torch.Generator().manual_seed(2)
    x, donors = (torch.randn(2, 3, 32, 32, generator=random, dtype=torch.float64) * scale for scale in (1.0, 0.6))
    found = changes.tone(x, donors + 0.3)
    assert found.mean(dim=(2, 3)) == pytest.approx((donors + 0.3).mean(dim=(2, 3)), abs=1e-6)
    assert found.std(dim=(2, 3)) == pytest.approx(donors.std(dim=(2, 3)), abs=1e-6)
    assert changes.tone(x, x) == pytest.approx(x)


def test_a_tone_leaves_no_value_that_neither_picture_has(x: torch.Tensor, donors: torch.Tensor) -> None:
    found = changes.tone(x, donors * 9)
    for at in range(3):
        assert found[at].max() <= max(x[at].max(), 9 * donors[at].max())
        assert found[at].min() >= min(x[at].min(), 9 * donors[at].min())


def test_a_fine_texture_has_the_donors_strength_and_the_pictures_own_phases() -> None:
    random = torch.Generator().manual_seed(3)
    x, donors = (torch.rand(2, 3, 30, 24, generator=random, dtype=torch.float64) for _ in range(2))
    wanted = donors.clone()
    wanted[:, :, 0, 0], wanted[:, :, 1, 1] = 99, -99  # a range so wide that nothing is cut off
    found = changes.texture(x, wanted)
    fine = 0
    for down in range(30):
        for over in range(24):
            waves = ((min(down, 30 - down) / 30) ** 2 + (min(over, 24 - over) / 24) ** 2) ** 0.5 * 24
            spectra = [torch.fft.fft2(one)[:, :, down, over] for one in (found, x, wanted)]
            if waves < 10 - 1e-9:
                assert spectra[0] == pytest.approx(spectra[1], abs=1e-4)
            elif waves > 10 + 1e-9:
                fine += 1
                assert spectra[0].abs() == pytest.approx(spectra[2].abs(), abs=1e-3)
                assert spectra[0] * spectra[1].abs() == pytest.approx(spectra[1] * spectra[0].abs(), abs=1e-2)
    assert fine > 100
    assert changes.texture(x, x) == pytest.approx(x, abs=1e-6)


def test_stripes_are_a_texture_that_can_be_taken_and_given() -> None:
    stripes = torch.where(torch.arange(48) % 4 < 2, 0.2, -0.2).expand(1, 3, 48, 48)
    random = torch.Generator().manual_seed(4)
    plain, other = (0.3 + 0.4 * torch.rand(1, 3, 48, 48, generator=random) for _ in range(2))

    def strength(one: torch.Tensor) -> float:
        return float(torch.fft.fft2(one)[0, 0, 0, 12].abs())

    given, taken = changes.texture(plain, other + stripes), changes.texture(plain + stripes, other)
    assert strength(given) > 0.9 * strength(other + stripes) > 10 * strength(plain)
    assert strength(taken) < 0.1 * strength(plain + stripes)


def test_a_background_is_the_donors_and_the_object_stays(x: torch.Tensor, donors: torch.Tensor) -> None:
    objects, others = torch.zeros(2, 3, 10, 12, dtype=torch.float64)
    objects[:, 2:6, 3:8], others[:, 5:9, 2:6] = 1, 1
    found = changes.paste_around(x, donors, objects, others)
    own, plain = objects[:, None].expand_as(x) == 1, ((objects + others) == 0)[:, None].expand_as(x)
    assert torch.equal(found[own], x[own])
    assert found[plain] == pytest.approx(donors[plain])
    behind = (others[0] == 1) & (objects[0] == 0)
    assert found[0][:, behind] == pytest.approx(
        donors[0][:, others[0] == 0].mean(dim=1)[:, None].expand(3, int(behind.sum()))
    )


def test_smaller_and_larger_keep_the_size_and_the_middle() -> None:
    dot = torch.zeros(1, 3, 48, 48)
    dot[:, :, 20:28, 20:28] = 1
    areas = [float(one.sum()) for one in (changes.smaller(dot), dot, changes.larger(dot))]
    assert areas[0] == pytest.approx(0.49 * areas[1], rel=0.15)
    assert areas[2] == pytest.approx(areas[1] / 0.49, rel=0.15)
    for one in (changes.smaller(dot), changes.larger(dot)):
        assert one.shape == dot.shape
        assert one[0, 0, 24, 24] == pytest.approx(1, abs=0.01)
    odd = torch.rand(1, 1, 7, 9)
    assert changes.smaller(odd).shape == changes.larger(odd).shape == odd.shape
