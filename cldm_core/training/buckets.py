"""Aspect buckets: the sizes that pictures of any aspect are trained at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import CldmError
from ..hints import HINT_SCALE
from .cache import stored_arrays
from .draws import Indices
from .pairs import Size, Stored
from .sources import Source

T = TypeVar("T")

READERS = 8
CHUNK = 4096
"""So many pictures are waited for at once."""


def aspect_buckets(resolution: int, *, step: int = 64, longest: float = 2.0) -> tuple[Size, ...]:
    """Sizes (height, width) of about resolution x resolution pixels, and never more.

    step: sides are multiples of it; a UNet that halves its latents three times takes multiples of
    64 (SD 1.5 and 2.1), one that halves them twice, multiples of 32 (SDXL, the embedded model).
    longest: the largest aspect of long to short side. Raises CldmError where nothing fits.
    """
    if step < HINT_SCALE or step % HINT_SCALE or resolution < step or not longest >= 1:
        raise CldmError(
            f"Buckets for {resolution} pixels in steps of {step}, {longest:g} times as long as "
            f"wide at most, don't exist: steps are multiples of {HINT_SCALE}, no larger than the "
            "resolution, and the aspect is at least 1."
        )
    sizes = {(_floor(resolution, step),) * 2}
    for short in range(step, _floor(resolution, step) + 1, step):
        long = _floor(resolution * resolution // short, step)
        if long <= longest * short:
            sizes |= {(short, long), (long, short)}
    return tuple(sorted(sizes))


def _floor(side: int, step: int) -> int:
    return side // step * step


def nearest_bucket(sizes: np.ndarray, buckets: Sequence[Size]) -> Indices:
    """For each size (N, 2) the number of the bucket whose aspect is nearest, by its logarithm."""
    of_buckets = _aspects(buckets)
    order = np.argsort(of_buckets, kind="stable")
    between = (of_buckets[order][1:] + of_buckets[order][:-1]) / 2
    return order[np.searchsorted(between, _aspects(sizes))]


def _aspects(sizes: np.ndarray | Sequence[Size]) -> np.ndarray:
    height, width = np.asarray(sizes, np.float64).T
    return np.asarray(np.log(width / height))


def merge_small(chosen: Indices, buckets: Sequence[Size], least: int) -> Indices:
    """The same choice, but buckets of fewer than `least` pairs go to the nearest that is used.

    Else their pairs would never fill a batch, and would never be trained on.
    """
    merged = chosen.copy()
    aspects = _aspects(buckets)
    while True:
        counts = np.bincount(merged, minlength=len(buckets))
        used = np.flatnonzero(counts)
        small = min(used, key=lambda bucket: (counts[bucket], bucket))
        if counts[small] >= least or len(used) == 1:
            return merged
        others = used[used != small]
        nearest = others[np.abs(aspects[others] - aspects[small]).argmin()]
        merged[merged == small] = nearest


def picture_sizes(source: Source, cache: Path | None = None) -> np.ndarray:
    """Heights and widths of all targets, (N, 2) int32, from the first bytes of their files.

    They are kept in the folder `cache`, if there is one, until a file is another. Raises CldmError
    for a picture that can't be read.
    """
    if cache is None:
        return _read_sizes(source)
    key = source.stamp() if source.shards is not None else f"{source.stamp()}|{_stamps(source)}"
    return stored_arrays(cache, "sizes", key, lambda: {"sizes": _read_sizes(source)})["sizes"]


def _stamps(source: Source) -> str:
    """Another text once a target is another: folders and tables know names alone."""
    digest = hashlib.sha256()
    for stamps in _of_targets(source, lambda target: target.stamp().encode("utf-8", "replace")):
        digest.update(b"|".join(stamps))
    return digest.hexdigest()


def _read_sizes(source: Source) -> np.ndarray:
    sizes = [np.array(part, np.int32) for part in _of_targets(source, lambda one: one.size())]
    return np.concatenate(sizes)


def _of_targets(source: Source, read: Callable[[Stored], T]) -> Iterator[list[T]]:
    """What is read of each target, in pieces of CHUNK."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(source), CHUNK):
            rows = range(start, min(start + CHUNK, len(source)))
            yield list(pool.map(lambda index: read(source[index].target), rows))
