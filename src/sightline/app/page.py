"""The page: what stands where, and which answer each event asks for."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.app.answers import (
    Offer,
    Question,
    as_data,
    as_python,
    as_zip,
    ask,
    class_names,
    layer_names,
    look_at,
    overlay_address,
    predictions,
    problem,
)
from sightline.errors import SightlineError
from sightline.methods.registry import ONE_PASS, list_methods, one_pass
from sightline.render.viewer import script, style_sheet

CHOSEN = "chosen by itself"
NOTHING = "nothing"
WAITING = 32  # visitors in the queue; the next one is told that it is full
TEMPLATE = """
<p class="sightline-problem" role="alert" hidden></p>
<p class="sightline-empty">Choose a picture on the left, or one of the examples.</p>
<p class="sightline-sentence" aria-live="polite"></p>
<div class="sightline-place"></div>
<ul class="sightline-notices" aria-label="What limits these maps" hidden></ul>
"""
ON_LOAD = """
const show = () => window.sightlineAnswer(element, props.value);
watch('value', show);
show();
"""


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
    methods = [(f"{name}: {one.summary}", name) for name, one in list_methods().items()]
    quiet: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}

    def answer(*values: Any) -> Any:
        question = _question(*values)
        if not question.picture:
            return None, ""
        try:
            found = ask(offer, question)
            return as_data(found), as_python(offer, question, found)
        except SightlineError as error:
            return problem(str(error)), ""

    def opened(picture: str | None, model: str, target: str | None, beside: str | None) -> Any:
        """A new picture or model: what it says, and which classes and layers there are."""
        nothing = gr.Dropdown(choices=[], value=None)
        if not picture:
            return None, nothing, nothing, nothing
        try:
            looked = look_at(offer, model, picture)
        except SightlineError:
            return None, nothing, nothing, nothing  # `answer` says why
        names = class_names(looked)
        said = predictions(looked)
        return (
            said,
            gr.Dropdown(choices=names, value=next(iter(said), None)),
            gr.Dropdown(choices=[NOTHING, *names], value=beside if beside in names else NOTHING),
            gr.Dropdown(choices=[CHOSEN, *layer_names(looked)], value=CHOSEN),
        )

    def save_all(*values: Any) -> str:
        question = _question(*values)
        if not question.picture:
            raise gr.Error("choose a picture first", print_exception=False)
        try:
            return base64.b64encode(as_zip(ask(offer, question))).decode("ascii")
        except SightlineError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def remember(history: list[dict[str, Any]], *values: Any) -> Any:
        question = _question(*values)
        if not question.picture or question.mode != "one":
            return history, gr.Radio(choices=_lines(history), value=None)
        try:
            target = ask(offer, question).target
        except SightlineError:
            return history, gr.Radio(choices=_lines(history), value=None)
        line = (
            f"{Path(question.picture).name}: {target}"
            + (f" next to {question.beside}" if question.beside else "")
            + f", {question.method}, {question.model}"
        )
        history = [{"line": line, "values": list(values)}, *(one for one in history if one["line"] != line)][:20]
        return history, gr.Radio(choices=_lines(history), value=None)

    with gr.Blocks(title="Why did the model say that?", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# Why did the model say that?\nChoose a picture, then click any class. The picture stays on the computer that runs this page."
        )
        mode = gr.State("one")
        history = gr.State([])
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
                said = gr.Label(
                    label="What the model says: click a line to explain it", num_top_classes=10, elem_id="says"
                )
                model = gr.Dropdown(models, value=models[0], label="Model", visible=len(models) > 1, elem_id="model")
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    target = gr.Dropdown(
                        [],
                        label="Explain",
                        info="any class, by typing a part of its name",
                        filterable=True,
                        elem_id="target",
                    )
                    beside = gr.Dropdown(
                        [NOTHING],
                        value=NOTHING,
                        label="Next to",
                        info="a second class, such as the right answer",
                        filterable=True,
                        elem_id="beside",
                    )
                with gr.Tabs():
                    with gr.Tab("One picture") as tab_one:
                        pass
                    with gr.Tab("Compare methods") as tab_methods:
                        several = gr.CheckboxGroup(
                            [name for name, one in list_methods().items() if one.needs in ONE_PASS], value=one_pass()[:4], label="Methods, from one pass", elem_id="methods",
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
                with gr.Accordion("Method and layer", open=False):
                    method = gr.Dropdown(methods, value="grad-cam", label="Method", elem_id="method")
                    layer = gr.Dropdown([CHOSEN], value=CHOSEN, label="Layer", elem_id="layer")
                with gr.Accordion("The same in Python", open=False):
                    code = gr.Code(language="python", show_label=False, interactive=False, elem_id="python")
                with gr.Accordion("History of this visit", open=False):
                    past = gr.Radio([], label="Asked before", elem_id="history")
        packed = gr.Textbox(visible="hidden", elem_id="packed")

        asked = [picture, mode, model, second, target, beside, method, several, layer]
        outputs = [shown, code]

        def then(event: Any) -> None:
            event.then(answer, asked, outputs, show_progress="minimal", **quiet).then(
                remember,
                [history, *asked],
                [history, past],
                show_progress="hidden",
                queue=False,
                api_visibility="private",
            )

        then(
            picture.change(
                opened, [picture, model, target, beside], [said, target, beside, layer], show_progress="hidden", **quiet
            )
        )
        then(
            model.input(
                opened, [picture, model, target, beside], [said, target, beside, layer], show_progress="hidden", **quiet
            )
        )
        for control in (target, beside, method, several, layer, second):
            then(control.input(lambda: None, queue=False, api_visibility="private"))

        def clicked(event: Any) -> Any:
            return event.value

        clicked.__annotations__["event"] = gr.SelectData  # which Gradio reads; as text it could not be found

        then(said.select(clicked, None, target, queue=False, api_visibility="private", show_progress="hidden"))
        for tab, name in ((tab_one, "one"), (tab_methods, "methods"), (tab_layers, "layers"), (tab_models, "models")):
            then(
                tab.select(
                    lambda name=name: name, None, mode, queue=False, api_visibility="private", show_progress="hidden"
                )
            )
        save_button.click(save_all, asked, packed, show_progress="minimal", **quiet).success(
            None, packed, None, js="(text) => { window.sightlineSave(text); }", api_visibility="private"
        )

        def again(line: str | None, lines: list[dict[str, Any]]) -> Any:
            found = next((one["values"] for one in lines if one["line"] == line), None)
            return found if found is not None else [gr.skip()] * len(asked)

        past.input(again, [past, history], asked, queue=False, api_visibility="private", show_progress="hidden").then(
            answer, asked, outputs, show_progress="minimal", **quiet
        )

        def explain(picture: str | None, class_name: str, method: str, model: str) -> dict[str, Any]:
            """Explain a picture: which part of it raised the model's score for a class.

            Args:
                picture: an uploaded picture (JPEG, PNG, WebP, BMP, GIF or TIFF).
                class_name: name, a unique part of one, or number; empty for what the model says.
                method: such as grad-cam or hires-cam; empty for grad-cam.
                model: one of those this server offers; empty for the first.

            Returns:
                predictions (class -> probability), label, score, method, layer, grid, map (rows of raw values), peak, warnings, and
                overlay (a PNG as a data: address).
            """
            if not picture:
                raise gr.Error("give a picture", print_exception=False)
            try:
                question = Question(
                    picture, model=model or models[0], target=class_name or None, method=method or "grad-cam"
                )
                (found,) = ask(offer, question).maps
                looked = look_at(offer, question.model, picture)
            except SightlineError as error:
                raise gr.Error(str(error), print_exception=False) from None
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
                gr.Textbox(label="method", value="grad-cam", **hidden),
                gr.Textbox(label="model", **hidden),
            ],
            gr.JSON(label="answer", **hidden),
            api_name="explain",
            concurrency_id="model",
            concurrency_limit=1,
        )
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return page


def _question(
    picture: str | None,
    mode: str,
    model: str,
    second: str,
    target: str | None,
    beside: str | None,
    method: str,
    methods: Sequence[str],
    layer: str | None,
) -> Question:
    return Question(
        picture=picture or "",
        mode=mode,
        model=model,
        second=second or "",
        target=target,
        beside=None if beside in (None, "", NOTHING) else beside,
        method=method,
        methods=tuple(methods),
        layer=None if layer in (None, "", CHOSEN) else layer,
    )


def _lines(history: Sequence[dict[str, Any]]) -> list[str]:
    return [one["line"] for one in history]
