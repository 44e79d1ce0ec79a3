"""Shards on many machines at once, by Ray Data (the extra `scale`).

A shard is the unit of work. It appears whole or not at all, so when a worker dies, Ray gives its
shard to another one, and nothing is lost and nothing is there twice. All machines see the source
and the target under the same paths, and have this package and the weights.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import AnnotatorError, needed
from .datasets.shards import Maker, is_made
from .datasets.sources import Job
from .errors import sentence

CLUSTER = "RAY_ADDRESS"
"""The environment variable by which Ray finds a cluster; without it, this machine is all."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
}
"""Ray says nothing to its makers, and to the user only what has failed."""


def check(maker: Maker) -> None:
    """Raises AnnotatorError where workers can't be had, or can't have that device."""
    packages()
    if str(maker.device).startswith("cuda:"):
        raise AnnotatorError(
            f"The device is {maker.device}, but Ray gives each worker a GPU of its own: say cuda."
        )


def packages() -> tuple[Any, Any]:
    """ray and ray.data; raises AnnotatorError with the line that installs them."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ray, data = (needed(name, to_install="'ray[data]'") for name in ("ray", "ray.data"))
    return ray, data


def make_by_ray(
    maker: Maker, jobs: list[Job], target: Path, workers: int, more: Callable[[int], None]
) -> None:
    """Makes the shards with so many workers, in no order.

    `more` is told the number of pictures of each shard when it is there. Raises AnnotatorError with
    what a worker can't go on without.
    """
    ray, data = packages()
    ours = not ray.is_initialized()
    if ours:
        _start(ray, workers)
    try:
        data.DataContext.get_current().enable_progress_bars = False
        rows = [{"job": pickle.dumps(job)} for job in jobs]
        found = data.from_items(rows, override_num_blocks=len(rows)).map(
            Worker,
            fn_constructor_args=(maker, target),
            compute=data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus_each(maker, ray.cluster_resources().get("GPU", 0)),
        )
        for row in found.iter_rows():
            if row["error"]:
                raise AnnotatorError(row["error"])
            more(row["pictures"])
    finally:
        if ours:
            ray.shutdown()


def gpus_each(maker: Maker, gpus: float) -> int:
    """One for each worker where the cluster has so many `gpus`, and a network may use them."""
    may = maker.device is None or str(maker.device) == "cuda"
    return int(gpus > 0 and may and bool(maker.annotator.weights))


def _start(ray: Any, workers: int) -> None:
    """Ray on the cluster that the environment names, or else here with room for all workers."""
    quiet = {"logging_level": "error", "log_to_driver": False}
    if CLUSTER in os.environ:
        ray.init(**quiet)
    else:
        cores = max(workers, os.cpu_count() or 1)
        ray.init(num_cpus=cores, include_dashboard=False, **quiet)


class Worker:
    """What Ray keeps in each process: the annotator with its networks."""

    def __init__(self, maker: Maker, target: Path) -> None:
        self._maker, self._target = maker, target
        self._is_checked = False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Makes the shard of one job, if it isn't there; gives the number of its pictures."""
        job: Job = pickle.loads(row["job"])
        counts = [job.count]
        try:
            if not is_made(job, self._target):
                counts.clear()
                self._check()
                self._maker.make(job, self._target, counts.append)
        except (AnnotatorError, OSError) as error:
            return {"pictures": 0, "error": sentence(error)}
        return {"pictures": sum(counts), "error": ""}

    def _check(self) -> None:
        if not self._is_checked:
            self._maker.check()
            self._is_checked = True
