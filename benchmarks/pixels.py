"""Gradients of pixels beside captum, and black-box methods beside a batched forward and captum's own loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[], object]
_STEPS, _SAMPLES = 50, 25


def plain(name: str = "resnet18") -> nn.Module:
    """A network of torchvision that captum can explain too: every ReLU a module of its own, none in place."""
    from torchvision import models

    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, models.resnet.BasicBlock):
            module.relu2 = nn.ReLU()
            module.forward = _block.__get__(module)
    return model


def _block(self: Any, x: Tensor) -> Tensor:
    """A basic block whose second ReLU is not its first."""
    aside = x if self.downsample is None else self.downsample(x)
    found: Tensor = self.relu2(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + aside)
    return found


def gradient_runs(model: nn.Module, x: Tensor) -> dict[str, tuple[Run, Run]]:
    """Name -> (captum's run, ours), of the same maps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum import attr

    import sightline

    adapter = sightline.adapt(model, layers=["layer4"])
    targets = list(range(len(x)))

    def ours(method: str, **options: Any) -> Run:
        return lambda: sightline.attribute(x, adapter, method=method, target=targets, options=options)

    def captums(one: Any, **given: Any) -> Run:
        def run() -> object:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return one.attribute(x, target=targets, **given)

        return run

    noise = {"nt_samples": _SAMPLES, "nt_samples_batch_size": 4, "stdevs": 0.15 * float(x.max() - x.min())}
    return {
        "saliency": (captums(attr.Saliency(model)), ours("saliency")),
        "input-x-gradient": (captums(attr.InputXGradient(model)), ours("input-x-gradient")),
        "guided-backprop": (captums(attr.GuidedBackprop(model)), ours("guided-backprop")),
        "deconvnet": (captums(attr.Deconvolution(model)), ours("deconvnet")),
        "guided-grad-cam": (captums(attr.GuidedGradCam(model, model.layer4)), ours("guided-grad-cam")),
        "deep-lift": (captums(attr.DeepLift(model)), ours("deep-lift")),
        f"integrated-gradients, {_STEPS} steps": (
            captums(attr.IntegratedGradients(model), n_steps=_STEPS, internal_batch_size=4),
            ours("integrated-gradients", steps=_STEPS),
        ),
        f"smooth-grad, {_SAMPLES} samples": (
            captums(attr.NoiseTunnel(attr.Saliency(model)), **noise),
            ours("smooth-grad", samples=_SAMPLES),
        ),
        f"gradient-shap, {_STEPS} samples": (
            captums(attr.GradientShap(model), baselines=torch.rand_like(x), n_samples=_STEPS),
            ours("gradient-shap", samples=_STEPS, baseline=0.5),
        ),
    }


_SUPERPIXELS, _COALITIONS, _BATCH = 50, 100, 16


def shown(count: int, model: nn.Module, x: Tensor) -> Run:
    """So many forwards of one picture, in batches as large as the methods' own."""

    def run() -> object:
        with torch.inference_mode():
            for start in range(0, count, _BATCH):
                model(x.expand(min(_BATCH, count - start), -1, -1, -1))
        return None

    return run


def black_box_runs(model: nn.Module, x: Tensor) -> dict[str, tuple[Run, Run]]:
    """Name -> (the same number of forwards, the method), through a function that gives scores alone."""
    import sightline

    def scores(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(pictures)
        return found

    adapter = sightline.adapt(scores)

    def ours(method: str, **options: Any) -> Run:
        return lambda: sightline.attribute(x, adapter, method=method, target=3, options=options)

    return {
        "occlusion, 170 pictures": (shown(171, model, x), ours("occlusion")),
        "rise, 1,000 masks": (shown(1001, model, x), ours("rise", samples=1000)),
        "kernel-shap, 1,000 coalitions": (shown(1003, model, x), ours("kernel-shap")),
        "lime, 1,000 pictures": (shown(1001, model, x), ours("lime")),
    }


def surrogate_runs(model: nn.Module, x: Tensor) -> dict[str, tuple[Run, Run]]:
    """Name -> (captum's own loop, ours), with the same superpixels and number of pictures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum import attr

    import sightline
    from sightline.methods.surrogates import superpixels

    labels = superpixels(x, _SUPERPIXELS)
    adapter = sightline.adapt(model)

    def captums(one: Any) -> Run:
        def run() -> object:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return one.attribute(x, target=3, feature_mask=labels[None, None].expand_as(x), n_samples=_COALITIONS)

        return run

    def ours(method: str) -> Run:
        options = {"samples": _COALITIONS, "segments": labels}
        return lambda: sightline.attribute(x, adapter, method=method, target=3, options=options)

    return {
        f"kernel-shap, {_COALITIONS} samples": (captums(attr.KernelShap(model)), ours("kernel-shap")),
        f"lime, {_COALITIONS} samples": (captums(attr.Lime(model)), ours("lime")),
    }


def speed_of_pixels(
    ratios: Callable[[dict[str, Run], int], dict[str, tuple[float, float, float, float]]], rounds: int
) -> list[tuple[list[str], list[list[str]]]]:
    """Tables: (head, rows). `ratios` compares runs with the first of them, in turn."""
    model = plain()
    tables = []
    for batch in (1, 8):
        x = torch.randn(batch, 3, 224, 224)
        runs = gradient_runs(model, x)
        if batch > 1:  # the others ask about one picture after the other, whatever the batch
            runs = {name: runs[name] for name in list(runs)[:6]}
        tables.append(_table(f"resnet18, batch {batch}", "of captum's time", runs, ratios, rounds))
    x = torch.randn(1, 3, 224, 224)
    tables.append(
        _table("resnet18, one picture", "of as many forwards", black_box_runs(model, x), ratios, min(rounds, 3))
    )
    tables.append(_table("resnet18, one picture", "of captum's time", surrogate_runs(model, x), ratios, rounds))
    return tables


def _table(
    what: str, of: str, runs: dict[str, tuple[Run, Run]], ratios: Any, rounds: int
) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, (base, ours) in runs.items():
        ratio, low, high, seconds = ratios({"base": base, "ours": ours}, rounds)["ours"]
        rows.append([name, f"{ratio:.2f} ({low:.2f}-{high:.2f})", f"{seconds:.2f} s"])
        print(what, rows[-1], flush=True)
    return [what, of, "time"], rows
