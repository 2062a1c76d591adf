"""Writes src/sightline/models/fingerprints.json, by which a bare weights file is recognised: python tools/fingerprints.py

For every classifier of torchvision and timm: a digest of the names of its tensors, and one of their shapes without those of
the head, which is told by building it with two numbers of classes. Nothing is computed: networks are built without memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from sightline.models.fingerprint import FILE, names_digest, shapes_digest
from sightline.models.weights import without_init


def main() -> None:
    import timm
    from torchvision import models

    makers: dict[str, Any] = {
        f"torchvision:{name}": lambda classes, name=name: models.get_model(name, weights=None, num_classes=classes)
        for name in models.list_models(module=models)
    }
    makers |= {
        f"timm:{name}": lambda classes, name=name: timm.create_model(name, pretrained=False, num_classes=classes)
        for name in timm.list_models()
    }
    table: dict[str, dict[str, Any]] = {}
    for done, (name, make) in enumerate(makers.items()):
        try:
            one, other = (shapes(make, classes) for classes in (10, 12))
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        head = sorted(key for key in one if one[key] != other[key])
        entry = table.setdefault(names_digest(one), {"head": head, "models": {}})
        if entry["head"] != head:
            print(f"{name} is left out: another head than {next(iter(entry['models'].values()))}", file=sys.stderr)
            continue
        entry["models"].setdefault(shapes_digest(one, head), []).append(name)
        if done % 100 == 0:
            print(f"{done} of {len(makers)}", file=sys.stderr)
    lines = [f"{json.dumps(key)}: {json.dumps(table[key], separators=(',', ':'))}" for key in sorted(table)]
    Path(FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def shapes(make: Any, classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a network's state."""
    try:
        with torch.device("meta"):
            state = make(classes).state_dict()
    except NotImplementedError:  # reads its own weights while it is built
        with without_init():
            state = make(classes).state_dict()
    return {name: tuple(one.shape) for name, one in state.items()}


if __name__ == "__main__":
    main()
