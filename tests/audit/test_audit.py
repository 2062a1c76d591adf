"""The audit as a whole, on networks that have learned a known shortcut: found, named first, proven; and what is said of bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import planted_runs
from made_runs import make_run
from sightline.audit.disagreements import BLIND, RIGHT_ASIDE, WRONG_ON_IT, disagreements, doubtful_labels
from sightline.audit.heat import Heats, read_heats
from sightline.audit.moved import audit_moved
from sightline.audit.run import audit_run
from sightline.batch.results import open_run
from sightline.errors import MetricError, ModelError, OutputError

Made = tuple[Path, Any, Any]


def test_a_mark_in_the_corner_is_named_first_and_proven(mark: Made, tmp_path: Path) -> None:
    _, run, adapter = mark
    told: list[tuple[str, int, int]] = []
    found = audit_run(run, model=adapter, output=tmp_path / "audit", watch=lambda *one: told.append(one))
    first = found.tried[0]
    assert found.ruling.outcome == "shortcut"
    assert (first.candidate.of, first.candidate.what, first.ruling.outcome) == ("red", "region", "shortcut")
    assert first.candidate.place().startswith("the top left")
    for trial in first.trials:
        assert trial.flips >= 0.9
        assert trial.control <= 0.05
    assert {one.name: one.ruling.outcome for one in found.classes} == {
        "red": "shortcut", **dict.fromkeys(("green", "blue", "yellow"), "none found"),
    }  # fmt: skip
    assert found.notices == ()
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record == json.loads(json.dumps(found.record()))
    assert record["candidates"][0]["examples"][0]["before"].startswith("data:image/jpeg;base64,")
    (own,) = (tmp_path / "audit" / "pictures").glob("1-red")
    listed = list(csv.DictReader((own / "pictures.csv").read_text().splitlines()))
    assert {one["id"] for one in listed} <= set(found.heats.ids)
    assert len(list(own.glob("*-before.jpg"))) == len(list(own.glob("*-after.jpg"))) == 16
    budget = [of for what, _, of in told if what == "trying"]
    assert budget[-1] == found.forwards  # what it costs was said before the first trial
    assert [one for one in told if one[0] == "trying"][-1] == ("trying", found.forwards, found.forwards)


def test_masks_say_that_the_heat_lies_beside_the_objects_and_that_the_background_decides(mark: Made) -> None:
    folder, run, adapter = mark
    found = audit_run(run, model=adapter, masks=folder / "masks")
    red = next(one for one in found.classes if one.name == "red")
    others = [one for one in found.classes if one.name != "red"]
    inside = {one.name: next(part.share.mean for part in one.heat if part.part == "object") for one in (red, *others)}
    assert inside["red"] < 0.1
    assert min(inside[one.name] for one in others) > 0.6
    assert {one.candidate.what for one in found.tried if one.ruling.outcome == "shortcut"} == {"region", "background"}
    right_aside = found.disagreements[RIGHT_ASIDE]
    assert {one.predicted for one in right_aside} == {"red"}
    assert len(right_aside) > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["texture", "tone", "clean", "mark anywhere", "texture anywhere", "tone anywhere"])
def test_texture_and_tone_are_proven_and_clean_networks_are_not_accused(kind: str, tmp_path: Path) -> None:
    run, adapter, accuracy = planted_runs.make_run(kind, 1, tmp_path)
    assert accuracy > 0.95
    for masks in (None, tmp_path / "masks"):
        found = audit_run(run, model=adapter, masks=masks)
        accused = {
            (one.candidate.of, one.candidate.what)
            for one in found.tried
            if one.ruling.outcome in ("shortcut", "suspected")
        }
        if kind not in planted_runs.KINDS:
            assert found.ruling.outcome == "none found", found.ruling
            assert not accused
            continue
        assert {of for of, _ in accused} == {"red"}
        wanted = "background" if masks else kind
        (one,) = [each for each in found.tried if each.candidate.of == "red" and each.candidate.what == wanted]
        # Of texture alone the two directions are not always both strong, because the object's own edges stay.
        assert one.ruling.outcome in (
            ("shortcut", "suspected") if (kind, masks) == ("texture", None) else ("shortcut",)
        )
        assert max(trial.flips - trial.control for trial in one.trials) >= 0.9


def test_without_a_model_nothing_is_tried_and_the_maps_alone_can_only_suspect(mark: Made) -> None:
    found = audit_run(mark[1])
    assert found.forwards == 0
    assert found.ruling.outcome == "suspected"
    assert "Nothing was tried: that needs the model (--model) and its pictures." in found.notices
    assert {one.ruling.outcome for one in found.tried} == {"untried"}


def test_another_model_is_refused(mark: Made) -> None:
    module, _ = planted_runs.trained("clean", 0, steps=10)
    with pytest.raises(ModelError, match="small has other weights than the model of the run, small; give the same"):
        audit_run(mark[1], model=planted_runs.adapter_of(module))


def test_pictures_that_are_gone_or_elsewhere_are_said_and_found_with_data(mark: Made, tmp_path: Path) -> None:
    folder, _, adapter = mark
    shutil.copytree(folder / "run", tmp_path / "run")
    (folder / "photos").rename(tmp_path / "moved")
    try:
        gone = audit_run(tmp_path / "run", model=adapter)
        assert gone.forwards == 0
        assert any("photos doesn't exist" in one for one in gone.notices)
        assert (
            audit_run(tmp_path / "run", model=adapter, data=tmp_path / "moved", budget=1500).ruling.outcome
            == "shortcut"
        )
    finally:
        (tmp_path / "moved").rename(folder / "photos")


def test_no_more_pictures_are_shown_than_the_budget_allows(mark: Made) -> None:
    for budget in (1, 700, 2000):
        found = audit_run(mark[1], model=mark[2], budget=budget)
        assert found.forwards <= max(budget, 0)
        assert any("budget" in one for one in found.notices)


def test_the_same_seed_gives_the_same_audit(mark: Made) -> None:
    once, again = (audit_run(mark[1], model=mark[2], budget=1500, seed=5).record() for _ in range(2))
    assert json.dumps(once) == json.dumps(again)


def test_an_audit_is_replaced_only_when_forced_and_other_folders_never(mark: Made, tmp_path: Path) -> None:
    audit_run(mark[1], output=tmp_path / "audit")
    with pytest.raises(OutputError, match="exists; --force replaces it"):
        audit_run(mark[1], output=tmp_path / "audit")
    audit_run(mark[1], output=tmp_path / "audit", force=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="not a result of sightline"):
        audit_run(mark[1], output=tmp_path / "mine", force=True)


def test_runs_with_errors_one_class_few_pictures_or_other_labels_are_handled_and_said(tmp_path: Path) -> None:
    found = audit_run(make_run(tmp_path / "run"))
    assert found.ruling.outcome == "too few"
    assert found.ruling.says == "Too few pictures to claim anything: no class has 20."
    assert found.labels == ()
    said = " ".join(found.notices)
    for part in (
        "1 pictures failed in the run", "one class only", "No label is what the model calls a class", "grid of 2 x 3 is too coarse",
    ):  # fmt: skip
        assert part in said
    unlabelled = make_run(tmp_path / "bare", change=lambda row: row.update(label=None))
    assert any("have no labels" in one for one in audit_run(unlabelled).notices)


def test_masks_that_dont_fit_are_said_and_none_at_all_is_refused(mark: Made, tmp_path: Path) -> None:
    folder, run, _ = mark
    masks = tmp_path / "masks"
    shutil.copytree(folder / "masks", masks)
    (first, second, *_) = sorted(masks.rglob("*.png"))
    Image.new("L", (5, 5), 255).save(first)
    second.unlink()
    found = audit_run(run, masks=masks)
    assert any(one.startswith("2 of 256 pictures have no mask") for one in found.notices)
    assert any(one.startswith("1 masks don't fit, such as that of blue/") for one in found.notices)
    assert audit_moved(run, run, masks=masks).notices == tuple(found.notices[:2])
    (tmp_path / "none").mkdir()
    with pytest.raises(MetricError, match="none of the masks belongs to a picture of the run"):
        audit_run(run, masks=tmp_path / "none")
    with pytest.raises(OutputError, match="masks and boxes exclude each other"):
        audit_run(run, masks=masks, boxes=tmp_path / "b.csv")


def test_boxes_are_as_good_as_masks(mark: Made, tmp_path: Path) -> None:
    folder, run, _ = mark
    lines = ["image,left,top,right,bottom"]
    for mask in sorted((folder / "masks").rglob("*.png")):
        rows, columns = np.nonzero(np.asarray(Image.open(mask)))
        name = mask.relative_to(folder / "masks").as_posix()
        lines.append(f"{name},{columns.min()},{rows.min()},{columns.max() + 1},{rows.max() + 1}")
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    found = audit_run(run, boxes=tmp_path / "boxes.csv")
    inside = {one.name: next(part.share.mean for part in one.heat if part.part == "object") for one in found.classes}
    assert inside["red"] < 0.1
    assert min(value for name, value in inside.items() if name != "red") > 0.6


# --------------------------------------------------------------------------------------------------------- disagreements


def heats(rows: list[tuple[str | None, str, float, float, float]]) -> Heats:
    """Of (label, predicted, its probability, the label's probability, evidence)."""
    labels, predicted, chances, own, evidence = zip(*rows, strict=True)
    n = len(rows)
    maps = np.full((n, 3, 3), 1 / 9, np.float32)
    right = [np.nan if label is None else float(label == said) for label, said in zip(labels, predicted, strict=True)]
    return Heats(
        "grad-cam", tuple(f"{at}.png" for at in range(n)), labels, np.array(right), predicted, np.zeros(n, int), np.array(chances),
        np.array(own), predicted, maps, np.array(evidence), np.full((n, 2), 9), np.zeros((n, 6)), 0, 0, 0,
    )  # fmt: skip


def test_pictures_on_which_model_label_and_map_dont_agree() -> None:
    found = disagreements(
        heats(
            [
                ("cat", "cat", 0.9, 0.9, 1.0), ("cat", "cat", 0.8, 0.8, 1.0), ("cat", "dog", 0.7, 0.2, 1.0), ("dog", "dog", 0.95, 0.95, 0.01),
                ("dog", "cat", 0.99, 0.0, 1.0), ("dog", "dog", 0.5, 0.5, 1.2), (None, "dog", 0.9, np.nan, 1.1),
            ]
        ),
        np.array([0.1, 0.9, 0.8, np.nan, 0.1, 0.9, 0.0]),
    )  # fmt: skip
    ids = {kind: [one.id for one in each] for kind, each in found.items()}
    assert ids == {RIGHT_ASIDE: ["0.png"], WRONG_ON_IT: ["2.png"], BLIND: ["3.png"]}


def test_doubtful_labels_are_those_of_the_confident_joint() -> None:
    rows = [
        ("cat", "cat", 0.9, 0.9, 1.0), ("cat", "cat", 0.7, 0.7, 1.0), ("dog", "dog", 0.6, 0.6, 1.0), ("dog", "cat", 0.85, 0.1, 1.0),
        ("dog", "cat", 0.5, 0.4, 1.0), ("cat", "dog", 0.55, 0.3, 1.0), ("cat", "fox", 0.99, 0.0, 1.0), (None, "cat", 0.99, np.nan, 1.0),
    ]  # fmt: skip
    means: dict[str, float] = {}
    for name in ("cat", "dog"):
        own = [row[3] for row in rows if row[0] == name]
        means[name] = sum(own) / len(own)
    wanted = [
        at
        for at, (label, said, chance, _, _) in enumerate(rows)
        if label and label != said and said in means and chance >= means[said]
    ]
    found = doubtful_labels(heats(rows))
    assert sorted(one.id for one in found) == sorted(f"{at}.png" for at in wanted)
    assert [one.quality for one in found] == sorted(one.quality for one in found)
    assert wanted  # so that the test says something


# ------------------------------------------------------------------------------------------------------------------- moved


def test_what_moved_is_the_paired_difference_per_class(tmp_path: Path) -> None:
    names = [f"{kind}/{at:02}.png" for kind in ("cat", "dog") for at in range(25)]

    def before(row: dict[str, Any]) -> None:
        row["label"] = row["id"][:3]
        for one in row["maps"]:
            one |= {"height": 4, "width": 4, "heat": np.eye(1, 16, 0).ravel().astype(np.float16)}

    def after(row: dict[str, Any]) -> None:
        before(row)
        if row["label"] == "dog":
            row["predictions"] = [{"index": 1, "label": "dog", "probability": 0.9}]
            for one in row["maps"]:
                one["heat"] = np.eye(1, 16, 5).ravel().astype(np.float16)

    first = make_run(tmp_path / "a", names, failed=(), change=before)
    second = make_run(tmp_path / "b", names, failed=(), change=after)
    found = audit_moved(first, second, output=tmp_path / "moved")
    by = {one.name: one for one in found.classes}
    assert list(by) == ["all", "cat", "dog"]
    assert (by["cat"].answers, by["cat"].moved, by["cat"].says) == (0.0, 0.0, "no difference beyond chance")
    assert (by["dog"].answers, by["dog"].moved) == (1.0, 1.0)
    assert by["dog"].right.difference == 1.0
    assert (
        by["dog"].heat["corners"].difference
        == by["dog"].heat["border"].difference / by["dog"].heat["border"].difference * -1.0
    )
    assert "+100% right answers" in by["dog"].says
    assert by["all"].moved == pytest.approx(0.5)
    assert found.farthest[0][1:] == (1.0, "tabby", "dog")
    record = json.loads((tmp_path / "moved" / "moved.json").read_text())
    assert record["classes"][2]["right"]["difference"] == 1.0
    assert "dog,25,corners,-1.0" in (tmp_path / "moved" / "moved.csv").read_text()


def test_a_class_called_all_takes_the_place_of_nothing(tmp_path: Path) -> None:
    def halves(row: dict[str, Any]) -> None:
        row["label"] = "all" if row["id"] < "03" else "none"

    names = [f"{at:02}.png" for at in range(6)]
    runs = [make_run(tmp_path / name, names, failed=(), change=halves) for name in ("a", "b")]
    found = audit_moved(*runs)
    assert [(one.name, one.pictures) for one in found.classes] == [("all", 6), ("all", 3), ("none", 3)]


def test_runs_over_other_pictures_are_refused_and_some_others_said(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", ["1.png", "2.png"], failed=())
    with pytest.raises(OutputError, match=r"share no picture: '1\.png' is of the first, '3\.png' of the second"):
        audit_moved(first, make_run(tmp_path / "b", ["3.png"], failed=()))
    found = audit_moved(first, make_run(tmp_path / "c", ["2.png", "3.png", "4.png"], failed=()))
    assert found.notices == (
        "1 pictures of a are not in both runs and are left out.",
        "2 pictures of c are not in both runs and are left out.",
    )
    assert found.classes[0].says.startswith("too few pictures")


def test_a_run_of_before_the_audit_says_where_to_give_its_pictures(tmp_path: Path) -> None:
    from sightline.audit.pictures import source_of
    from sightline.errors import ImageError

    with pytest.raises(ImageError, match="doesn't say where its pictures are; give them with --data"):
        source_of(open_run(make_run(tmp_path / "run")), None)
    assert len(read_heats(open_run(tmp_path / "run"))) == 9
