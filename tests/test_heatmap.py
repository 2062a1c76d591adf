"""`Heatmap`, `side_by_side` and `save`: all that is needed to read a map, one scale, and all or nothing on disk."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from made import heatmap, photograph
from sightline import heatmap as module
from sightline.errors import MethodError, OutputError
from sightline.heatmap import SCHEMA, Heatmap, save, share_scale, side_by_side

FILES = {"overlay.png", "panel.png", "map.npy", "manifest.json"}


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def listing(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was written on each panel."""
    seen: list[dict[str, Any]] = []
    original = module.sheet

    def recorded(rows: Sequence[Any], **texts: Any) -> Image.Image:
        seen.append({"rows": rows, **texts})
        return original(rows, **texts)

    monkeypatch.setattr(module, "sheet", recorded)
    return seen


# -------------------------------------------------------------------------------------------------------------- reading


def test_the_texts_name_class_probability_method_layer_grid_model_and_raw_maximum() -> None:
    one = heatmap()
    assert one.title() == "tiger cat, 59 %"
    for part in ("grad-cam", "features.denseblock4", "4x5 grid, upsampled", "made by hand", "highest raw value 0.5"):
        assert part in one.caption()


def test_a_target_that_is_no_class_is_titled_with_its_value() -> None:
    assert heatmap(index=None, probability=None, label="margin", score=-1.23456).title() == "margin, score -1.23"


def test_the_panel_says_all_that_is_needed_to_read_it(drawn: list[dict[str, Any]]) -> None:
    heatmap().panel()
    (said,) = drawn
    text = " ".join([said["heading"], *said["captions"]])
    for part in ("tiger cat, 59 %", "tabby 2.3 %", "lynx under 0.1 %", "grad-cam", "features.denseblock4", "4x5 grid"):
        assert part in text
    assert said["warnings"] == ("the model is not sure",)
    (key,) = said["keys"]
    assert (key.low, key.high) == (0.0, 0.5)
    assert "score" in key.label
    titles = [tile.title for tile in said["rows"][0]]
    assert titles == ["photograph", "heat map", "overlay"]
    assert "90 x 60 px" in said["rows"][0][0].note
    assert "hatched" in said["rows"][0][0].note


def test_a_photograph_seen_whole_is_not_called_hatched(drawn: list[dict[str, Any]]) -> None:
    heatmap(whole=True).panel()
    assert "hatched" not in drawn[0]["rows"][0][0].note


def test_the_raw_map_is_on_the_photograph_with_nan_where_the_model_never_looked() -> None:
    one = heatmap()
    assert one.values.shape == (60, 90)
    assert np.isnan(one.values[:, :15]).all()
    assert np.isnan(one.values[:, 75:]).all()
    assert not np.isnan(one.values[:, 15:75]).any()
    assert one.evidence == 0.5
    x, y = one.peak
    assert (x >= 60, y >= 50, x < 75) == (True, True, True)
    assert one.values[y, x] == np.nanmax(one.values)


def test_an_empty_map_has_a_peak_inside_what_the_model_saw_and_an_overlay_like_the_photograph() -> None:
    one = heatmap(np.zeros((3, 3)), whole=True)
    assert one.evidence == 0
    assert (pixels(one.overlay()) == pixels(one.photo)).all()
    seen = heatmap(np.zeros((3, 3)))
    assert not np.isnan(seen.values[seen.peak[1], seen.peak[0]])


def test_a_constant_positive_map_is_drawn_at_full_strength() -> None:
    black = Image.new("RGB", (90, 60))
    one = heatmap(np.full((3, 3), 0.001), photo=black, whole=True)
    assert pixels(one.overlay()).mean() > 150


@pytest.mark.parametrize("style", ["heat", "grey-photo", "contours", "spotlight", "flat", "faded"])
@pytest.mark.parametrize("signed", [False, True])
def test_every_style_of_overlay_and_panel_is_rgb_and_the_overlay_of_the_photographs_size(
    style: str, signed: bool
) -> None:
    one = heatmap(np.linspace(-1, 1, 20).reshape(4, 5), signed=signed)
    assert (one.overlay(style).size, one.overlay(style).mode) == ((90, 60), "RGB")
    assert one.panel(style).mode == "RGB"


def test_a_wrong_style_or_colormap_is_refused_by_name() -> None:
    for wrong in ({"style": "het"}, {"colormap": "infernoo"}):
        with pytest.raises(MethodError, match="Did you mean"):
            heatmap().overlay(**wrong)
        with pytest.raises(MethodError, match="Did you mean"):
            side_by_side([heatmap()], **wrong)


def test_a_notebook_gets_a_png() -> None:
    with Image.open(io.BytesIO(heatmap()._repr_png_())) as picture:
        assert picture.format == "PNG"


# ------------------------------------------------------------------------------------------------------------ one scale


def test_a_weak_map_beside_a_strong_one_looks_weak() -> None:
    weak, strong = heatmap(np.full((3, 3), 0.02)), heatmap(np.full((3, 3), 1.0))
    shared = share_scale([weak, strong])
    assert [one.scale for one in shared] == [1.0, 1.0]
    assert [one.evidence for one in shared] == [pytest.approx(0.02), 1.0]
    assert weak.scale == pytest.approx(0.02), "the maps that were given stay as they were"
    near, far = (np.abs(pixels(one.overlay()) - pixels(one.photo))[:, 15:75].mean() for one in shared)
    assert near < 0.05 * far


def test_maps_in_a_unit_of_their_own_share_a_scale_only_with_their_own_method() -> None:
    maps = [
        heatmap(np.full((3, 3), 0.5)),
        heatmap(np.full((3, 3), 0.25), method="hires-cam", signed=True),
        heatmap(np.full((3, 3), 30.0), method="grad-cam++", unit="own"),
        heatmap(np.full((3, 3), 60.0), method="grad-cam++", unit="own"),
        heatmap(np.full((3, 3), 900.0), method="eigen-cam", unit="own"),
    ]
    assert [one.scale for one in share_scale(maps)] == [0.5, 0.5, 60, 60, 900]


def test_a_signed_map_shares_the_scale_by_its_strength_in_either_direction() -> None:
    maps = share_scale([heatmap(np.full((3, 3), -2.0), signed=True), heatmap(np.full((3, 3), 0.5))])
    assert [one.scale for one in maps] == [2.0, 2.0]


def test_side_by_side_has_one_scale_and_one_key_a_unit(drawn: list[dict[str, Any]]) -> None:
    maps = [
        heatmap(np.full((3, 3), 0.02)),
        heatmap(np.full((3, 3), 1.0), label="tabby", index=1),
        heatmap(np.full((3, 3), 30.0), method="grad-cam++", unit="own"),
    ]
    side_by_side(maps)
    first, second = drawn[0]["keys"]
    assert (first.high, second.high) == (1.0, 30.0)
    assert "score" in first.label
    assert "grad-cam++" in second.label
    assert "share one scale" in " ".join(drawn[0]["captions"])


def test_side_by_side_on_own_scales_says_so_and_has_a_key_for_each(drawn: list[dict[str, Any]]) -> None:
    weak, strong = heatmap(np.full((3, 3), 0.02)), heatmap(np.full((3, 3), 1.0), label="tabby", index=1)
    own = side_by_side([weak, strong], same_scale=False)
    assert [key.high for key in drawn[0]["keys"]] == [pytest.approx(0.02), 1.0]
    assert "strengths do not compare" in " ".join(drawn[0]["captions"])
    assert own.tobytes() != side_by_side([weak, strong]).tobytes()


def test_side_by_side_has_a_row_for_each_method_and_a_column_for_each_target(drawn: list[dict[str, Any]]) -> None:
    maps = [
        heatmap(method=method, label=label, index=index)
        for method in ("grad-cam", "layer-cam")
        for index, label in enumerate(("tabby", "lynx"))
    ]
    side_by_side(maps)
    titles = [[tile.title for tile in row] for row in drawn[0]["rows"]]
    assert titles == [["photograph", "tabby, 59 %", "lynx, 59 %"], ["", "tabby, 59 %", "lynx, 59 %"]]
    notes = [tile.note for row in drawn[0]["rows"] for tile in row]
    assert sum("grad-cam" in note for note in notes) == 2
    assert sum("highest 0.5" in note for note in notes) == 4


def test_side_by_side_of_many_methods_is_no_tower() -> None:
    drawn = side_by_side([heatmap(method=f"method {number}") for number in range(9)])
    assert drawn.height < 2 * drawn.width


def test_side_by_side_says_each_warning_once_and_of_which_map(drawn: list[dict[str, Any]]) -> None:
    side_by_side([heatmap(), heatmap(method="layer-cam", warnings=("the model is not sure", "another"))])
    assert drawn[0]["warnings"] == ["the model is not sure", "another (layer-cam)"]


def test_side_by_side_does_not_say_more_than_a_person_reads(drawn: list[dict[str, Any]]) -> None:
    many = [heatmap(method=f"method-{number}", warnings=(f"doubt {number}",)) for number in range(15)]
    side_by_side(many)
    assert len(drawn[0]["warnings"]) == 11
    assert drawn[0]["warnings"][-1] == "and 5 more, in manifest.json"


def test_layers_have_a_scale_each_and_one_key_for_all(drawn: list[dict[str, Any]]) -> None:
    shown = share_scale([heatmap(layer=f"layer{number}", scale=float(number)) for number in range(1, 6)])
    assert [one.scale for one in shown] == [1, 2, 3, 4, 5]
    side_by_side(shown)
    (key,) = drawn[0]["keys"]
    assert (key.low, key.high) == (0, 1)
    assert "share of the highest value" in key.label


def test_nothing_to_draw_or_save_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no map to draw"):
        side_by_side([])
    with pytest.raises(OutputError, match="no map to save"):
        save([], tmp_path / "out")
    assert not listing(tmp_path)


# ------------------------------------------------------------------------------------------- maps of pixels and pieces


def of_pixels(clip: float = 1.0, **changes: Any) -> Heatmap:
    """A signed map with a value for each of 60 x 60 pixels, in the middle of the photograph."""
    raw = np.random.default_rng(3).normal(size=(60, 60)).astype(np.float32)
    given = {"signed": True, "method": "integrated-gradients", "layer": "input"} | changes
    return heatmap(raw, scale=float(np.quantile(np.abs(raw), clip, method="higher")), **given)


def of_pieces(**changes: Any) -> Heatmap:
    """Four squares with the values 2, -1, 0.5 and 0, as LIME gives them."""
    coefficients = np.array([2.0, -1.0, 0.5, 0.0])
    segments = np.repeat(np.repeat(np.arange(4).reshape(2, 2), 30, axis=0), 30, axis=1)
    details = {"segments": segments, "coefficients": coefficients}
    given = {"signed": True, "method": "lime", "layer": "input", "details": details} | changes
    return heatmap(coefficients[segments], **given)


def of_masks(**changes: Any) -> Heatmap:
    """What RISE gives."""
    raw = np.linspace(-1, 1, 3600, dtype=np.float32).reshape(60, 60)
    details = {
        "standard error": np.full((60, 60), 0.25, np.float32),
        "mean score": 3.5,
        "convergence": {"masks": [10, 20, 40], "agreement": [float("nan"), 0.4, 0.75]},
    }
    return heatmap(raw, **({"signed": True, "method": "rise", "layer": "input", "details": details} | changes))


def test_where_the_colours_end_stands_in_caption_key_and_manifest(drawn: list[dict[str, Any]], tmp_path: Path) -> None:
    one = of_pixels(clip=0.99)
    strongest = float(one.raw.flat[np.abs(one.raw).argmax()])
    says = f"colours end at the 99th percentile; the strongest is {strongest:.3g}"
    assert one.clip() == says
    assert one.caption().endswith(f"highest raw value {one.raw.max():.3g}; {says}")
    manifest = json.loads((one.save(tmp_path / "out") / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["maps"][0]["clip"] == says
    assert manifest["maps"][0]["scale"] == pytest.approx(one.scale)
    (key,) = drawn[0]["keys"]
    assert (key.low, key.high) == (-one.scale, one.scale)
    assert says in key.label
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "map.npy"), one.raw)


@pytest.mark.parametrize(("stronger", "percentile"), [(502, "99th"), (1, "99.9th"), (2509, "95th"), (150, "99.7th")])
def test_the_percentile_is_counted_and_never_called_the_hundredth(stronger: int, percentile: str) -> None:
    raw = np.arange(50176, dtype=np.float32).reshape(224, 224)
    one = heatmap(raw, scale=50175.0 - stronger, photo=photograph((224, 224)), whole=True)
    assert f"colours end at the {percentile} percentile" in one.clip()


def test_colours_that_reach_the_strongest_value_are_not_said_to_end_before(tmp_path: Path) -> None:
    one = of_pixels()
    assert one.clip() == ""
    assert "colours end" not in one.caption()
    assert (
        "clip" not in json.loads((one.save(tmp_path / "out") / "manifest.json").read_text(encoding="utf-8"))["maps"][0]
    )


def test_a_map_of_pixels_is_called_that_and_upsampled_only_where_the_photograph_is_larger() -> None:
    one = of_pixels()
    assert "(one value a pixel of the model's 60x60 input)" in one.caption()
    larger = dataclasses.replace(one.view, resized=(45, 30), offset=(0, 0), input=(60, 60))
    assert "60x60 input, upsampled)" in dataclasses.replace(one, view=larger).caption()
    assert "4x5 grid, upsampled" in heatmap().caption()
    assert "4 superpixels of the model's 60x60 input" in of_pieces().caption()


@pytest.mark.parametrize(
    ("one", "style"),
    [(heatmap(), "heat"), (of_pixels(), "faded"), (of_masks(), "faded"), (of_pieces(), "superpixels")],
)
def test_each_kind_of_map_has_its_style_when_none_is_named(one: Heatmap, style: str) -> None:
    assert one.style == style
    assert one.overlay().tobytes() == one.overlay(style).tobytes()
    assert one.panel().tobytes() == one.panel(style).tobytes()
    assert one.overlay().tobytes() != one.overlay("flat").tobytes()


def test_units_say_what_one_value_is_of(drawn: list[dict[str, Any]]) -> None:
    maps = {
        "per cell": heatmap(),
        "per pixel": of_pixels(),
        "per superpixel": of_pieces(),
        "per square covered": heatmap(method="occlusion", layer="input", signed=True),
        "above its mean when the pixel is kept": of_masks(),
        "own unit of saliency": of_pixels(method="saliency", unit="own"),
    }
    for one in maps.values():
        one.panel()
    assert [part for part, said in zip(maps, drawn, strict=True) if part not in said["keys"][0].label] == []


def test_at_the_input_each_method_has_a_scale_of_its_own_and_its_targets_share_it(drawn: list[dict[str, Any]]) -> None:
    maps = [
        of_pixels(clip=0.99),
        heatmap(np.full((3, 3), 50.0), method="occlusion", layer="input", signed=True),
        of_pieces(),
        dataclasses.replace(of_pieces(), scale=7.0, label="tabby", index=1),
    ]
    assert [one.scale for one in share_scale(maps)] == [maps[0].scale, 50, 7, 7]
    side_by_side(maps)
    assert "at the input those of one method" in " ".join(drawn[0]["captions"])
    notes = [tile.note for row in drawn[0]["rows"] for tile in row]
    assert sum(f"colours end at {maps[0].scale:.3g}" in note for note in notes) == 1


def test_superpixels_of_a_method_without_some_are_refused_and_it_is_said_which_have_them() -> None:
    with pytest.raises(MethodError, match="grad-cam has no superpixels to draw; kernel-shap and lime have"):
        heatmap().overlay("superpixels")


def test_the_strongest_superpixels_are_filled_in_the_colour_of_their_sign() -> None:
    photo = Image.new("RGB", (90, 60), "grey")
    laid = pixels(of_pieces(photo=photo).overlay())
    middles = {
        name: laid[y, x] for name, (y, x) in {"+2": (15, 30), "-1": (15, 60), "+.5": (45, 30), "0": (45, 60)}.items()
    }
    assert middles["+2"][0] - middles["+2"][2] > middles["+.5"][0] - middles["+.5"][2] > 10
    assert middles["-1"][2] - middles["-1"][0] > 40
    assert np.ptp(middles["0"]) <= 1


def test_a_panel_of_random_masks_shows_the_standard_error_on_the_maps_scale_and_the_curve(
    drawn: list[dict[str, Any]],
) -> None:
    of_masks().panel()
    first, second = drawn[0]["rows"]
    assert [tile.title for tile in first] == ["photograph", "heat map", "overlay", "standard error"]
    assert first[3].note == "on the same scale, highest 0.25"
    middle = tuple(first[3].image.getpixel((first[3].image.width // 2, first[3].image.height // 2)))
    assert middle == tuple(pixels(module.heat(np.full((1, 1), 0.25), 1.0, signed=True))[0, 0])
    assert len(second) == 1
    heatmap().panel()
    assert [[tile.title for tile in row] for row in drawn[1]["rows"]] == [["photograph", "heat map", "overlay"]]


def test_what_a_method_found_beside_its_map_is_in_the_bundle(tmp_path: Path) -> None:
    place = save([of_masks(), of_pieces(), heatmap()], tmp_path / "out")
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    masks, pieces, plain = manifest["maps"]
    assert masks["details"] == {
        "mean score": 3.5,
        "convergence": {"masks": [10, 20, 40], "agreement": [None, 0.4, 0.75]},
    }
    assert pieces["details"] == {"coefficients": [2.0, -1.0, 0.5, 0.0]}
    assert "details" not in plain
    assert masks["files"]["standard error"] == "standard-error-1.npy"
    assert masks["files"]["curve"] == "curve-1.png"
    assert pieces["files"]["segments"] == "segments-2.npy"
    np.testing.assert_array_equal(np.load(place / "standard-error-1.npy"), of_masks().details["standard error"])
    np.testing.assert_array_equal(np.load(place / "segments-2.npy"), of_pieces().details["segments"])
    named = {name for one in manifest["maps"] for name in one["files"].values()} | {"manifest.json"}
    assert {file.name for file in place.iterdir()} == named


def test_numbers_beside_a_map_are_json_whatever_type_they_have() -> None:
    found = {"residual": np.float32(0.5), "rise": float("inf"), "how": "in 50 steps", "many": (np.int64(3), 4)}
    record = heatmap(details=found).record()
    assert json.loads(json.dumps(record["details"])) == {
        "residual": 0.5,
        "rise": None,
        "how": "in 50 steps",
        "many": [3, 4],
    }


def test_the_viewer_begins_with_a_map_of_pixels_on_grey() -> None:
    assert module.viewer([of_pixels()])["style"] == "grey-photo"
    assert module.viewer([of_pixels(), heatmap()])["style"] == "heat"
    assert module.viewer([of_pixels()], style="flat")["style"] == "flat"


# --------------------------------------------------------------------------------------------------------------- saving


def test_a_saved_map_is_the_raw_map_to_the_bit(tmp_path: Path) -> None:
    one = heatmap(np.random.default_rng(0).normal(size=(7, 7)), signed=True, method="hires-cam")
    place = one.save(tmp_path / "out")
    loaded = np.load(place / "map.npy", allow_pickle=False)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, one.raw)


def test_a_bundle_holds_overlay_panel_map_and_a_manifest_that_names_them(tmp_path: Path) -> None:
    one = heatmap()
    place = one.save(tmp_path / "out")
    assert place == tmp_path / "out"
    assert {file.name for file in place.iterdir()} == FILES
    record = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    assert record["schema"] == SCHEMA
    assert record["sightline"] == sightline.__version__
    assert record["size"] == {"width": 90, "height": 60}
    assert record["predictions"][0] == {"index": 3, "label": "tiger cat", "probability": 0.5932}
    assert record["model"] == {"name": "made by hand", "source": "tests", "random_weights": False}
    assert record["view"] == dataclasses.asdict(one.view) | {
        name: list(value) for name, value in dataclasses.asdict(one.view).items()
    }
    (only,) = record["maps"]
    assert only["target"] == {"index": 3, "label": "tiger cat"}
    assert (only["method"], only["layer"], only["grid"]) == ("grad-cam", "features.denseblock4", [4, 5])
    assert (only["evidence"], only["scale"], only["score"]) == (0.5, 0.5, 7.25)
    assert only["peak"] == {"x": one.peak[0], "y": one.peak[1]}
    assert only["warnings"] == ["the model is not sure"]
    assert set(only["files"].values()) == FILES - {"manifest.json"}
    with Image.open(place / "overlay.png") as overlay, Image.open(place / "panel.png") as panel:
        assert (pixels(overlay) == pixels(one.overlay())).all()
        assert (pixels(panel) == pixels(one.panel())).all()


def test_the_manifest_is_read_by_strict_json_readers_whatever_the_numbers(tmp_path: Path) -> None:
    one = heatmap(score=None, probability=None, index=None)
    text = (one.save(tmp_path / "out") / "manifest.json").read_text(encoding="utf-8")

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    json.loads(text, parse_constant=refuse)


def test_several_maps_have_a_numbered_overlay_and_map_each_and_share_a_panel(tmp_path: Path) -> None:
    maps = [heatmap(np.full((3, 3), 0.02)), heatmap(np.full((2, 2), 1.0), label="tabby", index=1)]
    place = save(maps, tmp_path / "out")
    assert {file.name for file in place.iterdir()} == {
        "overlay-1.png",
        "overlay-2.png",
        "map-1.npy",
        "map-2.npy",
        "panel.png",
        "manifest.json",
    }
    record = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    assert [one["scale"] for one in record["maps"]] == [1.0, 1.0]
    for one, entry in zip(maps, record["maps"], strict=True):
        np.testing.assert_array_equal(np.load(place / entry["files"]["map"]), one.raw)
    own = save(maps, tmp_path / "own", same_scale=False)
    record = json.loads((own / "manifest.json").read_text(encoding="utf-8"))
    assert [one["scale"] for one in record["maps"]] == [pytest.approx(0.02), 1.0]


@pytest.mark.parametrize("label", ["虎斑猫", "line\nbreak", "\x00null", "\ud800 lone", "🐅", "x" * 5000])
def test_a_hostile_class_name_can_be_saved(tmp_path: Path, label: str) -> None:
    place = heatmap(label=label[:300]).save(tmp_path / "out")
    assert {file.name for file in place.iterdir()} == FILES
    json.loads((place / "manifest.json").read_text(encoding="utf-8"))


def test_a_photograph_whose_name_is_no_utf8_can_be_saved(tmp_path: Path) -> None:
    """Linux allows any bytes in a name; Python reads those as lone surrogates."""
    place = heatmap(image="caf\udce9.jpg").save(tmp_path / "out")
    assert "caf" in json.loads((place / "manifest.json").read_text(encoding="utf-8"))["image"]


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    original = Path.write_text

    def write_text(self: Path, *args: Any, **options: Any) -> int:
        if self.name == "manifest.json":
            seen.append({file.name for file in self.parent.iterdir()})
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    heatmap().save(tmp_path / "out")
    assert seen == [FILES - {"manifest.json"}]


def breaks(*_args: Any, **_options: Any) -> Any:
    raise KeyboardInterrupt


def full(*_args: Any, **_options: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("target", ["np.save", "sheet", "write_manifest", "overlay", "PngImagePlugin.PngInfo"])
def test_an_interruption_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(f"sightline.heatmap.{target}", breaks)
    with pytest.raises(KeyboardInterrupt):
        heatmap().save(tmp_path / "out")
    assert not listing(tmp_path)


@pytest.mark.parametrize("target", ["np.save", "write_manifest"])
def test_an_interruption_in_the_middle_leaves_the_former_result_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    heatmap().save(tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(f"sightline.heatmap.{target}", breaks)
    with pytest.raises(KeyboardInterrupt):
        heatmap(np.ones((3, 3))).save(tmp_path / "out", force=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [breaks, full], ids=["interrupted", "disk"])
def test_a_failure_at_the_last_step_brings_the_former_result_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    heatmap().save(tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    original, calls = Path.rename, []

    def rename(self: Path, target: Any) -> Path:
        calls.append(self)
        return error() if len(calls) == 2 else original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        heatmap(np.ones((3, 3))).save(tmp_path / "out", force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.heatmap.np.save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        heatmap().save(tmp_path / "out")
    assert not listing(tmp_path)


def test_an_existing_result_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    place = heatmap().save(tmp_path / "out")
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    with pytest.raises(OutputError, match="exists; --force"):
        heatmap(np.ones((3, 3))).save(place)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


def test_force_replaces_a_result_of_ours_whole(tmp_path: Path) -> None:
    place = save([heatmap(), heatmap(label="tabby")], tmp_path / "out")
    one = heatmap(np.ones((3, 3)))
    assert one.save(place, force=True) == place
    assert {file.name for file in place.iterdir()} == FILES, "nothing of the former result is left"
    np.testing.assert_array_equal(np.load(place / "map.npy"), one.raw)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def foreign(kind: str, place: Path) -> None:
    """Something at this place that is no result of sightline."""
    if kind == "file":
        place.write_text("mine")
        return
    if kind == "link to a result of ours":
        heatmap().save(place.parent / "elsewhere")
        place.symlink_to("elsewhere")
        return
    if kind == "dangling link":
        place.symlink_to("nowhere")
        return
    place.mkdir()
    texts = {"another's manifest": '{"schema": "other/1"}', "no JSON": "{", "a list": "[]", "no schema": "{}"}
    if kind in texts:
        (place / "manifest.json").write_text(texts[kind])
    if kind == "a folder as manifest":
        (place / "manifest.json").mkdir()
    if kind != "empty folder":
        (place / "thesis.txt").write_text("years of work")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "folder",
        "empty folder",
        "file",
        "another's manifest",
        "no JSON",
        "a list",
        "no schema",
        "a folder as manifest",
        "link to a result of ours",
        "dangling link",
    ],
)
def test_what_is_not_ours_is_never_replaced(tmp_path: Path, kind: str, force: bool) -> None:
    foreign(kind, tmp_path / "out")
    before = {name: (tmp_path / name).read_bytes() for name in listing(tmp_path) if (tmp_path / name).is_file()}
    names = listing(tmp_path)
    with pytest.raises(OutputError, match="not even with --force" if force else "exists"):
        heatmap().save(tmp_path / "out", force=force)
    assert listing(tmp_path) == names
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_place_under_a_file_is_refused_as_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="can't be written"):
        heatmap().save(tmp_path / "file" / "out")
    assert listing(tmp_path) == ["file"]


def test_a_wrong_style_leaves_nothing_behind(tmp_path: Path) -> None:
    for wrong in ({"style": "het"}, {"colormap": "nope"}):
        with pytest.raises(MethodError):
            heatmap().save(tmp_path / "out", **wrong)
    assert not listing(tmp_path)


# -------------------------------------------------------------------------------------------------------------- privacy


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, stride=8)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean(dim=(2, 3)))


def secretive() -> bytes:
    """A JPEG that tells who took it, where, and more."""
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    exif[0x013B] = "SECRETARTIST"
    place = exif.get_ifd(0x8825)
    place[1], place[2], place[3], place[4] = "N", (47.0, 22.0, 1.5), "E", (8.0, 32.0, 3.5)
    place[29] = "2024:01:31"
    buffer = io.BytesIO()
    photograph((90, 60)).save(buffer, "JPEG", exif=exif, comment=b"SECRETCOMMENT", xmp=b"<x>SECRETXMP</x>")
    assert all(word in buffer.getvalue() for word in (b"SECRETCAMERA", b"SECRETCOMMENT", b"SECRETXMP", b"2024:01:31"))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["file", "bytes", "picture"])
def test_saved_pictures_tell_nothing_about_the_photographer(tmp_path: Path, kind: str) -> None:
    def preprocess(photo: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(photo.resize((64, 64)))).permute(2, 0, 1).float() / 255

    data = secretive()
    source: Any = data
    if kind == "file":
        source = tmp_path / "SECRETFOLDER" / "photo.jpg"
        source.parent.mkdir()
        source.write_bytes(data)
    if kind == "picture":
        source = Image.open(io.BytesIO(data))
    model = sightline.adapt(Tiny(), layers=["conv"], preprocess=preprocess)
    place = sightline.explain(source, model, target=0).save(tmp_path / "out")
    for file in place.iterdir():
        content = file.read_bytes()
        assert b"SECRET" not in content
        assert b"2024:01:31" not in content
        if file.suffix == ".png":
            assert b"eXIf" not in content
            with Image.open(file) as picture:
                picture.load()
                assert not picture.getexif()
                assert not set(picture.info) & {"exif", "xmp", "XML:com.adobe.xmp", "comment", "icc_profile"}


def test_the_manifest_and_pictures_name_the_file_and_not_the_folder_it_lies_in(tmp_path: Path) -> None:
    place = heatmap().save(tmp_path / "out")
    assert json.loads((place / "manifest.json").read_text(encoding="utf-8"))["image"] == "cat.jpg"
    for file in place.iterdir():
        assert b"secret-folder" not in file.read_bytes()


def test_a_heat_map_compares_by_identity_and_cannot_be_changed_by_accident() -> None:
    one = heatmap()
    assert one != heatmap()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.scale = 1.0  # type: ignore[misc]
    assert isinstance(one, Heatmap)


def test_a_folder_that_someone_makes_meanwhile_is_not_lost(tmp_path: Path) -> None:
    from sightline.bundle import whole_folder

    folder = tmp_path / "out"

    def race() -> None:
        with whole_folder(folder, False) as place:
            (place / "x").write_text("1")
            folder.mkdir()
            (folder / "thesis.txt").write_text("mine")

    with pytest.raises(OutputError, match="meanwhile"):
        race()
    assert [one.name for one in folder.iterdir()] == ["thesis.txt"]
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_foreign_folder_that_takes_the_place_of_a_result_is_not_replaced(tmp_path: Path) -> None:
    import shutil

    from sightline.bundle import whole_folder

    folder = save([heatmap()], tmp_path / "out")

    def race() -> None:
        with whole_folder(folder, True):
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "thesis.txt").write_text("mine")

    with pytest.raises(OutputError, match="not a result"):
        race()
    assert [one.name for one in folder.iterdir()] == ["thesis.txt"]
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_between_the_two_renames_keeps_the_former_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save([heatmap()], tmp_path / "out")
    rename = Path.rename

    def interrupted(self: Path, target: Any) -> Any:
        if self == folder:
            rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save([heatmap()], folder, force=True)
    monkeypatch.undo()
    assert (folder / "manifest.json").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    assert save([heatmap()], tmp_path / ("n" * 250)).is_dir()


def test_a_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        save([heatmap()], f"{tmp_path}/x\0y")


def test_a_map_is_printed_in_a_line() -> None:
    heat = sightline.explain(Path(sightline.__file__).parent / "data" / "demo" / "coffee.jpg")
    assert (
        repr(heat) == f"<Heatmap of {heat.image}: espresso, 95 %, grad-cam at bn2, 7 x 7, highest {heat.evidence:.3g}>"
    )
    assert len(repr([heat, heat])) < 400


def test_many_targets_wrap_into_rows_that_can_be_looked_at() -> None:
    few = side_by_side([heatmap(label=f"class {number}") for number in range(6)])
    many = side_by_side([heatmap(label=f"class {number}") for number in range(30)])
    assert many.width == few.width
    assert many.height > 3 * few.height
