"""Where the heat lies: each share against a slow one by loops, and what a mask covers of a cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from made_runs import make_run, row
from sightline.audit.heat import CORNERS, MIDDLE, covered, in_box, is_label, overlaps, parts_of, read_heats, where
from sightline.batch.results import open_run
from sightline.errors import OutputError
from sightline.models.view import View


def shares(count: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    maps = np.random.default_rng(seed).random((count, h, w))
    return maps / maps.sum(axis=(1, 2), keepdims=True)


def share_by_points(heat: np.ndarray, boxes: list[tuple[float, float, float, float]], fine: int = 40) -> float:
    """The share in a union of boxes that don't overlap, point by point on a grid that meets every edge."""
    h, w = heat.shape
    total = 0.0
    for y in range(h * fine):
        for x in range(w * fine):
            at = ((x + 0.5) / (w * fine), (y + 0.5) / (h * fine))
            if any(left < at[0] < right and top < at[1] < bottom for left, top, right, bottom in boxes):
                total += heat[y // fine, x // fine] / fine**2
    return total


@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_shares_of_border_corners_and_middle_are_those_of_the_area(size: tuple[int, int]) -> None:
    maps = shares(2, *size)
    found = parts_of(maps)
    edge = 1 / 8
    border = [(0, 0, 1, edge), (0, 1 - edge, 1, 1), (0, edge, edge, 1 - edge), (1 - edge, edge, 1, 1 - edge)]
    for name, boxes in (("border", border), ("corners", list(CORNERS.values())), ("middle", [MIDDLE])):
        values, even = found[name]
        for one, value in zip(maps, values, strict=True):
            assert value == pytest.approx(share_by_points(one, boxes), abs=1e-6)
        assert even == pytest.approx(sum((right - left) * (bottom - top) for left, top, right, bottom in boxes))


def test_an_even_map_has_its_even_share_everywhere_and_one_without_heat_has_none() -> None:
    maps = np.stack([np.full((7, 7), 1 / 49), np.zeros((7, 7))])
    objects = np.stack([np.full((7, 7), 0.3), np.full((7, 7), 0.3)])
    for values, even in parts_of(maps, objects).values():
        assert values[0] == pytest.approx(even)
        assert np.isnan(values[1])


def test_pictures_without_a_mask_have_no_share_on_the_object() -> None:
    objects = np.stack([np.eye(4), np.full((4, 4), np.nan)])
    maps = shares(2, 4, 4)
    values, even = parts_of(maps, objects)["object"]
    assert values[0] == pytest.approx(np.trace(maps[0]))
    assert np.isnan(values[1])
    assert even == 0.25


def test_the_commonest_cell_is_counted_over_the_maps_that_have_a_highest_one() -> None:
    maps = np.zeros((5, 3, 3))
    for at, cell in enumerate([(0, 0), (0, 0), (0, 0), (2, 2)]):
        maps[at][cell] = 1
    (common,) = [one for one in where(parts_of(maps), maps, np.arange(5)) if one.part == "commonest cell"]
    assert (common.share.mean, common.share.undefined, common.even) == (0.75, 1, 1 / 9)


def test_a_box_covers_each_cell_by_its_area() -> None:
    box = (0.1, 0.3, 0.65, 0.9)
    cells = in_box((4, 5), box)
    for y in range(4):
        for x in range(5):
            wide = max(0, min(box[2], (x + 1) / 5) - max(box[0], x / 5)) * 5
            high = max(0, min(box[3], (y + 1) / 4) - max(box[1], y / 4)) * 4
            assert cells[y, x] == pytest.approx(wide * high)


def test_what_a_mask_covers_of_a_cell_is_exact_through_crop_and_padding() -> None:
    mask = np.random.default_rng(0).random((13, 20)) < 0.4
    for view in (
        View((20, 13), (40.0, 26.0), (7.0, -3.0), (24, 32)),
        View((20, 13), (20.0, 13.0), (0.0, 0.0), (20, 13)),
        View((20, 13), (10.0, 6.5), (1.25, 0.5), (8, 4)),
    ):
        found = covered(mask, view, (3, 4))
        fine = 200
        for row_ in range(3):
            for column in range(4):
                hits = 0
                for dy in range(fine // 10):
                    for dx in range(fine // 10):
                        x = (
                            (view.offset[0] + (column + (dx + 0.5) / (fine / 10)) * view.input[0] / 4)
                            * 20
                            / view.resized[0]
                        )
                        y = (
                            (view.offset[1] + (row_ + (dy + 0.5) / (fine / 10)) * view.input[1] / 3)
                            * 13
                            / view.resized[1]
                        )
                        hits += 0 <= x < 20 and 0 <= y < 13 and bool(mask[int(y), int(x)])
                assert found[row_, column] == pytest.approx(hits / (fine / 10) ** 2, abs=0.06)


def test_a_whole_mask_covers_what_of_the_input_is_photograph() -> None:
    view = View(
        (10, 10), (10.0, 10.0), (-5.0, 0.0), (20, 10)
    )  # as much padding on both sides as half of the photograph
    assert covered(np.ones((10, 10), bool), view, (2, 4)) == pytest.approx(np.array([[0, 1, 1, 0]] * 2))


def test_a_coarser_grid_keeps_all_heat() -> None:
    for n, m in ((7, 3), (16, 16), (14, 9), (3, 5)):
        assert overlaps(n, m).sum(axis=0) == pytest.approx(np.ones(n))


def test_a_label_is_a_class_by_its_name_in_any_letters_or_by_its_number() -> None:
    assert is_label("Tiger_Cat", "tiger cat", 282)
    assert is_label(" 282", "tiger cat", 282)
    assert not is_label("28", "tiger cat", 282)
    assert not is_label(None, "tiger cat", 282)


def test_where_names_are_numbers_a_label_is_the_name_and_not_the_place() -> None:
    names = sorted(str(number) for number in range(1, 12))  # 1, 10, 11, 2, ...
    for label in names:
        assert [name for index, name in enumerate(names) if is_label(label, name, index)] == [label]


def test_a_run_is_read_with_one_map_a_picture_and_its_errors_counted(tmp_path: Path) -> None:
    heats = read_heats(open_run(make_run(tmp_path / "run")))
    assert (len(heats), heats.errors, heats.method, heats.grid) == (9, 1, "grad-cam", (2, 3))
    assert heats.shares.sum(axis=(1, 2)) == pytest.approx(np.ones(9))
    assert set(heats.predicted) == {"tabby"}
    assert set(heats.labels) == {"cat"}
    assert heats.chances_of_label.tolist() == [0.0] * 9
    assert heats.right.tolist() == [0.0] * 9
    assert heats.index.tolist() == [281] * 9
    assert heats.view(0) == View((80, 60), (80.0, 60.0), (10.0, 0.0), (60, 60))
    assert read_heats(open_run(tmp_path / "run"), "eigen-cam").method == "eigen-cam"
    with pytest.raises(
        OutputError, match=r"no maps of 'grad-camm'; expected one of grad-cam, eigen-cam\. Did you mean"
    ):
        read_heats(open_run(tmp_path / "run"), "grad-camm")


def test_maps_of_another_grid_are_brought_to_the_commonest(tmp_path: Path) -> None:
    def finer(one: dict) -> None:
        if one["id"].endswith("003.jpg"):
            for each in one["maps"]:
                each |= {
                    "height": 4,
                    "width": 6,
                    "heat": np.repeat(np.repeat(each["heat"].reshape(2, 3), 2, 0), 2, 1).ravel(),
                }

    heats = read_heats(open_run(make_run(tmp_path / "run", change=finer)))
    plain = read_heats(open_run(make_run(tmp_path / "plain")))
    assert heats.coarser == 1
    assert heats.shares == pytest.approx(plain.shares, abs=1e-6)


def test_a_run_in_which_everything_failed_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run", failed=range(10))
    with pytest.raises(OutputError, match="no map of grad-cam: 10 of its 10 pictures failed"):
        read_heats(open_run(tmp_path / "run"))


def test_values_that_are_not_finite_carry_no_heat(tmp_path: Path) -> None:
    def broken(one: dict) -> None:
        for each in one["maps"]:
            each["heat"] = np.array([np.nan, -1, np.inf, 2, 2, 0], np.float16)

    heats = read_heats(open_run(make_run(tmp_path / "run", failed=(), change=broken)))
    assert heats.shares[0].ravel().tolist() == [0, 0, 0, 0.5, 0.5, 0]
    assert row("a", 0)["maps"]  # the rows were as always before the change
