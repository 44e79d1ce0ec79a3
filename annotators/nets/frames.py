"""Pictures as tensors, for every network: in, padded to a multiple, cut back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn


def as_tensor(images: NDArray[np.uint8], net: nn.Module) -> Tensor:
    """(N, H, W, 3) uint8 as (N, 3, H, W) floats from 0 to 255, of the net's type and device."""
    like = next(net.parameters())
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(like.device)
    return pixels.movedim(-1, 1).to(like.dtype)


def standardised(pixels: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """(N, 3, H, W) with each channel's mean taken away, over its deviation."""
    middle, spread = (pixels.new_tensor(row)[:, None, None] for row in (mean, deviation))
    return (pixels - middle) / spread


def as_array(values: Tensor) -> NDArray[Any]:
    """(N, C, H, W) as an array (N, H, W, C), float32."""
    found: NDArray[Any] = values.movedim(1, -1).float().cpu().numpy()
    return found


def whole(values: Tensor) -> NDArray[np.uint8]:
    """Numbers from 0 to 255 cut off to whole ones where they are, and then as an array."""
    found: NDArray[np.uint8] = values.clamp(0, 255).byte().contiguous().cpu().numpy()
    return found


def padded(
    call: Callable[[Tensor], Tensor], images: Tensor, multiple: int, mode: str = "replicate"
) -> Tensor:
    """`call` of (N, C, H, W) padded right and below to a multiple, its result cut back to H, W.

    The result has to be of the padded size. `mode` is torch's: replicate repeats the edge, as
    Fannovel16/comfyui_controlnet_aux `resize_image_with_pad` does.
    """
    height, width = images.shape[-2:]
    below, right = -height % multiple, -width % multiple
    return call(F.pad(images, (0, right, 0, below), mode=mode))[..., :height, :width]
