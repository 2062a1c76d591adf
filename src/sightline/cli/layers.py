"""`sightline layers`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import say, table, waiting
from sightline.errors import LayerError

if TYPE_CHECKING:
    from sightline.models.layers import Layer


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="bundled, torchvision:NAME, timm:NAME, keras:NAME or FILE.keras.")
    ] = "bundled",
    every: Annotated[bool, typer.Option("--all", help="Also layers deep inside blocks.")] = False,
) -> None:
    """List the layers that give a grid, with their sizes, and the default one with its reason."""
    with waiting("running the model once"):
        from sightline.models.given import Given
        from sightline.models.layers import candidates, choose
        from sightline.models.load import build, sample_input

        # The shapes are the same without the official weights, so that nothing has to be fetched.
        adapter = build(model, Given(random_weights=model != "bundled"))
        module, x = adapter.module.eval(), sample_input(adapter)
        found = candidates(module, x)
        try:
            chosen, reason = choose(module, x)
            reason = f"default: {chosen}, {reason}"
        except LayerError as error:
            reason = f"no default: {error}"
    shown = [one for one in found if every or one.chosen or one.name.count(".") < 2]
    table(
        ["layer", "kind", "channels", "grid", ""],
        [(one.name, one.kind, one.channels, f"{one.grid[0]}x{one.grid[1]}", _mark(one)) for one in shown],
    )
    if len(shown) < len(found):
        say(f"{len(found) - len(shown)} more inside blocks: --all")
    say(reason)


def _mark(one: Layer) -> str:
    return "default" if one.chosen else "" if one.alive else "nothing is read"
