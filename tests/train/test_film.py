"""The film: its maps are those of `explain`'s own engine, its figures those of slow loops, and training never notices it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor, nn

from conftest import Plain, Regularised, assert_untouched, by_autograd, by_oracle, seeded
from sightline import adapt
from sightline.errors import ImageError, MetricError, ModelError, NonFiniteError, OutputError, TargetError
from sightline.models.adapter import Adapter
from sightline.models.view import View
from sightline.train.film import (
    EVEN_BORDER,
    Frame,
    Shot,
    border_share,
    frame,
    laid_out,
    moved,
    save_maps,
    shots,
    strip,
    write_whole,
)

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def prepared(photo: Image.Image) -> tuple[Tensor, View]:
    """16 x 16, from 0 to 1."""
    values = np.asarray(photo.resize((16, 16)), np.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1).clone(), View(photo.size, (16, 16), (0, 0), (16, 16))


def photograph(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def adapted(module: nn.Module | None = None, layer: str = "relu2") -> Adapter:
    return adapt(module or seeded(Plain), preprocess=prepared, labels=NAMES, layers=[layer])


def made(count: int = 3, label: int | None = 1) -> tuple[Shot, ...]:
    return shots([(photograph(seed), label) for seed in range(count)], adapted())


def film(count: int, pictures: int = 2) -> tuple[tuple[Shot, ...], list[Frame]]:
    """Frames of networks with other weights each, which is what training makes."""
    taken, frames = made(pictures), []
    for epoch in range(count):
        before = frames[-1] if frames else None
        frames.append(frame(taken, adapted(seeded(Plain, seed=epoch)), epoch, before))
    return taken, frames


# ------------------------------------------------------------------------------------------------------------- figures

grids = st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 13))
heat = st.floats(0, 2.0**100, width=32)


def maps_of(shape: tuple[int, int, int]) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float32, shape, elements=heat)


def slow_border(grid: np.ndarray) -> float:
    """A map's share in the border, with every cell cut into 8 x 8 parts: then the border's edge falls between parts on any grid."""
    h, w = grid.shape
    border = total = 0.0
    for row in range(8 * h):
        for column in range(8 * w):
            value = max(float(grid[row // 8, column // 8]), 0.0)
            total += value
            if row < h or row >= 7 * h or column < w or column >= 7 * w:
                border += value
    return math.nan if total == 0 else border / total


def slow_moved(before: np.ndarray, after: np.ndarray) -> float:
    """What has to be carried away, summed over the cells that lost."""
    first, second = sum(map(float, before.ravel())), sum(map(float, after.ravel()))
    if first == 0 or second == 0:
        return math.nan
    lost = 0.0
    for one, other in zip(before.ravel(), after.ravel(), strict=True):
        lost += max(float(one) / first - float(other) / second, 0.0)
    return lost


@given(grids.flatmap(maps_of))
def test_the_border_share_is_that_of_the_slow_loop(maps: np.ndarray) -> None:
    np.testing.assert_allclose(border_share(maps), [slow_border(one) for one in maps], atol=1e-9)


@given(grids.flatmap(lambda shape: st.tuples(maps_of(shape), maps_of(shape))))
def test_what_moved_is_that_of_the_slow_loop_either_way_round(pair: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = pair
    found = moved(before, after)
    np.testing.assert_allclose(found, [slow_moved(*both) for both in zip(before, after, strict=True)], atol=1e-9)
    np.testing.assert_array_equal(found, moved(after, before))
    known = found[~np.isnan(found)]
    assert ((known >= 0) & (known <= 1)).all()


@given(grids, st.floats(1e-30, 1e30))
def test_an_even_map_has_the_even_border_on_every_grid_and_at_every_strength(
    shape: tuple[int, int, int], strength: float
) -> None:
    np.testing.assert_allclose(border_share(np.full(shape, strength)), EVEN_BORDER, atol=1e-12)


def test_the_even_border_is_seven_sixteenths() -> None:
    assert EVEN_BORDER == 0.4375


@given(grids.flatmap(maps_of), st.floats(1e-6, 1e6))
def test_strength_counts_nothing(maps: np.ndarray, factor: float) -> None:
    stronger = maps.astype(np.float64) * factor
    np.testing.assert_allclose(border_share(stronger), border_share(maps), atol=1e-9)
    full = maps.astype(np.float64).sum(axis=(1, 2)) > 0
    np.testing.assert_allclose(moved(maps, stronger), np.where(full, 0, np.nan), atol=1e-9)


def test_heat_in_the_corner_is_all_border_and_in_the_middle_none() -> None:
    corner, middle = np.zeros((1, 16, 16)), np.zeros((1, 16, 16))
    corner[0, 0, 1] = middle[0, 2, 13] = 3.0
    assert border_share(corner).tolist() == [1.0]
    assert border_share(middle).tolist() == [0.0]
    assert moved(corner, middle).tolist() == [1.0]


def test_a_cell_that_the_edge_cuts_counts_by_its_area() -> None:
    one = np.zeros((1, 4, 4))
    one[0, 0, 1] = 1.0  # its upper half lies in the border
    assert border_share(one).tolist() == [0.5]


def test_negative_heat_counts_nothing_and_an_empty_map_has_no_share() -> None:
    maps = np.array([[[-5.0, 1.0], [1.0, 1.0]], [[-1.0, 0.0], [0.0, 0.0]]])
    share = border_share(maps)
    assert share[0] == pytest.approx(EVEN_BORDER)
    assert np.isnan(share[1])
    assert np.isnan(moved(maps, np.ones((2, 2, 2)))).tolist() == [False, True]


def test_the_smallest_and_the_largest_numbers_have_shares_too() -> None:
    maps = np.stack([np.full((3, 3), 5e-324), np.full((3, 3), 1e308)])
    np.testing.assert_allclose(border_share(maps), EVEN_BORDER)


def test_maps_on_another_grid_are_not_compared() -> None:
    with pytest.raises(MetricError, match=r"\(1, 4, 4\) and \(1, 2, 2\)"):
        moved(np.ones((1, 4, 4)), np.ones((1, 2, 2)))


# -------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("count", [2, 16, 37])
def test_a_frame_has_the_oracles_map_and_the_models_own_answer(count: int) -> None:
    model = seeded(Plain)
    taken = shots([(photograph(seed), seed % 5) for seed in range(count)], adapted(model))
    found = frame(taken, adapted(model), 3)
    x, true = torch.stack([one.x for one in taken]), torch.tensor([one.label for one in taken])
    activations, gradients, _ = by_autograd(model, "relu2", x, lambda out: out.gather(1, true[:, None])[:, 0])
    np.testing.assert_allclose(found.maps, by_oracle("grad-cam", activations, gradients).numpy(), atol=1e-6)
    said = model(x).softmax(dim=1).detach()
    assert found.predicted.tolist() == said.argmax(dim=1).tolist()
    np.testing.assert_allclose(found.probability, said.gather(1, true[:, None])[:, 0], atol=1e-6)
    assert found.maps.dtype == np.float32
    assert found.maps.max() > 0
    assert found.epoch == 3
    assert math.isnan(found.moved)


def test_the_means_leave_out_pictures_without_heat() -> None:
    taken = shots([(photograph(seed), seed % 5) for seed in range(10)], adapted())
    first = frame(taken, adapted(seeded(Plain, seed=1)), 1)
    second = frame(taken, adapted(seeded(Plain, seed=2)), 2, first)
    shares = border_share(second.maps)
    assert np.isnan(shares).any(), "no map is empty, so that this would prove nothing"
    assert second.border == pytest.approx(np.nanmean(shares))
    assert second.moved == pytest.approx(np.nanmean(moved(first.maps, second.maps)))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_in_training_is_not_touched_and_has_the_map_of_evaluation_mode(frozen: bool) -> None:
    model = seeded(Regularised).requires_grad_(not frozen)
    taken = made()
    wanted = frame(taken, adapted(model), 1)
    model.train()
    with assert_untouched(model):
        found = frame(taken, adapted(model), 1)
    np.testing.assert_array_equal(found.maps, wanted.maps)
    np.testing.assert_array_equal(found.probability, wanted.probability)


def test_without_a_class_the_map_is_of_the_predicted_one() -> None:
    found = frame(made(label=None), adapted(), 0)
    top = [int(one) for one in found.predicted]
    named = shots([(photograph(seed), one) for seed, one in enumerate(top)], adapted())
    wanted = frame(named, adapted(), 0)
    np.testing.assert_array_equal(found.maps, wanted.maps)
    np.testing.assert_array_equal(found.probability, wanted.probability)


def test_a_class_can_be_given_by_its_name() -> None:
    (one,) = shots([(photograph(0), "dog")], adapted())
    assert one.label == 3


def test_a_class_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(TargetError, match="no class 'cow'"):
        shots([(photograph(0), "cow")], adapted())
    with pytest.raises(TargetError, match="class 7 is outside 0 to 4"):
        frame(shots([(photograph(0), 7)], adapted()), adapted(), 0)


@pytest.mark.parametrize("pictures", ["cat.jpg", [], photograph(0)])
def test_pictures_are_a_list(pictures: object) -> None:
    with pytest.raises(ImageError, match="a list with at least one"):
        shots(pictures, adapted())  # type: ignore[arg-type]


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg can't be opened: no such file"):
        shots([tmp_path / "gone.jpg"], adapted())


def test_inputs_of_several_sizes_are_refused() -> None:
    def whole(photo: Image.Image) -> tuple[Tensor, View]:
        return torch.rand(3, photo.height, photo.width), View(photo.size, photo.size, (0, 0), photo.size)

    with pytest.raises(ModelError, match="the pictures of a film need one size"):
        shots([photograph(0), photograph(1, (20, 20))], adapt(seeded(Plain), preprocess=whole))


def test_a_model_without_preprocessing_is_refused() -> None:
    with pytest.raises(ModelError, match="preprocess=function"):
        shots([photograph(0)], adapt(seeded(Plain)))


def test_diverged_weights_are_named() -> None:
    model = seeded(Plain)
    model.conv1.weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"conv1\.weight"):
        frame(made(), adapted(model), 1)


# ------------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize(("count", "left"), [(1, []), (10, []), (13, [2, 6, 10])])
def test_at_most_ten_frames_are_drawn_the_first_and_the_last_among_them(count: int, left: list[int]) -> None:
    rows, captions = laid_out(*film(count), NAMES)
    titles = [tile.title for tile in rows[0][1:]]
    drawn = [int(title.split()[1].rstrip(":")) for title in titles]
    assert drawn == [epoch for epoch in range(count) if epoch not in left]
    said = [one for one in captions if "Not drawn: epoch" in one]
    assert said == ([f"Not drawn: epochs {', '.join(map(str, left))}."] if left else [])


def test_a_wrong_answer_is_marked_and_the_drawn_classes_own_probability_given() -> None:
    one = made(2)
    maps = np.ones((2, 4, 4), np.float32)
    rows, _ = laid_out(one, [Frame(3, maps, np.array([3, 1]), np.array([0.2, 0.97]), EVEN_BORDER, math.nan)], NAMES)
    assert [row[1].title.replace("\xa0", " ") for row in rows] == [
        "epoch 3: wrong, dog (bee 20 %)",
        "epoch 3: bee 97 %",
        "epoch 3",
    ]
    assert {row[1].note.replace("\xa0", " ") for row in rows} == {"border 44 %"}


def test_the_film_fits_a_screen_and_many_pictures_are_said_to_be_left_out() -> None:
    taken, frames = film(10, pictures=9)
    drawn = strip(taken, frames, NAMES)
    assert drawn.width < 2000
    assert drawn.mode == "RGB"
    rows, captions = laid_out(taken, frames, NAMES)
    assert len(rows) == 8 + 1
    assert "Not drawn: 1 more of the 9 pictures; the means are of all." in captions


def test_a_map_without_heat_says_so() -> None:
    nothing = Frame(0, np.zeros((1, 4, 4), np.float32), np.array([1]), np.array([0.5]), math.nan, math.nan)
    rows, _ = laid_out(made(1), [nothing], None)
    assert rows[0][1].note == "empty: no heat"
    assert strip(made(1), [nothing]).mode == "RGB"


def test_a_film_without_frames_is_refused() -> None:
    with pytest.raises(OutputError, match="no frame to draw"):
        strip(made(), [])


# --------------------------------------------------------------------------------------------------------------- files


def test_the_raw_maps_are_read_back_without_pickle(tmp_path: Path) -> None:
    taken, frames = film(3)
    save_maps(tmp_path / "run" / "maps.npz", taken, frames)
    with np.load(tmp_path / "run" / "maps.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["maps"], np.stack([one.maps for one in frames]))
        assert found["epochs"].tolist() == [0, 1, 2]
        assert found["names"].tolist() == ["picture 1", "picture 2"]
        assert found["labels"].tolist() == [1, 1]
        np.testing.assert_array_equal(found["border"], [one.border for one in frames])
        np.testing.assert_array_equal(found["moved"], [one.moved for one in frames])
        assert found["predicted"].shape == found["probability"].shape == (3, 2)


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "one", b"old")
    write_whole(tmp_path / "one", b"new")
    assert (tmp_path / "one").read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(OutputError, match="folder can't be written"):
        write_whole(tmp_path / "folder", b"new")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "one"], "something half is left"


def test_means_are_drawn_of_each_class_and_also_where_no_heat_lies_at_the_border() -> None:
    taken, frames = film(2)
    two = (taken[0], dataclasses.replace(taken[1], label=0))
    middle = np.zeros((2, 8, 8), np.float32)
    middle[:, 3:5, 3:5] = 1
    border = middle.copy()
    border[1] = 0
    border[1, 0, 0] = 1
    shown = [dataclasses.replace(one, maps=maps) for one, maps in zip(frames, (middle, border), strict=True)]
    rows, _ = laid_out(two, shown, ["left", "right"])
    notes = {row[0].title: [tile.note for tile in row[1:]] for row in rows[2:]}
    assert [title.replace("\N{NO-BREAK SPACE}", " ") for title in notes] == [
        "left, mean of 1",
        "right, mean of 1",
        "mean of all 2",
    ]
    plain = [[note.replace("\N{NO-BREAK SPACE}", " ") for note in each] for each in notes.values()]
    assert plain[0] == ["border under 0.1 %", "border 100 %, moved 100 %"]
    assert plain[1] == ["border under 0.1 %", "border under 0.1 %, moved under 0.1 %"]
    assert plain[2] == ["border under 0.1 %", "border 50 %, moved 50 %"]
    assert strip(two, shown, ["left", "right"]).width > 0
