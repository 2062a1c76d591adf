"""Speed and memory of Sightline and its peers, as ratios to a plain forward; writes docs/benchmarks.md.

python benchmarks/speed.py [--rounds 5] [--models resnet18,resnet50] [--output docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixels import speed_of_pixels
from runs import speed_of_runs
from training import speed_of_training

MODELS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "vgg19": "features.35",
    "mobilenet_v2": "features",
    "convnext_tiny": "features",
}
CAMS = ("grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam", "grad-cam-elementwise")
Run = Callable[[], object]


def build(name: str, device: str = "cpu") -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    return models.get_model(name, weights=None).eval().to(device)


def forward(model: nn.Module, x: Tensor) -> Run:
    def run() -> object:
        with torch.inference_mode():
            return model(x)

    return run


def sightline_run(model: nn.Module, x: Tensor, layer: str, method: str = "grad-cam") -> Run:
    import sightline

    adapter = sightline.adapt(model, layers=[layer])
    targets = list(range(len(x)))
    return lambda: sightline.attribute(x, adapter, method=method, target=targets)


def pgc_run(model: nn.Module, x: Tensor, layer: str, classes: Sequence[str] = ("GradCAM",)) -> Run:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cams = [
        getattr(pytorch_grad_cam, name)(model=model, target_layers=[model.get_submodule(layer)]) for name in classes
    ]
    targets = [ClassifierOutputTarget(index) for index in range(len(x))]
    return lambda: [cam(input_tensor=x, targets=targets) for cam in cams]


def torchcam_run(model: nn.Module, x: Tensor, layer: str) -> Run:
    from torchcam.methods import GradCAM

    def run() -> object:
        with GradCAM(model, target_layer=layer) as cam:
            return cam(list(range(len(x))), model(x))

    return run


def captum_run(model: nn.Module, x: Tensor, layer: str) -> Run:
    from captum.attr import LayerGradCam

    cam = LayerGradCam(model, model.get_submodule(layer))
    targets = list(range(len(x)))
    return lambda: cam.attribute(x, target=targets, relu_attributions=True)


def ratios(
    runs: dict[str, Run],
    rounds: int,
    synchronise: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, float, float, float]]:
    """For each run: (median ratio to the first run, lowest, highest, median seconds).

    The first run is repeated before and after every other one, and each is compared with its two neighbours, so that
    neither a drifting machine nor what the one before left in the caches counts.
    """

    def seconds(run: Run) -> float:
        gc.collect()
        started = clock()
        run()
        if synchronise:
            torch.cuda.synchronize()
        return clock() - started

    base, *others = runs
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    plain = []
    for name in others:
        runs[name]()  # warm up
        for _ in range(rounds):
            seconds(runs[base])
            before, mine, _, after = seconds(runs[base]), seconds(runs[name]), seconds(runs[base]), seconds(runs[base])
            plain.append((before + after) / 2)
            found[name].append((mine / plain[-1], mine))
    result = {base: (1.0, 1.0, 1.0, statistics.median(plain))}
    for name, pairs in found.items():
        each = [ratio for ratio, _ in pairs]
        result[name] = (statistics.median(each), min(each), max(each), statistics.median(mine for _, mine in pairs))
    return result


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines) + "\n"


def shown(one: tuple[float, float, float, float]) -> str:
    return f"{one[0]:.2f} ({one[1]:.2f}-{one[2]:.2f})"


def speed_of_one_map(names: Sequence[str], rounds: int, device: str) -> str:
    rows = []
    for name in names:
        model, layer = build(name, device), MODELS[name]
        x = torch.rand(8, 3, 224, 224, device=device)
        runs = {
            "forward": forward(model, x),
            "sightline": sightline_run(model, x, layer),
            "torchcam": torchcam_run(model, x, layer),
            "captum": captum_run(model, x, layer),
            "pytorch-grad-cam": pgc_run(model, x, layer),
        }
        found = ratios(runs, rounds, device == "cuda")
        cells = [name, f"{found['forward'][3] * 1000:.0f} ms", *(shown(found[one]) for one in list(runs)[1:])]
        if device == "cuda":
            cells.append(f"{8 / found['sightline'][3]:.0f}")
        rows.append(cells)
        print(rows[-1], flush=True)
    head = ["model, batch 8", "forward", "sightline", "torchcam", "captum", "pytorch-grad-cam"]
    return table(head + (["sightline, images/s"] if device == "cuda" else []), rows)


def speed_of_many(rounds: int, device: str) -> str:
    import sightline

    rows = []
    for name in ("resnet18", "resnet50"):
        model, layer = build(name, device), MODELS[name]
        x = torch.rand(1, 3, 224, 224, device=device)
        adapter = sightline.adapt(model, layers=[layer])

        def six(x: Tensor = x, adapter: object = adapter) -> object:
            seen = sightline.capture(x, adapter)
            return [sightline.attribute(seen, adapter, method=cam, target=7) for cam in CAMS]

        def five(x: Tensor = x, adapter: object = adapter) -> object:
            seen = sightline.capture(x, adapter)
            return [sightline.attribute(seen, adapter, target=index) for index in range(5)]

        kept = sightline.capture(x, adapter)
        peers = ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "GradCAMElementWise")
        runs = {
            "forward": forward(model, x),
            "six": six,
            "six, pytorch-grad-cam": pgc_run(model, x, layer, peers),
            "five": five,
            "again": lambda kept=kept, adapter=adapter: sightline.attribute(kept, adapter, target=11),
            "margin": lambda kept=kept, adapter=adapter: sightline.attribute(
                kept, adapter, target=sightline.margin(3, 4), method="hires-cam"
            ),
        }
        found = ratios(runs, rounds * 4, device == "cuda")
        rows.append([name, *(shown(found[one]) for one in list(runs)[1:])])
        print(rows[-1], flush=True)
    head = [
        "model, one image", "six gradient CAMs", "six, pytorch-grad-cam", "five classes",
        "another class of a capture", "a margin by hires-cam of a capture",
    ]  # fmt: skip
    return table(head, rows)


def speed_of_asking_again(rounds: int, device: str) -> str:
    """Methods that run the head or the whole network many times, on resnet18 with its 512 channels, one image."""
    import sightline
    from sightline.methods.registry import one_pass

    model, layer = build("resnet18", device), MODELS["resnet18"]
    x = torch.rand(1, 3, 224, 224, device=device)
    adapter = sightline.adapt(model, layers=[layer])

    def by(method: str) -> Run:
        return lambda: sightline.attribute(x, adapter, method=method, target=7)

    def all_of_one_pass() -> object:
        seen = sightline.capture(x, adapter)
        return [sightline.attribute(seen, adapter, method=one, target=7) for one in one_pass()]

    runs = {
        "forward": forward(model, x),
        **{name: by(name) for name in ("eigen-cam", "recipro-cam", "ablation-cam", "shapley-cam", "finer-cam")},
        f"all {len(one_pass())} of one pass": all_of_one_pass,
    }
    found = ratios(runs, rounds * 2, device == "cuda")
    rows = [[name, shown(found[name]), f"{found[name][3] * 1000:.0f} ms"] for name in list(runs)[1:]]
    print(rows, flush=True)
    return table(["resnet18, one image", "of a forward", "time"], rows)


def speed_of_score_cam(rounds: int, device: str) -> str:
    """The whole network once for each of 512 channels, in turn with the peers."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import ScoreCAM

    import sightline

    model, layer = build("resnet18", device), MODELS["resnet18"]
    loaded = sightline.load_model("torchvision:resnet18", random_weights=True)
    loaded.module.to(device)
    x = torch.rand(1, 3, 224, 224, device=device)
    adapter = sightline.adapt(model, layers=[layer])

    def ours(one: object, **options: object) -> Run:
        return lambda: sightline.attribute(x, one, method="score-cam", target=7, layer=layer, options=options)

    def peer(kind: str) -> Run:
        def run() -> object:
            with getattr(pytorch_grad_cam, kind)(model=model, target_layers=[model.get_submodule(layer)]) as cam:
                cam.batch_size = 16
                return cam(input_tensor=x, targets=[ClassifierOutputTarget(7)])

        return run

    def torchcam() -> object:
        with torch.no_grad(), ScoreCAM(model, layer, batch_size=16) as cam:
            return cam(7, model(x))

    runs = {
        "score-cam, sightline, own module": ours(adapter),
        "score-cam, sightline, loaded": ours(loaded),
        "score-cam, sightline, loaded, bfloat16": ours(loaded, bfloat16=True),
        "score-cam, pytorch-grad-cam": peer("ScoreCAM"),
        "score-cam, torchcam": torchcam,
        "ablation-cam, sightline, own module": lambda: sightline.attribute(x, adapter, method="ablation-cam", target=7),
        "ablation-cam, pytorch-grad-cam": peer("AblationCAM"),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    rows = [[name, f"{statistics.median(one):.2f} s ({min(one):.2f}-{max(one):.2f})"] for name, one in times.items()]
    print(rows, flush=True)
    return table(["resnet18, one image, 512 channels", "time"], rows)


def speed_of_loaded(rounds: int, device: str) -> str:
    """Models that Sightline loads itself: batch norm folded, channels-last; against their plain eager forward."""
    import dataclasses

    import sightline
    from sightline.models.load import _ready
    from sightline.models.load import build as build_adapter

    rows = []
    for name in ("bundled", *(f"torchvision:{name}" for name in MODELS)):
        plain = build_adapter(name, random_weights=name != "bundled")
        model = plain.module.eval().to(device)
        ours = _ready(build_adapter(name, random_weights=name != "bundled"), None)
        ours.module.to(device)
        ours = dataclasses.replace(ours)
        x = torch.rand(8, 3, 224, 224, device=device)
        runs = {
            "forward": forward(model, x),
            "loaded": lambda ours=ours, x=x: sightline.attribute(x, ours, target=list(range(8))),
        }
        found = ratios(runs, rounds, device == "cuda")
        rows.append([name, f"{found['forward'][3] * 1000:.0f} ms", shown(found["loaded"])])
        print(rows[-1], flush=True)
    return table(["loaded model, batch 8", "eager forward", "grad-cam"], rows)


TRANSFORMER, NORM = "vit_base_patch16_224", "blocks.11.norm1"
ATTENTION = ("attention-rollout", "attention-grad", "le-grad")


def transformer(device: str = "cpu") -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(TRANSFORMER, pretrained=False).eval().to(device)


def to_grid(tokens: Tensor) -> Tensor:
    """What users of the peers write by hand."""
    return tokens[:, 1:].reshape(len(tokens), 14, 14, -1).permute(0, 3, 1, 2)


def transformer_runs(model: nn.Module, x: Tensor) -> dict[str, Run]:
    import pytorch_grad_cam
    from captum.attr import LayerGradientXActivation
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    import sightline

    adapter = sightline.adapt(model, layers=[NORM])
    targets = list(range(len(x)))
    cam = pytorch_grad_cam.GradCAM(model, [model.get_submodule(NORM)], reshape_transform=to_grid)
    products = LayerGradientXActivation(model, model.get_submodule(NORM))

    def by(method: str) -> Run:
        return lambda: sightline.attribute(x, adapter, method=method, target=targets)

    return {
        "forward": forward(model, x),
        "grad-cam": by("grad-cam"),
        "grad-cam, pytorch-grad-cam": lambda: cam(x, [ClassifierOutputTarget(one) for one in targets]),
        "hires-cam": by("hires-cam"),
        "hires-cam, captum (gradient x activation)": lambda: to_grid(products.attribute(x, target=targets)).sum(1),
        **{name: by(name) for name in ATTENTION},
    }


def legrad_runs(x: Tensor, device: str) -> dict[str, Run]:
    """torch-cam's LeGrad knows torchvision's transformer alone."""
    from torchcam.methods import LeGrad

    import sightline

    model = build("vit_b_16", device)
    nn.init.normal_(model.heads.head.weight, std=0.02)
    adapter = sightline.adapt(model, layers=["encoder.layers.encoder_layer_11.ln_1"])
    targets = list(range(len(x)))

    def torchcam() -> object:
        with LeGrad(model, list(model.encoder.layers)) as extractor:
            return extractor(targets, model(x))

    def by(method: str) -> Run:
        return lambda: sightline.attribute(x, adapter, method=method, target=targets)

    return {
        "forward": forward(model, x),
        "grad-cam": by("grad-cam"),
        **{name: by(name) for name in ATTENTION},
        "le-grad, torchcam": torchcam,
    }


def speed_of_transformers(rounds: int, device: str) -> str:
    x = torch.rand(8, 3, 224, 224, device=device)
    rows = []
    for of, runs in (("timm", transformer_runs(transformer(device), x)), ("torchvision", legrad_runs(x, device))):
        found = ratios(runs, rounds, device == "cuda")
        for name in list(runs)[1:]:
            rows.append([of, name, shown(found[name]), f"{found[name][3] * 1000:.0f} ms"])
            print(rows[-1], flush=True)
        rows.append([of, "forward alone", "1", f"{found['forward'][3] * 1000:.0f} ms"])
    return table(["ViT-B/16, batch 8", "method", "of a forward", "time"], rows)


def speed_of_sources(rounds: int) -> str:
    """What it costs to reach a model through its source: reading a file, one forward, and grad-cam on Keras."""
    return "\n".join([_loading(rounds), _adapters(rounds), _keras(rounds)])


def _loading(rounds: int) -> str:
    """A state dict of 94 MB: torch.load alone, the usual three lines, and ours with hash, checks and the network built."""
    from safetensors.torch import save_file
    from torchvision import models

    from sightline.models.given import Given
    from sightline.models.load import build
    from sightline.models.weights import read_stored

    torch.manual_seed(0)
    state = models.resnet50(num_classes=10).state_dict()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, safe = Path(folder, "resnet50.pth"), Path(folder, "resnet50.safetensors")
        torch.save(state, path)
        save_file(state, safe)

        def usual() -> object:
            model = models.resnet50(num_classes=10)
            return model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))

        runs: dict[str, Run] = {
            "torch.load": lambda: torch.load(path, weights_only=True, map_location="cpu"),
            "read_stored, with its sha256 and checks": lambda: read_stored(path),
            "the same of safetensors": lambda: read_stored(safe),
            "build the network, torch.load, load_state_dict": usual,
            "torchvision:resnet50 with these weights": lambda: build(
                "torchvision:resnet50", Given(weights=read_stored(path))
            ),
        }
        found = ratios(runs, rounds)
    for name, one in found.items():
        rows.append([name, f"{one[3] * 1000:.0f} ms", shown(one)])
        print(rows[-1], flush=True)
    return table(["94 MB of weights", "time", "of torch.load"], rows)


def _adapters(rounds: int) -> str:
    """One forward through an adapter beside the same network as its own library runs it."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    from torchvision import models
    from transformers import ResNetConfig, ResNetForImageClassification

    import sightline

    x = torch.rand(8, 3, 224, 224)
    pictures = x.permute(0, 2, 3, 1).contiguous()
    torch.manual_seed(0)
    tv = models.resnet50().eval()
    hf = ResNetForImageClassification(ResNetConfig()).eval()
    of_keras = keras.applications.ResNet50(weights=None, classifier_activation=None)
    pairs: dict[str, tuple[Run, Any]] = {
        "torchvision resnet50": (lambda: tv(x), sightline.adapt(tv)),
        "transformers ResNet-50": (lambda: hf(x).logits, sightline.adapt(hf)),
        "a function around resnet50": (lambda: tv(x), sightline.adapt(lambda images: tv(images))),
        "Keras ResNet50": (lambda: of_keras(pictures, training=False), sightline.adapt(of_keras)),
    }
    rows = []
    for name, (plain, adapter) in pairs.items():

        def eager(run: Run = plain) -> object:
            with torch.inference_mode():
                return run()

        def through(adapter: Any = adapter) -> object:
            with torch.inference_mode():
                return adapter.logits(adapter.module(x))

        found = ratios({"eager": eager, "adapter": through}, rounds)
        rows.append([name, f"{found['eager'][3] * 1000:.0f} ms", shown(found["adapter"])])
        print(rows[-1], flush=True)
    return table(["forward, batch 8", "eager", "through the adapter"], rows)


def _keras(rounds: int) -> str:
    """A Keras model on torch beside its own forward, which has its channels last as Keras' own pictures."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    import sightline

    rows = []
    x = torch.rand(8, 3, 224, 224)
    pictures = x.permute(0, 2, 3, 1).contiguous()
    for name in ("ResNet50", "MobileNetV2"):
        keras.utils.set_random_seed(0)
        model = getattr(keras.applications, name)(weights=None)
        adapter = sightline.adapt(model, layers=["conv5_block3_out" if name == "ResNet50" else "out_relu"])

        def plain(model: object = model) -> object:
            with torch.inference_mode():
                return model(pictures, training=False)

        def ours(adapter: object = adapter) -> object:
            return sightline.attribute(x, adapter, target=list(range(8)))

        found = ratios({"forward": plain, "grad-cam": ours}, rounds)
        rows.append([f"keras:{name}", f"{found['grad-cam'][3] * 1000:.0f} ms", shown(found["grad-cam"])])
        print(rows[-1], flush=True)
    return table(["Keras on torch, batch 8", "grad-cam", "of Keras' own forward"], rows)


def peak_memory(kind: str) -> float:
    """Megabytes above the start that one call needs; run in a process of its own."""
    if kind.startswith("vit "):
        model, x = transformer(), torch.rand(8, 3, 224, 224)
        name = kind.removeprefix("vit ")
        # The grid of tokens is found once for a model, before this is measured.
        return _peak(transformer_runs(model, x[:1])[name], transformer_runs(model, x)[name])
    model, x = build("resnet50"), torch.rand(32, 3, 224, 224)
    layer = MODELS["resnet50"]
    makers: dict[str, Callable[[], Run]] = {
        "forward": lambda: forward(model, x),
        "sightline": lambda: sightline_run(model, x, layer),
        "torchcam": lambda: torchcam_run(model, x, layer),
        "captum": lambda: captum_run(model, x, layer),
        "pytorch-grad-cam": lambda: pgc_run(model, x, layer),
    }
    return _peak(lambda: forward(model, x[:1])(), makers[kind]())


def _peak(warm_up: Run, run: Run) -> float:
    import threading

    warm_up()  # kernels loaded, thread pools started
    gc.collect()
    pages = Path("/proc/self/statm")
    size = 4096 / 1e6
    start = peak = int(pages.read_text().split()[1]) * size
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, int(pages.read_text().split()[1]) * size)
            done.wait(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return peak - start


def memory(kinds: Sequence[str], head: str) -> str:
    found = {}
    # What is freed goes back to the system at once, so that the peak is what is in use and not what the allocator keeps.
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for kind in kinds:
        out = [
            float(subprocess.run([sys.executable, __file__, "--memory", kind], check=True, capture_output=True, text=True, env=given_back).stdout)
            for _ in range(3)
        ]  # fmt: skip
        found[kind] = statistics.median(out)
        print(kind, out, flush=True)
    rows = [[kind, f"{value:.0f} MB", f"{value / found[kinds[0]]:.2f}"] for kind, value in found.items()]
    return table([head, "peak above the start", "of the forward's"], rows)


def speed_of_metrics(rounds: int) -> str:
    """Deletion and insertion beside the forwards they need, road beside pytorch-grad-cam's, and a whole evaluation."""
    return "\n".join([_curves_beside_forwards(rounds), _road_beside_peer(rounds), _evaluation_beside_forwards()])


def _demo_pictures() -> list[Path]:
    import sightline

    return sorted((Path(sightline.__file__).parent / "data" / "demo").glob("*.jpg"))


def _curves_beside_forwards(rounds: int) -> str:
    import sightline

    rows = []
    adapters = {
        "bundled": sightline.load_model(),
        "resnet18": sightline.load_model("torchvision:resnet18", random_weights=True),
    }
    for name, adapter in adapters.items():
        heatmap = sightline.explain(_demo_pictures()[0], adapter)
        x, _ = adapter.preprocess(heatmap.photo)
        many = x[None].expand(449, -1, -1, -1).contiguous(memory_format=torch.channels_last)

        def forwards(adapter: object = adapter, many: Tensor = many) -> None:
            with torch.inference_mode():
                for part in many.split(16):
                    adapter.module(part)

        def both(heatmap: object = heatmap) -> None:
            heatmap.measure(["deletion", "insertion"])

        found = ratios({"449 forwards": forwards, "both": both}, rounds)
        rows.append([name, shown(found["both"]), f"{1 / found['both'][0]:.2f}", f"{found['both'][3]:.1f} s"])
    head = [
        "deletion and insertion, 224 steps each",
        "of 449 forwards in batches of 16",
        "share of their throughput",
        "seconds",
    ]
    return table(head, rows)


def _road_beside_peer(rounds: int) -> str:
    import numpy as np
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    from sightline.metrics.faithfulness import SHARES, ranks
    from sightline.metrics.imputation import impute
    from sightline.metrics.maps import enlarged, random_map

    x = torch.rand(3, 224, 224)
    peer = NoisyLinearImputer(noise=0)
    rows = []
    for name, heat in (
        ("coarse map, 7 x 7", enlarged(random_map((7, 7)), (224, 224))),
        ("noise", random_map((224, 224))),
    ):
        rank = ranks(heat)
        counts = torch.tensor([round(share * heat.size) for share in SHARES])[:, None, None]
        missing = torch.cat([rank < counts, rank >= heat.size - counts])  # most, and least relevant first
        runs: dict[str, Run] = {
            "sightline": lambda missing=missing: impute(x, missing),
            "pytorch-grad-cam": lambda missing=missing: [peer(x, (~one).float()) for one in missing],
        }
        found = ratios(runs, rounds)
        differ = np.abs(torch.stack(runs["pytorch-grad-cam"]()).numpy() - impute(x, missing).numpy()).max()
        rows.append(
            [
                name,
                f"{found['sightline'][3]:.2f} s",
                f"{found['pytorch-grad-cam'][3]:.2f} s",
                shown(found["pytorch-grad-cam"]),
                f"{differ:.0e}",
            ]
        )
    head = ["road: 18 imputations of one picture", "sightline", "pytorch-grad-cam", "ratio", "largest difference"]
    return table(head, rows)


def _evaluation_beside_forwards() -> str:
    import tempfile

    import sightline
    from sightline.data.images import read_image

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        for picture in _demo_pictures():
            image = read_image(picture)[0]
            for turn in range(4):
                image.rotate(90 * turn, expand=True).save(folder / f"{picture.stem}-{turn}.jpg")
        adapter = sightline.load_model()
        counted = [0]

        def watch(_done: int, _of: int, pictures: int) -> None:
            counted[0] = pictures

        methods = ["grad-cam", "grad-cam++", "hires-cam", "layer-cam", "eigen-cam", "eigengrad-cam"]
        sightline.evaluate(folder, adapter, output=Path(place) / "warm", methods=methods, limit=1)
        started = time.perf_counter()
        sightline.evaluate(folder, adapter, output=Path(place) / "run", methods=methods, watch=watch)
        taken = time.perf_counter() - started
        x = torch.rand(13, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        run = forward(adapter.module, x)
        run()
        started = time.perf_counter()
        for _ in range(round(counted[0] / 13)):
            run()
        alone = time.perf_counter() - started
    row = [
        "12 pictures, 6 methods, 4 metrics",
        f"{counted[0]:,}",
        f"{taken:.1f} s",
        f"{alone:.1f} s",
        f"{taken / alone:.2f}",
    ]
    return table(
        [
            "evaluate, tables and plots included",
            "pictures shown to the model",
            "evaluate",
            "those forwards alone",
            "ratio",
        ],
        [row],
    )


def start_up() -> str:
    commands = {
        "import sightline": [sys.executable, "-c", "import sightline"],
        "python alone": [sys.executable, "-c", "pass"],
        "sightline --help": [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['sightline', '--help']; from sightline.cli import main; main()",
        ],
    }
    rows = []
    for name, command in commands.items():
        seconds = []
        for _ in range(9):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        rows.append([name, f"{statistics.median(seconds):.2f} s"])
    return table(["start, as a whole process", "median"], rows)


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("torchvision", "torchcam", "captum", "grad-cam"):
        from importlib.metadata import version

        versions.append(f"{package} {version(package)}")
    cuda = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} threads{cuda}; {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks.md")
    parser.add_argument("--memory")
    parser.add_argument("--only", help="the heading of the one section to measure anew, such as 'Vision transformers'")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers'
    if arguments.memory:
        print(peak_memory(arguments.memory))
        return
    if not torch.cuda.is_available():
        torch.set_num_threads(2)
    rounds, models = arguments.rounds, arguments.models.split(",")
    peers = ("forward", "sightline", "torchcam", "captum", "pytorch-grad-cam")
    vit = ("vit forward", "vit grad-cam", "vit grad-cam, pytorch-grad-cam", *(f"vit {name}" for name in ATTENTION))
    sections: dict[str, Callable[[], str]] = {
        "One map each, targets given": lambda: speed_of_one_map(models, rounds, "cpu"),
        "Several maps of one image": lambda: speed_of_many(rounds, "cpu"),
        "Models that Sightline loads itself": lambda: (
            "Batch norm folded and channels-last, checked at loading to give the same logits.\n\n"
            + speed_of_loaded(rounds, "cpu")
        ),
        "Methods that ask again": lambda: speed_of_asking_again(rounds, "cpu") + "\n" + speed_of_score_cam(3, "cpu"),
        "Gradients of pixels and black boxes": lambda: "\n".join(
            table(*one) for one in speed_of_pixels(ratios, min(5, rounds))
        ),
        "Vision transformers": lambda: (
            speed_of_transformers(rounds, "cpu") + "\n" + memory(vit, "timm's ViT-B/16, batch 8")
        ),
        "Sources": lambda: speed_of_sources(rounds),
        "Metrics": lambda: speed_of_metrics(rounds),
        "Training": lambda: "\n".join(table(*one) for one in speed_of_training(min(3, rounds))),
        "Data sets": lambda: "\n".join(table(*one) for one in speed_of_runs(min(3, rounds))),
        "Memory": lambda: memory(peers, "resnet50, batch 32"),
        "Start": start_up,
    }
    if torch.cuda.is_available():
        sections["CUDA"] = lambda: "\n".join(
            [speed_of_one_map(models, 20, "cuda"), speed_of_many(20, "cuda"), speed_of_transformers(20, "cuda")]
        )
    head = (
        f"# Benchmarks\n\nMeasured by `make bench` on: {machine()}.\n\nRatios to an eager `inference_mode` forward of the same model and "
        "batch, run in turn in one process: median (lowest-highest).\n"
    )
    if arguments.only is None:
        found = {name: section() for name, section in sections.items()}
    else:
        head, *old = arguments.output.read_text(encoding="utf-8").split("\n## ")
        found = {name: text.strip("\n") + "\n" for name, _, text in (one.partition("\n") for one in old)}
        found[arguments.only] = sections[arguments.only]()
    order = [name for name in sections if name in found]
    text = "\n".join([head.strip("\n") + "\n", *(f"## {name}\n\n{found[name]}" for name in order)])
    arguments.output.write_text(text, encoding="utf-8")
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
