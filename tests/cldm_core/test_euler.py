"""Euler's method over noise levels that are handed in."""

import pytest
import torch
from torch import Tensor

from controlnet_pack.cldm_core.euler import EulerScheduler

SIGMAS = {4: torch.tensor([8.0, 3.0, 1.0, 0.25, 0.0])}


class Noise:
    """A sampling whose models predict the noise, as ComfyUI's EPS."""

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * 10

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise / (sigma**2 + 1) ** 0.5

    def calculate_denoised(
        self, sigma: Tensor, model_output: Tensor, model_input: Tensor
    ) -> Tensor:
        return model_input - model_output * sigma


@pytest.fixture
def scheduler() -> EulerScheduler:
    made = EulerScheduler(Noise(), SIGMAS.__getitem__)
    made.set_timesteps(4)
    return made


def test_it_tells_the_timesteps_and_the_noise_to_begin_with(scheduler: EulerScheduler) -> None:
    assert scheduler.timesteps.tolist() == [80, 30, 10, 2.5]
    assert scheduler.init_noise_sigma == pytest.approx(65**0.5)


def test_where_the_noise_is_told_right_it_ends_at_the_picture(scheduler: EulerScheduler) -> None:
    picture, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    x = picture + 8 * noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(noise, timestep, x).prev_sample
    torch.testing.assert_close(x, picture, rtol=0, atol=1e-5)


def test_the_model_reads_latents_of_variance_1(scheduler: EulerScheduler) -> None:
    x = 8 * torch.ones(1, 1, 1, 1)
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]).item() == pytest.approx(
        8 / 65**0.5
    )
