"""The weights that surgery works on: any file or state dict under the original's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .bound import BASE_PREFIXES
from .checkpoint.dtypes import require_floating_weights, unified, without_scales
from .checkpoint.families import FAMILIES, Family
from .checkpoint.fit import conformed, shapes
from .checkpoint.formats import UNET, Format
from .checkpoint.guard import require_finite
from .checkpoint.load import contents, stored_config, unet_part
from .checkpoint.quantise import narrowed
from .checkpoint.read import Checkpoint, Source, StateDict, read
from .checkpoint.write import is_named_pooled, noted_hint, stored_pooling
from .config import ControlNetConfig
from .eight_bits import is_8_bit
from .errors import CheckpointMismatch, listed

TWIN_PARTS = ("input_blocks.", "middle_block.", "time_embed.", "label_emb.")
"""What a ControlNet copied from its base model."""


@dataclass(frozen=True)
class ControlWeights:
    """A control net's weights under canonical keys; `name` is what a message calls the source.

    narrow: whether they are stored in 8 bits; stored: the configuration that the source carries,
    hint: what it says about the hint, pooling: what it or its name (write.POOLED_NAMES) says about
    that; None each where nothing is said.
    """

    name: str
    kind: Format
    family: Family
    state: dict[str, Tensor]
    stored: Any = None
    pooling: bool | None = None
    hint: str | None = None
    narrow: bool = False

    @property
    def output_type(self) -> torch.dtype | None:
        """What results are stored in unless something else is asked for; None: as each tensor.

        What came in 8 bits is computed in fp32, and fp16 holds it whole.
        """
        return torch.float16 if self.narrow else None

    def config(self, base: StateDict | None = None) -> Any:
        """The configuration, from the source's metadata or else from its keys.

        base: the UNet's weights, which help with files that leave much out. Raises
        CheckpointMismatch where nothing tells it.
        """
        config = self.stored or self.family.config_of(self.state, base)
        if self.pooling and isinstance(config, ControlNetConfig):
            config = replace(config, global_average_pooling=True)
        return config


def control_weights(source: Source, *, title: str | None = None) -> ControlWeights:
    """The weights of a control net of any family, in any layout, with or without a prefix.

    Weights of 8 bits come widened to fp32, as no arithmetic is done in those; others as they are
    stored. title: what a message calls a state dict. Raises UnsupportedCheckpoint, or
    DamagedCheckpoint, where numbers are infinite or none, too.
    """
    checkpoint = read(source)
    if title is not None and isinstance(source, Mapping):
        checkpoint = replace(checkpoint, name=title)
    kind, tensors = contents(checkpoint)
    family = FAMILIES[kind.name]
    stored = family.canonical(tensors)
    require_finite(stored, checkpoint.name, whole=True)
    return ControlWeights(
        checkpoint.name,
        kind,
        family,
        _computable(stored, checkpoint.name),
        stored_config(checkpoint, family),
        _pooling(checkpoint, family),
        noted_hint(checkpoint.metadata),
        _is_narrow(stored),
    )


def base_weights(source: Source) -> dict[str, Tensor]:
    """A base model's UNet without a prefix: single file, UNet file of diffusers, or state dict.

    Raises UnsupportedCheckpoint where there is no UNet, or DamagedCheckpoint.
    """
    checkpoint = read(source)
    hosted = BASE_PREFIXES[1]
    if hosted + UNET in checkpoint.tensors:
        tensors = {
            key.removeprefix(hosted): value
            for key, value in checkpoint.tensors.items()
            if key.startswith(hosted)
        }
        checkpoint = Checkpoint(tensors, checkpoint.metadata, checkpoint.name)
    return _computable(unet_part(checkpoint), checkpoint.name)


def twins(control: ControlWeights, base: StateDict, title: str) -> dict[str, Tensor]:
    """The base's weights that the net's encoder was copied from, by key and in the net's shapes.

    They come on the devices of the net's. title: what a message calls the base, such as "the
    target". Raises CheckpointMismatch where the base lacks one or has it in another shape, and
    DamagedCheckpoint where numbers are infinite or none.
    """
    keys = [key for key in control.state if key.startswith(TWIN_PARTS)]
    expected = shapes({key: control.state[key] for key in keys})
    found = conformed(expected, {key: base[key] for key in keys if key in base})
    wrong = [f"{key} is missing" for key in keys if key not in found] + [
        f"{key} is {tuple(value.shape)} instead of {expected[key]}"
        for key, value in found.items()
        if tuple(value.shape) != expected[key]
    ]
    title = f"{title[0].upper()}{title[1:]}"
    if wrong:
        raise CheckpointMismatch(
            f"{title} has other weights than the encoder of {control.name} "
            f"({listed(wrong, between='; ')}): give a base model of the same family."
        )
    require_finite(found, title, whole=True)
    return {key: value.to(control.state[key].device) for key, value in found.items()}


def stored_copy(value: Tensor, dtype: torch.dtype | None, key: str) -> Tensor:
    """The tensor in the type, None for its own, in memory that it shares with no other."""
    result = narrowed(value, dtype or value.dtype, key)
    return result.clone() if result is value else result


def _pooling(checkpoint: Checkpoint, family: Family) -> bool | None:
    stored = stored_pooling(checkpoint)
    named = family.config is ControlNetConfig and is_named_pooled(checkpoint.name)
    return True if stored is None and named else stored


def _computable(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    require_floating_weights(without_scales(state), name)
    return unified(state, torch.float32, name) if _is_narrow(state) else dict(state)


def _is_narrow(state: Mapping[str, Tensor]) -> bool:
    return any(is_8_bit(value.dtype) for value in state.values())
