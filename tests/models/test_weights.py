"""Weights files: good ones give their tensors, all others are refused by name, and nothing in them ever runs."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sightline.errors import ModelError, WeightsError
from sightline.models.weights import file_hash, load_weights, networks, read_stored


def read_weights(path: Path, **options: Any) -> dict[str, Tensor]:
    """The tensors of a file."""
    return dict(read_stored(path, **options).tensors)


class Small(nn.Sequential):
    """A model with a bit of everything that a state dict holds."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def state(model: Small) -> dict[str, Tensor]:
    return dict(model.state_dict())


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def refused(path: Path, *words: str, **options: Any) -> str:
    """The message of the WeightsError that this file must give; any other error or warning is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WeightsError) as caught:
            read_weights(path, **options)
    message = str(caught.value)
    assert path.name in message
    for word in words:
        assert word in message.replace("'", "")
    assert len(message) < 1000
    return message


def same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(read) == list(expected) and all(torch.equal(read[name], expected[name]) for name in expected)


# ---------------------------------------------------------------------------------------------------------- good files

WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "a.safetensors": save_file,
    "zip.pth": torch.save,
    "zip.pt": torch.save,
    "zip.ckpt": torch.save,
    "no-ending": torch.save,
    "legacy.pth": legacy,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_back_what_was_saved(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    WRITERS[name](state, tmp_path / name)
    read = read_weights(tmp_path / name)
    assert same({key: read[key] for key in state}, state)
    assert len(read) == len(state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("write", [torch.save, legacy])
def test_a_training_checkpoint_gives_the_weights_inside(
    write: Callable[[Any, Path], None], wrapper: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    write({"epoch": 3, wrapper: state, "optimizer": {"lr": 0.1}, "loss": torch.tensor(1.0)}, tmp_path / "last.ckpt")
    assert same(read_weights(tmp_path / "last.ckpt"), state)


def test_weights_of_a_model_in_dataparallel_fit_the_model_itself(model: Small, tmp_path: Path) -> None:
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "parallel.pth")
    fresh = Small()
    load_weights(fresh, dict(networks(read_weights(tmp_path / "parallel.pth")))["module."], "parallel.pth")
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))


def test_old_files_without_counters_of_batch_norm_still_load(model: Small, state: dict[str, Tensor]) -> None:
    del state["1.num_batches_tracked"]
    fresh = Small()
    load_weights(fresh, state, "old.pth")
    assert torch.equal(fresh[3].weight, model[3].weight)


def test_views_and_shared_storages_are_read(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    stored = {"row": base.view(3, 4)[1], "turned": base.view(3, 4).t(), "all": base, "empty": torch.zeros(0, 3)}
    torch.save(stored, tmp_path / "views.pth")
    assert same(read_weights(tmp_path / "views.pth"), stored)


def test_parameters_are_as_good_as_tensors(model: Small, tmp_path: Path) -> None:
    torch.save(dict(model.named_parameters()), tmp_path / "parameters.pth")
    assert set(read_weights(tmp_path / "parameters.pth")) == {name for name, _ in model.named_parameters()}


def test_half_precision_weights_load_into_a_float_model(model: Small, state: dict[str, Tensor]) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    load_weights(model, half, "half.pth")
    assert model[0].weight.dtype == torch.float32


def test_the_expected_hash_may_be_whole_or_a_beginning(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(state, path)
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_hash(path) == whole
    assert same(read_weights(path, sha256=whole), state)
    assert same(read_weights(path, sha256=whole[:8]), state)


# --------------------------------------------------------------------------------------------------- programs, not data


class Hostile:
    """A pickle of this runs a function of its author's choice when it is opened carelessly."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


def plain_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, legacy, plain_pickle], ids=["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.ckpt", "w.bin", "w.pkl", "w.safetensors", "w.pt2", "w"])
def test_a_hostile_pickle_runs_nothing(write: Callable[[Any, Path], None], name: str, tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    write({"conv.weight": torch.zeros(2), "x": Hostile(trace)}, tmp_path / name)
    refused(tmp_path / name)
    assert not trace.exists()


def test_the_hostile_pickle_of_these_tests_is_really_one(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    with pickle.loads(pickle.dumps(Hostile(trace))):  # noqa: S301
        assert trace.exists()


def test_arguments_of_a_training_script_that_hold_code_are_refused_and_run_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(canary), "w")

    torch.save({"model": {"w": torch.ones(2)}, "args": argparse.Namespace(x=Hostile())}, tmp_path / "args.pt")
    with pytest.raises(WeightsError, match="holds code"):
        read_weights(tmp_path / "args.pt")
    assert not canary.exists()


@pytest.mark.parametrize("write", [torch.save, legacy, plain_pickle], ids=["zip", "legacy", "pickle"])
def test_a_whole_pickled_module_is_refused_by_name(
    write: Callable[[Any, Path], None], model: Small, tmp_path: Path
) -> None:
    write(model, tmp_path / "whole.pth")
    assert "save model.state_dict()" in refused(tmp_path / "whole.pth", "pickled module")


def test_a_pickled_module_inside_a_checkpoint_is_refused_by_name(model: Small, tmp_path: Path) -> None:
    torch.save({"model": model, "epoch": 1}, tmp_path / "whole.pth")
    refused(tmp_path / "whole.pth", "pickled module", "state_dict()")


def torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.trace(Small().eval(), torch.zeros(1, 3, 4, 4)).save(str(path))


def exported(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


@pytest.mark.parametrize("name", ["script.pt", "script.pth", "script.zip"])
def test_torchscript_is_refused_by_name(name: str, tmp_path: Path) -> None:
    torchscript(tmp_path / name)
    refused(tmp_path / name, "TorchScript", "state_dict()")


def test_an_exported_program_is_refused_by_name_under_any_ending(tmp_path: Path) -> None:
    exported(tmp_path / "program.pt2")
    refused(tmp_path / "program.pt2", "exported program", "state_dict()")
    (tmp_path / "program.pth").write_bytes((tmp_path / "program.pt2").read_bytes())
    refused(tmp_path / "program.pth", "exported program", "state_dict()")


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [torch.zeros(3)], {}, {"state_dict": {}}, {"a": 1.0}, {"a": torch.zeros(1), "b": "text"}, 7, None],
    ids=["tensor", "list", "nothing", "nothing-inside", "number", "text", "int", "none"],
)
@pytest.mark.parametrize("write", [torch.save, legacy])
def test_what_is_no_state_dict_is_refused(write: Callable[[Any, Path], None], content: Any, tmp_path: Path) -> None:
    write(content, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "no state dict", "save model.state_dict()")


# -------------------------------------------------------------------------------------------------- bombs and odd tensors


def repacked(source: Path, target: Path, method: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_archive_is_refused_before_it_is_unpacked(method: int, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4_000_000)}, tmp_path / "plain.pth")
    repacked(tmp_path / "plain.pth", tmp_path / "bomb.pth", method)
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    refused(tmp_path / "bomb.pth", "compressed")


def test_one_compressed_member_among_stored_ones_is_enough_to_refuse(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth", "a") as archive:
        archive.writestr("plain/extra", bytes(1_000_000), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "plain.pth", "compressed")


def test_an_archive_that_declares_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    torch.save({str(name): torch.zeros(2) for name in range(8)}, tmp_path / "large.pth")
    content = bytearray((tmp_path / "large.pth").read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:  # the directory at the end says how large each member would be
        content[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFF0)
        at = content.find(b"PK\x01\x02", at + 4)
    (tmp_path / "large.pth").write_bytes(content)
    refused(tmp_path / "large.pth", "declares more than")


def test_a_file_above_the_limit_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    with path.open("wb") as file:
        file.truncate(20_000_000_001)  # takes no room on the disk
    refused(path, "20,000,000,001 bytes", "limit", sha256="00")


@pytest.mark.parametrize("write", [torch.save, legacy], ids=["zip", "legacy"])
def test_a_small_file_with_a_huge_view_is_refused(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    write({"a": torch.zeros(1).expand(10**10)}, tmp_path / "view.pth")
    assert (tmp_path / "view.pth").stat().st_size < 2_000
    refused(tmp_path / "view.pth", ": a claims", "10,000,000,000")


@pytest.mark.parametrize("write", [torch.save, legacy], ids=["zip", "legacy"])
def test_a_file_that_promises_more_numbers_than_it_holds_is_refused_in_little_memory(
    write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "promise.pth"
    write({"a": torch.zeros(123_457)}, path)
    said, more = (b"J" + struct.pack("<i", number) for number in (123_457, 2**31 - 1))
    content = path.read_bytes()
    assert said in content
    path.write_bytes(content.replace(said, more))  # 8.6 GB of float32
    code = (
        "import sys, pathlib, resource\n"
        "from sightline.models.weights import read_stored\n"
        "from sightline.errors import WeightsError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_stored(pathlib.Path(sys.argv[1]))\n"
        "except WeightsError: print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().isdigit(), done.stderr[-500:]
    assert int(done.stdout) < 200


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.eye(3, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.float8_e4m3fn),
    ],
    ids=["sparse", "complex", "float8"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tensor: Tensor, tmp_path: Path) -> None:
    torch.save({"first": torch.zeros(1), "odd": tensor}, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth", ": odd is", "plain numbers")


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"odd": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, tmp_path / "odd.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls quantised tensors deprecated
        with pytest.raises(WeightsError, match="odd"):
            read_weights(tmp_path / "odd.pth")


@pytest.mark.parametrize("write", [torch.save, legacy], ids=["zip", "legacy"])
def test_tensors_without_numbers_are_refused(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    state = {name: tensor.to("meta") for name, tensor in Small().state_dict().items()}
    write(state, tmp_path / "meta.pth")
    refused(tmp_path / "meta.pth", "0.weight")


# ------------------------------------------------------------------------------------------------------- broken files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.pth", "there is no weights file", str(tmp_path))


def test_a_folder_and_a_pipe_are_no_weights_files(tmp_path: Path) -> None:
    refused(tmp_path, "no weights file")
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "no weights file")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\0.", b"{}", bytes(1000), b"<html>404 Not Found</html>\n",
     b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"],
    ids=["empty", "nul", "zip-start", "pickle-start", "empty-pickle", "json", "zeros", "web-page", "lfs-pointer"],
)  # fmt: skip
def test_what_is_no_weights_file_is_refused(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [b"<html>404 Not Found</html>\n", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"],
    ids=["web-page", "lfs-pointer"],
)
def test_a_text_file_is_not_called_code(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert "pickled module" not in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_refused(name: str, share: float, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_of_the_other_format_is_refused_or_read_but_never_a_crash(
    name: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    (torch.save if name == "w.safetensors" else save_file)(state, tmp_path / name)
    refused(tmp_path / name)


@pytest.mark.parametrize("name", ["a.safetensors", "zip.pth", "legacy.pth"])
def test_no_changed_byte_gives_anything_but_weights_or_a_refusal(
    name: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / name
    WRITERS[name](state, path)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(len(content), (150,), generator=generator).tolist():
        changed = bytearray(content)
        changed[at] ^= 1 << int(torch.randint(8, (1,), generator=generator))
        path.write_bytes(changed)
        try:
            read = read_weights(path)
            load_weights(Small(), read, name)
        except WeightsError as error:
            assert len(str(error)) > 20  # noqa: PT017


def test_a_file_that_is_not_the_expected_one_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"x": Hostile(tmp_path / "was-here")}, path)
    refused(path, file_hash(path)[:8], "deadbeef", "not the expected file", sha256="deadbeef" * 8)
    assert not (tmp_path / "was-here").exists()


# --------------------------------------------------------------------------------------------- made for another model


def misfit(model: nn.Module, weights: dict[str, Tensor]) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, weights, "mine.pth")
    assert same(dict(model.state_dict()), before), "a refused file has changed the model"
    assert str(caught.value).startswith("mine.pth")
    return str(caught.value).replace("'", "")


def test_wrong_shapes_are_shown(model: Small, state: dict[str, Tensor]) -> None:
    state["3.weight"] = torch.zeros(7, 16)
    message = misfit(model, state)
    assert "3.weight (7, 16) instead of (5, 16)" in message
    assert "1 of another shape" in message
    assert "Small" in message


def test_missing_names_are_shown(model: Small, state: dict[str, Tensor]) -> None:
    del state["3.weight"], state["3.bias"]
    message = misfit(model, state)
    assert "2 missing, such as 3." in message


def test_unknown_names_are_shown_with_the_nearest(model: Small, state: dict[str, Tensor]) -> None:
    state["3.wait"] = state.pop("3.weight")
    message = misfit(model, state)
    assert "1 unknown, such as 3.wait" in message
    assert "3.weight" in message


def test_weights_of_quite_another_model_are_refused(model: Small) -> None:
    message = misfit(model, {"layer1.weight": torch.zeros(3), "layer2.weight": torch.zeros(3)})
    assert "2 unknown" in message
    assert "name right?" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    value: float, model: Small, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["1.running_var"] = torch.full((4,), value)
    torch.save(state, tmp_path / "nan.pth")
    assert "NaN or infinity in 1.running_var" in misfit(model, read_weights(tmp_path / "nan.pth"))


def test_numbers_too_large_for_the_model_are_refused(model: Small, state: dict[str, Tensor]) -> None:
    state["3.weight"] = torch.full((5, 16), 1e300, dtype=torch.float64)
    assert "3.weight" in misfit(model, state)


@pytest.mark.parametrize("name", ["\x1b[31mred\x07", "x" * 1_000_000, "two\nlines"], ids=["escape", "long", "lines"])
def test_hostile_names_of_tensors_are_shown_short_and_harmless(
    name: str, model: Small, state: dict[str, Tensor], tmp_path: Path
) -> None:
    message = misfit(model, {**state, name: torch.zeros(1)})
    assert len(message) < 1_000
    assert message.isprintable()
    torch.save({name: torch.zeros(2, dtype=torch.complex64)}, tmp_path / "odd.pth")
    assert refused(tmp_path / "odd.pth").isprintable()


def test_a_refusal_is_a_model_error_and_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        read_weights(tmp_path / "nowhere")
    assert issubclass(WeightsError, ValueError)


def test_reading_leaves_no_file_open(state: dict[str, Tensor], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (tmp_path / "good.pth").write_bytes(buffer.getvalue())
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        read_weights(tmp_path / "good.pth")
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after - before < 5 < limit


def test_an_archive_with_something_behind_its_end_is_not_opened(tmp_path: Path) -> None:
    """Python and torch look for an archive's table from different ends: what one checks, the other would not read."""
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(3)}, path)
    assert list(read_weights(path)) == ["w"]
    for tail in (b"PK\x05\x06", b"\0", b"PK\x05\x06" + bytes(18)):
        other = tmp_path / "other.pt"
        other.write_bytes(path.read_bytes() + tail)
        with pytest.raises(WeightsError, match="is no intact weights file"):
            read_weights(other)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_small_file_that_asks_for_much_memory_is_refused_before_torch_reads_it(tmp_path: Path, legacy: bool) -> None:
    bomb = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (3_000_000_000).to_bytes(5, "little") + b"\x85R."
    path = tmp_path / "bomb.pt"
    if legacy:
        path.write_bytes(bomb)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", bomb)
            archive.writestr("a/version", "3\n")
            archive.writestr("a/byteorder", "little")
    with pytest.raises(WeightsError, match="bytearray"):
        read_weights(path)


def test_a_flood_of_sizes_that_each_stand_for_a_long_list_is_refused_before_torch_reads_it(tmp_path: Path) -> None:
    long = pickle.dumps([1] * 250_000, protocol=2)[2:-1]
    flood = b"\x80\x02}(X\x01\x00\x00\x00a" + long + b"q\xff0X\x01\x00\x00\x00b]("
    flood += b"".join(b"ctorch\nSize\nh\xff\x85R" for _ in range(300)) + b"eu."
    with zipfile.ZipFile(tmp_path / "flood.pt", "w") as archive:
        archive.writestr("flood/data.pkl", flood)
    with pytest.raises(WeightsError, match="steps"):
        read_stored(tmp_path / "flood.pt")
