"""The weights that surgery works on: any file or state dict under the original's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bound import BASE_PREFIXES
from .checkpoint.dtypes import unified
from .checkpoint.families import FAMILIES, Family
from .checkpoint.fit import conformed, shapes
from .checkpoint.formats import UNET, Format
from .checkpoint.load import contents, stored_config, unet_part
from .checkpoint.read import Checkpoint, Source, StateDict, read
from .errors import CheckpointMismatch

TWIN_PARTS = ("input_blocks.", "middle_block.", "time_embed.", "label_emb.")
"""What a ControlNet copied from its base model."""


@dataclass(frozen=True)
class ControlWeights:
    """A control net's weights under canonical keys; `name` is what a message calls the source."""

    name: str
    kind: Format
    family: Family
    state: dict[str, Tensor]
    stored: Any = None

    def config(self, base: StateDict | None = None) -> Any:
        """The configuration, from the source's metadata or else from its keys.

        base: the UNet's weights, which help with files that leave much out. Raises
        CheckpointMismatch where nothing tells it.
        """
        return self.stored or self.family.config_of(self.state, base)


def control_weights(source: Source) -> ControlWeights:
    """The weights of a control net of any family, in any layout, with or without a prefix.

    Weights of 8 bits come widened to fp32, as no arithmetic is done in those; others as they are
    stored. Raises UnsupportedCheckpoint or DamagedCheckpoint.
    """
    checkpoint = read(source)
    kind, tensors = contents(checkpoint)
    family = FAMILIES[kind.name]
    state = _computable(family.canonical(tensors), checkpoint.name)
    return ControlWeights(checkpoint.name, kind, family, state, stored_config(checkpoint, family))


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

    title: what a message calls the base, such as "the target". Raises CheckpointMismatch where the
    base lacks one or has it in another shape.
    """
    keys = [key for key in control.state if key.startswith(TWIN_PARTS)]
    expected = shapes({key: control.state[key] for key in keys})
    found = conformed(expected, {key: base[key] for key in keys if key in base})
    wrong = [f"{key} is missing" for key in keys if key not in found] + [
        f"{key} is {tuple(value.shape)} instead of {expected[key]}"
        for key, value in found.items()
        if tuple(value.shape) != expected[key]
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointMismatch(
            f"{title[0].upper()}{title[1:]} has other weights than the encoder of {control.name} "
            f"({'; '.join(wrong[:3])}{more}): give a base model of the same family."
        )
    return found


def _computable(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    narrow = any(value.dtype.itemsize == 1 for value in state.values())
    return unified(state, torch.float32, name) if narrow else dict(state)
