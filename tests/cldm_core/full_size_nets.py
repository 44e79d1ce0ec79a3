"""Every published net at its full size: our configurations, diffusers' options, their weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core import (
    SD15,
    SD21,
    SDXL,
    ControlNet,
    ControlNetConfig,
    UNetConfig,
)
from controlnet_pack.cldm_core.control_lora import OWN_PARTS
from controlnet_pack.cldm_core.t2i_adapter import AdapterConfig

State = dict[str, Tensor]


def reduced(depths: tuple[int, ...], middle: int, context: int | None = 2048) -> UNetConfig:
    """SDXL with other transformers; a ControlNet's decoder mirrors the encoder."""
    output = tuple(depths[level * 2 + 1] for level in (2, 1, 0) for _ in range(3))
    return replace(
        SDXL,
        transformer_depth=depths,
        transformer_depth_middle=middle,
        transformer_depth_output=output,
        context_dim=context,
        use_linear_in_transformer=context is not None,
    )


MID = reduced((0, 0, 0, 0, 1, 1), 1)
SMALL = reduced((0,) * 6, -1, None)
SSD1B = reduced((0, 0, 2, 2, 4, 4), -1)
MIRRORED = replace(SDXL, transformer_depth_output=(10,) * 3 + (2,) * 3 + (0,) * 3)

PLAIN, CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
    "layers_per_block": 2,
}
XL = {
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15_OPTIONS = {**SD, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21_OPTIONS = {
    **SD,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL_OPTIONS = {
    **XL,
    "down_block_types": (PLAIN, CROSS, CROSS),
    "transformer_layers_per_block": (1, 2, 10),
}


@dataclass(frozen=True)
class Net:
    """A published ControlNet: our configuration, diffusers' options, its name and numbers."""

    config: UNetConfig
    options: dict[str, Any]
    parameters: int


# FACTS of the published files; the small net's and SSD-1B's numbers are diffusers' own.
NETS = {
    "SD 1.5": Net(SD15, SD15_OPTIONS, 361_279_120),
    "SD 2.1": Net(SD21, SD21_OPTIONS, 364_228_240),
    "SDXL": Net(MIRRORED, SDXL_OPTIONS, 1_251_014_160),
    "SDXL mid": Net(
        MID,
        {
            **XL,
            "down_block_types": (PLAIN, PLAIN, CROSS),
            "transformer_layers_per_block": (0, 0, 1),
        },
        270_942_480,
    ),
    "SDXL small": Net(
        SMALL,
        {
            **XL,
            "down_block_types": (PLAIN, PLAIN, PLAIN),
            "transformer_layers_per_block": (0, 0, 0),
            "mid_block_type": "UNetMidBlock2D",
        },
        0,
    ),
    "SSD-1B": Net(
        SSD1B,
        {
            **XL,
            "down_block_types": (PLAIN, CROSS, CROSS),
            "transformer_layers_per_block": (0, 2, 4),
            "mid_block_type": "UNetMidBlock2D",
        },
        0,
    ),
}
ADAPTERS = {
    "full": (AdapterConfig(), "full_adapter", 8, 77_369_280),
    "light": (AdapterConfig(num_res_blocks=4, kind="light"), "light_adapter", 8, 18_689_200),
    "xl": (AdapterConfig(kind="xl"), "full_adapter_xl", 16, 79_028_160),
}


def on_meta(build: Callable[[], nn.Module]) -> State:
    with torch.device("meta"):
        return dict(build().state_dict())


def shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def numbers(state: State) -> int:
    return sum(value.numel() for value in state.values())


@cache
def controlnet(name: str) -> State:
    return on_meta(lambda: ControlNet(ControlNetConfig(NETS[name].config)))


@cache
def of_diffusers(name: str) -> State:
    return on_meta(lambda: diffusers.ControlNetModel(**NETS[name].options))


def lora(rank: int) -> State:
    """As Stability AI's files: matrices and kernels of the encoder in low rank, the rest whole."""
    state: State = {"lora_controlnet": torch.zeros(0)}
    for key, value in controlnet("SDXL").items():
        if value.ndim < 2 or key.startswith(OWN_PARTS):
            state[key] = value.half()
            continue
        path, inner = key.removesuffix(".weight"), min(rank, value[0].numel(), len(value))
        ones = (1,) * (value.ndim - 2)
        state[f"{path}.up"] = torch.empty(len(value), inner, *ones, device="meta").half()
        state[f"{path}.down"] = torch.empty(inner, *value.shape[1:], device="meta").half()
    return state
