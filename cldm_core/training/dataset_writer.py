"""Paired data sets on disk, for this trainer, diffusers and the original alike; and as shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CldmError
from ..pictures import write_picture
from ..pipeline import Picture
from .pairs import FilePicture, MemberPicture, Stored, read_range
from .shards import ShardPairs
from .sources import METADATA, PROMPTS, Source

MARK = "pairs.json"
"""Says that a folder was written here, and what makes its pairs."""
TARGETS, HINTS = "target", "source"
TABLES = (PROMPTS, METADATA[0])


class DatasetWriter:
    """Writes pairs into a folder, one after another; a run that was stopped goes on where it was.

        writer = DatasetWriter(folder)
        for index in range(len(writer), count):
            writer.add(target, hint, prompt)

    The folder holds target/000000.png and source/000000.png (the hint); prompt.json, JSON lines
    as the original reads them; and metadata.jsonl, which makes it a Hugging Face image folder with
    the columns image, conditioning_image and text. A pair is in both tables or counts as absent:
    its pictures are whole before its lines are written, and what a stop left half is taken back.

    about: what makes the pairs. A folder begun with something else is refused, because the pairs
    would not belong together. Raises CldmError for that, for a folder that holds other data, and
    where it can't be written.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _mark(self.folder, dict(about or {}))
            self._count = _take_back(self.folder)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def __len__(self) -> int:
        """How many pairs are written."""
        return self._count

    def add(self, target: Picture, hint: Picture, prompt: str) -> str:
        """Writes one pair, uint8 RGB (H, W, 3) each, of one size; gives the target's place."""
        if target.shape != hint.shape:
            raise CldmError(
                f"The target is {_shown(target)} and its hint {_shown(hint)}: make them one size."
            )
        places = _places(self._count)
        try:
            for picture, place in zip((target, hint), places, strict=True):
                write_picture(picture, self.folder / place)
            for table, record in zip(TABLES, _records(*places, prompt), strict=True):
                with open(self.folder / table, "ab") as file:
                    file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            with suppress(OSError):
                _take_back(self.folder)
            raise _unwritable(self.folder, error) from error
        self._count += 1
        return places[0]


def _places(number: int) -> tuple[str, str]:
    """Where a pair's target and hint are, in the folder."""
    return f"{TARGETS}/{number:06d}.png", f"{HINTS}/{number:06d}.png"


def _records(target: str, hint: str, prompt: str) -> tuple[dict[str, str], dict[str, str]]:
    """The lines of prompt.json and metadata.jsonl."""
    return (
        {"source": hint, "target": target, "prompt": prompt},
        {"file_name": target, "conditioning_image_file_name": hint, "text": prompt},
    )


def _mark(folder: Path, about: dict[str, Any]) -> None:
    """Notes what the folder is for; raises CldmError where it is for something else."""
    mark = folder / MARK
    if mark.exists():
        try:
            known = json.loads(mark.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CldmError(f"{mark} is damaged ({error}): choose another folder.") from error
        if known == json.loads(json.dumps(about)):
            return
        if _written(folder):
            raise CldmError(
                f"{folder} holds pairs made by {json.dumps(known)}, not by {json.dumps(about)}: "
                "choose another folder."
            )
    elif foreign := [name for name in (*TABLES, TARGETS, HINTS) if (folder / name).exists()]:
        raise CldmError(
            f"{folder} holds {', '.join(foreign)} that were not written here: choose an empty "
            "folder."
        )
    temporary = mark.with_name(f"{MARK}.part")
    temporary.write_text(json.dumps(about), encoding="utf-8")
    temporary.replace(mark)


def _written(folder: Path) -> bool:
    """Whether a table has a line: a run that failed before its first pair leaves none."""
    tables = (folder / name for name in TABLES)
    return any(table.exists() and table.stat().st_size for table in tables)


def _take_back(folder: Path) -> int:
    """Cuts both tables to the pairs that are in both; gives their number.

    Raises CldmError where the tables don't hold what was written here: cutting would lose it.
    """
    for name in TABLES:
        (folder / name).touch()
    ends = [_ends(folder / name) for name in TABLES]
    count = min(map(len, ends)) - 1
    last = max(count - 1, 0)
    spans = [(found[last], found[count]) for found in ends]
    lines = [
        read_range(folder / name, start, end - start)
        for name, (start, end) in zip(TABLES, spans, strict=True)
    ]
    named = not count or all(_places(last)[0].encode() in line for line in lines)
    if max(map(len, ends)) - 1 > count + 1 or not named:
        raise CldmError(
            f"The tables {' and '.join(TABLES)} in {folder} were changed since they were written: "
            "choose another folder."
        )
    for name, found in zip(TABLES, ends, strict=True):
        os.truncate(folder / name, found[count])
    return count


def _ends(path: Path) -> list[int]:
    """Where the whole lines of a table end, from 0 on."""
    ends = [0]
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
    return ends


def _shown(picture: Picture) -> str:
    return "x".join(map(str, picture.shape))


def _unwritable(folder: Path, error: OSError) -> CldmError:
    return CldmError(
        f"{folder} can't be written ({error.strerror or error}): make room, or choose another "
        "folder. What was written stays."
    )


def write_shards(
    source: Source,
    folder: str | Path,
    *,
    per_shard: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes pairs as webdataset shards: KEY.png, KEY.hint.png, KEY.txt; pictures as stored.

    Shards are called 000000.tar and so on. Each is whole or not there, and one that is there with
    as many pairs as it should have is left as it is, so that a run that was stopped goes on with
    the shard that it was at. progress(pairs, all) is called after each shard. Raises CldmError.
    """
    if per_shard < 1:
        raise CldmError(f"Shards of {per_shard} pairs were asked for: expected at least 1.")
    folder = Path(folder)
    for number, start in enumerate(range(0, len(source), per_shard)):
        rows = range(start, min(start + per_shard, len(source)))
        path = folder / f"{number:06d}.tar"
        if not (path.exists() and len(ShardPairs([path])) == len(rows)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write_shard(source, rows, path)
            except OSError as error:
                raise _unwritable(folder, error) from error
        if progress:
            progress(rows.stop, len(source))


def _write_shard(source: Source, rows: range, path: Path) -> None:
    import webdataset

    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            with webdataset.TarWriter(file, encoder=False) as writer:
                for row in rows:
                    writer.write(_members(source, row))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _members(source: Source, row: int) -> dict[str, Any]:
    """A pair as webdataset names its parts."""
    pair = source[row]
    ending, data = _as_file(pair.target)
    members = {"__key__": f"{row:08d}", ending: data, "txt": pair.prompt.encode()}
    if pair.hint is not None:
        ending, data = _as_file(pair.hint)
        members[f"hint.{ending}"] = data
    return members


def _as_file(picture: Stored) -> tuple[str, bytes]:
    """A picture's ending and file: as it is stored where it is one, else as PNG."""
    import cv2

    # Numbers of a drawn picture may begin as files do.
    if isinstance(picture, FilePicture | MemberPicture):
        data = picture.data()
        for first, ending in ((b"\x89PNG", "png"), (b"\xff\xd8", "jpg"), (b"RIFF", "webp")):
            if data.startswith(first):
                return ending, data
    return "png", cv2.imencode(".png", picture.read()[..., ::-1])[1].tobytes()
