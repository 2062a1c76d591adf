"""Shards computed by Ray, on a cluster or on this machine: the same function, where Ray decides who computes what and replaces whoever dies.

Every worker writes the shards that it computed itself; what travels is their numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sightline._optional import optional
from sightline.batch.decode import Decoders
from sightline.batch.local import Job, Stop, Told, compute
from sightline.batch.work import Fitting
from sightline.errors import OutputError

_CORES = 4  # a worker's, where there is no GPU


class _Worker:
    """A process of Ray with the model: computes one shard after the other."""

    def __init__(self, given: tuple[Any, int, int]) -> None:
        import ray

        job, cores, threads = given
        self.job: Job = ray.get(job)
        module = self.job.ask.adapter.module
        if ray.get_gpu_ids():
            module.to("cuda")
        else:
            torch.set_num_threads(threads)
        self.fitting = Fitting(self.job.plan["batch"])
        preprocess = self.job.ask.adapter.preprocess
        self.decoders = Decoders(
            self.job.kind, self.job.root, preprocess, workers=cores, timeout_s=self.job.timeout_s
        )  # whose processes end with this one

    def __call__(self, asked: dict[str, Any]) -> dict[str, Any]:
        counts = [0, 0]

        def told(pictures: int, errors: int) -> None:
            counts[0] += pictures
            counts[1] += errors

        (number,) = (int(one) for one in asked["shard"])
        compute(self.job, [number], self.decoders, stop=Stop(), told=told, fitting=self.fitting)
        return {"pictures": [counts[0]], "errors": [counts[1]]}


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    """Ray, joined to the cluster that RAY_ADDRESS names, or begun on this machine; what was begun here is ended again.

    Raises:
        MissingExtraError: Ray is missing (the extra `ray`).
        OutputError: the cluster can't be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is told by us
    ray = optional("ray", "ray", "runs on a cluster")
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(
            f"the cluster of Ray at {os.environ.get('RAY_ADDRESS', 'this machine')} can't be reached: {error}. "
            "Start it (ray start --head), or leave RAY_ADDRESS out"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def compute_on_ray(ray: Any, job: Job, numbers: Sequence[int], *, stop: Stop, told: Told) -> None:
    """Computes shards, in any order.

    Args:
        ray: from `connected`.
        job: what is computed; every machine must see its folder under the same path.
        numbers: of the shards.
        stop: when it is asked, the next shard to be done is the last that is waited for.
        told: called with (pictures, errors) after each shard.
    """
    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    workers = min(job.workers or gpus or max(1, cores // _CORES), len(numbers))
    each = max(1, cores // workers)
    threads = min(each, torch.get_num_threads())  # as here, so that they round alike
    try:
        kept = ray.put(dataclasses.replace(job, folder=job.folder.resolve()))
    except (TypeError, AttributeError, ValueError) as error:
        raise OutputError(
            f"the model or its preprocessing can't be sent to the workers of Ray: {error}. Take functions of a module, or engine local"
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
    found = shards.map_batches(
        _Worker,
        batch_size=1,
        concurrency=workers,
        num_cpus=each,
        num_gpus=1 if gpus else 0,
        fn_constructor_args=[(kept, each, threads)],
    )
    try:
        for row in found.iter_rows():
            told(int(row["pictures"]), int(row["errors"]))
            if stop.asked:
                return
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise OutputError(
            f"a worker of Ray failed: {str(cause).strip().splitlines()[-1]}. What is done is kept"
        ) from error
