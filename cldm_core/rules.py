"""What values of a configuration may be; the messages name the value and what it should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

from .errors import CldmError


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise CldmError(f"The net's configuration doesn't fit together: {sentence}.")


def require_length(values: Sequence[Any], count: int, name: str, of: str) -> None:
    require(len(values) == count, f"{name} has {len(values)} entries for {count} {of}")


def is_int(value: object, least: float = -inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_list(value: object) -> bool:
    """Whether it is a sequence of values; the YAML loaders' own kinds count, text doesn't."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


class Rule(NamedTuple):
    """What a value must be, in words and as a check."""

    expected: str
    fits: Callable[[Any], bool]


def expect(record: object, name: str, rule: Rule) -> None:
    value = getattr(record, name)
    require(rule.fits(value), f"{name} is {value!r}, expected {rule.expected}")


def tuple_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, tuple) and all(map(fits, values))


FLAG = Rule("true or false", lambda v: isinstance(v, bool))
POSITIVE = Rule("a positive whole number", lambda v: is_int(v, 1))
OPTIONAL = Rule("a positive whole number or none", lambda v: v is None or is_int(v, 1))
HEADS = Rule("a positive whole number, or -1 for none", lambda v: is_int(v, -1) and v != 0)
COUNTS = Rule("a list of positive whole numbers", lambda v: bool(v) and tuple_of(POSITIVE.fits)(v))
DEPTHS = Rule("a list of whole numbers from 0", tuple_of(lambda v: is_int(v, 0)))
