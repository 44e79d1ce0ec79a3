"""What every annotator shares: its record, the check of its parameters, and pictures in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[Any]
"""(H, W, C) or (N, H, W, C), C 1 grey, 3 RGB or 4 RGBA, or (H, W); uint8, or float in [0, 1]."""

RGB8 = NDArray[np.uint8]
"""(H, W, 3) uint8, red first."""


class AnnotatorError(ValueError):
    """A picture, a parameter or a name that an annotator can't use; the message says what to do."""


@dataclass(frozen=True)
class Param:
    """One whole-number setting of an annotator, with both ends of its range allowed."""

    default: int
    min: int
    max: int
    help: str


@dataclass(frozen=True)
class Annotator:
    """One way to make hints, and everything that a node, a command line or a test needs to know.

    `run(image, **params)` takes one (H, W, 3) uint8 RGB picture, or (H, W, 4) RGBA if `reads_alpha`
    and the picture has an alpha channel, and gives (H, W, 3) uint8. It may rely on checked
    parameters, must leave `image` as it is, and must give the same hint for the same picture.
    """

    name: str
    title: str
    description: str
    run: Callable[..., RGB8]
    params: Mapping[str, Param]
    reads_alpha: bool = False

    def __call__(self, image: Picture, /, **params: int) -> RGB8:
        """The hint of a picture (H, W, 3), or the hints of a batch (N, H, W, 3), as uint8 RGB.

        Grey pictures are taken as RGB with equal channels, and RGBA is laid on white unless the
        annotator reads alpha itself.
        """
        settings = self._settings(params)
        pixels = _as_uint8(image)
        if pixels.shape[-1] == 4 and not self.reads_alpha:
            pixels = _on_white(pixels)
        if pixels.ndim == 3:
            return self.run(pixels, **settings)
        return np.stack([self.run(frame, **settings) for frame in pixels])

    def _settings(self, given: Mapping[str, int]) -> dict[str, int]:
        """All parameters: the given ones, checked, and the defaults of the others."""
        for name, value in given.items():
            if name not in self.params:
                raise AnnotatorError(
                    f"{self.name} has no parameter {name!r}. It has: {', '.join(self.params)}."
                )
            param = self.params[name]
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise AnnotatorError(f"{name} is {value!r}, but it has to be a whole number.")
            if not param.min <= value <= param.max:
                raise AnnotatorError(
                    f"{name} is {value}, but it has to be from {param.min} to {param.max}."
                )
        return {name: int(given.get(name, param.default)) for name, param in self.params.items()}


def _as_uint8(image: Picture) -> RGB8:
    """(..., H, W, 3 or 4) uint8 from any allowed picture; refuses the others with a sentence."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3, 4):
        raise AnnotatorError(
            f"The picture has the shape {pixels.shape}, but it has to be (height, width, channels) "
            "or (pictures, height, width, channels), with 1, 3 or 4 channels last."
        )
    if pixels.size == 0:
        raise AnnotatorError(f"The picture has the shape {pixels.shape}: there is nothing in it.")
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = _quantised(pixels)
    elif pixels.dtype != np.uint8:
        raise AnnotatorError(
            f"The picture's values are {pixels.dtype}; convert them to uint8 (0 to 255) "
            "or to floats from 0 to 1."
        )
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _quantised(pixels: Picture) -> RGB8:
    """[0, 1] to uint8, rounded, so that n / 255 gives n again in every float type."""
    if not np.isfinite(pixels).all():
        raise AnnotatorError(
            "The picture holds NaN or infinity: something before this step has failed."
        )
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise AnnotatorError(
            f"The picture's floats go from {low:g} to {high:g}, but they have to be from 0 to 1: "
            "divide by 255, or convert to uint8."
        )
    return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)


def _on_white(pixels: RGB8) -> RGB8:
    """(..., 4) RGBA laid on white: (..., 3) RGB."""
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
