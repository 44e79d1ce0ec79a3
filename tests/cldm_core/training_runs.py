"""A net and batches so small that a step takes milliseconds, for the tests of the training loop."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from controlnet_pack.cldm_core import TINY, ControlledUNet
from controlnet_pack.cldm_core.checkpoint.read import read
from controlnet_pack.cldm_core.training import Trainable, make_trainable
from controlnet_pack.cldm_core.training.batches import Batch
from controlnet_pack.cldm_core.training.config import TrainConfig

from .seeded import seeded_module

SMALL = replace(
    TINY,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    transformer_depth=(1, 0),
    transformer_depth_output=(0, 0, 1, 1),
    num_head_channels=32,
    context_dim=16,
)
SIDE, TOKENS = 4, 3
STATE = ("trained.safetensors", "averages.safetensors")


def small_trainable(kind: str = "controlnet", seed: int = 0, **options: Any) -> Trainable:
    """A new net on a small UNet; the same numbers for the same seed."""
    unet = seeded_module(ControlledUNet, SMALL, 3)
    torch.manual_seed(seed)
    return make_trainable(kind, unet, **options)


class SmallBatches:
    """Batches that are functions of their number and row alone, as those of pictures are.

    spoil: is given the batch of a number and gives what to use in its place, or raises.
    """

    def __init__(
        self,
        batch_size: int = 2,
        rank: int = 0,
        world: int = 1,
        spoil: Callable[[int, Batch], Batch] | None = None,
    ) -> None:
        self.batch_size, self.rank, self.world, self.spoil = batch_size, rank, world, spoil
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> Batch:
        self.asked.append(index)
        rows = [
            index * self.batch_size * self.world + self.rank * self.batch_size + row
            for row in range(self.batch_size)
        ]
        batch = Batch(
            torch.stack([numbers(row, 4, SIDE, SIDE) for row in rows]),
            torch.stack([numbers(row, 3, 8 * SIDE, 8 * SIDE).sigmoid() for row in rows]),
            torch.stack([numbers(row, TOKENS, 16) for row in rows]),
            None,
            tuple(f"pair {row}" for row in rows),
        )
        return batch if self.spoil is None else self.spoil(index, batch)

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        index = start
        while True:
            yield self[index]
            index += 1


def numbers(row: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(row))


def small_config(out: Path, **options: Any) -> TrainConfig:
    """Six steps of a cautious run with everything that has a state."""
    usual = {
        "steps": 6,
        "batch_size": 2,
        "lr": 1e-3,
        "warmup": 2,
        "lr_schedule": "cosine",
        "ema": 0.9,
        "save_every": 2,
        "keep": 10,
        "log_every": 1,
        "save_dtype": "fp32",
        "device": "cpu",
        "out": str(out),
    }
    return TrainConfig(**{**usual, **options})


def state_of(out: Path, step: int) -> dict[str, torch.Tensor]:
    """What the checkpoint of a step holds of the net: its weights, their averages, the moments."""
    folder = out / "checkpoints" / f"step-{step:08d}"
    found = {
        f"{name}/{key}": value
        for name in STATE
        if (folder / name).exists()
        for key, value in read(folder / name).tensors.items()
    }
    moments = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    for number, values in moments.items():
        found |= {f"optimizer/{number}/{name}": value for name, value in values.items()}
    return found
