"""A target of models that give an embedding: how like another picture this one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.data.images import Source, read_image
from sightline.engine.asked import Asked, Mark, Target
from sightline.engine.tasks import refuse, task_of
from sightline.errors import ImageError, ModelError, NonFiniteError, TargetError
from sightline.models.adapter import Adapter, like_weights
from sightline.models.outputs import described
from sightline.models.twin import isolated, twin
from sightline.models.view import View


def similarity(other: Source) -> Target:
    """Cosine of a picture's embedding and another's, -1 to 1: which places make the two alike for the model.

    Args:
        other: the picture to compare with: path, bytes, PIL image, or array (H, W, 3). It is shown beside the map, and runs through
            the model once, without a graph.
    """

    known: list[
        tuple[Adapter, Any, str, Tensor]
    ] = []  # of one model after the other: a batch asks for each of its pictures

    def resolved(adapter: Adapter, output: Any, image: int, view: View | None) -> Asked:
        task = task_of(adapter, output)
        if task == "classes" and not adapter.task:
            raise TargetError(
                f"{adapter.name} gives classes, or nothing says that it gives an embedding; say so: --task embedding, "
                "load_model(..., task='embedding') takes the classes off, adapt(module, task='embedding') takes what the module returns"
            )
        if task != "embedding":
            refuse(adapter, output, "embedding to compare with another picture's")
        if adapter.preprocess is None:
            raise ModelError(f"{adapter.name} comes without preprocessing, so that no photograph can be compared with")
        (last,) = tuple(known) or (None,)  # read once: another thread may ask another model meanwhile
        if last is not None and last[0] is adapter:
            return asked(*last[1:])
        try:
            photo, meta = read_image(other)
        except ImageError as error:  # not of the picture that is explained
            raise TargetError(f"the picture to compare with: {error}") from error
        x = like_weights(adapter.preprocess(photo)[0][None], adapter.module)
        with isolated(x), torch.no_grad():
            there = embedding(adapter.logits(twin(adapter.module, {})(x)))
        if not there.isfinite().all():
            raise NonFiniteError(f"NaN or infinity in the embedding of {meta['name']}", (0,))

        known[:] = [(adapter, photo, meta["name"], there)]
        return asked(photo, meta["name"], there)

    def asked(photo: Any, name: str, there: Tensor) -> Asked:
        def score(output: Any) -> Tensor:
            return torch.cosine_similarity(embedding(output), there.to(embedding(output)), dim=1)

        return Asked(score, None, f"like {Path(name).name}", mark=Mark(picture=photo))

    def unresolved(_output: Any) -> Tensor:
        raise TargetError("a comparison needs the model beside its output; give it as a target")

    unresolved.resolved = resolved  # type: ignore[attr-defined]
    return unresolved


def embedding(output: Any) -> Tensor:
    """The output as embeddings (B, D)."""
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] == 1:
        return output[:, :, 0, 0]
    raise TargetError(
        f"the model returned {described(output)}, which is no embedding (B, D); say how to get one: adapt(module, logits=function)"
    )
