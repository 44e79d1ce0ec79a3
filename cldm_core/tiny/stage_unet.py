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
from ..unet import ControlledUNet
from .batches import Batches
from .cache import Cache
from .data import Emoji
from .loop import Plan, graphed, train
from .text import new_text_encoder

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PLAN = Plan(steps=3000, batch=32, lr=6e-4, seed=2, ema=0.9985, weight_decay=0.01)
EMPTY_PROMPTS = 0.1


def training_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, /) -> Tensor:
    """On a CPU in fp32 even under autocast: the backward in bf16 took 2.5 times as long there."""
    if q.is_cuda:
        return sdpa(q, k, v, heads)
    with torch.autocast("cpu", enabled=False):
        return sdpa(q.float(), k.float(), v.float(), heads)


class TextToLatents(nn.Module):
    """The two nets that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = ControlledUNet(TINY, attention=training_attention)
        self.text = new_text_encoder()

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        # CUDA graphs can't be made with autocast's cache, and no weight is used twice.
        with torch.autocast(noisy.device.type, torch.bfloat16, cache_enabled=False):
            eps: Tensor = self.unet(noisy, timesteps, self.text(tokens).last_hidden_state)
        return eps


def train_unet(
    pictures: Sequence[Emoji],
    cache: Cache,
    tokenizer: CLIPTokenizer,
    folder: Path,
    plan: Plan = PLAN,
) -> TextToLatents:
    """The trained UNet and text encoder, with averaged weights, on the cache's device."""
    torch.manual_seed(plan.seed)
    nets = TextToLatents().to(cache.latents.device)
    batches = Batches(pictures, cache, tokenizer, plan.batch)
    sample = batches.draw(torch.Generator(batches.device), EMPTY_PROMPTS)
    predict = graphed(nets, sample.noisy, sample.timesteps, sample.tokens)

    def loss_of(_: np.random.Generator, generator: torch.Generator) -> Tensor:
        batch = batches.draw(generator, EMPTY_PROMPTS)
        predicted = predict(batch.noisy, batch.timesteps, batch.tokens)
        return F.mse_loss(predicted.float(), batch.noise)

    nets.load_state_dict(train("unet", nets, loss_of, plan, folder))
    nets.eval().requires_grad_(False)
    return nets
