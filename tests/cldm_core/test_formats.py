"""Every kind of file is told from its keys, by one sign alone, and loads or is refused by name."""

import itertools

import pytest
import torch
from safetensors.torch import save_file

from controlnet_pack.cldm_core import (
    TINY,
    ControlledUNet,
    UnsupportedCheckpoint,
    inspect_checkpoint,
    load_control,
    load_unet,
)
from controlnet_pack.cldm_core.checkpoint import formats
from controlnet_pack.cldm_core.checkpoint.formats import FORMATS, Where, control_part, recognise
from controlnet_pack.cldm_core.checkpoint.signs import Keys

from .samples import (
    FRAMEWORKS,
    LOADED,
    OTHERS,
    State,
    adapter,
    controlnet,
    filled,
    lllite,
    prefixed,
)

SAMPLES = [
    *((name, variant, make) for name, made in LOADED.items() for variant, make in made.items()),
    *((name.split()[0], name.partition(" ")[2], make) for name, make in OTHERS.items()),
]
EVERY = pytest.mark.parametrize(
    ("name", "make"),
    [pytest.param(name, make, id=f"{name} {variant}".strip()) for name, variant, make in SAMPLES],
)
HERE = [name for name in LOADED if name not in ("control_lora", "difference")]


def test_every_format_has_a_sample() -> None:
    assert {name for name, _, _ in SAMPLES} == {kind.name for kind in FORMATS}


@EVERY
def test_one_detector_says_yes_and_all_others_no(name: str, make: type[State]) -> None:
    keys = Keys(control_part(make()))
    assert [kind.name for kind in FORMATS if kind.matches(keys)] == [name]


@pytest.mark.parametrize("name", HERE)
def test_variants_load_strictly_with_their_tensors(name: str, tmp_path) -> None:
    for make in LOADED[name].values():
        state = make()
        save_file(state, tmp_path / "net.safetensors")
        loaded = load_control(tmp_path / "net.safetensors").state_dict()
        found = sorted(value.sum().item() for value in loaded.values())
        assert found == sorted(value.sum().item() for value in state.values())
        assert inspect_checkpoint(tmp_path / "net.safetensors").missing == ()


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_are_refused_by_name(name: str) -> None:
    state = OTHERS[name]()
    kind = recognise(control_part(state))
    with pytest.raises(UnsupportedCheckpoint) as caught:
        load_control(state)
    assert kind.title in str(caught.value)
    assert kind.advice in str(caught.value)
    info = inspect_checkpoint(state)
    assert (info.format, info.kind) == (name.split()[0], kind.noun)
    assert kind.where is not Where.HERE


def test_a_net_inside_a_whole_checkpoint_is_found() -> None:
    whole = {f"control_model.{key}": value for key, value in controlnet().items()}
    whole |= {"model.diffusion_model.out.2.bias": torch.ones(4), "betas": torch.ones(3)}
    assert load_control(whole).config.hint_channels == 3


def test_an_unknown_file_names_the_likest_kinds() -> None:
    state = {"task_embedding": torch.ones(8, 320), "zero_convs.0.1.weight": torch.ones(1)}
    with pytest.raises(UnsupportedCheckpoint, match="likest to a union ControlNet"):
        load_control(state)
    info = inspect_checkpoint(state)
    assert info.format == "unknown"
    assert info.nearest[0] == "union ControlNet"


@pytest.mark.parametrize("prefix", FRAMEWORKS)
@pytest.mark.parametrize("name", LOADED)
def test_prefixes_of_training_frameworks_go(prefix: str, name: str) -> None:
    for make in LOADED[name].values():
        state = make()
        kind = recognise(control_part(prefixed(prefix, state)))
        assert kind is not None
        assert kind.name == name
        net, wrapped = load_control(state), load_control(prefixed(prefix, state))
        assert wrapped.config == net.config
        assert all(map(torch.equal, wrapped.state_dict().values(), net.state_dict().values()))


def test_an_adapter_of_the_originals_training_loads() -> None:
    net = load_control(prefixed("adapter.", adapter()))
    assert net.config == load_control(adapter()).config


def test_a_net_beside_another_is_found_by_its_prefix() -> None:
    state = {**prefixed("model.controlnet.", controlnet()), "model.text.weight": torch.ones(2)}
    assert load_control(state).config.hint_channels == 3


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "diffusion_model."])
def test_a_base_model_is_told_behind_a_prefix(prefix: str) -> None:
    unet = filled(ControlledUNet(TINY))
    info = inspect_checkpoint(prefixed(prefix, unet))
    assert (info.format, info.family) == ("base_model", "embedded model")
    assert load_unet(prefixed(prefix, unet)).config == TINY


def test_parts_of_a_base_model_are_none() -> None:
    state = {"up_blocks.0.resnets.0.conv1.weight": torch.ones(1), "x.weight": torch.ones(1)}
    assert inspect_checkpoint(state).format == "unknown"


def test_the_name_controlnet_alone_is_like_no_kind() -> None:
    # As in the ControlNets of PixArt and Sana.
    state = {"controlnet.0.before_proj.weight": torch.ones(1), "input_hint_block": torch.ones(1)}
    assert inspect_checkpoint(state).nearest == ()


def test_lllite_modules_inside_other_names_are_none() -> None:
    assert (
        recognise({f"some_{key}": value for key, value in lllite("middle_block").items()}) is None
    )


def test_a_file_of_many_prefixes_is_searched_behind_a_few(monkeypatch) -> None:
    words = itertools.product(sorted(formats.FRAMEWORK_WORDS), repeat=3)
    state = {f"{'.'.join(prefix)}.weight": torch.ones(1) for prefix in words}
    searched = []
    monkeypatch.setattr(formats, "recognise", lambda keys: searched.append(keys))
    control_part(state)
    assert len(searched) < 20


def test_keys_without_end_are_shown_by_their_start() -> None:
    state = {"q" * 10_000: torch.ones(1)}
    assert len(inspect_checkpoint(state).note) < 300
    with pytest.raises(UnsupportedCheckpoint, match=r"start with q{150}\.\.\.") as caught:
        load_control(state)
    assert len(str(caught.value)) < 400
