"""Informative drawings (Chan, Durand and Isola, "Learning to Generate Line Drawings", 2022).

The generator of carolineec/informative-drawings with three residual blocks; attribute names are the
keys of sk_model.pth (fine) and sk_model2.pth (coarse).
"""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions beside the way through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) of the same size."""
        found: Tensor = x + self.conv_block(x)
        return found


class Lineart(nn.Module):
    """(N, 3, H, W) RGB in [0, 1] to (N, 1, H, W), lines 0 on white 1; sides multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.model0 = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), nn.InstanceNorm2d(64), nn.ReLU(inplace=True)
        )
        self.model1 = nn.Sequential(
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.InstanceNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 256, 3, stride=2, padding=1),
            nn.InstanceNorm2d(256),
            nn.ReLU(inplace=True),
        )
        self.model2 = nn.Sequential(*(Residual(256) for _ in range(3)))
        self.model3 = nn.Sequential(
            nn.ConvTranspose2d(256, 128, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(128),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(128, 64, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(64),
            nn.ReLU(inplace=True),
        )
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(64, 1, 7), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """How white each pixel of the drawing is."""
        found: Tensor = self.model4(self.model3(self.model2(self.model1(self.model0(x)))))
        return found
