"""What a training leaves behind: the numbers are those of its epochs and pictures, and no name can do anything."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import resource
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Plain
from sightline import adapt
from sightline.errors import NonFiniteError, OutputError
from sightline.flow import compare, look
from sightline.models.adapter import Adapter
from sightline.render.page import Page
from sightline.train import outcome
from sightline.train.folders import Example, Folders
from sightline.train.outcome import EVEN_BORDER, Epoch, headline, write_outcome

NAN = float("nan")
FILES = ["confusion.csv", "confusion.png", "curves.csv", "curves.png", "index.html", "mistakes.png", "predictions.csv"]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}{% raw %}",
    "\u202egnp.exe",
    "M" * 200,
)


def network(classes: Sequence[str]) -> Adapter:
    torch.manual_seed(0)
    module = Plain().eval()
    module.head = torch.nn.Linear(8, len(classes))

    def preprocess(photo: Image.Image) -> torch.Tensor:
        values = np.array(photo.resize((16, 16)).convert("RGB"), np.float32)
        return torch.from_numpy(values).permute(2, 0, 1) / 255

    return adapt(module, layers=["relu2"], preprocess=preprocess, labels=list(classes))


def pictures(root: Path, names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> Folders:
    """Pictures of noise under these names, all of them left out of the training."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    found = []
    for index, (name, label) in enumerate(zip(names, labels, strict=True)):
        path = root / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(path)
        found.append(Example(name, path, label, f"{index:064d}"))
    return Folders(root, tuple(classes), (), tuple(found), (), (), (), None)


def epoch(number: int, **changed: Any) -> Epoch:
    return dataclasses.replace(Epoch(number, 0.5, 0.75, 0.625, 0.7, 1e-3, 12.5, 0.4, 0.1), **changed)


def written(folder: Path, folders: Folders, probabilities: Any, **changed: Any) -> Path:
    given: dict[str, Any] = {
        "adapter": network(folders.classes),
        "folders": folders,
        "history": [epoch(1, moved=NAN), epoch(2)],
        "best": 2,
        "probabilities": np.array(probabilities),
        "film": Image.new("RGB", (40, 20)),
        "told": ["nothing was left out"],
        "settings": {"model": "bundled", "freeze": True, "seed": None},
        "finished": True,
    }
    write_outcome(folder, **given | changed)
    return folder


@pytest.fixture
def three(tmp_path: Path) -> Folders:
    """Of these the probabilities below name two rightly."""
    return pictures(tmp_path / "data", ["a/1.png", "b/2.png", "b/3.png", "a/=4.png"], [0, 1, 1, 0], ["ash", "birch"])


SAID = [[0.9, 0.1], [0.25, 0.75], [0.8, 0.2], [0.4, 0.6]]


def rows(file: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))


class Read(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.content = file.read_text(encoding="utf-8")
        self.feed(self.content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.pieces)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# --------------------------------------------------------------------------------------------------------------- tables


def test_curves_csv_holds_every_field_of_every_epoch_and_nothing_for_nan(three: Folders, tmp_path: Path) -> None:
    head, first, second = rows(written(tmp_path / "run", three, SAID) / "curves.csv")
    assert head == [
        *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
        *("learning_rate", "seconds", "border", "moved"),
    ]
    assert first == ["1", "0.5", "0.75", "0.625", "0.7", "0.001", "12.5", "0.4", ""]
    assert second == ["2", "0.5", "0.75", "0.625", "0.7", "0.001", "12.5", "0.4", "0.1"]


def test_confusion_csv_has_true_classes_down_and_said_ones_across(three: Folders, tmp_path: Path) -> None:
    # Said are ash, birch, ash, birch of ash, birch, birch, ash; a third ash makes it lopsided.
    more = dataclasses.replace(three, val=(*three.val, three.val[0]))
    found = rows(written(tmp_path / "run", more, [*SAID, [1.0, 0.0]]) / "confusion.csv")
    assert found == [["true \\ said", "ash", "birch"], ["ash", "2", "1"], ["birch", "1", "1"]]


def test_predictions_csv_holds_what_was_said_of_each_picture(three: Folders, tmp_path: Path) -> None:
    assert rows(written(tmp_path / "run", three, SAID) / "predictions.csv") == [
        ["picture", "true", "predicted", "right", "probability of predicted", "probability of true"],
        ["a/1.png", "ash", "ash", "yes", "0.9", "0.9"],
        ["b/2.png", "birch", "birch", "yes", "0.75", "0.75"],
        ["b/3.png", "birch", "ash", "no", "0.8", "0.2"],
        ["a/=4.png", "ash", "birch", "no", "0.6", "0.4"],
    ]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\n"])
def test_no_cell_begins_as_a_formula(first: str, tmp_path: Path) -> None:
    folders = pictures(tmp_path / "data", [f"{first}1+1.png"], [0], [f"{first}A1", "b"])
    folder = written(tmp_path / "run", folders, [[0.9, 0.1]])
    for name in ("predictions.csv", "confusion.csv"):
        cells = [cell for row in rows(folder / name) for cell in row]
        assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n")]
        assert [cell for cell in cells if cell.startswith("'")]


# ------------------------------------------------------------------------------------------------------------- headline


def test_the_headline_says_how_many_and_how_sure() -> None:
    assert headline(["cat", "dog"], 197, 200, 7) == (
        "cat / dog: 98.5 % of 200 unseen pictures right (197; 95 % interval 95.7 to 99.5) after epoch 7"
    )


def test_one_mistake_in_many_is_not_rounded_to_all() -> None:
    assert ": 99.9 % of 10,000 " in headline(["cat", "dog"], 9_999, 10_000, 1)
    assert ": 100 % of 10,000 " in headline(["cat", "dog"], 10_000, 10_000, 1)


def test_the_headline_of_many_long_classes_stays_a_sentence() -> None:
    assert len(headline(["M" * 200] * 100, 50, 100, 3)) < 350


# ------------------------------------------------------------------------------------------------------------- pictures


def test_the_worst_mistakes_are_those_of_which_the_model_was_surest(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(15)]
    folders = pictures(tmp_path / "data", names, [0] * 15, ["ash", "birch"])
    sure = np.linspace(0.6, 0.95, 15)
    page = Read(written(tmp_path / "run", folders, np.stack([1 - sure, sure], axis=1)) / "index.html")
    (said,) = [one["alt"] for one in page.all("img") if "got wrong" in (one["alt"] or "")]
    listed = (said or "").split(": ", 1)[1].split("; ")
    assert listed == [f"said birch {round(100 * value)} %, is ash" for value in sorted(sure)[:2:-1]]
    assert len(listed) == 12


def test_the_maps_of_a_mistake_are_those_of_the_class_that_was_said_and_of_the_true_one(
    three: Folders, tmp_path: Path
) -> None:
    adapter = network(three.classes)
    verdict = outcome._verdicts(three, np.array(SAID))[2]
    tiles = outcome._row(adapter, three.classes, verdict)
    said, true = compare(look(three.val[2].path, adapter), methods=["grad-cam"], targets=["ash", "birch"])
    assert [tile.title for tile in tiles] == ["said ash 80 %, is birch", "for ash", "for birch"]
    assert not np.array_equal(said.raw, true.raw)
    for tile, heatmap in zip(tiles[1:], (said, true), strict=True):
        assert np.array_equal(np.asarray(tile.image), np.asarray(outcome._small(heatmap.overlay())))


def test_without_a_mistake_there_is_no_picture_of_mistakes_and_the_page_says_so(three: Folders, tmp_path: Path) -> None:
    folder = written(tmp_path / "run", three, SAID)
    assert sorted(one.name for one in folder.iterdir()) == FILES
    written(folder, three, [[0.9, 0.1], [0.25, 0.75], [0.2, 0.8], [0.6, 0.4]])
    assert sorted(one.name for one in folder.iterdir()) == [name for name in FILES if name != "mistakes.png"]
    assert "No mistake: every one of the 4 pictures was named rightly." in Read(folder / "index.html").text


def test_a_mistake_whose_photograph_is_gone_is_told_and_the_others_are_drawn(three: Folders, tmp_path: Path) -> None:
    three.val[2].path.unlink()
    folder = written(tmp_path / "run", three, SAID)
    assert (folder / "mistakes.png").exists()
    assert "b/3.png can't be shown: " in Read(folder / "index.html").text


def test_a_picture_of_one_epoch_shows_a_dot_at_a_whole_number(
    three: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    image = Page.image

    def watched(page: Any, height: float) -> Image.Image:
        drawn.append([one.get_text() for one in page._figure.artists if hasattr(one, "get_text")])
        return image(page, height)

    monkeypatch.setattr(Page, "image", watched)
    folder = written(tmp_path / "run", three, SAID, history=[epoch(3, moved=NAN)], best=3)
    loss, accuracy, heat, _ = drawn
    assert "3" in loss
    assert not {"2.8", "2.9", "3.0", "2", "4"} & {*loss, *accuracy, *heat}
    assert "epoch 3, which was kept" in loss
    assert "Epoch 3: validation 70.0 %, training 75.0 %" in accuracy
    assert {"even map 43.8 %", "at the border", "moved (no value)"} <= {*heat}
    with Image.open(folder / "curves.png") as curves:
        # Blue where the validation's dot is: a third of the way across the first panel.
        blue = (np.asarray(curves.convert("RGB")) == (0, 114, 178)).all(axis=2)
    assert blue.sum() > 100


def test_infinite_losses_are_left_out_of_the_picture_but_stand_in_the_table(three: Folders, tmp_path: Path) -> None:
    history = [epoch(1, val_loss=float("inf"), border=NAN), epoch(2, border=NAN)]
    folder = written(tmp_path / "run", three, SAID, history=history)
    assert rows(folder / "curves.csv")[1][3] == "inf"
    assert "There is no figure of how much heat lies at the border" in Read(folder / "index.html").text


def test_an_even_map_has_its_share_in_the_border() -> None:
    grid = np.zeros((80, 80))
    grid[10:70, 10:70] = 1
    assert pytest.approx(1 - grid.mean()) == EVEN_BORDER == 0.4375


# ----------------------------------------------------------------------------------------------------------------- page


def test_the_page_holds_everything_in_one_file_and_in_order(three: Folders, tmp_path: Path) -> None:
    folder = written(tmp_path / "my run", three, SAID)
    page = Read(folder / "index.html")
    assert [one["id"] for one in page.all("h2")] == [
        *("use", "film", "curves", "confusion", "mistakes", "data", "settings"),
    ]
    assert page.all("html") == [{"lang": "en"}]
    assert headline(three.classes, 2, 4, 2) in page.text
    assert f"sightline explain PHOTO --model '{folder}'" in page.text
    assert f"sightline.load_model({str(folder)!r})" in page.text
    assert "After epoch 2, 40.0 % of the heat" in page.text
    assert "43.8 %" in page.text
    assert "nothing was left out" in page.text
    assert "This training is not over" not in page.text
    for one in page.all("img"):
        kind, _, data = (one["src"] or "").partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            assert kind == f"data:image/{(picture.format or '').lower()}"
        assert len(one["alt"] or "") > 20


def test_a_training_that_was_stopped_says_so(three: Folders, tmp_path: Path) -> None:
    folder = written(tmp_path / "run", three, SAID, finished=False, film=None)
    assert "This training is not over: 2 epochs are done." in Read(folder / "index.html").text


def test_each_class_has_its_line_and_the_worst_is_first(three: Folders, tmp_path: Path) -> None:
    more = dataclasses.replace(three, classes=("ash", "birch", "elm"), val=(*three.val, three.val[0]))
    said = [[*row, 0.0] for row in [*SAID, [1.0, 0.0]]]
    text = Read(written(tmp_path / "run", more, said) / "index.html").text
    # Wilson's by hand, z² = 3.8415: (1 + z²/2 -+ z sqrt(1/2 + z²/4)) / (2 + z²) for 1 of 2.
    assert "birch 2 1 50.0 % 9.5 to 90.5 ash (1) ash 3 2 66.7 % 20.8 to 93.9 birch (1) elm 0 no picture" in text
    assert "Who always says ash is right for 60.0 % of them." in text


def test_no_name_can_do_anything_in_the_page(tmp_path: Path) -> None:
    count = len(HOSTILE)
    folders = pictures(tmp_path / "data", [f"{name}.png" for name in HOSTILE], range(count), HOSTILE)
    said = np.roll(np.eye(count), 1, axis=1) * 0.5 + 0.1  # everything is taken for something else
    folder = written(
        tmp_path / HOSTILE[0].replace("/", " "),
        folders,
        said,
        told=[f"left out: {name}" for name in HOSTILE],
        settings=dict.fromkeys(HOSTILE, HOSTILE[1]),
    )
    page = Read(folder / "index.html")
    assert {tag for tag, _ in page.elements} == {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "section", "h1", "h2", "p", "pre", "strong"),
        *("figure", "figcaption", "div", "img", "table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li"),
    }  # fmt: skip
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"href", "srcset", "action", "background"} & attributes.keys()
        assert tag == "img" or "src" not in attributes
    assert all((one["src"] or "").startswith("data:image/") for one in page.all("img"))
    (policy,) = [one["content"] or "" for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "49" not in page.text.partition("The data")[2]
    assert "{{7*7}}" in page.text
    assert "\u202e" not in page.content
    assert "http://" not in page.content
    assert "https://" not in page.content


def test_a_browser_shows_hostile_names_as_text_asks_for_nothing_and_never_scrolls_sideways(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    folders = pictures(tmp_path / "data", [f"{name}.png" for name in HOSTILE], range(len(HOSTILE)), HOSTILE)
    file = written(tmp_path / "run", folders, np.roll(np.eye(len(HOSTILE)), 1, axis=1), told=HOSTILE) / "index.html"
    with playwright.sync_playwright() as running:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = running.chromium.launch(executable_path=program, args=flags)
        for scheme in ("light", "dark"):
            asked: list[str] = []
            page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda message, asked=asked: asked.append(message.text))
            page.on("dialog", lambda dialog, asked=asked: (asked.append(dialog.message), dialog.dismiss()))
            page.goto(file.as_uri())
            shown = page.evaluate("[...document.images].map(one => one.complete && one.naturalWidth > 0)")
            ink, paper = page.evaluate(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            assert HOSTILE[0] in page.inner_text("#data ~ ul")
            assert [one for one in asked if not one.startswith("data:image/")] == [file.as_uri()]
            assert shown == [True] * 6
            bright = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (ink, paper)]
            assert (bright[0] < bright[1]) == (scheme == "light")
            assert abs(bright[0] - bright[1]) > 500
        browser.close()


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_full_disk_is_an_output_error_and_the_old_files_stay(tmp_path: Path) -> None:
    folders = pictures(tmp_path / "data", ["a/1.png", "b/2.png"], [0, 1], ["ash", "birch"])
    run = written(tmp_path / "run", folders, [[0.9, 0.1], [0.25, 0.75]])
    before = {one.name: one.read_bytes() for one in run.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # as if the disk were full then
    try:
        with pytest.raises(OutputError) as error:
            written(run, folders, [[0.1, 0.9], [0.25, 0.75]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == f"{run} can't be written: File too large. Choose another place with -o"
    after = {one.name: one.read_bytes() for one in run.iterdir()}
    assert sorted(after) == [name for name in FILES if name != "mistakes.png"]
    for name in ("index.html", "curves.png"):
        assert after[name] == before[name]


def test_a_run_folder_that_is_a_file_is_an_output_error(three: Folders, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError, match="can't be written: File exists"):
        written(tmp_path / "run", three, SAID)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("shape", [(3, 2), (4, 3), (4,)])
def test_probabilities_of_other_pictures_or_classes_are_refused(
    shape: tuple[int, ...], three: Folders, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"expected \(4, 2\), a row for each picture"):
        written(tmp_path / "run", three, np.full(shape, 0.5))
    assert not (tmp_path / "run").exists()


def test_a_model_that_went_astray_is_not_given_an_accuracy(three: Folders, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinite for 1 of 4 pictures") as caught:
        written(tmp_path / "run", three, [*SAID[:3], [NAN, NAN]])
    assert caught.value.images == (3,)


def test_nothing_to_write_about_is_refused(three: Folders, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no epoch to write about"):
        written(tmp_path / "run", three, SAID, history=[])
