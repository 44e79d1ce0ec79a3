"""Canny edges of nine sizes, summed: grey where only some sizes have an edge."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param, Picture
from .pictures import as_rgb

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NEW = 0.25
"""How much of the sum the edges of the next larger size are."""
DARK, BRIGHT = 1, 99
"""Percentiles that become black and white."""


def pyracanny(image: RGB8, low_threshold: int, high_threshold: int) -> RGB8:
    """Edges of (H, W, 3), channel by channel and size by size, as (H, W, 3).

    As in lllyasviel/Fooocus and Fannovel16/comfyui_controlnet_aux. Whichever threshold is lower is
    the low one, as OpenCV takes them.
    """
    import cv2

    height, width = image.shape[:2]
    total: Picture | None = None
    for scale in SCALES:
        size = (max(1, int(width * scale)), max(1, int(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        channels = [
            cv2.Canny(np.ascontiguousarray(small[..., channel]), low_threshold, high_threshold)
            for channel in range(3)
        ]
        edges: Picture = np.stack(channels, axis=2).astype(np.float32) / 255
        if total is not None:
            total = cv2.resize(total, size, interpolation=cv2.INTER_LINEAR).reshape(edges.shape)
            edges = total * (1 - NEW) + edges * NEW
        total = edges
    return as_rgb(_stretched(np.sum(edges, axis=2)))


def _stretched(values: Picture) -> Picture:
    """(H, W) with its percentiles at 0 and 255; black where all is equal."""
    low, high = np.percentile(values, DARK), np.percentile(values, BRIGHT)
    if low == high:
        return np.zeros(values.shape, np.uint8)
    stretched = values.copy()
    stretched -= low
    stretched /= high - low
    return np.asarray((stretched * 255).clip(0, 255).astype(np.uint8))


ANNOTATOR = Annotator(
    name="pyracanny",
    title="Pyramid Canny",
    description="Canny edges of nine sizes, strong where many have them: for Stability's SDXL "
    "control-LoRAs.",
    run=pyracanny,
    params={
        "low_threshold": Param(64, 0, 255, "fainter edges than this are dropped"),
        "high_threshold": Param(
            128, 0, 255, "edges at least this strong are kept, with the fainter ones they touch"
        ),
    },
)
