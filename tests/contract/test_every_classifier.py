"""Every classifier of torchvision by every method: a finite map of the layer's shape, or a refusal that says why."""

from __future__ import annotations

import pytest
import torch

import sightline
from conftest import assert_untouched, cheap
from sightline.engine.attention import WANTED
from sightline.errors import MethodError
from sightline.methods import list_methods
from sightline.methods.registry import OF_INPUT

torchvision = pytest.importorskip("torchvision.models")
# One of each family at its smallest; the larger ones are the same modules, repeated.
FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11",
)  # fmt: skip
SLOW = ("score-cam", "ss-cam", "is-cam")


@pytest.mark.slow
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
    blind = []
    without_relu = []
    with assert_untouched(model, x):
        for method, record in list_methods().items():
            small = cheap(method) | ({"samples": 1} if record.needs == "input" and "samples" in record.options else {})
            if method in SLOW and name != "squeezenet1_1":
                continue
            try:
                found = sightline.attribute(x, adapter, method=method, target=3, options=small)
            except MethodError as error:
                if record.needs in WANTED:
                    blind.append("computes no attention" in str(error))
                    continue
                if "has none" in str(error):
                    without_relu.append(method)
                    continue
                refused.append((method, "These work here" in str(error)))
                continue
            assert found.isfinite().all(), method
            assert (
                tuple(found.shape[1:]) == grid or record.needs in ("model", *OF_INPUT) or method == "guided-grad-cam"
            ), method
    assert refused in ([], [("cam", True)])
    assert blind == [True] * 4
    smooth = name in ("convnext_tiny", "efficientnet_b0")
    assert without_relu == (["deconvnet", "guided-backprop", "guided-grad-cam"] if smooth else [])


# name: the layer that is chosen, its grid, whether attention methods apply
TOKENS = {
    "vit_b_32": ("encoder.layers.encoder_layer_11.ln_1", (7, 7), True),
    "swin_t": ("norm", (7, 7), False),
    "swin_v2_t": ("norm", (7, 7), False),
    "maxvit_t": ("blocks.3", (7, 7), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_every_cheap_method_gives_a_map_of_every_transformer(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.get_model(name, weights=None).eval()
    if name == "vit_b_32":
        torch.nn.init.normal_(model.heads.head.weight, std=0.02)  # starts at 0
    x, (layer, grid, attention) = torch.rand(1, 3, 224, 224), TOKENS[name]
    adapter = sightline.adapt(model, layers=[layer])
    assert sightline.capture(x, model).layer == layer
    for method, record in list_methods().items():
        if record.needs in WANTED and not attention:
            with pytest.raises(MethodError, match="These work here: grad-cam"):
                sightline.attribute(x, adapter, method=method, target=3)
        elif record.needs in ("activations", "gradients", *WANTED) or method == "recipro-cam":
            found = sightline.attribute(x, adapter, method=method, target=3)
            assert found.isfinite().all(), method
            assert tuple(found.shape[1:]) == grid, method
