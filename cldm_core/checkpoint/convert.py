"""Control nets from file to file: other keys, other number types, nothing but the net."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..bound import Base
from ..config import ControlNetConfig
from ..control_lora import DIFFERENCE_MARKER, DIFFERENCE_PREFIX, LORA_MARKER, BoundControlNet
from ..controlnet import ControlNet
from ..eight_bits import is_8_bit
from ..errors import CldmError, UnsupportedCheckpoint, listed
from .describe import base_name
from .detect_t2i import diffusers_t2i
from .dtypes import (
    common_type,
    is_scaled,
    require_floating,
    require_floating_weights,
    type_name,
    unified,
    without_scales,
)
from .families import FAMILIES, Family
from .fit import conformed, require_fit
from .formats import Format, control_part, recognise
from .formats import layout as layout_of
from .guard import require_finite
from .inspect import CheckpointInfo, inspect_checkpoint
from .keymap import to_cldm, to_diffusers
from .load import contents, stored_config
from .quantise import kept_wide, retyped
from .read import Checkpoint, Source, StateDict, read
from .skeleton import shapes_of
from .write import (
    FOREIGN_HINT_KEY,
    HINT_KEY,
    config_metadata,
    is_named_pooled,
    noted_hint,
    save,
    stored_pooling,
)

Layout = Literal["cldm", "diffusers"]

FORMAT_KEY = "cldm_core.format"
FAMILY_KEY = "cldm_core.family"
SOURCES_KEY = "cldm_core.sources"
POOLED_NOTE = (
    "Its name says that it is a shuffle net, so it was noted that residuals are averaged over the "
    "picture (pooling yes)."
)
CHUNK = 1 << 20


@dataclass(frozen=True)
class _Net:
    """What a file holds: weights under canonical keys, scales of 8-bit weights beside them."""

    name: str
    kind: Format
    family: Family
    config: Any
    state: dict[str, Tensor]
    scales: dict[str, Tensor]


def convert(
    source: Source,
    target: str | Path,
    *,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
    scaled: bool = False,
    prune: bool = True,
    base: Base | None = None,
    global_average_pooling: bool | None = None,
    hint: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> CheckpointInfo:
    """Writes the control net that `source` holds to `target` as safetensors; gives what that holds.

    layout: "cldm" for the original's keys, "diffusers" for theirs (ControlNets, unions and
    T2I-Adapters), None for those of the source; the way back gives the same tensors. dtype: None
    keeps every tensor as it is; for 8 bits and `scaled` see quantise.retyped. Scaled weights keep
    scales from one 8-bit type to another, and Control-LoRAs and differences stay in fp16 where 8
    bits have no scales, as their numbers are too small. Of a whole checkpoint only the net is
    taken; with `prune` tensors outside it, such as an optimiser's, are left out, else they are
    refused. base: the UNet's weights, which help to tell the configuration of Control-LoRAs and
    difference files.

    The source's metadata is kept. To it come the configuration (`cldm_core.config`), the format and
    the base's name, the source's name and sha256 if it is a file, and what is given:
    global_average_pooling (ControlNets only), `hint` (what the net's hint must be like, in words)
    and `metadata`. Whether residuals are averaged is noted only if it is given, stored, or told by
    the file's name (write.POOLED_NAMES). What a user should know of the result is in its `note`.
    The target is whole or absent and takes the place of a file of that name. Raises
    UnsupportedCheckpoint, CheckpointMismatch, DamagedCheckpoint or CldmError.
    """
    require_floating(dtype)
    if layout not in (None, *get_args(Layout)):
        raise CldmError(f"The layout is {layout!r}, expected {' or '.join(get_args(Layout))}.")
    checkpoint = read(source)
    net = _net(checkpoint, base, prune)
    pooling, notes = _pooling(net, source, checkpoint, global_average_pooling)
    config = net.config
    if isinstance(config, ControlNetConfig):
        config = replace(config, global_average_pooling=bool(pooling))
    if scaled and not net.scales and not is_8_bit(dtype):
        raise CldmError("Only weights of 8 bits are scaled: choose fp8_e4m3fn or fp8_e5m2.")
    state, told = _retyped(net, dtype, scaled)
    state = _laid_out(net, state, layout or layout_of(net.kind, control_part(checkpoint.tensors)))
    state = marked(net.kind.name, state)
    kind = recognise(control_part(state)) or net.kind
    kept = {key: text for key, text in checkpoint.metadata.items() if key != FOREIGN_HINT_KEY}
    hint = hint or noted_hint(checkpoint.metadata)
    save(
        state,
        target,
        {
            **kept,
            **({} if isinstance(source, (Checkpoint, Mapping)) else provenance(source=source)),
            **config_metadata(config, pooling_known=pooling is not None),
            FORMAT_KEY: kind.name,
            FAMILY_KEY: base_name(config),
            **({} if hint is None else {HINT_KEY: hint}),
            **(metadata or {}),
        },
    )
    info = inspect_checkpoint(target)
    return replace(info, note=" ".join(filter(None, (*notes, *told, info.note))))


def provenance(**files: str | Path) -> dict[str, Any]:
    """Metadata that names the files something was made of: name and sha256 of each, by role."""
    return {
        SOURCES_KEY: {
            role: {"name": Path(path).name, "sha256": _sha256(Path(path))}
            for role, path in files.items()
        }
    }


def sources_in(metadata: Mapping[str, str]) -> Any:
    """What `provenance` noted in a file; None where there is nothing, or nothing that is JSON."""
    try:
        return json.loads(metadata.get(SOURCES_KEY, "null"))
    except ValueError:
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _net(checkpoint: Checkpoint, base: Base | None, prune: bool) -> _Net:
    """The net with its configuration, checked to be whole and of the right shapes."""
    kind, tensors = contents(checkpoint)
    family = FAMILIES[kind.name]
    everything = family.canonical(tensors)
    require_finite(everything, checkpoint.name, whole=True)
    state = without_scales(everything)
    scales: dict[str, Tensor] = {}
    if is_scaled(everything):
        scales = {key: value for key, value in everything.items() if key not in state}
    config = stored_config(checkpoint, family) or family.config_of(state, base)
    build = partial(ControlNet if family.bound else family.net, config)
    expected = shapes_of(build)
    if prune:
        parts = {key.partition(".")[0] for key in expected}
        state = {key: value for key, value in state.items() if key.partition(".")[0] in parts}
    require_floating_weights(state, checkpoint.name)
    if family.bound:
        # What such a file may leave out is known to the net alone, which says so in a sentence.
        family.net(state, config)
    else:
        state = conformed(expected, state)
        require_fit(expected, state, checkpoint.name)
    return _Net(checkpoint.name, kind, family, config, state, scales)


def _pooling(
    net: _Net, source: Source, checkpoint: Checkpoint, given: bool | None
) -> tuple[bool | None, list[str]]:
    """Whether residuals are averaged, None where nothing tells it, and what to say about it."""
    if not isinstance(net.config, ControlNetConfig):
        if given is None:
            return False, []
        raise UnsupportedCheckpoint(
            f"{net.name} holds a {net.kind.noun}, whose residuals are never averaged over the "
            f"picture: leave the pooling out."
        )
    stored = stored_pooling(checkpoint) if given is None else given
    if stored is None and isinstance(source, (str, Path)) and is_named_pooled(Path(source).name):
        return True, [POOLED_NOTE]
    return stored, []


def _retyped(
    net: _Net, dtype: torch.dtype | None, scaled: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The net's tensors in the type, scales beside them, and what to say about them."""
    state = {**net.state, **net.scales}
    if dtype is None or (net.scales and dtype == common_type(net.state)):
        return state, []
    if net.scales:
        state = unified(state, torch.float32, net.name)
    if not is_8_bit(dtype):
        return retyped(state, dtype), []
    if scaled or net.scales:
        return retyped(state, dtype, scaled=True), []
    if net.family.bound:
        return retyped(state, torch.float16), [
            f"It is in fp16: a {net.kind.noun} holds numbers that are too small for "
            f"{type_name(dtype)} without scales."
        ]
    state = retyped(state, dtype)
    wide = kept_wide(state)
    if not wide:
        return state, []
    return state, [
        f"{listed(wide)} stay in fp16, as more than 1 % of their numbers would become zero in "
        f"{type_name(dtype)}; with scales they fit."
    ]


def _laid_out(net: _Net, state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The net's tensors under the keys of the layout."""
    if layout != "diffusers":
        return state
    if net.kind.name == "t2i_adapter":
        return diffusers_t2i(state)
    if net.family.bound or net.kind.name == "lllite":
        raise UnsupportedCheckpoint(
            f"{net.name} holds a {net.kind.noun}, for which diffusers has no keys: keep its own."
        )
    renamed = to_diffusers(state)
    if to_cldm(renamed).keys() != state.keys():
        raise UnsupportedCheckpoint(
            f"{net.name} has layers that diffusers' ControlNets don't have: keep the original's "
            f"keys. Its configuration is {net.config}."
        )
    return renamed


def marked(kind: str, state: StateDict) -> dict[str, Tensor]:
    """The tensors with what makes them a file of that kind, a name of formats.py."""
    match kind:
        case "control_lora":
            return {LORA_MARKER: torch.zeros(0), **state}
        case "difference":
            prefixed = {f"{DIFFERENCE_PREFIX}{key}": value for key, value in state.items()}
            return {DIFFERENCE_MARKER: torch.tensor(1.0), **prefixed}
    return dict(state)


def as_checkpoint(net: Any, name: str, *, pooling_known: bool | None = None) -> Checkpoint:
    """A net in memory as the file it could be loaded from; its weights are shared, not copied.

    pooling_known: as in config_metadata; None takes it as known where the net averages, since a net
    of a file that doesn't tell has the default, which is not to.
    """
    state = dict(net.state_dict())
    kind = "cldm"
    if isinstance(net, BoundControlNet):
        kind = "control_lora" if any(key.endswith(".up") for key in state) else "difference"
    if pooling_known is None:
        pooling_known = getattr(net.config, "global_average_pooling", False)
    texts = config_metadata(net.config, pooling_known=pooling_known)
    return Checkpoint(marked(kind, state), texts, name)
