"""A mask is true where a pixel's own number is above 0, whatever the file's mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data.images import read_mask
from sightline.errors import ImageError

OBJECT = np.zeros((40, 40), bool)
OBJECT[5:25, 10:30] = True


def rgba(transparent: bool) -> Image.Image:
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[..., 3] = np.where(OBJECT, 255, 0) if transparent else 255
    pixels[OBJECT, :3] = (0, 0, 0) if transparent else (0, 0, 4)
    return Image.fromarray(pixels)


def palette() -> Image.Image:
    image = Image.new("P", (40, 40))
    image.putpalette([255, 255, 255, 0, 0, 4] + [0] * 762)  # 0 is white, 1 nearly black
    image.putdata(OBJECT.astype(int).ravel().tolist())
    return image


MASKS = {
    "grey": (Image.fromarray(OBJECT.astype(np.uint8)), "png"),
    "one bit": (Image.fromarray(OBJECT.astype(np.uint8) * 255).convert("1"), "png"),
    "16 bits, small ids": (Image.fromarray(OBJECT.astype(np.uint16)), "png"),
    "32 bits": (Image.fromarray(OBJECT.astype(np.int32) * 5000), "tif"),
    "float": (Image.fromarray(OBJECT.astype(np.float32) * 0.001), "tif"),
    "dark colour": (Image.fromarray(OBJECT[..., None] * np.array([0, 0, 4], np.uint8)), "png"),
    "transparent around": (rgba(True), "png"),
    "opaque": (rgba(False), "png"),
    "palette": (palette(), "png"),
    "bmp": (Image.fromarray(OBJECT.astype(np.uint8) * 255), "bmp"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_the_object_is_where_the_files_own_number_is_above_0(kind: str, tmp_path: Path) -> None:
    image, ending = MASKS[kind]
    image.save(tmp_path / f"mask.{ending}")
    assert (read_mask(tmp_path / f"mask.{ending}") == OBJECT).all()


def test_a_mask_is_turned_upright_like_its_picture(tmp_path: Path) -> None:
    image = Image.fromarray(OBJECT.astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # shown a quarter turn to the right
    image.save(tmp_path / "mask.png", exif=exif)
    assert (read_mask(tmp_path / "mask.png") == np.rot90(OBJECT, -1)).all()


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_formats_that_blur_edges_are_refused(ending: str, tmp_path: Path) -> None:
    Image.fromarray(OBJECT.astype(np.uint8) * 255).save(tmp_path / f"mask.{ending}")
    with pytest.raises(ImageError, match="save it as PNG"):
        read_mask(tmp_path / f"mask.{ending}")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="no picture"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(ImageError, match="can't be opened"):
        read_mask(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_mask(tmp_path)
