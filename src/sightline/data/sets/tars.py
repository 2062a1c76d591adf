"""Tar files in the form of WebDataset: their headers say where each picture lies, and its label lies beside it."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

from sightline.data.images import SUFFIXES
from sightline.data.sets.items import Found, Rows
from sightline.data.sets.places import Place, located, reason, stamp
from sightline.errors import ImageError

_MOST_TEXT = 1 << 20  # bytes of a label, or of a header about another
_BLOCK = tarfile.BLOCKSIZE
_ABOUT_NEXT = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_Member = tuple[str, int, int, str | None]  # name, offset, size, problem


def add_tars(rows: Rows, place: Place, tars: list[Found]) -> None:
    """The pictures of tars, and as an item of its own each tar that is broken."""
    with ThreadPoolExecutor(16) as pool:  # a store answers slowly, and many at once
        read = map if place.fs is None else pool.map
        for tar, members, labels in read(partial(_read_tar, place), tars):
            name, _, mtime, problem = tar
            seen = Counter[str]()
            for inner, at, length, wrong in members:
                seen[inner] += 1
                id = f"{name}/{inner}" if seen[inner] == 1 else f"{name}/{inner}#{seen[inner]}"
                rows.add(id, _label_of(inner, labels), name, at, length, mtime, wrong)
            if problem is not None:
                rows.add_file(tar)


def member(root: str, file: str, at: int, size: int) -> bytes:
    """The bytes of one picture."""
    place = located(root)
    path = place.path(file)
    if place.fs is None:
        data = bytes(_opened(path, stamp(path)).read_at(size, at))
    else:
        data = bytes(place.fs.cat_file(path, at, at + size))
    if len(data) != size:
        raise ImageError(f"{file} ends {size - len(data):,} bytes before its picture at {at} does; copy it again")
    return data


@lru_cache(maxsize=16)
def _opened(path: str, _stamp: tuple[int, ...]) -> Any:
    import pyarrow

    return pyarrow.OSFile(path)  # which any thread may read at any place


def _read_tar(place: Place, tar: Found) -> tuple[Found, list[_Member], dict[str, str]]:
    """The pictures of a tar, what is said of them, and where it is broken."""
    name, size, mtime, problem = tar
    members, labels = list[_Member](), dict[str, str]()
    if problem is None:
        try:
            with place.open(name) as file:
                _read_members(file, size, members, labels)
        except Exception as error:  # a broken tar makes those who read it raise whatever they like
            at = f" after {members[-1][0]}" if members else ""
            problem = f"is broken{at}, so that what follows there can't be read: {reason(error)}"
    return (name, size, mtime, problem), members, labels


def _read_members(file: Any, whole: int, members: list[_Member], labels: dict[str, str]) -> None:
    """Adds one after the other, so that those before a broken place are kept."""
    for name, at, size, sparse in _stored(file, whole):
        inner = name.removeprefix("./")
        stem, suffix = posixpath.splitext(inner)
        suffix = suffix.lower()
        if inner.startswith(".") or "/." in inner:
            continue
        if suffix in SUFFIXES:
            problem = "is cut off, because its tar ends before" if 0 <= whole < at + size else None
            members.append(
                (inner, at, size, "is stored as a sparse file; pack it again without" if sparse else problem)
            )
        elif (suffix == ".cls" or (suffix == ".json" and stem not in labels)) and 0 <= size <= _MOST_TEXT:
            file.seek(at)
            label = _label_in(bytes(file.read(size)).decode("utf-8", "replace").strip(), suffix)
            if label:
                labels[stem] = label[:1000]


def _label_in(text: str, suffix: str) -> str | None:
    if suffix == ".cls":
        return text
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    label = said.get("label") if isinstance(said, dict) else None
    return str(label) if isinstance(label, str | int) else None


def _label_of(name: str, labels: dict[str, str]) -> str | None:
    """By the whole name but its suffix, or by WebDataset's key, which ends at the first dot."""
    folder, slash, last = name.rpartition("/")
    return labels.get(posixpath.splitext(name)[0]) or labels.get(folder + slash + last.partition(".")[0])


def _stored(file: Any, whole: int) -> Iterator[tuple[str, int, int, bool]]:
    """Name, offset, size, and whether it is sparse, of each regular file in a tar of `whole` bytes.

    Not by tarfile, which takes a broken header for the end, keeps all that it has seen, and needs minutes for a million.
    """
    at = end = 0
    said: dict[str, str] | None = None  # by a header of its own, about the next
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if not any(block):
            if said is not None or 0 <= whole < end:
                raise ImageError("it ends within a file")
            return
        name, size, kind = _header(block)
        at += _BLOCK
        if kind in _ABOUT_NEXT:
            said = (said or {}) | _about_next(file, size, kind)
            at += _padded(size)
            continue
        said = said or {}
        size = int(said.get("size", size))
        blocks = _padded(size)
        sparse = kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in said)
        more = kind == tarfile.GNUTYPE_SPARSE and block[482]
        while more:  # the map of a sparse file goes on in blocks of its own
            file.seek(at)
            more = file.read(_BLOCK)[504]
            at += _BLOCK
        if kind in tarfile.REGULAR_TYPES:
            end = at + size
            yield said.get("GNU.sparse.name", said.get("path", name)), at, size, sparse
        if kind in tarfile.REGULAR_TYPES or kind not in tarfile.SUPPORTED_TYPES:
            at += blocks
        said = None


def _header(block: bytes) -> tuple[str, int, bytes]:
    """Name, size and type of file, by POSIX's ustar and GNU's form of it."""
    if len(block) < _BLOCK or _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ImageError("no header where one should be")
    name, kind = block[:100].partition(b"\0")[0], block[156:157]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    if kind == tarfile.AREGTYPE and name.endswith(b"/"):
        kind = tarfile.DIRTYPE
    return name.decode("utf-8", "surrogateescape"), _number(block[124:136]), kind


def _number(digits: bytes) -> int:
    if digits[0] in (0x80, 0xFF):  # too large for octal digits
        return int.from_bytes(digits[1:], "big", signed=digits[0] == 0xFF)
    return int(digits.partition(b"\0")[0].strip() or b"0", 8)


def _padded(size: int) -> int:
    if size < 0:
        raise ImageError(f"a header says {size} bytes")
    return -(-size // _BLOCK) * _BLOCK


def _about_next(file: Any, size: int, kind: bytes) -> dict[str, str]:
    """What a header says of the file that follows it: a name too long for its own header, a size."""
    if not 0 <= size <= _MOST_TEXT:
        raise ImageError(f"a header of {size:,} bytes")
    text = file.read(size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": text.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    said: dict[str, str] = {}
    start = 0
    while kind == tarfile.XHDTYPE and start < len(text) and text[start]:
        space = text.index(b" ", start, start + 20)
        end = start + int(text[start:space])  # each record begins with its own length
        if end <= space:
            raise ImageError("a header that can't be understood")
        key, _, value = text[space + 1 : end - 1].decode("utf-8", "surrogateescape").partition("=")
        said[key] = value
        start = end
    return said
