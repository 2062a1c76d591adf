"""What somebody found who tried to get wrong maps: each once, so that it stays mended."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from conftest import assert_untouched, images, seeded
from sightline import adapt, attribute, combine, load_model
from sightline.errors import MethodError, ModelError, NonFiniteError, TargetError
from sightline.models.layers import NOT_ALL, choose

CLASSES = 4


class Small(nn.Module):
    """Two convolutions, a mean, a linear layer; `end` is what becomes of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Keeping(Small):
    """Keeps things in itself, in containers that are empty at first."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[Any, Any] = {}
        self.seen: list[Any] = []
        self.sizes: set[Any] = set()
        self.gain = nn.Parameter(torch.ones(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        size = tuple(h.shape[2:])
        if size not in self.cache:
            self.cache[size] = self.gain * torch.ones(1, 8, *size)
        self.sizes.add(size)
        self.seen.clear()
        self.seen.append(h * self.cache[size])
        return self.fc(F.relu(self.b(self.seen[0])).mean((2, 3)))


def test_what_a_forward_puts_into_empty_containers_stays_in_the_copy() -> None:
    model, x = seeded(Keeping), images(2)
    with assert_untouched(model, x):
        attribute(x, model, method="score-cam", layer="a", target=1)
        attribute(x, model, layer="b", target=1)
    assert (model.cache, model.seen, model.sizes) == ({}, [], set())


def test_threads_do_not_meet_in_a_models_containers() -> None:
    model = seeded(Keeping)
    pictures = [images(1), images(1, 3)[:, :, :24, :20], images(1)[:, :, :16, :16], images(1)[:, :, ::2, ::2]]
    wanted = [attribute(x, model, layer="b", target=1) for x in pictures]
    wrong: list[Any] = []

    def ask(number: int) -> None:
        try:
            maps = [attribute(pictures[number], model, layer="b", target=1) for _ in range(40)]
            wrong.extend(number for one in maps if not torch.equal(one, wanted[number]))
        except Exception as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


class HandedOn(nn.Module):
    """A layer that hands on a part of a larger tensor."""

    def __init__(self, layer: nn.Module, cut: str) -> None:
        super().__init__()
        self.c, self.l, self.fc, self.cut = nn.Conv2d(3, 12, 3, stride=2, padding=1), layer, nn.Linear(6, CLASSES), cut

    def forward(self, x: Tensor) -> Tensor:
        h = self.c(x)
        part = {
            "slice": lambda: h[:, :6],
            "chunk": lambda: h.chunk(2, dim=1)[0],
            "select": lambda: h.view(len(h), 2, 6, *h.shape[2:])[:, 0],
        }
        return self.fc(self.l(part[self.cut]()).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("cut", ["slice", "chunk", "select"])
@pytest.mark.parametrize("layer", [lambda: nn.ReLU(inplace=True), nn.Identity, lambda: nn.Dropout(0.5)])
def test_a_layer_that_hands_on_a_part_of_a_larger_tensor_has_its_map(layer: Any, cut: str, frozen: bool) -> None:
    torch.manual_seed(0)
    model = HandedOn(layer(), cut).double().eval().requires_grad_(not frozen)
    x = images(2).double()
    if cut == "chunk" and isinstance(model.l, nn.ReLU):  # torch itself forbids that with a graph
        with assert_untouched(model, x), pytest.raises(ModelError, match="view"):
            attribute(x, model, method="hires-cam", layer="l", target=1)
        return
    with assert_untouched(model, x):
        found = attribute(x, model, method="hires-cam", layer="l", target=1)
    with torch.no_grad():
        h = model.c(x)[:, :6]
        h = h.relu() if isinstance(model.l, nn.ReLU) else h
        wanted = torch.einsum("c,bchw->bhw", model.fc.weight[1], h) / h.shape[2] / h.shape[3]
    torch.testing.assert_close(found, wanted)


def test_fem_marks_no_cell_of_a_channel_that_is_the_same_everywhere() -> None:
    class Fixed(nn.Module):
        def __init__(self, grids: Tensor) -> None:
            super().__init__()
            self.grids, self.layer, self.fc = grids, nn.Conv2d(9, 9, 1), nn.Linear(9, 2)
            nn.init.dirac_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.layer(self.grids.expand(len(x), -1, -1, -1)).mean((2, 3)))

    torch.manual_seed(0)
    grids = torch.zeros(1, 9, 7, 7)
    grids[0, 0, 3, 3] = 5.0
    grids[0, 1:] = torch.rand(8, 1, 1)
    found = attribute(torch.rand(3, 3, 14, 14), Fixed(grids), method="fem", layer="layer")
    assert torch.equal(found[0], found[2])
    assert found[0, 0, 0] == 0
    assert found[0, 3, 3] == pytest.approx(5 / 49)
    assert int((found != 0).sum()) == 3


class Branch(nn.Module):
    """Two branches that are concatenated: only `a` carries all."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b1, self.b2, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.a(x))
        return self.end(
            self.fc(torch.cat([F.relu(self.b1(h)).mean((2, 3)), F.relu(self.b2(h)).mean((2, 3))], dim=1)), h
        )

    def end(self, logits: Tensor, h: Tensor) -> Any:
        return logits


class Scalar(Branch):
    def end(self, logits: Tensor, h: Tensor) -> Any:
        return {"logits": logits, "loss": torch.zeros(())}


class Single(Branch):
    def end(self, logits: Tensor, h: Tensor) -> Any:
        return logits.view(1, CLASSES)


class Softmax(Branch):
    def end(self, logits: Tensor, h: Tensor) -> Any:
        return (logits * 1e-3).softmax(dim=1)


class WithGrid(Branch):
    def end(self, logits: Tensor, h: Tensor) -> Any:
        return {"logits": logits, "before": h}


@pytest.mark.parametrize("kind", [Branch, Scalar, Single, Softmax, WithGrid])
def test_a_branch_is_not_taken_for_the_whole(kind: type[nn.Module]) -> None:
    assert choose(seeded(kind), torch.rand(1, 3, 16, 16))[0] == "a"


def test_other_outputs_do_not_count_for_the_choice_of_the_layer() -> None:
    class Features(Small):
        def forward(self, x: Tensor) -> Any:
            h = F.relu(self.a(x))
            return {"logits": self.fc(F.relu(self.b(h)).mean((2, 3))), "features": h.flatten(1), "grid": h}

    assert choose(seeded(Features), torch.rand(1, 3, 16, 16))[0] == "b"


def test_a_way_past_the_layer_for_fine_structure_is_found_also_by_adapt() -> None:
    class HighPass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Linear(12, CLASSES)
            self.register_buffer("kernel", torch.randn(6, 3, 2, 2))
            self.kernel -= self.kernel.mean(dim=(2, 3), keepdim=True)

        def forward(self, x: Tensor) -> Tensor:
            fine = F.conv2d(x, self.kernel, stride=2).relu().mean((2, 3))
            return self.fc(torch.cat([fine, self.a(x).relu().mean((2, 3))], dim=1))

    adapter = adapt(
        seeded(HighPass),
        preprocess=lambda photo: torch.from_numpy(np.array(photo.resize((16, 16)))).permute(2, 0, 1) / 255,
    )
    assert adapter.layer_reason.endswith(NOT_ALL)


@pytest.mark.parametrize("target", [sightline.log_probability(1), sightline.probability(1), sightline.margin(1, 2), 1])
def test_one_image_with_nan_does_not_take_the_others_maps(target: Any) -> None:
    model, x = seeded(Small), images(3)
    wanted = attribute(x, model, layer="b", target=target)
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        attribute(x, model, layer="b", target=target)
    assert torch.equal(caught.value.maps[1:], wanted[1:])


@pytest.mark.parametrize("method", ["grad-cam", "ablation-cam", "smooth-grad-cam++"])
def test_a_target_that_works_in_place_changes_nothing(method: str) -> None:
    def doubled(logits: Tensor) -> Tensor:
        return logits.mul_(2)[:, 1]

    model, x = seeded(Small), images(3)
    wanted = attribute(x, model, method=method, layer="b", target=lambda logits: logits[:, 1] * 2)
    torch.testing.assert_close(attribute(x, model, method=method, layer="b", target=doubled), wanted)
    seen = sightline.capture(x, model, layer="b")
    before = seen.output.clone()
    attribute(seen, model, target=doubled)
    assert torch.equal(seen.output, before)


@pytest.mark.parametrize("method", ["ablation-cam", "recipro-cam", "score-cam", "smooth-grad-cam++"])
@pytest.mark.parametrize("target", [lambda y: y[:, 1] / y.abs().max(), lambda y: y[:, 1] - y.logsumexp((0, 1))])
def test_a_target_that_reads_other_rows_is_refused_also_when_the_model_is_asked_again(method: str, target: Any) -> None:
    with pytest.raises(TargetError, match="mixes images"):
        attribute(images(1), seeded(Small), method=method, layer="b", target=target)


def test_a_target_of_complex_numbers_is_refused() -> None:
    with pytest.raises(TargetError, match="complex"):
        attribute(images(1), seeded(Small), method="ablation-cam", layer="b", target=lambda y: y[:, 1] * 1j)


@pytest.mark.parametrize("method", ["ablation-cam", "recipro-cam", "score-cam", "smooth-grad-cam++"])
def test_batch_norm_without_statistics_gives_a_map_that_does_not_depend_on_memory(method: str) -> None:
    class Batch(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.norm(self.b(F.relu(self.a(x))))).mean((2, 3)))

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(6, track_running_stats=False)

    torch.manual_seed(0)
    model, x = Batch().eval(), images(1)
    few, many = (attribute(x, model, method=method, layer="b", target=1, memory_mb=size) for size in (1e-9, 512))
    torch.testing.assert_close(few, many)


@pytest.mark.parametrize(
    "method", ["ablation-cam", "recipro-cam", "score-cam", "smooth-grad-cam++", combine("grad-cam", "flips")]
)
def test_a_model_that_takes_one_image_alone_is_asked_one_by_one(method: Any) -> None:
    class One(Small):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.b(F.relu(self.a(x))))
            return self.fc(h.view(1, 6, *h.shape[2:]).mean((2, 3)))

    one, free, x = seeded(One), seeded(Small), images(1)
    torch.testing.assert_close(
        attribute(x, one, method=method, layer="b", target=1), attribute(x, free, method=method, layer="b", target=1)
    )


def test_layers_of_one_grid_are_fused_in_the_order_in_which_they_run() -> None:
    model, x = seeded(Small), images(1)
    one, other = (attribute(x, model, method="layer-cam", layer=names, target=1) for names in (["a", "b"], ["b", "a"]))
    assert torch.equal(one, other)


def test_combine_makes_its_copies_one_after_the_other() -> None:
    told = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attribute(
            images(1),
            seeded(Small),
            method=combine("grad-cam", "noise", samples=1_000_000),
            layer="b",
            target=1,
            progress=stop,
        )
    assert told == [(0, 1_000_000)]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("random", {"seed": 2**64}),
        ("ss-cam", {"noise": -0.1}),
        ("is-cam", {"samples": 2**40}),
        ("fem", {"k": 10**400}),
        ("smooth-grad-cam++", {"noise": 1e308}),
        ("finer-cam", {"alpha": 7.0}),
        ("finer-cam", {"against": ["a"]}),
        ("finer-cam", {"against": True}),
    ],
)
def test_values_that_no_option_can_have_are_refused(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="expected"):
        attribute(images(1), seeded(Small), method=method, layer="b", target=1, options=options)


@pytest.mark.parametrize("memory", ["x", None, float("nan"), 0, -1])
def test_memory_is_a_number_above_0(memory: Any) -> None:
    with pytest.raises(ModelError, match="megabytes"):
        attribute(images(1), seeded(Small), method="ablation-cam", layer="b", target=1, memory_mb=memory)


def test_unbounded_memory_is_allowed_and_a_class_may_be_named_by_its_number() -> None:
    model, x = seeded(Small), images(1)
    attribute(x, model, method="ablation-cam", layer="b", target=1, memory_mb=float("inf"))
    number = attribute(x, model, method="finer-cam", layer="b", target=1, options={"against": 2})
    assert torch.equal(number, attribute(x, model, method="finer-cam", layer="b", target=1, options={"against": "2"}))


@pytest.mark.parametrize("method", ["full-grad", "grad-cam", "refine-cam"])
def test_a_score_without_a_gradient_is_said_alike(method: str) -> None:
    with pytest.raises(TargetError, match="no gradient"):
        attribute(images(1), seeded(Small), method=method, target=lambda y: (y > 0).float().sum(dim=1))


def test_a_function_with_a_default_is_no_method_with_a_probe() -> None:
    def mine(capture: sightline.Capture, scale: float = 2.0) -> Tensor:
        assert capture.gradients is not None
        return (capture.gradients * capture.activations).sum(dim=1) * scale

    model, x = seeded(Small), images(1)
    wanted = attribute(x, model, method="hires-cam", layer="b", target=1)
    torch.testing.assert_close(attribute(x, model, method=mine, layer="b", target=1), 2 * wanted)


def test_a_function_of_the_users_that_fails_is_named() -> None:
    def divides(capture: sightline.Capture) -> Tensor:
        return 1 / 0  # type: ignore[return-value]

    with pytest.raises(MethodError, match="divides failed with ZeroDivisionError"):
        attribute(images(1), seeded(Small), method=divides, layer="b", target=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "My Cam!"}, "small letters"),
        ({"needs": "foo"}, "expected one of"),
        ({"function": lambda capture: capture.activations}, "docstring"),
        ({"needs": "head"}, "a capture and a probe"),
    ],
)
def test_a_method_is_registered_only_when_it_makes_sense(arguments: dict[str, Any], said: str) -> None:
    def shows(capture: sightline.Capture) -> Tensor:
        """Something."""
        return capture.activations.sum(dim=1)

    given = {"name": "my-cam", "needs": "gradients", "function": shows, **arguments}
    with pytest.raises(MethodError, match=said):
        sightline.method(given["name"], needs=given["needs"], reference="here")(given["function"])
    assert given["name"] not in sightline.list_methods()


def test_a_capture_is_asked_only_of_its_own_model() -> None:
    model, other, x = seeded(Small), seeded(Keeping), images(1)
    seen = sightline.capture(x, model, layer="b")
    assert attribute(seen, model, layer=["b"], target=1).shape == (1, *seen.activations.shape[2:])
    with pytest.raises(ModelError, match="another model"):
        attribute(seen, other, target=1)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"method": ["grad-cam"]}, MethodError),
        ({"layer": 3}, LookupError),
        ({"options": "k=1"}, MethodError),
        ({"layer": nn.ReLU()}, LookupError),
    ],
)
def test_what_is_of_the_wrong_kind_is_said(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        sightline.explain(Image.new("RGB", (40, 40)), load_model("bundled"), **wrong)


def test_the_default_target_is_the_first_of_what_the_model_says_also_when_probabilities_round() -> None:
    torch.manual_seed(0)
    model = Small().eval()
    nn.init.normal_(model.fc.weight, std=1e-11)
    nn.init.zeros_(model.fc.bias)
    adapter = adapt(
        model,
        layers=["b"],
        preprocess=lambda photo: torch.from_numpy(np.array(photo.resize((16, 16)))).permute(2, 0, 1) / 255,
    )
    for seed in range(8):
        photo = (np.random.default_rng(seed).random((20, 20, 3)) * 255).astype(np.uint8)
        found = sightline.explain(photo, adapter)
        assert found.predictions[0].index == found.index
        assert any("hardly tells its classes apart" in warning for warning in found.warnings)
