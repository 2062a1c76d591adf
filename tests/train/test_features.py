"""Features: exactly what the head would be fed, in a file that a stop at any byte leaves fit to go on with."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import Regularised, Residual, assert_close, assert_untouched, seeded
from sightline.errors import NonFiniteError
from sightline.models.adapter import Adapter
from sightline.models.preprocess import standard
from sightline.train.features import features
from sightline.train.folders import Example
from sightline.train.network import Network, with_new_head

SIZE = 4  # pictures in a batch; 64 are written at once


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """So many that the last batch gets the single picture that is left: 129 = 2 * 64 + 1."""
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for number in range(129):
        path = folder / f"{number:03}.png"
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8)).save(path)
        made.append(Example(f"train/{path.name}", path, number % 2, f"{number}"))
    return made


def small(build: Callable[[], nn.Module] = Residual) -> Network:
    """A network of which 129 pictures cost nothing."""
    take = standard((16, 16), (16, 16), fit="exact", mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4))
    return Network(Adapter("small", seeded(build), preprocess=take), "timm:small", "head", True)


def fed_to_the_head(network: Network, examples: list[Example], mirrored: bool = False) -> Tensor:
    """The same one picture after the other, by a hook on a copy in evaluation mode."""
    module, seen = copy.deepcopy(network.module).eval(), []
    module.get_submodule(network.head).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for one in examples:
            x = network.adapter.preprocess(Image.open(one.path).convert("RGB"))[0][None]  # type: ignore[misc]
            module(x.flip(-1) if mirrored else x)
    return torch.cat(seen)


@pytest.mark.parametrize("mirrored", [False, True], ids=["as they are", "mirrored"])
@pytest.mark.parametrize(
    "name",
    [
        *("timm:test_resnet", "timm:test_vit"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("timm:test_nfnet", "timm:test_convnext", "timm:test_mambaout", "timm:test_coatnet"),
                *("torchvision:mobilenet_v3_small", "torchvision:swin_t", "timm:caformer_s18", "torchvision:alexnet"),
            )
        ),
    ],
)
def test_the_file_holds_what_the_head_is_fed(
    name: str, mirrored: bool, pictures: list[Example], tmp_path: Path
) -> None:
    network = with_new_head(name, ("a", "b"), random_weights=True)
    assert network.whole
    network.module.train()
    found = features(network, pictures[:5], tmp_path / "f", 2, mirrored)
    wanted = fed_to_the_head(network, pictures[:5], mirrored)
    assert (found.dtype, found.shape) == (np.float32, (5, network.width))
    assert_close(torch.from_numpy(np.array(found)), wanted, 1e-5)
    assert (tmp_path / "f").read_bytes() == np.asarray(found, "<f4").tobytes()


@pytest.mark.parametrize("mirrored", [False, True], ids=["as they are", "mirrored"])
def test_every_row_is_that_of_its_picture(mirrored: bool, pictures: list[Example], tmp_path: Path) -> None:
    network = small()
    found = features(network, pictures, tmp_path / "f", SIZE, mirrored)
    assert_close(torch.from_numpy(np.array(found)), fed_to_the_head(network, pictures, mirrored), 1e-6)


def cuts(whole: int, width: int) -> list[int]:
    """Where a run may be stopped: at edges, in the middle of rows, and anywhere."""
    row, chunk = 4 * width, 4 * width * 16 * SIZE
    edges = [
        0,
        1,
        row - 1,
        row,
        chunk - 1,
        chunk,
        chunk + 1,
        2 * chunk - row,
        2 * chunk,
        2 * chunk + 1,
        whole - 1,
        whole,
    ]
    rng = random.Random(0)
    return [*edges, whole + 3, *(rng.randrange(whole) for _ in range(3))]


@pytest.mark.parametrize("count", [129, 64, 5, 1])
def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes(
    count: int, pictures: list[Example], tmp_path: Path
) -> None:
    network, file = small(), tmp_path / "f"
    features(network, pictures[:count], file, SIZE)
    whole = file.read_bytes()
    assert len(whole) == count * 4 * network.width
    for cut in cuts(len(whole), network.width):
        file.write_bytes((whole + b"more")[: max(cut, 0)])
        found = features(network, pictures[:count], file, SIZE)
        assert file.read_bytes() == whole, f"stopped after {cut} of {len(whole)} bytes"
        assert found.tobytes() == whole


def test_what_is_done_is_not_computed_again(pictures: list[Example], tmp_path: Path) -> None:
    network, file = small(), tmp_path / "f"
    told: list[int] = []
    features(network, pictures, file, SIZE, watch=told.append)
    assert told == [*range(4, 125, 4), 129]
    told.clear()
    features(network, pictures, file, SIZE, watch=told.append)
    assert told == []
    with file.open("r+b") as opened:
        opened.truncate(100 * 4 * network.width)
    features(network, pictures, file, SIZE, watch=told.append)
    assert told == [*range(68, 125, 4), 129]


def test_an_interruption_keeps_what_was_written(pictures: list[Example], tmp_path: Path) -> None:
    network, file = small(), tmp_path / "f"
    whole = features(network, pictures, tmp_path / "whole", SIZE).tobytes()

    def stop(done: int) -> None:
        if done == 100:
            raise KeyboardInterrupt

    with assert_untouched(network.module), pytest.raises(KeyboardInterrupt):
        features(network, pictures, file, SIZE, watch=stop)
    assert file.read_bytes() == whole[: 64 * 4 * network.width]
    assert features(network, pictures, file, SIZE).tobytes() == whole


class Bright(nn.Module):
    """NaN for a picture without a dark pixel, infinity for one without a bright one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        darkest, brightest = x.amin(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))
        return self.head(torch.stack([(-darkest).sqrt(), brightest.clamp_min(0).log()], dim=1))


@pytest.mark.parametrize("colour", [255, 0])
@pytest.mark.parametrize(("at", "written"), [(0, 0), (3, 0), (66, 64), (128, 64)])
def test_nan_and_infinity_name_the_picture(
    colour: int, at: int, written: int, pictures: list[Example], tmp_path: Path
) -> None:
    Image.new("RGB", (18, 24), (colour,) * 3).save(tmp_path / "bad.png")
    given = list(pictures)
    given[at] = Example("train/bad.png", tmp_path / "bad.png", 0, "bad")
    network = small(Bright)
    with assert_untouched(network.module), pytest.raises(NonFiniteError, match=r"train/bad\.png"):
        features(network, given, tmp_path / "f", SIZE)
    assert (tmp_path / "f").stat().st_size == written * 4 * 2
    with pytest.raises(NonFiniteError, match=r"train/bad\.png"):  # also where it goes on
        features(network, given, tmp_path / "f", SIZE)


@pytest.mark.parametrize("build", [Residual, Regularised])
def test_the_model_is_left_as_it_is_in_training_mode_with_some_of_it_in_evaluation_mode(
    build: Callable[[], nn.Module], pictures: list[Example], tmp_path: Path
) -> None:
    network = small(build)
    wanted = fed_to_the_head(network, pictures[:6]) if build is Residual else None
    network.module.train()
    next(one for one in network.module.modules() if isinstance(one, nn.BatchNorm2d)).eval()
    with assert_untouched(network.module):
        found = features(network, pictures[:6], tmp_path / "f", SIZE)
    if wanted is not None:
        assert_close(torch.from_numpy(np.array(found)), wanted, 1e-6)
