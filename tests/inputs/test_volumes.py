"""Films and volumes (B, C, T, H, W): maps with a dimension of their own for time or depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import mvit_v2_s, r3d_18, swin3d_t

import sightline
from oracles_volumes import OF_HEAD, OF_PIXELS, ORACLES
from sightline.errors import LayerError, MethodError, ModelError, NonFiniteError
from sightline.methods.registry import OF_VOLUMES, list_methods
from sightline.models.layers import choose

CAN = [name for name, one in list_methods().items() if one.needs in OF_VOLUMES]
CANT = [name for name, one in list_methods().items() if one.needs not in OF_VOLUMES]


def small() -> nn.Module:
    torch.manual_seed(3)
    features = nn.Sequential(
        nn.Conv3d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(5, 6, 3, padding=1), nn.SiLU()
    )
    return nn.Sequential(features, nn.Flatten(), nn.Linear(6 * 3 * 2 * 4, 4)).double().eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def films() -> Tensor:
    found = torch.randn(2, 2, 6, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found[:, :, 2:4, 0:2, 4:6] *= 8  # something rare, for fem
    return found


def known(network: Any, films: Tensor, image: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """A, G at the last features, G of the pixels, and the class, by plain autograd."""
    x = films[image : image + 1].clone().requires_grad_()
    a = network[0](x)
    a.retain_grad()
    logits = network[2](network[1](a))
    index = int(logits.argmax())
    logits[0, index].backward()
    assert a.grad is not None
    assert x.grad is not None
    return a.detach()[0], a.grad[0], x.grad[0], index


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_the_map_of_a_volume_is_that_of_the_loops(network: nn.Module, films: Tensor, name: str) -> None:
    maps = sightline.attribute(films, network, method=name, layer="0")
    assert maps.shape == (2, 3, 2, 4)
    for image in range(2):
        a, g, _, _ = known(network, films, image)
        expected = ORACLES[name](a.numpy(), g.numpy())
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(maps[image].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(OF_PIXELS))
def test_the_map_of_a_volumes_pixels_is_that_of_the_loops(network: nn.Module, films: Tensor, name: str) -> None:
    maps = sightline.attribute(films, network, method=name)
    assert maps.shape == (2, 6, 4, 8)
    for image in range(2):
        _, _, g, _ = known(network, films, image)
        expected = OF_PIXELS[name](films[image].numpy(), g.numpy())
        np.testing.assert_allclose(maps[image].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(OF_HEAD))
def test_the_map_of_a_volumes_head_is_that_of_the_loops(network: Any, films: Tensor, name: str) -> None:
    a, _, _, index = known(network, films, 0)

    def head(changed: Any) -> float:
        with torch.no_grad():
            return float(network[2](network[1](torch.from_numpy(changed)[None]))[0, index])

    maps = sightline.attribute(films[:1], network, method=name, layer="0")
    np.testing.assert_allclose(maps[0].numpy(), OF_HEAD[name](a.numpy(), head), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["hires-cam", "input-x-gradient", "ablation-cam"])
def test_a_layer_that_works_in_place_on_memory_in_another_order_gives_the_same_map(films: Tensor, name: str) -> None:
    torch.manual_seed(1)
    conv, head = nn.Conv3d(2, 5, 3, padding=1), nn.Linear(5 * 6 * 4 * 8, 3)
    made = [nn.Sequential(conv, nn.ReLU(inplace), nn.Flatten(), head).double().eval() for inplace in (True, False)]
    x = films[:1].contiguous(memory_format=torch.channels_last_3d)
    one, other = (sightline.attribute(x, each, method=name, layer="1") for each in made)
    assert one.abs().max() > 0
    torch.testing.assert_close(one, other)


def test_hires_cam_of_a_volume_sums_to_the_score_of_a_linear_head(network: Any, films: Tensor) -> None:
    maps = sightline.attribute(films, network, method="hires-cam", layer="0", target=1)
    score = network(films)[:, 1] - network[2].bias[1]
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), score.detach())


def test_the_layer_that_is_chosen_in_a_video_resnet_is_its_last_stage() -> None:
    torch.manual_seed(0)
    model = r3d_18(weights=None).eval()
    film = torch.randn(1, 3, 8, 64, 64)
    name, reason = choose(model, film)
    assert name == "layer4"
    assert "1x4x4" in reason
    assert sightline.attribute(film, model).shape == (1, 1, 4, 4)
    assert sightline.attribute(film, model, layer="layer2").shape == (1, 4, 16, 16)


@pytest.mark.parametrize("make", [swin3d_t, mvit_v2_s])
def test_a_video_transformer_is_refused_with_what_works(make: Any) -> None:
    torch.manual_seed(0)
    film = torch.randn(1, 3, 16, 224, 224) if make is mvit_v2_s else torch.randn(1, 3, 4, 32, 32)
    with pytest.raises(LayerError, match=r"3-D convolution .*saliency"):
        sightline.attribute(film, make(weights=None).eval())


def test_a_video_transformer_has_a_map_of_its_pixels() -> None:
    torch.manual_seed(0)
    maps = sightline.attribute(torch.randn(1, 3, 4, 32, 32), swin3d_t(weights=None).eval(), method="saliency")
    assert maps.shape == (1, 4, 32, 32)
    assert maps.max() > 0


@pytest.mark.parametrize("name", CAN)
def test_what_can_be_asked_of_volumes_gives_a_map_or_says_why_not(network: nn.Module, films: Tensor, name: str) -> None:
    if name == "cam":  # of heads that pool alone, here as for pictures
        with pytest.raises(MethodError, match="another head"):
            sightline.attribute(films[:1], network, method=name)
        return
    maps = sightline.attribute(films[:1], network, method=name)
    assert maps.shape in ((1, 3, 2, 4), (1, 6, 4, 8))
    assert maps.isfinite().all()


@pytest.mark.parametrize("name", CANT)
def test_what_cannot_be_asked_of_volumes_is_refused_with_what_can(network: nn.Module, films: Tensor, name: str) -> None:
    with pytest.raises(MethodError, match=r"these methods can: .*grad-cam"):
        sightline.attribute(films, network, method=name)


def test_neighbours_and_several_layers_of_a_volume_are_refused(network: nn.Module, films: Tensor) -> None:
    with pytest.raises(MethodError, match="spread"):
        sightline.attribute(films[:1], network, method="recipro-cam", options={"spread": True})
    with pytest.raises(LayerError, match="name one"):
        sightline.attribute(films, network, layer=["0.0", "0"])


def test_a_layer_without_slices_and_a_tensor_of_no_film_are_refused(network: nn.Module, films: Tensor) -> None:
    with pytest.raises(LayerError, match=r"\(B, C, t, h, w\)"):
        sightline.attribute(films, network, layer="1")
    with pytest.raises(ModelError, match=r"\(B, C, T, H, W\)"):
        sightline.attribute(films[0, 0, 0], network)


def test_a_film_with_nan_is_told_and_the_other_films_have_maps(network: nn.Module, films: Tensor) -> None:
    broken = films.clone()
    broken[1, 0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="image 1 of 2") as caught:
        sightline.attribute(broken, network, target=1)
    torch.testing.assert_close(caught.value.maps[0], sightline.attribute(films[:1], network, target=1)[0])


def test_a_capture_of_films_is_asked_for_other_classes(network: nn.Module, films: Tensor) -> None:
    kept = sightline.capture(films, network, layer="0")
    for target in (0, 3):
        torch.testing.assert_close(
            sightline.attribute(kept, network, target=target),
            sightline.attribute(films, network, layer="0", target=target),
        )
