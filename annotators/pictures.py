"""Pictures in and out: what is taken, what is refused, and the working resolution."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import AnnotatorError

Item = TypeVar("Item")
Result = TypeVar("Result")

Picture = NDArray[Any]
"""(H, W, C) or (N, H, W, C), C 1 grey, 3 RGB or 4 RGBA, or (H, W); uint8, or float in [0, 1]."""

RGB8 = NDArray[np.uint8]
"""(H, W, 3) uint8, red first."""

Mask = NDArray[np.float32]
"""(H, W) in [0, 1]; 1 is what is meant."""

MOST_PIXELS = 16384 * 16384
"""A working picture with more pixels is refused: it is a slip, such as a strip one pixel high."""


def as_uint8(image: Picture) -> RGB8:
    """(..., H, W, 3 or 4) uint8 from any allowed picture; refuses the others with a sentence."""
    try:
        pixels = np.asarray(image)
    except ValueError:  # of a list
        raise AnnotatorError(
            "The pictures of a batch have to be of one size: give them one by one, or resize them."
        ) from None
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
        pixels = _bytes(pixels)
    elif pixels.dtype != np.uint8:
        raise AnnotatorError(
            f"The picture's values are {pixels.dtype}; convert them to uint8 (0 to 255) "
            "or to floats from 0 to 1."
        )
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _bytes(values: Picture) -> RGB8:
    """Floats in [0, 1] as bytes, one picture after the other: what lies between stays small."""
    found = np.empty(values.shape, np.uint8)
    many = values.ndim == 4
    for one, place in zip(values, found, strict=True) if many else [(values, found)]:
        scaled = np.multiply(_checked(one, "picture"), 255, dtype=np.float32)
        place[...] = np.rint(scaled, out=scaled)
    return found


def as_masks(mask: Picture, count: int) -> list[Mask]:
    """`count` masks from (H, W) or (N, H, W): bool, uint8, or floats in [0, 1]; one serves all."""
    values = np.asarray(mask)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.size == 0:
        raise AnnotatorError(
            f"The mask has the shape {np.shape(mask)}, but it has to be (height, width) or "
            "(pictures, height, width)."
        )
    if len(values) not in (1, count):
        raise AnnotatorError(
            f"There are {len(values)} masks for {count} pictures: give one mask to all, or one to "
            "each."
        )
    if values.dtype == np.uint8:
        values = values / np.float32(255)
    elif np.issubdtype(values.dtype, np.floating):
        values = _checked(values, "mask")
    elif values.dtype != np.bool_:
        raise AnnotatorError(
            f"The mask's values are {values.dtype}; convert them to uint8 (0 to 255), to bool, "
            "or to floats from 0 to 1."
        )
    values = values.astype(np.float32)
    return [values[number % len(values)] for number in range(count)]


def _checked(values: Picture, what: str) -> Picture:
    """Floats in [0, 1]; refuses others. n / 255 gives n again in every float type."""
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # both are NaN where one value is
        raise AnnotatorError(
            f"The {what} holds NaN or infinity: something before this step has failed."
        )
    if low < 0 or high > 1:
        raise AnnotatorError(
            f"The {what}'s floats go from {low:g} to {high:g}, but they have to be from 0 to 1: "
            "divide by 255, or convert to uint8."
        )
    return values


def on_white(pixels: RGB8) -> RGB8:
    """(..., 4) RGBA laid on white: (..., 3) RGB."""
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def as_rgb(grey: Picture) -> RGB8:
    """(H, W) or (N, H, W) uint8 with equal channels, (..., 3), in memory of its own."""
    import cv2

    rgb = np.empty((*grey.shape, 3), np.uint8)

    def widen(pair: tuple[Picture, Picture]) -> None:
        cv2.cvtColor(pair[0], cv2.COLOR_GRAY2RGB, dst=pair[1])

    many = grey.ndim == 3
    each(widen, zip(grey, rgb, strict=True) if many else [(grey, rgb)])
    return rgb


def lowest(pixels: Picture) -> Picture:
    """(H, W): the least of the three channels of (H, W, 3)."""
    import cv2

    red, green, blue = cv2.split(pixels)
    return np.asarray(cv2.min(cv2.min(red, green), blue))


def highest(pixels: Picture) -> Picture:
    """(H, W): the most of the three channels of (H, W, 3)."""
    import cv2

    red, green, blue = cv2.split(pixels)
    return np.asarray(cv2.max(cv2.max(red, green), blue))


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`work` of every item, several at a time: NumPy and OpenCV let other threads run."""
    todo = list(items)
    workers = min(len(todo), os.cpu_count() or 1)
    if workers < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, todo))


def working_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width with a short side of `resolution` and the same aspect; 0 changes nothing.

    The long side is rounded, never to a multiple of anything. Raises AnnotatorError where that is
    more than MOST_PIXELS.
    """
    if resolution == 0:
        return height, width
    scale = resolution / min(height, width)
    high, wide = round(height * scale), round(width * scale)
    if high * wide > MOST_PIXELS:
        raise AnnotatorError(
            f"A picture of {width} x {height} would have {wide} x {high} pixels at the resolution "
            f"{resolution}: lower it, or crop the picture."
        )
    return high, wide


def resized(pixels: RGB8, height: int, width: int) -> RGB8:
    """(H, W, C) at another size: area means when it shrinks, Lanczos when it grows.

    So do huggingface/controlnet_aux `resize_image` and lllyasviel/ControlNet.
    """
    import cv2

    if pixels.shape[:2] == (height, width):
        return pixels
    grows = height > pixels.shape[0]
    kernel = cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=kernel), np.uint8)


def all_resized(frames: RGB8, height: int, width: int) -> RGB8:
    """(N, H, W, C) at another size, as `resized`; the frames themselves where they have it."""
    if frames.shape[1:3] == (height, width):
        return frames
    if len(frames) == 1:
        return resized(frames[0], height, width)[None]
    return np.stack([resized(frame, height, width) for frame in frames])


def resized_mask(mask: Mask, height: int, width: int) -> Mask:
    """(H, W) at another size, bilinear, as the inpaint preprocessors of the field do."""
    import cv2

    if mask.shape == (height, width):
        return mask
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
