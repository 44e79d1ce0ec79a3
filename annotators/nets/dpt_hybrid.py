"""DPT-Hybrid (Ranftl et al., 2103.13413): a ResNet and a vision transformer, for MiDaS' depth.

Attribute names are those of `dpt_hybrid-midas-501f0c75.pt`. Its convolutions' weights are
standardised when they are loaded, not each time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention
from .efficientnet import SameConv

GROUPS = 32
PATCH = 16


class Sizes(NamedTuple):
    """What differs between networks of this make; the defaults are MiDaS'."""

    stem: int = 64
    stages: tuple[tuple[int, int, int], ...] = ((3, 64, 256), (4, 128, 512), (9, 256, 1024))
    """Blocks, inner channels and channels of each stage of the ResNet."""
    width: int = 768
    blocks: int = 12
    places: int = 24 * 24
    hidden: int = 3072
    levels: tuple[int, int] = (768, 768)
    """Channels of the two levels that are read from the transformer."""
    fused: int = 256
    last: int = 32


class Norm(nn.GroupNorm):
    """A group norm, and a ReLU where one follows."""

    def __init__(self, channels: int, *, rectified: bool = True) -> None:
        super().__init__(GROUPS, channels)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), the same size."""
        x = super().forward(x)
        return F.relu(x) if self.rectified else x


class Downsample(nn.Module):
    """The shortcut where channels change."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = SameConv(inputs, channels, 1, stride, bias=False)
        self.norm = Norm(channels, rectified=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        found: Tensor = self.norm(self.conv(x))
        return found


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut."""

    def __init__(self, inputs: int, inner: int, channels: int, stride: int) -> None:
        super().__init__()
        if inputs != channels or stride != 1:
            self.downsample = Downsample(inputs, channels, stride)
        self.conv1 = SameConv(inputs, inner, 1, bias=False)
        self.norm1 = Norm(inner)
        self.conv2 = SameConv(inner, inner, 3, stride, bias=False)
        self.norm2 = Norm(inner)
        self.conv3 = SameConv(inner, channels, 1, bias=False)
        self.norm3 = Norm(channels, rectified=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        h = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return F.relu(self.norm3(self.conv3(h)) + shortcut)


class ResStage(nn.Module):
    """Bottlenecks of one size."""

    def __init__(self, inputs: int, blocks: int, inner: int, channels: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Bottleneck(inputs, inner, channels, stride))
        self.blocks.extend(Bottleneck(channels, inner, channels, 1) for _ in range(blocks - 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        found: Tensor = self.blocks(x)
        return found


class Backbone(nn.Module):
    """The ResNet, whose stages are read at 1/4, 1/8 and 1/16 of the size."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.stem = nn.ModuleDict(
            {"conv": SameConv(3, sizes.stem, 7, 2, bias=False), "norm": Norm(sizes.stem)}
        )
        self.stages = nn.ModuleList()
        inputs = sizes.stem
        for number, (blocks, inner, channels) in enumerate(sizes.stages):
            stride = 1 if number == 0 else 2
            self.stages.append(ResStage(inputs, blocks, inner, channels, stride))
            inputs = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """What each stage gives for (N, 3, H, W), H and W multiples of 16."""
        x = self.stem["norm"](self.stem["conv"](x))
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Block(nn.Module):
    """Attention and a perceptron, each with a shortcut."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, 1e-6)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, 1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(N, places, width), the same size."""
        x = x + self.attn(self.norm1(x))
        seen: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return seen


class Encoder(nn.Module):
    """The transformer on the ResNet's features."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.places + 1, sizes.width))
        deepest = sizes.stages[-1][2]
        self.patch_embed = nn.ModuleDict(
            {"backbone": Backbone(sizes), "proj": nn.Conv2d(deepest, sizes.width, 1)}
        )
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.hidden) for _ in range(sizes.blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps at 1/4 and 1/8 of the size, and tokens after 3/4 and all of the blocks."""
        quarters, eighths, deepest = self.patch_embed["backbone"](x)
        grid = self.patch_embed["proj"](deepest)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), grid.flatten(2).mT], 1)
        tokens = tokens + self.positions(*grid.shape[-2:])
        found = []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return quarters, eighths, found[len(found) * 3 // 4 - 1], found[-1]

    def positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + height * width, C): the codes, resampled to this grid."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        grid = self.pos_embed[:, 1:].mT.unflatten(2, (side, side))
        grid = F.interpolate(grid, (height, width), mode="bilinear")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).mT], 1)


class Readout(nn.Module):
    """Tokens that each take in the one of the whole picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1 + places, width) to (N, places, width)."""
        whole = x[:, :1].expand(-1, x.shape[1] - 1, -1)
        found: Tensor = self.project(torch.cat([x[:, 1:], whole], -1))
        return found


class ResidualUnit(nn.Module):
    """Two convolutions, each after a ReLU, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), the same size."""
        found: Tensor = self.conv2(F.relu(self.conv1(F.relu(x)))) + x
        return found


class Fusion(nn.Module):
    """A coarser map, with what a finer one adds, enlarged twice; the coarsest has none to add."""

    def __init__(self, channels: int, *, adds: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        if adds:
            self.resConfUnit1 = ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, 2 H, 2 W)."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        x = self.resConfUnit2(x)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        found: Tensor = self.out_conv(x)
        return found


class Decoder(nn.Module):
    """Four levels fused from the coarsest to the finest."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        inputs = (sizes.stages[0][2], sizes.stages[1][2], *sizes.levels)
        for number, channels in enumerate(inputs, 1):
            reduce = nn.Conv2d(channels, sizes.fused, 3, padding=1, bias=False)
            self.add_module(f"layer{number}_rn", reduce)
            self.add_module(f"refinenet{number}", Fusion(sizes.fused, adds=number < 4))
        self.output_conv = nn.ModuleDict(
            {
                "0": nn.Conv2d(sizes.fused, sizes.fused // 2, 3, padding=1),
                "2": nn.Conv2d(sizes.fused // 2, sizes.last, 3, padding=1),
                "4": nn.Conv2d(sizes.last, 1, 1),
            }
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        """(N, 1, H, W) of maps at 1/4, 1/8, 1/16 and 1/32 of the size."""
        x: Tensor | None = None
        for number in (4, 3, 2, 1):
            level = self.get_submodule(f"layer{number}_rn")(levels[number - 1])
            fuse = self.get_submodule(f"refinenet{number}")
            x = fuse(level) if x is None else fuse(x, level)
        x = self.output_conv["0"](x)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return F.relu(self.output_conv["4"](F.relu(self.output_conv["2"](x))))


class DptHybrid(nn.Module):
    """Pictures to nearness."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        sizes = sizes or Sizes()
        third, fourth = sizes.levels
        self.pretrained = nn.ModuleDict(
            {
                "model": Encoder(sizes),
                "act_postprocess3": nn.ModuleDict(
                    {"0": Readout(sizes.width), "3": nn.Conv2d(sizes.width, third, 1)}
                ),
                "act_postprocess4": nn.ModuleDict(
                    {
                        "0": Readout(sizes.width),
                        "3": nn.Conv2d(sizes.width, fourth, 1),
                        "4": nn.Conv2d(fourth, fourth, 3, 2, 1),
                    }
                ),
            }
        )
        self.scratch = Decoder(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) of (N, 3, H, W) from -1 to 1; H and W are multiples of 32."""
        grid = (x.shape[-2] // PATCH, x.shape[-1] // PATCH)
        quarters, eighths, *tokens = self.pretrained["model"](x)
        levels = [quarters, eighths]
        for part, found in zip(("act_postprocess3", "act_postprocess4"), tokens, strict=True):
            read, *convolutions = self.pretrained[part].children()
            level = read(found).mT.unflatten(2, grid)
            for convolution in convolutions:
                level = convolution(level)
            levels.append(level)
        depth: Tensor = self.scratch(levels)
        return depth
