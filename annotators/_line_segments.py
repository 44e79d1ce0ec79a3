"""Straight lines by OpenCV's detector (von Gioi et al., 2008): no weights."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param
from .pictures import as_rgb

WHITE = 255


def line_segments(image: RGB8, min_length: int) -> RGB8:
    """The straight lines of (H, W, 3) that are long enough, one pixel wide, white on black."""
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = cv2.createLineSegmentDetector().detect(grey)[0]
    canvas = np.zeros(grey.shape, np.uint8)
    for segment in () if found is None else np.reshape(found, (-1, 4)):
        x0, y0, x1, y1 = (int(value) for value in segment)
        if np.hypot(segment[2] - segment[0], segment[3] - segment[1]) >= min_length:
            cv2.line(canvas, (x0, y0), (x1, y1), WHITE, 1)
    return as_rgb(canvas)


ANNOTATOR = Annotator(
    name="line_segments",
    title="Line Segments",
    description="Straight lines in white on black without any network, for an M-LSD ControlNet.",
    run=line_segments,
    params={"min_length": Param(20, 0, 1024, "shorter lines are dropped, in pixels")},
)
