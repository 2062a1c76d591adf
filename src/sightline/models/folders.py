"""The files of a published model, in a folder or in a repository of the hub; what they say is data, and hostile."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.errors import ModelError, WeightsError
from sightline.models.given import Stored
from sightline.models.hub import fetched_if_there
from sightline.models.weights import MAX_BYTES, read_stored

MAX_JSON = 20_000_000
_MAX_SHARDS = 1000
# Numbers of a language model that scale something, and are no size of anything.
_NO_SIZES = ("rope_theta", "rope_local_base_freq")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # an index of shards has the same name and .index.json


@dataclass(frozen=True, eq=False)
class Files:
    """Where a model's files are.

    Attributes:
        name: what to call the model.
        find: the file of this name, or None where there is none.
    """

    name: str
    find: Callable[[str], Path | None]


def in_folder(folder: Path) -> Files:
    """The files of a folder; what is a link that leads out of it is refused."""
    return Files(folder.resolve().name, lambda file: _inside(folder, file))


def in_repository(repository: str) -> Files:
    """The files of a repository of the hub."""
    wanted = f"hf:{repository}"
    return Files(repository, lambda file: fetched_if_there(repository, file, wanted))


def _inside(folder: Path, file: str) -> Path | None:
    path = folder / file
    if not path.exists():
        return None
    home, real = folder.resolve(), path.resolve()
    # A snapshot in the cache of the hub holds links to the blobs beside it.
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, blobs) or not real.is_file():
        raise ModelError(
            f"{path} is no file inside this folder (a link that leads out of it?); put the file itself there"
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """What a configuration in JSON says.

    Raises:
        ModelError: it is too large, no JSON, or no names with values.
    """
    if path.stat().st_size > MAX_JSON:
        raise ModelError(f"{path} has {path.stat().st_size:,} bytes; the limit of such a file is {MAX_JSON:,}")
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: {str(error)[:200]}") from error
    if not isinstance(said, dict):
        raise ModelError(f"{path} holds {type(said).__name__}; expected names and values in braces")
    return said


def check_numbers(said: Mapping[str, Any], largest: float, file: str) -> None:
    """Refuses a configuration with a number that would fill the memory."""
    rest: list[tuple[str, Any]] = list(said.items())
    while rest:
        name, value = rest.pop()
        if isinstance(value, Mapping):
            rest += value.items()
        elif isinstance(value, list):
            rest += ((name, one) for one in value)
        elif name in _NO_SIZES and isinstance(value, int | float) and math.isfinite(value):
            continue
        elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= largest):
            raise ModelError(f"{file} says {name!r:.80}: {value!r:.40}; expected at most {largest:,}")


def stored_weights(files: Files) -> Stored:
    """The weights of a model: one file, or its shards one after the other.

    Raises:
        WeightsError: there are none, or one of the files is broken or hostile.
    """
    for file in _WEIGHTS:
        path = files.find(file)
        if path is not None:
            return read_stored(path)
        index = files.find(f"{file}.index.json")
        if index is not None:
            return _sharded(files, index)
    raise WeightsError(f"{files.name} holds no weights; expected {' or '.join(_WEIGHTS)}, or their index of shards")


def _sharded(files: Files, index: Path) -> Stored:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(one, str) for one in placed.values()):
        raise WeightsError(f"{index} has no weight_map; expected a shard's file name for each tensor")
    names = sorted(set(placed.values()))
    if len(names) > _MAX_SHARDS:
        raise WeightsError(f"{index} names {len(names):,} shards; the limit is {_MAX_SHARDS:,}")
    paths = []
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith((".safetensors", ".bin")):
            raise WeightsError(f"{index} names the shard {name!r:.80}; expected the plain name of a file beside it")
        path = files.find(name)
        if path is None:
            raise WeightsError(f"the shard {name} of {files.name} is missing")
        paths.append(path)
    total = sum(path.stat().st_size for path in paths)
    if total > MAX_BYTES:
        raise WeightsError(f"the shards of {files.name} have {total:,} bytes; the limit is {MAX_BYTES:,}")
    tensors: dict[str, Tensor] = {}
    hashes = hashlib.sha256()
    for path in paths:
        shard = read_stored(path)
        twice = next((one for one in shard.tensors if one in tensors), None)
        if twice is not None:
            raise WeightsError(f"the tensor {twice!r:.80} is in two shards of {files.name}")
        tensors |= shard.tensors
        hashes.update(shard.sha256.encode())
    return Stored(index, tensors, {}, hashes.hexdigest())
