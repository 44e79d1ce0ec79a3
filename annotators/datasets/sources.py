"""What a data set holds: pictures with captions in a folder or a list, or webdataset shards."""

from __future__ import annotations

import glob
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeAlias

from ..base import AnnotatorError, needed
from ..files import PICTURES

Content: TypeAlias = Path | bytes
"""What a file holds, or where it is."""

LISTS = ("metadata.jsonl", "prompt.json")
"""Lists that are taken in place of a folder's files; one JSON object in a line."""
PICTURE_NAMES = ("target", "file_name", "image_file_name", "image")
CAPTION_NAMES = ("text", "caption", "prompt")
HINT_NAMES = (
    *("source", "hint", "hint_file_name"),
    *("conditioning_image", "conditioning_file_name", "conditioning_image_file_name"),
)
"""What a list may call a picture, its caption, and a hint that it has already."""
CAPTION_ENDINGS = (".txt", ".caption")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
SHARD_SIZE = 1000
HINT_FOLDERS = ("conditioning", "conditioning_images", "hints")
"""Folders among the pictures that hold hints of them."""
HINTS = ("hint", "conditioning", "source")
"""What a hint's ending may begin with in a shard; here it is the first one."""


@dataclass(frozen=True)
class Entry:
    """A picture that a hint is to be made of, not read yet.

    key: what it is called in a shard; name: what it is called in messages.
    beside: what goes into the shard with it, by ending: "txt" is the caption, "json" facts.
    """

    key: str
    name: str
    ending: str
    picture: Content
    beside: Mapping[str, Content] = field(default_factory=dict)


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


def content(what: Content) -> bytes:
    """The bytes; raises OSError where the file can't be read."""
    return what.read_bytes() if isinstance(what, Path) else what


def jobs_of(source: Path, size: int | None = None) -> list[Job]:
    """The shards to be made of a data set, `size` pictures each, or one of each older shard.

    source: a folder of pictures, or one with a list of LISTS or with shards; such a list; a shard;
    or a pattern of shards such as "data/{000..099}.tar". Raises AnnotatorError where there is none.
    """
    shards = shards_of(source)
    if shards and size is not None:
        raise AnnotatorError(
            f"{source} is in shards already, and each becomes one: leave their size out."
        )
    if shards:
        return [Job(name, shard) for name, shard in _named(shards).items()]
    entries = _unique(_entries(source))
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
        return sorted(path for path in source.iterdir() if path.name.endswith(ARCHIVES))
    if not name.endswith(ARCHIVES):
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
        name = next(shard.name.removesuffix(end) for end in ARCHIVES if shard.name.endswith(end))
        if name in named:
            raise AnnotatorError(
                f"{named[name]} and {shard} have the same name: put them into two folders."
            )
        named[name] = shard
    return named


def _entries(source: Path) -> Iterator[Entry]:
    if source.is_dir():
        lists = [source / name for name in LISTS if (source / name).is_file()]
        return _listed(lists[0]) if lists else _folder(source)
    if source.suffix.lower() in (".json", ".jsonl") and source.is_file():
        return _listed(source)
    raise AnnotatorError(
        f"{source} is no data set: expected a folder of pictures, {' or '.join(LISTS)}, or shards "
        f"({ARCHIVES[0]})."
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
        yield _entry(picture.relative_to(folder), picture, beside)


def _listed(path: Path) -> Iterator[Entry]:
    """The pictures of prompt.json (lllyasviel/ControlNet) or metadata.jsonl (Hugging Face)."""
    # Not splitlines: that parts at characters which a JSON text may hold.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        row = _object(line)
        name = _first(row, PICTURE_NAMES)
        if name is None:
            raise AnnotatorError(
                f"{path}, line {number}: expected a JSON object that names a picture as "
                f"{', '.join(PICTURE_NAMES)}, but the line says {line.strip()[:60]!r}."
            )
        beside: dict[str, Content] = {}
        caption = _first(row, CAPTION_NAMES)
        if caption is not None:
            beside["txt"] = caption.encode()
        known = {*PICTURE_NAMES, *CAPTION_NAMES, *HINT_NAMES}
        if facts := {key: value for key, value in row.items() if key not in known}:
            beside["json"] = json.dumps(facts, ensure_ascii=False).encode()
        yield _entry(PurePosixPath(name), path.parent / name, beside)


def _object(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((row[name] for name in names if isinstance(row.get(name), str)), None)


def _entry(name: PurePath, picture: Content, beside: Mapping[str, Content]) -> Entry:
    """An entry with a key that every reader of webdataset parts from the endings alike.

    They part at the first dot, and leave out folders such as __MACOSX__.
    """
    folders = [part for part in name.parts[:-1] if part not in ("..", name.anchor)]
    key = "/".join([*folders, name.stem]).replace(".", "_")
    key = key.lstrip("_") if key.startswith("__") else key
    ending = name.suffix.lower().removeprefix(".")
    return Entry(key or "_", name.as_posix(), _usual(ending), picture, beside)


def _usual(ending: str) -> str:
    return "jpg" if ending in ("jpeg", "jpe") else ending


def _unique(entries: Iterator[Entry]) -> Iterator[Entry]:
    """No two with one key, as a.jpg and a.png would have: the later one gets a number."""
    taken: set[str] = set()
    for entry in entries:
        key, number = entry.key, 1
        while key in taken:
            number += 1
            key = f"{entry.key}_{number}"
        taken.add(key)
        yield Entry(key, entry.name, entry.ending, entry.picture, entry.beside)


def entries_of(shard: Path) -> Iterator[Entry | str]:
    """The samples of a webdataset shard; what is damaged becomes a sentence."""
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
    return Entry(key, f"{shard}: {key}.{ending}", _usual(ending), picture, beside)
