"""The ControlNet-LLLites whose results were recorded from kohya's code (data/README.md)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .parity_cases import SD15, SDXL, Case, Params
from .seeded import seeded_state_dict

LLLITE_SEED, SECOND_SEED = 4, 5
STRIDES = {1: 8, 2: 16, 3: 32}
TARGETS = ("attn1.to_k", "attn1.to_q", "attn1.to_v", "attn2.to_q")


@dataclass(frozen=True)
class Module:
    """One module: where it stands, and its sizes."""

    path: str
    channels: int
    depth: int
    cond_emb_dim: int
    mlp_dim: int

    @property
    def key(self) -> str:
        return "lllite_unet_" + self.path.replace(".", "_")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        half, cond, inner, wide = (
            self.cond_emb_dim // 2,
            self.cond_emb_dim,
            self.mlp_dim,
            self.channels,
        )
        layers = {
            1: [(half, 3, 4, 4), (cond, half, 2, 2)],
            2: [(half, 3, 4, 4), (cond, half, 4, 4)],
            3: [(half, 3, 4, 4), (half, half, 4, 4), (cond, half, 2, 2)],
        }
        weights = {f"conditioning1.{2 * i}": shape for i, shape in enumerate(layers[self.depth])}
        weights |= {"down.0": (inner, wide), "mid.0": (inner, inner + cond), "up.0": (wide, inner)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in weights.items():
            shapes[f"{self.key}.{name}.weight"] = shape
            shapes[f"{self.key}.{name}.bias"] = shape[:1]
        return shapes


@dataclass(frozen=True)
class LLLiteCase:
    """A ControlNet-LLLite, and the UNet and inputs that it is run with."""

    case: Case
    modules: tuple[Module, ...]
    hints: int  # how many of the batch's hints are given

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def hint(self) -> Tensor:
        return self.case.inputs().hint[: self.hints]

    def state(self, seed: int = LLLITE_SEED) -> dict[str, Tensor]:
        shapes = {key: shape for module in self.modules for key, shape in module.shapes.items()}
        return seeded_state_dict(shapes, seed)


def _modules(
    blocks: dict[str, int], params: Params, depths: list[int], targets: tuple[str, ...] = TARGETS
) -> Iterator[Module]:
    """A module for each target of the blocks, whose levels are given."""
    for block, level in blocks.items():
        for transformer in range(depths[level]):
            for index, target in enumerate(targets):
                yield Module(
                    f"{block}.1.transformer_blocks.{transformer}.{target}",
                    params["channel_mult"][level] * params["model_channels"],
                    min(level, 2) + 1,
                    8 + 8 * (level % 2),
                    # Nothing says that all modules have the same width.
                    12 + 4 * index,
                )


def _blocks(kind: str, *levels: tuple[int, tuple[int, ...]]) -> dict[str, int]:
    return {f"{kind}_blocks.{index}": level for level, blocks in levels for index in blocks}


_SD15: Params = {**SD15, "model_channels": 32, "num_heads": 4, "context_dim": 24}
_THREE: Params = {**_SD15, "channel_mult": [1, 2, 4]}
_SDXL: Params = {
    **SDXL,
    "model_channels": 32,
    "num_head_channels": 16,
    "context_dim": 40,
    "adm_in_channels": 24,
    "transformer_depth": [1, 2, 3],
}

CASES = (
    # Encoder and decoder, but not the deepest level: kohya's depths end above it.
    LLLiteCase(
        Case("sd15_like", _SD15, size=(8, 16), timesteps=(981, 21)),
        tuple(
            _modules(
                {
                    **_blocks("input", (0, (1, 2)), (1, (4, 5)), (2, (7, 8))),
                    **_blocks("output", (2, (3, 4, 5)), (1, (6, 7, 8)), (0, (9, 10, 11))),
                },
                _SD15,
                [1, 1, 1, 1],
            )
        ),
        hints=1,
    ),
    # The modules of the published files: encoder and middle, no decoder.
    LLLiteCase(
        Case("sdxl_like", _SDXL, size=(8, 12), timesteps=(3, 801)),
        tuple(
            _modules(
                {**_blocks("input", (1, (4, 5)), (2, (7, 8))), "middle_block": 2}, _SDXL, [0, 2, 3]
            )
        ),
        hints=2,
    ),
    # Few modules, one of them of every depth, in every kind of block.
    LLLiteCase(
        Case("few_modules", _THREE, size=(4, 8), timesteps=(500,)),
        (
            *_modules(_blocks("input", (0, (2,))), _THREE, [1, 1, 1], ("attn1.to_v",)),
            *_modules({"middle_block": 2}, _THREE, [1, 1, 1], ("attn1.to_k", "attn2.to_q")),
            *_modules(_blocks("output", (1, (4,))), _THREE, [1, 1, 1], ("attn1.to_q",)),
        ),
        hints=1,
    ),
)

# Single modules, run by the training code alone: x is (2, tokens, channels), the hint one.
SINGLE = tuple(
    Module(f"input_blocks.{3 * depth + 1}.1.transformer_blocks.0.attn1.to_q", 48, depth, 16, 20)
    for depth in STRIDES
)
SINGLE_HINT = (64, 96)
SINGLE_STRENGTH = 0.7


def single_tokens(module: Module) -> int:
    return math.prod(side // STRIDES[module.depth] for side in SINGLE_HINT)
