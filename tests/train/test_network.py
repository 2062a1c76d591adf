"""New heads: found or refused by name, frozen as said, and kept in a file that needs nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import assert_close
from sightline import load_model
from sightline.errors import ModelError, OutputError, SightlineError, TrainingError
from sightline.models import layers
from sightline.models.bundled import build as load_bundled
from sightline.models.load import given, sample_input
from sightline.train.network import MODEL, Network, freeze_in, save, with_new_head

ODD = ('cat "tabby"', "[x]", '{"a": 1}', "0", "1", "Kätzchen 猫 \N{CAT FACE}", "a" * 200, "it's\n\\n", "=1+1")
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (171, 220, 3), dtype=np.uint8))

# Name, name of the head, whether its output is the logits. Those called test are tiny networks that timm tests itself with.
SMALL = [
    ("timm:test_resnet", "fc", True),
    ("timm:test_vit", "head", True),
    ("timm:test_nfnet", "head.fc", True),
    ("timm:test_convnext.r160_in1k", "head.fc", True),
]
LARGE = [
    ("torchvision:squeezenet1_1", "classifier.1", False),
    ("torchvision:resnet18", "fc", True),
    ("torchvision:shufflenet_v2_x0_5", "fc", True),
    ("timm:test_vit3", "head", True),
    ("timm:test_byobnet", "head.fc", True),
    ("timm:test_mambaout", "head.fc", True),
    ("timm:test_coatnet", "head.fc", True),
    ("timm:test_efficientnet", "classifier", True),
    ("torchvision:alexnet", "classifier.6", True),
    ("torchvision:vgg11_bn", "classifier.6", True),
    ("torchvision:densenet121", "classifier", True),
    ("torchvision:mobilenet_v3_small", "classifier.3", True),
    ("torchvision:efficientnet_b0", "classifier.1", True),
    ("torchvision:regnet_y_400mf", "fc", True),
    ("torchvision:mnasnet0_5", "classifier.1", True),
    ("torchvision:vit_b_16", "heads.head", True),
    ("torchvision:swin_t", "head", True),
    ("torchvision:convnext_tiny", "classifier.2", True),
    ("torchvision:maxvit_t", "classifier.5", True),  # without a bias
    ("timm:resnet18.a1_in1k", "fc", True),  # of the same shapes as two others
    ("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", "head", True),
    ("timm:swin_tiny_patch4_window7_224", "head.fc", True),
    ("timm:dm_nfnet_f0", "head.fc", True),
    ("timm:mixer_s32_224", "head", True),
    ("timm:caformer_s18", "head.fc.fc2", True),  # with layers and a norm in its head
    ("timm:maxvit_pico_rw_256", "head.fc", True),
    ("timm:cait_xxs24_224", "head", True),
    ("timm:coat_tiny", "head", True),  # some of its layers are one and the same
    ("timm:efficientvit_b0", "head.classifier.4", True),
    ("timm:levit_conv_512d", "head.linear", True),
    ("timm:dla34", "fc", False),
    ("timm:resnet50_clip", "head.proj", False),
    ("timm:hrnet_w18_small", "classifier", True),
    ("timm:beit_base_patch16_224", "head", True),
]
EACH = [*SMALL, *(pytest.param(*one, marks=pytest.mark.slow) for one in LARGE)]


def network(
    name: str = "timm:test_resnet", classes: tuple[str, ...] = ("ant", "bee", "cat"), **options: Any
) -> Network:
    return with_new_head(name, classes, random_weights=True, **options)


@pytest.fixture(scope="module")
def once() -> Network:
    """A network for tests that change nothing of it but what learns."""
    return network()


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(module).eval()(x)


# ------------------------------------------------------------------------------------------- the head, and what is kept


@pytest.mark.parametrize(("name", "head", "whole"), EACH)
def test_the_head_is_found_and_the_file_gives_the_same_answers(
    name: str, head: str, whole: bool, tmp_path: Path
) -> None:
    made = network(name, ODD)
    x = sample_input(made.adapter)
    wanted = logits_of(made.module, x)
    assert (made.head, wanted.shape) == (head, (1, len(ODD)))
    assert made.adapter.labels == ODD

    # Whether the head's own output is the logits, by hooks on a copy.
    seen: list[tuple[Tensor, Tensor]] = []
    other = copy.deepcopy(made.module).eval()
    other.get_submodule(head).register_forward_hook(lambda _, given, output: seen.append((given[0], output)))
    logits_of_copy = other(x)
    ((fed, said),) = seen
    assert made.whole is whole is (said.shape == (1, len(ODD)) and torch.equal(said, logits_of_copy))
    if whole:
        assert made.width == fed.shape[1]

    file = tmp_path / "run" / MODEL
    file.parent.mkdir()
    save(made, file, {"epoch": 3, "validation accuracy": 0.75})
    for place in (file, str(file), file.parent) if name == "timm:test_resnet" else (file.parent,):
        found = load_model(place)
        assert_close(found.logits(logits_of(found.module, x)), wanted, 1e-5)
        assert found.labels == ODD
        assert [one for one in found.found if one.guessed] == []
        assert found.notes == ()
        assert found.found[0].value == made.architecture
        assert found.provenance["preprocessing"] == made.adapter.provenance["preprocessing"]
        assert torch.equal(found.preprocess(PHOTO)[0], made.adapter.preprocess(PHOTO)[0])  # type: ignore[misc]
        assert found.layer == made.adapter.layer


def test_a_head_behind_which_something_follows_can_not_learn_alone() -> None:
    made = network("torchvision:squeezenet1_1", size=64)
    assert (made.head, made.whole) == ("classifier.1", False)
    assert logits_of(made.module, sample_input(made.adapter)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision:googlenet", "several heads (aux1.fc2, aux2.fc2, fc)"),
        ("torchvision:inception_v3", "several heads (AuxLogits.fc, fc)"),
        ("timm:deit_tiny_distilled_patch16_224", "several heads (head, head_dist)"),
        ("timm:crossvit_tiny_240", "several heads (head.0, head.1)"),
        ("timm:levit_conv_128s", "several heads (head.linear, head_dist.linear)"),
        ("timm:volo_d1_224", "several heads (aux_head, head)"),
        ("timm:vit_tiny_patch16_dinov3_qkvb", "has no head"),
        ("timm:resnet50_clip_gap", "has no head"),
        pytest.param("timm:samvit_base_patch16", "has no head", marks=pytest.mark.slow),
    ],
)
def test_a_network_without_one_head_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(ModelError) as error:
        network(name)
    assert name in str(error.value)
    assert words in str(error.value)


def test_a_model_of_another_source_is_refused_with_what_would_do(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    for model in ("no_such_model", "timm:resnet", tmp_path / "net.onnx", tmp_path / "no.safetensors"):
        with pytest.raises(SightlineError):
            with_new_head(model, ("a", "b"))


def test_the_bundled_model_can_not_be_had_without_its_weights() -> None:
    with pytest.raises(ModelError, match="bundled model has its own weights"):
        with_new_head("bundled", ("a", "b"), random_weights=True)


def test_the_bundled_model_keeps_its_trunk_and_its_file_says_timms_name(tmp_path: Path) -> None:
    made = with_new_head("bundled", ("cat", "dog"))
    trunk, official = made.module.state_dict(), load_bundled("", given("bundled")).module.state_dict()
    assert [name for name in official if not torch.equal(trunk[name], official[name])] == [
        "classifier.weight",
        "classifier.bias",
    ]
    save(made, tmp_path / MODEL, {})
    found = load_model(tmp_path)
    x = sample_input(made.adapter)
    assert made.architecture == found.found[0].value == "timm:tf_efficientnet_lite0"
    assert_close(logits_of(found.module, x), logits_of(made.module, x), 1e-5)
    assert found.notes == ()


def test_the_seed_decides_the_new_head_and_nothing_else_is_drawn_from() -> None:
    before = torch.get_rng_state()
    first, same, other = (with_new_head("bundled", ("cat", "dog"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    states = [one.module.state_dict() for one in (first, same, other)]
    assert {name for name in states[0] if not torch.equal(states[0][name], states[1][name])} == set()
    assert {name for name in states[0] if not torch.equal(states[0][name], states[2][name])} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize(("name", "size"), [("timm:test_resnet", 96), (None, 128)])
def test_a_size_of_ones_own_is_in_the_file(name: str | None, size: int, tmp_path: Path) -> None:
    made = network(name, size=size) if name else with_new_head("bundled", ("a", "b"), size=size)
    assert sample_input(made.adapter).shape == (1, 3, size, size)
    save(made, tmp_path / MODEL, {})
    found = load_model(tmp_path)
    assert found.provenance["preprocessing"]["size"] == (size, size)
    assert found.provenance["preprocessing"] == made.adapter.provenance["preprocessing"]
    x, view = made.adapter.preprocess(PHOTO)  # type: ignore[misc]
    again, same = found.preprocess(PHOTO)  # type: ignore[misc]
    assert torch.equal(x, again)
    assert view == same


@pytest.mark.parametrize(
    "parts",
    [
        {"size": (96, 96), "resize": (96, 96), "fit": "exact", "interpolation": "bicubic"},
        {"size": (96, 64), "resize": (96, 64), "fit": "longer", "mean": (0.1, 0.2, 0.3), "std": (1.0, 0.5, 0.25)},
        {"size": (80, 80), "resize": 111, "fit": "shorter", "interpolation": "lanczos", "mean": (0.5, 0.5, 0.5)},
        {"channels": "bgr", "rounding": "down", "interpolation": "nearest"},
    ],
)
def test_every_part_of_the_preprocessing_is_kept_and_taken_up_by_the_next_training(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    made = network()
    spec = dict(made.adapter.provenance["preprocessing"]) | parts
    told = dict(made.adapter.provenance) | {"preprocessing": spec}
    save(dataclasses.replace(made, adapter=dataclasses.replace(made.adapter, provenance=told)), tmp_path / MODEL, {})
    found = load_model(tmp_path)
    assert found.provenance["preprocessing"] == spec
    assert found.notes == ()
    next_one = with_new_head(tmp_path, ("x", "y"))
    assert next_one.adapter.provenance["preprocessing"] == spec
    assert next_one.architecture == made.architecture
    old, new = made.module.state_dict(), next_one.module.state_dict()
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["fc.weight", "fc.bias"]


def test_a_transformer_of_one_size_says_so_and_what_to_do() -> None:
    with pytest.raises(ModelError) as error:
        network("timm:vit_tiny_patch16_224", size=160)
    for words in ("timm:vit_tiny_patch16_224", "(160, 160)", "224", "Leave the size out"):
        assert words in str(error.value)


def test_layers_that_are_one_and_the_same_are_kept(tmp_path: Path) -> None:
    made = network()
    first, second = made.module.get_submodule("layer1.0"), made.module.get_submodule("layer2.0")
    first.bn1, first.bn2 = first.bn2, first.bn2  # type: ignore[assignment]
    save(made, tmp_path / MODEL, {})
    x = sample_input(made.adapter)
    assert second is not first
    assert_close(logits_of(load_model(tmp_path).module, x), logits_of(made.module, x), 1e-5)


def test_the_file_says_what_it_is_and_how_it_came_about(tmp_path: Path, once: Network) -> None:
    save(once, tmp_path / MODEL, {"epoch": 4, "validation loss": 0.25})
    with safe_open(tmp_path / MODEL, "pt") as file:
        said = json.loads(file.metadata()["sightline"])
    assert said["architecture"] == "timm:test_resnet"
    assert said["class_names"] == ["ant", "bee", "cat"]
    assert (said["epoch"], said["validation loss"]) == (4, 0.25)


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for number in range(3):
        save(network(seed=5), tmp_path / f"{number}.safetensors", {"epoch": 1, "a": 2})
    assert len({one.read_bytes() for one in tmp_path.iterdir()}) == 1


def test_a_file_that_can_not_be_written_is_an_output_error_and_leaves_nothing_beside(
    tmp_path: Path, once: Network
) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        save(once, tmp_path / "no folder" / MODEL, {})
    (tmp_path / MODEL / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="can't be written"):
        save(once, tmp_path / MODEL, {})
    assert [one.name for one in tmp_path.iterdir()] == [MODEL]


def test_a_file_that_fails_half_way_leaves_the_old_one(
    tmp_path: Path, once: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(once, tmp_path / MODEL, {})
    before = (tmp_path / MODEL).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save(once, tmp_path / MODEL, {"epoch": 2})
    assert [one.name for one in tmp_path.iterdir()] == [MODEL]
    assert (tmp_path / MODEL).read_bytes() == before


# -------------------------------------------------------------------------------------------------------------- freezing


def changed_by_a_step(made: Network, frozen: tuple[nn.Module, ...]) -> set[str]:
    """The names of all parameters and buffers that one step of training with weight decay has changed."""
    module = made.module.train()
    for one in frozen:
        one.training = False
    before = {name: one.clone() for name, one in module.state_dict().items()}
    parameters = [one for one in module.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    shape = sample_input(made.adapter).shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(4, *shape[1:])
        F.cross_entropy(module(x), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    return {name for name, one in module.state_dict().items() if not torch.equal(one, before[name])}


def shaken(name: str) -> Network:
    """A network in which no weight is zero, so that every one that learns shows it."""
    return copy.deepcopy(_shaken(name))  # which takes less time than numbers drawn for each weight


@lru_cache(maxsize=1)
def _shaken(name: str) -> Network:
    made = network(name)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for one in made.module.parameters():
            one.add_(torch.randn_like(one) * 0.02)
    return made


def learnt(made: Network) -> set[str]:
    """All parameters, and the statistics of batch norms: what training changes where nothing is frozen."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    buffers = {name for name, _ in made.module.named_buffers() if name.endswith(statistics)}
    return {name for name, _ in made.module.named_parameters()} | buffers


def reached_by(made: Network, layer: str) -> set[str]:
    """The parameters that a layer's output depends on, by autograd, and the statistics beside them."""
    other = copy.deepcopy(made.module).eval().requires_grad_(True)
    seen: list[Tensor] = []
    other.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    other(sample_input(made.adapter))
    names, parameters = zip(*other.named_parameters(), strict=True)
    found = torch.autograd.grad(seen[0].square().sum(), parameters, allow_unused=True)
    reached = {name for name, one in zip(names, found, strict=True) if one is not None}
    norms = {name.rpartition(".")[0] for name in reached}
    return reached | {name for name in learnt(made) if name.rpartition(".")[0] in norms}


def ran_before(made: Network, layer: str) -> list[str]:
    """The names of the modules that have returned when a layer returns."""
    other, names = copy.deepcopy(made.module).eval(), []
    for name, one in other.named_modules():
        one.register_forward_hook(lambda _, __, ___, name=name: names.append(name))
    other(sample_input(made.adapter))
    return names[: names.index(layer)]


FROZEN = [
    *("timm:test_resnet", "timm:test_vit"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            *("torchvision:resnet18", "timm:test_efficientnet", "timm:test_nfnet", "timm:test_maxvit"),
            *("torchvision:squeezenet1_1", "torchvision:swin_t", "torchvision:densenet121"),
            *("timm:test_convnext", "timm:test_byobnet", "timm:test_vit3", "timm:test_coatnet", "timm:test_mambaout"),
            *("torchvision:mobilenet_v3_small", "torchvision:regnet_y_400mf", "timm:mixer_s32_224"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_with_the_trunk_frozen_the_head_alone_learns(name: str) -> None:
    made = shaken(name)
    head = {f"{made.head}.{part}" for part, _ in made.layer.named_parameters()}
    assert changed_by_a_step(made, freeze_in(made, "trunk")) == head


@pytest.mark.parametrize("name", FROZEN)
def test_with_nothing_frozen_everything_learns(name: str) -> None:
    made = shaken(name)
    assert freeze_in(made, "none") == ()
    assert changed_by_a_step(made, ()) == learnt(made)


@pytest.mark.parametrize(
    "where", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(1.0, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", FROZEN)
def test_with_some_layers_frozen_all_up_to_the_last_of_them_stays_and_the_rest_learns(name: str, where: float) -> None:
    made = shaken(name)
    names = layers.sweep(made.module, sample_input(made.adapter), most=10_000)
    number = max(1, round(where * len(names)))
    last = names[number - 1]
    # Beside these only what ran before without reaching the layer stays, and weights of the modules that the layer lies in,
    # such as a class token.
    around = ["", *(last[:at] for at, letter in enumerate(last) if letter == ".")]
    aside = {*around, *ran_before(made, last)}
    beside = {name for name in learnt(made) if name.rpartition(".")[0] in aside}
    head = {name for name in learnt(made) if name.startswith(f"{made.head}.")}
    stays = reached_by(made, last) - head
    assert stays
    stayed = learnt(made) - changed_by_a_step(made, freeze_in(made, number))
    assert stays <= stayed <= stays | beside


@pytest.mark.slow
def test_what_stays_with_some_layers_is_what_one_would_write_by_hand() -> None:
    made = shaken("torchvision:resnet18")
    names = layers.sweep(made.module, sample_input(made.adapter), most=10_000)
    changed = changed_by_a_step(made, freeze_in(made, names.index("layer2") + 1))
    assert {name.partition(".")[0] for name in changed} == {"layer3", "layer4", "fc"}
    assert {name.partition(".")[0] for name in learnt(made) - changed} == {"conv1", "bn1", "layer1", "layer2"}


def test_weights_that_attention_uses_without_calling_their_layer_are_frozen_with_it() -> None:
    made = network()
    attention = nn.MultiheadAttention(8, 2, batch_first=True)  # its out_proj is never called
    made.module.get_submodule("layer1").add_module("attended", Attended(attention))
    names = layers.sweep(made.module, sample_input(made.adapter), most=10_000)
    freeze_in(made, len(names))
    assert {name for name, one in attention.named_parameters() if one.requires_grad} == set()


class Attended(nn.Module):
    """Adds what an attention says of the first eight channels' means; as a part of a network of maps."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, :8].mean(dim=(2, 3))[:, None]
        return x + self.attention(tokens, tokens, tokens)[0].mean()


def test_freezing_anew_forgets_what_was_frozen_before(once: Network) -> None:
    freeze_in(once, "trunk")
    freeze_in(once, "none")
    assert all(one.requires_grad for one in once.module.parameters())


@pytest.mark.parametrize("wrong", [0, -1, 10_000, True, 1.5, "head", None])
def test_a_number_of_layers_that_are_not_there_is_refused_with_what_would_do(wrong: Any, once: Network) -> None:
    with pytest.raises(TrainingError) as error:
        freeze_in(once, wrong)
    for words in (repr(wrong), "'trunk'", "'none'", "from 1 to"):
        assert words in str(error.value)


@pytest.mark.parametrize("classes", [2, 96, 1000])
def test_any_number_of_classes_comes_back(classes: int, tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(classes))
    made = network(classes=names)
    save(made, tmp_path / MODEL, {})
    found = load_model(tmp_path)
    assert found.labels == names
    assert with_new_head(tmp_path, ("a", "b")).head == "fc"
