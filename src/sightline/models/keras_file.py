"""`read_keras`: the only place that opens Keras files. Weights and plain JSON are read, and nothing in a file ever runs."""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sightline._optional import optional
from sightline._quiet import quiet
from sightline.errors import ModelError, WeightsError, did_you_mean
from sightline.models.weights import MAX_BYTES, file_hash

ENDINGS = (".weights.h5", ".h5", ".hdf5", ".keras")
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MAX_CONFIG = 50_000_000
_MAX_OBJECTS = 200_000
# So many times its size in the archive may a member become.
_MOST_INFLATED = 20
# Not weights: what an optimiser keeps of them, and the state of random numbers.
_ASIDE = ("optimizer", "optimizer_weights", "seed_generator")
# Where the layers live that are made from a file; in `core` and `preprocessing` others hold code or read further files.
_HOMES = ("activations", "attention", "convolutional", "merging", "normalization", "pooling", "regularization", "reshaping",
          "core.dense", "core.einsum_dense", "core.embedding", "core.identity", "core.input_layer", "core.masking",
          "preprocessing.image_preprocessing", "preprocessing.normalization", "preprocessing.rescaling")  # fmt: skip
# More numbers than any layer gives for one picture.
_MOST_GIVEN = 50_000_000
_MODELS = ("Functional", "Sequential", "Model")
# Plain values that Keras writes as objects.
_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__", "__bytes__", "__tuple__")
_OPERATIONS = ("keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.math", "keras.src.ops.image")


@dataclass(frozen=True, eq=False)
class KerasFile:
    """What one weights file or archive of Keras holds.

    Attributes:
        path: where it lies.
        shapes: of each weight, by its place in the file.
        config: how the model is built, as JSON says it; None for weights alone.
        sha256: of the file.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] | None
    sha256: str


def read_keras(path: Path) -> KerasFile:
    """What a `.weights.h5`, `.h5`, `.hdf5` or `.keras` file holds; its weights come into a model by `fill`.

    Raises:
        WeightsError: missing, too large, an archive that inflates, a file that leads to other files, compressed, or that
            claims more numbers than it stores.
        MissingExtraError: h5py isn't installed.
    """
    h5py = optional("h5py", "keras", "reading Keras files")
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    if not path.name.endswith(ENDINGS):
        raise WeightsError(
            f"{path} is no weights file of Keras by its name; expected an ending of {', '.join(ENDINGS)}: "
            "model.save_weights('my.weights.h5') or model.save('my.keras')"
        )
    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f"{path} has {path.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}")
    config, source = _unpacked(path) if path.suffix == ".keras" else (None, path)
    try:
        with quiet(), h5py.File(source, "r") as file:
            shapes = dict(_weights(h5py, file, path))
    except WeightsError:
        raise
    except Exception as error:  # a damaged file makes the reader raise whatever it likes
        raise WeightsError(f"{path} is no intact weights file of Keras: {error}") from error
    return KerasFile(path, shapes, config, file_hash(path))


def _unpacked(path: Path) -> tuple[Mapping[str, Any], IO[bytes]]:
    """The configuration in an archive, and the weights in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            counts = Counter(one.filename for one in members)
            for name in (_CONFIG, _WEIGHTS):
                if counts[name] != 1:
                    raise WeightsError(f"{path} holds {counts[name]} members {name!r}; a .keras archive has one")
            for one in members:
                _check_member(one, path)
            if sum(one.file_size for one in members) > MAX_BYTES:
                raise WeightsError(f"{path} declares more than {MAX_BYTES:,} bytes")
            if archive.getinfo(_CONFIG).file_size > _MAX_CONFIG:
                raise WeightsError(f"{path} has a configuration of more than {_MAX_CONFIG:,} bytes")
            config = json.loads(archive.read(_CONFIG))
            weights = io.BytesIO(archive.read(_WEIGHTS))
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path} is no intact .keras archive: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} has a configuration that is no object but {type(config).__name__}")
    return config, weights


def _check_member(one: zipfile.ZipInfo, path: Path) -> None:
    if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or one.flag_bits & 1:
        raise WeightsError(
            f"{path}: {_shown(one.filename)} is packed in a way that no .keras archive is; it is not opened"
        )
    # Configurations repeat themselves, and are small.
    if one.file_size > _MAX_CONFIG and one.file_size > _MOST_INFLATED * one.compress_size:
        raise WeightsError(
            f"{path}: {_shown(one.filename)} would inflate {one.compress_size:,} bytes to {one.file_size:,}, "
            f"{one.file_size // max(1, one.compress_size):,} times as many; it is not opened"
        )


def _weights(h5py: Any, file: Any, path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shape of each weight, once everything in the file was looked at."""
    total, seen = 0, {h5py.h5o.get_info(file.id).addr}
    open_groups = [("", file)]
    while open_groups:
        where, group = open_groups.pop()
        for name in group:
            place = f"{where}/{name}" if where else str(name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise WeightsError(f"{path}: {_shown(place)} leads to another place or file, and is not followed")
            one = group[name]
            address = h5py.h5o.get_info(one.id).addr
            if address in seen:
                raise WeightsError(
                    f"{path}: {_shown(place)} is stored under two names, as no weights file of Keras has it"
                )
            seen.add(address)
            if len(seen) > _MAX_OBJECTS:
                raise WeightsError(f"{path} holds more than {_MAX_OBJECTS:,} objects")
            if isinstance(one, h5py.Group):
                open_groups.append((place, one))
                continue
            if not isinstance(one, h5py.Dataset):
                raise WeightsError(f"{path}: {_shown(place)} is neither a group nor numbers")
            total += _checked(one, place, path)
            if total > MAX_BYTES:
                raise WeightsError(f"{path} claims more than {MAX_BYTES:,} bytes")
            if not set(_ASIDE) & set(place.split("/")):
                yield place, tuple(one.shape)


def _checked(one: Any, place: str, path: Path) -> int:
    """The bytes of one array, which the file must really hold."""
    if one.external or one.is_virtual:
        raise WeightsError(f"{path}: {_shown(place)} lies in another file, which is not read")
    if one.shape is None or one.dtype.kind not in "fiubV":
        raise WeightsError(f"{path}: {_shown(place)} holds {one.dtype}; expected numbers")
    claimed, stored = one.size * one.dtype.itemsize, one.id.get_storage_size()
    if one.compression is not None or one.scaleoffset is not None:
        raise WeightsError(
            f"{path}: {_shown(place)} is compressed, which no weights file written by Keras is; it is not read"
        )
    if claimed > stored:
        raise WeightsError(
            f"{path}: {_shown(place)} claims {one.size:,} numbers ({' x '.join(map(str, one.shape))}) but stores {stored:,} bytes"
        )
    return int(claimed)


def fill(model: Any, file: KerasFile) -> None:
    """Puts a file's weights into a Keras model of ours; every shape must fit.

    Raises:
        WeightsError: made for another model, or NaN or infinity; the message has the variable's name.
    """
    try:
        with quiet():
            model.load_weights(str(file.path))
    except Exception as error:  # also what a file that was exchanged meanwhile makes the reader raise
        told = (
            misfit(model, file) or f"the weights are of the right shapes, but arranged otherwise ({_first_line(error)})"
        )
        raise WeightsError(f"{file.path.name} was not made for this {model.name}: {told}{whole(file)}") from error
    check_finite(model, file.path.name)


def whole(file: KerasFile) -> str:
    """What to do with a file that isn't one architecture's, as the end of a message."""
    if file.config is not None:
        return f". The archive alone holds a whole model: --model {file.path.name}"
    return ". Weights of a larger model need that model: save it as .keras, or build it and give it as it is"


def check_finite(model: Any, origin: str) -> None:
    """Refuses NaN and infinity in a model's weights, with the variable's name."""
    for variable in model.weights:
        value = variable.value
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"{origin} holds NaN or infinity in {_shown(variable.path)}")


def differing(model: Any, file: KerasFile) -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
    """The shapes that only the model has, and those that only the file has."""
    own, stored = Counter(tuple(one.shape) for one in model.weights), Counter(file.shapes.values())
    return own - stored, stored - own


def head_size(model: Any, file: KerasFile, classes: int) -> int | None:
    """The number of classes of the file, where it fits the model but for a head of another size."""
    own, stored = differing(model, file)
    if not own or any(not one or one[-1] != classes for one in own) or any(not one for one in stored):
        return None
    sizes = {one[-1] for one in stored}
    if len(sizes) != 1:
        return None
    size = sizes.pop()
    return size if Counter((*one[:-1], size) for one in own.elements()) == stored else None


def misfit(model: Any, file: KerasFile) -> str:
    """What of the model the file lacks, and the other way round; empty where all shapes are there."""
    own, stored = differing(model, file)
    parts = [
        f"{count.total()} {what}, such as {' x '.join(map(str, next(iter(count)))) or 'a single number'}"
        for count, what in ((own, "weights missing"), (stored, "too many"))
        if count
    ]
    return "; ".join(parts)


def rebuilt(file: KerasFile) -> Any:
    """The model of an archive as its configuration says, without weights; only out of layers that are Keras' own.

    Raises:
        WeightsError: the configuration names anything else, or claims a size that the weights don't have.
    """
    import keras

    if file.config is None:
        raise ModelError(
            f"{file.path.name} holds weights alone; say which model: keras:NAME with --weights {file.path.name}"
        )
    config = {key: value for key, value in file.config.items() if key != "compile_config"}
    try:
        if config.get("class_name") not in _MODELS:
            raise WeightsError(_refused(config, file))
        for one in _objects(config):
            if not _is_known(one):
                raise WeightsError(_refused(one, file))
        # Without numbers first: sizes that the weights don't have must not fill the memory.
        with quiet(), keras.device("meta"):
            draft = keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=True)
            told = misfit(draft, file) or _too_much(draft)
        if told:
            raise WeightsError(f"the configuration in {file.path.name} does not fit its weights: {told}")
        with quiet():
            return keras.saving.deserialize_keras_object(config, safe_mode=True)
    except WeightsError:
        raise
    except Exception as error:  # a configuration can say anything
        raise WeightsError(f"the configuration in {file.path.name} can't be followed: {_first_line(error)}") from error


def _too_much(model: Any) -> str:
    """The first layer that would give more numbers than fit into memory; empty where none does."""
    for layer in model._flatten_layers():
        for operation in getattr(layer, "operations", ()):
            for node in operation._inbound_nodes:
                for one in node.outputs:
                    if math.prod(side or 1 for side in one.shape) > _MOST_GIVEN:
                        return f"layer {_shown(operation.name)} would give {' x '.join(map(str, one.shape[1:]))} numbers a picture"
    return ""


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object of Keras that a configuration would make."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending.extend(one.values())
            if "class_name" in one or "registered_name" in one:
                yield one
        elif isinstance(one, list):
            pending.extend(one)


def _is_known(one: Mapping[str, Any]) -> bool:
    """Whether it is a layer, an operation or a plain part of Keras' own."""
    import keras

    name, module, registered = (one.get(key) for key in ("class_name", "module", "registered_name"))
    if not isinstance(name, str) or registered not in (None, name):
        return False
    if module is None:
        return name in _VALUES
    if module in ("keras", "keras.models", "keras.src.models.functional", "keras.src.models.sequential"):
        return name in (*_MODELS, "DTypePolicy")
    if module == "keras.layers":
        home = f"{getattr(getattr(keras.layers, name, None), '__module__', '')}."
        return home.startswith(tuple(f"keras.src.layers.{one}." for one in _HOMES))
    if module in ("keras.initializers", "keras.regularizers", "keras.constraints"):
        found = getattr(getattr(keras, module.partition(".")[2]), name, None)
        return isinstance(found, type) and found.__module__.startswith("keras.src.")
    if module in _OPERATIONS:
        return name.isidentifier()
    if module == "builtins":
        return name == "function" and one.get("config") in dir(keras.activations)
    return module == "keras.src.applications.convnext" and name == "LayerScale"


def _refused(one: Mapping[str, Any], file: KerasFile) -> str:
    import keras

    name, module, registered = (one.get(key) for key in ("class_name", "module", "registered_name"))
    parts = [module, one.get("config") if name == "function" else registered or name]
    what = ".".join(str(part) for part in parts if part)
    near = did_you_mean(what.rpartition(".")[2][:80], dir(keras.layers))
    return (
        f"{file.path.name} is built with {_shown(what)}, which is no layer of Keras' own that is made from a file, and nothing "
        f"else is: it could run code.{near} Give keras:NAME with --weights {file.path.name} where the architecture is one of "
        "Keras' applications, or build the model yourself and give it as it is: sightline.load_model(model)"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _shown(lines[0], 300) if lines else type(error).__name__


def _shown(name: str, length: int = 80) -> str:
    """A name from a file, which may hold anything, for a message."""
    return repr(name[:length])[1:-1]
