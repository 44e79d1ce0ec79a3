"""Training on a GPU: lean layers against plain ones, and against the CPU."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core import (
    TINY,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    NoiseSchedule,
)
from controlnet_pack.cldm_core.training import layers, lean, make_trainable, training_loss
from controlnet_pack.cldm_core.training.config import TrainConfig

from .cases import weighted

pytestmark = pytest.mark.cuda

LINEAR = replace(TINY, use_linear_in_transformer=True)
CONFIGS = pytest.mark.parametrize("config", [TINY, LINEAR], ids=["conv", "linear"])


def nets(config: Any, device: str = "cuda", unet_type: torch.dtype = torch.float32) -> Any:
    unet = weighted(ControlledUNet(config), 1)
    net = weighted(ControlNet(ControlNetConfig(config)), 2).requires_grad_(True).train()
    return unet.to(device, unet_type), net.to(device)


def loss_of(unet: nn.Module, net: nn.Module, *, batch: int = 2, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    device = next(net.parameters()).device

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).to(device)

    times = torch.randint(1000, (batch,), generator=generator).to(device)
    latents, noise, context = draw(4, size, size), draw(4, size, size), draw(7, 128)
    hint = draw(3, 8 * size, 8 * size).sigmoid()
    schedule = NoiseSchedule()
    return training_loss(unet, net, latents, noise, times, context, hint, schedule=schedule)


def gradient(net: nn.Module) -> Tensor:
    found = torch.cat([weight.grad.flatten() for weight in net.parameters()])
    net.zero_grad(set_to_none=True)
    return found


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@CONFIGS
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_fp32_equals_the_cpu(config, checkpointing):
    found = []
    for device in ("cpu", "cuda"):
        unet, net = nets(config, device)
        unet, net = (lean(m, checkpointing=checkpointing) for m in (unet, net))
        loss = loss_of(unet, net)
        loss.backward()
        found.append((loss.item(), gradient(net).cpu()))
    assert abs(found[1][0] / found[0][0] - 1) < 1e-3
    assert apart(found[1][1], found[0][1]) < 1e-3


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_has_the_values_of_plain_layers(config, dtype):
    unet, net = nets(config)
    found = []
    for view in (lambda m: m, lean):
        with torch.autocast("cuda", dtype):
            loss = loss_of(view(unet), view(net))
        loss.backward()
        found.append((loss.item(), gradient(net)))
    assert found[0][0] == found[1][0]
    assert apart(found[1][1], found[0][1]) < 0.02


@CONFIGS
def test_a_frozen_unet_in_bf16_has_the_values_of_plain_layers(config):
    unet, net = nets(config, unet_type=torch.bfloat16)
    losses = [loss_of(view(unet), view(net)).item() for view in (lambda m: m, lean)]
    assert losses[0] == losses[1]


def test_channels_last_trains():
    unet, net = (m.to(memory_format=torch.channels_last) for m in nets(TINY))
    found = []
    for view in (lambda m: m, lean):
        loss_of(view(unet), view(net)).backward()
        found.append(gradient(net))
    assert apart(found[1], found[0]) < 0.02


def test_lean_layers_and_checkpointing_take_less_memory():
    unet, net = nets(TINY)
    peaks = []
    for view in (lambda m: m, lean, lambda m: lean(m, checkpointing=True)):
        net.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss_of(view(unet), view(net), batch=8, size=32).backward()
        peaks.append(torch.cuda.max_memory_allocated() - base)
    assert peaks[1] < 0.8 * peaks[0]
    assert peaks[2] < 0.8 * peaks[1]


@pytest.mark.parametrize("kind", ["controlnet", "control_lora", "lllite"])
def test_every_kind_trains(kind):
    unet, _ = nets(TINY)
    trainable = make_trainable(kind, unet)
    optimizer = torch.optim.AdamW(trainable.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(trainable.unet, trainable.net)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_run_tries_which_layers_have_room(monkeypatch):
    accelerator: Any = SimpleNamespace(
        device=torch.device("cuda"), autocast=nullcontext, num_processes=1
    )
    trainable = make_trainable("controlnet", nets(TINY)[0])
    before = torch.cuda.memory_allocated()
    for part, fits in ((0.8, True), (1e-6, False)):
        monkeypatch.setattr(layers, "PART", part)
        assert layers.has_room(trainable.plain(), TrainConfig(), accelerator) == fits
        assert torch.cuda.memory_allocated() - before < 10e6
        assert (layers.in_layers(trainable, TrainConfig(), accelerator) is trainable) != fits
