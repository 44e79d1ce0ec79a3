"""Euler's method over noise levels that are handed in, in the form of diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Sampling(Protocol):
    """How a model is asked at a noise level, under the names that ComfyUI's models have."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the UNet is told of noise levels (S,): (S,)."""

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """What the UNet reads of latents with this noise."""

    def calculate_denoised(
        self, sigma: Tensor, model_output: Tensor, model_input: Tensor
    ) -> Tensor:
        """The latents without noise, by what the UNet predicts of them."""


class Stepped(NamedTuple):
    """What a scheduler's step gives, by its name in diffusers."""

    prev_sample: Tensor


class EulerScheduler:
    """Euler's method, for pipelines where diffusers is missing or has another noise schedule.

    sigmas: the noise levels (steps + 1,) of so many steps, falling to 0.
    """

    def __init__(self, sampling: Sampling, sigmas: Callable[[int], Tensor]) -> None:
        self.sampling, self.sigmas = sampling, sigmas
        self.init_noise_sigma = 1.0

    def set_timesteps(self, steps: int) -> None:
        """Sets the steps of the next sampling, and how strong the noise is that it begins with."""
        self._sigmas = self.sigmas(steps)
        self.timesteps = self.sampling.timestep(self._sigmas[:-1])
        self.init_noise_sigma = float((1 + self._sigmas[0].square()).sqrt())

    def scale_model_input(self, x: Tensor, timestep: Tensor) -> Tensor:
        """What the UNet reads of latents that have the noise of this step."""
        return self.sampling.calculate_input(self._sigmas[self._at(timestep)].to(x), x)

    def step(self, predicted: Tensor, timestep: Tensor, x: Tensor) -> Stepped:
        """Latents with the noise of the next step."""
        place = self._at(timestep)
        now, then = self._sigmas[place : place + 2].to(x)
        clean = self.sampling.calculate_denoised(now, predicted, x)
        return Stepped(x + (x - clean) / now * (then - now))

    def _at(self, timestep: Tensor) -> int:
        return int((self.timesteps == timestep).nonzero()[0])
