"""SIGINT and SIGTERM as a wish to stop after the step that is under way."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IMPATIENT_AFTER = 1.0
"""Seconds: torchrun passes on what the terminal has sent to its processes already."""


class StopOnSignals:
    """While it is entered, SIGINT and SIGTERM are kept as a wish; a later SIGINT acts as always.

    Called, it says whether there is the wish. Outside the main thread, where Python lets nobody
    handle signals, it leaves them alone.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> StopOnSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > IMPATIENT_AFTER:
            raise KeyboardInterrupt
