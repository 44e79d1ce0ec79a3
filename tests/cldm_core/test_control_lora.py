"""Control-LoRAs: against numbers recorded from ComfyUI, and against the composed weights."""

import copy
import weakref

import pytest
import torch
from safetensors.torch import load_file

from controlnet_pack.cldm_core.checkpoint.detect_bound import control_lora_config
from controlnet_pack.cldm_core.control_lora import (
    canonical_control_lora,
    control_lora,
    needed_from_base,
)
from controlnet_pack.cldm_core.errors import (
    CheckpointMismatch,
    CldmError,
    FamilyMismatch,
    ShapeError,
)

from .bound_cases import RANK, SD_LIKE, SDXL_LIKE, lora_file
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
from .seeded import seeded_tensor

LAYER = "input_blocks.1.0.in_layers.2"


def stored(case, **how):
    return canonical_control_lora(lora_file(control_shapes(case), **how))[0]


def unbound(case):
    return control_lora(stored(case), config_of(case)).requires_grad_(False)


def composed(case, state, base):
    """The ordinary net's weights."""
    whole = {}
    for key, shape in control_shapes(case).items():
        path = key.removesuffix(".weight")
        value = state.get(key, base.get(key))
        if f"{path}.up" in state:
            product = state[f"{path}.up"].flatten(1) @ state[f"{path}.down"].flatten(1)
            value = base[key] + product.reshape(shape)
        whole[key] = value
    return whole


@EACH_CASE
def test_residuals_are_those_of_comfyui(case):
    golden = load_file(GOLDENS.parent / "control_lora" / f"{case.name}.safetensors")
    net = unbound(case).bind(base_of(case))
    features = net.encode_hint(case.inputs().hint)
    found = named(features, residuals(net, case))
    del found["features"]
    assert found.keys() == golden.keys()
    assert max(errors(found, golden).values()) < TOLERANCE


@EACH_CASE
def test_it_is_the_ordinary_net_with_composed_weights(case):
    base = base_of(case)
    whole = ordinary(case, composed(case, stored(case), base))
    assert equal(numbers(unbound(case).bind(base), case), numbers(whole, case))


@EACH_CASE
def test_state_dict_has_the_keys_of_the_file(case):
    state = stored(case)
    own = unbound(case).bind(base_of(case)).state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in own)


def test_only_the_tensors_of_the_file_are_parameters():
    state = stored(SD_LIKE)
    net = control_lora(state, config_of(SD_LIKE)).bind(base_of(SD_LIKE))
    assert {p.data_ptr() for p in net.parameters()} == {v.data_ptr() for v in state.values()}
    assert not list(net.buffers())


def test_no_tensor_of_the_base_is_kept():
    base, given = base_of(SD_LIKE), []

    def look_up(key):
        value = base[key].clone()
        given.append(weakref.ref(value.untyped_storage()))
        return value

    net = unbound(SD_LIKE).bind(look_up)
    residuals(net, SD_LIKE)
    assert len(given) > 2 * len(needed_from_base(net)) - 1
    assert not any(reference() is not None for reference in given)


def test_what_changes_in_the_base_counts_at_once():
    base = base_of(SD_LIKE)
    net = unbound(SD_LIKE).bind(base)
    before = numbers(net, SD_LIKE)
    key = f"{LAYER}.weight"
    base[key] = base[key] + 0.1 * seeded_tensor(tuple(base[key].shape), "patch", 9)
    patched = numbers(net, SD_LIKE)
    assert not torch.equal(before[1], patched[1])
    assert equal(
        patched, numbers(ordinary(SD_LIKE, composed(SD_LIKE, stored(SD_LIKE), base)), SD_LIKE)
    )


def test_the_base_stays_as_it_is():
    base = base_of(SD_LIKE)
    kept = copy.deepcopy(base)
    residuals(unbound(SD_LIKE).bind(base), SD_LIKE)
    assert all(torch.equal(base[key], kept[key]) for key in base)


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_a_mapping_may_have_the_prefix_of_a_checkpoint(prefix):
    base = base_of(SD_LIKE)
    want = numbers(unbound(SD_LIKE).bind(base), SD_LIKE)
    net = unbound(SD_LIKE).bind({prefix + key: value for key, value in base.items()})
    assert equal(numbers(net, SD_LIKE), want)


def test_a_base_may_be_stored_in_another_type():
    base = {key: value.half() for key, value in base_of(SD_LIKE).items()}
    wide = {key: value.float() for key, value in base.items()}
    net = unbound(SD_LIKE)
    assert equal(numbers(net.bind(base), SD_LIKE), numbers(net.bind(wide), SD_LIKE))


def test_a_file_may_be_stored_in_another_type():
    half = {key: value.half() for key, value in stored(SD_LIKE).items()}
    wide = {key: value.float() for key, value in half.items()}
    base = base_of(SD_LIKE)
    narrow, full = (control_lora(state, config_of(SD_LIKE)).bind(base) for state in (half, wide))
    assert equal(numbers(narrow, SD_LIKE), numbers(full, SD_LIKE))


def test_unbound_it_encodes_hints():
    net, hint = unbound(SD_LIKE), SD_LIKE.inputs().hint
    assert torch.equal(net.encode_hint(hint), net.bind(base_of(SD_LIKE)).encode_hint(hint))


def test_unbound_it_asks_for_a_base():
    with pytest.raises(CldmError, match=r"net = net\.bind\(base\)"):
        residuals(unbound(SD_LIKE), SD_LIKE)


def test_wrong_inputs_are_told_as_by_any_controlnet():
    net = unbound(SD_LIKE).bind(base_of(SD_LIKE))
    with pytest.raises(ShapeError, match="latents have shape"):
        net(torch.zeros(1, 3, 4, 4), None, torch.tensor([1.0]), None)


def test_bind_gives_a_view_and_leaves_the_net_unbound():
    net = unbound(SD_LIKE)
    view = net.bind(base_of(SD_LIKE))
    assert view.is_bound
    assert not net.is_bound
    assert not view.bind(None).is_bound


def test_views_of_one_file_have_bases_of_their_own():
    net, base = unbound(SD_LIKE), base_of(SD_LIKE)
    first = net.bind(base)
    before = numbers(first, SD_LIKE)
    second = net.bind({key: 1.5 * value for key, value in base.items()})
    assert not equal(before, numbers(second, SD_LIKE))
    assert equal(before, numbers(first, SD_LIKE))


def test_a_view_follows_when_the_net_is_moved_or_replaced():
    net = unbound(SD_LIKE)
    view = net.bind(base_of(SD_LIKE))
    net.half()
    assert {p.dtype for p in view.parameters()} == {torch.float16}
    net.load_state_dict({k: 0 * v for k, v in net.state_dict().items()}, assign=True)
    assert not any(value.any() for value in view.parameters())


def test_a_deep_copy_has_its_own_parameters_and_the_same_base():
    base = base_of(SD_LIKE)
    net = unbound(SD_LIKE).bind(base)
    twin = copy.deepcopy(net)
    want = numbers(net, SD_LIKE)
    assert equal(numbers(twin, SD_LIKE), want)
    net.load_state_dict({key: 0 * value for key, value in net.state_dict().items()})
    assert equal(numbers(twin, SD_LIKE), want)
    base.clear()
    with pytest.raises(FamilyMismatch):
        residuals(twin, SD_LIKE)


def test_the_file_can_be_trained():
    net = control_lora(stored(SD_LIKE), config_of(SD_LIKE)).bind(base_of(SD_LIKE))
    torch.stack([value.square().mean() for value in numbers(net, SD_LIKE)]).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_what_is_needed_from_the_base_is_what_the_file_leaves_to_it():
    net, state = unbound(SD_LIKE), stored(SD_LIKE)
    needed = set(needed_from_base(net))
    assert needed == {key for key in control_shapes(SD_LIKE) if key not in state}
    assert needed <= base_of(SD_LIKE).keys()


def test_a_base_without_a_needed_key_is_of_another_family():
    base = base_of(SD_LIKE)
    missing = list(needed_from_base(unbound(SD_LIKE)))[5]
    del base[missing]
    with pytest.raises(FamilyMismatch, match=f"no {missing}.*another family"):
        unbound(SD_LIKE).bind(base)
    with pytest.raises(FamilyMismatch, match=f"no {missing}.*another family"):
        unbound(SD_LIKE).bind(base.__getitem__)


def test_a_base_of_other_widths_is_of_another_family():
    base = base_of(SD_LIKE)
    key = f"{LAYER}.weight"
    base[key] = torch.zeros(96, 64, 3, 3)
    with pytest.raises(FamilyMismatch, match=rf"{key} is \(96, 64, 3, 3\).*\(64, 64, 3, 3\)"):
        unbound(SD_LIKE).bind(base)


def test_a_base_of_another_family_is_refused():
    with pytest.raises(FamilyMismatch, match="another family"):
        unbound(SD_LIKE).bind(base_of(SDXL_LIKE))
    with pytest.raises(FamilyMismatch, match="another family"):
        unbound(SDXL_LIKE).bind(base_of(SD_LIKE))


@pytest.mark.parametrize(
    "beyond",
    [
        "label_emb.0.0.weight",
        "input_blocks.4.0.op.weight",
        "input_blocks.1.1.transformer_blocks.1.norm1.weight",
    ],
)
def test_a_base_with_more_layers_is_of_another_family(beyond):
    base = {**base_of(SD_LIKE), beyond: torch.zeros(1)}
    with pytest.raises(FamilyMismatch, match=beyond):
        unbound(SD_LIKE).bind(base)


def test_the_marker_and_double_underscores_are_dropped_and_named():
    file = {**lora_file(control_shapes(SD_LIKE)), "a__b.weight": torch.zeros(1)}
    state, dropped = canonical_control_lora(file)
    assert set(dropped) == {"lora_controlnet", "a__b.weight"}
    assert state.keys() == file.keys() - set(dropped)


@EACH_CASE
def test_the_configuration_is_read_from_the_keys(case):
    assert control_lora_config(stored(case, complete=True)) == config_of(case)


@EACH_CASE
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_the_keys_leave_open_is_read_from_the_base(case, prefix):
    base = {prefix + key: value for key, value in base_of(case).items()}
    found = control_lora_config(stored(case), base)
    assert found.hint_channels == 3
    assert control_lora(stored(case), found).bind(base)


def test_what_the_keys_leave_open_is_asked_for():
    with pytest.raises(CheckpointMismatch, match=r"give the weights of the base model \(base=\)"):
        control_lora_config(stored(SD_LIKE))


def test_a_base_of_another_family_does_not_shape_the_configuration():
    found = control_lora_config(stored(SD_LIKE, complete=True), base_of(SDXL_LIKE))
    assert found == config_of(SD_LIKE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input_hint_block.0.weight": None}, "missing input_hint_block.0.weight, which no base"),
        ({"zero_convs.2.0.bias": None}, "missing zero_convs.2.0.bias"),
        ({f"{LAYER}.up": None}, f"missing {LAYER}.up"),
        ({"output_blocks.0.0.weight": (1,)}, "unexpected output_blocks.0.0.weight"),
        ({"lonely": (1,)}, "unexpected lonely"),
        ({f"{LAYER}.alpha": ()}, f"unexpected {LAYER}.alpha"),
        ({"zero_convs.0.0.up": (64, 1), "zero_convs.0.0.down": (1, 64)}, "unexpected zero_convs"),
        ({f"{LAYER}.bias": (3,)}, r"bias is \(3,\) instead of \(64,\)"),
        ({f"{LAYER}.up": (65, RANK, 1, 1)}, r"times .down is \(65, 64, 3, 3\) instead"),
        ({f"{LAYER}.up": (64, 9, 1, 1)}, r"expected \(out, rank\) and \(rank, in\)"),
        ({f"{LAYER}.up": (64,)}, r"expected \(out, rank\) and \(rank, in\)"),
    ],
)
def test_keys_that_do_not_fit_are_named(changes, sentence):
    state = stored(SD_LIKE, complete=True)
    for key, shape in changes.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointMismatch, match=sentence):
        control_lora(state, config_of(SD_LIKE))
