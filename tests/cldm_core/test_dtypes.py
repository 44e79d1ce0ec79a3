"""Number types in files: kept, made one, and widened from 8 bits, with or without scales."""

import pytest
import torch

from controlnet_pack.cldm_core import (
    TINY,
    CheckpointMismatch,
    CldmError,
    ControlNet,
    ControlNetConfig,
    UnsupportedCheckpoint,
    convert,
    load_control,
    merge_nets,
)
from controlnet_pack.cldm_core.checkpoint import inspect_checkpoint
from controlnet_pack.cldm_core.checkpoint.dtypes import unified
from controlnet_pack.cldm_core.checkpoint.quantise import narrowed

EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = ControlNet(ControlNetConfig(TINY))
    return {key: torch.randn(value.shape) / 8 for key, value in net.state_dict().items()}


@pytest.mark.parametrize("stored", EIGHT_BITS)
def test_8_bit_weights_are_widened(state: dict[str, torch.Tensor], stored: torch.dtype) -> None:
    narrow = {k: v.to(stored) if v.ndim > 1 else v.half() for k, v in state.items()}
    loaded = load_control(narrow)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, narrow[key].float())
    loaded.encode_hint(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("stored", EIGHT_BITS)
def test_a_type_can_be_asked_for(state: dict[str, torch.Tensor], stored: torch.dtype) -> None:
    narrow = {key: value.to(stored) for key, value in state.items()}
    loaded = load_control(narrow, dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_norms_and_biases_are_never_narrowed_to_8_bits(
    state: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    found = unified(state, dtype, "net")
    for key, value in state.items():
        assert found[key].dtype == (torch.float32 if value.ndim < 2 else dtype)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_scaled_weights_are_not_rounded_twice(
    state: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    with pytest.raises(CldmError, match=r"with scales, .* ask for fp16"):
        load_control(scaled(state, dtype, "scale_weight", False), dtype=dtype)


def scaled(
    state: dict[str, torch.Tensor], stored: torch.dtype, name: str, rows: bool
) -> dict[str, torch.Tensor]:
    """As ComfyUI stores 8-bit models: matrices divided by a scale, which lies beside them."""
    out = {"scaled_fp8": torch.zeros(2, dtype=stored)}
    for key, value in state.items():
        if value.ndim != 2:
            out[key] = value.half()
            continue
        scale = (value.abs().amax(1) if rows else value.abs().max()) / torch.finfo(stored).max
        out[key] = (value / (scale[:, None] if rows else scale)).to(stored)
        out[key.removesuffix("weight") + name] = scale
        out[key.removesuffix("weight") + "scale_input"] = torch.ones(())
    return out


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize(("stored", "error"), [*zip(EIGHT_BITS, [0.07, 0.13], strict=True)])
def test_scales_are_multiplied_in(
    state: dict[str, torch.Tensor], stored: torch.dtype, error: float, name: str, rows: bool
) -> None:
    loaded = load_control(scaled(state, stored, name, rows)).state_dict()
    for key, value in state.items():
        assert ((loaded[key] - value).abs() <= error * value.abs() + 1e-3).all(), key


def test_scaled_files_are_named(state: dict[str, torch.Tensor]) -> None:
    info = inspect_checkpoint(scaled(state, torch.float8_e4m3fn, "scale_weight", False))
    assert info.dtype.endswith(", scaled")
    assert (info.missing, info.unexpected) == ((), ())
    assert info.parameters == sum(value.numel() for value in state.values())


def test_a_scale_without_its_weight_is_told(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointMismatch, match=r"a scale for middle_block.9.weight, but no such"):
        load_control({**state, "middle_block.9.scale_weight": torch.ones(())})


def test_scales_of_another_size_are_told(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointMismatch, match=r"has 7 scales for time_embed.0.weight"):
        load_control({**state, "time_embed.0.scale_weight": torch.ones(7)})


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "fp16"])
@pytest.mark.parametrize("act", [load_control, narrowed, convert, merge_nets])
def test_only_floating_types_can_be_asked_for(state, act, dtype, tmp_path) -> None:
    act = {
        narrowed: lambda state, dtype: narrowed(state["zero_convs.0.0.weight"], dtype, "a key"),
        convert: lambda state, dtype: convert(state, tmp_path / "out.safetensors", dtype=dtype),
        merge_nets: lambda state, dtype: merge_nets(state, state, 0.5, dtype=dtype),
    }.get(act, act)
    with pytest.raises(CldmError, match="expected a floating-point type"):
        act(state, dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stored", [torch.int64, torch.bool, torch.complex64])
def test_no_file_is_made_of_weights_that_are_no_floats(state, stored, tmp_path) -> None:
    state["time_embed.0.bias"] = torch.ones(256, dtype=stored)
    for act in (
        lambda: convert(state, tmp_path / "out.safetensors"),
        lambda: merge_nets(state, state, 0.5),
    ):
        with pytest.raises(UnsupportedCheckpoint, match=r"stores time_embed.0.bias as .*expected"):
            act()
    assert not list(tmp_path.iterdir())
