"""Models of one channel and of many: what they take, what a person is shown, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

import sightline
from sightline.data.images import read_bands
from sightline.errors import ImageError, MissingExtraError, ModelError
from sightline.models.bands import bands_of, shown

BANDS = ("blue", "green", "red", "nir")


def reads_nir(count: int = 4, of: int = 3) -> nn.Module:
    """Class 0 is how much there is of one band, in cells of 4 x 4 pixels; class 1 is 0."""
    pick = nn.Conv2d(count, 1, 1, bias=False)
    pick.weight.data.zero_()
    pick.weight.data[0, of] = 1.0
    head = nn.Linear(1, 2)
    head.weight.data, head.bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    return nn.Sequential(
        nn.Sequential(pick, nn.ReLU(), nn.AvgPool2d(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    ).eval()


@pytest.fixture
def scene() -> np.ndarray[Any, Any]:
    """48 x 64 counts of four bands with one bright block of nir, in the cell of row 5 and column 9."""
    rng = np.random.default_rng(0)
    found = rng.integers(300, 900, (48, 64, 4)).astype(np.uint16)
    found[20:24, 36:40, 3] = 9000
    return found


def model(**more: Any) -> Any:
    settings: dict[str, Any] = {
        "display": ("nir", "red", "green"),
        "size": (64, 48),
        "mean": (500, 600, 700, 900),
        "std": 500.0,
    }
    return sightline.adapt(reads_nir(), layers=["0"], preprocess=sightline.bands(BANDS, **{**settings, **more}))


def test_the_block_of_one_band_is_found_and_the_bands_that_are_shown_are_named(scene: Any) -> None:
    found = sightline.explain(scene, model(), target=0)
    assert found.peak == (38, 22)
    assert found.raw.shape == (12, 16)
    (said,) = [one for one in found.warnings if one.startswith("shown as")]
    assert said.startswith("shown as red, green and blue: nir ")
    assert "from the 2nd to the 98th percentile" in said
    assert "values as they are" in said


def test_the_model_gets_every_band_as_it_is_less_the_mean_and_over_the_deviation(scene: Any) -> None:
    x, view = model().preprocess(scene)
    expected = (scene.astype(np.float64) - [500, 600, 700, 900]) / 500
    np.testing.assert_allclose(x.permute(1, 2, 0).numpy(), expected, rtol=1e-6)
    assert (view.photo, view.input, view.offset) == ((64, 48), (64, 48), (0, 0))


def test_what_is_shown_runs_from_the_second_to_the_98th_percentile_and_says_how_much_lies_beyond() -> None:
    values = np.arange(10_000, dtype=np.float32).reshape(100, 100, 1)
    photo, note = shown(values, bands_of(sightline.bands(("depth",))))  # type: ignore[arg-type]
    grey = np.asarray(photo)[..., 0].ravel()
    assert (np.asarray(photo) == np.asarray(photo)[..., :1]).all()
    assert np.flatnonzero(grey == 0)[-1] in range(200, 225)
    assert np.flatnonzero(grey == 255)[0] in range(9770, 9801)
    assert note.startswith(
        "shown in grey: depth 200 to 9799, from the 2nd to the 98th percentile; 4 % of the pixels lie beyond"
    )


def test_a_band_that_is_the_same_everywhere_is_shown_mid_grey() -> None:
    photo, _ = shown(np.full((8, 8, 1), 7.0), bands_of(sightline.bands(("depth",))))  # type: ignore[arg-type]
    assert photo.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("names", "display", "expected"),
    [
        (BANDS, None, ("red", "green", "blue")),
        (("a", "b", "c", "d"), None, ("a", "b", "c")),
        (("a", "b"), None, ("a",)),
        (BANDS, "nir", ("nir",)),
    ],
)
def test_bands_are_chosen_for_display(names: Any, display: Any, expected: Any) -> None:
    found = bands_of(sightline.bands(names, display=display))
    assert found is not None
    assert found.display == expected


@pytest.mark.parametrize("kind", ["npy", "planes.tif", "pixels.tif", "pages.tif", "deflate.tif"])
def test_files_give_what_the_array_gives(tmp_path: Path, scene: Any, kind: str) -> None:
    file = tmp_path / f"scene.{kind}"
    if kind == "npy":
        np.save(file, scene)
    elif kind == "pixels.tif":
        tifffile.imwrite(file, scene, photometric="minisblack", planarconfig="contig")
    elif kind == "pages.tif":
        with tifffile.TiffWriter(file) as writer:
            for at in range(4):
                writer.write(scene[..., at], photometric="minisblack", contiguous=True)
    else:
        planes = np.ascontiguousarray(scene.transpose(2, 0, 1))
        compression = "zlib" if kind.startswith("deflate") else None
        tifffile.imwrite(file, planes, photometric="minisblack", planarconfig="separate", compression=compression)
    values, meta = read_bands(file)
    assert (values == scene).all()
    assert (meta["name"], meta["size"]) == (str(file), (64, 48))
    found = sightline.explain(file, model(), target=0)
    assert (found.raw == sightline.explain(scene, model(), target=0).raw).all()


@pytest.mark.parametrize(
    ("fit", "size", "seen"), [("exact", (32, 32), 1.0), ("shorter", (32, 32), 0.75), ("longer", (64, 64), 1.0)]
)
def test_arrays_of_another_size_are_fitted_and_the_map_is_laid_back(
    scene: Any, fit: Any, size: Any, seen: float
) -> None:
    found = sightline.explain(scene, model(fit=fit, size=size), target=0)
    assert found.view.seen_share() == pytest.approx(seen, abs=0.02)
    x, y = found.peak
    assert abs(x - 38) <= 8
    assert abs(y - 22) <= 8


def test_arrays_are_taken_as_large_as_they_are_without_a_size(scene: Any) -> None:
    assert sightline.explain(scene[:40, :44], model(size=None), target=0).raw.shape == (10, 11)


@pytest.mark.parametrize("method", ["occlusion", "integrated-gradients", "score-cam", "saliency", "lime", "rise"])
def test_methods_of_all_kinds_work_on_many_bands(scene: Any, method: str) -> None:
    few = {"rise": {"samples": 20}, "lime": {"samples": 30, "segments": 12}}.get(method, {})
    found = sightline.explain(scene, model(), target=0, method=method, options=few)
    assert np.isfinite(found.raw).all()
    if method != "rise":
        assert abs(found.peak[0] - 38) < 12


def test_a_result_is_drawn_and_saved(scene: Any, tmp_path: Path) -> None:
    found = sightline.explain(scene, model(), target=0)
    found.save(tmp_path / "why")
    assert (tmp_path / "why" / "panel.png").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda scene: scene[..., :3], r"array has 3 bands; expected \(H, W, 4\): blue, green, red, nir"),
        (lambda scene: scene.transpose(2, 0, 1), "it looks bands-first"),
        (lambda scene: scene[..., 0], r"expected \(H, W, 4\)"),
        (lambda scene: np.where(scene > 8999, np.nan, scene), r"NaN or infinity in nir \(16 pixels\)"),
        (lambda scene: scene.astype(object), "holds object, which are no real numbers"),
        (lambda scene: scene.astype(complex), "no real numbers"),
        (lambda scene: scene[None], "has the shape"),
        (lambda scene: scene[:0], "has the shape"),
        (lambda scene: Image.new("RGB", (8, 8)), "Image holds no bands"),
    ],
)
def test_what_holds_other_things_than_these_bands_is_refused(scene: Any, change: Any, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        sightline.explain(change(scene), model())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"display": ("nir", "red", "gren")},
            r"no band 'gren' to display\. .*green.* There are: blue, green, red, nir",
        ),
        ({"display": ("nir", "red")}, "display names 2 bands"),
        ({"mean": (1, 2)}, "one for each of blue, green, red, nir"),
        ({"std": 0}, "above 0"),
        ({"size": 64}, r"\(width, height\)"),
        ({"fit": "tight"}, "exact, shorter or longer"),
        ({"names": ("a", "a")}, "two bands are called 'a'"),
        ({"names": "rgb"}, "expected a name for each channel"),
    ],
)
def test_settings_that_fit_nothing_are_refused(settings: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        sightline.bands(**{"names": BANDS, **settings})


def test_hostile_files_are_refused_by_name(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6, 4)})
    long = b"\x93NUMPY\x02\x00" + (10**6).to_bytes(4, "little") + b"{" + b" " * 10**6
    structured = io.BytesIO()
    np.save(structured, np.zeros((4, 4), [("a", "f4")]))
    good = io.BytesIO()
    np.save(good, np.zeros((4, 4, 4), np.float32))
    cases = [
        (file("pickled.npy", pickled.getvalue()), "no real numbers"),
        (file("huge.npy", header.getvalue()), "values; the limit is"),
        (file("long.npy", long), "no .npy file that can be read"),
        (file("structured.npy", structured.getvalue()), "no real numbers"),
        (file("cut.npy", good.getvalue()[:-10]), "is broken"),
        (file("empty.npy", b""), "no .npy file"),
        (file("text.tif", b"hello"), "no TIFF that can be read"),
        (file("photo.jpg", b""), "bands are read from .npy, .tif and .tiff"),
        (tmp_path / "none.npy", "no such file"),
        (tmp_path, "ends in nothing"),
    ]
    for path, says in cases:
        with pytest.raises(ImageError, match=says):
            sightline.explain(path, model())


@pytest.mark.parametrize("kind", ["npy", "tif"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers that overflow are read as they are
def test_files_with_bytes_changed_are_read_or_refused_and_nothing_else(tmp_path: Path, scene: Any, kind: str) -> None:
    file = tmp_path / f"scene.{kind}"
    np.save(file, scene[:8, :8]) if kind == "npy" else tifffile.imwrite(
        file, scene[:8, :8], photometric="minisblack", planarconfig="contig", compression="zlib"
    )
    whole = file.read_bytes()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 600), rng.integers(1, 6)):
            changed[at] = rng.integers(0, 256)
        file.write_bytes(bytes(changed[: rng.integers(1, len(changed) + 1)] if rng.random() < 0.2 else changed))
        try:
            read_bands(file, max_values=100_000)
        except ImageError:
            refused += 1
    assert refused > 20


def test_a_tiff_that_grows_without_end_or_is_compressed_in_other_ways_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scene.tif"
    values = np.zeros((16, 16, 4), np.uint8)
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig", compression="zlib")
    with tifffile.TiffFile(file) as opened:
        at, count = opened.pages[0].dataoffsets[0], opened.pages[0].tags["StripByteCounts"]
        place = count.valueoffset
    packed = zlib.compress(bytes(50_000_000))
    whole = bytearray(file.read_bytes()[:at]) + packed
    whole[place : place + 4] = len(packed).to_bytes(4, "little")
    file.write_bytes(bytes(whole))
    with pytest.raises(ImageError, match="more than the whole picture"):
        read_bands(file)
    Image.fromarray(values[..., 0]).save(file, compression="tiff_lzw")
    with pytest.raises(ImageError, match="compressed with LZW, which is not read"):
        read_bands(file)


def test_a_tiff_whose_header_declares_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "large.tif"
    tifffile.imwrite(file, np.zeros((64, 64, 4), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ImageError, match="the limit is 1,000"):
        read_bands(file, max_values=1000)


def test_without_the_extra_a_tiff_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "scene.tif", scene, photometric="minisblack", planarconfig="contig")
    real = importlib.util.find_spec
    monkeypatch.setattr("sightline._optional.find_spec", lambda name: None if name == "tifffile" else real(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[bands\]'"):
        sightline.explain(tmp_path / "scene.tif", model())


def test_a_photograph_is_no_baseline_of_bands(scene: Any) -> None:
    with pytest.raises(ImageError, match="As a baseline give numbers"):
        sightline.explain(scene, model(), method="occlusion", options={"baseline": "black"})


def test_a_model_of_one_channel_explains_a_photograph_in_grey() -> None:
    grey = transforms.Compose([transforms.Grayscale(), transforms.Resize((32, 32)), transforms.ToTensor()])
    one = sightline.adapt(reads_nir(1, 0), preprocess=grey, layers=["0"])
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[16:24, 60:72] = 255
    for photo in (pixels, pixels[..., 0], Image.fromarray(pixels).convert("L")):
        found = sightline.explain(photo, one, target=0)
        assert found.origin is not None
        assert found.origin.x.shape == (1, 1, 32, 32)
        assert (found.peak[0] // 12, found.peak[1] // 8) == (5, 2)
        assert found.photo.size == (96, 64)
        for method in ("saliency", "occlusion", "score-cam"):
            assert np.isfinite(sightline.explain(photo, one, target=0, method=method).raw).all()
