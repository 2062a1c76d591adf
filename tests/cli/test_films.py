"""`sightline explain --film`: a film and a network of torchvision's for films, from a file or a folder to pictures and words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import models

import sightline
from commands import Run
from conftest import assert_close
from sightline.errors import MethodError, ModelError, WeightsError
from sightline.models import load as loading
from sightline.models.adapter import Adapter
from sightline.models.torchvision import film_names, frames_of

RANDOM = ("--model", "torchvision:r3d_18", "--random-weights")


def drawn(count: int, size: tuple[int, int] = (160, 120)) -> list[Image.Image]:
    made = np.random.default_rng(0)
    return [Image.fromarray(made.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> Adapter:
    return sightline.load_model("torchvision:r3d_18", random_weights=True)


@pytest.fixture
def films(cli: Run, network: Adapter, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, with the network of films loaded already."""
    before = loading.load_model

    def quick(model: Any = "bundled", **options: Any) -> Adapter:
        return network if model == "torchvision:r3d_18" and not options["preprocess"] else before(model, **options)

    monkeypatch.setattr(loading, "load_model", quick)
    return cli


@pytest.fixture
def film(tmp_path: Path) -> Path:
    (tmp_path / "clip").mkdir()
    for at, one in enumerate(drawn(20)):
        one.save(tmp_path / "clip" / f"{at:03}.png")
    return tmp_path / "clip"


def test_a_film_is_explained_from_a_folder_of_its_frames(films: Run, film: Path) -> None:
    result = films("explain", film, "--film", *RANDOM)
    assert (result.code, result.err) == (0, "")
    assert f"{film} (16 of 20 frames: 1, 2, 4," in result.out
    assert "grad-cam for" in result.out
    assert "strongest in frame" in result.out
    assert "(layer layer4, 2x7x7)" in result.out
    assert "random weights: the model has learnt nothing" in result.out
    kept = {one.name for one in Path("sightline-out/clip").iterdir()}
    assert {"strip.png", "slices.png", "film.gif", "map.npy", "manifest.json", "overlay-16.png"} <= kept
    again = films("explain", film, "--film", *RANDOM)
    assert again.code == 2
    assert "--force" in again.err
    (line,) = films("explain", film, "--film", *RANDOM, "--force", "--json", "--layer", "layer2", "--target", "5").lines
    assert line["folder"] == "sightline-out/clip"
    assert line["grid"] == [8, 28, 28]
    assert line["target"]["index"] == 5


def test_several_films_go_on_past_a_broken_one(films: Run, film: Path) -> None:
    first, *rest = drawn(18)
    first.save("good.gif", save_all=True, append_images=rest, duration=40)
    Path("broken.gif").write_bytes(Path("good.gif").read_bytes()[:40])
    result = films("explain", "broken.gif", "good.gif", film, "--film", *RANDOM)
    assert result.code == 1
    assert "failed: broken.gif" in result.err
    assert "1 of 3 films failed; the others are done" in result.err
    assert {one.name for one in Path("sightline-out").iterdir()} == {"good", "clip"}
    (line,) = films("explain", "broken.gif", "--film", *RANDOM, "--json").lines
    assert line["image"] == "broken.gif"
    assert line["error"]


def test_ctrl_c_leaves_nothing_half_written(films: Run, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupt)
    result = films("explain", film, "--film", *RANDOM)
    assert result.code == 130
    assert "stopped before the first film was done; nothing was written" in result.err
    assert not list(Path("sightline-out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--film", "--tiles", *RANDOM), "--film takes no --tiles; leave that out"),
        (("--film", "--trust", "--contrast", "1", *RANDOM), "--film takes no --contrast and no --trust"),
        (("--film", "--target", "1", "--target", "2", *RANDOM), "--film shows one target at one layer"),
        (("--film",), "bundled takes one picture"),
        (RANDOM, "takes films or volumes of 16 frames, and this is for photographs: sightline explain --film"),
        (("--film", *RANDOM, "--method", "lime"), "these methods can: "),
        (("--film", *RANDOM, "--preprocess", "size=64"), "can't be changed in parts (size)"),
        (("--film", "--model", "torchvision:r3d18", "--random-weights"), "Did you mean 'r3d_18'"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_does_not_go_together_is_said(films: Run, film: Path, arguments: tuple[str, ...], said: str) -> None:
    result = films("explain", film, *arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_what_is_for_photographs_refuses_a_model_of_films(cli: Run, film: Path) -> None:
    for command in (
        ("compare",),
        ("concepts",),
        ("evaluate", "-o", "evaluated"),
        ("batch", "-o", "run"),
        ("train", "-o", "trained"),
    ):
        photos = film.parent if command[0] == "train" else film
        result = cli(command[0], photos, *command[1:], *RANDOM)
        assert result.code == 2, command
        assert "unexpected" not in result.err
    from sightline.app.serve import load

    with pytest.raises(ModelError, match="the app shows photographs: sightline explain --film"):
        load(["torchvision:r3d_18"], random_weights=True)


# ------------------------------------------------------------------------------------------------------------ the models


def test_every_classifier_of_films_is_listed(cli: Run) -> None:
    assert set(film_names()) == set(models.list_models(module=models.video))
    listed = cli("models", "torchvision").out
    assert all(f"torchvision:{name}" in listed for name in film_names())


@pytest.mark.parametrize("name", film_names())
def test_as_many_frames_are_taken_as_the_official_weights_were_tested_with(name: str) -> None:
    assert f"clip_len={frames_of(name)}`" in models.get_model_weights(name).DEFAULT.meta["_docs"]


@pytest.mark.parametrize("name", ["r3d_18", pytest.param("mvit_v2_s", marks=pytest.mark.slow)])
def test_the_input_is_torchvisions_own(name: str) -> None:
    adapter = sightline.load_model(f"torchvision:{name}", random_weights=True)
    record = models.get_model_weights(name).DEFAULT
    assert adapter.frames == frames_of(name)
    assert adapter.labels == tuple(record.meta["categories"])
    shots = drawn(3)
    film = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in shots])
    assert adapter.preprocess is not None
    pairs = [adapter.preprocess(one) for one in shots]
    assert_close(torch.stack([x for x, _ in pairs], dim=1), record.transforms()(film), 1e-6)
    assert pairs[0][1].input == tuple(reversed(record.transforms().crop_size))


def test_weights_of_ones_own_give_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.video.r3d_18(weights=None, num_classes=7).eval()
    torch.save(module.state_dict(), tmp_path / "mine.pth")
    adapter = sightline.load_model("torchvision:r3d_18", weights=tmp_path / "mine.pth", labels=list("abcdefg"))
    x: Tensor = torch.randn(1, 3, 16, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(adapter.module(x), module(x), 1e-5)
    found = sightline.explain_frames(drawn(4), adapter, target="c")
    assert found.maps[0].label == "c"
    (tmp_path / "broken.pth").write_bytes((tmp_path / "mine.pth").read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"broken\.pth"):
        sightline.load_model("torchvision:r3d_18", weights=tmp_path / "broken.pth")


def test_official_weights_that_cannot_be_had_say_what_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(ModelError, match=r"weights of torchvision:r3d_18 can't be had .* --random-weights"):
        sightline.load_model("torchvision:r3d_18")


def test_a_function_of_films_is_explained_as_a_black_box() -> None:
    def brightness(x: Tensor) -> Tensor:
        """How bright the corner of the third of eight frames is, and how bright all is."""
        return torch.stack([x[:, 0, 2, :16, :16].mean(dim=(1, 2)), x.mean(dim=(1, 2, 3, 4))], dim=1)

    def read(picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(picture.resize((32, 32)))).permute(2, 0, 1).float() / 255

    adapter = sightline.adapt(brightness, preprocess=read, frames=8, labels=["corner", "all"])
    with pytest.raises(MethodError, match=r"these methods work: occlusion, rise$"):
        sightline.explain_frames(drawn(8), adapter, method="grad-cam")
    found = sightline.explain_frames(drawn(8), adapter, target="corner", options={"patch": 4, "stride": 4})
    assert found.raw.shape == (8, 8, 8)
    assert "the boxes that cover it are 1 of 8 slices deep, and one begins every 1" in found.maps[0].warnings
    heat = np.abs(found.raw).sum(axis=(1, 2))
    assert heat[2] > 0
    assert heat[[0, 1, 3, 4, 5, 6, 7]].sum() == 0
    assert np.abs(found.raw[2, :4, :4]).sum() == heat[2]
    assert json.loads(json.dumps(found.maps[0].record()))["method"] == "occlusion"


def test_random_weights_are_the_same_each_time(cli: Run, film: Path) -> None:
    asked = (
        "explain",
        film / "000.png",
        "--model",
        "timm:mobilenetv3_small_050",
        "--random-weights",
        "--force",
        "--json",
    )
    (one,), (other,) = cli(*asked).lines, cli(*asked).lines
    assert one["predictions"] == other["predictions"]
    assert one["maps"][0]["evidence"] == other["maps"][0]["evidence"]
