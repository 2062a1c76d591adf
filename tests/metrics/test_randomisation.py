"""Does a map depend on the weights and on the class: methods that ignore both, networks set by hand, and no trace left."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracles_metrics as oracles
import sightline
from conftest import CLASSES, MODELS, Plain, assert_untouched, images, seeded
from sightline.errors import MetricError, NonFiniteError, UndefinedError
from sightline.metrics.measure import measure
from sightline.metrics.randomisation import other_classes, parameter_randomisation, random_logit
from sightline.metrics.registry import Curve

EXACT = 1e-10
LAYERS = {"plain": 3, "residual": 11, "dense": 5, "regularised": 5, "tokens": 16}  # with parameters of their own


def edges(capture: Any) -> Tensor:
    """An edge detector of the picture, as a method: the model plays no part in it."""
    grey = capture.input.mean(dim=1, keepdim=True)
    found = F.pad(grey.diff(dim=2).abs(), (0, 0, 0, 1)) + F.pad(grey.diff(dim=3).abs(), (0, 1))
    return F.adaptive_avg_pool2d(found, capture.activations.shape[2:])[:, 0]


class Colours(nn.Module):
    """Three features set by hand, how red, green and blue a place is, each read by its own class."""

    layer = "relu2"

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 3, 1, bias=False), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(3, 3, 2, stride=2, bias=False), nn.ReLU()
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.conv1.weight.copy_((1.5 * torch.eye(3) - 0.5)[:, :, None, None])
            self.conv2.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2) / 4)
            self.head.weight.copy_(4 * torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu2(self.conv2(self.relu1(self.conv1(x)))).mean(dim=(2, 3)))


def coloured(seed: int = 0) -> Tensor:
    """Noise with a red, a green and a blue square."""
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3
    for channel, (top, left) in enumerate([(1, 2), (9, 1), (8, 10)]):
        x[0, channel, top : top + 5, left : left + 5] += 0.7
    return x


class Tied(nn.Module):
    """Two convolutions that share one weight, and one that runs twice."""

    layer = "relu"

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)  # registered first, runs last
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.one = nn.Conv2d(6, 6, 3, padding=1)
        self.other = nn.Conv2d(6, 6, 3, padding=1)
        self.other.weight = self.one.weight
        self.scale = nn.Parameter(torch.ones(6, 1, 1) * 0.9)
        self.again = self.one
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.one(self.stem(x)).relu()).relu()
        return self.head(self.relu(self.again(x) * self.scale).mean(dim=(2, 3)))


class Watched:
    """`explain(module=)` that keeps what the parameters were each time and gives a map of its own."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.modules: list[nn.Module] = []

    def __call__(self, *, module: nn.Module) -> np.ndarray:
        self.modules.append(module)
        self.seen.append({name: one.detach().clone() for name, one in module.named_parameters(remove_duplicate=False)})
        return np.random.default_rng(len(self.seen)).random((1, 4, 5))


RAW = np.random.default_rng(0).random((4, 5))


def cascade(
    model: nn.Module, x: Tensor, method: Any, target: Any = 1, layer: str | None = None, **options: Any
) -> Curve:
    (found,) = measure(
        x,
        model,
        ["parameter-randomisation"],
        method=method,
        target=target,
        layer=layer or model.layer,
        settings={"parameter-randomisation": options},
    )
    curve = found["parameter-randomisation"].curve
    assert curve is not None, found["parameter-randomisation"].undefined
    return curve


# ------------------------------------------------------------------------------------------------------------- cascade


@pytest.mark.proves("parameter-randomisation")
@pytest.mark.parametrize("name", ["plain", "residual", "regularised"])
def test_a_method_that_ignores_the_model_has_1_at_every_depth(name: str) -> None:
    curve = cascade(seeded(MODELS[name]), images(1), edges)
    np.testing.assert_allclose(curve.scores, 1, atol=EXACT)
    assert curve.value == pytest.approx(1, abs=EXACT)


@pytest.mark.proves("parameter-randomisation")
def test_grad_cam_of_a_network_set_by_hand_falls_where_an_edge_detector_stays() -> None:
    model, x = Colours().eval(), coloured()
    curves = [cascade(model, x, "grad-cam", target=0, seed=seed) for seed in range(20)]
    assert np.mean([one.value for one in curves]) < 0.5
    assert min(one.value for one in curves) < 0.2
    assert cascade(model, x, edges, target=0).value == pytest.approx(1)


@pytest.mark.proves("parameter-randomisation")
def test_the_map_of_a_random_network_is_like_that_of_another_by_0_on_average() -> None:
    found = [
        cascade(seeded(Plain, seed), images(1, seed=seed), "grad-cam", seed=seed, depths=1).scores[-1]
        for seed in range(60)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(60)
    assert abs(np.mean(found)) < 0.15
    assert np.std(found) < 0.6


@pytest.mark.proves("parameter-randomisation")
@pytest.mark.parametrize("name", LAYERS)
def test_the_curve_begins_at_1_and_has_one_point_a_layer(name: str) -> None:
    model = seeded(MODELS[name])
    curve = cascade(model, images(1), "grad-cam")
    own = sum(any(True for _ in one.parameters(recurse=False)) for one in model.modules())
    assert own == LAYERS[name]
    assert len(curve.at) == len(curve.scores) == own + 1
    assert curve.scores[0] == 1
    np.testing.assert_allclose(curve.at, np.arange(own + 1) / own, atol=1e-15)
    assert curve.value == abs(curve.scores[-1])


@pytest.mark.proves("parameter-randomisation")
@pytest.mark.parametrize("depths", [1, 2, 5, 11, 40])
def test_fewer_depths_are_points_of_the_whole_cascade(depths: int) -> None:
    model, x = seeded(MODELS["residual"]), images(1)
    whole, some = cascade(model, x, "grad-cam", seed=4), cascade(model, x, "grad-cam", seed=4, depths=depths)
    assert len(some.at) == min(depths, 11) + 1
    points = dict(zip(whole.at.tolist(), whole.scores.tolist(), strict=True))
    assert [points[at] for at in some.at.tolist()] == some.scores.tolist()
    assert some.at[-1] == 1


@pytest.mark.proves(
    "parameter-randomisation", says="equals a slow cascade over deep copies, with its oracle's correlation"
)
@pytest.mark.parametrize("name", ["plain", "regularised"])
def test_the_curve_is_that_of_deep_copies_whose_layers_are_drawn_anew_one_by_one(name: str) -> None:
    model, x = seeded(MODELS[name], dtype=torch.float64), images(1, dtype=torch.float64)
    # Of grad-cam before it is rectified: the gradients' mean weighs the channels.
    whole = sightline.attribute(x, model, method=unrectified, layer=model.layer, target=1)[0].numpy()
    rng, copied, wanted = np.random.default_rng(3), copy.deepcopy(model), [1.0]
    for layer in reversed([one for one, part in model.named_modules() if any(True for _ in part.parameters(False))]):
        for parameter in copied.get_submodule(layer).parameters(recurse=False):
            values = parameter.detach().numpy()
            drawn = values.mean() + values.std() * rng.standard_normal(values.shape)
            parameter.data = torch.from_numpy(np.asarray(drawn))
        there = sightline.attribute(x, copied, method=unrectified, layer=model.layer, target=1)[0].numpy()
        wanted.append(oracles.spearman(whole, there))
    np.testing.assert_allclose(cascade(model, x, "grad-cam", seed=3).scores, wanted, rtol=0, atol=EXACT)


def unrectified(capture: Any) -> Tensor:
    return (capture.gradients.mean(dim=(2, 3), keepdim=True) * capture.activations).sum(dim=1)


@pytest.mark.proves("parameter-randomisation")
def test_layers_are_made_random_from_the_last_that_runs_to_the_first_and_stay_so() -> None:
    model, watched = seeded(Tied), Watched()
    curve = parameter_randomisation(RAW, images(1), watched, model)
    own = {name: one.detach() for name, one in model.named_parameters(remove_duplicate=False)}
    changed = [{name for name, one in seen.items() if not torch.equal(one, own[name])} for seen in watched.seen]
    last = [*changed[:1], *(later - earlier for earlier, later in itertools.pairwise(changed))]
    # The shared weight goes with the layer that runs later; a parameter of the whole counts with the whole, at last.
    shared = {"one.weight", "other.weight", "again.weight"}
    assert last[0] == {"head.weight", "head.bias"}
    assert last[1] >= {"other.bias", "other.weight"}
    assert shared | {"one.bias", "again.bias"} <= changed[2]
    assert "stem.weight" not in changed[2]
    assert {"stem.weight", "stem.bias"} <= changed[-1]
    assert all(one <= other for one, other in itertools.pairwise(changed))
    assert len(curve.at) == 6
    fresh = [watched.seen[number]["head.weight"] for number in (0, -1)]
    assert torch.equal(*fresh), "what was drawn once stays"


@pytest.mark.proves("parameter-randomisation")
def test_tied_parameters_stay_tied() -> None:
    model, watched = seeded(Tied), Watched()
    before = model.one.weight
    parameter_randomisation(RAW, images(1), watched, model)
    stand_in: Any = watched.modules[-1]
    assert stand_in.one.weight is stand_in.other.weight
    assert stand_in.again is stand_in.one
    assert not torch.equal(stand_in.one.weight, before)
    assert model.one.weight is model.other.weight is before
    # Where one of them is reached, the other follows at once or is still as it was; never a third.
    assert all(
        torch.equal(seen["one.weight"], seen["again.weight"])
        and any(torch.equal(seen["one.weight"], one) for one in (before, watched.seen[-1]["one.weight"]))
        for seen in watched.seen
    )


@pytest.mark.proves("parameter-randomisation")
def test_random_parameters_have_the_mean_and_spread_of_the_tensor_they_replace() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 400)).eval()
    with torch.no_grad():
        model[1].weight.normal_(3, 2, generator=torch.Generator().manual_seed(0))
        model[1].bias.fill_(0.7)
    watched = Watched()
    parameter_randomisation(RAW, images(1, size=4), watched, model)
    found = watched.seen[-1]
    assert float(found["1.weight"].mean()) == pytest.approx(3, abs=0.1)
    assert float(found["1.weight"].std()) == pytest.approx(2, abs=0.1)
    assert torch.equal(found["1.bias"], model[1].bias), "a constant has no spread"
    assert abs(np.corrcoef(found["1.weight"].flatten(), model[1].weight.detach().flatten())[0, 1]) < 0.03


@pytest.mark.proves("parameter-randomisation")
def test_a_kernel_of_one_number_is_drawn_anew_from_that_size() -> None:
    """It has no spread of its own, and would stay as it is; a norm's ones are what it begins with anyway."""
    model, watched = nn.Sequential(nn.Conv2d(3, 50, 3), nn.BatchNorm2d(50), nn.Flatten()).eval(), Watched()
    nn.init.constant_(model[0].weight, -2)
    parameter_randomisation(RAW, images(1, size=4), watched, model)
    found = watched.seen[-1]
    assert float(found["0.weight"].std()) == pytest.approx(2, abs=0.15)
    assert float(found["0.weight"].mean()) == pytest.approx(-2, abs=0.2)
    assert torch.equal(found["1.weight"], torch.ones(50))


@pytest.mark.proves("parameter-randomisation")
def test_the_value_is_the_mean_size_of_the_correlations_of_all_draws() -> None:
    model, x = seeded(Plain), images(1)
    alone = [cascade(model, x, "grad-cam", seed=seed) for seed in (4, 5, 6)]
    found = cascade(model, x, "grad-cam", seed=4, draws=3)
    assert np.array_equal(found.scores, alone[0].scores), "the curve is of the first draw"
    assert found.value == pytest.approx(np.mean([abs(one.scores[-1]) for one in alone]), abs=EXACT)


@pytest.mark.proves("parameter-randomisation")
def test_a_map_with_its_sign_turned_counts_as_the_same_map() -> None:
    turned = parameter_randomisation(RAW, images(1), answers(-RAW, -RAW, -RAW), seeded(Plain))
    assert turned.value == pytest.approx(1)
    assert turned.scores[-1] == pytest.approx(-1)


def test_a_later_draw_without_a_map_is_left_out_and_said() -> None:
    curve = parameter_randomisation(
        RAW, images(1), answers(RAW, RAW, RAW, np.ones((4, 5)), -RAW), seeded(Plain), draws=3
    )
    assert curve.value == pytest.approx(1)
    assert len(curve.notes) == 1
    assert curve.notes[0].startswith("draw 2")


@pytest.mark.proves("parameter-randomisation")
def test_running_statistics_stay_and_only_parameters_are_drawn() -> None:
    model, watched = seeded(MODELS["regularised"]), Watched()
    parameter_randomisation(RAW, images(1), watched, model)
    found: Any = watched.modules[-1]
    for (name, one), (_, other) in zip(model.named_buffers(), found.named_buffers(), strict=True):
        assert torch.equal(one, other), name


def test_where_a_transformers_places_lie_is_not_tried_again_on_random_weights() -> None:
    """With them it may not show, and each depth costs one forward."""
    calls: list[int] = []

    class Counted(MODELS["tokens"]):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    model, x = seeded(Counted), images(1)
    raw = sightline.attribute(x, model, layer=model.layer, target=1)[0].double().numpy()
    calls.clear()

    def explain(*, module: nn.Module) -> np.ndarray:
        return sightline.attribute(x, module, layer=model.layer, target=1).double().numpy()

    curve = parameter_randomisation(raw, x, explain, model)
    assert curve.notes == ()
    assert calls == [1] * len(curve.at), "one to see in which order the layers run, one a depth"


@pytest.mark.proves("parameter-randomisation")
def test_the_same_seed_gives_the_same_curve_and_another_another() -> None:
    model, x = seeded(Plain), images(1)
    one, same, other = (cascade(model, x, "grad-cam", seed=seed).scores for seed in (5, 5, 6))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


# ------------------------------------------------------------------------------------------------------------ no trace


class Drawing(Plain):
    """Draws random numbers in every forward, as a functional dropout or a stochastic depth may."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * torch.rand(1)


@pytest.mark.proves("parameter-randomisation")
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("build", [*MODELS.values(), Tied, Drawing], ids=[*MODELS, "tied", "drawing"])
def test_the_model_and_the_process_are_bit_identical_afterwards(build: Any, training: bool) -> None:
    model = seeded(build).train(training)
    channels = next(one.in_channels for one in model.modules() if isinstance(one, nn.Conv2d))
    x = images(1, channels)
    with assert_untouched(model, x):
        parameter_randomisation(RAW, x, Watched(), model)
    if not training:
        with assert_untouched(model, x):
            cascade(model, x, "hires-cam", depths=2)


def test_the_model_is_bit_identical_when_the_method_fails_half_way() -> None:
    model, x, calls = seeded(Plain), images(1), []

    def explain(*, module: nn.Module) -> np.ndarray:
        calls.append(module)
        if len(calls) == 2:
            raise RuntimeError("half way")
        return RAW[None]

    with assert_untouched(model, x), pytest.raises(RuntimeError, match="half way"):
        parameter_randomisation(RAW, x, explain, model)


# ------------------------------------------------------------------------------------------------------- where there is none


def answers(*maps: Any) -> Any:
    """`explain(module=)` that gives these maps, or raises these errors, one after the other."""
    rest = list(maps)

    def explain(*, module: nn.Module) -> np.ndarray:
        found = rest.pop(0)
        if isinstance(found, Exception):
            raise found
        return found[None]

    return explain


def test_a_depth_without_a_map_is_a_gap_with_its_reason() -> None:
    constant, broken = np.ones((4, 5)), NonFiniteError("NaN in the map")
    curve = parameter_randomisation(RAW, images(1), answers(constant, broken, RAW), seeded(Plain))
    np.testing.assert_array_equal(np.isnan(curve.scores), [False, True, True, False])
    assert curve.value == pytest.approx(1)
    assert [one.partition(":")[0] for one in curve.notes] == [
        "with 1 of 3 layers random",
        "with 2 of 3 layers random",
    ]
    assert "constant" in curve.notes[0]
    assert "NaN" in curve.notes[1]


@pytest.mark.parametrize("last", [np.zeros((4, 5)), NonFiniteError("NaN in the map")])
def test_without_a_map_of_the_random_network_there_is_no_value(last: Any) -> None:
    with pytest.raises(UndefinedError, match="no map to compare with"):
        parameter_randomisation(RAW, images(1), answers(RAW, RAW, last), seeded(Plain))


def test_a_model_without_parameters_has_nothing_that_could_be_made_random() -> None:
    with pytest.raises(UndefinedError, match="no parameters"):
        parameter_randomisation(RAW, images(1), answers(), nn.Flatten())


def test_depths_below_0_are_refused() -> None:
    with pytest.raises(MetricError, match="option depths is -1"):
        parameter_randomisation(RAW, images(1), answers(), seeded(Plain), depths=-1)


# --------------------------------------------------------------------------------------------------------- random-logit


def logit(model: nn.Module, x: Tensor, method: Any, target: Any = 1, **options: Any) -> float | None:
    (found,) = measure(
        x, model, ["random-logit"], method=method, target=target, layer=model.layer, settings={"random-logit": options}
    )
    return found["random-logit"].value


@pytest.mark.proves("random-logit")
@pytest.mark.parametrize("method", [edges, "eigen-cam"], ids=["edges", "eigen-cam"])
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_a_method_that_ignores_the_class_has_1(name: str, method: Any) -> None:
    assert logit(seeded(MODELS[name]), images(1), method) == pytest.approx(1, abs=EXACT)


@pytest.mark.proves("random-logit")
def test_classes_that_look_at_other_places_have_other_maps() -> None:
    model, x = Colours().eval(), coloured()
    found = logit(model, x, "grad-cam", target=0, classes=2, seed=0)
    assert found is not None
    assert found < 0.2


@pytest.mark.proves("random-logit", says="equals its slow float64 oracle, the mean over the classes that were drawn")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [1, 3, 4, 9])
def test_random_logit_is_the_mean_of_the_oracles_correlations(classes: int, seed: int) -> None:
    model, x = seeded(Plain, dtype=torch.float64), images(1, dtype=torch.float64)
    maps = [
        sightline.attribute(x, model, method="hires-cam", layer=model.layer, target=one)[0].numpy()
        for one in range(CLASSES)
    ]
    drawn = other_classes((2, CLASSES), classes, seed)
    wanted = np.mean([oracles.spearman(maps[2], maps[one]) for one in drawn])
    assert logit(model, x, "hires-cam", target=2, classes=classes, seed=seed) == pytest.approx(wanted, abs=EXACT)


@pytest.mark.proves("random-logit")
def test_the_classes_that_are_drawn_are_seeded_differ_and_are_never_the_targets_own() -> None:
    for own in (0, 3, 9):
        drawn = [other_classes((own, 10), 4, seed) for seed in range(200)]
        assert all(len(set(one)) == 4 and own not in one for one in drawn)
        counts = np.bincount(np.concatenate(drawn), minlength=10)
        assert np.delete(counts, own).min() > 50
        assert drawn[7] == other_classes((own, 10), 4, 7)
    assert sorted(other_classes((1, 4), 5, 0)) == [0, 2, 3], "all there are"


@pytest.mark.proves("random-logit")
def test_the_same_seed_asks_about_the_same_classes() -> None:
    model, x = seeded(Plain), images(1)
    one, same, other = (logit(model, x, "hires-cam", classes=1, seed=seed) for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize("classes", [0, -1])
def test_fewer_than_one_other_class_is_refused(classes: int) -> None:
    """The mean over none is NaN, and a negative number would leave some out silently."""
    with pytest.raises(MetricError, match="classes"):
        random_logit(RAW, lambda target: RAW[None], (0, 5), classes=classes)


def test_a_constant_map_of_another_class_is_undefined_and_not_left_out() -> None:
    with pytest.raises(UndefinedError, match="constant"):
        random_logit(RAW, lambda target: (RAW if target > 2 else np.ones((4, 5)))[None], (0, 5))
