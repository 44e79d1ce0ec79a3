"""Nets of every family on a GPU: equal to the CPU within stated bounds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from controlnet_pack.cldm_core import (
    AdapterConfig,
    ControlledUNet,
    ControlLLLite,
    ControlNet,
    ControlNetConfig,
    LLLiteConfig,
    Residuals,
    T2IAdapter,
    UnionConfig,
    UnionControlNet,
    load_control,
)
from controlnet_pack.cldm_core.lllite import LLLiteModuleConfig

from .cases import BOUNDS, UNET, weighted

pytestmark = pytest.mark.cuda

PROJECTION = LLLiteModuleConfig("input_blocks.1.1.transformer_blocks.0.attn1.to_q", 64, 1, 32, 16)


def control_lora(unet: ControlledUNet) -> Any:
    state = {"lora_controlnet": torch.zeros(0)}
    own = ("input_hint_block", "zero_convs", "middle_block_out")
    torch.manual_seed(3)
    for key, value in weighted(ControlNet(ControlNetConfig(UNET)), 4).state_dict().items():
        path = key.rpartition(".")[0]
        if value.ndim > 1 and not key.startswith(own):
            state[f"{path}.up"] = torch.randn(value.shape[0], 4) / 8
            state[f"{path}.down"] = torch.randn(4, *value.shape[1:]) / value[0].numel() ** 0.5
        else:
            state[key] = value
    return load_control(state)


def difference(unet: ControlledUNet) -> Any:
    state = weighted(ControlNet(ControlNetConfig(UNET)), 4).state_dict()
    small = {key: value / 4 for key, value in state.items()}
    return load_control({"difference": torch.ones(()), **small})


FAMILIES: dict[str, Callable[[ControlledUNet], Any]] = {
    "controlnet": lambda unet: weighted(ControlNet(ControlNetConfig(UNET)), 4),
    "union": lambda unet: weighted(UnionControlNet(UnionConfig(ControlNetConfig(UNET), 8)), 4),
    "t2i_adapter": lambda unet: weighted(T2IAdapter(AdapterConfig(channels=(64, 128, 128))), 4),
    "lllite": lambda unet: weighted(ControlLLLite(LLLiteConfig((PROJECTION,))), 4),
    "control_lora": control_lora,
    "difference": difference,
}


@torch.no_grad()
def predict(family: str, device: str, dtype: torch.dtype) -> torch.Tensor:
    unet = weighted(ControlledUNet(UNET), 2)
    net = FAMILIES[family](unet).to(device, dtype)
    unet = unet.to(device, dtype)
    if hasattr(net, "bind"):
        net = net.bind(unet.state_dict())
    generator = torch.Generator().manual_seed(5)
    x, context = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((2, 4, 16, 16), (2, 32, 128))
    )
    hint = torch.rand(1, 3, 128, 128, generator=generator).to(device, dtype)
    timesteps = torch.tensor([10.0, 700.0], device=device)
    hints = {"canny": hint, "tile": 1 - hint} if family == "union" else hint
    found = net(x, net.encode_hint(hints), timesteps, context)
    steer = {"control": found} if isinstance(found, Residuals) else {"patches": found}
    return unet(x, timesteps, context, **steer).float().cpu()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_cpu_within_rounding(family: str, dtype: torch.dtype) -> None:
    expected = predict(family, "cpu", torch.float32)
    found = predict(family, "cuda", dtype)
    assert torch.isfinite(found).all()
    assert ((found - expected).norm() / expected.norm()).item() < BOUNDS[dtype]


@torch.no_grad()
@pytest.mark.parametrize("family", ["control_lora", "difference"])
def test_a_net_may_lie_on_the_cpu_and_its_base_on_the_gpu(family: str) -> None:
    unet = weighted(ControlledUNet(UNET), 2)
    net = FAMILIES[family](unet)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    context, timesteps = torch.ones(1, 4, 128), torch.tensor([300.0])
    hint = torch.full((1, 3, 64, 64), 0.5)
    bound = net.bind(unet.state_dict())
    expected = bound(x, bound.encode_hint(hint), timesteps, context)
    bound = net.bind(unet.to("cuda").state_dict())
    inputs = (bound.encode_hint(hint.cuda()), timesteps.cuda(), context.cuda())
    found = bound(x.cuda(), *inputs)
    for a, b in zip(found.output, expected.output, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)
