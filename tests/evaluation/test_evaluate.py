"""Comparing methods on a set: rows for everything, honest tables, and a run that can be stopped anywhere."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sightline
from conftest import Plain, assert_untouched, seeded
from sightline.errors import ImageError, MethodError, MetricError, MissingExtraError, OutputError
from sightline.evaluation import Evaluation, evaluate
from sightline.evaluation.picture import CENTRE, RANDOM, TRUTH
from sightline.models.adapter import Adapter

CHEAP = ("average-drop", "increase-in-confidence", "sparseness")


def to_tensor(picture: Image.Image) -> Tensor:
    pixels = np.asarray(picture.resize((16, 16)), np.float32) / 127.5 - 1
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@pytest.fixture
def model() -> Adapter:
    names = ["cat", "dog", "cow", "hen", "owl"]
    return sightline.adapt(seeded(Plain), layers=["relu2"], preprocess=to_tensor, labels=names)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Six pictures in folders that name their classes, with a mask each beside."""
    rng = np.random.default_rng(0)
    for number in range(6):
        for what in ("album", "masks"):
            (tmp_path / what / ("cat" if number % 2 else "dog")).mkdir(parents=True, exist_ok=True)
        name = f"{'cat' if number % 2 else 'dog'}/{number}"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "album" / f"{name}.png")
        mask = np.zeros((20, 24), np.uint8)
        mask[4:12, 6 : 10 + number] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path / "album"


@pytest.fixture
def run(album: Path, model: Adapter, tmp_path: Path) -> Callable[..., Evaluation]:
    def ask(**changes: Any) -> Evaluation:
        settings: dict[str, Any] = {"output": tmp_path / "out", "methods": ["grad-cam", "layer-cam"], "metrics": CHEAP}
        return evaluate(album, model, **(settings | changes))

    return ask


# -------------------------------------------------------------------------------------------------------------- tables


def test_every_picture_method_and_metric_has_a_row_with_a_value_or_a_reason(
    run: Callable[..., Evaluation], tmp_path: Path
) -> None:
    from pyarrow import parquet

    run()
    rows = parquet.read_table(tmp_path / "out" / "values.parquet").to_pylist()
    assert len(rows) == 6 * 4 * 3
    assert {row["method"] for row in rows} == {"grad-cam", "layer-cam", RANDOM, CENTRE}
    assert all((row["value"] is None) == bool(row["undefined"]) for row in rows)
    assert all(row["value"] is None or np.isfinite(row["value"]) for row in rows)


def test_means_are_those_of_the_values_and_the_references_are_rows(run: Callable[..., Evaluation]) -> None:
    found = run()
    entries = {(one.metric, one.method): one for one in found.table()}
    for metric in CHEAP:
        for method in ("grad-cam", "layer-cam", RANDOM, CENTRE):
            values = found.values(metric, method)
            one = entries[metric, method].interval
            assert one.count == np.isfinite(values).sum()
            assert one.undefined == 6 - one.count
            if one.mean is not None:
                assert one.mean == pytest.approx(np.nanmean(values))
            if one.low is not None and one.mean is not None and one.high is not None:
                assert one.low <= one.mean <= one.high
    assert entries["average-drop", RANDOM].over_random is None


def test_values_are_those_of_measure(run: Callable[..., Evaluation], album: Path, model: Adapter) -> None:
    found = run()
    paths = sorted(album.rglob("*.png"))
    for at, path in enumerate(paths):
        heatmap = sightline.explain(path, model)
        alone = heatmap.measure(["average-drop"])["average-drop"].value
        assert found.values("average-drop", "grad-cam")[at] == pytest.approx(alone)


def test_methods_that_are_one_map_are_judged_once_and_get_the_same_figures(run: Callable[..., Evaluation]) -> None:
    found = run(methods=["grad-cam", "hires-cam", "xgrad-cam"])
    for metric in CHEAP[:2]:
        assert (found.values(metric, "grad-cam") == found.values(metric, "xgrad-cam")).all()


def test_the_run_leaves_no_trace_in_the_model(run: Callable[..., Evaluation], model: Adapter) -> None:
    with assert_untouched(model.module):
        run(metrics=[*CHEAP, "deletion", "parameter-randomisation", "random-logit", "adcc"])


def test_masks_add_the_truth_as_a_row_and_it_is_best(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    found = run(masks=tmp_path / "masks", metrics=["mass-in-mask", "pointing-game", "iou", "energy-pointing-game"])
    for metric in ("mass-in-mask", "iou"):
        assert (found.values(metric, TRUTH) == 1).all()
        assert np.nanmean(found.values(metric, RANDOM)) < 0.6


def test_boxes_are_masks_in_pixels_of_the_picture(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    lines = ["image,left,top,right,bottom", *(f"{n}.png,6,4,{10 + n},12" for n in range(6))]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    by_box = run(boxes=tmp_path / "boxes.csv", metrics=["mass-in-mask"])
    by_mask = run(masks=tmp_path / "masks", metrics=["mass-in-mask"], output=tmp_path / "out2")
    assert (by_box.values("mass-in-mask", "grad-cam") == by_mask.values("mass-in-mask", "grad-cam")).all()


def test_labels_come_from_folders_a_table_or_the_model(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    by_folder = run(labels="folders")
    assert [row["label"] for row in by_folder.rows] == ["cat"] * 3 + ["dog"] * 3
    (tmp_path / "labels.csv").write_text("image,label\n0.png,owl\ncat/1.png,hen\n")
    by_table = run(labels=str(tmp_path / "labels.csv"), output=tmp_path / "out2")
    said = {row["name"]: row["label"] for row in by_table.rows if "error" not in row}
    assert len(said) == 2
    assert "no label for this picture" in by_table.errors["cat/3.png"]
    assert said["dog/0.png"] == "owl"
    assert said["cat/1.png"] == "hen"
    by_model = run(output=tmp_path / "out3")
    assert all(row["target"] == row["said"] for row in by_model.rows)


def test_boards_are_drawn_from_confident_pictures_and_di_full_is_exact(
    run: Callable[..., Evaluation], model: Adapter
) -> None:
    found = run(
        methods=["hires-cam", "eigen-cam"],
        metrics=["grid-pointing-game", "di-full"],
        boards=3,
        board_size=1,
        board_confidence=0,
    )
    assert len(found.values("di-full", "hires-cam")) == 3
    assert found.values("di-full", "hires-cam")[np.isfinite(found.values("di-full", "hires-cam"))] == pytest.approx(1)


def test_boards_without_enough_classes_say_how_many_there_are(run: Callable[..., Evaluation]) -> None:
    found = run(metrics=["average-drop", "di-full"], boards=2, board_size=3, board_confidence=0.0)
    assert "needs 9 different classes" in found.errors["board 0"]
    assert np.isfinite(found.values("average-drop", "grad-cam")).all(), "the pictures' figures are there nevertheless"


def test_the_table_reads_well(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    run()
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## average-drop (lower is better)" in text
    assert "**random map**" in text
    assert "Holm" in text
    for name in ("table.csv", "table.json", "pairs.csv", "average-drop.png", "average-drop-ranks.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    with open(tmp_path / "out" / "pairs.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) >= 2 * 6


# -------------------------------------------------------------------------------------------------------- stop, resume


def stopped_after(count: int) -> Callable[[int, int, int], None]:
    def watch(done: int, _of: int, _pictures: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return watch


def results(folder: Path) -> dict[str, bytes]:
    return {
        one.name: one.read_bytes() for one in folder.iterdir() if one.suffix in {".md", ".csv", ".jsonl", ".parquet"}
    }


def test_a_stopped_run_goes_on_where_it_was_and_gives_the_same_bytes(
    run: Callable[..., Evaluation], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(watch=stopped_after(2))
    assert len((tmp_path / "out" / "values.jsonl").read_text().splitlines()) == 2
    counted: list[int] = []
    run(watch=lambda _done, _of, pictures: counted.append(pictures))
    assert counted[1] == 0, "pictures that were done are not done again"
    run(output=tmp_path / "whole")
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_a_line_that_was_cut_off_is_done_again(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    run()
    whole = results(tmp_path / "out")
    lines = tmp_path / "out" / "values.jsonl"
    lines.write_bytes(lines.read_bytes()[:-25])
    run()
    assert results(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"methods": ["grad-cam"]}, "methods were grad-cam, layer-cam and are grad-cam"),
        (
            {"settings": {"average-drop": {}}, "metrics": ["average-drop"]},
            "metrics were average-drop, increase-in-confidence, sparseness and are average-drop",
        ),
        ({"labels": "folders"}, "labels was"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_with_the_difference(
    run: Callable[..., Evaluation], changes: dict[str, Any], said: str
) -> None:
    run()
    with pytest.raises(OutputError, match=said):
        run(**changes)


def test_other_weights_are_another_run(run: Callable[..., Evaluation], model: Adapter) -> None:
    run()
    with torch.no_grad():
        model.module.head.bias[0] += 1  # type: ignore[union-attr, operator, index]
    with pytest.raises(OutputError, match="model: weights was"):
        run()


def test_force_starts_anew_and_a_foreign_folder_is_never_touched(
    run: Callable[..., Evaluation], tmp_path: Path
) -> None:
    run()
    run(seed=1, force=True)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["plan"]["seed"] == 1
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError):
            run(output=foreign, force=force)
    assert [one.name for one in foreign.iterdir()] == ["thesis.txt"]


def test_a_second_process_in_the_same_folder_is_refused(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    import fcntl

    run()
    with open(tmp_path / "out" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process"):
            run()


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_broken_picture_is_a_row_and_the_others_are_as_without_it(
    run: Callable[..., Evaluation], album: Path, tmp_path: Path
) -> None:
    good = run().values("average-drop", "grad-cam")
    (album / "cat" / "zz.png").write_bytes(b"no picture")
    found = run(output=tmp_path / "out2")
    assert list(found.errors) == ["cat/zz.png"]
    assert "cat/zz.png" in (tmp_path / "out2" / "table.md").read_text()
    assert found.values("average-drop", "grad-cam").tolist() == good.tolist()


def test_a_pipe_and_a_link_are_rows_and_nothing_waits_for_them(
    run: Callable[..., Evaluation], album: Path, tmp_path: Path
) -> None:
    os.mkfifo(album / "cat" / "pipe.png")
    (album / "cat" / "link.png").symlink_to(tmp_path / "masks" / "cat" / "1.png")
    found = run()
    assert "not a regular file" in found.errors["cat/pipe.png"]
    assert "is a link" in found.errors["cat/link.png"]
    assert len(found.rows) == 8


def test_a_mask_of_another_size_is_counted_as_undefined_with_its_sizes(
    run: Callable[..., Evaluation], tmp_path: Path
) -> None:
    Image.new("L", (5, 5), 255).save(tmp_path / "masks" / "cat" / "1.png")
    Image.new("L", (24, 20), 0).save(tmp_path / "masks" / "cat" / "3.png")
    (tmp_path / "masks" / "cat" / "5.png").unlink()
    found = run(masks=tmp_path / "masks", metrics=["mass-in-mask"])
    reasons = {row["name"]: row["values"]["grad-cam"]["mass-in-mask"].get("undefined", "") for row in found.rows}
    assert "5 x 5 and the picture 24 x 20" in reasons["cat/1.png"]
    assert "mask is empty" in reasons["cat/3.png"]
    assert "no mask was given" in reasons["cat/5.png"]
    (entry,) = [one for one in found.table() if one.method == "grad-cam"]
    assert entry.interval.undefined == 3


def test_a_single_picture_has_a_mean_and_no_interval(run: Callable[..., Evaluation]) -> None:
    found = run(limit=1)
    entry = next(one for one in found.table() if one.metric == "average-drop" and one.method == "grad-cam")
    assert entry.interval.mean is not None
    assert entry.interval.low is None
    assert entry.over_random is None


def test_labels_unknown_to_the_model_are_rows_and_nothing_at_all_is_an_error(
    run: Callable[..., Evaluation], tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text("image,label\n0.png,unicorn\n1.png,cat\n")
    found = run(labels=str(tmp_path / "labels.csv"))
    assert "unicorn" in found.errors["dog/0.png"]
    lines = "\n".join(f"{number}.png,unicorn" for number in range(6))
    (tmp_path / "all.csv").write_text(f"image,label\n{lines}\n")
    with pytest.raises(ImageError, match=r"none of 6 pictures.*unicorn"):
        run(labels=str(tmp_path / "all.csv"), output=tmp_path / "out2")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"metrics": ["deletions"]}, MetricError, "Did you mean 'deletion'"),
        ({"methods": ["gradcam"]}, MethodError, "Did you mean 'grad-cam'"),
        ({"methods": []}, MethodError, "at least one"),
        ({"methods": ["grad-cam", "grad-cam"]}, MethodError, "twice"),
        ({"settings": {"deletion": {"step": 5}}}, MetricError, "not measured"),
        ({"settings": {"average-drop": {"steps": 5}}}, MetricError, "no option 'steps'"),
        ({"options": {"score-cam": {"samples": 3}}}, MethodError, "not among the methods"),
        ({"masks": "nowhere"}, MetricError, "no folder of masks"),
        ({"boxes": "nowhere.csv"}, MetricError, "can't be read"),
        ({"labels": "nowhere.csv"}, MetricError, "can't be read"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    run: Callable[..., Evaluation], changes: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        run(**changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["0.png,a,b,c,d", "0.png,5,5,4,9", "0.png,0,0,nan,4", "0.png,1,2,3"])
def test_a_box_that_is_none_is_refused_with_its_line(run: Callable[..., Evaluation], line: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(f"image,left,top,right,bottom\n{line}\n")
    with pytest.raises(MetricError, match="line 2"):
        run(boxes=tmp_path / "boxes.csv", metrics=["iou"])


def test_an_empty_map_is_counted_and_never_a_zero(run: Callable[..., Evaluation]) -> None:
    def nothing(capture: Any) -> Tensor:
        """Empty."""
        return torch.zeros_like(capture.activations[:, 0])

    found = run(methods=[nothing], metrics=["sparseness", "average-drop", "deletion"])
    assert np.isnan(found.values("average-drop", "nothing")).all()
    reasons = [row["values"]["nothing"]["average-drop"]["undefined"] for row in found.rows]
    assert all("map is empty" in reason for reason in reasons)
    assert np.isfinite(found.values("deletion", "nothing")).all()  # an order at random is still an order


def test_names_of_pictures_cannot_run_in_a_spreadsheet(
    album: Path, run: Callable[..., Evaluation], tmp_path: Path
) -> None:
    (album / "cat" / "1.png").rename(album / "cat" / "=1+1.png")
    run()
    assert "=1+1" not in (tmp_path / "out" / "table.csv").read_text()


def test_without_the_extra_it_is_said_before_anything_is_done(
    run: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("sightline._optional.find_spec", lambda name: None if name == "pyarrow" else real(name))
    with pytest.raises(MissingExtraError, match=r"\(pyarrow\): pip install 'sightline\[evaluate\]'"):
        run()
    assert not (tmp_path / "out").exists()
