"""The random numbers of a step: what is added to its latents, and at which timesteps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def draw(
    like: Tensor, timesteps: int, key: tuple[int, int, int], *, rank: int = 0, world: int = 1
) -> tuple[Tensor, Tensor]:
    """Noise of the shape of latents (B, C, h, w) and whole timesteps (B,), 0 .. timesteps - 1.

    key: seed, step, and batch within the step; nothing else decides the numbers, so a run that goes
    on sees those of one that was never stopped. They are drawn on the CPU, for the batches of all
    processes together, of which each takes its rows: two processes see what one would see with
    twice the batch. They come back on the device of `like`, the noise in its type.
    """
    rows, *shape = like.shape
    number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(number)
    steps = torch.randint(timesteps, (rows * world,), generator=generator)
    noise = torch.randn(rows * world, *shape, generator=generator)
    own = slice(rank * rows, (rank + 1) * rows)
    return noise[own].to(like), steps[own].to(like.device)
