"""What was applied while the host sampled, told by the node that applied it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from .clock import Moment

EVENT = "cldm_applied"
"""The message to the editor: `node` and `text`."""


@dataclass
class Counts:
    """What happened in one sampling.

    steps: at which the net acted; last: how many there are.
    computed, reused, played: how often residuals were computed, used again, and how often a
        recording gave them.
    rows: how many were `on` and `off`.
    spared: whether rows that are off aren't computed.
    drift: the relative change from each computed set to the next.
    clocks: start and end of each computation.
    """

    steps: set[int] = field(default_factory=set)
    last: int = 0
    computed: int = 0
    reused: int = 0
    played: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    spared: bool = True
    drift: list[float] = field(default_factory=list)
    clocks: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The time that the net took."""
        return sum(_between(start, end) for start, end in self.clocks)


class Applied:
    """The report of one node, shared by the copies of a control that it made.

    title: name and family of the net; node: the node's id, None outside of a graph; weights: of the
    blocks, None where all are 1.
    """

    def __init__(self, title: str, node: str | None = None) -> None:
        self.title = title
        self.node = node
        self.weights: tuple[float, ...] | None = None
        self.counts = Counts()
        self._open: set[int] = set()

    def begin(self, control: int) -> None:
        """A new sampling starts for one of the copies; control: its id."""
        if self.counts.rows or self.counts.last:
            self._open.clear()
        self._open.add(control)
        self.counts = Counts()

    def end(self, control: int) -> None:
        """The sampling has ended for a copy; behind the last of them the text is shown."""
        self._open.discard(control)
        if not self._open:
            self.send()

    @contextmanager
    def timing(self, device: torch.device) -> Iterator[None]:
        """Adds the time that what is inside takes; on a GPU without waiting for it."""
        start = _now(device)
        yield
        self.counts.clocks.append((start, _now(device)))

    def note(self, now: Moment, acting: int, rows: int, *, computed: bool) -> None:
        """A call in which `acting` of its rows got something; 0 and 0 outside the window.

        computed: whether the net computes the other rows all the same.
        """
        counts = self.counts
        counts.last = now.steps
        counts.rows["on"] += acting
        counts.rows["off"] += rows - acting
        counts.spared = not computed
        if now.step is not None and acting:
            counts.steps.add(now.step)

    def text(self) -> str:
        """What was applied, in a few lines."""
        counts = self.counts
        lines = [self.title]
        if counts.last:
            where = f" ({_ranges(sorted(counts.steps))})" if counts.steps else ""
            lines.append(f"steps: on at {len(counts.steps)} of {counts.last}{where}")
        if self.weights is not None:
            lines.append(f"weights of {len(self.weights)} blocks: {_listed(self.weights)}")
        if counts.rows["off"]:
            lines.append(
                f"rows: {counts.rows['on']} with control, {counts.rows['off']} left out"
                + (" and not computed" if counts.spared else "")
            )
        if counts.reused:
            lines.append(
                f"computed {counts.computed} times, used again {counts.reused}"
                f"{_drifted(counts.drift)}"
            )
        if counts.clocks:  # a ControlNet-LLLite works inside of the UNet
            played = f", {counts.played} calls by CUDA graph" if counts.played else ""
            lines.append(f"time in the net: {counts.seconds:.2f} s{played}")
        return "\n".join(lines)

    def send(self) -> None:
        """Shows the text on the node, in the editor that queued the prompt."""
        show_text(self.node, self.text())


def show_text(node: str | None, text: str) -> None:
    """Shows a text on a node in the editor that queued the prompt; on none where node is None."""
    # Looked up where the host has it: a script that uses the host's modules has no server.
    served = getattr(sys.modules.get("server"), "PromptServer", None)
    server = getattr(served, "instance", None)
    if node is not None and server is not None:
        server.send_sync(EVENT, {"node": node, "text": text}, server.client_id)


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end) - start
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _ranges(numbers: list[int]) -> str:
    """Steps counted from 1, as 1-5, 8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a + 1}" if a == b else f"{a + 1}-{b + 1}" for a, b in parts)


def _drifted(drift: Sequence[float]) -> str:
    if not drift:
        return ""
    middle, most = 100 * median(drift), 100 * max(drift)
    return f", drift {middle:.1f} %, {most:.1f} % at most"


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:.3g}" for weight in weights)
