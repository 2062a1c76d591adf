"""Where the notebooks take their pictures from, and how they show them."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

import sightline

SHIPPED = Path(sightline.__file__).parent / "data" / "demo"
# A folder of photographs with the object's name in theirs: SIGHTLINE_PHOTOS=my/photos, or nothing for the shipped ones alone.
OWN = os.environ.get("SIGHTLINE_PHOTOS", str(Path(__file__).parents[3] / "shared" / "data"))


def photo(name: str, otherwise: str = "cat") -> Image.Image:
    """A photograph whose file name holds `name`, or else the shipped one of the name `otherwise`; says which it is."""
    found = sorted(
        path
        for path in (Path(OWN).rglob("*") if OWN else ())
        if path.suffix.lower() in {".jpg", ".jpeg", ".png"} and name.replace(" ", "_") in path.stem.lower()
    )
    path = min(found, key=lambda path: (len(path.stem), path.stem), default=SHIPPED / f"{otherwise}.jpg")
    if found:
        print(f"{name}: {path.name}")
    else:
        print(f"no photograph of {name} is at hand (SIGHTLINE_PHOTOS=FOLDER): the shipped {otherwise}.jpg stands in")
    return sightline.read_image(path)[0]


def shown(picture: Image.Image, says: str, width: int = 1000) -> Any:
    """A picture as a notebook shows it: a JPEG of at most so many pixels across, so that the file stays small; `says` in words."""
    from IPython.display import Image as Shown

    width = min(width, picture.width)
    height = round(picture.height * width / picture.width)
    file = BytesIO()
    picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=70)
    return Shown(file.getvalue(), format="jpeg", alt=says)
