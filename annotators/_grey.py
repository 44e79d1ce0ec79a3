"""A picture without its colours."""

from __future__ import annotations

from .base import RGB8, Annotator
from .pictures import as_rgb


def grey(image: RGB8) -> RGB8:
    """The brightness (ITU-R BT.601) of (H, W, 3) in all channels."""
    import cv2

    return as_rgb(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


ANNOTATOR = Annotator(
    name="grey",
    title="Grey",
    description="The picture without its colours, for nets that colour it.",
    run=grey,
)
