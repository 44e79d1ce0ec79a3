"""Conversion: nothing is lost on the way, and an error leaves nothing behind."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from controlnet_pack.cldm_core import (
    TINY,
    CheckpointMismatch,
    CldmError,
    ControlNetConfig,
    DamagedCheckpoint,
    UnsupportedCheckpoint,
    load_control,
)
from controlnet_pack.cldm_core.checkpoint.convert import (
    SOURCES_KEY,
    as_checkpoint,
    convert,
    sources_in,
)
from controlnet_pack.cldm_core.checkpoint.quantise import narrowed, retyped
from controlnet_pack.cldm_core.checkpoint.read import read
from controlnet_pack.cldm_core.checkpoint.write import save, stored_pooling

from .samples import LOADED, adapter, controlnet, difference, union
from .states import same

VARIANTS = [(name, variant) for name, made in LOADED.items() for variant in made]
EVERY = pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=map(" ".join, VARIANTS))
TYPES = (torch.float32, torch.float16, torch.bfloat16)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
BOUND = ("control_lora", "difference")
OWN = ("input_hint_block", "zero_convs", "middle_block_out")
LAYER = "input_blocks.1.0.in_layers.2.weight"
MARKERS = ("difference", "lora_controlnet", "scaled_fp8")


def first_of(name):
    return next(iter(LOADED[name].values()))()


def without_markers(state):
    return {key: value for key, value in state.items() if key not in MARKERS}


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@EVERY
def test_what_is_written_loads_to_the_same_tensors(name, variant, tmp_path):
    state = LOADED[name][variant]()
    info = convert(state, tmp_path / "out.safetensors")
    assert info.format == name
    first, second = load_control(state), load_control(tmp_path / "out.safetensors")
    assert same(first.state_dict(), second.state_dict())
    assert first.config == second.config
    assert without_markers(load_file(tmp_path / "out.safetensors")).keys() <= {
        *state,
        *(key.removeprefix("control_model.") for key in state),
    }


@EVERY
def test_the_other_layout_and_back_changes_nothing(name, variant, tmp_path):
    state = LOADED[name][variant]()
    if name in ("lllite", "control_lora", "difference") or variant == "convolutions":
        with pytest.raises(UnsupportedCheckpoint, match="keep"):
            convert(state, tmp_path / "out.safetensors", layout="diffusers")
        assert not list(tmp_path.iterdir())
        return
    convert(state, tmp_path / "first.safetensors", layout="cldm")
    convert(tmp_path / "first.safetensors", tmp_path / "second.safetensors", layout="diffusers")
    convert(tmp_path / "second.safetensors", tmp_path / "third.safetensors", layout="cldm")
    second = load_file(tmp_path / "second.safetensors")
    assert same(
        load_file(tmp_path / "first.safetensors"), load_file(tmp_path / "third.safetensors")
    )
    assert second.keys() != load_file(tmp_path / "first.safetensors").keys()
    assert same(load_control(second).state_dict(), load_control(state).state_dict())


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_number_types(name, dtype, tmp_path):
    state = first_of(name)
    convert(state, tmp_path / "out.safetensors", dtype=dtype)
    expected = {k: v.to(dtype) for k, v in load_control(state).state_dict().items()}
    assert same(load_control(tmp_path / "out.safetensors").state_dict(), expected)


@pytest.mark.parametrize("name", [name for name in LOADED if name not in BOUND])
@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_8_bits_keep_what_is_fine_in_fp16(name, dtype, tmp_path):
    state = first_of(name)
    convert(state, tmp_path / "out.safetensors", dtype=dtype)
    wide = load_control(state).state_dict()
    narrow = {key for key, value in wide.items() if value.ndim > 1 and not key.startswith(OWN)}
    expected = {
        key: value.to(dtype if key in narrow else torch.float16).float()
        for key, value in wide.items()
    }
    assert same(load_control(tmp_path / "out.safetensors").state_dict(), expected)
    stored = load_file(tmp_path / "out.safetensors").values()
    assert {v.dtype for v in stored if v.ndim < 2} <= {torch.float16}
    assert dtype in {v.dtype for v in stored}


@pytest.mark.parametrize("name", BOUND)
@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_what_is_added_to_a_base_stays_in_fp16(name, dtype, tmp_path):
    info = convert(first_of(name), tmp_path / "out.safetensors", dtype=dtype)
    stored = without_markers(load_file(tmp_path / "out.safetensors"))
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert "It is in fp16: a Control" in info.note


@pytest.mark.parametrize("layout", ["cldm", "diffusers"])
def test_zero_convolutions_survive_8_bits(layout, tmp_path):
    torch.manual_seed(0)
    state = controlnet()
    for key in state:
        if key.startswith(("zero_convs", "middle_block_out")):
            state[key] = torch.randn(state[key].shape) * 1e-3
    path = tmp_path / "out.safetensors"
    convert(state, path, dtype=torch.float8_e4m3fn, layout=layout)
    found = load_control(path).state_dict()
    for key in state:
        if key.startswith(("zero_convs", "middle_block_out")):
            assert torch.equal(found[key], state[key].half().float())


def test_a_weight_that_8_bits_would_destroy_is_kept_and_told(tmp_path):
    state = controlnet()
    state[LAYER] = torch.randn(state[LAYER].shape) * 3e-4
    info = convert(state, tmp_path / "out.safetensors", dtype=torch.float8_e4m3fn)
    assert info.note.startswith(f"{LAYER} stay in fp16, as more than 1 %")
    assert load_file(tmp_path / "out.safetensors")[LAYER].dtype == torch.float16
    assert not convert(controlnet(), tmp_path / "out.safetensors", dtype=torch.float8_e4m3fn).note


@pytest.mark.parametrize("stored", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_from_one_8_bit_type_to_another(stored, scaled, tmp_path):
    other = next(dtype for dtype in EIGHT_BITS if dtype != stored)
    convert(controlnet(), tmp_path / "a.safetensors", dtype=stored, scaled=scaled)
    info = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype=other)
    assert info.dtype.endswith(", scaled") == scaled
    first, second = (load_control(tmp_path / f"{n}.safetensors").state_dict() for n in "ab")
    assert max((first[k] - second[k]).norm() / first[k].norm() for k in first) < 0.07


def test_scaled_weights_in_their_own_type_stay_to_the_bit(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    convert(controlnet(), paths[0], dtype=torch.float8_e5m2, scaled=True)
    convert(paths[0], paths[1], dtype=torch.float8_e5m2)
    assert same(*map(load_file, paths))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float8_e4m3fn], ids=str)
def test_a_net_with_damaged_numbers_is_not_written(tmp_path, value, dtype):
    state = controlnet()
    state[LAYER].view(-1)[-1] = value
    with pytest.raises(DamagedCheckpoint, match=LAYER):
        convert(state, tmp_path / "out.safetensors", dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in LOADED if name not in BOUND])
def test_scaled_8_bits_are_closer(name, tmp_path):
    state = {k: v / 120 if v.ndim > 1 else v for k, v in first_of(name).items()}
    wide = load_control(state).state_dict()
    errors = []
    for scaled in (False, True):
        path = tmp_path / f"{scaled}.safetensors"
        convert(state, path, dtype=torch.float8_e4m3fn, scaled=scaled)
        found = load_control(path).state_dict()
        assert found.keys() == wide.keys()
        layers = [k for k in wide if wide[k].ndim > 1 and k.endswith(".weight")]
        errors.append(max((found[k] - wide[k]).norm() / wide[k].norm() for k in layers))
    assert errors[1] < 0.04 < 0.1 < errors[0]


def test_scaled_weights_go_to_other_keys_and_types(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("scaled", "moved", "wide")]
    convert(controlnet(), paths[0], dtype=torch.float8_e4m3fn, scaled=True)
    info = convert(paths[0], paths[1], layout="diffusers")
    assert (info.layout, info.dtype) == ("diffusers", "fp8 (e4m3fn), scaled")
    convert(paths[1], paths[2], layout="cldm", dtype=torch.float32)
    first, *others = (load_control(path).state_dict() for path in paths)
    assert all(same(first, other) for other in others)


def test_scaling_is_for_8_bits(tmp_path):
    with pytest.raises(CldmError, match="choose fp8_e4m3fn"):
        convert(controlnet(), tmp_path / "out.safetensors", scaled=True)
    with pytest.raises(CldmError, match="choose fp8_e4m3fn"):
        convert(controlnet(), tmp_path / "out.safetensors", dtype=torch.float16, scaled=True)


@pytest.mark.parametrize(
    ("dtype", "value", "advice"),
    [
        (torch.float16, 1e5, "use bf16 or fp32"),
        (torch.float8_e4m3fn, 449.0, "store it scaled"),
        (torch.float8_e5m2, 60000.0, "store it scaled"),
        (torch.bfloat16, 3.4e38, "use bf16 or fp32"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(dtype, value, advice):
    with pytest.raises(CldmError, match=rf"zero has numbers up to .*{advice}"):
        narrowed(torch.tensor([[0.0, -value]]), dtype, "zero")
    most = torch.tensor([torch.finfo(dtype).max])
    assert torch.equal(narrowed(most, dtype, "zero").float(), most)


def test_scales_hold_what_the_type_cannot():
    stored = retyped({"a.weight": torch.tensor([[1e5, 0.0]])}, torch.float8_e4m3fn, scaled=True)
    assert (stored["a.weight"].float() * stored["a.scale_weight"])[0, 0] == pytest.approx(1e5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_numbers_are_not_scaled(value):
    with pytest.raises(CldmError, match="infinite or not numbers"):
        retyped({"a.weight": torch.tensor([[value]])}, torch.float8_e5m2, scaled=True)


def test_only_the_net_is_taken_out_of_a_whole_checkpoint(tmp_path):
    net = controlnet()
    whole = {f"control_model.{key}": value for key, value in net.items()}
    whole |= {"model.diffusion_model.out.2.bias": torch.ones(4), "model_ema.decay": torch.ones(())}
    convert({"state_dict": whole, "optimizer_states": []}, tmp_path / "out.safetensors")
    assert same(load_file(tmp_path / "out.safetensors"), net)


def test_tensors_beside_a_net_are_dropped_or_refused(tmp_path):
    state = {**controlnet(), "model_ema.decay": torch.ones(())}
    with pytest.raises(CheckpointMismatch, match=r"unexpected model_ema\.decay"):
        convert(state, tmp_path / "out.safetensors", prune=False)
    assert not list(tmp_path.iterdir())
    convert(state, tmp_path / "out.safetensors")
    assert same(load_file(tmp_path / "out.safetensors"), controlnet())


def test_tensors_too_many_inside_a_net_are_never_dropped(tmp_path):
    state = {**controlnet(), "input_blocks.0.0.gain": torch.ones(())}
    with pytest.raises(CheckpointMismatch, match=r"unexpected input_blocks\.0\.0\.gain"):
        convert(state, tmp_path / "out.safetensors")


def test_metadata_tells_of_the_net_and_its_source(tmp_path):
    source = tmp_path / "net.safetensors"
    save_file(controlnet(), source, {"modelspec.title": "Mine"})
    convert(
        source,
        tmp_path / "out.safetensors",
        layout="diffusers",
        hint="RGB from 0 to 1",
        global_average_pooling=True,
        metadata={"note": ["a", "b"]},
    )
    found = metadata(tmp_path / "out.safetensors")
    # What transformers and accelerate ask for in files with metadata.
    assert found["format"] == "pt"
    assert found["modelspec.title"] == "Mine"
    assert found["cldm_core.format"] == "diffusers"
    assert found["cldm_core.family"] == "embedded model"
    assert found["cldm_core.hint"] == "RGB from 0 to 1"
    assert json.loads(found["note"]) == ["a", "b"]
    assert json.loads(found["cldm_core.sources"]) == {
        "source": {
            "name": "net.safetensors",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    }
    assert load_control(tmp_path / "out.safetensors").config.global_average_pooling


def test_what_was_noted_survives_the_next_conversion(tmp_path):
    convert(controlnet(), tmp_path / "a.safetensors", global_average_pooling=True, hint="RGB")
    info = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype=torch.float16)
    assert info.pooling == "yes"
    assert metadata(tmp_path / "b.safetensors")["cldm_core.hint"] == "RGB"


def test_an_unknown_pooling_stays_unknown(tmp_path):
    info = convert(controlnet(), tmp_path / "a.safetensors")
    again = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype=torch.float16)
    assert (info.pooling, again.pooling) == ("unknown", "unknown")
    assert stored_pooling(read(tmp_path / "b.safetensors")) is None
    info = convert(
        tmp_path / "b.safetensors", tmp_path / "c.safetensors", global_average_pooling=False
    )
    assert (info.pooling, stored_pooling(read(tmp_path / "c.safetensors"))) == ("no", False)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("v11e_shuffle", "yes"), ("v11e_shuffle_fp16", "yes"), ("shuffle", "unknown")],
)
def test_the_name_of_a_shuffle_net_is_told(tmp_path, name, pooling):
    save_file(controlnet(), tmp_path / f"{name}.safetensors")
    out = tmp_path / "out.safetensors"
    info = convert(tmp_path / f"{name}.safetensors", out)
    assert info.pooling == pooling
    assert ("a shuffle net" in info.note) == (pooling == "yes")
    info = convert(tmp_path / f"{name}.safetensors", out, global_average_pooling=False)
    assert (info.pooling, info.note) == ("no", "")


@pytest.mark.parametrize("known", [None, True, False])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_net_in_memory_tells_what_is_known(known, pooled):
    config = ControlNetConfig(TINY, global_average_pooling=pooled)
    net = load_control(controlnet(), config=config)
    found = stored_pooling(as_checkpoint(net, "net", pooling_known=known))
    assert found == (pooled if known or (known is None and pooled) else None)


def test_a_hint_is_noted_under_one_key(tmp_path):
    save_file(controlnet(), tmp_path / "net.safetensors", {"hint": "canny"})
    convert(tmp_path / "net.safetensors", tmp_path / "a.safetensors")
    convert(tmp_path / "net.safetensors", tmp_path / "b.safetensors", hint="lines")
    found = [metadata(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert [texts["cldm_core.hint"] for texts in found] == ["canny", "lines"]
    assert not any("hint" in texts for texts in found)


def test_pooling_is_for_controlnets(tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match="leave the pooling out"):
        convert(adapter(), tmp_path / "out.safetensors", global_average_pooling=True)


def test_the_source_stays_as_it_is(tmp_path):
    for make in (controlnet, lambda: union(6), difference):
        state = make()
        convert(state, tmp_path / "out.safetensors", dtype=torch.float8_e5m2)
        assert same(state, make())


def test_a_file_can_take_its_own_place(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(controlnet(), path)
    convert(path, path, layout="diffusers")
    assert same(load_control(path).state_dict(), controlnet())


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_an_error_leaves_no_half_written_file(tmp_path, monkeypatch, before):
    path = tmp_path / "out.safetensors"
    if before:
        path.write_bytes(before)

    def stops(state, file, texts):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(f"{save.__module__}.save_file", stops)
    with pytest.raises(OSError, match="no space left"):
        convert(controlnet(), path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_a_damaged_net_is_not_written(tmp_path):
    state = controlnet()
    del state["middle_block.0.in_layers.0.weight"]
    with pytest.raises(CheckpointMismatch, match="missing"):
        convert(state, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(CldmError, match="The layout is 'Diffusers', expected cldm or diffusers"):
        convert(controlnet(), tmp_path / "out.safetensors", layout="Diffusers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("noted", "found"), [('{"first": 1}', {"first": 1}), ("by another tool {", None), (None, None)]
)
def test_sources_are_read_where_they_can_be(noted, found):
    assert sources_in({} if noted is None else {SOURCES_KEY: noted}) == found
