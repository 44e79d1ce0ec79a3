"""The projections of a UNet's attentions: where they are, what they read, and patches on that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from .config import UNetConfig
from .errors import CldmError, FamilyMismatch, ShapeError

Kind = Literal["input", "middle", "output"]
AttentionName = Literal["attn1", "attn2"]
Role = Literal["q", "k", "v"]
Change = Callable[[Tensor], Tensor]
Patch = Mapping[str, Change]
"""What to do to the input of projections, by their paths."""
Patches = Sequence[Patch]
"""Patches of a UNet in their order; each gets what the one before it made of the input."""

_NUMBER = "(0|[1-9][0-9]{0,2})"
_PATH = re.compile(
    rf"(?:(input|output)_blocks\.{_NUMBER}|middle_block)\.1\.transformer_blocks\.{_NUMBER}"
    r"\.(attn[12])\.to_([qkv])"
)


@dataclass(frozen=True)
class Projection:
    """One projection of one attention, by the numbers that ComfyUI gives its attention patches.

    (kind, block) is `extra_options["block"]`, with block 0 in the middle, and transformer is
    `extra_options["block_index"]`.
    """

    kind: Kind
    block: int
    transformer: int
    attention: AttentionName
    role: Role

    @property
    def path(self) -> str:
        """The path of its module in ControlledUNet."""
        block = "middle_block" if self.kind == "middle" else f"{self.kind}_blocks.{self.block}"
        blocks = f"{block}.1.transformer_blocks.{self.transformer}"
        return f"{blocks}.{self.attention}.to_{self.role}"

    @classmethod
    def parse(cls, path: str) -> Projection | None:
        """The projection at a path of ControlledUNet, None where the path names something else."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        kind, block, transformer, attention, role = match.groups()
        return cls(
            cast(Kind, kind or "middle"),
            int(block or 0),
            int(transformer),
            cast(AttentionName, attention),
            cast(Role, role),
        )


def projections(config: UNetConfig) -> dict[str, int]:
    """How wide the input of each projection of a UNet is, by path."""
    widths = {}
    for transformer, channels, depth, reads_text in _transformers(config):
        if depth < 1:
            continue
        heads, head_channels = config.heads(channels)
        own = heads * head_channels
        text = own if config.context_dim is None else config.context_dim
        for index in range(depth):
            block = f"{transformer}.transformer_blocks.{index}"
            first = text if reads_text else own
            read = {"attn1": (own, first, first), "attn2": (own, text, text)}
            for attention, inputs in read.items():
                for role, width in zip("qkv", inputs, strict=True):
                    widths[f"{block}.{attention}.to_{role}"] = width
    return widths


def _transformers(config: UNetConfig) -> Iterator[tuple[str, int, int, bool]]:
    """Path, channels, depth of each transformer, and whether its first attention reads the text."""
    widths = [mult * config.model_channels for mult in config.channel_mult]
    depths, index = iter(config.transformer_depth), 0
    for level, count in enumerate(config.num_res_blocks):
        for _ in range(count):
            index += 1
            off = config.self_attention_off(level)
            yield f"input_blocks.{index}.1", widths[level], next(depths), off
        index += 1  # the downsampling
    middle = config.transformer_depth_middle
    yield "middle_block.1", widths[-1], middle, config.disable_middle_self_attn
    depths, index = iter(config.transformer_depth_output), 0
    for level, count in reversed(list(enumerate(config.num_res_blocks))):
        for _ in range(count + 1):
            off = config.self_attention_off(level)
            yield f"output_blocks.{index}.1", widths[level], next(depths), off
            index += 1


def by_attention(patch: Patch) -> dict[tuple[Kind, int, int, AttentionName], dict[Role, Change]]:
    """A patch as ComfyUI's attention patches look it up.

    By (kind, block, transformer, attention), then by "q", "k" or "v": for attn1_patch the key is
    `(*extra_options["block"], extra_options["block_index"], "attn1")`. Raises FamilyMismatch for a
    path that names no projection.
    """
    found: dict[tuple[Kind, int, int, AttentionName], dict[Role, Change]] = {}
    for path, change in patch.items():
        place = _parsed(path)
        key = (place.kind, place.block, place.transformer, place.attention)
        found.setdefault(key, {})[place.role] = change
    return found


@runtime_checkable
class Addition(Protocol):
    """A change that adds something to the input, as those of ControlNet-LLLite do."""

    def delta(self, x: Tensor) -> Tensor:
        """What is added to x (B, N, channels)."""

    def grid(self, tokens: int) -> tuple[int, int]:
        """The rows and columns of so many tokens."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """An addition times weights (B or 1, N or 1, 1), which may depend on the input."""

    addition: Addition
    weights: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """The new input for x (B, N, channels)."""
        return x + self.delta(x)

    def delta(self, x: Tensor) -> Tensor:
        return self.addition.delta(x) * self.weights(x)

    def grid(self, tokens: int) -> tuple[int, int]:
        return self.addition.grid(tokens)


def weigh_patch(patch: Patch, weights: Callable[[Addition, Tensor], Tensor]) -> Patch:
    """A patch whose additions are multiplied with `weights(addition, x)`, at each input x.

    Raises CldmError for a change that is no addition.
    """
    weighed: dict[str, Change] = {}
    for path, change in patch.items():
        if not isinstance(change, Addition):
            raise CldmError(
                f"The patch of {path} doesn't say what it adds, so it can have no mask and no "
                f"weights: that is for patches of ControlNet-LLLite."
            )
        weighed[path] = Weighed(change, partial(weights, change))
    return weighed


def weigh_patch_rows(patch: Patch, factors: Tensor) -> Patch:
    """A patch whose additions have one factor for each row of the batch; factors: (B,).

    Raises CldmError as `weigh_patch`, and ShapeError where an input has another batch.
    """

    def weights(_: Addition, x: Tensor) -> Tensor:
        if factors.shape != x.shape[:1]:
            raise ShapeError(
                f"Factors of shape {tuple(factors.shape)} were given for a batch of {x.shape[0]}: "
                f"give one for each row."
            )
        return factors.to(x)[:, None, None]

    return weigh_patch(patch, weights)


@contextmanager
def patched(unet: nn.Module, patches: Patches) -> Iterator[None]:
    """Within it, every projection that a patch names reads what the patch makes of its input.

    Several patches of one projection run in their order, each on the result of the one before, as
    ComfyUI chains them. Afterwards, and after an exception, the UNet is as it was. Raises
    FamilyMismatch for a path that the UNet doesn't have.
    """
    if isinstance(patches, Mapping):
        raise CldmError("One patch was given where a list of patches is expected: write [patch].")
    with ExitStack() as hooks:
        for patch in patches:
            for path, change in patch.items():
                module = _module(unet, path)
                hooks.enter_context(module.register_forward_pre_hook(_before(change)))
        yield


def _before(change: Change) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, args: (change(args[0]), *args[1:])


def _module(unet: nn.Module, path: str) -> nn.Module:
    try:
        return unet.get_submodule(_parsed(path).path)
    except AttributeError as error:
        raise FamilyMismatch(
            f"A patch wants to change the input of {path}, which this UNet doesn't have: "
            "the net belongs to another family of base models."
        ) from error


def _parsed(path: str) -> Projection:
    place = Projection.parse(path)
    if place is None:
        raise FamilyMismatch(
            f"A patch wants to change the input of {path}, which is no projection of an attention: "
            "expected a path such as input_blocks.4.1.transformer_blocks.0.attn1.to_q."
        )
    return place
