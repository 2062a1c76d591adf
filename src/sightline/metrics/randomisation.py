"""Does the map depend on what the model has learned, and on the class? One that doesn't shows the picture, not the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.errors import MetricError, NonFiniteError, UndefinedError
from sightline.metrics.faithfulness import Explain
from sightline.metrics.maps import likeness
from sightline.metrics.registry import Array, Curve, metric
from sightline.models.layers import adopt_layouts
from sightline.models.twin import isolated, twin


@metric(
    "parameter-randomisation",
    better="lower",
    reference="Adebayo et al. 2018, arXiv:1810.03292: cascading randomisation",
)
def parameter_randomisation(
    raw: Array, x: Tensor, explain: Explain, module: nn.Module, *, depths: int = 0, draws: int = 1, seed: int = 0
) -> Curve:
    """How like itself the map stays while the network's layers are replaced by random ones, from the output down.

    Spearman's rank correlation of the signed maps, with the parameters of one layer after the other drawn anew from a normal
    distribution with that tensor's own mean and standard deviation (the paper draws from the initialiser, which is not known of
    a trained model). The curve has every depth of the first draw; the value is the mean over all draws of the correlation's size when
    all layers are random: -1 is the same map with its sign turned. Near 1 the map does not show the model.

    Args:
        raw: (h, w), before anything is cut off below 0.
        x: (1, C, H, W).
        explain: `explain(module=)` -> the map of another module (1, h, w).
        module: the model; never changed.
        depths: how many points of the cascade are asked; 0 for every layer.
        draws: of random parameters; those after the first are asked with all layers random alone.
        seed: of the random parameters.
    """
    layers = _from_the_top(module, x)
    if not layers:
        raise UndefinedError("the model has no parameters that could be randomised")
    asked = len(layers) if depths == 0 else min(depths, len(layers))
    if asked < 1:
        raise MetricError(f"option depths is {depths}; expected 0 for all layers, or how many")
    stops = {round((number + 1) * len(layers) / asked) for number in range(asked)}
    stand_in = twin(module, {})
    adopt_layouts(stand_in, module)
    at, scores, notes = [0.0], [1.0], []
    for done, _ in enumerate(_randomised(stand_in, layers, seed), 1):
        if done not in stops:
            continue
        at.append(done / len(layers))
        try:
            scores.append(likeness(raw, explain(module=stand_in)[0]))
        except (UndefinedError, NonFiniteError) as error:
            scores.append(np.nan)
            notes.append(f"with {done} of {len(layers)} layers random: {error}")
    curve = np.array(scores)
    if np.isnan(curve[-1]):
        raise UndefinedError(f"with all layers random there is no map to compare with: {notes[-1]}")
    ends = [abs(float(curve[-1]))]
    for draw in range(1, draws):
        another = twin(module, {})
        adopt_layouts(another, module)
        for _ in _randomised(another, layers, seed + draw):
            pass
        try:
            ends.append(abs(likeness(raw, explain(module=another)[0])))
        except (UndefinedError, NonFiniteError) as error:
            notes.append(f"draw {draw + 1}, all layers random: {error}")
    return Curve(np.array(at), curve, float(np.mean(ends)), notes=tuple(notes))


def _from_the_top(module: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules with parameters of their own, the last to run first; one that isn't called counts with what holds it."""
    called: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            called.setdefault(name, len(called))

        return hook

    names = dict(module.named_modules())
    with isolated(x), torch.no_grad():
        twin(module, {name: note(name) for name in names if name})(x.clone())  # which may be worked on in place
    own = [name for name, one in names.items() if any(True for _ in one.parameters(recurse=False))]

    def place(name: str) -> int:
        while name and name not in called:
            name = name.rpartition(".")[0]
        return called.get(name, 0)

    return sorted(own, key=place, reverse=True)


def _randomised(stand_in: nn.Module, layers: list[str], seed: int) -> Iterator[str]:
    """Replaces the parameters of one layer after the other in a stand-in, whose original keeps its own."""
    rng = np.random.default_rng(seed)
    drawn: dict[int, nn.Parameter] = {}  # tied ones stay tied
    for name in layers:
        own = stand_in.get_submodule(name)._parameters
        for key, one in own.items():
            if one is None or not one.is_floating_point():
                continue
            if id(one) not in drawn:
                values = one.detach().double().cpu()
                noise = torch.from_numpy(rng.standard_normal(tuple(one.shape)))
                spread = values.std(correction=0)
                # A kernel of one number would stay as it is; norms' ones and zeros are what they begin with anyway.
                spread = values.abs().mean() if spread == 0 and values.dim() > 1 else spread
                fresh = values.mean() + spread * noise
                drawn[id(one)] = nn.Parameter(fresh.to(one), requires_grad=one.requires_grad)
            own[key] = drawn[id(one)]
        yield name


@metric(
    "random-logit",
    better="lower",
    reference="Sixt et al. 2020, arXiv:1912.09818; with rank correlation for their SSIM",
)
def random_logit(raw: Array, explain: Explain, others: tuple[int, int], *, classes: int = 5, seed: int = 0) -> float:
    """How like the map is to those of other classes drawn at random: the mean of Spearman's rank correlations, -1 to 1.

    1 is a method that shows the same whatever the class.

    Args:
        raw: (h, w), before anything is cut off below 0.
        explain: `explain(target=)` -> the map for another class (1, h, w).
        others: the target's class, and how many classes there are.
        classes: how many others.
        seed: of which.
    """
    drawn = other_classes(others, classes, seed)
    return float(np.mean([likeness(raw, explain(target=one)[0]) for one in drawn]))


def other_classes(others: tuple[int, int], classes: int, seed: int) -> list[int]:
    """So many classes drawn from all but the target's own; all of them where there are fewer."""
    if classes < 1:
        raise MetricError(f"option classes is {classes}; expected at least 1")
    own, count = others
    drawn = np.random.default_rng(seed).permutation(np.delete(np.arange(count), own))[:classes]
    return [int(one) for one in drawn]
