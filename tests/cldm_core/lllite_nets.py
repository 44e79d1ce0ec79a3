"""Small UNets and ControlNet-LLLites for the tests of both."""

import torch
from torch import nn

from controlnet_pack.cldm_core.config import UNetConfig
from controlnet_pack.cldm_core.lllite import ControlLLLite, LLLiteConfig, LLLiteModuleConfig
from controlnet_pack.cldm_core.projections import projections
from controlnet_pack.cldm_core.unet import ControlledUNet

from .lllite_cases import Module
from .parity_cases import UNET_SEED
from .seeded import seeded_module

QUERY = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
KEY = "input_blocks.1.1.transformer_blocks.0.attn1.to_k"


def config_of(modules: tuple[Module, ...]) -> LLLiteConfig:
    return LLLiteConfig(tuple(LLLiteModuleConfig(**vars(module)) for module in modules))


def tiny_net(*paths: str, unet: UNetConfig, trained: bool = True) -> ControlLLLite:
    """A net of depth 1 on `paths` of a UNet, by default one whose last layers left zero."""
    widths = projections(unet)
    net = ControlLLLite(
        LLLiteConfig(tuple(LLLiteModuleConfig(p, widths[p], 1, 8, 12) for p in paths))
    )
    if trained:
        for module in net.parts().values():
            for parameter in module.up.parameters():
                nn.init.normal_(parameter, std=0.5)
    return net.requires_grad_(False)


def given(config: UNetConfig, batch: int = 2, height: int = 6, width: int = 8) -> tuple:
    return (
        torch.randn(batch, 4, height, width),
        torch.linspace(3, 900, batch),
        torch.randn(batch, 5, config.context_dim),
    )


def small_unet() -> ControlledUNet:
    """Two levels with a transformer in every block, all weights set."""
    config = UNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=(1, 1),
        transformer_depth=(1, 1),
        transformer_depth_middle=1,
        transformer_depth_output=(1, 1, 1, 1),
        context_dim=24,
        num_heads=4,
    )
    return seeded_module(ControlledUNet, config, UNET_SEED)
