"""A small autoencoder in the manner of TAESD (Bohan 2023).

It is made of convolutions and ReLU only; there is neither attention nor a KL term.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LATENT_BOUND = 3.0


class Clamp(nn.Module):
    """Keeps values softly within +-LATENT_BOUND, so that a denoiser's outliers stay harmless."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / LATENT_BOUND) * LATENT_BOUND


class Block(nn.Module):
    """Two 3x3 convolutions with a skip around them."""

    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            ops.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            ops.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def encoder(width: int, latent_channels: int, ops: Any = nn) -> nn.Sequential:
    """Pixels (B, 3, 8h, 8w) in [0, 1] to latents (B, latent_channels, h, w)."""
    return nn.Sequential(
        ops.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        ops.Conv2d(width, width, 3, padding=1, stride=2),
        Block(width, ops),
        ops.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        Block(2 * width, ops),
        Block(2 * width, ops),
        ops.Conv2d(2 * width, 4 * width, 3, padding=1, stride=2),
        Block(4 * width, ops),
        Block(4 * width, ops),
        Block(4 * width, ops),
        ops.Conv2d(4 * width, latent_channels, 3, padding=1),
    )


def decoder(width: int, latent_channels: int, ops: Any = nn) -> nn.Sequential:
    """Latents (B, latent_channels, h, w) to pixels (B, 3, 8h, 8w), about [0, 1].

    Widths fall as sizes grow, so that each size costs about the same.
    """
    return nn.Sequential(
        Clamp(),
        ops.Conv2d(latent_channels, 4 * width, 3, padding=1),
        nn.ReLU(),
        Block(4 * width, ops),
        Block(4 * width, ops),
        Block(4 * width, ops),
        nn.Upsample(scale_factor=2),
        ops.Conv2d(4 * width, 2 * width, 3, padding=1),
        Block(2 * width, ops),
        Block(2 * width, ops),
        nn.Upsample(scale_factor=2),
        ops.Conv2d(2 * width, width, 3, padding=1),
        Block(width, ops),
        Block(width, ops),
        ops.Conv2d(width, 2 * width, 3, padding=1),
        nn.PixelShuffle(2),
        nn.ReLU(),
        ops.Conv2d(width // 2, 3, 3, padding=1),
    )


class TinyVAE(nn.Module):
    """Autoencoder of the embedded model.

    8 times smaller latents of four channels, deterministic.
    """

    def __init__(self, width: int = 32, latent_channels: int = 4, ops: Any = nn) -> None:
        super().__init__()
        self.encoder = encoder(width, latent_channels, ops)
        self.decoder = decoder(width, latent_channels, ops)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, 8h, 8w) in [-1, 1] to unscaled latents (B, 4, h, w)."""
        latents: Tensor = self.encoder(pixels * 0.5 + 0.5)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, 4, h, w) to pixels (B, 3, 8h, 8w) in [-1, 1]."""
        pixels: Tensor = self.decoder(latents)
        return pixels.clamp(0, 1) * 2 - 1
