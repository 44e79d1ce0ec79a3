"""Stage 2 of the embedded model: the UNet together with its text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..attention import sdpa
from ..config import TINY
from ..unet import ControlledUNet
from .batches import SCHEDULE, Batches, Noising, Prompts
from .cache import Cache
from .data import Emoji, render
from .loop import Metrics, Plan, graphed, train
from .stage_vae import pixels
from .text import new_text_encoder, tokenize
from .vae import TinyVAE

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PLAN = Plan(
    steps=17_000,
    batch=256,
    lr=1e-3,
    seed=2,
    warmup=500,
    ema=0.9995,
    weight_decay=0.01,
    evaluate_every=500,
)
PROMPTS = Prompts(empty=0.1)
# Only in training: it puts off learning the pictures by heart (README.md).
DROPOUT = 0.1
PROBES_EACH = 8


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
        self.unet = ControlledUNet(replace(TINY, dropout=DROPOUT), attention=training_attention)
        self.text = new_text_encoder()

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        # CUDA graphs can't be made with autocast's cache, and no weight is used twice.
        with torch.autocast(noisy.device.type, torch.bfloat16, cache_enabled=False):
            eps: Tensor = self.unet(noisy, timesteps, self.text(tokens).last_hidden_state)
        return eps


class HeldOut:
    """The loss on held-out pictures, at timesteps spread over the schedule, with fixed noise."""

    def __init__(
        self, pictures: Sequence[Emoji], vae: TinyVAE, scale: float, tokenizer: CLIPTokenizer
    ) -> None:
        device = next(vae.parameters()).device
        count = PROBES_EACH * len(pictures)
        with torch.no_grad():
            latents = vae.encode(pixels([render(emoji)[0] for emoji in pictures]).to(device))
        self.noise = torch.randn(
            (count, *latents.shape[1:]), generator=torch.Generator().manual_seed(PLAN.seed)
        ).to(device)
        self.timesteps = torch.arange(count, device=device) * SCHEDULE.timesteps // count
        clean = latents.repeat(PROBES_EACH, 1, 1, 1) * scale
        self.noising = Noising(device)
        self.noisy = self.noising.add(clean, self.noise, self.timesteps)
        tokens = tokenize(tokenizer, [emoji.caption for emoji in pictures])
        self.tokens = tokens.repeat(PROBES_EACH, 1).to(device)

    @torch.no_grad()
    def __call__(self, weights: dict[str, Tensor]) -> Metrics:
        nets = TextToLatents().to(self.noisy.device).eval()
        nets.load_state_dict(weights)
        predicted = nets(self.noisy, self.timesteps, self.tokens)
        loss = self.noising.loss(predicted, self.noise, self.timesteps)
        return {"held_out_loss": loss.item()}


def train_unet(
    pictures: Sequence[Emoji],
    cache: Cache,
    tokenizer: CLIPTokenizer,
    evaluate: HeldOut,
    folder: Path,
    plan: Plan = PLAN,
) -> TextToLatents:
    """The trained UNet and text encoder, with averaged weights, on the cache's device."""
    torch.manual_seed(plan.seed)
    nets = TextToLatents().to(cache.latents.device)
    batches = Batches(pictures, cache, tokenizer, plan.batch)
    sample = batches.draw(torch.Generator(batches.device), PROMPTS)
    predict = graphed(nets, sample.noisy, sample.timesteps, sample.tokens)

    def loss_of(_: np.random.Generator, generator: torch.Generator) -> Tensor:
        batch = batches.draw(generator, PROMPTS)
        return batches.loss(predict(batch.noisy, batch.timesteps, batch.tokens), batch)

    nets.load_state_dict(train("unet", nets, loss_of, plan, folder, evaluate=evaluate))
    nets.eval().requires_grad_(False)
    return nets
