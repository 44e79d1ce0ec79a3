"""TEED (Soria et al., "Tiny and Efficient Model for the Edge Detection Generalization", 2023).

Attribute names are the keys of xavysp/TEED's checkpoint, 7_model.pth; MTEED.pth of Anyline has the
same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def smish(x: Tensor) -> Tensor:
    """x tanh(ln(1 + sigmoid(x))) of any shape (Wang, Ren and Wang, 2022)."""
    return x * torch.tanh(torch.log(1 + torch.sigmoid(x)))


class Smish(nn.Module):
    """The same as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return smish(x)


class Pair(nn.Module):
    """Two 3 x 3 convolutions, the second one left linear if asked for."""

    def __init__(self, inputs: int, width: int, *, stride: int = 1, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, width, H, W), or half as high and wide at stride 2."""
        x = self.conv2(smish(self.conv1(x)))
        return x if self.linear else smish(x)


class Side(nn.Module):
    """A 1 x 1 convolution."""

    def __init__(self, inputs: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, width, H, W), every second pixel at stride 2."""
        found: Tensor = self.conv(x)
        return found


class DenseLayer(nn.Module):
    """Widens by its first convolution's border and narrows by the second's lack of one."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=2)
        self.conv2 = nn.Conv2d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, width, H, W)."""
        found: Tensor = self.conv2(smish(self.conv1(smish(x))))
        return found


class Enlarge(nn.Module):
    """Features to one map of logits, doubled once or twice."""

    def __init__(self, inputs: int, doublings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side = 2**doublings
        for number in range(doublings):
            outputs = 1 if number == doublings - 1 else 16
            layers += [
                nn.Conv2d(inputs, outputs, 1),
                Smish(),
                nn.ConvTranspose2d(outputs, outputs, side, stride=2, padding=doublings - 1),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, 1, 2 H, 2 W) or (N, 1, 4 H, 4 W)."""
        found: Tensor = self.features(x)
        return found


class DoubleFusion(nn.Module):
    """Three maps of logits to one, by convolutions of each map alone."""

    def __init__(self) -> None:
        super().__init__()
        self.DWconv1 = nn.Conv2d(3, 24, 3, padding=1, groups=3)
        self.DWconv2 = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 1, H, W)."""
        first: Tensor = self.DWconv1(smish(x))
        second: Tensor = self.DWconv2(smish(first))
        return smish((second + first).sum(dim=1, keepdim=True))


class TEED(nn.Module):
    """Logits of edges: (N, 3, H, W) RGB from 0 to 255 to (N, 1, H, W); sides multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.block_1 = Pair(3, 16, stride=2)
        self.block_2 = Pair(16, 32, linear=True)
        self.dblock_3 = nn.Sequential()
        self.dblock_3.denselayer1 = DenseLayer(32, 48)
        self.side_1 = Side(16, 32, stride=2)
        self.pre_dense_3 = Side(32, 48)
        self.up_block_1 = Enlarge(16, 1)
        self.up_block_2 = Enlarge(32, 1)
        self.up_block_3 = Enlarge(48, 2)
        self.block_cat = DoubleFusion()

    def forward(self, x: Tensor) -> Tensor:
        """The mean of three scales' maps and the fused one, as the soft edge preprocessors take."""
        first = self.block_1(x)
        second = self.block_2(first)
        down = F.max_pool2d(second, 3, stride=2, padding=1)
        third = 0.5 * (self.dblock_3(down + self.side_1(first)) + self.pre_dense_3(down))
        maps = torch.cat(
            [self.up_block_1(first), self.up_block_2(second), self.up_block_3(third)], dim=1
        )
        return torch.cat([maps, self.block_cat(maps)], dim=1).mean(dim=1, keepdim=True)
