"""What every command that runs a model asks for: `--model` and what may be said of it, in one place."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.output import plain
from sightline.errors import ModelError

if TYPE_CHECKING:
    from sightline.models.adapter import Adapter

_LONGEST = 50_000_000
_DEVICES = r"cpu|mps|(cuda|xpu)(:\d{1,3})?"


@dataclass(frozen=True)
class Chosen:
    """The model that the user named, not yet loaded.

    Attributes:
        name: as given.
        said: what was said of it, as keyword arguments of `load_model`.
        device: where it is to run, by torch's name; the processor when left out.
    """

    name: str
    said: dict[str, Any]
    device: str | None = None

    def load(self, for_layer: str | Sequence[str] | None = None) -> Adapter:
        """Loads it.

        Raises:
            ModelError: as `load_model`; or it can't run on that device.
        """
        from sightline.models import load

        if self.said.get("random_weights"):  # the same ones each time
            import torch

            torch.manual_seed(0)
        adapter = load.load_model(self.name, **self.said, for_layer=for_layer)
        if self.device is not None:
            _move(adapter, self.device)
        return adapter

    def called(self, name: str | None) -> Chosen:
        """The same under another name, where one was given."""
        return self if name is None else Chosen(name, self.said, self.device)

    def built(self) -> Adapter:
        """As its source gives it, to look at its layers: with random weights where a name alone would have to be fetched."""
        from sightline.models import load

        said = dict(self.said)
        if self.name.partition(":")[0] in load.SOURCES and self.name != "bundled" and said["weights"] is None:
            said = {**said, "random_weights": True}  # the shapes are the same
        said.pop("task")
        return load.build(self.name, load.given(self.name, **said))

    def __str__(self) -> str:
        return plain(self.name)


def _move(adapter: Adapter, device: str) -> None:
    import torch

    if not re.fullmatch(_DEVICES, device):
        raise ModelError(f"--device {device[:40]!r}; expected cpu, cuda, cuda:1, mps or xpu")
    if adapter.black_box:
        raise ModelError(f"{adapter.name} is a black box and runs where it wants; leave --device out")
    try:
        adapter.module.to(device)
    except (RuntimeError, AssertionError) as error:  # as torch says it of a device that isn't there
        first = (str(error).splitlines() or [type(error).__name__])[0]
        found = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        raise ModelError(
            f"{adapter.name} can't be moved to {device}: {first.rstrip('.')}. Here are cpu{''.join(f', cuda:{index} ({name})' for index, name in enumerate(found))}"
        ) from error


def takes_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, in place of its argument `model: Chosen`, the options that say which model, and what of it."""
    signature = inspect.signature(command, eval_str=True)
    place = list(signature.parameters).index("model")
    own = list(signature.parameters.values())
    options = list(inspect.signature(_model_options, eval_str=True).parameters.values())
    together = [*own[:place], options[0], *own[place + 1 :], *options[1:]]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        said = {one.name: given.pop(one.name) for one in options}
        command(model=_chosen(**said), **given)

    together.sort(key=lambda one: one.default is not one.empty)  # as Python wants it: what must be given comes first
    kept = [one.replace(kind=one.KEYWORD_ONLY) for one in together]
    run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in kept}
    return run


def _model_options(
    model: Annotated[
        str,
        typer.Option("--model", help="A name such as bundled or timm:NAME, a file or a folder; see: sightline models"),
    ] = "bundled",
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", help="A local state dict (.safetensors, .pt, .pth, .ckpt), not the official weights."
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Untrained, to try things out; every output says so.")
    ] = False,
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", min=1, metavar="N", help="Size of the head. [default: found]")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option("--class-names", metavar="FILE", help="One name a line, or a JSON list. [default: found]"),
    ] = None,
    preprocess: Annotated[
        list[str] | None,
        typer.Option(
            "--preprocess",
            metavar="NAME=VALUE",
            help="size, resize, fit, interpolation, mean or std in place of the model's own, such as mean=0.5,0.5,0.5.",
        ),
    ] = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Run the program in a .pt2 file. Only for files that you made yourself."),
    ] = False,
    task: Annotated[
        str,
        typer.Option("--task", help="labels, regression or embedding, of a model that isn't asked for one class."),
    ] = "",
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="What to tell pictures apart by (CLIP, SigLIP); again for more. They are the classes.",
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            "--question",
            metavar="TEXT",
            help="What to ask of a picture (LLaVA and its like); the answer's words are the targets.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Where it runs, such as cuda or cuda:1. [default: cpu]"),
    ] = None,
) -> None:
    """The options; see `takes_a_model`."""


def _chosen(
    model: str,
    weights: Path | None,
    random_weights: bool,
    num_classes: int | None,
    class_names: Path | None,
    preprocess: list[str] | None,
    trust_code: bool,
    task: str,
    prompt: list[str] | None,
    question: str | None,
    device: str | None,
) -> Chosen:
    said: dict[str, Any] = {"weights": weights, "random_weights": random_weights, "num_classes": num_classes}
    said |= {"trust_code": trust_code, "task": task, "prompts": prompt or None, "question": question}
    said["labels"] = None if class_names is None else read_class_names(class_names)
    parts = [text.partition("=") for text in preprocess or ()]
    for (name, equals, value), text in zip(parts, preprocess or (), strict=True):
        if not (name and equals and value):
            raise ModelError(f"--preprocess {text!r}; expected NAME=VALUE, such as size=320 or mean=0.5,0.5,0.5")
    said["preprocess"] = {name: _number(value) for name, _, value in parts} or None
    return Chosen(model, said, device)


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_class_names(path: Path) -> list[str]:
    """Class names from a text file, one a line, or from JSON: a list, or a mapping between numbers and names.

    Raises:
        ModelError: there is no such file, or it holds something else.
    """
    from sightline.models.beside import names_in

    if not path.is_file():
        raise ModelError(f"there is no file of class names {path}")
    if path.stat().st_size > _LONGEST:
        raise ModelError(f"{path} has {path.stat().st_size:,} bytes; a file of class names has {_LONGEST:,} at most")
    try:
        return names_in(path.read_text(encoding="utf-8-sig"), path.name)
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is no text in UTF-8; expected one class name a line, or JSON") from error
