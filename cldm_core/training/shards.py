"""Webdataset shards: .tar files of pairs, read at any place.

The webdataset package reads shards as streams, from the start and shuffled within a buffer: what a
batch holds depends on all that was read before. Here the shards' headers are read once, and a pair
is read from where it lies. So any batch can be had at once, and resuming is exact.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import CldmError
from .cache import Arrays, stored_arrays
from .draws import Indices
from .pairs import ENDINGS, FilePicture, MemberPicture, Pair, missing, read_range
from .records import Names

HINTS = ("hint", "conditioning", "source")
"""The part of a member's name that marks a hint, as in KEY.hint.png."""
CAPTION_KEYS = ("caption", "text", "prompt")
"""Where the caption is in KEY.json."""

TARGET, HINT, CAPTION, RECORD = range(4)
PARTS = 4
BLOCK = 512
"""Contents of a .tar file begin at multiples of it."""


class ShardPairs:
    """Pairs in .tar files: KEY.jpg, .png or .webp with KEY.hint.png and KEY.txt or KEY.json.

    KEY.conditioning.png and KEY.source.png are hints too. What stays in memory is 40 bytes a pair
    and the keys. cache: a folder that keeps what the headers said. Raises CldmError where a shard
    can't be read.
    """

    def __init__(self, paths: Sequence[Path], cache: str | Path | None = None) -> None:
        self.paths = tuple(paths)
        self._shards = [_Shard(path, None if cache is None else Path(cache)) for path in paths]
        counts = [len(shard.names) for shard in self._shards]
        self._starts = np.cumsum([0, *counts], dtype=np.int64)
        numbers = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self.shards: Indices | None = numbers

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[shard].pair(index - int(self._starts[shard]))

    def stamp(self) -> str:
        return "|".join(FilePicture(path).stamp() for path in self.paths)

    def strays(self) -> Iterator[str]:
        for shard in self._shards:
            for key in shard.strays:
                yield f"{key} in {shard.path} has a hint or a caption, but no target."


class _Shard:
    """One file: the keys of its pairs, and where their parts lie."""

    def __init__(self, path: Path, cache: Path | None) -> None:
        self.path = path
        found = stored_arrays(cache, "shards", FilePicture(path).stamp(), lambda: _scan(path))
        self.names = Names.from_arrays(found["names"], found["names_ends"])
        self.strays = Names.from_arrays(found["strays"], found["strays_ends"])
        self._blocks, self._lengths = found["blocks"], found["lengths"]

    def pair(self, row: int) -> Pair:
        key = self.names[row]
        target, hint = self._picture(row, key, TARGET), self._picture(row, key, HINT)
        assert target is not None
        return Pair(key, self._prompt(row, key), target, hint, f"in {self.path}")

    def _picture(self, row: int, key: str, part: int) -> MemberPicture | None:
        block, length = int(self._blocks[row, part]), int(self._lengths[row, part])
        member = f"{key}{', the hint,' if part == HINT else ''}"
        return MemberPicture(self.path, member, block * BLOCK, length) if block else None

    def _prompt(self, row: int, key: str) -> str:
        """The caption, its white space made single spaces; "" where there is none."""
        for part in (CAPTION, RECORD):
            block, length = int(self._blocks[row, part]), int(self._lengths[row, part])
            if block:
                data = read_range(self.path, block * BLOCK, length)
                return " ".join(self._text(key, part, data).split())
        return ""

    def _text(self, key: str, part: int, data: bytes) -> str:
        try:
            text = data.decode("utf-8-sig")
            record = json.loads(text) if part == RECORD else {CAPTION_KEYS[0]: text}
        except (ValueError, RecursionError) as error:
            raise CldmError(
                f"The caption of {key} in {self.path} can't be read: {error}."
            ) from error
        found = record if isinstance(record, dict) else {}
        texts = (found[name] for name in CAPTION_KEYS if isinstance(found.get(name), str))
        caption = next(texts, None)
        if caption is None:
            raise CldmError(
                f"{key}.json in {self.path} has no caption: expected a text under one of "
                f"{', '.join(CAPTION_KEYS)}."
            )
        return str(caption)


def _scan(path: Path) -> Arrays:
    """What the headers of a shard say, as arrays."""
    rows: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                # tarfile keeps all members that it has seen, which nobody needs here.
                tar.members.clear()  # type: ignore[attr-defined]
                key, part = _part(member.name)
                if part is None or not member.isfile():
                    continue
                places = rows.setdefault(key, np.zeros((PARTS, 2), np.uint32))
                places[part] = member.offset_data // BLOCK, member.size
    except tarfile.TarError as error:
        raise CldmError(
            f"{path} can't be read as a shard ({error}): expected a whole .tar file, uncompressed."
        ) from error
    except OSError as error:
        raise missing(path, error) from error
    whole = {key: places for key, places in rows.items() if places[TARGET, 0]}
    table = np.array([*whole.values()], np.uint32).reshape(-1, PARTS, 2)
    names, strays = Names(whole), Names(key for key in rows if key not in whole)
    return {
        "blocks": table[..., 0].copy(),
        "lengths": table[..., 1].copy(),
        **dict(zip(("names", "names_ends"), names.arrays, strict=True)),
        **dict(zip(("strays", "strays_ends"), strays.arrays, strict=True)),
    }


def _part(member: str) -> tuple[str, int | None]:
    """A member's key, up to its name's first dot as in webdataset, and what it is of a pair."""
    folder, slash, name = member.rpartition("/")
    stem, _, ending = name.partition(".")
    marks = ending.lower().split(".")
    part = None
    if marks in (["txt"], ["caption"]):
        part = CAPTION
    elif marks == ["json"]:
        part = RECORD
    elif f".{marks[-1]}" in ENDINGS:
        if len(marks) == 1:
            part = TARGET
        elif len(marks) == 2 and marks[0] in HINTS:
            part = HINT
    return f"{folder}{slash}{stem}", part
