"""What a run would do, in words and numbers, before anything is loaded or written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..hints import HINT_SCALE
from .batches import PLACES
from .checkpoints import Checkpoints
from .config import NONE, TrainConfig
from .layers import TOKENS
from .models import TYPES, resolution_of, unet_of
from .optimizers import STATE_BYTES, bitsandbytes
from .plan import (
    adherence_of,
    cache_folder,
    make_net,
    named_annotator,
    open_data,
    score_of,
    split,
)
from .session import device_of, processes
from .trainables import NOUNS, Trainable

if TYPE_CHECKING:
    from ..config import UNetConfig

GIGA = 1e9


def dry_run(config: TrainConfig) -> list[str]:
    """Sentences that say what a run with these settings would do.

    Of the base model only the header is read. Raises CldmError for what the run itself would refuse
    before its first step.
    """
    annotator, score = named_annotator(config), score_of(config)
    if config.optimizer == "adamw8bit":
        bitsandbytes()
    unet = unet_of(config)
    side = resolution_of(config, unet.config)
    training, held_out = split(config, open_data(config, side))
    if annotator is None or training[0].hint is not None:
        training[0].read_hint()
    followed = adherence_of(config, annotator)
    hints = "stored with the pairs"
    if annotator is not None:
        hints += f", and made by {config.annotator} where there are none"
    trainable = make_net(config, unet)
    start = f"from {config.init}" if config.init else "from the base's encoder"
    count = sum(weight.numel() for weight in trainable.parameters())
    return [
        f"Data: {config.data}, {len(training)} pairs to train on and {len(held_out)} held out, at "
        f"{side}x{side} pixels; hints are {hints}.",
        f"Net: {NOUNS[config.kind]} on {config.base}, {start}, with {count:,} trained weights.",
        _steps(config, len(training)),
        _memory(config, trainable, count),
        _disk(config, trainable, count, scored=bool(held_out) and followed is not None),
        _cache(config, unet.config, side, len(training)),
        _evaluations(config, score.title if followed else None),
        "Time: not known before the first steps; the history notes the seconds of each.",
        _existing(config),
    ]


def _steps(config: TrainConfig, pairs: int) -> str:
    world = processes()[1]
    together = config.batch_size * config.accumulation * world
    times = config.steps * together / pairs
    return (
        f"Steps: {config.steps} of {together} pairs ({config.batch_size} at once x "
        f"{config.accumulation} batches x {world} processes), {times:.1f} "
        f"times through the data, on {device_of(config).type} in {config.precision}."
    )


def _memory(config: TrainConfig, trainable: Trainable, count: int) -> str:
    """The part that is arithmetic; what activations take depends on device and libraries."""
    frozen = sum(
        weight.numel() * weight.element_size()
        for weight in trainable.unet.parameters()
        if not weight.requires_grad
    )
    state = STATE_BYTES[config.optimizer]
    trained = count * (4 + 4 + state + (4 if config.ema else 0))
    return (
        f"Memory: {_size(frozen + trained)} for the frozen UNet, the trained weights, their "
        f"gradients and {config.optimizer}{' and averages' if config.ema else ''}; activations, "
        f"autoencoder and text encoder come on top."
    )


def _disk(config: TrainConfig, trainable: Trainable, count: int, *, scored: bool) -> str:
    """What checkpoints and nets take, while one of them more is written."""
    state = STATE_BYTES[config.optimizer]
    files = (trainable.state_dict_to_save(), trainable.unet_state_dict_to_save() or {})
    numbers = sum(value.numel() for tensors in files for value in tensors.values())
    net = numbers * TYPES[config.save_dtype].itemsize
    one = count * (4 + state + (4 if config.ema else 0)) + net
    written = max(1, -(-config.steps // config.save_every))
    better = -(-config.steps // config.evaluate_every) if scored else 0
    most = min(config.keep + 1, written + better) + 1
    nets = 3 if scored else 2
    place = next(folder for folder in Path(config.out).absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    return (
        f"Disk: {written} checkpoints of about {_size(one)} each are written to {config.out}"
        f"{', and one for each better score' if scored else ''}, at most {most} at a time; with "
        f"the nets themselves {_size(most * one + nets * net)} of {_size(free)} that are free."
    )


def _cache(config: TrainConfig, unet: UNetConfig, side: int, pairs: int) -> str:
    """What latents and embeddings take where no two prompts are alike."""
    folder = cache_folder(config)
    if folder is None:
        return "Cache: none; pictures and prompts are encoded each time."
    rows = config.steps * config.batch_size * config.accumulation * processes()[1]
    crops = PLACES if config.crop == "random" else 1
    latents = min(rows, pairs * crops * (2 if config.flip else 1))
    latent = unet.in_channels * (side // HINT_SCALE) ** 2 * 4
    texts = pairs if config.drop_prompt < 1 else 0
    if unet.adm_in_channels:  # SDXL's are kept with the sizes, those of the empty prompt too
        texts = crops * (texts + (pairs if config.drop_prompt > 0 else 0))
    text = (TOKENS * (unet.context_dim or 0) + (unet.adm_in_channels or 0)) * 4
    return (
        f"Cache: up to {_size(latents * latent + min(rows, texts) * text)} in {folder}, and hints "
        f"that are made; with cache {NONE} nothing is kept."
    )


def _evaluations(config: TrainConfig, score: str | None) -> str:
    if not config.evaluate_every or not config.held_out:
        return "Evaluation: none."
    times = 1 + -(-config.steps // config.evaluate_every)
    scored = f"scored by {score}" if score else "and nothing scores them (annotator)"
    return (
        f"Evaluation: {times} times {config.held_out} samples of {config.sample_steps} steps, "
        f"{scored}."
    )


def _existing(config: TrainConfig) -> str:
    steps = Checkpoints(Path(config.out) / "checkpoints", config.keep).steps()
    if not steps:
        return f"{config.out} holds no run yet."
    return f"{config.out} holds a run at step {steps[-1]}: --resume goes on with it."


def _size(count: float) -> str:
    return f"{count / GIGA:.2f} GB"
