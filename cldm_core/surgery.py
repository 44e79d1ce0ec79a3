"""Changing weights as a whole: control added to a base model, moved to another one, mixed.

The functions on files and state dicts take any layout, leave what they are given as it is, and
return weights under the original's keys. They compute in fp32, tensor by tensor, and store each in
the type that the first net has it in.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, sdpa
from .checkpoint.quantise import narrowed
from .checkpoint.read import Source
from .checkpoint.skeleton import shapes_of
from .config import ControlNetConfig
from .control_lora import DIFFERENCE_MARKER, DIFFERENCE_PREFIX, OWN_PARTS, difference_net
from .controlnet import ControlNet
from .errors import CheckpointMismatch, CldmError, UnsupportedCheckpoint
from .unet import ControlledUNet
from .weights import ControlWeights, base_weights, control_weights, twins

UNCHANGED = 1e-6
"""A tensor whose every number changed by less than this is left out of a difference file."""


def add_control(
    unet: ControlledUNet, *, hint_channels: int = 3, ops: Any = nn, attention: Attention = sdpa
) -> ControlNet:
    """A new ControlNet for `unet`, after tool_add_control.py of the original.

    Its encoder is copied and its zero convolutions are zero, so it changes nothing until it is
    trained. The weights have the UNet's type and are on its device.
    """
    parameter = next(unet.parameters())
    net = ControlNet(ControlNetConfig(unet.config, hint_channels), ops, attention=attention)
    net.to(parameter.device, parameter.dtype)
    own = net.state_dict()
    copied = {key: value for key, value in unet.state_dict().items() if key in own}
    net.load_state_dict({**own, **copied})
    return net


def transfer(control: Source, source: Source, target: Source) -> dict[str, Tensor]:
    """A ControlNet moved from the base model it was trained on to another one.

    What its encoder has beyond `source` is added to `target`'s; what no base has is kept (after
    tool_transfer_control.py of lllyasviel/ControlNet). For ControlNets and unions, on bases of the
    same shapes. Raises CheckpointMismatch where shapes differ, UnsupportedCheckpoint for other
    nets.
    """
    net = control_weights(control)
    if not any(key.startswith("zero_convs.") for key in net.state) or net.family.bound:
        advice = (
            "it builds upon whatever base it is given, so use it with the other one as it is"
            if net.family.bound
            else "nothing in it was copied from a base, so use it with the other one as it is"
        )
        raise UnsupportedCheckpoint(f"{net.name} holds a {net.kind.noun}: {advice}.")
    old = twins(net, base_weights(source), "the source")
    new = twins(net, base_weights(target), "the target")

    def moved(key: str, value: Tensor) -> Tensor:
        if key not in old:
            return value
        # In this order a base that is moved to itself changes nothing, not even by rounding.
        return narrowed(value.float() + (new[key].float() - old[key].float()), value.dtype, key)

    return {key: moved(key, value) for key, value in net.state.items()}


def difference(
    control: Source, base: Source, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """What a ControlNet has beyond its base model, in the format of difference files.

    That is extract_controlnet_diff.py's of Mikubill/sd-webui-controlnet, which ComfyUI and
    load_control read: a marker `difference`, keys behind `control_model.`, weights without a twin
    stored whole, and tensors left out that changed by less than 1e-6 everywhere. Such a change is
    lost; in fp16 most weights can't hold it anyway. dtype: what differences are stored in, None
    for the net's own; fp32 keeps a half-precision net to the bit. Raises CheckpointMismatch where
    the base has other shapes, UnsupportedCheckpoint for other nets than ControlNets.
    """
    net = plain_weights(control)
    base_twins = twins(net, base_weights(base), "the base")
    result = {DIFFERENCE_MARKER: torch.tensor(1.0)}
    for key, value in net.state.items():
        stored = value
        if key in base_twins:
            stored = value.float() - base_twins[key].float()
            if stored.abs().max() < UNCHANGED:
                continue
        result[DIFFERENCE_PREFIX + key] = narrowed(stored, dtype or value.dtype, key)
    return result


def apply_difference(
    difference: Source, base: Source, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The plain ControlNet that a difference file makes of a base model.

    dtype: what the sums are stored in, None for the type of the file's tensors. Raises
    CheckpointMismatch or FamilyMismatch where the two don't fit, UnsupportedCheckpoint where it is
    no difference file.
    """
    file = control_weights(difference)
    if file.kind.name != DIFFERENCE_MARKER:
        raise UnsupportedCheckpoint(
            f"{file.name} holds a {file.kind.noun}, expected a difference file, as `difference` "
            f"makes it."
        )
    unet = base_weights(base)
    config = file.config(unet)
    # The net checks that file and base fit, in a sentence for each way they may not.
    difference_net(file.state, config).bind(unet)
    result = {}
    for key, shape in shapes_of(partial(ControlNet, config)).items():
        value = file.state.get(key)
        if key.startswith(OWN_PARTS):
            result[key] = narrowed(file.state[key], dtype or file.state[key].dtype, key)
        elif value is None:
            result[key] = narrowed(unet[key].reshape(shape), dtype or unet[key].dtype, key)
        else:
            total = value.float() + unet[key].reshape(shape).float()
            result[key] = narrowed(total, dtype or value.dtype, key)
    return result


def merge_nets(first: Source, second: Source, ratio: float) -> dict[str, Tensor]:
    """Two nets of equal keys and shapes mixed: (1 - ratio) x first + ratio x second.

    ratio: from 0 (first) to 1 (second). For nets that are whole by themselves. Raises CldmError for
    another ratio, UnsupportedCheckpoint and CheckpointMismatch for nets that can't be mixed.
    """
    if not 0 <= ratio <= 1 or math.isnan(ratio):
        raise CldmError(f"The ratio is {ratio}, expected a number from 0 (first) to 1 (second).")
    one, other = control_weights(first), control_weights(second)
    for net in (one, other):
        if net.family.bound:
            raise UnsupportedCheckpoint(
                f"{net.name} holds a {net.kind.noun}, which can't be merged by itself: merge the "
                f"whole nets, and extract or subtract afterwards."
            )
    _require_alike(one, other)
    return {
        key: narrowed(torch.lerp(value.float(), other.state[key].float(), ratio), value.dtype, key)
        for key, value in one.state.items()
    }


def plain_weights(source: Source) -> ControlWeights:
    """The weights of a ControlNet of the plain kind; raises UnsupportedCheckpoint for others."""
    net = control_weights(source)
    if net.family.config is not ControlNetConfig or net.family.bound:
        raise UnsupportedCheckpoint(
            f"{net.name} holds a {net.kind.noun}, expected a ControlNet: only for those is there a "
            f"format of files that store what differs from a base."
        )
    return net


def _require_alike(one: ControlWeights, other: ControlWeights) -> None:
    if one.family.kind != other.family.kind:
        raise CheckpointMismatch(
            f"{one.name} holds a {one.kind.noun} and {other.name} a {other.kind.noun}: only nets "
            f"of one kind can be merged."
        )
    wrong = sorted(one.state.keys() ^ other.state.keys()) + [
        key
        for key in one.state.keys() & other.state.keys()
        if one.state[key].shape != other.state[key].shape
    ]
    if wrong:
        raise CheckpointMismatch(
            f"{one.name} and {other.name} differ in keys or shapes ({', '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}): only nets for one "
            f"family of base models, with equal hints, can be merged."
        )
