"""The files below a folder, all of them or those that a pattern fits, and the names that a range stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from sightline.data.images import SUFFIXES
from sightline.data.sets.items import Found
from sightline.data.sets.places import Place, looked, reading, reason, told
from sightline.errors import ImageError

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_WANTED = (*SUFFIXES, ".tar", ".parquet", *PACKED)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000


def listed(place: Place, patterns: list[str]) -> Iterator[Found]:
    """The files of pictures, tars and tables that are not hidden, and the folders that can't be listed, as a problem.

    Args:
        place: the folder.
        patterns: one for the name of each folder and for that of the file, ** for any number of folders.
    """
    return _listed_here(place.root, patterns) if place.fs is None else _listed_there(place, patterns)


def _listed_here(root: str, patterns: list[str]) -> Iterator[Found]:
    deep = "**" in patterns
    fixed = patterns[: patterns.index("**")] if deep else patterns[:-1]  # of these each is for the folder at its depth
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        depth = folder.count("/")
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    name = folder + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if fnmatchcase(entry.name, fixed[depth]) if depth < len(fixed) else deep:
                            waiting.append(f"{name}/")
                    elif _is_wanted(name, patterns) and not (entry.is_symlink() and entry.is_dir()):
                        yield (name, *looked(entry, follow=False))
        except OSError as error:
            if not folder:
                raise ImageError(f"{root} can't be listed: {reason(error)}") from error
            yield folder[:-1], -1, 0, f"can't be listed: {reason(error)}"


def _listed_there(place: Place, patterns: list[str]) -> Iterator[Found]:
    base = place.path().rstrip("/")
    with reading(place.root):
        found = place.fs.find(base, detail=True)
    for path, info in found.items():
        name = str(path).removeprefix(base).lstrip("/")
        if "/." not in f"/{name}" and _is_wanted(name, patterns):
            yield name, *told(info), None


def _is_wanted(name: str, patterns: list[str]) -> bool:
    return name.lower().endswith(_WANTED) and (patterns == ["**"] or _fits(name.split("/"), patterns))


def _fits(names: list[str], patterns: list[str]) -> bool:
    if not (names and patterns):
        return not names and set(patterns) <= {"**"}
    if patterns[0] == "**":
        return _fits(names, patterns[1:]) or _fits(names[1:], patterns)
    return fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def expanded(name: str) -> list[str]:
    """`a-{00..02}.tar` as three names."""
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = ends = found.groups()
    if max(map(len, ends)) > 9 or int(first) > int(last):
        raise ImageError(f"{found[0]} in {name} is no range; expected such as {{000..010}}")
    rest = expanded(name[found.end() :])
    count = (int(last) - int(first) + 1) * len(rest)
    if count > _MOST_SHARDS:
        raise ImageError(f"{name} stands for {count:,} files; the limit is {_MOST_SHARDS:,}")
    width = max(map(len, ends)) if any(one != str(int(one)) for one in ends) else 0
    begin = name[: found.start()]
    return [f"{begin}{number:0{width}d}{end}" for number in range(int(first), int(last) + 1) for end in rest]
