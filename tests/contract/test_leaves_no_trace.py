"""Whatever a call does - returns, fails, is interrupted - model, process and input are bit-identical afterwards."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import MODELS, Plain, Regularised, assert_untouched, channels_of, cheap, images, seeded
from sightline.errors import LayerError, MethodError, ModelError, SightlineError, TargetError

# They ask in no other way than smooth-grad, integrated-gradients, deep-lift and lime.
_ASK_ALIKE = {"smooth-grad-squared", "var-grad", "gradient-shap", "blur-ig", "guided-ig", "xrai", "kernel-shap"}
# Those of attention have their own tests, in tests/engine/test_attention.py.
METHODS = sorted(
    name
    for name, one in sightline.list_methods().items()
    if "attention" not in one.needs and "block" not in one.needs and name not in _ASK_ALIKE
)
TARGET = 1


class _Interrupted(torch.autograd.Function):
    """Ctrl-C that arrives in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise KeyboardInterrupt


class _Trouble(nn.Module):
    """Stands in the head and does what its name says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "raises":
            raise RuntimeError("the head is broken")
        if self.kind == "interrupted":
            raise KeyboardInterrupt
        return _Interrupted.apply(x) if self.kind == "interrupted in backward" else x


class _Net(nn.Module):
    """Batch norm, dropout, in-place ReLU; the trouble stands behind the layer `features`."""

    layer = "features"

    def __init__(self, trouble: str = "none") -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )
        self.trouble = _Trouble(trouble)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trouble(self.features(x)).square().mean(dim=(2, 3)))


def _lived_in(trouble: str = "none") -> _Net:
    """A model in the middle of its life: mixed modes, gradients there, a part frozen, hooks of its owner."""
    model: _Net = seeded(lambda: _Net(trouble))
    model.train()
    model.features[2].eval()
    model.features[0].bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25) if parameter.requires_grad else None
    model.features.register_forward_pre_hook(lambda _module, _args: None)
    model.features.register_forward_hook(lambda _module, _args, _output: None)
    model.features[0].register_forward_hook(lambda _module, _args, _kwargs, _output: None, with_kwargs=True)
    model.head.register_full_backward_hook(lambda _module, _in, _out: None)
    model.head.weight.register_hook(lambda gradient: gradient)
    return model


def _failing_target(_output: Any) -> Tensor:
    raise ValueError("the target is broken")


def _interrupted_target(_output: Any) -> Tensor:
    raise KeyboardInterrupt


def _interrupting_hook(_module: nn.Module, _args: Any, _output: Any) -> None:
    raise KeyboardInterrupt


# name: (what stands in the head, arguments of the call, error)
CASES: dict[str, tuple[str, dict[str, Any], type[BaseException] | None]] = {
    "returns": ("none", {}, None),
    "returns for the predicted class": ("none", {"target": None}, None),
    "returns for the layer chosen by running": ("none", {"layer": None}, None),
    "head raises": ("raises", {}, ModelError),
    "bad target": ("none", {"target": 99}, TargetError),
    "bad target list": ("none", {"target": [1]}, TargetError),
    "bad layer": ("none", {"layer": "nowhere"}, LayerError),
    "layer without a grid": ("none", {"layer": "head"}, LayerError),
    "bad option": ("none", {"options": {"no_such_option": 1}}, MethodError),
    "target raises": ("none", {"target": _failing_target}, TargetError),
    "Ctrl-C in forward": ("interrupted", {}, KeyboardInterrupt),
    "Ctrl-C in backward": ("interrupted in backward", {}, KeyboardInterrupt),
    "Ctrl-C in the target": ("none", {"target": _interrupted_target}, KeyboardInterrupt),
}


# What a method that looks at activations alone never meets.
_BEYOND = ("target raises", "Ctrl-C in backward", "Ctrl-C in the target")
# Methods that ask for scores and never for a gradient.
_NO_GRADIENT = ("ablation-cam", "recipro-cam", "score-cam", "ss-cam", "is-cam", "occlusion", "rise", "d-rise", "lime")


def _expected(method: str, case: str) -> AbstractContextManager[Any]:
    error = CASES[case][2]
    if sightline.list_methods()[method].needs == "activations" and case in _BEYOND:
        error = None
    if method in _NO_GRADIENT and case == "Ctrl-C in backward":
        error = None
    if method == "refine-cam" and case == "Ctrl-C in backward":  # chooses its layers, the last one behind the trouble
        error = None
    if method == "cam" and error is None:  # the score is no linear layer of the pooled grid here
        error = MethodError
    if method == "full-grad" and case == "returns for the layer chosen by running":
        error = None
    return pytest.raises(error) if error else nullcontext()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_model_process_and_input_are_untouched(method: str, case: str) -> None:
    trouble, arguments, _ = CASES[case]
    model, x = _lived_in(trouble), images(2)
    call = {"method": method, "layer": model.layer, "target": TARGET, "options": cheap(method)} | arguments
    with assert_untouched(model, x), _expected(method, case):
        sightline.attribute(x, model, **call)


@pytest.mark.parametrize("where", ["features", "features.0", "trouble", "head"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_stays_when_ctrl_c_arrives_in_the_users_own_hook(method: str, where: str) -> None:
    model, x = _lived_in(), images(2)
    model.get_submodule(where).register_forward_hook(_interrupting_hook)
    with assert_untouched(model, x), pytest.raises(KeyboardInterrupt):
        sightline.attribute(x, model, method=method, layer=model.layer, target=TARGET, options=cheap(method))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_stays_when_ctrl_c_arrives_in_the_users_own_backward_hook(method: str) -> None:
    model, x = _lived_in(), images(2)

    def interrupt(_module: nn.Module, _incoming: Any, _outgoing: Any) -> None:
        raise KeyboardInterrupt

    model.head.register_full_backward_hook(interrupt)
    quiet = method in _NO_GRADIENT or sightline.list_methods()[method].needs == "activations"
    with assert_untouched(model, x), nullcontext() if quiet else pytest.raises(KeyboardInterrupt):
        sightline.attribute(x, model, method=method, layer=model.layer, target=TARGET, options=cheap(method))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_model_is_untouched_in_training_mode(method: str, name: str) -> None:
    model = seeded(MODELS[name]).train()
    x = images(2, channels_of(model))
    linear = name in ("plain", "residual", "grey", "spectral")
    refused = (method == "cam" and not linear) or (
        method in ("guided-backprop", "deconvnet", "guided-grad-cam") and name in ("tokens", "channels last")
    )
    with assert_untouched(model, x), pytest.raises(MethodError) if refused else nullcontext():
        sightline.attribute(x, model, method=method, layer=model.layer, target=[0, 3], options=cheap(method))


def _autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


# Every method returns inside every mode. How an exit gives the modes back is the engine's part, which methods share that
# ask in the same way: one of each way meets every exit inside the modes that are not torch's default. (In the default,
# every method meets every exit in `test_model_process_and_input_are_untouched`, which looks at the modes, too.)
MODES = [torch.no_grad, torch.inference_mode, _autocast]
EXITS = ["head raises", "target raises", "Ctrl-C in forward", "Ctrl-C in backward"]
WAYS = [
    "ablation-cam", "deconvnet", "deep-lift", "eigen-cam", "full-grad", "grad-cam", "guided-backprop", "guided-grad-cam",
    "integrated-gradients", "lime", "refine-cam", "saliency", "score-cam", "shapley-cam",
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "case", "mode"),
    [(name, "returns", mode) for name in METHODS for mode in [*MODES, torch.enable_grad]]
    + [(name, case, mode) for name in WAYS for case in EXITS for mode in MODES],
)
def test_the_callers_modes_are_untouched(
    method: str, case: str, mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    trouble, arguments, _ = CASES[case]
    model, x = _lived_in(trouble), images(2)
    call = {"method": method, "layer": model.layer, "target": TARGET, "options": cheap(method)} | arguments
    with mode(), assert_untouched(model, x), _expected(method, case):
        sightline.attribute(x, model, **call)


class _Noisy(Plain):
    """Draws random numbers in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


def _to_tensor(photo: Any) -> Tensor:
    return torch.from_numpy(np.array(photo.resize((16, 16)))).permute(2, 0, 1).float() / 255


def draw_and_give_back() -> None:
    """Runs in a process without a second thread, where alone the promise holds."""
    assert threading.active_count() == 1
    model, x = seeded(_Noisy), images(2)
    for method in METHODS:
        with assert_untouched(model, x):
            sightline.attribute(x, model, method=method, layer=model.layer, target=TARGET, options=cheap(method))
        print(method)
    with assert_untouched(model):
        sightline.adapt(model, preprocess=_to_tensor)  # chooses its layer by running the model
        sightline.capture(x, model)


def test_random_numbers_drawn_by_the_model_are_given_back() -> None:
    code = "import test_leaves_no_trace as here; here.draw_and_give_back()"
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *(one for one in sys.path if one)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == METHODS


def test_the_probe_leaves_no_trace() -> None:
    from sightline.engine.probe import probe
    from sightline.engine.targets import resolve

    model, x = _lived_in(), images(1)
    adapter = sightline.adapt(model)
    seen = sightline.capture(x, adapter, layer=model.layer)
    asked = resolve(TARGET, adapter, seen.output)
    grids = images(3, 6, 8)
    with assert_untouched(model, x):
        ask = probe(adapter, sightline.capture(x, adapter, layer=model.layer), asked)
        ask.score(images(3))
        ask.score_head(grids)
        ask.score_grad(images(3))
    with assert_untouched(model, x), pytest.raises(SightlineError):
        ask.score_head(grids[:, :1])


@pytest.mark.parametrize(
    "kind", ["requires a gradient", "has a history", "is an inference tensor", "is strided", "is expanded"]
)
@pytest.mark.parametrize("method", METHODS)
def test_any_input_tensor_is_untouched_and_gives_the_same_map(method: str, kind: str) -> None:
    model, x = seeded(Plain, dtype=torch.float64), images(2, dtype=torch.float64)  # in float32 the sums' order shows
    if kind == "requires a gradient":
        x.requires_grad_()
        x.grad = torch.ones_like(x)
    elif kind == "has a history":
        x = x.requires_grad_() * 2
    elif kind == "is an inference tensor":
        with torch.inference_mode():
            x = x.clone()
    elif kind == "is strided":
        x = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    else:
        x = images(1, dtype=torch.float64).expand(2, -1, -1, -1)
    wanted = sightline.attribute(
        x.detach().clone().contiguous(), model, method=method, layer=model.layer, target=[1, 2], options=cheap(method)
    )
    with assert_untouched(model, x):
        found = sightline.attribute(x, model, method=method, layer=model.layer, target=[1, 2], options=cheap(method))
    assert torch.equal(found, wanted) or float((found - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())
    assert not found.requires_grad


def test_explaining_a_photograph_leaves_no_trace() -> None:
    model = _lived_in()
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)

    def to_tensor(picture: Any) -> Tensor:
        return torch.from_numpy(np.array(picture.resize((16, 16)))).permute(2, 0, 1) / 255

    with assert_untouched(model):
        adapter = sightline.adapt(model, preprocess=to_tensor)
        sightline.explain(photo, adapter, target=TARGET)
        sightline.compare(photo, adapter, targets=[0, None])
    with assert_untouched(model), pytest.raises(TargetError):
        sightline.explain(photo, adapter, target=99)


def _spoil(model: nn.Module, x: Tensor, what: str) -> None:
    first = model.conv1
    spoils: dict[str, Callable[[], Any]] = {
        "a weight": lambda: first.weight.data.view(-1)[:1].add_(1e-7),
        "a buffer": lambda: model.norm1.num_batches_tracked.add_(1),
        "training mode": lambda: model.norm1.train(),
        "requires_grad": lambda: first.weight.requires_grad_(False),
        ".grad": lambda: setattr(first.weight, "grad", torch.zeros_like(first.weight)),
        "a submodule": lambda: setattr(model, "relu2", nn.ReLU()),
        "a forward hook": lambda: first.register_forward_hook(lambda *_: None),
        "a pre-hook": lambda: first.register_forward_pre_hook(lambda *_: None),
        "a backward hook": lambda: first.register_full_backward_hook(lambda *_: None),
        "a tensor hook": lambda: first.weight.register_hook(lambda gradient: None),
        "an attribute": lambda: setattr(first, "note", 1),
        "grad mode": lambda: torch.set_grad_enabled(False),
        "torch's random state": lambda: torch.rand(1),
        "random's state": random.random,
        "numpy's random state": np.random.random,
        "the number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        "the input": lambda: x.add_(0),
        "the input's grad": lambda: setattr(x, "grad", torch.zeros_like(x)),
    }
    spoils[what]()


SPOILS = [
    "a weight",
    "a buffer",
    "training mode",
    "requires_grad",
    ".grad",
    "a submodule",
    "a forward hook",
    "a pre-hook",
    "a backward hook",
    "a tensor hook",
    "an attribute",
    "grad mode",
    "torch's random state",
    "random's state",
    "numpy's random state",
    "the number of threads",
    "the input",
    "the input's grad",
]


@pytest.mark.parametrize("what", SPOILS)
def test_the_check_itself_sees_a_trace(what: str) -> None:
    model, x = seeded(Regularised), images(1)
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    states = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            pytest.raises(AssertionError, match="left a trace"),
            assert_untouched(model, x),
        ):
            _spoil(model, x, what)
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        random.setstate(states[0])
        np.random.set_state(states[1])
