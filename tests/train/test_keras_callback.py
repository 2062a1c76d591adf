"""KerasHeatmapCallback: the film is of the weights after each epoch, and the training neither changes nor ends because of it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
import torch
from keras import layers
from PIL import Image

from oracles import ORACLES
from sightline.errors import ImageError, LayerError
from sightline.train import KerasHeatmapCallback

# Keras' own way from its variables to numpy, while it trains.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE = 32


def network() -> Any:
    """Scaling, statistics and dropout in it, and a softmax at its end."""
    keras.utils.set_random_seed(5)
    picture = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 255)(picture)
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="first")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="last")(x)
    x = layers.Dropout(0.3)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(picture, layers.Dense(3, activation="softmax", name="head")(x))
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy")
    return model


def pictures() -> list[tuple[Image.Image, int]]:
    draw = np.random.default_rng(0)
    return [(Image.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), np.uint8)), label) for label in (0, 1, 2)]


def trained(*callbacks: Any, model: Any = None, epochs: int = 2, **options: Any) -> tuple[Any, Any]:
    model = model or network()
    draw = np.random.default_rng(1)
    x, y = draw.random((24, SIZE, SIZE, 3)) * 255, draw.integers(0, 3, 24)
    keras.utils.set_random_seed(6)
    told = model.fit(x, y, epochs=epochs, batch_size=8, callbacks=list(callbacks), verbose=0, **options)
    return model, told.history


def test_the_last_frame_is_the_oracles_map_of_the_trained_weights() -> None:
    film = KerasHeatmapCallback(pictures(), layer="last")
    model, history = trained(film)
    split = keras.Model(model.inputs, model.get_layer("last").output)
    x = torch.from_numpy(np.stack([np.asarray(photo, np.float32) for photo, _ in pictures()]))
    grid = split(x, training=False).detach()
    kernel = model.get_layer("head").kernel.value.detach()
    cells = grid.shape[1] * grid.shape[2]
    last = film.frames[-1]
    for at, (_, label) in enumerate(pictures()):
        activations = grid[at].permute(2, 0, 1).double().numpy()
        # The logit is linear in the layer's average, so that every place of a channel has one and the same gradient.
        gradients = np.broadcast_to((kernel[:, label] / cells).double().numpy()[:, None, None], activations.shape)
        np.testing.assert_allclose(last.maps[at], ORACLES["grad-cam"](activations, gradients), atol=1e-6)
    assert last.maps.max() > 0
    said = model(x, training=False).detach().numpy()
    np.testing.assert_allclose(
        last.probability, [said[at, label] for at, (_, label) in enumerate(pictures())], atol=1e-5
    )
    assert [one.epoch for one in film.frames] == [0, 1, 2]
    assert history["heatmap_border"] == [one.border for one in film.frames[1:]]
    assert history["heatmap_moved"] == [one.moved for one in film.frames[1:]]


def test_the_training_is_the_same_to_the_bit_with_and_without_it(tmp_path: Path) -> None:
    alone, plain = trained()
    shown, history = trained(KerasHeatmapCallback(pictures(), output=tmp_path))
    assert history["loss"] == plain["loss"]
    for one, other in zip(shown.weights, alone.weights, strict=True):
        assert torch.equal(one.value, other.value), one.path
    assert sorted(one.name for one in tmp_path.iterdir()) == ["film.png", "maps.npz"]


def test_diverged_weights_do_not_end_the_training_and_are_said_once() -> None:
    class Diverging(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if int(self.model.optimizer.iterations.value) >= 4:
                self.model.get_layer("head").bias.value.data.fill_(math.nan)

    film = KerasHeatmapCallback(pictures(), layer="last")
    with pytest.warns(UserWarning, match="heat maps of epoch 2: NonFiniteError: .* The training goes on") as said:
        _, history = trained(film, Diverging(), epochs=3)
    assert len([one for one in said if "heat maps" in str(one.message)]) == 1
    assert len(history["loss"]) == 3
    assert [one.epoch for one in film.frames] == [0, 1]


@pytest.mark.parametrize(
    ("options", "error"), [({"layer": "lost"}, LayerError), ({"pictures": ["gone.jpg"]}, ImageError)], ids=str
)
def test_what_is_wrong_from_the_beginning_stops_the_training_before_it_begins(
    options: dict[str, Any], error: type[Exception]
) -> None:
    model = network()
    before = [one.value.detach().clone() for one in model.weights]
    with pytest.raises(error):
        trained(KerasHeatmapCallback(**({"pictures": pictures()} | options)), model=model)
    for one, other in zip(model.weights, before, strict=True):
        assert torch.equal(one.value, other)


def test_a_training_that_goes_on_has_one_film() -> None:
    film = KerasHeatmapCallback(pictures(), layer="last")
    model, _ = trained(film)
    trained(film, model=model, epochs=4, initial_epoch=2)
    assert [one.epoch for one in film.frames] == [0, 1, 2, 3, 4]
    trained(film, model=model, epochs=1)
    assert [one.epoch for one in film.frames] == [0, 1]


def test_a_model_that_is_not_built_yet_is_shown_all_the_same() -> None:
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [layers.Conv2D(4, 3, activation="relu", name="only"), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    film = KerasHeatmapCallback(pictures(), preprocess={"size": SIZE, "mean": 0.0, "std": 1 / 255})
    trained(film, model=model, epochs=1)
    assert [one.epoch for one in film.frames] == [0, 1]
