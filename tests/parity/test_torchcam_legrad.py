"""LeGrad on torchvision's vision transformer against torch-cam, and the two other methods on the attentions it captures.

torch-cam averages over layers, heads and all queries after the ReLU, and scores a block by heads(ln(mean over ALL tokens)), as
we do; no resize. Its default `normalized=True` scales each map to [0, 1] by (m - min) / (max - min + 1e-8); ours is unscaled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sightline
from conftest import assert_close
from made_transformers import CLASSES, spread
from oracles_attention import chefer, legrad, rollout

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchcam = pytest.importorskip("torchcam.methods")
    vision = pytest.importorskip("torchvision.models.vision_transformer")

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's

EXACT = 1e-10
TARGETS = [1, 4, 0]


def made(seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        model = vision.VisionTransformer(
            image_size=64, patch_size=16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
        )
    return spread(model, seed).double().eval()


def pictures() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mean_token(model: Any) -> Callable[[Tensor], Tensor]:
    """The model's own end, given the mean of all tokens."""
    return lambda tokens: model.heads(model.encoder.ln(tokens.mean(dim=1)))


def by_torchcam(model: Any, x: Tensor, blocks: list[Any] | None = None, normalized: bool = False, **how: Any) -> Tensor:
    with torchcam.LeGrad(model, blocks or list(model.encoder.layers), **how) as extractor:
        scores = model(x)
        return extractor(TARGETS, scores, normalized=normalized)[0]


def captured(model: Any, x: Tensor) -> tuple[Any, Any, Any]:
    """(attentions, d logit / d attention, d own score / d attention), over layers (B, heads, T, T)."""
    at = torch.arange(len(x))
    kept: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _m, _i, out: kept.append(out)) for block in model.encoder.layers]
    with torchcam.LeGrad(model, list(model.encoder.layers)) as extractor:
        scores = model(x)
        a = list(extractor.hook_attn)
    for handle in handles:
        handle.remove()
    g = torch.autograd.grad(scores[at, TARGETS].sum(), a, retain_graph=True)
    ends = [mean_token(model)(tokens)[at, TARGETS].sum() for tokens in kept]
    own = [torch.autograd.grad(end, one, retain_graph=True)[0] for end, one in zip(ends, a, strict=True)]
    return [one.detach() for one in a], g, own


def in_turn(layers: Any, at: int) -> list[Any]:
    return [one[at].detach().numpy() for one in layers]


def ours(method: str, model: Any, x: Tensor) -> Tensor:
    return sightline.attribute(x, model, method=method, target=TARGETS)


@pytest.mark.agrees("torch-cam", "le-grad", note="to 1e-10 in float64")
def test_le_grad_is_torchcams() -> None:
    model, x = made(), pictures()
    found = ours("le-grad", model, x)
    assert found.shape == (3, 4, 4)
    assert_close(found, by_torchcam(model, x), EXACT)


@pytest.mark.differs("torch-cam", "le-grad")
def test_torchcam_scales_each_map() -> None:
    model, x = made(), pictures()
    found = ours("le-grad", model, x)
    low = found.amin(dim=(1, 2), keepdim=True)
    scaled = (found - low) / ((found - low).amax(dim=(1, 2), keepdim=True) + 1e-8)
    assert_close(scaled, by_torchcam(model, x, normalized=True), EXACT)


def test_torchcams_own_score_is_that_of_all_tokens_mean_and_not_of_the_class_token() -> None:
    model, x = made(), pictures()
    built_in = by_torchcam(model, x)
    assert_close(built_in, by_torchcam(model, x, score_projection=mean_token(model)), EXACT)
    other = by_torchcam(model, x, score_projection=lambda tokens: model.heads(model.encoder.ln(tokens)[:, 0]))
    unit = [one / one.flatten(1).norm(dim=1)[:, None, None] for one in (other, built_in)]
    assert (unit[0] - unit[1]).abs().max() > 0.05, "another map, not only another scale"


def test_torchcams_layers_are_averaged() -> None:
    model, x = made(), pictures()
    single = [by_torchcam(model, x, [block], score_projection=mean_token(model)) for block in model.encoder.layers]
    assert_close(by_torchcam(model, x, score_projection=mean_token(model)), torch.stack(single).mean(dim=0), EXACT)


@pytest.mark.agrees("torch-cam", "le-grad", note="to 1e-10 in float64")
def test_the_oracle_is_torchcams() -> None:
    model, x = made(), pictures()
    a, _, own = captured(model, x)
    maps = [legrad(in_turn(a, at), in_turn(own, at), range(1, 17)).reshape(4, 4) for at in range(3)]
    wanted = by_torchcam(model, x, score_projection=mean_token(model))
    assert_close(torch.from_numpy(np.stack(maps)), wanted, EXACT)


@pytest.mark.proves(param="method", says="equals its slow float64 oracle on the attentions that torch-cam captures")
@pytest.mark.parametrize("method", ["attention-rollout", "attention-grad"])
def test_the_other_methods_on_the_attentions_that_torchcam_captures(method: str) -> None:
    model, x = made(), pictures()
    a, g, _ = captured(model, x)
    maps = []
    for at in range(3):
        if method == "attention-rollout":
            vector = rollout(in_turn(a, at), [0], range(1, 17))
        else:
            vector = chefer(in_turn(a, at), in_turn(g, at), [0], range(1, 17))
        maps.append(vector.reshape(4, 4))
    assert_close(ours(method, model, x), torch.from_numpy(np.stack(maps)), EXACT)
