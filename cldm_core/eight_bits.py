"""Weights that are stored in 8 bits, and the scales that a file may hold beside them.

Scaled files follow ComfyUI: `LAYER.scale_weight` or `LAYER.weight_scale` holds what the layer's
weight is to be multiplied with (comfy/utils.py, convert_old_quants).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import CheckpointMismatch

SCALES = ("scale_weight", "weight_scale")
"""The names of a weight's scale, in the place of `weight`."""


def is_8_bit(dtype: torch.dtype | None) -> bool:
    """Whether it is a type of 8 bits, in which no layer computes; False for None."""
    return dtype is not None and dtype.itemsize == 1


def widened(weight: Tensor, scale: Tensor, key: str, name: str) -> Tensor:
    """The weight in fp32, times a number for all of it or one for each of its rows.

    key, name: what a message calls the weight, and where it is from. Raises CheckpointMismatch for
    another count of numbers.
    """
    if scale.numel() not in (1, weight.shape[0] if weight.ndim else 1):
        raise CheckpointMismatch(
            f"{name} has {scale.numel()} scales for {key} of shape {tuple(weight.shape)}, expected "
            f"1 or one for each row: its file is damaged."
        )
    rows = scale.to(weight.device).float()
    return weight.float() * (rows.reshape(-1, *[1] * (weight.ndim - 1)) if weight.ndim else rows)
