"""The heat maps of one net on one sheet: a row for each block, a column for each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from .errors import CldmError
from .record import Array, BlockNorm, ControlRecord, NetNorms, StepNorms
from .sheets_canvas import (
    ALERT,
    BRIGHT,
    DIM,
    EMPTY,
    LINE,
    PANEL,
    SCALE,
    TEXT,
    Box,
    Canvas,
    Picture,
    colour_of,
    colours,
    evenly,
    number,
    text_width,
    ticks,
)

MOST_COLUMNS = 10
MARGIN, GAP, ROUND = 32, 4, 4
HEADER, HEAD, LABELS, LEGEND = 100, 46, 74, 96
LEAST_WIDTH, BARS, NUMBERS = 840, 210, 60
NOTHING = (
    "Nothing was recorded: connect the latent of the sampler that used this conditioning, with "
    "Record Control between the two."
)


def recorded(record: ControlRecord) -> tuple[NetNorms, ...]:
    """The nets of a record; raises CldmError where there is none."""
    nets = record.nets
    if not nets:
        raise CldmError(NOTHING)
    return nets


@dataclass(frozen=True)
class Rows:
    """What the rows of a sheet show: cells by label and step, and what their numbers are."""

    cells: dict[str, dict[int, BlockNorm]]
    unit: str

    @classmethod
    def of(cls, net: NetNorms) -> Rows:
        on = [step for step in net.steps if step.off is None]
        if net.labels:
            cells = {
                label: {step.step: step.blocks[label] for step in on if label in step.blocks}
                for label in net.labels
            }
            return cls(cells, "RMS")
        if not on:
            return cls({"blocks": {}}, "RMS")
        # A net that changes attention layers has no residuals to show.
        flat = {step.step: _flat(step.strength) for step in on}
        return cls({"strength": flat}, "strength")

    @property
    def aspect(self) -> float:
        """Width by height of the largest map."""
        maps = [block.map.shape for cells in self.cells.values() for block in cells.values()]
        height, width = max(maps, key=max, default=(1, 1))
        return width / height

    def mean(self, label: str) -> float:
        """The mean of a row over the steps that were on."""
        values = [block.rms for block in self.cells[label].values()]
        return sum(values) / len(values) if values else 0.0


def _flat(value: float) -> BlockNorm:
    return BlockNorm(value, np.full((1, 1), value, np.float32), (1, 1))


@dataclass(frozen=True)
class Scale:
    """How numbers become colours: 0 at `low`, 1 at `high`, by ratios where `log`."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Array) -> Scale:
        """Logarithmic where the numbers spread over more than a factor of 8, linear from 0 else.

        A logarithmic scale leaves out the smallest hundredth, and never goes below a thousandth of
        the largest number.
        """
        used = values[np.isfinite(values) & (values > 0)]
        if not used.size:
            return cls(0.0, 1.0, False)
        high = float(used.max())
        small, smallest = (float(value) for value in np.percentile(used, (10, 1)))
        if high <= 8 * small:
            return cls(0.0, high, False)
        return cls(max(smallest, high / 1000), high, True)

    def at(self, values: Array) -> Array:
        """Numbers in [0, 1] for the colour map."""
        if not self.log:
            return np.asarray(values / self.high, np.float32)
        clipped = np.clip(values, self.low, self.high)
        return np.asarray(np.log(clipped / self.low) / np.log(self.high / self.low), np.float32)

    def ticks(self) -> list[float]:
        """Round numbers on the scale, lowest first."""
        if not self.log:
            return [tick for tick in ticks(0, self.high) if tick <= self.high]
        decades = range(-12, 13)
        found = [
            factor * 10.0**power
            for power in decades
            for factor in (1, 2, 5)
            if self.low <= factor * 10.0**power <= self.high
        ]
        return found if len(found) <= 8 else [one for one in found if f"{one:e}".startswith("1")]


@dataclass(frozen=True)
class Layout:
    """Where everything on the sheet is, in its pixels."""

    labels: tuple[str, ...]
    columns: int
    cell: tuple[float, float]
    width: int

    @classmethod
    def of(cls, labels: Sequence[str], columns: int, aspect: float) -> Layout:
        """For maps of this aspect, width by height."""
        height = min(96.0, max(16.0, round(820 / len(labels)) - GAP))
        width = max(50.0, round(height * min(2.5, max(0.4, aspect))))
        used = 2 * MARGIN + LABELS + columns * (width + GAP) + BARS + 28
        return cls(tuple(labels), columns, (width, height), int(max(LEAST_WIDTH, used)))

    @property
    def height(self) -> int:
        return int(self.grid.bottom + LEGEND + MARGIN)

    @property
    def grid(self) -> Box:
        width, height = self.cell
        rows = len(self.labels)
        return Box(
            MARGIN + LABELS,
            MARGIN + HEADER + HEAD,
            self.columns * (width + GAP) - GAP,
            rows * (height + GAP) - GAP + self._apart(rows - 1),
        )

    def _apart(self, row: int) -> float:
        """How far a row is moved down, for the middle to stand apart."""
        return 8.0 if row and self.labels[row] == "middle" else 0.0

    def place(self, row: int, column: int) -> Box:
        """The cell of a block and a step."""
        width, height = self.cell
        return Box(
            self.grid.left + column * (width + GAP),
            self.grid.top + row * (height + GAP) + self._apart(row),
            width,
            height,
        )

    def label(self, row: int, sized: bool) -> tuple[Box, Box | None]:
        """Where a block's label stands, and the size of its residual where there is room for it."""
        place = self.place(row, 0)
        whole = Box(MARGIN, place.top, LABELS - 12, place.height)
        if not sized or place.height < 40:
            return whole, None
        middle = place.top + place.height / 2
        return whole._replace(top=middle - 18, height=20), whole._replace(top=middle + 3, height=16)

    def head(self, column: int) -> tuple[Box, Box]:
        """Where the step and its sigma stand."""
        place = self.place(0, column)
        top = self.grid.top - HEAD
        return (
            Box(place.left, top, place.width, 20),
            Box(place.left, top + 20, place.width, 18),
        )

    def bar(self, row: int) -> tuple[Box, Box]:
        """The longest bar of a row, and where its number stands when the bar is that long."""
        place = self.place(row, 0)
        left = self.grid.right + 28
        length = self.width - MARGIN - NUMBERS - left
        height = min(18.0, place.height)
        bar = Box(left, place.top + (place.height - height) / 2, length, height)
        return bar, Box(bar.right + 8, place.top, NUMBERS - 8, place.height)

    @property
    def legend(self) -> Box:
        """The colour bar."""
        width = min(560.0, self.width - MARGIN - self.grid.left)
        return Box(self.grid.left, self.grid.bottom + 26, width, 12)


def heat_sheet(record: ControlRecord, *, picture: Picture | None = None, net: int = 0) -> Picture:
    """The residuals' norms of one net, (H, W, 3) uint8: blocks from top to bottom, steps to the
    right.

    picture: (h, w, 3) uint8, shown beside the title. net: which of the record's nets, from 0.
    Raises CldmError where nothing was recorded, or no such net.
    """
    nets = recorded(record)
    if not 0 <= net < len(nets):
        raise CldmError(
            f"Net {net} was asked for, and {len(nets)} were recorded: choose a number from 0 to "
            f"{len(nets) - 1}."
        )
    shown = nets[net]
    rows = Rows.of(shown)
    steps = [shown.steps[index] for index in evenly(len(shown.steps), MOST_COLUMNS)]
    layout = Layout.of(tuple(rows.cells), len(steps), rows.aspect)
    scale = Scale.of(_values(rows, steps))
    canvas = Canvas(layout.width, layout.height)
    _title(
        canvas, layout, shown, f"net {net}, {len(nets)} recorded" if len(nets) > 1 else "", picture
    )
    _heads(canvas, layout, steps)
    _cells(canvas, layout, rows, steps, scale)
    _bars(canvas, layout, rows, scale)
    if shown.steps_on:
        _legend(canvas, layout, rows.unit, scale)
    return canvas.finish()


def _values(rows: Rows, steps: Sequence[StepNorms]) -> Array:
    """Every number on the sheet."""
    maps = [
        cells[step.step].map.ravel()
        for cells in rows.cells.values()
        for step in steps
        if step.step in cells
    ]
    return np.concatenate(maps) if maps else np.zeros(0, np.float32)


def _title(
    canvas: Canvas, layout: Layout, net: NetNorms, which: str, picture: Picture | None
) -> None:
    right = layout.width - MARGIN
    if picture is not None:
        height = HEADER - 12
        width = min(2.5 * height, height * picture.shape[1] / picture.shape[0])
        canvas.picture(Box(right - width, MARGIN, width, height), picture, ROUND)
        right -= width + 20
    width = right - MARGIN
    blocks = f"{len(net.labels)} blocks" if net.labels else "no residuals" * (net.steps_on > 0)
    on = f"on in {net.steps_on} of {len(net.steps)} steps"
    facts = " · ".join(filter(None, (net.net, on, blocks, which)))
    reasons = Counter(step.off for step in net.steps if step.off is not None)
    off = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
    canvas.text(Box(MARGIN, MARGIN - 4, width, 32), net.name, 25, BRIGHT, strong=True)
    canvas.text(Box(MARGIN, MARGIN + 30, width, 22), facts, 15)
    if off:
        canvas.text(Box(MARGIN, MARGIN + 52, width, 20), f"off: {off}", 14, DIM)


def _heads(canvas: Canvas, layout: Layout, steps: Sequence[StepNorms]) -> None:
    left = Box(MARGIN, 0, LABELS - 12, 0)
    for column, step in enumerate(steps):
        above, below = layout.head(column)
        canvas.text(above, str(step.step + 1), 16, TEXT, "center")
        canvas.text(below, number(step.sigma), 13, DIM, "center")
        if column == 0:
            canvas.text(left._replace(top=above.top, height=20), "step", 14, DIM, "right")
            canvas.text(left._replace(top=below.top, height=18), "sigma", 13, DIM, "right")
    bar, numbers = layout.bar(0)
    above, below = (
        head._replace(left=bar.left, width=numbers.right - bar.left) for head in layout.head(0)
    )
    canvas.text(above, "mean", 16)
    canvas.text(below, "of the steps it was on", 13, DIM)


def _cells(
    canvas: Canvas, layout: Layout, rows: Rows, steps: Sequence[StepNorms], scale: Scale
) -> None:
    for row, (label, cells) in enumerate(rows.cells.items()):
        above, below = layout.label(row, bool(cells) and rows.unit == "RMS")
        canvas.text(above, label, min(15.0, above.height), TEXT, "right")
        if below is not None:
            height, width = next(iter(cells.values())).size
            canvas.text(below, f"{width}x{height}", 12, DIM, "right")
        for column, step in enumerate(steps):
            place = layout.place(row, column)
            if step.step in cells:
                _cell(canvas, place, cells[step.step], scale)
            elif step.off is None:
                canvas.box(place, EMPTY, radius=ROUND)
    columns = groupby(enumerate(steps), key=lambda item: item[1].off)
    for reason, group in columns:
        if reason is not None:
            places = [column for column, _ in group]
            _off(canvas, layout, (places[0], places[-1]), reason)


def _cell(canvas: Canvas, place: Box, block: BlockNorm, scale: Scale) -> None:
    import cv2

    if not np.isfinite(block.map).all():
        canvas.box(place, EMPTY, ALERT, ROUND)
        canvas.text(place, "NaN", min(14.0, place.height), ALERT, "center")
        return
    size = (round(place.width * SCALE), round(place.height * SCALE))
    values = cv2.resize(scale.at(block.map), size, interpolation=cv2.INTER_LINEAR)
    canvas.picture(place, colours(values), ROUND)


def _off(canvas: Canvas, layout: Layout, columns: tuple[int, int], reason: str) -> None:
    """A field over all rows of neighbouring steps in which the net added nothing."""
    start = layout.place(0, columns[0])
    end = layout.place(len(layout.labels) - 1, columns[1])
    field = Box(start.left, start.top, end.right - start.left, end.bottom - start.top)
    canvas.hatch(field, ROUND)
    # The reason as well where it doesn't leave the field.
    words = next(
        text
        for text in (f"off: {reason}", "off")
        if text == "off" or text_width(text, 14) + 36 <= field.width
    )
    width = text_width(words, 14) + 20
    middle = field.left + field.width / 2, field.top + field.height / 2
    pill = Box(middle[0] - width / 2, middle[1] - 12, width, 24)
    canvas.box(pill, PANEL, LINE, 12)
    canvas.text(pill, words, 14, TEXT, "center")


def _bars(canvas: Canvas, layout: Layout, rows: Rows, scale: Scale) -> None:
    means = {label: rows.mean(label) for label in rows.cells}
    most = max((mean for mean in means.values() if np.isfinite(mean)), default=0.0) or 1.0
    for row, mean in enumerate(means.values()):
        bar, numbers = layout.bar(row)
        length = bar.width * mean / most if np.isfinite(mean) else 0.0
        canvas.box(bar, PANEL, radius=3)
        if length >= 1:
            shade = float(scale.at(np.array(mean, np.float32)))
            # Darker would not stand out from the sheet.
            canvas.box(bar._replace(width=length), colour_of(max(0.25, shade)), radius=3)
        canvas.text(numbers, number(mean), min(14.0, bar.height), TEXT)


def _legend(canvas: Canvas, layout: Layout, unit: str, scale: Scale) -> None:
    bar = layout.legend
    ramp = np.linspace(0, 1, round(bar.width), dtype=np.float32)[None]
    canvas.picture(bar, colours(ramp), 3)
    ends = [-np.inf]
    for tick in scale.ticks():
        at = bar.left + bar.width * float(scale.at(np.array(tick, np.float32)))
        if at - ends[-1] < 44:
            continue
        ends.append(at)
        canvas.line([(at, bar.bottom + 2), (at, bar.bottom + 6)], DIM)
        canvas.text(Box(at - 24, bar.bottom + 8, 48, 16), number(tick), 13, TEXT, "center")
    kind = "logarithmic" if scale.log else "linear"
    what = {
        "RMS": f"RMS of what a block adds, over its channels; {kind}, one scale for the sheet. "
        "Each square is the whole picture.",
        "strength": f"strength of the net; {kind}",
    }[unit]
    canvas.text(Box(bar.left, bar.bottom + 30, layout.width - MARGIN - bar.left, 18), what, 13, DIM)
