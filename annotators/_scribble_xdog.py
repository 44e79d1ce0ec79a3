"""Strokes by extended differences of Gaussians (Winnemöller et al., 2012)."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param
from .pictures import as_rgb, lowest

FINE, COARSE = 0.5, 5.0
"""Standard deviations of the two blurs, in pixels."""


def scribble_xdog(image: RGB8, threshold: int) -> RGB8:
    """White strokes where (H, W, 3) is darker than what is around it.

    As in Mikubill/sd-webui-controlnet and Fannovel16/comfyui_controlnet_aux.
    """
    import cv2

    values = image.astype(np.float32)
    fine = cv2.GaussianBlur(values, (0, 0), FINE)
    coarse = cv2.GaussianBlur(values, (0, 0), COARSE)
    paper = (255 - lowest(coarse - fine)).clip(0, 255).astype(np.uint8)
    # In whole numbers of 8 bits, as there: a doubled difference above 255 begins anew at 0.
    strokes = 2 * (255 - paper) > threshold
    return as_rgb(strokes.astype(np.uint8) * np.uint8(255))


ANNOTATOR = Annotator(
    name="scribble_xdog",
    title="Scribble XDoG",
    description="Rough white strokes on black from any picture, for a scribble ControlNet.",
    run=scribble_xdog,
    params={"threshold": Param(32, 1, 64, "less gives more strokes")},
)
