"""Finds the sudden convergence: the step at which a net starts to follow its hints.

Zhang et al. 2023 (section 3.3): a ControlNet doesn't learn its hint gradually, it starts to follow
it suddenly, usually within 10k steps. The loss hardly shows it; adherence on held-out hints does.

    >>> scores = [0.27, 0.27, 0.28, 0.27, 0.61, 0.64, 0.66]
    >>> print(find(list(enumerate(scores))))
    Sudden convergence at about step 4 (between 3 and 4): adherence rose from 0.27 to 0.64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import CldmError
from .history import History
from .scores import SCORES, Score

Array = np.ndarray[Any, np.dtype[np.float64]]
Curve = Sequence[tuple[int, float]]

HELD = 3
"""Evaluations for which a new level must hold."""
LEAST_RISE = 0.05
"""The smallest rise that counts, in spans of the score."""
LEAST_NOISE = 0.01
"""Noise of one evaluation that is always reckoned with, in spans of the score."""
CLEAR = 4.0
"""How many times the noise a rise must be."""
RISE_SHARE, WIDTH_SHARE = 0.4, 0.5
"""Sudden is a rise of which this share falls into a window this share as long as what was before.

In the same window a straight line rises by at most a third of its whole rise."""
EVIDENCE, EVIDENCE_OF_A_PART = 6.0, 12.0
"""By how much BIC must prefer a jump to a smooth curve: "strong" (Kass and Raftery 1995).

More in a part of a curve: there are many parts, and in one of them chance may make a jump."""

MOST_PARTS, MOST_OF_A_WIDTH = 64, 4
"""Limits of the search: parts of a curve that are looked at, and windows of one width."""


@dataclass(frozen=True)
class Convergence:
    """A sudden convergence.

    step: where adherence crossed the middle between the two levels; between: the evaluations that
    the jump lies between; before, after: the levels, in the score's own numbers; certain: the step
    of the evaluation that left no doubt; lost: the step from which on adherence was back below
    the middle, None where it holds.
    """

    step: int
    between: tuple[int, int]
    before: float
    after: float
    certain: int
    lost: int | None = None
    score: Score | None = None

    def __str__(self) -> str:
        """One or two sentences for the user."""
        name, said = _named(self.score)
        before, after = said(self.before), said(self.after)
        went = "rose" if self.after > self.before else "fell"
        text = (
            f"Sudden convergence at about step {self.step} (between {self.between[0]} and "
            f"{self.between[1]}): {name} {went} from {before} to {after}."
        )
        if self.lost is None:
            return text
        return f"{text} It was lost again by step {self.lost}: take a checkpoint from before."


def find(curve: History | Curve, score: Score | None = None) -> Convergence | None:
    """The sudden convergence in the evaluations of a run, None while there is none.

    curve: (step, score) in any order; of one step the last counts, and evaluations without a number
    (NaN) are left out. A History brings its score with it. score: whose numbers these are; without,
    a share in [0, 1] of which more is better.

    A jump is a flat level, a rise within a short window, and a higher level that may go on rising
    more slowly. It is found where all of this holds: the new level has held for 3 evaluations; the
    rise is at least 0.05 spans of the score and 4 times the noise (robust, of what is left beside
    the fit); 0.4 of the whole rise lies between two neighbouring evaluations, or in a window of at
    most half of the steps before it; and the fit is better than a constant, a line and a
    parabola by 6 in BIC. So neither slow rises nor single spikes are taken for a jump. More
    evaluations on the new level don't unsay it; falling back does, and is said.
    """
    steps, values, score = _points(curve, score)
    span = _signed_span(score)
    values = values / span
    found = _latest(steps, values)
    if found is None:
        return None
    lost = _lost(found, steps, values)
    before, after = found.before * span, found.after * span
    certain = _certain(found, steps, values)
    return replace(found, before=before, after=after, certain=certain, lost=lost, score=score)


def verdict(curve: History | Curve, score: Score | None = None) -> str:
    """What there is to say of a run's convergence, in one or two sentences; arguments as `find`."""
    found = find(curve, score)
    if found is not None:
        return str(found)
    steps, values, score = _points(curve, score)
    if not len(steps):
        return "Adherence wasn't measured."
    name, said = _named(score)
    start, end = float(np.median(values[:HELD])), float(np.median(values[-HELD:]))
    text = f"No sudden convergence in {int(steps[-1])} steps so far"
    if len(steps) <= HELD:
        return f"{text}, and too few evaluations to tell: {name} is {said(float(values[-1]))}."
    span = _signed_span(score)
    noise = max(LEAST_NOISE, _jitter(values / span, 0, 0))
    if (end - start) / span >= max(LEAST_RISE, CLEAR * noise):
        return f"{text}, but {name} gets better: from {said(start)} to {said(end)}."
    return f"{text}: {name} stays at about {said(end)}."


def _points(curve: History | Curve, score: Score | None) -> tuple[Array, Array, Score | None]:
    """Steps and numbers in order, and the score that they are of."""
    if isinstance(curve, History):
        return *_sorted(curve.series("adherence")), score or _score_of(curve)
    return *_sorted(curve), score


def _signed_span(score: Score | None) -> float:
    """By what to divide the score's numbers for the better ones to be larger, spread about 1."""
    if score is None:
        return 1.0
    return score.span if score.higher_is_better else -score.span


def _named(score: Score | None) -> tuple[str, Callable[[float], str]]:
    """What the numbers are called, and how one is said."""
    return ("adherence", "{:.2f}".format) if score is None else (score.title, score.said)


def _score_of(history: History) -> Score | None:
    """The score that the history's evaluations name."""
    names = [row["score"] for row in history.read() if isinstance(row.get("score"), str)]
    return SCORES.get(names[-1]) if names else None


def _sorted(curve: Curve) -> tuple[Array, Array]:
    points: dict[int, float] = {}
    for step, value in curve:
        if step < 0:
            raise CldmError(f"An evaluation has step {step}, expected whole numbers from 0 on.")
        if math.isfinite(value):
            points[step] = value
    steps = sorted(points)
    return np.array(steps, np.float64), np.array([points[step] for step in steps], np.float64)


def _latest(steps: Array, values: Array) -> Convergence | None:
    """The jump in the curve as it is, or in the longest part of it from which it fell back."""
    count = len(steps)
    stride = max(1, count // MOST_PARTS)
    for end in range(count, HELD, -stride):
        evidence = EVIDENCE if end == count else EVIDENCE_OF_A_PART
        if (found := _jump(steps[:end], values[:end], evidence)) is not None:
            return found
    return None


def _certain(found: Convergence, steps: Array, values: Array) -> int:
    """The first evaluation at which a jump at the same place is found."""
    first = int(np.searchsorted(steps, found.between[1])) + HELD
    for end in range(first, len(steps)):
        sooner = _jump(steps[:end], values[:end])
        if sooner is not None and sooner.between[0] < found.between[1]:
            return sooner.certain
    return found.certain


def _jump(steps: Array, values: Array, evidence: float = EVIDENCE) -> Convergence | None:
    """The best jump in a curve whose larger values are better, None where it isn't convincing."""
    smooth = _without_spikes(values)
    best: tuple[float, int, int, Array] | None = None
    for start, end in _windows(steps, smooth):
        basis = _basis(steps, start, end)
        left = _left(basis, smooth)
        error = float(left @ left)
        if best is None or error < best[0]:
            best = error, start, end, left
    if best is None:
        return None
    error, start, end, left = best
    noise = max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(left))), _jitter(smooth, start, end))
    before, after = float(np.median(smooth[: start + 1])), float(np.median(smooth[end:]))
    if after - before < max(LEAST_RISE, CLEAR * noise):
        return None
    # A window is two parameters more, and a level that was met by chance isn't evidence.
    own = _bic(error, len(steps), _basis(steps, start, end).shape[1] + 2)
    others = [_polynomial(steps, degree) for degree in range(3)]
    smoothest = min(
        _bic(float((left := _left(one, smooth)) @ left), len(steps), one.shape[1])
        for one in others
        if one.shape[1] < len(steps)
    )
    if smoothest - own < evidence:
        return None
    step = _crossing(steps[start : end + 1], smooth[start : end + 1], (before + after) / 2)
    between = (int(steps[start]), int(steps[end]))
    return Convergence(step, between, before, after, int(steps[-1]))


def _without_spikes(values: Array) -> Array:
    """The running median of three; the ends stay. Curves that only rise stay as they are."""
    if len(values) < 3:
        return values
    triples = np.stack([values[:-2], values[1:-1], values[2:]])
    return np.concatenate([values[:1], np.median(triples, axis=0), values[-1:]])


def _windows(steps: Array, values: Array) -> Iterator[tuple[int, int]]:
    """Windows that are short, hold enough of the whole rise, and that the new level follows.

    Of each width those with the largest rises.
    """
    last = len(steps) - HELD  # the last evaluation at which a window may end
    level = float(np.median(values[-HELD:]))
    whole = level - np.minimum.accumulate(values)
    for width in _widths(last):
        starts = np.arange(last + 1 - width)
        rises = values[starts + width] - values[starts]
        short = steps[starts + width] - steps[starts] <= WIDTH_SHARE * steps[starts]
        enough = (rises > 0) & (rises >= RISE_SHARE * whole[starts])
        fit = starts[enough & (short | (width == 1))]
        for start in fit[np.argsort(-rises[fit], kind="stable")][:MOST_OF_A_WIDTH]:
            yield int(start), int(start) + width


def _widths(most: int) -> list[int]:
    """All small widths, and larger ones a quarter apart."""
    widths = [1]
    while widths[-1] < most:
        widths.append(max(widths[-1] + 1, widths[-1] * 5 // 4))
    return [width for width in widths if width <= most]


def _basis(steps: Array, start: int, end: int) -> Array:
    """A level, a ramp from `start` to `end`, and what may come after: a slower rise that levels."""
    first, last = steps[start], steps[end]
    ramp = np.clip((steps - first) / (last - first), 0, 1)
    columns = [np.ones_like(steps), ramp]
    if len(steps) - end > HELD:
        columns.append(np.where(steps > last, 1 - last / np.maximum(steps, last), 0.0))
    return np.stack(columns, axis=1)


def _polynomial(steps: Array, degree: int) -> Array:
    share = (steps - steps[0]) / (steps[-1] - steps[0])
    return np.stack([share**power for power in range(degree + 1)], axis=1)


def _left(basis: Array, values: Array) -> Array:
    """What least squares leave."""
    weights, *_ = np.linalg.lstsq(basis, values, rcond=None)
    return np.asarray(values - basis @ weights, np.float64)


def _bic(error: float, count: int, parameters: int) -> float:
    """Schwarz's criterion; no fit is taken to be better than the noise that is reckoned with."""
    return count * math.log(error / count + LEAST_NOISE**2) + parameters * math.log(count)


def _jitter(values: Array, start: int, end: int) -> float:
    """The robust noise of an evaluation, from neighbouring ones outside of the window."""
    steps = np.diff(values)
    outside = np.concatenate([steps[:start], steps[end:]])
    if len(outside) < HELD:
        return 0.0
    return 1.4826 * float(np.median(np.abs(outside - np.median(outside)))) / math.sqrt(2)


def _crossing(steps: Array, values: Array, middle: float) -> int:
    """The step at which the curve first reaches the middle, between two evaluations."""
    for index in range(1, len(steps)):
        low, high = values[index - 1], values[index]
        if high >= middle > low:
            share = (middle - low) / (high - low)
            return round(float(steps[index - 1] + share * (steps[index] - steps[index - 1])))
    return round(float(steps[0] if values[0] >= middle else steps[-1]))


def _lost(found: Convergence, steps: Array, values: Array) -> int | None:
    """The first step of those at the end that lie below the middle, where these are enough."""
    below = values < (found.before + found.after) / 2
    tail = len(below) - int(np.argmin(below[::-1])) if not below.all() else 0
    return int(steps[tail]) if len(below) - tail >= HELD else None
