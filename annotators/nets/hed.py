"""HED (Xie and Tu, "Holistically-Nested Edge Detection", 2015): soft outlines, at five scales.

In the form of lllyasviel/ControlNet `annotator/hed`: RGB from 0 to 255, a learned mean, the side
outputs averaged without a fusing layer. Attribute names are the keys of ControlNetHED.pth.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))
"""Channels in, channels out and convolutions of each stage: VGG16's."""


class Stage(nn.Module):
    """Convolutions at one scale, and the side output that is read from them."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * depth
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths)
        )
        self.projection = nn.Conv2d(outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The stage's features of (N, C, H, W)."""
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return x


class HED(nn.Module):
    """Logits of soft edges: (N, 3, H, W) RGB from 0 to 255 to (N, 1, H, W); sides from 16 up."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.block1, self.block2, self.block3, self.block4, self.block5 = (
            Stage(*stage) for stage in STAGES
        )

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the side outputs, each enlarged to the picture's size."""
        size = x.shape[-2:]
        x = self.block1(x - self.norm)
        sides = [self.block1.projection(x)]
        for stage in (self.block2, self.block3, self.block4, self.block5):
            x = stage(F.max_pool2d(x, 2))
            sides.append(F.interpolate(stage.projection(x), size, mode="bilinear"))
        return torch.cat(sides, dim=1).mean(dim=1, keepdim=True)
