"""`sightline doctor`"""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from sightline.cli.model import Chosen, takes_a_model
from sightline.cli.output import plain, say, waiting

SAYING = {
    "architecture": "--model timm:NAME --weights FILE",
    "preprocessing": "--preprocess NAME=VALUE, again for more: size, resize, fit, interpolation, mean, std",
    "class names": "--class-names FILE",
}
DEMO = Path(__file__).parents[1] / "data" / "demo" / "cat.jpg"


@takes_a_model
def run(model: Chosen) -> None:
    """Check this installation and a model: what was found, from where, what is guessed, and one explanation."""
    with waiting("looking"):
        import torch

        import sightline
        from sightline.models.given import Finding

    say(
        f"sightline {sightline.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    others = ", ".join(f"{name} {version(name)}" for name in ("torchvision", "timm", "pillow", "numpy"))
    say(f"torch {torch.__version__}, {others}")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    say(f"{torch.get_num_threads()} threads; " + (f"CUDA: {', '.join(devices)}" if devices else "no CUDA device"))
    extras = {
        "app": "gradio",
        "evaluate": "scipy",
        "batch": "pyarrow",
        "ray": "ray",
        "tables": "polars",
        "train": "lightning",
        "transformers": "transformers",
        "openclip": "open_clip",
        "keras": "keras",
        "onnx": "onnxruntime",
        "superpixels": "skimage",
    }
    missing = [extra for extra, package in extras.items() if find_spec(package) is None]
    say(
        f"extras: {', '.join(extra for extra in extras if extra not in missing) or 'none'}"
        + (f"; not installed: {', '.join(missing)}" if missing else "")
    )
    say()
    started = time.perf_counter()
    with waiting(f"loading {model}"):
        adapter = model.load()
    say(f"model {plain(adapter.name)}, loaded in {time.perf_counter() - started:.1f} s")
    for one in (*adapter.found, Finding("layer", adapter.layer or "none", adapter.layer_reason)):
        say(f"{plain(one.what):14} {plain(one.value)}{'  (guessed)' if one.guessed else ''}")
        say(f"{'':14} from: {plain(one.origin)}")
    for note in adapter.notes:
        say(f"note: {plain(note, 1000)}")
    say()
    started = time.perf_counter()
    if adapter.frames is None:
        heatmap = sightline.explain(DEMO, adapter)
    else:
        method = None if adapter.layer else "saliency"
        heatmap = sightline.explain_frames([DEMO], adapter, method=method).maps[0]
    says = ", ".join(one.said() for one in heatmap.predictions[:3]) or heatmap.title()
    say(
        f"a photograph of a cat: {plain(says)}; {heatmap.method} in {time.perf_counter() - started:.2f} s, strongest at {heatmap.peak}"
    )
    guessed = [one.what for one in adapter.found if one.guessed]
    if not guessed:
        say("all is well")
        return
    say(f"it works, but {' and '.join(guessed)} {'is' if len(guessed) == 1 else 'are'} guessed. To say what is right:")
    for what in guessed:
        say(f"  {what}: {SAYING.get(what, 'bring the network itself, in Python: sightline.adapt(module)')}")
