"""Hints fitted to the size of the picture: crop, stretch or fill."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import CldmError, ShapeError
from .hints import HINT_SCALE
from .resampling import MARKED, Array, is_marked, resample

FITS = ("crop", "stretch", "fill")
RESAMPLINGS = ("auto", "nearest")


def fit_hint(
    hint: Tensor, width: int, height: int, *, fit: str = "crop", resampling: str = "auto"
) -> Tensor:
    """A hint (B, C, H, W) at another size, (B, C, height, width), of the same type and device.

    fit: `crop` keeps the aspect and cuts off what doesn't fit, from both sides alike (to whole
    pixels of the hint, as ComfyUI's common_upscale does); `stretch` changes the aspect; `fill`
    keeps it, shows all of the hint and fills the bars with the median of its four borders, channel
    by channel, or with -1 where the hint holds marked pixels (sd-webui-controlnet, Resize and
    Fill).

    resampling: `auto` treats each picture as what it shows needs (resampling.resample), `nearest`
    takes each pixel from the one it lies in: with `crop`, what ComfyUI itself does with hints.

    A hint that has the size already is returned as it is. Values stay in each picture's range.
    Raises ShapeError for a hint of another shape or type, CldmError for an unknown choice.
    """
    _check_choice("fit", fit, FITS)
    _check_choice("resampling", resampling, RESAMPLINGS)
    _check(hint, width, height)
    if hint.shape[2:] == (height, width):
        return hint
    if fit == "crop":
        return _resized(_cropped(hint, width, height), width, height, resampling)
    if fit == "fill":
        return _filled(hint, width, height, resampling)
    return _resized(hint, width, height, resampling)


def pixel_perfect(
    image_height: int, image_width: int, height: int, width: int, fit: str = "crop"
) -> int:
    """The short side, in pixels, at which an annotator makes hints that needn't be enlarged.

    For a picture image_height x image_width that will be fitted to height x width
    (sd-webui-controlnet, internal_controlnet/external_code.py, pixel_perfect_resolution).
    """
    _check_choice("fit", fit, FITS)
    if min(image_height, image_width, height, width) < 1:
        raise ShapeError(
            f"The picture is {image_width}x{image_height}, to be fitted to {width}x{height}: give "
            "sides of at least 1 pixel."
        )
    scales = (height / image_height, width / image_width)
    scale = min(scales) if fit == "fill" else max(scales)
    return round(scale * min(image_height, image_width))


def crop_hint(hint: Tensor, area: tuple[int, int, int, int], scale: int = HINT_SCALE) -> Tensor:
    """The part of a hint (B, C, H, W) that lies over an area of the latent; a view, no copy.

    area: (height, width, y, x) in pixels of the latent, as on ComfyUI's conditionings; scale: how
    many pixels of the hint make one of those. Raises ShapeError where the area leaves the hint.
    """
    height, width, y, x = (side * scale for side in area)
    found = (hint.shape[-2], hint.shape[-1])
    if min(height, width) < 1 or min(y, x) < 0 or y + height > found[0] or x + width > found[1]:
        raise ShapeError(
            f"The area is {width}x{height} pixels at ({x}, {y}), beyond the hint of "
            f"{found[1]}x{found[0]}: fit the hint to the whole picture first."
        )
    return hint[..., y : y + height, x : x + width]


def _check_choice(name: str, choice: str, choices: tuple[str, ...]) -> None:
    if choice not in choices:
        raise CldmError(f"{name} is {choice!r}, expected one of {', '.join(choices)}.")


def _check(hint: Tensor, width: int, height: int) -> None:
    if hint.ndim != 4 or not hint.numel() or not hint.is_floating_point():
        raise ShapeError(
            f"The hint is {hint.dtype} of shape {tuple(hint.shape)}, expected floating-point "
            "numbers (B, C, H, W)."
        )
    if width < 1 or height < 1:
        raise ShapeError(
            f"The hint was to be fitted to {width}x{height}: give sides of at least 1 pixel."
        )


def _cropped(hint: Tensor, width: int, height: int) -> Tensor:
    """The middle of the hint, with the aspect of width x height up to whole pixels."""
    old_height, old_width = hint.shape[2:]
    # The host's own expressions: others round to another pixel here and there.
    old, new = old_width / old_height, width / height
    x = round((old_width - old_width * (new / old)) / 2) if old > new else 0
    y = round((old_height - old_height * (old / new)) / 2) if old < new else 0
    # The host would crop a very long hint to nothing: keep a pixel.
    x, y = min(x, (old_width - 1) // 2), min(y, (old_height - 1) // 2)
    return hint[:, :, y : old_height - y, x : old_width - x]


def _filled(hint: Tensor, width: int, height: int, resampling: str) -> Tensor:
    """All of the hint in the middle, bars around it."""
    old_height, old_width = hint.shape[2:]
    scale = min(height / old_height, width / old_width)
    inner = (max(1, round(old_height * scale)), max(1, round(old_width * scale)))
    y, x = ((height - inner[0]) // 2, (width - inner[1]) // 2)
    result = _bar_colours(hint)[:, :, None, None].repeat(1, 1, height, width)
    middle = _resized(hint, inner[1], inner[0], resampling)
    result[:, :, y : y + inner[0], x : x + inner[1]] = middle
    return result


def _bar_colours(hint: Tensor) -> Tensor:
    """(B, C): the median of the borders, or -1 for inpaint hints: bars are to be painted."""
    sides = (hint[:, :, 0], hint[:, :, -1], hint[:, :, :, 0], hint[:, :, :, -1])
    # torch's median is one of the values, never between two: masks get no third colour.
    median = torch.cat(sides, dim=-1).median(dim=-1).values
    marked = torch.tensor([[is_marked(picture).any()] for picture in _pictures(hint)])
    return torch.where(marked.to(hint.device), MARKED, median)


def _resized(hint: Tensor, width: int, height: int, resampling: str) -> Tensor:
    if hint.shape[2:] == (height, width):
        return hint
    if resampling == "nearest":
        return F.interpolate(hint, size=(height, width), mode="nearest-exact")
    found = np.stack([resample(picture, (height, width)) for picture in _pictures(hint)])
    result = torch.from_numpy(found).to(hint.device, hint.dtype)
    # Wider types than float32 hold bounds that float32 rounds outwards.
    low, high = (bound[:, None, None, None] for bound in hint.detach().flatten(1).aminmax(dim=1))
    return result.clamp(low, high)


def _pictures(hint: Tensor) -> Array:
    return np.asarray(hint.detach().to("cpu", torch.float32).contiguous().numpy())
