"""Canny edges (Canny, 1986): white lines on black, the hint of the first ControlNet."""

from __future__ import annotations

from .base import RGB8, Annotator, AnnotatorError, Param
from .pictures import as_rgb


def canny(image: RGB8, low_threshold: int, high_threshold: int) -> RGB8:
    """Edges of (H, W, 3), by the strongest channel at each pixel, as (H, W, 3) of 0 and 255."""
    import cv2

    check_order(low_threshold, high_threshold)
    return as_rgb(cv2.Canny(image, low_threshold, high_threshold))


def check_order(low_threshold: int, high_threshold: int) -> None:
    """Raises AnnotatorError where the thresholds are the wrong way round."""
    if low_threshold > high_threshold:
        raise AnnotatorError(
            f"low_threshold is {low_threshold}, above high_threshold, which is {high_threshold}: "
            "lower the first or raise the second."
        )


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
