"""A weights file of one's own: its network, classes, names and preprocessing are found, said, and the map is right."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import transforms as T

import sightline
from sightline.cli.doctor import DEMO
from sightline.errors import ModelError, SightlineError, WeightsError
from sightline.models.adapter import Adapter
from sightline.models.fingerprint import recognised
from sightline.models.given import Finding

SMALL = "mobilenetv3_small_050"


def small(classes: int = 3, seed: int = 0) -> nn.Module:
    """A network of timm whose tensors fit no other."""
    torch.manual_seed(seed)
    return timm.create_model(SMALL, num_classes=classes).eval()


def resnet(classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return torchvision.models.resnet18(num_classes=classes).eval()


def finding(adapter: Adapter, what: str) -> Finding:
    (found,) = [one for one in adapter.found if one.what == what]
    return found


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(SightlineError) as caught:
        sightline.load_model(path, **options)
    return str(caught.value)


def logits(adapter: Adapter) -> Tensor:
    width, height = adapter.provenance["preprocessing"]["size"]
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return adapter.logits(adapter.module(x))


def same_scores(adapter: Adapter, model: nn.Module) -> bool:
    width, height = adapter.provenance["preprocessing"]["size"]
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return torch.allclose(logits(adapter), model(x), rtol=1e-4, atol=1e-5)


def grad_cam(model: nn.Module, layer: str, x: Tensor, index: int) -> np.ndarray[Any, Any]:
    """Grad-CAM by hand: one hook, one backward, no sightline."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _args, output: kept.append(output))
    score = model(x)[0, index]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    return (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1).relu()[0].detach().numpy()


# -------------------------------------------------------------------------------------------------- through the commands


def write_bare(model: nn.Module, folder: Path) -> Path:
    save_file(model.state_dict(), folder / "bare.safetensors")
    return folder / "bare.safetensors"


def write_metadata(model: nn.Module, folder: Path) -> Path:
    about = {
        "architecture": f"timm:{SMALL}",
        "class_names": json.dumps(["ant", "bee", "cow"]),
        "preprocessing": json.dumps({"size": [224, 224], "resize": 256, "mean": [0.5] * 3, "std": [0.25] * 3}),
    }
    save_file(model.state_dict(), folder / "told.safetensors", metadata=about)
    return folder / "told.safetensors"


def write_lightning(model: nn.Module, folder: Path) -> Path:
    """As Lightning itself writes it, after one step of training on noise."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        class Task(lightning.LightningModule):
            def __init__(self, architecture: str, classes: list[str]) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.net = model
                self.criterion = nn.CrossEntropyLoss(weight=torch.ones(len(classes)))

            def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
                return self.criterion(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.Adam(self.parameters(), lr=1e-5)

        noise = torch.utils.data.TensorDataset(torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0]))
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(Task(SMALL, ["ant", "bee", "cow"]), torch.utils.data.DataLoader(noise, batch_size=4))
        trainer.save_checkpoint(folder / "last.ckpt")
    model.eval()
    return folder / "last.ckpt"


def write_timm(model: nn.Module, folder: Path) -> Path:
    """As timm's training script lays it: a checkpoint, and its arguments beside it."""
    (folder / "args.yaml").write_text(
        yaml.safe_dump({"model": SMALL, "num_classes": 3, "mean": [0.4] * 3, "std": [0.2] * 3})
    )
    state = {
        "epoch": 3,
        "arch": SMALL,
        "state_dict": model.state_dict(),
        "args": argparse.Namespace(model=SMALL, lr=0.1),
    }
    torch.save(state, folder / "model_best.pth")
    (folder / "classes.txt").write_text("ant\nbee\ncow\n")
    return folder / "model_best.pth"


WRITERS = [write_bare, write_metadata, write_lightning, write_timm]
STATISTICS = {
    "write_bare": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),  # timm's own for this architecture
    "write_metadata": ([0.5] * 3, [0.25] * 3),
    "write_lightning": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "write_timm": ([0.4] * 3, [0.2] * 3),
}


@pytest.mark.parametrize("write", WRITERS)
def test_the_map_of_a_file_is_the_one_made_by_hand_from_the_network_that_was_saved(
    write: Callable[[nn.Module, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sightline.cli import main

    model = small()
    path = write(model, tmp_path)
    out = tmp_path / "out"
    command = ["sightline", "explain", str(DEMO), "--model", str(path), "--target", "1", "-o", str(out), "--json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    line = json.loads(capsys.readouterr().out)
    said = {one["label"] for one in line["predictions"]}
    assert said == ({"class 0", "class 1", "class 2"} if write is write_bare else {"ant", "bee", "cow"})
    mean, std = STATISTICS[write.__name__]
    take = T.Compose(
        [T.Resize(256, T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor(), T.Normalize(mean, std)]
    )
    with Image.open(DEMO) as photo:
        x = take(photo.convert("RGB"))[None]
    layer = line["maps"][0]["layer"]
    expected = grad_cam(model, layer, x, 1)
    (file,) = out.rglob("map.npy")
    found = np.load(file)
    found = found[0] if found.ndim == 3 else found
    assert expected.max() > 0
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_doctor_says_what_was_found_from_where_and_what_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sightline.cli import main

    path = write_bare(small(), tmp_path)
    monkeypatch.setattr("sys.argv", ["sightline", "doctor", "--model", str(path)])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr().out
    assert not end.value.code
    assert f"timm:{SMALL}" in shown
    assert "the names and shapes of its tensors" in shown
    (line,) = [one for one in shown.splitlines() if one.startswith("preprocessing ")]
    assert line.endswith("(guessed)")
    assert "it works, but preprocessing is guessed" in shown
    assert "all is well" not in shown


# ------------------------------------------------------------------------------------------------------- what is found


def test_a_head_of_another_size_is_found_from_the_file(tmp_path: Path) -> None:
    model = small(7)
    adapter = sightline.load_model(write_bare(model, tmp_path))
    assert finding(adapter, "classes").value == "7"
    assert same_scores(adapter, model)
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    named = sightline.load_model(f"timm:{SMALL}", weights=tmp_path / "mine.pt")
    assert same_scores(named, model)


def test_a_number_of_classes_that_is_not_the_files_is_refused_with_both(tmp_path: Path) -> None:
    torch.save(small(2).state_dict(), tmp_path / "two.pt")
    with pytest.raises(WeightsError, match=r"has 2 classes, and --num-classes .* says 5"):
        sightline.load_model(f"timm:{SMALL}", weights=tmp_path / "two.pt", num_classes=5)


def test_what_stands_around_the_network_is_taken_off_and_said(tmp_path: Path) -> None:
    model = small()
    inside = {f"model.module.{name}": one for name, one in model.state_dict().items()}
    torch.save({"state_dict": inside | {"loss.weight": torch.ones(3)}, "epoch": 1}, tmp_path / "wrapped.pt")
    adapter = sightline.load_model(tmp_path / "wrapped.pt")
    assert "model.module" in finding(adapter, "weights").origin
    assert "loss.weight" in finding(adapter, "left out").value
    assert same_scores(adapter, model)
    assert same_scores(sightline.load_model(f"timm:{SMALL}", weights=tmp_path / "wrapped.pt"), model)


def test_two_networks_in_one_file_are_refused_by_name(tmp_path: Path) -> None:
    both = {f"{side}.{name}": one for side in ("student", "teacher") for name, one in small().state_dict().items()}
    torch.save(both, tmp_path / "both.pt")
    message = refused(tmp_path / "both.pt")
    assert "student" in message
    assert "teacher" in message


@pytest.mark.parametrize("head", [nn.Sequential(nn.Dropout(0.3), nn.Linear(512, 4)), nn.Sequential(nn.Linear(512, 4))])
def test_a_head_put_in_by_hand_is_found_and_said_to_be_a_guess(head: nn.Module, tmp_path: Path) -> None:
    model = resnet()
    model.fc = head
    torch.save(model.eval().state_dict(), tmp_path / "head.pt")
    adapter = sightline.load_model(tmp_path / "head.pt")
    assert finding(adapter, "architecture").value == "torchvision:resnet18"
    assert finding(adapter, "head").guessed
    assert any("head" in note for note in adapter.notes)
    assert same_scores(adapter, model)


def test_a_head_of_two_dense_layers_is_refused_because_nothing_tells_what_is_between_them(tmp_path: Path) -> None:
    model = resnet()
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.Tanh(), nn.Linear(8, 4))
    torch.save(model.state_dict(), tmp_path / "two.pt")
    message = refused(tmp_path / "two.pt")
    assert "nothing tells which network" in message
    assert "sightline.adapt(module)" in message
    with pytest.raises(WeightsError, match=r"missing, such as fc\."):
        sightline.load_model("torchvision:resnet18", weights=tmp_path / "two.pt")


def test_architectures_that_would_give_other_scores_are_said(tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "r.pt")
    found = finding(sightline.load_model(tmp_path / "r.pt"), "architecture")
    assert found.value == "torchvision:resnet18"
    assert found.guessed
    assert "timm:resnet18 would give the same scores" in found.origin
    assert "timm:resnetblur18 would fit as well and compute otherwise" in found.origin


def test_networks_of_timm_that_compute_differently_are_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("efficientnet_b0", num_classes=2).state_dict(), tmp_path / "e.pt")
    message = refused(tmp_path / "e.pt")
    assert "timm:efficientnet_b0" in message
    assert "timm:tf_efficientnet_b0" in message
    assert "--weights" in message


def test_a_word_in_the_file_decides_between_networks_that_compute_differently(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_b0", num_classes=2).eval()
    torch.save({"arch": "tf_efficientnet_b0", "state_dict": model.state_dict()}, tmp_path / "e.pt")
    adapter = sightline.load_model(tmp_path / "e.pt")
    assert finding(adapter, "architecture") == Finding("architecture", "timm:tf_efficientnet_b0", "e.pt itself")
    assert same_scores(adapter, model)


def test_a_word_in_the_file_that_its_shapes_contradict_is_not_believed(tmp_path: Path) -> None:
    torch.save({"arch": "resnet50", "state_dict": small().state_dict()}, tmp_path / "lie.pt")
    assert finding(sightline.load_model(tmp_path / "lie.pt"), "architecture").value == f"timm:{SMALL}"


NAMES = {
    "class_names": ["ant", "bee", "cow"],
    "class_to_idx": {"cow": 2, "ant": 0, "bee": 1},
    "id2label": {"0": "ant", "2": "cow", "1": "bee"},
}


@pytest.mark.parametrize("key", sorted(NAMES))
@pytest.mark.parametrize("where", ["inside", "hyper-parameters", "json beside", "text beside"])
def test_class_names_are_found_wherever_they_stand(key: str, where: str, tmp_path: Path) -> None:
    state = {"state_dict": small().state_dict()}
    about: dict[str, Any] = {key: NAMES[key]}
    if where == "inside":
        state |= about
    elif where == "hyper-parameters":
        state["hyper_parameters"] = about
    elif where == "json beside":
        (tmp_path / "m.json").write_text(json.dumps(about))
    else:
        (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    torch.save(state, tmp_path / "m.pt")
    assert sightline.load_model(tmp_path / "m.pt").labels == ("ant", "bee", "cow")


def test_class_names_that_do_not_fit_the_head_are_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    adapter = sightline.load_model(write_bare(small(), tmp_path))
    assert adapter.labels is None
    assert finding(adapter, "left out").value == "2 names in labels.txt"
    assert any("2 names in labels.txt are left out" in note for note in adapter.notes)


def test_what_the_user_says_stands_above_what_the_file_says(tmp_path: Path) -> None:
    path = write_metadata(small(), tmp_path)
    adapter = sightline.load_model(path, labels=["x", "y", "z"], preprocess={"size": 160, "mean": 0.1, "std": 0.2})
    assert adapter.labels == ("x", "y", "z")
    spec = adapter.provenance["preprocessing"]
    assert (spec["size"], spec["mean"], spec["std"]) == ((160, 160), (0.1,) * 3, (0.2,) * 3)
    assert spec["resize"] == math.floor(256 * 160 / 224 + 0.5)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"sise": 3}, "Did you mean 'size'"),
        ({"size": 0}, "expected pixels"),
        ({"size": 1e9}, "expected pixels"),
        ({"mean": "red"}, "one number or three"),
        ({"std": 0}, "one number or three"),
        ({"std": [0.1, 0.2]}, "one number or three"),
        ({"mean": float("nan")}, "one number or three"),
        ({"fit": "squash"}, "expected one of shorter"),
        ({"interpolation": "cubic"}, "bicubic"),
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        sightline.load_model(f"timm:{SMALL}", random_weights=True, preprocess=parts)


def test_nonsense_about_the_preprocessing_in_a_file_is_left_out_and_said(tmp_path: Path) -> None:
    about = {"preprocessing": json.dumps({"size": -3, "mean": "x"})}
    save_file(small().state_dict(), tmp_path / "m.safetensors", metadata=about)
    found = finding(sightline.load_model(tmp_path / "m.safetensors"), "preprocessing")
    assert found.guessed
    assert "is left out" in found.origin


def test_hostile_class_names_are_cut_and_shown_harmless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline.cli import main

    names = ["\x1b[2Jant", "b" * 5000, "<script>alert(1)</script>"]
    torch.save({"model": small().state_dict(), "classes": names}, tmp_path / "m.pt")
    monkeypatch.setattr("sys.argv", ["sightline", "doctor", "--model", str(tmp_path / "m.pt")])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) < 1500
    assert max(map(len, sightline.load_model(tmp_path / "m.pt").labels or ())) == 200


def test_a_checkpoint_of_torchvisions_training_script_is_read_with_its_arguments_as_mere_values(tmp_path: Path) -> None:
    model = small()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 4])
    args = argparse.Namespace(model=SMALL, data_path="x", classes=["ant", "bee", "cow"])
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimiser.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "epoch": 1,
            "args": args,
        },
        tmp_path / "checkpoint.pth",
    )
    adapter = sightline.load_model(tmp_path / "checkpoint.pth")
    assert finding(adapter, "architecture").origin == "checkpoint.pth itself"
    assert adapter.labels == ("ant", "bee", "cow")
    assert argparse.Namespace not in torch.serialization.get_safe_globals(), "what torch trusts was changed for good"


# -------------------------------------------------------------------------------------------------------------- refused


def test_a_network_of_ones_own_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).state_dict(), tmp_path / "own.pt")
    message = refused(tmp_path / "own.pt")
    assert "0.weight" in message
    assert "--model timm:NAME --weights FILE" in message


def test_weights_beside_a_file_that_is_weights_are_refused(tmp_path: Path) -> None:
    path = write_bare(small(), tmp_path)
    assert "is weights itself" in refused(path, weights=path)
    assert "is weights itself" in refused(path, random_weights=True)


def test_nan_in_a_file_is_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    state = small().state_dict()
    state["conv_head.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    assert "NaN or infinity in conv_head.weight" in refused(tmp_path / "nan.pt")


@pytest.mark.parametrize("name", ["gone.pt", "gone.safetensors", "folder/gone.ckpt"])
def test_a_file_that_is_not_there_is_said_to_be_missing(name: str, tmp_path: Path) -> None:
    assert "there is no model file" in refused(tmp_path / name)


def test_a_folder_with_one_weights_file_is_that_file_and_with_several_is_refused(tmp_path: Path) -> None:
    model = small()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert same_scores(sightline.load_model(tmp_path), model)
    torch.save(model.state_dict(), tmp_path / "b.pt")
    message = refused(tmp_path)
    assert "a.pt" in message
    assert "b.pt" in message
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert same_scores(sightline.load_model(tmp_path), model)


def test_an_empty_folder_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    assert "no weights file" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "is no model file" in refused(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18",
        "torchvision:regnet_y_400mf",
        "timm:resnet26d",
        "timm:vit_tiny_patch16_224",
        f"timm:{SMALL}",
    ],
)
def test_the_table_of_fingerprints_knows_what_is_built_today(name: str) -> None:
    source, _, architecture = name.partition(":")
    for classes in (2, 1000):
        if source == "timm":
            model = timm.create_model(architecture, num_classes=classes)
        else:
            model = torchvision.models.get_model(architecture, num_classes=classes)
        assert name in recognised({key: tuple(one.shape) for key, one in model.state_dict().items()})


# ------------------------------------------------------------------------------------------------------------- programs


def exported(model: nn.Module, path: Path) -> Path:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (torch.rand(1, 3, 96, 96),)), path)
    return path


def test_an_exported_program_is_refused_until_it_is_trusted(tmp_path: Path) -> None:
    path = exported(small(), tmp_path / "m.pt2")
    message = refused(path)
    assert "--trust-code" in message
    assert "not opened" in message


def test_a_trusted_program_gives_the_map_made_by_hand(tmp_path: Path) -> None:
    model = small()
    adapter = sightline.load_model(exported(model, tmp_path / "m.pt2"), trust_code=True)
    assert finding(adapter, "preprocessing").guessed
    assert adapter.layer is not None
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(5))
    found = sightline.attribute(x, adapter, target=2)[0].numpy()
    expected = grad_cam(model, adapter.layer, x, 2)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_broken_program_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"nonsense")
    assert "can't be opened as an exported program" in refused(tmp_path / "m.pt2", trust_code=True)


def test_a_program_of_another_input_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    torch.export.save(torch.export.export(model, (torch.rand(1, 4),)), tmp_path / "line.pt2")
    assert "expected one, (B, 3, H, W)" in refused(tmp_path / "line.pt2", trust_code=True)


# --------------------------------------------------------------------------- small files that stand for endless ones


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    with contextlib.suppress(SightlineError):
        act()
    return time.perf_counter() - start


ENDLESS = {
    "aliases": "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    + "preprocessing: {mean: *a8}\n",
    "itself": "config: &a {args: *a}\n",
    "tag": "d: !!bool zz\n",
    "deep": "[" * 20_000,
}


@pytest.mark.parametrize("kind", sorted(ENDLESS))
def test_an_endless_configuration_beside_a_file_is_passed_over(kind: str, tmp_path: Path) -> None:
    path = write_bare(small(), tmp_path)
    (tmp_path / "args.yaml").write_text(ENDLESS[kind])
    start = time.perf_counter()
    assert finding(sightline.load_model(path), "architecture").value == f"timm:{SMALL}"
    assert time.perf_counter() - start < 20


def test_values_that_share_their_parts_without_end_are_passed_over(tmp_path: Path) -> None:
    shared: Any = [1] * 1000
    for _ in range(3):
        shared = [shared] * 1000
    torch.save({"hparams": shared, "state_dict": small().state_dict()}, tmp_path / "m.pt")
    assert seconds(lambda: sightline.load_model(tmp_path / "m.pt")) < 20


def test_many_names_with_many_prefixes_are_refused_soon(tmp_path: Path) -> None:
    save_file({f"a{index}.b.c.d": torch.ones(1) for index in range(15_000)}, tmp_path / "m.safetensors")
    assert seconds(lambda: sightline.load_model(tmp_path / "m.safetensors")) < 20
    assert "nothing tells which network" in refused(tmp_path / "m.safetensors")


def test_a_network_that_keeps_a_version_of_itself_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.mnasnet0_5(num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    assert same_scores(sightline.load_model("torchvision:mnasnet0_5", weights=tmp_path / "m.pt"), model)


def test_what_hangs_on_a_tensor_does_not_stand_before_its_own_methods(tmp_path: Path) -> None:
    model = small()
    model.conv_head.weight.numel = 5  # type: ignore[assignment]
    model.conv_head.weight.isfinite = 7  # type: ignore[assignment]
    torch.save(dict(model.named_parameters()) | dict(model.named_buffers()), tmp_path / "m.pt")
    assert same_scores(sightline.load_model(tmp_path / "m.pt"), small())


def test_what_torch_was_told_to_trust_stays_trusted(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(small().state_dict(), path)
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        sightline.load_model(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_a_link_out_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "outside.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.pt").symlink_to(tmp_path / "outside.pt")
    assert "no weights file" in refused(tmp_path / "folder")


def test_names_are_never_shifted_by_odd_line_ends_nor_doubled(tmp_path: Path) -> None:
    path = write_bare(small(), tmp_path)
    (tmp_path / "classes.txt").write_text("ant\u2028bee\ncow\n")
    assert sightline.load_model(path).labels is None
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "bare.json").write_text(json.dumps({"idx_to_class": {"0": "a", "1": "b", "01": "x", "2": "c"}}))
    assert sightline.load_model(path).labels is None


def test_a_layer_inside_the_network_is_not_taken_for_its_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    moved = {name.replace("blocks.0.mlp.fc1", "zzz.adapter"): one for name, one in state.items()}
    torch.save(moved, tmp_path / "m.pt")
    with pytest.raises(WeightsError, match="missing, such as blocks"):
        sightline.load_model("timm:vit_tiny_patch16_224", weights=tmp_path / "m.pt")


def test_a_checkpoint_under_the_name_of_the_training_scripts_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": small().state_dict(), "arch": SMALL}, tmp_path / "model_best.pth.tar")
    assert same_scores(sightline.load_model(tmp_path / "model_best.pth.tar"), small())


def test_keras_weights_without_a_network_say_how_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "m.weights.h5").write_bytes(b"x")
    assert "--model keras:NAME --weights" in refused(tmp_path / "m.weights.h5")


def test_what_is_only_partly_told_of_the_preprocessing_is_a_guess(tmp_path: Path) -> None:
    about = {"preprocessing": json.dumps({"size": 224, "mean": 0.5, "std": 0.5})}
    save_file(small().state_dict(), tmp_path / "m.safetensors", metadata=about)
    found = finding(sightline.load_model(tmp_path / "m.safetensors"), "preprocessing")
    assert found.guessed
    assert "interpolation" in found.origin
    whole = {"preprocessing": json.dumps({"size": 224, "mean": 0.5, "std": 0.5, "interpolation": "bicubic"})}
    save_file(small().state_dict(), tmp_path / "w.safetensors", metadata=whole)
    assert sightline.load_model(tmp_path / "w.safetensors").notes == ()
