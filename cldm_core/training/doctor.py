"""What is wrong with a data set, said before a step of training is spent on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from .doctor_looks import Look, look_at
from .draws import permutation
from .made_hints import Maker
from .pairs import Size
from .sources import Source

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
SHOWN = 10
"""So many pairs are named for each finding."""
READERS = 8
CHUNK = 256
MATCHED = 256
"""So many pairs are compared with one another: does each hint fit its own target best?"""
ENOUGH = 16
"""Fewer pairs than that say nothing about it."""
CERTAIN = 3.0
"""How many standard errors better a hint must fit its own target than the others."""

KINDS: dict[str, tuple[Level, str]] = {
    "record": ("error", "{pairs} can't be read from the data set's files"),
    "missing": ("error", "{pairs} without a file that should be there"),
    "damaged": ("error", "{pairs} with a picture that can't be read"),
    "no hint": ("error", "{pairs} without a hint: give hints, or a function that makes them"),
    "not made": ("error", "{pairs} for which no hint could be made"),
    "aspect": ("error", "{pairs} whose hint and target have different aspects: crop them alike"),
    "stretched": ("warning", "{pairs} whose hint is stretched, to lie on its target"),
    "hint is target": ("warning", "{pairs} whose hint is the target itself"),
    "flat": ("warning", "{pairs} whose hint is of one colour: it says nothing"),
    "unscaled": (
        "warning",
        "{pairs} whose hint holds 0 and 1 of 255, nearly black: multiply masks with 255",
    ),
    "dim": ("warning", "{pairs} whose hint is dark all over: is its range 0 to 255?"),
    "half range": (
        "warning",
        "{pairs} whose hint is grey where black is meant: it was brought to [-1, 1] before it was "
        "stored; hints are trained in [0, 1]",
    ),
    "inverted": (
        "warning",
        "{pairs} whose hint has black lines on white: nets for lines want white on black",
    ),
    "small": ("warning", "{pairs} smaller than they are trained at: they will be enlarged"),
    "cut": ("warning", "{pairs} of which two fifths or more are cut off: use aspect buckets"),
    "no caption": ("warning", "{pairs} without a caption"),
    "twice": ("warning", "{pairs} that are there before, target and hint"),
    "same hint": ("warning", "{pairs} with a hint that another target has too"),
    "mismatched": (
        "warning",
        "In {pairs} hints fit their own targets no better than those of others: are they in "
        "another order?",
    ),
    "stray": ("warning", "{pairs} have a hint or a caption, but no target"),
    "same target": ("note", "{pairs} with a target that is there before, with another hint"),
    "grey": ("note", "{pairs} with a target without colours"),
    "transparent": ("note", "{pairs} with transparency: it is laid on white"),
}
"""Every finding: how bad it is, and what it says."""


@dataclass(frozen=True)
class Finding:
    """Something about the data, in a sentence; `names` are the first of the `count` pairs."""

    level: Level
    kind: str
    sentence: str
    names: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Report:
    """What was found in `checked` of all pairs. smallest, largest: targets by their areas."""

    pairs: int
    checked: int
    findings: tuple[Finding, ...]
    smallest: Size | None = None
    largest: Size | None = None

    @property
    def ok(self) -> bool:
        """Whether training can begin: no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def summary(self) -> str:
        """Some lines for the user."""
        looked = "all of them" if self.checked == self.pairs else f"{self.checked} of them"
        lines = [f"{_pairs(self.pairs)}, {looked} looked at."]
        if self.smallest and self.largest:
            lines[0] += f" Targets from {_shown(self.smallest)} to {_shown(self.largest)}."
        for finding in self.findings:
            names = ", ".join(finding.names)
            more = ", ..." if finding.count > len(finding.names) else ""
            lines.append(f"{finding.level}: {finding.sentence} ({names}{more})")
        if not self.findings:
            lines.append("Nothing is wrong with them.")
        return "\n".join(lines)


def check(
    source: Source,
    *,
    resolution: int | Size,
    buckets: Sequence[Size] | None = None,
    hints: Maker | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Looks at every pair, or at `limit` of them taken at random.

    resolution, buckets and hints are what `Batches` gets. Nothing is trained, encoded or written;
    what stays in memory is 16 bytes a pair. progress(pairs looked at, all) is called now and then.
    """
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    sizes = tuple(buckets) if buckets else (size,)
    chosen = looked_at(source, limit)
    found = _Found()
    digests = np.zeros((len(chosen), 2), np.uint64)
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(chosen), CHUNK):
            part = chosen[start : start + CHUNK]
            look = partial(
                look_at, source, sizes=sizes, maker=hints, outlines=len(found.outlines) < MATCHED
            )
            looks = pool.map(look, part)
            for row, seen in enumerate(looks, start):
                digests[row] = seen.digests
                found.note(seen)
            if progress:
                progress(start + len(part), len(chosen))
    _find_twins(source, chosen, digests, found)
    _find_mismatch(found)
    for sentence in source.strays():
        found.add("stray", sentence)
    return found.report(len(source), len(chosen))


def looked_at(source: Source, limit: int | None) -> list[int]:
    """The numbers of the pairs that `check` looks at, from the first to the last."""
    chosen: list[int] = np.sort(permutation(len(source), "doctor")[:limit]).tolist()
    return chosen


@dataclass
class _Found:
    """What was seen so far."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    details: dict[str, str] = field(default_factory=dict)
    outlines: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)

    def add(self, kind: str, name: str, detail: str = "") -> None:
        self.counts[kind] += 1
        if len(self.names[kind]) < SHOWN:
            self.names[kind].append(_one_line(name))
        if detail:
            self.details.setdefault(kind, _one_line(detail))

    def note(self, look: Look) -> None:
        for kind, detail in look.findings:
            self.add(kind, look.name, detail)
        if look.size is not None:
            extremes = [*self.sizes, look.size]
            self.sizes = [min(extremes, key=_area), max(extremes, key=_area)]
        if look.outlines is not None and len(self.outlines) < MATCHED:
            self.outlines.append(look.outlines)

    def report(self, pairs: int, checked: int) -> Report:
        findings = [self._finding(kind) for kind in KINDS if self.counts.get(kind)]
        findings.sort(key=lambda finding: LEVELS.index(finding.level))
        smallest, largest = self.sizes or (None, None)
        return Report(pairs, checked, tuple(findings), smallest, largest)

    def _finding(self, kind: str) -> Finding:
        level, text = KINDS[kind]
        count = self.counts[kind]
        sentence = f"{text.format(pairs=_pairs(count))}."
        if kind in self.details:
            sentence += f" The first: {self.details[kind]}"
        return Finding(level, kind, sentence, tuple(self.names[kind]), count)


def _find_twins(source: Source, chosen: Sequence[int], digests: np.ndarray, found: _Found) -> None:
    """Notes pairs that share pictures with one before them."""
    targets, hints = digests.T
    both = targets * np.uint64(3) + hints
    twice = _later(both, (targets != 0) & (hints != 0))
    same_target = _later(targets, targets != 0) & ~twice
    same_hint = _later(hints, hints != 0) & ~twice & ~_later(targets, targets != 0)
    for kind, rows in (
        ("twice", twice),
        ("same target", same_target),
        ("same hint", same_hint),
    ):
        for row in np.flatnonzero(rows).tolist():
            found.add(kind, source[chosen[row]].name)


def _later(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where a known value stands that stood before."""
    _, first = np.unique(values, return_index=True)
    result = known.copy()
    result[first] = False
    return result


def _find_mismatch(found: _Found) -> None:
    """Notes it where hints have the outlines of their own targets no more than those of others."""
    if len(found.outlines) < ENOUGH:
        return
    targets, hints = (np.stack(side) for side in zip(*found.outlines, strict=True))
    fits = hints @ targets.T
    own = np.diagonal(fits)
    others = (fits.sum(axis=1) - own) / (len(fits) - 1)
    better = own - others
    error = better.std(ddof=1) / np.sqrt(len(better))
    if better.mean() < CERTAIN * error:
        found.counts["mismatched"] = len(fits)


def _one_line(text: str) -> str:
    """As messages of CldmError are, whatever a file's name holds."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


def _shown(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _area(size: Size) -> int:
    return size[0] * size[1]
