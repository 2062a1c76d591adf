"""`sightline models`"""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import say, table, waiting
from sightline.errors import ModelError, did_you_mean


def run(
    search: Annotated[str, typer.Argument(help="Part of a name, or a source: torchvision, timm, keras.")] = "",
) -> None:
    """List the models that can be loaded by name."""
    with waiting("asking torchvision and timm"):
        import timm

        from sightline.models.torchvision import dense_names, film_names, names

        known = [
            "bundled",
            *(f"torchvision:{name}" for name in (*names(), *dense_names(), *film_names())),
            *(f"timm:{name}" for name in timm.list_models()),
        ]
        if "keras" in search.lower():  # whose import takes seconds
            from sightline.models.keras import names as architectures

            known += [f"keras:{name}" for name in architectures()]
    if not search:
        counts = {kind: sum(name.startswith(f"{kind}:") for name in known) for kind in ("torchvision", "timm")}
        table(
            ["--model", "what it is", "to list or install"],
            [
                ("bundled", "EfficientNet-Lite0, 1,000 ImageNet classes, works offline", ""),
                (
                    "torchvision:resnet50",
                    f"{counts['torchvision']} classifiers, detectors, segmentations and models of films of torchvision",
                    "sightline models torchvision",
                ),
                ("timm:convnext_tiny", f"{counts['timm']} models of timm", "sightline models timm"),
                ("hf:microsoft/resnet-18", "image classifiers of the Hugging Face hub", "extra transformers"),
                ("keras:ResNet50", "keras.applications, on torch", "sightline models keras; extra keras"),
                ("hf:OWNER/NAME --prompt TEXT", "CLIP, SigLIP: texts as classes", "extra transformers"),
                ("hf:OWNER/NAME --question TEXT", "LLaVA and its like: an answer's words", "extra transformers"),
                ("openclip:ViT-B-32 --prompt TEXT", "models of open_clip: texts as classes", "extra openclip"),
                ("my.safetensors, .pt, .ckpt", "your own weights; the network is found", ""),
                ("folder", "as save_pretrained writes it, or with one weights file", "extra transformers"),
                ("my.keras", "a Keras model", "extra keras"),
                ("my.onnx", "any ONNX classifier, as a black box", "extra onnx"),
                ("my.pt2", "a program of torch.export, with --trust-code", ""),
            ],
        )
        say()
        say(
            "Official weights are fetched when the hub can be reached; --weights FILE takes a local state dict instead."
        )
        say("What was found of a model, and what is guessed: sightline doctor --model MODEL")
        return
    found = [name for name in known if search.lower() in name.lower()]
    if not found:
        raise ModelError(f"no model's name has {search!r} in it.{did_you_mean(search, known)}")
    for name in found:
        say(name)
