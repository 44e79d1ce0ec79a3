"""Files that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another name to write a file under, which is `path` once all is written.

    Missing folders are made. Of what fails within nothing is left, and what `path` was stays.
    Raises OSError where it can't be written.
    """
    # Processes on several machines may write the same file at once.
    part = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
