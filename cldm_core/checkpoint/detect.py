"""Configurations read from the keys and shapes of a state dict in the original's layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..config import ControlNetConfig, UNetConfig
from ..errors import CheckpointMismatch
from .guard import require_plausible
from .read import StateDict

HEAD_CHANNELS = 64
SD1_CONTEXT, SD1_HEADS = 768, 8


class Layer(NamedTuple):
    """One block of an encoder or decoder: its channels and its transformer's depth, 0 for none."""

    channels: int
    depth: int


def unet_config(state: StateDict, *, head_channels: int | None = None) -> UNetConfig:
    """The configuration of a UNet, or of the encoder part of a ControlNet, without a key prefix.

    The number of heads goes by the rule of the public families, 8 where the text is 768 wide, else
    one for each 64 channels, unless `head_channels` says how wide a head is. Raises
    CheckpointMismatch where the keys don't describe such a net.
    """
    first = shape_of(state, "input_blocks.0.0.weight", 4)
    base = first[0]
    levels, conv_resample = levels_of(state)
    mult = tuple(level[0].channels // base for level in levels)
    decoder = tuple(layer.depth for layer in _decoder(state, sum(map(len, levels)) + len(levels)))
    mirrored = tuple(level[-1].depth for level in reversed(levels) for _ in range(len(level) + 1))
    context_dim = _context_dim(state)
    heads = SD1_HEADS if context_dim == SD1_CONTEXT and head_channels is None else -1
    config = UNetConfig(
        model_channels=base,
        channel_mult=mult,
        num_res_blocks=tuple(map(len, levels)),
        transformer_depth=tuple(layer.depth for level in levels for layer in level),
        transformer_depth_middle=_middle_depth(state),
        # A ControlNet has no decoder; what its base's must be like is mirrored from the encoder.
        transformer_depth_output=decoder or mirrored,
        context_dim=context_dim,
        in_channels=first[1],
        out_channels=shape_of(state, "out.2.weight", 4)[0] if "out.2.weight" in state else first[1],
        num_heads=heads,
        num_head_channels=head_channels or HEAD_CHANNELS if heads == -1 else -1,
        use_linear_in_transformer=_use_linear(state),
        adm_in_channels=shape_of(state, "label_emb.0.0.weight", 2)[1]
        if "label_emb.0.0.weight" in state
        else None,
        use_scale_shift_norm=_scale_shift(state),
        conv_resample=conv_resample,
    )
    require_plausible(config.to_dict(), len(state), "The file")
    _check_heads(state, config)
    return config


def controlnet_config(state: StateDict, *, head_channels: int | None = None) -> ControlNetConfig:
    """The configuration of a ControlNet without a key prefix; head_channels as in unet_config.

    Keys don't tell whether residuals are averaged over the picture; it is taken as off.
    """
    unet = unet_config(state, head_channels=head_channels)
    return ControlNetConfig(unet, shape_of(state, "input_hint_block.0.weight", 4)[1])


def shape_of(state: StateDict, key: str, ndim: int) -> tuple[int, ...]:
    """The shape of a weight; raises CheckpointMismatch where it is missing, empty or misshapen."""
    if key not in state:
        raise CheckpointMismatch(
            f"The key {key} is missing: these are not the weights of such a net, or not all of "
            f"them."
        )
    shape = tuple(state[key].shape)
    if len(shape) != ndim or 0 in shape:
        raise CheckpointMismatch(
            f"The key {key} has the shape {shape}, expected {ndim} sizes above 0: these are not "
            f"the weights of such a net, or they are damaged."
        )
    return shape


def count_of(state: StateDict, template: str) -> int:
    """How many of the keys that `template` names for 0, 1, 2, ... are there."""
    count = 0
    while template.format(count) in state:
        count += 1
    return count


def transformer_depths(state: StateDict) -> dict[str, int]:
    """How many blocks each transformer has, by its path such as `input_blocks.1.1`.

    Any key of a block counts: files of differences leave out what didn't change.
    """
    depths: dict[str, int] = {}
    for key in state:
        if match := re.match(r"(.+)\.transformer_blocks\.([0-9]{1,2})\.", key):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return depths


def levels_of(state: StateDict) -> tuple[list[list[Layer]], bool]:
    """The encoder's residual blocks level by level, and whether downsampling has weights.

    Raises CheckpointMismatch where the keys don't describe an encoder.
    """
    numbers = (re.match(r"input_blocks\.([0-9]{1,2})\.", key) for key in state)
    last = max((int(number[1]) for number in numbers if number), default=0)
    depths = transformer_depths(state)
    levels: list[list[Layer]] = [[]]
    conv_resample = True
    for index in range(1, last + 1):
        block = f"input_blocks.{index}"
        if f"{block}.0.out_layers.3.weight" in state:
            levels[-1].append(_layer(state, block, depths))
        else:
            # A block without weights is an average pooling.
            conv_resample = conv_resample and f"{block}.0.op.weight" in state
            levels.append([])
    if not all(levels):
        raise CheckpointMismatch(
            "The input blocks have a level without residual blocks: keys are missing."
        )
    return levels, conv_resample


def _layer(state: StateDict, block: str, depths: Mapping[str, int]) -> Layer:
    channels = shape_of(state, f"{block}.0.out_layers.3.weight", 4)[0]
    return Layer(channels, depths.get(f"{block}.1", 0))


def _decoder(state: StateDict, count: int) -> Iterator[Layer]:
    depths = transformer_depths(state)
    if "output_blocks.0.0.out_layers.3.weight" in state:
        for index in range(count):
            yield _layer(state, f"output_blocks.{index}", depths)


def _middle_depth(state: StateDict) -> int:
    if "middle_block.1.proj_in.weight" not in state:
        return -1
    return transformer_depths(state).get("middle_block.1", 0)


def _first(state: StateDict, ending: str) -> str | None:
    return next((key for key in state if key.endswith(ending)), None)


def _context_dim(state: StateDict) -> int | None:
    key = _first(state, ".attn2.to_k.weight")
    return None if key is None else shape_of(state, key, 2)[1]


def _use_linear(state: StateDict) -> bool:
    key = _first(state, ".proj_in.weight")
    return key is not None and state[key].ndim == 2


def _scale_shift(state: StateDict) -> bool:
    emb = shape_of(state, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
    return emb == 2 * shape_of(state, "input_blocks.1.0.out_layers.3.weight", 4)[0]


def _check_heads(state: StateDict, config: UNetConfig) -> None:
    """Refuses widths that the rule can't divide, rather than guess."""
    unit = config.num_heads if config.num_heads != -1 else config.num_head_channels
    for key in state:
        if not key.endswith(".attn1.to_q.weight"):
            continue
        width = shape_of(state, key, 2)[0]
        if width % unit:
            raise CheckpointMismatch(
                f"The transformers are {width} wide, which is no multiple of {unit}: "
                "their number of heads can't be told from the keys, so give the configuration."
            )
