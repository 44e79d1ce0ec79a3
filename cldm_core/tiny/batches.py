"""Training batches of the UNet and of the ControlNets, drawn where the latents are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..diffusion import NoiseSchedule
from .cache import Cache
from .data import Emoji, random_caption
from .text import tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SCHEDULE = NoiseSchedule()
CAPTIONS = 32
SEED = 8


class Noising:
    """NoiseSchedule.add_noise, from tables on the device: no step waits for a copy."""

    def __init__(self, device: torch.device) -> None:
        share = SCHEDULE.alphas_cumprod()
        self.alpha = share.sqrt().float().to(device)
        self.sigma = (1 - share).sqrt().float().to(device)

    def add(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha, sigma = (table[timesteps].view(-1, 1, 1, 1) for table in (self.alpha, self.sigma))
        return alpha * latents + sigma * noise


@dataclass(frozen=True)
class Batch:
    """What a step sees: noisy latents, timesteps and tokens, the noise, and where they are from."""

    noisy: Tensor
    timesteps: Tensor
    tokens: Tensor
    noise: Tensor
    pictures: Tensor
    variants: Tensor


def caption_tokens(pictures: Sequence[Emoji], tokenizer: CLIPTokenizer) -> Tensor:
    """Tokens (pictures, CAPTIONS, LENGTH) of random captions: no step waits for the tokenizer."""
    rng = np.random.default_rng(SEED)
    texts = [random_caption(emoji, rng) for emoji in pictures for _ in range(CAPTIONS)]
    return tokenize(tokenizer, texts).view(len(pictures), CAPTIONS, -1)


class Batches:
    """Random pictures in random placements, with random captions, noise and timesteps."""

    def __init__(
        self, pictures: Sequence[Emoji], cache: Cache, tokenizer: CLIPTokenizer, size: int
    ) -> None:
        self.size, self.device = size, cache.latents.device
        self.noising = Noising(self.device)
        self.latents = cache.latents * cache.scale
        self.captions = caption_tokens(pictures, tokenizer).to(self.device)
        self.no_caption = tokenize(tokenizer, [""]).to(self.device)

    def draw(self, generator: torch.Generator, empty_prompts: float) -> Batch:
        """A batch; a share of its prompts is empty; the generator is on self.device."""

        def below(bound: int) -> Tensor:
            return torch.randint(bound, (self.size,), generator=generator, device=self.device)

        def happens(share: float) -> Tensor:
            return torch.rand(self.size, generator=generator, device=self.device) < share

        pictures, variants = below(len(self.latents)), below(self.latents.shape[1])
        clean = self.latents[pictures, variants]
        empty, caption = happens(empty_prompts), below(CAPTIONS)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        timesteps = below(SCHEDULE.timesteps)
        tokens = torch.where(empty[:, None], self.no_caption, self.captions[pictures, caption])
        noisy = self.noising.add(clean, noise, timesteps)
        return Batch(noisy, timesteps, tokens, noise, pictures, variants)
