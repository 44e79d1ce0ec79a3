"""How well a generated picture follows its hint."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def edge_f1(edges: Array, hint: Array, *, tolerance: float = 2.0) -> float:
    """F1 of two edge maps (H, W), true where an edge is, matched within `tolerance` pixels.

    It is 1 where both are empty, and 0 where one of them is.
    """
    if not edges.any() or not hint.any():
        return float(edges.any() == hint.any())
    precision = float((_distance_to(hint)[edges] <= tolerance).mean())
    recall = float((_distance_to(edges)[hint] <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def mask_iou(mask: Array, hint: Array) -> float:
    """Intersection over union of two boolean masks (H, W); 1 where both are empty."""
    union = (mask | hint).sum()
    return float((mask & hint).sum() / union) if union else 1.0


def _distance_to(edges: Array) -> Array:
    """Euclidean distance of every pixel to the nearest edge pixel."""
    import cv2

    distance: Array = cv2.distanceTransform(
        np.where(edges, 0, 255).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return distance
