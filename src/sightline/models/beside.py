"""What is written in and beside a weights file about the model: its architecture, its classes, its preprocessing.

All of it is data from a file: plain values of a bounded size, never more than names and numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.errors import ModelError
from sightline.models.given import Stored, Told

_LARGEST, _LARGEST_YAML = 5_000_000, 200_000
_DEEPEST, _DEEPEST_YAML = 3, 20
_MOST_NAMES = 1_000_000
# What people and programs call these things, the commonest first.
_ARCHITECTURE = ("architecture", "arch", "model_name", "model", "backbone", "encoder", "net")
_NAMES = (
    "class_names",
    "classes",
    "labels",
    "names",
    "label_names",
    "idx_to_class",
    "id2label",
    "class_to_idx",
    "label2id",
)
_INSIDE = ("hyper_parameters", "hparams", "args", "config", "cfg", "meta", "sightline")
_CONFIGS = ("config.json", "args.yaml", "hparams.yaml")
_NAME_FILES = tuple(f"{stem}{end}" for stem in _NAMES for end in (".txt", ".json"))


def told(stored: Stored) -> Told:
    """What a weights file and the files beside it say of its model."""
    found = Told()
    _take(stored.about, f"{stored.path.name} itself", found)
    for path in _beside(stored.path):
        if path.suffix == ".json" and path.name not in _NAME_FILES:
            _take(_json(path), path.name, found)
        elif path.suffix == ".yaml":
            _take(_yaml(path), path.name, found)
        else:
            try:
                found.labels.append((tuple(names_in(_text(path), path.name)), path.name))
            except (ModelError, UnicodeDecodeError):
                continue  # something else of that name
    return found


def names_in(text: str, origin: str) -> list[str]:
    """Class names in a text, one a line, or in JSON: a list, or a mapping between numbers and names.

    Raises:
        ModelError: it holds none, or a mapping that leaves numbers out.
    """
    if text.lstrip()[:1] in ("[", "{"):
        try:
            names = _listed(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{origin} is no intact JSON: {error}") from error
        if names is None:
            raise ModelError(
                f"{origin} holds no class names; expected a list of names, or numbers 0, 1, ... with names"
            )
        return names
    lines = [line.strip()[:200] for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines) or len(lines) > _MOST_NAMES:
        raise ModelError(f"{origin} holds no class names, or empty lines between them; expected one a line")
    return lines


def _beside(path: Path) -> list[Path]:
    """The files that may tell something, in the order in which they are believed."""
    folders = [path.parent]
    if path.parent.name == "checkpoints":  # as Lightning lays them
        folders.append(path.parent.parent)
    names = (f"{path.stem}.json", *_CONFIGS, *_NAME_FILES)
    found = [folder / name for folder in folders for name in names]
    return [one for one in found if one.is_file() and not one.is_symlink() and one.stat().st_size <= _LARGEST]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError):  # also of a text that isn't UTF-8
        return {}


def _yaml(path: Path) -> Any:
    import yaml

    text = _text(path) if path.stat().st_size <= _LARGEST_YAML else ""
    try:
        depth = 0
        for one in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(one, yaml.CollectionStartEvent) - isinstance(one, yaml.CollectionEndEvent)
            # Aliases let a small file stand for an endless one, and no configuration needs them, nor such a depth.
            if isinstance(one, yaml.AliasEvent) or depth > _DEEPEST_YAML:
                return {}
        return yaml.safe_load(text)
    except Exception:  # a hostile file makes the reader raise whatever it likes
        return {}


def _take(about: Any, origin: str, found: Told, depth: int = 0) -> None:
    """Reads one mapping, and what is usual inside of it."""
    if not isinstance(about, Mapping) or depth > _DEEPEST:
        return
    for key in _ARCHITECTURE:
        name = about.get(key)
        if isinstance(name, str) and 1 < len(name) < 100:
            found.architectures.append((name, origin))
    for key in _NAMES:
        names = _listed(about.get(key))
        if names is not None:
            found.labels.append((tuple(names), origin))
    parts = _preprocessing(about)
    if parts:
        found.preprocessing.append((parts, origin))
    for key in _INSIDE:
        if key in about:
            _take(about[key], origin, found, depth + 1)


def _listed(names: Any) -> list[str] | None:
    """Class names by index from a list, {"0": "cat"} or {"cat": 0}; None where it is nothing of the kind."""
    if isinstance(names, Mapping) and names:
        if all(isinstance(one, int) and not isinstance(one, bool) for one in names.values()):
            names = {index: name for name, index in names.items()}
        try:
            numbered = {int(index): name for index, name in names.items()}
        except (TypeError, ValueError):
            return None
        if len(numbered) != len(names) or sorted(numbered) != list(range(len(numbered))):
            return None
        names = [numbered[index] for index in range(len(numbered))]
    if not isinstance(names, list | tuple) or not 0 < len(names) <= _MOST_NAMES:
        return None
    return [str(one)[:200] for one in names] if all(isinstance(one, str) for one in names) else None


def _preprocessing(about: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a preprocessing under our own names, from our own files or from timm's."""
    if isinstance(about.get("preprocessing"), Mapping):
        return dict(about["preprocessing"])
    parts = {part: about[part] for part in ("mean", "std") if isinstance(about.get(part), list | tuple)}
    if about.get("interpolation") in ("nearest", "bilinear", "bicubic", "lanczos"):
        parts["interpolation"] = about["interpolation"]
    crop = about.get("crop_pct")
    size = about.get("img_size", about.get("image_size", about.get("input_size")))
    if isinstance(size, list | tuple):
        size = list(size)[-2:][::-1] if len(size) in (2, 3) else None
    if size:
        parts["size"] = size
        if isinstance(crop, int | float) and isinstance(size, int) and 0 < size < 10_000 and 0.1 <= crop <= 1:
            parts["resize"] = int(size / crop)
    return parts
