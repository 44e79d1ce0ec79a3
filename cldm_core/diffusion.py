"""The forward process and its parametrisations, eps (Ho 2020) and v (Salimans and Ho 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import Prediction
from .errors import CldmError


@dataclass(frozen=True)
class NoiseSchedule:
    """The scaled-linear schedule of Stable Diffusion.

    Betas are squares of a line from sqrt(start) to sqrt(end).
    """

    linear_start: float = 0.00085
    linear_end: float = 0.0120
    timesteps: int = 1000

    def alphas_cumprod(self) -> Tensor:
        """The signal's share of the variance after each step, (timesteps,) in float64, falling."""
        line = torch.linspace(
            self.linear_start**0.5, self.linear_end**0.5, self.timesteps, dtype=torch.float64
        )
        return torch.cumprod(1 - line.square(), dim=0)

    def coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) with alpha^2 + sigma^2 = 1 for whole timesteps (B,).

        Each (B, 1, ..) to multiply `like` with.
        """
        share = self.alphas_cumprod().to(timesteps.device)[timesteps.long()]
        shape = (-1, *(1,) * (like.ndim - 1))
        return share.sqrt().to(like.dtype).view(shape), (1 - share).sqrt().to(like.dtype).view(
            shape
        )

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha * latents + sigma * noise.

        What the net sees at `timesteps` (B,), 0 .. timesteps - 1.
        """
        alpha, sigma = self.coefficients(timesteps, latents)
        return alpha * latents + sigma * noise

    def target(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, prediction: Prediction
    ) -> Tensor:
        """What the net is to predict: the noise, or v = alpha * noise - sigma * latents."""
        if prediction == "eps":
            return noise
        if prediction == "v":
            alpha, sigma = self.coefficients(timesteps, latents)
            return alpha * noise - sigma * latents
        raise CldmError(f"The prediction type is {prediction!r}, expected 'eps' or 'v'.")
