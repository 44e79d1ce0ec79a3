"""Surgery on weights: its algebra, the original tools' formulas, and what an extraction loses."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnet_pack.cldm_core import (
    TINY,
    CheckpointMismatch,
    CldmError,
    ControlledUNet,
    ControlNetConfig,
    DamagedCheckpoint,
    FamilyMismatch,
    UnsupportedCheckpoint,
    load_control,
    load_unet,
)
from controlnet_pack.cldm_core.checkpoint import Checkpoint
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.checkpoint.write import HINT_KEY, config_metadata, stored_pooling
from controlnet_pack.cldm_core.low_rank import extract_control_lora
from controlnet_pack.cldm_core.surgery import (
    add_control,
    apply_difference,
    difference,
    merge_nets,
    merged,
    transfer,
)

from .bound_cases import OWN, SD_LIKE, SDXL_LIKE
from .bound_nets import (
    EACH_CASE,
    base_of,
    numbers,
    ordinary,
    other_base,
    trained,
)
from .samples import LOADED, adapter, control_lora, controlnet, lllite, prefixed, union
from .samples import difference as difference_sample
from .states import close, half, same

LAYER = "input_blocks.1.0.in_layers.2.weight"
UNET = "model.diffusion_model."
WHOLE_ALONE = {
    "ControlNet": controlnet,
    "union": lambda: union(6),
    "adapter": adapter,
    "LLLite": lambda: lllite("input_blocks.1", "middle_block"),
}
BOUND = {"Control-LoRA": control_lora, "difference": difference_sample}


def copy_of(state):
    return {key: value.clone() for key, value in state.items()}


# add_control


@EACH_CASE
def test_added_control_is_that_of_the_original_tool(case):
    base = base_of(case)
    net = add_control(load_unet(base), hint_channels=2).state_dict()
    # As in tool_add_control.py: `control_` before a name stands for `model.diffusion_`.
    whole = {**prefixed(UNET, base), **prefixed("control_model.", net)}
    for key in prefixed("control_model.", net):
        twin = "model.diffusion_" + key.removeprefix("control_")
        if twin in whole:
            assert torch.equal(whole[key], whole[twin])
        else:
            assert key.removeprefix("control_model.").startswith(OWN)
    for key, value in net.items():
        if key.startswith((*OWN[1:], "input_hint_block.14.")):
            assert not value.any()
    assert net["input_hint_block.0.weight"].shape[1] == 2


def test_no_control_is_added_to_what_reads_more_than_latents():
    with torch.device("meta"):
        unet = ControlledUNet(replace(TINY, in_channels=9))
    with pytest.raises(UnsupportedCheckpoint, match="reads latents of 9 channels"):
        add_control(unet)


# transfer


@EACH_CASE
@pytest.mark.parametrize("change", [dict, half], ids=["fp32", "fp16"])
def test_transfer_to_the_same_base_changes_nothing(case, change):
    net, base = change(trained(case)), base_of(case)
    assert same(transfer(net, base, base), net)


@EACH_CASE
def test_transfer_is_that_of_the_original_tool(case):
    net, old, new = trained(case), base_of(case), other_base(case)
    expected = {
        key: value + new[key] - old[key] if key in new else value for key, value in net.items()
    }
    assert close(transfer(net, old, new), expected, 1e-6)


def test_transfer_there_and_back():
    net, old, new = trained(SD_LIKE), base_of(SD_LIKE), other_base(SD_LIKE)
    assert close(transfer(transfer(net, old, new), new, old), net, 1e-6)


def test_transfer_keeps_the_type_of_the_net():
    net = half(trained(SD_LIKE))
    moved = transfer(net, base_of(SD_LIKE), other_base(SD_LIKE))
    assert {value.dtype for value in moved.values()} == {torch.float16}


def test_every_layout_of_every_part_is_taken():
    net, old, new = trained(SDXL_LIKE), base_of(SDXL_LIKE), other_base(SDXL_LIKE)
    expected = transfer(net, old, new)
    for theirs, source, target in (
        (to_diffusers(net), to_diffusers(old), to_diffusers(new)),
        (prefixed("control_model.", net), prefixed(UNET, old), prefixed("diffusion_model.", new)),
    ):
        assert same(transfer(theirs, source, target), expected)


def test_projections_may_be_convolutions_in_one_of_them():
    net, old, new = trained(SDXL_LIKE), base_of(SDXL_LIKE), other_base(SDXL_LIKE)
    expected = transfer(net, old, new)
    widened = {
        key: value[..., None, None]
        if key.endswith(("proj_in.weight", "proj_out.weight"))
        else value
        for key, value in old.items()
    }
    assert same(transfer(net, widened, new), expected)


def test_a_union_is_transferred():
    case = SDXL_LIKE
    net = {
        **trained(case),
        "task_embedding": torch.ones(6, 64),
        "control_add_embedding.linear_1.weight": torch.ones(4, 6),
    }
    moved = transfer(net, base_of(case), other_base(case))
    assert torch.equal(moved["task_embedding"], net["task_embedding"])
    assert not torch.equal(moved[LAYER], net[LAYER])


def types(state):
    return {value.dtype for key, value in state.items() if key != "difference"}


def test_what_came_in_8_bits_comes_out_in_fp16():
    net = {k: v.to(torch.float8_e4m3fn) for k, v in trained(SD_LIKE).items()}
    base = base_of(SD_LIKE)
    made = difference(net, base)
    narrow = {
        k: v if k == "difference" else v.clamp(-400, 400).to(torch.float8_e5m2)
        for k, v in made.items()
    }
    for result in (
        transfer(net, base, other_base(SD_LIKE)),
        merge_nets(net, net, 0.5),
        made,
        apply_difference(narrow, base),
    ):
        assert types(result) == {torch.float16}


def test_any_type_can_be_asked_for():
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    bf16 = torch.bfloat16
    made = difference(net, base, dtype=bf16)
    for result in (
        transfer(net, base, other_base(SD_LIKE), dtype=bf16),
        merge_nets(net, net, 0.5, dtype=bf16),
        made,
        apply_difference(made, base, dtype=bf16),
    ):
        assert types(result) == {bf16}


def test_transfer_to_other_shapes_is_refused_with_the_keys():
    odd = {**base_of(SD_LIKE), "time_embed.0.weight": torch.zeros(1, 1)}
    with pytest.raises(
        CheckpointMismatch, match=r"The target .*time_embed\.0\.weight is \(1, 1\) .*same family"
    ):
        transfer(trained(SD_LIKE), base_of(SD_LIKE), odd)
    with pytest.raises(CheckpointMismatch, match=r"The source has .*is missing"):
        transfer(trained(SDXL_LIKE), base_of(SD_LIKE), base_of(SDXL_LIKE))


@pytest.mark.parametrize("make", [*BOUND.values(), adapter, lambda: lllite("middle_block")])
def test_only_nets_with_a_copied_encoder_are_transferred(make):
    with pytest.raises(UnsupportedCheckpoint, match="with the other one as it is"):
        transfer(make(), base_of(SD_LIKE), base_of(SD_LIKE))


def test_a_file_of_something_else_is_no_base():
    with pytest.raises(UnsupportedCheckpoint, match="can't be loaded as a UNet"):
        transfer(trained(SD_LIKE), trained(SD_LIKE), base_of(SD_LIKE))


def test_sums_beyond_fp16_are_refused():
    net, old, new = half(trained(SD_LIKE)), base_of(SD_LIKE), other_base(SD_LIKE)
    new[LAYER] = new[LAYER] + 1e5
    with pytest.raises(CldmError, match=f"{LAYER} has numbers up to .* use bf16 or fp32"):
        transfer(net, old, new)


# difference


@EACH_CASE
def test_a_difference_has_the_format_of_the_tool(case):
    net, base = trained(case), base_of(case)
    file = difference(net, base)
    assert file.pop("difference") == 1
    for key, value in file.items():
        name = key.removeprefix("control_model.")
        expected = net[name] if name.startswith(OWN) else net[name] - base[name]
        assert torch.equal(value, expected)
    assert len(file) == len(net)


@EACH_CASE
def test_a_difference_applied_is_the_net(case):
    net, base = trained(case), base_of(case)
    assert close(apply_difference(difference(net, base), base), net, 1e-6)


def test_a_half_precision_net_survives_to_the_bit_in_fp32():
    net, base = half(trained(SD_LIKE)), half(base_of(SD_LIKE))
    file = difference(net, base, dtype=torch.float32)
    assert same(apply_difference(file, base, dtype=torch.float16), net)


def test_what_did_not_change_is_left_out_and_comes_back():
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    net[LAYER] = base[LAYER] + 9e-7
    file = difference(net, base)
    assert f"control_model.{LAYER}" not in file
    assert torch.equal(apply_difference(file, base)[LAYER], base[LAYER])


def test_an_untrained_net_is_left_out_but_for_its_own_parts():
    base = base_of(SD_LIKE)
    net = add_control(load_unet(base)).state_dict()
    file = difference(net, base)
    assert all(key.startswith(prefixed_own()) for key in file if key != "difference")
    assert same(apply_difference(file, base), dict(net))


def prefixed_own():
    return tuple(f"control_model.{part}" for part in OWN)


def test_a_difference_applied_to_another_base_is_the_transferred_net():
    net, old, new = trained(SDXL_LIKE), base_of(SDXL_LIKE), other_base(SDXL_LIKE)
    assert close(apply_difference(difference(net, old), new), transfer(net, old, new), 1e-6)


def test_the_made_difference_computes_like_the_net():
    net, base = trained(SD_LIKE), base_of(SD_LIKE)
    bound = load_control(difference(net, base), base=base)
    pairs = zip(numbers(bound, SD_LIKE), numbers(ordinary(SD_LIKE, net), SD_LIKE), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_a_difference_of_another_family_is_not_applied():
    file = difference(trained(SD_LIKE), base_of(SD_LIKE))
    with pytest.raises(FamilyMismatch):
        apply_difference(file, base_of(SDXL_LIKE))


@pytest.mark.parametrize("make", [lambda: union(6), adapter, *BOUND.values()])
def test_differences_are_made_of_controlnets(make):
    with pytest.raises(UnsupportedCheckpoint, match="expected a ControlNet"):
        difference(make(), base_of(SD_LIKE))
    with pytest.raises(UnsupportedCheckpoint, match="expected a ControlNet"):
        extract_control_lora(make(), base_of(SD_LIKE), 4)


def test_only_differences_are_applied():
    with pytest.raises(UnsupportedCheckpoint, match="expected a difference file"):
        apply_difference(trained(SD_LIKE), base_of(SD_LIKE))


# merge


@pytest.mark.parametrize("name", WHOLE_ALONE)
def test_a_ratio_of_0_or_1_is_one_of_both(name):
    first = WHOLE_ALONE[name]()
    second = {key: value * -3 + 0.1 for key, value in first.items()}
    assert same(merge_nets(first, second, 0), first)
    assert same(merge_nets(first, second, 1), second)


def test_merged_weights_lie_between():
    first, second = half(trained(SD_LIKE)), half(trained(SD_LIKE, 0.5))
    merged = merge_nets(first, to_diffusers(second), 0.25)
    expected = {k: (0.75 * first[k].float() + 0.25 * second[k].float()).half() for k in first}
    assert close(merged, expected, 2e-3)
    assert {value.dtype for value in merged.values()} == {torch.float16}


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf])
def test_a_ratio_outside_is_refused(ratio):
    with pytest.raises(CldmError, match=r"from 0 .* to 1"):
        merge_nets(trained(SD_LIKE), trained(SD_LIKE), ratio)


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (lambda: union(6), "only nets of one kind"),
        (adapter, "only nets of one kind"),
        (control_lora, "can't be merged by itself"),
        (difference_sample, "can't be merged by itself"),
        (lambda: controlnet(hint_channels=1), r"\(input_hint_block\.0\.weight\)"),
        (LOADED["cldm"]["vector"], r"differ in keys or shapes \(.* more\)"),
    ],
)
def test_unlike_nets_are_not_merged(second, sentence):
    with pytest.raises((UnsupportedCheckpoint, CheckpointMismatch), match=sentence):
        merge_nets(controlnet(), second(), 0.5)


def test_projections_of_merged_nets_may_be_convolutions_in_one_of_them():
    first, second = trained(SDXL_LIKE), trained(SDXL_LIKE, 0.5)
    assert same(merge_nets(first, widened(second), 0.25), merge_nets(first, second, 0.25))
    assert same(merge_nets(widened(first), second, 0), widened(first))


def widened(state):
    return {
        key: value[..., None, None]
        if key.endswith(("proj_in.weight", "proj_out.weight"))
        else value
        for key, value in state.items()
    }


def test_messages_tell_the_two_nets_apart():
    with pytest.raises(CheckpointMismatch, match="the first net and the second net differ"):
        merge_nets(controlnet(), controlnet(hint_channels=1), 0.5)
    with pytest.raises(UnsupportedCheckpoint, match="the second net holds a Control-LoRA"):
        merge_nets(controlnet(), control_lora(), 0.5)


def noted(name, pooling=None, hint=None, **unet):
    """A ControlNet in a file that says something of itself."""
    config = ControlNetConfig(replace(TINY, **unet), global_average_pooling=bool(pooling))
    metadata = config_metadata(config, pooling_known=pooling is not None)
    return Checkpoint(controlnet(), metadata | ({} if hint is None else {HINT_KEY: hint}), name)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (True, True, True),
        (False, False, False),
        (None, None, None),
        (True, None, True),
        (None, True, True),
        (None, False, False),
    ],
)
def test_the_pooling_that_one_net_tells_is_the_mixtures(first, second, expected):
    result = merged(noted("a", first), noted("b", second), 0.5)
    assert stored_pooling(Checkpoint({}, result.metadata)) == expected
    assert result.config.global_average_pooling == bool(expected)
    silent = "a" if first is None else "b"
    assert (f"{silent} doesn't tell" in result.note) == (first != second)


def test_a_pooled_net_and_another_are_merged_only_by_decision():
    nets = noted("a", False), noted("b", True)
    with pytest.raises(CheckpointMismatch, match=r"of b are averaged .* those of a are not: say"):
        merge_nets(*nets, 0.5)
    for decided in (True, False):
        result = merged(*nets, 0.5, global_average_pooling=decided)
        assert stored_pooling(Checkpoint({}, result.metadata)) == decided


def test_nets_that_compute_otherwise_are_not_merged():
    heads = {"num_heads": 4, "num_head_channels": -1}
    with pytest.raises(CheckpointMismatch, match="differ in num_head_channels, num_heads"):
        merge_nets(noted("a"), noted("b", **heads), 0.5)
    # What only a decoder has doesn't matter.
    merge_nets(noted("a"), noted("b", transformer_depth_output=(0,) * 6, out_channels=8), 0.5)


def test_a_configuration_that_the_second_net_carries_is_the_mixtures():
    heads = {"num_heads": 4, "num_head_channels": -1}
    assert merged(controlnet(), noted("b", **heads), 0.5).config.unet.num_heads == 4
    assert merged(noted("b", **heads), controlnet(), 0.5).config.unet.num_heads == 4


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("a", "a", "a"), ("a", "b", None), (None, "b", "b"), (None, None, None)],
)
def test_a_hint_is_kept_where_the_nets_agree(first, second, expected):
    result = merged(noted("a", hint=first), noted("b", hint=second), 0.5)
    assert result.metadata.get(HINT_KEY) == expected


# all of them


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["net", "base"])
def test_damaged_numbers_are_refused(value, where):
    parts = {"net": trained(SD_LIKE), "base": base_of(SD_LIKE)}
    made = difference(parts["net"], parts["base"])
    parts[where][LAYER].view(-1)[-1] = value
    net, base, other = parts["net"], parts["base"], other_base(SD_LIKE)
    calls = [
        lambda: transfer(net, base, other),
        lambda: difference(net, base),
        lambda: extract_control_lora(net, base, 2),
    ]
    if where == "net":
        calls.append(lambda: merge_nets(trained(SD_LIKE), net, 0.5))
    else:
        calls += [lambda: transfer(net, other, base), lambda: apply_difference(made, base)]
    for call in calls:
        with pytest.raises(DamagedCheckpoint, match=LAYER):
            call()


def memories(state):
    return {value.untyped_storage().data_ptr() for value in state.values() if value.numel()}


@pytest.mark.parametrize("change", [dict, half], ids=["fp32", "fp16"])
def test_results_share_no_memory_with_what_is_given(change):
    net, base, other = (change(s(SD_LIKE)) for s in (trained, base_of, other_base))
    for name in ("input_blocks.0.0.weight", LAYER):
        net[name] = base[name].clone()
    made = difference(net, base)
    given = set().union(*map(memories, (net, base, other, made)))
    for result in (
        transfer(net, base, other),
        difference(net, base),
        apply_difference(made, base),
        merge_nets(net, net, 0),
        extract_control_lora(net, base, 2)[0],
    ):
        assert not memories(result) & given


def test_nothing_that_is_given_is_changed():
    net, old, new = trained(SD_LIKE), base_of(SD_LIKE), other_base(SD_LIKE)
    before = [copy_of(state) for state in (net, old, new)]
    transfer(net, old, new)
    file = difference(net, old)
    kept = copy_of(file)
    apply_difference(file, old)
    merge_nets(net, net, 0.5)
    extract_control_lora(net, old, 2)
    assert same(file, kept)
    assert all(map(same, (net, old, new), before))


def test_files_give_the_same_as_state_dicts(tmp_path):
    net, old, new = trained(SD_LIKE), base_of(SD_LIKE), other_base(SD_LIKE)
    paths = []
    for name, state in (("net", net), ("old", prefixed(UNET, old)), ("new", new)):
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(state, paths[-1])
    assert same(transfer(*paths), transfer(net, old, new))
    assert same(difference(*paths[:2]), difference(net, old))
    assert same(load_file(paths[0]), net)
