"""EfficientNet's trunk (Tan and Le, 1905.11946), in the TensorFlow variant of the B5 checkpoints.

Attribute names are those of `tf_efficientnet_b5_ap`'s public checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3


class Stage(NamedTuple):
    """A row of blocks, the first of which changes channels and size."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM = 48
B5 = (
    Stage(3, 3, 1, 1, 24),
    Stage(5, 3, 2, 6, 40),
    Stage(5, 5, 2, 6, 64),
    Stage(7, 3, 2, 6, 128),
    Stage(7, 5, 1, 6, 176),
    Stage(9, 5, 2, 6, 304),
    Stage(3, 3, 1, 6, 512),
)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does: what is uneven goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        height, width = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]
        )
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole picture holds."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), the same size."""
        mean = x.mean((2, 3), keepdim=True)
        gain: Tensor = self.conv_expand(F.silu(self.conv_reduce(mean)))
        return x * gain.sigmoid()


class Separable(nn.Module):
    """A depthwise convolution and one that mixes its channels, with a shortcut."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and inputs == stage.channels
        self.conv_dw = SameConv(inputs, inputs, stage.kernel, stride, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs, EPSILON)
        self.se = SqueezeExcite(inputs, inputs // 4)
        self.conv_pw = nn.Conv2d(inputs, stage.channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stage.channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        h: Tensor = self.se(F.silu(self.bn1(self.conv_dw(x)), inplace=True))
        h = self.bn2(self.conv_pw(h))
        return h + x if self.shortcut else h


class Inverted(nn.Module):
    """The same on channels that are expanded first."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        self.shortcut = stride == 1 and inputs == stage.channels
        self.conv_pw = nn.Conv2d(inputs, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, EPSILON)
        self.conv_dw = SameConv(wide, wide, stage.kernel, stride, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide, EPSILON)
        self.se = SqueezeExcite(wide, inputs // 4)
        self.conv_pwl = nn.Conv2d(wide, stage.channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(stage.channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        h: Tensor = F.silu(self.bn1(self.conv_pw(x)), inplace=True)
        h = self.se(F.silu(self.bn2(self.conv_dw(h)), inplace=True))
        h = self.bn3(self.conv_pwl(h))
        return h + x if self.shortcut else h


class EfficientNet(nn.Module):
    """The trunk up to the head's convolution, every level of which can be read."""

    def __init__(
        self, stages: tuple[Stage, ...] = B5, stem: int = STEM, features: int = 2048
    ) -> None:
        super().__init__()
        self.conv_stem = SameConv(3, stem, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem, EPSILON)
        self.blocks = nn.Sequential()
        inputs = stem
        for stage in stages:
            kind = Separable if stage.expansion == 1 else Inverted
            row = nn.Sequential(kind(inputs, stage, stage.stride))
            row.extend(kind(stage.channels, stage, 1) for _ in range(stage.blocks - 1))
            self.blocks.append(row)
            inputs = stage.channels
        self.conv_head = nn.Conv2d(inputs, features, 1, bias=False)
        # Only in the checkpoints: what follows it, the classifier, isn't used here.
        self.bn2 = nn.BatchNorm2d(features, EPSILON)

    def forward(self, x: Tensor) -> list[Tensor]:
        """What each stage gives, and the head's convolution last."""
        found = []
        x = F.silu(self.bn1(self.conv_stem(x)), inplace=True)
        for row in self.blocks:
            x = row(x)
            found.append(x)
        return [*found, self.conv_head(x)]
