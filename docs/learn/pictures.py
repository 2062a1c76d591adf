"""Where the notebooks take their pictures from, and how they show them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

import sightline

SHIPPED = Path(sightline.__file__).parent / "data" / "demo"
# A folder of photographs with the object's name in theirs: SIGHTLINE_PHOTOS=my/photos, or SIGHTLINE_PHOTOS= (empty) for the shipped
# ones alone. When it isn't said at all, the folder shared/data beside this checkout, where there is one.
OWN = os.environ.get("SIGHTLINE_PHOTOS", str(Path(__file__).resolve().parents[3] / "shared" / "data"))


def photo(name: str, otherwise: str | Image.Image = "cat") -> Image.Image:
    """A photograph whose file name holds the words of `name`, or else the shipped one (or the picture) `otherwise`; says which it is.

    The path of a picture of your own will do, too.
    """
    path = _found(name)
    if path is not None:
        print(f"{name}: {path.name}")
        return sightline.read_image(path)[0]
    drawn = isinstance(otherwise, Image.Image)
    instead = "the picture made above" if drawn else f"the shipped {otherwise}.jpg"
    print(f"no photograph of {name} is at hand (SIGHTLINE_PHOTOS=FOLDER): {instead} stands in")
    return otherwise if isinstance(otherwise, Image.Image) else sightline.read_image(SHIPPED / f"{otherwise}.jpg")[0]


def at_hand(name: str) -> bool:
    """Whether `photo` has a photograph of that, so that nothing stands in for it."""
    return _found(name) is not None


def _found(name: str) -> Path | None:
    if Path(name).is_file():
        return Path(name)
    found = [
        path
        for path in (Path(OWN).rglob("*") if OWN else ())
        if path.suffix.lower() in {".jpg", ".jpeg", ".png"} and f" {_words(name)} " in f" {_words(path.stem)} "
    ]
    return min(found, key=lambda path: (len(path.stem), path.stem), default=None)


def _words(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def draw(
    pictures: Sequence[Any],
    titles: Sequence[str],
    *,
    columns: int = 4,
    colours: str = "inferno",
    lowest: float | None = None,
    highest: float | None = None,
) -> None:
    """Photographs and maps (h, w) in rows, about 900 pixels wide. Without `lowest` and `highest` each map has its own scale."""
    import matplotlib.pyplot as plt

    rows = -(-len(pictures) // columns)
    tall = max(_height(one) for one in pictures)
    figure, places = plt.subplots(
        rows, columns, figsize=(9, rows * (9 / columns * tall + 0.35)), squeeze=False, layout="constrained"
    )
    for place in places.flat:
        place.axis("off")
    for place, one, title in zip(places.flat, pictures, titles, strict=False):
        smooth = "auto" if isinstance(one, Image.Image) else "nearest"  # a cell of a map stays a square
        place.imshow(one, cmap=colours, vmin=lowest, vmax=highest, interpolation=smooth)
        place.set_title(title, fontsize=8)
    plt.show()
    plt.close(figure)


def _height(picture: Any) -> float:
    width, height = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
    return float(height / width)


def shown(picture: Image.Image, says: str, width: int = 1000) -> Any:
    """A picture as a notebook shows it: a JPEG of at most so many pixels across, so that the file stays small; `says` in words."""
    from IPython.display import Image as Shown

    width = min(width, picture.width)
    height = round(picture.height * width / picture.width)
    file = BytesIO()
    picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=70)
    return Shown(file.getvalue(), format="jpeg", alt=says)
