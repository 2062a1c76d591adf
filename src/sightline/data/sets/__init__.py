"""Where the pictures of a run are: `find_items` lists them as one Arrow table, `fetch` gets one of them."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sightline._optional import require
from sightline.data.images import SUFFIXES
from sightline.data.sets import arrow, parquet, tars
from sightline.data.sets.folders import PACKED, expanded, listed
from sightline.data.sets.items import Found, Rows, printable
from sightline.data.sets.lists import add_csv
from sightline.data.sets.places import Place, check_size, located, reading, whole
from sightline.data.sets.tables import content
from sightline.errors import ImageError

if TYPE_CHECKING:
    import pyarrow as pa

_EXPECTED = (
    "a folder of pictures, a picture, a pattern such as 'photos/**/*.jpg', a CSV or Parquet list with the column image, "
    "a data set as Hugging Face saves it, or tar files"
)


@dataclass(frozen=True, eq=False)
class Source:
    """Where the pictures of a run are.

    Attributes:
        kind: "files", "tar", "arrow" or "parquet": how a picture is fetched.
        root: folder or address below which the files lie.
        items: a table sorted by id, in the order of its bytes, with these columns.

            - id: string, unique over the run.
            - label: string, the class that the data says; null where it says none.
            - file: string, the file with the bytes, relative to `root`, or a whole path or address.
            - at: int64, -1 for the whole file, the offset of the bytes in a tar, or the row of a table.
            - size: int64, in bytes; -1 where it is unknown.
            - mtime: int64, when the file was changed, in ns; 0 where it is unknown.
            - problem: string, why this picture can't be read, as far as the listing shows; null for all others.
        address: what was given to find them, from wherever it is used.
    """

    kind: str
    root: str
    items: pa.Table
    address: str = ""


def find_items(data: str | os.PathLike[str], *, limit: int = 0, watch: Callable[[int], None] | None = None) -> Source:
    """Lists the pictures of a data set.

    What can't be read is listed too, with its `problem`, so that nothing goes missing in silence.

    Args:
        data: one of these.

            - A folder: all pictures in it and below, by their suffix, without hidden files and folders. Each picture's folder
              is its label. Links are not followed. Where there is no picture, its tar files, else its Parquet files.
            - A pattern such as 'photos/**/*.jpg'. Ids are relative to what comes before the first folder with a wildcard.
            - A picture.
            - A CSV file, or Parquet files, with the column image (or path), and label and id if wanted. A path is relative to the
              folder of the list; a link named by a list is followed. Parquet may also hold the pictures' bytes themselves.
            - A folder as `save_to_disk` of Hugging Face's datasets leaves it.
            - Tar files in the form of WebDataset, or a range of them such as 'shards-{000..010}.tar'.
            - An address with "://", such as s3://bucket/folder, of any of these but the data set of Hugging Face.
        limit: only so many, spread evenly over the sorted ids; 0 for all.
        watch: called with the number of items that were found so far.

    Raises:
        ImageError: there is no picture, the list can't be read, or two items have the same id.
        MissingExtraError: pyarrow, or what opens this kind of address, isn't installed.
    """
    require(["pyarrow"], "batch", "runs over a data set")
    text = os.fspath(data)
    if printable(text) != text:
        raise ImageError(f"{printable(text)} has a name that is not UTF-8; rename it, or give a link to it")
    rows = Rows(watch or (lambda _count: None))
    kind, root = _add(rows, text)
    if not rows.count:
        raise ImageError(f"there is no picture in {text}; expected {_EXPECTED}")
    items = rows.table()
    if 0 < limit < len(items):
        items = items.take(np.rint(np.linspace(0, len(items) - 1, limit)).astype(np.int64))
    return Source(kind, root, items, text if "://" in text else os.path.abspath(text))


def fetch(kind: str, root: str, file: str, at: int, size: int) -> str | bytes:
    """One picture of a `Source`, as `read_image` takes it: the path of a file here, or the bytes.

    `kind` and `root` are the source's, the rest is the item's. Files of tars and tables stay open for the next call in this
    process.

    Raises:
        ImageError: it isn't there, can't be read, or is larger than 500 MB.
    """
    name = file if at < 0 else f"{file} at {at}"
    check_size(name, size)
    with reading(name):
        if at < 0:
            return whole(root, file, size)
        if kind == "tar":
            return tars.member(root, file, at, size)
        return content((arrow if kind == "arrow" else parquet).cell(root, file, at), root, name)


def _add(rows: Rows, data: str) -> tuple[str, str]:
    """Adds the pictures of a data set, and gives the kind and the root of the source."""
    place = located(data)
    folder, name = place.split()
    found: Iterable[Found]
    if place.is_folder():
        if arrow.is_saved(place):
            arrow.add_saved(rows, place)
            return "arrow", place.root
        folder, found = place, listed(place, ["**"])
    elif place.exists():
        found = [folder.look(name)]
        if found[0][3] is not None:
            raise ImageError(f"{data} {found[0][3]}")
        if name.lower().endswith(".csv"):
            add_csv(rows, folder, name)
            return "files", folder.root
    elif (names := expanded(name)) != [name]:
        found = map(folder.look, names)
    else:
        parts = place.root.split("/")
        first = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
        if first is None:
            raise ImageError(f"{data} doesn't exist; expected {_EXPECTED}")
        folder = Place("/".join(parts[:first]) or "/", place.fs)
        found = listed(folder, parts[first:])
    return _add_files(rows, folder, found), folder.root


def _add_files(rows: Rows, place: Place, files: Iterable[Found]) -> str:
    """Pictures, where there are none tars, and where there are none either Parquet files; gives the kind of the source."""
    pictures, packed = False, ""
    others: dict[str, list[Found]] = {".tar": [], ".parquet": []}
    for found in files:
        name = found[0]
        suffix = posixpath.splitext(name)[1].lower()
        if suffix in SUFFIXES:
            pictures = True
            rows.add_file(found, posixpath.basename(posixpath.dirname(name)) or None)
        elif suffix in others:
            others[suffix].append(found)
        elif name.lower().endswith(PACKED):
            packed = name
        elif found[3] is not None:  # a folder that can't be listed
            rows.add_file(found)
    if pictures:
        return "files"
    if others[".tar"]:
        tars.add_tars(rows, place, others[".tar"])
        return "tar"
    if others[".parquet"]:
        return parquet.add_parquet(rows, place, others[".parquet"])
    if packed:
        raise ImageError(f"{packed} is compressed, so that no picture in it can be fetched alone; unpack it to a .tar")
    return "files"
