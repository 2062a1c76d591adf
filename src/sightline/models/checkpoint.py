"""A bare weights file, or a folder with one: which network it is of is told by what stands in and beside it, or by its shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sightline.errors import ModelError, SightlineError, WeightsError
from sightline.models.adapter import Adapter
from sightline.models.beside import told
from sightline.models.fingerprint import recognised
from sightline.models.given import Finding, Given, Stored, Told
from sightline.models.made import few, guesses
from sightline.models.weights import networks, read_stored

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_USUAL = (
    "model.safetensors",
    "model.pt",
    "model.pth",
    "pytorch_model.bin",
    "best.pt",
    "best.pth",
    "best.ckpt",
    "last.ckpt",
)
_MOST_TRIED = 12
Build = Callable[[str, Given], Adapter]


def build_file(path: Path, given: Given, build: Build) -> Adapter:
    """The model of a weights file.

    Args:
        path: the file.
        given: what the user says.
        build: from an architecture's name and what is known to the model.

    Raises:
        ModelError: nothing tells which network it is of, or several would fit that compute differently.
        WeightsError: as `read_stored`.
    """
    if given.weights is not None or given.random_weights:
        raise ModelError(f"{path} is weights itself; --weights and --random-weights are for models given by name")
    stored = read_stored(path)
    about = told(stored)
    names, origin = _architectures(stored, about)
    if not names:
        raise ModelError(_unknown(stored, about))
    first: Adapter | None = None
    alike: list[str] = []
    others: list[str] = []
    failed: list[SightlineError] = []
    for name in names[:_MOST_TRIED]:
        known = dataclasses.replace(given, weights=stored, told=about, found=(Finding("architecture", name, origin),))
        try:
            adapter = build(name, known)
        except WeightsError as error:
            failed.append(error)
            continue
        if first is None:
            first = adapter
        else:
            (alike if _same(first, adapter) else others).append(name)
    if first is None:
        raise failed[0]
    chosen = first.found[0]
    if others and not chosen.value.startswith("torchvision:"):
        raise ModelError(
            f"{path.name} fits {', '.join([chosen.value, *others[:4]])}, which have tensors of the same shapes and compute differently; "
            f"say which one it was made with: --model {chosen.value} --weights {path}"
        )
    if alike:
        chosen = dataclasses.replace(chosen, origin=f"{chosen.origin}; {few(alike)} would give the same scores")
    if others:
        more = f"{chosen.origin}; {few(others)} would fit as well and compute otherwise"
        chosen = dataclasses.replace(chosen, origin=more, guessed=True)
    facts = (chosen, *first.found[1:])
    others_said = first.notes[len(guesses(first.found)) :]
    return dataclasses.replace(first, name=path.name, found=facts, notes=(*guesses(facts), *others_said))


def weights_in(folder: Path) -> Path:
    """The one weights file of a folder.

    Raises:
        ModelError: there is none, or several of which none has a usual name.
    """
    home = folder.resolve()
    # A link that leads out of the folder is not part of it.
    found = sorted(
        one for one in folder.iterdir() if one.suffix in SUFFIXES and one.is_file() and one.resolve().parent == home
    )
    usual = [one for name in _USUAL for one in found if one.name == name]
    if len(found) != 1 and not usual:
        names = few([one.name for one in found])
        raise ModelError(
            f"{folder} holds {f'{len(found)} weights files: {names}' if found else 'no weights file'}; give one itself as "
            f"the model ({', '.join(SUFFIXES)})"
        )
    return (usual or found)[0]


def _architectures(stored: Stored, about: Told) -> tuple[list[str], str]:
    """Names to try, the likeliest first, and what told them."""
    by_shape: list[str] = []
    for _, tensors in networks(stored.tensors):
        by_shape += recognised({name: tuple(one.shape) for name, one in tensors.items()})
    by_shape = sorted(
        dict.fromkeys(by_shape), key=lambda name: (name.partition(":")[0] != "torchvision", len(name), name)
    )
    for name, origin in about.architectures:
        near = [one for one in by_shape if name in (one, one.partition(":")[2])]
        if near:
            return near, origin
        known = [one for one in _spelled(name) if not by_shape]
        if known:
            return known, origin
    return by_shape, "the names and shapes of its tensors"


def _spelled(name: str) -> list[str]:
    """The architectures that a name from a file may stand for."""
    import timm

    from sightline.models.torchvision import names

    source, colon, rest = name.partition(":")
    bare = rest if colon else name
    found = [f"torchvision:{bare}"] if bare in names() and source in (name, "torchvision") else []
    if timm.is_model(bare.partition(".")[0]) and source in (name, "timm"):
        found.append(f"timm:{bare.partition('.')[0]}")
    return found


def _same(one: Adapter, other: Adapter) -> bool:
    """Whether two networks of the same tensors give the same scores."""
    width, height = one.provenance["preprocessing"]["size"]
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (_scores(adapter, x) for adapter in (one, other))
    if first is None or second is None or first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= 1e-4 * first.abs().max().clamp_min(1e-6))


def _scores(adapter: Adapter, x: Tensor) -> Tensor | None:
    try:
        found = adapter.logits(adapter.module.eval()(x))
    except Exception:  # a network of another size of the input; then they are not the same
        return None
    return found if isinstance(found, Tensor) else None


def _unknown(stored: Stored, about: Told) -> str:
    said = f" (it says {about.architectures[0][0]!r}, which no source has)" if about.architectures else ""
    shown = few([repr(name[:60])[1:-1] for name in stored.tensors])
    return (
        f"nothing tells which network {stored.path.name} is of{said}: its {len(stored.tensors):,} tensors ({shown}) are those of "
        "no classifier of torchvision or timm as a whole. Say it: --model timm:NAME --weights FILE; a network of your own, or "
        "one with a head of your own, comes through Python: sightline.adapt(module)"
    )
