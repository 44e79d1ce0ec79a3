"""What is kept of the residuals while sampling."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from controlnet_pack.cldm_core import Residuals, ShapeError
from controlnet_pack.cldm_core.record import MAP_SIDE, ControlRecord, NetNorms

CANNY: dict[str, Any] = {"name": "canny", "net": "ControlNet"}


def constant(value: float, rows: int = 1, side: int = 4) -> Tensor:
    return torch.full((rows, 3, side, side), value)


def note(record: ControlRecord, value: float = 1.0, step: float = 0, **options: Any) -> None:
    residuals = Residuals(output=(constant(value),), middle=(constant(2 * value),))
    given = {"sigma": 1.0, "strength": 1.0, "residuals": residuals, "side": None}
    record.note(**CANNY, step=step, **{**given, **options})


def only(record: ControlRecord) -> NetNorms:
    (net,) = record.nets
    return net


def test_a_new_record_holds_nothing() -> None:
    assert ControlRecord().nets == ()


def test_each_block_has_its_rms() -> None:
    record = ControlRecord()
    note(record, -3.0)
    (step,) = only(record).steps
    assert {label: block.rms for label, block in step.blocks.items()} == {"z0": 3.0, "middle": 6.0}


def test_the_rms_of_a_step_counts_each_block_the_same() -> None:
    record = ControlRecord()
    note(record)
    assert only(record).steps[0].rms == pytest.approx(2.5**0.5)


def test_a_map_tells_where_a_residual_is_large() -> None:
    item = torch.zeros(1, 4, 8, 8)
    item[:, :, :4] = 2.0
    record = ControlRecord()
    note(record, residuals=Residuals(output=(item,)))
    found = only(record).steps[0].blocks["z0"].map
    np.testing.assert_array_equal(found[:4], 2.0)
    np.testing.assert_array_equal(found[4:], 0.0)


def test_maps_are_reduced_to_the_bound_and_keep_their_shape() -> None:
    record = ControlRecord()
    note(record, residuals=Residuals(output=(torch.randn(1, 2, 64, 96),)))
    block = only(record).steps[0].blocks["z0"]
    assert block.map.shape == (21, MAP_SIDE)


def test_a_reduced_map_has_the_rms_of_its_block() -> None:
    record = ControlRecord()
    note(record, residuals=Residuals(output=(torch.randn(2, 3, 64, 64),)))
    block = only(record).steps[0].blocks["z0"]
    assert np.sqrt(np.square(block.map).mean()) == pytest.approx(block.rms, rel=1e-5)


def test_pooled_residuals_are_one_number() -> None:
    record = ControlRecord()
    note(record, residuals=Residuals(output=(torch.full((2, 3, 1, 1), 5.0),)))
    block = only(record).steps[0].blocks["z0"]
    assert block.map.tolist() == [[5.0]]


def test_tokens_are_laid_out_by_the_size_of_the_latents() -> None:
    tokens = torch.zeros(1, 6, 5)
    tokens[:, 5] = 1.0
    record = ControlRecord()
    note(record, residuals=Residuals(output=(tokens,)), size=(4, 6))
    found = only(record).steps[0].blocks["z0"].map
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 0, 1]])


def test_tokens_whose_places_are_unknown_are_one_number() -> None:
    record = ControlRecord()
    note(record, residuals=Residuals(output=(torch.ones(1, 7, 5),)), size=(4, 6))
    assert only(record).steps[0].blocks["z0"].map.tolist() == [[1.0]]


def test_residuals_of_another_rank_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"shape \(3,\), expected \(B, C, h, w\)"):
        note(ControlRecord(), residuals=Residuals(output=(torch.ones(3),)))


def test_calls_of_one_step_are_averaged() -> None:
    record = ControlRecord()
    note(record, 1.0, step=3, strength=0.4)
    note(record, 7.0, step=3, strength=0.8)
    (step,) = only(record).steps
    assert step.blocks["z0"].rms == pytest.approx(5.0)
    assert step.strength == pytest.approx(0.6)
    np.testing.assert_allclose(step.blocks["z0"].map, 5.0)


@pytest.mark.parametrize(("step", "kept"), [(3.5, 3), (2.99999, 3), (3.00001, 3), (2.9, 2)])
def test_parts_of_a_step_belong_to_the_step_before(step: float, kept: int) -> None:
    record = ControlRecord()
    note(record, step=step)
    assert only(record).steps[0].step == kept


def test_the_sigma_of_a_step_is_that_of_its_first_call() -> None:
    record = ControlRecord()
    note(record, step=0, sigma=10.0)
    note(record, step=0.5, sigma=7.0)
    assert only(record).steps[0].sigma == 10.0


def test_maps_of_unlike_sizes_are_averaged_in_the_size_of_the_first() -> None:
    record = ControlRecord()
    note(record, residuals=Residuals(output=(constant(1.0, side=4),)))
    note(record, residuals=Residuals(output=(constant(1.0, side=6),)))
    found = only(record).steps[0].blocks["z0"].map
    np.testing.assert_allclose(found, np.ones((4, 4)))


def test_only_the_positive_rows_count() -> None:
    item = torch.cat([constant(9.0), constant(1.0)])
    record = ControlRecord()
    note(record, residuals=Residuals(output=(item,)), side=["negative", "positive"])
    assert only(record).steps[0].blocks["z0"].rms == 1.0


def test_a_side_may_stand_for_equal_parts_of_the_batch() -> None:
    item = torch.cat([constant(1.0, rows=2), constant(9.0, rows=2)])
    record = ControlRecord()
    note(record, residuals=Residuals(output=(item,)), side=["positive", "negative"])
    assert only(record).steps[0].blocks["z0"].rms == 1.0


@pytest.mark.parametrize("side", [None, ["negative", "unknown"]])
def test_all_rows_count_where_none_is_known_to_be_positive(side: list[str] | None) -> None:
    item = torch.cat([constant(1.0), constant(7.0)])
    record = ControlRecord()
    note(record, residuals=Residuals(output=(item,)), side=side)
    assert only(record).steps[0].blocks["z0"].rms == pytest.approx(5.0)


@pytest.mark.parametrize("first", ["positive", "negative"])
def test_the_positive_call_stands_for_the_step_where_sides_are_called_apart(first: str) -> None:
    record = ControlRecord()
    for side in (first, {"positive": "negative", "negative": "positive"}[first]):
        note(record, {"positive": 1.0, "negative": 9.0}[side], side=[side])
    assert only(record).steps[0].blocks["z0"].rms == 1.0


def test_sides_that_do_not_fit_the_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match="3 sides were given for a batch of 4"):
        note(
            ControlRecord(),
            residuals=Residuals(output=(constant(1.0, rows=4),)),
            side=["positive", "negative", "negative"],
        )


def test_a_skipped_step_says_why() -> None:
    record = ControlRecord()
    note(record, step=0)
    record.skip(**CANNY, step=1, sigma=0.5, reason="out of its window")
    step = only(record).steps[1]
    assert (step.off, step.strength, step.blocks) == ("out of its window", 0.0, {})
    assert only(record).steps_on == 1


def test_a_step_with_one_call_skipped_is_on() -> None:
    record = ControlRecord()
    record.skip(**CANNY, step=0, sigma=1.0, reason="conditional side only")
    note(record, step=0)
    assert only(record).steps[0].off is None


def test_a_net_without_residuals_gives_its_strength() -> None:
    record = ControlRecord()
    note(record, residuals=Residuals(), strength=0.7)
    (step,) = only(record).steps
    assert (step.strength, step.blocks, step.off, step.rms) == (0.7, {}, None, 0.0)


def test_steps_come_in_order() -> None:
    record = ControlRecord()
    for step in (2, 0, 1):
        note(record, step=step)
    assert [step.step for step in only(record).steps] == [0, 1, 2]


def test_labels_go_from_the_first_block_to_the_middle() -> None:
    record = ControlRecord()
    slots = Residuals(output=(constant(1.0),) * 12, middle=(constant(1.0),))
    note(record, residuals=slots)
    assert only(record).labels == (*(f"z{index}" for index in range(12)), "middle")


def test_adapters_are_labelled_by_the_place_of_their_slots() -> None:
    record = ControlRecord()
    slot = tuple(constant(1.0) if index in (3, 5, 10) else None for index in range(11))
    note(record, residuals=Residuals(input=slot, middle=(constant(1.0),)))
    assert only(record).labels == ("in3", "in5", "in10", "middle")


def test_nets_are_kept_apart_by_name_and_key() -> None:
    record = ControlRecord()
    note(record)
    note(record, key="second")
    record.skip(name="depth", net="ControlNet", step=0, sigma=1.0, reason="weight 0")
    assert [net.name for net in record.nets] == ["canny", "canny", "depth"]


def test_a_new_sampling_forgets_the_last() -> None:
    record = ControlRecord()
    note(record)
    record.begin()
    assert record.nets == ()


def test_no_tensor_is_kept() -> None:
    record = ControlRecord()
    item = constant(1.0)
    given = weakref.ref(item)
    note(record, residuals=Residuals(output=(item,)))
    del item
    gc.collect()
    assert given() is None
    assert not any(isinstance(found, Tensor) for found in reachable(record))


def test_what_was_given_is_not_changed() -> None:
    item = torch.randn(2, 3, 4, 4)
    before = item.clone()
    note(ControlRecord(), residuals=Residuals(output=(item,)), side=["positive", "negative"])
    assert torch.equal(item, before)


def test_fifty_steps_take_a_few_megabytes() -> None:
    record = ControlRecord()
    sides = (64,) * 4 + (32,) * 3 + (16,) * 3 + (8,) * 2
    slots = Residuals(tuple(torch.ones(1, 1, side, side) for side in sides))
    for step in range(50):
        note(record, step=step, residuals=slots)
    arrays = [found for found in reachable(record) if isinstance(found, np.ndarray)]
    assert len(arrays) == 50 * len(sides)
    assert all(array.base is None for array in arrays)
    assert sum(array.nbytes for array in arrays) < 2 * 2**20


def test_half_precision_does_not_overflow() -> None:
    record = ControlRecord()
    note(record, residuals=Residuals(output=(constant(300.0).half(),)))
    assert only(record).steps[0].blocks["z0"].rms == 300.0


def test_it_works_in_inference_mode() -> None:
    record = ControlRecord()
    with torch.inference_mode():
        note(record, residuals=Residuals(output=(constant(1.0),)))
    note(record, 7.0, step=0, residuals=Residuals(output=(constant(7.0),)))
    assert only(record).steps[0].blocks["z0"].rms == pytest.approx(5.0)


def test_a_residual_that_needs_gradients_is_recorded() -> None:
    record = ControlRecord()
    note(record, residuals=Residuals(output=(constant(2.0).requires_grad_(),)))
    assert only(record).steps[0].blocks["z0"].rms == 2.0


def reachable(record: ControlRecord) -> list[Any]:
    """Everything that the record refers to."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [vars(record)]
    while waiting:
        one = waiting.pop()
        if id(one) in found or isinstance(one, type):
            continue
        found[id(one)] = one
        waiting += gc.get_referents(one)
    return list(found.values())
