"""From a network's depth or normals to the hint: how near and far become grey levels.

All of it works on one picture's numbers, in float32, as the references do, and truncates to uint8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .pictures import RGB8

Depth = NDArray[np.float32]
"""(H, W); what larger numbers mean is up to the network."""


def in_unit(depth: Depth) -> Depth:
    """From 0 to 1 in the picture; 0 everywhere where all depths are equal."""
    low = depth.min()
    span = depth.max() - low
    if span == 0:
        return np.zeros_like(depth)
    share: Depth = (depth - low) / span
    return share


def near_is_white(nearness: Depth) -> NDArray[np.uint8]:
    """(H, W) uint8 of a network whose larger numbers are nearer, its least black.

    As Depth Anything's app.py and huggingface/controlnet_aux `MidasDetector` do.
    """
    return (in_unit(nearness) * np.float32(255)).astype(np.uint8)


def far_is_black(distance: Depth, *, gamma: bool = False) -> NDArray[np.uint8]:
    """(H, W) uint8 of a network of distances, spread from the 2nd to the 85th percentile.

    What is nearer than the first is white, what is farther than the second black. `gamma` raises
    it to 2.2, which darkens the middle. As huggingface/controlnet_aux `ZoeDetector` does.
    """
    nearest, farthest = np.percentile(distance, 2), np.percentile(distance, 85)
    if farthest == nearest:
        return np.zeros(distance.shape, np.uint8)
    shade = distance - nearest
    shade /= farthest - nearest
    shade = np.float32(1) - shade
    if gamma:
        shade = np.power(np.maximum(shade, 0), 2.2)
    return (shade * 255).clip(0, 255).astype(np.uint8)


def normals(nearness: Depth, *, steepness: float, background: float) -> RGB8:
    """(H, W, 3) uint8 normals by the slope of a depth map; blue looks at the viewer.

    steepness: the length of the part that looks at the viewer: larger is flatter.
    background: what is farther than this part of the range counts as flat.
    As huggingface/controlnet_aux `MidasDetector` does, red and blue as it puts them.
    """
    import cv2

    x = cv2.Sobel(nearness, cv2.CV_32F, 1, 0, ksize=3)
    y = cv2.Sobel(nearness, cv2.CV_32F, 0, 1, ksize=3)
    flat = in_unit(nearness) < background
    x[flat] = 0
    y[flat] = 0
    found = np.stack([x, y, np.ones_like(x) * steepness], axis=2)
    found /= np.sum(found**2.0, axis=2, keepdims=True) ** 0.5
    pixels = (found * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[:, :, ::-1])
