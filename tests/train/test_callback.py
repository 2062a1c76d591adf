"""HeatmapCallback: the film is of the weights after each epoch, and the training neither changes nor ends because of it."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from conftest import ROOT, Regularised, by_autograd, by_oracle
from sightline.errors import ImageError, LayerError, ModelError, OutputError
from sightline.models.view import View
from sightline.train import HeatmapCallback
from sightline.train.film import Frame, border_share, moved

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


class Classifier(pl.LightningModule):
    """As people write them: a network in an attribute, a metric beside it, dropout and statistics in training."""

    def __init__(self, validated: bool = True) -> None:
        super().__init__()
        self.net = Regularised()
        self.accuracy = MulticlassAccuracy(num_classes=5)
        if not validated:
            self.validation_step = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = batch
        out = self(x)
        self.accuracy(out, y)
        self.log("accuracy", self.accuracy)
        return F.cross_entropy(out, y)

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Headless(Classifier):
    """Without a forward of its own."""

    forward = pl.LightningModule.forward  # type: ignore[assignment]

    def training_step(self, batch: Any, _index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))


def prepared(photo: Image.Image) -> tuple[Tensor, View]:
    values = np.asarray(photo.resize((16, 16)), np.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1).clone(), View(photo.size, (16, 16), (0, 0), (16, 16))


def pictures() -> list[tuple[Image.Image, int]]:
    draw = np.random.default_rng(0)
    return [(Image.fromarray(draw.integers(0, 256, (20, 24, 3), np.uint8)), label) for label in (0, 1, 4)]


def batches(shuffle: bool = True) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(3)
    x, y = torch.rand(24, 3, 16, 16, generator=draw), torch.randint(0, 5, (24,), generator=draw)
    return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=shuffle)


def callback(**options: Any) -> HeatmapCallback:
    return HeatmapCallback(pictures(), **({"preprocess": prepared, "layer": "net.relu2"} | options))


def trained(
    folder: Path,
    *callbacks: pl.Callback,
    module: pl.LightningModule | None = None,
    epochs: int = 2,
    resume: Path | None = None,
    **options: Any,
) -> pl.LightningModule:
    pl.seed_everything(7, verbose=False)
    module = module or Classifier()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    own = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=own,
        **(quiet | options),
    )
    trainer.fit(module, batches(), batches(shuffle=False), ckpt_path=resume, weights_only=True if resume else None)
    return module


def epochs_of(frames: tuple[Frame, ...]) -> list[int]:
    return [one.epoch for one in frames]


# ------------------------------------------------------------------------------------------------------------ the film


def oracle(module: Classifier) -> np.ndarray:
    """The maps of the pictures by the weights as they are now."""
    x = torch.stack([prepared(photo)[0] for photo, _ in pictures()])
    true = torch.tensor([label for _, label in pictures()])
    activations, gradients, _ = by_autograd(module.net, "relu2", x, lambda out: out.gather(1, true[:, None])[:, 0])
    return by_oracle("grad-cam", activations, gradients).numpy()


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}, {"val_check_interval": 1}], ids=str)
def test_the_last_frame_is_the_oracles_map_of_the_trained_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    film = callback()
    module = trained(tmp_path, film, **options)
    last = film.frames[-1]
    np.testing.assert_allclose(last.maps, oracle(module), atol=1e-6 * last.maps.max())
    assert last.maps.max() > 0
    assert epochs_of(film.frames) == [0, 1, 2]
    assert math.isnan(film.frames[0].moved)
    assert film.frames[1].moved > 0
    np.testing.assert_allclose(last.moved, np.nanmean(moved(film.frames[1].maps, last.maps)))


@pytest.mark.parametrize("how", ["net", lambda module: module.net], ids=["name", "function"])
def test_a_part_of_the_module_can_be_the_classifier(tmp_path: Path, how: Any) -> None:
    whole, part = callback(), callback(model=how, layer="relu2")
    trained(tmp_path, whole, part)
    for one, other in zip(whole.frames, part.frames, strict=True):
        np.testing.assert_array_equal(one.maps, other.maps)


def test_every_second_epoch_has_a_frame(tmp_path: Path) -> None:
    film = callback(every=2)
    trained(tmp_path, film, epochs=4)
    assert epochs_of(film.frames) == [0, 2, 4]


def test_validating_alone_makes_no_frame(tmp_path: Path) -> None:
    film = callback()
    trainer = pl.Trainer(
        default_root_dir=tmp_path, callbacks=[film], logger=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.validate(Classifier(), batches(shuffle=False), verbose=False)
    assert film.frames == ()


class Outer(Classifier):
    """A LightningModule in a LightningModule, and a method of its own kept as an attribute, on which the way through it leads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Classifier()
        self.way = self.through

    def through(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def forward(self, x: Tensor) -> Tensor:
        self.log("seen", 1.0)
        return self.way(x)


def test_a_module_within_a_module_is_looked_into_and_keeps_its_trainer(tmp_path: Path) -> None:
    film, kept = callback(layer="inner.net.relu2"), []

    class Looking(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            kept.append(pl_module.trainer is pl_module.inner.trainer is trainer)

    module = trained(tmp_path, film, Looking(), module=Outer())
    assert kept == [True, True]
    np.testing.assert_allclose(film.frames[-1].maps, oracle(module.inner), atol=1e-6)


def test_what_hangs_on_the_trainer_is_not_copied(tmp_path: Path) -> None:
    walks = []

    class Pictures(dict):
        """A data set by name, which knows when somebody goes through it."""

        def items(self) -> Any:
            walks.append(1)
            return super().items()

    class Holding(pl.Callback):
        def __init__(self) -> None:
            self.pictures = Pictures(cat=1, dog=2)

    film = callback()
    trained(tmp_path, film, Holding())
    assert epochs_of(film.frames) == [0, 1, 2]
    assert walks == []


@pytest.mark.slow
def test_two_processes_make_one_film(tmp_path: Path) -> None:
    code = (
        "import os, sys, warnings\n"
        "from pathlib import Path\n"
        "warnings.simplefilter('ignore')\n"
        f"sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'tests' / 'train')!r}]\n"
        "import test_callback as made\n"
        f"film = made.callback(output={str(tmp_path / 'film')!r})\n"
        f"made.trained(Path({str(tmp_path)!r}), film, devices=2, strategy='ddp')\n"
        "print('epochs', os.environ.get('LOCAL_RANK', '0'), made.epochs_of(film.frames))\n"
    )
    script = tmp_path / "two.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("epochs")) == [
        "epochs 0 [0, 1, 2]",
        "epochs 1 []",
    ]
    assert sorted(one.name for one in (tmp_path / "film").iterdir()) == ["film.png", "maps.npz"]


# ---------------------------------------------------------------------------------------------------- the training


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"limit_val_batches": 0}], ids=str)
def test_the_training_is_the_same_to_the_bit_with_and_without_it(tmp_path: Path, options: dict[str, Any]) -> None:
    alone = trained(tmp_path, **options)
    shown = trained(tmp_path, callback(output=tmp_path / "film"), **options)
    wanted = alone.state_dict()
    assert wanted.keys() == shown.state_dict().keys()
    for name, value in shown.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    assert [one.training for one in shown.modules()] == [one.training for one in alone.modules()]
    assert (tmp_path / "film" / "film.png").exists()


def test_random_numbers_of_the_preprocessing_are_given_back(tmp_path: Path) -> None:
    def drawing(photo: Image.Image) -> tuple[Tensor, View]:
        torch.rand(3), np.random.rand(3)
        return prepared(photo)

    alone, shown = trained(tmp_path), trained(tmp_path, callback(preprocess=drawing))
    assert all(torch.equal(one, other) for one, other in zip(alone.parameters(), shown.parameters(), strict=True))


def test_diverged_weights_do_not_end_the_training_and_are_said_once(tmp_path: Path) -> None:
    class Diverging(Classifier):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.current_epoch >= 1:
                nn.init.constant_(self.net.conv1.weight, math.nan)

    film = callback(output=tmp_path / "film")
    with pytest.warns(
        UserWarning, match=r"heat maps of epoch 2: NonFiniteError: .*conv1\.weight.* The training goes on"
    ) as said:
        trained(tmp_path, film, module=Diverging(), epochs=4)
    assert len([one for one in said if "heat maps" in str(one.message)]) == 1
    assert epochs_of(film.frames) == [0, 1]


class Failing:
    """A logger whose server goes away after the first frame."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def numbers(self, step: int, _values: Mapping[str, float]) -> None:
        self.seen.append(step)
        if step:
            raise ConnectionError("the server went away")

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self.seen.append(image.width)

    def close(self) -> None:
        self.seen.append(-1)


def test_a_logger_that_fails_does_not_end_the_training_nor_keep_the_film_from_others(tmp_path: Path) -> None:
    bad = Failing()
    film = callback(output=tmp_path / "film", logger=[bad])
    with pytest.warns(UserWarning, match="a logger of the heat maps failed: ConnectionError: the server went away"):
        trained(tmp_path, film)
    assert epochs_of(film.frames) == [0, 1, 2]
    assert bad.seen[0] == 0
    assert bad.seen[-3:] == [3, 6, -1]
    with np.load(tmp_path / "film" / "maps.npz", allow_pickle=False) as found:
        assert found["epochs"].tolist() == [0, 1, 2]


def test_a_folder_that_vanishes_does_not_end_the_training(tmp_path: Path) -> None:
    folder = tmp_path / "film"

    class Vandal(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            for one in folder.iterdir() if folder.is_dir() else ():
                one.unlink()
            if folder.is_dir():
                folder.rmdir()
                folder.write_text("a file now")

    film = callback(output=folder)
    with pytest.warns(UserWarning, match=r"OutputError: .*film.* can't be written"):
        trained(tmp_path, film, Vandal())
    assert epochs_of(film.frames) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"layer": "net.relu9"}, LayerError, "has no layer 'net.relu9'"),
        ({"model": "network"}, LayerError, "Classifier has no layer 'network'"),
        ({"preprocess": None}, ModelError, "preprocess=function"),
        ({"output": "/dev/null/film"}, OutputError, "can't be written"),
    ],
)
def test_what_is_wrong_from_the_beginning_stops_the_training_before_it_begins(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    module = Classifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(error, match=text):
        trained(tmp_path, callback(**options), module=module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_missing_picture_stops_the_training_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        trained(tmp_path, HeatmapCallback([tmp_path / "gone.jpg"], preprocess=prepared))


def test_a_module_without_a_forward_is_told_to_name_the_classifier(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Headless has no forward.*It has: 'net', 'accuracy'"):
        trained(tmp_path, callback(), module=Headless())
    film = callback(model="net", layer="relu2")
    trained(tmp_path, film, module=Headless())
    assert epochs_of(film.frames) == [0, 1, 2]


@pytest.mark.parametrize("wrong", [3, Regularised()], ids=["number", "module"])
def test_a_module_given_as_the_model_is_refused(wrong: Any) -> None:
    with pytest.raises(ModelError, match="expected the name of a part"):
        callback(model=wrong)


@pytest.mark.parametrize("every", [0, 1.5, True, -1])
def test_every_is_a_whole_number_of_epochs(every: Any) -> None:
    with pytest.raises(ModelError, match="expected a whole number of epochs"):
        callback(every=every)


# -------------------------------------------------------------------------------------------------- where it goes


def test_the_means_are_in_the_trainers_own_log(tmp_path: Path) -> None:
    film = callback()
    log = CSVLogger(tmp_path, name="log")
    trained(tmp_path, film, logger=log)
    with open(Path(log.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("heatmap/border")]
    assert [int(row["step"]) for row in rows] == [0, 3, 6]
    assert [float(row["heatmap/border"]) for row in rows] == pytest.approx([one.border for one in film.frames])
    assert rows[0]["heatmap/moved"] == ""
    assert [float(row["heatmap/moved"]) for row in rows[1:]] == pytest.approx([one.moved for one in film.frames[1:]])


def test_the_folder_holds_the_film_and_the_raw_maps(tmp_path: Path) -> None:
    film = callback(output=tmp_path / "new" / "film", labels=list("abcde"))
    trained(tmp_path, film)
    assert sorted(one.name for one in (tmp_path / "new" / "film").iterdir()) == ["film.png", "maps.npz"]
    with Image.open(tmp_path / "new" / "film" / "film.png") as drawn:
        assert drawn.width > 700
    with np.load(tmp_path / "new" / "film" / "maps.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["maps"], np.stack([one.maps for one in film.frames]))
        np.testing.assert_allclose(found["border"][1], np.nanmean(border_share(found["maps"][1])))


# ------------------------------------------------------------------------------------------------------- resuming


def test_a_resumed_training_continues_the_film(tmp_path: Path) -> None:
    whole = callback()
    trained(tmp_path, whole, ModelCheckpoint(tmp_path / "all", save_top_k=-1, filename="{epoch}"), epochs=4)
    resumed = callback()
    trained(
        tmp_path,
        resumed,
        ModelCheckpoint(tmp_path / "all", save_top_k=-1, filename="{epoch}"),
        epochs=4,
        resume=tmp_path / "all" / "epoch=1.ckpt",
    )
    assert epochs_of(resumed.frames) == [0, 1, 2, 3, 4]
    for one, other in zip(whole.frames[:3], resumed.frames[:3], strict=True):
        np.testing.assert_array_equal(one.maps, other.maps)
        np.testing.assert_array_equal(one.predicted, other.predicted)
        np.testing.assert_array_equal([one.border, one.moved], [other.border, other.moved])
    assert resumed.frames[3].moved > 0


def test_the_film_in_a_checkpoint_is_plain_tensors_and_numbers(tmp_path: Path) -> None:
    film = callback()
    trained(tmp_path, film)
    torch.save(film.state_dict(), tmp_path / "state.pt")
    again = callback()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert epochs_of(again.frames) == [0, 1, 2]
    again.load_state_dict(callback().state_dict())  # of a checkpoint that knows of no film
    assert epochs_of(again.frames) == [0, 1, 2]


def test_a_film_of_other_pictures_begins_anew_and_says_so(tmp_path: Path) -> None:
    trained(tmp_path, callback(), ModelCheckpoint(tmp_path / "all", save_top_k=-1, filename="{epoch}"), epochs=2)
    film = HeatmapCallback(pictures()[:2], preprocess=prepared, layer="net.relu2")
    with pytest.warns(UserWarning, match="it begins anew"):
        trained(
            tmp_path,
            film,
            ModelCheckpoint(tmp_path / "all", save_top_k=-1, filename="{epoch}"),
            epochs=3,
            resume=tmp_path / "all" / "epoch=1.ckpt",
        )
    assert epochs_of(film.frames)[-1] == 3
    assert 1 not in epochs_of(film.frames)


def test_a_second_training_with_the_same_callback_has_a_film_of_its_own(tmp_path: Path) -> None:
    film = callback()
    trained(tmp_path, film)
    trained(tmp_path, film, epochs=1)
    assert epochs_of(film.frames) == [0, 1]


# ------------------------------------------------------------------------------------------------------- importing


def in_a_fresh_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_lightning_nor_keras() -> None:
    heavy = ["torch", "lightning", "keras", "numpy", "PIL"]
    code = f"import sys, sightline.train; print([name for name in {heavy} if name in sys.modules])"
    assert in_a_fresh_process(code) == "[]"


def test_without_lightning_the_command_that_installs_it_is_said() -> None:
    code = (
        "import importlib.util as u, importlib\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'lightning' else real(name, *rest)\n"
        "from sightline.errors import MissingExtraError\n"
        "try:\n    from sightline.train import HeatmapCallback\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    assert in_a_fresh_process(code).endswith("pip install 'sightline[train]'")
