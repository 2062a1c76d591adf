"""A run's folder: what was planned, and a line for each thing that is done. A line is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.bundle import place, unicode_text
from sightline.errors import OutputError

LINES = "values.jsonl"
_HALF, _VERSION = ".manifest.json", 1


@contextlib.contextmanager
def opened(
    folder: Path, command: str, plan: Mapping[str, Any], files: Callable[[Any], Sequence[str]], force: bool
) -> Iterator[bool]:
    """The folder of a run, locked: a new one, or the one of the same plan that was stopped, and whether it is that.

    Args:
        folder: its place.
        command: which command's runs these are.
        plan: everything that decides the result.
        files: the names of what a run of a plan writes beside its manifest; with `force` they are removed.
        force: begin anew where another run stands.

    Raises:
        OutputError: the folder is no run, is one of another plan, is being written by another process, or can't be written.
    """
    try:
        check_place(folder, command)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            old = _planned(folder, command)
            goes_on = old is not None and not force
            if goes_on:
                _check_same(folder, old, json.loads(json.dumps(plan)))
            else:
                # First what was computed, then the plan: whoever is stopped in between can begin again.
                for name in files(old or {}):
                    (folder / name).unlink(missing_ok=True)
                renew(folder, command, plan)
            yield goes_on
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{folder} can't be written: {error.strerror or error}. Choose another place with -o"
        ) from error


def renew(folder: Path, command: str, plan: Mapping[str, Any]) -> None:
    """Writes the plan of a run, in place of the one that is there."""
    manifest = {"schema": _schema(command), "plan": plan}
    place(folder / "manifest.json", unicode_text(json.dumps(manifest, indent=1)).encode())


def check_place(folder: Path, command: str) -> None:
    """Refuses a folder in which something else lies than a run.

    Raises:
        OutputError: as `opened`.
    """
    if "\0" in str(folder):
        raise OutputError(f"{folder!s} can't be written: a name can't hold a zero byte. Choose another place with -o")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder} is no folder; choose another place with -o")
    if not folder.exists() or _planned(folder, command) is not None:
        return
    foreign = sorted(one.name for one in folder.iterdir() if one.name not in ("lock", LINES, _HALF))
    if foreign:
        raise OutputError(
            f"{folder} holds something else than a run of {command} ({foreign[0]}) and is left alone, also with --force; choose another place with -o"
        )


def _schema(command: str) -> str:
    return f"sightline.{command}/{_VERSION}"


def _planned(folder: Path, command: str) -> Any:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        ours = found["schema"] == _schema(command) and isinstance(found["plan"], dict)
        return found["plan"] if ours else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _check_same(folder: Path, old: Any, new: Any) -> None:
    """Refuses to go on with another plan, and says in what they differ."""
    if what := difference(old, new):
        raise OutputError(
            f"{folder} holds a run of something else ({what}); take the same settings to go on, --force to start anew, or -o for another place"
        )


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first thing in which two plans differ, in words; nothing when they are the same."""
    differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if not differ:
        return ""
    key = differ[0]
    what = f"{key} was {_short(old.get(key))} and is {_short(new.get(key))}"
    if key in ("methods", "metrics") and isinstance(old.get(key), dict) and set(old[key]) != set(new[key]):
        what = f"{key} were {', '.join(old[key]) or 'none'} and are {', '.join(new[key]) or 'none'}"
    elif isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
        names = [name for name in {**old[key], **new[key]} if old[key].get(name) != new[key].get(name)]
        what = f"{key}: {names[0]} was {_short(old[key].get(names[0]))} and is {_short(new[key].get(names[0]))}"
        what += f", and {len(names) - 1} more differ" if len(names) > 1 else ""
    return what


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 100 else f"{text[:97]}..."


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however that ends."""
    import fcntl

    with open(folder / "lock", "a") as lock:  # which empties nothing, wherever a link leads
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"{folder} is being written by another process; wait for it, or choose another place with -o"
            ) from error
        yield


class Journal:
    """The lines of a run, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / LINES
        self.lines: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            whole = b""
            content = self._file.read_bytes()
            for line in content.splitlines(keepends=True):
                try:
                    found = json.loads(line)
                    self.lines[found["name"]] = found
                except (ValueError, KeyError, TypeError):
                    continue  # damaged, or cut off while it was written: done again
                whole += line if line.endswith(b"\n") else line + b"\n"
            if whole != content:
                place(self._file, whole)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """One thing that is done; on the disk when this returns."""
        line = {"name": name, **content}
        with open(self._file, "ab") as opened_file:
            opened_file.write(unicode_text(json.dumps(line)).encode() + b"\n")
            opened_file.flush()
            os.fsync(opened_file.fileno())
        self.lines[name] = line
