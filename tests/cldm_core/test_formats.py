"""Every kind of file is told from its keys, by one sign alone, and loads or is refused by name."""

import pytest
import torch
from safetensors.torch import save_file

from controlnet_pack.cldm_core import UnsupportedCheckpoint, inspect_checkpoint, load_control
from controlnet_pack.cldm_core.checkpoint.formats import FORMATS, Keys, Where, inner, recognise

from .samples import LOADED, OTHERS, State, controlnet

SAMPLES = [
    *((name, variant, make) for name, made in LOADED.items() for variant, make in made.items()),
    *((name, "", make) for name, make in OTHERS.items()),
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
    keys = Keys(inner(make()))
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
    kind = recognise(inner(state))
    with pytest.raises(UnsupportedCheckpoint) as caught:
        load_control(state)
    assert kind.title in str(caught.value)
    assert kind.advice in str(caught.value)
    info = inspect_checkpoint(state)
    assert (info.format, info.kind) == (name, kind.noun)
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
