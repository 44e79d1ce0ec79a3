"""A picture as a grid of plain colours."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param


def color_grid(image: RGB8, cell: int) -> RGB8:
    """(H, W, 3) in squares of one colour, as TencentARC/T2I-Adapter's colour adapter has it."""
    import cv2

    height, width = image.shape[:2]
    grid = (max(1, width // cell), max(1, height // cell))
    small = cv2.resize(image, grid, interpolation=cv2.INTER_CUBIC)
    squares = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(squares, np.uint8)


ANNOTATOR = Annotator(
    name="color_grid",
    title="Color Grid",
    description="The picture as a grid of plain colours, for the colour T2I-Adapter.",
    run=color_grid,
    params={"cell": Param(64, 1, 512, "size of a square, in pixels")},
)
