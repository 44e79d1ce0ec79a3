"""People and animals found by YOLOX (Ge et al., 2021): its input, and boxes from its output.

After `dwpose/dw_onnx/cv_ox_det.py` of Fannovel16/comfyui_controlnet_aux (itself after the demo of
Megvii-BaseDetection/YOLOX), and equal to it bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .pictures import RGB8

Boxes: TypeAlias = NDArray[np.float64]
"""(P, 4): left, top, right and bottom in pixels."""

PERSON = 0
ANIMALS = range(14, 24)
"""Numbers among COCO's kinds; the animals go from bird to giraffe."""

SIDE = 640
GREY = 114
STRIDES = (8, 16, 32)
LEAST_SCORE = 0.3
MOST_OVERLAP = 0.45


def letterboxed(image: RGB8) -> tuple[NDArray[np.float32], float]:
    """(H, W, 3) at the top left of a grey square, (3, 640, 640), and how much smaller it is."""
    import cv2

    height, width = image.shape[:2]
    ratio = min(SIDE / height, SIDE / width)
    high, wide = max(1, int(height * ratio)), max(1, int(width * ratio))
    square = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    square[:high, :wide] = cv2.resize(image, (wide, high), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(square.transpose(2, 0, 1), np.float32), ratio


def boxes_of(output: NDArray[Any], ratio: float, kinds: Sequence[int] = (PERSON,)) -> Boxes:
    """The boxes of some kinds, one kind after the other and the surest first.

    output: (8400, 85), for each cell x, y, width, height, how sure there is anything, and how sure
    it is each of COCO's 80 kinds. ratio: from `letterboxed`. The boxes are in pixels of the
    picture.
    """
    cells, strides = _grid()
    middle = ((output[:, :2] + cells) * strides).astype(np.float32)
    size = (np.exp(output[:, 2:4]) * strides).astype(np.float32)
    boxes = np.concatenate([middle - size / 2, middle + size / 2], axis=1) / np.float32(ratio)
    found = []
    for kind in kinds:
        scores = output[:, 4] * output[:, 5 + kind]
        sure = scores > LEAST_SCORE
        found.append(_distinct(boxes[sure], scores[sure]))
    return np.concatenate(found).astype(np.float64)


def _grid() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place (8400, 2) and stride (8400, 1) of each cell, from the finest grid to the coarsest."""
    places, strides = [], []
    for stride in STRIDES:
        side = np.arange(SIDE // stride)
        x, y = np.meshgrid(side, side)
        places.append(np.stack([x.ravel(), y.ravel()], axis=-1))
        strides.append(np.full((x.size, 1), stride))
    return np.concatenate(places), np.concatenate(strides)


def _distinct(boxes: NDArray[np.float32], scores: NDArray[Any]) -> NDArray[np.float32]:
    """The boxes without those that lie mostly on a surer one; a pixel counts as one wide."""
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    kept = []
    while len(order):
        one, rest = order[0], order[1:]
        kept.append(one)
        across = np.minimum(x2[one], x2[rest]) - np.maximum(x1[one], x1[rest]) + 1
        down = np.minimum(y2[one], y2[rest]) - np.maximum(y1[one], y1[rest]) + 1
        shared = np.maximum(0, across) * np.maximum(0, down)
        overlap = shared / (areas[one] + areas[rest] - shared)
        order = rest[overlap <= MOST_OVERLAP]
    return boxes[kept]
