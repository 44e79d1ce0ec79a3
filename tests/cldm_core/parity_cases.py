"""The networks and inputs whose results were recorded from the references (data/README.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .seeded import seeded_tensor

Params = Mapping[str, Any]

CONTROL_SEED, UNET_SEED, INPUT_SEED = 1, 2, 3

SD15: Params = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": True,
    "legacy": False,
}
SD21: Params = {
    "use_checkpoint": True,
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 1024,
    "legacy": False,
}
SDXL: Params = {
    "use_checkpoint": True,
    "in_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4],
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": [1, 2, 10],
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "legacy": False,
}


class Inputs(NamedTuple):
    """x: (B, C, h, w); hint: (B, hint channels, 8h, 8w) in [0, 1]; context: (B, tokens, dim)."""

    x: Tensor
    hint: Tensor
    timesteps: Tensor
    context: Tensor
    y: Tensor | None


@dataclass(frozen=True)
class Case:
    """A ControlNet and a UNet in the YAML's parameters, and the shape of what they are fed."""

    name: str
    params: Params
    unet: Params = field(default_factory=dict)  # where the UNet's parameters differ
    hint_channels: int = 3
    size: tuple[int, int] = (4, 4)
    timesteps: tuple[float, ...] = (500,)
    tokens: int = 5
    faint: str | None = None  # see seeded_state_dict
    whole: bool = True  # every value was recorded, else statistics and samples

    @property
    def control_params(self) -> Params:
        return {**self.params, "hint_channels": self.hint_channels}

    @property
    def unet_params(self) -> Params:
        return {**self.params, "out_channels": 4, **self.unet}

    def inputs(self) -> Inputs:
        batch = len(self.timesteps)
        height, width = self.size

        def draw(name: str, *shape: int) -> Tensor:
            return seeded_tensor((batch, *shape), f"{self.name}/{name}", INPUT_SEED)

        hint = draw("hint", self.hint_channels, 8 * height, 8 * width)
        adm = self.params.get("adm_in_channels")
        return Inputs(
            x=draw("x", self.params["in_channels"], height, width),
            hint=hint / 12**0.5 + 0.5,
            timesteps=torch.tensor(self.timesteps),
            context=draw("context", self.tokens, self.params["context_dim"]),
            y=None if adm is None else draw("y", adm),
        )


def _small(**changes: Any) -> Params:
    """Three levels of 32, 64 and 128 channels, in the manner of SD 1.5."""
    small = {"model_channels": 32, "channel_mult": [1, 2, 4], "num_heads": 4, "context_dim": 24}
    return {**SD15, **small, **changes}


def _small_sd21(**changes: Any) -> Params:
    small = {"model_channels": 32, "num_head_channels": 16, "context_dim": 40}
    return {**SD21, **small, "channel_mult": [1, 2, 4], **changes}


def _small_sdxl(**changes: Any) -> Params:
    small = {"model_channels": 32, "num_head_channels": 16, "context_dim": 40}
    return {**SDXL, **small, "adm_in_channels": 24, "transformer_depth": [1, 2, 3], **changes}


def _two_levels(**changes: Any) -> Params:
    return _small(channel_mult=[1, 2], num_res_blocks=1, **changes)


def _without(params: Params, *names: str) -> Params:
    return {key: value for key, value in params.items() if key not in names}


# From the original ControlNet.
ORIGINAL = (
    Case(
        "sd15_like",
        {**SD15, "model_channels": 64, "context_dim": 48},
        size=(8, 8),
        timesteps=(981,),
        tokens=7,
    ),
    Case(
        "sd21_like",
        {**SD21, "model_channels": 64, "context_dim": 40},
        size=(8, 16),
        timesteps=(21,),
        tokens=7,
    ),
    Case("narrow_heads", _small_sd21(), size=(4, 8)),
    Case("odd_latent", _small(num_res_blocks=1), size=(12, 20)),
    Case("batch_of_times", _small(model_channels=64), timesteps=(0, 999, 7)),
    Case("fractional_times", _small(model_channels=64), timesteps=(0.5, 712.25)),
    Case("wide_step", _small(channel_mult=[1, 3], num_res_blocks=1, attention_resolutions=[2])),
    Case("res_blocks_per_level", _small(num_res_blocks=[1, 3, 2])),
    Case("attention_deepest_only", _small(attention_resolutions=[4])),
    Case("attention_middle_only", _small(attention_resolutions=[])),
    Case("one_level", _small(channel_mult=[1])),
    Case("depth_2", _two_levels(transformer_depth=2)),
    Case("depth_3_linear", _small_sd21(transformer_depth=3, num_res_blocks=1)),
    Case("hint_1_channel", _two_levels(), hint_channels=1),
    Case("hint_4_channels", _two_levels(), hint_channels=4),
    Case("latent_9_channels", _two_levels(in_channels=9)),
    Case("legacy_heads", _two_levels(legacy=True)),
    Case("legacy_head_channels", _two_levels(legacy=True, num_heads=-1, num_head_channels=20)),
    Case("uneven_head_channels", _two_levels(num_heads=-1, num_head_channels=20)),
    Case("uneven_heads", _two_levels(num_heads=3)),
    Case("heads_and_head_channels", _two_levels(num_heads=4, num_head_channels=16)),
    # Activations so small that the epsilon counts of the group norms, and of the layer norms.
    Case("faint", _two_levels(model_channels=64), faint=""),
    Case("faint_tokens", _two_levels(), faint="proj_in"),
    Case("defaults", _without(_two_levels(), "transformer_depth", "legacy", "use_checkpoint")),
)

# From the original too: what its constructor takes and no published ControlNet uses.
UNCOMMON = (
    Case("scale_shift_norm", _two_levels(use_scale_shift_norm=True)),
    Case("resblock_updown", _two_levels(resblock_updown=True)),
    Case("pooled_resample", _two_levels(conv_resample=False)),
    Case("no_self_attention", _two_levels(disable_self_attentions=[True, False])),
    Case("no_middle_self_attention", _two_levels(disable_middle_self_attn=True)),
    Case("attention_blocks_per_level", _small(num_attention_blocks=[2, 1, 0])),
)

# From ComfyUI's own networks: what the original can't do.
HOST = (
    Case("sdxl_like", _small_sdxl(model_channels=64), size=(4, 8), timesteps=(3, 801)),
    Case(
        "sdxl_mid",
        _small_sdxl(attention_resolutions=[4], transformer_depth=[0, 0, 1]),
        unet=_small_sdxl(),
    ),
    Case(
        "sdxl_small",
        _small_sdxl(attention_resolutions=[], transformer_depth=[0, 0, 0]),
        unet=_small_sdxl(),
    ),
    Case("uneven_latent", _small(), size=(5, 9)),
)

FULL = (
    Case("cldm_v15", SD15, size=(8, 16), timesteps=(981, 21), tokens=77, whole=False),
    Case("cldm_v21", SD21, size=(8, 16), timesteps=(981, 21), tokens=77, whole=False),
)


@dataclass(frozen=True)
class TrainingCase:
    """Three optimiser steps; the network starts as `Case` gives it.

    With sd_locked the UNet is frozen, else its decoder trains too.
    """

    case: Case
    parameterization: str
    lr: float = 1e-3
    steps: int = 3
    only_mid_control: bool = False
    sd_locked: bool = True

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """The inputs of a step (x is the clean latent) and its noise."""
        inputs = self.case.inputs()
        name = f"{self.case.name}/step {step}"
        x, noise = (
            seeded_tensor(tuple(inputs.x.shape), f"{name}/{part}", INPUT_SEED)
            for part in ("x", "noise")
        )
        times = torch.tensor([(t + 137 * step) % 1000 for t in self.case.timesteps])
        return inputs._replace(x=x, timesteps=times), noise


# Deepest level at least two pixels: over one, self-attention has no gradient but rounding's.
TRAINING = (
    TrainingCase(Case("train_eps", _two_levels(model_channels=64), timesteps=(500, 20)), "eps"),
    TrainingCase(
        Case(
            "train_v",
            _small_sd21(model_channels=64, num_res_blocks=1),
            size=(4, 8),
            timesteps=(740, 3),
        ),
        "v",
    ),
    TrainingCase(
        Case("train_mid", _two_levels(model_channels=64), timesteps=(500, 20)),
        "eps",
        only_mid_control=True,
    ),
    TrainingCase(
        Case("train_unlocked", _two_levels(model_channels=64), timesteps=(500, 20)),
        "v",
        sd_locked=False,
    ),
)
