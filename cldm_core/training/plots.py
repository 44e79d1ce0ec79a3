"""The curves of a run in one picture: adherence, loss, norms of zero convolutions, rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np

from ..errors import CldmError
from ..pipeline import Picture
from ..sheets_canvas import BACKGROUND, BRIGHT, DIM, LINE, PANEL, TEXT, evenly, number, printable
from .convergence import Convergence, find, verdict
from .history import History
from .scores import SCORES, Score

Array = np.ndarray[Any, np.dtype[np.float64]]
Series = list[tuple[int, float]]

WIDTH, DPI = 12.0, 110
GREEN, BLUE, YELLOW, PURPLE, ORANGE = "#6fd08c", "#4fb3f6", "#f2d04f", "#d58cf2", "#f5a454"
SMOOTHED = 0.02
"""Deviation of the Gaussian that smooths the loss, as a share of the run."""
LETTERS = 130
"""In a line below the title."""
MOST_NAMED, LONG = 16, 6
"""So many norms are named, and half of them where a name has more letters than that."""
NAN_TEXT = {"color": ORANGE, "fontsize": 9, "ha": "right", "va": "bottom"}
NOTHING = "The run has no record yet: train a few steps first."


@dataclass(frozen=True)
class Curves:
    """What a history holds for the plot."""

    loss: Series
    adherence: Series
    spread: list[tuple[int, float, float]]
    norms: dict[str, Series]
    rate: Series
    score: Score | None

    @classmethod
    def of(cls, history: History) -> Curves:
        """Reads a history; raises CldmError where it holds nothing to plot."""
        rows = history.read()
        score = next((SCORES.get(str(row["score"])) for row in rows if "score" in row), None)
        norms: dict[str, Series] = {}
        for step, values in history.mappings("zero_norms"):
            for label, value in values.items():
                norms.setdefault(label, []).append((step, value))
        parts = {row["step"]: row["per_picture"] for row in rows if row.get("per_picture")}
        spread = [
            (step, *(float(one) for one in np.nanpercentile(values, (10, 90))))
            for step, values in sorted(parts.items())
        ]
        found = cls(
            history.series("loss"),
            history.series("adherence"),
            [(step, low, high) for step, low, high in spread],
            norms,
            history.series("lr"),
            score,
        )
        if not (found.loss or found.adherence or found.norms):
            raise CldmError(NOTHING)
        return found

    @property
    def title(self) -> str:
        return "adherence" if self.score is None else self.score.title

    @property
    def higher_is_better(self) -> bool:
        return self.score is None or self.score.higher_is_better

    def said(self, value: float) -> str:
        """A number of the score as text."""
        return f"{value:.2f}" if self.score is None else self.score.said(value)

    @property
    def last(self) -> int:
        everything = (self.loss, self.adherence, self.rate, *self.norms.values())
        return max(series[-1][0] for series in everything if series)


def training_plot(
    history: History, *, title: str = "Training", convergence: Convergence | None = None
) -> Picture:
    """The curves of a run over its steps, (H, W, 3) uint8, on dark ground.

    What the history doesn't hold is left out. convergence: None looks for it in the history. The
    band around adherence is that of the middle 80 % of the pictures; the loss is smoothed, with its
    numbers behind. Raises CldmError where there is nothing to plot,
    or no matplotlib to plot with.
    """
    curves = Curves.of(history)
    convergence = convergence or find(history)
    panels = [
        (weight, draw)
        for weight, draw, shown in (
            (3.0, _adherence, curves.adherence),
            (2.1, _loss, curves.loss),
            (2.1, _norms, curves.norms),
            (0.9, _rate, curves.rate),
        )
        if shown
    ]
    said = verdict(history) if convergence is None else str(convergence)
    return _drawn(curves, convergence, printable(title), wrap(said, LETTERS), panels)


Draw = Callable[[Any, Curves, "Convergence | None"], None]


def _drawn(
    curves: Curves,
    convergence: Convergence | None,
    title: str,
    said: Sequence[str],
    panels: Sequence[tuple[float, Draw]],
) -> Picture:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CldmError(
            "The plot needs matplotlib, which is not installed: pip install matplotlib."
        ) from error

    weights = [weight for weight, _ in panels]
    head, foot, height = 0.74 + 0.21 * len(said), 0.62, sum(weights) + 0.28 * (len(weights) - 1)
    whole = head + height + foot
    figure = Figure(figsize=(WIDTH, whole), dpi=DPI, facecolor=BACKGROUND)
    canvas: Any = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(weights),
        1,
        height_ratios=weights,
        left=0.092,
        right=0.868,
        top=1 - head / whole,
        bottom=foot / whole,
        hspace=0.28 * len(weights) / sum(weights),
    )
    for row, (_, draw) in enumerate(panels):
        axis = figure.add_subplot(grid[row, 0])
        _styled(axis, curves.last, last=row == len(panels) - 1)
        if convergence is not None:
            _mark(axis, convergence)
        draw(axis, curves, convergence)
    top = 1 - 0.36 / whole
    figure.text(0.02, top, title, color=BRIGHT, fontsize=17, weight="bold", parse_math=False)
    for line, text in enumerate(said):
        figure.text(0.02, top - (0.32 + 0.21 * line) / whole, text, color=TEXT, fontsize=10.5)
    figure.align_ylabels()
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3], np.uint8)


def _styled(axis: Any, last_step: int, *, last: bool) -> None:
    axis.set_facecolor(PANEL)
    axis.set_xlim(0, max(1, last_step) * 1.012)
    axis.grid(True, color=LINE, linewidth=0.7, alpha=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(colors=DIM, labelsize=9, length=0, pad=6, labelbottom=last)
    axis.margins(y=0.08)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if last:
        axis.set_xlabel("optimizer step", color=TEXT, fontsize=10, labelpad=7)


def _named(axis: Any, title: str) -> None:
    axis.set_ylabel(title, color=TEXT, fontsize=10.5, labelpad=9)


def _mark(axis: Any, convergence: Convergence) -> None:
    """The window of the jump, through every panel."""
    axis.axvspan(*convergence.between, color=YELLOW, alpha=0.13, linewidth=0)
    axis.axvline(convergence.step, color=YELLOW, linewidth=1.3, alpha=0.9, dashes=(4, 3))


def _adherence(axis: Any, curves: Curves, convergence: Convergence | None) -> None:
    steps, values = _columns(curves.adherence)
    if curves.spread:
        places, low, high = zip(*curves.spread, strict=True)
        axis.fill_between(places, low, high, color=GREEN, alpha=0.14, linewidth=0)
    size = _dots(len(steps))
    axis.plot(steps, values, "o-", color=GREEN, linewidth=2.2, markersize=size, clip_on=False)
    best = int(np.nanargmax(values if curves.higher_is_better else -values))
    axis.plot(steps[best], values[best], "o", ms=10, mfc="none", mec=BRIGHT, mew=1.5, clip_on=False)
    text = f"best {curves.said(values[best])}\nstep {int(steps[best])}"
    _beside(axis, text, values[best])
    _named(axis, curves.title + ("" if curves.higher_is_better else " (less is better)"))
    if convergence is not None:
        _name_jump(axis, curves, convergence)


def _name_jump(axis: Any, curves: Curves, convergence: Convergence) -> None:
    """What the yellow line is, on the side of it that is free."""
    late = convergence.step > 0.6 * curves.last
    text = f"sudden convergence\nstep {convergence.step}"
    if convergence.lost is not None:
        text += f"\nlost by step {convergence.lost}"
    rises = convergence.after > convergence.before
    # A rising curve leaves the upper left free and the lower right, a falling one the others.
    up = late == rises
    axis.annotate(
        text,
        xy=(convergence.step, 0.93 if up else 0.07),
        xycoords=("data", "axes fraction"),
        xytext=(-12 if late else 12, 0),
        textcoords="offset points",
        color=YELLOW,
        fontsize=10.5,
        weight="bold",
        ha="right" if late else "left",
        va="top" if up else "bottom",
        linespacing=1.35,
        bbox={"facecolor": PANEL, "edgecolor": "none", "alpha": 0.8, "pad": 3},
    )


def _loss(axis: Any, curves: Curves, convergence: Convergence | None) -> None:
    steps, values = _columns(curves.loss)
    finite = np.isfinite(values)
    if finite.any():
        kept = _clipped(values)
        smooth = smoothed(steps, kept)
        dots = "." if len(steps) < 3 else ""
        axis.plot(steps, kept, color=BLUE, linewidth=0.8, alpha=0.4)
        axis.plot(steps, smooth, color=BLUE, linewidth=2.2, marker=dots)
        above = values > kept
        axis.plot(steps[above], kept[above], "^", color=BLUE, markersize=6, clip_on=False)
        last = float(smooth[finite][-1])
        _beside(axis, f"now {number(last)}", last)
    for step in steps[~finite]:
        axis.axvline(step, color=ORANGE, linewidth=1.2)
        axis.annotate("NaN ", (step, 0.04), xycoords=("data", "axes fraction"), **NAN_TEXT)
    _named(axis, "loss")


def _norms(axis: Any, curves: Curves, convergence: Convergence | None) -> None:
    labels = list(curves.norms)
    depth = [label for label in labels if label not in ("hint", "middle")]
    shades = dict(zip(depth, _shades(len(depth)), strict=True))
    for label, series in curves.norms.items():
        steps, values = _columns(series)
        colour = {"hint": BRIGHT, "middle": ORANGE}.get(label, shades.get(label))
        dashes = (5, 2) if label == "hint" else (None, None)
        axis.plot(steps, values, color=colour, linewidth=1.5, dashes=dashes, label=label)
    axis.set_ylim(bottom=0)
    _named(axis, "norms of zero\nconvolutions")
    handles, _ = axis.get_legend_handles_labels()
    most = MOST_NAMED if max(map(len, labels)) <= LONG else MOST_NAMED // 2
    shown = [handles[place] for place in evenly(len(handles), most)]
    axis.legend(
        handles=shown,
        loc="upper left",
        bbox_to_anchor=(1.008, 1.03),
        ncols=2 if len(shown) > 8 else 1,
        frameon=False,
        labelcolor=TEXT,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.0,
        labelspacing=0.42,
        borderpad=0,
    )


def _rate(axis: Any, curves: Curves, convergence: Convergence | None) -> None:
    steps, values = _columns(curves.rate)
    axis.fill_between(steps, values, color=PURPLE, alpha=0.2, linewidth=0)
    axis.plot(steps, values, color=PURPLE, linewidth=1.8)
    axis.set_ylim(0, max(float(np.nanmax(values)), 1e-12) * 1.2)
    axis.set_yticks([0, float(np.nanmax(values))])
    axis.yaxis.set_major_formatter(lambda value, _: number(value))
    _beside(axis, f"now {number(float(values[-1]))}", float(values[-1]))
    _named(axis, "learning\nrate")


def _beside(axis: Any, text: str, value: float) -> None:
    """A text to the right of a panel, at the height of a value."""
    if not math.isfinite(value):
        return
    low, high = axis.get_ylim()
    share = min(0.94, max(0.06, (value - low) / (high - low)))
    axis.text(1.012, share, text, transform=axis.transAxes, color=TEXT, fontsize=9.5, va="center")


def smoothed(steps: Array, values: Array, share: float = SMOOTHED) -> Array:
    """Means weighted by a Gaussian over the steps; numbers that aren't finite are left out.

    share: the Gaussian's deviation, as a share of the run, but at least the gap of two numbers.
    """
    finite = np.isfinite(values)
    if not finite.any() or len(values) < 3:
        return values
    gap = float(np.median(np.diff(steps)))
    width = max(share * float(steps[-1] - steps[0]), gap)
    # Only so many places are computed as can be seen.
    places = steps[evenly(len(steps), 1000)]
    weights = np.exp(-0.5 * ((places[:, None] - steps[None, finite]) / width) ** 2)
    sums = weights.sum(axis=1)
    means = np.where(sums > 0, weights @ values[finite] / np.maximum(sums, 1e-300), np.nan)
    return np.asarray(np.interp(steps, places, means), np.float64)


def _clipped(values: Array) -> Array:
    """Without the few huge numbers that would flatten the rest."""
    low, high = np.nanpercentile(np.where(np.isfinite(values), values, np.nan), (1, 99))
    return np.asarray(np.minimum(values, max(high + (high - low), low)), np.float64)


def _columns(series: Series) -> tuple[Array, Array]:
    steps, values = zip(*series, strict=True)
    return np.array(steps, np.float64), np.array(values, np.float64)


def _dots(count: int) -> float:
    return 4.5 if count <= 60 else 2.0 if count <= 200 else 0.0


def _shades(count: int) -> list[Any]:
    """Colours from shallow to deep that are seen on dark ground."""
    from matplotlib import colormaps

    return [colormaps["viridis"](place) for place in np.linspace(0.25, 1.0, max(1, count))][:count]
