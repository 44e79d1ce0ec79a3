"""Strength over a sampling: keyframes, and the ways from one to the next."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from .errors import CldmError

EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "hold": lambda share: 0.0,
    "ease_in": lambda share: share**2,
    "ease_out": lambda share: 1 - (1 - share) ** 2,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}
"""How far the strength has gone to the next keyframe, by the share of the way; both in [0, 1]."""

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_KEYFRAME = re.compile(rf"({_NUMBER})\s*:\s*({_NUMBER})(?:\s+([a-z_]+))?")


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
        if not math.isfinite(self.strength):
            raise CldmError(f"A keyframe's strength is {self.strength}, expected a finite number.")
        if self.easing not in EASINGS:
            raise CldmError(
                f"A keyframe goes on by {self.easing!r}, expected one of {', '.join(EASINGS)}."
            )


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

        Each part is a position, a strength, and if you like the easing of the way onwards.
        """
        keyframes = []
        for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
            match = _KEYFRAME.fullmatch(part)
            if match is None:
                raise CldmError(
                    f"{part!r} is no keyframe: write position: strength, such as 0.5: 0.8, and "
                    f"behind it {', '.join(EASINGS)} if you like."
                )
            position, strength, easing = match.groups()
            keyframes.append(Keyframe(float(position), float(strength), easing or "linear"))
        return cls(tuple(keyframes))

    def at(self, position: float) -> float:
        """The strength at a position in [0, 1]."""
        before = [keyframe for keyframe in self.keyframes if keyframe.position <= position]
        if not before:
            return self.keyframes[0].strength
        last = before[-1]
        if len(before) == len(self.keyframes):
            return last.strength
        following = self.keyframes[len(before)]
        share = (position - last.position) / (following.position - last.position)
        return last.strength + EASINGS[last.easing](share) * (following.strength - last.strength)
