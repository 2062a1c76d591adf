"""`sightline doctor`"""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path

from sightline.cli.explain import ModelName, RandomWeights, Weights
from sightline.cli.output import say, waiting

DEMO = Path(__file__).parents[1] / "data" / "demo" / "cat.jpg"


def run(model: ModelName = "bundled", weights: Weights = None, random_weights: RandomWeights = False) -> None:
    """Check this installation: versions, devices, the model, and one explanation from end to end."""
    with waiting("looking"):
        import torch

        import sightline
        from sightline.render.panel import percent

    say(
        f"sightline {sightline.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    others = ", ".join(f"{name} {version(name)}" for name in ("torchvision", "timm", "pillow", "numpy"))
    say(f"torch {torch.__version__}, {others}")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    say(f"{torch.get_num_threads()} threads; " + (f"CUDA: {', '.join(devices)}" if devices else "no CUDA device"))
    started = time.perf_counter()
    with waiting(f"loading {model}"):
        adapter = sightline.load_model(model, weights=weights, random_weights=random_weights)
    facts = adapter.provenance
    say(
        f"model {adapter.name}: {facts['architecture']} from {facts['source']}, loaded in {time.perf_counter() - started:.1f} s"
    )
    if "sha256" in facts:
        say(f"weights: sha256 {facts['sha256'][:16]}...")
    for note in adapter.notes:
        say(f"note: {note}")
    shown = ", ".join(f"{name} {value}" for name, value in facts["preprocessing"].items())
    say(f"input: {shown}")
    say(
        f"classes: {len(adapter.labels) if adapter.labels else 'unnamed'}; layer: {adapter.layer or 'none'} ({adapter.layer_reason})"
    )
    started = time.perf_counter()
    heatmap = sightline.explain(DEMO, adapter)
    says = ", ".join(f"{one.label} {percent(one.probability)}" for one in heatmap.predictions[:3])
    say(
        f"a photograph of a cat: {says}; explained in {time.perf_counter() - started:.2f} s, strongest at {heatmap.peak}"
    )
    say("all is well")
