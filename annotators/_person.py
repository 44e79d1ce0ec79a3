"""Where people are, by MediaPipe's selfie segmentation: a white mask on black."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import RGB8, Annotator
from .pictures import as_rgb
from .tflite import networks, of_wheel

SIDE = 256
WEIGHTS = of_wheel(
    "selfie_segmentation",
    "selfie_segmentation",
    249505,
    "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
)


def person(image: RGB8, device: Any) -> RGB8:
    """The mask (H, W, 3) of a picture (H, W, 3); grey where it isn't sure. On the CPU always."""
    import cv2

    height, width, _ = image.shape
    square = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    with networks((WEIGHTS,), device) as nets:
        found = nets[WEIGHTS](square.astype(np.float32) / 255)[0]
    mask = cv2.resize(found[..., 0], (width, height), interpolation=cv2.INTER_LINEAR)
    return as_rgb((mask * 255).round().clip(0, 255).astype(np.uint8))


ANNOTATOR = Annotator(
    name="person",
    title="Person (MediaPipe)",
    description="A mask of the people in the picture, white on black. Needs ai-edge-litert.",
    run=person,
    resolution=512,
    weights=(WEIGHTS,),
)
