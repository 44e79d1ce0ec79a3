"""Stage 1 of the embedded model: the autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Emoji, random_placement, render
from .loop import Metrics, Plan, train
from .vae import TinyVAE

PLAN = Plan(steps=3000, batch=16, lr=1.5e-3, seed=1, ema=0.998, evaluate_every=500)
# Noise on the latents in training: the decoder must forgive what a denoiser gets wrong.
LATENT_NOISE = 0.03


def pixels(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures (H, W, 3) in [0, 1] to one batch (B, 3, H, W) in [-1, 1], channels last."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return batch.contiguous(memory_format=torch.channels_last) * 2 - 1


def psnr(vae: TinyVAE, pictures: Tensor) -> float:
    """Mean peak signal-to-noise ratio of the reconstructions, dB, over pictures in [-1, 1]."""
    with torch.no_grad():
        error = torch.stack(
            [(vae.decode(vae.encode(p[None])) - p[None]).square().mean() / 4 for p in pictures]
        )
    return float((-10 * error.log10()).mean())


def _augmented(emoji: Emoji, rng: np.random.Generator) -> np.ndarray:
    picture, _ = render(emoji, random_placement(rng, low=0.8, high=1.4))
    # Half of the pictures with swapped channels: emoji are mostly yellow, and greens would be
    # learned late.
    return picture[..., rng.permutation(3)] if rng.integers(2) else picture


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + gradient L1 + squared error on [0, 1]: the first two keep edges, PSNR is the last."""
    loss = F.l1_loss(output, target) + 4 * F.mse_loss(output, target)
    for dim in (2, 3):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def train_vae(
    pictures: Sequence[Emoji],
    held_out: Sequence[Emoji],
    folder: Path,
    device: torch.device,
    plan: Plan = PLAN,
) -> TinyVAE:
    """The trained autoencoder on `device`; the record has the PSNR on the held-out pictures."""
    torch.manual_seed(plan.seed)
    vae = TinyVAE().to(device)
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    probe = pixels([render(emoji)[0] for emoji in held_out]).to(device)

    def loss_of(rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        chosen = rng.integers(len(pictures), size=plan.batch).tolist()
        target = pixels([_augmented(pictures[i], rng) for i in chosen]).to(device) * 0.5 + 0.5
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encoder(target)
            blur = torch.randn(latents.shape, generator=noise, device=device)
            output = vae.decoder(latents + LATENT_NOISE * blur)
        return reconstruction_loss(output.float(), target)

    def evaluate(weights: dict[str, Tensor]) -> Metrics:
        averaged = TinyVAE().to(device)
        averaged.load_state_dict(weights)
        return {"psnr": psnr(averaged, probe)}

    vae.load_state_dict(train("vae", vae, loss_of, plan, folder, evaluate=evaluate))
    vae.eval().requires_grad_(False)
    return vae
