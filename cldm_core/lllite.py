"""ControlNet-LLLite (kohya-ss, 2023): small nets that shift what the UNet's projections read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, sdpa
from .blocks import zero_module
from .config import UNetConfig, halved
from .errors import CldmError, FamilyMismatch, ShapeError
from .hints import HINT_SCALE, check_count, check_hint, in_type_of, padded_to
from .projections import Patch, Projection, projections
from .rules import POSITIVE, Rule, expect, is_int, is_list, require

PREFIX = "lllite_unet_"
STRIDES = {1: 8, 2: 16, 3: 32}
"""Pixels of the hint for each token, by the depth of a module's conditioning."""
LOWEST = -0.5
"""Smooth resizing leads a little below 0; a hint in [-1, 1] leads further."""


@dataclass(frozen=True)
class LLLiteModuleConfig:
    """The module of one projection.

    path: of the projection in the UNet; channels: of the projection's input; depth: 1, 2 or 3,
    for one token for each 8, 16 or 32 pixels; cond_emb_dim and mlp_dim: widths inside.
    """

    path: str
    channels: int
    depth: int
    cond_emb_dim: int
    mlp_dim: int

    def __post_init__(self) -> None:
        expect(self, "path", _PATH)
        for name in ("channels", "mlp_dim"):
            expect(self, name, POSITIVE)
        expect(self, "depth", Rule("1, 2 or 3", lambda v: is_int(v) and v in STRIDES))
        expect(
            self,
            "cond_emb_dim",
            Rule("a positive even number", lambda v: is_int(v, 2) and v % 2 == 0),
        )

    @property
    def key(self) -> str:
        """The prefix of its keys in public files."""
        return PREFIX + self.path.replace(".", "_")


@dataclass(frozen=True)
class LLLiteConfig:
    """A ControlNet-LLLite: a module for each projection that it changes."""

    modules: tuple[LLLiteModuleConfig, ...]
    hint_channels: int = 3

    def __post_init__(self) -> None:
        expect(self, "modules", _MODULES)
        expect(self, "hint_channels", POSITIVE)
        require(
            len({part.path for part in self.modules}) == len(self.modules),
            "two modules have the same path",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LLLiteConfig:
        """The record that `to_dict` wrote; raises CldmError for names or values that don't fit."""
        require(isinstance(values, Mapping), f"it is {values!r}, expected names with values")
        modules = values.get("modules")
        require(is_list(modules), f"modules is {modules!r}, expected a list")
        try:
            parts = tuple(LLLiteModuleConfig(**part) for part in values["modules"])
            return cls(**{**values, "modules": parts})
        except TypeError as error:
            raise CldmError(
                f"This is not the configuration of a ControlNet-LLLite: {error}."
            ) from error


def _is_target(value: object) -> bool:
    place = Projection.parse(value) if isinstance(value, str) else None
    # What attn2's keys and values read is the text, which no picture lies under.
    return place is not None and (place.attention == "attn1" or place.role == "q")


_PATH = Rule(
    "the path of a projection, such as input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    _is_target,
)
_MODULES = Rule(
    "a list of modules",
    lambda v: (
        isinstance(v, tuple) and bool(v) and all(isinstance(m, LLLiteModuleConfig) for m in v)
    ),
)


def check_fits(config: LLLiteConfig, unet: UNetConfig) -> None:
    """Raises FamilyMismatch unless the UNet has every projection, as wide as its module wants."""
    widths = projections(unet)
    for part in config.modules:
        width = widths.get(part.path)
        if width != part.channels:
            found = "has none there" if width is None else f"has one {width} wide"
            raise FamilyMismatch(
                f"This ControlNet-LLLite changes the input of {part.path}, {part.channels} wide, "
                f"and the base model {found}: the net belongs to another family of base models."
            )


@dataclass(frozen=True, eq=False)
class LLLiteFeatures:
    """An encoded hint: the conditioning (B, cond_emb_dim, rows, columns) of each path.

    size: height and width of the latents that it is for.
    """

    conditioning: Mapping[str, Tensor]
    size: tuple[int, int]

    @property
    def batch(self) -> int:
        return next(iter(self.conditioning.values())).shape[0]

    def select(self, rows: Sequence[int]) -> LLLiteFeatures:
        """The features of these pictures in this order, for a batch that a host puts together."""
        picked = {path: value[list(rows)] for path, value in self.conditioning.items()}
        return LLLiteFeatures(picked, self.size)


class LLLiteModule(nn.Module):
    """The net of one projection: x and the hint's tokens through a bottleneck (LLLiteModule)."""

    def __init__(self, config: LLLiteModuleConfig, hint_channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.config = config
        channels, inner, cond = config.channels, config.mlp_dim, config.cond_emb_dim
        self.conditioning1 = _conditioning(config.depth, hint_channels, cond, ops)
        self.down = nn.Sequential(ops.Linear(channels, inner), nn.ReLU())
        self.mid = nn.Sequential(ops.Linear(inner + cond, inner), nn.ReLU())
        self.up = nn.Sequential(zero_module(ops.Linear(inner, channels)))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """What is added to x (B, N, channels); tokens: (1 or B, N, cond_emb_dim)."""
        down = self.down(x)
        tokens = tokens.to(down).expand(down.shape[0], -1, -1)
        out: Tensor = self.up(self.mid(torch.cat([tokens, down], dim=2)))
        return out


def _conditioning(depth: int, hint_channels: int, width: int, ops: Any) -> nn.Sequential:
    """Convolutions without overlap, to one token for each 8, 16 or 32 pixels."""
    half = width // 2
    plans = {1: [(width, 2)], 2: [(width, 4)], 3: [(half, 4), (width, 2)]}
    layers: list[nn.Module] = [ops.Conv2d(hint_channels, half, 4, stride=4)]
    for out, kernel in plans[depth]:
        layers += [nn.ReLU(), ops.Conv2d(half, out, kernel, stride=kernel)]
    return nn.Sequential(*layers)


@dataclass(frozen=True, eq=False)
class LLLiteChange:
    """What a net does to the input of one projection: adds `delta` to it."""

    module: LLLiteModule
    conditioning: Tensor
    size: tuple[int, int]
    strength: float

    def __call__(self, x: Tensor) -> Tensor:
        """The new input for x (B, N, channels)."""
        return x + self.delta(x)

    def delta(self, x: Tensor) -> Tensor:
        """What is added to x (B, N, channels), strength included.

        Raises FamilyMismatch or ShapeError where x doesn't fit the net or the hint.
        """
        self._check(x)
        tokens = self._resampled(self.grid(x.shape[1])).flatten(2).transpose(1, 2)
        first = self.module.down[0]
        # See in_type_of: the base model may compute in another type than the net is stored in.
        given = x
        if type(first) is nn.Linear and not torch.is_autocast_enabled(x.device.type):
            given = x.to(first.weight.dtype)
        delta: Tensor = self.module(given, tokens) * self.strength
        return delta.to(x.dtype)

    def grid(self, tokens: int) -> tuple[int, int]:
        """The rows and columns of so many tokens; raises ShapeError where they make no picture.

        Those of a level of the UNet, or of the whole picture at another scale: Deep Shrink and its
        kind have levels of their own.
        """
        level = self.size
        while level[0] * level[1] > max(tokens, 1):
            level = halved(level)
        found = level if level[0] * level[1] == tokens else _shrunk(self.size, tokens)
        if found is None:
            height, width = (HINT_SCALE * side for side in self.size)
            raise ShapeError(
                f"The hint is {height}x{width}, and {self.module.config.path} reads {tokens} "
                "tokens, which are no picture of its proportions: make the hint 8 times as large "
                "as the latents, and leave out nodes that give the attention more or other tokens."
            )
        return found

    def _resampled(self, grid: tuple[int, int]) -> Tensor:
        """The conditioning on the projection's grid.

        It lies on it already, but for SD 1.5's middle block and the like: kohya's depths are for
        UNets of three levels.
        """
        if self.conditioning.shape[2:] == grid:
            return self.conditioning
        return F.interpolate(self.conditioning, size=grid, mode="area")

    def _check(self, x: Tensor) -> None:
        config = self.module.config
        if x.ndim != 3 or x.shape[2] != config.channels:
            raise FamilyMismatch(
                f"This ControlNet-LLLite takes inputs (B, tokens, {config.channels}) for "
                f"{config.path}, and the base model's has the shape {tuple(x.shape)}: "
                "the net belongs to another family of base models."
            )
        check_count(self.conditioning.shape[0], x.shape[0])


class ControlLLLite(nn.Module):
    """A ControlNet-LLLite: no residuals, but patches on what attention projections read.

    state_dict() keys are those of public files (networks/control_net_lllite.py of
    kohya-ss/sd-scripts).
    """

    residual_count = 0
    pooled = False
    context_dim = None

    def __init__(self, config: LLLiteConfig, ops: Any = nn, *, attention: Attention = sdpa) -> None:
        """`attention` is there for the sake of the families' common shape: this one has none."""
        super().__init__()
        self.config = config
        for part in config.modules:
            self.add_module(part.key, LLLiteModule(part, config.hint_channels, ops))

    @property
    def hint_channels(self) -> int:
        """How many channels the hints have."""
        return self.config.hint_channels

    def parts(self) -> dict[str, LLLiteModule]:
        """The modules by the path of their projection."""
        modules = (m for m in self.children() if isinstance(m, LLLiteModule))
        return {module.config.path: module for module in modules}

    def encode_hint(self, hint: Tensor) -> LLLiteFeatures:
        """The conditioning of every module for a hint (B, hint_channels, 8h, 8w) in [0, 1].

        The family was trained with hints in [-1, 1]; the conversion is done here. Where the sides
        are no multiples of a module's stride, the last rows and columns are repeated, so that each
        token lies over the latents that it is for. Raises ShapeError for another shape, type or
        range.
        """
        check_hint(hint, self.config.hint_channels)
        low = hint.detach().amin().item()
        if low < LOWEST:
            raise ShapeError(
                f"The hint's values go down to {low:g}, expected [0, 1]: leave the conversion to "
                "ControlNet-LLLite's [-1, 1] to the net."
            )
        signal = 2 * hint - 1
        padded = {depth: padded_to(signal, stride) for depth, stride in STRIDES.items()}
        conditioning = {}
        for path, module in self.parts().items():
            layers = module.conditioning1
            conditioning[path] = layers(in_type_of(layers[0], padded[module.config.depth]))
        return LLLiteFeatures(
            conditioning, (hint.shape[2] // HINT_SCALE, hint.shape[3] // HINT_SCALE)
        )

    def patch(self, features: LLLiteFeatures, strength: float = 1.0) -> Patch:
        """The patch for ControlledUNet: what each projection's input becomes, by path.

        strength multiplies what is added, as the original's `multiplier`; with 0 the patch is
        empty.
        """
        if strength == 0:
            return {}
        return {
            path: LLLiteChange(module, features.conditioning[path], features.size, strength)
            for path, module in self.parts().items()
        }

    def forward(
        self,
        x: Tensor,
        features: LLLiteFeatures | None,
        timesteps: Tensor,
        context: Tensor | None,
        y: Tensor | None = None,
        *,
        hint: Tensor | None = None,
        strength: float = 1.0,
    ) -> tuple[Patch, ...]:
        """The `patches` of ControlledUNet.forward for noisy latents x (B, C, h, w).

        features: what encode_hint gave, of batch 1 or B; where None, `hint` is encoded here. The
        net reads neither timesteps nor context nor y. Raises ShapeError where the hint's size or
        count doesn't fit the latents.
        """
        if features is None:
            if hint is None:
                raise ShapeError(
                    "A ControlNet-LLLite needs a hint: give `features` from encode_hint, or `hint`."
                )
            features = self.encode_hint(hint)
        if features.size != tuple(x.shape[2:]):
            found, wanted = (
                "x".join(str(HINT_SCALE * side) for side in size)
                for size in (features.size, x.shape[2:])
            )
            raise ShapeError(f"The hint is {found} and the latents need {wanted}: resize the hint.")
        check_count(features.batch, x.shape[0])
        return (self.patch(features, strength),)


def _shrunk(size: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """Rows and columns of a picture of `size` that was shrunk to so many tokens.

    Each side may be rounded by up to one; None where nothing fits.
    """
    scale = math.sqrt(tokens / (size[0] * size[1]))
    if not 0 < scale < 1:
        return None
    height, width = (side * scale for side in size)
    for rows in (round(height), math.floor(height), math.ceil(height)):
        if rows and tokens % rows == 0 and abs(tokens // rows - width) <= 1:
            return rows, tokens // rows
    return None
