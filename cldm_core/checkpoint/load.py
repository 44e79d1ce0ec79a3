"""Checkpoints to nets: the right part of the file, the right configuration, no key left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..attention import Attention, sdpa
from ..bound import Base
from ..config import ControlNetConfig, Prediction, UNetConfig
from ..controlnet import ControlNet
from ..errors import CldmError, UnsupportedCheckpoint
from ..unet import ControlledUNet
from .detect import controlnet_config, unet_config
from .dtypes import unified
from .families import FAMILIES, Family
from .fit import conformed, require_fit
from .formats import (
    DIFFUSERS,
    UNET,
    UNET_PREFIX,
    Format,
    Where,
    control_part,
    nearest,
    recognise,
)
from .guard import require_finite, require_plausible
from .keymap import DIFFUSERS_UNET, to_cldm
from .read import Checkpoint, Source, StateDict, metadata_record, read
from .signs import first_keys
from .skeleton import shapes_of
from .write import CONFIG_KEY

N = TypeVar("N", bound=nn.Module)
V_KEY = "v_pred"
"""By this key, which has no numbers, ComfyUI knows a UNet of SDXL that predicts velocity."""
ControlModule = Any
"""A net of any family: ControlNet, UnionControlNet, BoundControlNet, T2IAdapter, ControlLLLite."""


def load_control(
    path_or_state_dict: Source,
    *,
    base: Base | nn.Module | str | Path | None = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
) -> ControlModule:
    """The control net of a file or state dict, of any family of UNets, in eval mode.

    The family is told from the keys (formats.py), in the original's layout or in diffusers', with
    or without a prefix, alone or inside a whole checkpoint. The configuration comes from `config`,
    else from the file's metadata, else from keys and shapes. dtype None keeps the stored one, the
    most common where there are several, and widens 8-bit weights to fp32.

    The tensors of a given state dict become the net's own, unless their type or device changes: who
    changes the one changes the other, so hand over a copy where that is not wanted.

    base: the UNet's weights, which Control-LoRAs and difference files are bound to (a mapping in
    either layout of keys, a callable, a ControlledUNet, or a file's path); without it they come
    back unbound, and `net.bind(base)` gives the net that computes. Their layers are their own, so
    `ops` is for the other families. Raises UnsupportedCheckpoint, DamagedCheckpoint,
    CheckpointMismatch, FamilyMismatch or CldmError, each with a sentence.
    """
    checkpoint = read(path_or_state_dict)
    kind, state = contents(checkpoint)
    family = FAMILIES[kind.name]
    _require_class(config, family.config, checkpoint.name)
    _require_numbers(state, device, checkpoint.name)
    base = _by_key(base)
    state = unified(family.canonical(state), dtype, checkpoint.name)
    require_finite(state, checkpoint.name)
    config = config or stored_config(checkpoint, family) or family.config_of(state, base)
    if family.bound:
        net: ControlModule = family.net(state, config, attention=attention)
        return net.to(device).eval().bind(base)
    build = partial(family.net, config, attention=attention)
    return _filled(build, ops, state, checkpoint.name).to(device).eval()


def controlnet_config_of(source: Source, *, head_channels: int) -> ControlNetConfig:
    """The configuration of a ControlNet whose attentions have heads of an unusual width.

    It is for `config=` of load_control. Raises UnsupportedCheckpoint for nets of other families.
    """
    checkpoint = read(source)
    kind, state = contents(checkpoint)
    family = FAMILIES[kind.name]
    if family.net is not ControlNet:
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} holds {kind.title}: the width of heads can be set for plain "
            f"ControlNets only, so leave it to be told from the file."
        )
    stored: ControlNetConfig | None = stored_config(checkpoint, family)
    if stored is None:
        return controlnet_config(family.canonical(state), head_channels=head_channels)
    unet = replace(stored.unet, num_heads=-1, num_head_channels=head_channels)
    return replace(stored, unet=unet)


def load_controlnet(
    path_or_state_dict: Source,
    *,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
) -> ControlModule:
    """Like load_control, for nets that need nothing of a base model's weights.

    Control-LoRAs and differences are refused with UnsupportedCheckpoint.
    """
    checkpoint = read(path_or_state_dict)
    kind, _ = contents(checkpoint)
    if FAMILIES[kind.name].bound:
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} holds a {kind.noun}, which builds upon a base model's weights: use "
            f"load_control with base=."
        )
    return load_control(
        checkpoint, config=config, dtype=dtype, device=device, ops=ops, attention=attention
    )


def load_unet(
    path_or_state_dict: Source,
    *,
    config: UNetConfig | None = None,
    prediction: Prediction | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
) -> ControlledUNet:
    """The UNet of a file or state dict, in eval mode and frozen.

    In the original's key layout, with or without the `model.diffusion_model.` prefix, or in that of
    diffusers' UNet files. prediction: what it predicts, where that is known better than by its
    configuration. See load_controlnet for the rest.
    """
    checkpoint = read(path_or_state_dict)
    _require_class(config, UNetConfig, checkpoint.name)
    _require_numbers(checkpoint.tensors, device, checkpoint.name)
    state = unified(unet_part(checkpoint), dtype, checkpoint.name)
    require_finite(state, checkpoint.name)
    config = config or stored_unet(checkpoint) or unet_config(state)
    config = replace(config, prediction=prediction or config.prediction)
    build = partial(ControlledUNet, config, attention=attention)
    unet = _filled(build, ops, state, checkpoint.name)
    return unet.to(device).eval().requires_grad_(False)


def contents(checkpoint: Checkpoint) -> tuple[Format, StateDict]:
    """The kind of control that a file holds, and its weights without a prefix.

    Raises UnsupportedCheckpoint, with what the file is instead and what to do with it.
    """
    state = control_part(checkpoint.tensors)
    kind = recognise(state)
    if kind is None:
        raise UnsupportedCheckpoint(unknown_file(checkpoint.name, state))
    if kind.where is not Where.HERE:
        raise UnsupportedCheckpoint(kind.refusal(checkpoint.name))
    return kind, state


def unet_part(checkpoint: Checkpoint) -> StateDict:
    """The UNet's weights under the original's keys; raises UnsupportedCheckpoint for no UNet."""
    tensors = checkpoint.tensors
    if UNET_PREFIX + UNET in tensors:
        return {
            key.removeprefix(UNET_PREFIX): value
            for key, value in tensors.items()
            if key.startswith(UNET_PREFIX)
        }
    if UNET in tensors:
        return {key: value for key, value in tensors.items() if key != V_KEY}
    if DIFFUSERS_UNET in tensors and DIFFUSERS not in tensors:
        return to_cldm(tensors)
    state = control_part(tensors)
    kind = recognise(state)
    if kind is not None and kind.name == "base_model" and state is not tensors:
        return unet_part(Checkpoint(state, checkpoint.metadata, checkpoint.name))
    found = (
        unknown_file(checkpoint.name, state)
        if kind is None
        else f"It holds {kind.title}: load it as one."
    )
    raise UnsupportedCheckpoint(
        f"{checkpoint.name} can't be loaded as a UNet: the key {UNET} is missing. {found}"
    )


def _by_key(base: Base | nn.Module | str | Path | None) -> Base | None:
    """A base model's weights by the UNet's keys; raises CldmError for what holds none."""
    if isinstance(base, (str, Path)):
        return unet_part(read(base))
    if isinstance(base, nn.Module):
        base = dict(base.state_dict())
    if isinstance(base, Mapping) and DIFFUSERS_UNET in base:
        return to_cldm(base)
    return base


def _require_class(config: Any, expected: type[Any], name: str) -> None:
    if config is not None and not isinstance(config, expected):
        raise CldmError(
            f"config is a {type(config).__name__}, expected a {expected.__name__}, as {name} holds "
            f"a net of that kind; leave it out to have it told from the file."
        )


def _require_numbers(state: StateDict, device: torch.device | str, name: str) -> None:
    empty = next((key for key, value in state.items() if value.is_meta), None)
    if empty is not None and torch.device(device).type != "meta":
        raise CldmError(
            f"{name} holds the shape of {empty!a} without its numbers, and the net is asked for on "
            f'{device}: give tensors that hold numbers, or load to device="meta".'
        )


def unknown_file(name: str, state: StateDict) -> str:
    """The sentence for a file of no known kind."""
    kinds = nearest(state)
    likest = f"It is likest to {' or '.join(kind.title for kind in kinds)}. " if kinds else ""
    return (
        f"{name} holds no control net that is known by its keys, which start with "
        f"{first_keys(state)}. {likest}Check that it is the right file and whole."
    )


def stored_config(checkpoint: Checkpoint, family: Family) -> Any:
    """The configuration that the file's metadata carries, None where it carries none."""
    return _stored(checkpoint, family.config, family.kind)


def stored_unet(checkpoint: Checkpoint) -> UNetConfig | None:
    """The UNet's configuration that the file's metadata carries, None where it carries none."""
    found: UNetConfig | None = _stored(checkpoint, UNetConfig, "unet")
    return found


def _stored(checkpoint: Checkpoint, config: type[Any], kind: str) -> Any:
    record = metadata_record(checkpoint, CONFIG_KEY)
    if record is None:
        return None
    # The embedded model has `kind`, which is also a field of adapters.
    if (record.pop("family", None) or record.pop("kind", None)) != kind:
        return None
    stored = config.from_dict(record)
    require_plausible(record, len(checkpoint.tensors), checkpoint.name)
    return stored


def _filled(build: Callable[..., N], ops: Any, state: StateDict, name: str) -> N:
    """The net built without memory and then given the tensors themselves."""
    # Layers of a host may have no parameters yet, so the plain net tells what is expected.
    expected = shapes_of(build)
    state = conformed(expected, state)
    require_fit(expected, state, name)
    with torch.device("meta"):
        net = build(ops)
    net.load_state_dict(state, assign=True)
    return net
