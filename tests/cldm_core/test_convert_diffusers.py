"""Conversion against diffusers: its classes take and give the files, and compute the same."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnet_pack.cldm_core import SD15, SD21, ControlNet, ControlNetConfig, load_control
from controlnet_pack.cldm_core import SDXL as PUBLISHED_SDXL
from controlnet_pack.cldm_core.checkpoint.convert import convert
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers

from .seeded import seeded_state_dict, seeded_tensor, shapes_of
from .states import same

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
def test_the_keys_of_an_adapter_of_diffusers_go_and_come_back(kind, tmp_path):
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
