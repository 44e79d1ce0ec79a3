"""Patches of a UNet's projections: in their order, where the host has them, and gone afterwards."""

import pytest
import torch
from torch import Tensor

from controlnet_pack.cldm_core.config import SDXL, UNetConfig
from controlnet_pack.cldm_core.errors import CldmError, FamilyMismatch
from controlnet_pack.cldm_core.projections import Projection, by_attention, projections
from controlnet_pack.cldm_core.unet import ControlledUNet

from .lllite_nets import KEY, QUERY, given, small_unet
from .parity_cases import HOST, ORIGINAL, UNCOMMON, Case


@pytest.fixture
def unet() -> ControlledUNet:
    return small_unet()


@pytest.mark.parametrize("case", [*ORIGINAL, *UNCOMMON, *HOST], ids=lambda case: case.name)
def test_projections_are_those_of_the_built_unet(case: Case) -> None:
    config = UNetConfig.from_params(case.unet_params)
    with torch.device("meta"):
        unet = ControlledUNet(config)
    built = {
        name: module.in_features
        for name, module in unet.named_modules()
        if name.endswith((".to_q", ".to_k", ".to_v"))
    }
    assert projections(config) == built


def test_patches_of_one_path_run_in_their_order(unet: ControlledUNet) -> None:
    seen: list[Tensor] = []

    def double(x: Tensor) -> Tensor:
        seen.append(x)
        return 2 * x

    unet(*given(unet.config), patches=[{QUERY: double}, {QUERY: double}])
    assert torch.equal(seen[1], 2 * seen[0])


def test_queries_keys_and_values_are_patched_apart(unet: ControlledUNet) -> None:
    inputs, plain = given(unet.config), unet(*given(unet.config))
    results = [
        unet(*inputs, patches=[{QUERY.replace("to_q", target): lambda x: x * 0.5}])
        for target in ("to_q", "to_k", "to_v")
    ]
    assert all(result.shape == plain.shape for result in results)
    assert not torch.allclose(results[0], results[2], atol=1e-4)
    assert not torch.allclose(results[1], results[2], atol=1e-4)


def test_nothing_is_left_behind_after_an_exception(unet: ControlledUNet) -> None:
    inputs = given(unet.config)
    plain = unet(*inputs)

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        unet(*inputs, patches=[{QUERY: lambda x: 2 * x, KEY: fail}])
    with pytest.raises(FamilyMismatch, match="which this UNet doesn't have"):
        unet(*inputs, patches=[{QUERY: lambda x: 2 * x}, {QUERY.replace(".1.1", ".7.1"): fail}])
    assert not any(module._forward_pre_hooks for module in unet.modules())
    assert torch.equal(unet(*inputs), plain)


def test_patches_that_are_none_are_refused_with_a_sentence(unet: ControlledUNet) -> None:
    inputs = given(unet.config)
    with pytest.raises(FamilyMismatch, match=r"input of out\.0, which is no projection"):
        unet(*inputs, patches=[{"out.0": lambda x: x}])
    with pytest.raises(CldmError, match=r"write \[patch\]"):
        unet(*inputs, patches={QUERY: lambda x: x})


def test_paths_and_the_hosts_numbers_name_the_same_projections() -> None:
    for path in projections(SDXL):
        place = Projection.parse(path)
        assert place is not None
        assert place.path == path
    place = Projection.parse("input_blocks.4.1.transformer_blocks.1.attn2.to_q")
    assert place == Projection("input", 4, 1, "attn2", "q")
    middle = Projection.parse("middle_block.1.transformer_blocks.9.attn1.to_v")
    assert middle == Projection("middle", 0, 9, "attn1", "v")
    for path in ("input_blocks.04.1.transformer_blocks.0.attn1.to_q", "out.0", QUERY + ".x", ""):
        assert Projection.parse(path) is None


def test_a_patch_is_looked_up_as_the_host_asks() -> None:
    middle = "middle_block.1.transformer_blocks.2.attn2.to_q"
    patch = {QUERY: torch.sin, KEY: torch.cos, middle: torch.tan}
    assert by_attention(patch) == {
        ("input", 1, 0, "attn1"): {"q": torch.sin, "k": torch.cos},
        ("middle", 0, 2, "attn2"): {"q": torch.tan},
    }
    with pytest.raises(FamilyMismatch, match="no projection"):
        by_attention({"ff": torch.sin})
