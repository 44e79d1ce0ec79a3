"""Strength over a sampling: keyframes, and the ways from one to the next."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .errors import CldmError

EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "hold": lambda share: 0.0,
    "ease_in": lambda share: share**2,
    "ease_out": lambda share: 1 - (1 - share) ** 2,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}
"""How far the strength has gone to the next keyframe, by the share of the way; both in [0, 1]."""

NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
"""A number in a text, as a regular expression."""
_KEYFRAME = re.compile(rf"({NUMBER})\s*:\s*({NUMBER})(?:\s+([a-z_]+))?")


def parts_of(text: str) -> list[str]:
    """The parts of a text between commas, semicolons and ends of lines; empty ones are left out."""
    return [part.strip() for part in re.split(r"[,;\n]", text) if part.strip()]


def plain_list(parts: Sequence[str]) -> list[float] | None:
    """The numbers, where every part is one and there is any."""
    if not parts or not all(re.fullmatch(NUMBER, part) for part in parts):
        return None
    return [float(part) for part in parts]


def odd_part(parts: Sequence[str], entry: re.Pattern[str]) -> str:
    """The part to name where not all are entries; among plain numbers, one that is none."""
    odd = [part for part in parts if not entry.fullmatch(part)]
    return next((part for part in odd if not re.fullmatch(NUMBER, part)), odd[0])


class Stop(NamedTuple):
    """A strength that holds from `start` to `end`, and the way from there to the next stop."""

    start: float
    end: float
    strength: float
    easing: str

    def check(self) -> None:
        """Raises CldmError for a strength that is no finite number, or an unknown easing."""
        if not math.isfinite(self.strength):
            raise CldmError(f"A keyframe's strength is {self.strength}, expected a finite number.")
        if self.easing not in EASINGS:
            raise CldmError(
                f"A keyframe goes on by {self.easing!r}, expected one of {', '.join(EASINGS)}."
            )


def strength_at(stops: Sequence[Stop], position: float) -> float:
    """The strength at a position; before the first stop and behind the last theirs holds."""
    passed = bisect_right(stops, position, key=lambda stop: stop.start)
    if passed == 0:
        return stops[0].strength
    last = stops[passed - 1]
    if position <= last.end or passed == len(stops):
        return last.strength
    following = stops[passed]
    share = (position - last.end) / (following.start - last.end)
    return last.strength + EASINGS[last.easing](share) * (following.strength - last.strength)


@dataclass(frozen=True)
class Keyframe:
    """A strength at a position of the sampling, 0 its start and 1 its end, and the way onwards.

    Raises CldmError for a position outside [0, 1], a strength that is no finite number, or an
    unknown easing.
    """

    position: float
    strength: float
    easing: str = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.position <= 1:
            raise CldmError(
                f"A keyframe is at {self.position:g}, expected a share of the sampling from 0 to 1."
            )
        self.stop.check()

    @property
    def stop(self) -> Stop:
        """The keyframe as `strength_at` takes it."""
        return Stop(self.position, self.position, self.strength, self.easing)


@dataclass(frozen=True)
class Schedule:
    """A strength for each position; before the first keyframe and behind the last theirs holds.

    Raises CldmError where there is no keyframe, or where they aren't in order.
    """

    keyframes: tuple[Keyframe, ...]

    def __post_init__(self) -> None:
        positions = [keyframe.position for keyframe in self.keyframes]
        if not positions:
            raise CldmError("A schedule needs at least one keyframe, such as 0: 1.")
        if any(a >= b for a, b in pairwise(positions)):
            raise CldmError(
                f"The keyframes are at {', '.join(f'{p:g}' for p in positions)}: put them in "
                f"order, each at a position of its own."
            )

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """From text such as "0: 1, 0.5: 0.8 cosine, 1: 0"; raises CldmError with what is wrong.

        Each part is a position, a strength, and if you like the easing of the way onwards. Numbers
        alone, such as "1, 0.8, 0.5", are what `of` takes.
        """
        parts = parts_of(text)
        values = plain_list(parts)
        if values is not None:
            return cls.of(values)
        keyframes = []
        for part in parts:
            match = _KEYFRAME.fullmatch(part)
            if match is None:
                raise CldmError(
                    f"{odd_part(parts, _KEYFRAME)!r} is no keyframe: write position: strength, "
                    f"such as 0.5: 0.8, and behind it {', '.join(EASINGS)} if you like; or nothing "
                    f"but numbers, which are spread evenly."
                )
            position, strength, easing = match.groups()
            keyframes.append(Keyframe(float(position), float(strength), easing or "linear"))
        return cls(tuple(keyframes))

    @classmethod
    def of(cls, values: Sequence[float]) -> Schedule:
        """Strengths spread evenly over the sampling, in straight lines; one holds throughout."""
        last = max(len(values) - 1, 1)
        return cls(tuple(Keyframe(index / last, value) for index, value in enumerate(values)))

    def at(self, position: float) -> float:
        """The strength at a position in [0, 1]."""
        return strength_at([keyframe.stop for keyframe in self.keyframes], position)
