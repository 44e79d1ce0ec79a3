"""Canny edges (Canny, 1986): white lines on black, the hint of the first ControlNet."""

from __future__ import annotations

from .base import RGB8, Annotator, Param
from .pictures import as_rgb


def canny(image: RGB8, low_threshold: int, high_threshold: int) -> RGB8:
    """Edges of (H, W, 3), by the strongest channel at each pixel, as (H, W, 3) of 0 and 255.

    Whichever threshold is lower is the low one, as OpenCV takes them.
    """
    import cv2

    return as_rgb(cv2.Canny(image, low_threshold, high_threshold))


ANNOTATOR = Annotator(
    name="canny",
    title="Canny edges",
    description="Thin white outlines on black, for a ControlNet trained on Canny edges.",
    run=canny,
    params={
        "low_threshold": Param(100, 0, 255, "fainter edges than this are dropped"),
        "high_threshold": Param(
            200, 0, 255, "edges at least this strong are kept, with the fainter ones they touch"
        ),
    },
)
