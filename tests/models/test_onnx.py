"""ONNX files: real ones, exported from small torch models or built by hand, and hostile ones."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from conftest import CLASSES, Plain, seeded
from oracles_perturbation import occlusion
from sightline.cli.doctor import DEMO
from sightline.errors import LayerError, MissingExtraError, ModelError
from sightline.models import onnx as ours
from sightline.models.preprocess import standard

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
FLOAT, HALF, DOUBLE, BYTES = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "UINT8"))
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Plain`, exported by torch for any number of pictures of 32 x 32."""
    path = tmp_path_factory.mktemp("onnx") / "plain.onnx"
    export(seeded(Plain), path, (32, 32))
    return path


def export(model: nn.Module, path: Path, size: tuple[int, int], external: bool = False) -> None:
    x = torch.randn(2, 3, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (x,),
            str(path),
            dynamo=True,
            external_data=external,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )


def built(
    path: Path,
    shape: Any = ("N", 3, 8, 8),
    kind: int = FLOAT,
    *,
    outputs: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
    before: tuple[Any, ...] = (),
    x: str = "x",
    external: str = "",
) -> Path:
    """A network by hand: the three channels' means are three classes' scores."""
    last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    nodes = [*before]
    if kind != FLOAT:
        nodes.append(helper.make_node("Cast", [x], ["as_float"], to=FLOAT))
    weights = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "weights")
    if external:
        weights = onnx.TensorProto(name="weights", data_type=FLOAT, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", external), ("offset", "0"), ("length", "12")):
            weights.external_data.add(key=key, value=value)
    nodes.append(helper.make_node("ReduceMean", ["as_float" if kind != FLOAT else x, "axes"], ["means"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["means", "weights"], ["scores"]))
    given = outputs or {"scores": (shape[0], 3)}
    nodes += [helper.make_node("Identity", ["means"], [name]) for name in given if name != "scores"]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info(name, FLOAT, list(size)) for name, size in given.items()],
        [weights, numpy_helper.from_array(np.array([1, 2] if last else [2, 3], np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata:
        helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def said(path: Path, **given: Any) -> str:
    with pytest.raises(ModelError) as caught:
        sightline.load_model(path, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- the same model


def test_logits_are_those_of_torch(exported: Path) -> None:
    adapter = sightline.load_model(str(exported))
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = seeded(Plain)(x)
    assert torch.allclose(adapter.module(x), wanted, rtol=0, atol=1e-5)
    assert (adapter.name, adapter.black_box) == ("plain.onnx", True)


def test_its_map_is_that_of_the_torch_model(exported: Path) -> None:
    found = sightline.explain(DEMO, str(exported), options={"patch": 8, "stride": 4}, target=2)
    x, _ = standard((32, 32), 37, **IMAGENET)(Image.open(DEMO).convert("RGB"))
    double = seeded(Plain).double()

    def score(pixels: Any) -> float:
        with torch.no_grad():
            return float(double(torch.from_numpy(pixels)[None])[0, 2])

    wanted = occlusion(score, x.double().numpy(), 8, 4, np.zeros(3))[::4, ::4]
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found.raw, wanted, rtol=0, atol=1e-4)


def test_where_it_comes_from_and_what_is_guessed_is_said(exported: Path) -> None:
    adapter = sightline.load_model(exported)
    facts = {one.what: one for one in adapter.found}
    assert facts["classes"].value == str(CLASSES)
    assert facts["preprocessing"].guessed
    assert any("guessed, because nothing says it: preprocessing" in note for note in adapter.notes)
    assert (adapter.provenance["source"], adapter.provenance["weights"]) == ("an ONNX file", "plain.onnx")
    told = sightline.load_model(exported, preprocess={"mean": 0.5, "std": 0.5}, labels=list("abcde"))
    assert not {one.what for one in told.found if one.guessed}
    assert not told.notes
    assert (told.labels, told.provenance["preprocessing"]["mean"]) == (tuple("abcde"), (0.5, 0.5, 0.5))


# --------------------------------------------------------------------------------------------------------- every input

PICTURES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SCORES = PICTURES.mean(dim=(2, 3)) * torch.tensor([1.0, 2, 3])


@pytest.mark.parametrize("shape", [("N", 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8), (5, 3, 8, 8), (None, 3, 8, 8)])
@pytest.mark.parametrize("kind", [FLOAT, HALF, DOUBLE])
def test_pictures_go_in_whatever_the_batch_and_the_kind_of_number(tmp_path: Path, shape: Any, kind: int) -> None:
    adapter = sightline.load_model(built(tmp_path / "m.onnx", shape, kind))
    assert torch.allclose(adapter.module(PICTURES), SCORES, atol=2e-3 if kind == HALF else 1e-6)


def test_channels_may_come_last(tmp_path: Path) -> None:
    adapter = sightline.load_model(built(tmp_path / "m.onnx", ("N", 8, 8, 3)))
    assert torch.allclose(adapter.module(PICTURES), SCORES, atol=1e-6)


def test_whole_numbers_get_the_pictures_own_colours(tmp_path: Path) -> None:
    path = built(tmp_path / "m.onnx", ("N", 3, 8, 8), BYTES)
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    adapter = sightline.load_model(path, preprocess={"resize": 8})
    looked = sightline.look(photo, adapter)
    wanted = torch.from_numpy(photo.mean(axis=(0, 1))) * torch.tensor([1.0, 2, 3])
    assert torch.allclose(looked.captures[0].output.double(), wanted[None], rtol=0, atol=1e-3)
    assert adapter.provenance["preprocessing"]["std"] == (1 / 255,) * 3


@pytest.mark.parametrize("shape", [("N", 3, "H", "W"), ("N", "C", "H", "W"), ("N", 3, None, None)])
def test_a_network_for_any_size_asks_for_one(tmp_path: Path, shape: Any) -> None:
    path = built(tmp_path / "m.onnx", shape)
    assert "m.onnx takes pictures of any size; say which, such as preprocess={'size': 224}" in said(path)
    adapter = sightline.load_model(path, preprocess={"size": 8})
    assert torch.allclose(adapter.module(PICTURES), SCORES, atol=1e-6)
    assert adapter.provenance["preprocessing"]["size"] == (8, 8)


def test_a_size_that_is_no_square_is_filled_with_the_whole_picture(tmp_path: Path) -> None:
    found = sightline.explain(DEMO, str(built(tmp_path / "m.onnx", ("N", 3, 8, 12))))
    assert found.view.input == (12, 8)
    assert found.view.seen_share() == 1


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        (("N", 1, 8, 8), FLOAT, "photographs have 3 channels"),
        (("N", 13, 8, 8), FLOAT, "photographs have 3 channels"),
        (("N", 3, 8), FLOAT, "expected one batch of pictures"),
        (("N", 3, 8, 8), onnx.TensorProto.INT64, "tensor(int64)"),
    ],
)
def test_what_takes_no_pictures_is_refused(tmp_path: Path, shape: Any, kind: int, words: str) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "as it is",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info("y", kind, list(shape))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    message = said(tmp_path / "m.onnx")
    assert words in message
    assert "m.onnx takes x" in message
    assert "sightline.adapt(function" in message


def test_another_size_than_the_networks_is_refused(tmp_path: Path) -> None:
    message = said(built(tmp_path / "m.onnx"), preprocess={"size": 16})
    assert message == "m.onnx takes pictures of 8 x 8 pixels, and not of 16 x 16"


# --------------------------------------------------------------------------------------------------------- every output


def test_of_several_outputs_the_table_is_taken(tmp_path: Path) -> None:
    def with_grid(path: Path) -> Path:
        model = onnx.load(built(path))
        model.graph.output.add().CopyFrom(helper.make_tensor_value_info("x_again", FLOAT, ["N", 3, 8, 8]))
        model.graph.node.add().CopyFrom(helper.make_node("Identity", ["x"], ["x_again"]))
        path.write_bytes(model.SerializeToString())
        return path

    adapter = sightline.load_model(with_grid(tmp_path / "m.onnx"))
    assert torch.allclose(adapter.module(PICTURES), SCORES, atol=1e-6)


def test_of_two_tables_none_is_taken(tmp_path: Path) -> None:
    message = said(built(tmp_path / "m.onnx", outputs={"scores": ("N", 3), "other": ("N", 3)}))
    assert "m.onnx gives scores tensor(float) (N, 3); other tensor(float) (N, 3)" in message
    assert "To choose one, ask it in a function of your own" in message


def given(path: Path, shape: list[Any], *nodes: Any) -> Path:
    """The network by hand with another output: `y`, of this shape, made of `x` by these nodes."""
    model = onnx.load(built(path))
    del model.graph.output[:]
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("y", FLOAT, shape))
    for node in nodes:
        model.graph.node.add().CopyFrom(node)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_network_that_gives_no_table_is_refused(tmp_path: Path) -> None:
    rows = given(
        tmp_path / "m.onnx",
        ["N", 3, 8],
        helper.make_node("Constant", [], ["first"], value_int=0),
        helper.make_node("Gather", ["x", "first"], ["y"], axis=3),
    )
    assert "gave scores of shape (1, 3, 8) for 1 pictures" in said(rows)


def test_a_network_that_gives_each_pixel_a_class_is_a_segmentation(tmp_path: Path) -> None:
    model = sightline.load_model(given(tmp_path / "m.onnx", ["N", 3, 8, 8], helper.make_node("Identity", ["x"], ["y"])))
    with Image.open(DEMO) as picture:
        photo = picture.convert("RGB").resize((80, 80))
    heat = sightline.explain(photo, model, method="occlusion", target=sightline.segment("1", point=(25, 55)))
    # Shrunk to 9 x 9 and cut to the first 8 x 8, the point lies in row 6 and column 2; a window is two cells wide.
    assert heat.raw[6, 2] == heat.raw.max() > 0
    assert all(abs(row - 6) <= 1 and abs(column - 2) <= 1 for row, column in np.argwhere(heat.raw != 0))


def test_a_softmax_at_the_end_is_noticed(tmp_path: Path) -> None:
    export(nn.Sequential(seeded(Plain), nn.Softmax(dim=1)), tmp_path / "m.onnx", (16, 16))
    found = sightline.explain(DEMO, str(tmp_path / "m.onnx"))
    assert any("returns probabilities" in warning for warning in found.warnings)
    assert sum(one.probability for one in found.predictions) == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ metadata


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": "{0: 'cat', 1: \"jack-o'-lantern\", 2: 'dog'}"},
        {"names": "['cat', \"jack-o'-lantern\", 'dog']"},
        {"labels": json.dumps(["cat", "jack-o'-lantern", "dog"])},
        {"classes": json.dumps({"0": "cat", "1": "jack-o'-lantern", "2": "dog"})},
        {"names": "not there", "labels": json.dumps(["cat", "jack-o'-lantern", "dog"])},
    ],
)
def test_class_names_in_the_metadata_are_read(tmp_path: Path, metadata: dict[str, str]) -> None:
    adapter = sightline.load_model(built(tmp_path / "m.onnx", metadata=metadata))
    assert adapter.labels == ("cat", "jack-o'-lantern", "dog")
    given = sightline.load_model(tmp_path / "m.onnx", labels=["a", "b", "c"])
    assert given.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    "names",
    [
        "__import__('os').system('touch CANARY')",
        "[open('CANARY', 'w').name, 'b', 'c']",
        "{0: 'cat', 1: 'dog'}",
        "{0: 'cat', 5: 'dog', 1: 'bird'}",
        "[1, 2, 3]",
        "'abc'",
        "[" * 5000,
        "9" * 5000,
        "{[]: 1}",
        "\x00",
        "",
    ],
)
def test_names_that_are_none_are_left_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = sightline.load_model(built(tmp_path / "m.onnx", metadata={"names": names}))
    assert adapter.labels is None
    assert not (tmp_path / "CANARY").exists()


def test_names_with_lines_in_them_come_in_one_line(tmp_path: Path) -> None:
    names = json.dumps(["a\nb", "\x1b[31mred", "x" * 10_000])
    labels = sightline.load_model(built(tmp_path / "m.onnx", metadata={"labels": names})).labels
    assert labels is not None
    assert all(one.isprintable() and len(one) <= 200 for one in labels)


def test_what_an_ultralytics_classifier_is_fed_with_is_known(tmp_path: Path) -> None:
    adapter = sightline.load_model(built(tmp_path / "m.onnx", metadata={"author": "Ultralytics"}))
    assert adapter.provenance["preprocessing"]["mean"] == (0.0, 0.0, 0.0)
    assert adapter.provenance["preprocessing"]["std"] == (1.0, 1.0, 1.0)
    assert any("guessed" in note for note in adapter.notes)


# -------------------------------------------------------------------------------------------------------- hostile files


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file outside of the model's folder, and at the same place seen from where the process runs."""
    (tmp_path / "models").mkdir()
    (tmp_path / "canary.bin").write_bytes(np.array([7, 7, 7], np.float32).tobytes())
    monkeypatch.chdir(tmp_path / "models")
    return tmp_path / "canary.bin"


def test_weights_in_another_file_are_refused_and_that_file_is_never_opened(canary: Path) -> None:
    """The same file is read by the reference reader of ONNX, which shows that it leads there."""
    beside = canary.with_name("models") / "weights.bin"
    beside.write_bytes(canary.read_bytes())
    path = built(canary.with_name("models") / "m.onnx", external="weights.bin")
    assert numpy_helper.to_array(onnx.load(path).graph.initializer[0]).tolist() == [7, 7, 7]
    for location in ("weights.bin", "../canary.bin", str(canary), "nowhere.bin"):
        message = said(built(path, external=location))
        assert "m.onnx keeps its weights in another file, which is not opened" in message


def test_a_model_that_torch_saved_in_two_files_is_refused(tmp_path: Path) -> None:
    export(seeded(Plain), tmp_path / "m.onnx", (16, 16), external=True)
    assert (tmp_path / "m.onnx.data").exists()
    assert "keeps its weights in another file" in said(tmp_path / "m.onnx")
    onnx.save_model(onnx.load(tmp_path / "m.onnx"), tmp_path / "one.onnx", save_as_external_data=False)
    assert sightline.load_model(tmp_path / "one.onnx").black_box


def _external(name: str = "t") -> Any:
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../canary.bin")
    return tensor


def _in_constant(model: Any) -> None:
    model.graph.node.add().CopyFrom(helper.make_node("Constant", [], ["unused"], value=_external()))


def _in_branch(model: Any) -> None:
    inner = helper.make_graph([], "inner", [], [], [_external()])
    model.graph.node.add().CopyFrom(helper.make_node("If", ["c"], ["unused"], then_branch=inner, else_branch=inner))


def _in_sparse(model: Any) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(_external())


def _in_function(model: Any) -> None:
    function = model.functions.add(name="f", domain="d")
    function.node.add().CopyFrom(helper.make_node("Constant", [], ["unused"], value=_external()))


def _in_training(model: Any) -> None:
    model.training_info.add().algorithm.initializer.add().CopyFrom(_external())


def _by_location_alone(model: Any) -> None:
    tensor = model.graph.initializer.add(name="t", data_type=FLOAT, dims=[3])
    tensor.data_location = onnx.TensorProto.EXTERNAL


@pytest.mark.parametrize("hide", [_in_constant, _in_branch, _in_sparse, _in_function, _in_training, _by_location_alone])
def test_no_hidden_place_leads_to_another_file(canary: Path, hide: Any) -> None:
    path = built(canary.with_name("models") / "m.onnx")
    model = onnx.load(path)
    hide(model)
    path.write_bytes(model.SerializeToString())
    assert "keeps its weights in another file" in said(path)


def test_a_field_number_written_too_long_hides_nothing(canary: Path) -> None:
    """Readers of the format keep 32 bits of a key; 13 and 13 + 2^29 are one field to them."""
    path = built(canary.with_name("models") / "m.onnx", external="../canary.bin")
    plain = path.read_bytes()
    entry = _external().external_data[0].SerializeToString()
    short = bytes([13 << 3 | 2])
    assert plain.count(short + bytes([len(entry)]) + entry) == 1
    assert ours._refers_elsewhere(memoryview(plain))
    tensor = bytes([0xEA, 0x80, 0x80, 0x80, 0x10]) + bytes([len(entry)]) + entry
    initializer = bytes([5 << 3 | 2, len(tensor)]) + tensor
    graph = bytes([7 << 3 | 2, len(initializer)]) + initializer
    assert ours._refers_elsewhere(memoryview(graph))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"no model at all, but a text that somebody renamed",
        b"<!DOCTYPE html><html></html>",
        b"\xff" * 100,
        b"\x3a\xff\xff\xff\x7f",
        b"PK\x03\x04" + b"\x00" * 200,
        b"\x18\x00\x00\x00ORTM" + b"\x00" * 200,
    ],
)
def test_a_file_that_is_no_model_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert "m.onnx" in said(tmp_path / "m.onnx")


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = built(tmp_path / "m.onnx").read_bytes()
    for length in range(1, len(whole), 7):
        (tmp_path / "m.onnx").write_bytes(whole[:length])
        said(tmp_path / "m.onnx")


def test_a_file_with_any_byte_changed_is_loaded_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = built(tmp_path / "m.onnx").read_bytes()
    rng = np.random.default_rng(0)
    outcomes: list[str] = []
    for _ in range(150):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        (tmp_path / "m.onnx").write_bytes(changed)
        try:
            outcomes.append(sightline.load_model(tmp_path / "m.onnx").name)
        except sightline.SightlineError as error:
            outcomes.append(str(error))
    assert "m.onnx" in outcomes
    assert len(set(outcomes)) > 5
    assert all("\n" not in one and "m.onnx" in one for one in outcomes)
    assert capsys.readouterr() == ("", "")


def test_operations_of_other_libraries_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Evil", ["x"], ["y"], domain="evil.domain")
    message = said(built(tmp_path / "m.onnx", before=(node,), x="y"))
    assert "m.onnx can't be loaded by onnxruntime" in message
    assert "evil.domain" in message


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "MAX_BYTES", 100)
    assert "an ONNX file has at most 100" in said(built(tmp_path / "m.onnx"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert said(tmp_path / "m.onnx") == f"there is no model file {tmp_path / 'm.onnx'}"


def test_a_folder_with_such_a_name_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    assert "no weights file" in said(tmp_path / "m.onnx")


@pytest.mark.parametrize("given", [{"random_weights": True}, {"num_classes": 3}])
def test_what_an_onnx_file_brings_along_is_not_given(tmp_path: Path, given: dict[str, Any]) -> None:
    assert "m.onnx has its own weights and classes" in said(built(tmp_path / "m.onnx"), **given)


def test_more_or_fewer_names_than_classes_are_refused(tmp_path: Path) -> None:
    assert "3 classes, and 2 class names were given" in said(built(tmp_path / "m.onnx"), labels=["a", "b"])


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline import _optional

    monkeypatch.setattr(_optional, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"an ONNX file needs the extra `onnx` \(onnxruntime\): pip install"):
        sightline.load_model(built(tmp_path / "m.onnx"))


def test_a_layer_of_an_onnx_file_is_refused(exported: Path) -> None:
    with pytest.raises(LayerError, match=r"plain\.onnx is a black box, .*it has no layers"):
        sightline.explain(DEMO, str(exported), layer="conv1")


def test_a_network_that_fails_on_a_picture_says_so(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([-1, 3, 7, 7], np.int64), "shape")
    path = built(
        tmp_path / "m.onnx", ("N", 3, "H", "W"), before=(helper.make_node("Reshape", ["x", "shape"], ["y"]),), x="y"
    )
    model = onnx.load(path)
    model.graph.initializer.add().CopyFrom(shape)
    path.write_bytes(model.SerializeToString())
    message = said(path, preprocess={"size": 8})
    assert "m.onnx fails on an input of shape (1, 3, 8, 8)" in message


def test_a_batch_is_asked_at_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = sightline.load_model(exported)
    sizes: list[int] = []
    function = adapter.module.held.function

    def counted(x: Tensor) -> Any:
        sizes.append(len(x))
        return function(x)

    sightline.attribute(torch.rand(1, 3, 32, 32), counted, options={"patch": 8, "stride": 4})
    assert max(sizes) == 16


@pytest.mark.parametrize("shape", [(100_000, 3, 224, 224), (1, 3, 8192, 8192)])
def test_an_input_that_would_fill_the_memory_is_refused(tmp_path: Path, shape: Any) -> None:
    with pytest.raises(ModelError, match="at most 256 pictures at once of 4,096 pixels"):
        sightline.load_model(built(tmp_path / "m.onnx", shape))
