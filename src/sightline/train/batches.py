"""Batches for the network, made ready by threads while it computes: of pictures, or of what a frozen trunk said of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from sightline.data.images import read_image
from sightline.models.preprocess import Preprocess
from sightline.train.folders import Example

Gather = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
_AHEAD = 2
_THREADS = min(8, os.cpu_count() or 1)


class Batches:
    """Goes through a data set once each time, in an order that depends on the seed and the epoch alone."""

    def __init__(
        self, count: int, size: int, gather: Gather, *, seed: int | None = None, rank: int = 0, processes: int = 1
    ) -> None:
        """
        Args:
            count: how many examples there are.
            size: how many of them make a batch.
            gather: makes the batch of these numbers: (inputs, labels).
            seed: of the order; None for that of the numbers.
            rank: which of several processes this is, each of which gets its share.
            processes: how many there are.
        """
        self.size, self.gather = size, gather
        # Lightning tells a sampler the epoch, and asks for both kinds, as a DataLoader has them.
        self.batch_sampler = None
        self.sampler: DistributedSampler[int] = DistributedSampler(
            range(count),  # type: ignore[arg-type]
            num_replicas=processes,
            rank=rank,
            shuffle=seed is not None,
            seed=seed or 0,
        )

    def __len__(self) -> int:
        return len(_groups(range(len(self.sampler)), self.size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
        pool = ThreadPoolExecutor(1)
        try:
            for group in _groups(list(self.sampler), self.size):
                waiting.append(pool.submit(self.gather, group))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def of_pictures(examples: Sequence[Example], preprocess: Preprocess) -> Gather:
    """Batches of pictures (B, C, H, W), read and prepared as the model wants them."""

    def one(index: int) -> Tensor:
        return preprocess(read_image(examples[index].path)[0])[0]

    def gather(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        with ThreadPoolExecutor(_THREADS) as pool:
            inputs = torch.stack(list(pool.map(one, numbers)))
        return inputs, torch.tensor([examples[index].label for index in numbers])

    return gather


def of_features(versions: Sequence[np.ndarray[Any, Any]], examples: Sequence[Example]) -> Gather:
    """Batches of rows of features (B, C); of two versions, of the pictures and of mirrored ones, both (B, 2, C).

    Args:
        versions: (N, C) each.
        examples: the N pictures.
    """
    labels = np.array([one.label for one in examples])

    def gather(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = list(numbers)
        found = [torch.from_numpy(one[rows]) for one in versions]
        return found[0] if len(found) == 1 else torch.stack(found, dim=1), torch.from_numpy(labels[rows])

    return gather


def mirrored_pictures(x: Tensor, which: Tensor) -> Tensor:
    """Pictures (B, C, H, W), those that are true in `which` (B,) mirrored."""
    return torch.where(which.view(-1, 1, 1, 1), x.flip(-1), x)


def mirrored_features(x: Tensor, which: Tensor) -> Tensor:
    """Of two versions (B, 2, C) the second where `which` (B,) is true: (B, C)."""
    return torch.where(which.view(-1, 1), x[:, 1], x[:, 0])


def _groups(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    """Batches of numbers; a single one at the end goes with the batch before, because no batch norm learns from one."""
    starts = list(range(0, len(numbers), size))
    if size > 1 and len(starts) > 1 and len(numbers) - starts[-1] == 1:
        starts.pop()
    return [numbers[start:end] for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True)]
