"""`read_image`: any picture becomes upright 8-bit RGB, or is refused by name."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, UnidentifiedImageError

from sightline._optional import optional
from sightline._quiet import quiet
from sightline.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 100_000_000
# Of pictures of many bands; about 1 GB as the floats that a model takes.
MAX_VALUES = 250_000_000
# Of an animated file: frames, and pixels of all of them together.
_MOST_FRAMES, _MOST_FILM = 5_000, 2_000_000_000
# TIFF's numbers for ways to compress.
_PLAIN, _PACKBITS, _DEFLATE = 1, 32773, (8, 32946)
_MAX_HEADER = 10_000  # bytes of a .npy file before its numbers
_MAX_SCANS = 100
_ON_WHITE = "transparency laid on white"

# EXIF orientations that exchange width and height.
_LYING = range(5, 9)

Enough = Callable[[tuple[int, int]], tuple[int, int] | None]
Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]


class ImageMeta(TypedDict):
    """What is known of a picture beside its pixels."""

    name: str
    format: str | None
    mode: str
    size: tuple[int, int]
    notes: tuple[str, ...]


def read_image(
    source: Source, *, max_pixels: int = MAX_PIXELS, enough: Enough | None = None
) -> tuple[Image.Image, ImageMeta]:
    """Opens a picture as upright 8-bit RGB, or says why not.

    Args:
        source: path, the bytes of a file, PIL image, or array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of
            bool, uint8, uint16, or floats in 0..1. JPEG, PNG, WebP, BMP, GIF and TIFF (first frame) are read.
        max_pixels: larger pictures are refused from their header, before anything is decoded. Pillow's own
            limit (`PIL.Image.MAX_IMAGE_PIXELS`, 89 megapixels) holds too.
        enough: from the upright (width, height) the one that is enough, or None for all of it. A JPEG file much larger than
            that is decoded at a half, a quarter or an eighth, which is far faster; its `size` is its own nevertheless.

    Returns:
        The picture (RGB, without any metadata) and what was done to it. 16-bit pictures are scaled from the full
        range of their type, floats beyond 0..1 by their own range, transparency is laid on white.

    Raises:
        ImageError: anything else, whatever the bytes are.
    """
    if isinstance(source, Image.Image):
        with _hostile("picture"):
            return _to_rgb(source, "picture", source.format, max_pixels, ours=False)
    if isinstance(source, np.ndarray):
        image, notes = _from_array(source)
        rgb, meta = _to_rgb(image, "array", None, max_pixels)
        return rgb, {**meta, "notes": notes + meta["notes"]}
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), "bytes", max_pixels, enough)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"{type(source).__name__} is no picture: give a path, bytes, a PIL image or an array (H, W, 3); "
            "a ready tensor goes to sightline.attribute()"
        )
    path = Path(source)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path} is not a regular file")
        # Opened without blocking, so that a pipe put in its place meanwhile is not waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            return _decode(file, str(path), max_pixels, enough)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise ImageError(f"{path} can't be opened: {reason}") from error


def read_bands(source: Source, *, max_values: int = MAX_VALUES) -> tuple[np.ndarray[Any, Any], ImageMeta]:
    """Opens numbers of any number of bands: array (H, W) or (H, W, n), .npy file, or multi-band TIFF; as they are.

    Raises:
        ImageError: anything else, whatever the bytes are.
        MissingExtraError: a TIFF, without the extra `bands`.
    """
    if isinstance(source, np.ndarray):
        return _bands_of(source, "array", None, max_values)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"{type(source).__name__} holds no bands; expected an array (H, W, n), a .npy file or a multi-band TIFF"
        )
    path = Path(source)
    kind = path.suffix.lower()
    if kind not in (".npy", ".tif", ".tiff"):
        raise ImageError(
            f"{path} ends in {kind or 'nothing'}; bands are read from .npy, .tif and .tiff, or given as an array (H, W, n)"
        )
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            read = _npy if kind == ".npy" else _tiff
            return _bands_of(read(file, str(path), max_values), str(path), kind[1:].upper(), max_values)
    except OSError as error:
        if isinstance(error, ImageError):
            raise
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise ImageError(f"{path} can't be opened: {reason}") from error


@dataclass(frozen=True, eq=False)
class Picked:
    """Frames that were picked from a film or volume.

    Attributes:
        frames: upright RGB of one size; of bands arrays (H, W) or (H, W, n).
        numbers: which they are, counted from 1.
        total: how many there are.
        name: what to call the film.
        volume: whether they are slices of a body, and not of time.
        notes: what was done to them.
    """

    frames: tuple[Any, ...]
    numbers: tuple[int, ...]
    total: int
    name: str
    volume: bool = False
    notes: tuple[str, ...] = ()


def read_frames(source: Any, pick: Callable[[int], Sequence[int]], *, with_bands: bool = False) -> Picked:
    """Opens those frames of a film or volume that `pick` names, of so many.

    Args:
        source: list of pictures, folder of them (in the order of their names, 2 before 10), animated GIF, WebP or PNG, array
            (T, H, W, 3), or (D, H, W) of a volume; with bands an array (T, H, W, n) or (D, H, W), or its .npy file.
        pick: from how many there are to their numbers, from 0, in order.
        with_bands: frames are numbers as they are, and no pictures.

    Raises:
        ImageError: anything else, or frames of several sizes.
    """
    if with_bands:
        return _stacked(source, pick)
    if isinstance(source, np.ndarray):
        if source.ndim not in (3, 4) or 0 in source.shape:
            raise ImageError(
                f"array of shape {source.shape} is no film; expected (T, H, W, 3), or (D, H, W) of a volume"
            )
        at = pick(len(source))
        return _picked([source[one] for one in at], at, len(source), "array", source.ndim == 3)
    if isinstance(source, list | tuple):
        if not source:
            raise ImageError("the list of frames is empty")
        at = pick(len(source))
        return _picked([source[one] for one in at], at, len(source), "frames", False)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"{type(source).__name__} is no film: give a list of pictures, a folder, an animated GIF or WebP, or an array (T, H, W, 3)"
        )
    path = Path(source)
    if path.is_dir():
        found = sorted(
            (one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and one.is_file()), key=_natural
        )
        if not found:
            raise ImageError(
                f"there is no picture in {path}; expected frames that end in {', '.join(sorted(SUFFIXES))}"
            )
        at = pick(len(found))
        return _picked([found[one] for one in at], at, len(found), str(path), False)
    return _animated(path, pick)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Names in the order in which people count: 2 before 10."""
    parts = re.split(r"([0-9]{1,18})", path.name.casefold())
    return [(int(part), "") if number % 2 else (-1, part) for number, part in enumerate(parts)] + [(-1, path.name)]


def _picked(sources: Sequence[Any], at: Sequence[int], total: int, name: str, volume: bool) -> Picked:
    """Each frame opened as any picture is; each once, however often it is named."""
    opened: dict[int, tuple[Image.Image, ImageMeta]] = {}
    for number, one in zip(at, sources, strict=True):
        if number not in opened:
            try:
                opened[number] = read_image(one)
            except ImageError as error:
                raise ImageError(f"frame {number + 1} of {name}: {error}") from error
    found = [opened[number] for number in at]
    _check_sizes([image.size for image, _ in found], at, name)
    notes = dict.fromkeys(note for _, meta in found for note in meta["notes"])
    return Picked(tuple(image for image, _ in found), tuple(one + 1 for one in at), total, name, volume, tuple(notes))


def _check_sizes(sizes: Sequence[tuple[int, ...]], at: Sequence[int], name: str) -> None:
    for number, size in zip(at, sizes, strict=True):
        if size != sizes[0]:
            one, first = (" x ".join(map(str, each)) for each in (size, sizes[0]))
            raise ImageError(
                f"frame {number + 1} of {name} has {one} pixels and frame {at[0] + 1} has {first}; give frames of one size"
            )


def _stacked(source: Any, pick: Callable[[int], Sequence[int]]) -> Picked:
    """Frames of numbers as they are."""
    name = "array"
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".npy":
        name = str(source)
        try:
            with open(source, "rb") as file:
                source = _npy(file, name, MAX_VALUES, dimensions=(3, 4))
        except OSError as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{name} can't be opened: {error.strerror or error}") from error
    if isinstance(source, list | tuple) and source and all(isinstance(one, np.ndarray) for one in source):
        _check_sizes([one.shape for one in source], range(len(source)), "the list")
        source = np.stack(source)
    if not isinstance(source, np.ndarray):
        raise ImageError(
            f"{type(source).__name__} holds no bands; expected an array (T, H, W, n) or (D, H, W), or a .npy file of it"
        )
    _check_bands(source.shape, source.dtype, name, MAX_VALUES, dimensions=(3, 4))
    at = pick(len(source))
    return Picked(tuple(source[one] for one in at), tuple(one + 1 for one in at), len(source), name, True)


def _animated(path: Path, pick: Callable[[int], Sequence[int]]) -> Picked:
    """The frames of an animated file, of which no more are kept than picked."""
    name = str(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path} is not a regular file")
        with open(path, "rb") as file, _film_of(path), Image.open(file, formats=("GIF", "WEBP", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{path} has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS:,}")
            total = _count(image, path)
            at = pick(total)
            kept = {}
            for number in sorted(set(at)):
                image.seek(number)
                kept[number] = image.convert("RGBA") if "transparency" in image.info else image.convert("RGB")
    except OSError as error:
        if isinstance(error, ImageError):
            raise
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise ImageError(f"{path} can't be opened: {reason}") from error
    return _picked([kept[one] for one in at], at, total, name, False)


def _count(image: Image.Image, path: Path) -> int:
    """How many frames there are, by going through them, because what a file says of itself may be untrue."""
    most = min(_MOST_FRAMES, max(1, _MOST_FILM // (image.width * image.height)))
    for number in range(most + 1):
        try:
            image.seek(number)
        except EOFError:
            return number
    raise ImageError(
        f"{path} has more than {most:,} frames of {image.width} x {image.height} pixels; cut it into shorter films"
    )


@contextmanager
def _film_of(path: Path) -> Iterator[None]:
    try:
        with _hostile(str(path)):
            yield
    except ImageError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise ImageError(
                f"{path} is no animated GIF, WebP or PNG; take a film of another kind apart into pictures first, such as with "
                "ffmpeg -i film.mp4 frames/%05d.png, and give the folder"
            ) from error
        raise


def _bands_of(
    values: np.ndarray[Any, Any], name: str, kind: str | None, max_values: int
) -> tuple[np.ndarray[Any, Any], ImageMeta]:
    _check_bands(values.shape, values.dtype, name, max_values)
    size = (values.shape[1], values.shape[0])
    return values, {"name": name, "format": kind, "mode": str(values.dtype), "size": size, "notes": ()}


def _check_bands(
    shape: tuple[int, ...], dtype: Any, name: str, max_values: int, dimensions: tuple[int, ...] = (2, 3)
) -> None:
    """Refuses what is no picture of numbers, before any of it is read."""
    if dtype.kind not in "buif":
        raise ImageError(f"{name} holds {dtype}, which are no real numbers; expected integers, floats or bool")
    if len(shape) not in dimensions or 0 in shape:
        expected = "(H, W) or (H, W, bands)" if 2 in dimensions else "(D, H, W) or (T, H, W, bands)"
        raise ImageError(f"{name} has the shape {shape}; expected {expected}")
    if math.prod(shape) > max_values:
        raise ImageError(
            f"{name} has {math.prod(shape):,} values; the limit is {max_values:,}. Cut it into parts first"
        )


def _npy(file: IO[bytes], name: str, max_values: int, dimensions: tuple[int, ...] = (2, 3)) -> np.ndarray[Any, Any]:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file, max_header_size=_MAX_HEADER)
    except OSError:
        raise
    except Exception as error:  # a header is read as Python's own text, which fails in many ways
        raise ImageError(f"{name} is no .npy file that can be read: {str(error)[:200]}") from error
    _check_bands(shape, dtype, name, max_values, dimensions)
    file.seek(0)
    try:
        found: np.ndarray[Any, Any] = npy.read_array(file, allow_pickle=False, max_header_size=_MAX_HEADER)
    except (ValueError, EOFError, MemoryError) as error:
        raise ImageError(f"{name} is broken: {str(error)[:200]}") from error
    return found


def _tiff(file: IO[bytes], name: str, max_values: int) -> np.ndarray[Any, Any]:
    """The first series of a TIFF, its bands last."""
    tifffile = optional("tifffile", "bands", "reading a multi-band TIFF")
    try:
        with quiet(), tifffile.TiffFile(file) as opened:
            series = opened.series[0]
            axes, shape = series.axes, tuple(series.shape)
            _check_bands(shape, np.dtype(series.dtype or "O"), name, max_values)
            if {"Y", "X"} - set(axes):
                raise ImageError(
                    f"{name} has the axes {axes}; expected rows and columns (Y, X), and one axis of bands beside them"
                )
            for page in series.pages:
                _check_segments(file, page, name, math.prod(shape) * np.dtype(series.dtype).itemsize)
            values = np.asarray(series.asarray())
            if values.shape != shape:
                raise ImageError(f"{name} is broken: it declares {shape} and holds {values.shape}")
    except ImageError:
        raise
    except Exception as error:  # a hostile file makes the decoder raise whatever it likes
        raise ImageError(f"{name} is no TIFF that can be read: {str(error)[:200] or type(error).__name__}") from error
    order = [axes.index("Y"), axes.index("X"), *(at for at, axis in enumerate(axes) if axis not in "YX")]
    return values.transpose(order)


def _check_segments(file: IO[bytes], page: Any, name: str, most: int) -> None:
    """Refuses what would grow without end when it is decompressed, and ways to compress of which that can't be told."""
    if page is None or int(page.compression) == _PLAIN:
        return
    if int(page.compression) == _PACKBITS:
        return  # which makes at most 64 bytes of one
    if int(page.compression) not in _DEFLATE:
        raise ImageError(
            f"{name} is compressed with {getattr(page.compression, 'name', page.compression)}, which is not read; save it uncompressed or with deflate"
        )
    for at, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(at)
        unpacked = zlib.decompressobj()
        unpacked.decompress(file.read(count), most + 1)
        if unpacked.unconsumed_tail:
            raise ImageError(f"{name} is broken: a part of it holds more than the whole picture that it declares")


def read_mask(path: str | os.PathLike[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Opens a mask as true and false (H, W), upright: true where a pixel's own number is above 0.

    The file's numbers as they are: palette indices, ids of 16 or 32 bits, any colour channel; where transparency varies, what is
    not transparent. Lossless formats only, because others blur the edges.

    Raises:
        ImageError: no such picture, or a JPEG or WebP.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path} is not a regular file")
        with open(path, "rb") as file, _hostile(str(path)), Image.open(file, formats=FORMATS) as image:
            if image.format not in ("PNG", "TIFF", "BMP", "GIF"):
                raise ImageError(f"{path} is a {image.format}, which blurs a mask's edges; save it as PNG")
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{path} has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS:,}")
            image.load()
            values = np.asarray(ImageOps.exif_transpose(image))
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path} can't be opened: {getattr(error, 'strerror', None) or error}") from error
    if values.ndim == 2:
        return np.asarray(values > 0)
    alpha = values[..., -1] if values.shape[2] in (2, 4) else None
    if alpha is not None and np.ptp(alpha) > 0:
        return np.asarray(alpha > 0)
    colours = values if alpha is None else values[..., :-1]
    return np.asarray((colours > 0).any(axis=2))


def _decode(file: Any, name: str, max_pixels: int, enough: Enough | None) -> tuple[Image.Image, ImageMeta]:
    if not file.read(1):
        raise ImageError(f"{name} is empty")
    file.seek(0)
    with _hostile(name), Image.open(file, formats=FORMATS) as image:
        if image.format in ("JPEG", "MPO"):
            _check_scans(file, name)
        return _to_rgb(image, name, image.format, max_pixels, enough=enough)


def _check_scans(file: Any, name: str) -> None:
    """A progressive JPEG may repeat its scans without end, each of them a pass over all pixels."""
    at = file.tell()
    file.seek(0)
    scans = sum(block.count(b"\xff\xda") for block in iter(lambda: file.read(1 << 20), b""))
    file.seek(at)
    if scans > _MAX_SCANS:
        raise ImageError(f"{name} has {scans} scans; no camera writes more than {_MAX_SCANS}")


@contextmanager
def _hostile(name: str) -> Iterator[None]:
    """Whatever Pillow raises while it reads becomes an `ImageError`."""
    try:
        with quiet():
            yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no picture that can be read; expected one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} declares too many pixels and is not decoded: {error}") from error
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory than there is") from error
    except Exception as error:  # a hostile file makes the decoders raise whatever it likes
        raise ImageError(f"{name} is broken: {str(error) or type(error).__name__}") from error


def _to_rgb(
    source: Image.Image,
    name: str,
    file_format: str | None,
    max_pixels: int,
    *,
    ours: bool = True,
    enough: Enough | None = None,
) -> tuple[Image.Image, ImageMeta]:
    image = source
    width, height = image.size
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    if width * height > limit:
        raise ImageError(f"{name} has {width} x {height} pixels; the limit is {limit:,}. Make it smaller first")
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height})")
    notes: list[str] = []
    if getattr(image, "is_animated", False):  # counting the frames could take for ever
        notes.append("only the first of several frames is used")
    mode = image.mode
    _refuse_misread(image, name)
    reduced = _reduced(image, enough) if enough is not None else False
    image.load()
    orientation = image.getexif().get(0x0112, 1)  # read after loading: PNG may keep it behind the pixels
    image = _eight_bit(image, name, notes)
    rgb = image.convert("RGB") if image.mode != "RGB" else image
    rgb = rgb._new(rgb.im) if ours or rgb is not source else rgb.copy()  # a bare picture: no EXIF, no GPS, no comment
    rgb.info.clear()
    if orientation in range(2, 9):
        rgb.getexif()[0x0112] = orientation
        rgb = ImageOps.exif_transpose(rgb)
        rgb.info.clear()
        notes.append("turned upright as its EXIF data says")
    size = rgb.size
    if reduced:
        size = (height, width) if orientation in _LYING else (width, height)
    meta: ImageMeta = {"name": name, "format": file_format, "mode": mode, "size": size, "notes": tuple(notes)}
    return rgb, meta


def _reduced(image: Image.Image, enough: Enough) -> bool:
    """Lets a JPEG be decoded at a part of its size, if that is enough; whether it will be."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return False
    whole = image.size
    lies = image.getexif().get(0x0112, 1) in _LYING
    wanted = enough(whole[::-1] if lies else whole)
    if wanted is not None:
        image.draft(None, wanted[::-1] if lies else wanted)
    return image.size != whole


def _refuse_misread(image: Image.Image, name: str) -> None:
    """What Pillow would open, but with wrong values and without a word."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, kinds = tags.get(258, (1,)), tags.get(339, (1,))
        if max(bits) > 8 and tags.get(262) == 0:
            raise ImageError(
                f"{name} is a TIFF of more than 8 bits with white as 0, which can't be read right; save it with black as 0"
            )
        if (8 in bits and 2 in kinds) or (32 in bits and 1 in kinds):
            raise ImageError(
                f"{name} is a TIFF of signed 8-bit or unsigned 32-bit numbers, which can't be read right; save it as 16-bit"
            )
    raw = str(image.tile[0].args) if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    if image.format == "PNG" and "transparency" in image.info and raw in ("RGB;16B", "L;2", "L;4"):
        raise ImageError(
            f"{name} is a PNG whose transparent colour can't be read at this depth; save it with 8 bits and an alpha channel"
        )


def _eight_bit(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """RGB or L with 8 bits, whatever the file's own mode."""
    if image.mode in ("RGB", "L"):
        # A single colour can be declared transparent instead of an alpha channel.
        if "transparency" not in image.info:
            return image
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _scaled(image, name, notes)
        if "transparency" in image.info:
            notes.append(_ON_WHITE)
            grey.paste(255, mask=Image.fromarray(np.asarray(image) == image.info["transparency"]))
        return grey
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB")
        notes.append(_ON_WHITE)
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{name} has the colour mode {image.mode}, which can't be read; save it as RGB") from error


def _scaled(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """16-bit, 32-bit and float grey as 8-bit grey, never clipped."""
    values = np.asarray(image)
    if _is_16_bit(values) or (image.mode == "I" and image.format == "PNG"):
        low, high, note = 0.0, 65535.0, "16 bits scaled to 8"
        if values.max(initial=0) < 4096:
            note += f"; it uses only 0 to {values.max()} of 65535 and looks black: stretch it first"
    else:
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ImageError(f"{name} holds NaN or infinity")
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        note = f"values from {low:g} to {high:g} scaled to 8 bits"
    notes.append(note)
    span = (high - low) or 1.0
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, 1_000_000 // values.shape[1])  # in strips, so that a large picture needs no second copy
    for top in range(0, len(values), rows):
        strip = values[top : top + rows].astype(np.float64)
        grey[top : top + rows] = np.rint((strip - low) * (255.0 / span))
    return Image.fromarray(grey)


def _is_16_bit(values: np.ndarray[Any, Any]) -> bool:
    return bool(values.dtype.kind == "u" and values.dtype.itemsize == 2)  # of either byte order


def _from_array(array: np.ndarray[Any, Any]) -> tuple[Image.Image, tuple[str, ...]]:
    shape = array.shape
    if array.size == 0:
        raise ImageError(f"array of shape {shape} is empty")
    if len(shape) == 3 and shape[2] == 1:
        array = array[..., 0]
    elif not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        hint = (
            "; it looks channels-first: array.transpose(1, 2, 0)" if len(shape) == 3 and shape[0] in (1, 3, 4) else ""
        )
        raise ImageError(
            f"array of shape {shape} is no photograph; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){hint}"
        )
    notes: tuple[str, ...] = ()
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif _is_16_bit(array):
        array, notes = np.rint(array / 257.0), ("16 bits scaled to 8",)
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ImageError(f"float array reaches from {low:g} to {high:g}; expected 0 to 1, or uint8 from 0 to 255")
        array = np.rint(array.astype(np.float64) * 255)
    elif array.dtype != np.uint8:
        raise ImageError(
            f"array of type {array.dtype} is no photograph; expected uint8, uint16, bool, or floats in 0..1"
        )
    return Image.fromarray(np.ascontiguousarray(array, np.uint8)), notes
