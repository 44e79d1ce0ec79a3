"""Weights of a net's blocks as text that can be pasted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from .errors import CldmError
from .schedule import NUMBER, odd_part, parts_of, plain_list

_ENTRY = re.compile(
    rf"(?:([0-9]{{1,4}})(?:\s*-\s*([0-9]{{1,4}}))?|(middle|rest))\s*:\s*({NUMBER})",
    re.IGNORECASE,
)
_REST = -1


def _early(count: int) -> tuple[float, ...]:
    fine = count // 2
    return (1.0,) * fine + (0.0,) * (count - fine)


def _late(count: int) -> tuple[float, ...]:
    return tuple(1 - weight for weight in _early(count))


def _fade_in(count: int) -> tuple[float, ...]:
    return tuple((index + 1) / count for index in range(count))


PRESETS: Mapping[str, Callable[[int], tuple[float, ...]]] = MappingProxyType(
    {
        "all": lambda count: (1.0,) * count,
        "only middle": lambda count: (0.0,) * (count - 1) + (1.0,),
        "no middle": lambda count: (1.0,) * (count - 1) + (0.0,),
        "only early blocks": _early,
        "only late blocks": _late,
        "fade in": _fade_in,
        "fade out": lambda count: _fade_in(count)[::-1],
    }
)
"""Weights by a name, for any count of residuals.

Early blocks are the first half of z0 .. zn-1, with the fine layers: lines and texture. Late blocks
are the other half and the middle, with the coarse ones: composition. Together they are all. Fading
in goes in equal steps up to 1 at the middle, fading out down from 1 at z0.
"""


def parse_blocks(text: str, count: int) -> tuple[float, ...]:
    """The weights of `count` residuals, the middle last, from a text in one of three forms.

    - A number for each: "0.1, 0.2, 0.3, 1" for a count of 4.
    - Blocks by their numbers from 0, or ranges of them, in any order: "0-3: 0.5, 8: 0, middle: 1".
      `middle` is the last one; `rest` is all that aren't named, else they are 1.
    - The name of one of PRESETS: "only middle".

    Raises CldmError with what is wrong and the forms.
    """
    preset = PRESETS.get(" ".join(text.lower().split()))
    if preset is not None:
        return preset(count)
    parts = parts_of(text)
    values = plain_list(parts)
    if values is not None:
        if len(values) != count:
            raise _wrong(f"{len(values)} weights were given", count)
        return _finite(values, count)
    if not parts:
        raise _wrong("The text is empty", count)
    return _finite(_entries(parts, count), count)


def blocks_text(weights: Sequence[float]) -> str:
    """The text that `parse_blocks` reads as these weights.

    Raises CldmError for NaN and infinity.
    """
    _finite(weights, len(weights))
    return ", ".join(repr(float(weight)).removesuffix(".0") for weight in weights)


def _entries(parts: Sequence[str], count: int) -> tuple[float, ...]:
    named: dict[int, float] = {}
    for part in parts:
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise _wrong(f"{odd_part(parts, _ENTRY)!r} is no weight of a block", count)
        *place, number = match.groups()
        for block in _blocks(part, place, count):
            if block in named:
                raise _wrong(f"{part!r} sets what another part has set", count)
            named[block] = float(number)
    rest = named.get(_REST, 1.0)
    return tuple(named.get(block, rest) for block in range(count))


def _blocks(part: str, place: Sequence[str | None], count: int) -> range:
    """The blocks that a part names: first, last, or a word in `place`."""
    first, last, word = place
    if word is not None:
        block = _REST if word.lower() == "rest" else count - 1
        return range(block, block + 1)
    start, end = int(first or 0), int(last or first or 0)
    if not start <= end < count:
        raise _wrong(f"{part!r} names blocks outside 0 to {count - 1}, or backwards", count)
    return range(start, end + 1)


def _finite(weights: Sequence[float], count: int) -> tuple[float, ...]:
    for weight in weights:
        if not math.isfinite(weight):
            raise _wrong(f"A block's weight is {weight}, expected a finite number", count)
    return tuple(weights)


def _wrong(found: str, count: int) -> CldmError:
    return CldmError(
        f"{found}: write {count} numbers with commas between them, the middle last; or blocks, "
        f"such as 0-2: 0.5, middle: 1, rest: 0; or one of {', '.join(PRESETS)}."
    )
