"""Nets, inputs and counts for the tests of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core import (
    TINY,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    NoiseSchedule,
    UNetConfig,
)
from controlnet_pack.cldm_core.training import training_loss

from .parity_cases import Case
from .seeded import seeded_module

UNET, CONTROL = 2, 1
SMALL = replace(TINY, model_channels=32, num_head_channels=16, context_dim=24)


def unet_of(config: UNetConfig = SMALL) -> ControlledUNet:
    """With weights in every layer, zero-initialised ones included; frozen."""
    return seeded_module(ControlledUNet, config, UNET)


def net_of(config: UNetConfig = SMALL, **options: Any) -> ControlNet:
    return seeded_module(ControlNet, ControlNetConfig(config, **options), CONTROL)


@dataclass(frozen=True)
class Step:
    """What one step is fed."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    context: Tensor
    hint: Tensor
    y: Tensor | None = None

    def loss(self, unet: nn.Module, net: nn.Module, **options: Any) -> Tensor:
        return training_loss(
            unet,
            net,
            self.latents,
            self.noise,
            self.timesteps,
            self.context,
            self.hint,
            y=self.y,
            **{"schedule": NoiseSchedule(), **options},
        )

    def to(self, dtype: torch.dtype) -> "Step":
        floating = {
            name: value.to(dtype)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        return replace(self, **floating)


def step_of(config: UNetConfig = SMALL, *, batch: int = 2, size: tuple[int, int] = (8, 8)) -> Step:
    def draw(name: str, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        return torch.randn(batch, *shape, generator=generator)

    adm = config.adm_in_channels
    return Step(
        draw("latents", config.in_channels, *size),
        draw("noise", config.in_channels, *size),
        (torch.arange(batch) * 391 + 20) % 1000,
        draw("context", 5, config.context_dim),
        draw("hint", 3, 8 * size[0], 8 * size[1]).sigmoid(),
        None if adm is None else draw("y", adm),
    )


def config_of(case: Case) -> UNetConfig:
    return UNetConfig.from_params(case.unet_params)


class Kept:
    """Bytes that a forward keeps for its backward, each memory once, weights left out."""

    def __init__(self, *modules: nn.Module) -> None:
        self._weights = {
            weight.untyped_storage().data_ptr() for m in modules for weight in m.parameters()
        }
        self._sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()


@contextmanager
def kept(*modules: nn.Module) -> Iterator[Kept]:
    found = Kept(*modules)
    with torch.autograd.graph.saved_tensors_hooks(found.add, lambda tensor: tensor):
        yield found


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients there are, which are then forgotten."""
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found
