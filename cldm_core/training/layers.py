"""Which layers a run trains in: lean ones, or PyTorch's own where a GPU has room for them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from ..diffusion import NoiseSchedule
from .batches import stand_in
from .config import TrainConfig
from .loss import training_loss
from .models import resolution_of
from .optimizers import STATE_BYTES

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .trainables import Trainable

log = logging.getLogger("cldm_core")

FLOAT = 4
"""Bytes of a trained number, its gradient or its average."""
TOKENS = 77
"""Of CLIP; the embedded model's prompts are shorter."""
PART = 0.8
"""Of a GPU's free memory; the rest is for what other batches and the samples need besides."""


def in_layers(trainable: Trainable, config: TrainConfig, accelerator: Accelerator) -> Trainable:
    """The trainable, which is on the accelerator's device, in the layers that config names.

    auto is lean layers on a processor, where they take less time too. On a CUDA GPU it is PyTorch's
    own, which are launched sooner, where a step in them leaves room; processes may differ.
    """
    if config.layers == "lean" or config.checkpointing:
        return trainable
    own = trainable.plain()
    if config.layers == "plain":
        return own
    on_gpu = accelerator.device.type == "cuda"
    return own if on_gpu and has_room(own, config, accelerator) else trainable


def has_room(trainable: Trainable, config: TrainConfig, accelerator: Accelerator) -> bool:
    """Whether a run on a CUDA GPU fits into PART of its free memory, as one step tells."""
    device = accelerator.device
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with accelerator.autocast():
            try_step(trainable, config, device)
    except torch.cuda.OutOfMemoryError:
        return False
    needed = torch.cuda.max_memory_allocated(device) - before
    needed += bytes_between_steps(trainable, config, accelerator.num_processes)
    fits = needed <= PART * free
    log.info(
        "Training in PyTorch's own layers takes %.1f of %.1f GB: %s layers are taken.",
        needed / 1e9,
        free / 1e9,
        "these" if fits else "lean",
    )
    return fits


def try_step(trainable: Trainable, config: TrainConfig, device: torch.device) -> None:
    """A forward and backward pass of zeros, of the size of a batch, that leaves nothing behind."""
    unet, count = trainable.unet.config, config.batch_size
    side = resolution_of(config, unet)
    batch = stand_in(unet, count=count, side=side, tokens=TOKENS).to(device)
    try:
        training_loss(
            trainable.unet,
            trainable.net,
            batch.latents,
            batch.latents,
            torch.zeros(count, dtype=torch.long, device=device),
            batch.context,
            batch.hint,
            schedule=NoiseSchedule(),
            prediction=unet.prediction,
            y=batch.y,
            only_mid_control=trainable.only_mid_control,
        ).backward()
    finally:
        for weight in trainable.parameters():
            weight.grad = None


def bytes_between_steps(trainable: Trainable, config: TrainConfig, processes: int) -> int:
    """What a run keeps besides its weights, and a first step doesn't show: all that trains."""
    kept = STATE_BYTES[config.optimizer]
    kept += FLOAT * ((config.accumulation > 1) + bool(config.ema) + (processes > 1))
    return kept * sum(weight.numel() for weight in trainable.parameters())
