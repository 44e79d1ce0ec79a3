"""Conversion: nothing is lost on the way, and diffusers itself takes and gives the files."""

import hashlib
import json

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from controlnet_pack.cldm_core import (
    SD15,
    SD21,
    CheckpointMismatch,
    CldmError,
    ControlNet,
    ControlNetConfig,
    UnsupportedCheckpoint,
    load_control,
)
from controlnet_pack.cldm_core import SDXL as PUBLISHED_SDXL
from controlnet_pack.cldm_core.checkpoint.convert import convert
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.checkpoint.quantise import narrowed, retyped
from controlnet_pack.cldm_core.checkpoint.write import save

from .samples import LOADED, adapter, controlnet, difference, union
from .seeded import seeded_state_dict, seeded_tensor, shapes_of

VARIANTS = [(name, variant) for name, made in LOADED.items() for variant in made]
EVERY = pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=map(" ".join, VARIANTS))
TYPES = (torch.float32, torch.float16, torch.bfloat16)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
MARKERS = ("difference", "lora_controlnet", "scaled_fp8")
TOLERANCE = 1e-5

# Small nets of diffusers' own classes, in the shape of each published family.
COMMON = {"block_out_channels": (64, 128, 128), "norm_num_groups": 32}
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
VECTOR = {
    **COMMON,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
SDXL = {
    **VECTOR,
    "down_block_types": (PLAIN, CROSS, CROSS),
    "attention_head_dim": (1, 2, 2),
    "cross_attention_dim": 40,
    "transformer_layers_per_block": (1, 2, 3),
}
NETS = {
    "sd15": {
        "block_out_channels": (64, 64, 128, 128),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sd21": {
        "block_out_channels": (64, 64, 128, 128),
        "cross_attention_dim": 1024,
        "attention_head_dim": (1, 1, 2, 2),
        "use_linear_projection": True,
        "conditioning_channels": 5,
    },
    "sdxl": SDXL,
    "sdxl mid": {
        **SDXL,
        "down_block_types": (PLAIN, PLAIN, CROSS),
        "transformer_layers_per_block": 1,
    },
    "sdxl small": {
        **VECTOR,
        "down_block_types": (PLAIN, PLAIN, PLAIN),
        "mid_block_type": "UNetMidBlock2D",
        "cross_attention_dim": 40,
        "transformer_layers_per_block": (0, 0, 0),
    },
    "ssd-1b": {
        **SDXL,
        "transformer_layers_per_block": (0, 2, 4),
        "mid_block_type": "UNetMidBlock2D",
    },
}
EACH_NET = pytest.mark.parametrize("name", NETS)


def theirs(options, kind=diffusers.ControlNetModel):
    """A model of diffusers with seeded weights; no zero convolution is zero."""
    model = kind(**options).eval().requires_grad_(False)
    model.load_state_dict(seeded_state_dict(shapes_of(model), 6))
    return model


def union_of_diffusers():
    options = {
        **SDXL,
        # The flags of the types are embedded as wide as the times, which ours has fixed.
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 16,
        "conditioning_embedding_out_channels": (16, 32, 96, 256),
        "num_trans_channel": 64,
        "num_proj_channel": 64,
    }
    return theirs(options, diffusers.ControlNetUnionModel)


class Inputs:
    """What both implementations are fed."""

    def __init__(self, config):
        width = getattr(config, "cross_attention_dim", 40)
        channels = getattr(config, "conditioning_channels", 3)
        self.x = seeded_tensor((2, 4, 8, 8), "x", 1)
        self.hint = seeded_tensor((2, channels, 64, 64), "hint", 1) / 12**0.5 + 0.5
        self.times = torch.tensor([801, 3])
        self.context = seeded_tensor((2, 5, width), "context", 1)
        self.has_vector = config.addition_embed_type is not None
        self.added = {
            "text_embeds": seeded_tensor((2, 16), "pooled", 1),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64], [128, 64, 8, 0, 96, 64]]),
        }

    def vector(self, model):
        if not self.has_vector:
            return None
        times = model.add_time_proj(self.added["time_ids"].flatten()).reshape(2, -1)
        return torch.cat([self.added["text_embeds"], times], dim=1)


def distance(net, model):
    """The largest difference of a residual, relative to it."""
    inputs = Inputs(model.config)
    down, mid = model(
        inputs.x, inputs.times, inputs.context, inputs.hint,
        added_cond_kwargs=inputs.added, return_dict=False,
    )  # fmt: skip
    ours = net(inputs.x, None, inputs.times, inputs.context, inputs.vector(model), hint=inputs.hint)
    return relative(ours, down, mid)


def relative(ours, down, mid):
    assert len(ours.output) == len(down)
    pairs = zip((*ours.output, *ours.middle), (*down, mid), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def first_of(name):
    return next(iter(LOADED[name].values()))()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def without_markers(state):
    return {key: value for key, value in state.items() if key not in MARKERS}


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@EACH_NET
def test_a_net_of_diffusers_computes_the_same_under_our_keys(name, tmp_path):
    model = theirs(NETS[name])
    save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    convert(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors", layout="cldm")
    net = load_control(tmp_path / "ours.safetensors")
    assert net.state_dict().keys() == load_file(tmp_path / "ours.safetensors").keys()
    assert distance(net, model) < TOLERANCE


@EACH_NET
def test_diffusers_loads_strictly_what_comes_back(name, tmp_path):
    model = theirs(NETS[name])
    convert(model.state_dict(), tmp_path / "ours.safetensors", layout="cldm")
    convert(
        tmp_path / "ours.safetensors",
        tmp_path / "diffusion_pytorch_model.safetensors",
        layout="diffusers",
    )
    back = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert same(back, dict(model.state_dict()))
    model.save_config(tmp_path)
    read = diffusers.ControlNetModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert distance(load_control(back), read) < TOLERANCE


def test_a_union_of_diffusers_computes_the_same_and_comes_back(tmp_path):
    model = union_of_diffusers()
    convert(model.state_dict(), tmp_path / "ours.safetensors", layout="cldm")
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", layout="diffusers")
    assert same(load_file(tmp_path / "theirs.safetensors"), dict(model.state_dict()))
    inputs, types = Inputs(model.config), torch.zeros(2, 6)
    types[:, 3] = 1
    # One hint for the batch: of several, the author's attention mixes pictures.
    hint = inputs.hint[:1].expand(2, -1, -1, -1)
    down, mid = model(
        inputs.x, inputs.times, inputs.context, [hint], types, [3],
        added_cond_kwargs=inputs.added, return_dict=False,
    )  # fmt: skip
    net = load_control(tmp_path / "ours.safetensors")
    ours = net(
        inputs.x, None, inputs.times, inputs.context, inputs.vector(model), hint={3: hint[:1]}
    )
    assert relative(ours, down, mid) < TOLERANCE


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter", "full_adapter_xl"])
def test_an_adapter_of_diffusers_computes_the_same_and_comes_back(kind, tmp_path):
    scale = 16 if kind.endswith("xl") else 8
    options = {"channels": (32, 64, 128, 128), "num_res_blocks": 2, "downscale_factor": scale}
    model = diffusers.T2IAdapter(**options, adapter_type=kind).eval().requires_grad_(False)
    convert(model.state_dict(), tmp_path / "ours.safetensors", layout="cldm")
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", layout="diffusers")
    assert same(load_file(tmp_path / "theirs.safetensors"), dict(model.state_dict()))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (SD15, {"cross_attention_dim": 768}),
        (SD21, {"cross_attention_dim": 1024, "use_linear_projection": True}),
        (
            PUBLISHED_SDXL,
            {
                **SDXL,
                "block_out_channels": (320, 640, 1280),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "transformer_layers_per_block": (1, 2, 10),
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
    ],
    ids=["SD 1.5", "SD 2.1", "SDXL"],
)
def test_the_keys_of_published_nets_are_those_of_diffusers(config, options):
    with torch.device("meta"):
        expected = shapes_of(diffusers.ControlNetModel(**options))
        ours = ControlNet(ControlNetConfig(config)).state_dict()
    found = {key: tuple(value.shape) for key, value in to_diffusers(ours).items()}
    assert found == expected


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


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_8_bits_keep_norms_and_biases_in_fp16(name, dtype, tmp_path):
    state = first_of(name)
    convert(state, tmp_path / "out.safetensors", dtype=dtype)
    stored = without_markers(load_file(tmp_path / "out.safetensors"))
    assert {v.dtype for v in stored.values() if v.ndim > 1} == {dtype}
    assert {v.dtype for v in stored.values() if v.ndim < 2} <= {torch.float16}
    expected = {
        key: value.to(dtype if value.ndim > 1 else torch.float16).float()
        for key, value in load_control(state).state_dict().items()
    }
    assert same(load_control(tmp_path / "out.safetensors").state_dict(), expected)


@pytest.mark.parametrize("name", [name for name in LOADED if name != "control_lora"])
def test_scaled_8_bits_are_closer(name, tmp_path):
    state = {k: v / 500 if v.ndim > 1 else v for k, v in first_of(name).items()}
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


def test_pooling_is_for_controlnets(tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match="leave global_average_pooling out"):
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
