"""AdamW, with its state in 32 or 8 bits, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import CldmError
from .config import TrainConfig

BETAS = (0.9, 0.999)
EPS = 1e-8
STATE_BYTES = {"adamw": 8, "adamw8bit": 2}
"""For each trained number: two averages of four bytes, or of one."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017) as config asks for it.

    Raises CldmError where 8 bits are asked for without bitsandbytes.
    """
    options: dict[str, Any] = {
        "lr": config.lr,
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw8bit":
        eight_bit: torch.optim.Optimizer = bitsandbytes().optim.AdamW8bit(parameters, **options)
        return eight_bit
    return torch.optim.AdamW(parameters, **options, fused=device.type in ("cpu", "cuda"))


def bitsandbytes() -> Any:
    """The package; raises CldmError where it isn't there, or finds no GPU to work with."""
    try:
        import bitsandbytes as found
    except (ImportError, OSError, RuntimeError) as error:
        raise CldmError(
            f"optimizer is adamw8bit, which needs the package bitsandbytes ({error}): install it "
            f"(pip install bitsandbytes), or take optimizer adamw."
        ) from error
    return found


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step 0 .. steps - 1: a linear warm-up, then constant or a cosine down to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.lr_schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
