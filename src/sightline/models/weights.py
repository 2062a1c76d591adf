"""`read_stored`: the only place that opens a weights file. Everything in it is hostile until checked."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import pickletools
import re
import threading
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sightline._quiet import quiet
from sightline.errors import WeightsError, did_you_mean
from sightline.models.given import Finding, Given, Stored

_LOCK = threading.Lock()
MAX_BYTES = 20_000_000_000
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_MAX_PICKLE = 50_000_000
# A state dict of 100,000 tensors takes some 3 million steps.
_MOST_OPERATIONS, _MOST_WITH_SIZES = 5_000_000, 200_000
_MOST_VALUES = 200_000
_MOST_PARTS = 16
# A file of before torch 1.6: magic number, protocol, system, contents, keys; the numbers follow.
_LEGACY_PICKLES = 5
_NEEDED = re.compile(
    r"collections (OrderedDict|Counter)|argparse Namespace|torch\._utils _rebuild_(\w*tensor\w*|parameter|parameter_with_state)"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|torch (\w+Storage|Size|Tensor|device)"
    r"|torch\.storage (UntypedStorage|TypedStorage)|torch (b?float\d+\w*|u?int\d+|bool)|torch\.serialization _get_layout"
)


def read_stored(path: Path, *, sha256: str | None = None) -> Stored:
    """What a `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt` file holds, without running anything in it.

    Args:
        path: the file.
        sha256: its expected hash, or the beginning of it.

    Raises:
        WeightsError: missing, not the expected file, too large, compressed, a program (TorchScript, `.pt2`, a pickled
            module) instead of weights, or tensors that are sparse, of unknown type, or larger than what they are stored in.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f"{path} has {path.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}")
    with ThreadPoolExecutor(1) as beside:  # reading and hashing take as long as each other
        digest = beside.submit(file_hash, path)
        if sha256 is not None and not digest.result().startswith(sha256):
            raise WeightsError(
                f"{path} is not the expected file: its sha256 begins {digest.result()[:8]}, expected {sha256[:8]}. Get it again"
            )
        tensors, about = _opened(path)
        return Stored(path, _checked(tensors, path), about, digest.result())


def read_training(path: Path) -> dict[str, Any]:
    """A checkpoint of a training, tensors and plain values alone, without running anything in it.

    Raises:
        WeightsError: it is broken, or holds something else.
    """
    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}")
    content = _loaded(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is no checkpoint of a training")
    return content


def _opened(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, _told(file.metadata() or {})  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path} is no intact safetensors file: {error}") from error
    if path.suffix == ".pt2":
        raise WeightsError(f"{path} is an exported program, not weights; save model.state_dict() instead")
    return _state_dict(_loaded(path), path)


def _loaded(path: Path) -> Any:
    """What a file of torch holds, where it is tensors and plain values."""
    _check_archive(path)
    try:
        # What training scripts keep their arguments in; a namespace is but a name for a dictionary.
        with quiet(), _LOCK, ExitStack() as trusted:
            if Namespace not in torch.serialization.get_safe_globals():  # else it would be taken from the user
                trusted.enter_context(torch.serialization.safe_globals([Namespace]))
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds code (a whole pickled module?), not only weights, and is not opened; "
            "save model.state_dict() instead, best as safetensors"
        ) from error
    except Exception as error:  # a hostile file makes the reader raise whatever it likes
        raise WeightsError(f"{path} is no intact weights file: {error}") from error


def _told(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a safetensors file; what is JSON in it is read as such."""
    found: dict[str, Any] = {}
    for name, text in metadata.items():
        try:
            found[name] = json.loads(text) if text[:1] in "[{" else text
        except (ValueError, RecursionError):
            found[name] = text
    return found


def file_hash(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def filled(
    make: Callable[[int | None], nn.Module], classes: int, given: Given
) -> tuple[nn.Module, int, tuple[Finding, ...]]:
    """A network built by our own code, with the weights of a file in it.

    Args:
        make: builds the network with a head of so many classes, None for its own number.
        classes: that own number.
        given: with weights; a head of another size is found from their shapes.

    Returns:
        The network, its number of classes, and what was found out.

    Raises:
        WeightsError: names missing, unknown or of another shape; NaN or infinity; the message shows the first few.
    """
    stored = given.weights
    if stored is None:
        raise WeightsError("no weights were given")
    origin = stored.path.name
    with without_init():
        module = make(given.num_classes)
    own = given.num_classes or classes
    tensors, prefix = _network(stored.tensors, module, own, origin)
    size = _head(module, tensors, own)
    found = [
        Finding(
            "weights",
            f"{origin}, sha256 {stored.sha256[:16]}...",
            f"its part {prefix[:-1]!r}" if prefix else "the file",
        )
    ]
    found.append(Finding("classes", f"{size or own:,}", f"the head in {origin}"))
    moved = [name for name in stored.tensors if name.removeprefix(prefix) not in tensors]
    if not prefix and moved:
        found.append(
            Finding(
                "head",
                f"{_shown(moved[0].rpartition('.')[0])} is taken as its one dense layer",
                "what leaves no tensors, such as a dropout before it, can't be told from the file",
                guessed=True,
            )
        )
    elif moved:
        found.append(
            Finding(
                "left out", f"{len(moved):,} of its tensors, such as {_shown(moved[0])}", "they are not the network's"
            )
        )
    if size is not None:
        if given.num_classes is not None:
            raise WeightsError(
                f"the head in {stored.path.name} has {size:,} classes, and --num-classes (num_classes=...) says "
                f"{given.num_classes:,}; leave that out, and the file's own number is taken"
            )
        with without_init():
            module = make(size)
    load_weights(module, tensors, origin)
    return module, size or own, tuple(found)


def networks(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What may be the network in a training program's state: all of it, and what stands behind each first or second name.

    Yields:
        (prefix, tensors without it), such as ("model.", ...) for what Lightning saves.
    """
    yield "", dict(tensors)
    for depth in (1, 2, 3):
        groups: dict[str, dict[str, Tensor]] = {}
        for name, one in tensors.items():
            parts = name.split(".", depth)
            if len(parts) > depth:
                groups.setdefault("".join(f"{part}." for part in parts[:-1]), {})[parts[-1]] = one
        # A network has more tensors than one of its blocks: only the largest parts can be one.
        for prefix in sorted(groups, key=lambda key: -len(groups[key]))[:_MOST_PARTS]:
            yield prefix, groups[prefix]


def _network(
    tensors: Mapping[str, Tensor], module: nn.Module, classes: int, origin: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors of this network in a state, and the prefix they had; all of them when no part fits."""
    own = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    fitting = [(prefix, found) for prefix, found in networks(tensors) if own <= found.keys()]
    fitting = [
        (prefix, found)
        for prefix, found in fitting
        if not any(prefix != other and prefix.startswith(other) and other for other, _ in fitting)
    ]
    if len(fitting) > 1:
        raise WeightsError(
            f"{origin} holds {len(fitting)} such networks, {' and '.join(_shown(prefix[:-1]) for prefix, _ in fitting)}; "
            "save the state dict of the one that is meant"
        )
    if not fitting:
        return _renamed(dict(tensors), own, module, classes), ""
    prefix, found = fitting[0]
    known = module.state_dict()
    # What else stands behind no prefix belongs to the network, and is refused as unknown; beside a prefix it doesn't.
    return ({name: one for name, one in found.items() if name in known} if prefix else found), prefix


def _renamed(tensors: dict[str, Tensor], own: set[str], module: nn.Module, classes: int) -> dict[str, Tensor]:
    """A head of one dense layer that was put in under another name, such as fc.1 behind a dropout, under the network's own name."""
    missing, unknown = sorted(own - tensors.keys()), sorted(tensors.keys() - own)
    unknown = [name for name in unknown if not name.endswith("num_batches_tracked")]
    if len(missing) != 2 or len(unknown) != 2 or tensors[unknown[1]].dim() != 2:
        return tensors
    ends = [[name.rpartition(".")[2] for name in names] for names in (missing, unknown)]
    if ends != [["bias", "weight"], ["bias", "weight"]] or len({name.rpartition(".")[0] for name in unknown}) != 1:
        return tensors
    if module.state_dict()[missing[1]].shape[0] != classes:
        return tensors  # something inside the network, not its head
    names = dict(zip(unknown, missing, strict=True))
    return {names.get(name, name): one for name, one in tensors.items()}


def _head(module: nn.Module, stored: Mapping[str, Tensor], classes: int) -> int | None:
    """The number of classes of the file, when its tensors fit the network but for a head of another size."""
    sizes = set()
    for name, one in module.state_dict().items():
        other = stored.get(name)
        if other is None or other.shape == one.shape:
            continue
        if one.dim() == 0 or one.shape[0] != classes or other.dim() == 0 or other.shape[1:] != one.shape[1:]:
            return None
        sizes.add(other.shape[0])
    return sizes.pop() if len(sizes) == 1 else None


@contextmanager
def without_init() -> Iterator[None]:
    """Parameters are left as they come while a network is built whose weights are read from a file next."""

    class Skipping(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(func, "__name__", "")
            target = args[0] if args else (kwargs or {}).get("tensor")
            changes = name.endswith("_") and not name.endswith("__") and name not in _NOT_INIT
            return target if changes and isinstance(target, nn.Parameter) else func(*args, **(kwargs or {}))

    with Skipping():
        yield


_NOT_INIT = ("requires_grad_", "share_memory_", "resize_", "set_")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Puts a state dict into a model built from our own code; every name and shape must fit. Nothing is copied.

    Raises:
        WeightsError: names missing, unknown or of another shape; the message shows the first few.
    """
    own: Any = model.state_dict()
    # Counters of batch norm say nothing about the result, and old files lack them.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in own]
    wrong = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    if missing or unknown or wrong:
        parts = []
        if wrong:
            shapes = f"{tuple(weights[wrong[0]].shape)} instead of {tuple(own[wrong[0]].shape)}"
            parts.append(f"{len(wrong)} of another shape, such as {wrong[0]} {shapes}")
        if missing:
            parts.append(f"{len(missing)} missing, such as {missing[0]}")
        if unknown:
            parts.append(
                f"{len(unknown)} unknown, such as {_shown(unknown[0])}{did_you_mean(unknown[0][:80], own).replace(' Did you mean', ', near').rstrip('?')}"
            )
        raise WeightsError(
            f"{origin} was not made for this {type(model).__name__}: {'; '.join(parts)}. Is the model's name right?"
        )
    fitting = OrderedDict((name, tensor.to(own[name].dtype)) for name, tensor in weights.items())
    fitting._metadata = own._metadata  # type: ignore[attr-defined]
    for name, tensor in fitting.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"{origin} holds NaN or infinity in {name} (as {tensor.dtype})")
    model.load_state_dict(fitting, strict=False, assign=True)


def _shown(name: str) -> str:
    """A name from a file, which may hold anything, for a message."""
    return repr(name[:80])[1:-1]


def _check_archive(path: Path) -> None:
    """Refuses what is not a plain archive or stream of pickles as `torch.save` writes them, before torch opens it."""
    with path.open("rb") as file:
        # As torch decides; what comes after the end of an archive could make Python and torch read different ones.
        is_archive = file.read(4) == b"PK\x03\x04"
        if not is_archive:
            file.seek(0)
            if file.read(1) != b"\x80":
                raise WeightsError(f"{path} is no weights file (a text, a web page, something else under that name?)")
            file.seek(0)
            try:
                for _ in range(_LEGACY_PICKLES):
                    _check_pickle(file, path)
            except WeightsError:
                raise
            except (ValueError, EOFError, KeyError, IndexError) as error:
                raise WeightsError(f"{path} is no intact weights file: {error}") from error
            return
        file.seek(max(0, path.stat().st_size - 22))
        if not file.read(4) == b"PK\x05\x06":
            raise WeightsError(f"{path} is no intact weights file: the archive doesn't end where the file ends")
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except Exception as error:  # a damaged table of contents makes the reader raise whatever it likes
        raise WeightsError(f"{path} is no intact weights file: {error}") from error
    names = [member.filename for member in members]
    if any(
        "/code/" in name or name.endswith(("constants.pkl", "serialized_exported_program.json")) or "/models/" in name
        for name in names
    ):
        raise WeightsError(
            f"{path} is a program (TorchScript or an exported program), not weights; save model.state_dict() instead"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(f"{path} is compressed, which no weights file written by torch.save is; it is not opened")
    if sum(member.file_size for member in members) > MAX_BYTES:
        raise WeightsError(f"{path} declares more than {MAX_BYTES:,} bytes")
    with archive:
        for member in members:
            if member.filename.endswith(".pkl"):
                if member.file_size > _MAX_PICKLE:
                    raise WeightsError(
                        f"{path} holds {member.file_size:,} bytes of names; the limit is {_MAX_PICKLE:,}"
                    )
                try:
                    _check_pickle(io.BytesIO(archive.read(member)), path)
                except WeightsError:
                    raise
                except Exception as error:
                    raise WeightsError(f"{path} is no intact weights file: {error}") from error


def _check_pickle(stream: IO[bytes], path: Path) -> None:
    """Reads one pickle without running it: it may name only what a dictionary of tensors is made of."""
    sizes = 0
    for count, (one, argument, _) in enumerate(_operations(stream)):
        name = one.name
        sizes += name == "GLOBAL" and str(argument) == "torch Size"
        if count > _MOST_OPERATIONS or (sizes and name == "REDUCE" and count > _MOST_WITH_SIZES):
            raise WeightsError(f"{path} has more than {count:,} steps, which no state dict needs; it is not opened")
        # torch.save writes GLOBAL alone; the others could name anything.
        if name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4") or (
            name == "GLOBAL" and not _NEEDED.fullmatch(str(argument))
        ):
            raise WeightsError(
                f"{path} holds code (a whole pickled module?), not only weights, and is not opened: it names "
                f"'{_shown(str(argument))}'; save model.state_dict() instead, best as safetensors"
            )


def _operations(stream: IO[bytes]) -> Iterator[Any]:
    with quiet():
        yield from pickletools.genops(stream)


def _state_dict(content: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names and tensors, and what stands beside them in a training checkpoint."""
    about: dict[str, Any] = {}
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            beside = {str(name): value for name, value in content.items() if name != wrapper}
            beside |= {name: vars(value) for name, value in beside.items() if isinstance(value, Namespace)}
            about |= {name: value for name, value in beside.items() if _is_plain(value)}
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise WeightsError(
            f"{path} holds no state dict (names and tensors) but {type(content).__name__}; save model.state_dict()"
        )
    return {str(name): value for name, value in content.items()}, about


def _is_plain(value: Any) -> bool:
    """Whether it is text, numbers, or lists and dictionaries of them, and not endless however often its parts are shared."""
    left, count = [(value, 4)], 0
    while left:
        one, depth = left.pop()
        count += 1
        if isinstance(one, dict | list | tuple):
            count += len(one)
            if not depth or count > _MOST_VALUES:
                return False
            left += [(part, depth - 1) for part in ([*one.keys(), *one.values()] if isinstance(one, dict) else one)]
        elif not (one is None or isinstance(one, str | int | float | bool)):
            return False
    return True


def _checked(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    known = {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    }
    # Without what a file may have hung on them, which would stand before a tensor's own methods.
    plain = {name: Tensor.detach(one) for name, one in tensors.items()}
    for name, tensor in plain.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in known or tensor.is_meta:
            raise WeightsError(
                f"{path}: '{_shown(name)}' is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}; expected plain numbers"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: '{_shown(name)}' claims {tensor.numel():,} numbers but stores fewer")
    return plain
