"""Attentions of any transformer are seen, fused or not; nothing is left behind; what can't be shown is refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from conftest import CLASSES as TINY
from conftest import Plain, assert_close, assert_untouched, images, seeded
from made_transformers import CLASSES, Attention, Block, TinyViT, exposed, pictures, seen_in_timm, spread, tiny_vit
from sightline.engine.asked import Asked
from sightline.engine.attention import WANTED, attend
from sightline.engine.targets import per_image
from sightline.errors import MethodError, ModelError, NonFiniteError, TargetError
from sightline.models.adapter import Adapter, adapt

METHODS = ["attention-rollout", "attention-grad", "le-grad", "raw-attention"]


def asking(adapter: Adapter, batch: int, target: Any = 1) -> Any:
    return lambda output: per_image(target, adapter, output, batch)


@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
def test_attentions_are_the_models_own(fused: bool) -> None:
    model, x = tiny_vit(fused=fused, registers=1), pictures()
    seen = attend(adapt(model), x, "attention")
    _, attentions, _ = exposed(model, x)
    assert seen.layers == ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")
    for found, wanted in zip(seen.probabilities, attentions, strict=True):
        assert_close(found, wanted, 1e-12)
    assert_close(seen.output, model(x), 1e-12)
    assert seen.layout.size == (3, 4)
    assert seen.layout.before == 2
    assert seen.read.shape == (2, 14)
    assert seen.read.nonzero().tolist() == [[0, 0], [1, 0]]
    assert seen.gradients is None
    assert seen.scores is None


def test_what_is_read_is_the_class_token_or_all_patches() -> None:
    read = attend(adapt(tiny_vit(pool="avg", registers=2)), pictures(), "attention").read
    assert read[0].nonzero().flatten().tolist() == list(range(3, 15))
    assert_close(read[:, 3:], torch.full((2, 12), 1 / 12, dtype=torch.float64), 1e-12)


class Manners(nn.Module):
    """One attention in every manner that torch knows."""

    def __init__(self, manner: str) -> None:
        super().__init__()
        self.manner = manner
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        if self.manner.startswith("module"):
            return self.attn(x, x, x, need_weights=self.manner.endswith("weights"))[0]
        q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=-1))
        tokens = x.shape[1]
        if self.manner == "causal":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.manner == "bool mask":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(tokens, tokens).tril().bool())
        elif self.manner == "float mask":
            mixed = F.scaled_dot_product_attention(
                q, k, v, torch.arange(tokens * 1.0).to(x).expand(tokens, -1), scale=0.3
            )
        elif self.manner == "grouped":
            mixed = F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)
        elif self.manner == "functional":
            mixed = F.softmax(q @ k.mT / 3, dim=-1) @ v
        elif self.manner == "module softmax":
            mixed = nn.Softmax(dim=-1)(q @ k.mT / 3) @ v
        else:
            mixed = torch.softmax(q @ k.mT / 3, 3) @ v
        return mixed.transpose(1, 2).flatten(2)


MANNERS = [
    "module",
    "module weights",
    "causal",
    "bool mask",
    "float mask",
    "grouped",
    "functional",
    "module softmax",
    "torch",
]


@pytest.mark.parametrize("manner", MANNERS)
def test_every_manner_of_computing_attention_is_seen_and_gives_the_same_output(manner: str) -> None:
    with torch.random.fork_rng(devices=[]):
        model = TinyViT(pool="avg")
        for block in model.blocks:
            block.attn = Manners(manner)
    model, x = spread(model).double().eval(), pictures()
    adapter = adapt(model)
    for wanted in WANTED:
        seen = attend(adapter, x, wanted, asking(adapter, 2))
        assert_close(seen.output, model(x), 1e-12)
        assert len(seen.probabilities) == 3
        for one in seen.probabilities:
            assert one.shape == (2, 2, 13, 13)
            assert_close(one.sum(-1), torch.ones(2, 2, 13, dtype=torch.float64), 1e-12)
        if wanted != "attention":
            assert seen.gradients is not None
            assert all(bool(one.any()) for one in seen.gradients)


@pytest.mark.parametrize("wanted", WANTED)
def test_the_same_as_timm_says_itself(wanted: str) -> None:
    import timm

    with torch.random.fork_rng(devices=[]):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, depth=3, img_size=64)
    model = spread(model).double().eval()
    x = pictures(2, (64, 64))
    adapter = adapt(model)
    said = seen_in_timm(model, x, [1, 1])
    seen = attend(adapter, x, wanted, asking(adapter, 2))
    for found, theirs in zip(seen.probabilities, said.attentions, strict=True):
        assert_close(found, theirs, 1e-10)
    theirs = {"attention-gradients": said.gradients, "block-gradients": said.own_gradients}.get(wanted, [])
    for found, other in zip(seen.gradients or (), theirs, strict=True):
        assert_close(found, other, 1e-10)
    assert all(block.attn.fused_attn for block in model.blocks)


@pytest.mark.proves("attention-rollout")
def test_rows_of_rollout_sum_to_one() -> None:
    """Over all tokens; the map leaves out those that are no places, so that here there are none."""
    model = tiny_vit(class_token=False, pool="avg")
    found = sightline.attribute(pictures(), model, method="attention-rollout")
    assert_close(found.sum(dim=(1, 2)), torch.ones(2, dtype=torch.float64), 1e-12)


@pytest.mark.proves("attention-rollout", "attention-grad", "raw-attention", says="attention to oneself moves nothing")
def test_one_block_of_attention_to_oneself_moves_nothing() -> None:
    class Self(Attention):
        def forward(self, x: Tensor) -> Tensor:
            wish = torch.full((x.shape[1], x.shape[1]), -1e9, dtype=x.dtype).fill_diagonal_(0.0)
            weights = wish.expand(len(x), 1, -1, -1).softmax(dim=-1)
            return self.proj((weights @ x[:, None])[:, 0])

    with torch.random.fork_rng(devices=[]):
        model = TinyViT()
        for block in model.blocks:
            block.attn = Self(16, 2, fused=False)
    model = spread(model).double().eval()
    for method in ("attention-rollout", "attention-grad", "raw-attention"):
        assert not sightline.attribute(pictures(), model, method=method, target=1).any()


@pytest.mark.proves(
    "attention-rollout",
    "attention-grad",
    "raw-attention",
    says="where the class token attends to one patch, the map is on that patch",
)
@pytest.mark.parametrize("place", [0, 6, 11])
def test_where_the_class_token_attends_to_one_patch_every_map_is_on_that_patch(place: int) -> None:
    class To(Attention):
        def forward(self, x: Tensor) -> Tensor:
            wish = torch.full((x.shape[1], x.shape[1]), -1e9, dtype=x.dtype)
            wish[:, 1 + place] = 0
            weights = wish.expand(len(x), 1, -1, -1).softmax(dim=-1)
            return self.proj((weights @ x[:, None])[:, 0])

    with torch.random.fork_rng(devices=[]):
        model = TinyViT(depth=1)
        model.blocks[0].attn = To(16, 2, fused=False)
    model = spread(model).double().eval()
    for method in ("attention-rollout", "raw-attention"):
        found = sightline.attribute(pictures(1), model, method=method, target=1).flatten()
        assert found[place] > 0.4
        assert found.sum() == found[place]
    maps = [
        sightline.attribute(pictures(1), model, method="attention-grad", target=k).flatten() for k in range(CLASSES)
    ]
    assert any(bool(one.any()) for one in maps)
    for one in maps:
        assert one.sum() == one[place]


# ------------------------------------------------------------------------------------------------------------- options


def test_rollouts_options_change_it_as_they_say() -> None:
    model, x = tiny_vit(), pictures(1)
    plain = sightline.attribute(x, model, method="attention-rollout")
    same = sightline.attribute(x, model, method="attention-rollout", options={"heads": "mean", "discard": 0.0})
    assert torch.equal(plain, same)
    for options in ({"heads": "max"}, {"heads": "min"}, {"discard": 0.5}):
        assert not torch.allclose(
            sightline.attribute(x, model, method="attention-rollout", options=options), plain, rtol=0.01
        )
    only = sightline.attribute(x, model, method="attention-rollout", options={"discard": 0.999})
    assert int((only > 1e-12).sum()) < int((plain > 1e-12).sum())


@pytest.mark.proves("raw-attention")
def test_raw_attention_is_one_row_of_one_head() -> None:
    model, x = tiny_vit(), pictures()
    _, attentions, _ = exposed(model, x)
    found = sightline.attribute(x, model, method="raw-attention", options={"block": 1, "head": 0})
    assert_close(found, attentions[1][:, 0, 0, 1:].reshape(2, 3, 4), 1e-12)
    mean = sightline.attribute(x, model, method="raw-attention")
    assert_close(mean, attentions[2][:, :, 0, 1:].mean(dim=1).reshape(2, 3, 4), 1e-12)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("raw-attention", {"block": 3}, "this model has 3, 0 to 2"),
        ("raw-attention", {"block": -4}, "this model has 3"),
        ("raw-attention", {"head": 2}, "this model has 2, 0 to 1"),
        ("raw-attention", {"head": -2}, "this model has 2"),
        ("attention-rollout", {"heads": "median"}, "expected one of mean, max, min"),
        ("attention-rollout", {"discard": 1.0}, "expected a share from 0 up to"),
        ("attention-rollout", {"discard": -0.1}, "expected a share from 0 up to"),
        ("attention-rollout", {"samples": 3}, "no option 'samples'"),
        ("le-grad", {"layers": 2}, "no option 'layers'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(method: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        sightline.attribute(pictures(), tiny_vit(), method=method, options=options)


# ---------------------------------------------------------------------------------------------------- nothing is left


@pytest.mark.parametrize("method", METHODS)
def test_after_an_error_all_is_as_it_was(method: str) -> None:
    import timm

    with torch.random.fork_rng(devices=[]):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, depth=2, img_size=64).eval()
    x = pictures(2, (64, 64)).float()
    sightline.attribute(x, model, method=method, target=1)
    sdpa, softmax = F.scaled_dot_product_attention, F.softmax

    def broken(_output: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with assert_untouched(model, x), pytest.raises(KeyboardInterrupt):
        sightline.attribute(x, model, method=method, target=broken)
    assert F.scaled_dot_product_attention is sdpa
    assert F.softmax is softmax
    assert all(block.attn.fused_attn for block in model.blocks)
    assert torch.is_grad_enabled()


def test_other_threads_keep_their_fused_attention() -> None:
    """A forward of the user's own, while another thread looks at the same model, is not touched."""
    model, x = tiny_vit(fused=True), pictures()
    wanted = model(x)
    stop = threading.Event()
    wrong: list[Any] = []

    def ordinary() -> None:
        while not stop.is_set():
            with torch.inference_mode():
                if not torch.equal(model(x), wanted):
                    wrong.append("another output")

    user = threading.Thread(target=ordinary)
    user.start()
    maps = {method: sightline.attribute(x, model, method=method, target=1) for method in METHODS}
    threads = [
        threading.Thread(
            target=lambda method=method: (
                wrong.append(method)
                if not torch.equal(sightline.attribute(x, model, method=method, target=1), maps[method])
                else None
            )
        )
        for method in METHODS * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    user.join()
    assert not wrong


@pytest.mark.proves(param="method")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_mode_does_not_matter(method: str, mode: Any) -> None:
    model, x = tiny_vit(fused=True), pictures()
    wanted = sightline.attribute(x, model, method=method, target=1)
    with mode():
        assert torch.equal(sightline.attribute(x, model, method=method, target=1), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_other_types_say_the_same(method: str, dtype: torch.dtype) -> None:
    model, x = tiny_vit(fused=True), pictures()
    wanted = sightline.attribute(x, model, method=method, target=1)
    found = sightline.attribute(x.to(dtype), model.to(dtype), method=method, target=1)
    assert found.dtype == dtype
    assert_close(found, wanted, 1e-4 if dtype == torch.float32 else 0.2)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("method", METHODS)
def test_a_convolutional_network_has_no_attention(method: str) -> None:
    with pytest.raises(MethodError, match=r"Plain computes no attention.*These work here: grad-cam"):
        sightline.attribute(images(2), seeded(Plain), method=method, target=TINY - 1)


def refused(name: str, **settings: Any) -> str:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **settings).eval()
    with pytest.raises(MethodError) as caught:
        sightline.attribute(torch.rand(1, 3, 224, 224), model, method="attention-rollout")
    return str(caught.value)


def test_windows_are_refused_with_their_size_and_place() -> None:
    said = refused("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    assert "attends within windows (49 tokens each at 'layers.0.blocks.0.attn')" in said or "softmax" in said
    assert "These work here: grad-cam" in said


def test_attention_of_one_query_to_all_is_refused() -> None:
    assert "1 tokens attend to 197 others" in refused("cait_xxs24_224", depth=2)


def test_attention_computed_without_torchs_softmax_is_refused() -> None:
    class Own(Attention):
        def forward(self, x: Tensor) -> Tensor:
            weights = (x @ x.mT).exp()
            return self.proj(weights / weights.sum(-1, keepdim=True) @ x)

    with torch.random.fork_rng(devices=[]):
        model = TinyViT()
        for block in model.blocks:
            block.attn = Own(16, 2, fused=False)
    with pytest.raises(MethodError, match="none that goes through torch's softmax"):
        sightline.attribute(pictures(), spread(model).double(), method="attention-grad", target=1)


def test_a_model_that_cuts_the_graph_between_its_blocks_is_refused() -> None:
    class Cut(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    with torch.random.fork_rng(devices=[]):
        model = TinyViT()
        model.blocks[2] = Cut(16, 2, fused=False)
    model = spread(model).double().eval()
    with pytest.raises(ModelError, match=r"does not depend on the attention of 'blocks.0.attn'"):
        sightline.attribute(pictures(), model, method="attention-grad", target=1)


def test_a_score_without_a_gradient_is_refused_where_one_is_needed() -> None:
    def cut(output: Tensor) -> Tensor:
        return output.detach()[:, 0]

    model = tiny_vit()
    for method in ("attention-grad", "le-grad"):
        with pytest.raises(TargetError, match="gradient"):
            sightline.attribute(pictures(), model, method=method, target=cut)
    assert sightline.attribute(pictures(), model, method="attention-rollout", target=cut).any()


def test_not_a_number_is_said_with_its_stage() -> None:
    model, x = tiny_vit(), pictures()
    sightline.attribute(x, model, method="attention-grad", target=1)
    x[1, 0, 0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="in the input for image 1 of 2"):
        sightline.attribute(x, model, method="attention-grad", target=1)


def test_a_target_of_no_class_works() -> None:
    model, x = tiny_vit(), pictures(1)
    for method in ("attention-grad", "le-grad"):
        margin = sightline.attribute(x, model, method=method, target=sightline.margin(1, 2))
        assert margin.shape == (1, 3, 4)
    adapter = adapt(model)
    seen = attend(adapter, x, "attention-gradients", lambda _: [Asked(sightline.probability(1), 1, "one")])
    assert seen.scores is not None
    assert 0 < float(seen.scores[0]) < 1


def test_a_method_from_outside_takes_an_attention_capture() -> None:
    from sightline.methods.registry import Method

    def strongest(capture: sightline.AttentionCapture) -> Tensor:
        """Per place, the most that any token attends to it."""
        return capture.to_grid(torch.stack([one.amax(dim=(1, 2)) for one in capture.probabilities]).amax(dim=0))

    own = Method("strongest", strongest, needs="attention", class_specific=False, unit="own")
    assert sightline.attribute(pictures(), tiny_vit(), method=own).shape == (2, 3, 4)


@pytest.mark.parametrize("method", METHODS)
def test_methods_can_be_combined_over_noise_and_flips(method: str) -> None:
    model, x = tiny_vit(fused=True), pictures(1)
    flips = sightline.attribute(x, model, method=sightline.combine(method, "flips"), target=1)
    both = [sightline.attribute(one, model, method=method, target=1) for one in (x, x.flip(3))]
    assert_close(flips, (both[0] + both[1].flip(2)) / 2, 1e-10)
    noisy = sightline.attribute(x, model, method=sightline.combine(method, "noise", samples=3), target=1)
    assert noisy.shape == (1, 3, 4)
