"""Whole bodies by RTMPose and DWPose (Yang et al., 2023): input, and 133 points from its output.

After `dwpose/dw_onnx/cv_ox_pose.py` and `dwpose/wholebody.py` of
Fannovel16/comfyui_controlnet_aux (themselves after OpenMMLab's mmpose), and equal to them bit for
bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .keypoints import BODY, HAND, Keypoint, Part, Person
from .pictures import RGB8
from .pose_yolox import Boxes

WHOLE_BODY = (288, 384)
ANIMAL = (256, 256)
"""Width and height of a network's input."""
MARGIN = 1.25
MEAN = (123.675, 116.28, 103.53)
SPREAD = (58.395, 57.12, 57.375)
BINS_PER_PIXEL = 2
LEAST_SCORE = 0.3
"""A point that is less sure isn't seen."""
AT_ONCE = 8
"""How many boxes go through a network together, where its file leaves that open."""

Found = TypeVar("Found")

_SHOULDERS = [5, 6]
_NECK = 17
# OpenPose's body from COCO's points, with the neck put in at 17.
_OPENPOSE = [1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17]
_COCO = [17, 6, 8, 10, 7, 9, 12, 14, 16, 13, 15, 2, 1, 4, 3]
_FACE_BEGIN, _LEFT_BEGIN, _RIGHT_BEGIN = 24, 92, 92 + HAND
_PUPILS = (14, 15)


def seen_in(
    image: RGB8,
    boxes: Boxes,
    net: Any,
    decode: Callable[[NDArray[Any], NDArray[Any], NDArray[np.float64]], list[Found]],
    size: tuple[int, int] = WHOLE_BODY,
) -> list[Found]:
    """What `decode` (whole_bodies or animals) reads of what a session gives for each box."""
    entry = net.get_inputs()[0]
    fixed = entry.shape[0] if isinstance(entry.shape[0], int) else None
    at_once = fixed or AT_ONCE
    found: list[Found] = []
    for start in range(0, len(boxes), at_once):
        inputs, areas = crops(image, boxes[start : start + at_once], size)
        missing = (fixed or len(inputs)) - len(inputs)
        filled = np.pad(inputs, ((0, missing), (0, 0), (0, 0), (0, 0)))
        across, down = net.run(None, {entry.name: filled})
        found += decode(across[: len(areas)], down[: len(areas)], areas)
    return found


def crops(
    image: RGB8, boxes: Boxes, size: tuple[int, int] = WHOLE_BODY
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """What is in each box of (H, W, 3), (P, 3, height, width), and the boxes with margin, (P, 4).

    size: width and height of the input. The boxes are middle x, middle y, width and height, in the
    input's shape.
    """
    import cv2

    inputs, areas = [], []
    for box in boxes:
        area = _area(box, size)
        warped = cv2.warpAffine(image, _warp(area, size), size, flags=cv2.INTER_LINEAR)
        inputs.append((warped - np.array(MEAN)) / np.array(SPREAD))
        areas.append(area)
    stacked = np.stack(inputs).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked, np.float32), np.stack(areas)


def _area(box: NDArray[np.float64], input_size: tuple[int, int]) -> NDArray[np.float64]:
    """Middle and size of a box with its margin, widened or heightened to the input's shape."""
    middle = (box[:2] + box[2:]) * 0.5
    width, height = (box[2:] - box[:2]) * MARGIN
    shape = input_size[0] / input_size[1]
    size = (width, width / shape) if width > height * shape else (height * shape, height)
    return np.array([*middle, *size])


def _warp(area: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """The affine map from the area to the input, from three points that fit: in float32."""
    import cv2

    x, y, width, _ = area
    middle = [size[0] * 0.5, size[1] * 0.5]
    source = _corner([x, y], [x, y - width * 0.5])
    target = _corner(middle, [middle[0], middle[1] - size[0] * 0.5])
    return np.asarray(cv2.getAffineTransform(source, target), np.float64)


def _corner(middle: list[float], top: list[float]) -> NDArray[np.float32]:
    """The two points, and the one as far to the left of the top as the middle lies below it."""
    points = np.array([middle, top, top], np.float32)
    x, y = points[0] - points[1]
    points[2] = points[1] + np.array([-y, x], np.float32)
    return points


def whole_bodies(
    across: NDArray[Any], down: NDArray[Any], areas: NDArray[np.float64]
) -> list[Person]:
    """The people that the network saw in the areas.

    across, down: (P, 133, 576) and (P, 133, 768), how likely each half pixel is, for each point.
    """
    return [_person(one) for one in _decoded(across, down, areas, WHOLE_BODY)]


def animals(across: NDArray[Any], down: NDArray[Any], areas: NDArray[np.float64]) -> list[Part]:
    """The 17 points (AP-10K) of the animals that the network saw in the areas, however unsure."""
    return [
        tuple(Keypoint(float(x), float(y), float(np.clip(s, 1e-6, 1))) for x, y, s in one)
        for one in _decoded(across, down, areas, ANIMAL)
    ]


def _decoded(
    across: NDArray[Any],
    down: NDArray[Any],
    areas: NDArray[np.float64],
    input_size: tuple[int, int],
) -> NDArray[np.float64]:
    """x, y in pixels of the picture, and score: (P, K, 3)."""
    places = np.stack([across.argmax(axis=-1), down.argmax(axis=-1)], axis=-1)
    places = places.astype(np.float32) / np.float32(BINS_PER_PIXEL)
    scores = np.minimum(across.max(axis=-1), down.max(axis=-1))
    places[scores <= 0] = -1 / BINS_PER_PIXEL
    middle, size = areas[:, None, :2], areas[:, None, 2:]
    points = places / np.array(input_size) * size + middle - size / 2
    return np.concatenate([points, scores[..., None]], axis=-1)


def _person(points: NDArray[np.float64]) -> Person:
    """133 points of COCO-WholeBody (x, y, score) as OpenPose's parts."""
    neck = points[_SHOULDERS].mean(axis=0)
    neck[2] = (points[_SHOULDERS, 2] > LEAST_SCORE).all()
    points = np.insert(points, _NECK, neck, axis=0)
    points[_OPENPOSE] = points[_COCO]
    body = _part(points[:BODY])
    face = _part(points[_FACE_BEGIN:_LEFT_BEGIN])
    return Person(
        body=body,
        left_hand=_part(points[_LEFT_BEGIN:_RIGHT_BEGIN]),
        right_hand=_part(points[_RIGHT_BEGIN : _RIGHT_BEGIN + HAND]),
        # OpenPose's faces have the pupils too, which COCO's lack: the eyes stand in.
        face=(*face, *((body or (None,) * BODY)[eye] for eye in _PUPILS)) if face else (),
    )


def _part(points: NDArray[np.float64]) -> Part:
    seen = points[:, 2] >= LEAST_SCORE
    if not seen.any():
        return ()
    return tuple(
        Keypoint(float(x), float(y), min(float(score), 1.0)) if is_seen else None
        for (x, y, score), is_seen in zip(points, seen, strict=True)
    )
