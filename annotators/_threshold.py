"""Black and white by a threshold, fixed or Otsu's (1979)."""

from __future__ import annotations

from .base import RGB8, Annotator, Param, Picture, Setting
from .pictures import as_rgb, lowest

OTSU = (0, 255)
"""Thresholds that leave the choice to Otsu's method."""


def threshold(image: RGB8, threshold: int) -> RGB8:
    """White where every channel of (H, W, 3) is above the threshold.

    As in Mikubill/sd-webui-controlnet, which has no Otsu.
    """
    return _split(lowest(image), threshold)


def binary(image: RGB8, threshold: int) -> RGB8:
    """White where the grey of (H, W, 3) is above the threshold.

    As in Fannovel16/comfyui_controlnet_aux.
    """
    import cv2

    return _split(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), threshold)


def _split(grey: Picture, threshold: int) -> RGB8:
    import cv2

    kind = cv2.THRESH_BINARY | (cv2.THRESH_OTSU if threshold in OTSU else 0)
    return as_rgb(cv2.threshold(grey, threshold, 255, kind)[1])


def _params(default: int, *also: str) -> dict[str, Setting]:
    help_ = "what is brighter becomes white; 0 and 255 leave the choice to Otsu's method"
    return {"threshold": Param(default, 0, 255, help_, also=also)}


ANNOTATOR = Annotator(
    name="threshold",
    title="Threshold",
    description="Black and white: white where every channel is above the threshold.",
    run=threshold,
    params=_params(127),
)
BINARY = Annotator(
    name="binary",
    title="Binary",
    description="Black and white: white where the brightness is above the threshold.",
    run=binary,
    params=_params(100, "bin_threshold"),
)
