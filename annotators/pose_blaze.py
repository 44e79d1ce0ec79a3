"""The arithmetic around MediaPipe's networks (Bazarevsky et al., 2019 and 2020).

A detector looks at the whole picture and says where squares with a body, a hand or a face are, and
how they are turned; a second network reads the points of each square. After the graphs of
google-ai-edge/mediapipe (mediapipe/modules).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pictures import RGB8

Floats = NDArray[Any]

LEAST_SCORE = 0.5
MOST_OVERLAP = 0.3
WINDOW = 3
"""Points are corrected by what a map says this far around them."""


@dataclass(frozen=True)
class Area:
    """A turned square of a picture: its middle and side in pixels, its angle clockwise."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def out_of(self, image: RGB8, side: int, *, edge: bool) -> Floats:
        """What is in it, (side, side, 3) from 0 to 255; beyond the picture its edge, or black."""
        import cv2

        zoom = side / self.side
        cos, sin = zoom * math.cos(self.angle), zoom * math.sin(self.angle)
        matrix = np.array(
            [
                [cos, sin, side / 2 - cos * self.x - sin * self.y],
                [-sin, cos, side / 2 + sin * self.x - cos * self.y],
            ]
        )
        border = cv2.BORDER_REPLICATE if edge else cv2.BORDER_CONSTANT
        found = cv2.warpAffine(
            image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border
        )
        return np.asarray(found, np.float32)

    def in_picture(self, points: Floats) -> Floats:
        """Points (N, 2), as shares of the square, in pixels of the picture."""
        across, down = (points - 0.5).T * self.side
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = self.x + across * cos - down * sin, self.y + across * sin + down * cos
        return np.stack([x, y], axis=-1).astype(np.float32)


def whole(image: RGB8) -> Area:
    """The smallest square around the picture."""
    height, width = image.shape[:2]
    return Area(width / 2, height / 2, max(height, width))


def anchors(side: int, strides: Sequence[int]) -> Floats:
    """The middles (N, 2) of a detector's cells as shares of its input: two to a cell and layer.

    Layers of one stride lie in one grid.
    """
    grids = []
    for stride in dict.fromkeys(strides):
        cells = (np.arange(side // stride) + 0.5) / (side // stride)
        x, y = np.meshgrid(cells, cells)
        grid = np.stack([x.ravel(), y.ravel()], axis=-1)
        grids.append(np.repeat(grid, 2 * list(strides).count(stride), axis=0))
    return np.concatenate(grids).astype(np.float32)


def detections(
    values: Floats, logits: Floats, cells: Floats, side: int, least: float = LEAST_SCORE
) -> list[Floats]:
    """The squares found: for each its points (2 + K, 2) as shares of the input, the surest first.

    values: (N, 4 + 2 K), for each cell the box's middle and size and K points, from the cell on.
    The first two points that come back are the box's middle and its size. least: cells that are
    less sure than this find nothing.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    sure = scores >= least
    found = values[sure].reshape(-1, values.shape[1] // 2, 2) / side
    found[:, 0] += cells[sure]
    found[:, 2:] += cells[sure][:, None]
    return _blended(found, scores[sure])


def _blended(found: Floats, scores: Floats) -> list[Floats]:
    """Detections that overlap become one, each counting as much as it is sure."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        together = _overlap(found[order[0]], found[order]) > MOST_OVERLAP
        together[0] = True
        some = order[together]
        kept.append(np.average(found[some], axis=0, weights=scores[some]).astype(np.float32))
        order = order[~together]
    return kept


def _overlap(one: Floats, others: Floats) -> Floats:
    """Shared area over joint area of one detection's box with each of the others."""
    low = np.maximum(one[0] - one[1] / 2, others[:, 0] - others[:, 1] / 2)
    high = np.minimum(one[0] + one[1] / 2, others[:, 0] + others[:, 1] / 2)
    shared = np.prod(np.maximum(0, high - low), axis=-1)
    return np.asarray(shared / (one[1].prod() + others[:, 1].prod(axis=-1) - shared + 1e-12))


def turned(start: Floats, end: Floats, upright: float) -> float:
    """By which angle a square is turned whose line from start to end would be at `upright`."""
    across, down = (end - start).tolist()
    angle = upright - math.atan2(-down, across)
    return angle - 2 * math.pi * math.floor((angle + math.pi) / (2 * math.pi))


def body_area(points: Floats) -> Area:
    """Of a body, from the middle of its hips (2) and a point on the circle around it (3)."""
    middle, rim = points[2], points[3]
    reach = float(np.hypot(*(rim - middle)))
    x, y = middle.tolist()
    return Area(x, y, 1.25 * 2 * reach, turned(middle, rim, math.pi / 2))


def hand_area(points: Floats) -> Area:
    """Of a hand, from its palm's box, wrist (2) and root of the middle finger (4)."""
    (x, y), (width, height) = points[0].tolist(), points[1].tolist()
    angle = turned(points[2], points[4], math.pi / 2)
    x, y = x + 0.5 * height * math.sin(angle), y - 0.5 * height * math.cos(angle)
    return Area(x, y, 2.6 * max(width, height), angle)


def face_area(points: Floats) -> Area:
    """Of a face, from its box and the eyes (2, 3)."""
    x, y = points[0].tolist()
    return Area(x, y, 1.5 * max(points[1].tolist()), turned(points[2], points[3], 0.0))


def corrected(points: Floats, maps: NDArray[Any]) -> Floats:
    """Points (N, 2), as shares, moved to where the maps (h, w, N) of logits are hot around them."""
    height, width = maps.shape[:2]
    found = points.copy()
    for number, (x, y) in enumerate(points * (width, height)):
        column, row = int(x), int(y)
        if not (0 <= column < width and 0 <= row < height):
            continue
        left, top = max(0, column - WINDOW), max(0, row - WINDOW)
        near = maps[top : row + WINDOW + 1, left : column + WINDOW + 1, number]
        heat = 1 / (1 + np.exp(-near))
        if heat.max() < LEAST_SCORE:
            continue
        rows, columns = np.indices(heat.shape)
        found[number] = (
            ((columns + left) * heat).sum() / heat.sum() / width,
            ((rows + top) * heat).sum() / heat.sum() / height,
        )
    return found
