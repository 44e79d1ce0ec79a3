"""The core on a GPU: equal to the CPU within stated bounds, and leaving no memory behind."""

import gc

import pytest
import torch

from controlnet_pack.cldm_core import TINY, ControlledUNet, ControlNet, add_control, weigh

from .cases import BOUNDS

pytestmark = pytest.mark.cuda


def nets() -> tuple[ControlledUNet, ControlNet]:
    """A UNet and a net with weights in every layer, the same in each test."""
    torch.manual_seed(3)
    unet = ControlledUNet(TINY)
    net = add_control(unet)
    for module in (unet, net):
        for parameter in module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return unet.requires_grad_(False).eval(), net.requires_grad_(False).eval()


def predict(unet: ControlledUNet, net: ControlNet, device: str, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    x, context = (
        torch.randn(shape, generator=generator) for shape in ((2, 4, 16, 16), (2, 32, 128))
    )
    hint = torch.rand(1, 3, 128, 128, generator=generator)
    unet, net = unet.to(device, dtype), net.to(device, dtype)
    x, context, hint = (tensor.to(device, dtype) for tensor in (x, context, hint))
    timesteps = torch.tensor([10.0, 700.0], device=device)
    control = net(x, net.encode_hint(hint), timesteps, context)
    return unet(x, timesteps, context, control=weigh(control, 0.8)).float().cpu()


@pytest.mark.parametrize("dtype", BOUNDS)
def test_equal_to_the_cpu_within_rounding(dtype: torch.dtype) -> None:
    expected = predict(*nets(), "cpu", torch.float32)
    found = predict(*nets(), "cuda", dtype)
    assert torch.isfinite(found).all()
    assert ((found - expected).norm() / expected.norm()).item() < BOUNDS[dtype]


def test_a_training_step_has_the_cpu_s_gradients() -> None:
    gradients = {}
    for device in ("cpu", "cuda"):
        unet, net = (module.to(device) for module in nets())
        net.requires_grad_(True)
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(1, 4, 8, 8, generator=generator).to(device)
        context = torch.randn(1, 5, 128, generator=generator).to(device)
        hint = torch.rand(1, 3, 64, 64, generator=generator).to(device)
        timesteps = torch.tensor([500.0], device=device)
        control = net(x, None, timesteps, context, hint=hint)
        unet(x, timesteps, context, control=control).square().mean().backward()
        gradients[device] = {k: p.grad.cpu() for k, p in net.named_parameters()}
    for key, expected in gradients["cpu"].items():
        torch.testing.assert_close(gradients["cuda"][key], expected, rtol=1e-3, atol=1e-6)


def test_memory_is_freed_after_use() -> None:
    torch.cuda.synchronize()
    gc.collect()
    # cuBLAS and cuDNN keep workspaces from their first call on; that call is made before the
    # measurement.
    predict(*nets(), "cuda", torch.float32)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        predict(*nets(), "cuda", torch.float32)
        gc.collect()
        assert torch.cuda.memory_allocated() == before
