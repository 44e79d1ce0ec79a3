"""The loop of the processes that `annotators.py` starts: one task a line, one answer a line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

LEAST = 0.04
"""Seconds that a sample has to last at least, if need be by repeating the call."""
MOST_REPEATS = 400
SLOW = 1.0
"""Seconds of a call that the first time makes no difference to."""


class Side:
    """One of those that are compared; its methods are the tasks."""

    starts_slowly = False
    """Whether the first call with pictures of a size takes long, as on a GPU."""

    def __init__(self) -> None:
        self.repeats: dict[str, int] = {}

    def calls(self, by: str, size: int, batch: int) -> Callable[[], Any]:
        """What makes the hints of `batch` pictures when it is called."""
        raise NotImplementedError

    def warm(self, by: str, size: int, batch: int) -> dict[str, float]:
        """A call that isn't counted; finds how often a sample has to repeat it."""
        call = self.calls(by, size, batch)
        found = sample(call, 1)
        if found["seconds"] < SLOW or self.starts_slowly:
            found = sample(call, 1)
        often = int(LEAST / found["seconds"]) + 1 if found["seconds"] > 0 else MOST_REPEATS
        self.repeats[f"{by} {size} {batch}"] = min(often, MOST_REPEATS)
        return found

    def time(self, by: str, size: int, batch: int) -> dict[str, float]:
        """Seconds of one call, by the clock and of the processor in all threads."""
        call = self.calls(by, size, batch)
        return sample(call, self.repeats.get(f"{by} {size} {batch}", 1))

    def serve(self) -> None:
        """Does what it is told until the input ends."""
        if threads := os.environ.get("OMP_NUM_THREADS"):
            import cv2

            cv2.setNumThreads(int(threads))
        # Whatever a package prints must not get between the answers.
        answers, sys.stdout = sys.stdout, sys.stderr
        for line in sys.stdin:
            task = json.loads(line)
            try:
                answer = getattr(self, task.pop("do"))(**task)
            except Exception as error:
                answer = {"error": reason(error)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def sample(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Seconds of a call, the mean of several."""
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    return {"seconds": seconds / repeats, "cpu": cpu / repeats}


def reason(error: BaseException) -> str:
    """An error in one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:200]
