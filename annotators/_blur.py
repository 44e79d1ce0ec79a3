"""A blurred picture."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param


def blur(image: RGB8, sigma: float) -> RGB8:
    """(H, W, 3) under a Gaussian, as Mikubill/sd-webui-controlnet `blur_gaussian`."""
    import cv2

    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)


ANNOTATOR = Annotator(
    name="blur",
    title="Blur",
    description="The picture blurred, for blur and tile ControlNets.",
    run=blur,
    params={"sigma": Param(9.0, 0.01, 64.0, "how strongly, in pixels", step=0.1)},
)
