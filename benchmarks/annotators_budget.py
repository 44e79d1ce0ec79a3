"""How long each annotator of `annotators.py` may take at each size, so that all end in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import TypeAlias

Place: TypeAlias = tuple[str, int]
"""A case's name and the size of its pictures."""

NET, OTHER = 6.0, 1.0
"""How much of the time a network gets at each size, beside what has none."""
NET_ROUNDS, OTHER_ROUNDS, MOST_ROUNDS = 3, 5, 11
"""Rounds with one picture that there are at least, and at most."""
ENOUGH = 2
"""Rounds with several pictures that are wanted; else fewer pictures are tried."""


@dataclass(frozen=True)
class Budget:
    """Time up to `ends` for places of these weights, in their order.

    A place gets its part of what is left: what must take longer leaves less for those behind it,
    what takes less leaves more.
    """

    ends: float
    weights: Mapping[Place, float]

    def share(self, place: Place, now: float) -> float:
        """Seconds for this place; 0 where the time is used up."""
        ahead = dropwhile(lambda one: one != place, self.weights)
        rest = sum(self.weights[one] for one in ahead)
        return max(0.0, self.ends - now) * self.weights[place] / rest


@dataclass(frozen=True)
class Plan:
    """Rounds at a place; in the first `with_several` of them `several` pictures at once too."""

    rounds: int
    several: int
    with_several: int


def plan(seconds: float, single: float, looped: float, several: int, least: int) -> Plan:
    """What fits into `seconds`: one picture is run `least` times whatever that takes.

    single: seconds of a round's runs of all sides with one picture; looped: of those among them
    that are run with `several` too. Where these take too long, halves and quarters are tried.
    """
    found = alone = Plan(_rounds(seconds, single, least), 1, 0)
    for number in (several, several // 2, several // 4):
        if number < 2:
            break
        whole = single + number * looped
        rounds = _rounds(seconds, whole, least)
        spare = seconds - least * single
        fits = rounds if rounds * whole <= seconds else int(spare / (number * looped))
        found = Plan(rounds, number, min(max(fits, 0), rounds))
        if found.with_several >= ENOUGH:
            break
    return found if found.with_several else replace(alone, several=found.several)


def _rounds(seconds: float, whole: float, least: int) -> int:
    return min(max(int(seconds / whole), least), MOST_ROUNDS)
