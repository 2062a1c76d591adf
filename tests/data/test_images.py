"""`read_image`: any bytes give a right, upright, bare RGB picture or an ImageError; nothing else, and soon."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from sightline.data.images import read_image
from sightline.errors import ImageError

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}
FORMATS: dict[str, dict[str, Any]] = {**LOSSLESS, "JPEG": {"quality": 95, "subsampling": 0}, "GIF": {}}
ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])


# ---------------------------------------------------------------------------------------------------- building blocks


def read(source: Any, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels and meta; fails on a warning, as a user would see it, and on a picture that isn't bare, loaded RGB."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # not "error": the reader would turn those into an ImageError
        try:
            image, meta = read_image(source, **options)
        finally:
            assert [str(warning.message) for warning in caught] == []
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
    assert image.getim()
    assert not {"exif", "xmp", "icc_profile", "comment", "transparency"} & set(image.info)
    assert not image.getexif()
    assert set(meta) >= {"name", "format", "mode", "size", "notes"}
    assert meta["size"] == image.size
    assert isinstance(meta["notes"], tuple)
    assert all(isinstance(note, str) and note for note in meta["notes"])
    return np.asarray(image).astype(int), dict(meta)


def read_or_refuse(source: Any, **options: Any) -> np.ndarray | None:
    """Pixels, or None after an ImageError that says something; any other exception is a failure."""
    try:
        return read(source, **options)[0]
    except ImageError as error:
        assert len(str(error)) > 10  # noqa: PT017
        return None


def file_of(image: Image.Image | np.ndarray, file_format: str, **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, file_format, **{**FORMATS.get(file_format, {}), **options})
    return buffer.getvalue()


def photo(height: int = 24, width: int = 40) -> np.ndarray:
    """Smooth, and different under every turn and flip."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([200 * x / width, 200 * y / height, 100 * (x + y) / (width + height)], -1).round().astype(np.uint8)


def noise(height: int = 40, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def quadrants(*colours: tuple[int, ...]) -> np.ndarray:
    a, b, c, d = (np.full((16, 16, 3), colour, np.uint8) for colour in colours)
    return np.block([[[a], [b]], [[c], [d]]])


COLOURS = quadrants((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
GREYS = quadrants((0, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 0))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, raw: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, order: str = "<", photometric: int = 1, frames: int = 1, **header: int) -> bytes:
    """A grey TIFF of any number type; `header` overrides width and height."""
    height, width = header.get("height", len(pixels)), header.get("width", pixels.shape[1])
    data = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = [(256, width), (257, height), (258, pixels.itemsize * 8), (259, 1), (262, photometric)]
    tags += [(273, 8), (277, 1), (278, height), (279, len(data)), (339, kind)]
    out = [(b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data)) + data]
    end = len(out[0])
    for frame in range(frames):
        listed = tags if frame == 0 else [tags[0], tags[1], tags[5]]
        end += 2 + 12 * len(listed) + 4
        out.append(struct.pack(order + "H", len(listed)))
        for tag, value in listed:
            short = tag in (258, 259, 262, 277, 339)
            out.append(struct.pack(order + "HHI", tag, 3 if short else 4, 1))
            out.append(struct.pack(order + ("HH" if short else "I"), *((value, 0) if short else (value,))))
        out.append(struct.pack(order + "I", 0 if frame == frames - 1 else end))
    return b"".join(out)


def huge(size: int = 60_000) -> dict[str, bytes]:
    """Small files that declare size x size pixels."""
    jpeg = bytearray(file_of(photo(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, frame + 5, size, size)
    gif = bytearray(file_of(photo(), "GIF"))
    struct.pack_into("<HH", gif, 6, size, size)
    gif_frame = bytearray(file_of(photo(), "GIF"))
    struct.pack_into("<HH", gif_frame, gif_frame.index(b",\0\0\0\0") + 5, size, size)
    bmp = bytearray(file_of(photo(), "BMP"))
    struct.pack_into("<ii", bmp, 18, size, size)
    vp8l = file_of(photo(), "WEBP")[12:]
    side = (min(size, 16_000) - 1).to_bytes(3, "little") * 2
    frame_head = b"\0" * 6 + (39).to_bytes(3, "little") + (23).to_bytes(3, "little") + b"\x10\0\0\0"
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + side + b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    webp += b"ANMF" + struct.pack("<I", len(frame_head + vp8l)) + frame_head + vp8l
    return {
        "png": png(size, size, 8, 2, b"\0" * 1000),
        "jpg": bytes(jpeg),
        "gif": bytes(gif),
        "frame.gif": bytes(gif_frame),
        "bmp": bytes(bmp),
        "tif": tiff(np.zeros((8, 8), np.uint8), width=size, height=size),
        "webp": b"RIFF" + struct.pack("<I", len(webp)) + webp,
    }


CHILD = """
import json, pathlib, re, resource, sys, time
from sightline.data.images import read_image
from sightline.errors import ImageError

def megabytes(key):  # not ru_maxrss: Linux starts that from the parent's
    return int(re.search(key + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

resource.setrlimit(resource.RLIMIT_AS, (int(megabytes("VmSize") + 4000) << 20,) * 2)
for path in sys.argv[2:]:
    before, start = megabytes("VmHWM"), time.perf_counter()
    try:
        read_image(path, **json.loads(sys.argv[1]))
        said = "picture"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([path, said, time.perf_counter() - start, megabytes("VmHWM") - before]), flush=True)
"""


def read_apart(paths: list[Path], timeout: float = 30, **options: Any) -> dict[str, tuple[str, float, float]]:
    """What each file gave, in how many seconds, with how many more megabytes; in a process that can be ended."""
    if not Path("/proc/self/status").exists():
        pytest.skip("measures memory through /proc")
    command = [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps(options), *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"hangs: only {(hung.stdout or b'').decode().count(chr(10))} of {len(paths)} files done")
    assert done.returncode == 0, done.stderr[-500:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {Path(path).name: (said, seconds, grown) for path, said, seconds, grown in rows}


# ---------------------------------------------------------------------------------------------------- right pictures


@pytest.mark.parametrize("file_format", LOSSLESS)
def test_a_lossless_file_gives_its_own_pixels_by_path_string_or_bytes(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"Straße 1.{file_format.lower()}"
    path.write_bytes(file_of(photo(), file_format))
    for source in (path, str(path), path.read_bytes()):
        pixels, meta = read(source)
        assert np.array_equal(pixels, photo())
        assert (meta["format"], meta["mode"], meta["size"], meta["notes"]) == (file_format, "RGB", (40, 24), ())
    assert path.name in read(path)[1]["name"]


def test_a_jpeg_gives_its_own_pixels_and_a_gif_the_nearest_of_256_colours() -> None:
    assert abs(read(file_of(photo(), "JPEG"))[0] - photo()).max() <= 8
    assert abs(read(file_of(photo(), "GIF"))[0] - photo()).max() <= 48


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 513)])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_picture_of_odd_size_is_read(file_format: str, size: tuple[int, int]) -> None:
    pixels = photo(*size)
    assert read(file_of(pixels, file_format))[0].shape == (*size, 3)
    assert np.array_equal(read(pixels)[0], pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "PIL image"])
def test_every_exif_orientation_gives_the_same_upright_picture(file_format: str, orientation: int) -> None:
    upright = photo()
    stored: Callable[[np.ndarray], np.ndarray] = {  # where the standard puts row 0 and column 0 of the file
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[:, ::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[::-1].swapaxes(0, 1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turned = np.ascontiguousarray(stored(upright))
    data = file_of(turned, "PNG" if file_format == "PIL image" else file_format, exif=exif)
    pixels, meta = read(Image.open(io.BytesIO(data)) if file_format == "PIL image" else data)
    assert meta["size"] == (40, 24)
    assert abs(pixels - upright).max() <= (8 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_no_position_or_comment_survives_reading_and_saving(file_format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "SECRETCAM"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "SECRETNORTH"
    data = file_of(photo(), file_format, exif=exif)
    assert b"SECRET" in data
    image, meta = read_image(data)
    assert image.info == {}
    assert b"SECRET" not in repr(meta).encode()
    for saved_as in ("PNG", "JPEG", "WEBP", "TIFF"):
        saved = file_of(image, saved_as)
        assert b"SECRET" not in saved
        assert not Image.open(io.BytesIO(saved)).getexif().get_ifd(ExifTags.IFD.GPSInfo)


@pytest.mark.parametrize("top", [65535, 30000])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "PIL", "array", "big-endian array"])
def test_a_16_bit_gradient_is_scaled_and_not_clipped(kind: str, top: int) -> None:
    grey = np.linspace(0, top, 4096).round().astype(np.uint16).reshape(64, 64)
    sources: dict[str, Any] = {
        "PNG": lambda: file_of(grey, "PNG"),
        "TIFF": lambda: tiff(grey),
        "big-endian TIFF": lambda: tiff(grey, ">"),
        "PIL": lambda: Image.fromarray(grey),
        "array": lambda: grey,
        "big-endian array": lambda: grey.astype(">u2"),
    }
    pixels, meta = read(sources[kind]())
    assert abs(pixels - (grey / 257)[..., None]).max() <= 1
    assert any("16" in note for note in meta["notes"])


def test_a_16_bit_colour_picture_is_scaled_and_not_clipped() -> None:
    colour = np.linspace(0, 65535, 300).round().astype(">u2").reshape(1, 100, 3)
    assert abs(read(png(100, 1, 16, 2, b"\0" + colour.tobytes()))[0] - colour / 257).max() <= 1
    assert abs(read(colour.astype(np.uint16))[0] - colour / 257).max() <= 1


@ORDERS
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_a_tiff_of_any_number_type_keeps_its_order_of_brightness(kind: str, white_is_zero: bool, order: str) -> None:
    low, high = (-5, 5) if kind[0] == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    ramp = np.linspace(low, high, 256).astype(kind).reshape(1, 256)
    pixels = read_or_refuse(tiff(ramp, order, photometric=0 if white_is_zero else 1))
    if kind in ("u1", "u2") and not white_is_zero:
        assert pixels is not None, "too common to be refused"
    if pixels is not None:
        line = pixels[0, ::-1, 0] if white_is_zero else pixels[0, :, 0]
        assert (np.diff(line) >= 0).all(), "dark and bright are mixed up"
        assert len(np.unique(line)) > 200, "clipped"


@ORDERS
def test_a_float_tiff_is_scaled_by_one_or_else_by_its_own_range(order: str) -> None:
    unit = np.linspace(0.25, 0.75, 64, dtype=np.float32).reshape(8, 8)
    assert abs(read(tiff(unit, order))[0][..., 0] - unit * 255).max() <= 1
    pixels, meta = read(tiff(unit * 1000 - 500, order))
    assert abs(pixels[..., 0] - (unit - 0.25) * 510).max() <= 1
    assert meta["notes"]
    for value in (7.0, 0.0, 1e30, -3e38, 1e-45):
        assert read(tiff(np.full((2, 3), value, np.float32), order))[0].shape == (2, 3, 3)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ImageError):
            read(tiff(np.array([[0, value]], np.float32), order))


GREYS_IN = {"1": "PNG TIFF BMP GIF PIL", "L": "PNG TIFF BMP GIF JPEG PIL", "LA": "PNG TIFF PIL", "La": "PIL"}
GREYS_IN |= {"I": "PIL", "F": "PIL", "P": "BMP"}
COLOURS_IN = {"P": "PNG TIFF BMP GIF PIL", "RGBA": "PNG TIFF WEBP PIL", "RGBX": "TIFF PIL", "CMYK": "JPEG TIFF PIL"}
COLOURS_IN |= {"PA": "PIL", "RGBa": "PIL", "YCbCr": "PIL", "HSV": "PIL"}
MODES = [(GREYS, mode, kind) for mode, kinds in GREYS_IN.items() for kind in kinds.split()]
MODES += [(COLOURS, mode, kind) for mode, kinds in COLOURS_IN.items() for kind in kinds.split()]


@pytest.mark.parametrize(("expected", "mode", "kind"), MODES, ids=[f"{mode} {kind}" for _, mode, kind in MODES])
def test_every_colour_mode_gives_the_same_picture(expected: np.ndarray, mode: str, kind: str) -> None:
    image = Image.fromarray(expected)
    for step in {"La": ["LA", "La"], "PA": ["P", "PA"], "RGBa": ["RGBA", "RGBa"], "F": ["L", "F"]}.get(mode, [mode]):
        image = image.convert(step, palette=Image.Palette.ADAPTIVE)
    pixels, meta = read(image if kind == "PIL" else file_of(image, kind))
    assert abs(pixels - expected).max() <= (16 if kind == "JPEG" else 3)
    assert meta["mode"] == mode or kind in ("GIF", "BMP", "WEBP", "TIFF")


def test_lab_colour_is_read_right_or_refused_by_name() -> None:
    image = Image.new("LAB", (4, 4), (255, 128, 128))
    try:
        assert abs(read(image)[0] - 255).max() <= 3
    except ImageError as error:
        assert "LAB" in str(error)  # noqa: PT017


def see_through() -> dict[str, Any]:
    """A black pixel, then an invisible one."""
    rgba = np.array([[[0, 0, 0, 255], [200, 0, 0, 0]]], np.uint8)
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    two16 = struct.pack(">HH", 0, 30000)
    return {
        "RGBA PNG": file_of(rgba, "PNG"),
        "RGBA WebP": file_of(rgba, "WEBP"),
        "RGBA TIFF": file_of(rgba, "TIFF"),
        "LA PNG": file_of(Image.fromarray(rgba[..., [0, 3]], "LA"), "PNG"),
        "palette PNG": file_of(palette, "PNG", transparency=1),
        "palette PNG with alpha values": file_of(palette, "PNG", transparency=bytes([255, 0])),
        "GIF": file_of(palette, "GIF", transparency=1),
        "grey PNG with a colour key": png(2, 1, 8, 0, b"\0\0\x50", chunk(b"tRNS", b"\0\x50")),
        "RGB PNG with a colour key": png(2, 1, 8, 2, b"\0\0\0\0\x50\x50\x50", chunk(b"tRNS", b"\0\x50" * 3)),
        "array": rgba,
        "float array": rgba / 255,
        "uint16 array": rgba.astype(np.uint16) * 257,
        "PIL image": Image.fromarray(rgba),
        "4-bit grey PNG with a colour key (or refused)": png(2, 1, 4, 0, b"\0\x05", chunk(b"tRNS", b"\0\x05")),
        "16-bit grey PNG with a colour key (or refused)": png(2, 1, 16, 0, b"\0" + two16, chunk(b"tRNS", two16[2:])),
        "16-bit RGB PNG with a colour key (or refused)": png(
            2, 1, 16, 2, b"\0" + b"\0" * 6 + two16[2:] * 3, chunk(b"tRNS", two16[2:] * 3)
        ),
    }


@pytest.mark.parametrize("kind", see_through())
def test_transparency_is_laid_on_white_and_noted(kind: str) -> None:
    try:
        pixels, meta = read(see_through()[kind])
    except ImageError:
        assert "or refused" in kind
        return
    assert pixels.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert any("white" in note for note in meta["notes"])


def test_half_transparent_black_becomes_mid_grey() -> None:
    rgba = np.zeros((3, 4, 4), np.uint8)
    rgba[..., 3] = 128
    for source in (rgba, file_of(rgba, "PNG"), rgba.astype(np.float32) / 255):
        assert abs(read(source)[0] - 127).max() <= 1


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_read_and_noted(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    pixels, meta = read(file_of(frames[0], file_format, save_all=True, append_images=frames[1:]))
    assert (pixels == (255, 0, 0)).all()
    assert any("frame" in note for note in meta["notes"])


def test_a_phone_jpeg_that_holds_several_pictures_gives_the_first() -> None:
    several = file_of(Image.fromarray(COLOURS), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert abs(read(several)[0] - COLOURS)[4:12, 4:12].max() <= 16
    broken = bytearray(several)
    index = broken.index(b"MPF\0")
    broken[index + 20 : index + 40] = b"\xff" * 20
    read_or_refuse(bytes(broken))


# ---------------------------------------------------------------------------------------------------- arrays and images


ARRAYS: dict[str, Callable[[], np.ndarray]] = {
    "(H, W)": lambda: photo()[..., 0],
    "(H, W, 1)": lambda: photo()[..., :1],
    "bool": lambda: photo()[..., 0] > 90,
    "float16": lambda: (photo() / 255).astype(np.float16),
    "float32": lambda: (photo() / 255).astype(np.float32),
    "float64": lambda: photo() / 255,
    "uint16": lambda: photo().astype(np.uint16) * 257,
    "negative strides": lambda: photo()[::-1, ::-1, ::-1],
    "every second pixel": lambda: photo()[::2, ::2],
    "Fortran order": lambda: np.asfortranarray(photo()),
    "channels moved": lambda: np.ascontiguousarray(photo().transpose(2, 0, 1)).transpose(1, 2, 0),
    "broadcast": lambda: np.broadcast_to(np.uint8(77), (5, 6, 3)),
    "a subclass": lambda: photo().view(np.recarray),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_gives_its_own_pixels_and_is_not_changed(kind: str) -> None:
    array = ARRAYS[kind]()
    copy, strides = array.copy(), array.strides
    array.flags.writeable = False
    pixels, meta = read(array)
    scale = {"b": 255, "u": 1 if array.itemsize == 1 else 1 / 257, "f": 255}[array.dtype.kind]
    wanted = np.atleast_3d(array) * np.float64(scale)
    assert pixels.shape == (*array.shape[:2], 3)
    assert abs(pixels - wanted).max() <= 0.5 + 1e-3 * 255 * (array.itemsize == 2)
    assert np.array_equal(array, copy)
    assert array.strides == strides
    assert meta["size"] == (array.shape[1], array.shape[0])


def test_a_picture_does_not_share_memory_with_its_source() -> None:
    array = photo()
    image, _ = read_image(array)
    array[:] = 0
    assert np.array_equal(image, photo())
    given_image = Image.fromarray(photo())
    read_image(given_image)[0].paste((0, 0, 0), (0, 0, 40, 24))
    assert np.array_equal(given_image, photo())


BAD_ARRAYS: dict[str, Callable[[], Any]] = {
    "channels first": lambda: photo().transpose(2, 0, 1),
    "channels first, one": lambda: photo()[None, ..., 0],
    "2 channels": lambda: photo()[..., :2],
    "13 channels": lambda: np.zeros((8, 8, 13), np.uint8),
    "a batch": lambda: photo()[None],
    "one row": lambda: photo()[0, :, 0],
    "a number": lambda: np.array(3, np.uint8),
    "no rows": lambda: np.zeros((0, 8, 3), np.uint8),
    "no columns": lambda: np.zeros((8, 0), np.uint8),
    "no channels": lambda: np.zeros((8, 8, 0), np.uint8),
    "float to 255": lambda: photo().astype(np.float32),
    "float below 0": lambda: photo() / 255 - 0.1,
    "NaN": lambda: np.where(photo() > 90, np.nan, 0.5),
    "only NaN": lambda: np.full((4, 4), np.nan, np.float16),
    "infinity": lambda: np.where(photo() > 90, np.inf, 0.5),
    "int64": lambda: photo().astype(np.int64),
    "int8": lambda: np.full((4, 4), -1, np.int8),
    "uint32": lambda: np.zeros((4, 4), np.uint32),
    "complex": lambda: photo() / 255 * 1j,
    "object": lambda: photo().astype(object),
    "text": lambda: np.full((4, 4), "a"),
    "dates": lambda: np.zeros((4, 4), "M8[s]"),
    "fields": lambda: np.zeros((4, 4), [("r", "u1"), ("g", "u1")]),
    "None": lambda: None,
    "an int": lambda: 3,
    "a list": lambda: photo().tolist(),
    "an open file": lambda: io.BytesIO(file_of(photo(), "PNG")),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_what_is_no_photograph_is_refused(kind: str) -> None:
    with pytest.raises(ImageError):
        read(BAD_ARRAYS[kind]())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_a_pil_image_given_is_not_changed(mode: str) -> None:
    image = Image.fromarray(COLOURS)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert("I" if mode == "I;16" else mode)
    image = image.convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.info.update(exif=exif.tobytes(), dpi=(72, 72), comment=b"mine")
    if mode in ("P", "L", "RGB"):
        image.info["transparency"] = (255, 0, 0) if mode == "RGB" else 0
    before = (image.mode, image.size, image.tobytes(), dict(image.info), image.getpalette())
    read(image)
    assert before == (image.mode, image.size, image.tobytes(), dict(image.info), image.getpalette())
    assert image.getexif()[ExifTags.Base.Orientation] == 6


def test_a_pil_animation_given_stays_at_its_frame() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    image = Image.open(io.BytesIO(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    before = image.convert("RGB").tobytes()
    pixels, _ = read(image)
    assert (pixels == (0, 255, 0)).all()
    assert (image.tell(), image.convert("RGB").tobytes()) == (1, before)


def test_a_pil_image_that_cannot_be_decoded_is_refused() -> None:
    cut = Image.open(io.BytesIO(file_of(noise(), "JPEG")[:1500]))
    closed = Image.open(io.BytesIO(file_of(noise(), "PNG")))
    closed.close()
    for image in (cut, closed, Image.new("RGB", (0, 5))):
        with pytest.raises(ImageError):
            read(image)


# ---------------------------------------------------------------------------------------------------- refusals


def broken_files() -> dict[str, bytes]:
    stored = bytearray(file_of(noise(), "PNG", compress_level=0))
    head_crc, stream = stored.copy(), stored.copy()
    head_crc[29] ^= 1
    stream[stream.index(b"IDAT") + 400] ^= 0x80
    packed = bytearray(file_of(noise(), "PNG"))
    index = packed.index(b"IDAT") + 20
    packed[index : index + 40] = b"\xff" * 40
    files = {
        "empty.png": b"",
        "text.jpg": b"This is no picture.\n" * 50,
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
        "page.jpg": b"<!doctype html><script>alert(1)</script>",
        "head-crc.png": bytes(head_crc),
        "flipped.png": bytes(stream),
        "zlib.png": bytes(packed),
        "head-only.png": file_of(photo(), "PNG")[:33],
        "magic-only.jpg": b"\xff\xd8\xff",
        "magic-only.gif": b"GIF89a",
        "magic-only.webp": b"RIFF\x10\0\0\0WEBPVP8L",
        "magic-only.tif": b"II*\0\x08\0\0\0",
        "no-pixels.png": png(0, 0, 8, 2, b""),
        "no-pixels.gif": b"GIF89a" + b"\0" * 7 + b";",
        "negative.bmp": file_of(photo(), "BMP")[:18] + struct.pack("<i", -5) + file_of(photo(), "BMP")[22:],
    }
    files |= {f"half.{name.lower()}": file_of(noise(), name)[: len(file_of(noise(), name)) // 2] for name in FORMATS}
    files |= {f"{name}.png": file_of(photo(), name) for name in ("PPM", "ICO", "TGA", "EPS", "PCX", "PDF", "SGI")}
    return files


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_or_foreign_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    with pytest.raises(ImageError, match=name):
        read(path)
    with pytest.raises(ImageError):
        read(path.read_bytes())


def test_a_png_whose_data_checksum_alone_is_wrong_is_read_right_or_refused() -> None:
    data = bytearray(file_of(noise(), "PNG"))
    start = data.index(b"IDAT")
    data[start + 4 + struct.unpack_from(">I", data, start - 4)[0]] ^= 1
    pixels = read_or_refuse(bytes(data))
    assert pixels is None or np.array_equal(pixels, noise())


def test_damaged_metadata_does_not_warn() -> None:
    for exif in (b"Exif\0\0II*\0\x08\0\0\0\xff\0\x12\x01", b"Exif\0\0nonsense", b"Exif\0\0"):
        read_or_refuse(file_of(photo(), "JPEG", exif=exif))
    read_or_refuse(png(2, 1, 8, 0, b"\0\1\2", chunk(b"acTL", struct.pack(">II", 0, 0))))
    read_or_refuse(png(12_000, 10_000, 8, 2, b"\0"))  # between Pillow's warning and its error


def is_picture(data: bytes) -> bool:
    try:
        return read_image(data)[0].mode == "RGB"
    except ImageError:
        return False


def test_reading_in_threads_leaves_the_warning_filters_as_they_were() -> None:
    odd = [file_of(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\0\x12\x01"), png(12_000, 10_000, 8, 2, b"\0")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            pictures = list(pool.map(is_picture, odd * 200))
        assert warnings.filters == before
    assert caught == []
    assert pictures == pictures[:2] * 200


@pytest.mark.parametrize("path", ["", "nowhere.png", "nowhere/at/all.png", "a\0b.png", "\udcff.png", "x" * 5000])
def test_a_path_that_leads_nowhere_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError):
        read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_device_socket_or_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path may only be short
        server.bind("socket.png")
        os.chdir(here)
        results = read_apart([*tmp_path.iterdir(), Path("/dev/zero"), Path("/dev/tty"), Path("/proc/self/mem")])
    assert len(results) == 8
    for name, (said, seconds, _) in results.items():
        assert said.startswith("ImageError"), name
        assert name in said
        assert seconds < 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files through /proc")
def test_no_file_stays_open_after_reading_or_refusing(tmp_path: Path) -> None:
    good = {f"good.{name}": file_of(noise(), name) for name in FORMATS}
    for name, data in {**good, **broken_files()}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.png").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for path in tmp_path.iterdir():
        read_or_refuse(path)
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------------------------- limits


def test_a_huge_declared_size_is_refused_before_decoding(tmp_path: Path) -> None:
    for size, options in ((60_000, {}), (8_000, {"max_pixels": 1_000_000})):
        paths = []
        for name, data in huge(size).items():
            paths.append(tmp_path / f"{size}.{name}")
            paths[-1].write_bytes(data)
        for name, (said, seconds, grown) in read_apart(paths, **options).items():
            assert said.startswith("ImageError"), name
            assert name in said
            assert "pixels" in said, "refused for something found while decoding"
            assert seconds < 2, name
            assert grown < (500 if size == 60_000 else 50), f"{name} took {grown:.0f} MB"


def test_the_limit_is_exact_and_holds_for_every_source() -> None:
    for source in (photo(), Image.fromarray(photo()), *(file_of(photo(), name) for name in FORMATS)):
        assert read(source, max_pixels=960)[1]["size"] == (40, 24)
        with pytest.raises(ImageError, match="pixels"):
            read(source, max_pixels=959)


def test_a_file_made_of_very_many_frames_or_scans_is_done_at_once(tmp_path: Path) -> None:
    gif = file_of(Image.new("P", (1, 1)), "GIF")
    start = gif.index(b",")
    (tmp_path / "frames.gif").write_bytes(gif[:start] + gif[start:-1] * 200_000 + b";")
    (tmp_path / "pages.tif").write_bytes(tiff(np.zeros((4, 4), np.uint8), frames=40_000))
    jpeg = file_of(Image.new("L", (3000, 3000), 128), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    (tmp_path / "scans.jpg").write_bytes(jpeg[:-2] + scan * 1000 + jpeg[-2:])
    texts = [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000))) for _ in range(2)]
    (tmp_path / "text.png").write_bytes(png(2, 1, 8, 0, b"\0\1\2", *texts))
    for name, (said, seconds, grown) in read_apart(list(tmp_path.iterdir()), timeout=60).items():
        assert said == "picture" or said.startswith("ImageError"), name
        assert seconds < 2, f"{name} took {seconds:.1f} s"
        assert grown < 500, f"{name} took {grown:.0f} MB"


# ---------------------------------------------------------------------------------------------------- any bytes


@cache
def seeds(file_format: str) -> list[bytes]:
    small, exif = photo(9, 11), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    frames = {"save_all": True, "append_images": [Image.fromarray(noise(9, 11))]}
    palette = Image.fromarray(small).convert("P")
    return {
        "JPEG": lambda: [file_of(small, "JPEG", exif=exif), file_of(small, "JPEG", progressive=True)],
        "PNG": lambda: [
            file_of(small, "PNG", exif=exif),
            file_of(small, "PNG", **frames),
            file_of(palette, "PNG", transparency=b"\0\x80"),
        ],
        "GIF": lambda: [file_of(small, "GIF", **frames), file_of(palette, "GIF", transparency=1)],
        "TIFF": lambda: [
            file_of(small, "TIFF", exif=exif),
            file_of(small, "TIFF", compression="tiff_lzw"),
            file_of(small, "TIFF", **frames),
            *(tiff(np.arange(99, dtype=kind).reshape(9, 11), order) for kind in ("u2", "f4") for order in "<>"),
        ],
        "WEBP": lambda: [
            file_of(small, "WEBP", exif=exif),
            file_of(small, "WEBP", lossless=False),
            file_of(small, "WEBP", **frames),
        ],
        "BMP": lambda: [file_of(small, "BMP"), file_of(palette, "BMP")],
    }[file_format]()


MAGIC = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBPVP8 ", b"BM", b"GIF89a"]
MAGIC += [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]
EDIT = st.tuples(st.sampled_from(["flip", "cut", "insert", "drop"]), st.floats(0, 1), st.binary(min_size=1, max_size=6))
FUZZ = settings(deadline=None, max_examples=200, database=None)


@FUZZ
@given(st.sampled_from(MAGIC), st.binary(max_size=400))
@example(b"", b"")
def test_any_bytes_give_a_picture_or_an_image_error(magic: bytes, data: bytes) -> None:
    read_or_refuse(magic + data, max_pixels=1_000_000)


@pytest.mark.parametrize("file_format", FORMATS)
@FUZZ
@given(data=st.data(), edits=st.lists(EDIT, min_size=1, max_size=4))
def test_any_damage_to_a_good_file_gives_a_picture_or_an_image_error(
    file_format: str, data: st.DataObject, edits: list[tuple[str, float, bytes]]
) -> None:
    damaged = bytearray(data.draw(st.sampled_from(seeds(file_format))))
    for kind, where, value in edits:
        at = int(where**2 * len(damaged))  # more often in the header than in the pixels
        if kind == "flip":
            damaged[at : at + len(value)] = bytes(a ^ b for a, b in zip(damaged[at:], value, strict=False))
        elif kind == "insert":
            damaged[at:at] = value
        else:
            del damaged[at : None if kind == "cut" else at + len(value)]
    read_or_refuse(bytes(damaged), max_pixels=1_000_000)
