"""A tiny vision transformer and what its attentions say, by plain autograd over arithmetic written out a second time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5


class Attention(nn.Module):
    """Multi-head self-attention, written out or by PyTorch's fused function."""

    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.fused = fused
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        shape = (batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * (dim // self.num_heads) ** -0.5).softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """Pre-norm: attention, then two dense layers, each added to what came in."""

    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, fused)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """Tokens are [class token,] registers, patches; `pool` says what the head reads: the class token or the patches' mean.

    `norm_last` puts the final norm behind the pooling, as timm does where it averages.
    """

    def __init__(
        self,
        size: tuple[int, int] = (24, 32),
        *,
        patch: int = 8,
        class_token: bool = True,
        registers: int = 0,
        pool: str = "token",
        norm_last: bool = False,
        fused: bool = False,
        dim: int = 16,
        depth: int = 3,
        heads: int = 2,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        if pool not in ("token", "avg") or (pool == "token" and not class_token):
            raise ValueError(f"no such model: pool={pool!r}, class_token={class_token}")
        self.grid = (size[0] // patch, size[1] // patch)
        self.pool = pool
        self.prefix = int(class_token) + registers
        self.patch_embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + self.grid[0] * self.grid[1], dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, fused) for _ in range(depth)))
        self.norm = nn.Identity() if norm_last else nn.LayerNorm(dim)
        self.fc_norm = nn.LayerNorm(dim) if norm_last else nn.Identity()
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        before = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = self.norm(self.blocks(torch.cat([*before, patches], dim=1) + self.pos_embed))
        pooled = x[:, 0] if self.pool == "token" else x[:, self.prefix :].mean(dim=1)
        return self.head(self.fc_norm(pooled))

    @property
    def columns(self) -> range:
        """The tokens of the patches."""
        return range(self.prefix, self.prefix + self.grid[0] * self.grid[1])

    @property
    def rows(self) -> range:
        """The tokens that the head reads."""
        return range(1) if self.pool == "token" else self.columns


def pictures(batch: int = 2, size: tuple[int, int] = (24, 32), seed: int = 1) -> Tensor:
    """Reproducible inputs of noise, in double precision."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny_vit(seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> TinyViT:
    """In evaluation mode, with weights that make attention far from uniform; global random state unchanged."""
    with torch.random.fork_rng(devices=[]):
        model = TinyViT(**options)
    return spread(model, seed).to(dtype).eval()


def spread(model: nn.Module, seed: int = 0) -> Any:
    """Draws every parameter anew: matrices so that no gain is lost, gains round 1, the rest small. Returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                gain = "norm" in name or "ln" in name
                parameter.copy_(0.2 * noise + (1 if gain and name.endswith("weight") else 0))
            else:
                fan = parameter[0].numel() if parameter.shape[0] > 1 else 1
                parameter.copy_(1.2 * noise * fan**-0.5)
    return model


# ---------------------------------------------------------------------------------------- the same arithmetic once more


@dataclass
class Seen:
    """What the oracles take: over layers (B, heads, T, T)."""

    attentions: list[Tensor]
    gradients: list[Tensor]  # d logit / d attention, through the whole network
    own_gradients: list[Tensor]  # d (the model's end on the mean of this block's tokens) / d attention
    rows: Sequence[int]
    columns: Sequence[int]
    grid: tuple[int, int]


def exposed(
    model: TinyViT, x: Tensor, replaced: dict[int, Tensor] | None = None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(logits, attentions, the logits of each block's mean token); `replaced` puts other attentions in, by layer."""
    weights = dict(model.named_parameters())

    def norm(tokens: Tensor, name: str) -> Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(tokens: Tensor, name: str) -> Tensor:
        return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def end(tokens: Tensor) -> Tensor:
        if "norm.weight" in weights:
            tokens = norm(tokens, "norm")
        read = tokens[:, list(model.rows)].mean(dim=1)
        return dense(norm(read, "fc_norm") if "fc_norm.weight" in weights else read, "head")

    kernel = weights["patch_embed.weight"]
    side = kernel.shape[-1]
    cut = x.unfold(2, side, side).unfold(3, side, side)  # (B, 3, h, w, side, side)
    tokens = torch.einsum("bchwyx,dcyx->bhwd", cut, kernel).flatten(1, 2) + weights["patch_embed.bias"]
    for name in ("reg_token", "cls_token"):
        if name in weights:
            tokens = torch.cat([weights[name].repeat(len(x), 1, 1), tokens], dim=1)
    tokens = tokens + weights["pos_embed"]

    attentions, ends = [], []
    for index in range(len(model.blocks)):
        name = f"blocks.{index}"
        heads = model.blocks[index].attn.num_heads
        into = dense(norm(tokens, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = (torch.stack(part.chunk(heads, dim=-1), dim=1) for part in into.chunk(3, dim=-1))
        weight = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
        weight = weight.exp() / weight.exp().sum(-1, keepdim=True)
        attentions.append((replaced or {}).get(index, weight))
        mixed = torch.einsum("bhij,bhjd->bhid", attentions[-1], v)
        tokens = tokens + dense(torch.cat(mixed.unbind(1), dim=-1), f"{name}.attn.proj")
        hidden = dense(norm(tokens, f"{name}.norm2"), f"{name}.mlp.0")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        tokens = tokens + dense(hidden, f"{name}.mlp.2")
        ends.append(end(tokens.mean(dim=1, keepdim=True).expand_as(tokens)))
    return end(tokens), attentions, ends


def seen(model: TinyViT, x: Tensor, targets: Sequence[int]) -> Seen:
    """Attentions and both kinds of gradients of each image's own class."""
    with torch.enable_grad():
        logits, attentions, ends = exposed(model, x.detach().clone().requires_grad_())
        return _seen(logits, attentions, ends, targets, model.rows, model.columns, model.grid)


def seen_in_timm(model: Any, x: Tensor, targets: Sequence[int]) -> Seen:
    """The same of timm's VisionTransformer, whose attentions pass through `attn_drop` where they aren't fused."""
    attentions: list[Tensor] = []
    blocks: list[Tensor] = []
    handles = []
    fused = [block.attn.fused_attn for block in model.blocks]
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: attentions.append(out)))
        handles.append(block.register_forward_hook(lambda _m, _i, out: blocks.append(out)))
    try:
        with torch.enable_grad():
            logits = model(x.detach().clone().requires_grad_())
            means = [tokens.mean(dim=1, keepdim=True).expand_as(tokens) for tokens in blocks]
            ends = [model.forward_head(model.norm(tokens)) for tokens in means]
            prefix, grid = model.num_prefix_tokens, model.patch_embed.grid_size
            columns = range(prefix, prefix + grid[0] * grid[1])
            rows = range(1) if model.global_pool == "token" else columns
            return _seen(logits, attentions, ends, targets, rows, columns, grid)
    finally:
        for handle in handles:
            handle.remove()
        for block, was in zip(model.blocks, fused, strict=True):
            block.attn.fused_attn = was


def _seen(
    logits: Tensor,
    attentions: list[Tensor],
    ends: list[Tensor],
    targets: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    grid: tuple[int, int],
) -> Seen:
    def asked(scores: Tensor) -> Tensor:
        return torch.stack([scores[at, target] for at, target in enumerate(targets)]).sum()

    whole = torch.autograd.grad(asked(logits), attentions, retain_graph=True)
    own = [
        torch.autograd.grad(asked(scores), attention, retain_graph=True)[0]
        for scores, attention in zip(ends, attentions, strict=True)
    ]
    return Seen([one.detach() for one in attentions], list(whole), own, rows, columns, grid)
