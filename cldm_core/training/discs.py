"""Where the disc is in a picture of the circle data set, drawn or sampled."""

from __future__ import annotations

import numpy as np

from ..pipeline import Picture


def disc_of(picture: Picture) -> Picture:
    """What stands out from the background, (H, W, 3) uint8, white on black.

    The background is the median colour of the picture's edge; how far from it the disc begins is
    Otsu's threshold (1979).
    """
    import cv2

    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    distance = np.linalg.norm(picture.astype(np.float32) - np.median(edge, axis=0), axis=-1)
    scaled = (distance / max(1.0, float(distance.max())) * 255).round().astype(np.uint8)
    _, mask = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.repeat(mask[..., None], 3, axis=-1)
