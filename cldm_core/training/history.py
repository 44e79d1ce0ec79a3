"""What happened in a run, step by step: JSON lines on disk, whole after every crash."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CldmError

log = logging.getLogger("cldm_core")

FILE = "history.jsonl"
BLOCK = 4096

Row = dict[str, Any]


class History:
    """The record of a run in folder/history.jsonl: one line of JSON for each note.

    A line is on disk when `note` returns, and a process may be killed at any moment: a line that
    was being written then is dropped when the file is next read or written, and none but that. In
    a run of several processes only the first notes.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / FILE

    def note(self, step: int, **numbers: Any) -> None:
        """Appends a line with the step and the numbers.

        numbers: finite or not, by name; texts, and lists and mappings of numbers, too. Several
        notes of one step add up. Raises CldmError where the line can't be written; the file then
        is as it was.
        """
        row = {"step": int(step), **{name: _plain(value) for name, value in numbers.items()}}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what didn't fit on the disk must not be tried again when the file closes.
            with open(self.path, "ab+", buffering=0) as handle:
                size = _mend(handle)
                try:
                    if handle.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(handle.fileno())
                except OSError:
                    with suppress(OSError):
                        handle.truncate(size)
                    raise
        except OSError as error:
            raise self._unwritable(error) from error

    def read(self) -> list[Row]:
        """The lines in the order in which they were noted; numbers that weren't finite are NaN.

        Lines that are no JSON are left out, and all but an unfinished last one are logged.
        """
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole, _, _ = data.rpartition(b"\n")
        return [row for _, row in self._rows(whole)]

    def series(self, name: str) -> list[tuple[int, float]]:
        """The numbers of one name as (step, number), by step; of one step the last note counts."""
        found = {
            row["step"]: float(row[name])
            for row in self.read()
            if isinstance(row.get(name), int | float)
        }
        return sorted(found.items())

    def mappings(self, name: str) -> list[tuple[int, dict[str, float]]]:
        """The mappings of one name as (step, mapping), by step; see `series`."""
        found = {row["step"]: row[name] for row in self.read() if isinstance(row.get(name), dict)}
        return sorted(found.items())

    def rewind(self, step: int) -> None:
        """Drops what was noted after `step`: a run that goes on from there notes it anew.

        The file is replaced in one go. Raises CldmError where it can't be written.
        """
        if not self.path.exists():
            return
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        kept = [line for line, row in self._rows(whole) if row["step"] <= step]
        temporary = self.path.with_name(FILE + ".part")
        try:
            with open(temporary, "wb") as handle:
                handle.writelines(line + b"\n" for line in kept)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _rows(self, data: bytes) -> Iterator[tuple[bytes, Row]]:
        for number, line in enumerate(data.splitlines(), 1):
            try:
                row = json.loads(line)
                yield line, {"step": int(row["step"]), **_numbers(row)}
            except (ValueError, KeyError, TypeError):
                log.warning("Line %d of %s is damaged and left out.", number, self.path)

    def _unwritable(self, error: OSError) -> CldmError:
        return CldmError(
            f"The record {self.path} can't be written ({error.strerror}): what it holds is intact; "
            "make room or choose another folder, and resume."
        )


def _mend(handle: io.FileIO) -> int:
    """Cuts an unfinished last line off; the size of what is left."""
    size = handle.seek(0, os.SEEK_END)
    end = size
    while end:
        start = max(0, end - BLOCK)
        handle.seek(start)
        found = handle.read(end - start).rfind(b"\n")
        end = start + found + 1 if found >= 0 else start
        if found >= 0:
            break
    if end < size:
        handle.truncate(end)
    return end


def _plain(value: Any) -> Any:
    """The value as JSON knows it; null where it is no finite number."""
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) or getattr(value, "ndim", None):
        return [_plain(item) for item in value]
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _numbers(value: Any) -> Any:
    """What was read, with NaN for null."""
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value
