"""Folders of results: each appears complete or not at all, and nothing that isn't ours is ever replaced."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from PIL import Image

from sightline.errors import OutputError

_COMMANDS = tuple("=+-@\t\r\n")  # what a spreadsheet takes for the beginning of a formula, or skips before one


@contextmanager
def whole_folder(folder: Path, force: bool) -> Iterator[Path]:
    """A folder to write in that takes its name only when all is written; what stands there meanwhile is never lost."""
    check_free(folder, force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = folder.with_name(f".sightline-{secrets.token_hex(6)}")
        place.mkdir()
    except (OSError, ValueError) as error:
        raise OutputError(_unwritable(folder, error)) from error
    try:
        yield place
        for attempt in range(5):
            try:
                _exchange(place, folder) if force else _claim(place, folder)
            except OSError as error:
                # Another process came first; with `force` the last one wins.
                if attempt == 4 or not force or error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                    raise
            else:
                break
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(_unwritable(folder, error)) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _claim(place: Path, folder: Path) -> None:
    """Gives `place` its name, if that is still free."""
    try:
        folder.mkdir()  # fails where anything stands; an empty folder of our own can be replaced in one step
    except FileExistsError as error:
        raise OutputError(f"{folder} was made meanwhile; --force replaces it (in Python force=True)") from error
    try:
        place.rename(folder)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _exchange(place: Path, folder: Path) -> None:
    """Puts `place` where an earlier result stands, which is deleted last."""
    old = place.with_name(f"{place.name}-old")
    try:
        if folder.exists() or folder.is_symlink():
            folder.rename(old)
            if not _is_ours(old):  # it came after the check
                raise OutputError(
                    f"{folder} is not a result of sightline and is not replaced; choose another place with -o"
                )
        place.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(folder: Path, error: OSError | ValueError) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return f"{folder} can't be written: {reason}. Choose another place with -o"


def check_free(folder: Path, force: bool) -> None:
    """Refuses a folder that exists, and with `force` one that is no bundle of ours."""
    if "\0" in str(folder):
        raise OutputError(f"{folder!s} can't be written: a name can't hold a zero byte. Choose another place with -o")
    for parent in folder.parents:
        if parent.exists() and not parent.is_dir():
            raise OutputError(
                f"{parent} is a file, not a folder, so that {folder} can't be written; choose another place with -o"
            )
    if not (folder.exists() or folder.is_symlink()):
        return
    if not force:
        raise OutputError(f"{folder} exists; --force replaces it (in Python force=True), -o chooses another place")
    if not _is_ours(folder):
        raise OutputError(
            f"{folder} is not a result of sightline and is not replaced, not even with --force; choose another place with -o"
        )


def _is_ours(folder: Path) -> bool:
    try:
        schema = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["schema"]
        return str(schema).startswith("sightline.") and not folder.is_symlink()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def unicode_text(text: str) -> str:
    """Names may hold bytes that are no text, and characters that command a terminal; neither is written."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def write_manifest(place: Path, content: Mapping[str, Any]) -> None:
    """manifest.json, with the version that wrote it."""
    from sightline import __version__

    first, *rest = content.items()
    text = json.dumps(dict([first, ("sightline", __version__), *rest]), indent=2, ensure_ascii=False, allow_nan=False)
    (place / "manifest.json").write_text(unicode_text(text) + "\n", encoding="utf-8")


@contextmanager
def writing(file: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when all of it is on the disk; what stood there before stays until then."""
    written = file.with_name(f".{file.name}")
    try:
        written.unlink(missing_ok=True)  # a link in its place would have its target overwritten
        with open(written, "wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        written.replace(file)
    except BaseException:
        with suppress(OSError):
            written.unlink()
        raise


def place(file: Path, content: bytes | memoryview) -> None:
    """A file, whole or not at all."""
    with writing(file) as opened:
        opened.write(content)


def csv_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A table as a file's content; a cell that a spreadsheet would run is made a text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (head, *rows):
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell[:1] in _COMMANDS else cell for cell in row])
    return unicode_text(text.getvalue()).encode()


def png(picture: Image.Image) -> bytes:
    """A picture as a file's content."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
