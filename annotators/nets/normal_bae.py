"""Surface normals and how sure they are (Bae et al., 2109.09881).

Attribute names are those of `scannet.pt`, whose encoder is EfficientNet-B5.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import Unavailable
from ..keeper import fill, outputs
from .efficientnet import B5, STEM, EfficientNet, Stage
from .frames import as_tensor, padded, standardised, whole

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEAST_KAPPA = 0.01
MULTIPLE = 64
WIDTHS = (1024, 512, 256, 128)


class Encoder(nn.Module):
    """EfficientNet-B5 under the name the checkpoint has for it."""

    def __init__(self, stages: tuple[Stage, ...], stem: int, features: int) -> None:
        super().__init__()
        self.original_model = EfficientNet(stages, stem, features)

    def forward(self, x: Tensor) -> list[Tensor]:
        """What its stages give, the finest first: 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
        halves, quarters, eighths, _, sixteenths, _, _, last = self.original_model(x)
        return [halves, quarters, eighths, sixteenths, last]


class UpSample(nn.Module):
    """Features enlarged to the size of finer ones, and merged with them."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self._net = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, C, H, W) of the fine one's size."""
        enlarged = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=True)
        merged: Tensor = self._net(torch.cat([enlarged, fine], 1))
        return merged


def per_pixel(channels: int) -> nn.Sequential:
    """The perceptron that refines a normal from the features of its own pixel."""
    return nn.Sequential(
        nn.Conv1d(channels + 4, 128, 1),
        nn.ReLU(),
        nn.Conv1d(128, 128, 1),
        nn.ReLU(),
        nn.Conv1d(128, 128, 1),
        nn.ReLU(),
        nn.Conv1d(128, 4, 1),
    )


class Decoder(nn.Module):
    """Normals at 1/8 of the size, refined pixel by pixel at 1/4, 1/2 and the whole size."""

    def __init__(
        self, encoded: tuple[int, int, int, int, int], widths: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        halves, quarters, eighths, sixteenths, last = encoded
        self.conv2 = nn.Conv2d(last, last, 1)
        self.up1 = UpSample(last + sixteenths, widths[0])
        self.up2 = UpSample(widths[0] + eighths, widths[1])
        self.up3 = UpSample(widths[1] + quarters, widths[2])
        self.up4 = UpSample(widths[2] + halves, widths[3])
        self.out_conv_res8 = nn.Conv2d(widths[1], 4, 3, padding=1)
        self.out_conv_res4 = per_pixel(widths[1])
        self.out_conv_res2 = per_pixel(widths[2])
        self.out_conv_res1 = per_pixel(widths[3])

    def forward(self, features: list[Tensor]) -> Tensor:
        """(N, 4, H, W): the normal, of length 1, and how sure it is."""
        halves, quarters, eighths, sixteenths, last = features
        h = self.up1(self.conv2(last), sixteenths)
        h8 = self.up2(h, eighths)
        h4 = self.up3(h8, quarters)
        h2 = self.up4(h4, halves)
        found = normalised(self.out_conv_res8(h8))
        for level, refine in (
            (h8, self.out_conv_res4),
            (h4, self.out_conv_res2),
            (h2, self.out_conv_res1),
        ):
            both = torch.cat([level, found], 1)
            both = F.interpolate(both, scale_factor=2, mode="bilinear", align_corners=True)
            found = normalised(refine(both.flatten(2)).unflatten(2, both.shape[-2:]))
        return found


def normalised(values: Tensor) -> Tensor:
    """(N, 4, H, W) with normals of length 1 and a concentration above LEAST_KAPPA."""
    normal, kappa = values[:, :3], values[:, 3:]
    length = normal.square().sum(1, keepdim=True).sqrt() + 1e-10
    return torch.cat([normal / length, F.elu(kappa) + 1 + LEAST_KAPPA], 1)


class NormalBae(nn.Module):
    """Pictures to normals; the defaults are the sizes of `scannet.pt`."""

    def __init__(
        self,
        stages: tuple[Stage, ...] = B5,
        stem: int = STEM,
        features: int = 2048,
        widths: tuple[int, int, int, int] = WIDTHS,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(stages, stem, features)
        read = stages[0], stages[1], stages[2], stages[4]
        halves, quarters, eighths, sixteenths = (stage.channels for stage in read)
        self.decoder = Decoder((halves, quarters, eighths, sixteenths, features), widths)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) of (N, 3, H, W) normalised RGB; H and W are multiples of 8."""
        found: Tensor = self.decoder(self.encoder(x))
        return found


def build(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of `scannet.pt`, or a smaller one of the same make: the tensors say which."""
    try:
        sizes = _sizes(tensors)
    except KeyError as error:
        raise Unavailable(
            f"The file of weights lacks {error.args[0]}: it isn't scannet.pt."
        ) from None
    with torch.device("meta"):
        net = NormalBae(*sizes)
    return fill(net, tensors)


def _sizes(
    tensors: Mapping[str, Tensor],
) -> tuple[tuple[Stage, ...], int, int, tuple[int, int, int, int]]:
    trunk = "encoder.original_model"
    stem = tensors[f"{trunk}.conv_stem.weight"].shape[0]
    features = tensors[f"{trunk}.conv_head.weight"].shape[0]
    stages = []
    for number, stage in enumerate(B5):
        row = f"{trunk}.blocks.{number}."
        last = "conv_pw" if stage.expansion == 1 else "conv_pwl"
        channels = tensors[f"{row}0.{last}.weight"].shape[0]
        blocks = {name[len(row) :].partition(".")[0] for name in tensors if name.startswith(row)}
        stages.append(stage._replace(blocks=len(blocks), channels=channels))
    up = (tensors[f"decoder.up{number}._net.0.weight"].shape[0] for number in range(1, 5))
    first, second, third, fourth = up
    return tuple(stages), stem, features, (first, second, third, fourth)


def normals(net: Any, images: NDArray[Any]) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8 of pictures (N, H, W, 3) uint8: x, y and z from -1 to 1 as 0 to 255."""
    pixels = as_tensor(images, net) / 255
    # The network is slower where the channels lie last in memory, as in pictures.
    ready = standardised(pixels, MEAN, DEVIATION).contiguous()
    found = padded(partial(outputs, net), ready, MULTIPLE)[:, :3]
    return whole(((found + 1) * 0.5).clip(0, 1).movedim(1, -1).float() * 255)
