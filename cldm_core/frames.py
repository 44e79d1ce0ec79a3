"""Strength over the pictures of a batch, such as the frames of a video."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .errors import CldmError
from .schedule import EASINGS, NUMBER, Stop, odd_part, parts_of, plain_list, strength_at

_PICTURE = "-?[0-9]{1,9}"
_KEYFRAME = re.compile(
    rf"({_PICTURE})(?:\s*-\s*({_PICTURE}))?\s*:\s*({NUMBER})(?:\s+([a-z_]+))?",
)


@dataclass(frozen=True)
class FrameKeyframe:
    """A strength that holds from picture `first` to `last`, and the way from there to the next.

    Pictures are counted from 0, and negative ones from the end: -1 is the last. Raises CldmError
    for a strength that is no finite number, an unknown easing, or a range that runs backwards.
    """

    first: int
    last: int
    strength: float
    easing: str = "linear"

    def __post_init__(self) -> None:
        self.stop(0).check()
        if _goes_back(self.first, self.last) and self.first != self.last:
            raise CldmError(
                f"A keyframe holds from picture {self.first} to {self.last}: put the first of them "
                f"first."
            )

    def stop(self, count: int) -> Stop:
        """The keyframe in a batch of `count` pictures, as `strength_at` takes it."""
        first, last = (
            picture + count if picture < 0 else picture for picture in (self.first, self.last)
        )
        return Stop(first, last, self.strength, self.easing)


@dataclass(frozen=True)
class FrameCurve:
    """A strength for each picture; before the first keyframe and behind the last theirs holds.

    Raises CldmError where there is no keyframe, or where they aren't in order.
    """

    keyframes: tuple[FrameKeyframe, ...]

    def __post_init__(self) -> None:
        if not self.keyframes:
            raise CldmError("A curve over the pictures needs at least one keyframe, such as 0: 1.")
        for a, b in pairwise(self.keyframes):
            if _goes_back(a.last, b.first):
                raise CldmError(
                    f"A keyframe at picture {b.first} stands behind one at {a.last}: put them in "
                    f"order, each at pictures of its own."
                )

    @classmethod
    def parse(cls, text: str) -> FrameCurve:
        """From text such as "0-7: 1, 16: 0.5 cosine, -1: 0"; raises CldmError with what is wrong.

        Each part is a picture or a range of them, a strength, and if you like the easing of the way
        onwards. Numbers alone, such as "1, 0.9, 0.8", are what `of` takes.
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
                    f"{odd_part(parts, _KEYFRAME)!r} is no keyframe: write picture: strength, "
                    f"such as 8: 0.5, 0-7: 1 or -1: 0, and behind it {', '.join(EASINGS)} if you "
                    f"like; or nothing but numbers, one for each picture."
                )
            first, last, strength, easing = match.groups()
            keyframes.append(
                FrameKeyframe(int(first), int(last or first), float(strength), easing or "linear")
            )
        return cls(tuple(keyframes))

    @classmethod
    def of(cls, values: Sequence[float]) -> FrameCurve:
        """Strengths picture by picture; behind the end the last holds."""
        return cls(tuple(FrameKeyframe(index, index, value) for index, value in enumerate(values)))

    def factors(self, count: int) -> tuple[float, ...]:
        """The strengths of a batch of `count` pictures.

        Keyframes behind its end are what the strength is on its way to. Raises CldmError where the
        batch is so short that keyframes counted from its end come before those from its start.
        """
        if count < 1:
            raise CldmError(f"A batch of {count} pictures was asked for, expected at least one.")
        stops = [keyframe.stop(count) for keyframe in self.keyframes]
        ordered = all(stop.start <= stop.end for stop in stops)
        if not ordered or any(a.end >= b.start for a, b in pairwise(stops)):
            places = ", ".join(
                f"{stop.start}" if stop.start == stop.end else f"{stop.start} to {stop.end}"
                for stop in stops
            )
            raise CldmError(
                f"In a batch of {count} the keyframes are at the pictures {places}: make it "
                f"longer, or put them in order, each at pictures of its own."
            )
        return tuple(strength_at(stops, index) for index in range(count))


def _goes_back(picture: int, following: int) -> bool:
    """Whether two pictures in a row are out of order in a batch of any length."""
    return (picture < 0) == (following < 0) and picture >= following
