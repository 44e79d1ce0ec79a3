"""Modes, weights of blocks, schedules and masks of a control in the pipeline."""

import math
from collections.abc import Sequence
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
    ControlLLLite,
    ControlNet,
    ControlNetConfig,
    LLLiteConfig,
    Residuals,
    Schedule,
    guess_mode_scales,
)
from controlnet_pack.cldm_core.lllite import LLLiteModuleConfig
from controlnet_pack.cldm_core.pipeline import Control, Picture, Pipeline, Settings

from .seeded import seeded_module

SETTINGS = Settings(steps=4, width=64, height=32)
HINT = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
ONES, ZEROS = torch.ones(1, 32, 64), torch.zeros(1, 32, 64)


class Nearest:
    """An autoencoder that needs no weights."""

    def decode(self, latents: Tensor, /) -> Tensor:
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3) / 4


def encode_text(prompts: Sequence[str]) -> Tensor:
    return torch.ones(len(prompts), 2, 128) * torch.arange(len(prompts))[:, None, None]


class Recording(ControlNet):
    """Counts its evaluations."""

    calls = 0

    def forward(self, *args: Any, **options: Any) -> Residuals:
        self.calls += 1
        return super().forward(*args, **options)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(seeded_module(ControlledUNet, TINY, 2), Nearest(), encode_text)


@pytest.fixture
def control() -> Control:
    return Control(seeded_module(Recording, ControlNetConfig(TINY), 1), HINT, strength=0.5)


def lllite() -> Control:
    part = LLLiteModuleConfig("input_blocks.1.1.transformer_blocks.0.attn1.to_q", 64, 1, 32, 16)
    return Control(seeded_module(ControlLLLite, LLLiteConfig((part,)), 1), HINT)


def pooled() -> Control:
    config = ControlNetConfig(TINY, global_average_pooling=True)
    return Control(seeded_module(ControlNet, config, 1), HINT)


def drawn(pipeline: Pipeline, *controls: Control, **settings: Any) -> Picture:
    return pipeline("cat", controls, replace(SETTINGS, **settings))


def test_guess_mode_is_the_mode_control_with_the_originals_curve(
    pipeline: Pipeline, control: Control
) -> None:
    guessed = drawn(pipeline, replace(control, guess_mode=True))
    assert np.array_equal(guessed, drawn(pipeline, replace(control, mode="control")))
    original = replace(control, mode="control", curve="original")
    assert np.array_equal(guessed, drawn(pipeline, original))


@pytest.mark.parametrize(("mode", "calls"), [("balanced", 8), ("prompt", 8), ("control", 4)])
def test_the_mode_control_leaves_the_negative_side_out(
    pipeline: Pipeline, control: Control, mode: str, calls: int
) -> None:
    drawn(pipeline, replace(control, mode=mode))
    assert control.net.calls == calls


def test_the_modes_draw_three_pictures(pipeline: Pipeline, control: Control) -> None:
    pictures = [
        drawn(pipeline, replace(control, mode=mode)) for mode in ("balanced", "prompt", "control")
    ]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    assert not np.array_equal(pictures[2], pictures[0])


def test_weights_of_blocks_stand_in_for_the_modes(pipeline: Pipeline, control: Control) -> None:
    soft = replace(control, blocks=guess_mode_scales(1.0, 7))
    assert np.array_equal(
        drawn(pipeline, soft), drawn(pipeline, replace(control, mode="prompt", curve="original"))
    )
    ones = replace(control, mode="prompt", blocks=(1.0,) * 7)
    assert np.array_equal(drawn(pipeline, ones), drawn(pipeline, control))


def test_a_level_schedule_is_a_strength(pipeline: Pipeline, control: Control) -> None:
    halved = replace(control, schedule=Schedule.of([0.5]))
    assert np.array_equal(drawn(pipeline, halved), drawn(pipeline, replace(control, strength=0.25)))


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({"schedule": Schedule.parse("0: 1 hold, 0.5: 0")}, 4),
        ({"schedule": Schedule.parse("0: 0 hold, 0.75: 1")}, 2),
        ({"schedule": Schedule.of([0])}, 0),
        ({"blocks": (0.0,) * 7}, 0),
        ({"schedule": Schedule.parse("0: 1 hold, 0.5: 0"), "start": 0.25}, 2),
    ],
)
def test_what_has_no_strength_is_not_computed(
    pipeline: Pipeline, control: Control, changes: dict[str, Any], calls: int
) -> None:
    drawn(pipeline, replace(control, **changes))
    assert control.net.calls == calls


def test_a_schedule_is_read_at_the_beginning_of_each_step(control: Control) -> None:
    scheduled = replace(control, schedule=Schedule.parse("0: 1, 1: 0"))
    strengths = [scheduled.strength_at(step / 4) for step in range(4)]
    assert strengths == pytest.approx([0.5, 0.375, 0.25, 0.125])


@pytest.mark.parametrize("make", [None, lllite, pooled])
def test_a_mask_of_ones_is_no_mask_and_one_of_zeros_no_control(
    pipeline: Pipeline, control: Control, make: Any
) -> None:
    given = control if make is None else make()
    plain, steered = drawn(pipeline), drawn(pipeline, given)
    assert not np.array_equal(plain, steered)
    assert np.array_equal(drawn(pipeline, replace(given, mask=ONES)), steered)
    assert np.array_equal(drawn(pipeline, replace(given, mask=ZEROS)), plain)


def test_each_picture_may_have_a_mask_of_its_own(pipeline: Pipeline, control: Control) -> None:
    plain, steered = drawn(pipeline, count=2), drawn(pipeline, control, count=2)
    masks = replace(control, mask=torch.cat([ONES, ZEROS]))
    found = drawn(pipeline, masks, count=2)
    assert np.array_equal(found[0], steered[0])
    assert np.array_equal(found[1], plain[1])
    assert not np.array_equal(steered[1], plain[1])
    with pytest.raises(CldmError, match="2 masks were given for 3 pictures: give one, or one for"):
        drawn(pipeline, masks, count=3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mode": "soft"}, "no mode 'soft': choose one of balanced, prompt, control"),
        ({"curve": "steep"}, "no curve 'steep': choose one of auto, original"),
        ({"mode": "prompt", "curve": "a1111"}, "the curve 'a1111' for a net of 7 residuals"),
        ({"mode": "prompt", "guess_mode": True}, "Guess mode and the mode 'prompt' were both"),
        ({"blocks": (1.0,) * 6}, "expected 7 finite numbers for this net"),
        ({"blocks": (math.nan,) * 7}, "expected 7 finite numbers for this net"),
        ({"mask": torch.ones(8, 8)}, "expected floating-point numbers"),
    ],
)
def test_what_does_not_fit_is_refused_before_sampling(
    control: Control, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CldmError, match=sentence):
        replace(control, **changes)


def test_an_lllite_takes_no_mode_and_no_weights_of_blocks() -> None:
    with pytest.raises(CldmError, match="a ControlNet-LLLite has none: choose balanced"):
        replace(lllite(), mode="control")
    with pytest.raises(CldmError, match="expected 0 finite numbers for this net"):
        replace(lllite(), blocks=(1.0,))
