"""Which architecture a bare weights file is of: told by the names and shapes of its tensors, against a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

# Written by tools/fingerprints.py.
FILE = Path(__file__).with_name("fingerprints.json")


def recognised(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The architectures, such as "torchvision:resnet18", whose tensors have these names and shapes but for the size of the head,
    or, where none has, but for the last dense layer as a whole.

    Args:
        shapes: of each tensor, in the order of the file.
    """
    entry = _table().get(names_digest(shapes))
    if entry is not None:
        found: list[str] = entry["models"].get(shapes_digest(shapes, entry["head"]), [])
        return found
    head = _last_dense(shapes)
    return _trunks().get(shapes_digest(shapes, head), []) if head else []


def _last_dense(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The names of the tensors of the last dense layer with a bias."""
    weights = [name for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight")]
    if not weights:
        return []
    bias = f"{weights[-1].removesuffix('.weight')}.bias"
    return [weights[-1], bias] if bias in shapes else []


def names_digest(names: Collection[str]) -> str:
    """Of the names of all tensors; counters of batch norm, which old files lack, left out."""
    return _digest(sorted(name for name in names if not name.endswith("num_batches_tracked")))


def shapes_digest(shapes: Mapping[str, tuple[int, ...]], head: Collection[str]) -> str:
    """Of the shapes of all tensors but the head's."""
    kept = sorted(name for name in shapes if name not in head and not name.endswith("num_batches_tracked"))
    return _digest([[name, *shapes[name]] for name in kept])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return table


@lru_cache(maxsize=1)
def _trunks() -> dict[str, list[str]]:
    """Architectures with one dense layer as their head, by the digest of all but that."""
    found: dict[str, list[str]] = {}
    for entry in _table().values():
        if len(entry["head"]) == 2:
            for digest, names in entry["models"].items():
                found.setdefault(digest, []).extend(names)
    return found
