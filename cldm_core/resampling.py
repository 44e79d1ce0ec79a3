"""Hints at another size, each resampled as its kind needs: drawings, masks, maps, photos.

The kinds and their rules are those of sd-webui-controlnet (scripts/controlnet.py,
high_quality_resize); drawings are treated more carefully here (edges.py).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .edges import Mask, is_one_pixel_drawing, resize_lines, sources

Array: TypeAlias = NDArray[np.float32]
Size: TypeAlias = tuple[int, int]

MARKED = -1.0
"""What inpaint hints hold at pixels that are to be painted."""
FEW_COLOURS = 200
"""From so many colours on, a picture is a photo; with fewer it is a map of segments."""
SAMPLE = 16384
"""So many pixels show in most cases that a picture has many colours."""
HASH = np.uint64(0x9E3779B97F4A7C15)


def resample(picture: Array, size: Size) -> Array:
    """A picture (C, H, W) at another size (h, w), by what it shows; within its range of values.

    One-pixel lines stay one pixel wide and whole; two colours stay two; a map of fewer than 200
    colours gets no new ones; others are averaged where they shrink and interpolated by cubics
    where they grow. Pixels marked with -1 (is_marked) stay marked, and no others come near it.
    """
    marked = is_marked(picture)
    if not marked.any():
        return _resample_unmarked(picture, size)
    whole = picture if marked.all() else _filled(picture, marked)
    result = _resample_unmarked(whole, size)
    return np.where(nearest(marked, size), np.float32(MARKED), result)


def is_marked(picture: Array) -> Mask:
    """Which pixels (H, W) of an inpaint hint (C, H, W) are marked: -1 in every channel.

    None where the picture holds other negative values, for then -1 is a colour like others.
    """
    marked = (picture == MARKED).all(axis=0)
    usual = not np.any((picture < 0) & ~marked)
    return np.asarray(marked & usual)


def nearest(picture: NDArray[np.generic], size: Size) -> NDArray[np.generic]:
    """A picture (..., H, W) at another size (h, w), each pixel from the one it lies in."""
    rows, columns = sources(picture.shape[-2], size[0]), sources(picture.shape[-1], size[1])
    return np.asarray(picture[..., rows[:, None], columns])


def _resample_unmarked(picture: Array, size: Size) -> Array:
    keys = _colour_keys(picture)
    if len(np.unique(keys.ravel()[:: max(1, keys.size // SAMPLE)])) >= FEW_COLOURS:
        return _smooth(picture, size)
    colours, first, counts = np.unique(keys, return_index=True, return_counts=True)
    if len(colours) == 2:
        # The rarer colour is what is drawn: white lines on black, and black ones on white.
        drawn = int(counts.argmin())
        ink, paper = (picture.reshape(len(picture), -1)[:, first[i]] for i in (drawn, 1 - drawn))
        mask = _resample_mask(keys == colours[drawn], size)
        return np.where(mask, ink[:, None, None], paper[:, None, None])
    if len(colours) < FEW_COLOURS:
        return np.asarray(nearest(picture, size), np.float32)
    return _smooth(picture, size)


def _colour_keys(picture: Array) -> NDArray[np.uint64]:
    """A number for each pixel (H, W), the same where all channels are."""
    keys = np.zeros(picture.shape[1:], np.uint64)
    # Adding 0 makes -0 and 0, which have other bits, one colour.
    for plane in picture + np.float32(0):
        keys = keys * HASH + plane.view(np.uint32)
    return keys


def _resample_mask(mask: Mask, size: Size) -> Mask:
    if is_one_pixel_drawing(mask):
        return resize_lines(mask, *size)
    return np.asarray(_smooth(mask[None].astype(np.float32), size)[0] > 0.5)


def _smooth(picture: Array, size: Size) -> Array:
    """Averaged along the sides that shrink, then interpolated along those that grow."""
    import cv2

    height, width = size
    smaller = (min(width, picture.shape[2]), min(height, picture.shape[1]))
    planes = [
        cv2.resize(
            cv2.resize(plane, smaller, interpolation=cv2.INTER_AREA),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        for plane in picture
    ]
    return np.asarray(np.stack(planes).clip(picture.min(), picture.max()), np.float32)


def _filled(picture: Array, marked: Mask) -> Array:
    """The picture with the colour of the nearest unmarked pixel where it is marked.

    So what lies beside a marked pixel is not mixed with its -1.
    """
    import cv2

    _, labels = cv2.distanceTransformWithLabels(
        marked.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    source = np.zeros(int(labels.max()) + 1, np.intp)
    source[labels[~marked]] = np.flatnonzero(~marked)
    return np.asarray(picture.reshape(len(picture), -1)[:, source[labels]], np.float32)
