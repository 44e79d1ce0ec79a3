"""M-LSD (Gu et al., "Towards Light-weight and Real-time Line Segment Detection", 2022), large.

A MobileNetV2 (Sandler et al., 2018) of five scales, joined from the smallest up; attribute names
are the keys of mlsd_large_512_fp32.pth (lhwcv/mlsd_pytorch).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
"""Expansion, channels, blocks and stride of each stage of the backbone."""
TAKEN = (1, 3, 6, 10, 13)
"""After which layers of the backbone its features are taken."""
UNUSED = 7
"""The first outputs of the last layer serve only training."""


class ConvNorm(nn.Sequential):
    """Convolution, normalisation, rectifier; halves as TensorFlow does, without a left border."""

    def __init__(
        self, inputs: int, outputs: int, side: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        padding = 0 if stride == 2 else side // 2
        super().__init__(
            nn.Conv2d(inputs, outputs, side, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W), or half as high and wide."""
        if self.stride == 2:
            x = F.pad(x, (0, 1, 0, 1))
        for layer in self:
            x = layer(x)
        return x


class Inverted(nn.Module):
    """An inverted residual: widen, convolve each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        width = inputs * expansion
        widen = [ConvNorm(inputs, width, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *widen,
            ConvNorm(width, width, 3, stride=stride, groups=width),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W), or half as high and wide."""
        found: Tensor = self.conv(x)
        return x + found if self.residual else found


class Backbone(nn.Module):
    """Five feature maps, from half the size to a 16th."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(4, 32, 3, stride=2)]
        width = 32
        for expansion, outputs, blocks, stride in STAGES:
            for number in range(blocks):
                layers.append(Inverted(width, outputs, expansion, stride if number == 0 else 1))
                width = outputs
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features after the layers TAKEN of (N, 4, H, W)."""
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in TAKEN:
                found.append(x)
        return found


def _conv(inputs: int, outputs: int, side: int, *, dilation: int = 1) -> nn.Sequential:
    padding = side // 2 * dilation
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=padding, dilation=dilation),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Join(nn.Module):
    """Features of a scale beside those of the smaller one, enlarged (the paper's block type A)."""

    def __init__(self, larger: int, smaller: int, *, doubles: bool = True) -> None:
        super().__init__()
        self.doubles = doubles
        self.conv1 = _conv(smaller, 64, 1)
        self.conv2 = _conv(larger, 64, 1)

    def forward(self, larger: Tensor, smaller: Tensor) -> Tensor:
        """(N, 128, H, W) of the larger map's size."""
        smaller = self.conv1(smaller)
        if self.doubles:
            size = larger.shape[-2:]
            smaller = F.interpolate(smaller, size, mode="bilinear", align_corners=True)
        return torch.cat((self.conv2(larger), smaller), dim=1)


class Mix(nn.Module):
    """Two convolutions, the first beside the way through (type B)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(128, 128, 3)
        self.conv2 = _conv(128, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 128, H, W) to (N, 64, H, W)."""
        found: Tensor = self.conv2(self.conv1(x) + x)
        return found


class Head(nn.Module):
    """The maps that are read (type C)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(64, 64, 3, dilation=5)
        self.conv2 = _conv(64, 64, 3)
        self.conv3 = nn.Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 64, H, W) to (N, 16, H, W)."""
        found: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return found


class MLSD(nn.Module):
    """Line segments as maps: (N, 3, H, W) RGB from 0 to 255 to (N, 9, H/2, W/2).

    The sides have to be multiples of 16. Channel 0 is the logit of a segment's middle, 1 to 4 are
    the displacements x, y to its start and x, y to its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.block15 = Join(64, 96, doubles=False)
        self.block16 = Mix()
        self.block17 = Join(32, 64)
        self.block18 = Mix()
        self.block19 = Join(24, 64)
        self.block20 = Mix()
        self.block21 = Join(16, 64)
        self.block22 = Mix()
        self.block23 = Head()

    def forward(self, x: Tensor) -> Tensor:
        """The maps at half the size; the net sees a fourth channel of ones."""
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1) / 127.5 - 1
        half, quarter, eighth, sixteenth, deepest = self.backbone(x)
        found = self.block16(self.block15(sixteenth, deepest))
        found = self.block18(self.block17(eighth, found))
        found = self.block20(self.block19(quarter, found))
        found = self.block22(self.block21(half, found))
        maps: Tensor = self.block23(found)
        return maps[:, UNUSED:]


def likeliest(maps: Tensor, count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """The segments of MLSD's maps whose middles are local peaks, the likeliest first.

    Their scores (N, count) in [0, 1], middles x, y (N, count, 2) and displacements (N, count, 4),
    all in pixels of the maps. After mlsd_pytorch `deccode_output_score_and_ptss`.
    """
    width = maps.shape[-1]
    heat = maps[:, :1].sigmoid()
    peaks = heat * (F.max_pool2d(heat, 3, stride=1, padding=1) == heat)
    scores, places = peaks.flatten(1).topk(count)
    moves = maps[:, 1:5].flatten(2).gather(2, places[:, None].expand(-1, 4, -1))
    return scores, torch.stack((places % width, places // width), dim=-1), moves.movedim(1, -1)
