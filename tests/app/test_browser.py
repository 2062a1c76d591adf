"""A real browser on a real server: the page as a person meets it, and the viewer against the pictures that Python draws."""

from __future__ import annotations

import base64
import io
import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving import start, stop
from sightline.heatmap import Heatmap, Prediction, viewer
from sightline.models.view import View
from sightline.render.overlay import overlay
from sightline.render.viewer import fragment

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "src" / "sightline" / "data" / "demo"


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that notes what goes wrong in it, and every address it asks for."""
    context = browser.new_context(viewport={"width": 1250, "height": 1000}, accept_downloads=True)
    found = context.new_page()
    found.errors, found.asked = [], []
    found.on("pageerror", lambda error: found.errors.append(str(error)))
    found.on("dialog", lambda dialog: (found.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
    found.on("request", lambda request: found.asked.append(request.url))
    yield found
    assert found.errors == []
    context.close()


def opened(page: Any, url: str, picture: Path | None = None) -> None:
    page.goto(url)
    page.wait_for_selector("#picture input[type=file]", state="attached")
    # The input is there before the page listens to it; a person is never that quick.
    page.wait_for_selector("#answer .sightline-empty", state="visible")
    page.wait_for_timeout(500)
    if picture is not None:
        page.set_input_files("#picture input[type=file]", str(picture))
        drawn(page)


def drawn(page: Any, panes: int = 1, says: str = "") -> None:
    page.wait_for_function(
        """([panes, says]) => document.querySelectorAll('#answer canvas[tabindex]').length >= panes
            && document.querySelector('#answer [data-drawn]')
            && document.querySelector('#answer .sightline-sentence').textContent.includes(says)""",
        arg=[panes, says],
        timeout=60000,
    )


def test_a_person_asks_how_far_to_believe_the_map(page: Any, server: Any, tmp_path: Path) -> None:
    opened(page, server.url, DEMO / "coffee.jpg")
    page.locator("text=How far to believe it?").click()
    page.click("#check")
    page.wait_for_function(
        "() => document.querySelector('#verdict textarea').value.includes('by the checks')", timeout=60000
    )
    verdict = page.locator("#verdict textarea").input_value()
    for check in ("evidence", "faithfulness", "class sensitivity", "randomisation", "agreement"):
        assert f"{check}: " in verdict
    page.wait_for_function("() => document.querySelector('#card img')?.naturalWidth > 700", timeout=30000)
    page.locator("#card").scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "card.png")
    page.locator("#beside input").fill("goldfish")
    page.keyboard.press("Enter")
    drawn(page, panes=2, says="goldfish")
    page.wait_for_function("() => document.querySelector('#verdict textarea').value === ''", timeout=30000)
    assert page.locator("#card img").count() == 0
    assert not server.connections.exists(), server.connections.read_text()


def test_a_person_uploads_clicks_compares_saves_and_goes_back(page: Any, server: Any, tmp_path: Path) -> None:
    opened(page, server.url, DEMO / "cat.jpg")
    first = page.locator("#answer .sightline-sentence").inner_text()
    page.locator("#says button").nth(2).click()
    name = page.locator("#says button").nth(2).inner_text().splitlines()[0].strip(" .")
    drawn(page, says=name)
    page.locator("#beside input").fill("goldfish")
    page.keyboard.press("Enter")
    drawn(page, panes=2, says="goldfish")
    assert "on one scale" in page.locator("#answer .sightline-sentence").inner_text()
    page.get_by_role("tab", name="Compare methods").click()
    drawn(page, panes=4, says="methods")
    page.get_by_role("tab", name="Layers").click()
    drawn(page, panes=5, says="layers")
    page.get_by_role("tab", name="One picture").click()
    drawn(page, panes=2, says="goldfish")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "got.zip")
    with zipfile.ZipFile(tmp_path / "got.zip") as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("sightline/manifest.json"))
        assert [one["target"]["label"] for one in manifest["maps"]] == [name, "goldfish"]
        with Image.open(io.BytesIO(archive.read("sightline/panel.png"))) as panel:
            assert panel.width > 700
    page.locator("text=The same in Python").click()
    assert "sightline.compare(" in page.locator("#python").inner_text()
    page.locator("text=History of this visit").click()
    page.locator("#history label").last.click()
    page.wait_for_function(
        "says => document.querySelector('#answer .sightline-sentence').textContent === says", arg=first, timeout=30000
    )
    outside = [one for one in page.asked if not one.startswith((server.url, "data:", "blob:"))]
    assert outside == []
    assert not server.connections.exists(), server.connections.read_text()


def test_a_broken_picture_gets_our_sentence_and_the_page_goes_on(page: Any, server: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((DEMO / "cat.jpg").read_bytes()[:3000])
    opened(page, server.url)
    page.set_input_files("#picture input[type=file]", str(broken))
    page.wait_for_selector("#answer .sightline-problem:not([hidden])", timeout=30000)
    assert (
        "broken" in page.locator("#answer .sightline-problem").inner_text()
        or "truncated" in page.locator("#answer .sightline-problem").inner_text()
    )
    page.locator("#picture button[aria-label*='lear'], #picture button[aria-label*='emove']").first.click()
    page.set_input_files("#picture input[type=file]", str(DEMO / "coffee.jpg"))
    drawn(page, says="espresso")
    assert page.locator("#answer .sightline-problem").is_hidden()


def test_a_long_question_shows_its_progress_and_can_be_stopped(page: Any, server: Any) -> None:
    opened(page, server.url, DEMO / "rocket.jpg")
    page.locator("text=Method and layer").click()
    page.locator("#method input").fill("is-cam: Score-CAM with")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=asking the model again", timeout=30000)
    page.click("#stop")
    page.wait_for_selector("#answer .sightline-problem:not([hidden])", timeout=30000)
    assert page.locator("#answer .sightline-problem").inner_text() == "stopped, as you asked"
    assert page.locator("#answer canvas[tabindex]").count() == 1, "the map before stays"


def test_a_question_out_of_the_history_is_answered_after_the_picture_was_cleared(page: Any, server: Any) -> None:
    opened(page, server.url, DEMO / "cat.jpg")
    first = page.locator("#answer .sightline-sentence").inner_text()
    page.locator("text=History of this visit").click()
    page.locator("#picture button[aria-label*='lear'], #picture button[aria-label*='emove']").first.click()
    page.wait_for_selector("#answer .sightline-empty:not([hidden])")
    page.locator("#history label").last.click()
    page.wait_for_function(
        "says => document.querySelector('#answer .sightline-sentence').textContent === says", arg=first, timeout=30000
    )
    page.wait_for_function("document.querySelector('#target input').value !== ''")
    page.wait_for_function("document.querySelectorAll('#says button').length >= 5", timeout=30000)


def test_a_class_that_does_not_exist_is_said_with_the_nearest(page: Any, server: Any) -> None:
    opened(page, server.url, DEMO / "cat.jpg")
    page.locator("#target input").fill("goldfisch")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.wait_for_selector("#answer .sightline-problem:not([hidden])", timeout=30000)
    assert "goldfish" in page.locator("#answer .sightline-problem").inner_text()


def test_two_models_stand_side_by_side(page: Any, tmp_path: Path) -> None:
    both = start(tmp_path / "both", "--model", "bundled", "--model", "torchvision:squeezenet1_1", "--random-weights")
    try:
        opened(page, both.url, DEMO / "cat.jpg")
        page.get_by_role("tab", name="Two models").click()
        drawn(page, panes=2, says="two models")
        assert "random weights" in page.locator("#answer .sightline-notices").inner_text().lower()
    finally:
        stop(both)


def test_examples_run_at_a_click(page: Any, server: Any) -> None:
    opened(page, server.url)
    page.locator("button.gallery-item").nth(1).click()
    drawn(page, says="espresso")


def test_the_page_works_on_a_phone_in_the_dark_and_with_the_keyboard(browser: Any, server: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    page = context.new_page()
    opened(page, server.url, DEMO / "cat.jpg")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1, "the page scrolls sideways"
    ink, paper = page.evaluate(
        "() => [getComputedStyle(document.querySelector('#answer .sightline-sentence')).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(int(part) for part in one.partition("(")[2].rstrip(")").split(",")[:3]) for one in (ink, paper)]
    assert light[0] > 500 > 200 > light[1], (ink, paper)
    canvas = page.locator("#answer canvas[tabindex]").first
    canvas.focus()
    page.keyboard.press("ArrowRight")
    told = page.locator("#answer output").inner_text()
    page.keyboard.press("ArrowDown")
    assert "of the key" in told
    assert page.locator("#answer output").inner_text() != told
    context.close()


def test_a_screen_reader_finds_nothing_of_ours_to_complain_about(page: Any, server: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    opened(page, server.url, DEMO / "cat.jpg")
    page.wait_for_timeout(1500)  # until what covers the old answer has faded
    everything = axe.Axe().run(page, context="#answer").response["violations"]
    assert [(one["id"], node["html"][:200]) for one in everything for node in one["nodes"]] == []


# ------------------------------------------------------------------------------------------------------- the viewer alone


def made(raw: np.ndarray[Any, Any], signed: bool = False, scale: float | None = None, **changed: Any) -> Heatmap:
    generator = np.random.default_rng(0)
    photo = Image.fromarray((generator.random((30, 40, 3)) * 255).astype(np.uint8)).resize((320, 240))
    view = View((320, 240), (300.0, 225.0), (38.0, 0.5), (224, 224))
    found = {
        "raw": raw.astype(np.float32), "signed_raw": raw.astype(np.float32), "scale": scale or float(np.abs(raw).max()), "photo": photo,
        "view": view, "image": "x.png", "method": "grad-cam", "signed": signed, "unit": "score", "label": "tabby", "index": 1, "score": 2.0,
        "probability": 0.5, "layer": "bn2", "layer_reason": "given", "predictions": (Prediction(1, "tabby", 0.5),), "model": "made",
        **changed,
    }  # fmt: skip
    return Heatmap(**found)


def shown(page: Any, heatmaps: list[Heatmap], tmp_path: Path) -> dict[str, Any]:
    data = viewer(heatmaps)
    place = tmp_path / "viewer.html"
    place.write_text(f"<!doctype html><title>viewer</title>{fragment(data, heatmaps[0].photo)}", encoding="utf-8")
    page.goto(place.as_uri())
    page.wait_for_selector("[data-drawn]")
    return data


def pixels(page: Any, pane: int = 0) -> np.ndarray[Any, Any]:
    address = page.evaluate("pane => document.querySelectorAll('canvas[tabindex]')[pane].toDataURL('image/png')", pane)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("style", ["heat", "grey-photo"])
def test_the_viewer_draws_what_python_draws(page: Any, tmp_path: Path, style: str, signed: bool) -> None:
    raw = np.random.default_rng(3).normal(size=(7, 7))
    heatmap = made(raw if signed else np.maximum(raw, 0), signed=signed)
    data = shown(page, [heatmap], tmp_path)
    page.locator("select").first.select_option(style)
    with Image.open(io.BytesIO(base64.b64decode(data["photo"].partition(",")[2]))) as jpeg:
        photo = jpeg.convert("RGB")
    expected = np.asarray(overlay(photo, heatmap.view.place(heatmap.raw), heatmap.scale, style=style, signed=signed))
    difference = np.abs(pixels(page) - expected.astype(int))
    assert difference.mean() < 1
    assert np.quantile(difference, 0.999) <= 6


def test_the_margin_that_the_model_never_saw_is_hatched_and_said(page: Any, tmp_path: Path) -> None:
    shown(page, [made(np.ones((7, 7)))], tmp_path)
    unseen = made(np.ones((7, 7))).values
    drawn_there = pixels(page)[np.isnan(unseen)]
    assert np.isnan(unseen).any()
    assert np.abs(drawn_there - drawn_there.mean(axis=1, keepdims=True)).max() <= 1, "grey, not heat"
    box = page.locator("canvas[tabindex]").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    assert "never saw this place" in page.locator("output").inner_text()


def test_the_value_under_the_pointer_is_the_maps(page: Any, tmp_path: Path) -> None:
    heatmap = made(np.arange(49.0).reshape(7, 7))
    shown(page, [heatmap], tmp_path)
    box = page.locator("canvas[tabindex]").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    told = float(page.locator("output").inner_text().partition("%: ")[2].partition(",")[0])
    assert told == pytest.approx(heatmap.values[120, 160], abs=0.3)


def test_one_scale_keeps_a_weak_map_weak_and_can_be_switched_off(page: Any, tmp_path: Path) -> None:
    strong, weak = made(np.ones((3, 3))), made(np.full((3, 3), 0.05), label="lynx")
    shown(page, [strong, weak], tmp_path)
    keys = page.locator(".sightline-scale").all_inner_texts()
    assert keys[0] == keys[1]
    before = pixels(page, 1)
    page.locator("input[type=checkbox]").uncheck()
    after = pixels(page, 1)
    assert np.abs(after - before).mean() > 20, "the weak map is drawn at full strength only when asked for"
    assert np.abs(after - pixels(page, 0)).mean() < 1


def test_every_control_redraws_without_a_request(page: Any, tmp_path: Path) -> None:
    shown(page, [made(np.random.default_rng(1).random((7, 7)))], tmp_path)
    page.asked.clear()
    seen = [pixels(page)]
    for style in ("contours", "spotlight", "flat", "photo", "heat"):
        page.locator("select").first.select_option(style)
        seen.append(pixels(page))
    page.locator("select").nth(1).select_option("viridis")
    seen.append(pixels(page))
    for control in (0, 1):
        page.locator("input[type=range]").nth(control).fill("60")
        seen.append(pixels(page))
    for one, other in itertools.pairwise(seen):
        assert np.abs(one - other).mean() > 0.2
    assert page.asked == []


@pytest.mark.parametrize(
    "label",
    ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"; alert(1); "', "${alert(1)}", "{{constructor}}", "\u2028alert(1)", "javascript:alert(1)", "<!--", "&lt;b&gt;"],
)  # fmt: skip
def test_hostile_names_are_text(page: Any, tmp_path: Path, label: str) -> None:
    shown(page, [made(np.ones((3, 3)), label=label)], tmp_path)
    assert (
        page.locator("figcaption strong")
        .inner_text()
        .startswith(label.replace("\u2028", "\N{REPLACEMENT CHARACTER}")[:6].strip())
    )
    assert page.evaluate("document.querySelectorAll('figcaption *').length") == 2


def test_the_notebooks_picture_is_there_without_scripts(browser: Any, tmp_path: Path) -> None:
    place = tmp_path / "still.html"
    place.write_text(made(np.ones((3, 3)))._repr_html_(), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(place.as_uri())
    assert page.locator("img").evaluate("image => image.naturalWidth") > 100
    context.close()
