"""The pix2pix U-Net (Isola et al., 2017) that draws anime line art.

Eight halvings with instance normalisation, from Mukosame/Anime2Sketch; attribute names are the keys
of netG.pth, which nest each scale in the one above.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512, 512, 512, 512)
"""Channels after each halving."""


class Scale(nn.Module):
    """One halving, all scales below, one doubling; what comes in is handed on beside the result."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        outer, inner = WIDTHS[depth - 1], WIDTHS[depth]
        innermost = depth == len(WIDTHS) - 1
        # In place: where it is handed on, a ReLU follows, for which it makes no difference.
        down = [nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(outer, inner, 4, stride=2, padding=1)]
        if not innermost:
            down += [nn.InstanceNorm2d(inner), Scale(depth + 1)]
        back = inner if innermost else 2 * inner
        up = [
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(back, outer, 4, stride=2, padding=1),
            nn.InstanceNorm2d(outer),
        ]
        self.model = nn.Sequential(*down, *up)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 2 C, H, W)."""
        return torch.cat([x, self.model(x)], dim=1)


class Outermost(nn.Module):
    """The whole net but for its name."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 4, stride=2, padding=1),
            Scale(1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * WIDTHS[0], 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )


class LineartAnime(nn.Module):
    """(N, 3, H, W) RGB in [-1, 1] to (N, 1, H, W), lines -1 on white 1; sides times 256."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Outermost()

    def forward(self, x: Tensor) -> Tensor:
        """How white each pixel of the drawing is."""
        found: Tensor = self.model.model(x)
        return found
