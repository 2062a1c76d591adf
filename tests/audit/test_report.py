"""A report: what it says of good and bad runs, that it appears whole or not at all, and in a real browser that it does what it shows and runs nothing of a run's."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline
from made_runs import make_run
from sightline.audit import report as module
from sightline.audit.report import write_report
from sightline.batch.results import open_run
from sightline.errors import OutputError
from sightline.render.overlay import overlay

DEMO = Path(sightline.__file__).parent / "data" / "demo"
CLASSES = ("tabby", "cock", "goldfish")


def jpeg(photo: Image.Image, side: int = 96) -> bytes:
    small, buffer = photo.convert("RGB"), io.BytesIO()
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def varied(one: dict[str, Any]) -> None:
    """Other classes, sureness and heat for each picture; every third is wrong, and each fifth has no label."""
    if one.get("error"):
        return
    number = int(re.sub(r"\D", "", one["id"]) or 0)
    said = CLASSES[number % 3]
    one["predictions"] = [
        {"index": 7, "label": said, "probability": 0.3 + number / 100},
        {"index": 8, "label": "other", "probability": 0.1},
    ]
    one["label"] = "" if number % 5 == 4 else said if number % 3 else "Gold_Fish"
    grid = np.zeros((7, 7), np.float16)
    grid[number % 7, number % 7] = 1  # 0 and 6 lie in the border
    grid[3, 3] = 0.5
    for at, heat in enumerate(one["maps"]):
        heat |= {"height": 7, "width": 7, "heat": grid.ravel() / (at + 1), "evidence": 0.1 + (number * 7 % 10) / 10}


def made(folder: Path, count: int = 12, change: Callable[[dict[str, Any]], None] = varied, **options: Any) -> Path:
    options = {"failed": (7,), "shard": 100, **options}
    return make_run(folder, [f"cats/{number:03}.jpg" for number in range(count)], change=change, **options)


def data(page: str, name: str) -> Any:
    return json.loads(re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)[0])


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def audit(**changed: Any) -> dict[str, Any]:
    """An audit in which something stands in every part."""
    address = f"data:image/jpeg;base64,{base64.b64encode(jpeg(Image.new('RGB', (64, 64), 'green'))).decode()}"
    mean = {"shape": [7, 7], "values": [0.02] * 49}
    verdict = {"says": "It relies on the corner.", "because": ["62 % flip."], "next": ["Cut the corner off."]}
    example = {"id": "cats/003.jpg", "before": address, "after": address, "said_before": "tabby", "said_after": "cock"}
    trial = {"change": "blurred", "pictures": 40, "flips": 0.62, "control": 0.05, "difference": 0.57, "low": 0.4, "high": 0.7, "p": 0.0002}  # fmt: skip
    said = {
        "id": "cats/005.jpg",
        "label": "cat",
        "predicted": "tabby",
        "probability": 0.9,
        "says": "the second best is near",
    }
    return {
        "schema": "sightline.audit/1",
        "run": {"model": "bundled", "method": "grad-cam", "pictures": 12, "done": 11, "errors": 1, "labelled": 9, "grid": [7, 7], "masks": False},
        "outcome": "shortcut", **verdict, "notices": ["Few pictures."], "forwards": 4120,
        "classes": [
            {"class": "tabby", "pictures": 20, "outcome": "suspected", **verdict, "mean": mean, "where": {"border": {"mean": 0.5, "low": 0.4, "high": 0.6, "even": 0.4375}}},
            {"class": "cock", "pictures": None, "outcome": "too few", "says": "", "because": [], "next": [], "mean": None, "where": {"border": {"mean": None, "low": None, "high": None, "even": None}}},
        ],
        "clusters": [{"class": "tabby", "number": 1, "pictures": 5, "share": 0.4, "separation": 1.2, "p": None, "mean": mean, "examples": ["cats/001.jpg", "gone.jpg"]}],
        "candidates": [{"class": "tabby", "number": 1, "what": "region", "outcome": "shortcut", "says": "", "box": [0.1, 0.2, 0.5, 0.6], "trials": [trial, dict.fromkeys(trial)], "examples": [example]}],
        "disagreements": {"sure and wrong": [said], "none of these": []},
        "labels": [{**said, "quality": 0.01}],
        **changed,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ what it says


def test_a_report_is_one_file_that_names_no_address(tmp_path: Path) -> None:
    written = write_report(made(tmp_path / "run"), tmp_path / "report.html")
    assert written == tmp_path / "report.html"
    page = text(written)
    assert page.startswith("<!DOCTYPE html>\n<!-- sightline.report/1 -->")
    named = re.sub(r"http-equiv|http://www\.w3\.org/2000/svg", "", page)  # the name of SVG, that nothing is asked of
    assert "http" not in named
    assert not re.search(r"<[^>]+\son[a-z]+=", page.partition("<script>")[0]), "an inline handler"
    assert len(data(page, "entries")) == 12
    assert sorted(one.name for one in tmp_path.iterdir()) == ["report.html", "run"]


def test_the_figures_of_the_header_are_those_of_the_rows(tmp_path: Path) -> None:
    page = text(write_report(made(tmp_path / "run", 30), tmp_path / "report.html"))
    rows = [one for one in open_run(tmp_path / "run") if not one.error]
    right = sum(one.label == one.predictions[0].label for one in rows)
    labelled = sum(bool(one.label) for one in rows)
    assert f"{right:,} of {labelled:,};" in page
    assert "1 picture failed (1 at stage read)" in page
    assert "cut off" in page


def test_labels_are_compared_as_folders_spell_them_and_by_their_number(tmp_path: Path) -> None:
    names = iter(["Tabby", "TABBY", "281", "tab_by", "cat"])

    def change(one: dict[str, Any]) -> None:
        one["label"] = next(names)

    page = text(write_report(made(tmp_path / "run", 5, change, failed=()), tmp_path / "report.html"))
    assert [module.STATES[one[4]] for one in data(page, "entries")] == ["right", "right", "right", "wrong", "wrong"]


def test_a_run_without_labels_says_nothing_of_right_and_wrong(tmp_path: Path) -> None:
    page = text(write_report(made(tmp_path / "run", 3, lambda one: one.update(label=None)), tmp_path / "report.html"))
    assert "have no labels" in page
    assert "predicted as labelled" not in page


def test_labels_that_are_no_class_of_the_model_are_not_judged(tmp_path: Path) -> None:
    page = text(write_report(made(tmp_path / "run", 3, lambda one: None), tmp_path / "report.html"))  # cat, never tabby
    assert "not judged" in page
    assert "predicted as labelled" not in page
    assert data(page, "data")["judged"] is False


def test_a_run_of_one_class_and_one_of_errors_alone_have_a_report(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", change=lambda row: row.update(label="tabby"), failed=())
    assert "one and the same class" in text(write_report(one, tmp_path / "one.html"))
    failed = make_run(tmp_path / "failed", ["a.jpg", "b.jpg"], failed=(0, 1))
    page = text(write_report(failed, tmp_path / "failed.html"))
    assert [module.STATES[line[4]] for line in data(page, "entries")] == ["error", "error"]


def test_an_incomplete_and_an_empty_run_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "shards" / "000001.parquet").unlink()
    assert "The run is not complete: 4 of 10" in text(write_report(run, tmp_path / "report.html"))
    empty = make_run(tmp_path / "empty", [], failed=())
    assert data(text(write_report(empty, tmp_path / "empty.html")), "entries") == []


def test_what_a_damaged_row_holds_is_left_out_and_told(tmp_path: Path) -> None:
    def change(one: dict[str, Any]) -> None:
        if not one.get("error"):
            one["thumbnail"] = b"<svg onload=alert(1)>"
            one["view"] = {**one["view"], "offset_x": float("nan")}
            one["predictions"][0]["probability"] = float("nan")
            one["maps"][0] |= {"heat": np.full(6, np.nan, np.float16), "evidence": float("inf")}
            one["maps"][1] |= {"probability": None, "metrics": None}

    page = text(write_report(made(tmp_path / "run", 2, change, failed=()), tmp_path / "report.html"))
    block = data(page, "d0")
    assert block["photo"] == ""
    assert "its thumbnail can't be read" in block["notices"][-1]
    assert data(page, "entries")[0][3] is None


def test_a_border_is_the_share_of_heat_in_the_outer_eighth(tmp_path: Path) -> None:
    page = text(write_report(made(tmp_path / "run", 8, failed=()), tmp_path / "report.html"))
    borders = [line[6][0] for line in data(page, "entries")]
    assert borders[0] == pytest.approx(1 / 1.5 * (1 - (1 / 8) ** 2), abs=0.01), (
        "a corner cell: an eighth of a seventh is inside"
    )
    assert borders[2] == 0


# -------------------------------------------------------------------------------------------------------- whole or not there


def test_only_a_report_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    run, output = made(tmp_path / "run", 2), tmp_path / "report.html"
    output.write_text("<!DOCTYPE html>\nmine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists; --force"):
        write_report(run, output)
    with pytest.raises(OutputError, match="no report of sightline"):
        write_report(run, output, force=True)
    assert text(output) == "<!DOCTYPE html>\nmine"
    output.unlink()
    write_report(run, output)
    before = output.stat().st_mtime_ns
    write_report(run, output, force=True)
    assert output.stat().st_mtime_ns > before
    link = tmp_path / "link.html"
    link.symlink_to(output)
    with pytest.raises(OutputError, match="no report of sightline"):
        write_report(run, link, force=True)


def test_nothing_is_written_into_a_run(tmp_path: Path) -> None:
    run = made(tmp_path / "run", 2)
    with pytest.raises(OutputError, match="lies in the run"):
        write_report(run, run / "report.html")


def test_a_damaged_shard_leaves_what_was_there(tmp_path: Path) -> None:
    run, output = make_run(tmp_path / "run"), tmp_path / "report.html"
    write_report(run, output)
    before = output.read_bytes()
    shard = run / "shards" / "000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(OutputError, match="damaged"):
        write_report(run, output, force=True)
    assert output.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["report.html", "run"]


def test_a_folder_that_can_t_be_written_is_said(tmp_path: Path) -> None:
    run = made(tmp_path / "run", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        write_report(run, tmp_path / "file" / "report.html")
    with pytest.raises(OutputError, match="can't be written"):
        write_report(run, tmp_path / "nowhere" / "report.html")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and pages that are full soon."""
    monkeypatch.setattr(module, "MOST", 6)
    monkeypatch.setattr(module, "A_PAGE", 5)


@pytest.mark.usefixtures("small")
def test_more_pictures_are_a_folder_whose_index_lists_all(tmp_path: Path) -> None:
    run, told = made(tmp_path / "run"), []
    written = write_report(run, tmp_path / "report.html", audit=audit(), watch=lambda *seen: told.append(seen))
    assert written == tmp_path / "report-pages" / "index.html"
    assert told[-1] == (12, 12)
    files = sorted(one.name for one in written.parent.iterdir())
    assert files == ["index.html", "manifest.json", "page-0001.html", "page-0002.html", "page-0003.html"]
    index = text(written)
    assert [one[0] for one in data(index, "entries")] == [row.id for row in open_run(run)]
    assert 'id="d0"' not in index
    assert 'href="page-0002.html#p5"' in index, "what the audit names is found on its page"
    last = text(written.parent / "page-0003.html")
    assert data(last, "data")["first"] == 10
    assert data(last, "d11")["maps"][0]["title"] == "tabby, 50 %"
    assert "Verdict" not in last


@pytest.mark.usefixtures("small")
def test_only_a_report_s_folder_is_replaced(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    shutil.copytree(make_run(tmp_path / "other"), tmp_path / "pages")
    with pytest.raises(OutputError, match="no report of sightline"):
        write_report(run, tmp_path / "pages", force=True)
    assert (tmp_path / "pages" / "shards").is_dir()
    write_report(run, tmp_path / "new")
    write_report(run, tmp_path / "new", force=True)
    with pytest.raises(OutputError, match="exists"):
        write_report(run, tmp_path / "new")


@pytest.mark.usefixtures("small")
def test_a_list_that_no_browser_filters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LISTED", 11)
    with pytest.raises(OutputError, match="lists at most 11"):
        write_report(made(tmp_path / "run"), tmp_path / "report.html")


# ------------------------------------------------------------------------------------------------------------------- audit


def test_every_part_of_an_audit_is_on_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    (folder / "audit.json").write_text(json.dumps(audit()), encoding="utf-8")
    page = text(write_report(made(tmp_path / "run"), tmp_path / "report.html", audit=folder))
    for section in ("verdict", "candidates", "classes", "clusters", "disagreements", "labels"):
        assert f'<h2 id="{section}">' in page
    for shown in ("It relies on the corner.", "Cut the corner off.", "+57 points (+40 to +70)", "&lt; 0.001", "sure and wrong", "Few pictures."):  # fmt: skip
        assert shown in page
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert '<a href="#p3" dir="auto">cats/003.jpg</a>' in page
    assert '<span dir="auto">gone.jpg</span>' in page, "a picture that isn't in the run leads nowhere"


def test_an_audit_that_found_nothing_leaves_its_parts_out(tmp_path: Path) -> None:
    nothing = {"schema": "sightline.audit/1", "outcome": "none found", "says": "Nothing was found."}
    page = text(write_report(made(tmp_path / "run", 2), tmp_path / "report.html", audit=nothing))
    assert "Nothing was found." in page
    assert '<h2 id="candidates">' not in page


@pytest.mark.parametrize(
    "address",
    ["javascript:alert(1)", "http://127.0.0.1/a.jpg", "data:text/html;base64,PGI+", "data:image/svg+xml;base64,PHN2Zz4=", "data:image/jpeg;base64,PHN2Zz4=", "data:image/jpeg;base64,/9j/\" onerror=\"alert(1)", "data:image/jpeg;base64,/9j/A", 7, None],
)  # fmt: skip
def test_only_addresses_that_hold_a_jpeg_are_taken_from_an_audit(tmp_path: Path, address: Any) -> None:
    found = audit()
    found["candidates"][0]["examples"][0] |= {"before": address, "after": address}
    page = text(write_report(made(tmp_path / "run", 4), tmp_path / "report.html", audit=found))
    assert "<img" not in page.partition("<script>")[0]
    assert page.count("no picture") == 2


@pytest.mark.parametrize(
    "changed",
    [{"schema": "sightline.batch/1"}, {"classes": "x"}, {"classes": [3]}, {"disagreements": [1]}, {"candidates": [{"box": [1]}]}, {"candidates": [{"trials": "x"}]}, {"clusters": [{"mean": {"shape": [7, 7], "values": [1.0]}}]}, {"clusters": [{"mean": {"shape": [900, 900]}}]}, {"run": 4}, {"labels": {"a": 1}}, {"because": 3}],
)  # fmt: skip
def test_an_audit_of_another_shape_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(OutputError, match="audit"):
        write_report(made(tmp_path / "run", 2), tmp_path / "report.html", audit=audit(**changed))
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_an_audit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"audit\.json"):
        write_report(made(tmp_path / "run", 2), tmp_path / "report.html", audit=tmp_path)


def test_500_pictures_fit_into_10_mb(tmp_path: Path) -> None:
    small = [jpeg(Image.open(one)) for one in sorted(DEMO.glob("*.jpg"))]
    heat = np.random.default_rng(0).random((2, 49)).astype(np.float16)

    def change(one: dict[str, Any]) -> None:
        if not one.get("error"):
            one["thumbnail"] = small[int(one["id"][5:8]) % len(small)]
            for at, each in enumerate(one["maps"]):
                each |= {"height": 7, "width": 7, "heat": heat[at]}

    written = write_report(made(tmp_path / "run", 500, change), tmp_path / "report.html")
    assert written.stat().st_size < 10e6


# ------------------------------------------------------------------------------------------------------- in a real browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page in which no error, no message of the policy, no dialog and no request may happen."""
    context = browser.new_context(viewport={"width": 1250, "height": 1000})
    found = context.new_page()
    found.wrong = []
    found.on("pageerror", lambda error: found.wrong.append(str(error)))
    found.on("console", lambda message: found.wrong.append(message.text))
    found.on("dialog", lambda dialog: (found.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    found.on("popup", lambda popup: found.wrong.append(popup.url))
    found.on("request", lambda request: found.wrong.append(request.url) if not request.url.startswith(("data:", "file:")) else 0)  # fmt: skip
    yield found
    assert found.wrong == []
    context.close()


def opened(page: Any, file: Path) -> None:
    page.goto(file.as_uri())
    page.wait_for_function("() => document.documentElement.dataset.ready", timeout=30000)


def names(page: Any) -> list[str]:
    return page.locator("#cards .name").all_text_contents()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 30 pictures with an audit, beside its run."""
    folder = tmp_path_factory.mktemp("shown")
    return write_report(made(folder / "run", 30), folder / "report.html", audit=audit())


def test_filters_search_and_order_do_what_they_say(page: Any, shown: Path) -> None:
    opened(page, shown)
    rows = {one.id: one for one in open_run(shown.parent / "run")}
    good = [one for one in rows.values() if not one.error]
    assert names(page) == list(rows)
    page.locator("#by-predicted").select_option(
        label=f"tabby ({sum(one.predictions[0].label == 'tabby' for one in good)})"
    )
    assert names(page) == [one.id for one in good if one.predictions[0].label == "tabby"]
    page.locator("#by-state").select_option("wrong")
    assert names(page) == [one.id for one in good if one.predictions[0].label == "tabby" and one.label]
    page.locator("#by-predicted").select_option("")
    page.locator("#by-state").select_option("error")
    assert names(page) == ["cats/007.jpg"]
    assert "cut off" in page.locator("#cards").text_content()
    page.locator("#by-state").select_option("")
    page.locator("#by-label").select_option(label=f"cock ({sum(one.label == 'cock' for one in good)})")
    assert names(page) == [one.id for one in good if one.label == "cock"]
    page.locator("#by-label").select_option("")
    page.locator("#by-words").fill("/02 GOLD")
    page.wait_for_function("() => document.getElementById('told').textContent !== '30 pictures'")
    assert names(page) == [
        one.id for one in good if "/02" in one.id and "gold" in f"{one.label} {one.predictions[0].label}".lower()
    ]
    page.locator("#by-words").fill("")
    page.wait_for_function("() => document.getElementById('told').textContent === '30 pictures'")
    for order, value in (("sure", lambda one: -one.predictions[0].probability), ("unsure", lambda one: one.predictions[0].probability), ("evidence", lambda one: -one.maps[0].evidence), ("-evidence", lambda one: one.maps[0].evidence)):  # fmt: skip
        page.locator("#by-sort").select_option(order)
        assert names(page) == [one.id for one in sorted(good, key=value)] + ["cats/007.jpg"], order
    page.locator("#by-sort").select_option("border")
    borders = {one[0]: one[6][0] for one in data(text(shown), "entries")}
    ordered = [borders[one] for one in names(page)[:-1]]
    assert ordered == sorted(ordered, reverse=True)
    page.locator("#by-kind").select_option("1")
    assert names(page)[-1] == "cats/007.jpg"


def test_cards_are_drawn_as_python_draws_them_when_they_are_seen(page: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photo = Image.fromarray((generator.random((6, 8, 3)) * 255).astype(np.uint8)).resize((96, 72))
    heats = {"grad-cam": generator.random((7, 7)), "eigen-cam": generator.normal(size=(7, 7))}

    def change(one: dict[str, Any]) -> None:
        one["thumbnail"] = jpeg(photo)
        for each in one["maps"]:
            raw = heats[each["method"]]
            each |= {"height": 7, "width": 7, "heat": (raw / np.abs(raw).max()).astype(np.float16).ravel(), "scale": float(np.abs(raw).max())}  # fmt: skip

    opened(page, write_report(made(tmp_path / "run", 100, change, failed=()), tmp_path / "report.html"))
    first = next(iter(open_run(tmp_path / "run")))
    large = first.thumbnail.resize((192, 144), Image.Resampling.BILINEAR)
    for at, one in enumerate(first.maps):
        page.locator("#by-kind").select_option(str(at))
        page.wait_for_function("at => document.querySelector('.card').dataset.drawn.startsWith(at)", arg=str(at))
        address = page.evaluate("() => document.querySelector('.card canvas').toDataURL('image/png')")
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            seen = np.asarray(picture.convert("RGB")).astype(int)
        view = first.view
        values = sightline.models.view.View((192, 144), view.resized, view.offset, view.input).place(one.raw)
        expected = np.asarray(overlay(large, values, float(np.abs(one.raw).max()), signed=bool((one.raw < 0).any())))
        difference = np.abs(seen - expected.astype(int))[~np.isnan(values)]
        assert seen.shape == (144, 192, 3)
        assert difference.mean() < 4, "the browser enlarges the thumbnail in its own way"
    assert page.locator(".card[data-drawn]").count() < 100, "cards that nobody has seen are not drawn"


def test_a_card_says_of_which_class_its_map_is_where_that_is_not_the_predicted_one(page: Any, shown: Path) -> None:
    opened(page, shown)
    page.locator("#p0").scroll_into_view_if_needed()
    page.wait_for_selector("#p1[data-drawn]")
    assert page.locator("#p0 .of").inner_text() == "", "predicted tabby, map of tabby"
    assert page.locator("#p1 .of").inner_text() == "map of tabby, 50 %"


def test_the_keyboard_opens_the_viewer_and_goes_on(page: Any, shown: Path) -> None:
    opened(page, shown)
    page.locator("#p3 a").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] [data-drawn]")
    assert page.locator("#viewer-name").inner_text() == "cats/003.jpg"
    said = page.locator("dialog").inner_text()
    for part in ("tabby", "grad-cam at layer layer4, 7x7 grid", "eigen-cam", "nearly empty", "evidence"):
        assert part in said
    page.locator("dialog .place canvas[tabindex]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text() == "cats/003.jpg", "there the arrows point at the map"
    page.locator("dialog button", has_text="Close").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text() == "cats/004.jpg"
    assert page.url.endswith("#p4")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer-name").inner_text() == "cats/002.jpg"
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    assert page.evaluate("() => document.activeElement.closest('li').id") == "p2"
    assert "#" not in page.url


def test_next_keeps_to_the_chosen_pictures_and_errors_are_told(page: Any, shown: Path) -> None:
    opened(page, shown)
    page.locator("#by-sort").select_option("sure")
    page.locator("#cards a").nth(28).click()
    assert "29 of 30" in page.locator("dialog").inner_text()
    page.locator("[aria-label='next picture']").click()
    assert page.locator("#viewer-name").inner_text() == "cats/007.jpg"
    assert "read: ImageError: cut off" in page.locator("dialog").inner_text()
    assert page.locator("[aria-label='next picture']").is_disabled()
    assert not page.locator("dialog .place").is_visible()


def test_what_an_audit_names_opens_that_picture(page: Any, shown: Path) -> None:
    opened(page, shown)
    page.locator("#candidate-1 a", has_text="cats/003.jpg").click()
    page.wait_for_selector("dialog[open] [data-drawn]")
    assert page.locator("#viewer-name").inner_text() == "cats/003.jpg"
    page.go_back()
    page.wait_for_selector("dialog", state="hidden")
    means = page.locator("canvas.mean")
    assert means.count() == 2
    assert means.first.evaluate("one => one.getContext('2d').getImageData(9, 9, 1, 1).data[3]") == 255


def test_a_screen_reader_finds_nothing_to_complain_about(browser: Any, shown: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    for scheme in ("light", "dark"):
        context = browser.new_context(bypass_csp=True, color_scheme=scheme)
        page = context.new_page()
        opened(page, shown)
        page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
        for step in ("page", "dialog"):
            if step == "dialog":
                page.locator("#p3 a").click()
                page.wait_for_selector("dialog [data-drawn]")
            found = axe.Axe().run(page).response["violations"]
            assert [(step, one["id"], node["html"][:200]) for one in found for node in one["nodes"]] == []
        context.close()


def test_it_prints_every_chosen_picture(page: Any, shown: Path) -> None:
    page.set_viewport_size({"width": 800, "height": 400})
    opened(page, shown)
    assert page.locator(".card[data-drawn]").count() < 29
    page.locator("#by-state").select_option("right")
    count = page.locator(".card").count()
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert page.locator(".card[data-drawn]").count() == count
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()


HOSTILE = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "<!--<script>", "-->", "]]>", "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>', "'><svg onload=alert(1)>", "<svg/onload=alert(1)>", "<iframe src=javascript:alert(1)>",
    "<iframe src=http://127.0.0.1:9/>", "<link rel=stylesheet href=http://127.0.0.1:9/a.css>", "<base href=http://127.0.0.1:9/>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>", "<form action=http://127.0.0.1:9/><input autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)>", "<video src=x onerror=alert(1)>", "<object data=javascript:alert(1)>", "<embed src=http://127.0.0.1:9/>",
    "<style>@import 'http://127.0.0.1:9/a.css';</style>", "</style><script>alert(1)</script>", "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>", "javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "{{ 7 * 7 }}", "{% raw %}",
    "${alert(1)}", "`${alert(1)}`", '"; alert(1); "', "'; alert(1); '", "\\u003cscript>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u2028alert(1)\u2029", "\u202egnp.exe", "a\x00b\x1b[31mred", "__proto__", "constructor", "x" * 5000, "\N{COMBINING ACUTE ACCENT}" * 300,
)  # fmt: skip


def test_nothing_that_a_run_or_an_audit_is_called_runs_or_is_fetched(page: Any, tmp_path: Path) -> None:
    assert len(HOSTILE) == 40
    texts = iter(HOSTILE * 2)

    def change(one: dict[str, Any]) -> None:
        name = next(texts)
        one |= {"label": name, "stage": one.get("stage") and name, "error": one.get("error") and name, "message": one.get("message") and name}  # fmt: skip
        if not one.get("error"):
            one["notices"] = [name]
            one["predictions"] = [{"index": 1, "label": name, "probability": 0.5}]
            for each in one["maps"]:
                each |= {"label": name, "layer": name, "method": name, "notices": [name]}

    plan = {"model": {"name": HOSTILE[0], "notes": list(HOSTILE), "source": HOSTILE[6]}, "methods": {HOSTILE[5]: {HOSTILE[1]: HOSTILE[2]}}, "layer": HOSTILE[4], "targets": HOSTILE[3]}  # fmt: skip
    ids = sorted({f"{name}{number}" for number, name in enumerate(HOSTILE)})
    run = make_run(tmp_path / "run", ids, change=change, failed=(0, 5), shard=100, **plan)
    named = [{"id": name, "label": name, "predicted": name, "probability": 0.5, "says": name, "quality": 0.1} for name in (*ids, *HOSTILE)]  # fmt: skip
    found = audit(disagreements=dict.fromkeys(HOSTILE[:8], named), labels=named, because=list(HOSTILE), says=HOSTILE[1], outcome=HOSTILE[0], notices=list(HOSTILE))  # fmt: skip
    found["run"] |= dict.fromkeys(("model", "method"), HOSTILE[5])
    found["candidates"][0] |= {"class": HOSTILE[5], "what": HOSTILE[6], "outcome": HOSTILE[7], "says": HOSTILE[8]}
    found["classes"][0] |= {
        "class": HOSTILE[21],
        "where": {HOSTILE[5]: {"mean": 0.1, "low": 0, "high": 1, "even": 0.4}},
    }
    opened(page, write_report(run, tmp_path / "report.html", audit=found))
    assert page.evaluate("() => document.querySelectorAll('script:not([type]), iframe, object, embed, form:not(#controls), base, link, video').length") == 1  # fmt: skip
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for number in range(len(ids)):
        page.evaluate("number => { location.hash = `#p${number}`; }", number)
        page.wait_for_function("number => document.querySelector('dialog[open]') && location.hash === `#p${number}`", arg=number)  # fmt: skip
    page.keyboard.press("Escape")
    page.locator("#by-words").fill("<script>")
    page.wait_for_timeout(300)
    assert page.locator("#cards .card").count() > 3
    assert (
        page.evaluate("() => document.querySelectorAll('#cards script, #cards img, dialog img, #cards svg').length")
        == 0
    )


@pytest.mark.usefixtures("small")
def test_the_index_of_a_folder_filters_all_pages_and_leads_to_each(page: Any, tmp_path: Path) -> None:
    written = write_report(made(tmp_path / "run", 23), tmp_path / "report.html")
    opened(page, written)
    assert page.locator("#cards .row").count() == 23
    page.locator("#by-words").fill("cats/018")
    page.wait_for_function("() => document.getElementById('told').textContent === '1 of 23 pictures'")
    page.locator("#cards a").click()
    page.wait_for_selector("dialog[open] [data-drawn]")
    assert page.url.endswith("page-0004.html#p18")
    assert page.locator("#viewer-name").inner_text() == "cats/018.jpg"
    page.keyboard.press("Escape")
    page.locator("nav a", has_text="Page 5").click()
    page.wait_for_function("() => document.documentElement.dataset.ready")
    assert names(page) == ["cats/020.jpg", "cats/021.jpg", "cats/022.jpg"]


def test_it_works_on_a_phone(browser: Any, shown: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = context.new_page()
    opened(page, shown)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.locator("#filters summary").tap()
    assert page.locator("#by-sort").is_visible()
    page.locator("#p3 a").tap()
    page.wait_for_selector("dialog[open] [data-drawn]")
    assert page.locator("dialog").evaluate("one => one.scrollWidth <= one.clientWidth")
    context.close()
