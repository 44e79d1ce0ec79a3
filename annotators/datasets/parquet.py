"""Data sets of Hugging Face in .parquet shards: pictures and captions are columns of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from ..base import AnnotatorError, needed
from ..files import PICTURES
from .entries import HINT_NAMES, PICTURE_NAMES, Content, Entry, beside_of, entry_of, unique

ENDING = ".parquet"
FOLDER = "data"
"""Where a repository of the hub keeps its shards."""
AT_ONCE = 16
"""Rows that are read together; each may hold a picture of megabytes."""
FORMATS = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}
"""What files of pictures begin with, for those that came without a name."""


def parquet_in(folder: Path) -> list[Path]:
    """The shards of a folder, sorted; none where its .parquet files hold no pictures.

    Other tools keep such files beside pictures: img2dataset its addresses, for one.
    """
    found = sorted(folder.glob(f"*{ENDING}")) or sorted((folder / FOLDER).glob(f"*{ENDING}"))
    return found if found and _may_hold_pictures(found[0]) else []


def _may_hold_pictures(shard: Path) -> bool:
    """False where the columns say no; a damaged file is told of when it is read."""
    arrow = _arrow()
    try:
        with _file(shard) as file:
            return _column(file.schema_arrow) is not None
    except (arrow.ArrowException, OSError):
        return True


def rows_of(shard: Path) -> Iterator[Entry | str]:
    """The pictures of a shard; a sentence in the place of each that isn't there."""
    return unique(_rows(shard))


def _rows(shard: Path) -> Iterator[Entry | str]:
    arrow = _arrow()
    number = 0
    try:
        with _file(shard) as file:
            names = file.schema_arrow.names
            column = _column(file.schema_arrow)
            if column is None:
                yield (
                    f"{shard.name}: expected pictures in a column {' or '.join(PICTURE_NAMES)}; it "
                    f"has {', '.join(names)}."
                )
                return
            used = [name for name in names if name not in HINT_NAMES]
            for batch in file.iter_batches(AT_ONCE, columns=used):
                for row in batch.to_pylist():
                    number += 1
                    yield _entry(shard, number, row, column)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield f"{shard.name}: it is damaged, and nothing behind row {number} was read ({error})."


def _arrow(module: str = "pyarrow") -> Any:
    return needed(module, to_install="pyarrow", by=f"Reading {ENDING} files")


def _file(shard: Path) -> Any:
    return _arrow("pyarrow.parquet").ParquetFile(shard)


def _column(schema: Any) -> str | None:
    """The column of pictures: one with bytes, else one with paths; a label may be a target too."""
    kinds = _arrow().types
    for fits in (
        (kinds.is_struct, kinds.is_binary, kinds.is_large_binary),
        (kinds.is_string, kinds.is_large_string),
    ):
        for name in PICTURE_NAMES:
            if name in schema.names and any(fit(schema.field(name).type) for fit in fits):
                return name
    return None


def _entry(shard: Path, number: int, row: Mapping[str, Any], column: str) -> Entry | str:
    where = f"{shard.name}, row {number}"
    try:
        path, picture = _picture(row[column], shard.parent)
    except AnnotatorError as error:
        return f"{where}: {error}"
    unnamed = PurePosixPath(f"{shard.stem}_{number:06d}")
    name = unnamed if path is None else path
    if name.suffix.lower() not in PICTURES and isinstance(picture, bytes):
        name = name.with_suffix(f".{_format(picture)}")
    entry = entry_of(name, picture, beside_of(row))
    return Entry(entry.key, f"{where} ({entry.name})", entry.ending, picture, entry.beside)


def _picture(value: object, folder: Path) -> tuple[PurePath | None, Content]:
    """Name and content of a cell: a file's bytes, its path, or both as `datasets` writes them.

    Raises AnnotatorError where there is neither.
    """
    path, data = value, value
    if isinstance(value, Mapping):
        path, data = value.get("path"), value.get("bytes")
    name = _name(path) if isinstance(path, str) and path else None
    if isinstance(data, bytes) and data:
        return name, data
    if name is None:
        raise AnnotatorError(f"there is no picture, but {_shown(value)}.")
    return name, folder / str(path)


def _name(path: str) -> PurePath:
    """A path of any system, relative; of a whole one only the file's name."""
    windows = PureWindowsPath(path)
    return PurePosixPath(windows.name if windows.anchor else path)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _format(data: bytes) -> str:
    """The ending of a picture's file; that of a PNG where it begins as none of FORMATS."""
    return next((ending for start, ending in FORMATS.items() if data.startswith(start)), "png")
