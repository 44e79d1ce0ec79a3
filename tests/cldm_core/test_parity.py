"""Our networks against numbers recorded from the reference implementations (data/README.md)."""

from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from controlnet_pack.cldm_core import (
    ControlLDM,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    Residuals,
    UNetConfig,
    guess_mode_scales,
    weigh,
)
from controlnet_pack.cldm_core.blocks import timestep_embedding

from .goldens import GOLDENS, TOLERANCE, errors, named
from .parity_cases import CONTROL_SEED, FULL, HOST, ORIGINAL, UNCOMMON, UNET_SEED, Case
from .seeded import seeded_module

SMALL = pytest.mark.parametrize("case", ORIGINAL + UNCOMMON + HOST, ids=lambda case: case.name)
FULL_WIDTH = pytest.mark.parametrize("case", FULL, ids=lambda case: case.name)


def control_net(case: Case) -> ControlNet:
    config = ControlNetConfig.from_params(case.control_params)
    return seeded_module(ControlNet, config, CONTROL_SEED, case.faint)


def controlled_unet(case: Case) -> ControlledUNet:
    config = UNetConfig.from_params(case.unet_params)
    return seeded_module(ControlledUNet, config, UNET_SEED, case.faint)


def control(case: Case) -> tuple[Tensor, Residuals]:
    """The encoded hint, and what the ControlNet makes of it."""
    net = control_net(case)
    inputs = case.inputs()
    features = net.encode_hint(inputs.hint)
    return features, net(inputs.x, features, inputs.timesteps, inputs.context, inputs.y)


def predictions(case: Case, residuals: Residuals) -> dict[str, Tensor]:
    """The UNet's output without control, with it, with its middle alone, and in guess mode."""
    unet = controlled_unet(case)
    x, _, timesteps, context, y = case.inputs()
    count = len(residuals.output) + len(residuals.middle)
    scaled = weigh(residuals, guess_mode_scales(1.0, count))
    return {
        "eps.plain": unet(x, timesteps, context, y),
        "eps.control": unet(x, timesteps, context, y, residuals),
        "eps.only_mid": unet(x, timesteps, context, y, residuals, only_mid_control=True),
        "eps.scaled": unet(x, timesteps, context, y, scaled),
    }


def check(got: Mapping[str, Tensor], case: Case, prefixes: tuple[str, ...]) -> None:
    golden = load_file(GOLDENS / f"{case.name}.safetensors")
    recorded = {name.removesuffix(".samples").removesuffix(".stats") for name in golden}
    assert got.keys() == {name for name in recorded if name.startswith(prefixes)}
    wrong = {name: e for name, e in errors(got, golden).items() if not e < TOLERANCE}
    assert not wrong


@SMALL
def test_small(case: Case) -> None:
    features, residuals = control(case)
    got = {**named(features, residuals), **predictions(case, residuals)}
    check(got, case, ("features", "output", "middle", "eps"))


@FULL_WIDTH
def test_full_width_control(case: Case) -> None:
    check(named(*control(case)), case, ("features", "output", "middle"))


@pytest.mark.slow
@FULL_WIDTH
def test_full_width_unet(case: Case) -> None:
    _, residuals = control(case)
    check(predictions(case, residuals), case, ("eps",))


@pytest.mark.parametrize("case", [*ORIGINAL[:2], HOST[0]], ids=lambda case: case.name)
def test_apply_model(case: Case) -> None:
    ldm = ControlLDM(controlled_unet(case), control_net(case))
    x, hint, timesteps, context, y = case.inputs()
    text = {"c_crossattn": [context], "y": None if y is None else [y]}
    cond = {**text, "c_concat": [hint]}
    got = {
        "eps.plain": ldm.apply_model(x, timesteps, {**text, "c_concat": None}),
        "eps.control": ldm.apply_model(x, timesteps, cond),
    }
    ldm.only_mid_control = True
    got["eps.only_mid"] = ldm.apply_model(x, timesteps, cond)
    ldm.only_mid_control = False
    ldm.set_strength(1.0, guess_mode=True)
    got["eps.scaled"] = ldm.apply_model(x, timesteps, cond)
    check(got, case, ("eps",))


def test_timestep_embedding() -> None:
    golden = load_file(GOLDENS / "timestep_embedding.safetensors")
    for dim in (32, 33, 320):
        got = timestep_embedding(golden["timesteps"], dim)
        # The last bit of a frequency, times 999.
        torch.testing.assert_close(got, golden[f"dim_{dim}"], rtol=0, atol=1e-4)
