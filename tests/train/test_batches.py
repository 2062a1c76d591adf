"""Batches: everything exactly once, in an order that can be had again, ahead of whoever computes, and nothing left behind."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sightline.errors import ImageError
from sightline.models.preprocess import standard
from sightline.train.batches import (
    Batches,
    mirrored_features,
    mirrored_pictures,
    of_features,
    of_pictures,
)
from sightline.train.folders import Example


def numbers(group: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A batch that says which examples it is of."""
    return torch.tensor(list(group)), torch.tensor(list(group)) * 10


def drawn(batches: Batches) -> list[list[int]]:
    return [x.tolist() for x, _ in batches]


def epoch(number: int, **options: Any) -> list[list[int]]:
    batches = Batches(23, 4, numbers, seed=5, **options)
    batches.sampler.set_epoch(number)
    return drawn(batches)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Whatever a test does, the threads are those of before when it is over."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


# ------------------------------------------------------------------------------------------------------- what is in them


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 20), st.one_of(st.none(), st.integers(0, 99)), st.integers(0, 3))
def test_every_example_comes_exactly_once_an_epoch(count: int, size: int, seed: int | None, at: int) -> None:
    batches = Batches(count, size, numbers, seed=seed)
    batches.sampler.set_epoch(at)
    found = drawn(batches)
    flat = [one for group in found for one in group]
    assert sorted(flat) == list(range(count))
    assert len(batches) == len(found)
    if seed is None:
        assert flat == list(range(count))
    # Full batches; only the last has fewer, or one more because a single one is left.
    assert all(len(one) == size for one in found[:-1])
    single = size > 1 and count > 1 and count % size == 1
    assert len(found[-1]) == (size + 1 if single else (count - 1) % size + 1)


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (5, 4, [5]), (4, 4, [4]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)  # fmt: skip
def test_a_single_last_one_goes_with_the_batch_before(count: int, size: int, lengths: list[int]) -> None:
    batches = Batches(count, size, numbers)
    assert [len(one) for one in drawn(batches)] == lengths
    assert len(batches) == len(lengths)


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    first = epoch(0)
    torch.manual_seed(1)
    assert epoch(0) == first
    assert epoch(1) != first
    assert epoch(1) == epoch(1)
    assert drawn(Batches(23, 4, numbers, seed=6)) != first
    again = Batches(23, 4, numbers, seed=5)
    assert drawn(again) == drawn(again) == first  # nothing but the epoch's number moves it on


def test_the_labels_are_those_of_the_inputs() -> None:
    for x, labels in Batches(23, 4, numbers, seed=1):
        assert torch.equal(labels, x * 10)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_several_processes_share_all_and_take_as_many_steps_as_each_other(processes: int) -> None:
    shares = [epoch(2, rank=rank, processes=processes) for rank in range(processes)]
    assert len({tuple(len(group) for group in one) for one in shares}) == 1
    counts = Counter(one for share in shares for group in share for one in group)
    assert counts.keys() == set(range(23))
    # That all have as many, some of the examples come twice, never more of them than are needed for that.
    assert sum(counts.values()) - 23 == -23 % processes
    assert max(counts.values()) <= 2


# --------------------------------------------------------------------------------------------------- how they are made


def test_the_next_two_batches_are_made_while_one_is_computed_with() -> None:
    made = [threading.Event() for _ in range(6)]

    def gather(group: Sequence[int]) -> tuple[Tensor, Tensor]:
        made[group[0]].set()
        return numbers(group)

    for at, (x, _) in enumerate(Batches(6, 1, gather)):
        assert int(x[0]) == at
        # Nothing more is asked for here, and still the next ones come to be.
        for ahead in (at + 1, at + 2):
            assert ahead > 5 or made[ahead].wait(20)


def test_loading_waits_for_whoever_computes_and_memory_holds_a_few_batches() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, begun = [0], [0]

    class Held:
        """What a batch holds, so that it can be counted."""

    def gather(group: Sequence[int]) -> Any:
        begun[0] += 1
        held = Held()
        alive.add(held)
        most[0] = max(most[0], len(alive))
        return held, torch.tensor(list(group))

    taken = 0
    for held, _ in Batches(200, 2, gather):
        taken += 1
        assert begun[0] <= taken + 2
        del held
    assert taken == begun[0] == 100
    assert most[0] <= 4


def test_what_goes_wrong_in_a_thread_comes_out_in_its_place() -> None:
    def gather(group: Sequence[int]) -> tuple[Tensor, Tensor]:
        if 8 in group:
            raise ImageError("picture 8 is gone")
        return numbers(group)

    batches = iter(Batches(20, 4, gather))
    assert [next(batches)[0].tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(ImageError, match="picture 8"):
        next(batches)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whoever_stops_in_the_middle_leaves_no_thread_and_nothing_is_loaded_any_more(
    error: type[BaseException],
) -> None:
    begun: list[int] = []

    def gather(group: Sequence[int]) -> tuple[Tensor, Tensor]:
        begun.append(group[0])
        return numbers(group)

    def stopped() -> None:
        for x, _ in Batches(400, 4, gather):
            if 8 in x:
                raise error

    with pytest.raises(error):
        stopped()
    assert not [one for one in threading.enumerate() if one.name.startswith("ThreadPoolExecutor")]
    assert len(begun) <= 5

    batches = iter(Batches(400, 4, gather))
    next(batches)
    del batches  # also without an error, as by a break


def test_two_at_the_same_time_do_not_disturb_each_other() -> None:
    batches = Batches(23, 4, numbers, seed=5)
    pairs = list(zip(batches, batches, strict=True))
    assert [(x.tolist(), y.tolist()) for (x, _), (y, _) in pairs] == [(one, one) for one in epoch(0)]


# ------------------------------------------------------------------------------------------------------- what they are of


def examples(folder: Path, count: int) -> list[Example]:
    made = []
    for number in range(count):
        path = folder / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        made.append(Example(path.name, path, number % 3, "0"))
    return made


def test_pictures_are_prepared_as_the_model_wants_them_each_in_its_place(tmp_path: Path) -> None:
    pictures = examples(tmp_path, 11)
    take = standard((16, 12), (16, 12), fit="exact", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    x, labels = of_pictures(pictures, take)([7, 0, 10, 3])
    assert labels.tolist() == [1, 0, 1, 0]
    for row, number in zip(x, [7, 0, 10, 3], strict=True):
        pixels = np.asarray(Image.open(pictures[number].path).resize((16, 12), Image.Resampling.BILINEAR), np.float64)
        wanted = (pixels / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.4)
        assert np.abs(row.permute(1, 2, 0).double().numpy() - wanted).max() < 1e-5


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    pictures = examples(tmp_path, 6)
    pictures[4].path.unlink()
    take = standard((8, 8), 8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    with pytest.raises(ImageError, match=r"4\.png"):
        list(Batches(6, 2, of_pictures(pictures, take)))


def test_features_are_the_rows_of_the_examples_in_one_version_or_two(tmp_path: Path) -> None:
    pictures = examples(tmp_path, 6)
    rng = np.random.default_rng(0)
    plain, mirrored = rng.random((6, 4), np.float32), rng.random((6, 4), np.float32)
    x, labels = of_features([plain], pictures)([5, 1])
    assert np.array_equal(x.numpy(), plain[[5, 1]])
    assert labels.tolist() == [2, 1]
    both, _ = of_features([plain, mirrored], pictures)([5, 1])
    assert np.array_equal(both.numpy(), np.stack([plain[[5, 1]], mirrored[[5, 1]]], axis=1))
    which = torch.tensor([True, False])
    assert np.array_equal(mirrored_features(both, which).numpy(), np.stack([mirrored[5], plain[1]]))


def test_of_the_pictures_only_the_chosen_ones_are_mirrored() -> None:
    x = torch.arange(24.0).view(2, 2, 2, 3)
    found = mirrored_pictures(x, torch.tensor([False, True]))
    assert torch.equal(found[0], x[0])
    for channel in range(2):
        for row in range(2):
            assert found[1, channel, row].tolist() == x[1, channel, row].tolist()[::-1]
