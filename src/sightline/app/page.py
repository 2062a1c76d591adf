"""The page: what stands where, and which answer each event asks for."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.app.answers import (
    LONGEST_PROMPTS,
    Offer,
    Question,
    as_data,
    as_python,
    as_zip,
    ask,
    checked,
    class_names,
    layer_names,
    look_at,
    overlay_address,
    predictions,
    problem,
)
from sightline.bundle import png
from sightline.engine.probe import Progress
from sightline.errors import SightlineError
from sightline.methods.registry import ONE_PASS, list_methods
from sightline.render.viewer import script, style_sheet

CHOSEN = "chosen by itself"
NOTHING = "nothing"
STOPPED = "stopped, as you asked"
SWEPT_S = (600, 3600)  # how often uploads are looked through, and how old they may become
_LONGEST = 4 * LONGEST_PROMPTS  # characters of what a control may hold; the browser sends fewer
WAITING = 32  # visitors in the queue; the next one is told that it is full
OWN_METHOD = "the model's own: grad-cam; of boxes and pixels hires-cam; of a black box occlusion or d-rise"
BESIDE = ("grad-cam", "hires-cam", "layer-cam", "eigen-cam")  # ticked at first: one that knows no class is among them
NAMES = ("picture", "mode", "model", "second", "target", "beside", "method", "methods", "layer", "prompts")
TEMPLATE = """
<p class="sightline-problem" role="alert" hidden></p>
<p class="sightline-empty">Choose a picture on the left, or one of the examples.</p>
<p class="sightline-sentence" aria-live="polite"></p>
<div class="sightline-place"></div>
<ul class="sightline-notices" aria-label="What limits these maps" hidden></ul>
"""
ON_LOAD = """
const show = () => window.sightlineAnswer(element, props.value);
element.addEventListener('sightline-choose', (event) => trigger('select', { value: event.detail }));
watch('value', show);
show();
"""


# The picture itself comes with the answer: files are served to those alone who brought them.
CARD = (
    """${value ? `<img alt="The trust card: what the verdict says, with its curves" style="width: 100%" """
    """src="data:image/png;base64,${value}">` : ""}"""
)


def head() -> str:
    """The scripts and style sheets of the page; nothing comes from elsewhere."""
    here = Path(__file__).parent
    own = (here / "page.js").read_text(encoding="utf-8")
    css = style_sheet() + (here / "page.css").read_text(encoding="utf-8")
    return f"<style>{css}</style><script>{script()}</script><script>{own}</script>"


def build(offer: Offer, examples: Sequence[Path] = ()) -> Any:
    """The page as Gradio's Blocks, with its public endpoint `explain`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    def pictures(**settings: Any) -> Any:
        """A place for a picture that hands on the uploaded file as it is: only our own reader opens it."""
        place: Any = gr.Image(type="filepath", image_mode=None, **settings)
        place.preprocess = lambda payload: None if payload is None else payload.path
        return place

    models = list(offer.models)
    methods = [(OWN_METHOD, ""), *((f"{name}: {one.summary}", name) for name, one in list_methods().items())]
    quiet: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}

    stopped: set[str] = set()

    def told_to(visit: str, progress: Any, doing: str, unit: str) -> Progress:
        """Shows a visitor how far it is, until the visitor stops it."""

        def told(done: int, of: int) -> None:
            if visit in stopped:
                raise SightlineError(STOPPED)
            progress((done, of), desc=doing, unit=unit)

        stopped.discard(visit)
        return told

    def show(history: list[dict[str, Any]], values: Sequence[Any], visit: str, progress: Any) -> Any:
        """What the page shows for a question: answer, Python lines, history, its list."""
        question = _question(*values)
        if not question.picture:
            return None, "", history, gr.skip()

        try:
            found = ask(offer, question, told_to(visit, progress, "asking the model again", "questions"))
        except SightlineError as error:
            if str(error) == STOPPED:
                return {**problem(STOPPED), "keep": True}, gr.skip(), history, gr.skip()  # the map before stays
            return problem(_short(error)), "", history, gr.skip()
        if question.mode == "one":
            line = _line(question, found.target)
            history = [
                {"line": line, "values": [_held(one) for one in values]},
                *(one for one in history if one["line"] != line),
            ][:20]
        lines = gr.Radio(choices=[one["line"] for one in history], value=None)
        return as_data(found), as_python(offer, question, found), history, lines

    def answer(visit: str, history: Any, *values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008 - read by Gradio
        return show(history, values, visit, progress)

    def opened(visit: str, history: Any, restored: Any, *values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        """A new picture or model: what it says, which classes and layers there are, and its first answer."""
        question = _question(*values)
        given = dict(zip(NAMES, values, strict=True)) | {"target": None, "layer": CHOSEN}
        if restored and restored[0] == question.picture:  # out of the history, with all that belonged to it
            given = dict(zip(NAMES, restored, strict=True))
        unknown = (None, None, NOTHING, CHOSEN)  # the lists stay: a question out of the history may need them
        try:
            looked = (
                look_at(offer, given["model"], question.picture, None, question.prompts) if question.picture else None
            )
        except SightlineError as error:
            return *unknown, problem(_short(error)), "", history, gr.skip()
        if looked is None:
            return *unknown, None, "", history, gr.skip()
        names, said = class_names(looked), predictions(looked)
        given["target"] = given["target"] or next(iter(said), None)
        if given["beside"] not in names:
            given["beside"] = NOTHING
        return (
            said,
            gr.Dropdown(choices=names, value=given["target"]),
            gr.Dropdown(choices=[NOTHING, *names], value=given["beside"]),
            gr.Dropdown(choices=[CHOSEN, *layer_names(offer, given["model"], looked)], value=given["layer"]),
            *show(history, list(given.values()), visit, progress),
        )

    def check(visit: str, *values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008 - read by Gradio
        """The trust card of the first map that is shown: the verdict in words, and the picture."""
        question = _question(*values)
        if not question.picture:
            return "Choose a picture first.", None

        try:
            card = checked(offer, question, told_to(visit, progress, "checking", "pictures"))
        except SightlineError as error:
            return _short(error), None
        lines = [f"{one.name}: {one.outcome} ({one.says})" for one in card.checks]
        picture = base64.b64encode(png(card.panel())).decode("ascii")
        return "\n".join([f"{card.title}: the map is {card.verdict_in_words()}.", *lines, card.because]), picture

    def save_all(*values: Any) -> str:
        question = _question(*values)
        if not question.picture:
            raise gr.Error("choose a picture first", print_exception=False)
        try:
            return base64.b64encode(as_zip(ask(offer, question))).decode("ascii")
        except SightlineError as error:
            raise gr.Error(_short(error), print_exception=False) from None

    with gr.Blocks(title="Why did the model say that?", analytics_enabled=False, delete_cache=SWEPT_S) as page:
        gr.Markdown(
            "# Why did the model say that?\nChoose a picture, then click what the model says of it. The picture stays on the computer that runs this page."
        )
        mode = gr.State("one")
        history = gr.State([])
        restored = gr.State(None)
        visit = gr.State("")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                picture = pictures(
                    label="Picture", sources=["upload", "clipboard", "webcam"], height=300,
                    buttons=[], elem_id="picture",
                )  # fmt: skip
                if examples:
                    gr.Examples(
                        [[str(one)] for one in examples], inputs=[picture], label="Examples", api_visibility="private"
                    )
                said = gr.Label(label="The model says (click one)", num_top_classes=10, elem_id="says")
                reads = [name for name, one in offer.models.items() if one.prompted is not None]
                prompts = gr.Textbox(
                    "\n".join(offer.adapter("").labels or ()) if models[0] in reads else "",
                    label="Prompts, one a line",
                    info="what to tell pictures apart by; click beside it when done",
                    lines=2,
                    max_lines=12,
                    max_length=LONGEST_PROMPTS,
                    visible=models[0] in reads,
                    elem_id="prompts",
                )
                model = gr.Dropdown(models, value=models[0], label="Model", visible=len(models) > 1, elem_id="model")
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    target = gr.Dropdown(
                        [],
                        label="Explain",
                        info="any class, by typing a part of its name",
                        filterable=True,
                        allow_custom_value=True,
                        elem_id="target",
                    )
                    beside = gr.Dropdown(
                        [NOTHING],
                        value=NOTHING,
                        label="Next to",
                        info="a second class, such as the right answer",
                        filterable=True,
                        allow_custom_value=True,
                        elem_id="beside",
                    )
                with gr.Tabs():
                    with gr.Tab("One picture") as tab_one:
                        pass
                    with gr.Tab("Compare methods") as tab_methods:
                        several = gr.CheckboxGroup(
                            [name for name, one in list_methods().items() if one.needs in ONE_PASS], value=list(BESIDE), label="Methods, from one pass", elem_id="methods",
                        )  # fmt: skip
                    with gr.Tab("Layers") as tab_layers:
                        pass
                    with gr.Tab("Two models", visible=len(models) > 1) as tab_models:
                        second = gr.Dropdown(models, value=models[-1], label="Second model", elem_id="second")
                shown = gr.HTML(
                    value=None, html_template=TEMPLATE, js_on_load=ON_LOAD, apply_default_css=False, elem_id="answer"
                )
                with gr.Row():
                    save_button = gr.Button("Save maps and pictures (.zip)", elem_id="save")
                    stop_button = gr.Button("Stop", elem_id="stop", scale=0, min_width=90)
                with gr.Accordion("How far to believe it?", open=False):
                    check_button = gr.Button("Check the map (about 60 more looks)", elem_id="check")
                    verdict = gr.Textbox(label="Verdict", lines=3, interactive=False, elem_id="verdict")
                    card = gr.HTML(value=None, html_template=CARD, apply_default_css=False, elem_id="card")
                with gr.Accordion("Method and layer", open=False):
                    method = gr.Dropdown(methods, value="", label="Method", elem_id="method")
                    layer = gr.Dropdown([CHOSEN], value=CHOSEN, label="Layer", allow_custom_value=True, elem_id="layer")
                with gr.Accordion("The same in Python", open=False):
                    code = gr.Code(language="python", show_label=False, interactive=False, elem_id="python")
                with gr.Accordion("History of this visit", open=False):
                    past = gr.Radio([], label="Asked before", elem_id="history")
        packed = gr.Textbox(visible="hidden", elem_id="packed")

        asked = [picture, mode, model, second, target, beside, method, several, layer, prompts]
        outputs = [shown, code, history, past]
        free: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}

        watched: dict[str, Any] = {**quiet, "show_progress": "full", "show_progress_on": [shown]}

        def then_answer(event: Any) -> None:
            event.then(answer, [visit, history, *asked], outputs, **watched)

        def shown_prompts(name: str) -> Any:
            if name not in reads:
                return gr.Textbox(value="", visible=False)
            return gr.Textbox(value="\n".join(offer.adapter(name).labels or ()), visible=True)

        if reads:
            model.input(shown_prompts, model, prompts, **free)
        for choice in (picture.change, model.input, *([prompts.blur] if reads else [])):
            choice(opened, [visit, history, restored, *asked], [said, target, beside, layer, *outputs], **watched)
        for control in (target, beside, method, several, layer, second):
            control.input(answer, [visit, history, *asked], outputs, **watched)

        def clicked(event: Any, visit: str, history: Any, *values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            given = dict(zip(NAMES, values, strict=True)) | {"target": event.value}
            return event.value, *show(history, list(given.values()), visit, progress)

        clicked.__annotations__["event"] = gr.SelectData  # which Gradio reads; as text it could not be found
        said.select(
            clicked,
            [visit, history, *asked],
            [target, *outputs],
            **watched,
        )

        def placed(event: Any, visit: str, history: Any, *values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            """A box, a place or a word was clicked in the maps."""
            sent = event._data if isinstance(event._data, dict) else {}
            given = dict(zip(NAMES, values, strict=True)) | {"target": _held(sent.get("value"))}
            return given["target"], *show(history, list(given.values()), visit, progress)

        placed.__annotations__["event"] = gr.EventData
        shown.select(placed, [visit, history, *asked], [target, *outputs], **watched)
        for tab, name in ((tab_one, "one"), (tab_methods, "methods"), (tab_layers, "layers"), (tab_models, "models")):
            then_answer(tab.select(lambda name=name: name, None, mode, **free))
        page.load(lambda: secrets.token_hex(8), None, visit, **free)
        check_button.click(
            check, [visit, *asked], [verdict, card], **{**quiet, "show_progress": "full", "show_progress_on": [verdict]}
        )
        # A verdict is about the map that it was asked for.
        shown.change(lambda: ("", None), None, [verdict, card], **free)
        stop_button.click(lambda visit: stopped.add(visit) if visit else None, visit, None, **free)
        save_button.click(save_all, asked, packed, show_progress="minimal", **quiet).success(
            None, packed, None, js="(text) => { window.sightlineSave(text); }", api_visibility="private"
        )

        def again(line: str | None, lines: list[dict[str, Any]]) -> Any:
            found = next((one["values"] for one in lines if one["line"] == line), None)
            return (found, *found) if found is not None else [gr.skip()] * (1 + len(asked))

        then_answer(past.input(again, [past, history], [restored, *asked], **free))

        def explain(picture: str | None, class_name: str, method: str, model: str) -> dict[str, Any]:
            """Explain a picture: which part of it raised the model's score for a class.

            Args:
                picture: an uploaded picture (JPEG, PNG, WebP, BMP, GIF or TIFF).
                class_name: name, a unique part of one, or number; empty for what the model says.
                method: such as grad-cam or hires-cam; empty for grad-cam, of a black box occlusion.
                model: one of those this server offers; empty for the first.

            Returns:
                predictions (class -> probability), label, score, method, layer, grid, map (rows of raw values), peak, warnings, and
                overlay (a PNG as a data: address).
            """
            if not picture:
                raise gr.Error("give a picture", print_exception=False)
            if not all(isinstance(one, str) for one in (class_name or "", method or "", model or "")):
                raise gr.Error("class_name, method and model are texts", print_exception=False)
            try:
                question = Question(
                    picture, model=model or models[0], target=_held(class_name) or None, method=method or ""
                )
                (found,) = ask(offer, question).maps
                looked = look_at(offer, question.model, picture)
            except SightlineError as error:
                raise gr.Error(_short(error), print_exception=False) from None
            return {
                "predictions": predictions(looked),
                **{name: value for name, value in found.record().items() if name != "files"},
                "score": found.score,
                "map": found.raw.tolist(),
                "overlay": overlay_address(found),
            }

        hidden: dict[str, Any] = {"visible": False}
        gr.Button(**hidden).click(
            explain,
            [
                pictures(label="picture", **hidden),
                gr.Textbox(label="class_name", **hidden),
                gr.Textbox(label="method", value="", **hidden),
                gr.Textbox(label="model", **hidden),
            ],
            gr.JSON(label="answer", **hidden),
            api_name="explain",
            concurrency_id="model",
            concurrency_limit=1,
        )
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return page


def _question(*values: Any) -> Question:
    """What the page's controls say, in the order of NAMES; where something else was sent, what they say at first."""
    given = dict(zip(NAMES, map(_held, values), strict=True))
    texts = {name: value if isinstance(value, str) else "" for name, value in given.items()}
    lines = dict.fromkeys(line.strip() for line in texts["prompts"].splitlines())
    return Question(
        picture=texts["picture"],
        mode=texts["mode"],
        model=texts["model"],
        second=texts["second"],
        target=texts["target"] or None,
        beside=None if texts["beside"] in ("", NOTHING) else texts["beside"],
        method=texts["method"],
        methods=tuple(given["methods"] if isinstance(given["methods"], list) else ()),
        layer=None if texts["layer"] in ("", CHOSEN) else texts["layer"],
        prompts=tuple(line for line in lines if line),
    )


def _held(value: Any) -> Any:
    """What a control holds, a text or a list of some, and not endless: those that take custom values let through whatever is sent."""
    if isinstance(value, list | tuple):
        return [one[:_LONGEST] for one in value[:100] if isinstance(one, str)]
    return value[:_LONGEST] if isinstance(value, str) else None


def _line(question: Question, target: str) -> str:
    """A question in the list of those asked before."""
    beside = f" next to {question.beside}" if question.beside else ""
    by = f", {question.method}" if question.method else ""
    return f"{Path(question.picture).name}: {target}{beside}{by}, {question.model}"


def _short(error: SightlineError) -> str:
    """What is said to a visitor: not endless, though what they sent may be."""
    text = str(error)
    return text if len(text) <= 600 else f"{text[:597]}..."
