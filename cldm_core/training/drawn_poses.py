"""Keypoints read back from a drawn pose, for scores that compare poses by distance."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np

from ..errors import ShapeError

Array = np.ndarray[Any, np.dtype[Any]]

JOINTS = 18
"""OpenPose's body: COCO with a neck."""
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
"""Which joints a limb joins; limb i has the colour of joint i, darker."""
SIDE, DIM = 512, 0.6
"""The short side that poses are drawn for, in pixels, and how bright limbs are.

Smaller drawings were scaled down, and are enlarged to be read."""
NEAR = 60.0
"""How far a colour may be from a joint's or limb's; neighbours on the wheel are 85 apart."""
BLACK = 64
THIN, SMALL, REACH = 5, 0.35, 8
"""Lines of a smaller width are no joints, nor dots of a smaller share of the usual area; and a limb
begins within so many pixels of a joint's middle."""

Point = tuple[float, float]


def keypoints_of(drawing: Array) -> Array:
    """People (P, 18, 3) with x, y and confidence 0 or 1 in a drawn pose (H, W, 3), uint8.

    Reads what OpenPose draws, and controlnet_aux and the annotators after it: on black, joints as
    dots in 18 bright colours once round the wheel, limbs at 0.6 of the brightness. What hangs
    together is a person; where a joint is there twice, two people overlap and are told apart from
    left to right. Hands and faces aren't read. Raises ShapeError for another shape or type.
    """
    import cv2

    if drawing.dtype != np.uint8 or drawing.ndim != 3 or drawing.shape[2] != 3 or not drawing.size:
        raise ShapeError(
            f"The drawn pose is {drawing.dtype} {drawing.shape}, expected uint8 (height, width, 3)."
        )
    by = max(1.0, SIDE / min(drawing.shape[:2]))
    if by > 1:
        drawing = cv2.resize(drawing, None, fx=by, fy=by, interpolation=cv2.INTER_CUBIC)
    figure = (drawing.max(axis=2) > BLACK).astype(np.uint8)
    groups, labels = cv2.connectedComponents(figure, connectivity=8)
    found: list[list[list[Point]]] = [[[] for _ in range(JOINTS)] for _ in range(groups)]
    for joint, x, y in _dots(drawing):
        group = int(labels[round(y), round(x)])
        found[group][joint].append(((x + 0.5) / by - 0.5, (y + 0.5) / by - 0.5))
    people = [person for group in found[1:] for person in _apart(group)]
    return np.stack(people) if people else np.zeros((0, JOINTS, 3))


def _dots(drawing: Array) -> list[tuple[int, float, float]]:
    """Joint, x and y of every dot, from left to right."""
    import cv2

    joints, limbs = _named(drawing, 1.0, NEAR), _named(drawing, DIM, NEAR / 2)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (THIN, THIN))
    dots: list[tuple[int, int, float, float]] = []
    for joint in range(JOINTS):
        own = (joints == joint).astype(np.uint8)
        opened = cv2.morphologyEx(own, cv2.MORPH_OPEN, kernel)
        # A hand's dots have a joint's colour: the body's are those that a limb ends at.
        ending = [limb for limb, ends in enumerate(LIMBS) if joint in ends]
        near_limb = _spread(np.isin(limbs, ending))
        _, _, stats, centres = cv2.connectedComponentsWithStats(opened, connectivity=8)
        for (*_, area), (x, y) in zip(stats[1:], centres[1:], strict=True):
            if near_limb[round(y), round(x)]:
                dots.append((int(area), joint, float(x), float(y)))
    usual = float(np.median([area for area, *_ in dots])) if dots else 0.0
    return sorted(
        ((joint, x, y) for area, joint, x, y in dots if area >= SMALL * usual),
        key=lambda dot: dot[1],
    )


def _named(drawing: Array, brightness: float, near: float) -> Array:
    """For each pixel which colour of the wheel it has, at this brightness; -1 for none."""
    lit = drawing.max(axis=2) > BLACK
    wheel = brightness * np.stack(_wheel()).astype(np.float32)
    apart = np.linalg.norm(drawing[lit].astype(np.float32)[:, None] - wheel, axis=2)
    names = np.full(lit.shape, -1)
    names[lit] = np.where(apart.min(axis=1) < near, apart.argmin(axis=1), -1)
    return names


def _spread(places: Array) -> Array:
    """Where one of the places is within REACH."""
    import cv2

    side = 2 * REACH + 1
    return np.asarray(cv2.dilate(places.astype(np.uint8), np.ones((side, side), np.uint8)) > 0)


def _apart(group: list[list[Point]]) -> list[Array]:
    """One group's joints as people; a joint alone is none, as a limb has two."""
    people = []
    for place in range(max(map(len, group))):
        person = np.zeros((JOINTS, 3))
        for joint, points in enumerate(group):
            if place < len(points):
                person[joint] = (*points[place], 1.0)
        if (person[:, 2] > 0).sum() > 1:
            people.append(person)
    return people


def _wheel() -> list[Array]:
    """The colours of the joints."""
    return [255 * np.array(colorsys.hsv_to_rgb(joint / JOINTS, 1, 1)) for joint in range(JOINTS)]
