"""Poses by name: who is in a picture, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import _animal_pose, _blazepose, _dwpose, _openpose
from .base import BATCH_PIXELS
from .errors import AnnotatorError
from .keypoints import Frame
from .pictures import Picture, as_uint8, on_white, resized, working_size
from .progress import PICTURES, tell
from .settings import meant

DETECTORS: Mapping[str, Callable[..., list[Frame]]] = {
    "openpose": _openpose.detect,
    "dwpose": _dwpose.detect,
    "blazepose": _blazepose.detect,
    "animal_pose": _animal_pose.detect,
}
"""Each takes (N, H, W, 3) uint8 and the keywords hands, face and device."""

RESOLUTION = 512


def detect_pose(
    image: Picture,
    *,
    kind: str = "openpose",
    body: bool = True,
    hands: bool = True,
    face: bool = True,
    device: Any = None,
    resolution: int = RESOLUTION,
) -> list[Frame]:
    """Who is in a picture (H, W, 3) or in each of (N, H, W, 3): one frame for each picture.

    The points are in pixels of the picture as it was given. kind: one of DETECTORS. body, hands,
    face: what to give; the others stay empty. resolution: the short side at which people are looked
    for; 0 is the picture as it is. Raises AnnotatorError.
    """
    if kind not in DETECTORS:
        raise AnnotatorError(
            f"There is no pose detector {kind!r}{meant(kind, DETECTORS)} "
            f"The detectors are: {', '.join(DETECTORS)}."
        )
    pixels = as_uint8(image)
    if pixels.shape[-1] == 4:
        pixels = on_white(pixels)
    pictures = pixels[None] if pixels.ndim == 3 else pixels
    height, width = pictures.shape[1:3]
    size = working_size(height, width, resolution)
    step = max(1, BATCH_PIXELS // (size[0] * size[1]))
    found: list[Frame] = []
    for start in range(0, len(pictures), step):
        tell(PICTURES, start, len(pictures))
        piece = np.stack([resized(one, *size) for one in pictures[start : start + step]])
        found += DETECTORS[kind](piece, hands=hands, face=face, device=device)
    tell(PICTURES, len(pictures), len(pictures))
    return [one.resized(width, height).only(body=body, hands=hands, face=face) for one in found]
