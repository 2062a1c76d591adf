"""One honest pass: the right map or a `SightlineError` in every state a model and its surroundings can be in."""

from __future__ import annotations

import copy
import functools
import re
import types
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sightline
from conftest import (
    CLASSES,
    MODELS,
    Block,
    Dense,
    Echo,
    Flat,
    Plain,
    Regularised,
    Residual,
    Wrapped,
    assert_close,
    assert_untouched,
    by_autograd,
    by_oracle,
    channels_of,
    images,
    seeded,
)
from oracles import ORACLES
from sightline.engine.capture import capture, toward
from sightline.engine.probe import probe
from sightline.engine.targets import resolve
from sightline.errors import LayerError, ModelError, NonFiniteError, SightlineError, TargetError

METHODS = sorted(ORACLES)
FUNCTIONAL = {"residual": lambda: Residual(inplace=False), "dense": lambda: Dense(inplace=False)}
HIRES = "hires-cam"  # signed and cell by cell, so that every fault of A or G shows


def _logit(index: int) -> Callable[[Tensor], Tensor]:
    return lambda output: output[:, index]


def _wanted(model: nn.Module, layer: str, x: Tensor, index: int = 1, method: str = HIRES) -> Tensor:
    """The map by autograd over the whole model and the slow reference."""
    a, g, _ = by_autograd(model, layer, x, _logit(index))
    return by_oracle(method, a, g)


def _right_or_refused(found: Callable[[], Tensor], wanted: Tensor, tolerance: float = 1e-6) -> str:
    """Returns "right" or the refusal; a wrong map fails."""
    try:
        result = found()
    except SightlineError as error:
        return str(error)
    assert_close(result, wanted, tolerance)
    return "right"


# ---------------------------------------------------------------------------------------------------- the user's hooks


def _with_hooks(model: nn.Module, names: list[str]) -> list[str]:
    fired: list[str] = []
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda _module, _args, name=name: fired.append(f"pre {name}"))
        module.register_forward_hook(lambda _module, _args, _out, name=name: fired.append(f"first {name}"))
        module.register_forward_hook(lambda _module, _args, _out, name=name: fired.append(f"second {name}"))
    return fired


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_users_hooks_fire_once_a_call_in_their_order_and_stay(method: str, training: bool) -> None:
    model = seeded(Plain).train(training)
    fired = _with_hooks(model, ["conv1", "relu2", "head"])
    wanted = [f"{kind} {name}" for name in ("conv1", "relu2", "head") for kind in ("pre", "first", "second")]
    with assert_untouched(model):
        sightline.attribute(images(1), model, method=method, layer="relu2", target=1)
    assert fired == wanted
    fired.clear()
    model(images(1))
    assert fired == wanted


def test_the_users_hooks_fire_three_times_more_where_the_layer_is_chosen_by_a_run() -> None:
    model = seeded(Plain)
    fired = _with_hooks(model, ["conv1"])
    sightline.attribute(images(1), model, target=1)
    assert (
        fired == ["pre conv1", "first conv1", "second conv1"] * 4
    )  # the choice, its trial with two pictures, the capture
    once = sightline.adapt(model, layers=["relu2"])
    fired.clear()
    sightline.attribute(images(1), once, target=1)
    assert fired == ["pre conv1", "first conv1", "second conv1"]


def test_the_users_backward_hook_fires_once_a_target() -> None:
    model, fired = seeded(Plain), []
    model.head.register_full_backward_hook(lambda _module, _in, _out: fired.append("head"))
    seen = sightline.capture(images(1), model, layer="relu2")
    for index in range(3):
        sightline.attribute(seen, model, target=index)
    assert fired == ["head"] * 3


@pytest.mark.parametrize("layer", ["conv1", "relu1", "relu2"])
def test_a_users_hook_that_changes_an_output_is_part_of_the_model(layer: str) -> None:
    model, x = seeded(Plain), images(2)
    model.relu1.register_forward_hook(lambda _module, _args, output: output * torch.linspace(-1, 2, 6)[:, None, None])
    found = sightline.attribute(x, model, method=HIRES, layer=layer, target=1)
    assert_close(found, _wanted(model, layer, x))


# ------------------------------------------------------------------------------------------------- modes of the model


def _mixed_modes(model: nn.Module) -> None:
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["train", "mixed", "only the root", "only the leaves"])
def test_training_mode_gives_evaluation_modes_map_and_stays(name: str, mode: str) -> None:
    model = seeded(MODELS[name])
    x = images(3, channels_of(model))
    wanted = sightline.attribute(x, model, method=HIRES, layer=model.layer, target=1)
    if mode == "train":
        model.train()
    elif mode == "mixed":
        _mixed_modes(model)
    elif mode == "only the root":
        model.training = True
    else:
        model.train()
        model.training = False
    with assert_untouched(model, x):
        found = sightline.attribute(x, model, method=HIRES, layer=model.layer, target=1)
    assert torch.equal(found, wanted)


def test_running_statistics_stay_while_a_model_in_training_is_explained() -> None:
    model = seeded(Regularised).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(3):
        sightline.attribute(images(4), model)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert int(model.norm1.num_batches_tracked) == 0


class _Patched(Regularised):
    """A model whose forward was replaced on the instance, as many a notebook does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        original = type(self).forward
        if how == "bound method":
            self.forward = types.MethodType(original, self)
        elif how == "partial":
            self.forward = functools.partial(original, self)
        elif how == "closure":
            self.forward = lambda x: original(self, x)
        elif how == "list of its modules":
            self.steps = [self.conv1, self.norm1, nn.ReLU(), self.drop1, self.conv2, self.norm2, self.relu2, self.drop2]
            self.forward_steps = True

    def forward(self, x: Tensor) -> Tensor:
        if "steps" not in self.__dict__:
            return super().forward(x)
        for step in self.steps:
            x = step(x)
        return self.head(x.square().mean(dim=(2, 3)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", ["bound method", "partial", "closure", "list of its modules"])
def test_a_model_that_reaches_its_modules_by_another_way_gets_the_right_map_or_is_refused(
    how: str, training: bool
) -> None:
    """The stand-in must not lead back to the model: there hooks don't fire, and training mode is on."""
    x = images(2)
    wanted = _wanted(seeded(Regularised), "relu2", x)
    model = seeded(lambda: _Patched(how)).train(training)
    with assert_untouched(model, x):
        _right_or_refused(lambda: sightline.attribute(x, model, method=HIRES, layer="relu2", target=1), wanted, 1e-5)


def test_a_block_whose_forward_was_replaced_is_not_left_in_training_mode() -> None:
    """The way is the layer's own, the replaced forward lies beside it: nothing refuses, so the map must be right."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = seeded(Regularised)
            self.body.head = nn.Identity()
            self.after = nn.Conv2d(8, CLASSES, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body.relu2(self.body.norm2(self.body.conv2(self.body.norm1(self.body.conv1(x)))))
            return self.after(x).square().mean(dim=(2, 3))

    model, x = seeded(Net), images(2)
    wanted = _wanted(model, "body.conv2", x)
    model.body.norm2.forward = types.MethodType(type(model.body.norm2).forward, model.body.norm2)
    model.train()
    with assert_untouched(model, x):
        result = _right_or_refused(
            lambda: sightline.attribute(x, model, method=HIRES, layer="body.conv2", target=1), wanted, 1e-5
        )
    assert result == "right" or "forward" in result


@pytest.mark.parametrize("kind", ["weight norm", "spectral norm", "old spectral norm"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_parametrised_weights_give_the_right_map_and_stay(kind: str, training: bool) -> None:
    wrap = {
        "weight norm": torch.nn.utils.parametrizations.weight_norm,
        "spectral norm": torch.nn.utils.parametrizations.spectral_norm,
        "old spectral norm": torch.nn.utils.spectral_norm,
    }[kind]
    model, x = seeded(Plain), images(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wrap(model.conv2)
        wrap(model.head)
    wanted = sightline.attribute(x, model.eval(), method=HIRES, layer="relu2", target=1)
    with torch.no_grad():
        logits = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train(training)
    found = sightline.capture(x, model, layer="relu2")
    assert_close(found.output, logits)
    assert_close(sightline.attribute(found, model, method=HIRES, target=1), wanted)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


# --------------------------------------------------------------------------------------------------- the surroundings


def _bfloat16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": _bfloat16,
}


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "regularised"])
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("frozen", ["nothing", "the trunk", "the head", "everything"])
def test_the_map_is_the_same_in_all_surroundings_and_with_frozen_parameters(
    surrounding: str, frozen: str, name: str
) -> None:
    model, x = seeded(MODELS[name]), images(2)
    for layer in (None, model.layer):
        wanted = sightline.attribute(x, model, method=HIRES, layer=layer, target=1)
        for key, parameter in model.named_parameters():
            part = "the head" if key.startswith("head") else "the trunk"
            parameter.requires_grad_(frozen not in (part, "everything"))
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        with SURROUNDINGS[surrounding](), assert_untouched(model, x):
            found = sightline.attribute(x, model, method=HIRES, layer=layer, target=1)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_a_capture_can_be_asked_in_other_surroundings_than_it_was_made_in(surrounding: str) -> None:
    model, x = seeded(Plain), images(2)
    wanted = sightline.attribute(x, model, method=HIRES, layer="relu1", target=1)
    with SURROUNDINGS[surrounding]():
        seen = sightline.capture(x, model, layer="relu1")
    assert torch.equal(sightline.attribute(seen, model, method=HIRES, target=1), wanted)
    seen = sightline.capture(x, model, layer="relu1")
    with SURROUNDINGS[surrounding]():
        assert torch.equal(sightline.attribute(seen, model, method=HIRES, target=1), wanted)


class _Frozen(Plain):
    """A backbone that the model itself runs without a graph, as in fine-tuning of the head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(self.how, nullcontext)
        with context():
            x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        if self.how == "detach":
            x = x.detach()
        return self.head(self.pool(x).flatten(1))


@pytest.mark.parametrize("layer", ["conv1", "relu1", "conv2", "relu2", None])
@pytest.mark.parametrize("parameters", ["trained", "frozen trunk", "all frozen"])
def test_a_backbone_that_the_model_runs_without_a_graph_gives_the_right_map(parameters: str, layer: str | None) -> None:
    x = images(2)
    model = seeded(lambda: _Frozen("no_grad"))
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(parameters == "trained" or (parameters == "frozen trunk" and key.startswith("head")))
    wanted = _wanted(seeded(Plain), layer or "relu2", x)
    with assert_untouched(model, x):
        found = sightline.attribute(x, model, method=HIRES, layer=layer, target=1)
    assert_close(found, wanted)


@pytest.mark.parametrize("layer", ["conv1", "relu2"])
@pytest.mark.parametrize("how", ["inference_mode", "detach"])
def test_a_model_that_cuts_its_own_graph_gets_the_right_map_or_is_refused(how: str, layer: str) -> None:
    x = images(2)
    model = seeded(lambda: _Frozen(how))
    with assert_untouched(model, x):
        _right_or_refused(
            lambda: sightline.attribute(x, model, method=HIRES, layer=layer, target=1),
            _wanted(seeded(Plain), layer, x),
        )


def test_a_model_with_its_own_autocast_is_explained_as_it_runs() -> None:
    class Mixed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            with _bfloat16():
                return super().forward(x).float()

    model, x = seeded(Mixed), images(2)
    with assert_untouched(model, x):
        seen = sightline.capture(x, model, layer="relu2")
    assert seen.activations.dtype == torch.bfloat16
    assert torch.equal(seen.output, model(x))
    found = sightline.attribute(x, model, method=HIRES, layer="relu2", target=1)
    assert found.dtype == torch.float32
    assert_close(found, _wanted(seeded(Plain), "relu2", x), 0.1)


@pytest.mark.parametrize("made", ["model", "input", "both"])
@pytest.mark.parametrize("called", [nullcontext, torch.inference_mode, torch.no_grad])
def test_a_model_made_in_inference_mode_gets_the_right_map_or_is_refused(
    made: str, called: Callable[[], AbstractContextManager[Any]]
) -> None:
    wanted = _wanted(seeded(Plain), "relu1", images(2))
    with torch.inference_mode(made in ("model", "both")):
        model = seeded(Plain)
    with torch.inference_mode(made in ("input", "both")):
        x = images(2)
    with called(), assert_untouched(model, x):
        result = _right_or_refused(lambda: sightline.attribute(x, model, method=HIRES, layer="relu1", target=1), wanted)
    assert result == "right" or "inference" in result.lower()


# ------------------------------------------------------------------------------------------------- in place and wrapped


@pytest.mark.parametrize(
    "layer", ["stem", "norm", "relu", "block1", "block1.norm2", "block1.last", "block2.conv2", None]
)
@pytest.mark.parametrize("method", METHODS)
def test_in_place_relu_and_residual_give_the_functional_twins_map(method: str, layer: str | None) -> None:
    x = images(2)
    model = seeded(lambda: Residual(inplace=True))
    wanted = _wanted(seeded(lambda: Residual(inplace=False)), layer or "block2", x, method=method)
    with assert_untouched(model, x):
        found = sightline.attribute(x, model, method=method, layer=layer, target=1)
    assert_close(found, wanted, 2e-6)


@pytest.mark.parametrize("layer", ["stem", "norm", "block1.norm1", "block1.norm2", "block2.last"])
def test_what_was_captured_is_not_overwritten_by_what_follows_in_place(layer: str) -> None:
    x = images(2, dtype=torch.float64)
    seen = sightline.capture(x, seeded(Residual, dtype=torch.float64), layer=layer)
    a, _, _ = by_autograd(seeded(lambda: Residual(inplace=False), dtype=torch.float64), layer, x, _logit(1))
    assert_close(seen.activations, a, 1e-12)


class _Aliased(nn.Module):
    """Pre-activation residual blocks whose first ReLU works in place: the skip is the layer's output by another name.

    The functional twin has no second name; both compute the same logits.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=how != "functional")
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = skip = x[:, :] if self.how == "read as a view" else x
        out = self.relu(x)
        if self.how == "functional":
            return self.head((out + self.conv(out)).square().mean(dim=(2, 3)))
        if self.how.startswith("read"):
            return self.head((skip + self.conv(out)).square().mean(dim=(2, 3)))
        if self.how == "call without its result":
            self.relu(skip)
            return self.head((skip + self.conv(skip)).square().mean(dim=(2, 3)))
        skip += self.conv(out)
        return self.head(skip.square().mean(dim=(2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("surrounding", ["plain", "no_grad"])
@pytest.mark.parametrize("how", ["read", "read as a view", "written", "call without its result"])
def test_a_layer_that_works_in_place_on_a_tensor_used_again_gets_the_right_map_or_is_refused(
    how: str, surrounding: str, frozen: bool
) -> None:
    x = images(2)
    wanted = _wanted(seeded(lambda: _Aliased("functional")), "relu", x)
    model = seeded(lambda: _Aliased(how)).requires_grad_(not frozen)
    with torch.no_grad():
        assert_close(model(x), seeded(lambda: _Aliased("functional"))(x))
    with SURROUNDINGS[surrounding](), assert_untouched(model, x):
        _right_or_refused(lambda: sightline.attribute(x, model, method=HIRES, layer="relu", target=1), wanted)


class _Passing(nn.Module):
    """A layer that hands on its own input, which is then changed in place under its first name."""

    def __init__(self, functional: bool = False) -> None:
        super().__init__()
        self.functional = functional
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        out = self.drop(x)
        if self.functional:
            return self.head((out * 3).relu().square().mean(dim=(2, 3)))
        x *= 3
        return self.head(out.relu().square().mean(dim=(2, 3)))


def test_a_layer_that_hands_on_its_input_which_is_then_changed_gets_the_right_map_or_is_refused() -> None:
    x = images(2)
    with torch.no_grad():
        assert_close(seeded(_Passing)(x), seeded(lambda: _Passing(True))(x))
    _right_or_refused(
        lambda: sightline.attribute(x, seeded(_Passing), method=HIRES, layer="drop", target=1),
        _wanted(seeded(lambda: _Passing(True)), "drop", x),
    )


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict", "view", "slice", "transposed", "named tuple"])
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_returns_a_tuple_dict_or_view_gives_the_same_map_as_one_that_returns_a_tensor(
    method: str, kind: str
) -> None:
    x = images(2)

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapping = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.wrapping(x) * 2).relu().square().mean(dim=(2, 3)))

    twin = seeded(Functional)
    model = seeded(lambda: Wrapped(kind))
    with torch.no_grad():
        assert_close(model(x), twin(x))
    with assert_untouched(model, x):
        result = _right_or_refused(
            lambda: sightline.attribute(x, model, method=method, layer="wrapping", target=1),
            _wanted(twin, "wrapping", x, method=method),
        )
    assert result == "right" or kind == "named tuple"


def test_a_named_tuple_with_one_grid_is_taken_and_given_on_as_one() -> None:
    from typing import NamedTuple

    class Out(NamedTuple):
        grid: Tensor
        mean: Tensor

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Out:
            x = self.conv(x)
            return Out(x, x.mean(dim=(2, 3)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer()
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x).grid.relu().mean(dim=(2, 3)))

    model, x = seeded(Net), images(2)
    found = sightline.attribute(x, model, method=HIRES, layer="layer", target=1)
    assert_close(found, _wanted(model, "layer.conv", x))


class _InPlaceOnInput(Plain):
    """Normalises its input in place, as some models do."""

    def __init__(self, frozen_trunk: bool = False) -> None:
        super().__init__()
        self.frozen_trunk = frozen_trunk

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x *= 3
        with torch.no_grad() if self.frozen_trunk else nullcontext():
            x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.head(self.pool(x).flatten(1))


@pytest.mark.parametrize("frozen_trunk", [False, True])
@pytest.mark.parametrize("layer", ["relu2", "conv1", None])
def test_a_model_that_works_on_its_input_in_place_gets_the_right_map(layer: str | None, frozen_trunk: bool) -> None:
    model, x = seeded(lambda: _InPlaceOnInput(frozen_trunk)), images(3)
    with assert_untouched(model, x):
        seen = sightline.capture(x, model, layer=layer)
        found = sightline.attribute(x, model, method=HIRES, layer=layer, target=1)
    assert_close(seen.output, model(x.clone()))
    assert_close(found, _wanted(seeded(Plain), layer or "relu2", (x - 0.5) * 3))
    assert torch.equal(seen.input, x), "the capture's input is what the model made of it"


def test_a_probe_of_a_model_that_works_on_its_input_in_place_is_right() -> None:
    model, x = seeded(_InPlaceOnInput), images(1)
    adapter = sightline.adapt(model)
    seen = sightline.capture(x, adapter, layer="relu2")
    ask = probe(adapter, sightline.capture(x, adapter, layer="relu2"), resolve(1, adapter, seen.output))
    others = images(3, seed=8)
    with assert_untouched(model, others):
        scores, gradients = ask.score_grad(others)
        assert_close(ask.score(others), model(others.clone())[:, 1])
    leaf = others.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(seeded(Plain)((leaf - 0.5) * 3)[:, 1].sum(), leaf)
    assert_close(gradients, wanted)
    assert_close(scores, model(others.clone())[:, 1])


# -------------------------------------------------------------------------------------------------- layers that refuse


class _Odd(nn.Module):
    """A shared ReLU, a layer that is never reached, one off the way to the score, and outputs that are no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.unused = nn.Conv2d(6, 6, 3)
        self.aside = nn.Conv2d(6, 6, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.AdaptiveAvgPool2d((8, 1))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        self.squeeze(x)
        return self.head(self.pool(x).flatten(1)), self.aside(x)


REFUSALS = {
    "relu": "ran 2 times",
    "unused": "was not reached",
    "pool": "no grid larger than 1 x 1",
    "squeeze": "no grid larger than 1 x 1",
    "head": "no grid larger than 1 x 1",
    "aside": "doesn't depend on layer 'aside'",
    "convl": "no layer 'convl'. Did you mean 'conv",
}


@pytest.mark.parametrize("layer", REFUSALS)
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_without_an_honest_map_is_refused_with_its_own_sentence(layer: str, training: bool) -> None:
    model, x = seeded(_Odd).train(training), images(2)
    with assert_untouched(model, x), pytest.raises(LayerError, match=re.escape(REFUSALS[layer])) as caught:
        sightline.attribute(x, model, layer=layer, target=1)
    assert sum(sentence in str(caught.value) for sentence in set(REFUSALS.values())) == 1


@pytest.mark.parametrize("layer", ["aside", "unused"])
def test_a_layer_off_the_way_is_refused_when_everything_is_frozen(layer: str) -> None:
    model = seeded(_Odd).requires_grad_(False)
    with pytest.raises(SightlineError, match=f"layer '{layer}'"):
        sightline.attribute(images(2), model, layer=layer, target=1)


def test_a_shared_layer_under_two_names_is_refused_under_both() -> None:
    model = seeded(_Odd)
    model.same_relu = model.relu
    for name in ("relu", "same_relu"):
        with pytest.raises(LayerError, match=f"layer '{name}' ran 2 times"):
            sightline.attribute(images(1), model, layer=name, target=1)


def test_a_module_with_two_names_that_runs_once_is_found_under_both() -> None:
    model, x = seeded(Plain), images(1)
    wanted = sightline.attribute(x, model, method=HIRES, layer="relu2", target=1)
    model.also = model.relu2
    for name in ("relu2", "also"):
        assert torch.equal(sightline.attribute(x, model, method=HIRES, layer=name, target=1), wanted)


def test_a_network_with_more_linear_layers_than_convolutions_has_a_default_layer() -> None:
    """LeNet: two convolutions, three linear layers; no tokens anywhere."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )
    assert sightline.capture(images(1), model).layer == "4"


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(0, 3, 16, 16),
        torch.zeros(3, 16, 16),
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
        None,
        "photo.jpg",
    ],
)
def test_an_input_that_is_no_batch_of_floats_is_refused(x: Any) -> None:
    with pytest.raises(ModelError, match="the input is"):
        sightline.attribute(x, seeded(Plain), layer="relu2")


def test_an_input_that_the_model_cannot_take_is_refused_with_the_models_reason() -> None:
    with pytest.raises(ModelError, match="fails on an input of shape") as caught:
        sightline.attribute(images(1, channels=4), seeded(Plain), layer="relu2")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("target", [lambda output: output[:, 1].detach(), lambda output: output.argmax(dim=1).float()])
def test_a_target_without_a_gradient_is_refused(target: Any) -> None:
    with pytest.raises(TargetError, match="no gradient"):
        sightline.attribute(images(2), seeded(Plain), layer="relu2", target=target)


# ------------------------------------------------------------------------------------------- checkpointing and wrappers


class _Checkpointed(nn.Module):
    """stem - [conv, relu] - conv - relu - head; the part in brackets, the stem or the head part is checkpointed."""

    def __init__(self, reentrant: bool | None, part: str) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.part = part
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh())
        self.last = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("stem", "middle", "last"):
            module = self.get_submodule(name)
            if self.reentrant is not None and name == self.part:
                x = checkpoint(module, x, use_reentrant=self.reentrant)
            else:
                x = module(x)
        return self.head(x.square().mean(dim=(2, 3)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("layer", ["stem", "stem.0", "middle", "middle.1", "middle.2", "last.0", "last"])
@pytest.mark.parametrize("part", ["stem", "middle", "last"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_gradient_checkpointing_gives_the_right_map_or_is_refused(
    training: bool, reentrant: bool, part: str, layer: str
) -> None:
    x = images(2)
    wanted = _wanted(seeded(lambda: _Checkpointed(None, part)), layer, x)
    model = seeded(lambda: _Checkpointed(reentrant, part)).train(training)
    with assert_untouched(model, x):
        for _ in range(2):
            result = _right_or_refused(
                lambda: sightline.attribute(x, model, method=HIRES, layer=layer, target=1), wanted
            )
    order = ["stem", "middle", "last"]
    if order.index(part) < order.index(layer.partition(".")[0]):
        assert result == "right", "what is checkpointed before the layer is no part of the graph"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("layer", ["stem", "middle", "middle.1", "last"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_capture_asked_again_gives_the_right_map_or_is_refused(reentrant: bool, layer: str) -> None:
    x = images(2)
    model = seeded(lambda: _Checkpointed(reentrant, "middle"))
    plain = seeded(lambda: _Checkpointed(None, "middle"))
    seen = sightline.capture(x, model, layer=layer)
    for index in (1, 0, 1):
        _right_or_refused(
            lambda index=index: sightline.attribute(seen, model, method=HIRES, target=index),
            _wanted(plain, layer, x, index),
        )


COMPILED = ["wrapper", "compile()", "compile() of a part", "wrapper of a part", "compile() of the layer"]


def _compiled(model: nn.Module, how: str) -> nn.Module:
    if how == "wrapper":
        return torch.compile(model, backend="eager")
    if how == "wrapper of a part":
        model.block1 = torch.compile(model.block1, backend="eager")
    else:
        part = {"compile()": model, "compile() of a part": model.block1, "compile() of the layer": model.block2}[how]
        part.compile(backend="eager")
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize("ran", [False, True])
def test_a_compiled_model_is_explained_as_its_eager_module_and_says_so(how: str, training: bool, ran: bool) -> None:
    x = images(2)
    wanted = _wanted(seeded(lambda: Residual(inplace=False)), "block2", x)
    model = _compiled(seeded(Residual), how)
    if ran:
        with torch.no_grad():
            model.eval()(x)
    model.train(training)
    with assert_untouched(model, x):
        adapter = sightline.adapt(model)
        result = _right_or_refused(
            lambda: sightline.attribute(x, adapter, method=HIRES, layer="block2", target=1), wanted, 2e-6
        )
    if result == "right":
        assert any("torch.compile" in note for note in adapter.notes)
    else:
        assert how == "wrapper of a part"
    torch.compiler.reset()


@pytest.mark.parametrize("training", [False, True])
def test_a_model_in_data_parallel_is_explained_as_the_module_inside_and_says_so(training: bool) -> None:
    x = images(2)
    inner = seeded(Residual)
    wanted = sightline.attribute(x, inner, method=HIRES, layer="block2", target=1)
    model = nn.DataParallel(inner).train(training)
    with assert_untouched(model, x):
        adapter = sightline.adapt(model)
        found = sightline.attribute(x, adapter, method=HIRES, layer="block2", target=1)
    assert torch.equal(found, wanted)
    assert adapter.module is inner
    assert any("DataParallel" in note for note in adapter.notes)


@pytest.mark.parametrize("kind", ["scripted", "traced", "a part scripted"])
def test_torchscript_is_refused_by_name(kind: str) -> None:
    model, x = seeded(Plain), images(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in newer versions of torch
        if kind == "a part scripted":
            model.relu1 = torch.jit.script(model.relu1)
        else:
            model = torch.jit.script(model) if kind == "scripted" else torch.jit.trace(model, x)
    with pytest.raises(ModelError, match="TorchScript"):
        sightline.attribute(x, model, layer="relu2", target=1)


def test_a_dynamically_quantised_model_is_refused_by_name() -> None:
    quantise = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if quantise is None or not torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no dynamic quantisation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in newer versions of torch
        model = quantise(seeded(Plain), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ModelError, match="quantised"):
        sightline.attribute(images(1), model, layer="relu2", target=1)


def test_a_model_traced_by_fx_gives_the_right_map() -> None:
    x = images(2)
    model = torch.fx.symbolic_trace(seeded(lambda: Residual(inplace=False)))
    wanted = _wanted(seeded(lambda: Residual(inplace=False)), "block2.last", x)
    model.train()
    with assert_untouched(model, x):
        found = sightline.attribute(x, model, method=HIRES, layer="block2.last", target=1)
    assert_close(found, wanted, 2e-6)


# ------------------------------------------------------------------------------------------------------- NaN, infinity


class _Fragile(nn.Module):
    """Overflows in its activations, score or gradients for the one image that has a cell of exactly -3."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.layer = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        # Factors, not torch.where: there the gradient of the branch not taken would be NaN for the batch mates.
        odd = (x == -3).flatten(1).any(dim=1)
        huge = torch.ones(len(x)).masked_fill(odd, float("inf"))
        x = self.layer(x * huge[:, None, None, None] if self.stage == "activations" else x)
        if self.stage == "gradients":
            # The square root of 0 is 0, and its gradient infinite.
            offset = torch.ones(len(x)).masked_fill(odd, 0)[:, None, None, None]
            x = x + (x - x.detach() + offset).sqrt() - offset.sqrt()
        logits = self.head(x.square().mean(dim=(2, 3)))
        return logits * huge[:, None] if self.stage == "score" else logits


def _spoiled(stage: str, value: float = float("nan")) -> tuple[nn.Module, Tensor]:
    """A model and three images of which the second is spoiled at this stage."""
    model = seeded(lambda: _Fragile(stage), seed=4)
    x = images(3, channels=1).clamp(-2, 2)
    x[1, 0, 4, 4] = value if stage == "input" else -3
    return model, x


STAGES = {
    "input": "the input",
    "activations": "the activations of layer 'layer'",
    "score": "the score",
    "gradients": "the gradients at layer 'layer'",
}


@pytest.mark.parametrize(
    ("stage", "value"),
    [*((stage, float("nan")) for stage in STAGES), ("input", float("inf")), ("input", -float("inf"))],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_named_with_its_stage_and_image_and_the_batch_mates_are_returned(
    method: str, stage: str, value: float
) -> None:
    model, x = _spoiled(stage, value)
    wanted = sightline.attribute(x[[0, 2]], model, method=method, layer="layer", target=1)
    with assert_untouched(model, x), pytest.raises(NonFiniteError) as caught:
        sightline.attribute(x, model, method=method, layer="layer", target=1)
    assert f"in {STAGES[stage]} for image 1 of 3" in str(caught.value)
    assert caught.value.images == (1,)
    assert caught.value.maps.shape == (3, 16, 16)
    assert_close(caught.value.maps[[0, 2]], wanted)
    assert caught.value.maps[1].isnan().all()
    with pytest.raises(NonFiniteError, match=re.escape(STAGES[stage])):
        sightline.attribute(x[[1]], model, method=method, layer="layer", target=1)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_finite_is_found_with_the_default_layer_and_the_predicted_class(stage: str) -> None:
    model, x = _spoiled(stage)
    with pytest.raises(NonFiniteError) as caught:
        sightline.attribute(x, model)
    assert caught.value.images == (1,)
    assert caught.value.maps[[0, 2]].isfinite().all()


@pytest.mark.parametrize("stage", STAGES)
def test_a_capture_of_what_is_not_finite_is_refused_each_time_it_is_asked(stage: str) -> None:
    model, x = _spoiled(stage)
    seen = sightline.capture(x, model, layer="layer")
    for index in (1, 0):
        with pytest.raises(NonFiniteError, match=re.escape(STAGES[stage])):
            sightline.attribute(seen, model, target=index)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["conv1.weight", "conv2.bias", "head.weight"])
def test_weights_that_are_not_finite_are_named(where: str, value: float) -> None:
    model, x = seeded(Plain), images(2)
    with torch.no_grad():
        model.get_parameter(where).view(-1)[-1] = value
    with assert_untouched(model, x), pytest.raises(NonFiniteError, match=re.escape(repr(where))) as caught:
        sightline.attribute(x, model, method=HIRES, layer="relu2", target=CLASSES - 1)
    assert caught.value.images == (0, 1)
    stage = "the score" if where.startswith("head") else "the activations of layer 'relu2'"
    assert stage in str(caught.value)


def test_a_running_statistic_that_is_not_finite_is_named() -> None:
    model = seeded(Regularised)
    model.norm1.running_var[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"norm1\.running_var"):
        sightline.attribute(images(2), model, layer="relu2", target=1)


def test_weights_of_another_class_that_are_not_finite_give_the_right_map_or_are_named() -> None:
    model, x = seeded(Plain), images(2)
    wanted = sightline.attribute(x, model, method=HIRES, layer="relu2", target=1)
    with torch.no_grad():
        model.head.weight[4] = float("nan")
    result = _right_or_refused(lambda: sightline.attribute(x, model, method=HIRES, layer="relu2", target=1), wanted)
    assert result == "right" or "'head.weight'" in result


# -------------------------------------------------------------------------------------------------- asking a capture again


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "tuple", "flat"])
@pytest.mark.parametrize("method", METHODS)
def test_a_capture_asked_again_gives_what_a_fresh_call_gives(method: str, name: str) -> None:
    model, x = seeded(MODELS[name]), images(3)
    adapter = sightline.adapt(model)
    seen = sightline.capture(x, adapter, layer=model.layer)
    before = seen.activations.clone()
    questions = [
        1,
        0,
        1,
        sightline.margin(2, 3),
        sightline.log_probability(4),
        sightline.probability(0),
        None,
        [4, 0, 2],
    ]
    with assert_untouched(model, x):
        for question in questions:
            fresh = sightline.attribute(x, model, method=method, layer=model.layer, target=question)
            again = sightline.attribute(seen, adapter, method=method, target=question)
            assert torch.equal(again, fresh)
    assert torch.equal(seen.activations, before)
    assert seen.gradients is None


def test_a_margins_map_is_the_difference_of_its_two_classes_maps() -> None:
    model, x = seeded(Plain, dtype=torch.float64), images(2, dtype=torch.float64)
    of, over, between = (
        sightline.attribute(x, model, method=HIRES, layer="relu1", target=target)
        for target in (1, 3, sightline.margin(1, 3))
    )
    assert_close(between, of - over, 1e-12)


def test_a_capture_asked_first_for_a_bad_target_can_still_be_asked() -> None:
    model, x = seeded(Plain), images(2)
    seen = sightline.capture(x, model, layer="relu1")
    for bad in (99, [1], lambda output: output.nonsense):
        with pytest.raises(TargetError):
            sightline.attribute(seen, model, target=bad)
    wanted = sightline.attribute(x, model, method=HIRES, layer="relu1", target=1)
    assert torch.equal(sightline.attribute(seen, model, method=HIRES, target=1), wanted)


@pytest.mark.parametrize("name", ["plain", "residual", "dense"])
def test_many_targets_of_one_pass_equal_single_runs(name: str) -> None:
    model, x = seeded(MODELS[name]), images(2)
    adapter = sightline.adapt(model)
    (seen,) = capture(adapter, x, [model.layer])
    found = [toward([seen], [resolve(index, adapter, seen.output)] * 2)[0] for index in range(CLASSES)]
    for index, one in enumerate(found):
        functional = seeded(FUNCTIONAL.get(name, MODELS[name]))
        a, g, scores = by_autograd(functional, model.layer, x, _logit(index))
        assert_close(one.activations, a)
        assert_close(one.gradients, g, 2e-6)
        assert_close(one.scores, scores)


@pytest.mark.parametrize("layers", [["relu1", "relu2"], ["relu2", "relu1"], ["conv1", "relu1", "conv2"]])
def test_many_layers_of_one_pass_equal_single_passes(layers: list[str]) -> None:
    model, x = seeded(Plain), images(2)
    adapter = sightline.adapt(model)
    together = capture(adapter, x, layers)
    asked = [resolve(1, adapter, together[0].output)] * 2
    for layer, one in zip(layers, toward(together, asked), strict=True):
        alone = toward(capture(adapter, x, [layer]), asked)[0]
        assert one.layer == layer
        assert_close(one.activations, alone.activations)
        assert_close(one.gradients, alone.gradients)


def test_many_layers_of_one_pass_are_not_overwritten_in_place() -> None:
    model, twin, x = seeded(Residual), seeded(lambda: Residual(inplace=False)), images(2)
    adapter = sightline.adapt(model)
    layers = ["block1.norm1", "block1.norm2", "block1", "block2"]
    together = capture(adapter, x, layers)
    for layer, one in zip(layers, toward(together, [resolve(1, adapter, together[0].output)] * 2), strict=True):
        a, g, _ = by_autograd(twin, layer, x, _logit(1))
        assert_close(one.activations, a, 2e-6)
        assert_close(one.gradients, g, 2e-6)


def test_one_module_asked_for_under_two_names_is_refused() -> None:
    model = seeded(Plain)
    model.also = model.relu2
    with pytest.raises(LayerError, match="one and the same module"):
        capture(sightline.adapt(model), images(1), ["relu2", "also"])


def test_a_capture_stays_what_it_is_when_its_input_is_overwritten() -> None:
    """A loader that fills one and the same tensor anew must not change what a kept capture says."""
    model, x = seeded(Plain), images(2)
    wanted, before = sightline.attribute(x, model, method=HIRES, layer="relu1", target=1), x.clone()
    seen = sightline.capture(x, model, layer="relu1")
    x.zero_()
    assert torch.equal(sightline.attribute(seen, model, method=HIRES, target=1), wanted)
    assert torch.equal(seen.input, before)


def test_a_captures_output_is_the_models_and_its_activations_are_the_layers() -> None:
    model, x = seeded(Plain, dtype=torch.float64), images(2, dtype=torch.float64)
    seen = sightline.capture(x, model, layer="relu1")
    a, _, _ = by_autograd(model, "relu1", x, _logit(0))
    assert torch.equal(seen.output, model(x))
    assert torch.equal(seen.activations, a)
    assert torch.equal(seen.input, x)
    assert not seen.activations.requires_grad


# ---------------------------------------------------------------------------------------------------------------- probe


def _replaced(model: nn.Module, layer: str, x: Tensor, grid: Tensor) -> Tensor:
    """The logits, had the layer said `grid`: a whole run of a copy of the model."""
    model = copy.deepcopy(model).eval()
    model.get_submodule(layer).register_forward_hook(lambda _module, _args, _output: grid[None].clone())
    with torch.no_grad():
        return model(x.clone())


PROBED = [
    ("plain", "relu1"),
    ("residual", "relu"),
    ("residual", "block1"),
    ("residual", "block1.norm1"),
    ("residual", "block1.norm2"),
    ("residual", "block2.last"),
    ("dense", "stem"),
    ("dense", "conv1"),
    ("dense", "conv2"),
    ("dense", "norm"),
    ("regularised", "relu2"),
    ("flat", "conv"),
]


@pytest.mark.parametrize(("name", "layer"), PROBED)
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("surrounding", ["plain", "inference_mode"])
def test_score_head_equals_separate_runs(name: str, layer: str, count: int, surrounding: str) -> None:
    model, x = seeded(MODELS[name]).train(), images(1)
    adapter = sightline.adapt(model)
    seen = sightline.capture(x, adapter, layer=layer)
    factors = torch.rand(count, *seen.activations.shape[1:], generator=torch.Generator().manual_seed(3))
    grids = seen.activations * factors
    for target in (1, sightline.log_probability(2)):
        asked = resolve(target, adapter, seen.output)
        with SURROUNDINGS[surrounding](), assert_untouched(model, x):
            found = probe(adapter, sightline.capture(x, adapter, layer=layer), asked, memory_mb=0.45).score_head(grids)
        wanted = torch.cat([asked.score(_replaced(model, layer, x, grid)) for grid in grids])
        assert found.shape == (count,)
        assert_close(found, wanted)


def test_score_head_of_what_the_layer_said_is_the_models_own_score() -> None:
    model, x = seeded(Residual), images(1)
    adapter = sightline.adapt(model)
    seen = sightline.capture(x, adapter, layer="block1")
    found = probe(adapter, sightline.capture(x, adapter, layer="block1"), resolve(1, adapter, seen.output)).score_head(
        seen.activations
    )
    assert_close(found, seen.output[:, 1])


def test_score_head_does_not_change_what_it_is_given() -> None:
    model, x = seeded(Residual), images(1)
    adapter = sightline.adapt(model)
    seen = sightline.capture(x, adapter, layer="norm")  # an in-place ReLU follows
    ask = probe(adapter, sightline.capture(x, adapter, layer="norm"), resolve(1, adapter, seen.output))
    grids = torch.randn(3, *seen.activations.shape[1:])
    before = grids.clone()
    once, again = ask.score_head(grids), ask.score_head(grids)
    assert torch.equal(grids, before)
    assert torch.equal(once, again)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_score_head_of_a_layer_that_returns_a_tuple_or_dict_is_right_or_refused(kind: str) -> None:
    model, x = seeded(lambda: Wrapped(kind)), images(1)
    adapter = sightline.adapt(model)
    seen = sightline.capture(x, adapter, layer="wrapping")
    grids = torch.cat([seen.activations, seen.activations / 2])
    plain = seeded(Wrapped)
    wanted = torch.cat([_replaced(plain, "wrapping", x, grid) for grid in grids])[:, 1]
    ask = probe(adapter, sightline.capture(x, adapter, layer="wrapping"), resolve(1, adapter, seen.output))
    _right_or_refused(lambda: ask.score_head(grids), wanted)


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 6, 4, 4), (2, 6, 8)])
def test_grids_of_another_shape_than_the_layers_are_refused(shape: tuple[int, ...]) -> None:
    model, x = seeded(Plain), images(1)
    adapter = sightline.adapt(model)
    ask = probe(adapter, sightline.capture(x, adapter, layer="relu1"), resolve(1, adapter, model(x)))
    with pytest.raises(ModelError, match="does not give one grid of shape"):
        ask.score_head(torch.zeros(shape))


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "regularised", "flat", "tuple"])
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_score_and_score_grad_equal_autograd(name: str, surrounding: str) -> None:
    model, x = seeded(MODELS[name]), images(1)
    others = images(7, seed=9)
    leaf = others.clone().requires_grad_()
    scores = model(leaf)[:, 2]
    (wanted,) = torch.autograd.grad(scores.sum(), leaf)
    model.train()
    adapter = sightline.adapt(model)
    ask = probe(
        adapter,
        sightline.capture(x, adapter, layer=model.layer),
        resolve(2, adapter, torch.zeros(1, CLASSES)),
        memory_mb=0.45,
    )
    with SURROUNDINGS[surrounding](), assert_untouched(model, others):
        values, gradients = ask.score_grad(others)
        alone = ask.score(others)
    assert not values.requires_grad
    assert not gradients.requires_grad
    assert_close(values, scores)
    assert_close(alone, scores)
    assert_close(gradients, wanted)


def test_a_probe_of_a_frozen_model_still_has_gradients() -> None:
    model, x = seeded(Plain).requires_grad_(False), images(1)
    adapter = sightline.adapt(model)
    ask = probe(adapter, sightline.capture(x, adapter, layer="relu2"), resolve(1, adapter, model(x)))
    assert ask.score_grad(x)[1].any()


def test_a_probe_of_a_model_that_cuts_its_graph_says_so() -> None:
    model, x = seeded(lambda: _Frozen("no_grad")), images(1)
    adapter = sightline.adapt(model)
    ask = probe(adapter, sightline.capture(x, adapter, layer="relu2"), resolve(1, adapter, model(x)))
    with pytest.raises(SightlineError):
        ask.score_grad(x)


@pytest.mark.parametrize("batch", [2, 3])
def test_a_probe_of_several_images_is_refused(batch: int) -> None:
    model = seeded(Plain)
    adapter = sightline.adapt(model)
    with pytest.raises(ModelError, match=f"not {batch}"):
        probe(
            adapter,
            sightline.capture(images(batch), adapter, layer="relu2"),
            resolve(1, adapter, torch.zeros(1, CLASSES)),
        )


def test_the_tiny_models_are_what_they_say() -> None:
    """A test of the tests: in-place and functional twin agree, and every default layer is the one the tests name."""
    x = images(2)
    with torch.no_grad():
        assert_close(seeded(Residual)(x), seeded(lambda: Residual(inplace=False))(x))
        assert_close(seeded(lambda: Plain(inplace=True))(x), seeded(Plain)(x))
    assert sightline.capture(x, seeded(Dense)).layer == "norm"
    assert sightline.capture(x, seeded(Flat)).layer == "relu"
    assert isinstance(seeded(Residual).block1, Block)
    assert torch.equal(seeded(Echo)(torch.zeros(1, 6, 5, 4))[0], seeded(Echo).head.bias)
