"""`sightline layers`"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.model import Chosen, takes_a_model
from sightline.cli.output import say, table, waiting
from sightline.errors import LayerError

if TYPE_CHECKING:
    from sightline.models.layers import Layer


@takes_a_model
def run(
    model: Chosen,
    named: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="As --model.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="Also layers deep inside blocks.")] = False,
) -> None:
    """List the layers that give a grid, with their sizes, and the default one with its reason."""
    with waiting("running the model once"):
        from sightline.models.adapter import no_layers
        from sightline.models.dense import choose_layer, detector
        from sightline.models.layers import candidates
        from sightline.models.load import sample_input

        adapter = model.called(named).built()
        if adapter.black_box:
            raise LayerError(no_layers(adapter))
        module, x = adapter.module.eval(), sample_input(adapter)
        known = detector(module)
        found = candidates(module, x, adapter.logits, mark=False)
        try:
            given = (adapter.layer, adapter.layer_reason) if adapter.layer else None
            chosen, reason = given or choose_layer(module, x, adapter.logits, known=known)
            levels = known.levels if known and known.levels and not given else (chosen,)
            found = [replace(one, chosen=one.name in levels) for one in found]
            reason = f"default: {chosen if len(levels) == 1 else 'one of the marked'}, {reason}"
        except LayerError as error:
            reason = f"no default: {error}"
    shown = [one for one in found if every or one.chosen or one.name.count(".") < 2]
    table(
        ["layer", "kind", "channels", "grid", ""],
        [(one.name, one.kind, one.channels, one.shown, _mark(one)) for one in shown],
    )
    if len(shown) < len(found):
        say(f"{len(found) - len(shown)} more inside blocks: --all")
    say(reason)


def _mark(one: Layer) -> str:
    return "default" if one.chosen else "" if one.alive else "nothing is read"
