"""What the page shows and takes for detectors, segmentations, prompts and answers: as plain functions, and in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sightline
from made_tasks import NAMES, detector, photo, preprocess, segmenter
from made_texts import BOTH, PROMPTS, clip, drawn, exact, llava, llava_processor, tokenizer
from serving import Server, start, stop
from sightline.app.answers import Offer, Question, as_data, as_python, ask, class_names, look_at, predictions
from sightline.errors import ModelError, TargetError


def offered() -> Offer:
    return Offer(
        {
            "boxes": sightline.adapt(detector(), preprocess=preprocess, labels=NAMES, name="boxes"),
            "pixels": sightline.adapt(segmenter(), preprocess=preprocess, labels=NAMES, name="pixels"),
            "texts": sightline.zero_shot(clip(), tokenizer(), list(PROMPTS), preprocess=exact),
            "answers": sightline.answering(
                llava(), llava_processor(), "what is this ?", answer="a red square", preprocess=exact
            ),
        }
    )


@pytest.fixture(scope="module")
def offer() -> Offer:
    return offered()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("shapes") / "shapes.png"
    photo(5).save(place)
    return str(place)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("colours") / "colours.png"
    drawn(BOTH).save(place)
    return str(place)


def test_boxes_are_offered_by_number_and_each_has_its_map(offer: Offer, shapes: str) -> None:
    looked = look_at(offer, "boxes", shapes)
    names = class_names(looked)
    assert names[:2] == [f"1: {looked.predictions[0].label}", f"2: {looked.predictions[1].label}"]
    assert predictions(looked)[names[0]] == looked.predictions[0].probability
    answer = ask(offer, Question(shapes, model="boxes", target=names[1], beside=names[0]))
    assert [one.label for one in answer.maps] == [names[1], names[0]]
    data = as_data(answer)["viewer"]
    assert [one["value"] for one in data["boxes"]] == names
    assert all(0 <= one["box"][0] < one["box"][2] <= 1 for one in data["boxes"][:2])
    assert data["panes"][0]["mark"]["box"] == pytest.approx(data["boxes"][1]["box"])
    assert "targets=[sightline.instance(2), sightline.instance(1)]" in as_python(
        offer, Question(shapes, model="boxes"), answer
    )


def test_a_name_of_several_lines_is_no_line_of_the_python_that_is_shown(shapes: str) -> None:
    names = [f"{name}\nimport os\rx\u2028y" for name in NAMES]
    evil = Offer({"boxes": sightline.adapt(detector(), preprocess=preprocess, labels=names)})
    question = Question(shapes, model="boxes")
    lines = as_python(evil, question, ask(evil, question)).splitlines()
    assert [line for line in lines if line.startswith("import")] == ["import sightline"]
    assert not any(line.startswith(("x", "y")) for line in lines)


def test_boxes_lie_on_a_photograph_that_is_shown_smaller_than_it_is(offer: Offer, shapes: str, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    photo(5, times=30).save(large)
    looked, small = look_at(offer, "boxes", str(large)), look_at(offer, "boxes", shapes)
    assert looked.photo.width < 30 * 96
    for one, other in zip(looked.predictions, small.predictions, strict=True):
        assert one.box is not None
        assert other.box is not None
        assert [edge / looked.photo.width for edge in one.box] == pytest.approx([edge / 384 for edge in other.box])
    name = class_names(looked)[0]
    data = as_data(ask(offer, Question(str(large), model="boxes", target=name)))["viewer"]
    assert data["panes"][0]["mark"]["box"] == pytest.approx(data["boxes"][0]["box"])


def test_a_place_of_a_segmentation_is_asked_by_its_point(offer: Offer, shapes: str, tmp_path: Path) -> None:
    answer = ask(offer, Question(shapes, model="pixels", target="@110,110"))
    data = as_data(answer)["viewer"]
    assert data["points"] == [384, 384]
    assert data["panes"][0]["mark"]["point"] == pytest.approx([110 / 384, 110 / 384])
    assert "point=(110, 110)" in as_python(offer, Question(shapes, model="pixels"), answer)
    large = tmp_path / "large.png"
    photo(5, times=30).save(large)  # shown at 2,400 of its 2,880 pixels
    shown = Question(str(large), model="pixels", target="@687.5,687.5")
    lines = as_python(offer, shown, ask(offer, shown))
    assert "point=(825, 825)" in lines
    whole = as_data(ask(offer, Question(shapes, model="pixels", target="disc")))["viewer"]
    assert whole["panes"][0]["mark"]["lines"]


def test_prompts_of_a_visitor_are_the_classes(offer: Offer, colours: str) -> None:
    looked = look_at(offer, "texts", colours, None, ("a square", "a red square", "blue"))
    assert class_names(looked) == ["a square", "a red square", "blue"]
    question = Question(colours, model="texts", prompts=("a square", "blue"), target="blue")
    assert ask(offer, question).maps[0].label == "blue"
    assert "prompts=['a square', 'blue']" in as_python(offer, question, ask(offer, question))
    assert class_names(look_at(offer, "texts", colours)) == list(PROMPTS)
    with pytest.raises(ModelError, match="tokens"):
        look_at(offer, "texts", colours, None, ("square " * 50,))


def test_words_of_an_answer_are_offered_in_their_order(offer: Offer, colours: str) -> None:
    looked = look_at(offer, "answers", colours)
    assert class_names(looked) == ["1: a", "2: red", "3: square"]
    data = as_data(ask(offer, Question(colours, model="answers", target="2: red")))["viewer"]
    assert [one["text"] for one in data["words"]] == ["a", "red", "square"]
    assert [one["chosen"] for one in data["words"]] == [False, True, False]


@pytest.mark.parametrize("target", ["like:/etc/passwd", "disc@/etc/passwd.png", "@secret.png"])
def test_a_visitor_names_no_file_of_the_server(offer: Offer, shapes: str, target: str) -> None:
    with pytest.raises(TargetError, match="files are named on the command line") as told:
        ask(offer, Question(shapes, model="pixels", target=target))
    assert "passwd" not in str(told.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("tasks")
    here = Path(__file__)
    code = (
        f"import sys; sys.path[:0] = [{str(here.parents[1])!r}]\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('tasks_of_the_app', {str(here)!r})\n"
        "made = importlib.util.module_from_spec(spec); spec.loader.exec_module(made)\n"
        "from sightline.app import serve\n"
        "serve.load = lambda *given: made.offered()\n"
        "serve.run([], port=0, said=lambda address: print('Sightline runs on', address, flush=True))\n"
    )
    found = start(place, code=code)
    yield found
    if found.process.poll() is None:
        stop(found)


def says(page: Any, text: str) -> None:
    page.wait_for_function(
        "(text) => document.querySelector('#answer .sightline-sentence').textContent.includes(text)",
        arg=text,
        timeout=60000,
    )


def choose_model(page: Any, name: str) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name=name).click()


@pytest.mark.slow
def test_boxes_places_prompts_and_words_are_clicked_in_a_browser(browser: Any, server: Server, shapes: str) -> None:
    context = browser.new_context(viewport={"width": 1250, "height": 1000})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("#answer .sightline-empty", state="visible")
    page.wait_for_timeout(500)
    page.set_input_files("#picture input[type=file]", shapes)
    says(page, "'1: ")
    boxes = page.locator("#answer .sightline-box")
    second = page.locator("#answer .sightline-box", has_text="2").first
    assert boxes.count() >= 2
    second.focus()
    page.keyboard.press("Enter")
    says(page, "'2: ")
    assert page.locator("#target input").input_value().startswith("2: ")
    assert page.locator("#answer .sightline-mark path").count() == 2
    choose_model(page, "pixels")
    page.wait_for_function("() => !document.querySelector('#answer .sightline-box')", timeout=60000)
    canvas = page.locator("#answer canvas[tabindex]").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    where = (box["x"] + box["width"] * 110 / 384, box["y"] + box["height"] * 110 / 384)
    page.mouse.move(*where)
    page.mouse.click(*where)
    page.wait_for_function("() => document.querySelector('#target input').value.startsWith('@1')", timeout=60000)
    says(page, " at 1")
    choose_model(page, "texts")
    page.wait_for_selector("#prompts textarea", state="visible", timeout=60000)
    page.wait_for_timeout(1500)
    page.locator("#prompts textarea").fill("a square\nblue")
    page.locator("h1").click()
    page.wait_for_function("() => document.querySelector('#says').textContent.includes('blue')", timeout=60000)
    choose_model(page, "answers")
    word = page.locator("#answer .sightline-words button", has_text="red")
    word.wait_for(timeout=60000)
    word.click()
    page.wait_for_function(
        "() => document.querySelector('#answer .sightline-words button[aria-pressed=true]')?.textContent === 'red'",
        timeout=60000,
    )
    assert errors == []
    context.close()
