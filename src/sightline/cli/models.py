"""`sightline models`"""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import say, waiting
from sightline.errors import ModelError, did_you_mean


def run(
    search: Annotated[str, typer.Argument(help="Part of a name, or a source: torchvision, timm, keras.")] = "",
) -> None:
    """List the models that can be loaded by name."""
    with waiting("asking torchvision and timm"):
        import timm

        from sightline.models.torchvision import names

        known = [
            "bundled",
            *(f"torchvision:{name}" for name in names()),
            *(f"timm:{name}" for name in timm.list_models()),
        ]
        if "keras" in search.lower():  # whose import takes seconds
            from sightline.models.keras import names as architectures

            known += [f"keras:{name}" for name in architectures()]
    if not search:
        counts = {kind: sum(name.startswith(f"{kind}:") for name in known) for kind in ("torchvision", "timm")}
        say("bundled            EfficientNet-Lite0, 1,000 ImageNet classes, works offline")
        say(
            f"torchvision:NAME   {counts['torchvision']} classifiers, such as torchvision:resnet50; list: sightline models torchvision"
        )
        say(f"timm:NAME          {counts['timm']} models, such as timm:convnext_tiny; list: sightline models timm")
        say(
            "keras:NAME         keras.applications on torch (extra keras), such as keras:ResNet50; list: sightline models keras"
        )
        say("Official weights are fetched when the hub can be reached; --weights FILE takes a local state dict.")
        return
    found = [name for name in known if search.lower() in name.lower()]
    if not found:
        raise ModelError(f"no model's name has {search!r} in it.{did_you_mean(search, known)}")
    for name in found:
        say(name)
