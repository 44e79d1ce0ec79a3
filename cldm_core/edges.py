"""Drawings of one-pixel lines at another size: the lines stay whole and one pixel wide."""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]
Plane: TypeAlias = NDArray[np.float32]

DENSEST_DRAWING = 0.4
"""The largest share of a picture that lines cover; beyond it lies a texture."""
SMOOTHING = 1.0
"""Deviation, in pixels, of the blur that tells the middle of a line from its stairs."""
LEVELS = 12
"""How many steps thinning takes from the rim of a line to its middle."""
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
"""The eight neighbours, clockwise."""


def is_one_pixel_drawing(drawing: Mask) -> bool:
    """Whether more than half of the drawing is too thin to hold a 3x3 square.

    The rule of sd-webui-controlnet (scripts/controlnet.py, high_quality_resize), for drawings that
    leave most of the picture free.
    """
    import cv2

    if not 0 < drawing.mean() <= DENSEST_DRAWING:
        return False
    opened = cv2.morphologyEx(drawing.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return bool(2 * np.count_nonzero(opened) < np.count_nonzero(drawing))


def resize_lines(drawing: Mask, height: int, width: int) -> Mask:
    """A drawing (H, W) of one-pixel lines as (height, width), again of one-pixel lines.

    Where it grows, there are as many lines and loops as before; where it shrinks, lines join
    only where less than a pixel is left between them. No line breaks; ends stay where they are.
    """
    lines = thinned(drawing, _smoothed(drawing), np.zeros_like(drawing), keep_ends=True)
    size = (height, width)
    weights = _resized(_smoothed(lines), size)
    return thinned(_covered(lines, size), weights, _placed(_ends(lines), size))


def thinned(drawing: Mask, weights: Plane, fixed: Mask, *, keep_ends: bool = False) -> Mask:
    """The drawing (H, W) without the pixels that can go and leave the same lines and loops.

    Pixels of small weight go first, so that what stays runs where the weights are large; `fixed`
    ones stay, and with `keep_ends` so do the ends of lines. Lines touch at corners too.

    Homotopic thinning: a pixel may go where the lines around it stay connected without it. Of
    every 2x2 pixels one is looked at in turn, so that no two neighbours go at once.
    """
    if not (drawing & ~fixed).any():
        return drawing.copy()
    wide = drawing.shape[1] + 2
    state = np.pad(drawing, 1).ravel().astype(np.uint8)
    rows, columns = np.nonzero(drawing & ~fixed)
    order = weights[rows, columns]
    places = (rows + 1) * wide + columns + 1
    turns = (rows % 2) * 2 + columns % 2
    ring = [dy * wide + dx for dy, dx in RING]
    may_go = _may_go(keep_ends)
    for level in np.linspace(order.min(), order.max(), LEVELS + 1)[1:]:
        low = order <= level
        groups = [places[low & (turns == turn)] for turn in range(4)]
        while True:
            left = [_without(state, group, ring, may_go) for group in groups]
            if sum(map(len, left)) == sum(map(len, groups)):
                break
            groups = left
        stays = state[places] > 0
        places, order, turns = places[stays], order[stays], turns[stays]
    return np.asarray(state.reshape(-1, wide)[1:-1, 1:-1] > 0)


def sources(old: int, new: int) -> NDArray[np.intp]:
    """In which of `old` pixels each of `new` has its middle, on a line of the same length."""
    return np.asarray((2 * np.arange(new) + 1) * old // (2 * new), dtype=np.intp)


def _without(
    state: NDArray[np.uint8], places: NDArray[np.intp], ring: list[int], may_go: Mask
) -> NDArray[np.intp]:
    """Takes those of `places` that may go out of `state`; returns the others."""
    around = np.zeros(len(places), np.uint8)
    for bit, step in enumerate(ring):
        around |= state[places + step] << bit
    goes = may_go[around]
    state[places[goes]] = 0
    return places[~goes]


@cache
def _may_go(keep_ends: bool) -> Mask:
    """For each of the 256 surroundings of a pixel, bit i neighbour RING[i]: whether it may go."""
    table = np.zeros(256, np.bool_)
    for code in range(256):
        free = [not code >> i & 1 for i in range(8)]
        # The crossing number of Yokoi: how many lines the pixel joins, or 0 inside.
        joins = sum(free[i] and not (free[(i + 1) % 8] and free[(i + 2) % 8]) for i in (1, 3, 5, 7))
        end = free.count(False) == 1
        table[code] = joins == 1 and not (keep_ends and end)
    return table


def _ends(lines: Mask) -> Mask:
    """Pixels with one neighbour at most."""
    import cv2

    kernel = np.ones((3, 3), np.float32)
    count = cv2.filter2D(lines.astype(np.float32), -1, kernel, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(lines & (count < 2.5))


def _smoothed(drawing: Mask) -> Plane:
    import cv2

    return np.asarray(
        cv2.GaussianBlur(drawing.astype(np.float32), (0, 0), SMOOTHING), dtype=np.float32
    )


def _resized(plane: Plane, size: tuple[int, int]) -> Plane:
    import cv2

    return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _covered(lines: Mask, size: tuple[int, int]) -> Mask:
    """All pixels of the new size that a line runs through."""
    return _axis_covered(_axis_covered(lines, size[0]).T, size[1]).T


def _axis_covered(lines: Mask, length: int) -> Mask:
    old = len(lines)
    if length >= old:
        return np.asarray(lines[sources(old, length)])
    starts = np.searchsorted(sources(length, old), np.arange(length))
    return np.asarray(np.maximum.reduceat(lines, starts, axis=0))


def _placed(points: Mask, size: tuple[int, int]) -> Mask:
    """The points at the new size, one pixel each."""
    result = np.zeros(size, np.bool_)
    rows, columns = np.nonzero(points)
    rows = sources(size[0], points.shape[0])[rows]
    result[rows, sources(size[1], points.shape[1])[columns]] = True
    return result
