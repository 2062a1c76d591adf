"""The layer that is looked at when none is named: a real grid, near the output, with its reason; or a refusal."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import seeded
from sightline.errors import LayerError, ModelError
from sightline.models.adapter import Adapter
from sightline.models.given import Given
from sightline.models.grids import grid_of
from sightline.models.layers import NOT_ALL, candidates, choose
from sightline.models.load import build, load_model, sample_input
from sightline.models.outputs import only_grid

# The smallest member of each family of convolutional classifiers, its layer, and the layer's grid.
FAMILIES = {
    "torchvision:alexnet": ("features.11", (13, 13)),
    "torchvision:vgg11": ("features.19", (14, 14)),
    "torchvision:vgg11_bn": ("features.27", (14, 14)),
    "torchvision:resnet18": ("layer4", (7, 7)),
    "torchvision:squeezenet1_1": ("classifier.2", (13, 13)),
    "torchvision:densenet121": ("features", (7, 7)),
    "torchvision:googlenet": ("inception5b", (7, 7)),
    "torchvision:inception_v3": ("Mixed_7c", (8, 8)),
    "torchvision:shufflenet_v2_x0_5": ("conv5", (7, 7)),
    "torchvision:mobilenet_v2": ("features", (7, 7)),
    "torchvision:mobilenet_v3_small": ("features", (7, 7)),
    "torchvision:mnasnet0_5": ("layers", (7, 7)),
    "torchvision:efficientnet_b0": ("features", (7, 7)),
    "torchvision:regnet_x_400mf": ("trunk_output", (7, 7)),
    "torchvision:convnext_tiny": ("features", (7, 7)),
    "torchvision:maxvit_t": ("blocks.3", (7, 7)),
    "timm:resnet18": ("layer4", (7, 7)),
    "timm:resnet50_clip": ("stages", (7, 7)),  # attention pooling reads the grid
    "timm:repvgg_a0": ("stages", (7, 7)),
    "timm:mobilevit_xxs": ("final_conv", (8, 8)),  # attention inside, grids between
    "bundled": ("bn2", (7, 7)),
}
TOKENS = {
    "torchvision:vit_b_32": ("encoder.layers.encoder_layer_11.ln_1", (7, 7), "beside 1 that are no places"),
    "torchvision:swin_t": ("norm", (7, 7), "all that reaches the output goes through"),
    "timm:vit_tiny_patch16_224": ("blocks.11.norm1", (14, 14), "beside 1 that are no places"),
    "timm:mixer_s32_224": ("norm", (7, 7), "all that reaches the output goes through"),
}


@lru_cache(maxsize=4)  # large ones would fill the memory
def built(name: str) -> tuple[Adapter, Tensor]:
    torch.manual_seed(0)
    adapter = build(name, Given(random_weights=name != "bundled"))
    adapter.module.eval()
    return adapter, sample_input(adapter)


# --------------------------------------------------------------------------------------------------------- real models


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_convolutional_classifiers_gets_a_grid_near_its_output(name: str) -> None:
    adapter, x = built(name)
    layer, grid = FAMILIES[name]
    found = candidates(adapter.module, x)
    (default,) = [one for one in found if one.chosen]
    assert (default.name, default.grid) == (layer, grid)
    assert f"the last {grid[0]}x{grid[1]} grid before pooling" in default.reason
    assert f"{default.channels} channels" in default.reason
    assert default.kind in default.reason
    module = dict(adapter.module.named_modules())[layer]
    assert type(module).__name__ == default.kind
    for one in found:
        assert one.grid[0] * one.grid[1] > 1
        assert one.chosen or not one.reason
    assert len({one.name for one in found}) >= 10


def test_choose_and_candidates_agree() -> None:
    adapter, x = built("torchvision:resnet18")
    (default,) = [one for one in candidates(adapter.module, x) if one.chosen]
    assert choose(adapter.module, x) == (default.name, default.reason)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_models_of_tokens_get_a_layer_with_its_reason(name: str) -> None:
    adapter, x = built(name)
    layer, grid, part = TOKENS[name]
    (default,) = [one for one in candidates(adapter.module, x) if one.chosen]
    assert (default.name, default.grid) == (layer, grid)
    assert part in default.reason


def test_a_loaded_model_of_tokens_has_its_layer() -> None:
    from sightline import attribute

    torch.manual_seed(0)
    adapter = load_model("timm:vit_tiny_patch16_224", random_weights=True)
    assert adapter.layer == "blocks.11.norm1"
    assert "the input norm of the last attention" in adapter.layer_reason
    assert attribute(sample_input(adapter), adapter).shape == (1, 14, 14)


def test_the_layer_is_the_same_for_another_input_of_the_same_model() -> None:
    adapter, x = built("torchvision:resnet18")
    torch.manual_seed(3)
    for size in [(160, 160), (128, 256), (97, 131)]:
        assert choose(adapter.module, torch.rand(2, 3, *size))[0] == "layer4"
    assert choose(adapter.module, x)[0] == "layer4"


# ---------------------------------------------------------------------------------------------------------- toy models


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.conv(x))


def head(channels: int = 4) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


def conv(stride: int = 1, inside: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inside, 4, 3, stride=stride, padding=1)


X = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (nn.Sequential(conv(), nn.ReLU(), *head()), "1"),
        (nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), *head()), "2"),
        (nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), *head()), "1"),  # as in VGG
        (nn.Sequential(conv(), nn.ReLU(), nn.Identity(), nn.Dropout(), nn.Dropout2d(), *head()), "1"),
        (nn.Sequential(conv(), Residual(), *head()), "1"),
        (nn.Sequential(nn.Sequential(conv(2), Residual()), *head()), "0"),
        (nn.Sequential(nn.Sequential(conv(2), nn.MaxPool2d(2)), *head()), "0.0"),
        (nn.Sequential(conv(2), conv(2), *head()), "1"),
        (nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 3)), "1"),
        (nn.Sequential(conv(), nn.Conv2d(4, 7, 1)), "0"),  # the output itself is a grid
    ],
    ids=["relu", "norm", "pool", "passive", "residual", "outermost", "pool-inside", "last", "no-pool", "segmentation"],
)
def test_what_follows_the_last_convolution_without_changing_the_grid_is_included(model: nn.Module, layer: str) -> None:
    name, reason = choose(model.eval(), X)
    assert name == layer
    assert "grid before pooling" in reason
    (default,) = [one for one in candidates(model, X) if one.chosen]
    assert default.name == layer


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(1024, 3)), X),
        (nn.Sequential(conv(), *head()), X[..., :1, :1]),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.Flatten()), X),
    ],
    ids=["no-convolution", "input-of-one-pixel", "convolution-after-pooling"],
)
def test_a_model_without_a_grid_is_refused_with_the_reason(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(LayerError, match="no convolution that gives a grid larger than 1 x 1"):
        choose(model.eval(), x)
    assert [one for one in candidates(model, x) if one.chosen] == []


def test_a_small_network_with_more_dense_layers_than_convolutions_is_not_taken_for_a_transformer() -> None:
    lenet = nn.Sequential(
        nn.Conv2d(4, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip
    assert choose(lenet.eval(), X)[0] == "4"


def test_a_convolution_on_a_side_branch_after_pooling_does_not_count() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.pool = conv(), conv(), nn.AdaptiveAvgPool2d(1)
            self.gate, self.end = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.stem(x))
            return self.end((x * self.gate(self.pool(x)).sigmoid()).mean((2, 3)))

    assert choose(Squeezed().eval(), X)[0] == "conv"


def test_a_model_that_fails_says_on_which_input() -> None:
    with pytest.raises(ModelError, match=r"Sequential fails on an input of shape \(1, 4, 16, 16\)"):
        choose(nn.Sequential(nn.Conv2d(3, 4, 3), *head()).eval(), X)


def test_a_model_in_training_mode_is_looked_at_in_evaluation_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(conv(), conv(), nn.BatchNorm2d(4), nn.Dropout(0.5), *head()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choose(model, X)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((1, 512, 7, 7), (7, 7)),
        ((1, 512, 7, 14), None),  # one axis shrank more than the other
        ((1, 7, 7, 512), None),  # channels last
        ((1, 512, 1, 1), None),
        ((2, 512, 7, 7), None),  # another batch
        ((1, 12, 197, 197), (197, 197)),  # attention has the shape of a grid; it is no convolution's
        ((1, 197, 768), None),
        ((1, 3, 224, 224), (224, 224)),
        ((1, 3, 500, 500), None),
    ],
)
def test_a_grid_is_what_shrank_alike_on_both_sides(shape: tuple[int, ...], grid: tuple[int, int] | None) -> None:
    assert grid_of(shape, (1, 3, 224, 224)) == grid


@pytest.mark.parametrize(
    ("shape", "grid"), [((1, 8, 7, 14), (7, 14)), ((1, 8, 14, 7), None), ((1, 8, 8, 15), (8, 15)), ((1, 8, 7, 7), None)]
)
def test_a_grid_has_the_proportions_of_its_input(shape: tuple[int, ...], grid: tuple[int, int] | None) -> None:
    assert grid_of(shape, (1, 3, 224, 448)) == grid


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (X, True),
        ((X, torch.zeros(2)), True),
        ({"out": X, "aux": None}, True),
        ([X, X], False),  # which one?
        (X.long(), False),
        (X[0], False),
        (None, False),
        ("text", False),
    ],
    ids=["tensor", "tuple", "dict", "two", "integers", "three-axes", "nothing", "text"],
)
def test_the_grid_in_a_layers_output_is_found_where_there_is_one(output: Any, found: bool) -> None:
    assert (only_grid(output) is X) == found


class Gated(nn.Module):
    """Its last convolution makes a gate of one channel, which is multiplied in outside of any module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.act = nn.ReLU()
        self.gate = nn.Conv2d(8, 1, 3, 1, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.head((x * self.gate(x).sigmoid()).mean(dim=(2, 3)))


class Summed(nn.Module):
    """A residual sum that is no module's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.act = nn.ReLU()
        self.branch = nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.head((self.branch(x) + x).mean(dim=(2, 3)))


class Towers(nn.Module):
    """Two towers from the picture on: no layer carries both."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, 2, 1)
        self.right = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], dim=1).mean(dim=(2, 3)))


@pytest.mark.parametrize("build", [Gated, Summed])
def test_the_chosen_layer_carries_all_that_reaches_the_output(build: Any) -> None:
    layer, reason = choose(seeded(build), torch.rand(1, 3, 32, 32))
    assert layer == "act"
    assert "all that reaches the output goes through" in reason


def test_a_network_that_no_layer_carries_says_so_in_its_result() -> None:
    def to_tensor(photo: Any) -> Tensor:
        return torch.from_numpy(np.array(photo.resize((32, 32)))).permute(2, 0, 1).float() / 255

    adapter = sightline.adapt(seeded(Towers), preprocess=to_tensor)
    assert adapter.layer == "right"
    assert NOT_ALL in adapter.layer_reason
    found = sightline.explain(np.zeros((40, 40, 3), np.uint8), adapter, target=1)
    assert any(NOT_ALL in warning for warning in found.warnings)
    given = sightline.adapt(seeded(Towers), preprocess=to_tensor, layers=["left"])
    assert not any(NOT_ALL in warning for warning in sightline.explain(np.zeros((40, 40, 3), np.uint8), given).warnings)
