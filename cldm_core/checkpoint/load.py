"""Checkpoints to nets: the right part of the file.

The right configuration, every key accounted for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ..attention import Attention, sdpa
from ..config import ControlNetConfig, UNetConfig
from ..controlnet import ControlNet
from ..errors import CheckpointMismatch, UnsupportedCheckpoint
from ..unet import ControlledUNet
from .detect import controlnet_config, unet_config
from .read import Checkpoint, Source, StateDict, metadata_record, read
from .write import CONFIG_KEY

UNET_PREFIXES = ("model.diffusion_model.", "")
CONTROL_PREFIXES = ("control_model.", "")
UNET_MARKER = "output_blocks.0.0.in_layers.0.weight"
CONTROL_MARKER = "zero_convs.0.0.weight"
DIFFUSERS_MARKERS = (
    "controlnet_cond_embedding.conv_in.weight",
    "down_blocks.0.resnets.0.conv1.weight",
)
# Training leftovers in whole checkpoints that no net has a place for.
IGNORED = ("model_ema.",)

C = TypeVar("C", UNetConfig, ControlNetConfig)
N = TypeVar("N", bound=nn.Module)


def load_controlnet(
    path_or_state_dict: Source,
    *,
    config: ControlNetConfig | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
) -> ControlNet:
    """The ControlNet of a file or state dict in the original's key layout, in eval mode.

    With or without the `control_model.` prefix, alone or inside a whole checkpoint. The
    configuration comes from `config`, else from the file's metadata, else from keys and shapes.
    dtype None keeps the stored one. Raises UnsupportedCheckpoint, DamagedCheckpoint or
    CheckpointMismatch, each with a sentence.
    """
    checkpoint = read(path_or_state_dict)
    state = part(checkpoint, CONTROL_PREFIXES, CONTROL_MARKER, "ControlNet")
    config = (
        config or _stored(checkpoint, ControlNetConfig, "controlnet") or controlnet_config(state)
    )
    net = _filled(lambda: ControlNet(config, ops, attention=attention), state, checkpoint.name)
    return net.to(device, dtype).eval()


def load_unet(
    path_or_state_dict: Source,
    *,
    config: UNetConfig | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
) -> ControlledUNet:
    """The UNet of a file or state dict in the original's key layout, in eval mode and frozen.

    With or without the `model.diffusion_model.` prefix. See load_controlnet for the rest.
    """
    checkpoint = read(path_or_state_dict)
    state = part(checkpoint, UNET_PREFIXES, UNET_MARKER, "UNet")
    config = config or _stored(checkpoint, UNetConfig, "unet") or unet_config(state)
    unet = _filled(lambda: ControlledUNet(config, ops, attention=attention), state, checkpoint.name)
    return unet.to(device, dtype).eval().requires_grad_(False)


def part(checkpoint: Checkpoint, prefixes: tuple[str, ...], marker: str, what: str) -> StateDict:
    """The tensors behind the first prefix under which `marker` stands, without the prefix."""
    tensors = checkpoint.tensors
    for prefix in prefixes:
        if prefix + marker in tensors:
            chosen = {
                key[len(prefix) :]: value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            return {key: value for key, value in chosen.items() if not key.startswith(IGNORED)}
    raise UnsupportedCheckpoint(
        f"{checkpoint.name} holds no {what} in the original's key layout: the key {marker} is "
        f"missing. {_hint(tensors)}"
    )


def _hint(tensors: StateDict) -> str:
    """What the file seems to be instead."""
    if any(key in tensors for key in DIFFUSERS_MARKERS):
        return "It looks like a diffusers file: convert it to the original's layout first."
    if any(key.endswith(CONTROL_MARKER) for key in tensors):
        return "It holds a ControlNet: load it as one."
    if any(key.endswith(UNET_MARKER) for key in tensors):
        return "It holds a base model: load it as a UNet or checkpoint."
    return f"It starts with the keys {', '.join(sorted(tensors)[:3])}."


def _stored(checkpoint: Checkpoint, kind: type[C], name: str) -> C | None:
    record = metadata_record(checkpoint, CONFIG_KEY)
    if record is None or record.pop("kind", None) != name:
        return None
    return kind.from_dict(record)


def _filled(build: Callable[[], N], state: StateDict, name: str) -> N:
    """The net built without memory.

    Then given the tensors themselves; every key must have its place and shape.
    """
    with torch.device("meta"):
        net = build()
    own = net.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or misshapen:
        raise CheckpointMismatch(
            f"{name} doesn't fit the net that its configuration describes: "
            + "; ".join(
                filter(
                    None,
                    (
                        _some("missing", missing),
                        _some("unexpected", unexpected),
                        _some("", misshapen),
                    ),
                )
            )
            + "."
        )
    net.load_state_dict(state, assign=True)
    return net


def _some(title: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{title} {', '.join(items[:3])}{more}".strip()
