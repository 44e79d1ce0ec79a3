"""Inpaint hints: pictures in which the pixels to be painted are marked as the net wants them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import CldmError, ShapeError
from .hints import value_range
from .masks import check_mask
from .resampling import MARKED

CONVENTIONS = ("minus one", "black")
VALUES = dict(zip(CONVENTIONS, (MARKED, 0.0), strict=True))
THRESHOLD = 0.5


def inpaint_hint(image: Tensor, mask: Tensor, convention: str) -> Tensor:
    """The picture (B, C, H, W) in [0, 1] with its masked pixels marked in every channel.

    mask: (M, h, w) in [0, 1], M 1 or B; pixels above 0.5 are masked. It lies over the whole
    picture, and is resampled to its size without new edges (nearest).

    convention: `minus one` for control_v11p_sd15_inpaint (lllyasviel/ControlNet-v1-1-nightly,
    gradio_inpaint.py), `black` for the repaint type of xinsir's union ProMax (0). Raises ShapeError
    for pictures and masks of other shapes, ranges or counts, CldmError for another convention.
    """
    if convention not in VALUES:
        raise CldmError(f"convention is {convention!r}, expected one of {', '.join(CONVENTIONS)}.")
    _check_image(image)
    check_mask(mask)
    if mask.shape[0] not in (1, image.shape[0]):
        raise ShapeError(
            f"{mask.shape[0]} masks were given for {image.shape[0]} pictures: give one, or one for "
            "each."
        )
    over = mask[:, None].to(image.device)
    if over.shape[2:] != image.shape[2:]:
        over = F.interpolate(over, size=image.shape[2:], mode="nearest-exact")
    return torch.where(over > THRESHOLD, VALUES[convention], image)


def without_masked(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What nets read that take the picture's latent and a mask: the picture, and what is kept.

    image: (B, C, H, W) in [0, 1]; mask: (M, h, w) in [0, 1], M 1 or B, masked above 0.5. Gives the
    picture with masked pixels black, and (M, 1, h, w) with 1 where it is kept, as the nets of
    alimama-creative for SD 3 and Flux were trained. Raises ShapeError as inpaint_hint does.
    """
    return inpaint_hint(image, mask, "black"), 1 - mask[:, None]


def _check_image(image: Tensor) -> None:
    if image.ndim != 4 or not image.numel() or not image.is_floating_point():
        raise ShapeError(
            f"The picture is {image.dtype} of shape {tuple(image.shape)}, expected floating-point "
            "numbers (B, C, H, W)."
        )
    low, high = value_range(image)
    if not 0 <= low <= high <= 1:
        raise ShapeError(f"The picture's values go from {low:g} to {high:g}, expected [0, 1].")
