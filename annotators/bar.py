"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """tqdm's bar if it is installed, else a line that is written anew."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown = sys.stderr.isatty()
        self._bar: Any = None
        self._has_line = False

    def __enter__(self) -> Bar:
        if self._shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            self._bar = tqdm(desc=self._name)
        return self

    def show(self, done: int, total: int = 0) -> None:
        """`done` of `total` are done; 0 where nobody knows how many there are."""
        if self._bar is not None:
            self._bar.total = total or None
            self._bar.update(done - self._bar.n)
        elif self._shown:
            sys.stderr.write(f"\r{self._name}: {done} of {total or '?'}")
            sys.stderr.flush()
            self._has_line = True

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._has_line:
            sys.stderr.write("\n")
