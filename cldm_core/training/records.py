"""Tables of a data set, JSON lines or CSV: read line by line, known by where the lines begin."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CldmError
from .pairs import missing, read_range

BOM = b"\xef\xbb\xbf"


class Records:
    """The records of a .json or .jsonl file of JSON lines, or of a .csv file with a header.

    Only the offsets of the records stay in memory, 20 bytes for each. Raises CldmError where the
    file can't be read, or is of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, lines = array("q"), array("l")
        self._header: list[str] = []
        table, end = path.suffix.lower() == ".csv", 0
        try:
            for line, piece in _csv_records(path) if table else _lines(path):
                if piece.strip().removeprefix(BOM):
                    starts.append(end)
                    lines.append(line)
                end += len(piece)
        except OSError as error:
            raise missing(path, error) from error
        starts.append(end)
        self._starts = np.array(starts, np.int64)
        self._lines = np.array(lines, np.int32)
        if table and len(lines):
            self._header = self._cells(0)
            self._starts, self._lines = self._starts[1:], self._lines[1:]
        elif len(lines) and self._text(0).lstrip().startswith("["):
            raise CldmError(
                f"{path} holds one JSON list: write its records as JSON objects, one on each line."
            )

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """A record by name of its columns; raises CldmError that names file and line."""
        if self._header:
            cells = self._cells(index)
            if len(cells) != len(self._header):
                raise CldmError(
                    f"{self.where(index)}: {len(cells)} cells, the header has {len(self._header)}."
                )
            return dict(zip(self._header, cells, strict=True))
        try:
            record = json.loads(self._text(index))
        except (ValueError, RecursionError) as error:
            raise CldmError(f"{self.where(index)} is no JSON: {error}.") from error
        if not isinstance(record, dict):
            raise CldmError(
                f"{self.where(index)} is no JSON object, such as "
                '{"source": "source/0.png", "target": "target/0.png", "prompt": "a circle"}.'
            )
        return record

    def where(self, index: int) -> str:
        """File and line of a record."""
        return f"{self.path}, line {self._lines[index]}"

    def text(self, index: int, record: Mapping[str, Any], column: str) -> str:
        """The text in a column; raises CldmError where there is none, or something else."""
        if column not in record:
            raise CldmError(
                f"{self.where(index)} has no {column!r}, only {', '.join(map(repr, record))}."
            )
        value = record[column]
        if not isinstance(value, str):
            raise CldmError(f"{self.where(index)}: {column!r} is {value!r}, expected a text.")
        return value

    def _text(self, index: int) -> str:
        start, end = self._starts[index : index + 2].tolist()
        data = read_range(self.path, start, end - start)
        try:
            return data.removeprefix(BOM).decode()
        except UnicodeDecodeError as error:
            raise CldmError(f"{self.where(index)} is not in UTF-8: {error}.") from error

    def _cells(self, index: int) -> list[str]:
        return next(csv.reader(io.StringIO(self._text(index), newline=""), strict=True))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        yield from enumerate(file, 1)


def _csv_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """The records with the number of their first line: quoted cells may hold ends of lines.

    Raises CldmError where it can't be told where a record ends.
    """
    pending: list[str] = []

    def lines() -> Iterator[str]:
        for line in file:
            pending.append(line)
            yield line.removeprefix("\ufeff")

    # What is not in UTF-8 is told when the record is asked for.
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        # It takes no line more than it needs for a record.
        reader, first = csv.reader(lines(), strict=True), 1
        try:
            for _ in reader:
                yield first, "".join(pending).encode("utf-8", "surrogateescape")
                first += len(pending)
                pending.clear()
        except csv.Error as error:
            raise CldmError(
                f"{path}, line {first} is no CSV: {error}. A cell that begins with a quote ends "
                f'with one, and quotes within it are doubled: "a ""big"" tree".'
            ) from error


class Names:
    """Many texts in one piece of memory."""

    def __init__(self, names: Iterable[str]) -> None:
        ends, everything = array("q", [0]), bytearray()
        for name in names:
            everything += name.encode("utf-8", "surrogateescape")
            ends.append(len(everything))
        self._all, self._ends = bytes(everything), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index : index + 2].tolist()
        return self._all[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """What `from_arrays` makes the same names of."""
        return np.frombuffer(self._all, np.uint8), self._ends

    @classmethod
    def from_arrays(cls, everything: np.ndarray, ends: np.ndarray) -> Names:
        names = cls(())
        names._all, names._ends = everything.tobytes(), ends
        return names

    @property
    def digest(self) -> str:
        """Another one for other texts, or another order."""
        return hashlib.sha256(self._all + self._ends.tobytes()).hexdigest()
