"""One shard: its pictures are read, annotated in batches of equal size, and written with hints."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..base import BATCH_PIXELS, RESOLUTION, RGB8, Annotator, AnnotatorError, Picture, needed
from ..errors import Unavailable, about
from ..files import decoded, encoded, whole
from ..pictures import on_white, resized, working_size
from .entries import Entry, content
from .sources import HINTS, Job

THREADS = 4
"""That read and write while the device computes."""
AHEAD = 16
"""How many pictures are read before they are needed."""
WINDOW_PIXELS = 8 * BATCH_PIXELS
"""How much is looked at together for pictures of equal size; 0.1 GB."""
PROBE = 64
TAR = {"user": "", "group": "", "mode": 0o644, "mtime": 0, "encoder": False}
"""Who made a shard and when is left out: equal hints are equal bytes."""

Row: TypeAlias = dict[str, Any]
"""What webdataset writes as a sample."""


@dataclass(frozen=True)
class Ready:
    """A picture that was read, with its `pixels` at the working size."""

    entry: Entry
    data: bytes
    beside: Mapping[str, bytes]
    pixels: RGB8


@dataclass(frozen=True)
class Maker:
    """Makes shards with one annotator; goes to other processes as it is.

    settings: all of the annotator's, checked; mask: one for all pictures.
    """

    annotator: Annotator
    settings: Mapping[str, Any]
    mask: Picture | None = None
    device: Any = None

    def check(self) -> None:
        """Raises AnnotatorError where no picture can have a hint, as without weights."""
        needed("webdataset")
        self._hints(np.full((1, PROBE, PROBE, 3), 128, np.uint8))

    def make(self, job: Job, folder: Path, more: Callable[[int], None] = lambda _: None) -> None:
        """Writes the shard, whole or not at all.

        What can't be read is left out and told in the file beside it, see failures. `more` is told
        how many pictures are done, again and again.
        """
        writer = needed("webdataset").TarWriter
        failed: list[str] = []
        with whole(folder / files_of(job)[0], lasting=True) as part:
            with (
                part.open("wb") as file,
                writer(file, **TAR) as tar,
                ThreadPoolExecutor(THREADS) as pool,
            ):
                for window in _windows(_ahead(pool, self._read, job.entries())):
                    for row in pool.map(self._row, self._annotated(window)):
                        if isinstance(row, str):
                            failed.append(row)
                        else:
                            tar.write(row)
                    more(len(window))
            _tell(folder, job, failed)

    def _read(self, entry: Entry | str) -> Ready | str:
        """The picture at the working size; a sentence where it can't be had."""
        if isinstance(entry, str):
            return entry
        try:
            data = content(entry.picture)
            beside = {ending: content(one) for ending, one in entry.beside.items()}
            pixels = decoded(data, entry.name)
            if pixels.shape[-1] == 4 and not self.annotator.reads_alpha:
                pixels = on_white(pixels)
            height, width = pixels.shape[:2]
            size = working_size(height, width, int(self.settings[RESOLUTION]))
            return Ready(entry, data, beside, resized(pixels, *size))
        except (AnnotatorError, OSError) as error:
            return about(entry.name, error)

    def _annotated(self, window: list[Ready | str]) -> list[tuple[Ready, Picture] | str]:
        """Each picture with its hint, in the same order."""
        groups: dict[tuple[int, ...], list[Ready]] = {}
        for one in window:
            if isinstance(one, Ready):
                groups.setdefault(one.pixels.shape, []).append(one)
        hints = {
            id(one): hint
            for group in groups.values()
            for one, hint in zip(group, self._group(group), strict=True)
        }
        found: list[tuple[Ready, Picture] | str] = []
        for one in window:
            if isinstance(one, str):
                found.append(one)
                continue
            hint = hints[id(one)]
            found.append(hint if isinstance(hint, str) else (one, hint))
        return found

    def _group(self, group: list[Ready]) -> list[Picture | str]:
        """The hints of pictures of one size; one that is refused does not take others with it."""
        try:
            return [*self._hints(np.stack([one.pixels for one in group]))]
        except Unavailable:
            raise
        except AnnotatorError as error:
            if len(group) == 1:
                return [about(group[0].entry.name, error)]
            return [hint for one in group for hint in self._group([one])]

    def _hints(self, pixels: RGB8) -> Picture:
        settings = {**self.settings, RESOLUTION: 0}
        return self.annotator(pixels, mask=self.mask, device=self.device, **settings)

    def _row(self, one: tuple[Ready, Picture] | str) -> Row | str:
        """What is written: the picture's own bytes, its hint, and what was beside it."""
        if isinstance(one, str):
            return one
        ready, hint = one
        ending = "png" if hint.dtype == np.uint8 else "npy"
        return {
            "__key__": ready.entry.key,
            **ready.beside,
            ready.entry.ending: ready.data,
            f"{HINTS[0]}.{ending}": encoded(f".{ending}", hint),
        }


def is_made(job: Job, folder: Path) -> bool:
    """Whether the shard is there."""
    return (folder / files_of(job)[0]).is_file()


def files_of(job: Job) -> tuple[str, str]:
    """The names of the shard and of the list of what failed."""
    return f"{job.name}.tar", f"{job.name}.failed.txt"


def failures(job: Job, folder: Path) -> list[str]:
    """A sentence for each picture that could not be read when the shard was made."""
    path = folder / files_of(job)[1]
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _tell(folder: Path, job: Job, failed: list[str]) -> None:
    """Before the shard appears, so that the list is never missing."""
    path = folder / files_of(job)[1]
    if not failed:
        path.unlink(missing_ok=True)
        return
    with whole(path, lasting=True) as part:
        lines = (" ".join(one.splitlines()) for one in failed)
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[Entry | str], Ready | str],
    entries: Iterable[Entry | str],
) -> Iterator[Ready | str]:
    """What is read of the entries, in their order, a few of them in advance."""
    waiting: deque[Future[Ready | str]] = deque()
    for entry in entries:
        waiting.append(pool.submit(read, entry))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _windows(found: Iterator[Ready | str]) -> Iterator[list[Ready | str]]:
    """The same in lists, each with as many pictures as may be held at once."""
    window: list[Ready | str] = []
    pixels = 0
    for one in found:
        window.append(one)
        pixels += 0 if isinstance(one, str) else one.pixels.size // 3
        if pixels >= WINDOW_PIXELS:
            yield window
            window, pixels = [], 0
    if window:
        yield window
