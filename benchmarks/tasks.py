"""What maps of segmentation and detection cost, as ratios to the same model's own forward; prints a table for docs/tasks.md.

python benchmarks/tasks.py [--rounds 5] [--threads 2] [--device cpu] [--masks 32] [--processor]

--processor takes the time of the processor on one thread, for a machine that does other things, too.

Weights are random, drawn with a seed; the threshold of boxes is 0, so that a detector has as many boxes to judge as it ever has.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import sightline
from speed import ratios


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--masks", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processor", action="store_true")
    given = parser.parse_args()
    clock = time.process_time if given.processor else time.perf_counter
    if given.processor:
        given.threads = 1
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else "one thread, time of the processor"
        if given.processor
        else f"{given.threads} threads"
    )
    print(
        f"{where}; ratio to the model's own forward (lowest-highest)\n\n| model | what | ratio | seconds |\n|---|---|---|---|"
    )
    for name, runs in (
        ("DeepLabV3-ResNet50, 512 px", segmentation(device)),
        ("Faster R-CNN ResNet50-FPN, 512 px", detection(device)),
    ):
        for what, (ratio, low, high, seconds) in ratios(runs, given.rounds, device.type == "cuda", clock).items():
            print(f"| {name} | {what} | {ratio:.2f} ({low:.2f}-{high:.2f}) | {seconds:.2f} |", flush=True)
    share, own, masked = d_rise(device, given.masks, given.rounds, clock)
    print(
        f"\nD-RISE, Faster R-CNN at 512 px: {masked:.2f} pictures a second, {share:.2f} of the {own:.2f} that the detector alone does in "
        "batches of the same size; three boxes at once"
    )


def segmentation(device: torch.device) -> dict[str, Callable[[], object]]:
    """The forward of DeepLabV3, and CAMs of a class in it."""
    from torchvision.models import segmentation as models

    torch.manual_seed(0)
    model = models.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21).eval().to(device)
    x = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)).to(device)
    adapter = sightline.adapt(model, layers=["backbone.layer4"])
    named = sightline.load_model("torchvision:deeplabv3_resnet50", random_weights=True)
    methods = ("grad-cam", "hires-cam", "layer-cam")
    return {
        "forward": _forward(model, x),
        **{method: lambda method=method: sightline.attribute(x, adapter, method=method) for method in methods},
        "hires-cam, loaded by name": lambda: sightline.attribute(x.cpu(), named, method="hires-cam"),
    }


def detection(device: torch.device) -> dict[str, Callable[[], object]]:
    """The forward of Faster R-CNN, and CAMs of its first box; and of its first five boxes in one pass."""
    model, x = _detector(device)
    adapter = sightline.adapt(model)

    def boxes() -> object:
        from sightline.attribution import toward_all
        from sightline.engine.capture import capture
        from sightline.engine.targets import per_image
        from sightline.methods import list_methods
        from sightline.models.view import View

        seen = capture(adapter, x, list(adapter.levels))
        method = list_methods()["hires-cam"]
        found = []
        for number in range(1, 6):
            asked = per_image(sightline.instance(number), adapter, seen[0].output, 1, View.of_input(512, 512))
            found += [method.function(one) for one in toward_all([method], seen, asked, levels=True)]
        return found

    runs: dict[str, Callable[[], object]] = {"forward": _forward(model, x)}
    for method in ("grad-cam", "hires-cam", "layer-cam"):
        runs[method] = lambda method=method: sightline.attribute(x, adapter, method=method)
    return {**runs, "hires-cam of five boxes": boxes}


def d_rise(device: torch.device, masks: int, rounds: int, clock: Callable[[], float]) -> tuple[float, float, float]:
    """(share of the detector's own throughput, that, D-RISE's), in pictures a second: the best of the rounds, turn by turn."""
    model, x = _detector(device)
    adapter = sightline.adapt(model)
    targets = [sightline.instance(number) for number in (1, 2, 3)]
    sizes: list[int] = []

    def counted(_module: Any, args: Any) -> None:
        sizes.append(len(args[0]))

    hook = model.register_forward_pre_hook(counted)
    _maps(x, adapter, targets, 16)
    hook.remove()
    batch = max(sizes)
    own, ours = [], []
    for _ in range(rounds):
        started = clock()
        with torch.inference_mode():
            for start in range(0, masks, batch):
                model(x.expand(min(batch, masks - start), -1, -1, -1))
        _wait(device)
        own.append(masks / (clock() - started))
        started = clock()
        _maps(x, adapter, targets, masks)
        _wait(device)
        ours.append((masks + 1) / (clock() - started))  # the picture itself comes first
    return max(ours) / max(own), max(own), max(ours)


def _maps(x: torch.Tensor, adapter: sightline.Adapter, targets: list[Any], masks: int) -> object:
    from dataclasses import replace

    from sightline.models.view import View

    def ready(_photo: Any) -> tuple[torch.Tensor, View]:
        return x[0].cpu(), View.of_input(512, 512)

    picture = (255 * x[0].cpu().permute(1, 2, 0)).byte().numpy()
    return sightline.compare(
        picture, replace(adapter, preprocess=ready), methods=["d-rise"], targets=targets, options={"samples": masks}
    )


def _detector(device: torch.device) -> tuple[torch.nn.Module, torch.Tensor]:
    from torchvision.models import detection as models

    torch.manual_seed(0)
    model = models.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, box_score_thresh=0.0, min_size=512, max_size=512
    )
    x = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    return model.eval().to(device), x.to(device)


def _forward(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(x)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
