"""The stand-in: whatever a forward does to itself, it does to the stand-in."""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import CLASSES, assert_close, assert_untouched, images, seeded
from sightline.errors import ModelError


class Hidden(nn.Module):
    """Its tail is reached only past its registered modules, in a container of any kind."""

    layer = "act"

    def __init__(self, hide: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, CLASSES)
        hide(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x)).mean(dim=(2, 3))
        return self.head(self.reach("drop")(self.reach("norm")(x)))


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    return {"drop": model.drop, "norm": model.norm}


def _mapping(kind: Callable[[dict[str, nn.Module]], Any]) -> Callable[[nn.Module], None]:
    def hide(model: nn.Module) -> None:
        model.kept = kind(_parts(model))
        model.reach = _Getter(model)

    return hide


class _Getter:
    """An object of the user's own with a module in an attribute."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, name: str) -> nn.Module:
        return self.model.kept[name]


def _namespace(model: nn.Module) -> None:
    space = SimpleNamespace(**_parts(model))
    model.reach = lambda name: getattr(space, name)


def _closure(model: nn.Module) -> None:
    parts = _parts(model)
    model.reach = lambda name: parts[name]


def _partial(model: nn.Module) -> None:
    model.reach = functools.partial(dict.__getitem__, _parts(model))


def _deep(model: nn.Module) -> None:
    nested: Any = [[[[_parts(model)]]]]
    model.reach = lambda name: nested[0][0][0][0][name]


def _queue(model: nn.Module) -> None:
    queue = deque([model.drop, model.norm])
    model.reach = lambda name: queue[name == "norm"]


WAYS: dict[str, Callable[[nn.Module], None]] = {
    "ordered dictionary": _mapping(OrderedDict),
    "default dictionary": _mapping(lambda parts: defaultdict(list, parts)),
    "namespace": _namespace,
    "closure": _closure,
    "partial": _partial,
    "deep list": _deep,
    "queue": _queue,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", [True, False])
def test_modules_reached_by_any_way_are_the_stand_ins(way: str, training: bool) -> None:
    model, x = seeded(lambda: Hidden(WAYS[way])), images(3)
    wanted = sightline.attribute(x, model, method="hires-cam", layer="act", target=1)
    model.train(training)
    with assert_untouched(model, x):
        found = sightline.attribute(x, model, method="hires-cam", layer="act", target=1)
    assert_close(found, wanted)


_TAIL: list[nn.Module] = []


def test_training_statistics_written_past_the_stand_in_are_told() -> None:
    class Global(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(_TAIL[0](self.act(self.conv(x)).mean(dim=(2, 3))))

    model = seeded(lambda: Global(_closure)).train()
    _TAIL[:] = [model.norm]
    with pytest.raises(ModelError, match=r"model\.eval"):
        sightline.attribute(images(3), model, layer="act", target=1)
    model.eval()
    assert sightline.attribute(images(3), model, layer="act", target=1).any()


class Remembering(nn.Module):
    """Writes into a buffer and a plain tensor, counts, and keeps what it saw, in evaluation mode too."""

    layer = "act"

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.aside = nn.Identity()
        self.head = nn.Linear(6, CLASSES)
        self.register_buffer("mean", torch.zeros(6))
        self.plain = torch.zeros(6)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        found = self.act(self.conv(x)).mean(dim=(2, 3))
        self.mean.mul_(0.5).add_(0.5 * found.detach().mean(dim=0))
        self.plain += found.detach().mean(dim=0)
        self.calls += 1
        self.aside.kept = found
        return self.head(found - self.mean - self.aside.kept * 0.1)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_remembers_is_left_without_a_memory_of_us(training: bool) -> None:
    model, x = seeded(Remembering).train(training), images(2)
    with assert_untouched(model, x):
        one, other = (sightline.attribute(x, model, layer="act", target=1) for _ in range(2))
    assert torch.equal(one, other)
    assert not hasattr(model.aside, "kept")


def test_what_a_module_keeps_in_itself_is_not_shared_between_threads() -> None:
    model = seeded(Remembering)
    inputs = [images(1, seed=seed) for seed in range(4)]
    wanted = [sightline.attribute(x, model, layer="act", target=1) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(40):
            found = sightline.attribute(inputs[index], model, layer="act", target=1)
            if not torch.allclose(found, wanted[index], atol=1e-6):
                wrong.append(index)

    threads = [Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
