"""Extraction of Control-LoRAs: their format, what is lost, and that the report tells it."""

import math
from itertools import pairwise

import pytest
import torch

from controlnet_pack.cldm_core import CldmError, load_control
from controlnet_pack.cldm_core.checkpoint.load import contents
from controlnet_pack.cldm_core.checkpoint.read import read
from controlnet_pack.cldm_core.low_rank import extract_control_lora

from .bound_cases import SD_LIKE
from .bound_nets import base_of, control_shapes, numbers, ordinary, trained
from .states import same


@pytest.fixture(scope="module")
def extracted():
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    return {rank: extract_control_lora(net, base, rank) for rank in (1, 4, 16, 64, 1152)}


def test_the_format_is_stabilitys(extracted):
    state, report = extracted[4]
    assert contents(read(state))[0].name == "control_lora"
    ranked = {key.rpartition(".")[0] for key in state if key.endswith(".up")}
    assert ranked == {layer.layer for layer in report.layers}
    for path in ranked:
        shape = control_shapes(SD_LIKE)[f"{path}.weight"]
        rest = (1,) * (len(shape) - 2)
        assert state[f"{path}.up"].shape == (shape[0], 4, *rest)
        assert state[f"{path}.down"].shape == (4, *shape[1:])
        assert f"{path}.weight" not in state
    whole = {key for key in control_shapes(SD_LIKE) if key.rpartition(".")[0] not in ranked}
    biases = {f"{path}.bias" for path in ranked if f"{path}.bias" in control_shapes(SD_LIKE)}
    pairs = {f"{path}.{name}" for path in ranked for name in ("up", "down")}
    assert state.keys() == {"lora_controlnet"} | whole | biases | pairs


def test_at_full_rank_nothing_is_lost(extracted):
    state, report = extracted[1152]
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    assert report.error < 1e-5
    assert report.weight_error < 1e-6
    for layer in report.layers:
        product = state[f"{layer.layer}.up"].flatten(1) @ state[f"{layer.layer}.down"].flatten(1)
        key = f"{layer.layer}.weight"
        assert torch.allclose(base[key] + product.reshape(base[key].shape), net[key], atol=1e-6)


def test_a_rank_that_a_layer_has_not_is_clipped_and_told(extracted):
    _, report = extracted[64]
    narrow = [layer for layer in report.layers if layer.clipped]
    assert tuple(layer.layer for layer in narrow) == report.clipped
    assert {layer.rank for layer in narrow} == {24, 36}
    assert all(layer.rank == min(layer.shape[0], math.prod(layer.shape[1:])) for layer in narrow)
    assert "layers of ranks 24 to 64; lost are " in str(report)


def test_the_error_falls_with_the_rank(extracted):
    reports = [report for _, report in extracted.values()]
    for first, second in pairwise(reports):
        assert second.error < first.error
        assert second.weight_error < first.weight_error
        for one, other in zip(first.layers, second.layers, strict=True):
            assert other.error <= one.error + 1e-6


def test_the_error_is_that_of_the_weights(extracted):
    state, report = extracted[16]
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    lost = changed = whole = 0.0
    for layer in report.layers:
        key = f"{layer.layer}.weight"
        product = state[f"{layer.layer}.up"].flatten(1) @ state[f"{layer.layer}.down"].flatten(1)
        residual = net[key] - base[key] - product.reshape(base[key].shape)
        assert layer.error == pytest.approx(
            float(residual.norm() / (net[key] - base[key]).norm()), rel=1e-3
        )
        lost += float(residual.norm() ** 2)
        changed += float((net[key] - base[key]).norm() ** 2)
        whole += float(net[key].norm() ** 2)
    assert report.error == pytest.approx((lost / changed) ** 0.5, rel=1e-3)
    assert report.weight_error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("rank", [1, 16, 64, 1152])
def test_bound_to_the_base_it_computes_within_the_error(extracted, rank):
    state, report = extracted[rank]
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    bound = load_control(state, base=base)
    found, expected = numbers(bound, SD_LIKE), numbers(ordinary(SD_LIKE, net), SD_LIKE)
    distance = max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))
    # Errors of the weights add up over the layers.
    assert distance < max(1e-5, 10 * report.weight_error)
    assert distance > 0.01 * report.weight_error


def test_a_difference_of_low_rank_is_found_by_the_randomised_method():
    torch.manual_seed(1)
    net, base = trained(SD_LIKE, 0.0), base_of(SD_LIKE)
    key = "middle_block.0.in_layers.2.weight"
    wide = torch.randn(1024, 6) @ torch.randn(6, 1024 * 9)
    net[key], base[key] = wide.reshape(1024, 1024, 3, 3) + 1, torch.ones(1024, 1024, 3, 3)
    report = extract_control_lora(net, base, 6)[1]
    layer = next(layer for layer in report.layers if f"{layer.layer}.weight" == key)
    assert layer.error < 1e-5


def test_extraction_is_the_same_every_time_and_leaves_the_generator_alone():
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    before = torch.get_rng_state()
    first, second = (extract_control_lora(net, base, 4)[0] for _ in range(2))
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_and_sizes_are_told():
    told = []
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    state, report = extract_control_lora(
        net, base, 2, dtype=torch.float16, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(done, len(report.layers)) for done in range(1, len(report.layers) + 1)]
    assert report.size == sum(value.numel() for value in state.values())
    assert report.original_size == sum(value.numel() for value in net.values())
    assert "0.6 M numbers instead of 2.4 M (25%)" in str(report)
    assert "larger" not in str(report)
    assert {value.dtype for k, value in state.items() if k != "lora_controlnet"} == {torch.float16}


def test_a_layer_that_did_not_change_is_stored_at_rank_1():
    report = extract_control_lora(trained(SD_LIKE, 0.0), base_of(SD_LIKE), 2)[1]
    assert (report.error, report.weight_error) == (0, 0)
    assert {layer.rank for layer in report.layers} == {1}
    assert "layers of rank 1; " in str(report)


def test_a_result_larger_than_the_net_is_told(extracted):
    report = extracted[1152][1]
    assert report.size > report.original_size
    assert "It is larger than the net itself: choose a lower rank" in str(report)


def test_a_net_of_8_bits_is_extracted_in_fp16():
    net = {k: v.to(torch.float8_e4m3fn) for k, v in trained(SD_LIKE).items()}
    state, _ = extract_control_lora(net, base_of(SD_LIKE), 2)
    assert {value.dtype for k, value in state.items() if k != "lora_controlnet"} == {torch.float16}


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_1_is_refused(rank):
    with pytest.raises(CldmError, match="from 1"):
        extract_control_lora(trained(SD_LIKE), base_of(SD_LIKE), rank)
