"""Large photographs by tiles: the joined map is the mean over the windows that cover a cell, exactly."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import made_dense
import sightline
from sightline.engine.asked import Asked
from sightline.engine.spoken import parse_target
from sightline.errors import LayerError, MethodError, ModelError, TargetError
from sightline.models.preprocess import standard
from sightline.testing import networks
from sightline.tiles import _about_class, axis_of

SIDE, CELLS = 32, 8


def adapted(take: Any = None, classes: int = 3) -> Any:
    torch.manual_seed(5)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 7, 3, 2, 1), nn.Softplus())
    module = nn.Sequential(features, nn.Flatten(), nn.Linear(7 * CELLS * CELLS, classes)).double().eval()
    take = take or standard((SIDE, SIDE), 40, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2), fill=(0.4, 0.5, 0.6))
    return sightline.adapt(module, preprocess=take, layers=["0"])


@pytest.fixture(scope="module")
def photo() -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).integers(0, 256, (75, 101, 3), dtype=np.uint8)


def window(photo: Any, left: int, top: int) -> torch.Tensor:
    """One input, pixel by pixel; beyond the photograph what becomes (nearly) 0."""
    found = torch.zeros(3, SIDE, SIDE, dtype=torch.float64)
    for row in range(SIDE):
        for column in range(SIDE):
            y, x = top + row, left + column
            inside = 0 <= y < photo.shape[0] and 0 <= x < photo.shape[1]
            for at, (mean, std, fill) in enumerate(((0.4, 0.2, 102), (0.5, 0.3, 128), (0.6, 0.2, 153))):
                value = int(photo[y, x, at]) if inside else fill
                found[at, row, column] = float(
                    (torch.tensor(value).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
                )
    return found


def joined(photo: Any, model: Any, step: int, target: int, method: str) -> tuple[Any, list[torch.Tensor]]:
    """The mean over the windows that cover a cell, in loops; `step` in cells of 4 pixels."""
    starts = []
    for length in (photo.shape[0], photo.shape[1]):
        count = 1
        while (count - 1) * step * 4 + SIDE < length:
            count += 1
        before = ((count - 1) * step * 4 + SIDE - length) // 2
        starts.append([at * step * 4 - before for at in range(count)])
    values: dict[tuple[int, int], list[float]] = {}
    inputs = []
    for top in starts[0]:
        for left in starts[1]:
            x = window(photo, left, top)[None]
            inputs.append(x)
            made = sightline.attribute(x, model, method=method, target=target, layer="0")[0]
            for row in range(CELLS):
                for column in range(CELLS):
                    y, x_at = top + 4 * row, left + 4 * column
                    if y + 4 > 0 and y < photo.shape[0] and x_at + 4 > 0 and x_at < photo.shape[1]:
                        values.setdefault((y, x_at), []).append(float(made[row, column]))
    rows, columns = (sorted({key[axis] for key in values}) for axis in (0, 1))
    return np.array([[np.mean(values[y, x]) for x in columns] for y in rows]), inputs


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "eigen-cam"])
@pytest.mark.parametrize(
    ("overlap", "step"), [(0.5, 4), (0, 8), pytest.param(0.75, 2, marks=pytest.mark.slow), (0.3, 5)]
)
def test_the_joined_map_is_the_mean_over_the_tiles_that_cover_a_cell(
    photo: Any, method: str, overlap: float, step: int
) -> None:
    model = adapted()
    found = sightline.explain_tiles(photo, model, overlap=overlap, target=1, method=method)
    expected, inputs = joined(photo, model, step, 1, method)
    np.testing.assert_allclose(found.raw, expected, rtol=2e-5, atol=1e-7 * np.abs(expected).max())
    said = model.module(torch.cat(inputs)).detach().softmax(dim=1).mean(dim=0)
    assert found.probability == pytest.approx(float(said[1]), rel=1e-5)
    assert f"made of {len(inputs)} tiles" in " ".join(found.warnings)


def test_memory_and_batches_change_nothing(photo: Any) -> None:
    few, many = (sightline.explain_tiles(photo, adapted(), memory_mb=size, target=0) for size in (0.001, 512))
    np.testing.assert_allclose(few.raw, many.raw, rtol=1e-5)


def test_the_class_is_that_of_the_highest_mean_probability_over_tiles(photo: Any) -> None:
    model = adapted()
    found = sightline.explain_tiles(photo, model)
    _, inputs = joined(photo, model, 4, 0, "eigen-cam")
    mean = model.module(torch.cat(inputs)).detach().softmax(dim=1).mean(dim=0)
    assert found.index == int(mean.argmax())
    assert [one.index for one in found.predictions] == mean.argsort(descending=True).tolist()
    first = int((model.module(torch.cat(inputs)).argmax(dim=1) == found.index).sum())
    assert any(f"is what the model says of {first} of {len(inputs)} tiles" in one for one in found.warnings)
    other = sightline.explain_tiles(photo, model, target=(found.index + 1) % 3)
    assert any("the highest mean is that of" in one for one in other.warnings)


def test_a_class_of_which_one_tile_is_surer_than_of_the_class_of_all_is_named() -> None:
    every = [torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.45, 0.05], [0.35, 0.05, 0.6]])]
    asked = Asked(lambda output: output[:, 0], 0, "one")
    (said,) = _about_class(asked, None, adapted(), every)
    assert said.startswith("'one' is what the model says of 2 of 3 tiles")
    assert said.endswith("the surest tile says 'class 2' (60 %)")


@pytest.mark.parametrize("method", ["grad-cam", "ablation-cam", "saliency", "occlusion"])
def test_a_picture_no_larger_than_one_tile_has_the_map_of_explain(photo: Any, method: str) -> None:
    small = photo[:30, :32]
    one, other = (
        sightline.explain_tiles(small, adapted(), method=method),
        sightline.explain(small, adapted(), method=method),
    )
    assert (one.raw == other.raw).all()
    assert one.view == other.view
    assert any("explained as a whole" in each for each in one.warnings)


def test_a_planted_block_in_a_large_photograph_is_found_within_one_cell() -> None:
    made = networks.counts_red(224)
    take = standard((224, 224), 224, mean=(0, 0, 0), std=(1, 1, 1), fill=(0.5, 0.5, 0.5))
    model = sightline.adapt(made.module, preprocess=take, layers=["cells"])
    photo = np.full((1500, 2000, 3), 128, np.uint8)
    photo[900:908, 1500:1508] = (255, 0, 0)
    found = sightline.explain_tiles(photo, model, target=0, method="hires-cam")
    assert abs(found.peak[0] - 1504) <= 4
    assert abs(found.peak[1] - 904) <= 4
    strong = found.values > 0.5 * np.nanmax(found.values)
    rows, columns = np.nonzero(strong)
    assert (rows.min(), rows.max()) >= (896, 900)
    assert rows.max() < 912
    assert columns.min() >= 1496
    assert columns.max() < 1512


def test_what_lies_beyond_the_border_has_no_cell_of_its_own(photo: Any) -> None:
    found = sightline.explain_tiles(photo, adapted(), target=0)
    assert np.isfinite(found.values).all()
    assert found.values.shape == (75, 101)
    height, width = found.raw.shape
    assert (height, width) in {(20, 26), (19, 26), (20, 27), (19, 27)}


@pytest.mark.parametrize(
    "method", ["saliency", "input-x-gradient", "ablation-cam", "full-grad", "occlusion", "layer-cam"]
)
def test_methods_of_all_kinds_are_joined(photo: Any, method: str) -> None:
    found = sightline.explain_tiles(photo, adapted(), target=0, method=method)
    assert np.isfinite(found.raw).all()
    assert np.abs(found.signed_raw).max() > 0
    pixels = method in ("saliency", "input-x-gradient", "full-grad")
    assert (found.raw.shape == (75, 101)) == pixels
    assert found.per_pixel == pixels


def test_the_gradient_of_pixels_is_that_of_each_window_added_up(photo: Any) -> None:
    found = sightline.explain_tiles(photo, adapted(), target=0, method="input-x-gradient", overlap=0)
    starts = [axis_of(length, SIDE, SIDE, 0).starts for length in photo.shape[:2]]
    x = window(photo, starts[1][1], starts[0][1])[None]
    expected = sightline.attribute(x, adapted(), method="input-x-gradient", target=0)[0]
    top, left = starts[0][1], starts[1][1]
    np.testing.assert_allclose(found.raw[top : top + SIDE, left : left + SIDE], expected.numpy(), rtol=1e-4, atol=1e-6)


def test_larger_windows_are_made_small_as_the_model_takes_them(photo: Any) -> None:
    found = sightline.explain_tiles(photo, adapted(), tile_px=48, target=0)
    assert any("of 48 x 48 px, one every 24 px" in one for one in found.warnings)
    assert found.raw.shape[1] in (17, 18)


@pytest.mark.parametrize(
    ("length", "tile", "cells"),
    [(1000, 299, 8), (1000, 224, 7), (75, 32, 8), (999, 300, 224), (40, 64, 4), (5000, 518, 37)],
)
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_windows_begin_at_whole_cells_and_cover_the_photograph(
    length: int, tile: int, cells: int, overlap: float
) -> None:
    axis = axis_of(length, tile, cells, overlap)
    assert 1 <= axis.step <= cells
    assert axis.step * tile % cells == 0
    assert axis.starts[0] <= 0
    assert axis.starts[-1] + tile >= length
    assert axis.starts[-1] < length
    assert axis.beyond < max(axis.pixels, tile - length + 1)
    finer = [
        step for step in range(axis.step + 1, cells + 1) if step * tile % cells == 0 and step <= cells * (1 - overlap)
    ]
    assert not finer  # no wider step would leave this overlap


def test_an_overlap_that_whole_cells_dont_allow_is_said_with_the_window_that_does(photo: Any) -> None:
    found = sightline.explain_tiles(photo, adapted(), tile_px=45, target=0)
    assert any(
        "can't overlap by 0.5, because a cell is no whole number of pixels (5.625): tile_px=40 can" in one
        for one in found.warnings
    )
    assert not any(
        "can't overlap" in one for one in sightline.explain_tiles(photo, adapted(), tile_px=40, target=0).warnings
    )


def test_black_boxes_and_tokens_are_joined_too(photo: Any) -> None:
    def bright(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))], dim=1)

    box = sightline.adapt(bright, preprocess=standard((32, 32), 32, mean=(0, 0, 0), std=(1, 1, 1)))
    dark = photo // 8
    dark[30:34, 60:64] = 255
    found = sightline.explain_tiles(dark, box, target=1, options={"patch": 8, "stride": 4})
    assert abs(found.peak[0] - 62) <= 8
    assert abs(found.peak[1] - 32) <= 8
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    model = sightline.adapt(vit, preprocess=standard((32, 32), 32, mean=(0, 0, 0), std=(1, 1, 1)))
    for method in ("hires-cam", "attention-rollout"):
        assert np.isfinite(sightline.explain_tiles(photo, model, target=0, method=method).raw).all()


def test_what_is_about_to_be_shown_is_said_and_bounded(photo: Any) -> None:
    said: list[tuple[str, int]] = []
    seen: list[tuple[int, int]] = []
    sightline.explain_tiles(
        photo, adapted(), told=lambda *each: said.append(each), progress=lambda *each: seen.append(each)
    )
    assert said == [("grad-cam", 2 * 24)]
    assert seen[0] == (0, 48)
    assert seen[-1] == (48, 48)
    assert seen == sorted(seen)
    with pytest.raises(MethodError, match="would show the model 48 pictures"):
        sightline.explain_tiles(photo, adapted(), max_calls=40)
    sightline.explain_tiles(photo, adapted(), max_calls=25, target=0)


def test_many_bands_are_cut_into_tiles_too() -> None:
    pick = nn.Conv2d(4, 1, 1, bias=False)
    pick.weight.data = torch.tensor([0.0, 0, 0, 1])[None, :, None, None]
    module = nn.Sequential(
        nn.Sequential(pick, nn.ReLU(), nn.AvgPool2d(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    module[3].weight.data, module[3].bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    values = np.zeros((150, 210, 4), np.float32)
    values[100:104, 180:184, 3] = 50
    for size in ((32, 32), None):
        take = sightline.bands(("blue", "green", "red", "nir"), size=size)
        model = sightline.adapt(module.eval(), preprocess=take, layers=["0"])
        found = sightline.explain_tiles(values, model, target=0, tile_px=32)
        assert abs(found.peak[0] - 182) <= 4
        assert abs(found.peak[1] - 102) <= 4


def test_a_preprocessing_of_ones_own_is_taken_where_it_only_resizes(photo: Any) -> None:
    def whole(picture: Image.Image) -> torch.Tensor:
        small = np.asarray(picture.resize((SIDE, SIDE)), np.float32) / 255
        return torch.from_numpy(small).permute(2, 0, 1).double()

    def cut(picture: Image.Image) -> torch.Tensor:
        return whole(picture.crop((8, 8, picture.width - 8, picture.height - 8)))

    assert sightline.explain_tiles(photo, adapted(whole), target=0).raw.shape[0] >= 19
    with pytest.raises(ModelError, match="resizes it exactly"):
        sightline.explain_tiles(photo, adapted(cut), target=0)


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"overlap": 1}, MethodError, "from 0 to below 1"),
        ({"overlap": "half"}, MethodError, "from 0 to below 1"),
        ({"tile_px": 3}, MethodError, "width of a window"),
        ({"tile_px": 64.0}, MethodError, "width of a window"),
        ({"layer": ["0", "1"]}, LayerError, "name one"),
        ({"method": "none"}, MethodError, "there is no method"),
        ({"options": {"none": 1}}, MethodError, "no option"),
    ],
)
def test_settings_that_fit_nothing_are_refused(photo: Any, settings: Any, kind: Any, says: str) -> None:
    with pytest.raises(kind, match=says):
        sightline.explain_tiles(photo, adapted(), **settings)


def test_a_joined_map_says_that_it_has_no_one_input_to_ask_about_again(photo: Any, tmp_path: Any) -> None:
    found = sightline.explain_tiles(photo, adapted(), target=0)
    found.save(tmp_path / "why")
    with pytest.raises(ModelError, match="tiles"):
        found.trust()


def logits_of_windows(photo: Any, model: Any) -> torch.Tensor:
    across, down = (axis_of(length, SIDE, CELLS, 0.5).starts for length in (photo.shape[1], photo.shape[0]))
    with torch.no_grad():
        found: torch.Tensor = model.module(torch.stack([window(photo, left, top) for top in down for left in across]))
    return found


def test_labels_of_tiles_have_a_sigmoid_each_and_not_a_softmax(photo: Any) -> None:
    model = dataclasses.replace(adapted(), task="labels")
    mean = logits_of_windows(photo, model).sigmoid().mean(dim=0)
    for target in (None, 0):
        found = sightline.explain_tiles(photo, model, target=target)
        assert found.index == (int(mean.argmax()) if target is None else 0)
        assert found.probability == pytest.approx(float(mean[found.index]), abs=1e-4)
        best = mean.sort(descending=True)[0].tolist()
        assert [one.probability for one in found.predictions] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("task", ["", "regression"])
@pytest.mark.parametrize("target", [sightline.regression(), parse_target("up"), parse_target("down")])
def test_a_value_of_tiles_is_told_as_the_model_gives_it(photo: Any, task: Any, target: Any) -> None:
    model = dataclasses.replace(adapted(classes=1), task=task)
    mean = float(logits_of_windows(photo, model).mean())
    found = sightline.explain_tiles(photo, model, target=target)
    assert f"(now {mean:.3g}" in found.label or f"(now {mean:.4g})" in found.label
    assert found.score == pytest.approx(-mean if "down" in found.label else mean, abs=1e-4)


def test_values_and_embeddings_of_tiles_are_not_called_classes(photo: Any) -> None:
    for task, target in (("regression", 1), ("embedding", sightline.similarity(photo[:40, :40]))):
        found = sightline.explain_tiles(photo, dataclasses.replace(adapted(), task=task), target=target)  # type: ignore[arg-type]
        assert not found.predictions
        assert found.probability is None


@pytest.mark.parametrize("net", [made_dense.Colours, made_dense.TwoBoxes])
@pytest.mark.parametrize(
    "target", [None, "cat", 1, sightline.segment(point=(3, 3)), sightline.instance(1), parse_target("@0,0,9,9")]
)
def test_a_place_or_box_of_one_tile_is_no_target_for_all_of_them(photo: Any, net: Any, target: Any) -> None:
    names = ["background", "cat", "dog"]
    model = sightline.adapt(net(), layers=["see"], preprocess=made_dense.prepared(), labels=names)
    with pytest.raises(TargetError, match="which each tile has of its own"):
        sightline.explain_tiles(photo, model, target=target)
