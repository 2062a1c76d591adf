"""What decides a result beside the pictures, in words and digests: a run goes on only where all of it is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import sightline
from sightline.methods.registry import Method
from sightline.models.adapter import Adapter


def identity(
    adapter: Adapter, methods: Sequence[Method], options: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any] | str]:
    """What decides a result beside the pictures: versions, weights, preprocessing, methods; a part of a plan."""
    return {
        "sightline": sightline.__version__,
        "torch": torch.__version__,
        "model": {
            "name": adapter.name,
            **adapter.provenance,
            "weights": _fingerprint(adapter.module),
            "classes": _digest("\n".join(adapter.labels or ())),
            "input": _input_digest(adapter),
            **({"answers": _answers(adapter)} if adapter.black_box else {}),
            **({"notes": list(adapter.notes)} if adapter.notes else {}),
        },
        "methods": {one.name: {**options.get(one.name, {}), **_code(one)} for one in methods},
    }


def _fingerprint(module: nn.Module) -> str:
    """Of all weights and buffers, so that no run goes on with others."""
    found = hashlib.blake2b(digest_size=12)
    for name, one in module.state_dict().items():
        found.update(name.encode())
        if isinstance(one, torch.Tensor):
            found.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _answers(adapter: Adapter) -> list[str]:
    """What a black box, which has no weights to compare, says of one picture: its first scores, roughly."""
    if adapter.preprocess is None:
        return []
    x, _ = adapter.preprocess(_probe())
    with torch.inference_mode():
        said = adapter.logits(adapter.module(x[None]))
    return [f"{float(one):.2g}" for one in said.flatten()[:3]]


def _input_digest(adapter: Adapter) -> str:
    """Of what the preprocessing makes of a picture, so that no run goes on with another."""
    if adapter.preprocess is None:
        return ""
    x, _ = adapter.preprocess(_probe())
    return _digest(str(tuple(x.shape)) + x.detach().cpu().double().numpy().tobytes().hex())


def _probe() -> Image.Image:
    pixels = (np.indices((48, 64)).sum(axis=0)[..., None] * np.array([1, 2, 3])) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def _code(method: Method) -> dict[str, str]:
    """What a function of the user's own says, so that no run goes on with another of the same name."""
    code = getattr(method.function, "__code__", None)
    if method.function.__module__.startswith("sightline.") or code is None:
        return {}
    said = [one for one in code.co_consts if not hasattr(one, "co_code")]
    return {"code": _digest(f"{code.co_code.hex()} {code.co_names} {said}")}
