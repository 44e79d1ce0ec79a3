"""PiDiNet (Su et al., "Pixel Difference Networks for Efficient Edge Detection", 2021).

The widest form (60 channels, "carv4", with spatial attention and dilation); attribute names are the
keys of table5_pidinet.pth. A pixel difference convolution is a plain one with other kernels (the
paper's section 3.3), so kernels are made from the stored weights and one convolution is run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 60
REDUCED = 24
DILATIONS = (5, 7, 9, 11)
RING = [0, 1, 2, 5, 8, 7, 6, 3]
"""The neighbours of a 3 x 3 kernel's centre, clockwise from the upper left one."""
NEIGHBOURS = sorted(RING)


def vanilla(weight: Tensor) -> Tensor:
    """A plain convolution: the kernels (O, I, 3, 3) as they are."""
    return weight


def central(weight: Tensor) -> Tensor:
    """Differences between each pixel and the centre, as kernels (O, I, 3, 3)."""
    kernel = weight.clone()
    kernel[..., 1, 1] -= weight.sum(dim=(2, 3))
    return kernel


def angular(weight: Tensor) -> Tensor:
    """Differences between each neighbour and the one before it on the ring, clockwise."""
    flat = weight.flatten(2)
    kernel = torch.zeros_like(flat)
    kernel[..., RING] = flat[..., RING] - flat[..., RING[-1:] + RING[:-1]]
    return kernel.view_as(weight)


def radial(weight: Tensor) -> Tensor:
    """Differences between an outer ring and the inner one, as kernels (O, I, 5, 5).

    The eight weights are the last eight of nine; the public code leaves the first one unused.
    """
    flat = weight.flatten(2)
    ring = torch.zeros_like(flat)
    ring[..., NEIGHBOURS] = flat[..., 1:]
    ring = ring.view_as(weight)
    kernel = weight.new_zeros(*weight.shape[:2], 5, 5)
    kernel[..., ::2, ::2] = ring
    kernel[..., 1:4, 1:4] -= ring
    return kernel


KINDS: tuple[Callable[[Tensor], Tensor], ...] = (central, angular, radial, vanilla)
"""Which differences the convolutions take, in turn."""


class Difference(nn.Module):
    """A pixel difference convolution of equal size in and out."""

    def __init__(
        self, kernels: Callable[[Tensor], Tensor], inputs: int, outputs: int, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernels, self.groups = kernels, groups
        self.weight = nn.Parameter(torch.zeros(outputs, inputs // groups, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W)."""
        kernels = self.kernels(self.weight)
        return F.conv2d(x, kernels, padding=kernels.shape[-1] // 2, groups=self.groups)


class Block(nn.Module):
    """A difference per channel, then a mix of channels, beside the way through."""

    def __init__(
        self, kernels: Callable[[Tensor], Tensor], inputs: int, outputs: int, *, halves: bool
    ) -> None:
        super().__init__()
        self.halves = halves
        if halves:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.conv1 = Difference(kernels, inputs, inputs, groups=inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W), or half as high and wide."""
        if self.halves:
            x = F.max_pool2d(x, 2)
        through = self.shortcut(x) if self.halves else x
        mixed: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True))
        return mixed + through


class Dilation(nn.Module):
    """The compact dilation module: four reaches, added."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, REDUCED, 1)
        self.conv2_1, self.conv2_2, self.conv2_3, self.conv2_4 = (
            nn.Conv2d(REDUCED, REDUCED, 3, dilation=reach, padding=reach, bias=False)
            for reach in DILATIONS
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, REDUCED, H, W)."""
        x = self.conv1(F.relu(x))
        found: Tensor = self.conv2_1(x) + self.conv2_2(x) + self.conv2_3(x) + self.conv2_4(x)
        return found


class Attention(nn.Module):
    """The compact spatial attention module: one weight for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(REDUCED, 4, 1)
        self.conv2 = nn.Conv2d(4, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, REDUCED, H, W) of the same size."""
        return x * torch.sigmoid(self.conv2(self.conv1(F.relu(x))))


class Reduce(nn.Module):
    """Features to one map of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(REDUCED, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, REDUCED, H, W) to (N, 1, H, W)."""
        found: Tensor = self.conv(x)
        return found


class PiDiNet(nn.Module):
    """Soft edges in [0, 1]: (N, 3, H, W) BGR in [0, 1] to (N, 1, H, W); sides from 8 up."""

    stages = ((WIDTH, 3), (2 * WIDTH, 4), (4 * WIDTH, 4), (4 * WIDTH, 4))
    """Channels and blocks at each scale."""

    def __init__(self) -> None:
        super().__init__()
        self.init_block = Difference(KINDS[0], 3, WIDTH)
        before, layer = WIDTH, 1
        for stage, (width, blocks) in enumerate(self.stages, start=1):
            for number in range(1, blocks + 1):
                halves = number == 1 and stage > 1
                block = Block(KINDS[layer % len(KINDS)], before, width, halves=halves)
                self.add_module(f"block{stage}_{number}", block)
                before, layer = width, layer + 1
        self.dilations = nn.ModuleList(Dilation(width) for width, _ in self.stages)
        self.attentions = nn.ModuleList(Attention() for _ in self.stages)
        self.conv_reduces = nn.ModuleList(Reduce() for _ in self.stages)
        self.classifier = nn.Conv2d(len(self.stages), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The fused map of the four scales."""
        size = x.shape[-2:]
        x = self.init_block(x)
        sides = []
        for stage, (_, blocks) in enumerate(self.stages):
            for number in range(1, blocks + 1):
                x = self.get_submodule(f"block{stage + 1}_{number}")(x)
            side = self.conv_reduces[stage](self.attentions[stage](self.dilations[stage](x)))
            sides.append(F.interpolate(side, size, mode="bilinear"))
        return torch.sigmoid(self.classifier(torch.cat(sides, dim=1)))
