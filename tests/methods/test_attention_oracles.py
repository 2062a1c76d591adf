"""Rollout, gradient-weighted rollout and LeGrad against slow oracles in float64, and the exact properties of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import assert_close, assert_untouched
from made_transformers import CLASSES, Seen, TinyViT, exposed, seen, seen_in_timm, spread, tiny_vit
from oracles_attention import ATTENTION_ORACLES, chefer, chefer_matrix, legrad, raw, rollout, rollout_matrix
from sightline import attribute

EXACT = 1e-10
METHODS = sorted(ATTENTION_ORACLES)
TARGETS = [1, 4, 0]
MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "class token, registers": {"registers": 2},
    "class token, square": {"size": (32, 32)},
    "pooled": {"class_token": False, "pool": "avg"},
    "pooled, registers": {"class_token": False, "registers": 2, "pool": "avg"},
    "pooled beside a class token": {"registers": 1, "pool": "avg"},
    "pooled, norm last": {"class_token": False, "pool": "avg", "norm_last": True},
    "one block": {"depth": 1},
    "one head": {"heads": 1},
}
TIMM: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers": {"reg_tokens": 2},
    "class token and registers without positions": {"reg_tokens": 3, "no_embed_class": True},
    "pooled": {"global_pool": "avg"},
    "pooled without class token": {"global_pool": "avg", "class_token": False},
    "pooled, norm before": {"global_pool": "avg", "fc_norm": False},
    "normed queries and layer scale": {"qk_norm": True, "init_values": 0.5},
}


def pictures(batch: int = 3, size: tuple[int, int] = (24, 32), seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wanted(method: str, said: Seen) -> Tensor:
    """The batch's maps by the oracle."""
    maps = []
    for at in range(len(said.attentions[0])):
        a, g, own = (
            [one[at].numpy() for one in each] for each in (said.attentions, said.gradients, said.own_gradients)
        )
        if method == "attention-rollout":
            vector = rollout(a, said.rows, said.columns)
        elif method == "attention-grad":
            vector = chefer(a, g, said.rows, said.columns)
        elif method == "raw-attention":
            vector = raw(a, said.rows, said.columns)
        else:
            vector = legrad(a, own, said.columns)
        maps.append(vector.reshape(said.grid))
    return torch.from_numpy(np.stack(maps))


def layers(count: int = 3, heads: int = 2, tokens: int = 6, seed: int = 0) -> list[Any]:
    """Rows of attention that sum to 1."""
    raw = np.random.default_rng(seed).random((count, heads, tokens, tokens)) ** 3
    return list(raw / raw.sum(-1, keepdims=True))


def noise(like: list[Any], seed: int = 1) -> list[Any]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(one.shape) for one in like]


# ------------------------------------------------------------------------------------------------- against the oracles


@pytest.mark.proves(param="method", says="equals its slow float64 oracle in a batch of mixed targets")
@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_mixed_targets_equals_the_oracle(method: str, which: str, fused: bool) -> None:
    model = tiny_vit(fused=fused, **MODELS[which])
    x = pictures(size=MODELS[which].get("size", (24, 32)))
    found = attribute(x, model, method=method, target=TARGETS)
    assert found.dtype == torch.float64
    assert_close(found, wanted(method, seen(model, x, TARGETS)), EXACT)


@pytest.mark.proves(param="method", says="equals its slow float64 oracle on timm's vision transformer")
@pytest.mark.parametrize("which", TIMM)
@pytest.mark.parametrize("method", METHODS)
def test_timms_vision_transformer_equals_the_oracle(method: str, which: str) -> None:
    timm = pytest.importorskip("timm.models.vision_transformer")
    small = {"img_size": (24, 32), "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
    with torch.random.fork_rng(devices=[]):
        model = timm.VisionTransformer(**small, **TIMM[which])
    model, x = spread(model).double().eval(), pictures()
    found = attribute(x, model, method=method, target=TARGETS)
    assert_close(found, wanted(method, seen_in_timm(model, x, TARGETS)), EXACT)


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
@pytest.mark.parametrize("method", METHODS)
def test_an_image_has_the_same_map_alone_and_in_a_batch(method: str, fused: bool) -> None:
    model, x = tiny_vit(fused=fused), pictures()
    together = attribute(x, model, method=method, target=TARGETS)
    for at, target in enumerate(TARGETS):
        assert_close(attribute(x[at : at + 1], model, method=method, target=target), together[at : at + 1], EXACT)


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_and_no_grad_change_nothing_and_no_trace_is_left(method: str, fused: bool) -> None:
    model, x = tiny_vit(fused=fused), pictures()
    usual = attribute(x, model, method=method, target=TARGETS)
    model.requires_grad_(False)
    with torch.no_grad(), assert_untouched(model, x):
        found = attribute(x, model, method=method, target=TARGETS)
    assert_close(found, usual, EXACT)


@pytest.mark.proves(param="method", says="knows the class if and only if it asks for gradients")
@pytest.mark.parametrize("method", METHODS)
def test_only_the_gradients_know_the_class(method: str) -> None:
    model, x = tiny_vit(), pictures(1)
    one, other = (attribute(x, model, method=method, target=target) for target in (1, 4))
    assert torch.equal(one, other) == (method in ("attention-rollout", "raw-attention"))


@pytest.mark.proves("attention-rollout", says="has its closed form where attention is uniform")
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
def test_rollout_of_uniform_attention_is_known(pool: str, fused: bool) -> None:
    model = tiny_vit(fused=fused, pool=pool, registers=1)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:32] = 0
            block.attn.qkv.bias[:32] = 0
    found = attribute(pictures(), model, method="attention-rollout", target=TARGETS)
    kept, patches = 0.5 ** len(model.blocks), len(model.columns)
    share = (1 - kept) / (patches + model.prefix) + (kept / patches if pool == "avg" else 0)
    assert_close(found, torch.full((3, 3, 4), share, dtype=torch.float64), EXACT)


@pytest.mark.proves("le-grad")
def test_le_grad_is_linear_in_the_class_weights() -> None:
    model, x = tiny_vit(), pictures(1)
    one = attribute(x, model, method="le-grad", target=2)
    with torch.no_grad():
        model.head.weight *= 3
        model.head.bias += 1
    assert_close(attribute(x, model, method="le-grad", target=2), 3 * one, EXACT)


# ------------------------------------------------------------------------------------- what the oracles are given is right


@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
@pytest.mark.parametrize("which", MODELS)
def test_the_second_arithmetic_is_the_models(which: str, fused: bool) -> None:
    model = tiny_vit(fused=fused, **MODELS[which])
    x = pictures(size=MODELS[which].get("size", (24, 32)))
    logits, attentions, _ = exposed(model, x)
    assert_close(logits, model(x), 1e-12)
    for one in attentions:
        assert_close(one.sum(-1), torch.ones(one.shape[:-1], dtype=torch.float64), 1e-12)
        assert one.max() > 4 / one.shape[-1], "attention is close to uniform, which would hide mistakes"


def test_timms_attentions_are_those_of_the_model() -> None:
    timm = pytest.importorskip("timm.models.vision_transformer")
    with torch.random.fork_rng(devices=[]):
        model = timm.VisionTransformer(
            img_size=(24, 32), patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=CLASSES, mlp_ratio=2
        )
    model, x = spread(model).double().eval(), pictures()
    ours = tiny_vit()
    renames = {"patch_embed.proj": "patch_embed", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
    renamed = {}
    for name, weight in model.state_dict().items():
        for theirs, other in renames.items():
            name = name.replace(theirs, other)
        renamed[name] = weight
    ours.load_state_dict(renamed)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    one, other = seen(ours, x, TARGETS), seen_in_timm(model, x, TARGETS)
    for name in ("attentions", "gradients", "own_gradients"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            assert_close(a, b, EXACT)
    assert (one.rows, one.columns, one.grid) == (other.rows, other.columns, tuple(other.grid))


@pytest.mark.parametrize("which", ["class token, registers", "pooled", "pooled, norm last"])
def test_the_gradients_are_those_of_finite_differences(which: str) -> None:
    model, x, step = tiny_vit(**MODELS[which]), pictures(1), 1e-5
    said = seen(model, x, [3])
    generator = np.random.default_rng(0)
    for layer, attention in enumerate(said.attentions):
        for row in [model.rows[0], *(int(generator.integers(attention.shape[2])) for _ in range(5))]:
            at = (0, int(generator.integers(attention.shape[1])), row, int(generator.integers(attention.shape[3])))
            ends = []
            for change in (step, -step):
                moved = attention.clone()
                moved[at] += change
                with torch.no_grad():
                    logits, _, own = exposed(model, x, {layer: moved})
                ends.append((float(logits[0, 3]), float(own[layer][0, 3])))
            by_whole, by_own = ((up - down) / (2 * step) for up, down in zip(*ends, strict=True))
            assert by_whole == pytest.approx(float(said.gradients[layer][at]), rel=1e-6, abs=1e-8)
            assert by_own == pytest.approx(float(said.own_gradients[layer][at]), rel=1e-6, abs=1e-8)


def test_the_last_layers_own_gradient_is_the_gradient_where_the_model_reads_the_mean_token() -> None:
    said = seen(tiny_vit(**MODELS["pooled, norm last"]), pictures(), TARGETS)
    same = [torch.allclose(a, b, rtol=1e-9) for a, b in zip(said.gradients, said.own_gradients, strict=True)]
    assert same == [False, False, True]


@pytest.mark.parametrize("which", MODELS)
def test_every_query_takes_part_in_own_gradients(which: str) -> None:
    model = tiny_vit(**MODELS[which])
    said = seen(model, pictures(size=MODELS[which].get("size", (24, 32))), TARGETS)
    for own in said.own_gradients:
        assert bool((own.abs().sum(dim=(0, 1, 3)) > 0).all())


# ---------------------------------------------------------------------------------------- exact properties of the rules


def test_the_loops_are_the_matrix_formulas() -> None:
    a = layers()
    g, own = noise(a, 1), noise(a, 2)
    rows, columns, eye = [2, 3, 4, 5], [2, 3, 4, 5], np.eye(6)
    mixed = [0.5 * one.mean(0) + 0.5 * eye for one in a]
    joint = np.linalg.multi_dot(mixed[::-1])
    np.testing.assert_allclose(rollout(a, rows, columns), joint[2:, 2:].mean(0), rtol=1e-12)
    r = eye
    for one, slope in zip(a, g, strict=True):
        r = r + np.maximum(one * slope, 0).mean(0) @ r
    np.testing.assert_allclose(chefer(a, g, rows, columns), (r - eye)[2:, 2:].mean(0), rtol=1e-12)
    np.testing.assert_allclose(chefer(a, g, [0], columns), r[0, 2:], rtol=1e-12)
    maps = np.maximum(np.stack(own), 0).mean(axis=(0, 1, 2))[2:]
    np.testing.assert_allclose(legrad(a, own, columns), maps, rtol=1e-12)


def test_rows_of_rollout_sum_to_one_and_are_not_negative() -> None:
    matrix = rollout_matrix(layers(5))
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-14)
    assert matrix.min() > 0


def test_rollout_renormalises_rows_that_do_not_sum_to_one() -> None:
    np.testing.assert_allclose(rollout_matrix([3 * one for one in layers()]).sum(1), 1, rtol=1e-14)


def test_rollout_of_the_layers_in_another_order_is_another() -> None:
    a = layers()
    assert not np.allclose(rollout_matrix(a), rollout_matrix(a[::-1]), rtol=1e-3)


def test_rollout_of_one_layer_reads_the_row_of_the_query() -> None:
    (a,) = layers(1)
    np.testing.assert_allclose(rollout([a], [0], range(1, 6)), 0.5 * a.mean(0)[0, 1:], rtol=1e-14)


def test_attention_only_to_oneself_moves_nothing() -> None:
    identity = [np.eye(6)[None].repeat(2, 0)] * 3
    np.testing.assert_array_equal(rollout_matrix(identity), np.eye(6))
    r = chefer_matrix(identity, noise(identity))
    np.testing.assert_array_equal(r, np.diag(np.diag(r)))
    np.testing.assert_array_equal(chefer_matrix(identity, [np.zeros((2, 6, 6))] * 3), np.eye(6))
    assert not chefer(identity, noise(identity), [0], range(1, 6)).any()


def test_uniform_attention_has_closed_forms() -> None:
    uniform, mean = [np.full((2, 6, 6), 1 / 6)] * 4, np.full((6, 6), 1 / 6)
    np.testing.assert_allclose(rollout_matrix(uniform), (1 - 0.5**4) * mean + 0.5**4 * np.eye(6), rtol=1e-13)
    slope = [np.full((2, 6, 6), 0.7)] * 4
    np.testing.assert_allclose(chefer_matrix(uniform, slope), np.eye(6) + (1.7**4 - 1) * mean, rtol=1e-13)
    np.testing.assert_allclose(legrad(uniform, slope, range(1, 6)), 0.7, rtol=1e-13)


def test_what_speaks_against_the_class_counts_for_nothing() -> None:
    a = layers()
    against = [-np.abs(one) for one in noise(a)]
    np.testing.assert_array_equal(chefer_matrix(a, against), np.eye(6))
    assert not legrad(a, against, range(1, 6)).any()
    # The rectifier comes before the mean over heads: the second head can't cancel the first.
    mixed = [np.stack([np.full((6, 6), 1.0), np.full((6, 6), -9.0)])] * 3
    np.testing.assert_allclose(legrad(a, mixed, range(1, 6)), 0.5, rtol=1e-13)


def test_chefers_rule_scales_with_the_gradient_in_one_layer_and_not_in_several() -> None:
    a = layers()
    g = noise(a)
    read: Any = ([0], range(1, 6))
    np.testing.assert_allclose(chefer(a[:1], [2 * g[0]], *read), 2 * chefer(a[:1], g[:1], *read), rtol=1e-13)
    assert not np.allclose(chefer(a, [2 * one for one in g], *read), 2 * chefer(a, g, *read), rtol=1e-2)


def test_le_grad_does_not_see_attention_or_the_order_of_layers() -> None:
    a = layers()
    g = noise(a)
    usual = legrad(a, g, range(1, 6))
    np.testing.assert_array_equal(legrad(layers(seed=5), g, range(1, 6)), usual)
    np.testing.assert_allclose(legrad(a, g[::-1], range(1, 6)), usual, rtol=1e-13)
    np.testing.assert_allclose(legrad(a * 2, g * 2, range(1, 6)), usual, rtol=1e-13)


def test_a_class_token_is_needed_to_read_it() -> None:
    with pytest.raises(ValueError, match="no such model"):
        TinyViT(class_token=False)
