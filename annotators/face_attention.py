"""MediaPipe's face mesh with attention (Grishchenko et al., 2020): finer lips, eyes and irises.

It looks at a face, then three times closer at what it saw of the lips and either eye. What lies
between, ai-edge-litert can't run; it is done here, after the operations of google-ai-edge/mediapipe
(mediapipe/util/tflite/operations) and its graph TensorsToFaceLandmarksWithAttention.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pose_blaze import Floats
from .tflite import Net, network, part

MESH, IRIS = 468, 5
"""Points of the mesh, and of each iris behind them, its middle first."""
POINTS = MESH + 2 * IRIS

_FACE = "output_mesh", "conv_faceflag", "p_re_lu_3"
_SIGHT = "transform_tensor_bilinear_v2"
_FINER = "conv_lips", "conv_left_eye", "conv_left_iris", "conv_right_eye", "conv_right_iris"
CELLS = 16
"""Side of what it looks at closer."""
MARGIN = 1.5
STRIDE = 4
"""Pixels of the input to a cell of what it saw."""

_LIPS = (
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409),
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415),
    *(76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306, 184, 74, 73, 72, 11, 302, 303, 304, 408),
    *(62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292, 183, 42, 41, 38, 12, 268, 271, 272, 407),
)
# As MediaPipe says it, the left eye is on the left of the picture.
_LEFT_EYE = (
    *(33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173, 130, 25, 110),
    *(24, 23, 22, 26, 112, 243, 247, 30, 29, 27, 28, 56, 190, 226, 31, 228, 229, 230, 231, 232),
    *(233, 244, 113, 225, 224, 223, 222, 221, 189, 35, 124, 46, 53, 52, 65, 143, 111, 117, 118),
    *(119, 120, 121, 128, 245, 156, 70, 63, 105, 66, 107, 55, 193),
)
_RIGHT_EYE = (
    *(263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398, 359, 255),
    *(339, 254, 253, 252, 256, 341, 463, 467, 260, 259, 257, 258, 286, 414, 446, 261, 448, 449),
    *(450, 451, 452, 453, 464, 342, 445, 444, 443, 442, 441, 413, 265, 353, 276, 283, 282, 295),
    *(372, 340, 346, 347, 348, 349, 350, 357, 465, 383, 300, 293, 334, 296, 336, 285, 417),
)


@dataclass(frozen=True)
class Sight:
    """A turned rectangle: a point of it, in cells, is at `turn @ point + start` of the features."""

    turn: Floats
    start: Floats

    def of(self, features: Floats) -> Floats:
        """What is in it, (CELLS, CELLS, C), of (h, w, C); 0 beyond."""
        down, across = np.indices((CELLS, CELLS)) + 0.5
        places = self.places(np.stack([across.ravel(), down.ravel()], axis=-1)) - 0.5
        found = between(features, places)
        return found.reshape(CELLS, CELLS, -1).astype(np.float32)

    def places(self, points: Floats) -> Floats:
        """Where points (N, 2) are."""
        return np.asarray(points @ self.turn.T + self.start)


def sight(points: Floats, left: Floats, right: Floats) -> Sight:
    """Around points (N, 2), with a margin, turned so that left and right are level."""
    across, down = right - left
    angle = np.arctan2(down, across)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    level = points @ turn
    low, high = level.min(axis=0), level.max(axis=0)
    scaled = turn * ((high - low) * MARGIN / CELLS)
    return Sight(scaled, turn @ ((low + high) / 2) - scaled @ (CELLS / 2, CELLS / 2))


def between(features: Floats, places: Floats) -> Floats:
    """Values (N, C) at places (N, 2) between the cells of (h, w, C); 0 beyond them."""
    height, width = features.shape[:2]
    seen = (places >= 0) & (places <= (width - 1, height - 1))
    within = np.all(seen, axis=1, keepdims=True)
    places = np.where(within, places, 0)
    column, row = np.floor(places).astype(int).T
    across, down = (places - np.floor(places)).T[..., None]
    after, below = np.minimum(column + 1, width - 1), np.minimum(row + 1, height - 1)
    upper = (1 - across) * features[row, column] + across * features[row, after]
    lower = (1 - across) * features[below, column] + across * features[below, after]
    return np.asarray(((1 - down) * upper + down * lower) * within)


def opened(model: bytes) -> Net:
    """The network of a file's content: (192, 192, 3) to its points, (478 * 3), and how sure it is.

    The points are x, y, 0 in pixels of its input; how sure is a logit.
    """
    face = network(part(model, ["input_1"], _FACE))
    closer = network(part(model, [_SIGHT, f"{_SIGHT}_1", f"{_SIGHT}_2"], _FINER))

    def run(pixels: Floats) -> list[Floats]:
        mesh, sure, features = face(pixels)
        points = np.zeros((POINTS, 3), np.float32)
        points[:MESH, :2] = mesh.reshape(MESH, 3)[:, :2]
        cells = points[:, :2] / STRIDE
        lips = sight(cells[[*_LIPS]], cells[61], cells[291])
        left = sight(cells[[*_LEFT_EYE]], cells[33], cells[133])
        right = sight(cells[[*_RIGHT_EYE]], cells[362], cells[263])
        finer = closer(*(one.of(features) for one in (lips, left, right)))
        for numbers, one, values in (
            (_LIPS, lips, finer[0]),
            (_LEFT_EYE, left, finer[1]),
            (range(MESH, MESH + IRIS), left, finer[2]),
            (_RIGHT_EYE, right, finer[3]),
            (range(MESH + IRIS, POINTS), right, finer[4]),
        ):
            points[[*numbers], :2] = one.places(values.reshape(-1, 2) / STRIDE) * STRIDE
        return [points.ravel(), sure]

    return run
