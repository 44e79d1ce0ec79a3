"""What a UNet and a ControlNet look like: one frozen record each, and the published families."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .errors import CldmError
from .rules import (
    COUNTS,
    DEPTHS,
    FLAG,
    HEADS,
    OPTIONAL,
    POSITIVE,
    Rule,
    expect,
    is_int,
    is_list,
    require,
    require_length,
    tuple_of,
)

Prediction = Literal["eps", "v"]
GROUPS = 32
"""Groups of every GroupNorm; widths are multiples of it."""


@dataclass(frozen=True)
class UNetConfig:
    """The architecture of a UNet (openaimodel.py of CompVis/latent-diffusion).

    `transformer_depth` has one number for each residual block of the encoder,
    `transformer_depth_output` one for each of the decoder; 0 means no transformer there.
    `transformer_depth_middle` -1 means a middle of one residual block alone. Exactly one of
    `num_heads` and `num_head_channels` is given, the other is -1.
    """

    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    transformer_depth: tuple[int, ...]
    transformer_depth_middle: int
    transformer_depth_output: tuple[int, ...]
    context_dim: int | None
    in_channels: int = 4
    out_channels: int = 4
    num_heads: int = -1
    num_head_channels: int = -1
    use_linear_in_transformer: bool = False
    adm_in_channels: int | None = None
    legacy: bool = False
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    conv_resample: bool = True
    disable_self_attentions: tuple[bool, ...] = ()
    disable_middle_self_attn: bool = False
    dropout: float = 0.0
    prediction: Prediction = "eps"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            expect(self, field.name, FLAG if field.type == "bool" else _RULES[field.name])
        levels, blocks = len(self.channel_mult), sum(self.num_res_blocks)
        require_length(self.num_res_blocks, levels, "num_res_blocks", "levels of channel_mult")
        require_length(self.transformer_depth, blocks, "transformer_depth", "blocks")
        if self.disable_self_attentions:
            require_length(
                self.disable_self_attentions, levels, "disable_self_attentions", "levels"
            )
        self._check_widths()
        decoder = self.transformer_depth_output
        require_length(decoder, blocks + levels, "transformer_depth_output", "blocks")
        require(
            self.context_dim is not None
            or max(*self.transformer_depth, *decoder, self.transformer_depth_middle) < 1,
            "context_dim is none, expected the width of the text that the transformers read",
        )
        require(
            (self.num_heads == -1) != (self.num_head_channels == -1),
            f"num_heads is {self.num_heads} and num_head_channels {self.num_head_channels}: give "
            f"one of them",
        )

    def _check_widths(self) -> None:
        for mult in self.channel_mult:
            width = mult * self.model_channels
            require(width % GROUPS == 0, f"a level is {width} wide, no multiple of {GROUPS}")

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.model_channels

    def heads(self, channels: int) -> tuple[int, int]:
        """(number of heads, channels of a head) of a transformer that is `channels` wide."""
        if self.num_head_channels == -1:
            heads = self.num_heads
        else:
            heads = channels // self.num_head_channels
        require(
            1 <= heads <= channels,
            f"a transformer is {channels} wide, too narrow for num_heads {self.num_heads}, "
            f"num_head_channels {self.num_head_channels}",
        )
        given = self.num_head_channels
        return heads, given if given != -1 and not self.legacy else channels // heads

    def self_attention_off(self, level: int) -> bool:
        """True where the first attention of a transformer reads the context too."""
        return bool(self.disable_self_attentions) and self.disable_self_attentions[level]

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> UNetConfig:
        """From the `params` of a `unet_config` in the original's YAML files, with its defaults.

        Raises CldmError where the mapping names something that this family doesn't have.
        """
        _check_params(params)
        mult = _ints(params.get("channel_mult", (1, 2, 4, 8)), "channel_mult")
        blocks = _per_level(params["num_res_blocks"], len(mult), "num_res_blocks")
        depths = _per_level(params.get("transformer_depth", 1), len(mult), "transformer_depth")
        attended = _attended(params, depths)
        limits = _limits(params, blocks)
        encoder = [
            attended[level] if block < limits[level] else 0
            for level, count in enumerate(blocks)
            for block in range(count)
        ]
        decoder = [
            attended[level] if block < limits[level] else 0
            for level, count in reversed(list(enumerate(blocks)))
            for block in range(count + 1)
        ]
        # An explicit head width wins over a head count, as in the original's constructor.
        width = params.get("num_head_channels", -1)
        return cls(
            model_channels=params["model_channels"],
            channel_mult=mult,
            num_res_blocks=blocks,
            transformer_depth=tuple(encoder),
            transformer_depth_middle=_middle_depth(params, depths),
            transformer_depth_output=tuple(decoder),
            context_dim=_context_dim(params),
            in_channels=params.get("in_channels", 4),
            out_channels=params.get("out_channels", 4),
            num_heads=-1 if width != -1 else params.get("num_heads", -1),
            num_head_channels=width,
            use_linear_in_transformer=params.get("use_linear_in_transformer", False),
            adm_in_channels=params.get("adm_in_channels"),
            legacy=params.get("legacy", True),
            use_scale_shift_norm=params.get("use_scale_shift_norm", False),
            resblock_updown=params.get("resblock_updown", False),
            conv_resample=params.get("conv_resample", True),
            disable_self_attentions=_entries(
                params.get("disable_self_attentions") or (), "disable_self_attentions"
            ),
            disable_middle_self_attn=params.get("disable_middle_self_attn", False),
            dropout=params.get("dropout", 0.0),
            prediction=params.get("prediction", "eps"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """The record that `to_dict` wrote; raises CldmError for names or values that don't fit."""
        require(isinstance(values, Mapping), f"it is {values!r}, expected names with values")
        try:
            fields: dict[str, Any] = {k: tuple(v) if is_list(v) else v for k, v in values.items()}
            return cls(**fields)
        except TypeError as error:
            raise CldmError(f"This is not the configuration of a UNet: {error}.") from error


@dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet: the encoder of `unet`, a hint encoder and zero convolutions.

    With `global_average_pooling` the residuals are averaged over the picture, as the shuffle net
    of ControlNet 1.1 wants.
    """

    unet: UNetConfig
    hint_channels: int = 3
    global_average_pooling: bool = False

    def __post_init__(self) -> None:
        expect(self, "unet", _UNET)
        expect(self, "hint_channels", POSITIVE)
        expect(self, "global_average_pooling", FLAG)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ControlNetConfig:
        """From the `params` of a `control_stage_config` in the original's YAML files.

        Raises CldmError where the mapping names something that this family doesn't have.
        """
        require(isinstance(params, Mapping), f"it is {params!r}, expected names with values")
        # A ControlNet has no output blocks, so its mapping names no out_channels; the base's are as
        # many as come in.
        unet = UNetConfig.from_params({"out_channels": params.get("in_channels", 4), **params})
        return cls(
            unet, params.get("hint_channels", 3), params.get("global_average_pooling", False)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ControlNetConfig:
        """The record that `to_dict` wrote; raises CldmError for names or values that don't fit."""
        require(isinstance(values, Mapping), f"it is {values!r}, expected names with values")
        try:
            return cls(**{**values, "unet": UNetConfig.from_dict(values["unet"])})
        except (KeyError, TypeError) as error:
            raise CldmError(f"This is not the configuration of a ControlNet: {error}.") from error


_UNET = Rule("the configuration of a UNet", lambda v: isinstance(v, UNetConfig))
_RULES = {
    **dict.fromkeys(("model_channels", "in_channels", "out_channels"), POSITIVE),
    **dict.fromkeys(("num_heads", "num_head_channels"), HEADS),
    **dict.fromkeys(("context_dim", "adm_in_channels"), OPTIONAL),
    **dict.fromkeys(("channel_mult", "num_res_blocks"), COUNTS),
    **dict.fromkeys(("transformer_depth", "transformer_depth_output"), DEPTHS),
    "transformer_depth_middle": Rule("a whole number from -1", lambda v: is_int(v, -1)),
    "disable_self_attentions": Rule("a list of true and false", tuple_of(FLAG.fits)),
    "dropout": Rule(
        "a number from 0 to 1", lambda v: (is_int(v) or isinstance(v, float)) and 0 <= v <= 1
    ),
    "prediction": Rule("'eps' or 'v'", lambda v: v in get_args(Prediction)),
}

# Parameters of the original's constructor that change nothing here: training details, and sizes
# read from the input.
_WITHOUT_EFFECT = frozenset(
    {"image_size", "use_checkpoint", "use_fp16", "use_bf16", "num_heads_upsample"}
)
_FIELDS = frozenset(field.name for field in dataclasses.fields(UNetConfig))
_READ = (_FIELDS - {"transformer_depth_output"}) | {
    "attention_resolutions",
    "dims",
    "global_average_pooling",
    "hint_channels",
    "n_embed",
    "num_attention_blocks",
    "num_classes",
    "spatial_transformer_attn_type",
    "use_new_attention_order",
    "use_spatial_transformer",
}


def _check_params(params: Mapping[str, Any]) -> None:
    require(isinstance(params, Mapping), f"it is {params!r}, expected names with values")
    unknown = sorted(map(str, set(params) - _READ - _WITHOUT_EFFECT))
    require(not unknown, f"unknown parameters {', '.join(unknown)}")
    missing = [
        key
        for key in ("model_channels", "num_res_blocks", "attention_resolutions")
        if key not in params
    ]
    require(not missing, f"missing parameters {', '.join(missing)}")
    require(
        params.get("n_embed") is None,
        f"n_embed is {params.get('n_embed')}, and nets that predict codebook entries aren't "
        "supported",
    )
    require(
        params.get("dims", 2) == 2, f"dims is {params.get('dims')}, only pictures (2) are supported"
    )
    require(
        bool(params.get("use_spatial_transformer")),
        "use_spatial_transformer is off, and only UNets with text cross-attention take a "
        "ControlNet",
    )
    classes = params.get("num_classes")
    require(
        classes in (None, "sequential"),
        f"num_classes is {classes!r}, expected none or 'sequential' with adm_in_channels",
    )
    require(
        (classes is None) == (params.get("adm_in_channels") is None),
        f"num_classes is {classes!r} with adm_in_channels {params.get('adm_in_channels')}: give "
        f"both or none",
    )


def _entries(value: Any, name: str) -> tuple[Any, ...]:
    require(is_list(value), f"{name} is {value!r}, expected a list")
    return tuple(value)


def _ints(value: Any, name: str) -> tuple[int, ...]:
    entries = _entries(value, name)
    require(all(map(is_int, entries)), f"{name} is {value!r}, expected a list of whole numbers")
    return entries


def _per_level(value: Any, levels: int, name: str) -> tuple[int, ...]:
    if is_int(value):
        return (value,) * levels
    entries = _ints(value, name)
    require_length(entries, levels, name, "levels of channel_mult")
    return entries


def _attended(params: Mapping[str, Any], depths: Sequence[int]) -> list[int]:
    """Transformer depth of each level, 0 where attention_resolutions leaves its factor out."""
    resolutions = _ints(params["attention_resolutions"], "attention_resolutions")
    return [depth if 2**level in resolutions else 0 for level, depth in enumerate(depths)]


def _limits(params: Mapping[str, Any], blocks: Sequence[int]) -> tuple[int, ...]:
    """How many blocks of each level may have a transformer."""
    given = params.get("num_attention_blocks")
    if given is None:
        return tuple(count + 1 for count in blocks)
    return _per_level(given, len(blocks), "num_attention_blocks")


def _middle_depth(params: Mapping[str, Any], depths: Sequence[int]) -> Any:
    given = params.get("transformer_depth_middle")
    return next(reversed(depths), -1) if given is None else given


def _context_dim(params: Mapping[str, Any]) -> Any:
    value: Any = params.get("context_dim")
    # SDXL's YAML files and some others write the width as a list of one.
    if is_list(value) and value and all(width == value[0] for width in value):
        value = value[0]
    require(
        is_int(value, 1),
        f"context_dim is {value!r}, expected the width of the text embeddings",
    )
    return value


def _published(**changes: Any) -> UNetConfig:
    return UNetConfig.from_params(
        {
            "model_channels": 320,
            "attention_resolutions": (4, 2, 1),
            "num_res_blocks": 2,
            "channel_mult": (1, 2, 4, 4),
            "use_spatial_transformer": True,
            "legacy": False,
            **changes,
        }
    )


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Half of a height and a width, rounded up, as a UNet's downsampling does it."""
    return -(-size[0] // 2), -(-size[1] // 2)


def own_size(unet: UNetConfig, prediction: Prediction | None = None) -> int:
    """Pixels along the side of the squares that a base was trained on.

    1024 for SDXL, 768 for SD 2.1 with v, else 512; prediction: in place of the configuration's.
    """
    if unet.adm_in_channels is not None:
        return 1024
    return 768 if (prediction or unet.prediction) == "v" else 512


SD15 = _published(num_heads=8, context_dim=768)
SD21 = _published(num_head_channels=64, context_dim=1024, use_linear_in_transformer=True)
SD21_V = replace(SD21, prediction="v")
SDXL = _published(
    channel_mult=(1, 2, 4),
    attention_resolutions=(4, 2),
    transformer_depth=(1, 2, 10),
    num_head_channels=64,
    context_dim=2048,
    use_linear_in_transformer=True,
    num_classes="sequential",
    adm_in_channels=2816,
)
TINY = _published(
    model_channels=64,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(2, 1),
    num_head_channels=64,
    context_dim=128,
)
