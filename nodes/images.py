"""The host's IMAGE as arrays, and arrays as the host's IMAGE: float32 (B, H, W, C) in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Picture = np.ndarray[Any, np.dtype[np.uint8]]
"""(H, W, 3), RGB."""
Floats = np.ndarray[Any, np.dtype[np.float32]]


def to_image(pictures: Picture | Sequence[Picture]) -> Tensor:
    """Pictures of one size, as a list or as one array (B, H, W, 3), as an IMAGE."""
    return torch.from_numpy(np.divide(pictures, 255, dtype=np.float32))


def to_pictures(image: Tensor) -> list[Picture]:
    """The pictures of an IMAGE, in uint8; what overshoots is cut off."""
    scaled = (image[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [np.ascontiguousarray(one) for one in scaled.cpu().numpy()]


def to_floats(image: Tensor) -> Floats:
    """An IMAGE or MASK as numbers in [0, 1]."""
    # Sharpening and enlarging overshoot a little; NaN survives the clamp and is refused later.
    floats: Floats = image.float().clamp(0, 1).cpu().numpy()
    return floats
