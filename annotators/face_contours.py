"""Faces drawn as the ControlNet mediapipe_face was trained: contours and pupils in colours.

The pixels are those of controlnet_aux's `generate_annotation`, of the same points.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from .pictures import RGB8
from .pose_blaze import Floats

LEAST_SIDE = 64
"""A smaller face isn't drawn, in pixels of the hint."""
LINE = 2
HALF = 2
"""Width of the lines, and half the side of a pupil, in pixels at every size."""

_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10),
)
# Left and right are the person's. Each eye and lip: below, then above.
_LEFT_EYE = (
    (263, 249, 390, 373, 374, 380, 381, 382, 362),
    (263, 466, 388, 387, 386, 385, 384, 398, 362),
)
_LEFT_BROW = (276, 283, 282, 295, 285), (300, 293, 334, 296, 336)
_RIGHT_EYE = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133),
    (33, 246, 161, 160, 159, 158, 157, 173, 133),
)
_RIGHT_BROW = (46, 53, 52, 65, 55), (70, 63, 105, 66, 107)
_MOUTH = (
    (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
    (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
    (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
    (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
)
# What comes later is drawn over what comes before.
_PARTS = (
    ((_OVAL,), (10, 200, 10)),
    (_LEFT_EYE, (10, 200, 180)),
    (_LEFT_BROW, (10, 220, 180)),
    (_RIGHT_EYE, (180, 200, 10)),
    (_RIGHT_BROW, (180, 220, 10)),
    (_MOUTH, (10, 180, 10)),
)
PUPILS = 468, 473
_PUPIL_COLOURS = (250, 200, 10), (10, 200, 250)


def draw_faces(faces: Iterable[Floats], height: int, width: int) -> RGB8:
    """Faces one over the other on black, (height, width, 3).

    faces: of each the points (478, 2) in pixels, numbered as MediaPipe does; the small ones are
    left out.
    """
    canvas: RGB8 = np.zeros((height, width, 3), np.uint8)
    for points in faces:
        if np.ptp(points, axis=0).min() >= LEAST_SIDE:
            _draw_contours(canvas, points)
            _draw_pupils(canvas, points[[*PUPILS]])
    return canvas


def _draw_contours(canvas: RGB8, points: Floats) -> None:
    """Every line whose two ends lie in the picture."""
    import cv2

    height, width = canvas.shape[:2]
    inside = np.all((points >= 0) & (points <= (width, height)), axis=1).tolist()
    places = np.minimum(np.floor(points), (width - 1, height - 1)).astype(int).tolist()
    for chains, colour in _PARTS:
        for one, other in (pair for chain in chains for pair in pairwise(chain)):
            if inside[one] and inside[other]:
                cv2.line(canvas, places[one], places[other], colour, LINE)


def _draw_pupils(canvas: RGB8, pupils: Floats) -> None:
    """Squares; where one begins beyond the picture the reference draws none."""
    height, width = canvas.shape[:2]
    for (x, y), colour in zip(pupils.tolist(), _PUPIL_COLOURS, strict=True):
        if HALF <= x < width and HALF <= y < height:
            left, top = int(x) - HALF, int(y) - HALF
            canvas[top : top + 2 * HALF, left : left + 2 * HALF] = colour
