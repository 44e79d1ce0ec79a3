"""Strength and size of what was added over the steps, a line for each net."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from .record import ControlRecord, NetNorms, StepNorms
from .sheets_canvas import (
    BACKGROUND,
    BRIGHT,
    DIM,
    LINE,
    PANEL,
    TEXT,
    Box,
    Canvas,
    Picture,
    Point,
    fitted,
    number,
    text_width,
    ticks,
)
from .sheets_heat import recorded

WIDTH, MARGIN, GUTTER = 1080, 32, 62
STRENGTH, RMS, AXIS = 280, 200, 58
TITLE, CHIP, LANE = 42, 28, 14
HEADROOM = 14
PALETTE = ("#4fb3f6", "#f5a454", "#6fd08c", "#d58cf2", "#f2d04f", "#f2788f", "#5fd6cf", "#b9b9b9")
"""Colours of the nets, told apart on dark ground; from the ninth net on they start again."""

Value = Callable[[StepNorms], float]


@dataclass(frozen=True)
class Net:
    """A net as the plot shows it."""

    title: str
    colour: str
    norms: NetNorms


@dataclass(frozen=True)
class Layout:
    """Where everything is: the legend's lines, two panels, and lanes of when a net was on."""

    lines: int
    nets: int
    first: int
    last: int

    @property
    def legend(self) -> Box:
        return Box(MARGIN, MARGIN + TITLE, WIDTH - 2 * MARGIN, self.lines * CHIP)

    def _panel(self, top: float, height: float) -> Box:
        return Box(MARGIN + GUTTER, top, WIDTH - 2 * MARGIN - GUTTER, height)

    @property
    def strength(self) -> Box:
        return self._panel(self.legend.bottom + 40, STRENGTH)

    @property
    def rms(self) -> Box:
        return self._panel(self.strength.bottom + 56, RMS)

    @property
    def lanes(self) -> Box:
        return self._panel(self.rms.bottom + 20, self.nets * LANE)

    @property
    def axis(self) -> Box:
        return self._panel(self.lanes.bottom + 8, AXIS)

    @property
    def height(self) -> int:
        return int(self.axis.bottom + MARGIN)

    def x(self, step: float) -> float:
        """Where a step is; half a step is left free on both sides."""
        panel = self.strength
        return panel.left + panel.width * (step - self.first + 0.5) / (self.last - self.first + 1)


def strength_plot(record: ControlRecord) -> Picture:
    """Strength over steps, below it the residuals' RMS, (H, W, 3) uint8; a line for each net.

    A step's RMS is that of all blocks, each counting the same. Raises CldmError where nothing was
    recorded.
    """
    nets = _named(recorded(record))
    chips = _chips(nets)
    steps = {step.step: step.sigma for net in nets for step in reversed(net.norms.steps)}
    lines = 1 + max(line for line, _, _ in chips)
    layout = Layout(lines, len(nets), min(steps), max(steps))
    canvas = Canvas(WIDTH, layout.height)
    canvas.text(
        Box(MARGIN, MARGIN - 4, WIDTH - 2 * MARGIN, 32),
        "Control over the steps",
        25,
        BRIGHT,
        strong=True,
    )
    _legend(canvas, layout, nets, chips)
    _panel(canvas, layout, layout.strength, "strength", nets, lambda step: step.strength)
    _panel(canvas, layout, layout.rms, "RMS of all blocks", nets, lambda step: step.rms)
    _lanes(canvas, layout, nets)
    _axis(canvas, layout, steps)
    return canvas.finish()


def _named(nets: Sequence[NetNorms]) -> list[Net]:
    """The nets with colours; those of one name are numbered."""
    total = Counter(net.name for net in nets)
    seen: Counter[str] = Counter()
    named = []
    for index, net in enumerate(nets):
        seen[net.name] += 1
        title = f"{net.name} #{seen[net.name]}" if total[net.name] > 1 else net.name
        named.append(Net(title, PALETTE[index % len(PALETTE)], net))
    return named


def _chips(nets: Sequence[Net]) -> list[tuple[int, float, str]]:
    """For each net's legend its line, its left edge and its text."""
    chips: list[tuple[int, float, str]] = []
    line, left = 0, 0.0
    room = WIDTH - 2 * MARGIN
    for net in nets:
        on = f"{net.norms.steps_on} of {len(net.norms.steps)} steps"
        title = fitted(net.title, 360, 15)
        width = 26 + text_width(title, 15) + 10 + text_width(on, 13) + 34
        if left and left + width > room:
            line, left = line + 1, 0.0
        chips.append((line, left, on))
        left += width
    return chips


def _legend(
    canvas: Canvas, layout: Layout, nets: Sequence[Net], chips: Sequence[tuple[int, float, str]]
) -> None:
    for net, (line, offset, on) in zip(nets, chips, strict=True):
        left = layout.legend.left + offset
        top = layout.legend.top + line * CHIP
        canvas.box(Box(left, top + CHIP / 2 - 2, 18, 4), net.colour, radius=2)
        canvas.dot((left + 9, top + CHIP / 2), 5, net.colour)
        title = fitted(net.title, 360, 15)
        width = text_width(title, 15)
        canvas.text(Box(left + 26, top, width + 2, CHIP), title, 15)
        canvas.text(Box(left + 36 + width, top + 1, 140, CHIP), on, 13, DIM)


def _panel(
    canvas: Canvas, layout: Layout, box: Box, title: str, nets: Sequence[Net], value: Value
) -> None:
    """One panel with its grid and lines."""
    values = [value(step) for net in nets for step in net.norms.steps if step.off is None]
    finite = [one for one in values if math.isfinite(one)]
    marks = ticks(min(finite, default=0.0), max(finite, default=0.0), round(box.height / 50))
    low, high = marks[0], marks[-1]

    def y(number: float) -> float:
        return box.bottom - (box.height - HEADROOM) * (number - low) / (high - low)

    canvas.text(Box(box.left, box.top - 28, box.width, 20), title, 15)
    canvas.box(box, PANEL)
    if not any(values):
        words = "nothing is added between the blocks" if values else "off throughout"
        canvas.text(box, words, 14, DIM, "center")
        return
    for mark in marks:
        colour = DIM if mark == 0 else LINE
        canvas.line([(box.left, y(mark)), (box.right, y(mark))], colour, 1)
        canvas.text(Box(MARGIN, y(mark) - 10, GUTTER - 10, 20), number(mark), 13, DIM, "right")
    lines = [
        [[(layout.x(step.step), y(value(step))) for step in run] for run in _runs(net.norms.steps)]
        for net in nets
    ]
    for index, (net, runs) in enumerate(zip(nets, lines, strict=True)):
        hidden = sum(_meet(runs, later) for later in lines[index + 1 :])
        for points in runs:
            _curve(canvas, points, net.colour, y(0), min(3, hidden))


def _meet(runs: Sequence[Sequence[Point]], later: Sequence[Sequence[Point]]) -> bool:
    """Whether a line that is drawn later would hide a stretch of this one."""
    known = {x: y for run in later for x, y in run}
    return sum(abs(known.get(x, math.inf) - y) < 2 for run in runs for x, y in run) > 1


def _runs(steps: Sequence[StepNorms]) -> Iterator[list[StepNorms]]:
    """The stretches of steps in which a net was on."""
    for off, run in groupby(steps, key=lambda step: step.off is not None):
        if not off:
            yield list(run)


def _curve(canvas: Canvas, points: Sequence[Point], colour: str, zero: float, hidden: int) -> None:
    """A line with dots; `hidden`: how many lines will come to lie on it."""
    shown = [point for point in points if math.isfinite(point[1])]
    if not shown:
        return
    if len(shown) == 1:
        canvas.line([(shown[0][0], zero), shown[0]], colour, 2)
        canvas.dot(shown[0], 6, colour, BACKGROUND)
        return
    canvas.area([(shown[0][0], zero), *shown, (shown[-1][0], zero)], colour, 0.10)
    # A line under others of the same course is seen on both sides of them.
    canvas.line(shown, colour, 2.5 + 3 * hidden)
    if len(shown) <= 60:
        for point in shown:
            canvas.dot(point, 4 + 1.5 * hidden, colour, BACKGROUND)


def _lanes(canvas: Canvas, layout: Layout, nets: Sequence[Net]) -> None:
    """For each net a bar, coloured where it was on and hatched where it was off."""
    canvas.text(layout.lanes._replace(left=MARGIN, width=GUTTER - 18), "on", 13, DIM, "right")
    for index, net in enumerate(nets):
        lane = layout.lanes._replace(top=layout.lanes.top + index * LANE + 2, height=LANE - 4)
        for off, group in groupby(net.norms.steps, key=lambda step: step.off is not None):
            run = list(group)
            left, right = layout.x(run[0].step - 0.5), layout.x(run[-1].step + 0.5)
            part = lane._replace(left=left + 1, width=right - left - 2)
            if off:
                canvas.hatch(part, 3, gap=5)
            else:
                canvas.box(part, net.colour, radius=3)


def marked_steps(steps: Sequence[int]) -> list[int]:
    """The steps that are named: each of up to 20, else the first and every fifth, tenth, ..."""
    if len(steps) <= 20:
        return list(steps)
    span = steps[-1] - steps[0] + 1
    every = next(
        every
        for power in range(9)
        for every in (5 * 10**power, 10 * 10**power)
        if span <= 20 * every
    )
    return [step for step in steps if step == steps[0] or (step + 1) % every == 0]


def _axis(canvas: Canvas, layout: Layout, steps: dict[int, float]) -> None:
    places = sorted(steps)
    top = layout.axis.top
    canvas.text(Box(MARGIN, top + 4, GUTTER - 18, 20), "step", 14, DIM, "right")
    canvas.text(Box(MARGIN, top + 26, GUTTER - 18, 18), "sigma", 13, DIM, "right")
    for step in marked_steps(places):
        x = layout.x(step)
        for panel in (layout.strength, layout.rms):
            canvas.line([(x, panel.bottom), (x, panel.bottom + 4)], DIM)
        canvas.text(Box(x - 22, top + 4, 44, 20), str(step + 1), 15, TEXT, "center")
        canvas.text(Box(x - 22, top + 26, 44, 18), number(steps[step]), 12, DIM, "center")
