"""The forward process: constants of Stable Diffusion, and targets that give the latents back."""

import pytest
import torch

from controlnet_pack.cldm_core import CldmError, NoiseSchedule

SCHEDULE = NoiseSchedule()


def test_constants_of_stable_diffusion() -> None:
    share = SCHEDULE.alphas_cumprod()
    # sigma = sqrt((1 - a) / a) at both ends, as samplers of SD 1.x print it.
    sigmas = ((1 - share) / share).sqrt()
    assert sigmas[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert sigmas[-1].item() == pytest.approx(14.6146, abs=1e-3)
    assert share.dtype == torch.float64
    assert (share.diff() < 0).all()


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_target_leads_back_to_the_latents(prediction: str) -> None:
    latents, noise = torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3)
    timesteps = torch.tensor([0, 1, 400, 800, 999])
    noisy = SCHEDULE.add_noise(latents, noise, timesteps)
    target = SCHEDULE.target(latents, noise, timesteps, prediction)
    alpha, sigma = SCHEDULE.coefficients(timesteps, latents)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    found = (
        (noisy - sigma * target) / alpha if prediction == "eps" else alpha * noisy - sigma * target
    )
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-4)


def test_an_unknown_prediction_is_refused() -> None:
    latents = torch.zeros(1, 1)
    with pytest.raises(CldmError, match="expected 'eps' or 'v'"):
        SCHEDULE.target(latents, latents, torch.tensor([3]), "x0")
