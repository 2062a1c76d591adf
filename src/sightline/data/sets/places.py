"""Where files lie: in a folder of this machine, or at an address that fsspec opens."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sightline._optional import optional
from sightline.data.sets.items import Found, printable
from sightline.errors import ImageError, MissingExtraError

MAX_BYTES = 500_000_000  # more than this is no photograph, and would be read whole
CHAINED = "is a chain of addresses, which may run code that a list names; give a plain address"


@dataclass(frozen=True)
class Place:
    """A folder or file: here (`fs` is None), or at an address that `fs` opens. A name is one below it."""

    root: str
    fs: Any = None

    def below(self, name: str) -> Place:
        """What is called so in this folder."""
        if self.fs is None:
            return Place(os.path.join(self.root, name))
        return Place(f"{self.root}{'' if self.root.endswith('/') else '/'}{name}", self.fs)

    def split(self) -> tuple[Place, str]:
        """The folder that this lies in, and its name there."""
        folder, name = os.path.split(self.root) if self.fs is None else self.root.rsplit("/", 1)
        return Place(folder, self.fs), name

    def path(self, name: str = "") -> str:
        """As `open` here, or the store, takes it."""
        root = self.below(name).root if name else self.root
        return root if self.fs is None else str(self.fs._strip_protocol(root))

    def exists(self) -> bool:
        return bool((os.path if self.fs is None else self.fs).exists(self.path()))

    def is_folder(self) -> bool:
        return bool((os.path if self.fs is None else self.fs).isdir(self.path()))

    def open(self, name: str) -> Any:
        path = self.path(name)
        return open(path, "rb") if self.fs is None else self.fs.open(path, "rb", block_size=1 << 20)

    def look(self, name: str) -> Found:
        """A file that was named, so that a link is followed."""
        if self.fs is None:
            return (name, *looked(self.path(name)))
        try:
            return name, *told(self.fs.info(self.path(name))), None
        except Exception as error:  # each store has its own
            return name, -1, 0, f"can't be found: {reason(error)}"


def located(data: str) -> Place:
    """What the user named, or a source's root says."""
    fs, path = _opener(data) if "://" in data else (None, data)
    return Place(os.path.abspath(path)) if fs is None else Place(str(fs.unstrip_protocol(path)), fs)


@lru_cache(maxsize=32)
def _opener(address: str) -> tuple[Any, str]:
    """What opens an address, with the path for it; None for a file that is here."""
    with reading(address):
        fs, path = optional("fsspec.core", "batch", "an address").url_to_fs(address)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return (None if "file" in protocols else fs), str(path)


def looked(path: str | os.DirEntry[str], *, follow: bool = True) -> tuple[int, int, str | None]:
    """Size, time of change and what is wrong, of a file that is here."""
    try:
        seen = os.stat(path, follow_symlinks=follow)
    except (OSError, ValueError) as error:
        return -1, 0, "doesn't exist" if isinstance(error, FileNotFoundError) else f"can't be read: {reason(error)}"
    if stat.S_ISREG(seen.st_mode):
        return seen.st_size, seen.st_mtime_ns, None
    if stat.S_ISLNK(seen.st_mode):
        return -1, 0, "is a link, which is not followed; put the picture itself here, or name it in a list"
    return -1, 0, "is not a regular file"


def told(info: dict[str, Any]) -> tuple[int, int]:
    """Size and time of change, by what a store says of a file under names of its own."""
    size = info.get("size")
    names = ("mtime", "LastModified", "last_modified", "updated", "created")
    changed = next((info[one] for one in names if info.get(one)), 0)
    seconds = changed.timestamp() if isinstance(changed, datetime) else changed
    mtime = int(seconds * 1e6) * 1000 if isinstance(seconds, int | float) else 0
    return int(size) if isinstance(size, int | float) else -1, mtime


def whole(root: str, file: str, size: int) -> str | bytes:
    """A file that is one picture: its path, or where it isn't here its bytes."""
    if "://" in file and "::" in file:
        raise ImageError(f"{file} {CHAINED}")
    place = located(root)
    fs, path = _opener(file) if "://" in file else (place.fs, place.path(file))
    if fs is None:
        return path
    check_size(file, size if size >= 0 else fs.size(path) or 0)
    return bytes(fs.cat_file(path))


def stamp(path: str) -> tuple[int, ...]:
    """Differs where a file was replaced, and in a forked process, which must not share a place in a file with its parent."""
    seen = os.stat(path)
    return os.getpid(), seen.st_ino, seen.st_mtime_ns, seen.st_size


def check_size(name: str, size: int) -> None:
    """Refuses what is too large to be read."""
    if size > MAX_BYTES:
        raise ImageError(f"{name} has {size:,} bytes; the limit is {MAX_BYTES:,}. Make it smaller first")


@contextmanager
def reading(name: str, wanted: str = "") -> Iterator[None]:
    """Whatever a broken file, or a store, makes those raise who read it becomes an `ImageError`."""
    try:
        yield
    except (ImageError, MissingExtraError):
        raise
    except ImportError as error:
        raise MissingExtraError(f"{name} can't be opened: {error}") from error
    except Exception as error:
        raise ImageError(f"{name} can't be read{wanted}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An error as the end of a sentence."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(str(text).splitlines()[0][:300])
