"""Tables of a data set: prompt.json, metadata.jsonl and metadata.csv, a picture in each row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from ..base import AnnotatorError
from .entries import PICTURE_NAMES, Entry, beside_of, entry_of

TABLES = ("metadata.jsonl", "metadata.csv", "prompt.json")
"""Tables that are taken in place of a folder's files."""
SPLIT = "train"
"""Where a Hugging Face image folder with several parts keeps the one to train on."""
ENDINGS = (".json", ".jsonl", ".csv")

Row: TypeAlias = Mapping[str, Any]


def table_in(folder: Path) -> Path | None:
    """The table of a folder, or of its part to train on."""
    places = (inside / name for inside in (folder, folder / SPLIT) for name in TABLES)
    return next((place for place in places if place.is_file()), None)


def listed(path: Path) -> Iterator[Entry]:
    """The pictures of prompt.json (lllyasviel/ControlNet) or metadata (Hugging Face), in order.

    Paths in it are relative to its folder. Raises AnnotatorError with the line that names none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotatorError(f"{path} is not in UTF-8 ({error}): save it so.") from error
    for number, row, line in _cells(path, text) if path.suffix.lower() == ".csv" else _lines(text):
        name = next((row[one] for one in PICTURE_NAMES if isinstance(row.get(one), str)), None)
        if not name:
            raise AnnotatorError(
                f"{path}, line {number}: expected {_expected(path)} that names a picture as "
                f"{', '.join(PICTURE_NAMES)}, but the line says {line[:60]!r}."
            )
        yield entry_of(PurePosixPath(name), path.parent / name, beside_of(row))


def _expected(path: Path) -> str:
    return "a row" if path.suffix.lower() == ".csv" else "a JSON object"


def _lines(text: str) -> Iterator[tuple[int, Row, str]]:
    """Number, object and text of each line; an empty object where the line isn't one."""
    # Not splitlines: that parts at characters which a JSON text may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _object(line), line.strip()


def _object(line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _cells(path: Path, text: str) -> Iterator[tuple[int, Row, str]]:
    """Number of the last line, row by the header's names, and text of each row.

    Empty cells are left out of the row, as the format can't tell them from none.
    """
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in rows:
            if not header:
                header = cells
                continue
            if cells and len(cells) != len(header):
                raise AnnotatorError(
                    f"{path}, line {rows.line_num}: {len(cells)} cells, the header has "
                    f"{len(header)}."
                )
            if any(cells):
                named = zip(header, cells, strict=True)
                yield rows.line_num, {name: cell for name, cell in named if cell}, ",".join(cells)
    except csv.Error as error:
        raise AnnotatorError(f"{path}, line {rows.line_num} is no CSV: {error}.") from error
