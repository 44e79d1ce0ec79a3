"""Union ControlNets (xinsir's ControlNet++ and ProMax): one net that reads several kinds of hint.

After models/controlnet_union.py of xinsir6/ControlNetPlus.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, sdpa
from .blocks import timestep_embedding, zero_module
from .config import ControlNetConfig
from .controlnet import ControlEncoder
from .errors import CldmError, ShapeError, UnknownControlType
from .residuals import Residuals
from .rules import POSITIVE, Rule, expect, require

FLAG_CHANNELS = 256
"""Width of the sinusoids that each type's flag becomes."""

CONTROL_TYPES: tuple[tuple[str, ...], ...] = (
    ("openpose", "pose"),
    ("depth",),
    ("scribble", "hed", "pidi", "softedge", "ted", "hed/pidi/scribble/ted"),
    (
        "canny",
        "lineart",
        "anime_lineart",
        "lineart_anime",
        "mlsd",
        "canny/lineart/anime_lineart/mlsd",
    ),
    ("normal",),
    ("segment", "seg", "segmentation"),
    ("tile", "deblur", "super_resolution"),
    ("repaint", "inpaint", "outpaint"),
)
"""The names of each type by its number, the canonical one first; ComfyUI's are among them."""

NAMED_COUNTS = (6, 8)
"""The first six are xinsir's union net, all eight its ProMax; other nets' types are numbers only.
"""

ControlType = str | int


def control_type_names(count: int) -> tuple[str, ...]:
    """The canonical name of each type of a net with `count` types; empty where none are known."""
    return tuple(names[0] for names in CONTROL_TYPES[:count]) if count in NAMED_COUNTS else ()


def control_type_number(kind: ControlType, count: int) -> int:
    """The number of a type of a net with `count` types, from its name or the number itself.

    Names are those of CONTROL_TYPES, in any case, with spaces or hyphens for underscores. Raises
    UnknownControlType, with the names that the net knows.
    """
    if isinstance(kind, int) and not isinstance(kind, bool) and 0 <= kind < count:
        return kind
    known = control_type_names(count)
    if isinstance(kind, str):
        name = kind.strip().lower().replace("-", "_").replace(" ", "_")
        for number, names in enumerate(CONTROL_TYPES[: len(known)]):
            if name in names:
                return number
    raise UnknownControlType(_unknown(kind, count, known))


def _unknown(kind: object, count: int, known: tuple[str, ...]) -> str:
    listed = f"{', '.join(known)}, or a number" if known else "a number"
    more = ""
    if isinstance(kind, str) and known and count < len(CONTROL_TYPES):
        last = {name for names in CONTROL_TYPES[count:] for name in names}
        if kind.strip().lower() in last:
            more = " Only the ProMax net with 8 types knows it."
    return (
        f"The control type {kind!r} is unknown to this net: give one of its {count}, {listed} from "
        f"0 to {count - 1}.{more}"
    )


@dataclass(frozen=True)
class UnionConfig:
    """A union ControlNet: a ControlNet, and how many types of hint it tells apart."""

    controlnet: ControlNetConfig
    control_types: int = 6

    def __post_init__(self) -> None:
        expect(self, "controlnet", _CONTROLNET)
        expect(self, "control_types", POSITIVE)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UnionConfig:
        """The record that `to_dict` wrote; raises CldmError for names or values that don't fit."""
        require(isinstance(values, Mapping), f"it is {values!r}, expected names with values")
        try:
            inner = ControlNetConfig.from_dict(values["controlnet"])
            return cls(**{**values, "controlnet": inner})
        except (KeyError, TypeError) as error:
            raise CldmError(
                f"This is not the configuration of a union ControlNet: {error}."
            ) from error


_CONTROLNET = Rule("the configuration of a ControlNet", lambda v: isinstance(v, ControlNetConfig))


@dataclass(frozen=True, eq=False)
class UnionFeatures:
    """What encode_hint gives: the hints' sum (B, model_channels, h, w), and which types are on.

    flags: (control_types,), 1 where a hint of the type was given and 0 elsewhere.
    """

    tensor: Tensor
    flags: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> UnionFeatures:
        """The features with `change` applied to what has a batch; the flags are kept."""
        return dataclasses.replace(self, tensor=change(self.tensor))


class UnionControlNet(ControlEncoder):
    """A ControlNet that is told the type of each hint.

    state_dict() keys are those of `control_model` for the encoder and the author's for the rest
    (`transformer_layes` with its spelling).
    """

    def __init__(self, config: UnionConfig, ops: Any = nn, *, attention: Attention = sdpa) -> None:
        super().__init__(config.controlnet, ops, attention=attention)
        self.config = config
        width = config.controlnet.unet.model_channels
        self.task_embedding = nn.Parameter(torch.empty(config.control_types, width))
        if not self.task_embedding.is_meta:  # where it makes torch load its compiler for a second
            nn.init.normal_(self.task_embedding, std=math.sqrt(width))
        self.transformer_layes = nn.Sequential(TokenBlock(width, ops))
        self.spatial_ch_projs = zero_module(ops.Linear(width, width))
        self.control_add_embedding = ControlTypeEmbedding(
            config.control_types, config.controlnet.unet.time_embed_dim, ops
        )

    def encode_hint(
        self,
        hints: Mapping[Any, Tensor],
        *,
        scales: Mapping[Any, float] | None = None,
    ) -> UnionFeatures:
        """The sum of the hints' features and of what the transformer adds to each, by types.

        hints: (Bh, hint_channels, 8h, 8w) in [0, 1] under the name or number of its type; types of
        several hints are all on at once. The author's repainting paints masked pixels 0, not -1.
        scales: a number for some of the types given, by which their part of the sum is multiplied;
        an extra of ours, the author's net has none. Raises ShapeError or UnknownControlType.

        Types of one picture don't see each other, as in the author's code for one picture. Where a
        batch has different hints, the author's code mixes pictures (see TokenAttention); here every
        picture is computed as if it were alone.
        """
        numbered = self._numbered(hints, "hint")
        factors = {} if scales is None else self._numbered(scales, "scale")
        self._check_scales(factors, set(numbered))
        parts = []
        for number in sorted(numbered):
            part = self._encode_one(number, numbered[number])
            parts.append(part * factors[number] if number in factors else part)
        _check_sizes(parts)
        flags = torch.zeros(self.config.control_types)
        flags[list(numbered)] = 1
        return UnionFeatures(_sum(parts), flags.to(parts[0].device))

    def _encode_one(self, number: int, hint: Tensor) -> Tensor:
        features = self.encode_picture(hint)
        token = features.mean(dim=(2, 3))
        token = self.transformer_layes(token + self.task_embedding[number].to(token))
        shift: Tensor = self.spatial_ch_projs(token)
        return features + shift[:, :, None, None]

    def _numbered(self, values: Mapping[Any, Any], what: str) -> dict[int, Any]:
        """The values by their type's number."""
        count = self.config.control_types
        if not isinstance(values, Mapping) or (what == "hint" and not values):
            names = ", ".join(control_type_names(count)) or f"a number from 0 to {count - 1}"
            raise ShapeError(
                f"A union ControlNet must be told the type of each {what}: give "
                f"{{type: {what}}}, with one or more of {names}."
            )
        numbered: dict[int, Any] = {}
        given: dict[int, ControlType] = {}
        for kind, value in values.items():
            number = control_type_number(kind, count)
            if number in numbered:
                raise ShapeError(
                    f"{given[number]!r} and {kind!r} are the same control type, number {number}: "
                    f"give one {what} for it."
                )
            numbered[number], given[number] = value, kind
        return numbered

    def _check_scales(self, factors: Mapping[int, Any], given: set[int]) -> None:
        names = dict(enumerate(control_type_names(self.config.control_types)))
        for number, factor in factors.items():
            name = names.get(number, number)
            if number not in given:
                raise ShapeError(f"A scale was given for {name}, but no hint of this type.")
            number_like = isinstance(factor, (int, float)) and not isinstance(factor, bool)
            if not number_like or not math.isfinite(factor):
                raise ShapeError(f"The scale of {name} is {factor!r}, expected a finite number.")

    def forward(
        self,
        x: Tensor,
        features: UnionFeatures | None,
        timesteps: Tensor,
        context: Tensor | None,
        y: Tensor | None = None,
        *,
        hint: Mapping[Any, Tensor] | None = None,
    ) -> Residuals:
        """Residuals for noisy latents x (B, in_channels, h, w).

        timesteps, context and y are those of ControlledUNet.forward. features: what encode_hint
        gave, of batch 1 or B; where None, `hint` is encoded here. Raises ShapeError or
        FamilyMismatch, with the shapes, where an input doesn't fit.
        """
        self.check_inputs(x, timesteps, context)
        if features is None:
            if hint is None:
                raise ShapeError(
                    "A union ControlNet needs a hint: give `features` from encode_hint, or `hint`."
                )
            features = self.encode_hint(hint)
        count = self.config.control_types
        if not isinstance(features, UnionFeatures) or features.flags.shape != (count,):
            raise ShapeError(
                f"The features are not those of a union ControlNet with {count} types: give what "
                "encode_hint returned."
            )
        self.check_features(x, features.tensor)
        types = self.control_add_embedding(features.flags.to(x.device), x.dtype)
        emb = self.embed(timesteps, y, x.dtype, extra=types)
        return self.steer(x, features.tensor, emb, context)


def _check_sizes(parts: list[Tensor]) -> None:
    """Raises ShapeError unless all hints are of one size, and of one batch or of batch 1."""
    sizes = {tuple(part.shape[2:]) for part in parts}
    batches = {part.shape[0] for part in parts} - {1}
    if len(sizes) > 1 or len(batches) > 1:
        shapes = ", ".join(f"{p.shape[0]} of {8 * p.shape[2]}x{8 * p.shape[3]}" for p in parts)
        raise ShapeError(f"The hints have different sizes or counts: {shapes}. Make them equal.")


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class ControlTypeEmbedding(nn.Module):
    """What the time embedding is told about the types: two linear layers over the flags."""

    def __init__(self, control_types: int, out_channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.linear_1 = ops.Linear(FLAG_CHANNELS * control_types, out_channels)
        self.linear_2 = ops.Linear(out_channels, out_channels)

    def forward(self, flags: Tensor, dtype: torch.dtype) -> Tensor:
        """flags (N,) to (1, out_channels), in `dtype`."""
        waves = timestep_embedding(flags, FLAG_CHANNELS).to(dtype).flatten()[None]
        out: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return out


class TokenAttention(nn.Module):
    """Attention of each token to itself alone, under the keys of torch.nn.MultiheadAttention.

    The author's module takes (L, N, C) and is fed (N, L, C), so that it attends over the pictures
    of a batch and never over one picture's types. Over one token the softmax is 1 whatever query
    and key are, so only the values' third of `in_proj` has an effect; the rest is kept, so that
    files come out as they went in.
    """

    def __init__(self, width: int, ops: Any = nn) -> None:
        super().__init__()
        self.width = width
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = ops.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C) to (B, C)."""
        values = slice(2 * self.width, None)
        weight, bias = self.in_proj_weight[values].to(x), self.in_proj_bias[values].to(x)
        out: Tensor = self.out_proj(F.linear(x, weight, bias))
        return out


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), as in CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TokenBlock(nn.Module):
    """One layer of the condition transformer, for tokens that don't see each other."""

    def __init__(self, width: int, ops: Any = nn) -> None:
        super().__init__()
        self.attn = TokenAttention(width, ops)
        self.ln_1 = ops.LayerNorm(width)
        layers = (
            ("c_fc", ops.Linear(width, 4 * width)),
            ("gelu", QuickGELU()),
            ("c_proj", ops.Linear(4 * width, width)),
        )
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = ops.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C) to (B, C)."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out
