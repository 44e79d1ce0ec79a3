"""Inverted colours."""

from __future__ import annotations

from .base import RGB8, Annotator


def invert(image: RGB8) -> RGB8:
    """255 minus each value: black lines on white become white on black."""
    return 255 - image


ANNOTATOR = Annotator(
    name="invert",
    title="Invert",
    description="Inverted colours: a drawing of black lines on white becomes the hint of a "
    "lineart or scribble net.",
    run=invert,
)
