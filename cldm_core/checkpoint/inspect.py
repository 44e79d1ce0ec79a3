"""What a checkpoint holds, in a line that a person reads."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import SD15, SD21, SDXL, TINY, UNetConfig
from .detect import controlnet_config, unet_config
from .load import (
    CONTROL_MARKER,
    CONTROL_PREFIXES,
    UNET_MARKER,
    UNET_PREFIXES,
    common_type,
    part,
)
from .read import Source, StateDict, read

TYPE_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a file holds.

    `family` is that of the base model, `kind` is "ControlNet" or "base model", `dtype` is the type
    of most weights and `parameters` is how many numbers they are.
    """

    family: str
    kind: str
    hint_channels: int | None
    dtype: str
    parameters: int

    def __str__(self) -> str:
        hint = f", hint {self.hint_channels} channels" if self.hint_channels else ""
        size = f"{self.parameters / 1e6:.1f} M"
        return f"{self.family} {self.kind}, cldm keys{hint}, {self.dtype}, {size}"


def inspect_checkpoint(path_or_state_dict: Source) -> CheckpointInfo:
    """The family, kind and size of a ControlNet or base model.

    Raises UnsupportedCheckpoint for anything else.
    """
    checkpoint = read(path_or_state_dict)
    if any(prefix + CONTROL_MARKER in checkpoint.tensors for prefix in CONTROL_PREFIXES):
        state = part(checkpoint, CONTROL_PREFIXES, CONTROL_MARKER, "ControlNet")
        config = controlnet_config(state)
        return _info(config.unet, "ControlNet", config.hint_channels, state)
    state = part(checkpoint, UNET_PREFIXES, UNET_MARKER, "ControlNet or base model")
    return _info(unet_config(state), "base model", None, state)


def _info(
    config: UNetConfig, kind: str, hint_channels: int | None, state: StateDict
) -> CheckpointInfo:
    dtype = str(common_type(state)).removeprefix("torch.")
    count = sum(tensor.numel() for tensor in state.values())
    return CheckpointInfo(family(config), kind, hint_channels, TYPE_NAMES.get(dtype, dtype), count)


def family(config: UNetConfig) -> str:
    """The public name of an architecture, told from the widths of its text and base channels."""
    for name, known in (
        ("SD 1.5", SD15),
        ("SD 2.1", SD21),
        ("SDXL", SDXL),
        ("embedded model", TINY),
    ):
        if (config.context_dim, config.model_channels) == (known.context_dim, known.model_channels):
            return name
    return f"unknown family ({config.model_channels} base channels, text {config.context_dim} wide)"
