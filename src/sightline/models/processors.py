"""The image processors of transformers as arguments of `preprocess.standard`, checked against transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from sightline.errors import ImageError, ModelError, did_you_mean
from sightline.models.folders import check_numbers
from sightline.models.patches import GRID, LARGEST_CUT, SIZES, patches_of
from sightline.models.preprocess import Preprocess, measured, specified

FILE = "preprocessor_config.json"
LARGEST = 2048  # pixels of a side that a file may ask for
MOST_PLACES = 20_000  # tokens that a file may ask to stand for one picture
_THIN = 64  # times longer than wide: a picture that would fill the memory where only its shorter side is set
# Pixels of what is cut into patches: what a file may let a photograph keep, and what it may ask a small one to be enlarged to.
_LARGEST_AREA, _LEAST_AREA = 4096**2, 1024**2
_SERVICE = ("device", "return_tensors", "data_format", "input_data_format", "disable_grouping")
_INSTEAD = "Give your own: preprocess={'size': ..., 'mean': ..., 'std': ...}"
# How a processor names its input's geometry: arguments of `standard`, or None where that can't say it.
Rule = Callable[[Any], dict[str, Any] | None]


def processor_of(
    said: Mapping[str, Any], model_type: str, families: Iterable[str] = ()
) -> tuple[Preprocess | None, dict[str, Any], str]:
    """The preprocessing that a preprocessor_config.json asks for.

    Args:
        said: what is in the file.
        model_type: of config.json, where the file doesn't name its processor.
        families: model types whose processors may be named beside those of classifiers.

    Returns:
        The function where `standard` can't do it, or None; the specification; and the processor's name.

    Raises:
        ModelError: an unknown processor, or one that makes something else than pictures.
    """
    return of_processor(made_processor(said, model_type, families))


def of_processor(processor: Any) -> tuple[Preprocess | None, dict[str, Any], str]:
    """The same of an image processor of transformers that is there already."""
    name = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    try:
        spec = _specification(name, processor)
    except ModelError:
        raise
    except Exception as error:  # it may hold anything
        raise ModelError(f"{FILE} makes no {name}: {str(error)[:300]}") from error
    if spec is not None:
        take, spec = specified(spec)
        if max(spec["size"]) <= LARGEST and _agree(take, processor):
            return None, spec, name
    return *_as_it_is(processor, name), name


def taken(processor: Any) -> Preprocess:
    """The preprocessing of an image processor that is there already, as a function."""
    take, spec, _ = of_processor(processor)
    return specified(spec)[0] if take is None else take


def made_processor(said: Mapping[str, Any], model_type: str, families: Iterable[str] = ()) -> Any:
    """transformers' own image processor with the settings of a file; see `processor_of`."""
    kind = _class(said, model_type, families)
    known = set(kind.valid_kwargs.__annotations__).difference(_SERVICE)
    # Of a processor that cuts pictures into patches the sizes are areas, whatever the file of another says.
    cuts = known.issuperset(SIZES)
    areas = ("size", "min_pixels", "max_pixels") if cuts else ()
    for part, most in zip(SIZES if cuts else (), LARGEST_CUT, strict=False):
        check_numbers({part: said.get(part)}, most, FILE)
    check_numbers({part: one for part, one in said.items() if part not in ("image_seq_length", *areas)}, LARGEST, FILE)
    check_numbers({part: said.get(part) for part in areas}, _LARGEST_AREA, FILE)
    size = said.get("size") if areas else None
    least = size.get("shortest_edge") if isinstance(size, Mapping) else None
    check_numbers({"min_pixels": said.get("min_pixels"), "shortest_edge": least}, _LEAST_AREA, FILE)
    check_numbers({"image_seq_length": said.get("image_seq_length")}, MOST_PLACES, FILE)
    share = said.get("crop_pct") or 1
    if not isinstance(share, int | float) or not 0.1 <= share <= 1:
        raise ModelError(f"{FILE} says 'crop_pct': {share!r:.80}; expected a share from 0.1 to 1")
    try:
        processor = kind(**{part: value for part, value in said.items() if part in known})
    except Exception as error:  # it may hold anything
        raise ModelError(f"{FILE} makes no {kind.__name__.removesuffix('Pil')}: {str(error)[:300]}") from error
    if isinstance(said.get("image_seq_length"), int):  # what PaliGemma's text leaves for a picture
        processor.image_seq_length = said["image_seq_length"]
    return processor


def _class(said: Mapping[str, Any], model_type: str, families: Iterable[str]) -> Any:
    """The processor's class, of Pillow where there is one: an old name, a new one, or the usual one of the model."""
    from transformers.models.auto import image_processing_auto
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    mapping: Any = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
    known = [*MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, *families]
    backends = [one for kind in known if (one := mapping.get(kind))]
    names = {one.removesuffix("Pil"): None for backend in backends for one in backend.values() if one}
    usual = next((one for one in mapping.get(model_type, {}).values() if one), "")
    asked = str(said.get("image_processor_type") or said.get("feature_extractor_type") or usual)[:80]
    name = asked.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name not in names:
        raise ModelError(
            f"{FILE} asks for {asked!r}, which is no image processor of such models in transformers.{did_you_mean(name, names)} "
            f"Code of a repository isn't run. {_INSTEAD}"
        )
    pil = any(f"{name}Pil" in backend.values() for backend in backends)
    return image_processing_auto.get_image_processor_class_from_name(f"{name}Pil" if pil else name)


def _specification(name: str, processor: Any) -> dict[str, Any] | None:
    if not processor.do_resize or getattr(processor, "do_pad", None) or processor.size is None:
        return None
    geometry = _RULES.get(name, _plain)(processor)
    if geometry is None:
        return None
    return {
        **geometry,
        "interpolation": Image.Resampling(processor.resample).name.lower(),
        **_scale(processor),
        "rounding": "down",
        "channels": "bgr" if getattr(processor, "do_flip_channel_order", False) else "rgb",
    }


def _plain(processor: Any) -> dict[str, Any] | None:
    """To a width and height, or by the shorter side; then a centre crop."""
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    if size.height and size.width:
        return _exact(size) | ({} if crop is None else _cropped(crop))
    if size.shortest_edge and not size.longest_edge and crop is not None:
        return {**_cropped(crop), "resize": size.shortest_edge, "fit": "shorter"}
    return None


def _exact(size: Any) -> dict[str, Any]:
    return {"size": (size.width, size.height), "resize": (size.width, size.height), "fit": "exact"}


def _cropped(size: Any) -> dict[str, Any]:
    return {"size": (size.width, size.height)}


def _convnext(processor: Any) -> dict[str, Any] | None:
    """Below 384 scaled larger by crop_pct and cropped, from there on squashed."""
    edge = processor.size.shortest_edge
    if not edge or processor.do_center_crop:
        return None
    if edge >= 384:
        return {"size": (edge, edge), "resize": (edge, edge), "fit": "exact"}
    return {"size": (edge, edge), "resize": int(edge / processor.crop_pct), "fit": "shorter"}


def _poolformer(processor: Any) -> dict[str, Any] | None:
    """Scaled larger by crop_pct, then cropped."""
    size, share = processor.size, processor.crop_pct
    if share is None or not processor.do_center_crop:
        return _plain(processor)
    if size.shortest_edge or size.height == size.width:
        side = int((size.shortest_edge or size.height) / share)
        return {**_cropped(processor.crop_size), "resize": side, "fit": "shorter"}
    return {
        **_cropped(processor.crop_size),
        "resize": (int(size.width / share), int(size.height / share)),
        "fit": "exact",
    }


def _levit(processor: Any) -> dict[str, Any] | None:
    """The shorter side to 256/224 of what is said."""
    found = _plain(processor)
    if found is not None and found["fit"] == "shorter":
        found["resize"] = int(256 / 224 * found["resize"])
    return found


_RULES: dict[str, Rule] = {
    "ConvNextImageProcessor": _convnext,
    "PoolFormerImageProcessor": _poolformer,
    "LevitImageProcessor": _levit,
}


def _scale(processor: Any) -> dict[str, Any]:
    """Rescaling and normalising as one mean and std of pixels in 0..1."""
    gain, shift = np.ones(3) * 255, np.zeros(3)
    if processor.do_rescale:
        gain = gain * processor.rescale_factor
        shift = shift - bool(getattr(processor, "rescale_offset", False))
    mean, std = (np.ones(3) * one for one in (processor.image_mean or 0, processor.image_std or 1))
    if processor.do_normalize:
        gain, shift = gain / std, (shift - mean) / std
    if getattr(processor, "include_top", False):  # EfficientNet's second division
        gain, shift = gain / std, shift / std
    return {
        "mean": tuple(round(float(one), 12) for one in -shift / gain),
        "std": tuple(round(float(one), 12) for one in 1 / gain),
    }


def _agree(take: Preprocess, processor: Any) -> bool:
    """Whether it gives what transformers gives, on odd pictures of both orientations."""
    noise = np.random.default_rng(0).integers(0, 256, (47, 61, 3), dtype=np.uint8)
    try:
        for values in (noise, noise.transpose(1, 0, 2)):
            picture = Image.fromarray(np.ascontiguousarray(values))
            own, wanted = take(picture)[0], _asked(processor, picture)[0]
            if own.shape != wanted.shape or not torch.allclose(own, wanted, atol=1e-3 * float(wanted.std()), rtol=0):
                return False
    except Exception:  # whatever transformers doesn't like here it is asked for again, and then it is told
        return False
    return True


def _asked(processor: Any, picture: Image.Image) -> Any:
    made = processor(picture, return_tensors="pt")
    values = made["pixel_values"].float()
    patches = patches_of(processor) if GRID in made else None
    return values if patches is None else patches.whole(values, made[GRID])


def _as_it_is(processor: Any, name: str) -> tuple[Preprocess, dict[str, Any]]:
    """transformers' own function, with its geometry measured."""
    size, crop = processor.size, getattr(processor, "crop_size", None)
    if crop is not None and size is not None and 4 * (crop.height or 0) < max(size.height or 0, size.width or 0):
        raise ModelError(
            f"{FILE} crops to {crop.height} pixels and scales that to {size.height}; expected less than 4 times"
        )

    def ask(picture: Image.Image) -> Any:
        if max(picture.size) > _THIN * min(picture.size):
            raise ImageError(
                f"a picture of {picture.width} x {picture.height} is too thin for this model's preprocessing"
            )
        try:
            return _asked(processor, picture)
        except Exception as error:  # such as a picture that it neither resizes nor can cut up
            raise ImageError(
                f"the {name} fails on a picture of {picture.width} x {picture.height}: {str(error)[:300]}"
            ) from error

    take = measured(ask)
    try:
        x, _ = take(Image.new("RGB", (256, 192)))
    except Exception as error:
        raise ModelError(
            f"the {name} in {FILE} does what a map can't be laid back from: {str(error)[:300]}. {_INSTEAD}"
        ) from error
    return take, {"size": (x.shape[-1], x.shape[-2]), "processor": name}
