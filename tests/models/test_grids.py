"""Where the places lie among tokens: found by running, for every arrangement; refused where they lie nowhere."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import assert_close, assert_untouched
from made_transformers import CLASSES, Block, TinyViT, pictures, spread, tiny_vit
from sightline.errors import LayerError, ModelError
from sightline.models.grids import Layout, possible
from sightline.models.layers import NOT_ALL, candidates, choose, sweep

LAYOUTS = {
    "maps": (Layout("maps", (3, 4)), (2, 5, 3, 4)),
    "channels last": (Layout("channels last", (3, 4)), (2, 3, 4, 5)),
    "tokens": (Layout("tokens", (3, 4)), (2, 12, 5)),
    "tokens behind a class token": (Layout("tokens", (3, 4), 1), (2, 13, 5)),
    "tokens between others": (Layout("tokens", (3, 4), 1, 4), (2, 17, 5)),
    "tokens first": (Layout("tokens first", (3, 4), 2, 1), (15, 2, 5)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_to_grid_and_from_grid_are_each_others_reverse(name: str) -> None:
    form, shape = LAYOUTS[name]
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grid = form.to_grid(output)
    assert grid.shape == (2, 5, 3, 4)
    assert form.fits(shape, 2)
    assert not form.fits(shape, 3)
    assert torch.equal(form.from_grid(grid, output), output)
    other = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    changed = form.from_grid(other, output)
    assert torch.equal(form.to_grid(changed), other)
    assert changed.data_ptr() != output.data_ptr()
    if form.extra:  # what is no place stays
        untouched = form.from_grid(grid, output) - changed
        assert int((untouched.abs().sum(dim=-1) == 0).sum()) == 2 * form.extra


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_output_serves_any_number_of_grids(name: str) -> None:
    form, shape = LAYOUTS[name]
    one = [1 if index == (1 if form.kind == "tokens first" else 0) else length for index, length in enumerate(shape)]
    output = torch.randn(one, generator=torch.Generator().manual_seed(0))
    grids = torch.randn(7, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(form.to_grid(form.from_grid(grids, output)), grids)


def test_rows_and_columns_are_in_reading_order() -> None:
    tokens = torch.arange(13.0)[None, :, None]
    assert Layout("tokens", (3, 4), 1).to_grid(tokens)[0, 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def test_possible_grids_have_the_pictures_shape_or_that_of_a_convolution() -> None:
    assert Layout("tokens", (14, 14), 1) in possible((1, 197, 64), (1, 3, 224, 224))
    assert possible((1, 197, 64), (1, 3, 224, 224), [(14, 14)])[0] == Layout("tokens", (14, 14), 1)
    assert Layout("tokens", (6, 10), 5) in possible((1, 65, 64), (1, 3, 96, 160))
    assert possible((1, 4, 64), (1, 3, 224, 448)) == [Layout("tokens", (1, 2), 2)]
    assert possible((1, 197), (1, 3, 224, 224)) == []


# ------------------------------------------------------------------------------------------------- found by running


class Arranged(nn.Module):
    """A transformer that reads its first token, with its tokens in any arrangement."""

    def __init__(self, arrange: str) -> None:
        super().__init__()
        self.arrange = arrange
        self.patch_embed = nn.Conv2d(3, 16, 8, stride=8)
        self.extra = nn.Parameter(torch.zeros(1, 3, 16))
        self.position = nn.Parameter(torch.zeros(1, 15, 16))
        self.blocks = nn.ModuleList(Block(16, 2, fused=True) for _ in range(3))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        if self.arrange == "shuffled":
            patches = patches[:, [5, 0, 11, 3, 8, 1, 10, 4, 2, 9, 7, 6]]
        if self.arrange == "columns":
            patches = patches.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
        extra = self.extra.expand(len(x), -1, -1)
        x = torch.cat([extra[:, :1], patches, extra[:, 1:]], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def arranged(arrange: str = "") -> Any:
    return spread(Arranged(arrange)).double().eval()


def test_tokens_that_stand_behind_the_places_are_found_too() -> None:
    model, x = arranged(), pictures()
    seen = sightline.capture(x, model)
    assert seen.layer == "blocks.2.norm1"
    assert seen.layout == Layout("tokens", (3, 4), 1, 2)


@pytest.mark.parametrize("arrange", ["shuffled", "columns"])
def test_tokens_in_another_order_are_refused(arrange: str) -> None:
    with pytest.raises(LayerError, match="no tokens follow them row by row"):
        sightline.attribute(pictures(), arranged(arrange), layer="blocks.2.norm1", target=1)


def test_a_model_that_runs_sequence_first_is_read_so() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = nn.Conv2d(3, 16, 8, stride=8)
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(16, 2, 32, 0.0, norm_first=True), 2, enable_nested_tensor=False
            )
            self.position = nn.Parameter(torch.zeros(12, 1, 16))
            self.head = nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch_embed(x).flatten(2).permute(2, 0, 1) + self.position
            return self.head(self.encoder(tokens).mean(dim=0))

    model, x = spread(First()).double().eval(), pictures(3)
    seen = sightline.capture(x, model)
    assert seen.layout is not None
    assert seen.layout.kind == "tokens first"
    together = sightline.attribute(x, model, method="hires-cam", target=[0, 1, 2])
    assert together.shape == (3, 3, 4)
    for at in range(3):
        alone = sightline.attribute(x[at : at + 1], model, method="hires-cam", target=at)
        assert_close(alone, together[at : at + 1], 1e-9)


def test_the_grid_of_another_input_size_is_found_anew() -> None:
    import timm

    with torch.random.fork_rng(devices=[]):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=2, dynamic_img_size=True)
    model = spread(model).eval()
    for size in ((96, 160), (160, 96), (112, 112), (96, 160)):
        found = sightline.attribute(torch.rand(1, 3, *size), model, target=1)
        assert found.shape[1:] == (size[0] // 16, size[1] // 16)


def test_a_model_that_takes_one_image_at_a_time_is_measured_too() -> None:
    class Alone(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise ValueError("one image, please")
            return super().forward(x)

    with torch.random.fork_rng(devices=[]):
        model = spread(Alone()).double().eval()
    assert sightline.attribute(pictures(1), model, target=1).shape == (1, 3, 4)


def test_measuring_leaves_no_trace() -> None:
    model, x = tiny_vit(fused=True).requires_grad_(False), pictures()
    with assert_untouched(model, x):
        choose(model, x)
        candidates(model, x)


def test_threads_that_look_at_one_new_model_at_once_agree() -> None:
    model, x = tiny_vit(), pictures(1)
    wanted = sightline.attribute(x, tiny_vit(), target=1)
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(sightline.attribute(x, model, target=1))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(torch.equal(one, wanted) for one in found)


# ------------------------------------------------------------------------------------------------------ the right layer


def test_where_a_class_token_is_read_the_input_norm_of_the_last_block_is_taken_and_said_why() -> None:
    layer, reason = choose(tiny_vit(registers=2), pictures(1))
    assert layer == "blocks.2.norm1"
    assert "the input norm of the last attention" in reason
    assert "3x4 tokens beside 3 that are no places" in reason
    assert reason.endswith(NOT_ALL)


@pytest.mark.parametrize(("options", "layer"), [({}, "norm"), ({"norm_last": True}, "blocks.2")])
def test_where_patches_are_pooled_the_last_layer_of_tokens_is_taken(options: dict[str, Any], layer: str) -> None:
    found, reason = choose(tiny_vit(class_token=False, pool="avg", **options), pictures(1))
    assert found == layer
    assert "all that reaches the output goes through" in reason
    assert NOT_ALL not in reason


def test_a_pooled_transformers_grad_cam_at_its_norm_is_cam() -> None:
    model, x = tiny_vit(class_token=False, pool="avg"), pictures()
    for name in ("grad-cam", "hires-cam", "xgrad-cam"):
        found = sightline.attribute(x, model, method=name, target=[1, 3])
        tokens = model.norm(model.blocks(model.patch_embed(x).flatten(2).transpose(1, 2) + model.pos_embed))
        cam = torch.stack([tokens[at] @ model.head.weight[k] for at, k in enumerate((1, 3))]).view(2, 3, 4) / 12
        assert_close(found, cam if name == "hires-cam" else cam.relu(), 1e-10)


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "ablation-cam", "score-cam", "recipro-cam"])
@pytest.mark.parametrize("layer", ["norm", "blocks.2", "blocks.2.norm2"])
def test_a_layer_behind_the_last_attention_is_refused_with_the_reason(layer: str, method: str) -> None:
    with pytest.raises(LayerError, match=r"patch tokens of layer .* get no gradient.*input norm of the last block"):
        sightline.attribute(pictures(), tiny_vit(), layer=layer, method=method, target=1)


def test_such_layers_are_listed_as_dead_and_left_out_of_a_sweep() -> None:
    model, x = tiny_vit(), pictures(1)
    found = {one.name: one.alive for one in candidates(model, x)}
    assert found["blocks.2.norm1"]
    assert found["blocks.1"]
    assert not found["blocks.2"]
    assert not found["norm"]
    names = sweep(model, x)
    assert "blocks.2.norm1" in names
    assert not {"norm", "blocks.2"} & set(names)
    maps = sightline.attribute(x, model, layer=names, method="layer-cam", target=1)
    assert maps.isfinite().all()


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "layer-cam", "xgrad-cam"])
def test_gradient_cams_are_those_of_plain_autograd(method: str) -> None:
    """The reshape that users write by hand, once, as the reference."""
    model, x, targets = tiny_vit(registers=1), pictures(3), [0, 4, 2]
    kept: list[Tensor] = []
    handle = model.blocks[2].norm1.register_forward_hook(lambda _m, _i, out: kept.append(out))
    scores = model(x)
    handle.remove()
    g = torch.autograd.grad(scores[torch.arange(3), targets].sum(), kept[0])[0][:, 2:].unflatten(1, (3, 4))
    a = kept[0].detach()[:, 2:].unflatten(1, (3, 4))
    wanted = {
        "grad-cam": (g.mean(dim=(1, 2), keepdim=True) * a).sum(-1).relu(),
        "hires-cam": (g * a).sum(-1),
        "layer-cam": (g.relu() * a).sum(-1).relu(),
        "xgrad-cam": ((g * a).sum(dim=(1, 2), keepdim=True) / a.sum(dim=(1, 2), keepdim=True) * a).sum(-1).relu(),
    }[method]
    assert_close(sightline.attribute(x, model, method=method, target=targets), wanted, 1e-10)


def test_ablation_cam_silences_patches_and_leaves_the_class_token() -> None:
    model, x = tiny_vit(), pictures(1)
    kept: list[Tensor] = []
    change: list[Any] = [None]

    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        if change[0] is None:
            kept.append(output)
        else:
            output[:, 1:, change[0]] = 0
        return output

    handle = model.blocks[2].norm1.register_forward_hook(hook)
    with torch.no_grad():
        score = model(x)[0, 1]
        falls = []
        for channel in range(16):
            change[0] = channel
            falls.append(score - model(x)[0, 1])
    handle.remove()
    a = kept[0][0, 1:].unflatten(0, (3, 4))
    wanted = (torch.stack(falls) * a).sum(-1).relu()[None]
    assert_close(sightline.attribute(x, model, method="ablation-cam", target=1), wanted, 1e-10)


# ----------------------------------------------------------------------------------------------- a planted dependence


class OnePatch(nn.Module):
    """Hand-set: the class token attends to the patch at one place only, and the answer is what it finds there."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 8, stride=8)
        self.place = place
        self.norm = nn.LayerNorm(4, elementwise_affine=False)
        self.value = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.norm(self.patch_embed(x).flatten(2).transpose(1, 2))
        tokens = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
        wish = torch.full((13, 13), -1e9, dtype=x.dtype)
        wish[0, 1 + self.place] = 0
        wish[1:, 1:].fill_diagonal_(0)
        attended = wish.softmax(dim=-1)[None, None].expand(len(x), 1, -1, -1) @ self.value(tokens)[:, None]
        return self.head((tokens + attended[:, 0])[:, 0])


@pytest.mark.parametrize("place", [0, 6, 11])
@pytest.mark.parametrize("method", ["hires-cam", "layer-cam", "grad-cam-elementwise", "eigengrad-cam"])
def test_the_map_lies_on_the_one_patch_that_the_answer_depends_on(method: str, place: int) -> None:
    torch.manual_seed(3)
    model, x = OnePatch(place).double().eval(), pictures(1)
    maps = [sightline.attribute(x, model, method=method, layer="norm", target=k).flatten() for k in range(2)]
    found = max(maps, key=lambda one: float(one.abs().max()))  # where one class has only evidence against it
    assert found[place] != 0 or method == "layer-cam"  # which may find only evidence against either class
    assert found.abs().sum() == found[place].abs()


# -------------------------------------------------------------------------------------------------------- bad requests


def test_a_wrong_grid_is_refused_with_the_right_one() -> None:
    adapter = sightline.adapt(tiny_vit(registers=1), grid=(4, 3), layers=["blocks.2.norm1"])
    with pytest.raises(LayerError, match=r"grid=\(4, 3\) is not the grid.*shows 3 x 4 beside 2 tokens"):
        sightline.attribute(pictures(), adapter, target=1)


def test_the_right_grid_is_taken() -> None:
    model = tiny_vit(registers=1)
    given = sightline.attribute(pictures(), sightline.adapt(model, grid=(3, 4)), target=1)
    assert torch.equal(given, sightline.attribute(pictures(), model, target=1))


@pytest.mark.parametrize("grid", [(3,), (3, 4, 5), [3, 4], (3.0, 4.0), (0, 4), 12, "3x4", (True, 12)])
def test_a_grid_that_is_none_is_refused(grid: Any) -> None:
    with pytest.raises(ModelError, match="expected \\(rows, columns\\)"):
        sightline.adapt(tiny_vit(), grid=grid)


def test_a_model_whose_tokens_are_pooled_at_once_has_no_grid() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Linear(3 * 24 * 32, 12 * 16)
            self.norm = nn.LayerNorm(16)
            self.head = nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.tokens(x.flatten(1)).view(len(x), 12, 16)).mean(dim=1))

    torch.manual_seed(0)
    model = Pooled().double()
    with pytest.raises(LayerError, match="no layer whose tokens follow the places"):
        choose(model, pictures(1))
    with pytest.raises(LayerError, match="no tokens follow them row by row"):
        sightline.attribute(pictures(), model, layer="norm", target=1)


def test_not_a_number_is_still_refused_as_such() -> None:
    model, x = tiny_vit(), pictures()
    x[1, 0, 3, 3] = float("nan")
    sightline.attribute(pictures(), model, target=1)
    with pytest.raises(sightline.errors.NonFiniteError, match="NaN or infinity in the input for image 1"):
        sightline.attribute(x, model, target=1)


def test_a_capture_keeps_how_its_layer_is_laid_out() -> None:
    seen = sightline.capture(pictures(), tiny_vit(), layer="blocks.1")
    assert seen.layout == Layout("tokens", (3, 4), 1)
    assert seen.activations.shape == (2, 16, 3, 4)
    assert dataclasses.replace(seen, layer="x").layout == seen.layout
