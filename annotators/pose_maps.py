"""Points in OpenPose's maps: peaks of a body's, the one point of a hand's or a face's.

After `Body.__call__`, `Hand.__call__` and `Face.compute_peaks_from_heatmaps` of controlnet_aux
(open_pose), and equal to them bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[Any]
"""(H, W) floats, high where a point is."""
Points = NDArray[np.float64]
"""(N, 3): x and y in pixels and the map's value there; NaN where nothing was found."""

STRIDE = 8
SIGMA = 3
REACH = 4 * SIGMA
BODY_THRESHOLD = 0.1
HAND_THRESHOLD = 0.05
FACE_THRESHOLD = 0.05


def fitted(pixels: NDArray[Any], height: float, width: float) -> NDArray[Any]:
    """(H, W) or (H, W, C) at another size: area means when it shrinks, Lanczos when it grows.

    Sizes may have a fraction, which counts for what "grows" means and is then cut off.
    """
    import cv2

    grows = (height + width) / (pixels.shape[0] + pixels.shape[1]) >= 1
    kernel = cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA
    size = max(1, int(width)), max(1, int(height))
    return np.asarray(cv2.resize(pixels, size, interpolation=kernel))


def enlarged(small: Map, worked: tuple[int, int], size: tuple[int, int]) -> Map:
    """A map of a network at the size (height, width) of the picture.

    worked: height and width of the picture that the network saw, without its padding.
    """
    whole = fitted(small, small.shape[0] * STRIDE, small.shape[1] * STRIDE)
    return fitted(whole[: worked[0], : worked[1]], *size)


def peaks(heat: Map) -> Points:
    """All points in a map of the body, from the top to the bottom."""
    smooth, (top, left) = _blurred(heat, BODY_THRESHOLD)
    around = np.pad(smooth, 1)
    is_peak = smooth > BODY_THRESHOLD
    for neighbour in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
        is_peak &= smooth >= neighbour
    y, x = np.nonzero(is_peak)
    return np.stack([x + left, y + top, heat[y + top, x + left]], axis=-1).astype(np.float64)


def hand_point(heat: Map) -> Points:
    """The highest place in the spot of a hand's map that has the most in it, as (3,)."""
    import cv2

    smooth, (top, left) = _blurred(heat, HAND_THRESHOLD)
    hot = (smooth > HAND_THRESHOLD).astype(np.uint8)
    if not hot.any():
        return np.full(3, np.nan)
    # This way of labelling counts the spots from the top, so that the first one wins a tie.
    count, labels = cv2.connectedComponentsWithAlgorithm(hot, 8, cv2.CV_32S, cv2.CCL_WU)
    here = heat[top : top + hot.shape[0], left : left + hot.shape[1]]
    sums = [np.sum(here[labels == spot]) for spot in range(1, count)]
    spot = np.zeros(heat.shape, heat.dtype)
    inside = labels == int(np.argmax(sums)) + 1
    spot[top : top + hot.shape[0], left : left + hot.shape[1]][inside] = here[inside]
    y, x = divmod(int(spot.argmax()), heat.shape[1])
    return np.array([x, y, spot[y, x]], np.float64)


def face_points(heats: NDArray[Any]) -> Points:
    """The highest place of each of a face's maps (N, H, W), as (N, 3)."""
    flat = heats.reshape(len(heats), -1)
    places = flat.argmax(axis=1)
    values = flat[np.arange(len(flat)), places]
    y, x = np.divmod(places, heats.shape[2])
    found = np.stack([x, y, values], axis=-1).astype(np.float64)
    found[values <= FACE_THRESHOLD] = np.nan
    return found


def _blurred(heat: Map, above: float) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """The part of the blurred map where it can be above a value, and where that part begins.

    The values are those of scipy.ndimage.gaussian_filter(heat, 3): the same sums in the same order.
    A mean is above a value only where something in its reach is.
    """
    y, x = np.nonzero(heat > above)
    if not len(y):
        return np.zeros((0, 0)), (0, 0)
    top, bottom = _reached(y, heat.shape[0])
    left, right = _reached(x, heat.shape[1])
    rows = _mirrored(top - REACH, bottom + REACH, heat.shape[0])
    columns = _mirrored(left - REACH, right + REACH, heat.shape[1])
    window = heat[np.ix_(rows, columns)].astype(np.float64)
    return _means(_means(window).T).T, (top, left)


def _reached(hot: NDArray[np.intp], size: int) -> tuple[int, int]:
    """Begin and end, along one side of a map, of what has something hot within reach."""
    return max(0, int(hot.min()) - REACH), min(size, int(hot.max()) + REACH + 1)


def _mirrored(begin: int, end: int, size: int) -> NDArray[np.intp]:
    """Indices from begin to end, those outside of [0, size) mirrored with the edge repeated."""
    turn = np.arange(begin, end) % (2 * size)
    return np.minimum(turn, 2 * size - 1 - turn)


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means down the columns, (H, W) to (H - 24, W), added up from the outermost."""
    offsets = np.arange(-REACH, REACH + 1)
    weights = np.exp(-0.5 / (SIGMA * SIGMA) * offsets**2)
    weights /= weights.sum()
    count = len(values) - 2 * REACH
    total: NDArray[np.float64] = values[REACH : REACH + count] * weights[REACH]
    for away in range(REACH, 0, -1):
        before = values[REACH - away : REACH - away + count]
        after = values[REACH + away : REACH + away + count]
        total += (before + after) * weights[REACH - away]
    return total
