"""Keypoints read back from a drawn pose, for scores that compare poses by distance."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np

from ..errors import ShapeError

Array = np.ndarray[Any, np.dtype[Any]]

JOINTS = 18
"""OpenPose's body: COCO with a neck."""
NEAR = 42.0
"""How far a colour may be from a joint's; neighbours on the wheel are 85 apart."""
THIN = 3
"""Lines less wide than this, such as fingers', are no joints."""


def keypoints_of(drawing: Array) -> Array:
    """People (P, 18, 3) with x, y and confidence 0 or 1 in a drawn pose (H, W, 3), uint8.

    Reads what OpenPose draws, and controlnet_aux and the annotators after it: on black, joints as
    dots in 18 bright colours once round the wheel, limbs at 0.6 of the brightness. What hangs
    together is a person; where a joint is there twice, two people overlap and are told apart from
    left to right. Hands and faces aren't read. Raises ShapeError for another shape or type.
    """
    import cv2

    if drawing.dtype != np.uint8 or drawing.ndim != 3 or drawing.shape[2] != 3:
        raise ShapeError(
            f"The drawn pose is {drawing.dtype} {drawing.shape}, expected uint8 (height, width, 3)."
        )
    figure = (drawing.max(axis=2) > 64).astype(np.uint8)
    groups, labels = cv2.connectedComponents(figure, connectivity=8)
    kernel = np.ones((THIN, THIN), np.uint8)
    found: list[list[list[tuple[float, float]]]] = [
        [[] for _ in range(JOINTS)] for _ in range(groups)
    ]
    for joint, colour in enumerate(_wheel()):
        apart = np.linalg.norm(drawing.astype(np.float32) - colour, axis=2)
        dots = cv2.morphologyEx((apart < NEAR).astype(np.uint8), cv2.MORPH_OPEN, kernel)
        _, _, _, centres = cv2.connectedComponentsWithStats(dots, connectivity=8)
        for x, y in sorted((float(x), float(y)) for x, y in centres[1:]):
            found[int(labels[round(y), round(x)])][joint].append((x, y))
    people = [person for group in found[1:] for person in _apart(group)]
    return np.stack(people) if people else np.zeros((0, JOINTS, 3))


def _apart(group: list[list[tuple[float, float]]]) -> list[Array]:
    """One group's joints as people."""
    people = []
    for place in range(max(map(len, group))):
        person = np.zeros((JOINTS, 3))
        for joint, points in enumerate(group):
            if place < len(points):
                person[joint] = (*points[place], 1.0)
        people.append(person)
    return people


def _wheel() -> list[Array]:
    """The colours of the joints."""
    return [255 * np.array(colorsys.hsv_to_rgb(joint / JOINTS, 1, 1)) for joint in range(JOINTS)]
