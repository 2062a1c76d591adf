"""What a frozen trunk says of each picture, computed once and kept in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.errors import NonFiniteError
from sightline.models.adapter import like_weights
from sightline.models.twin import twin
from sightline.train.batches import Batches, of_pictures
from sightline.train.folders import Example
from sightline.train.network import Network

# So many batches are written at once; a run that was stopped goes on behind the last of them.
_CHUNK = 16
Features = np.ndarray[Any, np.dtype[np.float32]]


def features(
    network: Network,
    examples: Sequence[Example],
    file: Path,
    batch_size: int,
    flipped: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Features:
    """What the head is fed for each picture: (N, C), in a file of plain float32 that is read as it is needed.

    Args:
        network: its head is the last that happens, see `Network.whole`.
        examples: the pictures.
        file: where they are kept; what an earlier run of the same plan wrote is taken over.
        batch_size: how many pictures the network is shown at once.
        flipped: of the mirrored pictures.
        watch: called with the number of pictures that are done.

    Raises:
        NonFiniteError: NaN or infinity for a picture, which it names.
    """
    width = network.width
    chunk = _CHUNK * batch_size
    if file.is_symlink():  # its target would be overwritten
        file.unlink()
    written = file.stat().st_size // (4 * width) if file.exists() else 0
    done = written if written == len(examples) else written - written % chunk
    if done and len(examples) - done == 1:  # which belongs into the batch before
        done -= chunk
    look = _trunk(network)
    gather = of_pictures(examples[done:], network.adapter.preprocess)  # type: ignore[arg-type]
    rows: list[Tensor] = []
    with open(file, "r+b" if file.exists() else "w+b") as opened, torch.inference_mode():
        opened.truncate(done * 4 * width)
        opened.seek(0, os.SEEK_END)
        for x, _ in Batches(len(examples) - done, batch_size, gather) if done < len(examples) else ():
            found = look(x.flip(-1) if flipped else x)
            if not bool(found.isfinite().all()):
                bad = done + int((~found.isfinite().flatten(1).all(dim=1)).nonzero()[0])
                raise NonFiniteError(
                    f"NaN or infinity in the features of {examples[bad].name}; are the weights intact?"
                )
            rows.append(found)
            done += len(x)
            if done % chunk == 0 or done == len(examples):
                opened.write(torch.cat(rows).numpy().tobytes())
                opened.flush()
                os.fsync(opened.fileno())
                rows = []
            if watch is not None:
                watch(done)
    return np.memmap(file, np.dtype(np.float32), "r", shape=(len(examples), width))


def _trunk(network: Network) -> Callable[[Tensor], Tensor]:
    """From pictures to what the head is fed (B, C), on the CPU in float32."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, given: Any, _output: Any) -> None:
        seen.append(given[0])

    stand_in = twin(network.module, {network.head: note})

    def look(x: Tensor) -> Tensor:
        seen.clear()
        stand_in(like_weights(x, network.module))
        return seen[0].flatten(1).float().cpu()

    return look
