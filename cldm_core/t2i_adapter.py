"""T2I-Adapters (Mou et al. 2023): features of a hint, added inside the UNet's encoder.

After ldm/modules/encoders/adapter.py (branch SD) and Adapter/models/adapters.py (branch main, SDXL)
of TencentARC/T2I-Adapter; odd sizes as in ComfyUI's comfy/t2i_adapter/adapter.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, sdpa
from .config import UNetConfig, halved
from .errors import CldmError, FamilyMismatch, ShapeError
from .hints import HINT_SCALE, check_count, check_hint, in_type_of, padded_to
from .residuals import Residuals, Slot
from .rules import COUNTS, FLAG, POSITIVE, Rule, expect, is_int, is_list, require

Kind = Literal["full", "light", "xl"]
XL_LEVELS = 4
XL_BLOCKS = (3, 5, 8)
"""The encoder's blocks of an SDXL UNet that features are added behind; the last goes to the middle.
"""
BLOCKS_PER_LEVEL = 3
"""Two residual blocks and a downsampling: features of SD 1.x and 2.x go behind blocks 2, 5, 8, 11.
"""


@dataclass(frozen=True)
class AdapterConfig:
    """The architecture of a T2I-Adapter.

    kind: "full" and "light" for SD 1.x and 2.x, "xl" for SDXL. channels: of each feature.
    hint_channels: 3, or 1 for adapters that read a grey picture. kernel_size: of the second
    convolution of each residual block and of changes of width. use_conv: halving is a convolution,
    not an average. skip_conv: every residual block has convolutions on its way in and around it
    (the original's sk=False). A light adapter has none of the last three.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    hint_channels: int = 3
    num_res_blocks: int = 2
    kind: Kind = "full"
    kernel_size: int = 1
    use_conv: bool = False
    skip_conv: bool = False

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            expect(self, name, rule)
        if self.kind == "xl":
            count = len(self.channels)
            require(count == XL_LEVELS, f"channels has {count} entries, SDXL takes {XL_LEVELS}")
        if self.kind == "light":
            plain = self.kernel_size == 1 and not self.use_conv and not self.skip_conv
            require(plain, "a light adapter has no kernel_size, use_conv or skip_conv")
            wide = all(width >= 4 for width in self.channels)
            require(wide, f"channels is {self.channels}, expected at least 4 each")

    @property
    def unshuffle(self) -> int:
        """The side of the squares of pixels that become channels; hints are padded to multiples."""
        return 16 if self.kind == "xl" else 8

    @property
    def in_channels(self) -> int:
        """Channels of the first convolution."""
        return self.hint_channels * self.unshuffle**2

    @property
    def halved_levels(self) -> tuple[int, ...]:
        """The levels that start by halving the size."""
        return (2,) if self.kind == "xl" else tuple(range(1, len(self.channels)))

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Height and width of each feature for latents of this size, which may be odd."""
        size = (height, width)
        if self.kind == "xl":
            size = halved(size)
        sizes = []
        for level in range(len(self.channels)):
            if level in self.halved_levels:
                size = halved(size)
            sizes.append(size)
        return tuple(sizes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdapterConfig:
        """The record that `to_dict` wrote; raises CldmError for names or values that don't fit."""
        require(isinstance(values, Mapping), f"it is {values!r}, expected names with values")
        try:
            fields: dict[str, Any] = {k: tuple(v) if is_list(v) else v for k, v in values.items()}
            return cls(**fields)
        except TypeError as error:
            raise CldmError(f"This is not the configuration of a T2I-Adapter: {error}.") from error


_RULES = {
    "channels": COUNTS,
    "hint_channels": POSITIVE,
    "num_res_blocks": POSITIVE,
    "kind": Rule("'full', 'light' or 'xl'", lambda v: isinstance(v, str) and v in get_args(Kind)),
    "kernel_size": Rule("an odd number from 1", lambda v: is_int(v, 1) and v % 2 == 1),
    "use_conv": FLAG,
    "skip_conv": FLAG,
}


class T2IAdapter(nn.Module):
    """Reads a hint once; its features are added to what the UNet's encoder computes.

    state_dict() keys are those of the original's files.
    """

    pooled = False
    context_dim = None

    def __init__(
        self, config: AdapterConfig, ops: Any = nn, *, attention: Attention = sdpa
    ) -> None:
        """attention: taken as every net takes it; an adapter has none."""
        super().__init__()
        self.config = config
        if config.kind == "light":
            self.body = nn.ModuleList(_light_levels(config, ops))
        else:
            self.body = nn.ModuleList(_res_blocks(config, ops))
            self.conv_in = ops.Conv2d(config.in_channels, config.channels[0], 3, padding=1)

    @property
    def residual_count(self) -> int:
        """One for each level."""
        return len(self.config.channels)

    @property
    def hint_channels(self) -> int:
        """How many channels the hints have; adapters for grey pictures take 3, too."""
        return self.config.hint_channels

    def encode_hint(self, hint: Tensor) -> tuple[Tensor, ...]:
        """The features of a hint (B, C, 8h, 8w) in [0, 1], of the sizes `config.sizes(h, w)`.

        An adapter that reads grey pictures takes their mean where C is 3. SDXL's look at squares of
        16 pixels: where 8h or 8w is no multiple (odd latents), the last row or column is repeated,
        so that every square lies where the UNet's does. ComfyUI stretches the picture to the next
        multiple instead: a hint of that size is taken too, and its features have the same sizes.
        The features depend on neither latents nor timestep nor text. Raises ShapeError for another
        shape, type or range.
        """
        if self.config.hint_channels == 1:
            check_hint(hint, 1, 3)
            hint = hint.mean(dim=1, keepdim=True)
        else:
            check_hint(hint, self.config.hint_channels)
        light = self.config.kind == "light"
        first = self.get_submodule("body.0.in_conv" if light else "conv_in")
        hint = in_type_of(first, hint)
        x = F.pixel_unshuffle(padded_to(hint, self.config.unshuffle), self.config.unshuffle)
        return self._light_features(x) if light else self._full_features(x)

    def _light_features(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for level in self.body:
            features.append(x := level(x))
        return tuple(features)

    def _full_features(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        x = self.conv_in(x)
        for index, block in enumerate(self.body, start=1):
            x = block(x)
            if index % self.config.num_res_blocks == 0:
                features.append(x)
        return tuple(features)

    def forward(
        self,
        x: Tensor,
        features: Sequence[Tensor] | None,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
        *,
        hint: Tensor | None = None,
    ) -> Residuals:
        """The features as residuals for latents x (B, C, h, w).

        `.input` fills blocks 2, 5, 8, 11 of SD 1.x and 2.x, or 3, 5, 8 of SDXL, whose last feature
        is `.middle`. timesteps, context and y are those of every net and unread here. features:
        what encode_hint gave, of batch 1 or B; where None, `hint` is encoded. Raises ShapeError
        where the features don't fit the latents.
        """
        if features is None:
            if hint is None:
                raise ShapeError(
                    "A T2I-Adapter needs a hint: give `features` from encode_hint, or `hint`."
                )
            features = self.encode_hint(hint)
        self._check_features(x, features)
        if self.config.kind == "xl":
            blocks = dict(zip(XL_BLOCKS, features, strict=False))
            return Residuals(input=_slot(blocks), middle=(features[-1],))
        places = _sd_places(len(features))
        return Residuals(input=_slot(dict(zip(places, features, strict=True))))

    def _check_features(self, x: Tensor, features: Sequence[Tensor]) -> None:
        if x.ndim != 4:
            raise ShapeError(f"The latents have shape {tuple(x.shape)}, expected (B, C, h, w).")
        widths = [item.shape[1] if item.ndim == 4 else None for item in features]
        if widths != list(self.config.channels):
            shapes = [tuple(item.shape) for item in features]
            raise ShapeError(f"The features have shapes {shapes}: give what encode_hint returned.")
        found = tuple(tuple(item.shape[2:]) for item in features)
        expected = self.config.sizes(x.shape[2], x.shape[3])
        if found != expected:
            height, width = (HINT_SCALE * side for side in x.shape[2:])
            raise ShapeError(
                f"The first feature is {found[0][0]}x{found[0][1]} and the latents need "
                f"{expected[0][0]}x{expected[0][1]}: encode a hint of {height}x{width}."
            )
        check_count(features[0].shape[0], x.shape[0])


def require_adapter_fit(config: AdapterConfig, unet: UNetConfig) -> None:
    """Raises FamilyMismatch unless features of this adapter can be added to this UNet's."""
    blocks = _blocks_of(unet)
    xl = config.kind == "xl"
    # The middle has the width and size of the last block.
    places = (*XL_BLOCKS, len(blocks) - 1) if xl else _sd_places(len(config.channels))
    wanted = [
        (channels, xl + sum(halved <= level for halved in config.halved_levels))
        for level, channels in enumerate(config.channels)
    ]
    if [blocks[place] if place < len(blocks) else None for place in places] != wanted:
        family = "SDXL" if xl else "SD 1.x and 2.x"
        raise FamilyMismatch(
            f"This T2I-Adapter is for {family}, with features of {config.channels} channels, and "
            "the base model's encoder is built otherwise: use an adapter of its family."
        )


def _blocks_of(unet: UNetConfig) -> list[tuple[int, int]]:
    """The channels of each of the encoder's blocks, and how often the size was halved there."""
    blocks = [(unet.model_channels, 0)]
    for level, (mult, count) in enumerate(zip(unet.channel_mult, unet.num_res_blocks, strict=True)):
        blocks += [(mult * unet.model_channels, level)] * count
        blocks.append((mult * unet.model_channels, level + 1))
    # There is no downsampling behind the last level.
    return blocks[:-1]


def _sd_places(levels: int) -> tuple[int, ...]:
    return tuple(BLOCKS_PER_LEVEL * (level + 1) - 1 for level in range(levels))


def _slot(blocks: Mapping[int, Tensor]) -> Slot:
    return tuple(blocks.get(index) for index in range(max(blocks) + 1))


class AdapterDownsample(nn.Module):
    """Half the size, rounded up: a 3x3 convolution of stride 2, or the average of 2x2."""

    def __init__(self, channels: int, *, use_conv: bool, ops: Any = nn) -> None:
        super().__init__()
        self.op = ops.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w); an odd side is averaged with zeros around it, as the host does."""
        if self.op is not None:
            out: Tensor = self.op(x)
            return out
        return F.avg_pool2d(x, 2, padding=(x.shape[2] % 2, x.shape[3] % 2))


class AdapterResBlock(nn.Module):
    """Two convolutions and a skip; before them halving and a change of width where asked for."""

    def __init__(
        self, channels: int, out_channels: int, config: AdapterConfig, *, down: bool, ops: Any = nn
    ) -> None:
        super().__init__()

        def conv(in_channels: int) -> Any:
            size = config.kernel_size
            return ops.Conv2d(in_channels, out_channels, size, padding=size // 2)

        changed = channels != out_channels or config.skip_conv
        self.in_conv = conv(channels) if changed else None
        self.block1 = ops.Conv2d(out_channels, out_channels, 3, padding=1)
        self.block2 = conv(out_channels)
        self.skep = conv(out_channels) if config.skip_conv else None
        self.down_opt = (
            AdapterDownsample(channels, use_conv=config.use_conv, ops=ops) if down else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) to (B, C', h, w), or half of h and w."""
        x = x if self.down_opt is None else self.down_opt(x)
        x = x if self.in_conv is None else self.in_conv(x)
        h: Tensor = self.block2(F.relu(self.block1(x)))
        return h + (x if self.skep is None else self.skep(x))


class LightResBlock(nn.Module):
    """Two 3x3 convolutions and a skip."""

    def __init__(self, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.block1 = ops.Conv2d(channels, channels, 3, padding=1)
        self.block2 = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.block2(F.relu(self.block1(x)))
        return h + x


class LightLevel(nn.Module):
    """A level of a light adapter: residual blocks at a quarter of the width, 1x1 around them."""

    def __init__(
        self, channels: int, out_channels: int, blocks: int, *, down: bool, ops: Any = nn
    ) -> None:
        super().__init__()
        inner = out_channels // 4
        self.in_conv = ops.Conv2d(channels, inner, 1)
        self.body = nn.Sequential(*(LightResBlock(inner, ops) for _ in range(blocks)))
        self.out_conv = ops.Conv2d(inner, out_channels, 1)
        self.down_opt = AdapterDownsample(channels, use_conv=False) if down else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.down_opt is None else self.down_opt(x)
        out: Tensor = self.out_conv(self.body(self.in_conv(x)))
        return out


def _light_levels(config: AdapterConfig, ops: Any) -> list[nn.Module]:
    widths = (config.in_channels, *config.channels)
    return [
        LightLevel(before, after, config.num_res_blocks, down=level > 0, ops=ops)
        for level, (before, after) in enumerate(zip(widths, config.channels, strict=False))
    ]


def _res_blocks(config: AdapterConfig, ops: Any) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    channels = config.channels[0]
    for level, width in enumerate(config.channels):
        for index in range(config.num_res_blocks):
            down = index == 0 and level in config.halved_levels
            blocks.append(AdapterResBlock(channels, width, config, down=down, ops=ops))
            channels = width
    return blocks
