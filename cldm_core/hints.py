"""Hints: the pictures that control nets read, and what they must be like."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ShapeError

HINT_SCALE = 8
OVERSHOOT = 0.5
"""How far smooth resizing may lead beyond a hint's range without making it wrong."""


def check_hint(hint: Tensor, *channels: int) -> None:
    """Raises ShapeError unless the hint is (B, C, 8h, 8w) in [0, 1] with C one of `channels`.

    -1 is let through: inpaint nets mark masked pixels with it.
    """
    if hint.ndim != 4 or hint.shape[1] not in channels or not hint.numel():
        wanted = " or ".join(map(str, channels))
        raise ShapeError(
            f"The hint has shape {tuple(hint.shape)}, this net takes (B, {wanted}, 8h, 8w)."
        )
    if hint.shape[2] % HINT_SCALE or hint.shape[3] % HINT_SCALE:
        raise ShapeError(
            f"The hint is {hint.shape[2]}x{hint.shape[3]}: both sides must be multiples of "
            f"{HINT_SCALE}."
        )
    if not hint.is_floating_point():
        raise ShapeError(
            f"The hint is {hint.dtype}, expected floating-point numbers in [0, 1]: convert it, "
            "and divide pictures of 0 to 255 by 255."
        )
    low, high = value_range(hint)
    if math.isnan(low) or math.isinf(low) or math.isinf(high):
        raise ShapeError(
            "The hint holds NaN or infinite values: check the picture or the annotator it "
            "comes from."
        )
    if low < -1 - OVERSHOOT or high > 1 + OVERSHOOT:
        raise ShapeError(
            f"The hint's values go from {low:g} to {high:g}, expected [0, 1]: divide pictures "
            "of 0 to 255 by 255."
        )


def value_range(values: Tensor) -> tuple[float, float]:
    """The least and the greatest number; NaN where there is any."""
    low, high = values.detach().aminmax()
    return low.item(), high.item()


def check_count(hints: int, batch: int) -> None:
    """Raises ShapeError unless there is one hint, or one for each picture of the batch."""
    if hints not in (1, batch):
        raise ShapeError(
            f"{hints} hints were given for a batch of {batch}: give one, or one for each."
        )


def padded_to(hint: Tensor, multiple: int) -> Tensor:
    """The hint (B, C, H, W) with its last row and column repeated up to multiples."""
    bottom, right = (-side % multiple for side in hint.shape[2:])
    return F.pad(hint, (0, right, 0, bottom), mode="replicate") if bottom or right else hint


def in_type_of(layer: nn.Module, hint: Tensor) -> Tensor:
    """The hint in the type that `layer`, a net's first, computes in."""
    # Layers of a host cast by themselves, and may compute in another type than they store.
    if type(layer) is nn.Conv2d and not torch.is_autocast_enabled(hint.device.type):
        return hint.to(layer.weight.dtype)
    return hint
