"""A drawing as a scribble: its dark strokes in white on black."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param
from .pictures import as_rgb, lowest


def scribble(image: RGB8, threshold: int) -> RGB8:
    """White where a channel of (H, W, 3) is below the threshold, as in lllyasviel/ControlNet."""
    strokes = (lowest(image) < threshold).astype(np.uint8)
    return as_rgb(strokes * np.uint8(255))


ANNOTATOR = Annotator(
    name="scribble",
    title="Scribble",
    description="The dark strokes of a drawing in white on black, for a scribble ControlNet. For "
    "photographs take Scribble XDoG.",
    run=scribble,
    params={"threshold": Param(127, 0, 256, "what is darker in any channel is a stroke")},
)
