"""Writes docs/methods/*.md and the tables in docs/methods.md and README.md from the registry: python docs/method_pages.py.

A test keeps them equal to it.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from sightline import list_methods
from sightline.methods import Method
from sightline.methods.registry import of_volumes

HERE = Path(__file__).parent
BEGIN, END = "<!-- table: python docs/method_pages.py -->\n", "<!-- end of table -->\n"
COST = {
    "activations": "one forward, shared with every other method of one pass",
    "gradients": "one forward and one backward through the part behind the layer, shared with every other method of one pass",
    "attention": "one forward of its own, without a graph",
    "attention-gradients": "one forward of its own, and one backward through all blocks",
    "block-gradients": "one forward of its own, and one backward through every block for itself",
    "pixels": "one forward and one backward through the whole network",
    "guided-pixels": "one forward of its own and one backward through the whole network, with another rule for its ReLUs",
    "deconvnet-pixels": "one forward of its own and one backward through the whole network, with another rule for its ReLUs",
    "head": "one forward, and the part of the network behind the layer again",
    "input": "many forwards: the whole network again for every question",
    "input-gradients": "as many forwards and backwards through the whole network as it has steps or samples; deep-lift one, of two pictures",
    "model": "a few forwards and backwards through the whole network",
    "scores": "many forwards, and nothing but their scores: works for any model, also for one that can't be looked into",
}


# The same for the README, where a reader wants to know what there is: (what for, what it costs, the needs it stands for).
FAMILIES = (
    ("class activation maps of one pass", "little more than one forward for all of them", ("activations", "gradients")),
    (
        "class activation maps that ask again",
        "from little more than one forward to thousands",
        ("head", "input", "model"),
    ),
    (
        "attention of transformers",
        "one forward, or one and its backward",
        ("attention", "attention-gradients", "block-gradients"),
    ),
    ("gradients of pixels", "one forward and backward", ("pixels", "guided-pixels", "deconvnet-pixels")),
    ("gradients along paths and over noise", "as many as there are steps or samples", ("input-gradients",)),
    ("any black box, by its scores", "hundreds to thousands of forwards", ("scores",)),
)


def families() -> str:
    """The table of the README."""
    known = list_methods().values()
    assert {one.needs for one in known} == {need for *_, needs in FAMILIES for need in needs}
    lines = ["| methods | cost | names |", "|---|---|---|"]
    for what, cost, needs in FAMILIES:
        names = ", ".join(f"[{one.name}](docs/methods/{file_name(one.name)})" for one in known if one.needs in needs)
        lines.append(f"| {what} | {cost} | {names} |")
    return "\n".join(lines) + "\n"


def file_name(name: str) -> str:
    """grad-cam++ is grad-cam-plus-plus.md: a plus sign means a space in addresses."""
    return name.replace("++", "-plus-plus") + ".md"


def table() -> str:
    lines = ["| method | shows | needs | class | signed | unit | films |", "|---|---|---|---|---|---|---|"]
    for one in list_methods().values():
        link = f"[{one.name}](methods/{file_name(one.name)})"
        cells = [
            link,
            one.summary,
            one.needs,
            _yes(one.class_specific),
            _yes(one.signed),
            one.unit,
            _yes(of_volumes(one)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(one: Method) -> str:
    """What the docstring says, under headings."""
    parts = _sections(inspect.getdoc(one.function) or "")
    lines = [f"# {one.name}", "", one.summary, ""]
    if "Formula" in parts:
        lines += ["## Definition", "", parts["Formula"], "", "[What the letters mean](../methods.md).", ""]
    signed = (
        "Never negative: what speaks against is not shown."
        if not one.signed
        else "Signed: red (above 0) speaks for, blue (below 0) against."
        if one.class_specific
        else "Signed: red (above 0) and blue (below 0) are two opposite patterns, which speak neither for nor against a class."
    )
    unit = (
        "in units of the score, comparable with other methods"
        if one.unit == "score"
        else "in a unit of its own, comparable with maps of the same method only"
    )
    films = " Films and volumes can be asked about, too." if of_volumes(one) else ""
    specific = "" if one.class_specific else " It knows of no class: the map is the same whichever one is asked for."
    lines += ["## How to read it", "", f"{signed} Values are {unit}.{specific}", ""]
    lines += ["## Cost", "", f"{COST[one.needs].capitalize()}.{films}", ""]
    if one.options:
        lines += ["## Options", ""]
        about = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", parts.get("Args", ""), re.MULTILINE))
        for name, default in one.options.items():
            lines.append(f"- `{name}={default!r}`: {' '.join(about[name].split())}")
        lines.append("")
    if "Differs" in parts:
        lines += ["## Where others differ", "", parts["Differs"][0].upper() + parts["Differs"][1:], ""]
    lines += ["## Defined in", "", f"{one.reference}.", ""]
    lines += ["## Try it", "", "```", f"sightline explain photo.jpg --method {one.name}", "```", ""]
    return "\n".join(lines)


def _sections(text: str) -> dict[str, str]:
    """The paragraphs that begin with a heading and a colon; text goes on until the next one."""
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=(?:Formula|Args|Differs):)", text)[1:]:
        name, _, body = block.partition(":")
        found[name] = body if name == "Args" else " ".join(body.split())
    return found


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def pages() -> dict[str, str]:
    """All pages by file name."""
    return {file_name(one.name): page(one) for one in list_methods().values()}


def main() -> None:
    folder = HERE / "methods"
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    for path, made in ((HERE / "methods.md", table()), (HERE.parent / "README.md", families())):
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        path.write_text(before + BEGIN + made + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
