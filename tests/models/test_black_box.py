"""Functions from pictures to scores: what they are given, what they may return, and what can be asked of them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from conftest import CLASSES, Plain, assert_close, assert_untouched, images, seeded
from oracles_perturbation import occlusion
from sightline.app.answers import Offer, Question, ask, checked, layer_names, look_at
from sightline.cli.doctor import DEMO
from sightline.errors import LayerError, MethodError, ModelError, NonFiniteError, TargetError
from sightline.evaluation.run import evaluate
from sightline.methods import list_methods
from sightline.models.preprocess import standard

LOOKING_IN = [name for name, one in list_methods().items() if one.needs != "scores"]
PREPROCESS = standard((32, 32), 32, mean=(0.5,) * 3, std=(0.25,) * 3)
NAMES = [f"kind {number}" for number in range(CLASSES)]


@pytest.fixture
def module() -> nn.Module:
    return seeded(Plain)


def outside(module: nn.Module, **parts: Any) -> Any:
    """The module as one sees it from outside: numbers go in, numbers come out."""

    def scorer(x: Tensor) -> Any:
        return module(x).detach().numpy()

    return sightline.adapt(scorer, **parts)


# ------------------------------------------------------------------------------------------------------ what goes in


def test_a_function_gets_plain_pictures_in_batches_and_no_graph() -> None:
    seen: list[tuple[bool, bool, torch.Size, torch.dtype]] = []

    def scorer(x: Tensor) -> Tensor:
        seen.append((x.requires_grad, torch.is_grad_enabled(), x.shape[1:], x.dtype))
        return x.mean(dim=(2, 3))

    with torch.enable_grad():
        sightline.attribute(images(2), scorer)
    assert set(seen) == {(False, False, torch.Size([3, 16, 16]), torch.float32)}


def test_a_function_that_works_in_place_reaches_nobodys_picture() -> None:
    x = images(1)
    before = x.clone()

    def scorer(x: Tensor) -> Tensor:
        scores = x.mean(dim=(2, 3))
        x.zero_()
        return scores

    found = sightline.attribute(x, scorer, target=1)
    assert torch.equal(x, before)
    assert_close(found, sightline.attribute(x, lambda x: x.mean(dim=(2, 3)), target=1))


def test_what_a_function_keeps_is_its_own() -> None:
    """An object with state is asked itself, and not a copy of it."""

    class Remote:
        def __init__(self) -> None:
            self.calls: list[int] = []
            self.lock = threading.Lock()

        def __call__(self, x: Tensor) -> list[list[float]]:
            with self.lock:
                self.calls.append(len(x))
            return x.mean(dim=(2, 3)).tolist()

    remote = Remote()
    adapter = sightline.adapt(remote)
    assert (adapter.name, adapter.black_box) == ("Remote", True)
    sightline.attribute(images(1), adapter, options={"patch": 8, "stride": 8})
    assert remote.calls == [1, 5]


# ------------------------------------------------------------------------------------------------------ what comes out


@pytest.mark.parametrize(
    "kind",
    [
        lambda scores: scores,
        lambda scores: scores.clone().requires_grad_(),
        lambda scores: scores.numpy(),
        lambda scores: scores.double().numpy(),
        lambda scores: scores.tolist(),
        lambda scores: [tuple(row) for row in scores.tolist()],
        lambda scores: [row.numpy() for row in scores],
    ],
)
def test_scores_may_come_as_a_tensor_an_array_or_a_list(module: nn.Module, kind: Any) -> None:
    x = images(2)
    found = sightline.attribute(x, lambda x: kind(module(x).detach()), target=1)
    assert (found.dtype, found.device) == (x.dtype, x.device)
    assert_close(found, sightline.attribute(x, module, method="occlusion", target=1), 1e-5)


def test_one_score_a_picture_is_a_model_of_one_class() -> None:
    x = images(2)
    found = sightline.attribute(x, lambda x: x.mean(dim=(1, 2, 3)))
    assert_close(found, sightline.attribute(x, lambda x: x.mean(dim=(1, 2, 3))[:, None], target=0))
    with pytest.raises(TargetError, match="class 1 is outside 0 to 0"):
        sightline.attribute(x, lambda x: x.mean(dim=(1, 2, 3)), target=1)


def _raises(_x: Tensor) -> Any:
    raise RuntimeError("the scorer is out of order")


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (_raises, ModelError, r"raises fails on an input of shape \(2, 3, 16, 16\).*the scorer is out of order"),
        (lambda x: x.mean(dim=(2, 3))[:1], ModelError, r"shape \(1, 3\) for 2 pictures; expected \(2, classes\)"),
        (lambda x: x[:1], ModelError, r"shape \(1, 3, 16, 16\) for 2 pictures"),
        (lambda x: x[None], ModelError, r"shape \(1, 2, 3, 16, 16\) for 2 pictures"),
        (lambda x: x.sum(), ModelError, r"shape \(\) for 2 pictures"),
        (lambda x: x.mean(dim=(2, 3))[:, :0], ModelError, r"shape \(2, 0\) for 2 pictures"),
        (lambda x: None, ModelError, "gave NoneType, which is no table of numbers"),
        (lambda x: ["cat", "dog"], ModelError, "gave list, which is no table of numbers"),
        (lambda x: [[1.0], [1.0, 2.0]], ModelError, "gave list, which is no table of numbers"),
        (lambda x: x.mean(dim=(2, 3)) * 1j, ModelError, "complex"),
        (
            lambda x: x.mean(dim=(2, 3)) / 0,
            NonFiniteError,
            "NaN or infinity in the scores that lambda gave: for 2 of 2",
        ),
        (lambda x: [[0.0, 1.0], [float("nan"), 1.0]], NonFiniteError, "for 1 of 2 pictures"),
    ],
)
def test_an_answer_that_is_none_is_refused_with_its_reason(function: Any, error: Any, said: str) -> None:
    if function is _raises:
        function = sightline.adapt(_raises, name="raises")
    with pytest.raises(error, match=said):
        sightline.attribute(images(2), function)


def test_ctrl_c_in_a_function_is_ctrl_c() -> None:
    def interrupted(_x: Tensor) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sightline.attribute(images(1), interrupted)


@pytest.mark.parametrize("wrong", [{"layers": ["a"]}, {"grid": (7, 7)}, {"logits": lambda output: output}])
def test_what_a_black_box_does_not_have_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="a function is a black box: layers, grid and logits are for modules"):
        sightline.adapt(lambda x: x, **wrong)


@pytest.mark.parametrize("model", [None, 7, nn.ReLU])
def test_what_can_not_be_called_is_no_function(model: Any) -> None:
    with pytest.raises(ModelError, match=r"is no torch\.nn\.Module and no function"):
        sightline.adapt(model)


# ----------------------------------------------------------------------------------------------------- from end to end


def test_a_photograph_is_explained_by_its_scores_alone(module: nn.Module) -> None:
    adapter = sightline.load_model(outside(module).module.held.function, preprocess=PREPROCESS, labels=NAMES)
    assert (adapter.black_box, adapter.layer, adapter.layer_reason) == (True, "input", "a black box has no layers")
    found = sightline.explain(DEMO, adapter, target="kind 3", options={"patch": 8, "stride": 4})
    x, view = PREPROCESS(Image.open(DEMO).convert("RGB"))
    double = seeded(Plain).double()

    def score(pixels: Any) -> float:
        with torch.no_grad():
            return float(double(torch.from_numpy(pixels)[None])[0, 3])

    wanted = occlusion(score, x.double().numpy(), 8, 4, np.zeros(3))
    cells = wanted.reshape(8, 4, 8, 4)
    assert (cells == cells[:, :1, :, :1]).all(), "the squares' borders do not lie on cells"
    np.testing.assert_allclose(found.raw, wanted[::4, ::4], rtol=0, atol=1e-5)
    assert (found.method, found.label, found.model, found.view) == ("occlusion", "kind 3", "scorer", view)
    wanted_chance = module(x[None]).detach().softmax(dim=1)[0, 3]
    assert found.probability == pytest.approx(float(wanted_chance), abs=1e-6)


def test_the_method_of_a_black_box_is_occlusion_and_of_others_grad_cam(module: nn.Module) -> None:
    adapter = sightline.adapt(module, preprocess=PREPROCESS)
    assert sightline.explain(DEMO, adapter).method == "grad-cam"
    assert sightline.explain(DEMO, outside(module, preprocess=PREPROCESS)).method == "occlusion"
    x, few = images(1), {"samples": 30, "segments": 4}
    assert torch.equal(sightline.attribute(x, module), sightline.attribute(x, module, method="grad-cam"))
    assert [one.method for one in sightline.compare(DEMO, outside(module, preprocess=PREPROCESS), options=few)] == [
        name
        for name, one in list_methods().items()
        if one.needs == "scores" and name != "d-rise"  # which is of boxes
    ]


@pytest.mark.parametrize("method", LOOKING_IN)
def test_methods_that_look_into_the_model_are_refused_and_those_that_work_named(method: str) -> None:
    said = f"{method} looks into the model, and box is a black box, .* these methods work: .*occlusion".replace(
        "+", r"\+"
    )
    with pytest.raises(MethodError, match=said):
        sightline.attribute(images(1), sightline.adapt(lambda x: x.mean(dim=(2, 3)), name="box"), method=method)


def test_beside_others_they_are_left_out_and_named_once(module: nn.Module) -> None:
    adapter = outside(module, preprocess=PREPROCESS)
    (found,) = sightline.compare(DEMO, adapter, methods=["grad-cam", "occlusion", "score-cam"])
    assert "left out, because scorer is a black box without layers: grad-cam, score-cam" in found.warnings
    with pytest.raises(MethodError, match="grad-cam looks into the model"):
        sightline.compare(DEMO, adapter, methods=["grad-cam", "score-cam"])


@pytest.mark.parametrize("layer", ["layer4", ["layer4"], "all"])
def test_a_black_box_has_no_layers(module: nn.Module, layer: Any) -> None:
    with pytest.raises(LayerError, match="scorer is a black box, of which only the scores are known: it has no layers"):
        sightline.compare(DEMO, outside(module, preprocess=PREPROCESS), layer=layer)


def test_concepts_of_a_black_box_are_refused(module: nn.Module) -> None:
    with pytest.raises(LayerError, match="has no layers"):
        sightline.concepts(DEMO, outside(module, preprocess=PREPROCESS))


def test_the_trust_card_leaves_out_what_a_black_box_has_not(module: nn.Module) -> None:
    card = sightline.explain(DEMO, outside(module, preprocess=PREPROCESS)).trust()
    outcomes = {one.name: (one.outcome, one.says) for one in card.checks}
    assert outcomes["randomisation"] == ("no answer", "scorer is a black box: its weights can't be made random")
    assert outcomes["agreement"][0] == "no answer"
    assert outcomes["evidence"][0] == "passed"
    assert set(card.curves) == {"deletion", "insertion"}
    card.panel()


def test_the_whole_trust_card_runs_on_a_black_box(module: nn.Module) -> None:
    options = {"patch": 16, "stride": 16}
    card = sightline.explain(DEMO, outside(module, preprocess=PREPROCESS), options=options).trust(full=True)
    outcomes = {one.name: one.outcome for one in card.checks}
    assert outcomes["class sensitivity"] in ("passed", "doubtful")
    assert card.measured["max-sensitivity"].value is not None


def test_witnesses_for_occlusion_are_of_another_kind(module: nn.Module) -> None:
    found = sightline.explain(DEMO, sightline.adapt(module, preprocess=PREPROCESS), method="occlusion").trust()
    assert set(found.agreement) <= {"grad-cam", "hires-cam"}
    assert found.agreement


def test_metrics_of_a_black_box_are_those_of_the_module(module: nn.Module) -> None:
    x, asked = images(1), ["deletion", "insertion", "sparseness"]
    one, other = (
        sightline.measure(x, model, asked, method="occlusion", target=1)[0] for model in (module, outside(module))
    )
    for name in asked:
        assert one[name].value == pytest.approx(other[name].value, abs=1e-5)
    assert sightline.measure(x, outside(module), ["deletion"], target=1)[0]["deletion"].value is not None


def test_methods_are_compared_on_a_folder_for_a_black_box(module: nn.Module, tmp_path: Any) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        Image.open(DEMO).rotate(90 * number).save(tmp_path / "in" / f"{number}.png")
    adapter = outside(module, preprocess=PREPROCESS)
    done = evaluate(tmp_path / "in", adapter, output=tmp_path / "out", methods=["occlusion"], metrics=["deletion"])
    assert not done.errors
    with pytest.raises(MethodError, match=r"these methods work: .*occlusion"):
        evaluate(tmp_path / "in", adapter, output=tmp_path / "more", metrics=["deletion"])


def test_the_page_answers_about_a_black_box(module: nn.Module) -> None:
    offer = Offer({"box": outside(module, preprocess=PREPROCESS, labels=NAMES)})
    answer = ask(offer, Question(str(DEMO)))
    assert [one.method for one in answer.maps] == ["occlusion"]
    assert "Red places raised it" in answer.sentence
    assert layer_names(offer, "box", look_at(offer, "box", str(DEMO))) == []
    assert checked(offer, Question(str(DEMO))).checks
    with pytest.raises(MethodError, match=r"these methods work: .*occlusion"):
        ask(offer, Question(str(DEMO), method="grad-cam"))
    with pytest.raises(sightline.SightlineError, match="occlusion runs the network many times"):
        ask(offer, Question(str(DEMO), mode="layers"))


def test_eight_threads_share_one_black_box(module: nn.Module) -> None:
    adapter, x = outside(module), images(1)
    wanted = sightline.attribute(x, adapter, target=1)
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(sightline.attribute(x, adapter, target=1))) for _ in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 8
    assert all(torch.equal(one, wanted) for one in found)


def test_a_module_without_any_grid_is_explained_and_other_methods_say_why_not() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES))
    adapter = sightline.adapt(flat, preprocess=PREPROCESS)
    assert (adapter.black_box, adapter.layer) == (False, None)
    found = sightline.explain(DEMO, adapter, method="occlusion")
    assert (found.layer, found.raw.any()) == ("input", True)
    assert found.trust().checks
    with pytest.raises(LayerError, match="gives a grid"):
        sightline.explain(DEMO, adapter)


# ------------------------------------------------------------------------------------------------ the input as a layer


def test_the_input_is_a_layer_of_any_model(module: nn.Module) -> None:
    x = images(2)
    with assert_untouched(module, x):
        seen = sightline.capture(x, module, layer="input")
        found = sightline.attribute(seen, module, method="hires-cam", target=1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf)[:, 1].sum(), leaf)
    assert torch.equal(seen.activations, x)
    assert seen.layer == "input"
    assert_close(found, (gradient * x).sum(dim=1), 1e-5)


def test_the_input_and_a_layer_come_from_one_pass(module: nn.Module) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    adapter = sightline.adapt(module, preprocess=PREPROCESS)
    both = sightline.compare(photo, adapter, methods=["hires-cam"], layer=["input", "relu1"])
    for one, layer in zip(both, ("input", "relu1"), strict=True):
        alone = sightline.explain(photo, adapter, method="hires-cam", layer=layer)
        np.testing.assert_allclose(one.raw, alone.raw, rtol=1e-5, atol=1e-7)
    assert [one.raw.shape for one in both] == [(32, 32), (16, 16)]


def test_a_layer_that_is_called_input_is_that_layer() -> None:
    model = nn.Sequential()
    model.add_module("input", nn.Conv2d(3, 4, 3, stride=2, padding=1))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    x = images(1)
    assert sightline.capture(x, model, layer="input").activations.shape == (1, 4, 8, 8)
    found = sightline.attribute(
        x, model, method="occlusion", layer="input", target=1, options={"patch": 4, "stride": 4}
    )
    assert found.shape == (1, 4, 4)


def test_a_black_box_has_no_gradient_at_its_input(module: nn.Module) -> None:
    seen = sightline.capture(images(1), outside(module))
    assert seen.layer == "input"
    assert seen.gradients is None
    with pytest.raises(MethodError, match="looks into the model"):
        sightline.attribute(seen, outside(module), method="grad-cam")
