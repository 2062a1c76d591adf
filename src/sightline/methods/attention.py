"""Maps out of a transformer's attentions, over all its blocks.

A = probabilities of one attention (B, heads, T, T), G = gradient of a score with respect to them, E = mean over heads.
Row i of A says where token i takes its content from. The score reads the class token, or the mean of the patches; that row,
or the mean of those rows, is the map, without tokens that are no places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.engine.attention import AttentionCapture
from sightline.errors import MethodError
from sightline.methods.gradient_cams import at_least_single
from sightline.methods.registry import method

_HEADS = {
    "mean": lambda a: a.mean(dim=1),
    "max": lambda a: a.amax(dim=1),
    "min": lambda a: a.amin(dim=1),
}


def _warn(capture: AttentionCapture) -> None:
    if bool(capture.to_grid(capture.read).any()):
        capture.notes.append(
            "this model reads its patches, and not a class token alone: they reach the answer without being attended to, so that maps "
            "of attention can miss what decides; grad-cam is the better start here"
        )


def _read(capture: AttentionCapture) -> Tensor:
    """What the score reads, (B, 1, T), to be multiplied with one block after the other, from the last to the first."""
    _warn(capture)
    like = at_least_single(capture.probabilities[0])
    return capture.read.to(like)[:, None]


@method(
    "attention-rollout",
    needs="attention",
    class_specific=False,
    unit="own",
    reference="Abnar and Zuidema 2020, arXiv:2005.00928, eq. 1",
)
def attention_rollout(capture: AttentionCapture, *, heads: str = "mean", discard: float = 0.0) -> Tensor:
    """Where the class token, or the mean of all patches, took its content from, followed through all blocks.

    Formula: product over blocks of (0.5 E[A] + 0.5 I), rows divided by their sum, the last block on the left; its row of what
    the score reads. Each row sums to 1.

    Args:
        heads: how heads become one: mean, max or min.
        discard: share of the weakest attentions of each block that are dropped; never those of a token to itself.

    Differs: nothing is discarded unless asked for; vit-explain drops 90 % and divides columns instead of rows then.
    """
    if heads not in _HEADS:
        raise MethodError(f"option heads is {heads!r}; expected one of {', '.join(_HEADS)}")
    if not 0 <= discard < 1:
        raise MethodError(f"option discard is {discard!r}; expected a share from 0 up to, but not including, 1")
    row = _read(capture)
    for one in reversed(capture.probabilities):
        mixed = _HEADS[heads](at_least_single(one))
        if discard:
            itself = torch.eye(mixed.shape[1], dtype=torch.bool, device=mixed.device)
            least = mixed.flatten(1).sort(dim=1).values[:, int(discard * mixed[0].numel())]
            mixed = torch.where((mixed >= least[:, None, None]) | itself, mixed, 0)
        row = row / (0.5 * mixed.sum(dim=2)[:, None] + 0.5)
        row = 0.5 * (row @ mixed) + 0.5 * row
    return capture.to_grid(row[:, 0])


@method(
    "attention-grad",
    needs="attention-gradients",
    unit="own",
    reference="Chefer et al. 2021, arXiv:2103.15679, eq. 5 and 6",
)
def attention_grad(capture: AttentionCapture) -> Tensor:
    """Where the score's evidence came from: attention counts where it raised the score, followed through all blocks.

    Formula: R = I; for each block R = R + E[ReLU(G * A)] R; the row of R - I of what the score reads.

    Differs: the identity that R starts from is taken off the result. For a class token that changes nothing; for a model that
    reads the mean of its patches it would put the same constant on every place.
    """
    start = _read(capture)
    row = torch.zeros_like(start)  # what it starts from stays apart, for small gradients would be lost beside it
    for a, g in zip(reversed(capture.probabilities), reversed(capture.gradients or ()), strict=True):
        raised = (at_least_single(g) * at_least_single(a)).relu_().mean(dim=1)
        row = torch.baddbmm(row, start + row, raised)
    return capture.to_grid(row[:, 0])


@method(
    "le-grad",
    needs="block-gradients",
    unit="own",
    reference="Bousselham et al. 2024, arXiv:2404.03214; WalBouss/LeGrad",
)
def le_grad(capture: AttentionCapture) -> Tensor:
    """Which patches each block would have to attend to more, for its own content to speak more for the class.

    Formula: of each block the mean of its tokens gets a score from the model's own end (norm, pooling, classifier); G is that
    score's gradient with respect to the block's own attention; map = mean over blocks, heads and queries of ReLU(G).

    Differs: all blocks count; the authors' code takes the last two unless told otherwise, and its demonstrations more. The mean
    over blocks, as in torch-cam; the authors add them. Nothing is stretched to 0..1.
    """
    _warn(capture)
    maps = [at_least_single(g).relu().mean(dim=(1, 2)) for g in capture.gradients or ()]
    return capture.to_grid(torch.stack(maps).mean(dim=0))


@method(
    "raw-attention",
    needs="attention",
    class_specific=False,
    unit="own",
    reference="Vaswani et al. 2017, arXiv:1706.03762, eq. 1: the softmax",
)
def raw_attention(capture: AttentionCapture, *, block: int = -1, head: int = -1) -> Tensor:
    """What one head of one block attends to: a look into the model, not an explanation of what it says.

    Formula: the row of A of what the score reads.

    Args:
        block: which attention, counted from 0, or from the end with -1 for the last.
        head: which head, counted from 0; the mean of all heads with -1.
    """
    blocks, heads = len(capture.probabilities), capture.probabilities[0].shape[1]
    if not -blocks <= block < blocks:
        raise MethodError(f"option block is {block}; this model has {blocks}, 0 to {blocks - 1}, or -1 for the last")
    if not -1 <= head < heads:
        raise MethodError(f"option head is {head}; this model has {heads}, 0 to {heads - 1}, or -1 for their mean")
    a = at_least_single(capture.probabilities[block])
    capture.where.append(capture.layers[block])
    which = "mean of all heads" if head == -1 else f"head {head} of {heads}"
    capture.notes.append(
        f"raw attention of {capture.layers[block]}, {which}: where tokens looked, which need not have raised any score"
    )
    return capture.to_grid((_read(capture) @ (a.mean(dim=1) if head == -1 else a[:, head]))[:, 0])
