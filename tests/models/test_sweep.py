"""Sweeps and stages: which layers are looked at when nobody names them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sightline
from conftest import Plain, images, seeded
from sightline import compare, load_model
from sightline.models.given import Given
from sightline.models.layers import candidates, choose, stages, sweep
from sightline.models.load import build, sample_input


def test_a_sweep_of_resnet_names_each_output_once_from_the_input_to_the_output() -> None:
    adapter = build("torchvision:resnet18", Given(random_weights=True))
    found = sweep(adapter.module.eval(), sample_input(adapter))
    assert found[-1] == "layer4"
    assert "layer4.1" not in found, "the same tensor as layer4"
    assert {"layer1", "layer2", "layer3"} <= set(found)
    assert len(found) == len(set(found)) <= 15


def test_a_long_network_is_thinned_out_evenly_with_both_ends_kept() -> None:
    adapter = build("torchvision:vgg19", Given(random_weights=True))
    module, x = adapter.module.eval(), torch.rand(1, 3, 64, 64)
    whole, some = sweep(module, x, most=100), sweep(module, x, most=5)
    assert len(whole) > 15
    assert len(some) == 5
    assert (some[0], some[-1]) == (whole[0], whole[-1])
    assert [name for name in whole if name in some] == some


def test_stages_are_the_last_layers_of_each_resolution_up_to_the_default_one() -> None:
    adapter = build("torchvision:resnet18", Given(random_weights=True))
    module, x = adapter.module.eval(), sample_input(adapter)
    assert stages(module, x) == ["layer1", "layer2", "layer3", "layer4"]
    late = build("torchvision:resnet50", Given(random_weights=True)).module.eval()
    assert stages(late, x) == ["layer1", "layer2", "layer3", "layer4"], "not a branch of a block that strides late"
    assert stages(seeded(Plain), images(1)) == ["relu2"], "a network without stages has its default layer"


def test_a_comparison_over_all_layers_has_a_map_for_each_with_its_grid() -> None:
    adapter = load_model("bundled")
    photo = (np.random.default_rng(0).random((60, 80, 3)) * 255).astype(np.uint8)
    found = compare(photo, adapter, methods=["grad-cam", "eigen-cam"], layer="all")
    names = [one.layer for one in found if one.method == "grad-cam"]
    assert len(found) == 2 * len(names) > 10
    assert len({one.raw.shape for one in found}) > 3
    assert not set(names) & adapter.folded
    assert sightline.side_by_side(found).width > 720


def test_several_layers_side_by_side_and_fused() -> None:
    adapter = load_model("bundled")
    photo = (np.random.default_rng(0).random((60, 80, 3)) * 255).astype(np.uint8)
    apart = compare(photo, adapter, methods=["layer-cam"], layer=["blocks.4", "bn2"])
    assert [one.layer for one in apart] == ["blocks.4", "bn2"]
    fused = sightline.explain(photo, adapter, method="layer-cam", layer=["blocks.4", "bn2"])
    assert fused.layer == "blocks.4 + bn2"
    assert fused.raw.shape == apart[0].raw.shape
    assert fused.unit == "own"
    assert 0 < fused.evidence <= 1 + 1e-6


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "convnext_tiny", "efficientnet_b0"])
def test_the_chosen_layer_is_a_candidate_and_its_reason_names_its_grid(name: str) -> None:
    adapter = build(f"torchvision:{name}", Given(random_weights=True))
    module, x = adapter.module.eval(), torch.rand(1, 3, 96, 96)
    layer, reason = choose(module, x)
    (marked,) = [one for one in candidates(module, x) if one.chosen]
    assert marked.name == layer
    assert f"{marked.grid[0]}x{marked.grid[1]}" in reason
