"""A batch of pictures becomes rows, whatever its neighbours do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sightline
from made_batches import LABELS, PREPROCESS, Tiny, make_pictures, tiny
from sightline.batch.decode import Failure, Picture, Task, read_picture
from sightline.batch.work import LABEL, PREDICTED, TOP3, Ask, Fitting, rows_of
from sightline.methods.registry import find
from sightline.metrics.measure import check_metrics
from sightline.models.adapter import Adapter
from sightline.models.view import View

GONE = Failure("read", "ImageError", "gone")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight of noise, and one that is white."""
    folder = make_pictures(tmp_path_factory.mktemp("data"), 8)
    Image.new("RGB", (64, 48), "white").save(folder / "white.png")
    return sorted(folder.rglob("*.*g"))


def read(path: Path, preprocess: Any = PREPROCESS) -> Picture:
    x, view, meta, thumbnail = read_picture("files", "/", Task(str(path), -1, 1), preprocess)
    assert view is not None
    return Picture(x, view, meta["notes"], thumbnail)


@pytest.fixture(scope="module")
def pictures(photos: list[Path]) -> list[Picture]:
    return [read(one) for one in photos]


def rows(
    pictures: Sequence[Picture | Failure], adapter: Adapter | None = None, *methods: str, fitting: Fitting | None = None,
    labels: Sequence[str | None] = (), **how: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    ids = [str(place) for place in range(len(pictures))]
    chosen = tuple(find(one) for one in methods or ["grad-cam"])
    ask = Ask(adapter or tiny(), chosen, **how)
    return rows_of(pictures, ids, labels or [None] * len(ids), ask, fitting or Fitting(len(ids)))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal to the bit."""
    assert one.keys() == other.keys()
    return str(plain(one)) == str(plain(other))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value.tobytes() if isinstance(value, np.ndarray) else value


def close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal up to how a batch of another size rounds."""
    assert one["id"] == other["id"]
    for mine, theirs in zip(one["maps"], other["maps"], strict=True):
        for name in ("heat", "scale", "evidence", "score"):
            np.testing.assert_allclose(np.float32(mine[name]), np.float32(theirs[name]), rtol=2e-3, atol=1e-3)


# --------------------------------------------------------------------------------------------- one picture that fails


@pytest.mark.parametrize("method", ["grad-cam", "integrated-gradients", "occlusion"])
def test_a_picture_that_makes_the_model_fail_leaves_its_neighbours_as_they_are(
    method: str, pictures: list[Picture]
) -> None:
    options = {method: {"steps": 4} if method == "integrated-gradients" else {"stride": 16, "patch": 16}} if method != "grad-cam" else {}  # fmt: skip
    found = rows(pictures, tiny(blind=True), method, options=options)
    wanted = rows([*pictures[:8], GONE], tiny(), method, options=options)
    assert all(same(*pair) for pair in zip(found[:8], wanted[:8], strict=True))
    assert (found[8]["stage"], found[8]["error"]) == ("model", "NonFiniteError")
    assert "for image" not in found[8]["message"]  # it is told of alone
    assert "maps" not in found[8]


class Picky(Tiny):
    """Raises for a picture that is nearly white."""

    def forward(self, x: Tensor) -> Tensor:
        if (x.mean(dim=(1, 2, 3)) > 1.9).any():
            raise IndexError("too white")
        return super().forward(x)


def test_a_picture_that_makes_the_model_raise_leaves_its_neighbours_as_they_are(pictures: list[Picture]) -> None:
    model = sightline.adapt(with_weights(Picky()), layers=["conv2"], preprocess=PREPROCESS, labels=LABELS, name="tiny")
    found, wanted = rows(pictures, model), rows([*pictures[:8], GONE])
    assert all(same(*pair) for pair in zip(found[:8], wanted[:8], strict=True))
    assert (found[8]["stage"], found[8]["error"]) == ("model", "ModelError")
    assert "too white" in found[8]["message"]
    assert "(1, 3, 32, 32)" in found[8]["message"]


def with_weights(module: Tiny) -> Tiny:
    module.load_state_dict(tiny().module.state_dict())
    return module.eval()


def test_a_black_box_that_gives_nan_for_one_picture_gives_the_others(pictures: list[Picture]) -> None:
    module = tiny(blind=True).module
    with torch.no_grad():
        adapter = sightline.adapt(lambda x: module(x), preprocess=PREPROCESS, labels=LABELS)
        found = rows(pictures, adapter, "occlusion", options={"occlusion": {"patch": 16, "stride": 16}})
    assert [one.get("error") for one in found] == [None] * 8 + ["NonFiniteError"]


def test_where_all_fail_every_row_says_why(pictures: list[Picture]) -> None:
    found = rows([pictures[8]] * 3, tiny(blind=True))
    assert [one["error"] for one in found] == ["NonFiniteError"] * 3
    assert [one["error"] for one in rows([GONE, GONE])] == ["ImageError"] * 2


def test_places_that_could_not_be_read_change_nothing(pictures: list[Picture]) -> None:
    wanted = rows(pictures)
    for lost in ({0}, {3}, {8}, {0, 1, 2, 3, 4, 5, 6, 7}):
        found = rows([GONE if place in lost else one for place, one in enumerate(pictures)])
        for place, one in enumerate(found):
            assert one["error"] == "ImageError" if place in lost else same(one, wanted[place])


# ------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_where_memory_runs_out_the_batch_is_halved_and_later_grows_again(
    failure: type[Exception], pictures: list[Picture], tmp_path: Path
) -> None:
    heard, fitting = tmp_path / "heard", Fitting(8)
    small = tiny(fits=2, failure=failure, listen=str(heard))
    for found in (rows(pictures[:8], small, fitting=fitting), rows(pictures[:8], small, fitting=fitting)):
        assert [one["id"] for one in found] == [str(place) for place in range(8)]
        for one, wanted in zip(found, rows(pictures[:8]), strict=True):
            close(one, wanted)
    assert heard.read_text().split() == ["8", "4", *["2"] * 8]
    assert fitting.size == 2
    assert fitting.patience == 64  # twice as long each time, so that what fails is not tried again and again
    large = tiny()
    for _ in range(60):
        rows(pictures[:8], large, fitting=fitting)
    assert fitting.size == 8


def test_a_picture_that_is_too_large_alone_is_a_row(pictures: list[Picture]) -> None:
    class Glutton(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            if (x.mean(dim=(1, 2, 3)) > 1.9).any():
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(x)

    model = sightline.adapt(with_weights(Glutton()), layers=["conv2"], preprocess=PREPROCESS, labels=LABELS)
    found = rows([pictures[8], *pictures[:8]], model)
    assert [one.get("error") for one in found] == ["OutOfMemory", *[None] * 8]
    for one, wanted in zip(found[1:], rows([GONE, *pictures[:8]])[1:], strict=True):
        close(one, wanted)


# ----------------------------------------------------------------------------------------------------- what is asked


def test_targets_are_what_was_asked_for(pictures: list[Picture]) -> None:
    said = [[one["label"] for one in row["predictions"]] for row in rows(pictures)]
    assert [[one["label"] for one in row["maps"]] for row in rows(pictures, targets=PREDICTED)] == [
        each[:1] for each in said
    ]
    assert [[one["label"] for one in row["maps"]] for row in rows(pictures, targets=TOP3)] == [
        each[:3] for each in said
    ]
    assert {row["maps"][0]["label"] for row in rows(pictures, targets="cedar")} == {"cedar"}
    assert {row["maps"][0]["target"] for row in rows(pictures, targets=3)} == {3}
    labels = ["elm", "oak", None, *["ash"] * 6]
    found = rows(pictures, targets=LABEL, labels=labels)
    assert [one["maps"][0]["label"] for one in found if "maps" in one] == ["elm", *["ash"] * 6]
    assert [(one["stage"], one["error"]) for one in found[1:3]] == [("target", "TargetError")] * 2
    assert "oak" in found[1]["message"]
    assert "no label" in found[2]["message"]


@pytest.mark.parametrize("method", ["grad-cam", "saliency", "occlusion"])
def test_rows_agree_with_explain(method: str, photos: list[Path], pictures: list[Picture]) -> None:
    options = {"patch": 16, "stride": 8} if method == "occlusion" else {}
    found = rows(pictures, None, method, options={method: options}, targets="beech")
    for photo, row in list(zip(photos, found, strict=True))[::4]:
        wanted = sightline.explain(photo, tiny(), method=method, target="beech", options=options)
        (heat,) = row["maps"]
        raw = np.float32(heat["heat"]).reshape(heat["height"], heat["width"]) * heat["scale"]
        np.testing.assert_allclose(raw, wanted.raw, atol=2e-3 * np.abs(wanted.raw).max())
        assert (heat["peak_x"], heat["peak_y"]) == wanted.peak
        assert (heat["layer"], heat["label"]) == (wanted.layer, wanted.label)
        assert tuple(heat["notices"]) == wanted.warnings
        np.testing.assert_allclose([heat["score"], heat["probability"]], [wanted.score, wanted.probability], rtol=1e-5)


def test_maps_of_many_pixels_are_kept_as_means(tmp_path: Path) -> None:
    (photo,) = make_pictures(tmp_path, 1, size=(256, 192)).rglob("*.jpg")
    preprocess = sightline.models.preprocess.standard(
        (128, 192), (128, 192), fit="exact", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    (row,) = rows([read(photo, preprocess)], tiny(preprocess), "saliency", targets=0)
    wanted = sightline.explain(photo, tiny(preprocess), method="saliency", target=0)
    (heat,) = row["maps"]
    assert (heat["height"], heat["width"]) == (64, 64)
    means = wanted.raw.reshape(64, 3, 64, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(np.float32(heat["heat"]).reshape(64, 64) * heat["scale"], means, atol=2e-3 * means.max())
    assert "stored as means, 64x64 of 192x128" in heat["notices"]
    assert (heat["peak_x"], heat["peak_y"]) == wanted.peak


def test_several_methods_and_metrics(pictures: list[Picture]) -> None:
    metrics = tuple(check_metrics(["sparseness", "average-drop"], {}))
    found = rows(pictures[:3], None, "grad-cam", "eigen-cam", metrics=metrics)
    for row in found:
        assert [one["method"] for one in row["maps"]] == ["grad-cam", "eigen-cam"]
        assert {name for one in row["maps"] for name in one["metrics"]} == {"sparseness", "average-drop"}
    alone = rows(pictures[1:2], None, "grad-cam", "eigen-cam", metrics=metrics)
    for one, other in zip(found[1]["maps"], alone[0]["maps"], strict=True):
        for name, value in one["metrics"].items():
            assert value is None or value == pytest.approx(other["metrics"][name], rel=1e-3)
            # The map of eigen-cam is empty here.
            assert (value is None) == (one["method"] == "eigen-cam")
            assert any(said.startswith(f"{name} has no value") for said in one["notices"]) == (value is None)


# ------------------------------------------------------------------------------------------- pictures of several sizes


def half(image: Image.Image) -> tuple[Tensor, View]:
    """A function without a size of its own."""
    size = image.width // 2, image.height // 2
    pixels = torch.from_numpy(np.array(image.resize(size))).permute(2, 0, 1).float() / 255
    return pixels, View(photo=image.size, resized=size, offset=(0, 0), input=size)


def test_pictures_of_several_sizes_agree_with_explain(tmp_path: Path) -> None:
    photos = [
        next(make_pictures(tmp_path / str(number), 1, seed=number, size=size).rglob("*.jpg"))
        for number, size in enumerate([(64, 48), (48, 64), (64, 48), (80, 80)])
    ]
    given = [GONE, *(read(one, half) for one in photos)]
    found = rows(given, tiny(half), targets=2)
    assert found[0]["error"] == "ImageError"
    for photo, row in zip(photos, found[1:], strict=True):
        wanted = sightline.explain(photo, tiny(half), target=2)
        (heat,) = row["maps"]
        assert (row["width"], row["height"]) == wanted.photo.size
        raw = np.float32(heat["heat"]).reshape(heat["height"], heat["width"]) * heat["scale"]
        np.testing.assert_allclose(raw, wanted.raw, atol=2e-3 * np.abs(wanted.raw).max())
        assert (heat["peak_x"], heat["peak_y"]) == wanted.peak


def test_what_a_method_of_the_users_own_raises_is_a_row(pictures: list[Picture]) -> None:
    def mine(captured: Any, **_options: Any) -> Tensor:
        if len(captured.activations) > 1 or float(captured.input.mean()) > 1.9:
            raise KeyError("of my own")
        return captured.activations.mean(dim=1)

    found = rows_of(pictures, list("abcdefghi"), [None] * 9, Ask(tiny(), (find(mine),)), Fitting(9))
    assert [one.get("error") for one in found] == [None] * 8 + ["MethodError"]
    assert "of my own" in found[8]["message"]
