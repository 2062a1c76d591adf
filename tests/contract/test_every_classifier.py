"""Every classifier of torchvision by every method: a finite map of the layer's shape, or a refusal that says why."""

from __future__ import annotations

import pytest
import torch

import sightline
from conftest import assert_untouched
from sightline.errors import LayerError, MethodError
from sightline.methods import list_methods

torchvision = pytest.importorskip("torchvision.models")
# One of each family at its smallest; the larger ones are the same modules, repeated.
FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11",
)  # fmt: skip
TOKENS = ("vit_b_16", "swin_t", "maxvit_t")
SLOW = ("score-cam", "ss-cam", "is-cam")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_method_gives_a_map_of_every_convolutional_family(name: str) -> None:
    torch.manual_seed(0)
    options = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model = (
        torchvision.get_model(name, weights=None, init_weights=False, **options)
        if options
        else torchvision.get_model(name)
    )
    model.eval()
    size = 96 if name == "inception_v3" else 48 if name == "vgg11" else 64
    x = torch.rand(1, 3, size, size)
    layer = sightline.capture(x, model).layer
    adapter = sightline.adapt(model, layers=[layer])
    grid = tuple(sightline.capture(x, adapter).activations.shape[2:])
    refused = []
    with assert_untouched(model, x):
        for method, record in list_methods().items():
            small = {"samples": 1} if "samples" in record.options else {}
            if method in SLOW and name != "squeezenet1_1":
                continue
            try:
                found = sightline.attribute(x, adapter, method=method, target=3, options=small)
            except MethodError as error:
                refused.append((method, "These work here" in str(error)))
                continue
            assert found.isfinite().all(), method
            assert tuple(found.shape[1:]) == grid or record.needs == "model", method
    assert refused in ([], [("cam", True)])


@pytest.mark.parametrize("name", TOKENS)
def test_a_network_of_tokens_is_refused_or_captured_and_never_guessed(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.get_model(name, weights=None).eval()
    x = torch.rand(1, 3, 224, 224)
    try:
        said = str(sightline.attribute(x, model, target=3).isfinite().all())
    except LayerError as error:
        said = str(error)
    assert "token" in said or "no convolution" in said or said == "tensor(True)"
