"""Stage 2 of the embedded model: the UNet together with its text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import sdpa
from ..config import TINY
from ..diffusion import NoiseSchedule
from ..unet import ControlledUNet
from .cache import VARIANTS, Cache
from .data import Emoji, random_caption
from .loop import Plan, train
from .text import new_text_encoder, tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PLAN = Plan(steps=3000, batch=32, lr=6e-4, seed=2, ema=0.9985, weight_decay=0.01)
EMPTY_PROMPTS = 0.1
SCHEDULE = NoiseSchedule()


def float_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, /) -> Tensor:
    """Attention in fp32 under autocast: its backward in bf16 took 2.5 times as long on a CPU."""
    with torch.autocast("cpu", enabled=False):
        return sdpa(q.float(), k.float(), v.float(), heads)


class TextToLatents(nn.Module):
    """The two nets that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = ControlledUNet(TINY, attention=float_attention)
        self.text = new_text_encoder()

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        eps: Tensor = self.unet(noisy, timesteps, self.text(tokens).last_hidden_state)
        return eps


def captions(
    pictures: Sequence[Emoji], chosen: Sequence[int], rng: np.random.Generator, *, empty: float
) -> list[str]:
    """A random caption for each chosen picture; a share `empty` of them is the empty prompt."""
    return ["" if rng.random() < empty else random_caption(pictures[i], rng) for i in chosen]


def train_unet(
    pictures: Sequence[Emoji],
    cache: Cache,
    tokenizer: CLIPTokenizer,
    folder: Path,
    plan: Plan = PLAN,
) -> TextToLatents:
    """The trained UNet and text encoder, with averaged weights."""
    torch.manual_seed(plan.seed)
    nets = TextToLatents()
    latents = cache.latents * cache.scale

    def loss_of(module: TextToLatents, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        chosen = rng.integers(len(pictures), size=plan.batch).tolist()
        clean = latents[chosen, rng.integers(VARIANTS, size=plan.batch)]
        tokens = tokenize(tokenizer, captions(pictures, chosen, rng, empty=EMPTY_PROMPTS))
        eps = torch.randn(clean.shape, generator=noise)
        timesteps = torch.randint(SCHEDULE.timesteps, (plan.batch,), generator=noise)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = module(SCHEDULE.add_noise(clean, eps, timesteps), timesteps, tokens)
        return F.mse_loss(predicted.float(), eps)

    nets.load_state_dict(train("unet", nets, loss_of, plan, folder))
    nets.eval().requires_grad_(False)
    return nets
