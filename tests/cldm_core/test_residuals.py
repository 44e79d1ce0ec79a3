"""Arithmetic on residuals: strengths, rows of a batch, sizes, and what changes between two sets."""

import math

import pytest
import torch

from controlnet_pack.cldm_core import Residuals, ShapeError, merge, pool, weigh
from controlnet_pack.cldm_core.residuals import (
    map_residuals,
    relative_change,
    resample,
    resampled,
    spread_rows,
    weigh_rows,
)


def of_an_adapter() -> Residuals:
    """As SDXL's: behind three of the encoder's blocks and behind the middle."""
    places = {3: torch.rand(1, 2, 4, 4), 5: torch.rand(1, 3, 4, 4), 8: torch.rand(1, 4, 2, 2)}
    slot = tuple(places.get(index) for index in range(9))
    return Residuals(input=slot, middle=(torch.rand(1, 4, 2, 2),))


def test_one_strength_scales_every_feature() -> None:
    residuals = of_an_adapter()
    half = weigh(residuals, 0.5)
    for a, b in zip(
        (*half.input, *half.middle), (*residuals.input, *residuals.middle), strict=True
    ):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, 0.5 * b)


def test_each_feature_has_a_strength_of_its_own() -> None:
    residuals = of_an_adapter()
    weighed = weigh(residuals, (0.25, 0.62, 0.825, 1.0))
    found = [item for item in (*weighed.input, *weighed.middle) if item is not None]
    given = [item for item in (*residuals.input, *residuals.middle) if item is not None]
    for a, b, scale in zip(found, given, (0.25, 0.62, 0.825, 1.0), strict=True):
        assert torch.equal(a, b * scale)
    with pytest.raises(ShapeError, match="3 scales were given for 4 residuals"):
        weigh(residuals, (1.0, 1.0, 1.0))


def test_adapters_of_different_lengths_and_a_controlnet_merge() -> None:
    a = Residuals(input=(None, None, torch.ones(1, 2, 4, 4)))
    b = Residuals(input=(None, torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4), None, torch.ones(1)))
    c = Residuals(output=(torch.ones(1), torch.ones(1)), middle=(torch.ones(1),))
    for merged in (merge(merge(a, b), c), merge(c, merge(b, a))):
        assert [None if item is None else float(item.max()) for item in merged.input] == [
            None,
            1.0,
            2.0,
            None,
            1.0,
        ]
        assert merged.output == c.output
        assert merged.middle == c.middle


def test_pooling_reaches_input() -> None:
    pooled = pool(Residuals(input=(None, torch.rand(1, 2, 4, 4))))
    assert pooled.input[0] is None
    assert pooled.input[1] is not None
    assert pooled.input[1].shape == (1, 2, 1, 1)


def of_a_controlnet(batch: int = 2, dtype: torch.dtype = torch.float32) -> Residuals:
    torch.manual_seed(3)
    output = (torch.rand(batch, 2, 8, 6), None, torch.rand(1, 3, 4, 3))
    return map_residuals(
        lambda item: item.to(dtype), Residuals(output, (torch.rand(batch, 3, 2, 2),))
    )


def items(residuals: Residuals) -> list[torch.Tensor | None]:
    return [*residuals.output, *residuals.middle, *residuals.input]


def same(first: Residuals, second: Residuals) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))
        for a, b in zip(items(first), items(second), strict=True)
    )


def test_each_row_has_a_factor_of_its_own() -> None:
    given = of_a_controlnet()
    weighed = weigh_rows(given, torch.tensor([0.5, 0.0]))
    assert weighed.output[1] is None
    for index in (0, 2):
        before, after = given.output[index], weighed.output[index]
        assert before is not None
        assert after is not None
        assert torch.equal(after[0], before[0] * 0.5)
        assert not after[1].any()
    assert torch.equal(weighed.middle[0][0], given.middle[0][0] * 0.5)
    assert same(given, of_a_controlnet()), "what was given is left as it is"


def test_rows_of_one_factor_stay_a_batch_of_1() -> None:
    given = of_a_controlnet()
    weighed = weigh_rows(given, torch.tensor([0.5, 0.5]))
    assert same(weighed, weigh(given, 0.5))
    ones = weigh_rows(given, torch.ones(2))
    assert all(a is b for a, b in zip(items(ones), items(given), strict=True))


def test_factors_take_the_residuals_type() -> None:
    weighed = weigh_rows(of_a_controlnet(dtype=torch.bfloat16), torch.tensor([0.5, 0.25]))
    assert {item.dtype for item in items(weighed) if item is not None} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("factors", "sentence"),
    [
        (torch.ones(3), "3 factors were given for a batch of 2"),
        (torch.ones(2, 1), r"factors have shape \(2, 1\), expected \(B,\)"),
        (torch.tensor(1.0), r"factors have shape \(\), expected"),
    ],
)
def test_factors_that_do_not_fit_are_told(factors: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ShapeError, match=sentence):
        weigh_rows(of_a_controlnet(), factors)


def test_rows_that_were_computed_lie_among_zeros() -> None:
    given = of_a_controlnet()
    spread = spread_rows(given, (3, 1), 5)
    assert spread.output[1] is None
    for before, after in zip(items(given), items(spread), strict=True):
        if before is None or after is None:
            continue
        assert after.shape == (5, *before.shape[1:])
        rows = before.expand(2, -1, -1, -1)
        assert torch.equal(after[[3, 1]], rows)
        assert not after[[0, 2, 4]].any()


def test_all_rows_in_their_order_are_what_was_given() -> None:
    given = of_a_controlnet()
    assert spread_rows(given, range(2), 2) is given


def test_spreading_rows_equals_taking_them_away() -> None:
    whole = Residuals((torch.rand(4, 2, 3, 3),), (torch.rand(4, 2, 2, 2),))
    part = map_residuals(lambda item: item[[0, 2]], whole)
    assert same(spread_rows(part, [0, 2], 4), weigh_rows(whole, torch.tensor([1.0, 0, 1, 0])))


@pytest.mark.parametrize(
    ("rows", "batch", "sentence"),
    [
        ((0, 4), 4, r"The rows are \[0, 4\], expected different ones from 0 to 3"),
        ((-1, 0), 4, "expected different ones"),
        ((1, 1), 4, "expected different ones"),
        ((0, 1, 2), 4, "3 rows were named for residuals of batch 2"),
    ],
)
def test_rows_that_do_not_fit_are_told(rows: tuple[int, ...], batch: int, sentence: str) -> None:
    with pytest.raises(ShapeError, match=sentence):
        spread_rows(of_a_controlnet(), rows, batch)


def test_a_tensor_of_the_right_size_is_not_touched() -> None:
    item = torch.rand(1, 2, 4, 6)
    assert resampled(item, (4, 6)) is item


def test_shrinking_averages_and_growing_interpolates() -> None:
    item = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    assert resampled(item, (1, 2)).flatten().tolist() == [0.5, 0.5]
    assert resampled(item[..., :2], (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize("size", [(2, 3), (9, 7), (8, 3), (16, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_level_picture_stays_level_at_every_size(
    size: tuple[int, int], dtype: torch.dtype
) -> None:
    found = resampled(torch.full((1, 2, 8, 6), 0.75, dtype=dtype), size)
    torch.testing.assert_close(found, torch.full((1, 2, *size), 0.75, dtype=dtype))


def test_every_residual_goes_to_the_size_of_its_block() -> None:
    residuals = Residuals(
        (torch.rand(2, 2, 8, 6), None, torch.rand(1, 3, 1, 1)),
        (torch.rand(2, 3, 4, 3),),
        (None, torch.rand(1, 2, 8, 6)),
    )
    found = resample(residuals, [(8, 6), (4, 3), (4, 3), (2, 2)])
    shapes = [None if item is None else tuple(item.shape[2:]) for item in items(found)]
    assert shapes == [(8, 6), None, (1, 1), (2, 2), None, (4, 3)]
    assert found.output[0] is residuals.output[0]
    assert found.output[2] is residuals.output[2]


def test_an_adapters_features_need_the_blocks_that_they_reach_only() -> None:
    found = resample(of_an_adapter(), [(8, 8)] * 9 + [(1, 1)])
    shapes = [tuple(item.shape[2:]) for item in items(found) if item is not None]
    assert shapes == [(1, 1), (8, 8), (8, 8), (8, 8)]


@pytest.mark.parametrize("count", [0, 3, 5])
def test_sizes_that_do_not_fit_are_told(count: int) -> None:
    with pytest.raises(ShapeError, match=f"{count} sizes were given for residuals of 3 blocks"):
        resample(of_a_controlnet(), [(4, 4)] * count)


def test_the_change_is_relative_to_the_new_set() -> None:
    new = Residuals((torch.full((1, 1, 2, 2), 3.0), None), (torch.full((1, 1, 1, 1), 8.0),))
    old = Residuals((torch.full((1, 1, 2, 2), 3.0), None), (torch.full((1, 1, 1, 1), 3.0),))
    assert relative_change(new, old) == pytest.approx(0.5)
    assert relative_change(new, new) == 0


def test_what_only_one_set_has_is_a_change() -> None:
    one = Residuals(middle=(torch.ones(1, 1, 2, 2),))
    assert relative_change(one, Residuals()) == pytest.approx(1)
    assert relative_change(one, Residuals(middle=(None,))) == pytest.approx(1)
    assert relative_change(Residuals(), one) == math.inf
    assert relative_change(weigh(one, 0.0), one) == math.inf


def test_two_sets_of_zeros_do_not_change() -> None:
    zeros = Residuals((torch.zeros(1, 1, 2, 2),))
    assert relative_change(zeros, zeros) == 0
    assert relative_change(Residuals(), Residuals()) == 0


def test_the_change_of_half_floats_does_not_overflow() -> None:
    new = Residuals((torch.full((1, 64, 64, 64), 300.0, dtype=torch.float16),))
    assert relative_change(new, weigh(new, 0.5)) == pytest.approx(0.5, rel=1e-4)


def test_sets_of_other_sizes_can_not_be_compared() -> None:
    with pytest.raises(ShapeError, match=r"shape \(2, 2, 8, 6\) is held against one of \(1, 2,"):
        relative_change(of_a_controlnet(2), of_a_controlnet(1))
