"""What a data set holds: pictures with captions in a folder, a table or shards."""

from __future__ import annotations

import glob
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..base import AnnotatorError, needed
from ..files import PICTURES
from . import parquet, tables
from .entries import Content, Entry, entry_of, unique, usual

CAPTION_ENDINGS = (".txt", ".caption")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
SHARDS = (*ARCHIVES, parquet.ENDING)
SHARD_SIZE = 1000
HINT_FOLDERS = ("conditioning", "conditioning_images", "hints")
"""Folders among the pictures that hold hints of them."""
HINTS = ("hint", "conditioning", "source")
"""What a hint's ending may begin with in a shard; here it is the first one."""


@dataclass(frozen=True)
class Job:
    """A shard that is to be made: its name without ending, and its entries or an older shard."""

    name: str
    source: tuple[Entry, ...] | Path

    @property
    def count(self) -> int:
        """How many pictures there are; 0 where only reading the older shard would tell."""
        return 0 if isinstance(self.source, Path) else len(self.source)

    def entries(self) -> Iterator[Entry | str]:
        """The pictures, or a sentence in the place of one that isn't there."""
        return entries_of(self.source) if isinstance(self.source, Path) else iter(self.source)


def jobs_of(source: Path, size: int | None = None) -> list[Job]:
    """The shards to be made of a data set, `size` pictures each, or one of each older shard.

    source: a folder of pictures, or one with a table of TABLES or with shards; such a table; a
    shard (webdataset's or .parquet); or a pattern of shards such as "data/{000..099}.tar". Raises
    AnnotatorError where there is none.
    """
    shards = shards_of(source)
    if shards and size is not None:
        raise AnnotatorError(
            f"{source} is in shards already, and each becomes one: leave their size out."
        )
    if shards:
        return [Job(name, shard) for name, shard in _named(shards).items()]
    entries = unique(_entries(source))
    jobs: list[Job] = []
    while some := tuple(islice(entries, size or SHARD_SIZE)):
        jobs.append(Job(f"{len(jobs):06d}", some))
    if not jobs:
        raise AnnotatorError(f"There is no picture in {source}.")
    return jobs


def shards_of(source: Path) -> list[Path]:
    """The shards that a folder, a file or a pattern means, sorted; none where it means others."""
    name = str(source)
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.name.endswith(ARCHIVES))
        return found or ([] if tables.table_in(source) else parquet.parquet_in(source))
    if not name.endswith(SHARDS):
        return []
    if source.is_file():
        return [source]
    expand = needed("braceexpand", to_install="webdataset").braceexpand
    found = []
    for one in expand(name):
        paths = sorted(map(Path, glob.glob(one)))
        if not paths:
            raise AnnotatorError(f"There is no shard {one}.")
        found += paths
    return found


def _named(shards: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for shard in shards:
        name = next(shard.name.removesuffix(end) for end in SHARDS if shard.name.endswith(end))
        if name in named:
            raise AnnotatorError(
                f"{named[name]} and {shard} have the same name: put them into two folders."
            )
        named[name] = shard
    return named


def _entries(source: Path) -> Iterator[Entry]:
    if source.is_dir():
        table = tables.table_in(source)
        return tables.listed(table) if table else _folder(source)
    if source.suffix.lower() in tables.ENDINGS and source.is_file():
        return tables.listed(source)
    raise AnnotatorError(
        f"{source} is no data set: expected a folder of pictures, {' or '.join(tables.TABLES)}, or "
        f"shards ({ARCHIVES[0]}, {parquet.ENDING})."
    )


def _folder(folder: Path) -> Iterator[Entry]:
    """The pictures of a folder and its subfolders, each with the files of its name beside it.

    Hints that are there are left out.
    """
    hints = {folder / name for name in HINT_FOLDERS}
    paths = (path for path in folder.rglob("*") if hints.isdisjoint(path.parents))
    files = {path for path in paths if path.is_file()}
    for picture in sorted(path for path in files if path.suffix.lower() in PICTURES):
        beside: dict[str, Content] = {}
        captions = [picture.with_suffix(ending) for ending in CAPTION_ENDINGS]
        for caption in filter(files.__contains__, captions):
            beside.setdefault("txt", caption)
        if (facts := picture.with_suffix(".json")) in files:
            beside["json"] = facts
        yield entry_of(picture.relative_to(folder), picture, beside)


def entries_of(shard: Path) -> Iterator[Entry | str]:
    """The samples of a shard; what is damaged becomes a sentence."""
    return parquet.rows_of(shard) if shard.suffix == parquet.ENDING else _samples(shard)


def _samples(shard: Path) -> Iterator[Entry | str]:
    tars = needed("webdataset.tariterators", to_install="webdataset")
    twice: list[str] = []

    def second(error: Exception) -> bool:
        twice.append(f"{shard.name}: {error.args[0]}")
        return True

    with shard.open("rb") as file:
        members = tars.tar_file_expander([{"url": str(shard), "stream": file}])
        try:
            for sample in tars.group_by_keys(members, handler=second):
                yield _sample(sample, shard.name)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            yield f"{shard.name}: it is damaged, and no more could be read ({error.args[0]})."
    yield from twice


def _sample(sample: Mapping[str, Any], shard: str) -> Entry | str:
    """A sample as an entry, without the hint that it may have."""
    key = sample["__key__"]
    held = {ending: data for ending, data in sample.items() if not ending.startswith("__")}
    ending = next((one for one in held if f".{one}" in PICTURES), None)
    if ending is None:
        return f"{shard}: {key}: there is no picture, only {', '.join(held) or 'nothing'}."
    picture = held.pop(ending)
    beside = {one: data for one, data in held.items() if one.partition(".")[0] not in HINTS}
    if "caption" in beside:
        beside.setdefault("txt", beside["caption"])
    return Entry(key, f"{shard}: {key}.{ending}", usual(ending), picture, beside)
