"""The configuration of a ControlNet-LLLite, read from the keys and shapes of its file."""

from __future__ import annotations

import re

from ..errors import CheckpointMismatch
from ..lllite import PREFIX, LLLiteConfig, LLLiteModuleConfig
from ..projections import Projection
from .detect import shape_of
from .read import StateDict

_NUMBER = "(0|[1-9][0-9]{0,2})"
_NAME = re.compile(
    rf"{PREFIX}(?:(input|output)_blocks_{_NUMBER}|middle_block)_1_transformer_blocks_{_NUMBER}"
    r"_(?:(attn1)_to_([qkv])|(attn2)_to_(q))"
)
_KINDS = ("input", "middle", "output")


def lllite_config(state: StateDict) -> LLLiteConfig:
    """The configuration of a ControlNet-LLLite, its modules in the order of the UNet's blocks.

    Raises CheckpointMismatch where the keys don't describe such a net.
    """
    names = dict.fromkeys(key.split(".")[0] for key in state if key.startswith(PREFIX))
    if not names:
        raise CheckpointMismatch(
            f"No key starts with {PREFIX}: these are not the weights of a ControlNet-LLLite."
        )
    places = sorted(((_place(name), name) for name in names), key=lambda pair: _order(pair[0]))
    channels = {shape_of(state, f"{name}.conditioning1.0.weight", 4)[1] for name in names}
    if len(channels) > 1:
        raise CheckpointMismatch(
            f"The modules read hints of {' and '.join(map(str, sorted(channels)))} channels, "
            "expected the same for all: the file is damaged or was put together wrongly."
        )
    modules = tuple(_module(state, name, place.path) for place, name in places)
    return LLLiteConfig(modules, channels.pop())


def _place(name: str) -> Projection:
    match = _NAME.fullmatch(name)
    path = None
    if match is not None:
        kind, block, transformer, *projection = match.groups()
        attention, role = (part for part in projection if part)
        start = "middle_block" if kind is None else f"{kind}_blocks.{block}"
        path = f"{start}.1.transformer_blocks.{transformer}.{attention}.to_{role}"
    place = None if path is None else Projection.parse(path)
    if place is None:
        raise CheckpointMismatch(
            f"The ControlNet-LLLite has a module {name}, expected only modules for the queries, "
            "keys and values of self-attention and the queries of cross-attention: nets trained "
            "on other layers can't be loaded."
        )
    return place


def _order(place: Projection) -> tuple[int, int, int, str, str]:
    kind = _KINDS.index(place.kind)
    return kind, place.block, place.transformer, place.attention, place.role


def _module(state: StateDict, name: str, path: str) -> LLLiteModuleConfig:
    inner, channels = shape_of(state, f"{name}.down.0.weight", 2)
    half, depth = shape_of(state, f"{name}.conditioning1.0.weight", 4)[0], _depth(state, name)
    width = 2 * half
    # Held against each other before anything is built: sizes that lie may be beyond any memory.
    for layer, expected in (
        ("mid.0", (inner, inner + width)),
        ("up.0", (channels, inner)),
        ("conditioning1.2", (half, half) if depth == 3 else (width, half)),
    ):
        shape = shape_of(state, f"{name}.{layer}.weight", 4 if "conditioning" in layer else 2)
        if shape[:2] != expected:
            raise CheckpointMismatch(
                f"The key {name}.{layer}.weight has the shape {shape}, and the rest of its module "
                f"makes it {expected[0]} by {expected[1]}: the file is damaged or was put together "
                "wrongly."
            )
    return LLLiteModuleConfig(path, channels, depth, width, inner)


def _depth(state: StateDict, name: str) -> int:
    """How deep the conditioning is, told as the original's loader does."""
    if f"{name}.conditioning1.4.weight" in state:
        return 3
    kernel = shape_of(state, f"{name}.conditioning1.2.weight", 4)[-1]
    if kernel not in (2, 4):
        raise CheckpointMismatch(
            f"The key {name}.conditioning1.2.weight has a kernel {kernel} wide, expected 2 or 4: "
            "these are not the weights of a ControlNet-LLLite, or they are damaged."
        )
    return 2 if kernel == 4 else 1
