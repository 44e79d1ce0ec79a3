"""A picture with the part that is to be painted marked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import RGB8, Annotator, Choice, Mask

MARKS = {"minus_one": -1.0, "black": 0.0}
"""What masked pixels become: for control_v11p_sd15_inpaint, and for xinsir's union ProMax."""


def inpaint(image: RGB8, mask: Mask, convention: str) -> NDArray[np.float32]:
    """(H, W, 3) in [0, 1], with the mark where the mask is above 0.5."""
    hint = image.astype(np.float32) / np.float32(255)
    hint[mask > 0.5] = MARKS[convention]
    return hint


ANNOTATOR = Annotator(
    name="inpaint",
    title="Inpaint",
    description="The picture with the masked part marked, for an inpaint ControlNet.",
    run=inpaint,
    params={
        "convention": Choice(
            "minus_one",
            tuple(MARKS),
            "how the net knows masked pixels: minus_one for SD 1.5's inpaint net, black for the "
            "repaint type of union nets",
        )
    },
    needs_mask=True,
    dtype="float32",
)
