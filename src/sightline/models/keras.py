"""Models of Keras 3 on its torch backend: `keras:NAME` of keras.applications, `.keras` archives, and live models."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch import Tensor

from sightline._optional import require
from sightline._quiet import quiet
from sightline.errors import ModelError, WeightsError, did_you_mean
from sightline.models.adapter import Adapter, adapt
from sightline.models.given import Finding, Given
from sightline.models.keras_file import KerasFile, check_finite, fill, head_size, misfit, read_keras, rebuilt, whole
from sightline.models.keras_module import Whole, ending, input_shape, takes_channels_first, torch_view
from sightline.models.made import OFFLINE, few, imagenet_labels, made, shown
from sightline.models.preprocess import Preprocess, specified
from sightline.models.view import View

# MobileNets come in several widths, which a weights file doesn't name.
_WIDTHS = (0.25, 0.35, 0.5, 0.75, 1.3, 1.4)
# Of the official weights, and of an architecture that is asked for no other number.
_CLASSES = 1000
_USUAL_SIZE = 224
SEVERAL = "the model says yes or no to each class by itself (sigmoid); the probabilities shown are shares among the classes (softmax) instead"
_PIXELS: Mapping[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
_SHARES: Mapping[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def build(name: str, given: Given) -> Adapter:
    """An architecture of keras.applications with Keras' official weights, those of a local file, or random ones."""
    keras = imported()
    if name not in names():
        raise ModelError(f"keras has no model {name!r}.{did_you_mean(name, names())} List them: sightline models keras")
    make = getattr(keras.applications, name)
    options = _options(given)
    origin: dict[str, Any] = {}
    found = given.found or (Finding("architecture", f"keras:{name}", "its name"),)
    if given.path is not None:
        file = read_keras(given.path)
        model, about = _filled(make, name, options, file, given)
        found += about
        origin = {"weights": file.path.name, "sha256": file.sha256}
    elif given.random_weights:
        model = _made(make, options | {"classes": given.num_classes or _CLASSES})
    else:
        model = _official(make, name, options, given)
        origin = {"weights": "imagenet"}
    classes = int(model.output_shape[-1])
    scaling, swapped = _scaling(make)
    adapter = made(
        f"keras:{name}",
        torch_view(model),
        given,
        _resizing(model) | scaling,
        imagenet_labels() if classes == _CLASSES else None,
        {"source": "keras", "architecture": name},
        (*found, *_about(model, swapped)),
        classes,
    )
    adapter = replace(adapter, provenance={**adapter.provenance, **origin})
    return _swapped(adapter) if swapped else adapter


def build_archive(path: Path, given: Given) -> Adapter:
    """A `.keras` archive alone: built again out of Keras' own layers as the configuration in it says, with its weights."""
    imported()
    if given.path is not None:
        raise ModelError(f"{path.name} has its own weights; leave --weights (weights=...) out")
    file = read_keras(path)
    model = rebuilt(file)
    origin: dict[str, Any] = {"source": path.name, "architecture": model.name}
    found = given.found or (Finding("architecture", model.name, f"the configuration in {path.name}"),)
    if not given.random_weights:
        fill(model, file)
        origin |= {"weights": path.name, "sha256": file.sha256}
        found += (_from_file(file),)
    if not _takes_photographs(model):
        raise ModelError(f"the model in {path.name} takes no pictures of three colours, but {input_shape(model)}")
    return _of_model(path.name, model, torch_view(model), given, origin, found)


def live(
    model: Any,
    *,
    layers: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | Callable[[Image.Image], Any] | None = None,
    labels: Sequence[str] | None = None,
    logits: Callable[[Any], Any] | None = None,
    grid: tuple[int, int] | None = None,
    name: str | None = None,
) -> Adapter:
    """A user's own Keras model, which is never changed; arguments as of `adapt`, and `preprocess` also as of `load_model`.

    Raises:
        ModelError: Keras runs on another backend than torch, or the model can't be followed.
    """
    keras = imported()
    if not isinstance(model, keras.Layer):
        raise ModelError(f"{type(model).__name__} is no Keras model; give a keras.Model")
    view, named = torch_view(model), name or model.name
    own = preprocess if callable(preprocess) else None
    adapter = adapt(view, layers=layers, preprocess=own, labels=labels, logits=logits, grid=grid, name=named)
    origin = {"source": "user's Keras model", "class": f"{type(model).__module__}.{type(model).__qualname__}"}
    if own is None and _takes_photographs(model):
        parts = cast("Mapping[str, Any] | None", preprocess)
        found = _of_model(named, model, view, Given(labels=adapter.labels, preprocess=parts), origin, ())
        return replace(found, layer=adapter.layer, layer_reason=adapter.layer_reason, logits=adapter.logits, grid=grid)
    if own is None and preprocess is not None:
        raise ModelError(f"{named} does not say that it takes pictures of three colours; give preprocess as a function")
    return replace(adapter, provenance=origin, found=_about(model))


def imported() -> Any:
    """Keras, on its torch backend.

    Raises:
        ModelError: it was imported with another backend, or is older than Keras 3.
        MissingExtraError: it isn't installed.
    """
    require(["keras", "h5py"], "keras", "a Keras model")
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    with quiet():
        import keras
    backend = keras.backend.backend()
    if int(keras.__version__.partition(".")[0]) < 3 or backend != "torch":
        raise ModelError(
            f"Keras {keras.__version__} runs on {backend} here, and Sightline looks into Keras 3 on torch: set the environment "
            "variable KERAS_BACKEND=torch before keras is imported, and load the model anew"
        )
    return keras


def names() -> tuple[str, ...]:
    """Every architecture of keras.applications."""
    applications = imported().applications
    return tuple(name for name in dir(applications) if name[:1].isupper() and callable(getattr(applications, name)))


def _options(given: Given) -> dict[str, Any]:
    """Of an architecture: the size of its input, where that was asked for."""
    if not given.preprocess or "size" not in given.preprocess:
        return {}
    import keras

    _, spec = specified(_usual((_USUAL_SIZE,) * 2) | dict(_PIXELS), {"size": given.preprocess["size"]})
    width, height = spec["size"]
    first = keras.config.image_data_format() == "channels_first"
    return {"input_shape": (3, height, width) if first else (height, width, 3)}


def _made(make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        with quiet():
            return make(weights=None, **options)
    except ValueError as error:  # a size or number that the architecture can't have
        raise ModelError(f"keras:{make.__name__} can't be built so: {error}") from error


def _filled(
    make: Callable[..., Any], name: str, options: Mapping[str, Any], file: KerasFile, given: Given
) -> tuple[Any, tuple[Finding, ...]]:
    """The architecture with the weights of a file; its width and the size of its head are found from their shapes."""
    import keras

    own = given.num_classes or _CLASSES
    widths = _WIDTHS if "alpha" in inspect.signature(make).parameters else ()
    told = ""
    for width in (None, *widths):
        chosen = dict(options) | ({} if width is None else {"alpha": width})
        with keras.device("meta"):  # shapes alone
            draft = _made(make, chosen | {"classes": own})
        classes = own if not misfit(draft, file) else head_size(draft, file, own)
        if classes is not None:
            break
        told = told or misfit(draft, file)
    else:
        raise WeightsError(f"{file.path.name} was not made for keras:{name}: {told}{whole(file)}")
    if given.num_classes not in (None, classes):
        raise WeightsError(
            f"the head in {file.path.name} has {classes:,} classes, and --num-classes (num_classes=...) says "
            f"{given.num_classes:,}; leave that out, and the file's own number is taken"
        )
    model = _made(make, chosen | {"classes": classes})
    fill(model, file)
    about = [_from_file(file), Finding("classes", f"{classes:,}", f"the head in {file.path.name}")]
    if width is not None:
        about.append(Finding("width", f"alpha {width}", f"the shapes in {file.path.name}"))
    return model, tuple(about)


def _from_file(file: KerasFile) -> Finding:
    return Finding("weights", f"{file.path.name}, sha256 {file.sha256[:16]}...", "the file")


def _official(make: Callable[..., Any], name: str, options: Mapping[str, Any], given: Given) -> Any:
    """With the weights that Keras fetches itself: arrays of numbers, whose hash it checks where it knows one."""
    if given.num_classes not in (None, _CLASSES):
        raise ModelError(
            f"the official weights of keras:{name} have {_CLASSES:,} classes, and --num-classes (num_classes=...) says "
            f"{given.num_classes:,}; leave that out, or give --weights FILE"
        )
    try:
        with quiet(), _silent():
            model = make(weights="imagenet", **options)
    except Exception as error:  # offline shows as one of several types
        raise ModelError(f"the weights of keras:{name} can't be had from storage.googleapis.com. {OFFLINE}") from error
    check_finite(model, f"the official file of keras:{name}")
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Keras shows no progress on stdout, which is for results; for this thread alone."""
    import keras

    shows = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if shows:
            keras.config.enable_interactive_logging()


def _of_model(
    name: str, model: Any, view: Whole, given: Given, origin: Mapping[str, Any], found: tuple[Finding, ...]
) -> Adapter:
    """The adapter of a model of which only the model itself tells what pictures it takes."""
    own, why, guessed, swapped = _own_scaling(model)
    own = _resizing(model) | own
    said = set(given.preprocess or {})
    if {"mean", "std"} <= said:
        guessed, why = None in _size(model) and "size" not in said, "given"
    elif None in _size(model) and "size" not in said:
        guessed, why = True, f"{why}; it takes any size"
    _, spec = specified(own, given.preprocess)
    found += (Finding("preprocessing", shown(spec), why, guessed=guessed),)
    outputs = getattr(model, "outputs", None) or []
    classes = outputs[0].shape[-1] if len(outputs) == 1 and len(outputs[0].shape) == 2 else None
    if given.num_classes not in (None, classes):
        raise ModelError(f"{name} has {classes} classes, and --num-classes (num_classes=...) says {given.num_classes}")
    if given.labels is None and classes == _CLASSES and _architecture(model) is not None:
        given = replace(given, labels=imagenet_labels())
        found += (Finding("class names", few(imagenet_labels()), "those of the official weights", guessed=True),)
    adapter = made(name, view, given, own, None, origin, (*found, *_about(model, swapped)), classes)
    if classes != 1 and (ending(model) or ("", ""))[1] == "sigmoid":
        adapter = replace(adapter, notes=(*adapter.notes, SEVERAL))
    return _swapped(adapter) if swapped else adapter


def _about(model: Any, swapped: bool = False) -> tuple[Finding, ...]:
    """What the user must know of how the model is read: where its logits are, and the order of its colours."""
    found = []
    end = ending(model)
    if end is not None:
        layer, kind = end
        found.append(Finding("score", f"the logits, before the {kind} in layer {layer}", "the model's last layer"))
    elif not hasattr(model, "outputs"):
        found.append(
            Finding("score", "the logits, where its last layer ends in a softmax or sigmoid", "found as it runs")
        )
    if swapped:
        found.append(Finding("colours", "blue, green, red", "the architecture's own preprocess_input"))
    return tuple(found)


def _swapped(adapter: Adapter) -> Adapter:
    """With the colours in the order in which the oldest architectures take them."""
    take = cast(Preprocess, adapter.preprocess)

    def preprocess(image: Image.Image) -> tuple[Tensor, View]:
        x, view = take(image)
        return x.flip(0), view

    return replace(adapter, preprocess=preprocess)


def _takes_photographs(model: Any) -> bool:
    shape = input_shape(model)
    return len(shape) == 4 and shape[1 if takes_channels_first(model) else 3] == 3


def _size(model: Any) -> tuple[int | None, int | None]:
    """(width, height) of its input; None for any."""
    shape = input_shape(model)
    height, width = shape[2:4] if takes_channels_first(model) else shape[1:3]
    return width, height


def _resizing(model: Any) -> dict[str, Any]:
    width, height = (side or _USUAL_SIZE for side in _size(model))
    return _usual((width, height))


def _usual(size: tuple[int, ...]) -> dict[str, Any]:
    """How Keras' own readers of pictures make them of one size."""
    return {"size": size, "resize": size, "fit": "exact", "interpolation": "bilinear"}


def _scaling(make: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Mean and deviation in 0..1 of an architecture's own preprocess_input, measured; and whether it swaps red and blue."""
    function = sys.modules[make.__module__].preprocess_input

    def told(colour: Sequence[float]) -> np.ndarray[Any, Any]:
        given = np.array(colour, np.float64).reshape(1, 1, 1, 3)
        return cast("np.ndarray[Any, Any]", np.asarray(function(given, data_format="channels_last"))[0, 0, 0])

    black = told((0, 0, 0))
    gains = np.stack([told(255 * np.eye(3)[channel]) - black for channel in range(3)])
    places = np.abs(gains).argmax(axis=1)
    gain = gains[range(3), places]
    numbers = {"mean": -black[places] / gain + 0.0, "std": 1 / gain}  # + 0.0, because of -0.0
    return {key: tuple(round(float(one), 12) for one in value) for key, value in numbers.items()}, bool(places[0] == 2)


def _own_scaling(model: Any) -> tuple[dict[str, Any], str, bool, bool]:
    """The scaling that a model's own layers tell: what to do, why, whether it is guessed, and whether colours are swapped."""
    for one in _operations(model):
        pixels = _takes_pixels(one)
        if pixels is not None:
            span = "0..255" if pixels else "0..1"
            return dict(_PIXELS if pixels else _SHARES), f"its layer {one.name} takes {span}", False, False
        if getattr(one, "_trainable_variables", ()):
            break
    make = _architecture(model)
    if make is not None:
        scaling, swapped = _scaling(make)
        return scaling, f"as {make.__name__}, whose name it has inside, is fed", True, swapped
    return dict(_SHARES), "0..1, as no layer in it scales", True, False


def _operations(model: Any) -> Iterator[Any]:
    """Layers and operations in order, those of models within models, too."""
    for one in getattr(model, "operations", getattr(model, "layers", ())):
        if hasattr(one, "layers"):
            yield from _operations(one)
        else:
            yield one


def _takes_pixels(layer: Any) -> bool | None:
    """Whether a layer that scales takes pixels of 0..255 rather than 0..1; None where it is no such layer."""
    kind = type(layer).__name__
    if kind == "Rescaling":
        return bool(np.max(np.abs(np.asarray(layer.scale, np.float64))) < 0.1)
    if kind == "Normalization":
        mean = layer.mean if getattr(layer, "mean", None) is not None else 0.0
        return bool(np.max(np.abs(np.asarray(mean.detach().cpu() if isinstance(mean, Tensor) else mean))) > 2)
    if kind in ("TrueDivide", "Divide", "Multiply", "Subtract", "Add"):
        for node in layer._inbound_nodes:
            for one in node.arguments._flat_arguments:
                if isinstance(one, int | float | np.ndarray | Tensor):
                    size = float(np.max(np.abs(np.asarray(one.detach().cpu() if isinstance(one, Tensor) else one))))
                    return size < 0.1 if kind == "Multiply" else size > 10
    return None


def _architecture(model: Any) -> Callable[..., Any] | None:
    """The architecture of keras.applications whose name a model, or a model in it, has; the longest that fits."""
    import keras

    def plain(name: str) -> str:
        return "".join(letter for letter in name.lower() if letter.isalnum())

    inside = [plain(one.name) for one in model._flatten_layers() if hasattr(one, "layers")]
    fitting = [name for name in names() if any(one.startswith(plain(name)) for one in inside)]
    return getattr(keras.applications, max(fitting, key=len)) if fitting else None
