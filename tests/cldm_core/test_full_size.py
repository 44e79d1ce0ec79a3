"""Every published net at its full size, on the meta device: recognised, described, fitting."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core import (
    SD15,
    SD21,
    SDXL,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    UNetConfig,
    inspect_checkpoint,
    load_control,
)
from controlnet_pack.cldm_core.checkpoint.detect_t2i import diffusers_t2i
from controlnet_pack.cldm_core.checkpoint.keymap import to_cldm, to_diffusers
from controlnet_pack.cldm_core.control_lora import OWN_PARTS
from controlnet_pack.cldm_core.lllite import ControlLLLite, LLLiteConfig, LLLiteModuleConfig
from controlnet_pack.cldm_core.t2i_adapter import AdapterConfig, T2IAdapter
from controlnet_pack.cldm_core.union import UnionConfig, UnionControlNet

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


def half(state: State) -> State:
    return {key: value.half() for key, value in state.items()}


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


@pytest.mark.parametrize("name", NETS)
def test_keys_of_controlnets_are_those_of_diffusers(name: str) -> None:
    theirs = of_diffusers(name)
    assert shapes(to_diffusers(controlnet(name))) == shapes(theirs)
    assert shapes(to_cldm(theirs)) == shapes(controlnet(name))
    assert numbers(theirs) == (NETS[name].parameters or numbers(theirs))


@pytest.mark.parametrize("layout", ["cldm", "diffusers"])
@pytest.mark.parametrize("name", NETS)
def test_controlnets_are_described(name: str, layout: str) -> None:
    state = half(controlnet(name) if layout == "cldm" else of_diffusers(name))
    info = inspect_checkpoint(state)
    size = f"{numbers(state) / 1e6:.1f} M"
    assert str(info) == f"{name} ControlNet, {layout} keys, hint 3 channels, fp16, {size}"
    assert (info.missing, info.unexpected, info.misshapen) == ((), (), ())
    assert load_control(state, device="meta").config == ControlNetConfig(NETS[name].config)


@pytest.mark.parametrize("layout", ["cldm", "diffusers"])
@pytest.mark.parametrize("types", [6, 8])
def test_unions_are_described(types: int, layout: str) -> None:
    config = UnionConfig(ControlNetConfig(MIRRORED), types)
    state = half(on_meta(lambda: UnionControlNet(config)))
    theirs = on_meta(
        lambda: diffusers.ControlNetUnionModel(
            **SDXL_OPTIONS,
            num_control_type=types,
            conditioning_embedding_out_channels=(16, 32, 96, 256),
        )
    )
    assert shapes(to_diffusers(state)) == shapes(theirs)
    state = state if layout == "cldm" else half(theirs)
    info = inspect_checkpoint(state)
    assert str(info) == (
        f"SDXL union ControlNet, {layout} keys, {types} types, hint 3 channels, fp16, "
        f"{numbers(theirs) / 1e6:.1f} M"
    )
    assert (info.missing, info.unexpected, info.misshapen) == ((), (), ())
    assert load_control(state, device="meta").config == config


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_are_described(kind: str, layout: str) -> None:
    config, name, factor, parameters = ADAPTERS[kind]
    ours = on_meta(lambda: T2IAdapter(config))
    theirs = on_meta(
        lambda: diffusers.T2IAdapter(
            # diffusers adds the last level of a light adapter by itself.
            channels=(320, 640, 1280) if kind == "light" else (320, 640, 1280, 1280),
            num_res_blocks=config.num_res_blocks,
            downscale_factor=factor,
            adapter_type=name,
        )
    )
    assert shapes(diffusers_t2i(ours)) == shapes(theirs)
    state = half(ours if layout == "original" else theirs)
    assert numbers(state) == parameters
    info = inspect_checkpoint(state)
    base = "SDXL" if kind == "xl" else "SD 1.x or 2.x"
    size = f"{parameters / 1e6:.1f} M"
    assert str(info) == f"{base} T2I-Adapter, {layout} keys, hint 3 channels, fp16, {size}"
    assert (info.missing, info.unexpected, info.misshapen) == ((), (), ())
    assert load_control(state, device="meta").config == config


def lllite_config(unet: UNetConfig) -> LLLiteConfig:
    """As kohya's trainer makes it with its README's widths, for encoder and middle."""
    places = []
    block = 0
    for level, mult in enumerate(unet.channel_mult):
        for index in range(2):
            depth = unet.transformer_depth[2 * level + index]
            places.append((f"input_blocks.{block + 1 + index}", 320 * mult, depth))
        block += 3
    places.append(("middle_block", 1280, unet.transformer_depth_middle))
    parts = []
    for place, width, depth in places:
        number = int(place.rpartition(".")[2]) if "." in place else 9
        strides = 1 if number <= 2 else 2 if number <= 5 else 3
        parts += [
            LLLiteModuleConfig(
                f"{place}.1.transformer_blocks.{index}.{role}", width, strides, 32, 64
            )
            for index in range(depth)
            for role in ("attn1.to_k", "attn1.to_q", "attn1.to_v", "attn2.to_q")
        ]
    return LLLiteConfig(tuple(parts))


@pytest.mark.parametrize(
    ("unet", "base", "count"), [(SD15, "SD 1.x or 2.x", 28), (SDXL, "SDXL", 136)]
)
def test_lllites_are_described(unet: UNetConfig, base: str, count: int) -> None:
    config = lllite_config(unet)
    assert len(config.modules) == count
    state = half(on_meta(lambda: ControlLLLite(config)))
    info = inspect_checkpoint(state)
    size = f"{numbers(state) / 1e6:.1f} M"
    assert str(info) == f"{base} ControlNet-LLLite, kohya keys, hint 3 channels, fp16, {size}"
    assert (info.missing, info.unexpected, info.misshapen) == ((), (), ())
    assert load_control(state, device="meta").config == config


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


@pytest.mark.parametrize("rank", [128, 256])
def test_control_loras_are_described(rank: int) -> None:
    state = lora(rank)
    info = inspect_checkpoint(state)
    size = f"{numbers(state) / 1e6:.1f} M"
    assert str(info) == f"SDXL Control-LoRA, cldm keys, hint 3 channels, fp16, {size}"
    assert (info.missing, info.unexpected, info.misshapen) == ((), (), ())
    assert load_control(state, device="meta").config == ControlNetConfig(MIRRORED)


@pytest.mark.parametrize("layout", ["cldm", "diffusers"])
@pytest.mark.parametrize(
    ("unet", "options", "name"),
    [(SD15, SD15_OPTIONS, "SD 1.5"), (SD21, SD21_OPTIONS, "SD 2.1"), (SDXL, SDXL_OPTIONS, "SDXL")],
)
def test_unets_are_described(
    unet: UNetConfig, options: dict[str, Any], name: str, layout: str
) -> None:
    ups = tuple(kind.replace("Down", "Up") for kind in reversed(options["down_block_types"]))
    theirs = on_meta(lambda: diffusers.UNet2DConditionModel(**options, up_block_types=ups))
    ours = on_meta(lambda: ControlledUNet(unet))
    assert shapes(to_diffusers(ours)) == shapes(theirs)
    assert shapes(to_cldm(theirs)) == shapes(ours)
    info = inspect_checkpoint(half(ours if layout == "cldm" else theirs))
    size = f"{numbers(ours) / 1e6:.1f} M"
    assert str(info) == f"{name} base model, {layout} keys, fp16, {size}"
