"""`made`: the adapter of a network that was built here, with everything that was found out, and what is guessed, said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import nn

from sightline.errors import ModelError
from sightline.models.adapter import Adapter
from sightline.models.given import Finding, Given
from sightline.models.preprocess import specified

RANDOM = "random weights: the model has learnt nothing, so neither its answer nor this map means anything"
OFFLINE = (
    "Without a network: --model bundled works offline; --weights FILE (weights=...) takes a local state dict; "
    "--random-weights (random_weights=True) is for trying things out"
)


def made(
    name: str,
    module: nn.Module,
    given: Given,
    preprocessing: Mapping[str, Any],
    labels: Sequence[str] | None,
    origin: Mapping[str, Any],
    found: Sequence[Finding] = (),
    classes: int | None = None,
) -> Adapter:
    """The adapter of a network built from a name.

    Args:
        name: what to call it.
        module: the network, with its weights.
        given: what the user says.
        preprocessing: the network's own, arguments of `preprocess.standard`; what was given replaces its parts.
        labels: the class names of its official weights, or None.
        origin: where it comes from: "source", "architecture", ...
        found: what was found out so far.
        classes: how many it has, where that is known.

    Raises:
        ModelError: more or fewer class names than classes, or a preprocessing that can't be.
    """
    stored = given.weights
    own = (stored is not None or given.path is not None) and "weights" not in origin
    take, spec = specified(preprocessing, given.preprocess)
    said = {one.what for one in found}
    facts = list(found)
    if "preprocessing" not in said:
        where = "given, over that of the architecture" if given.preprocess else "the architecture's own"
        facts.append(Finding("preprocessing", shown(spec), where, guessed=own and not given.preprocess))
    names = tuple(one[:200] for one in given.labels) if given.labels is not None else None
    if names is None and labels is not None and classes in (None, len(labels)):
        names = tuple(labels)
        facts.append(Finding("class names", few(names), "those of the official weights", guessed=own))
    elif names is not None and "class names" not in said:
        facts.append(Finding("class names", few(names), "given"))
    elif names is None:
        facts.append(Finding("class names", "unknown", "nothing says them: --class-names FILE (labels=[...])"))
    if names is not None and classes is not None and len(names) != classes:
        raise ModelError(f"{name} has {classes:,} classes, and {len(names):,} class names were given; give one a class")
    if stored is not None:
        origin = {"weights": stored.path.name, "sha256": stored.sha256} | dict(origin)
    return Adapter(
        name,
        module,
        preprocess=take,
        labels=names,
        provenance=dict(origin) | {"random_weights": given.random_weights, "preprocessing": spec},
        notes=((RANDOM,) if given.random_weights else ()) + guesses(facts),
        found=tuple(facts),
    )


def guesses(facts: Sequence[Finding]) -> tuple[str, ...]:
    """What every picture must say about a model of which something is guessed."""
    open_ = [f"{one.what} ({one.origin})" for one in facts if one.guessed]
    if not open_:
        return ()
    return (
        f"nothing says this model's own, so guessed: {', '.join(open_)}; to see or change it: sightline doctor --model ...",
    )


def shown(spec: Mapping[str, Any]) -> str:
    """A preprocessing in one line."""
    return ", ".join(f"{name} {value}" for name, value in spec.items())


def few(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:3]) + (f", ... ({len(names):,})" if len(names) > 3 else "")


@lru_cache(maxsize=1)
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 ImageNet classes under unique names."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
