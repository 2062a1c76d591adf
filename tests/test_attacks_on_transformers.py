"""What once went wrong, or could: token orders that are nearly right, stale knowledge, softmaxes that are no attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from conftest import assert_close, by_autograd
from made_transformers import CLASSES, Attention, Block, TinyViT, seen, spread, tiny_vit
from oracles_attention import chefer, rollout
from sightline.errors import LayerError, MethodError, ModelError, NonFiniteError
from sightline.models.grids import Layout
from sightline.models.layers import choose


def pictures(batch: int = 2, size: tuple[int, int] = (32, 32), seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Ordered(nn.Module):
    """8 x 8 patches in some order, a class token somewhere; reads that token."""

    def __init__(self, order: str = "rows") -> None:
        super().__init__()
        self.order = order
        self.patch_embed = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.zeros(1, 65, 16))
        self.blocks = nn.ModuleList(Block(16, 2, fused=True) for _ in range(2))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "resized":
            x = F.interpolate(x, (32, 32), mode="bilinear")
        if self.order == "roots":
            x = x.sqrt()
        if self.order == "checks" and (x.min() < 0 or x.max() > 1):
            raise AssertionError("pictures from 0 to 1, please")
        if self.order == "mirrored":
            x = x.flip(3)
        grid = self.patch_embed(x)
        if self.order == "boustrophedon":
            grid = torch.stack([row.flip(2) if at % 2 else row for at, row in enumerate(grid.unbind(2))], dim=2)
        if self.order == "upper half mirrored":
            grid = torch.cat([grid[:, :, :4].flip(3), grid[:, :, 4:]], dim=2)
        if self.order == "rolled":
            grid = grid.roll((1, 1), (2, 3))
        patches, token = grid.flatten(2).transpose(1, 2), self.token.expand(len(x), -1, -1)
        at = {"middle": 32, "last": 64}.get(self.order, 0)
        tokens = torch.cat([patches[:, :at], token, patches[:, at:]], dim=1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, at])


def ordered(order: str, seed: int = 0) -> Any:
    return spread(Ordered(order), seed).double().eval()


# -------------------------------------------------------------------------------------------------------- nearly right


@pytest.mark.parametrize("order", ["middle", "boustrophedon", "upper half mirrored", "rolled", "mirrored"])
def test_an_order_that_is_half_right_is_refused(order: str) -> None:
    model = ordered(order)
    with pytest.raises(LayerError, match="no tokens follow them row by row"):
        sightline.attribute(pictures(), model, layer="blocks.1.norm1", target=1)
    if order == "mirrored":  # not even the patch embedding follows the places
        with pytest.raises(LayerError, match="no layer whose tokens follow the places"):
            choose(model, pictures(1))
    else:
        assert choose(model, pictures(1))[0] == "patch_embed"


@pytest.mark.parametrize("size", [(40, 60), (48, 80), (112, 56), (32, 32)])
def test_a_picture_that_is_resized_inside_keeps_the_patch_embeddings_grid(size: tuple[int, int]) -> None:
    for seed in range(3):
        seen_here = sightline.capture(pictures(1, size), ordered("resized", seed))
        assert seen_here.layer == "blocks.1.norm1"
        assert seen_here.layout == Layout("tokens", (8, 8), 1)


def test_a_class_token_at_the_end_is_found_there() -> None:
    assert sightline.capture(pictures(), ordered("last")).layout == Layout("tokens", (8, 8), 0, 1)


@pytest.mark.parametrize("order", ["roots", "checks"])
def test_a_model_that_takes_no_negative_values_is_shown_none(order: str) -> None:
    x = pictures().abs() / 6
    found = sightline.capture(x.clamp(0, 1), ordered(order))
    assert found.layout == Layout("tokens", (8, 8), 1)


# --------------------------------------------------------------------------------------------------- stale and poisoned


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_picture_that_is_no_number_poisons_nothing(bad: float) -> None:
    model, fresh, x = ordered("last"), ordered("last"), pictures(1)
    broken = x.clone()
    broken[0, 0, 3, 3] = bad
    for layer in ("blocks.1.norm1", None):
        with pytest.raises(NonFiniteError):
            sightline.attribute(broken, model, layer=layer, target=1)
    assert sightline.capture(x, model).layout == Layout("tokens", (8, 8), 0, 1)
    assert torch.equal(sightline.attribute(x, model, target=1), sightline.attribute(x, fresh, target=1))


@pytest.mark.parametrize("method", ["attention-rollout", "attention-grad", "le-grad"])
def test_a_model_whose_head_was_exchanged_is_looked_at_anew(method: str) -> None:
    import timm

    with torch.random.fork_rng(devices=[]):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, depth=2, img_size=64)
    model, x = spread(model).double().eval(), pictures(2, (64, 64))
    sightline.attribute(x, model, method=method, target=1)
    model.reset_classifier(CLASSES, global_pool="avg")
    spread(model).double()
    import copy

    assert_close(
        sightline.attribute(x, model, method=method, target=1),
        sightline.attribute(x, copy.deepcopy(model), method=method, target=1),
        1e-10,
    )


def test_two_ways_to_read_one_model_are_kept_apart() -> None:
    class Tokens(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            patches = self.patch_embed(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
            return self.norm(self.blocks(tokens))

    with torch.random.fork_rng(devices=[]):
        model = spread(Tokens()).double().eval()
    x = pictures(1, (24, 32))
    by_token = sightline.adapt(model, logits=lambda out: model.head(out[:, 0]), layers=["blocks.2.norm1"])
    by_mean = sightline.adapt(model, logits=lambda out: model.head(out[:, 1:].mean(dim=1)), layers=["blocks.2"])
    said = seen(tiny_vit(), x, [1])
    a = [one[0].numpy() for one in said.attentions]
    for adapter, rows in ((by_token, [0]), (by_mean, range(1, 13)), (by_token, [0])):
        found = sightline.attribute(x, adapter, method="attention-rollout")
        assert_close(found.flatten(), torch.from_numpy(rollout(a, rows, range(1, 13))), 1e-10)


def test_what_a_maximum_reads_is_asked_of_each_picture() -> None:
    class Maximum(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
            return self.head(self.norm(self.blocks(tokens)).amax(dim=1))

    def made() -> Any:
        with torch.random.fork_rng(devices=[]):
            return spread(Maximum()).double().eval()

    model, x = made(), pictures(3, (24, 32))
    together = sightline.attribute(x, model, method="attention-rollout")
    for at in range(3):
        alone = sightline.attribute(x[at : at + 1], made(), method="attention-rollout")
        assert_close(together[at : at + 1], alone, 1e-12)


def test_a_little_of_the_patches_beside_a_class_token_counts_a_little() -> None:
    class Both(TinyViT):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def forward(self, x: Tensor) -> Tensor:
            patches = self.patch_embed(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
            tokens = self.norm(self.blocks(tokens))
            return self.head(tokens[:, 0] + self.share * tokens[:, 1:].mean(dim=1))

    x = pictures(1, (24, 32))
    plain = sightline.attribute(x, tiny_vit(), method="attention-rollout")
    with torch.random.fork_rng(devices=[]):
        nearly, mixed = (spread(Both(share)).double().eval() for share in (1e-6, 1.0))
    assert_close(sightline.attribute(x, nearly, method="attention-rollout"), plain, 1e-10)
    half = sightline.attribute(x, mixed, method="attention-rollout")
    said = seen(tiny_vit(), x, [1])
    a = [one[0].numpy() for one in said.attentions]
    token, mean = (torch.from_numpy(rollout(a, rows, range(1, 13))) for rows in ([0], range(1, 13)))
    # Somewhere between the two, and far from either.
    share = float(((half.flatten() - mean) @ (token - mean)) / ((token - mean) @ (token - mean)))
    assert 0.2 < share < 0.8


# ----------------------------------------------------------------------------------------------- what is no attention


class Around(Block):
    """A block with something beside its attention."""

    def __init__(self, kind: str) -> None:
        super().__init__(16, 2, fused=True)
        self.kind = kind
        self.gate = nn.Linear(16, 13)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "gate":
            x = x * (1 + self.gate(x).softmax(dim=-1).amax(dim=-1, keepdim=True))
        if self.kind == "two":
            return super().forward(x) + self.attn(self.norm2(x))
        if self.kind == "own":
            q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)
            weights = (q @ k.mT / 4).exp()
            return x + self.attn.proj(weights / weights.sum(-1, keepdim=True) @ v)
        return super().forward(x)


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (("gate", "gate", "gate"), "several attentions, or softmaxes of that shape, within 'blocks.0'"),
        (("", "two", ""), "several attentions, or softmaxes of that shape, within 'blocks.1'"),
        (("", "own", ""), "no attention is seen in 'blocks.1'"),
    ],
)
def test_a_chain_of_attentions_that_is_not_the_models_is_refused(kinds: tuple[str, ...], says: str) -> None:
    with torch.random.fork_rng(devices=[]):
        model = TinyViT(class_token=True)
        model.blocks = nn.Sequential(*(Around(kind) for kind in kinds))
    model = spread(model).double().eval()
    for method in ("attention-rollout", "attention-grad", "le-grad"):
        with pytest.raises(MethodError, match=says):
            sightline.attribute(pictures(1, (24, 32)), model, method=method, target=1)


@pytest.mark.parametrize("order", ["images first", "heads first"])
@pytest.mark.parametrize("method", ["attention-rollout", "attention-grad", "le-grad", "raw-attention"])
def test_heads_and_images_in_one_axis_are_not_mixed_up(method: str, order: str) -> None:
    class Flat(Attention):
        def forward(self, x: Tensor) -> Tensor:
            parts = self.qkv(x).chunk(3, dim=-1)
            if order == "heads first":
                q, k, v = (torch.cat(one.chunk(2, dim=-1), dim=0) for one in parts)
            else:
                q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2).flatten(0, 1) for one in parts)
            mixed = (q @ k.mT / math.sqrt(8)).softmax(dim=-1) @ v
            if order == "heads first":
                return self.proj(torch.cat(mixed.chunk(2, dim=0), dim=-1))
            return self.proj(mixed.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2))

    with torch.random.fork_rng(devices=[]):
        model = TinyViT()
        for block in model.blocks:
            block.attn = Flat(16, 2, fused=False)
    model, x, targets = spread(model).double().eval(), pictures(3, (24, 32)), [1, 4, 0]
    wanted = sightline.attribute(x, tiny_vit(), method=method, target=targets)
    assert_close(sightline.attribute(x, model, method=method, target=targets), wanted, 1e-10)


def test_tokens_whose_number_depends_on_the_picture_are_said() -> None:
    class Pruned(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
            tokens = tokens[:, : 12 if float(x.sum()) < 1e6 else 8]
            return self.head(self.norm(self.blocks(tokens)).mean(dim=1))

    with torch.random.fork_rng(devices=[]):
        model = spread(Pruned()).double().eval()
    x = pictures(1, (24, 32))
    sightline.attribute(x, model, method="attention-rollout")
    with pytest.raises(ModelError, match="their number depends on the picture"):
        sightline.attribute(x + 1e4, model, method="attention-rollout")


@pytest.mark.parametrize("factor", [1.0, 1e-4, 1e-8])
def test_small_gradients_are_not_lost_beside_the_identity(factor: float) -> None:
    model, x = tiny_vit(class_token=False, pool="avg"), pictures(1, (24, 32))
    said = seen(model, x, [1])
    a = [one[0].numpy() for one in said.attentions]
    g = [one[0].numpy() * factor for one in said.gradients]
    wanted = torch.from_numpy(chefer(a, g, range(12), range(12)))
    found = sightline.attribute(
        x.float(), model.float(), method="attention-grad", target=lambda out: out[:, 1] * factor
    )
    if factor == 1.0:
        assert_close(found.flatten(), wanted, 1e-4)
    else:  # beyond what the oracle's identity leaves in float64: linear in the factor
        one = sightline.attribute(x.float(), model, method="attention-grad", target=lambda out: out[:, 1] * factor * 10)
        assert_close(found * 10, one, 1e-3)


# ------------------------------------------------------------------------------------------------------ lean, and more


def test_weights_that_are_computed_keep_their_gradient() -> None:
    class Generated(nn.Module):
        layer = "relu"

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
            self.fc, self.maker, self.head = nn.Linear(6, 6), nn.Linear(6, 36), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            grid = self.relu(self.conv(x))
            weight = self.maker(grid.mean(dim=(2, 3))).mean(dim=0).view(6, 6)
            tokens = grid.flatten(2).transpose(1, 2)
            made = torch.func.functional_call(self.fc, {"weight": weight}, (tokens,))
            return self.head(made.mean(dim=1))

    model, x = spread(Generated()).double().eval(), pictures(1, (16, 16))
    a, g, _ = by_autograd(model, "relu", x, lambda out: out[:, 1])
    found = sightline.attribute(x, model, method="hires-cam", layer="relu", target=1)
    assert_close(found, (a * g).sum(dim=1), 1e-10)


def test_a_models_own_autocast_works() -> None:
    class Half(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    with torch.random.fork_rng(devices=[]):
        model = spread(Half()).eval()
    x = pictures(2, (24, 32)).float()
    for method in ("hires-cam", "attention-grad", "le-grad", "attention-rollout"):
        wanted = sightline.attribute(x, tiny_vit(dtype=torch.float32), method=method, target=1, layer="blocks.2.norm1")
        assert_close(sightline.attribute(x, model, method=method, target=1, layer="blocks.2.norm1"), wanted, 0.15)


def test_a_row_that_attends_to_nothing_takes_nothing() -> None:
    class Masked(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=-1))
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            mask[3] = False
            return self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    with torch.random.fork_rng(devices=[]):
        model = TinyViT()
        for block in model.blocks:
            block.attn = Masked(16, 2, fused=True)
    model, x = spread(model).double().eval(), pictures(1, (24, 32))
    assert model(x).isfinite().all()
    for method in ("attention-rollout", "attention-grad", "le-grad"):
        assert sightline.attribute(x, model, method=method, target=1).isfinite().all()


@pytest.mark.parametrize("method", ["eigen-cam", "fem", "kpca-cam", "random"])
def test_a_layer_that_nothing_reads_is_refused_for_methods_without_gradients_too(method: str) -> None:
    with pytest.raises(LayerError, match="get no gradient"):
        sightline.attribute(pictures(2, (24, 32)), tiny_vit(), method=method, layer="norm", target=1)


@pytest.mark.parametrize("method", ["grad-cam", "attention-rollout", "raw-attention"])
def test_a_layer_that_does_not_exist_is_refused_by_every_method(method: str) -> None:
    with pytest.raises(LayerError, match=r"no layer 'blocks\.9'"):
        sightline.attribute(pictures(2, (24, 32)), tiny_vit(), method=method, layer="blocks.9")


def test_as_many_heads_as_tokens_do_not_make_a_picture_of_attention() -> None:
    class Dropped(Attention):
        def __init__(self, dim: int, heads: int, fused: bool) -> None:
            super().__init__(dim, heads, fused)
            self.drop = nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (one.unflatten(-1, (16, 1)).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=-1))
            return self.proj((self.drop((q @ k.mT).softmax(dim=-1)) @ v).transpose(1, 2).flatten(2))

    with torch.random.fork_rng(devices=[]):
        model = TinyViT((32, 32), class_token=False, pool="avg")
        for block in model.blocks:
            block.attn = Dropped(16, 2, fused=False)
    with pytest.raises(LayerError, match="no grid"):
        sightline.attribute(pictures(1), spread(model).double().eval(), layer="blocks.1.attn.drop", target=1)


def test_a_grid_of_the_right_number_and_the_wrong_shape_is_refused() -> None:
    model = tiny_vit(size=(32, 32))
    adapter = sightline.adapt(model, grid=(16, 1), layers=["blocks.2.norm1"])
    with pytest.raises(LayerError, match=r"grid=\(16, 1\) is not the grid"):
        sightline.attribute(pictures(), adapter, target=1)


def test_a_model_that_averages_all_its_tokens_is_looked_at_behind_its_last_block() -> None:
    class All(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            patches = self.patch_embed(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
            return self.head(self.blocks(tokens).mean(dim=1))

    with torch.random.fork_rng(devices=[]):
        model = spread(All()).double().eval()
    layer, reason = choose(model, pictures(1, (24, 32)))
    assert layer == "blocks.2"
    assert "input norm" not in reason
