"""Strength over the sampling, and where in the picture a control acts: pure functions."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from controlnet_pack.cldm_core import (
    TINY,
    CldmError,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    Residuals,
    ShapeError,
    pool,
)
from controlnet_pack.cldm_core.config import SD15, SDXL
from controlnet_pack.cldm_core.lllite import ControlLLLite, LLLiteConfig, LLLiteModuleConfig
from controlnet_pack.cldm_core.masks import (
    mask_patch,
    mask_residuals,
    masked_tokens,
    residual_sizes,
    resized,
    token_grid,
    without_overshoot,
)
from controlnet_pack.cldm_core.projections import Patch, weigh_patch_rows
from controlnet_pack.cldm_core.schedule import EASINGS, Keyframe, Schedule

from .seeded import seeded_module, seeded_tensor


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0: 1", [1, 1, 1]),
        ("0.5: 0.3", [0.3, 0.3, 0.3]),
        ("0: 1, 1: 0", [1, 0.5, 0]),
        ("0: 1 hold, 1: 0", [1, 1, 0]),
        ("0: 0 ease_in; 1: 1", [0, 0.25, 1]),
        ("0: 0 ease_out\n1: 1", [0, 0.75, 1]),
        ("0: 0 cosine, 1: 1,", [0, 0.5, 1]),
        ("0:2, .5:-1 hold, 1:3", [2, -1, 3]),
        ("1, 0.8, 0", [1, 0.8, 0]),
        ("1; 0", [1, 0.5, 0]),
        ("0, 1, 0, 1, 0", [0, 0, 0]),
        ("0.3", [0.3, 0.3, 0.3]),
        ("0: 2.5e-1, 1: 1E0", [0.25, 0.625, 1]),
    ],
)
def test_a_schedule_from_text(text: str, values: list[float]) -> None:
    schedule = Schedule.parse(text)
    assert [schedule.at(position) for position in (0, 0.5, 1)] == pytest.approx(values)


def test_a_list_is_spread_evenly_over_the_sampling() -> None:
    schedule = Schedule.of([1, 0, 1, 0.5])
    assert [keyframe.position for keyframe in schedule.keyframes] == [0, 1 / 3, 2 / 3, 1]
    assert schedule == Schedule.parse("1, 0, 1, 0.5")
    assert Schedule.of([0.7]).at(0.9) == 0.7


def test_an_empty_list_is_no_schedule() -> None:
    with pytest.raises(CldmError, match="needs at least one keyframe"):
        Schedule.of([])


@pytest.mark.parametrize("easing", EASINGS)
def test_every_way_starts_at_its_keyframe_and_ends_at_the_next(easing: str) -> None:
    schedule = Schedule((Keyframe(0.2, 3, easing), Keyframe(0.6, 1)))
    assert schedule.at(0.2) == 3
    assert schedule.at(0.6) == 1
    assert all(1 <= schedule.at(0.2 + 0.04 * step) <= 3 for step in range(11))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs at least one keyframe"),
        ("half: 1", "'half: 1' is no keyframe: write position: strength"),
        ("0: 1, 0: 2", "The keyframes are at 0, 0: put them in order"),
        ("0.6: 1, 0.5: 2", "The keyframes are at 0.6, 0.5: put them in order"),
        ("1.5: 1", "A keyframe is at 1.5, expected a share of the sampling from 0 to 1"),
        ("1, 0.5: 0.8", "'1' is no keyframe: .* or nothing but numbers"),
        ("1, 1, two", "'two' is no keyframe"),
        (f"{'9' * 400}, 1", "expected a finite number"),
        ("0: 1 wobble, 1: 0", "goes on by 'wobble', expected one of linear, hold"),
        (f"0: {'9' * 400}", "expected a finite number"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_told(text: str, sentence: str) -> None:
    with pytest.raises(CldmError, match=sentence):
        Schedule.parse(text)


def residuals(batch: int = 2) -> Residuals:
    return Residuals(
        output=(torch.ones(batch, 3, 8, 8), None, torch.ones(batch, 3, 4, 4)),
        middle=(torch.ones(1, 3, 2, 2),),
        input=(None, torch.ones(batch, 3, 8, 8)),
    )


def test_a_mask_of_ones_is_no_mask_and_one_of_zeros_no_control() -> None:
    given = residuals()
    for value in (1.0, 0.0):
        masked = mask_residuals(given, torch.full((1, 64, 64), value))
        for slot in ("output", "middle", "input"):
            for before, after in zip(getattr(given, slot), getattr(masked, slot), strict=True):
                assert (before is None) == (after is None)
                assert before is None or torch.equal(after, before * value)
    assert given.output[0].min() == 1, "what was given is left as it is"


def test_a_mask_is_averaged_to_each_block() -> None:
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :6] = 1
    masked = mask_residuals(residuals(), mask)
    assert masked.output[0][0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert masked.output[2][0, 0, 0].tolist() == [1, 0.5, 0, 0]
    assert resized(mask, (32, 32)).shape == (1, 32, 32)


def test_each_picture_may_have_a_mask_of_its_own() -> None:
    masked = mask_residuals(residuals(), torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))
    assert masked.output[0].sum(dim=(1, 2, 3)).tolist() == [192, 0]
    with pytest.raises(ShapeError, match="3 masks were given for a batch of 2"):
        mask_residuals(residuals(), torch.ones(3, 8, 8))


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.ones(8, 8), "expected floating-point numbers"),
        (torch.ones(1, 8, 8, dtype=torch.uint8), "The mask is torch.uint8"),
        (torch.full((1, 8, 8), 255.0), "values go from 255 to 255, expected"),
        (torch.full((1, 8, 8), float("nan")), "values go from nan to nan, expected"),
    ],
)
def test_a_mask_that_makes_no_sense_is_told(mask: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ShapeError, match=sentence):
        mask_residuals(residuals(), mask)


def test_what_smooth_resizing_adds_to_a_mask_is_taken_away() -> None:
    given = torch.tensor([[[-0.03, 0.0, 0.5, 1.0, 1.0000001, 1.04]]])
    assert without_overshoot(given).tolist() == [[[0, 0, 0.5, 1, 1, 1]]]
    assert given.min() < 0, "what was given is left as it is"


@pytest.mark.parametrize("values", [[0.0, 1.0], [-1.0, 1.0], [0.0, 255.0], [0.0, float("nan")]])
def test_other_values_are_left_for_the_checks(values: list[float]) -> None:
    given = torch.tensor([[values]])
    assert without_overshoot(given) is given


@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 9)])
@pytest.mark.parametrize("config", [TINY, replace(TINY, num_res_blocks=(2, 1, 3),
    transformer_depth=(0,) * 6, transformer_depth_output=(0,) * 9)])  # fmt: skip
def test_the_sizes_of_residuals_are_those_of_a_net(config, height: int, width: int) -> None:
    net = seeded_module(ControlNet, ControlNetConfig(config), 1)
    x, hint = torch.zeros(1, 4, height, width), torch.zeros(1, 3, 8 * height, 8 * width)
    found = net(x, None, torch.zeros(1), torch.zeros(1, 2, 128), hint=hint)
    sizes = [tuple(item.shape[2:]) for item in (*found.output, *found.middle)]
    assert residual_sizes(config, height, width) == tuple(sizes)
    pooled = mask_residuals(pool(found), torch.ones(1, 8, 8), residual_sizes(config, height, width))
    assert [tuple(item.shape[2:]) for item in (*pooled.output, *pooled.middle)] == sizes


def test_published_families_have_their_counts() -> None:
    assert len(residual_sizes(SD15, 64, 64)) == 13
    assert len(residual_sizes(SDXL, 128, 128)) == 10


PATH = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("tokens", "grid"), [(6, (2, 3)), (20, (4, 5)), (19, None)], ids=["2x2", "1x1", "neither"]
)
def test_tokens_lie_as_the_latents_do(tokens: int, grid: tuple[int, int] | None) -> None:
    assert token_grid(tokens, (4, 5)) == grid


def test_a_mask_on_tokens_keeps_those_of_its_part() -> None:
    left = torch.zeros(1, 8, 8)
    left[:, :, :4] = 1
    kept = masked_tokens(torch.ones(2, 8, 3, dtype=torch.float16), left, (2, 4))
    assert kept.dtype == torch.float16
    assert kept[0, :, 0].reshape(2, 4).tolist() == [[1, 1, 0, 0]] * 2


@cache
def patch_of_an_lllite() -> Patch:
    net = seeded_module(ControlLLLite, LLLiteConfig((LLLiteModuleConfig(PATH, 64, 1, 32, 16),)), 1)
    hint = seeded_tensor((1, 3, 64, 64), "hint", 3).clamp(0, 1)
    (patch,) = net(torch.zeros(1, 4, 8, 8), None, torch.zeros(1), None, hint=hint)
    return patch


def test_a_mask_on_patches_of_an_lllite_keeps_the_rest_as_it_is() -> None:
    unet, patch = seeded_module(ControlledUNet, TINY, 2), patch_of_an_lllite()
    x, context = seeded_tensor((1, 4, 8, 8), "x", 3), seeded_tensor((1, 3, 128), "context", 3)
    plain = unet(x, torch.zeros(1), context)
    for value, expected in ((1.0, unet(x, torch.zeros(1), context, patches=[patch])), (0.0, plain)):
        masked = mask_patch(patch, torch.full((1, 64, 64), value))
        assert torch.equal(unet(x, torch.zeros(1), context, patches=[masked]), expected)
    half = torch.zeros(1, 64, 64)
    half[:, :32] = 1
    tokens = seeded_tensor((1, 64, 64), "tokens", 3)
    changed = mask_patch(patch, half)[PATH](tokens) != tokens
    assert changed[:, :32].any()
    assert not changed[:, 32:].any()


def test_a_patch_of_an_lllite_has_a_factor_for_each_row() -> None:
    change, tokens = patch_of_an_lllite()[PATH], seeded_tensor((3, 64, 64), "tokens", 3)
    factors = torch.tensor([1.0, 0.0, 0.5])
    weighed = weigh_patch_rows(patch_of_an_lllite(), factors)[PATH](tokens)
    assert torch.equal(weighed[0], change(tokens)[0])
    assert torch.equal(weighed[1], tokens[1])
    assert torch.allclose(weighed[2], (tokens[2] + change(tokens)[2]) / 2, atol=1e-6)
    assert torch.equal(factors, torch.tensor([1.0, 0.0, 0.5])), "what was given is left as it is"


def test_rows_and_mask_of_a_patch_go_together_in_any_order() -> None:
    patch, tokens = patch_of_an_lllite(), seeded_tensor((2, 64, 64), "tokens", 3)
    factors, mask = torch.tensor([1.0, 0.5]), torch.rand(1, 8, 8)
    first = mask_patch(weigh_patch_rows(patch, factors), mask)[PATH](tokens)
    second = weigh_patch_rows(mask_patch(patch, mask), factors)[PATH](tokens)
    assert torch.allclose(first, second, atol=1e-6)
    assert not torch.equal(first, mask_patch(patch, mask)[PATH](tokens))


def test_factors_of_another_batch_are_told() -> None:
    weighed = weigh_patch_rows(patch_of_an_lllite(), torch.ones(3))
    with pytest.raises(ShapeError, match=r"shape \(3,\) were given for a batch of 2"):
        weighed[PATH](torch.zeros(2, 64, 64))


def test_a_patch_that_does_not_say_what_it_adds_is_refused() -> None:
    for weigh in (
        lambda patch: mask_patch(patch, torch.ones(1, 8, 8)),
        lambda patch: weigh_patch_rows(patch, torch.ones(1)),
    ):
        with pytest.raises(CldmError, match="doesn't say what it adds"):
            weigh({PATH: torch.sin})
