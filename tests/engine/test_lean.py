"""Linear layers that leave out rows without a gradient: the same values and gradients as torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import assert_close
from sightline.engine.lean import lean
from sightline.models.twin import twin


class Reads(nn.Module):
    """Two linear layers over tokens, of which some are read."""

    def __init__(self, read: Any, bias: bool = True) -> None:
        super().__init__()
        self.one = nn.Linear(6, 10, bias=bias)
        self.two = nn.Linear(10, 4, bias=bias)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).square())[self.read].sum(dim=-1)


READS: dict[str, Any] = {
    "one token": (slice(None), 0),
    "most tokens": (slice(None), slice(1, None)),
    "one image": (slice(0, 1),),
    "all": (slice(None),),
    "none": (slice(0, 0),),
}


def model(name: str, dtype: torch.dtype = torch.float64, bias: bool = True) -> Reads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reads(READS[name], bias).to(dtype)


def leaf(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 7, 6)) -> Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype).requires_grad_()
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", READS)
def test_values_and_gradients_are_torchs(name: str, bias: bool) -> None:
    plain, x = model(name, bias=bias), leaf()
    ours = lean(twin(plain, {}))
    wanted = plain(x)
    found = ours(x)
    assert torch.equal(found, wanted)
    (g,) = torch.autograd.grad(wanted.sum(), x, allow_unused=True)
    (h,) = torch.autograd.grad(found.sum(), x, allow_unused=True)
    assert g is not None
    assert h is not None
    assert torch.allclose(h, g, rtol=1e-13, atol=1e-15)
    assert "forward" not in plain.one.__dict__


@pytest.mark.parametrize("name", ["one token", "all"])
def test_second_derivatives_are_torchs(name: str) -> None:
    plain, x, direction = model(name), leaf(), leaf(shape=(3, 7, 6)).detach().flip(0)
    bent = []
    for one in (plain, lean(twin(plain, {}))):
        (g,) = torch.autograd.grad(one(x).square().sum(), x, create_graph=True)
        bent.append(torch.autograd.grad(g, x, direction)[0])
    assert_close(bent[1], bent[0], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_types_are_torchs_up_to_their_rounding(dtype: torch.dtype) -> None:
    plain, x = model("one token", dtype), leaf(dtype)
    (g,) = torch.autograd.grad(plain(x).sum(), x)
    (h,) = torch.autograd.grad(lean(twin(plain, {}))(x).sum(), x)
    assert h.dtype == dtype
    assert_close(h, g, 4 * torch.finfo(dtype).eps)


def test_not_a_number_passes_on() -> None:
    plain, x = model("one token"), leaf()
    (h,) = torch.autograd.grad((lean(twin(plain, {}))(x) * float("nan")).sum(), x)
    assert h[:, 0].isnan().all()
    assert not h[:, 1:].any()


def test_four_dimensions_and_two_are_as_they_were() -> None:
    linear = nn.Linear(6, 4).double()
    ours = lean(twin(linear, {}))
    for shape in ((5, 6), (2, 3, 4, 6)):
        x = leaf(shape=shape)
        wanted, found = linear(x), ours(x)
        assert torch.equal(found, wanted)
        picked = [torch.autograd.grad(one[0].sum(), x)[0] for one in (wanted, found)]
        assert_close(picked[1], picked[0], 1e-13)


def test_what_is_more_than_a_plain_linear_layer_keeps_its_forward() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    own = Own(6, 4)
    weighted = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    for one in (own, weighted):
        copy = lean(twin(one, {}))
        assert "forward" not in copy.__dict__
        x = torch.ones(2, 3, 6, requires_grad=True)
        assert torch.equal(copy(x), one(x))
