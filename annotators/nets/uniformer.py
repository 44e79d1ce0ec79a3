"""UperNet on UniFormer (Xiao et al., 1807.10221; Li et al., 2201.09450): classes of pixels.

Names are those of `upernet_global_small.pth`, of which the sizes are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import Unavailable
from ..keeper import fill, outputs
from .attention import Attention
from .frames import as_tensor, standardised

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MULTIPLE = 64
"""As comfyui_controlnet_aux pads; the net itself needs 32."""
POOLED = (1, 2, 3, 6)
UNUSED = ("auxiliary_head.",)
"""Only for training."""


class Sizes(NamedTuple):
    """Of the four stages: blocks and channels; then the channels of the head and the classes."""

    depths: Sequence[int]
    widths: Sequence[int]
    head: int
    classes: int


class Patches(nn.Module):
    """Squares of `side` pixels become one, normalised over its channels."""

    def __init__(self, inside: int, outside: int, side: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(outside)
        self.proj = nn.Conv2d(inside, outside, side, side)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.proj(x).movedim(1, -1))
        return y.movedim(-1, 1)


class Wide(nn.Module):
    """Four times as many channels and back, by 1 x 1 convolutions or linear layers."""

    def __init__(self, layer: Any, width: int, *kernel: int) -> None:
        super().__init__()
        self.fc1 = layer(width, 4 * width, *kernel)
        self.fc2 = layer(4 * width, width, *kernel)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class LocalBlock(nn.Module):
    """Relates neighbours by convolutions: the first two stages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm2 = nn.BatchNorm2d(width)
        self.mlp = Wide(nn.Conv2d, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        x = x + self.mlp(self.norm2(x))
        return x


class GlobalBlock(nn.Module):
    """Relates all places by attention: the last two stages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Wide(nn.Linear, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        y = x.flatten(2).mT
        y = y + self.attn(self.norm1(y))
        y = y + self.mlp(self.norm2(y))
        z: Tensor = y.mT.reshape(x.shape)
        return z


class UniFormer(nn.Module):
    """The four stages; gives what each finds, at a 4th, 8th, 16th and 32nd of the size."""

    def __init__(self, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        inside = 3
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            block = LocalBlock if stage < 3 else GlobalBlock
            setattr(self, f"patch_embed{stage}", Patches(inside, width, 4 if stage == 1 else 2))
            setattr(self, f"blocks{stage}", nn.Sequential(*(block(width) for _ in range(depth))))
            setattr(self, f"norm{stage}", nn.LayerNorm(width, eps=1e-6))
            inside = width

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in range(1, 5):
            x = getattr(self, f"blocks{stage}")(getattr(self, f"patch_embed{stage}")(x))
            found.append(getattr(self, f"norm{stage}")(x.movedim(1, -1)).movedim(-1, 1))
        return found


class Conv(nn.Module):
    """Convolution, normalisation over the batch, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class UperHead(nn.Module):
    """Joins the stages: the last one pooled over the picture, then from coarse to fine."""

    def __init__(self, widths: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        *fine, last = widths
        pools = (nn.Sequential(nn.AdaptiveAvgPool2d(n), Conv(last, width, 1)) for n in POOLED)
        self.psp_modules = nn.ModuleList(pools)
        self.bottleneck = Conv(last + len(POOLED) * width, width, 3)
        self.lateral_convs = nn.ModuleList(Conv(inside, width, 1) for inside in fine)
        self.fpn_convs = nn.ModuleList(Conv(width, width, 3) for _ in fine)
        self.fpn_bottleneck = Conv(len(widths) * width, width, 3)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        *fine, last = stages
        pooled = [_as_large(pool(last), last) for pool in self.psp_modules]
        levels = [self.bottleneck(torch.cat([last, *pooled], dim=1))]
        for x, lateral in zip(fine[::-1], reversed(self.lateral_convs), strict=True):
            levels.insert(0, lateral(x) + _as_large(levels[0], x))
        joined = [conv(level) for conv, level in zip(self.fpn_convs, levels, strict=False)]
        joined = [joined[0], *(_as_large(one, joined[0]) for one in (*joined[1:], levels[-1]))]
        y: Tensor = self.conv_seg(self.fpn_bottleneck(torch.cat(joined, dim=1)))
        return y


class Segmenter(nn.Module):
    """(N, 3, H, W), normalised, to (N, classes, H / 4, W / 4)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.backbone = UniFormer(sizes.depths, sizes.widths)
        self.decode_head = UperHead(sizes.widths, sizes.head, sizes.classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decode_head(self.backbone(x))
        return y


def _as_large(x: Tensor, other: Tensor) -> Tensor:
    return F.interpolate(x, other.shape[-2:], mode="bilinear")


def build(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The net of the tensors' sizes."""
    with torch.device("meta"):
        net = Segmenter(sizes_of(tensors))
    return fill(net, tensors, unused=UNUSED)


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes:
    """Raises Unavailable where these are another net's."""
    try:
        widths = [tensors[f"backbone.patch_embed{n}.proj.weight"].shape[0] for n in range(1, 5)]
        head = tensors["decode_head.bottleneck.conv.weight"].shape[0]
        classes = tensors["decode_head.conv_seg.weight"].shape[0]
    except KeyError as error:
        raise Unavailable(
            f"The file of weights lacks {error.args[0]}: it isn't UniFormer's."
        ) from None
    rows = [f"backbone.blocks{stage}." for stage in range(1, 5)]
    ends = ".pos_embed.weight"
    depths = [sum(n.startswith(row) and n.endswith(ends) for n in tensors) for row in rows]
    return Sizes(depths, widths, head, classes)


def classes(net: Any, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W): the likeliest class of each pixel of pictures (N, H, W, 3).

    The net is given blue for red, as by every pack that has it.
    """
    pixels = as_tensor(images[..., ::-1], net)
    height, width = pixels.shape[-2:]
    padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    pixels = F.pad(standardised(pixels, MEAN, DEVIATION), padding, mode="replicate")
    # One after the other: at full size they are 150 values for each pixel.
    likeliest = [_as_large(one[None], pixels).argmax(1)[0] for one in outputs(net, pixels)]
    numbers: NDArray[np.uint8] = torch.stack(likeliest)[:, :height, :width].byte().cpu().numpy()
    return numbers
