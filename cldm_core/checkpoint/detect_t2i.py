"""T2I-Adapters: their configuration from keys and shapes, and both layouts of their keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import CheckpointMismatch, CldmError, UnsupportedCheckpoint
from ..t2i_adapter import XL_LEVELS, AdapterConfig
from .detect import count_of, shape_of
from .read import StateDict

PREFIX = "adapter."
LIGHT_MARKER = "body.0.out_conv.weight"
DIFFUSERS_MARKER = "body.0.resnets.0.block1.weight"
MOST_LEVELS = 4
SQUARE = 8 * 8
XL_INPUTS = (16 * 16, 3 * 16 * 16)
"""Channels of the first convolution of SDXL's adapters, for grey and coloured hints."""

_RESNET = re.compile(r"body\.([0-9]{1,4})\.resnets\.([0-9]{1,4})\.(.+)")
_LEVEL = re.compile(r"body\.([0-9]{1,4})\.(in_conv\..+)")
_LIGHT = re.compile(r"body\.([0-9]{1,4})\.body\.([0-9]{1,4})\.(.+)")
_FLAT = re.compile(r"body\.([0-9]{1,4})\.(.+)")


def t2i_config(state: StateDict) -> AdapterConfig:
    """The configuration of a T2I-Adapter in the original's layout (`canonical_t2i`).

    SDXL's are told by the 256 or 768 channels that they start from, as the host tells them. Where
    widths and halving allow four levels, four are assumed, as in all published ones. Raises
    CheckpointMismatch where the keys don't describe such a net.
    """
    try:
        return _light(state) if LIGHT_MARKER in state else _full(state)
    except CheckpointMismatch:
        raise
    except CldmError as error:
        raise CheckpointMismatch(f"These are not the weights of a T2I-Adapter: {error}") from error


def canonical_t2i(state: StateDict) -> dict[str, Tensor]:
    """The tensors under the original's keys, from those or from diffusers' layout.

    A prefix `adapter.`, as diffusers' files and the original's training checkpoints have it, is
    dropped. Raises CheckpointMismatch where two keys would become one.
    """
    plain = _renamed(state, lambda key: key.removeprefix(PREFIX))
    if DIFFUSERS_MARKER not in plain:
        return plain
    blocks = count_of(plain, "body.0.resnets.{}.block1.weight")
    light = LIGHT_MARKER in plain

    def rename(key: str) -> str:
        if match := _RESNET.fullmatch(key):
            level, block, rest = match.groups()
            if light:
                return f"body.{int(level)}.body.{int(block)}.{rest}"
            return f"body.{int(level) * blocks + int(block)}.{rest}"
        if not light and (match := _LEVEL.fullmatch(key)):
            return f"body.{int(match[1]) * blocks}.{match[2]}"
        return key

    return _renamed(plain, rename)


def diffusers_t2i(state: StateDict) -> dict[str, Tensor]:
    """The tensors under diffusers' keys (`T2IAdapter`), from the original's; nothing is lost.

    Raises UnsupportedCheckpoint for adapters that diffusers can't hold.
    """
    config = t2i_config(state)
    _require_diffusers(config)
    blocks, light = config.num_res_blocks, config.kind == "light"

    def rename(key: str) -> str:
        if light:
            return PREFIX + _LIGHT.sub(r"body.\1.resnets.\2.\3", key)
        match = _FLAT.fullmatch(key)
        if match is None:
            return PREFIX + key
        level, block = divmod(int(match[1]), blocks)
        inside = "" if match[2].startswith("in_conv.") else f"resnets.{block}."
        return f"{PREFIX}body.{level}.{inside}{match[2]}"

    return _renamed(state, rename)


def _require_diffusers(config: AdapterConfig) -> None:
    plain = config.kernel_size == 1 and not config.use_conv and not config.skip_conv
    if config.kind == "light" and config.channels[-2:-1] != config.channels[-1:]:
        plain = False
    if not plain:
        raise UnsupportedCheckpoint(
            "This T2I-Adapter has layers that diffusers' T2IAdapter doesn't have: keep it in the "
            f"original's layout. Its configuration is {config}."
        )


def _renamed(state: StateDict, rename: Callable[[str], str]) -> dict[str, Tensor]:
    renamed = {rename(key): value for key, value in state.items()}
    if len(renamed) != len(state):
        raise CheckpointMismatch(
            f"{len(state)} keys of this T2I-Adapter become {len(renamed)} in the other layout: "
            "its levels have different numbers of residual blocks, or keys are there twice."
        )
    return renamed


def _light(state: StateDict) -> AdapterConfig:
    levels = count_of(state, "body.{}.out_conv.weight")
    return AdapterConfig(
        channels=tuple(shape_of(state, f"body.{i}.out_conv.weight", 4)[0] for i in range(levels)),
        hint_channels=_hint_channels(shape_of(state, "body.0.in_conv.weight", 4)[1], SQUARE),
        num_res_blocks=count_of(state, "body.0.body.{}.block1.weight"),
        kind="light",
    )


def _full(state: StateDict) -> AdapterConfig:
    inputs = shape_of(state, "conv_in.weight", 4)[1]
    shape_of(state, "body.0.block1.weight", 4)
    count = count_of(state, "body.{}.block1.weight")
    widths = [shape_of(state, f"body.{i}.block1.weight", 4)[0] for i in range(count)]
    halved = {i for i in range(count) if f"body.{i}.down_opt.op.weight" in state}
    # Convolutions at several levels say SD, however many channels come in.
    xl = inputs in XL_INPUTS and len(halved) <= 1
    common: dict[str, Any] = {
        "hint_channels": _hint_channels(inputs, 16 * 16 if xl else SQUARE),
        "kind": "xl" if xl else "full",
        "kernel_size": shape_of(state, "body.0.block2.weight", 4)[2],
        "use_conv": bool(halved),
        "skip_conv": "body.0.skep.weight" in state,
    }
    for levels in range(MOST_LEVELS, 0, -1):
        if (xl and levels != XL_LEVELS) or not _is_even(widths, levels):
            continue
        blocks = count // levels
        config = AdapterConfig(tuple(widths[::blocks]), num_res_blocks=blocks, **common)
        if not halved or halved == {blocks * level for level in config.halved_levels}:
            return config
    raise CheckpointMismatch(
        f"The {count} residual blocks of this T2I-Adapter are {widths[:12]} wide and can't be "
        "divided into levels: keys are missing, or it is another kind of net."
    )


def _is_even(widths: list[int], levels: int) -> bool:
    """Whether the blocks divide into so many levels of one width each."""
    blocks, rest = divmod(len(widths), levels)
    return (
        rest == 0
        and blocks > 0
        and all(width == widths[i - i % blocks] for i, width in enumerate(widths))
    )


def _hint_channels(inputs: int, square: int) -> int:
    if inputs % square:
        raise CheckpointMismatch(
            f"The first convolution of this T2I-Adapter takes {inputs} channels, expected a "
            f"multiple of {square}: one for each pixel of a square."
        )
    return inputs // square
