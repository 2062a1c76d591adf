"""`@method` registers a method once; the command line, documentation and contract tests read it from here."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.attention import WANTED, AttentionCapture
from sightline.engine.capture import Capture
from sightline.engine.probe import Probe
from sightline.engine.rules import Rule
from sightline.errors import LayerError, MethodError, SightlineError, did_you_mean
from sightline.models.adapter import Adapter

Needs = Literal[
    "activations",
    "gradients",
    "attention",
    "attention-gradients",
    "block-gradients",
    "pixels",
    "guided-pixels",
    "deconvnet-pixels",
    "head",
    "input",
    "input-gradients",
    "model",
    "scores",
]
ONE_PASS: tuple[Needs, ...] = ("activations", "gradients")
# Those that look at the picture and its scores alone: all that a black box has.
OUTSIDE: tuple[Needs, ...] = ("scores",)
# Those that one pass serves from the picture to the score, and what its ReLUs hand back.
PIXELS: dict[Needs, Rule | None] = {"pixels": None, "guided-pixels": "guided", "deconvnet-pixels": "deconvnet"}
# Those that are shown the picture in the place of a layer.
OF_INPUT: tuple[Needs, ...] = (*PIXELS, "input-gradients", *OUTSIDE)
# Those that look at the whole network, and at no layer of it.
WHOLE: tuple[Needs, ...] = (*WANTED, "model", *OF_INPUT)
# Those that treat all places alike, so that slices of a volume may lie below each other.
_OF_VOLUMES: tuple[Needs, ...] = (*ONE_PASS, *PIXELS, "head")
# An option by which one of them looks at the places beside a place.
_OF_NEIGHBOURS = "spread"
Function = Callable[..., Tensor]


def share_of_maximum(maps: Tensor) -> Tensor:
    """Each image's map (B, h, w) divided by its highest absolute value; 0 where it is empty."""
    highest = maps.abs().amax(dim=(1, 2), keepdim=True)
    return maps / torch.where(highest > 0, highest, 1)


def on_finest(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, h, w) of several resolutions, resized to the finest: (layers, B, h, w)."""
    finest = max((one.shape[1:] for one in maps), key=lambda grid: grid[0] * grid[1])
    return torch.stack(
        [F.interpolate(one[:, None], finest, mode="bilinear", align_corners=False)[:, 0] for one in maps]
    )


def mean_of_shares(maps: Sequence[Tensor]) -> Tensor:
    """The mean of maps that were each divided by their own maximum."""
    return on_finest([share_of_maximum(one) for one in maps]).mean(dim=0)


@dataclass(frozen=True)
class Method:
    """One way to turn a capture into a map.

    Attributes:
        name: the paper's name, in kebab-case.
        function: `Capture` (and `Probe`, if it asks again) -> map (B, h, w), before any rectification.
        needs: what it costs: "activations" < "gradients" < "head" < "input" < "model". Up to "gradients" one pass serves
            all methods and targets together. "attention", "attention-gradients" and "block-gradients" take an `AttentionCapture`
            from a pass of their own. "pixels" takes the capture of the input with gradients, also from a pass of its own,
            "guided-pixels" and "deconvnet-pixels" with another rule for its ReLUs. "input-gradients" asks for gradients of other
            pictures and "scores" for scores of pictures alone, and both take the capture of the input.
        signed: negative values are part of the result; otherwise they are set to 0 as the paper does.
        class_specific: whether another target gives another map.
        unit: "score" when values are in units of the target's score and can be compared between methods; "own" when not.
        reference: where it is defined, with the equation.
        fuse: rectified maps (B, h, w) of several layers, the shallowest first -> one map.
        volumes: of a method that shows the model other pictures, whether a film or volume may be asked about. Slices lie below each
            other in all that the function is given and in what it shows the model; `Probe.slices` says how many they are.
    """

    name: str
    function: Function
    needs: Needs
    signed: bool = False
    class_specific: bool = True
    unit: Literal["score", "own"] = "score"
    reference: str = ""
    fuse: Callable[[Sequence[Tensor]], Tensor] = mean_of_shares
    volumes: bool = False

    @property
    def summary(self) -> str:
        """What it shows, in one line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of its options, from its signature."""
        return keywords(self.function)


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Names and defaults of what a function takes by keyword only."""
    return {
        one.name: one.default for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY
    }


def _positional(function: Callable[..., Any]) -> int:
    """How many arguments a function must be given by place."""
    given = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in given)


_REGISTRY: dict[str, Method] = {}


def method(
    name: str,
    *,
    needs: Needs,
    signed: bool = False,
    class_specific: bool = True,
    unit: Literal["score", "own"] = "score",
    reference: str,
    fuse: Callable[[Sequence[Tensor]], Tensor] = mean_of_shares,
    volumes: bool = False,
) -> Callable[[Function], Function]:
    """Registers a function as a method; a name can be taken only once."""
    if not re.fullmatch(r"[a-z0-9]+([-+][a-z0-9+]+)*[+]*", name):
        raise MethodError(
            f"a method can't be called {name!r}; expected small letters, digits and hyphens, such as my-cam"
        )
    if needs not in get_args(Needs):
        raise MethodError(f"needs={needs!r} of {name}; expected one of {', '.join(get_args(Needs))}")

    def register(function: Function) -> Function:
        if not inspect.getdoc(function):
            raise MethodError(f"{name} has no docstring; its first line says what the method shows")
        alone = needs in (*ONE_PASS, *WANTED, *PIXELS)
        if (_positional(function) > 1) == alone:
            raise MethodError(
                f"{name} needs {needs!r}, and so takes {'a capture' if alone else 'a capture and a probe'}"
            )
        if name in _REGISTRY:
            raise MethodError(
                f"a method called {name!r} is registered already, by {_REGISTRY[name].function.__module__}"
            )
        _REGISTRY[name] = Method(name, function, needs, signed, class_specific, unit, reference, fuse, volumes)
        return function

    return register


def list_methods() -> Mapping[str, Method]:
    """Every method by name, those of installed plug-ins (entry points `sightline.methods`) included."""
    return with_plugins("sightline.methods", _REGISTRY)


def with_plugins(group: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """A registry by name, once the installed plug-ins of that group of entry points have registered themselves."""
    for entry in _plugins(group, _installed()):
        if entry.name not in known:
            entry.load()
    return dict(sorted(known.items()))


@lru_cache(maxsize=16)
def _plugins(group: str, _installed: tuple[tuple[str, int], ...]) -> EntryPoints:
    # Every installed package's files are read for it, which takes longer than a small model's map.
    return entry_points(group=group)


def _installed() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, and when something was last put there or taken away."""
    return tuple((place, os.stat(place or ".").st_mtime_ns) for place in sys.path if os.path.exists(place or "."))


def one_pass() -> list[str]:
    """Names of the methods that one pass serves all together."""
    return [one.name for one in list_methods().values() if one.needs in ONE_PASS]


def possible(adapter: Adapter) -> list[str]:
    """Names of the methods that can be asked of this model; of no boxes d-rise would be rise again."""
    known = [one for one in list_methods().values() if adapter.frames is None or of_volumes(one)]
    found = [one.name for one in known if not adapter.black_box or one.needs in OUTSIDE]
    return found if adapter.task == "detection" else [name for name in found if name != "d-rise"]


def default(adapter: Adapter) -> str:
    """The method that is taken where none is named: where a target has a place, one whose map keeps to it."""
    if adapter.task == "detection" and adapter.black_box:
        return "d-rise"
    if adapter.task in ("detection", "segmentation") and not adapter.black_box:
        return "hires-cam"  # grad-cam's weights are means over the whole picture
    return "occlusion" if adapter.black_box else "grad-cam"


def check_possible(chosen: Method, adapter: Adapter) -> None:
    """Refuses to look into a black box."""
    if adapter.black_box and chosen.needs not in OUTSIDE:
        raise MethodError(
            f"{chosen.name} looks into the model, and {adapter.name} is a black box, of which only the scores are known; "
            f"these methods work: {', '.join(possible(adapter))}"
        )


def of_volumes(chosen: Method) -> bool:
    """Whether films and volumes can be asked about."""
    return chosen.volumes or chosen.needs in _OF_VOLUMES


def check_of_volumes(
    chosen: Method, adapter: Adapter, options: Mapping[str, Any], layers: Sequence[str | None]
) -> None:
    """Refuses what can't be asked of a film or volume."""
    if not of_volumes(chosen):
        works = ", ".join(name for name in possible(adapter) if of_volumes(find(name)))
        raise MethodError(
            f"{chosen.name} looks at neighbours on a picture, or draws pictures of its own, and can't be asked of a film or volume "
            f"(B, C, T, H, W); these methods can: {works}"
        )
    if options.get(_OF_NEIGHBOURS):
        raise MethodError(
            f"option {_OF_NEIGHBOURS} of {chosen.name} looks at neighbours on a picture; leave it out here"
        )
    if len(layers) > 1:
        raise LayerError(f"of films and volumes the map of one layer is made, not of {len(layers)} fused; name one")


def find(name: str | Function | Method) -> Method:
    """The method of this name; a bare function counts as a signed method in units of the score.

    One of a capture alone gets gradients from one pass; one of a capture and a probe gets the score, and asks for the rest.
    """
    if isinstance(name, Method):
        return name
    if callable(name):
        registered = [one for one in _REGISTRY.values() if one.function is name]
        if registered:
            return registered[0]
        needs: Needs = "input" if _positional(name) > 1 else "gradients"
        return Method(getattr(name, "__name__", "own method"), name, needs, signed=True)
    if not isinstance(name, str):
        raise MethodError(
            f"{name!r} is no method; expected a name (sightline methods), a function, or what combine returns"
        )
    known = _REGISTRY if name in _REGISTRY else list_methods()
    if name in known:
        return known[name]
    raise MethodError(f"there is no method {name!r}.{did_you_mean(str(name), known)} List them: sightline methods")


def check_options(chosen: Sequence[Method], options: Mapping[str, Any]) -> None:
    """Refuses an option that none of the methods has."""
    known = {name: default for one in chosen for name, default in one.options.items()}
    check_settings(", ".join(one.name for one in chosen), known, options)


# How many superpixels a picture may be divided into: surrogates solve a system of that many equations.
MOST_SEGMENTS = 5000
# Options of one name mean the same in every method and metric: from, to, and whether the first itself is allowed.
_RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**63 - 1, True), "samples": (1, 1_000_000, True), "noise": (0, 100, True), "step": (1, 1e9, True),
    "shares": (0, 1, False), "size": (0, 1, False), "radius": (0, 1e6, False), "tolerance": (0, 1e6, True),
    "threshold": (0, 1, False), "classes": (1, 1e6, True), "depths": (0, 1e6, True), "draws": (1, 1e4, True),
    "patch": (0, 1e5, True), "stride": (0, 1e5, True), "steps": (1, 100_000, True), "fraction": (0, 1, False),
    "distance": (0, 1, True), "sigma": (0, 1000, False),
    "grid": (2, 100, True), "kept": (0, 0.999, False),
    "segments": (1, MOST_SEGMENTS, True), "width": (0, 1e6, False), "ridge": (0, 1e12, True),
}  # fmt: skip


def check_settings(of: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses a setting that isn't known, or is of another kind than its default."""
    if not isinstance(given, Mapping):
        raise MethodError(f"options are {given!r}; expected names and values, such as {{'samples': 10}}")
    for name, value in given.items():
        if name not in known:
            shown = ", ".join(f"{key}={default!r}" for key, default in known.items())
            raise MethodError(f"no option {name!r} in {of}; " + (f"there is: {shown}" if shown else "there are none"))
        if name == "baseline":
            if not _is_baseline(value):
                raise MethodError(f"option baseline is {value!r}; expected {EXPECTED_BASELINE}")
        elif name == "segments":
            if isinstance(value, Tensor | np.ndarray):
                continue  # only the method knows the picture that they are of
            if not _alike(value, 0):
                raise MethodError(f"option segments is {value!r}; expected {EXPECTED_SEGMENTS}")
        elif not _alike(value, known[name]):
            expected = (
                "true or false"
                if isinstance(known[name], bool)
                else "one name or number"
                if known[name] == ""
                else f"something like {known[name]!r}"
            )
            raise MethodError(f"option {name} is {value!r}; expected {expected}")
        if name in _RANGES:
            low, high, closed = _RANGES[name]
            for one in value if isinstance(value, list | tuple) else [value]:
                if not (low <= one <= high if closed else low < one <= high):
                    reach = f"{low} to {high}" if closed else f"above {low}, at most {high}"
                    raise MethodError(f"option {name} is {value!r}; expected {reach}")


EXPECTED_BASELINE = (
    "a number or one for each channel (in the units of the model's input), black, white, mean, blur, random, a picture's file, "
    "or a tensor (C, H, W)"
)
EXPECTED_SEGMENTS = (
    "about how many superpixels, or a tensor or array (H, W) of whole numbers, each pixel's own superpixel"
)


def _is_baseline(value: Any) -> bool:
    return isinstance(value, str | Tensor | np.ndarray) or _alike(value, 0.0) or _alike(value, [0.0])


def _alike(value: Any, default: Any) -> bool:
    if default == "":  # a name or number of a class, or nothing
        return isinstance(value, str | int) and not isinstance(value, bool)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple) and len(value) > 0 and all(_alike(one, default[0]) for one in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)


def run(
    chosen: Method, capture: Capture | AttentionCapture, options: Mapping[str, Any], probe: Probe | None = None
) -> Tensor:
    """The method's map (B, h, w), signed as computed, in float32 at least.

    Raises:
        MethodError: an option it doesn't have, or a result of the wrong shape.
    """
    check_options([chosen], options)
    arguments = (capture,) if probe is None else (capture, probe)
    try:
        # Inside the caller's autocast a method's sums are the same as outside.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(capture.input.device.type, enabled=False):
            result = chosen.function(*arguments, **options)
    except (SightlineError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if chosen.function.__module__.startswith("sightline."):
            raise
        raise MethodError(f"{chosen.name} failed with {type(error).__name__}: {error}") from error
    size = capture.layout.size if isinstance(capture, AttentionCapture) else tuple(capture.activations.shape[2:])
    expected = (len(capture.input), *size)
    # A method that looks at more than this layer may give its map at another resolution.
    free = (
        chosen.needs in ("input", "model", *OF_INPUT)
        and isinstance(result, Tensor)
        and result.dim() == 3
        and len(result) == expected[0]
    )
    if not isinstance(result, Tensor) or (tuple(result.shape) != expected and not free):
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise MethodError(f"{chosen.name} gave {got}; expected a map of shape {expected}")
    return result
