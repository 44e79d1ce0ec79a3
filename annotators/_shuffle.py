"""A picture whose parts flow elsewhere: colours and style without the composition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import RGB8, Annotator, AnnotatorError, Param

GRAIN = 256
"""Size of the swirls, in pixels."""
MOST = 2**15 - 2
"""Pixels at a side that cv2.remap can take."""


def shuffle(image: RGB8, seed: int) -> RGB8:
    """(H, W, 3) moved along a smooth random flow, as in lllyasviel/ControlNet-v1-1-nightly.

    Equal to Fannovel16/comfyui_controlnet_aux for the same seed; there 0 means no seed. Raises
    AnnotatorError where a side has more than MOST pixels.
    """
    import cv2

    random = np.random.default_rng(seed)
    height, width = image.shape[:2]
    if max(height, width) > MOST:
        raise AnnotatorError(
            f"The picture has {width} x {height} pixels, but shuffle takes {MOST} at a side: lower "
            "the resolution, or crop the picture."
        )
    across = _noise(random, height, width) * float(width - 1)
    down = _noise(random, height, width) * float(height - 1)
    flow = across.astype(np.float32), down.astype(np.float32)
    return np.asarray(cv2.remap(image, *flow, cv2.INTER_LINEAR), np.uint8)


def _noise(random: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """(H, W) in [0, 1], smooth, with both ends reached; 0 where there is but one pixel."""
    import cv2

    dots = random.uniform(0, 1, (height // GRAIN + 2, width // GRAIN + 2, 1))
    size = (width + 2 * GRAIN, height + 2 * GRAIN)
    smooth = cv2.resize(dots, size, interpolation=cv2.INTER_CUBIC)
    noise = smooth[GRAIN : GRAIN + height, GRAIN : GRAIN + width]
    noise = noise - noise.min()
    return np.asarray(noise / (noise.max() or 1.0))


ANNOTATOR = Annotator(
    name="shuffle",
    title="Content Shuffle",
    description="The picture's parts swirled elsewhere, for a shuffle ControlNet that takes over "
    "colours and style but not the composition.",
    run=shuffle,
    params={"seed": Param(0, 0, 2**32 - 1, "each seed swirls in another way; 0 is a seed too")},
)
