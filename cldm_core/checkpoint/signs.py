"""Signs that keys are searched for, and keys as messages show them.

A sign is a key, a part of keys between asterisks (`*norm*`), the start of keys before an asterisk
(`norm*`), or several of these with bars between them, of which one is enough.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..errors import printable

FIRST, LONGEST = 3, 150
"""How many keys are shown of an unknown file, and how much of each."""


class Keys:
    """The keys of a file, ready to be searched for many signs."""

    def __init__(self, keys: Collection[str]) -> None:
        self.exact = frozenset(keys)
        # Each key stands behind a line feed, so that its start can be searched for.
        self.text = "".join(f"\n{key}" for key in self.exact)

    def show(self, sign: str) -> bool:
        return any(map(self._shows, sign.split("|")))

    def _shows(self, sign: str) -> bool:
        if sign.startswith("*"):
            return sign.strip("*") in self.text
        return f"\n{sign[:-1]}" in self.text if sign.endswith("*") else sign in self.exact


def first_keys(keys: Iterable[str]) -> str:
    """The first keys by the alphabet, for a message about a file of no known kind."""
    return ", ".join(map(shortened, sorted(keys)[:FIRST]))


def shortened(key: str) -> str:
    """The key as it can be shown, or its start if it is longer than any net's."""
    return printable(key if len(key) <= LONGEST else f"{key[:LONGEST]}...")
