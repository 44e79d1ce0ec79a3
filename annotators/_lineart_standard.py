"""Soft lines where a picture is darker than its surroundings."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param
from .pictures import as_rgb, lowest

LEAST = 16.0
"""Below this, a typical line is not made any brighter."""
TYPICAL = 127
"""The grey of a typical line."""


def lineart_standard(image: RGB8, gaussian_sigma: float, intensity_threshold: int) -> RGB8:
    """Soft white lines on black of (H, W, 3), brightened until the median line is half grey.

    As in Mikubill/sd-webui-controlnet and Fannovel16/comfyui_controlnet_aux.
    """
    import cv2

    values = image.astype(np.float32)
    around = cv2.GaussianBlur(values, (0, 0), gaussian_sigma)
    depth = lowest(around - values).clip(0, 255)
    lines = depth[depth > intensity_threshold]
    depth /= max(LEAST, np.median(lines)) if lines.size else LEAST
    depth *= TYPICAL
    return as_rgb(depth.clip(0, 255).astype(np.uint8))


ANNOTATOR = Annotator(
    name="lineart_standard",
    title="Lineart Standard",
    description="Soft white lines on black without any network, for a lineart ControlNet.",
    run=lineart_standard,
    params={
        "gaussian_sigma": Param(
            6.0,
            0.1,
            100.0,
            "how far around a pixel is looked, in pixels",
            step=0.1,
            also=("guassian_sigma",),  # as the references spell it
        ),
        "intensity_threshold": Param(8, 0, 16, "fainter lines don't count for the brightness"),
    },
)
