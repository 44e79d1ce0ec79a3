"""Keys of the original's layout and of diffusers', either way, generated from the net's structure.

The pairs are those of convert_diffusers_to_original_stable_diffusion.py in huggingface/diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate

from torch import Tensor

from .detect import levels_of
from .read import StateDict

HINT_CONVOLUTIONS = 8
DIFFUSERS_CONTROL = "controlnet_cond_embedding.conv_in.weight"
DIFFUSERS_UNET = "up_blocks.0.resnets.0.conv1.weight"

# Text widths of the families whose vector of extra numbers diffusers calls a class embedding.
_CLASS_EMBEDDED = (768, 1024)
_RES_BLOCK = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)

Pair = tuple[str, str]


def to_cldm(state: StateDict) -> dict[str, Tensor]:
    """A state dict in diffusers' layout under the original's keys; keys of neither stay."""
    attended = _numbers(state, r"up_blocks\.([0-9]{1,3})\.attentions\.")
    pairs = {theirs: ours for ours, theirs in _pairs(_diffusers_levels(state), attended)}
    pairs |= {f"class_embedding.linear_{i}": f"label_emb.0.{2 * i - 2}" for i in (1, 2)}
    return _renamed(state, pairs)


def to_diffusers(state: StateDict) -> dict[str, Tensor]:
    """A state dict in the original's layout under diffusers' keys; keys of neither stay."""
    levels = [len(level) for level in levels_of(state)[0]]
    upsampled = _numbers(state, r"output_blocks\.([0-9]{1,3})\.2\.conv\.")
    ends = accumulate(count + 1 for count in reversed(levels))
    attended = {level for level, end in enumerate(ends) if end - 1 in upsampled}
    pairs = dict(_pairs(levels, attended))
    context = next((state[key] for key in state if key.endswith(".attn2.to_k.weight")), None)
    if context is not None and context.shape[-1] in _CLASS_EMBEDDED:
        pairs |= {f"label_emb.0.{2 * i - 2}": f"class_embedding.linear_{i}" for i in (1, 2)}
    return _renamed(state, pairs)


def _renamed(state: StateDict, modules: dict[str, str]) -> dict[str, Tensor]:
    most = 1 + max(path.count(".") for path in modules)
    return {_rename(key, modules, most): value for key, value in state.items()}


def _rename(key: str, modules: dict[str, str], most: int) -> str:
    """The key with its longest known module path, of `most` words or fewer, exchanged."""
    # A hostile file's key may have millions of words.
    words = key.split(".", most)[:most]
    heads = (".".join(words[:count]) for count in range(len(words), 0, -1))
    head = next((head for head in heads if head in modules), None)
    return key if head is None else modules[head] + key[len(head) :]


def _numbers(state: StateDict, pattern: str) -> set[int]:
    """The numbers that the pattern's group has at the start of the keys."""
    return {int(match[1]) for key in state if (match := re.match(pattern, key))}


def _diffusers_levels(state: StateDict) -> list[int]:
    """Residual blocks of each level, counted from the keys."""
    counts: dict[int, int] = {}
    for key in state:
        if match := re.match(r"down_blocks\.([0-9]{1,3})\.resnets\.([0-9]{1,3})\.", key):
            level, index = map(int, match.groups())
            counts[level] = max(counts.get(level, 0), index + 1)
    return [counts.get(level, 0) for level in range(max(counts, default=-1) + 1)]


def _pairs(levels: Sequence[int], attended: Collection[int]) -> Iterator[Pair]:
    """(our module path, diffusers') of all modules of a UNet and of a ControlNet.

    levels: residual blocks of each level; attended: the decoder's levels that have transformers,
    behind which a level's upsampling comes third instead of second in its block.
    """
    yield "input_blocks.0.0", "conv_in"
    for i in (1, 2):
        yield f"time_embed.{2 * i - 2}", f"time_embedding.linear_{i}"
        yield f"label_emb.0.{2 * i - 2}", f"add_embedding.linear_{i}"
    yield from _encoder(levels)
    yield from _res_block("middle_block.0", "mid_block.resnets.0")
    yield "middle_block.1", "mid_block.attentions.0"
    yield from _res_block("middle_block.2", "mid_block.resnets.1")
    yield from _decoder(levels, attended)
    yield from _control(sum(levels) + len(levels))


def _encoder(levels: Sequence[int]) -> Iterator[Pair]:
    block = 1
    for level, count in enumerate(levels):
        for index in range(count):
            theirs = f"down_blocks.{level}.resnets.{index}"
            yield from _res_block(f"input_blocks.{block}.0", theirs)
            yield f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{index}"
            block += 1
        yield f"input_blocks.{block}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        block += 1


def _decoder(levels: Sequence[int], attended: Collection[int]) -> Iterator[Pair]:
    block = 0
    for level, count in enumerate(reversed(levels)):
        for index in range(count + 1):
            theirs = f"up_blocks.{level}.resnets.{index}"
            yield from _res_block(f"output_blocks.{block}.0", theirs)
            yield f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{index}"
            block += 1
        upsample = 2 if level in attended else 1
        yield f"output_blocks.{block - 1}.{upsample}.conv", f"up_blocks.{level}.upsamplers.0.conv"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def _control(zero_convs: int) -> Iterator[Pair]:
    for index in range(zero_convs):
        yield f"zero_convs.{index}.0", f"controlnet_down_blocks.{index}"
    yield "middle_block_out.0", "controlnet_mid_block"
    last = HINT_CONVOLUTIONS - 1
    yield "input_hint_block.0", "controlnet_cond_embedding.conv_in"
    for index in range(1, last):
        yield f"input_hint_block.{2 * index}", f"controlnet_cond_embedding.blocks.{index - 1}"
    yield f"input_hint_block.{2 * last}", "controlnet_cond_embedding.conv_out"


def _res_block(ours: str, theirs: str) -> Iterable[Pair]:
    return ((f"{ours}.{a}", f"{theirs}.{b}") for a, b in _RES_BLOCK)
