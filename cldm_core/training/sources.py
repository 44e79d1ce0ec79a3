"""Where pairs come from: prompt.json, folders, Hugging Face image folders, shards, lists."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import CldmError
from .draws import Indices, permutation
from .pairs import ENDINGS, FilePicture, Pair, Stored, missing
from .records import Names, Records

PROMPTS = "prompt.json"
METADATA = ("metadata.jsonl", "metadata.csv")
SPLIT = "train"
"""Where a Hugging Face image folder with several parts keeps the one to train on."""
TABLES = (".json", ".jsonl", ".csv")
CAPTIONS = (".txt", ".caption")
HINT_FOLDERS = ("conditioning", "conditioning_images", "hints", "source")
TARGET_FOLDERS = ("target", "targets", "images")

ORIGINAL = {"target": "target", "hint": "source", "prompt": "prompt"}
"""The columns of lllyasviel/ControlNet's prompt.json."""

COLUMNS = {
    "target": ("file_name", "image_file_name"),
    "hint": (
        "conditioning_image_file_name",
        "conditioning_file_name",
        "conditioning_image",
        "hint_file_name",
        "hint",
        "source",
    ),
    "prompt": ("text", "caption", "prompt"),
}
"""What the columns of a Hugging Face image folder may be called."""


class Source(Protocol):
    """Pairs by number. Reading one raises CldmError that names its file and line."""

    @property
    def shards(self) -> Indices | None:
        """For each pair the number of the file that it lies in with others; None: in its own."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...

    def stamp(self) -> str:
        """A text that is another one once pairs came, went or changed places."""

    def strays(self) -> Iterator[str]:
        """Sentences about files that look like a part of a pair, but belong to none."""


def open_source(
    where: str | Path,
    *,
    conditioning: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    cache: str | Path | None = None,
) -> Source:
    """The pairs in a folder or file, its kind told from what is there.

    - `prompt.json` or another table of JSON lines with source (the hint), target and prompt
    - a folder with metadata.jsonl or metadata.csv, or with `train/` that has one (a Hugging Face
      image folder); `columns` names the columns of target, hint and prompt where they aren't
      called as in COLUMNS
    - .tar files (webdataset shards): a folder of them, or names such as pairs-{0000..0099}.tar;
      `cache` keeps what was found in them
    - a folder of pictures with captions of the same name (.txt), and hints of the same name in the
      folder `conditioning` (by default one of HINT_FOLDERS inside it, or beside it where it is
      called as in TARGET_FOLDERS; the folder that holds both will do too)

    Raises CldmError where there is nothing to train on, and for what the kind of set has no use.
    """
    path = Path(where)
    if not path.exists() and len(expanded(path)) == 1:
        raise CldmError(f"There is no data set {path}: check the name and the folder.")
    table, shards = _table(path), shard_files(path)
    if conditioning is not None and (table is not None or shards):
        raise CldmError(
            f"conditioning is {conditioning}, but {path} has its hints in its "
            f"{'shards' if table is None else 'table'}: leave it out."
        )
    if columns and table is None:
        raise CldmError(
            f"columns are named ({', '.join(columns.values())}), but {path} has no table "
            f"({', '.join((PROMPTS, *METADATA))}): leave them out."
        )
    source: Source
    if table is not None:
        source = TablePairs(table, columns)
    elif shards:
        from .shards import ShardPairs

        source = ShardPairs(shards, cache)
    elif path.is_dir():
        inner = (path / name for name in TARGET_FOLDERS if (path / name).is_dir())
        path = next(inner, path)
        source = FolderPairs(path, None if conditioning is None else Path(conditioning))
    else:
        raise CldmError(
            f"{path} is no data set: give a folder, a table ({', '.join(TABLES)}) or a .tar file."
        )
    if not len(source):
        raise CldmError(f"{path} holds no pair: there is nothing to train on.")
    return source


def expanded(path: Path) -> list[Path]:
    """The paths that a name such as a{00..12}b stands for, as in a shell; one for any other."""
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path.name)
    if found is None:
        return [path]
    before, first, last, after = found.groups()
    numbers = range(int(first), int(last) + 1)
    return [path.with_name(f"{before}{number:0{len(first)}d}{after}") for number in numbers]


def shard_files(path: Path) -> list[Path]:
    """The .tar files that open_source would read there; none for data sets of other kinds."""
    if _table(path) is not None:
        return []
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    return expanded(path) if path.suffix == ".tar" else []


def _table(path: Path) -> Path | None:
    """The table of a folder, or the file itself where it is one."""
    if path.is_file():
        return path if path.suffix.lower() in TABLES else None
    names = (PROMPTS, *METADATA, *(f"{SPLIT}/{name}" for name in METADATA))
    return next((path / name for name in names if (path / name).is_file()), None)


class TablePairs:
    """The original's prompt.json (source, target, prompt), or a Hugging Face image folder.

    Paths in the table are relative to its folder.
    """

    shards = None

    def __init__(self, table: Path, columns: Mapping[str, str] | None = None) -> None:
        self.records = Records(table)
        self.folder = table.parent
        first: Mapping[str, Any] = {}
        # The original's columns are known, so that a damaged first line is one pair's affair.
        if len(self.records) and (columns or table.name != PROMPTS):
            first = self.records[0]
        original = not columns and (not first or "target" in first)
        self.columns = ORIGINAL if original else _found(table, first, dict(columns or {}))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Pair:
        record = self.records[index]
        target = self._text(index, record, "target")
        hint = self.columns["hint"] if record.get(self.columns["hint"]) else None
        return Pair(
            target,
            # JSON may hold halves of characters, which no tokenizer takes.
            self._text(index, record, "prompt").encode("utf-8", "replace").decode(),
            FilePicture(self.folder / target),
            FilePicture(self.folder / self._text(index, record, "hint")) if hint else None,
            self.records.where(index),
        )

    def stamp(self) -> str:
        return FilePicture(self.records.path).stamp()

    def strays(self) -> Iterator[str]:
        return iter(())

    def _text(self, index: int, record: Mapping[str, Any], role: str) -> str:
        return self.records.text(index, record, self.columns[role])


def _found(table: Path, first: Mapping[str, Any], chosen: dict[str, str]) -> dict[str, str]:
    """What the columns of target, hint and prompt are called in this table."""
    for role, names in COLUMNS.items():
        wanted = (chosen[role],) if role in chosen else names
        found = next((name for name in wanted if name in first), None)
        if found is None and (role != "hint" or role in chosen):
            raise CldmError(
                f"{table}, its first record: no column for the {role} ({', '.join(wanted)}) among "
                f"{', '.join(map(repr, first))}. Say which it is."
            )
        chosen[role] = found or names[0]
    return chosen


class FolderPairs:
    """Pictures, captions beside them, and hints of the same names in a folder of their own."""

    shards = None

    def __init__(self, folder: Path, conditioning: Path | None = None) -> None:
        self.folder = folder
        self.conditioning = conditioning or _hint_folder(folder)
        if self.conditioning is not None and not self.conditioning.is_dir():
            raise CldmError(f"There is no folder of hints {self.conditioning}: check its name.")
        self._names = Names(sorted(_pictures(folder, self.conditioning)))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Pair:
        name = self._names[index]
        target = self.folder / name
        return Pair(name, _caption(target), FilePicture(target), self._hint(name))

    def stamp(self) -> str:
        return f"{self.folder.absolute()}|{self.conditioning}|{self._names.digest}"

    def strays(self) -> Iterator[str]:
        """Hints and captions without a target."""
        stems = {os.path.splitext(name)[0] for name in self._names}
        if self.conditioning is not None:
            for name in sorted(_pictures(self.conditioning, None)):
                if os.path.splitext(name)[0] not in stems:
                    yield f"The hint {self.conditioning / name} has no target of its name."
        for name in sorted(_files(self.folder, self.conditioning, CAPTIONS)):
            if os.path.splitext(name)[0] not in stems:
                yield f"The caption {self.folder / name} has no target of its name."

    def _hint(self, name: str) -> Stored | None:
        if self.conditioning is None:
            return None
        stem = os.path.splitext(self.conditioning / name)[0]
        for ending in dict.fromkeys((os.path.splitext(name)[1], *ENDINGS)):
            found = FilePicture(Path(stem + ending))
            if found.exists():
                return found
        return FilePicture(Path(stem + ENDINGS[0]))


def _hint_folder(folder: Path) -> Path | None:
    """A folder of hints inside the one of the targets, or beside it."""
    around = [folder, folder.parent] if folder.name in TARGET_FOLDERS else [folder]
    places = (place / name for place in around for name in HINT_FOLDERS)
    return next((place for place in places if place.is_dir()), None)


def _pictures(folder: Path, without: Path | None) -> Iterator[str]:
    return _files(folder, without, ENDINGS)


def _files(folder: Path, without: Path | None, endings: Sequence[str]) -> Iterator[str]:
    """Files of a folder and of those inside it, relative to it; not hidden ones.

    The folder `without` is left out.
    """
    left_out = None if without is None else os.path.realpath(without)

    def refuse(error: OSError) -> None:
        raise missing(folder, error) from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) != left_out
        ]
        inner = os.path.relpath(place, folder)
        for name in files:
            # macOS leaves ._NAME.png beside NAME.png.
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in endings:
                yield name if inner == "." else f"{inner}/{name}".replace(os.sep, "/")


def _caption(target: Path) -> str:
    """The text beside a picture, its white space made single spaces; "" where there is none."""
    for ending in CAPTIONS:
        path = target.with_suffix(ending)
        try:
            return " ".join(path.read_text(encoding="utf-8-sig").split())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise missing(path, error) from error
        except UnicodeDecodeError as error:
            raise CldmError(f"The caption {path} is not in UTF-8: {error}.") from error
    return ""


class ListedPairs:
    """Pairs that are in memory already."""

    shards = None

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = tuple(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def stamp(self) -> str:
        return repr([(pair.name, pair.target.stamp()) for pair in self.pairs])

    def strays(self) -> Iterator[str]:
        return iter(())


class Part:
    """Some pairs of a source, in the order of their numbers."""

    def __init__(self, source: Source, numbers: Indices) -> None:
        self.source = source
        self.numbers = np.sort(numbers)
        self.shards = None if source.shards is None else source.shards[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Pair:
        return self.source[int(self.numbers[index])]

    def stamp(self) -> str:
        return f"{self.source.stamp()}|{hashlib.sha256(self.numbers.tobytes()).hexdigest()}"

    def strays(self) -> Iterator[str]:
        return self.source.strays()


def hold_out(source: Source, count: int, seed: int = 0) -> tuple[Part, Part]:
    """The pairs to train on, and `count` others, chosen by the seed, to score with.

    Raises CldmError where that would leave nothing to train on.
    """
    if not 0 <= count < len(source):
        raise CldmError(
            f"{count} of {len(source)} pairs were to be held out (held_out), which leaves none to "
            f"train on: take a smaller number, 0 for no samples, or more pairs."
        )
    order = permutation(len(source), "hold out", seed)
    return Part(source, order[count:]), Part(source, order[:count])
