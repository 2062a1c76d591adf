"""`made`: the adapter of a network that was built here, with everything that was found out, and what is guessed, said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import nn

from sightline.errors import ModelError
from sightline.models.adapter import Adapter
from sightline.models.given import Finding, Given
from sightline.models.preprocess import Preprocess, specified

# What nearly every classifier of photographs was trained with.
IMAGENET: Mapping[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
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
    usual: bool = False,
    take: Preprocess | None = None,
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
        usual: `preprocessing` is but what is usual, because nothing tells the network's own.
        take: the preprocessing itself where it is more than `standard` can do; then `preprocessing` only tells of it.

    Raises:
        ModelError: more or fewer class names than classes, or a preprocessing that can't be.
    """
    stored = given.weights
    own = (stored is not None or given.path is not None) and "weights" not in origin
    facts = [one for one in found if one.what not in ("preprocessing", "class names")]
    told = {one.what: one for one in found}
    how = Finding("preprocessing", shown(preprocessing), "its own")
    spec = dict(preprocessing)
    if take is None:
        origin_of_it = "what is usual" if usual else "the architecture's own"
        take, spec, how = _prepared(preprocessing, given, own or usual, origin_of_it)
    names, who = _named(labels, given, classes, guessed=own)
    facts += [told.get("preprocessing", how), *([told["class names"]] if "class names" in told else who)]
    if stored is not None:
        origin = {"weights": stored.path.name, "sha256": stored.sha256} | dict(origin)
    return Adapter(
        name,
        module,
        preprocess=take,
        labels=names,
        provenance=dict(origin) | {"random_weights": given.random_weights, "preprocessing": spec},
        notes=(
            *((RANDOM,) if given.random_weights else ()),
            *guesses(facts),
            *(f"{one.value} are left out: {one.origin}" for one in who if one.what == "left out"),
        ),
        found=tuple(facts),
    )


def _prepared(
    own: Mapping[str, Any], given: Given, guessed: bool, origin: str
) -> tuple[Preprocess, dict[str, Any], Finding]:
    """The preprocessing: the network's own, over that what the file says, over that what the user says."""
    parts = dict(own)
    for said, where in given.told.preprocessing if given.told else ():
        try:
            parts = specified(parts, said)[1]
        except ModelError as error:
            origin = f"{origin}; what {where} says is left out: {error}"
            continue
        open_ = [part for part in ("size", "mean", "std", "interpolation") if part not in said]
        guessed = bool(open_)
        origin = f"{where}; {' and '.join(open_)} {origin}" if open_ else where
        break
    if given.preprocess:
        guessed = guessed and not {"mean", "std"} <= given.preprocess.keys()
        origin = f"{' and '.join(given.preprocess)} given; the rest {origin}"
    take, spec = specified(parts, given.preprocess)
    return take, spec, Finding("preprocessing", shown(spec), origin, guessed)


def _named(
    labels: Sequence[str] | None, given: Given, classes: int | None, guessed: bool
) -> tuple[tuple[str, ...] | None, list[Finding]]:
    """The class names: those the user gives, else those of the file that fit the head, else those of the official weights."""
    if given.labels is not None:
        if classes is not None and len(given.labels) != classes:
            raise ModelError(
                f"the model has {classes:,} classes, and {len(given.labels):,} class names were given; give one a class"
            )
        names = tuple(one[:200] for one in given.labels)
        return names, [Finding("class names", few(names), "given")]
    left = []
    for names, origin in given.told.labels if given.told else ():
        if classes in (None, len(names)):
            return names, [Finding("class names", few(names), origin)]
        left.append(Finding("left out", f"{len(names):,} names in {origin}", f"the network has {classes:,} classes"))
    if labels is not None and classes in (None, len(labels)):
        names = tuple(labels)
        return names, [*left, Finding("class names", few(names), "those of the official weights", guessed)]
    return None, [*left, Finding("class names", "unknown", "nothing says them: --class-names FILE (labels=[...])")]


def usual_for(size: tuple[int, int], colours: Mapping[str, Any] = IMAGENET) -> dict[str, Any]:
    """The preprocessing that is usual for an input of this size (width, height): 7/8 of the scaled picture, cut from its middle."""
    if size[0] != size[1]:
        return {"size": size, "resize": size, "fit": "exact", "interpolation": "bilinear", **colours}
    return {"size": size, "resize": round(size[0] * 8 / 7), "fit": "shorter", "interpolation": "bilinear", **colours}


def guesses(facts: Sequence[Finding]) -> tuple[str, ...]:
    """What every picture must say about a model of which something is guessed."""
    guessed = [f"{one.what} ({one.origin})" if len(one.origin) <= 90 else one.what for one in facts if one.guessed]
    return (f"guessed, because nothing says it: {', '.join(guessed)} (sightline doctor tells more)",) if guessed else ()


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
