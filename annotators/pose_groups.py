"""Which points belong to which person: part affinity fields (Cao et al., 2017).

After `Body.__call__` of controlnet_aux (open_pose/body.py), and equal to it bit for bit; here all
pairs of a limb are weighed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .keypoints import BODY
from .pose_maps import Points

LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11)),
    *((11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17)),
)
"""The points that a limb joins; the last two, from shoulder to ear, never begin a person."""
FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
"""The map with x of each limb's direction; that with y is the next one."""

SAMPLES = 10
LEAST_ALONG = 0.05
LEAST_SHARE = 0.8
LEAST_POINTS = 4
LEAST_MEAN = 0.4

_TOTAL, _COUNT = BODY, BODY + 1
_ROW = BODY + 2


def people(
    points: Sequence[Points],
    fields: NDArray[Any],
    height: int,
    enlarge: Callable[[NDArray[Any]], NDArray[Any]],
) -> NDArray[np.float64]:
    """Who is there, (P, 18): for each person the index of each point among all, -1 for none.

    points: the peaks of each of the 18 maps; all are counted through in that order.
    fields: the maps (38, h, w) of the limbs' directions, at the network's size.
    height: of the picture; a limb longer than half of it counts less.
    enlarge: brings a map to the picture's size; called only for those that are needed.
    """
    first = np.cumsum([0, *(len(found) for found in points)])
    scores = np.concatenate([found[:, 2] for found in points])
    rows = np.empty((0, _ROW))
    for number, ((start, end), channel) in enumerate(zip(LIMBS, FIELDS, strict=True)):
        if not len(points[start]) or not len(points[end]):
            continue
        along = enlarge(fields[channel]), enlarge(fields[channel + 1])
        for a, b, score in _pairs(points[start], points[end], along, height):
            pair = (start, a + first[start]), (end, b + first[end])
            rows = _joined(rows, pair, score, scores, may_begin=number < 17)
    enough = (rows[:, _COUNT] >= LEAST_POINTS) & (rows[:, _TOTAL] / rows[:, _COUNT] >= LEAST_MEAN)
    return rows[enough, :BODY]


def _pairs(
    starts: Points, ends: Points, fields: tuple[NDArray[Any], NDArray[Any]], height: int
) -> list[tuple[int, int, float]]:
    """Which start goes with which end, each in one pair at most, the surest first."""
    gap = ends[None, :, :2] - starts[:, None, :2]  # (A, B, 2)
    length = np.maximum(0.001, np.sqrt(gap[..., 0] * gap[..., 0] + gap[..., 1] * gap[..., 1]))
    direction = gap / length[..., None]
    step = np.arange(SAMPLES) / (SAMPLES - 1)
    places = starts[:, None, None, :2] + step[:, None] * gap[:, :, None]  # (A, B, 10, 2)
    x, y = np.moveaxis(np.rint(places).astype(np.intp), -1, 0)
    along = fields[0][y, x].astype(np.float64) * direction[..., 0, None]
    along += fields[1][y, x].astype(np.float64) * direction[..., 1, None]
    # One by one, as the reference adds; numpy's own sum may take another order.
    mean = sum(along[..., sample] for sample in range(SAMPLES)) / SAMPLES
    score = mean + np.minimum(0.5 * height / length - 1, 0)
    enough = (along > LEAST_ALONG).sum(axis=-1) > LEAST_SHARE * SAMPLES
    candidates = np.argwhere(enough & (score > 0))
    order = np.argsort(-score[tuple(candidates.T)], kind="stable")
    taken: list[tuple[int, int, float]] = []
    free_starts, free_ends = np.ones(len(starts), bool), np.ones(len(ends), bool)
    for a, b in candidates[order]:
        if free_starts[a] and free_ends[b]:
            free_starts[a] = free_ends[b] = False
            taken.append((int(a), int(b), float(score[a, b])))
    return taken


def _joined(
    rows: NDArray[np.float64],
    pair: tuple[tuple[int, int], tuple[int, int]],
    score: float,
    scores: NDArray[np.float64],
    *,
    may_begin: bool,
) -> NDArray[np.float64]:
    """The people with one more limb: to whom it belongs, or as someone new."""
    (start, a), (end, b) = pair
    found = np.flatnonzero((rows[:, start] == a) | (rows[:, end] == b))
    if not len(found):
        return np.vstack([rows, _begun(pair, score, scores)]) if may_begin else rows
    one = found[0]
    if len(found) > 1:
        other = found[1]
        if not ((rows[one, :BODY] >= 0) & (rows[other, :BODY] >= 0)).any():
            rows[one, :BODY] += rows[other, :BODY] + 1
            rows[one, BODY:] += rows[other, BODY:]
            rows[one, _TOTAL] += score
            return np.delete(rows, other, axis=0)
    elif rows[one, end] == b:
        return rows
    rows[one, end] = b
    rows[one, _COUNT] += 1
    rows[one, _TOTAL] += scores[b] + score
    return rows


def _begun(
    pair: tuple[tuple[int, int], tuple[int, int]], score: float, scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    row = np.full(_ROW, -1.0)
    for part, point in pair:
        row[part] = point
    row[_COUNT] = 2
    row[_TOTAL] = scores[pair[0][1]] + scores[pair[1][1]] + score
    return row
