"""Draws poses, at any size and always at the size asked for: nothing is drawn small and enlarged.

Sticks, dots and colours are those of controlnet_aux (`open_pose/util.py`), which the openpose
ControlNets were trained on; sticks and dots keep their width in pixels at every size.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import AnnotatorError
from .keypoints import BODY, Frame, Keypoint, Part
from .pictures import MOST_PIXELS, RGB8

STICK = 4
DOT = 4
FACE_DOT = 3
HAND_LINE = 2
ANIMAL_LINE = 5
"""Half the width of a stick, radii of the dots, width of a hand's and an animal's lines."""
DIM = 0.6
"""How bright sticks are."""

_ARMS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7))
_LEGS = ((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13))
_HEAD = ((1, 0), (0, 14), (14, 16), (0, 15), (15, 17))
_BODY_LIMBS = (*_ARMS, *_LEGS, *_HEAD)
_HAND_LIMBS = tuple(
    (0 if joint == 1 else 4 * finger + joint - 1, 4 * finger + joint)
    for finger in range(5)
    for joint in range(1, 5)
)


def _wheel(count: int) -> list[tuple[float, ...]]:
    """As many bright colours, once round the colour wheel from red on."""
    colours = (colorsys.hsv_to_rgb(number / count, 1, 1) for number in range(count))
    return [tuple(255 * part for part in colour) for colour in colours]


_BODY_COLOURS = [tuple(map(round, colour)) for colour in _wheel(BODY)]
_HAND_COLOURS = _wheel(len(_HAND_LIMBS))
_ANIMAL_LINES = (
    ((0, 1), (255, 255, 255)),  # between the eyes
    ((1, 2), (100, 255, 100)),  # right eye to nose
    ((0, 2), (150, 255, 255)),
    ((2, 3), (100, 50, 255)),  # nose to neck
    ((3, 8), (50, 150, 200)),  # right foreleg
    ((8, 9), (0, 255, 255)),
    ((9, 10), (0, 150, 0)),
    ((3, 5), (0, 0, 255)),  # left foreleg
    ((5, 6), (0, 0, 150)),
    ((6, 7), (255, 50, 255)),
    ((3, 4), (255, 0, 255)),  # back
    ((4, 14), (255, 0, 0)),  # right hind leg
    ((14, 15), (150, 0, 0)),
    ((15, 16), (255, 255, 100)),
    ((4, 11), (0, 150, 0)),  # left hind leg
    ((11, 12), (255, 255, 0)),
    ((12, 13), (150, 150, 150)),
)
_HAND_DOT = (0, 0, 255)
_WHITE = (255, 255, 255)


def draw(
    frame: Frame,
    *,
    size: tuple[int, int] | None = None,
    body: bool = True,
    hands: bool = True,
    face: bool = True,
    xinsir: bool = False,
) -> RGB8:
    """The people and animals of the frame on black, (height, width, 3) uint8.

    size: width and height of the drawing, where it isn't the frame's own; the points are stretched
    to it. xinsir: sticks as thick as xinsir's ControlNets expect them at this size.
    """
    width, height = size or (frame.width, frame.height)
    canvas: RGB8 = np.zeros((height, width, 3), np.uint8)
    stick = STICK * (stick_scale(width, height) if xinsir else 1)
    stretched = frame.resized(width, height)
    for person in stretched.people:
        if body:
            _draw_body(canvas, person.body, stick)
        if hands:
            _draw_hand(canvas, person.left_hand)
            _draw_hand(canvas, person.right_hand)
        if face:
            _draw_dots(canvas, person.face, FACE_DOT, _WHITE)
    for animal in stretched.animals:
        _draw_animal(canvas, animal)
    return canvas


def draw_all(
    frames: Sequence[Frame], *, size: tuple[int, int] | None = None, **options: bool
) -> RGB8:
    """Each frame drawn, (N, height, width, 3), at one size: the first frame's, or `size`.

    options: those of `draw`.
    """
    size = size or (frames[0].width, frames[0].height)
    return np.stack([draw(frame, size=size, **options) for frame in frames])


def drawing_size(frame: Frame, width: int, height: int) -> tuple[int, int]:
    """Width and height of a drawing, 0 being what the frame's own aspect makes of the other.

    Both 0 is the frame's own size. Raises AnnotatorError where that is more than MOST_PIXELS.
    """
    if not width and not height:
        width, height = frame.width, frame.height
    width = width or max(1, round(frame.width * height / frame.height))
    height = height or max(1, round(frame.height * width / frame.width))
    if width * height > MOST_PIXELS:
        raise AnnotatorError(
            f"The drawing would have {width} x {height} pixels: ask for a smaller one."
        )
    return width, height


def stick_scale(width: int, height: int) -> int:
    """How many times thicker xinsir's sticks are (controlnet_aux `xinsr_stick_scaling`)."""
    longest = max(width, height)
    return 1 if longest < 500 else min(2 + longest // 1000, 7)


def _draw_body(canvas: RGB8, points: Part, stick: int) -> None:
    import cv2

    if not points:
        return
    for (start, end), colour in zip(_BODY_LIMBS, _BODY_COLOURS, strict=False):
        one, other = points[start], points[end]
        if one is None or other is None:
            continue
        middle = int((one.x + other.x) / 2), int((one.y + other.y) / 2)
        across, down = one.x - other.x, one.y - other.y
        half = int((down * down + across * across) ** 0.5 / 2)
        angle = int(math.degrees(math.atan2(down, across)))
        outline = np.array(cv2.ellipse2Poly(middle, (half, stick), angle, 0, 360, 1))
        cv2.fillConvexPoly(canvas, outline, [int(part * DIM) for part in colour])
    for point, colour in zip(points, _BODY_COLOURS, strict=True):
        if point is not None:
            cv2.circle(canvas, (int(point.x), int(point.y)), DOT, colour, thickness=-1)


def _draw_hand(canvas: RGB8, points: Part) -> None:
    import cv2

    if not points:
        return
    places = [_inside(point) for point in points]
    for (start, end), colour in zip(_HAND_LIMBS, _HAND_COLOURS, strict=True):
        one, other = places[start], places[end]
        if one and other:
            cv2.line(canvas, one, other, colour, thickness=HAND_LINE)
    _draw_dots(canvas, points, DOT, _HAND_DOT)


def _draw_animal(canvas: RGB8, points: Part) -> None:
    import cv2

    for (start, end), colour in _ANIMAL_LINES:
        one, other = points[start], points[end]
        if one is not None and other is not None:
            ends = (int(one.x), int(one.y)), (int(other.x), int(other.y))
            cv2.line(canvas, *ends, colour, ANIMAL_LINE)


def _draw_dots(canvas: RGB8, points: Part, radius: int, colour: Any) -> None:
    import cv2

    for place in map(_inside, points):
        if place:
            cv2.circle(canvas, place, radius, colour, thickness=-1)


def _inside(point: Keypoint | None) -> tuple[int, int] | None:
    """The pixel; None where it is in the first row or column, which means "not seen" there."""
    if point is None:
        return None
    x, y = int(point.x), int(point.y)
    return (x, y) if x > 0 and y > 0 else None
