"""Control modes: the numbers of every tradition, and which of them a net gets."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import Any

import pytest
import torch

from controlnet_pack.cldm_core import (
    SD15,
    SD21,
    SDXL,
    TINY,
    AdapterConfig,
    CldmError,
    ControlLLLite,
    ControlNet,
    ControlNetConfig,
    LLLiteConfig,
    T2IAdapter,
    UNetConfig,
    UnionConfig,
    UnionControlNet,
    guess_mode_scales,
)
from controlnet_pack.cldm_core.lllite import LLLiteModuleConfig
from controlnet_pack.cldm_core.modes import (
    CURVES,
    FAMILIES,
    MODES,
    block_weights,
    family_of,
    weights_for,
)
from controlnet_pack.cldm_core.nets import ControlNetLike

# 0.825 to the power of 12, 11 .. 0, in decimals of 17 digits.
SOFT = (
    0.099413962063371239,
    0.12050177219802574,
    0.14606275417942514,
    0.17704576264172745,
    0.21460092441421509,
    0.26012233262329102,
    0.31529979711914062,
    0.382181572265625,
    0.463250390625,
    0.561515625,
    0.680625,
    0.825,
    1.0,
)
# 10 to the power of i / 12 - 1 and of i / 9 - 1.
RAMP_13 = (
    0.1,
    0.12115276586285884,
    0.14677992676220695,
    0.17782794100389228,
    0.21544346900318837,
    0.26101572156825368,
    0.31622776601683793,
    0.38311868495572877,
    0.46415888336127789,
    0.56234132519034908,
    0.68129206905796129,
    0.82540418526801843,
    1.0,
)
RAMP_10 = (
    0.1,
    0.12915496650148839,
    0.16681005372000588,
    0.21544346900318837,
    0.27825594022071246,
    0.35938136638046273,
    0.46415888336127789,
    0.59948425031894101,
    0.77426368268112706,
    1.0,
)
ADAPTER = (0.25, 0.62, 0.825, 1.0)
NUMBERS = {
    ("sd15", "original"): SOFT,
    ("sd15", "a1111"): SOFT,
    ("sd15", "diffusers"): RAMP_13,
    ("sd21", "original"): SOFT,
    ("sd21", "a1111"): SOFT,
    ("sd21", "diffusers"): RAMP_13,
    ("sdxl", "a1111"): SOFT[:10],
    ("sdxl", "diffusers"): RAMP_10,
    ("t2i", "a1111"): ADAPTER,
    ("t2i_xl", "a1111"): ADAPTER,
}
UNDEFINED = [pair for pair in product(FAMILIES, CURVES) if pair not in NUMBERS]


@pytest.mark.parametrize("mode", ["prompt", "control"])
@pytest.mark.parametrize(("family", "curve"), NUMBERS)
def test_the_numbers_of_each_tradition(mode: str, family: str, curve: str) -> None:
    expected = NUMBERS[family, curve]
    assert block_weights(mode, family, curve) == pytest.approx(expected, rel=1e-14, abs=0)


def test_the_originals_numbers_are_powers_to_the_last_bit() -> None:
    powers = tuple(0.825**exponent for exponent in range(12, -1, -1))
    assert block_weights("control", "sd15", "original") == powers
    assert block_weights("prompt", "sdxl", "a1111") == powers[:10]


def test_sdxl_s_middle_is_weakened_as_in_the_web_ui() -> None:
    assert block_weights("control", "sdxl", "a1111")[-1] == pytest.approx(0.561515625, rel=1e-15)


@pytest.mark.parametrize(("family", "count"), [("sd15", 12), ("sd21", 12), ("sdxl", 9)])
def test_the_ramp_is_that_of_diffusers(family: str, count: int) -> None:
    # As ControlNetModel.forward computes it, in float32.
    scales = torch.logspace(-1, 0, count + 1)
    ramp = torch.tensor(block_weights("prompt", family, "diffusers"))
    assert torch.allclose(ramp, scales, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("family", "curve"), list(product(FAMILIES, CURVES)))
def test_balanced_is_ones_in_every_family_by_every_curve(family: str, curve: str) -> None:
    counts = {"sd15": 13, "sd21": 13, "sdxl": 10, "t2i": 4, "t2i_xl": 4}
    assert block_weights("balanced", family, curve) == (1.0,) * counts[family]


@pytest.mark.parametrize(("family", "curve"), UNDEFINED)
def test_a_curve_that_nobody_defines_is_refused_with_those_that_are(
    family: str, curve: str
) -> None:
    known = "a1111, diffusers" if family == "sdxl" else "a1111"
    sentence = f"the curve '{curve}' for the family {family}: choose one of {known}\\.$"
    for mode in ("prompt", "control"):
        with pytest.raises(CldmError, match=sentence):
            block_weights(mode, family, curve)


def test_five_of_the_fifteen_pairs_are_undefined() -> None:
    assert len(UNDEFINED) == 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("soft", "sd15", "a1111"), "no mode 'soft': choose one of balanced, prompt, control"),
        (("balanced", "sd3", "a1111"), "no family 'sd3': choose one of sd15, sd21, sdxl, t2i"),
        (("balanced", "sd15", "auto"), "no curve 'auto': choose one of original, a1111, diffusers"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    arguments: tuple[str, str, str], sentence: str
) -> None:
    with pytest.raises(CldmError, match=sentence):
        block_weights(*arguments)


def on_meta(network: Any, config: Any) -> Any:
    with torch.device("meta"):
        return network(config)


def controlnet(unet: UNetConfig) -> ControlNet:
    return on_meta(ControlNet, ControlNetConfig(unet))


def pooled(unet: UNetConfig) -> ControlNet:
    return on_meta(ControlNet, ControlNetConfig(unet, global_average_pooling=True))


def small(unet: UNetConfig) -> UNetConfig:
    """Of the same depth and text, and a tenth as wide."""
    return replace(unet, model_channels=32, num_heads=1, num_head_channels=-1)


def adapter(**config: Any) -> T2IAdapter:
    return on_meta(T2IAdapter, AdapterConfig(**config))


def union() -> UnionControlNet:
    return on_meta(UnionControlNet, UnionConfig(ControlNetConfig(small(SDXL)), 6))


def lllite() -> ControlLLLite:
    path = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    return on_meta(ControlLLLite, LLLiteConfig((LLLiteModuleConfig(path, 64, 1, 32, 16),)))


CONFIGS = {
    "sd15": (ControlNet, ControlNetConfig(small(SD15))),
    "sd21": (ControlNet, ControlNetConfig(small(SD21))),
    "sdxl": (ControlNet, ControlNetConfig(small(SDXL))),
    "t2i": (T2IAdapter, AdapterConfig()),
    "t2i_xl": (T2IAdapter, AdapterConfig(kind="xl")),
}


@cache
def net_of(family: str) -> Any:
    return on_meta(*CONFIGS[family])


@pytest.mark.parametrize("family", CONFIGS)
def test_a_net_tells_its_family(family: str) -> None:
    assert family_of(net_of(family)) == family


def test_a_light_adapter_and_a_union_net_have_families_too() -> None:
    assert family_of(adapter(kind="light", num_res_blocks=4)) == "t2i"
    assert family_of(union()) == "sdxl"


def test_nets_of_another_depth_and_lllites_have_no_family() -> None:
    for net in (controlnet(TINY), adapter(channels=(32, 64, 64)), lllite(), object()):
        assert family_of(net) is None


@pytest.mark.parametrize(
    ("net", "facts"),
    [
        (lambda: net_of("sd21"), (13, False, 1024, 3)),
        (lambda: pooled(TINY), (7, True, 128, 3)),
        (union, (10, False, 2048, 3)),
        (lambda: adapter(hint_channels=1), (4, False, None, 1)),
        (lllite, (0, False, None, 3)),
    ],
)
def test_nets_of_every_kind_tell_the_same_facts(net: Any, facts: tuple[Any, ...]) -> None:
    found: ControlNetLike = net()
    told = (found.residual_count, found.pooled, found.context_dim, found.hint_channels)
    assert told == facts


@pytest.mark.parametrize(("family", "curve"), NUMBERS)
def test_a_net_gets_its_familys_numbers(family: str, curve: str) -> None:
    for mode in MODES:
        assert weights_for(net_of(family), mode, curve) == block_weights(mode, family, curve)


@pytest.mark.parametrize(
    ("family", "curve"),
    [
        ("sd15", "original"),
        ("sd21", "original"),
        ("sdxl", "a1111"),
        ("t2i", "a1111"),
        ("t2i_xl", "a1111"),
    ],
)
def test_auto_is_the_familys_usual_curve(family: str, curve: str) -> None:
    assert weights_for(net_of(family), "control") == block_weights("control", family, curve)


def test_a_net_of_another_depth_gets_the_originals_formula() -> None:
    net = controlnet(TINY)
    for curve in ("auto", "original"):
        found = weights_for(net, "prompt", curve)
        assert found == pytest.approx(SOFT[-7:], rel=1e-14)
    assert weights_for(net, "balanced", "a1111") == (1.0,) * 7


def test_a_net_of_another_depth_gets_the_ramp_of_diffusers() -> None:
    ramp = weights_for(controlnet(TINY), "control", "diffusers")
    assert ramp == pytest.approx([10 ** (-1 + index / 6) for index in range(7)], rel=1e-14)


def test_the_web_ui_has_nothing_for_a_net_of_another_depth() -> None:
    with pytest.raises(CldmError, match="'a1111' for a net of 7 residuals: choose original or"):
        weights_for(controlnet(TINY), "prompt", "a1111")


@pytest.mark.parametrize("shown", [{"residual_count": 13}, {"zero_convs": (None,) * 12}])
def test_a_wrapper_is_told_by_its_residuals_or_its_zero_convolutions(shown: dict[str, Any]) -> None:
    wrapper = type("Wrapper", (), shown)()
    assert weights_for(wrapper, "control", "original") == guess_mode_scales(1.0, 13)
    with pytest.raises(CldmError, match="how many residuals a object gives"):
        weights_for(object(), "balanced")


def test_an_lllite_has_no_residuals_to_weaken() -> None:
    assert weights_for(lllite(), "balanced") == ()
    for mode in ("prompt", "control"):
        with pytest.raises(CldmError, match="a ControlNet-LLLite has none: choose balanced"):
            weights_for(lllite(), mode)


@pytest.mark.parametrize(
    ("mode", "curve", "sentence"),
    [
        ("soft", "auto", "no mode 'soft'"),
        ("balanced", "linear", "no curve 'linear': .* auto, orig"),
    ],
)
def test_unknown_names_are_refused_for_a_net_too(mode: str, curve: str, sentence: str) -> None:
    with pytest.raises(CldmError, match=sentence):
        weights_for(controlnet(TINY), mode, curve)


def test_weights_grow_towards_the_middle() -> None:
    for family, curve in NUMBERS:
        weights = block_weights("control", family, curve)
        assert all(a < b for a, b in pairwise(weights))
        assert all(map(math.isfinite, weights))
