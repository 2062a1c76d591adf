"""A folder of pictures, as training reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Example:
    """One picture: its path below the data (posix), where it lies, the index of its class, and the hash of its bytes."""

    name: str
    path: Path
    label: int
    sha256: str


@dataclass(frozen=True)
class Folders:
    """What was found in a folder of pictures, and what was left out of it."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    broken: tuple[tuple[str, str], ...]
    shared: tuple[tuple[str, str], ...]
    contradicting: tuple[tuple[str, str], ...]
    val_share: float | None
