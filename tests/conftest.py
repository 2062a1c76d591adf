"""What every test can lean on: tiny seeded models, an independent way to A and G, and `assert_untouched`."""

from __future__ import annotations

import copy
import ctypes
import gc
import hashlib
import os
import random
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from made_transformers import Block as TransformerBlock
from oracles import ORACLES

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 5
CTRL_C = signal.getsignal(signal.SIGINT)

# On tensors this small a second thread costs more than it gives: eight times, on a busy machine of two cores.
torch.set_num_threads(1)
# The processes that tests start, too: beside a second worker, the threads of one wait in a loop for each other.
os.environ["OMP_NUM_THREADS"] = "1"


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the network; a folder whose tests need the loopback overrides this fixture in its own conftest."""

    def guarded(name: str) -> Callable[..., Any]:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family != getattr(socket, "AF_UNIX", None):
                pytest.fail(f"a test connects to {address!r}; tests must not use the network")
            return original(self, address)

        return connect

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(name))


@pytest.fixture(autouse=True)
def ctrl_c_is_pytests() -> Iterator[None]:
    """A command that ran in this process took Ctrl-C with it: its process would have ended there."""
    yield
    if signal.getsignal(signal.SIGINT) is not CTRL_C:
        signal.signal(signal.SIGINT, CTRL_C)


@pytest.fixture(scope="module", autouse=True)
def memory_given_back() -> Iterator[None]:
    """Weights of one file's models leave holes that glibc would keep: several GB after all files."""
    yield
    gc.collect()
    gc.freeze()  # modules that were imported meanwhile
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """The million objects of tests and modules stay to the end: collections of garbage need not look at them, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is never looked at would be reported as a leak


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The pictures shared between checkouts, which are too large to keep in the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared pictures are not there: {folder}")
    return folder


# -------------------------------------------------------------------------------------------------------------- models


class Plain(nn.Module):
    """conv - relu - conv - relu - global average - linear. Layers: relu1 (8 x 8), relu2 (8 x 8)."""

    layer = "relu2"

    def __init__(self, channels: int = 3, inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.relu1 = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.relu2 = nn.ReLU(inplace)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.head(self.pool(x).flatten(1))


class Block(nn.Module):
    """A residual block; in place it adds with `+=`, as torchvision's does."""

    def __init__(self, channels: int, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.last = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        if self.inplace:
            out += x
        else:
            out = out + x
        return self.last(out)


class Residual(nn.Module):
    """Two residual blocks; `inplace=False` is the functional twin with the same weights."""

    layer = "block2"

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace)
        self.block1 = Block(6, inplace)
        self.block2 = Block(6, inplace)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.relu(self.norm(self.stem(x)))))
        return self.head(x.mean(dim=(2, 3)))


class Dense(nn.Module):
    """A dense block: every convolution sees all that came before, through torch.cat."""

    layer = "norm"

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.inplace = inplace
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        second = self.conv1(first.relu())
        third = self.conv2(torch.cat([first, second], dim=1).relu())
        x = F.relu(self.norm(torch.cat([first, second, third], dim=1)), inplace=self.inplace)
        return self.head(x.mean(dim=(2, 3)))


class Regularised(nn.Module):
    """BatchNorm, Dropout2d, Dropout and a functional dropout: everything that training mode changes."""

    layer = "relu2"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.drop1 = nn.Dropout2d(0.5)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU(inplace=True)
        self.drop2 = nn.Dropout(0.5)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.norm1(self.conv1(x)).relu())
        x = self.drop2(self.relu2(self.norm2(self.conv2(x))))
        return self.head(F.dropout(x, 0.5, self.training).square().mean(dim=(2, 3)))


class Wrapping(nn.Module):
    """A convolution that returns its grid as a tensor, tuple, list, named tuple, dict or view."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Any:
        grid = self.conv(x)
        batch, _, h, w = grid.shape
        if self.kind == "view":
            return grid.flatten(2)[:, :8].view(batch, 8, h, w)
        if self.kind == "slice":
            return torch.cat([grid, grid], dim=1)[:, :8]
        if self.kind == "transposed":
            return grid.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        if self.kind == "dict":
            return {"size": grid.flatten(1).norm(dim=1), "grid": grid}
        if self.kind == "tuple":
            return grid, grid.flatten(1).norm(dim=1)
        if self.kind == "list":
            return [grid, None]
        if self.kind == "named tuple":
            return torch.return_types.max((grid, torch.zeros(1, dtype=torch.long)))
        return grid


class Wrapped(nn.Module):
    """A layer that returns something else than a tensor, and an in-place change right behind it."""

    layer = "wrapping"

    def __init__(self, kind: str = "tensor") -> None:
        super().__init__()
        self.wrapping = Wrapping(kind)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = self.wrapping(x)
        grid = out["grid"] if isinstance(out, dict) else out if isinstance(out, Tensor) else out[0]
        if grid._is_view():
            return self.head(grid.mul(2).relu().square().mean(dim=(2, 3)))
        return self.head(grid.mul_(2).relu_().square().mean(dim=(2, 3)))


class Flat(nn.Module):
    """conv - relu - flatten - linear, for inputs of one size."""

    layer = "relu"

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(6 * (size // 2) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).flatten(1))


class Echo(nn.Module):
    """Its layer says exactly what is fed in, and d score / d layer is exactly a row of its weight."""

    layer = "echo"

    def __init__(self, channels: int = 6, h: int = 5, w: int = 4, classes: int = CLASSES) -> None:
        super().__init__()
        self.echo = nn.Identity()
        self.head = nn.Linear(channels * h * w, classes)
        self.grid = (channels, h, w)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.echo(x).flatten(1))

    def gradient(self, index: int) -> Tensor:
        """d logit / d layer, (C, h, w)."""
        return self.head.weight.detach()[index].reshape(self.grid)


class Grey(Plain):
    """One channel in."""

    def __init__(self) -> None:
        super().__init__(channels=1)


class Spectral(Plain):
    """Thirteen channels in, as satellites have."""

    def __init__(self) -> None:
        super().__init__(channels=13)


class Tokens(nn.Module):
    """A small vision transformer that reads its class token, 8 x 8 patches."""

    layer = "blocks.1.norm1"

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 2, stride=2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 65, 8) * 0.2)
        self.blocks = nn.Sequential(TransformerBlock(8, 2, fused=True), TransformerBlock(8, 2, fused=True))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])

    @staticmethod
    def to_grid(output: Tensor) -> Tensor:
        """What users of other libraries write by hand."""
        return output[:, 1:].reshape(len(output), 8, 8, -1).permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """Works on (B, h, w, C), as Swin does."""

    layer = "norm"

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 2, stride=2)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU())
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.mlp(self.patch_embed(x).permute(0, 2, 3, 1))).square().mean(dim=(1, 2)))

    @staticmethod
    def to_grid(output: Tensor) -> Tensor:
        """Channels to the front."""
        return output.permute(0, 3, 1, 2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "dense": Dense,
    "regularised": Regularised,
    "tuple": lambda: Wrapped("tuple"),
    "dict": lambda: Wrapped("dict"),
    "view": lambda: Wrapped("view"),
    "flat": Flat,
    "grey": Grey,
    "spectral": Spectral,
    "tokens": Tokens,
    "channels last": ChannelsLast,
}


def cheap(method: str) -> dict[str, Any]:
    """Options with which a method asks as little as it can, where what it computes is not the point."""
    import sightline

    few = {"samples": 16, "steps": 2, "segments": 4}
    return {name: value for name, value in few.items() if name in sightline.list_methods()[method].options}


def seeded(build: Callable[[], nn.Module], seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """The model in evaluation mode with reproducible weights and running statistics; global random state unchanged."""
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` also writes down where it was called from, for devices that are not there: 3 ms a call.
        torch.default_generator.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.normal_(module.weight, mean=1.0, std=0.2)
                nn.init.normal_(module.bias, std=0.3)
    return model.to(dtype).eval()


def images(
    batch: int = 2, channels: int = 3, size: int = 16, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Reproducible inputs (B, C, size, size), different from each other."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def channels_of(model: nn.Module) -> int:
    """How many channels the first convolution takes."""
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


# ------------------------------------------------------------------------------------------------ independent reference


def by_autograd(
    model: nn.Module, layer: str, x: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(A, G, scores) with nothing but autograd over the whole model, on a deep copy; for models without in-place changes.

    The layer's output must be one tensor. `score` takes the model's output to one score an image.
    """
    model = copy.deepcopy(model).eval()
    kept: list[Tensor] = []
    versions: list[int] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        kept.append(output)
        versions.append(output._version)

    model.get_submodule(layer).register_forward_hook(keep)
    with torch.inference_mode(False), torch.enable_grad():
        scores = score(model(x.detach().clone().requires_grad_()))
        (gradients,) = torch.autograd.grad(scores.sum(), kept[0])
    assert kept[0]._version == versions[0], "the layer's output was changed in place; take the functional twin"
    to_grid = getattr(model, "to_grid", lambda output: output)
    return to_grid(kept[0].detach()), to_grid(gradients.detach()), scores.detach()


def by_oracle(method: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """The maps (B, h, w) of a batch by the slow reference, float64."""
    pairs = zip(activations.double().numpy(), gradients.double().numpy(), strict=True)
    return torch.from_numpy(np.stack([ORACLES[method](a, g) for a, g in pairs]))


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    """Equal up to `tolerance` of the largest value; and not both empty, which would prove nothing."""
    assert found.shape == wanted.shape
    found, wanted = found.detach().double(), wanted.detach().double()
    assert wanted.abs().max() > 0, "the wanted map is empty, so that this comparison would prove nothing"
    difference = float((found - wanted).abs().max())
    assert difference <= tolerance * float(wanted.abs().max()), (
        f"differs by {difference:.3g} of {wanted.abs().max():.3g}"
    )


# ------------------------------------------------------------------------------------------------------------ no trace


def _bytes(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def _tensor_state(tensor: Tensor) -> dict[str, Any]:
    return {
        "identity": id(tensor),
        "bytes": _bytes(tensor),
        "layout": (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr()),
        "version": None if tensor.is_inference() else tensor._version,
        "requires_grad": tensor.requires_grad,
        "grad": id(tensor.grad) if tensor.is_leaf else None,
        "grad bytes": _bytes(tensor.grad) if tensor.is_leaf and tensor.grad is not None else None,
        "hooks": list(tensor._backward_hooks or ()),
    }


def _hooks(owner: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in owner.items() if "_hooks" in name and isinstance(value, dict)}
    return {name: [(key, id(value)) for key, value in hooks.items()] for name, hooks in found.items()}


def _module_state(module: nn.Module) -> dict[str, Any]:
    return {
        "identity": id(module),
        "type": type(module),
        "training": module.training,
        "attributes": {name: id(value) for name, value in module.__dict__.items() if name != "training"},
        "children": [(name, id(child)) for name, child in module._modules.items()],
        "parameters": [(name, id(one)) for name, one in module._parameters.items()],
        "buffers": [(name, id(one)) for name, one in module._buffers.items()],
        "hooks": _hooks(module.__dict__),
    }


def _global_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": [
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")
        ],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "torch random": _bytes(torch.get_rng_state()),
        "python random": random.getstate(),
        "numpy random": (kind, hashlib.sha256(keys.tobytes()).hexdigest(), *rest),
        "global hooks": _hooks(vars(torch_module)),
    }


def trace(model: nn.Module, x: Tensor | None = None) -> dict[str, Any]:
    """Everything about the model, the process and the input that a library must leave as it was."""
    state = {f"process: {name}": value for name, value in _global_state().items()}
    for name, module in model.named_modules(remove_duplicate=False):
        state |= {f"module {name!r}: {key}": value for key, value in _module_state(module).items()}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        state |= {f"tensor {name!r}: {key}": value for key, value in _tensor_state(tensor).items()}
    if x is not None:
        state |= {f"input: {key}": value for key, value in _tensor_state(x).items()}
    return state


@contextmanager
def assert_untouched(model: nn.Module, x: Tensor | None = None) -> Iterator[None]:
    """Model, process and input are bit-identical afterwards, whether the block returns, raises or is interrupted."""
    before = trace(model, x)
    try:
        yield
    finally:
        after = trace(model, x)
        changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
        shown = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in sorted(changed)]
        assert not changed, "left a trace:\n" + "\n".join(shown)


def live_tensors() -> int:
    """How many tensors exist now."""
    gc.collect()
    return sum(issubclass(type(one), Tensor) for one in gc.get_objects())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, or a skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=program, args=flags)
        yield found
        found.close()
