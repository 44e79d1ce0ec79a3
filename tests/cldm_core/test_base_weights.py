"""What a Control-LoRA or difference takes as its base: layouts, files, nets, 8-bit weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from controlnet_pack.cldm_core import (
    TINY,
    CheckpointMismatch,
    CldmError,
    ControlledUNet,
    UnionConfig,
    load_control,
    load_unet,
)
from controlnet_pack.cldm_core.bound import BaseWeights
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.control_lora import composed_layers

from .bound_nets import equal
from .samples import State, adapter, control_lora, controlnet, difference, filled, prefixed

KEY = "input_blocks.1.0.in_layers.2.weight"


@pytest.fixture(scope="module")
def base() -> State:
    return filled(ControlledUNet(TINY))


def unet(state: State) -> ControlledUNet:
    net = ControlledUNet(TINY)
    net.load_state_dict(state)
    return net


def narrowed(state: State, name: str, rows: bool) -> State:
    """Matrices and kernels in 8 bits with a scale each, or one for each row, beside them."""
    stored: State = {}
    for key, value in state.items():
        if value.ndim < 2 or not key.endswith(".weight"):
            stored[key] = value
            continue
        axes = tuple(range(1, value.ndim))
        scale = (value.abs().amax(axes) if rows else value.abs().max()) / 448
        shaped = scale.reshape(-1, *[1] * (value.ndim - 1)) if rows else scale
        stored[key] = (value / shaped).to(torch.float8_e4m3fn)
        stored[f"{key.removesuffix('weight')}{name}"] = scale
    return stored


def widened(state: State, name: str) -> State:
    return {
        key: value.float() * state[scale].reshape(-1, *[1] * (value.ndim - 1))
        if (scale := f"{key.removesuffix('weight')}{name}") in state
        else value
        for key, value in state.items()
        if not key.endswith(name)
    }


def weights(net: nn.Module) -> list[Tensor]:
    """What the net's layers compute with."""
    ones = torch.ones(1)
    values = [value for _, layer in composed_layers(net) for value in layer.composed(ones)]
    return [value for value in values if value is not None]


@pytest.mark.parametrize("make", [control_lora, difference])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    ("name", "rows"), [("scale_weight", False), ("weight_scale", False), ("weight_scale", True)]
)
def test_scales_of_8_bit_bases_are_multiplied_in(
    base: State, make: Callable[[], State], prefix: str, name: str, rows: bool
) -> None:
    torch.manual_seed(1)
    file, scaled = make(), narrowed(base, name, rows)
    found = load_control(file, base=prefixed(prefix, scaled))
    wide = load_control(file, base=widened(scaled, name))
    assert found.config == wide.config
    assert equal(weights(found), weights(wide))


def test_8_bit_bases_without_scales_are_widened(base: State) -> None:
    file = control_lora()
    narrow = {key: value.to(torch.float8_e5m2) for key, value in base.items()}
    wide = {key: value.float() for key, value in narrow.items()}
    first, second = (load_control(file, base=b) for b in (narrow, wide))
    assert equal(weights(first), weights(second))


def test_scales_that_do_not_fit_are_told(base: State) -> None:
    scaled = {**base, KEY.replace("weight", "scale_weight"): torch.ones(3)}
    with pytest.raises(CheckpointMismatch, match=f"3 scales for {KEY}"):
        BaseWeights(scaled)(KEY)


def written(base: State, folder: Path) -> Path:
    save_file(prefixed("model.diffusion_model.", base), folder / "base.safetensors")
    return folder / "base.safetensors"


@pytest.mark.parametrize(
    "form",
    [
        lambda base, _: to_diffusers(base),
        lambda base, _: unet(base),
        lambda base, _: base.__getitem__,
        written,
        lambda base, folder: str(written(base, folder)),
    ],
    ids=["diffusers", "module", "callable", "path", "string"],
)
def test_a_base_may_come_in_many_forms(
    base: State, tmp_path: Path, form: Callable[[State, Path], object]
) -> None:
    file = control_lora()
    want = load_control(file, base=base)
    found = load_control(file, base=form(base, tmp_path))
    assert found.is_bound
    assert equal(weights(found), weights(want))


def test_what_is_no_base_is_told(base: State) -> None:
    net = load_control(control_lora())
    for wrong in ("base.safetensors", unet(base), 7):
        with pytest.raises(CldmError, match="expected a mapping of its UNet's weights or a callab"):
            net.bind(wrong)
    with pytest.raises(CldmError, match="expected a mapping of its UNet's weights or a callable"):
        load_control(control_lora(), base=7)


@pytest.mark.parametrize("make", [controlnet, adapter, control_lora])
def test_a_configuration_of_another_class_is_told(make: Callable[[], State]) -> None:
    with pytest.raises(CldmError, match="config is a UnionConfig, expected a"):
        load_control(make(), config=UnionConfig.__new__(UnionConfig))
    with pytest.raises(CldmError, match="config is a dict, expected a UNetConfig"):
        load_unet(filled(ControlledUNet(TINY)), config={"model_channels": 64})


@pytest.mark.parametrize("make", [controlnet, control_lora])
def test_tensors_without_numbers_do_not_go_to_a_device(make: Callable[[], State]) -> None:
    state = {key: value.to("meta") for key, value in make().items()}
    with pytest.raises(CldmError, match="without its numbers, and the net is asked for on cpu"):
        load_control(state)
    assert next(load_control(state, device="meta").parameters()).is_meta


def test_given_tensors_are_shared_with_the_net() -> None:
    state = controlnet()
    net = load_control(state)
    assert (
        net.input_hint_block[0].weight.data_ptr() == state["input_hint_block.0.weight"].data_ptr()
    )
    assert "become the net's own" in str(load_control.__doc__)
