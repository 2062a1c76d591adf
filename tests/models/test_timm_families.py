"""The automatic layer on one small network of each convolutional family of timm."""

from __future__ import annotations

import pytest
import torch

import sightline
from sightline.models.layers import choose

# The smallest of each family, by timm's names.
FAMILIES = [
    "convnext_atto", "convnextv2_atto", "cs3darknet_focus_s", "darknet17", "densenet121", "dla46_c", "dpn48b", "efficientnet_b0", "efficientnetv2_rw_t",
    "fasternet_t0", "fbnetc_100", "gernet_s", "ghostnet_050", "hardcorenas_a", "hrnet_w18_small", "inception_next_atto", "lcnet_035", "mixnet_s",
    "mnasnet_small", "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "mobileone_s0", "nf_regnet_b0", "regnetx_002", "regnety_002",
    "repghostnet_050", "repvgg_a0", "res2net50_14w_8s", "resnest14d", "resnet10t", "resnetv2_18", "resnext26ts", "rexnet_100", "selecsls42", "semnasnet_050",
    "seresnet18", "skresnet18", "spnasnet_100", "starnet_s050", "tinynet_e", "tresnet_m", "vgg11", "vovnet39a", "xception41",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_is_chosen_with_its_reason_and_gives_a_map(name: str) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5).eval()
    x = torch.rand(1, 3, 96, 96)
    layer, reason = choose(model, x)
    assert "grid" in reason or "goes through" in reason
    found = sightline.attribute(x, model, layer=layer, target=1)
    assert found.shape[1] * found.shape[2] > 1
    assert torch.isfinite(found).all()
