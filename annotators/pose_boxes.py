"""Where hands and faces are, told from a body, as OpenPose and controlnet_aux do."""

from __future__ import annotations

import math
from typing import TypeAlias

from .keypoints import Keypoint, Part

Box: TypeAlias = tuple[int, int, int]
"""Left, top and side of a square, in pixels."""

SMALLEST = 20
"""A smaller square has too little in it to be looked at."""
BEYOND_WRIST = 0.33

_LEFT_ARM = (5, 6, 7)
_RIGHT_ARM = (2, 3, 4)
_NOSE = 0
# How far a face reaches beyond its eyes and ears, as seen from the nose.
_FACE_REACH = {14: 3.0, 15: 3.0, 16: 1.5, 17: 1.5}


def hand_boxes(body: Part, height: int, width: int) -> tuple[Box | None, Box | None]:
    """The squares of the left and the right hand (OpenPose handDetector.cpp).

    height, width: of the picture. None where shoulder, elbow or wrist isn't seen, or where the
    square would be small.
    """
    left, right = (
        _beyond(*(body[index] for index in arm), height=height, width=width)
        for arm in (_LEFT_ARM, _RIGHT_ARM)
    )
    return left, right


def _beyond(
    shoulder: Keypoint | None,
    elbow: Keypoint | None,
    wrist: Keypoint | None,
    *,
    height: int,
    width: int,
) -> Box | None:
    if shoulder is None or elbow is None or wrist is None:
        return None
    forearm = _distance(wrist, elbow)
    side = 1.5 * max(forearm, 0.9 * _distance(elbow, shoulder))
    left = wrist.x + BEYOND_WRIST * (wrist.x - elbow.x) - side / 2
    top = wrist.y + BEYOND_WRIST * (wrist.y - elbow.y) - side / 2
    left, top = max(left, 0), max(top, 0)
    across = width - left if left + side > width else side
    down = height - top if top + side > height else side
    return _box(left, top, min(across, down))


def face_box(body: Part, height: int, width: int) -> Box | None:
    """The square of the face; None without a nose, or without any eye or ear, or where small."""
    nose = body[_NOSE]
    if nose is None:
        return None
    reach = 0.0
    for index, times in _FACE_REACH.items():
        point = body[index]
        if point is not None:
            away = max(abs(nose.x - point.x), abs(nose.y - point.y))
            reach = max(reach, away * times)
    left, top = max(nose.x - reach, 0), max(nose.y - reach, 0)
    across = width - left if left + reach > width else reach * 2
    down = height - top if top + reach > height else reach * 2
    return _box(left, top, min(across, down))


def _box(left: float, top: float, side: float) -> Box | None:
    return (int(left), int(top), int(side)) if side >= SMALLEST else None


def _distance(one: Keypoint, other: Keypoint) -> float:
    return math.sqrt((one.x - other.x) ** 2 + (one.y - other.y) ** 2)
