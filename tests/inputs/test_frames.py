"""Films and volumes for a person: which frames are taken, how maps are laid between them, and what is drawn and written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.video import r3d_18

import sightline
from sightline.data.images import read_frames
from sightline.errors import ImageError, MethodError, ModelError, OutputError


class Red(nn.Module):
    """Class 0 is how much red there is in cells of 2 frames and 8 x 8 pixels, class 1 is 0.2; set by hand."""

    def __init__(self) -> None:
        super().__init__()
        red = nn.Conv3d(3, 1, 1)
        red.weight.data = torch.tensor([1.0, -0.5, -0.5])[None, :, None, None, None]
        red.bias.data.zero_()
        self.features = nn.Sequential(red, nn.ReLU(), nn.AvgPool3d((2, 8, 8)))
        self.head = nn.Linear(1, 2)
        self.head.weight.data, self.head.bias.data = torch.tensor([[40.0], [0.0]]), torch.tensor([0.0, 0.2])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(x).mean(dim=(2, 3, 4)))
        return found


def take(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.resize((64, 32)))).permute(2, 0, 1).float() / 255


def model(frames: Any = 8) -> Any:
    return sightline.adapt(Red(), preprocess=take, frames=frames, layers=["features"], labels=["red", "other"])


@pytest.fixture
def film() -> np.ndarray[Any, Any]:
    """16 grey frames; in the 7th to 10th a red block in the cell of row 2 and column 5."""
    found = np.full((16, 32, 64, 3), 128, np.uint8)
    found[6:10, 16:24, 40:48] = (255, 0, 0)
    return found


def test_the_map_of_a_film_lies_on_the_block_when_and_where_it_is(film: Any) -> None:
    found = sightline.explain_frames(film, model("all"), target="red", method="hires-cam")
    assert found.raw.shape == (8, 4, 8)
    expected = np.zeros((8, 4, 8))
    expected[3:5, 2, 5] = 1
    np.testing.assert_allclose(found.raw / found.raw.max(), expected, atol=1e-6)
    assert found.peak[0] in (6, 7, 8, 9)
    assert found.maps[found.peak[0]].peak == (44, 20)
    x = torch.stack([take(Image.fromarray(one)) for one in film], dim=1)[None]
    same = sightline.attribute(x, model("all"), target="red", method="hires-cam")[0]
    np.testing.assert_array_equal(found.raw, same.numpy())


def test_frames_between_the_slices_of_the_grid_are_interpolated_linearly_on_one_scale(film: Any) -> None:
    found = sightline.explain_frames(film, model("all"), target="red")
    assert len({one.scale for one in found.maps}) == 1
    for at, one in enumerate(found.maps):
        place = min(max((at + 0.5) / 2 - 0.5, 0), 7)
        low = int(np.floor(place))
        high = min(low + 1, 7)
        expected = (1 - (place - low)) * found.raw[low] + (place - low) * found.raw[high]
        np.testing.assert_allclose(one.raw, expected, rtol=1e-6)
        assert one.image == f"array frame {at + 1} of 16"
        assert np.asarray(one.photo)[20, 44].tolist() == film[at, 20, 44].tolist()


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (8, (2, 4, 6, 8, 10, 12, 14, 16)),
        (16, tuple(range(1, 17))),
        ("all", tuple(range(1, 17))),
        (5, (2, 5, 9, 12, 15)),
        (1, (9,)),
    ],
)
def test_frames_are_evenly_chosen_and_it_is_said_which(film: Any, wanted: Any, numbers: Any) -> None:
    module = Red()
    module.features[2] = nn.AvgPool3d((1, 8, 8))
    adapter = sightline.adapt(module, preprocess=take, frames=wanted, layers=["features"])
    found = sightline.explain_frames(film, adapter)
    assert found.numbers == numbers
    assert found.label(0) == f"frame {numbers[0]} of 16"
    assert ("is not explained" in " ".join(found.maps[0].warnings)) == (len(numbers) < 16)


def test_a_film_shorter_than_the_model_takes_is_shown_several_times_and_that_is_said(film: Any) -> None:
    found = sightline.explain_frames(film[5:8], model(8))
    assert found.numbers == (1, 1, 1, 2, 2, 3, 3, 3)
    assert "the model takes 8 frames and there are 3: some are shown to it several times" in found.maps[0].warnings


def test_lists_folders_and_animated_files_give_what_the_array_gives(film: Any, tmp_path: Path) -> None:
    expected = sightline.explain_frames(film, model(8)).raw
    pictures = [Image.fromarray(one) for one in film]
    for at, one in enumerate(pictures, 1):
        (tmp_path / "folder").mkdir(exist_ok=True)
        one.save(tmp_path / "folder" / f"frame{at}.png")  # 10 after 9, and not after 1
    more = {"save_all": True, "append_images": pictures[1:], "duration": 50}
    # Frames that say which they are, because equal ones are joined to one that is shown longer.
    for at, one in enumerate(pictures):
        one.putpixel((at, 0), (0, 0, 0))
    pictures[0].save(tmp_path / "film.gif", **more)
    pictures[0].save(tmp_path / "film.webp", lossless=True, **more)
    pictures[0].save(tmp_path / "film.png", **more)
    sources = [pictures, tmp_path / "folder", tmp_path / "film.gif", str(tmp_path / "film.webp"), tmp_path / "film.png"]
    for source in sources:
        found = sightline.explain_frames(source, model(8))
        assert found.total == 16
        assert found.numbers == (2, 4, 6, 8, 10, 12, 14, 16)
        np.testing.assert_allclose(found.raw, expected, rtol=0.02, atol=1e-4)


def volume() -> np.ndarray[Any, Any]:
    """Counts with a bright body in the slices 9 to 12, rows 16 to 24 and columns 40 to 48."""
    found = np.random.default_rng(0).integers(-200, 200, (16, 32, 64)).astype(np.int16)
    found[8:12, 16:24, 40:48] = 3000
    return found


def scanner(**more: Any) -> Any:
    features = nn.Sequential(nn.AvgPool3d((2, 8, 8)), nn.Conv3d(1, 1, 1), nn.ReLU())
    features[1].weight.data.fill_(1.0)
    features[1].bias.data.fill_(-0.5)
    module = nn.Sequential(features, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(1, 1))
    module[3].weight.data.fill_(10.0)
    take = sightline.bands(("density",), mean=0, std=1000)
    return sightline.adapt(module, preprocess=take, frames="all", layers=["0"], labels=["lesion"], **more)


def test_a_volume_of_numbers_is_explained_with_the_numbers_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", volume())
    for source in (volume(), tmp_path / "scan.npy", list(volume()), volume()[..., None]):
        found = sightline.explain_frames(source, scanner())
        assert found.word == "slice"
        assert found.label(0) == "slice 1 of 16"
        assert np.unravel_index(int(found.raw.argmax()), found.raw.shape) in [(4, 2, 5), (5, 2, 5)]
        assert (found.raw > 0).sum() == 2
        assert any(one.startswith("shown in grey: density ") for one in found.maps[0].warnings)


def test_a_volume_of_grey_pictures_goes_through_the_preprocessing_of_one_slice() -> None:
    grey = np.full((16, 32, 64), 60, np.uint8)
    grey[8:12, 16:24, 40:48] = 250

    def of_slice(picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(picture.convert("L"))).float()[None] / 255

    features = nn.Sequential(nn.Conv3d(1, 1, 1), nn.ReLU(), nn.AvgPool3d((2, 8, 8)))
    module = nn.Sequential(features, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(1, 2))
    features[0].weight.data.fill_(1.0)
    features[0].bias.data.fill_(-0.5)
    module[3].weight.data = torch.tensor([[1.0], [0.0]])
    found = sightline.explain_frames(
        grey, sightline.adapt(module, preprocess=of_slice, frames=16, layers=["0"]), target=0
    )
    assert found.word == "slice"
    assert np.argwhere(found.raw > 0).tolist() == [[4, 2, 5], [5, 2, 5]]


def test_the_planes_of_a_volume_go_through_its_strongest_place_and_say_which() -> None:
    found = sightline.explain_frames(volume(), scanner())
    at, x, y = found.peak
    assert 8 <= at < 12
    assert (x // 8, y // 8) == (5, 2)
    assert found.slices().width > 700


def test_a_strip_draws_no_more_than_it_is_asked_for_and_one_frame_below_its_limit(film: Any) -> None:
    found = sightline.explain_frames(film, model(16))
    narrow, wide, all_of = found.strip(2), found.strip(), found.strip(16)
    assert narrow.width < wide.width == all_of.width
    assert wide.height < all_of.height
    assert found._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="how many frames"):
        found.strip(0)


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_a_film_is_written_whole_with_a_picture_a_frame(film: Any, tmp_path: Path, ending: str) -> None:
    found = sightline.explain_frames(film, model(8))
    path = found.film(tmp_path / "new" / f"why.{ending}", seconds=0.1)
    with Image.open(path) as opened:
        assert opened.n_frames == 8
        opened.seek(3)
        drawn = np.asarray(opened.convert("RGB"))
        assert opened.info["duration"] == 100
    with Image.open(found.film(path, seconds=0.5)) as opened:
        assert opened.n_frames == 8
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name]
    red = (drawn[..., 0] > 180) & (drawn[..., 1] < 120) & (drawn[..., 2] < 120)
    assert red.any()


def test_films_of_other_kinds_and_places_are_refused(film: Any, tmp_path: Path) -> None:
    found = sightline.explain_frames(film, model(8))
    with pytest.raises(OutputError, match=r"written as \.gif or \.webp"):
        found.film(tmp_path / "why.mp4")
    with pytest.raises(OutputError, match="how long each frame"):
        found.film(tmp_path / "why.gif", seconds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        found.film(tmp_path / "file" / "why.gif")


def test_a_folder_of_results_is_whole_and_says_how_it_came_about(film: Any, tmp_path: Path) -> None:
    found = sightline.explain_frames(film, model(8), target="red")
    folder = found.save(tmp_path / "why")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema"] == "sightline.frames/1"
    assert [one["frame"] for one in manifest["frames"]] == list(found.numbers)
    assert manifest["target"] == {"index": 0, "label": "red"}
    assert all((folder / one["file"]).exists() for one in manifest["frames"])
    assert (np.load(folder / "map.npy") == found.raw).all()
    assert {"strip.png", "slices.png", "film.gif"} <= {one.name for one in folder.iterdir()}
    with pytest.raises(OutputError, match="exists"):
        found.save(folder)
    found.save(folder, force=True)


def test_pixels_of_a_film_have_a_map_of_their_own(film: Any) -> None:
    found = sightline.explain_frames(film, model("all"), target="red", method="input-x-gradient")
    assert found.raw.shape == (16, 32, 64)
    assert (found.maps[7].raw == found.raw[7]).all()


def test_a_layer_with_one_slice_says_that_it_doesnt_tell_when(film: Any) -> None:
    torch.manual_seed(0)
    model = sightline.adapt(r3d_18(weights=None), preprocess=take, frames=8)
    found = sightline.explain_frames(film, model)
    assert model.layer == "layer4"
    assert found.raw.shape == (1, 2, 4)
    assert (
        "layer layer4 has one slice for all frames: its map tells where, and not in which frame"
        in found.maps[0].warnings
    )
    deeper = sightline.explain_frames(film, model, layer="layer2")
    assert deeper.raw.shape == (4, 8, 16)
    assert not any("has one slice" in one for one in deeper.maps[0].warnings)


def how_red(films: Tensor) -> np.ndarray[Any, Any]:
    """As `Red` has it, of a function outside."""
    assert films.dim() == 5
    return np.stack([films[:, 0].mean(dim=(1, 2, 3)).numpy(), np.full(len(films), 0.2)], axis=1)


def test_a_function_of_films_is_explained_by_its_scores(film: Any) -> None:
    outside = sightline.adapt(how_red, preprocess=take, frames="all", labels=["red", "other"])
    film[(film == 128).all(axis=-1)] = 0
    found = sightline.explain_frames(film, outside, target="red", options={"patch": 8, "stride": 8})
    assert found.maps[0].method == "occlusion"
    expected = np.zeros((16, 4, 8))
    expected[4:12, 2, 5] = 1  # boxes of 4 frames, of which two hold half of the red block each
    np.testing.assert_allclose(found.raw / found.raw.max(), expected, atol=1e-6)
    for method in ("grad-cam", "lime"):
        with pytest.raises(MethodError, match=r"these methods (work|can).*: occlusion, rise$"):
            sightline.explain_frames(film, outside, method=method)


def test_what_an_option_was_left_to_become_is_said_and_written(film: Any, tmp_path: Path) -> None:
    found = sightline.explain_frames(film[:4], model("all"), target="red", method="occlusion", options={"stride": 4})
    assert found.maps[0].asked() == "occlusion (patch 4, stride 4, baseline 0.0) at the input"
    about = json.loads((found.save(tmp_path / "film") / "manifest.json").read_text())
    assert about["options"] == {"patch": 0, "stride": 4, "baseline": 0.0}
    assert about["details"] == {"patch": 4, "stride": 4}


def test_a_film_says_where_its_colours_end_among_all_of_its_frames(film: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("sightline.frames.sheet", lambda *_, **parts: drawn.append(parts) or Image.new("RGB", (1, 1)))
    film[1:, ..., 0] = np.random.default_rng(0).integers(128, 256, film[1:, ..., 0].shape)
    found = sightline.explain_frames(film, model("all"), target="red", method="integrated-gradients")
    assert found.maps[0].raw.max() <= found.maps[0].scale < np.abs(found.raw).max()
    found.strip()
    assert any(one.endswith(f"the strongest is {found.raw.max():.3g}") for one in drawn[0]["captions"])
    assert drawn[0]["keys"][0].label == "in units of the score, per pixel"
    assert "red raises the score, blue lowers it" in drawn[0]["captions"]


def test_runs_over_photographs_refuse_a_model_of_films_and_one_of_bands(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "one.png")
    with pytest.raises(ModelError, match="a run takes photographs"):
        sightline.explain_all(tmp_path / "photos", model=model(), output=tmp_path / "run")
    of_bands = sightline.adapt(
        Red(), preprocess=sightline.bands(("a", "b", "c", "d"), size=(8, 8)), layers=["features"]
    )
    with pytest.raises(ImageError, match="takes 4 bands"):
        sightline.explain_all(tmp_path / "photos", model=of_bands, output=tmp_path / "run")


def test_what_cannot_be_explained_as_a_film_is_refused(film: Any, tmp_path: Path) -> None:
    one_picture = sightline.adapt(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), layers=["0"])
    with pytest.raises(ModelError, match="takes one picture"):
        sightline.explain_frames(film, one_picture)
    with pytest.raises(ModelError, match=r"sightline\.explain_frames"):
        sightline.explain(film[0], model())
    with pytest.raises(MethodError, match="these methods can"):
        sightline.explain_frames(film, model(), method="lime")
    with pytest.raises(ModelError, match=r"no longer knows .* frames"):
        sightline.explain_frames(film, model()).maps[0].trust()
    for frames in (0, -1, 1.5, True, "some"):
        with pytest.raises(ModelError, match="how many frames the model takes"):
            model(frames)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (lambda _: [], "the list of frames is empty"),
        (lambda _: np.zeros((4, 4)), "is no film"),
        (lambda _: 7, "is no film"),
        (lambda _: [np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "give frames of one size"),
        (
            lambda _: [np.zeros((8, 8, 3), np.uint8), "none.png"],
            "frame 2 of frames: none.png can't be opened: no such file",
        ),
        (lambda place: place, "there is no picture in"),
        (lambda place: place / "none.gif", "no such file"),
        (lambda place: _written(place / "film.mp4"), "take a film of another kind apart into pictures"),
    ],
)
def test_what_is_no_film_is_refused(source: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=says):
        read_frames(source(tmp_path), lambda total: range(total))


def _written(path: Path) -> Path:
    path.write_bytes(b"\x00\x00\x00 ftypisom" + b"\x00" * 100)
    return path


def test_a_film_of_more_pixels_than_fit_is_refused_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [Image.new("RGB", (20, 20), (at, 0, 0)) for at in range(0, 250, 10)]
    pictures[0].save(tmp_path / "long.gif", save_all=True, append_images=pictures[1:])
    monkeypatch.setattr("sightline.data.images._MOST_FILM", 400 * 10)
    with pytest.raises(ImageError, match="more than 10 frames of 20 x 20 pixels"):
        read_frames(tmp_path / "long.gif", lambda total: range(total))


def test_a_label_of_a_film_has_a_sigmoid_as_its_predictions_have(film: Any) -> None:
    found = sightline.explain_frames(film, dataclasses.replace(model(), task="labels"), target=0)
    own = {one.index: one.probability for one in found.maps[0].predictions}
    assert found.maps[0].probability == own[0]
