"""Lightness alone, for nets that bring the colours."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param, Picture, Setting
from .pictures import as_rgb, highest


def recolor_luminance(image: RGB8, gamma_correction: float) -> RGB8:
    """The CIELAB lightness of (H, W, 3)."""
    import cv2

    return _with_gamma(cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0], gamma_correction)


def recolor_intensity(image: RGB8, gamma_correction: float) -> RGB8:
    """The strongest channel (HSV value) of (H, W, 3)."""
    return _with_gamma(highest(image), gamma_correction)


def _with_gamma(grey: Picture, gamma: float) -> RGB8:
    """Cut off to whole numbers as Mikubill/sd-webui-controlnet does, which mixes red with blue."""
    import cv2

    values = (np.arange(256, dtype=np.float32) / 255.0) ** gamma
    return as_rgb(cv2.LUT(grey, (values * 255.0).clip(0, 255).astype(np.uint8)))


def _params() -> dict[str, Setting]:
    help_ = "above 1 darkens the middle greys, below 1 brightens them"
    return {"gamma_correction": Param(1.0, 0.1, 2.0, help_)}


LUMINANCE = Annotator(
    name="recolor_luminance",
    title="Recolor Luminance",
    description="How light the picture looks, without colours, for nets that colour it.",
    run=recolor_luminance,
    params=_params(),
)
INTENSITY = Annotator(
    name="recolor_intensity",
    title="Recolor Intensity",
    description="The strongest channel of each pixel, without colours, for nets that colour it.",
    run=recolor_intensity,
    params=_params(),
)
