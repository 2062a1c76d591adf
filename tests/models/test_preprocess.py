"""Preprocessing: to the bit what the weights' own transforms do, and the user's own measured or refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from sightline.errors import ImageError, ModelError
from sightline.models import timm, torchvision
from sightline.models.given import Given
from sightline.models.preprocess import measured, standard
from sightline.models.view import View

SIZES = [(451, 300), (301, 333), (223, 517), (97, 61), (224, 224), (231, 232), (641, 427)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@cache
def photograph(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Noise over a slope: every pixel counts."""
    noise = np.random.default_rng(size[0]).integers(0, 200, (size[1], size[0], 3), dtype=np.uint8)
    slope = np.linspace(0, 55, size[0]).astype(np.uint8)[None, :, None]
    return Image.fromarray(noise + slope).convert(mode)


def presets() -> dict[str, Any]:
    """One of each kind of evaluation transform that torchvision's classifiers come with, by the first name with it."""
    found: dict[Any, tuple[str, Any]] = {}
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            transform = weights.transforms()
            kind = (
                *transform.crop_size,
                *transform.resize_size,
                transform.interpolation,
                *transform.mean,
                *transform.std,
            )
            found.setdefault(kind, (str(weights), transform))
    return dict(found.values())


PRESETS = presets()


def assert_identical(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    difference = (found - wanted).abs()
    assert torch.equal(found, wanted), (
        f"{int((difference > 0).sum())} values differ, by up to {float(difference.max())}"
    )


# ---------------------------------------------------------------------------------------------------------- torchvision


def test_the_well_known_presets_are_among_those_compared() -> None:
    sides = {(one.crop_size[0], one.resize_size[0], one.interpolation.value) for one in PRESETS.values()}
    assert {(224, 256, "bilinear"), (224, 232, "bilinear"), (299, 342, "bilinear"), (224, 256, "bicubic")} <= sides


@pytest.mark.parametrize("weights", PRESETS)
def test_standard_is_torchvisions_transform_to_the_bit(weights: str) -> None:
    transform = PRESETS[weights]
    side = transform.crop_size[0]
    take = standard(
        (side, side),
        transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=transform.mean,
        std=transform.std,
    )
    for size in SIZES[:5]:
        assert_identical(take(photograph(size))[0], transform(photograph(size)))


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenet_v3_small", "mobilenet_v2", "inception_v3", "efficientnet_b0", "squeezenet1_1"]
)
def test_a_torchvision_model_comes_with_its_newest_weights_own_transform(name: str) -> None:
    transform = models.get_model_weights(name).DEFAULT.transforms()
    adapter = torchvision.build(name, Given(random_weights=True))
    for size in SIZES[:4]:
        x, view = adapter.preprocess(photograph(size))
        assert_identical(x, transform(photograph(size)))
        assert view.photo == size
        assert view.input == (x.shape[2], x.shape[1])


@pytest.mark.parametrize("size", [(30, 40), (500, 20), (3, 3), (1, 1), (1, 300)])
def test_a_photograph_smaller_than_the_crop_is_padded_as_torchvision_pads(size: tuple[int, int]) -> None:
    transform = ImageClassification(crop_size=64, resize_size=48, mean=MEAN, std=STD)
    take = standard((64, 64), 48, mean=MEAN, std=STD)
    assert_identical(take(photograph(size))[0], transform(photograph(size)))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "CMYK"])
def test_the_photograph_itself_is_not_changed(mode: str) -> None:
    photo = photograph((97, 61), mode).copy()
    before = photo.tobytes()
    x, _ = standard((64, 64), 72, mean=MEAN, std=STD)(photo)
    assert x.shape == (3, 64, 64)
    assert (photo.mode, photo.tobytes()) == (mode, before)


# ----------------------------------------------------------------------------------------------------------------- timm


def timm_pair(
    mode: str, crop: float, interpolation: str, size: tuple[int, int]
) -> tuple[Callable[[Image.Image], Any], Callable[[Image.Image], Any]]:
    """(ours, timm's own) for one configuration; the size is (height, width)."""
    from timm.data import create_transform
    from timm.data.config import resolve_model_data_config

    module = nn.Identity()
    module.pretrained_cfg = {
        "input_size": (3, *size),
        "crop_pct": crop,
        "crop_mode": mode,
        "interpolation": interpolation,
        "mean": MEAN,
        "std": STD,
    }
    return standard(**(spec := timm.preprocessing(module)), fill=spec["mean"]), create_transform(
        **resolve_model_data_config(module)
    )


@pytest.mark.parametrize("photo", SIZES)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_standard_is_timms_transform_to_the_bit(mode: str, photo: tuple[int, int]) -> None:
    for crop, interpolation, side in itertools.product((0.875, 0.9, 0.95, 1.0), ("bicubic", "bilinear"), (224, 160)):
        ours, theirs = timm_pair(mode, crop, interpolation, (side, side))
        assert_identical(ours(photograph(photo))[0], theirs(photograph(photo)))


@pytest.mark.parametrize("photo", SIZES)
@pytest.mark.parametrize("mode", ["squash", "border"])
def test_a_timm_model_for_oblong_pictures_gets_timms_transform_to_the_bit(mode: str, photo: tuple[int, int]) -> None:
    for crop in (0.875, 1.0):
        ours, theirs = timm_pair(mode, crop, "bicubic", (96, 160))
        x, view = ours(photograph(photo))
        assert_identical(x, theirs(photograph(photo)))
        assert view.input == (160, 96)


def test_a_timm_model_whose_cropping_is_not_supported_is_refused() -> None:
    with pytest.raises(ModelError, match="160 x 96"):
        timm_pair("center", 0.9, "bicubic", (96, 160))


def test_the_bundled_models_transform_is_timms_to_the_bit() -> None:
    from timm.data import create_transform
    from timm.data.config import resolve_model_data_config

    module = timm.architecture("tf_efficientnet_lite0")
    ours, theirs = (
        standard(**(spec := timm.preprocessing(module)), fill=spec["mean"]),
        create_transform(**resolve_model_data_config(module)),
    )
    for size in SIZES:
        assert_identical(ours(photograph(size))[0], theirs(photograph(size)))


def test_padding_has_the_given_colour() -> None:
    x, view = standard((40, 40), 40, fit="longer", mean=(0, 0, 0), std=(1, 1, 1), fill=(1.0, 0.0, 0.2))(
        Image.new("RGB", (80, 40))
    )
    assert x[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert view.seen() == (0, 0, 80, 40)


@pytest.mark.parametrize("photo", [(80, 81), (81, 80)])
def test_a_single_row_or_column_of_padding_has_the_given_colour_too(photo: tuple[int, int]) -> None:
    x, _ = standard((64, 64), 64, fit="longer", mean=(0, 0, 0), std=(1, 1, 1), fill=(1.0, 1.0, 1.0))(
        Image.new("RGB", photo, (255, 255, 255))
    )
    assert x.min() == 1


# ------------------------------------------------------------------------------------------------------- the user's own


def of_standard(**given: Any) -> Callable[[Image.Image], View]:
    take = standard(**given, mean=MEAN, std=STD)
    return lambda photo: take(photo)[1]


def of_centre_crop(side: int) -> Callable[[Image.Image], View]:
    def view(photo: Image.Image) -> View:
        offset = tuple(
            round((one - side) / 2.0) if one >= side else -((side - one) // 2) for one in (photo.width, photo.height)
        )
        return View(photo.size, photo.size, offset, (side, side))

    return view


BICUBIC, NEAREST = InterpolationMode.BICUBIC, InterpolationMode.NEAREST
TAIL = [T.ToTensor(), T.Normalize(MEAN, STD)]
KINDS: dict[str, tuple[list[Any], Callable[[Image.Image], View]]] = {
    "256, crop 224": ([T.Resize(256), T.CenterCrop(224), *TAIL], of_standard(size=(224, 224), resize=256)),
    "232, crop 224": ([T.Resize(232), T.CenterCrop(224), *TAIL], of_standard(size=(224, 224), resize=232)),
    "bicubic": ([T.Resize(256, BICUBIC), T.CenterCrop(224), *TAIL], of_standard(size=(224, 224), resize=256)),
    "nearest": ([T.Resize(80, NEAREST), T.CenterCrop(64), *TAIL], of_standard(size=(64, 64), resize=80)),
    "squash": ([T.Resize((224, 224)), *TAIL], of_standard(size=(224, 224), resize=224, fit="exact")),
    "squash, small": ([T.Resize((64, 64)), *TAIL], of_standard(size=(64, 64), resize=64, fit="exact")),
    "squash, oblong": ([T.Resize((96, 160)), *TAIL], of_standard(size=(160, 96), resize=(160, 96), fit="exact")),
    "grey": (
        [T.Resize((96, 96)), T.Grayscale(3), *TAIL],
        of_standard(size=(96, 96), resize=96, fit="exact"),
    ),
    "one channel": (
        [T.Resize((96, 96)), T.Grayscale(1), T.ToTensor()],
        of_standard(size=(96, 96), resize=96, fit="exact"),
    ),
    "inverted": (
        [T.Resize((96, 96)), T.ToTensor(), T.Lambda(lambda x: 1 - x)],
        of_standard(size=(96, 96), resize=96, fit="exact"),
    ),
    "pad": ([T.Resize(48), T.CenterCrop(64), *TAIL], of_standard(size=(64, 64), resize=48)),
    "crop only": ([T.CenterCrop(160), *TAIL], of_centre_crop(160)),
}
PHOTOGRAPHS = [(60, 60), (97, 61), (64, 200), (451, 300), (800, 965), (2000, 500), (4272, 2848)]


@pytest.mark.parametrize("size", PHOTOGRAPHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_measured_view_lies_within_one_pixel_of_the_exact_one(kind: str, size: tuple[int, int]) -> None:
    """One pixel of the input, or of the photograph where those are larger."""
    transform, exact = T.Compose(KINDS[kind][0]), KINDS[kind][1](Image.new("RGB", size))
    _, found = measured(transform)(Image.new("RGB", size, (90, 120, 60)))
    assert found.photo == exact.photo
    assert found.input == exact.input
    for axis in (0, 1):
        scale = exact.photo[axis] / exact.resized[axis]
        for end in (0, exact.input[axis]):
            wanted = (exact.offset[axis] + end) * scale
            at = (found.offset[axis] + end) * found.photo[axis] / found.resized[axis]
            assert abs(at - wanted) <= max(1.0, scale), f"{'xy'[axis]}: {at:.2f} instead of {wanted:.2f}"


def test_a_function_that_returns_its_view_is_taken_at_its_word() -> None:
    view = View((97, 61), (97, 61), (0, 0), (64, 64))
    calls = []

    def function(photo: Image.Image) -> tuple[Tensor, View]:
        calls.append(photo.size)
        return torch.zeros(3, 64, 64), view

    assert measured(function)(photograph((97, 61)))[1] is view
    assert len(calls) == 1


def test_a_batch_of_one_is_taken_as_one_picture() -> None:
    transform = T.Compose([T.Resize((64, 64)), T.ToTensor(), T.Lambda(lambda x: x[None])])
    x, view = measured(transform)(photograph((97, 61)))
    assert x.shape == (3, 64, 64)
    assert view.input == (64, 64)


def test_one_size_is_measured_once() -> None:
    calls = []

    def function(photo: Image.Image) -> Tensor:
        calls.append(photo.size)
        return T.Compose([T.Resize((64, 64)), T.ToTensor()])(photo)

    take = measured(function)
    take(photograph((97, 61)))
    before = len(calls)
    take(photograph((97, 61)))
    assert len(calls) == before + 1


HEAD = [T.Resize(72), T.CenterCrop(64)]
BENDING: dict[str, Any] = {
    "mirror": T.RandomHorizontalFlip(1.0),
    "upside down": T.RandomVerticalFlip(1.0),
    "quarter turn": T.RandomRotation((90, 90)),
    "half turn": T.RandomRotation((180, 180)),
    "three quarters": T.RandomRotation((270, 270)),
    "a few degrees": T.RandomRotation((5, 5)),
    "shear": T.RandomAffine((0, 0), shear=(10, 10)),
    "transpose": T.Lambda(lambda photo: photo.transpose(Image.Transpose.TRANSPOSE)),
    "two halves exchanged": T.Lambda(lambda photo: Image.fromarray(np.roll(np.asarray(photo), 30, axis=1))),
    "bent": T.Lambda(lambda photo: photo.transform(photo.size, Image.Transform.QUAD, (0, 0, 0, 64, 64, 44, 64, 20))),
}


@pytest.mark.parametrize("size", [(97, 75), (451, 300), (1800, 1200)])
@pytest.mark.parametrize("kind", BENDING)
def test_what_turns_mirrors_or_bends_the_picture_is_refused(kind: str, size: tuple[int, int]) -> None:
    transform = T.Compose([*HEAD, BENDING[kind], *TAIL])
    with pytest.raises(ModelError, match="resize, crop and pad"):
        measured(transform)(Image.new("RGB", size))


RANDOM: dict[str, list[Any]] = {
    "crop": [*HEAD, T.RandomCrop(48), *TAIL],
    "resized crop": [T.RandomResizedCrop(48), *TAIL],
    "rotation": [*HEAD, T.RandomRotation(30), *TAIL],
    "shift": [*HEAD, T.RandomAffine(0, translate=(0.2, 0.2)), *TAIL],
    "colours": [*HEAD, T.ColorJitter(0.5), *TAIL],
    "noise": [*HEAD, *TAIL, T.Lambda(lambda x: x + 0.01 * torch.randn_like(x))],
    "mirror": [*HEAD, T.RandomHorizontalFlip(), *TAIL],
    "upside down": [*HEAD, T.RandomVerticalFlip(), *TAIL],
    "perspective": [*HEAD, T.RandomPerspective(), *TAIL],
}


@pytest.mark.parametrize("kind", RANDOM)
def test_what_draws_at_random_is_refused_whatever_is_drawn(kind: str) -> None:
    """Twenty beginnings; a flip that is accepted once would lay later maps on the wrong side."""
    accepted = []
    for seed in range(20):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                measured(T.Compose(RANDOM[kind]))(Image.new("RGB", (97, 75)))
            except ModelError:
                continue
            accepted.append(seed)
    assert not accepted, f"accepted with {len(accepted)} of 20 seeds"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda photo: np.asarray(photo), "ndarray"),
        (lambda photo: photo, "Image"),
        (lambda photo: None, "NoneType"),
        (lambda photo: T.PILToTensor()(photo), "uint8"),
        (lambda photo: T.ToTensor()(photo)[0], "expected a float tensor"),
        (lambda photo: torch.stack([T.ToTensor()(photo)] * 5), "expected a float tensor"),
        (lambda photo: torch.zeros(3, 64, 64), "does not look at the picture"),
    ],
    ids=["array", "photograph", "nothing", "bytes", "no channels", "five crops", "constant"],
)
def test_what_gives_no_picture_for_a_model_is_refused_and_named(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        measured(function)(photograph((97, 61)))


@pytest.mark.parametrize("size", [(15, 300), (1, 1), (300, 3)])
def test_a_picture_too_small_to_measure_on_is_refused_as_a_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]}"):
        measured(T.Compose([T.Resize((64, 64)), T.ToTensor()]))(Image.new("RGB", size))


def test_channels_and_the_corner_of_the_crop_are_as_told() -> None:
    picture = photograph((53, 47))
    common: dict[str, Any] = {"size": (20, 20), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    rgb, view = standard(**common, resize=35)(picture)
    other = {"mean": common["mean"][::-1], "std": common["std"][::-1], "channels": "bgr"}
    bgr, same = standard(**common | other, resize=35)(picture)
    assert torch.equal(bgr, rgb.flip(0))
    _, down = standard(**common, resize=35, rounding="down")(picture)
    assert view.resized == down.resized == (39, 35)
    assert view.offset == same.offset == (10, 8)  # of 9.5 and 7.5
    assert down.offset == (9, 7)
