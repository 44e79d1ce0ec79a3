"""All shards of a data set: which there are, which are to be made, and that they fit together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import ANNOTATORS
from ..base import AnnotatorError, Picture
from ..files import meant_for, whole
from ..settings import complete, meant
from .shards import Maker, failures, files_of, is_made
from .sources import Job, jobs_of

RECORD = "annotated.json"
"""In the folder of the shards: how they were made."""


@dataclass(frozen=True)
class Result:
    """What became of a data set.

    made: how many shards were written, of `shards` there are now.
    failed: a sentence for each picture that is in none of them.
    """

    made: int
    shards: int
    failed: tuple[str, ...]


def annotate_dataset(
    name: str,
    source: Path | str,
    target: Path | str,
    *,
    shard_size: int | None = None,
    workers: int = 0,
    mask: Picture | None = None,
    device: Any = None,
    show: Callable[[int, int], None] = lambda done, total: None,
    **params: object,
) -> Result:
    """Shards of `source` with the hints of the annotator called `name`, in the folder `target`.

    source: see sources.jobs_of; shard_size: pictures in a shard, 1000 unless given.
    workers: 0 works in this process, more than 0 through Ray (see scale).
    show: is told how many pictures are done, and of how many (0 where that isn't known).

    Shards that are there already are left as they are, so a call that was interrupted goes on where
    it was. Pictures that can't be read are told, and stop nothing. Raises AnnotatorError where
    nothing can be made at all, or where `target` has shards that were made in another way.
    """
    if name not in ANNOTATORS:
        raise AnnotatorError(f"There is no annotator {name!r}{meant(name, ANNOTATORS)}")
    annotator = ANNOTATORS[name]
    maker = Maker(annotator, complete(name, annotator.settings, params), mask, device)
    source, target = Path(source).resolve(), Path(target).resolve()
    jobs = jobs_of(source, shard_size)
    if target == source:
        raise AnnotatorError(f"{target} has the pictures themselves: name another folder.")
    record = _record(maker, jobs)
    _compare(target, record)
    left = [job for job in jobs if not is_made(job, target)]
    if left:
        _check(maker, workers)
    _prepare(target, record, jobs)
    total = sum(job.count for job in jobs)
    done = total - sum(job.count for job in left)

    def more(count: int) -> None:
        nonlocal done
        done += count
        show(done, total)

    more(0)
    _make(maker, left, target, workers, more)
    _tidy(target, jobs)
    return Result(len(left), len(jobs), tuple(one for job in jobs for one in failures(job, target)))


def _check(maker: Maker, workers: int) -> None:
    """Raises AnnotatorError where nothing can be made; weights are the workers' affair."""
    if workers:
        from ..scale import check

        check(maker)
    else:
        maker.check()


def _make(
    maker: Maker, jobs: list[Job], target: Path, workers: int, more: Callable[[int], None]
) -> None:
    """Makes the shards; `more` is told the number of pictures after every few."""
    if workers and jobs:
        from ..scale import make_by_ray

        make_by_ray(maker, jobs, target, workers, more)
        return
    for job in jobs:
        maker.make(job, target, more)


def _record(maker: Maker, jobs: list[Job]) -> dict[str, Any]:
    """All that the bytes of the shards depend on, but for the pictures' content."""
    names = hashlib.sha256()
    for job in jobs:
        if isinstance(job.source, Path):
            names.update(f"{job.name}\n{job.source.name}\n".encode())
        else:
            lines = (f"{entry.key}\n{entry.name}\n" for entry in job.source)
            names.update(f"{job.name}\n{''.join(lines)}".encode())
    mask = None
    if maker.mask is not None:
        pixels = np.ascontiguousarray(maker.mask)
        mask = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return {
        "annotator": maker.annotator.name,
        **maker.settings,
        "mask": mask,
        "shards": len(jobs),
        "pictures": names.hexdigest(),
    }


def _compare(target: Path, record: dict[str, Any]) -> None:
    """Raises AnnotatorError where the folder has other shards than those to be made."""
    path = target / RECORD
    if not path.is_file():
        if any(target.glob("*.tar")):
            raise AnnotatorError(
                f"{target} has shards that were not made here: name another folder."
            )
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        before = {}
    other = [name for name in {**before, **record} if before.get(name) != record.get(name)]
    if other:
        raise AnnotatorError(
            f"{target} has shards made {_difference(other[0], before)}: name another folder, or do "
            "as then."
        )


def _difference(name: str, before: dict[str, Any]) -> str:
    if name in ("pictures", "shards"):
        return "of other pictures, or with another number of them in each"
    if name == "mask":
        return "with another mask"
    return f"with {name} {before.get(name)}"


def _prepare(target: Path, record: dict[str, Any], jobs: list[Job]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _tidy(target, jobs)
    if not (target / RECORD).is_file():
        with whole(target / RECORD, lasting=True) as part:
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _tidy(target: Path, jobs: list[Job]) -> None:
    """Remove what killed processes have left of these shards, and nothing of anyone else."""
    ours = {RECORD, *(name for job in jobs for name in files_of(job))}
    for part in target.iterdir():
        if meant_for(part.name) in ours:
            part.unlink(missing_ok=True)
