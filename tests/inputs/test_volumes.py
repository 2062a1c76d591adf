"""Films and volumes (B, C, T, H, W): maps with a dimension of their own for time or depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import mvit_v2_s, r3d_18, swin3d_t

import oracles_volumes as oracles
import sightline
from conftest import assert_close
from oracles_volumes import OF_HEAD, OF_PIXELS, ORACLES
from sightline.errors import LayerError, MethodError, ModelError, NonFiniteError
from sightline.methods.perturbation import _Masks
from sightline.methods.registry import list_methods, of_volumes
from sightline.models.layers import choose

CAN = [name for name, one in list_methods().items() if of_volumes(one)]
CANT = [name for name, one in list_methods().items() if not of_volumes(one)]
# Those that show the model other films, with so much that their defaults need not be waited for.
SHOWN: dict[str, dict[str, Any]] = {
    "blur-ig": {"steps": 12, "sigma": 2.0},
    "deep-lift": {},
    "gradient-shap": {"samples": 5},
    "guided-ig": {"steps": 12},
    "integrated-gradients": {"steps": 12},
    "occlusion": {"patch": 2, "stride": 1},
    "rise": {"samples": 12, "grid": 3},
    "smooth-grad": {"samples": 5},
    "smooth-grad-squared": {"samples": 5},
    "var-grad": {"samples": 5},
}


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
    maps = sightline.attribute(films[:1], network, method=name, options=SHOWN.get(name))
    assert maps.shape in ((1, 3, 2, 4), (1, 6, 4, 8))
    assert maps.isfinite().all()


@pytest.mark.parametrize("name", CANT)
def test_what_cannot_be_asked_of_volumes_is_refused_with_what_can(network: nn.Module, films: Tensor, name: str) -> None:
    with pytest.raises(MethodError, match=r"these methods can: .*grad-cam"):
        sightline.attribute(films, network, method=name)


@pytest.mark.parametrize("over", ["noise", "flips", "scales"])
@pytest.mark.parametrize("name", ["integrated-gradients", "occlusion", "saliency"])
def test_copies_of_volumes_are_refused(films: Tensor, name: str, over: str) -> None:
    """Also by a model that would take what is no film."""

    def score(x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).mean(dim=1), x.flatten(1).amax(dim=1)], dim=1)

    class Taking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return score(x)

    with pytest.raises(MethodError, match=r"these methods can: .*grad-cam"):
        sightline.attribute(films, Taking(), method=sightline.combine(name, over=over), target=1)


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


# ------------------------------------------------------------------------------------------- what shows the model other films


def test_these_are_all_that_show_other_films() -> None:
    assert set(SHOWN) == {name for name, one in list_methods().items() if one.volumes}


def score_of(network: Any, target: int) -> Any:
    def score(film: Any) -> float:
        with torch.no_grad():
            return float(network(torch.from_numpy(film)[None])[0, target])

    return score


def gradient_of(network: Any, target: int) -> Any:
    def gradient(film: Any) -> Any:
        x = torch.from_numpy(film)[None].requires_grad_()
        network(x)[0, target].backward()
        assert x.grad is not None
        return x.grad[0].numpy()

    return gradient


@pytest.mark.proves("integrated-gradients", says="a volume's map is that of loops over its slices")
@pytest.mark.parametrize("baseline", [0.0, "a film"])
def test_integrated_gradients_of_a_volume_are_those_of_the_loops(network: Any, films: Tensor, baseline: Any) -> None:
    film = films[0].numpy()
    given = films[1] if baseline == "a film" else baseline
    start = films[1].numpy() if baseline == "a film" else np.zeros_like(film)
    options = {"steps": 7, "nodes": "midpoint", "baseline": given}
    maps = sightline.attribute(films[:1], network, method="integrated-gradients", target=2, options=options)
    wanted = oracles.integrated_gradients(gradient_of(network, 2), film, start, 7)
    np.testing.assert_allclose(maps[0].numpy(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.proves("occlusion", says="a volume's map is that of loops over boxes")
# Of six slices and a shorter side of 4: boxes of 2 are three slices deep, and of 3 four (4.5, to the even).
@pytest.mark.parametrize(
    ("patch", "stride", "box", "steps"),
    [
        (2, 1, (3, 2, 2), (2, 1, 1)),
        (2, 2, (3, 2, 2), (3, 2, 2)),
        (3, 1, (4, 3, 3), (2, 1, 1)),
        (1, 1, (2, 1, 1), (2, 1, 1)),
    ],
)
def test_occlusion_covers_boxes_as_the_loops_do(
    network: Any, films: Tensor, patch: int, stride: int, box: Any, steps: Any
) -> None:
    options = {"patch": patch, "stride": stride, "baseline": [0.5, -1.0]}
    maps = sightline.attribute(films[:1], network, method="occlusion", target=2, options=options)[0]
    hidden = np.broadcast_to(np.array([0.5, -1.0])[:, None, None, None], films[0].shape)
    wanted = oracles.occlusion(score_of(network, 2), films[0].numpy(), box, steps, hidden)
    cell = 4 // maps.shape[1]
    np.testing.assert_allclose(
        maps.repeat_interleave(cell, 1).repeat_interleave(cell, 2).numpy(), wanted, rtol=1e-9, atol=1e-12
    )


@pytest.mark.proves("rise", says="a volume's map is that of loops over masks with three sides")
@pytest.mark.parametrize("grid", [2, 3, 7])
def test_rise_masks_boxes_as_the_loops_do(network: Any, films: Tensor, grid: int) -> None:
    options = {"samples": 10, "grid": grid, "kept": 0.4, "seed": 5}
    maps = sightline.attribute(films[:1], network, method="rise", target=2, options=options)[0]
    drawn = _Masks.drawn(10, grid, 0.4, (6, 4, 8), 5)
    pairs = zip(drawn.cells.double().numpy(), drawn.offsets.tolist(), strict=True)
    masks = [oracles.rise_mask(cells, tuple(offset), (6, 4, 8)) for cells, offset in pairs]
    film = films[0].numpy()
    wanted = oracles.rise(score_of(network, 2), film, masks, 0.4, np.zeros_like(film))
    np.testing.assert_allclose(maps.numpy(), wanted, rtol=1e-9, atol=1e-12)


def flat_and_deep() -> tuple[nn.Module, nn.Module]:
    """A network of pictures, and the same of films, which adds up what it says to the slices."""
    torch.manual_seed(8)
    flat = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 3, 2), nn.Softplus())
    parts: list[nn.Module] = []
    for one in flat:
        if isinstance(one, nn.Conv2d):
            tall = nn.Conv3d(one.in_channels, one.out_channels, (1, *one.kernel_size), padding=(0, *one.padding))
            tall.load_state_dict({"weight": one.weight[:, :, None], "bias": one.bias})
            parts.append(tall)
        else:
            parts.append(nn.MaxPool3d((1, 2, 2)) if isinstance(one, nn.MaxPool2d) else one)
    heads = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
    flat, deep = nn.Sequential(flat, heads[0]), nn.Sequential(*parts, heads[1])
    return flat.double().eval(), deep.double().eval()


@pytest.mark.parametrize("name", sorted(set(SHOWN) - {"rise"}))
def test_a_volume_of_one_slice_has_the_map_of_a_picture(films: Tensor, name: str) -> None:
    flat, deep = flat_and_deep()
    pictures = films[:, :, 2]
    one = sightline.attribute(pictures, flat, method=name, target=1, options=SHOWN[name])
    other = sightline.attribute(pictures[:, :, None], deep, method=name, target=1, options=SHOWN[name])
    assert one.abs().max() > 0
    assert_close(other[:, 0], one, 1e-10)


class OneSlice(nn.Module):
    """Reads the third slice alone."""

    def __init__(self, flat: nn.Module) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.flat(x[:, :, 2])
        return found


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_the_heat_lies_in_the_slice_that_is_read(films: Tensor, name: str) -> None:
    flat, _ = flat_and_deep()
    options = {
        **SHOWN[name],
        **({"patch": 1} if name == "occlusion" else {}),
        **({"samples": 400} if name == "rise" else {}),
    }
    if name == "blur-ig":
        options["sigma"] = 1.0
    long = films[:, :, [2, 3, 2, 4]]  # of four slices, so that a box of one pixel is one slice deep
    maps = sightline.attribute(long, OneSlice(flat), method=name, target=1, options=options)
    heat = maps.abs().sum(dim=(2, 3))
    assert bool((heat[:, 2] > 0).all())
    if name == "rise":  # whose masks reach beyond a slice
        return
    assert bool((heat[:, [0, 1, 3]] == 0).all())
    if name in (
        "blur-ig",
        "deep-lift",
        "integrated-gradients",
        "occlusion",
    ):  # which draw nothing, and ask every place the same
        assert_close(
            maps[:, 2], sightline.attribute(long[:, :, 2], flat, method=name, target=1, options=options), 1e-10
        )


def test_rise_of_many_masks_finds_the_slice_that_is_read(films: Tensor) -> None:
    flat, _ = flat_and_deep()
    long = films[:, :, [2, 3, 2, 4]]
    maps = sightline.attribute(long[:1], OneSlice(flat), method="rise", target=1, options={"samples": 3000, "grid": 4})
    heat = maps[0].abs().amax(dim=(1, 2))
    assert int(heat.argmax()) == 2


def test_what_the_score_rose_by_is_the_sum_of_a_volumes_map(network: Any, films: Tensor) -> None:
    start = float(network(torch.zeros_like(films[:1]))[0, 1].detach())
    options = {"steps": 300}
    maps = sightline.attribute(films[:1], network, method="integrated-gradients", target=1, options=options)
    assert float(maps.sum()) == pytest.approx(float(network(films[:1])[0, 1].detach()) - start, rel=2e-3)
    _, deep = flat_and_deep()  # whose MaxPool3d hands on to the place that had the maximum
    lifted = sightline.attribute(films[:1], deep, method="deep-lift", target=1)
    risen = deep(films[:1])[0, 1] - deep(torch.zeros_like(films[:1]))[0, 1]
    assert float(lifted.sum()) == pytest.approx(float(risen.detach()), rel=1e-9)


@pytest.mark.parametrize("baseline", ["mean", "random", "blur", [0.1, 0.2]])
def test_every_baseline_of_a_picture_is_one_of_a_volume(network: Any, films: Tensor, baseline: Any) -> None:
    options = {"baseline": baseline, "steps": 20}
    maps = sightline.attribute(films[:1], network, method="integrated-gradients", options=options)
    assert maps.shape == (1, 6, 4, 8)
    assert maps.isfinite().all()


def test_blurring_a_volume_blurs_its_slices_alone(films: Tensor) -> None:
    flat, _ = flat_and_deep()
    options = {"baseline": "blur", "steps": 20}
    found = sightline.attribute(films, OneSlice(flat), method="integrated-gradients", target=1, options=options)
    alone = sightline.attribute(films[:, :, 2], flat, method="integrated-gradients", target=1, options=options)
    assert_close(found[:, 2], alone, 1e-10)


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (torch.zeros(2, 24, 8), r"\(1, 2, 24, 8\).* expected .*\(1, 2, 6, 4, 8\)"),
        (torch.zeros(2, 6, 4, 7), r"\(1, 2, 6, 4, 7\).* expected .*\(1, 2, 6, 4, 8\)"),
        ([1.0, 2.0, 3.0], "3 numbers; expected one, or one for each of 2 channels"),
        ("black", "without preprocessing"),
    ],
)
def test_a_baseline_that_fits_no_volume_is_refused(network: Any, films: Tensor, baseline: Any, said: str) -> None:
    with pytest.raises((MethodError, ModelError), match=said):
        sightline.attribute(films[:1], network, method="occlusion", options={"baseline": baseline, "patch": 2})


def test_a_film_is_covered_in_a_model_of_any_kind(films: Tensor) -> None:
    """A function of films is asked for nothing but scores."""

    def black_box(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, 4, 1, 2], x[:, 1].mean(dim=(1, 2, 3))], dim=1)

    maps = sightline.attribute(films, black_box, target=0, options={"patch": 1, "stride": 1})
    assert maps.shape == (2, 6, 4, 8)
    for one, film in zip(maps, films, strict=True):  # boxes of one pixel are two slices deep
        assert one.nonzero().tolist() == [[4, 1, 2], [5, 1, 2]]
        torch.testing.assert_close(one[4, 1, 2], film[0, 4, 1, 2])


def test_a_video_transformer_has_maps_of_what_is_asked_of_its_pixels() -> None:
    torch.manual_seed(0)
    model, film = swin3d_t(weights=None).eval(), torch.randn(1, 3, 4, 32, 32)
    for name, options in (("integrated-gradients", {"steps": 4}), ("occlusion", {"patch": 16, "stride": 16})):
        maps = sightline.attribute(film, model, method=name, options=options)
        assert maps.shape[:2] == (1, 4)
        assert maps.abs().max() > 0


@pytest.mark.parametrize("baseline", ["black", "white"])
def test_a_colour_of_a_film_is_made_of_one_frame(network: Any, films: Tensor, baseline: str) -> None:
    sizes = []

    def take(photo: Any) -> Tensor:
        sizes.append(photo.size)
        return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[:2, :4, :8] / 255.0

    long = films[:1, :, [0] * 90]
    adapter = sightline.adapt(
        nn.Sequential(network[0], nn.AdaptiveAvgPool3d(1), nn.Flatten()), preprocess=take, frames=90
    )
    options = {"baseline": baseline, "steps": 2}
    sizes.clear()
    maps = sightline.attribute(long, adapter, method="integrated-gradients", target=1, options=options)
    assert maps.shape == (1, 90, 4, 8)
    assert set(sizes) == {(64, 64)}


@pytest.mark.parametrize("name", ["gradient-shap", "integrated-gradients", "occlusion"])
def test_a_baseline_may_be_an_array_of_any_order_of_bytes(network: Any, films: Tensor, name: str) -> None:
    options = SHOWN[name]
    one, other = (
        sightline.attribute(films[:1], network, method=name, options={**options, "baseline": given})
        for given in (films[1], films[1].numpy().astype(">f8"))
    )
    assert bool((one == other).all())


@pytest.mark.parametrize("baseline", [torch.zeros(2, 6, 4, 8).to_sparse(), torch.zeros(2, 6, 4, 8, device="meta")])
def test_a_baseline_without_numbers_of_its_own_is_refused(network: Any, films: Tensor, baseline: Tensor) -> None:
    with pytest.raises(MethodError, match="sparse or holds no numbers"):
        sightline.attribute(films[:1], network, method="deep-lift", options={"baseline": baseline})


def test_guided_ig_of_a_film_with_nan_ends(network: Any, films: Tensor) -> None:
    broken = films.clone()
    broken[1, 0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="image 1 of 2"):
        sightline.attribute(broken, network, method="guided-ig", target=1, options={"steps": 3})


def test_masks_that_would_fill_the_memory_are_refused(network: Any, films: Tensor) -> None:
    with pytest.raises(MethodError, match="4,000 masks of 100 cells along each side have 4,000,000,000 cells"):
        sightline.attribute(films[:1], network, method="rise", target=1, options={"grid": 100})
