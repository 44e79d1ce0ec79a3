"""Stages 3 and 4 of the embedded model: ControlNets on the frozen UNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import sdpa
from ..controlnet import ControlNet
from ..pipeline import Picture, Pipeline
from ..surgery import add_control
from .batches import Batch, Batches
from .cache import Cache
from .data import Emoji
from .evaluate import HintOfPicture, Score, adherence, originals, sample
from .loop import Metrics, Plan, graphed, train
from .stage_unet import TextToLatents, training_attention

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


class Steered(nn.Module):
    """The frozen nets with a ControlNet on them."""

    def __init__(self, net: ControlNet, nets: TextToLatents) -> None:
        super().__init__()
        self.net, self.nets = net, nets

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, hint: Tensor) -> Tensor:
        with torch.autocast(noisy.device.type, torch.bfloat16, cache_enabled=False):
            context = self.nets.text(tokens).last_hidden_state
            # Not encode_hint: it looks at the hint's values, which a CUDA graph can't.
            features = self.net.input_hint_block(hint)
            control = self.net(noisy, features, timesteps, context)
            eps: Tensor = self.nets.unet(noisy, timesteps, context, control=control)
        return eps


def _loss(
    hint_name: str,
    net: ControlNet,
    nets: TextToLatents,
    cache: Cache,
    batches: Batches,
) -> Callable[[np.random.Generator, torch.Generator], Tensor]:
    """What `train` calls for each step."""

    def inputs(batch: Batch) -> tuple[Tensor, ...]:
        hint = cache.hint(hint_name, batch.pictures, batch.variants)
        return batch.noisy, batch.timesteps, batch.tokens, hint

    first = batches.draw(torch.Generator(batches.device), EMPTY_PROMPTS)
    predict = graphed(Steered(net, nets), *inputs(first))

    def loss_of(_: np.random.Generator, generator: torch.Generator) -> Tensor:
        batch = batches.draw(generator, EMPTY_PROMPTS)
        return F.mse_loss(predict(*inputs(batch)).float(), batch.noise)

    return loss_of


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
    """The trained net, with averaged weights, on the cache's device.

    The record has the adherence on held-out pictures over the steps.
    """
    torch.manual_seed(task.plan.seed)
    net = add_control(nets.unet, attention=training_attention)
    probes = held_out[:PROBES]
    hints = np.stack([task.hint_of(picture) for picture in originals(probes)])

    def evaluate(weights: dict[str, Tensor]) -> Metrics:
        probe = add_control(nets.unet, attention=sdpa)
        probe.load_state_dict(weights)
        prompts = [emoji.caption for emoji in probes]
        generated: Picture = sample(pipeline, prompts, probe.eval(), hints, steps=PROBE_STEPS)
        return {"adherence": float(np.mean(adherence(generated, hints, task.hint_of, task.score)))}

    batches = Batches(pictures, cache, tokenizer, task.plan.batch)
    loss_of = _loss(task.name, net, nets, cache, batches)
    weights = train(f"control_{task.name}", net, loss_of, task.plan, folder, evaluate=evaluate)
    net.load_state_dict(weights)
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
