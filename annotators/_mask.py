"""Foreground mask: the subject in white on black."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import RGB8, Annotator, Param

OPAQUE = 128
"""A pixel whose alpha is at least this counts as foreground."""


def mask(image: NDArray[np.uint8], tolerance: int) -> RGB8:
    """The foreground of (H, W, 3 or 4), as (H, W, 3) of 0 and 255.

    An alpha channel says what the foreground is, unless it is opaque everywhere. Without one,
    background is what can be reached from the picture's edge over pixels that differ from the
    border's median colour by no more than `tolerance` in every channel.
    """
    rgb, alpha = image[..., :3], image[..., 3:]
    is_cut_out = bool((alpha < 255).any())
    foreground = alpha[..., 0] >= OPAQUE if is_cut_out else ~_background(rgb, tolerance)
    white = foreground.astype(np.uint8) * 255
    return np.repeat(white[..., None], 3, axis=-1)


def _background(rgb: RGB8, tolerance: int) -> NDArray[np.bool_]:
    """(H, W): near the border's colour, and joined to the border by such pixels."""
    import cv2

    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    distance = np.abs(rgb - np.median(border, axis=0)).max(axis=-1)  # (H, W)
    near = (distance <= tolerance).astype(np.uint8)
    # A frame of near pixels joins all that touch the border, so that one fill reaches them. It
    # steps to 4 neighbours only: an outline one pixel wide holds it, also where it runs aslant.
    framed = cv2.copyMakeBorder(near, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[1])
    cv2.floodFill(framed, None, (0, 0), [2])
    return np.asarray(framed[1:-1, 1:-1] == 2)


ANNOTATOR = Annotator(
    name="mask",
    title="Foreground mask",
    description=(
        "The subject in white on black: from the alpha channel if the picture has one, "
        "else everything that differs from the colour of the picture's border."
    ),
    run=mask,
    params={
        "tolerance": Param(
            10, 0, 255, "how far a channel may differ from the border's colour in the background"
        ),
    },
    reads_alpha=True,
)
