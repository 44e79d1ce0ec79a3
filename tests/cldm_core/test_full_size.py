"""Every published net at its full size, on the meta device: recognised, described, fitting."""

from typing import Any

import diffusers
import pytest

from controlnet_pack.cldm_core import (
    SD15,
    SD21,
    SDXL,
    ControlledUNet,
    ControlNetConfig,
    UNetConfig,
    inspect_checkpoint,
    load_control,
)
from controlnet_pack.cldm_core.checkpoint.detect_t2i import diffusers_t2i
from controlnet_pack.cldm_core.checkpoint.keymap import to_cldm, to_diffusers
from controlnet_pack.cldm_core.lllite import ControlLLLite, LLLiteConfig, LLLiteModuleConfig
from controlnet_pack.cldm_core.t2i_adapter import T2IAdapter
from controlnet_pack.cldm_core.union import UnionConfig, UnionControlNet

from .full_size_nets import (
    ADAPTERS,
    MIRRORED,
    NETS,
    SD15_OPTIONS,
    SD21_OPTIONS,
    SDXL_OPTIONS,
    controlnet,
    lora,
    numbers,
    of_diffusers,
    on_meta,
    shapes,
)
from .states import half


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
