"""What a checkpoint holds: told from its header, in a line that a person reads, or in full."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..control_lora import require_stored_fit
from ..controlnet import ControlNet
from ..errors import CldmError, listed, printable
from .describe import base_name, control_types, hint_channels, latents, only_stored, pooling
from .detect import unet_config
from .dtypes import common_type, is_scaled, type_name, without_scales
from .families import FAMILIES
from .fit import conformed, differences
from .formats import Format, Where, control_part, layout, nearest, recognise
from .keymap import DIFFUSERS_UNET
from .load import stored_config, stored_unet, unet_part
from .read import Checkpoint, Source, StateDict, is_legacy, read_header
from .signs import first_keys, shortened
from .skeleton import shapes_of
from .write import noted_hint, stored_pooling

UNKNOWN = "unknown"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a file holds; "unknown" stands for what neither keys nor metadata tell.

    family: the base model's; kind: the way of control, such as "ControlNet"; format: its name in
    formats.py; layout: whose keys; hint_channels: None where the net has no hint encoder;
    control_types: the names of a union's types; pooling: "yes", "no" or "unknown"; dtype: the
    type of most weights; parameters: how many numbers they are; size: the file's, in bytes;
    missing, unexpected and misshapen: keys that don't fit the net that the rest describes;
    nearest: for an unknown file, the kinds whose signs it shows in part; note: what else a user
    should know; hint: what the hint must be like, in words; prediction: what the base predicts,
    "eps" or "v"; heads: of the attentions. Of these, what a kind of file doesn't have is empty.
    """

    name: str
    format: str
    kind: str
    family: str
    layout: str
    hint_channels: int | None
    control_types: tuple[str, ...]
    pooling: str
    dtype: str
    parameters: int
    size: int | None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    nearest: tuple[str, ...] = ()
    note: str = ""
    hint: str = ""
    prediction: str = ""
    heads: str = ""

    def __str__(self) -> str:
        what = f"{self.family} {self.kind}" if self.family != UNKNOWN else self.kind
        types = f", {len(self.control_types)} types" if self.control_types else ""
        hint = f", hint {self.hint_channels} channels" if self.hint_channels else ""
        layout = f", {self.layout} keys" if self.layout else ""
        size = f"{self.parameters / 1e6:.1f} M"
        faults = len(self.missing) + len(self.unexpected) + len(self.misshapen)
        fault = f", {faults} keys don't fit" if faults else ""
        return f"{what}{layout}{types}{hint}, {self.dtype}, {size}{fault}"

    def details(self) -> str:
        """All that is known, a fact on each line."""
        several = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": self.misshapen,
            "likest to": self.nearest,
        }
        facts = {
            "kind": self.kind,
            "base": self.family,
            "keys": self.layout,
            "hint": f"{self.hint_channels} channels" if self.hint_channels else "",
            "what the hint must be": self.hint,
            "control types": ", ".join(self.control_types),
            "pooling": self.pooling,
            "prediction": self.prediction,
            "heads": self.heads,
            "type": self.dtype,
            "parameters": f"{self.parameters / 1e6:.1f} M",
            "file": "" if self.size is None else f"{self.size / 1e6:.1f} MB",
            **{name: listed(map(shortened, items), 5) for name, items in several.items()},
            "note": self.note,
        }
        return "\n".join(f"{name}: {value}" for name, value in facts.items() if value)


def inspect_checkpoint(path_or_state_dict: Source) -> CheckpointInfo:
    """What a file or state dict holds, whether this pack can load it or not.

    Of a .safetensors file only the header is read, a PyTorch file is mapped, and one of before
    PyTorch 1.6 is read whole (and the note says so). Raises DamagedCheckpoint, or
    UnsupportedCheckpoint where there are no tensors at all.
    """
    checkpoint = read_header(path_or_state_dict)
    state = control_part(checkpoint.tensors)
    kind = recognise(state)
    if kind is None:
        info = _unknown(checkpoint, state)
    elif kind.name == "base_model":
        info = _base_model(checkpoint, kind, state)
    elif kind.where is Where.HERE:
        info = _control(checkpoint, kind, state)
    else:
        advice = f"{kind.advice[0].upper()}{kind.advice[1:]}."
        info = replace(_blank(checkpoint, kind, state), note=advice)
    if not isinstance(path_or_state_dict, (str, Path)):
        return info
    path = Path(path_or_state_dict)
    old = "This is a PyTorch file of the old kind, which has to be read whole."
    note = _joined(info.note, old if is_legacy(path) else "")
    return replace(info, size=path.stat().st_size, note=note)


def _blank(checkpoint: Checkpoint, kind: Format | None, state: StateDict) -> CheckpointInfo:
    """What the tensors alone tell, whatever they are."""
    weights = without_scales(state)
    scaled = ", scaled" if is_scaled(state) else ""
    return CheckpointInfo(
        name=checkpoint.name,
        format=kind.name if kind else UNKNOWN,
        kind=kind.noun if kind else "unknown file",
        family=UNKNOWN,
        layout="",
        hint_channels=None,
        control_types=(),
        pooling=UNKNOWN,
        dtype=type_name(common_type(weights)) + scaled,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        size=None,
    )


def _unknown(checkpoint: Checkpoint, state: StateDict) -> CheckpointInfo:
    return replace(
        _blank(checkpoint, None, state),
        nearest=tuple(kind.noun for kind in nearest(state)),
        note=f"Its keys start with {first_keys(state)}.",
    )


def _base_model(checkpoint: Checkpoint, kind: Format, state: StateDict) -> CheckpointInfo:
    keys = "diffusers" if DIFFUSERS_UNET in state else "cldm"
    unet = unet_part(checkpoint)
    info = replace(_blank(checkpoint, kind, unet), layout=keys, pooling="")
    try:
        stored = stored_unet(checkpoint)
        config = stored or unet_config(without_scales(unet))
        return replace(
            info,
            family=base_name(config),
            note=latents(config),
            **only_stored(config, stored=stored is not None),
        )
    except CldmError as error:
        return replace(info, note=str(error))


def _control(checkpoint: Checkpoint, kind: Format, state: StateDict) -> CheckpointInfo:
    """What is known of a net that this pack loads; a damaged one is described as far as it goes."""
    family = FAMILIES[kind.name]
    info = replace(
        _blank(checkpoint, kind, state),
        layout=layout(kind, state),
        hint=printable(noted_hint(checkpoint.metadata) or UNKNOWN),
        note=_surroundings(checkpoint.tensors, state),
    )
    try:
        state = without_scales(family.canonical(state))
        stored = stored_config(checkpoint, family)
        config = stored or family.config_of(state, None)
        info = replace(
            info,
            family=base_name(config),
            hint_channels=hint_channels(config),
            control_types=control_types(config),
            pooling=pooling(config, stored=stored_pooling(checkpoint) is not None),
            note=_joined(latents(config), info.note),
            **only_stored(config, stored=stored is not None),
        )
        return replace(info, **_misfits(kind, config, state))
    except CldmError as error:
        return replace(info, note=_joined(str(error), info.note))


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _surroundings(tensors: StateDict, net: StateDict) -> str:
    """A sentence where the net is a part of the file."""
    if len(net) == len(tensors):
        return ""
    others = sum(value.numel() for value in tensors.values())
    others -= sum(value.numel() for value in net.values())
    return f"It lies inside a whole checkpoint with {others / 1e6:.1f} M other numbers."


def _misfits(kind: Format, config: Any, state: StateDict) -> dict[str, Any]:
    """The keys that don't fit; raises CldmError where what a base completes doesn't."""
    family = FAMILIES[kind.name]
    if family.bound:
        layers: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for key, shape in shapes_of(partial(ControlNet, config)).items():
            path, _, name = key.rpartition(".")
            layers[path][name] = shape
        require_stored_fit(layers, state, difference=kind.name == "difference")
        return {}
    expected = shapes_of(partial(family.net, config))
    found = differences(expected, conformed(expected, state))
    return {
        "missing": tuple(found.missing),
        "unexpected": tuple(found.unexpected),
        "misshapen": tuple(found.misshapen),
    }
