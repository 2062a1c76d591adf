"""The pictures of a run once more: found where it found them, and read as the model gets them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.audit.heat import Heats
from sightline.audit.trials import Pool, asked
from sightline.batch.decode import TIMEOUT_S, Decoders, Picture
from sightline.batch.local import tasks
from sightline.batch.plan import DATA
from sightline.batch.results import ITEMS, Run
from sightline.batch.shards import read_rows
from sightline.data.sets import Source, find_items
from sightline.errors import ImageError, ModelError, OutputError, TargetError
from sightline.evaluation.items import Item, boxes_in, mask_of, masks_in, of_picture
from sightline.identity import identity
from sightline.models.adapter import Adapter
from sightline.models.preprocess import specification

Array = np.ndarray[Any, np.dtype[Any]]


def check_model(run: Run, adapter: Adapter) -> None:
    """Refuses a model that is not the one of the run.

    Raises:
        ModelError: its weights, preprocessing or classes are others.
    """
    made, here = run.plan["model"], identity(adapter, [], {})["model"]
    for name, what in (
        ("weights", "weights"),
        ("input", "preprocessing"),
        ("classes", "class names"),
        ("answers", "answers"),
    ):
        if isinstance(here, dict) and name in made and made[name] != here.get(name):
            raise ModelError(
                f"{adapter.name} has other {what} than the model of the run, {made.get('name')}; give the same with --model and its options"
            )


def source_of(run: Run, data: str | os.PathLike[str] | None) -> Source:
    """Where the pictures of a run are: `data`, or where they were when it was made.

    Raises:
        ImageError: they are not there, or none of them is the run's.
    """
    if data is None:
        kept = (read_rows(run.folder / ITEMS).schema.metadata or {}).get(DATA.encode())
        if kept is None:
            raise ImageError("the run doesn't say where its pictures are; give them with --data")
        data = kept.decode()
    return find_items(data)


def read_pool(
    heats: Heats,
    chosen: Sequence[int],
    source: Source,
    adapter: Adapter,
    objects: Callable[[int], Array | None] | None,
    *,
    batch: int,
    told: Callable[[int], None] | None = None,
) -> tuple[Pool, list[str]]:
    """Pictures as the model gets them, with what it says of them; and what must be said of those that are missing.

    Args:
        heats: the maps.
        chosen: indices of the pictures.
        source: where they are.
        adapter: the model.
        objects: index -> the mask (H, W) over the photograph, or None; left out where there are no masks.
        batch: pictures in a forward.
        told: called with the number of pictures that were shown to the model.

    Raises:
        ImageError: none of them can be read.
        TargetError: the model knows one class only.
    """
    if adapter.preprocess is None:
        raise ModelError(f"{adapter.name} comes without preprocessing, so that no photograph can be fed to it")
    places = {name: at for at, name in enumerate(source.items["id"].to_pylist())}
    there = [index for index in chosen if heats.ids[index] in places]
    groups = [
        tasks(source.items.take([places[heats.ids[index]] for index in there[at : at + batch]]))
        for at in range(0, len(there), batch)
    ]
    found: list[tuple[int, Picture]] = []
    with Decoders(source.kind, source.root, adapter.preprocess, timeout_s=TIMEOUT_S) as decoders:
        for number, read in enumerate(decoders.batches(groups)):
            for index, one in zip(there[number * batch :], read, strict=False):
                if isinstance(one, Picture) and (not found or one.x.shape == found[0][1].x.shape):
                    found.append((index, one))
    if not found:
        raise ImageError(
            f"none of the {len(chosen)} pictures that were chosen can be read; the first is {heats.ids[chosen[0]]!r}. "
            "Give the place of the run's pictures with --data"
        )
    x = torch.stack([one.x for _, one in found])
    says = []
    for part in asked(adapter, x, batch, told):
        if part.shape[1] < 2:
            raise TargetError("the model returns one number for a picture, so that there is no other class to flip to")
        says += [adapter.label(at) for at in part.argmax(dim=1).tolist()]
    masks = None
    if objects is not None:
        masks = torch.stack([_object(objects(index), one, x.shape[2:]) for index, one in found])
    notes = []
    if len(found) < len(chosen):
        notes.append(
            f"{len(chosen) - len(found)} of the {len(chosen)} pictures chosen for trials can't be read, or are of another size."
        )
    differ = sum(said != heats.predicted[index] for said, (index, _) in zip(says, found, strict=True))
    if differ:
        notes.append(
            f"Of {differ} of {len(found)} pictures the model says something else now than in the run; they are left out of trials."
            + (" Are these the pictures of the run (--data)?" if differ > len(found) / 10 else "")
        )
    return Pool({index: row for row, (index, _) in enumerate(found)}, x, np.array(says), masks), notes


def _object(mask: Array | None, picture: Picture, size: Sequence[int]) -> Tensor:
    """The object (H, W) as the model gets it, 0 to 1; nan without a mask, or with none of the object in sight."""
    from sightline.audit.heat import covered

    found = None if mask is None else covered(mask, picture.view, (int(size[0]), int(size[1])))
    if found is None or not found.any():
        return torch.full(tuple(size), torch.nan)
    return torch.from_numpy(found).float()


def masks_of(masks: Path | None, boxes: Path | None) -> Callable[[str, tuple[int, int]], Array | None] | None:
    """(id, (width, height)) -> the mask (H, W) of a picture, or None where it has none; None where none are given.

    Raises:
        MetricError: both are given, or they can't be read.
    """
    if masks is None and boxes is None:
        return None
    if masks is not None and boxes is not None:
        raise OutputError("masks and boxes exclude each other; give the ones that you believe more")
    outlines = {} if masks is None else masks_in(masks)
    corners = {} if boxes is None else boxes_in(boxes)

    def found(name: str, size: tuple[int, int]) -> Array | None:
        stem = os.path.splitext(name)[0]
        item = Item(name, Path(name), mask=of_picture(outlines, stem), boxes=of_picture(corners, name) or ())
        return mask_of(item, size)

    return found


def picture_of(x: Tensor, adapter: Adapter) -> Image.Image:
    """What the model gets, as a person sees it: (C, H, W) back to colours.

    Without a known mean and spread its own lowest and highest value are black and white.
    """
    spec = specification(adapter.preprocess) if adapter.preprocess is not None else None
    pixels = x.detach().float().cpu()
    if spec is not None:
        mean, std = (torch.tensor(spec[name], dtype=torch.float32)[:, None, None] for name in ("mean", "std"))
        pixels = pixels * std + mean
    else:
        low, high = pixels.amin(), pixels.amax()
        pixels = (pixels - low) / (high - low).clamp_min(1e-6)
    if pixels.shape[0] == 1:
        pixels = pixels.expand(3, -1, -1)
    values = (pixels[:3].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(values)
