"""Stages 3 and 4 of the embedded model: ControlNets on the frozen UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..attention import sdpa
from ..controlnet import ControlNet
from ..pipeline import Picture, Pipeline
from ..surgery import add_control
from .cache import VARIANTS, Cache
from .data import Emoji
from .evaluate import HintOfPicture, Score, adherence, originals, sample
from .loop import Metrics, Plan, train
from .stage_unet import SCHEDULE, TextToLatents, captions, float_attention
from .text import tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# As many empty prompts as in the first trial; the paper has 50 %, with captions that say far more.
EMPTY_PROMPTS = 0.3
PROBES = 16
PROBE_STEPS = 15


@dataclass(frozen=True)
class Task:
    """A kind of hint: how it is made, how adherence to it is scored, how its net is trained."""

    name: str
    hint_of: HintOfPicture
    score: Score
    plan: Plan


def train_control(
    task: Task,
    pictures: Sequence[Emoji],
    held_out: Sequence[Emoji],
    cache: Cache,
    nets: TextToLatents,
    tokenizer: CLIPTokenizer,
    pipeline: Pipeline,
    folder: Path,
) -> ControlNet:
    """The trained net, with averaged weights.

    The record has the adherence on held-out pictures over the steps.
    """
    plan = task.plan
    torch.manual_seed(plan.seed)
    net = add_control(nets.unet, attention=float_attention)
    latents = cache.latents * cache.scale
    probes = held_out[:PROBES]
    hints = np.stack([task.hint_of(picture) for picture in originals(probes)])

    def loss_of(module: ControlNet, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        chosen = rng.integers(len(pictures), size=plan.batch).tolist()
        variants = rng.integers(VARIANTS, size=plan.batch).tolist()
        clean = latents[chosen, variants]
        tokens = tokenize(tokenizer, captions(pictures, chosen, rng, empty=EMPTY_PROMPTS))
        eps = torch.randn(clean.shape, generator=noise)
        timesteps = torch.randint(SCHEDULE.timesteps, (plan.batch,), generator=noise)
        with torch.autocast("cpu", torch.bfloat16):
            noisy = SCHEDULE.add_noise(clean, eps, timesteps)
            context = nets.text(tokens).last_hidden_state
            control = module(
                noisy, None, timesteps, context, hint=cache.hint(task.name, chosen, variants)
            )
            predicted = nets.unet(noisy, timesteps, context, control=control)
        return F.mse_loss(predicted.float(), eps)

    def evaluate(weights: dict[str, Tensor]) -> Metrics:
        probe = add_control(nets.unet, attention=sdpa)
        probe.load_state_dict(weights)
        prompts = [emoji.caption for emoji in probes]
        generated: Picture = sample(pipeline, prompts, probe.eval(), hints, steps=PROBE_STEPS)
        return {"adherence": float(np.mean(adherence(generated, hints, task.hint_of, task.score)))}

    net.load_state_dict(
        train(f"control_{task.name}", net, loss_of, plan, folder, evaluate=evaluate)
    )
    net.eval().requires_grad_(False)
    return net


CANNY_PLAN = Plan(
    steps=1500,
    batch=32,
    lr=6e-4,
    seed=3,
    floor=0.1,
    ema=0.99,
    weight_decay=0.01,
    evaluate_every=100,
)
MASK_PLAN = replace(CANNY_PLAN, steps=600, seed=4)
