"""Keras models on torch: their maps are those that Keras itself gives by hand, the models are never touched, and hostile files refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import keras
import numpy as np
import pytest
import torch
from keras import layers
from PIL import Image
from torch import Tensor

import sightline
from conftest import assert_close, cheap, trace
from sightline import adapt, attribute, explain, load_model
from sightline.cli import main
from sightline.cli.doctor import DEMO
from sightline.engine.asked import Asked
from sightline.engine.attention import WANTED
from sightline.engine.decompose import decompose
from sightline.engine.targets import class_logit
from sightline.errors import LayerError, MissingExtraError, ModelError, WeightsError
from sightline.methods.registry import find
from sightline.models import keras_file
from sightline.models import layers as choice
from sightline.models.adapter import Adapter
from sightline.models.keras_module import torch_view

SIZE = 32


# -------------------------------------------------------------------------------------------------------------- models


def settled(model: Any) -> Any:
    """With statistics and weights as after training, so that no layer is a plain copy of its input."""
    generator = torch.Generator().manual_seed(0)
    for variable in model.weights:
        value = variable.value
        drawn = torch.rand(value.shape, generator=generator)
        if variable.name in ("moving_variance", "gamma"):
            variable.assign(0.5 + drawn)
        elif variable.name in ("moving_mean", "beta", "bias"):
            variable.assign(0.2 * drawn - 0.1)
    return model


def functional(end: str | None = "softmax", size: int = SIZE) -> Any:
    """Two convolutions, a skip connection written with +, a pooling, and a head."""
    keras.utils.set_random_seed(0)
    picture = keras.Input((size, size, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="first")(picture)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="second")(x)
    x = layers.Add(name="sum")([x, y])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    return settled(keras.Model(picture, layers.Dense(4, activation=end, name="head")(x), name="small"))


def backbone(size: int = 64) -> Any:
    keras.utils.set_random_seed(1)
    base = keras.applications.MobileNetV2(alpha=0.35, input_shape=(size, size, 3), weights=None, include_top=False)
    base.trainable = False
    return settled(base)


def transfer(end: str | None = "softmax", base: Any = None) -> Any:
    """As every tutorial writes it: augmentation, scaling, a frozen backbone, and a new head."""
    base = base or backbone()
    keras.utils.set_random_seed(2)
    picture = keras.Input((64, 64, 3))
    x = layers.RandomFlip("horizontal")(picture)
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = base(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(picture, layers.Dense(3, activation=end, name="head")(x), name="transfer")


class Block(layers.Layer):
    def __init__(self, channels: int) -> None:
        super().__init__(name=None)
        self.conv = layers.Conv2D(channels, 3, padding="same", activation="relu")
        self.norm = layers.BatchNormalization()

    def build(self, shape: Any) -> None:
        self.conv.build(shape)
        self.norm.build((*shape[:-1], self.conv.filters))

    def call(self, x: Any) -> Any:
        return x[..., :1] + self.norm(self.conv(x))


class Subclassed(keras.Model):
    """Layers in attributes, in a list, in a dictionary, and a model inside; and it trains unless it is told not to."""

    def __init__(self, end: str | None = "softmax") -> None:
        super().__init__()
        self.blocks = [Block(5), Block(6)]
        self.tail = keras.Sequential([layers.Conv2D(7, 3, name="last"), layers.ReLU(name="relu")], name="tail")
        self.parts = {"pool": layers.GlobalAveragePooling2D(), "drop": layers.Dropout(0.5)}
        self.head = layers.Dense(4, activation=end, name="head")

    def call(self, x: Any, training: bool = True) -> Any:
        for block in self.blocks:
            x = block(x, training=training)
        x = self.parts["pool"](self.tail(x))
        return self.head(self.parts["drop"](x, training=training))


def subclassed(end: str | None = "softmax") -> Any:
    keras.utils.set_random_seed(0)
    model = Subclassed(end)
    model(np.zeros((1, SIZE, SIZE, 3), np.float32), training=False)
    return settled(model)


def sequential() -> Any:
    keras.utils.set_random_seed(0)
    return settled(
        keras.Sequential(
            [
                keras.Input((SIZE, SIZE, 3)),
                layers.Conv2D(5, 3, activation="relu", name="conv"),
                layers.MaxPooling2D(name="pool"),
                layers.Flatten(),
                layers.Dense(3, name="head"),
                layers.Softmax(name="end"),
            ]
        )
    )


def inputs(size: int = SIZE, count: int = 2, span: float = 1.0) -> Tensor:
    return span * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def by_hand(parts: Any, x: Tensor, target: int) -> Tensor:
    """Grad-CAM by its paper from a Keras model that gives (a layer's output, logits)."""
    grid, logits = parts(x.permute(0, 2, 3, 1), training=False)
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), grid)
    weights = gradient.mean(dim=(1, 2), keepdim=True)
    return (weights * grid).sum(dim=3).relu().detach()


def without_end(model: Any, twin: Any, layer: str) -> Any:
    """(a layer's output, logits), of a model built without its softmax and given the same weights."""
    copy_weights(model, twin)
    return keras.Model(twin.inputs, [twin.get_layer(layer).output, twin.output])


def copy_weights(source: Any, target: Any) -> None:
    for one, other in zip(source.weights, target.weights, strict=True):
        other.assign(one.value)


def saved(model: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras writes with what numpy calls old
        (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def refused(call: Callable[[], Any], *words: str, error: type[Exception] = ModelError) -> str:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert len(message) < 800, "the message of another library, unread"
    return message


# ---------------------------------------------------------------------------------------------------------- same maps


@pytest.mark.parametrize("layer", ["first", "norm", "relu", "second", "sum"])
def test_the_map_of_a_layer_is_that_computed_by_hand_on_the_model_without_its_softmax(layer: str) -> None:
    model, x = functional(), inputs()
    parts = without_end(model, functional(None), layer)
    assert_close(attribute(x, model, target=1, layer=layer), by_hand(parts, x, 1), 1e-5)


def test_logits_are_read_before_the_softmax_and_the_predictions_stay_those_of_the_model() -> None:
    for model in (functional(), functional("sigmoid"), transfer(), subclassed(), sequential()):
        x = inputs(64 if model.name == "transfer" else SIZE)
        logits = torch_view(model)(x)
        ended = (
            logits.sigmoid()
            if model is not None and "sigmoid" in str(model.layers[-1].get_config())
            else logits.softmax(1)
        )
        assert_close(ended, model(x.permute(0, 2, 3, 1), training=False), 1e-6)
        assert (logits < 0).any() or (logits > 1).any()


def test_a_model_without_a_softmax_gives_what_it_gives() -> None:
    model, x = functional(None), inputs()
    assert torch.equal(torch_view(model)(x), model(x.permute(0, 2, 3, 1), training=False))


def test_a_softmax_inside_of_a_model_stays() -> None:
    picture = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, activation="softmax", name="gate")(picture)
    x = layers.GlobalAveragePooling2D()(x)
    model, x = keras.Model(picture, layers.Dense(3, name="head")(x)), inputs()
    assert torch.equal(torch_view(model)(x), model(x.permute(0, 2, 3, 1), training=False))


def test_a_user_s_own_function_named_softmax_stays() -> None:
    def softmax(x: Any) -> Any:
        return 2 * keras.ops.softmax(x)

    picture = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(picture, layers.Dense(3, activation=softmax)(layers.GlobalAveragePooling2D()(picture)))
    x = inputs()
    assert torch.equal(torch_view(model)(x), model(x.permute(0, 2, 3, 1), training=False))


def test_the_map_inside_a_frozen_backbone_is_that_computed_by_hand() -> None:
    base = backbone()
    model, x = transfer(base=base), inputs(64, span=255)
    head = model.get_layer("head")
    x_in = layers.Rescaling(1 / 127.5, offset=-1)
    inner = keras.Model(base.inputs, [base.get_layer("block_6_project_BN").output, base.output])

    def parts(x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        grid, features = inner(x_in(x), training=training)
        if not grid.requires_grad:
            raise AssertionError("the backbone's parameters give the graph")
        return grid, features.mean(dim=(1, 2)) @ head.kernel.value + head.bias.value

    for variable in base.weights:
        assert not variable.trainable
    for value in base.parameters():
        value.requires_grad_(True)  # for the hand-written gradient alone
    wanted = by_hand(parts, x, 2)
    for value in base.parameters():
        value.requires_grad_(False)
    found = attribute(x, model, target=2, layer="mobilenetv2_0_35_64.block_6_project_BN")
    assert_close(found, wanted, 1e-5)


def test_the_last_grid_of_a_backbone_is_chosen_however_deep_it_lies() -> None:
    x = inputs(64, span=255)
    once = transfer(None)
    assert choice.choose(torch_view(once), x[:1])[0] == "mobilenetv2_0_35_64"
    picture = keras.Input((64, 64, 3))
    twice = keras.Model(picture, layers.Activation("softmax", name="end")(once(picture)))
    layer, reason = choice.choose(torch_view(twice), x[:1])
    assert layer == "transfer.mobilenetv2_0_35_64"
    assert "2x2" in reason
    found, wanted = (attribute(x, one, target=0, method="hires-cam") for one in (twice, once))
    assert_close(found, wanted, 1e-6)
    known = {one.name for one in choice.candidates(torch_view(twice), x[:1])}
    assert {"transfer.mobilenetv2_0_35_64.Conv_1", "transfer.mobilenetv2_0_35_64.out_relu"} <= known


@pytest.mark.parametrize(
    ("make", "layer"), [(functional, "sum"), (subclassed, "tail"), (sequential, "conv")], ids=["graph", "class", "row"]
)
def test_the_last_grid_before_pooling_is_chosen(make: Callable[[], Any], layer: str) -> None:
    assert choice.choose(torch_view(make()), inputs())[0] == layer


def test_a_subclassed_model_has_the_map_computed_by_hand() -> None:
    model, x = subclassed(None), inputs()
    kept: list[Tensor] = []
    last = model.tail.layers[-1]
    handle = last.register_forward_hook(lambda _module, _args, output: kept.append(output))
    logits = model(x.permute(0, 2, 3, 1), training=False)
    handle.remove()
    assert_close(
        attribute(x, subclassed(), target=3, layer="tail.relu"), by_hand(lambda *_, **__: (kept[0], logits), x, 3), 1e-5
    )
    names = dict(torch_view(model).named_modules())
    assert len([name for name in names if name.startswith("block") and name.count(".") == 1]) == 4


def test_channels_first_models_work_and_mixed_ones_are_refused() -> None:
    keras.utils.set_random_seed(0)
    picture = keras.Input((3, SIZE, SIZE))
    x = layers.Conv2D(4, 3, activation="relu", data_format="channels_first", name="conv")(picture)
    pooled = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    model = keras.Model(picture, [x, layers.Dense(3)(pooled)])
    x = inputs()
    grid, logits = model(x)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), grid)
    wanted = (gradient.mean(dim=(2, 3), keepdim=True) * grid).sum(dim=1).relu().detach()
    assert_close(attribute(x, model, target=1, layer="conv"), wanted, 1e-5)
    x = layers.Conv2D(4, 3, data_format="channels_first", name="conv")(keras.Input((3, SIZE, SIZE)))
    both = keras.Model(picture, layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3, data_format="channels_first", name="conv")(picture)))  # fmt: skip
    refused(lambda: adapt(both), "'conv'", "'pool'", "image_data_format")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions_give_the_map_of_that_precision(policy: str) -> None:
    def built(kind: str) -> Any:
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(kind)
        try:
            picture = keras.Input((SIZE, SIZE, 3))
            x = layers.Conv2D(4, 3, activation="relu", name="conv")(picture)
            x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
            return keras.Model(picture, layers.Activation("softmax", dtype="float32")(x))
        finally:
            keras.config.set_dtype_policy("float32")

    plain, model, x = built("float32"), built(policy), inputs()
    copy_weights(plain, model)
    x = x.double() if policy == "float64" else x
    found = attribute(x, model, target=1)
    assert found.dtype == x.dtype
    assert_close(found, attribute(x.float(), plain, target=1), 1e-5 if policy == "float64" else 0.05)


def test_every_method_without_attention_works() -> None:
    model, x = functional(), inputs(count=1)
    adapter = adapt(model)
    names = [name for name in sightline.list_methods() if find(name).needs not in WANTED]
    assert len(names) > 15
    for name in names:
        assert attribute(x, adapter, method=name, target=1, options=cheap(name)).isfinite().all(), name


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_layer_that_is_used_twice_is_refused_by_name() -> None:
    picture = keras.Input((SIZE, SIZE, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    x = layers.GlobalAveragePooling2D()(shared(shared(picture)))
    model = keras.Model(picture, layers.Dense(2)(x))
    refused(lambda: attribute(inputs(), model, layer="shared"), "'shared'", "2 times", error=LayerError)


def test_an_unknown_layer_is_refused_with_the_nearest_of_keras_names() -> None:
    refused(lambda: attribute(inputs(), functional(), layer="secnd"), "'second'", error=LayerError)


def test_what_has_no_weights_yet_or_takes_several_pictures_is_refused_with_what_to_do() -> None:
    refused(
        lambda: adapt(keras.Sequential([layers.Conv2D(2, 3), layers.Flatten()])), "no weights yet", "call the model"
    )
    refused(lambda: adapt(Subclassed()), "no weights yet")
    one, other = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    refused(lambda: adapt(keras.Model([one, other], layers.Add()([one, other]))), "2 inputs")
    refused(lambda: load_model(functional(), random_weights=True), "its own weights")


def test_a_layer_that_no_call_uses_stands_in_nobody_s_way() -> None:
    model = subclassed()
    model.__dict__["_tracker"].unlock()
    model.spare = layers.Dense(7)
    x = inputs()
    assert_close(
        attribute(x, model, target=3, method="hires-cam"),
        attribute(x, subclassed(), target=3, method="hires-cam"),
        1e-5,
    )
    assert not model.spare.built


def test_every_layer_can_be_run_alone_so_that_bias_and_picture_together_make_the_score() -> None:
    model, x = functional(None), inputs(count=1)
    parts = decompose(adapt(model), x, Asked(class_logit(2), 2, ""))
    assert parts.score == pytest.approx(torch_view(model)(x)[0, 2].item(), rel=1e-5)
    assert parts.biases
    assert abs(parts.missing) < 1e-4 * abs(parts.score)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=kept | environment, capture_output=True, text=True, timeout=120
    )


def test_another_backend_is_refused_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    model = functional()
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")  # which can't be had beside torch
    for call in (lambda: adapt(model), lambda: load_model(model), lambda: load_model("keras:VGG16")):
        refused(call, "runs on tensorflow", "KERAS_BACKEND=torch", "before keras is imported")


def test_the_backend_is_torch_where_nobody_says_otherwise_and_weights_out_of_reach_are_one_sentence(
    tmp_path: Path,
) -> None:
    code = f"""
import os, sys, sightline
assert 'keras' not in sys.modules
sightline.load_model('keras:MobileNetV3Small', random_weights=True)
assert os.environ['KERAS_BACKEND'] == 'torch'
print('so far nothing', file=sys.stderr)
from sightline.cli import main
sys.argv[1:] = ['explain', {str(DEMO)!r}, '--model', 'keras:MobileNetV3Small', '-o', {str(tmp_path / "out")!r}]
main()
"""
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere)
    done = python(code, **proxies, no_proxy="", NO_PROXY="", KERAS_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    first, *_, message = done.stderr.splitlines()
    assert first == "so far nothing"
    assert message.startswith("sightline: the weights of keras:MobileNetV3Small can't be had from")
    assert "--weights FILE" in message


def test_without_keras_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sightline._optional.find_spec
    monkeypatch.setattr("sightline._optional.find_spec", lambda name: None if name == "keras" else real(name))
    refused(lambda: load_model("keras:VGG16"), "sightline[keras]", error=MissingExtraError)


def test_an_unknown_architecture_is_refused_with_the_nearest() -> None:
    refused(lambda: load_model("keras:resnet50"), "'ResNet50'", "sightline models keras")
    refused(lambda: load_model("keras:backend"), "no model 'backend'")


# ------------------------------------------------------------------------------------------------------------ no trace


def state(model: Any) -> dict[str, Any]:
    """All that can be seen of a Keras model, of each of its layers, of the process, and of Keras."""
    found = trace(model)
    for at, layer in enumerate(model._flatten_layers()):
        found |= {
            f"layer {at} {layer.name}: {key}": value for key, value in trace(layer).items() if "process" not in key
        }
        found[f"layer {at} {layer.name}: own"] = {
            key: (id(value), len(value) if isinstance(value, list | dict | set) else None)
            for key, value in layer.__dict__.items()
        }
        found[f"layer {at} {layer.name}: trainable"] = (
            layer.trainable,
            layer.built,
            id(getattr(layer, "activation", None)),
        )
    for variable in model.variables:
        found[f"variable {variable.path}"] = (
            id(variable),
            id(variable.value),
            variable.trainable,
            variable.value.detach().numpy().tobytes(),
        )
    found["keras"] = (
        keras.config.is_traceback_filtering_enabled(),
        keras.config.is_interactive_logging_enabled(),
        [id(one) for layer in model._flatten_layers() for one in layer._losses],
    )
    return found


class Drawing(layers.Layer):
    """Draws at random, keeps count and adds a loss, whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        self.latest = keras.ops.mean(x)
        self.add_loss(keras.ops.mean(x))
        return x + 0.01 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def busy() -> Any:
    picture = keras.Input((SIZE, SIZE, 3))
    x = Drawing()(picture)
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", activity_regularizer="l1", name="conv")(x)
    x = layers.BatchNormalization()(x, training=True)
    return keras.Model(picture, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def wrapped() -> Any:
    inside = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())

    class Wrapping(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inside = layers.TorchModuleWrapper(inside, name="inside")
            self.pool = layers.GlobalAveragePooling2D(data_format="channels_first")
            self.head = layers.Dense(2, activation="softmax")

        def call(self, x: Any) -> Any:
            return self.head(self.pool(self.inside(keras.ops.transpose(x, (0, 3, 1, 2)))))

    model = Wrapping()
    model(np.zeros((2, SIZE, SIZE, 3), np.float32), training=False)
    inside.train()
    return model


@pytest.mark.parametrize(
    "make", [functional, transfer, subclassed, sequential, busy, wrapped], ids=lambda make: make.__name__
)
def test_the_model_is_untouched_when_it_was_explained_and_when_that_failed(make: Callable[[], Any]) -> None:
    model = make()
    x = inputs(64 if make is transfer else SIZE)
    if make in (transfer, functional):
        model.compile(optimizer="sgd", loss="mse")
    model(x.permute(0, 2, 3, 1))  # leaves losses behind
    layer = {"wrapped": "inside.module.2"}.get(make.__name__)
    state(model)  # Keras registers parameters when it is first asked for them
    before = state(model)
    attribute(x, model, target=1, layer=layer)
    with pytest.raises(sightline.errors.SightlineError):
        attribute(x, model, target=99, layer=layer)
    with pytest.raises(KeyboardInterrupt):
        attribute(x, model, target=interrupted, layer=layer)
    with pytest.raises(ModelError):
        attribute(x[:, :2], model, layer=layer)
    after = state(model)
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()


def interrupted(_output: Tensor) -> Tensor:
    raise KeyboardInterrupt


def test_statistics_are_read_and_not_made_whatever_the_model_says_of_training() -> None:
    model, x = subclassed(), inputs()
    alone = torch.cat([attribute(one[None], model, target=1, method="hires-cam") for one in x])
    assert_close(attribute(x, model, target=1, method="hires-cam"), alone, 1e-5)


def test_what_is_learnt_later_is_seen() -> None:
    model, x = functional(), inputs()
    adapter = adapt(model)
    before = attribute(x, adapter, target=1)
    model.get_layer("second").kernel.assign(-model.get_layer("second").kernel.value)
    after = attribute(x, adapter, target=1)
    assert not torch.allclose(before, after)
    assert torch.equal(after, attribute(x, adapt(model), target=1))


def test_a_stand_in_s_own_weights_are_those_that_are_used() -> None:
    model, x = functional(), inputs()
    from sightline.models.twin import twin

    view = torch_view(model)
    stand_in = twin(view, {})
    head = stand_in.get_submodule("head")
    head._parameters["bias"] = torch.nn.Parameter(torch.ones(4) + head._parameters["bias"].detach())
    assert_close(stand_in(x), view(x) + 1, 1e-6)


@pytest.mark.slow
def test_eight_threads_on_one_model_get_the_maps_of_one() -> None:
    model, x = transfer(), inputs(64, span=255)
    adapter = adapt(model)
    wanted = [attribute(x, adapter, target=target) for target in range(3)]
    state(model)
    before, wrong = state(model), []

    def work(start: int) -> None:
        for turn in range(4):
            target = (start + turn) % 3
            if not torch.allclose(attribute(x, adapter, target=target), wanted[target], rtol=1e-5, atol=1e-12):
                wrong.append((start, turn))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    after = state(model)
    assert [key for key in before if before[key] != after[key]] == []


# ------------------------------------------------------------------------------------------------------- preprocessing


def photo(size: tuple[int, int] = (120, 80)) -> Image.Image:
    with Image.open(DEMO) as image:
        return image.convert("RGB").resize(size)


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "DenseNet121", "EfficientNetB0"])
def test_the_preprocessing_is_keras_own_on_the_same_resized_picture(name: str) -> None:
    adapter = load_model(f"keras:{name}", random_weights=True, preprocess={"size": 96})
    picture = photo()
    x, view = adapter.preprocess(picture)
    small = np.asarray(picture.resize((96, 96), Image.Resampling.BILINEAR), np.float32)
    own = sys.modules[getattr(keras.applications, name).__module__].preprocess_input(
        small.copy(), data_format="channels_last"
    )
    assert_close(x, torch.from_numpy(np.ascontiguousarray(own)).permute(2, 0, 1), 1e-6)
    assert view.photo == picture.size
    assert any(one.what == "colours" for one in adapter.found) == (name == "ResNet50")


def scaled(*first: Any, name: str = "mine") -> Any:
    picture = keras.Input((SIZE, 48, 3))
    x = picture
    for layer in first:
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(x))
    return keras.Model(picture, layers.Dense(3)(x), name=name)


@pytest.mark.parametrize(
    ("first", "span"),
    [
        ([layers.Rescaling(1 / 255)], 255),
        ([layers.RandomFlip(), layers.Rescaling(1 / 127.5, offset=-1)], 255),
        ([layers.Rescaling(2.0, offset=-1)], 1),
        ([layers.Normalization(mean=[120, 110, 100], variance=[60**2] * 3)], 255),
        ([layers.Normalization(mean=[0.5] * 3, variance=[0.05] * 3)], 1),
        ([lambda x: x / 255], 255),
        ([lambda x: x - 127.0], 255),
        ([keras.applications.resnet50.preprocess_input], 255),
    ],
)
def test_the_range_of_pixels_is_read_off_the_layer_that_scales(first: list[Any], span: int) -> None:
    adapter = adapt(scaled(*first))
    x, view = adapter.preprocess(photo())
    expected = np.asarray(photo().resize((48, SIZE), Image.Resampling.BILINEAR), np.float32) * span / 255
    assert_close(x, torch.from_numpy(expected).permute(2, 0, 1), 1e-6)
    assert view.input == (48, SIZE)
    assert adapter.notes == ()


def test_where_nothing_scales_the_range_is_guessed_and_said_on_every_picture() -> None:
    adapter = adapt(scaled())
    assert float(adapter.preprocess(photo())[0].max()) <= 1
    assert [one.guessed for one in adapter.found if one.what == "preprocessing"] == [True]
    assert any("nothing says it: preprocessing" in one for one in explain(photo(), adapter).warnings)
    given = load_model(scaled(), preprocess={"mean": 0.5, "std": 0.5}, labels=["a", "b", "c"])
    assert float(given.preprocess(photo())[0].min()) < 0
    assert (given.notes, given.labels) == ((), ("a", "b", "c"))


def test_a_backbone_s_name_tells_how_it_is_fed_which_is_a_guess() -> None:
    picture = keras.Input((64, 64, 3))
    base = backbone()
    x = layers.GlobalAveragePooling2D()(base(picture, training=False))
    adapter = adapt(keras.Model(picture, layers.Dense(3)(x)))
    x, _ = adapter.preprocess(photo())
    small = np.asarray(photo().resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    assert_close(x, torch.from_numpy(small / 127.5 - 1).permute(2, 0, 1), 1e-5)
    (note,) = adapter.notes
    assert "MobileNetV2" in note


def test_a_preprocessing_given_as_a_function_is_taken() -> None:
    def take(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image.resize((48, SIZE))).copy()).permute(2, 0, 1).float()

    adapter = adapt(scaled(), preprocess=take)
    assert torch.equal(adapter.preprocess(photo())[0], take(photo()))
    assert adapter.layer == "conv2d" or adapter.layer.startswith("conv2d_")


def test_what_was_found_out_names_the_softmax_that_was_taken_off() -> None:
    told = {one.what: one.value for one in adapt(functional()).found}
    assert told["score"] == "the logits, before the softmax in layer head"
    assert "score" not in {one.what for one in adapt(functional(None)).found}
    several = explain(photo(), functional("sigmoid")).warnings
    assert any("yes or no to each class" in one for one in several)


# ------------------------------------------------------------------------------------------------------- weights files


def architecture(classes: int = 3) -> Any:
    keras.utils.set_random_seed(0)
    return settled(keras.applications.MobileNetV2(alpha=0.35, input_shape=(96, 96, 3), weights=None, classes=classes))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, model = tmp_path_factory.mktemp("keras"), architecture()
    return {ending: saved(model, folder / f"mine{ending}") for ending in (".weights.h5", ".keras", ".h5")}


@pytest.fixture(scope="module")
def answers() -> Tensor:
    """What the model of these files says, asked once."""
    with torch.no_grad():
        return architecture()(inputs(96).permute(0, 2, 3, 1), training=False)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras", ".h5"])
def test_weights_of_every_format_give_the_logits_of_the_model_that_was_saved(
    ending: str, files: dict[str, Path], answers: Tensor
) -> None:
    adapter = load_model("keras:MobileNetV2", weights=files[ending], preprocess={"size": 96})
    with torch.no_grad():
        assert_close(adapter.module(inputs(96)).softmax(1), answers, 1e-5)
    told = {one.what: one.value for one in adapter.found}
    assert (told["classes"], told["width"]) == ("3", "alpha 0.35")
    assert adapter.provenance["weights"] == files[ending].name
    assert len(adapter.provenance["sha256"]) == 64
    (note,) = adapter.notes
    assert "nothing says it: preprocessing (size given" in note


def test_nothing_is_guessed_of_local_weights_where_the_whole_preprocessing_is_given(files: dict[str, Path]) -> None:
    whole = {"size": 96, "mean": 0.5, "std": 0.5}
    assert load_model("keras:MobileNetV2", weights=files[".weights.h5"], preprocess=whole).notes == ()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `sightline ...` in this process and gives what it prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["sightline", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert not end.value.code, shown.err
        return shown.out

    return run


def test_the_command_line_explains_a_picture_with_local_weights(
    files: dict[str, Path], tmp_path: Path, command: Callable[..., str]
) -> None:
    chosen = ("--model", "keras:MobileNetV2", "--weights", files[".weights.h5"], "--target", 1)
    command("explain", DEMO, "-o", tmp_path / "out", *chosen)
    (path,) = (tmp_path / "out").rglob("*.npy")
    found = np.load(path)
    keras.utils.set_random_seed(0)
    twin = keras.applications.MobileNetV2(alpha=0.35, weights=None, classes=3, classifier_activation=None)
    twin.load_weights(files[".weights.h5"])
    with Image.open(DEMO) as image:
        small = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.asarray(small, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    parts = keras.Model(twin.inputs, [twin.get_layer("out_relu").output, twin.output])
    assert_close(torch.from_numpy(found), by_hand(parts, x, 1)[0], 1e-4)


def test_an_archive_alone_is_built_again_and_gives_the_maps_of_the_model_that_was_saved(
    tmp_path: Path, command: Callable[..., str]
) -> None:
    model = transfer()
    path = saved(model, tmp_path / "mine.keras")
    adapter, x = load_model(str(path)), inputs(64, span=255)
    assert adapter.notes == ()
    found, wanted = (attribute(x, one, target=2, method="hires-cam") for one in (adapter, model))
    assert_close(found, wanted, 1e-5)
    heatmap = explain(photo(), adapter)
    assert heatmap.layer == "mobilenetv2_0_35_64"
    assert "mobilenetv2_0_35_64.block_16_project_BN" in command("layers", path, "--all")


# ------------------------------------------------------------------------------------------------------- hostile files


def test_weights_of_another_model_are_refused_with_a_shape(files: dict[str, Path]) -> None:
    refused(lambda: load_model("keras:MobileNetV3Small", weights=files[".weights.h5"]), "not made for", "missing, such as", error=WeightsError)  # fmt: skip
    refused(lambda: load_model("keras:MobileNetV2", weights=files[".h5"], num_classes=7), "3 classes", "says 7", error=WeightsError)  # fmt: skip


def test_a_larger_model_s_weights_are_refused_for_its_backbone(tmp_path: Path) -> None:
    path = saved(transfer(), tmp_path / "mine.keras")
    refused(lambda: load_model("keras:MobileNetV2", weights=path), "--model mine.keras", error=WeightsError)


def changed(source: Path, target: Path, change: Callable[[Any], Any]) -> Path:
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def head_of(file: Any) -> Any:
    return file["layers/dense/vars"]


def put(file: Any, make: Callable[[Any], Any]) -> None:
    del head_of(file)["1"]
    make(head_of(file))


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "NaN": (lambda file: head_of(file)["1"].__setitem__(0, np.nan), "NaN or infinity in predictions/bias"),
    "external link": (lambda file: put(file, lambda group: group.__setitem__("1", h5py.ExternalLink("/etc/passwd", "/"))), "another place or file"),
    "soft link": (lambda file: put(file, lambda group: group.__setitem__("1", h5py.SoftLink("/layers"))), "another place or file"),
    "external storage": (lambda file: put(file, lambda group: group.create_dataset("1", (3,), "f4", external=[("/etc/hostname", 0, 12)])), "another file"),
    "huge": (lambda file: put(file, lambda group: group.create_dataset("1", (10**10,), "f4", chunks=(1000,))), "claims 10,000,000,000 numbers"),
    "compressed": (lambda file: put(file, lambda group: group.create_dataset("1", data=np.zeros(10**6, "f4"), compression="gzip")), "compressed"),
    "cycle": (lambda file: file["layers"].__setitem__("again", file["layers/dense"]), "two names"),
    "text": (lambda file: put(file, lambda group: group.create_dataset("1", data=[b"a", b"b", b"c"])), "expected numbers"),
    "objects": (lambda file: put(file, lambda group: group.create_dataset("1", (3,), h5py.string_dtype())), "expected numbers"),
    "type": (lambda file: put(file, lambda group: group.__setitem__("1", np.dtype("f4"))), "neither a group nor numbers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_weights_file_is_refused_by_what_is_wrong_with_it(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    change, words = HOSTILE[kind]
    path = changed(files[".weights.h5"], tmp_path / "bad.weights.h5", change)
    refused(lambda: load_model("keras:MobileNetV2", weights=path, preprocess={"size": 96}), words, error=WeightsError)


def test_a_virtual_array_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    def make(group: Any) -> None:
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(3,))
        group.create_virtual_dataset("1", layout)

    path = changed(files[".weights.h5"], tmp_path / "bad.weights.h5", lambda file: put(file, make))
    refused(lambda: keras_file.read_keras(path), "another file", error=WeightsError)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"<html>", os.urandom(4096)])
@pytest.mark.parametrize("name", ["bad.weights.h5", "bad.h5", "bad.keras"])
def test_damaged_files_are_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(lambda: load_model("keras:MobileNetV2", weights=tmp_path / name), str(tmp_path / name), error=WeightsError)


def test_every_cut_of_a_good_file_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    for ending in (".weights.h5", ".keras"):
        content = files[ending].read_bytes()
        for share in (0.01, 0.5, 0.9, 0.999):
            path = tmp_path / f"cut{ending}"
            path.write_bytes(content[: int(share * len(content))])
            refused(lambda path=path: keras_file.read_keras(path), "cut", error=WeightsError)


def test_files_that_are_not_there_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    refused(
        lambda: load_model("keras:VGG16", weights=tmp_path / "gone.weights.h5"), "gone.weights.h5", error=WeightsError
    )
    refused(lambda: load_model(tmp_path / "gone.keras"), "gone.keras")
    (tmp_path / "state.pt").write_bytes(b"x")
    refused(lambda: load_model("keras:VGG16", weights=tmp_path / "state.pt"), ".weights.h5", error=WeightsError)
    (tmp_path / "a.keras").write_bytes(b"x")
    refused(lambda: load_model(tmp_path / "a.keras", weights=tmp_path / "b.keras"), "its own weights")


def archive(path: Path, config: Any, weights: bytes, compression: int = zipfile.ZIP_STORED, more: Any = ()) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        target.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        target.writestr("metadata.json", "{}")
        target.writestr("model.weights.h5", weights)
        for name, content in more:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.writestr(name, content)
    return path


def parts_of(path: Path) -> tuple[dict[str, Any], bytes]:
    with zipfile.ZipFile(path) as source:
        return json.loads(source.read("config.json")), source.read("model.weights.h5")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(functional(), tmp_path_factory.mktemp("small") / "small.keras")


def test_a_deflated_archive_is_read_and_a_bomb_is_refused_with_its_ratio(small: Path, tmp_path: Path) -> None:
    config, weights = parts_of(small)
    good = load_model(archive(tmp_path / "good.keras", config, weights, zipfile.ZIP_DEFLATED))
    assert good.layer == "sum"
    bomb = archive(tmp_path / "bomb.keras", config, bytes(200_000_000), zipfile.ZIP_DEFLATED)
    refused(lambda: load_model(bomb), "inflate", "200,000,000", "times as many", error=WeightsError)
    packed = archive(tmp_path / "lzma.keras", config, weights, zipfile.ZIP_LZMA)
    refused(lambda: load_model(packed), "packed in a way", error=WeightsError)
    twice = archive(tmp_path / "twice.keras", config, weights, more=[("config.json", "{}")])
    refused(lambda: load_model(twice), "2 members 'config.json'", error=WeightsError)
    lying = bytearray(archive(tmp_path / "lying.keras", config, weights).read_bytes())
    at = lying.rindex(b"PK\x01\x02")
    lying[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFF00)
    (tmp_path / "lying.keras").write_bytes(lying)
    refused(lambda: load_model(tmp_path / "lying.keras"), "lying.keras", error=WeightsError)


def layer_config(module: Any, name: str, config: Any = None, registered: str | None = None) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config or {"name": "x"}, "registered_name": registered}


CODE = {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None, "closure": None}}
FORBIDDEN: dict[str, dict[str, Any]] = {
    "Lambda": layer_config("keras.layers", "Lambda", {"name": "x", "function": CODE}),
    "__lambda__": CODE,
    "TorchModuleWrapper": layer_config("keras.layers", "TorchModuleWrapper", {"module": "gASVAAAA"}),
    "TFSMLayer": layer_config("keras.layers", "TFSMLayer", {"filepath": "/etc"}),
    "StringLookup": layer_config("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}),
    "TextVectorization": layer_config("keras.layers", "TextVectorization", {"vocabulary": "/etc/passwd"}),
    "Mine": layer_config(None, "Mine", registered="Custom>Mine"),
    "Custom>Dense": layer_config("keras.layers", "Dense", registered="Custom>Dense"),
    "os.system": layer_config("os", "system"),
    "builtins.function": {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "function"},
    "get_file": layer_config("keras.utils", "get_file"),
    "load_model": layer_config("keras.models", "load_model"),
    "keras_hub.models.Backbone": layer_config("keras_hub.models", "Backbone"),
    "Wrapper": layer_config("keras.layers", "Wrapper"),
    "typespec": {"class_name": "__typespec__", "config": [], "spec_name": "x", "module": "os", "registered_name": "__typespec__"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(FORBIDDEN))
@pytest.mark.parametrize("place", ["layer", "inside a layer", "whole"])
def test_a_configuration_with_anything_but_keras_own_layers_is_refused_by_name(
    name: str, place: str, small: Path, tmp_path: Path
) -> None:
    config, weights = parts_of(small)
    if place == "layer":
        config["config"]["layers"][2] = FORBIDDEN[name] | {"name": "norm", "inbound_nodes": []}
    elif place == "inside a layer":
        config["config"]["layers"][1]["config"]["kernel_initializer"] = FORBIDDEN[name]
    else:
        config = FORBIDDEN[name]
    path = archive(tmp_path / "bad.keras", config, weights)
    refused(lambda: load_model(path), name.removeprefix("__").partition(".")[0].removeprefix("Custom>").removesuffix("__"), "could run code", "sightline.load_model(model)", error=WeightsError)  # fmt: skip


@pytest.mark.parametrize(
    "config", ["", "[]", "{}", "null", "[" * 100_000, '{"class_name": "Functional"}', '{"config": NaN}']
)
def test_a_configuration_that_is_none_is_refused(config: str, small: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "bad.keras", config, parts_of(small)[1])
    refused(lambda: load_model(path), "bad.keras", error=WeightsError)


def test_a_configuration_that_claims_more_than_the_weights_hold_is_refused_before_memory_is_asked_for(
    small: Path, tmp_path: Path
) -> None:
    config, weights = parts_of(small)
    config["config"]["layers"][1]["config"]["filters"] = 10**11
    path = archive(tmp_path / "bad.keras", config, weights)
    refused(lambda: load_model(path), "bad.keras", error=WeightsError)


def test_a_configuration_whose_layers_would_give_more_than_fits_is_refused(tmp_path: Path) -> None:
    picture = keras.Input((SIZE, SIZE, 3))
    x = layers.UpSampling2D(2, name="large")(picture)
    model = keras.Model(picture, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    config, weights = parts_of(saved(model, tmp_path / "good.keras"))
    config["config"]["layers"][1]["config"]["size"] = [10**5, 10**5]
    path = archive(tmp_path / "bad.keras", config, weights)
    refused(lambda: load_model(path), "layer large would give", error=WeightsError)


def test_an_optimiser_and_losses_in_an_archive_are_left_alone(tmp_path: Path) -> None:
    model = functional()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(np.zeros((2, SIZE, SIZE, 3), np.float32), np.array([0, 1]), verbose=0)
    path = saved(model, tmp_path / "trained.keras")
    config, weights = parts_of(path)
    config["compile_config"]["loss"] = FORBIDDEN["os.system"]
    adapter = load_model(archive(tmp_path / "other.keras", config, weights))
    x = inputs()
    found, wanted = (attribute(x, one, target=1, method="hires-cam") for one in (adapter, model))
    assert_close(found, wanted, 1e-5)


def test_an_archive_with_nan_is_refused_with_the_variable_s_name(tmp_path: Path) -> None:
    model = functional()
    model.get_layer("second").bias.assign(np.full(6, np.nan))
    path = saved(model, tmp_path / "bad.keras")
    refused(lambda: load_model(path), "NaN or infinity in second/bias", error=WeightsError)


def test_an_adapter_is_taken_as_it_is() -> None:
    adapter = adapt(functional(), name="mine", labels=["a", "b", "c", "d"], layers=["relu"])
    assert isinstance(adapter, Adapter)
    assert (adapter.name, adapter.layer, adapter.labels) == ("mine", "relu", ("a", "b", "c", "d"))
    assert load_model(adapter) is adapter
