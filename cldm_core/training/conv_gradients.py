"""Gradients of a convolution: PyTorch's own, or products of matrices where these are quicker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS_PER_PIXEL = 1 << 15
"""From so many weights for each pixel of the result on, products are quicker on a CPU.

oneDNN lays the weights out anew at every call. Seen on 2 cores, fp32, both gradients, 3x3: 1280 to
1280 channels at 8x8 pixels 84 to 42 ms, 2560 to 1280 at 4x4 154 to 62 ms, 960 to 640 at 16x16 31 to
35 ms.
"""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Geometry:
    """How a convolution's kernel moves; as nn.Conv2d has it."""

    stride: Any
    padding: Any
    dilation: Any
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Geometry:
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups)

    @property
    def windows(self) -> dict[str, Any]:
        """As F.fold and F.unfold want it."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


def convolution_gradients(
    grad: Tensor,
    read: Tensor | None,
    shape: torch.Size,
    weight: Tensor,
    geometry: Geometry,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients for input, weight and bias, None where `needs` says so.

    grad: of the result, (B, O, h', w'); read: what the convolution read, (B, C, h, w), None where
    the weight's gradient isn't needed; shape: that of what it read.
    """
    if quicker_as_products(grad, weight, geometry):
        return _by_products(grad, read, shape, weight, geometry, needs)
    found: Gradients = torch.ops.aten.convolution_backward.default(
        grad,
        _blank(shape, grad) if read is None else read,
        weight.to(grad.dtype),
        [weight.shape[0]] if needs[2] else None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0, 0],
        geometry.groups,
        list(needs),
    )
    return found


def quicker_as_products(grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether a gradient of this shape takes less time as products of matrices; 1x1 never."""
    pixels = grad.numel() // grad.shape[1]
    return (
        grad.is_cpu
        and grad.dtype == weight.dtype == torch.float32
        and geometry.groups == 1
        and not isinstance(geometry.padding, str)
        and math.prod(weight.shape[2:]) > 1
        and weight.numel() >= WEIGHTS_PER_PIXEL * pixels
    )


def _by_products(
    grad: Tensor,
    read: Tensor | None,
    shape: torch.Size,
    weight: Tensor,
    geometry: Geometry,
    needs: Sequence[bool],
) -> Gradients:
    rows = grad.transpose(0, 1).flatten(1)  # (O, B h' w')
    kernel = weight.shape[2:]
    of_x = of_weight = None
    if needs[0]:
        columns = (weight.flatten(1).mT @ rows).unflatten(1, (shape[0], -1)).transpose(0, 1)
        of_x = F.fold(columns, shape[2:], kernel, **geometry.windows)
    if read is not None:
        columns = F.unfold(read, kernel, **geometry.windows).transpose(1, 2).flatten(0, 1)
        of_weight = (rows @ columns).view_as(weight)
    return of_x, of_weight, rows.sum(1) if needs[2] else None


def _blank(shape: torch.Size, like: Tensor) -> Tensor:
    """Memory that nobody reads: the operator asks for the input's shape and layout alone."""
    last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
