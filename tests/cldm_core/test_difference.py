"""Difference ControlNets: against numbers recorded from ComfyUI, and against the summed weights."""

import pytest
import torch
from safetensors.torch import load_file

from controlnet_pack.cldm_core.checkpoint.detect_bound import difference_config
from controlnet_pack.cldm_core.control_lora import (
    canonical_difference,
    difference_net,
    needed_from_base,
)
from controlnet_pack.cldm_core.errors import CheckpointMismatch, CldmError, FamilyMismatch

from .bound_cases import OWN, SD_LIKE, SDXL_LIKE, difference_file
from .bound_nets import (
    EACH_CASE,
    base_of,
    config_of,
    control_shapes,
    equal,
    numbers,
    ordinary,
    residuals,
)
from .goldens import GOLDENS, TOLERANCE, errors, named

LAYER = "input_blocks.1.0.in_layers.2"


def stored(case, *how, **more):
    return canonical_difference(difference_file(control_shapes(case), *how, **more))[0]


def unbound(case, *how, **more):
    return difference_net(stored(case, *how, **more), config_of(case)).requires_grad_(False)


def summed(case, state, base):
    """The ordinary net's weights."""
    return {
        key: state[key] if key.startswith(OWN) else base[key] + state.get(key, 0)
        for key in control_shapes(case)
    }


def distance(net, case, name):
    golden = load_file(GOLDENS.parent / "difference" / f"{name}.safetensors")
    found = named(torch.zeros(()), residuals(net.bind(base_of(case)), case))
    del found["features"]
    assert found.keys() == golden.keys()
    return max(errors(found, golden).values())


@EACH_CASE
def test_residuals_are_those_of_comfyui(case):
    assert distance(unbound(case), case, case.name) < TOLERANCE


def test_a_half_precision_file_is_summed_in_its_own_type_as_in_comfyui():
    net = unbound(SD_LIKE, torch.float16, complete=True)
    assert distance(net, SD_LIKE, "sd_like_half") < TOLERANCE
    assert distance(net.float(), SD_LIKE, "sd_like_half") > TOLERANCE


@EACH_CASE
def test_it_is_the_ordinary_net_with_summed_weights(case):
    base = base_of(case)
    whole = ordinary(case, summed(case, stored(case), base))
    assert equal(numbers(unbound(case).bind(base), case), numbers(whole, case))


def test_a_file_of_8_bits_is_summed_in_the_type_of_the_latents():
    state = {k: v.to(torch.float8_e4m3fn) for k, v in stored(SD_LIKE).items()}
    wide = {key: value.float() for key, value in state.items()}
    base = base_of(SD_LIKE)
    narrow, full = (difference_net(s, config_of(SD_LIKE)).bind(base) for s in (state, wide))
    with torch.no_grad():
        assert equal(numbers(narrow, SD_LIKE), numbers(full, SD_LIKE))


def test_a_missing_key_is_equal_to_the_base():
    base = base_of(SD_LIKE)
    zeros = {k: torch.zeros(shape) for k, shape in control_shapes(SD_LIKE).items()}
    completed = difference_net({**zeros, **stored(SD_LIKE)}, config_of(SD_LIKE))
    assert equal(
        numbers(unbound(SD_LIKE).bind(base), SD_LIKE), numbers(completed.bind(base), SD_LIKE)
    )


def test_another_base_gives_other_residuals():
    net, base = unbound(SD_LIKE), base_of(SD_LIKE)
    patched = {**base, f"{LAYER}.weight": 2 * base[f"{LAYER}.weight"]}
    assert not equal(numbers(net.bind(base), SD_LIKE), numbers(net.bind(patched), SD_LIKE))


def test_only_the_tensors_of_the_file_are_parameters():
    state = stored(SD_LIKE)
    net = difference_net(state, config_of(SD_LIKE)).bind(base_of(SD_LIKE))
    assert {p.data_ptr() for p in net.parameters()} == {v.data_ptr() for v in state.values()}
    assert net.state_dict().keys() == state.keys()


def test_all_that_the_base_has_is_asked_from_it():
    twins = {key for key in control_shapes(SDXL_LIKE) if not key.startswith(OWN)}
    assert set(needed_from_base(unbound(SDXL_LIKE))) == twins


def test_unbound_it_asks_for_a_base():
    with pytest.raises(CldmError, match=r"net = net\.bind\(base\)"):
        residuals(unbound(SD_LIKE), SD_LIKE)


def test_a_base_of_another_family_is_refused():
    with pytest.raises(FamilyMismatch, match="another family"):
        unbound(SD_LIKE).bind(base_of(SDXL_LIKE))


@pytest.mark.parametrize("part", OWN)
def test_what_no_base_has_must_be_in_the_file(part):
    state = {key: value for key, value in stored(SD_LIKE).items() if not key.startswith(part)}
    with pytest.raises(CheckpointMismatch, match=rf"missing {part}.* which no base model has"):
        difference_net(state, config_of(SD_LIKE))


def test_low_rank_tensors_are_not_part_of_a_difference():
    pair = {f"{LAYER}.up": torch.zeros(64, 1), f"{LAYER}.down": torch.zeros(1, 64 * 9)}
    with pytest.raises(CheckpointMismatch, match=f"unexpected {LAYER}"):
        difference_net({**stored(SD_LIKE), **pair}, config_of(SD_LIKE))


def test_the_marker_and_foreign_keys_are_dropped_and_named():
    file = {**difference_file(control_shapes(SD_LIKE)), "logvar": torch.zeros(1)}
    state, dropped = canonical_difference(file)
    assert dropped == ("difference", "logvar")
    assert {f"control_model.{key}" for key in state} == file.keys() - set(dropped)


def test_a_file_may_come_without_the_prefix():
    state = stored(SD_LIKE)
    marked = {**state, "difference": torch.ones(())}
    assert canonical_difference(marked)[0].keys() == state.keys()


@EACH_CASE
def test_the_configuration_is_read_from_the_keys(case):
    assert difference_config(stored(case, complete=True)) == config_of(case)


@EACH_CASE
def test_what_the_keys_leave_open_is_read_from_the_base(case):
    found = difference_config(stored(case), base_of(case))
    assert difference_net(stored(case), found).bind(base_of(case)).is_bound


def test_what_the_keys_leave_open_is_asked_for():
    state = stored(SD_LIKE, complete=True)
    del state["input_blocks.1.0.out_layers.3.weight"]
    with pytest.raises(CheckpointMismatch, match=r"give the weights of the base model \(base=\)"):
        difference_config(state)
