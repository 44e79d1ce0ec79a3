"""The pipeline takes a net of every family, with strength and window, and refuses a foreign one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from controlnet_pack.cldm_core import (
    TINY,
    CldmError,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    FamilyMismatch,
    load_control,
)
from controlnet_pack.cldm_core.lllite import ControlLLLite, LLLiteConfig, LLLiteModuleConfig
from controlnet_pack.cldm_core.matching import check_family
from controlnet_pack.cldm_core.pipeline import Control, Pipeline, Settings
from controlnet_pack.cldm_core.union import UnionConfig, UnionControlNet

from . import samples
from .seeded import seeded_module, seeded_state_dict

SETTINGS = Settings(steps=3, width=64, height=64)
HINT = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


class Nearest:
    """Decodes latents by showing three of their channels."""

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)


def encode_text(prompts: Sequence[str]) -> Tensor:
    return torch.ones(len(prompts), 4, 128) * torch.arange(len(prompts))[:, None, None]


# With two residual blocks a level, as every public family has.
UNET = replace(
    TINY,
    num_res_blocks=(2, 2, 2),
    transformer_depth=(1,) * 6,
    transformer_depth_output=(1,) * 9,
)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(seeded_module(ControlledUNet, UNET, 2), Nearest(), encode_text)


def seeded(state: samples.State) -> samples.State:
    """The state dict with weights that keep activations of order 1."""
    return seeded_state_dict({key: tuple(value.shape) for key, value in state.items()}, 1)


def controlnet(unet: ControlledUNet) -> Control:
    return Control(load_control(seeded(samples.controlnet(UNET))), HINT)


def union(unet: ControlledUNet) -> Control:
    net = seeded_module(UnionControlNet, UnionConfig(ControlNetConfig(UNET), 6), 1)
    return Control(net, {"canny": HINT, "depth": 1 - HINT})


def adapter(unet: ControlledUNet | None) -> Control:
    return Control(load_control(seeded(samples.adapter(channels=(64, 128, 128)))), HINT)


def lllite(unet: ControlledUNet) -> Control:
    part = LLLiteModuleConfig("input_blocks.1.1.transformer_blocks.0.attn1.to_q", 64, 1, 32, 16)
    return Control(seeded_module(ControlLLLite, LLLiteConfig((part,)), 1), HINT)


def control_lora(unet: ControlledUNet) -> Control:
    state = seeded(samples.control_lora(UNET))
    return Control(load_control(state, base=unet.state_dict()), HINT)


def difference(unet: ControlledUNet) -> Control:
    state = seeded(samples.controlnet(UNET))
    whole = {"difference": torch.ones(()), **samples.prefixed("control_model.", state)}
    return Control(load_control(whole, base=unet.state_dict()), HINT)


FAMILIES = [controlnet, union, adapter, lllite, control_lora, difference]


@pytest.mark.parametrize("make", FAMILIES)
def test_every_family_steers_in_its_window_with_its_strength(
    pipeline: Pipeline, make: Callable[[ControlledUNet], Control]
) -> None:
    control = make(pipeline.unet)
    plain = pipeline("cat", [], SETTINGS)
    steered = pipeline("cat", [control], SETTINGS)
    weak = pipeline("cat", [replace(control, strength=0.5)], SETTINGS)
    assert not np.array_equal(steered, plain)
    assert not np.array_equal(steered, weak)
    for none in (replace(control, strength=0.0), replace(control, start=0.9)):
        assert np.array_equal(pipeline("cat", [none], SETTINGS), plain)


def test_families_add_up_in_any_order(pipeline: Pipeline) -> None:
    controls = [make(pipeline.unet) for make in FAMILIES]
    first = pipeline("cat", controls, SETTINGS)
    second = pipeline("cat", controls[::-1], SETTINGS)
    assert np.abs(first.astype(int) - second).max() <= 1


def test_a_pooled_net_leaves_the_negative_side_alone(pipeline: Pipeline) -> None:
    net = seeded_module(ControlNet, ControlNetConfig(UNET, global_average_pooling=True), 1)
    seen: list[int] = []
    net.register_forward_hook(lambda *_: seen.append(1))
    pipeline("cat", [Control(net, HINT)], SETTINGS)
    assert len(seen) == SETTINGS.steps


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: load_control(samples.controlnet(replace(UNET, context_dim=192))),
            "text embeddings of width 192, and this model has text embeddings of width 128",
        ),
        (
            lambda: load_control(samples.controlnet(replace(UNET, in_channels=9))),
            "latents of 9 channels, and this model has latents of 4 channels",
        ),
        (lambda: load_control(samples.adapter()), "with features of (32, 64, 64, 64) channels"),
        (lambda: load_control(samples.lllite("input_blocks.7", depth=3)), "input_blocks.7"),
    ],
)
def test_a_net_of_another_family_is_refused_before_sampling(
    pipeline: Pipeline, make: Any, sentence: str
) -> None:
    with pytest.raises(FamilyMismatch, match=re.escape(sentence)):
        pipeline("cat", [Control(make(), HINT)], SETTINGS)


def test_a_net_of_4_channels_fits_an_inpainting_model() -> None:
    check_family(load_control(samples.controlnet(UNET)), replace(UNET, in_channels=9))


def test_guess_mode_is_for_controlnets() -> None:
    with pytest.raises(CldmError, match="Guess mode is for ControlNets, and this net is a T2IAd"):
        replace(adapter(None), guess_mode=True)


def test_a_union_net_must_be_told_what_its_hint_is(pipeline: Pipeline) -> None:
    control = replace(union(pipeline.unet), hint=HINT)
    with pytest.raises(CldmError, match="must be told the type of each hint"):
        pipeline("cat", [control], SETTINGS)
