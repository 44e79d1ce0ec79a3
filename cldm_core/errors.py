"""Every error that the core raises on purpose; the message is a sentence for the user.

CldmError
├── UnsupportedCheckpoint   a file that is read well but holds nothing this pack can load
├── DamagedCheckpoint       a file that can't be read whole, or that would run code
├── CheckpointMismatch      keys or shapes that don't fit the net they are loaded into
├── FamilyMismatch          a net on a base model of another family
├── UnknownControlType      a type of hint that a union ControlNet doesn't know
└── ShapeError              a tensor whose shape, type or range doesn't fit
"""

from __future__ import annotations

from collections.abc import Iterable

MOST_LETTERS = 1500
"""Of a message; names in hostile files have millions."""
_END = 300


class CldmError(ValueError):
    """Base class of the core's errors; the message is one line, whatever a file's names hold."""

    def __init__(self, message: str = "") -> None:
        if len(message) > MOST_LETTERS:
            message = f"{message[: MOST_LETTERS - _END]} ... {message[-_END:]}"
        super().__init__(printable(message))


class UnsupportedCheckpoint(CldmError):
    """The file holds nothing that this pack can load."""


class DamagedCheckpoint(CldmError):
    """The file is truncated, is not what it says, or holds more than tensors."""


class CheckpointMismatch(CldmError):
    """Keys or shapes in the file don't fit the net."""


class FamilyMismatch(CldmError):
    """The ControlNet belongs to another family of base models."""


class UnknownControlType(CldmError):
    """The union ControlNet knows no such type of hint."""


class ShapeError(CldmError):
    """A tensor has a shape, type or range that doesn't fit."""


def printable(text: str) -> str:
    """The text on one line, signs that a terminal would act on written out."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def listed(items: Iterable[str], most: int = 3, between: str = ", ") -> str:
    """The first of the items for a message, and how many more there are."""
    items = list(items)
    shown, more = between.join(items[:most]), len(items) - most
    return shown if more <= 0 else f"{shown}{between.rstrip(' ,')} and {more} more"
