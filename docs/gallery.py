"""Makes the gallery, docs/gallery.md and its pictures: python docs/gallery.py

python docs/gallery.py FOLDER makes one of your own photographs, into build/gallery, a page that opens from the disk.
"""

from __future__ import annotations

import html
import sys
from pathlib import Path

from PIL import Image

import sightline

HERE = Path(__file__).parent
DEMO = Path(sightline.__file__).parent / "data" / "demo"
WIDTH = 1100
TOP = """# Gallery

Every picture and every number on this page is made by `python docs/gallery.py`, with the model that comes inside. Red and yellow are where evidence lies; the brightest is the map's own highest value.
`python docs/gallery.py FOLDER` makes the same of your own photographs (dogs, cars, ...).
"""
SOURCES = """## Whose photographs

Chelsea the cat by Stéfan van der Walt, the espresso by Rachel Michetti, the rocket (launch of DSCOVR) by SpaceX: public domain (CC0), from the sample data of scikit-image.
"""


def pair() -> Image.Image:
    """The cat above the espresso, as one photograph."""
    cat, cup = (Image.open(DEMO / f"{name}.jpg").convert("RGB").resize((600, 400)) for name in ("cat", "coffee"))
    whole = Image.new("RGB", (600, 600))
    whole.paste(cat.crop((0, 30, 600, 330)), (0, 0))
    whole.paste(cup.crop((0, 0, 600, 300)), (0, 300))
    return whole


def far() -> Image.Image:
    """The espresso, small, on a plain ground."""
    cup = Image.open(DEMO / "coffee.jpg").convert("RGB")
    whole = Image.new("RGB", (550, 366), (120, 160, 90))
    whole.paste(cup.resize((150, 100)), (200, 133))
    return whole


def entries(model: sightline.Adapter) -> list[tuple[str, str, Image.Image, str]]:
    """(name, title, picture, what is seen) of each."""
    found = []
    for name, title in (("coffee", "An espresso"), ("cat", "A cat"), ("rocket", "A rocket")):
        heat = sightline.explain(DEMO / f"{name}.jpg", model)
        found.append((name, title, heat.panel(), f"{says(heat)} The map is that of {heat.label}."))
    cats, cups = sightline.compare(pair(), model, methods=["grad-cam"], targets=["tiger cat", "espresso"])
    found.append(
        (
            "pair",
            "Two things in one picture",
            sightline.side_by_side([cats, cups]),
            f"{says(cats)} Asked for either, the map goes to it; both are on one scale.",
        )
    )
    wrong = sightline.explain(far(), model)
    card = wrong.trust()
    found.append(
        (
            "wrong",
            "A failure",
            wrong.panel(),
            f"The same espresso, small, on a plain ground. {says(wrong)} That is wrong, and the map can't tell: it shows where the evidence for {wrong.label} lies. "
            f"Its trust card says: {card.verdict}.",
        )
    )
    return found


def says(heat: sightline.Heatmap) -> str:
    """What the model says, in words."""
    first, second = heat.predictions[:2]
    return f"The model says {first.label} ({first.probability:.0%}), then {second.label} ({second.probability:.0%})."


def page(found: list[tuple[str, str, Image.Image, str]]) -> str:
    lines = [TOP]
    for name, title, _, text in found:
        lines += [f"## {title}\n", f"![{title}: the photograph and its map](images/gallery-{name}.jpg)\n", f"{text}\n"]
    return "\n".join([*lines, SOURCES])


def written(picture: Image.Image, path: Path) -> None:
    width = min(picture.width, WIDTH)
    small = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    small.convert("RGB").save(path, quality=86)


def of_folder(folder: Path, out: Path) -> Path:
    """A page of a person's own photographs."""
    out.mkdir(parents=True, exist_ok=True)
    model = sightline.load_model("bundled")
    parts = []
    paths = [one for one in sorted(folder.iterdir()) if one.suffix.lower() in {".jpg", ".jpeg", ".png"}]
    if not paths:
        sys.exit(f"{folder} holds no .jpg or .png; give a folder of photographs")
    for number, path in enumerate(paths, 1):
        print(f"{number} of {len(paths)}: {path.name}", file=sys.stderr)
        heat = sightline.explain(path, model)
        written(heat.panel(), out / f"{number}.jpg")
        parts.append(
            f"<h2>{html.escape(path.name)}</h2><p>{html.escape(says(heat))}</p><img src='{number}.jpg' alt=''>"
        )
    (out / "index.html").write_text(
        f"<!DOCTYPE html><meta charset='utf-8'><title>Gallery</title>{''.join(parts)}", encoding="utf-8"
    )
    return out / "index.html"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(of_folder(Path(sys.argv[1]), HERE.parent / "build" / "gallery"))
    else:
        made = entries(sightline.load_model("bundled"))
        for name, _, picture, _ in made:
            written(picture, HERE / "images" / f"gallery-{name}.jpg")
        (HERE / "gallery.md").write_text(page(made), encoding="utf-8")
