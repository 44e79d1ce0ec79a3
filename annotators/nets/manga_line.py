"""Lines of manga pages (Li, Liu and Wong, "Deep Extraction of Manga Structural Lines", 2017).

A residual U-Net on one grey channel, from ljsabc/MangaLineExtraction_PyTorch; attribute names are
the keys of erika.pth.
"""

from __future__ import annotations

from torch import Tensor, nn

DOWN = ((1, 24, 2), (24, 48, 3), (48, 96, 5), (96, 192, 7), (192, 384, 12))
"""Channels in, channels out and blocks of each scale on the way down; all but the first halve."""
UP = ((384, 192, 7), (192, 96, 5), (96, 48, 3), (48, 24, 2))
"""The same on the way up; each doubles."""


class NormConv(nn.Module):
    """Normalise, rectify, convolve."""

    def __init__(
        self, inputs: int, outputs: int, side: int = 3, *, stride: int = 1, doubles: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.BatchNorm2d(inputs, eps=1e-3),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2),
        ]
        if doubles:
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W), or at half or twice the size."""
        found: Tensor = self.model(x)
        return found


class Shortcut(nn.Module):
    """The way beside two convolutions: a 1 x 1 convolution where channels or size change."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, doubles: bool) -> None:
        super().__init__()
        if inputs == outputs and stride == 1:
            return
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1, stride=stride)]
        if doubles:
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W), or at half or twice the size."""
        found: Tensor = self.model(x) if hasattr(self, "model") else x
        return found


class Block(nn.Module):
    """Two convolutions beside the way through."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, doubles: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = NormConv(inputs, outputs, stride=stride, doubles=doubles)
        self.residual = NormConv(outputs, outputs)
        self.shortcut = Shortcut(inputs, outputs, stride=stride, doubles=doubles)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W), or at half or twice the size."""
        found: Tensor = self.shortcut(x) + self.residual(self.conv1(x))
        return found


class Scale(nn.Module):
    """Several blocks; the first may double the size, the last may halve it."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, *, doubles: bool = False, halves: bool = False
    ) -> None:
        super().__init__()
        blocks = []
        for number in range(depth):
            stride = 2 if halves and number == depth - 1 else 1
            first = number == 0
            blocks.append(
                Block(
                    inputs if first else outputs, outputs, stride=stride, doubles=doubles and first
                )
            )
        self.model = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W), or at half or twice the size."""
        found: Tensor = self.model(x)
        return found


class MangaLine(nn.Module):
    """(N, 1, H, W) grey from 0 to 255 to the same, black lines on white; sides multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        for number, widths in enumerate(DOWN):
            self.add_module(f"block{number}", Scale(*widths, halves=number > 0))
        for number, widths in enumerate(UP, start=len(DOWN)):
            self.add_module(f"block{number}", Scale(*widths, doubles=True))
        self.block9 = Scale(24, 16, 2)
        self.conv15 = NormConv(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """How light each pixel of the drawing is; not limited to the range."""
        passed = []
        for number in range(len(DOWN)):
            x = self.get_submodule(f"block{number}")(x)
            passed.append(x)
        passed.pop()
        for number in range(len(DOWN), len(DOWN) + len(UP)):
            x = self.get_submodule(f"block{number}")(x) + passed.pop()
        found: Tensor = self.conv15(self.block9(x))
        return found
