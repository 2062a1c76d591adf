"""Draws docs/images/tasks-*.jpg: what is explained beyond one label, on small networks trained on drawn shapes as in the tests.

python docs/task_figures.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import sightline

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from made_tasks import NAMES, detector, photo, pooled, preprocess, segmenter  # noqa: E402
from made_texts import BOTH, PATCH, PROMPTS, clip, drawn, exact, llava, llava_processor, tokenizer  # noqa: E402

DEMO = Path(sightline.__file__).parent / "data" / "demo"
SEED, MIXED = 5, 2
GREY = ("detection", "prompts", "answer", "labels", "binary", "regression")


def figures() -> dict[str, Image.Image]:
    """Each picture under its name."""
    shapes = photo(SEED)
    pixels = sightline.adapt(
        segmenter(), preprocess=preprocess, labels=NAMES, name="a small network trained on drawn shapes"
    )
    boxes = sightline.adapt(
        detector(),
        preprocess=preprocess,
        labels=NAMES,
        task="detection",
        name="a small detector trained on drawn shapes",
    )
    small = "a small network trained on drawn shapes"
    tags = sightline.adapt(pooled("labels"), preprocess=preprocess, labels=NAMES[1:], task="labels", name=small)
    one = sightline.adapt(pooled("binary"), preprocess=preprocess, labels=["a triangle"], name=small)
    area = sightline.adapt(
        pooled("regression"), preprocess=preprocess, labels=["percent disc"], task="regression", name=small
    )
    texts = sightline.zero_shot(clip(), tokenizer(), list(PROMPTS), preprocess=exact, name="a CLIP set by hand")
    said = [
        sightline.answering(
            llava(),
            llava_processor(),
            "what is this ?",
            answer=word,
            preprocess=exact,
            name="a LLaVA set by hand",
        )
        for word in ("red", "blue")
    ]
    mixed = photo(MIXED)
    features = sightline.load_model("bundled", task="embedding")
    cat = Image.open(DEMO / "cat.jpg")
    found = {
        "labels": sightline.compare(mixed, tags, methods=["hires-cam"], targets=[sightline.above(0.5)]),
        "binary": sightline.compare(
            mixed, one, methods=["hires-cam"], targets=[sightline.binary(), sightline.binary(False)]
        ),
        "regression": sightline.compare(
            mixed, area, methods=["hires-cam"], targets=[sightline.regression(), sightline.regression(up=False)]
        ),
        "prompts": sightline.compare(drawn(BOTH), texts, methods=["grad-cam"], targets=list(PROMPTS)),
        "answer": [
            heat
            for model in said
            for heat in sightline.compare(
                drawn(BOTH), model, methods=["occlusion"], targets=[0], options={"patch": 2 * PATCH, "stride": PATCH}
            )
        ],
        "segmentation": sightline.compare(
            shapes,
            pixels,
            methods=["hires-cam"],
            targets=[sightline.segment(point=(110, 110)), sightline.segment(point=(245, 250))],
        ),
        "detection": sightline.compare(
            shapes, boxes, methods=["hires-cam", "d-rise"], targets=[sightline.above(0.5)], options={"samples": 2000}
        ),
        "similarity": [
            sightline.explain(cat.crop((60, 40, 360, 300)), features, target=sightline.similarity(DEMO / "cat.jpg"))
        ],
    }
    return {
        name: sightline.side_by_side(maps, "grey-photo" if name in GREY else None) if len(maps) > 1 else maps[0].panel()
        for name, maps in found.items()
    }


if __name__ == "__main__":
    for name, picture in figures().items():
        width = min(picture.width, 1500)
        picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS).save(
            HERE / "images" / f"tasks-{name}.jpg", quality=88
        )
